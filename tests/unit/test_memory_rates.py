"""From commands to rates: what machines take from the DRAM command kernel."""

import dataclasses

import numpy as np
import pytest
from handmade import device
from hypothesis import given, settings
from hypothesis import strategies as st

import opbyte as ob
from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.parameters import Parameter
from opbyte.hw_models.machine import CATALOG, load_machine
from opbyte.hw_models.memory import rates
from opbyte.hw_models.memory.addresses import encode
from opbyte.hw_models.memory.dram import Dram
from opbyte.hw_models.memory.rates import Access, digest, page_on_channel, refresh_share, share
from opbyte.hw_models.memory.standards import CATALOG as MEMORIES
from opbyte.hw_models.memory.standards import load_standard, memory_names
from opbyte.hw_models.stack import Stack, Stream
from opbyte.hw_models.technology import pins_of, standard_of
from opbyte.sweeps.explain import explained

HBM = {"technology": "hbm3-6400", "channels": 8}
DECODE = {"kind": "decode", "model": "llama-3.1-8b", "batch": 8, "context": 2048}
MACHINE = {
    "name": "small",
    "parts": {
        "dev": {
            "memory": {
                "hbm": {
                    "technology": "hbm3-6400",
                    "channels": 80,
                    "access": {"interleave": "256 B"},
                    "capacity": "80 GiB",
                    "ports": {"phy": {}},
                }
            },
            "units": {
                "core": {
                    "kind": "matrix",
                    "at": "hbm.phy",
                    "peak": {"bf16": "500 TFLOP/s"},
                    "vector": "50 TFLOP/s",
                    "launch": {"hardware": "0 s"},
                }
            },
        }
    },
    "mappings": {
        "default": {
            "groups": {"all": "dev"},
            "parallel": {"all": {"group": "all"}},
            "place": {"weight": {"in": {"dev.hbm": 1.0}}, "kv": {"in": {"dev.hbm": 1.0}}},
            "run": [{"ops": "all", "unit": "dev.core"}],
        }
    },
}


def machine(port=None, paged=None, **memory):
    built = load_machine(MACHINE)
    changes = {f"dev.hbm.{key}": value for key, value in memory.items()}
    if port:
        changes["parts.dev.memory.hbm.ports.phy"] = port
    if paged:
        changes["mappings.default.place.kv"] = {"in": {"dev.hbm": 1.0}, "page": paged}
    return built.replace(changes)


def seconds(built, fidelity="analytic", **work):
    return ob.simulate(built, {**DECODE, **work}, fidelity=fidelity).seconds


# -- the rate of a port --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("access", "chosen"),
    [
        ({}, {}),
        ({"read_pct": 67}, {"read_pct": 67}),
        ({"read_pct": 0}, {"read_pct": 0}),
        ({"refresh": "NoRefresh"}, {"refresh": "NoRefresh"}),
        ({"read_queue": 64}, {"read_queue": 64}),
        ({"scheduler": "FRFCFSRowHit"}, {"scheduler": "FRFCFSRowHit"}),
        ({"mapping": ["bankgroup", "pseudochannel", "column", "bank", "sid", "row"]}, {}),
    ],
)  # fmt: skip
def test_a_port_streams_as_its_technology_does(access, chosen):
    found = machine(access=access).values
    channel = ob.memory("hbm3-6400")
    chosen = {"mapping": access.get("mapping", "MOP4CLXOR"), **chosen}
    stream = channel.stream("seq", requests=rates.REQUESTS, **chosen)
    assert found["dev.hbm.phy.bandwidth"] == 80 * channel.standard.peak_bytes_per_s
    assert found["dev.hbm.phy.efficiency"] == stream.efficiency
    delivered = found["dev.hbm.phy.bandwidth"] * found["dev.hbm.phy.efficiency"]
    assert delivered == pytest.approx(80 * stream.bandwidth_bytes_per_s, rel=1e-12)


