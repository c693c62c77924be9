"""What a simulation answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.ops import Array, Number

if TYPE_CHECKING:
    import pandas as pd

    from opbyte.hw_models.machine import Machine
    from opbyte.hw_models.price import Demand
    from opbyte.sim.analytic import Step
    from opbyte.sim.event import Timeline
    from opbyte.sim.serving.endurance import Endurance


@dataclass(frozen=True)
class PhaseRun:
    """One phase of a simulation: prices, time, and how often it runs.

    Attributes:
        microbatches: Runs of the table within `step`.
        beside: Rows of the breakdown that are no operators of the table, columns by name.
        copied: Bytes of weights that a device of another group holds a copy of, (1 or points,).
    """

    name: str
    demand: Demand
    step: Step
    repeats: Number = 1.0
    timeline: Timeline | None = None
    microbatches: int = 1
    beside: tuple[dict[str, Any], ...] = ()
    copied: Any = 0.0


@dataclass(frozen=True)
class Outcome:
    """Metrics of one or many design points.

    Attributes:
        metrics: Name -> (points,) array, SI units.
        phases: What ran.
        occupancy: Memory -> bytes taken in one instance, (points,) or (1,).
        infeasible: Points that do not fit, (points,), with `reasons` beside.
        detail: Tables of a particular kind of work (requests, switches), by name.
    """

    metrics: dict[str, Array]
    phases: tuple[PhaseRun, ...]
    occupancy: dict[str, Array] = field(default_factory=dict)
    infeasible: Any = None
    reasons: tuple[str, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)

    def operator_seconds(self, names: Sequence[str]) -> Array:
        """Return what some operators take over all their runs, (points,).

        An operator with several candidates has a copy `name@unit` for each; `name` means them all.

        Raises:
            ConfigError: If no phase has an operator of a name.
        """
        wanted, known = set(names), set[str]()
        seconds: Any = np.zeros(1)
        for run in self.phases:
            placed = run.demand.placed
            each = [{n, n.partition("@")[0]} for n in placed.names]
            known.update(*each)
            chosen = np.array([not wanted.isdisjoint(n) for n in each])[:, None]
            once = (run.demand.duration * placed.executions * chosen).sum(axis=0)
            seconds = seconds + once * np.atleast_1d(run.repeats)
        if unknown := sorted(wanted - known):
            rule = "no operator is called so"
            remedy = f"known: {', '.join(sorted(known))}"
            raise ConfigError.one("", "operators", rule, ", ".join(unknown), remedy)
        return np.asarray(seconds)


@dataclass(frozen=True)
class Result:
    """One simulated point: metrics are attributes, SI units (`result.seconds`).

    Attributes:
        outcome: The metrics and phases behind it.
        hardware: The machine that it ran on.
        fidelity: bound, analytic or event.
    """

    outcome: Outcome
    hardware: Machine
    work: str
    fidelity: str

    @property
    def machine(self) -> str:
        """Return the machine's name."""
        return self.hardware.name

    @property
    def metrics(self) -> dict[str, float]:
        """Return every metric as a float."""
        return {name: float(np.ravel(v)[0]) for name, v in self.outcome.metrics.items()}

    def __getattr__(self, name: str) -> float:
        """Return a metric.

        Raises:
            AttributeError: If this work has no such metric.
            UncoveredError: If a parameter that it needs has no value.
        """
        if name.startswith("__") or name in ("outcome", "hardware"):
            raise AttributeError(name)
        metrics: Mapping[str, Array] = self.outcome.metrics
        if name not in metrics:
            known = ", ".join(metrics)
            raise AttributeError(f"{self.work} has no metric '{name}'. It has: {known}")
        value = float(np.ravel(metrics[name])[0])
        if np.isnan(value):
            raise UncoveredError(
                f"{self.machine}: '{name}' needs a parameter that the machine does not give "
                "(an energy, an area or a price). `opbyte explain` lists what it has"
            )
        return value

    @property
    def breakdown(self) -> pd.DataFrame:
        """Return one row per operator: times, bytes, energy and share, over all its runs.

        Raises:
            UncoveredError: Of a served trace, whose steps all differ.
        """
        import pandas as pd

        if not self.outcome.phases:
            raise UncoveredError(
                f"{self.work}: steps all differ, so there is no breakdown by operator. see "
                "`requests`, or simulate one step as a mixed work"
            )
        return pd.concat([_frame(p) for p in self.outcome.phases], ignore_index=True)

    @property
    def resources(self) -> pd.DataFrame:
        """Return one row per phase and resource: busy seconds and utilisation.

        The steps of a served trace are one phase, which lasts from the first arrival to the end.
        """
        import pandas as pd

        rows = [
            {
                "phase": p.name,
                "resource": name,
                "busy_s": float(busy[0]) * float(np.ravel(p.repeats)[0]),
                "utilisation": float(busy[0] / p.step.seconds[0]),
            }
            for p in self.outcome.phases
            for name, busy in p.step.busy.items()
        ]
        shares = self.outcome.detail.get("busy_shares", {})
        rows += [
            {"phase": self.work, "resource": name, "busy_s": busy, "utilisation": shares[name]}
            for name, busy in self.outcome.detail.get("busy", {}).items()
        ]
        return pd.DataFrame(rows)

    @property
    def occupancy(self) -> dict[str, float]:
        """Return the bytes taken in one instance of each memory."""
        return {tier: float(np.ravel(size)[0]) for tier, size in self.outcome.occupancy.items()}

    @property
    def requests(self) -> pd.DataFrame:
        """Return one row per request, where the work has requests.

        Raises:
            AttributeError: If it has none.
        """
        if "requests" not in self.outcome.detail:
            raise AttributeError(f"{self.work} has no requests at fidelity '{self.fidelity}'")
        import pandas as pd

        return pd.DataFrame(self.outcome.detail["requests"])

    def endurance(
        self, memory: str | None = None, *, device: str | None = None, **choices: Any
    ) -> Endurance:
        """Return how long the flash that KV caches lie on stands the trace, day by day.

        Args:
            memory: Which flash, where several are written.
            device: Flash device (`opbyte list flash`, or a file) that it is made of; by default
                its `technology`.
            choices: `append`, bytes written together (by default whole pages), and those of
                `ob.flash(..).wear`: `fill`, `sequence`, `policy`, `seed`.
        Raises:
            ConfigError: If a name or number is wrong.
            UncoveredError: If no flash is written, or no source gives its cycles.
        """
        from opbyte.hw_models.memory.flash_devices import load_flash
        from opbyte.sim.serving.endurance import endurance

        made = None if device is None else load_flash(device)
        written = self.outcome.detail.get("written", ())
        return endurance(self.hardware, written, memory, made, **choices)

    @property
    def memory(self) -> pd.DataFrame:
        """Return what the fullest device of a training step holds, one row for each change.

        Raises:
            AttributeError: Of other work.
        """
        if "memory" not in self.outcome.detail:
            raise AttributeError(f"{self.work} has no memory over time: training steps have")
        frame: pd.DataFrame = self.outcome.detail["memory"]
        return frame

    def __dir__(self) -> list[str]:
        """Return attributes and metrics, for completion."""
        return sorted({*super().__dir__(), *self.outcome.metrics})

    def __repr__(self) -> str:
        """Return the headline numbers."""
        shown = ", ".join(f"{k}={v:.6g}" for k, v in list(self.metrics.items())[:4])
        return f"Result({self.work} on {self.machine}, {self.fidelity}: {shown})"


