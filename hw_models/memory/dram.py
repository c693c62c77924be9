"""What a memory technology delivers: one DRAM channel, command by command.

`memory("hbm3-6400").stream(addresses)` sends requests to a channel with its controller and returns
bandwidth, latencies, row hits and commands. docs/memory.md describes the model.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, UncoveredError, WorkloadError
from opbyte.hw_models.memory.addresses import Mapping, checked, decode, pack
from opbyte.hw_models.memory.dram_kernel.setup import Controller, controller_numbers
from opbyte.hw_models.memory.patterns import addresses_of, streams_of, writes_of
from opbyte.hw_models.memory.standards import COMMANDS, Standard, is_whole, load_standard

__all__ = ["Dram", "StreamResult", "memory"]

Ints = npt.NDArray[np.int64]
#: Requests of a stream: some hours, or, sampled, what a count in float64 holds.
MOST, MOST_SAMPLED = 10**11, 2**53
#: Codes of the requests from one index up to another.
Piece = Callable[[int, int], Ints]


@dataclass(frozen=True)
class StreamResult:
    """What a channel did with a stream. Times are seconds unless named ticks.

    Attributes:
        bandwidth_bytes_per_s: Bytes of served requests over `seconds`.
        mean_read_latency_s: From arrival at the controller to the end of the data, queueing
            included; mean of the reads that completed; NaN where none did.
        row_hits: Requests whose first command was an access.
        row_misses: Requests whose first command opened a row.
        row_conflicts: Requests whose first command closed another row.
        reads_served: Reads that were issued to the banks.
        writes_served: Writes that were issued to the banks.
        reads_forwarded: Reads that a queued write answered.
        writes_coalesced: Writes that merged with a queued one.
        ticks: Ticks until the last request was accepted, or, drained, until the last data end.
        seconds: The same in seconds.
        commands: Issued commands by name.
        sampled: Whether a prefix stands for the whole stream.
        simulated: Requests that were simulated.
        drained: Whether all requests were served; ticks and seconds then run to the end of the
            last data.
    """

    standard: Standard
    requests: int
    bandwidth_bytes_per_s: float
    mean_read_latency_s: float
    row_hits: int
    row_misses: int
    row_conflicts: int
    reads_served: int
    writes_served: int
    reads_forwarded: int
    writes_coalesced: int
    ticks: int
    seconds: float
    commands: dict[str, int]
    histogram: npt.NDArray[np.float64]
    sampled: bool
    simulated: int
    drained: bool = False

    @property
    def efficiency(self) -> float:
        """Bandwidth over the peak of the data bus."""
        return self.bandwidth_bytes_per_s / self.standard.peak_bytes_per_s

    def read_latency_s(self, percentile: float) -> float:
        """Return a percentile of the read latency; exact to a tick below 4,096 ticks, then 3 %.

        Raises:
            WorkloadError: If no read completed, or the percentile is not within 0 to 100.
        """
        from opbyte.hw_models.memory.dram_kernel.replay import latency_of_bin

        if not 0 <= percentile <= 100:
            raise WorkloadError(f"a percentile must lie within 0 to 100, got {percentile}")
        counts = np.cumsum(self.histogram)
        if counts[-1] <= 0:
            raise WorkloadError("no read of this stream completed, so that it has no latency")
        index = np.searchsorted(counts, max(percentile / 100 * counts[-1], 1e-9))
        return float(latency_of_bin(np.asarray(index))) * self.standard.tick_s

    @property
    def joules_by_command(self) -> dict[str, float]:
        """Energy of the channel by command; a refresh activates its share of 8,192 of all rows.

        Raises:
            UncoveredError: If the memory's file gives no energies.
        """
        energy, standard = self.standard.energy, self.standard
        if energy is None:
            raise UncoveredError(
                f"the energy of {standard.name} is not covered: no source gives its energy by "
                "command. Give `energy` in a file of your own."
            )
        bits = 8 * standard.burst_bytes
        scope = standard.banks
        for size in standard.sizes[: standard.refresh_level]:
            scope //= size
        activate, per_bit = energy.activate.value, energy.access_per_bit.value
        rows = standard.rows / 8192 * activate
        each = dict.fromkeys(("RD", "WR", "RDA", "WRA"), bits * per_bit)
        each |= {"ACT": activate, "REFab": rows * scope, "REFpb": rows}
        return {name: each.get(name, 0.0) * count for name, count in self.commands.items()}

    @property
    def joules(self) -> float:
        """Energy of all commands; `UncoveredError` where the memory's file gives none."""
        return sum(self.joules_by_command.values())


