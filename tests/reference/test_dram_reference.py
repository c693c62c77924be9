"""One channel against Ramulator 2.1: counts and ticks equal, latencies to the last digit."""

import csv

import numpy as np
import pytest

from opbyte.hw_models.memory.addresses import decode, pack
from opbyte.hw_models.memory.dram import memory
from opbyte.hw_models.memory.dram_kernel import setup as s
from opbyte.hw_models.memory.dram_kernel.replay import Replay
from opbyte.hw_models.memory.dram_kernel.twin import run_twin
from opbyte.hw_models.memory.patterns import addresses_of, writes_of
from opbyte.hw_models.memory.standards import COMMANDS, load_standard


@pytest.fixture(scope="module")
def rows(reference):
    path = reference / "reference" / "memory" / "dram_reference.csv"
    if not path.is_file():
        pytest.skip(f"no reference rows: {path} is not a file")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 255
    return rows


def case(row):
    standard, count = load_standard(row["standard"].lower()), int(row["n_requests"])
    controller = s.Controller(
        scheduler=row["scheduler"], refresh=row["refresh"], row_policy=row["row_policy"],
        read_queue=int(row["read_buf"]), write_queue=int(row["write_buf"]),
        interval=int(row["interval_ticks"]),
    )  # fmt: skip
    fields = decode(standard, addresses_of(standard, row["pattern"], count), row["mapper"])
    codes = pack(standard, fields, writes_of(count, int(row["read_pct"])))
    return standard, s.controller_numbers(standard, controller), codes


def check(row, out):
    got = {
        "sim_ticks": out[s.TICKS], "reads_served": out[s.READS], "writes_served": out[s.WRITES],
        "reads_forwarded": out[s.FORWARDED], "writes_coalesced": out[s.COALESCED],
        "row_hits": out[s.HITS], "row_misses": out[s.MISSES], "row_conflicts": out[s.CONFLICTS],
    }  # fmt: skip
    assert {name: int(value) for name, value in got.items()} == {n: int(row[n]) for n in got}, row
    # That tool divides the latencies of completed reads by the reads that were issued.
    latency = out[s.LATENCY] / out[s.READS]
    assert latency == pytest.approx(float(row["avg_read_lat_ticks"]), abs=0.0051), row


def replayed(row):
    standard, numbers, codes = case(row)
    return Replay(standard, numbers).take(codes)


def test_every_seventh_row_is_equal_tick_by_tick(rows):
    for row in rows[::7]:
        check(row, replayed(row))


@pytest.mark.proof
def test_all_rows_are_equal_tick_by_tick(rows):
    for row in rows:
        check(row, replayed(row))


@pytest.mark.proof
def test_the_twin_is_equal_tick_by_tick(rows):
    short = [
        row for row in rows if int(row["sim_ticks"]) < 800_000 and row["interval_ticks"] != "1"
    ]
    assert len(short) > 40
    for row in short[::4]:
        check(row, run_twin(*case(row)))


def test_the_public_call_gives_the_published_rates(rows):
    for row in rows[::29]:
        channel, count = memory(row["standard"].lower()), int(row["n_requests"])
        writes = writes_of(count, int(row["read_pct"]))
        found = channel.stream(
            addresses_of(channel.standard, row["pattern"], count), writes,
            interval=int(row["interval_ticks"]), mapping=row["mapper"],
            scheduler=row["scheduler"], refresh=row["refresh"], row_policy=row["row_policy"],
            read_queue=int(row["read_buf"]), write_queue=int(row["write_buf"]),
        )  # fmt: skip
        assert found.ticks == int(row["sim_ticks"])
        assert found.bandwidth_bytes_per_s == pytest.approx(float(row["GBps"]) * 1e9, rel=1e-4)
        assert found.mean_read_latency_s == pytest.approx(
            float(row["avg_read_lat_ns"]) * 1e-9, rel=0.01
        )


def test_standards_carry_the_reference_timings(reference):
    """The shipped files say what the reference resolved: clocks, organisation and constraints."""
    import json

    path = reference / "reference" / "memory" / "dram_timings.json"
    if not path.is_file():
        pytest.skip(f"no reference timings: {path} is not a file")
    for name, given in json.loads(path.read_text()).items():
        standard = load_standard(name.lower())
        scale = given["ticks_per_CK"]
        clocks = {k: v for k, v in given["timings_CK"].items() if k not in ("rate", "tCK_ps")}
        for key, value in clocks.items():
            if "RFM" not in key:
                assert standard.ticks[key] == value * scale, (name, key)
        assert standard.tick_s * scale == pytest.approx(given["timings_CK"]["tCK_ps"] * 1e-12)
        assert standard.burst_bytes == given["tx_bytes"]
        fields = dict(given["roBaRaCoCh_fields_lsb_first"])
        sizes = dict(zip(standard.levels, standard.sizes, strict=True))
        sizes |= {"row": standard.rows, "column": standard.columns}
        assert {k: int(np.log2(v)) for k, v in sizes.items()} == {
            k: v for k, v in fields.items() if k != "tx_offset"
        }
        levels = {"Channel": 0} | {name: i + 1 for i, name in enumerate(standard.levels)}
        levels = {name.lower(): number for name, number in levels.items()}
        found = {
            (c.level, COMMANDS[c.after], COMMANDS[c.before], c.ticks, c.window, c.siblings)
            for c in standard.constraints
        }
        stated = set(_stated(given, levels, scale))
        assert stated <= found, name
        # What is ours beside them is how long a command holds its bus.
        lengths = {_NAMES.get(c, c): int(n * scale) for c, n in given["command_cycles"].items()}
        for level, after, _, ticks, window, siblings in found - stated:
            assert (level, window, siblings) == (0, 1, False), (name, after)
            assert ticks == lengths.get(after, scale) > 1, (name, after)


_NAMES = {"PREpb": "PRE", "ACT1": "ACT", "CAS_RD": "CAS", "CAS_WR": "CAS"}


def _stated(given, levels, scale):
    """Yield the reference's constraints with the lengths of commands, ticks."""
    clocks = {name: value * scale for name, value in given["timings_CK"].items()}
    lengths = {_NAMES.get(c, c): int(n * scale) for c, n in given["command_cycles"].items()}
    for level, before, behind, latency, window, siblings in given["constraints"]:
        words = [int(w) if w.isdigit() else clocks.get(w, w) for w in latency.split()]
        nominal, sign = 0, 1
        for word in words:
            if word in ("+", "-"):
                sign = 1 if word == "+" else -1
            else:
                nominal += sign * word
        for a in (_NAMES.get(c, c) for c in before if "RFM" not in c):
            for b in (_NAMES.get(c, c) for c in behind if "RFM" not in c):
                ticks = nominal + lengths.get(a, scale) - lengths.get(b, scale)
                yield levels[level.lower()], a, b, ticks, window, siblings
