"""Stored points as an Optuna study, for optuna-dashboard: `optuna-dashboard FILE`.

The file is a journal, which takes ten thousand points in seconds; Optuna's SQLite storage takes a
third of a second for each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.sweeps.pareto import feasible
from opbyte.sweeps.store import Results

__all__ = ["check_target", "export_dashboard"]


def check_target(file: Path) -> None:
    """Raise unless a journal can be made there.

    Raises:
        ConfigError: If the file exists already, or its folder does not.
    """
    if file.exists():
        remedy = "Name another file, or remove this one."
        raise ConfigError.one(str(file), "", "this file exists already", "", remedy)
    if not file.parent.is_dir():
        remedy = f"Make {file.parent} first."
        raise ConfigError.one(str(file), "", "there is no such folder", "", remedy)


def export_dashboard(results: Results, file: Path) -> int:
    """Write all stored points as trials, and return how many.

    Points without a result are failed trials, those that break a constraint are complete and
    infeasible. Metrics that are no objective stand beside them as attributes.

    Raises:
        ConfigError: If the file exists already, can not be written, or nothing is an objective.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    check_target(file)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    objectives = results.objectives
    columns = results.columns()
    trials = _trials(results, columns)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(file))),
        study_name=results.name,
        directions=["minimize" if way == "min" else "maximize" for way in objectives.values()],
    )
    study.add_trials(trials)
    return len(trials)


def _trials(results: Results, columns: dict[str, Any]) -> list[Any]:
    import optuna

    distributions = {path: _distribution(columns[path]) for path in results.axes}
    fit = feasible(columns)
    values = np.stack([columns[n].astype(np.float64) for n in results.objectives], axis=1)
    others = [n for n in results.meta["metrics"] if n in columns and n not in results.objectives]
    violation = columns.get("violation", np.zeros(len(fit)))
    trials = []
    for i in range(len(fit)):
        given = {p: d for p, d in distributions.items() if not _absent(columns[p][i])}
        fine = columns["status"][i] == "ok" and bool(np.isfinite(values[i]).all())
        extra: dict[str, Any] = {
            n: float(columns[n][i]) for n in others if np.isfinite(columns[n][i])
        }
        extra |= {"status": str(columns["status"][i]), "reason": str(columns["reason"][i])}
        state = optuna.trial.TrialState.COMPLETE if fine else optuna.trial.TrialState.FAIL
        trials.append(
            optuna.trial.create_trial(
                state=state,
                values=values[i].tolist() if fine else None,
                params={p: _plain(columns[p][i]) for p in given},
                distributions=given,
                user_attrs=extra,
                constraints={"violation": float(violation[i])} if fine else None,
            )
        )
    return trials


def _distribution(column: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if column.dtype == object:
        return CategoricalDistribution(sorted({str(v) for v in column if v != ""}) or [""])
    return FloatDistribution(float(np.nanmin(column)), float(np.nanmax(column)))


def _absent(value: Any) -> bool:
    return value == "" if isinstance(value, str) else bool(np.isnan(value))


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else float(value)
