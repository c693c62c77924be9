"""Chakra execution traces (MLCommons), written for other simulators and read as operator tables.

A file is a GlobalMetadata and then Nodes, each a protobuf message after its length as a varint.
Field numbers are those of the schema `et_def.proto`. Beside the attributes that ASTRA-sim reads
(num_ops, tensor_size, comm_type, comm_size), written nodes carry `opbyte.*` attributes, so that
reading them back loses nothing; traces of other tools have FLOPs and bytes only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import BYTE_COLUMNS, NUMERIC, BlockBuilder, OpTable, OpTableBuilder

VERSION = "0.0.4"
_MEM_LOAD, _MEM_STORE, _COMP, _SEND, _COLLECTIVE = 2, 3, 4, 5, 7
_COLLECTIVES = {"all_reduce": 0, "all_gather": 2, "all_to_all": 6, "reduce_scatter": 7}
_OURS = "opbyte."
_SCALARS = {
    "double_val": (3, "DOUBLE"),
    "float_val": (5, "FLOAT"),
    "int32_val": (7, "INT32"),
    "int64_val": (9, "INT64"),
    "uint32_val": (11, "UINT32"),
    "uint64_val": (13, "UINT64"),
    "sint32_val": (15, "SINT32"),
    "sint64_val": (17, "SINT64"),
    "bool_val": (27, "BOOL"),
    "string_val": (29, "STRING"),
}


def _messages() -> tuple[Any, Any]:
    """Return the message classes GlobalMetadata and Node.

    Raises:
        WorkloadError: If the protobuf package is missing.
    """
    try:
        from google.protobuf import (  # type: ignore[import-untyped]
            descriptor_pb2,
            descriptor_pool,
            message_factory,
        )
    except ImportError:
        raise WorkloadError(
            "Chakra traces need the package protobuf: pip install 'opbyte[chakra]'"
        ) from None
    file = descriptor_pb2.FileDescriptorProto(
        name="opbyte_chakra.proto", package="ChakraProtoMsg", syntax="proto3"
    )
    field = descriptor_pb2.FieldDescriptorProto

    def add(message: Any, name: str, number: int, kind: str, **more: Any) -> None:
        many = more.pop("many", False)
        label = field.LABEL_REPEATED if many else field.LABEL_OPTIONAL
        type_ = getattr(field, f"TYPE_{kind}")
        message.field.add(name=name, number=number, type=type_, label=label, **more)

    attribute = file.message_type.add(name="AttributeProto")
    attribute.oneof_decl.add(name="value")
    add(attribute, "name", 1, "STRING")
    add(attribute, "doc_string", 2, "STRING")
    for name, (number, kind) in _SCALARS.items():
        add(attribute, name, number, kind, oneof_index=0)
    held = {"type_name": ".ChakraProtoMsg.AttributeProto", "many": True}
    metadata = file.message_type.add(name="GlobalMetadata")
    add(metadata, "version", 1, "STRING")
    add(metadata, "attr", 2, "MESSAGE", **held)
    node = file.message_type.add(name="Node")
    for name, number, kind, many in (
        ("id", 1, "UINT64", False),
        ("name", 2, "STRING", False),
        ("type", 3, "INT32", False),  # an enum, which has the same encoding
        ("ctrl_deps", 4, "UINT64", True),
        ("data_deps", 5, "UINT64", True),
        ("start_time_micros", 6, "UINT64", False),
        ("duration_micros", 7, "UINT64", False),
    ):
        add(node, name, number, kind, many=many)
    add(node, "attr", 10, "MESSAGE", **held)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = (pool.FindMessageTypeByName(f"ChakraProtoMsg.{n}") for n in ("GlobalMetadata", "Node"))
    first, second = (message_factory.GetMessageClass(d) for d in found)
    return first, second


# -- writing ---------------------------------------------------------------------------------------


def write_chakra(table: OpTable, path: str | Path) -> int:
    """Write a table as a Chakra trace, one node for every time that a row runs.

    Returns:
        The number of nodes.

    Raises:
        WorkloadError: If the table has several design points, or protobuf is missing.
    """
    if table.points > 1:
        raise WorkloadError(f"a Chakra trace holds one design point, the table has {table.points}")
    metadata, node_class = _messages()
    inputs: dict[int, list[int]] = {}
    for source, target in table.edges.tolist():
        inputs.setdefault(target, []).append(source)
    moved = _moved_bytes(table)
    last: list[int] = []
    count = 0
    with Path(path).open("wb") as file:
        _write(file, metadata(version=VERSION))
        for run, block in enumerate(table.order.tolist()):
            ids: dict[int, int] = {}
            for row in table.rows_of(block).tolist():
                node = node_class(id=count, name=table.names[row])
                node.data_deps.extend(ids[source] for source in inputs.get(row, ()))
                if not inputs.get(row):
                    node.ctrl_deps.extend(last)
                _describe(node, table, row, float(moved[row]))
                _attribute(node, f"{_OURS}run", run)
                _write(file, node)
                ids[row] = count
                count += 1
            read = {source for row in ids for source in inputs.get(row, ())}
            last = [number for row, number in ids.items() if row not in read]
    return count


def _moved_bytes(table: OpTable) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return all bytes that each row reads and writes, (rows,)."""
    moved = sum(table[c][:, 0] for c in (*BYTE_COLUMNS, "in_bytes", "side_bytes", "out_bytes"))
    total: np.ndarray[Any, np.dtype[np.float64]] = np.array(moved, np.float64)
    np.add.at(total, table.edges[:, 1], table.edge_bytes()[:, 0])
    return total


