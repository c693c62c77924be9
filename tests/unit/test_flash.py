"""Flash devices: closed forms, conservation, laws, wear, refusals."""

import itertools
import math

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.hw_models.memory.flash_devices import flash_names, load_flash
from opbyte.hw_models.memory.nand_kernel.setup import buffer_time, link_time, numbers_of

#: One die with one plane on one channel, behind a link and a controller that cost nothing much.
ONE = {
    "channels": 1, "chips": 1, "dies": 1, "planes": 1, "blocks": 64, "page": "16 KiB",
    "read": "50 us", "program": "400 us", "channel_rate": "1 GB/s", "whole_ns": False,
    "layout": "sequential", "pcie": {"rate": "1000 GB/s"}, "mapping": {"ideal": True},
    "die_interleave": True, "commands_first": True, "buffer": {"rate": "1000 GB/s"},
}  # fmt: skip
PAGE = 16384
#: ONFI times of those devices, seconds: command of a read, data of a page, command of a program.
COMMAND, DATA, PROGRAM = 290e-9, 16384e-9, 361e-9


def drive(**changes):
    return ob.flash("mqsim-default", **{**ONE, **changes})


def test_the_latency_of_a_single_read_is_the_sum_of_its_steps():
    one = drive(pcie={"rate": "4 GB/s"})
    n = numbers_of(one.device, 1)
    found = one.stream("random", queue_depth=1, requests=50)
    front = n.doorbell + n.ask + n.entry + link_time(n, PAGE) + n.completion
    expected = front * 1e-12 + COMMAND + 50e-6 + DATA
    assert found.read_latency[0] == pytest.approx(expected, rel=1e-9)
    # Later ones ring behind the doorbell of the last completion.
    later = np.full(49, expected + n.doorbell * 1e-12)
    assert found.read_latency[1:] == pytest.approx(later, rel=1e-9)
    assert n.doorbell == 8000
    assert n.ask == 8000
    assert n.entry == 23000
    assert n.completion == 11000


def test_a_missing_mapping_entry_costs_one_more_array_read():
    hit = drive().stream("random", queue_depth=1, requests=1).mean_latency_s
    miss = drive(mapping={"ideal": False}).stream("random", queue_depth=1, requests=1)
    assert miss.mean_latency_s - hit == pytest.approx(COMMAND + 50e-6 + 512e-9, rel=1e-9)
    assert miss.counts.mapping_reads == 1


def test_a_die_that_is_never_idle_reads_one_page_per_cycle():
    found = drive().stream("seq", queue_depth=32, requests=2000)
    cycle = COMMAND + 50e-6 + DATA
    assert found.bandwidth_bytes_per_s == pytest.approx(PAGE / cycle, rel=0.002)


def test_a_cache_register_hides_the_shorter_of_array_and_channel():
    found = drive(cache_read=True).stream("seq", queue_depth=32, requests=2000)
    assert found.bandwidth_bytes_per_s == pytest.approx(PAGE / (COMMAND + 50e-6), rel=0.01)
    slow = drive(cache_read=True, channel_rate="100 MB/s")
    found = slow.stream("seq", queue_depth=32, requests=1000)
    assert found.bandwidth_bytes_per_s == pytest.approx(PAGE / (10 * DATA + COMMAND), rel=0.01)


def test_many_dies_fill_a_channel():
    found = drive(chips=8).stream("seq", queue_depth=64, requests=4000)
    assert found.bandwidth_bytes_per_s == pytest.approx(PAGE / (DATA + COMMAND), rel=0.01)
    assert found.bus_share == pytest.approx(DATA / (DATA + COMMAND), rel=0.01)


def test_data_before_commands_drive_a_channel_in_convoys():
    """All dies are read, then all their data move, then all are read again."""
    found = drive(chips=8, commands_first=False).stream("seq", queue_depth=64, requests=4000)
    convoy = 8 * (DATA + COMMAND) + 50e-6
    assert found.bandwidth_bytes_per_s == pytest.approx(8 * PAGE / convoy, rel=0.02)


