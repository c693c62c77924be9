"""From page reads to rates: what machines take from a flash device."""

import json

import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.hw_models.machine import load_machine
from opbyte.hw_models.memory import flash_rates as rates
from opbyte.hw_models.memory.flash_devices import flash_names, load_flash

DRIVE = "sk-hynix-176l-drive"


def machine(page=None, **memory):
    flash = {"kind": "flash", "technology": DRIVE, "capacity": "1 TB", "ports": {"nvme": {}}}
    unit = {
        "kind": "matrix", "at": "flash.nvme", "peak": {"bf16": "500 TFLOP/s"},
        "vector": "50 TFLOP/s", "launch": {"hardware": "0 s"},
    }  # fmt: skip
    kv = {"in": {"dev.flash": 1.0}, **({"page": page} if page else {})}
    default = {
        "groups": {"all": "dev"},
        "parallel": {"all": {"group": "all"}},
        "place": {"weight": {"in": {"dev.flash": 1.0}}, "kv": kv},
        "run": [{"ops": "all", "unit": "dev.core"}],
    }
    part = {"memory": {"flash": {**flash, **memory}}, "units": {"core": unit}}
    return load_machine(
        {
            "kind": "machine",
            "name": "small",
            "parts": {"dev": part},
            "mappings": {"default": default},
        }
    )


def ports(found):
    return found.memories["dev.flash"].config.ports


@pytest.mark.parametrize("name", flash_names())
def test_the_table_holds_what_the_loop_finds(name):
    table = json.loads(rates.TABLE.read_text())
    for device in (load_flash(name), rates.inside_of(load_flash(name))):
        held = table[device.name]
        assert held["digest"] == rates.digest(device)
        assert set(held["rates"]) == {"stream", *(f"page {p}" for p in rates.PAGES)}
        assert rates.computed(device) == pytest.approx(held["rates"]["stream"], rel=1e-9)
        assert rates.computed(device, 1 << 14) == pytest.approx(
            held["rates"][f"page {1 << 14}"], rel=1e-9
        )
        assert max(held["rates"].values()) <= rates.peak(device) * (1 + 1e-9)


def test_the_hash_knows_what_decides():
    device = load_flash(DRIVE)
    assert rates.digest(load_flash(DRIVE, description="another")) == rates.digest(device)
    for changes in ({"channels": 4}, {"read": "25 us"}, {"allocation": "PDWC"}, {"blocks": 64}):
        assert rates.digest(load_flash(DRIVE, **changes)) != rates.digest(device)


def test_changed_devices_are_computed():
    device = load_flash(DRIVE, channels=2)
    assert rates.stream_rate(device) < rates.stream_rate(load_flash(DRIVE))
    assert rates.page_rate(device, 4096) == rates.page_rate(device, 4096)


def test_a_machine_takes_the_rates_of_its_drive():
    device, port = load_flash(DRIVE), ports(machine())["nvme"]
    assert port.bandwidth.value == rates.peak(device)
    got = port.bandwidth.value * port.efficiency.value
    assert got == pytest.approx(rates.stream_rate(device))
    assert port.efficiency.source.startswith("assumed")
    assert port.latency.value == pytest.approx(50e-6)


def test_the_channels_are_another_port():
    both = ports(machine(ports={"nvme": {}, "inside": {}}))
    assert both["inside"].bandwidth.value == 8 * 1.6e9
    assert both["inside"].bandwidth.value > both["nvme"].bandwidth.value


def test_what_is_given_stands():
    given = {"nvme": {"bandwidth": "5 GB/s", "efficiency": 0.5, "latency": "1 us"}}
    port = ports(machine(ports=given))["nvme"]
    assert (port.bandwidth.value, port.efficiency.value, port.latency.value) == (5e9, 0.5, 1e-6)
    named = ports(machine(technology="nand-tlc", ports=given))["nvme"]
    assert named.bandwidth.value == 5e9


DECODE = {"kind": "decode", "model": "llama-3.1-8b", "batch": 8, "context": 8192}


def seconds(built, fidelity="analytic"):
    return ob.simulate(built, DECODE, fidelity=fidelity).seconds


def test_a_decode_step_reads_at_the_rate_of_the_drive():
    model = ob.load_model("llama-3.1-8b")
    kv = 8 * 8192 * model.kv_bytes_per_token
    least = (2 * 7.5e9 + kv) / rates.stream_rate(load_flash(DRIVE))
    assert seconds(machine()) == pytest.approx(least, rel=0.05)
    assert seconds(machine(), "bound") < seconds(machine()) <= seconds(machine(), "event")


def test_kv_in_pages_takes_as_long_as_page_reads():
    device, model = load_flash(DRIVE), ob.load_model("llama-3.1-8b")
    kv = 8 * 8192 * model.kv_bytes_per_token
    longer = seconds(machine(page="4 KiB")) - seconds(machine())
    expected = kv / rates.page_rate(device, 4096) - kv / rates.stream_rate(device)
    assert longer == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channels": 8}, "channels"),
        ({"access": {"read_pct": 50}}, "access"),
        ({"access": {"port": "nvm"}}, "nvm"),
        ({"capacity": "100 TB"}, "capacity"),
        ({"technology": "nand-tlc", "channels": 8}, "channels"),
    ],
)
def test_what_a_drive_can_not_be_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        machine(**changes)


def test_pages_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="page"):
        rates.page_rate(load_flash(DRIVE), 1 << 60)
    with pytest.raises(ConfigError, match="page"):
        rates.page_rate(load_flash(DRIVE), 0)
