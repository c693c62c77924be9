"""Measured rows of a user's own: CSV of single operators, or Parquet of NVIDIA's aiconfigurator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, OpbyteError
from opbyte.core.ops import Array
from opbyte.core.registry import lookup_error, nearest
from opbyte.sim.batch import Batch
from opbyte.sweeps import aiconfigurator
from opbyte.sweeps.calibration.classes import KINDS
from opbyte.workloads.works import WORKS, Work

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["read_rows"]

_TIME = "microseconds"
_NOT_COLUMNS = ("sources", "ranges")
#: Label of the line of names, one before the first row.
_HEAD = -1
#: Types of a work's fields that a cell gives as a number.
_NUMBERS = ("Number", "int")


def read_rows(*paths: Path) -> pd.DataFrame:
    """Return measured operators of some files, one below the other.

    A CSV has the columns `kind` (without it all rows are gemm), the fields of these kinds and
    microseconds; a field that has a default may be left empty. A Parquet file is aiconfigurator's.

    Returns:
        `kind`, the fields of these kinds, `measured` seconds, and `file`, its name.
    Raises:
        ConfigError: For a file that can not be read, a column that is missing or that no kind in
            the file has, and the first cell that makes no sense, with its line.
    """
    import pandas as pd

    frames = []
    for path in paths:
        frame = _parquet(path) if path.suffix == ".parquet" else _csv(path)
        frames.append(frame.assign(file=path.name))
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class _File:
    """A file whose cells are being read.

    Attributes:
        line: Text of the place of a row, by its label.
        time: Column of the times.
    """

    path: Path
    line: Callable[[int], str]
    time: str

    def fail(self, frame: pd.DataFrame, bad: npt.ArrayLike, column: str, rule: str) -> None:
        """Refuse the first bad cell of a column.

        Raises:
            ConfigError: If there is one.
        """
        where = np.asarray(bad, np.bool_)
        if where.any():
            at = frame.index[int(np.argmax(where))]
            value = frame[column].loc[at]
            shown = "" if value != value else str(value)
            raise ConfigError.one(self.line(int(at)), column, rule, shown, "")


def _parquet(path: Path) -> pd.DataFrame:
    file = _File(path, lambda at: f"{path}: row {at}", aiconfigurator.TIME)
    frame = aiconfigurator.read_file(path).reset_index(drop=True)
    under = {name: frame.pop(name) for name in ("benchmark",) if name in frame}
    times = frame["measured"].to_numpy(float)
    frame = frame.rename(columns={"measured": file.time})
    file.fail(frame, ~(np.isfinite(times) & (times > 0)), file.time, "must be a positive number")
    return _checked(file, frame).rename(columns={file.time: "measured"}).assign(**under)


def _csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    file = _File(path, lambda at: f"{path}:{at + 2}", _TIME)
    try:
        # Empty lines are kept until rows have their labels, which are their lines.
        frame = pd.read_csv(path, skipinitialspace=True, skip_blank_lines=False)
    except (OSError, ValueError) as error:
        raise ConfigError.one(str(path), "", f"can not be read: {error}", "", "") from None
    frame = frame.dropna(how="all")
    if "kind" not in frame:
        frame = frame.assign(kind="gemm")
    if _TIME not in frame:
        raise _lacks(file, _TIME, frame)
    times = pd.to_numeric(frame[_TIME], errors="coerce").to_numpy(float)
    file.fail(frame, ~(np.isfinite(times) & (times > 0)), _TIME, "must be a positive number")
    frame = _checked(file, frame)
    return frame.drop(columns=_TIME).assign(measured=times * 1e-6)


def _checked(file: _File, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with its sizes as numbers.

    Raises:
        ConfigError: See `read_rows`.
    """
    if frame.empty:
        raise ConfigError.one(str(file.path), "", "has no rows", "", "")
    names = frame["kind"].map(str)
    for kind in names.unique():
        if kind not in KINDS:
            at = int(frame.index[int(np.argmax(names == kind))])
            raise lookup_error("kind that can be fitted", kind, KINDS, file.line(at))
    kinds = [WORKS.lookup(kind) for kind in names.unique()]
    known = {f.name for cls in kinds for f in fields(cls)} - set(_NOT_COLUMNS)
    for column in frame.columns:
        if column not in {*known, "kind", file.time}:
            near = nearest(str(column), sorted(known))
            raise ConfigError.one(
                file.line(_HEAD), str(column),
                f"is no field of {', '.join(sorted(c.kind for c in kinds))}", "",
                f"Did you mean '{near}'?" if near else f"Known: {', '.join(sorted(known))}.",
            )  # fmt: skip
    frame = frame.copy()
    for cls in kinds:
        mine = frame[names == cls.kind]
        for column, numbers in _fields(file, cls, mine).items():
            frame.loc[mine.index, column] = numbers
    for column in known & set(frame):
        frame[column] = frame[column].infer_objects()
    _construct(file, frame)
    return frame


def _fields(file: _File, cls: type[Work], rows: pd.DataFrame) -> dict[str, Array]:
    """Return the numeric columns of the rows of one kind.

    Raises:
        ConfigError: If a cell of them is missing, is not a number, or belongs to no field.
    """
    import pandas as pd

    own = {f.name: f for f in fields(cls) if f.name not in _NOT_COLUMNS}
    for column in rows.columns:
        if column not in {*own, "kind", file.time}:
            file.fail(rows, rows[column].notna(), column, f"a {cls.kind} row has no such field")
    found = {}
    for name, one in own.items():
        needed = one.default is one.default_factory is MISSING
        if name not in rows:
            if needed:
                raise _lacks(file, name, rows, f", which {cls.kind} rows need")
            continue
        if needed:
            file.fail(rows, rows[name].isna(), name, f"a {cls.kind} row needs it")
        if one.type in _NUMBERS:
            numbers = pd.to_numeric(rows[name], errors="coerce").to_numpy(float)
            least = 0 if one.default == 0 else 1
            bad = ~(np.isfinite(numbers) & (numbers >= least) & (numbers == np.floor(numbers)))
            rule = f"must be a whole number of at least {least}"
            file.fail(rows, bad & rows[name].notna().to_numpy(), name, rule)
            found[name] = numbers
    return found


def _construct(file: _File, frame: pd.DataFrame) -> None:
    """Make the works of the rows, as `simulate_batch` does.

    Raises:
        ConfigError: With the line of the first row that makes no sense.
    """
    try:
        Batch.of(frame)
        return
    except OpbyteError:
        good, bad = 0, len(frame)
    # The first rows up to `good` make sense, those up to `bad` do not.
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            Batch.of(frame.iloc[:middle])
            good = middle
        except OpbyteError:
            bad = middle
    try:
        Batch.of(frame.iloc[good:bad])
    except OpbyteError as error:
        text = str(error).removeprefix("frame: ").rstrip(".")
        raise ConfigError.one(file.line(int(frame.index[good])), "", text) from None


def _lacks(file: _File, column: str, frame: pd.DataFrame, why: str = "") -> ConfigError:
    near = nearest(column, [str(c) for c in frame.columns])
    guess = f"Did you mean '{near}' to be '{column}'? " if near else ""
    return ConfigError.one(
        file.line(_HEAD), "", f"lacks the column {column}{why}", "",
        f"{guess}It has: {', '.join(map(str, frame.columns))}.",
    )  # fmt: skip
