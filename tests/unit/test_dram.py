"""DRAM by formulas over the timings of its standard, and clear refusals."""

import time

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError, UncoveredError, WorkloadError
from opbyte.hw_models.memory.addresses import decode, encode, pack
from opbyte.hw_models.memory.dram_kernel.loops import kernel_files
from opbyte.hw_models.memory.dram_kernel.replay import Replay
from opbyte.hw_models.memory.dram_kernel.setup import (
    ACCEPTED,
    COMMAND_AT,
    LATENCY,
    Controller,
    controller_numbers,
)  # fmt: skip
from opbyte.hw_models.memory.patterns import PATTERNS, addresses_of
from opbyte.hw_models.memory.standards import CATALOG, COMMANDS, load_standard, memory_names

NAMES = memory_names()
FAMILIES = {"DDR4", "DDR5", "LPDDR5", "GDDR6", "HBM2", "HBM3", "HBM4"}


def at(standard, **fields):
    """Return addresses with these fields, the others 0."""
    return encode(standard, {name: np.atleast_1d(values) for name, values in fields.items()})


def alone(channel, addresses, **choices):
    """Return the read latencies in ticks of requests that never meet."""
    choices = {"interval": 4000, "refresh": "NoRefresh", **choices}
    addresses = np.append(addresses, addresses[-1:] * 0)
    return channel.stream(addresses, **choices).mean_read_latency_s / channel.standard.tick_s


def rcd(t):
    return t.get("nRCD", t.get("nRCDRD"))


def first_edge(standard, command):
    """Return how much later than its first edge a command ends, ticks."""
    lengths = {"DDR5": {"ACT": 2, "RD": 2}, "HBM2": {"ACT": 2}}
    lengths |= {"HBM3": {"ACT": 3, "RD": 2}, "HBM4": {"ACT": 3, "RD": 2}}
    return lengths.get(standard.family, {}).get(command, 1) - 1


def test_all_families_are_there_with_sources():
    standards = [load_standard(name) for name in NAMES]
    assert {s.family for s in standards} == FAMILIES
    assert all(s.source for s in standards)


@pytest.mark.parametrize("name", NAMES)
def test_a_read_of_a_closed_bank_takes_activation_and_access(name):
    """ACT leaves one tick after the arrival, RD tRCD later, data end the read latency after it."""
    channel = ob.memory(name)
    s = channel.standard
    wait = rcd(s.ticks) + first_edge(s, "ACT") - first_edge(s, "RD")
    if s.buses == "lpddr5":
        wait += 1  # CAS starts the write clock in the tick before the read
    rising = 0 if s.ticks_per_clock == 1 else (1 + wait) % 2 == 0
    latency = alone(channel, at(s, row=[0]))
    assert latency == pytest.approx(1 + wait + rising + s.read_latency)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_row_is_hit_and_another_conflicts(name):
    channel = ob.memory(name)
    s = channel.standard
    found = channel.stream(at(s, row=[3, 3, 3, 5]), interval=4000, refresh="NoRefresh")
    assert (found.row_misses, found.row_hits, found.row_conflicts) == (1, 2, 0)
    found = channel.stream(at(s, row=[3, 3, 3, 5, 5]), interval=4000, refresh="NoRefresh")
    assert (found.row_misses, found.row_hits, found.row_conflicts) == (1, 2, 1)


@pytest.mark.parametrize(
    "name", ["ddr4-3200", "ddr5-4800", "gddr6-14000", "hbm2-2000", "hbm3-6400"]
)
def test_closed_page_makes_every_access_a_miss(name):
    channel = ob.memory(name)
    s = channel.standard
    addresses = at(s, row=np.zeros(51, int))
    found = channel.stream(addresses, interval=4000, refresh="NoRefresh", row_policy="Closed")
    assert (found.row_misses, found.row_hits, found.row_conflicts) == (50, 0, 0)
    auto = found.commands
    assert (auto["ACT"], auto["RDA"], auto["RD"], auto["PRE"]) == (50, 50, 0, 0)


