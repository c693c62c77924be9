"""A core for ternary weights: its parameters and what it does in a cycle.

Every cycle a core multiplies a tile of n = tables * mu activations with n x readers weights, for
each `kind` from the same primitives:

    lut         tables of (3^mu - 1) / 2 sums; with mu = 1 an add-only core, whose table is the
                activation
    multiplier  an array of multipliers for weights in the activations' own format
    dequantise  the same behind an AND and an XOR for each bit, which unpack ternary weights
    bit_serial  a gate and an inverter for each weight and bit of the activations, a bit a cycle

All fields may be arrays over design points; nothing here makes an object for each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.ternary import MOST_MU
from opbyte.hw_models.compute.lut.build import (
    SHERRY_ADDERS,
    SHERRY_DEPTH,
    SHERRY_ENTRIES,
    SHERRY_MU,
    Scheme,
    check_scheme,
    counts,
)
from opbyte.hw_models.cost.primitives import Number, number

Kind = Literal["lut", "multiplier", "dequantise", "bit_serial"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Weights = Literal["ternary", "sherry"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)

_ENTRIES = np.array([np.nan, *((3**mu - 1) // 2 for mu in range(1, MOST_MU + 1))])


@dataclass(frozen=True)
class Core:
    """One core, or one for each design point.

    Attributes:
        weights: Any ternary ones, or Sherry's, whose tables of mu = 4 hold 16 sums.
        mu: Activations that share a table; 1 for kinds without tables.
        tables: Tables that are read in a cycle (L); without tables, the activations of a tile.
        readers: Weights of each table that are read in a cycle (K), and outputs of a tile.
        accumulators: Outputs whose sums are held; 0 for one for each reader.
        buffers: 1, or 2 where the next tables are built while these are read.
        out_bits: Width of the sums of integers; floating point has its own.
        reduce_bits: Width of the tree of integers; 0 where it grows as it must.
        clock: Hz.
        instances: Cores that share the outputs or the rows of a product.
    """

    kind: Kind = "lut"
    activation: str = "int8"
    scheme: Scheme = "pruned"
    weights: Weights = "ternary"
    mu: Any = 3
    tables: Any = 8
    readers: Any = 8
    accumulators: Any = 0
    buffers: Any = 1
    out_bits: Any = 32
    reduce_bits: Any = 0
    clock: Any = 500e6
    instances: Any = 1
    number: Number = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            ConfigError: If one is outside of its range, which the message gives.
        """
        if self.kind not in KINDS:
            rule = f"a core is one of {', '.join(KINDS)}"
            raise ConfigError.one("", "kind", rule, self.kind)
        object.__setattr__(self, "number", number(self.activation))
        check_scheme(self.scheme)
        if self.kind == "bit_serial" and self.number.is_float:
            rule = "a bit-serial core takes activations of int8 or int16"
            raise ConfigError.one("", "activation", rule, self.activation)
        most = MOST_MU if self.kind == "lut" else 1
        self._whole("mu", 1, most, "Kinds without tables have mu = 1." if most == 1 else "")
        if self.weights not in WEIGHTS:
            rule = f"weights are one of {', '.join(WEIGHTS)}"
            raise ConfigError.one("", "weights", rule, self.weights)
        if self.is_sherry and (self.kind != "lut" or np.any(np.asarray(self.mu) != SHERRY_MU)):
            rule = f"Sherry's weights share tables of mu = {SHERRY_MU}"
            raise ConfigError.one("", "mu", rule, self.mu)
        self._whole("tables", 1)
        self._whole("readers", 1)
        self._whole("accumulators", 0)
        self._whole("buffers", 1, 2)
        self._whole("out_bits", self.number.bits, 128)
        self._whole("reduce_bits", 0, 128)
        self._whole("instances", 1)
        clock = np.asarray(self.clock, float)
        if not np.all((clock > 0) & np.isfinite(clock)):
            raise ConfigError.one("", "clock", "a core's clock is above 0", self.clock)

    def _whole(self, name: str, least: int, most: float = np.inf, remedy: str = "") -> None:
        value = getattr(self, name)
        given = np.asarray(value, float)
        wrong = ~((given >= least) & (given <= most) & (given == np.floor(given)))
        if wrong.any():
            limits = f"at least {least}" if most == np.inf else f"from {least} to {most:g}"
            first = float(given[wrong][0]) if given.ndim else value
            bad = int(first) if isinstance(first, float) and first.is_integer() else first
            rule = f"{name} must be a whole number {limits}"
            raise ConfigError.one("", name, rule, bad, remedy)
        object.__setattr__(self, name, given if given.ndim else float(given))

    @property
    def is_sherry(self) -> bool:
        """Return whether tables hold the sums of Sherry's weights alone."""
        return self.weights == "sherry"

    @cached_property
    def entries(self) -> Any:
        """Return the sums of a table; 1, the activation itself, without tables."""
        if self.is_sherry:
            return float(SHERRY_ENTRIES)
        return _ENTRIES[np.asarray(self.mu, np.int64)]

    @cached_property
    def adders(self) -> Any:
        """Return the adders that fill one table."""
        if self.is_sherry:
            return float(SHERRY_ADDERS)
        return counts("adders", np.asarray(self.mu, np.int64), self.scheme)

    @cached_property
    def depth(self) -> Any:
        """Return the additions on the longest way through a table's network."""
        if self.is_sherry:
            return float(SHERRY_DEPTH)
        return counts("depth", np.asarray(self.mu, np.int64), self.scheme)

    @property
    def entry_bits(self) -> Any:
        """Return the bits of an entry."""
        if self.number.is_float:
            return float(self.number.bits)
        # Three of Sherry's weights add up.
        return self.number.bits + (2.0 if self.is_sherry else self.mu - 1.0)

    @property
    def rows(self) -> Any:
        """Return the activations of a tile (n)."""
        return self.tables * self.mu

    @property
    def held(self) -> Any:
        """Return the outputs whose sums are held."""
        return np.maximum(self.accumulators, self.readers)

    @property
    def serial(self) -> float:
        """Return the cycles of a tile."""
        return float(self.number.bits) if self.kind == "bit_serial" else 1.0

    @property
    def macs_per_cycle(self) -> Any:
        """Return multiplications with weights in a cycle, of one core."""
        return self.rows * self.readers / self.serial
