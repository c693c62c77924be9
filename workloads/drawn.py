"""Tokens of each expert, drawn: what kernels that compute experts one by one need beside a mean.

`Routing` says how many experts a batch is expected to hit; a grouped product also depends on how
many tokens each of them has. Counts are (experts, points). All token counts of a call share the
uniform numbers of a draw, so that a sweep over tokens shows the tokens and not the draw.

A power law with exponent s draws the popularity of each expert between a least and a most with the
density x^-s, by inversion; popularity is scaled to the picks and rounded. No expert has more tokens
than there are: what is above goes to the expert with fewest, until that one is full, then to the
next. Rounding errors are made up one by one, from the experts with fewest up. These are the rules
of the public MoE benchmarks of NVIDIA's aiconfigurator (collector/helper.py), which draw without a
seed; s near 1 spreads popularity evenly over the decades between 1 and 0.8 tokens.

One draw is one batch: the time of the same shape scatters with it. `typical` takes from several
draws what the fullest expert has on average, the second, and so on, in whole tokens. On measured
fused layers its time errs no more than the mean of the times of five draws, for one evaluation;
unrounded means would hit every expert with a part of a token, and do worse.

`likely` needs no draws: it spreads picks at random, with the scatter that random picks have.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Array, Number

#: Least and most popularity where there are fewer picks than experts.
_FEW = (0.01, 2.0)
#: Most popularity of an expert, as a share of the tokens, where there are more; the least is 1.
_MOST = 0.8
_GOLDEN = 0.5 * (5.0**0.5 - 1.0)
#: Variance from which the expansion of a binomial's quantile is right to a token.
_FEW_VARIANCE = 9.0


def balanced(experts: int, picks: int, tokens: Number) -> Array:
    """Return counts that differ by one at most, (experts, points); the first have more.

    Raises:
        WorkloadError: If a token would have to pick an expert twice.
    """
    total = _tokens(experts, picks, tokens) * picks
    each = np.floor(total / experts)
    over = total - each * experts
    index = np.arange(experts, dtype=np.float64)[:, None]
    return np.asarray(each + np.clip(over - index, 0.0, 1.0), np.float64)


def power_law(
    experts: int, picks: int, tokens: Number, skew: float, *, seed: int = 0, draw: int = 0
) -> Array:
    """Return whole counts of one draw, (experts, points), summing to tokens * picks.

    Args:
        tokens: Tokens of a batch, rounded to whole ones.
        skew: Exponent of the density of popularity.
        seed, draw: The same pair draws the same numbers.
    Raises:
        WorkloadError: If a token would have to pick an expert twice, or the skew is negative or
            not finite.
    """
    many = np.rint(_tokens(experts, picks, tokens))
    if not (np.isfinite(skew) and skew >= 0):
        raise WorkloadError(f"power law: skew must be finite and >= 0, got {skew}")
    uniform = np.random.default_rng((seed, draw)).random(experts)[:, None]
    few = many * picks <= experts
    least = np.where(few, _FEW[0], 1.0)
    # A single token that picks every expert leaves no range to draw from.
    most = np.maximum(np.where(few, _FEW[1], _MOST * many), least)
    popularity = _inverse(uniform, skew, least, most)
    counts = np.rint(popularity / popularity.sum(axis=0) * (many * picks))
    over = np.maximum(counts - many, 0.0).sum(axis=0)
    counts = _pour(np.minimum(counts, many), over, many)
    return _settled(counts, many * picks, many)


def typical(draws: Sequence[Array]) -> Array:
    """Return whole counts of a batch like the mean of several, fullest first, (experts, points).

    The mean over draws of each rank is rounded so that each sum from the fullest down is right to
    half a token: as many experts are hit as on average, and no pick is lost.

    Args:
        draws: Counts of each draw, (experts, points).
    """
    mean = np.mean([np.sort(counts, axis=0)[::-1] for counts in draws], axis=0)
    whole: Array = np.diff(np.rint(mean.cumsum(axis=0)), axis=0, prepend=0.0)
    return whole


def likely(chance: Array, tokens: Array, total: Array) -> Array:
    """Return whole counts like those of random picks, (experts, points), summing to the total.

    Expert e has the quantile of its binomial, `tokens` draws of probability `chance`, at the e-th
    of evenly spaced levels. Levels are dealt by the golden ratio from the middle on, so that the
    first expert has its median and experts that are about as popular have high and low ones. As
    many experts are hit as are expected to be, each count grows with the tokens, and nothing is
    drawn: neighbouring points differ by their tokens alone.

    Args:
        chance: Probability that a token picks each expert, (experts, 1 or points).
        tokens: Whole tokens, (points,).
        total: Whole picks of all experts, at most tokens * experts, (points,).
    """
    dealt = (0.5 + _GOLDEN * np.arange(len(chance))) % 1.0
    level = (np.argsort(np.argsort(dealt)) + 0.5) / len(chance)
    counts = _quantile(level[:, None], tokens, np.minimum(chance, 1.0))
    order = np.argsort(-counts, axis=0, kind="stable")
    counts = np.take_along_axis(counts, order, axis=0)
    summed = counts.cumsum(axis=0)
    # Levels hit the mean within a part of a deviation: the rest goes to all, in whole tokens.
    share = total / np.maximum(summed[-1], 1.0)
    counts = np.diff(np.rint(summed * share), axis=0, prepend=0.0)
    counts = _settled(np.minimum(counts, tokens), np.broadcast_to(total, tokens.shape), tokens)
    likely_counts = np.empty_like(counts)
    np.put_along_axis(likely_counts, order, counts, axis=0)
    return likely_counts


def _quantile(level: Array, tokens: Array, chance: Array) -> Array:
    """Return the least x with F(x) >= level of binomials, (experts, points).

    By summing probabilities where the variance is small. Beyond, by the expansion of Cornish and
    Fisher to the skewness (Johnson, Kotz and Kemp, Univariate Discrete Distributions).
    """
    from scipy.special import ndtri

    level, many, chance = np.broadcast_arrays(level, tokens, chance)
    rare = np.minimum(chance, 1.0 - chance)
    level = np.where(chance > 0.5, 1.0 - level, level)
    deviation = np.sqrt(many * rare * (1.0 - rare))
    z = ndtri(level)
    skewed = (1.0 - 2.0 * rare) * (z * z - 1.0) / 6.0
    x: Array = np.clip(np.rint(many * rare + z * deviation + skewed), 0.0, many)
    few = deviation**2 < _FEW_VARIANCE
    n, p, u = many[few], rare[few], level[few]
    term = (1.0 - p) ** n
    below, found = term.copy(), np.zeros_like(term)
    step = 0.0
    while True:
        short = (below < u) & (found < n)
        if not short.any():
            break
        found += short
        term = term * np.maximum(n - step, 0.0) / (step + 1.0) * (p / (1.0 - p))
        below += term
        step += 1.0
    x[few] = found
    return np.where(chance > 0.5, many - x, x)


def on_device(counts: Array, devices: int, device: int | None = None) -> Array:
    """Return the counts of one device's experts, (most experts of a device, points).

    Experts are split in their order, as evenly as they go; the first devices have one more, and a
    device that has one less ends with a row of zeros.

    Args:
        counts: Of all experts, (experts, points).
        device: Which one; None for the one with most tokens, at each point.
    Raises:
        WorkloadError: If there are fewer experts than devices, or no such device.
    """
    experts, points = counts.shape
    if not 1 <= devices <= experts:
        raise WorkloadError(f"{devices} devices for {experts} experts: each must have one at least")
    if device is not None and not 0 <= device < devices:
        raise WorkloadError(f"device {device} of {devices}: must be 0 to {devices - 1}")
    short, more = divmod(experts, devices)
    widest = short + (more > 0)
    split = np.zeros((devices, widest, points))
    split[:more] = counts[: more * widest].reshape(more, widest, points)
    split[more:, :short] = counts[more * widest :].reshape(devices - more, short, points)
    # Indexed by a list of devices and a list of points it is (points, experts).
    which = split.sum(axis=1).argmax(axis=0) if device is None else np.full(points, device)
    picked: Array = split[which, :, np.arange(points)].T
    return picked


def _tokens(experts: int, picks: int, tokens: Number) -> Array:
    if not 1 <= picks <= experts:
        raise WorkloadError(f"a token picks {picks} of {experts} experts: 1 to {experts} it can")
    return np.atleast_1d(np.asarray(tokens, np.float64))


def _inverse(uniform: Array, skew: float, least: Array, most: Array) -> Array:
    """Return the quantiles of the density x^-skew between least and most."""
    power = 1.0 - skew
    if abs(power) < 1e-9:
        spread: Array = least * (most / least) ** uniform
        return spread
    low, high = least**power, most**power
    drawn: Array = ((high - low) * uniform + low) ** (1.0 / power)
    return drawn


def _fewest_first(counts: Array) -> npt.NDArray[np.intp]:
    """Return the order of experts from fewest tokens up; of equals the last comes first."""
    order: npt.NDArray[np.intp] = np.argsort(-counts, axis=0, kind="stable")[::-1]
    return order


def _pour(counts: Array, over: Array, most: Array) -> Array:
    """Give what is over to the experts with fewest, each to the brim, (experts, points)."""
    order = _fewest_first(counts)
    filled = np.take_along_axis(counts, order, axis=0)
    room = most - filled
    before = room.cumsum(axis=0) - room
    filled += np.clip(over - before, 0.0, room)
    np.put_along_axis(counts, order, filled, axis=0)
    return counts


def _settled(counts: Array, total: Array, most: Array) -> Array:
    """Add or take single tokens, fewest first, until the sum is right."""
    while True:
        off = total - counts.sum(axis=0)
        if not off.any():
            return counts
        order = _fewest_first(counts)
        sorted_counts = np.take_along_axis(counts, order, axis=0)
        # The n-th expert that can change does, where n or more are off.
        can = np.where(off > 0, sorted_counts < most, sorted_counts > 0)
        step = can & (can.cumsum(axis=0) <= np.abs(off))
        sorted_counts += np.where(step, np.sign(off), 0.0)
        np.put_along_axis(counts, order, sorted_counts, axis=0)
