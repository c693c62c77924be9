"""Searches of published spaces: do they find the designs that the papers built? docs/search.md."""

import pytest

from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import simulate
from opbyte.sweeps.pareto import front
from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.study import load_study


def found(folder, study, settings=None):
    """Return the front of a search as a frame."""
    results = run_plan(load_study(study, settings).plan, Options(out=folder, workers=1))
    return front(results.frame(), results.objectives), len(results.frame())


@pytest.mark.parametrize(
    ("activation", "mu"), [("int8", 2), ("int16", 2), ("bf16", 3), ("fp16", 3), ("fp32", 3)]
)
def test_the_reuse_of_a_table_follows_the_type_of_its_activations(tmp_path, activation, mu):
    """Least area times time; it lies on the front of both. ternary_lut_generator.yaml."""
    settings = {
        "axes.machine.tile.core.lut.activation": {"values": [activation]},
        "axes.machine.tile.node_nm": {"values": [16]},
        "objectives": {"seconds": "min", "area_m2": "min"},
        "strategy": {"kind": "optuna", "trials": 150, "population": 20, "seed": 0},
    }
    best, played = found(tmp_path, "ternary_lut", settings)
    assert played == 150  # of 588
    product = best["seconds"] * best["area_m2"]
    assert best.loc[product.idxmin(), "machine.tile.core.lut.mu"] == mu


@pytest.mark.parametrize(("batch", "low", "high"), [(32, 4, 8), (64, 8, 12), (128, 16, 33)])
def test_logic_pim_wants_eight_operations_per_byte_between_batches_of_32_and_64(
    tmp_path, batch, low, high
):
    """Least energy times delay times area, at the TSVs that the paper built: it chose 8."""
    settings = {
        "axes.mapping": {"values": ["pe-et"]},
        "axes.machine.device.hbm.tsv.bandwidth": {"values": ["13.408 TB/s"]},
        "axes.machine.device.hbm.interposer.bandwidth": {"values": ["3.352 TB/s"]},
        "axes.workload.batch": {"values": [batch]},
    }
    best, _ = found(tmp_path, "search_duplex", settings)
    product = best["joules_per_token"] / best["tokens_per_s"] * best["area_m2"]
    peak = best.loc[product.idxmin(), "machine.device.lpim.peak.bf16"]
    assert low < peak / 13.408e12 < high


def test_attacc_computes_at_the_banks(tmp_path):
    """The paper compares banks, bank groups and the buffer die, and takes the banks."""
    study = {
        "kind": "study",
        "base": {
            "machine": "dgx-attacc-bank",
            "workload": {"kind": "decode", "model": "gpt-3-175b", "batch": 64, "context": 2048},
        },
        "axes": {"machine": ["dgx-attacc-buffer", "dgx-attacc-bank-group", "dgx-attacc-bank"]},
        "objectives": {"tokens_per_s": "max", "joules_per_token": "min"},
        "strategy": {"kind": "optuna", "trials": 3, "population": 4},
    }
    best, _ = found(tmp_path, study)
    assert best["machine"].tolist() == ["dgx-attacc-bank"]


def test_cent_takes_stages_for_throughput_and_tensors_for_latency(tmp_path):
    """CENT, section 5: pipeline parallel serves most tokens, tensor parallel answers soonest."""
    study = {
        "kind": "study",
        "base": {
            "machine": "cent-8",
            "workload": {"kind": "decode", "model": "llama-2-7b", "batch": 1, "context": 2304},
        },
        "axes": {"mapping.parallel.all.tp": [1, 2, 4, 8]},
        "derive": {
            "mapping.parallel.all.pp": "8 / mapping.parallel.all.tp",
            "workload.batch": "8 / mapping.parallel.all.tp",
        },
        "objectives": {"tokens_per_s": "max", "tpot": "min"},
        "strategy": {"kind": "optuna", "trials": 4, "population": 4},
    }
    best, _ = found(tmp_path, study)
    assert best.loc[best["tokens_per_s"].idxmax(), "mapping.parallel.all.tp"] == 1
    assert best.loc[best["tpot"].idxmin(), "mapping.parallel.all.tp"] == 8


