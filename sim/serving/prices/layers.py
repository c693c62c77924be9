"""Prices of iterations in which prompts run on one group of layers: layered prefill."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.ops import Array
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.build import Cost, StepPrices
from opbyte.sim.serving.prices.layer_table import LayerTable
from opbyte.sim.serving.prices.layout import StepTable
from opbyte.sim.serving.prices.step import flat_cost, tell
from opbyte.sim.serving.stamped import compiled


def divided(layers: int, groups: int) -> list[range]:
    """Return contiguous groups of layers; where they do not divide, the first have one more.

    Raises:
        ConfigError: If there are more groups than layers.
    """
    if groups > layers:
        raise ConfigError.one(
            "", "scheduler.groups", f"the model has {layers} layers to divide", groups,
            "give no more groups than layers",
        )  # fmt: skip
    each, more = divmod(layers, groups)
    ends = np.cumsum([each + (i < more) for i in range(groups)])
    return [range(int(end) - each - (i < more), int(end)) for i, end in enumerate(ends)]


@dataclass(frozen=True)
class LayerPrices:
    """The prices of a model's iterations, of all layers and of groups of them.

    Attributes:
        whole: Prices of iterations of all layers.
        table: For `step_cost`. Calls write to scratch arrays in it.
    """

    whole: StepPrices
    table: LayerTable

    @classmethod
    def of(cls, prices: StepPrices, groups: Iterable[int]) -> LayerPrices:
        """Divide prices into each of these numbers of groups.

        Raises:
            ConfigError: If there are more groups than layers.
            UncoveredError: If prompts and decodes run in different places, or experts are copied.
        """
        blocks, table = prices.blocks, prices.table
        if blocks is None or not isinstance(table, StepTable):
            raise UncoveredError(
                "no table divides steps by layers where prompts and decodes run in different "
                "places, or experts are copied. use another scheduler than layered"
            )
        layers = blocks.order[1:-1]
        numbers = sorted(set(groups))
        first = np.full(max(numbers) + 1, -1, np.int64)
        every = np.bincount(blocks.order[:-1], minlength=len(blocks.fixed)).astype(np.float64)
        counts: list[Array] = []
        for number in numbers:
            first[number] = len(counts)
            for i, part in enumerate(divided(len(layers), number)):
                mine = np.bincount(layers[part], minlength=len(blocks.fixed)).astype(np.float64)
                mine[blocks.order[0]] += i == 0
                counts.append(np.stack([mine, every - mine]))
        both = np.stack(counts)
        runs = np.ascontiguousarray(both[:, :, blocks.paths])
        fixed = np.ascontiguousarray(blocks.fixed)
        return cls(prices, LayerTable(table, fixed, both, runs, first))

    @property
    def resources(self) -> tuple[str, ...]:
        """Return ports, links and units, in the order of busy seconds."""
        return self.whole.resources

    @property
    def max_tokens(self) -> int:
        """Return the most tokens of an iteration."""
        return self.whole.max_tokens

    @property
    def max_sequences(self) -> int:
        """Return the most pieces and decodes of an iteration."""
        return self.whole.max_sequences

    def cost(
        self,
        group: int,
        groups: int,
        chunks: Sequence[tuple[float, float]],
        decodes: float = 0.0,
        context: float | Sequence[float] | Array = 0.0,
    ) -> Cost:
        """Return what one iteration costs whose pieces run on one group of layers.

        Args:
            group: Which, the first one is 0.
            groups: How many there are.
            chunks, decodes, context: As for `StepPrices.cost`.
        Raises:
            ValueError: If the tables do not have it.
        """
        summed = tell(self, decodes, context)
        new, past = np.array(chunks, np.float64).reshape(-1, 2).T.copy()
        busy = np.zeros(len(self.resources))
        batch = Batch(new, past, len(new), float(decodes), summed, 0.0, group, groups)
        seconds, joules = compiled(flat_cost)(self.table, busy, *batch)
        return Cost(seconds, joules, dict(zip(self.resources, busy.tolist(), strict=True)))
