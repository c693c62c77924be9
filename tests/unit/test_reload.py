"""Fetch a context's cache or compute it again: closed forms against served traces."""

import json

import pytest

import opbyte as ob

TIERS = ["spill-dram", "spill-cxl", "spill-flash"]
SCHEDULER = {"kind": "continuous", "block_tokens": 128, "max_sequences": 8}


def served(machine, mapping, path, kv_blocks=65):
    """Return the time to first token of each request of a trace."""
    work = ob.Serve("llama-3.1-8b", str(path), scheduler=SCHEDULER | {"kv_blocks": kv_blocks})
    times = ob.simulate(machine, work, mapping).requests
    return (times["first_token_s"] - times["arrival_s"]).to_numpy()


def closed(machine, mapping, tokens=8192, new=128, model="llama-3.1-8b"):
    work = ob.Serve(model, "sample-chat", scheduler=SCHEDULER)
    return ob.reload_or_compute(machine, work, tokens, new, mapping)


@pytest.fixture(scope="module")
def machine():
    return ob.load_machine("cxl-host")


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """A text of 8,192 tokens, another that takes its place in the cache, and the first again."""
    path = tmp_path_factory.mktemp("again") / "again.jsonl"
    first, other = list(range(16)), list(range(100, 116))
    rows = [
        {"timestamp": 10_000 * i, "input_length": 8320, "output_length": 1, "hash_ids": ids}
        for i, ids in enumerate(([*first, 50], [*other, 51], [*first, 52]))
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.mark.parametrize("mapping", TIERS)
def test_a_served_request_takes_as_long_as_the_closed_form(machine, again, mapping):
    found = closed(machine, mapping)
    times = served(machine, mapping, again)
    assert times[:2] == pytest.approx(found.compute_s, rel=1e-9)
    assert times[2] == pytest.approx(found.load_s, rel=1e-9)
    assert served(machine, "recompute", again)[2] == pytest.approx(found.compute_s, rel=1e-9)


@pytest.mark.parametrize("mapping", TIERS)
def test_loading_is_bytes_over_the_slowest_of_the_way(machine, mapping):
    value = machine.values
    ends = {
        "spill-dram": ["cpu.dram.imc", "dma"],
        "spill-cxl": ["aic.dram.cxl", "cxl", "dma"],
        "spill-flash": ["disk.flash.nvme", "nvme", "dma"],
    }
    slowest = min(
        value[f"{r}.bandwidth"] * value.get(f"{r}.efficiency", 1.0) for r in ends[mapping]
    )
    found = closed(machine, mapping, tokens=8200)
    assert found.kept == 8192
    assert found.bytes == 8192 * ob.load_model("llama-3.1-8b").kv_bytes_per_token
    assert found.bytes_per_s == pytest.approx(slowest)
    assert found.load_s == pytest.approx(found.start_s + found.bytes / slowest + found.new_s)


def test_a_served_trace_changes_its_mind_at_the_crossing_rate(machine, again):
    """On either side of R* by 2 % the other one is first."""
    rate = closed(machine, "spill-dram").crossing_bytes_per_s / machine.values["dma.efficiency"]
    for factor, pays in ((0.98, False), (1.02, True)):
        other = machine.replace({"dma.bandwidth": f"{factor * rate / 1e9} GB/s"})
        times = served(other, "spill-dram", again)
        assert bool(times[2] < times[0]) is pays
        assert closed(other, "spill-dram").pays is pays
    level = machine.replace({"dma.bandwidth": f"{rate / 1e9} GB/s"})
    times = served(level, "spill-dram", again)
    assert times[2] == pytest.approx(times[0], rel=1e-3)


def test_the_crossing_rate_is_bytes_over_the_seconds_of_the_products(machine):
    """R* = b F / (2 P) for short contexts: F lies below the peak, and not far."""
    for name in ("llama-3.1-8b", "llama-2-7b", "qwen2.5-7b"):
        model = ob.load_model(name)
        found = closed(machine, "spill-cxl", tokens=2048, model=name)
        ideal = model.kv_bytes_per_token * machine.values["gpu.sm.peak.bf16"]
        assert 0.4 < found.crossing_bytes_per_s / (ideal / (2 * model.parameters)) < 1.0
    # Four times the cache of a token, nearly the same products: four times the rate. Embeddings,
    # which are looked up, are an eighth of the one model's parameters and 4 % of the other's.
    shared, each = (
        closed(machine, "spill-cxl", tokens=2048, model=name).crossing_bytes_per_s
        / ob.load_model(name).kv_bytes_per_token
        * ob.load_model(name).parameters
        for name in ("llama-3.1-8b", "llama-2-7b")
    )
    assert each == pytest.approx(shared, rel=0.15)


def test_longer_contexts_ask_for_less_and_computing_them_for_more_than_their_share(machine):
    found = [closed(machine, "spill-flash", tokens=t) for t in (2048, 8192, 32768, 65536)]
    rates = [f.crossing_bytes_per_s for f in found]
    assert rates == sorted(rates, reverse=True)
    # Loads are linear in tokens, products too, and attention is quadratic on top.
    loads = [(f.load_s - f.start_s - f.new_s) / f.kept for f in found]
    assert loads == pytest.approx([loads[0]] * 4)
    computes = [f.compute_s / (f.kept + 128) for f in found]
    assert computes[3] > 1.5 * computes[0]


def test_room_against_rate_which_of_two_tiers_pays(machine, tmp_path):
    """Texts drawn alike from n, of which the cache holds C0, a fast tier C1 and a slow one all.

    Both tiers are level at n = C0 + (C1 - C0) gain1 / gain2, gain = compute - load.
    """
    cache, room = 4, 16
    fast, slow = closed(machine, "spill-cxl", 2048), closed(machine, "spill-flash", 2048)
    gains = [f.compute_s - f.load_s for f in (fast, slow)]
    level = cache + (room - cache) * gains[0] / gains[1]

    def mean(mapping, texts, capacity):
        trace = {
            "requests": 1500, "seed": 3, "arrivals": {"kind": "poisson", "rate": "0.5 requests/s"},
            "lengths": {"input": 2176, "output": 1},
            "prefix": {"texts": texts, "tokens": 2048, "block_tokens": 512},
        }  # fmt: skip
        place = machine.mapping(mapping).model_dump(by_alias=True, exclude_none=True)
        place["place"]["kv"]["spill"][0]["capacity"] = f"{capacity / 1e9} GB"
        work = ob.Serve("llama-3.1-8b", trace, scheduler=SCHEDULER | {"kv_blocks": 17 * cache})
        times = ob.simulate(machine, work, place).requests[300:]
        return float((times["first_token_s"] - times["arrival_s"]).mean())

    each = 17 * 128 * ob.load_model("llama-3.1-8b").kv_bytes_per_token
    for texts, first in ((round(0.7 * level), True), (round(1.4 * level), False)):
        one = mean("spill-cxl", texts, room * each)
        other = mean("spill-flash", texts, 1000 * each)
        assert (one < other) is first, (texts, one, other, level)


def test_what_has_no_tier_is_refused(machine):
    with pytest.raises(ob.UncoveredError, match="give the mapping's `kv` a `spill`"):
        closed(machine, "recompute")
    with pytest.raises(ob.WorkloadError, match="needs a block of 128"):
        closed(machine, "spill-cxl", tokens=100)
    with pytest.raises(ob.ConfigError, match="new: must be a whole number from 1 on, got 0"):
        closed(machine, "spill-cxl", new=0)


@pytest.mark.parametrize("wrong", [None, "8192", 8192.5, True, float("nan"), float("inf"), -1])
@pytest.mark.parametrize("which", ["tokens", "new"])
def test_tokens_are_whole_numbers(machine, which, wrong):
    with pytest.raises(ob.ConfigError, match=f"{which}: must be a whole number from 1 on"):
        closed(machine, "spill-dram", **{which: wrong})


def test_contexts_that_the_model_does_not_allow_and_other_works_are_refused(machine):
    with pytest.raises(ob.WorkloadError, match="at most 131072"):
        closed(machine, "spill-dram", tokens=131072)
    work = ob.Decode("llama-3.1-8b", batch=1, context=1)
    with pytest.raises(ob.ConfigError, match=r"opbyte\.Serve"):
        ob.reload_or_compute(machine, work, 8192, 1, "spill-dram")
