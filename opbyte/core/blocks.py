"""What the blocks of all files have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

__all__ = ["Block", "Words"]


class Block(BaseModel):
    """A block of a file: unknown keys are mistakes, and docstrings describe the fields."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        use_attribute_docstrings=True,
    )


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


#: One word, or a list of them.
Words = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
