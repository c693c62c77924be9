"""Do training steps take what pipelines, streams, replicas and memories allow?"""

import numpy as np
import pytest
from hosted import STATES, hosted
from hypothesis import given
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.core.mapping import load_mapping
from opbyte.core.ops import OpTableBuilder
from opbyte.hw_models.machine import load_machine
from opbyte.hw_models.price import price
from opbyte.sim.place import Placer
from opbyte.sim.training import pipeline
from opbyte.sim.training.optimizer import passes
from opbyte.sim.training.streams import streams

MACHINE = "dgx-a100-64x8"


def mapping(fusion="attention", overlap="none", place=None, launch="graph", **split):
    return {
        "groups": {"gpus": "node.gpu"},
        "parallel": {"all": {"group": "gpus", **split}},
        "place": place or {},
        "run": [{"ops": "all", "unit": "node.gpu.sm"}],
        "fusion": fusion,
        "overlap": overlap,
        "launch": launch,
    }


def train(fidelity="analytic", model="llama-3.2-1b", machine=MACHINE, fusion="attention",
          overlap="none", **fields):  # fmt: skip
    names = ("tp", "pp", "dp", "zero", "sequence_parallel", "interleave")
    split = {n.removesuffix("_parallel"): fields.pop(n) for n in names if n in fields}
    work = {"kind": "train", "model": model, "batch": 8, "sequence": 2048, **fields}
    return ob.simulate(machine, work, mapping(fusion, overlap, **split), fidelity=fidelity)


# -- pipelines -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "v", "m"), [(1, 1, 4), (4, 1, 8), (4, 2, 8), (8, 3, 16), (3, 2, 3)])
def test_equal_stages_have_the_published_bubble(p, v, m):
    f, b = 1.0, 2.0
    played = pipeline.play(np.full(p * v, f / v), np.full(p * v, b / v), 0.0, p, v, m)
    assert played.seconds == pytest.approx(m * (f + b) + (p - 1) * (f + b) / v)


@given(
    st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6),
    st.sampled_from([0.0, 0.25]),
)  # fmt: skip
def test_pipelines_keep_laws(p, v, groups, seed, send):
    v = 1 if p == 1 else v
    m = groups * p
    rng = np.random.default_rng(seed)
    f, b = rng.uniform(0.5, 2.0, p * v), rng.uniform(0.5, 3.0, p * v)
    played = pipeline.play(f, b, send, p, v, m)
    # No stage ends before its own work, nor before the first microbatch has been everywhere.
    assert played.seconds >= m * (f + b).reshape(v, p).sum(axis=0).max() - 1e-9
    assert played.seconds >= (f + b).sum() - 1e-9
    # Passes of a stage follow each other, and all happen once.
    for order, ends in zip(played.orders, played.ends, strict=True):
        assert (np.diff(ends) > 0).all()
        assert len({tuple(row) for row in order.tolist()}) == 2 * m * v
    slower = pipeline.play(f * 1.1, b, send, p, v, m)
    assert slower.seconds >= played.seconds
    # The compiled loop and its twin.
    ends = np.zeros_like(played.ends)
    done = np.full((2, p * v, m), -1.0)
    out = np.full((2, p * v), send if p > 1 else 0.0)
    out[0, -1] = out[1, 0] = 0.0
    at = np.zeros(p, np.int64)
    pipeline.fill_ends(ends, done, at, played.orders, np.stack([f, b]) + out)
    assert (ends == played.ends).all()


@pytest.mark.parametrize(("p", "v", "m"), [(4, 1, 8), (4, 2, 8), (2, 3, 4)])
def test_activations_in_flight_are_those_that_are_counted(p, v, m):
    played = pipeline.play(np.ones(p * v), np.ones(p * v), 0.0, p, v, m)
    for stage in range(p):
        _, sizes = pipeline.kept_over_time(played, stage, [1.0] * (p * v))
        assert sizes.max() == pipeline.in_flight(p, v, stage, m)
        assert sizes[-1] == 0.0
        assert (sizes >= 0.0).all()


# -- streams -------------------------------------------------------------------------------------


