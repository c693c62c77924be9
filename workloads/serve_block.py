"""What the blocks of a serving work have in common: how they are read, and what they refuse."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from opbyte.core.blocks import Block
from opbyte.core.errors import ConfigError, Problem


class ServeBlock(Block):
    """A block whose numbers are no booleans."""

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, given: object, info: ValidationInfo) -> object:
        named = cls.model_fields[info.field_name or ""].annotation
        if isinstance(given, bool) and named in (int, int | None, float):
            rule = "must be a number"
            raise ConfigError.one("", "", rule, given, "write digits")
        return given

    def was_given(self, name: str) -> bool:
        """Return whether a field was given a value, not left out or null."""
        return name in self.model_fields_set and getattr(self, name) is not None


def unused(name: str, value: object, user: str, remedy: str) -> Problem:
    """Return what is wrong with an option that does nothing where it stands."""
    return Problem("", name, f"does nothing here, it is for {user}", value, remedy)


def refuse(problems: list[Problem]) -> None:
    """Raise what is wrong, all at once.

    Raises:
        ConfigError: If anything is.
    """
    if problems:
        raise ConfigError(problems)
