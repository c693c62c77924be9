"""Do drives, staging, swapped shares and a hidden optimizer take what bytes and blocks say?"""

import copy
from dataclasses import replace

import numpy as np
import pytest
from hosted import hosted
from hypothesis import given
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.mapping import load_mapping
from opbyte.core.parallel import Parallel
from opbyte.core.sourced import sourced, with_values
from opbyte.core.staging import Staging
from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import evaluate
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.train import TrainStep

GIB = 2**30
DRAM, READ, WRITE, WIRE = 200e9, 5e9, 2e9, 32e9
DISK = {
    "count": 1,
    "memory": {
        "flash": {
            "kind": "flash", "capacity": "4 TB",
            "ports": {"nvme": {"bandwidth": "5 GB/s", "write": "2 GB/s", "command": "1 us"}},
        },
    },
}  # fmt: skip


def machine(**changes):
    made = hosted(changes.pop("room", "1 TB"), "600 GFLOP/s", "20 TFLOP/s")
    disk = made["parts"]["disk"] = copy.deepcopy(DISK)
    disk["count"] = changes.pop("drives", 1)
    disk["memory"]["flash"]["ports"]["nvme"].update(changes.pop("drive", {}))
    wire = changes.pop("wire", "8 GB/s")
    made["links"]["nvme"] = {"ends": ["disk", "host"], "bandwidth": wire, "duplex": "full"}
    assert not changes
    return made


def mapping(place=(), overlap="none", **others):
    return {
        "groups": {"gpus": "gpu"}, "parallel": {"all": {"group": "gpus"}},
        "place": {n: {"in": {t: 1.0}} if isinstance(t, str) else t for n, t in dict(place).items()},
        "run": [{"ops": "optimizer", "unit": "host.cores"}, {"ops": "all", "unit": "gpu.sm"}],
        "overlap": overlap, "fusion": "attention", "launch": "graph", **others,
    }  # fmt: skip


def step(**fields):
    fields = {"batch": 4, "micro_batch": 4, "sequence": 2048, "clip": False, **fields}
    fields = {"gradient": "bf16", "recompute": "full", **fields}
    return TrainStep(load_model("llama-3.2-1b"), **fields)


def run(place=(), overlap="none", on=None, fidelity="analytic", others=None, **fields):
    chosen = mapping(place, overlap, **(others or {}))
    return ob.simulate(on or machine(), step(**fields), chosen, fidelity=fidelity)


LOCAL = {"gradient": "host.dram", "optimizer": "host.dram"}
FAR = {"gradient": "host.dram", "optimizer": "disk.flash"}


# -- drives ----------------------------------------------------------------------------------------


def test_states_on_a_drive_are_read_and_written_at_its_rates():
    r = run(FAR)
    n = r.weight_bytes / 2
    # Momentum, variance and master weight, 4 bytes each, both ways; the rest hides behind them.
    drive = n * (12 / READ + 12 / WRITE)
    assert r.optimizer_s == pytest.approx(drive + n * 2 / DRAM, rel=1e-6)
    assert r.occupancy["disk.flash"] == pytest.approx(12 * n)
    assert r.host_bytes == pytest.approx(2 * n)
    # A drive that writes as fast as it reads.
    both = run(FAR, on=machine(drive={"write": "5 GB/s"}))
    assert both.optimizer_s == pytest.approx(n * 24 / READ + n * 2 / DRAM, rel=1e-6)


def test_weights_are_streamed_from_a_drive_twice_a_microbatch():
    # Gradients leave on the other direction of the link, at the same time.
    for batch, passes in ((4, 2), (8, 4)):
        r = run({**LOCAL, "weight": "disk.flash"}, batch=batch)
        assert r.communication_s == pytest.approx(passes * r.weight_bytes / READ, rel=1e-4)


