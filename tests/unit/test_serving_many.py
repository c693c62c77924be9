"""Many adapters, many models: copies and turns by hand, LRU laws, what is refused."""

import numpy as np
import pandas as pd
import pytest
from handmade import device
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.core.parallel import Parallel
from opbyte.hw_models.machine import load_machine
from opbyte.sim.residency import LruSet, lru_hit_rate
from opbyte.sim.serving.many.below import Below
from opbyte.sim.serving.many.residents import stretched
from opbyte.sim.serving.many.served import Many
from opbyte.sim.serving.server import Server
from opbyte.sim.serving.transfers import LinkPrice
from opbyte.workloads.adapter_step import adapter_bytes, adapter_phase
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model
from opbyte.workloads.model_set import Adapter
from opbyte.workloads.popularity import popularity
from opbyte.workloads.residents import Adapters, Models
from opbyte.workloads.serve import Scheduling, Serve
from opbyte.workloads.traces import PrefixBlocks, RequestTrace
from tests.unit.test_serving_twin import prices

SMALL = Model("small", 256, 1000, (Layer(Attention(4, 2, 64), DenseFfn(1024)),), (0,) * 4)
LLAMA = ob.load_model("llama-3.1-8b")
ALL = ("q", "k", "v", "o", "gate", "up", "down")
START, EACH = 0.001, 0.05
PRICES = prices(256)


class Recorded:
    """Adapter prices that note what they are asked for, and cost a second for a million tokens."""

    def __init__(self):
        self.asked = []

    def cost(self, tokens, distinct):
        self.asked.append((tokens, distinct))
        return 1e-6 * tokens, 0.0, {}


def server(block, *, slots, each=EACH, ahead=False, recorded=None, blocks=400, **scheduling):
    """A server with made-up prices, whose copies take `START + each` seconds."""
    below = Below("host", 1e9, 2, LinkPrice("link", START, each, 3.0))
    limits = {"max_sequences": 8, "max_batched_tokens": 64, "block_tokens": 4, **scheduling}
    many = Many(block, below, slots, recorded, ahead)
    return Server(PRICES, Scheduling(**limits, kv_blocks=blocks), blocks, many=many)


def by_adapters(names, *, gap=10.0, slots=2, **kind):
    """Serve lone requests, far apart unless told otherwise, each by its adapter."""
    asked = {k: kind.pop(k) for k in ("prefetch", "overtake", "distinct") if k in kind}
    block = Adapters(count=max(names) + 1, slots=slots, rank=8, **asked)
    n = len(names)
    size = {"inputs": 5, "outputs": 3} | {
        k: kind.pop(k) for k in ("inputs", "outputs") if k in kind
    }
    trace = RequestTrace(
        gap * np.arange(n), np.full(n, size["inputs"]), np.full(n, size["outputs"]),
        adapter=np.array(names),
    )  # fmt: skip
    return server(block, slots=slots, **kind).serve(trace)


def by_models(names, *, gap=10.0, slots=2, outputs=3, **kind):
    how = {k: kind.pop(k) for k in ("policy", "quantum", "kv") if k in kind}
    block = Models(count=max(names) + 1, slots=slots, **how)
    n = len(names)
    trace = RequestTrace(
        gap * np.arange(n), np.full(n, 5), np.full(n, outputs), model=np.array(names)
    )
    return server(block, slots=slots, **kind).serve(trace)


def waits(serving):
    return serving.times[0] - serving.arrival


# -- adapters: sizes and prices ---------------------------------------------------------------


def test_bytes_and_operations_of_an_adapter_are_its_closed_form():
    adapter = Adapter(16, tuple(f"{t}_proj" for t in ALL))
    hidden, kv, wide, layers = 4096, 1024, 14336, 32
    sums = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + wide)
    assert adapter_bytes(LLAMA, adapter, Parallel()) == 2 * 16 * sums * layers
    assert adapter_bytes(LLAMA, adapter, Parallel()) == adapter.weight_bytes(LLAMA)
    split = 2 * hidden + hidden // 8 * 2 + 2 * (hidden + kv // 8) + 3 * (hidden + wide // 8)
    assert adapter_bytes(LLAMA, adapter, Parallel(tp=8)) == 2 * 16 * split * layers
    phase = adapter_phase(LLAMA, adapter, 100.0, 7.0, Parallel())
    assert phase.table.total("flops")[0] == pytest.approx(2 * 16 * sums * layers * 100)
    assert phase.table.total("weight")[0] == pytest.approx(7 * adapter.weight_bytes(LLAMA))
    # Layers that are alike are priced once.
    assert len(phase.table.blocks) == 1