@pytest.mark.parametrize("name", ["ddr4-3200", "hbm2-2000", "hbm4-8000", "lpddr5-6400"])
def test_closed_page_saturates_a_bank_at_its_row_cycle(name):
    """One bank, closed: max(tRC, tRCD + tRTP + tRP) per access."""
    channel = ob.memory(name)
    s, t = channel.standard, channel.standard.ticks
    count = 2000
    addresses = at(s, row=np.arange(count) % 7)
    found = channel.stream(addresses, refresh="NoRefresh", row_policy="Closed")
    precharge = rcd(t) + t.get("nRTP", t.get("nRTPL")) + t["nRP"]
    assert found.ticks / count == pytest.approx(max(t["nRC"], precharge), rel=0.03)


def test_adaptive_closed_page_keeps_a_row_open_for_queued_hits():
    channel = ob.memory("ddr4-3200")
    found = channel.stream("seq", requests=5000, row_policy="ClosedAdaptive")
    assert found.row_hits > 0.95 * 5000
    assert found.commands["PRE"] == 0
    assert found.commands["RDA"] > 0


@pytest.mark.parametrize("name", ["ddr4-3200", "hbm2-2000", "hbm3-6400"])
def test_reads_in_one_row_run_at_the_long_column_delay(name):
    channel = ob.memory(name)
    s = channel.standard
    addresses = at(s, row=np.zeros(4000, int), column=np.arange(4000) % s.columns)
    found = channel.stream(addresses, refresh="NoRefresh")
    assert found.ticks / 4000 == pytest.approx(s.ticks["nCCDL"], rel=0.01)


