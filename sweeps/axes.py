"""An axis of a study, resolved: which parameter it varies and the values it takes, SI."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, Problem
from opbyte.core.parameters import Quantity
from opbyte.core.registry import nearest
from opbyte.core.units import format_quantity
from opbyte.sweeps.space import Line
from opbyte.sweeps.study import AxisForm

__all__ = [
    "SI_UNITS",
    "PlanAxis",
    "Target",
    "position",
    "read_number",
    "resolved_axis",
    "resolved_when",
]

_MOST_VALUES = 1_000_000
_SHOWN = 8
_FOUR_DIGITS = 5e-4


@dataclass(frozen=True)
class Target:
    """What a path of a study means.

    Attributes:
        path: The path as written.
        key: The same in its normal form, such as `machine.rdu.hbm.phy.bandwidth`.
        kind: `value` is a number of the machine, `field` a number of the work: both may be arrays
            over points. `structure` is everything else.
        name: Short path of the parameter, or name of the field.
        dimension: Dimension of the parameter; None for structure.
    """

    path: str
    key: str
    kind: Literal["value", "field", "structure"]
    name: str = ""
    dimension: str | None = None

    @property
    def numeric(self) -> bool:
        """Return whether it may be an array over points."""
        return self.kind != "structure"


@dataclass(frozen=True)
class PlanAxis:
    """An axis with its values.

    Attributes:
        target: What it varies.
        written: Values as the file writes them; None for a continuous axis.
        numbers: Values as SI floats, where they are numbers.
        line: What the space needs to know.
    """

    target: Target
    written: tuple[Any, ...] | None
    numbers: npt.NDArray[np.float64] | None
    line: Line

    @property
    def path(self) -> str:
        """Return the path as written."""
        return self.target.path

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the values as text, for axes that are no numbers."""
        written = self.written or ()
        texts = [_text(v) for v in written]
        # Two works of one kind, say, go by all that they say.
        twice = {t for t, n in Counter(texts).items() if n > 1}
        pairs = zip(texts, written, strict=True)
        return tuple(str(dict(v)) if t in twice and isinstance(v, Mapping) else t for t, v in pairs)

    @property
    def shown(self) -> tuple[str, ...]:
        """Return the values as people write them, with units."""
        dimension = self.target.dimension
        if self.numbers is None or dimension in (None, "count", "ratio", "factor"):
            return tuple(t.removesuffix(".0") for t in self.texts)
        return tuple(format_quantity(float(v), dimension, digits=4) for v in self.numbers)

    def number(self, code: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the SI values of codes."""
        if self.line.size == 0:
            return code.astype(np.float64)
        assert self.numbers is not None
        taken: npt.NDArray[np.float64] = self.numbers[code]
        return taken


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("name") or value.get("kind") or dict(value))
    return str(value)


def resolved_axis(form: AxisForm, target: Target, *, discrete: bool) -> PlanAxis:
    """Return the axis with its values.

    Args:
        form: As written.
        target: What it varies.
        discrete: Whether the strategy needs a list of values.

    Raises:
        ConfigError: For values that the parameter can not take; paths are relative to the axis.
    """
    if form.values is not None:
        return _listed(target, form.values)
    ends = form.range if form.range is not None else form.log2
    assert ends is not None
    key = "range" if form.range is not None else "log2"
    low, high = (read_number(target, raw, f"{key}[{i}]") for i, raw in enumerate(ends))
    if low > high or (low == high and key == "range"):
        rule = f"{key} must start with its lower end"
        raise ConfigError.one("", key, rule, f"[{ends[0]}, {ends[1]}]")
    if low <= 0 and (key == "log2" or form.scale == "log"):
        rule = "a logarithmic axis must start above 0"
        raise ConfigError.one("", key, rule, f"[{ends[0]}, {ends[1]}]")
    whole = target.dimension == "count"
    if key == "log2":
        steps = math.floor(math.log2(high / low) + 1e-9) + 1
        return _counted(target, low * 2.0 ** np.arange(steps, dtype=np.float64))
    if form.steps is not None:
        if form.scale == "log":
            values = np.geomspace(low, high, form.steps, dtype=np.float64)
        else:
            values = np.linspace(low, high, form.steps, dtype=np.float64)
        return _counted(target, np.unique(np.rint(values)) if whole else values)
    if discrete:
        rule = "this strategy needs the number of steps of a range"
        raise ConfigError.one("", "", rule, "", "Add for example `steps: 9`.")
    line = Line(target.path, 0, low, high, form.scale == "log", whole)
    return PlanAxis(target, None, None, line)


def resolved_when(
    form: AxisForm, earlier: Sequence[PlanAxis], path: str
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the paths of earlier axes and the positions at which an axis means anything.

    Args:
        form: As written.
        earlier: The axes before it.
        path: Of the axis itself.

    Raises:
        ConfigError: With every condition that names no earlier axis or none of its values.
    """
    problems: list[Problem] = []
    found = []
    known = {axis.path: axis for axis in earlier}
    for name, raw in (form.when or {}).items():
        at = f"when.{name}"
        if name not in known:
            rule = f"a condition names an axis that stands before {path}"
            near = nearest(name, known)
            remedy = f"Did you mean {near!r}?" if near else f"Known: {', '.join(known) or 'none'}."
            problems.append(Problem("", at, rule, name, remedy))
            continue
        values = raw if isinstance(raw, list) else [raw]
        places = [position(known[name], value) for value in values]
        for value, place in zip(values, places, strict=True):
            if place is None:
                texts = ", ".join(known[name].shown[:_SHOWN]) or "none, it is continuous"
                rule = f"{name} never has this value"
                problems.append(Problem("", at, rule, value, f"Its values: {texts}."))
        found.append((name, tuple(sorted({p for p in places if p is not None}))))
    if problems:
        raise ConfigError(problems)
    return tuple(found)


def position(axis: PlanAxis, raw: Any) -> int | None:
    """Return the position of a written value in an axis, None where it has no such value.

    Numbers may be written with four digits, as tables show them.
    """
    if not axis.target.numeric:
        keys = [repr(v) for v in axis.written or ()]
        return keys.index(repr(raw)) if repr(raw) in keys else None
    try:
        number = read_number(axis.target, raw, "")
    except ConfigError:
        return None
    if axis.numbers is None:
        return None
    away = np.abs(axis.numbers - number)
    nearest_one = int(np.argmin(away))
    return nearest_one if away[nearest_one] <= _FOUR_DIGITS * abs(number) else None


def _counted(target: Target, values: npt.NDArray[np.float64]) -> PlanAxis:
    line = Line(target.path, len(values))
    if target.numeric:
        return PlanAxis(target, tuple(values.tolist()), values, line)
    written = tuple(int(v) if v == int(v) else v for v in values.tolist())
    return PlanAxis(target, written, values, line)


def _listed(target: Target, values: list[Any]) -> PlanAxis:
    if len(values) > _MOST_VALUES:
        raise ConfigError.one("", "values", f"at most {_MOST_VALUES:,} values", len(values))
    line = Line(target.path, len(values))
    if target.numeric:
        problems: list[Problem] = []
        numbers = []
        for i, raw in enumerate(values):
            try:
                numbers.append(read_number(target, raw, f"values[{i}]"))
            except ConfigError as error:
                problems.extend(error.problems)
        if problems:
            raise ConfigError(problems)
        array = np.array(numbers, dtype=np.float64)
        _distinct(values, numbers)
        return PlanAxis(target, tuple(values), array, line)
    _distinct(values, [repr(v) for v in values])
    plain = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    array = np.array(values, dtype=np.float64) if plain else None  # type: ignore[assignment]
    return PlanAxis(target, tuple(values), array, line)


def _distinct(values: list[Any], keys: list[Any]) -> None:
    seen: set[Any] = set()
    for i, key in enumerate(keys):
        if key in seen:
            rule = "an axis has every value once"
            raise ConfigError.one("", f"values[{i}]", rule, values[i], "Remove one of them.")
        seen.add(key)


def read_number(target: Target, raw: Any, at: str) -> float:
    """Return one value of an axis as an SI float."""
    try:
        if target.dimension is None:
            if isinstance(raw, bool) or not isinstance(raw, (int, float)):
                example = "Write a number, or list the values with `values`."
                raise ConfigError.one(rule="a number is due", value=raw, remedy=example)
            return float(raw)
        return Quantity(target.dimension).read(raw).value
    except ConfigError as error:
        raise ConfigError(
            dataclasses.replace(p, where="", path=at) for p in error.problems
        ) from None


SI_UNITS = {
    "bytes": "B",
    "bytes_per_s": "B/s",
    "seconds": "s",
    "ops_per_s": "FLOP/s",
    "ops": "FLOP",
    "hertz": "Hz",
    "watts": "W",
    "joules": "J",
    "joules_per_bit": "J/bit",
    "joules_per_op": "J/FLOP",
    "area": "m2",
    "dollars": "USD",
    "dollars_per_byte": "USD/B",
    "dollars_per_area": "USD/m2",
    "dollars_per_joule": "USD/J",
    "kilograms": "kg",
    "grams": "g",
    "kilograms_per_byte": "kg/B",
    "kilograms_per_joule": "kg/J",
    "area_per_byte": "m2/B",
    "area_per_rate": "m2/(B/s)",
    "area_per_ops": "m2/(FLOP/s)",
}
