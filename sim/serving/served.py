"""What came of a trace: what became of its requests, and what each engine did for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Array
from opbyte.sim.serving.compiled.state import SERIES
from opbyte.sim.serving.fleet.spread import Spread
from opbyte.sim.serving.many.residents import Copied
from opbyte.sim.serving.prices.layout import TRAFFIC
from opbyte.sim.serving.requests import Request
from opbyte.sim.serving.tally import Tally
from opbyte.workloads.traces import RequestTrace

if TYPE_CHECKING:
    import pandas as pd


#: What becomes of a request: it may begin and not end.
STATUS = ("served", "rejected", "failed")


class Fates(NamedTuple):
    """What became of the requests of a trace.

    Attributes:
        times: Scheduled, first token, last token, seconds, NaN where there is none, (3, requests).
        arrival: Seconds, (requests,).
        reasons: Row -> why it was not served.
        preempted: How often each request lost its blocks, (requests,).
        failed: Rows of `reasons` that had begun.
    """

    times: Array
    arrival: Array
    reasons: dict[int, str]
    preempted: npt.NDArray[Any]
    failed: frozenset[int] = frozenset()

    @classmethod
    def unknown(cls, trace: RequestTrace, reasons: dict[int, str]) -> Fates:
        """Return fates to be filled in, of all requests that are not refused."""
        n = len(trace)
        return cls(np.full((3, n), np.nan), trace.arrival_s, reasons, np.zeros(n, np.int32))

    @classmethod
    def of(cls, requests: Sequence[Request]) -> Fates:
        """Return what readable engines have noted in requests, all rows of a trace."""
        times = np.array([[r.scheduled_s, r.first_token_s, r.last_token_s] for r in requests]).T
        return cls(
            np.where(times < 0.0, np.nan, times),
            np.array([r.arrival for r in requests]),
            {r.index: r.reason for r in requests if r.reason},
            np.array([r.preempted for r in requests], np.int32),
        )

    @property
    def accepted(self) -> npt.NDArray[np.int64]:
        """Return the rows that are not refused, ascending."""
        good = np.ones(len(self.arrival), bool)
        good[list(self.reasons)] = False
        return np.flatnonzero(good)

    def put(self, rows: Any, times: Array, preempted: npt.NDArray[Any]) -> None:
        """Fill in what became of some requests."""
        self.times[:, rows], self.preempted[rows] = times, preempted


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """What one engine did, readable or compiled.

    Attributes:
        series: Columns of `SERIES`, (6, rows).
        busy: Busy seconds of each resource.
        traffic: Bytes of each class of `TRAFFIC` that steps read, NaN where prices have none.
        joules: Dynamic energy of all steps, NaN where the machine does not say.
        means: Requests running and waiting and blocks in use, times seconds of steps, (3,).
        steps, tokens: How many in all.
        tally: Gaps between tokens, and how long how much was waiting and in use.
        hits: Tokens that requests had when they were admitted, by where they were found.
        moved: Bytes that each link carried between the cache and tiers below it.
        written: Bytes that were written to each memory below the cache, of all devices.
        decodes, decoded: Steps of requests after their first tokens, and tokens that came of them.
        copied: What became of adapters or models, None where there are neither.
        replica: Number of the engine among several.
    """

    series: Array
    busy: dict[str, float]
    traffic: Array
    joules: float
    means: Array
    steps: int
    tokens: int
    tally: Tally
    hits: dict[str, int]
    moved: dict[str, float] = field(default_factory=dict)
    written: dict[str, float] = field(default_factory=dict)
    decodes: int = 0
    decoded: int = 0
    copied: Copied | None = None
    replica: int = 0


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What came of a trace.

    Attributes:
        times, arrival, reasons, preempted, failed: As of `Fates`.
        series: Columns of `SERIES`, (6, rows); of several engines in the order of the steps' ends.
        busy, joules, means, steps, tokens, hits, moved, written, copied: As of `EngineRun`, of all
            engines.
        traffic: Bytes that steps read of weights and of experts, NaN where prices have none.
        tally: Gaps between tokens, and how long how much was waiting and in use; of several
            engines their sums.
        spread: Which of several engines did what; None of one alone.
        tokens_per_decode: Mean tokens that a request gets from a step after its first token.
        losses: Devices of decode attention that were lost.
    """

    trace: RequestTrace
    times: Array
    arrival: Array
    reasons: dict[int, str]
    preempted: npt.NDArray[Any]
    failed: frozenset[int]
    series: Array
    busy: dict[str, float]
    traffic: dict[str, float]
    joules: float
    means: Array
    steps: int
    tokens: int
    tally: Tally
    spread: Spread | None
    tokens_per_decode: float
    copied: Copied | None
    hits: dict[str, int]
    moved: dict[str, float]
    written: dict[str, float]
    losses: int = 0

    @property
    def seconds(self) -> float:
        """Return the time from the first arrival to the last token."""
        return float(np.nanmax(self.times[2]) - self.arrival.min())

    @property
    def busy_shares(self) -> dict[str, float]:
        """Return the share of the time in which an instance of each resource is busy, a mean."""
        if self.spread is None:
            engines, instances = 1, {}
        else:
            engines, instances = self.spread.engines, self.spread.instances
        seconds = self.seconds if self.served.any() else np.nan
        return {n: busy / seconds / instances.get(n, engines) for n, busy in self.busy.items()}

    @cached_property
    def served(self) -> npt.NDArray[np.bool_]:
        """Return which requests got their last token, (requests,)."""
        done: npt.NDArray[np.bool_] = np.isfinite(self.times[2])
        return done

    @property
    def requests(self) -> pd.DataFrame:
        """Return one row for each request of the trace; it shares the memory of `times`."""
        import pandas as pd

        scheduled, first, last = self.times
        # One code for each row, not one text.
        texts = {text: i for i, text in enumerate(dict.fromkeys(["", *self.reasons.values()]))}
        codes = np.zeros(len(self.arrival), np.int32)
        codes[list(self.reasons)] = [texts[text] for text in self.reasons.values()]
        status = (~self.served).astype(np.int8)
        status[list(self.failed)] = 2
        columns = {
            "arrival_s": self.arrival.copy(),
            "scheduled_s": scheduled,
            "first_token_s": first,
            "last_token_s": last,
            "input_tokens": self.trace.input_tokens.copy(),
            "output_tokens": self.trace.output_tokens.copy(),
            "preempted": self.preempted,
            "status": pd.Categorical.from_codes(status, pd.Index(STATUS)),
            "reason": pd.Categorical.from_codes(codes, pd.Index(list(texts))),
            **({} if self.spread is None else self.spread.columns),
        }
        return pd.DataFrame(columns, copy=False)

    @property
    def steps_frame(self) -> pd.DataFrame:
        """Return what steps found when they ended: one row for each, or for every n-th."""
        import pandas as pd

        columns: dict[str, Any] = dict(zip(SERIES, self.series, strict=True))
        if self.spread is not None:
            columns["replica"] = self.spread.series
        return pd.DataFrame(columns)