def test_bytes_of_fast_drives_cross_the_host_memory_twice():
    fast = machine(drive={"bandwidth": "5 TB/s", "write": "5 TB/s"}, wire="5 TB/s")
    r = run(FAR, on=fast)
    n = r.weight_bytes / 2
    # Adam's own bytes are the gradient, 2, and the weights, over the link; states cross twice.
    assert r.optimizer_s == pytest.approx(n * (2 + 2 * 24) / DRAM + n * 2 / DRAM, rel=1e-5)


def test_several_drives_share_what_lies_on_them():
    far = {"in": {"disk.flash": 1.0}, "interleave": "1 MiB"}
    one = run({**LOCAL, "optimizer": far})
    four = run({**LOCAL, "optimizer": far}, on=machine(drives=4))
    n = one.weight_bytes / 2
    rest = n * 2 / DRAM
    assert four.optimizer_s - rest == pytest.approx((one.optimizer_s - rest) / 4, rel=1e-6)
    assert four.occupancy["disk.flash"] == pytest.approx(one.occupancy["disk.flash"] / 4)
    # What is not interleaved lies on one of them.
    assert run(FAR, on=machine(drives=4)).seconds == run(FAR).seconds


def test_gradients_of_several_microbatches_do_not_add_up_on_a_drive():
    on_drive = {"gradient": "disk.flash", "optimizer": "host.dram"}
    assert run(on_drive).seconds > run(LOCAL).seconds
    with pytest.raises(UncoveredError, match=r"microbatches on the drive 'disk\.flash'"):
        run(on_drive, batch=8)


def test_a_drive_that_is_full_is_named():
    small = machine()
    small["parts"]["disk"]["memory"]["flash"]["capacity"] = "10 GB"
    with pytest.raises(CapacityError, match=r"disk\.flash"):
        run(FAR, on=small)


def test_each_point_has_its_own_sums_of_gradients():
    chosen, host = load_mapping(mapping(LOCAL)), load_machine(machine())
    both = evaluate(host, step(batch=np.array([4.0, 16.0])), chosen).metrics["seconds"]
    alone = [evaluate(host, step(batch=b), chosen).metrics["seconds"][0] for b in (4.0, 16.0)]
    assert both.tolist() == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize("name", ["kv", "state", "scores", "ffn.weight", "adapter.weight"])
def test_what_no_training_step_has_is_not_placed_elsewhere(name):
    place = {**LOCAL, name: "host.dram"}
    with pytest.raises(ConfigError, match=rf"place\.{name}: training .*, momentum, ") as error:
        run(place)
    assert "got host.dram. leave it out, or place one of theirs: weight, " in str(error.value)
    if name == "kv":
        spills = {"in": {"gpu.hbm": 1.0}, "spill": [{"tier": "disk.flash"}]}
        with pytest.raises(ConfigError, match=r"place\.kv: .* got disk\.flash"):
            run({**LOCAL, "kv": spills})
    # Mappings for all works name it where the unit has everything.
    assert run({**LOCAL, name: "gpu.hbm"}).seconds == run(LOCAL).seconds


# -- engines that keep so many bytes under way -----------------------------------------------------

FLYING, WAY = 8192.0, 0.4e-6 + 1e-6  # bytes; seconds from DRAM and over the link


def with_engine():
    made = machine(drive={"latency": "50 us"})
    made["links"]["pcie"] |= {"in_flight": "8 KiB", "latency": "1 us"}
    made["parts"]["host"]["memory"]["dram"]["ports"]["bus"]["latency"] = "400 ns"
    made["parts"]["gpu"]["memory"]["hbm"]["ports"]["phy"]["latency"] = "500 ns"
    return made


