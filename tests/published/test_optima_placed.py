"""Searches of published choices of where things live: DRAM, CXL, flash, host. docs/search.md."""

import numpy as np
import pytest

from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.study import load_study

LOCAL, BEYOND = {"cpu.dram": 1.0}, {"aic.dram": 1.0}
PAGE = "4 KiB"
#: What 100 GiB of DRAM leave for a fourth tensor of 33.4 GB beside three, in tenths.
REST = {"cpu.dram": 0.2, "aic.dram": 0.8}
STATES = ("momentum", "variance", "master_gradient", "master_weight")
CLASSES = (*STATES, "weight", "gradient")
#: Node masks of the tutorial: 0 is DRAM, 1 CXL (cxl_finetune.yaml). Activations lie behind CXL.
PUBLISHED = (LOCAL, LOCAL, LOCAL, REST, BEYOND, BEYOND)


def frame_of(folder, study):
    """Return all points of a study."""
    return run_plan(load_study(study).plan, Options(out=folder, workers=1)).frame()


def fine_tuning(batch):
    """Return LFM2-8B from 100 GiB of DRAM on four DIMMs and 256 GiB behind CXL, unplaced."""
    return {
        "kind": "study",
        "base": {
            "machine": "cxl-host",
            "workload": {
                "kind": "train", "model": "lfm2-8b-a1b", "batch": batch, "micro_batch": batch,
                "sequence": 4096, "recompute": "full", "chunked_loss": True, "gradient": "bf16",
                "clip": False,
            },
            "mapping": {
                "groups": {"gpus": "gpu"},
                "parallel": {"all": {"group": "gpus"}},
                "run": [
                    {"ops": "optimizer", "unit": "cpu.cores"},
                    {"ops": "all", "unit": "gpu.sm"},
                ],
                "fusion": "attention",
                "launch": "graph",
                "overlap": "copy",
            },
            "set": {
                "machine.cpu.dram.channels": 8,
                "machine.cpu.dram.capacity": "100 GiB",
                "machine.aic.dram.expander": {"capacity": "256 GiB"},
                "machine.aic.dram.capacity": "256 GiB",
            },
        },
        "objectives": {"tokens_per_s": "max", "optimizer_s": "min"},
        "strategy": {"kind": "grid"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "fastest", "loses"),
    [
        (16, PUBLISHED, 0.0),
        # Copies hide behind no computing: weights and gradients of the GPU want DRAM as well.
        (1, (LOCAL, LOCAL, BEYOND, REST, LOCAL, LOCAL), 0.16),
    ],
)
def test_what_the_optimizer_touches_is_local_first(tmp_path, batch, fastest, loses):
    """48 placements: the masks have the shortest optimizer, and of long steps the fastest.

    Momentum and variance are alike: momentum is given.
    """
    study = fine_tuning(batch)
    place = {name: {"in": BEYOND, "interleave": PAGE} for name in (*CLASSES, "activation")}
    study["base"]["mapping"]["place"] = place | {"momentum": {"in": LOCAL, "interleave": PAGE}}
    study["axes"] = {
        f"mapping.place.{name}.in": [LOCAL, REST, BEYOND]
        if name == "master_weight"
        else [LOCAL, BEYOND]
        for name in CLASSES[1:]
    }
    frame = frame_of(tmp_path, study)
    assert len(frame) == 48
    frame = frame[frame["status"] == "ok"]

    def masks(row):
        return tuple(str(row[f"mapping.place.{name}.in"]) for name in CLASSES[1:])

    def shares(one):
        return tuple(map(str, one[1:]))

    quickest, best = (
        frame.loc[i] for i in (frame["optimizer_s"].idxmin(), frame["tokens_per_s"].idxmax())
    )
    assert masks(quickest) == shares(PUBLISHED)
    assert masks(best) == shares(fastest)
    assert 1 - quickest["tokens_per_s"] / best["tokens_per_s"] == pytest.approx(loses, abs=0.005)


