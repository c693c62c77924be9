"""Compute in memory: commands by hand, prices through the engine, energy by path, refusals."""

import time
from dataclasses import replace

import numpy as np
import pytest
from handmade import gemm, table
from pim_devices import AIM, ATTACC, ENERGY, pim_device, pim_machine

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.pim.attention import attention_clocks, head_counts, head_program
from opbyte.hw_models.compute.pim.device import PimDevice
from opbyte.hw_models.compute.pim.energy import path_joules
from opbyte.hw_models.compute.pim.products import product
from opbyte.hw_models.compute.pim.stages import clocks, row_clocks
from opbyte.hw_models.compute.pim.walk import walked_clocks
from opbyte.hw_models.price import price
from opbyte.sim.place import Placer


def priced(machine, *rows, ideal=False):
    placed = Placer(machine, machine.mapping()).place(table(*rows))
    return price(placed, machine, ideal=ideal)


def attention(tokens, heads, width=128, queries=1):
    kv, scores = 2.0 * tokens * width * heads, tokens * heads * queries
    shape = {"groups": heads, "m": queries, "labels": ("attention",)}
    return (
        ("score", "score", {**shape, "n": tokens, "k": width, "kv_read": kv,
                            "flops": 2.0 * width * scores, "out_bytes": 2.0 * scores}),
        ("softmax", "softmax", {"flops": 5.0 * scores, "labels": ("attention",)}),
        ("context", "context", {**shape, "n": width, "k": tokens, "kv_read": kv,
                                "flops": 2.0 * width * scores}),
    )  # fmt: skip


# -- clocks by hand --------------------------------------------------------------------------


def test_a_row_of_aim_takes_113_clocks_of_a_nanosecond():
    """28 to open, 63 between 64 columns, 6 to precharge, 16 to activate: 57 % of the peak."""
    device = pim_device(AIM)
    assert row_clocks(device, 64.0) == 2 * (28 + 63 + 6 + 16)


def test_a_product_on_aim_by_hand():
    """1024 x 1024 over 32 units: 32 tiles of a row, results of all of them kept."""
    device = pim_device(AIM)
    program, counts = product(device, 1.0, 1024.0, 1024.0)
    assert (counts.rows, counts.columns) == (32, 32 * 64)
    assert counts.moves == {"load": 64, "bias": 32, "read": 32}
    macs = 56 + 31 * row_clocks(device, 64.0) + 63 * 2 + 2
    assert clocks(device, program) == (64 + 32) * 2 + 32 + macs + 32 + 32 * 4


def test_a_tile_of_outputs_at_a_time_loads_every_chunk_again():
    """k = 1536 in chunks of 1024 and 512; n = 3 tiles of 32, each summed up before the next."""
    changes = {"timing.bias": 0.0}
    device = replace(pim_device(AIM, changes=changes), by_tile=True, results=1.0)
    program, counts = product(device, 1.0, 96.0, 1536.0)
    assert (counts.rows, counts.columns) == (6, 3 * 96)
    assert counts.moves == {"load": 3 * 96, "read": 3}
    whole, half = 56 + 63 * 2 + 2, 56 + 31 * 2 + 2
    # A switch between registers and banks before and after each row; no precharge waits for it.
    assert clocks(device, program) == 3 * (96 * 2 + whole + half + 4 * 32 + device.read)
    assert walked_clocks(device, program) == clocks(device, program)
    once, fewer = product(replace(device, by_tile=False), 1.0, 96.0, 1536.0)
    assert (fewer.rows, fewer.columns) == (counts.rows, counts.columns)
    assert fewer.moves == {"load": 96, "read": 6}
    assert clocks(device, once) < clocks(device, program)


def test_points_with_one_chunk_keep_it_for_all_tiles():
    device = replace(pim_device(AIM), by_tile=True, results=1.0)
    depths = np.array([512.0, 1024.0, 1536.0])
    _, counts = product(device, 2.0, 96.0, depths)
    for i, k in enumerate(depths):
        _, one = product(device, 2.0, 96.0, float(k))
        assert counts.columns[i] == one.columns
        assert counts.moves["load"][i] == pytest.approx(one.moves["load"])
    with pytest.raises(ConfigError, match="finish: tile"):
        pim_machine(AIM, changes={"finish": "tile", "reuse": "row"})


def test_a_peak_below_the_commands_holds_them_up():
    device = pim_device(AIM, peak={"bf16": "9 TFLOP/s"})
    rate = f"{device.peak_ops() / 4e12} TFLOP/s"
    assert pim_device(AIM, peak={"bf16": rate}).step == pytest.approx(4 * device.step)