def test_two_ranks_pay_for_the_turn_of_the_bus():
    """Reads that alternate between open rows of two ranks: burst and tCS between them."""
    channel = ob.memory("ddr4-3200", rank=2)
    s, t = channel.standard, channel.standard.ticks
    index = np.arange(4000)
    addresses = at(s, row=0 * index, rank=index % 2, bankgroup=index // 2 % 4)
    found = channel.stream(addresses, refresh="NoRefresh", read_queue=1)
    assert found.row_misses == 8
    found = channel.stream(addresses, refresh="NoRefresh")
    together = found.ticks / 4000
    assert t["nCCDS"] < together <= t["nBL"] + t["nCS"] + 0.05
    assert s.capacity_bytes == 2 * ob.memory("ddr4-3200").standard.capacity_bytes


@pytest.mark.parametrize(
    "name", ["lpddr5-6400", "hbm2-2000", "hbm3-6400", "hbm4-8000", "gddr6-14000"]
)
def test_refreshes_come_once_per_interval(name):
    channel = ob.memory(name)
    s, t = channel.standard, channel.standard.ticks
    count = 400
    interval = t["nREFI"] // 4
    addresses = at(s, row=np.zeros(count, int))
    ranks = 2 if s.levels[0] == "pseudochannel" else 1
    every = channel.stream(addresses, interval=interval)
    due = every.ticks // t["nREFI"]
    assert every.commands["REFab"] == pytest.approx(due * ranks, abs=ranks)
    each = channel.stream(addresses, interval=interval, refresh="PerBank")
    at_once = ranks if s.per_bank_refresh == "by-stack-id" else 1
    assert each.commands["REFpb"] == pytest.approx(each.ticks / t["nREFIpb"] * at_once, rel=0.02)
    assert each.commands["REFab"] == 0


def test_per_bank_refresh_leaves_other_banks_alone():
    """All-bank refresh stops a random stream for tRFC; per-bank refreshes only one bank each."""
    channel = ob.memory("hbm2-2000")
    rate = {
        kind: channel.stream("random", requests=30_000, refresh=kind).bandwidth_bytes_per_s
        for kind in ("AllBank", "PerBank", "NoRefresh")
    }
    assert rate["AllBank"] < rate["NoRefresh"]
    assert rate["PerBank"] < rate["NoRefresh"]


def test_a_read_of_a_queued_write_is_forwarded_and_writes_merge():
    standard = load_standard("ddr4-3200")
    numbers = controller_numbers(standard, Controller(refresh="NoRefresh", read_queue=8))
    # Eight reads of one bank keep reads going while two writes to one place wait.
    rows = np.array([1, 2, 3, 4, 5, 9, 9, 9, 6])
    codes = pack(standard, decode(standard, at(standard, row=rows)),
                 np.array([0, 0, 0, 0, 0, 1, 1, 0, 0], bool))  # fmt: skip
    out = Replay(standard, numbers).take(codes)
    found = dict(zip(COMMANDS, out[COMMAND_AT:], strict=False))
    assert out[ACCEPTED] == 9
    assert out[3] == 1  # forwarded
    assert out[4] == 1  # merged
    assert found["WR"] == 0


def test_a_forwarded_read_takes_one_tick():
    standard = load_standard("ddr4-3200")
    numbers = controller_numbers(standard, Controller(refresh="NoRefresh"))
    codes = pack(standard, decode(standard, at(standard, row=[1, 9, 9, 2])),
                 np.array([0, 1, 0, 0], bool))  # fmt: skip
    out = Replay(standard, numbers).take(codes)
    assert out[3] == 1
    assert out[LATENCY] in (0, 1)  # the answer is one tick behind, the run may end before


def test_write_queue_drains_between_its_thresholds():
    numbers = controller_numbers(load_standard("ddr4-3200"), Controller(write_queue=32))
    assert (numbers[7], numbers[8]) == (26, 6)  # more than 25.6, fewer than 6.4


@pytest.mark.parametrize("name", ["ddr4-3200", "ddr5-4800", "hbm3-6400"])
@pytest.mark.parametrize("mapping", ["RoBaRaCoCh", "ChRaBaRoCo", "MOP4CLXOR", "custom"])
def test_mappings_are_one_to_one(name, mapping):
    s = load_standard(name)
    order = ["column:1", *reversed(s.levels), "column", "row"] if mapping == "custom" else mapping
    drawn = np.random.default_rng(0).integers(0, s.capacity_bytes // s.burst_bytes, 30_000)
    bursts = np.unique(drawn)[:20_000]
    fields = decode(s, bursts * s.burst_bytes, order)
    assert len(np.unique(pack(s, fields))) == 20_000
    for field, size in zip(
        (*s.levels, "row", "column"), (*s.sizes, s.rows, s.columns), strict=True
    ):
        assert fields[field].min() >= 0
        assert fields[field].max() < size
    if mapping == "RoBaRaCoCh":
        assert (encode(s, fields) == bursts * s.burst_bytes).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_streams_in_pieces_are_streams(pattern):
    s = load_standard("hbm3-6400")
    assert (addresses_of(s, pattern, 64) == addresses_of(s, pattern, 128)[:64]).all()
    numbers = controller_numbers(s, Controller())
    codes = pack(s, decode(s, addresses_of(s, pattern, 3000)))
    whole = Replay(s, numbers).take(codes)
    parts = Replay(s, numbers)
    for part in np.array_split(codes, [1, 700, 2999]):
        out = parts.take(part)
    assert (out == whole).all()


@pytest.mark.parametrize("pattern", ["seq", "random", "bgint"])
def test_sampling_is_close_and_short(pattern):
    channel = ob.memory("ddr4-3200")
    exact = channel.stream(pattern, requests=1_000_000)
    found = channel.stream(pattern, requests=1_000_000, sample=True)
    assert found.sampled
    assert found.simulated < 300_000
    assert found.bandwidth_bytes_per_s == pytest.approx(exact.bandwidth_bytes_per_s, rel=0.02)
    assert found.mean_read_latency_s == pytest.approx(exact.mean_read_latency_s, rel=0.05)


@pytest.mark.parametrize(
    ("name", "pattern"), [("hbm3-6400", "rand_64B"), ("lpddr5-6400", "rand_1KB")]
)
def test_a_stream_that_scatters_is_sampled_longer(name, pattern):
    channel = ob.memory(name)
    exact = channel.stream(pattern, requests=1_000_000)
    found = channel.stream(pattern, requests=1_000_000, sample=True)
    calm = channel.stream("rowconflict", requests=1_000_000, sample=True)
    assert found.simulated > calm.simulated
    assert found.bandwidth_bytes_per_s == pytest.approx(exact.bandwidth_bytes_per_s, rel=0.02)
    assert found.mean_read_latency_s == pytest.approx(exact.mean_read_latency_s, rel=0.05)


def test_a_stream_that_drifts_is_not_sampled():
    """Slowly from a sequence to random bursts: no place tells what the others are like."""
    channel = ob.memory("ddr4-3200")
    s, count = channel.standard, 400_000
    random = np.random.default_rng(1).random(count) < np.arange(count) / count
    addresses = np.where(
        random, addresses_of(s, "rand_tx", count), addresses_of(s, "seq", count)
    )  # fmt: skip
    assert not channel.stream(addresses, sample=True).sampled


def test_more_ranks_than_there_is_room_for_are_refused():
    with pytest.raises(UncoveredError, match="at most 64 ranks or pseudo-channels of 16 banks"):
        ob.memory("lpddr5-6400", rank=128).stream("seq", requests=10)


def test_the_stamp_of_the_kernel_covers_what_is_compiled_into_it():
    files = {path.name for path in kernel_files()}
    assert {"choice.py", "queues.py", "state.py", "setup.py", "addresses.py"} <= files


def test_a_stream_that_changes_is_not_sampled():
    channel = ob.memory("ddr4-3200")
    s = channel.standard
    half = 150_000
    addresses = np.concatenate([addresses_of(s, "seq", half), addresses_of(s, "rand_tx", half)])
    found = channel.stream(addresses, sample=True)
    assert not found.sampled
    assert found.ticks == channel.stream(addresses).ticks


def test_energy_by_command_or_a_refusal():
    found = ob.memory("hbm2-2000").stream("random", requests=5000)
    parts = found.joules_by_command
    assert parts["ACT"] == pytest.approx(0.909e-9 * found.commands["ACT"])
    assert parts["RD"] == pytest.approx(256 * 3.48e-12 * found.commands["RD"])
    assert found.joules == pytest.approx(sum(parts.values()))
    with pytest.raises(UncoveredError, match=r"energy of ddr4-3200"):
        _ = ob.memory("ddr4-3200").stream("seq", requests=100).joules


def test_latency_percentiles_and_load():
    channel = ob.memory("ddr4-3200")
    found = channel.stream("random", requests=20_000)
    low, high = found.read_latency_s(50), found.read_latency_s(99)
    assert 0 < low <= found.mean_read_latency_s * 1.2
    assert low < high
    loads = channel.load_latency("random", points=4, requests=3000)
    latencies = [r.mean_read_latency_s for _, r in loads]
    assert latencies[0] == min(latencies)
    assert latencies[-1] == max(latencies)


def test_rates_are_kept_and_below_the_peak():
    channel = ob.memory("hbm2-2000")
    rates = channel.rates()
    assert 0 < rates["random"] < rates["stream"] <= channel.standard.peak_bytes_per_s
    start = time.perf_counter()
    assert ob.memory("hbm2-2000").rates() == rates
    assert time.perf_counter() - start < 0.5
    assert rates["random"] < channel.rates(4)["stream"]


@pytest.mark.parametrize(
    ("choices", "error", "words"),
    [
        ({"scheduler": "FRFCS"}, ConfigError, "Did you mean 'FRFCFS'"),
        ({"refresh": "Perbank"}, ConfigError, "PerBank"),
        ({"refresh": "PerBank"}, UncoveredError, "per-bank refresh of ddr4-3200"),
        ({"row_policy": "closed"}, ConfigError, "Closed"),
        ({"mapping": "RoCoBaRaCh"}, ConfigError, "RoBaRaCoCh"),
        ({"mapping": ["column", "bank", "row"]}, ConfigError, "bankgroup"),
        ({"read_queue": 0}, ConfigError, "read_queue"),
        ({"interval": 0}, ConfigError, "interval"),
        ({"interval": 1.5}, ConfigError, "interval: must be a whole number"),
        ({"interval": True}, ConfigError, "interval: must be a whole number"),
        ({"interval": "4"}, ConfigError, "interval: must be a whole number"),
        ({"write_queue": 2.5}, ConfigError, "write_queue: must be a whole number"),
        ({"scheduler": None}, ConfigError, "no scheduler is called 'None'"),
        ({"refresh": False}, ConfigError, "no refresh is called 'False'"),
        ({"refresh": "SameBank"}, UncoveredError, "same-bank refresh"),
        ({"refresh": "RFM"}, UncoveredError, "refresh management"),
        ({"mapping": None}, ConfigError, "no address mapping is called 'None'"),
        ({"mapping": 5}, ConfigError, "no address mapping is called '5'"),
        ({"mapping": ["column:", "bankgroup", "bank", "row"]}, ConfigError, "name:bits"),
        ({"mapping": ["column:²", "bankgroup", "bank", "row"]}, ConfigError, "name:bits"),
        ({"is_write": [True]}, WorkloadError, "one entry per address"),
        ({"is_write": ["False", "True", "0"]}, WorkloadError, "true or false"),
        ({"is_write": [0, 1, 2]}, WorkloadError, "true or false"),
        ({"is_write": [0.0, float("nan"), 1.0]}, WorkloadError, "true or false"),
        ({"read_pct": 0}, WorkloadError, "read_pct belong to a named pattern"),
        ({"requests": 3, "seed": 2}, WorkloadError, "requests, seed belong"),
        ({"sample": True, "drain": True}, WorkloadError, "exclude each other"),
    ],
)
def test_bad_choices_say_what_is_wrong(choices, error, words):
    with pytest.raises(error, match=words):
        ob.memory("ddr4-3200").stream([0, 64, 128], **choices)


@pytest.mark.parametrize("addresses", [[-64], [1 << 40], [0.5], [[0]], []])
def test_bad_addresses_are_refused(addresses):
    with pytest.raises(WorkloadError, match="addresses"):
        ob.memory("ddr4-3200").stream(addresses)


@pytest.mark.parametrize(
    ("pattern", "choices", "error", "words"),
    [
        ("seq", {"requests": 0}, WorkloadError, "at least one"),
        ("seq", {"requests": 1.5}, WorkloadError, "whole number of requests"),
        ("seq", {"requests": 9, "read_pct": 50.5}, WorkloadError, "read_pct as a whole"),
        ("random", {"requests": 9, "seed": -1}, ConfigError, "seed: must be a whole number"),
        ("rand_96B", {"requests": 9}, ConfigError, "power of two"),
        ("rand_16777216KB", {"requests": 9}, ConfigError, "at most 8589934592 bytes"),
        ("seq", {"requests": 9, "is_write": [True] * 9}, WorkloadError, "takes read_pct"),
    ],
)
def test_bad_patterns_say_what_is_wrong(pattern, choices, error, words):
    with pytest.raises(error, match=words):
        ob.memory("ddr4-3200").stream(pattern, **choices)


@pytest.mark.parametrize("rank", [64, 256])
def test_more_ranks_than_the_kernel_holds_are_not_covered(rank):
    with pytest.raises(UncoveredError, match=f"at most 32 ranks .* got {rank}"):
        ob.memory("ddr5-4800", rank=rank).stream("seq", requests=9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 2.0}, "rank: must be a power of two"),
        ({"rank": "2"}, "rank: must be a power of two"),
        ({"column": 4}, "at least a burst of 8 columns"),
        ({"nRCD": -1}, "nRCD: must be a whole number of clocks"),
        ({"nBL": 0}, "nBL: must be a whole number of clocks from 1 on"),
        ({"nRDC": 20}, "organisation.nRDC: must be one of"),
    ],
)
def test_bad_sizes_and_clocks_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        ob.memory("ddr4-3200", **changes)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("nREFI: 12480", "nPPD: 2", "nREFI is missing"),
        ("nRCD: 22,", "", "nRCD is needed by"),
        ("nRTP: 12,", "nRTP: 12, nXP: 10,", "nXP: is used by nothing in DDR4 here, got 10"),
    ],
)
def test_a_file_of_your_own_is_checked(tmp_path, old, new, words):
    text = (CATALOG.path("ddr4-3200")).read_text()
    assert text.count(old) == 1
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        ob.memory(file)


