"""Multi-head latent attention as rows, with or without a sparse index.

Decode runs the absorbed form: the key up-projection is folded into the query and the value
up-projection into the output, so that all heads score against the cached latent vector itself
(DeepSeek-V2, arXiv 2405.04434, section 2.1.2). The latent is read once for all heads and for score
and context together: its bytes stand in the score row. Prefill runs the expanded form, ordinary
attention over keys and values that are projected up from the latents of past and new tokens. A
sparse index (DeepSeek-V3.2) picks other tokens for each query, so it runs the absorbed form in
both phases, as its authors do.
"""

from __future__ import annotations

from opbyte.core.ops import Number
from opbyte.workloads.attention_ops import named
from opbyte.workloads.mixers import LatentAttention
from opbyte.workloads.rows import VECTOR_FLOPS, Rows
from opbyte.workloads.spans import Segment


def latent_attention(rows: Rows, a: LatentAttention, x: int) -> int:
    """Add the rows of one latent attention; return the output projection.

    Heads are split over devices; the latent cache, the down projections and the indexer are
    replicated, for every head needs them whole.

    Raises:
        WorkloadError: If there are fewer heads than devices.
    """
    hidden = rows.model.hidden
    heads = rows.heads(a.heads, "attention heads")
    compressed, query = _query(rows, a, x, heads)
    down = rows.gemm(
        "kv_down", (x,), a.down_width, hidden, "attention", vectors=a.bias * a.down_width
    )
    latent = rows.norm("kv_norm", (down,), width=a.kv_lora_rank)
    turned = rows.tokens * ((heads + 1) * a.rope_dim)
    flops = VECTOR_FLOPS["rotary"] * turned
    rotary = rows.vector("rotary", "rotary", (query, down), flops, turned)
    width = a.kv_lora_rank + a.rope_dim
    append = rows.vector(
        "kv_append", "kv_append", (latent, rotary), 0.0, 0.0,
        kv_write=rows.tokens * (width * rows.sizes.kv), groups=rows.tokens,
    )  # fmt: skip
    sources: tuple[int, ...] = (query, rotary, append)
    if a.index_topk and a.index_heads:
        indices = _indexer(rows, a, x, compressed)
        sources = (*sources, *indices)
    outs = []
    absorbed = [s for s in named(rows.segments) if a.index_topk or s[0].phase == "decode"]
    expanded = [s for s in named(rows.segments) if not (a.index_topk or s[0].phase == "decode")]
    outs += [
        absorb(rows, a, s, suffix, sources, heads, i) for i, (s, suffix) in enumerate(absorbed)
    ]
    outs += [
        _expanded(rows, a, s, suffix, sources, heads, i + len(absorbed))
        for i, (s, suffix) in enumerate(expanded)
    ]
    return rows.gemm(
        "out", tuple(outs), hidden, heads * a.v_dim, "attention", vectors=a.bias * hidden
    )


def _query(rows: Rows, a: LatentAttention, x: int, heads: int) -> tuple[int, int]:
    """Add the query's projections; return the row the indexer reads and the query's."""
    hidden = rows.model.hidden
    width = heads * (a.nope_dim + a.rope_dim)
    if not a.q_lora_rank:
        query = rows.gemm("q", (x,), width, hidden, "attention")
        return x, query
    bias = a.bias * a.q_lora_rank
    down = rows.gemm("q_down", (x,), a.q_lora_rank, hidden, "attention", vectors=bias)
    normed = rows.norm("q_norm", (down,), width=a.q_lora_rank)
    return normed, rows.gemm("q_up", (normed,), width, a.q_lora_rank, "attention")


def _indexer(rows: Rows, a: LatentAttention, x: int, compressed: int) -> list[int]:
    """Add the lightning indexer; return the selection row of each segment.

    Every query scores all tokens before it with `index_heads` small heads against one cached key
    of `index_dim`, sums the rectified scores by head weights and picks the `index_topk` best.
    """
    hidden, sizes = rows.model.hidden, rows.sizes
    source = a.q_lora_rank or hidden
    query = rows.gemm("index_q", (compressed,), a.index_heads * a.index_dim, source, "attention")
    key = rows.gemm("index_k", (x,), a.index_dim, hidden, "attention")
    norm = rows.norm("index_norm", (key,), width=a.index_dim, bias=True)
    weight = rows.gemm("index_weight", (x,), a.index_heads, hidden, "attention")
    append = rows.vector(
        "index_append", "kv_append", (norm,), 0.0, 0.0,
        kv_write=rows.tokens * (a.index_dim * sizes.kv), groups=rows.tokens,
    )  # fmt: skip
    chosen = []
    for segment, suffix in named(rows.segments):
        words = (*rows.attention_words(segment), "index")
        pairs = segment.sequences * segment.pairs(a.window, a.chunk)
        reads = segment.reads(a.window, a.chunk)
        score = rows.block.add(
            f"index_score{suffix}", "score", dtype=sizes.kv_compute,
            inputs=(query, weight, append), labels=words,
            m=segment.new * a.index_heads, n=reads, k=a.index_dim, groups=segment.sequences,
            heads=a.index_heads, sequences=segment.sequences,
            flops=pairs * (a.index_heads * (2.0 * a.index_dim + VECTOR_FLOPS["index"])),
            kv_read=segment.sequences * reads * (a.index_dim * sizes.kv),
            out_bytes=pairs * sizes.activation,
        )  # fmt: skip
        chosen.append(
            rows.block.add(
                f"index_topk{suffix}",
                "router",
                dtype=rows.model.precision.activation,
                inputs=(score,),
                labels=(*words, "vector"),
                flops=VECTOR_FLOPS["select"] * pairs,
                out_bytes=segment.sequences * segment.pairs(a.index_topk) * 4.0,
            )
        )
    return chosen


