"""Two things that a pass does beside each other, layer by layer.

Of L equal layers each goes through two stages, such as copying and computing, of A and B seconds in
all. The second stage of a layer waits for the first, and a stage has one layer at a time. What runs
longer is never idle but for one layer of the other (a flow shop of two machines; S. Johnson, Naval
Research Logistics Quarterly 1, 1954):

    seconds = max(A + B / L, B + A / L)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.ops import Array, Number

__all__ = ["alone", "overlapped"]


def alone(layers: Number) -> Any:
    """Return the share of a stage that has nothing of the other beside it: that of one layer."""
    return 1.0 / np.maximum(layers, 1.0)


def overlapped(first: Number, second: Number, share: Number) -> Array:
    """Return the seconds of two stages, the same whichever comes first.

    Args:
        first, second: Seconds of all layers in each.
        share: What has nothing beside it: `alone(layers)`; 1 for stages after each other, 0 for
            what goes on at the same time throughout.
    """
    return np.asarray(np.maximum(first + share * second, second + share * first))
