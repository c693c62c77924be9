"""Rows of one block: the bookkeeping that all operators share, so that each names only its sizes.

A `Rows` knows the tokens, the element sizes and the split of one block of one device. Operators in
attention_ops.py, mamba_ops.py and ffn_ops.py call it; none of them touches the OpTable itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opbyte.core.dtypes import lookup
from opbyte.core.errors import WorkloadError
from opbyte.core.ops import BlockBuilder, Number
from opbyte.core.parallel import Parallel
from opbyte.workloads.model import Model, TensorClass
from opbyte.workloads.numeric import share
from opbyte.workloads.precision import TENSOR_CLASSES
from opbyte.workloads.routing import Routing
from opbyte.workloads.spans import Segment

#: Floating-point operations of vector rows, per element of the stated kind. Exponentials, roots
#: and divisions count as one operation each, as a special function unit issues them.
VECTOR_FLOPS = {
    "norm": 4.0,  # square, accumulate, times 1/rms, times gain; per element
    "rotary": 3.0,  # two products and a sum; per rotated element
    "softmax": 5.0,  # scale, running maximum, exp(x - max), sum, division; per score
    "gated_activation": 5.0,  # x * sigmoid(x) is 4 (negate, exp, add, divide), times the up half
    "activation": 8.0,  # GELU by tanh: cubic polynomial 5, tanh 1, half (1 + t) x 2; per element
    "gate": 5.0,  # sigmoid 4 and a product; per element
    "add": 1.0,  # residual, position; per element
    "router": 6.0,  # softmax 5 and one comparison of the selection; per expert and token
    "combine": 2.0,  # product with the routing weight and sum; per element and expert visited
    "index": 3.0,  # rectify, times the head's weight, sum over heads; per head and pair
    "select": 1.0,  # one comparison; per pair
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Element sizes and arithmetic of a model, looked up once per lowering.

    Attributes:
        stored: Bytes of one weight of each tensor class.
        compute: Arithmetic dtype of each class's matrices: the activation's type where weights
            are unpacked first, the operands' where both are quantised (`Precision.compute`).
        activation: Bytes of one activation.
        kv: Bytes of one cached element.
        state: Bytes of one element of recurrent state.
        kv_compute: Arithmetic dtype of score and context rows.
        formats: Label of each tensor class's stored format, such as `weight-t1.67`: units that
            work on packed weights, and mappings, can tell them apart.
        kv_format: Label of the cache's stored format, such as `kv-fp8`.
    """

    stored: dict[TensorClass, float]
    compute: dict[TensorClass, str]
    activation: float
    kv: float
    state: float
    kv_compute: str
    formats: dict[TensorClass, str]
    kv_format: str

    @classmethod
    def of(cls, model: Model) -> Sizes:
        """Return the sizes of a model's precision."""
        p = model.precision
        return cls(
            {name: p.weight_bytes(name, 1.0) for name in TENSOR_CLASSES},
            {name: p.compute(name) for name in TENSOR_CLASSES},
            lookup(p.activation).bytes_per_element,
            lookup(p.kv).bytes_per_element,
            lookup(p.state_dtype).bytes_per_element,
            kv_compute(p.kv, p.activation, p.operand),
            {name: f"weight-{p.dtype(name)}" for name in TENSOR_CLASSES},
            f"kv-{p.kv}",
        )


def kv_compute(kv: str, activation: str, operand: str | None) -> str:
    """Return the arithmetic dtype of attention over a cache.

    A cache narrower than the activations is unpacked into the activations' type, unless the
    model's matrices multiply in the cache's own type (FP8 operands and FP8 cache).
    """
    return kv if operand is not None and kv == operand else activation