def test_planes_read_in_one_command_where_they_may():
    both = drive(planes=2)
    found = both.stream("seq", queue_depth=32, requests=2000)
    cycle = COMMAND + 650e-9 + 50e-6 + 2 * DATA
    assert found.bandwidth_bytes_per_s == pytest.approx(2 * PAGE / cycle, rel=0.005)
    assert found.counts.multiplane >= 0.98 * found.counts.commands
    alone = drive(planes=2, multiplane=False).stream("seq", queue_depth=32, requests=2000)
    assert alone.counts.multiplane == 0
    # Pages of other rows of the blocks can not share a command.
    apart = both.stream(np.arange(200) * 3 * PAGE, queue_depth=2)
    assert apart.counts.multiplane == 0


def test_dies_of_a_chip_side_by_side_or_one_after_the_other():
    side = drive(dies=2).stream("seq", queue_depth=32, requests=2000)
    after = drive(dies=2, die_interleave=False).stream("seq", queue_depth=32, requests=2000)
    assert side.bandwidth_bytes_per_s == pytest.approx(2 * after.bandwidth_bytes_per_s, rel=0.01)


def test_writes_settle_at_the_rate_of_programs():
    found = drive().stream("seq", queue_depth=8, requests=1000, read_pct=0)
    assert found.bandwidth_bytes_per_s == pytest.approx(PAGE / (PROGRAM + DATA + 400e-6), rel=0.02)
    assert found.counts.programs == 1000
    assert found.counts.reads == 0


def test_long_writes_wait_for_room_piece_by_piece():
    found = ob.flash("mqsim-default").stream(
        "seq", block=256 << 10, queue_depth=32, requests=60, read_pct=0
    )
    assert found.requests == found.write_latency.size == 60
    assert found.counts.programs == 60 * 32


def test_a_single_write_ends_in_the_buffer():
    one = drive(pcie={"rate": "4 GB/s"}, buffer={"rate": "1 GB/s"})
    n = numbers_of(one.device, 1)
    found = one.stream("seq", queue_depth=1, requests=1, read_pct=0)
    front = n.doorbell + 2 * n.ask + n.entry + link_time(n, PAGE) + n.completion
    expected = (front + buffer_time(n, PAGE)) * 1e-12
    assert found.mean_write_latency_s == pytest.approx(expected, rel=1e-9)


def test_what_waits_for_flash_is_read_from_the_buffer():
    found = drive().stream([0, 0], is_write=[True, False], queue_depth=1)
    assert found.counts.buffer_hits == 1
    assert found.mean_read_latency_s < 50e-6


def test_command_and_firmware_cost_add_up():
    free = drive().stream("random", queue_depth=1, requests=5).mean_latency_s
    cost = drive(host={"command": "2 us", "firmware": "10 us"})
    assert cost.stream("random", queue_depth=1, requests=5).mean_latency_s == pytest.approx(
        free + 12e-6, rel=1e-6
    )
    many = drive(channels=8, chips=8, read="1 us", host={"command": "2 us"})
    found = many.stream("random", block=4096, queue_depth=128, requests=5000)
    assert found.requests_per_s == pytest.approx(5e5, rel=0.01)


@pytest.mark.parametrize("name", flash_names())
def test_page_operations_are_those_that_were_asked_for(name):
    device = ob.flash(name)
    size = 4 * device.device.page_bytes
    found = device.stream("random", block=size, queue_depth=16, requests=500, read_pct=60)
    counts = found.counts
    assert counts.reads - counts.mapping_reads == 4 * found.read_latency.size
    assert counts.programs - counts.mapping_writes == 4 * found.write_latency.size
    assert found.requests == 500
    assert 0 < found.bus_share <= 1
    again = device.stream("random", block=size, queue_depth=16, requests=500, read_pct=60)
    assert np.array_equal(found.read_latency, again.read_latency)