def test_adapters_cost_at_least_their_bytes_and_more_of_them_cost_more():
    work = Serve(LLAMA, frame(4), adapters={"count": 64, "rank": 64, "slots": 32, "targets": ALL})
    priced = Server.of(DGX, work, DGX.mapping()).many.prices
    bytes_ = adapter_bytes(LLAMA, work.adapters.adapter, Parallel(tp=8))
    rate = DGX.values["gpu.hbm.phy.bandwidth"]
    one, many = priced.cost(32, 1), priced.cost(32, 32)
    assert many[0] > one[0] > bytes_ / rate
    assert many[0] > 32 * bytes_ / rate
    assert many[1] > one[1] > 0.0
    assert priced.cost(1024, 32)[0] > many[0]


# -- adapters: waiting, residency ------------------------------------------------------------


def machine(**values):
    links = {
        "fill": {
            "ends": ["dev.ddr.bus", "dev.hbm.phy"], "bandwidth": "50 GB/s", "energy": "1 pJ/b",
            "latency": "20 us",
        }
    }  # fmt: skip
    place = {"weight": {"in": {"dev.hbm": 1.0}}, "kv": {"in": {"dev.hbm": 1.0}}}
    return device(links=links, mapping={"place": place}).with_values(values)


def frame(n, gap=1.0, **columns):
    given = {"arrival_s": gap * np.arange(n), "input_tokens": 50, "output_tokens": 4}
    return pd.DataFrame(given | columns)


DGX = load_machine("dgx-a100")


def test_a_cold_adapter_is_there_after_latency_and_bytes_over_rate():
    block = {"count": 3, "slots": 2, "rank": 16, "targets": ("q", "v", "down")}
    result = ob.simulate(machine(), Serve(SMALL, frame(3, adapter=[0, 0, 1]), adapters=block))
    adapter = Adapter(16, ("q_proj", "v_proj", "down_proj"))
    copy = 20e-6 + 0.5e-6 + adapter.weight_bytes(SMALL) / 50e9
    rows = result.requests
    waited = rows["scheduled_s"] - rows["arrival_s"]
    assert waited.tolist() == pytest.approx([copy, 0.0, copy], rel=1e-6, abs=1e-12)
    assert (result.hit_rate, result.copies) == (pytest.approx(1 / 3), 2)
    assert result.copied_bytes == 2 * adapter.weight_bytes(SMALL)
    assert result.copy_busy_s == pytest.approx(2 * copy)
    assert result.copy_wait_s == pytest.approx(2 * copy / 3)
    plain = ob.simulate(machine(), Serve(SMALL, frame(3)))
    later = rows["last_token_s"] - rows["scheduled_s"]
    alone = plain.requests["last_token_s"] - plain.requests["scheduled_s"]
    assert (later > alone).all()


def test_the_one_used_longest_ago_leaves():
    names = [0, 1, 2, 0, 3, 2, 0]
    lru = LruSet(3)
    hits = [lru.touch(name) for name in names]
    serving = by_adapters(names, slots=3)
    cold = pytest.approx(START + EACH)
    assert waits(serving).tolist() == [pytest.approx(0.0) if hit else cold for hit in hits]
    assert serving.copied.hits == sum(hits)
    assert serving.copied.copies == len(names) - sum(hits)


