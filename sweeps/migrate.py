"""The schema of stored results, and how older ones become the present one.

1: `study.json` without `schema`; rows of a part in any order, a point may stand in it twice.
2: `schema` in `study.json` and in each part's metadata (`opbyte.schema`); rows of a part are sorted
   by point, each point once; parts may be merged (`opbyte.replaces`).

`study.json` is migrated step by step when results are opened, in memory: results may lie where
nobody may write. The next run into the folder, and `opbyte compact`, write it down; compaction
also writes the parts of an older schema anew. Until then readers put their rows in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opbyte.core.errors import ConfigError

__all__ = ["SCHEMA", "check_schema", "migrated"]

SCHEMA = 2


def migrated(meta: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return what `study.json` says, in the present schema.

    Args:
        meta: What the file holds.
        place: The file, for errors.

    Raises:
        ConfigError: If the schema is newer than this program, or no whole number above 0.
    """
    found = meta.get("schema", 1)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        rule = "the schema of results is a whole number from 1 on"
        raise ConfigError.one(place, "schema", rule, found, "Run the study with --fresh.")
    check_schema(found, place, "schema", str(meta.get("version", "")))
    data = dict(meta)
    for version in range(found, SCHEMA):
        data = {**_STEPS[version](data), "schema": version + 1}
    return data


def check_schema(found: int, place: str, path: str, version: str = "") -> None:
    """Raise if a schema is newer than this program.

    Raises:
        ConfigError: If it is.
    """
    if found <= SCHEMA:
        return
    rule = f"these results have a newer schema, this program reads schemas up to {SCHEMA}"
    wrote = f"opbyte {version} or newer" if version else "the opbyte that wrote them"
    remedy = f"Install {wrote}, or run the study into another folder with --out."
    raise ConfigError.one(place, path, rule, found, remedy)


def _from_1(meta: dict[str, Any]) -> dict[str, Any]:
    """Give every column a dimension: the first stores had units alone."""
    from opbyte.sweeps.axes import SI_UNITS

    kinds = {unit: kind for kind, unit in SI_UNITS.items()}
    known = {name: kinds[unit] for name, unit in meta["units"].items() if unit in kinds}
    return {**meta, "dimensions": {**known, **meta.get("dimensions", {})}}


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