def test_few_entries_are_given_up_and_written_back():
    few = drive(mapping={"ideal": False, "cache": "4 KiB"}, blocks=256)
    found = few.stream("random", queue_depth=4, requests=4000, read_pct=50)
    assert found.counts.mapping_writes > 0
    reads = few.stream("random", queue_depth=4, requests=4000)
    assert reads.counts.mapping_writes == 0
    wide = drive(mapping={"ideal": False}, blocks=256)
    assert wide.stream("random", queue_depth=4, requests=4000).counts.mapping_reads < (
        reads.counts.mapping_reads
    )


@pytest.mark.parametrize("pattern", ["seq", "random"])
def test_saturated_reads_are_never_slower_on_more(pattern):
    choices = {"block": 4 * PAGE, "queue_depth": 128, "requests": 3000}
    base = {"channels": 2, "chips": 2, "planes": 2, "dies": 2, "mapping": {"ideal": True}}
    least = drive(**base).stream(pattern, **choices).bandwidth_bytes_per_s
    for more in ({"channels": 4}, {"chips": 4}, {"dies": 4}, {"channel_rate": "2 GB/s"},
                 {"read": "25 us"}, {"cache_read": True}):  # fmt: skip
        found = drive(**{**base, **more}).stream(pattern, **choices).bandwidth_bytes_per_s
        assert found >= least * (1 - 1e-3), more


def test_deeper_queues_carry_more_and_take_longer():
    curve = drive(channels=4, chips=2).queue_curve("random", block=4096, requests=3000)
    rates = [r.bandwidth_bytes_per_s for r in curve]
    delays = [r.mean_latency_s for r in curve]
    assert all(b >= a * 0.99 for a, b in itertools.pairwise(rates))
    assert delays == sorted(delays)
    # Little's law holds in a closed loop.
    for r in curve:
        assert r.requests_per_s * r.mean_latency_s == pytest.approx(r.queue_depth, rel=0.05)


def test_the_host_stops_sending():
    found = drive().stream("random", queue_depth=4, requests=100_000, stop_s=0.01)
    assert found.requests < 1000
    assert found.seconds <= 0.01


def _worn(**choices):
    return ob.flash("mqsim-default", blocks=256, pages=64, overprovisioning=0.28).wear(**choices)


def test_pages_that_die_together_cost_no_copies():
    assert _worn(pattern="seq", fill=1.0).write_amplification == 1.0
    whole = _worn(pattern="kv", sequence=640, fill=0.9)
    short = _worn(pattern="kv", sequence=16, fill=0.9)
    assert 1.0 <= whole.write_amplification < 1.3
    assert 1.0 <= short.write_amplification < 1.3


def test_random_overwrites_follow_the_closed_form():
    """First in, first out: WA = a / (a + W(-a e^-a)), a the physical over the logical pages."""
    found = _worn(pattern="random", policy="fifo", fill=1.0, rounds=8)
    a = (256 - 4) / (256 * 0.72)
    w = -0.5
    for _ in range(100):
        w -= (w * math.exp(w) + a * math.exp(-a)) / (math.exp(w) * (w + 1))
    assert found.write_amplification == pytest.approx(a / (a + w), rel=0.05)
    greedy = _worn(pattern="random", policy="greedy", fill=1.0, rounds=8)
    assert greedy.write_amplification < found.write_amplification
    emptier = _worn(pattern="random", policy="greedy", fill=0.7, rounds=8)
    assert emptier.write_amplification < greedy.write_amplification


def test_sustained_writes_pay_for_copies_and_erases():
    even, random = _worn(pattern="seq", fill=1.0), _worn(pattern="random", fill=1.0)
    d = even.device
    per_page = d.program.value + d.erase.value / d.pages
    arrays = 64 * d.page_bytes / per_page
    assert even.sustained_bytes_per_s == pytest.approx(arrays, rel=0.02)
    assert random.sustained_bytes_per_s < even.sustained_bytes_per_s