@pytest.mark.parametrize(
    ("name", "changes", "refresh"),
    [
        ("ddr4-3200", {"nREFI": 576}, "AllBank"),
        ("hbm2-2000", {"nRFC": 3900}, "AllBank"),
        ("hbm3-6400", {"nREFIpb": 8}, "PerBank"),
        ("hbm3-6400", {"nRFCpb": 195 * 32}, "PerBank"),
        ("gddr6-14000", {"nRFCpb": 208 * 16}, "PerBank"),
    ],
)
def test_refreshes_that_leave_no_time_are_refused(name, changes, refresh):
    """Nothing would ever be served: the run would not end."""
    channel = ob.memory(name, **changes)
    with pytest.raises(ConfigError, match="must leave a row cycle"):
        channel.stream("seq", requests=1000, refresh=refresh)
    found = channel.stream("seq", requests=1000, refresh="NoRefresh", drain=True)
    assert found.reads_served == 1000


@pytest.mark.parametrize("streams", [0, 1.5, "2", 1 << 40])
def test_bad_counts_of_streams_are_refused(streams):
    with pytest.raises(ConfigError, match="active_streams"):
        ob.memory("ddr4-3200").rates(streams)


def test_a_curve_needs_points_and_varies_the_interval():
    with pytest.raises(ConfigError, match="points"):
        ob.memory("ddr4-3200").load_latency("seq", points=0)
    with pytest.raises(ConfigError, match="interval: is what the curve varies"):
        ob.memory("ddr4-3200").load_latency("seq", interval=3)


