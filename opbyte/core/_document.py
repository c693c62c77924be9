"""A file's data together with the place of every entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opbyte.core._reader import DataPath, Mark

__all__ = ["Document"]


@dataclass(frozen=True, slots=True)
class Document:
    """What a file holds. Treat `data` as constant: aliases share their values.

    Attributes:
        data: The top-level mapping.
        marks: Where each entry stands; paths hold keys and list positions.
        name: What errors call the document, usually the path of its file.
        whole: Whether what it extends was found; what is missing may stand there.
    """

    data: dict[str, Any]
    marks: Mapping[DataPath, Mark]
    name: str
    whole: bool = True

    def mark(self, path: DataPath = ()) -> Mark | None:
        """Return the place of an entry, or of the nearest entry around it."""
        for length in range(len(path), -1, -1):
            mark = self.marks.get(path[:length])
            if mark is not None:
                return mark
        return None

    def where(self, path: DataPath = ()) -> str:
        """Return `file:line:col` of an entry, or of the nearest entry around it."""
        return str(self.mark(path) or self.name)

    def value(self, path: DataPath = ()) -> Any:
        """Return the value at a path.

        Raises:
            KeyError: If there is none.
        """
        found: Any = self.data
        for word in path:
            try:
                found = found[word]
            except (KeyError, IndexError, TypeError):
                raise KeyError(path) from None
        return found
