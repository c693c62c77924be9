"""Blocks of a machine whose values are a table's of the catalog where it gives none of its own."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from opbyte.core.blocks import Block
from opbyte.core.catalog import Catalog
from opbyte.core.config import Document, load_document

_CATALOG = Path(__file__).parent / "catalog"

SITES = Catalog("site", _CATALOG / "sites")
MAKINGS = Catalog("making", _CATALOG / "making")
PRICES = Catalog("prices", _CATALOG / "prices")


def with_table(document: Document, catalog: Catalog, block: type[Block]) -> Document:
    """Return a machine document with a whole block; values that it has not are the catalog's.

    A name in its place (`site: mine.yaml`) is no block: the values are few, give those that differ.
    """
    name = catalog.kind
    own = document.data.get(name, {})
    if not isinstance(own, dict):
        return document
    whole = dict(_table(catalog, block))
    for key, value in own.items():
        table = whole.get(key)
        # Groups are filled like the block itself; a value with source and range is one value.
        if isinstance(value, dict) and isinstance(table, dict):
            both = {**table, **value}
            whole[key] = value if "value" in both else both
        else:
            whole[key] = value
    return replace(document, data={**document.data, name: whole})


@cache
def _table(catalog: Catalog, block: type[Block]) -> dict[str, Any]:
    data = load_document(catalog.path(catalog.kind)).data
    return {field: data[field] for field in block.model_fields if field in data}
