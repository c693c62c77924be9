"""The unit kinds `aim` (MAC units at the banks) and `pnm` (a controller's units)."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.aim.channels import KIND, Channels
from opbyte.hw_models.compute.aim.commands import NONE, Commands
from opbyte.hw_models.compute.aim.energy import joules_of
from opbyte.hw_models.compute.aim.links import Moved, Wire
from opbyte.hw_models.compute.aim.products import context, matrix, score
from opbyte.hw_models.compute.aim.shapes import Shapes, likenesses, summed
from opbyte.hw_models.compute.aim.vectors import Controller, Task
from opbyte.hw_models.compute.base import UNITS, KernelPrices, Rows, UnitView, arithmetic_seconds
from opbyte.hw_models.compute.pim.stored import check_stored

#: Seconds and joules of one kernel, and seconds in which its unit is free.
_Price = tuple[Any, Any, Any]


class _Kernels:
    """A unit all of whose operators are kernels."""

    pipelines = False

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return operations over peak: the bound, and what has no commands."""
        return arithmetic_seconds(table, rows, unit, table["flops"][rows], ideal=ideal)

    def _prices(
        self, placed: PlacedOps, ops: Rows, unit: UnitView, price: Callable[[int], _Price]
    ) -> list[_Price]:
        """Return the price of each operator, found once for those of equal blocks.

        Raises:
            UncoveredError: If several rows are one operator.
        """
        found = []
        keys = likenesses(placed.table)
        known: dict[Hashable, _Price] = {}
        for op in ops:
            rows = np.flatnonzero(placed.op_of == op)
            if rows.size > 1:
                raise UncoveredError(
                    f"{unit.machine.name}: unit '{unit.path}' runs its operators one by one, and "
                    f"'{placed.names[op]}' is {rows.size} in one. use `fusion: none`"
                )
            row = int(rows[0])
            if keys[row] not in known:
                known[keys[row]] = price(row)
            found.append(known[keys[row]])
        return found


def _kernel_prices(ops: Rows, prices: list[_Price], home: str) -> KernelPrices | None:
    if not prices:
        return None
    seconds, joules, free = (
        np.stack(np.broadcast_arrays(*(np.atleast_1d(x) for x in each)))
        for each in zip(*prices, strict=True)
    )
    waits = free if free.any() else None
    return KernelPrices(np.asarray(ops), seconds, home, joules, holds=True, free=waits)


@UNITS.register(KIND)
class AimUnit(_Kernels):
    """MAC units at the banks of GDDR6-AiM: products with weights, keys and values."""

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return operations over peak, see `UnitModel`.

        Raises:
            UncoveredError: If the unit lacks a dtype, or banks hold something else.
        """
        for row in rows:
            if table.kinds[row] in ("gemm", "score", "context"):
                check_stored(table, int(row), f"{unit.machine.name}: unit '{unit.path}'")
        return super().compute_seconds(table, rows, unit, ideal=ideal)

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the price of each operator.

        Raises:
            CapacityError: If a matrix does not fit in the stage's banks.
            ConfigError: If the unit lacks a block.
            UncoveredError: If the unit lacks a dtype, what banks hold is no elements of it, or it
                has no commands for an operator.
        """
        if unit.machine.unit(unit.path).config.pim is None:
            return None
        prices = self._prices(placed, ops, unit, lambda r: _Products(placed, unit, r).price())
        return _kernel_prices(ops, prices, unit.home_port() or "")


