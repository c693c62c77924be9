"""Prices of iterations of 1, 2, ... tokens, of decodes or of prompts alone, by operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand, resource_rate
from opbyte.sim.analytic import block_paths, held, with_cells
from opbyte.sim.serving.prices.graph_table import DECODES, PROMPTS
from opbyte.sim.serving.prices.kinds import Key, Kind, Kinds
from opbyte.sim.serving.prices.layout import (
    B_BUSY,
    B_COMPUTE,
    B_FLOOR,
    B_LATENCY,
    BUSY,
    JOULES,
    SECONDS,
    TRAFFIC,
)
from opbyte.sim.serving.prices.probe import Pricer, components
from opbyte.sim.serving.prices.shapes import Shapes, longest
from opbyte.sim.serving.prices.tables import POINTS, USUAL
from opbyte.workloads.model import Model
from opbyte.workloads.routing import Routing


@dataclass(frozen=True)
class Names:
    """What all kinds of iterations have: resources, blocks, devices.

    Attributes:
        ports: Ports and links.
        units: Units.
        counts: How often each block runs, (blocks,).
        head: Which block is the LM head.
        cells: Of memories whose ports share them: their place among the ports, (memories,).
        shares: Seconds of such cells for a second of each port, (memories, ports).
    """

    ports: tuple[str, ...]
    units: tuple[str, ...]
    counts: Array
    head: int
    cells: npt.NDArray[np.int64]
    shares: Array

    @classmethod
    def of(cls, kinds: Kinds, machine: Machine) -> Names:
        """Return those of iterations, whose blocks are the same."""
        placed = [d.placed for kind in kinds.all for d in kind.demands]
        ports = tuple(dict.fromkeys(r for p in placed for r in p.resources))
        units = tuple(dict.fromkeys(u for p in placed for u in p.units))
        table = placed[0].table
        counts = np.bincount(table.order, minlength=len(table.blocks)).astype(np.float64)
        shares: dict[int, Array] = {}
        for one in placed:
            rates = np.array([_rate(machine, one, r) for r in range(len(one.resources))])
            for array in one.arrays:
                own = shares.setdefault(
                    ports.index(one.resources[array.resource]), np.zeros(len(ports))
                )
                for p in array.ports:
                    of_port = 1.0 if array.exclusive else rates[p] / rates[list(array.ports)].max()
                    own[ports.index(one.resources[p])] = of_port
        cells = np.array(list(shares), np.int64)
        weights = np.array(list(shares.values())).reshape(-1, len(ports))
        return cls(ports, units, counts, table.blocks.index("head"), cells, weights)

    @property
    def resources(self) -> tuple[str, ...]:
        """Return ports and links, then units."""
        return (*self.ports, *self.units)

    def components(self, demand: Demand, op: int, machine: Machine, *, called: bool) -> Array:
        """Return `probe.components` of an operator, over all ports, (2 + ports, points).

        Cells that ports share are left out: they follow from the ports, also in iterations that
        use but one of them.
        """
        values = components(demand, op, machine, called=called)
        found = np.zeros((2 + len(self.ports), values.shape[1]))
        found[:2] = values[:2]
        found[[2 + self.ports.index(r) for r in demand.placed.resources]] = values[2:]
        found[2 + self.cells] = 0.0
        return found


@dataclass(frozen=True)
class Sweep:
    """Prices over 1, 2, ... tokens, none at index 0.

    Attributes:
        blocks: Path, joules, busy seconds and traffic of one run of each block, without operators
            that depend on the pieces but in its path, (blocks, points + 1, columns).
        columns: Operator of all tokens -> its column of `durations`.
        durations: As in `GraphTable`, (points + 1, operators).
        base: Operator that depends on the pieces -> latency, floor, compute, joules and busy
            seconds of each port, nothing taken off, (points + 1, 4 + ports).
        shapes: What was priced.
    """

    blocks: Array
    columns: dict[Key, int]
    durations: Array
    base: dict[Key, Array]
    shapes: tuple[Shapes, ...]

    def features(self, mask: tuple[int, int], *, decodes: bool) -> Array:
        """Return `FEATURES` under a mask, of operators of decodes or of others."""
        each = [s.of_decodes(*mask) if decodes else s.features(*mask) for s in self.shapes]
        return np.concatenate(each, axis=1)


def swept(
    price: Pricer,
    machine: Machine,
    model: Model,
    routing: Routing,
    kind: Kind,
    names: Names,
    called: dict[Key, bool],
    most: int,
) -> Sweep:
    """Return the prices of 1 to `most` tokens.

    Args:
        kind: Iterations of decodes, or of prompts, alone.
        called: Operators that depend on the pieces, and whether they are calls of kernels.
    """
    parts = []
    for shapes in _shapes(model, kind.whose, most):
        demand = price(shapes.work(model, routing))
        keys = kind.keyed(demand.placed)
        parts.append((shapes, *_part(demand, keys, machine, names, called)))

    def padded(arrays: Sequence[Array]) -> Array:
        """Return arrays (.., points, columns) as one, with nothing for 0 tokens."""
        joined = np.concatenate(arrays, axis=-2)
        return np.pad(joined, [(0, 0)] * (joined.ndim - 2) + [(1, 0), (0, 0)])

    return Sweep(
        padded([p[1] for p in parts]),
        parts[0][2],
        padded([p[3] for p in parts]),
        {key: padded([p[4][key] for p in parts]) for key in parts[0][4]},
        tuple(p[0] for p in parts),
    )


def _shapes(model: Model, whose: int, most: int) -> list[Shapes]:
    """Return iterations of 1 to `most` tokens: decodes, or prompts each with a token of past."""
    found, top = [], longest(model) - 1
    step = POINTS if whose == DECODES else min(POINTS, top)
    first = 1
    while first <= most:
        # As many pieces for all points of an array.
        pieces = -(-first // top) if whose == PROMPTS else 0
        last = min(first + step - 1, most, pieces * top if pieces else most)
        tokens = np.arange(first, last + 1, dtype=np.float64)
        if pieces:
            new = np.full((pieces, len(tokens)), float(top))
            new[-1] = tokens - top * (pieces - 1.0)
            none = np.zeros(len(tokens))
            found.append(Shapes(new, np.ones_like(new), none, none))
        else:
            none = np.zeros((0, len(tokens)))
            found.append(Shapes(none, none, tokens, tokens * float(min(USUAL, top + 1))))
        first = last + 1
    return found


def _part(
    demand: Demand, keys: dict[Key, int], machine: Machine, names: Names, called: dict[Key, bool]
) -> tuple[Array, dict[Key, int], Array, dict[Key, Array]]:
    """Return blocks, columns, durations and base of one array of points."""
    placed, duration = demand.placed, demand.duration
    mine = {key: op for key, op in keys.items() if key in called}
    plain = np.ones(len(placed), bool)
    plain[list(mine.values())] = False
    blocks = _summed(demand, plain, names)
    blocks[:, :, SECONDS] = with_cells(demand, block_paths(demand, duration))
    layers = sorted({key[0] for key in called})
    kept = [key for key in keys if key[0] in layers and key not in called]
    durations = np.stack([duration[keys[key]] for key in kept], axis=1)
    base = {}
    for key, op in mine.items():
        row = np.zeros((duration.shape[1], B_BUSY + len(names.ports)))
        row[:, B_LATENCY], row[:, B_FLOOR] = demand.latency[op], demand.floor[op]
        row[:, B_COMPUTE:] = names.components(demand, op, machine, called=called[key]).T
        base[key] = row
    return blocks, {key: i for i, key in enumerate(kept)}, durations, base


def _summed(demand: Demand, plain: npt.NDArray[np.bool_], names: Names) -> Array:
    """Return joules, busy seconds and traffic of each block, (blocks, points, columns).

    Args:
        plain: Operators that count, all but for traffic, (ops,).
    """
    placed, duration = demand.placed, demand.duration
    copies = placed.copies[:, None]
    resources = names.resources
    summed = np.zeros((len(names.counts), duration.shape[1], BUSY + len(resources) + len(TRAFFIC)))
    columns = [(JOULES, copies * demand.joules)]
    columns += [(BUSY + resources.index(r), s) for r, s in held(demand, duration)]
    for column, values in columns:
        counted = np.where(plain[:, None], values, 0.0)
        np.add.at(summed[:, :, column], placed.block_of, counted)
    ports = summed[:, :, BUSY : BUSY + len(names.ports)]
    summed[:, :, BUSY + names.cells] = ports @ names.shares.T
    for (name, _cause), moved in demand.moved.items():
        if name in TRAFFIC:
            column = BUSY + len(resources) + TRAFFIC.index(name)
            np.add.at(summed[:, :, column], placed.block_of, copies * moved)
    return summed


def _rate(machine: Machine, placed: PlacedOps, r: int) -> float:
    """Return the rate of a resource for one device, 0 for cells, which no byte crosses."""
    if r in {array.resource for array in placed.arrays}:
        return 0.0
    return float(np.max(resource_rate(machine, placed.resources[r], placed.instances[r])))
