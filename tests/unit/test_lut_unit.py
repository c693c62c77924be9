"""Units of kind `lut_core`: cycles, area and energy of the structure, in any machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.hw_models.compute.lut import Core, product_cycles, structure
from opbyte.hw_models.cost import area_table, machine_area_m2
from opbyte.hw_models.cost.primitives import primitives
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.spi import check_unit
from opbyte.sweeps.store import Results
from opbyte.sweeps.study import load_study

TILE = load_machine("lut-tile")
CHIP = load_machine("lut-generator")
WORK = {"kind": "gemm", "m": 3, "n": 1000, "k": 500, "dtype": "int8", "weight_dtype": "t1.6"}


def tile(**lut: Any) -> Machine:
    return TILE.replace({f"tile.core.lut.{name}": value for name, value in lut.items()})


def own(**fields: Any) -> Any:
    given = {"activation": "fp16", "mu": 2, "tables": 16, "readers": 32, **fields}
    return structure(Core(**given), primitives(node_nm=16.0))


@pytest.mark.parametrize(
    "fields",
    [{}, {"mu": 4, "tables": 8, "buffers": 2}, {"accumulators": 512}, {"activation": "int16"}],
)
def test_a_product_takes_the_cycles_area_and_energy_of_the_structure(
    fields: dict[str, Any],
) -> None:
    machine, made = tile(**fields), own(**fields)
    cycles = product_cycles(made, 3.0, 1000.0, 500.0)
    result = ob.simulate(machine, WORK)
    assert result.seconds == pytest.approx(float(cycles.total) / 500e6, rel=1e-12)
    assert machine_area_m2(machine) == pytest.approx(float(made.area_m2), rel=1e-12)
    builds, reads = cycles.everywhere
    moved = 8 * 0.03e-12 * (1000 * 500 * 0.2 + 3 * 500 + 2 * 3 * 1000)
    spent = builds * made.build_energy + reads * made.read_energy
    assert result.joules == pytest.approx(float(spent) + moved, rel=1e-9)


def test_bound_is_the_peak() -> None:
    bound = ob.simulate(TILE, WORK, fidelity="bound").seconds
    assert bound == pytest.approx(3 * 1000 * 500 / (1024 * 500e6), rel=1e-12)
    assert (
        bound < ob.simulate(TILE, WORK).seconds == ob.simulate(TILE, WORK, fidelity="event").seconds
    )


def test_arrays_of_designs_equal_single_machines() -> None:
    mu = np.array([1.0, 2.0, 3.0, 7.0])
    many = TILE.with_values({"tile.core.lut.mu": mu})
    areas = machine_area_m2(many)
    for i, one in enumerate(mu):
        assert areas[i] == pytest.approx(machine_area_m2(tile(mu=int(one))), rel=1e-12)  # type: ignore[index]


def test_cores_of_a_unit_share_a_product() -> None:
    four = TILE.replace({"tile.core.instances": 4})
    assert machine_area_m2(four) == pytest.approx(4 * machine_area_m2(TILE), rel=1e-12)
    assert ob.simulate(four, WORK).seconds < 0.3 * ob.simulate(TILE, WORK).seconds


@pytest.mark.parametrize("model", ["0.7b", "1.3b", "3b", "2b-4t"])
def test_bitnet_decodes_on_tables_and_is_bound_by_its_memory(model: str) -> None:
    step = ob.Decode(f"bitnet-b1.58-{model}", batch=1, context=512)
    result = ob.simulate(CHIP, step)
    units = result.breakdown.set_index("operator")["unit"]
    assert units["qkv"] == units["gate_up"] == units["down"] == "chip.core"
    assert units["lm_head"] == units["norm"] == "chip.engine"
    weights = ob.load_model(f"bitnet-b1.58-{model}").weight_bytes
    assert weights / 51.2e9 < result.tpot < 1.5 * weights / (0.85 * 51.2e9)
    ternary = result.breakdown[result.breakdown["unit"] == "chip.core"]
    assert (ternary["bound_by"] == "chip.lpddr.phy").all()
    assert result.joules > 0


def test_weights_in_fewer_bits_decode_faster() -> None:
    steps = [
        {"kind": "decode", "model": "bitnet-b1.58-3b", "batch": 1, "context": 64,
         "precision": {"attention": dtype, "ffn": dtype}}
        for dtype in ("t2", "t1.67", "t1.6", "t1.25")
    ]  # fmt: skip
    times = [ob.simulate(CHIP, step).tpot for step in steps]
    assert (np.diff(times) < 0).all()


def test_prefill_is_bound_by_the_core() -> None:
    result = ob.simulate(CHIP, ob.Prefill("bitnet-b1.58-0.7b", batch=1, input=512))
    ternary = result.breakdown.set_index("operator").loc["gate_up"]
    assert ternary["bound_by"] == "compute"
    peak = CHIP.replace({"chip.core.clock": "1 GHz"})
    assert (
        ob.simulate(peak, ob.Prefill("bitnet-b1.58-0.7b", batch=1, input=512)).seconds
        < result.seconds
    )


def test_what_a_core_does_not_cover_is_refused_by_name() -> None:
    with pytest.raises(UncoveredError, match="multiplies ternary weights, and 'gemm' has none"):
        ob.simulate(TILE, {**WORK, "weight_dtype": "int8"})
    with pytest.raises(
        UncoveredError, match="takes activations of int8, and 'gemm' computes in fp16"
    ):
        ob.simulate(tile(activation="int8"), {**WORK, "dtype": "fp16"})
    with pytest.raises(UncoveredError, match=r"16 nm allows up to 2\.\d+ GHz"):
        ob.simulate(TILE.replace({"tile.core.clock": "4 GHz"}), WORK)
    with pytest.raises(UncoveredError, match="has no `node_nm`"):
        ob.simulate(TILE.replace({"tile.node_nm": None}), WORK)
    with pytest.raises(UncoveredError, match="has no `clock`"):
        ob.simulate(TILE.replace({"tile.core.clock": None}), WORK)
    # An array of multipliers takes any weights.
    plain = tile(kind="multiplier", mu=1, tables=32)
    assert ob.simulate(plain, {**WORK, "weight_dtype": "int8"}).seconds > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mu": 0}, "mu must be a whole number from 1 to 12, got 0"),
        ({"mu": 13}, "mu must be a whole number from 1 to 12, got 13"),
        ({"mu": 1.5}, "a count must be a whole number"),
        ({"readers": 0}, "at least 1, got 0"),
        ({"tables": 0}, "at least 1, got 0"),
        ({"buffers": 3}, "buffers must be a whole number from 1 to 2"),
        ({"activation": "fp9"}, "'int8', 'int16', 'fp16', 'bf16' or 'fp32', got 'fp9'"),
        ({"gates": "gates-44nm"}, "no table of gates is called 'gates-44nm'. Did you mean"),
        ({"kind": "multiplier"}, "mu must be a whole number from 1 to 1, got 2"),
    ],
)
def test_a_wrong_block_names_the_range(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ob.simulate(tile(**change), WORK)


def test_sherry_runs_its_own_weights_alone() -> None:
    machine = tile(weights="sherry", mu=4, tables=8)
    assert machine_area_m2(machine) < machine_area_m2(tile(mu=4, tables=8))
    assert ob.simulate(machine, {**WORK, "weight_dtype": "t1.25"}).seconds > 0
    with pytest.raises(UncoveredError, match=r"multiplies weights in t1\.25, and 'gemm' has none"):
        ob.simulate(machine, WORK)


def test_gates_are_parameters_of_the_machine() -> None:
    path = "tile.core.lut.gates.fp_add.fp16.area"
    assert TILE.parameters[path].source.startswith("Horowitz")  # type: ignore[union-attr]
    half = TILE.replace({path: "680 um2"})
    assert machine_area_m2(half) < 0.6 * machine_area_m2(TILE)
    with pytest.raises(ConfigError, match="fp_add"):
        TILE.replace({"tile.core.lut.gates.fp_ad.fp16.area": "680 um2"})


def test_a_block_without_gates_has_the_default_and_its_own_kind() -> None:
    data = dict(TILE.document.data)
    part = dict(data["parts"]["tile"])
    core = dict(part["units"]["core"])
    lut = {k: v for k, v in core["lut"].items() if k != "gates"}
    bare = {**data, "parts": {"tile": {**part, "units": {"core": {**core, "lut": lut}}}}}
    assert machine_area_m2(load_machine(bare)) == machine_area_m2(TILE)
    wrong = {**bare, "parts": {"tile": {**part, "units": {"core": {**core, "kind": "matrix"}}}}}
    with pytest.raises(ConfigError, match="`lut` needs a unit of kind lut_core"):
        load_machine(wrong)


def test_the_unit_keeps_its_promises() -> None:
    check_unit(CHIP, "chip.engine")
    items = {i.what: i.each for i in area_table(CHIP)}
    assert 0 < items["core"] < items["engine"]


def winners(results: Results) -> dict[str, tuple[float, float, float, float]]:
    """Return mu, L * mu over K and the gain over mu = 1 of the least area times time, by type."""
    frame = results.frame().rename(columns=lambda c: c.rpartition(".")[2])
    assert (frame["status"] == "ok").all()
    frame["product"] = frame["area_m2"] * frame["seconds"]
    found = {}
    for name, rows in frame.groupby("activation"):
        best = rows.loc[rows["product"].idxmin()]
        alone = rows[rows["mu"] == 1]["product"].min()
        found[name] = (
            best["mu"],
            best["tables"] * best["mu"],
            best["readers"],
            alone / best["product"],
        )
    return found


def test_the_study_says_which_mu_wins_by_type(tmp_path: Any) -> None:
    study = load_study("ternary_lut", settings={"axes.machine.tile.node_nm": {"values": [16]}})
    found = winners(study.run(out=tmp_path))
    assert {name: row[0] for name, row in found.items()} == {
        "int8": 2, "int16": 2, "bf16": 3, "fp16": 3, "fp32": 3,
    }  # fmt: skip
    gains = {name: row[3] for name, row in found.items()}
    assert gains["fp32"] > gains["fp16"] > gains["bf16"] > 1.8
    assert 1.0 < gains["int8"] < 1.1
    # FP16 prefers readers, INT8 tables (edge_and_ternary.yaml, lut_generator_orientation).
    assert found["fp16"][1] < found["fp16"][2]
    assert found["int8"][1] > found["int8"][2]
