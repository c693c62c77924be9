"""Searches of published spaces: do they find the designs that the papers built? docs/search.md."""

import pytest

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
