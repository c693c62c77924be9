"""What a file or a name means: resolved values, their origins, and totals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opbyte.core.catalog import Catalog, is_path
from opbyte.core.config import Document, load_document, set_values, validate
from opbyte.core.errors import ConfigError, OpbyteError, UncoveredError, show
from opbyte.core.problems import Problems
from opbyte.core.registry import lookup_error
from opbyte.core.units import format_quantity
from opbyte.hw_models.machine import CATALOG, Machine, load_machine
from opbyte.hw_models.machine_file import STRUCTURE
from opbyte.sweeps.console import shown
from opbyte.sweeps.explain_streams import shown_streams, streams
from opbyte.sweeps.study import STUDIES, load_study

__all__ = ["Explained", "explained"]

Table = tuple[str, list[str], list[list[str]]]

#: Parameters whose total over all instances says something.
_SUMMED = ("bytes", "bytes_per_s", "ops_per_s", "watts", "dollars", "area")


@dataclass
class Explained:
    """An explanation.

    Attributes:
        data: The same as plain data, for JSON.
        tables: Title, column heads, rows.
    """

    data: dict[str, Any]
    tables: list[Table] = field(default_factory=list)


def explained(name: str, settings: Mapping[str, Any] | None = None) -> Explained:
    """Return what a file or a catalog name means.

    Args:
        name: A file of any kind, or the name of a machine, model or study.
        settings: Changed values by path.

    Raises:
        ConfigError: If there is no such thing, or the file has mistakes.
    """
    changes = dict(settings or {})
    if not is_path(name):
        return _of_name(name, changes)
    path = Path(name).expanduser()
    if path.is_dir() or (path.suffix == ".json" and path.name == "config.json"):
        return _model(name, changes)
    # What it extends is read with the file itself, and its mistakes are told then.
    document = load_document(path, find=_find, problems=Problems())
    kind = document.data.get("kind")
    if kind is None and not document.whole:
        load_document(path, find=_find)
    if kind == "machine":
        machine = load_machine(path)
        return _machine(machine.replace(_rest(changes)) if changes else machine)
    if kind == "study":
        return _study(name, changes)
    if kind == "experiment":
        return _experiment(name, changes)
    if kind == "model" or "model_type" in document.data:
        return _model(name, changes)
    return _plain(_checked(path, document, changes))


def _checked(path: Path, document: Document, changes: Mapping[str, Any]) -> Document:
    """Return a document of a kind without a table of its own, changed; it is read as its kind is.

    Raises:
        ConfigError: If it is of no kind that is known, or has mistakes.
    """
    from opbyte.sweeps.schema import models

    kind, readers = document.data.get("kind"), _readers()
    known = sorted({"experiment", "machine", "model", "study", *readers, *_TABLES})
    where = document.where(("kind",))
    if kind is None:
        remedy = f"Write one of {', '.join(known)}."
        raise ConfigError.one(where, "", "the key 'kind' is missing", "", remedy)
    if kind not in known:
        error = lookup_error("kind of file", kind if isinstance(kind, str) else show(kind), known)
        raise ConfigError(dataclasses.replace(p, where=where, path="kind") for p in error.problems)
    if kind in readers:
        readers[kind](path)
    document = load_document(path, find=_find)
    if changes:
        document = set_values(document, changes, transparent=())
        if kind in models():
            validate(models()[kind], document)
    return document


#: Tables of which a machine has its own values: only the catalog has whole ones.
_TABLES = ("making", "prices", "site")


def _readers() -> dict[str, Callable[[Path], object]]:
    """Return what reads the other files that users write, by kind."""
    from opbyte.core.mapping import load_mapping
    from opbyte.hw_models.gates import load_gates
    from opbyte.hw_models.memory.cxl_devices import load_cxl
    from opbyte.hw_models.memory.flash_devices import load_flash
    from opbyte.hw_models.memory.standards import Family, load_standard
    from opbyte.sweeps.validation.published import load_published
    from opbyte.workloads.traces.synthetic import synthetic_from

    return {
        "cxl": load_cxl,
        "flash": load_flash,
        "gates": load_gates,
        "mapping": load_mapping,
        "memory": load_standard,
        "memory-family": lambda path: validate(Family, load_document(path)),
        "published": lambda path: load_published(str(path)),
        "trace": lambda path: synthetic_from(load_document(path)),
    }


def _find(name: str) -> Path:
    """Return the file of a catalog name, of whichever catalog has it."""
    from opbyte.hw_models.gates import CATALOG as GATES
    from opbyte.hw_models.memory import cxl_devices, flash_devices, standards
    from opbyte.workloads.model_loader import model_catalog

    devices = (cxl_devices.CATALOG, flash_devices.CATALOG, standards.CATALOG, GATES)
    for catalog in (CATALOG, STUDIES, model_catalog(), *devices):
        if name in catalog.names():
            return catalog.path(name)
    return CATALOG.path(name)


def _of_name(name: str, changes: dict[str, Any]) -> Explained:
    from opbyte.workloads.model_loader import model_catalog

    catalogs: dict[str, Catalog] = {"machine": CATALOG, "study": STUDIES, "model": model_catalog()}
    for kind, catalog in catalogs.items():
        if name in catalog.names():
            if kind == "machine":
                machine = load_machine(name)
                return _machine(machine.replace(_rest(changes)) if changes else machine)
            return _study(name, changes) if kind == "study" else _model(name, changes)
    known = [entry for catalog in catalogs.values() for entry in catalog.names()]
    raise lookup_error("machine, study or model", name, known)


def _rest(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes of a machine; its paths may start with `machine`."""
    return {path.removeprefix("machine."): value for path, value in changes.items()}


