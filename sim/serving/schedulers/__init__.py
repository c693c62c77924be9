"""Schedulers: who computes how many tokens in the next step. They never ask what it costs."""

from __future__ import annotations

from opbyte.sim.serving.schedulers.base import (
    SCHEDULERS,
    Continuous,
    Group,
    Limits,
    Piece,
    Plan,
    Scheduler,
)
from opbyte.sim.serving.schedulers.fair import Fair
from opbyte.sim.serving.schedulers.layered import Layered
from opbyte.sim.serving.schedulers.queues import Prefix, Shortest

__all__ = [
    "SCHEDULERS",
    "Continuous",
    "Fair",
    "Group",
    "Layered",
    "Limits",
    "Piece",
    "Plan",
    "Prefix",
    "Scheduler",
    "Shortest",
]
