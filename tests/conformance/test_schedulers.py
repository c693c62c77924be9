"""Schedulers keep their contract, and one of a user's own works like those that ship."""

import numpy as np
import pandas as pd
import pytest

import opbyte as ob
from opbyte.sim.serving.schedulers import Continuous
from opbyte.sim.serving.schedulers.layered import Layered
from opbyte.spi import SCHEDULERS, Group, Plan, Scheduler, check_scheduler


@pytest.mark.parametrize("name", SCHEDULERS.names())
@pytest.mark.parametrize("seed", range(5))
def test_schedulers_that_ship(name, seed):
    check_scheduler(SCHEDULERS.lookup(name), seed=seed)


class ShortestFirst(Continuous):
    """The shortest prompt that waits is tried first."""

    def plan(self) -> Plan:
        """Return the next step."""
        self.waiting = type(self.waiting)(sorted(self.waiting, key=lambda r: r.input))
        return super().plan()


@pytest.fixture
def shortest():
    SCHEDULERS.register("test-shortest-first")(ShortestFirst)
    yield "test-shortest-first"
    SCHEDULERS._entries.pop("test-shortest-first")


def test_a_scheduler_of_ones_own(shortest):
    check_scheduler(ShortestFirst)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "arrival_s": np.zeros(40),
            "input_tokens": rng.integers(50, 3000, 40),
            "output_tokens": rng.integers(5, 50, 40),
        }
    )

    def ttft(kind):
        work = ob.Serve("llama-3.1-8b", frame, scheduler={"kind": kind, "max_sequences": 4})
        return ob.simulate("a100-sxm-80gb", work).ttft_mean

    assert ttft(shortest) < 0.8 * ttft("continuous")


class Forgetful(Continuous):
    """Leaves out requests whose prompt is short."""

    def add(self, request):
        """Let a request wait, or not."""
        if request.input > 8:
            super().add(request)


class Greedy(Scheduler):
    """Gives everyone everything at once."""

    def plan(self) -> Plan:
        """Return the next step."""
        whole = Continuous(self.limits.__class__(max_batched_tokens=10**6), self.pool)
        whole.waiting, whole.running = self.waiting, self.running
        return whole.plan()


class Hasty(Layered):
    """Leaves out the groups between the first and the last."""

    def _advance(self):
        if self.group is not None and self.group.number == 1:
            self.group = Group(self.group.groups - 1, self.group.groups)
        return super()._advance()


@pytest.mark.parametrize(
    ("cls", "rule"),
    [(Forgetful, "all of its tokens"), (Greedy, "keep"), (Hasty, "take turns")],
)
def test_broken_schedulers_are_noticed(cls, rule):
    with pytest.raises(ob.SimulationError, match=rule):
        check_scheduler(cls)
