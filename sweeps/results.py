"""Stored results, read: whole, by columns, or no more than the front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError
from opbyte.sweeps import parts
from opbyte.sweeps.files import read_json
from opbyte.sweeps.migrate import migrated
from opbyte.sweeps.pareto import front_of
from opbyte.sweeps.rows import Words
from opbyte.sweeps.stored_shape import check_meta

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Results", "arrays", "objects", "open_results"]


@dataclass(frozen=True)
class Results:
    """A folder of results.

    Attributes:
        folder: The folder.
        meta: What `study.json` holds.
    """

    folder: Path
    meta: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Return the study's name."""
        return str(self.meta["name"])

    @property
    def objectives(self) -> dict[str, str]:
        """Return column -> min or max."""
        return dict(self.meta["study"].get("objectives", {}))

    @property
    def axes(self) -> list[str]:
        """Return the columns of the axes."""
        return list(self.meta["axes"])

    @property
    def units(self) -> dict[str, str]:
        """Return the SI unit of each column that has one."""
        return dict(self.meta["units"])

    @property
    def dimensions(self) -> dict[str, str]:
        """Return the dimension of each column that has one."""
        return dict(self.meta["dimensions"])

    @property
    def study(self) -> dict[str, Any]:
        """Return the study as written, with its name."""
        hidden = ("machines", "files")
        own = {k: v for k, v in self.meta["study"].items() if k not in hidden}
        about = {"name": self.name, "description": self.meta.get("description", "")}
        return {**about, **own}

    @property
    def parts(self) -> list[Path]:
        """Return the stored parts that count."""
        return parts.paths(self.folder)

    @property
    def names(self) -> list[str]:
        """Return the columns that are stored."""
        return parts.steadily(self.folder, _names)

    def columns(self, names: Iterable[str] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Return columns as arrays, sorted by point; texts are object arrays."""
        return {
            name: objects(column) if isinstance(column, Words) else column
            for name, column in self._read(names).items()
        }

    def frame(self, names: Iterable[str] | None = None) -> pd.DataFrame:
        """Return all points: one row each, sorted by id, axis values and metrics in SI units.

        Args:
            names: Columns, by default all; `point` is always the first.
        """
        import pandas as pd

        columns = self._read(names)
        return pd.DataFrame({n: _series(v) for n, v in columns.items()}, copy=False)

    def query(self, sql: str, memory: float | None = None) -> pd.DataFrame:
        """Return what one SELECT over the table `points` finds; the rows stay on the disk.

        Args:
            sql: DuckDB's SQL. Names of columns that hold dots stand in double quotes.
            memory: Bytes that DuckDB may take; more is done on the disk.

        Raises:
            ConfigError: If DuckDB is missing or refuses the query, or it is no SELECT.
        """
        from opbyte.sweeps.query import queried

        frame: pd.DataFrame = queried(self, sql, memory).to_pandas()
        return frame

    def front(self, objectives: Mapping[str, str] | None = None) -> pd.DataFrame:
        """Return the rows of the front, as `ob.front` does of all rows, without holding them.

        Args:
            objectives: Column -> min or max, by default the study's.
        """
        asked = self.objectives if objectives is None else objectives
        return parts.steadily(self.folder, lambda files: self._front(files, asked))

    def _front(self, files: Sequence[Path], objectives: Mapping[str, str]) -> pd.DataFrame:
        stored = _names(files)
        # Unknown names and directions are errors before anything is read.
        front_of({name: np.zeros(0) for name in stored}, objectives)
        judged = ["point", *(n for n in ("status", "violation", *objectives) if n in stored)]
        best: dict[str, npt.NDArray[Any]] = {}
        for part in parts.live(files):
            found = arrays(part.path, judged)
            nothing = np.full(part.rows, np.nan)
            some = {n: objects(found.get(n, nothing)) for n in judged}
            both = {n: np.concatenate([best.get(n, v[:0]), v]) for n, v in some.items()}
            order = np.argsort(both["point"], kind="stable")
            both = {n: v[order] for n, v in both.items()}
            kept = front_of(both, objectives)
            best = {n: v[kept] for n, v in both.items()}
        points = best.get("point", np.zeros(0, dtype=np.int64))
        return _rows(files, points).set_index("point").loc[points].reset_index()

    def _read(self, names: Iterable[str] | None) -> dict[str, npt.NDArray[Any] | Words]:
        asked = None if names is None else ["point", *names]
        return parts.steadily(self.folder, lambda files: _filled(files, asked))

    @cached_property
    def counts(self) -> dict[str, int]:
        """Return the number of points of each status."""
        status = self._read(["status"]).get("status")
        if not isinstance(status, Words):
            return {}
        counts = np.bincount(status.codes[status.codes >= 0], minlength=len(status.texts))
        found = zip(status.texts, counts.tolist(), strict=True)
        return {name: count for name, count in sorted(found) if count}


Columns = dict[str, npt.NDArray[Any] | Words]


def _names(files: Sequence[Path]) -> list[str]:
    """Return the columns of all parts; some have columns that others lack."""
    return list(dict.fromkeys(name for file in files for name in parts.names(file)))


def _filled(files: Sequence[Path], names: Iterable[str] | None) -> Columns:
    """Return columns of all rows, sorted by point, each point once.

    Parts are read one after the other into arrays of the final size. Rows of a part that lacks a
    column hold NaN or "" there: objectives may have changed since it was written.
    """
    found, rows, _ = parts.places(parts.live(files))
    whole: dict[str, npt.NDArray[Any]] = {}
    texts: dict[str, dict[str, int]] = {}
    for i, place in enumerate(found):
        columns = arrays(place.part.path, names)
        for name in whole.keys() - columns.keys():
            whole[name][place.at] = -1 if name in texts else np.nan
        for name, column in columns.items():
            if isinstance(column, Words):
                known = texts.setdefault(name, {})
                codes = [known.setdefault(text, len(known)) for text in column.texts]
                values: npt.NDArray[Any] = np.array([*codes, -1], dtype=np.int32)[column.codes]
            else:
                values = column
            if name not in whole and i:
                whole[name] = np.full(rows, -1 if name in texts else np.nan, dtype=values.dtype)
            elif name not in whole:
                whole[name] = np.empty(rows, dtype=values.dtype)
            whole[name][place.at] = values if place.rows is None else values[place.rows]
    if not whole:
        return {"point": np.zeros(0, dtype=np.int64)}
    return {n: Words(v, tuple(texts[n])) if n in texts else v for n, v in whole.items()}


def _rows(files: Sequence[Path], points: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Return all columns of a few points, sorted by point."""
    import pandas as pd

    found, _, _ = parts.places(parts.live(files))
    pieces = []
    for place in found:
        part = place.part
        if np.any((points >= part.low) & (points <= part.high)):
            chosen = np.flatnonzero(np.isin(parts.ids(part.path), points))
            if place.rows is not None:
                chosen = chosen[np.isin(chosen, place.rows)]
            columns = arrays(part.path, None, chosen)
            pieces.append(pd.DataFrame({n: _series(v) for n, v in columns.items()}))
    if not pieces:
        empty = arrays(files[0], None, points[:0]) if files else {"point": points[:0]}
        return pd.DataFrame({n: _series(v) for n, v in empty.items()})
    return pd.concat(pieces, ignore_index=True)


def arrays(
    path: Path, names: Iterable[str] | None, rows: npt.NDArray[np.int64] | None = None
) -> Columns:
    """Return columns of one part, by default all, of all its rows or of some."""
    table = parts.table(path, None if names is None else list(dict.fromkeys(names)))
    if rows is not None:
        table = table.take(rows)
    return {name: _array(table[name]) for name in table.column_names}


def _array(column: Any) -> npt.NDArray[Any] | Words:
    """Return an Arrow column as an array, or as texts where it holds some."""
    import pyarrow as pa

    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = (
            whole.unify_dictionaries().chunk(0) if whole.num_chunks else pa.array([], whole.type)
        )
    if pa.types.is_string(whole.type) or pa.types.is_large_string(whole.type):
        whole = whole.dictionary_encode()
    if not pa.types.is_dictionary(whole.type):
        values: npt.NDArray[Any] = whole.to_numpy(zero_copy_only=False)
        return values
    # A merged part holds nothing where one of its parts lacked the column.
    codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return Words(codes, tuple(whole.dictionary.to_pylist()))


def objects(column: npt.NDArray[Any] | Words) -> npt.NDArray[Any]:
    """Return a column as an array; texts as objects, each distinct text once."""
    if not isinstance(column, Words):
        return column
    return np.array([*column.texts, ""], dtype=object)[column.codes]


def _series(column: npt.NDArray[Any] | Words) -> Any:
    """Return a column as pandas holds it."""
    import pandas as pd

    if not isinstance(column, Words):
        return column
    return pd.Series([*column.texts, ""]).array.take(column.codes)


def open_results(folder: str | Path) -> Results:
    """Return the results in a folder; those of an older schema are migrated, in memory.

    Raises:
        ConfigError: If it holds none, study.json is not what it should be, or its schema is newer
            than this program.
    """
    folder = Path(folder)
    file = folder / "study.json"
    if folder.is_file():
        raise ConfigError.one(str(folder), "", "a folder of results is due here, this is a file")
    try:
        meta = read_json(file)
        missing = {"name", "key", "study", "axes", "units"} - set(meta)
    except FileNotFoundError:
        rule = "there are no results in this folder"
        remedy = f"Run `opbyte sweep STUDY.yaml --out {folder}` first."
        raise ConfigError.one(str(folder), "", rule, "", remedy) from None
    except PermissionError:
        rule = "study.json may not be read"
        raise ConfigError.one(str(file), "", rule, "", "Ask its owner for the right.") from None
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        rule = f"study.json can not be read ({reason})"
        raise ConfigError.one(str(file), "", rule, "", "Run the study with --fresh.") from None
    if missing:
        rule = f"study.json lacks {', '.join(sorted(missing))}"
        raise ConfigError.one(str(file), "", rule, "", "Run the study with --fresh.")
    current = migrated(meta, str(file))
    check_meta(current, str(file))
    return Results(folder, current)
