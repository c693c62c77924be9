"""What a step costs: one name for every kind of price table, in compiled loops and out of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numba import types
from numba.extending import overload

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.sim.serving.prices import layer_table, step_table
from opbyte.sim.serving.prices.graph_table import GraphTable, graph_cost
from opbyte.sim.serving.prices.grid import GridTable, grid_cost
from opbyte.sim.serving.prices.layer_table import LayerTable
from opbyte.sim.serving.prices.layout import attend, forget
from opbyte.sim.serving.prices.offload_table import OffloadTable, offload_cost
from opbyte.sim.serving.prices.step_table import StepTable


class Prices(Protocol):
    """The prices of an engine's steps.

    Attributes:
        table: What `step_cost` reads.
        resources: Names of what steps keep busy.
    """

    @property
    def table(self) -> Any:
        """Return the table."""

    @property
    def resources(self) -> tuple[str, ...]:
        """Return the resources."""

    @property
    def max_tokens(self) -> int:
        """Return the most tokens of a step."""

    @property
    def max_sequences(self) -> int:
        """Return the most sequences of a step."""


def check_divided(prices: Prices, *, needed: bool) -> None:
    """Check that prices know groups of layers, if they are needed.

    Raises:
        UncoveredError: If they are of all layers.
    """
    if needed and not isinstance(prices.table, LayerTable):
        raise UncoveredError(
            "steps of groups of layers have no price: these are of all layers together. divide "
            "them, see `LayerPrices`"
        )


def check_limits(prices: Prices, tokens: int, sequences: int) -> None:
    """Check that prices cover the largest step that a scheduler may plan.

    Raises:
        UncoveredError: If it has more tokens or sequences than they.
    """
    # A sequence has a token at least.
    sequences = min(sequences, tokens)
    if tokens > prices.max_tokens or sequences > prices.max_sequences:
        raise UncoveredError(
            f"steps of {tokens} tokens and {sequences} sequences have no price: the tables end at "
            f"{prices.max_tokens} and {prices.max_sequences}. lower the scheduler's limits"
        )


def masks_of(prices: Prices | None) -> Array:
    """Return the `masks` of prices: there callers count what decodes attend to.

    Returns:
        The table's own array, (masks, 3); nothing where no layer has a mask, or it is measured.
    """
    table = None if prices is None else prices.table
    step = table.step if isinstance(table, LayerTable) else table
    step = step.graph if isinstance(step, OffloadTable) else step
    return step.masks if isinstance(step, StepTable | GraphTable) else np.zeros((0, 3))


def tell(prices: Prices, decodes: float, context: float | Sequence[float] | Array) -> float:
    """Tell a table what the next step's decodes attend to; return their contexts, summed.

    Args:
        context: Of each of them, or their sum.
    Raises:
        ValueError: If there are not as many as decodes.
    """
    masks, each = masks_of(prices), np.asarray(context, np.float64)
    forget(masks)
    if each.ndim:
        if len(each) != decodes:
            raise ValueError(f"{decodes:g} sequences decode, and {len(each)} have a context")
        for one in each:
            attend(masks, float(one))
    return float(each.sum())


def step_cost(
    table: Any,
    new: Array,
    past: Array,
    pieces: int,
    decodes: float,
    context: float,
    busy: Array,
    logits: float = 0.0,
) -> tuple[float, float]:
    """Return the seconds and joules of one step, and add to the busy seconds of each resource.

    Args:
        table: Of prices.
        new, past: Tokens of each piece of a prompt and of its past, the first `pieces` of each.
        decodes: Sequences that compute one token.
        context: Tokens that all of those attend to, the new ones too.
        busy: (resources,), added to.
        logits: Positions whose logits are needed, beyond one of each piece and decode.
    """
    price = _KINDS[type(table)]
    return price(table, new, past, pieces, decodes, context, busy, logits)  # type: ignore[no-any-return]


#: Class of a table -> its price.
_KINDS: dict[type, Any] = {
    GridTable: grid_cost,
    GraphTable: graph_cost,
    OffloadTable: offload_cost,
    StepTable: step_table.step_cost,
    LayerTable: layer_table.whole_cost,
}


@overload(step_cost, strict=False)
def _compiled(
    table: Any,
    new: Any,  # noqa: ARG001
    past: Any,  # noqa: ARG001
    pieces: Any,  # noqa: ARG001
    decodes: Any,  # noqa: ARG001
    context: Any,  # noqa: ARG001
    busy: Any,  # noqa: ARG001
    logits: Any = 0.0,  # noqa: ARG001
) -> Any:
    """Return the price of a kind of table."""
    return _KINDS.get(table.instance_class) if isinstance(table, types.NamedTuple) else None


def group_cost(
    table: Any,
    group: int,
    groups: int,
    new: Array,
    past: Array,
    pieces: int,
    decodes: float,
    context: float,
    busy: Array,
    logits: float = 0.0,
) -> tuple[float, float]:
    """Return the price of one step whose pieces run on one group of layers, decodes on all.

    Args:
        table: Of prices; one that is not divided has all layers in every step.
        group: Which group, the first one is 0.
        groups: How many there are, 0 for all layers together.
        new, past, pieces, decodes, context, busy, logits: As for `step_cost`.
    """
    if isinstance(table, LayerTable):
        return layer_table.group_cost(
            table, group, groups, new, past, pieces, decodes, context, busy, logits
        )
    return step_cost(table, new, past, pieces, decodes, context, busy, logits)


@overload(group_cost, strict=False)
def _compiled_group(
    table: Any,
    group: Any,  # noqa: ARG001
    groups: Any,  # noqa: ARG001
    new: Any,  # noqa: ARG001
    past: Any,  # noqa: ARG001
    pieces: Any,  # noqa: ARG001
    decodes: Any,  # noqa: ARG001
    context: Any,  # noqa: ARG001
    busy: Any,  # noqa: ARG001
    logits: Any = 0.0,  # noqa: ARG001
) -> Any:
    """Return the price of a kind of table."""
    if isinstance(table, types.NamedTuple) and table.instance_class is LayerTable:
        return layer_table.group_cost

    def undivided(
        table: Any,
        group: int,  # noqa: ARG001
        groups: int,  # noqa: ARG001
        new: Array,
        past: Array,
        pieces: int,
        decodes: float,
        context: float,
        busy: Array,
        logits: float = 0.0,
    ) -> tuple[float, float]:
        return step_cost(table, new, past, pieces, decodes, context, busy, logits)

    return undivided
