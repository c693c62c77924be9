"""Collectives as latency steps plus bytes on the wire of one participant.

With p participants, payload s bytes each, and a link whose rate is per participant and direction
(Thakur, Rabenseifner, Gropp 2005):

    ring:                  all-reduce 2(p-1) steps, 2 s (p-1)/p bytes; half of both for its parts
    switch, all-to-all:    every participant reaches every other at once: 2 steps and 1 step
    all-to-all:            1 step, s (p-1)/p bytes where every participant reaches every other; on
                           a ring p-1 steps, and s/p bytes for each of p-1 others are passed on over
                           1 to p-1 links: s (p-1)/2 bytes; a bus carries them once, one by one
    send:                  1 step, s bytes
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opbyte.core.errors import UncoveredError
from opbyte.core.ops import Array

_HALVES = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}


@dataclass(frozen=True, slots=True)
class CollectiveCost:
    """Latency steps and bytes that one participant puts on the wire, arrays of one shape."""

    steps: Array
    wire_bytes: Array


def collective_cost(
    kind: str, topology: str, payload: Array, participants: Array
) -> CollectiveCost:
    """Return the cost of one collective.

    Args:
        kind: all_reduce, all_gather, reduce_scatter, all_to_all or send.
        topology: The link's.
        payload: Bytes of each participant's full buffer.
        participants: Devices that take part.
    Raises:
        UncoveredError: For an unknown kind, or a topology that joins only two devices.
    """
    others = np.maximum(participants - 1.0, 0.0)
    share = payload * others / np.maximum(participants, 1.0)
    if kind == "send":
        return CollectiveCost(np.ones_like(payload), payload)
    if topology == "point-to-point" and bool((participants > 2).any()):
        raise UncoveredError(
            f"a point-to-point link carries no {kind} of {participants.max():.0f} devices. "
            "give the link a topology"
        )
    ring = topology in ("ring", "bus")
    if kind == "all_to_all":
        steps = others if ring else np.minimum(others, 1.0)
        forwarded = np.maximum(participants / 2.0, 1.0) if topology == "ring" else 1.0
        return CollectiveCost(steps, share * forwarded)
    if kind not in _HALVES:
        raise UncoveredError(f"no collective is called '{kind}'. Known: {', '.join(_HALVES)}")
    halves = _HALVES[kind]
    steps = halves * (others if ring else np.minimum(others, 1.0))
    return CollectiveCost(steps, halves * share)