@pytest.mark.parametrize("name", ["rcd", "rp", "rtp", "ras", "rc", "mac", "load", "mode"])
def test_any_single_timing_may_be_an_array_over_points(name):
    values = np.array([20.0, 80.0])
    device = pim_device(AIM)
    many = replace(device, **{"step" if name == "mac" else name: values})
    program, _ = product(many, 1.0, 96.0, 1536.0)
    together = clocks(many, program)
    for i in range(2):
        one = many.at(i)
        assert np.broadcast_to(together, 2)[i] == clocks(one, product(one, 1.0, 96.0, 1536.0)[0])


def test_chunks_and_groups_of_results_are_loaded_and_read_in_turn():
    """k = 2500 in chunks of 1024, 1024 and 452; n = 40 x 32 in groups of 32 and 8 results."""
    device = pim_device(AIM)
    _, counts = product(device, 1.0, 40.0 * 32, 2500.0)
    assert counts.rows == 3 * 40
    assert counts.columns == 40 * (64 + 64 + 29)
    assert counts.moves == {"load": 64 + 64 + 29, "bias": 3 * 40, "read": 3 * 40}


def test_rows_of_the_input_repeat_everything_or_share_open_rows():
    again, shared = (
        product(pim_device(AIM, changes={"reuse": how, "organisation.buffer": "8 KiB"}), 4.0, 64.0,
                1024.0)[1]
        for how in ("none", "row")
    )  # fmt: skip
    assert (again.rows, shared.rows) == (4 * 2, 2)
    assert again.columns == shared.columns == 4 * 2 * 64
    assert again.moves["read"] == shared.moves["read"] == 8


def test_one_head_of_attacc_by_hand():
    """256 tokens: two rows of 32 columns; the query before, a row switch, the output after."""
    device = pim_device(ATTACC)
    counts = head_counts(device, 1.0, 256.0, 128.0, 1.0)
    assert (counts.columns, counts.rows) == (64, 2)
    assert counts.moves == {"load": 8, "read": 24, "softmax": 1, "refill": 8}
    query, macs, switch, output = 8 * 4, 31 * 6, 8 + 19 + 19, 8 * 2
    assert (
        attention_clocks(device, 1.0, 256.0, 128.0, 1.0)
        == query + macs + switch + macs + 1 + output
    )


def test_units_that_open_the_next_bank_ahead_hide_row_switches():
    device = pim_device(ATTACC, "bank_group")
    counts = head_counts(device, 1.0, 4096.0, 128.0, 1.0)
    stream = counts.columns * 6
    free = pim_device(ATTACC, "bank_group", changes={"refresh": "none"})
    took = clocks(free, head_program(free, 4096.0, 128.0, 1.0))
    assert stream < took < stream + 32 + 16 * 2 * 8 + 46 + 100


@pytest.mark.parametrize(
    ("level", "artifact", "clocks_of_one"),
    [
        ("bank", "none", 456),
        ("bank", "attacc", 456 - 19 + 1),
        ("bank_group", "none", 8 + 19 + 456 + 19),
        ("bank_group", "attacc", 1 + 456 + 19),
        ("buffer", "none", 8 + 19 + 456 + 19),
    ],
)
def test_a_refresh_shares_the_row_switch_where_all_banks_switch_at_once(
    level, artifact, clocks_of_one
):
    """4096 tokens at the banks meet one refresh, and units that go from bank to bank several."""
    device = pim_device(ATTACC, level, changes={"artifact": artifact})
    never = replace(device, refresh="none")
    took, work = (attention_clocks(d, 1.0, 4096.0, 128.0, 1.0) for d in (device, never))
    count = (took - work) / clocks_of_one
    assert count == (1 if level == "bank" else round(count)) >= 1
    steady = attention_clocks(replace(device, refresh="steady"), 1.0, 4096.0, 128.0, 1.0)
    assert steady == pytest.approx(work * 5070 / (5070 - clocks_of_one))


def test_the_defect_of_attacc_needs_values_that_fill_one_row():
    """Of 256 tokens they do: the second head's are taken for the first's, and are still open."""
    short, long = (
        [
            attention_clocks(pim_device(ATTACC, changes={"artifact": x}), 32.0, tokens, 128.0, 1.0)
            for x in ("none", "attacc")
        ]
        for tokens in (256.0, 272.0)
    )
    assert short[0] - short[1] == 46 - 6
    assert long[0] == long[1]
    points = attention_clocks(
        pim_device(ATTACC, changes={"artifact": "attacc"}),
        32.0,
        np.array([256.0, 272.0]),
        128.0,
        1.0,
    )
    assert points.tolist() == [short[1], long[1]]