@dataclass(frozen=True)
class _Products:
    """One operator of the MAC units."""

    placed: PlacedOps
    unit: UnitView
    row: int

    def price(self) -> _Price:
        """Return seconds and joules of all devices of the stage."""
        table, row = self.placed.table, self.row
        c = Channels.of(self.placed, self.unit, table.dtypes[row])
        shapes = Shapes(table, f"{self.unit.machine.name}: unit '{self.unit.path}'")
        kind = table.kinds[row]
        if kind in ("gemm", "score", "context"):
            check_stored(table, row, shapes.who)
        if kind == "gemm":
            (tokens,) = shapes.of(row, "m")
            done, moved = self._matrices(c, shapes), self._moved(c, shapes)
        elif kind in ("score", "context"):
            *sizes, tokens = shapes.heads(row)
            done, moved = (score if kind == "score" else context)(c, *sizes), Moved()
        else:
            raise UncoveredError(
                f"{shapes.who} has no commands for '{table.names[row]}', {kind}. map it to "
                "another unit"
            )
        # Standby of the simulator is that of devices which work; the other's is per channel.
        devices = float(c.parts) if kind == "gemm" else 1.0
        seconds = c.seconds(done.clocks) + moved.seconds
        joules = c.whole * sum(joules_of(c, done, devices).values(), start=0.0)
        joules = joules + self._wire_joules(c, moved)
        if c.artifact and "head" in table.labels[row]:
            joules = 0.0  # It counts the energy of layers alone.
        return tokens * summed(seconds), tokens * summed(joules), 0.0

    def _matrices(self, c: Channels, shapes: Shapes) -> Commands:
        """Return the products with each matrix of the row, the first with its function."""
        table, row = self.placed.table, self.row
        n, k = shapes.of(row, "n", "k")
        function = any(table.kinds[t] == "activation" for t in shapes.targets(row))
        done = NONE
        for i, width in enumerate(table.parts.get(row, (n,))):
            done = done + matrix(c, width, k, function=function and i == 0)
        return done

    def _wire(self, c: Channels) -> Wire:
        part = self.unit.path.rpartition(".")[0].rpartition(".")[0]
        return Wire.between(self.unit.machine, part, c.parts)

    def _moved(self, c: Channels, shapes: Shapes) -> Moved:
        """Return the input's way to all devices, and the outputs' way back to one.

        The simulator has both even where one device is the whole stage, takes gathered keys and
        values for as long as the hidden vector, gathers one vector of the feed-forward part, and
        forgets embedding and head.
        """
        table, row = self.placed.table, self.row
        n, k = shapes.of(row, "n", "k")
        parts = table.parts.get(row, (n,))
        size = shapes.element(row)
        if not c.artifact:
            if c.parts == 1:
                return Moved()
            wire = self._wire(c)
            total = wire.broadcast(k * size)
            for width in parts:
                total = total + wire.gather(width * size)
            if any(table.kinds[t] == "activation" for t in shapes.targets(row)):
                total = total + wire.gather(parts[0] * size)
            return total
        if c.guests > 1 or "head" in table.labels[row]:
            return Moved()
        wire = self._wire(c)
        if len(parts) == 3:
            return (wire.broadcast(k * size) + wire.gather(k * size)).times(3.0)
        return wire.broadcast(k * size) + wire.gather(parts[0] * size)

    def _wire_joules(self, c: Channels, moved: Moved) -> Any:
        """Return the energy of what was moved; the simulator takes an element for a bit."""
        if not np.any(np.asarray(moved.bits) > 0):
            return 0.0
        wire, bits = self._wire(c), moved.bits
        if c.artifact:
            table, row = self.placed.table, self.row
            n, k = (float(table[x][row].max()) for x in "nk")
            parts = table.parts.get(row, (n,))
            bits = c.parts * (6.0 * k if len(parts) == 3 else k + parts[0])
        return wire.joules(bits)


