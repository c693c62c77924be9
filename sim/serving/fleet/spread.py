"""Which of several engines did what."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Spread:
    """Which of several engines did what.

    Attributes:
        engines: How many there are.
        replica: Who gave each request its last token, -1 where there is none, (requests,).
        series: Whose step each column of the series is, (rows,).
        steps: Of each engine, (engines,).
        prefill: Who computed its prompt; None without pools, (requests,).
        moved_bytes: KV caches that were sent from pool to pool; None without pools, (requests,).
        idle_failures: Failures of engines that nobody was at.
        instances: Of each resource, where there are not as many as engines.
    """

    engines: int
    replica: Ints
    series: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    steps: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    prefill: Ints | None = None
    moved_bytes: Array | None = None
    idle_failures: int = 0
    instances: dict[str, int] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, Array | Ints]:
        """Return the columns of requests."""
        columns: dict[str, Array | Ints] = {"replica": self.replica}
        if self.prefill is not None and self.moved_bytes is not None:
            columns |= {"prefill_replica": self.prefill, "moved_bytes": self.moved_bytes}
        return columns
