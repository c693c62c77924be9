"""Pages that go round several memories: rate of a stream, and the weights that make it fastest.

A stream of B bytes whose pages lie in memory i by the share w_i takes

    seconds = max over i of w_i B / r_i        rate = min over i of r_i / w_i

(round robin is w_i = 1 / n, where the slowest decides: n min r_i). With shares in proportion to the
rates all memories end together, at the sum of the rates. Operating systems take whole weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from opbyte.core.errors import ConfigError

__all__ = ["best_shares", "interleaved_rate", "round_robin", "whole_weights"]


def round_robin(rates: Mapping[str, float]) -> dict[str, float]:
    """Return equal shares of all memories."""
    _check(rates)
    return dict.fromkeys(rates, 1.0 / len(rates))


def best_shares(rates: Mapping[str, float]) -> dict[str, float]:
    """Return the shares with which all memories end together.

    Args:
        rates: Memory -> bytes/s of all its instances.
    Raises:
        ConfigError: If there are none, or a rate is not above 0.
    """
    _check(rates)
    total = sum(rates.values())
    return {name: rate / total for name, rate in rates.items()}


def interleaved_rate(rates: Mapping[str, float], shares: Mapping[str, float]) -> float:
    """Return the rate of a stream, bytes/s.

    Raises:
        ConfigError: If shares do not add up to 1, or name another memory.
    """
    _check(rates)
    unknown = sorted(set(shares) - set(rates))
    if unknown:
        raise ConfigError.one("", "shares", "must name memories with a rate", unknown[0])
    if abs(sum(shares.values()) - 1.0) > 1e-9 or min(shares.values()) < 0.0:
        rule = "must not be below 0, and add up to 1"
        raise ConfigError.one("", "shares", rule, f"{sum(shares.values()):g}")
    return min(rates[name] / share for name, share in shares.items() if share > 0.0)


def whole_weights(rates: Mapping[str, float], most: int = 16) -> dict[str, int]:
    """Return whole weights, at most so large, with which a stream is fastest; of equals the least.

    Pages go round as many times as the weights say: Linux's weighted interleave takes 0 to 255.

    Raises:
        ConfigError: If `most` is below 1.
    """
    _check(rates)
    if most < 1:
        raise ConfigError.one("", "most", "must be a whole number from 1 on", most)
    best: tuple[float, dict[str, int]] = (0.0, {})
    # The slowest of a turn ends it after top / rate; all others fill that time with whole pages.
    for period in sorted({top / rate for rate in rates.values() for top in range(1, most + 1)}):
        weights = {n: min(most, math.floor(r * period * (1 + 1e-12))) for n, r in rates.items()}
        total = sum(weights.values())
        rate = interleaved_rate(rates, {n: w / total for n, w in weights.items()})
        if rate > best[0] * (1.0 + 1e-12):
            best = rate, weights
    return best[1]


def _check(rates: Mapping[str, float]) -> None:
    if not rates:
        raise ConfigError.one("", "rates", "needs at least one memory", "")
    for name, rate in rates.items():
        if not 0.0 < rate < math.inf:
            raise ConfigError.one("", f"rates.{name}", "must be above 0", rate)
