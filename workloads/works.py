"""Works as files write them: `{kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from opbyte.core.config import Document, validate
from opbyte.core.errors import ConfigError, OpbyteError, Problem, WorkloadError, show
from opbyte.core.problems import Problems, problems_of
from opbyte.core.registry import lookup_error, nearest
from opbyte.core.units import parse
from opbyte.workloads import (
    attention_calls,
    coe,
    collective_calls,
    continuous,
    fft,
    latent_calls,
    moe_calls,
    op_trace,
    phases,
    serve,
    speculative,
    stream,
    train,
    vector_calls,
)
from opbyte.workloads.model import Model
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.model_set import ModelSet
from opbyte.workloads.precision import Precision
from opbyte.workloads.routing import routing_of
from opbyte.workloads.speculation import Speculation
from opbyte.workloads.traces.synthetic import synthetic_from
from opbyte.workloads.work import WORKS, Work

__all__ = ["WORKS", "Work", "work_from"]

#: Modules whose import registers the works that ship with opbyte.
REGISTERED = (
    attention_calls,
    coe,
    collective_calls,
    continuous,
    fft,
    latent_calls,
    moe_calls,
    op_trace,
    phases,
    serve,
    speculative,
    stream,
    train,
    vector_calls,
)

_ANYWHERE = ("kind", "source", "precision")
_PROVENANCE = ("value", "source", "range")
#: Fields that are lists of pairs, and what a pair is.
_PAIRS = {"chunks": "[new, past]", "contexts": "[sequences, context]"}
_Path = tuple[Any, ...]


def work_from(document: Document | Mapping[str, Any], at: _Path = ()) -> Work:
    """Return the work that a mapping describes.

    Keys are `kind` and that work's fields; `precision` ({weight: int4, kv: fp8}) stores its models
    otherwise. Any value may be `{value, source, range}`; `source` beside the fields covers those
    that have none of their own. Classes with a `from_document(document, at)` of their own read
    themselves.

    Args:
        document: A document, or a bare mapping.
        at: Where in the document the work stands.

    Raises:
        ConfigError: For an unknown kind, unknown or missing keys, and values that can not be read
            or make no sense; all at once, with the nearest name.
        WorkloadError: If values make no sense together, and nothing else is wrong.
    """
    if not isinstance(document, Document):
        document = Document(dict(document), {}, "work")
    data = document.value(at)
    where = document.where(at)
    dotted = ".".join(map(str, at))
    if not isinstance(data, Mapping):
        raise ConfigError.one(where, dotted, "a work must be a mapping", data, _example())
    kind = data.get("kind")
    if not isinstance(kind, str):
        known = f"Known: {', '.join(WORKS.names())}."
        raise ConfigError.one(where, dotted, "a work needs a kind", "", f"{_example()} {known}")
    if kind not in WORKS:
        raise lookup_error("kind of work", kind, WORKS.names(), document.where((*at, "kind")))
    cls = WORKS.lookup(kind)
    own: Callable[..., Work] | None = getattr(cls, "from_document", None)
    if own is not None:
        return own(document, at)
    return _Reading(document, at, cls, _flattened(cls, data)).work()


def _flattened(cls: type[Work], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data with fields that stand inside another field beside it."""
    flat = dict(data)
    for outer, names in cls.nested.items():
        inner = flat.get(outer)
        if isinstance(inner, Mapping):
            lifted = {name: inner[name] for name in names if name in inner and name not in flat}
            flat[outer] = {key: value for key, value in inner.items() if key not in lifted}
            flat |= lifted
    return flat


def _example() -> str:
    return "Write for example {kind: decode, model: llama-3.1-8b, batch: 1, context: 4096}."


