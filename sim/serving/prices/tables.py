"""Tables over the tokens and sequences of an iteration, from prices of whole arrays of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.gpu import attention
from opbyte.hw_models.compute.gpu.calls import AttentionCall
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand
from opbyte.sim.analytic import block_paths, held
from opbyte.sim.serving.prices.layout import (
    AROUND,
    B_BUSY,
    B_COMPUTE,
    B_FLOOR,
    B_JOULES,
    B_LATENCY,
    BESIDE,
    BUSY,
    FEATURES,
    JOULES,
    LANE_FEATURES,
    SECONDS,
    TRAFFIC,
    StepTable,
)
from opbyte.sim.serving.prices.probe import Aligned, Key, Pricer, components
from opbyte.sim.serving.prices.shapes import Shapes, longest
from opbyte.workloads.model import Model
from opbyte.workloads.routing import Routing

#: Numbers of tokens that are priced at once: their columns together stay in a core's cache.
POINTS = 2048
#: Context at which they are, where the model allows it.
USUAL = 1024


@dataclass(frozen=True)
class Piecewise:
    """An operator of all segments of an iteration that depends on its pieces.

    Attributes:
        place: Its number among the operators that all iterations have (`Aligned.shared`).
        block: Its block.
        mask: Window and chunk of its attention, 0 without.
        slopes: Over FEATURES, (2 + ports, FEATURES).
        call: The attention kernel that it is, None where slopes say it all.
        crowd: Devices that one unit serves.
        home: Port that is busy no longer than the kernel, empty without one.
        efficiency: Of that port.
    """

    place: int
    block: int
    mask: tuple[int, int]
    slopes: Array
    call: AttentionCall | None
    crowd: float
    home: str
    efficiency: float


@dataclass(frozen=True)
class Lane:
    """An operator that a segment has of its own.

    Attributes:
        key: What it is; its phase says of which segments.
        unit: Its number among the units.
        latency: Seconds before anything streams.
        mask: Window and chunk of its attention, 0 without.
        slopes: Over LANE_FEATURES, (2 + ports, LANE_FEATURES).
    """

    key: Key
    unit: int
    latency: float
    mask: tuple[int, int]
    slopes: Array


@dataclass(frozen=True)
class Parts:
    """What depends on the pieces, by blocks in their order."""

    shared: Sequence[Piecewise]
    lanes: Sequence[Lane]

    @property
    def blocks(self) -> list[int]:
        """Return the blocks that have such an operator."""
        return sorted({p.block for p in self.shared} | {lane.key[0] for lane in self.lanes})


@dataclass(frozen=True)
class Swept:
    """Prices over 1, 2, ... tokens, which are as many sequences too.

    Attributes:
        resources: Ports and links, then units.
        ports: How many of the resources are ports and links.
        copies: Devices that each draw the joules of one.
        counts: How often each block runs, (blocks,).
        head: Which block is the LM head.
        unit: As in `StepTable`, (operators,).
        blocks: What is `fixed` in `StepTable`, of one run of each block,
            (blocks, points + 1, columns).
        paths, base: As in `StepTable`, (layers or operators, points + 1, ...).
    """

    resources: tuple[str, ...]
    ports: int
    copies: float
    counts: Array
    head: int
    unit: npt.NDArray[np.int64]
    blocks: Array
    paths: Array
    base: Array


@dataclass(frozen=True)
class ByBlock:
    """What a table says of each block on its own.

    Attributes:
        fixed: What is `fixed` in `StepTable`, of one run, (blocks, tokens + 1, columns).
        order: Blocks as they run: the embedding, layers, the LM head.
        paths: Blocks that `StepTable.paths` has, in its order.
    """

    fixed: Array
    order: npt.NDArray[np.int64]
    paths: npt.NDArray[np.int64]


def by_block(swept: Swept, parts: Parts, tokens: int, reference: PlacedOps) -> ByBlock:
    """Return what a table of so many tokens says of each block."""
    paths = np.array(parts.blocks, np.int64)
    return ByBlock(swept.blocks[:, : tokens + 1], reference.table.order, paths)


def sweep(
    price: Pricer,
    machine: Machine,
    model: Model,
    routing: Routing,
    reference: PlacedOps,
    parts: Parts,
    most: int,
) -> Swept:
    """Return the prices of 1 to `most` decoding sequences, each of equal context.

    Args:
        reference: Operators of an iteration with a piece and decodes.
    """
    found = []
    for first in range(1, most + 1, POINTS):
        tokens = np.arange(first, min(first + POINTS, most + 1), dtype=np.float64)
        none = np.zeros((0, len(tokens)))
        shapes = Shapes(none, none, tokens, tokens * float(min(USUAL, longest(model))))
        demand = price(shapes.work(model, routing))
        aligned = Aligned.of(demand.placed, reference)
        found.append(_part(demand, aligned, machine, shapes, parts))
    one = found[0]
    # Nothing has 0 tokens; an index is a number of tokens.
    blocks, paths, base = (
        np.pad(np.concatenate([getattr(f, n) for f in found], axis=1), ((0, 0), (1, 0), (0, 0)))
        for n in ("blocks", "paths", "base")
    )
    return replace(one, blocks=blocks, paths=paths, base=base)


def _part(
    demand: Demand, aligned: Aligned, machine: Machine, shapes: Shapes, parts: Parts
) -> Swept:
    """Return one array of points, its first not padded."""
    placed, duration = demand.placed, demand.duration
    table = placed.table
    counts = np.bincount(table.order, minlength=len(table.blocks)).astype(np.float64)
    shared = aligned.shared[[p.place for p in parts.shared]]
    ops = np.concatenate([shared, np.array([op for _, _, op in aligned.lanes], np.int64)])
    blocks = np.array(parts.blocks, np.int64)
    alone = np.ones(len(placed), bool)
    alone[ops] = False
    copies = float(placed.copies[0])
    fixed = _summed(demand, alone, np.setdiff1d(np.arange(len(counts)), blocks), copies)
    paths = np.empty((len(blocks), duration.shape[1], 2))
    # A path without these operators, and one through them that do not count.
    for column, nothing in ((BESIDE, -np.inf), (AROUND, 0.0)):
        without = duration.copy()
        without[ops] = nothing
        paths[:, :, column] = block_paths(demand, without)[blocks]
    ports = len(placed.resources)
    resources, unit = (*placed.resources, *placed.units), ports + placed.unit_of[shared]
    base = np.zeros((len(shared), duration.shape[1], B_BUSY + ports))
    for i, (op, piece) in enumerate(zip(shared, parts.shared, strict=True)):
        mine = base[i].T
        mine[B_LATENCY], mine[B_FLOOR] = demand.latency[op], demand.floor[op]
        values = components(demand, int(op), machine, called=piece.call is not None)
        mine[B_COMPUTE:] = values - piece.slopes @ shapes.features(*piece.mask)
        mine[B_JOULES] *= copies
    head = table.blocks.index("head")
    return Swept(resources, ports, copies, counts, head, unit, fixed, paths, base)


def _summed(
    demand: Demand, alone: npt.NDArray[np.bool_], rest: npt.NDArray[np.int64], copies: float
) -> Array:
    """Return path, joules, busy seconds and traffic of each block, (blocks, points, columns).

    Args:
        alone: Operators that count, all but for traffic, (ops,).
        rest: Blocks whose path counts.
    """
    placed, duration = demand.placed, demand.duration
    columns = [(JOULES, copies * demand.joules)]
    columns += [(BUSY + r, seconds) for r, (_, seconds) in enumerate(held(demand, duration))]
    points, busy = duration.shape[1], len(columns) - 1
    summed = np.zeros((len(placed.table.blocks), points, BUSY + busy + len(TRAFFIC)))
    summed[rest, :, SECONDS] = block_paths(demand, duration)[rest]
    for column, values in columns:
        counted = np.where(alone[:, None], values, 0.0)
        np.add.at(summed[:, :, column], placed.block_of, counted)
    for (name, _cause), moved in demand.moved.items():
        if name in TRAFFIC:
            column = BUSY + busy + TRAFFIC.index(name)
            np.add.at(summed[:, :, column], placed.block_of, copies * moved)
    return summed


def table_of(swept: Swept, parts: Parts, most: tuple[int, int], host: float) -> StepTable:
    """Return the table of at most so many tokens and sequences."""
    tokens, sequences = most
    pieces, blocks = parts.shared, parts.blocks
    spans, span_of = _spans(pieces)
    called = [p.call for p in spans if p.call is not None]
    columns = called[0].sizes.shape[2] if called else attention.COLUMNS
    rows = np.zeros((len(spans), sequences + 1, columns))
    facts = np.zeros((len(spans), called[0].facts.shape[1] if called else 1))
    for s, piece in enumerate(spans):
        if piece.call is not None:
            rows[s] = piece.call.sizes[0, 0]
            facts[s] = piece.call.facts[0]
    tiles = called[0].tiles if called else np.zeros((1, 1))
    ports = swept.resources[: swept.ports]
    body = np.delete(np.arange(len(swept.counts)), swept.head)
    fixed = np.tensordot(swept.counts[body], swept.blocks[body, : tokens + 1], axes=1)
    operators = [
        (blocks.index(p.block), u, s, ports.index(p.home) if p.home in ports else -1, p.efficiency)
        for p, u, s in zip(pieces, swept.unit, span_of, strict=True)
    ]
    found = {p.mask for p in pieces} | {x.mask for x in parts.lanes}
    masks = sorted(mask for mask in found if any(mask))
    attended = [
        (*p.mask, p.crowd if p.call is not None else 0.0, _row(masks, p.mask)) for p in spans
    ]
    return StepTable(
        fixed=np.ascontiguousarray(fixed),
        head=np.ascontiguousarray(swept.blocks[swept.head, : sequences + 1]),
        paths=np.ascontiguousarray(swept.paths[:, : tokens + 1]),
        runs=swept.counts[blocks],
        base=np.ascontiguousarray(swept.base[:, : tokens + 1]),
        slopes=_trimmed(_slopes([p.slopes for p in pieces], len(FEATURES), swept)),
        operators=np.array(operators, np.float64).reshape(-1, 5),
        spans=np.array(attended, np.float64).reshape(-1, 4),
        masks=np.array([(*mask, 0.0) for mask in masks]).reshape(-1, 3),
        rows=rows,
        facts=facts,
        rules=called[0].rules if called else np.zeros(1),
        tiles=tiles,
        lanes=_lanes(swept, parts.lanes, blocks, masks),
        host=host,
        memo=np.array([attention.new_memo(tiles) for _ in spans]).reshape(-1, len(tiles) + 1, 4),
        features=np.zeros((len(spans), len(FEATURES) + 1)),
        seconds=np.zeros(sequences + 1),
        busy=np.zeros(len(swept.resources) + len(blocks)),
    )


def _row(masks: Sequence[tuple[int, int]], mask: tuple[int, int]) -> int:
    """Return which of the masks one is, -1 for none of them."""
    return masks.index(mask) if mask in masks else -1


def _lanes(
    swept: Swept, lanes: Sequence[Lane], blocks: list[int], masks: Sequence[tuple[int, int]]
) -> Array:
    """Return the rows of `StepTable.lanes`."""
    columns = [
        (
            blocks.index(x.key[0]), swept.ports + x.unit, x.key[2] == "decode", x.latency,
            *x.mask, _row(masks, x.mask),
        )
        for x in lanes
    ]  # fmt: skip
    slopes = _slopes([x.slopes for x in lanes], len(LANE_FEATURES), swept)
    width = (2 + swept.ports) * len(LANE_FEATURES)
    first = np.array(columns, np.float64).reshape(-1, 7)
    return np.concatenate([first, slopes.reshape(-1, width)], axis=1)


def _slopes(found: Sequence[Array], features: int, swept: Swept) -> Array:
    """Return slopes of several operators, joules those of all devices."""
    slopes = np.array(found, np.float64).reshape(-1, 2 + swept.ports, features)
    slopes[:, B_JOULES - B_COMPUTE] *= swept.copies
    return slopes


def _trimmed(slopes: Array) -> Array:
    """Return slopes without the last features that none of them needs."""
    used = np.flatnonzero(slopes.any(axis=(0, 1)))
    return np.ascontiguousarray(slopes[:, :, : used.max(initial=0) + 1])


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
