"""Named components: they register themselves, and a wrong name is answered with the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from opbyte.core.errors import ConfigError

__all__ = ["Registry", "lookup_error", "nearest"]

T = TypeVar("T")

_LONGEST_WORD = 80
_MOST_SHOWN = 40


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that `word` most likely means, or None where nothing is near.

    Case and the difference of `-`, `_` and space are ignored. Ties go to the alphabetically first.
    """
    folded: dict[str, str] = {}
    for name in sorted(known):
        folded.setdefault(_fold(name), name)
    target = _fold(word[:_LONGEST_WORD])
    if target in folded:
        return folded[target]
    found = difflib.get_close_matches(target, folded, n=1, cutoff=0.65)
    return folded[found[0]] if found else None


def _fold(word: str) -> str:
    return word.casefold().replace("_", "-").replace(" ", "-")


def lookup_error(noun: str, name: str, known: Iterable[str], where: str = "") -> ConfigError:
    """Return the error for a name that is not known: nearest name first, then all of them."""
    names = sorted(known)
    near = nearest(name, names)
    remedy = f"Did you mean {near!r}? " if near else ""
    listed = ", ".join(names[:_MOST_SHOWN])
    if len(names) > _MOST_SHOWN:
        listed += f" and {len(names) - _MOST_SHOWN} more"
    remedy += f"Known: {listed}." if names else f"No {noun} is known at all."
    shown = name if len(name) <= _LONGEST_WORD else name[:_LONGEST_WORD] + ".."
    return ConfigError.one(where, "", f"no {noun} is called {shown!r}", "", remedy)


class Registry(Generic[T]):
    """Things of one kind by name, such as the classes of memories."""

    def __init__(self, noun: str) -> None:
        """Start empty; `noun` is what an error calls one entry ("memory")."""
        self.noun = noun
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters what it decorates under `name`.

        Raises:
            ConfigError: If the name is taken by something else.
        """

        def enter(entry: T) -> T:
            taken = self._entries.get(name)
            if taken is not None and taken is not entry:
                raise ConfigError.one(
                    rule=f"two {self.noun} entries are called {name!r}",
                    remedy=f"It is taken by {taken!r}; register {entry!r} under another name.",
                )
            self._entries[name] = entry
            return entry

        return enter

    def lookup(self, name: str) -> T:
        """Return the entry called `name`.

        Raises:
            ConfigError: If there is none; the message has the nearest name and all names.
        """
        try:
            return self._entries[name]
        except KeyError:
            raise lookup_error(self.noun, name, self._entries) from None

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        """Return whether `name` is registered."""
        return name in self._entries
