"""What the fullest device of a training job holds over a step, by tensor class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from opbyte.core.ops import Number
from opbyte.sim.training.pipeline import BACK, Played, kept_over_time

if TYPE_CHECKING:
    import pandas as pd

    from opbyte.workloads.training.plan import Plan


def memory_over_time(
    plan: Plan,
    played: Played,
    stage: int,
    held: dict[str, Number],
    seconds: float,
) -> pd.DataFrame:
    """Return one row for each change at the first design point.

    Columns: `seconds`, `event`, bytes of each class, `total`.

    A forward pass adds what its microbatch keeps, a backward pass gives it back:
    `activation_peak` is the larger of before and after. Weights, gradients, states and room for the
    working set are there all the time.

    Args:
        stage: The fullest stage.
        held: Its classes at the peak.
        seconds: Of the whole step.
    """
    import pandas as pd

    kept = [_first(size) for size in plan.kept]
    times, activations = kept_over_time(played, stage, kept)
    back = played.orders[stage][:, BACK] == 1
    before = np.concatenate([[0.0], activations[:-1]])
    frame = pd.DataFrame(
        {
            "seconds": np.append(times, seconds),
            "event": [*np.where(back, "backward", "forward").tolist(), "optimizer"],
            "activation": np.append(activations, 0.0),
            "activation_peak": np.append(np.maximum(before, activations), 0.0),
        }
    )
    steady = {name: _first(size) for name, size in held.items() if name != "activation"}
    for name, size in steady.items():
        frame[name] = size
    frame["total"] = frame["activation_peak"] + sum(steady.values())
    return frame


def _first(size: Number) -> float:
    return float(np.atleast_1d(size)[0])
