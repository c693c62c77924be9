"""Operators without matrix products as works: softmax, norm, activation, rotary and sums, alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opbyte.core.dtypes import lookup
from opbyte.core.ops import Number, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.rows import VECTOR_FLOPS
from opbyte.workloads.work import WORKS, Work


@dataclass(frozen=True)
class VectorCall(Work):
    """One pass over `rows` rows of `width` elements on one device.

    Attributes:
        rows: Independent rows: tokens, or queries of all heads.
        width: Elements of each.
        dtype: Number format of what is read and written.
    """

    #: Kind of the row of the OpTable, and the word that counts its operations.
    row: ClassVar[str]
    word: ClassVar[str]
    #: Elements read for each one that is written; learned vectors of `width` that all rows share.
    inputs: ClassVar[float] = 1.0
    learned: ClassVar[float] = 0.0
    vector_fields: ClassVar[tuple[str, ...]] = ("rows", "width")
    alone: ClassVar[bool] = True

    rows: Number
    width: Number
    dtype: str = "bf16"

    @property
    def tokens(self) -> Number:
        """Return the rows, the nearest thing to tokens."""
        return self.rows

    @property
    def sequences(self) -> Number:
        """Return 1: a pass has no sequences."""
        return 1.0

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase with one row."""
        del parallel
        size, elements = lookup(self.dtype).bytes_per_element, self.rows * self.width
        builder = OpTableBuilder()
        with builder.block(self.kind) as block:
            block.add(
                self.kind, self.row, dtype=self.dtype, labels=("vector",),
                flops=VECTOR_FLOPS[self.word] * elements, groups=self.rows,
                weight=self.learned * self.width * size,
                in_bytes=self.inputs * elements * size,
                out_bytes=elements * size,
            )  # fmt: skip
        builder.order.append(0)
        return (Phase(self.kind, builder.build()),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of what is read and written."""
        del parallel
        size = lookup(self.dtype).bytes_per_element
        moved = (1.0 + self.inputs) * self.rows * self.width
        return {"weight": self.learned * self.width * size, "activation": moved * size}


@WORKS.register("softmax")
@dataclass(frozen=True)
class Softmax(VectorCall):
    """Softmax of each row, without a mask."""

    kind: ClassVar[str] = "softmax"
    row: ClassVar[str] = "softmax"
    word: ClassVar[str] = "softmax"


@WORKS.register("norm")
@dataclass(frozen=True)
class Norm(VectorCall):
    """Root-mean-square norm of each row, with a learned gain."""

    kind: ClassVar[str] = "norm"
    row: ClassVar[str] = "norm"
    word: ClassVar[str] = "norm"
    learned: ClassVar[float] = 1.0


@WORKS.register("activation")
@dataclass(frozen=True)
class Activation(VectorCall):
    """GELU of every element."""

    kind: ClassVar[str] = "activation"
    row: ClassVar[str] = "activation"
    word: ClassVar[str] = "activation"


@WORKS.register("gated_activation")
@dataclass(frozen=True)
class GatedActivation(VectorCall):
    """SiLU of one tensor times another."""

    kind: ClassVar[str] = "gated_activation"
    row: ClassVar[str] = "activation"
    word: ClassVar[str] = "gated_activation"
    inputs: ClassVar[float] = 2.0


@WORKS.register("rotary")
@dataclass(frozen=True)
class Rotary(VectorCall):
    """Rotation of every pair of elements by its position's angle."""

    kind: ClassVar[str] = "rotary"
    row: ClassVar[str] = "rotary"
    word: ClassVar[str] = "rotary"


@WORKS.register("add")
@dataclass(frozen=True)
class Add(VectorCall):
    """Sum of two tensors."""

    kind: ClassVar[str] = "add"
    row: ClassVar[str] = "elementwise"
    word: ClassVar[str] = "add"
    inputs: ClassVar[float] = 2.0
