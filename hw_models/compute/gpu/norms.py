"""How two times that overlap in part make one: the p-norm."""

from __future__ import annotations

from numba.extending import register_jitable


@register_jitable
def joined(a: float, b: float, p: float) -> float:
    """Return (a^p + b^p)^(1/p), which neither overflows nor vanishes.

    1 adds the two, infinity hides the shorter. Where both are nothing so is the result.

    Args:
        p: At least 1: below, the two together would take longer than one after the other.
    """
    longer, shorter = max(a, b), min(a, b)
    if shorter <= 0.0:
        return float(longer)
    return float(longer * (1.0 + (shorter / longer) ** p) ** (1.0 / p))
