"""From a study as written to a plan: resolves every name, and reports all problems at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from opbyte.core.config import Document
from opbyte.core.errors import ConfigError, OpbyteError
from opbyte.core.problems import Problems
from opbyte.core.registry import nearest
from opbyte.hw_models.machine import load_machine
from opbyte.sim.metrics import COSTS
from opbyte.sim.runners import unplayable
from opbyte.sweeps.axes import PlanAxis, resolved_axis, resolved_when
from opbyte.sweeps.blame import whole_problems
from opbyte.sweeps.choices import listed_codes, slow_axes
from opbyte.sweeps.constraints import Constraint, metric_dimension
from opbyte.sweeps.derive import Link, in_order
from opbyte.sweeps.design import Side
from opbyte.sweeps.expressions import Expression
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.space import Space, grid_space, sampled_space, table_space
from opbyte.sweeps.study import (
    ROOTS,
    AxisForm,
    List,
    Optuna,
    Random,
    Sobol,
    Study,
    Zip,
    wrong_root,
)
from opbyte.sweeps.study_parts import Parts
from opbyte.sweeps.targets import Targets

__all__ = ["checked_plan"]

_MOST_POINTS = 100_000_000


def checked_plan(
    study: Study, document: Document, problems: Problems, *, trusted: bool = False
) -> Plan:
    """Return the plan of a study; a trusted one was checked before and gets no points.

    Raises:
        ConfigError: With every problem of the study, those found before included.
    """
    return _Checker(study, document, problems).plan(trusted=trusted)


class _Checker(Parts):
    """Resolves a study step by step, each as far as what it needs is known."""

    def plan(self, *, trusted: bool) -> Plan:
        self._check_roots()
        machines = self._machines()
        work = self._work_class()
        targets = Targets(machines, work)
        axes = self._axes(targets)
        links = self._links(targets)
        slow = slow_axes(axes, links)
        metrics = self._metrics(axes, machines, work)
        baseline = self._baseline()
        space = None if trusted else self._space(axes)
        if not trusted:
            self._check_designs(axes, space)
        constraints = self._constraints(axes, links, metrics)
        self._check_objectives(axes, links, metrics)
        if work is not None and (why := unplayable(work, self.study.fidelity)):
            self._problem(("fidelity",), why, self.study.fidelity, "Choose analytic.")
        if baseline is not None and not trusted:
            self._check_baseline(baseline)
        self._check_links(links, slow, axes)
        if self.study.budget is not None and not trusted:
            self._check_budget(self.study.budget.machine)
        self.problems.tell()
        assert work is not None
        assert not self.unread, "what could not be read has a problem"
        return Plan(
            self.study, self.document, self.side, baseline, work.kind, axes, links, constraints,
            metrics, space, slow,
        )  # fmt: skip

    def _check_roots(self) -> None:
        named = [(self._at(p), p) for p in self.forms]
        named += [(("derive", p), p) for p in self.study.derive]
        named += [(("base", "set", p), p) for p in self.study.base.set]
        for at, path in named:
            if wrong := wrong_root(path):
                self._problem(at, *wrong)
        for path in self.forms:
            for table, key in ((self.study.derive, "derive"), (self.study.base.set, "base.set")):
                if path in table:
                    rule = f"{path} is an axis and can not stand in {key} as well"
                    self._problem((*key.split("."), path), rule, "", "Remove one of them.")
        for path, i, rule, value in whole_problems(self.forms):
            at = self._at(path)
            self._problem(at if i is None else (*at, "values", i), rule, value)

    # -- axes, links -----------------------------------------------------------------------

    def _axes(self, targets: Targets) -> tuple[PlanAxis, ...]:
        axes: list[PlanAxis] = []
        keys: dict[str, str] = {}
        for path, form in self.forms.items():
            axis = self._axis(path, form, targets, axes)
            if axis is None:
                self.unread.add(path)
                continue
            key = axis.target.key
            if key in keys:
                self._problem(self._at(path), f"{path} and {keys[key]} are the same parameter")
            keys[key] = path
            axes.append(axis)
        return tuple(axes)

    def _axis(
        self, path: str, form: AxisForm, targets: Targets, earlier: list[PlanAxis]
    ) -> PlanAxis | None:
        """Return an axis, None where it is wrong or means a part of something unknown."""
        searched = isinstance(self.study.strategy, Random | Sobol | Optuna)
        discrete = not (searched or self.problems.about("strategy"))
        here = self._targets_of(form, targets)
        if here is None or not here.judges(path) or wrong_root(path):
            return None
        known = {n: v for n, v in (form.when or {}).items() if n not in self.unread}
        try:
            target = here.of(path)
            axis = resolved_axis(form, target, discrete=discrete)
            conditions = resolved_when(form.model_copy(update={"when": known}), earlier, path)
            if axis.line.size == 0 and not target.numeric:
                rule = "only a number can be a continuous axis"
                raise ConfigError.one("", "", rule, path, "List its `values`.")
        except OpbyteError as error:
            self._keep(error, self._at(path))
            return None
        axis = dataclasses.replace(axis, line=dataclasses.replace(axis.line, when=conditions))
        return axis if len(known) == len(form.when or {}) else None

    def _targets_of(self, form: AxisForm, targets: Targets) -> Targets | None:
        """Return what paths mean on the machines at which an axis means anything.

        None where one of them could not be built.
        """
        named = (form.when or {}).get("machine")
        if named is None:
            return targets
        named = named if isinstance(named, list) else [named]
        some = [m for source, m in self._built if source in named]
        wanted = [source for source in self._machine_sources() if source in named]
        if len(some) < len(wanted):
            return None
        return targets.on(some) if some else targets

    def _links(self, targets: Targets) -> tuple[Link, ...]:
        links = []
        where = {}
        for path, text in self.study.derive.items():
            at = ("derive", path)
            where[path] = self.document.where(at)
            try:
                expression = Expression.parse(text)
                known = [targets.judges(name) for name in (path, *expression.names)]
                known[0] = known[0] and not wrong_root(path)
                target = targets.of(path) if known[0] else None
                names = zip(expression.names, known[1:], strict=True)
                reads = {name: targets.of(name) for name, judged in names if judged}
                for name, read in reads.items():
                    if not read.numeric and name not in self.forms:
                        rule = f"{name} is no number that an expression can read"
                        raise ConfigError.one("", "", rule, expression.text)
            except OpbyteError as error:
                self._keep(error, at)
                self.unread.add(path)
                continue
            if target is None or not all(known):
                self.unread.add(path)
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
        if self.unread or self.problems.about("strategy") or self.problems.about("axes"):
            return None
        lines = tuple(axis.line for axis in axes)
        strategy = self.study.strategy
        if isinstance(strategy, Zip | List | Random | Sobol) and not axes:
            self._problem(("axes",), f"a {strategy.kind} needs axes")
            return None
        if isinstance(strategy, Random | Sobol):
            if self.problems:
                return None
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

    def _check_baseline(self, side: Side) -> None:
        first = self._first("workload")
        if side.machine is None:
            first |= self._first("machine")
        wrong = Problems()
        side.judged(first, wrong)
        told = {(p.rule, p.value) for p in self.problems}
        for p in wrong:
            # What it has from `base` is told there.
            if (p.rule, p.value) not in told:
                self._place(p, ("baseline",))
        kind, other = self.side.kind(first), side.kind(first)
        if kind and other and other != kind:
            rule = f"the baseline must have the same kind of work, {kind!r}"
            self._problem(("baseline", "workload"), rule, other)

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
            if name not in known and self._judges(name):
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
                if name not in known and self._judges(name):
                    self._unknown(at, name, known)
            parsed.append(one)
        return tuple(parsed)

    def _judges(self, name: str) -> bool:
        """Return whether it is known that no column has a name that none was found for."""
        baseline = name == "speedup" and self.problems.about("baseline")
        listed = name.partition(".")[0] in ROOTS and self.problems.about("strategy")
        unsure = name in self.unread or (bool(self.problems) and name in self._unsure)
        return self._kind_known and not (baseline or listed or unsure)

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
