"""CXL expanders: flits, steps, limits, latency under load, and machines with them."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError
from opbyte.hw_models.memory.cxl import cxl, dram_idle_s, dram_wait_s
from opbyte.hw_models.memory.cxl_devices import cxl_names, load_cxl
from opbyte.hw_models.memory.cxl_flits import LINE, Slots, lane_bytes_per_s, payload_rate
from opbyte.hw_models.memory.rates import Access, share, standard_called

# -- flits ------------------------------------------------------------------------------------


def test_reads_take_four_and_a_half_slots_up_and_one_down():
    slots = Slots.of(68, 1.0)
    assert (slots.down, slots.up) == (1.0, 4.5)
    assert slots.efficiency == 64 / (17 * 4.5)


def test_writes_take_five_slots_down_and_half_a_slot_up():
    slots = Slots.of(68, 0.0)
    assert (slots.down, slots.up) == (5.0, 0.5)
    assert slots.efficiency == 64 / (17 * 5)


def test_the_best_mix_fills_both_directions():
    # 4.5 r + (1 - r) / 2 = r + 5 (1 - r)
    best = 4.5 / 8
    slots = Slots.of(68, best)
    assert slots.up == pytest.approx(slots.down)
    assert slots.efficiency > max(Slots.of(68, 1.0).efficiency, Slots.of(68, 0.0).efficiency) * 1.4


def test_a_flit_of_256_bytes_has_15_slots():
    assert Slots.of(256, 1.0).efficiency == pytest.approx(64 / (4.5 * 256 / 15))
    assert payload_rate(6, 16, 256, 1.0) == pytest.approx(128e9 * 64 * 15 / (4.5 * 256))


def test_a_packed_stream_of_flits_has_the_closed_form_of_reads():
    """Pack lines slot by slot: a header slot for two lines, data, flits of data in between."""
    lines, flits, pending, sent = 0, 0, 0, 0
    while sent < 4 * 8000:
        flits += 1
        room = 4
        if pending < 4:  # no flit of data alone: a header slot names two more lines
            room, pending, lines = 3, pending + 8, lines + 2
        sent += min(room, pending)
        pending -= min(room, pending)
    assert sent / 4 * LINE / (flits * 68) == pytest.approx(Slots.of(68, 1.0).efficiency, rel=1e-3)


@given(st.sampled_from([68, 256]), st.floats(0.0, 1.0))
def test_no_mix_carries_more_than_both_directions_hold(flit, reads):
    slots = Slots.of(flit, reads)
    assert 0.5 < slots.efficiency < 2 * LINE / (4 * slots.each)


def test_lanes_and_generations():
    assert lane_bytes_per_s(5, 8) == pytest.approx(32e9 * 128 / 130)
    assert lane_bytes_per_s(6, 8) == 64e9
    for generation, lanes in ((3, 8), (5, 3)):
        with pytest.raises(ConfigError, match="must be one of"):
            lane_bytes_per_s(generation, lanes)
    with pytest.raises(ConfigError, match="68 B and 256 B"):
        Slots.of(64, 1.0)
    with pytest.raises(ConfigError, match="share"):
        Slots.of(68, 1.5)


# -- devices ----------------------------------------------------------------------------------


def test_idle_latency_is_the_sum_of_the_steps():
    device = cxl("cxl-asic-x8")
    dram = standard_called("ddr5-4800")
    wire = 6 * 17 / lane_bytes_per_s(5, 8)
    ns = 1e-9
    expected = 2 * (50 + 12 + 15) * ns + 10 * ns + wire + dram_idle_s(dram)
    assert device.idle_latency_s == pytest.approx(expected)
    assert sum(device.steps_s.values()) == pytest.approx(expected)


def test_a_closed_row_takes_what_the_command_kernel_takes():
    dram = ob.memory("ddr5-4800")
    found = dram.stream([0], drain=True, refresh="NoRefresh").mean_read_latency_s
    assert dram_idle_s(dram.standard) == pytest.approx(found, abs=3 * dram.standard.tick_s)


def test_switches_add_their_latency_twice_each():
    bare = cxl("cxl-asic-x8")
    pooled = cxl("cxl-asic-x8", steps={"switch": "70 ns", "switches": 2})
    assert pooled.idle_latency_s - bare.idle_latency_s == pytest.approx(4 * 70e-9)
    with pytest.raises(ConfigError, match="latency of one"):
        cxl("cxl-asic-x8", steps={"switches": 1})


def test_the_slowest_of_link_dram_and_controller_decides():
    reads = cxl("cxl-asic-x8")
    assert reads.limit() == "link"
    one = cxl("cxl-asic-x8", dram={"technology": "ddr4-2400", "channels": 1})
    assert one.limit() == "dram"
    standard = standard_called("ddr4-2400")
    assert one.peak_bytes_per_s() == share(standard, Access()) * standard.peak_bytes_per_s
    slow = cxl("cxl-asic-x8", rate="10 GB/s")
    assert (slow.limit(), slow.peak_bytes_per_s()) == ("controller", 10e9)


@pytest.mark.parametrize("name", cxl_names())
def test_every_device_has_a_rising_curve_and_obeys_littles_law(name):
    device = cxl(name)
    curve = device.curve(100)
    for a, b in pairwise(curve):
        assert b.bytes_per_s > a.bytes_per_s
        assert b.latency_s >= a.latency_s
    last = curve[-1]
    assert last.bytes_per_s * last.latency_s == pytest.approx(device.device.tags * LINE, rel=1e-6)
    assert curve[0].latency_s == pytest.approx(device.idle_latency_s, rel=0.02)
    assert last.bytes_per_s <= device.peak_bytes_per_s(100)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 5000.0), st.floats(0.0, 2e-6), st.sampled_from([100, 67, 50]))
def test_outstanding_lines_are_rate_times_latency(lines, path, reads):
    found = cxl("cxl-asic-x8").outstanding(lines, reads, path)
    assert found.bytes_per_s * (found.latency_s + path) == pytest.approx(lines * LINE, rel=1e-5)
    # Never more than without a queue.
    idle = cxl("cxl-asic-x8").idle_latency_s
    assert found.bytes_per_s <= lines * LINE / (idle + path) * (1 + 1e-9)


def test_the_wait_of_the_link_is_that_of_a_queue_with_fixed_service():
    device = cxl("cxl-asic-x8")
    load = 0.8 * device.link_bytes_per_s(100)
    service = 4.5 * 17 / lane_bytes_per_s(5, 8)
    up = 0.8 * service / (2 * 0.2)
    slot = service / 4.5
    busy = load / LINE * slot
    assert device.at(load).link_wait_s == pytest.approx(up + busy * slot / (2 * (1 - busy)))


def test_dram_waits_grow_with_the_load():
    standard, access = standard_called("ddr5-4800"), Access(read_pct=67)
    waits = [dram_wait_s(standard, access, u) for u in (0.0, 0.2, 0.4, 0.6, 0.75)]
    assert waits == sorted(waits)
    assert waits[0] == 0.0


def test_what_a_device_can_not_be_is_refused():
    with pytest.raises(ConfigError, match="no CXL device"):
        cxl("cxl-asic")
    with pytest.raises(ConfigError, match="no field"):
        load_cxl("cxl-asic-x8", ways=2)
    with pytest.raises(ConfigError, match="must be one of"):
        cxl("cxl-asic-x8", link={"lanes": 7})
    with pytest.raises(ConfigError, match="256 B"):
        cxl("cxl-asic-x8", link={"generation": 6})
    with pytest.raises(ConfigError, match="opbyte list memories"):
        cxl("cxl-asic-x8", dram={"technology": "ddr9"})
    device = cxl("cxl-asic-x8")
    with pytest.raises(ConfigError, match="between 0 and the peak"):
        device.at(1e12)
    with pytest.raises(ConfigError, match="0 to 100"):
        device.limits(101)
    with pytest.raises(ConfigError, match="above 0"):
        device.outstanding(0)


# -- in machines ------------------------------------------------------------------------------


def test_a_memory_of_kind_cxl_takes_rate_and_latency_from_its_device():
    machine = ob.load_machine("cxl-server")
    device = cxl("cxl-asic-x8", dram={"access": {"read_pct": 67, "streams": 8}})
    rate = machine.values["aic.dram.cxl.bandwidth"] * machine.values["aic.dram.cxl.efficiency"]
    assert rate == pytest.approx(device.peak_bytes_per_s(67))
    assert machine.values["aic.dram.cxl.latency"] == pytest.approx(device.idle_latency_s)
    wide = machine.replace({"aic.dram.expander.link.lanes": 16})
    assert wide.values["aic.dram.cxl.bandwidth"] > machine.values["aic.dram.cxl.bandwidth"]


def test_what_is_given_stands_and_what_does_not_fit_is_refused():
    machine = ob.load_machine("cxl-server")
    given_rate = machine.replace({"aic.dram.ports.cxl.bandwidth": "10 GB/s"})
    assert given_rate.values["aic.dram.cxl.bandwidth"] == 10e9
    with pytest.raises(ConfigError, match="must be a CXL device"):
        machine.replace({"aic.dram.technology": "ddr5-4800"})
    with pytest.raises(ConfigError, match="is more than"):
        machine.replace({"aic.dram.capacity": "1 TiB"})
    with pytest.raises(ConfigError, match="kind: cxl"):
        machine.replace({"aic.dram.kind": "dram"})


def mapping(**shares):
    shares = {name.replace("_", "."): share for name, share in shares.items()}
    several = {"interleave": "4 KiB"} if len(shares) > 1 else {}
    return {
        "groups": {"host": "cpu"}, "place": {"activation": {"in": shares, **several}},
        "run": [{"ops": "all", "unit": "cpu.cores"}], "launch": "software",
    }  # fmt: skip


def rate(machine, place, size=8e9, fidelity="analytic"):
    return ob.simulate(machine, ob.Stream(bytes=size), place, fidelity=fidelity).metrics[
        "bandwidth"
    ]


@pytest.mark.parametrize("fidelity", ["bound", "analytic", "event"])
def test_interleaved_pages_take_what_the_slowest_share_takes(fidelity):
    machine = ob.load_machine("cxl-server")
    alone = {
        "cpu.dram": rate(machine, mapping(cpu_dram=1.0), 1e11, fidelity),
        "aic.dram": rate(machine, mapping(aic_dram=1.0), 1e11, fidelity),
    }
    for w in (0.5, 0.8, 0.95):
        both = rate(machine, mapping(cpu_dram=w, aic_dram=1 - w), 1e11, fidelity)
        expected = min(alone["cpu.dram"] / w, alone["aic.dram"] / (1 - w))
        assert both == pytest.approx(expected, rel=2e-3)


def test_pages_round_two_devices_have_twice_the_rate_and_half_the_bytes_in_each():
    machine = ob.load_machine("cxl-server")
    two = machine.replace({"aic.count": 2})
    place = mapping(aic_dram=1.0)
    with pytest.raises(ob.UncoveredError, match="interleave"):
        rate(two, place)
    place["place"]["activation"]["interleave"] = "4 KiB"
    assert rate(two, place) == pytest.approx(2 * rate(machine, mapping(aic_dram=1.0)), rel=1e-3)
    rate(two, place, 200 * 2**30)  # 100 GiB in each
    with pytest.raises(CapacityError):
        rate(two, place, 300 * 2**30)
    # One instance is a round of its own.
    assert rate(machine, place) == rate(machine, mapping(aic_dram=1.0))


@settings(max_examples=15, deadline=None)
@given(st.floats(6, 11), st.floats(0.05, 0.95))
def test_bound_is_never_slower_than_analytic_and_event(exponent, w):
    machine, place = ob.load_machine("cxl-server"), mapping(cpu_dram=w, aic_dram=1 - w)
    size = float(int(10**exponent))
    times = [size / rate(machine, place, size, f) for f in ("bound", "analytic", "event")]
    assert times[0] <= times[1] * (1 + 1e-9)
    assert times[2] == pytest.approx(times[1], rel=1e-9)


def test_latency_of_a_stream_is_path_and_port_and_rises_with_the_load():
    machine = ob.load_machine("cxl-server")
    place = mapping(aic_dram=1.0)

    def latency(offered):
        return ob.simulate(machine, ob.Stream(bytes=1e9, offered=offered), place).metrics["latency"]

    values = machine.values
    idle = values["cpu.cores.misses.path"] + values["aic.dram.cxl.latency"]
    assert latency(0) == pytest.approx(idle)
    assert idle < latency(20e9) < latency(36e9) < latency(60e9)
    # Beyond the rate every line that cores keep under way waits: Little's law.
    rate = values["aic.dram.cxl.bandwidth"] * values["aic.dram.cxl.efficiency"]
    path = values["cpu.cores.misses.path"]
    assert latency(60e9) == pytest.approx(path + 32 * 48 * 64 / rate, rel=0.05)


@pytest.mark.parametrize("name", ["kv-dram", "kv-cxl", "kv-both", "weights-cxl"])
def test_a_gpu_reads_its_cache_over_the_links_at_every_fidelity(name):
    machine, work = ob.load_machine("cxl-host"), ob.Decode("llama-3.1-8b", batch=4, context=4096)
    here = ob.simulate(machine, work, "recompute").seconds
    times = [
        ob.simulate(machine, work, name, fidelity=f).seconds for f in ("bound", "analytic", "event")
    ]
    assert times[0] <= times[1] <= times[2] * (1 + 1e-9)
    assert times[1] > here
    if name == "kv-cxl":
        model = ob.load_model("llama-3.1-8b")
        rate = machine.values["aic.dram.cxl.bandwidth"] * machine.values["aic.dram.cxl.efficiency"]
        read = 4 * 4096 * model.kv_bytes_per_token / rate
        assert times[1] == pytest.approx(read + here, rel=0.1)


def test_two_gpus_of_one_device_have_half_of_it_each_and_two_devices_give_it_back():
    machine = ob.load_machine("cxl-host-2x2")
    work = ob.Decode("llama-3.1-8b", batch=8, context=4096)

    def seconds(devices, gpus):
        place = machine.config.mappings["kv-cxl"].model_dump(by_alias=True, exclude_none=True)
        place["parallel"] = {"all": {"group": "gpus", "dp": gpus}}
        changed = machine.replace({"aic.count": devices})
        return [
            ob.simulate(changed, work, place, fidelity=f).seconds for f in ("analytic", "event")
        ]

    alone = seconds(1, 1)
    # Two GPUs have half of the sequences each: as many bytes cross the device as before.
    assert seconds(1, 2) == pytest.approx(alone, rel=0.05)
    assert seconds(2, 2) == pytest.approx([x / 2 for x in alone], rel=0.1)


def test_pages_do_not_go_round_other_gpus_memories():
    two, work = ob.load_machine("cxl-host-2x2"), ob.Decode("llama-3.1-8b", batch=4, context=4096)
    shares = {"gpu.hbm": 0.9, "aic.dram": 0.1}
    place = two.config.mappings["kv-cxl"].model_dump(by_alias=True, exclude_none=True)
    place["place"]["kv"] = {"in": shares, "interleave": "4 KiB"}
    one = ob.load_machine("cxl-host").replace({"aic.count": 2})
    assert ob.simulate(two, work, place).seconds == ob.simulate(one, work, place).seconds


def test_an_engine_with_few_bytes_in_flight_limits_the_link():
    machine, work = ob.load_machine("cxl-host"), ob.Decode("llama-3.1-8b", batch=4, context=4096)
    slow = machine.replace({"dma.in_flight": "8 KiB"})
    values, model = slow.values, ob.load_model("llama-3.1-8b")
    way = values["aic.dram.cxl.latency"] + values["dma.latency"]
    read = 4 * 4096 * model.kv_bytes_per_token
    found = ob.simulate(slow, work, "kv-cxl").seconds
    assert found >= read * way / 8192
    assert found == pytest.approx(read * way / 8192, rel=0.2)


def test_the_sketched_machine_streams_over_dram_and_expanders():
    """CXL memory as a DRAM of given rate and latency behind a link, as the sketch writes it."""
    sketch = Path(__file__).parents[1] / "data" / "sketches" / "6_cxl.yaml"
    cores = {
        "cpu.cores.kind": "cores", "cpu.cores.vector": "3 TFLOP/s",
        "cpu.cores.launch": {"software": "5 us"},
        "cpu.cores.misses": {"outstanding": 16, "path": "70 ns"}, "cpu.cores.instances": 32,
    }  # fmt: skip
    machine = ob.load_machine(sketch).replace(cores)
    place = mapping(cpu_dram=0.5, aic_dram=0.5)
    times = [8e9 / rate(machine, place, 8e9, f) for f in ("bound", "analytic", "event")]
    # Two expanders of 38 GB/s have half of the bytes; a thousandth may stay in the cache.
    assert times[0] == pytest.approx(8e9 * 0.5 / 76e9, rel=0.02)
    assert times[0] <= times[1] == pytest.approx(times[2], rel=1e-9)


def test_no_load_waits_longer_than_for_all_lines_that_cores_keep():
    values = ob.load_machine("cxl-server").values
    rate = values["cpu.dram.imc.bandwidth"] * values["cpu.dram.imc.efficiency"]
    loads = [0.0, 0.5 * rate, 0.9 * rate, 0.9999 * rate, 1.1 * rate, 4 * rate]

    def latency(machine, load):
        return ob.simulate(machine, ob.Stream(bytes=1e9, offered=float(int(load)))).latency

    machine = ob.load_machine("cxl-server")
    found = [latency(machine, load) for load in loads]
    assert found == sorted(found)
    assert found[0] == pytest.approx(114e-9)
    # Little's law: 32 cores with 48 lines of 64 bytes each.
    assert found[-1] == pytest.approx(32 * 48 * 64 / rate, rel=1e-3)
    few = machine.replace({"cpu.cores.misses.outstanding": 4})
    assert latency(few, loads[2]) == found[2]
    with pytest.raises(UncoveredError, match=r"no such load comes from 'cpu\.cores'"):
        latency(few, loads[-1])


@pytest.mark.parametrize(("field", "value"), [("capacity", "0 GB"), ("rate", "0 GB/s")])
def test_a_device_without_room_or_rate_is_refused(field, value):
    with pytest.raises(ConfigError, match=f"`{field}` must be above 0"):
        ob.cxl("cxl-asic-x8", **{field: value})


def test_writes_alone_have_a_rate_and_no_latency_of_reads():
    device = ob.cxl("cxl-asic-x8")
    assert device.peak_bytes_per_s(0) == device.limits(0)["link"]
    for asked in (
        lambda: device.at(1e9, 0),
        lambda: device.outstanding(64, 0),
        lambda: device.curve(0),
    ):
        with pytest.raises(ConfigError, match="read_pct: must be at least 1"):
            asked()
    assert device.curve(1)[-1].bytes_per_s <= device.peak_bytes_per_s(1)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda d: d.outstanding(64, path_s=-1.0), "path_s: must not be below 0, got -1"),
        (lambda d: d.outstanding(64, path_s=float("nan")), "path_s: must not be below 0, got nan"),
        (lambda d: d.outstanding("64"), "lines: must be above 0"),
        (lambda d: d.at("20 GB/s"), "bytes_per_s: must lie between"),
        (lambda d: d.limits("67"), "read_pct: must be a whole number"),
        (lambda d: d.limits(read_pct=True), "read_pct: must be a whole number"),
        (lambda _: ob.cxl(None), "must be a name of the catalog or the path of a file"),
    ],
)
def test_loads_that_make_no_sense_are_refused(ask, words):
    with pytest.raises(ConfigError, match=words):
        ask(ob.cxl("cxl-asic-x8"))


def test_an_engine_with_nothing_under_way_is_refused():
    with pytest.raises(ConfigError, match="`in_flight` must be above 0, got 0"):
        ob.load_machine("cxl-host").replace({"dma.in_flight": "0 KiB"})


def test_stacked_memory_has_a_closed_row_too():
    device = ob.cxl("cxl-asic-x8", dram={"technology": "hbm3-6400"})
    assert 20e-9 < device.steps_s["dram"] < 60e-9


def test_ranks_keep_the_rate_of_mixes():
    """Writes to one rank do not hold up reads of another (tWTR is of a rank)."""
    access = {"streams": 8}
    one, two, four = (cxl("samsung-ddr4", dram={"ranks": n, "access": access}) for n in (1, 2, 4))
    for reads in (100, 67, 50):
        assert one.dram_bytes_per_s(reads) < two.dram_bytes_per_s(reads)
    assert one.dram_bytes_per_s(50) < 0.7 * one.dram_bytes_per_s(100)
    for device in (two, four):
        assert device.dram_bytes_per_s(50) > 0.9 * device.dram_bytes_per_s(100)
        assert device.dram_bytes_per_s(50) < device.device.dram.standard.peak_bytes_per_s
    own = cxl("samsung-ddr4", dram={"access": access})
    assert own.dram_bytes_per_s(50) == one.dram_bytes_per_s(50)
    assert own.idle_latency_s == four.idle_latency_s


@pytest.mark.parametrize(
    ("dram", "words"),
    [({"ranks": 3}, "power of two"), ({"technology": "hbm3-6400", "ranks": 2}, "has no ranks")],
)
def test_ranks_that_do_not_exist_are_refused(dram, words):
    with pytest.raises(ConfigError, match=words):
        cxl("samsung-ddr4", dram=dram)
