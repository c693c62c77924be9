"""Speculative decoding: draft and verification one after the other, beside the plain step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.hw_models.machine import Machine
from opbyte.sim.phases import combine, feasible, run_phase, sum_over
from opbyte.sim.place import Placer
from opbyte.sim.result import Outcome
from opbyte.sim.runners import RUNNERS, refuse_caches

if TYPE_CHECKING:
    from opbyte.workloads.speculative import SpeculativeDecode


@RUNNERS.register("speculative_decode")
def run_speculative(
    machine: Machine, work: SpeculativeDecode, mapping: SoftwareMapping, fidelity: str, seed: int
) -> Outcome:
    """Return the outcome of one step of speculative decoding.

    The step yields its expected tokens, and its energy is divided by them: acceptance changes
    nothing that a step computes.

    Raises:
        UncoveredError: If the mapping caches a tensor.
    """
    del seed
    refuse_caches(machine, work, mapping)
    placer, degrees = Placer(machine, mapping), mapping.degrees
    runs = [run_phase(placer, p, fidelity) for p in work.lowered(degrees)]
    (plain,) = (run_phase(placer, p, fidelity) for p in work.plain().lowered(degrees))
    occupancy = placer.occupancy(work.footprint(degrees))
    metrics = combine(placer, runs, work.tokens)
    tokens, seconds = work.speculation.tokens_per_step, metrics["seconds"]
    # The last phase verifies.
    drafted = sum_over(runs[:-1], lambda r: r.step.seconds) if runs[:-1] else np.zeros(1)
    metrics |= {
        "tokens_per_step": np.array([tokens]),
        "tpot": seconds / tokens,
        "plain_tpot": plain.step.seconds,
        "speedup_over_plain": plain.step.seconds * tokens / seconds,
        "draft_share": drafted / seconds,
    }
    return feasible(placer, Outcome(metrics, tuple(runs), occupancy))
