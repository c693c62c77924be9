"""Resources that streams share in SimPy, against closed forms."""

import numpy as np
import pytest
import simpy

from opbyte.core.errors import SimulationError
from opbyte.sim.engine import FairShared, Units


def ends(arrivals, env=None):
    """Return when streams end; each is (start, seconds, shares)."""
    env = env or simpy.Environment()
    shared = FairShared(env)
    done = [0.0] * len(arrivals)

    def one(i, start, seconds, shares):
        yield env.timeout(start)
        yield shared.stream(seconds, shares)
        done[i] = env.now

    for i, arrival in enumerate(arrivals):
        env.process(one(i, *arrival))
    env.run()
    return done, shared


@pytest.mark.parametrize("n", [1, 2, 3, 7, 50])
def test_equal_jobs_that_come_together_end_together(n):
    # Processor sharing: each of n gets 1/n, all end after n times their own length.
    done, shared = ends([(1.0, 2.5, {"port": 1.0})] * n)
    np.testing.assert_allclose(done, 1 + 2.5 * n, rtol=1e-12)
    assert shared.busy["port"] == pytest.approx(2.5 * n, rel=1e-12)


def processor_sharing(jobs):
    """Return the ends of jobs (arrival, size) under egalitarian processor sharing, by hand."""
    left = [size for _, size in jobs]
    done = [None] * len(jobs)
    now = 0.0
    while None in done:
        here = [i for i, (at, _) in enumerate(jobs) if at <= now and done[i] is None]
        coming = [at for at, _ in jobs if at > now]
        step = min([left[i] * len(here) for i in here] + [at - now for at in coming])
        for i in here:
            left[i] -= step / len(here)
        now += step
        for i in here:
            if left[i] <= 1e-12:
                done[i] = now
    return done


def test_jobs_of_any_size_and_time_share_like_a_processor():
    rng = np.random.default_rng(4)
    for _ in range(20):
        jobs = [(float(a), float(s)) for a, s in rng.uniform(0.1, 3, (6, 2))]
        done, shared = ends([(a, s, {"port": 1.0}) for a, s in jobs])
        np.testing.assert_allclose(done, processor_sharing(jobs), rtol=1e-9)
        assert shared.busy["port"] == pytest.approx(sum(s for _, s in jobs), rel=1e-9)


def test_what_needs_no_common_resource_does_not_wait():
    done, _ = ends([(0, 3, {"a": 1.0}), (0, 2, {"b": 1.0}), (0, 5, {})])
    np.testing.assert_allclose(done, [3, 2, 5])


def test_shares_that_add_up_to_one_do_not_slow_each_other():
    done, _ = ends([(0, 3, {"a": 0.6}), (0, 2, {"a": 0.4})])
    np.testing.assert_allclose(done, [3, 2])


def test_a_copy_and_a_run_on_one_port_by_hand():
    # Together 0.5 + 1.0 of the port: both at 2/3. The copy (4 s alone) would end at 6, the run
    # (2 s) ends at 3; then the copy has done 2 and needs 2 more.
    done, shared = ends([(0, 4, {"hbm": 0.5}), (0, 2, {"hbm": 1.0})])
    np.testing.assert_allclose(done, [5, 3])
    assert shared.busy["hbm"] == pytest.approx(4 * 0.5 + 2)


def test_an_empty_stream_ends_at_once():
    done, _ = ends([(2, 0.0, {"a": 1.0}), (0, 5, {"a": 1.0})])
    np.testing.assert_allclose(done, [2, 5])


@pytest.mark.parametrize(
    ("seconds", "shares", "words"),
    [(-1.0, {}, "finite time"), (np.nan, {}, "finite time"), (1.0, {"a": 1.2}, "lie in")],
)
def test_senseless_streams_are_refused(seconds, shares, words):
    with pytest.raises(SimulationError, match=words):
        FairShared(simpy.Environment()).stream(seconds, shares)


def test_a_unit_serves_the_earliest_microbatch_then_who_came_first():
    env = simpy.Environment()
    units = Units(env)
    started = []

    def job(name, at, micro, seconds):
        yield env.timeout(at)
        yield units.request("unit", micro)
        started.append((name, env.now))
        yield env.timeout(seconds)
        units.release("unit")

    jobs = [("b", 0, 1, 2), ("c", 1, 2, 1), ("d", 1, 1, 1), ("e", 1, 1, 1), ("a", 1.5, 0, 4)]
    for given in jobs:
        env.process(job(*given))
    env.run()
    assert started == [("b", 0), ("a", 2), ("d", 6), ("e", 7), ("c", 8)]


def test_who_ends_lets_the_next_of_its_own_microbatch_go_first():
    env = simpy.Environment()
    units = Units(env)
    order = []

    def chain(micro):
        for i in range(3):
            yield units.request("unit", micro)
            order.append((micro, i))
            yield env.timeout(1)
            units.release("unit")

    env.process(chain(1))
    env.process(chain(0))
    env.run()
    assert order == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
