"""Cores behind a last-level cache: hits of cyclic passes, lines under way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.hw_models.misses import hit_share

DRAM, CXL = "default", "stream-cxl"


def seconds(machine, size, mapping, fidelity="analytic"):
    return ob.simulate(machine, ob.Stream(bytes=size), mapping, fidelity=fidelity).seconds


def test_hits_of_random_replacement_are_those_of_a_played_cache():
    rng = np.random.default_rng(7)
    lines, passes = 400, 60
    for ratio in (1.2, 1.5, 2.0, 3.0):
        slots = round(lines / ratio)
        cache, where = -np.ones(slots, int), {}
        hits = 0
        for turn in range(passes):
            for line in range(lines):
                if line in where:
                    hits += turn >= passes // 2
                    continue
                slot = int(rng.integers(slots))
                where.pop(int(cache[slot]), None)
                cache[slot], where[line] = line, slot
        played = hits / (lines * (passes - passes // 2))
        assert hit_share(lines, slots, "random") == pytest.approx(played, abs=0.03)


def test_lru_keeps_all_or_nothing_of_a_cyclic_pass():
    assert list(hit_share([0.5, 1.0, 1.01], 1.0, "lru")) == [1.0, 1.0, 0.0]


@given(st.floats(0.01, 200.0))
def test_no_policy_keeps_more_than_the_best(ratio):
    best = float(hit_share(ratio, 1.0, "best"))
    for policy in ("random", "lru"):
        assert 0.0 <= float(hit_share(ratio, 1.0, policy)) <= best + 1e-9


def test_what_fits_in_the_cache_is_as_fast_from_either_memory():
    machine = ob.load_machine("cxl-server")
    inside, outside = 30e6, 4e9
    ratio = [seconds(machine, s, CXL) / seconds(machine, s, DRAM) for s in (inside, outside)]
    assert ratio[0] == pytest.approx(1.0, abs=0.02)
    rates = [
        machine.values[f"{p}.bandwidth"] * machine.values[f"{p}.efficiency"]
        for p in ("cpu.dram.imc", "aic.dram.cxl")
    ]
    assert ratio[1] == pytest.approx(rates[0] / rates[1], rel=0.02)


def test_the_slowdown_beyond_the_cache_is_the_ratio_of_the_rates():
    machine = ob.load_machine("cxl-server").replace({"cpu.dram.channels": 8})  # four DIMMs
    found = seconds(machine, 4e9, CXL) / seconds(machine, 4e9, DRAM)
    assert 3.0 < found < 4.5


def test_few_lines_under_way_bound_the_rate_by_littles_law():
    machine = ob.load_machine("cxl-server").replace(
        {"cpu.cores.misses.outstanding": 1, "cpu.cores.misses.replacement": "lru"}
    )
    latency = machine.values["cpu.cores.misses.path"] + machine.values["aic.dram.cxl.latency"]
    expected = 4e9 * latency / (32 * 1 * 64)
    assert seconds(machine, 4e9, CXL) == pytest.approx(expected, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(5_000_000, 4_000_000_000), st.sampled_from([DRAM, CXL]))
def test_more_cache_never_takes_longer_and_bound_is_never_slower(size, mapping):
    machine = ob.load_machine("cxl-server")
    larger = machine.replace({"cpu.llc.capacity": "120 MB"})
    one = seconds(machine, size, mapping)
    assert seconds(larger, size, mapping) <= one * (1 + 1e-9)
    assert seconds(machine, size, mapping, "bound") <= one * (1 + 1e-9)
    assert seconds(machine, size, mapping, "event") == pytest.approx(one, rel=1e-9)


def test_points_of_a_sweep_decide_as_each_alone():
    machine = ob.load_machine("cxl-server")
    sizes = np.array([1e7, 1e8, 1e9])
    study = ob.simulate
    each = [study(machine, ob.Stream(bytes=float(s)), CXL).seconds for s in sizes]
    from opbyte.sim.simulate import evaluate, resolve_mapping

    together = evaluate(machine, ob.Stream(bytes=sizes), resolve_mapping(machine, CXL, "stream"))
    assert together.metrics["seconds"] == pytest.approx(each)


def test_misses_belong_to_cores():
    with pytest.raises(ConfigError, match="kind cores"):
        ob.load_machine("cxl-server").replace({"cpu.cores.kind": "vector"})


@pytest.mark.parametrize("replacement", ["random", "lru", "best"])
def test_nothing_hits_without_a_cache(replacement):
    found = hit_share(np.array([1e6, 1e12]), np.array([0.0, 0.0]), replacement)
    assert found == pytest.approx([0.0, 0.0], abs=1e-300)
