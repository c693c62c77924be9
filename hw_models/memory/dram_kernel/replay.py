"""Running a stream of requests through the compiled kernel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import SimulationError
from opbyte.hw_models.memory.dram_kernel.loops import LATE, run, settle
from opbyte.hw_models.memory.dram_kernel.setup import (
    FORWARDED,
    LINEAR,
    P_COUNT,
    RD,
    RDA,
    READ_LATENCY,
    TICKS,
    WR,
    WRA,
)  # fmt: skip
from opbyte.hw_models.memory.dram_kernel.start import new_channel
from opbyte.hw_models.memory.dram_kernel.state import (
    ACTIVE,
    BLOCKED,
    FAR,
    FAULT,
    LAST,
    QUEUED,
    REFRESH_AT,
    SEND_AT,
    SENT,
)  # fmt: skip
from opbyte.hw_models.memory.standards import Standard

__all__ = ["Replay", "latency_of_bin"]

Ints = npt.NDArray[np.int64]


class Replay:
    """One channel that takes a stream piece by piece."""

    def __init__(self, standard: Standard, numbers: Ints) -> None:
        """Start with all banks closed at tick 0."""
        self.standard = standard
        self._channel = new_channel(standard, numbers)

    def take(self, codes: Ints) -> Ints:
        """Send the next piece of the stream; return all counts once its last one is accepted.

        Raises:
            SimulationError: If refreshes fall due faster than they can be issued.
        """
        self._channel.v[SENT] = 0
        run(self._channel.memory, codes, len(codes))
        fault = int(self._channel.v[FAULT])
        if fault:
            why = "refreshes fall due faster than they are issued" if fault == LATE else "is stuck"
            raise SimulationError(f"{self.standard.name}: {why}; check its refresh timings")
        return self._counts()

    def drain(self) -> Ints:
        """Serve what waits; return all counts, with the end of the last data as ticks.

        Nothing arrives and no further refresh falls due meanwhile. It ends the stream.

        Raises:
            SimulationError: If something waits for ever.
        """
        c, t = self._channel, self.standard.ticks
        c.v[SEND_AT], c.v[REFRESH_AT], c.v[BLOCKED] = FAR, FAR, 0
        # The loop ends where nothing is left that could ever happen.
        run(c.memory, np.zeros(0, np.int64), 0)
        ranks = c.ranks[: int(c.n[P_COUNT])]
        if c.v[QUEUED : QUEUED + 2].any() or ranks[:, ACTIVE].any():
            raise SimulationError(f"{self.standard.name}: is stuck; check its timings")
        last = ranks[:, LAST:].max(axis=0)
        burst = t.get("nBL", t.get("nBL_min", 0))
        ends = (
            last[[RD, RDA]].max() + c.n[READ_LATENCY],
            last[[WR, WRA]].max() + t["nCWL"] + burst,
            c.out[TICKS] + (c.out[FORWARDED] > 0),
        )
        c.out[TICKS] = max(ends)
        return self._counts()

    def _counts(self) -> Ints:
        out = self._channel.out.copy()
        settle(self._channel.memory, out)
        return out


def latency_of_bin(index: Ints) -> npt.NDArray[np.float64]:
    """Return the latency in ticks at the middle of each bin of the histogram."""
    octave, part = np.divmod(np.maximum(index - LINEAR, 0), 32)
    size = LINEAR * np.exp2(octave)
    above = size + (part + 0.5) * size / 32
    return np.where(index < LINEAR, index.astype(float), above)
