"""Unit kind `spatial_array`: a 2D array of PEs and a row of lanes, onto which attention is mapped.

A fused attention is planned as a whole by the mapping's cascade of Einsums; other products take any
two of their ranks across the array, and everything else runs on the lanes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any

import numpy as np

from opbyte.core.dtypes import bytes_of
from opbyte.core.errors import UncoveredError
from opbyte.core.mapping_file import Einsums
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import MOVED, PlacedOps
from opbyte.hw_models.compute.base import UNITS, KernelPrices, Rows, UnitView, is_matrix
from opbyte.hw_models.compute.spatial.apart import apart, product_cycles, score_cycles
from opbyte.hw_models.compute.spatial.arrays import ARRAY, LANES, Arrays, Plan, Shape
from opbyte.hw_models.compute.spatial.cascade import CASCADES, OPERATIONS, cascade
from opbyte.hw_models.compute.spatial.rows import by_rows
from opbyte.hw_models.compute.spatial.streamed import streamed
from opbyte.hw_models.compute.systolic import peak_rate

#: Rows of a fused attention, and the softmax that runs alone without fusion.
ATTENTION = ("score", "softmax", "context")
_PLAIN = CASCADES["three-pass"]


@lru_cache(maxsize=4096)
def plan(einsums: Einsums | None, arrays: Arrays, shape: Shape, where: str) -> Plan:
    """Return an attention mapped on the arrays; without Einsums its operators run apart.

    Args:
        where: Path of the buffer, for errors.
    Raises:
        CapacityError: If the buffer does not hold the least tile.
    """
    if einsums is None:
        return apart(_PLAIN, arrays, shape)
    chosen = cascade(einsums.cascade)
    if chosen.passes == 1:
        return streamed(
            chosen, arrays, shape, schedule=einsums.schedule, tiles=einsums.tiles, where=where
        )
    return by_rows(chosen, arrays, shape, schedule=einsums.schedule, where=where)


@UNITS.register("spatial_array")
class SpatialArray:
    """An array of PEs with `array: [rows, columns]`, a `clock`, and a `spatial` block."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return products over the array and the rest over the lanes, see `UnitModel`.

        At the bound a softmax takes no time of its own: it runs beside the products.
        """
        seconds: list[Any] = []
        for row, is_product in zip(rows, is_matrix(table, rows), strict=True):
            useful = table["flops"][row]
            if not useful.any():
                seconds.append(np.zeros(1))
            elif is_product and ideal:
                seconds.append(useful / (cycle_rate(unit, table.dtypes[row]) * _per_cycle(unit)))
            elif is_product:
                seconds.append(_product_seconds(table, row, unit))
            elif table.kinds[row] == "softmax" and unit.machine.unit(unit.path).config.spatial:
                seconds.append(np.zeros(1) if ideal else _softmax_seconds(table, row, unit))
            else:
                seconds.append(useful / unit.vector_rate(table.kinds[row]))
        return np.stack(np.broadcast_arrays(*seconds)) if seconds else np.zeros((0, 1))

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the prices of fused attentions.

        Raises:
            UncoveredError: If the mapping names no cascade, or their tensors live elsewhere.
            CapacityError: If the buffer does not hold the least tile.
        """
        found = [(int(op), rows) for op in ops if (rows := _fused(placed, int(op))) is not None]
        if not found:
            return None
        _check(placed, unit)
        home = unit.home_port()
        assert home is not None
        points = max(placed.table.points, unit.machine.points)
        share = placed.instances[placed.resources.index(home)]
        kernels = np.array([op for op, _ in found])
        seconds, joules = np.zeros((2, len(found), points))
        again = {cause: np.zeros((len(found), points)) for cause in _CAUSES}
        facts_of = _facts(unit, share, points)
        for i, (_, rows) in enumerate(found):
            arrays = facts_of(placed.table.dtypes[rows[0]])
            for point, (facts, shape) in enumerate(_each(placed.table, rows, arrays)):
                one = plan(placed.einsums, facts, shape, unit.buffer() or unit.path)
                seconds[i, point], joules[i, point] = one.seconds, sum(one.joules.values())
                cached = bool(placed.table["kv_read"][rows].any())
                for cause, extra in _again(one, shape, cached=cached).items():
                    again[cause][i, point] = extra
        return KernelPrices(kernels, seconds, home, joules, moved=again)

    def plans(self, placed: PlacedOps, unit: UnitView) -> list[tuple[Rows, Plan, Shape]]:
        """Return each attention on the unit: its operators, plan and shape at the first point."""
        home = unit.home_port()
        mine = np.flatnonzero(placed.unit_of == placed.units.index(unit.path))
        kinds = placed.table.kinds
        fused = [r for op in mine if (r := _fused(placed, int(op))) is not None]
        alone = [
            np.arange(row, row + 3)
            for row in placed.single(mine)
            if kinds[row : row + 3] == ATTENTION
        ]
        if fused:
            _check(placed, unit)
        share = placed.instances[placed.resources.index(home)] if home else 1.0
        facts_of = _facts(unit, share, 1)
        found = []
        for rows in fused + alone:
            ops = np.unique(placed.op_of[rows])
            facts = facts_of(placed.table.dtypes[rows[0]])
            arrays, shape = next(_each(placed.table, rows, facts))
            einsums = placed.einsums if len(ops) == 1 else None
            found.append((ops, plan(einsums, arrays, shape, unit.buffer() or unit.path), shape))
        return found


