"""Do fields with units read what files hold, and refuse what they should?"""

import copy
import dataclasses
import json
import math
import pickle

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from opbyte.core import parameters
from opbyte.core.errors import ConfigError
from opbyte.core.parameters import (
    Bytes,
    BytesPerSecond,
    Count,
    JoulesPerBit,
    Parameter,
    Quantity,
    Ratio,
    Seconds,
)
from opbyte.core.units import DIMENSIONS


class Port(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    bandwidth: BytesPerSecond
    latency: Seconds = Parameter.of("0 s", "seconds")
    energy: JoulesPerBit | None = None
    efficiency: Ratio = Parameter.of(1.0, "ratio")


def read(raw: object, dimension: str) -> Parameter:
    return Quantity(dimension).read(raw)


def problems(raw: object, dimension: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(raw, dimension)
    return str(caught.value).splitlines()


def test_a_text_becomes_a_parameter_without_source() -> None:
    port = Port.model_validate({"bandwidth": "1.8 TB/s"})
    assert port.bandwidth == Parameter(1.8e12, "bytes_per_s", None, None)
    assert float(port.bandwidth) == 1.8e12
    assert str(port.bandwidth) == "1.8 TB/s"


def test_energy_is_per_bit() -> None:
    port = Port.model_validate({"bandwidth": "1 TB/s", "energy": "3.48 pJ/bit"})
    assert port.energy is not None
    assert float(port.energy) == 3.48e-12


def test_a_mapping_brings_source_and_range() -> None:
    raw = {"value": "1.8 TB/s", "source": "paper, Table V", "range": ["1.6 TB/s", "2.0 TB/s"]}
    expected = Parameter(1.8e12, "bytes_per_s", "paper, Table V", (1.6e12, 2e12))
    assert read(raw, "bytes_per_s") == expected
    assert read({"value": "1.8 TB/s"}, "bytes_per_s").source is None


def test_a_parameter_passes_through() -> None:
    given = Parameter(1e9, "bytes_per_s", "x")
    assert Port(bandwidth=given).bandwidth is given


def test_parameters_are_frozen_slotted_values() -> None:
    parameter = Parameter(1.0, "ratio")
    with pytest.raises(dataclasses.FrozenInstanceError):
        parameter.value = 2.0  # type: ignore[misc]
    assert not hasattr(parameter, "__dict__")
    assert hash(parameter) == hash(Parameter(1.0, "ratio"))
    assert pickle.loads(pickle.dumps(parameter)) == parameter
    assert copy.deepcopy(parameter) == parameter
    assert dataclasses.replace(parameter, source="x").source == "x"


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_values_must_be_finite_and_not_negative(value: float) -> None:
    assert len(problems(Parameter(value, "seconds"), "seconds")) == 1
    assert len(problems(value, "factor")) == 1


def test_negative_text_is_refused_with_the_text() -> None:
    assert problems("-5 ns", "seconds") == ["a time can not be negative, got '-5 ns'."]


def test_zero_is_allowed_except_for_ratios() -> None:
    assert read("0 ns", "seconds").value == 0.0
    assert "above 0" in problems(0, "ratio")[0]


@pytest.mark.parametrize(("raw", "ok"), [(1, True), ("100 %", True), (1.01, False), ("0 %", False)])
def test_ratios_are_above_zero_and_at_most_one(raw: object, ok: bool) -> None:
    if ok:
        assert read(raw, "ratio").value == 1.0
    else:
        assert "at most 1" in problems(raw, "ratio")[0]


def test_a_field_may_have_a_least_value() -> None:
    exponent = Quantity("factor", least=1.0)
    for raw in (1, 3.3, {"value": 2, "range": [1, 3]}, Parameter(1.0, "factor")):
        assert exponent.read(raw).value >= 1.0
    for raw in (0.99, 0, "0.5", {"value": 2, "range": [0.5, 3]}, Parameter(0.5, "factor")):
        with pytest.raises(ConfigError, match="this factor must be at least 1, got"):
            exponent.read(raw)


def test_counts_are_whole() -> None:
    assert read(3, "count").value == 3.0
    assert read(3.0, "count").value == 3.0
    assert "whole number" in problems(2.5, "count")[0]


@pytest.mark.parametrize("raw", [True, None, "three", [3]])
def test_counts_are_numbers(raw: object) -> None:
    assert "a count must" in problems(raw, "count")[0]


@pytest.mark.parametrize("raw", [1.8e12, 0, "1.8e12"])
def test_a_bare_number_is_refused_with_an_example(raw: object) -> None:
    assert "Write for example 1.8 TB/s" in problems(raw, "bytes_per_s")[0]


def test_all_problems_of_a_mapping_come_at_once() -> None:
    raw = {"vale": "1 TB/s", "source": 5, "range": ["1 TB/s", "4 GB"], "note": "x"}
    found = problems(raw, "bytes_per_s")
    assert [line.split(":")[0] for line in found] == [
        "vale",
        "note",
        "a quantity written as a mapping needs the key 'value'. Write for example {value",
        "source",
        "range[1]",
    ]
    assert "Did you mean 'value'" in found[0]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (["2 TB/s", "3 TB/s"], "inside its own range of 2 TB/s to 3 TB/s, got 1.8 TB/s"),
        (["3 TB/s", "2 TB/s"], "start with its lower end"),
        (["1 TB/s"], "lowest and the highest"),
        ("1 TB/s", "lowest and the highest"),
        ([1, 2], "needs a unit"),
    ],
)
def test_ranges_are_checked(limits: object, words: str) -> None:
    assert words in "\n".join(problems({"value": "1.8 TB/s", "range": limits}, "bytes_per_s"))


