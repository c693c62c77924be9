"""Columns as quantities: what an axis is called, in which unit, and how its ticks read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from opbyte.core.ops import Array

Prefixes = Literal["si", "binary", "none"]

_SI = ((1e-12, "p"), (1e-9, "n"), (1e-6, "µ"), (1e-3, "m"), (1.0, ""), (1e3, "k"), (1e6, "M"),
       (1e9, "G"), (1e12, "T"), (1e15, "P"), (1e18, "E"))  # fmt: skip
_BINARY = ((1.0, ""), (2.0**10, "Ki"), (2.0**20, "Mi"), (2.0**30, "Gi"), (2.0**40, "Ti"),
           (2.0**50, "Pi"))  # fmt: skip
#: Spans above this get a logarithmic axis, and a unit on every tick.
_WIDE_LOG = 50.0
#: Least share of an axis between two ticks, and that of a letter, on axes one column wide.
_APART, _LETTER = 0.075, 0.021
#: Letters of a unit that fit below every tick of an x axis.
_SHORT = 3


@dataclass(frozen=True)
class Quantity:
    """What a column holds.

    Attributes:
        label: Words for an axis or a table.
        unit: Symbol without prefix; empty for counts and ratios.
        scale: Factor from the column's SI values to `unit`.
        prefixes: Which prefixes the unit takes.
    """

    label: str
    unit: str = ""
    scale: float = 1.0
    prefixes: Prefixes = "none"


def _named(label: str, unit: str, prefixes: Prefixes = "si", scale: float = 1.0) -> Quantity:
    return Quantity(label, unit, scale, prefixes)


_METRICS = MappingProxyType(
    {
        "seconds": _named("Time", "s"),
        "joules": _named("Energy", "J"),
        "watts": _named("Power", "W"),
        "flops": _named("Operations", "FLOP"),
        "kernels": Quantity("Kernel launches"),
        "switch_one_s": _named("Time of one switch", "s"),
        "expert_one_s": _named("Time of one expert run", "s"),
        "op_per_byte": _named("Operational intensity", "FLOP/B", "none"),
        "tokens_per_s": _named("Throughput", "tokens/s", "none"),
        "joules_per_token": _named("Energy per token", "J"),
        "weight_bytes_per_token": _named("Weights loaded per token, without experts", "B"),
        "expert_bytes_per_token": _named("Experts loaded per token", "B"),
        "area_m2": _named("Logic die area", "mm²", "none", 1e6),
        "price_usd": _named("Price", "USD"),
        "carbon_kg": _named("Carbon of making", "kg", "none"),
        "tdp_w": _named("Design power", "W"),
        "usd_per_mtoken": _named("Cost", "USD/Mtoken", "none"),
        "tco_usd_per_mtoken": _named("Cost with energy", "USD/Mtoken", "none"),
        "carbon_g_per_mtoken": _named("Carbon per million tokens", "g", "none"),
        "dynamic_joules": _named("Energy of the steps", "J"),
        "static_joules": _named("Energy of idle parts", "J"),
        "goodput_per_s": _named("Goodput", "requests/s", "none"),
        "requests_per_s": _named("Requests served", "requests/s", "none"),
        "rate": _named("Rate of requests", "requests/s", "none"),
        "ttft": _named("Time to first token", "s"),
        "tpot": _named("Time per output token", "s"),
        "itl": _named("Time between tokens", "s"),
        "latency": _named("Time to last token", "s"),
        "plain_tpot": _named("Time per output token, plain", "s"),
        "tokens_per_step": Quantity("Tokens per step"),
        "speedup_over_plain": _named("Speed over plain decoding", "×", "none"),
        "draft_share": Quantity("Share of the draft"),
        "router_s": _named("Router time", "s"),
        "switch_s": _named("Switching time", "s"),
        "expert_s": _named("Expert time", "s"),
        "block_s": _named("Time of a layer with experts", "s"),
        "copied_bytes": _named("Bytes copied", "B"),
        "peak_fast_bytes": _named("Bytes in the fast memory", "B", "binary"),
        "kv_bytes": _named("KV cache of all sequences", "B", "binary"),
        "batch_max": _named("Sequences that fit", "sequences", "none"),
        "misses": Quantity("Expert misses"),
        "hit_rate": Quantity("Hit rate"),
        "models_in_fast": Quantity("Models in the fast tier"),
        "models_max": Quantity("Models that fit"),
        "nodes_fast": Quantity("Nodes, all models in the fast tier"),
        "nodes_max": Quantity("Nodes, models in any tier"),
        "speedup": _named("Speedup over the baseline", "×", "none"),
        "bytes": _named("Bytes", "B"),
        "batch": Quantity("Batch size"),
        "context": _named("Context", "tokens", "none"),
        "input": _named("Input", "tokens", "none"),
        "output": _named("Output", "tokens", "none"),
        "count": Quantity("Number of experts"),
        "experts.count": Quantity("Number of experts"),
        "parallel.all.pp": Quantity("Pipeline stages"),
        "parallel.all.tp": Quantity("Devices that share a matrix"),
        "parallel.all.ep": Quantity("Devices that share the experts"),
        "pipeline.batches": Quantity("Batches in the pipeline"),
    }
)
#: Last word of a machine's parameter -> unit and prefixes.
_PARAMETERS = MappingProxyType(
    {
        "bandwidth": ("B/s", "si"),
        "capacity": ("B", "binary"),
        "latency": ("s", "si"),
        "clock": ("Hz", "si"),
        "vector": ("FLOP/s", "si"),
        "power": ("W", "si"),
        "static_power": ("W", "si"),
    }
)
_STATISTICS = MappingProxyType(
    {"mean": "mean", **{f"p{n}": f"{n}th percentile" for n in (50, 90, 99)}, "max": "largest"}
)
_ROOTS = ("machine.", "mapping.", "workload.", "metric.")


def quantity(column: str) -> Quantity:
    """Return what a metric or an axis path such as `machine.rdu.hbm.phy.bandwidth` holds."""
    path = next((column.removeprefix(r) for r in _ROOTS if column.startswith(r)), column)
    if path in _METRICS:
        return _METRICS[path]
    time, _, statistic = path.partition("_")
    if statistic in _STATISTICS and time in _METRICS:
        return replace(_METRICS[time], label=f"{_METRICS[time].label}, {_STATISTICS[statistic]}")
    words = path.split(".")
    if len(words) > 1 and words[-2] in ("peak", "launch"):
        unit = "FLOP/s" if words[-2] == "peak" else "s"
        return _named(f"{'.'.join(words[:-2])} {words[-2]}, {words[-1]}".strip(), unit)
    if words[-1] in _PARAMETERS:
        unit, prefixes = _PARAMETERS[words[-1]]
        label = f"{'.'.join(words[:-1])} {words[-1].replace('_', ' ')}".strip()
        return Quantity(label, unit, 1.0, "binary" if prefixes == "binary" else "si")
    if words[-2:-1] == ["timing"]:
        return Quantity(f"{'.'.join(words[:-2])} {words[-1]} (clocks)".strip())
    return Quantity(path if len(words) > 1 else path.replace("_", " ").capitalize())


def show(value: float, column: str) -> str:
    """Return a value of a column as text with its unit, such as `1.8 TB/s`."""
    return show_as(value, quantity(column))


def show_as(value: float, q: Quantity) -> str:
    """Return an SI value as text with its unit."""
    if not math.isfinite(value):
        return "n/a"
    tight = "" if q.unit == "×" else " "
    if q.prefixes == "none" and q.scale == 1 and value == int(value):
        return f"{int(value):,}{tight}{q.unit}".strip()
    prefixes: Prefixes = "si" if _decimal(value * q.scale, q.prefixes) else q.prefixes
    factor, prefix = _prefix(abs(value) * q.scale, prefixes)
    return f"{_number(value * q.scale / factor, 3)}{tight}{prefix}{q.unit}".strip()


def span_of(values: Any) -> float:
    """Return largest over smallest value, or 0 where not all are positive and finite."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    return float(finite.max() / finite.min()) if len(finite) and finite.min() > 0 else 0.0


