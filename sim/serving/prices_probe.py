"""What of a serving iteration depends on its pieces, found by pricing iterations of equal tokens.

Iterations that have the same number of tokens differ in what looks at the cache and in the LM head
alone. An operator whose price differs between them gets slopes over `step_table.FEATURES`: exact
where its price is linear in them, a least-squares fit where tiles pad keys or queries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.price import Demand, resource_rate
from opbyte.sim.serving.step_table import FEATURES
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model import Model
from opbyte.workloads.routing import Routing
from opbyte.workloads.spans import Segment

#: Tokens of iterations that are probed, and shapes with each number of pieces.
TOKENS = (1024, 256)
SHAPES = 24
#: Longest context that is probed, and the one at which tables over tokens are made.
LONGEST = 32768
USUAL = 1024
#: Prices that differ by less are equal.
_EQUAL = 1e-11

Pricer = Callable[[Mixed], Demand]


@dataclass(frozen=True)
class Shapes:
    """Iterations with equally many pieces of prompts.

    Attributes:
        new: New tokens of each piece, (pieces, points).
        past: Past tokens of each piece, (pieces, points).
        decodes: Sequences that decode, above 0, (points,).
        context: Tokens that these attend to, summed, (points,).
    """

    new: Array
    past: Array
    decodes: Array
    context: Array

    def work(self, model: Model, routing: Routing) -> Mixed:
        """Return the iterations as a work of as many design points."""
        chunks = tuple(zip(self.new, self.past, strict=True))
        return Mixed(model, chunks, self.decodes, self.context / self.decodes, routing=routing)

    def features(self, window: int, chunk: int) -> Array:
        """Return `FEATURES` under a mask, (FEATURES, points)."""
        pieces = [Segment("prefill", 1.0, n, p) for n, p in zip(self.new, self.past, strict=True)]
        decode = Segment("decode", self.decodes, 1.0, self.context / self.decodes - 1.0)
        found = np.zeros((len(FEATURES), len(self.decodes)))
        for piece in pieces:
            found[0] += piece.pairs(window, chunk)
            found[1] += piece.reads(window, chunk)
        found[2] = len(pieces)
        found[3] = self.decodes * decode.pairs(window, chunk)
        found[4] = self.decodes
        found[5] = (self.decodes + self.new.sum(axis=0)) * (len(pieces) + 1)
        return found


def longest(model: Model) -> int:
    """Return the longest context that is probed."""
    return min(model.max_context or LONGEST, LONGEST)


def drawn(
    model: Model, pieces: int, count: int, tokens: int, sequences: int, seed: int, *, full: bool
) -> Shapes:
    """Return iterations; half of all sizes spread evenly, half over their logarithms.

    Args:
        pieces: Of each iteration.
        count: Iterations.
        tokens: Most tokens of an iteration, more than `pieces`.
        sequences: Most sequences of an iteration, more than `pieces`.
        full: All iterations have `tokens` tokens, whatever `sequences` is.
    """
    rng = np.random.default_rng(seed)
    top = longest(model)

    def sizes(most: Array) -> Array:
        most = np.maximum(most, 1.0) + 0.999
        by_logarithm = np.exp(rng.uniform(0.0, np.log(most)))
        return np.floor(np.where(rng.random(count) < 0.5, by_logarithm, rng.uniform(1.0, most)))

    left = np.full(count, tokens - 1.0)
    new, past = np.zeros((pieces, count)), np.zeros((pieces, count))
    for i in range(pieces):
        new[i] = sizes(np.minimum(left - (pieces - i - 1), top))
        past[i] = sizes(top - new[i] + 1.0) - 1.0
        left -= new[i]
    most = np.minimum(left, sequences - pieces - 1.0) + 1.0
    decodes = left + 1.0 if full else sizes(most)
    return Shapes(new, past, decodes, decodes * sizes(np.full(count, float(top))))


@dataclass(frozen=True)
class Probe:
    """Prices of iterations with each of `TOKENS` tokens.

    Attributes:
        shapes: What was priced.
        demands: The price of each.
        tokens: Tokens of each.
    """

    shapes: tuple[Shapes, ...]
    demands: tuple[Demand, ...]
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, price: Pricer, model: Model, routing: Routing) -> Probe:
        """Price them.

        Raises:
            UncoveredError: If operators come and go with the pieces.
        """
        tokens = tuple(t for t in TOKENS for _ in range(3))
        shapes = tuple(
            drawn(model, pieces % 3, SHAPES, t, t, pieces, full=True)
            for pieces, t in enumerate(tokens)
        )
        demands = tuple(price(shape.work(model, routing)) for shape in shapes)
        first = demands[0].placed
        for demand in demands:
            if not np.array_equal(demand.placed.block_of, first.block_of):
                raise UncoveredError(
                    f"{model.name}: operators of their own for each piece of a prompt have no "
                    f"table of prices ({', '.join(_others(demands))}). use a mapping that fuses "
                    "them (fusion: attention or layer), or price each iteration as `Mixed`"
                )
        return cls(shapes, demands, tokens)

    def varying(self) -> list[int]:
        """Return the operators, the LM head's apart, whose price depends on the pieces.

        Raises:
            UncoveredError: If one block has several.
        """
        placed = self.demands[0].placed
        changes = np.zeros(len(placed), bool)
        for value in (_compute, _joules, lambda d: d.latency[:, None], lambda d: d.busy):
            for tokens in TOKENS:
                of = [d for d, t in zip(self.demands, self.tokens, strict=True) if t == tokens]
                seen = np.concatenate([value(d) for d in of], axis=2)
                least, most = seen.min(axis=2), seen.max(axis=2)
                changes |= (most - least > _EQUAL * np.abs(most)).any(axis=1)
        found = [int(op) for op in np.flatnonzero(changes)]
        found = [op for op in found if placed.table.blocks[placed.block_of[op]] != "head"]
        blocks = [int(placed.block_of[op]) for op in found]
        for block in set(blocks):
            if blocks.count(block) > 1:
                names = [placed.names[op] for op in found if placed.block_of[op] == block]
                raise UncoveredError(
                    f"{placed.table.blocks[block]}: a table of prices has one operator that "
                    f"depends on the pieces in each layer, and here are {', '.join(names)}. use a "
                    "mapping that fuses them (fusion: attention or layer), or price each iteration "
                    "as `Mixed`"
                )
        return found

    def slopes(self, op: int, machine: Machine, mask: tuple[int, int], *, called: bool) -> Array:
        """Return an operator's slopes over FEATURES, (2 + ports, FEATURES): see `components`."""
        features = np.concatenate([s.features(*mask) for s in self.shapes], axis=1)
        values = [components(d, op, machine, called=called) for d in self.demands]
        tokens = np.repeat(self.tokens, SHAPES)
        return fitted(features, np.concatenate(values, axis=1), tokens)


