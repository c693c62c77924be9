"""Results on disk: `study.json` and Parquet parts that are written whole or not at all.

    results/<name>/study.json            what was asked, resolved, with its key
    results/<name>/points/part-*.parquet the rows, in any order; `point` is a row's id

A part is written beside its place, flushed to the disk and renamed, so that a kill at any moment
leaves whole parts only. Parts left half written are swept away by the next run.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, Problem
from opbyte.sweeps.differences import differences
from opbyte.sweeps.rows import Rows, Words, joined

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["MOST_BUFFERED_ROWS", "Results", "Store", "open_results"]

MOST_BUFFERED_ROWS = 250_000
_FLUSH_S = 2.0
_SHOWN = 3
_MOST_REASON = 160
FORMAT = 1


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
        return dict(self.meta.get("dimensions", {}))

    @property
    def study(self) -> dict[str, Any]:
        """Return the study as written, with its name."""
        hidden = ("machines", "files")
        own = {k: v for k, v in self.meta["study"].items() if k not in hidden}
        about = {"name": self.name, "description": self.meta.get("description", "")}
        return {**about, **own}

    @property
    def parts(self) -> list[Path]:
        """Return the stored parts."""
        return sorted((self.folder / "points").glob("part-*.parquet"))

    @property
    def names(self) -> list[str]:
        """Return the columns that are stored."""
        import pyarrow.parquet as pq

        return list(_read(self.parts[0], pq.read_schema).names) if self.parts else []

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Return the rows sorted by point, each point once, as an Arrow table."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = None if columns is None else list(dict.fromkeys(["point", *columns]))
        read = partial(pq.read_table, columns=wanted, use_threads=False)
        tables = [_read(p, read) for p in self.parts]
        if not tables:
            return pa.table({"point": pa.array([], pa.int64())})
        table = pa.concat_tables(tables).unify_dictionaries()
        points = table["point"].to_numpy()
        _, first = np.unique(points, return_index=True)
        if len(first) == len(points) and bool(np.all(np.diff(points) > 0)):
            return table
        return table.take(pa.array(first))

    def columns(self, names: Iterable[str] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Return columns as arrays, sorted by point; texts are object arrays."""
        table = self.table(None if names is None else list(names))
        return {name: _array(table[name]) for name in table.column_names}

    def frame(self) -> pd.DataFrame:
        """Return all points: one row each, sorted by id, axis values and metrics in SI units."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    @cached_property
    def counts(self) -> dict[str, int]:
        """Return the number of points of each status."""
        status = self.columns(["status"]).get("status", np.array([], dtype=object))
        names, counts = np.unique(status.astype(str), return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _read(part: Path, read: Callable[[Path], Any]) -> Any:
    """Return what a part holds.

    Raises:
        ConfigError: If it is damaged.
    """
    import pyarrow as pa

    try:
        return read(part)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:_MOST_REASON]
        rule = f"this part can not be read ({reason})"
        remedy = "Remove it and run the study again: only its points are computed anew."
        raise ConfigError.one(str(part), "", rule, "", remedy) from None


def _array(column: Any) -> npt.NDArray[Any]:
    """Return a column as an array; dictionaries of texts become object arrays."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        chunks = [
            np.array(c.dictionary.to_pylist(), dtype=object)[
                c.indices.to_numpy(zero_copy_only=False)
            ]
            if len(c.dictionary)
            else np.array([], dtype=object)
            for c in column.chunks
        ]
        return np.concatenate(chunks) if chunks else np.array([], dtype=object)
    found: npt.NDArray[Any] = column.to_numpy()
    return found


def open_results(folder: str | Path) -> Results:
    """Return the results in a folder.

    Raises:
        ConfigError: If it holds none.
    """
    folder = Path(folder)
    file = folder / "study.json"
    if folder.is_file():
        raise ConfigError.one(str(folder), "", "a folder of results is due here, this is a file")
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        missing = {"name", "key", "study", "axes", "units"} - set(meta)
    except FileNotFoundError:
        rule = "there are no results in this folder"
        remedy = f"Run `opbyte sweep STUDY.yaml --out {folder}` first."
        raise ConfigError.one(str(folder), "", rule, "", remedy) from None
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        rule = f"study.json can not be read ({reason})"
        raise ConfigError.one(str(file), "", rule, "", "Run the study with --fresh.") from None
    if missing:
        rule = f"study.json lacks {', '.join(sorted(missing))}"
        raise ConfigError.one(str(file), "", rule, "", "Run the study with --fresh.")
    return Results(folder, meta)


