"""What arithmetic is built of: area, energy and delay of operators by width and process node.

    adder of b bits       b full adders; delay of one and of ceil(log2 b) prefix levels
    n-to-1 multiplexer    (n - 1) * b two-input multiplexers in ceil(log2 n) levels
    register, xor, and    b of the gate
    multiplier of integers  table by width, powers of the width between and around
    FP adder, multiplier  table by number format
    SRAM                  bits; energy of a bit grows with a power of the array's size

Areas and energies are the table's times the node's factor, delays its FO4 times the node's. Any
value may be an array over design points, and so may widths and nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.ops import Array
from opbyte.core.parameters import Parameter
from opbyte.hw_models.gates import Gates, load_gates

__all__ = ["NUMBERS", "Number", "Price", "Primitives", "number", "primitives"]

_8_KIB = 65536.0


class Price(NamedTuple):
    """Area of an operator, m^2; energy of one operation, J; delay, s: floats or (points,)."""

    area: Any
    energy: Any
    delay: Any

    def times(self, count: Any) -> Price:
        """Return the price of `count` operators side by side."""
        return Price(self.area * count, self.energy * count, self.delay)


@dataclass(frozen=True)
class Number:
    """A number format that arithmetic is built for.

    Attributes:
        exponent, significand: Bits of a floating-point number, the hidden one included; 0 and the
            width for integers.
    """

    name: str
    bits: int
    exponent: int
    significand: int

    @property
    def is_float(self) -> bool:
        """Return whether it has an exponent."""
        return self.exponent > 0

    @property
    def unit_roundoff(self) -> float:
        """Return the largest relative error of one rounding to nearest; 0 for integers."""
        return 2.0**-self.significand if self.is_float else 0.0


NUMBERS: Mapping[str, Number] = {
    n.name: n
    for n in (
        Number("int8", 8, 0, 8),
        Number("int16", 16, 0, 16),
        Number("fp16", 16, 5, 11),
        Number("bf16", 16, 8, 8),
        Number("fp32", 32, 8, 24),
    )
}


def number(name: object) -> Number:
    """Return the number format of an activation.

    Raises:
        ConfigError: If arithmetic is built for no such format.
    """
    if not isinstance(name, str) or name not in NUMBERS:
        rule = f"activations are one of {', '.join(NUMBERS)}"
        raise ConfigError.one("", "activation", rule, name)
    return NUMBERS[name]


@dataclass(frozen=True)
class Primitives:
    """Prices of operators at a node.

    Attributes:
        values: Values of a table of gates by short path (`mux2.area`), SI: floats or (points,).
        node_nm: Process node; a float or (points,).
        ranges: Lowest and highest plausible value, of those that have any.
    """

    values: Mapping[str, Any]
    node_nm: Any
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @cached_property
    def _nodes(self) -> tuple[float, ...]:
        names = {path.split(".")[1] for path in self.values if path.startswith("nodes.")}
        return tuple(sorted(float(name[1:]) for name in names))

    @cached_property
    def scale(self) -> tuple[Any, Any, Any]:
        """Return the node's factors of area and energy, and its FO4 in seconds.

        Raises:
            UncoveredError: If a node lies outside of the table's.
        """
        nodes, wanted = self._nodes, np.asarray(self.node_nm, float)
        if not np.all((wanted >= nodes[0]) & (wanted <= nodes[-1])):
            raise UncoveredError(
                f"gates are scaled from {nodes[0]:g} to {nodes[-1]:g} nm, not to "
                f"{self.node_nm} nm. choose a node in between, or give a table of gates with it"
            )
        return tuple(self._between(what, wanted) for what in ("area", "energy", "fo4"))

    def _between(self, what: str, wanted: Any) -> Any:
        """Return a factor interpolated in logarithms of node and factor."""
        nodes = np.array(self._nodes)
        table = [np.log(self.values[f"nodes.n{node:g}.{what}"]) for node in nodes]
        if len(nodes) == 1:
            return np.exp(table[0])
        at = np.clip(np.searchsorted(nodes, wanted, side="right") - 1, 0, len(nodes) - 2)
        part = np.log(wanted / nodes[at]) / np.log(nodes[at + 1] / nodes[at])
        if np.ndim(at) == 0:
            below, above = table[int(at)], table[int(at) + 1]
        else:
            stacked = np.stack(np.broadcast_arrays(*table, np.zeros(at.shape))[:-1])
            below, above = (np.take_along_axis(stacked, (at + i)[None], axis=0)[0] for i in (0, 1))
        found = np.exp((1.0 - part) * below + part * above)
        return float(found) if np.ndim(found) == 0 else found

    def _price(self, path: str, count: Any = 1.0, delays: Any = 1.0) -> Price:
        area, energy, fo4 = self.scale
        values = self.values
        return Price(
            values[f"{path}.area"] * count * area,
            values[f"{path}.energy"] * count * energy,
            values[f"{path}.delay"] * delays * fo4,
        )

    def adder(self, bits: Any) -> Price:
        """Return an integer adder, subtractor or comparator of so many bits."""
        one = self._price("full_adder", bits)
        return one._replace(delay=one.delay + self._price("and2", 1.0, 2 * _levels(bits)).delay)

    def register(self, bits: Any) -> Price:
        """Return a register that is written."""
        return self._price("flip_flop", bits)

    def mux(self, inputs: Any, bits: Any) -> Price:
        """Return a multiplexer; one of a single input costs nothing."""
        return self._price("mux2", (inputs - 1.0) * bits, _levels(inputs))

    def shifter(self, bits: Any, places: Any) -> Price:
        """Return a shifter by 0 to places - 1 places."""
        return self._price("mux2", bits * _levels(places), _levels(places))

    def xor(self, bits: Any) -> Price:
        """Return so many XOR gates side by side."""
        return self._price("xor2", bits)

    def gate(self, bits: Any) -> Price:
        """Return so many AND gates side by side."""
        return self._price("and2", bits)

    def add(self, form: Number, bits: Any = None) -> Price:
        """Return an adder of a number format; integers of `bits`, by default the format's width.

        Raises:
            UncoveredError: If the table has no such adder.
        """
        if not form.is_float:
            return self.adder(form.bits if bits is None else bits)
        return self._price(self._known("fp_add", form.name))

    def multiply(self, form: Number) -> Price:
        """Return a multiplier of two numbers of a format.

        Raises:
            UncoveredError: If the table has no such multiplier.
        """
        if form.is_float:
            return self._price(self._known("fp_multiply", form.name))
        return self.int_multiplier(form.bits)

    def int_multiplier(self, bits: float) -> Price:
        """Return a multiplier of two integers: powers of the width between the table's widths."""
        widths = sorted({int(p.split(".")[1][3:]) for p in self.values if p.startswith("int_mul")})
        low = max([w for w in widths[:-1] if w <= bits], default=widths[0])
        high = widths[widths.index(low) + 1]
        part = np.log(bits / low) / np.log(high / low)
        ends = [self._price(f"int_multiply.int{w}") for w in (low, high)]
        return Price(*(a ** (1.0 - part) * b**part for a, b in zip(*ends, strict=True)))

    def sram(self, bits: Any) -> Price:
        """Return an array of so many bits; the energy is that of one bit read or written."""
        one = self._price("sram")
        grown = (bits / _8_KIB) ** self.values["sram.growth"]
        return Price(one.area * bits, one.energy * grown, one.delay * np.maximum(grown, 0.2))

    def _known(self, table: str, name: str) -> str:
        if f"{table}.{name}.area" not in self.values:
            raise UncoveredError(f"the table of gates has no {table} of {name}. add one to it")
        return f"{table}.{name}"

    # -- what is not known exactly ---------------------------------------------------------

    def sampled(self, points: int, seed: int = 0) -> Primitives:
        """Return primitives with values drawn from all ranges at once, each (points,).

        Independent and even in the logarithm. The first point has the table's own values.
        """
        rng = np.random.default_rng(seed)
        drawn = dict(self.values)
        for path, (low, high) in self.ranges.items():
            many = low * (high / low) ** rng.random(points)
            many[0] = self.values[path]
            drawn[path] = many
        return dataclasses.replace(self, values=drawn)

    def ends(self) -> Iterator[tuple[str, Primitives]]:
        """Yield each value that has a range, and primitives with its two ends, (2,)."""
        for path, limits in self.ranges.items():
            values = {**self.values, path: np.array(limits)}
            yield path, dataclasses.replace(self, values=values)


