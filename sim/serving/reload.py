"""Fetch a context's cache from a tier below, or compute it again: closed form for an idle engine.

Of a prompt of c kept tokens and n new ones, with s(a, p) the seconds of a step that reads a tokens
behind p others, pieces of at most m (`max_batched_tokens`) and b bytes of cache a token,

    load      t0 + c b / R + sum of s over the n new tokens behind c
    compute   sum of s over all c + n

where R is the slowest port or link on the way and t0 its latency. Both grow with c: the tier pays
where its rate is above

    R* = c b / (compute - t0 - the new tokens' steps)

A step of many tokens takes 2 P (a) / F for the products with the P weights (F: the FLOP/s that the
units reach) and 4 d L (a p + a^2 / 2) / A for attention over L layers of width d, so that for short
contexts R* is near b F / (2 P), whatever their length: bytes of a token's cache over the seconds of
its products. Attention's square makes R* fall as contexts grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opbyte.core.errors import ConfigError, UncoveredError, WorkloadError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.units import is_number
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.serving.prices.build import StepPrices
from opbyte.sim.serving.server import Server
from opbyte.sim.simulate import resolve_mapping
from opbyte.workloads.model_work import check_context
from opbyte.workloads.serve import Serve

__all__ = ["Reload", "reload_or_compute"]


@dataclass(frozen=True)
class Reload:
    """A context's cache from the first tier below, or computed again.

    Attributes:
        kept: Tokens of whole blocks that the tier has.
        bytes: Of their cache, on all devices.
        load_s: Time to first token where they are fetched, on an idle engine.
        compute_s: The same where they are computed.
        start_s: Of `load_s`, the latency of the way.
        new_s: Of `load_s`, the steps of the new tokens.
    """

    kept: int
    bytes: float
    load_s: float
    compute_s: float
    start_s: float
    new_s: float

    @property
    def pays(self) -> bool:
        """Return whether fetching is faster."""
        return self.load_s < self.compute_s

    @property
    def bytes_per_s(self) -> float:
        """Return the rate of the way."""
        return self.bytes / (self.load_s - self.start_s - self.new_s)

    @property
    def crossing_bytes_per_s(self) -> float:
        """Return the rate of the way at which both are equal."""
        return self.bytes / (self.compute_s - self.start_s - self.new_s)


def reload_or_compute(
    machine: str | Path | Mapping[str, Any] | Machine,
    work: Serve,
    tokens: int,
    new: int = 1,
    mapping: str | Path | Mapping[str, Any] | SoftwareMapping | None = None,
) -> Reload:
    """Return what a prompt whose first tokens are in the first tier below takes, either way.

    Args:
        machine: As for `simulate`.
        work: Model and scheduler; its trace is not looked at.
        tokens: Of the context that was computed before; whole blocks of it are kept.
        new: Tokens of the prompt behind it.
        mapping: With a `spill` of `kv`.

    Raises:
        ConfigError: If the tokens are no whole numbers from 1 on, or the work serves nothing.
        UncoveredError: If the mapping has no tier below the cache, or steps have no such price.
        WorkloadError: If there are less tokens than a block, or more than the model allows.
    """
    if not isinstance(work, Serve):
        raise ConfigError.one("", "work", "must be what opbyte.Serve makes", work)
    for name, value in (("tokens", tokens), ("new", new)):
        if not is_number(value) or not 1 <= value < float("inf") or value != int(value):
            raise ConfigError.one("", name, "must be a whole number from 1 on", value)
    check_context(work.kind, work.model, float(tokens + new), "tokens + new")
    loaded = load_machine(machine)
    server = Server.of(loaded, work, resolve_mapping(loaded, mapping, "mixed"))
    if not server.tiers or not isinstance(server.prices, StepPrices):
        raise UncoveredError(
            f"{loaded.name}: no memory lies below the cache. give the mapping's `kv` a `spill`"
        )
    size = work.scheduler.block_tokens
    blocks = int(tokens) // size
    if blocks < 1:
        raise WorkloadError(f"a context of {tokens} tokens: needs a block of {size}")
    way, kept = server.tiers[0].price, blocks * size
    most, extra = work.scheduler.max_batched_tokens, int(new) + int(tokens) - kept
    behind = _steps(server.prices, kept, extra, most)
    return Reload(
        kept, blocks * way.block_bytes, way.start_s + blocks * way.block_s + behind,
        _steps(server.prices, 0, kept + extra, most), way.start_s, behind,
    )  # fmt: skip


def _steps(prices: StepPrices, past: int, tokens: int, most: int) -> float:
    """Return the seconds of the pieces of a prompt behind tokens that are cached."""
    starts = range(0, tokens, most)
    return sum(prices.cost([(min(most, tokens - s), past + s)]).seconds for s in starts)
