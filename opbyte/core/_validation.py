"""pydantic's verdict on a document, in plain language and with places."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from opbyte.core._document import Document
from opbyte.core._reader import DataPath, dotted
from opbyte.core.errors import ConfigError, Problem, show

__all__ = ["validate"]

Model = TypeVar("Model", bound=BaseModel)


def validate(cls: type[Model], document: Document, at: DataPath = ()) -> Model:
    """Return the part of a document at `at` as a `cls`.

    Raises:
        ConfigError: With every problem that pydantic found, each at its place.
    """
    try:
        return cls.model_validate(document.value(at))
    except ValidationError as error:
        problems = []
        for e in error.errors(include_url=False):
            path = (*at, *e["loc"])
            problems.append(Problem(document.where(path), dotted(path), e["msg"], show(e["input"])))
        raise ConfigError(problems) from None
