"""Linked parameters: a value that follows from others, `350 * machine.rdu.hbm.phy.bandwidth`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, Problem
from opbyte.sweeps.axes import Target
from opbyte.sweeps.expressions import Expression

__all__ = ["Link", "in_order", "invalid"]


@dataclass(frozen=True)
class Link:
    """A derived parameter.

    Attributes:
        target: What it sets.
        expression: What gives its value, SI.
        reads: The expression's names as keys of axes, links, parameters or fields.
    """

    target: Target
    expression: Expression
    reads: Mapping[str, str]


def in_order(links: Sequence[Link], where: Mapping[str, str]) -> tuple[Link, ...]:
    """Return the links so that each reads only values that are known by then.

    Args:
        links: In the order of the file.
        where: Place of each link by path, for errors.

    Raises:
        ConfigError: If links read each other in a circle.
    """
    ordered: list[Link] = []
    waiting = list(links)
    while waiting:
        pending = {link.target.key for link in waiting}
        ready = [link for link in waiting if not pending & set(link.reads.values())]
        if not ready:
            raise ConfigError(
                Problem(
                    where.get(link.target.path, ""),
                    f"derive.{link.target.path}",
                    "derived parameters read each other in a circle",
                    link.expression.text,
                )
                for link in waiting
            )
        ordered += ready
        waiting = [link for link in waiting if link not in ready]
    return tuple(ordered)


def invalid(target: Target, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return where values are none that the target can take, (points,)."""
    with np.errstate(invalid="ignore"):
        bad = ~np.isfinite(values) | (values < 0.0)
        if target.dimension == "ratio":
            bad |= (values <= 0.0) | (values > 1.0)
    answer: npt.NDArray[np.bool_] = bad
    return answer
