"""The `making` block and a part's `package`: wafers, what dies stand on, dies on dies.

The block is a table of the catalog as a machine's own values: paths such as `making.defects` change
it, and each has a source and a range.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from opbyte.core.blocks import Block
from opbyte.core.config import Document
from opbyte.core.parameters import (
    Area,
    Dollars,
    DollarsPerArea,
    Exponent,
    Factor,
    Parameter,
    Quantity,
    Ratio,
)
from opbyte.hw_models.tables import MAKINGS, with_table

_AtLeastOne = Annotated[Parameter, Quantity("factor", least=1.0)]


class Substrate(Block):
    """An organic substrate."""

    price: DollarsPerArea
    """Of a substrate with as many layers as one chip needs."""
    area: _AtLeastOne
    """Area of the substrate over that of what stands on it."""
    bump: DollarsPerArea
    """Bumps under what stands on it."""
    bond: Ratio
    """Share of bonds that hold."""
    source: str | None = None


class Carrier(Block):
    """What chips stand on above the substrate: a silicon interposer or redistribution layers."""

    wafer: Dollars
    """A wafer of it, 300 mm."""
    defects: Factor
    """Defects on each cm2."""
    clusters: Exponent
    """How unevenly they fall: the exponent of the yield."""
    area: _AtLeastOne
    """Its area over that of the chips."""
    bump: DollarsPerArea
    """Small bumps under the chips."""
    bond: Ratio
    """Share of the chips' bonds that hold."""
    source: str | None = None


class Tier(Block):
    """A die on top of another."""

    wafer: Dollars
    """Vias and thinning of a wafer, 300 mm."""
    price: Dollars
    """Bonding one die."""
    bond: Ratio
    """Share of bonds that hold."""
    source: str | None = None


class Making(Block):
    """What dies and packages are made of."""

    wafers: Factor
    """Prices of wafers over those of the table by node."""
    defects: Factor
    """Defects of dies over those of the table by node."""
    clusters: Exponent
    """How unevenly they fall: the exponent of the yield."""
    substrate: Substrate
    rdl: Carrier
    interposer: Carrier
    tier: Tier
    source: str | None = None


class Package(Block):
    """What a part's dies, and perhaps stacks of memory, stand on."""

    kind: Literal["organic", "rdl", "interposer"]
    """A substrate alone, or redistribution layers or a silicon interposer on it."""
    tiers: int = Field(1, ge=1)
    """Dies on top of one another, of which the part has a multiple."""
    memory: str | None = None
    """Memory of the part that stands beside the dies."""
    stacks: int | None = Field(None, ge=1)
    """Stacks or chips of that memory."""
    stack_area: Area | None = None
    """What one of them covers."""
    source: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        given = (self.memory, self.stacks, self.stack_area)
        if any(given) and not all(given):
            raise ValueError("a package with `memory` needs `stacks` and `stack_area`. give all")
        return self


class OtherDies(Block):
    """Dies beside a part's own that hold some of its units: under stacks of memory, or in them.

    With `node_nm` they are bought by the wafer, `footprint` each: a logic die under a stack is as
    large as the stack. With `memory` they are that memory's: what stands on them makes each larger
    than `footprint`, and the memory dearer by the same share.
    """

    dies: int = Field(ge=1)
    footprint: Area
    """One die: whole with `node_nm`, without what it holds with `memory`."""
    holds: tuple[str, ...] = ()
    """Units, SRAM and ports (`hbm.tsv`) of the part that stand on them."""
    node_nm: float | None = Field(None, gt=0)
    memory: str | None = None
    area: Area | None = None
    """What else the part has on one of them, as a part's `area`."""
    source: str | None = None

    @model_validator(mode="after")
    def _made(self) -> Self:
        if (self.node_nm is None) == (self.memory is None):
            raise ValueError("dies are bought by `node_nm` or with a `memory`. give one of the two")
        if not self.footprint.value:
            raise ValueError("a die has a `footprint` above zero. give it")
        return self


def with_making(document: Document) -> Document:
    """Return a machine document with a whole `making`."""
    return with_table(document, MAKINGS, Making)