def test_a_collective_hides_behind_what_does_not_wait_for_it():
    builder = OpTableBuilder()
    with builder.block("layer") as block:
        gemm = {"dtype": "bf16", "m": 4096.0, "n": 4096.0, "k": 4096.0, "weight": 2.0 * 4096**2}
        dx = block.add("dx", "gemm", **gemm)
        call = block.add(
            "sum", "all_reduce", dtype="bf16", inputs=[dx], payload=32e6, participants=8.0,
            flops=0.0, out_bytes=32e6,
        )  # fmt: skip
        block.add("dw", "gemm", **gemm)
        block.add("next", "gemm", inputs=[call], **gemm)
    builder.order = [0]
    placer = Placer(load_machine("dgx-a100"), load_machine("dgx-a100").mapping("eager"))
    demand = price(placer.place(builder.build()), placer.machine)
    first, sum_, second, last = demand.duration[:, 0]
    found = streams(demand)
    assert found.seconds[0, 0] == pytest.approx(first + max(sum_, second) + last)
    assert found.computing[0, 0] == pytest.approx(first + second + last)


# -- steps ---------------------------------------------------------------------------------------

CASES = [
    {"tp": 2},
    {"tp": 2, "sequence_parallel": True, "recompute": "full", "micro_batch": 2},
    {"tp": 2, "pp": 4, "dp": 2},
    {"tp": 1, "pp": 2, "interleave": 2, "dp": 1, "recompute": "full"},
    {"dp": 4, "zero": 1},
    {"dp": 8, "zero": 3, "lora": {"rank": 8}},
    {"tp": 2, "fusion": "none", "recompute": "selective", "dropout": True},
]


@pytest.mark.parametrize("case", CASES)
def test_parts_add_up_and_bounds_hold(case):
    r = train(**case)
    parts = ("forward", "recompute", "backward", "communication", "bubble", "optimizer")
    total = sum(r.metrics[f"{name}_s"] for name in parts)
    assert total == pytest.approx(r.seconds, rel=1e-9)
    assert train("bound", **case).seconds <= r.seconds
    assert 0 < r.mfu <= r.hfu <= 1.05
    assert r.tokens_per_s == pytest.approx(8 * 2048 / r.seconds)
    assert r.peak_bytes == pytest.approx(
        r.weight_bytes + r.gradient_bytes + r.optimizer_bytes + r.activation_bytes
    )
    assert r.joules > 0


def test_gradients_of_microbatches_add_up():
    one, four = train(batch=2, micro_batch=2), train(batch=8, micro_batch=2)
    passes_of = ("forward_s", "backward_s")
    for name in passes_of:
        assert four.metrics[name] == pytest.approx(4 * one.metrics[name])
    assert four.optimizer_s == one.optimizer_s
    assert four.activation_bytes == one.activation_bytes


def test_recomputation_trades_time_for_memory():
    none, some, full = (
        train(fusion="none", recompute=r) for r in ("none", "selective", "full")
    )  # fmt: skip
    assert none.seconds < some.seconds < full.seconds
    assert none.activation_bytes > some.activation_bytes > full.activation_bytes
    assert full.recompute_s == pytest.approx(full.forward_s, rel=0.15)


PARTS = ("forward", "recompute", "backward", "communication", "bubble", "optimizer")


@pytest.mark.parametrize("recompute", ["none", "dense", "full"])
@pytest.mark.parametrize(
    ("machine", "split"),
    [
        ("h200-sxm-141gb", None), ("a100-sxm-80gb", None), ("cxl-host", "train-cxl"),
        (MACHINE, {"tp": 2}), (MACHINE, {"pp": 2, "interleave": 2}), (MACHINE, {"pp": 4, "tp": 2}),
        (MACHINE, {"dp": 4, "zero": 3}),
    ],
)  # fmt: skip
def test_no_part_of_a_step_is_negative_and_all_are_the_step(machine, split, recompute):
    chosen = mapping(**split) if isinstance(split, dict) else split
    if machine == MACHINE:
        chosen["overlap"] = "gradients"
    for batch, micro_batch in ((8, 1), (8, 2), (16, 4)):
        work = {"kind": "train", "model": "llama-3.2-1b", "batch": batch, "sequence": 512}
        work |= {"micro_batch": micro_batch, "recompute": recompute}
        r = ob.simulate(machine, work, chosen)
        parts = [float(r.metrics[f"{name}_s"]) for name in PARTS]
        assert min(parts) >= 0.0
        assert sum(parts) == pytest.approx(r.seconds, rel=1e-12)


