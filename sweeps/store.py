"""Results on disk: `study.json` and Parquet parts that are written whole or not at all.

    results/<name>/study.json            what was asked, resolved, with its key
    results/<name>/points/part-*.parquet the rows, in any order; `point` is a row's id

A part is written beside its place, flushed to the disk and renamed, so that a kill at any moment
leaves whole parts only. Parts left half written are swept away by the next run. Parts are read by
`results`; which of them count says `parts`; `compact` merges them.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, Problem
from opbyte.sweeps import parts
from opbyte.sweeps.compact import alone, sweep
from opbyte.sweeps.differences import differences
from opbyte.sweeps.files import read_json, whole, write_json
from opbyte.sweeps.keys import keyed
from opbyte.sweeps.migrate import SCHEMA
from opbyte.sweeps.results import Results, open_results
from opbyte.sweeps.rows import Rows, Words, in_order, joined

__all__ = ["MOST_BUFFERED_ROWS", "Results", "Store", "open_results", "write_json"]

MOST_BUFFERED_ROWS = 250_000
_FLUSH_S = 2.0
_SHOWN = 3
#: Files that say something of the points.
_ABOUT = ("study.json", "search.json", "order.json")


class Store:
    """Takes rows while a study runs, and writes them in parts.

    Attributes:
        results: The folder of results.
        done: Sorted ids of the points that are stored.
    """

    def __init__(
        self, folder: Path, meta: Mapping[str, Any], *, fresh: bool = False, alone: bool = True
    ) -> None:
        """Open or create a folder of results.

        Args:
            folder: The folder.
            meta: What `study.json` is to hold.
            fresh: Remove what is stored.
            alone: Whether nobody else writes here; a study that stored nothing then makes way.

        Raises:
            ConfigError: If it holds the results of something else.
        """
        self.folder = folder
        if fresh:
            _emptied(folder)
        self.results = self._opened(folder, {**meta, "schema": SCHEMA}, alone)
        self.done = self._stored()
        self._waiting: list[Rows] = []
        self._last = time.monotonic()

    def _opened(self, folder: Path, meta: dict[str, Any], alone: bool) -> Results:
        if folder.exists() and not folder.is_dir():
            raise ConfigError.one(str(folder), "", "a folder is due here, this is a file")
        file = folder / "study.json"
        stored = any(folder.glob("points/part-*"))
        if file.exists() and (stored or not alone):
            _check_same(open_results(folder), meta)
            if read_json(file) != meta:
                write_json(file, meta)
            return Results(folder, meta)
        if stored and not file.exists():
            rule = "this folder holds parts without study.json"
            raise ConfigError.one(str(folder), "", rule, "", "Choose another --out, or --fresh.")
        try:
            (folder / "points").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            rule = f"the folder can not be made: {error.strerror}"
            raise ConfigError.one(str(folder), "", rule, "", "Choose another --out.") from None
        write_json(folder / "study.json", meta)
        return Results(folder, meta)

    def _stored(self) -> npt.NDArray[np.int64]:
        for stale in (self.folder / "points").glob(".*.tmp"):
            if _is_dead(stale):
                stale.unlink(missing_ok=True)
        sweep(self.folder)
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
        """Write all rows that wait as one part, sorted by point, each point once."""
        waiting, self._waiting = self._waiting, []
        self._last = time.monotonic()
        if waiting:
            self._write(in_order(joined(waiting)))

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
        named = {f"opbyte.{k}".encode(): v for k, v in meta.items()}
        schema = pa.schema(fields, metadata={**named, parts.SCHEMA_KEY: str(SCHEMA)})
        table = pa.Table.from_arrays(list(arrays.values()), schema=schema)
        texts = [n for n in arrays if n in rows.words]
        token = secrets.token_hex(4)
        name = f"part-{int(rows.point[0]):019d}-{token}.parquet"
        with whole(self.folder / "points" / name) as file:
            pq.write_table(table, file, compression="zstd", use_dictionary=texts or False)


def _dictionary(column: Words) -> Any:
    import pyarrow as pa

    texts = pa.array(list(column.texts), pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(column.codes, pa.int32()), texts)


def _check_same(found: Results, meta: Mapping[str, Any]) -> None:
    """Raise if stored rows belong to another study or another version of the code."""
    if found.meta["key"] == meta["key"] and found.meta.get("code") == meta["code"]:
        return
    remedy = "Choose another folder with --out, or replace its points with --fresh."
    place = str(found.folder)
    if found.meta["key"] == meta["key"]:
        rule = "the points stored here were computed by another version of the program"
        raise ConfigError.one(place, "", rule, "", remedy)
    changes = differences(keyed(found.meta["study"]), keyed(meta["study"]))
    shown = "; ".join(f"{c.path}: {c.before} -> {c.after}" for c in changes[:_SHOWN])
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    rule = f"the points stored here belong to another study ({shown}{more})"
    raise ConfigError([Problem(place, "", rule, "", remedy)])


def _emptied(folder: Path) -> None:
    """Remove the results in a folder, and nothing else.

    Raises:
        ConfigError: If its points are elsewhere, or a compaction is at work on them.
    """
    if not (folder / "study.json").exists() and not (folder / "points").is_dir():
        return
    if (folder / "points").is_symlink():
        rule = "points behind a link are not removed, they may be those of other results"
        raise ConfigError.one(str(folder / "points"), "", rule, "", "Choose another --out.")
    (folder / "points").mkdir(exist_ok=True)
    with alone(folder):  # a compaction would put old points among the new ones
        for pattern in ("points/part-*.parquet", "points/.*.tmp", *_ABOUT):
            for file in folder.glob(pattern):
                file.unlink(missing_ok=True)


def _is_dead(temporary: Path) -> bool:
    """Return whether the process that was writing this file is gone; elsewhere nobody knows."""
    pid, _, rest = temporary.stem.lstrip(".").partition("-")
    host = rest.partition("-")[2]
    if not pid.isdigit():
        return True
    if host and host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(pid) == os.getpid()