@UNITS.register("pnm")
class NearMemory(_Kernels):
    """Units of a device's controller, which work on vectors with the help of its channels."""

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the price of each operator.

        Raises:
            ConfigError: If no unit of kind `aim` shares a memory with this one.
            UncoveredError: If the unit has no commands for an operator.
        """
        if unit.machine.unit(unit.path).config.pnm is None:
            return None
        aim, port = _channels_of(unit)
        prices = self._prices(placed, ops, unit, lambda r: _Vectors(placed, unit, aim, r).price())
        return _kernel_prices(ops, prices, port)


def _channels_of(unit: UnitView) -> tuple[UnitView, str]:
    """Return the MAC units whose memory a controller reaches, and the port that it reaches it by.

    Raises:
        ConfigError: If there are none.
    """
    machine = unit.machine
    for port in machine.unit_ports(unit.path):
        memory = port.rpartition(".")[0]
        for path, other in machine.units.items():
            at = [p.rpartition(".")[0] for p in machine.unit_ports(path)]
            if other.config.kind == KIND and memory in at:
                return UnitView(machine, path), port
    raise ConfigError.one(
        machine.document.name, f"{unit.path}.at",
        f"a unit of kind pnm is at a port of a memory in which units of kind {KIND} are",
        ", ".join(machine.unit_ports(unit.path)), "add such a port",
    )  # fmt: skip


@dataclass(frozen=True)
class _Vectors:
    """One operator of a controller."""

    placed: PlacedOps
    unit: UnitView
    aim: UnitView
    row: int

    def price(self) -> _Price:
        """Return seconds and joules of the stage.

        What all stages of a device share is priced so that their number makes it whole again.
        """
        table, row = self.placed.table, self.row
        c = Channels.of(self.placed, self.aim, table.dtypes[row])
        task = self._task(Controller(c, self.unit))
        at = c.device.clock
        clock = self.unit.get("clock")
        shared = c.seconds(task.shared.clocks) + task.cycles / (at if clock is None else clock)
        alone = c.seconds(task.own.clocks) + task.seconds
        done = task.own + Commands(
            task.shared.clocks * c.guests, 0.0, task.shared.counts, task.shared.instructions
        )
        joules: Any = c.whole * sum(joules_of(c, done).values(), start=0.0)
        if c.artifact and table.labels[row] & {"head", "embedding"}:
            joules = 0.0  # It counts the energy of layers alone.
        return summed(shared + alone / c.guests), summed(joules), task.seconds

    def _task(self, controller: Controller) -> Task:
        """Return what the operator takes.

        Raises:
            UncoveredError: If there is no model of it.
        """
        table, row = self.placed.table, self.row
        shapes = Shapes(table, f"{self.unit.machine.name}: unit '{self.unit.path}'")
        kind, elements = table.kinds[row], shapes.elements(row)
        if kind == "norm":
            (tokens,) = shapes.of(row, "groups")
            sample = controller.get("sample") if "head" in table.labels[row] else 0.0
            return controller.norm(elements / tokens).times(tokens) + Task(seconds=sample)
        if kind == "softmax":
            heads, shared, _, cached, sequences = shapes.heads(row)
            return controller.softmax(heads * shared, cached).times(sequences)
        if kind == "kv_append":
            heads, _, width, _, _ = shapes.heads(row)
            return controller.append(heads, width).times(shapes.tokens(row))
        if kind == "embedding":
            return self._embedding(controller, shapes)
        tokens = shapes.tokens(row)
        if kind == "rotary":
            query, key, _ = shapes.projections(row)
            return controller.rotary(query, key).times(tokens)
        if kind == "activation":
            return controller.activation(elements / tokens).times(tokens)
        if kind == "elementwise":
            return controller.add(elements / tokens).times(tokens)
        raise UncoveredError(
            f"{shapes.who} has no commands for '{table.names[row]}', {kind}. map it to another unit"
        )

    def _embedding(self, controller: Controller, shapes: Shapes) -> Task:
        """Return the look-up of each token, of as many as the head has."""
        table = self.placed.table
        heads = [r for r in range(len(table)) if table.names[r] == "lm_head"]
        if not heads:
            raise UncoveredError(
                f"{shapes.who} has no model of '{table.names[self.row]}' without a head. map it "
                "to another unit"
            )
        tokens, vocabulary = shapes.of(heads[-1], "m", "n")
        return controller.look_up(shapes.elements(self.row) / tokens, vocabulary).times(tokens)
