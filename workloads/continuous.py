"""The steady state of continuous batching: a request that ends is replaced at once.

`batch` slots each hold a request of `input` tokens that produces `output`: one iteration reads its
prompt and yields the first token, `output - 1` more decode. Slots start at random, so that in an
iteration the number of slots that read a prompt is binomial,

    P(k) = C(B, k) q^k (1 - q)^(B - k),   q = 1 / output,

and the other B - k decode, each at a random place of its answer. Iterations of each k are one phase
with as many repeats as it has in `output` iterations, in which `batch * output` tokens come out.
What is left beyond the last k counts as that one. Of several replicas the one with most prompts is
what the others wait for: it reads ceil(k / dp). Lengths are means: how requests scatter around
them changes which iterations come together, and the mean iteration little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Array, Number, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.footprint import footprint
from opbyte.workloads.model import Model
from opbyte.workloads.model_work import ModelWork, check_context, residual_bytes
from opbyte.workloads.numeric import maximum
from opbyte.workloads.spans import Segment, Step, tokens_of
from opbyte.workloads.work import WORKS, replica

#: Share of the iterations that may have more prompts than the last phase has.
REST = 1e-4
#: Most prompts of an iteration.
MOST = 64
#: Metric -> share of the times between tokens that are no longer.
QUANTILES = {"tbt_p50": 0.5, "tbt_p99": 0.99}


@WORKS.register("continuous")
@dataclass(frozen=True)
class Continuous(ModelWork):
    """A server that is never idle, `output` iterations of it.

    Attributes:
        batch: Requests that are served at a time.
        input: Prompt tokens of each.
        output: Tokens produced for each, at least 2.
    """

    kind: ClassVar[str] = "continuous"
    metrics: ClassVar[tuple[str, ...]] = ("tpot", *QUANTILES)
    vector_fields: ClassVar[tuple[str, ...]] = ("batch", "input", "output")
    least: ClassVar[Mapping[str, float]] = {"output": 2.0}

    model: Model
    batch: Number
    input: Number
    output: Number

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If one makes no sense, input and output exceed the model's context, or
                the model has an encoder.
        """
        super().__post_init__()
        check_context(self.kind, self.model, self.input + self.output, "input + output")
        if self.model.encoder:
            raise WorkloadError(
                f"{self.kind}: {self.model.name} has an encoder, which reads prompts whole"
            )

    @property
    def tokens(self) -> Number:
        """Return the tokens produced."""
        return self.batch * self.output

    @property
    def sequences(self) -> Number:
        """Return the requests that are served at a time."""
        return self.batch

    @property
    def chances(self) -> Array:
        """Return the probability of each number of prompts in an iteration, (prompts, points).

        Raises:
            WorkloadError: If iterations with more than `MOST` prompts are common.
        """
        batch, chance = np.broadcast_arrays(*np.atleast_1d(self.batch, 1.0 / self.output))
        each = [(1.0 - chance) ** batch]
        ended = np.zeros(batch.shape, bool)
        for k in range(MOST):
            rest = 1.0 - np.sum(each, axis=0)
            # A point's last number of prompts is its own, whatever the others have.
            last = (rest < REST) & ~ended
            each[-1] = np.where(last, each[-1] + rest, each[-1])
            ended = ended | last
            if ended.all():
                return np.stack(each)
            odds = chance / (1.0 - chance) / (k + 1)
            each.append(np.where(ended, 0.0, each[-1] * np.maximum(batch - k, 0.0) * odds))
        raise WorkloadError(
            f"{self.kind}: more than {MOST} prompts in an iteration are common. lower batch, or "
            "raise output"
        )

    def _iteration(self, prompts: int, parallel: Parallel) -> Step:
        mine = float(-(-prompts // parallel.dp))
        decodes = maximum(replica(self.batch, parallel) - mine, 0.0)
        decode = Segment("decode", decodes, 1.0, self.input, self.output - 1.0)
        if not prompts:
            return Step((decode,))
        return Step((Segment("prefill", mine, self.input), decode))

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return a phase for each number of prompts."""
        if parallel.microbatches > 1:
            raise WorkloadError(
                f"{self.kind}: an iteration has one microbatch, got {parallel.microbatches}"
            )
        return tuple(
            Phase(
                f"prompts_{k}",
                self._step(self.model, self._iteration(k, parallel), parallel),
                self.output * (chance if chance.size > 1 else float(chance[0])),
            )
            for k, chance in enumerate(self.chances)
        )

    def summary(self, seconds: Mapping[str, Array]) -> dict[str, Array]:
        """Return the mean and quantiles of the time between tokens, seconds."""
        times = np.stack(np.broadcast_arrays(*seconds.values()))
        chances = np.broadcast_to(self.chances, times.shape)
        order = np.argsort(times, axis=0, kind="stable")
        ordered = np.take_along_axis(times, order, axis=0)
        below = np.take_along_axis(chances, order, axis=0).cumsum(axis=0)
        found = {"tpot": (times * chances).sum(axis=0)}
        for name, share in QUANTILES.items():
            at = np.minimum((below < share).sum(axis=0), len(times) - 1)
            found[name] = np.take_along_axis(ordered, at[None], axis=0)[0]
        return found

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class on the fullest device, every request at its end."""
        held = [(replica(self.batch, parallel), self.input + self.output)]
        phases = self.lowered(parallel)
        most = (self.chances > 0.0).sum(axis=0) - 1
        found: dict[str, Number] = {}
        for k in np.unique(most):
            tokens = tokens_of(self._iteration(int(k), parallel).segments)
            bytes_of = footprint(
                self.model, parallel, phases[k].table, cached=held,
                residual=residual_bytes(self.model, tokens),
            )  # fmt: skip
            if most.size == 1:
                return bytes_of
            for name, size in bytes_of.items():
                found[name] = np.where(most == k, size, found.get(name, 0.0))
        return found
