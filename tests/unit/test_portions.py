"""How tasks are cut for workers."""

import numpy as np
import pytest

from opbyte.sweeps.portions import Portions, Task


def task(points, first=0):
    ids = np.arange(first, first + points, dtype=np.int64)
    return Task(ids, {"axis": ids * 10})


def drained(portions, workers):
    found = []
    while (portion := portions.next(workers)) is not None:
        found.append(portion)
    return found


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("seconds", [None, 1e-6, 0.003, 0.02, 1.0])
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_portions_are_the_tasks_in_order(single, seconds, workers):
    portions = Portions(single=single)
    if seconds is not None:
        portions.learn(seconds, 1)
    portions.take(iter([task(100), task(1, 100), task(5000, 101)]))
    found = drained(portions, workers)
    assert np.concatenate([p.ids for p in found]).tolist() == list(range(5101))
    for portion in found:
        assert portion.codes["axis"].tolist() == (portion.ids * 10).tolist()


def sizes(portions, workers, points):
    portions.take(iter([task(points)]))
    return [len(p.ids) for p in drained(portions, workers)]


def test_a_portion_takes_a_quarter_of_a_second_and_the_last_ones_one_point():
    portions = Portions(single=True)
    portions.learn(0.4, 20)
    found = sizes(portions, 2, 1000)
    assert max(found) == 12  # 0.25 s of 20 ms
    assert found[-1] == 1
    assert found == sorted(found, reverse=True)


def test_a_round_of_20_costly_points_is_shared_evenly_by_two_workers():
    portions = Portions(single=True)
    portions.learn(0.02, 1)
    busy = [0, 0]
    for size in sizes(portions, 2, 20):
        busy[busy.index(min(busy))] += size
    assert busy == [10, 10]


def test_arrays_are_cut_only_where_that_pays():
    portions = Portions(single=False)
    portions.learn(6e-6, 1)
    assert sizes(portions, 2, 8192) == [8192]
    costly = Portions(single=False)
    costly.learn(0.1, 1)
    assert max(sizes(costly, 2, 60)) == 2


def test_points_of_unknown_cost_begin_small():
    assert sizes(Portions(single=True), 2, 1000)[0] == 4
    assert sizes(Portions(single=False), 2, 60)[0] == 10


def test_what_is_put_back_comes_first():
    portions = Portions(single=True)
    portions.take(iter([task(2)]))
    first = portions.next(1)
    portions.put_back(first)
    portions.put_back(None)
    assert portions.next(1).ids.tolist() == first.ids.tolist()
