"""Stored points as designs again: machine, work and mapping with the values of a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.catalog import is_path
from opbyte.core.config import Document, validate
from opbyte.core.errors import ConfigError
from opbyte.sweeps.design import Design
from opbyte.sweeps.plan import Plan
from opbyte.sweeps.store import Results
from opbyte.sweeps.study import Study
from opbyte.sweeps.targets import parameter_path

__all__ = ["StoredDesigns", "StoredPoint", "stored_plan"]


@dataclass(frozen=True)
class StoredPoint:
    """A stored point.

    Attributes:
        design: Machine, work and mapping of its structure.
        values: The machine's numbers that the point or its derived parameters set, by short path.
        fields: The work's numbers.
    """

    design: Design
    values: Mapping[str, float]
    fields: Mapping[str, float]

    @property
    def work(self) -> Any:
        """Return the work with the point's numbers."""
        fields: dict[str, Any] = dict(self.fields)
        return dataclasses.replace(self.design.work, **fields)


def stored_plan(results: Results) -> Plan:
    """Return the plan of the study that results are of, machines of files as they were read then.

    Raises:
        ConfigError: If it can not be read again, such as a file that is gone.
    """
    stored = results.meta["study"]
    machines = stored.get("machines") or {}
    study = {k: v for k, v in stored.items() if k not in ("machines", "files")}
    for key, prefix in (("base", ""), ("baseline", "baseline ")):
        part = study.get(key) or {}
        source = part.get("machine")
        data = machines.get(f"{prefix}{source}")
        if isinstance(source, str) and is_path(source) and isinstance(data, Mapping):
            study[key] = {**part, "machine": data}
    data = {"name": results.name, **study, "kind": "study"}
    document = Document(data, {}, str(results.folder / "study.json"))
    return Plan.build(validate(Study, document), document, trusted=True)


class StoredDesigns:
    """Builds the designs of stored points; each structure is built once."""

    def __init__(self, results: Results) -> None:
        """Read the study that the results belong to.

        Raises:
            ConfigError: If it can not be read again, such as a file that is gone.
        """
        self.plan = stored_plan(results)
        self._built: dict[str, Design] = {}

    def point(self, columns: Mapping[str, Any], row: int) -> StoredPoint:
        """Return the design of a row of the stored columns.

        Raises:
            ConfigError: If a value is none of its axis.
        """
        choice: dict[str, Any] = {}
        numbers: dict[str, float] = {}
        for axis in self.plan.axes:
            value = columns[axis.path][row]
            try:
                if axis.target.numeric:
                    if np.isfinite(value):
                        numbers[axis.target.key] = float(value)
                # The cell of an axis that means nothing here is empty: "", or NaN of a count.
                elif value != "" and value == value:
                    choice[axis.path] = self._written(axis, value)
            except (TypeError, ValueError):
                place, rule = self.plan.document.name, "a stored value is none of its axis"
                remedy = "Run the study again with --fresh."
                raise ConfigError.one(place, axis.path, rule, value, remedy) from None
        for link in self.plan.links:
            value = float(columns[link.target.path][row])
            if not np.isfinite(value):
                continue
            if link.target.numeric:
                numbers[link.target.key] = value
            else:
                choice[link.target.path] = int(value) if value == int(value) else value
        design = self._design(choice, numbers)
        targets = [*(a.target for a in self.plan.axes), *(k.target for k in self.plan.links)]
        names = {t.key: t.name for t in targets}
        return StoredPoint(
            design,
            {
                parameter_path(design.machine, names[k]) or k.partition(".")[2]: v
                for k, v in numbers.items()
                if k.startswith("machine.")
            },
            {k.partition(".")[2]: v for k, v in numbers.items() if k.startswith("workload.")},
        )

    def _written(self, axis: Any, value: Any) -> Any:
        """Return an axis's value as the file wrote it."""
        if axis.numbers is not None:
            return axis.written[int(np.argmin(np.abs(axis.numbers - float(value))))]
        return axis.written[axis.texts.index(str(value))]

    def _design(self, choice: Mapping[str, Any], numbers: Mapping[str, float]) -> Design:
        fields = {f"workload.{k.partition('.')[2]}" for k in numbers if k.startswith("workload.")}
        key = repr((sorted(choice.items(), key=str), sorted(fields)))
        if key not in self._built:
            # Works need their fields to be built; any point's own are as good as another's.
            given = {k: v for k, v in numbers.items() if k in fields}
            self._built[key] = self.plan.side.build({**given, **choice})
        return self._built[key]
