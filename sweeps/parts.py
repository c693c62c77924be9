"""The Parquet parts of a folder of results: which count, and which of their rows.

A part is never changed. Its name is `part-<lowest point>-<token>.parquet`; a token that begins with
m says that the part was merged from others (`compact`). A merged part names those in its metadata
(`opbyte.replaces`), so that the one rename that puts it in its place also takes them out of sight:
a part counts while no merged part beside it replaces it, whether or not it has been removed yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError
from opbyte.sweeps.files import check_regular, read_json
from opbyte.sweeps.migrate import check_schema
from opbyte.sweeps.stored_shape import check_columns

__all__ = [
    "REPLACES",
    "SCHEMA_KEY",
    "Part",
    "Place",
    "Vanished",
    "is_merged",
    "live",
    "paths",
    "places",
    "steadily",
]

Ids = npt.NDArray[np.int64]
Answer = TypeVar("Answer")

REPLACES = b"opbyte.replaces"
SCHEMA_KEY = b"opbyte.schema"
KEY = b"opbyte.key"
_MERGED = "part-*-m*.parquet"
_TRIES = 50
_MOST_REASON = 160
_MOST_DIGITS = 9


class Vanished(Exception):  # noqa: N818  caught and tried again, no error
    """A part is gone: it was merged with others after the folder was listed."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        path: The file.
        rows: Its rows.
        low: The lowest of its points.
        high: The highest of its points.
        schema: The schema that it was written with; rows are sorted by point, and each point is
            there once, from 2 on.
    """

    path: Path
    rows: int
    low: int
    high: int
    schema: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rows of a part go among all rows, sorted by point, each point once.

    Attributes:
        part: The part.
        rows: Which of its rows, None for all.
        at: Their positions among all rows.
    """

    part: Part
    rows: Ids | None
    at: slice | Ids


def steadily(folder: Path, answer: Callable[[list[Path]], Answer]) -> Answer:
    """Return an answer from the parts of a folder; ask again while parts are being merged.

    Raises:
        ConfigError: If a part is damaged, or parts never stop to vanish.
    """
    for _ in range(_TRIES):
        try:
            return answer(paths(folder))
        except Vanished:
            continue
    rule = "parts vanish while they are read"
    raise ConfigError.one(str(folder), "", rule, "", "Run it again when nothing writes here.")


def paths(folder: Path) -> list[Path]:
    """Return the files of the parts that count.

    A listing of a folder that changes may lack both a merged part, which came after its place in
    the listing, and those that it replaces, which went before theirs. A second listing then has
    the merged part: two equal listings lack nothing.
    """
    points = folder / "points"
    before: list[Path] | None = None
    while True:
        found = sorted(points.glob("part-*.parquet"))
        if found == before:
            break
        before = found
    try:
        gone = replaced(found)
    except Vanished:
        return paths(folder)
    return [path for path in found if path.name not in gone]


def replaced(found: Sequence[Path]) -> set[str]:
    """Return the names of the parts that merged parts among `found` replace.

    Raises:
        ConfigError: If a merged part says that in no list of names, or names itself.
    """
    gone: set[str] = set()
    for path in found:
        if is_merged(path):
            kept = (metadata(path).metadata or {}).get(REPLACES, b"[]")
            try:
                names = json.loads(kept)
            except ValueError:
                names = None
            strings = isinstance(names, list) and all(isinstance(n, str) for n in names)
            if not strings or path.name in names:
                raise _damaged(path, f"{REPLACES.decode()} is no list of other parts")
            gone |= set(names)
    return gone


def is_merged(path: Path) -> bool:
    """Return whether a part was merged from others."""
    return path.match(_MERGED)


def metadata(path: Path) -> Any:
    """Return the footer of a part."""
    import pyarrow.parquet as pq

    return read(path, lambda p: pq.ParquetFile(p).metadata)


def names(path: Path) -> list[str]:
    """Return the columns of a part."""
    return list(metadata(path).schema.names)


def live(files: Sequence[Path]) -> list[Part]:
    """Return parts with what their footers say, sorted by their lowest point.

    Raises:
        ConfigError: If a part is damaged, newer than this program, or of another study than the
            folder that it lies in.
    """
    told = {folder: _told(folder) for folder in {path.parent.parent for path in files}}
    found = [_part(path, told[path.parent.parent]) for path in files]
    return sorted(found, key=lambda part: (part.low, part.path.name))