def test_streams_that_take_turns_share_the_channel():
    found = machine(access={"streams": 4}).values["dev.hbm.phy.efficiency"]
    assert found < machine().values["dev.hbm.phy.efficiency"]
    standard = load_standard("ddr5-4800")
    assert share(standard, Access(streams=4, mapping="RoBaRaCoCh")) == pytest.approx(
        Dram(standard).rates(4)["stream"] / standard.peak_bytes_per_s
    )


def ranked(ranks=None, access=None, technology="ddr5-4800", **fields):
    memory = {
        "technology": technology, "channels": 16, "capacity": "512 GiB", "ports": {"bus": {}},
        "access": {"streams": 8, **(access or {})}, **fields,
    }  # fmt: skip
    if ranks is not None:
        memory["ranks"] = ranks
    return load_machine(device(memory={"dram": memory})).values


@pytest.mark.parametrize("technology", ["ddr4-2400", "ddr5-4800"])
def test_ranks_of_a_memory_keep_the_rate_of_mixes(technology):
    """Writes to one rank do not hold up reads of another (tWTR is of a rank); the bus is one."""
    ports = {
        (n, reads): ranked(n, {"read_pct": reads}, technology)
        for n in (None, 1, 2, 4)
        for reads in (100, 67, 50)
    }
    part = {key: values["dev.dram.bus.efficiency"] for key, values in ports.items()}
    assert len({values["dev.dram.bus.bandwidth"] for values in ports.values()}) == 1
    for reads in (100, 67, 50):
        assert part[None, reads] == part[1, reads] < part[2, reads]
        standard = load_standard(technology, rank=2)
        assert part[2, reads] == share(standard, Access(streams=8, read_pct=reads))
        most = refresh_share(standard, Access())
        assert all(part[n, reads] < most for n in (1, 2, 4))
    for n in (2, 4):
        assert part[n, 50] / part[n, 100] > part[1, 50] / part[1, 100] + 0.05


def test_ranks_are_named_where_a_rate_comes_from():
    parameter = load_machine("cxl-server").parameters["cpu.dram.imc.efficiency"]
    assert "ddr5-4800, 2 ranks" in parameter.source


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"ranks": 3}, "power of two"),
        ({"ranks": 0}, "at least 1"),
        ({"ranks": 2, "technology": "hbm3-6400"}, "has no ranks"),
        ({"ranks": 2, "technology": "ddr4"}, "command timing is known"),
        ({"ranks": 2, "technology": None}, "`ranks` are those of a DRAM"),
        ({"ranks": 2, "technology": None, "kind": "sram"}, "`ranks` are those of a DRAM"),
        ({"ranks": 2, "technology": "cxl-asic-x8", "kind": "cxl"}, "`ranks` are those of `expand"),
    ],
)  # fmt: skip
def test_ranks_that_a_memory_does_not_have_are_refused(fields, words):
    port = {"bandwidth": "100 GB/s", "efficiency": 0.8}
    memory = {"technology": "ddr5-4800", "capacity": "64 GiB", "ports": {"bus": port}, **fields}
    with pytest.raises(ConfigError, match=words):
        load_machine(device(memory={"dram": memory}))


def test_hosts_of_the_catalog_say_their_ranks():
    for name in CATALOG.names():
        for path, memory in load_machine(name).memories.items():
            standard, config = standard_of(memory.config), memory.config
            if standard is None or standard.family not in ("ddr4", "ddr5"):
                continue
            # The DIMMs of upmem-2556 are processors; what they deliver was measured.
            assert config.ranks is not None or path == "dimms.mram", f"{name}: {path}"


def test_a_given_bandwidth_is_another_command_clock():
    standard = load_standard("hbm3-6400")
    slow = dataclasses.replace(standard, tick_s=2 * standard.tick_s)
    fast, half = (Dram(s).stream("seq", requests=50_000) for s in (standard, slow))
    assert half.ticks == fast.ticks
    assert half.bandwidth_bytes_per_s == pytest.approx(fast.bandwidth_bytes_per_s / 2)
    given_rate = machine({"bandwidth": "2.048 TB/s"}).values
    assert given_rate["dev.hbm.phy.bandwidth"] == 2.048e12 == 40 * standard.peak_bytes_per_s
    assert given_rate["dev.hbm.phy.efficiency"] == machine().values["dev.hbm.phy.efficiency"]
    assert seconds(machine({"bandwidth": "2.048 TB/s"})) == pytest.approx(
        2 * seconds(machine()), rel=0.01
    )