def test_clocks_can_be_changed():
    fast, slow = ob.memory("ddr4-3200"), ob.memory("ddr4-3200", nRCD=40)
    assert slow.stream([0]).ticks - fast.stream([0]).ticks == 40 - 22


@pytest.mark.parametrize("name", NAMES)
def test_one_request_is_served_and_priced(name):
    """Its latency is a closed form (see above); a write ends tCWL and a burst after WR."""
    channel = ob.memory(name)
    s, t = channel.standard, channel.standard.ticks
    read = channel.stream([0])
    assert read.drained
    assert read.reads_served == 1
    assert read.ticks * s.tick_s == pytest.approx(read.mean_read_latency_s)
    assert read.ticks == pytest.approx(alone(channel, at(s, row=[0])))
    assert read.bandwidth_bytes_per_s == pytest.approx(s.burst_bytes / read.seconds)
    write = channel.stream([0], [True])
    assert write.writes_served == 1
    wait = t.get("nRCD", t.get("nRCDWR")) + first_edge(s, "ACT") - first_edge(s, "RD")
    wait += s.buses == "lpddr5"
    rising = s.ticks_per_clock == 2 and (1 + wait) % 2 == 0
    assert write.ticks == 1 + wait + rising + t["nCWL"] + t.get("nBL", t.get("nBL_min"))


