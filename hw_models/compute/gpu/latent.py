"""Seconds of decode attention over a latent cache (MLA): score, softmax and context as kernels.

All heads of a device score against the same cached vectors of `latent + rope` elements, and take
their values from the first `latent` of them. A CTA serves a block of query rows and walks over a
part of the cache; a second kernel joins the parts:

    step   = trip + loads / SM port + the chain of products      where a step's loads wait for it
             max(trip / stages, products, loads / SM port, all loads / L2)     where they run ahead
    round  = start + steps * step + the stores of a wave at HBM's rate
    memory = fill + (cache, as often as blocks of heads that do not run together read it
             + queries + parts) / HBM
    time   = (rounds^p + memory^p)^(1/p) + join + copies, each after its own gap

The gap before the first kernel is not part of it, nor are the projections that fold the key and
value matrices into queries and outputs: those are products of their own. Everything falls, or
stays, when a rate rises or a latency falls (law 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.core.registry import Registry
from opbyte.hw_models.compute.gpu.kernel import (
    ENERGY,
    FACTS,
    FILL,
    L2_RATE,
    MATRIX,
    OVERLAP,
    PEAK,
    PIN_RATE,
    PORT,
    REUSE,
    ROOM,
    SMS,
    STREAM,
)
from opbyte.hw_models.compute.gpu.norms import joined

#: Columns behind those of a product: clock, gap between kernels, and the class's parameters.
CLOCK, GAP, TRIP, START, SINGLE = range(FACTS, FACTS + 5)
LATENT_FACTS = FACTS + 5
#: Rows of the sizes: those of one call.
SEQUENCES, HEADS, NEW, KV, LATENT, ROPE = range(6)
#: Rules of a kernel, see `LatentKernel`.
BLOCK, TOKENS, STAGES, SPLITS, MOST, CTAS, CLUSTER, AGAIN, PACKS, SPREAD, COPIES, ONE = range(12)
#: Parts are handed over in fp32, with the logarithm of their sum.
_PART = 4.0
#: Cycles from one tensor core instruction m16n8k16 to the next that needs its sum, and the
#: elements of k that it takes. assumed: 33, of the order that micro-benchmarks of A100 find (Sun et
#: al., Dissecting Tensor Cores via Microbenchmarks, 2022; the table was not looked up).
_CHAIN_CYCLES, _CHAIN_K = 33.0, 16.0
#: The one-head kernel: tokens of a step, CTAs of an SM.
_SINGLE_TOKENS, _SINGLE_CTAS = 64.0, 2.0


@dataclass(frozen=True)
class LatentKernel:
    """What the decode kernel of a generation is like: declared, never fitted.

    Attributes:
        block: Query rows (heads, times new tokens where it packs them) of a CTA.
        tokens: Cached tokens of a step.
        stages: Steps whose loads are in flight; 1 waits for the loads of each step.
        splits: Parts of a sequence's cache, 0 where the library chooses by occupancy.
        most: Most parts it chooses.
        ctas: CTAs that run on one SM.
        cluster: SMs that share the work of one CTA.
        values_again: Values are loaded apart from the keys whose first elements they are.
        packs: Heads and new tokens of a sequence fill a block together.
        spread: Neighbouring CTAs are of different sequences, not of one sequence's heads.
        copies: Kernels around it: queries joined to one matrix, outputs cleared.
        one_head: With one head on the device, a kernel without tensor cores runs instead.
    """

    name: str
    source: str
    block: int
    tokens: int
    stages: int
    splits: int = 0
    most: int = 1
    ctas: int = 1
    cluster: int = 1
    values_again: bool = False
    packs: bool = True
    spread: bool = False
    copies: int = 0
    one_head: bool = False

    @cached_property
    def rules(self) -> Array:
        """Return what the compiled loop reads, in the order of its constants."""
        rules = (
            self.block, self.tokens, self.stages, self.splits, self.most, self.ctas, self.cluster,
            self.values_again, self.packs, self.spread, self.copies, self.one_head,
        )  # fmt: skip
        return np.array(rules, np.float64)


#: By the name of the GPU generation.
LATENT_KERNELS: Registry[LatentKernel] = Registry("GPU generation with a latent decode kernel")
_TRITON = LatentKernel(
    "triton-mla",
    "vLLM 0.14, triton_mla.py and triton_decode_attention.py: 4 parts, blocks of 16 heads and 32 "
    "tokens, grid of sequences first; the backend that its order of preference leaves for compute "
    "capability 8.x. assumed: its 2 stages are one buffer, refilled when read",
    block=16,
    tokens=32,
    stages=1,
    splits=4,
    most=4,
    values_again=True,
    packs=False,
    spread=True,
    copies=3,
    one_head=True,
)
for _name in ("ampere", "ampere-ga10x", "ada"):
    LATENT_KERNELS.register(_name)(_TRITON)
LATENT_KERNELS.register("hopper")(
    LatentKernel(
        "flash-attention-3",
        "vLLM 0.14 picks FLASH_ATTN_MLA on compute capability 9.0; FlashAttention 3, tile_size.h: "
        "64 x 64 for values of 512; values stay where the keys were loaded, two blocks in flight "
        "and one CTA an SM as in FlashMLA's deep dive, same tile. assumed: at most 128 parts, "
        "as many as are fastest",
        block=64,
        tokens=64,
        stages=2,
        most=128,
    )
)
LATENT_KERNELS.register("blackwell")(
    LatentKernel(
        "cutlass-mla",
        "vLLM 0.14 picks CUTLASS_MLA on compute capability 10.0; sm100_cutlass_mla_kernel.cu: 128 "
        "heads (fewer are padded) and 128 tokens, at most 16 parts. assumed: two SMs share a CTA, "
        "two stages, and several sequences are split too, which the version that was read (of no "
        "known release) forbids as a guard against hangs",
        block=128,
        tokens=128,
        stages=2,
        most=16,
        cluster=2,
        packs=False,
    )
)


class Call(NamedTuple):
    """One call: query rows by sequence, cached tokens, widths in elements, bytes of an element."""

    sequences: float
    rows: float
    kv: float
    latent: float
    width: float
    b_query: float
    b_kv: float


@register_jitable
def _step_seconds(x: Call, most: float, running: float, facts: Array, rules: Array) -> float:
    """Return the seconds of a step over at most `most` tokens; `running` CTAs load at once."""
    of_sm = facts[PEAK] / facts[SMS] * facts[MATRIX] * rules[CLUSTER]
    tokens = min(rules[TOKENS], most)
    loads = tokens * (x.width + x.latent * rules[AGAIN]) * x.b_kv
    through = rules[CTAS] * loads / rules[CLUSTER] / facts[PORT]
    if rules[STAGES] <= 1.0:
        # Scores are one chain of products per warp; those with the values are independent.
        chain = np.ceil(x.width / _CHAIN_K) * _CHAIN_CYCLES / facts[CLOCK]
        values = rules[CTAS] * 2.0 * rules[BLOCK] * rules[TOKENS] * x.latent / of_sm
        return float(facts[TRIP] + through + chain + values)
    products = rules[CTAS] * 2.0 * rules[BLOCK] * rules[TOKENS] * (x.width + x.latent) / of_sm
    return float(
        max(facts[TRIP] / rules[STAGES], products, through, running * loads / facts[L2_RATE])
    )


@register_jitable
def _split_seconds(x: Call, splits: float, facts: Array, rules: Array) -> float:
    """Return the seconds with the cache in so many parts, without copies."""
    one = rules[ONE] > 0.0 and x.rows == 1.0
    mine = np.ceil(x.kv / splits)
    parts = np.ceil(x.kv / mine)
    blocks = np.ceil(x.rows / rules[BLOCK])
    ctas = x.sequences * blocks * parts
    slots = facts[SMS] * (_SINGLE_CTAS if one else rules[CTAS] / rules[CLUSTER])
    slots = max(1.0, np.floor(slots))
    rounds = np.ceil(ctas / slots)
    running = ctas / rounds
    if one:
        loop = np.ceil(mine / _SINGLE_TOKENS) * facts[SINGLE]
    else:
        loop = np.ceil(mine / rules[TOKENS]) * _step_seconds(x, mine, running, facts, rules)
    # Parts, and results where there is one part, leave together at the end of a round.
    element = _PART if rules[SPLITS] > 0.0 or parts > 1.0 else x.b_query
    out = x.sequences * x.rows * parts * (x.latent + 1.0) * element
    sm = rounds * (facts[START] + loop) + out / facts[STREAM]
    cached = x.sequences * x.kv * x.width * x.b_kv
    again = 1.0
    if rules[SPREAD] > 0.0 and cached / parts > facts[REUSE]:
        again = blocks / min(blocks, max(1.0, slots / x.sequences))
    queries = x.sequences * x.rows * x.width * x.b_query
    memory = (cached * again + queries + out) / facts[STREAM] + facts[FILL]
    seconds = joined(sm, memory, facts[OVERLAP])
    if element == _PART:
        rate = facts[STREAM]
        if out < facts[REUSE]:
            rate = max(rate, facts[L2_RATE])
        result = x.sequences * x.rows * x.latent * x.b_query
        seconds += facts[GAP] + facts[FILL] + out / rate + result / facts[STREAM]
    return float(seconds)


@register_jitable
def latent_seconds(x: Call, facts: Array, rules: Array) -> float:
    """Return the seconds of one call after the launch of its first kernel."""
    best = np.inf
    if rules[SPLITS] > 0.0:
        best = _split_seconds(x, rules[SPLITS], facts, rules)
    else:
        splits = 1.0
        while splits <= min(rules[MOST], np.ceil(x.kv / rules[TOKENS])):
            best = min(best, _split_seconds(x, splits, facts, rules))
            splits *= 2.0
    queries = x.sequences * x.rows * x.width * x.b_query
    result = x.sequences * x.rows * x.latent * x.b_query
    if rules[COPIES] > 0.0:
        best += rules[COPIES] * (facts[GAP] + facts[FILL])
        best += (2.0 * queries + result) / facts[STREAM]
    operations = 2.0 * x.sequences * x.rows * x.kv * (x.width + x.latent)
    # As for products: energy falls with the clock, which falls to what the board can feed.
    drawn = operations / best * facts[ENERGY]
    if drawn > facts[ROOM]:
        best *= np.sqrt(drawn / facts[ROOM])
    compulsory = x.sequences * x.kv * x.width * x.b_kv + queries + result
    return float(max(best, operations / facts[PEAK], compulsory / facts[PIN_RATE]))


def fill_seconds(
    seconds: Array, sizes: Array, b_query: float, b_kv: float, facts: Array, rules: Array
) -> None:
    """Set the seconds of every call at every design point.

    Args:
        seconds: Result, (rows, points).
        sizes: Sequences, heads, new tokens of a sequence, cached tokens of a sequence with the
            new ones, latent and rope width, each (rows, 1 or points).
        b_query, b_kv: Bytes of an element of queries and results, and of the cache.
        facts: Of each point or of all, (1 or points, LATENT_FACTS).
        rules: Of the kernel, (12,).
    """
    for row in range(seconds.shape[0]):
        for point in range(seconds.shape[1]):
            s = point if sizes.shape[2] > 1 else 0
            sequences, heads, new = sizes[:3, row, s]
            kv, latent, rope = sizes[3:, row, s]
            if sequences <= 0.0 or heads <= 0.0 or new <= 0.0 or kv <= 0.0:
                seconds[row, point] = 0.0
                continue
            of_point = facts[point if facts.shape[0] > 1 else 0]
            slowest = min(of_point[PEAK], of_point[PORT], of_point[L2_RATE], of_point[STREAM])
            if min(slowest, of_point[CLOCK]) <= 0.0:
                seconds[row, point] = np.inf
                continue
            if rules[PACKS] > 0.0:
                heads = heads * new
            else:
                # Each new token is a sequence of its own to a kernel that does not pack them.
                sequences = sequences * new
            x = Call(sequences, heads, kv, latent, latent + rope, b_query, b_kv)
            seconds[row, point] = latent_seconds(x, of_point, rules)


@cache
def compiled() -> Any:
    """Return `fill_seconds` compiled."""
    return numba.njit(cache=True)(fill_seconds)