def test_power_limits_macs_and_activation():
    free = pim_device(ATTACC, changes={"power_limited": False})
    assert free.step == 4 < pim_device(ATTACC).step == 6
    limited = pim_device(ATTACC, changes={"timing.activates": 4, "timing.faw": 39})
    assert limited.rcd == 19 + 3 * 39


def test_no_unit_is_faster_than_its_peak_or_its_port():
    plain = pim_device()
    assert plain.step == 6
    slow = pim_device(peak={"bf16": f"{plain.peak_ops() / 4e12} TFLOP/s"})
    assert slow.step == pytest.approx(4 * 6)
    assert slow.peak_ops() == pytest.approx(plain.peak_ops() / 4)
    port = pim_machine().replace({"dev.hbm.bank.bandwidth": "1 TB/s"})
    fed = PimDevice.of(UnitView(port, "dev.core"), "bf16")
    assert fed.peak_bytes_per_s() == pytest.approx(1e12)


# -- through the engine ----------------------------------------------------------------------


def test_the_engine_prices_attention_as_one_kernel_on_all_instances():
    machine = pim_machine(instances=5)
    one = priced(machine, *attention(512, 5 * 16))
    assert len(one.placed) == 1
    device = pim_device(instances=5)
    assert one.duration[0, 0] == attention_clocks(device, 80.0, 512.0, 128.0, 1.0) / 1.3e9
    more = priced(machine, *attention(512, 5 * 16 + 1))
    assert more.duration[0, 0] > 1.9 * one.duration[0, 0]


def test_bound_is_never_above_and_bytes_count_once():
    machine = pim_machine()
    for rows in ((gemm(1, 4096, 4096),), attention(300, 7)):
        bound, real = (priced(machine, *rows, ideal=x) for x in (True, False))
        assert 0 < bound.duration[0, 0] <= real.duration[0, 0]
        kept = sum(r[2].get("kv_read", 0.0) + r[2].get("weight", 0.0) for r in rows)
        assert real.bytes[0, 0, 0] >= kept


def test_a_product_of_4096_is_priced_within_a_millisecond():
    device = pim_device(AIM)
    best = min(
        _timed(lambda: clocks(device, product(device, 1.0, 4096.0, 4096.0)[0])) for _ in range(5)
    )
    assert best < 1e-3


def _timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_design_points_are_priced_together():
    machine = pim_machine()
    steps = np.array([6.0, 8.0, 12.0])
    swept = machine.with_values({"dev.core.pim.timing.mac_limited": steps})
    together = priced(swept, *attention(512, 20)).duration[0]
    alone = [
        priced(pim_machine(changes={"timing.mac_limited": s}), *attention(512, 20)).duration[0, 0]
        for s in steps
    ]
    np.testing.assert_array_equal(together, alone)


NUMBERS = [
    (name, path)
    for name, block in (("attacc", ATTACC), ("aim", AIM))
    for path in sorted(pim_machine(block).values)
    if path.startswith("dev.core.pim.")
    or path in ("dev.core.clock", "dev.core.peak.bf16", "dev.hbm.bank.bandwidth")
]


@pytest.mark.parametrize(("name", "path"), NUMBERS)
def test_every_number_of_a_unit_can_be_swept(name, path):
    machine = pim_machine({"attacc": ATTACC, "aim": AIM}[name])
    value = machine.values[path]
    points = value * np.array([1.0, 2.0, 4.0]) if "depth" not in path else np.array([1.0, 2.0, 4.0])
    rows = (gemm(2, 3000, 2000),), attention(700, 33)
    for work in rows:
        together = priced(machine.with_values({path: points}), *work)
        for i, point in enumerate(points):
            alone = priced(machine.with_values({path: float(point)}), *work)
            assert together.duration[0, i] == pytest.approx(alone.duration[0, 0], rel=1e-12)
            assert together.joules[0, i] == pytest.approx(alone.joules[0, 0], rel=1e-12)


# -- energy ----------------------------------------------------------------------------------