@pytest.mark.parametrize(
    ("batch", "over_naive", "below_optimal"), [(16, 1.22, 0.002), (1, 1.12, 0.211)]
)
def test_the_cxl_aware_policy_is_optimal_for_long_steps_only(
    tmp_path, batch, over_naive, below_optimal
):
    """The policy as an axis: published order against round robin and against least seconds."""
    study = fine_tuning(batch)
    study["base"]["mapping"]["allocate"] = {
        "policy": "cxl_aware", "local": "cpu.dram", "beyond": "aic.dram",
    }  # fmt: skip
    policies = ["local_only", "naive_interleave", "cxl_aware", "balanced", "optimal"]
    study["axes"] = {"mapping.allocate.policy": policies}
    frame = frame_of(tmp_path, study).set_index("mapping.allocate.policy")
    assert frame.loc["local_only", "status"] == "infeasible"  # 170 GB in 107
    rate = frame["tokens_per_s"]
    assert rate["cxl_aware"] / rate["naive_interleave"] == pytest.approx(over_naive, abs=0.01)
    assert 1 - rate["cxl_aware"] / rate["optimal"] == pytest.approx(below_optimal, abs=0.002)
    assert rate["balanced"] == pytest.approx(rate["optimal"], rel=1e-3)


def host_policies():
    """Return LIA's three policies and the GPU alone: which sublayers a host with AMX runs.

    A sublayer's operands are loaded before it computes (`prefetch: none`).
    """
    cached = {"tier": "gpu.hbm", "evict": "none", "prefetch": "none"}
    home, copied = {"in": {"host.dram": 1.0}}, {"in": {"host.dram": 1.0}, "cache": cached}
    common = {"fusion": "attention", "launch": "software"}
    gpu = {
        **common, "name": "000000", "groups": {"all": "gpu"},
        "pipeline": {"kind": "zigzag", "batches": 1},
        "place": {"weight": copied, "kv": copied, "activation": copied},
        "run": [{"ops": "all", "unit": "gpu.sm"}],
    }  # fmt: skip
    attention = {
        **gpu, "name": "011000", "place": {**gpu["place"], "kv": home},
        "run": [{"ops": "attention", "unit": "host.cpu"}, *gpu["run"]],
    }  # fmt: skip
    host = {
        **common, "name": "111111", "groups": {"all": "host"},
        "place": {"weight": home, "kv": home, "activation": home},
        "run": [{"ops": "all", "unit": "host.cpu"}],
    }  # fmt: skip
    return [host, attention, gpu]


