"""Seconds of the kernel that writes new keys and values to their pages, one CTA a token.

    held  = CTAs over the threads that SMs hold * the life of one
    time  = small + (held^p + memory^p)^(1/p)

The launch is not part of it. Facts and parameters are those of `attention`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba.extending import register_jitable

from opbyte.core.ops import Array
from opbyte.hw_models.compute.gpu.attention import OVERLAP, SMALL, SMS, STREAM, THREADS, WRITE
from opbyte.hw_models.compute.gpu.norms import joined

#: Most threads of a CTA.
_WRITERS = 512.0


@register_jitable
def append_seconds(tokens: float, width: float, moved: float, facts: Array) -> float:
    """Return the seconds of the kernel that writes new keys and values, after its launch.

    Args:
        tokens: New tokens, one CTA each.
        width: Elements of a token's keys.
        moved: Bytes read and written.
        facts: Of one point, (attention.FACTS,).
    """
    held = tokens * min(_WRITERS, width) / (facts[THREADS] * facts[SMS]) * facts[WRITE]
    return float(facts[SMALL] + joined(held, moved / facts[STREAM], facts[OVERLAP]))


def fill_seconds(seconds: Array, sizes: Array, facts: Array) -> None:
    """Set the seconds of kernels that only write new keys and values.

    Args:
        seconds: Result, (rows, points).
        sizes: Tokens, elements of a token's keys and bytes moved, (3, rows, 1 or points).
        facts: Of each point or of all, (1 or points, attention.FACTS).
    """
    for row in range(seconds.shape[0]):
        for point in range(seconds.shape[1]):
            tokens, width, moved = sizes[:, row, point if sizes.shape[2] > 1 else 0]
            of_point = facts[point if facts.shape[0] > 1 else 0]
            if moved <= 0.0:
                seconds[row, point] = 0.0
            elif of_point[: STREAM + 1].min() <= 0.0:
                seconds[row, point] = np.inf
            else:
                seconds[row, point] = append_seconds(tokens, width, moved, of_point)


@cache
def compiled() -> Any:
    """Return `fill_seconds` compiled."""
    return numba.njit(cache=True)(fill_seconds)
