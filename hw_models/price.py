"""Prices placed operators: demand on each resource, fixed latency, joules. No clock runs here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.core.placed import MOVED, PlacedOps, written_name
from opbyte.hw_models import compute as _registered  # noqa: F401  (fills the registry)
from opbyte.hw_models.compute.base import KernelPrices, UnitView
from opbyte.hw_models.link.transfers import with_transfers
from opbyte.hw_models.link.wires import collective_wires
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.pages import turning_pages
from opbyte.hw_models.sharing import chosen, with_arrays
from opbyte.hw_models.waiting import (
    behind_caches,
    first_access,
    miss_seconds,
    with_engines,
)

__all__ = ["Demand", "columns", "first_access", "price", "resource_rate"]

_READ = ("weight", "expert")


@dataclass(frozen=True)
class Demand:
    """The price of each fused operator, one execution on one device.

    Attributes:
        compute: Seconds of arithmetic, (ops, points).
        busy: Seconds that each resource is busy at its effective rate, (ops, resources, points).
        floor: Seconds that streaming takes at least (overlapped collectives), (ops, points).
        latency: Seconds before anything streams, (ops, points).
        joules: Dynamic energy on one device, (ops, points).
        flops: Operations of the table, (ops, 1 or points).
        bytes: Bytes on each resource, (ops, resources, points).
        moved: Bytes by (tensor class, cause), each (ops, 1 or points).
        free: Of the duration, what does not hold the unit, (ops, points); None where all does.
    """

    placed: PlacedOps
    compute: Array
    busy: Array
    floor: Array
    latency: Array
    joules: Array
    flops: Array
    bytes: Array
    moved: dict[tuple[str, str], Array]
    free: Array | None = None

    @property
    def duration(self) -> Array:
        """Return the seconds of each operator when it has everything to itself, (ops, points)."""
        stream = np.maximum(self.compute, self.floor)
        if self.busy.shape[1]:
            stream = np.maximum(stream, self.busy.max(axis=1))
        total: Array = self.latency + stream
        return total


def price(placed: PlacedOps, machine: Machine, *, ideal: bool = False) -> Demand:
    """Return what each operator demands.

    Args:
        ideal: Peaks only, compulsory bytes, no latency: the `bound` fidelity.
    Raises:
        UncoveredError: If a unit, dtype, port or launch mode has no price.
    """
    points = max(placed.table.points, machine.points)
    views = [UnitView(machine, path) for path in placed.units]
    compute, kernels = _compute(placed, views, ideal=ideal)
    moved = _moved(placed, views, ideal=ideal)
    for kernel in kernels.values():
        for cause, again in kernel.moved.items():
            all_of_them = np.zeros((len(placed), again.shape[1]))
            all_of_them[kernel.ops] = again
            moved[cause] = moved.get(cause, 0.0) + all_of_them
    totals = np.zeros((len(placed), len(MOVED), 1)) + np.stack(
        np.broadcast_arrays(*(_total(moved, c) for c in MOVED)), axis=1
    )
    crossing = np.zeros((len(placed), len(placed.resources), totals.shape[2]))
    copied = _copied(placed)
    for u in range(len(views)):
        # A collective on its own reads and writes memory as kernels of the first unit do.
        ops = (placed.unit_of == u) | ((placed.unit_of < 0) & ~copied & (u == 0))
        crossing[ops] = np.einsum("ocp,cr->orp", totals[ops], placed.routes[u])
    crossing, missing = behind_caches(placed, views, totals, crossing, ideal=ideal)
    rates, latencies, energies = _resources(placed, machine, ideal=ideal)
    stepping = np.zeros((len(placed), 1))
    if placed.transfers:
        crossing, stepping = with_transfers(placed, crossing, latencies)
    busy = crossing / rates[None]
    if placed.pages and not ideal:
        busy = busy + turning_pages(placed, views, totals, kernels) / rates[None]
    if placed.collective_link.max(initial=-1) >= 0:
        wires = collective_wires(placed, machine, rates, latencies, ideal=ideal)
        crossing = crossing + wires.bytes
        busy = busy + wires.busy
        stepping = stepping + wires.seconds
    if kernels:
        busy = _waits_inside(placed, machine, kernels, compute, busy)
    busy = with_arrays(placed, crossing, busy, rates)
    if placed.ways and not ideal:
        busy = with_engines(placed, machine, totals, busy)
        compute = np.maximum(compute, miss_seconds(placed, views, totals, missing))
    latency, floor = _latency(placed, machine, views, totals, stepping, kernels, ideal=ideal)
    joules = _joules(placed, views, crossing, energies, kernels)
    shape = (len(placed), points)
    demand = Demand(
        placed,
        np.broadcast_to(compute, shape),
        np.broadcast_to(busy, (len(placed), len(placed.resources), points)),
        np.broadcast_to(floor, shape),
        np.broadcast_to(latency, shape),
        np.broadcast_to(joules, shape),
        placed.per_op(placed.table["flops"]),
        np.broadcast_to(crossing, (len(placed), len(placed.resources), points)),
        moved,
        _free(kernels, shape),
    )
    return chosen(demand)


def _free(kernels: dict[int, KernelPrices], shape: tuple[int, int]) -> Array | None:
    """Return the seconds of kernels in which their units are free, None if there are none."""
    if all(kernel.free is None for kernel in kernels.values()):
        return None
    free = np.zeros(shape)
    for kernel in kernels.values():
        if kernel.free is not None:
            free[kernel.ops] = kernel.free
    return free


def _copied(placed: PlacedOps) -> npt.NDArray[np.bool_]:
    """Return which operators are transfers, (ops,)."""
    copied = np.zeros(len(placed), bool)
    copied[[t.op for t in placed.transfers]] = True
    return copied


def _total(moved: dict[tuple[str, str], Array], column: str) -> Array:
    parts = [v for (c, _), v in moved.items() if c == column]
    return np.sum(np.broadcast_arrays(*parts), axis=0) if len(parts) > 1 else parts[0]


def _compute(
    placed: PlacedOps, views: list[UnitView], *, ideal: bool
) -> tuple[Array, dict[int, KernelPrices]]:
    """Return seconds of each operator, (ops, 1 or points), and the whole kernels of each unit."""
    table = placed.table
    by_row: list[tuple[Any, Array]] = []
    by_op: list[tuple[Any, Array]] = []
    kernels: dict[int, KernelPrices] = {}
    row_unit = placed.unit_of[placed.op_of]
    for u, view in enumerate(views):
        rows = np.flatnonzero((row_unit == u) & (placed.collective_link < 0))
        if not rows.size:
            continue
        # Fewer units than devices: one serves several of them. More: a device has several.
        crowd = placed.crowd[u]
        each = crowd / placed.spans[u]
        model = view.model
        if not ideal and hasattr(model, "kernel_prices"):
            whole = model.kernel_prices(placed, np.flatnonzero(placed.unit_of == u), view)
            if whole is not None:
                kernels[u] = whole
                by_op.append((whole.ops, crowd * whole.seconds))
                rows = rows[~np.isin(placed.op_of[rows], whole.ops)]
        if rows.size:
            seconds = model.compute_seconds(table, rows, view, ideal=ideal)
            by_row.append((rows, each * seconds))
    points = max([p.shape[1] for _, p in (*by_row, *by_op)], default=1)
    seconds = np.zeros((len(table), points))
    for rows, part in by_row:
        seconds[rows] = part
    compute = placed.per_op(seconds)
    for ops, part in by_op:
        compute[ops] = part
    return compute, kernels


def _waits_inside(
    placed: PlacedOps,
    machine: Machine,
    kernels: dict[int, KernelPrices],
    compute: Array,
    busy: Array,
) -> Array:
    """Return busy seconds in which a kernel's port is busy for no longer than the kernel runs.

    A kernel's seconds contain its streaming, of which caches may answer a part: the bytes are
    still counted where they would come from, at no more than the port's peak.

    Args:
        busy: Busy seconds at effective rates, (ops, resources, points).
    """
    if compute.shape[1] > busy.shape[2]:
        busy = np.broadcast_to(busy, (*busy.shape[:2], compute.shape[1])).copy()
    for kernel in kernels.values():
        if kernel.home in placed.resources:
            ops, port = kernel.ops, placed.resources.index(kernel.home)
            streams = busy[ops, port]
            if kernel.holds:
                free = 0.0 if kernel.free is None else kernel.free
                busy[ops, port] = np.maximum(streams, compute[ops] - free)
                continue
            at_peak = streams * machine.values.get(f"{kernel.home}.efficiency", 1.0)
            busy[ops, port] = np.minimum(streams, np.maximum(compute[ops], at_peak))
    return busy


def _moved(
    placed: PlacedOps, views: list[UnitView], *, ideal: bool
) -> dict[tuple[str, str], Array]:
    """Return bytes by (class, cause): compulsory, and what tiling against the buffer re-reads.

    An operator whose weights fit in the unit's buffer reads them once. Otherwise it either keeps
    its live activations and streams the weights past them, once per buffer-full, or (one product)
    keeps a buffer-full of weights and streams the activations, or works in square tiles of the
    result; the least traffic wins. Hong and Kung 1981 give the last one's order. What is read
    again of activations is the input. Products of a group have weights and input of their own:
    alone, each of them is held against the buffer by itself; in a fused operator they stream by.
    """
    moved = {(c, "compulsory"): v for c, v in placed.moved.items()}
    if placed.transfers:
        # Read here and written there: no more than a copy of what is moved anyway.
        copied, all_of = _copied(placed)[:, None], placed.moved["activation"]
        moved["activation", "compulsory"] = np.where(copied, 0.0, all_of)
        moved["activation", "copy"] = np.where(copied, all_of, 0.0)
    if ideal:
        return moved
    table = placed.table
    weights = placed.moved["weight"] + placed.moved["expert"]
    extra: list[Array] = [np.zeros((len(placed), 1)), np.zeros((len(placed), 1))]
    rows_in = np.bincount(placed.op_of, minlength=len(placed))
    # Groups of what is no product are rows that share its weights.
    groups = np.where(table["m"] > 0, table["groups"], 1.0)
    one = groups <= 1
    shared = placed.per_op(np.where(one, table["weight"] + table["expert"], 0.0))
    for u, view in enumerate(views):
        capacity = view.buffer_bytes()
        if capacity is None:
            continue
        ops = np.flatnonzero((placed.unit_of == u) & (weights > 0).any(axis=1))
        if not ops.size:
            continue
        single = rows_in[ops] == 1
        row = np.searchsorted(placed.op_of, ops)
        w = np.where(single[:, None], weights[ops], shared[ops])
        a = placed.live[ops]
        each = np.where(single[:, None], np.maximum(groups[row], 1.0), 1.0)
        size = np.atleast_1d(capacity) * each
        fits = w <= size
        w_again = np.where(fits, 0.0, (np.ceil(a / size) - 1.0).clip(0.0) * w)
        a_again = np.zeros_like(w_again)
        elements = w / np.maximum(table["n"][row] * table["k"][row] * groups[row], 1.0)
        side = np.maximum(np.sqrt(size / each / np.maximum(elements, 1e-3)), 1.0)
        keep_w = (np.zeros_like(w_again), (np.ceil(w / size) - 1.0).clip(0.0) * a)
        square = (
            (np.ceil(table["m"][row] / side) - 1.0).clip(0.0) * w,
            (np.ceil(table["n"][row] / side) - 1.0).clip(0.0) * a,
        )
        for other_w, other_a in (keep_w, square):
            better = single[:, None] & ~fits & (other_w + other_a < w_again + a_again)
            w_again, a_again = (
                np.where(better, other_w, w_again),
                np.where(better, other_a, a_again),
            )
        for i, again in enumerate((w_again, a_again)):
            full = np.zeros((len(placed), again.shape[1]))
            full[ops] = again
            extra[i] = extra[i] + full
    if extra[0].any():
        share = placed.moved["expert"] / np.where(weights > 0, weights, 1.0)
        moved["weight", "re-read"] = extra[0] * (1.0 - share)
        moved["expert", "re-read"] = extra[0] * share
    if extra[1].any():
        moved["activation", "re-read"] = extra[1]
    return moved


def resource_rate(machine: Machine, resource: str, instances: float, *, ideal: bool = False) -> Any:
    """Return the rate of a port or link that one device of the group gets, bytes/s.

    Args:
        instances: Instances of the resource for each device, below 1 where devices share one.
        ideal: Peak instead of effective rate.
    Raises:
        UncoveredError: If the port has no bandwidth.
    """
    resource = written_name(resource)
    bandwidth = machine.values.get(f"{resource}.bandwidth")
    if bandwidth is None:
        raise UncoveredError(
            f"{machine.name}: '{resource}' has no bandwidth, and no command timing gives one. "
            f"set {resource}.bandwidth, or the memory's `channels` beside a `technology` of "
            "`opbyte list memories`"
        )
    efficiency = 1.0 if ideal else machine.values.get(f"{resource}.efficiency", 1.0)
    if not ideal and f"{resource}.flit.size" in machine.values:
        flit = machine.values[f"{resource}.flit.payload"], machine.values[f"{resource}.flit.size"]
        efficiency = efficiency * flit[0] / flit[1]
    return bandwidth * efficiency * instances


def _resources(placed: PlacedOps, machine: Machine, *, ideal: bool) -> tuple[Array, Array, Array]:
    """Return rate for one device, latency and J/byte of each resource, (resources, points)."""
    if not placed.resources:
        return np.ones((0, 1)), np.zeros((0, 1)), np.zeros((0, 1))
    # No byte crosses the cells that ports share.
    cells = {array.resource for array in placed.arrays}
    rates = [
        np.inf if n in cells else resource_rate(machine, r, i, ideal=ideal)
        for n, (r, i) in enumerate(zip(placed.resources, placed.instances, strict=True))
    ]
    names = [written_name(r) for r in placed.resources]
    latencies = [machine.values.get(f"{r}.latency", 0.0) for r in names]
    energies = [8.0 * machine.values.get(f"{r}.energy", np.nan) for r in names]
    return columns(rates), columns(latencies), columns(energies)


def columns(values: list[Any]) -> Array:
    """Return scalars and arrays over points as one (values, points) array."""
    return np.stack(np.broadcast_arrays(*(np.atleast_1d(v) for v in values)))


def _latency(
    placed: PlacedOps,
    machine: Machine,
    views: list[UnitView],
    totals: Array,
    stepping: Array,
    kernels: dict[int, KernelPrices],
    *,
    ideal: bool,
) -> tuple[Array, Array]:
    """Return latency and floor, (ops, points): launch, first access, collective steps.

    Args:
        totals: Bytes that each operator moves, (ops, MOVED, points).
        stepping: Seconds of each operator's collectives beside their bytes, (ops, points).
    """
    zero = np.zeros((len(placed), 1))
    if ideal:
        return zero, zero
    access = _first_accesses(placed, machine, totals, kernels)
    launches = [_launch(view, placed.launch) for view in views]
    launch, copied = zero, _copied(placed)
    pipelined = np.zeros((len(placed), 1), bool)
    for u, view in enumerate(views):
        # A collective on its own is a kernel too; it starts like those of the first unit.
        mine = (placed.unit_of == u) | ((placed.unit_of < 0) & ~copied & (u == 0))
        launch = launch + np.where(mine[:, None], launches[u], 0.0)
        pipelined |= ((placed.unit_of == u) & view.model.pipelines)[:, None]
    latency = launch + access + np.where(pipelined, 0.0, stepping)
    return latency, np.where(pipelined, stepping, 0.0)


def _first_accesses(
    placed: PlacedOps, machine: Machine, totals: Array, kernels: dict[int, KernelPrices]
) -> Array:
    """Return the time until the first byte of the slowest tensor class is there, (ops, points).

    A kernel's first access to its home port is part of its own seconds.
    """
    access = np.zeros((len(placed), 1))
    for u in range(len(placed.units)):
        mine = (placed.unit_of == u)[:, None]
        whole, home = mine, None
        if u in kernels:
            home = kernels[u].home
            whole = np.zeros_like(mine)
            whole[kernels[u].ops] = True
        for c in range(len(MOVED)):
            crossed = [placed.resources[r] for r in np.flatnonzero(placed.routes[u, c])]
            seconds: Any = np.atleast_1d(first_access(machine, crossed))
            if not seconds.any():
                continue
            if home in crossed:
                crossed.remove(home)
                seconds = np.where(whole, first_access(machine, crossed), seconds)
            access = np.maximum(access, np.where(mine & (totals[:, c] > 0), seconds, 0.0))
    return access


def _launch(view: UnitView, mode: str) -> Any:
    seconds = view.get(f"launch.{mode}")
    if seconds is None:
        known = ", ".join(view.machine.unit(view.path).config.launch) or "none"
        raise UncoveredError(
            f"{view.machine.name}: unit '{view.path}' has no launch latency called '{mode}'. "
            f"It has: {known}"
        )
    return np.atleast_1d(seconds)


def _joules(
    placed: PlacedOps,
    views: list[UnitView],
    crossing: Array,
    energies: Array,
    kernels: dict[int, KernelPrices],
) -> Array:
    """Return dynamic energy of each operator on one device, (ops, points)."""
    table = placed.table
    inside = np.zeros(len(placed), bool)
    own = [(k, k.joules) for k in kernels.values() if k.joules is not None]
    for kernel, _ in own:
        inside[kernel.ops] = True
        if kernel.home is not None:
            crossing = crossing.copy()
            crossing[kernel.ops, placed.resources.index(kernel.home)] = 0.0
    # What a transfer crosses is not used alike by as many devices at both ends.
    weight = (placed.sharers[None, :] / placed.copies[:, None])[:, :, None]
    joules = crossing * energies[None] * weight
    moving = np.where(crossing > 0, joules, 0.0).sum(axis=1)
    computes = table["flops"].any(axis=1) & (placed.collective_link < 0)
    per_op: list[Any] = []
    whole: dict[int, Any] = {}
    for row in range(len(table)):
        unit = placed.unit_of[placed.op_of[row]]
        if unit < 0 or not computes[row] or inside[placed.op_of[row]]:
            per_op.append(0.0)
            continue
        view = views[unit]
        model = view.model
        spent = model.row_joules(table, row, view) if hasattr(model, "row_joules") else None
        if spent is not None:
            per_op.append(0.0)
            whole[row] = spent
            continue
        matrix = bool((table["m"][row] > 0).any())
        per_op.append(
            view.energy(table.dtypes[row]) if matrix else view.get("energy.vector", np.nan)
        )
    total: Array = moving + placed.per_op(table["flops"] * columns(per_op))
    if whole:
        every = columns([whole.get(row, 0.0) for row in range(len(table))])
        total = total + placed.per_op(every)
    for kernel, spent in own:
        points = np.broadcast_shapes(total.shape[1:], spent.shape[1:])
        total = np.broadcast_to(total, (len(placed), *points)).copy()
        total[kernel.ops] += spent
    return total
