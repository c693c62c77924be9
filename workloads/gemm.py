"""A bare matrix product as a work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opbyte.core.dtypes import lookup
from opbyte.core.ops import Number, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.work import WORKS, Work


@WORKS.register("gemm")
@dataclass(frozen=True)
class Gemm(Work):
    """`groups` products of an (m, k) by a (k, n) matrix, the second read as weights.

    One device runs it: a bare product has no parallel split.

    Attributes:
        m: Rows of the first matrix.
        n: Columns of the second.
        k: Inner dimension.
        dtype: Number format of both operands; results leave in it, in 16 bits at least.
        groups: Independent products.
        weight_dtype: Number format that the second matrix is stored in, unpacked to `dtype` on the
            way; `dtype` itself where it is empty.
    """

    kind: ClassVar[str] = "gemm"
    vector_fields: ClassVar[tuple[str, ...]] = ("m", "n", "k", "groups")
    alone: ClassVar[bool] = True

    m: Number
    n: Number
    k: Number
    dtype: str = "bf16"
    groups: Number = 1.0
    weight_dtype: str = ""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If a size is not a whole number of at least one.
            ConfigError: If the dtype is unknown.
        """
        super().__post_init__()
        object.__setattr__(self, "weight_dtype", self.weight_dtype or self.dtype)

    @property
    def tokens(self) -> Number:
        """Return the rows of all products, the nearest thing to tokens."""
        return self.m * self.groups

    @property
    def sequences(self) -> Number:
        """Return 1: a product has no sequences."""
        return 1.0

    @property
    def _bytes(self) -> tuple[float, float, float]:
        """Return the bytes of an element of the first matrix, the second and the result."""
        size = lookup(self.dtype).bytes_per_element
        return size, lookup(self.weight_dtype).bytes_per_element, max(size, 2.0)

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase with one row."""
        del parallel
        size, second, result = self._bytes
        builder = OpTableBuilder()
        with builder.block("gemm") as block:
            block.add(
                "gemm",
                "gemm",
                dtype=self.dtype,
                labels=("dense", f"weight-{self.weight_dtype}"),
                m=self.m,
                n=self.n,
                k=self.k,
                groups=self.groups,
                weight=self.n * self.k * self.groups * second,
                in_bytes=self.m * self.k * self.groups * size,
                out_bytes=self.m * self.n * self.groups * result,
            )
        builder.order.append(0)
        return (Phase("gemm", builder.build()),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of the weights and of both activations."""
        del parallel
        size, second, result = self._bytes
        return {
            "weight": self.n * self.k * self.groups * second,
            "activation": self.m * (self.n * result + self.k * size) * self.groups,
        }
