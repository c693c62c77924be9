"""OpTable: work as arrays, one row per distinct operator.

Rows belong to *blocks* (embedding, one kind of layer, head). `order` lists the blocks as they run,
so a layer that occurs 80 times is one block that occurs 80 times in `order`: it is lowered and
priced once. Inside a block rows are joined by edges that carry activations; a block starts when the
one before it in `order` is complete.

Numeric columns have the shape (rows, 1) or (rows, points): lowering is plain arithmetic, so a batch
size or a context may be an array with one value for each design point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import WorkloadError

Array: TypeAlias = npt.NDArray[np.float64]
Number: TypeAlias = "float | int | Array"

#: Bytes that a row reads from or writes to where its tensors live, by column.
BYTE_COLUMNS = ("weight", "expert", "kv_read", "kv_write", "state_read", "state_write")
#: Tensor class of each byte column, as a Mapping's `place` names it.
CLASS_OF = {
    "weight": "weight",
    "expert": "expert",
    "kv_read": "kv",
    "kv_write": "kv",
    "state_read": "state",
    "state_write": "state",
}
NUMERIC = (
    "m",
    "n",
    "k",
    "groups",
    "heads",
    "sequences",
    "flops",
    *BYTE_COLUMNS,
    "in_bytes",
    "side_bytes",
    "out_bytes",
    "payload",
    "participants",
)
_KNOWN = frozenset(NUMERIC)
_ONES = ("groups", "heads", "sequences", "participants")
_DEFAULTS = {name: 1.0 if name in _ONES else 0.0 for name in NUMERIC}
#: A copy from one group of devices to another, inserted where a mapping has two groups.
TRANSFER = "transfer"
#: Label of a collective of replicas of a model, each participant in another one.
REPLICAS = "replicas"
COLLECTIVES = frozenset({"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"})


@dataclass(frozen=True)
class Spread:
    """How a grouped product's rows are spread over its groups, where the mean does not say it.

    Attributes:
        known: Rows of each group, or what makes them: only kernels that compute group by group ask.
        tokens: Tokens whose picks the rows are, all of them on this device.
        width: Inner width of one group's network.
    """

    known: Array | Callable[[], Array]
    tokens: Number
    width: float

    @cached_property
    def counts(self) -> Array:
        """Return rows of each group of the device, zeros too, (groups, 1 or points)."""
        return self.known() if callable(self.known) else self.known


@dataclass(frozen=True)
class OpTable:
    """Operators of one piece of work, as a struct of arrays.

    Attributes:
        names: Name of each row, unique within its block.
        kinds: What the row computes: gemm, softmax, norm, all_reduce, ...
        labels: Further words by which a Mapping may select the row (attention, expert, prefill).
        dtypes: Arithmetic dtype of each row.
        columns: Numeric columns, each (rows, 1) or (rows, points) float64. `m, n, k, groups`
            describe `groups` products of (m, k) by (k, n). In attention a group is a KV head of one
            of `sequences` sequences, and its m rows are those of `heads` query heads. Of a vector
            row, `groups` are independent rows (norms, softmax, cache writes). Byte columns count
            what moves between
            the unit and where the tensor class lives; `in_bytes` is the block's input, one tensor
            however many rows read it, `side_bytes` any other tensor from outside; `payload` is a
            collective's bytes per participant.
        block_of: Block of each row, ascending.
        blocks: Name of each block.
        order: Blocks as they run.
        edges: (edges, 2) rows of source and destination, source before destination.
        stage: Pipeline stage of each block.
        waits: (waits, 2) rows of one block, the second of which starts when the first has ended
            but reads nothing of it.
        spreads: Row -> how a grouped product's rows are spread, for those that know it.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    labels: tuple[frozenset[str], ...]
    dtypes: tuple[str, ...]
    columns: Mapping[str, Array]
    block_of: npt.NDArray[np.int64]
    blocks: tuple[str, ...]
    order: npt.NDArray[np.int64]
    edges: npt.NDArray[np.int64]
    stage: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    spreads: Mapping[int, Spread] = field(default_factory=dict)
    waits: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.names)

    def __getitem__(self, column: str) -> Array:
        """Return a numeric column, (rows, 1) or (rows, points)."""
        return self.columns[column]

    @property
    def points(self) -> int:
        """Return how many design points the columns hold."""
        return max(int(c.shape[1]) for c in self.columns.values())

    @property
    def repeats(self) -> npt.NDArray[np.int64]:
        """Return how often each row runs, (rows,)."""
        return np.bincount(self.order, minlength=len(self.blocks))[self.block_of]

    def total(self, column: str) -> Array:
        """Return the sum of a column over all executions, (1,) or (points,)."""
        total: Array = (self.columns[column] * self.repeats[:, None]).sum(axis=0)
        return total

    def compulsory_bytes(self) -> dict[str, Array]:
        """Return the bytes of each tensor class when every tensor moves once, over all runs."""
        totals: dict[str, Array] = {}
        for column in BYTE_COLUMNS:
            cls = CLASS_OF[column]
            totals[cls] = totals.get(cls, np.zeros(1)) + self.total(column)
        read = (self.edge_bytes() * self.repeats[self.edges[:, 0]][:, None]).sum(axis=0)
        given = self.total("in_bytes") + self.total("side_bytes")
        totals["activation"] = given + self.total("out_bytes") + read
        return totals

    def edge_bytes(self) -> Array:
        """Return what each edge carries: its source's whole output, (edges, 1 or points)."""
        carried: Array = self.columns["out_bytes"][self.edges[:, 0]]
        return carried

    def rows_of(self, block: int) -> npt.NDArray[np.int64]:
        """Return the rows of a block."""
        return np.flatnonzero(self.block_of == block)