def together(
    trace: RequestTrace, fates: Fates, runs: Sequence[EngineRun], spread: Spread | None = None
) -> Serving:
    """Return what engines did as one: their steps in the order in which they ended.

    Args:
        runs: Of one engine, or of several; of one that failed and came back, or that lost devices,
            more than one.
        spread: Which of several engines did what, as far as runs do not say; None of one alone.
    """
    # As it is: a copy would cost memory.
    series = runs[0].series
    if len(runs) > 1 or spread is not None:
        series = np.concatenate([run.series for run in runs], axis=1)
    if spread is not None:
        of = np.repeat([run.replica for run in runs], [run.series.shape[1] for run in runs])
        order = np.argsort(series[0], kind="stable")
        steps = np.zeros(spread.engines, np.int64)
        np.add.at(steps, [run.replica for run in runs], [run.steps for run in runs])
        series, spread = series[:, order], replace(spread, series=of[order], steps=steps)
    decodes = sum(run.decodes for run in runs)
    traffic = np.sum([run.traffic for run in runs], axis=0)
    return Serving(
        trace=trace, **fates._asdict(), series=series, busy=_sums([run.busy for run in runs]),
        traffic=dict(zip(TRAFFIC, traffic.tolist(), strict=True)),
        joules=sum(run.joules for run in runs), means=np.sum([run.means for run in runs], axis=0),
        steps=sum(run.steps for run in runs), tokens=sum(run.tokens for run in runs),
        tally=runs[0].tally if len(runs) == 1 else Tally.together([run.tally for run in runs]),
        spread=spread, copied=runs[0].copied, hits=_sums([run.hits for run in runs]),
        tokens_per_decode=sum(run.decoded for run in runs) / decodes if decodes else 1.0,
        moved=_sums([run.moved for run in runs]), written=_sums([run.written for run in runs]),
    )  # fmt: skip


def _sums(counts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of what has the same name."""
    found: Counter[str] = Counter()
    for one in counts:
        found.update(one)
    return dict(found)
