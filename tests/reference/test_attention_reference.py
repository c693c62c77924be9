"""Five designs of attention and linear layers against the rows of the FuseMax artifact."""

import numpy as np
import pytest

from opbyte.core.errors import ConfigError
from opbyte.sweeps.validation.attention_rows import COLUMNS, DESIGNS, compared, tokens


@pytest.fixture(scope="module")
def found(reference):
    folder = reference / "attention"
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
        small = [
            e
            for e, (model, _) in zip(one.errors["traffic"], one.rows, strict=True)
            if model == "BERT"
        ]
        assert np.abs(small).max() < 1e-6


def test_damaged_files_and_lengths_are_told(tmp_path):
    path = tmp_path / "fusemax_attn-flat.csv"
    path.write_text("model,seq_len,traffic\nBERT,1K,1\n")
    with pytest.raises(ConfigError, match="can not be read"):
        list(compared(tmp_path))
    with pytest.raises(ValueError, match="a length such as 16K"):
        tokens("long")
    assert (tokens("1K"), tokens("1M")) == (1024, 2**20)
