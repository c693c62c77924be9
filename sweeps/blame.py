"""Which axis of a study is to blame where its values build no machine, work or mapping."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opbyte.core.errors import ConfigError, OpbyteError, Problem
from opbyte.sweeps.study import ROOTS, AxisForm

__all__ = ["at_fault", "unplaced", "whole_problems"]


def at_fault(choice: Mapping[str, Any], build: Callable[[Mapping[str, Any]], object]) -> str:
    """Return the path without which a choice builds, or nothing where there is none."""
    for path in choice:
        try:
            build({p: v for p, v in choice.items() if p != path})
        except OpbyteError:
            continue
        return path
    return ""


def unplaced(error: OpbyteError, path: str, name: str) -> OpbyteError:
    """Return an error of an axis' value without its place, which is not the user's.

    Args:
        error: From building a design.
        path: The axis. A place inside a file that a value of the axis names stays.
        name: Name of the study's file.
    """
    if not isinstance(error, ConfigError):
        return error

    def bare(p: Problem) -> Problem:
        elsewhere = p.where.count(":") > 1 and not p.where.startswith(f"{name}:")
        kept = path in ROOTS and elsewhere
        return p if kept else dataclasses.replace(p, where="", path="")

    return ConfigError(bare(p) for p in error.problems)


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
