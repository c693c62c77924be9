"""A pass over memory, alone: so many bytes, once, without arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from opbyte.core.ops import Number, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.work import WORKS, Work


@WORKS.register("stream")
@dataclass(frozen=True)
class Stream(Work):
    """What one device moves between its unit and where the mapping puts `activation`.

    Attributes:
        bytes: Bytes that are moved.
        offered: Bytes/s that others keep moving, at which the latency of one more access is asked
            for; 0 asks for that of an idle machine.
    """

    kind: ClassVar[str] = "stream"
    metrics: ClassVar[tuple[str, ...]] = ("bandwidth", "latency")
    undefined: ClassVar[tuple[str, ...]] = (
        "tokens_per_s", "joules_per_token", "usd_per_mtoken", "flops", "op_per_byte",
    )  # fmt: skip
    vector_fields: ClassVar[tuple[str, ...]] = ("bytes", "offered")
    least: ClassVar[Mapping[str, float]] = {"offered": 0.0}

    bytes: Number
    offered: Number = 0.0

    @property
    def tokens(self) -> Number:
        """Return 1: bytes have no tokens."""
        return 1.0

    @property
    def sequences(self) -> Number:
        """Return 1: a pass has no sequences."""
        return 1.0

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase with one row."""
        del parallel
        builder = OpTableBuilder()
        with builder.block(self.kind) as block:
            block.add(self.kind, self.kind, dtype="fp32", labels=("stream",), in_bytes=self.bytes)
        builder.order.append(0)
        return (Phase(self.kind, builder.build()),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes, each of which is there once."""
        del parallel
        return {"activation": self.bytes}
