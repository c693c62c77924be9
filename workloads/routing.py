"""Which experts a batch of tokens hits: expected distinct experts and the most loaded one.

A token picks `k` different experts. Under uniform routing each expert is hit by a token with
probability k / E, so E (1 - (1 - k / E)^T) distinct experts are expected for T tokens. Under a
power law the experts' popularity is proportional to rank^-skew; the probability that one of the k
picks is a given expert is capped at one, and what is cut off goes to the others. These means are
the load of a device; `likely_counts` adds how its picks scatter, which only kernels ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, WorkloadError, show
from opbyte.core.ops import Array, Number
from opbyte.core.registry import nearest
from opbyte.workloads.drawn import balanced, likely, on_device, power_law, typical
from opbyte.workloads.numeric import is_array, maximum, minimum

Kind = Literal["uniform", "zipf", "balanced", "power_law"]
#: Draws that stand for a batch of a power law together.
DRAWS = 20


@dataclass(frozen=True, slots=True)
class Routing:
    """How tokens choose experts.

    Attributes:
        kind: `uniform` draws at random; `zipf` draws by popularity; `balanced` spreads tokens
            evenly, so that min(E, T k) experts are hit; `power_law` draws the tokens of each
            expert, as benchmarks of MoE kernels do (`drawn`).
        skew: Exponent of the power law, 0 for uniform popularity.
        fullest: The lowered device is the one with the most loaded experts, where experts are
            split over devices; else an average one.
        seed: Of what is drawn.
        locality: Probability that a decode step takes, in a layer, the experts that the step
            before took for the same sequence; otherwise it draws anew. Tokens of one iteration
            draw independently. It matters only where experts are cached.
    """

    kind: Kind = "uniform"
    skew: float = 0.0
    fullest: bool = False
    seed: int = 0
    locality: float = 0.0

    @classmethod
    def named(cls, text: str) -> Routing:
        """Return a routing from a word such as `uniform`, `zipf_0.8` or `power_law_1.2`.

        Raises:
            WorkloadError: If no kind begins so, or the skew makes no sense.
        """
        kind, _, skew = text.rpartition("_")
        try:
            return cls(kind, float(skew))  # type: ignore[arg-type]
        except ValueError:
            return cls(text)  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        """Check kind and skew.

        Raises:
            WorkloadError: If the kind is unknown, the skew is negative, not finite, or given
                for a kind that has none, or the locality is no probability, or given where no
                token draws by itself.
        """
        if self.kind not in get_args(Kind):
            known = ", ".join(get_args(Kind))
            raise WorkloadError(f"routing: no kind is called {self.kind!r}. Known: {known}")
        if not (np.isfinite(self.skew) and self.skew >= 0):
            raise WorkloadError(f"routing: skew must be finite and >= 0, got {self.skew}")
        if self.skew and self.kind not in ("zipf", "power_law"):
            raise WorkloadError(
                f"routing: skew belongs to the kinds 'zipf' and 'power_law', got {self.kind!r}"
            )
        if not 0 <= self.locality <= 1:
            raise WorkloadError(f"routing: locality must lie in [0, 1], got {self.locality}")
        if self.locality and self.kind not in ("uniform", "zipf"):
            raise WorkloadError(
                f"routing: locality belongs to the kinds 'uniform' and 'zipf', got {self.kind!r}"
            )

    def counts(self, experts: int, picks: int, tokens: Number, devices: int = 1) -> Array | None:
        """Return tokens of each expert of a device, (experts of the device, 1 or points).

        None where experts are only known by their mean, see `likely_counts`. Draws are made device
        by device, and what is typical of `DRAWS` of them stands for a batch.

        Args:
            devices: Over which experts are split; the device is the fullest, or the first.
        """
        if self.kind == "balanced":
            return on_device(balanced(experts, picks, np.rint(tokens)), devices, 0)
        if self.kind != "power_law":
            return None
        distinct, point = np.unique(np.asarray(tokens, np.float64), return_inverse=True)
        key = tuple(distinct.tolist())
        drawn = _drawn(experts, picks, key, self.skew, self.seed, devices, self.fullest)
        return drawn[:, np.ravel(point)]

    def likely_counts(self, experts: int, picks: int, tokens: Number, devices: int = 1) -> Array:
        """Return tokens of each expert where only means are known, (experts, 1 or points).

        The device's experts are a mean of those that a placement by popularity deals round and
        round; the fullest device has all of them more often by its `imbalance`. Whole picks, at
        least one, whose sum is that of `expert_load` to half a pick.
        """
        distinct, point = np.unique(np.asarray(tokens, np.float64), return_inverse=True)
        key = tuple(distinct.tolist())
        counts = _likely(self, experts, picks, key, devices)
        return counts[:, np.ravel(point)]

    def hit_probability(self, experts: int, picks: int) -> Array:
        """Return the probability that one token visits each expert, see `inclusion`."""
        return self.inclusion(experts, picks)

    def inclusion(self, experts: int, picks: float) -> Array:
        """Return the probability that one token visits each expert, (experts,), summing to picks.

        The k picks are taken as a Poisson-like design with inclusion probabilities proportional
        to popularity, capped at one (the excess is shared among the others, proportionally).
        """
        if picks >= experts:
            return np.ones(experts)
        popularity = np.arange(1, experts + 1, dtype=np.float64) ** -self.skew
        hit = np.zeros(experts)
        free = np.ones(experts, bool)
        left = float(picks)
        while True:
            trial = left * popularity / popularity[free].sum()
            full = free & (trial >= 1.0)
            if not full.any():
                hit[free] = trial[free]
                return hit
            hit[full] = 1.0
            free &= ~full
            left = picks - float(hit.sum())

    def _all(self, experts: int, picks: int, tokens: Number) -> Array:
        counts = self.counts(experts, picks, tokens)
        assert counts is not None
        return counts

    def distinct(self, experts: int, picks: int, tokens: Number) -> Number:
        """Return the expected distinct experts that `tokens` tokens visit.

        Uniform: E (1 - (1 - k / E)^T). Zipf: sum over experts of 1 - (1 - p_e)^T. Balanced:
        min(E, T k).
        """
        if self.kind == "balanced":
            return minimum(tokens * float(picks), float(experts))
        if self.kind == "power_law":
            return _like(tokens, (self._all(experts, picks, tokens) > 0).sum(axis=0))
        if self.kind == "uniform" or self.skew == 0.0:
            missed = 1.0 - min(picks, experts) / experts
            return experts * (1.0 - missed**tokens)
        missed_each = 1.0 - self.hit_probability(experts, picks)
        if is_array(tokens):
            powers: Array = missed_each[:, None] ** tokens[None, :]
            summed: Array = (1.0 - powers).sum(axis=0)
            return summed
        return float((1.0 - missed_each**tokens).sum())

    def max_load(self, experts: int, picks: int, tokens: Number) -> Number:
        """Return the expected tokens of the most loaded expert.

        Balanced: T k / E, and at least 1. Otherwise the loads are binomial, T draws of
        probability p_e, taken as independent: E[max] = sum over x >= 0 of 1 - prod_e F_e(x).
        """
        if self.kind == "balanced":
            return maximum(tokens * (picks / experts), minimum(tokens, 1.0))
        if self.kind == "power_law":
            return _like(tokens, self._all(experts, picks, tokens).max(axis=0))
        hit = self.hit_probability(experts, picks)
        many = np.atleast_1d(np.asarray(tokens, np.float64))
        load = np.array([_mean_of_maximum(hit, float(t)) for t in many])
        return load if is_array(tokens) else float(load[0])

    def imbalance(self, experts: int, picks: int, tokens: Number, devices: int) -> Number:
        """Return the load of the fullest of `devices` devices over the mean load, >= 1.

        Experts are dealt to devices in order of popularity, round and round, as a placement that
        knows it would.
        """
        if devices == 1 or self.kind == "balanced":
            return 1.0
        if self.kind == "power_law":
            counts = self.counts(experts, picks, tokens, devices)
            assert counts is not None
            mean = np.asarray(tokens, np.float64) * picks / devices
            return _like(tokens, np.maximum(counts.sum(axis=0) / mean, 1.0))
        hit = self.hit_probability(experts, picks)
        many = np.atleast_1d(np.asarray(tokens, np.float64))
        per_device = np.bincount(np.arange(experts) % devices, weights=hit, minlength=devices)
        variance = np.bincount(
            np.arange(experts) % devices, weights=hit * (1.0 - hit), minlength=devices
        )
        top = _median_of_normals(
            per_device[:, None] * many, variance[:, None] * many, many * min(picks, experts)
        )
        ratio: Array = np.maximum(top * devices / (many * min(picks, experts)), 1.0)
        return ratio if is_array(tokens) else float(ratio[0])


def _like(tokens: Number, values: Array) -> Number:
    """Return a value for each point, or a float where the tokens are one."""
    return np.asarray(values, np.float64) if is_array(tokens) else float(values[0])


@lru_cache(maxsize=64)
def _likely(
    routing: Routing, experts: int, picks: int, tokens: tuple[float, ...], devices: int
) -> Array:
    hit = routing.hit_probability(experts, picks)
    own = -(-experts // devices)
    dealt = np.zeros(own * devices)
    dealt[:experts] = hit
    chance = (dealt.reshape(own, devices).sum(axis=1) / devices)[:, None]
    many = np.array(tokens)
    if routing.fullest:
        chance = chance * routing.imbalance(experts, picks, many, devices)
    whole = np.maximum(np.rint(many), 1.0)
    total = np.clip(np.rint(many * chance.sum(axis=0)), 1.0, own * whole)
    return likely(chance, whole, total)


@lru_cache(maxsize=64)
def _drawn(
    experts: int,
    picks: int,
    tokens: tuple[float, ...],
    skew: float,
    seed: int,
    devices: int,
    fullest: bool,
) -> Array:
    device = None if fullest else 0
    draws = [
        on_device(
            power_law(experts, picks, np.array(tokens), skew, seed=seed, draw=i), devices, device
        )
        for i in range(DRAWS)
    ]
    return typical(draws)


def _mean_of_maximum(hit: Array, tokens: float) -> float:
    """Return the mean of the maximum of independent binomials of `tokens` draws each.

    F(x) = I_{1-p}(n - x, x + 1), the regularised incomplete beta function. Below eight deviations
    under the largest mean F is 0 and above eight it is 1; where more than 512 values lie between,
    the sum is taken over 512 of them, evenly spaced.
    """
    from scipy.special import betainc

    distinct, counts = np.unique(hit, return_counts=True)
    if distinct[-1] >= 1.0:
        return tokens
    mean = tokens * distinct[-1]
    spread = 8.0 * np.sqrt(mean) + 8.0
    low = np.floor(max(mean - spread, 0.0))
    high = np.ceil(min(mean + spread, tokens))
    x = np.unique(np.floor(np.linspace(low, high, int(min(high - low + 1, 512)))))
    inside = np.minimum(x, tokens - 1e-9)
    below = betainc(tokens - inside, inside + 1.0, 1.0 - distinct[:, None])
    below[:, x >= tokens] = 1.0
    above = 1.0 - np.exp(counts @ np.log(np.maximum(below, 1e-300)))
    steps = np.diff(np.append(x, high))
    return float(low + above @ steps)


def _median_of_normals(mean: Array, variance: Array, most: Array) -> Array:
    """Return the median of the maximum of independent normals, (points,), by bisection.

    Args:
        mean: Means, (variables, points).
        variance: Variances, (variables, points).
        most: Largest possible value of each point, (points,).
    """
    from scipy.special import log_ndtr

    deviation = np.sqrt(np.maximum(variance, 1e-300))
    low: npt.NDArray[np.float64] = mean.max(axis=0)
    high = np.maximum(np.minimum(most, (mean + 8.0 * deviation).max(axis=0)), low)
    half = np.log(0.5)
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = log_ndtr((middle - mean) / deviation).sum(axis=0) < half
        low = np.where(below, middle, low)
        high = np.where(below, high, middle)
    middle = 0.5 * (low + high)
    return np.asarray(middle, np.float64)


def routing_of(raw: object) -> Routing:
    """Return a routing as it is written: a word such as `zipf_0.8`, or a mapping of its fields.

    Raises:
        ConfigError: If it is neither, or has an unknown key.
        WorkloadError: If a value makes no sense.
    """
    if isinstance(raw, Routing):
        return raw
    if isinstance(raw, str):
        return Routing.named(raw)
    known = ("kind", "skew", "fullest", "locality")
    if not isinstance(raw, Mapping):
        raise ConfigError.one(rule="a routing is due", value=raw, remedy="Write uniform.")
    for key in raw:
        if key not in known:
            near = nearest(str(key), known)
            guess = f"Did you mean {near!r}? " if near else ""
            rule = f"a routing has no key {show(key)}"
            raise ConfigError.one(rule=rule, remedy=f"{guess}Known: {', '.join(known)}.")
    return Routing(**raw)
