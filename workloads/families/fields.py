"""Reads the fields of one `config.json`, remembers which were read, and collects every mistake."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opbyte.core.errors import ConfigError, Problem
from opbyte.core.registry import nearest
from opbyte.workloads.families.harmless import is_harmless, required_value

LARGEST_SIZE = 100_000_000
LONGEST_CONTEXT = 10**12
MOST_LAYERS = 10_000


class Fields:
    """The fields of a config, read by name; nothing is read twice or forgotten.

    Methods that meet a mistake record it and return a stand-in, so that `finish` can raise all
    mistakes of a file at once.

    Attributes:
        family: The `model_type`.
        data: The config's mapping.
        problems: Mistakes found so far.
        notes: What a reader of the counts should know.
    """

    def __init__(
        self,
        family: str,
        data: Mapping[str, Any],
        where: Callable[[str], str],
        path: str = "",
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap `data`.

        Args:
            family: The `model_type`, for messages.
            data: The config's mapping.
            where: Returns `file:line:col` of a key.
            path: Dotted path of `data` in its file.
            defaults: Values of the transformers library for keys that a nested `text_config`
                leaves out; none for a complete config, whose sizes are all due.
        """
        self.family = family
        self.data = data
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._where = where
        self._path = path
        self._defaults = dict(defaults or {})
        self._read: set[str] = {"model_type"}
        self._faulty: set[str] = set()

    def fault(self, key: str, rule: str, value: object = "", remedy: str = "") -> None:
        """Record a mistake at `key`."""
        self._faulty.add(key)
        path = f"{self._path}.{key}" if self._path else key
        value = repr(value) if isinstance(value, str) and value else value
        self.problems.append(
            Problem(self._where(key), path, f"{self.family}: {rule}", value, remedy)
        )

    def get(self, *keys: str) -> Any:
        """Return the value of the first of several names of one field, None where it is absent.

        Names that are present together must agree.
        """
        self._read.update(keys)
        present = [(key, self.data[key]) for key in keys if self.data.get(key) is not None]
        for key, value in present[1:]:
            if value != present[0][1]:
                rule = f"the same as {present[0][0]} is due, {present[0][1]!r}"
                self.fault(key, rule, value, "Both name one field: remove one.")
        if present:
            return present[0][1]
        return next((self._defaults[key] for key in keys if key in self._defaults), None)

    def sound(self, *keys: str) -> bool:
        """Return whether no mistake was found at any of these keys."""
        return self._faulty.isdisjoint(keys)

    def has(self, key: str) -> bool:
        """Return whether a key is present and not null, without reading it."""
        return self.data.get(key) is not None

    def size(
        self, *keys: str, default: int | None = None, least: int = 1, most: int = LARGEST_SIZE
    ) -> int:
        """Return a whole number, by the first of several names of one field.

        Args:
            keys: Names of the field.
            default: Value where it is absent; without one it is due.
            least: Smallest allowed value.
            most: Largest allowed value.
        """
        value = self.get(*keys)
        if value is None:
            if default is not None:
                return default
            self.fault(keys[0], "this size is due, but the field is absent", "", "Add it.")
            return max(least, 1)
        key = next((k for k in keys if self.data.get(k) is not None), keys[0])
        if isinstance(value, bool) or not isinstance(value, int):
            self.fault(key, "a whole number is due", value, "Write it without quotes or fraction.")
            return max(least, 1)
        if not least <= value <= most:
            remedy = "Check the number."
            self.fault(key, f"a number from {least} to {most} is due", value, remedy)
            return max(least, 1)
        return value

    def flag(self, *keys: str, default: bool) -> bool:
        """Return true or false."""
        value = self.get(*keys)
        if value is None:
            return default
        if not isinstance(value, bool):
            key = next((k for k in keys if self.data.get(k) is not None), keys[0])
            self.fault(key, "true or false is due", value, "Write it without quotes.")
            return default
        return value

    def word(self, key: str, allowed: Sequence[str], default: str) -> str:
        """Return one of several words."""
        value = self.get(key)
        if value is None:
            return default
        if value not in allowed:
            near = nearest(str(value), allowed)
            hint = f"Did you mean {near!r}?" if near else f"Known: {', '.join(allowed)}."
            self.fault(key, "this value changes sizes in a way that is not known", value, hint)
            return default
        return str(value)

    def words(self, key: str, allowed: Sequence[str], length: int) -> list[str] | None:
        """Return one word for each layer, None where the field is absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length:
            self.fault(key, f"a list of one entry for each of {length} layers is due", value)
            return None
        odd = [entry for entry in value if entry not in allowed]
        if odd:
            hint = f"Known: {', '.join(allowed)}."
            self.fault(key, "a layer of this kind is not known", odd[0], hint)
            return None
        return list(value)

    def indices(self, key: str, layers: int) -> list[int] | None:
        """Return a list of layer numbers, None where the field is absent."""
        value = self.get(key)
        if value is None:
            return None
        good = isinstance(value, list) and all(
            type(i) is int and -layers <= i < layers for i in value
        )
        if not good:
            self.fault(key, f"a list of layer numbers below {layers} is due", value)
            return None
        return [i % layers for i in value]

    def only(self, key: str, allowed: Sequence[Any], why: str) -> None:
        """Read a field that may only have values that change nothing here."""
        value = self.get(key)
        if value is not None and not any(value is a or value == a for a in allowed):
            self.fault(key, why, value, "This variant is not supported.")

    def ignore(self, *keys: str) -> None:
        """Say that this family's forward pass and sizes do not depend on some fields."""
        self._read.update(keys)

    def check(self, condition: bool, key: str, rule: str, value: object, remedy: str = "") -> None:
        """Record a mistake at `key` unless `condition` holds."""
        if not condition:
            self.fault(key, rule, value, remedy)

    def unread(self) -> list[str]:
        """Return the keys that nobody read and that may change a size."""
        rest = (key for key in self.data if key not in self._read)
        return [key for key in rest if self.data[key] is not None and not is_harmless(str(key))]

    def finish(self) -> None:
        """Raise all mistakes at once, unread fields among them.

        Raises:
            ConfigError: If there are any.
        """
        for key, value in self.data.items():
            if key not in self._read and not required_value(key, value):
                self.fault(key, "unread field: only its default value is supported", value)
        for key in self.unread():
            near = nearest(str(key), self._read)
            remedy = f"Did you mean {near!r}? " if near else ""
            remedy += "Remove it if it changes no size; else this variant is not supported."
            self.fault(key, "unread field that may change a size", self.data.get(key), remedy)
        if self.problems:
            raise ConfigError(self.problems)
