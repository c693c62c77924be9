"""How far the numbers of a study can be trusted: where its machines' parameters come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from opbyte.core.errors import OpbyteError
from opbyte.hw_models.machine import load_machine


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


def kind_of(source: str | None) -> str:
    """Return what a parameter's source is worth, by how it begins.

    Returns:
        `calibrated`, `assumed` (which a number from memory is too), `published`, or `unsourced`.
    """
    words = (source or "").strip().lower()
    if not words:
        return "unsourced"
    if words.startswith("calibrated"):
        return "calibrated"
    return "assumed" if words.startswith(("assumed", "recalled")) else "published"


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
