"""Contents of the KV cache in tiers below it: what is kept, what comes back, what that takes."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

import opbyte as ob
from opbyte.hw_models.machine import load_machine
from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.contents import LowerTiers
from opbyte.sim.serving.server import Server
from opbyte.sim.serving.transfers import LinkPrice

BLOCK = 16
#: Bytes of a block of Llama 3.1 8B.
SIZE = 16 * 131072


def machine(spill=(), **mapping):
    """Return an A100 with a host's memory behind a link, and a drive behind that."""
    data = deepcopy(dict(load_machine("a100-sxm-80gb").document.data))
    bus = {"bandwidth": "200 GB/s", "latency": "100 ns", "energy": "15 pJ/bit"}
    flash = {"bandwidth": "10 GB/s", "latency": "50 us", "energy": "30 pJ/bit"}
    data["parts"]["host"] = {"memory": {"dram": {"capacity": "64 GiB", "ports": {"bus": bus}}}}
    data["parts"]["drive"] = {"memory": {"flash": {"capacity": "1 TiB", "ports": {"bus": flash}}}}
    link = {"latency": "2 us", "energy": "6 pJ/bit"}
    data["links"]["pcie"] = {"ends": ["host", "gpu"], "bandwidth": "25 GB/s", **link}
    data["links"]["nvme"] = {"ends": ["drive", "host"], "bandwidth": "8 GB/s", **link}
    place = data["mappings"]["default"].setdefault("place", {})
    if spill:
        place["kv"] = {"in": {"gpu.hbm": 1.0}, "spill": list(spill)}
    data["mappings"]["default"] |= mapping
    return load_machine(data)


HOST = {"tier": "host.dram", "capacity": "32 GiB"}
DRIVE = {"tier": "drive.flash", "capacity": "512 GiB"}


def trace(tmp_path, prompts, gap=100.0, output=1):
    """Return requests with these blocks of 16 tokens and 5 tokens more, so far apart."""
    rows = [
        {"timestamp": 1e3 * gap * i, "input_length": BLOCK * len(ids) + 5, "output_length": output,
         "hash_ids": [*ids, 10**6 + i], "block_size": BLOCK}
        for i, ids in enumerate(prompts)
    ]  # fmt: skip
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def server(path, spill=(), **scheduler):
    given = {"max_batched_tokens": 512, "max_sequences": 8, **scheduler}
    work = ob.Serve("llama-3.1-8b", path, scheduler=given)
    made = machine(spill)
    return Server.of(made, work, made.mapping()), work


FIRST, OTHER = list(range(1, 21)), list(range(101, 121))


def test_what_was_pushed_out_comes_back_and_the_rest_is_computed(tmp_path):
    """The second request with a prefix waits for the link, and then for its last tokens."""
    path = trace(tmp_path, [FIRST, OTHER, FIRST])
    engine, work = server(path, [HOST], kv_blocks=21)
    served = engine.serve(work.trace)
    price = engine.tiers[0].price
    assert price.name == "pcie"
    assert price.block_s == pytest.approx(SIZE / 25e9)
    assert price.block_bytes == pytest.approx(SIZE)
    load = price.start_s + 20 * price.block_s
    ttft = served.times[1] - served.arrival
    whole, rest = (engine.prices.cost([piece]).seconds for piece in ((325, 0), (5, 320)))
    assert ttft == pytest.approx([whole, whole, load + rest], rel=1e-9)
    assert load + rest < whole
    # Two prompts were written through, one came back.
    assert served.hits == {"cache": 0, "host.dram": 320, "computed": 2 * 325 + 5}
    assert served.moved == {"pcie": pytest.approx(60 * SIZE)}
    assert served.busy["pcie"] == pytest.approx(3 * price.start_s + 60 * price.block_s)
    # Only the last request finds them, and it is neither in the cache nor below without a tier.
    without, _ = server(path, kv_blocks=21)
    assert without.serve(work.trace).hits == {"cache": 0, "computed": 3 * 325}


def test_the_second_tier_is_as_far_as_both_links(tmp_path):
    path = trace(tmp_path, [FIRST, OTHER, FIRST])
    small = {"tier": "host.dram", "capacity": f"{20 * SIZE} B"}
    engine, work = server(path, [small, DRIVE], kv_blocks=21)
    served = engine.serve(work.trace)
    first, second = (tier.price for tier in engine.tiers)
    assert second.name == "nvme"
    assert second.block_s == pytest.approx(SIZE / 8e9)
    load = first.start_s + second.start_s + 20 * (first.block_s + second.block_s)
    rest = engine.prices.cost([(5, 320)]).seconds
    assert served.times[1, 2] - served.arrival[2] == pytest.approx(load + rest, rel=1e-9)
    assert served.hits["drive.flash"] == 320
    # Down and up again for one prompt, down for the one that made room for it on its way up.
    assert served.moved["nvme"] == pytest.approx(60 * SIZE)


