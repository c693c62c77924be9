"""In which order a search asked for its points: `order.json` beside the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from opbyte.sweeps.files import read_json, write_json
from opbyte.sweeps.space import Ids

__all__ = ["ORDER", "read_order", "write_order"]

ORDER = "order.json"


def write_order(folder: Path, points: Sequence[int]) -> None:
    """Write the ids of a search's points, first asked first."""
    write_json(folder / ORDER, {"points": list(points)})


def read_order(folder: Path) -> Ids | None:
    """Return the ids of a search's points in order, or None where no search left any."""
    try:
        points = read_json(folder / ORDER)["points"]
        return np.array(points, dtype=np.int64)
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None
