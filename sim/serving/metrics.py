"""What a served trace amounts to: latencies, throughput, goodput, use of memory and device."""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.ops import Array
from opbyte.sim.serving.server import Server, Serving
from opbyte.workloads.serve import Goal


def latencies(serving: Serving) -> dict[str, Array]:
    """Return the times of each served request, seconds, (served,).

    `ttft` from arrival to first token, `tpot` for each later token (NaN where there is none),
    `latency` from arrival to last token.
    """
    rows = serving.served
    arrival, (_, first, last) = serving.arrival[rows], serving.times[:, rows]
    later = serving.trace.output_tokens[rows] - 1.0
    return {
        "ttft": first - arrival,
        "tpot": np.where(later > 0, (last - first) / np.maximum(later, 1.0), np.nan),
        "latency": last - arrival,
    }


def good(serving: Serving, goal: Goal) -> Any:
    """Return which of the served requests keep the goal, (served,)."""
    times = latencies(serving)
    kept = np.ones(int(serving.served.sum()), bool)
    for name in ("ttft", "tpot"):
        limit = getattr(goal, name)
        if limit is not None:
            # An answer of one token has no later ones that could be late.
            kept &= ~(times[name] > limit.value)
    return kept


def metrics(server: Server, serving: Serving, goal: Goal) -> dict[str, float]:
    """Return the numbers of a served trace; NaN where nothing was served."""
    found: dict[str, float] = {}
    with np.errstate(invalid="ignore"):
        for name, values in latencies(serving).items():
            given = values[np.isfinite(values)]
            found[f"{name}_mean"] = float(given.mean()) if given.size else np.nan
            for share in (50, 90, 99):
                found[f"{name}_p{share}"] = (
                    float(np.percentile(given, share)) if given.size else np.nan
                )
    seconds = serving.seconds if serving.served.any() else np.nan
    running, waiting, used = serving.means / seconds
    found |= {
        "seconds": seconds,
        "requests_per_s": float(serving.served.sum()) / seconds,
        "goodput_per_s": float(good(serving, goal).sum()) / seconds,
        "tokens_per_s": float(serving.trace.output_tokens[serving.served].sum()) / seconds,
        "running_mean": float(running),
        "waiting_mean": float(waiting),
        "kv_mean": float(used) / server.blocks,
        "steps": float(serving.steps),
        "preempted": float(serving.preempted.sum()),
        "rejected": float(len(serving.reasons)),
        "utilisation": max(serving.busy.values(), default=np.nan) / seconds,
    }
    return found