def test_energy_by_path_by_hand():
    machine = pim_machine()
    view, device = UnitView(machine, "dev.core"), pim_device()
    counts = head_counts(device, 3.0, 256.0, 128.0, 1.0)
    joules = path_joules(device, view, counts, "bf16", leave=False)
    read = 3 * 64 * 64 * 32 * 8
    moved, loaded = 3 * (8 + 24 + 8) * 32 * 8, 3 * 8 * 32 * 8
    expected = {
        "activate": 3 * 2 * 64 * 1024 * 8 * 0.11e-12, "cell": read * 0.44e-12,
        "column": moved * 1.01e-12, "group": moved * 1.23e-12, "tsv": moved * 0.5e-12,
        "outside": loaded * 0.3e-12, "macs": 2 * read / 16 * 0.16e-12,
    }  # fmt: skip
    assert joules == pytest.approx(expected, rel=1e-12)
    whole = priced(machine, *attention(256, 3))
    softmax = 5.0 * 256 * 3 * 0.16e-12
    assert whole.joules[0, 0] == pytest.approx(sum(expected.values()) + softmax, rel=1e-12)


def test_units_farther_from_the_cells_spend_more_on_the_way():
    spent = []
    for level in ("bank", "bank_group", "buffer"):
        machine = pim_machine(level=level)
        device = pim_device(level=level)
        counts = head_counts(device, 1.0, 1024.0, 128.0, 1.0)
        joules = path_joules(device, UnitView(machine, "dev.core"), counts, "bf16")
        spent.append(sum(joules[p] for p in ("cell", "column", "group", "tsv")))
    assert spent == sorted(spent)


def test_without_energies_joules_are_unknown_and_never_zero():
    block = {k: v for k, v in ATTACC.items() if k != "energy"}
    assert np.isnan(priced(pim_machine(block), *attention(256, 3)).joules).all()
    assert set(ENERGY) == {"activate", "cell", "column", "group", "tsv", "outside"}


# -- refusals --------------------------------------------------------------------------------


def test_a_dtype_without_arithmetic_is_refused():
    with pytest.raises(UncoveredError, match=r"unit 'dev.core' has no arithmetic for fp8"):
        pim_device(dtype="fp8", peak={"int8": "1 TFLOP/s"})
    with pytest.raises(UncoveredError, match="has no arithmetic for fp32"):
        pim_device(dtype="fp32")


def test_a_matrix_larger_than_the_device_is_refused():
    device = pim_device(AIM)
    assert device.capacity == 2 * 16 * 16384 * 2048
    product(device, 1.0, 1024.0 * 512, 1024.0)
    with pytest.raises(CapacityError, match=r"weight do not fit in dev.hbm"):
        product(device, 1.0, 1024.0 * 512 + 1, 1024.0)
    with pytest.raises(CapacityError):
        product(device, 1.0, np.array([64.0, 1e9]), 1024.0)


@pytest.mark.parametrize("name", ["channels", "bank_groups", "banks", "rows", "columns"])
def test_zero_banks_are_refused(name):
    with pytest.raises(ConfigError, match=rf"organisation.{name}"):
        pim_machine(changes={f"organisation.{name}": 0})


def test_a_block_that_contradicts_itself_is_refused():
    with pytest.raises(ConfigError, match=r"must divide the 64 units"):
        pim_device(changes={"organisation.depth": 3})
    with pytest.raises(ConfigError, match="mac_limited"):
        pim_device(AIM, changes={"power_limited": True})
    with pytest.raises(ConfigError, match=r"timing.refi: must be longer than a refresh.* got 100"):
        pim_device(changes={"timing.refi": 100})
    assert pim_device(changes={"timing.refi": 100, "refresh": "none"}).refi == 100
    with pytest.raises(ConfigError, match="needs the clock"):
        pim_device(clock=None)
    with pytest.raises(ConfigError, match=r"bank, bank_group, buffer"):
        pim_device(level="phy")
    with pytest.raises(ConfigError, match="context: lanes"):
        pim_machine(AIM, changes={"interleave": True})
    with pytest.raises(ConfigError, match="kind pim"):
        pim_machine(kind="matrix")


def test_nothing_and_pieces_are_refused():
    with pytest.raises(WorkloadError, match="tokens >= 1"):
        attention_clocks(pim_device(), 1.0, 0.0, 128.0, 1.0)
    with pytest.raises(WorkloadError, match="n >= 1"):
        product(pim_device(), 1.0, 0.0, 128.0)
    with pytest.raises(UncoveredError, match="fuse score, softmax and context"):
        priced(pim_machine(), attention(64, 4)[0])
    with pytest.raises(UncoveredError, match="reads no matrix that banks hold"):
        priced(pim_machine(), gemm(4, 64, 64, weight=0.0))