def test_zero_splits_states_and_pays_in_traffic():
    stages = [train(dp=8, zero=z) for z in range(4)]
    plain = stages[0]
    assert stages[1].optimizer_bytes == pytest.approx(plain.optimizer_bytes / 8)
    assert stages[2].gradient_bytes == pytest.approx(plain.gradient_bytes / 8)
    assert stages[3].weight_bytes < plain.weight_bytes / 2
    assert stages[1].optimizer_s < plain.optimizer_s
    assert stages[3].communication_s > stages[2].communication_s
    # From stage 2 on gradients are reduced after each microbatch.
    more = [train(dp=2, zero=z, batch=16).communication_s for z in (1, 2)]
    assert more[1] > 2 * more[0]
    hidden = train(dp=8, zero=2, overlap="gradients")
    assert hidden.communication_s < stages[2].communication_s
    assert hidden.forward_s == stages[2].forward_s


def test_chunks_shorten_the_bubble_and_lengthen_the_memory():
    plain = train(pp=4, batch=16, micro_batch=1)
    chunks = train(pp=4, interleave=2, batch=16, micro_batch=1)
    assert chunks.bubble_s < plain.bubble_s
    assert chunks.activation_bytes > plain.activation_bytes


def test_the_optimizer_streams_its_tensors():
    moved = {p.name: sum(p.moved.values()) for p in passes(2.0, 4.0, scaled=True, clip=True)}
    assert moved == {"unscale": 8, "norm": 4, "clip": 8, "adam": 28, "cast": 6, "zero": 4}
    assert [p.name for p in passes(4.0, 4.0, scaled=False, clip=False)] == ["adam", "zero"]
    r = train(clip=False)
    elements = r.weight_bytes / 2
    rate = 2.039e12 * 0.824
    assert r.optimizer_s == pytest.approx(elements * (28 + 6 + 4) / rate, rel=0.01)


def test_memory_over_time():
    r = train(pp=2, batch=8, micro_batch=1, recompute="full")
    frame = r.outcome.detail["memory"]
    assert frame["total"].max() == pytest.approx(r.peak_bytes)
    assert frame["seconds"].iloc[-1] == pytest.approx(r.seconds)
    assert (frame["seconds"].diff().dropna() > 0).all()
    assert frame["activation"].iloc[-2] == 0.0
    assert r.memory.equals(frame)


def test_what_does_not_fit_is_named():
    with pytest.raises(CapacityError, match=r"gradient.*momentum.*variance.*master_weight"):
        train(model="llama-3.1-70b", recompute="full")


def test_optimizer_elsewhere_takes_that_memory():
    place = {name: {"in": {"node.gpu.hbm": 1.0}} for name in ("momentum", "optimizer")}
    work = {"kind": "train", "model": "llama-3.2-1b", "batch": 8, "sequence": 2048}
    r = ob.simulate(MACHINE, work, mapping(place=place))
    assert r.occupancy == {"node.gpu.hbm": pytest.approx(r.peak_bytes)}


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ({"fidelity": "event"}, UncoveredError, "plays no training step"),
        ({"dp": 1024}, ConfigError, "1024 devices"),
        ({"recompute": "some"}, ob.ConfigError, "recompute"),
        ({"optimiser": "sgd"}, ConfigError, "no key 'optimiser'"),
        ({"lora": {"rank": 0}}, ConfigError, "rank"),
    ],
)
def test_mistakes(case, error, words):
    with pytest.raises(error, match=words):
        train(**case)


