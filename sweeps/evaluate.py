"""Evaluates points of a study: designs one by one, numbers of a design as arrays over points."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from opbyte.core.errors import CapacityError, OpbyteError, UncoveredError, WorkloadError, unfit
from opbyte.hw_models.machine import Machine
from opbyte.sim.simulate import evaluate
from opbyte.sweeps.answers import Answer, answered, inserted, taken
from opbyte.sweeps.derive import invalid
from opbyte.sweeps.design import Design, Side
from opbyte.sweeps.keys import seed_of
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.rows import INFEASIBLE, OK, STATUS, Floats, Rows, Words, joined
from opbyte.sweeps.space import Codes, Ids, active
from opbyte.sweeps.targets import parameter_path
from opbyte.workloads.works import Work

__all__ = ["Evaluator"]

_MOST_DESIGNS = 256
_PIECES = 8


class Evaluator:
    """Evaluates points of one plan; keeps the designs that it has built."""

    def __init__(self, plan: Plan, seed_key: str) -> None:
        self.plan = plan
        self._seed_key = f"{seed_key}|{plan.study.seed}"
        self._designs: dict[tuple[str, str], Design | str] = {}
        self._played: dict[Any, Answer] = {}
        targets = [*(a.target for a in plan.axes), *(k.target for k in plan.links)]
        self._names = {t.key: t.name for t in targets}
        self._lines = tuple(a.line for a in plan.axes)

    def rows(self, ids: Ids, codes: Codes, stop: Callable[[], bool]) -> Rows:
        """Return the rows of points; of fewer where `stop` says so after some.

        The rows do not depend on which points are asked for together. At least one point is
        evaluated; which ones the rows hold is in their ids.
        """
        parts = []
        with np.errstate(all="ignore"):
            for where in self._groups(ids, codes):
                if self.plan.study.fidelity == "event":
                    pieces = [where[i : i + 1] for i in range(len(where))]
                else:
                    pieces = [where]
                for piece in pieces:
                    parts.append(self._group(ids[piece], {p: c[piece] for p, c in codes.items()}))
                    if stop():
                        return joined(parts)
        return joined(parts)

    def failures(self, ids: Ids, codes: Codes, reason: str) -> Rows:
        """Return rows that say why points could not be evaluated at all."""
        parts = [
            self._group(ids[at], {p: c[at] for p, c in codes.items()}, reason)
            for at in self._groups(ids, codes)
        ]
        return joined(parts)

    def _groups(self, ids: Ids, codes: Codes) -> list[Any]:
        """Return positions of the points of each design, in order of first appearance."""
        slow = [a for a in self.plan.axes if a.path in self.plan.slow]
        used = active(self._lines, codes)
        if not slow and not used:
            return [np.arange(len(ids))]
        label = np.zeros(len(ids), dtype=np.int64)
        for axis in slow:
            label = label * axis.line.size + codes[axis.path]
        for where in used.values():
            label = label * 2 + where
        _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        bounds = np.cumsum(np.bincount(inverse))[:-1]
        groups = np.split(order, bounds)
        return [groups[i] for i in np.argsort(first, kind="stable")]

    # -- one design ------------------------------------------------------------------------

    def _group(self, ids: Ids, codes: Codes, broken: str = "") -> Rows:
        plan, count = self.plan, len(ids)
        choice, numbers = self._values(codes)
        try:
            bad, reasons = self._derive(numbers, choice, count)
        except OpbyteError as error:
            broken, bad, reasons = broken or _text(error), np.zeros(count, np.int32), ("",)
        if broken:
            answer = Answer.failed(plan.metrics, count, broken)
        elif bad.any():
            answer = self._around(ids, numbers, choice, bad, reasons)
        else:
            answer = self._answer(plan.side, ids, choice, self._inputs(numbers))
        return self._table(ids, codes, numbers, choice, answer)

    def _values(self, codes: Codes) -> tuple[dict[str, Any], dict[str, Floats]]:
        """Return the values of the axes of points of one design: of structure, and numbers."""
        used = active(self._lines, codes)
        axes = [a for a in self.plan.axes if a.path not in used or bool(used[a.path][0])]
        choice = {
            a.path: a.written[int(codes[a.path][0])]
            for a in axes
            if not a.target.numeric and a.written is not None
        }
        numbers = {
            a.target.key: a.number(codes[a.path])
            for a in axes
            if a.numbers is not None or a.line.size == 0
        }
        return choice, numbers

    def design(self, point: int, codes: Codes) -> tuple[Design, int]:
        """Return the design of one point, with its numbers in place, and its seed.

        Args:
            point: The point's id.
            codes: Its codes, (1,) each.
        Raises:
            UncoveredError: If it has none, with why.
        """
        choice, numbers = self._values(codes)
        bad, reasons = self._derive(numbers, choice, 1)
        if bad.any():
            raise UncoveredError(reasons[int(bad[0])])
        inputs = self._inputs(numbers)
        found = self._design(self.plan.side, choice, inputs)
        if isinstance(found, str):
            raise UncoveredError(found)
        machine, work = self._placed(found, {key: float(v[0]) for key, v in inputs.items()})
        return Design(machine, work, found.mapping), seed_of(self._seed_key, point)

    def _derive(
        self, numbers: dict[str, Floats], choice: dict[str, Any], count: int
    ) -> tuple[Any, tuple[str, ...]]:
        """Add derived parameters to `numbers` and `choice`; return where they are impossible."""
        bad = np.zeros(count, dtype=np.int32)
        reasons = [""]
        for link in self.plan.links:
            values = {
                name: numbers[key] if key in numbers else self._constant(name, key, choice)
                for name, key in link.reads.items()
            }
            found = np.broadcast_to(link.expression(values), (count,)).astype(np.float64)
            wrong = invalid(link.target, found)
            if wrong.any():
                rule = f"derived {link.target.path} is no value that it can take"
                bad[wrong & (bad == 0)] = len(reasons)
                reasons.append(rule)
            numbers[link.target.key] = found
            if not link.target.numeric:
                value = float(found[0])
                choice[link.target.path] = int(value) if value == int(value) else value
        return bad, tuple(reasons)

    def _constant(self, name: str, key: str, choice: Mapping[str, Any]) -> float:
        """Return a number of the design that no axis varies."""
        root, _, rest = name.partition(".")
        if root == "machine":
            machine = self.plan.side.machine_of(choice)
            return float(machine.values[parameter_path(machine, rest) or rest])
        work = self.plan.side.work_of({**self._defaults(self._names), **choice})
        return float(getattr(work, key.partition(".")[2]))

    def _around(
        self,
        ids: Ids,
        numbers: dict[str, Floats],
        choice: dict[str, Any],
        bad: Any,
        reasons: tuple[str, ...],
    ) -> Answer:
        """Return the answer where some points have impossible parameters."""
        good = np.flatnonzero(bad == 0)
        whole = Answer.failed(self.plan.metrics, len(ids), "")
        whole = dataclasses.replace(whole, reason=bad.copy(), reasons=reasons)
        if len(good) == 0:
            return whole
        inputs = {k: v[good] for k, v in self._inputs(numbers).items()}
        return inserted(whole, good, self._answer(self.plan.side, ids[good], choice, inputs))

    def _inputs(self, numbers: Mapping[str, Floats]) -> dict[str, Floats]:
        """Return the numbers that go into the simulation as arrays, by key."""
        targets = [a.target for a in self.plan.axes] + [k.target for k in self.plan.links]
        return {t.key: numbers[t.key] for t in targets if t.numeric and t.key in numbers}

    def _answer(
        self, side: Side, ids: Ids, choice: Mapping[str, Any], inputs: Mapping[str, Floats]
    ) -> Answer:
        """Return what points of one design answer; what raises is halved down to its points."""
        design = self._design(side, choice, inputs)
        if isinstance(design, str):
            return Answer.failed(self.plan.metrics, len(ids), design)
        try:
            return self._simulated(design, ids, inputs)
        except CapacityError as error:
            failure = self._does_not_fit(error, len(ids))
        except Exception as error:  # noqa: BLE001  a user's unit or scheduler may raise anything
            failure = Answer.failed(self.plan.metrics, len(ids), _text(error))
        if len(ids) == 1:
            return failure
        whole = Answer.failed(self.plan.metrics, len(ids), "")
        for piece in np.array_split(np.arange(len(ids)), min(_PIECES, len(ids))):
            part = {k: v[piece] for k, v in inputs.items()}
            whole = inserted(whole, piece, self._answer(side, ids[piece], choice, part))
        return whole

    def _does_not_fit(self, error: CapacityError, points: int) -> Answer:
        failed = Answer.failed(self.plan.metrics, points, unfit(error.tensors, error.tier))
        return dataclasses.replace(
            failed,
            status=np.full(points, INFEASIBLE, dtype=np.int32),
            needed=np.full(points, float(error.needed_bytes)),
            available=np.full(points, float(error.available_bytes)),
        )

    def _design(
        self, side: Side, choice: Mapping[str, Any], inputs: Mapping[str, Floats]
    ) -> Design | str:
        """Return a design, or why there is none."""
        defaults = self._defaults(inputs)
        key = (side.at[0], repr((sorted(defaults), sorted(choice.items()))))
        if key not in self._designs:
            if len(self._designs) >= _MOST_DESIGNS:
                self._designs.clear()
            try:
                self._designs[key] = side.build({**defaults, **choice})
            except (OpbyteError, WorkloadError) as error:
                self._designs[key] = _text(error)
        return self._designs[key]

    def _defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a first value of the fields that axes give, for works that do not give them."""
        return {
            f"workload.{a.path.partition('.')[2]}": float(a.numbers[0])
            if a.numbers is not None
            else a.line.low
            for a in self.plan.axes
            if a.target.kind == "field" and a.target.key in given
        }

    def _simulated(self, design: Design, ids: Ids, inputs: Mapping[str, Floats]) -> Answer:
        count = len(ids)
        single = self.plan.study.fidelity == "event"
        if single:
            plain: dict[str, Any] = {key: float(v[0]) for key, v in inputs.items()}
        else:
            # One point is evaluated as two equal ones: sums over operators then always run along
            # the same axis, and a point's last bit does not depend on its neighbours.
            plain = {key: np.repeat(v, 2) if count == 1 else v for key, v in inputs.items()}
        machine, work = self._placed(design, plain)
        seed = seed_of(self._seed_key, int(ids[0])) if single else 0
        fidelity = self.plan.study.fidelity
        outcome = evaluate(machine, work, design.mapping, fidelity, seed)
        return answered(outcome, self.plan.metrics, count)

    def _placed(self, design: Design, plain: Mapping[str, Any]) -> tuple[Machine, Work]:
        """Return machine and work of a design with numbers, or arrays of them, in place."""
        machine = design.machine
        values = {
            parameter_path(machine, self._names[key]) or key: v
            for key, v in plain.items()
            if key.startswith("machine.")
        }
        fields = {
            key.partition(".")[2]: v for key, v in plain.items() if key.startswith("workload.")
        }
        machine = machine.with_values(values) if values else machine
        work = dataclasses.replace(design.work, **fields) if fields else design.work
        return machine, work

    # -- the table -------------------------------------------------------------------------

    def _table(
        self,
        ids: Ids,
        codes: Codes,
        numbers: Mapping[str, Floats],
        choice: Mapping[str, Any],
        answer: Answer,
    ) -> Rows:
        plan, count = self.plan, len(ids)
        columns: dict[str, Floats] = {}
        words: dict[str, Words] = {}
        for axis in plan.axes:
            if axis.target.key in numbers:
                columns[axis.path] = numbers[axis.target.key]
            elif axis.numbers is not None or axis.line.size == 0:
                columns[axis.path] = np.full(count, np.nan)
            elif axis.path in choice:
                words[axis.path] = Words(codes[axis.path].astype(np.int32), axis.texts)
            else:
                words[axis.path] = Words.same("", count)
        for link in plan.links:
            nothing = np.full(count, np.nan)
            columns[link.target.path] = numbers.get(link.target.key, nothing)
        columns |= {name: answer.metrics[name] for name in plan.metrics}
        columns |= {"needed_bytes": answer.needed, "available_bytes": answer.available}
        words["status"] = Words(answer.status.astype(np.int32), STATUS)
        words["reason"] = Words(answer.reason.astype(np.int32), answer.reasons)
        if plan.baseline is not None:
            self._compare(ids, numbers, choice, columns, words)
        if plan.constraints:
            columns["violation"] = self._violation(columns, answer)
        return Rows(ids, columns, words)

    def _violation(self, columns: Mapping[str, Floats], answer: Answer) -> Floats:
        total = np.zeros(len(answer.status))
        for constraint in self.plan.constraints:
            total = total + constraint.violation({n: columns[n] for n in constraint.names})
        return np.where(answer.status == OK, total, np.nan)

    def _compare(
        self,
        ids: Ids,
        numbers: Mapping[str, Floats],
        choice: Mapping[str, Any],
        columns: dict[str, Floats],
        words: dict[str, Words],
    ) -> None:
        """Add the baseline's metrics at the same workload, and the speedup over it."""
        side = self.plan.baseline
        assert side is not None
        given = self.plan.study.baseline
        assert given is not None
        kept = {p: v for p, v in choice.items() if _applies(p, given)}
        inputs = {k: v for k, v in self._inputs(numbers).items() if _applies(k, given)}
        answer = self._answer_once(side, ids, kept, inputs)
        chosen = ["seconds", *self.plan.study.objectives]
        for name in dict.fromkeys(chosen):
            if name in answer.metrics:
                columns[f"baseline_{name}"] = answer.metrics[name]
        columns["speedup"] = _speedup(columns, answer.metrics)
        words["baseline_status"] = Words(answer.status.astype(np.int32), STATUS)

    def _answer_once(
        self, side: Side, ids: Ids, choice: Mapping[str, Any], inputs: Mapping[str, Floats]
    ) -> Answer:
        """Return the baseline's answer; equal points are evaluated once."""
        if inputs:
            stacked = np.stack(list(inputs.values()))
            _, first, inverse = np.unique(stacked, axis=1, return_index=True, return_inverse=True)
            inverse = inverse.ravel()
        else:
            first, inverse = np.zeros(1, np.int64), np.zeros(len(ids), np.int64)
        few = {k: v[first] for k, v in inputs.items()}
        if self.plan.study.fidelity != "event":
            return taken(self._answer(side, ids[first], choice, few), inverse)
        key = (repr(sorted(choice.items())), tuple(float(v[0]) for v in few.values()))
        if key not in self._played:
            seed = np.array([seed_of("baseline", key)], dtype=np.int64)
            self._played[key] = self._answer(side, seed, choice, few)
        return self._played[key]


def _speedup(mine: Mapping[str, Floats], other: Mapping[str, Floats]) -> Floats:
    """Return the baseline's time over ours; for each token where other numbers of sequences fit."""
    ratio = other["seconds"] / mine["seconds"]
    if "batch_max" not in mine or "batch_max" not in other:
        return ratio
    tokens, theirs = (side["tokens_per_s"] * side["seconds"] for side in (mine, other))
    differ = np.abs(tokens - theirs) > 1e-6 * theirs
    return np.where(differ, mine["tokens_per_s"] / other["tokens_per_s"], ratio)


def _applies(path: str, given: Any) -> bool:
    """Return whether an axis or derived parameter holds for the baseline too."""
    root = path.partition(".")[0]
    if root == "workload":
        return path.partition(".")[2] not in given.workload
    if root == "mapping":
        return given.machine is None and given.mapping is None
    return given.machine is None


def _text(error: Exception) -> str:
    """Return an error on one line."""
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, OpbyteError) else f"{type(error).__name__}: {text}"
