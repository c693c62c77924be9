"""Which axis of a study is to blame where its values build no machine, work or mapping."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opbyte.core.errors import Problem
from opbyte.core.problems import Problems
from opbyte.sweeps.study import ROOTS, AxisForm

__all__ = ["at_fault", "unplaced", "whole_problems"]


def at_fault(
    choice: Mapping[str, Any], build: Callable[[Mapping[str, Any]], object]
) -> Iterator[tuple[str, Problem]]:
    """Yield what is wrong with a choice, each with the path whose value is to blame.

    It is the path without which a problem is gone and no other takes its place, or the path that
    the problem is about; nothing where there is none.
    """
    found = _wrong(build, choice)
    others = {
        path: _wrong(build, {p: v for p, v in choice.items() if p != path}) if found else ()
        for path in choice
    }
    for problem in found:
        gone = (p for p, left in others.items() if problem not in left and set(left) <= set(found))
        about = (p for p in choice if problem.path.endswith(p))
        yield next(itertools.chain(gone, about), ""), problem


def _wrong(
    build: Callable[[Mapping[str, Any]], object], choice: Mapping[str, Any]
) -> list[Problem]:
    problems = Problems()
    with problems.keep():
        build(choice)
    return list(problems)


def unplaced(p: Problem, path: str, name: str) -> Problem:
    """Return a problem of an axis' value without its place, which is not the user's.

    Args:
        p: From building a design.
        path: The axis. A place inside a file that a value of the axis names stays.
        name: Name of the study's file.
    """
    elsewhere = p.where.count(":") > 1 and not p.where.startswith(f"{name}:")
    kept = path in ROOTS and elsewhere
    return p if kept else dataclasses.replace(p, where="", path="")


def whole_problems(forms: Mapping[str, AxisForm]) -> Iterator[tuple[str, int | None, str, object]]:
    """Yield path, index, rule and value where an axis over a whole machine holds none."""
    for path in ROOTS:
        form = forms.get(path)
        if form is None:
            continue
        if form.values is None:
            yield path, None, f"an axis over a whole {path} lists its `values`", ""
        kinds = (dict,) if path == "workload" else (str, dict)
        shape = "a mapping" if path == "workload" else "a name, a file or a mapping"
        for i, value in enumerate(form.values or ()):
            if not isinstance(value, kinds):
                yield path, i, f"a {path} is {shape}", value
