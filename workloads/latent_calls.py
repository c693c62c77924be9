"""A bare latent attention (MLA) in decode as a work: what runs between its projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from opbyte.core.dtypes import lookup
from opbyte.core.ops import Number, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.latent_ops import absorb
from opbyte.workloads.mixers import LatentAttention
from opbyte.workloads.model import Layer, Model
from opbyte.workloads.precision import Precision
from opbyte.workloads.routing import Routing
from opbyte.workloads.rows import Rows, Sizes
from opbyte.workloads.spans import Segment
from opbyte.workloads.work import WORKS, Work


@WORKS.register("mla_decode")
@dataclass(frozen=True)
class MlaDecode(Work):
    """One new token of each sequence attends to its latent cache.

    The write to the cache, the product of each head that folds the key matrix into its query,
    score, softmax and context over the cache, and the product of each head that makes its value.

    Attributes:
        batch: Sequences.
        kv_tokens: Tokens of each that the cache holds, the new one included.
        heads: Query heads on this device.
        dtype: Number format of queries, weights and result.
        kv_dtype: Number format of the cache; `dtype` where it is empty.
        latent: Width of the cached latent vector.
        rope: Width of the rotated key beside it.
        nope: Width of a head's query without position.
        value: Width of a head's value.
    """

    kind: ClassVar[str] = "mla_decode"
    vector_fields: ClassVar[tuple[str, ...]] = ("batch", "kv_tokens", "heads")
    least: ClassVar[Mapping[str, float]] = {"rope": 0.0}
    alone: ClassVar[bool] = True

    batch: Number
    kv_tokens: Number
    heads: Number
    dtype: str = "bf16"
    kv_dtype: str = ""
    latent: int = 512
    rope: int = 64
    nope: int = 128
    value: int = 128

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If a size is no whole number of at least one.
            ConfigError: If a dtype is unknown.
        """
        super().__post_init__()
        object.__setattr__(self, "kv_dtype", self.kv_dtype or self.dtype)

    @property
    def tokens(self) -> Number:
        """Return the new tokens."""
        return self.batch

    @property
    def sequences(self) -> Number:
        """Return the sequences."""
        return self.batch

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase."""
        mixer = LatentAttention(1, 0, self.latent, self.nope, self.rope, self.value)
        precision = Precision(weight=self.dtype, activation=self.dtype, kv=self.kv_dtype)
        layers = (Layer(mixer, None, norms=1),)
        model = Model("mla", self.nope, 1, layers, (0,), precision=precision)
        sizes = Sizes.of(model)
        segment = Segment("decode", self.batch, 1.0, self.kv_tokens - 1.0)
        builder = OpTableBuilder()
        with builder.block("latent") as block:
            rows = Rows(
                block, model, sizes, parallel, Routing(), (segment,), self.batch,
                ("decode", "mixer"),
            )  # fmt: skip
            cached = self.latent + self.rope
            rows.vector(
                "kv_append", "kv_append", (), 0.0, 0.0, kv_write=self.batch * (cached * sizes.kv),
                groups=self.batch,
                in_bytes=self.batch * (cached * sizes.activation),
            )  # fmt: skip
            query = self.batch * self.heads * ((self.nope + self.rope) * sizes.activation)
            absorb(rows, mixer, segment, "", (), self.heads, 0, query)
        builder.order.append(0)
        return (Phase("latent", builder.build()),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of the cache, of the two matrices of each head, and of the result."""
        del parallel
        size = lookup(self.dtype).bytes_per_element
        cached = self.batch * self.kv_tokens * (self.latent + self.rope)
        return {
            "kv": cached * lookup(self.kv_dtype).bytes_per_element,
            "weight": self.heads * (self.latent * (self.nope + self.value) * size),
            "activation": self.batch * self.heads * (self.value * size),
        }