def test_the_ends_of_a_range_are_inside() -> None:
    for value in ("1 TB/s", "2 TB/s"):
        assert read({"value": value, "range": ["1 TB/s", "2 TB/s"]}, "bytes_per_s")


def test_a_parameter_of_another_dimension_is_refused() -> None:
    found = problems(Parameter(1.0, "seconds"), "bytes_per_s")
    assert found == ["a bandwidth is due, got a time (1 s)."]


def test_a_parameter_outside_of_its_range_is_refused() -> None:
    given = Parameter(3.0, "seconds", None, (1.0, 2.0))
    assert "inside its own range" in problems(given, "seconds")[0]


def test_a_list_is_refused() -> None:
    assert "a list of 1 item" in problems(["1 TB/s"], "bytes_per_s")[0]


def test_pydantic_carries_our_error() -> None:
    with pytest.raises(ValidationError) as caught:
        Port.model_validate({"bandwidth": 5})
    (error,) = caught.value.errors()
    assert error["loc"] == ("bandwidth",)
    assert isinstance(error["ctx"]["error"], ConfigError)


@pytest.mark.parametrize("name", sorted(DIMENSIONS))
def test_dumped_parameters_read_back_equal(name: str) -> None:
    example = DIMENSIONS[name].example.split(" or ")[0]
    bare = DIMENSIONS[name].bare
    parameter = read(float(example) if bare else example, name)
    sourced = dataclasses.replace(parameter, source="s", range=(parameter.value, parameter.value))

    field = Quantity(name)
    for each in (parameter, sourced):
        written = parameters._written(each)
        assert field.read(json.loads(json.dumps(written))) == each


def test_models_dump_what_a_file_would_hold() -> None:
    port = Port.model_validate({"bandwidth": {"value": "1.8 TB/s", "source": "x"}})
    dumped = json.loads(port.model_dump_json())
    assert dumped["bandwidth"] == {"value": "1.8 TB/s", "source": "x"}
    assert dumped["latency"] == "0 s"
    assert dumped["efficiency"] == 1.0
    assert Port.model_validate(dumped) == port
    assert Port.model_validate(port.model_dump()) == port


def test_json_schema_shows_examples_and_refuses_bare_numbers() -> None:
    properties = Port.model_json_schema()["properties"]
    text, mapping = properties["bandwidth"]["anyOf"]
    assert text == {"type": "string", "examples": ["1.8 TB/s"]}
    assert set(mapping["properties"]) == {"value", "source", "range"}
    assert mapping["additionalProperties"] is False
    assert "number" in properties["efficiency"]["anyOf"][0]["type"]


def test_every_alias_reads_its_own_dimension() -> None:
    aliases = [
        getattr(parameters, n) for n in parameters.__all__ if n not in ("Parameter", "Quantity")
    ]
    # An exponent is a factor with a least value.
    read_by = [q.dimension for alias in aliases if not (q := alias.__metadata__[0]).least]
    # No parameter counts grams or operations: metrics do.
    assert sorted([*read_by, "grams", "ops"]) == sorted(DIMENSIONS)
    assert Bytes.__metadata__[0].dimension == "bytes"
    assert Count.__metadata__[0].dimension == "count"