@pytest.mark.parametrize("home", ["host.dram", "disk.flash"])
def test_copies_wait_for_the_bytes_that_an_engine_keeps_under_way(home):
    # Of a drive it reads the buffer: what the drive takes to answer is not on its way.
    fast = {"bandwidth": "5 TB/s", "write": "5 TB/s"}
    on = with_engine()
    on["parts"]["disk"]["memory"]["flash"]["ports"]["nvme"] |= fast
    on["links"]["nvme"]["bandwidth"] = "5 TB/s"
    r = run({**LOCAL, "weight": home}, on=on)
    # Forward and backward; gradients leave beside the latter, and what is written holds no tags.
    assert r.communication_s == pytest.approx(2 * r.weight_bytes * WAY / FLYING, rel=1e-3)
    out = run(LOCAL, on=on)
    assert out.communication_s == pytest.approx(out.gradient_bytes / 32e9, rel=1e-4)
    bound = run({**LOCAL, "weight": home}, on=on, fidelity="bound")
    assert bound.communication_s == pytest.approx(2 * r.weight_bytes / 32e9, rel=1e-6)


def test_an_optimizer_that_reads_over_a_link_waits_for_its_engine():
    r = run(LOCAL, on=with_engine(), others={"run": [{"ops": "all", "unit": "gpu.sm"}]})
    # Adam reads the gradient, 2, and three states of 4 bytes; a cast the master weight.
    assert r.optimizer_s == pytest.approx(
        r.weight_bytes / 2 * ((2 + 12 + 4) * WAY / FLYING + 2 / 32e9), rel=1e-4
    )


# -- the optimizer behind the backward pass --------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 16, 64])
@pytest.mark.parametrize("place", [LOCAL, FAR])
def test_layers_are_stepped_behind_the_backward_pass(place, batch):
    fields = {"batch": batch, "micro_batch": batch, "chunked_loss": True}
    after, behind = run(place, "copy", **fields), run(place, "optimizer", **fields)
    bound = run(place, "optimizer", fidelity="bound", **fields)
    assert bound.seconds <= behind.seconds <= after.seconds
    # Of 16 equal layers that are stepped one after the other.
    o, layers = after.optimizer_s, 16
    b = after.seconds - after.forward_s - o
    # Gradients that arrive and the optimizer share the host's memory, where that is what is full.
    both = o + after.gradient_bytes / DRAM if place is LOCAL else 0.0
    exposed = max(b + o / layers, o + b / layers, both) - b
    assert behind.optimizer_s == pytest.approx(exposed, rel=0.02)
    parts = ("forward", "recompute", "backward", "communication", "bubble", "optimizer")
    assert sum(behind.metrics[f"{n}_s"] for n in parts) == pytest.approx(behind.seconds)


def test_what_both_use_is_busy_for_both():
    place = {**FAR, "weight": "disk.flash"}
    behind, r = run(place, "optimizer", batch=1, micro_batch=1), run(place, batch=1, micro_batch=1)
    weight = r.weight_bytes
    drive = weight / READ + 6 * weight * (1 / READ + 1 / WRITE) + weight / WRITE
    forward = r.communication_s / 2 + r.forward_s
    assert behind.seconds >= drive + behind.forward_s
    assert behind.seconds < drive + forward * 1.2


@pytest.mark.parametrize(
    ("change", "fields", "words"),
    [
        ({}, {"clip": True}, "clip: false"),
        ({"run": [{"ops": "all", "unit": "gpu.sm"}]}, {}, "needs a unit beside 'gpu.sm'"),
    ],
)
def test_what_keeps_layers_from_being_stepped_is_told(change, fields, words):
    with pytest.raises(UncoveredError, match=words):
        run(LOCAL, "optimizer", others=change, **fields)


def test_layers_that_zero_3_gathers_are_not_where_weights_live():
    server, found = load_machine("dgx-h100"), []
    for zero in (0, 3):
        split = {"all": {"group": "gpus", "dp": 8 if zero else 1, "zero": zero}}
        chosen = {
            "groups": {"gpus": "gpu"}, "parallel": split, "fusion": "attention", "launch": "graph",
            "run": [{"ops": "all", "unit": "gpu.sm"}],
            "place": {"weight": {"in": {"host.dram": 1}}},
        }  # fmt: skip
        found.append(ob.simulate(server, step(batch=8, micro_batch=1), chosen))
    # Eight devices have an eighth of the weights each there, two layers in buffers of their own.
    one, eight = found
    assert eight.occupancy["host.dram"] == pytest.approx(one.occupancy["host.dram"])
    assert eight.memory["buffer"].max() == one.memory["buffer"].max()


