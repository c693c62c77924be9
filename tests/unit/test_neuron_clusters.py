"""Neurons in a cache, read and computed cluster by cluster: closed forms, laws, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.mapping import load_mapping
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.neuron_cache import missed_share, uses
from opbyte.sim.result import Result
from opbyte.sim.simulate import evaluate, simulate
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model, MoeFfn
from opbyte.workloads.phases import Decode, Prefill

LAYERS, HIDDEN, WIDTH, EXPERTS, PICKS = 4, 1024, 2048, 8, 2
Q4 = {"weight": "q4.5", "activation": "fp16", "kv": "fp16"}
DENSE = Model(
    "dense", HIDDEN, 2000, (Layer(Attention(8, 8, 128), DenseFfn(WIDTH)),), (0,) * LAYERS
).with_precision(**Q4)
MOE = Model(
    "moe", HIDDEN, 2000, (Layer(Attention(8, 8, 128), MoeFfn(EXPERTS, PICKS, WIDTH)),),
    (0,) * LAYERS,
).with_precision(**Q4)  # fmt: skip
#: Bytes of the three rows of a neuron, and of all networks.
NEURON = 3 * HIDDEN * 4.5 / 8
NETWORKS = {"dense": LAYERS * WIDTH * NEURON, "moe": LAYERS * EXPERTS * WIDTH * NEURON}
#: A read of 4 KiB on the phone: the device's cost of a command, and its bytes.
RATE = 4096 / (3.07e-6 + 4096 / 4e9)
LATENCY = 101e-6


def mapping(model: Model = DENSE, *, keep: float = 0.5, **neurons: Any) -> dict[str, Any]:
    """A mapping whose cache has room for a share of the networks, `reserve` leaving that much."""
    tensor = "expert.weight" if model is MOE else "ffn.weight"
    base = {"used": 0.2, "popularity": {"top": 0.3, "share": 0.7}, "bundle": True, "align": "4 KiB"}
    held = {
        k: float(np.max(v))
        for k, v in decode(model)
        .footprint(load_mapping({"run": [{"ops": "all", "unit": "x"}]}).degrees)
        .items()
    }
    beside = sum(held.values()) - NETWORKS[model.name]
    free = 24e9 - beside - keep * NETWORKS[model.name]
    cache = {"tier": "phone.dram", "evict": "lru", "reserve": f"{free:.0f} B"}
    software = {"access": "direct", "request": "neuron", "threads": 4, "depth": 16}
    return {
        "groups": {"devices": "phone"},
        "place": {
            "weight": {"in": {"phone.dram": 1.0}},
            tensor: {"in": {"disk.flash": 1.0}, "cache": cache},
            "kv": {"in": {"phone.dram": 1.0}},
        },
        "neurons": {k: v for k, v in {**base, **neurons}.items() if v is not None},
        "routes": {tensor: {"via": ["lanes"], "software": software}},
        "run": [{"ops": "ffn", "unit": "phone.cpu"}, {"ops": "all", "unit": "phone.npu"}],
        "launch": "hardware",
    }


def decode(model: Model = DENSE, **fields: Any) -> Decode:
    return Decode(model, **{"batch": 1, "context": 128, **fields})


def run(model: Model = DENSE, fidelity: Any = "analytic", **changes: Any) -> Result:
    return simulate("oneplus-12", decode(model), mapping(model, **changes), fidelity)


def resident(model: Model, used: float) -> Result:
    """The same neurons with everything in memory."""
    chosen = mapping(model)
    place = {"weight": {"in": {"phone.dram": 1.0}}, "kv": {"in": {"phone.dram": 1.0}}}
    chosen = {**chosen, "place": place, "routes": {}, "neurons": {"used": used}}
    return simulate("oneplus-12", decode(model), chosen)


@pytest.mark.parametrize("model", [DENSE, MOE], ids=lambda m: m.name)
def test_what_is_all_there_reads_nothing_and_takes_what_it_takes_in_memory(model: Model) -> None:
    found = run(model, keep=1.0)
    assert (found.copied_bytes, found.hit_rate, found.copy_s) == (0, 1, 0)
    assert found.seconds == pytest.approx(resident(model, 0.2).seconds, rel=1e-9)


@pytest.mark.parametrize("model", [DENSE, MOE], ids=lambda m: m.name)
def test_a_token_reads_what_the_cache_misses_in_bundles(model: Model) -> None:
    share = 0.2 * (PICKS / EXPERTS if model is MOE else 1)
    count = WIDTH * (EXPERTS if model is MOE else 1)
    missed = missed_share(uses(count, share, 0.3, 0.7), 0.5)
    found = run(model)
    assert found.copied_bytes == pytest.approx(LAYERS * missed * count * 4096, rel=1e-3)
    assert found.hit_rate == pytest.approx(1 - missed / share, rel=1e-3)
    assert found.copy_s == pytest.approx(found.copied_bytes / RATE + LAYERS * LATENCY, rel=1e-9)
    whole = resident(model, 0.2).seconds
    assert found.seconds == pytest.approx(whole + found.copy_s, rel=1e-9)


def test_overlap_by_clusters_is_the_longer_of_both_and_of_matrices_lies_between() -> None:
    none, matrix, cluster = (run(overlap=o, clusters=8) for o in ("none", "matrix", "cluster"))
    assert none.copied_bytes == matrix.copied_bytes == cluster.copied_bytes
    assert cluster.seconds < matrix.seconds < none.seconds
    compute = none.network_s - none.copy_s
    rest = none.seconds - none.network_s
    frame = resident(DENSE, 0.2).breakdown.set_index("operator")["seconds"]
    assert compute == pytest.approx(frame["gate_up"] + frame["down"], rel=1e-9)
    longest = max(compute, none.copy_s + compute / 8)
    assert cluster.network_s == pytest.approx(longest, rel=1e-9)
    assert cluster.seconds == pytest.approx(rest + longest, rel=1e-9)
    first, second = frame["gate_up"], frame["down"]
    barrier = max(first, none.copy_s + first / 8) + second
    assert matrix.network_s == pytest.approx(barrier, rel=1e-9)


def test_rows_that_lie_apart_arrive_with_their_matrix() -> None:
    apart = run(bundle=None, overlap="matrix", clusters=8, align=None)
    bundled = run(align=None)
    assert apart.copied_bytes == pytest.approx(bundled.copied_bytes, rel=1e-9)
    assert apart.copy_rate < bundled.copy_rate


def test_half_a_bundle_first_reads_less_in_smaller_requests() -> None:
    whole = run(align="8 KiB")
    halves = run(align="4 KiB", second=0.8)
    # 1.7 KiB lie in one half of 4 KiB: a bundle of this small model is one request, and 0.8 more.
    assert halves.copied_bytes == pytest.approx(1.8 * 4096 / 8192 * whole.copied_bytes, rel=1e-9)
    assert halves.copy_rate < whole.copy_rate


def test_hot_neurons_are_never_read_and_run_beside_the_others() -> None:
    cold, hot = run(), run(hot={"share": 0.1, "unit": "phone.npu"})
    # LRU keeps the most used ones anyway, nearly.
    assert hot.copied_bytes == pytest.approx(cold.copied_bytes, rel=0.1)
    assert hot.flops > cold.flops
    assert 0.5 * cold.op_per_byte < hot.op_per_byte < 2 * cold.op_per_byte
    energy = hot.tco_usd_per_mtoken - hot.usd_per_mtoken
    machine = load_machine("oneplus-12")
    price = machine.values["site.electricity"] * machine.values["site.overhead"]
    assert energy == pytest.approx(1e6 * hot.joules_per_token * price, rel=1e-9)
    assert hot.peak_fast_bytes == pytest.approx(cold.peak_fast_bytes, rel=1e-9)
    busy = hot.resources.set_index("resource")["busy_s"]
    assert busy["phone.npu"] > cold.resources.set_index("resource")["busy_s"]["phone.npu"]


def test_more_memory_and_faster_parts_never_hurt() -> None:
    times = [run(keep=k, overlap="cluster", clusters=8).seconds for k in (0.2, 0.4, 0.8, 1.0)]
    assert times == sorted(times, reverse=True)
    machine = load_machine("oneplus-12")
    chosen = mapping(hot={"share": 0.1, "unit": "phone.npu"}, overlap="matrix", clusters=4)
    real = simulate(machine, decode(), chosen).seconds
    for path in ("disk.flash.ufs.bandwidth", "phone.dram.cores.bandwidth", "phone.cpu.clock",
                 "phone.dram.bus.bandwidth", "phone.npu.peak.fp16"):  # fmt: skip
        faster = machine.with_values({path: 2 * machine.values[path]})
        assert simulate(faster, decode(), chosen).seconds <= real * (1 + 1e-9), path
    assert simulate(machine, decode(), chosen, "bound").seconds <= real


def test_points_are_those_of_single_simulations() -> None:
    machine: Machine = load_machine("oneplus-12")
    chosen = load_mapping(mapping(hot={"share": 0.1, "unit": "phone.npu"}, overlap="cluster"))
    for path, values in (
        ("disk.flash.ufs.command", np.array([1e-6, 3e-6, 9e-6])),
        ("phone.dram.capacity", np.array([24.005e9, 24.01e9])),
        ("phone.dram.cores.bandwidth", np.array([20e9, 76.8e9])),
        ("disk.flash.ufs.latency", np.array([50e-6, 100e-6])),
    ):
        together = evaluate(machine.with_values({path: values}), decode(), chosen)
        for i, value in enumerate(values):
            alone = evaluate(machine.with_values({path: float(value)}), decode(), chosen)
            for name in ("seconds", "joules", "copied_bytes", "hit_rate", "tpot"):
                one = np.broadcast_to(together.metrics[name], len(values))[i]
                assert one == pytest.approx(float(alone.metrics[name][0]), rel=1e-12), name


def test_the_breakdown_adds_up() -> None:
    found = run(overlap="cluster", clusters=8)
    assert found.breakdown["seconds"].sum() == pytest.approx(found.seconds, rel=1e-9)
    assert found.joules > 0
    assert found.occupancy["disk.flash"] == pytest.approx(NETWORKS["dense"], rel=1e-9)
    assert found.occupancy["phone.dram"] <= 24e9


def test_what_always_lies_in_memory_must_fit() -> None:
    with pytest.raises(CapacityError, match=r"hot neurons of ffn\.weight.*phone\.dram"):
        run(keep=0.05, hot={"share": 0.1, "unit": "phone.npu"})


@pytest.mark.parametrize(
    ("neurons", "text"),
    [
        ({"window": 5}, r"no model of neurons\.window"),
        ({"known_by": "gate"}, "known_by: gate"),
        ({"popularity": {"top": 0.9, "share": 0.5}}, "no less than their share"),
        ({"second": 0.8, "bundle": None}, "halves a bundle"),
    ],
)
def test_neurons_that_make_no_sense_are_refused(neurons: dict[str, Any], text: str) -> None:
    with pytest.raises((UncoveredError, ConfigError), match=text):
        run(**neurons)


def test_what_has_no_clusters_is_refused() -> None:
    with pytest.raises(UncoveredError, match="event kernel plays no clusters"):
        run(fidelity="event")
    with pytest.raises(UncoveredError, match="one sequence, got prefill"):
        simulate("oneplus-12", Prefill(DENSE, batch=1, input=8), mapping())
    with pytest.raises(UncoveredError, match="one sequence, got decode"):
        simulate("oneplus-12", decode(batch=2), mapping())
    wrong = mapping()
    wrong["place"]["ffn.weight"]["cache"]["evict"] = "belady"
    with pytest.raises(UncoveredError, match="evict: lru and prefetch: none"):
        simulate("oneplus-12", decode(), wrong)
    with pytest.raises(UncoveredError, match=r"cache of expert\.weight alone, got one of ffn"):
        simulate("oneplus-12", decode(MOE), mapping())
