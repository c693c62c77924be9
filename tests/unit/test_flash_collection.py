"""Collection, merged writes and suspension on the clock: closed forms, conservation, laws."""

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError
from opbyte.hw_models.memory.flash_devices import load_flash
from opbyte.hw_models.memory.flash_wear import filled
from opbyte.hw_models.memory.nand_kernel import blocks as kept
from opbyte.hw_models.memory.nand_kernel import loops
from opbyte.hw_models.memory.nand_kernel.collect import collect
from opbyte.hw_models.memory.nand_kernel.setup import job_of, numbers_of

PAGE = 16384
#: One die with one plane on one channel, behind a link and a controller that cost nothing much.
ONE = {
    "channels": 1, "chips": 1, "dies": 1, "planes": 1, "blocks": 32, "pages": 16,
    "page": "16 KiB", "read": "50 us", "program": "400 us", "erase": "3 ms",
    "channel_rate": "1 GB/s", "whole_ns": False, "layout": "sequential", "merge": "whole",
    "pcie": {"rate": "1000 GB/s"}, "mapping": {"ideal": True}, "die_interleave": True,
    "commands_first": True, "buffer": {"rate": "1000 GB/s"}, "overprovisioning": 0.28,
    "collection": {"policy": "greedy", "start": 0.01, "stall": 0.01, "first": "host"},
    "suspend": {"erase": None},
}  # fmt: skip
#: ONFI times of those devices, seconds: commands of a read, a program, an erasure; data of a page.
READ, PROGRAM, ERASE, DATA = 290e-9, 361e-9, 220e-9, 16384e-9


def drive(**changes):
    return ob.flash("mqsim-default", **{**ONE, **changes})


@pytest.mark.parametrize("policy", ["greedy", "fifo", "sampled"])
@pytest.mark.parametrize("copyback", [False, True])
def test_the_clock_moves_the_pages_that_wear_counts(policy, copyback):
    """Amplification on the clock is that of the plane without one, page by page."""
    collection = {"policy": policy, "copyback": copyback}
    found = drive(collection=collection)
    logical = found.device.logical_pages
    pages = np.random.default_rng(3).integers(0, logical, 8 * logical)
    timed = found.stream(pages * PAGE, is_write=True, queue_depth=16, fill=0.0, seed=None)
    policies = ("greedy", "fifo", "sampled")
    host, moved, erases = collect(32, 16, logical, pages, policies.index(policy), 2, 0, seed=1)
    assert (len(pages), timed.counts.moved, timed.counts.erases) == (host, moved, erases)
    assert timed.write_amplification == (host + moved) / host
    assert timed.counts.programs == host + moved
    assert timed.counts.reads == moved


def test_steady_writes_take_what_their_operations_take():
    """One plane that is never idle: programs, reads and erasures follow one another."""
    n = 4000
    for copyback in (False, True):
        timed = drive(collection={"copyback": copyback}).stream(
            "random", queue_depth=32, requests=n, read_pct=0, fill=1.0, rounds=3.0
        )
        c = timed.counts
        assert c.programs == n + c.moved
        read = READ + 50e-6 + (0 if copyback else DATA)
        program = PROGRAM + 400e-6
        busy = (
            n * (program + DATA)
            + c.moved * (read + program + (0 if copyback else DATA))
            + c.erases * (ERASE + 3e-3)
        )
        assert timed.seconds == pytest.approx(busy * (1 - 32 / n), rel=0.02)


def _played(device, writes, depth=16):
    blocks = filled(device, 0.9, 1.0, 1)
    before = blocks.copy()
    pages = np.random.default_rng(5).integers(0, device.logical_pages, writes)
    numbers = numbers_of(device, depth, collects=True)
    size = np.full(writes, device.page_bytes)
    job = job_of(device, numbers, pages * device.page_bytes, size, np.ones(writes, int), blocks)
    _, done, counts = loops.replay(job)
    assert (done >= 0).all()
    return before, blocks, counts, pages


