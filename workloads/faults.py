"""Attention devices that are lost while a trace is served, as users write them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from opbyte.core.errors import Problem
from opbyte.core.parameters import Seconds
from opbyte.workloads.serve_block import ServeBlock, refuse, unused


class Loss(ServeBlock):
    """A device that loses what it holds."""

    device: int = Field(ge=0)
    """Which one of the group of decode attention, counted from 0."""
    at: Seconds
    """When, after the trace's start."""
    for_: Seconds | None = Field(None, alias="for")
    """How long it is away; by default for good."""


class Faults(ServeBlock):
    """Devices of decode attention that are lost, and what becomes of the requests."""

    devices: tuple[Loss, ...] = ()
    """Losses at given times."""
    mtbf: Seconds | None = None
    """Mean time between failures of a device while it works: further losses are drawn, independent
    and exponential, from the seed of the run."""
    repair: Seconds | None = None
    """How long a device is away whose loss was drawn; by default for good."""
    policy: Literal["recompute", "fail"] = "recompute"
    """What becomes of a request whose cache was lost: prompt and answer are computed again, or it
    fails."""
    step: Literal["lost", "ends"] = "lost"
    """What becomes of the step under way when a device is lost: its tokens are lost, or it ends
    first."""
    retries: int = Field(8, ge=0, le=1_000_000)
    """How often a request is computed again after losses before it fails (assumed)."""

    @property
    def some(self) -> bool:
        """Return whether a device may be lost."""
        return bool(self.devices) or self.mtbf is not None

    @model_validator(mode="after")
    def _consistent(self) -> Faults:
        problems = []
        if self.repair is not None and self.mtbf is None:
            remedy = "give mtbf too, or write `for` in devices"
            problems.append(unused("repair", f"{self.repair.value:g} s", "mtbf", remedy))
        if self.was_given("retries") and self.policy == "fail":
            remedy = "leave it out, or use recompute"
            problems.append(unused("retries", self.retries, "policy recompute", remedy))
        for name in ("mtbf", "repair"):
            given = getattr(self, name)
            if given is not None and not 0.0 < given.value < float("inf"):
                rule = "must be some time"
                problems.append(Problem("", name, rule, f"{given.value:g} s", "write 1 h"))
        refuse([*problems, *self._impossible()])
        return self

    def _impossible(self) -> list[Problem]:
        """Return what is wrong with losses at given times."""
        problems, back = [], dict[int, float]()
        for i in sorted(range(len(self.devices)), key=lambda i: self.devices[i].at.value):
            loss, place = self.devices[i], f"devices[{i}]"
            at, away = loss.at.value, None if loss.for_ is None else loss.for_.value
            if away is not None and not 0.0 < away < float("inf"):
                remedy = "write 60 s, or leave it out: for good"
                problems.append(
                    Problem("", f"{place}.for", "must be some time", f"{away:g} s", remedy)
                )
            if at <= back.get(loss.device, -1.0):
                rule = f"device {loss.device} must be back before it is lost again"
                remedy = "let it be lost later, or be away for less"
                problems.append(Problem("", f"{place}.at", rule, f"{at:g} s", remedy))
            back[loss.device] = at + (float("inf") if away is None else away)
        return problems
