"""attention_plan(): what a mapping does with an attention on a spatial array, beside its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.spatial.arrays import ARRAY, LANES, Plan, Shape
from opbyte.hw_models.compute.spatial.bounds import lower_bound
from opbyte.hw_models.compute.spatial.unit import SpatialArray
from opbyte.hw_models.machine import Machine
from opbyte.sim.simulate import simulate
from opbyte.workloads.work import Work


@dataclass(frozen=True)
class AttentionPlan:
    """One attention of a work as it is mapped.

    Attributes:
        phase, block, operator: Where it is in the breakdown.
        plan: Tiles, footprint, traffic by tensor, busy seconds of each Einsum.
        shape: Sizes.
        joules: Of one run of the operator as simulated; NaN where a parameter is missing.
    """

    phase: str
    block: str
    operator: str
    plan: Plan
    shape: Shape
    joules: float

    @property
    def lower_bound_bytes(self) -> float:
        """Return the order of the bytes that any schedule moves, at least inputs and result."""
        shape, plan = self.shape, self.plan
        size = shape.query_bytes
        tokens = (shape.queries * shape.keys) ** 0.5
        width = (shape.width * shape.value_width) ** 0.5
        least = lower_bound(tokens, width, plan.capacity / size) * size * shape.share
        return float(max(shape.groups * least, sum(shape.compulsory.values())))

    def row(self) -> dict[str, Any]:
        """Return the numbers of a table's row."""
        plan = self.plan
        return {
            "phase": self.phase,
            "block": self.block,
            "operator": self.operator,
            "cascade": plan.cascade.name,
            "passes": plan.cascade.passes,
            "queries_on_chip": plan.queries,
            "footprint_bytes": plan.footprint,
            "buffer_bytes": plan.capacity,
            "spilled": plan.spilled,
            "dram_bytes": plan.bytes,
            "score_bytes": plan.traffic.get("scores", 0.0),
            "lower_bound_bytes": self.lower_bound_bytes,
            "seconds": float(plan.seconds),
            "memory_s": float(plan.memory),
            "utilisation_2d": float(plan.utilisation(ARRAY)),
            "utilisation_1d": float(plan.utilisation(LANES)),
            "joules": self.joules,
            **plan.choices,
        }


def attention_plan(
    machine: str | Path | Mapping[str, Any] | Machine,
    work: Mapping[str, Any] | Work,
    mapping: str | Path | Mapping[str, Any] | SoftwareMapping | None = None,
) -> list[AttentionPlan]:
    """Return how each distinct attention of a work is mapped on a machine's spatial array.

    Args:
        machine, work, mapping: As for `simulate`.
    Raises:
        UncoveredError: If no attention of the work runs on a unit of kind `spatial_array`.
        OpbyteError: What `simulate` raises.
    """
    result = simulate(machine, work, mapping)
    found: list[AttentionPlan] = []
    for run in result.outcome.phases:
        placed, joules = run.demand.placed, run.demand.joules
        for path in placed.units:
            view = UnitView(result.hardware, path)
            if not isinstance(view.model, SpatialArray):
                continue
            for ops, plan, shape in view.model.plans(placed, view):
                block = placed.table.blocks[placed.block_of[ops[0]]]
                name = "+".join(placed.names[op] for op in ops)
                spent = float(joules[ops, 0].sum())
                found.append(AttentionPlan(run.name, block, name, plan, shape, spent))
    if not found:
        raise UncoveredError(
            f"{result.machine}: no attention runs on a unit of kind spatial_array. choose a "
            "machine that has one, such as fusemax-cloud, and work with attention"
        )
    return found