class Store:
    """Takes rows while a study runs, and writes them in parts.

    Attributes:
        results: The folder of results.
        done: Sorted ids of the points that are stored.
    """

    def __init__(self, folder: Path, meta: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Open or create a folder of results.

        Raises:
            ConfigError: If it holds the results of something else.
        """
        self.folder = folder
        if fresh:
            _emptied(folder)
        self.results = self._opened(folder, dict(meta))
        self.done = self._stored()
        self._waiting: list[Rows] = []
        self._last = time.monotonic()

    def _opened(self, folder: Path, meta: dict[str, Any]) -> Results:
        if folder.exists() and not folder.is_dir():
            raise ConfigError.one(str(folder), "", "a folder is due here, this is a file")
        if (folder / "study.json").exists():
            found = open_results(folder)
            _check_same(found, meta)
            if found.meta != meta:
                _write_json(folder / "study.json", meta)
            return Results(folder, meta)
        if folder.is_dir() and (folder / "points").is_dir() and any(folder.glob("points/part-*")):
            rule = "this folder holds parts without study.json"
            raise ConfigError.one(str(folder), "", rule, "", "Choose another --out, or --fresh.")
        try:
            (folder / "points").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            rule = f"the folder can not be made: {error.strerror}"
            raise ConfigError.one(str(folder), "", rule, "", "Choose another --out.") from None
        _write_json(folder / "study.json", meta)
        return Results(folder, meta)

    def _stored(self) -> npt.NDArray[np.int64]:
        for stale in (self.folder / "points").glob(".*.tmp"):
            if _is_dead(stale):
                stale.unlink(missing_ok=True)
        points = self.results.columns(["point"])["point"]
        return np.unique(points.astype(np.int64))

    def missing(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return those of `ids` that are not stored, in the same order."""
        if not len(self.done):
            return ids
        at = np.searchsorted(self.done, ids)
        at[at == len(self.done)] = 0
        left: npt.NDArray[np.int64] = ids[self.done[at] != ids]
        return left

    def add(self, rows: Rows) -> None:
        """Take rows; they are on the disk at the latest after the next `flush`."""
        self._waiting.append(rows)
        many = sum(map(len, self._waiting)) >= MOST_BUFFERED_ROWS
        if many or time.monotonic() - self._last > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write all rows that wait as one part."""
        waiting, self._waiting = self._waiting, []
        self._last = time.monotonic()
        if waiting:
            self._write(joined(waiting))

    def _write(self, rows: Rows) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays: dict[str, Any] = {"point": pa.array(rows.point)}
        order = [*self.results.meta["axes"], *rows.numbers, *rows.words]
        for name in dict.fromkeys(order):
            column = rows.words.get(name)
            if column is None:
                arrays[name] = pa.array(rows.numbers[name])
            else:
                arrays[name] = _dictionary(column)
        units = self.results.units
        fields = [
            pa.field(n, a.type, metadata={"unit": units[n]} if n in units else None)
            for n, a in arrays.items()
        ]
        meta = {k: str(self.results.meta[k]) for k in ("name", "key", "code", "version")}
        schema = pa.schema(fields, metadata={f"opbyte.{k}": v for k, v in meta.items()})
        table = pa.Table.from_arrays(list(arrays.values()), schema=schema)
        texts = [n for n in arrays if n in rows.words]
        token = secrets.token_hex(4)
        temporary = self.folder / "points" / f".{os.getpid()}-{token}.tmp"
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=texts or False)
            file.flush()
            os.fsync(file.fileno())
        name = f"part-{int(rows.point.min()):019d}-{token}.parquet"
        temporary.rename(temporary.with_name(name))


def _dictionary(column: Words) -> Any:
    import pyarrow as pa

    texts = pa.array(list(column.texts), pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(column.codes, pa.int32()), texts)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


def _check_same(found: Results, meta: Mapping[str, Any]) -> None:
    """Raise if stored rows belong to another study or another version of the code."""
    if found.meta["key"] == meta["key"] and found.meta.get("code") == meta["code"]:
        return
    remedy = "Choose another folder with --out, or replace its points with --fresh."
    place = str(found.folder)
    if found.meta["key"] == meta["key"]:
        rule = "the points stored here were computed by another version of the program"
        raise ConfigError.one(place, "", rule, "", remedy)
    old = {k: v for k, v in found.meta["study"].items() if k != "objectives"}
    new = {k: v for k, v in meta["study"].items() if k != "objectives"}
    changes = differences(old, new)
    shown = "; ".join(f"{c.path}: {c.before} -> {c.after}" for c in changes[:_SHOWN])
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    rule = f"the points stored here belong to another study ({shown}{more})"
    raise ConfigError([Problem(place, "", rule, "", remedy)])


def _emptied(folder: Path) -> None:
    """Remove the results in a folder, and nothing else."""
    if not (folder / "study.json").exists() and not (folder / "points").is_dir():
        return
    for pattern in ("points/part-*.parquet", "points/.*.tmp", "study.json"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)


def _is_dead(temporary: Path) -> bool:
    """Return whether the process that was writing this file is gone."""
    pid = temporary.name.lstrip(".").partition("-")[0]
    if not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(pid) == os.getpid()
