"""Softmax attention as rows: projections, rotation, cache, score, softmax, context, output.

Useful FLOPs of score and context count exactly the query-key pairs that the mask lets through;
`m, n, k, groups` describe the rectangle that a dense unit would compute. Cached keys and values
are read once for each sequence and KV head, whatever the number of query heads that share them.
"""

from __future__ import annotations

from collections.abc import Iterator

from opbyte.core.ops import BlockBuilder, Number
from opbyte.workloads.mixers import Attention
from opbyte.workloads.numeric import share
from opbyte.workloads.rows import VECTOR_FLOPS, Rows
from opbyte.workloads.spans import Segment


def named(segments: tuple[Segment, ...]) -> Iterator[tuple[Segment, str]]:
    """Yield each segment and the suffix of its rows' names: none where there is but one."""
    single = len(segments) == 1
    for i, segment in enumerate(segments):
        yield segment, "" if single else f".{segment.phase}{i}"


def attention(rows: Rows, a: Attention, x: int) -> int:
    """Add the rows of one self-attention; return the output projection's row.

    Under tensor parallelism the heads are split; KV heads fewer than devices are replicated.

    Raises:
        WorkloadError: If there are fewer heads than devices.
    """
    if a.cross:
        return cross_attention(rows, a, x)
    hidden = rows.model.hidden
    heads = rows.heads(a.heads, "attention heads")
    kv = share(a.kv_heads, rows.parallel.tp)
    key = 0 if a.reuses_cache else kv * a.head_dim
    value = 0 if a.reuses_cache or a.shared_key_value else kv * a.value_dim
    query = heads * a.head_dim
    width = query * (2 if a.output_gate else 1) + key + value
    last = rows.gemm(
        "qkv", (x,), width, hidden, "attention", vectors=width * a.qkv_bias,
        parts=tuple(float(w) for w in (width - key - value, key, value) if w),
    )  # fmt: skip
    projected = last
    turned = rows.tokens * (query + key)
    if a.qk_norm:
        last = rows.vector(
            "qk_norm", "norm", (last,), VECTOR_FLOPS["norm"] * turned, turned, vectors=a.qk_norm,
            groups=turned / a.head_dim,
        )  # fmt: skip
    if a.rotary:
        last = rows.vector("rotary", "rotary", (last,), VECTOR_FLOPS["rotary"] * turned, turned)
    sources: tuple[int, ...] = (last,)
    if a.causal and not a.reuses_cache:
        written = rows.tokens * (kv * (a.head_dim + a.value_dim) * rows.sizes.kv)
        append = rows.vector(
            "kv_append", "kv_append", (last,), 0.0, 0.0, kv_write=written, groups=rows.tokens
        )
        sources = (last, append)
    contexts = [
        _attend(rows, a, segment, suffix, sources, (projected,), heads, kv)
        for segment, suffix in named(rows.segments)
    ]
    return _output(rows, a, contexts, projected, heads)


def _attend(
    rows: Rows,
    a: Attention,
    segment: Segment,
    suffix: str,
    sources: tuple[int, ...],
    values: tuple[int, ...],
    heads: int,
    kv: int,
) -> int:
    """Add score, softmax and context of one segment; return the context's row.

    Without a cache (encoders) keys and values are activations: context reads `values` too.
    """
    if a.causal:
        pairs, reads = segment.pairs(a.window, a.chunk), segment.reads(a.window, a.chunk)
        return attend(rows, segment, suffix, sources, (), pairs, reads, heads, kv, a)
    seen = segment.past + segment.new
    pairs = segment.new * seen
    return attend(rows, segment, suffix, sources, values, pairs, seen, heads, kv, a, cached=False)


def attend(
    rows: Rows,
    segment: Segment,
    suffix: str,
    sources: tuple[int, ...],
    values: tuple[int, ...],
    pairs: Number,
    reads: Number,
    heads: int,
    kv: int,
    a: Attention,
    *,
    cached: bool = True,
) -> int:
    """Add score, softmax and context of one segment; return the context's row.

    Each of `heads` query heads of each sequence scores `pairs` query-key pairs; each of `kv` heads
    reads `reads` tokens, from the cache or (not `cached`) from the activations of `values`.
    """
    sizes = rows.sizes
    first = not suffix or segment is rows.segments[0]
    return attention_core(
        rows.block, suffix, segment.sequences, segment.new, pairs, reads, sources, values,
        words=(*rows.attention_words(segment), *(("window",) if a.window else ())),
        dtype=sizes.kv_compute,
        activation=rows.model.precision.activation, act_bytes=sizes.activation,
        kv_bytes=sizes.kv if cached else 0.0, heads=heads, kv_heads=kv,
        head_dim=a.head_dim, value_dim=a.value_dim,
        sink_bytes=heads * a.sinks * sizes.stored["other"] if first else 0.0,
    )  # fmt: skip


