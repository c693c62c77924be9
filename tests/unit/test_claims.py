"""Where claims hold together: ratios, their ranges, and what can not be compared."""

import numpy as np
import pandas as pd
import pytest

from opbyte.core.errors import ConfigError
from opbyte.sweeps.claims import HOLDS, Claim, held

FAST = Claim("fast", "rate", 1.5, 3.0, {"kind": "b"}, {"kind": "a"})
CLOSE = Claim("close", "rate", 0.9, 2.1, {"kind": "b"}, {"kind": "a"})


def points(**more):
    """Rates x and x y of two kinds over a grid: their ratio is y."""
    frame = pd.DataFrame(
        [
            {"kind": kind, "x": x, "y": y, "rate": x * (y if kind == "b" else 1.0), "status": "ok"}
            for kind in "ab"
            for x in (1.0, 2.0, 4.0)
            for y in (1.0, 2.0, 4.0)
        ]
    )
    return frame.assign(**more)


def test_ratios_and_where_they_hold():
    found = held(points(), [FAST, CLOSE], ["x", "y"])
    assert len(found) == 9
    np.testing.assert_allclose(found["fast"], found["y"])
    assert set(found.loc[found[HOLDS], "y"]) == {2.0}
    alone = held(points(), [CLOSE], ["x", "y"])
    assert set(alone.loc[alone[HOLDS], "y"]) == {1.0, 2.0}


def test_ends_of_a_range_hold():
    edge = Claim("edge", "rate", 2.0, 2.0, FAST.of, FAST.over)
    assert held(points(), [edge], ["x", "y"])[HOLDS].sum() == 3


def test_failed_points_are_left_out():
    frame = points()
    frame.loc[(frame["kind"] == "a") & (frame["x"] == 2.0), "status"] = "infeasible"
    assert set(held(frame, [FAST], ["x", "y"])["x"]) == {1.0, 4.0}


@pytest.mark.parametrize(
    ("claims", "axes", "match"),
    [
        ([Claim("no", "rates", 0, 1, {"kind": "b"}, {"kind": "a"})], ["x", "y"], "rate"),
        ([Claim("no", "rate", 0, 1, {"kind": "c"}, {"kind": "a"})], ["x", "y"], "no point"),
        ([Claim("no", "rate", 0, 1, {}, {"kind": "a"})], ["x", "y"], "several points"),
        ([FAST], ["x"], "several points"),
        ([FAST], ["x", "z"], "no such column"),
        ([], ["x", "y"], "at least one"),
    ],
)
def test_what_can_not_be_compared(claims, axes, match):
    with pytest.raises(ConfigError, match=match):
        held(points(), claims, axes)
