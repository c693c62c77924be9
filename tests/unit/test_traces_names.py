"""Which adapter or model a request asks for: read, written, drawn."""

import numpy as np
import pandas as pd
import pytest

from opbyte.core.errors import ConfigError
from opbyte.workloads.popularity import popularity
from opbyte.workloads.traces import RequestTrace, load_trace, read_trace, write_trace

DRAWN = {
    "requests": 4000,
    "arrivals": {"kind": "poisson", "rate": "4 requests/s"},
    "lengths": {"input": 100, "output": 10},
}


def test_adapters_and_models_go_through_a_file_and_back(tmp_path):
    trace = RequestTrace(
        np.arange(3.0), np.full(3, 5), np.full(3, 6), adapter=np.array([2, -1, 0]),
        model=np.array([1, 0, 1]),
    )  # fmt: skip
    read = read_trace(write_trace(trace, tmp_path / "t.jsonl"))
    assert read.adapter.tolist() == [2, -1, 0]
    assert read.model.tolist() == [1, 0, 1]
    assert RequestTrace.from_frame(read.frame()).adapter.tolist() == [2, -1, 0]
    assert read[1:].take([1]).model.tolist() == [1]
    assert read.describe()["adapters"] == 2
    assert read.describe()["models"] == 2


def test_a_csv_file_names_or_numbers_them(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "arrival_s,input_tokens,output_tokens,Adapter\n0,7,3,law\n1,7,3,sql\n2,7,3,law\n"
    )
    assert read_trace(path).adapter.tolist() == [0, 1, 0]
    assert read_trace(path).model is None
    path.write_text("arrival_s,input_tokens,output_tokens,adapter,model\n0,7,3,5,b\n1,7,3,-1,a\n")
    assert read_trace(path).adapter.tolist() == [5, -1]
    assert read_trace(path).model.tolist() == [0, 1]


def test_definitions_draw_them_by_their_popularity_and_nothing_else_changes():
    plain = load_trace(DRAWN)
    names = {"count": 20, "choose": "zipf", "skew": 1.5}
    trace = load_trace(DRAWN | {"adapter": names, "model": {"count": 3}})
    assert plain.adapter is None
    for column in ("arrival_s", "input_tokens", "output_tokens"):
        assert getattr(trace, column).tolist() == getattr(plain, column).tolist()
    chance = popularity(20, "zipf", 1.5)
    assert chance[1] / chance[0] == pytest.approx(2**-1.5)
    for numbers, expected in ((trace.adapter, chance), (trace.model, np.full(3, 1 / 3))):
        found = np.bincount(numbers, minlength=len(expected)) / 4000
        assert (np.abs(found - expected) < 4 * np.sqrt(expected / 4000)).all()


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="skeww"):
        load_trace(DRAWN | {"adapter": {"count": 2, "skeww": 1}})
    frame = pd.DataFrame({"input_tokens": [1], "output_tokens": [1], "adaptor": [0]})
    with pytest.raises(ConfigError, match="adapter"):
        RequestTrace.from_frame(frame)