def _frame(phase: PhaseRun) -> pd.DataFrame:
    import pandas as pd

    demand, placed = phase.demand, phase.demand.placed
    runs = placed.repeats * float(np.ravel(phase.repeats)[0]) * phase.microbatches
    duration = demand.duration[:, 0]
    columns: dict[str, Any] = {
        "phase": phase.name,
        "block": [placed.table.blocks[b] for b in placed.block_of],
        "operator": list(placed.names),
        "unit": [placed.units[u] if u >= 0 else "" for u in placed.unit_of],
        "runs": runs,
        "seconds": duration * runs,
        "latency_s": demand.latency[:, 0] * runs,
        "compute_s": demand.compute[:, 0] * runs,
        "flops": demand.flops[:, 0] * runs,
        "joules": demand.joules[:, 0] * runs * placed.copies,
    }
    for i, resource in enumerate(placed.resources):
        columns[f"{resource}_bytes"] = demand.bytes[:, i, 0] * runs
        columns[f"{resource}_s"] = demand.busy[:, i, 0] * runs
    columns["bound_by"] = _bound_by(demand)
    frame = pd.DataFrame(columns)
    if placed.runs is not None:
        frame = frame[placed.runs[:, 0] > 0]
    if not phase.beside:
        return frame
    rows = pd.DataFrame([{"phase": phase.name, **row} for row in phase.beside])
    both = pd.concat([frame, rows], ignore_index=True)
    texts = ["block", "operator", "unit", "bound_by"]
    both[texts] = both[texts].fillna("")
    return both.fillna(0.0)


def _bound_by(demand: Demand) -> list[str]:
    """Return what decides each operator's duration."""
    placed = demand.placed
    names = ["launch", "compute", "collective latency", *placed.resources]
    parts = [demand.latency[:, 0], demand.compute[:, 0], demand.floor[:, 0]]
    parts += [demand.busy[:, i, 0] for i in range(len(placed.resources))]
    return [names[i] for i in np.argmax(np.stack(parts), axis=0)]
