"""The `prices` block: what memories and storage cost by technology.

The block is a table of the catalog as a machine's own values, as `site` and `making` are. A memory
without a `price` takes the table's for its technology, with source and range, and so does the
controller of a CXL expander: what two machines take from the table is one number that nobody knows.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from opbyte.core.blocks import Block
from opbyte.core.config import Document
from opbyte.core.errors import OpbyteError
from opbyte.core.parameters import Dollars, DollarsPerByte
from opbyte.hw_models.memory.cxl_devices import load_cxl
from opbyte.hw_models.tables import PRICES, with_table

__all__ = ["Prices", "entry_of", "with_prices", "with_table_of_prices"]

#: A generation of DRAM at the start of a technology's name; speed grades cost the same.
_GENERATION = re.compile(r"hbm\d+e?|(?:gddr|lpddr|ddr)\d+")


class Prices(Block):
    """What memories and storage cost by technology."""

    hbm2: DollarsPerByte
    hbm2e: DollarsPerByte
    hbm3: DollarsPerByte
    hbm3e: DollarsPerByte
    hbm4: DollarsPerByte
    ddr4: DollarsPerByte
    ddr5: DollarsPerByte
    lpddr4: DollarsPerByte
    lpddr5: DollarsPerByte
    gddr6: DollarsPerByte
    """GDDR6X too."""
    gddr7: DollarsPerByte
    flash: DollarsPerByte
    """Of a drive, with its controller."""
    expander: Dollars
    """A CXL expander without its memory: controller and card."""


def with_table_of_prices(document: Document) -> Document:
    """Return a machine document with a whole `prices`."""
    return with_table(document, PRICES, Prices)


def with_prices(document: Document) -> Document:
    """Return a machine document whose memories and expanders have the prices of its `prices`.

    A memory keeps its own. One whose technology the table does not have stays without.
    """
    parts, table = document.data.get("parts"), document.data.get("prices")
    if not isinstance(parts, dict) or not isinstance(table, dict):
        return document
    return replace(document, data={**document.data, "parts": _parts(parts, table)})


def entry_of(memory: dict[str, Any]) -> str | None:
    """Return the entry of the table that is a memory's price, None where none is known.

    Args:
        memory: As it is written in a machine's file.
    """
    kind, technology = memory.get("kind", "dram"), memory.get("technology")
    if kind == "flash":
        return "flash"
    if kind == "cxl":
        technology = _behind(technology, memory.get("expander"))
    if kind not in ("dram", "cxl") or not isinstance(technology, str):
        return None
    found = _GENERATION.match(PurePath(technology).name.lower())
    return found[0] if found and found[0] in Prices.model_fields else None


def _behind(device: Any, changes: Any) -> str | None:
    """Return the DRAM behind a CXL device; what is wrong with it is for validation to say."""
    try:
        return load_cxl(device, **(changes or {})).dram.technology
    except (OpbyteError, TypeError):
        return None


def _parts(parts: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _part(part, table) if isinstance(part, dict) else part for name, part in parts.items()
    }


def _part(part: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    whole = dict(part)
    if isinstance(part.get("parts"), dict):
        whole["parts"] = _parts(part["parts"], table)
    memories = part.get("memory")
    if not isinstance(memories, dict):
        return whole
    whole["memory"] = {name: _memory(memory, table) for name, memory in memories.items()}
    expands = any(isinstance(m, dict) and m.get("kind") == "cxl" for m in memories.values())
    # Where a part has dies of its own, they are its controller.
    if expands and not {"price", "node_nm", "units"} & part.keys() and "expander" in table:
        whole["price"] = _entry("expander", table)
    return whole


def _memory(memory: Any, table: dict[str, Any]) -> Any:
    if not isinstance(memory, dict) or "price" in memory:
        return memory
    name = entry_of(memory)
    return memory if name not in table else {**memory, "price": _entry(str(name), table)}


def _entry(name: str, table: dict[str, Any]) -> Any:
    """Return a price as written; one without a source has the block as its source."""
    given = table[name] if isinstance(table[name], dict) else {"value": table[name]}
    return {"source": f"given: prices.{name}", **given}
