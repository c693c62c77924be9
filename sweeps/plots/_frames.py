"""Whatever holds design points, as a frame with a status column."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from opbyte.core.errors import ConfigError
from opbyte.core.registry import nearest
from opbyte.sim.result import Result
from opbyte.sweeps.plots._quantities import show
from opbyte.sweeps.store import Results

#: Metrics of which more is better; for all others less is.
MORE_IS_BETTER = frozenset(
    {
        "tokens_per_s",
        "requests_per_s",
        "goodput_per_s",
        "speedup",
        "op_per_byte",
        "hit_rate",
        "models_in_fast",
        "models_max",
    }
)
OK = "ok"
#: Status of a point that has a result, but not one that was asked for.
BEYOND = "beyond a constraint"
#: Between words that stay in one line.
_FIXED = "\N{NO-BREAK SPACE}"


Points: TypeAlias = "pd.DataFrame | Results | Mapping[str, Result] | Iterable[Result]"


def frame_of(data: Points) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a frame of design points with a `status` column, and the study, if there is one.

    The study is as written, with its name, and the columns of its axes as `columns`.

    Args:
        data: Frame, result store, results by name, or results.
    Raises:
        ConfigError: If there is no point at all.
    """
    study: dict[str, Any] = {}
    if isinstance(data, pd.DataFrame):
        frame = data.copy()
    elif isinstance(data, Results):
        frame, study = data.frame(), {**data.meta["study"], "name": data.name}
        study["columns"] = data.axes
    else:
        frame = pd.DataFrame(
            [{"name": n, "machine": r.machine, **r.metrics} for n, r in named(data).items()]
        )
    if frame.empty:
        raise ConfigError.one("", "", "a plot needs at least one design point", "none", "")
    if "status" not in frame:
        frame["status"] = OK
    if "violation" in frame:
        broken = (frame["status"] == OK) & (frame["violation"] > 0)
        frame["status"] = frame["status"].astype(object).mask(broken, BEYOND)
    return frame.reset_index(drop=True), study


def named(results: Result | Mapping[str, Result] | Iterable[Result]) -> dict[str, Result]:
    """Return results by a name that tells them apart."""
    if isinstance(results, Result):
        return {f"{results.machine}, {results.work}": results}
    if isinstance(results, Mapping):
        return dict(results)
    found: dict[str, Result] = {}
    for result in results:
        parts = (result.machine, result.work, result.fidelity)
        names = [", ".join(parts[:2]), ", ".join(parts)]
        free = [n for n in names if n not in found]
        found[free[0] if free else f"{names[1]} ({len(found) + 1})"] = result
    return found


def column(frame: pd.DataFrame, name: str) -> str:
    """Return a column's full name; its last words do where they are unambiguous.

    Raises:
        ConfigError: If there is none, with the nearest name.
    """
    if name in frame:
        return name
    ends = [str(c) for c in frame if str(c).endswith(f".{name}")]
    if len(ends) == 1:
        return ends[0]
    known = [str(c) for c in frame]
    guess = nearest(name, known)
    raise ConfigError.one(
        "",
        name,
        "no column is called so" if not ends else f"several columns end so: {', '.join(ends)}",
        name,
        f"did you mean '{guess}'?" if guess else f"known: {', '.join(known)}",
    )


def numbers(frame: pd.DataFrame, name: str) -> npt.NDArray[np.float64]:
    """Return a column as floats, NaN where it holds none."""
    return pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64)


def numeric(frame: pd.DataFrame, name: str) -> bool:
    """Return whether every present value of a column is a number."""
    values = frame[name]
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_string_dtype(values):
        return False
    if pd.api.types.is_numeric_dtype(values):
        return bool(values.notna().any())
    present = values.dropna()
    words = present.map(lambda v: isinstance(v, (bool, str)))
    return len(present) > 0 and not words.any() and bool(pd.to_numeric(present).notna().all())


def cell(value: Any, name: str) -> str:
    """Return one value of a column as text, numbers with their unit."""
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return show(float(value), name)
    written = _mapping(value)
    if written is not None:
        return _told(written)
    return "" if value is None else str(value)


def names_of(frame: pd.DataFrame, name: str) -> dict[Any, str]:
    """Return each value of a column as text: numbers with their unit, of mappings what differs.

    The texts are for figures: a dollar begins no formula there.
    """
    values = in_order(frame[name])
    if numeric(frame, name):
        return {v: show(float(v), name) for v in values}
    written = {v: m for v in values if (m := _mapping(v)) is not None}
    same = _common(list(written.values())) if len(written) > 1 else set()
    names = {v: {k: x for k, x in m.items() if k not in same} for v, m in written.items()}
    texts = {v: _told(names[v], _FIXED) if v in names else str(v) for v in values}
    return {value: text.replace("$", r"\$") for value, text in texts.items()}


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """Return the mapping that an axis' text stands for, None where it stands for none."""
    if not (isinstance(value, str) and value.startswith("{") and value.endswith("}")):
        return None
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return None
    return found if isinstance(found, Mapping) else None


def _common(mappings: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the keys that hold the same in all of them."""
    first = mappings[0]
    return {k for k in first if all(k in m and m[k] == first[k] for m in mappings)}


def _told(written: Mapping[str, Any], gap: str = " ") -> str:
    """Return a mapping in words: `generation 5, lanes 4`; a key and its value are `gap` apart."""
    inner = {k: f"({_told(v, gap)})" if isinstance(v, Mapping) else v for k, v in written.items()}
    return ", ".join(f"{k}{gap}{v}" for k, v in inner.items()) or "unchanged"


def direction(metric: str, objectives: Mapping[str, str] | None = None) -> str:
    """Return `min` or `max` for a metric: as the objectives say, else what is usual."""
    if objectives and metric in objectives:
        return objectives[metric]
    return "max" if metric in MORE_IS_BETTER else "min"


def in_order(values: pd.Series) -> list[Any]:
    """Return distinct values as they appear, numbers sorted."""
    distinct = values.dropna().unique().tolist()
    if all(isinstance(v, (int, float)) for v in distinct):
        return sorted(distinct)
    return distinct
