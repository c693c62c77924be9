"""Serving as a work: the requests of a trace arrive at engines of one model."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from opbyte.core.config import Document, validate
from opbyte.core.errors import ConfigError, Problem, WorkloadError
from opbyte.core.ops import Number, Phase
from opbyte.core.parallel import Parallel
from opbyte.core.parameters import Bytes, Parameter, Seconds
from opbyte.workloads.model import Model
from opbyte.workloads.model_work import ModelWork
from opbyte.workloads.residents import Adapters, Models
from opbyte.workloads.speculation import Speculation, speculation_of
from opbyte.workloads.traces import RequestTrace, load_trace
from opbyte.workloads.work import WORKS

#: Times of requests and of their tokens, and what is said of each.
TIMES = tuple(
    f"{time}_{of}"
    for time in ("ttft", "tpot", "itl", "latency")
    for of in ("mean", "p50", "p90", "p99")
)
#: Metrics of copies of adapters or models to the fast memory (docs/serving-many.md).
COPYING = ("hit_rate", "copies", "copied_bytes", "copy_wait_s", "copy_busy_s", "switches")
#: Tokens of a step of the scheduler chunked.
CHUNKED_TOKENS = 512


_Given = TypeVar("_Given", bound=BaseModel)


class _Block(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, given: object, info: ValidationInfo) -> object:
        named = cls.model_fields[info.field_name or ""].annotation
        if isinstance(given, bool) and named in (int, int | None, float):
            rule = "must be a number"
            raise ConfigError.one("", "", rule, given, "write digits")
        return given

    def _given(self, name: str) -> bool:
        """Return whether a field was given a value, not left out or null."""
        return name in self.model_fields_set and getattr(self, name) is not None


def _unused(name: str, value: object, user: str, remedy: str) -> Problem:
    """Return what is wrong with an option that does nothing where it stands."""
    return Problem("", name, f"does nothing here, it is for {user}", value, remedy)


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise ConfigError(problems)


class Grouping(_Block):
    """Into how many groups of layers a prompt's computation is divided, by its tokens.

    The default is the published configuration of layered prefill (arXiv:2510.08055).
    """

    tokens: tuple[Annotated[int, Field(ge=1)], ...] = (512, 1024, 2048, 4096)
    """Ends of ranges of tokens, ascending, each included in its range."""
    groups: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = (1, 2, 4, 8, 16)
    """Groups of each range, and of what has more tokens."""

    @model_validator(mode="after")
    def _matched(self) -> Grouping:
        if len(self.groups) != len(self.tokens) + 1:
            raise ValueError(
                f"{len(self.tokens)} ends make {len(self.tokens) + 1} ranges, but groups are given "
                f"for {len(self.groups)}. give one number for each range"
            )
        if list(self.tokens) != sorted(set(self.tokens)):
            raise ValueError("tokens must ascend. sort them, each once")
        return self

    def capped(self, layers: int) -> Grouping:
        """Return the same with no more groups than there are layers."""
        return self.model_copy(update={"groups": tuple(min(n, layers) for n in self.groups)})

    def of(self, tokens: int) -> int:
        """Return the groups of prompts that have so many tokens together."""
        return self.groups[bisect_left(self.tokens, tokens)]


def _grouping(given: Any) -> Any:
    """Read a bare number: as many groups for all prompts."""
    whole = isinstance(given, int) and not isinstance(given, bool)
    return {"tokens": (), "groups": (given,)} if whole else given


#: Schedulers that are built in, and options -> those of them that use it.
_KINDS = ("continuous", "chunked", "static", "layered", "shortest", "prefix", "fair")
_USERS = {"lead": ("fair",), "groups": ("layered",), "aging": ("shortest", "prefix")}
#: Routers that are built in and use no `slack`.
_WITHOUT_SLACK = ("round_robin", "least_outstanding")


class Scheduling(_Block):
    """How an engine forms its steps, and the memory that it gives to caches."""

    kind: str = "continuous"
    """Scheduler: continuous (as vLLM v1), chunked (the same with a small budget of tokens, for
    decodes that do not stall), static, layered (layered prefill), shortest, prefix or fair."""
    max_sequences: int = Field(256, ge=1, le=65_536)
    """Requests that run at once."""
    max_batched_tokens: int = Field(2048, ge=1, le=1_048_576)
    """Tokens of one step; 512 by default with chunked, as published comparisons have it
    (Sarathi-Serve, arXiv:2403.02310; layered prefill, arXiv:2510.08055)."""
    chunk: bool = True
    """Prompts may be computed in pieces."""
    reserve: bool = True
    """A request starts only where all its known tokens would fit at once."""
    block_tokens: int = Field(16, ge=1)
    """Tokens of a block of the KV cache."""
    kv_blocks: int | None = Field(None, ge=1, le=50_000_000)
    """Blocks of the KV cache; by default what the memory holds beside weights and activations."""
    memory: float = Field(0.9, gt=0.0, le=1.0)
    """Share of each memory that the engine uses: weights, activations, caches (vLLM's default)."""
    prefix_cache: bool = True
    """Freed blocks can be found again by who needs the same content."""
    windows: Literal["kept", "freed"] = "kept"
    """What lies outside the window of a layer: kept like all else, or its memory is free again
    (vLLM's hybrid cache manager)."""
    kv_budget: int | None = Field(None, ge=1)
    """Tokens of a sequence that the cache keeps at most in each layer, by whatever rule (the first
    and the latest: StreamingLLM; those that weigh most: H2O); by default all."""
    groups: Annotated[Grouping, BeforeValidator(_grouping)] = Grouping()
    """Of `layered`: groups of layers, a number or `{tokens: [512], groups: [1, 2]}`."""
    depth: int = Field(1, ge=1, le=8)
    """Steps planned or under way at once: 2 hides the scheduler behind the device (vLLM's
    asynchronous scheduling)."""
    aging: float = Field(500.0, gt=0.0, allow_inf_nan=False)
    """Tokens that a second of waiting is worth to the schedulers shortest and prefix."""
    lead: int | None = Field(None, ge=0)
    """Tokens of service by which a client must be ahead for the scheduler fair to switch its
    requests out; without it none is."""
    preempt: Literal["recompute", "swap"] = "recompute"
    """What becomes of the blocks of a preempted request: lost, or kept in the memory below."""
    swap_space: Bytes = Parameter(4 * 2.0**30, "bytes", "vLLM 0.8's default for each GPU: 4 GiB")
    """Bytes of the memory below that each device gives to them."""

    @model_validator(mode="before")
    @classmethod
    def _budget(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("kind") == "chunked":
            return {"max_batched_tokens": CHUNKED_TOKENS, **given}
        return given

    @model_validator(mode="after")
    def _used(self) -> Scheduling:
        problems = [
            _unused(
                name, getattr(self, name), " and ".join(kinds), f"leave it out, or use {kinds[0]}"
            )
            for name, kinds in _USERS.items()
            if self._given(name) and self.kind in _KINDS and self.kind not in kinds
        ]
        if self._given("swap_space") and self.preempt != "swap":
            space = f"{self.swap_space.value / 2**30:g} GiB"
            problems.append(
                _unused("swap_space", space, "preempt: swap", "add it, or leave it out")
            )
        if self._given("memory") and self.kv_blocks is not None:
            rule = "does nothing beside kv_blocks, which is the size of the cache"
            problems.append(Problem("", "memory", rule, self.memory, "give one of them"))
        if self.kind == "prefix" and not self.prefix_cache:
            rule = "must be on: the scheduler prefix orders requests by what the cache holds"
            problems.append(
                Problem(
                    "", "prefix_cache", rule, self.prefix_cache, "leave it out, or use continuous"
                )
            )
        _refuse(problems)
        return self

    @model_validator(mode="after")
    def _forgetting(self) -> Scheduling:
        if self.prefix_cache and (self.windows == "freed" or self.kv_budget is not None):
            what = "kv_budget" if self.windows == "kept" else "windows: freed"
            raise ValueError(
                f"{what} forgets tokens, whose blocks nobody can find again. set prefix_cache to "
                "false too"
            )
        return self


class Pools(_Block):
    """Engines that read prompts, and engines that go on from there."""

    prefill: int = Field(ge=1, le=4096)
    """Engines that compute prompts and the first token."""
    decode: int = Field(ge=1, le=4096)
    """Engines that compute all later tokens."""


class Failure(_Block):
    """A replica that loses everything, and comes back empty."""

    replica: int = Field(ge=0)
    """Which one, counted from 0; those that prefill come first."""
    at: Seconds
    """When, after the trace's start."""
    for_: Seconds = Field(alias="for")
    """How long it is away."""


class Fleet(_Block):
    """Engines that serve one trace together, each on devices of its own."""

    replicas: int = Field(1, ge=1, le=4096)
    """Equal engines; each takes the devices that the mapping names."""
    router: str = "round_robin"
    """Who decides which engine a request goes to: round_robin, least_outstanding or
    prefix_affinity."""
    slack: int = Field(16, ge=0)
    """Requests that an engine may have more than the emptiest one and still be chosen for the
    prefix that it knows (assumed: routers in use have limits of 1 to 64)."""
    pools: Pools | None = None
    """Engines for prompts and others for answers, instead of `replicas`."""
    via: str | None = None
    """Link that carries KV caches from pool to pool; by default the one that joins them."""
    failures: tuple[Failure, ...] = ()
    """Replicas that fail and return."""

    @property
    def engines(self) -> int:
        """Return how many engines there are."""
        return self.replicas if self.pools is None else self.pools.prefill + self.pools.decode

    @model_validator(mode="after")
    def _consistent(self) -> Fleet:
        problems = []
        if self.pools is not None and self._given("replicas"):
            rule = "must be left out beside pools, which say how many engines there are"
            problems.append(Problem("", "replicas", rule, self.replicas, "give one of them"))
        if self.via is not None and self.pools is None:
            remedy = "give pools too, or leave it out"
            problems.append(_unused("via", self.via, "the way from pool to pool", remedy))
        # Of a number that is given one may be a point of a sweep.
        alone = self.pools is None and not self._given("replicas")
        for name in ("router", "slack"):
            if alone and self._given(name):
                user, remedy = (
                    "a fleet of several engines",
                    "give replicas or pools, or leave it out",
                )
                problems.append(_unused(name, getattr(self, name), user, remedy))
        if not alone and self._given("slack") and self.router in _WITHOUT_SLACK:
            remedy = "leave it out, or use that router"
            problems.append(_unused("slack", self.slack, "router prefix_affinity", remedy))
        _refuse([*problems, *self._impossible()])
        return self

    def _impossible(self) -> list[Problem]:
        """Return what is wrong with failures."""
        problems, back = [], dict[int, float]()
        order = sorted(range(len(self.failures)), key=lambda i: self.failures[i].at.value)
        for i in order:
            failure, place = self.failures[i], f"failures[{i}]"
            number, at = failure.replica, failure.at.value
            if number >= self.engines:
                rule = f"there are {self.engines} engines, counted from 0"
                remedy = "name one of them, or add engines"
                problems.append(Problem("", f"{place}.replica", rule, number, remedy))
            if failure.for_.value <= 0.0:
                rule = "must be some time"
                problems.append(Problem("", f"{place}.for", rule, "0 s", "write 1 s"))
            if at <= back.get(number, -1.0):
                rule = f"replica {number} must be back before it fails again"
                remedy = "let it fail later, or be away for less"
                problems.append(Problem("", f"{place}.at", rule, f"{at:g} s", remedy))
            back[number] = at + failure.for_.value
        return problems


class Goal(_Block):
    """What a request must keep to count as good."""

    ttft: Seconds | None = None
    """Most seconds from arrival to first token."""
    tpot: Seconds | None = None
    """Most seconds for each token after the first, mean of a request."""

    @model_validator(mode="after")
    def _some_time(self) -> Goal:
        rule, remedy = "must be above 0: no request is that fast", "raise it, or leave it out"
        _refuse(
            [
                Problem("", name, rule, f"{limit.value:g} s", remedy)
                for name, limit in self
                if limit is not None and limit.value <= 0.0
            ]
        )
        return self


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

    def __post_init__(self) -> None:
        """Read the fields that are given by name or as mappings.

        Raises:
            ConfigError: If a mapping or file has a mistake.
            UncoveredError: If guesses can not be taken back in one of the models.
            WorkloadError: If a number makes no sense.
        """
        super().__post_init__()
        trace: Any = self.trace
        if not isinstance(trace, RequestTrace | BaseModel | Mapping | str | Path) and not hasattr(
            trace, "columns"
        ):
            raise WorkloadError(
                f"serve: trace must be a trace, a name or a file, got {trace!r:.80}"
            )
        trace, rate = load_trace(trace), _rate(self.rate)
        object.__setattr__(self, "trace", trace.scaled(rate) if rate else trace)
        object.__setattr__(self, "rate", rate)
        scheduler: Any = self.scheduler
        if isinstance(scheduler, str):
            scheduler = {"kind": scheduler}
        object.__setattr__(self, "scheduler", _block("scheduler", Scheduling, scheduler))
        object.__setattr__(self, "slo", _block("slo", Goal, self.slo))
        object.__setattr__(self, "fleet", _block("fleet", Fleet, self.fleet))
        if self.speculate is not None:
            speculation = speculation_of(self.kind, self.speculate, self.model)
            object.__setattr__(self, "speculate", speculation)
        self._choose()

    def _choose(self) -> None:
        """Read adapters and models, and let each request ask for one.

        Raises:
            ConfigError: If a mapping has a mistake, or the model lacks an adapter's target.
            WorkloadError: If a request asks for one that there is not.
        """
        if self.adapters is not None and self.models is not None:
            raise WorkloadError("serve: give either adapters or models")
        for name, cls, least in (("adapters", Adapters, -1), ("models", Models, 0)):
            given = getattr(self, name)
            if given is None:
                continue
            block: Any = _block(name, cls, given)
            column = name[:-1]
            numbers = block.chosen(getattr(self.trace, column), len(self.trace), column, least)
            object.__setattr__(self, name, block)
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
        """Return metrics of adapters, models, failures, guesses and experts that it has none of."""
        several = self.adapters is not None or self.models is not None
        return (
            *(() if several else COPYING),
            *(() if self.fleet.failures else ("idle_failures",)),
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
