"""Serving as a work: the requests of a trace arrive at engines of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, model_validator

from opbyte.core.config import Document, validate
from opbyte.core.errors import Problem, WorkloadError
from opbyte.core.ops import Number, Phase
from opbyte.core.parallel import Parallel
from opbyte.core.parameters import Seconds
from opbyte.workloads.faults import Faults, Loss
from opbyte.workloads.fleet import Failure, Fleet, Pools
from opbyte.workloads.model import Model
from opbyte.workloads.model_work import ModelWork
from opbyte.workloads.residents import Adapters, Models
from opbyte.workloads.scheduling import Grouping, Scheduling
from opbyte.workloads.serve_block import ServeBlock, refuse
from opbyte.workloads.speculation import Speculation, speculation_of
from opbyte.workloads.traces import RequestTrace, load_trace
from opbyte.workloads.work import WORKS

__all__ = [
    "COPYING", "FAULTS", "TIMES", "Failure", "Faults", "Fleet", "Goal", "Grouping", "Loss", "Pools",
    "Scheduling", "Serve",
]  # fmt: skip

#: Times of requests and of their tokens, and what is said of each.
TIMES = tuple(
    f"{time}_{of}"
    for time in ("ttft", "tpot", "itl", "latency")
    for of in ("mean", "p50", "p90", "p99")
)
#: Metrics of copies of adapters or models to the fast memory (docs/serving-many.md).
COPYING = ("hit_rate", "copies", "copied_bytes", "copy_wait_s", "copy_busy_s", "switches")
#: Metrics of devices of decode attention that are lost (docs/serving.md).
FAULTS = ("failed", "device_losses")

_Given = TypeVar("_Given", bound=BaseModel)


class Goal(ServeBlock):
    """What a request must keep to count as good."""

    ttft: Seconds | None = None
    """Most seconds from arrival to first token."""
    tpot: Seconds | None = None
    """Most seconds for each token after the first, mean of a request."""

    @model_validator(mode="after")
    def _some_time(self) -> Goal:
        rule, remedy = "must be above 0: no request is that fast", "raise it, or leave it out"
        refuse(
            [
                Problem("", name, rule, f"{limit.value:g} s", remedy)
                for name, limit in self
                if limit is not None and limit.value <= 0.0
            ]
        )
        return self


#: Blocks that need not be there.
_OPTIONAL = ("speculate", "adapters", "models", "faults")


def _rate(given: object) -> float:
    """Return requests per second; `4 requests/s` is read.

    Raises:
        WorkloadError: If it is none, or below 0.
    """
    text = given.removesuffix("requests/s").strip() if isinstance(given, str) else given
    try:
        rate = float(text) if not isinstance(text, bool) else -1.0  # type: ignore[arg-type]
    except (TypeError, ValueError):
        rate = -1.0
    if not 0.0 <= rate < float("inf"):
        raise WorkloadError(f"serve: rate must be requests per second, or 0, got {given!r:.80}")
    return rate


def _block(name: str, cls: type[_Given], given: object) -> _Given:
    """Return a block that may be given as a mapping.

    Raises:
        ConfigError: If the mapping has a mistake.
        WorkloadError: If it is no mapping.
    """
    if isinstance(given, Mapping):
        return validate(cls, Document(dict(given), {}, name))
    if not isinstance(given, cls):
        raise WorkloadError(f"serve: {name} must be a mapping, got {given!r:.80}")
    return given


@WORKS.register("serve")
@dataclass(frozen=True)
class Serve(ModelWork):
    """The requests of a trace, served by engines of the machine's mapping.

    Attributes:
        model: Whole model.
        trace: Requests: a trace, its path, the name of a sample, a frame, or a synthetic
            definition (docs/traces.md).
        scheduler: `Scheduling`, a mapping with its keys, or the kind of scheduler alone.
        rate: Requests per second that arrivals are stretched or squeezed to; 0 keeps them.
        slo: `Goal` or a mapping with its keys: limits that goodput is counted by.
        fleet: `Fleet` or a mapping with its keys: how many engines, and who shares out requests.
        speculate: `Speculation` or a mapping with its keys: tokens that are guessed ahead; None
            for none.
        adapters: `Adapters` or a mapping with its keys: adapters over the model, if there are any.
        models: `Models` or a mapping with its keys: models of that shape, if there are several.
        faults: `Faults` or a mapping with its keys: devices of decode attention that are lost.
    """

    kind: ClassVar[str] = "serve"
    metrics: ClassVar[tuple[str, ...]] = (
        *TIMES,
        "itl_max",
        "requests_per_s",
        "goodput_per_s",
        "running_mean",
        "waiting_mean",
        "waiting_p99",
        "waiting_max",
        "kv_mean",
        "kv_p99",
        "kv_max",
        "steps",
        "tokens_per_decode",
        "preempted",
        "rejected",
        "kv_hit_rate",
        "weight_bytes_per_token",
        "expert_bytes_per_token",
        "utilisation",
        "idle_failures",
        *FAULTS,
        *COPYING,
        "dynamic_joules",
        "static_joules",
    )
    undefined: ClassVar[tuple[str, ...]] = ("flops", "op_per_byte", "kernels")
    played: ClassVar[bool] = True
    blocks: ClassVar[Mapping[str, type[BaseModel]]] = {
        "scheduler": Scheduling,
        "slo": Goal,
        "fleet": Fleet,
        "speculate": Speculation,
        "adapters": Adapters,
        "models": Models,
        "faults": Faults,
    }

    model: Model
    trace: RequestTrace
    scheduler: Scheduling = field(default_factory=Scheduling)
    rate: float = 0.0
    slo: Goal = field(default_factory=Goal)
    fleet: Fleet = field(default_factory=Fleet)
    speculate: Speculation | Mapping[str, object] | None = None
    adapters: Adapters | None = None
    models: Models | None = None
    faults: Faults | None = None

    def __post_init__(self) -> None:
        """Read the fields that are given by name or as mappings.

        Raises:
            ConfigError: If a mapping or file has a mistake.
            UncoveredError: If guesses can not be taken back in one of the models.
            WorkloadError: If a number makes no sense.
        """
        super().__post_init__()
        if self.rate:
            object.__setattr__(self, "trace", self.trace.scaled(self.rate))
        if self.speculate is not None:
            speculation = speculation_of(self.kind, self.speculate, self.model)
            object.__setattr__(self, "speculate", speculation)
        self._choose()

    @classmethod
    def checked_field(cls, name: str, given: Any) -> Any:
        """Return a field as it is kept: a trace is loaded, a block read that is a mapping.

        Raises:
            ConfigError: If a mapping or file has a mistake.
            WorkloadError: If a number makes no sense.
        """
        if name == "trace":
            if not isinstance(
                given, RequestTrace | BaseModel | Mapping | str | Path
            ) and not hasattr(given, "columns"):
                raise WorkloadError(
                    f"serve: trace must be a trace, a name or a file, got {given!r:.80}"
                )
            return load_trace(given)
        if name == "rate":
            return _rate(given)
        if name == "scheduler" and isinstance(given, str):
            given = {"kind": given}
        if name in cls.blocks and not (given is None and name in _OPTIONAL):
            return _block(name, cls.blocks[name], given)
        return super().checked_field(name, given)

    def _choose(self) -> None:
        """Read adapters and models, and let each request ask for one.

        Raises:
            ConfigError: If a mapping has a mistake, or the model lacks an adapter's target.
            WorkloadError: If a request asks for one that there is not.
        """
        if self.adapters is not None and self.models is not None:
            raise WorkloadError("serve: give either adapters or models")
        for name, least in (("adapters", -1), ("models", 0)):
            block: Any = getattr(self, name)
            if block is None:
                continue
            column = name[:-1]
            numbers = block.chosen(getattr(self.trace, column), len(self.trace), column, least)
            object.__setattr__(self, "trace", replace(self.trace, **{column: numbers}))
        if self.adapters is not None:
            self.adapters.adapter.parameters(self.model)

    @property
    def speculation(self) -> Speculation | None:
        """Return the block `speculate`."""
        assert not isinstance(self.speculate, Mapping)
        return self.speculate

    def at(self, rate: float) -> Serve:
        """Return the same requests at another rate.

        Args:
            rate: Requests per second.
        """
        return replace(self, trace=self.trace.scaled(rate), rate=0.0)

    @property
    def silent(self) -> tuple[str, ...]:
        """Return metrics of adapters, models, failures, guesses, experts that it has none of."""
        several = self.adapters is not None or self.models is not None
        return (
            *(() if several else COPYING),
            *(() if self.fleet.failures else ("idle_failures",)),
            *(() if self.faults is not None else FAULTS),
            *(() if self.speculation is not None else ("tokens_per_decode",)),
            *(() if self.model.moe_layers else ("expert_bytes_per_token",)),
        )

    @property
    def tokens(self) -> Number:
        """Return the tokens of all answers."""
        return float(self.trace.output_tokens.sum())

    @property
    def sequences(self) -> Number:
        """Return the requests."""
        return float(len(self.trace))

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Refuse: what a step computes depends on when it runs.

        Raises:
            WorkloadError: Always.
        """
        del parallel
        raise WorkloadError("serve: a trace has no operators before it is served")

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Refuse: how many sequences are held depends on the engine.

        Raises:
            WorkloadError: Always.
        """
        del parallel
        raise WorkloadError("serve: what a trace holds in memory depends on the engine")