# -- shares of the tokens --------------------------------------------------------------------------

SWAPPED = {"activation": "host.dram", **LOCAL}


def swapped(share=None, on=None, **fields):
    others = {} if share is None else {"swap": share}
    return run(SWAPPED, "copy", on, others=others, chunked_loss=True, **fields)


@given(st.floats(0, 1))
def test_what_is_kept_is_linear_in_the_share(share):
    plan = step(recompute="full").plan(load_mapping(mapping()).degrees)
    none, all_, some = (replace(plan, swapped=x) for x in (0.0, 1.0, share))
    line = [(1 - share) * a + share * b for a, b in zip(none.kept, all_.kept, strict=True)]
    assert [float(np.max(x)) for x in some.kept] == pytest.approx([float(np.max(x)) for x in line])
    whole = step(recompute="none").plan(load_mapping(mapping()).degrees)
    assert float(np.max(all_.kept[0])) == pytest.approx(float(np.max(whole.kept[0])))
    assert float(np.max(all_.hardware_flops)) == pytest.approx(float(np.max(whole.hardware_flops)))


def test_a_share_trades_recomputation_for_copies():
    swaps = [swapped(x) for x in (0.0, 0.25, 1.0)]
    none, some, all_ = swaps
    plain = swapped()
    assert none.seconds == plain.seconds
    assert none.occupancy == plain.occupancy
    assert some.recompute_s == pytest.approx(0.75 * none.recompute_s)
    assert all_.recompute_s == 0.0
    assert all_.hfu * all_.seconds < some.hfu * some.seconds < none.hfu * none.seconds
    assert none.host_bytes < some.host_bytes < all_.host_bytes
    assert some.metrics["swapped"] == 0.25


def test_auto_takes_as_many_tokens_as_copies_hide_for():
    auto = swapped("auto")
    share = auto.metrics["swapped"]
    assert 0.0 < share < 1.0
    # A little more, and copies are what the forward pass takes.
    near = [swapped(x) for x in (0.0, share, min(1.0, share * 1.5))]
    assert auto.seconds == pytest.approx(near[1].seconds)
    assert near[1].seconds < near[0].seconds
    assert near[2].communication_s > 2 * near[1].communication_s
    faster = copy.deepcopy(machine())
    faster["links"]["pcie"]["bandwidth"] = "64 GB/s"
    assert swapped("auto", faster).metrics["swapped"] > share


@pytest.mark.parametrize("share", [0.0, 0.5, "auto"])
def test_bounds_hold_with_shares_and_drives(share):
    place = {**FAR, "activation": "host.dram", "weight": "disk.flash"}
    both = [
        run(place, "optimizer", fidelity=f, others={"swap": share}, chunked_loss=True).seconds
        for f in ("bound", "analytic")
    ]
    assert both[0] <= both[1]


def test_auto_takes_no_more_than_fits():
    none = swapped(0.0)
    auto = swapped("auto")
    room = (none.host_bytes + auto.host_bytes) / 2
    r = swapped("auto", machine(room=f"{room:.0f} B"))
    assert r.host_bytes == pytest.approx(room, rel=1e-9)
    assert r.metrics["swapped"] == pytest.approx(auto.metrics["swapped"] / 2, rel=1e-6)


