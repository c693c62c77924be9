"""The optimizer's step behind the backward pass: layers are stepped as their gradients arrive.

Beside the last microbatch's backward pass of B seconds, with copies, run the optimizer's passes of
O seconds in all; ports and links that both use are busy for the sum of both, at most R seconds. No
layer is stepped before its gradients are there. Of L equal layers these are two stages
(`opbyte.sim.training.overlap`):

    exposed = max(B + O / L, O + B / L, R) - B

After Fuyou (Liao et al., arXiv 2403.06504), whose CPU steps what arrives while drives read and
write states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.sim.training.optimizer import INWARD, Stepping
from opbyte.sim.training.overlap import alone, overlapped

__all__ = ["check_behind", "exposed"]


def check_behind(name: str, mapping: SoftwareMapping, units: tuple[str, str], clip: Any) -> None:
    """Refuse what does not let layers be stepped one by one.

    Args:
        units: Of the optimizer, and that which computes.
        clip: Gradients are scaled to a norm of all of them.
    Raises:
        UncoveredError: With the reason.
    """
    if clip:
        raise UncoveredError(
            f"{name}: overlap: optimizer steps a layer before others have gradients, and `clip` "
            "needs the norm of all. use clip: false, or overlap: gradients"
        )
    if units[0] == units[1]:
        raise UncoveredError(
            f"{name}: overlap: optimizer needs a unit beside '{units[1]}', which runs the backward "
            "pass. add a rule {ops: optimizer, unit: ..}, or use overlap: gradients"
        )
    if mapping.degrees.pp > 1:
        raise UncoveredError(
            f"{name}: no model steps layers behind the passes of a pipeline. use pp: 1, or "
            "overlap: gradients"
        )


def exposed(
    stepping: Stepping,
    optimizer: Array,
    backward: Array,
    copies: Mapping[tuple[str, bool], Array],
    layers: float,
) -> Array:
    """Return the seconds of the optimizer that the backward pass does not hide, (points,).

    Args:
        optimizer: Seconds of all its passes, alone.
        backward: Seconds of the last microbatch's backward pass, with copies.
        copies: Seconds that its copies keep ports and links busy, and whether inwards on a link.
    """
    busy = {f"{name}{INWARD}" if inward else name: t for (name, inward), t in copies.items()}
    for one in stepping.todo:
        for name, seconds in stepping.loads(one).items():
            busy[name] = busy.get(name, np.zeros(1)) + seconds
    most = overlapped(backward, optimizer, alone(layers))
    for seconds in busy.values():
        most = np.maximum(most, seconds)
    return np.asarray(most - backward)