def dress(axis: Axis, column: str, values: Any, *, log: bool) -> None:
    """Give an axis its scale, label and ticks with units.

    Args:
        axis: The x or y axis of some axes.
        column: Metric or parameter path that the axis shows.
        values: What is drawn on it, SI.
        log: Logarithmic; ignored where a value is not positive.
    """
    dress_as(axis, quantity(column), values, log=log)


def dress_as(axis: Axis, q: Quantity, values: Any, *, log: bool) -> None:
    """Give an axis the scale, label and ticks of a quantity; see `dress`."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    log = log and bool(len(finite)) and finite.min() > 0
    set_scale = axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale
    top = float(np.abs(finite).max()) if len(finite) else 1.0
    middle = float(np.sqrt(finite.min() * top)) if log else top
    factor, prefix = _prefix(middle * q.scale, q.prefixes)
    crowded = axis is axis.axes.xaxis and len(q.unit) > _SHORT
    each = log and span_of(finite) > _WIDE_LOG and q.prefixes != "none" and not crowded

    def text(value: float) -> str:
        return show_as(value, q) if each else _number(value * q.scale / factor)

    if log:
        set_scale("log")
        _log_ticks(axis, finite, text)
    else:
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: text(v)))
    unit = "" if each else prefix + q.unit
    axis.set_label_text(f"{q.label} ({unit})" if unit else q.label)


def _log_ticks(axis: Axis, values: Array, text: Callable[[float], str]) -> None:
    """Set ticks at the values themselves where they are few, else at round numbers.

    Args:
        text: What stands at a tick.
    """
    axis.set_minor_formatter(NullFormatter())
    low, high = float(values.min()), float(values.max())
    distinct = np.unique(values)
    if 2 < len(distinct) <= 10 and axis is axis.axes.xaxis and _apart(distinct, text):
        axis.set_major_locator(FixedLocator(distinct.tolist()))
        axis.set_minor_locator(FixedLocator([]))
        return
    if axis is axis.axes.xaxis and np.all(np.log2(distinct) % 1 == 0):
        every = -(-len(distinct) // 7)
        axis.set_major_locator(
            FixedLocator((distinct[0] * 2.0 ** np.arange(0, 64, every)).tolist())
        )
        axis.set_minor_locator(FixedLocator([]))
        return
    decades = math.log10(high / low) if high > low else 0.0
    subs: Sequence[float] = (
        (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 3 else (1.0,)
    )
    axis.set_major_locator(LogLocator(base=10.0, subs=subs, numticks=12))
    axis.set_minor_locator(LogLocator(base=10.0, subs=np.arange(1, 10).tolist(), numticks=60))


def _apart(distinct: Array, text: Callable[[float], str]) -> bool:
    """Return whether the texts of ticks stand clear of each other."""
    gaps = np.diff(np.log(distinct)) / np.log(distinct[-1] / distinct[0])
    wide = _LETTER * np.array([len(text(float(v))) for v in distinct])
    return bool(np.all(gaps >= np.maximum(_APART, (wide[1:] + wide[:-1]) / 2.0)))


def _prefix(value: float, prefixes: Prefixes) -> tuple[float, str]:
    if prefixes == "none" or value <= 0:
        return 1.0, ""
    table = _SI if prefixes == "si" else _BINARY
    return max((p for p in table if p[0] <= value * (1 + 1e-9)), default=table[0])


def _decimal(value: float, prefixes: Prefixes) -> bool:
    """Return whether bytes are a whole number of GB, say, and not of GiB: 141 GB."""
    if prefixes != "binary":
        return False
    whole = {p: float(value / _prefix(abs(value), p)[0]).is_integer() for p in (prefixes, "si")}
    return whole["si"] and not whole["binary"]


def _number(value: float, digits: int = 4) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1e7 or abs(value) < 1e-4:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{float(f'{value:.{digits}g}'):g}" if abs(value) >= 100 else f"{value:.3g}"
