"""Calibration on rows that the model made with other parameters, and files it refuses."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from opbyte.core.errors import ConfigError
from opbyte.hw_models.machine import load_machine
from opbyte.sim.batch import Batch, simulate_batch
from opbyte.sweeps.calibration import CLASSES, KINDS, calibrate, fit, read_rows
from opbyte.sweeps.cli import main
from opbyte.workloads.works import WORKS

A100 = "a100-sxm-80gb"
K, L = "gpu.sm.kernel.", "nvlink.collectives."
#: How the pretended device differs from the catalog's A100, class by class.
OTHER = {
    "products": {
        "gpu.sm.launch.graph": 3.5e-6,
        K + "fill": 1.2e-6,
        "gpu.hbm.phy.efficiency": 0.9,
        K + "latency": 0.8e-6,
    },
    "attention": {
        K + "attention.softmax": 10.0,
        K + "attention.small": 2.4e-6,
        K + "attention.write": 3e-6,
        K + "attention.turn": 0.9e-6,
    },
    "latent": {K + "latent.trip": 2e-6, K + "latent.start": 3e-6, K + "latent.single": 25e-6},
    "experts": {K + "grouped.matrix": 0.55, K + "grouped.gather": 0.7, K + "grouped.narrow": 0.8},
    "collectives": {
        "nvlink.latency": 1.3e-6,
        "nvlink.efficiency": 0.8,
        L + "call": 4e-6,
        L + "ll": 0.45,
        L + "simple_start": 25e-6,
    },
}
#: Of the fitted values, relative: what the pull to the machine's own values leaves.
WITHIN = {
    "products": 0.06, "attention": 0.08, "latent": 0.03, "experts": 0.08, "collectives": 0.05,
}  # fmt: skip


def sizes(rng: np.random.Generator, count: int, **powers: tuple[float, float]) -> pd.DataFrame:
    """Return whole sizes between powers of two."""
    return pd.DataFrame(
        {name: np.rint(2.0 ** rng.uniform(*ends, count)) for name, ends in powers.items()}
    )


def shapes(name: str, count: int) -> pd.DataFrame:
    """Return rows of a class."""
    rng = np.random.default_rng(3)
    if name == "products":
        return sizes(rng, count, m=(0, 13), n=(7, 14), k=(6, 14)).assign(kind="gemm", dtype="bf16")
    if name == "attention":
        kinds = rng.choice(["attention_prefill", "attention_decode"], count)
        frame = sizes(rng, count, batch=(0, 6), kv_tokens=(4, 12), kv_heads=(0, 3))
        new = np.where(kinds == "attention_prefill", frame["kv_tokens"], 1)
        return frame.assign(kind=kinds, q_tokens=new, heads=4 * frame["kv_heads"], head_dim=128)
    if name == "latent":
        return sizes(rng, count, batch=(8, 10), kv_tokens=(4, 12), heads=(0, 5)).assign(
            kind="mla_decode"
        )
    if name == "experts":
        return sizes(rng, count, tokens=(0, 14)).assign(
            kind="moe",
            hidden=rng.choice([2048, 4096], count),
            ffn=rng.choice([384, 4096], count),
            experts=32,
            top_k=4,
            routing="power_law_1.2",
        )
    kinds = rng.choice([k for k in KINDS if k.startswith(("all", "reduce"))], count)
    return sizes(rng, count, bytes=(10, 28)).assign(
        kind=kinds, participants=rng.choice([2, 4, 8], count)
    )


def measured(name: str = "products", count: int = 200) -> pd.DataFrame:
    frame = shapes(name, count)
    device = load_machine(A100).with_values(OTHER[name])
    return frame.assign(measured=simulate_batch(device, frame)["seconds"])


def csv(path: Path, *frames: pd.DataFrame) -> Path:
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.assign(microseconds=1e6 * frame["measured"]).drop(columns="measured")
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", OTHER)
def test_a_fit_finds_a_device_that_the_model_can_be(name: str) -> None:
    (one,) = calibrate(A100, measured(name, 400), "mine", rows=300).fits
    assert one.operators.name == name
    assert one.before["all"].mape > 5
    assert one.after["all"].mape < 0.5
    assert one.after["all"].rows == 100
    for path, value in OTHER[name].items():
        assert one.values[path] == pytest.approx(value, rel=WITHIN[name]), path
    kinds = sum(one.after[kind].rows for kind in one.operators.kinds if kind in one.after)
    bands = [b.rows for n, b in one.after.items() if n != "all" and n not in KINDS]
    assert kinds in (0, 100)
    assert sum(bands) == 100
    np.testing.assert_allclose(
        one.others["before"], simulate_batch(A100, one.others)["seconds"], rtol=1e-12
    )


def test_every_class_has_at_most_a_dozen_parameters_each_with_a_spread() -> None:
    machine = load_machine(A100)
    for operators in CLASSES:
        paths = operators.paths(machine)
        assert 3 <= len(paths) <= 12
        assert set(paths.values()) <= set(machine.values)
        assert all(0 < spread < 1 for spread in operators.spread.values())
        for kind in operators.kinds:
            assert operators.band in WORKS.lookup(kind).vector_fields


def test_collectives_are_the_librarys_also_where_small_all_reduces_are_not() -> None:
    frame = measured("collectives", 60)
    (own,), (node,) = (calibrate(m, frame, "mine", rows=40).fits for m in (A100, "dgx-a100"))
    assert load_machine("dgx-a100").mapping().all_reduce == "direct"
    assert node.values == pytest.approx(own.values)


def test_values_that_the_rows_do_not_determine_stay() -> None:
    frame = measured("products", 120).assign(m=1.0)
    device = load_machine(A100).with_values(OTHER["products"])
    frame["measured"] = simulate_batch(device, frame)["seconds"]
    (one,) = calibrate(A100, frame, "mine", rows=100).fits
    machine = load_machine(A100)
    assert one.values[K + "matrix"] == pytest.approx(machine.values[K + "matrix"], rel=1e-3)


def test_variants_of_a_batch_are_priced_as_each_alone() -> None:
    machine = load_machine(A100)
    frame = pd.concat([shapes(name, 8) for name in OTHER], ignore_index=True)
    path = "gpu.hbm.phy.efficiency"
    several = Batch.of(frame, 3).seconds(machine, {path: np.array([0.5, 0.7, 0.9])})
    assert several.shape == (3, len(frame))
    for seconds, value in zip(several, (0.5, 0.7, 0.9), strict=True):
        alone = simulate_batch(machine.with_values({path: value}), frame)["seconds"]
        np.testing.assert_allclose(seconds, alone, rtol=1e-12)


def test_the_command_writes_a_machine_that_says_what_it_was_fitted_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = csv(tmp_path / "rows.csv", measured(count=60)), tmp_path / "mine.yaml"
    arguments = ["calibrate", A100, "--data", str(data), "--out", str(out)]
    assert main([*arguments, "--rows", "30", "--seed", "7", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    machine, own = load_machine(out), load_machine(A100)
    assert machine.name == "mine"
    assert set(answer) == {"machine", "source", "values", "before", "after"}
    assert answer["after"]["all"]["rows"] == 30
    assert len(answer["values"]) == 11
    for path, value in answer["values"].items():
        assert machine.values[path] == pytest.approx(value, rel=1e-12)
        source = machine.parameters[path].source or ""
        assert source.startswith("calibrated: 30 rows (seed 7) of 60 in rows.csv, operands")
    for path in set(own.parameters) - set(answer["values"]):
        assert machine.parameters[path] == own.parameters[path]
    again = calibrate(A100, read_rows(data), "mine", rows=30, seed=7)
    assert again.values == answer["values"]


def test_files_of_several_classes_are_fitted_one_class_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = csv(tmp_path / "mixed.csv", measured("latent", 60), measured("collectives", 70))
    other = csv(tmp_path / "other.csv", measured("products", 50))
    out = tmp_path / "mine.yaml"
    arguments = ["calibrate", A100, "--data", str(mixed), "--data", str(other), "--rows", "40"]
    assert main([*arguments, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "products: errors on the 10 rows" in text
    assert "latent: errors on the 20 rows" in text
    assert "collectives: errors on the 30 rows" in text
    machine = load_machine(out)
    found = calibrate(A100, read_rows(mixed, other), "mine", rows=40)
    assert [one.operators.name for one in found.fits] == ["products", "latent", "collectives"]
    assert len(found.values) == 11 + 3 + 11
    source = machine.parameters["nvlink.latency"].source
    assert source == "calibrated: 40 rows (seed 0) of 70 in mixed.csv"
    for path, value in found.values.items():
        assert machine.values[path] == pytest.approx(value, rel=1e-12)
    # The latent rows are fitted on the products' fitted values.
    products, latent, _ = found.fits
    assert products.operators is CLASSES[0]
    frame = read_rows(mixed)
    frame = frame[frame["kind"] == "mla_decode"]
    alone = fit(load_machine(A100).with_values(products.values), latent.operators, frame, rows=40)
    assert alone.values == pytest.approx(latent.values)
    assert main([*arguments, "--out", str(out), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert {"products all", "latent all", "collectives all_reduce"} <= set(answer["after"])


HEAD = "m,n,k,dtype,microseconds\n"
DECODE = "kind,batch,kv_tokens,heads,kv_heads,microseconds\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("m,n,k,dtype\n1,2,3,bf16\n", ["lacks the column microseconds", "m, n, k, dtype"]),
        (HEAD + "1,2,3,bf16,5\n1,2,3,bf16,\n", [":3", "microseconds"]),
        (HEAD + "1,0,3,bf16,5\n", [":2", "n: must be a whole number", "0"]),
        (HEAD + "1,2,3,bf16,-5\n", [":2", "positive", "-5"]),
        (HEAD + "1,2,3.5,bf16,5\n", [":2", "k: must be a whole number"]),
        (HEAD + "1,2,x,bf16,5\n", [":2", "k: must be a whole number", "x"]),
        (HEAD + "1,2,3,bf16,5\n\n1,2,3,bf61,5\n", [":4", "bf61", "bf16"]),
        ("", ["can not be read"]),
        (HEAD, ["has no rows"]),
        ("m,n,microseconds\n1,2,3\n", ["lacks the column k, which gemm rows need", "m, n"]),
        ("m,n,k,weigth_dtype,microseconds\n1,2,3,int4,5\n", [":1", "weigth_dtype", "gemm",
         "Did you mean 'weight_dtype'"]),
        (DECODE + "attention_decode,1,64,8,8,5\nattention_decode,1,64,8,,5\n",
         [":3", "kv_heads", "a attention_decode row needs it"]),
        (DECODE + "attention_decode,1,64,8,8,5\nattention_decode,1,64,8,3,5\n",
         [":3", "heads must be a multiple of kv_heads"]),
        (DECODE + "mla_decode,1,64,8,,5\nattention_decode,1,64,8,8,5\nmla_decode,1,64,8,4,5\n",
         [":4", "kv_heads", "a mla_decode row has no such field", "4"]),
        (DECODE + "attention_decod,1,64,8,8,5\n", [":2", "attention_decod", "attention_decode"]),
        (DECODE + "softmax,1,64,8,8,5\n", [":2", "softmax", "kind that can be fitted"]),
        (DECODE + ",1,64,8,8,5\n", [":2", "kind"]),
    ],
)  # fmt: skip
def test_rows_that_are_no_measurements_are_named(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    assert len(caught.value.problems) == 1
    for word in words:
        assert word in str(caught.value)


def test_rows_of_a_csv_take_the_defaults_of_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        "kind, tokens, hidden, ffn, experts, top_k, m, n, k, microseconds\n"
        "moe, 4, 1024, 512, 8, 2,,,, 30\n\ngemm,,,,,, 1, 2, 3, 5\n"
    )
    frame = read_rows(path)
    assert list(frame["kind"]) == ["moe", "gemm"]
    assert list(frame["measured"]) == pytest.approx([30e-6, 5e-6])
    assert set(frame["file"]) == {"rows.csv"}
    assert np.isfinite(simulate_batch(A100, frame)["seconds"]).all()


COLLECTOR = {
    "gemm": {"m": 4, "n": 8, "k": 16, "gemm_dtype": "float16"},
    "attention_decode": {
        "op_name": "generation_attention", "batch_size": 2, "isl": 1, "step": 99, "num_heads": 8,
        "num_key_value_heads": 2, "head_dim": 128, "attn_dtype": "bfloat16",
    },
    "mla_decode": {
        "op_name": "generation_mla", "batch_size": 2, "isl": 1, "step": 99, "num_heads": 8,
    },
    "moe": {
        "num_tokens": 4, "hidden_size": 1024, "inter_size": 512, "topk": 2, "num_experts": 8,
        "moe_tp_size": 1, "moe_ep_size": 1, "distribution": "balanced",
    },
    "all_to_all": {
        "op_name": "alltoall", "nccl_dtype": "half", "num_gpus": 4, "message_size": 1024,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", COLLECTOR)
def test_files_of_the_collector_are_known_by_their_columns(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.parquet"
    pd.DataFrame([COLLECTOR[kind] | {"latency": 0.5, "device": "A100"}] * 2).to_parquet(path)
    frame = read_rows(path)
    assert list(frame["kind"]) == [kind] * 2
    assert list(frame["measured"]) == [5e-4] * 2
    if kind == "gemm":
        assert list(frame["dtype"]) == ["fp16"] * 2
    if kind == "attention_decode":
        assert list(frame["kv_tokens"]) == [100, 100]
    if kind == "all_to_all":
        assert list(frame["bytes"]) == [2048, 2048]
    assert np.isfinite(simulate_batch(A100, frame)["seconds"]).all()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"m": 1, "n": 2, "latency": 1.0}, ["m, n, latency", "products (m, n, k, latency)"]),
        (COLLECTOR["mla_decode"] | {"op_name": "context_mla"}, ["context_mla", "generation_mla"]),
        (COLLECTOR["gemm"] | {"gemm_dtype": "fp8_block"}, ["fp8_block"]),
        (COLLECTOR["gemm"] | {"latency": 0.0}, ["row 0", "latency", "positive"]),
        (COLLECTOR["gemm"] | {"latency": "fast"}, ["row 0", "latency", "positive"]),
        (COLLECTOR["all_to_all"] | {"message_size": "1 KiB"}, ["texts for sizes"]),
        (COLLECTOR["moe"] | {"topk": 0}, ["row 0", "top_k", "whole number"]),
        (COLLECTOR["moe"] | {"topk": 9}, ["row 0", "8 experts are fewer"]),
    ],
)
def test_files_of_the_collector_that_make_no_sense(
    tmp_path: Path, row: dict[str, object], words: list[str]
) -> None:
    path = tmp_path / "x.parquet"
    pd.DataFrame([{"latency": 1.0} | row if "n" not in row or "k" in row else row]).to_parquet(path)
    with pytest.raises(ConfigError) as caught:
        read_rows(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_a_fit_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    frame = measured(count=60)
    with pytest.raises(ConfigError, match=r"leave rows of 60 to judge \(products\)"):
        calibrate(A100, frame, "mine", rows=60)
    with pytest.raises(ConfigError, match="must be 20 at least"):
        calibrate(A100, frame, "mine", rows=19)
    with pytest.raises(ConfigError, match="no unit of machine 't4' has a `kernel` block"):
        calibrate("t4", frame, "mine", rows=30)
    with pytest.raises(ConfigError, match="can not be read"):
        read_rows(tmp_path / "absent.parquet")


@pytest.mark.parametrize(
    ("name", "block", "words"),
    [
        ("attention", "parts.gpu.units.sm.kernel.attention", "'gpu.sm' of machine"),
        ("latent", "parts.gpu.units.sm.kernel.latent", "`kernel.latent` block, which latent need"),
        ("experts", "parts.gpu.units.sm.kernel.grouped", "such as that of a100-sxm-80gb"),
        ("collectives", "links.nvlink.collectives", "link 'nvlink' of machine"),
        ("collectives", "links.nvlink", "no link between devices of machine"),
    ],
)
def test_a_machine_without_the_block_is_refused(name: str, block: str, words: str) -> None:
    machine = load_machine(A100)
    data = json.loads(json.dumps(machine.document.data))
    *steps, last = block.split(".")
    node = data
    for step in steps:
        node = node[step]
    del node[last]
    with pytest.raises(ConfigError, match=words):
        calibrate(load_machine(data), shapes(name, 60).assign(measured=1e-5), "mine", rows=30)