@pytest.mark.parametrize("wish", ["zero", "sequence", "interleave"])
def test_only_training_splits_so(wish):
    value = {"zero": 1, "sequence": True, "interleave": 2}[wish]
    work = {"kind": "decode", "model": "llama-3.2-1b", "batch": 1, "context": 128}
    with pytest.raises(UncoveredError, match=rf"parallel.{wish}"):
        ob.simulate(MACHINE, work, mapping(**{wish: value}))
    assert f"parallel.{wish}" not in load_mapping(mapping(**{wish: value})).not_modelled(
        training=True
    )


def test_points_together_equal_points_alone():
    from opbyte.sim.simulate import evaluate
    from opbyte.workloads.train import TrainStep

    machine, chosen = load_machine(MACHINE), load_mapping(mapping(tp=2, pp=2))
    micro = [1.0, 2.0, 4.0]
    work = TrainStep("llama-3.2-1b", batch=[8.0] * 3, sequence=2048, micro_batch=micro)
    together = evaluate(machine, work, chosen).metrics
    for i, one in enumerate(micro):
        alone = TrainStep("llama-3.2-1b", batch=8, sequence=2048, micro_batch=one)
        metrics = evaluate(machine, alone, chosen).metrics
        for name in ("seconds", "mfu", "joules", "bubble_s", "activation_bytes", "optimizer_s"):
            assert np.broadcast_to(together[name], 3)[i] == pytest.approx(metrics[name][0]), name


def test_each_point_has_its_own_fullest_stage_and_microbatches_in_flight():
    from opbyte.sim.simulate import evaluate
    from opbyte.workloads.train import TrainStep

    machine, chosen = load_machine(MACHINE), load_mapping(mapping(tp=2, pp=4, dp=2, zero=2))
    batch, sequence = [16.0, 16.0, 128.0, 8.0], [512.0, 4096.0, 512.0, 2048.0]
    fields = {"model": "llama-3.2-1b", "micro_batch": 4.0}
    together = evaluate(machine, TrainStep(batch=batch, sequence=sequence, **fields), chosen)
    for i, (b, s) in enumerate(zip(batch, sequence, strict=True)):
        alone = evaluate(machine, TrainStep(batch=b, sequence=s, **fields), chosen).metrics
        for name, values in together.metrics.items():
            found = np.broadcast_to(values, len(batch))[i]
            assert found == pytest.approx(alone[name][0], rel=1e-9, nan_ok=True), name


@pytest.mark.parametrize("wish", [{"gradient": "int4"}, {"lora": {"rank": 8, "dtype": "int4"}}])
def test_sums_need_16_bits(wish):
    with pytest.raises(ob.ConfigError, match="must be one of fp32, bf16, fp16, got 'int4'"):
        train(**wish)


def test_lora_is_a_block():
    with pytest.raises(ob.ConfigError, match="lora must be a mapping, got 8"):
        train(lora=8)


@pytest.mark.parametrize(
    ("block", "message"),
    [({"host": "1 ms"}, r"no model of `host`.*`launch`"),
     ({"artifact": "cent"}, "no model of an artifact's conventions"),
     ({"artifact": "bitmod", "host": "1 ms"}, "artifact's conventions, `host`")],
)  # fmt: skip
def test_what_a_step_takes_no_notice_of_is_refused(block, message):
    work = {"kind": "train", "model": "llama-3.2-1b", "batch": 8, "sequence": 2048}
    for fidelity in ("bound", "analytic"):
        with pytest.raises(UncoveredError, match=message):
            ob.simulate(MACHINE, work, {**mapping(), **block}, fidelity=fidelity)


def test_more_passes_than_can_be_played_are_refused():
    with pytest.raises(UncoveredError, match=r"1e\+30 microbatches.*lower batch"):
        train(batch=1e30)
    assert train(batch=2.0**17).bubble_s == pytest.approx(0.0, abs=1e-6)


# -- tensors elsewhere ---------------------------------------------------------------------------

HOST = hosted("2 TB", "60 GFLOP/s", "2 TFLOP/s")


