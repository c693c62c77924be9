"""How far the numbers of a study can be trusted: where its machines' parameters come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from opbyte.core.errors import OpbyteError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sweeps.sensitivity import sensitivity
from opbyte.sweeps.validation.knobs import standing_of
from opbyte.workloads.works import Work

#: Source of a parameter that the study itself chooses.
CHOSEN = "axis of the study"
#: Relative change of a metric above which a parameter matters: that of `opbyte validate`.
MATTERS = 0.01


def evidence(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return, for each machine of a study, its parameters counted by kind of source.

    Args:
        study: The study as written.
    Returns:
        One dict for each machine: name, counts by `published`, `assumed`, `calibrated` and
        `unsourced`, and the calibrated and unsourced paths.
    """
    found: list[dict[str, Any]] = []
    for name in dict.fromkeys(str(m) for m in _machines(study)):
        try:
            machine = load_machine(name)
        except OpbyteError as error:
            found.append({"name": name, "problem": str(error)})
            continue
        kinds: dict[str, list[str]] = {
            "published": [], "assumed": [], "calibrated": [], "unsourced": []
        }  # fmt: skip
        for path, parameter in machine.parameters.items():
            kinds[kind_of(parameter.source)].append(path)
        found.append({"name": name, "problem": "", **kinds})
    return found


def class_of(
    machine: Machine, work: Work, metric: str, mapping: SoftwareMapping
) -> tuple[str, list[str]]:
    """Return the evidence class of a simulated metric, and the parameters that lower it.

    As `opbyte validate` computes it: of the parameters whose change by 10 % (assumed ones: also to
    an end of their range) moves the metric by more than 1 %, the worst source decides.

    Args:
        machine: At its design point; what the study chose has no say.
    Returns:
        `predicted`, `assumed` or `calibrated`, and the paths that make it so.
    """
    bare = {p: dataclasses.replace(v, range=None) for p, v in machine.parameters.items()}
    by_part = Machine(machine.config, machine.document, machine.values, bare)
    small = sensitivity(by_part, work, metric, mapping=mapping)
    wide = sensitivity(machine, work, metric, mapping=mapping)
    wide = wide[[standing_of(s) == "assumed" for s in wide["source"]]]
    found: dict[str, list[str]] = {"calibrated": [], "assumed": []}
    value = float(small.attrs["value"])
    both = pd.concat([small, wide]).drop(columns="span")
    moved = np.abs(both[["at_low", "at_high"]].to_numpy() / value - 1)
    moves = np.where(np.isnan(moved), np.inf, moved).max(axis=1, initial=0.0) > MATTERS
    for path, source in zip(both["parameter"][moves], both["source"][moves], strict=True):
        word = standing_of(source)
        if source != CHOSEN and word in found and path not in found[word]:
            found[word].append(path)
    for word, paths in found.items():
        if paths:
            return word, paths
    return "predicted", []


def kind_of(source: str | None) -> str:
    """Return what a parameter's source is worth: as `standing_of`, but none is `unsourced`."""
    words = (source or "").strip()
    return standing_of(words) if words else "unsourced"


def _machines(study: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the machines that a study mentions."""
    base, baseline = study.get("base") or {}, study.get("baseline") or {}
    candidates = [base.get("machine"), baseline.get("machine")]
    axis = (study.get("axes") or {}).get("machine")
    values = axis.get("values") if isinstance(axis, Mapping) else axis
    candidates += values if isinstance(values, list) else []
    strategy = study.get("strategy")
    points = strategy.get("points") if isinstance(strategy, Mapping) else None
    candidates += [p.get("machine") for p in points] if isinstance(points, list) else []
    yield from (c for c in candidates if isinstance(c, str))
