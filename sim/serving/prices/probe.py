"""What of a serving iteration depends on its pieces, found by pricing iterations of equal tokens.

Iterations that have the same number of tokens differ in what looks at the cache, in the LM head,
and in operators that each piece has of its own (*lanes*: the scan of a state-space layer, attention
where nothing fuses it). What differs gets slopes over `step_table.FEATURES`, lanes over
`LANE_FEATURES`: exact where a price is linear in them, a least-squares fit where tiles pad keys or
queries.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand, resource_rate
from opbyte.sim.serving.prices.shapes import Shapes, drawn
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model import Model
from opbyte.workloads.routing import Routing

#: Tokens of iterations that are probed, and shapes with each number of pieces.
TOKENS = (1024, 256)
SHAPES = 24
#: Pieces of the shapes that are probed, the first of which tells operators apart.
PIECES = (1, 0, 2)
#: Prices that differ by less are equal.
EQUAL = 1e-11
_SEGMENT = re.compile(r"\.(prefill|decode)(\d+)(?=@|$)")

Pricer = Callable[[Mixed], Demand]
#: Block, names of rows, and of lanes the phase: an operator of any iteration.
Key = tuple[int, frozenset[str], str]


def keys(placed: PlacedOps, phase: str = "") -> list[tuple[Key, int]]:
    """Return each operator's key and segment, -1 for operators of all segments.

    Args:
        phase: Of the iteration's segments where there is but one, whose rows bear no number.
    """
    starts = np.searchsorted(placed.op_of, np.arange(len(placed) + 1))
    found: list[tuple[Key, int]] = []
    for op in range(len(placed)):
        names = placed.table.names[starts[op] : starts[op + 1]]
        matches = [_SEGMENT.search(name) for name in names]
        segments = {m.groups() if m else ("", "-1") for m in matches}
        plain = frozenset(_SEGMENT.sub("", name) for name in names)
        mine, number = segments.pop() if len(segments) == 1 else ("", "-1")
        found.append(((int(placed.block_of[op]), plain, mine or phase), int(number)))
    return found


@dataclass(frozen=True)
class Aligned:
    """Which operators of an iteration are whose.

    Attributes:
        shared: Operators of all segments, in one order for all iterations, (operators,).
        lanes: Key, segment and number of each operator of one segment.
    """

    shared: npt.NDArray[np.int64]
    lanes: list[tuple[Key, int, int]]

    @classmethod
    def of(cls, placed: PlacedOps, reference: PlacedOps) -> Aligned:
        """Align the operators of an iteration with those of one that has a piece and decodes.

        Raises:
            UncoveredError: If one has operators that the other lacks.
        """
        named = keys(reference)
        known = {key: i for i, (key, segment) in enumerate(named) if segment < 0}
        of_segments = {key for key, segment in named if segment >= 0}
        shared: dict[int, int] = {}
        lanes: list[tuple[Key, int, int]] = []
        alone = all(segment < 0 for _, segment in keys(placed))
        for op, (key, segment) in enumerate(keys(placed)):
            single = (*key[:2], "decode")
            if segment < 0 and key in known:
                shared[known[key]] = op
            elif segment < 0 and alone and single in of_segments:
                lanes.append((single, 0, op))
            elif segment >= 0 and key in of_segments:
                lanes.append((key, segment, op))
            else:
                raise UncoveredError(comes_and_goes(placed, op))
        if len(shared) < len(known):
            missing = next(i for i in known.values() if i not in shared)
            raise UncoveredError(comes_and_goes(reference, missing))
        return cls(np.array([shared[i] for i in sorted(shared)], np.int64), lanes)


def comes_and_goes(placed: PlacedOps, op: int) -> str:
    """Return why an operator that other iterations lack has no table."""
    name = placed.names[op]
    remedy = "a mapping that fuses it (fusion: attention or layer)"
    if "@" in name:
        remedy = "a mapping whose rule names one unit for it, not several to choose from"
    return (
        f"no table of iteration prices: operator '{name}' comes and goes with the pieces. use "
        f"{remedy}, or price each iteration as `Mixed`"
    )


@dataclass(frozen=True)
class Probe:
    """Prices of iterations with each of `TOKENS` tokens.

    Attributes:
        shapes: What was priced.
        demands: The price of each.
        aligned: The operators of each.
        tokens: Tokens of each.
    """

    shapes: tuple[Shapes, ...]
    demands: tuple[Demand, ...]
    aligned: tuple[Aligned, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, price: Pricer, model: Model, routing: Routing) -> Probe:
        """Price them.

        Raises:
            UncoveredError: If operators come and go with the pieces, other than lanes.
        """
        kinds = [(t, pieces) for t in TOKENS for pieces in PIECES]
        shapes = tuple(
            drawn(model, pieces, SHAPES, t, t, seed, full=True)
            for seed, (t, pieces) in enumerate(kinds)
        )
        demands = tuple(price(shape.work(model, routing)) for shape in shapes)
        aligned = tuple(Aligned.of(d.placed, demands[0].placed) for d in demands)
        return cls(shapes, demands, aligned, tuple(t for t, _ in kinds))

    @property
    def placed(self) -> PlacedOps:
        """Return the operators of an iteration with one piece and decodes."""
        return self.demands[0].placed

    def varying(self) -> list[int]:
        """Return the shared operators (by place), not the LM head's, that depend on the pieces."""
        own = self.placed
        ops = self.aligned[0].shared
        changes = np.zeros(len(ops), bool)
        for value in (_compute, _joules, lambda d: d.latency[:, None], lambda d: d.busy):
            for tokens in TOKENS:
                seen = np.concatenate(
                    [
                        value(d)[a.shared]
                        for d, a, t in zip(self.demands, self.aligned, self.tokens, strict=True)
                        if t == tokens
                    ],
                    axis=2,
                )
                least, most = seen.min(axis=2), seen.max(axis=2)
                changes |= (most - least > EQUAL * np.abs(most)).any(axis=1)
        blocks = own.table.blocks
        return [
            int(place)
            for place in np.flatnonzero(changes)
            if blocks[own.block_of[ops[place]]] != "head"
        ]

    def slopes(self, place: int, machine: Machine, mask: tuple[int, int], *, called: bool) -> Array:
        """Return an operator's slopes over FEATURES, (2 + ports, FEATURES): see `components`."""
        features = np.concatenate([s.features(*mask) for s in self.shapes], axis=1)
        values = [
            components(d, int(a.shared[place]), machine, called=called)
            for d, a in zip(self.demands, self.aligned, strict=True)
        ]
        tokens = np.repeat(self.tokens, SHAPES)
        constants = tokens == np.unique(tokens)[:, None]
        return fitted(features, np.concatenate(values, axis=1), constants.astype(np.float64))

    def lanes(self) -> list[tuple[Key, int]]:
        """Return each lane's key and its number among the operators of `placed`."""
        return [(key, op) for key, _, op in self.aligned[0].lanes]

    def lane_slopes(self, lane: Key, machine: Machine, mask: tuple[int, int]) -> Array:
        """Return a lane's slopes over LANE_FEATURES, (2 + ports, LANE_FEATURES)."""
        features, values = [], []
        for shape, demand, aligned in zip(self.shapes, self.demands, self.aligned, strict=True):
            for key, segment, op in aligned.lanes:
                if key == lane:
                    features.append(shape.segment(segment, *mask))
                    values.append(components(demand, op, machine, called=False))
        both = np.concatenate(features, axis=1), np.concatenate(values, axis=1)
        return fitted(*both, np.zeros((0, both[0].shape[1])))