def test_refresh_takes_its_share():
    standard = load_standard("hbm3-6400")
    on, off = share(standard), share(standard, Access(refresh="NoRefresh"))
    assert refresh_share(standard, Access()) == pytest.approx(1 - 350 / 3900, rel=1e-3)
    assert on <= off * (refresh_share(standard, Access()) + 0.01)
    assert refresh_share(standard, Access(refresh="PerBank")) == 1.0
    parameter = machine().parameters["dev.hbm.phy.efficiency"]
    assert parameter.range == (on, refresh_share(standard, Access()))
    assert parameter.source.startswith("assumed: the controller (MOP4CLXOR")


def test_an_efficiency_that_is_given_stands():
    found = machine({"efficiency": 0.7, "bandwidth": "3 TB/s"}).values
    assert found["dev.hbm.phy.efficiency"] == 0.7
    assert load_machine("h100-sxm-80gb").values["gpu.hbm.phy.efficiency"] == 0.824


def test_a_file_of_ones_own_is_a_technology(tmp_path):
    own = tmp_path / "mine.yaml"
    text = MEMORIES.path("hbm3-6400").read_text()
    found = []
    for refi in (6240, 3120):
        own.write_text(text.replace("nREFI: 6240", f"nREFI: {refi}"))
        found.append(machine(technology=str(own)).values["dev.hbm.phy.efficiency"])
    assert found[0] == machine().values["dev.hbm.phy.efficiency"]
    # Twice as many refreshes.
    assert found[1] == pytest.approx(found[0] * (1 - 560 / 3120) / (1 - 560 / 6240), rel=0.03)


def test_a_stacks_clock_is_that_of_the_pins_too():
    stack = {"clock": "1.2 GHz"}
    ports = {"phy": {}, "tsv": {"stream": {"banks": 8, "step": "nCCDL", "rows": "exposed"}}}
    built = device(memory={"hbm": {**HBM, "capacity": "8 GiB", "stack": stack, "ports": ports}})
    pins = 8 * load_standard("hbm3-6400").peak_bytes_per_s * 1.2 / 1.6
    assert built.values["dev.hbm.phy.bandwidth"] == pytest.approx(pins)
    assert built.values["dev.hbm.tsv.bandwidth"] == pytest.approx(pins * 8 * 2 / 4)


def test_a_name_without_timing_decides_nothing():
    memory = {"hbm": {"technology": "gddr9-64000", "capacity": "64 GiB"}}
    ports = {"phy": {"bandwidth": "2 TB/s"}}
    small = device(memory={"hbm": {**memory["hbm"], "ports": ports}})
    assert "dev.hbm.phy.efficiency" not in small.values
    nothing = device(memory={"hbm": {**memory["hbm"], "ports": {"phy": {}}}})
    with pytest.raises(UncoveredError, match=r"dev.hbm.phy' has no bandwidth.*`channels`"):
        ob.simulate(nothing, {"kind": "gemm", "m": 1, "n": 4096, "k": 4096, "dtype": "bf16"})


STREAM = {"banks": 1, "step": 2, "rows": "hidden"}


@pytest.mark.parametrize(
    ("memory", "rule"),
    [
        ({**HBM, "technology": "hbm3-6401"}, "whose command timing is known, got hbm3-6401"),
        ({**HBM, "channels": 0}, "must be at least 1"),
        ({**HBM, "access": {"port": "pins"}}, "`access.port` must be a port"),
        ({**HBM, "access": {"refresh": "Never"}}, "AllBank"),
        ({**HBM, "access": {"read_pct": 120}}, "at most 100"),
        ({**HBM, "ports": {"a": {}, "b": {}}}, "name `access.port`"),
        ({"ports": {"a": {"stream": STREAM}}}, "needs a `stack`"),
        (
            {"stack": {"clock": "1 GHz"}, "ports": {"a": {"stream": STREAM}}},
            "a `stack` needs channels, access, columns",
        ),
    ],
)
def test_what_has_no_timing_is_refused(memory, rule):
    ports = {"phy": {"bandwidth": "1 TB/s"}}
    with pytest.raises(ConfigError, match=rule):
        device(memory={"hbm": {"capacity": "64 GiB", "ports": ports, **memory}})


