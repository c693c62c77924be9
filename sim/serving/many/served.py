"""An engine that has more adapters or models than fit: what it needs beside plain serving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opbyte.core.errors import UncoveredError
from opbyte.sim.place import Placer
from opbyte.sim.serving.clock import Clock
from opbyte.sim.serving.engine import Engine
from opbyte.sim.serving.many.adapters import AdapterPrices, Gate
from opbyte.sim.serving.many.below import (
    Below,
    below,
    fast_memory,
    one_bytes,
    slots_of,
    uncached,
)
from opbyte.sim.serving.many.models import Turns
from opbyte.sim.serving.many.residents import Beside, Shelf
from opbyte.sim.serving.prices.step import Prices
from opbyte.sim.serving.schedulers import Scheduler
from opbyte.workloads.residents import Adapters, Models
from opbyte.workloads.serve import Serve


@dataclass(frozen=True)
class Many:
    """Adapters or models of an engine.

    Attributes:
        block: What was asked for.
        below: Where all of them live.
        slots: How many are in the fast memory at once.
        prices: What adapters cost in a step; None for models.
        ahead: Models are copied while others run.
    """

    block: Adapters | Models
    below: Below
    slots: int
    prices: AdapterPrices | None = None
    ahead: bool = False

    @classmethod
    def of(cls, placer: Placer, steps: Placer, work: Serve) -> Many | None:
        """Return what a work needs, None where it has neither adapters nor models.

        Args:
            placer: Of the mapping as it is given.
            steps: Of the one by which steps run.
        Raises:
            CapacityError, ConfigError, UncoveredError: As `below`; for copies that take the whole
                of what steps use too.
        """
        block = work.adapters or work.models
        if block is None:
            return None
        degrees = placer.mapping.degrees
        tensor = "adapter.weight" if work.adapters is not None else "model.weight"
        where = below(placer, block, tensor, one_bytes(work, degrees))
        prices = None
        if work.adapters is not None:
            most = work.scheduler.max_batched_tokens
            prices = AdapterPrices(steps, work.model, work.adapters.adapter, most)
        ahead = placer.mapping.overlap == "copy"
        return cls(block, where, slots_of(work, degrees), prices, ahead)

    def engine(
        self, env: Clock, make: Callable[[], Scheduler], prices: Prices, depth: int
    ) -> Engine:
        """Return an idle engine.

        Args:
            make: Gives a scheduler; all of them have the same pool.
        Raises:
            UncoveredError: If copies take the whole of what steps use too.
        """
        taken = [r for r in prices.resources if self.below.shares.get(r, 0.0) >= 1.0]
        if taken:
            raise UncoveredError(
                f"steps use '{taken[0]}', which copies from '{self.below.memory}' fill, and no "
                "model shares it. use a mapping that leaves it alone"
            )
        shelf = Shelf(env, self.below, self.slots)
        block, beside = self.block, Beside(shelf, prices.resources, self.prices)
        if isinstance(block, Adapters):
            gate = Gate(
                make(), shelf, distinct=block.distinct or self.slots,
                prefetch=block.prefetch, overtake=block.overtake,
            )  # fmt: skip
            engine = Engine(env, gate, prices, depth=depth, beside=beside)
            gate.wake = engine.poke
            return engine
        turns = Turns(make, shelf, block, ahead=self.ahead)
        engine = Engine(env, turns, prices, depth=depth, beside=beside)
        turns.wake, turns.planned_until = engine.poke, lambda: engine.planned_until
        return engine


def steps_of(placer: Placer, work: Serve, *, divides: bool) -> Placer:
    """Return the placer by which steps run: what is cached is in the fast memory.

    Args:
        divides: The scheduler divides steps by layers.
    Raises:
        UncoveredError: If adapters or models are asked for beside what no model joins with them.
    """
    if work.adapters is None and work.models is None:
        return placer
    for bad, what in (
        (work.speculation is not None, "guesses (speculate)"),
        (work.scheduler.preempt == "swap", "caches that go to the memory below (preempt: swap)"),
        (divides, "steps divided by layers"),
        (bool(placer.tiers("kv").spill), "contents below the cache (spill)"),
        (work.scheduler.kv_budget is not None, "a kv_budget"),
    ):
        if bad:
            raise UncoveredError(f"no model joins {what} with adapters or models. leave one out")
    return Placer(placer.machine, uncached(placer.mapping, fast_memory(placer)))