def _compute(demand: Demand) -> Array:
    return np.stack([demand.compute, demand.floor], axis=1)


def _joules(demand: Demand) -> Array:
    return np.nan_to_num(demand.joules)[:, None]


def components(demand: Demand, op: int, machine: Machine, *, called: bool) -> Array:
    """Return compute, joules and each port's busy seconds of an operator, (2 + ports, points).

    Args:
        called: It is a kernel whose compute is not here, and what it waits inside itself neither.
    Raises:
        UncoveredError: If it is such a kernel and ports that it uses share the cells of a memory.
    """
    placed = demand.placed
    shared = [a for a in placed.arrays if demand.bytes[op, list(a.ports)].any()] if called else []
    if shared:
        cells = placed.resources[shared[0].resource]
        raise UncoveredError(
            f"no table of iteration prices: '{placed.names[op]}' is a kernel of a library, and "
            f"ports of '{cells}' share its cells. give the memory `sharing: {{rule: partition}}`, "
            "use one port, or price each iteration as `Mixed`"
        )
    busy = demand.busy[op]
    compute = demand.compute[op]
    if called:
        # No byte crosses cells.
        cells_of = {array.resource for array in placed.arrays}
        rates = [
            np.inf if r in cells_of else resource_rate(machine, name, placed.instances[r])
            for r, name in enumerate(placed.resources)
        ]
        busy = demand.bytes[op] / np.array(rates, np.float64)[:, None]
        compute = np.zeros_like(compute)
    return np.concatenate([compute[None], demand.joules[op][None], busy])


def fitted(features: Array, values: Array, constants: Array) -> Array:
    """Return slopes of values over features, least in relative error, (values, features).

    Args:
        features: (features, points).
        values: (values, points).
        constants: Further columns, whose slopes are not asked for, (columns, points).
    """
    scale = np.maximum(features.max(axis=1), 1.0)
    columns = np.concatenate([constants, features / scale[:, None]])
    slopes = np.zeros((len(values), len(features)))
    for i, value in enumerate(values):
        most = np.abs(value).max()
        still = len(constants) and value.max() - value.min() <= EQUAL * most
        if not np.isfinite(most) or most == 0.0 or still:
            continue
        weight = 1.0 / np.maximum(np.abs(value), 1e-6 * most)
        solved = np.linalg.lstsq((columns * weight).T, value * weight, rcond=1e-12)[0]
        solved = solved[len(constants) :]
        slopes[i] = np.where(np.abs(solved) > EQUAL * most, solved, 0.0) / scale
    return slopes
