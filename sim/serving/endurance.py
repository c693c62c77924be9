"""What a served trace writes to flash, and how long the flash stands it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.units import parse
from opbyte.hw_models.machine import Machine
from opbyte.hw_models.memory.flash_wear import DAY, Wear, worn
from opbyte.hw_models.technology import flash_of
from opbyte.sim.place import Placer
from opbyte.sim.serving.memory import cache_degrees, token_bytes
from opbyte.sim.serving.pages import TokenGroups
from opbyte.sim.serving.served import Serving

if TYPE_CHECKING:
    from opbyte.hw_models.memory.flash_devices import FlashDevice
    from opbyte.workloads.serve import Serve


@dataclass(frozen=True)
class Written:
    """Keys and values that a trace writes to one instance of a flash memory.

    Attributes:
        memory: Its path.
        tokens: Whose keys and values are written there: of `prompts`, of `answers`, and of those
            that were computed `again` after their blocks were lost, or for requests that failed;
            less those that a drive still `held` when their request ended, as they filled no page.
            Empty where what leaves the cache above is written.
        bytes: Of all of them, in the fullest instance.
        seconds: From the first arrival to the last token.
    """

    memory: str
    tokens: dict[str, float]
    bytes: float
    seconds: float

    @property
    def bytes_per_day(self) -> float:
        """Bytes of a day that goes on like the trace."""
        return self.bytes / self.seconds * DAY


@dataclass(frozen=True)
class Endurance:
    """How long a flash memory stands a trace.

    Attributes:
        written: What the trace writes.
        device: Name of the flash device.
        wear: Rated bytes, and how long they last.
    """

    written: Written
    device: str
    wear: Wear

    @property
    def numbers(self) -> dict[str, Any]:
        """Return all of it by name: bytes, seconds, years."""
        written, wear = self.written, self.wear
        return {
            "memory": written.memory,
            "device": self.device,
            **{f"{name}_tokens": count for name, count in written.tokens.items()},
            "written_bytes": written.bytes,
            "bytes_per_day": wear.bytes_per_day,
            "write_amplification": wear.write_amplification,
            "rated_bytes": wear.rated_bytes,
            "years": wear.years,
            "drive_writes_per_day": wear.drive_writes_per_day,
            "share_of_five_years": wear.share_of_five_years,
        }

    def __getattr__(self, name: str) -> Any:
        """Return one of `numbers`."""
        if not name.startswith("_") and name not in ("written", "wear") and name in self.numbers:
            return self.numbers[name]
        raise AttributeError(f"an endurance has no '{name}'. It has: {', '.join(self.numbers)}")


def written_of(
    machine: Machine, work: Serve, mapping: SoftwareMapping, serving: Serving
) -> tuple[Written, ...]:
    """Return what a served trace writes to each flash memory, nothing where none has KV caches.

    Every token that a step computes is written once, on each device its share. Drives that attend
    write whole pages: the last tokens of an answer that is served, which fill none, never leave
    their DRAM. (Those of sequences that were lost count as written.) What preempted requests and
    full caches send to a memory below is written there.
    """
    flash = {name for name, memory in machine.memories.items() if memory.config.kind == "flash"}
    below = {name: size for name, size in serving.written.items() if name in flash and size}
    placer = Placer(machine, mapping)
    here = flash & set(placer.tiers("kv").in_)
    if not (here or below):
        return ()
    found = []
    if here:
        groups = TokenGroups.of(placer, work)
        padded = 1.0 if groups is None else groups.padded
        tokens = tokens_of(serving, None if groups is None else groups.tokens)
        written = serving.tokens - tokens.get("held", 0.0)
        each = placer.occupancy({"kv": padded * token_bytes(work, cache_degrees(mapping))})
        for name in sorted(here & set(each)):
            size = float(np.max(each[name])) * written
            found.append(Written(name, tokens, size, serving.seconds))
    for name, size in below.items():
        share = placer.crowd(name) / placer.devices
        found.append(Written(name, {}, size * share, serving.seconds))
    return tuple(found)


def tokens_of(serving: Serving, group: int | None = None) -> dict[str, float]:
    """Return the tokens that steps computed, by why; they add up to all of them.

    Args:
        group: Tokens of a page. Then those that filled none are there, too: `held`.
    """
    trace, served = serving.trace, serving.served
    known = sum(serving.hits.values()) - serving.hits["computed"]
    prompts = float(trace.input_tokens[served].sum()) - known
    # The last token of an answer is never computed.
    answers = float((trace.output_tokens[served] - 1).sum())
    again = serving.tokens - prompts - answers
    found = {"prompts": prompts, "answers": answers, "again": again}
    if group is not None:
        # What a cache of prefixes found were whole pages.
        lengths = trace.input_tokens[served] + trace.output_tokens[served] - 1
        found["held"] = float((lengths % group).sum())
    return found


def endurance(
    machine: Machine,
    written: Sequence[Written],
    memory: str | None = None,
    device: FlashDevice | None = None,
    append: str | float | None = None,
    **choices: Any,
) -> Endurance:
    """Return how long a flash memory stands a trace.

    Appends of g bytes take whole pages of p bytes, ceil(g / p) p / g as much as they hold; then
    garbage collection adds what `worn` finds for sequences that grow and end.

    Args:
        memory: Which one, where several are written.
        device: What it is made of; by default the memory's `technology`.
        append: Bytes that are written together, of the tokens of a sequence; by default whole
            pages, gathered in a buffer before.
        choices: Of `worn`: `fill`, `sequence`, `policy`, `seed`.
    Raises:
        ConfigError: If there is no such memory, or several and none is named.
        UncoveredError: If the trace writes no flash, or its cycles have no source.
    """
    one = _chosen(written, memory)
    found = device or flash_of(machine.memory(one.memory).config)
    if found is None:
        technology = machine.memory(one.memory).config.technology
        raise UncoveredError(
            f"{machine.name}: the endurance of '{one.memory}' is not covered: technology "
            f"{technology!r} is no flash device. name one of `opbyte list flash`: device=..."
        )
    factor, page = 1.0, float(found.page_bytes)
    if append is not None:
        size = parse(append, "bytes") if isinstance(append, str) else float(append)
        if not 0.0 < size < float("inf"):
            raise ConfigError.one("", "append", "must be bytes above 0", append, "write 4 KiB")
        factor = ceil(size / page) * page / size
    # Refused before anything is played.
    Wear.of(found, one.bytes_per_day, factor)
    amplification = factor * worn(found, "kv", **choices).write_amplification
    return Endurance(one, found.name, Wear.of(found, one.bytes_per_day, amplification))


def _chosen(written: Sequence[Written], memory: str | None) -> Written:
    names = ", ".join(one.memory for one in written)
    if not written:
        raise UncoveredError(
            "nothing is written to flash: no KV cache lies there, and none goes there. place `kv`, "
            "or a tier below it, in a memory of kind flash"
        )
    chosen = [one for one in written if memory in (None, one.memory)]
    if len(chosen) != 1:
        rule = "names no flash that is written" if memory else "must say which flash is meant"
        raise ConfigError.one("", "memory", rule, memory or "", f"Known: {names}.")
    return chosen[0]
