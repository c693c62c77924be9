"""Values with a unit, a source and a range, and the pydantic field types that read them.

A field declared `bandwidth: BytesPerSecond` accepts `1.8 TB/s`, a mapping `{value, source, range}`
or a `Parameter`, and holds a `Parameter`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self

from pydantic_core import core_schema

from opbyte.core.errors import ConfigError, Problem, show
from opbyte.core.registry import nearest
from opbyte.core.units import dimension, format_quantity, parse

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue

__all__ = [
    "Area",
    "AreaPerByte",
    "AreaPerOps",
    "AreaPerRate",
    "Bytes",
    "BytesPerSecond",
    "Count",
    "Dollars",
    "DollarsPerArea",
    "DollarsPerByte",
    "DollarsPerJoule",
    "Exponent",
    "Factor",
    "Hertz",
    "Joules",
    "JoulesPerBit",
    "JoulesPerOp",
    "Kilograms",
    "KilogramsPerByte",
    "KilogramsPerJoule",
    "OpsPerSecond",
    "Parameter",
    "Quantity",
    "Ratio",
    "Seconds",
    "Several",
    "Watts",
]

_KEYS = ("value", "source", "range")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number of a machine or a policy.

    Attributes:
        value: SI units of `dimension`.
        dimension: Name of its dimension (`opbyte.core.units.DIMENSIONS`).
        source: Where it comes from: paper and table, `assumed: ..`, `calibrated: ..`, or None.
        range: Lowest and highest value that is plausible, same unit, or None.
    """

    value: float
    dimension: str
    source: str | None = None
    range: tuple[float, float] | None = None

    @classmethod
    def of(cls, text: str | float, dimension: str, source: str | None = None) -> Self:
        """Return the parameter that a file would write as `text`.

        Raises:
            ConfigError: If `text` is not an allowed quantity of that dimension.
        """
        return cls(_checked(text, dimension), dimension, source)

    def __float__(self) -> float:
        """Return the SI value."""
        return self.value

    def __str__(self) -> str:
        """Return the value with its unit, such as `1.8 TB/s`."""
        return format_quantity(self.value, self.dimension)


@dataclass(frozen=True, slots=True)
class Quantity:
    """Annotation that makes a pydantic field of type `Parameter` read one dimension.

    Attributes:
        dimension: Name of the dimension.
        least: Least value that has a meaning, SI units.
    """

    dimension: str
    least: float = 0.0

    def read(self, raw: object) -> Parameter:
        """Return `raw` (text, number, mapping or `Parameter`) as a parameter.

        Raises:
            ConfigError: With every problem of the value; paths are relative to it.
        """
        if isinstance(raw, Parameter):
            return self._reread(raw)
        if isinstance(raw, Mapping):
            return self._read_mapping(raw)
        return Parameter(self._checked(raw), self.dimension)

    def _checked(self, raw: object) -> float:
        """Return a text or number as an SI float that the field allows."""
        value = _checked(raw, self.dimension)
        self._above(value, raw)
        return value

    def _above(self, value: float, raw: object) -> None:
        if value < self.least:
            noun, least = (
                dimension(self.dimension).noun,
                format_quantity(self.least, self.dimension),
            )
            raise ConfigError.one(rule=f"this {noun} must be at least {least}", value=raw)

    def _reread(self, given: Parameter) -> Parameter:
        if given.dimension != self.dimension:
            raise ConfigError.one(
                rule=f"a {dimension(self.dimension).noun} is due",
                value=f"a {dimension(given.dimension).noun} ({given})",
            )
        _allow(given.value, self.dimension, given.value)
        self._above(given.value, given.value)
        if given.range is not None:
            _inside(given.value, *given.range, self.dimension)
        return given

    def _read_mapping(self, raw: Mapping[object, object]) -> Parameter:
        problems: list[Problem] = []
        for key in raw:
            if key not in _KEYS:
                near = nearest(str(key), _KEYS)
                hint = f"Did you mean {near!r}? " if near else ""
                rule = f"a quantity has no key {show(key)}"
                problems.append(
                    Problem("", str(key), rule, "", f"{hint}Known: value, source, range.")
                )
        if "value" not in raw:
            example = dimension(self.dimension).example
            rule = "a quantity written as a mapping needs the key 'value'"
            problems.append(Problem("", "", rule, "", f"Write for example {{value: {example}}}."))
        value = self._part(raw["value"], "value", problems) if "value" in raw else None
        source = raw.get("source")
        if source is not None and not isinstance(source, str):
            problems.append(Problem("", "source", "a source must be text", show(source)))
        limits = self._limits(raw.get("range"), problems)
        if value is not None and limits is not None:
            try:
                _inside(value, *limits, self.dimension)
            except ConfigError as error:
                problems.extend(error.problems)
        if problems or value is None:
            raise ConfigError(problems)
        return Parameter(value, self.dimension, source if isinstance(source, str) else None, limits)

    def _part(self, raw: object, path: str, problems: list[Problem]) -> float | None:
        try:
            return self._checked(raw)
        except ConfigError as error:
            problems.extend(Problem("", path, p.rule, p.value, p.remedy) for p in error.problems)
            return None

    def _limits(self, raw: object, problems: list[Problem]) -> tuple[float, float] | None:
        if raw is None:
            return None
        if not isinstance(raw, (list, tuple)) or len(raw) != 2:
            rule = "a range must be a list of the lowest and the highest value"
            problems.append(Problem("", "range", rule, show(raw)))
            return None
        low = self._part(raw[0], "range[0]", problems)
        high = self._part(raw[1], "range[1]", problems)
        if low is None or high is None:
            return None
        if low > high:
            rule = "a range must start with its lower end"
            problems.append(Problem("", "range", rule, f"[{raw[0]}, {raw[1]}]"))
            return None
        return low, high

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Return the schema that calls `read`, and writes a parameter back as a file would."""
        return core_schema.no_info_plain_validator_function(
            self.read,
            serialization=core_schema.plain_serializer_function_ser_schema(_written),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema, for completion in editors."""
        due = dimension(self.dimension)
        plain: dict[str, object] = {"type": ["number", "string"] if due.bare else "string"}
        plain["examples"] = [due.example]
        return {
            "description": f"A {due.noun}, such as {due.example}.",
            "anyOf": [
                plain,
                {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["value"],
                    "properties": {
                        "value": plain,
                        "source": {"type": "string"},
                        "range": {"type": "array", "items": plain, "minItems": 2, "maxItems": 2},
                    },
                },
            ],
        }


