"""Whatever is added, merged and killed, each point that was stored is there once."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored import META, Store, add_part, check_rows, rows

from opbyte.sweeps.compact import compact
from opbyte.sweeps.query import queried
from opbyte.sweeps.results import open_results
from opbyte.sweeps.watch import Watcher


class Killed(BaseException):
    """What a kill looks like from inside: nothing after it happens."""


class Kill:
    """Lets some changes of the disk happen, and none after them."""

    def __init__(self, patch, changes):
        self.left = changes
        for owner, name in ((Path, "rename"), (Path, "unlink"), (os, "fsync")):
            patch.setattr(owner, name, self.counted(getattr(owner, name)))

    def counted(self, change):
        def changed(*arguments, **options):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return change(*arguments, **options)

        return changed


POINTS = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True)
#: What is done, to which points or up to which size, and after how many changes it is killed.
KILLS = st.one_of(st.none(), st.integers(0, 9))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), POINTS, KILLS),
        st.tuples(st.just("merge"), st.sampled_from([1000, 20]), KILLS),
        st.tuples(st.just("merge"), st.just(1000), st.integers(0, 9)),
    ),
    min_size=1,
    max_size=6,
)


def play(folder, step):
    """Add or merge, perhaps until a kill; return what must be stored and what may be."""
    what, amount, changes = step
    with pytest.MonkeyPatch.context() as patch:
        try:
            if what == "add":
                store = Store(folder, META)
                if changes is not None:
                    Kill(patch, changes)
                store.add(rows(amount))
                store.flush()
            else:
                if changes is not None:
                    Kill(patch, changes)
                compact(folder, amount)
        except Killed:
            return set(), set(amount) if what == "add" else set()
    return (set(amount) if what == "add" else set()), set()


@settings(max_examples=40)
@given(st.lists(POINTS, min_size=2, max_size=4), STEPS)
def test_each_point_is_there_once_after_appends_compactions_and_kills(first, steps):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Store(folder, META)
        watcher = Watcher(folder)
        sure, perhaps = set(), set()
        for step in [*(("add", points, None) for points in first), *steps]:
            stored, open_ = play(folder, step)
            sure, perhaps = sure | stored, perhaps | open_
            frame = open_results(folder).frame()
            found = set(frame["point"].tolist())
            assert sure <= found <= sure | perhaps
            if found:
                check_rows(frame, found)
            assert watcher.look().stored == len(found)
            sure = found
        if sure:
            asked = queried(open_results(folder), "from points order by point").to_pandas()
            check_rows(asked, sure)
            compact(folder, 1000)
            results = open_results(folder)
            assert len(results.parts) == 1
            assert len(list((folder / "points").iterdir())) == 1 + _half_written(folder)
            check_rows(results.frame(), sure)


def _half_written(folder):
    """Return the files of killed writers; here they are this process's, which still lives."""
    return len(list((folder / "points").glob(".*.tmp")))


@settings(max_examples=25)
@given(st.lists(POINTS, min_size=1, max_size=6), st.integers(2, 30))
def test_a_front_part_by_part_is_that_of_all_rows(parts, full):
    import opbyte as ob

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for points in parts:
            add_part(folder, points)
        compact(folder, full)
        results = open_results(folder)
        whole = ob.front(results.frame(), results.objectives).reset_index(drop=True)
        assert results.front().equals(whole[results.front().columns.tolist()])
