"""Evaluated points as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["FAILED", "INFEASIBLE", "OK", "STATUS", "Floats", "Rows", "Words", "in_order", "joined"]

Floats = npt.NDArray[np.float64]

STATUS = ("ok", "infeasible", "failed")
OK, INFEASIBLE, FAILED = range(3)


@dataclass(frozen=True, slots=True)
class Words:
    """A column of texts, each distinct text once.

    Attributes:
        codes: Position of each row's text, (rows,).
        texts: The texts.
    """

    codes: npt.NDArray[np.int32]
    texts: tuple[str, ...]

    @classmethod
    def same(cls, text: str, rows: int) -> Words:
        """Return a column with one text in every row."""
        return cls(np.zeros(rows, dtype=np.int32), (text,))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of the result, column by column.

    Attributes:
        point: Id of each row's point, (rows,).
        numbers: Columns of numbers, SI, (rows,).
        words: Columns of texts.
    """

    point: npt.NDArray[np.int64]
    numbers: dict[str, Floats]
    words: dict[str, Words]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.point)

    def count(self, status: int) -> int:
        """Return the number of rows with a status."""
        column = self.words["status"]
        wanted = [i for i, text in enumerate(column.texts) if text == STATUS[status]]
        return int(np.isin(column.codes, wanted).sum())


def joined(parts: Sequence[Rows]) -> Rows:
    """Return rows with the same columns one after the other."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Rows(
        np.concatenate([p.point for p in parts]),
        {name: np.concatenate([p.numbers[name] for p in parts]) for name in first.numbers},
        {name: _joined_words([p.words[name] for p in parts]) for name in first.words},
    )


def in_order(rows: Rows) -> Rows:
    """Return rows sorted by point, each point once: the first of its rows."""
    if bool(np.all(np.diff(rows.point) > 0)):
        return rows
    point, first = np.unique(rows.point, return_index=True)
    numbers = {name: column[first] for name, column in rows.numbers.items()}
    words = {name: Words(w.codes[first], w.texts) for name, w in rows.words.items()}
    return Rows(point, numbers, words)


def _joined_words(parts: Sequence[Words]) -> Words:
    texts: dict[str, int] = {}
    codes = []
    for part in parts:
        own = np.array([texts.setdefault(t, len(texts)) for t in part.texts], dtype=np.int32)
        codes.append(own[part.codes])
    return Words(np.concatenate(codes), tuple(texts))
