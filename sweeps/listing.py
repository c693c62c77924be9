"""What ships with opbyte, a line each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from opbyte.core.config import load_document
from opbyte.core.errors import OpbyteError
from opbyte.core.registry import lookup_error
from opbyte.sweeps.console import counted

__all__ = ["KINDS", "listed"]

Entries = list[dict[str, str]]


def listed(kind: str | None = None) -> dict[str, Entries]:
    """Return name and description of every entry, by kind.

    Raises:
        ConfigError: For an unknown kind, with the nearest.
    """
    if kind is None:
        return {name: entries() for name, entries in KINDS.items()}
    plural = kind if kind in KINDS else f"{kind}s"
    plural = {"study": "studies", "memory": "memories"}.get(kind, plural)
    if plural not in KINDS:
        raise lookup_error("kind of entry", kind, KINDS)
    return {plural: KINDS[plural]()}


def _devices(module: str, catalog: str = "CATALOG") -> Callable[[], Entries]:
    """Return what lists a catalog of a module, imported when asked."""

    def entries() -> Entries:
        found = getattr(import_module(f"opbyte.hw_models.{module}"), catalog)
        return _files(found, lambda data: str(data.get("description", "")))

    return entries


def _models() -> Entries:
    from opbyte.workloads.model_loader import load_model, model_catalog

    entries = []
    for name in model_catalog().names():
        try:
            model = load_model(name)
            about = f"{_billions(model.parameters)} parameters"
            if model.active_parameters != model.parameters:
                about += f", {_billions(model.active_parameters)} active"
        except OpbyteError as error:
            about = str(error)
        entries.append({"name": name, "about": about})
    return entries


def _billions(count: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count / 1e6:.3g} M"


def _studies() -> Entries:
    from opbyte.sweeps.study import STUDIES

    return _files(STUDIES, lambda data: str(data.get("description", "")))


def _files(catalog: Any, about: Callable[[dict[str, Any]], str]) -> Entries:
    entries = []
    for name in catalog.names():
        data = load_document(catalog.path(name), find=catalog.path).data
        entries.append({"name": name, "about": " ".join(about(data).split())})
    return entries


def _works() -> Entries:
    from opbyte.sim.metrics import metrics_of
    from opbyte.workloads.works import WORKS

    entries = []
    for name in WORKS.names():
        cls = WORKS.lookup(name)
        first = (cls.__doc__ or "").strip().partition("\n")[0]
        own = ", ".join(m for m in metrics_of(name) if m in cls.metrics)
        about = f"{first} Own metrics: {own}." if own else first
        entries.append({"name": name, "about": about})
    return entries


def _dtypes() -> Entries:
    from opbyte.core.dtypes import DTYPES

    return [
        {"name": d.name, "about": f"{d.bits_per_element:g} bits per element; {d.source}"}
        for d in DTYPES.values()
    ]


def _traces() -> Entries:
    from opbyte.workloads.traces.load import load_trace, samples

    entries = []
    for name in samples():
        trace = load_trace(name)
        tokens = f"{trace.input_tokens.mean():,.0f} + {trace.output_tokens.mean():,.0f}"
        requests = counted(len(trace), "request")
        about = f"{requests}, {trace.rate:.2g}/s, {tokens} tokens on average; made up"
        entries.append({"name": name, "about": about})
    return entries


def _formats() -> Entries:
    from opbyte.workloads.traces import FORMATS

    entries = []
    for name in FORMATS.names():
        entry = FORMATS.lookup(name)
        entries.append({"name": name, "about": f"{entry.about}: {', '.join(entry.needs)}"})
    return entries


def _schedulers() -> Entries:
    from opbyte.sim.serving.schedulers import SCHEDULERS

    entries = [
        {"name": "static", "about": "Continuous batching that starts only when none runs."},
        {"name": "chunked", "about": "Continuous batching with a small budget of tokens."},
    ]
    for name in SCHEDULERS.names():
        about = (SCHEDULERS.lookup(name).__doc__ or "").strip().partition("\n")[0]
        entries.append({"name": name, "about": about})
    return sorted(entries, key=lambda entry: entry["name"])


KINDS: dict[str, Callable[[], Entries]] = {
    "machines": _devices("machine"),
    "models": _models,
    "memories": _devices("memory.standards"),
    "flash": _devices("memory.flash_devices"),
    "cxl": _devices("memory.cxl_devices"),
    "gates": _devices("gates"),
    "sites": _devices("tables", "SITES"),
    "prices": _devices("tables", "PRICES"),
    "studies": _studies,
    "works": _works,
    "dtypes": _dtypes,
    "traces": _traces,
    "formats": _formats,
    "schedulers": _schedulers,
}
