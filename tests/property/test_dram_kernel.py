"""The compiled DRAM kernel equals its readable twin, tick by tick, on drawn streams."""

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from opbyte.hw_models.memory.addresses import decode, pack
from opbyte.hw_models.memory.dram_kernel.replay import Replay
from opbyte.hw_models.memory.dram_kernel.setup import (
    COALESCED,
    COMMAND_AT,
    COMPLETED,
    CONFLICTS,
    FORWARDED,
    HISTOGRAM,
    HITS,
    MISSES,
    READS,
    TICKS,
    WRITES,
    Controller,
    controller_numbers,
)
from opbyte.hw_models.memory.dram_kernel.twin import run_twin
from opbyte.hw_models.memory.standards import COMMANDS, load_standard

NAMES = (
    "ddr4-3200",
    "ddr5-4800",
    "lpddr5-6400",
    "gddr6-14000",
    "hbm2-2000",
    "hbm3-6400",
    "hbm4-8000",
)
PER_BANK = {"lpddr5-6400", "gddr6-14000", "hbm2-2000", "hbm3-6400", "hbm4-8000"}


@st.composite
def streams(draw, name):
    """Return a memory, a controller and a stream that mixes hits, conflicts and jumps."""
    organisation = {}
    if name.startswith(("ddr", "lpddr")):
        organisation["rank"] = draw(st.sampled_from([1, 2, 4]))
    if name.startswith("hbm"):
        organisation["pseudochannel"] = draw(st.sampled_from([1, 2]))
    if name.startswith(("hbm3", "hbm4")):
        organisation["sid"] = draw(st.sampled_from([1, 2, 4]))
    if draw(st.booleans()):  # several refreshes within a short stream
        organisation |= {"nREFI": 1200, **({"nREFIpb": 150} if name in PER_BANK else {})}
    standard = load_standard(name, **organisation)
    refreshes = ["AllBank", "NoRefresh", *(["PerBank"] if name in PER_BANK else [])]
    controller = Controller(
        scheduler=draw(st.sampled_from(["FRFCFS", "FRFCFSRowHit"])),
        refresh=draw(st.sampled_from(refreshes)),
        row_policy=draw(st.sampled_from(["Open", "Open", "Closed", "ClosedAdaptive"])),
        read_queue=draw(st.sampled_from([1, 2, 8, 32])),
        write_queue=draw(st.sampled_from([1, 5, 32])),
        interval=draw(st.sampled_from([1, 1, 1, 2, 7, 40])),
    )
    count = draw(st.integers(1, 400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    fields = {
        level: rng.integers(0, min(size, draw(st.sampled_from([1, 2, 8]))), count)
        for level, size in zip(standard.levels, standard.sizes, strict=True)
    }
    fields["row"] = rng.integers(0, draw(st.sampled_from([1, 2, 5, standard.rows])), count)
    fields["column"] = rng.integers(0, draw(st.sampled_from([1, 4, standard.columns])), count)
    share = draw(st.sampled_from([0.0, 0.0, 0.3, 0.9]))
    return standard, controller, pack(standard, fields, rng.random(count) < share)


def both(standard, controller, codes):
    numbers = controller_numbers(standard, controller)
    fast = Replay(standard, numbers).take(codes)[:HISTOGRAM]
    return [int(x) for x in fast], run_twin(standard, numbers, codes)


@pytest.mark.parametrize("name", NAMES)
def test_kernel_equals_twin(name):
    @settings(max_examples=25, phases=(Phase.generate,))
    @given(streams(name))
    def check(case):
        fast, twin = both(*case)
        assert fast == twin

    check()


@pytest.mark.parametrize("name", NAMES)
def test_a_drained_stream_serves_every_request(name):
    """Served, forwarded and merged requests are all; each served one is hit, miss or conflict."""

    @settings(max_examples=25, phases=(Phase.generate,))
    @given(streams(name))
    def check(case):
        standard, controller, codes = case
        replay = Replay(standard, controller_numbers(standard, controller))
        before = replay.take(codes)
        out = replay.drain()
        served = out[READS] + out[WRITES]
        assert served + out[FORWARDED] + out[COALESCED] == len(codes)
        assert out[HITS] + out[MISSES] + out[CONFLICTS] == served
        assert out[COMPLETED] == out[READS] + out[FORWARDED] == out[HISTOGRAM:].sum()
        assert out[TICKS] > before[TICKS]
        commands = dict(zip(COMMANDS, out[COMMAND_AT:], strict=False))
        assert commands["RD"] + commands["RDA"] == out[READS]
        assert commands["WR"] + commands["WRA"] == out[WRITES]
        assert (out >= before)[:HISTOGRAM].all()

    check()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.proof
def test_kernel_equals_twin_at_length(name):
    """Long enough for many refreshes."""
    standard = load_standard(name)
    rng = np.random.default_rng(3)
    addresses = rng.integers(0, standard.capacity_bytes, 4000)
    codes = pack(standard, decode(standard, addresses), rng.random(4000) < 0.4)
    for refresh in ("AllBank", *(["PerBank"] if name in PER_BANK else [])):
        for interval in (1, 37):
            fast, twin = both(standard, Controller(refresh=refresh, interval=interval), codes)
            assert fast == twin
