"""What every kind of work is: fields, some of them arrays over design points, and a lowering."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from opbyte.core.dtypes import lookup
from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Array, Number, Phase
from opbyte.core.parallel import Parallel
from opbyte.core.registry import Registry
from opbyte.workloads.model import Model
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.numeric import ceil_div, checked, same_points

if TYPE_CHECKING:
    from pydantic import BaseModel

#: Annotations of fields that hold one plain value for all design points.
_PLAIN = {"int": int, "str": str, "bool": bool}


@dataclass(frozen=True, kw_only=True)
class Work(ABC):
    """One piece of work.

    Attributes:
        kind: Name in files.
        metrics: Names of result columns that it defines besides those of all work.
        undefined: Metrics of all work that this kind does not define.
        played: Its requests pass in time at every fidelity: it has a timeline and no `bound`.
        phase_metrics: Metric -> name of the phase whose seconds it is.
        vector_fields: Fields that may hold one value for each design point.
        blocks: Field -> what a mapping in a file is validated as, with the places of its entries.
        nested: Field -> further fields that a file may write inside of it.
        least: Smallest value of a field of counts where it is not 1.
        words: Field -> the words that it may be.
        fills: Fields that may be `max`, as many as fit; stored as infinity.
        alone: One device runs the whole of it; a group has no way to share it. Its counts are
            whole, also where each design point has its own: no operator has a mean size.
        sources: Field -> where its value comes from, as far as the file says.
        ranges: Field -> lowest and highest plausible value, as far as the file says.
    """

    kind: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]] = ()
    undefined: ClassVar[tuple[str, ...]] = ()
    played: ClassVar[bool] = False
    phase_metrics: ClassVar[Mapping[str, str]] = {}
    vector_fields: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[Mapping[str, float]] = {}
    words: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    fills: ClassVar[tuple[str, ...]] = ()
    alone: ClassVar[bool] = False
    blocks: ClassVar[Mapping[str, type[BaseModel]]] = {}
    nested: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    ranges: Mapping[str, tuple[float, float]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def silent(self) -> tuple[str, ...]:
        """Return its metrics that say nothing here: of what this work does not have."""
        return ()

    def __post_init__(self) -> None:
        """Load models that are given by name; bring counts to floats or float64 arrays.

        Raises:
            ConfigError: If a model or a dtype is unknown.
            WorkloadError: If one makes no sense; the message names it.
        """
        for own in fields(self):
            given = getattr(self, own.name)
            object.__setattr__(self, own.name, self.checked_field(own.name, given))
        counts = {name: getattr(self, name) for name in self.vector_fields}
        same_points(self.kind, **counts)

    @classmethod
    def checked_field(cls, name: str, given: Any) -> Any:
        """Return a field as it is kept, judged without the others.

        Args:
            name: Its name.
            given: What was given for it.

        Raises:
            ConfigError: If a model or a dtype is unknown.
            WorkloadError: If it makes no sense; the message names it.
        """
        due = str(cls.__dataclass_fields__[name].type)
        if name in cls.vector_fields:
            if name in cls.fills and (
                given == "max" if isinstance(given, str) else _endless(given)
            ):
                return math.inf
            return checked(cls.kind, name, given, cls.least.get(name, 1.0), whole=cls.alone)
        if "Model" in due and isinstance(given, str | Path):
            return load_model(given)
        if due == "Model" and not isinstance(given, Model):
            raise WorkloadError(
                f"{cls.kind}: {name} must be a model, a catalog name or a path, got "
                f"{given!r:.200}. make one with opbyte.load_model"
            )
        if due in _PLAIN:
            _check_plain(cls, name, due, given)
        if name in cls.words and given not in cls.words[name]:
            known = ", ".join(cls.words[name])
            raise WorkloadError(f"{cls.kind}: {name} must be one of {known}, got {given!r:.80}")
        return lookup(given).name if due == "str" and name.endswith("dtype") and given else given

    if TYPE_CHECKING:
        # A field of some works; a base's property would forbid that.
        @property
        def tokens(self) -> Number:
            """Return the tokens produced, or processed where none are produced."""

    @property
    @abstractmethod
    def sequences(self) -> Number:
        """Return the sequences."""

    @abstractmethod
    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return what one representative device executes: one microbatch of every phase.

        Raises:
            WorkloadError: If the work can not be split so.
        """

    def lowered(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return what `lower` returns; asked again, the same phases."""
        known: dict[Parallel, tuple[Phase, ...]] = self.__dict__.setdefault("_lowered", {})
        if parallel not in known:
            known[parallel] = self.lower(parallel)
        return known[parallel]

    def summary(self, seconds: Mapping[str, Array]) -> dict[str, Array]:
        """Return metrics that follow from the seconds of one run of each phase, each (points,).

        Args:
            seconds: Of each phase by name, (1 or points,).
        """
        del seconds
        return {}

    @abstractmethod
    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class that the fullest device holds at once."""


#: Kinds of work by the name that files use.
WORKS: Registry[type[Work]] = Registry("kind of work")


def replica(batch: Number, parallel: Parallel) -> Number:
    """Return the sequences of one data-parallel replica, rounded up."""
    return ceil_div(batch, parallel.dp)


def microbatch(batch: Number, parallel: Parallel) -> Number:
    """Return the sequences of one microbatch of one replica, rounded up."""
    return ceil_div(replica(batch, parallel), parallel.microbatches)


def _endless(value: object) -> bool:
    return isinstance(value, float) and value == math.inf


def _check_plain(work: type[Work], name: str, due: str, value: object) -> None:
    """Check a field that is annotated with a plain type.

    Raises:
        WorkloadError: If it is of another type, or a number below its least.
    """
    if not isinstance(value, _PLAIN[due]) or (due == "int" and isinstance(value, bool)):
        words = {"int": "a whole number", "str": "a word", "bool": "true or false"}
        raise WorkloadError(f"{work.kind}: {name} must be {words[due]}, got {value!r:.80}")
    least = work.least.get(name, 1.0)
    if due == "int" and value < least:  # type: ignore[operator]
        raise WorkloadError(f"{work.kind}: {name} must be at least {least:g}, got {value}")