#: What a plan adds to the bytes that any mapping moves.
_CAUSES = (("kv_read", "re-read"), ("activation", "re-read"), ("activation", "spill"))


def _again(one: Plan, shape: Shape, *, cached: bool) -> dict[tuple[str, str], float]:
    """Return the bytes that a plan moves beyond each tensor once, by class and cause."""
    once = shape.compulsory
    keys = sum(one.traffic[t] - once[t] for t in ("K", "V"))
    rest = sum(one.traffic[t] - once[t] for t in ("Q", "AV"))
    return {
        ("kv_read", "re-read"): max(0.0, keys) if cached else 0.0,
        ("activation", "re-read"): max(0.0, rest + (0.0 if cached else keys)),
        ("activation", "spill"): one.traffic.get("scores", 0.0),
    }


def _fused(placed: PlacedOps, op: int) -> Rows | None:
    """Return the rows of a fused attention, None if the operator is none."""
    rows = np.flatnonzero(placed.op_of == op)
    return rows if tuple(placed.table.kinds[r] for r in rows) == ATTENTION else None


def _check(placed: PlacedOps, unit: UnitView) -> None:
    """Refuse a fused attention without a cascade, or whose tensors do not come from the port."""
    name, home = unit.machine.name, unit.home_port()
    if placed.einsums is None:
        raise UncoveredError(
            f"{name}: fused attention on unit '{unit.path}' is a cascade of Einsums, and the "
            f"mapping names none. give einsums: {{cascade: one-pass}}, or fusion: none. "
            f"Known: {', '.join(CASCADES)}"
        )
    u = placed.units.index(unit.path)
    if placed.spans[u] != 1:
        raise UncoveredError(
            f"{name}: a cascade of Einsums is planned for one array, and {placed.spans[u]:g} of "
            f"'{unit.path}' work together as one device. leave out `together`, or give fusion: none"
        )
    for column in ("kv_read", "activation"):
        way = placed.routes[u, MOVED.index(column)]
        if home not in placed.resources or way[placed.resources.index(home)] < 1.0:
            what = "kv" if column == "kv_read" else column
            raise UncoveredError(
                f"{name}: a cascade of Einsums is planned for tensors behind '{home}', and "
                f"`{what}` lives elsewhere. place it there, or give fusion: none"
            )


def _each(table: OpTable, rows: Rows, arrays: list[Arrays]) -> Iterator[tuple[Arrays, Shape]]:
    """Yield facts and shape of each design point."""
    score, _, context = (int(r) for r in rows)
    size = bytes_of(table.dtypes[score], 1.0)
    names = ("m", "n", "k", "groups", "flops", "kv_read")
    for point, facts in enumerate(arrays):
        m, n, k, groups, flops, cached = (
            float(c[min(point, len(c) - 1)]) for c in (table[name][score] for name in names)
        )
        wide = table["n"][context]
        yield (
            facts.of_size(size),
            Shape(
                groups, m, n, k, float(wide[min(point, len(wide) - 1)]),
                min(1.0, flops / (2.0 * groups * m * n * k)), size,
                cached / (groups * n * k) if cached else size, size,
            ),
        )  # fmt: skip


def _facts(unit: UnitView, instances: float, points: int) -> Callable[[str], list[Arrays]]:
    """Return what gives the facts of a unit for a dtype, at each design point."""

    @cache
    def facts(dtype: str) -> list[Arrays]:
        return [arrays_of(unit, dtype, instances, point) for point in range(points)]

    return facts


