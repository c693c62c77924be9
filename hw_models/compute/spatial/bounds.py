"""How much attention must move: lower bounds, and the traffic of its tiled algorithms.

All sizes are elements, of one head with N queries and keys of width d, and M elements of fast
memory. Any schedule moves on the order of N^2 d^2 / M elements where M >= d^2, and N^2 d / sqrt(M)
below (Saha and Ye, "The I/O Complexity of Attention, or How Optimal is
FlashAttention?", ICML 2024); nothing moves less than its inputs and its result, 4 N d.
"""

from __future__ import annotations

import math


def lower_bound(tokens: float, width: float, memory: float) -> float:
    """Return the order of the elements that any schedule moves, constants left out.

    Raises:
        ValueError: If a size is not above 0.
    """
    _positive(tokens, width, memory)
    square = tokens * tokens * width
    return min(square * width / memory, square / math.sqrt(memory))


def tiled_traffic(tokens: float, width: float, memory: float) -> float:
    """Return the elements that the better of two tiled algorithms moves.

    One pass: as many queries as fit stay with their sums (2 d + 2 each) while keys and values
    stream by one at a time (2 d), so both come once for each tile of queries. Apart: each product
    in square tiles of s by s results and strips of s, with s (s + 2) = M; scores and weights go to
    memory.

    Raises:
        ValueError: If a size is not above 0, or the memory holds no tile of 1 by 1.
    """
    _positive(tokens, width, memory)
    if memory < 3:
        raise ValueError(f"memory must hold a tile of 1 by 1 and its operands, 3, got {memory:g}")
    side = math.floor(math.sqrt(memory + 1.0) - 1.0)
    tiles = math.ceil(tokens / side)
    first = 2.0 * tiles * tokens * width + tokens * tokens
    # The second product walks the keys for each tile of the result.
    second = math.ceil(width / side) * tokens * tokens + tiles * tokens * width + tokens * width
    softmax = 2.0 * tokens * tokens
    least = first + softmax + second
    fit = math.floor((memory - 2.0 * width) / (2.0 * width + 2.0))
    if fit >= 1:
        passes = math.ceil(tokens / min(fit, tokens))
        least = min(least, 2.0 * tokens * width * (1.0 + passes))
    return least


def _positive(tokens: float, width: float, memory: float) -> None:
    for name, value in (("tokens", tokens), ("width", width), ("memory", memory)):
        if not value > 0:
            raise ValueError(f"{name} must be above 0, got {value:g}")