def offloaded(away=(), overlap="copy", cpu=True, **fields):
    place = {name: {"in": {"host.dram": 1.0}} for name in away}
    run = [{"ops": "all", "unit": "gpu.sm"}]
    if cpu:
        run.insert(0, {"ops": "optimizer", "unit": "host.cores"})
    chosen = {
        "groups": {"gpus": "gpu"}, "parallel": {"all": {"group": "gpus"}}, "run": run,
        "place": place, "overlap": overlap, "fusion": "attention", "launch": "graph",
    }  # fmt: skip
    fields = {"batch": 4, "sequence": 4096, "clip": False, **fields}
    work = {"kind": "train", "model": "llama-3.1-8b", "recompute": "full", **fields}
    return ob.simulate(HOST, work, chosen)


def test_adam_of_a_cpu_takes_its_memory():
    r = offloaded((*STATES, "gradient"))
    n = r.weight_bytes / 2
    # Gradient, momentum, variance and master are read, three of them written: 28 bytes, and zeroing
    # of 4; the weights leave over the link, 2 bytes, at the same time.
    assert r.optimizer_s == pytest.approx(n * (28 + 4) / 200e9, rel=1e-6)
    assert r.occupancy["host.dram"] == pytest.approx(16 * n)
    assert r.occupancy["gpu.hbm"] == pytest.approx(r.peak_bytes - 16 * n)


def test_gradients_are_copied_behind_the_backward_pass_or_after_it():
    here, beside, after = (
        offloaded(STATES),
        offloaded((*STATES, "gradient")),
        offloaded((*STATES, "gradient"), overlap="none"),
    )
    n, many = here.weight_bytes / 2, 4
    assert after.communication_s - here.communication_s == pytest.approx(
        many * 4 * n / 32e9, rel=1e-6
    )
    assert here.communication_s < beside.communication_s < after.communication_s
    assert beside.forward_s == here.forward_s


@pytest.mark.parametrize("sequence", [128, 8192])
def test_copies_beside_a_pass_go_layer_by_layer(sequence):
    """Which of both is longer depends on the tokens; of the other one layer is left."""
    here = offloaded(STATES, sequence=sequence)
    beside = offloaded((*STATES, "gradient"), sequence=sequence)
    n, many, layers = here.weight_bytes / 2, 4, 32
    copies = 4 * n / 32e9
    computing = (here.recompute_s + here.backward_s) / many
    assert (copies > computing) == (sequence == 128)
    least = max(copies + computing / layers, computing + copies / layers)
    waited = many * (least - computing)
    assert beside.communication_s - here.communication_s == pytest.approx(waited, rel=1e-6)


def test_weights_elsewhere_come_twice_and_leave_room_for_two_layers():
    here = offloaded((*STATES, "gradient"), overlap="none")
    away = offloaded((*STATES, "gradient", "weight"), overlap="none")
    weight = here.weight_bytes
    more = away.communication_s - here.communication_s
    # Beside the gradients that leave, on the other direction of the link, weights come for nothing.
    assert more == pytest.approx(4 * weight / 32e9, rel=1e-6)
    room = here.occupancy["gpu.hbm"] - away.occupancy["gpu.hbm"]
    assert 0.8 * weight < room < weight


def test_a_share_of_the_activations_is_swapped():
    place = {"activation": {"in": {"gpu.hbm": 0.5, "host.dram": 0.5}}}
    chosen = {
        "groups": {"gpus": "gpu"}, "parallel": {"all": {"group": "gpus"}}, "place": place,
        "run": [{"ops": "all", "unit": "gpu.sm"}], "overlap": "copy", "fusion": "attention",
        "launch": "graph",
    }  # fmt: skip
    work = {"kind": "train", "model": "llama-3.2-1b", "batch": 1, "sequence": 8192}
    half = ob.simulate(HOST, work, chosen)
    none = ob.simulate(HOST, work, {**chosen, "place": {}})
    kept = half.occupancy["host.dram"]
    assert kept > 0
    assert half.occupancy["gpu.hbm"] < none.occupancy["gpu.hbm"]
    assert half.seconds > none.seconds


def test_a_master_gradient_is_one_more_tensor():
    names = (*STATES, "gradient")
    plain = offloaded(names, gradient="bf16")
    master = offloaded((*names, "master_gradient"), gradient="bf16")
    n = plain.weight_bytes / 2
    assert master.optimizer_bytes - plain.optimizer_bytes == pytest.approx(4 * n)
    # Read 2, write 4; Adam reads 4 in the place of 2.
    assert master.optimizer_s - plain.optimizer_s == pytest.approx(n * (6 + 2) / 200e9, rel=1e-6)


