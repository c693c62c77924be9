"""Activations that are kept for a share of the tokens and computed again for the others (MEMO).

What `recompute` keeps is kept of all tokens (`dense`: a layer's input and the result of attention),
the rest of a share alpha of the tokens; of the others it is computed again. Both copies and bytes
held grow linearly with alpha, and as many are kept as hide, and fit:

    alpha = min(1, (F - C(0)) / (C(1) - C(0)), (room - held(0)) / (held(1) - held(0)),
                (B + R - D(0)) / (D(1) - D(0) + R))

with F the seconds of the forward pass, C those of its copies, and room that of each memory (Zhao et
al., arXiv 2407.12117). The last is the backward pass, which the source takes for the longer one: B
seconds, and R (1 - alpha) of what is computed again, beside copies of D. It counts where weights
come from elsewhere, too, or are frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array

if TYPE_CHECKING:
    from opbyte.sim.training.offload import Offload
    from opbyte.workloads.training.plan import Plan

__all__ = ["share_of"]


def share_of(
    wished: float | Literal["auto"],
    plan: Plan,
    offload: Offload,
    seconds: Mapping[str, Array],
    copied: Callable[[Plan, int], Any],
    occupied: Callable[[Plan], dict[str, Any]],
) -> Array:
    """Return the share of the tokens whose activations are kept, (points,).

    Args:
        seconds: Of the passes without copies, by name, (virtual, points).
        copied: Returns what the forward and the backward pass of a virtual stage copy.
        occupied: Returns bytes in one instance of each memory.
    Raises:
        ConfigError: If nothing is computed again, or nothing hides copies.
    """
    if plan.recompute is None:
        rule = "a share is kept of what is computed again, and recompute: none keeps all"
        raise ConfigError.one("", "mapping.swap", rule, wished, "use recompute: dense or full")
    if wished != "auto":
        return np.atleast_1d(float(wished))
    away = offload.share("activation") > 0.0
    if away and not offload.beside:
        rule = "copies hide beside passes"
        raise ConfigError.one(
            "", "mapping.swap", rule, wished, "add overlap: copy, or give a share"
        )
    ends = [replace(plan, swapped=share) for share in (0.0, 1.0)]
    share: Array = np.ones(1)
    for s in range(plan.virtual) if away else ():
        forward, backward, again = (seconds[n][s] for n in ("forward", "backward", "recompute"))
        none, all_ = ([offload.seconds(each) for each in copied(end, s)] for end in ends)
        share = np.minimum(share, _crosses(none[0], all_[0], forward))
        fewer = np.where(all_[1] > none[1], again, 0.0)
        share = np.minimum(share, _crosses(none[1], all_[1] + fewer, backward + again))
    none_, all__ = (occupied(end) for end in ends)
    for tier, most in all__.items():
        room = np.atleast_1d(offload.placer.capacity(tier))
        share = np.minimum(share, _crosses(np.atleast_1d(none_.get(tier, 0.0)), most, room))
    return np.asarray(np.clip(share, 0.0, 1.0))


def _crosses(none: Array, all_: Array, limit: Array) -> Array:
    """Return where a line from `none` at 0 to `all_` at 1 meets a limit; infinity if nowhere."""
    rise = np.asarray(all_ - none)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rise > 0.0, (limit - none) / rise, np.inf)
