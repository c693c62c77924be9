"""A bare attention call as a work: cache write, score, softmax and context on one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Number, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.attention_ops import attention_core
from opbyte.workloads.rows import kv_compute
from opbyte.workloads.spans import Segment
from opbyte.workloads.work import WORKS, Work


@dataclass(frozen=True)
class AttentionCall(Work):
    """Attention of `q_tokens` new tokens of each sequence to its `kv_tokens` cached ones.

    The call begins with the write of the new tokens' keys and values, as engines run it; they are
    among the `kv_tokens`.

    Attributes:
        batch: Sequences.
        q_tokens: New tokens of each.
        kv_tokens: Tokens of each that the cache holds, the new ones included.
        heads: Query heads on this device.
        kv_heads: Heads of keys and values on this device.
        head_dim: Width of a head.
        dtype: Number format of queries and result.
        kv_dtype: Number format of the cache; that of the queries where it is empty.
        window: Tokens that a query sees at most, 0 for all.
        causal: Queries see what precedes them alone, and keys and values are cached. Otherwise, as
            in encoders, they see all tokens, and nothing is written.
    """

    phase: ClassVar[str]
    vector_fields: ClassVar[tuple[str, ...]] = (
        "batch",
        "q_tokens",
        "kv_tokens",
        "heads",
        "kv_heads",
        "head_dim",
    )
    least: ClassVar[Mapping[str, float]] = {"window": 0.0}
    alone: ClassVar[bool] = True

    batch: Number
    kv_tokens: Number
    heads: Number
    kv_heads: Number
    q_tokens: Number = 1.0
    head_dim: Number = 128.0
    dtype: str = "bf16"
    kv_dtype: str = ""
    window: int = 0
    causal: bool = True

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If a size is no whole number of at least one, there are more new tokens
                than tokens, or KV heads do not divide the heads.
            ConfigError: If a dtype is unknown.
        """
        super().__post_init__()
        object.__setattr__(self, "kv_dtype", self.kv_dtype or self.dtype)
        if np.any(np.greater(self.q_tokens, self.kv_tokens)):
            raise WorkloadError(
                f"{self.kind}: kv_tokens count the new tokens too, but q_tokens is larger"
            )
        if np.any(np.mod(self.heads, self.kv_heads)):
            raise WorkloadError(f"{self.kind}: heads must be a multiple of kv_heads")
        if self.window and not self.causal:
            raise WorkloadError(f"{self.kind}: a window is of causal attention. leave one out")

    @property
    def tokens(self) -> Number:
        """Return the new tokens."""
        return self.batch * self.q_tokens

    @property
    def sequences(self) -> Number:
        """Return the sequences."""
        return self.batch

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase: the write of new keys and values, if any are cached, and the call."""
        del parallel
        size = lookup(self.dtype).bytes_per_element
        segment = Segment("prefill", self.batch, self.q_tokens, self.kv_tokens - self.q_tokens)
        words = (self.phase, "attention", f"attention_{self.phase}", f"kv-{self.kv_dtype}")
        builder = OpTableBuilder()
        cached = lookup(self.kv_dtype).bytes_per_element
        new = self.batch * self.q_tokens * (2.0 * self.kv_heads * self.head_dim)
        pairs, reads = segment.pairs(self.window), segment.reads(self.window)
        if not self.causal:
            pairs, reads = self.q_tokens * self.kv_tokens, self.kv_tokens
        with builder.block("attention") as block:
            sources: tuple[int, ...] = ()
            if self.causal:
                append = block.add(
                    "kv_append", "kv_append", dtype=self.dtype, labels=(self.phase, "vector"),
                    flops=0.0, in_bytes=new * size, kv_write=new * cached,
                    groups=self.batch * self.q_tokens,
                )  # fmt: skip
                sources = (append,)
            attention_core(
                block, "", self.batch, self.q_tokens, pairs, reads, sources,
                words=(*words, "window") if self.window else words,
                dtype=kv_compute(self.kv_dtype, self.dtype, self.dtype), activation=self.dtype,
                act_bytes=size, kv_bytes=cached,
                heads=self.heads, kv_heads=self.kv_heads,
                head_dim=self.head_dim, value_dim=self.head_dim,
                in_bytes=self.batch * self.q_tokens * self.heads * self.head_dim * size,
            )  # fmt: skip
        builder.order.append(0)
        return (Phase("attention", builder.build()),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of the cache, and of queries and result."""
        del parallel
        cached = 2.0 * self.batch * self.kv_tokens * self.kv_heads * self.head_dim
        vectors = 2.0 * self.batch * self.q_tokens * self.heads * self.head_dim
        return {
            "kv": cached * lookup(self.kv_dtype).bytes_per_element,
            "activation": vectors * lookup(self.dtype).bytes_per_element,
        }


@WORKS.register("attention_prefill")
@dataclass(frozen=True)
class AttentionPrefill(AttentionCall):
    """Attention of prompts, or of pieces of prompts, to what precedes them."""

    kind: ClassVar[str] = "attention_prefill"
    phase: ClassVar[str] = "prefill"

    q_tokens: Number = field(kw_only=True)


@WORKS.register("attention_decode")
@dataclass(frozen=True)
class AttentionDecode(AttentionCall):
    """Attention of one new token (or of a few drafted ones) of each sequence to its cache."""

    kind: ClassVar[str] = "attention_decode"
    phase: ClassVar[str] = "decode"
