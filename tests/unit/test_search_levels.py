"""The screen and the climb: which points are played at the event level, and what is found."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from searching import NAMES, recorded

from opbyte.core.errors import ConfigError
from opbyte.sweeps.pareto import costs, feasible, front_of, hypervolume
from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.search.board import Board, Judged
from opbyte.sweeps.search.climb import Climb, _greedy
from opbyte.sweeps.search.gaps import ENOUGH, Gaps
from opbyte.sweeps.search.screen import Pool, at_fidelity, beaten, nondominated, screened
from opbyte.sweeps.space import Line
from opbyte.sweeps.study import load_study

# -- the gap between two fidelities ---------------------------------------------------------


def test_prices_are_exact_times_obey_the_law_and_the_rest_is_measured():
    gaps = Gaps.of(["price_usd", "tpot", "hit_rate", "workload.batch"], ["workload.batch"])
    low, high = gaps.interval()
    assert low.tolist() == [0.0, 0.0, -np.inf, 0.0]
    assert high.tolist() == [0.0, np.inf, np.inf, 0.0]


def test_a_measured_interval_is_the_range_and_twice_what_a_uniform_range_lacks():
    gaps = Gaps.of(["hit_rate"], [])
    values = np.linspace(-0.1, 0.3, ENOUGH)
    gaps.add(values[:, None], np.zeros(ENOUGH, dtype=np.int64))
    margin = 2 * 0.4 / (ENOUGH - 1)
    low, high = gaps.interval()
    assert low == pytest.approx(-0.1 - margin)
    assert high == pytest.approx(0.3 + margin)


def test_one_gap_below_zero_takes_the_law_away():
    gaps = Gaps.of(["tpot"], [])
    gaps.add(np.full((ENOUGH, 1), 0.2), np.zeros(ENOUGH, dtype=np.int64))
    assert gaps.interval()[0] == 0.0
    gaps.add(np.array([[-1e-12]]), np.zeros(1, dtype=np.int64))
    assert not gaps.law_broken.any()  # rounding breaks no law
    gaps.add(np.array([[-0.05]]), np.zeros(1, dtype=np.int64))
    assert gaps.law_broken.all()
    assert gaps.interval()[0] < -0.05


def test_structure_has_its_own_interval_once_it_is_measured_enough():
    gaps = Gaps.of(["hit_rate"], [])
    gaps.add(np.full((ENOUGH, 1), 0.5), np.full(ENOUGH, 7, dtype=np.int64))
    gaps.add(np.full((ENOUGH - 1, 1), 0.0), np.full(ENOUGH - 1, 8, dtype=np.int64))
    low, high = gaps.intervals(np.array([7, 8]))
    assert (low[0], high[0]) == (0.5, 0.5)
    assert low[1] < 0.0 < 0.5 < high[1]


def test_the_expected_gap_of_a_measured_point_is_its_own():
    gaps = Gaps.of(["tpot"], [])
    places = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    gaps.add(np.array([[0.0], [0.3], [0.6]]), np.zeros(3, dtype=np.int64))
    found = gaps.expected(places, np.zeros(3, dtype=np.int64), places)
    np.testing.assert_allclose(found[:, 0], [0.0, 0.3, 0.6], atol=2e-3)


# -- fronts ---------------------------------------------------------------------------------


def twin_beaten(logs, by):
    return np.array([any((b <= x + 1e-9).all() for b in by) for x in logs], dtype=bool)


@given(st.integers(1, 3), st.integers(0, 12), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_beaten_equals_its_twin(k, points, others, seed):
    rng = np.random.default_rng(seed)
    logs, by = (rng.integers(0, 4, (n, k)).astype(float) for n in (points, others))
    np.testing.assert_array_equal(beaten(logs, by), twin_beaten(logs, by))


@given(st.integers(2, 3), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_points_are_taken_in_the_order_of_what_each_adds(k, points, seed):
    """The lazy order is that of computing every gain anew."""
    rng = np.random.default_rng(seed)
    values = rng.random((points, k))
    reference = np.full(k, 1.1)
    chosen, plain = np.zeros((0, k)), []
    for _ in range(points):
        rest = [i for i in range(points) if i not in plain]
        gains = [hypervolume(np.vstack([chosen, values[i : i + 1]]), reference) for i in rest]
        plain.append(rest[int(np.argmax(gains))])
        chosen = np.vstack([chosen, values[plain[-1] : plain[-1] + 1]])
    lazy = _greedy(values, np.zeros((0, k)), points)
    volumes = [
        [hypervolume(values[order[: n + 1]], reference) for n in range(points)]
        for order in (plain, lazy)
    ]
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=1e-12)


# -- the climb over made-up answers -----------------------------------------------------------


def made_up(screen, event, violation=None, round_size=4):
    """Return a climb over points with these logarithms of costs, and the ids that it plays."""
    count = len(screen)
    played = []
    lines = (Line("workload.batch", count),)
    objectives = {f"m{i}": "min" for i in range(screen.shape[1])}
    axis = SimpleNamespace(target=SimpleNamespace(numeric=True), path="workload.batch")
    plan = SimpleNamespace(axes=(axis,), study=SimpleNamespace(objectives=objectives))
    session = SimpleNamespace(plan=plan, progress=None)
    board = Board(session, lines, count)

    def evaluate(points):
        for point in points:
            i = int(point[0])
            played.append(i)
            board.known[point] = Judged(tuple(np.exp(event[i]).tolist()), 0.0)

    board.evaluate = evaluate
    zeros = np.zeros(count) if violation is None else violation
    pool = Pool(np.arange(count), screen, zeros, count, count, 0, "")
    gaps = Gaps(np.zeros(screen.shape[1], bool), np.ones(screen.shape[1], bool))
    return Climb(board, plan, pool, gaps, round_size), played


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 80), st.floats(0.0, 1.0), st.integers(1, 7),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_where_the_law_holds_the_front_is_that_of_all_points(k, count, spread, size, seed):
    rng = np.random.default_rng(seed)
    screen = rng.normal(size=(count, k))
    event = screen + spread * rng.random((count, k))
    climb, played = made_up(screen, event, round_size=size)
    assert climb.run([]) == 0
    assert len(set(played)) == len(played)
    found = event[played][nondominated(event[played])]
    expected = event[nondominated(event)]
    np.testing.assert_allclose(
        np.unique(found, axis=0), np.unique(expected, axis=0), rtol=0, atol=1e-8
    )


def test_equal_fidelities_cost_no_more_than_the_front():
    rng = np.random.default_rng(0)
    screen = rng.normal(size=(2000, 2))
    climb, played = made_up(screen, screen.copy(), round_size=3)
    climb.run([])
    assert sorted(played) == np.flatnonzero(nondominated(screen)).tolist()


def test_a_wider_gap_needs_more_points():
    rng = np.random.default_rng(1)
    screen = rng.normal(size=(2000, 2))
    counts = []
    for spread in (0.0, 0.1, 0.5):
        climb, played = made_up(screen, screen + spread * rng.random((2000, 2)))
        climb.run([])
        counts.append(len(played))
    assert counts == sorted(counts)
    assert counts[0] < counts[1] < counts[2] < 2000


def test_a_broken_law_is_noticed_and_more_is_played():
    """Events better than the screen by up to a tenth: the measured gaps cover them."""
    rng = np.random.default_rng(2)
    screen = rng.normal(size=(1000, 2))
    event = screen + 0.1 * (rng.random((1000, 2)) - 0.5)
    climb, played = made_up(screen, event, round_size=10)
    climb.run([])
    assert climb.gaps.law_broken.all()
    expected = np.flatnonzero(nondominated(event))
    assert set(expected) <= set(played)
    assert len(played) < 200


def test_what_breaks_a_constraint_on_the_screen_is_played_only_if_events_may_keep_it():
    rng = np.random.default_rng(3)
    screen = rng.normal(size=(300, 2))
    broken = rng.random(300) < 0.5
    climb, played = made_up(screen, screen.copy(), np.where(broken, 0.1, 0.0))
    climb.run([])
    assert not broken[played].any()


# -- the screen ---------------------------------------------------------------------------------

SMALL = {
    "kind": "study",
    "fidelity": "event",
    "base": {
        "machine": "dgx-h100",
        "workload": {"kind": "decode", "model": "llama-3.2-1b", "batch": 8, "context": 1024},
    },
    "axes": {
        "mapping.parallel.all.tp": [2, 4, 8],
        "mapping.parallel.all.microbatches": {
            "values": [1, 2, 4],
            "when": {"mapping.parallel.all.tp": [2, 4]},
        },
        "machine.nvlink.bandwidth": ["50 GB/s", "100 GB/s", "200 GB/s", "400 GB/s"],
        "workload.batch": {"log2": [8, 64]},
    },
    "derive": {"mapping.parallel.all.pp": "8 / mapping.parallel.all.tp"},
    "objectives": {"tokens_per_s": "max", "tpot": "min", "machine.nvlink.bandwidth": "min"},
    "strategy": {"kind": "optuna", "trials": 1000, "population": 6},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    plan = load_study(SMALL, {"strategy": {"kind": "grid"}}).plan
    return run_plan(plan, Options(out=tmp_path_factory.mktemp("whole"), workers=1)).columns()


def front_values(columns, objectives):
    return np.unique(costs(columns, objectives)[front_of(columns, objectives)], axis=0)


def test_the_front_is_that_of_the_grid_with_fewer_events(tmp_path, whole):
    study = load_study(SMALL)
    results = run_plan(study.plan, Options(out=tmp_path, workers=1))
    columns = results.columns()
    assert len(columns["point"]) < len(whole["point"]) / 2
    np.testing.assert_allclose(
        front_values(columns, results.objectives),
        front_values(whole, results.objectives),
        rtol=1e-8,
    )
    at = np.searchsorted(whole["point"], columns["point"])
    np.testing.assert_array_equal(columns["tpot"], whole["tpot"][at])  # event rows, bit by bit


def test_a_search_that_was_interrupted_goes_on_to_the_same_front(tmp_path):
    class Impatient:
        rows = 0

        def start(self, total, stored, what=""):  # noqa: ARG002
            self.what = what

        def advance(self, rows, failed):  # noqa: ARG002
            self.rows += rows * (self.what == "played")
            if self.rows >= 7:
                raise KeyboardInterrupt

    plan = load_study(SMALL).plan
    once = run_plan(plan, Options(out=tmp_path / "once", workers=1))
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, Options(out=tmp_path / "twice", workers=1), progress=Impatient())
    kept = len(load_frame(tmp_path / "twice"))
    assert 0 < kept < len(once.frame())
    again = run_plan(plan, Options(out=tmp_path / "twice", workers=1))
    assert once.frame().equals(again.frame())


def load_frame(folder):
    from opbyte.sweeps.store import open_results

    return open_results(folder).frame()


@pytest.mark.proof
@pytest.mark.parametrize("workers", [2, 4])
def test_the_front_does_not_depend_on_workers(tmp_path, workers):
    plan = load_study(SMALL, {"strategy.trials": 12}).plan
    frames = [
        run_plan(plan, Options(out=tmp_path / str(n), workers=n)).frame() for n in (1, workers)
    ]
    texts = [frame.to_csv() for frame in frames]
    assert texts[0] == texts[1]


def test_a_screen_is_pruned_to_a_band_and_keeps_what_could_win(monkeypatch):
    plan = at_fidelity(load_study(SMALL).plan, "analytic")
    band = np.array([0.2, 0.2, 0.0])
    full = screened(plan, Options(workers=1), band, None, "")
    monkeypatch.setattr("opbyte.sweeps.search.screen.MOST_KEPT", 8)
    few = screened(plan, Options(workers=1), band, None, "")
    assert few.points == full.points == len(full) == 112
    assert nondominated(full.logs).sum() <= len(few) < len(full)
    near = ~beaten(full.logs - band, full.logs[nondominated(full.logs)])
    assert set(full.ids[near]) <= set(few.ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fidelity": "analytic", "strategy.screen": "analytic"}, "fidelity is analytic"),
        ({"objectives": {}}, "a search needs objectives"),
        (
            {
                "axes": {"workload.batch": {"range": [1, 9]}}, "derive": {},
                "objectives": {"tpot": "min"}, "strategy.screen": "bound",
            },
            "listed values or steps",
        ),
    ],
)  # fmt: skip
def test_screens_that_can_not_be(tmp_path, changes, message):
    data = {**SMALL, **{k: v for k, v in changes.items() if "." not in k}}
    dotted = {k: v for k, v in changes.items() if "." in k}
    with pytest.raises(ConfigError, match=message):
        run_plan(load_study(data, dotted).plan, Options(out=tmp_path, workers=1))


# -- shipped spaces -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_few_events_find_the_front_of_a_shipped_space(name):
    """A hundredth of the points finds 99 % of its hypervolume, a tenth at most the whole of it."""
    space = recorded(name)
    points = len(space.columns["point"])
    played, _ = space.two_levels(points // 100)
    assert len(played) <= points // 100
    assert space.volume(played) >= 0.99
    played, left = space.two_levels(10**6)
    assert left == 0
    assert len(played) <= len(space.columns["point"]) / 10
    np.testing.assert_array_equal(space.designs(played), space.designs())


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_what_events_answer(name):
    """Some points anew; scripts/search_tables.py writes the tables."""
    from opbyte.sweeps.evaluate import Evaluator

    space = recorded(name)
    rng = np.random.default_rng(7)
    ids = np.sort(rng.choice(space.columns["point"], 12, replace=False))
    found = Evaluator(space.plan, "").rows(ids, _codes(space.plan, ids), lambda: False)
    expected = space.rows(np.asarray(found.point))
    for metric in space.objectives:
        np.testing.assert_allclose(
            found.numbers[metric], expected.numbers[metric], rtol=1e-9, err_msg=metric
        )


def _codes(plan, ids):
    return plan.points().codes(ids)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_spaces_are_real_ones(name):
    space = recorded(name)
    assert len(space.columns["point"]) >= 10_000
    assert len(space.designs()) >= 50
    assert feasible(space.columns).sum() >= 5_000