def cycle_rate(unit: UnitView, dtype: str) -> Any:
    """Return the cycles of the array in a second: the clock, or what its `peak` comes to.

    Raises:
        UncoveredError: If it has no array or clock, not the dtype, or more than one instance.
    """
    config = unit.machine.unit(unit.path).config
    if config.instances > 1:
        raise UncoveredError(
            f"{unit.machine.name}: unit '{unit.path}' of kind spatial_array is one array, got "
            f"instances: {config.instances}. give the part a `count` instead"
        )
    return peak_rate(unit, dtype) / _per_cycle(unit)


def _per_cycle(unit: UnitView) -> float:
    """Return the operations of the whole array in a cycle."""
    array = unit.machine.unit(unit.path).config.array
    return 2.0 * math.prod(array or (1, 1))


def arrays_of(
    unit: UnitView, dtype: str = "fp16", instances: float = 1.0, point: int = 0
) -> Arrays:
    """Return the facts of a unit at one design point.

    Args:
        dtype: Arithmetic of the products.
        instances: Of the port, for each device.
    Raises:
        UncoveredError: If it lacks an array, a clock, a buffer, lanes or a `spatial` block, is at
            no memory's port, or as `cycle_rate`.
    """
    home = unit.home_port()
    if home is None:
        raise UncoveredError(f"{unit.machine.name}: unit '{unit.path}' is at no memory's port")
    config, values = unit.machine.unit(unit.path).config, unit.machine.values
    needs = {
        "array": config.array, "clock": config.clock, "spatial": config.spatial,
        "buffer": unit.buffer(),
    }  # fmt: skip
    lacking = [name for name, given in needs.items() if given is None]
    if lacking:
        raise UncoveredError(
            f"{unit.machine.name}: unit '{unit.path}' has no `{lacking[0]}`, which a cascade of "
            "Einsums is mapped on. give it, or fusion: none"
        )

    def at(value: Any) -> float:
        if value is None:
            return math.nan
        return float(value if np.ndim(value) == 0 else value[min(point, len(value) - 1)])

    def table(block: str) -> tuple[tuple[str, float], ...]:
        known = {o: at(values.get(f"{unit.path}.spatial.{block}.{o}")) for o in OPERATIONS}
        return tuple((o, x) for o, x in known.items() if not math.isnan(x))

    # The buffer's energy is that of its cheapest port; memory's that of the port the unit is at.
    memory = str(unit.buffer())
    ports = unit.machine.memory(memory).config.ports
    stored = [at(values.get(f"{memory}.{port}.energy")) for port in ports]
    rate = at(values.get(f"{home}.bandwidth")) * at(values.get(f"{home}.efficiency", 1.0))
    return Arrays(
        config.array[0], config.array[1],
        at(cycle_rate(unit, dtype) * unit.get("efficiency", 1.0)),
        at(unit.vector_rate("softmax")), at(unit.buffer_bytes()), rate * instances,
        ((ARRAY, table("array")), (LANES, table("lanes"))), config.spatial.pipelined,
        ((ARRAY, table("array_energy")), (LANES, table("lanes_energy"))),
        at(unit.get("spatial.registers")), 8.0 * min(stored),
        8.0 * at(values.get(f"{home}.energy")),
    )  # fmt: skip


def _product_seconds(table: OpTable, row: int, unit: UnitView) -> Array:
    """Return the seconds of a row's products, (1,) or (points,)."""
    cycle = 1.0 / (cycle_rate(unit, table.dtypes[row]) * unit.get("efficiency", 1.0))
    array = unit.machine.unit(unit.path).config.array
    assert array is not None
    m, n, k, groups, useful = (table[c][row] for c in ("m", "n", "k", "groups", "flops"))
    full = 2.0 * groups * m * n * k
    share = np.divide(useful, full, out=np.ones_like(full * useful), where=full > 0)
    seconds: Array = groups * product_cycles(m, n, k, array) * np.minimum(share, 1.0) * cycle
    return np.where(useful > 0, seconds, 0.0)


def _softmax_seconds(table: OpTable, row: int, unit: UnitView) -> Array:
    """Return the seconds of a softmax on the lanes: its Einsums, for each of its scores."""
    pipelined = unit.machine.unit(unit.path).config.spatial.pipelined
    lanes = {o: unit.get(f"spatial.lanes.{o}") for o in OPERATIONS}
    scores = table["out_bytes"][row] / bytes_of(table.dtypes[row], 1.0)
    each = score_cycles(_PLAIN, lanes, pipelined=pipelined)
    seconds: Array = scores * each / unit.vector_rate("softmax")
    return seconds
