"""Errors of simulated rows against measured ones, whole and by band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from opbyte.core.ops import Array


@dataclass(frozen=True)
class Band:
    """Errors of the rows of one band of a table, percent.

    Attributes:
        band: Text of the band, `all` for the whole table.
        mape: Mean absolute error.
        bias: Mean signed error; above 0 where we are slower than the device.
        median, p95: Median and 95th percentile of the absolute error.
    """

    band: str
    rows: int
    mape: float
    bias: float
    median: float
    p95: float

    @classmethod
    def of(cls, band: str, error: Array) -> Self:
        """Return the statistics of signed errors in percent, (rows,)."""
        size = np.abs(error)
        return cls(
            band, len(error), float(size.mean()), float(error.mean()), float(np.median(size)),
            float(np.percentile(size, 95)),
        )  # fmt: skip
