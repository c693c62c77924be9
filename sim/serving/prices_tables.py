"""Tables over the tokens and sequences of an iteration, from prices of whole arrays of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array
from opbyte.hw_models.compute.gpu import attention
from opbyte.hw_models.compute.gpu.calls import AttentionCall
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand
from opbyte.sim.analytic import block_paths, held, slack
from opbyte.sim.serving.prices_probe import USUAL, Pricer, Shapes, components, longest
from opbyte.sim.serving.step_table import (
    B_AROUND,
    B_BESIDE,
    B_BUSY,
    B_COMPUTE,
    B_FLOOR,
    B_JOULES,
    B_LATENCY,
    BUSY,
    FEATURES,
    JOULES,
    SECONDS,
    StepTable,
)
from opbyte.workloads.model import Model
from opbyte.workloads.routing import Routing

#: Numbers of tokens that are priced at once: their columns together stay in a core's cache.
POINTS = 2048


@dataclass(frozen=True)
class Piecewise:
    """An operator that depends on the pieces of an iteration.

    Attributes:
        op: Its number among the placed operators.
        mask: Window and chunk of its attention, 0 without.
        slopes: Over FEATURES, (2 + ports, FEATURES).
        call: The attention kernel that it is, None where slopes say it all.
        crowd: Devices that one unit serves.
        home: Port that is busy no longer than the kernel, empty without one.
        efficiency: Of that port.
    """

    op: int
    mask: tuple[int, int]
    slopes: Array
    call: AttentionCall | None
    crowd: float
    home: str
    efficiency: float


@dataclass(frozen=True)
class Swept:
    """Prices over 1, 2, ... tokens, which are as many sequences too.

    Attributes:
        resources: Ports and links, then units.
        ports: How many of the resources are ports and links.
        copies: Devices that each draw the joules of one.
        fixed, head: Columns of `StepTable`, (points + 1, 2 + resources).
        base: As in `StepTable`, (operators, points + 1, 6 + ports).
        counts: Runs of each operator that depends on the pieces, (operators,).
        unit: Its unit among the resources, (operators,).
    """

    resources: tuple[str, ...]
    ports: int
    copies: float
    fixed: Array
    head: Array
    base: Array
    counts: Array
    unit: npt.NDArray[np.int64]


def sweep(
    price: Pricer,
    machine: Machine,
    model: Model,
    routing: Routing,
    pieces: Sequence[Piecewise],
    most: int,
) -> Swept:
    """Return the prices of 1 to `most` decoding sequences, each of equal context."""
    parts = []
    for first in range(1, most + 1, POINTS):
        tokens = np.arange(first, min(first + POINTS, most + 1), dtype=np.float64)
        none = np.zeros((0, len(tokens)))
        shapes = Shapes(none, none, tokens, tokens * float(min(USUAL, longest(model))))
        parts.append(_part(price(shapes.work(model, routing)), machine, shapes, pieces))
    one = parts[0]
    fixed, head = (np.concatenate([getattr(p, n) for p in parts]) for n in ("fixed", "head"))
    base = np.concatenate([p.base for p in parts], axis=1)
    # Nothing has 0 tokens; an index is a number of tokens.
    return Swept(
        one.resources,
        one.ports,
        one.copies,
        np.pad(fixed, ((1, 0), (0, 0))),
        np.pad(head, ((1, 0), (0, 0))),
        np.pad(base, ((0, 0), (1, 0), (0, 0))),
        one.counts,
        one.unit,
    )


def _part(demand: Demand, machine: Machine, shapes: Shapes, pieces: Sequence[Piecewise]) -> Swept:
    """Return one array of points, its first not padded."""
    placed, duration = demand.placed, demand.duration
    table = placed.table
    counts = np.bincount(table.order, minlength=len(table.blocks)).astype(np.float64)
    ops = np.array([p.op for p in pieces], np.int64)
    blocks = placed.block_of[ops]
    heads = np.array([name == "head" for name in table.blocks])
    rest = ~heads
    rest[blocks] = False
    alone = np.ones(len(placed), bool)
    alone[ops] = False
    in_head = heads[placed.block_of]
    copies = float(placed.devices)
    columns = (block_paths(demand, duration), held(demand, duration), counts, copies)
    fixed = _summed(demand, *columns, rest, alone & ~in_head)
    head = _summed(demand, *columns, heads, in_head)
    # Paths without the operator, and around it.
    without = duration.copy()
    without[ops] = -np.inf
    beside = block_paths(demand, without)[blocks]
    before, after = slack(demand)
    ports = len(placed.resources)
    base = np.zeros((len(ops), duration.shape[1], B_BUSY + ports))
    for i, piece in enumerate(pieces):
        op, mine = piece.op, base[i].T
        mine[B_BESIDE], mine[B_AROUND] = beside[i], before[op] + after[op]
        mine[B_LATENCY], mine[B_FLOOR] = demand.latency[op], demand.floor[op]
        values = components(demand, op, machine, called=piece.call is not None)
        mine[B_COMPUTE:] = values - piece.slopes @ shapes.features(*piece.mask)
        mine[B_JOULES] *= copies
    resources = (*placed.resources, *placed.units)
    return Swept(
        resources, ports, copies, fixed, head, base, counts[blocks], ports + placed.unit_of[ops]
    )


def _summed(
    demand: Demand,
    paths: Array,
    held_by: list[tuple[str, Array]],
    counts: Array,
    copies: float,
    blocks: npt.NDArray[np.bool_],
    ops: npt.NDArray[np.bool_],
) -> Array:
    """Return path, joules and busy seconds of some blocks and operators, (points, columns)."""
    runs = (counts[demand.placed.block_of] * ops)[:, None]
    summed = np.zeros((paths.shape[1], BUSY + len(held_by)))
    summed[:, SECONDS] = ((counts * blocks)[:, None] * paths).sum(axis=0)
    summed[:, JOULES] = copies * (runs * np.where(ops[:, None], demand.joules, 0.0)).sum(axis=0)
    for r, (_, seconds) in enumerate(held_by):
        summed[:, BUSY + r] = (runs * seconds).sum(axis=0)
    return summed


def table_of(
    swept: Swept, pieces: Sequence[Piecewise], most: tuple[int, int], host: float
) -> StepTable:
    """Return the table of at most so many tokens and sequences."""
    tokens, sequences = most
    spans, span_of = _spans(pieces)
    called = [p.call for p in spans if p.call is not None]
    columns = called[0].sizes.shape[2] if called else attention.COLUMNS
    rows = np.zeros((len(spans), sequences + 1, columns))
    facts = np.zeros((len(spans), called[0].facts.shape[1] if called else 1))
    for s, piece in enumerate(spans):
        if piece.call is not None:
            rows[s] = piece.call.sizes[0, 0]
            facts[s] = piece.call.facts[0]
    ports = swept.resources[: swept.ports]
    slopes = np.zeros((len(pieces), 2 + swept.ports, len(FEATURES)))
    for i, piece in enumerate(pieces):
        slopes[i] = piece.slopes
    slopes[:, B_JOULES - B_COMPUTE] *= swept.copies
    return StepTable(
        fixed=np.ascontiguousarray(swept.fixed[: tokens + 1]),
        head=np.ascontiguousarray(swept.head[: sequences + 1]),
        base=np.ascontiguousarray(swept.base[:, : tokens + 1]),
        slopes=slopes,
        counts=swept.counts,
        unit=swept.unit,
        span=np.array(span_of, np.int64),
        home=np.array([ports.index(p.home) if p.home in ports else -1 for p in pieces], np.int64),
        efficiency=np.array([p.efficiency for p in pieces], np.float64),
        spans=np.array([p.mask for p in spans], np.float64).reshape(-1, 2),
        crowd=np.array([p.crowd if p.call is not None else 0.0 for p in spans], np.float64),
        rows=rows,
        facts=facts,
        rules=called[0].rules if called else np.zeros(1),
        tiles=called[0].tiles if called else np.zeros((1, 1)),
        host=host,
        features=np.zeros((len(spans), len(FEATURES) + 1)),
        seconds=np.zeros(sequences + 1),
        busy=np.zeros(len(swept.resources)),
    )


def _spans(pieces: Sequence[Piecewise]) -> tuple[list[Piecewise], list[int]]:
    """Return an operator for each distinct attention, and which of them each operator has."""
    keys: dict[tuple[object, ...], int] = {}
    distinct: list[Piecewise] = []
    span_of: list[int] = []
    for piece in pieces:
        key: tuple[object, ...] = piece.mask
        if piece.call is not None:
            constant = piece.call.sizes[0, 0].copy()
            varied = [attention.SEQUENCES, attention.NEW, attention.READS, attention.PAIRS]
            constant[varied] = 0.0
            key = (*key, piece.crowd, constant.tobytes(), piece.call.facts.tobytes())
        if key not in keys:
            keys[key] = len(distinct)
            distinct.append(piece)
        span_of.append(keys[key])
    return distinct, span_of
