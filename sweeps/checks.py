"""From a study as written to a plan: resolves every name, and reports all problems at once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from opbyte.core.config import Document
from opbyte.core.errors import ConfigError, OpbyteError, Problem
from opbyte.core.registry import nearest
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.metrics import COSTS, metrics_of
from opbyte.sim.runners import unplayable
from opbyte.sweeps.axes import PlanAxis, resolved_axis, resolved_when
from opbyte.sweeps.blame import at_fault, unplaced, whole_problems
from opbyte.sweeps.choices import choices, listed_codes, slow_axes
from opbyte.sweeps.constraints import Constraint, metric_dimension
from opbyte.sweeps.derive import Link, in_order
from opbyte.sweeps.design import Side
from opbyte.sweeps.expressions import Expression
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.space import Space, grid_space, sampled_space, table_space
from opbyte.sweeps.study import ROOTS, AxisForm, List, Optuna, Random, Sobol, Study, Zip
from opbyte.sweeps.targets import Targets
from opbyte.workloads.works import WORKS, Work

__all__ = ["checked_plan"]

_MOST_DESIGNS = 500
_MOST_POINTS = 100_000_000


def checked_plan(study: Study, document: Document, *, trusted: bool = False) -> Plan:
    """Return the plan of a study; a trusted one was checked before and gets no points.

    Raises:
        ConfigError: With every problem of the study.
    """
    return _Checker(study, document).plan(trusted=trusted)


class _Checker:
    """Resolves a study step by step, and collects problems as it goes."""

    def __init__(self, study: Study, document: Document) -> None:
        self.study = study
        self.document = document
        self.problems: list[Problem] = []
        base = study.base
        self.side = Side(document, ("base",), base.machine, base.workload, base.mapping, base.set)
        self.forms = self._forms()

    def plan(self, *, trusted: bool) -> Plan:
        self._check_roots()
        machines = self._machines()
        work = self._work_class()
        if not machines or work is None:
            raise ConfigError(self.problems)
        targets = Targets(machines, work)
        axes = self._axes(targets)
        links = self._links(targets)
        slow = slow_axes(axes, links)
        mapped = [a for a in axes if a.path.partition(".")[0] == "mapping" and a.written]
        varied = [{a.path: value} for a in mapped for value in a.written or ()]
        mappings = self.side.mappings([{}, *varied], machines, work.kind)
        metrics = metrics_of(work.kind, *mappings)
        baseline = self._baseline()
        space = None if trusted else self._space(axes)
        if not self.problems and not trusted:
            self._check_designs(axes, space)
        constraints = self._constraints(axes, links, metrics)
        self._check_objectives(axes, links, metrics)
        if why := unplayable(work, self.study.fidelity):
            self._problem(("fidelity",), why, self.study.fidelity, "Choose analytic.")
        if baseline is not None and not trusted:
            self._check_baseline(baseline, work.kind)
        self._check_links(links, slow, axes)
        if self.study.budget is not None and not trusted:
            self._check_budget(self.study.budget.machine)
        if self.problems:
            raise ConfigError(self.problems)
        return Plan(
            self.study, self.document, self.side, baseline, work.kind, axes, links, constraints,
            metrics, space, slow,
        )  # fmt: skip

    # -- problems --------------------------------------------------------------------------

    def _problem(
        self, path: tuple[str | int, ...], rule: str, value: object = "", remedy: str = ""
    ) -> None:
        where = self.document.where(path)
        self.problems.append(Problem(where, ".".join(map(str, path)), rule, value, remedy))

    def _keep(self, error: OpbyteError, path: tuple[str | int, ...]) -> None:
        """Keep what is wrong, with the place of `path` where the error has none."""
        if not isinstance(error, ConfigError):
            text = str(error)
            if text.startswith(f"{self.document.name}:"):
                text = text.partition(": ")[2]
            self._problem(path, text)
            return
        dotted = ".".join(map(str, path))
        for p in error.problems:
            if p.where:
                found = p
            else:
                inside = _joined(dotted, p.path)
                found = Problem(self.document.where(path), inside, p.rule, p.value, p.remedy)
            if found not in self.problems:
                self.problems.append(found)

    def _blame(
        self,
        error: OpbyteError,
        choice: Mapping[str, Any],
        build: Callable[[Mapping[str, Any]], object],
        otherwise: tuple[str, ...],
    ) -> None:
        """Keep why a choice builds nothing, at the axis without which it would."""
        path = at_fault(choice, build)
        if path:
            self._keep(unplaced(error, path, self.document.name), self._at(path))
        else:
            self._keep(error, otherwise)

    def _broken(self) -> bool:
        return bool(self.problems)

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
        columns = {
            p: list({repr(x[p]): x[p] for x in strategy.points if p in x}.values()) for p in paths
        }
        return {p: AxisForm(values=column) for p, column in columns.items()}

    def _at(self, path: str) -> tuple[str | int, ...]:
        if isinstance(self.study.strategy, List):
            return ("strategy", "points")
        return ("axes", path)

    def _check_roots(self) -> None:
        named = [(self._at(p), p) for p in self.forms]
        named += [(("derive", p), p) for p in self.study.derive]
        named += [(("base", "set", p), p) for p in self.study.base.set]
        for at, path in named:
            root, dot, rest = path.partition(".")
            if root not in ROOTS or (dot and not rest):
                near = nearest(root, ROOTS)
                hint = f"Did you mean {near!r}? " if near else ""
                rule = "a path must start with machine, mapping or workload"
                self._problem(at, rule, path, f"{hint}Write for example workload.batch.")
        for path in self.forms:
            for table, key in ((self.study.derive, "derive"), (self.study.base.set, "base.set")):
                if path in table:
                    rule = f"{path} is an axis and can not stand in {key} as well"
                    self._problem((*key.split("."), path), rule, "", "Remove one of them.")
        for path, i, rule, value in whole_problems(self.forms):
            at = self._at(path)
            self._problem(at if i is None else (*at, "values", i), rule, value)

    # -- machines and work -----------------------------------------------------------------

    def _machine_sources(self) -> list[Any]:
        form = self.forms.get("machine")
        return list(form.values or []) if form is not None else [self.side.machine]

    def _machines(self) -> list[Machine]:
        machines = []
        self._built: list[tuple[Any, Machine]] = []
        for source in self._machine_sources():
            choice = {"machine": source} if source is not self.side.machine else {}
            try:
                machines.append(self.side.machine_of(choice))
                self._built.append((source, machines[-1]))
            except OpbyteError as error:
                if "machine" in self.forms:
                    name = self.document.name
                    self._keep(unplaced(error, "machine", name), self._at("machine"))
                else:
                    self._keep(error, ("base", "machine"))
        return machines

    def _work_class(self) -> type[Work] | None:
        """Return the class of the study's work, and keep what is wrong with its first point.

        A work with a wrong value still says what its axes and metrics may be, so that the rest of
        the study is checked too.
        """
        first = self._first("workload")
        try:
            return type(self.side.work_of(first))
        except OpbyteError as error:
            self._blame(error, first, self.side.work_of, ("base", "workload"))
        kind = self.side.workload.get("kind")
        return WORKS.lookup(kind) if isinstance(kind, str) and kind in WORKS else None

    def _first(self, root: str) -> dict[str, Any]:
        """Return the first written value of the axes below a root."""
        first = {}
        for path, form in self.forms.items():
            if path.partition(".")[0] == root and not form.when:
                values = form.values or form.range or form.log2 or []
                first[path] = values[0]
        return first

    # -- axes, links -----------------------------------------------------------------------

    def _axes(self, targets: Targets) -> tuple[PlanAxis, ...]:
        discrete = not isinstance(self.study.strategy, Random | Sobol | Optuna)
        axes: list[PlanAxis] = []
        keys: dict[str, str] = {}
        for path, form in self.forms.items():
            at = self._at(path)
            try:
                target = self._targets_of(form, targets).of(path)
                axis = resolved_axis(form, target, discrete=discrete)
                conditions = resolved_when(form, axes, path)
                axis = dataclasses.replace(
                    axis, line=dataclasses.replace(axis.line, when=conditions)
                )
                if axis.line.size == 0 and not target.numeric:
                    rule = "only a number can be a continuous axis"
                    raise ConfigError.one("", "", rule, path, "List its `values`.")
            except OpbyteError as error:
                self._keep(error, at)
                continue
            if target.key in keys:
                self._problem(at, f"{path} and {keys[target.key]} are the same parameter")
            keys[target.key] = path
            axes.append(axis)
        return tuple(axes)

    def _targets_of(self, form: AxisForm, targets: Targets) -> Targets:
        """Return what paths mean on the machines at which an axis means anything."""
        named = (form.when or {}).get("machine")
        if named is None:
            return targets
        named = named if isinstance(named, list) else [named]
        some = [m for source, m in self._built if source in named]
        return targets.on(some) if some else targets

    def _links(self, targets: Targets) -> tuple[Link, ...]:
        links = []
        where = {}
        for path, text in self.study.derive.items():
            at = ("derive", path)
            where[path] = self.document.where(at)
            try:
                expression = Expression.parse(text)
                target = targets.of(path)
                reads = {n: targets.of(n) for n in expression.names}
                for name, read in reads.items():
                    if not read.numeric and name not in self.forms:
                        rule = f"{name} is no number that an expression can read"
                        raise ConfigError.one("", "", rule, expression.text)
            except OpbyteError as error:
                self._keep(error, at)
                continue
            links.append(Link(target, expression, {n: t.key for n, t in reads.items()}))
        try:
            return in_order(links, where)
        except ConfigError as error:
            self._keep(error, ("derive",))
            return ()

    def _check_links(
        self, links: tuple[Link, ...], slow: frozenset[str], axes: tuple[PlanAxis, ...]
    ) -> None:
        """A parameter of structure can only follow from axes with a list of values."""
        for axis in axes:
            if axis.path in slow and axis.line.size == 0:
                names = [k.target.path for k in links if not k.target.numeric]
                rule = f"{', '.join(names)} follows from this axis and needs single values"
                self._problem(self._at(axis.path), rule, "", "Give the range its `steps`.")
            reads = {key for link in links for key in link.reads.values()}
            if axis.target.key in reads and axis.numbers is None and axis.line.size:
                self._problem(self._at(axis.path), "derived parameters need numbers here")
            if axis.target.key in reads and axis.line.when:
                rule = "derived parameters can not read an axis that has a `when`"
                self._problem((*self._at(axis.path), "when"), rule, "", "Remove the condition.")
            if axis.path in self.study.objectives and axis.line.when:
                rule = "an objective must mean something at every point, this axis has a `when`"
                self._problem(("objectives", axis.path), rule, "", "Choose another objective.")

    # -- points ----------------------------------------------------------------------------

    def _space(self, axes: tuple[PlanAxis, ...]) -> Space | None:
        if self.problems:
            return None
        lines = tuple(axis.line for axis in axes)
        strategy = self.study.strategy
        if isinstance(strategy, Zip | List | Random | Sobol) and not axes:
            self._problem(("axes",), f"a {strategy.kind} needs axes")
            return None
        if isinstance(strategy, Random | Sobol):
            sobol = isinstance(strategy, Sobol)
            return sampled_space(lines, strategy.points, strategy.seed, sobol=sobol)
        if isinstance(strategy, Zip):
            sizes = {axis.path: axis.line.size for axis in axes}
            if len(set(sizes.values())) > 1:
                shown = ", ".join(f"{p} has {n}" for p, n in sizes.items())
                rule = f"axes of a zip have equally many values: {shown}"
                self._problem(("axes",), rule)
                return None
            steps = np.arange(axes[0].line.size, dtype=np.int64)
            return table_space(lines, dict.fromkeys(sizes, steps))
        if isinstance(strategy, List):
            return table_space(lines, listed_codes(axes, strategy.points))
        if any(line.size == 0 for line in lines):
            return None
        space = grid_space(lines)
        if not isinstance(strategy, Optuna) and space.count > _MOST_POINTS:
            rule = f"a grid may have at most {_MOST_POINTS:,} points"
            remedy = "Take fewer steps, or a strategy of kind sobol, random or optuna."
            self._problem(("axes",), rule, f"{space.count:,}", remedy)
            return None
        return space

    def _check_designs(self, axes: tuple[PlanAxis, ...], space: Space | None) -> None:
        """Build the designs that the points need, so that a wrong name shows before the run."""
        structure = [a for a in axes if not a.target.numeric]
        first = self._first("workload")
        for choice in itertools.islice(choices(structure, space), _MOST_DESIGNS):
            whole = {**first, **choice}
            try:
                self.side.build(whole)
            except OpbyteError as error:
                self._blame(error, whole, self.side.build, ("base",))

    # -- baseline, objectives, constraints --------------------------------------------------

    def _baseline(self) -> Side | None:
        given = self.study.baseline
        if given is None:
            return None
        base = self.study.base
        moved = given.machine is not None
        mapping = given.mapping if given.mapping is not None or moved else base.mapping
        settings = {
            p: v
            for p, v in base.set.items()
            if not (p.startswith("machine.") and moved)
            and not (p.startswith("mapping.") and (moved or given.mapping is not None))
        }
        machine = given.machine if moved else base.machine
        workload = {**base.workload, **given.workload}
        return Side(self.document, ("baseline",), machine, workload, mapping, settings)

    def _check_baseline(self, side: Side, kind: str) -> None:
        first = self._first("workload")
        if side.machine is None:
            first |= self._first("machine")
        try:
            found = side.build(first).work.kind
        except OpbyteError as error:
            self._keep(error, ("baseline",))
            return
        if found != kind:
            rule = f"the baseline must have the same kind of work, {kind!r}"
            self._problem(("baseline", "workload"), rule, found)

    def _check_budget(self, name: str) -> None:
        """Refuse a budget of a machine that is not there, or whose costs are not known."""
        at = ("budget", "machine")
        if not any(path == "machine" for path in self.forms):
            self._problem(("budget",), "a budget compares machines", "", "Add the axis `machine`.")
        try:
            machine = load_machine(self.side.beside(name))
            for cost in ("price_usd", "area_m2", "tdp_w"):
                COSTS[cost](machine)
        except OpbyteError as error:
            self._keep(error, at)

    def _known(
        self, axes: tuple[PlanAxis, ...], links: tuple[Link, ...], metrics: tuple[str, ...]
    ) -> dict[str, str | None]:
        """Return the dimension of every column that objectives and constraints may name."""
        known: dict[str, str | None] = {name: metric_dimension(name) for name in metrics}
        if self.study.baseline is not None:
            known["speedup"] = None
        known |= {
            a.path: a.target.dimension for a in axes if a.numbers is not None or not a.line.size
        }
        known |= {link.target.path: link.target.dimension for link in links}
        return known

    def _check_objectives(
        self, axes: tuple[PlanAxis, ...], links: tuple[Link, ...], metrics: tuple[str, ...]
    ) -> None:
        known = self._known(axes, links, metrics)
        for name in self.study.objectives:
            if name not in known:
                self._unknown(("objectives", name), name, known)

    def _constraints(
        self, axes: tuple[PlanAxis, ...], links: tuple[Link, ...], metrics: tuple[str, ...]
    ) -> tuple[Constraint, ...]:
        known = self._known(axes, links, metrics)
        parsed = []
        for i, text in enumerate(self.study.constraints):
            at = ("constraints", i)
            try:
                one = Constraint.parse(text, known)
            except OpbyteError as error:
                self._keep(error, at)
                continue
            for name in one.names:
                if name not in known:
                    self._unknown(at, name, known)
            parsed.append(one)
        return tuple(parsed)

    def _unknown(
        self, at: tuple[str | int, ...], name: str, known: Mapping[str, str | None]
    ) -> None:
        near = nearest(name, known)
        hint = f"Did you mean {near!r}? " if near else ""
        if name == "speedup":
            hint = "Give the study a `baseline`. "
        kind = self.study.base.workload.get("kind", "this")
        rule = f"a {kind} work defines no metric {name!r}"
        self._problem(at, rule, "", f"{hint}Known: {', '.join(known)}.")


def _joined(outer: str, inner: str) -> str:
    if not inner or outer.endswith(f".{inner}"):
        return outer
    return f"{outer}{inner}" if inner.startswith("[") else f"{outer}.{inner}"
