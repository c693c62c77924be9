"""What every compute unit answers: how long its arithmetic takes, and what its tiles re-read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from opbyte.core.dtypes import lookup as dtype_of
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable
from opbyte.core.placed import PlacedOps
from opbyte.core.registry import Registry
from opbyte.hw_models.machine import Machine

Rows = npt.NDArray[np.int64]


class UnitModel(Protocol):
    """A kind of compute unit."""

    #: Collectives inside a fused operator run beside its stream instead of after it.
    pipelines: bool

    def compute_seconds(self, table: OpTable, rows: Rows, unit: UnitView, *, ideal: bool) -> Array:
        """Return the seconds of arithmetic of each row, (rows, 1 or points).

        Args:
            ideal: Peak rate and useful operations only; never more than the other answer.
        Raises:
            UncoveredError: If the unit has no rate for a row's dtype or kind.
        """
        ...


@dataclass(frozen=True)
class KernelPrices:
    """Operators that a model times as whole kernels, waits for memory included.

    Attributes:
        ops: The fused operators, (kernels,).
        seconds: Seconds after the launch, (kernels, 1 or points).
        home: Short path of the port whose first access and streaming are part of the seconds; None
            where they go on beside the kernel, as everywhere.
        joules: Of arithmetic and of what crosses that port, (kernels, 1 or points); None where
            operations and bytes are to count as everywhere.
        holds: The port is taken for all of these seconds, whatever passes it: commands open and
            close rows of all banks.
        free: Of the seconds, those at whose end something else is waited for, while the unit may
            run other work, (kernels, 1 or points).
        moved: Bytes beside the compulsory ones, by tensor class and cause, (kernels, 1 or points).
        paged: Reads of pages at random places are part of the seconds.
    """

    ops: Rows
    seconds: Array
    home: str | None
    joules: Array | None = None
    holds: bool = False
    free: Array | None = None
    moved: Mapping[tuple[str, str], Array] = field(default_factory=dict)
    paged: bool = False


class CountedModel(UnitModel, Protocol):
    """A unit model that counts its own gates; having one of the methods says so."""

    def row_joules(self, table: OpTable, row: int, unit: UnitView) -> Any:
        """Return the energy of a row's arithmetic, J; None where `energy` of the unit says it."""

    def area_m2(self, unit: UnitView) -> Any:
        """Return the area of the unit, m^2; None where its `area` and rate say it."""


class KernelModel(UnitModel, Protocol):
    """A unit model that also times whole kernels; having the method says so."""

    def kernel_prices(self, placed: PlacedOps, ops: Rows, unit: UnitView) -> KernelPrices | None:
        """Return the price of those of the fused operators that are such kernels, None if none is.

        Args:
            ops: Fused operators on this unit.
        """
        ...


UNITS: Registry[type[UnitModel]] = Registry("unit kind")


@dataclass(frozen=True)
class UnitView:
    """One unit's parameters: floats, or arrays over design points."""

    machine: Machine
    path: str

    def get(self, name: str, default: Any = None) -> Any:
        """Return a parameter, or a default where the unit does not have it."""
        return self.machine.values.get(f"{self.path}.{name}", default)

    def peak(self, dtype: str) -> Any:
        """Return the matrix rate for an arithmetic dtype, operations/s.

        A packed format computes in what it unpacks to, and fp16 values in bf16 where that is all
        there is: they convert without overflow. The reverse can overflow and is refused.

        Raises:
            UncoveredError: If the unit has none of these.
        """
        for name in arithmetic(dtype):
            rate = self.get(f"peak.{name}")
            if rate is not None:
                return rate
        known = ", ".join(self.machine.unit(self.path).config.peak) or "no matrix rate"
        raise UncoveredError(
            f"{self.machine.name}: unit '{self.path}' has no arithmetic for {dtype}. It has: "
            f"{known}. choose another `precision` for the work"
        )

    def energy(self, dtype: str) -> Any:
        """Return the energy of one matrix operation, joules, NaN where the unit gives none."""
        known = [self.get(f"energy.{name}") for name in arithmetic(dtype)]
        return next((e for e in known if e is not None), np.nan)

    def vector_rate(self, kind: str) -> Any:
        """Return the rate of everything that is not a matrix product, operations/s.

        Raises:
            UncoveredError: If the unit has none.
        """
        rate = self.get("vector")
        if rate is None:
            raise UncoveredError(
                f"{self.machine.name}: unit '{self.path}' has no `vector` rate, so it can not run "
                f"'{kind}'. give one, or map the operator to another unit"
            )
        return rate

    @property
    def model(self) -> UnitModel:
        """Return the model that prices this kind of unit.

        Raises:
            UncoveredError: If there is none yet.
        """
        kind = self.machine.unit(self.path).config.kind
        if kind not in UNITS.names():
            raise UncoveredError(
                f"{self.machine.name}: no model prices unit kind '{kind}' of '{self.path}'. "
                f"Known: {', '.join(UNITS.names())}"
            )
        return UNITS.lookup(kind)()

    def home_port(self) -> str | None:
        """Return the first of the unit's ports that is no SRAM's, None if there is none."""
        for port in self.machine.unit_ports(self.path):
            if self.machine.memory(port.rpartition(".")[0]).config.kind != "sram":
                return port
        return None

    def buffer(self) -> str | None:
        """Return the short path of the memory on the chip that holds tiles, None without one."""
        config = self.machine.unit(self.path).config
        part = self.path.rpartition(".")[0]
        memory = f"{part}.{config.buffer}" if config.buffer else None
        if memory is None:
            own = self.machine.unit_ports(self.path)[0].rpartition(".")[0]
            memory = own if self.machine.memory(own).config.kind == "sram" else None
        return None if memory is None else self.machine.memory(memory).path

    def buffer_bytes(self) -> Any:
        """Return the bytes that tiles may take on the chip, or None without a buffer."""
        memory = self.buffer()
        if memory is None:
            return None
        capacity = self.machine.values[f"{memory}.capacity"]
        return capacity * self.get("buffer_share", 1.0)


def arithmetic(dtype: str) -> tuple[str, ...]:
    """Return the dtypes that a unit may compute in, best first."""
    stored = dtype_of(dtype)
    if stored.compute != stored.name:
        return stored.fallbacks
    return (dtype, "bf16") if dtype == "fp16" else (dtype,)


def is_matrix(table: OpTable, rows: Rows) -> npt.NDArray[np.bool_]:
    """Return which rows are matrix products, (rows,)."""
    return np.any(table["m"][rows] > 0, axis=1)  # type: ignore[no-any-return]


def arithmetic_seconds(
    table: OpTable, rows: Rows, unit: UnitView, matrix_ops: Array, *, ideal: bool
) -> Array:
    """Return operations over rate: matrix rows at the dtype's peak, the rest at the vector rate.

    Args:
        matrix_ops: Operations that matrix rows execute, padding included, (rows, 1 or points).
    """
    matrix = is_matrix(table, rows)
    efficiency = 1.0 if ideal else unit.get("efficiency", 1.0)
    work = np.where(matrix[:, None], matrix_ops, table["flops"][rows])
    seconds = []
    for row, is_product, ops in zip(rows, matrix, work, strict=True):
        if not ops.any():
            seconds.append(np.zeros(1))
        elif is_product:
            seconds.append(ops / (unit.peak(table.dtypes[row]) * efficiency))
        else:
            seconds.append(ops / unit.vector_rate(table.kinds[row]))
    return np.stack(np.broadcast_arrays(*seconds)) if seconds else np.zeros((0, 1))