def _compute(demand: Demand) -> Array:
    return np.stack([demand.compute, demand.floor], axis=1)


def _joules(demand: Demand) -> Array:
    return np.nan_to_num(demand.joules)[:, None]


def _others(demands: Sequence[Demand]) -> list[str]:
    """Return operators that not all of the demands have."""
    named = [set(d.placed.names) for d in demands]
    return sorted(set.union(*named) - set.intersection(*named))[:4]


def components(demand: Demand, op: int, machine: Machine, *, called: bool) -> Array:
    """Return compute, joules and each port's busy seconds of an operator, (2 + ports, points).

    Args:
        called: It is a kernel whose compute is not here, and what it waits inside itself neither.
    """
    placed = demand.placed
    busy = demand.busy[op]
    compute = demand.compute[op]
    if called:
        rates = [
            resource_rate(machine, r, i)
            for r, i in zip(placed.resources, placed.instances, strict=True)
        ]
        busy = demand.bytes[op] / np.array(rates, np.float64)[:, None]
        compute = np.zeros_like(compute)
    return np.concatenate([compute[None], demand.joules[op][None], busy])


def fitted(features: Array, values: Array, kinds: npt.NDArray[np.int64]) -> Array:
    """Return slopes of values over features, least in relative error, (values, features).

    Args:
        features: (features, points).
        values: (values, points).
        kinds: Each kind of points has a constant of its own beside the slopes, (points,).
    """
    scale = np.maximum(features.max(axis=1), 1.0)
    columns = np.concatenate([kinds == np.unique(kinds)[:, None], features / scale[:, None]])
    slopes = np.zeros((len(values), len(features)))
    for i, value in enumerate(values):
        most = np.abs(value).max()
        if not np.isfinite(most) or value.max() - value.min() <= _EQUAL * most:
            continue
        weight = 1.0 / np.maximum(np.abs(value), 1e-6 * most)
        solved = np.linalg.lstsq((columns * weight).T, value * weight, rcond=1e-12)[0][
            -len(features) :
        ]
        slopes[i] = np.where(np.abs(solved) > _EQUAL * most, solved, 0.0) / scale
    return slopes
