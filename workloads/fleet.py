"""The engines that serve one trace together, as users write them."""

from __future__ import annotations

from pydantic import Field, model_validator

from opbyte.core.errors import Problem
from opbyte.core.parameters import Seconds
from opbyte.workloads.serve_block import ServeBlock, refuse, unused

#: Routers that are built in and use no `slack`.
_WITHOUT_SLACK = ("round_robin", "least_outstanding")


class Pools(ServeBlock):
    """Engines that read prompts, and engines that go on from there."""

    prefill: int = Field(ge=1, le=4096)
    """Engines that compute prompts and the first token."""
    decode: int = Field(ge=1, le=4096)
    """Engines that compute all later tokens."""


class Failure(ServeBlock):
    """A replica that loses everything, and comes back empty."""

    replica: int = Field(ge=0)
    """Which one, counted from 0; those that prefill come first."""
    at: Seconds
    """When, after the trace's start."""
    for_: Seconds = Field(alias="for")
    """How long it is away."""


class Fleet(ServeBlock):
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
        if self.pools is not None and self.was_given("replicas"):
            rule = "must be left out beside pools, which say how many engines there are"
            problems.append(Problem("", "replicas", rule, self.replicas, "give one of them"))
        if self.via is not None and self.pools is None:
            remedy = "give pools too, or leave it out"
            problems.append(unused("via", self.via, "the way from pool to pool", remedy))
        # Of a number that is given one may be a point of a sweep.
        alone = self.pools is None and not self.was_given("replicas")
        for name in ("router", "slack"):
            if alone and self.was_given(name):
                user, remedy = (
                    "a fleet of several engines",
                    "give replicas or pools, or leave it out",
                )
                problems.append(unused(name, getattr(self, name), user, remedy))
        if not alone and self.was_given("slack") and self.router in _WITHOUT_SLACK:
            remedy = "leave it out, or use that router"
            problems.append(unused("slack", self.slack, "router prefix_affinity", remedy))
        refuse([*problems, *self._impossible()])
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
