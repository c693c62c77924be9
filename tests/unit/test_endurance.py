"""What a served trace writes to flash, how long that lasts, and what flash has no room for."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import CapacityError, ConfigError, UncoveredError, WorkloadError
from opbyte.core.mapping_file import Placement, Spill
from opbyte.hw_models.machine import Machine, load_machine
from opbyte.sim.serving.server import Server
from opbyte.sweeps.cli import main
from opbyte.workloads.model_loader import load_model
from opbyte.workloads.traces import RequestTrace

CONFIG = {
    "model_type": "llama", "torch_dtype": "float16", "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 3, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 8192,
}  # fmt: skip
MODEL = load_model({"kind": "model", "name": "small", "config": CONFIG})
DAY, YEAR = 86_400.0, 365.25 * 86_400.0
SMALL = {"max_batched_tokens": 64, "max_sequences": 8, "prefix_cache": False}


def drives(capacity: str = "400 GB", technology: str = "instattention-csd") -> Machine:
    """Return Lamina with caches on flash at its attention devices."""
    return load_machine("lamina-70b").replace(
        {"h20.hbm.kind": "flash", "h20.hbm.technology": technology, "h20.hbm.capacity": capacity}
    )


def trace(count: int = 12) -> RequestTrace:
    i = np.arange(count)
    return RequestTrace(0.002 * i, 20 + 5 * i, 4 + 3 * i)


def played(machine: Machine, *, faults: Any = None, **scheduler: Any) -> ob.Result:
    work = ob.Serve(MODEL, trace(), scheduler=SMALL | scheduler, faults=faults)
    return ob.simulate(machine, work, mapping="lamina")


@cache
def plain() -> ob.Result:
    return played(drives())


def test_every_computed_token_is_written_once() -> None:
    result, asked = plain(), trace()
    lasts = result.endurance()
    assert lasts.prompts_tokens == asked.input_tokens.sum()
    assert lasts.answers_tokens == (asked.output_tokens - 1).sum()
    assert lasts.again_tokens == 0.0
    tokens = float((asked.input_tokens + asked.output_tokens - 1).sum())
    # Two of eight heads on each of four devices.
    assert lasts.written_bytes == pytest.approx(tokens * MODEL.kv_bytes_per_token / 4, rel=1e-9)
    assert lasts.bytes_per_day == pytest.approx(lasts.written_bytes / result.seconds * DAY)


def test_years_and_drive_writes_are_those_of_the_device() -> None:
    lasts, drive = plain().endurance(), ob.flash("instattention-csd").device
    rated = drive.physical_pages * drive.page_bytes * 3000 / lasts.write_amplification
    assert lasts.rated_bytes == pytest.approx(rated)
    assert lasts.years == pytest.approx(rated / lasts.bytes_per_day * DAY / YEAR)
    assert lasts.drive_writes_per_day == pytest.approx(lasts.bytes_per_day / drive.capacity_bytes)
    assert lasts.share_of_five_years == pytest.approx(5.0 / lasts.years)
    other = plain().endurance(device="sk-hynix-176l-drive")
    assert other.device == "sk-hynix-176l-drive"
    assert other.bytes_per_day == lasts.bytes_per_day


def test_short_appends_take_whole_pages() -> None:
    pages = plain().endurance()
    assert plain().endurance(append="4 KiB").years == pytest.approx(pages.years)
    assert plain().endurance(append="512 B").years == pytest.approx(pages.years / 8)
    assert plain().endurance(append="6 KiB").write_amplification == pytest.approx(8 / 6)


def test_what_is_computed_again_is_written_again() -> None:
    lost = {"devices": [{"device": 1, "at": "20 ms"}]}
    again = played(drives(), faults=lost)
    lasts, before = again.endurance(), plain().endurance()
    assert lasts.again_tokens > 0.0
    assert lasts.prompts_tokens == before.prompts_tokens
    grown = lasts.written_bytes / before.written_bytes
    whole = before.prompts_tokens + before.answers_tokens
    assert grown == pytest.approx(1.0 + lasts.again_tokens / whole)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(UncoveredError, match="no source gives its cycles"):
        plain().endurance(device="nvmevirt-970pro")
    with pytest.raises(UncoveredError, match="nothing is written to flash"):
        played(load_machine("lamina-70b")).endurance()
    with pytest.raises(UncoveredError, match="nothing is written to flash"):
        ob.simulate("h20", ob.Gemm(m=1, n=1, k=1, dtype="bf16")).endurance()
    with pytest.raises(ConfigError, match=r"names no flash that is written.*Known: h20\.hbm"):
        plain().endurance("h100.hbm")
    with pytest.raises(ConfigError, match="append: must be bytes above 0"):
        plain().endurance(append=0.0)
    with pytest.raises(ConfigError, match="no flash device is called"):
        plain().endurance(device="sk-hynix")


# -- below the cache -----------------------------------------------------------------------

FLASH = {
    "kind": "flash", "technology": "sk-hynix-176l-drive", "capacity": "1 TB",
    "ports": {"nvme": {"energy": "40 pJ/bit"}},
}  # fmt: skip
LINK = {"ends": ["drive", "gpu"], "bandwidth": "16 GB/s", "latency": "1 us", "energy": "5 pJ/bit"}
SERVER = {
    "kind": "machine",
    "extends": "a100-sxm-80gb",
    "name": "with-drive",
    "parts": {"drive": {"count": 1, "memory": {"flash": FLASH}}},
    "links": {"nvme": LINK},
}


@pytest.mark.parametrize("kind", ["spill", "swap"])
def test_what_leaves_the_cache_is_written_below(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "server.yaml"
    path.write_text(json.dumps(SERVER))
    machine = load_machine(path)
    mapping: Any = machine.mapping("default")
    scheduler: dict[str, Any] = {"max_batched_tokens": 64, "max_sequences": 8, "kv_blocks": 14}
    if kind == "spill":
        (home,) = mapping.place["kv"].in_
        below = Placement(**{"in": {home: 1.0}}, spill=(Spill(tier="drive.flash"),))
        mapping = mapping.model_copy(update={"place": {**mapping.place, "kv": below}})
    else:
        scheduler |= {"preempt": "swap"}
    result = ob.simulate(machine, ob.Serve(MODEL, trace(), scheduler=scheduler), mapping=mapping)
    lasts = result.endurance()
    assert lasts.memory == "drive.flash"
    block = 16 * MODEL.kv_bytes_per_token
    (moved,) = result.outcome.detail["moved_bytes"].values()
    assert 0.0 < lasts.written_bytes <= moved
    assert lasts.written_bytes % block == 0.0
    if kind == "swap":
        assert lasts.written_bytes == moved / 2


# -- capacity ------------------------------------------------------------------------------


def test_a_cache_larger_than_flash_does_not_fit() -> None:
    machine = drives("20 GB")
    fits = int(4 * 20e9 // (MODEL.kv_bytes_per_token * 4096))
    ob.simulate(machine, ob.Decode(MODEL, batch=fits, context=4096), mapping="lamina")
    with pytest.raises(CapacityError, match=r"h20\.hbm") as raised:
        ob.simulate(machine, ob.Decode(MODEL, batch=fits + 1, context=4096), mapping="lamina")
    assert raised.value.available_bytes == pytest.approx(20e9)
    work = ob.Generate("opt-175b", batch=256, input=512, output=32)
    ob.simulate("t4-host", work, mapping="disk")
    small = load_machine("t4-host").replace({"disk.flash.capacity": "250 GB"})
    with pytest.raises(CapacityError, match=r"weight, kv do not fit in disk\.flash"):
        ob.simulate(small, work, mapping="disk")
    most = ob.flash("instattention-csd").device.capacity_bytes / 1e9
    with pytest.raises(ConfigError, match=f"is more than the {most:.6g} GB of instattention-csd"):
        drives(f"{1.01 * most} GB")


def test_in_serving_it_is_a_counted_rejection() -> None:
    machine = drives("4 MB")
    result = played(machine, memory=1.0)
    blocks = result.outcome.detail["blocks"]
    assert blocks == int(4e6 // (MODEL.kv_bytes_per_token / 4 * 16))
    whole = trace(3)
    long = RequestTrace(whole.arrival_s, np.array([20, 16 * blocks, 30]), np.array([5, 20, 5]))
    work = ob.Serve(MODEL, long, scheduler=SMALL | {"memory": 1.0})
    frame = ob.simulate(machine, work, mapping="lamina").requests
    assert frame["status"].tolist() == ["served", "rejected", "served"]
    assert frame["reason"][1] == f"needs {blocks + 2} KV blocks of {blocks}"
    with pytest.raises(CapacityError, match=r"h20\.hbm"):
        played(machine, kv_blocks=blocks + 1)


# -- the command line ----------------------------------------------------------------------

EXPERIMENT = """
kind: experiment
machine: drives.yaml
mapping: lamina
workload:
  kind: serve
  model: llama-3.2-1b
  trace: trace.csv
  scheduler: {max_batched_tokens: 64, max_sequences: 8}