def test_hit_rate_under_independent_references_is_ches():
    rng = np.random.default_rng(0)
    chance = popularity(30, "zipf", 1.0)
    names = rng.choice(30, 6000, p=chance)
    serving = by_adapters(names.tolist(), gap=1.0, slots=8, outputs=1)
    hits = (waits(serving) < START)[500:]
    expected = lru_hit_rate(chance, 8)
    sigma = np.sqrt(expected * (1 - expected) / len(hits))
    assert abs(hits.mean() - expected) < 3 * sigma
    # A random set of eight would hit less.
    assert expected > 8 / 30 + 10 * sigma


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_more_slots_never_miss_more_of_the_same_references(names):
    copies = [by_adapters(names, slots=slots).copied.copies for slots in range(1, 11)]
    assert copies == sorted(copies, reverse=True)
    assert copies[-1] == len(set(names))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_requests_copies_and_slots_are_conserved(data):
    names = data.draw(st.lists(st.integers(-1, 5), min_size=1, max_size=30))
    slots = data.draw(st.integers(1, 4))
    how = {
        "distinct": data.draw(st.none() | st.integers(1, slots)),
        "prefetch": data.draw(st.booleans()), "overtake": data.draw(st.booleans()),
    }  # fmt: skip
    recorded = Recorded()
    n = len(names)
    block = Adapters(count=6, slots=slots, rank=8, **how)
    gaps = data.draw(st.lists(st.sampled_from([0.0, 0.01, 0.2]), min_size=n, max_size=n))
    trace = RequestTrace(
        np.cumsum(gaps), np.arange(1, n + 1), np.full(n, 4), adapter=np.array(names)
    )
    depth, blocks = data.draw(st.integers(1, 2)), data.draw(st.sampled_from([15, 400]))
    one = server(block, slots=slots, recorded=recorded, depth=depth, blocks=blocks)
    done = one.serve(trace)
    assert np.isfinite(done.times).all()
    assert max((d for _, d in recorded.asked), default=0) <= (how["distinct"] or slots)
    with_adapter = np.array(names) >= 0
    assert done.copied.asked == with_adapter.sum()
    if not done.preempted.any():
        assert sum(t for t, _ in recorded.asked) == (np.arange(1, n + 1) + 3)[with_adapter].sum()
    copied = done.copied
    assert copied.bytes == copied.copies * 2e9
    assert copied.busy_s == pytest.approx(copied.copies * (START + EACH))
    assert copied.joules == copied.copies * 3.0
    assert done.busy.get("link", 0.0) == copied.busy_s
    assert copied.hits <= copied.asked
    assert copied.copies >= len({name for name in names if name >= 0})
    if slots == 4 and len({x for x in names if x >= 0}) <= 4:
        assert copied.copies == len({x for x in names if x >= 0})


def test_slots_for_all_adapters_miss_each_of_them_once():
    rng = np.random.default_rng(1)
    serving = by_adapters(rng.integers(0, 6, 200).tolist(), gap=0.02, slots=6)
    assert serving.copied.copies == 6
    assert (waits(serving)[100:] < START).all()


@pytest.mark.parametrize("depth", [1, 2])
def test_without_adapters_all_is_as_it_was_bit_for_bit(depth):
    rng = np.random.default_rng(2)
    trace = RequestTrace(
        np.cumsum(rng.exponential(0.01, 80)), rng.integers(1, 40, 80), rng.integers(1, 30, 80)
    )
    many = server(Adapters(count=2, slots=1, rank=8), slots=1, depth=depth, blocks=60)
    plain = Server(PRICES, many.scheduling, 60, compiled=False)
    one = many.serve(RequestTrace(
        trace.arrival_s, trace.input_tokens, trace.output_tokens, adapter=np.full(80, -1)
    ))  # fmt: skip
    other = plain.serve(trace)
    assert other.preempted.any()
    assert one.times.tolist() == other.times.tolist()
    assert one.series.tolist() == other.series.tolist()
    assert one.means.tolist() == other.means.tolist()
    # One model of one is plain serving too, once it is there.
    whole = server(Models(count=1, slots=1), slots=1, depth=depth, blocks=60, each=-START)
    assert whole.serve(trace).times.tolist() == other.times.tolist()