def test_without_master_weights_twelve_bytes_are_held():
    # Horizon-LM (arXiv 2602.04816): weights and gradients of 2 bytes, two moments of 4.
    names = ("momentum", "variance", "gradient", "weight")
    r = offloaded(names, gradient="bf16", master=False)
    assert r.occupancy["host.dram"] / (r.weight_bytes / 2) == pytest.approx(12)


# -- what training adds to a GPU -------------------------------------------------------------------


def test_calls_take_sms_from_what_they_hide_behind():
    machine = load_machine(MACHINE)
    work = {"kind": "train", "model": "llama-3.2-1b", "batch": 8, "sequence": 2048}
    split = mapping(tp=4, sequence=True)
    plain, free = (
        ob.simulate(machine.replace({"nvlink.collectives.channels": n}), work, split)
        for n in ("24", "0")
    )
    assert plain.backward_s > free.backward_s
    assert plain.forward_s == free.forward_s
    # No more than the share of the SMs, of all that can be hidden.
    hidden = free.backward_s * 24 / 108
    assert plain.backward_s - free.backward_s < hidden
    alone = [
        ob.simulate(machine.replace({"nvlink.collectives.channels": n}), work, mapping()).seconds
        for n in ("24", "0")
    ]
    assert alone[0] == alone[1]


@pytest.mark.parametrize("zero", [2, 3])
def test_exchanges_of_replicas_take_sms_from_the_passes_they_hide_behind(zero):
    machine = load_machine(MACHINE)
    work = {"kind": "train", "model": "llama-3.2-1b", "batch": 32, "sequence": 2048}
    work["micro_batch"] = 4
    split = mapping(dp=4, zero=zero)
    shown = ob.simulate(machine, work, split)
    split["overlap"] = "gradients"
    hidden, free = (
        ob.simulate(machine.replace({"nvlink.collectives.channels": n}), work, split)
        for n in ("24", "0")
    )
    once = 0.0 if zero == 3 else free.communication_s  # weights, after the optimizer
    assert zero == 2 or free.communication_s == 0.0
    lost = (shown.communication_s - once) * 24 / 108
    assert hidden.communication_s - once == pytest.approx(lost, rel=1e-12)
    assert hidden.seconds == pytest.approx(free.seconds + lost, rel=1e-12)


def test_exchanges_that_outlast_a_pass_are_all_that_is_left_of_it():
    machine = load_machine(MACHINE).replace({"nvlink.bandwidth": "3 GB/s"})
    work = {"kind": "train", "model": "llama-3.2-1b", "batch": 8, "sequence": 512}
    split = mapping(dp=8, zero=3)
    shown = ob.simulate(machine, work, split)
    hidden = ob.simulate(machine, work, split | {"overlap": "gradients"})
    passes = hidden.forward_s + hidden.backward_s
    assert hidden.communication_s + passes == pytest.approx(shown.communication_s, rel=1e-12)


@pytest.mark.parametrize("overlap", ["none", "gradients"])
def test_replicas_that_are_alone_in_their_nodes_take_no_sms(overlap):
    machine = {
        "kind": "machine",
        "name": "alone",
        "parts": {"node": {"count": 8, "parts": {"gpu": {"like": "dgx-a100.gpu", "count": 1}}}},
        "links": {"infiniband": {"like": "dgx-a100-64x8.infiniband"}},
    }
    found = train(machine=machine, overlap=overlap, dp=8, zero=3, sequence=8192, recompute="full")
    assert (found.communication_s > 0.0) == (overlap == "none")


def test_sums_of_gradients_leave_as_32_bits():
    def seconds(label):
        builder = OpTableBuilder()
        with builder.block("layer") as block:
            block.add(
                "dw", "gemm", dtype="bf16", labels=label, m=12288.0, n=4608.0, k=2048.0,
                out_bytes=4.0 * 12288 * 4608,
            )  # fmt: skip
        builder.order = [0]
        machine = load_machine("a100-sxm-80gb")
        placer = Placer(machine, machine.mapping("eager"))
        return float(price(placer.place(builder.build()), machine).duration[0, 0])

    plain, summed = seconds(()), seconds(("gradient",))
    more = 12288 * 4608 * 6 / (2.039e12 * 0.824)
    assert 0.3 * more < summed - plain < 1.5 * more