@pytest.mark.parametrize(
    ("work", "fewer", "keeps"),
    [
        ({"kind": "decode", "batch": 8, "context": 512}, True, 0.98),
        ({"kind": "prefill", "batch": 16, "input": 2048}, False, 0.6),
    ],
)
def test_llmcompass_halves_cores_for_decoding_and_not_for_prompts(tmp_path, work, fewer, keeps):
    """Least area times time over cores and L2 of GPT-3 on four GA100; dse_results.yaml.

    Its latency design has half the cores and half the L2. The model is our A100 with 128 SMs, and
    room for all of GPT-3, of which the paper plays one layer.
    """
    peaks = {"fp64": 19.5, "fp32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312, "int8": 624,
             "int4": 1248}  # fmt: skip
    scaled = "e12 * machine.gpu.sm.instances / 108"
    study = {
        "kind": "study",
        "base": {
            "machine": {
                "extends": "a100-sxm-80gb",
                "name": "ga100-x4",
                "parts": {"gpu": {"count": 4, "memory": {"hbm": {"capacity": "160 GiB"}}}},
            },
            "workload": {"model": "gpt-3-175b", **work},
            "mapping": {
                "groups": {"all": "gpu"},
                "parallel": {"all": {"group": "all", "tp": 4}},
                "place": {"weight": {"in": {"gpu.hbm": 1.0}}, "kv": {"in": {"gpu.hbm": 1.0}}},
                "run": [{"ops": "all", "unit": "gpu.sm"}],
                "fusion": "attention",
                "launch": "graph",
            },
        },
        "axes": {
            "machine.gpu.sm.instances": [32, 48, 64, 80, 96, 112, 128],
            "machine.gpu.l2.capacity": ["24 MiB", "48 MiB"],
        },
        "derive": {f"machine.gpu.sm.peak.{name}": f"{peak}{scaled}" for name, peak in peaks.items()}
        | {"machine.gpu.sm.vector": f"19.5{scaled}"},
        "objectives": {"seconds": "min", "area_m2": "min"},
    }
    frame = run_plan(load_study(study).plan, Options(out=tmp_path, workers=1)).frame()
    best = frame.loc[(frame["seconds"] * frame["area_m2"]).idxmin()]
    assert (best["machine.gpu.sm.instances"] <= 64) == fewer
    assert best["machine.gpu.l2.capacity"] == 24 * 2**20
    at = frame.set_index(["machine.gpu.sm.instances", "machine.gpu.l2.capacity"])
    half, whole = at.loc[(64, 24 * 2**20)], at.loc[(128, 48 * 2**20)]
    assert keeps < whole["seconds"] / half["seconds"] < keeps + 0.1
    assert 0.6 < half["area_m2"] / whole["area_m2"] < 0.75  # published: 477.9 of 826.8 mm2


@pytest.mark.parametrize(("price", "taken"), [("2.4 USD/GB", "HBM"), ("0.30 USD/GB", "DDR")])
def test_llmcompass_takes_ddr_for_throughput_per_dollar_only_at_an_eighth_of_its_price(
    price, taken
):
    """GPT-3 in eight stages, as many sequences as fit; 512 GB at 1 TB/s against 80 GB of HBM.

    The throughput design's 3.41 needs DRAM at 0.30 USD/GB, its artifact has 2.4 (dse_results.yaml).
    """
    mapping = {
        "groups": {"all": "gpu"},
        "parallel": {"all": {"group": "all", "pp": 8}},
        "place": {"weight": {"in": {"gpu.hbm": 1.0}}, "kv": {"in": {"gpu.hbm": 1.0}}},
        "run": [{"ops": "all", "unit": "gpu.sm"}],
        "fusion": "attention",
        "launch": "graph",
    }
    hbm = load_machine("a100-sxm-80gb").replace({"gpu.count": 8, "gpu.package": None})
    ddr = hbm.replace(
        {
            "gpu.hbm.technology": None,
            "gpu.hbm.phy.bandwidth": "1 TB/s",
            "gpu.hbm.capacity": "512 GB",
            "gpu.hbm.price": price,
        }
    )
    work = {"kind": "decode", "model": "gpt-3-175b", "batch": "max", "context": 2047}
    cost = {
        name: simulate(machine, work, mapping).metrics["usd_per_mtoken"]
        for name, machine in {"HBM": hbm, "DDR": ddr}.items()
    }
    assert min(cost, key=cost.get) == taken
