"""What prompts consist of, block by block, as prefix caches see it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from opbyte.core.errors import WorkloadError
from opbyte.workloads.traces._rules import Ints, column

__all__ = ["PrefixBlocks"]


@dataclass(frozen=True, eq=False)
class PrefixBlocks:
    """Ids of the blocks that each prompt consists of; equal ids mean equal text from the start on.

    Attributes:
        ids: Block ids of all requests, one request after the other, (blocks,).
        offsets: Where each request's ids begin, and the end of the last, (requests + 1,).
        block_tokens: Tokens of one block; a prompt's last block may be partial.
    """

    ids: Ints
    offsets: Ints
    block_tokens: int

    def __post_init__(self) -> None:
        """Check shapes and values; keep read-only views.

        Raises:
            WorkloadError: If offsets and ids disagree, an id is negative, or a block is empty.
        """
        ids = column("prefix.ids", self.ids, np.int64)
        offsets = column("prefix.offsets", self.offsets, np.int64)
        if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != len(ids) or _falls(offsets):
            raise WorkloadError(
                f"prefix.offsets must rise from 0 to the number of ids, {len(ids)}, got {offsets}"
            )
        if len(ids) and ids.min() < 0:
            raise WorkloadError(f"prefix.ids must be at least 0, got {ids.min()}")
        if self.block_tokens < 1:
            raise WorkloadError(f"prefix.block_tokens must be at least 1, got {self.block_tokens}")
        object.__setattr__(self, "ids", ids)
        object.__setattr__(self, "offsets", offsets)

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.offsets) - 1

    def of(self, request: int) -> Ints:
        """Return the block ids of one request, (its blocks,)."""
        return self.ids[self.offsets[request] : self.offsets[request + 1]]

    @property
    def counts(self) -> Ints:
        """Return how many blocks each request has, (requests,)."""
        return np.diff(self.offsets)

    def between(self, start: int, stop: int) -> Self:
        """Return the blocks of the requests from `start` to before `stop`; a view."""
        offsets = self.offsets[start : stop + 1]
        return replace(self, ids=self.ids[offsets[0] : offsets[-1]], offsets=offsets - offsets[0])

    def take(self, rows: Ints) -> Self:
        """Return the blocks of the requests `rows`, in that order; a copy."""
        counts = self.counts[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return replace(
            self, ids=self.ids[np.repeat(self.offsets[rows], counts) + inside], offsets=offsets
        )


def _falls(values: Ints) -> bool:
    return bool(np.any(values[1:] < values[:-1]))
