"""Machine: a tree of parts with memories, their ports, units at those ports, and links.

The tree (`opbyte.hw_models.machine_file`) compiles to *values*: one float (or one array over design
points) for each parameter, under a short path such as `rdu.hbm.phy.bandwidth`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
)

from opbyte.core.catalog import Catalog
from opbyte.core.config import Document, judged, load_document, resolve_path, set_values
from opbyte.core.errors import ConfigError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.parameters import (
    Parameter,
)
from opbyte.core.problems import Problems
from opbyte.core.registry import nearest
from opbyte.hw_models.absent import absent_parts, is_inside, without_absent
from opbyte.hw_models.ends import unknown_names
from opbyte.hw_models.gates import with_gates
from opbyte.hw_models.machine_file import STRUCTURE, MachineConfig, Part
from opbyte.hw_models.making import with_making
from opbyte.hw_models.memory.rates import Access
from opbyte.hw_models.prices import Prices, with_prices, with_table_of_prices
from opbyte.hw_models.relatives import with_relatives
from opbyte.hw_models.site import with_site
from opbyte.hw_models.stack import Stack, Stream

Result = TypeVar("Result")
CATALOG = Catalog("machine", Path(__file__).parent / "catalog" / "machines")


@dataclass(frozen=True)
class Located:
    """A memory, port, unit or link with its place in the tree.

    Attributes:
        path: Short path.
        part: Short path of the part that holds it, empty for a link.
        count: Instances in the whole machine.
    """

    path: str
    part: str
    count: int
    config: Any


@dataclass(frozen=True)
class Machine:
    """A validated machine.

    Attributes:
        document: What was written, with positions, presets resolved; parts of count 0 are in it,
            prices that memories take from the table are not.
        values: Parameter values by short path: floats, or arrays over design points.
        parameters: The same parameters with source and range.
    """

    config: MachineConfig
    document: Document
    values: Mapping[str, Any] = field(repr=False)
    parameters: Mapping[str, Parameter] = field(repr=False)

    @property
    def name(self) -> str:
        """Return the machine's name."""
        return self.config.name

    @cached_property
    def points(self) -> int:
        """Return how many design points the values hold."""
        return max((len(v) for v in self.values.values() if not isinstance(v, float)), default=1)

    @cached_property
    def _remembered(self) -> dict[Hashable, Any]:
        return {}

    def remembered(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """Return what follows from the machine alone, made when it is first asked for.

        Args:
            key: Who asks, and what for.
        """
        if key not in self._remembered:
            self._remembered[key] = make()
        found: Result = self._remembered[key]
        return found

    @cached_property
    def counts(self) -> dict[str, int]:
        """Return the number of instances of each part in the whole machine."""
        return {path: count for path, _, count in _walk(self.config.parts)}

    @cached_property
    def memories(self) -> dict[str, Located]:
        """Return every memory by short path."""
        return {
            f"{path}.{name}": Located(f"{path}.{name}", path, count, memory)
            for path, part, count in _walk(self.config.parts)
            for name, memory in part.memory.items()
        }

    @cached_property
    def units(self) -> dict[str, Located]:
        """Return every unit by short path."""
        return {
            f"{path}.{name}": Located(f"{path}.{name}", path, count, unit)
            for path, part, count in _walk(self.config.parts)
            for name, unit in part.units.items()
        }

    def memory(self, path: str) -> Located:
        """Return a memory; an unknown path is an error with the nearest name."""
        return self._pick(self.memories, path, "memory")

    def unit(self, path: str) -> Located:
        """Return a unit; an unknown path is an error with the nearest name."""
        return self._pick(self.units, path, "unit")

    def _pick(self, known: Mapping[str, Located], path: str, noun: str) -> Located:
        if path in known:
            return known[path]
        rule = f"machine '{self.name}' has no {noun} at this path"
        raise ConfigError.one(self.name, "", rule, path, self.remedy(path, known))

    def remedy(self, path: str, known: Iterable[str]) -> str:
        """Return what to do about a path that is none of those known: its part may be absent."""
        for part in absent_parts(self.document):
            if is_inside(path, (part,)):
                return f"{part}.count is 0. set it, or take a mapping without {part}"
        guess = nearest(path, known)
        return f"did you mean '{guess}'?" if guess else f"known: {', '.join(known)}"

    def unit_ports(self, path: str) -> tuple[str, ...]:
        """Return the short paths of the ports that a unit is at."""
        unit = self.unit(path)
        return tuple(self._port(unit.part, at, path) for at in unit.config.at)

    def _port(self, part: str, at: str, unit: str) -> str:
        for candidate in (f"{part}.{at}", at):
            memory, _, port = candidate.rpartition(".")
            if memory in self.memories and port in self.memories[memory].config.ports:
                return candidate
        raise AssertionError(f"{unit}.at: {at} was checked when the machine was read")

    def replace(
        self, changes: Mapping[str, Any], places: Mapping[str, str] | None = None
    ) -> Machine:
        """Return a machine with some parameters changed.

        Args:
            changes: Short or full path -> value as it would be written in YAML.
            places: Path -> where its value stands, for errors.
        Raises:
            ConfigError: For an unknown path (with the nearest name) or a bad value.
        """
        problems = Problems()
        changed = set_values(self.document, changes, STRUCTURE, places=places, problems=problems)
        return _build(changed, problems)

    def path(self, dotted: str) -> str:
        """Return the short path of a parameter.

        Raises:
            ConfigError: If there is no such parameter, with the nearest name.
        """
        words = resolve_path(self.document.data, dotted, transparent=STRUCTURE)
        short = ".".join(w for w in words if w not in STRUCTURE)
        if short not in self.parameters:
            raise ConfigError.one(
                self.document.name, dotted, "must name a numeric parameter", dotted, ""
            )
        return short

    def with_values(self, changes: Mapping[str, Any]) -> Machine:
        """Return the machine with values replaced by arrays over design points (fast path)."""
        return Machine(self.config, self.document, {**self.values, **changes}, self.parameters)

    def mapping(self, name: str | None = None) -> SoftwareMapping:
        """Return a mapping of the machine by name, by default the one called `default`."""
        known = self.config.mappings
        wanted = name or "default"
        if wanted in known:
            return known[wanted]
        guess = nearest(wanted, known)
        raise ConfigError.one(
            "",
            "mapping",
            f"machine '{self.name}' has no such mapping",
            wanted,
            f"did you mean '{guess}'?" if guess else f"known: {', '.join(known) or 'none'}",
        )


def load_machine(source: str | Path | Mapping[str, Any] | Machine) -> Machine:
    """Return a machine from the catalog, a YAML file or a dict.

    Raises:
        ConfigError: With every problem of the file, or the nearest catalog name.
    """
    if isinstance(source, Machine):
        return source
    if isinstance(source, Mapping):
        return _build(Document(dict(source), {}, "machine"))
    problems = Problems()
    document = load_document(CATALOG.find(source), find=CATALOG.path, problems=problems)
    return _build(document, problems)


def _read(source: str | Path) -> Document:
    return load_document(CATALOG.find(source), find=CATALOG.path)


def _build(document: Document, problems: Problems | None = None) -> Machine:
    """Return the machine of a document.

    Args:
        document: The document.
        problems: What was found wrong before.

    Raises:
        ConfigError: With these problems and every one of the document.
    """
    problems = problems or Problems()
    unread = Problems()
    for read in (partial(with_relatives, load=_read), with_gates):
        with unread.keep():
            document = read(document)
    problems.add(unread)
    document = with_table_of_prices(with_making(with_site(document)))
    # The document stays as it was written: prices and counts that are set later count then.
    present = with_prices(without_absent(document))
    # What a relative or a table would have given is judged no further.
    without = [tuple(p.path.split("."))[: -1 if p.path.endswith(".like") else None] for p in unread]
    config = judged(MachineConfig, present, problems, without=without)
    if document.whole and not unread:
        problems.add(unknown_names(present))
    problems.tell()
    assert config is not None
    parameters = dict(_collect(config, "", config.source))
    values = {path: p.value for path, p in parameters.items()}
    return Machine(config, document, values, parameters)


def _walk(
    parts: Mapping[str, Part], prefix: str = "", count: int = 1
) -> Iterator[tuple[str, Part, int]]:
    for name, part in parts.items():
        path = f"{prefix}.{name}" if prefix else name
        yield path, part, count * part.count
        yield from _walk(part.parts, path, count * part.count)


def _collect(node: Any, path: str, source: str | None) -> Iterator[tuple[str, Parameter]]:
    """Yield every parameter with its short path and the source that covers it."""
    if isinstance(node, Parameter):
        yield path, node if node.source else dataclasses.replace(node, source=source)
    elif isinstance(node, BaseModel):
        # Clocks and controllers are what rates follow from: others make another machine.
        # Prices are parameters of the memories that take them.
        if isinstance(node, SoftwareMapping | Stack | Stream | Access | Prices):
            return
        own = getattr(node, "source", None) or source
        for name in type(node).model_fields:
            step = "" if name in STRUCTURE else name
            yield from _collect(getattr(node, name), _join(path, step), own)
    elif isinstance(node, dict):
        for name, child in node.items():
            if name != "mappings":
                yield from _collect(child, _join(path, str(name)), source)


def _join(path: str, step: str) -> str:
    return f"{path}.{step}" if path and step else path or step
