"""Figures: what a device holds over a training step."""

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.sweeps import plots
from tests.unit.plots.figures import assert_readable, legend_texts


def trained(**more):
    mapping = {
        "groups": {"gpus": "gpu"},
        "parallel": {"all": {"group": "gpus", **more.pop("split", {})}},
        "run": [{"ops": "all", "unit": "gpu.sm"}],
        "fusion": "attention",
        "launch": "graph",
        **more,
    }
    work = ob.TrainStep("llama-3.2-1b", batch=8, sequence=2048, micro_batch=1)
    return ob.simulate("dgx-a100", work, mapping)


def tops(ax):
    return {p.get_label(): np.array(p.get_data().values) for p in ax.patches}


@pytest.mark.parametrize("split", [{"tp": 2, "pp": 4}, {"dp": 4, "zero": 3}])
def test_classes_are_stacked_to_what_the_step_holds(split):
    result = trained(split=split, allocator="caching")
    ax = plots.held(result)
    assert_readable(ax)
    assert legend_texts(ax)[0] == "fragmentation"
    assert legend_texts(ax)[-1] == "weights"
    total = np.max(list(tops(ax).values()), axis=0)
    assert total == pytest.approx(result.memory["total"].to_numpy() / 1e9)
    assert total.max() == pytest.approx(result.peak_bytes / 1e9, rel=0.01)


def test_each_memory_has_its_own_classes():
    result = trained(place={"optimizer": {"in": {"host.dram": 1.0}}})
    near, far = plots.held(result), plots.held(result, "host.dram")
    assert_readable(far)
    assert set(tops(near)) == {"weights", "gradients", "largest layer and row", "activations kept"}
    assert set(tops(far)) == {"momenta", "variances", "master weights"}
    states = result.memory[["momentum", "variance", "master_weight"]].sum(axis=1)
    assert tops(far)["master weights"] == pytest.approx(states.to_numpy() / 1e9)


def test_what_holds_nothing_is_one_error():
    with pytest.raises(ConfigError, match=r"Known: gpu\.hbm"):
        plots.held(trained(), "host.dram")
    decode = ob.simulate("dgx-a100", ob.Decode("llama-3.2-1b", batch=1, context=64))
    with pytest.raises(ConfigError, match=r"only training steps.*got decode"):
        plots.held(decode)
