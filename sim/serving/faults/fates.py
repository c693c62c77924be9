"""What becomes of requests when a device is lost: one set of rules for both engines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from opbyte.sim.serving.faults.changes import Change
from opbyte.workloads.serve import Faults


@dataclass
class Toll:
    """Who failed or was refused because devices were lost, and why.

    Attributes:
        group: Part of the devices.
        devices: How many there are.
        reasons: Request's row -> why it is not served.
        failed: Rows of those that had begun.
        again: Row -> how often it was to be computed again.
        losses: Devices that were lost until now.
    """

    faults: Faults
    group: str
    devices: int
    reasons: dict[int, str] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    again: dict[int, int] = field(default_factory=dict)
    losses: int = 0

    def lose(self, held: Iterable[int], changes: Sequence[Change]) -> None:
        """Note changes; those fail that held a cache and are not computed again.

        Args:
            held: Rows of those that held some.
            changes: That take effect together.
        """
        lost = [change for change in changes if change.lost]
        if not lost:
            return
        numbers = [device for change in lost for device in change.lost]
        self.losses += len(numbers)
        which = f"device{'s' * (len(numbers) > 1)} {' and '.join(map(str, numbers))}"
        why = f"its KV cache went with {which} of '{self.group}' at {lost[0].at:.6g} s"
        for row in held:
            if self.faults.policy == "fail":
                self.fail(row, why)
                continue
            self.again[row] = self.again.get(row, 0) + 1
            if self.again[row] > self.faults.retries:
                self.fail(row, f"{why}, after it was computed again {self.faults.retries} times")

    def fail(self, row: int, why: str) -> None:
        """Note that a request which had begun is not served."""
        self.reasons[row] = why
        self.failed.add(row)

    def ends(self, changes: Sequence[Change]) -> bool:
        """Return whether the step under way ends before changes take effect."""
        return self.faults.step == "ends" or not any(change.lost for change in changes)

    def refuse(self, row: int, why: str, working: int, *, begun: bool) -> None:
        """Note that a request can not be served by the devices that work.

        Args:
            why: As the scheduler says it.
            working: Devices that work.
            begun: It had begun.
        """
        few = f": {working} of {self.devices} devices of '{self.group}' work"
        self.reasons[row] = why + (few if working < self.devices else "")
        if begun:
            self.failed.add(row)