def _span(a: LatentAttention, segment: Segment) -> tuple[Number, Number]:
    """Return the pairs and the distinct tokens read of one sequence."""
    if a.index_topk:
        return segment.pairs(a.index_topk), segment.selected(a.index_topk)
    return segment.pairs(a.window, a.chunk), segment.reads(a.window, a.chunk)


def _softmax(
    rows: Rows, name: str, score: int, words: tuple[str, ...], scores: Number, each: Number
) -> int:
    """Add the softmax of `scores`, of which `each` share a maximum."""
    return rows.block.add(
        name, "softmax", dtype=rows.model.precision.activation, inputs=(score,),
        labels=(*words, "vector"), flops=VECTOR_FLOPS["softmax"] * scores, groups=scores / each,
        out_bytes=scores * rows.sizes.activation,
    )  # fmt: skip


def absorb(
    rows: Rows,
    a: LatentAttention,
    segment: Segment,
    suffix: str,
    sources: tuple[int, ...],
    heads: Number,
    turn: int,
    in_bytes: Number = 0.0,
) -> int:
    """Add the absorbed form of one segment; return the row of its heads' values.

    `turn` counts the segments before this one; the first alone reads the up-projection.
    `in_bytes` are the queries', where no row makes them.
    """
    sizes, tokens = rows.sizes, segment.tokens
    words = rows.attention_words(segment)
    pairs, reads = _span(a, segment)
    scores = segment.sequences * heads * pairs
    width = a.kv_lora_rank + a.rope_dim
    again = turn > 0
    query = _per_head(
        rows, f"absorb{suffix}", sources[:1], segment, heads, a.kv_lora_rank, a.nope_dim, again,
        in_bytes,
    )  # fmt: skip
    score = rows.block.add(
        f"score{suffix}", "score", dtype=sizes.kv_compute, inputs=(query, *sources[1:]),
        labels=words, m=segment.new * heads, n=reads, k=width, groups=segment.sequences,
        heads=heads, sequences=segment.sequences,
        flops=2.0 * width * scores, kv_read=segment.sequences * reads * (width * sizes.kv),
        out_bytes=scores * sizes.activation,
    )  # fmt: skip
    softmax = _softmax(rows, f"softmax{suffix}", score, words, scores, pairs / segment.new)
    context = rows.block.add(
        f"context{suffix}", "context", dtype=sizes.kv_compute, inputs=(softmax,), labels=words,
        m=segment.new * heads, n=a.kv_lora_rank, k=reads, groups=segment.sequences, heads=heads,
        sequences=segment.sequences,
        flops=2.0 * a.kv_lora_rank * scores,
        out_bytes=tokens * (heads * a.kv_lora_rank * sizes.activation),
    )  # fmt: skip
    return _per_head(
        rows, f"value_up{suffix}", (context,), segment, heads, a.v_dim, a.kv_lora_rank, again
    )


def _per_head(
    rows: Rows,
    name: str,
    inputs: tuple[int, ...],
    segment: Segment,
    heads: Number,
    n: int,
    k: int,
    again: bool,
    in_bytes: Number = 0.0,
) -> int:
    """Add one small product for each head; its weights count once for all segments."""
    sizes, tokens = rows.sizes, segment.tokens
    return rows.block.add(
        name, "gemm", dtype=sizes.compute["attention"], inputs=inputs,
        labels=(segment.phase, *rows.words[1:], "dense", sizes.formats["attention"]),
        m=tokens, n=n, k=k, groups=heads,
        weight=0.0 if again else n * k * heads * sizes.stored["attention"], in_bytes=in_bytes,
        out_bytes=tokens * (n * heads * sizes.activation),
    )  # fmt: skip


def _expanded(
    rows: Rows,
    a: LatentAttention,
    segment: Segment,
    suffix: str,
    sources: tuple[int, ...],
    heads: int,
    turn: int,
) -> int:
    """Add the expanded form of one segment; return the context row."""
    sizes = rows.sizes
    words = rows.attention_words(segment)
    pairs, reads = _span(a, segment)
    scores = segment.sequences * heads * pairs
    width = heads * (a.nope_dim + a.v_dim)
    up = rows.block.add(
        f"kv_up{suffix}", "gemm", dtype=sizes.compute["attention"], inputs=sources[2:],
        labels=(segment.phase, *rows.words[1:], "dense", sizes.formats["attention"]),
        m=segment.sequences * reads, n=width, k=a.kv_lora_rank,
        weight=0.0 if turn else width * a.kv_lora_rank * sizes.stored["attention"],
        kv_read=segment.sequences * reads * ((a.kv_lora_rank + a.rope_dim) * sizes.kv),
        out_bytes=segment.sequences * reads * (width * sizes.activation),
    )  # fmt: skip
    score = rows.block.add(
        f"score{suffix}", "score", dtype=sizes.kv_compute, inputs=(*sources[:2], up), labels=words,
        m=segment.new, n=reads, k=a.nope_dim + a.rope_dim, groups=segment.sequences * heads,
        sequences=segment.sequences,
        flops=2.0 * (a.nope_dim + a.rope_dim) * scores, out_bytes=scores * sizes.activation,
    )  # fmt: skip
    softmax = _softmax(rows, f"softmax{suffix}", score, words, scores, pairs / segment.new)
    return rows.block.add(
        f"context{suffix}", "context", dtype=sizes.kv_compute, inputs=(softmax, up), labels=words,
        m=segment.new, n=a.v_dim, k=reads, groups=segment.sequences * heads,
        sequences=segment.sequences,
        flops=2.0 * a.v_dim * scores,
        out_bytes=segment.tokens * (heads * a.v_dim * sizes.activation),
    )  # fmt: skip
