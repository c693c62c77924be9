"""The `kernel` block of a GPU's unit: what no data sheet says about its matrix kernels."""

from __future__ import annotations

from opbyte.core.blocks import Block
from opbyte.core.parameters import Exponent, Factor, JoulesPerOp, Ratio, Seconds

#: Exponents of norms, which are at least 1, by their path in the block.
EXPONENTS = frozenset({"overlap", "attention.pairing"})


class AttentionKernel(Block):
    """Attention over a paged cache, see `opbyte.hw_models.compute.gpu.attention`."""

    softmax: Factor
    """Lane instructions for a score, beside its exponent."""
    pairing: Exponent
    """p of the norm that joins products and softmax of CTAs that share an SM."""
    start: Seconds
    """Start of the kernel: first CTAs, lengths, pages and queries."""
    turn: Seconds
    """From one CTA to the next on an SM: epilogue, first loads."""
    empty: Seconds
    """A CTA that finds no query rows and leaves."""
    tail: Factor
    """Share of the longest CTA for which the last SM runs on alone."""
    small: Seconds
    """A small kernel that waits for the one before it, after its launch."""
    copying: Seconds
    """A copy inside device memory, launch included."""
    combine: Seconds
    """One more part of a split cache in the kernel that combines them."""
    write: Seconds
    """Life of a CTA that writes one token's keys and values, under load."""
    source: str | None = None


class LatentKernel(Block):
    """Decode attention over a latent cache, see `opbyte.hw_models.compute.gpu.latent`."""

    trip: Seconds
    """One step of the cache: page number, then its elements, then the barriers around them."""
    start: Seconds
    """CTA start, sequence length, query and first page, each after the one before; division."""
    single: Seconds
    """64 tokens of the kernel that serves one head without tensor cores."""
    source: str | None = None


class GroupedKernel(Block):
    """Products of experts, see `opbyte.hw_models.compute.gpu.grouped`."""

    matrix: Ratio
    """Share of the matrix units, or of shared memory, that the main loop fills."""
    gather: Factor
    """Extra latency of a k-step, times the share of the gathered rows' source beyond L2."""
    narrow: Ratio
    """Rate of a stream whose k-steps are narrower than a cache line, or unaligned."""
    source: str | None = None


class Kernel(Block):
    """Ten parameters of one dense product, see `opbyte.hw_models.compute.gpu.kernel`.

    Two more are the machine's own, under paths that every unit has: the gap between kernels
    (`launch.graph`) and the share of the pin rate that a stream reaches (the port's `efficiency`).
    """

    matrix: Ratio
    """Share of the matrix units' issue slots that the main loop fills."""
    fill: Seconds
    """Start of a CTA and the first loads of its pipeline, each round."""
    latency: Seconds
    """Loaded latency of one k-step, which the stages in flight hide."""
    epilogue: Seconds
    """From the last product of a tile to its first store."""
    split: Seconds
    """Second kernel, which sums the parts of a split k."""
    l2: Ratio
    """Share of the wires between L2 and SMs that is reached."""
    l2_share: Ratio
    """Share of L2 within which activations stay from kernel to kernel."""
    overlap: Exponent
    """p of the norm that joins SM time and HBM time; 1 adds them, infinity hides the shorter."""
    tail: Factor
    """How much longer the last round of a stream takes, as a share of one round."""
    attention: AttentionKernel | None = None
    """Without it attention runs row by row."""
    grouped: GroupedKernel | None = None
    """Without it products of experts are equal products of the mean size."""
    latent: LatentKernel | None = None
    """Without it latent attention runs row by row."""
    energy: JoulesPerOp | None = None
    """Chip and HBM together, for one bf16 operation with random operands at the full clock."""
    source: str | None = None
