"""Mixers of constant state as rows: Mamba-2 and the gated short convolution."""

from __future__ import annotations

from opbyte.core.ops import Number
from opbyte.workloads.attention_ops import named
from opbyte.workloads.mixers import Mamba, ShortConv
from opbyte.workloads.numeric import minimum, share
from opbyte.workloads.rows import VECTOR_FLOPS, Rows
from opbyte.workloads.spans import Segment, positive

#: Tokens of one block of the state-space dual form; the kernels' and papers' default.
SSD_BLOCK = 256.0


def scan_flops(heads: int, head_dim: int, state: int, groups: int, segment: Segment) -> Number:
    """Return the FLOPs of one sequence's state-space scan.

    Decode uses the recurrence: per state element decay, outer product and sum (3), product with C
    and sum (2), and per channel dt * x and D * x (3).

    Prefill uses the block decomposition of Mamba-2 (arXiv 2405.21060, section 6), with blocks of Q
    tokens: C B^T for each group (2 Q^2 N), times the decay mask and X for each head
    (Q^2 + 2 Q^2 P), the block's state B^T X (2 Q N P), its effect C h (2 Q N P) and the pass of
    states between blocks (2 N P).
    """
    if segment.phase == "decode":
        return segment.new * (heads * head_dim * (5.0 * state + 3.0))
    q = minimum(segment.new, SSD_BLOCK)
    blocks = segment.new / q
    inside = 2.0 * q * q * state * groups + heads * q * q * (1.0 + 2.0 * head_dim)
    between = heads * state * head_dim * (4.0 * q + 2.0)
    return blocks * (inside + between) + segment.new * (3.0 * heads * head_dim)


def mamba(rows: Rows, m: Mamba, x: int) -> int:
    """Add the rows of a Mamba-2 mixer; return the output projection.

    Heads are split over devices; groups of B and C fewer than devices are replicated. A prefill
    writes the state once for each sequence, and reads it if it continues one.

    Raises:
        WorkloadError: If there are fewer heads than devices.
    """
    hidden, sizes = rows.model.hidden, rows.sizes
    heads = rows.heads(m.heads, "state heads")
    groups = share(m.groups, rows.parallel.tp)
    inner = heads * m.head_dim
    conv = inner + 2 * groups * m.state
    width = inner + conv + heads
    last = rows.gemm("in_proj", (x,), width, hidden, "attention", vectors=width * m.bias)
    projected = last
    last = _convolution(rows, conv, m.conv, last, conv * m.conv_bias)
    scans: list[int] = []
    for segment, suffix in named(rows.segments):
        state = segment.sequences * (heads * m.head_dim * m.state * sizes.state)
        flops = segment.sequences * scan_flops(heads, m.head_dim, m.state, groups, segment)
        scans.append(
            rows.vector(
                f"scan{suffix}",
                "scan",
                (last, projected),
                flops,
                segment.tokens * inner,
                phase=segment.phase,
                vectors=0.0 if scans else 3 * heads,
                state_read=state * positive(segment.past),
                state_write=state,
            )
        )
    gated = rows.tokens * inner
    flops = (VECTOR_FLOPS["norm"] + VECTOR_FLOPS["gate"]) * gated
    last = rows.vector(
        "gated_norm", "norm", tuple(scans), flops, gated, vectors=inner, groups=rows.tokens
    )
    return rows.gemm("out", (last,), hidden, inner, "attention", vectors=hidden * m.bias)


def _convolution(rows: Rows, channels: int, taps: int, source: int, bias: int) -> int:
    """Add a causal convolution of each channel, with its last taps kept as state."""
    elements = rows.tokens * channels
    size = channels * (taps - 1) * rows.sizes.state
    read: Number = 0.0
    written: Number = 0.0
    for segment in rows.segments:
        read = read + segment.sequences * size * positive(segment.past)
        written = written + segment.sequences * size
    flops = elements * (2.0 * taps + (1.0 if bias else 0.0))
    return rows.vector(
        "conv", "conv", (source,), flops, elements,
        vectors=channels * taps + bias, state_read=read, state_write=written,
    )  # fmt: skip


def short_conv(rows: Rows, s: ShortConv, x: int) -> int:
    """Add the rows of a gated short convolution (LFM2); return the output projection."""
    hidden = rows.model.hidden
    width = share(s.width, rows.parallel.tp)
    vectors = s.bias * 3 * width
    projected = rows.gemm("in_proj", (x,), 3 * width, hidden, "attention", vectors=vectors)
    elements = rows.tokens * width
    gated = rows.vector("gate_in", "elementwise", (projected,), elements, elements)
    last = _convolution(rows, width, s.conv, gated, width * s.bias)
    last = rows.vector("gate_out", "elementwise", (last, projected), elements, elements)
    return rows.gemm("out", (last,), hidden, width, "attention", vectors=s.bias * hidden)
