"""PlacedOps: an OpTable after mapping, which is what hardware prices."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from opbyte.core.kv_select import KvSelect
from opbyte.core.mapping_file import Einsums
from opbyte.core.ops import Array, OpTable

#: What moves, by the column of `PlacedOps.moved`. `internal` stays on the chip of its unit.
MOVED = (
    "weight",
    "expert",
    "kv_read",
    "kv_write",
    "state_read",
    "state_write",
    "activation",
    "internal",
)


#: Ending of the name of a full-duplex link's other direction, from its second end to its first.
BACK = ".back"


def written_name(resource: str) -> str:
    """Return the short path under which a machine gives a resource's parameters."""
    return resource.removesuffix(BACK)


@dataclass(frozen=True)
class Transfer:
    """A copy from the memory of one group of devices to that of another.

    Attributes:
        op: Its operator, which is one row of the table.
        source, target: Resources: the ports that are read and written.
        links: Resources in between.
        shares: Of the payload, what one wire of each link carries.
        command: Seconds of the software that starts it, one way.
    """

    op: int
    source: int
    target: int
    links: tuple[int, ...]
    shares: tuple[float, ...]
    command: float = 0.0


@dataclass(frozen=True)
class SharedArray:
    """The cells of a memory, several ports of which are used.

    Attributes:
        resource: The resource that stands for them; no byte crosses it, but ports keep it busy.
        ports: Resources of the ports.
        exclusive: One port is served at a time; else they share the rate of the fastest.
    """

    resource: int
    ports: tuple[int, ...]
    exclusive: bool


@dataclass(frozen=True)
class Together:
    """Instances of a part that work as one device of a group.

    Attributes:
        span: Instances of the group's part in one part above.
        gathered: Parts above over which matrices are split by their outputs.
        guests: Devices of the group that share one part above.
        sets: Devices of the group.
    """

    span: int = 1
    gathered: int = 1
    guests: int = 1
    sets: int = 1