class Dram:
    """One channel of a DRAM technology."""

    def __init__(self, standard: Standard) -> None:
        """Wrap a resolved standard."""
        self.standard = standard

    def __repr__(self) -> str:
        return f"Dram({self.standard.name!r})"

    def stream(
        self,
        addresses: npt.ArrayLike | str,
        is_write: npt.ArrayLike | None = None,
        interval: int = 1,
        mapping: Mapping = "RoBaRaCoCh",
        scheduler: str = "FRFCFS",
        refresh: str = "AllBank",
        row_policy: str = "Open",
        read_queue: int = 32,
        write_queue: int = 32,
        *,
        requests: int | None = None,
        read_pct: int | None = None,
        seed: int | None = None,
        sample: bool = False,
        drain: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> StreamResult:
        """Send requests, one burst each, in order, until the last one has been accepted.

        What waits in the queues then is not served, unless `drain` asks for it or nothing has been
        served at all.

        Args:
            addresses: Bytes within the channel, (requests,), or the name of a pattern.
            is_write: Which requests write, (requests,); all read without it.
            interval: Ticks between two attempts to send; 1 saturates the channel.
            mapping: From addresses to banks: `addresses.decode`.
            scheduler: `FRFCFS` or `FRFCFSRowHit`.
            refresh: `AllBank`, `PerBank` or `NoRefresh`.
            row_policy: `Open`, `Closed` or `ClosedAdaptive`.
            read_queue: Most reads that wait.
            write_queue: Most writes that wait.
            requests: Length of a named pattern; 100,000 without it.
            read_pct: Reads of a named pattern, whole per cent; 100 without it.
            seed: Of a random pattern; 1 without it.
            sample: Simulate only until the stream has settled, where it does (`sampling`).
            drain: Go on until all requests have been served and their data have passed; no
                further refresh falls due meanwhile.
            progress: Called with the requests that were simulated since it was called last.

        Raises:
            ConfigError: For an unknown choice, with the nearest.
            WorkloadError: For addresses that are none of the channel's, and for choices that
                exclude each other.
            UncoveredError: Where the memory has no such refresh.
        """
        controller = Controller(
            scheduler=scheduler, refresh=refresh, row_policy=row_policy,
            read_queue=read_queue, write_queue=write_queue, interval=interval,
        )  # fmt: skip
        numbers = controller_numbers(self.standard, controller)
        of_pattern = {"requests": requests, "read_pct": read_pct, "seed": seed}
        if isinstance(addresses, str):
            if is_write is not None:
                raise WorkloadError("is_write belongs to given addresses; a pattern takes read_pct")
            count, piece = self._pattern(addresses, mapping, **of_pattern)
        else:
            named = [name for name, value in of_pattern.items() if value is not None]
            if named:
                raise WorkloadError(
                    f"{', '.join(named)} belong to a named pattern; given addresses take is_write"
                )
            count, piece = self._given(addresses, is_write, mapping)
        if sample and drain:
            raise WorkloadError("sample and drain exclude each other: a sampled stream has no end")
        from opbyte.hw_models.memory.sampling import exact, sampled

        if sample:
            self._check_count(count, MOST_SAMPLED, "a count holds no more", "Send fewer.")
        tally = sampled(self.standard, numbers, piece, count) if sample else None
        if tally is None:
            slow = "all are simulated, some millions a second"
            settled = ", or stop where they have settled: --sample, `sample=True`"
            self._check_count(count, MOST, slow, f"Send fewer{'' if sample else settled}.")
            whole = exact(self.standard, numbers, piece, count, drain, progress)
            return _result(self.standard, count, *whole)
        return _result(self.standard, count, *tally)

    def _check_count(self, count: int, most: int, why: str, remedy: str) -> None:
        """Refuse more requests than can be counted, or than some hours simulate.

        Raises:
            ConfigError: If there are more than `most`.
        """
        if count > most:
            rule = f"must be at most {most:,}: {why}"
            raise ConfigError.one(self.standard.name, "requests", rule, f"{count:,}", remedy)

    def load_latency(
        self, pattern: str = "random", points: int = 12, requests: int = 20_000, **choices: object
    ) -> list[tuple[float, StreamResult]]:
        """Return the latency against the load: from an idle channel to a saturated one.

        Returns:
            The offered rate in bytes/s and the result, for intervals between requests that grow
            by a factor, (points,) at most, the lightest load first.

        Raises:
            ConfigError: If `points` is not a whole number from 1 on, or an interval is given.
        """
        standard = self.standard
        _from_one(standard.name, "points", points)
        if "interval" in choices:
            rule = "is what the curve varies"
            raise ConfigError.one(standard.name, "interval", rule, choices["interval"])
        longest = 16 * (standard.read_latency + standard.ticks["nRC"])
        steps = sorted({int(x) for x in np.geomspace(1, longest, points)}, reverse=True)
        curve = []
        for interval in steps:
            offered = standard.burst_bytes / (interval * standard.tick_s)
            found = self.stream(pattern, interval=interval, requests=requests, **choices)  # type: ignore[arg-type]
            curve.append((offered, found))
        return curve

    def rates(self, active_streams: int = 1) -> dict[str, float]:
        """Return the rates in bytes/s that one channel sustains, by pattern.

        `stream` reads as many sequential streams in turn as are active; `random` reads single
        bursts. Computed once for each memory and count.

        Raises:
            ConfigError: If the number of streams is not a whole number from 1 on, or larger than
                the rows of the channel.
        """
        standard = self.standard
        _from_one(standard.name, "active_streams", active_streams)
        if active_streams > standard.banks * standard.rows:
            rule = f"must be at most the {standard.banks * standard.rows} rows of the channel"
            raise ConfigError.one(standard.name, "active_streams", rule, active_streams)
        return dict(_rates(standard, int(active_streams)))

    def _given(
        self, addresses: npt.ArrayLike, is_write: npt.ArrayLike | None, mapping: Mapping
    ) -> tuple[int, Piece]:
        given = checked(self.standard, addresses)
        writes = None if is_write is None else _truths(is_write, given.shape)

        def piece(start: int, stop: int) -> Ints:
            part = None if writes is None else writes[start:stop]
            return pack(self.standard, decode(self.standard, given[start:stop], mapping), part)

        return given.size, piece

    def _pattern(
        self, name: str, mapping: Mapping, requests: int | None, read_pct: int | None,
        seed: int | None,
    ) -> tuple[int, Piece]:  # fmt: skip
        count = 100_000 if requests is None else requests
        share = 100 if read_pct is None else read_pct
        first = 1 if seed is None else seed
        if not is_whole(count) or not is_whole(share) or count < 1 or not 0 <= share <= 100:
            raise WorkloadError(
                "a pattern takes a whole number of requests, at least one, and read_pct as a whole "
                f"number from 0 to 100, got {count} and {share}"
            )

        def piece(start: int, stop: int) -> Ints:
            part = addresses_of(self.standard, name, stop - start, first, start)
            writes = writes_of(stop - start, share, start)
            return pack(self.standard, decode(self.standard, part, mapping), writes)

        return int(count), piece


def memory(name_or_path: str | os.PathLike[str], **changes: int) -> Dram:
    """Return one channel of a memory technology.

    Args:
        name_or_path: Catalog name, such as `hbm3-6400`, or a file of kind `memory`.
        changes: Other sizes and clocks than the file's, such as `rank=2` or `nRCD=24`. What is not
            named stays: a larger device keeps the refresh times of the file.

    Raises:
        ConfigError: If there is no such memory, with the nearest name, or a change breaks a rule.
    """
    return Dram(load_standard(name_or_path, **changes))


def _from_one(where: str, path: str, value: object) -> None:
    if not is_whole(value) or value < 1:  # type: ignore[operator]
        raise ConfigError.one(where, path, "must be a whole number from 1 on", value)


def _truths(is_write: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return which requests write, (requests,).

    Raises:
        WorkloadError: If that is neither true nor false, nor 1 nor 0, of each address.
    """
    given = np.asarray(is_write)
    if given.shape != shape:
        raise WorkloadError(
            f"is_write must have one entry per address, got {given.shape} for {shape}"
        )
    if given.dtype.kind != "b" and not (given.dtype.kind in "iu" and np.isin(given, (0, 1)).all()):
        raise WorkloadError(
            f"is_write must be true or false, or 1 or 0, for each address; got {given.dtype}"
        )
    return given.astype(bool)


@functools.lru_cache(maxsize=256)
def _rates(standard: Standard, streams: int) -> tuple[tuple[str, float], ...]:
    channel, count = Dram(standard), 1 << 17
    runs = streams_of(standard, streams, count)
    found = {"stream": channel.stream(runs), "random": channel.stream("random", requests=count)}
    return tuple((key, result.bandwidth_bytes_per_s) for key, result in found.items())


def _result(
    standard: Standard, requests: int, counts: npt.NDArray[np.float64], simulated: int,
    drained: bool = False,
) -> StreamResult:  # fmt: skip
    from opbyte.hw_models.memory.dram_kernel import setup as s

    def whole(at: int) -> int:
        return round(float(counts[at]))

    seconds = float(counts[s.TICKS]) * standard.tick_s
    served = float(counts[s.READS] + counts[s.WRITES])
    completed = float(counts[s.COMPLETED])
    return StreamResult(
        standard=standard,
        requests=requests,
        bandwidth_bytes_per_s=served * standard.burst_bytes / seconds if seconds else 0.0,
        mean_read_latency_s=(
            float(counts[s.LATENCY]) / completed * standard.tick_s if completed else float("nan")
        ),
        row_hits=whole(s.HITS),
        row_misses=whole(s.MISSES),
        row_conflicts=whole(s.CONFLICTS),
        reads_served=whole(s.READS),
        writes_served=whole(s.WRITES),
        reads_forwarded=whole(s.FORWARDED),
        writes_coalesced=whole(s.COALESCED),
        ticks=whole(s.TICKS),
        seconds=seconds,
        commands={c: whole(s.COMMAND_AT + i) for i, c in enumerate(COMMANDS)},
        histogram=counts[s.HISTOGRAM :],
        sampled=simulated < requests,
        simulated=simulated,
        drained=drained,
    )
