"""One design: machine, work and mapping, built from a study's base and the values of a point."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opbyte.core.catalog import is_path
from opbyte.core.config import (
    DataPath,
    Document,
    Mark,
    judged,
    load_document,
    parse_document,
    set_values,
    validate,
)
from opbyte.core.errors import ConfigError, OpbyteError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.problems import Problems, problems_of
from opbyte.hw_models.machine import CATALOG, Machine, load_machine
from opbyte.workloads.works import WORKS, Work, work_from

__all__ = ["Design", "Side"]


@dataclass(frozen=True)
class Design:
    """A machine, a work and a mapping that belong together."""

    machine: Machine
    work: Work
    mapping: SoftwareMapping


@dataclass(frozen=True)
class Side:
    """What designs are built from: a study's base, its baseline, or an experiment.

    Attributes:
        document: The file, for places and for its folder.
        at: Where in the document machine, workload and mapping stand.
        settings: Changed parameters by path (machine.x, mapping.x, workload.x).
    """

    document: Document
    at: tuple[str, ...]
    machine: str | Mapping[str, Any] | None
    workload: Mapping[str, Any]
    mapping: str | Mapping[str, Any] | None
    settings: Mapping[str, Any]

    def build(self, choice: Mapping[str, Any]) -> Design:
        """Return the design in which parameters of structure have the values of `choice`.

        Raises:
            ConfigError: For what is unknown or contradicts itself.
            WorkloadError: For a work that makes no sense.
        """
        machine = self.machine_of(choice)
        work = self.work_of(choice)
        return Design(machine, work, self.mapping_of(choice, machine, work.kind))

    def judged(
        self, choice: Mapping[str, Any], problems: Problems
    ) -> tuple[Machine | None, Work | None, SoftwareMapping | None]:
        """Return machine, work and mapping of a choice, each None where it can not be built.

        Args:
            choice: Values of parameters of structure.
            problems: Takes what is wrong; what was found wrong before is not judged again.
        """
        machine = work = mapping = None
        if not self._is_wrong("machine", problems):
            with problems.keep():
                machine = self.machine_of(choice)
        if not self._is_wrong("workload", problems):
            with problems.keep():
                work = self.work_of(choice)
        if not self._is_wrong("mapping", problems):
            with problems.keep():
                mapping = self.mapping_if_known(choice, machine, self.kind({}))
        return machine, work, mapping

    def _is_wrong(self, key: str, problems: Problems) -> bool:
        return problems.about(_dotted((*self.at, key)))

    def kind(self, choice: Mapping[str, Any]) -> str:
        """Return the kind of the work as written, empty where no work has it."""
        workload = choice.get("workload", self.workload)
        kind = workload.get("kind") if isinstance(workload, Mapping) else None
        return kind if isinstance(kind, str) and kind in WORKS else ""

    def mapping_if_known(
        self, choice: Mapping[str, Any], machine: Machine | None, kind: str
    ) -> SoftwareMapping | None:
        """Return the mapping, None where it is one of a machine, or of a kind, that is unknown.

        Raises:
            ConfigError: If it is wrong; of one that is unknown, if a field that changes is.
        """
        source = choice.get("mapping", self.mapping)
        own = source is None or (isinstance(source, str) and not is_path(source))
        if own and (machine is None or not (source or kind)):
            self._judge_fields(choice)
            return None
        return self.mapping_of(choice, machine, kind)

    def _judge_fields(self, choice: Mapping[str, Any]) -> None:
        """Judge changed words and numbers of a mapping that is unknown itself."""
        changes = self._changes("mapping", choice)
        fields = {
            p: v for p, v in changes.items() if "." not in p and not isinstance(v, dict | list)
        }
        places = self._places("mapping", choice)
        marks: dict[DataPath, Mark] = {(p,): Mark(places.get(p, ""), 0, 0) for p in fields}
        rules = [{"ops": "all", "unit": "any"}]
        validate(SoftwareMapping, Document({"run": rules, **fields}, marks, ""))

    def machine_of(self, choice: Mapping[str, Any]) -> Machine:
        """Return the machine with the changes of settings and choice."""
        source = choice.get("machine", self.machine)
        if source is None:
            where = self.document.where(self.at)
            rule = "a machine is missing"
            raise ConfigError.one(where, _dotted(self.at), rule, "", "Add `machine: sn40l-node`.")
        try:
            machine = load_machine(self._machine_source(source))
        except ConfigError as error:
            raise self._placed(error, "machine", source) from None
        changes = self._changes("machine", choice)
        return machine.replace(changes, self._places("machine", choice)) if changes else machine

    def _machine_source(self, source: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
        """Return what `load_machine` reads: a name, a path from here, or a whole machine."""
        if isinstance(source, str):
            return self.beside(source)
        if "extends" not in source:
            return source
        text = json.dumps(source)
        return parse_document(text, self.document.name, find=CATALOG.path).data

    def work_of(self, choice: Mapping[str, Any]) -> Work:
        """Return the work with the changes of settings and choice."""
        source = choice.get("workload", self.workload)
        if not isinstance(source, Mapping):
            raise ConfigError.one("", "", "a workload is a mapping", source)
        document = self.sub_document(dict(source), "workload")
        changes = self._changes("workload", choice)
        problems, wrong = Problems(), Problems()
        if changes:
            places = self._places("workload", choice)
            document = set_values(document, changes, (), "workload", places, wrong)
        try:
            work = work_from(document)
        except OpbyteError as error:
            if not (wrong or isinstance(error, ConfigError)):
                raise
            wrong.add(problems_of(error))
        prefix = _dotted((*self.at, "workload"))
        problems.add(
            dataclasses.replace(p, path=f"{prefix}.{p.path}" if p.path else prefix) for p in wrong
        )
        problems.tell()
        return work

    def mapping_of(
        self, choice: Mapping[str, Any], machine: Machine | None, kind: str
    ) -> SoftwareMapping:
        """Return the mapping: given, or the machine's own for this kind of work."""
        source = choice.get("mapping", self.mapping)
        changes = self._changes("mapping", choice)
        problems = Problems()
        if source is None:
            assert machine is not None, "a mapping of a machine"
            source = kind if kind in machine.config.mappings else "default"
        if isinstance(source, str) and not is_path(source):
            assert machine is not None, "a mapping of a machine"
            try:
                mapping = machine.mapping(source)
            except ConfigError as error:
                raise self._placed(error, "mapping", source) from None
            if not changes:
                return mapping
            data = machine.document.data["mappings"][source]
            document = Document(dict(data), {}, f"mapping {source} of {machine.name}")
        elif isinstance(source, str):
            try:
                document = load_document(self.beside(source), problems=problems)
            except ConfigError as error:
                raise self._placed(error, "mapping", source) from None
        elif isinstance(source, Mapping):
            document = self.sub_document(dict(source), "mapping")
        else:
            rule = "must be a name, a file or a mapping"
            raise ConfigError.one(self.document.name, "mapping", rule, source, "")
        if changes:
            places = self._places("mapping", choice)
            document = set_values(document, changes, (), "mapping", places, problems)
        found = judged(SoftwareMapping, document, problems)
        problems.tell()
        assert found is not None
        return found

    def mappings(
        self, choices: Iterable[Mapping[str, Any]], machines: Iterable[Machine], kind: str
    ) -> list[SoftwareMapping]:
        """Return the mappings of choices on machines, without those that can not be read."""
        found = []
        for choice, machine in itertools.product(choices, machines):
            with contextlib.suppress(OpbyteError):
                found.append(self.mapping_of(choice, machine, kind))
        return found

    def sub_document(self, data: dict[str, Any], key: str) -> Document:
        """Return a mapping inside the document as a document with the same places."""
        at = (*self.at, key)
        marks = {p[len(at) :]: m for p, m in self.document.marks.items() if p[: len(at)] == at}
        return Document(data, marks, self.document.name)

    def beside(self, name: str) -> str:
        """Return a path relative to the file that names it; catalog names stay as they are."""
        if not is_path(name):
            return name
        path = Path(name).expanduser()
        near = Path(self.document.name).parent / path
        return str(near if not path.is_absolute() and near.exists() else path)

    def _changes(self, root: str, choice: Mapping[str, Any]) -> dict[str, Any]:
        both = {**self.settings, **choice}
        start = f"{root}."
        return {p.removeprefix(start): v for p, v in both.items() if p.startswith(start)}

    def _places(self, root: str, choice: Mapping[str, Any]) -> dict[str, str]:
        """Return the places of those changes that the document's `set` block makes."""
        start = f"{root}."
        marked = {p: self.document.marks.get((*self.at, "set", p)) for p in self.settings}
        written = {p: m for p, m in marked.items() if m is not None and p not in choice}
        return {p.removeprefix(start): str(m) for p, m in written.items() if p.startswith(start)}

    def _placed(self, error: ConfigError, key: str, source: object) -> ConfigError:
        """Return the error with the place of `key` where it has none."""
        at = (*self.at, key)
        where = self.document.where(at)
        value = source if isinstance(source, str) else ""
        # A file that is not there has no place but that of its name.
        nowhere = {"", value, self.beside(value)}
        return ConfigError(
            dataclasses.replace(p, where=where, path=_dotted(at), value=p.value or value)
            if p.where in nowhere
            else p
            for p in error.problems
        )


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(path)
