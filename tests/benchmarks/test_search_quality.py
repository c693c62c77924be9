"""What searches find in spaces whose every point was played once, and what they cost themselves."""

import statistics
import time

import pytest
from searching import NAMES, recorded

SEEDS = range(10)


def medians(space, budget):
    """Return the median shares of the enumerated hypervolume over the seeds."""
    ways = {
        "optuna": lambda seed: space.by_optuna(budget, seed),
        "random_x10": lambda seed: space.at_random(10 * budget, seed),
        "one_level": lambda seed: space.one_level(budget, seed=seed),
    }
    return {
        name: statistics.median(space.volume(way(seed)) for seed in SEEDS)
        for name, way in ways.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_hundredth_of_the_points_beats_random_search_and_nsga2(benchmark, name):
    """Ours does not draw: all ten seeds give one front."""
    space = recorded(name)
    budget = len(space.columns["point"]) // 100
    assert space.pool is not None  # the screen is not what is timed
    played, _ = benchmark.pedantic(space.two_levels, (budget,), rounds=1)
    ours = space.volume(played)
    others = medians(space, budget)
    benchmark.extra_info |= {"budget": budget, "two_levels": ours, **others}
    assert ours >= 0.99
    assert ours >= others["random_x10"]
    assert ours >= others["optuna"]


@pytest.mark.parametrize("name", NAMES)
def test_own_time_per_point_is_below_a_millisecond(benchmark, name):
    """CPU time of choosing points, without pricing or playing any."""
    space = recorded(name)
    points = len(space.pool) and len(space.columns["point"])
    space.two_levels(20)
    began = time.process_time()
    played, _ = benchmark.pedantic(space.two_levels, (points,), rounds=1)
    two = (time.process_time() - began) / len(played)
    began = time.process_time()
    one = space.one_level(400, seed=1)
    single = (time.process_time() - began) / len(one)
    benchmark.extra_info |= {"two_levels_ms": 1e3 * two, "one_level_ms": 1e3 * single}
    assert two <= 1e-3
    assert single <= 1e-3