"""
DRIVES = """
kind: machine
extends: lamina-70b
name: drives
parts: {h20: {memory: {hbm: {kind: flash, technology: TECHNOLOGY, capacity: 400 GB}}}}
"""


@pytest.mark.parametrize("technology", ["instattention-csd", "nvme-ssd"])
def test_a_run_says_how_long_flash_lasts(tmp_path: Path, technology: str, capsys: Any) -> None:
    (tmp_path / "drives.yaml").write_text(DRIVES.replace("TECHNOLOGY", technology))
    rows = [f"{0.01 * i},{50 + i},{5 + i}" for i in range(5)]
    (tmp_path / "trace.csv").write_text("\n".join(["arrival_s,input_tokens,output_tokens", *rows]))
    (tmp_path / "run.yaml").write_text(EXPERIMENT)
    run = ["run", str(tmp_path / "run.yaml")]
    assert main([*run, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["endurance"]
    assert found["memory"] == "h20.hbm"
    assert found["bytes_per_day"] > 0
    assert main(run) == 0
    told = capsys.readouterr().out
    assert "KV writes to h20.hbm" in told
    if technology == "nvme-ssd":
        assert "'nvme-ssd' is no flash device" in found["reason"]
    else:
        assert found["share_of_five_years"] == pytest.approx(5.0 / found["years"])
        assert "drive_writes_per_day" in told


@pytest.mark.parametrize("compiled", [True, False])
def test_what_goes_down_takes_the_rate_of_writes(compiled: bool) -> None:
    machine = load_machine("t4-host")
    plain = machine.mapping("gpu").model_copy(update={"pipeline": None})
    held = {name: place for name, place in plain.place.items() if name != "scores"}
    place = held | {"kv.swap": Placement(**{"in": {"disk.flash": 1.0}})}
    mapping = plain.model_copy(update={"place": place})
    model = load_model("opt-1.3b")
    scheduler = {"kv_blocks": 120, "preempt": "swap", "swap_space": "1 GiB"}
    i = np.arange(40)
    asked = RequestTrace(0.05 * i, 200 + 30 * i, 20 + 3 * i)
    work = ob.Serve(model, asked, scheduler=scheduler)
    both = []
    for rate in ("1 GB/s", "2 GB/s"):
        changed = machine.replace({"disk.flash.nvme.write": rate})
        server = replace(Server.of(changed, work, mapping), compiled=compiled)
        assert server.below is not None
        both.append((server.below.price, server.serve(asked)))
    (slow, one), (fast, two) = both
    assert slow.down_s == pytest.approx(2 * slow.block_s)
    assert fast.down_s == pytest.approx(fast.block_s)
    for price, found in both:
        name = price.name
        blocks = found.moved[name] / price.block_bytes
        least = blocks / 2 * (price.block_s + price.down_s)
        assert found.busy[name] - least < blocks * price.start_s
    assert one.busy[slow.name] > two.busy[fast.name]


def test_batches_that_share_weights_divide_the_sequences() -> None:
    with pytest.raises(WorkloadError, match="batch must be a multiple of the 8 batches"):
        ob.simulate(
            "t4-host", ob.Generate("opt-1.3b", batch=12, input=64, output=4), mapping="disk"
        )
