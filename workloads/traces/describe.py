"""What somebody wants to know of a trace before simulating it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.workloads.traces._rules import Ints

if TYPE_CHECKING:
    from opbyte.workloads.traces.blocks import PrefixBlocks
    from opbyte.workloads.traces.trace import RequestTrace

__all__ = ["describe", "reusable_blocks"]

_PERCENTILES = (50, 90, 99)


def describe(trace: RequestTrace) -> dict[str, Any]:
    """Return a trace's statistics.

    The coefficient of variation of the gaps between arrivals tells burstiness: 0 for a clock, 1
    for a Poisson process. Percentiles are interpolated linearly. NaN stands for what the trace
    does not define (the rate of a trace without arrivals).
    """
    gaps = np.diff(trace.arrival_s) if trace.timed else np.zeros(0)
    mean = float(gaps.mean()) if len(gaps) else 0.0
    found: dict[str, Any] = {
        "name": trace.name,
        "source": trace.source,
        "requests": len(trace),
        "skipped_rows": trace.skipped,
        "failed_requests": trace.failed,
        "timed": trace.timed,
        "concurrency": trace.client.concurrency if trace.client else None,
        "duration_s": trace.duration_s if trace.timed else math.nan,
        "rate_requests_per_s": 1 / mean if mean > 0 else math.nan,
        "gap_cv": float(gaps.std()) / mean if mean > 0 else math.nan,
    }
    for name in ("input_tokens", "output_tokens"):
        found |= _spread(name, getattr(trace, name))
    for name in ("session", "adapter", "model"):
        values = getattr(trace, name)
        if values is not None:
            found[f"{name}s"] = len(np.unique(values[values >= 0]))
    if trace.prefix is not None:
        found |= _reuse(trace.prefix, trace.input_tokens)
    return found


def _spread(name: str, values: Ints) -> dict[str, Any]:
    cuts = np.percentile(values, _PERCENTILES)
    return {
        f"{name}_total": int(values.sum()),
        f"{name}_mean": float(values.mean()),
        f"{name}_min": int(values.min()),
        **{f"{name}_p{p}": float(cut) for p, cut in zip(_PERCENTILES, cuts, strict=True)},
        f"{name}_max": int(values.max()),
    }


def _reuse(prefix: PrefixBlocks, input_tokens: Ints) -> dict[str, Any]:
    reused = reusable_blocks(prefix)
    blocks = len(prefix.ids)
    tokens = np.minimum(reused * prefix.block_tokens, input_tokens)
    return {
        "prefix_block_tokens": prefix.block_tokens,
        "prefix_blocks": blocks,
        "prefix_blocks_distinct": len(np.unique(prefix.ids)),
        "prefix_reuse_bound": float(reused.sum()) / blocks if blocks else math.nan,
        "prefix_reusable_tokens": int(tokens.sum()),
    }


def reusable_blocks(prefix: PrefixBlocks) -> Ints:
    """Return how many leading blocks of each request earlier requests had too, (requests,).

    This is what an infinite prefix cache hits if every request enters it before the next one
    arrives: an upper bound of any cache's hits. A block counts only where all blocks before it
    are hits, as in a cache that is searched from the start of the prompt.
    """
    counts = prefix.counts
    if not len(prefix.ids):
        return np.zeros(len(counts), np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    _, first, inverse = np.unique(prefix.ids, return_index=True, return_inverse=True)
    missed = owner[first][inverse] == owner
    misses = np.concatenate([[0], np.cumsum(missed)])
    before = misses[1:] - np.repeat(misses[prefix.offsets[:-1]], counts)
    return np.bincount(owner[before == 0], minlength=len(counts)).astype(np.int64)