# -- exchanges -------------------------------------------------------------------------------------


def fabric(ideal=False):
    from opbyte.sim.training.fabric import Fabric

    placer = Placer(load_machine(MACHINE), load_mapping(mapping(tp=8)), training=True)
    return Fabric(placer.machine, placer.networks, "node.gpu", "node.gpu.hbm.phy", ideal)


def test_exchanges_inside_a_node_are_calls_of_its_link():
    work = {"kind": "all_reduce", "bytes": 2**26, "participants": 4}
    alone = ob.simulate("a100-sxm-80gb", work)
    launch = load_machine("a100-sxm-80gb").values["gpu.sm.launch.graph"]
    found = float(fabric().exchange("all_reduce", 2.0**26, 4, 2)[0])
    assert found == pytest.approx(alone.seconds - launch, rel=0.02)


def test_exchanges_between_nodes_share_the_network():
    wires, size = fabric(ideal=True), 1e9
    # A group of one device of each node has its adapter; groups of eight in each share a node's.
    for stride, share in ((8, 8), (1, 1), (2, 2)):
        seconds = float(wires.exchange("all_reduce", size, 32, stride)[0])
        assert seconds == pytest.approx(2 * size * 31 / 32 / (200e9 / share))
    both = [wires.exchange(k, size, 32, 8) for k in ("reduce_scatter", "all_gather")]
    assert sum(both) == pytest.approx(wires.exchange("all_reduce", size, 32, 8))
    assert float(wires.exchange("send", size, 2, 8)[0]) == pytest.approx(size / 25e9)
    assert not wires.exchange("all_reduce", size, 1, 8).any()
    assert (fabric().exchange("send", size, 2, 8) > wires.exchange("send", size, 2, 8)).all()


def test_a_tied_embedding_is_added_up_between_its_two_stages():
    wires, size = fabric(), 128256 * 2048 * 4.0
    inside = wires.exchange("all_reduce", size, 2, 1, span=8)
    assert float(inside[0]) == float(wires.exchange("all_reduce", size, 2, 4)[0])
    # First and last stage of one device each, in two nodes: nobody shares their adapters.
    apart = fabric(ideal=True).exchange("all_reduce", size, 2, 1, span=16)
    assert float(apart[0]) == pytest.approx(size / 200e9)
    # Eight stages in one node of a machine that has no network.
    chosen = mapping(pp=8)
    chosen["groups"], chosen["run"] = {"gpus": "gpu"}, [{"ops": "all", "unit": "gpu.sm"}]
    work = {"kind": "train", "model": "llama-3.2-1b", "batch": 8, "sequence": 2048}
    one = ob.simulate("dgx-a100", work, chosen)
    assert one.seconds == pytest.approx(train(pp=8).seconds, rel=1e-9)


def test_stages_that_share_a_node_wait_for_sends_between_nodes():
    wires = fabric(ideal=True)
    inside, across = (wires.exchange("send", 1e9, 2, 4, span=n) for n in (8, 16))
    assert float(across[0]) == pytest.approx(1e9 / 50e9)
    assert across > inside


def test_a_machine_without_a_network_says_so():
    parts = {**HOST["parts"], "gpu": {**HOST["parts"]["gpu"], "count": 2}}
    chosen = {
        "groups": {"gpus": "gpu"}, "parallel": {"all": {"group": "gpus", "pp": 2}},
        "run": [{"ops": "all", "unit": "gpu.sm"}], "fusion": "attention", "launch": "graph",
    }  # fmt: skip
    work = {"kind": "train", "model": "llama-3.2-1b", "batch": 2, "sequence": 1024}
    with pytest.raises(ConfigError, match="no link between instances of 'gpu'"):
        ob.simulate({**HOST, "parts": parts}, work, chosen)