# -- machines ------------------------------------------------------------------------------


def _machine(machine: Machine) -> Explained:
    rows, values = [], {}
    marks = _places(machine)
    for path, parameter in machine.parameters.items():
        count = _count(machine, path)
        total = parameter.value * count if parameter.dimension in _SUMMED else None
        where = marks.get(path, "")
        values[path] = {
            "value": parameter.value,
            "text": str(parameter),
            "count": count,
            "total": total,
            "source": parameter.source,
            "range": parameter.range,
            "where": where,
        }
        shown_total = "" if total is None or count == 1 else shown(total, parameter.dimension)
        rows.append([path, str(parameter), str(count), shown_total, parameter.source or "none"])
    totals = _totals(machine)
    memories = streams(machine)
    data = {
        "kind": "machine",
        "name": machine.name,
        "description": machine.config.description,
        "parts": machine.counts,
        "parameters": values,
        "totals": totals,
        "memories": memories,
        "mappings": {
            n: m.model_dump(mode="json", by_alias=True) for n, m in machine.config.mappings.items()
        },
    }
    tables: list[Table] = [
        (machine.name, ["part", "instances"], [[p, str(c)] for p, c in machine.counts.items()]),
        ("Parameters", ["path", "value", "instances", "total", "source"], rows),
        ("Totals", ["what", "value"], [[n, t["text"]] for n, t in totals.items()]),
        ("Mappings", ["name"], [[n] for n in machine.config.mappings]),
    ]
    if memories:
        tables.insert(2, ("Streams at the pins", *shown_streams(memories)))
    return Explained(data, tables)


def _places(machine: Machine) -> dict[str, str]:
    """Return where each parameter is written, by short path."""
    found = {}
    for path in machine.document.marks:
        short = ".".join(str(w) for w in path if w not in STRUCTURE)
        if short in machine.parameters:
            found[short] = machine.document.where(path)
    return found


def _count(machine: Machine, path: str) -> int:
    """Return the instances of the part that a parameter belongs to."""
    parts = [p for p in machine.counts if path.startswith(f"{p}.")]
    return machine.counts[max(parts, key=len)] if parts else 1


def _totals(machine: Machine) -> dict[str, dict[str, Any]]:
    """Return capacity and rates of the whole machine, its area and its price."""
    totals: dict[str, dict[str, Any]] = {}

    def add(name: str, value: float, dimension: str) -> None:
        totals[name] = {"value": value, "text": shown(value, dimension)}

    for path, memory in machine.memories.items():
        add(f"{path} capacity", machine.values[f"{path}.capacity"] * memory.count, "bytes")
        for port in memory.config.ports:
            rate = machine.values.get(f"{path}.{port}.bandwidth")
            if rate is not None:
                add(f"{path}.{port} bandwidth", rate * memory.count, "bytes_per_s")
    for path, unit in machine.units.items():
        for dtype in unit.config.peak:
            add(
                f"{path} peak {dtype}",
                machine.values[f"{path}.peak.{dtype}"] * unit.count,
                "ops_per_s",
            )
    return totals | _costs(machine)


