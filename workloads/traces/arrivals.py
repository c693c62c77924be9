"""When requests arrive: processes that a definition names, and how they draw.

An open process fixes all arrivals beforehand. `closed_loop` does not: it says who waits for whom.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from opbyte.core.blocks import Block
from opbyte.core.errors import ConfigError
from opbyte.core.parameters import Parameter, Quantity, Seconds
from opbyte.workloads.traces._rules import Floats
from opbyte.workloads.traces.trace import ClosedLoop

__all__ = ["Arrivals", "Bursts", "Clients", "Gamma", "Poisson", "RequestRate"]

_PER_SECOND = re.compile(r"([-+.\deE]+)\s*(?:requests?|req)?\s*/\s*s")


def _as_hertz(raw: Any) -> Any:
    """Return `4 requests/s` as `4 Hz`, which is the same."""
    if isinstance(raw, Mapping):
        limits = raw.get("range")
        changed = {**raw, "value": _as_hertz(raw["value"])} if "value" in raw else dict(raw)
        if isinstance(limits, list):
            changed["range"] = [_as_hertz(limit) for limit in limits]
        return changed
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        example = "Write for example 4 requests/s."
        raise ConfigError.one(rule="a rate of requests needs a unit", value=raw, remedy=example)
    match = _PER_SECOND.fullmatch(raw.strip()) if isinstance(raw, str) else None
    return f"{match[1]} Hz" if match else raw


def _positive(given: Parameter) -> Parameter:
    if given.value <= 0:
        raise ConfigError.one(rule="must be above 0", value=str(given))
    return given


#: How files write a rate: as text, or with where it comes from.
_WRITTEN = {"anyOf": [{"type": "string", "examples": ["4 requests/s"]}, {"type": "object"}]}
RequestRate = Annotated[
    Parameter,
    Quantity("hertz"),
    BeforeValidator(_as_hertz),
    AfterValidator(_positive),
    WithJsonSchema(_WRITTEN),
]
PositiveSeconds = Annotated[Parameter, Quantity("seconds"), AfterValidator(_positive)]


class Poisson(Block):
    """Independent arrivals: gaps are exponential, their coefficient of variation is 1."""

    kind: Literal["poisson"] = "poisson"
    rate: RequestRate
    """Mean rate, such as 4 requests/s."""

    def arrivals(self, count: int, random: np.random.Generator) -> Floats:
        """Return arrivals, seconds, ascending, (count,)."""
        return np.cumsum(random.exponential(1.0 / self.rate.value, count))


class Gamma(Block):
    """Gaps of a gamma distribution: as regular or bursty as its coefficient of variation says.

    Shape 1 / cv^2, scale cv^2 / rate: mean 1 / rate, standard deviation cv / rate.
    """

    kind: Literal["gamma"] = "gamma"
    rate: RequestRate
    """Mean rate, such as 4 requests/s."""
    cv: float = Field(ge=0, le=100, allow_inf_nan=False)
    """Standard deviation of the gaps over their mean: 0 is a clock, 1 is Poisson, 4 is bursty."""

    def arrivals(self, count: int, random: np.random.Generator) -> Floats:
        """Return arrivals, seconds, ascending, (count,)."""
        mean = 1.0 / self.rate.value
        if self.cv == 0:
            return mean * np.arange(1.0, count + 1)
        return np.cumsum(random.gamma(self.cv**-2, mean * self.cv**2, count))


class Bursts(Block):
    """Poisson arrivals whose rate is `factor` times higher during bursts.

    One burst, or with `every` a square wave. Drawn by time rescaling: arrivals of a unit Poisson
    process, taken through the inverse of the expected number of arrivals until t.
    """

    kind: Literal["bursts"] = "bursts"
    rate: RequestRate
    """Rate outside of bursts, such as 4 requests/s."""
    factor: float = Field(gt=0, le=1e6)
    """Rate during a burst over the rate outside."""
    start: Seconds = Parameter(0.0, "seconds")
    """Begin of the first burst."""
    length: PositiveSeconds
    """Duration of a burst."""
    every: PositiveSeconds | None = None
    """From the begin of a burst to the begin of the next; without it there is one burst."""

    @model_validator(mode="after")
    def _fits(self) -> Bursts:
        if self.every is not None and self.every.value < self.length.value:
            raise ValueError(f"every must be at least length, got {self.every} and {self.length}")
        return self

    def arrivals(self, count: int, random: np.random.Generator) -> Floats:
        """Return arrivals, seconds, ascending, (count,)."""
        rate, start, length = self.rate.value, self.start.value, self.length.value
        expected = np.cumsum(random.exponential(1.0, count))
        since = expected - rate * start
        burst = rate * self.factor * length
        period, periods, rest = 0.0, np.zeros(count), since
        if self.every is not None:
            period = self.every.value
            periods, rest = np.divmod(since, burst + rate * (period - length))
        inside = np.where(rest < burst, rest / (rate * self.factor), length + (rest - burst) / rate)
        return np.where(since < 0, expected / rate, start + periods * period + inside)


class Clients(Block):
    """A closed loop: each client asks again after it got an answer and thought for a while."""

    kind: Literal["closed_loop"] = "closed_loop"
    concurrency: int = Field(ge=1, le=10_000_000)
    """Number of clients."""
    think: Seconds = Parameter(0.0, "seconds")
    """Mean time between an answer and the client's next request."""
    spread: Literal["fixed", "exponential"] = "fixed"
    """Distribution of the times of thinking."""

    def client(self, count: int, random: np.random.Generator) -> ClosedLoop:
        """Return the clients of `count` requests."""
        mean = self.think.value
        fixed = self.spread == "fixed"
        think = np.full(count, mean) if fixed else random.exponential(mean, count)
        return ClosedLoop(self.concurrency, think)


Arrivals = Annotated[Poisson | Gamma | Bursts | Clients, Field(discriminator="kind")]
