"""A study made executable: axes, links, constraints and designs, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from opbyte.core.config import Document
from opbyte.core.errors import ConfigError
from opbyte.core.problems import Problems
from opbyte.sweeps.axes import PlanAxis
from opbyte.sweeps.constraints import Constraint
from opbyte.sweeps.derive import Link
from opbyte.sweeps.design import Side
from opbyte.sweeps.space import Space, grid_count
from opbyte.sweeps.study import Study, study_name

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """A study with everything resolved.

    Attributes:
        study: As written.
        document: The file.
        side: What designs are built from.
        baseline: The same for the baseline, where there is one.
        kind: Kind of work.
        axes: The axes.
        links: Derived parameters, in an order in which each reads earlier ones only.
        constraints: What points must keep.
        metrics: Columns that the work defines.
        space: The points; None where only a search can choose them.
        slow: Paths of axes whose values need a design of their own.
    """

    study: Study
    document: Document
    side: Side
    baseline: Side | None
    kind: str
    axes: tuple[PlanAxis, ...]
    links: tuple[Link, ...]
    constraints: tuple[Constraint, ...]
    metrics: tuple[str, ...]
    space: Space | None
    slow: frozenset[str]

    @classmethod
    def build(
        cls,
        study: Study,
        document: Document,
        problems: Problems | None = None,
        *,
        trusted: bool = False,
    ) -> Plan:
        """Return the plan of a study.

        Args:
            study: As written.
            document: The file.
            problems: What was found wrong before, and is taken out of the study.
            trusted: Whether it was checked before: designs and points are then not built.

        Raises:
            ConfigError: With every problem of the study.
        """
        from opbyte.sweeps.checks import checked_plan

        return checked_plan(study, document, problems or Problems(), trusted=trusted)

    @property
    def name(self) -> str:
        """Return the name of the folder of results."""
        return study_name(self.study, self.document)

    @cached_property
    def by_path(self) -> dict[str, PlanAxis]:
        """Return the axes by path."""
        return {axis.path: axis for axis in self.axes}

    @property
    def continuous(self) -> bool:
        """Return whether an axis has no list of values."""
        return any(axis.line.size == 0 for axis in self.axes)

    @property
    def grid_points(self) -> int:
        """Return the number of combinations of all values; 0 where an axis is continuous."""
        return 0 if self.continuous else grid_count(tuple(axis.line for axis in self.axes))

    def points(self) -> Space:
        """Return the points.

        Raises:
            ConfigError: If the strategy leaves them to a search.
        """
        if self.space is None:
            where = self.document.where(("strategy",))
            rule = "these axes have no list of points"
            remedy = "Use `opbyte search`, or give every range its steps."
            raise ConfigError.one(where, "strategy", rule, "", remedy)
        return self.space
