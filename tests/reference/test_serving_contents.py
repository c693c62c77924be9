"""Mooncake's synthetic trace over tiers below the KV cache: more memory, more hits."""

import itertools
import json
from copy import deepcopy

import pytest

import opbyte as ob
from opbyte.hw_models.machine import load_machine


@pytest.fixture(scope="module")
def first(reference, tmp_path_factory):
    """Return the trace's first 300 requests."""
    path = reference / "traces" / "mooncake_synthetic.jsonl"
    if not path.is_file():
        pytest.skip(f"no request trace {path}")
    kept = tmp_path_factory.mktemp("traces") / "mooncake.jsonl"
    with path.open() as lines:
        kept.write_text("".join(itertools.islice(lines, 300)))
    return kept


def served(trace, spill):
    """Return what an A100 with a host and a drive makes of it."""
    data = deepcopy(dict(load_machine("a100-sxm-80gb").document.data))
    for part, memory, rate, size in (
        ("host", "dram", "200 GB/s", "2 TiB"), ("drive", "flash", "10 GB/s", "16 TiB"),
    ):  # fmt: skip
        ports = {"bus": {"bandwidth": rate, "latency": "1 us"}}
        data["parts"][part] = {"memory": {memory: {"capacity": size, "ports": ports}}}
    data["links"]["pcie"] = {"ends": ["host", "gpu"], "bandwidth": "25 GB/s", "latency": "2 us"}
    data["links"]["nvme"] = {"ends": ["drive", "host"], "bandwidth": "7 GB/s", "latency": "80 us"}
    data["mappings"]["default"]["place"] = {"kv": {"in": {"gpu.hbm": 1.0}, "spill": spill}}
    return ob.simulate(data, ob.Serve("llama-3.1-8b", trace, scheduler={"block_tokens": 128}))


def test_hits_rise_with_the_memory_below(first):
    def host(size):
        return {"tier": "host.dram", "capacity": size}

    spills = [[], [host("32 GiB")], [host("128 GiB")], [host("1 TiB")]]
    results = [served(first, spill) for spill in spills]
    rates = [r.kv_hit_rate for r in results]
    assert rates == sorted(rates)
    assert rates[-1] > rates[1] + 0.02
    # With room for all, no block of a prompt is computed twice but by those who ask together.
    ids = [json.loads(line)["hash_ids"] for line in first.read_text().splitlines()]
    asked, distinct = sum(map(len, ids)), len({i for row in ids for i in row})
    most = 1.0 - distinct / asked
    assert rates[-1] == pytest.approx(most, abs=0.03)
    # A drive behind a small memory is as good as a large memory, but for what is on its way.
    both = served(first, [host("32 GiB"), {"tier": "drive.flash", "capacity": "4 TiB"}])
    assert both.kv_hit_rate == pytest.approx(rates[-1], abs=0.02)
    assert both.outcome.detail["hits"]["drive.flash"] > 0
    for result in results:
        hits = result.outcome.detail["hits"]
        done = result.requests[result.requests["status"] == "served"]
        assert len(done) >= 297
        assert result.requests["reason"].str.contains("context").sum() == 300 - len(done)
        assert sum(hits.values()) >= done["input_tokens"].sum()