def test_copies_go_on_while_steps_run_and_follow_each_other():
    """Three cold adapters at one moment: the n-th waits for n copies, nobody for a step."""
    serving = by_adapters([0, 1, 2], gap=0.0, slots=3)
    assert waits(serving).tolist() == pytest.approx([n * (START + EACH) for n in (1, 2, 3)])
    # What is there goes past those that wait, or not.
    for overtake, wait in ((True, 0.0), (False, START + EACH)):
        block = Adapters(count=2, slots=2, rank=8, overtake=overtake)
        trace = RequestTrace(
            np.array([0.0, 10.0, 10.0]), np.full(3, 5), np.full(3, 3), adapter=np.array([0, 1, 0])
        )
        found = waits(server(block, slots=2).serve(trace))
        assert found[2] == pytest.approx(wait, abs=1e-9)


def test_prefetch_asks_at_once_and_otherwise_when_the_line_is_empty():
    kind = {"gap": 0.0, "slots": 4, "outputs": 30, "max_sequences": 1}
    early = by_adapters([0, 1, 2, 3], **kind)
    late = by_adapters([0, 1, 2, 3], prefetch=False, **kind)
    assert early.copied.copies == late.copied.copies == 4
    # With one seat the next adapter is copied when the seat is free.
    assert late.seconds > early.seconds + 2.5 * (START + EACH)
    assert late.copied.waited_s == pytest.approx(4 * (START + EACH))


def test_a_copy_slows_steps_only_where_both_want_more_than_a_port_has():
    assert stretched(1.0, 5.0, 1.0) == 1.0
    assert stretched(1.0, 5.0, 0.5) == 2.0
    assert stretched(1.0, 1.0, 0.5) == 1.5
    slow = machine(**{"dev.ddr.bus.bandwidth": 1e12, "fill.bandwidth": 0.75 * 2e12 / 2})
    fast = machine()
    block = {"count": 40, "slots": 40, "rank": 64, "targets": ALL}
    requests = frame(40, gap=1e-4, adapter=np.arange(40), output_tokens=60)
    busy = [Server.of(m, Serve(SMALL, requests, adapters=block), m.mapping()) for m in (fast, slow)]
    assert busy[1].many.below.shares["dev.hbm.phy"] == pytest.approx(0.5)
    assert busy[0].many.below.shares["dev.hbm.phy"] == pytest.approx(1 / 30)


def test_slots_take_memory_from_the_cache():
    def blocks(**kind):
        work = Serve(LLAMA, frame(2), **kind)
        return Server.of(DGX, work, DGX.mapping()).blocks

    each = adapter_bytes(LLAMA, Adapter(64, ("q_proj", "v_proj")), Parallel(tp=8))
    of_block = 16 * LLAMA.kv_bytes_per_token / 8
    block = {"count": 500, "rank": 64, "targets": ("q", "v")}
    taken = blocks() - blocks(adapters=block | {"slots": 400})
    assert taken == pytest.approx(400 * each / of_block, abs=1.001)
    same = blocks(adapters=block | {"bytes": f"{400.5 * each:.0f} B"})
    assert blocks() - same == taken
    weights = LLAMA.weight_bytes / 8
    models = blocks() - blocks(models={"count": 3, "slots": 3})
    assert models == pytest.approx(2 * weights / of_block, rel=0.02)


def test_prompts_share_blocks_within_an_adapter_only():
    prefix = PrefixBlocks(np.array([1, 1, 1]), np.array([0, 1, 2, 3]), 16)

    def first(names):
        trace = RequestTrace(
            10.0 * np.arange(3), np.full(3, 17), np.full(3, 2), prefix, adapter=np.array(names)
        )
        done = server(Adapters(count=2, slots=2, rank=8), slots=2).serve(trace)
        return done.times[1] - done.times[0]

    same, other = first([0, 0, 0]), first([0, 1, 0])
    assert same[1] < same[0]
    assert other[1] == pytest.approx(other[0])
    assert other[2] == pytest.approx(same[1])


# -- models -----------------------------------------------------------------------------------


