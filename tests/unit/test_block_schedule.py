"""Zigzag blocks: closed forms of copies, laws, capacity, neurons, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.mapping import load_mapping
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.neuron_cache import uses, window_shares
from opbyte.sim.place import Placer
from opbyte.sim.result import Result
from opbyte.sim.simulate import evaluate, simulate
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model
from opbyte.workloads.phases import Decode, Generate, Prefill

LAYERS, HIDDEN, WIDTH = 6, 1024, 4096
MODEL = Model(
    "small", HIDDEN, 2000, (Layer(Attention(8, 8, 128), DenseFfn(WIDTH, 2)),),
    (0,) * LAYERS,
).with_precision(weight="fp16", activation="fp16", kv="fp16")  # fmt: skip
PCIE = 16e9 * 0.8


def mapping(batches: int = 1, prefetch: str = "all", **changes: Any) -> dict[str, Any]:
    cache = {"tier": "gpu.gddr", "evict": "none", "prefetch": prefetch}
    base = {
        "groups": {"gpus": "gpu"},
        "place": {
            "weight": {"in": {"host.dram": 1.0}, "cache": cache},
            "kv": {"in": {"gpu.gddr": 1.0}},
            "activation": {"in": {"gpu.gddr": 1.0}},
        },
        "pipeline": {"kind": "zigzag", "batches": batches},
        "run": [{"ops": "all", "unit": "gpu.sm"}],
        "launch": "software",
    }
    return {**base, **changes}


def run(
    work: Any, chosen: Any, machine: Machine | str = "t4-host", fidelity: Any = "analytic"
) -> Result:
    return simulate(machine, work, chosen, fidelity)


def decode(batch: int = 8) -> Decode:
    return Decode(MODEL, batch=batch, context=256)


def weights() -> float:
    return float(decode().footprint(load_mapping(mapping()).degrees)["weight"])  # type: ignore[arg-type]


def test_what_is_all_there_takes_what_it_takes_without_blocks() -> None:
    plain = {"weight": {"in": {"gpu.gddr": 1.0}}, "kv": {"in": {"gpu.gddr": 1.0}}}
    once = mapping(place={**plain, "activation": {"in": {"gpu.gddr": 1.0}}})
    without = {k: v for k, v in once.items() if k != "pipeline"}
    for work in (decode(), Prefill(MODEL, batch=2, input=64)):
        assert run(work, once).seconds == pytest.approx(run(work, without).seconds, rel=1e-12)
    three = run(decode(12), {**once, "pipeline": {"kind": "zigzag", "batches": 3}})
    assert three.seconds == pytest.approx(3 * run(decode(4), without).seconds, rel=1e-12)
    assert three.copied_bytes == 0


def test_on_demand_adds_the_copies_and_prefetching_hides_the_shorter() -> None:
    plain = mapping(place={"weight": {"in": {"gpu.gddr": 1.0}}, "kv": {"in": {"gpu.gddr": 1.0}}})
    own = run(decode(), plain).seconds
    late, early = run(decode(), mapping(prefetch="none")), run(decode(), mapping())
    assert late.copy_s == pytest.approx(late.copied_bytes / PCIE + (LAYERS + 2) * 10.5e-6, rel=1e-9)
    assert late.seconds == pytest.approx(own + late.copy_s, rel=1e-9)
    assert early.seconds == pytest.approx(early.copied_bytes / PCIE, rel=1e-3)
    assert max(own, early.copied_bytes / PCIE) <= early.seconds * (1 + 1e-9)
    # All weights but the rows of the embedding that no token takes.
    assert late.copied_bytes == pytest.approx(weights() - 2000 * HIDDEN * 2, rel=1e-2)


HOST = [{"ops": "ffn", "unit": "host.cpu"}, {"ops": "all", "unit": "gpu.sm"}]


def of_networks() -> float:
    (phase,) = decode().lowered(load_mapping(mapping()).degrees)
    table = phase.table
    runs = np.bincount(table.order, minlength=len(table.blocks))[table.block_of]
    mine = ["ffn" in labels for labels in table.labels]
    return float((table["weight"][:, 0] * runs)[mine].sum())


@pytest.mark.parametrize("prefetch", ["none", "all"])
def test_weights_of_operators_that_the_host_runs_stay_there(prefetch: str) -> None:
    whole, host = (run(decode(), mapping(prefetch=prefetch, run=rules)) for rules in (
        [{"ops": "all", "unit": "gpu.sm"}], HOST))  # fmt: skip
    assert of_networks() > 0.5 * whole.copied_bytes
    assert host.copied_bytes == pytest.approx(whole.copied_bytes - of_networks(), rel=1e-12)
    # The host's operators take what they take on weights beside them: no byte of those crosses.
    place = {"weight": {"in": {"host.dram": 1.0}}, "kv": {"in": {"gpu.gddr": 1.0}},
             "activation": {"in": {"gpu.gddr": 1.0}}}  # fmt: skip
    there = mapping(place=place, run=HOST)
    seconds = [r.breakdown.set_index("operator")["seconds"] for r in (host, run(decode(), there))]
    for name in ("up", "down"):
        assert seconds[0][name] == pytest.approx(seconds[1][name], rel=1e-12)
    # Buffers are those of a layer's attention.
    less = whole.occupancy["gpu.gddr"] - host.occupancy["gpu.gddr"]
    ahead = 2 if prefetch == "all" else 1
    assert less == pytest.approx(ahead * 2.0 * 2 * HIDDEN * WIDTH, rel=1e-2)


@pytest.mark.parametrize("shares", [{"host.dram": 1.0}, {"host.dram": 0.75, "disk.flash": 0.25}])
def test_only_what_lives_elsewhere_comes_to_a_unit_without_the_cache(
    shares: dict[str, float],
) -> None:
    chosen = mapping(run=[{"ops": "all", "unit": "host.cpu"}])
    chosen["place"]["weight"]["in"] = shares
    away = shares.get("disk.flash", 0.0)
    whole = run(decode(), mapping()).copied_bytes
    assert run(decode(), chosen).copied_bytes == pytest.approx(away * whole, rel=1e-12)


def test_the_host_reads_its_own_keys_whatever_the_cache_is() -> None:
    cache = {"tier": "gpu.gddr", "evict": "none", "prefetch": "all"}
    rules = [{"ops": "attention_decode", "unit": "host.cpu"}, {"ops": "all", "unit": "gpu.sm"}]
    plain = {"weight": {"in": {"gpu.gddr": 1.0}}, "kv": {"in": {"host.dram": 1.0}},
             "activation": {"in": {"gpu.gddr": 1.0}}}  # fmt: skip
    cached = {**plain, "kv": {"in": {"host.dram": 1.0}, "cache": cache}}
    here, there = (run(decode(), mapping(place=p, run=rules)) for p in (plain, cached))
    # New keys, which the GPU makes, go out through the cache instead of past it.
    busy = [r.resources.set_index("resource")["busy_s"] for r in (here, there)]
    assert there.seconds == pytest.approx(here.seconds, rel=0.05)
    assert busy[1]["pcie"] <= busy[0]["pcie"] * (1 + 1e-9)
    widened = {**cached, "kv": {**cached["kv"], "format": "fp16"}}
    with pytest.raises(UncoveredError, match=r"kv\.format unpacks .* beside 'host\.dram'"):
        run(decode(), mapping(place=widened, run=rules))


def test_batches_share_one_load_of_weights_until_they_compute_for_longer() -> None:
    found = [run(decode(8 * n), mapping(n)) for n in (1, 2, 4)]
    assert [r.copied_bytes for r in found] == [found[0].copied_bytes] * 3
    assert [r.tokens_per_s / found[0].tokens_per_s for r in found] == pytest.approx(
        [1, 2, 4], rel=5e-3
    )
    many = [run(Prefill(MODEL, batch=8 * n, input=512), mapping(n)).seconds for n in (4, 8)]
    assert many[1] == pytest.approx(2 * many[0], rel=0.01)


def test_shares_copies_and_their_way_back() -> None:
    half = mapping(place={
        "weight": {"in": {"gpu.gddr": 0.5, "host.dram": 0.3, "disk.flash": 0.2},
                   "cache": {"tier": "gpu.gddr", "evict": "none", "prefetch": "all"}},
        "kv": {"in": {"disk.flash": 1.0},
               "cache": {"tier": "gpu.gddr", "evict": "none", "prefetch": "all"}},
    })  # fmt: skip
    whole, result = run(decode(), mapping()), run(decode(), half)
    assert result.copied_bytes == pytest.approx(0.5 * whole.copied_bytes, rel=1e-12)
    busy = result.resources.set_index("resource")["busy_s"]
    table = decode().lowered(load_mapping(half).degrees)[0].table
    read, written = float(table.total("kv_read")[0]), float(table.total("kv_write")[0])
    from_disk = 0.2 * whole.copied_bytes + read
    assert busy["disk.flash.nvme"] == pytest.approx(from_disk / 2e9 + written / 1e9, rel=1e-9)
    assert busy["nvme"] == pytest.approx(from_disk / 4e9, rel=1e-9)
    assert busy["nvme.back"] == pytest.approx(written / 4e9, rel=1e-9)
    assert busy["pcie"] == pytest.approx((0.5 * whole.copied_bytes + read) / PCIE, rel=1e-9)


def test_software_on_the_way_bounds_the_copies() -> None:
    place = {"weight": {"in": {"disk.flash": 1.0}, "cache": {"tier": "gpu.gddr", "evict": "none"}},
             "kv": {"in": {"gpu.gddr": 1.0}}}  # fmt: skip
    measured = {"weight": {"via": ["nvme"], "software": {"cap": "100 MB/s"}}}
    capped = mapping(place=place, routes=measured)
    result = run(decode(), capped)
    assert result.copy_rate == pytest.approx(100e6, rel=1e-3)
    assert run(decode(), capped, fidelity="bound").copy_rate == pytest.approx(2e9, rel=1e-9)
    steps = {"access": "direct", "request": "4 KiB"}
    slow = mapping(place=place, routes={"weight": {"via": ["nvme"], "software": steps}})
    assert run(decode(), slow).copy_rate < 0.1 * run(decode(), mapping(place=place)).copy_rate


def test_bound_is_never_slower_and_more_rate_never_hurts() -> None:
    machine = load_machine("t4-host")
    work = Generate(MODEL, batch=24, input=128, output=16)
    for name in ("host", "disk", "weights-on-host"):
        real = run(work, name, machine).seconds
        assert run(work, name, machine, "bound").seconds <= real * (1 + 1e-9)
        for path in ("pcie.bandwidth", "disk.flash.nvme.bandwidth", "host.io.memcpy"):
            faster = machine.with_values({path: 2 * machine.values[path]})
            assert run(work, name, faster).seconds <= real * (1 + 1e-9), (name, path)


def test_points_are_those_of_single_simulations() -> None:
    machine, work = load_machine("t4-host"), Generate(MODEL, batch=32, input=128, output=16)
    rates = np.array([4e9, 16e9, 64e9])
    chosen = machine.mapping("disk")
    together = evaluate(machine.with_values({"pcie.bandwidth": rates}), work, chosen)
    for i, rate in enumerate(rates):
        alone = evaluate(machine.with_values({"pcie.bandwidth": float(rate)}), work, chosen)
        for name in ("seconds", "joules", "ttft", "tpot"):
            one = np.broadcast_to(together.metrics[name], 3)[i]
            assert one == pytest.approx(float(alone.metrics[name][0]), rel=1e-12)


def test_what_fits_no_tier_is_refused_with_its_bytes() -> None:
    big = {"kind": "generate", "model": "opt-175b", "batch": 256, "input": 512, "output": 32}
    with pytest.raises(CapacityError, match=r"weight do not fit in host\.dram: 325\.2 GiB"):
        simulate("t4-host", {**big, "batch": 1}, "weights-on-host")
    with pytest.raises(CapacityError, match=r"disk\.flash"):
        simulate("t4-host", {**big, "batch": 1024}, "disk")
    assert simulate("t4-host", big, "disk").occupancy["disk.flash"] < 1.5e12


def test_buffers_of_copies_take_room_twice_where_they_come_early() -> None:
    late, early = run(decode(), mapping(prefetch="none")), run(decode(), mapping())
    more = early.occupancy["gpu.gddr"] - late.occupancy["gpu.gddr"]
    layer = 2.0 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * WIDTH)
    assert more == pytest.approx(layer, rel=1e-2)


def test_unpacking_reads_and_writes_what_is_wide() -> None:
    plain = {"weight": {"in": {"gpu.gddr": 1.0}}, "kv": {"in": {"gpu.gddr": 1.0}}}
    wide = {**plain, "weight": {"in": {"gpu.gddr": 1.0}, "format": "fp16"}}
    work = Decode(MODEL.with_precision(weight="q4.5"), batch=8, context=256)
    more = run(work, mapping(place=wide)).seconds - run(work, mapping(place=plain)).seconds
    stored = float(work.lowered(load_mapping(mapping()).degrees)[0].table.total("weight")[0])
    assert more == pytest.approx(2 * stored * 16 / 4.5 / (320e9 * 0.75), rel=0.01)


def test_kernels_that_are_not_fused_cross_memory_more_often() -> None:
    kernels = {"to": "fp16", "passes": 8.25}
    plain = {"weight": {"in": {"gpu.gddr": 1.0}}, "kv": {"in": {"gpu.gddr": 1.0}}}
    work = Decode(MODEL.with_precision(weight="q4.5"), batch=8, context=256)
    own = run(work, mapping(place=plain)).seconds

    def more(form: Any) -> float:
        wide = {**plain, "weight": {"in": {"gpu.gddr": 1.0}, "format": form}}
        return run(work, mapping(place=wide)).seconds - own

    assert more(kernels) == pytest.approx(8.25 / 2 * more("fp16"), rel=1e-6)
    assert more({"to": "fp16"}) == more("fp16")
    with pytest.raises(ConfigError, match="passes"):
        more({"to": "fp16", "passes": 1})


def test_score_matrices_are_held_written_and_read_where_they_are_placed() -> None:
    work, batch, tokens = Prefill(MODEL, batch=4, input=512), 4, 512
    plain = {"weight": {"in": {"gpu.gddr": 1.0}}, "kv": {"in": {"gpu.gddr": 1.0}},
             "activation": {"in": {"gpu.gddr": 1.0}}}  # fmt: skip
    three = {**plain, "scores": {"in": {"gpu.gddr": 1.0}, "copies": 3}}
    fused, eager = run(work, mapping(place=plain)), run(work, mapping(place=three))
    scores = 3 * batch * 8 * tokens * tokens * 2.0
    assert eager.occupancy["gpu.gddr"] - fused.occupancy["gpu.gddr"] == pytest.approx(scores)
    expected = LAYERS * 2 * scores / (320e9 * 0.75)
    assert eager.seconds - fused.seconds == pytest.approx(expected, rel=1e-9)
    # Where attention runs at another memory, this one holds none.
    cache = {"tier": "gpu.gddr", "evict": "none", "prefetch": "all"}
    away = mapping(
        place={**three, "kv": {"in": {"host.dram": 1.0}}, "activation": {
            "in": {"host.dram": 1.0}, "cache": cache}},
        run=[{"ops": "attention_decode", "unit": "host.cpu"}, {"ops": "all", "unit": "gpu.sm"}],
    )  # fmt: skip
    without = {**away, "place": {k: v for k, v in away["place"].items() if k != "scores"}}
    assert run(decode(), away).seconds == run(decode(), without).seconds
    several = {**plain, "scores": {"in": {"gpu.gddr": 0.5, "host.dram": 0.5}, "copies": 3}}
    with pytest.raises(ConfigError, match="score matrices are in one memory"):
        run(work, mapping(place=several))


def test_software_on_several_links_of_one_way() -> None:
    cache = {"tier": "gpu.gddr", "evict": "none"}
    kv = {"in": {"disk.flash": 1.0}, "cache": cache}
    place = {"weight": {"in": {"gpu.gddr": 1.0}}, "kv": kv}
    disk = {"via": ["nvme"], "software": {"cap": "1 GB/s"}}
    staging = {"via": ["pcie"], "software": {"staged": True}}
    both = run(decode(), mapping(place=place, routes={"kv": [disk, staging]}))
    busy = both.resources.set_index("resource")["busy_s"]
    assert busy["software.nvme"] == pytest.approx(5 * busy["software.pcie"], rel=1e-9)
    assert both.seconds == run(decode(), mapping(place=place, routes={"kv": disk})).seconds


def test_the_share_of_the_cache_is_what_a_step_takes_less_without_it() -> None:
    cache = {"tier": "gpu.gddr", "evict": "none", "prefetch": "none"}
    kv = {"in": {"host.dram": 1.0}, "cache": cache}
    place = {"weight": {"in": {"gpu.gddr": 1.0}}, "kv": kv}
    late = run(decode(), mapping(place=place))
    frame = late.breakdown[late.breakdown["operator"] != "copies"]
    attention = frame["operator"].str.contains("score|softmax|context")
    rest = frame[~attention]["seconds"].sum()
    assert late.kv_s == pytest.approx(late.seconds - rest, rel=1e-9)
    assert late.kv_share == pytest.approx(late.kv_s / late.seconds, rel=1e-12)
    kv["cache"] = {**cache, "prefetch": "all"}
    assert run(decode(), mapping(place=place)).kv_s < late.kv_s


def test_nothing_hides_what_blocks_the_thread_that_starts_kernels() -> None:
    place = {"weight": {"in": {"host.dram": 1.0}, "cache": {
        "tier": "gpu.gddr", "evict": "none", "prefetch": "all"}},
        "kv": {"in": {"gpu.gddr": 1.0}}}  # fmt: skip
    staging = {"via": ["pcie"], "software": {"staged": True, "blocks": True}}
    plain = run(decode(), mapping(place=place))
    blocked = run(decode(), mapping(place=place, routes={"weight": staging}))
    more = plain.copied_bytes / 5e9
    assert blocked.seconds == pytest.approx(plain.seconds + more, rel=1e-9)
    assert blocked.copy_s == plain.copy_s
    assert blocked.occupancy == plain.occupancy


# -- neurons ------------------------------------------------------------------------------------


def neurons(**changes: Any) -> dict[str, Any]:
    cache = {"tier": "device.dram", "evict": "none"}
    rows = {"access": "direct", "request": "neuron", "threads": 32}
    return {
        "groups": {"devices": "device"},
        "place": {
            "weight": {"in": {"device.dram": 1.0}},
            "ffn.weight": {"in": {"disk.flash": 1.0}, "cache": cache},
            "kv": {"in": {"device.dram": 1.0}},
        },
        "neurons": {"used": 0.1, "fresh": 0.02, "kept": 0.2, "predictor": 0.01, **changes},
        "routes": {"ffn.weight": {"via": ["nvme"], "software": rows}},
        "pipeline": {"kind": "zigzag", "batches": 1},
        "run": [{"ops": "all", "unit": "device.cpu"}],
        "launch": "software",
    }


NETWORKS = LAYERS * 2 * HIDDEN * WIDTH * 2.0


def test_a_token_reads_fresh_neurons_in_requests_of_one() -> None:
    work = decode(1)
    apart, bundled = run(work, neurons(), "m1-max"), run(work, neurons(bundle=True), "m1-max")
    assert apart.copied_bytes == pytest.approx(0.02 * NETWORKS, rel=2e-3)
    latency = LAYERS * 101e-6
    for result, row in ((apart, 2 * HIDDEN), (bundled, 4 * HIDDEN)):
        rate = row / (5.2e-6 + row / 6.1e9)
        assert result.copy_s == pytest.approx(result.copied_bytes / rate + latency, rel=1e-9)
    assert apart.cache_s == pytest.approx(2 * apart.copied_bytes / 10e9, rel=1e-9)
    assert bundled.cache_s == apart.cache_s


def test_a_window_trades_memory_for_reads() -> None:
    work = decode(1)
    window = run(work, neurons(), "m1-max")
    none = run(work, neurons(kept=None, fresh=0.1), "m1-max")
    assert none.copied_bytes == pytest.approx(5 * window.copied_bytes, rel=1e-12)
    assert none.cache_s == 0
    held = window.peak_fast_bytes - none.peak_fast_bytes
    # The buffer of a layer's fresh neurons is smaller with a window.
    assert held == pytest.approx(0.2 * NETWORKS - 0.08 * NETWORKS / LAYERS, rel=2e-3)
    assert run(work, neurons(), "m1-max").flops < 0.6 * run(work, "default", "m1-max").flops


def test_a_window_of_tokens_keeps_and_reads_what_their_popularity_says() -> None:
    popular = {"fresh": None, "kept": None, "window": 5, "popularity": {"top": 0.26, "share": 0.8}}
    chosen = neurons(**popular)
    chosen["neurons"] = {k: v for k, v in chosen["neurons"].items() if v is not None}
    kept, fresh = window_shares(uses(WIDTH, 0.1, 0.26, 0.8), 5)
    found = run(decode(1), chosen, "m1-max")
    given = run(decode(1), neurons(fresh=fresh, kept=kept), "m1-max")
    assert found.seconds == pytest.approx(given.seconds, rel=1e-12)
    assert found.peak_fast_bytes == pytest.approx(given.peak_fast_bytes, rel=1e-12)
    longer = {**chosen["neurons"], "window": 20}
    assert run(decode(1), {**chosen, "neurons": longer}, "m1-max").copied_bytes < found.copied_bytes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"fresh": None}, "need `fresh`, or `popularity` and `window`"),
        ({"fresh": None, "popularity": {"top": 0.26, "share": 0.8}}, "for a `window` of tokens"),
        ({"overlap": "cluster"}, "overlap: none"),
        ({"hot": {"share": 0.1, "unit": "device.cpu"}}, r"no model of neurons\.hot"),
    ],
)
def test_what_zigzag_blocks_do_not_read_is_refused(changes: dict[str, Any], text: str) -> None:
    chosen = neurons(**{"kept": None, **changes})
    chosen["neurons"] = {k: v for k, v in chosen["neurons"].items() if v is not None}
    with pytest.raises(UncoveredError, match=text):
        run(decode(1), chosen, "m1-max")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"neurons": None}, "belong together"),
        ({"pipeline": None}, "no model of the cache of ffn.weight"),
        ({"neurons": {"used": 0.1, "fresh": 0.2, "predictor": 0.01}}, "uses no fewer neurons"),
    ],
)
def test_half_of_neurons_is_refused(changes: dict[str, Any], text: str) -> None:
    chosen = {k: v for k, v in {**neurons(), **changes}.items() if v is not None}
    with pytest.raises((UncoveredError, ConfigError), match=text):
        run(decode(1), chosen, "m1-max")


def test_neurons_are_read_for_decode_steps() -> None:
    with pytest.raises(UncoveredError, match="by decode works"):
        run(Generate(MODEL, batch=1, input=8, output=8), neurons(), "m1-max")


# -- refusals -----------------------------------------------------------------------------------


def test_what_has_no_blocks_is_refused() -> None:
    with pytest.raises(UncoveredError, match="event kernel does not play zigzag"):
        run(decode(), mapping(), fidelity="event")
    work = {"kind": "mixed", "model": "opt-1.3b", "decodes": 8, "context": 256}
    with pytest.raises(UncoveredError, match="has no zigzag blocks"):
        simulate("t4-host", work, mapping())
    route = {"kv": {"via": ["nvme"], "software": {"cap": "1 GB/s"}}}
    with pytest.raises(ConfigError, match=r"class with a `cache` or `spill`.*weight"):
        run(decode(), mapping(routes=route))
    for via, text in (("nvmee", "must name links"), ("nvme", "that copies of the class cross")):
        route = {"weight": {"via": [via], "software": {"cap": "1 GB/s"}}}
        with pytest.raises(ConfigError, match=text):
            run(decode(), mapping(routes=route))
    with pytest.raises(ConfigError, match="says what software does"):
        run(decode(), mapping(routes={"weight": {"via": ["pcie"]}}))
    experts = {"kind": "decode", "model": "mixtral-8x7b", "batch": 1, "context": 128}
    with pytest.raises(UncoveredError, match="do not copy experts"):
        simulate("t4-host", experts, mapping())
    with pytest.raises(UncoveredError, match="no model of `host`"):
        run(decode(), mapping(host="1 ms"))
    lru = mapping()
    lru["place"]["weight"]["cache"] = {"tier": "gpu.gddr", "evict": "lru"}
    with pytest.raises(UncoveredError, match="evict: none"):
        run(decode(), lru)


def test_units_do_not_read_a_storage_device() -> None:
    place = {"weight": {"in": {"disk.flash": 1.0}}, "kv": {"in": {"gpu.gddr": 1.0}}}
    with pytest.raises(UncoveredError, match=r"do not read 'disk\.flash\.nvme'"):
        run(decode(), {k: v for k, v in mapping(place=place).items() if k != "pipeline"})
    assert Placer(load_machine("t4-host"), load_mapping(mapping())).devices == 1


def test_the_breakdown_adds_up_and_copies_have_their_energy() -> None:
    plain = mapping(place={"weight": {"in": {"gpu.gddr": 1.0}}, "kv": {"in": {"gpu.gddr": 1.0}}})
    own, late = run(decode(), plain), run(decode(), mapping(prefetch="none"))
    frame = late.breakdown
    assert frame["seconds"].sum() == pytest.approx(late.seconds, rel=1e-9)
    copies = frame[frame["operator"] == "copies"].iloc[0]
    assert copies["seconds"] == pytest.approx(late.copy_s, rel=1e-9)
    # The host's memory, PCIe and the GPU's memory, J/bit.
    spent = 8 * late.copied_bytes * (9e-12 + 11.4e-12 + 15e-12)
    assert copies["joules"] == pytest.approx(spent, rel=1e-9)
    site = load_machine("t4-host").values
    price = site["site.electricity"] * site["site.overhead"]
    energy = late.tco_usd_per_mtoken - late.usd_per_mtoken
    assert energy == pytest.approx(1e6 * late.joules_per_token * price, rel=1e-9)
    idle = (late.joules - own.joules - spent) / (late.seconds - own.seconds)
    assert idle == pytest.approx(12.0, rel=1e-6)
