"""Least squares of one operator class's parameters on the logarithm of measured times.

Soft-L1 loss; each parameter is drawn to the value that the machine has by the spread of its
logarithm, so that what the rows do not determine stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.mapping import Mapping
from opbyte.core.ops import Array
from opbyte.hw_models.machine import Machine
from opbyte.sim.batch import Batch
from opbyte.sweeps.bands import Band
from opbyte.sweeps.calibration.classes import OperatorClass

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FEWEST_ROWS", "Fit", "Progress", "fit"]

FEWEST_ROWS = 20
#: Called with the number of evaluations and the mean absolute error of the fitted rows.
Progress = Callable[[int, float], None]

_WEIGHT = 0.1
_SOFT = 0.1
#: Most that the logarithm of a parameter moves.
_MOST = 2.0
#: The least over kernels has kinks: coarse differences first.
_STEPS = (0.05, 0.02, 0.005)
_NEARLY = 0.999


@dataclass(frozen=True)
class Fit:
    """A fit of one class and what it is worth.

    Attributes:
        values: Fitted value of each parameter, by short path.
        rows: Rows that were fitted.
        others: Rows that were not: columns of the batch frame, `measured`, and our seconds with
            the machine's own (`before`) and with the fitted values (`seconds`).
        source: What the fitted parameters say of themselves.
    """

    operators: OperatorClass
    values: dict[str, float]
    rows: int
    others: pd.DataFrame = field(repr=False)
    source: str

    @cached_property
    def before(self) -> dict[str, Band]:
        """Return the errors of the other rows by band, with the machine's own values."""
        return {band.band: band for band in self._bands("before")}

    @cached_property
    def after(self) -> dict[str, Band]:
        """Return the errors of the other rows by band, with the fitted values."""
        return {band.band: band for band in self._bands("seconds")}

    def _bands(self, column: str) -> list[Band]:
        rows, operators = self.others, self.operators
        error = 100.0 * (rows[column] / rows["measured"] - 1.0).to_numpy()
        bands = [Band.of("all", error)]
        kinds = rows["kind"].to_numpy()
        named = [kind for kind in operators.kinds if (kinds == kind).any()]
        if len(named) > 1:
            bands += [Band.of(kind, error[kinds == kind]) for kind in named]
        inside = np.searchsorted(operators.ends, rows[operators.band].to_numpy(float))
        for i in range(len(operators.ends) + 1):
            if (inside == i).any():
                bands.append(Band.of(_span(operators.ends, i), error[inside == i]))
        return bands


def fit(
    machine: Machine,
    operators: OperatorClass,
    frame: pd.DataFrame,
    *,
    rows: int = 300,
    seed: int = 0,
    activity: float = 1.0,
    progress: Progress | None = None,
) -> Fit:
    """Fit the parameters of one class.

    Args:
        frame: Rows of the class, with `measured` seconds; `file`, if there, names their origin,
            and `benchmark` the mapping that they were measured under.
        rows: Rows to fit, drawn at random.
        activity: Share of `kernel.energy` that the operands of the rows drew.
    Raises:
        ConfigError: If there are too few rows, or the machine has no block for the class.
        CapacityError, UncoveredError: If the machine can not run a row.
    """
    if not FEWEST_ROWS <= rows < len(frame):
        raise ConfigError.one(
            "", "rows",
            f"must be {FEWEST_ROWS} at least and leave rows of {len(frame)} to judge "
            f"({operators.name})",
            rows, "measure more rows, or fit fewer",
        )  # fmt: skip
    paths = list(operators.paths(machine).values())
    energy = operators.energy_path(machine)
    drawn = {} if energy is None else {energy: machine.values[energy] * activity}
    order = np.random.default_rng(seed).permutation(len(frame))
    few, rest = frame.iloc[order[:rows]], frame.iloc[order[rows:]]
    start = np.array([float(machine.values[p]) for p in paths])
    loaded = machine.with_values(drawn)
    under = list(frame["benchmark"].dropna()) if "benchmark" in frame else []
    benchmark = str(under[0]) if under else ""
    mapping = operators.mapping(machine, benchmark)
    fitted = _Problem.of(loaded, operators, mapping, start, few).solved(progress)
    variants = dict(zip(paths, np.stack([start, fitted], axis=1), strict=True))
    before, after = Batch.of(rest, 2).seconds(loaded, variants, mapping)
    return Fit(
        operators,
        dict(zip(paths, map(float, fitted), strict=True)),
        rows,
        rest.assign(before=before, seconds=after),
        _source(frame, rows, seed, None if energy is None else activity),
    )


