"""CPUs: closed-form seconds, threads, formats, barriers, the bound, refusals, calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.hw_models.compute.cpu import NODES
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sweeps.validation import validate_source

PI = load_machine("raspberry-pi-5")
CPUS = ("m2-ultra-cpu", "agx-orin-cpu", "raspberry-pi-5", "surface-book-3")
LIBRARIES = {"t-mac": ("lookup", "t2"), "llama-cpp": ("unpack", "q2.625")}
BITNET = ob.load_model("bitnet-b1.58-3b")


def model(weight: str = "t2", head: str = "fp16") -> Any:
    return BITNET.with_precision(weight=weight, activation="fp16", kv="fp16", head=head)


def cpu(unit: str = "lookup", machine: Machine = PI, **block: Any) -> Machine:
    return machine.replace({f"cpu.{unit}.cpu.{name}": value for name, value in block.items()})


def seconds(machine: Machine, weight: str = "t2", mapping: str = "t-mac", **more: Any) -> float:
    work = ob.Decode(model(weight), 1, 64)
    return float(ob.simulate(machine, work, mapping=mapping, **more).seconds)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_product_takes_its_instructions_its_inputs_and_its_barriers(threads: int) -> None:
    machine = cpu(threads=threads, stream="500 GB/s").replace(
        {"cpu.dram.cores.bandwidth": "500 GB/s"}
    )
    frame = ob.simulate(machine, ob.Decode(model(), 1, 64)).breakdown.set_index("operator")
    starts = 2 * machine.values["cpu.lookup.efficiency"] * 2.4e9 * threads
    for name, matrices, n, k in (("qkv", 3, 9600, 3200), ("down", 1, 3200, 8640)):
        expected = 1.5 * k * matrices / 2.4e9 + 2 * 0.07 * n * k / starts
        expected += 2 * matrices * 2 * (threads - 1) * 50e-9
        assert frame.loc[name, "seconds"] == pytest.approx(26 * expected, rel=1e-9)
    # One token has one row, which one thread normalises.
    norm = 4 * 3200 / 2.4e9 + NODES["norm"] * 2 * (threads - 1) * 50e-9
    assert frame.loc["ffn_norm", "seconds"] == pytest.approx(26 * norm, rel=1e-9)


def test_a_stream_is_limited_by_its_cores_and_then_by_the_port() -> None:
    fast = {"cpu.lookup.efficiency": 1.0, "cpu.lookup.cpu.per_bit": 0.001}
    for threads, rate in ((1, 9.4e9), (2, 0.7 * 17.1e9), (4, 0.7 * 17.1e9)):
        machine = cpu(threads=threads, handoff="0 s", prepare=0).replace(fast)
        frame = ob.simulate(machine, ob.Decode(model(), 1, 64)).breakdown.set_index("operator")
        streamed = 26 * 2 * 8640 * 3200 / 4 / rate
        assert frame.loc["gate_up", "seconds"] == pytest.approx(streamed, rel=1e-9)


def test_look_ups_go_by_bits_and_unpacking_by_what_was_counted() -> None:
    wide = {"cpu.dram.cores.bandwidth": "900 GB/s"}
    free = cpu(stream="900 GB/s", prepare=0).replace(wide)

    def down(machine: Machine, weight: str, mapping: str) -> float:
        work = ob.Decode(model(weight), 1, 64)
        frame = ob.simulate(machine, work, mapping=mapping).breakdown.set_index("operator")
        return float(frame.loc["down", "seconds"])

    assert down(free, "q4.25", "t-mac") == pytest.approx(2 * down(free, "t2", "t-mac"), rel=1e-9)
    assert down(free, "q2.25", "t-mac") == pytest.approx(down(free, "t2", "t-mac"), rel=1e-9)
    other = cpu("unpack", stream="900 GB/s", prepare=0).replace(wide)
    ratio = down(other, "q4.5", "llama-cpp") / down(other, "q2.625", "llama-cpp")
    assert ratio == pytest.approx(0.44 / 0.61, rel=1e-9)


@pytest.mark.parametrize("name", CPUS)
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_bound_is_no_more_than_the_analytic_answer(name: str, library: str) -> None:
    unit, weight = LIBRARIES[library]
    machine = load_machine(name)
    cores = machine.unit(f"cpu.{unit}").config.instances
    for threads in (1, cores):
        for work in (ob.Decode(model(weight), 2, 100), ob.Prefill(model(weight), 1, 32)):
            run = [
                ob.simulate(
                    cpu(unit, machine, threads=threads), work, mapping=library, fidelity=f
                ).seconds
                for f in ("bound", "analytic", "event")
            ]
            assert 0 < run[0] <= run[1] <= run[2] * (1 + 1e-9)


@settings(max_examples=25, deadline=None)
@given(
    threads=st.integers(1, 4),
    handoff=st.floats(0.0, 1e-6),
    stream=st.floats(1e9, 4e10),
    share=st.floats(0.1, 1.0),
)
def test_faster_parts_are_never_slower(
    threads: int, handoff: float, stream: float, share: float
) -> None:
    machine = cpu(threads=threads)
    work = ob.Gemm(m=1, n=4000, k=3200, dtype="fp16")
    base = {
        "cpu.lookup.cpu.handoff": handoff,
        "cpu.lookup.cpu.stream": stream,
        "cpu.lookup.efficiency": share,
    }
    slow = ob.simulate(machine.with_values(base), work).seconds
    for name, factor in (("cpu.handoff", 0.5), ("cpu.stream", 2.0), ("efficiency", 1.5)):
        path = f"cpu.lookup.{name}"
        value = min(base[path] * factor, 1.0) if name == "efficiency" else base[path] * factor
        quick = ob.simulate(machine.with_values({**base, path: value}), work).seconds
        assert quick <= slow * (1 + 1e-12)


def test_more_threads_may_be_slower_where_barriers_outweigh_what_they_share() -> None:
    # Known anomaly: a count of threads is a structure, not a rate.
    slow = {"cpu.lookup.cpu.handoff": 5e-6}
    times = [seconds(cpu(threads=n).with_values(slow)) for n in (1, 2, 4)]
    assert times[1] < times[0]
    assert times[2] > times[1]
    without = [seconds(cpu(threads=n, handoff="0 s")) for n in (1, 2, 3, 4)]
    assert np.all(np.diff(without) <= 0)


def test_busy_cores_lower_the_clock() -> None:
    book = load_machine("surface-book-3")
    free = book.replace({"cpu.lookup.cpu.sustained": "3.9 GHz"})
    four = [seconds(cpu("lookup", m, threads=4)) for m in (book, free)]
    one = [seconds(cpu("lookup", m, threads=1)) for m in (book, free)]
    assert four[0] > 1.2 * four[1]
    assert one[0] == one[1]


def test_energy_is_power_of_cores_with_a_thread_and_of_what_is_read() -> None:
    result = ob.simulate(cpu(threads=2), ob.Decode(model(), 1, 64))
    cores = 2 * 1.5 * result.seconds
    read = result.joules - cores
    assert 0.9 < read / (8 * 4e-12 * 1.03e9) < 1.1


def test_refusals_name_what_is_missing() -> None:
    with pytest.raises(UncoveredError, match=r"5 threads share the 4 cores"):
        seconds(cpu(threads=5))
    with pytest.raises(UncoveredError, match=r"no kernel for t1.6 of 'qkv'"):
        seconds(PI, "t1.6")
    with pytest.raises(UncoveredError, match=r"no kernel for t2 .* It has: q2_625, q4_5"):
        seconds(PI, "t2", "llama-cpp")
    with pytest.raises(UncoveredError, match="no `cpu` block"):
        seconds(PI.replace({"cpu.lookup.cpu": None}))
    with pytest.raises(ConfigError):
        cpu(threads=0)


def test_eight_rows_are_calibrated_and_sixteen_are_within_a_quarter_on_average() -> None:
    rows = list(validate_source("t_mac"))
    alone = [v for v in rows if ".1t." in v.id]
    assert len(alone) == 8
    assert len(rows) == 24
    assert {v.evidence for v in alone} == {"calibrated"}
    assert all(abs(v.error) < 0.001 for v in alone)
    for library in LIBRARIES:
        errors = [abs(v.error) for v in rows if v.id.endswith(library) and v not in alone]
        assert len(errors) == 8
        assert np.mean(errors) < 0.25
    assert not any(v.evidence == "predicted" for v in rows)
