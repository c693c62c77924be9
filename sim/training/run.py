"""A training step on a machine: what is refused, where a policy puts tensors, and the evaluation.

`opbyte.sim.training.step` has the seconds, `opbyte.sim.training.outcome` the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.hw_models.machine import Machine
from opbyte.sim.result import Outcome
from opbyte.sim.runners import RUNNERS
from opbyte.sim.training.allocation import ORDER, Tensor, allocated, placed
from opbyte.sim.training.drives import is_drive
from opbyte.sim.training.optimal import StepModel, others, step_model
from opbyte.sim.training.outcome import outcome_of
from opbyte.sim.training.points import placed_alike
from opbyte.sim.training.step import Training

if TYPE_CHECKING:
    from opbyte.workloads.train import TrainStep

__all__ = ["model_of", "run_train"]


@RUNNERS.register("train")
def run_train(
    machine: Machine, work: TrainStep, mapping: SoftwareMapping, fidelity: str, seed: int
) -> Outcome:
    """Return the outcome of a training step.

    Raises:
        UncoveredError: For the fidelity `event`, or a mapping that training has no model of.
    """
    del seed
    _check(machine, work, mapping, fidelity)
    ideal = fidelity == "bound"

    def run(some: Machine, step: TrainStep, placed: SoftwareMapping) -> Outcome:
        training = Training(some, step, placed, ideal)
        return outcome_of(training, training.timed())

    if mapping.allocate is None:
        return run(machine, work, mapping)
    local = mapping.allocate.local

    def run_placed(some: Machine, step: TrainStep, placed: SoftwareMapping) -> Outcome:
        outcome = run(some, step, placed)
        shares = {
            f"{n}_local": placed.place[n].in_.get(local, 0.0) for n in ORDER if n in placed.place
        }
        kept = {name: np.full(1, share) for name, share in shares.items()}
        return replace(outcome, metrics={**outcome.metrics, **kept})

    known: dict[tuple[float, ...], SoftwareMapping] = {}

    def decide(one: Machine, step: TrainStep) -> SoftwareMapping:
        # Only a policy that counts seconds sees more than sizes and rooms.
        block, counted = mapping.allocate, []
        assert block is not None, "asked only of a mapping with a policy"
        model = model_of(one, step, mapping, ideal=ideal)

        def noted(tensors: Sequence[Tensor]) -> StepModel:
            counted.append(True)
            return model(tensors)

        for tier in (block.local, block.beyond):
            one.memory(tier)
        key = tuple(float(getattr(step, name)) for name in step.vector_fields) + tuple(
            float(one.values[f"{tier}.capacity"]) for tier in (block.local, block.beyond)
        )
        if key in known:
            return known[key]
        chosen = allocated(one, step, mapping, noted)
        if not counted:
            known[key] = chosen
        return chosen

    return placed_alike(machine, work, decide, run_placed)


def model_of(
    machine: Machine, work: TrainStep, mapping: SoftwareMapping, *, ideal: bool
) -> Callable[[Sequence[Tensor]], StepModel]:
    """Return what makes the seconds of a step as a function of where tensors live."""

    def model(tensors: Sequence[Tensor]) -> StepModel:
        assert mapping.allocate is not None, "asked only of a mapping with a policy"
        names, ends = [t.name for t in tensors], (mapping.allocate.local, mapping.allocate.beyond)
        near, far = (
            Training(machine, work, placed(mapping, dict.fromkeys(names, share), *ends), ideal)
            for share in (1.0, 0.0)
        )
        return step_model(machine, near, far, tensors, others(names))

    return model


def _check(machine: Machine, work: TrainStep, mapping: SoftwareMapping, fidelity: str) -> None:
    if fidelity == "event":
        raise UncoveredError(
            f"{machine.name}: the event kernel plays no training step: it would have copies, sends "
            "and exchanges of replicas queue for links and memories. use the fidelity analytic, "
            "whose pipeline is played pass by pass"
        )
    cached = [name for name, place in mapping.place.items() if place.cache]
    lacking = {
        f"a cache of {', '.join(cached)}": bool(cached),
        "a share that is swapped, or staging, beside `allocate`": (
            mapping.allocate is not None
            and (mapping.swap is not None or mapping.staging is not None)
        ),
        "an allocator beside a share that is swapped, or `allocate`": (
            mapping.allocator is not None
            and (mapping.swap is not None or mapping.allocate is not None)
        ),
        "staging in a drive": (
            mapping.staging is not None and is_drive(machine, mapping.staging.memory)
        ),
        "staging of the stages of a pipeline": (
            mapping.staging is not None and mapping.degrees.pp > 1
        ),
        "a pipeline block": mapping.pipeline is not None,
        "decode attention on a group of its own": mapping.attention is not None,
        "devices that are sets": mapping.default is not None and mapping.default.together,
        "microbatches (the work's batch and micro_batch say how many)": (
            mapping.degrees.microbatches > 1
        ),
        "an artifact's conventions": mapping.artifact is not None,
        "`host`, one time for the operators of all stages (`launch` names each kernel's)": (
            mapping.host is not None
        ),
    }
    wished = [what for what, here in lacking.items() if here]
    if wished:
        raise UncoveredError(
            f"mapping '{mapping.name}' of {machine.name}: a {work.kind} work has no model of "
            f"{', '.join(wished)}. leave {'it' if len(wished) == 1 else 'them'} out"
        )