def _costs(machine: Machine) -> dict[str, dict[str, Any]]:
    from opbyte.hw_models.cost import (
        machine_area_m2,
        machine_carbon_kg,
        machine_power_w,
        machine_price_usd,
    )

    found: dict[str, dict[str, Any]] = {}
    for name, dimension, cost in (
        ("area", "area", machine_area_m2),
        ("price", "dollars", machine_price_usd),
        ("carbon", "kilograms", machine_carbon_kg),
        ("design power", "watts", machine_power_w),
    ):
        try:
            value = float(cost(machine, machine.values))
            found[name] = {"value": value, "text": format_quantity(value, dimension, digits=5)}
        except UncoveredError as error:
            found[name] = {"value": None, "text": f"unknown: {error}"}
    return found


# -- models, studies, experiments ------------------------------------------------------------


def _model(name: str, changes: Mapping[str, Any]) -> Explained:
    from opbyte.workloads.model_loader import load_model

    if changes:
        raise ConfigError.one("--set", "", "a model is explained as it is", next(iter(changes)))
    model = load_model(name)
    numbers = {
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "weight_bytes": model.weight_bytes,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "max_context": model.max_context or 0,
        "hidden": model.hidden,
    }
    rows = [[n, shown(v, "bytes" if "bytes" in n else None)] for n, v in numbers.items()]
    stored = {k: v for k, v in dataclasses.asdict(model.precision).items() if v}
    rows += [["precision", ", ".join(f"{k} {v}" for k, v in stored.items())]]
    data = {"kind": "model", "name": model.name, **numbers, "precision": str(model.precision)}
    return Explained(data, [(model.name, ["what", "value"], rows)])


def _study(name: str, changes: Mapping[str, Any]) -> Explained:
    from opbyte.sweeps.keys import resolved

    plan = load_study(name, changes).plan
    axes: list[dict[str, Any]] = []
    for axis in plan.axes:
        dimension = axis.target.dimension
        if axis.numbers is not None:
            values = [shown(v, dimension) for v in axis.numbers.tolist()]
        elif axis.written is not None:
            values = list(axis.texts)
        else:
            values = [f"{shown(axis.line.low, dimension)} .. {shown(axis.line.high, dimension)}"]
        vector = axis.target.numeric and axis.path not in plan.slow
        axes.append({"path": axis.path, "values": values, "vectorised": vector})
    count = plan.space.count if plan.space is not None else None
    links = {link.target.path: link.expression.text for link in plan.links}
    data: dict[str, Any] = {
        "kind": "study", "name": plan.name, "points": count, "work": plan.kind, "axes": axes,
        "derive": links, "objectives": dict(plan.study.objectives),
        "constraints": [c.text for c in plan.constraints], "metrics": list(plan.metrics),
        "resolved": resolved(plan),
    }  # fmt: skip
    rows = [
        [
            str(a["path"]),
            str(len(a["values"])),
            _few(a["values"]),
            "array" if a["vectorised"] else "one by one",
        ]
        for a in axes
    ]
    about = [
        ["points", "as many as asked for" if count is None else f"{count:,}"],
        ["work", plan.kind],
        ["fidelity", plan.study.fidelity],
        ["machines", ", ".join(data["resolved"]["machines"])],
        *[["derive", f"{path} = {text}"] for path, text in links.items()],
        *[["objective", f"{d} {n}"] for n, d in plan.study.objectives.items()],
        *[["constraint", c.text] for c in plan.constraints],
    ]
    tables: list[Table] = [
        (plan.name, ["what", "value"], about),
        ("Axes", ["path", "values", "", "evaluated as"], rows),
    ]
    return Explained(data, tables)


def _few(values: list[str]) -> str:
    return ", ".join(values if len(values) <= 8 else [*values[:3], "..", *values[-2:]])


def _experiment(name: str, changes: Mapping[str, Any]) -> Explained:
    from opbyte.sweeps.experiment import load_experiment

    loaded = load_experiment(name, changes)
    found = _machine(loaded.design.machine)
    written = {k: v for k, v in loaded.config.items() if k != "machines"}
    data = {"kind": "experiment", "experiment": written, "machine": found.data}
    data["mapping"] = loaded.design.mapping.model_dump(mode="json", by_alias=True)
    rows = [[str(key), str(value)] for key, value in written.items()]
    return Explained(data, [("Experiment", ["key", "value"], rows), *found.tables])


def _plain(document: Document) -> Explained:
    """Return a file of another kind as it is read, with the place of each value."""
    rows = []
    for path, mark in document.marks.items():
        try:
            value = document.value(path)
        except (KeyError, OpbyteError):
            continue
        if path and not isinstance(value, (dict, list)):
            rows.append([".".join(map(str, path)), str(value), str(mark)])
    data = {"kind": document.data.get("kind"), "data": document.data}
    return Explained(data, [(document.name, ["path", "value", "where"], rows)])
