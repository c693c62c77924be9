"""A bare collective as a work: one call among devices that have nothing else to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opbyte.core.ops import Number, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.work import WORKS, Work


@dataclass(frozen=True)
class CollectiveCall(Work):
    """One collective.

    Attributes:
        bytes: Full buffer of each participant: what all_reduce sums, what all_gather ends with,
            what reduce_scatter begins with, what all_to_all sends to all together, itself too.
        participants: Devices that take part.
        dtype: Number format of what is sent.
    """

    vector_fields: ClassVar[tuple[str, ...]] = ("bytes", "participants")
    alone: ClassVar[bool] = True

    bytes: Number
    participants: Number
    dtype: str = "bf16"

    @property
    def tokens(self) -> Number:
        """Return 1: a call is the nearest thing to a token."""
        return 1.0

    @property
    def sequences(self) -> Number:
        """Return 1: a call has no sequences."""
        return 1.0

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase with one row, what one participant does."""
        del parallel
        builder = OpTableBuilder()
        with builder.block(self.kind) as block:
            block.add(
                self.kind, self.kind, dtype=self.dtype, labels=("collective",), flops=0.0,
                payload=self.bytes, participants=self.participants,
                in_bytes=self.bytes, out_bytes=self.bytes,
            )  # fmt: skip
        builder.order.append(0)
        return (Phase(self.kind, builder.build()),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of the buffer."""
        del parallel
        return {"activation": self.bytes}


@WORKS.register("all_reduce")
@dataclass(frozen=True)
class AllReduce(CollectiveCall):
    """Every participant ends with the sum of all buffers."""

    kind: ClassVar[str] = "all_reduce"


@WORKS.register("all_gather")
@dataclass(frozen=True)
class AllGather(CollectiveCall):
    """Every participant ends with the parts of all."""

    kind: ClassVar[str] = "all_gather"


@WORKS.register("reduce_scatter")
@dataclass(frozen=True)
class ReduceScatter(CollectiveCall):
    """Every participant ends with its part of the sum."""

    kind: ClassVar[str] = "reduce_scatter"


@WORKS.register("all_to_all")
@dataclass(frozen=True)
class AllToAll(CollectiveCall):
    """Every participant sends a part of its buffer to each."""

    kind: ClassVar[str] = "all_to_all"