def test_draining_adds_the_tail_only():
    channel = ob.memory("hbm3-6400")
    cut = channel.stream("random", requests=20_000, read_pct=60)
    whole = channel.stream("random", requests=20_000, read_pct=60, drain=True)
    assert not cut.drained
    assert whole.reads_served + whole.writes_served == 20_000
    assert 20_000 - 96 <= cut.reads_served + cut.writes_served < 20_000
    assert 0 < whole.ticks - cut.ticks < 3000
    assert whole.commands["REFab"] - cut.commands["REFab"] <= 2


def test_equal_calls_give_equal_results():
    first, again = (ob.memory("hbm4-8000").stream("random", requests=5000) for _ in range(2))
    assert (first.ticks, first.commands) == (again.ticks, again.commands)
    assert (first.histogram == again.histogram).all()


@pytest.mark.parametrize("name", ["ddr4-3200", "ddr5-4800"])
@pytest.mark.parametrize(
    ("before", "behind", "where", "clocks"),
    [
        ("R", "R", "rank", "nBL + nCS"),
        ("R", "W", "rank", "nBL + nCS"),
        ("W", "R", "rank", "nCWL + nBL + nCS - nCL"),
        ("W", "R", "bankgroup", "nCWL + nBL + nWTRS"),
        ("W", "R", "bank", "nCWL + nBL + nWTRL"),
    ],
)
def test_the_second_of_two_accesses_waits_for_the_bus(name, before, behind, where, clocks):
    """Two requests one tick apart: ACT, ACT, and an access that waits for the first one."""
    channel = ob.memory(name, rank=2)
    s, t = channel.standard, channel.standard.ticks
    addresses = at(s, row=[0, 0], **{where: np.array([0, 1])})
    writes = np.array([before, behind]) == "W"
    found = channel.stream(addresses, writes, refresh="NoRefresh", drain=True)
    distance = sum(
        (-1 if sign == "-" else 1) * t[word]
        for sign, word in zip(["+", *clocks.split()[1::2]], clocks.split()[::2], strict=True)
    )
    opened = {"rank": first_edge(s, "ACT") + 1, "bankgroup": t["nRRDS"], "bank": t["nRRDL"]}[where]
    end = t["nCL"] + t["nBL"] if behind == "R" else t["nCWL"] + t["nBL"]
    assert found.ticks == 1 + t["nRCD"] + max(opened, distance) + end


