"""Which neurons are there: popularity as a power law, windows of tokens, and LRU.

Neuron i of a network, by rank, is used by a token with the probability p_i, proportional to a power
of its rank and at most 1; they add up to the neurons that a token uses. The power goes through a
published quantile: the most used share `top` of the neurons has `share` of all uses. Tokens use
neurons independently. What the last k tokens used, and what a token uses beside, are

    kept  = mean(1 - (1 - p)^k)          fresh = mean(p (1 - p)^k)

and the neurons used last that fill C slots are those of a window of T tokens, where the expected
neurons of T tokens are C (Che, Tung and Wang, IEEE JSAC 20(7), 2002).
"""

from __future__ import annotations

from functools import lru_cache

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.workloads.routing import Routing

#: Steepest power that is looked for; published activations lie between 0.8 and 1.6.
_STEEPEST = 8.0


@lru_cache(maxsize=32)
def uses(neurons: int, used: float, top: float, share: float) -> Array:
    """Return the probability that a token uses each neuron, the most used first, (neurons,).

    Args:
        used: Share of the neurons that a token uses.
        top: Share of the neurons, the most used ones, that have `share` of all uses.
    Raises:
        UncoveredError: If no power law has that quantile.
    """
    count = max(round(top * neurons), 1)

    def probabilities(power: float) -> Array:
        return Routing("zipf", power).inclusion(neurons, used * neurons)

    def reached(power: float) -> float:
        return float(probabilities(power)[:count].sum()) / (used * neurons)

    low, high = 0.0, _STEEPEST
    if not reached(low) <= share <= reached(high):
        raise UncoveredError(
            f"no power law gives {top:.3g} of {neurons} neurons {share:.3g} of their uses where a "
            f"token uses {used:.3g} of them: it lies between {reached(low):.3g} and "
            f"{reached(high):.3g}. change `popularity` or `used`"
        )
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if reached(middle) < share else (low, middle)
    found = probabilities(high)
    found.setflags(write=False)
    return found


def window_shares(probability: Array, tokens: float) -> tuple[float, float]:
    """Return the shares of neurons that a window keeps, and that a token uses beside it."""
    absent = (1.0 - probability) ** tokens
    return float((1.0 - absent).mean()), float((probability * absent).mean())


def missed_share(probability: Array, slots: float) -> float:
    """Return the neurons that a token uses and LRU does not hold, as a share of all.

    Args:
        slots: Neurons that fit, as a share of all.
    """
    reachable = float((probability > 0).mean()) if probability.size else 0.0
    if probability.size == 0 or slots >= reachable:
        return 0.0
    if slots <= 0:
        return float(probability.mean())
    low, high = 0.0, 1.0
    while window_shares(probability, high)[0] < slots and high < 1e12:
        high *= 2.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (
            (middle, high) if window_shares(probability, middle)[0] < slots else (low, middle)
        )
    return window_shares(probability, 0.5 * (low + high))[1]
