"""Are errors readable, bounded and able to cross a process boundary?"""

import pickle

import pytest

from opbyte.core.errors import (
    CapacityError,
    ConfigError,
    OpbyteError,
    Problem,
    SimulationError,
    UncoveredError,
    WorkloadError,
    show,
    unfit,
)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (("f.yaml:4:5", "a.b", "must be text", "5", "Quote it."),
         "f.yaml:4:5: a.b: must be text, got 5. Quote it."),
        (("f.yaml:4:5", "", "must be text", "5", ""), "f.yaml:4:5: must be text, got 5."),
        (("", "a.b", "is missing", "", "Add it."), "a.b: is missing. Add it."),
        (("", "", "is missing", "", ""), "is missing."),
    ],
)  # fmt: skip
def test_parts_that_are_empty_are_left_out(parts: tuple[str, ...], text: str) -> None:
    assert str(Problem(*parts)) == text


def test_a_value_that_is_no_text_is_described() -> None:
    assert Problem(rule="r", value=None).value == "null"
    assert Problem(rule="r", value=True).value == "true"
    assert Problem(rule="r", value={"a": 1}).value == "a mapping of 1 key"
    assert Problem(rule="r", value=[1, 2]).value == "a list of 2 items"
    assert Problem(rule="r", value=1.5).value == "1.5"


def test_what_is_shown_is_short_and_printable() -> None:
    text = str(Problem("x" * 9000, "p" * 9000, "r\x1b[31m\nr", "v" * 9000 + "\x07", "y" * 9000))
    assert len(text) < 5000
    assert text.isprintable()
    assert len(show("x" * 9000)) <= 80
    assert show("a\nb\x00") == r"'a\nb\x00'"


def test_a_number_too_long_to_print_is_still_shown() -> None:
    assert show(10**5000) == "a int that is too long to print"


def test_every_problem_has_its_line() -> None:
    error = ConfigError([Problem("f:1:1", "a", "x"), Problem("f:2:1", "b", "y")])
    assert str(error).splitlines() == ["f:1:1: a: x.", "f:2:1: b: y."]
    assert [p.path for p in error.problems] == ["a", "b"]


def test_many_problems_are_cut_in_text_but_kept_in_full() -> None:
    error = ConfigError(Problem(path=str(i), rule="x") for i in range(250))
    lines = str(error).splitlines()
    assert len(lines) == 101
    assert lines[-1] == "and 150 more"
    assert len(error.problems) == 250


def test_no_problem_is_no_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ConfigError([])


@pytest.mark.parametrize(
    "error",
    [
        OpbyteError("x"),
        WorkloadError("a context of 0 tokens"),
        UncoveredError("m = 0"),
        SimulationError("no progress"),
        CapacityError(["weight", "kv"], "gpu.hbm", 140e9, 80e9),
        ConfigError([Problem("f:1:1", "a", "r", object(), "do"), Problem(rule="s")]),
        ConfigError.one("f", "a", "r", lambda: 0, "do"),
    ],
)
def test_pickle_keeps_everything(error: OpbyteError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert isinstance(again, OpbyteError)


def test_capacity_error_says_what_where_and_how_much() -> None:
    error = CapacityError("kv", "gpu.hbm", 3 * 2**30, 2 * 2**30)
    assert error.tensors == ("kv",)
    text = "kv do not fit in gpu.hbm: 3 GiB needed, 2 GiB available, 1 GiB too much"
    assert str(error) == text
    assert "12 B needed" in str(CapacityError([], "sram", 12, 0))


def test_a_reason_agrees_with_what_it_names() -> None:
    assert unfit(["weight", "kv"], "gpu.hbm") == "weight+kv does not fit in gpu.hbm"
    text = "new tokens that fill no page do not fit in csd.dram"
    assert unfit(["new tokens that fill no page"], "csd.dram") == text


def test_config_error_is_a_value_error_for_validators() -> None:
    assert issubclass(ConfigError, ValueError)
    assert not issubclass(WorkloadError, ValueError)
