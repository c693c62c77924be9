"""Commands of the channels of one pipeline stage: clocks, and how many of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Commands:
    """What some channels do side by side; numbers are floats or arrays over points.

    Attributes:
        clocks: Clocks of the slowest channel.
        shut: Of them, those in which its rows are shut.
        counts: Commands of all channels, by name. `MAC16`, `ACT16`, `PREA` and the like go to all
            banks of a channel, `ACT`, `PRE`, `RD`, `WR`, `RDCP` and `WRCP` to one.
        instructions: Instructions of the controller.
    """

    clocks: Any = 0.0
    shut: Any = 0.0
    counts: Mapping[str, Any] = field(default_factory=dict)
    instructions: Any = 0.0

    def __add__(self, other: Commands) -> Commands:
        """Return both, one after the other."""
        counts = dict(self.counts)
        for name, count in other.counts.items():
            counts[name] = counts.get(name, 0.0) + count
        return Commands(
            self.clocks + other.clocks,
            self.shut + other.shut,
            counts,
            self.instructions + other.instructions,
        )

    def times(self, times: Any) -> Commands:
        """Return the same a number of times."""
        counts = {name: times * count for name, count in self.counts.items()}
        return Commands(times * self.clocks, times * self.shut, counts, times * self.instructions)

    def beside(self, others: Any) -> Commands:
        """Return the same in so many devices at once."""
        more = self.times(others)
        return Commands(self.clocks, self.shut, more.counts, more.instructions)


NONE = Commands()