@dataclass(frozen=True)
class PlacedOps:
    """Fused operators, each on one unit, with the bytes that each must move.

    Attributes:
        table: The rows before fusion.
        op_of: Operator of each row, ascending, (rows,).
        block_of: Block of each operator, (ops,).
        names: Name of each operator: its rows' names.
        edges: (edges, 2) operators, source before destination, inside one block.
        units: Short paths of the units that are used; the first one starts collectives.
        unit_of: Index into `units` for each operator, -1 for a collective on its own, (ops,).
        resources: Short paths of the ports and links that data crosses.
        instances: Instances of each resource for each device of the group, at most 1; below 1 the
            devices share one, (resources,).
        moved: Compulsory bytes by `MOVED`, each (ops, 1 or points).
        live: Activation bytes that an operator must keep on the chip while its weights pass: its
            input, and the largest activation inside it; score matrices are streamed, never kept.
            (ops, 1 or points).
        routes: Share of each moved byte that crosses a resource, (units, MOVED, resources).
        collective_link: Resource of each row's collective, -1 for other rows, (rows,).
        launch: Launch mode.
        crowd: Devices that share one instance of each unit, at least 1, (units,).
        copies: Devices of its stage that run each operator alike, (ops,).
        sharers: Devices of a stage that use each resource alike, (resources,).
        network: Resource that collectives of devices in several nodes cross beside, -1 for none.
        local: Devices of one node.
        direct: Small all-reduces are kernels of the serving software, not a library's.
        span: Instances of each unit that a device of the group has, (units,).
        together: What a device of the group is made of.
        artifact: Simulator whose conventions are reproduced, None for physical values.
        transfers: Copies between groups of devices.
        arrays: Memories of which several ports are used and share the cells.
        runs: 1 where an operator runs; an operator that may run on several units has one for each,
            of which those that are not chosen are 0. (ops, 1 or points).
        head_overlap: Heads follow each other through the groups.
        dependency: Heads follow each other through the units of a device.
        pages: Bytes that lie together of each class that lies in pages at random places, by
            (unit, column of `MOVED`).
        einsums: How fused attention is mapped on a spatial array.
        kv_select: Cached tokens that decode attention is exact on; None for all.
        kv_copies: How often keys and values are stored. The second copy of keys lies by channel.
        left: Whether the next layer does not wait for an operator, (ops,); None where it does.
        ways: Of units and links that keep so many bytes under way: share and resources of each tier
            of a class, by (unit, column of `MOVED`).
    """

    table: OpTable
    op_of: npt.NDArray[np.int64]
    block_of: npt.NDArray[np.int64]
    names: tuple[str, ...]
    edges: npt.NDArray[np.int64]
    units: tuple[str, ...]
    unit_of: npt.NDArray[np.int64]
    resources: tuple[str, ...]
    instances: Array
    moved: dict[str, Array]
    live: Array
    routes: Array
    collective_link: npt.NDArray[np.int64]
    launch: str
    crowd: Array
    copies: Array
    sharers: Array
    network: int = -1
    local: float = math.inf
    direct: bool = False
    transfers: tuple[Transfer, ...] = ()
    arrays: tuple[SharedArray, ...] = ()
    runs: Array | None = None
    span: Array | None = None
    together: Together = Together()
    artifact: str | None = None
    head_overlap: bool = False
    dependency: bool = False
    pages: dict[tuple[int, int], float] = field(default_factory=dict)
    einsums: Einsums | None = None
    kv_select: KvSelect | None = None
    kv_copies: tuple[int, int] = (1, 1)
    left: npt.NDArray[np.bool_] | None = None
    ways: dict[tuple[int, int], tuple[tuple[float, tuple[int, ...]], ...]] = field(
        default_factory=dict
    )

    def __len__(self) -> int:
        """Return the number of fused operators."""
        return len(self.names)

    @property
    def behind(self) -> npt.NDArray[np.bool_]:
        """Return whether the next layer does not wait for an operator, (ops,)."""
        return np.zeros(len(self), bool) if self.left is None else self.left

    @property
    def spans(self) -> Array:
        """Return the instances of each unit that a device of the group has, (units,)."""
        return np.ones(len(self.units)) if self.span is None else self.span

    @property
    def repeats(self) -> npt.NDArray[np.int64]:
        """Return how often each operator runs, (ops,)."""
        counts = np.bincount(self.table.order, minlength=len(self.table.blocks))
        return counts[self.block_of]

    @property
    def executions(self) -> Array:
        """Return how often each operator runs where it was chosen, (ops, 1 or points)."""
        counts: Array = self.repeats[:, None].astype(np.float64)
        return counts if self.runs is None else counts * self.runs

    @property
    def held_unit(self) -> npt.NDArray[np.int64]:
        """Return the unit of each operator, -1 also where it was not chosen, (ops,)."""
        return self.unit_of if self.runs is None else np.where(self.runs.any(1), self.unit_of, -1)

    def single(self, ops: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the rows of those operators that consist of one row."""
        starts = np.searchsorted(self.op_of, np.arange(len(self) + 1))
        rows: npt.NDArray[np.int64] = starts[:-1][ops][np.diff(starts)[ops] == 1]
        return rows

    def per_op(self, rows: Array) -> Array:
        """Return row values summed over each operator's rows, (ops, 1 or points)."""
        return reduced(rows, np.searchsorted(self.op_of, np.arange(len(self))))


#: Columns from which whole rows are added one by one, which `reduceat` does slowly.
_WIDE = 256


def reduced(rows: Array, starts: npt.NDArray[np.int64], ufunc: np.ufunc = np.add) -> Array:
    """Return the sums (or what the ufunc makes) of rows from each start to the next."""
    if rows.shape[1] < _WIDE:
        total: Array = ufunc.reduceat(rows, starts, axis=0)
        return total
    sums = np.empty((len(starts), rows.shape[1]))
    ends = [*starts[1:], len(rows)]
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if end - start == 1:
            sums[i] = rows[start]
        else:
            ufunc.reduce(rows[start:end], axis=0, out=sums[i])
    return sums
