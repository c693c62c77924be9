"""Operator traces: what is written is what is read, and files that are none are refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from opbyte.core.errors import OpbyteError, WorkloadError
from opbyte.core.ops import NUMERIC
from opbyte.core.parallel import Parallel
from opbyte.workloads.model import Attention, DenseFfn, Layer, Mamba, Model, MoeFfn
from opbyte.workloads.op_trace import OpTrace, load_ops, save_ops
from opbyte.workloads.phases import Decode

MODEL = Model(
    "m", 256, 1000,
    (Layer(Attention(8, 2, 32), MoeFfn(8, 2, 64)), Layer(Mamba(8, 32, 16, 2, 4), DenseFfn(64))),
    (0, 1, 0, 0),
)  # fmt: skip


def table(context=100.0, parallel=None):
    return Decode(MODEL, 3, context).lower(parallel or Parallel())[0].table


def written(tmp_path, ops=None, **extra):
    path = tmp_path / "ops.parquet"
    save_ops(table() if ops is None else ops, path, **extra)
    return path


@pytest.mark.parametrize(
    "ops",
    [table(), table(np.array([10.0, 1 / 3, 1e6]) + 1), table(parallel=Parallel(tp=2, pp=2))],
    ids=["one point", "three points", "stages"],
)
def test_round_trip_is_exact(tmp_path, ops):
    read = load_ops(written(tmp_path, ops)).table
    assert read.names == ops.names
    assert read.kinds == ops.kinds
    assert read.labels == ops.labels
    assert read.dtypes == ops.dtypes
    assert read.blocks == ops.blocks
    for name in NUMERIC:
        assert read[name].shape == ops[name].shape
        np.testing.assert_array_equal(read[name], ops[name])
    for name in ("block_of", "order", "edges", "stage"):
        np.testing.assert_array_equal(getattr(read, name), getattr(ops, name))
    assert read.parts == ops.parts
    assert read.parts


def test_trace_is_a_work(tmp_path):
    work = Decode(MODEL, 3, 100)
    held = work.footprint(Parallel())
    path = written(tmp_path, tokens=3, sequences=3, footprint=held)
    trace = OpTrace(path)
    assert trace.tokens == trace.sequences == 3
    assert trace.footprint(Parallel()) == held
    (phase,) = trace.lower(Parallel())
    assert phase.table.total("flops") == table().total("flops")
    assert OpTrace(written(tmp_path)).footprint(Parallel())["weight"] == table().total("weight")


def test_making_a_trace_reads_nothing():
    trace = OpTrace("nowhere.parquet")
    with pytest.raises(OpbyteError, match=r"nowhere\.parquet"):
        trace.lower(Parallel())


def edited(path, change=None, meta=None, drop=None):
    stored = pq.read_table(path)
    if drop:
        stored = stored.drop_columns(drop)
    for name, (row, value) in (change or {}).items():
        values = stored.column(name).to_pylist()
        values[row] = value
        kind = stored.schema.field(name).type
        stored = stored.set_column(
            stored.schema.get_field_index(name), name, pa.array(values, kind)
        )
    if meta is not None:
        old = json.loads(stored.schema.metadata[b"opbyte"])
        stored = stored.replace_schema_metadata({b"opbyte": json.dumps({**old, **meta}).encode()})
    pq.write_table(stored, path)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"drop": ["flops", "kind"]}, "columns are missing: kind, flops"),
        ({"change": {"flops": (2, float("nan"))}}, "row 2: flops must be finite and >= 0, got nan"),
        ({"change": {"weight": (1, -4.0)}}, "row 1: weight must be finite and >= 0, got -4.0"),
        ({"change": {"kv_read": (1, None)}}, "row 1: kv_read must be finite and >= 0, got nan"),
        ({"change": {"name": (3, None)}}, "row 3: name must be a text, got None"),
        ({"change": {"dtype": (0, "bf17")}}, "row 0: no number format is called 'bf17'"),
        ({"change": {"block": (0, 9)}}, "block must be ascending and name a block"),
        ({"meta": {"version": 99}}, "is of version 99, and this opbyte reads 1"),
        ({"meta": {"order": []}}, "order must name blocks, at least one"),
        ({"meta": {"order": [0, 77]}}, "order must name blocks"),
        ({"meta": {"order": "x"}}, "order must be lists of whole numbers"),
        ({"meta": {"stage": [0]}}, "stage must have one value for each block"),
        ({"meta": {"edges": [[0, 10**6]]}}, "edges must join rows"),
        ({"meta": {"edges": [[3, 2]]}}, "an edge must lead to a later row of the same block"),
        ({"meta": {"parts": {"1": ["x"]}}}, "parts must map rows to lists of numbers"),
        ({"meta": {"parts": {"9999": [1.0]}}}, "parts must be widths above 0 of rows that exist"),
        ({"meta": {"format": "else"}}, "no operator trace"),
    ],
)
def test_damaged_traces_are_refused(tmp_path, edit, message):
    path = edited(written(tmp_path), **edit)
    with pytest.raises(WorkloadError, match=message) as error:
        load_ops(path)
    assert str(path) in str(error.value)


def test_files_that_are_no_traces(tmp_path):
    with pytest.raises(WorkloadError, match="there is no such file"):
        load_ops(tmp_path / "none.parquet")
    text = tmp_path / "text.parquet"
    text.write_text("not parquet")
    with pytest.raises(WorkloadError, match="can not be read as a Parquet file"):
        load_ops(text)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(WorkloadError, match="no operator trace"):
        load_ops(other)
    with pytest.raises(WorkloadError, match="can not be read"):
        load_ops(tmp_path)