def test_a_cold_model_costs_a_copy_and_a_resident_one_nothing():
    serving = by_models([0, 1, 0, 2, 0, 1], slots=2)
    cold = START + EACH
    assert waits(serving).tolist() == pytest.approx([cold, cold, 0.0, cold, 0.0, cold], abs=1e-9)
    assert (serving.copied.copies, serving.copied.switches, serving.copied.hits) == (4, 6, 2)
    # A model whose turn it is already is no switch.
    again = by_models([0, 0, 1, 1], slots=1)
    assert (again.copied.switches, again.copied.copies) == (2, 2)


def test_models_are_copied_at_the_machines_rate():
    def cold(name, **kind):
        work = Serve(LLAMA, frame(2, gap=100.0, model=[0, 1]), models={"count": 2, "slots": 1})
        return ob.simulate(name, work, **kind)

    dgx, sn40l = cold("dgx-a100"), cold("sn40l-node")
    assert dgx.copy_wait_s == pytest.approx(LLAMA.weight_bytes / 32e9, rel=0.01)
    assert sn40l.copy_wait_s == pytest.approx(LLAMA.weight_bytes / 1e12, rel=0.01)
    assert dgx.copies == sn40l.copies == 2
    assert dgx.switches == sn40l.switches == 1
    named = cold("sn40l-node", mapping="coe")
    assert named.copy_wait_s == sn40l.copy_wait_s


def test_the_oldest_request_has_the_next_turn_and_a_quantum_ends_one():
    n = 12
    names = [0] * 6 + [1] * 6

    def served(quantum, **kind):
        block = Models(count=2, slots=2, quantum=quantum, **kind)
        trace = RequestTrace(np.zeros(n), np.full(n, 5), np.full(n, 60), model=np.array(names))
        return server(block, slots=2, each=0.0).serve(trace)

    long, short = served("100 s"), served("20 ms")
    assert long.copied.switches == 2
    assert short.copied.switches > 4
    # In one turn all of model 0 is done before any of model 1 begins.
    assert long.times[2][:6].max() <= long.times[0][6:].min()
    assert short.times[2][:6].max() > short.times[0][6:].min()
    assert long.preempted.sum() == 0
    dropped = served("20 ms", kv="drop")
    assert dropped.preempted.sum() > 0
    assert dropped.tokens > short.tokens
    assert dropped.seconds > short.seconds


def test_the_longest_queue_has_the_next_turn():
    trace = RequestTrace(
        np.array([0.0, 1e-4, 2e-4, 3e-4]), np.full(4, 5), np.full(4, 10),
        model=np.array([0, 1, 2, 2]),
    )  # fmt: skip

    def order(policy):
        block = Models(count=3, slots=3, policy=policy)
        started = server(block, slots=3, each=0.0).serve(trace).times[0]
        return np.argsort(started, kind="stable").tolist()

    assert order("oldest") == [0, 1, 2, 3]
    assert order("longest") == [0, 2, 3, 1]


def test_the_next_model_is_copied_while_another_one_runs_where_the_mapping_says_so():
    names = [0] * 8 + [1] * 8

    def served(slots, *, ahead):
        block = Models(count=2, slots=slots, quantum="10 ms")
        trace = RequestTrace(np.zeros(16), np.full(16, 5), np.full(16, 60), model=np.array(names))
        return server(block, slots=slots, each=0.1, ahead=ahead).serve(trace)

    after, beside = served(2, ahead=False), served(2, ahead=True)
    # The second copy is hidden, the first one can not be.
    assert after.seconds - beside.seconds == pytest.approx(0.1, abs=0.02)
    one = served(1, ahead=True)
    assert one.times.tolist() == served(1, ahead=False).times.tolist()
    assert one.copied.copies > 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_all_requests_of_all_models_are_served(data):
    n = data.draw(st.integers(1, 25))
    names = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    lengths = st.lists(st.integers(1, 30), min_size=n, max_size=n)
    gaps = data.draw(st.lists(st.sampled_from([0.0, 0.01, 0.2]), min_size=n, max_size=n))
    trace = RequestTrace(
        np.cumsum(gaps), np.array(data.draw(lengths)), np.array(data.draw(lengths)),
        model=np.array(names),
    )  # fmt: skip
    slots = data.draw(st.integers(1, 5))
    block = Models(
        count=5, slots=slots, policy=data.draw(st.sampled_from(["oldest", "longest"])),
        kv=data.draw(st.sampled_from(["stay", "drop"])), quantum="50 ms",
    )  # fmt: skip
    blocks, depth = data.draw(st.sampled_from([15, 40, 400])), data.draw(st.integers(1, 3))
    ahead = data.draw(st.booleans())
    one = server(block, slots=slots, ahead=ahead, blocks=blocks, depth=depth)
    done = one.serve(trace)
    assert np.isfinite(done.times).all()
    copied = done.copied
    assert copied.copies + copied.hits == copied.asked == copied.switches
    assert copied.copies >= len(set(names))
    if slots == 5:
        assert copied.copies == len(set(names))


