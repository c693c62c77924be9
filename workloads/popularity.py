"""How often each of many things is asked for: experts, adapters, models."""

from __future__ import annotations

from typing import Literal

import numpy as np

from opbyte.core.ops import Array

Choose = Literal["uniform", "zipf"]


def popularity(count: int, choose: Choose, skew: float) -> Array:
    """Return the probability of each of so many, (count,), most popular first.

    Args:
        choose: All equally, or by a power law of the rank.
        skew: Exponent of the power law.
    """
    ranks = np.arange(1, count + 1, dtype=np.float64)
    weights: Array = ranks ** -(skew if choose == "zipf" else 0.0)
    weights /= weights.sum()
    return weights