def _describe(node: Any, table: OpTable, row: int, moved: float) -> None:
    """Set a node's type and attributes."""
    kind = table.kinds[row]
    _attribute(node, "is_cpu_op", value=False)
    if kind in _COLLECTIVES or kind == "send":
        node.type = _SEND if kind == "send" else _COLLECTIVE
        if kind != "send":
            _attribute(node, "comm_type", _COLLECTIVES[kind])
        _attribute(node, "comm_size", round(table["payload"][row, 0]))
    else:
        node.type = _COMP
        _attribute(node, "num_ops", round(table["flops"][row, 0]))
        _attribute(node, "tensor_size", round(moved))
    _attribute(node, f"{_OURS}kind", kind)
    _attribute(node, f"{_OURS}dtype", table.dtypes[row])
    _attribute(node, f"{_OURS}labels", " ".join(sorted(table.labels[row])))
    block = int(table.block_of[row])
    _attribute(node, f"{_OURS}block", table.blocks[block])
    _attribute(node, f"{_OURS}stage", int(table.stage[block]))
    for name in NUMERIC:
        _attribute(node, f"{_OURS}{name}", float(table[name][row, 0]))


def _attribute(node: Any, name: str, value: bool | float | str) -> None:
    types = {bool: "bool_val", int: "int64_val", float: "double_val", str: "string_val"}
    node.attr.add(name=name, **{types[type(value)]: value})


def _write(file: Any, message: Any) -> None:
    data = message.SerializeToString(deterministic=True)
    size = len(data)
    while size > 0x7F:
        file.write(bytes([size & 0x7F | 0x80]))
        size >>= 7
    file.write(bytes([size]))
    file.write(data)


# -- reading ---------------------------------------------------------------------------------------


def read_chakra(
    path: str | Path, *, dtype: str = "bf16", participants: int | None = None
) -> OpTable:
    """Read a Chakra trace as an operator table.

    Nodes that `write_chakra` wrote become the rows that they were, each run of a block a block of
    its own. Nodes of other tools become one block, in an order that respects their dependencies:
    compute nodes have num_ops FLOPs and read tensor_size bytes; nothing says which are weights.

    Args:
        path: File to read.
        dtype: Arithmetic dtype of other tools' nodes.
        participants: Devices of other tools' collectives, of which a node says nothing.

    Raises:
        WorkloadError: If protobuf is missing, the file is no Chakra trace, a dependency is missing
            or circular, or a node can not be read.
    """
    path = Path(path)
    metadata, node_class = _messages()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WorkloadError(f"{path}: it can not be read: {error.strerror}") from None
    pieces = _pieces(data, path)
    _parsed(metadata, next(pieces, b""), path, "its metadata")
    nodes = [_parsed(node_class, p, path, f"node {i}") for i, p in enumerate(pieces)]
    if not nodes:
        raise WorkloadError(f"{path}: the trace has no nodes")
    ordered = _ordered(nodes, path)
    attributes = {node.id: _attributes(node) for node in ordered}
    builder = OpTableBuilder()
    if all(f"{_OURS}run" in attributes[node.id] for node in ordered):
        _read_ours(builder, ordered, attributes, path)
    else:
        _read_foreign(builder, ordered, attributes, path, dtype, participants)
    try:
        return builder.build()
    except WorkloadError as error:
        raise WorkloadError(f"{path}: {error}") from None


