"""Five designs of attention and linear layers against the rows of the FuseMax artifact."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from opbyte.core.errors import ConfigError
from opbyte.core.mapping_file import Einsums
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.spatial.arrays import ARRAY, LANES, Shape
from opbyte.hw_models.compute.spatial.unit import arrays_of, plan
from opbyte.hw_models.machine import load_machine
from opbyte.sweeps.validation.attention_rows import COLUMNS, DESIGNS, MODELS, compared, tokens


@pytest.fixture(scope="module")
def found(reference):
    folder = reference / "reference" / "attention"
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is not a folder")
    return {c.design: c for c in compared(folder) if not isinstance(c, str)}


@pytest.mark.parametrize("design", DESIGNS)
def test_every_row_of_a_design_is_within_the_bars(found, design):
    one = found[design]
    assert len(one.rows) >= 12
    for column, bar in COLUMNS.items():
        assert np.abs(one.errors[column]).max() < bar, column


@pytest.mark.parametrize("design", ["flat", "cascade", "binding"])
def test_time_and_traffic_are_exact_where_the_counting_is_the_same(found, design):
    for column in ("latency", "traffic", "util_2d", "util_1d"):
        assert np.abs(found[design].errors[column]).max() < 1e-6, column


def test_linear_layers_take_the_same_time_and_move_no_more(found):
    for design in ("linear, flat", "linear, proposal"):
        one = found[design]
        assert np.abs(one.errors["latency"]).max() < 1e-6
        assert np.abs(one.errors["energy"]).max() < 15.0
        # That mapper keeps inputs and streams all weights again; half the weights move less.
        assert one.errors["traffic"].max() < 1e-6
        small = one.errors["traffic"][[model == "BERT" for model, _ in one.rows]]
        assert np.abs(small).max() < 1e-6


def test_the_arrays_of_every_size_are_busy_as_long(reference):
    """The artifact's sweep of array sizes: 256K tokens, as many lanes as columns."""
    path = reference / "reference" / "attention" / "fusemax_pareto.csv"
    if not path.is_file():
        pytest.skip(f"no reference data: {path} is not there")
    fusemax = arrays_of(UnitView(load_machine("fusemax-cloud"), "chip.pe"))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= 12
    for row in rows:
        heads, width, _, _ = MODELS[row["model"]]
        pes = int(row["PE_dim"])
        arrays = replace(fusemax, rows=pes, columns=pes, lane_rate=pes * fusemax.clock)
        shape = Shape(64.0 * heads, 2.0**18, 2.0**18, width, width)
        one = plan(Einsums(cascade="one-pass"), arrays, shape, "buffer")
        assert one.taken(ARRAY) == pytest.approx(float(row["comp_2d_lat"]), rel=1e-9)
        assert one.taken(LANES) == pytest.approx(float(row["comp_1d_lat"]), rel=1e-9)
        assert one.seconds == pytest.approx(float(row["latency"]), rel=1e-9)


def test_damaged_files_and_lengths_are_told(tmp_path):
    path = tmp_path / "fusemax_attn-flat.csv"
    path.write_text("model,seq_len,traffic\nBERT,1K,1\n")
    with pytest.raises(ConfigError, match="can not be read"):
        list(compared(tmp_path))
    with pytest.raises(ValueError, match="a length such as 16K"):
        tokens("long")
    assert (tokens("1K"), tokens("1M")) == (1024, 2**20)