def test_endurance_is_cycles_times_capacity_over_writes():
    drive_ = ob.flash("instattention-csd")
    device = drive_.device
    wear = drive_.endurance(1e12, write_amplification=2.0)
    rated = 3000 * device.physical_pages * device.page_bytes / 2.0
    assert wear.rated_bytes == rated
    assert wear.years == pytest.approx(rated / 1e12 / 365.25)
    assert wear.share_of_five_years == pytest.approx(5.0 / wear.years)
    assert wear.drive_writes_per_day == pytest.approx(1e12 / device.capacity_bytes)


def test_data_that_do_not_fit_are_refused():
    drive_ = ob.flash("instattention-csd")
    drive_.hold(1e9, "KV cache")
    with pytest.raises(CapacityError, match="KV cache do not fit in instattention-csd"):
        drive_.hold(1e15, "KV cache")


def test_what_no_source_gives_is_refused():
    with pytest.raises(UncoveredError, match="endurance of nvmevirt-970pro"):
        ob.flash("nvmevirt-970pro").endurance(1e12)
    with pytest.raises(UncoveredError, match="energy of mqsim-default"):
        _ = ob.flash("mqsim-default").stream(requests=10).joules


@pytest.mark.parametrize(
    ("choices", "error", "words"),
    [
        ({"offsets": "rando"}, ConfigError, "random"),
        ({"queue_depth": 0}, ConfigError, "queue_depth"),
        ({"block": 1000}, ConfigError, "sectors"),
        ({"read_pct": 101}, ConfigError, "read_pct"),
        ({"requests": 0}, ConfigError, "requests"),
        ({"stop_s": -1.0}, ConfigError, "stop_s"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"block": 1 << 60}, ConfigError, "block"),
        ({"sizes": [4096]}, WorkloadError, "sizes"),
        ({"offsets": [0.5]}, WorkloadError, "whole numbers"),
        ({"offsets": [-4096]}, WorkloadError, "within"),
        ({"offsets": [100]}, WorkloadError, "sectors"),
        ({"offsets": [0], "block": 4096}, WorkloadError, "block"),
        ({"offsets": [0], "is_write": [2]}, WorkloadError, "is_write"),
        ({"requests": 10_000_000, "block": 1 << 20}, WorkloadError, "pages"),
    ],
)
def test_bad_streams_are_refused(choices, error, words):
    with pytest.raises(error, match=words):
        drive(blocks=1024).stream(**choices)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": 0}, "channels"),
        ({"page": "1000 B"}, "page"),
        ({"allocation": "CWD"}, "allocation"),
        ({"overprovisioning": 1.5}, "overprovisioning"),
        ({"chanels": 4}, "chanels"),
        ({"read": "0 us"}, "read"),
    ],
)
def test_bad_devices_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        ob.flash("mqsim-default", **changes)
    with pytest.raises(ConfigError, match="mqsim-default"):
        ob.flash("mqsim-defaul")


@pytest.mark.parametrize(
    ("choices", "error", "words"),
    [
        ({"pattern": "rand"}, ConfigError, "random"),
        ({"policy": "gredy"}, ConfigError, "greedy"),
        ({"fill": 0.0}, ConfigError, "fill"),
        ({"rounds": -1.0}, ConfigError, "rounds"),
        ({"sequence": 0}, ConfigError, "sequence"),
    ],
)
def test_bad_wear_is_refused(choices, error, words):
    with pytest.raises(error, match=words):
        _worn(**choices)
    with pytest.raises(CapacityError, match="collecting"):
        ob.flash("mqsim-default", blocks=16, overprovisioning=0.01).wear("random", fill=1.0)


def test_places_follow_the_allocation():
    device = load_flash("mqsim-default", die_interleave=True)
    target, die, plane = device.places(np.arange(128))
    assert list(target[:8] // device.targets_per_channel) == list(range(8))
    assert len(set(zip(target.tolist(), die.tolist(), plane.tolist(), strict=True))) == 128
    planes_first = load_flash("mqsim-default", allocation="PDWC")
    assert list(planes_first.places(np.arange(4))[2]) == [0, 1, 0, 1]
