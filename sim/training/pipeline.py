"""Pipelines of stages: one forward, one backward, with or without chunks.

A stage with `ahead` warm-up passes runs these forward, then one forward and one backward by turns,
then the backward passes that are left (Narayanan et al., arXiv 2104.04473, section 2.2). The order
is fixed; a pass starts when the stage is free and what it reads has arrived. A stage sends what it
made before it goes on. Of equal stages without sends

    seconds = m (f + b) + (p - 1) (f + b) / v

with m microbatches, p stages of v chunks, f and b the passes of a whole stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from opbyte.core.errors import UncoveredError
from opbyte.core.loops import LOOP
from opbyte.core.ops import Array
from opbyte.workloads.training.plan import in_flight

Ints = npt.NDArray[np.int64]

#: Columns of an order: 1 for backward, virtual stage, microbatch.
BACK, VIRTUAL, MICRO = range(3)
#: Passes of a step that are played one by one: some 100 MB.
MOST_PASSES = 2**22


def check_passes(microbatches: float, virtual: int) -> None:
    """Refuse more passes than can be played.

    Raises:
        UncoveredError: With their number.
    """
    passes = 2.0 * microbatches * virtual
    if passes > MOST_PASSES:
        raise UncoveredError(
            f"train: {microbatches:g} microbatches of a replica in {virtual} chunks of layers are "
            f"{passes:g} passes, and at most {MOST_PASSES:g} are played. lower batch, or raise "
            "micro_batch"
        )


def order_of(stages: int, chunks: int, microbatches: int, stage: int) -> Ints:
    """Return the passes of a stage in their order, (2 * microbatches * chunks, 3).

    Chunks take turns for groups of `stages` microbatches.
    """
    count = microbatches * chunks
    turn = np.arange(count)
    if chunks == 1:
        chunk, micro = np.zeros(count, np.int64), turn
    else:
        chunk = turn // stages % chunks
        micro = turn // (stages * chunks) * stages + turn % stages
    forth = np.stack([np.zeros(count, np.int64), chunk * stages + stage, micro], axis=1)
    back = np.stack(
        [np.ones(count, np.int64), (chunks - 1 - chunk) * stages + stage, micro], axis=1
    )
    ahead = int(in_flight(stages, chunks, stage, microbatches)) - 1
    turns = np.stack([forth[ahead:], back[: count - ahead]], axis=1).reshape(-1, 3)
    return np.concatenate([forth[:ahead], turns, back[count - ahead :]])


@dataclass(frozen=True)
class Played:
    """What a pipeline did at one design point.

    Attributes:
        seconds: From the first pass to the end of the last.
        orders: Passes of each stage, (stages, passes, 3).
        ends: When each ended, (stages, passes).
    """

    seconds: float
    orders: Ints
    ends: Array


def play(
    forward: Array, backward: Array, send: float, stages: int, chunks: int, microbatches: int
) -> Played:
    """Return the times of all passes.

    Args:
        forward, backward: Seconds of a pass of each virtual stage, (stages * chunks,).
        send: Seconds of one send to another stage.
    """
    orders = np.stack([order_of(stages, chunks, microbatches, s) for s in range(stages)])
    virtual = stages * chunks
    ends = np.zeros((stages, orders.shape[1]))
    done = np.full((2, virtual, microbatches), -1.0)
    out = np.full((2, virtual), send if stages > 1 else 0.0)
    out[0, virtual - 1] = out[1, 0] = 0.0
    at = np.zeros(stages, np.int64)
    seconds = np.stack([forward, backward]) + out
    compiled()(ends, done, at, orders, seconds)
    return Played(float(ends[:, -1].max()), orders, ends)


def fill_ends(ends: Array, done: Array, at: Ints, orders: Ints, seconds: Array) -> None:
    """Set the end of every pass.

    Args:
        ends: Result, (stages, passes).
        done: Scratch of -1: end of each pass by direction, virtual stage and microbatch.
        at: Scratch of 0: passes that each stage has done.
        orders: (stages, passes, 3).
        seconds: Of a pass and its send, by direction and virtual stage.
    """
    stages, passes = ends.shape
    last = seconds.shape[1] - 1
    left = stages * passes
    while left > 0:
        before = left
        for stage in range(stages):
            while at[stage] < passes:
                i = at[stage]
                back, virtual, micro = orders[stage, i, 0], orders[stage, i, 1], orders[stage, i, 2]
                ready = 0.0
                if back == 0 and virtual > 0:
                    ready = done[0, virtual - 1, micro]
                elif back == 1:
                    ready = done[0, virtual, micro]
                    if virtual < last and ready >= 0.0:
                        ready = done[1, virtual + 1, micro]
                if ready < 0.0:
                    break
                start = ready if i == 0 else max(ready, ends[stage, i - 1])
                ends[stage, i] = start + seconds[back, virtual]
                done[back, virtual, micro] = ends[stage, i]
                at[stage] = i + 1
                left -= 1
        if left == before:
            # Orders of `order_of` never wait for each other in a circle.
            ends[:] = np.nan
            return


@cache
def compiled() -> Any:
    """Return `fill_ends` compiled."""
    return numba.njit(**LOOP)(fill_ends)


def kept_over_time(played: Played, stage: int, kept: Sequence[float]) -> tuple[Array, Array]:
    """Return when the activations that a stage keeps change, and to how many bytes.

    Args:
        kept: Bytes of a microbatch in each virtual stage.
    """
    order, ends = played.orders[stage], played.ends[stage]
    sizes = np.array([kept[v] for v in order[:, VIRTUAL]])
    change = np.where(order[:, BACK] == 1, -sizes, sizes)
    return ends, np.cumsum(change)
