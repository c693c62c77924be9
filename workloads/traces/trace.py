"""A request trace as columns: one entry per request, in the order of arrival."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, WorkloadError, show
from opbyte.core.registry import nearest
from opbyte.workloads.traces._rules import Floats, Ints, broken_rules, column, too_early
from opbyte.workloads.traces.blocks import PrefixBlocks

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ClosedLoop", "RequestTrace"]

_OPTIONAL = ("session", "tenant", "priority", "adapter", "model")


@dataclass(frozen=True, eq=False)
class ClosedLoop:
    """Clients that wait for an answer before they ask again; arrivals are not known beforehand.

    Request i goes to whichever client is free first. That client thinks, then sends it.

    Attributes:
        concurrency: Clients.
        think_s: Seconds for which a client thinks before it sends request i, (requests,).
    """

    concurrency: int
    think_s: Floats

    def __post_init__(self) -> None:
        """Check values; keep a read-only view.

        Raises:
            WorkloadError: If there is no client, or a time is negative or not finite.
        """
        think = column("client.think_s", self.think_s, np.float64)
        if self.concurrency < 1:
            raise WorkloadError(f"client.concurrency must be at least 1, got {self.concurrency}")
        if not bool(np.all(np.isfinite(think) & (think >= 0))):
            raise WorkloadError("client.think_s must be finite and at least 0")
        object.__setattr__(self, "think_s", think)


@dataclass(frozen=True, eq=False)
class RequestTrace:
    """Requests in the order of arrival; at least one.

    Attributes:
        arrival_s: Arrivals, seconds, ascending, (requests,); all 0 where `timed` is False.
        input_tokens: Tokens of the prompts, (requests,).
        output_tokens: Tokens of the answers, (requests,).
        prefix: Block ids of the prompts, or None.
        session: Number of the conversation that a request belongs to, (requests,), or None.
        tenant: Number of whoever asks, (requests,), or None.
        priority: Larger is more urgent, (requests,), or None.
        adapter: Number of the adapter that answers, -1 for none, (requests,), or None.
        model: Number of the model that answers, (requests,), or None.
        name: What results call the trace.
        source: Where it comes from: a file, or how it was made.
        timed: Whether the arrivals mean anything. A trace of lengths alone is not timed.
        client: Who sends the requests, where arrivals depend on answers; then it is not timed.
        skipped: Malformed rows that the reader left out.
        failed: Rows that the reader left out because the traced service did not answer them.
    """

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    prefix: PrefixBlocks | None = None
    session: Ints | None = None
    tenant: Ints | None = None
    priority: Ints | None = None
    adapter: Ints | None = None
    model: Ints | None = None
    name: str = "trace"
    source: str = ""
    timed: bool = True
    client: ClosedLoop | None = None
    skipped: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        """Check everything; keep read-only views of the columns.

        Raises:
            WorkloadError: If there is no request, a column is no column of numbers or as long as
                the others, a value is impossible, or arrivals are not ascending.
        """
        try:
            self._check()
        except WorkloadError as error:
            raise WorkloadError(f"trace {show(self.name)}: {error}") from None

    def _check(self) -> None:
        raw = {n: column(n, getattr(self, n)) for n in ("arrival_s", *_TOKENS)}
        if not len(raw["arrival_s"]):
            raise WorkloadError("it has no requests")
        raw |= {n: column(n, v) for n in _OPTIONAL if (v := getattr(self, n)) is not None}
        sizes = {n: len(values) for n, values in raw.items()}
        if self.prefix is not None:
            sizes["prefix"] = len(self.prefix)
        if self.client is not None:
            sizes["client.think_s"] = len(self.client.think_s)
        if len(set(sizes.values())) > 1:
            raise WorkloadError(f"its columns must be equally long, got {sizes}")
        for name, rule, bad in broken_rules(*(raw[n] for n in ("arrival_s", *_TOKENS))):
            row = int(np.argmax(bad))
            raise WorkloadError(f"request {row}: {name} {rule}, got {raw[name][row]}")
        early = too_early(raw["arrival_s"])
        if early.any():
            raise WorkloadError(f"request {int(np.argmax(early))} arrives before the one above it")
        if self.client is not None and self.timed:
            raise WorkloadError("requests of a closed loop have no arrivals, but it is timed")
        for n, values in raw.items():
            dtype = np.float64 if n == "arrival_s" else np.int64
            object.__setattr__(self, n, column(n, values, dtype))

    def __len__(self) -> int:
        """Return the number of requests."""
        return len(self.arrival_s)

    def __getitem__(self, rows: slice) -> Self:
        """Return a slice of the requests at their own times; columns are views where step is 1.

        Raises:
            WorkloadError: If it is empty.
        """
        start, stop, step = rows.indices(len(self))
        if step != 1:
            return self.take(np.arange(start, stop, step))
        stop = max(start, stop)
        changes: dict[str, Any] = {n: v[start:stop] for n, v in self._columns().items()}
        if self.prefix is not None:
            changes["prefix"] = self.prefix.between(start, stop)
        if self.client is not None:
            changes["client"] = replace(self.client, think_s=self.client.think_s[start:stop])
        return replace(self, **changes)

    def take(self, rows: npt.ArrayLike) -> Self:
        """Return the requests `rows`, which must be in the order of arrival; a copy.

        Raises:
            WorkloadError: If there are none, or their arrivals are not ascending.
        """
        index = np.asarray(rows, np.int64)
        changes: dict[str, Any] = {n: v[index] for n, v in self._columns().items()}
        if self.prefix is not None:
            changes["prefix"] = self.prefix.take(index)
        if self.client is not None:
            changes["client"] = replace(self.client, think_s=self.client.think_s[index])
        return replace(self, **changes)

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        names = ("arrival_s", *_TOKENS, *_OPTIONAL)
        return {n: v for n in names if (v := getattr(self, n)) is not None}

    @property
    def duration_s(self) -> float:
        """Return the seconds from the first arrival to the last."""
        return float(self.arrival_s[-1] - self.arrival_s[0])

    @cached_property
    def rate(self) -> float:
        """Return the mean rate, requests/s: gaps between arrivals over their sum.

        Raises:
            WorkloadError: If the trace has no arrivals, or all at one moment.
        """
        if not self.timed:
            raise WorkloadError(f"trace {show(self.name)}: it has no arrivals, so it has no rate")
        if self.duration_s <= 0:
            raise WorkloadError(f"trace {show(self.name)}: all requests arrive at one moment")
        return (len(self) - 1) / self.duration_s

    def scaled(self, rate: float) -> Self:
        """Return the same requests, their gaps stretched equally to bring the mean rate to `rate`.

        Args:
            rate: requests/s.
        Raises:
            WorkloadError: If `rate` is not finite and above 0, or the trace has no rate.
        """
        if not (np.isfinite(rate) and rate > 0):
            raise WorkloadError(f"a rate must be finite and above 0 requests/s, got {rate}")
        return replace(self, arrival_s=self.arrival_s * (self.rate / rate))

    def window(self, start: float, stop: float) -> Self:
        """Return the requests of start <= arrival < stop (seconds); `start` becomes time 0.

        Raises:
            WorkloadError: If the trace has no arrivals, or none in the window.
        """
        if not self.timed:
            raise WorkloadError(f"trace {show(self.name)}: it has no arrivals, so it has no window")
        first, last = np.searchsorted(self.arrival_s, [start, stop])
        if first >= last:
            span = f"{self.arrival_s[0]:g} to {self.arrival_s[-1]:g} s"
            raise WorkloadError(
                f"trace {show(self.name)}: no request arrives from {start:g} to {stop:g} s, "
                f"its arrivals are {span}"
            )
        part = self[int(first) : int(last)]
        return replace(part, arrival_s=part.arrival_s - start)

    def sample(self, n: int, seed: int = 0) -> Self:
        """Return `n` requests drawn without replacement, at their own times: the rate falls.

        Raises:
            WorkloadError: If `n` is not from 1 to the number of requests.
        """
        if not 1 <= n <= len(self):
            raise WorkloadError(
                f"trace {show(self.name)}: a sample has 1 to {len(self):,} requests, got {n:,}"
            )
        rows = np.random.default_rng(seed).choice(len(self), n, replace=False)
        return self.take(np.sort(rows))

    def describe(self) -> dict[str, Any]:
        """Return its statistics by name; names end in their units (`describe.describe`)."""
        from opbyte.workloads.traces.describe import describe

        return describe(self)

    def frame(self) -> pd.DataFrame:
        """Return the columns as a frame, one row per request, without block ids."""
        import pandas as pd

        columns = self._columns()
        return pd.DataFrame(columns if self.timed else {n: columns[n] for n in list(columns)[1:]})

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, name: str = "frame") -> Self:
        """Return the trace of a frame with one row for each request.

        Columns are input_tokens and output_tokens, and as far as there are any arrival_s, session,
        tenant, priority, adapter and model.

        Raises:
            ConfigError: If a column is missing or unknown; with the nearest name.
            WorkloadError: If values are impossible.
        """
        known = [f.name for f in fields(cls)][:3] + list(_OPTIONAL)
        _check_names([str(c) for c in frame.columns], known)
        columns: dict[str, Any] = {str(c): frame[c].to_numpy() for c in frame.columns}
        timed = "arrival_s" in columns
        arrivals = columns.pop("arrival_s", np.zeros(len(frame)))
        return cls(arrivals, **columns, name=name, source="a frame", timed=timed)


_TOKENS = ("input_tokens", "output_tokens")


def _check_names(given: list[str], known: list[str]) -> None:
    """Raise a ConfigError for a frame's unknown and missing columns."""
    for name in given:
        if name not in known:
            near = nearest(name, known)
            guess = f"Did you mean {near!r}? " if near else ""
            rule = f"a frame of requests has no column {show(name)}"
            raise ConfigError.one("", "", rule, "", f"{guess}Known: {', '.join(known)}.")
    for name in _TOKENS:
        if name not in given:
            raise ConfigError.one("", "", f"a frame of requests needs the column {name!r}")
