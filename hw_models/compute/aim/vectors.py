"""What a device's controller does to vectors, with the help of the channels that hold them.

Norms, rotations, the softmax and activations are products of vectors: the controller writes both
factors to two banks of each bank group with plain accesses of a column, the banks multiply them
into a third, and the controller reads the result. Plain accesses of all channels of a device take
turns, one for every `issue` clocks; so do the controller's own units: stages that share a device
wait for each other there, but not for what channels do by themselves.

The controller's units take `lanes` elements each. A pipeline of U of them needs 2 U + 2 clocks for
a sum of U vectors, and U + exponent + 1 for their exponentials.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.hw_models.compute.aim.channels import Channels
from opbyte.hw_models.compute.aim.commands import NONE, Commands
from opbyte.hw_models.compute.aim.products import matrix, of_program
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.pim.products import up
from opbyte.hw_models.compute.pim.stages import Stage


@dataclass(frozen=True)
class Task:
    """One operator of the controller.

    Attributes:
        own: Commands that channels follow by themselves.
        shared: Plain accesses; their clocks are the device's.
        cycles: Clocks of the controller's own units.
        seconds: What else it waits for.
    """

    own: Commands = NONE
    shared: Commands = NONE
    cycles: Any = 0.0
    seconds: Any = 0.0

    def __add__(self, other: Task) -> Task:
        """Return both, one after the other."""
        return Task(
            self.own + other.own,
            self.shared + other.shared,
            self.cycles + other.cycles,
            self.seconds + other.seconds,
        )

    def times(self, times: Any) -> Task:
        """Return the same a number of times."""
        return Task(
            self.own.times(times),
            self.shared.times(times),
            self.cycles * times,
            self.seconds * times,
        )


@dataclass(frozen=True)
class Controller:
    """A device's controller and the channels of one stage.

    Attributes:
        unit: Unit of kind `pnm`.
    """

    channels: Channels
    unit: UnitView

    def get(self, name: str) -> Any:
        """Return a value of the `pnm` block."""
        return self.unit.get(f"pnm.{name}")

    @property
    def group(self) -> Any:
        """Return the banks of a bank group: one of them holds a vector of a product."""
        return self.channels.device.banks

    # -- steps -----------------------------------------------------------------------------

    def plain(self, count: Any, word: str, banks: Any) -> Task:
        """Return plain accesses of a column, `RD` or `WR`, which open a row of some banks."""
        c = self.channels
        wait = c.get("cl") + c.get("burst") if word == "RD" else 0.0
        counts = {word: count, "PRE": banks, "ACT": banks}
        return Task(shared=Commands(count * self.get("issue"), 0.0, counts), own=Commands(wait))

    def factors(self, elements: Any, among: Any, times: int = 1) -> Task:
        """Return a vector written to one of `among` banks, all over the stage."""
        columns, banks = self._spread(elements, among)
        return self.plain(columns * banks, "WR", banks).times(float(times))

    def result(self, elements: Any) -> Task:
        """Return a product read from one bank of each bank group."""
        columns, banks = self._spread(elements, self.group)
        return self.plain(columns * banks, "RD", banks)

    def _spread(self, elements: Any, among: Any) -> tuple[Any, Any]:
        """Return the columns in each bank and the banks of a vector in one of `among` banks."""
        c = self.channels
        each = up(elements / (c.banks / among))
        banks = up(elements / np.maximum(each, 1.0))
        return up(each / c.elements), banks

    def product(self, elements: Any) -> Task:
        """Return the element-wise product of two vectors that are in place."""
        columns, _ = self._spread(elements, self.group)
        return Task(own=self.channels.multiply(columns, self.channels.span))

    def copy(self, elements: Any, *, elsewhere: bool) -> Task:
        """Return a product copied to where it is a factor."""
        columns, _ = self._spread(elements, self.group)
        c = self.channels
        return Task(own=c.copies(columns, c.span, elsewhere=elsewhere))

    def squares(self, elements: Any) -> Task:
        """Return the sums of products of two neighbouring banks, read from their units."""
        c = self.channels
        columns, _ = self._spread(elements, 2.0)
        program = [(1.0, [Stage(moves={"bias": 1.0}), Stage(columns, columns)])]
        program.append((1.0, [Stage(moves={"read": 1.0})]))
        return Task(own=of_program(c, program, c.span))

    # -- the controller's units ------------------------------------------------------------

    def sums(self, elements: Any) -> Any:
        """Return the clocks of sums of so many elements with others."""
        units = self.get("engines")
        return elements / (self.get("lanes") * units) * (2.0 * units + 2.0)

    def exponentials(self, elements: Any) -> Any:
        """Return the clocks of so many exponentials."""
        units = self.get("engines")
        return elements / (self.get("lanes") * units) * (units + self.get("exponent") + 1.0)

    # -- operators -------------------------------------------------------------------------

    def norm(self, width: Any) -> Task:
        """Return the norm of a vector: its squares, 1/root times it, times the gains."""
        c = self.channels
        # Each unit of a channel has added up its banks' products: that many are left.
        left = width / c.device.all_banks
        cycles = self.sums(left) + 3.0 + self.get("root")
        task = (
            self.factors(width, 2.0, 2) + self.squares(width) + self.factors(width, self.group, 2)
        )
        task = task + self.product(width) + self.copy(width, elsewhere=True) + self.product(width)
        return task + self.result(width) + Task(cycles=cycles)

    def rotary(self, query: Any, key: Any) -> Task:
        """Return the rotation of a query and a key: pairs of elements times pairs of sines."""
        c = self.channels
        task = Task(cycles=(query + key) * self.get("rotate") / self.get("cores"))
        heads = query / key
        for elements, share in ((query, 1.0), (key, heads)):
            each = up(query / (c.banks / self.group))
            banks = up(query / each)
            columns = up(np.floor(each / share) * 2.0 / c.elements)
            access = self.plain(columns * banks, "WR", banks)
            # The simulator lets every channel multiply the whole vector.
            wide = elements / c.elements if c.artifact else columns
            task = task + access.times(2.0) + Task(own=c.multiply(wide, c.span))
        return task

    def append(self, heads: Any, width: Any) -> Task:
        """Return the writing of one token's keys, in one bank, and values, an element a bank."""
        c, d = self.channels, self.channels.device
        rows = up(heads * width / c.row)
        columns = up(np.minimum(heads * width, c.row) / c.elements)
        opened = d.rp + c.get("rcd_write")
        # All of a row go to one bank: while it works, accesses to other devices' stages go on as
        # far as its queue takes them.
        issued = opened + (columns - np.minimum(columns, self.get("queue"))) * c.get("burst")
        alone = (opened + columns * c.get("burst") + c.recovery) / float(c.guests)
        keys = Commands(
            rows * np.maximum(np.maximum(issued, alone), columns * self.get("issue")), 0.0,
            {"WR": rows * columns, "PRE": rows, "ACT": rows},
        )  # fmt: skip
        turns = up(width / d.all_banks)
        each = up(heads / c.span)
        value = c.get("rcd_write") + c.recovery + d.rp
        counts = dict.fromkeys(("WRA16", "ACT16"), heads * turns)
        values = Commands(each * turns * value, 0.0, counts, heads * turns)
        return Task(own=values, shared=keys)

    def softmax(self, heads: Any, tokens: Any) -> Task:
        """Return the softmax of one query's scores.

        Scores and factors are written, multiplied and read, before and after the exponentials.
        """
        c = self.channels
        rows, full = up(tokens / c.row), up(c.row / c.elements)
        last = up((tokens - (rows - 1.0) * c.row) / c.elements)
        columns = (rows - 1.0) * full + last
        access = columns * heads
        each = up(heads / (c.span * c.device.bank_groups))
        multiply = c.multiply(full, c.span).times(rows - 1.0) + c.multiply(last, c.span)
        one = self.plain(access, "WR", rows * heads).times(2.0) + Task(own=multiply.times(each))
        one = one + self.plain(access, "RD", rows * heads)
        cycles = self.exponentials(tokens * heads) + self.sums(tokens * heads)
        # The sum of a head on a unit, then its inverse on a core, with what it reads and writes.
        cycles = cycles + heads * (2.0 + self.get("lanes") + 2.0 / self.get("cores"))
        return one.times(2.0) + Task(cycles=cycles)

    def activation(self, width: Any) -> Task:
        """Return x times its function times y: two products, of as many rows as they take."""
        c = self.channels
        most = c.banks / self.group * c.row
        pieces: Iterable[Any] = (np.minimum(width, most), np.maximum(width - most, 0.0))
        several = bool(np.any(np.asarray(width) > most))
        total = Task()
        for piece in pieces if several else (width,):
            task = self.factors(piece, self.group, 3) + self.product(piece).times(2.0)
            total = total + task + self.copy(piece, elsewhere=several) + self.result(piece)
        return total

    def add(self, elements: Any) -> Task:
        """Return a sum of two vectors in the controller; the simulator has it for nothing."""
        return Task(cycles=0.0 if self.channels.artifact else self.sums(elements))

    def look_up(self, width: Any, vocabulary: Any) -> Task:
        """Return a token's vector: read from its bank.

        The simulator multiplies the whole table with a vector of one 1.
        """
        c = self.channels
        if c.artifact:
            return Task(own=matrix(c, width, vocabulary))
        columns = up(width / c.elements)
        return self.plain(columns, "RD", up(width / c.row))
