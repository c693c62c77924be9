"""The host's path to storage: closed forms of its bounds, laws, and what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import ConfigError, UncoveredError
from opbyte.core.mapping import load_mapping
from opbyte.core.routes import Software
from opbyte.hw_models.host_path import path_rate

COMMAND, MEMCPY, FAULT, PAGE = 4e-6, 5e9, 1e-6, 4096.0
RATE, WRITE, LATENCY, DEVICE = 2e9, 1e9, 100e-6, 3e-6
VALUES = {
    "host.io.command": COMMAND, "host.io.memcpy": MEMCPY, "host.io.fault": FAULT,
    "host.io.page": PAGE, "ssd.flash.nvme.bandwidth": RATE, "ssd.flash.nvme.write": WRITE,
    "ssd.flash.nvme.latency": LATENCY, "ssd.flash.nvme.command": DEVICE,
    "host.dram.bus.bandwidth": 100e9,
}  # fmt: skip


def rate(*, write: bool = False, neuron: float | None = None, **software: object) -> float:
    one = Software.model_validate(software)
    found = path_rate(VALUES, "host.io", "ssd.flash.nvme", one, write=write, neuron=neuron)
    return float(found[0])


def test_one_thread_waits_for_its_own_time_the_latency_and_the_device() -> None:
    size = 128 * 1024
    device = DEVICE + size / RATE
    assert rate(access="direct", request="128 KiB") == pytest.approx(
        size / (COMMAND + LATENCY + device), rel=1e-12
    )
    copied = COMMAND + size / MEMCPY
    assert rate(access="buffered", request="128 KiB") == pytest.approx(
        size / (copied + LATENCY + device), rel=1e-12
    )
    faulted = COMMAND + 32 * FAULT + size / MEMCPY
    assert rate(access="mapped", request="128 KiB", staged=True) == pytest.approx(
        size / (faulted + LATENCY + device), rel=1e-12
    )


def test_the_device_a_processor_or_a_cap_bounds_many_commands_in_flight() -> None:
    deep = {"access": "direct", "request": "4 KiB", "depth": 256}
    assert rate(**deep, threads=8) == pytest.approx(4096 / (DEVICE + 4096 / RATE), rel=1e-12)
    slow = {**deep, "per_command": "20 us"}
    assert rate(**slow) == pytest.approx(4096 / (COMMAND + 20e-6), rel=1e-12)
    assert rate(**deep, cap="10 MB/s") == 10e6
    assert rate(cap="1.33 GB/s") == 1.33e9
    assert rate(cap="none") == float("inf")


def test_a_thread_that_waits_for_the_next_link_is_busy_for_it_too() -> None:
    size, beyond = 128 * 1024, 1 / 25e9
    software = {"access": "mapped", "request": "128 KiB", "staged": True, "waits": True}
    one = Software.model_validate(software)
    found = path_rate(VALUES, "host.io", "ssd.flash.nvme", one, beyond=beyond)
    busy = COMMAND + 32 * FAULT + size / MEMCPY + size * beyond
    expected = size / (busy + LATENCY + DEVICE + size / RATE)
    assert float(found[0]) == pytest.approx(expected, rel=1e-12)
    assert rate(**software) == rate(**{**software, "waits": False})


def test_memory_that_is_not_pinned_is_staged_by_a_thread() -> None:
    def staged(**more: object) -> float:
        one = Software.model_validate({"staged": True, **more})
        return float(path_rate(VALUES, "host.io", "host.dram.bus", one)[0])

    assert staged() == MEMCPY
    assert staged(threads=3) == 3 * MEMCPY
    assert staged(threads=64) == pytest.approx(100e9 / 3)
    assert staged(cap="1 GB/s") == 1e9
    one = Software.model_validate({"staged": True, "waits": True})
    found = path_rate(VALUES, "host.io", "host.dram.bus", one, beyond=1 / 20e9)
    assert float(found[0]) == pytest.approx(1 / (1 / MEMCPY + 1 / 20e9), rel=1e-12)
    with pytest.raises(UncoveredError, match="`staged` needs a host with memory"):
        path_rate(VALUES, "", "host.dram.bus", one)


def test_large_requests_approach_the_devices_rates() -> None:
    large = {"access": "direct", "request": "1 GiB", "threads": 4}
    assert rate(**large) == pytest.approx(RATE, rel=1e-4)
    assert rate(**large, write=True) == pytest.approx(WRITE, rel=1e-4)


def test_a_request_may_be_a_neuron() -> None:
    one = {"access": "direct", "threads": 32}
    assert rate(**one, request="neuron", neuron=8192.0) == rate(**one, request="8 KiB")
    with pytest.raises(UncoveredError, match=r"needs `neurons` and their `ffn.weight`"):
        rate(**one, request="neuron")


SIZES = st.integers(9, 25).map(lambda n: 2**n)
STEPS = st.sampled_from(["direct", "buffered", "mapped"])


@given(SIZES, STEPS, st.integers(1, 64), st.integers(1, 64), st.booleans())
def test_more_in_flight_or_larger_requests_are_never_slower(
    size: int, access: str, threads: int, depth: int, staged: bool
) -> None:
    base = {
        "access": access, "request": f"{size} B", "threads": threads, "depth": depth,
        "staged": staged,
    }  # fmt: skip
    here = rate(**base)
    assert 0 < here <= RATE
    assert rate(**{**base, "threads": threads + 1}) >= here
    assert rate(**{**base, "depth": depth + 1}) >= here
    assert rate(**{**base, "request": f"{2 * size} B"}) >= here * (1 - 1e-12)
    assert rate(**{**base, "staged": True}) <= here
    assert rate(**{**base, "access": "direct"}) >= here


@pytest.mark.parametrize(
    ("software", "text"),
    [
        ({"access": "direct"}, "`access` and `request` belong together"),
        ({"request": "4 KiB"}, "`access` and `request` belong together"),
        ({"cap": "1 GB/s", "threads": 4}, "describe an `access`"),
        ({"staged": True, "depth": 4}, "depth describes an `access`"),
        ({"access": "direct", "request": "4 KiB", "waits": True}, "waits for what it `staged`"),
        ({"access": "direct", "request": "0 B"}, "at least one byte"),
        ({"access": "raw", "request": "4 KiB"}, "access"),
    ],
)
def test_half_a_path_is_refused(software: dict[str, object], text: str) -> None:
    route = {"weight": {"via": ["nvme"], "software": software}}
    with pytest.raises(ConfigError, match=text):
        load_mapping({"run": [{"ops": "all", "unit": "gpu.sm"}], "routes": route})


def test_steps_need_a_host() -> None:
    one = Software.model_validate({"access": "direct", "request": "4 KiB"})
    with pytest.raises(UncoveredError, match="a host with an `io` block"):
        path_rate(VALUES, "", "ssd.flash.nvme", one)
