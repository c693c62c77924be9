"""What a served trace amounts to: latencies, throughput, goodput, use of memory and device."""

from __future__ import annotations

from typing import Any

import numpy as np

from opbyte.core.ops import Array
from opbyte.sim.serving.fleet.server import AnyServer
from opbyte.sim.serving.many.residents import Copied
from opbyte.sim.serving.served import Serving
from opbyte.sim.serving.tally import largest, over_time
from opbyte.workloads.serve import COPYING, Goal

#: Times of a request, and the percentiles that are given of them.
TIMES, SHARES = ("ttft", "tpot", "latency"), (50, 90, 99)


def times_of(serving: Serving, name: str) -> Array:
    """Return one of `TIMES` of each served request, seconds, (served,).

    `ttft` from arrival to first token, `tpot` for each later token (NaN where there is none),
    `latency` from arrival to last token.
    """
    _, first, last = serving.times
    if name == "tpot":
        later = serving.trace.output_tokens - 1.0
        later[later <= 0.0] = np.nan
        times: Array = (last - first) / later
    else:
        times = (first if name == "ttft" else last) - serving.arrival
    return times if serving.served.all() else times[serving.served]


def good(serving: Serving, goal: Goal) -> Any:
    """Return which of the served requests keep the goal, (served,)."""
    kept = np.ones(int(serving.served.sum()), bool)
    for name in ("ttft", "tpot"):
        limit = getattr(goal, name)
        if limit is not None:
            # An answer of one token has no later ones that could be late.
            kept &= ~(times_of(serving, name) > limit.value)
    return kept


def metrics(server: AnyServer, serving: Serving, goal: Goal) -> dict[str, float]:
    """Return the numbers of a served trace; NaN where nothing was served.

    Of several engines, requests that run and wait are counted together on average; shares of blocks
    and of time are means over all engines. Percentiles over time, and largest numbers, are of one
    engine: of the time of all engines, one after the other.
    """
    found: dict[str, float] = {}
    with np.errstate(invalid="ignore"):
        for name in TIMES:
            given = times_of(serving, name)
            given = given[np.isfinite(given)]
            found[f"{name}_mean"] = float(given.mean()) if given.size else np.nan
            shares = np.percentile(given, SHARES) if given.size else np.full(len(SHARES), np.nan)
            found |= {f"{name}_p{s}": float(t) for s, t in zip(SHARES, shares, strict=True)}
    tally = serving.tally
    found["itl_mean"] = tally.gap_mean
    found |= {f"itl_p{share}": tally.gap_quantile(share / 100) for share in SHARES}
    found["itl_max"] = tally.gap_max if np.isfinite(tally.gap_mean) else np.nan
    seconds = serving.seconds if serving.served.any() else np.nan
    # Who was there at each instant, over time: what each one spent there (Little's law).
    began, _, last = serving.times
    running, waiting = (
        float(np.nansum(spent)) / seconds for spent in (last - began, began - serving.arrival)
    )
    used = serving.means[2] / seconds
    engines = 1 if serving.spread is None else serving.spread.engines
    tokens = serving.trace.output_tokens[serving.served].sum()
    found |= {
        "seconds": seconds,
        "requests_per_s": float(serving.served.sum()) / seconds,
        "goodput_per_s": float(good(serving, goal).sum()) / seconds,
        "tokens_per_s": float(tokens) / seconds,
        "running_mean": running,
        "waiting_mean": waiting,
        "waiting_p99": over_time(tally.waiting, 0.99, engines * seconds),
        "waiting_max": largest(tally.waiting),
        "kv_mean": float(used) / server.blocks / engines,
        "kv_p99": over_time(tally.used, 0.99, engines * seconds) / server.blocks,
        "kv_max": largest(tally.used) / server.blocks,
        "steps": float(serving.steps),
        "tokens_per_decode": serving.tokens_per_decode,
        "preempted": float(serving.preempted.sum()),
        "rejected": float(len(serving.reasons) - len(serving.failed)),
        "failed": float(len(serving.failed)),
        "device_losses": float(serving.losses),
        "kv_hit_rate": 1.0 - serving.hits["computed"] / max(1, sum(serving.hits.values())),
        **{
            f"{name}_bytes_per_token": read / (float(tokens) if tokens else np.nan)
            for name, read in serving.traffic.items()
        },
        **copying(serving.copied),
        "utilisation": max(serving.busy_shares.values(), default=np.nan),
        "idle_failures": float(0 if serving.spread is None else serving.spread.idle_failures),
    }
    return found


def copying(copied: Copied | None) -> dict[str, float]:
    """Return `COPYING`; where there are neither adapters nor models, of nothing copied."""
    given = copied or Copied()
    again = max(given.switches - 1, 0)
    values = given.hit_rate, given.copies, given.bytes, given.wait_s, given.busy_s, again
    return {name: float(value) for name, value in zip(COPYING, values, strict=True)}
