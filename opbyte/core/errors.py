"""The errors that opbyte raises for mistakes in what users wrote, and for work it can not do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

__all__ = [
    "CapacityError",
    "ConfigError",
    "OpbyteError",
    "Problem",
    "SimulationError",
    "UncoveredError",
    "WorkloadError",
    "show",
    "unfit",
]

_SHOWN_CHARACTERS = 80
_SHOWN_PATH = 200
_SHOWN_TEXT = 2000
_SHOWN_PROBLEMS = 100


class OpbyteError(Exception):
    """Base of all errors that a caller of opbyte may want to catch."""


def show(value: object) -> str:
    """Return `value` as a short, printable, one-line text for an error message.

    Containers are described by their size rather than printed.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"a mapping of {len(value)} key{'' if len(value) == 1 else 's'}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)} item{'' if len(value) == 1 else 's'}"
    try:
        return _one_line(repr(value))
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too long to print"


def _one_line(text: str, most: int = _SHOWN_CHARACTERS) -> str:
    """Return `text` shortened, with everything that would disturb a terminal escaped."""
    if len(text) > most:
        half = most // 2 - 2
        text = f"{text[:half]} .. {text[-half:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: where it stands, which rule it breaks, and what to do.

    Attributes:
        where: `file:line:col`, or whatever else locates it (`--set a.b=1`); may be empty.
        path: Dotted path inside the file; may be empty.
        rule: The rule that is broken, as a statement.
        value: The value found. A text is shown as it is, anything else through `show`.
        remedy: What to do, as a sentence; may be empty.
    """

    where: str = ""
    path: str = ""
    rule: str = ""
    value: object = ""
    remedy: str = ""

    def __post_init__(self) -> None:
        """Reduce all parts to short printable text: a problem can always be pickled and shown."""
        text = _one_line(self.value) if isinstance(self.value, str) else show(self.value)
        object.__setattr__(self, "value", text)
        object.__setattr__(self, "path", _one_line(self.path, _SHOWN_PATH))
        for name in ("where", "rule", "remedy"):
            words = getattr(self, name).replace("\n", " ")
            object.__setattr__(self, name, _one_line(words, _SHOWN_TEXT))

    def __str__(self) -> str:
        """Return `where: path: rule, got value. remedy` without its empty parts."""
        rule = f"{self.rule}, got {self.value}" if self.value else self.rule
        head = ": ".join(part for part in (self.where, self.path, rule) if part)
        if not self.remedy:
            return head if head.endswith((".", "?")) else f"{head}."
        return f"{head}. {self.remedy}"


class ConfigError(OpbyteError, ValueError):
    """Something that a user wrote is wrong; carries every problem found, not only the first.

    It is a ValueError too, so that a pydantic validator may raise it and keep its fields.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Collect `problems`; at least one is needed."""
        self.problems: tuple[Problem, ...] = tuple(problems)
        if not self.problems:
            raise ValueError("a ConfigError needs at least one problem")
        super().__init__(self.problems)

    @classmethod
    def one(
        cls, where: str = "", path: str = "", rule: str = "", value: object = "", remedy: str = ""
    ) -> Self:
        """Return an error with a single problem."""
        return cls([Problem(where, path, rule, value, remedy)])

    def __str__(self) -> str:
        """Return one line for each problem, as many as somebody may want to read."""
        lines = [str(problem) for problem in self.problems[:_SHOWN_PROBLEMS]]
        if len(self.problems) > _SHOWN_PROBLEMS:
            lines.append(f"and {len(self.problems) - _SHOWN_PROBLEMS} more")
        return "\n".join(lines)


class WorkloadError(OpbyteError):
    """The work asked for makes no sense (a context of zero tokens, more experts than exist)."""


class UncoveredError(OpbyteError):
    """A model was asked about a point outside of its published domain."""


class SimulationError(OpbyteError):
    """A simulation could not be carried to its end."""


class CapacityError(OpbyteError):
    """Tensors fit in no memory that their placement allows.

    Attributes:
        tensors: Names of the tensors (or tensor classes) that do not fit.
        tier: Path of the memory, such as `gpu.hbm`.
        needed_bytes: What they need, bytes.
        available_bytes: What is free for them, bytes.
    """

    def __init__(
        self, tensors: str | Sequence[str], tier: str, needed_bytes: float, available_bytes: float
    ) -> None:
        """Record what does not fit where."""
        self.tensors: tuple[str, ...] = (tensors,) if isinstance(tensors, str) else tuple(tensors)
        self.tier = tier
        self.needed_bytes = float(needed_bytes)
        self.available_bytes = float(available_bytes)
        super().__init__(self.tensors, tier, self.needed_bytes, self.available_bytes)

    def __str__(self) -> str:
        """Return a sentence with both sizes and what is missing."""
        names = ", ".join(self.tensors) or "the tensors"
        missing = self.needed_bytes - self.available_bytes
        return (
            f"{names} do not fit in {self.tier}: {_size(self.needed_bytes)} needed, "
            f"{_size(self.available_bytes)} available, {_size(missing)} too much"
        )


def unfit(tensors: Sequence[str], tier: str) -> str:
    """Return the reason of a point whose tensors fit in no memory, such as `kv does not fit in x`.

    Tensors of one tier count as one thing, tokens as several.
    """
    verb = "do" if any("tokens" in name for name in tensors) else "does"
    return f"{'+'.join(tensors)} {verb} not fit in {tier}"


def _size(count: float) -> str:
    """Return bytes as GiB, MiB or KiB with four digits (errors can not import units)."""
    for factor, unit in ((2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB")):
        if abs(count) >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count:.4g} B"
