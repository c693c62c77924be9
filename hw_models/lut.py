"""The `lut` block of a unit: a core for ternary weights, see `opbyte.hw_models.compute.lut`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import field_validator

from opbyte.core.blocks import Block
from opbyte.core.parameters import Count, Parameter, Quantity
from opbyte.core.ternary import MOST_MU
from opbyte.hw_models.gates import Gates

#: At least one of something.
_Several = Annotated[Parameter, Quantity("count", least=1.0)]


def _own(value: float, why: str) -> Parameter:
    return Parameter(value, "count", f"{why} unless given")


class Lut(Block):
    """A core that reads sums of activations from tables, or an array that does without."""

    kind: Literal["lut", "multiplier", "dequantise", "bit_serial"] = "lut"
    """Tables (with mu = 1 additions only), or an array of multipliers or of single bits."""
    activation: Literal["int8", "int16", "fp16", "bf16", "fp32"]
    """Number format of activations, sums and results."""
    weights: Literal["ternary", "sherry"] = "ternary"
    """Any ternary weights, or Sherry's in `t1.25`, whose tables of mu = 4 hold 16 sums."""
    mu: Count
    """Activations that share a table, 1 to 12; 1 without tables."""
    tables: _Several
    """Tables read in a cycle (L); without tables the activations of a tile."""
    readers: _Several
    """Outputs of a tile: weights of each table that are read in a cycle (K)."""
    accumulators: Count = _own(0.0, "one for each reader")
    """Outputs whose sums are held at once; 0 for one for each reader."""
    buffers: Count = _own(1.0, "one set of tables, as in the generator,")
    """2 where the next tables are built while these are read."""
    out_bits: _Several = _own(32.0, "32, as in the generator,")
    """Width of the sums of integers."""
    reduce_bits: Count = _own(0.0, "as wide as it must be")
    """Width of the tree of integers; 0 where it grows as it must."""
    scheme: Literal["naive", "chains", "shared", "pruned", "minimal"] = "pruned"
    """How the adders of a table share sums."""
    gates: Gates
    """What it is built of: a table of the catalog, a file, or the table itself."""
    source: str | None = None

    @field_validator("mu", "buffers")
    @classmethod
    def _limited(cls, value: Parameter, info: object) -> Parameter:
        name = str(getattr(info, "field_name", ""))
        most = MOST_MU if name == "mu" else 2
        if not 1 <= value.value <= most:
            raise ValueError(f"{name} must be a whole number from 1 to {most}")
        return value
