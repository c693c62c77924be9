"""Sizes of the operators of a table that these units price, read from the table alone."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array, OpTable


def number(values: Array) -> Any:
    """Return one number as a float, which the closed forms take faster."""
    return float(values[0]) if len(values) == 1 else values


def likenesses(table: OpTable) -> list[Hashable]:
    """Return a key of each row that rows of the same place in equal blocks share."""
    keys: list[Hashable] = [None] * len(table)
    for block in range(len(table.blocks)):
        rows = table.rows_of(block)
        if not rows.size:
            continue
        first, last = int(rows[0]), int(rows[-1]) + 1
        sizes = b"".join(column[first:last].tobytes() for column in table.columns.values())
        parts = tuple(table.parts.get(row, ()) for row in range(first, last))
        same = (table.names[first:last], table.labels[first:last], sizes, parts)
        for row in range(first, last):
            keys[row] = (same, row - first)
    return keys


@dataclass(frozen=True)
class Shapes:
    """Sizes of rows; floats or arrays over points.

    Attributes:
        who: Machine and unit, for errors.
    """

    table: OpTable
    who: str

    def of(self, row: int, *names: str) -> list[Any]:
        """Return columns of a row."""
        return [number(self.table[name][row]) for name in names]

    def targets(self, row: int) -> Iterable[int]:
        """Return the rows that read a row."""
        edges = self.table.edges
        return (int(t) for t in edges[edges[:, 0] == row, 1])

    def beside(self, row: int, what: str, wanted: Callable[[int], bool]) -> int:
        """Return the first row of the same block that a test accepts.

        Raises:
            UncoveredError: If there is none.
        """
        block = self.table.block_of[row]
        for other in self.table.rows_of(int(block)):
            if wanted(int(other)):
                return int(other)
        raise UncoveredError(
            f"{self.who}: no model runs '{self.table.names[row]}' of block "
            f"'{self.table.blocks[block]}', which has no {what}. map it to another unit"
        )

    def element(self, row: int) -> float:
        """Return the bytes of an activation."""
        return float(lookup(self.table.dtypes[row]).bytes_per_element)

    def elements(self, row: int) -> Any:
        """Return the activations that a row writes."""
        return number(self.table["out_bytes"][row]) / self.element(row)

    def projections(self, row: int) -> tuple[float, ...]:
        """Return the outputs of query, key and value of a row's block."""
        table = self.table
        found = self.beside(
            row, "query, key and value",
            lambda r: len(table.parts.get(r, ())) == 3 and table.kinds[r] == "gemm",
        )  # fmt: skip
        return table.parts[found]

    def tokens(self, row: int) -> Any:
        """Return the tokens of a row's block."""
        table = self.table
        return number(table["m"][self.beside(row, "product", lambda r: table.kinds[r] == "gemm")])

    def heads(self, row: int) -> tuple[Any, Any, Any, Any, Any]:
        """Return KV heads, query heads of each, head width, cached tokens and sequences.

        Several queries of a sequence see one token more each: the tokens are then (queries, 1).

        Raises:
            UncoveredError: If design points have different numbers of queries.
        """
        table = self.table
        # Of several segments each has a score of its own, by the end of its name.
        end = table.names[row].partition(".")[2]

        def wanted(other: int) -> bool:
            own = table.names[other].partition(".")[2]
            return table.kinds[other] == "score" and own.startswith(end)

        score = self.beside(row, "score", wanted)
        m, n, k, groups, shared, sequences = self.of(
            score, "m", "n", "k", "groups", "heads", "sequences"
        )
        queries = np.unique(np.rint(np.asarray(m / shared)))
        if queries.size > 1:
            raise UncoveredError(
                f"{self.who}: prompts of different lengths can not be design points of one table. "
                "simulate them one by one"
            )
        if queries[0] > 1:
            n = n - np.arange(queries[0])[::-1, None]
        return groups / sequences, shared, k, n, sequences


def summed(values: Any) -> Any:
    """Return the sum over the queries of a sequence, see `Shapes.heads`."""
    return values.sum(axis=0) if np.ndim(values) == 2 else values