def _told(folder: Path) -> dict[str, Any]:
    """Return what a folder's `study.json` says; nothing where none can be read."""
    try:
        found = read_json(folder / "study.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _part(path: Path, told: Mapping[str, Any]) -> Part:
    footer = metadata(path)
    said = footer.metadata or {}
    written = said.get(SCHEMA_KEY, b"1")
    if not written.isdigit() or len(written) > _MOST_DIGITS:
        raise _damaged(path, f"{SCHEMA_KEY.decode()} is no number")
    schema = int(written)
    check_schema(schema, str(path), SCHEMA_KEY.decode())
    key = str(told.get("key", "")).encode(errors="replace")
    if key and said.get(KEY, key) != key:
        rule = "this part holds points of another study than study.json"
        remedy = "Move it to a folder of its own; each study has one."
        name = said.get(b"opbyte.name", b"?").decode(errors="replace")
        raise ConfigError.one(str(path), "", rule, name, remedy)
    try:
        check_columns(read(path, lambda _: footer.schema.to_arrow_schema()), told)
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    column = footer.schema.names.index("point")
    groups = [footer.row_group(i).column(column).statistics for i in range(footer.num_row_groups)]
    if any(g is not None and g.null_count for g in groups):
        raise _damaged(path, "some of its rows have no point")
    if all(g is not None and g.has_min_max for g in groups) and groups:
        low, high = min(g.min for g in groups), max(g.max for g in groups)
    else:
        points = ids(path)
        low, high = (int(points.min()), int(points.max())) if len(points) else (0, -1)
    return Part(path, footer.num_rows, low, high, schema)


def places(parts: Sequence[Part]) -> tuple[list[Place], int, Ids]:
    """Return where the rows of parts go, how many rows there are, and which points are doubled.

    Points are read of those parts alone whose ranges overlap. Of a point that several parts hold
    the first part's row stays.

    Args:
        parts: Sorted by their lowest point.
    """
    found: list[Place] = []
    doubled: list[Ids] = [np.zeros(0, dtype=np.int64)]
    start = 0
    for cluster in _clusters(parts):
        if len(cluster) == 1 and cluster[0].schema > 1:
            rows = cluster[0].rows
            found.append(Place(cluster[0], None, slice(start, start + rows)))
            start += rows
            continue
        points = [ids(part.path) for part in cluster]
        unique, first, count = np.unique(
            np.concatenate(points), return_index=True, return_counts=True
        )
        doubled.append(unique[count > 1])
        ends = np.cumsum([0, *map(len, points)])
        owner = np.searchsorted(ends, first, side="right") - 1
        for i, part in enumerate(cluster):
            at = np.flatnonzero(owner == i)
            found.append(Place(part, first[at] - ends[i], start + at))
        start += len(unique)
    return found, start, np.concatenate(doubled)


def _clusters(parts: Sequence[Part]) -> list[list[Part]]:
    """Return parts grouped so that ranges of points overlap within groups only."""
    groups: list[list[Part]] = []
    high = -1
    for part in parts:
        if groups and part.low <= high:
            groups[-1].append(part)
        else:
            groups.append([part])
        high = max(high, part.high)
    return groups


def ids(path: Path) -> Ids:
    """Return the points of a part, in the order of its rows."""
    points: Ids = table(path, ["point"])["point"].to_numpy().astype(np.int64)
    return points


def table(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Return the rows of a part as an Arrow table, in the order of the file."""
    import pyarrow.parquet as pq

    wanted = None if columns is None else list(columns)

    def whole(file: Path) -> Any:
        return pq.ParquetFile(file, pre_buffer=False).read(columns=wanted, use_threads=False)

    return read(path, whole)


def read(path: Path, how: Callable[[Path], Answer]) -> Answer:
    """Return what a part holds.

    Raises:
        ConfigError: If it is damaged.
    """
    import pyarrow as pa

    try:
        check_regular(path)
        return how(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise _damaged(path, "it is a link that leads nowhere") from None
        raise Vanished from None
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise _damaged(path, reason[:_MOST_REASON]) from None


def _damaged(path: Path, reason: str) -> ConfigError:
    rule = f"this part can not be read ({reason})"
    remedy = "Remove it and run the study again: only its points are computed anew."
    return ConfigError.one(str(path), "", rule, "", remedy)
