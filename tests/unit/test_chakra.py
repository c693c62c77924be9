"""Chakra traces: what is written comes back, foreign nodes are read, damaged files refused."""

import sys

import pytest

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import NUMERIC
from opbyte.core.parallel import Parallel
from opbyte.workloads.chakra import _attribute, _messages, _write, read_chakra, write_chakra
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model, MoeFfn
from opbyte.workloads.op_trace import OpTrace
from opbyte.workloads.phases import Decode

pytest.importorskip("google.protobuf", reason="protobuf is not installed")
LAYERS = (Layer(Attention(8, 2, 32), DenseFfn(64)), Layer(Attention(8, 8, 32), MoeFfn(8, 2, 64)))
MODEL = Model("m", 256, 1000, LAYERS, (0, 1, 1, 0))


def table(parallel=None, context=100):
    return Decode(MODEL, 3, context).lower(parallel or Parallel(tp=2, pp=2, ep=2))[0].table


def test_written_nodes_come_back(tmp_path):
    ops, path = table(), tmp_path / "t.et"
    count = write_chakra(ops, path)
    read = read_chakra(path)
    assert count == len(read) == ops.repeats.sum()
    for column in NUMERIC:
        if column not in ("m", "n", "k"):
            assert read.total(column)[0] == pytest.approx(ops.total(column)[0], rel=1e-14)
    assert read.compulsory_bytes()["activation"] == pytest.approx(
        ops.compulsory_bytes()["activation"], rel=1e-14
    )
    first = [read.names[i] for i in read.rows_of(1)]
    block = ops.order[1]
    assert first == [ops.names[i] for i in ops.rows_of(block)]
    assert [read.stage[b] for b in read.order] == [ops.stage[b] for b in ops.order]
    assert set(read.labels) == set(ops.labels)


def test_a_chakra_trace_is_a_work(tmp_path):
    path = tmp_path / "t.et"
    write_chakra(table(), path)
    (phase,) = OpTrace(path).lower(Parallel())
    assert phase.table.total("flops") == table().total("flops")


def written(path, *nodes):
    """Write nodes given as (id, name, type, dependencies, attributes)."""
    metadata, node_class = _messages()
    with path.open("wb") as file:
        _write(file, metadata(version="0.0.4"))
        for number, name, kind, deps, attributes in nodes:
            node = node_class(id=number, name=name, type=kind, data_deps=deps)
            for key, value in attributes.items():
                _attribute(node, key, value)
            _write(file, node)
    return path


def test_nodes_of_other_tools(tmp_path):
    path = written(
        tmp_path / "t.et",
        (7, "sum", 7, [3], {"comm_type": 0, "comm_size": 4096}),
        (3, "matmul", 4, [1], {"num_ops": 1000, "tensor_size": 300}),
        (1, "load", 2, [], {"tensor_size": 50}),
        (9, "note", 1, [], {}),
    )
    ops = read_chakra(path, participants=8)
    assert ops.kinds[ops.names.index("sum#7")] == "all_reduce"
    assert ops.total("flops") == 1000
    assert ops.total("in_bytes") == 350
    assert ops.total("payload") == 4096
    assert ops["participants"][ops.names.index("sum#7"), 0] == 8
    assert ops.names.index("load#1") < ops.names.index("matmul#3") < ops.names.index("sum#7")
    with pytest.raises(WorkloadError, match="does not say over how many devices"):
        read_chakra(path)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "the trace has no nodes"),
        ([(1, "a", 4, [5], {})], r"node 1 \(a\) depends on node 5, which is missing"),
        ([(1, "a", 4, [2], {}), (2, "b", 4, [1], {})], "2 nodes depend on each other"),
        ([(1, "a", 4, [], {}), (1, "b", 4, [], {})], "two nodes have the same id"),
        ([(1, "a", 4, [], {"num_ops": -1})], "num_ops must be a number >= 0, got -1"),
        ([(1, "a", 7, [], {"comm_type": 5})], "comm_type 5 is not covered. Covered: 0 = all_red"),
        ([(1, "a", 2, [], {})], "tensor_size must be a number >= 0, got None"),
    ],
)
def test_wrong_nodes(tmp_path, nodes, message):
    path = written(tmp_path / "t.et", *nodes)
    with pytest.raises(WorkloadError, match=message):
        read_chakra(path, participants=2)


def test_damaged_files(tmp_path):
    path = tmp_path / "t.et"
    write_chakra(table(), path)
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    with pytest.raises(WorkloadError, match="is cut off after"):
        read_chakra(path)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(WorkloadError, match="length is cut off or too long"):
        read_chakra(path)
    path.write_bytes(b"\x05hello")
    with pytest.raises(WorkloadError, match="no Chakra message"):
        read_chakra(path)
    with pytest.raises(WorkloadError, match="can not be read"):
        read_chakra(tmp_path / "none.et")


def test_one_point_only(tmp_path):
    with pytest.raises(WorkloadError, match="holds one design point, the table has 2"):
        write_chakra(table(context=[10, 20]), tmp_path / "t.et")


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    with pytest.raises(WorkloadError, match=r"pip install 'opbyte\[chakra\]'"):
        write_chakra(table(), tmp_path / "t.et")