def _pieces(data: bytes, path: Path) -> Iterator[bytes]:
    """Yield each length-delimited message."""
    at = 0
    while at < len(data):
        size, shift, more = 0, 0, True
        while more:
            if at >= len(data) or shift > 63:
                raise WorkloadError(f"{path}: byte {at}: a message's length is cut off or too long")
            more = bool(data[at] & 0x80)
            size |= (data[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
        if at + size > len(data):
            raise WorkloadError(
                f"{path}: byte {at}: a message of {size} bytes is cut off after {len(data) - at}"
            )
        yield data[at : at + size]
        at += size


def _parsed(cls: Any, data: bytes, path: Path, what: str) -> Any:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return cls.FromString(data)
    except DecodeError:
        raise WorkloadError(f"{path}: {what} is no Chakra message") from None


def _ordered(nodes: list[Any], path: Path) -> list[Any]:
    """Return the nodes so that each follows what it depends on; the file's order otherwise."""
    by_id = {node.id: node for node in nodes}
    if len(by_id) < len(nodes):
        raise WorkloadError(f"{path}: two nodes have the same id")
    waiting: dict[int, int] = {}
    readers: dict[int, list[int]] = {}
    for node in nodes:
        needed = {*node.ctrl_deps, *node.data_deps}
        for source in needed:
            if source not in by_id:
                what = f"node {node.id} ({node.name}) depends on node {source}"
                raise WorkloadError(f"{path}: {what}, which is missing")
            readers.setdefault(source, []).append(node.id)
        waiting[node.id] = len(needed)
    ready = [node.id for node in reversed(nodes) if not waiting[node.id]]
    ordered = []
    while ready:
        current = ready.pop()
        ordered.append(by_id[current])
        for reader in reversed(readers.get(current, [])):
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if len(ordered) < len(nodes):
        raise WorkloadError(f"{path}: {len(nodes) - len(ordered)} nodes depend on each other")
    return ordered


def _attributes(node: Any) -> dict[str, Any]:
    found = {}
    for attribute in node.attr:
        which = attribute.WhichOneof("value")
        if which is not None:
            found[attribute.name] = getattr(attribute, which)
    return found


def _read_ours(
    builder: OpTableBuilder, nodes: list[Any], attributes: dict[int, dict[str, Any]], path: Path
) -> None:
    """Add the rows of nodes that `write_chakra` wrote, one block for each run."""
    runs: dict[int, list[Any]] = {}
    for node in sorted(nodes, key=lambda node: node.id):
        runs.setdefault(attributes[node.id][f"{_OURS}run"], []).append(node)
    for run in sorted(runs):
        first = attributes[runs[run][0].id]
        name = f"{first.get(f'{_OURS}block', 'block')}#{run}"
        with builder.block(name, int(first.get(f"{_OURS}stage", 0))) as block:
            rows: dict[int, int] = {}
            for node in runs[run]:
                given = attributes[node.id]
                missing = [n for n in ("kind", "dtype", *NUMERIC) if f"{_OURS}{n}" not in given]
                if missing or any(source not in rows for source in node.data_deps):
                    what = f"lacks {', '.join(missing)}" if missing else "reads another block"
                    raise WorkloadError(f"{path}: node {node.id} ({node.name}) {what}")
                rows[node.id] = block.add(
                    node.name,
                    given[f"{_OURS}kind"],
                    dtype=given[f"{_OURS}dtype"],
                    inputs=[rows[source] for source in node.data_deps],
                    labels=str(given.get(f"{_OURS}labels", "")).split(),
                    **{column: float(given[f"{_OURS}{column}"]) for column in NUMERIC},
                )
        builder.order.append(block.index)


def _read_foreign(
    builder: OpTableBuilder,
    nodes: list[Any],
    attributes: dict[int, dict[str, Any]],
    path: Path,
    dtype: str,
    participants: int | None,
) -> None:
    """Add the rows of another tool's nodes, all in one block."""
    with builder.block("chakra") as block:
        rows: dict[int, int] = {}
        for node in nodes:
            deps = dict.fromkeys((*node.data_deps, *node.ctrl_deps))
            inputs = [rows[source] for source in deps]
            row = _foreign_row(block, node, attributes[node.id], path, dtype, inputs, participants)
            rows[node.id] = row
    builder.order.append(block.index)


def _foreign_row(
    block: BlockBuilder,
    node: Any,
    given: dict[str, Any],
    path: Path,
    dtype: str,
    inputs: list[int],
    participants: int | None,
) -> int:
    """Add one node of another tool; return its row."""
    name, kind = f"{node.name}#{node.id}", "elementwise"
    numbers: dict[str, float] = {"flops": 0.0}
    where = f"{path}: node {node.id} ({node.name})"
    if node.type == _COLLECTIVE:
        known = {code: word for word, code in _COLLECTIVES.items()}
        code = given.get("comm_type")
        if code not in known:
            listed = ", ".join(f"{c} = {w}" for c, w in known.items())
            raise WorkloadError(f"{where}: comm_type {code!r} is not covered. Covered: {listed}")
        if participants is None:
            raise WorkloadError(f"{where}: a collective does not say over how many devices it runs")
        kind = known[code]
        numbers |= {"payload": _size(given, "comm_size", where), "participants": participants}
    elif node.type == _SEND:
        kind = "send"
        numbers |= {"payload": _size(given, "comm_size", where), "participants": 2}
    elif node.type == _COMP:
        numbers["flops"] = _size(given, "num_ops", where, default=0.0)
        numbers["in_bytes"] = _size(given, "tensor_size", where, default=0.0)
    elif node.type in (_MEM_LOAD, _MEM_STORE):
        numbers["in_bytes"] = _size(given, "tensor_size", where)
    return block.add(name, kind, dtype=dtype, inputs=inputs, labels=("chakra",), **numbers)


def _size(given: dict[str, Any], name: str, where: str, default: float | None = None) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise WorkloadError(f"{where}: {name} must be a number >= 0, got {value!r}")
    return float(value)