def _levels(inputs: Any) -> Any:
    """Return the levels of a tree of two-input gates."""
    return np.ceil(np.log2(np.maximum(inputs, 1.0)))


def primitives(
    source: str | Path | Mapping[str, Any] | Gates = "gates-45nm", node_nm: Any = 45.0
) -> Primitives:
    """Return primitives of a table of gates at a node.

    Args:
        source: Catalog name, YAML file, mapping or table.
        node_nm: Process node, nm; a float or (points,).
    Raises:
        ConfigError: If the table is unknown or wrong.
        UncoveredError: If it does not reach the node.
    """
    values: dict[str, Array | float] = {}
    ranges: dict[str, tuple[float, float]] = {}
    for path, parameter in _collected(load_gates(source), ""):
        values[path] = parameter.value
        if parameter.range is not None:
            ranges[path] = parameter.range
    made = Primitives(values, node_nm, ranges)
    _ = made.scale
    return made


def _collected(node: Any, path: str) -> Iterator[tuple[str, Parameter]]:
    if isinstance(node, Parameter):
        yield path, node
        return
    inner = node if isinstance(node, dict) else dict(node) if isinstance(node, BaseModel) else {}
    for name, child in inner.items():
        yield from _collected(child, f"{path}.{name}" if path else str(name))