# -- no number is typed in -----------------------------------------------------------------


def _entries(pages, standard):
    wanted = [(Access(read_pct=p), None) for p in (100, 67, 0)]
    several = rates.SEVERAL_READS if pages == rates.PAGES else (67,)
    wanted += [(Access(read_pct=p, streams=rates.SEVERAL), None) for p in several]
    return [*wanted, *((Access(), p) for p in pages if p >= standard.burst_bytes)]


def test_the_table_has_all_memories_and_several_ranks():
    assert set(rates._table()) == {digest(s) for s in rates.tabled()}
    titles = [s.title for s in rates.tabled()]
    assert set(memory_names()) < set(titles)
    assert len(titles) == len(set(titles))
    assert "ddr5-4800, 2 ranks" in titles


@pytest.mark.parametrize("standard", rates.tabled(), ids=lambda s: s.title)
def test_the_table_is_what_the_kernel_finds(standard):
    for access, page in _entries(rates.PAGES[2:8:4], standard):
        held = rates._table()[digest(standard)][rates.written(access, page)]
        assert held == rates.computed(standard, access, page) == share(standard, access, page)


@pytest.mark.proof
@pytest.mark.parametrize("standard", rates.tabled(), ids=lambda s: s.title)
def test_the_whole_table_is_what_the_kernel_finds(standard):
    wanted = _entries(rates.PAGES, standard)
    shares = rates._table()[digest(standard)]
    assert shares == {rates.written(a, p): rates.computed(standard, a, p) for a, p in wanted}


def test_another_organisation_is_computed_and_not_looked_up():
    one, two = load_standard("ddr4-3200"), load_standard("ddr4-3200", row=32768)
    assert digest(one) != digest(two)
    assert digest(two) not in rates._table()
    two = load_standard("ddr4-3200", rank=8)
    assert share(two) == rates.computed(two, Access()) != share(one)


def test_a_rate_is_computed_once(monkeypatch):
    standard = load_standard("ddr5-4800")
    access = Access(read_queue=48)
    first = share(standard, access)
    monkeypatch.setattr(rates, "computed", None)
    assert share(standard, access) == first
    assert share(standard, Access(read_queue=48, interleave=Parameter(256.0, "bytes"))) == first
    assert share(load_standard("hbm4-8000")) > 0.5


def test_ports_of_the_catalog_have_a_source_or_the_kernels_rate():
    derived = 0
    for name in CATALOG.names():
        built = load_machine(name)
        for path, memory in built.memories.items():
            standard, pins = standard_of(memory.config), pins_of(memory.config)
            if standard is None or pins is None:
                continue
            parameter = built.parameters[f"{path}.{pins}.efficiency"]
            assert parameter.source
            if "DRAM command kernel" in parameter.source:
                assert parameter.value == share(standard, memory.config.access or Access())
                derived += 1
    assert derived >= 5


def test_explain_shows_the_kernel_beside_what_was_measured():
    found = explained("a100-sxm-80gb").data["memories"]
    assert [row["port"] for row in found] == ["gpu.hbm.phy"]
    assert found[0]["taken"] == 0.824
    # Fitted on products of an A100, with all that lies between SM and DRAM.
    assert found[0]["kernel"] == share(load_standard("hbm2e-3200"))
    assert 0.8 < found[0]["kernel"] < found[0]["taken"] < found[0]["refresh"]


# -- laws ----------------------------------------------------------------------------------


