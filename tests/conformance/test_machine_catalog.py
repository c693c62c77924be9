"""Every machine of the catalog says where its numbers come from, and its mappings resolve."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from opbyte.core.dtypes import DTYPES
from opbyte.core.mapping import Mapping
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.systolic import peak_rate
from opbyte.hw_models.cost import machine_area_m2, machine_power_w, machine_price_usd
from opbyte.hw_models.machine import CATALOG, Machine, load_machine

SKETCHES = sorted((Path(__file__).parents[1] / "data" / "sketches").glob("*.yaml"))
PROMISED = {
    *("sn40l-socket", "sn40l-node", "sn40l-16", "a100-sxm-40gb", "a100-sxm-80gb"),
    *("h100-sxm-80gb", "h200-sxm-141gb", "b200-sxm-180gb", "h20", "mi210", "rtx-a6000", "t4"),
    *("rtx-4090", "rtx-pro-6000", "dgx-a100", "dgx-h100", "a40"),
}
#: Small chips around a core, and bare cores.
CORES = {
    *("lut-generator", "lut-dgx-host", "lut-tile", "vitallm", "tellme-kv260"),
    *("bitmod", "bitmod-fp16", "bitmod-ant", "bitmod-olive"),
}
#: Cores of processors, without what is around them.
T_MAC = {"m2-ultra-cpu", "agx-orin-cpu", "raspberry-pi-5", "surface-book-3"}
CPUS = {*T_MAC, "oneplus-12", "oneplus-13", "oneplus-ace-2", "i9-13900k", "i9-14900"}
#: Servers of cores and expanders.
CXL_HOSTS = {"cxl-server", "vistara-host"}
#: Hosts whose memory costs more than their GPU.
LARGE_HOSTS = {"h200-host"}
#: Mappings of training steps.
TRAINING = {
    *("train", "train-dram", "train-cxl", "train-beyond", "swap"),
    *("stream", "fuyou", "zero-infinity", "memascend"),
}
#: Chips and cards of any size, not devices of a node.
COMPUTE_IN_MEMORY = {"ianus", "neupims", "pim-gpt", "gddr6-aim", "hbm-pim", "upmem-2556"}
SPATIAL = {
    *("flat-cloud", "flat-edge", "fusemax-cloud", "fusemax-cascade-cloud", "fusemax-edge"),
}
#: Die area by the maker, mm2; B200 is two dies near the reticle limit, SN40L two below 650 mm2.
DIES = {
    "a100-sxm-40gb": 826,
    "a100-sxm-80gb": 826,
    "h100-sxm-80gb": 814,
    "h200-sxm-141gb": 814,
    "h20": 814,
    "mi210": 724,
    "rtx-a6000": 628.4,
    "a40": 628.4,
    "t4": 545,
    "rtx-4090": 608.5,
    "rtx-pro-6000": 750,
    "b200-sxm-180gb": 1600,
}
#: Operations per clock and SM at 16 bits, FP32 accumulation, by the architecture's white paper.
PER_CLOCK = {
    "a100-sxm-80gb": 2048,
    "h100-sxm-80gb": 4096,
    "h200-sxm-141gb": 4096,
    "b200-sxm-180gb": 8192,
    "mi210": 1024,
    "rtx-a6000": 1024,
    "a40": 1024,
    "t4": 1024,
    "rtx-4090": 512,
    "rtx-pro-6000": 1024,
}

catalog = pytest.mark.parametrize("name", CATALOG.names())


def dangling(machine: Machine, mapping: Mapping) -> Iterator[str]:
    """Yield every reference of a mapping that its machine does not have."""
    links = machine.config.links
    units = [r.unit for r in mapping.run if r.unit]
    units += [u for r in mapping.run if r.split for u in r.split.between]
    caches = [p.cache for p in mapping.place.values() if p.cache]
    tiers = [t for p in mapping.place.values() for t in p.in_] + [c.tier for c in caches]
    tiers += [mapping.staging.memory] if mapping.staging else []
    routes = [route for several in mapping.routes.values() for route in several]
    used = [c.via for c in caches if c.via] + [v for route in routes for v in route.via]
    yield from (f"group {g}" for g in mapping.groups.values() if g not in machine.counts)
    yield from (f"tier {t}" for t in tiers if t not in machine.memories)
    yield from (f"link {x}" for x in used if x not in links)
    yield from (f"unit {u}" for u in units if u not in machine.units)
    for unit in units:
        modes = machine.units[unit].config.launch if unit in machine.units else {}
        if modes and mapping.launch not in modes:
            yield f"launch {mapping.launch} of {unit}"
    for split in mapping.parallel.values():
        if split.degrees.devices > machine.counts.get(mapping.groups[split.group], 0):
            yield f"{split.degrees.devices} of {split.group}"


def test_the_catalog_has_what_was_promised() -> None:
    assert set(CATALOG.names()) >= PROMISED | COMPUTE_IN_MEMORY | CORES


@catalog
def test_every_value_has_a_source(name: str) -> None:
    machine = load_machine(name)
    bare = [path for path, p in machine.parameters.items() if not (p.source or "").strip()]
    assert len(machine.parameters) > 18
    assert bare == []


@catalog
def test_what_is_assumed_has_a_reason_and_a_range(name: str) -> None:
    for path, p in load_machine(name).parameters.items():
        source = p.source or ""
        if source.startswith("assumed"):
            assert source.startswith("assumed: "), path
            assert len(source.removeprefix("assumed: ").split()) >= 4, f"{path}: {source}"
            assert p.range is not None, path
            assert p.range[0] < p.range[1], path


def test_fitted_are_the_fill_link_ianus_dram_dies_cpus_and_calls_of_the_a100() -> None:
    fitted = {
        (name, path)
        for name in CATALOG.names()
        for path, p in load_machine(name).parameters.items()
        if (p.source or "").startswith("calibrated")
    }
    fill = {(name, path) for name, path in fitted if path == "fill.bandwidth"}
    assert {name for name, _ in fill} == {
        "sn40l-socket",
        "sn40l-node",
        "sn40l-16",
        "sn40l-dgx-host",
    }
    kernels = fitted - fill
    commands = {("ianus", f"device.{unit}.launch.synchronised") for unit in ("npu", "pim")}
    assert commands <= kernels
    energy = {
        (name, f"device.pim.energy.{dtype}")
        for name in ("bank-pim-x4", "bank-group-pim-x4")
        for dtype in ("fp16", "bf16")
    }
    assert energy <= kernels
    # One share of the cores' instructions for each CPU and library of kernels.
    threads = {(cpu, f"cpu.{unit}.efficiency") for cpu in T_MAC for unit in ("lookup", "unpack")}
    assert threads <= kernels
    # LLM in a flash: the command of its SSD and the rate of its CPU.
    flash = {("m1-max", f"device.cpu.peak.{dtype}") for dtype in ("fp16", "fp32")}
    flash |= {(name, "disk.flash.nvme.command") for name in ("m1-max", "rtx-4090-host")}
    assert flash <= kernels
    # What dense rows draw of two channels of DDR5.
    drawn = {("i9-13900k", "pc.dram.bus.efficiency")}
    assert drawn <= kernels
    kernels -= commands | energy | threads | flash | drawn
    a100 = {
        "a100-sxm-40gb",
        "a100-sxm-80gb",
        "a100-sxm-host",
        "dgx-a100",
        "dgx-a100-64x8",
        "a800-x8",
    }
    assert {name for name, _ in kernels} == a100
    blocks = ("gpu.sm.kernel.", "nvlink.collectives.")
    paths = {path.removeprefix("node.") for _, path in kernels}
    own = {path for path in paths if not path.startswith(blocks)}
    sm = {"gpu.sm.launch.graph", "gpu.hbm.phy.efficiency"}
    assert own == sm | {"nvlink.efficiency", "nvlink.latency"}


@catalog
def test_a_machine_is_called_like_its_file_and_has_a_default_mapping(name: str) -> None:
    machine = load_machine(name)
    assert machine.name == name
    assert machine.mapping() is machine.config.mappings["default"]
    for mapping_name, mapping in machine.config.mappings.items():
        assert mapping.name == mapping_name
        assert mapping.not_modelled(training=mapping_name in TRAINING) == ()


@pytest.mark.parametrize("source", [*CATALOG.names(), *SKETCHES], ids=str)
def test_mappings_name_what_the_machine_has(source: str | Path) -> None:
    machine = load_machine(source)
    assert machine.config.mappings
    for name, mapping in machine.config.mappings.items():
        assert list(dangling(machine, mapping)) == [], name


def test_a_dangling_reference_is_found() -> None:
    machine = load_machine("dgx-a100")
    wrong = Mapping.model_validate(
        {
            "groups": {"g": "gpus"},
            "parallel": {"all": {"group": "g", "tp": 16}},
            "place": {"kv": {"in": {"gpu.hmb": 1.0}, "cache": {"tier": "gpu.hbm", "via": "pci"}}},
            "run": [{"ops": "all", "unit": "gpu.sm"}],
            "launch": "hardware",
        }
    )
    assert list(dangling(machine, wrong)) == [
        *("group gpus", "tier gpu.hmb", "link pci", "launch hardware of gpu.sm", "16 of g")
    ]


@catalog
def test_peaks_are_known_dtypes_with_an_energy(name: str) -> None:
    machine = load_machine(name)
    for unit in machine.units.values():
        assert set(unit.config.peak) <= set(DTYPES)
        # A core of tables follows from its gates; what it has beside them has a rate and an energy.
        vector = {"vector"} if unit.config.lut is None or unit.config.vector else set()
        # Bit-serial arrays have an energy of each cycle, whatever the dtype.
        timed = () if unit.config.serial else unit.config.dtypes
        rates = {*unit.config.peak, *timed}
        assert set(unit.config.energy) == rates | vector
        # Dissipation at the peak stays near the design power: no energy is off by a prefix.
        power = machine.values[f"{unit.part}.power"]
        view = UnitView(machine, unit.path)
        for dtype in rates:
            rate = view.peak(dtype) if unit.config.peak else peak_rate(view, dtype)
            watts = rate * machine.values[f"{unit.path}.energy.{dtype}"]
            assert watts < 1.25 * power, dtype


@catalog
def test_ports_and_links_have_rate_and_energy(name: str) -> None:
    machine = load_machine(name)
    ports = [f"{m}.{p}" for m, x in machine.memories.items() for p in x.config.ports]
    for path in [*ports, *machine.config.links]:
        assert machine.values[f"{path}.bandwidth"] > 0
        # Of a byte that crosses `cores` of t4-host seven cross the memory's pins.
        most = 7 * 50e-12 if path.endswith(".cores") else 50e-12
        assert 0 < machine.values[f"{path}.energy"] < most, path


@pytest.mark.parametrize(("name", "per_clock"), PER_CLOCK.items())
def test_peak_is_clock_times_units(name: str, per_clock: int) -> None:
    machine = load_machine(name)
    dense = machine.values["gpu.sm.peak.fp16"]
    units = machine.unit("gpu.sm").config.instances
    assert units * per_clock * machine.values["gpu.sm.clock"] == pytest.approx(dense, rel=0.012)


@pytest.mark.parametrize(("name", "mm2"), DIES.items())
def test_densities_and_rest_add_up_to_the_published_die(name: str, mm2: float) -> None:
    assert machine_area_m2(load_machine(name)) == pytest.approx(mm2 * 1e-6, rel=1e-3)


@catalog
def test_every_machine_has_area_price_and_power(name: str) -> None:
    machine = load_machine(name)
    known = ("gpu", "rdu", "h100", "h20", "device")
    devices = sum(n for part, n in machine.counts.items() if part.split(".")[-1] in known)
    if name in COMPUTE_IN_MEMORY | CORES | CPUS | SPATIAL | CXL_HOSTS | LARGE_HOSTS:
        assert machine_area_m2(machine) > 0
        assert machine_price_usd(machine) > 0
        assert machine_power_w(machine) > 0
        return
    # A CXL device is a small controller beside memories.
    small = "device" in machine.counts
    least, cheapest, coolest = (100e-6, 50, 30) if small else (500e-6, 100, 60)
    assert least < machine_area_m2(machine) / devices < 2000e-6
    assert cheapest < machine_price_usd(machine) / devices < 20000
    assert coolest < machine_power_w(machine) / devices < 1300


@pytest.mark.parametrize(
    ("node", "device", "part", "count"),
    [
        ("dgx-a100", "a100-sxm-80gb", "gpu", 8),
        ("dgx-h100", "h100-sxm-80gb", "gpu", 8),
        ("sn40l-node", "sn40l-socket", "rdu", 8),
        ("sn40l-16", "sn40l-socket", "rdu", 16),
    ],
)
def test_a_node_is_its_device_many_times(node: str, device: str, part: str, count: int) -> None:
    many, one = load_machine(node), load_machine(device)
    assert many.counts[part] == count
    assert one.counts == {part: 1}
    # A DGX counts the 80 GB that its data sheet leaves to the user, not the 80 GiB of cells.
    own = {"gpu.hbm.capacity"} if node.startswith("dgx") else set()
    for path, p in one.parameters.items():
        assert path in own or many.parameters[path] == p
    for path in own:
        assert 8 * many.parameters[path].value == pytest.approx(640e9)
    for mapping in many.config.mappings.values():
        assert mapping.degrees.tp == count


def test_sn40l_node_matches_the_paper() -> None:
    values = load_machine("sn40l-node").values
    assert 8 * values["rdu.pcu.peak.bf16"] == pytest.approx(5.104e15)
    assert 8 * values["rdu.hbm.capacity"] == 512 * 2**30
    assert 8 * values["rdu.ddr.capacity"] == 12 * 2**40
    assert 8 * values["rdu.sram.capacity"] == 4160 * 2**20
    # Section I: about 1 TB/s from DDR to HBM in a node, below the DIMMs' own 8 x 200 GB/s.
    assert 0.96e12 <= 8 * values["fill.bandwidth"] <= 8 * values["rdu.ddr.phy.bandwidth"]
