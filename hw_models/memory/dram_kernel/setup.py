"""What both the twin and the kernel take: numbers of the controller, and the results' layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.registry import lookup_error
from opbyte.hw_models.memory.standards import COMMANDS, Standard, is_whole

__all__ = ["Controller", "controller_numbers"]

Ints = npt.NDArray[np.int64]
ACT, PRE, RD, WR, RDA, WRA, PREAB, REFAB, REFPB, ACT2, CAS = range(len(COMMANDS))
COUNT = len(COMMANDS)

#: How commands reach the device.
SINGLE, DUAL, HALF, LPDDR = range(4)
BUSES = {"single": SINGLE, "dual": DUAL, "half-clock": HALF, "lpddr5": LPDDR}
#: Refresh: none, all banks of a scope, banks in turn, a bank of a stack id in each pseudo-channel.
NONE, ALL_BANK, IN_TURN, BY_STACK = range(4)
#: Row policies: rows stay open, close after every access, close when no queued request hits.
OPEN, CLOSED, ADAPTIVE = range(3)

SCHEDULERS = ("FRFCFS", "FRFCFSRowHit")
REFRESHES = ("AllBank", "PerBank", "NoRefresh")
#: What JEDEC has and this controller has not.
_UNCOVERED = {"SameBank": "same-bank refresh (REFsb)", "RFM": "refresh management (RFM)"}
ROW_POLICIES = ("Open", "Closed", "ClosedAdaptive")

#: Entries of the numbers that a run takes.
(
    READ_QUEUE, WRITE_QUEUE, INTERVAL, BUS, ROW_HIT_FIRST, REFRESH, POLICY, HIGH, LOW,
    READ_LATENCY, T_REFI, T_REFI_BANK, T_RFC_BANK, T_AAD, WCK_READ, WCK_WRITE, T_CAS,
    P_COUNT, S_COUNT, BANKS, P_BANKS, S_BANKS, G_BANKS, FIRST_REFRESH,
) = range(24)  # fmt: skip
NUMBERS = 24
#: Entries of what a run counts; the last is where the histogram of read latencies begins.
(
    TICKS, READS, WRITES, FORWARDED, COALESCED, HITS, MISSES, CONFLICTS, COMPLETED, LATENCY,
    ACCEPTED, COMMAND_AT,
) = range(12)  # fmt: skip
HISTOGRAM = COMMAND_AT + COUNT
#: Bins of one tick each, then of 1/32 octave.
LINEAR, OCTAVES = 4096, 40
BINS = LINEAR + 32 * OCTAVES


@dataclass(frozen=True)
class Controller:
    """How requests are queued and scheduled.

    Attributes:
        scheduler: `FRFCFS`: the oldest request that is ready; `FRFCFSRowHit`: that, but no
            precharge before an older hit to the open row.
        refresh: `AllBank`, `PerBank` or `NoRefresh`.
        row_policy: `Open`; `Closed`: every access closes its row; `ClosedAdaptive`: an access
            closes its row unless a request in the same queue hits it.
        read_queue: Most reads that wait.
        write_queue: Most writes that wait.
        write_high: Share of the write queue above which writes drain.
        write_low: Share below which reads take over again.
        interval: Ticks between two attempts to send a request.
    """

    scheduler: str = "FRFCFS"
    refresh: str = "AllBank"
    row_policy: str = "Open"
    read_queue: int = 32
    write_queue: int = 32
    write_high: float = 0.8
    write_low: float = 0.2
    interval: int = 1


def controller_numbers(standard: Standard, controller: Controller) -> Ints:
    """Return the entries that a run takes, (NUMBERS,).

    Raises:
        ConfigError: If a value of the controller breaks a rule.
        UncoveredError: If the memory has no such refresh.
    """
    where = standard.name
    for noun, name, known in (
        ("scheduler", controller.scheduler, SCHEDULERS),
        ("refresh", controller.refresh, REFRESHES),
        ("row policy", controller.row_policy, ROW_POLICIES),
    ):
        if str(name) in _UNCOVERED:
            raise UncoveredError(
                f"{_UNCOVERED[str(name)]} of {where} is not covered. Use one of {', '.join(known)}."
            )
        if name not in known:
            raise lookup_error(noun, str(name), known, where)
    for path, value in (
        ("read_queue", controller.read_queue),
        ("write_queue", controller.write_queue),
        ("interval", controller.interval),
    ):
        if not is_whole(value) or not 1 <= value <= MOST_QUEUED:
            rule = f"must be a whole number from 1 to {MOST_QUEUED}"
            raise ConfigError.one(where, path, rule, value)
    if not 0 <= controller.write_low < controller.write_high <= 1:
        rule = "must satisfy 0 <= write_low < write_high <= 1"
        raise ConfigError.one(where, "write_high", rule, controller.write_high)
    n = np.zeros(NUMBERS, np.int64)
    n[READ_QUEUE], n[WRITE_QUEUE] = controller.read_queue, controller.write_queue
    n[INTERVAL], n[BUS] = controller.interval, BUSES[standard.buses]
    n[ROW_HIT_FIRST] = controller.scheduler == "FRFCFSRowHit"
    n[POLICY] = ROW_POLICIES.index(controller.row_policy)
    n[READ_LATENCY] = standard.read_latency
    _set_thresholds(n, controller)
    _set_refresh(n, standard, controller)
    _set_lpddr(n, standard)
    _set_shape(n, standard)
    return n


#: Largest queue, and longest interval in ticks.
MOST_QUEUED = 1 << 20


def _set_thresholds(n: Ints, controller: Controller) -> None:
    """Writes drain from HIGH waiting ones on, until fewer than LOW wait: both strict shares."""
    high = np.float32(controller.write_high) * np.float32(controller.write_queue)
    low = np.float32(controller.write_low) * np.float32(controller.write_queue)
    n[HIGH] = int(np.floor(high)) + 1
    n[LOW] = int(np.ceil(low)) - 1


def _set_refresh(n: Ints, standard: Standard, controller: Controller) -> None:
    if controller.refresh == "NoRefresh":
        n[REFRESH], n[FIRST_REFRESH] = NONE, np.iinfo(np.int64).max
    elif controller.refresh == "AllBank":
        n[REFRESH] = ALL_BANK
        n[T_REFI] = n[FIRST_REFRESH] = standard.ticks["nREFI"]
    else:
        if standard.per_bank_refresh is None:
            raise UncoveredError(
                f"per-bank refresh of {standard.name} is not covered: the constraints of "
                f"{standard.family} here have no such command. Use AllBank or NoRefresh."
            )
        n[REFRESH] = BY_STACK if standard.per_bank_refresh == "by-stack-id" else IN_TURN
        n[T_REFI_BANK] = n[FIRST_REFRESH] = standard.ticks["nREFIpb"]
        n[T_RFC_BANK] = standard.ticks["nRFCpb"]
    _leave_time(n, standard)


def _leave_time(n: Ints, standard: Standard) -> None:
    """Refuse refreshes that leave no row cycle between them: nothing might ever be read."""
    in_turn = standard.banks // (standard.sizes[0] if n[REFRESH] == BY_STACK else 1)
    for rule in standard.constraints:
        if rule.before != ACT or rule.after not in (REFAB, REFPB):
            continue
        every, name = int(n[T_REFI]), "nREFI"
        if rule.after == REFPB:
            of_bank = rule.level == len(standard.levels)
            every, name = int(n[T_REFI_BANK]) * (in_turn if of_bank else 1), "nREFIpb"
        if 0 < every < rule.ticks + standard.ticks["nRC"]:
            text = "must leave a row cycle between refreshes"
            raise ConfigError.one(standard.name, f"clocks.{name}", text, standard.ticks[name])


def _set_lpddr(n: Ints, standard: Standard) -> None:
    if standard.buses != "lpddr5":
        return
    t = standard.ticks
    after = t["nBL_min"] + t["nWCKPST"]
    n[T_AAD], n[T_CAS] = t["nAAD"], max(1, t["nCAS"])
    n[WCK_READ], n[WCK_WRITE] = t["nCL"] + after, t["nCWL"] + after


def _set_shape(n: Ints, standard: Standard) -> None:
    """Count banks below each kind of level: P is rank or pseudo-channel, S stack id, G group."""
    sizes = dict(zip(standard.levels, standard.sizes, strict=True))
    p = sizes.get("rank", 1) * sizes.get("pseudochannel", 1)
    s, g, k = sizes.get("sid", 1), sizes["bankgroup"], sizes["bank"]
    n[P_COUNT], n[S_COUNT], n[BANKS] = p, p * s, p * s * g * k
    n[P_BANKS], n[S_BANKS], n[G_BANKS] = s * g * k, g * k, k
