"""What a study is made of, judged piece by piece: machines, work and mapping, each by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from opbyte.core.config import Document
from opbyte.core.errors import OpbyteError, Problem
from opbyte.core.problems import Problems, problems_of
from opbyte.hw_models.machine import Machine
from opbyte.sim.metrics import MAPPED, metrics_of
from opbyte.sweeps.axes import PlanAxis
from opbyte.sweeps.blame import at_fault, unplaced
from opbyte.sweeps.choices import choices
from opbyte.sweeps.design import Side
from opbyte.sweeps.space import Space
from opbyte.sweeps.study import ROOTS, AxisForm, List, Study, Zip
from opbyte.workloads.works import WORKS, Work

__all__ = ["Parts"]

_MOST_DESIGNS = 500


class Parts:
    """Machines, work and mappings of a study, and what is wrong with them.

    Attributes:
        study: As written, without what was found wrong before.
        document: The file.
        problems: What is wrong so far.
        side: What designs are built from.
        unread: Axes and derived parameters that could not be read; what names them is not judged.
        forms: The axes as written.
    """

    def __init__(self, study: Study, document: Document, problems: Problems) -> None:
        """Take a study; nothing is judged yet but that points of a list are whole."""
        self.study = study
        self.document = document
        self.problems = problems
        base = study.base
        self.side = Side(document, ("base",), base.machine, base.workload, base.mapping, base.set)
        self.unread = set(self._written("axes") - study.axes.keys())
        self.unread |= self._written("derive") - study.derive.keys()
        self.forms = self._forms()

    # -- problems --------------------------------------------------------------------------

    def _problem(
        self, path: tuple[str | int, ...], rule: str, value: object = "", remedy: str = ""
    ) -> None:
        where = self.document.where(path)
        self.problems.add([Problem(where, ".".join(map(str, path)), rule, value, remedy)])

    def _keep(self, error: OpbyteError, path: tuple[str | int, ...]) -> None:
        """Keep what is wrong, with the place of `path` where the error has none."""
        for p in problems_of(error):
            self._place(p, path)

    def _place(self, p: Problem, path: tuple[str | int, ...]) -> None:
        inside = _joined(".".join(map(str, path)), p.path)
        where = self.document.where(path)
        given = p if p.where and p.path else dataclasses.replace(p, path=inside)
        self.problems.add([given if p.where else dataclasses.replace(given, where=where)])

    def _blame(
        self,
        choice: Mapping[str, Any],
        build: Callable[[Mapping[str, Any]], object],
        otherwise: tuple[str, ...],
    ) -> None:
        """Keep why a choice builds nothing, each problem at the axis that is to blame."""
        for path, problem in at_fault(choice, build):
            if path:
                self._place(unplaced(problem, path, self.document.name), self._at(path))
            else:
                self._place(problem, otherwise)

    # -- what is written -------------------------------------------------------------------

    def _forms(self) -> dict[str, AxisForm]:
        """Return the axes as written; of a list strategy, those that its points name."""
        strategy = self.study.strategy
        if not isinstance(strategy, List):
            return dict(self.study.axes)
        if self.study.axes:
            remedy = "Remove the axes, or choose another strategy."
            self._problem(("axes",), "points of a list bring their own axes", "", remedy)
        paths = list(dict.fromkeys(p for point in strategy.points for p in point))
        for i, point in enumerate(strategy.points):
            for path in paths:
                if path not in point:
                    rule = f"every point of a list gives every path, this one lacks {path}"
                    self._problem(("strategy", "points", i), rule)
                    self.unread.add(path)
        columns = {
            p: list({repr(x[p]): x[p] for x in strategy.points if p in x}.values()) for p in paths
        }
        return {p: AxisForm(values=column) for p, column in columns.items()}

    def _at(self, path: str) -> tuple[str | int, ...]:
        if isinstance(self.study.strategy, List):
            return ("strategy", "points")
        return ("axes", path)

    def _written(self, table: str) -> set[str]:
        """Return the paths that `axes` or `derive` has in the file."""
        found = self.document.data.get(table)
        return set(found) if isinstance(found, Mapping) else set()

    # -- machines, work, mappings ----------------------------------------------------------

    def _machine_sources(self) -> list[Any]:
        form = self.forms.get("machine")
        return list(form.values or []) if form is not None else [self.side.machine]

    def _machines(self) -> list[Machine]:
        """Return the machines that can be built; where `set` is wrong, those without it."""
        self._built: list[tuple[Any, Machine]] = []
        self._sound: list[Any] = []
        axis = "machine" in self.forms
        if not axis and self.problems.about("base.machine"):
            return []
        at = self._at("machine") if axis else ("base", "machine")
        changed = {self.document.where(("base", "set", path)) for path in self.study.base.set}
        for source in self._machine_sources():
            choice = {"machine": source} if source is not self.side.machine else {}
            try:
                self._built.append((source, self.side.machine_of(choice)))
                self._sound.append(source)
            except OpbyteError as error:
                for p in problems_of(error):
                    kept = not axis or p.where in changed
                    self._place(p if kept else unplaced(p, "machine", self.document.name), at)
                with contextlib.suppress(OpbyteError):
                    plain = dataclasses.replace(self.side, settings={})
                    self._built.append((source, plain.machine_of(choice)))
        return [machine for _, machine in self._built]

    def _work_class(self) -> type[Work] | None:
        """Return the class of the study's work, and keep what is wrong with its first point.

        A work with a wrong value still says what its axes and metrics may be, so that the rest of
        the study is checked too.
        """
        if self.problems.about("base.workload"):
            return None
        first = self._first("workload")
        try:
            return type(self.side.work_of(first))
        except OpbyteError:
            self._blame(first, self.side.work_of, ("base", "workload"))
        kind = self.side.kind(first)
        return WORKS.lookup(kind) if kind else None

    def _metrics(
        self, axes: tuple[PlanAxis, ...], machines: list[Machine], work: type[Work] | None
    ) -> tuple[str, ...]:
        """Return the columns that the work defines, under any mapping."""
        self._unsure: tuple[str, ...] = ()
        self._kind_known = work is not None
        if work is None:
            return ()
        mapped = [a for a in axes if a.path.partition(".")[0] == "mapping" and a.written]
        choices = [{}, *({a.path: value} for a in mapped for value in a.written or ())]
        mappings = self.side.mappings(choices, machines, work.kind)
        if not machines or len(mappings) < len(choices) * len(machines):
            self._unsure = MAPPED
        return metrics_of(work.kind, *mappings)

    def _first(self, root: str) -> dict[str, Any]:
        """Return the first written value of the axes below a root."""
        first = {}
        for path, form in self.forms.items():
            if path.partition(".")[0] == root and not form.when:
                values = form.values or form.range or form.log2 or []
                first[path] = values[0]
        return first

    def _check_designs(self, axes: tuple[PlanAxis, ...], space: Space | None) -> None:
        """Build the designs that the points need, so that a wrong name shows before the run.

        Machine, work and mapping are judged each by itself, so that none hides another.
        """
        strategy = self.study.strategy
        structure = [a for a in axes if not a.target.numeric]
        found = choices(structure, space)
        if space is None and isinstance(strategy, List):
            paths = {axis.path for axis in structure}
            found = ({p: v for p, v in one.items() if p in paths} for one in strategy.points)
        elif space is None and isinstance(strategy, Zip):
            return
        first = self._first("workload")
        self._judged: dict[tuple[str, str], Any] = {}
        for choice in itertools.islice(found, _MOST_DESIGNS):
            self._check_design({**first, **choice})

    def _check_design(self, choice: Mapping[str, Any]) -> None:
        own = {
            root: {p: v for p, v in choice.items() if p.partition(".")[0] == root} for root in ROOTS
        }
        source = choice.get("machine", self.side.machine)
        machine = next((m for given, m in self._built if given is source), None)
        if any(given is source for given in self._sound):
            machine = self._build("machine", own["machine"], self.side.machine_of)
        if "workload" in own["workload"] or not self.problems.about("base.workload"):
            self._build("workload", own["workload"], self.side.work_of)
        if "mapping" in own["mapping"] or not self.problems.about("base.mapping"):
            kind, on = self.side.kind(choice), repr(sorted(own["machine"].items()))
            mapping = partial(self.side.mapping_if_known, machine=machine, kind=kind)
            self._build(f"mapping {on}", own["mapping"], mapping)

    def _build(
        self, name: str, choice: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Any]
    ) -> Any:
        """Return what a choice builds, and keep why where it does not; once for each choice."""
        key = (name, repr(sorted(choice.items())))
        if key not in self._judged:
            try:
                self._judged[key] = build(choice)
            except OpbyteError:
                self._judged[key] = None
                self._blame(choice, build, ("base", name.partition(" ")[0]))
        return self._judged[key]


def _joined(outer: str, inner: str) -> str:
    if not inner or outer.endswith(f".{inner}"):
        return outer
    return f"{outer}{inner}" if inner.startswith("[") else f"{outer}.{inner}"
