"""Prices of all iterations of a server: one model on one machine, as a compiled table.

    prices = StepPrices.build("a100-sxm-80gb", model, max_tokens=8192, max_sequences=256)
    prices.cost([(512, 0)], decodes=64, context=64 * 1000).seconds

What depends on the number of tokens or of sequences alone is priced for each number, in one pass
over arrays: tile steps forbid to interpolate. What depends on the pieces of prompts and on
contexts is attention, and scans (`step_table`): a GPU's attention kernels are computed as they are,
so that the table equals the direct price of `Mixed`; other units' attention is linear in query-key
pairs and in tokens read, and so are scans, exactly on units without tiles, and within
`StepPrices.linear_error` elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opbyte.core.errors import SimulationError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.hw_models.price import Demand
from opbyte.sim.expert_offload import Experts, offloads
from opbyte.sim.metrics import static_watts
from opbyte.sim.result import PhaseRun
from opbyte.sim.serving.prices.batch import Batch
from opbyte.sim.serving.prices.graph import graph_table, has_graphs
from opbyte.sim.serving.prices.graph_table import GraphTable, alone
from opbyte.sim.serving.prices.layout import AROUND, B_COMPUTE, SECONDS, StepTable
from opbyte.sim.serving.prices.offload import offload_table
from opbyte.sim.serving.prices.offload_table import OffloadTable
from opbyte.sim.serving.prices.operators import call_of, mask_of
from opbyte.sim.serving.prices.probe import Key, Probe
from opbyte.sim.serving.prices.shapes import drawn
from opbyte.sim.serving.prices.step import flat_cost, tell
from opbyte.sim.serving.prices.tables import (
    ByBlock,
    Lane,
    Parts,
    Piecewise,
    by_block,
    sweep,
    table_of,
)
from opbyte.sim.serving.prices.turns import Turns
from opbyte.sim.serving.stamped import compiled
from opbyte.sim.simulate import evaluate, resolve_mapping
from opbyte.workloads.mixed import Mixed
from opbyte.workloads.model import Model
from opbyte.workloads.routing import Routing

#: Shapes with each number of pieces, 0 to 3, on which the error of slopes is measured.
CHECKED = 256
#: Error above which slopes are no price.
MOST_ERROR = 0.05


@dataclass(frozen=True)
class Cost:
    """What one iteration costs.

    Attributes:
        seconds: From start to end.
        joules: Dynamic energy of all devices, NaN where the machine does not say.
        busy: Busy seconds of each resource.
    """

    seconds: float
    joules: float
    busy: dict[str, float]


@dataclass(frozen=True)
class StepPrices:
    """The prices of all iterations of one model on one machine.

    Attributes:
        table: For `step_cost`. Calls write to scratch arrays in it. A `GraphTable` where prompts
            and decodes run in different places, an `OffloadTable` where experts are copied.
        resources: Ports, links and units, in the order of `busy`.
        max_tokens: Most tokens of an iteration.
        max_sequences: Most pieces and decodes of an iteration.
        static_watts: Power that flows whether or not anything runs, watts.
        linear_error: Largest relative error of an iteration's seconds against its direct price,
            over `4 * CHECKED` shapes that were drawn; 0 where attention is a kernel's own price.
        blocks: What of it is whose: layers, embedding, LM head; only of a `StepTable`.
    """

    table: StepTable | GraphTable | OffloadTable
    resources: tuple[str, ...]
    max_tokens: int
    max_sequences: int
    static_watts: float
    linear_error: float
    blocks: ByBlock | None

    @classmethod
    def build(
        cls,
        machine: str | Path | Mapping[str, Any] | Machine,
        model: Model,
        mapping: str | Path | Mapping[str, Any] | SoftwareMapping | None = None,
        *,
        max_tokens: int,
        max_sequences: int,
        routing: Routing | None = None,
        experts: Experts | None = None,
    ) -> StepPrices:
        """Price all iterations.

        Args:
            machine: As for `simulate`.
            model: Without an encoder.
            mapping: As for `simulate`; one replica, one pipeline stage.
            max_tokens: Most tokens of an iteration, at least 1.
            max_sequences: Most pieces and decodes of an iteration, at least 1.
            routing: How tokens choose experts.
            experts: How they are copied to the memory that the mapping places them in; None
                where they stay there. A mapping that caches them elsewhere is refused: give that
                by which they run (`expert_offload.reading`), and these.
        Raises:
            ConfigError: If something is unknown or contradicts itself.
            SimulationError: If an iteration takes for ever, because a rate is 0.
            UncoveredError: If no model covers what is asked, or tables do not.
        """
        loaded = load_machine(machine)
        software = resolve_mapping(loaded, mapping, "mixed")
        most = int(max_tokens), int(max_sequences)
        _check(loaded, model, software, most)
        how, turns = routing or Routing(), Turns.of(loaded, software)
        watts = float(np.max(static_watts(loaded)))

        def price(work: Mixed) -> Demand:
            return _evaluated(loaded, work, turns.mapping).demand

        if has_graphs(software) or experts is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                host, many = _host(software), (turns.batches, turns.shared)
                graphs = graph_table(price, loaded, model, how, most, host, many)
            mine = graphs.table
            seconds = (mine.fixed[..., SECONDS], mine.head[:, SECONDS], mine.durations)
            _finite(loaded, (*seconds, mine.base[..., : B_COMPUTE + 1], mine.facts))
            prices = cls(mine, graphs.names.resources, *most, watts, 0.0, None)
            prices = prices._measured(loaded, model, turns, how)
            if experts is None:
                return prices
            copied, names = offload_table(graphs, experts, model, how, software, most)
            return replace(prices, table=copied, resources=names)
        with np.errstate(divide="ignore", invalid="ignore"):
            probe = Probe.of(price, model, how)
            parts = Parts(
                [_piecewise(probe, place, loaded, model) for place in probe.varying()],
                [_lane(probe, key, op, loaded, model) for key, op in probe.lanes()],
            )
            swept = sweep(price, loaded, model, how, probe.placed, parts, max(most))
        table = table_of(swept, parts, most, _host(software))
        seconds = (table.fixed[:, SECONDS], table.head[:, SECONDS], table.paths[:, :, AROUND])
        _finite(loaded, (*seconds, table.base[..., : B_COMPUTE + 1], table.facts))
        blocks = by_block(swept, parts, most[0], probe.placed)
        prices = cls(table, swept.resources, *most, watts, 0.0, blocks)
        if not parts.lanes and all(p.call is not None for p in parts.shared):
            return prices
        return prices._measured(loaded, model, turns, how)

    def _measured(
        self, machine: Machine, model: Model, turns: Turns, routing: Routing
    ) -> StepPrices:
        """Return the same with its error.

        Raises:
            UncoveredError: If it is no price.
        """
        error = _error(self, machine, model, turns, routing)
        if error > MOST_ERROR:
            raise UncoveredError(
                f"{machine.name}: no table of iteration prices: {model.name}'s are not linear in "
                f"pairs and tokens read, by {error:.0%}. use a mapping that fuses attention, or "
                "price each iteration as `Mixed`"
            )
        return replace(self, linear_error=error)

    def cost(
        self,
        chunks: Sequence[tuple[float, float]] = (),
        decodes: float = 0.0,
        context: float | Sequence[float] | Array = 0.0,
    ) -> Cost:
        """Return what one iteration costs.

        Args:
            chunks: (new tokens, past tokens) of each piece of a prompt.
            decodes: Sequences that decode.
            context: Tokens that these attend to, the new ones included: of each of them, or
                summed. Of a sum, layers with a window or chunks take the mean for each.
        Raises:
            ValueError: If the iteration is empty, or has more tokens or sequences than the table.
        """
        summed = tell(self, decodes, context)
        sizes = np.array(chunks, np.float64).reshape(-1, 2).T
        new, past = np.ascontiguousarray(sizes)
        busy = np.zeros(len(self.resources))
        batch = Batch(new, past, len(new), float(decodes), summed)
        seconds, joules = compiled(flat_cost)(self.table, busy, *batch)
        return Cost(seconds, joules, dict(zip(self.resources, busy.tolist(), strict=True)))


def _check(machine: Machine, model: Model, mapping: SoftwareMapping, most: tuple[int, int]) -> None:
    """Refuse what tables do not cover."""
    degrees = mapping.degrees
    # Batches that take turns belong to one iteration.
    many = 1 if mapping.pipeline is not None else degrees.microbatches
    stages, replicas = degrees.pp, degrees.dp * many
    index = any(getattr(layer.mixer, "index_topk", 0) for layer in model.layers)
    # Of a model without experts the pricing itself says what is wrong.
    copied = offloads(mapping) and any(getattr(layer.ffn, "experts", 0) for layer in model.layers)
    chosen = "" if mapping.kv_select is None else mapping.kv_select.kind
    refused = {
        f"what tokens that are chosen (kv_select: {chosen}) read of pages is not linear in their "
        "context. leave kv_select out, or simulate steps as decode works": (
            bool(chosen) and in_pages(machine, mapping)
        ),
        f"max_tokens and max_sequences must be at least 1, got {most}. raise them": min(most) < 1,
        f"{model.name} has an encoder, which reads prompts whole. simulate its prefill and decode "
        "instead": bool(model.encoder),
        f"{stages} pipeline stages overlap iterations, which a price for each does not say. use a "
        "mapping with pp=1": stages > 1,
        f"an iteration belongs to one replica and one microbatch, got {replicas}. use a mapping "
        "with dp=1 and microbatches=1, and serve through several replicas": replicas > 1,
        f"mapping '{mapping.name}' copies experts when they are needed, which a price of an "
        "iteration alone leaves out. serve by `Serve`, which prices the copies": copied,
        "the machine holds several design points. build a table for each": machine.points > 1,
        f"{model.name} picks tokens by an index. price each iteration as `Mixed`": index,
    }
    for why, bad in refused.items():
        if bad:
            raise UncoveredError(f"{machine.name}: no table of iteration prices: {why}")


def in_pages(machine: Machine, mapping: SoftwareMapping) -> bool:
    """Return whether something reads whole pages of each sequence, not its tokens."""
    return any(machine.unit(u).config.kind == "csd_engine" for u in mapping.units)


def _evaluated(machine: Machine, work: Mixed, mapping: SoftwareMapping) -> PhaseRun:
    """Return an iteration whose sequences have lengths of all kinds."""
    spread = replace(work, spread=in_pages(machine, mapping))
    return evaluate(machine, spread, mapping).phases[0]


def _host(mapping: SoftwareMapping) -> float:
    return 0.0 if mapping.host is None else float(mapping.host.value)


def _finite(machine: Machine, times: Iterable[Array]) -> None:
    """Raise SimulationError where an iteration takes for ever."""
    if not all(np.isfinite(t).all() for t in times):
        raise SimulationError(
            f"an iteration on {machine.name} takes for ever: a rate that it needs is 0. "
            "`opbyte explain` lists the machine's rates"
        )


def _piecewise(probe: Probe, place: int, machine: Machine, model: Model) -> Piecewise:
    """Return how an operator of all segments depends on the pieces."""
    placed = probe.placed
    op = int(probe.aligned[0].shared[place])
    block = int(placed.block_of[op])
    view = UnitView(machine, placed.units[placed.unit_of[op]])
    call, home = call_of(placed, op, view)
    mask = mask_of(placed, block, model)
    crowd = float(placed.crowd[placed.unit_of[op]])
    slopes = probe.slopes(place, machine, mask, called=call is not None)
    efficiency = machine.values.get(f"{home}.efficiency", 1.0) if home else 1.0
    return Piecewise(place, block, mask, slopes, call, crowd, home, efficiency)


def _lane(probe: Probe, key: Key, op: int, machine: Machine, model: Model) -> Lane:
    """Return how an operator of one segment depends on it."""
    placed = probe.placed
    mask = mask_of(placed, key[0], model)
    slopes = probe.lane_slopes(key, machine, mask)
    latency = float(probe.demands[0].latency[op].max())
    return Lane(key, int(placed.unit_of[op]), latency, mask, slopes)


def _error(
    prices: StepPrices, machine: Machine, model: Model, turns: Turns, routing: Routing
) -> float:
    """Return the largest relative error of the seconds of drawn iterations, one batch each."""
    table = prices.table
    graphs = isinstance(table, GraphTable)
    if isinstance(table, GraphTable):
        prices = replace(prices, table=alone(table))
    worst = 0.0
    for pieces in range(min(4, prices.max_tokens, prices.max_sequences)):
        shapes = drawn(
            model, pieces, CHECKED, prices.max_tokens, prices.max_sequences, 10 + pieces, full=False
        )
        for some in (shapes, shapes.without_decodes()) if graphs and pieces else (shapes,):
            work = some.work(model, routing)
            direct: Array = _evaluated(machine, work, turns.mapping).step.seconds
            for i, seconds in enumerate(np.broadcast_to(direct, CHECKED)):
                chunks = list(zip(some.new[:, i], some.past[:, i], strict=True))
                cost = prices.cost(chunks, some.decodes[i], some.context[i])
                worst = max(worst, abs(cost.seconds / seconds - 1.0))
    return worst
