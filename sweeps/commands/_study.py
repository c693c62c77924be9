"""What `sweep` and `search` share: read, run with progress, show the answer."""

from __future__ import annotations

import dataclasses
import re
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opbyte.core.errors import ConfigError
from opbyte.sweeps.console import Output, RunProgress
from opbyte.sweeps.files import read_json
from opbyte.sweeps.study import load_study, parse_settings

if TYPE_CHECKING:
    from opbyte.sweeps.plan import Plan
    from opbyte.sweeps.store import Results

_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    study: str
    out: Path | None
    workers: int | None
    executor: str
    shard: str | None
    fidelity: str | None
    settings: list[str]
    fresh: bool
    plots: bool
    json: bool
    quiet: bool
    search: bool = False
    trials: int | None = None
    seed: int | None = None
    start: list[str] = field(default_factory=list)
    dashboard: Path | None = None


def run_study(request: Request) -> int:
    """Run a study and return the exit code; nobody else writes until it is drawn and shown."""
    with ExitStack() as held:
        return _run(request, held)


def _run(request: Request, held: ExitStack) -> int:
    from opbyte.sweeps.runner import Options, run_plan
    from opbyte.sweeps.summary import show

    output = Output(json=request.json, quiet=request.quiet)
    if request.dashboard is not None:
        from opbyte.sweeps.search.dashboard import check_target

        check_target(request.dashboard)
    settings = parse_settings(request.settings)
    if request.fidelity:
        settings["fidelity"] = request.fidelity
    plan = load_study(request.study, settings).plan
    if request.search:
        plan = _searched(plan, request)
    options = Options(
        out=request.out, workers=request.workers, executor=request.executor,
        shard=_shard(request.shard), fresh=request.fresh, held=held,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = RunProgress(output)
    try:
        results = run_plan(plan, options, progress=progress)
    except KeyboardInterrupt:
        progress.close()
        folder = options.out or Path("results") / plan.name
        sys.stderr.write(f"finished points are in {folder}; run the same command to go on\n")
        raise
    finally:
        progress.close()
    drawn = _plots(results, output) if request.plots and not request.shard else []
    about = _about_search(results) if request.search else {}
    if request.dashboard is not None:
        from opbyte.sweeps.search.dashboard import export_dashboard

        about["dashboard_trials"] = export_dashboard(results, request.dashboard)
    show(results, output, drawn, about)
    return 1 if results.counts.get("failed") else 0


def _about_search(results: Results) -> dict[str, Any]:
    """Return how the search of a folder went."""
    from opbyte.sweeps.search.run import SUMMARY

    about: dict[str, Any] = read_json(results.folder / SUMMARY)
    return about


def _searched(plan: Plan, request: Request) -> Plan:
    """Return the plan with the strategy of a search."""
    from opbyte.sweeps.study import Optuna

    strategy = plan.study.strategy
    given = strategy if isinstance(strategy, Optuna) else Optuna(kind="optuna")
    changes: dict[str, Any] = {}
    if request.trials is not None:
        changes["trials"] = request.trials
    if request.seed is not None:
        changes["seed"] = request.seed
    if request.start:
        changes["results"] = [*given.results, *request.start]
    study = plan.study.model_copy(update={"strategy": given.model_copy(update=changes)})
    return dataclasses.replace(plan, study=study)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return (1, 1)
    match = _SHARD.fullmatch(text.strip())
    part, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= parts:
        rule = "a shard is I/N with I from 1 to N"
        raise ConfigError.one("--shard", "", rule, text, "Write for example 3/16.")
    return part, parts


def _plots(results: Results, output: Output) -> list[Path]:
    """Draw the study's figures, where there is anything to draw."""
    if not results.counts.get("ok"):
        return []
    try:
        from opbyte.sweeps.plots import study_plots
    except ImportError as error:
        output.note(f"no figures: {error}")
        return []
    return study_plots(results.folder)
