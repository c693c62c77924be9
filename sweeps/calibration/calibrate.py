"""Calibration: fits a machine's parameters to measured operators, and judges on the other rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opbyte.core.config import resolve_path
from opbyte.core.errors import ConfigError
from opbyte.core.units import format_quantity
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.hw_models.machine_file import STRUCTURE
from opbyte.sweeps.calibration.classes import CLASSES
from opbyte.sweeps.calibration.fit import Fit, fit

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Calibration", "calibrate"]


@dataclass(frozen=True)
class Calibration:
    """Fits of one or several operator classes.

    Attributes:
        fits: In the order in which they were fitted.
        document: The machine that extends the calibrated one.
    """

    fits: tuple[Fit, ...]
    document: dict[str, Any]

    @property
    def values(self) -> dict[str, float]:
        """Return the fitted value of each parameter, by short path."""
        return {path: value for one in self.fits for path, value in one.values.items()}


def calibrate(
    machine: str | Path | Machine,
    frame: pd.DataFrame,
    name: str,
    *,
    rows: int = 300,
    seed: int = 0,
    activity: float = 1.0,
    progress: Callable[[str, int, float], None] | None = None,
) -> Calibration:
    """Fit the parameters of the operator classes that the rows are of, one after the other.

    A class is fitted on top of those before it: attention with the products' fitted values.

    Args:
        frame: Of `read_rows`: `kind`, the fields of that kind, `measured` seconds.
        name: Name of the machine that is written.
        rows: Rows of each class to fit, drawn at random.
        seed: Of the draw.
        activity: Share of `kernel.energy` that the operands of the rows drew.
        progress: Called with the class, the number of evaluations and the mean error.
    Raises:
        ConfigError: If a class has too few rows, or the machine no block for it.
        CapacityError, UncoveredError: If the machine can not run a row.
    """
    loaded = current = load_machine(machine)
    mine = [(c, frame[frame["kind"].isin(c.kinds)]) for c in CLASSES]
    there = [(operators, own) for operators, own in mine if len(own)]
    if not there:
        raise ConfigError.one("", "frame", "holds no row that can be fitted", len(frame), "")
    for operators, _ in there:
        operators.paths(loaded)
    fits = []
    for operators, own in there:
        told = None if progress is None else partial(progress, operators.name)
        found = fit(current, operators, own, rows=rows, seed=seed, activity=activity, progress=told)
        current = current.with_values(found.values)
        fits.append(found)
    extends = loaded.name if isinstance(machine, Machine) else str(machine)
    return Calibration(tuple(fits), _document(loaded, extends, name, fits))


def _document(machine: Machine, extends: str, name: str, fits: list[Fit]) -> dict[str, Any]:
    """Return a machine file that extends the calibrated machine with the fitted values."""
    classes = ", ".join(one.operators.name for one in fits)
    document: dict[str, Any] = {
        "kind": "machine", "extends": extends, "name": name,
        "description": f"{machine.name}, calibrated on measured {classes}.",
    }  # fmt: skip
    for one in fits:
        for path, value in one.values.items():
            parameter = machine.parameters[path]
            *steps, last = resolve_path(machine.document.data, path, transparent=STRUCTURE)
            node = document
            for step in steps:
                node = node.setdefault(step, {})
            written: dict[str, Any] = {
                "value": _text(value, parameter.dimension),
                "source": one.source,
            }
            if parameter.range is not None:
                # What is plausible contains what was found.
                ends = (min(parameter.range[0], value), max(parameter.range[1], value))
                written["range"] = [_text(v, parameter.dimension) for v in ends]
            node[last] = written
    return document


def _text(value: float, dimension: str) -> str | float:
    return value if dimension in ("ratio", "factor") else format_quantity(value, dimension, 17)
