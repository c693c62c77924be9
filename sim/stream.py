"""A pass over memory: its rate, and the latency of one access under a load.

The latency is that of the ways to the tiers, by their shares, of the unit's own `path`, and of what
ports wait under their share of the load: no more lines wait than cores keep under way, so that no
latency is beyond lines / rate (Little's law).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.loaded import port_rate, port_wait_s
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.waiting import first_access
from opbyte.sim.phases import combine, feasible, run_phase
from opbyte.sim.place import Placer
from opbyte.sim.result import Outcome
from opbyte.sim.runners import RUNNERS, alone, refuse_caches

if TYPE_CHECKING:
    from opbyte.workloads.stream import Stream


@RUNNERS.register("stream")
def run_stream(
    machine: Machine, work: Stream, mapping: SoftwareMapping, fidelity: str, seed: int
) -> Outcome:
    """Return the outcome of one pass.

    Raises:
        UncoveredError: If the mapping caches a tensor.
    """
    del seed
    refuse_caches(machine, work, mapping)
    placer = Placer(machine, mapping.model_copy(update=alone(mapping)))
    degrees = placer.mapping.degrees
    runs = [run_phase(placer, p, fidelity) for p in work.lowered(degrees)]
    with np.errstate(invalid="ignore"):  # of what a cache holds nothing crosses a memory's port
        metrics = combine(placer, runs, work.tokens)
    metrics["bandwidth"] = work.bytes / metrics["seconds"]
    metrics["latency"] = _latency(placer, np.atleast_1d(work.offered), ideal=fidelity == "bound")
    for name in work.undefined:
        metrics.pop(name, None)
    return feasible(
        placer, Outcome(metrics, tuple(runs), placer.occupancy(work.footprint(degrees)))
    )


def _latency(placer: Placer, offered: Array, *, ideal: bool) -> Array:
    """Return the latency of one access, seconds, (points,)."""
    machine = placer.machine
    unit = placer.unit_of(frozenset({"stream"}))
    view = UnitView(machine, unit)
    total: Any = np.atleast_1d(view.get("misses.path", 0.0))
    for tier, share in placer.tiers("activation").in_.items():
        hops = placer.hops(tier, unit)
        idle = np.atleast_1d(first_access(machine, hops))
        total = total + share * idle
        if ideal or not offered.any():
            continue
        port = hops[0]
        load = share * offered / placer.instances(port)
        wait = port_wait_s(machine, port, load)
        most = _most_wait(view, port, placer, idle)
        if (np.isinf(wait) & np.isinf(most)).any():
            raise UncoveredError(
                f"{machine.name}: '{port}' is asked for more than it sustains, and no such load "
                f"comes from '{view.path}'. lower `offered`, or give it `misses` with more lines "
                "under way"
            )
        total = total + share * np.minimum(wait, most)
    found: Array = total
    return found


def _most_wait(view: UnitView, port: str, placer: Placer, idle: Array) -> Array:
    """Return the wait with all lines under way that cores keep, at the port's rate.

    Args:
        idle: Latency of an idle machine without the unit's own path.
    Returns:
        Seconds, (points,); infinite where so few lines, or none that are known, wait for nothing.
    """
    lines = view.get("misses.outstanding")
    if lines is None:
        return np.full(1, np.inf)
    flying = lines * view.get("misses.line") * view.machine.unit(view.path).config.instances
    saturated = flying / (port_rate(view.machine, port) * placer.instances(port))
    wait = np.atleast_1d(saturated - view.get("misses.path") - idle)
    return np.where(wait > 0.0, wait, np.inf)
