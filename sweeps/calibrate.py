"""Calibration: fits a GPU's kernel parameters to measured products, and judges on the others.

Least squares on the logarithm of time with a soft-L1 loss (`scipy.optimize.least_squares`). Each
parameter is drawn to the value that the machine has by its standard deviation in the logarithm, so
that what the rows do not determine stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from opbyte.core.config import resolve_path
from opbyte.core.dtypes import lookup
from opbyte.core.errors import ConfigError
from opbyte.core.ops import Array
from opbyte.core.units import format_quantity
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.gpu.parameters import GpuView
from opbyte.hw_models.machine import STRUCTURE, Machine, load_machine

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BANDS", "Calibration", "calibrate", "read_rows"]

#: Bands of m by which errors are reported.
BANDS = ((1, 1), (2, 16), (17, 64), (65, 256), (257, 1024), (1025, 2**40))
#: Standard deviation of the logarithm that the sources of each parameter leave.
SPREAD = {
    "kernel.matrix": 0.02,
    "launch": 0.4,
    "kernel.fill": 0.5,
    "kernel.latency": 0.3,
    "kernel.epilogue": 0.5,
    "kernel.split": 0.5,
    "efficiency": 0.12,
    "kernel.l2": 0.08,
    "kernel.l2_share": 0.7,
    "kernel.overlap": 0.5,
    "kernel.tail": 0.7,
}
_WEIGHT = 0.1
_MOST = 2.0
#: The least over kernels has kinks: coarse differences first.
_STEPS = (0.05, 0.02, 0.005)
_FEWEST_ROWS = 20


@dataclass(frozen=True)
class Calibration:
    """A fit and what it is worth.

    Attributes:
        values: Fitted value of each parameter, by short path.
        before, after: Errors on rows that were not fitted: band -> rows, mape, bias, median, p95
            (percent), with the machine's own and with the fitted values.
        source: What the fitted parameters say of themselves.
        document: The machine that extends the calibrated one.
    """

    values: dict[str, float]
    before: dict[str, dict[str, float]]
    after: dict[str, dict[str, float]]
    source: str
    document: dict[str, Any]


def read_rows(path: Path) -> pd.DataFrame:
    """Return measured products: m, n, k, dtype, seconds.

    Args:
        path: Parquet with m, n, k, latency (milliseconds), or CSV with m, n, k, dtype,
            microseconds. Parquet rows have the dtype bf16 if there is no column for it.
    Raises:
        ConfigError: For a file that can not be read, columns that are missing, or the first cell
            that is not a positive number, with its line.
    """
    import pandas as pd

    parquet = path.suffix == ".parquet"
    try:
        frame = pd.read_parquet(path) if parquet else pd.read_csv(path, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise ConfigError.one(str(path), "", f"can not be read: {error}", "", "") from None
    time, scale = ("latency", 1e-3) if parquet else ("microseconds", 1e-6)
    if parquet and "dtype" not in frame:
        frame["dtype"] = "bf16"
    missing = [c for c in ("m", "n", "k", "dtype", time) if c not in frame]
    if missing:
        raise ConfigError.one(
            str(path), "", f"lacks the column {', '.join(missing)}", "",
            f"It has: {', '.join(map(str, frame.columns))}.",
        )  # fmt: skip
    for column in ("m", "n", "k", time):
        numbers = pd.to_numeric(frame[column], errors="coerce").to_numpy(float)
        whole = column == time
        bad = ~(np.isfinite(numbers) & (numbers > 0) & (whole | (numbers == np.floor(numbers))))
        if bad.any():
            at = int(np.argmax(bad))
            where = f"{path}: row {at}" if parquet else f"{path}:{at + 2}"
            rule = "must be a positive number" if whole else "must be a whole number of at least 1"
            raise ConfigError.one(where, column, rule, frame[column].iloc[at], "")
        frame[column] = numbers
    frame["dtype"] = [lookup(str(d)).name for d in frame["dtype"]]
    return frame[["m", "n", "k", "dtype"]].assign(seconds=frame[time] * scale)


def calibrate(
    machine: str | Path | Machine,
    frame: pd.DataFrame,
    name: str,
    *,
    rows: int = 300,
    seed: int = 0,
    activity: float = 1.0,
    on: str = "measured rows",
    progress: Callable[[int, float], None] | None = None,
) -> Calibration:
    """Fit the kernel parameters of the machine's GPU.

    Args:
        frame: Of `read_rows`.
        name: Name of the machine that is written.
        rows: Rows to fit, drawn at random.
        activity: Share of `kernel.energy` that the operands of the rows drew.
        on: What was measured, for the `calibrated:` source.
        progress: Called with the number of evaluations and the cost, now and then.
    Raises:
        ConfigError: If there are too few rows, or no unit with a `kernel` block.
    """
    from scipy.optimize import least_squares

    loaded = load_machine(machine)
    view = _gpu(loaded)
    if not _FEWEST_ROWS <= rows < len(frame):
        raise ConfigError.one(
            "", "rows", f"must be {_FEWEST_ROWS} at least and leave rows of {len(frame)} to judge",
            rows, "measure more rows, or fit fewer",
        )  # fmt: skip
    order = np.random.default_rng(seed).permutation(len(frame))
    few, rest = frame.iloc[order[:rows]], frame.iloc[order[rows:]]
    paths = {key: _path(view, key) for key in SPREAD}
    start = np.array([float(loaded.values[p]) for p in paths.values()])
    spread = np.array(list(SPREAD.values()))
    ratio = np.array([loaded.parameters[p].dimension == "ratio" for p in paths.values()])
    upper = np.where(ratio, np.minimum(_MOST, np.log(0.999 / start)), _MOST)
    measured = np.log(few["seconds"].to_numpy())
    calls = 0

    def residuals(x: Array) -> Array:
        nonlocal calls
        seconds = _seconds(loaded, paths, start * np.exp(x), few, activity)
        residual = np.concatenate([np.log(seconds) - measured, _WEIGHT * x / spread])
        calls += 1
        if progress is not None:
            progress(calls, float(np.abs(residual[: len(few)]).mean()))
        return residual

    x, best = np.zeros(len(start)), None
    for step in _STEPS:
        found = least_squares(
            residuals, np.minimum(x, upper - 1e-6), loss="soft_l1", f_scale=0.1,
            diff_step=[step] * len(start), x_scale=0.3, max_nfev=25,
            bounds=(np.full(len(start), -_MOST), upper),
        )  # fmt: skip
        x = found.x
        best = found if best is None or found.cost < best.cost else best
    fitted = start * np.exp(best.x if best is not None else x)
    source = (
        f"calibrated: {rows} rows (seed {seed}) of {on}, operands drawing {activity:g} of `energy`"
    )
    values = dict(zip(paths.values(), (float(v) for v in fitted), strict=True))
    return Calibration(
        values,
        _errors(rest, _seconds(loaded, paths, start, rest, activity)),
        _errors(rest, _seconds(loaded, paths, fitted, rest, activity)),
        source,
        _document(
            loaded,
            loaded.name if isinstance(machine, Machine) else str(machine),
            name,
            values,
            source,
        ),
    )


def _gpu(machine: Machine) -> GpuView:
    for path, unit in machine.units.items():
        if unit.config.kernel is not None:
            view = GpuView.of(UnitView(machine, path))
            if view is not None:
                return view
    raise ConfigError.one(
        machine.document.name, "", f"machine '{machine.name}' has no unit with a `kernel` block",
        "", "give its gpu one, such as that of a100-sxm-80gb",
    )  # fmt: skip


def _path(view: GpuView, key: str) -> str:
    """Return the short path of a fitted parameter."""
    if key == "efficiency":
        return f"{view.home}.efficiency"
    if key == "launch":
        return f"{view.unit.path}.launch.{_launch(view.unit.machine)}"
    return f"{view.unit.path}.{key}"


def _launch(machine: Machine) -> str:
    return str(machine.mapping().launch)


def _seconds(
    machine: Machine, paths: dict[str, str], values: Array, frame: pd.DataFrame, activity: float
) -> Array:
    """Return the seconds of each row with other parameters, (rows,)."""
    from opbyte.sim.batch import simulate_batch

    changed: dict[str, Any] = dict(zip(paths.values(), (float(v) for v in values), strict=True))
    energy = paths["kernel.fill"].removesuffix("fill") + "energy"
    if energy in machine.values:
        changed[energy] = machine.values[energy] * activity
    out = simulate_batch(machine.with_values(changed), frame.assign(kind="gemm"))
    seconds: Array = out["seconds"].to_numpy()
    return seconds


def _errors(frame: pd.DataFrame, seconds: Array) -> dict[str, dict[str, float]]:
    """Return errors in percent by band of m, `all` first."""
    error = 100.0 * (seconds / frame["seconds"].to_numpy() - 1.0)
    m = frame["m"].to_numpy()
    bands: dict[str, npt.NDArray[np.bool_]] = {"all": np.ones(len(m), bool)}
    for low, high in BANDS:
        text = f"> {low - 1}" if high >= 2**40 else f"{low}" if low == high else f"{low}-{high}"
        bands[text] = (m >= low) & (m <= high)
    table = {}
    for band, inside in bands.items():
        if inside.any():
            size = np.abs(error[inside])
            table[band] = {
                "rows": float(inside.sum()), "mape": float(size.mean()),
                "bias": float(error[inside].mean()), "median": float(np.median(size)),
                "p95": float(np.percentile(size, 95)),
            }  # fmt: skip
    return table


def _document(
    machine: Machine, extends: str, name: str, values: dict[str, float], source: str
) -> dict[str, Any]:
    """Return a machine file that extends the calibrated machine with the fitted values."""
    document: dict[str, Any] = {
        "kind": "machine", "extends": extends, "name": name,
        "description": f"{machine.name} with kernels calibrated on measured products.",
    }  # fmt: skip
    for path, value in values.items():
        parameter = machine.parameters[path]
        *steps, last = resolve_path(machine.document.data, path, transparent=STRUCTURE)
        node = document
        for step in steps:
            node = node.setdefault(step, {})
        node[last] = {"value": _text(value, parameter.dimension), "source": source}
        if parameter.range is not None:
            # What is plausible contains what was found.
            ends = (min(parameter.range[0], value), max(parameter.range[1], value))
            node[last]["range"] = [_text(v, parameter.dimension) for v in ends]
    return document


def _text(value: float, dimension: str) -> str | float:
    return value if dimension in ("ratio", "factor") else format_quantity(value, dimension, 17)