def test_auto_keeps_no_more_than_hides_beside_the_backward_pass():
    # Weights come from the host, too, and are frozen: the backward pass is short, its copies long.
    place = {**SWAPPED, "weight": "host.dram"}

    def seconds(share, room="1 TB"):
        r = run(
            place, "copy", machine(room=room), others={"swap": share}, chunked_loss=True,
            lora={"rank": 16}, sequence=512,
        )  # fmt: skip
        return r.seconds

    assert seconds("auto") <= min(seconds(x) for x in (0.0, 0.25, 0.5, 1.0)) * (1 + 1e-9)
    for less in ("3.5 GB", "4 GB"):
        assert seconds("auto") <= seconds("auto", less) * (1 + 1e-9)


def test_shares_need_something_to_compute_again_and_to_hide_behind():
    with pytest.raises(ConfigError, match="recompute: dense or full"):
        run(SWAPPED, "copy", others={"swap": "auto"}, recompute="none")
    with pytest.raises(ConfigError, match="add overlap: copy"):
        run(SWAPPED, others={"swap": "auto"})
    with pytest.raises(ConfigError, match="swap"):
        load_mapping(mapping(swap=1.5))


def test_copies_cost_the_energy_of_what_they_cross():
    server, work = load_machine("cxl-host"), step(batch=4, micro_batch=2, chunked_loss=True)

    def joules(on):
        return float(evaluate(on, work, on.mapping("train-dram")).metrics["joules"][0])

    plan = work.plan(load_mapping(mapping()).degrees)
    weight, kept = float(plan.weights.sum()), float(np.max(plan.kept[0]))
    # Weights in twice, what is kept out and in, gradients of 16 bits out, for two microbatches.
    crossing = 2 * (2 * weight + 2 * kept + weight)
    dearer = server.with_values({"dma.energy": server.values["dma.energy"] + 1e-12})
    assert joules(dearer) - joules(server) == pytest.approx(8e-12 * crossing, rel=1e-6)


# -- blocks of pinned memory -----------------------------------------------------------------------


def staging(**fields):
    return Staging.model_validate(load_mapping(mapping(staging={"memory": "m", **fields})).staging)


def test_blocks_are_rounded_up():
    twos = staging(round="power_of_two")
    assert twos.rounded(np.array([0.0, 1.0, 3 * GIB, 4 * GIB, 4 * GIB + 1])).tolist() == [
        0.0, 1.0, 4 * GIB, 4 * GIB, 8 * GIB,
    ]  # fmt: skip
    pages = staging(round="4 KiB")
    assert pages.rounded(np.array([0.0, 1.0, 4096.0, 4097.0])).tolist() == [0, 4096, 4096, 8192]
    # 10 GB in pieces of 4 GB: two of 4 GB take 4 GiB each, and 2 GB take 2 GiB.
    assert float(staging(round="power_of_two", chunk="4 GB").pieces(10e9)) == 10 * GIB
    assert float(staging(chunk="4 GB").pieces(10e9)) == 10e9


@given(st.integers(0, 10**13), st.sampled_from(["none", "power_of_two", "4 KiB", "2 MiB"]))
def test_a_block_takes_its_bytes_and_less_than_twice_or_a_step_more(size, how):
    taken = float(staging(round=how).rounded(size))
    assert taken >= size * (1 - 1e-12)
    assert taken <= {"none": size, "power_of_two": 2 * size + 1}.get(how, size + 2**21)


