"""The tier below a machine's KV cache, and schedulers of a served trace that need more of it."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import opbyte as ob
from opbyte.hw_models.machine import load_machine
from opbyte.sim.serving.server import Server

SWAP = {"preempt": "swap", "kv_blocks": 600, "max_sequences": 32, "depth": 2}


def with_host(rate="25 GB/s", latency="2 us", capacity="64 GiB"):
    """Return an A100 with a host's memory behind a link."""
    data = deepcopy(dict(load_machine("a100-sxm-80gb").document.data))
    bus = {"bandwidth": "200 GB/s", "latency": "100 ns", "energy": "15 pJ/bit"}
    data["parts"]["host"] = {"memory": {"dram": {"capacity": capacity, "ports": {"bus": bus}}}}
    data["links"]["pcie"] = {
        "ends": ["host", "gpu"], "bandwidth": rate, "latency": latency, "energy": "6 pJ/bit",
    }  # fmt: skip
    return data


@pytest.fixture(scope="module")
def frame():
    """Answers that outgrow the cache: two tenants, one of them in a hurry."""
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "arrival_s": np.cumsum(rng.exponential(0.05, 60)),
            "input_tokens": rng.integers(50, 900, 60),
            "output_tokens": rng.integers(100, 400, 60),
            "tenant": rng.integers(0, 3, 60),
            "priority": rng.integers(0, 2, 60),
        }
    )


def server(work, machine=None):
    machine = load_machine(with_host() if machine is None else machine)
    return Server.of(machine, work, machine.mapping())


def test_a_block_moves_at_the_rate_of_the_slowest_part_of_its_way(frame):
    work = ob.Serve("llama-3.1-8b", frame, scheduler=SWAP)
    tier = server(work).below
    size = 16 * work.model.kv_bytes_per_token
    assert tier.memory == "host.dram"
    assert tier.blocks == 4 * 2**30 // size
    assert tier.price.name == "pcie"
    assert tier.price.block_s == pytest.approx(size / 25e9)
    # The slowest port's latency, here HBM's 0.5 us, and the link's.
    assert tier.price.start_s == pytest.approx(2e-6 + 0.5e-6)
    assert tier.price.block_j == pytest.approx(8 * size * (15 + 6 + 3.97) * 1e-12)


@pytest.mark.parametrize("kind", ["continuous", "shortest", "fair"])
def test_both_ways_through_swap_alike(frame, kind):
    lead = 300 if kind == "fair" else None
    work = ob.Serve("llama-3.1-8b", frame, scheduler=SWAP | {"kind": kind, "lead": lead})
    fast = server(work)
    slow = replace(fast, compiled=False)
    one, other = fast.serve(work.trace), slow.serve(work.trace)
    assert one.times == pytest.approx(other.times, rel=1e-12)
    assert one.preempted.tolist() == other.preempted.tolist()
    assert one.preempted.sum() > 5
    assert one.busy == pytest.approx(other.busy)
    assert one.joules == pytest.approx(other.joules)
    assert one.busy["pcie"] > 0


def test_nothing_is_computed_twice_where_blocks_are_kept(frame):
    def tokens(**changes):
        work = ob.Serve("llama-3.1-8b", frame, scheduler=SWAP | {"prefix_cache": False} | changes)
        served = server(work).serve(work.trace)
        assert served.preempted.sum() > 5
        return served.tokens

    due = int((frame["input_tokens"] + frame["output_tokens"] - 1).sum())
    assert tokens() == due
    assert tokens(preempt="recompute") > due
    assert tokens(swap_space="16 MiB") > due


def test_a_slower_link_ends_no_earlier(frame):
    work = ob.Serve("llama-3.1-8b", frame, scheduler=SWAP)
    ends = [
        server(work, with_host(rate=rate)).serve(work.trace).seconds
        for rate in ("100 GB/s", "1 GB/s", "0.1 GB/s")
    ]
    assert ends == sorted(ends)
    assert ends[2] > 1.1 * ends[0]


def test_machines_and_mappings_without_such_a_memory_are_refused(frame):
    work = ob.Serve("llama-3.1-8b", frame, scheduler=SWAP)
    with pytest.raises(ob.ConfigError, match="has none that links reach"):
        server(work, "a100-sxm-80gb")
    with pytest.raises(ob.CapacityError, match=r"host\.dram"):
        server(work, with_host(capacity="2 GiB"))
    two = with_host()
    two["parts"]["far"] = deepcopy(two["parts"]["host"])
    two["links"]["network"] = {"ends": ["far", "gpu"], "bandwidth": "1 GB/s"}
    with pytest.raises(ob.ConfigError, match=r"several: host\.dram, far\.dram"):
        server(work, two)
    two["mappings"]["default"]["place"]["kv.swap"] = {"in": {"far.dram": 1.0}}
    assert server(work, two).below.price.name == "network"
    two["mappings"]["default"]["place"]["kv.swap"] = {"in": {"gpu.hbm": 1.0}}
    with pytest.raises(ob.ConfigError, match="one memory other than"):
        server(work, two)


def test_a_socket_swaps_to_its_own_ddr():
    work = ob.Serve("llama-3.1-8b", "sample-chat", scheduler=SWAP)
    assert server(work, "sn40l-socket").below.memory.endswith("ddr")


def test_a_lead_without_clients_is_refused(frame):
    with pytest.raises(ob.ConfigError, match="lead: does nothing here, it is for fair"):
        ob.Serve("llama-3.1-8b", frame, scheduler={"kind": "shortest", "lead": 10})


def test_a_fair_scheduler_must_know_who_asks(frame):
    nobody = frame.drop(columns=["tenant", "priority"])
    work = ob.Serve("llama-3.1-8b", nobody, scheduler="fair")
    with pytest.raises(ob.WorkloadError, match="does not say who asks"):
        ob.simulate("a100-sxm-80gb", work)
    talks = nobody.assign(session=np.arange(60) // 3)
    assert ob.simulate("a100-sxm-80gb", ob.Serve("llama-3.1-8b", talks, scheduler="fair")).ttft_mean


def test_the_urgent_are_served_first(frame):
    rush = frame.assign(arrival_s=0.0)
    work = ob.Serve("llama-3.1-8b", rush, scheduler={"kind": "fair", "max_sequences": 4})
    began = ob.simulate("a100-sxm-80gb", work).requests["scheduled_s"].to_numpy()
    urgent = rush["priority"].to_numpy() == 1
    assert began[urgent].max() <= began[~urgent].min()
