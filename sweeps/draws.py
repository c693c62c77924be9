"""Values drawn from the ranges of parameters, the same draw for the same doubt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy.stats.qmc import Sobol

from opbyte.core.ops import Array
from opbyte.core.parameters import Parameter

__all__ = ["Draws", "doubt", "evenly", "from_range"]

#: What a doubt is about: dimension, value, range and source.
Doubt = tuple[str, float, tuple[float, float], str]


def evenly(count: int, samples: int, seed: int) -> Array:
    """Return values in [0, 1) of a scrambled Sobol sequence, (count, samples)."""
    if not count:
        return np.empty((0, samples))
    power = max(samples - 1, 1).bit_length()
    sobol = Sobol(count, rng=np.random.default_rng(seed)).random_base2(power)
    return np.ascontiguousarray(sobol[:samples].T)


def from_range(low: float, high: float, part: Array) -> Array:
    """Return values of a range at parts in [0, 1): even in the logarithm, linear from 0."""
    return low * (high / low) ** part if low > 0 else low + (high - low) * part


def doubt(parameter: Parameter) -> Doubt | None:
    """Return what a parameter's range is about, None where there is nothing to draw.

    Two parameters with equal value, range and source are one number that nobody knows, wherever
    they stand: the price of HBM on every machine that takes it from one report.
    """
    p = parameter
    if p.range is None or p.dimension == "count" or p.range[0] == p.range[1]:
        return None
    return p.dimension, p.value, p.range, p.source or ""


class Draws:
    """Common random numbers: one column for each doubt, the first sample as written."""

    def __init__(self, parameters: Iterable[Parameter], samples: int, seed: int) -> None:
        """Draw for every doubt among parameters; the order in which they come does not matter."""
        found = sorted({d for p in parameters if (d := doubt(p)) is not None})
        parts = evenly(len(found), samples, seed)
        self.samples = samples
        self.columns: Mapping[Doubt, Array] = {
            d: from_range(*d[2], part) for d, part in zip(found, parts, strict=True)
        }
        for (_, value, _, _), column in self.columns.items():
            column[0] = value

    def of(self, parameter: Parameter) -> Array | None:
        """Return a parameter's values, (samples,); None where it has no range."""
        key = doubt(parameter)
        return None if key is None else self.columns[key]
