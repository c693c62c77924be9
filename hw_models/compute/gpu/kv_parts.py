"""Into how many parts attention libraries cut the keys of a sequence, so that CTAs fill the SMs."""

from __future__ import annotations

import numpy as np
from numba.extending import register_jitable

_MOST_PARTS = 128.0


@register_jitable
def _next_parts(parts: float, blocks: float) -> float:
    """Return the next number of parts that makes the longest part shorter."""
    longest = np.ceil(blocks / parts)
    if longest <= 1.0:
        return _MOST_PARTS + 1.0
    return float(max(parts + 1.0, np.ceil(blocks / (longest - 1.0))))


@register_jitable
def searched_parts(ctas: float, slots: float, blocks: float) -> float:
    """Return FlashAttention 2's parts: the fewest that fill 0.85 as much as the best."""
    if ctas >= 0.8 * slots:
        return 1.0
    most = min(_MOST_PARTS, slots, blocks)
    best, parts = 0.0, 1.0
    while parts <= most and best < 1.0:
        waves = ctas * parts / slots
        best = max(best, waves / np.ceil(waves))
        parts = _next_parts(parts, blocks)
    parts = 1.0
    while parts <= most:
        waves = ctas * parts / slots
        if waves / np.ceil(waves) >= 0.85 * best:
            return parts
        parts = _next_parts(parts, blocks)
    return 1.0


@register_jitable
def shared_parts(tiles: float, sequences: float, blocks: float, mean: float, sms: float) -> float:
    """Return FlashAttention 3's parts: shares of all blocks for each SM, a tenth to spare.

    Args:
        tiles: Of the longest sequence, all heads.
        sequences: Of the call.
        blocks, mean: Of this sequence, and of all on average.
    """
    if tiles >= 0.8 * sms or blocks <= 4.0 or (blocks <= 8.0 and tiles >= 32.0):
        return 1.0
    share = np.ceil(1.1 * sequences * tiles * mean / sms)
    return float(max(1.0, min(_MOST_PARTS, np.floor(sms / tiles), np.ceil(blocks / share))))
