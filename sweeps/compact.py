"""Merges many small parts into few large ones, safely at every moment.

Small parts that follow each other are merged: their rows, sorted by point, each point once, are
written beside them and flushed; one rename puts the merged part in its place, and with it, because
it names them (`parts`), takes the old ones out of sight; then these are removed. Killed before the
rename, nothing has happened; killed after it, the old parts are removed by the next run or
compaction. Rows are never removed before they stand elsewhere, so that none is lost, and a part
that is replaced is never read, so that none is doubled.

Runs that add parts meanwhile, and readers, need not wait. One compaction at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.sweeps import parts
from opbyte.sweeps.files import read_json, whole, write_json
from opbyte.sweeps.migrate import SCHEMA
from opbyte.sweeps.parts import Place
from opbyte.sweeps.results import open_results

__all__ = ["FULL", "MANY", "Compaction", "alone", "compact", "sweep", "tidied"]

#: Rows of a full part: some 50 MB in memory at 26 columns.
FULL = 1 << 18
#: Parts of a folder from which a run merges them at its end.
MANY = 64
_ROW_GROUP = 1 << 17


@dataclass(frozen=True, slots=True)
class Compaction:
    """What a compaction did.

    Attributes:
        before: Parts before.
        after: Parts after.
        points: Points, each counted once.
        doubled: Rows that stood there twice and were left out.
    """

    before: int
    after: int
    points: int
    doubled: int


def compact(folder: str | Path, full: int = FULL) -> Compaction:
    """Merge small parts of a folder of results, and write those of an older schema anew.

    Args:
        folder: The folder.
        full: Rows of a full part; one of at least half as many is left alone.

    Raises:
        ConfigError: If there are no results, or another compaction is at work.
        SimulationError: If there is no room, or nothing may be written.
    """
    folder = Path(folder)
    results = open_results(folder)
    if not (folder / "points").is_dir():
        rule, remedy = "its folder `points` is gone: no points are stored", "Run the study again."
        raise ConfigError.one(str(folder), "", rule, "", remedy)
    with alone(folder):
        sweep(folder)
        file = folder / "study.json"
        # A run may have written other objectives since: what has the present schema stays.
        if read_json(file).get("schema") != SCHEMA:
            write_json(file, results.meta)
        files = parts.paths(folder)
        found, points, _ = parts.places(parts.live(files))
        for group in _groups(found, full):
            _merge(folder, group)
        after = len(parts.paths(folder))
    stored = sum(place.part.rows for place in found)
    return Compaction(len(files), after, points, stored - points)


def tidied(folder: Path) -> None:
    """Merge the parts of a folder if there are many; what fails leaves them as they are."""
    if len(parts.paths(folder)) >= MANY:
        with contextlib.suppress(Exception):
            compact(folder)


def sweep(folder: Path) -> None:
    """Remove parts that others have replaced."""
    points = folder / "points"
    found = sorted(points.glob("part-*.parquet"))
    gone = parts.replaced(found)
    for path in found:
        if path.name in gone:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's points against compactions; the system lets go of it at a kill.

    Where the file system has no locks, nothing is held.

    Raises:
        ConfigError: If a compaction is at work.
    """
    handle = os.open(folder / "points", os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            rule = "another compaction is at work in this folder"
            remedy = "Run it again afterwards."
            raise ConfigError.one(str(folder), "", rule, "", remedy) from None
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def _groups(found: Sequence[Place], full: int) -> Iterator[list[Place]]:
    """Yield parts that follow each other and become one; single ones that must be written anew."""
    group: list[Place] = []
    rows = 0
    for place in found:
        own = place.part.rows if place.rows is None else len(place.rows)
        if group and rows + own > full:
            yield from _worth(group)
            group, rows = [], 0
        if own >= full // 2 and not group and not _stale(place):
            continue
        group.append(place)
        rows += own
    yield from _worth(group)


def _worth(group: list[Place]) -> Iterator[list[Place]]:
    if len(group) > 1 or any(map(_stale, group)):
        yield group


def _stale(place: Place) -> bool:
    """Return whether a part holds rows that count elsewhere, or is of an older schema."""
    doubled = place.rows is not None and len(place.rows) < place.part.rows
    return doubled or place.part.schema < SCHEMA


def _merge(folder: Path, group: Sequence[Place]) -> None:
    """Put one part in the place of several, and remove them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    points = folder / "points"
    tables = [_taken(place) for place in group]
    # Columns that some lack, as a run asked for other objectives, hold nothing there.
    table = pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()
    ids = table["point"].to_numpy()
    if np.any(np.diff(ids) < 0):
        table = table.take(np.argsort(ids, kind="stable"))
        ids = np.sort(ids)
    old = [place.part.path.name for place in group]
    kept = dict(table.schema.metadata or {})
    kept |= {parts.SCHEMA_KEY: str(SCHEMA).encode(), parts.REPLACES: json.dumps(old).encode()}
    table = table.replace_schema_metadata(kept)
    texts = [f.name for f in table.schema if pa.types.is_dictionary(f.type)]
    lowest = int(ids[0]) if len(ids) else 0
    name = f"part-{lowest:019d}-m{secrets.token_hex(4)}.parquet"
    with whole(points / name) as file:
        pq.write_table(
            table, file, compression="zstd", use_dictionary=texts or False,
            row_group_size=_ROW_GROUP,
        )  # fmt: skip
    _settle(points)
    for place in group:
        place.part.path.unlink(missing_ok=True)


def _taken(place: Place) -> Any:
    table = parts.table(place.part.path)
    return table if place.rows is None else table.take(place.rows)


def _settle(points: Path) -> None:
    """Flush a folder's names to the disk: the new name before the old ones go."""
    handle = os.open(points, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
