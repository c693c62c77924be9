"""Sobol indices: which share of a metric's variance each input causes, alone and with others.

With A and B two matrices of independent samples and AB_i A with column i of B:

    first_i = mean(f(B) (f(AB_i) - f(A))) / V        Saltelli et al., 2010
    total_i = mean((f(A) - f(AB_i))^2) / (2 V)       Jansen, 1999

V is the variance of f over A and B. A and B are the halves of one scrambled Sobol sequence.
(Comput. Phys. Commun. 181, 259 and 117, 35.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats.qmc import Sobol

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array

__all__ = ["Indices", "design", "indices"]

_RESAMPLED = 200


@dataclass(frozen=True)
class Indices:
    """Indices of inputs, (inputs,) each, with standard errors by bootstrap.

    Attributes:
        first: Share of the variance that an input causes alone.
        total: Share that it has part in.
        mean: Of the metric.
        deviation: Standard deviation of the metric.
    """

    first: Array
    total: Array
    first_error: Array
    total_error: Array
    mean: float
    deviation: float


def design(inputs: int, samples: int, seed: int) -> Array:
    """Return where to evaluate, in [0, 1), (inputs, samples (inputs + 2)): A, B, AB_1, AB_2, ...

    Raises:
        ConfigError: If `samples` is no power of two of at least 8.
    """
    if samples < 8 or samples & (samples - 1):
        rule = "must be a power of two of at least 8"
        raise ConfigError.one("", "samples", rule, samples, "Write for example 256.")
    drawn = Sobol(2 * inputs, rng=np.random.default_rng(seed)).random(samples).T
    a, b = drawn[:inputs], drawn[inputs:]
    mixed = np.repeat(a[:, None, :], inputs, axis=1)
    mixed[np.arange(inputs), np.arange(inputs)] = b
    return np.concatenate([a, b, mixed.reshape(inputs, -1)], axis=1)


def indices(values: Array, inputs: int, seed: int = 0) -> Indices:
    """Return the indices of a function from its values at the points of `design`.

    A function that does not vary has indices 0.

    Args:
        values: (samples (inputs + 2),).
    """
    table = np.asarray(values, dtype=np.float64).reshape(inputs + 2, -1)
    mean, deviation = float(table[:2].mean()), float(table[:2].std())
    if deviation <= 1e-12 * abs(mean):
        nothing = np.zeros(inputs)
        return Indices(nothing, nothing, nothing, nothing, mean, deviation)
    # Centred values make the products of the first-order estimator small, and it exact sooner.
    table = (table - mean) / deviation
    first, total = _estimates(table)
    rng = np.random.default_rng(seed)
    count = table.shape[1]
    again = [_estimates(table[:, rng.integers(count, size=count)]) for _ in range(_RESAMPLED)]
    first_error, total_error = (np.std([a[k] for a in again], axis=0) for k in (0, 1))
    return Indices(first, total, first_error, total_error, mean, deviation)


def _estimates(table: Array) -> tuple[Array, Array]:
    a, b, mixed = table[0], table[1], table[2:]
    variance = max(float(table[:2].var()), 1e-300)
    first = (b * (mixed - a)).mean(axis=1) / variance
    total = 0.5 * ((a - mixed) ** 2).mean(axis=1) / variance
    return first, total