def _checked(raw: object, dimension_name: str) -> float:
    """Return a text or number as an SI float that the dimension allows."""
    value = parse(raw, dimension_name)
    _allow(value, dimension_name, repr(raw) if isinstance(raw, str) else raw)
    return value


def _allow(value: float, dimension_name: str, raw: object) -> None:
    noun = dimension(dimension_name).noun
    if not math.isfinite(value):
        raise ConfigError.one(rule=f"a {noun} must be finite", value=raw)
    if value < 0.0:
        raise ConfigError.one(rule=f"a {noun} can not be negative", value=raw)
    if dimension_name == "ratio" and not 0.0 < value <= 1.0:
        raise ConfigError.one(
            rule="a ratio must be above 0 and at most 1",
            value=raw,
            remedy="Write for example 0.85 or 85 %.",
        )
    if dimension_name == "count" and value != math.floor(value):
        raise ConfigError.one(rule="a count must be a whole number", value=raw)


def _inside(value: float, low: float, high: float, dimension_name: str) -> None:
    if not low <= value <= high:
        shown = [format_quantity(x, dimension_name) for x in (low, high, value)]
        raise ConfigError.one(
            rule=f"the value must be inside its own range of {shown[0]} to {shown[1]}",
            value=shown[2],
            remedy="Widen the range or correct the value.",
        )


def _written(parameter: Parameter) -> object:
    """Return what a file would hold for `parameter`: text, or a mapping where it has a source."""
    text = _text(parameter.value, parameter.dimension)
    if parameter.source is None and parameter.range is None:
        return text
    written: dict[str, object] = {"value": text}
    if parameter.source is not None:
        written["source"] = parameter.source
    if parameter.range is not None:
        written["range"] = [_text(x, parameter.dimension) for x in parameter.range]
    return written


def _text(value: float, dimension_name: str) -> str | float:
    if dimension(dimension_name).bare:
        return value
    return format_quantity(value, dimension_name, digits=17)


Bytes = Annotated[Parameter, Quantity("bytes")]
BytesPerSecond = Annotated[Parameter, Quantity("bytes_per_s")]
Seconds = Annotated[Parameter, Quantity("seconds")]
OpsPerSecond = Annotated[Parameter, Quantity("ops_per_s")]
Hertz = Annotated[Parameter, Quantity("hertz")]
Watts = Annotated[Parameter, Quantity("watts")]
Joules = Annotated[Parameter, Quantity("joules")]
DollarsPerJoule = Annotated[Parameter, Quantity("dollars_per_joule")]
Kilograms = Annotated[Parameter, Quantity("kilograms")]
KilogramsPerByte = Annotated[Parameter, Quantity("kilograms_per_byte")]
KilogramsPerJoule = Annotated[Parameter, Quantity("kilograms_per_joule")]
JoulesPerBit = Annotated[Parameter, Quantity("joules_per_bit")]
JoulesPerOp = Annotated[Parameter, Quantity("joules_per_op")]
Area = Annotated[Parameter, Quantity("area")]
Dollars = Annotated[Parameter, Quantity("dollars")]
DollarsPerArea = Annotated[Parameter, Quantity("dollars_per_area")]
DollarsPerByte = Annotated[Parameter, Quantity("dollars_per_byte")]
AreaPerByte = Annotated[Parameter, Quantity("area_per_byte")]
AreaPerRate = Annotated[Parameter, Quantity("area_per_rate")]
AreaPerOps = Annotated[Parameter, Quantity("area_per_ops")]
Ratio = Annotated[Parameter, Quantity("ratio")]
Factor = Annotated[Parameter, Quantity("factor")]
Exponent = Annotated[Parameter, Quantity("factor", least=1.0)]
Count = Annotated[Parameter, Quantity("count")]
#: At least one of something.
Several = Annotated[Parameter, Quantity("count", least=1.0)]
