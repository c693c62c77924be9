"""One parameter behind a published number: its value, source and range."""

from __future__ import annotations

from dataclasses import dataclass

from opbyte.core.units import format_quantity


@dataclass(frozen=True)
class Knob:
    """One parameter behind a point.

    Attributes:
        side: `machine` or `baseline` (hardware), or `workload`.
        name: Short path, or field of the work.
        least: Smallest value that makes sense.
    """

    side: str
    name: str
    value: float
    dimension: str
    source: str
    range: tuple[float, float] | None = None
    least: float = 0.0

    def scaled(self, factor: float) -> float:
        """Return the value times a factor, but no less than makes sense."""
        return max(self.value * factor, self.least)

    def steps(self, part: float) -> tuple[float, float, float, float]:
        """Return the values a part above and below, and those that an assumption may have, too.

        A value of 0 has no part: only its range says whether it matters.
        """
        assumed = self.standing == "assumed" or self.value == 0.0
        ends = self.range if assumed and self.range is not None else (self.value, self.value)
        return self.scaled(1.0 + part), self.scaled(1.0 - part), *ends

    @property
    def path(self) -> str:
        """Return side and name."""
        return f"{self.side}.{self.name}"

    @property
    def standing(self) -> str:
        """Return published, assumed or calibrated."""
        return standing_of(self.source)

    def show(self, value: float) -> str:
        """Return a value with its unit."""
        return format_quantity(value, self.dimension, digits=3)


def standing_of(source: str) -> str:
    """Return published, assumed or calibrated, by how a source begins."""
    word = source.strip().lower()
    if word.startswith("calibrated"):
        return "calibrated"
    if word.startswith(("assumed", "recalled")) or not word:
        return "assumed"
    return "published"
