"""Operator traces: an OpTable as a Parquet file, so that anybody's operators can drive any machine.

One row per operator, columns as in `opbyte.core.ops.OpTable`; a numeric column is float64, or a
fixed-size list of float64 with one value for each design point. Blocks, their order, their
pipeline stages, edges, tokens and footprint stand as JSON in the schema's metadata under `opbyte`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import ConfigError, WorkloadError
from opbyte.core.ops import NUMERIC, Array, Number, OpTable, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.chakra import read_chakra
from opbyte.workloads.numeric import is_array
from opbyte.workloads.work import WORKS, Work

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
TEXTS = ("name", "kind", "dtype")
_META = b"opbyte"
_FORMAT = "operator trace"


@dataclass(frozen=True)
class TraceFile:
    """What a file holds.

    Attributes:
        table: The operators.
        tokens: Tokens that one run of them produces.
        sequences: Sequences that it serves.
        footprint: Tensor class -> bytes that one device must hold; empty where not recorded.
    """

    table: OpTable
    tokens: float = 1.0
    sequences: float = 1.0
    footprint: Mapping[str, float | list[float]] | None = None


def save_ops(
    table: OpTable,
    path: str | Path,
    *,
    tokens: float = 1.0,
    sequences: float = 1.0,
    footprint: Mapping[str, Number] | None = None,
) -> None:
    """Write an OpTable as a Parquet file.

    Args:
        table: What to write.
        path: File to write; an existing one is replaced.
        tokens: Tokens that one run of the table produces.
        sequences: Sequences that it serves.
        footprint: Tensor class -> bytes that one device must hold.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.Array] = {
        "name": pa.array(table.names, pa.string()),
        "kind": pa.array(table.kinds, pa.string()),
        "labels": pa.array([sorted(words) for words in table.labels], pa.list_(pa.string())),
        "dtype": pa.array(table.dtypes, pa.string()),
        "block": pa.array(table.block_of, pa.int64()),
    }
    columns |= {name: _stored(table[name]) for name in NUMERIC}
    held = {k: v.tolist() if is_array(v) else float(v) for k, v in (footprint or {}).items()}
    meta = {
        "format": _FORMAT,
        "version": VERSION,
        "blocks": list(table.blocks),
        "order": table.order.tolist(),
        "stage": table.stage.tolist(),
        "edges": table.edges.tolist(),
        "parts": {str(row): list(widths) for row, widths in table.parts.items()},
        "tokens": float(tokens),
        "sequences": float(sequences),
        "footprint": held,
    }
    written = pa.table(columns).replace_schema_metadata({_META: json.dumps(meta).encode()})
    pq.write_table(written, Path(path))


def _stored(column: Array) -> pa.Array:
    """Return a numeric column as float64, or as lists with one value for each point."""
    import pyarrow as pa

    points = column.shape[1]
    flat = pa.array(np.ascontiguousarray(column).ravel(), pa.float64())
    return flat if points == 1 else pa.FixedSizeListArray.from_arrays(flat, points)