@given(
    technology=st.sampled_from(memory_names()),
    channels=st.integers(1, 100),
    faster=st.floats(1.0, 10.0),
    page=st.sampled_from([None, "64 B", "1 MiB"]),
)
@settings(max_examples=8, deadline=None)
def test_bounds_and_clocks(technology, channels, faster, page):
    built = machine(paged=page, technology=technology, channels=channels)
    peak = channels * load_standard(technology).peak_bytes_per_s
    assert built.values["dev.hbm.phy.bandwidth"] == pytest.approx(peak)
    assert 0 < built.values["dev.hbm.phy.efficiency"] <= 1
    bound, analytic, event = (seconds(built, f) for f in ("bound", "analytic", "event"))
    assert bound <= analytic <= event * (1 + 1e-9)
    quicker = built.replace({"dev.hbm.phy.bandwidth": f"{peak * faster} B/s"})
    assert seconds(quicker) <= analytic * (1 + 1e-9)
    swept = built.with_values({"dev.hbm.phy.bandwidth": np.array([peak, peak * faster])})
    alone = [seconds(built), seconds(quicker)]
    from opbyte.sim.simulate import evaluate
    from opbyte.workloads.works import work_from

    both = evaluate(swept, work_from(DECODE), swept.mapping()).metrics["seconds"]
    assert both == pytest.approx(alone)


# -- pages ---------------------------------------------------------------------------------


def test_a_page_goes_round_the_channels():
    assert page_on_channel(100, 256, 8) == 100
    assert page_on_channel(2048, 256, 8) == 256
    assert page_on_channel(2049, 256, 8) == 512
    assert page_on_channel(16 * 2048, 256, 8) == 16 * 256


@pytest.mark.parametrize("page", ["4 KiB", "32 KiB", "1 MiB"])
def test_pages_take_longer_by_the_ratio_of_both_shares(page):
    standard = load_standard("hbm3-6400")
    size = Parameter.of(page, "bytes").value
    longer = share(standard) / share(standard, Access(), page_on_channel(size, 256, 80))
    assert longer > 1.2
    assert seconds(machine(paged=page), "bound") == seconds(machine(), "bound")
    work = {**DECODE, "batch": 64, "context": 32768, "model": "llama-3.2-1b"}
    kv = 64 * 32768 * ob.load_model("llama-3.2-1b").kv_bytes_per_token
    roomy = {"capacity": "900 GiB"}
    more = seconds(machine(paged=page, **roomy), **work) - seconds(machine(**roomy), **work)
    values = machine().values
    rate = values["dev.hbm.phy.bandwidth"] * values["dev.hbm.phy.efficiency"]
    assert more == pytest.approx((longer - 1) * kv / rate, rel=0.02)


def test_long_pages_are_streams():
    standard = load_standard("ddr4-3200")
    assert share(standard, Access(), 1 << 16) == pytest.approx(share(standard), rel=1e-3)
    shares = [share(standard, Access(), page) for page in rates.PAGES]
    assert shares == sorted(shares)
    with pytest.raises(ConfigError, match="must lie within a channel"):
        share(standard, Access(), 1 << 40)


def test_pages_need_to_know_the_channels():
    with pytest.raises(UncoveredError, match=r"kv_.* in pages of 4096 B.*`access.interleave`"):
        seconds(machine(paged="4 KiB", access={}))


def test_kernels_that_were_fitted_have_their_own_pages():
    place = {"kv": {"in": {"gpu.hbm": 1.0}, "page": "32 KiB"}}
    gpu = load_machine("a100-sxm-80gb")
    mapping = gpu.mapping().model_dump(by_alias=True, exclude_none=True)
    mapping["place"] = {**mapping["place"], **place}
    with pytest.raises(UncoveredError, match="stream as they were fitted"):
        ob.simulate(gpu, DECODE, mapping)


# -- inside the stack ----------------------------------------------------------------------


def _clocks(name="hbm3-5200", channels=80):
    standard = load_standard(name)
    return standard, Stack().completed(standard, channels)


