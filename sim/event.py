"""Event fidelity: operators contend for units, ports and links."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import SimulationError
from opbyte.core.ops import Array
from opbyte.hw_models.price import Demand
from opbyte.sim.analytic import Step


@dataclass(frozen=True)
class Timeline:
    """Every execution of one run, in the order (microbatch, block run, operator).

    Attributes:
        op: Operator of each execution.
        run: Position of its block in the table's order.
        microbatch: Its microbatch.
        ready, start, end: Seconds.
        peak_share: Largest share granted of each resource, one stage after the other.
    """

    demand: Demand
    op: npt.NDArray[np.int64]
    run: npt.NDArray[np.int64]
    microbatch: npt.NDArray[np.int64]
    ready: Array
    start: Array
    end: Array
    peak_share: Array


def event_step(demand: Demand, microbatches: int = 1) -> tuple[Step, Timeline]:
    """Run the demand's table through the event kernel.

    Args:
        demand: Priced operators of one design point.
    Raises:
        SimulationError: If the demand holds several design points.
    """
    from opbyte.sim.kernels.fluid import run_blocks

    placed = demand.placed
    latency, work, share = stream_columns(demand)
    bounds = np.searchsorted(placed.block_of, np.arange(len(placed.table.blocks) + 1))
    by_source = placed.edges[np.argsort(placed.edges[:, 0], kind="stable")]
    ready, start, end, peak = run_blocks(
        latency,
        work,
        share,
        placed.turn_of,
        bounds.astype(np.int64),
        np.searchsorted(by_source[:, 0], np.arange(len(placed) + 1)).astype(np.int64),
        np.ascontiguousarray(by_source[:, 1]),
        np.bincount(placed.edges[:, 1], minlength=len(placed)).astype(np.int64),
        placed.table.order,
        placed.table.stage,
        microbatches,
    )
    op, run, microbatch = _executions(demand, bounds, microbatches)
    timeline = Timeline(demand, op, run, microbatch, ready, start, end, peak)
    return Step(np.array([end.max()]), np.array([end.max()]), _busy(demand, microbatches)), timeline


def stream_columns(demand: Demand) -> tuple[Array, Array, Array]:
    """Return latency (ops,), streaming seconds (ops,) and resource shares (ops, resources).

    Raises:
        SimulationError: If the demand holds several design points.
    """
    if demand.latency.shape[1] != 1:
        raise SimulationError(
            f"the event fidelity runs one design point at a time, got {demand.latency.shape[1]}"
        )
    latency = np.ascontiguousarray(demand.latency[:, 0])
    work = demand.duration[:, 0] - latency
    busy = demand.busy[:, :, 0]
    # Rounding in duration - latency must not ask for more than the whole resource.
    share = np.minimum(busy / np.where(work > 0, work, 1.0)[:, None], 1.0)
    return latency, work, np.ascontiguousarray(share)


def _executions(
    demand: Demand, bounds: npt.NDArray[np.int64], microbatches: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    order = demand.placed.table.order
    sizes = np.diff(bounds)[order]
    run = np.repeat(np.arange(len(order)), sizes)
    starts = np.cumsum(sizes) - sizes
    op = np.arange(len(run)) + (bounds[order] - starts)[run]
    return (
        np.tile(op, microbatches),
        np.tile(run, microbatches),
        np.repeat(np.arange(microbatches), len(op)),
    )


def _busy(demand: Demand, microbatches: int) -> dict[str, Array]:
    from opbyte.sim.analytic import analytic_step

    return analytic_step(demand, microbatches).busy


def replay(timeline: Timeline, demand: Demand) -> Array:
    """Return completion times when every resource serves in the timeline's order.

    Each unit, port and link serves one operator after the other, in the order in which the
    timeline started them. Such a system is max-plus linear: shorter durations delay nothing.

    Args:
        timeline: A recorded run.
        demand: Prices of the same operators, on other hardware for instance.
    """
    placed = demand.placed
    duration = demand.duration[:, 0]
    end = np.zeros(len(timeline.op))
    last: dict[tuple[int, int], float] = {}
    block_end: dict[tuple[int, int], float] = {}
    finished: dict[tuple[int, int, int], float] = {}
    sources: dict[int, list[int]] = {}
    for source, target in placed.edges:
        sources.setdefault(int(target), []).append(int(source))
    stage = placed.table.stage[placed.table.order]
    turns = placed.turn_of
    for i in np.lexsort((np.arange(len(end)), timeline.start)):
        op, run, micro = int(timeline.op[i]), int(timeline.run[i]), int(timeline.microbatch[i])
        held = [r for r in range(len(placed.resources)) if demand.busy[op, r, 0] > 0]
        held += [len(placed.resources) + int(turns[op])] if turns[op] >= 0 else []
        keys = [(int(stage[run]), r) for r in held]
        after = [finished[micro, run, s] for s in sources.get(op, ())]
        after += [last.get(k, 0.0) for k in keys]
        after.append(block_end.get((micro, run - 1), 0.0))
        end[i] = max(after) + duration[op]
        finished[micro, run, op] = end[i]
        block_end[micro, run] = max(block_end.get((micro, run), 0.0), float(end[i]))
        for key in keys:
            last[key] = float(end[i])
    return end