@dataclass(slots=True)
class Rows:
    """Adds rows to one block.

    Attributes:
        tokens: Tokens that the block's matrices see on one device.
        segments: What makes up those tokens.
        words: Labels of every row: phase word and region word.
    """

    block: BlockBuilder
    model: Model
    sizes: Sizes
    parallel: Parallel
    routing: Routing
    segments: tuple[Segment, ...]
    tokens: Number
    words: tuple[str, ...]

    def region(self, name: str) -> None:
        """Set the region word, `mixer` or `ffn`, of the rows that follow."""
        self.words = (self.words[0], name)

    def attention_words(self, segment: Segment) -> tuple[str, ...]:
        """Return the labels of rows that look at a segment's cache.

        `attention_mixed`: one call serves prefill and decode segments. `spread`: lengths differ.
        """
        phase, region = segment.phase, self.words[1:]
        mixed = ("attention_mixed",) if self.words[0] == "mixed" else ()
        spread = ("spread",) if segment.spread else ()
        words = (phase, *region, "attention", f"attention_{phase}", *mixed, *spread)
        return (*words, self.sizes.kv_format)

    def heads(self, count: int, what: str) -> int:
        """Return the heads of one device, rounded up.

        Raises:
            WorkloadError: If there are fewer heads than devices.
        """
        tp = self.parallel.tp
        if count < tp:
            raise WorkloadError(
                f"{self.model.name}: tp={tp} does not divide {count} {what}: "
                f"a device would have none. Use tp <= {count}"
            )
        return share(count, tp)

    def gemm(
        self,
        name: str,
        inputs: Sequence[int],
        n: float,
        k: float,
        cls: TensorClass,
        *,
        vectors: float = 0.0,
        tokens: Number | None = None,
        in_bytes: Number = 0.0,
        side_bytes: Number = 0.0,
        parts: tuple[float, ...] = (),
    ) -> int:
        """Add a product of the block's tokens with a (k, n) matrix of a tensor class.

        `n` and `k` are this device's; `vectors` are the bias elements read beside the matrix;
        `parts` the outputs of each matrix where several are one product.
        """
        m = self.tokens if tokens is None else tokens
        sizes = self.sizes
        weight = n * k * sizes.stored[cls] + vectors * sizes.stored["other"]
        row = self.block.add(
            name,
            "gemm",
            dtype=sizes.compute[cls],
            inputs=inputs,
            labels=(*self.words, "dense", sizes.formats[cls]),
            m=m,
            n=n,
            k=k,
            weight=weight,
            in_bytes=in_bytes,
            side_bytes=side_bytes,
            out_bytes=m * n * sizes.activation,
        )
        if parts:
            self.block.parts(row, parts)
        return row

    def vector(
        self,
        name: str,
        kind: str,
        inputs: Sequence[int],
        flops: Number,
        out_elements: Number,
        *,
        phase: str = "",
        vectors: float = 0.0,
        **numbers: Number,
    ) -> int:
        """Add a row that is no matrix product.

        It writes `out_elements` activations over all tokens and reads `vectors` learned elements
        (norm gains, taps). `phase` is the phase word of a row that belongs to one segment.
        """
        sizes = self.sizes
        return self.block.add(
            name,
            kind,
            dtype=self.model.precision.activation,
            inputs=inputs,
            labels=(phase or self.words[0], *self.words[1:], "vector"),
            flops=flops,
            weight=vectors * sizes.stored["other"],
            out_bytes=out_elements * sizes.activation,
            **numbers,
        )

    def norm(
        self,
        name: str,
        inputs: Sequence[int],
        *,
        tokens: Number | None = None,
        width: int = 0,
        bias: bool = False,
        in_bytes: Number = 0.0,
    ) -> int:
        """Add a norm over `width` elements (the hidden size) of each token."""
        width = width or self.model.hidden
        tokens = self.tokens if tokens is None else tokens
        elements = tokens * width
        return self.vector(
            name,
            "norm",
            inputs,
            VECTOR_FLOPS["norm"] * elements,
            elements,
            vectors=width * (2 if bias else 1),
            in_bytes=in_bytes,
            groups=tokens,
        )

    def add(self, name: str, inputs: Sequence[int], *, in_bytes: Number = 0.0) -> int:
        """Add a residual sum over the hidden size."""
        elements = self.tokens * self.model.hidden
        return self.vector(name, "elementwise", inputs, elements, elements, in_bytes=in_bytes)

    def hidden_bytes(self, tokens: Number | None = None) -> Number:
        """Return the bytes of one hidden vector for each token."""
        tokens = self.tokens if tokens is None else tokens
        return tokens * (self.model.hidden * self.sizes.activation)

    def collective(
        self,
        name: str,
        kind: str,
        inputs: Sequence[int],
        payload: Number,
        participants: int,
        words: tuple[str, ...] = (),
    ) -> int:
        """Add a collective whose output is as large as what it was given."""
        return self.block.add(
            name,
            kind,
            dtype=self.model.precision.activation,
            inputs=inputs,
            labels=(*self.words, "collective", *words),
            flops=0.0,
            payload=payload,
            participants=participants,
            out_bytes=payload,
        )

    def all_reduce(self, name: str, source: int) -> int:
        """Add the sum over tensor-parallel devices, if there are several."""
        if self.parallel.tp == 1:
            return source
        return self.collective(name, "all_reduce", (source,), self.hidden_bytes(), self.parallel.tp)
