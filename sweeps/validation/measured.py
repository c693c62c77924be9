"""Measured operators against ours: rows of real devices, through the public batch call.

The rows are read from the folder that `OPBYTE_REFERENCE` names, see `measured_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sweeps.bands import Band
from opbyte.sweeps.validation.measured_rows import TABLES, Table

__all__ = ["TABLES", "Band", "Compared", "Table", "compare"]

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "OPBYTE_REFERENCE"
#: Seeds of the samples that the catalog's parameters are medians over, and rows of each.
SEEDS, FITTED_ROWS = range(5), 300
#: Where fewer rows are left, all are compared, those that were fitted too.
FEWEST_ROWS = 100


@dataclass(frozen=True)
class Compared:
    """A table with our seconds.

    Attributes:
        rows: Columns of the batch frame, `measured` and `seconds`.
        seen: What the fit knew of these rows: `never` (another file), `left out`, or `fitted`.
    """

    table: Table
    rows: pd.DataFrame
    seen: str

    def bands(self) -> Iterator[Band]:
        """Yield the errors of all rows, of their sum where they are one layer, of each band."""
        error = 100.0 * (self.rows["seconds"] / self.rows["measured"] - 1.0).to_numpy()
        table = self.table
        inside = np.searchsorted(table.ends, self.rows[table.band].to_numpy())
        yield Band.of("all", error)
        if table.sum:
            total = self.rows[["seconds", "measured"]].sum()
            yield Band.of("sum", np.array([100.0 * (total["seconds"] / total["measured"] - 1.0)]))
        if not table.ends:
            return
        for i in range(len(table.ends) + 1):
            if (inside == i).any():
                yield Band.of(f"{table.band} {_span(table.ends, i)}", error[inside == i])


def compare(table: Table, folder: Path, machine: Machine | None = None) -> Compared | None:
    """Simulate a table's rows; None where the file is absent.

    Args:
        machine: In the place of the table's own.
    Raises:
        ConfigError: If the file can not be read, or holds no measurements.
        OpbyteError: If our machine can not run a row.
    """
    path = folder / table.file
    if not path.is_file():
        return None
    rows, seen = _read(table, path), "never"
    if table.fitted:
        count = len(rows)
        drawn = [np.random.default_rng(s).permutation(count)[:FITTED_ROWS] for s in SEEDS]
        kept = rows.drop(rows.index[np.unique(np.concatenate(drawn))])
        rows, seen = (kept, "left out") if len(kept) >= FEWEST_ROWS else (rows, "fitted")
    return Compared(
        table,
        _simulated(
            rows.reset_index(drop=True), machine or load_machine(table.machine), table.mapping
        ),
        seen,
    )


def _read(table: Table, path: Path) -> pd.DataFrame:
    """Return a table's rows.

    Raises:
        ConfigError: If the file is damaged, lacks a column, or has no rows or times that are none.
    """
    try:
        rows = table.read(path)
    except (OSError, ValueError, KeyError, EOFError) as error:
        text = f"lacks the column {error}" if isinstance(error, KeyError) else f"{error}"
        rule = f"can not be read as {table.operator}: {text:.200}"
        raise ConfigError.one(str(path), "", rule, "", "copy it again") from None
    if not len(rows):
        raise ConfigError.one(str(path), "", "has no rows", "", "copy it again")
    bad = ~(np.isfinite(rows["measured"]) & (rows["measured"] > 0.0))
    if bad.any():
        rule, at = "every measured time must be above 0", rows.index[bad][0]
        raise ConfigError.one(f"{path}: row {at}", "", rule, rows["measured"][at], "leave it out")
    return rows


def _simulated(rows: pd.DataFrame, machine: Machine, mapping: str | None) -> pd.DataFrame:
    from opbyte.sim.batch import simulate_batch

    if "host" not in rows:
        return simulate_batch(machine, rows, mapping)
    launches = [path for path in machine.values if ".launch." in path]
    hidden = machine.with_values(dict.fromkeys(launches, 0.0))
    called = rows["host"] > 0.0
    seconds = np.where(
        called,
        simulate_batch(hidden, rows)["seconds"] + rows["host"],
        simulate_batch(machine, rows)["seconds"],
    )
    return rows.assign(seconds=seconds * rows["calls"] if "calls" in rows else seconds)


def _span(ends: tuple[float, ...], i: int) -> str:
    if i == len(ends):
        return f"> {ends[-1]:,g}"
    low = ends[i - 1] + 1 if i else 1
    return f"{low:,g}" if low == ends[i] else f"{low:,g} to {ends[i]:,g}"
