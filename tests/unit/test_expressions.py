"""Arithmetic of study files: what it computes, and what it refuses."""

import math
import pickle

import numpy as np
import pytest

from opbyte.core.errors import ConfigError
from opbyte.sweeps.expressions import Expression


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3", 7.0),
        ("2 ** 3 ** 2", 512.0),
        ("-2 ** 2", -4.0),
        ("(1 + 2) / 4", 0.75),
        ("min(3, 1, 2) + max(4, 5)", 6.0),
        ("ceil(1.2) - floor(1.8)", 1.0),
        ("log2(8) * sqrt(9)", 9.0),
        ("350 * machine.rdu.hbm.phy.bandwidth", 700.0),
        ("`machine.odd-name.x` / 4", 2.0),
    ],
)
def test_value(text, expected):
    values = {"machine.rdu.hbm.phy.bandwidth": 2.0, "machine.odd-name.x": 8.0}
    assert float(Expression.parse(text)(values)) == expected


def test_names_in_order_of_appearance_once():
    assert Expression.parse("a.b * c + a.b - `d-e.f`").names == ("a.b", "c", "d-e.f")


def test_arrays_are_evaluated_point_by_point():
    x = np.array([1.0, 4.0, 9.0])
    assert Expression.parse("sqrt(x) + max(x, 2)")({"x": x}).tolist() == [3.0, 6.0, 12.0]


def test_impossible_arithmetic_gives_nan_or_infinity_without_a_warning():
    assert math.isnan(float(Expression.parse("sqrt(0 - x)")({"x": 1.0})))
    assert math.isinf(float(Expression.parse("1 / x")({"x": 0.0})))
    assert math.isinf(float(Expression.parse("10 ** 10 ** 10")({})))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "1 +",
        "__import__('os')",
        "x[0]",
        "'a' * 3",
        "a if b else c",
        "lambda: 1",
        "a and b",
        "x == 1",
        "f(x)",
        "min(x)",
        "sqrt(1, 2)",
        "sqrt(x=1)",
        "(1).real",
        "1e999",
        "9" * 400,
        "True",
        "(" * 300 + "1" + ")" * 300,
        "-" * 200 + "1",
        "1" + "+1" * 600,
        ["a"],
        None,
    ],
)
def test_refused(text):
    with pytest.raises(ConfigError):
        Expression.parse(text)


def test_error_names_the_nearest_function_and_the_place():
    with pytest.raises(ConfigError, match=r"f\.yaml:3:1: derive\.x: .*'sqr'.*'sqrt'"):
        Expression.parse("sqr(2)", "f.yaml:3:1", "derive.x")


def test_travels_through_pickle():
    again = pickle.loads(pickle.dumps(Expression.parse("2 * `a-b`")))
    assert float(again({"a-b": 4.0})) == 8.0
