"""The `gates` block: area, energy and delay of the parts that arithmetic is built of.

The table is data. `gates: gates-45nm` in a unit names one of the catalog, a path or a mapping gives
another, such as the results of one's own synthesis, and any value of it is a parameter of the
machine with a source and a range (`unit.lut.gates.mux2.area`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from opbyte.core.blocks import Block
from opbyte.core.catalog import Catalog
from opbyte.core.config import Document, load_document, validate
from opbyte.core.errors import ConfigError
from opbyte.core.parameters import Area, Factor, Joules, Seconds

CATALOG = Catalog("table of gates", Path(__file__).parent / "catalog" / "gates")
DEFAULT = "gates-45nm"


class Gate(Block):
    """One gate, or one operator, at the table's own node."""

    area: Area
    energy: Joules
    """Of one operation, clock and typical activity included."""
    delay: Factor
    """Delays of an inverter with four loads (FO4)."""
    source: str | None = None


class SramBit(Block):
    """A bit of SRAM, its share of the periphery included."""

    area: Area
    energy: Joules
    """Read or write of one bit of an array of 8 KiB."""
    growth: Factor
    """The energy is proportional to the array's size to this power."""
    delay: Factor
    """Access to 8 KiB, in FO4."""
    source: str | None = None


class Node(Block):
    """A process node against the table's own."""

    area: Factor
    energy: Factor
    fo4: Seconds
    """Delay of an inverter with four loads."""
    source: str | None = None


class Gates(Block):
    """A table of gates."""

    kind: Literal["gates"] = "gates"
    name: str = ""
    description: str = ""
    full_adder: Gate
    """For each bit of an adder."""
    mux2: Gate
    """For each bit of a multiplexer of two inputs."""
    flip_flop: Gate
    """For each bit of a register, written."""
    xor2: Gate
    and2: Gate
    int_multiply: dict[str, Gate] = Field(min_length=2)
    """By width: int8, int16, int32; between and around them follow powers of the width."""
    fp_add: dict[str, Gate] = Field(min_length=1)
    """By number format: fp16, bf16, fp32."""
    fp_multiply: dict[str, Gate] = Field(min_length=1)
    """By number format."""
    sram: SramBit
    nodes: dict[str, Node] = Field(min_length=1)
    """By name: n45, n16; nodes between two of them are interpolated in logarithms."""
    source: str | None = None

    @field_validator("nodes")
    @classmethod
    def _named(cls, nodes: dict[str, Node]) -> dict[str, Node]:
        for name in nodes:
            if not (name.startswith("n") and name[1:].isdigit() and int(name[1:]) > 0):
                raise ValueError(
                    f"a node is called n and its size in nm, such as n16, got {name!r}"
                )
        return nodes

    @field_validator("int_multiply")
    @classmethod
    def _widths(cls, table: dict[str, Gate]) -> dict[str, Gate]:
        for name in table:
            if not (name.startswith("int") and name[3:].isdigit() and int(name[3:]) > 0):
                raise ValueError(
                    f"a multiplier is called int and its bits, such as int8, got {name!r}"
                )
        return table


def load_gates(source: str | Path | Mapping[str, Any] | Gates) -> Gates:
    """Return a table of gates from the catalog, a YAML file or a mapping.

    Raises:
        ConfigError: With every problem of the file, or the nearest catalog name.
    """
    if isinstance(source, Gates):
        return source
    if isinstance(source, Mapping):
        return validate(Gates, Document(dict(source), {}, "gates"))
    return validate(Gates, _read(source))


def _read(source: str | Path) -> Document:
    return load_document(CATALOG.find(source), find=CATALOG.path)


def with_gates(document: Document) -> Document:
    """Return a machine document whose `gates` are tables instead of their names.

    A `lut` block without one gets the catalog's default.

    Raises:
        ConfigError: If a name or a file is unknown.
    """
    parts = document.data.get("parts")
    changed = _filled(parts, ("parts",), document)
    if changed is parts:
        return document
    return replace(document, data={**document.data, "parts": changed})


def _filled(node: Any, path: tuple[str, ...], document: Document) -> Any:
    """Return a node of the document with its tables; the same object where nothing changes."""
    if not isinstance(node, dict):
        return node
    changed = {}
    if path[-1] == "lut" and "gates" not in node:
        changed["gates"] = _table(DEFAULT, (*path, "gates"), document)
    for key, value in node.items():
        if key == "gates" and isinstance(value, str):
            changed[key] = _table(value, (*path, key), document)
        elif (inner := _filled(value, (*path, str(key)), document)) is not value:
            changed[key] = inner
    return {**node, **changed} if changed else node


def _table(name: str, path: tuple[str, ...], document: Document) -> dict[str, Any]:
    folder = Path(document.name).parent
    beside = folder / name
    load: Callable[[str | Path], Document] = _read
    try:
        return dict(load(beside if beside.is_file() else name).data)
    except ConfigError as error:
        where, dotted = document.where(path), ".".join(path)
        raise ConfigError(
            [replace(p, where=p.where or where, path=p.path or dotted) for p in error.problems]
        ) from None
