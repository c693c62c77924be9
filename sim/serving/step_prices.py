"""What a step costs, for compiled loops: one name for every kind of price table."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

from opbyte.core.ops import Array
from opbyte.sim.serving.grid_prices import GridTable, grid_seconds


def step_seconds(
    table: Any, new: Array, past: Array, pieces: int, decodes: float, context: float, busy: Array
) -> float:
    """Return the seconds of one step, and add to the busy seconds of each resource.

    Args:
        table: Prices.
        new, past: Tokens of each piece of a prompt and of its past, the first `pieces` of each.
        decodes: Sequences that compute one token.
        context: Tokens that all of those attend to, the new ones too.
        busy: (resources,), added to.
    """
    assert isinstance(table, GridTable)
    return _of_grid(table, new, past, pieces, decodes, context, busy)


def _of_grid(
    table: Any, new: Array, past: Array, pieces: int, decodes: float, context: float, busy: Array
) -> float:
    seconds = grid_seconds(table, new, past, pieces, decodes, context)
    busy[0] += seconds
    return seconds


@overload(step_seconds, strict=False)
def _compiled(
    table: Any,
    new: Any,  # noqa: ARG001
    past: Any,  # noqa: ARG001
    pieces: Any,  # noqa: ARG001
    decodes: Any,  # noqa: ARG001
    context: Any,  # noqa: ARG001
    busy: Any,  # noqa: ARG001
) -> Any:
    """Return the price of a kind of table."""
    if isinstance(table, types.NamedTuple) and table.instance_class is GridTable:
        return _of_grid
    return None