class BlockBuilder:
    """Adds rows to one block; made by `OpTableBuilder.block`."""

    def __init__(self, table: OpTableBuilder, index: int) -> None:
        self._table = table
        self.index = index

    def add(
        self,
        name: str,
        kind: str,
        *,
        dtype: str,
        inputs: Sequence[int] = (),
        labels: Sequence[str] = (),
        **numbers: Number,
    ) -> int:
        """Add a row and return its index.

        Args:
            name: Unique within the block.
            kind: What the row computes.
            dtype: Arithmetic dtype.
            inputs: Rows of this block whose outputs this row reads.
            labels: Words for a Mapping's selection, besides name and kind.
            numbers: Values of `NUMERIC` columns. `flops` defaults to 2*m*n*k*groups.
        Raises:
            WorkloadError: If an input is not an earlier row of the same block.
        """
        table = self._table
        row = len(table.names)
        for source in inputs:
            if not 0 <= source < row or table.block_of[source] != self.index:
                raise WorkloadError(
                    f"row '{name}': input {source} is not an earlier row of its block"
                )
            table.edges.append((source, row))
        if "flops" not in numbers and "m" in numbers:
            numbers["flops"] = (
                2.0 * numbers["m"] * numbers["n"] * numbers["k"] * numbers.get("groups", 1)
            )
        table.names.append(name)
        table.kinds.append(kind)
        table.labels.append(frozenset((name, kind, *labels)))
        table.dtypes.append(dtype)
        table.block_of.append(self.index)
        table.numbers.append(numbers)
        return row

    def wait(self, row: int, other: int) -> None:
        """Let a row start when an earlier one of the block has ended."""
        self._table.waits.append((other, row))

    def spread(self, row: int, spread: Spread) -> None:
        """Say how a grouped product's rows are spread over its groups."""
        self._table.spreads[row] = spread


class OpTableBuilder:
    """Builds an OpTable row by row."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.kinds: list[str] = []
        self.labels: list[frozenset[str]] = []
        self.dtypes: list[str] = []
        self.block_of: list[int] = []
        self.numbers: list[dict[str, Number]] = []
        self.edges: list[tuple[int, int]] = []
        self.blocks: list[str] = []
        self.stages: list[int] = []
        self.order: list[int] = []
        self.spreads: dict[int, Spread] = {}
        self.waits: list[tuple[int, int]] = []

    @contextmanager
    def block(self, name: str, stage: int = 0) -> Iterator[BlockBuilder]:
        """Open a block; rows are added through the builder that it yields."""
        self.blocks.append(name)
        self.stages.append(stage)
        yield BlockBuilder(self, len(self.blocks) - 1)

    def build(self) -> OpTable:
        """Return the finished table.

        Raises:
            WorkloadError: If the table is empty, a name is not a column, or a value is negative
                or not finite.
        """
        if not self.names or not self.order:
            raise WorkloadError("the work has no operators: nothing to simulate")
        unknown = {key for numbers in self.numbers for key in numbers} - _KNOWN
        if unknown:
            raise WorkloadError(f"no column is called {', '.join(sorted(unknown))}")
        columns = self._columns()
        return OpTable(
            tuple(self.names),
            tuple(self.kinds),
            tuple(self.labels),
            tuple(self.dtypes),
            columns,
            np.array(self.block_of, np.int64),
            tuple(self.blocks),
            np.array(self.order, np.int64),
            np.array(self.edges, np.int64).reshape(-1, 2),
            np.array(self.stages, np.int64),
            self.spreads,
            np.array(self.waits, np.int64).reshape(-1, 2),
        )

    def _columns(self) -> dict[str, Array]:
        """Return the numeric columns, each (rows, 1) or (rows, points)."""
        rows = [
            [numbers.get(name, _DEFAULTS[name]) for name in NUMERIC] for numbers in self.numbers
        ]
        if not any(
            isinstance(v, np.ndarray) and v.size != 1
            for numbers in self.numbers
            for v in numbers.values()
        ):
            alone = [[v.item() if isinstance(v, np.ndarray) else v for v in row] for row in rows]
            plain = np.array(alone, np.float64).T
            columns = {name: plain[i][:, None] for i, name in enumerate(NUMERIC)}
            self._check(plain[:, :, None])
            return columns
        columns = {}
        for name, values in zip(NUMERIC, zip(*rows, strict=True), strict=True):
            points = max(int(np.size(v)) for v in values)
            wide = [np.broadcast_to(np.asarray(v, np.float64), points) for v in values]
            columns[name] = np.stack(wide)
            self._check(columns[name][None], (name,))
        return columns

    def _check(self, values: Array, names: Sequence[str] = NUMERIC) -> None:
        """Refuse what is negative or not finite; values are (columns, rows, points)."""
        bad = ~(np.isfinite(values) & (values >= 0))
        if bad.any():
            column, row, _ = np.argwhere(bad)[0]
            raise WorkloadError(
                f"row '{self.names[row]}': {names[column]} = {values[bad][0]}: "
                "must be finite and >= 0"
            )


@dataclass(frozen=True)
class Phase:
    """A table that runs a number of times, one run after the other.

    Attributes:
        repeats: Runs, a number or one for each design point.
    """

    name: str
    table: OpTable
    repeats: Number = 1.0


def with_columns(table: OpTable, **columns: Array) -> OpTable:
    """Return a copy of a table with some numeric columns replaced."""
    return replace(table, columns={**table.columns, **columns})
