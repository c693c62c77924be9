"""The stored tables that searches are judged by still hold what the simulator answers."""

import numpy as np
import pytest
from searching import NAMES, recorded

from opbyte.sweeps.backends import SerialBackend
from opbyte.sweeps.portions import Task
from opbyte.sweeps.space import grid_space

_POINTS = 10
_REMEDY = "rebuild tests/data/search with scripts/search_tables.py"


@pytest.mark.parametrize("name", NAMES)
def test_some_points_of_a_table_are_what_is_played_now(name):
    record = recorded(name)
    everything = record.columns["point"]
    lines = tuple(axis.line for axis in record.plan.axes)
    space = grid_space(lines)
    assert len(everything) == space.count, _REMEDY
    points = np.sort(np.random.default_rng(5).choice(everything, _POINTS, replace=False))
    seen = []
    for rows in SerialBackend(record.plan, "").run(iter([Task(points, space.codes(points))])):
        stored = record.rows(rows.point)
        seen += rows.point.tolist()
        for column in record.objectives:
            now, then = rows.numbers[column], stored.numbers[column]
            np.testing.assert_allclose(now, then, rtol=1e-9, err_msg=f"{column}: {_REMEDY}")
        now, then = (
            np.array(r.words["status"].texts)[r.words["status"].codes] for r in (rows, stored)
        )
        assert now.tolist() == then.tolist(), _REMEDY
    assert sorted(seen) == points.tolist()
    assert np.isfinite(record.rows(points).numbers["tokens_per_s"]).sum() >= _POINTS // 3
