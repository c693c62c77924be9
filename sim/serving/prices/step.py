"""What a step costs: one name for every kind of price table, in compiled loops and out of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.sim.serving.prices import step_table
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.graph_table import GraphTable, graph_cost
from opbyte.sim.serving.prices.grid import GridTable, grid_cost
from opbyte.sim.serving.prices.layer_table import LayerTable, layer_cost
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


def step_cost(table: Any, batch: Batch, busy: Array) -> tuple[float, float]:
    """Return the seconds and joules of one step.

    Args:
        table: Of prices.
        batch: What is computed.
        busy: Busy seconds of every resource are added to it, in the order of `Prices.resources`,
            (resources,). If it is longer, bytes of `TRAFFIC` too.
    Raises:
        ValueError: If the step is empty, has more tokens or sequences than the table, or the
            table does not divide the layers into its groups.
    """
    return _KINDS[type(table)](table, batch, busy)  # type: ignore[no-any-return]


#: Class of a table -> its price.
_KINDS: dict[type, Any] = {
    GridTable: grid_cost,
    GraphTable: graph_cost,
    OffloadTable: offload_cost,
    StepTable: step_table.step_cost,
    LayerTable: layer_cost,
}


@overload(step_cost, strict=False, jit_options={"forceinline": True})
def _compiled(table: Any, batch: Any, busy: Any) -> Any:  # noqa: ARG001
    """Return the price of a kind of table."""
    price = _KINDS.get(table.instance_class) if isinstance(table, types.NamedTuple) else None
    if price is None:
        return None

    def of_kind(table: Any, batch: Batch, busy: Array) -> tuple[float, float]:
        return price(table, batch, busy)  # type: ignore[no-any-return]

    return of_kind


@register_jitable
def flat_cost(table: Any, busy: Array, *batch: Any) -> tuple[float, float]:
    """Return the same, given the fields of a batch: Python hands these over faster than a tuple."""
    return step_cost(table, Batch(*batch), busy)
