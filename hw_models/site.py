"""The `site` block: what energy costs and emits where a machine stands, and where it is made.

It is a table of the catalog as a machine's own values: paths such as `site.electricity` change it,
and each has a source and a range.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import model_validator

from opbyte.core.blocks import Block
from opbyte.core.config import Document
from opbyte.core.parameters import (
    DollarsPerJoule,
    KilogramsPerByte,
    KilogramsPerJoule,
    Parameter,
    Quantity,
    Ratio,
    Seconds,
)
from opbyte.hw_models.tables import SITES, with_table


class Site(Block):
    """Prices and carbon of energy, and how long a machine is of use."""

    electricity: DollarsPerJoule
    overhead: Annotated[Parameter, Quantity("factor", least=1.0)]
    """Energy of the whole site over that of its machines."""
    grid: KilogramsPerJoule
    """Carbon dioxide (equivalent) of the site's electricity."""
    life: Seconds
    """Time over which a machine's making is written off, above 0."""
    busy: Ratio
    """Share of its life for which it runs such work."""
    fab_grid: KilogramsPerJoule
    """Carbon of the electricity where logic dies are made."""
    dram: KilogramsPerByte
    """Carbon of making a byte of DRAM."""
    flash: KilogramsPerByte
    """Carbon of making a byte of flash."""
    source: str | None = None

    @model_validator(mode="after")
    def _lives(self) -> Self:
        if not self.life.value:
            raise ValueError("`life` must be above 0; got 0. Write for example 3 years")
        return self


def with_site(document: Document) -> Document:
    """Return a machine document with a whole `site`."""
    return with_table(document, SITES, Site)