def lia_host(link):
    """Return an A100 and a host of 20 TFLOP/s: what LIA measured of Sapphire Rapids with AMX.

    Eight channels of DDR5-4800; the link has the efficiency of `a100-sxm-host`, 24.8 GB/s of 32.
    """
    matrix, vector, joule = "20 TFLOP/s", "2 TFLOP/s", "50 pJ/FLOP"
    cpu = {
        "kind": "matrix", "at": "dram.bus", "vector": vector, "launch": {"software": "10 us"},
        "peak": {"fp16": matrix, "bf16": matrix, "fp32": vector},
        "energy": {"vector": joule, "fp16": "5 pJ/FLOP", "bf16": "5 pJ/FLOP", "fp32": joule},
        "area": "0 mm2/(TFLOP/s)",
    }  # fmt: skip
    bus = {"bandwidth": "307.2 GB/s", "efficiency": 0.8}
    host = {"memory": {"dram": {"ports": {"bus": bus}}}, "units": {"cpu": cpu}}
    return {
        "extends": "a100-sxm-host", "name": "lia-host", "parts": {"host": host},
        "links": {"pcie": {"bandwidth": link}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("work", "axis", "after", "link", "low", "high"),
    [
        ({"kind": "decode", "batch": 1, "context": 128}, "batch", "011000", "32 GB/s", 858, 900),
        ({"kind": "prefill", "batch": 1, "input": 1}, "input", "000000", "32 GB/s", 850, 910),
        # Behind PCIe 5 weights come twice as fast, and the policy changes at half of that.
        ({"kind": "decode", "batch": 1, "context": 128}, "batch", "011000", "64 GB/s", 400, 500),
    ],
)
def test_lia_leaves_the_host_at_the_batch_that_its_paper_says(
    tmp_path, work, axis, after, link, low, high
):
    """All on the host below 858 sequences or 850 tokens, above attention alone, or nothing."""
    sizes = [1, 64, 256, low, high, 1200]
    study = {
        "kind": "study",
        "base": {"machine": lia_host(link), "workload": {"model": "opt-175b", **work}},
        "axes": {"mapping": host_policies(), f"workload.{axis}": sizes},
        "objectives": {"seconds": "min"},
        "strategy": {"kind": "grid"},
    }
    frame = frame_of(tmp_path, study)
    assert (frame["status"] == "ok").all()
    seconds = frame.pivot(index=f"workload.{axis}", columns="mapping", values="seconds")
    taken = seconds.idxmin(axis=1)
    assert (taken[taken.index <= low] == "111111").all()
    assert (taken[taken.index >= high] == after).all()


def test_requests_grow_with_stacks_of_hbm_and_tokens_do_not_fall(tmp_path):
    """16 stacks, of HBM for the cache and of flash for weights (dse_results.yaml, h3_stack_mix).

    Published: requests by stack constant, tokens/s down by 13 % from 8 to 14 stacks of HBM. The
    study names neither model, context nor GPU; ours are Llama 3.1 405B, 1,024 tokens and an H100.
    Stacks are those of Son et al. (CAL 2026): 36 GB and 512 GB, 1.6 TB/s each, 1 us.
    """
    requests, rates = np.array([1457, 1824, 2191, 2557]), np.array([8881, 8839, 8579, 7721])
    hbm = np.array([8, 10, 12, 14])
    stacks = "machine.gpu.hbm.capacity / 36e9"
    flash = {
        "capacity": "4096 GB", "price": "1 USD/GB",
        "ports": {"phy": {
            "bandwidth": "12.8 TB/s", "latency": "1 us", "energy": "20 pJ/bit",
            "area": "0 mm2/(TB/s)",
        }},
    }  # fmt: skip
    memory = {
        "hbm": {
            "technology": None, "capacity": "288 GB", "ports": {"phy": {"bandwidth": "12.8 TB/s"}},
        },
        "hbf": flash,
    }  # fmt: skip
    gpu = {"units": {"sm": {"at": ["hbm.phy", "hbf.phy"]}}, "memory": memory}
    study = {
        "kind": "study",
        "base": {
            "machine": {"extends": "h100-sxm-80gb", "name": "hbm-hbf", "parts": {"gpu": gpu}},
            "workload": {
                "kind": "decode", "model": "llama-3.1-405b", "batch": "max", "context": 1024,
            },
            "mapping": {
                "groups": {"all": "gpu"},
                "place": {
                    "weight": {"in": {"gpu.hbf": 1.0}},
                    "kv": {"in": {"gpu.hbm": 1.0}},
                    "activation": {"in": {"gpu.hbm": 1.0}},
                },
                "run": [{"ops": "all", "unit": "gpu.sm"}],
                "fusion": "attention",
                "launch": "graph",
            },
        },
        "axes": {"machine.gpu.hbm.capacity": [f"{36 * n} GB" for n in hbm]},
        "derive": {
            "machine.gpu.hbm.phy.bandwidth": f"1.6e12 * {stacks}",
            "machine.gpu.hbf.phy.bandwidth": f"1.6e12 * (16 - {stacks})",
            "machine.gpu.hbf.capacity": f"512e9 * (16 - {stacks})",
        },
        "objectives": {"tokens_per_s": "max", "batch_max": "max"},
        "strategy": {"kind": "grid"},
    }  # fmt: skip
    frame = frame_of(tmp_path, study).sort_values("machine.gpu.hbm.capacity")
    held = frame["batch_max"].to_numpy()
    assert held / held[0] == pytest.approx(requests / requests[0], rel=0.005)
    ours = frame["tokens_per_s"].to_numpy()
    assert ours[-1] / ours[0] == pytest.approx(1.035, abs=0.01)
    assert rates[-1] / rates[0] == pytest.approx(0.87, abs=0.01)
    # The published steps are a + b / stacks of flash + c requests: time by request knows no stacks.
    terms = np.stack([np.ones(4), 1 / (16 - hbm), requests], axis=1)
    steps = 1e3 * requests / rates
    (a, b, c), *_ = np.linalg.lstsq(terms, steps, rcond=None)
    assert terms @ [a, b, c] == pytest.approx(steps, rel=0.005)
    assert (b, c) == (pytest.approx(165, abs=8), pytest.approx(0.096, abs=0.003))
    assert 0 < a < 5


def test_hilos_can_not_be_searched(tmp_path):
    """HILOS keeps a share alpha of the cache as inputs of attention, half as large, for the GPU.

    Neither is a share of keys and values of the host an axis beside engines that read the drives',
    nor inputs that keys are made of again.
    """
    study = {
        "kind": "study",
        "base": {
            "machine": "a6000-csd",
            "mapping": "instinfer",
            "workload": {"kind": "decode", "model": "opt-13b", "batch": 64, "context": 1536},
        },
        "axes": {"mapping.place.kv.in": [{"csd.flash": 1.0}, {"csd.flash": 0.5, "host.dram": 0.5}]},
        "objectives": {"tokens_per_s": "max"},
        "strategy": {"kind": "grid"},
    }
    frame = frame_of(tmp_path, study)
    assert frame["status"].tolist() == ["ok", "failed"]
    assert "place.kv has 50% of it there" in frame["reason"].iloc[1]