@dataclass(slots=True)
class _Reading:
    """One work being read: collects problems, sources and ranges as it goes."""

    document: Document
    at: _Path
    cls: type[Work]
    data: Mapping[str, Any]
    problems: Problems = field(default_factory=Problems)
    sources: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def work(self) -> Work:
        """Return the work; what its fields say together is judged where each could be read."""
        own = [f for f in fields(self.cls) if f.name not in ("sources", "ranges")]
        known = [*(f.name for f in own), *_ANYWHERE]
        needed = {f.name for f in own if f.default is MISSING and f.default_factory is MISSING}
        unread = set[str | None]()
        for key in self.data:
            if key not in known:
                near = nearest(str(key), known)
                unread |= {near} - self.data.keys()
                guess = f"Did you mean {near!r}? " if near else ""
                rule = f"a {self.cls.kind} work has no key {show(key)}"
                self._problem((key,), rule, remedy=f"{guess}Known: {', '.join(known)}.")
        for name in (f.name for f in own if f.name in needed - self.data.keys() - unread):
            self._problem((), f"a {self.cls.kind} work needs the key {name!r}")
            unread.add(name)
        values = {}
        for name in (f.name for f in own if f.name in self.data):
            before = len(self.problems)
            values[name] = self._field(name, self.data[name])
            if len(self.problems) > before:
                unread.add(name)
        values = self._stored(values)
        if unread - {None}:
            self.problems.tell()
        return self._whole(values)

    def _whole(self, values: dict[str, Any]) -> Work:
        """Return the work that its fields make.

        Raises:
            ConfigError: With what is wrong with them together, and all that was found before.
            WorkloadError: If they make no sense and all else is right.
        """
        source = self.data.get("source")
        sources = dict.fromkeys(values, str(source)) if source is not None else {}
        try:
            work = self.cls(**values, sources={**sources, **self.sources}, ranges=self.ranges)
        except ConfigError as error:
            self.problems.add(self._placed(p) for p in error.problems)
        except WorkloadError as error:
            if not self.problems:
                raise WorkloadError(f"{self.document.where(self.at)}: {error}") from None
            self._problem((), str(error))
        self.problems.tell()
        return work

    def _placed(self, problem: Problem) -> Problem:
        """Return a problem of the whole work at the field whose text it quotes."""
        if problem.where:
            return problem
        texts = [n for n, v in self.data.items() if isinstance(v, str) and n != "kind"]
        path = (*self.at, *[n for n in texts if repr(self.data[n]) in problem.rule][:1])
        where, dotted = self.document.where(path), ".".join(map(str, path))
        return Problem(where, dotted, problem.rule, problem.value, problem.remedy)

    def _problem(self, path: _Path, rule: str, value: object = "", remedy: str = "") -> None:
        full = (*self.at, *path)
        dotted = ".".join(map(str, full))
        self.problems.add([Problem(self.document.where(full), dotted, rule, value, remedy)])

    def _field(self, name: str, raw: object) -> Any:
        """Return a field's value; note its source and range where it has them."""
        path: _Path = (name,)
        if isinstance(raw, Mapping) and "value" in raw:
            raw = self._provenance(name, raw)
            path = (name, "value")
        full = (*self.at, *path)
        try:
            block = self.cls.blocks.get(name)
            if block is not None and isinstance(raw, Mapping):
                raw = validate(block, self.document, full)
            elif self._due(name) == "RequestTrace" and isinstance(raw, Mapping):
                raw = synthetic_from(self.document, full)
            return self.cls.checked_field(name, self._read(name, raw))
        except OpbyteError as error:
            own = ".".join(map(str, full))
            # A file that is not there has no place but that of its name.
            named = {raw, str(self._file(raw))} if isinstance(raw, str) else set()
            for p in problems_of(error):
                value = p.value or (raw if p.where in named else "")
                # What stands inside the field has its whole path.
                inside = p.path if p.path.startswith(own) else ".".join(filter(None, (own, p.path)))
                where = self.document.where(full) if p.where in {"", *named} else p.where
                self.problems.add([Problem(where, inside, p.rule, value, p.remedy)])
        return None

    def _provenance(self, name: str, raw: Mapping[str, Any]) -> object:
        for key in raw:
            if key not in _PROVENANCE:
                known = f"Known: {', '.join(_PROVENANCE)}."
                self._problem((name, key), f"a value has no key {show(key)}", remedy=known)
        if raw.get("source") is not None:
            self.sources[name] = str(raw["source"])
        limits = raw.get("range")
        if limits is not None:
            try:
                low, high = (float(_number(x)) for x in limits)
            except (TypeError, ValueError):
                self._problem((name, "range"), "a range is [lowest, highest]", limits)
            else:
                if low > high:
                    self._problem((name, "range"), "a range is [lowest, highest]", limits)
                self.ranges[name] = (low, high)
        return raw["value"]

    def _read(self, name: str, raw: object) -> Any:
        """Return a field's value, read as its annotation says."""
        own = self._due(name)
        if own == "Model":
            return _model(raw)
        if "ModelSet" in own:
            return _experts(raw)
        if own == "Routing":
            return routing_of(raw)
        if "Path" in own:
            return self._file(raw)
        if own == "RequestTrace" and isinstance(raw, str):
            beside = self._file(raw)
            return beside if beside.is_file() else raw
        if name in self.cls.vector_fields or name == "skew":
            if name in self.cls.fills and raw == "max":
                return raw
            return [_number(x) for x in raw] if isinstance(raw, list) else _number(raw)
        if name in _PAIRS:
            return _pairs(name, raw)
        return raw

    def _due(self, name: str) -> str:
        return str(self.cls.__dataclass_fields__[name].type)

    def _file(self, raw: object) -> Path:
        """Return a path, relative to the document's folder."""
        if not isinstance(raw, str):
            raise ConfigError.one(rule="a path is due", value=raw)
        path = Path(raw).expanduser()
        folder = Path(self.document.name).parent
        beside = folder / path
        return beside if not path.is_absolute() and beside.exists() else path

    def _stored(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values with all models stored as `precision` says."""
        wanted = self.data.get("precision")
        if wanted is None:
            return values
        if not isinstance(wanted, Mapping):
            example = "Write for example {weight: int4, kv: fp8}."
            self._problem(("precision",), "a mapping is due", wanted, example)
            return values
        try:
            Precision().override(**wanted)
        except ConfigError as error:
            for p in error.problems:
                self._problem(("precision", p.path), p.rule, p.value, p.remedy)
            return values
        for name, value in values.items():
            if isinstance(value, Model):
                values[name] = value.with_precision(**wanted)
            elif isinstance(value, Speculation) and value.draft is not None:
                draft = value.draft.with_precision(**wanted)
                values[name] = value.model_copy(update={"draft": draft})
            elif isinstance(value, ModelSet):
                stored = value.model.with_precision(**wanted)
                values[name] = ModelSet(stored, value.count)
        return values


def _number(raw: object) -> float:
    """Return a count as a number; texts such as `4096` and `1e6` are read."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise ConfigError.one(rule="a number is due", value=raw)
    return parse(raw, "count")


def _model(raw: object) -> Model:
    if not isinstance(raw, str | Path | Mapping | Model):
        raise ConfigError.one(rule="a model is due", value=raw, remedy="Name one of the catalog.")
    return load_model(raw)


def _experts(raw: object) -> Model | ModelSet:
    """Return a model, or of `{model, count}` a set of them."""
    if isinstance(raw, ModelSet):
        return raw
    if isinstance(raw, Mapping) and "model" in raw and "count" in raw:
        for key in raw:
            if key not in ("model", "count"):
                raise ConfigError.one(
                    rule=f"a set of experts has no key {show(key)}", remedy="Known: model, count."
                )
        count = raw["count"]
        several = [_number(x) for x in count] if isinstance(count, list) else _number(count)
        return ModelSet(_model(raw["model"]), several)  # type: ignore[arg-type]
    return _model(raw)


def _pairs(name: str, raw: object) -> tuple[tuple[float, float], ...]:
    """Return what is written as a list of pairs."""
    if not isinstance(raw, list | tuple):
        raise ConfigError.one(rule=f"{name} are a list of {_PAIRS[name]}", value=raw)
    pairs = []
    for one in raw:
        if not isinstance(one, list | tuple) or len(one) != 2:
            raise ConfigError.one(rule=f"one of {name} is {_PAIRS[name]}", value=one)
        pairs.append((_number(one[0]), _number(one[1])))
    return tuple(pairs)