@pytest.mark.parametrize("start", [0.01, 0.2])
def test_pages_are_conserved(start):
    """Valid, invalid and free pages make up the plane; each logical page lies at one place."""
    device = drive(channels=2, planes=2, overprovisioning=0.4, collection={"start": start}).device
    before, blocks, counts, pages = _played(device, 6000)
    planes = device.total_planes
    each = blocks.reshape(planes, -1)
    b = device.blocks
    for f in each:
        valid, age, _, erased, rest = np.split(f[kept.F_VALID :], np.cumsum([b] * 4))
        where, page_of = rest[: f[kept.F_LOGICAL]], rest[f[kept.F_LOGICAL] :]
        held = page_of.reshape(b, device.pages) >= 0
        assert np.array_equal(held.sum(1), valid)
        assert valid.sum() == (where >= 0).sum()
        there = np.flatnonzero(where >= 0)
        assert np.array_equal(page_of[where[there]], there)
        # Every block is full, free, open or being erased.
        open_ = {int(f[kept.F_OPEN]), int(f[kept.F_MOVE])}
        assert (age >= 0).sum() + f[kept.F_FREE] + len(open_) in (b, b - 1)
        # Programs fill blocks, and blocks come from erasures.
        programs = f[kept.F_HOST] + f[kept.F_MOVED]
        assert abs(f[kept.F_ERASES] * device.pages - programs) <= (b + 2) * device.pages
        assert erased.sum() >= f[kept.F_ERASES]
    written = sum(int(f[kept.F_HOST]) for f in each)
    assert written == len(pages)
    assert counts.moved == sum(int(f[kept.F_MOVED]) for f in each)
    assert counts.erases == sum(int(f[kept.F_ERASES]) for f in each)
    assert before.shape == blocks.shape


def test_collecting_early_costs_copies_and_spares_waiting():
    late = drive(channels=4).stream(
        "random", queue_depth=8, requests=4000, read_pct=70, fill=1.0, rounds=2.0
    )
    early = drive(channels=4, collection={"start": 0.15}).stream(
        "random", queue_depth=8, requests=4000, read_pct=70, fill=1.0, rounds=2.0
    )
    assert early.write_amplification > late.write_amplification > 1.0


def test_reads_wait_for_collecting_unless_they_go_first():
    """The tail of reads grows with collecting, most where it goes first."""
    choices = {"queue_depth": 8, "requests": 8000, "read_pct": 70}
    fresh = drive(chips=4).stream("random", **choices)
    worn = {"fill": 1.0, "rounds": 2.0}
    host = drive(chips=4).stream("random", **choices, **worn)
    flash = drive(chips=4, collection={"first": "flash"}).stream("random", **choices, **worn)
    tail = [float(np.percentile(r.read_latency, 99)) for r in (fresh, host, flash)]
    assert tail[0] < tail[1] < tail[2]
    assert host.counts.erases > 0


def test_writes_that_are_answered_from_flash():
    """Without the buffer a write ends with its program; reads of it wait for nothing else."""
    found = drive(buffer={"answers": False}).stream([0], is_write=True, queue_depth=1)
    assert found.mean_write_latency_s == pytest.approx(PROGRAM + DATA + 400e-6, abs=1e-6)
    many = drive(buffer={"answers": False}).stream(
        "seq", queue_depth=8, requests=300, read_pct=0, fill=1.0
    )
    assert many.write_latency.size == 300
    assert many.write_latency.min() > 400e-6


