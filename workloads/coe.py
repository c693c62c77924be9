"""Composition of Experts: a router model picks, for every prompt, one of many whole models.

SN40L (arXiv 2405.07518): the router reads the prompts of a batch together; then the chosen expert
of each prompt generates, one prompt after the other. What moves an expert's weights to where they
are used is the simulation's business; this file knows the work only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Array, Number, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.model import Model
from opbyte.workloads.model_set import ModelSet
from opbyte.workloads.numeric import is_array, maximum
from opbyte.workloads.phases import Generate, Prefill
from opbyte.workloads.popularity import Choose, popularity
from opbyte.workloads.work import WORKS, Work


@WORKS.register("coe")
@dataclass(frozen=True)
class CompositionOfExperts(Work):
    """A batch of prompts, each routed to one of `count` expert models.

    Attributes:
        router: Model that reads every prompt once.
        experts: The experts' model: all have one architecture and different weights. A `ModelSet`
            brings its count along.
        count: Experts.
        batch: Prompts routed together.
        input: Prompt tokens of each.
        output: Tokens that the expert produces for each.
        choose: How prompts choose: uniformly, or by a power law of the experts' rank.
        skew: Exponent of the power law.
        expert_runs: Prompts run one after the other, as each needs another expert's weights.
        requests: Batches that the event fidelity plays, one after the other.
    """

    kind: ClassVar[str] = "coe"
    metrics: ClassVar[tuple[str, ...]] = (
        "router_s",
        "switch_s",
        "expert_s",
        "switch_one_s",
        "expert_one_s",
        "misses",
        "hit_rate",
        "models_in_fast",
        "models_max",
        "nodes_fast",
        "nodes_max",
        "tpot",
    )
    phase_metrics: ClassVar[Mapping[str, str]] = {"tpot": "expert.decode"}
    nested: ClassVar[Mapping[str, tuple[str, ...]]] = {"experts": ("choose", "skew")}
    vector_fields: ClassVar[tuple[str, ...]] = ("count", "batch", "input", "output")
    words: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "choose": get_args(Choose),
        "expert_runs": ("sequential",),
    }

    router: Model
    experts: ModelSet | Model
    count: Number = 0.0
    batch: Number = 1.0
    input: Number = 256.0
    output: Number = 20.0
    choose: Choose = "uniform"
    skew: float = 0.0
    expert_runs: Literal["sequential"] = "sequential"
    requests: float = 100.0

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            WorkloadError: If one makes no sense, or a prompt and its answer exceed a context.
        """
        if isinstance(self.experts, ModelSet):
            given = self.count
            if not is_array(given) and given == 0:
                object.__setattr__(self, "count", self.experts.count)
            object.__setattr__(self, "experts", self.experts.model)
        super().__post_init__()
        if self.skew and self.choose != "zipf":
            raise WorkloadError(f"coe: skew belongs to choose: zipf, got choose: {self.choose}")
        self.router_work()
        self.expert_work()

    @classmethod
    def checked_field(cls, name: str, given: Any) -> Any:
        """Return a field as it is kept.

        Raises:
            WorkloadError: If it makes no sense.
        """
        if name == "skew" and not (np.isfinite(given) and given >= 0):
            raise WorkloadError(f"coe: skew must be finite and >= 0, got {given}")
        return super().checked_field(name, given)

    @property
    def expert(self) -> Model:
        """Return the experts' model."""
        assert isinstance(self.experts, Model)
        return self.experts

    @property
    def tokens(self) -> Number:
        """Return the tokens produced."""
        return self.batch * self.output

    @property
    def sequences(self) -> Number:
        """Return the prompts."""
        return self.batch

    def router_work(self) -> Prefill:
        """Return the router's work: one prefill, whose first tokens name the experts."""
        return Prefill(self.router, self.batch, self.input)

    def expert_work(self) -> Generate:
        """Return the work of one prompt in its expert."""
        return Generate(self.expert, 1.0, self.input, self.output)

    def router_phase(self, parallel: Parallel) -> Phase:
        """Return the router's phase."""
        (phase,) = self.router_work().lower(parallel)
        return replace(phase, name="router")

    def expert_phases(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return the phases of one prompt in its expert: prefill and decode."""
        return tuple(
            replace(phase, name=f"expert.{phase.name}")
            for phase in self.expert_work().lower(parallel)
        )

    def lower(self, parallel: Parallel) -> tuple[Phase, ...]:
        """Return router and experts as if every expert's weights were in place."""
        experts = (
            replace(phase, repeats=phase.repeats * self.batch)
            for phase in self.expert_phases(parallel)
        )
        return (self.router_phase(parallel), *experts)

    def popularity(self, count: Number) -> Array:
        """Return the probability of each expert, (experts,), most popular first."""
        return popularity(int(float(count)), self.choose, self.skew)

    @property
    def distinct_experts(self) -> Number:
        """Return the expected distinct experts of one batch: sum over experts of 1 - (1 - p)^B."""
        if self.choose == "uniform" or self.skew == 0:
            return self.count * (1.0 - (1.0 - 1.0 / self.count) ** self.batch)
        if not is_array(self.count):
            return _expected(self.popularity(float(self.count)), self.batch)
        counts, batches = np.broadcast_arrays(self.count, self.batch)
        pairs = zip(counts, batches, strict=True)
        return np.array([float(_expected(self.popularity(float(c)), float(b))) for c, b in pairs])

    def expert_bytes(self, parallel: Parallel) -> Number:
        """Return the weight bytes of one expert on one device: what a switch moves there."""
        held = self.expert_work().footprint(parallel)
        return held["weight"] + held["expert"]

    def footprint(self, parallel: Parallel) -> dict[str, Number]:
        """Return the bytes of each tensor class that one device holds.

        `router.weight` and `expert.weight` are placed apart; the latter are all experts. Caches
        and activations are those of the larger of the two works, which never run together.
        """
        router = self.router_work().footprint(parallel)
        expert = self.expert_work().footprint(parallel)
        both = {name: maximum(router[name], expert[name]) for name in ("kv", "state", "activation")}
        return {
            "router.weight": router["weight"] + router["expert"],
            "expert.weight": self.count * (expert["weight"] + expert["expert"]),
            **both,
        }


def _expected(popularity: Array, batch: Number) -> Number:
    """Return the expected distinct experts of a batch, for one popularity."""
    if is_array(batch):
        hit: Array = 1.0 - (1.0 - popularity[:, None]) ** batch[None, :]
        total: Array = hit.sum(axis=0)
        return total
    return float((1.0 - (1.0 - popularity) ** batch).sum())