def test_energy_of_what_moved_is_counted(tmp_path):
    path = trace(tmp_path, [FIRST, OTHER, FIRST])
    engine, work = server(path, [HOST], kv_blocks=21)
    steps = engine.prices.cost([(325, 0)]).joules * 2 + engine.prices.cost([(5, 320)]).joules
    moved = 60 * 8 * SIZE * (15 + 6 + 3.97) * 1e-12
    assert engine.serve(work.trace).joules == pytest.approx(steps + moved)


class Tiers:
    """Tiers of so many blocks, a second for each block on each link."""

    def __init__(self, *rooms):
        self.env = Clock()
        self.below = LowerTiers(
            self.env, [(n, LinkPrice(f"{i}", 0.0, 1.0)) for i, n in enumerate(rooms)]
        )

    def save(self, *keys, start=0):
        self.below.save(keys, start)
        self.env.run()

    def load(self, *keys):
        found = self.below.leading(keys)
        done = []
        self.below.load(found, lambda: done.append(self.env.now))
        self.env.run()
        return found, done


def test_the_least_recently_used_goes_down_and_a_sequence_from_its_end():
    tiers = Tiers(4, 2)
    tiers.save("a", "b")
    tiers.save("c", "d")
    assert tiers.below.held == (("b", "a", "d", "c"), ())
    tiers.save("a", "b", "e", start=2)
    assert tiers.below.held == (("c", "e", "b", "a"), ("d",))
    tiers.save("f", "g")
    assert tiers.below.held == (("b", "a", "g", "f"), ("c", "e"))
    # Of the lowest tier the least recently used is gone.
    tiers.save("h")
    assert tiers.below.held == (("a", "g", "f", "h"), ("e", "b"))


def test_what_comes_up_stays_below_too_and_is_not_sent_down_twice():
    tiers = Tiers(2, 4)
    tiers.save("a", "b")
    tiers.save("c", "d")
    assert tiers.below.held == (("d", "c"), ("b", "a"))
    found, done = tiers.load("a", "b", "x", "c")
    assert found == ("a", "b")
    assert tiers.below.loaded == [0, 2]
    # Two blocks up one link and the other, after two down each.
    assert done == [6.0 + 2.0 + 2.0]
    assert tiers.below.held == (("b", "a"), ("b", "a", "d", "c"))
    sent = tiers.below.links[1].blocks
    tiers.save("e")
    assert tiers.below.held[0] == ("a", "e")
    assert tiers.below.links[1].blocks == sent


def test_nobody_finds_what_is_on_its_way():
    tiers = Tiers(4)
    tiers.below.save("ab", 0)
    assert tiers.below.leading("ab") == ()
    # It is not sent twice meanwhile.
    tiers.below.save("ab", 0)
    tiers.env.run()
    assert tiers.below.leading("abc") == ("a", "b")
    assert tiers.below.links[0].blocks == 2


@pytest.mark.parametrize("seed", range(3))
def test_tiers_hold_no_more_than_they_can_and_nothing_twice(seed):
    rng = np.random.default_rng(seed)
    tiers = Tiers(7, 13, 5)
    written = set()
    for _ in range(200):
        first = int(rng.integers(0, 40))
        keys = tuple(range(first, first + int(rng.integers(1, 12))))
        if rng.random() < 0.5:
            tiers.below.save(keys, 0)
            written.update(keys)
        elif found := tiers.below.leading(keys):
            tiers.below.load(found, lambda: None)
        tiers.env.run(until=tiers.env.now + float(rng.integers(1, 9)))
        for held, room in zip(tiers.below.held, (7, 13, 5), strict=True):
            assert len(held) == len(set(held)) <= room
            assert set(held) <= written
    tiers.env.run()
    # A memory that was once full stays full.
    assert [len(held) for held in tiers.below.held] == [7, 13, 5]
    assert all(link.busy_s == link.blocks for link in tiers.below.links)