def test_what_a_host_holds_beside_homes():
    place = {"gradient": "host.dram", "optimizer": "disk.flash", "weight": "disk.flash"}
    block = {"memory": "host.dram", "round": "power_of_two", "pool": "largest", "chunk": "4 GB"}
    plain = run(place, gradient="fp32")
    r = run(place, gradient="fp32", others={"staging": {**block, "overflow_check": 1.25}})
    n, gradient = plain.weight_bytes / 2, plain.gradient_bytes
    assert plain.host_bytes == pytest.approx(4 * n)
    held = {name: float(r.memory[name].max()) for name in ("pool", "rounding", "overflow_check")}
    assert held["overflow_check"] == pytest.approx(1.25 * gradient)
    # Two layers of q, k, v, o, gate, up and down, and the table: its size is the largest.
    table = 128256 * 2048 * 2
    weights, states = 15 * table, 3 * 2 * 4e9
    assert held["pool"] == pytest.approx(weights + states)
    # 7.9 GB of weights take 8 GiB, each piece of 4 GB 4 GiB, the last 0.94 GB of gradients 1 GiB.
    last = gradient - 4e9
    waste = 8 * GIB - weights + 7 * (4 * GIB - 4e9) + GIB - last
    assert held["rounding"] == pytest.approx(waste)
    assert r.host_bytes == pytest.approx(gradient + sum(held.values()))
    assert r.occupancy["host.dram"] == pytest.approx(r.host_bytes)
    assert r.seconds == plain.seconds

    own = run(place, gradient="fp32", others={"staging": {"memory": "host.dram", "chunk": "4 GB"}})
    layer = 2 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert float(own.memory["pool"].max()) == pytest.approx(2 * layer + table + states)
    assert float(own.memory["rounding"].max()) == 0.0


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.2-1b", "opt-1.3b"])
@pytest.mark.parametrize("tokens", [1, 2048])
def test_matrices_are_all_of_the_weights_but_vectors_however_few_the_tokens(model, tokens):
    plan = TrainStep(load_model(model), batch=1, sequence=tokens).plan(Parallel())
    found = sum(size for size, _ in plan.matrices)
    assert plan.weights.sum() * 0.999 < found <= plan.weights.sum()


def test_copies_of_the_check_have_a_source():
    block = load_machine("rtx-4090-nvme").mapping("zero-infinity")
    assert sourced(block)["staging.overflow_check"].range == (0.25, 1.25)
    other = with_values(block, {"staging.overflow_check": 0.5})
    assert other.staging.overflow_check.value == 0.5


def test_staging_of_other_works_is_refused():
    with pytest.raises(UncoveredError, match="staging"):
        ob.simulate(
            machine(), ob.Decode("llama-3.2-1b", batch=1, context=64),
            mapping(staging={"memory": "host.dram"}),
        )  # fmt: skip
    with pytest.raises(ConfigError, match=r"host\.ram"):
        run(LOCAL, others={"staging": {"memory": "host.ram"}})
    with pytest.raises(UncoveredError, match="no model of staging in a drive"):
        run(LOCAL, others={"staging": {"memory": "disk.flash"}})


@pytest.mark.parametrize("what", ["working", "buffer"])
def test_what_a_pass_works_on_takes_room_of_its_unit(what):
    with pytest.raises(UncoveredError, match=rf"place\.{what} has it in host\.dram"):
        run({**LOCAL, "weight": "host.dram", what: "host.dram"})


# -- words that mean nothing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("momentums", "momentum"), ("score", "scores"), ("optimiser", "optimizer")],
)
def test_an_unknown_tensor_class_is_told(wrong, meant):
    with pytest.raises(ConfigError, match=rf"'{wrong}'\. Did you mean '{meant}'.*Known: weight"):
        load_mapping(mapping({wrong: "host.dram"}))


@pytest.mark.parametrize(
    "route",
    [
        {"via": []},
        {"via": ["x"], "software": {}},
        {"via": ["x"], "software": {"source": "s"}},
    ],
)  # fmt: skip
def test_a_route_says_something(route):
    with pytest.raises(ConfigError, match=r"via|software"):
        load_mapping(mapping(routes={"kv": route}))


def test_no_event_run_of_training():
    with pytest.raises(UncoveredError, match="queue"):
        run(LOCAL, fidelity="event")


@pytest.mark.parametrize("field", ["round", "chunk"])
def test_pieces_of_nothing_are_refused(field):
    block = {"memory": "cpu.dram", field: "0 KiB"}
    with pytest.raises(ConfigError, match=f"`{field}` must be above 0, got 0"):
        ob.load_mapping({"kind": "mapping", "groups": {"gpus": "gpu"}, "staging": block})