def test_a_stacks_clocks_are_its_technologys():
    standard, clocks = _clocks()
    # As the AttAcc simulator's preset has them: 8 + 19 + 19, 350 ns of 3.9 us.
    assert (clocks.row_switch, clocks.refresh, clocks.interval) == (46, 456, 5070)
    assert (clocks.channels, clocks.access, clocks.columns) == (160, 32, 32)
    assert clocks.clock == pytest.approx(1.3e9)
    pins = Stream(banks=1, step="nCCDS", rows="hidden").rate(clocks).value
    assert pins == pytest.approx(80 * standard.peak_bytes_per_s)


def test_the_attacc_units_have_the_timing_of_the_same_preset():
    timing = load_machine("dgx-attacc-bank").config.parts["attacc"].units["gemv"].pim.timing
    clocks = load_standard("hbm3-5200").clocks
    names = {
        "rcd": "nRCDRD",
        "rp": "nRP",
        "ras": "nRAS",
        "rc": "nRC",
        "refi": "nREFI",
        "rfc": "nRFC",
    }
    for ours, jedec in names.items():
        assert getattr(timing, ours).value == clocks[jedec], ours


def _bank_stream(standard, count, **choices):
    """One bank: all columns of a row, then the next row."""
    index = np.arange(count)
    fields = {"column": index % standard.columns, "row": index // standard.columns}
    return Dram(standard).stream(encode(standard, fields), **choices)


@pytest.mark.parametrize("name", ["hbm2-2000", "hbm2e-3200", "hbm3-5200", "hbm3-6400", "hbm4-8000"])
def test_exposed_row_switches_are_those_of_the_kernel(name):
    standard, clocks = _clocks(name)
    stream = Stream(banks=1, step="nCCDL", rows="exposed")
    of_a_bank = standard.burst_bytes * clocks.clock / clocks.ticks["nCCDL"]
    found = _bank_stream(standard, 2000 * standard.columns, refresh="NoRefresh")
    steady = stream.efficiency(clocks).value / (1 - clocks.refresh / clocks.interval)
    assert found.bandwidth_bytes_per_s / of_a_bank == pytest.approx(steady, rel=0.01)
    refreshed = _bank_stream(standard, 2000 * standard.columns)
    assert refreshed.bandwidth_bytes_per_s / of_a_bank == pytest.approx(
        stream.efficiency(clocks).value, rel=0.015
    )


def test_hidden_row_switches_are_what_deep_queues_reach():
    standard, clocks = _clocks("hbm3-6400")
    hidden = Stream(banks=1, step="nCCDS", rows="hidden").efficiency(clocks).value
    assert hidden == pytest.approx(refresh_share(standard, Access()))
    assert share(standard) < hidden
    assert share(standard, Access(read_queue=128)) == pytest.approx(hidden, rel=0.03)


def test_activations_one_by_one_are_those_of_the_kernel():
    standard, clocks = _clocks("hbm3-5200")
    together, limited = (
        Stream(banks=8, step="nCCDL", rows="exposed", activate=how)
        for how in ("together", "limited")
    )
    # Banks 5 to 8 wait for tFAW, and tRRD_S three times.
    assert limited._activations(clocks) == 39 + 3 * 2
    assert together._activations(clocks) == 0
    row = 31 * 4 + 46
    ratio = limited.efficiency(clocks).value / together.efficiency(clocks).value
    assert ratio == pytest.approx(row / (row + 45))
    # A new row for each access, bank after bank: four each tFAW.
    index = np.arange(4096)
    fields = {"bankgroup": index % 4, "bank": index // 4 % 4, "row": index // 16}
    found = Dram(standard).stream(
        encode(standard, fields), refresh="NoRefresh", row_policy="Closed"
    )
    each = found.seconds * clocks.clock / len(index)
    assert each == pytest.approx(39 / 4, rel=0.02)


def test_duplex_has_no_typed_step():
    for name, port in (("duplex-x4", "tsv"), ("bank-pim-x4", "bank"), ("duplex-x4", "interposer")):
        hbm = load_machine(name).config.parts["device"].memory["hbm"]
        assert isinstance(hbm.ports[port].stream.step, str)
        assert hbm.stack.row_switch is None
        assert hbm.stack.refresh is None
