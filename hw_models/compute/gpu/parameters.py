"""What the kernel reads of a machine: data sheet, generation and the `kernel` block, as columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.gpu.generations import GENERATIONS, Generation
from opbyte.hw_models.kernel import EXPONENTS

#: Facts and parameters of a product, in the order of the columns of `kernel`.
MACHINE = (
    "sms", "peak", "shared", "port", "l2_rate", "l2_bytes", "reuse", "pins", "stream", "room",
    "lanes", "energy",
)  # fmt: skip
BLOCK = ("matrix", "fill", "latency", "epilogue", "split", "l2_share", "overlap", "tail")


@dataclass(frozen=True)
class GpuView:
    """A unit with a `kernel` block.

    Attributes:
        home: Short path of the port that the block's stream is about.
    """

    unit: UnitView
    generation: Generation
    home: str

    @classmethod
    def of(cls, unit: UnitView) -> GpuView | None:
        """Return the view of a unit, None where it has no `kernel` block.

        Raises:
            ConfigError: If no generation has the unit's name for it.
            UncoveredError: If the unit lacks what the kernel needs beside its block.
        """
        config = unit.machine.unit(unit.path).config
        if config.kernel is None:
            return None
        home = unit.home_port()
        lacks = [
            name
            for name, there in (
                ("a port of a DRAM in `at`", home is not None),
                ("`clock`", config.clock is not None),
                ("`vector`", config.vector is not None),
                ("`buffer` (its L2)", unit.buffer() is not None),
            )
            if not there
        ]
        if lacks or home is None:
            raise UncoveredError(
                f"{unit.machine.name}: unit '{unit.path}' has a `kernel` block, which also needs "
                f"{', '.join(lacks)}. give it, or remove the block"
            )
        return cls(unit, GENERATIONS.lookup(config.generation), home)

    def facts(self, dtype: str, *more: Any) -> Array:
        """Return the columns of `kernel`, and more behind them, (1 or points, FACTS + more).

        Raises:
            UncoveredError: If the unit has no rate for the dtype.
        """
        named = self.named(dtype)
        return stacked(*(named[name] for name in (*MACHINE, *BLOCK)), *more)

    def named(self, dtype: str) -> dict[str, Any]:
        """Return what kernels read of the machine, by name.

        Args:
            dtype: Of the matrix products; empty where there are none.
        Raises:
            UncoveredError: If the unit has no rate for the dtype, or an exponent is below 1.
        """
        key = "kernel", self.unit.path, self.home, dtype
        return self.unit.machine.remembered(key, lambda: self._named(dtype))

    def _named(self, dtype: str) -> dict[str, Any]:
        unit, values = self.unit, self.unit.machine.values
        clock, wires = unit.get("clock"), unit.get("kernel.l2")
        l2 = str(unit.buffer())
        pins = values.get(f"{self.home}.bandwidth")
        if pins is None:
            raise UncoveredError(
                f"{unit.machine.name}: '{self.home}' has no bandwidth. set {self.home}.bandwidth"
            )
        generation = self.generation
        return {
            "sms": float(unit.machine.unit(unit.path).config.instances),
            "peak": unit.peak(dtype) if dtype else np.inf,
            "shared": generation.shared_bytes_per_clock * clock,
            "port": generation.port_bytes_per_clock * clock * wires,
            "l2_rate": self._wire_rate(l2) * wires,
            "l2_bytes": values[f"{l2}.capacity"],
            "reuse": unit.buffer_bytes(),
            "pins": pins,
            "stream": pins * values.get(f"{self.home}.efficiency", 1.0),
            "room": self._room(),
            "lanes": unit.get("vector"),
            "energy": self._energy(dtype) if dtype else 0.0,
            "clock": clock,
            "threads": float(generation.threads),
            "shared_bytes": float(generation.shared_bytes),
            **{name: self._parameter(name) for name in BLOCK},
        }

    def block(self, name: str, keys: Sequence[str]) -> list[Any] | None:
        """Return parameters of a block inside `kernel`, None where it is absent."""
        if getattr(self.unit.machine.unit(self.unit.path).config.kernel, name) is None:
            return None
        return [self._parameter(f"{name}.{key}") for key in keys]

    def _parameter(self, name: str) -> Any:
        """Return a parameter of the block.

        Raises:
            UncoveredError: If it is the exponent of a norm and below 1, as a sweep may set it.
        """
        value = self.unit.get(f"kernel.{name}")
        if name in EXPONENTS and np.any(np.less(value, 1.0)):
            raise UncoveredError(
                f"{self.unit.machine.name}: {self.unit.path}.kernel.{name} must be at least 1, got "
                f"{np.min(value):g}: two times that overlap take no longer than one after the other"
            )
        return value

    def _wire_rate(self, l2: str) -> Any:
        ports = self.unit.machine.memory(l2).config.ports
        rates = [self.unit.machine.values.get(f"{l2}.{p}.bandwidth") for p in ports]
        known = [r for r in rates if r is not None]
        if not known:
            raise UncoveredError(
                f"{self.unit.machine.name}: no port of '{l2}' has a bandwidth, which the kernels "
                f"of '{self.unit.path}' need. set {l2}.{next(iter(ports))}.bandwidth"
            )
        return known[0]

    def _room(self) -> Any:
        """Return the power that the board can draw beyond its static part, watts."""
        part = self.unit.path.rpartition(".")[0]
        power = self.unit.machine.values.get(f"{part}.power")
        if power is None:
            return np.inf
        static = self.unit.machine.values.get(f"{part}.static_power", 0.0)
        room = power - static
        return max(room, 1e-3) if isinstance(room, float) else np.maximum(room, 1e-3)

    def _energy(self, dtype: str) -> Any:
        """Return joules of an operation: the block's, as the unit's own energies are to bf16's."""
        energy = self.unit.get("kernel.energy", 0.0)
        sixteen = self.unit.get("energy.bf16", self.unit.get("energy.fp16", np.nan))
        ratio = self.unit.energy(dtype) / sixteen
        if isinstance(ratio, float):
            return energy * (ratio if math.isfinite(ratio) else 1.0)
        return energy * np.where(np.isfinite(ratio), ratio, 1.0)


def stacked(*columns: Any) -> Array:
    """Return floats and arrays over points as (1 or points, columns)."""
    if all(isinstance(c, float) for c in columns):
        return np.array([columns])
    points = max(np.size(c) for c in columns)
    facts = np.empty((points, len(columns)))
    for i, column in enumerate(columns):
        facts[:, i] = column
    return facts
