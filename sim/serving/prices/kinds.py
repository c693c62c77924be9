"""Iterations of decodes alone, of prompts alone and of both: whose their operators are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.price import Demand
from opbyte.sim.serving.prices.graph_table import ALL, DECODES, PROMPTS
from opbyte.sim.serving.prices.probe import EQUAL, SHAPES, TOKENS, Pricer, comes_and_goes
from opbyte.sim.serving.prices.shapes import Shapes, drawn, longest, prompts
from opbyte.workloads.model import Model
from opbyte.workloads.routing import Routing

#: Tokens of prompts, and decodes, of the iteration whose parts are priced alone too.
BESIDE = 256
_SEGMENT = re.compile(r"\.(prefill|decode)(\d+)$")
_WHOSE = {"prefill": PROMPTS, "decode": DECODES}

#: Block, names of rows without their segment, and whose: an operator of any iteration.
Key = tuple[int, frozenset[str], int]


def _named(placed: PlacedOps) -> list[tuple[int, frozenset[str], set[str]]]:
    """Return each operator's block, the names of its rows, and labels that say whose it is."""
    starts = np.searchsorted(placed.op_of, np.arange(len(placed) + 1))
    found = []
    for op in range(len(placed)):
        rows = range(starts[op], starts[op + 1])
        names = frozenset(_SEGMENT.sub("", placed.table.names[r]) for r in rows)
        words = {w for r in rows for w in placed.table.labels[r] & {"mixed", *_WHOSE}}
        found.append((int(placed.block_of[op]), names, words))
    return found


def _keyed(placed: PlacedOps, known: Iterable[Key] | None, own: int) -> dict[Key, int]:
    """Return the operators by their keys.

    Args:
        known: Those of iterations with prompts and decodes; None where these are such.
        own: PROMPTS or DECODES where it is an iteration of these alone.
    Raises:
        UncoveredError: If several segments have an operator of a kind each.
    """
    reference = set(known or ())
    found: dict[Key, int] = {}
    for op, (block, names, words) in enumerate(_named(placed)):
        whose = _WHOSE[words.pop()] if len(words) == 1 and words <= set(_WHOSE) else ALL
        if known is not None:
            whose = own if (block, names, own) in reference else ALL
        key = (block, names, whose)
        if key in found:
            raise UncoveredError(comes_and_goes(placed, op))
        found[key] = op
    return found


@dataclass(frozen=True)
class Kind:
    """Prices of iterations of one kind, of each of `TOKENS`.

    Attributes:
        whose: PROMPTS or DECODES where it has these alone, else ALL.
        shapes, demands, keys: What was priced, the price, and its operators.
    """

    whose: int
    shapes: tuple[Shapes, ...]
    demands: tuple[Demand, ...]
    keys: tuple[dict[Key, int], ...]

    @classmethod
    def of(
        cls,
        price: Pricer,
        model: Model,
        routing: Routing,
        whose: int,
        shapes: list[Shapes],
        known: Kind | None = None,
    ) -> Kind:
        """Price iterations, the operators of all of which are alike.

        Raises:
            UncoveredError: If one has operators that another lacks.
        """
        demands = tuple(price(s.work(model, routing)) for s in shapes)
        reference = None if known is None else known.keys[0]
        keys = tuple(_keyed(d.placed, reference, whose) for d in demands)
        for demand, mine in zip(demands, keys, strict=True):
            if odd := set(mine) ^ set(keys[0]):
                one = odd.pop()
                where = demand if one in mine else demands[0]
                at = mine.get(one, keys[0].get(one, 0))
                raise UncoveredError(comes_and_goes(where.placed, at))
        return cls(whose, tuple(shapes), demands, keys)

    def keyed(self, placed: PlacedOps) -> dict[Key, int]:
        """Return the operators of another such iteration, of decodes or prompts alone."""
        return _keyed(placed, self.keys[0], self.whose)


@dataclass(frozen=True)
class Kinds:
    """The three kinds of iterations.

    Attributes:
        beside: One iteration of each kind, the last of which is the other two together.
    """

    decodes: Kind
    prompts: Kind
    both: Kind
    beside: tuple[Kind, Kind, Kind]

    @classmethod
    def of(cls, price: Pricer, model: Model, routing: Routing) -> Kinds:
        """Price all kinds.

        Raises:
            UncoveredError: If operators come and go otherwise than with prompts or decodes.
        """
        top = longest(model)

        def some(pieces: int, seed: int) -> list[Shapes]:
            return [drawn(model, pieces, SHAPES, t, t, seed + t, full=True) for t in TOKENS]

        both = Kind.of(price, model, routing, ALL, some(1, 0) + some(2, 1))
        decodes = Kind.of(price, model, routing, DECODES, some(0, 2), both)
        alone = [
            prompts(model, pieces, SHAPES, min(t, top - 1), t + pieces)
            for pieces in (1, 2) for t in TOKENS
        ]  # fmt: skip
        read = Kind.of(price, model, routing, PROMPTS, alone, both)
        size = float(min(BESIDE, top // 2))
        new, past, n = np.array([[size]]), np.ones((1, 1)), np.array([size])
        whole = Shapes(new, past, n, n * size)
        parts = (
            (Shapes(new[:0], past[:0], n, n * size), DECODES, both),
            (whole.without_decodes(), PROMPTS, both),
            (whole, ALL, None),
        )
        beside = [Kind.of(price, model, routing, w, [one], known) for one, w, known in parts]
        kinds = cls(decodes, read, both, (beside[0], beside[1], beside[2]))
        for key, op in both.keys[0].items():
            there = kinds.prompts if key[2] == PROMPTS else kinds.decodes
            if key not in there.keys[0]:
                raise UncoveredError(comes_and_goes(both.demands[0].placed, op))
        return kinds

    @property
    def all(self) -> tuple[Kind, Kind, Kind]:
        """Return them in the order of `GraphTable.starts`."""
        return self.decodes, self.prompts, self.both

    def varying(self) -> list[Key]:
        """Return the operators that do not depend on the iteration's tokens alone.

        The LM head depends on the sequences, and is none of them.
        """
        placed = self.both.demands[0].placed
        found = []
        for key in self.both.keys[0]:
            if placed.table.blocks[key[0]] == "head":
                continue
            if key[2] != ALL or self._varies(key):
                found.append(key)
        return found

    def _varies(self, key: Key) -> bool:
        """Return whether iterations of equal tokens differ in an operator of all of them."""
        seen: dict[float, list[Array]] = {}
        for kind in (self.decodes, self.both):
            for shapes, demand, keys in zip(kind.shapes, kind.demands, kind.keys, strict=True):
                op = keys[key]
                values = [demand.compute[op], np.nan_to_num(demand.joules[op]), demand.latency[op]]
                numbers = np.stack([*values, demand.busy[op].sum(axis=0)])
                seen.setdefault(float(shapes.tokens[0]), []).append(numbers)
        for alike in seen.values():
            together = np.concatenate(alike, axis=1)
            least, most = together.min(axis=1), together.max(axis=1)
            if (most - least > EQUAL * np.abs(most)).any():
                return True
        return False
