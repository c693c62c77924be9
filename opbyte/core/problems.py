"""The mistakes of what a user wrote: each check adds its own, and all are told at once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from opbyte.core.errors import ConfigError, OpbyteError, Problem

__all__ = ["Problems", "problems_of"]


class Problems:
    """The mistakes of one file.

    A check keeps what it finds here and goes on with whatever can still be judged; what only
    follows from a mistake that another check has told is not one. `tell` ends the checks.
    """

    def __init__(self) -> None:
        """Start without any."""
        self._found: dict[Problem, None] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._found)

    def __iter__(self) -> Iterator[Problem]:
        """Yield them in the order in which they were found."""
        return iter(tuple(self._found))

    def add(self, problems: Iterable[Problem]) -> None:
        """Keep problems, each once."""
        self._found.update(dict.fromkeys(problems))

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Keep what is raised inside, and go on behind it."""
        try:
            yield
        except OpbyteError as error:
            self.add(problems_of(error))

    def about(self, path: str) -> bool:
        """Return whether an entry, or one inside of it, was found wrong.

        Args:
            path: Its dotted path, such as `base.machine`.
        """
        inside = (f"{path}.", f"{path}[")
        return any(p.path == path or p.path.startswith(inside) for p in self._found)

    def tell(self) -> None:
        """Raise what was found, sorted by line; of several files one after the other.

        Raises:
            ConfigError: If anything was.
        """
        if not self._found:
            return
        places = {problem: _place(problem.where) for problem in self._found}
        files = list(dict.fromkeys(name for name, _, _ in places.values()))
        order = {p: (files.index(name), line, column) for p, (name, line, column) in places.items()}
        raise ConfigError(sorted(self._found, key=order.__getitem__))


def problems_of(error: OpbyteError) -> tuple[Problem, ...]:
    """Return the problems of an error; of one that has none, its text with its place before it."""
    if isinstance(error, ConfigError):
        return error.problems
    text = str(error)
    where, colon, rule = text.partition(": ")
    at_line = colon and _place(where)[1] < math.inf
    return (Problem(where, "", rule) if at_line else Problem("", "", text),)


def _place(where: str) -> tuple[str, float, float]:
    """Return file, line and column of a place; whatever has no line comes after what has one."""
    name, _, column = where.rpartition(":")
    name, _, line = name.rpartition(":")
    if line.isdecimal() and column.isdecimal():
        return name, float(line), float(column)
    return where, math.inf, math.inf
