"""One experiment: read, simulated, shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opbyte.core.config import load_document
from opbyte.core.errors import CapacityError, ConfigError, Problem, UncoveredError
from opbyte.core.problems import Problems
from opbyte.sim.runners import unplayable
from opbyte.sweeps.console import Output, plain, shown
from opbyte.sweeps.constraints import metric_dimension
from opbyte.sweeps.design import Design, Side
from opbyte.sweeps.study import Experiment, judged_as, not_another, wrong_root
from opbyte.workloads.works import WORKS

if TYPE_CHECKING:
    from opbyte.sim.result import Result

__all__ = ["LoadedExperiment", "load_experiment", "show_experiment"]

_MOST_OPERATORS = 15


@dataclass(frozen=True)
class LoadedExperiment:
    """An experiment that was read and checked."""

    experiment: Experiment
    side: Side
    design: Design

    def simulate(self) -> Result:
        """Return what the simulation answers.

        Raises:
            CapacityError: If a tensor does not fit.
        """
        from opbyte.sim.simulate import simulate

        design, one = self.design, self.experiment
        return simulate(design.machine, design.work, design.mapping, one.fidelity, one.seed)

    @property
    def config(self) -> dict[str, Any]:
        """Return the experiment as written, with its machine as it is read."""
        written = self.experiment.model_dump(mode="json", exclude_defaults=True)
        written["fidelity"] = self.experiment.fidelity
        machine = self.design.machine
        return {**written, "machines": {machine.name: machine.document.data}}


def load_experiment(
    source: str | Path, settings: Mapping[str, Any] | None = None
) -> LoadedExperiment:
    """Return an experiment from a file.

    Args:
        source: The file.
        settings: Changed values by path, as of `--set`.

    Raises:
        ConfigError: With every problem of the file.
    """
    problems, right = Problems(), partial(not_another, kind="experiment")
    document = load_document(source, check=right, problems=problems)
    one, document = judged_as(Experiment, document, settings, problems, kind="experiment", base="")
    side = Side(document, (), one.machine, one.workload, one.mapping, one.set)
    for path in one.set:
        if wrong := wrong_root(path):
            at = ("set", path)
            problems.add([Problem(document.where(at), ".".join(at), *wrong)])
    machine, work, mapping = side.judged({}, problems)
    kind = side.kind({})
    if kind and (why := unplayable(WORKS.lookup(kind), one.fidelity)):
        where = document.where(("fidelity",))
        problems.add([Problem(where, "fidelity", why, one.fidelity, "Choose analytic.")])
    problems.tell()
    assert machine is not None
    assert work is not None
    assert mapping is not None
    return LoadedExperiment(one, side, Design(machine, work, mapping))


def show_experiment(
    loaded: LoadedExperiment, output: Output, out: Path | None = None, timeline: Path | None = None
) -> int:
    """Simulate an experiment, print and write what it answers, and return the exit code.

    Raises:
        ConfigError: For a timeline of a fidelity that records none.
    """
    fidelity = loaded.experiment.fidelity
    played = loaded.design.work.played
    if timeline is not None and fidelity != "event" and not played:
        remedy = "Add --fidelity event."
        rule = "only fidelity 'event' records a timeline"
        raise ConfigError.one("--timeline", "", rule, fidelity, remedy)
    try:
        result = loaded.simulate()
    except CapacityError as error:
        output.data({"status": "infeasible", "reason": str(error)})
        output.line(f"infeasible: {error}")
        if out is not None:
            _write(out, loaded, {}, "infeasible", str(error))
        return 0
    operators = _operators(result)
    metrics = result.metrics
    utilisation, endurance = _utilisation(result), _endurance(result)
    about = {"machine": result.machine, "work": result.work, "fidelity": result.fidelity}
    output.data(
        {
            "status": "ok",
            **about,
            "metrics": metrics,
            "occupancy": result.occupancy,
            **({"utilisation": utilisation} if utilisation else {}),
            **({"endurance": endurance} if endurance else {}),
            "breakdown": operators,
        }
    )
    title = f"{result.work} on {result.machine}, {result.fidelity}"
    told = {name: metrics[name] for name in metrics if name not in loaded.design.work.silent}
    rows = [[name, shown(value, metric_dimension(name))] for name, value in told.items()]
    output.table(title, ["metric", "value"], rows)
    if operators:
        _show_operators(operators, output)
    rows = [[tier, shown(size, "bytes")] for tier, size in result.occupancy.items()]
    if rows:
        output.table("Memory taken, one instance", ["memory", "bytes"], rows)
    rows = [[name, f"{100 * share:.1f} %"] for name, share in utilisation.items()]
    if rows:
        output.table("Use of each resource", ["resource", "busy"], rows)
    for one in endurance:
        _show_endurance(one, output)
    if out is not None:
        _write(out, loaded, metrics, "ok", "")
        _write_frames(out, result)
        output.line(f"results: {out}")
        if loaded.design.work.played:
            output.line(f"figure: {_draw(out, result)}")
    if timeline is not None:
        from opbyte.sim.timeline import write_perfetto

        timeline.parent.mkdir(parents=True, exist_ok=True)
        write_perfetto(result, timeline)
        output.line(f"timeline: {timeline} (open it in ui.perfetto.dev)")
    return 0


#: What is shown of endurance, and in which unit.
_WORN = {
    "bytes_per_day": "bytes", "write_amplification": None, "rated_bytes": "bytes", "years": None,
    "drive_writes_per_day": None, "share_of_five_years": None,
}  # fmt: skip


def _endurance(result: Result) -> list[dict[str, Any]]:
    """Return how long each flash stands a served trace, or why that is not known."""
    found = []
    for written in result.outcome.detail.get("written", ()):
        try:
            found.append(result.endurance(written.memory).numbers)
        except UncoveredError as error:
            size = written.bytes_per_day
            about = {"memory": written.memory, "bytes_per_day": size, "reason": str(error)}
            found.append(about)
    return found


def _show_endurance(found: dict[str, Any], output: Output) -> None:
    rows = [[name, shown(found[name], kind)] for name, kind in _WORN.items() if name in found]
    output.table(f"KV writes to {found['memory']}", ["", "value"], rows)
    if "reason" in found:
        output.line(found["reason"])


def _utilisation(result: Result) -> dict[str, float]:
    """Return the share of time in which each resource of a served trace is busy, busiest first."""
    if "busy" not in result.outcome.detail:
        return {}
    found = result.resources.set_index("resource")["utilisation"]
    return {str(k): float(v) for k, v in found.sort_values(ascending=False).items()}


def _write_frames(out: Path, result: Result) -> None:
    """Write the operators, of a served trace its requests and its steps, of training its memory."""
    if result.outcome.phases:
        result.breakdown.to_csv(out / "breakdown.csv", index=False)
    for name in ("requests", "series", "memory"):
        if name in result.outcome.detail:
            result.outcome.detail[name].to_parquet(out / f"{name}.parquet", index=False)


def _draw(out: Path, result: Result) -> Path:
    """Draw a served trace, as PNG and PDF, and return the PNG."""
    import matplotlib.pyplot as plt

    from opbyte.sweeps.plots import save, serving

    figure = serving(result)
    png, _ = save(figure, out / "serving")
    plt.close(figure)
    return png


def _operators(result: Result) -> list[dict[str, Any]]:
    """Return the breakdown summed by phase, operator and unit, longest first."""
    if not result.outcome.phases:
        return []
    frame = result.breakdown
    keys = ["phase", "operator", "unit", "bound_by"]
    sums = frame.groupby(keys, sort=False)[["seconds", "flops", "joules"]].sum().reset_index()
    sums["share"] = sums["seconds"] / sums["seconds"].sum()
    sums = sums.sort_values("seconds", ascending=False, kind="stable")
    return [{str(k): v for k, v in record.items()} for record in sums.to_dict("records")]


def _show_operators(operators: list[dict[str, Any]], output: Output) -> None:
    rows = [
        [
            str(o["phase"]), str(o["operator"]), str(o["unit"]), str(o["bound_by"]),
            shown(o["seconds"], "seconds"), f"{100 * o['share']:.1f} %",
            shown(o["joules"], "joules"),
        ]
        for o in operators[:_MOST_OPERATORS]
    ]  # fmt: skip
    more = len(operators) - len(rows)
    title = "Operators" + (f", longest {len(rows)} of {len(operators)}" if more > 0 else "")
    heads = ["phase", "operator", "unit", "bound by", "time", "share", "energy"]
    output.table(title, heads, rows, left=4)


def _write(
    out: Path, loaded: LoadedExperiment, metrics: Mapping[str, float], status: str, reason: str
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    data = {
        "experiment": loaded.config,
        "status": status,
        "reason": reason,
        "metrics": dict(metrics),
    }
    text = json.dumps(plain(data), indent=1, sort_keys=True)
    (out / "experiment.json").write_text(f"{text}\n", encoding="utf-8")