def attention_core(
    block: BlockBuilder,
    suffix: str,
    sequences: Number,
    new: Number,
    pairs: Number,
    reads: Number,
    sources: tuple[int, ...],
    values: tuple[int, ...] = (),
    *,
    words: tuple[str, ...],
    dtype: str,
    activation: str,
    act_bytes: float,
    kv_bytes: float,
    heads: Number,
    kv_heads: Number,
    head_dim: Number,
    value_dim: Number,
    sink_bytes: float = 0.0,
    in_bytes: Number = 0.0,
) -> int:
    """Add score, softmax and context of equal sequences; return the context's row.

    Args:
        new: Query tokens of each sequence.
        pairs: Query-key pairs of each query head of each sequence.
        reads: Tokens that each KV head of each sequence reads.
        dtype: Arithmetic dtype of the products; `activation` that of the softmax.
        act_bytes, kv_bytes: Bytes of an activation and of a cached element, 0 without a cache.
    """
    scores = sequences * heads * pairs
    groups, shared = sequences * kv_heads, heads / kv_heads
    m = new * shared
    tokens = groups * reads * kv_bytes
    score = block.add(
        f"score{suffix}", "score", dtype=dtype, inputs=sources, labels=words,
        m=m, n=reads, k=head_dim, groups=groups, heads=shared, sequences=sequences,
        flops=2.0 * head_dim * scores,
        kv_read=tokens * head_dim, out_bytes=scores * act_bytes, in_bytes=in_bytes,
    )  # fmt: skip
    softmax = block.add(
        f"softmax{suffix}", "softmax", dtype=activation, inputs=(score,),
        labels=(*words, "vector"), flops=VECTOR_FLOPS["softmax"] * scores,
        groups=groups * m, out_bytes=scores * act_bytes, weight=sink_bytes,
    )  # fmt: skip
    return block.add(
        f"context{suffix}", "context", dtype=dtype, inputs=(softmax, *values), labels=words,
        m=m, n=value_dim, k=reads, groups=groups, heads=shared, sequences=sequences,
        flops=2.0 * value_dim * scores,
        kv_read=tokens * value_dim, out_bytes=sequences * new * heads * value_dim * act_bytes,
    )  # fmt: skip


def _output(rows: Rows, a: Attention, contexts: list[int], projected: int, heads: int) -> int:
    """Add gate, norm and output projection; return the latter."""
    width = heads * a.value_dim
    inputs = tuple(contexts)
    if a.output_gate:
        elements = rows.tokens * width
        gate = VECTOR_FLOPS["gate"] * elements
        inputs = (rows.vector("output_gate", "activation", (*inputs, projected), gate, elements),)
    if a.sub_norm:
        inputs = (rows.norm("sub_norm", inputs, width=width),)
    hidden = rows.model.hidden
    return rows.gemm("out", inputs, hidden, width, "attention", vectors=hidden * a.out_bias)


def cross_attention(rows: Rows, a: Attention, x: int) -> int:
    """Add the rows of an attention to the encoder's output; return the output projection's row.

    Keys and values of the encoder's tokens are projected and cached in the iteration that ran
    the encoder, and only read afterwards.
    """
    hidden, sizes = rows.model.hidden, rows.sizes
    heads = rows.heads(a.heads, "attention heads")
    kv = share(a.kv_heads, rows.parallel.tp)
    query = heads * a.head_dim * (2 if a.output_gate else 1)
    wide = 0 if a.reuses_cache else kv * (a.head_dim + (0 if a.shared_key_value else a.value_dim))
    q = rows.gemm("cross_q", (x,), query, hidden, "attention", vectors=query * a.qkv_bias)
    last = q
    if a.qk_norm:
        turned = rows.tokens * (heads * a.head_dim)
        last = rows.vector(
            "cross_qk_norm", "norm", (q,), VECTOR_FLOPS["norm"] * turned, turned,
            vectors=a.qk_norm, groups=turned / a.head_dim,
        )  # fmt: skip
    contexts = []
    for segment, suffix in named(rows.segments):
        sources: tuple[int, ...] = (last,)
        if segment.fills_source and wide:
            encoded = segment.sequences * segment.source
            project = rows.gemm(
                f"cross_kv{suffix}", (), wide, hidden, "attention", vectors=wide * a.qkv_bias,
                tokens=encoded, side_bytes=rows.hidden_bytes(encoded),
            )  # fmt: skip
            written = encoded * (kv * (a.head_dim + a.value_dim) * sizes.kv)
            append = rows.vector(
                f"cross_append{suffix}", "kv_append", (project,), 0.0, 0.0, kv_write=written,
                groups=encoded,
            )  # fmt: skip
            sources = (last, append)
        pairs = segment.new * segment.source
        contexts.append(
            attend(
                rows, segment, f".cross{suffix}", sources, (), pairs, segment.source, heads, kv, a
            )
        )
    width = heads * a.value_dim
    return rows.gemm(
        "cross_out", tuple(contexts), hidden, width, "attention", vectors=hidden * a.out_bias
    )