# -- what banks hold, softmax, arrays ----------------------------------------------------------


def test_results_of_a_product_leave_the_device():
    view, device = UnitView(pim_machine(AIM), "dev.core"), pim_device(AIM)
    _, counts = product(device, 1.0, 1024.0, 1024.0)
    stay, leave = (path_joules(device, view, counts, "bf16", leave=x) for x in (False, True))
    moved = 32 * 2 * 32 * 8
    assert leave.pop("outside") - stay.pop("outside") == pytest.approx(moved * 0.3e-12)
    assert leave == stay


def test_start_values_of_some_points_alone_are_counted_there_alone():
    for more in ({}, {"by_tile": True}, {"overlap": True}):
        device = replace(pim_device(AIM), results=2.0, bias=np.array([0.0, 2.0]), **more)
        _, counts = product(device, 1.0, 300.0, 1500.0)
        assert counts.moves["bias"][0] == 0
        for i in range(2):
            program, one = product(device.at(i), 1.0, 300.0, 1500.0)
            assert counts.moves["bias"][i] == one.moves.get("bias", 0.0)
            whole = np.broadcast_to(clocks(device, product(device, 1.0, 300.0, 1500.0)[0]), 2)
            assert whole[i] == clocks(device.at(i), program)


@pytest.mark.parametrize("stored", [0.5, 1.0, 4.0])
def test_a_matrix_stored_in_another_width_is_refused(stored):
    machine = pim_machine(AIM)
    shape = {"m": 1.0, "n": 512.0, "k": 512.0, "flops": 2.0 * 512**2, "labels": ("gemm",)}
    with pytest.raises(UncoveredError, match=r"2 bytes an element.*precision"):
        priced(machine, ("a", "gemm", {**shape, "weight": stored * 512**2}))
    biases = 2.0 * 512
    priced(machine, ("a", "gemm", {**shape, "weight": 2.0 * 512**2 + biases}))


def test_a_cache_stored_in_another_width_or_nowhere_is_refused():
    for share, what in ((0.5, "stored in 1"), (0.0, "keys and values")):
        rows = [
            (name, kind, {**more, **({"kv_read": share * more["kv_read"]} if "m" in more else {})})
            for name, kind, more in attention(512.0, 4.0)
        ]
        with pytest.raises(UncoveredError, match=what):
            priced(pim_machine(), *rows)


def test_nothing_is_unpacked_beside_a_bank():
    with pytest.raises(UncoveredError, match="unpacks no mxfp4"):
        pim_device(dtype="mxfp4")


def test_a_softmax_takes_its_vector_rate_unless_heads_interleave():
    quick, slow, fast = (
        priced(pim_machine(**more, vector=f"{rate} TFLOP/s"), *attention(512.0, 32.0)).duration
        for more, rate in (({}, 1), ({}, 1e-6), ({"block": AIM}, 1e3))
    )
    apart = 5.0 * 512 * 32
    assert quick < apart / 1e6 == slow
    slower = priced(pim_machine(AIM, vector="1 GFLOP/s"), *attention(512.0, 32.0)).duration
    assert slower - fast == pytest.approx(apart / 1e9 - apart / 1e15)


def test_a_softmax_of_unknown_speed_is_refused_and_a_command_s_is_bounded():
    with pytest.raises(UncoveredError, match="how long a softmax"):
        priced(pim_machine(AIM, vector=None), *attention(512.0, 4.0))
    machine = pim_machine(AIM, changes={"timing.softmax": 60}, vector=None)
    least, took = (priced(machine, *attention(512.0, 4.0), ideal=x).duration for x in (True, False))
    assert 0 < least < took


@pytest.mark.parametrize("name", ["neupims", "pim-gpt"])
def test_machines_whose_attention_is_in_memory_have_a_bound(name):
    work = ob.Decode("gpt-3-125m", 1, 500)
    least, took = (ob.simulate(name, work, fidelity=x).seconds for x in ("bound", "analytic"))
    assert 0 < least <= took


@pytest.mark.parametrize("block", [ATTACC, AIM])
@pytest.mark.parametrize("level", ["bank", "bank_group", "buffer"])
def test_attention_is_bounded_whatever_the_vector_rate(block, level):
    for rate in ("1 GFLOP/s", "100 GFLOP/s", "10 TFLOP/s"):
        machine = pim_machine(block, level, vector=rate)
        least, took = (
            priced(machine, *attention(700.0, 33.0, width=64.0), ideal=x).duration
            for x in (True, False)
        )
        assert 0 < least <= took
