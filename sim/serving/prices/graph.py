"""Prices of iterations whose prompts and decodes have operators of their own, as a table.

Three kinds of iterations are probed: decodes alone, prompts alone, both. An operator of decodes
is priced for every number of them, one of prompts for every number of their tokens, all others for
every number of tokens. The graphs of the kinds say how layers go through them (`graph_table`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.gpu import attention
from opbyte.hw_models.compute.gpu.calls import AttentionCall
from opbyte.hw_models.machine import Machine
from opbyte.sim.serving.prices.graph_sweeps import Names, Sweep, swept
from opbyte.sim.serving.prices.graph_table import (
    ALL,
    DECODES,
    MEAN,
    OTHERS,
    PROMPTS,
    GraphTable,
)
from opbyte.sim.serving.prices.kinds import Key, Kind, Kinds
from opbyte.sim.serving.prices.layout import B_COMPUTE, B_JOULES, BUSY, FEATURES, SECONDS
from opbyte.sim.serving.prices.operators import call_of, mask_of
from opbyte.sim.serving.prices.probe import EQUAL, SHAPES, Pricer, fitted
from opbyte.workloads.model import Model
from opbyte.workloads.routing import Routing

Integers = npt.NDArray[np.int64]

#: Which of `FEATURES` the slopes of an operator of all tokens, prompts or decodes multiply.
_USED = {ALL: tuple(range(len(FEATURES))), PROMPTS: (0, 1, 2, 6, 7, 8), DECODES: (3,)}


def has_graphs(mapping: SoftwareMapping) -> bool:
    """Return whether prompts and decodes run in different places."""
    words = {"prefill", "decode", "attention_prefill", "attention_decode"}
    apart = any(words & set(rule.ops) for rule in mapping.run) and len(mapping.run) > 1
    return mapping.attention is not None or apart


@dataclass(frozen=True)
class Operator:
    """An operator that depends on the pieces.

    Attributes:
        key: Its block, names, and whose it is.
        copies: Devices that run it alike.
        unit: Short path of its unit, empty for a transfer.
        mask: Window and chunk of its attention, 0 without.
        slopes: Over FEATURES, (2 + ports, FEATURES).
        call: The attention kernel that it is, None where slopes say it all.
        crowd: Devices that one unit serves.
        home, efficiency: Port that is busy no longer than the kernel.
        past: Latency that it has only where a prompt has a past, seconds.
    """

    key: Key
    copies: float
    unit: str
    mask: tuple[int, int]
    slopes: Array
    call: AttentionCall | None
    crowd: float
    home: str
    efficiency: float
    past: float

    @property
    def whose(self) -> int:
        """Return ALL, PROMPTS or DECODES."""
        return self.key[2]


@dataclass(frozen=True)
class Graphs:
    """A table, and what it was made of.

    Attributes:
        layers: Block of each of the table's layers.
        nodes: Of each kind of iterations: operator -> its node.
    """

    table: GraphTable
    names: Names
    kinds: Kinds
    sweeps: tuple[Sweep, Sweep]
    layers: tuple[int, ...]
    nodes: tuple[dict[int, int], ...]


def graph_table(
    price: Pricer,
    machine: Machine,
    model: Model,
    routing: Routing,
    most: tuple[int, int],
    host: float,
    turns: tuple[int, Callable[[str], float]],
) -> Graphs:
    """Return the table, and what it was made of.

    Args:
        price: Prices one batch.
        most: Tokens and sequences at most.
        turns: Batches that take turns, and the instances of a resource that they share.
    Raises:
        UncoveredError: If operators come and go otherwise than with prompts or decodes.
    """
    kinds = Kinds.of(price, model, routing)
    names = Names.of(kinds, machine)
    operators = [_operator(kinds, names, machine, model, key) for key in kinds.varying()]
    called = {op.key: op.call is not None for op in operators}
    with_decodes, alone = (
        swept(price, machine, model, routing, kind, names, called, largest)
        for kind, largest in ((kinds.decodes, max(most)), (kinds.prompts, most[0]))
    )
    base = [_base(op, alone if op.whose == PROMPTS else with_decodes, most[0]) for op in operators]
    sweeps = with_decodes, alone
    layers = sorted({op.key[0] for op in operators})
    graphs = [
        _graph(kind, operators, layers, sweep)
        for kind, sweep in zip(kinds.all, (with_decodes, alone, with_decodes), strict=True)
    ]
    table = _table(graphs, names, operators, sweeps, np.array(base), most, host, turns)
    return Graphs(table, names, kinds, sweeps, tuple(layers), tuple(g[2] for g in graphs))


def _operator(kinds: Kinds, names: Names, machine: Machine, model: Model, key: Key) -> Operator:
    """Return how an operator depends on the pieces."""
    placed, whose = kinds.both.demands[0].placed, key[2]
    op = kinds.both.keys[0][key]
    unit = placed.units[placed.unit_of[op]] if placed.unit_of[op] >= 0 else ""
    call: AttentionCall | None = None
    home, crowd = "", 1.0
    if unit:
        call, home = call_of(placed, op, UnitView(machine, unit))
        crowd = float(placed.crowd[placed.unit_of[op]])
    mask = mask_of(placed, key[0], model)
    of = {ALL: (kinds.decodes, kinds.both), PROMPTS: (kinds.prompts,), DECODES: (kinds.decodes,)}
    features, values, groups = [], [], []
    for kind in of[whose]:
        for shapes, demand, known in zip(kind.shapes, kind.demands, kind.keys, strict=True):
            features.append(
                shapes.of_decodes(*mask) if whose == DECODES else shapes.features(*mask)
            )
            values.append(names.components(demand, known[key], machine, called=call is not None))
            groups.append(np.full(SHAPES, shapes.tokens[0]))
    used = list(_USED[whose])
    if whose == DECODES and unit and machine.unit(unit).config.kind == "csd_engine":
        # Heads follow each other through its stages: a part of the time is that of one of them.
        used.append(MEAN)
    tokens = np.concatenate(groups)
    constants = (tokens == np.unique(tokens)[:, None]).astype(np.float64)
    slopes = np.zeros((len(values[0]), len(FEATURES)))
    slopes[:, used] = fitted(
        np.concatenate(features, axis=1)[used], np.concatenate(values, axis=1), constants
    )
    if whose != ALL:
        slopes[:, OTHERS] = _others(kinds, names, machine, key, called=call is not None)
    efficiency = machine.values.get(f"{home}.efficiency", 1.0) if home else 1.0
    past = _past_latency(kinds, key) if whose == PROMPTS else 0.0
    copies = float(placed.copies[op])
    return Operator(key, copies, unit, mask, slopes, call, crowd, home, efficiency, past)


def _others(kinds: Kinds, names: Names, machine: Machine, key: Key, *, called: bool) -> Array:
    """Return what a token of the others costs an operator of prompts or decodes, (2 + ports,).

    One that reads an activation of all tokens reads theirs too.
    """
    alone, whole = kinds.beside[0 if key[2] == DECODES else 1], kinds.beside[2]
    one, both = (
        names.components(k.demands[0], k.keys[0][key], machine, called=called)[:, 0]
        for k in (alone, whole)
    )
    more = float(whole.shapes[0].tokens[0] - alone.shapes[0].tokens[0])
    return np.where(np.abs(both - one) > EQUAL * np.abs(both), (both - one) / more, 0.0)


def _past_latency(kinds: Kinds, key: Key) -> float:
    """Return what an operator of prompts waits longer where one of them has a past, seconds."""
    demand, shapes = kinds.prompts.demands[0], kinds.prompts.shapes[0]
    latency = demand.latency[kinds.prompts.keys[0][key]]
    has = shapes.past.any(axis=0)
    return float(latency[has].max() - latency[~has].max())


def _base(op: Operator, sweep: Sweep, most: int) -> Array:
    """Return the row of `GraphTable.base`, (most + 1, 4 + ports)."""
    row = sweep.base[op.key][: most + 1].copy()
    slopes = op.slopes.copy()
    if op.whose != ALL:
        slopes[:, OTHERS] = 0.0
    found = sweep.features(op.mask, decodes=op.whose == DECODES)
    row[1:, B_COMPUTE:] -= (slopes @ found[:, :most]).T
    row[:, B_JOULES] *= op.copies
    return row


def _table(
    graphs: Sequence[_Graph],
    names: Names,
    operators: Sequence[Operator],
    sweeps: tuple[Sweep, Sweep],
    base: Array,
    most: tuple[int, int],
    host: float,
    turns: tuple[int, Callable[[str], float]],
) -> GraphTable:
    tokens, sequences = most
    layers = sorted({op.key[0] for op in operators})
    spans, span_of = _spans(operators)
    calls = [s.call for s in spans if s.call is not None]
    rows = np.zeros((len(spans), sequences + 1, attention.COLUMNS))
    facts = np.zeros((len(spans), attention.FACTS))
    for s, span in enumerate(spans):
        if span.call is not None:
            rows[s], facts[s] = span.call.sizes[0, 0], span.call.facts[0]
    if any(c.rules.tolist() != calls[0].rules.tolist() for c in calls):
        raise UncoveredError(
            "no table of iteration prices: prompts and decodes attend with kernels of two "
            "libraries. price each iteration as `Mixed`"
        )
    tiles = calls[0].tiles if calls else np.zeros((1, 1))
    masks = sorted({s.mask for s in spans if any(s.mask)})
    ports = {name: i for i, name in enumerate(names.ports)}
    units = {name: len(ports) + i for i, name in enumerate(names.units)}
    facts_of = [
        (
            layers.index(op.key[0]), op.whose, units.get(op.unit, -1), s,
            ports.get(op.home, -1) if op.call is not None else -1, op.efficiency, op.past,
        )
        for op, s in zip(operators, span_of, strict=True)
    ]  # fmt: skip
    slopes = np.array([op.slopes for op in operators])
    slopes[:, B_JOULES - B_COMPUTE] *= np.array([[op.copies] for op in operators])
    width = max(len(s.columns) for s in sweeps)
    durations = np.zeros((2, tokens + 1, width))
    fixed = np.zeros((2, tokens + 1, sweeps[0].blocks.shape[2]))
    for i, sweep in enumerate(sweeps):
        durations[i, :, : len(sweep.columns)] = sweep.durations[: tokens + 1]
        fixed[i] = _fixed(sweep, names, layers)[: tokens + 1]
    starts, nodes, before = _joined(graphs)
    resources = len(names.resources)
    return GraphTable(
        fixed=fixed,
        head=np.ascontiguousarray(sweeps[0].blocks[names.head, : sequences + 1]),
        durations=durations,
        starts=starts,
        nodes=nodes,
        before=before,
        held=_held(sweeps, names, layers, tokens),
        runs=names.counts[layers],
        operators=np.array(facts_of, np.float64),
        base=np.ascontiguousarray(base),
        slopes=np.ascontiguousarray(slopes),
        spans=np.array(
            [
                (
                    *s.mask, s.crowd if s.call is not None else 0.0,
                    masks.index(s.mask) if s.mask in masks else -1, s.whose,
                )
                for s in spans
            ],
            np.float64,
        ),
        masks=np.array([(*mask, 0.0) for mask in masks]).reshape(-1, 3),
        rows=rows,
        facts=facts,
        rules=calls[0].rules if calls else np.zeros(1),
        tiles=tiles,
        host=host,
        memo=np.array([attention.new_memo(tiles) for _ in spans]),
        features=np.zeros((len(spans), len(FEATURES) + 1)),
        seconds=np.zeros(sequences + 1),
        busy=np.zeros(resources),
        used=np.zeros((len(layers), resources)),
        lasts=np.zeros(len(operators)),
        ends=np.zeros(len(nodes)),
        after=np.zeros(len(nodes)),
        layers=np.zeros(len(layers)),
        cells=names.cells,
        shares=names.shares,
        sums=np.zeros(len(names.cells)),
        turns=np.array([turns[1](name) for name in names.resources]),
        batches=turns[0],
    )  # fmt: skip


def _held(sweeps: tuple[Sweep, Sweep], names: Names, layers: Sequence[int], tokens: int) -> Array:
    """Return `GraphTable.held`, (2, layers, tokens + 1, resources)."""
    ports = slice(BUSY, BUSY + len(names.resources))
    return np.stack([s.blocks[list(layers), : tokens + 1, ports] for s in sweeps])


def _fixed(sweep: Sweep, names: Names, layers: Sequence[int]) -> Array:
    """Return `GraphTable.fixed` of one sweep, (points + 1, columns)."""
    times = names.counts.copy()
    times[names.head] = 0.0
    fixed: Array = np.tensordot(times, sweep.blocks, axes=1)
    times[list(layers)] = 0.0
    fixed[:, SECONDS] = times @ sweep.blocks[:, :, SECONDS]
    return fixed


#: Rows of `GraphTable.nodes` with edges counted from 0, nodes before each, operator -> node.
_Graph = tuple[list[list[int]], list[list[int]], dict[int, int]]


def _graph(kind: Kind, operators: Sequence[Operator], layers: list[int], sweep: Sweep) -> _Graph:
    """Return the graph of one kind of iterations, its nodes counted from 0."""
    number = {op.key: v for v, op in enumerate(operators)}
    placed, at = kind.demands[0].placed, dict[int, int]()
    nodes, before = list[list[int]](), list[list[int]]()
    for key, op in sorted(kind.keys[0].items(), key=lambda item: item[1]):
        if key[0] in layers:
            column = 0 if key in number else sweep.columns[key]
            at[op] = len(nodes)
            left = int(placed.behind[op])
            nodes.append([layers.index(key[0]), number.get(key, -1), column, left])
            before.append([at[int(s)] for s, t in placed.edges if t == op])
    return nodes, before, at


def _joined(graphs: Sequence[_Graph]) -> tuple[Integers, Integers, Integers]:
    """Return `GraphTable.starts`, `nodes` and `before`."""
    starts, rows, edges = [0], list[list[int]](), list[int]()
    for nodes, before, _ in graphs:
        for node, sources in zip(nodes, before, strict=True):
            rows.append([*node, len(edges)])
            edges += [starts[-1] + s for s in sources]
        starts.append(len(rows))
    rows.append([0, -1, 0, 0, len(edges)])
    return np.array(starts, np.int64), np.array(rows, np.int64), np.array(edges, np.int64)


def _spans(operators: Sequence[Operator]) -> tuple[list[Operator], list[int]]:
    """Return an operator for each distinct attention, and which of them each operator has."""
    keys: dict[tuple[object, ...], int] = {}
    distinct: list[Operator] = []
    span_of: list[int] = []
    for op in operators:
        key: tuple[object, ...] = (*op.mask, op.whose)
        if op.call is not None:
            constant = op.call.sizes[0, 0].copy()
            varied = [attention.SEQUENCES, attention.NEW, attention.READS, attention.PAIRS]
            constant[varied] = 0.0
            key = (*key, op.crowd, constant.tobytes(), op.call.facts.tobytes())
        if key not in keys:
            keys[key] = len(distinct)
            distinct.append(op)
        span_of.append(keys[key])
    return distinct, span_of