# -- what is refused --------------------------------------------------------------------------

BLOCK = {"count": 4, "slots": 2, "rank": 16}


@pytest.mark.parametrize(
    ("name", "kind", "error", "text"),
    [
        ("a100-sxm-80gb", {"adapters": BLOCK}, ConfigError, "memory below 'gpu.hbm' is due"),
        ("dgx-a100", {"models": {"count": 1000, "slots": 1}}, CapacityError, "host.dram"),
        ("dgx-a100", {"models": {"count": 99, "slots": 99}}, CapacityError, "gpu.hbm"),
        ("dgx-a100", {"adapters": BLOCK | {"slots": None, "bytes": "1 kB"}}, CapacityError, "adap"),
        ("dgx-a100", {"adapters": BLOCK | {"tier": "gpu.hbm"}}, ConfigError, "another memory"),
        ("dgx-a100", {"adapters": BLOCK | {"tier": "gpu.hmb"}}, ConfigError, "hbm"),
        ("dgx-a100", {"adapters": BLOCK | {"targets": ["q_prjo"]}}, ConfigError, "q_proj"),
        ("dgx-a100", {"adapters": BLOCK | {"bytes": "1 GB"}}, ConfigError, "slots"),
        ("dgx-a100", {"adapters": BLOCK | {"slotz": 1}}, ConfigError, "slotz"),
        ("dgx-a100", {"adapters": BLOCK, "models": {"count": 1, "slots": 1}}, WorkloadError, "eit"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_an_error_that_names_it(name, kind, error, text):
    with pytest.raises(error, match=text):
        ob.simulate(name, Serve(LLAMA, frame(3), **kind))


def test_requests_for_what_there_is_not():
    with pytest.raises(WorkloadError, match="request 1 asks for adapter 7, and there are 4"):
        Serve(LLAMA, frame(2, adapter=[0, 7]), adapters=BLOCK)
    with pytest.raises(WorkloadError, match="asks for model -1"):
        Serve(LLAMA, frame(2, model=[0, -1]), models={"count": 2, "slots": 1})


def test_experts_fleets_and_busy_links_are_refused():
    mixtral = ob.load_model("mixtral-8x7b")
    block = BLOCK | {"targets": ["w1"]}
    with pytest.raises(UncoveredError, match="routed experts"):
        ob.simulate("dgx-a100", Serve(mixtral, frame(2), adapters=block))
    four = load_machine("dgx-a100")
    with pytest.raises(UncoveredError, match="one engine"):
        ob.simulate(four, Serve(LLAMA, frame(2), adapters=BLOCK, fleet={"replicas": 2}))
    for kind, text in (
        ({"scheduler": {"preempt": "swap"}}, "swap"),
        ({"scheduler": "layered"}, "divided by layers"),
        ({"speculate": {"draft": None, "tokens": 2, "acceptance": 0.7}}, "guesses"),
    ):
        with pytest.raises(UncoveredError, match=text):
            ob.simulate("dgx-a100", Serve(LLAMA, frame(2), adapters=BLOCK, **kind))
    taken = machine(**{"fill.bandwidth": 9e12, "dev.ddr.bus.bandwidth": 9e12})
    with pytest.raises(UncoveredError, match=r"steps use 'dev\.hbm\.phy'"):
        ob.simulate(taken, Serve(SMALL, frame(2), adapters=BLOCK))
