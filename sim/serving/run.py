"""`simulate(machine, Serve(...))` and the largest rate that keeps a goal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from opbyte.core.errors import WorkloadError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.hw_models.machine import Machine
from opbyte.sim.metrics import static_watts, with_costs
from opbyte.sim.result import Outcome
from opbyte.sim.runners import RUNNERS
from opbyte.sim.serving.endurance import written_of
from opbyte.sim.serving.fleet.server import AnyServer, server_of
from opbyte.sim.serving.metrics import metrics
from opbyte.sim.serving.served import Serving

if TYPE_CHECKING:
    from opbyte.workloads.serve import Serve


@RUNNERS.register("serve")
def run_serve(
    machine: Machine, work: Serve, mapping: SoftwareMapping, fidelity: str, seed: int
) -> Outcome:
    """Return the outcome of a served trace.

    Steps cost what `analytic` says; queues are played, so `event` is the same.

    Raises:
        UncoveredError: Where no model covers the engine.
        WorkloadError: If no request can be served.
    """
    del fidelity
    server = server_of(machine, work, mapping, seed=seed)
    serving = server.serve(work.trace)
    if not serving.served.any():
        why = next(iter(serving.reasons.values()))
        raise WorkloadError(f"serve: none of {len(work.trace)} requests can be served: {why}")
    return outcome(machine, server, serving, work, mapping)


def outcome(
    machine: Machine, server: AnyServer, serving: Serving, work: Serve, mapping: SoftwareMapping
) -> Outcome:
    """Return metrics and frames of a served trace."""
    found = metrics(server, serving, work.slo)
    seconds, tokens = found["seconds"], found["tokens_per_s"]
    static = float(np.max(static_watts(machine))) * seconds
    joules = serving.joules + static
    found |= {
        "joules": joules,
        "dynamic_joules": serving.joules,
        "static_joules": static,
        "watts": joules / seconds,
        "joules_per_token": joules / (tokens * seconds),
    }
    columns = {name: np.array([value]) for name, value in found.items()}
    detail = {
        "requests": serving.requests,
        "series": serving.steps_frame,
        "busy": serving.busy,
        "busy_shares": serving.busy_shares,
        "blocks": server.blocks,
        "hits": serving.hits,
        "moved_bytes": serving.moved,
        "written": written_of(machine, work, mapping, serving),
        # Of each engine, where there are several.
        "engine_steps": None if serving.spread is None else serving.spread.steps.tolist(),
        "slo": {name: limit.value for name, limit in work.slo if limit is not None},
    }
    return Outcome(with_costs(machine, columns), (), {}, detail=detail)