def load_ops(path: str | Path) -> TraceFile:
    """Read what `save_ops` wrote.

    Raises:
        WorkloadError: If there is no such file, it is no operator trace or of a newer version,
            columns are missing, numbers are negative or not finite, or blocks and edges disagree.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    try:
        stored = pq.read_table(path, memory_map=False)
    except FileNotFoundError:
        raise WorkloadError(f"{path}: there is no such file") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0][:120]
        raise WorkloadError(f"{path}: it can not be read as a Parquet file: {reason}") from None
    meta = _meta(stored, path)
    missing = [c for c in (*TEXTS, "labels", "block", *NUMERIC) if c not in stored.column_names]
    if missing:
        raise WorkloadError(
            f"{path}: columns are missing: {', '.join(missing)}. An operator trace has: "
            f"{', '.join((*TEXTS, 'labels', 'block', *NUMERIC))}"
        )
    if stored.num_rows == 0:
        raise WorkloadError(f"{path}: the trace has no operators")
    texts = {name: _texts(stored, name, path) for name in TEXTS}
    _check_dtypes(texts["dtype"], path)
    columns = {name: _numbers(stored, name, path) for name in NUMERIC}
    widths = {c.shape[1] for c in columns.values()} - {1}
    if len(widths) > 1:
        raise WorkloadError(f"{path}: columns have {sorted(widths)} points: one number is due")
    blocks = _integers(stored, "block", path)
    table = OpTable(
        texts["name"],
        texts["kind"],
        tuple(frozenset(words or ()) for words in stored.column("labels").to_pylist()),
        texts["dtype"],
        columns,
        blocks,
        tuple(str(b) for b in meta["blocks"]),
        np.array(meta["order"], np.int64),
        np.array(meta["edges"], np.int64).reshape(-1, 2),
        np.array(meta["stage"], np.int64),
        parts=_parts(meta.get("parts", {}), len(texts["name"]), path),
    )
    _check_structure(table, path)
    return TraceFile(table, meta["tokens"], meta["sequences"], meta["footprint"] or None)


def _parts(raw: Any, rows: int, path: Path) -> dict[int, tuple[float, ...]]:
    """Return the matrices that products consist of, which older traces do not have."""
    try:
        parts = {int(row): tuple(float(w) for w in widths) for row, widths in raw.items()}
    except (AttributeError, TypeError, ValueError):
        raise WorkloadError(f"{path}: metadata parts must map rows to lists of numbers") from None
    if any(not 0 <= row < rows or not all(w > 0 for w in ws) for row, ws in parts.items()):
        raise WorkloadError(f"{path}: metadata parts must be widths above 0 of rows that exist")
    return parts


def _meta(stored: pa.Table, path: Path) -> dict[str, Any]:
    """Return the metadata, with every key that this version needs."""
    raw = (stored.schema.metadata or {}).get(_META)
    try:
        meta = json.loads(raw) if raw is not None else None
    except ValueError:
        meta = None
    if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
        raise WorkloadError(
            f"{path}: it is a Parquet file but no operator trace: its metadata has no 'opbyte' "
            "entry. Write it with save_ops"
        )
    if meta.get("version") != VERSION:
        raise WorkloadError(
            f"{path}: it is of version {meta.get('version')!r}, and this opbyte reads {VERSION}"
        )
    needed = ("blocks", "order", "stage", "edges", "tokens", "sequences", "footprint")
    missing = [key for key in needed if key not in meta]
    if missing:
        raise WorkloadError(f"{path}: its metadata lacks {', '.join(missing)}")
    for key in ("order", "stage", "edges"):
        try:
            np.array(meta[key], np.int64)
        except (TypeError, ValueError, OverflowError):
            raise WorkloadError(f"{path}: metadata {key} must be lists of whole numbers") from None
    return meta


def _texts(stored: pa.Table, name: str, path: Path) -> tuple[str, ...]:
    values = stored.column(name).to_pylist()
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise WorkloadError(f"{path}: row {row}: {name} must be a text, got {value!r}")
    return tuple(values)


def _check_dtypes(dtypes: tuple[str, ...], path: Path) -> None:
    for row, dtype in enumerate(dtypes):
        try:
            lookup(dtype)
        except ConfigError as error:
            raise WorkloadError(f"{path}: row {row}: {error}") from None


def _integers(stored: pa.Table, name: str, path: Path) -> np.ndarray[Any, np.dtype[np.int64]]:
    values = stored.column(name).to_numpy()
    if values.dtype.kind not in "iu":
        raise WorkloadError(f"{path}: {name} must be whole numbers, got {values.dtype}")
    blocks: np.ndarray[Any, np.dtype[np.int64]] = values.astype(np.int64)
    return blocks


def _numbers(stored: pa.Table, name: str, path: Path) -> Array:
    """Return a numeric column, (rows, 1) or (rows, points)."""
    import pyarrow as pa

    column = stored.column(name).combine_chunks()
    points = 1
    if pa.types.is_fixed_size_list(column.type):
        points = column.type.list_size
        column = column.flatten()
    is_number = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
    if not is_number:
        raise WorkloadError(f"{path}: column {name} must hold numbers, got {column.type}")
    values: Array = np.array(column.to_numpy(zero_copy_only=False), np.float64)
    if values.size != stored.num_rows * points:
        raise WorkloadError(f"{path}: column {name} has missing values")
    values = values.reshape(stored.num_rows, points)
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        row, point = np.argwhere(bad)[0]
        raise WorkloadError(
            f"{path}: row {row}: {name} must be finite and >= 0, got {values[row, point]}"
        )
    return values


def _check_structure(table: OpTable, path: Path) -> None:
    """Check that blocks, order, stages and edges fit the rows."""
    blocks, rows = len(table.blocks), len(table)
    faults = {
        "block must be ascending and name a block": (
            bool((np.diff(table.block_of) < 0).any()) or not _within(table.block_of, blocks)
        ),
        "order must name blocks, at least one": not len(table.order)
        or not _within(table.order, blocks),
        "stage must have one value for each block": len(table.stage) != blocks
        or bool((table.stage < 0).any()),
        "edges must join rows of the trace": not _within(table.edges.ravel(), rows),
    }
    for rule, broken in faults.items():
        if broken:
            raise WorkloadError(f"{path}: {rule}")
    source, target = table.edges.T
    if (source >= target).any() or (table.block_of[source] != table.block_of[target]).any():
        raise WorkloadError(f"{path}: an edge must lead to a later row of the same block")


def _within(values: np.ndarray[Any, np.dtype[np.int64]], size: int) -> bool:
    return not len(values) or bool(values.min() >= 0 and values.max() < size)


@WORKS.register("ops")
@dataclass(frozen=True)
class OpTrace(Work):
    """Operators from a file, run once as they stand.

    The file holds what one device executes: a mapping's parallel degrees do not split it again.

    Attributes:
        path: Parquet file that `save_ops` wrote, or a Chakra trace (`.et`).
        participants: Devices of a Chakra trace's collectives, of which it says nothing.
    """

    kind: ClassVar[str] = "ops"

    path: str | Path
    participants: int | None = None

    @cached_property
    def file(self) -> TraceFile:
        """Return what the file holds; it is read on first use."""
        if Path(self.path).suffix == ".et":
            return TraceFile(read_chakra(self.path, participants=self.participants))
        return load_ops(self.path)

    @property
    def tokens(self) -> Number:
        """Return the tokens that the file says one run produces."""
        return self.file.tokens

    @property
    def sequences(self) -> Number:
        """Return the sequences that the file says one run serves."""
        return self.file.sequences

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return one phase with the file's table."""
        del parallel
        return (Phase("ops", self.file.table),)

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the recorded footprint, or else the weights that the rows read, once each."""
        del parallel
        given = self.file.footprint
        if given is not None:
            return {k: np.array(v) if isinstance(v, list) else float(v) for k, v in given.items()}
        table = self.file.table
        return {"weight": table.total("weight"), "expert": table.total("expert")}