def test_a_part_of_a_page_is_merged_with_the_rest():
    half = {"sizes": PAGE // 2, "is_write": True, "queue_depth": 1}
    for merge, data in (("none", 0.5), ("changed", 0.5), ("whole", 1.0)):
        found = drive(merge=merge).stream([0], **half)
        c = found.counts
        assert (c.merges, c.reads) == ((0, 0) if merge == "none" else (1, 1))
        expected = PROGRAM + data * DATA + (0 if merge == "none" else DATA / 2)
        assert found.counts.bus * 1e-12 == pytest.approx(expected, rel=1e-6)


def test_a_page_that_was_never_written_is_not_merged():
    new = drive(layout="touch")
    first = new.stream([0, PAGE], sizes=PAGE // 2, is_write=True, queue_depth=1)
    assert first.counts.merges == 0
    again = new.stream([0, PAGE, 0], sizes=[PAGE // 2] * 2 + [PAGE], is_write=True, queue_depth=1)
    assert again.counts.merges == 0
    # Both halves, one after the other: the first is still in the buffer, and is merged there.
    halves = new.stream([0, PAGE // 2], sizes=PAGE // 2, is_write=True, queue_depth=1)
    assert halves.counts.merges == 0
    # Once it is on flash it is read.
    later = new.stream(
        [0, *range(PAGE, 40 * PAGE, PAGE), PAGE // 2], sizes=PAGE // 2, is_write=True,
        queue_depth=1,
    )  # fmt: skip
    assert later.counts.merges == 1


def test_a_read_interrupts_a_program_and_pays_for_it():
    """It waits for the suspension alone, where it else waits for the end of the program."""
    given = {"is_write": [True, False], "queue_depth": 1}
    plain = drive().stream([0, PAGE], **given)
    quick = drive(suspend={"program": "20 us", "resume": "5 us"}).stream([0, PAGE], **given)
    assert (plain.counts.suspensions, quick.counts.suspensions) == (0, 1)
    # Both come while the program's data move; what is left of that does not count here.
    assert plain.read_latency[0] - quick.read_latency[0] == pytest.approx(400e-6 - 20e-6, rel=1e-9)
    expected = PROGRAM + DATA + READ + 20e-6 + 50e-6 + DATA
    assert quick.read_latency[0] == pytest.approx(expected, abs=2e-6)
    # Not where less is left of the program than the suspension takes.
    short = drive(suspend={"program": "500 us"}).stream([0, PAGE], **given)
    assert short.counts.suspensions == 0


def test_suspension_shortens_the_tail_and_loses_no_request():
    choices = {"queue_depth": 16, "requests": 6000, "read_pct": 80, "fill": 1.0, "rounds": 2.0}
    plain = drive(chips=4).stream("random", **choices)
    quick = drive(chips=4, suspend={"program": "20 us", "erase": "50 us"}).stream(
        "random", **choices
    )
    assert quick.counts.suspensions > 100
    assert quick.requests == plain.requests
    # Fewer waits leave less to interrupt; what is written is the same.
    assert quick.counts.programs - quick.counts.moved == plain.counts.programs - plain.counts.moved
    assert np.percentile(quick.read_latency, 99) < 0.5 * np.percentile(plain.read_latency, 99)


@pytest.mark.parametrize(
    ("changes", "choices", "error", "words"),
    [
        ({}, {"fill": 1.5}, ConfigError, "fill"),
        ({}, {"fill": 0.5, "rounds": -1.0}, ConfigError, "rounds"),
        ({}, {"rounds": 1.0}, ConfigError, "fill"),
        ({"overprovisioning": 0.05}, {"fill": 0.5}, CapacityError, "collecting"),
        ({"blocks": 1 << 20, "pages": 256}, {"fill": 0.5}, CapacityError, "blocks"),
    ],
)
def test_bad_states_are_refused(changes, choices, error, words):
    with pytest.raises(error, match=words):
        drive(**changes).stream("seq", requests=10, read_pct=0, **choices)


def test_thresholds_are_ordered():
    with pytest.raises(ConfigError, match="stall"):
        load_flash("mqsim-default", collection={"start": 0.1, "stall": 0.2})
    with pytest.raises(ConfigError, match="62"):
        load_flash("mqsim-default", chips=64, dies=2, die_interleave=True)