def _source(frame: pd.DataFrame, rows: int, seed: int, activity: float | None) -> str:
    files = ", ".join(dict.fromkeys(frame["file"])) if "file" in frame else "measured rows"
    operands = "" if activity is None else f", operands drawing {activity:g} of `energy`"
    return f"calibrated: {rows} rows (seed {seed}) of {len(frame)} in {files}{operands}"


def _span(ends: tuple[float, ...], i: int) -> str:
    if i == len(ends):
        return f"> {ends[-1]:g}" if ends[-1] < 1e6 else f"> {ends[-1]:.0f}"
    low, high = (int(ends[i - 1]) + 1 if i else 1), int(ends[i])
    return f"{low}" if low == high else f"{low}-{high}"


@dataclass(frozen=True)
class _Problem:
    """Residuals of a fit over x, the logarithm of each parameter over its start.

    Attributes:
        one, many: The fitted rows, once, and once beside each parameter's change.
        lower, upper: Bounds of x.
    """

    machine: Machine
    mapping: Mapping | None
    paths: list[str]
    start: Array
    spread: Array
    lower: Array
    upper: Array
    measured: Array
    one: Batch
    many: Batch

    @classmethod
    def of(
        cls, machine: Machine, operators: OperatorClass, mapping: Mapping | None, start: Array,
        rows: pd.DataFrame,
    ) -> _Problem:  # fmt: skip
        """Return the problem of fitting some rows."""
        paths = list(operators.paths(machine).values())
        ratio = np.array([machine.parameters[p].dimension == "ratio" for p in paths])
        with np.errstate(divide="ignore"):
            least = np.log(operators.least() / start)
        return cls(
            machine, mapping, paths, start, np.array(list(operators.spread.values())),
            np.clip(least, -_MOST, -1e-6),
            np.where(ratio, np.minimum(_MOST, np.log(_NEARLY / start)), _MOST),
            np.log(rows["measured"].to_numpy(float)),
            Batch.of(rows), Batch.of(rows, len(paths) + 1),
        )  # fmt: skip

    def logarithms(self, batch: Batch, x: Array) -> Array:
        """Return the logarithm of simulated over measured time, (variants, rows).

        Args:
            x: (variants, parameters).
        """
        values: dict[str, Any] = dict(zip(self.paths, (self.start * np.exp(x)).T, strict=True))
        found: Array = np.log(batch.seconds(self.machine, values, self.mapping)) - self.measured
        return found

    def slopes(self, step: float, x: Array) -> Array:
        """Return the derivatives of the residuals, (rows + parameters, parameters)."""
        steps = np.where(x + step > self.upper, -step, step)
        found = self.logarithms(self.many, x + np.vstack([np.zeros_like(x), np.diag(steps)]))
        return np.vstack([((found[1:] - found[0]) / steps[:, None]).T, np.diag(self.pull)])

    @property
    def pull(self) -> Array:
        """Return the weight of each parameter's distance from its start."""
        return _WEIGHT / self.spread

    def solved(self, progress: Progress | None) -> Array:
        """Return the fitted values, (parameters,)."""
        from scipy.optimize import least_squares

        calls = 0

        def residuals(x: Array) -> Array:
            nonlocal calls
            error = self.logarithms(self.one, x[None])[0]
            calls += 1
            if progress is not None:
                progress(calls, float(np.abs(error).mean()))
            return np.concatenate([error, self.pull * x])

        x, best = np.zeros(len(self.start)), None
        for step in _STEPS:
            found = least_squares(
                residuals, np.clip(x, self.lower + 1e-6, self.upper - 1e-6),
                jac=partial(self.slopes, step), loss="soft_l1", f_scale=_SOFT,
                x_scale=0.3, max_nfev=25, bounds=(self.lower, self.upper),
            )  # fmt: skip
            x = found.x
            best = found if best is None or found.cost < best.cost else best
        assert best is not None
        return self.start * np.exp(best.x)