@pytest.mark.parametrize(
    ("name", "field", "clocks"),
    [
        ("hbm3-6400", "sid", "nCCDR"), ("hbm4-8000", "bankgroup", "nCCDS"),
        ("ddr4-3200", "bankgroup", "nCCDS"), ("gddr6-14000", "bank", "nCCDL"),
        ("hbm3e-9600", "sid", "nCCDR"), ("lpddr5-6400", "bank", "nCCDL"),
    ],
)  # fmt: skip
def test_alternating_reads_of_open_rows_in_order(name, field, clocks):
    """One place in the queue: the order is kept, each read waits for the one before."""
    channel = ob.memory(name)
    s = channel.standard
    index = np.arange(3000)
    addresses = at(s, row=0 * index, **{field: index % 2}, column=index // 2 % s.columns)
    found = channel.stream(addresses, refresh="NoRefresh", read_queue=1)
    assert found.row_misses == 2
    assert found.ticks / 3000 == pytest.approx(s.ticks[clocks], rel=0.02)


#: Least times of the cores in ns, where a file says that its clocks come from ns.
NANOSECONDS = {
    "gddr6-14000": {"nRCDRD": 15, "nRP": 15, "nWR": 15, "nRRDS": 4, "nFAW": 16, "nRREFD": 8,
                    "nRFC": 120, "nRFCpb": 60},
    "ddr4-3200": {"nRCD": 13.75, "nRP": 13.75, "nRAS": 32, "nWR": 15, "nRFC": 350},
    "ddr4-2400": {"nRCD": 13.32, "nRP": 13.32, "nRAS": 32, "nRFC": 350},
    "ddr5-5600": {"nRCD": 14.28, "nRAS": 32, "nWR": 29.9, "nRFC": 295},
    "ddr5-6400": {"nRCD": 14.3, "nRAS": 32, "nWR": 29.9, "nRFC": 295},
    "lpddr5-6400": {"nRCD": 18, "nRAS": 42, "nFAW": 20, "nRFC": 280, "nRFCpb": 140},
}  # fmt: skip


@pytest.mark.parametrize("name", NANOSECONDS)
def test_clocks_are_no_shorter_than_their_times(name):
    s = load_standard(name)
    for clock, least in NANOSECONDS[name].items():
        assert s.ticks[clock] * s.tick_s * 1e9 >= least - 1e-6, (name, clock)


def test_chrabaroco_leaves_banks_for_the_highest_bits():
    s = load_standard("hbm3-6400")
    fields = decode(s, np.arange(s.columns + 1) * s.burst_bytes, "ChRaBaRoCo")
    assert fields["column"].tolist() == [*range(s.columns), 0]
    assert fields["row"].tolist() == [0] * s.columns + [1]
    last = decode(s, np.array([s.capacity_bytes // 2]), "ChRaBaRoCo")
    assert {n: int(v[0]) for n, v in last.items() if v[0]} == {"pseudochannel": 1}


def test_unknown_memories_and_patterns_name_the_nearest():
    with pytest.raises(ConfigError, match="hbm3-6400"):
        ob.memory("hbm3-640")
    with pytest.raises(ConfigError, match="rand_64B"):
        ob.memory("ddr4-3200").stream("rand64B")
    with pytest.raises(ConfigError, match="power of two"):
        ob.memory("ddr4-3200", rank=3)
