"""FFT works of the SN40L paper: the example of its Table I, and long convolutions by FFT.

Table I (arXiv 2405.07518, section III-A) gives operations per byte of Gemm0 - Mul - Transpose -
Gemm1 at three levels of fusion: 39.5, 102.6 and 410.4. The shapes stand in a figure that has no
text, so the default shapes here are *inferred*, not published:

- Without fusion 6 I + C elements move, with the first three operators fused 2 I + C, with all
  fused C; I is the intermediate tensor and C what enters and leaves. Hence for any shapes
  (1 / 39.5 - 1 / 102.6) = 2 (1 / 102.6 - 1 / 410.4), but the left side is 2.13 times the
  bracket: no shapes give all three numbers.
- The first two are met exactly by C = I / 2 and 513 operations per element of I, which
  (1024, 128) x (128, 1024), a product with an operand too small to matter, and, transposed,
  (1024, 1024) x (1024, 128) have: 513 / 13 = 39.5 and 513 / 5 = 102.6.
- The third then is 513. The published 410.4 = 513 / 1.25 follows if one more tensor of
  1024 x 128 elements counts at this level only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from opbyte.core.dtypes import lookup
from opbyte.core.errors import WorkloadError
from opbyte.core.ops import BlockBuilder, Number, OpTable, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.numeric import ceil_div, is_array
from opbyte.workloads.work import WORKS, Work, microbatch

#: Rows of the example that are one kernel, for each row of Table I.
TABLE_I: dict[str, tuple[tuple[str, ...], ...]] = {
    "none": (("gemm0",), ("mul",), ("transpose",), ("gemm1",)),
    "partial": (("gemm0", "mul", "transpose"), ("gemm1",)),
    "full": (("gemm0", "mul", "transpose", "gemm1"),),
}


@WORKS.register("monarch-example")
@dataclass(frozen=True)
class MonarchExample(Work):
    """Gemm0, Mul, Transpose and Gemm1 of Figure 3 of the SN40L paper; shapes are inferred.

    X (rows, inner) times W0 (inner, columns) gives the intermediate (rows, columns); it is
    multiplied element by element, transposed, and multiplied with W1 (rows, outer).

    Attributes:
        rows: Rows of the intermediate.
        columns: Columns of the intermediate.
        inner: Columns of the input.
        outer: Columns of the output.
        operand: Elements of Mul's second operand.
        dtype: Number format of all tensors.
    """

    kind: ClassVar[str] = "monarch-example"
    vector_fields: ClassVar[tuple[str, ...]] = ("rows", "columns", "inner", "outer", "operand")
    alone: ClassVar[bool] = True
    least: ClassVar[dict[str, float]] = {"operand": 0.0}

    rows: Number = 1024.0
    columns: Number = 1024.0
    inner: Number = 128.0
    outer: Number = 128.0
    operand: Number = 0.0
    dtype: str = "bf16"

    @property
    def tokens(self) -> Number:
        """Return the rows of the input."""
        return self.rows

    @property
    def sequences(self) -> Number:
        """Return 1."""
        return 1.0

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase of four rows, on one device."""
        del parallel
        size = lookup(self.dtype).bytes_per_element
        middle = self.rows * self.columns
        builder = OpTableBuilder()
        with builder.block("monarch") as block:
            gemm0 = block.add(
                "gemm0", "gemm", dtype=self.dtype, labels=("dense",),
                m=self.rows, n=self.columns, k=self.inner,
                weight=self.inner * self.columns * size,
                in_bytes=self.rows * self.inner * size, out_bytes=middle * size,
            )  # fmt: skip
            mul = block.add(
                "mul", "elementwise", dtype=self.dtype, labels=("vector",), inputs=(gemm0,),
                flops=middle, weight=self.operand * size, out_bytes=middle * size,
            )  # fmt: skip
            transpose = block.add(
                "transpose", "elementwise", dtype=self.dtype, labels=("vector",), inputs=(mul,),
                flops=0.0, out_bytes=middle * size,
            )  # fmt: skip
            block.add(
                "gemm1", "gemm", dtype=self.dtype, labels=("dense",), inputs=(transpose,),
                m=self.columns, n=self.outer, k=self.rows, weight=self.rows * self.outer * size,
                out_bytes=self.columns * self.outer * size,
            )  # fmt: skip
        builder.order.append(0)
        return (Phase("monarch", builder.build()),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of both matrices and Mul's operand, and of two intermediates."""
        del parallel
        size = lookup(self.dtype).bytes_per_element
        weights = self.inner * self.columns + self.rows * self.outer + self.operand
        return {"weight": weights * size, "activation": 2.0 * self.rows * self.columns * size}


def intensity(table: OpTable, kernels: Sequence[Sequence[str]]) -> float:
    """Return operations per byte when each group of rows is one kernel.

    Inside a kernel nothing moves that only rows of it read; weights and inputs of the block move
    once each, and so does what a kernel hands to another: one write, one read.

    Args:
        table: A table of one block and one point.
        kernels: Names of the rows of each kernel.

    Raises:
        WorkloadError: If the kernels do not name every row exactly once.
    """
    home = {name: i for i, names in enumerate(kernels) for name in names}
    if sorted(home) != sorted(table.names) or sum(map(len, kernels)) != len(table):
        raise WorkloadError("kernels must name every row of the table exactly once")
    where = [home[name] for name in table.names]
    moved = float((table.total("weight") + table.total("in_bytes"))[0])
    outputs = table["out_bytes"][:, 0]
    readers: dict[int, set[int]] = {row: set() for row in range(len(table))}
    for source, target in table.edges.tolist():
        readers[source].add(where[target])
    for row, kernels_reading in readers.items():
        outside = kernels_reading - {where[row]}
        leaves = bool(outside) or not kernels_reading
        moved += outputs[row] * (leaves + len(outside))
    return float(table.total("flops")[0]) / moved


@WORKS.register("fft-conv")
@dataclass(frozen=True)
class FlashFftConv(Work):
    """Long convolutions by FFT as matrix products: FlashFFTConv (arXiv 2311.05908).

    An FFT of `length` points is `order` steps of products with small DFT matrices of
    length^(1/order) points, with twiddle factors and transpositions between them. A convolution
    is a transform, a product with the transformed filter, and an inverse transform. All numbers
    are complex: a product counts 8 operations per multiply-accumulate in matrices and 6 alone.
    Channels are split over tensor-parallel devices, batches over data-parallel ones.

    Attributes:
        length: Points of the FFT.
        batch: Sequences.
        channels: Channels, each with a filter of its own.
        order: Steps; 2^20 points in 4 steps are products of 32 x 32 matrices (SN40L paper,
            section III-A).
        dtype: Number format of real and imaginary parts.
    """

    kind: ClassVar[str] = "fft-conv"
    vector_fields: ClassVar[tuple[str, ...]] = ("batch", "channels")

    length: int = 2**20
    batch: Number = 1.0
    channels: Number = 64.0
    order: int = 4
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If the length is no power of a whole number by the order.
        """
        super().__post_init__()
        if self.order < 1 or self.length < 1 or self.points**self.order != self.length:
            raise WorkloadError(
                f"fft-conv: length must be a whole number to the power of order, got "
                f"length={self.length}, order={self.order}. 2^20 is 32^4"
            )

    @property
    def points(self) -> int:
        """Return the points of one step's DFT."""
        return round(math.pow(self.length, 1.0 / self.order))

    @property
    def tokens(self) -> Number:
        """Return the positions of all sequences."""
        return self.batch * self.length

    @property
    def sequences(self) -> Number:
        """Return the sequences."""
        return self.batch

    def _local(self, parallel: Parallel) -> tuple[Number, Number]:
        """Return sequences and channels of one device."""
        fewest = float(self.channels.min()) if is_array(self.channels) else self.channels
        if fewest < parallel.tp:
            raise WorkloadError(
                f"fft-conv: tp={parallel.tp} for {fewest:g} channels: a device would have none"
            )
        return microbatch(self.batch, parallel), ceil_div(self.channels, parallel.tp)

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase: transform, product with the filter, inverse transform."""
        batch, channels = self._local(parallel)
        size = lookup(self.dtype).bytes_per_element
        elements = batch * channels * self.length
        builder = OpTableBuilder()
        with builder.block("fft_conv") as block:
            last = self._transform(block, "fft", (), batch * channels, elements * size)
            last = self._vector(
                block, "filter", last, elements, 6.0,
                weight=2.0 * channels * self.length * size, groups=channels,
            )  # fmt: skip
            last = self._transform(block, "ifft", last, batch * channels, 0.0)
            block.add(
                "real", "elementwise", dtype=self.dtype, inputs=last, labels=("vector",),
                flops=0.0, out_bytes=elements * size,
            )  # fmt: skip
        builder.order.append(0)
        return (Phase("fft_conv", builder.build()),)

    def _transform(
        self,
        block: BlockBuilder,
        word: str,
        last: tuple[int, ...],
        signals: Number,
        in_bytes: Number,
    ) -> tuple[int, ...]:
        """Add the steps of one transform of `signals` signals; return its last row."""
        size = lookup(self.dtype).bytes_per_element
        elements = signals * self.length
        for step in range(self.order):
            product = block.add(
                f"{word}_gemm{step}", "gemm", dtype=self.dtype, inputs=last, labels=("dense", word),
                m=self.length / self.points, n=self.points, k=self.points, groups=4.0 * signals,
                weight=2.0 * self.points**2 * size, in_bytes=0.0 if step else in_bytes,
                out_bytes=elements * 2.0 * size,
            )  # fmt: skip
            last = (product,)
            if step + 1 < self.order:
                factors = 2.0 * self.length * size
                last = self._vector(
                    block, f"{word}_twiddle{step}", last, elements, 6.0, weight=factors
                )
                last = self._vector(block, f"{word}_transpose{step}", last, elements, 0.0)
        return last

    def _vector(
        self,
        block: BlockBuilder,
        name: str,
        inputs: tuple[int, ...],
        elements: Number,
        flops: float,
        weight: Number = 0.0,
        groups: Number = 1.0,
    ) -> tuple[int, ...]:
        """Add an operation on each complex element; return its row."""
        size = lookup(self.dtype).bytes_per_element
        row = block.add(
            name, "elementwise", dtype=self.dtype, inputs=inputs, labels=("vector",),
            flops=flops * elements, weight=weight, groups=groups,
            out_bytes=elements * 2.0 * size,
        )  # fmt: skip
        return (row,)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of filters and twiddle factors, and of two complex intermediates."""
        (phase,) = self.lowered(parallel)
        batch, channels = self._local(parallel)
        size = lookup(self.dtype).bytes_per_element
        total = phase.table.total("weight")
        weight: Number = total if is_array(self.channels) else float(total[0])
        return {"weight": weight, "activation": 4.0 * batch * channels * self.length * size}