def test_with_room_for_all_every_block_of_a_prefix_is_computed_once(tmp_path):
    rng = np.random.default_rng(1)
    stems = [list(range(100 * i, 100 * i + 20)) for i in range(6)]
    prompts = [stems[i] + [5000 + n] for n, i in enumerate(rng.integers(0, 6, 40))]
    path = trace(tmp_path, prompts, output=20)
    engine, work = server(path, [HOST], kv_blocks=30)
    served = engine.serve(work.trace)
    distinct = len({block for prompt in prompts for block in prompt})
    # Beside blocks each prompt has 5 tokens of its own.
    assert served.hits["computed"] == BLOCK * distinct + 5 * 40
    assert served.hits["host.dram"] > 0
    # Prompts in full, and each of the answers' tokens but the last.
    assert served.tokens == served.hits["computed"] + 19 * 40
    again = engine.serve(work.trace)
    assert again.times.tolist() == served.times.tolist()
    assert again.hits == served.hits


def test_crowded_engines_lose_no_request_and_no_block(tmp_path):
    """Preempted requests find what they had computed below; all blocks come back."""
    rng = np.random.default_rng(2)
    stems = [list(range(100 * i, 100 * i + 12)) for i in range(8)]
    prompts = [stems[i] + [5000 + n] for n, i in enumerate(rng.integers(0, 8, 60))]
    path = trace(tmp_path, prompts, gap=0.02, output=150)
    for depth in (1, 2):
        engine, work = server(path, [HOST], kv_blocks=60, depth=depth)
        served = engine.serve(work.trace)
        assert served.served.all()
        assert served.preempted.sum() > 3
        assert served.series[4, -1] == 60
        assert sum(served.hits.values()) >= work.trace.input_tokens.sum()
        assert served.hits["host.dram"] > served.hits["cache"] * 0.1
        assert (np.diff(served.times, axis=0) >= 0).all()
        bare, _ = server(path, kv_blocks=60, depth=depth)
        assert served.hits["computed"] < bare.serve(work.trace).hits["computed"]


def test_what_lies_below_is_not_left_to_compute(tmp_path):
    """Of two that wait for a third, the shortest is the one whose contents come up."""
    long, busy, short = FIRST, list(range(200, 220)), OTHER[:10]
    path = trace(tmp_path, [long, busy, busy[::-1], long, short], gap=1e-3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, at in zip(rows, (0.0, 50.0, 100.0, 100.001, 100.001), strict=True):
        row["timestamp"] = 1e3 * at
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    for spill, first in (([HOST], 3), ([], 4)):
        engine, work = server(path, spill, kv_blocks=21, max_sequences=1, kind="shortest")
        served = engine.serve(work.trace)
        assert np.argsort(served.times[2])[3] == first


def test_without_tiers_both_ways_through_find_alike():
    work = ob.Serve(
        "llama-3.1-8b", "sample-chat", rate=20.0, scheduler={"kv_blocks": 300, "max_sequences": 32}
    )
    plain = load_machine("a100-sxm-80gb")
    fast = Server.of(plain, work, plain.mapping())
    one, other = (server.serve(work.trace) for server in (fast, replace(fast, compiled=False)))
    assert one.hits == other.hits
    assert one.hits["cache"] > 0
    assert one.moved == {}


def test_the_result_says_where_tokens_were_found(tmp_path):
    path = trace(tmp_path, [FIRST, OTHER, FIRST])
    work = ob.Serve("llama-3.1-8b", path, scheduler={"max_batched_tokens": 512, "kv_blocks": 21})
    result = ob.simulate(machine([HOST]), work)
    assert result.kv_hit_rate == pytest.approx(320 / 975)
    assert result.outcome.detail["hits"]["host.dram"] == 320
    assert result.outcome.detail["moved_bytes"]["pcie"] == pytest.approx(60 * SIZE)


def test_what_can_not_spill_is_refused(tmp_path):
    path = trace(tmp_path, [FIRST])
    with pytest.raises(ob.ConfigError, match="nobody looks for"):
        server(path, [HOST], prefix_cache=False)
    with pytest.raises(ob.UncoveredError, match="below already"):
        server(path, [HOST], preempt="swap")
    with pytest.raises(ob.UncoveredError, match="layered"):
        server(path, [HOST], kind="layered")
    with pytest.raises(ob.CapacityError, match=r"host\.dram"):
        server(path, [{"tier": "host.dram", "capacity": "65 GiB"}])
    with pytest.raises(ob.ConfigError, match="occurs twice"):
        machine([HOST, HOST]).mapping()
    with pytest.raises(ob.UncoveredError, match="share 'nvme'"):
        server(path, [DRIVE, HOST])
    wrong = machine(place={"weight": {"in": {"gpu.hbm": 1.0}, "spill": [HOST]}})
    with pytest.raises(ob.UncoveredError, match=r"place\.weight\.spill"):
        ob.simulate(wrong, ob.Decode("llama-3.1-8b", batch=1, context=100))
