"""A KV cache that outgrows memory: cyclic use of least recently used pages has no hits."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opbyte.core.errors import CapacityError, UncoveredError
from opbyte.core.mapping import load_mapping
from opbyte.hw_models.machine import load_machine
from opbyte.sim.result import Result
from opbyte.sim.simulate import evaluate, simulate
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model
from opbyte.workloads.phases import Decode, Generate, Prefill

LAYERS, HIDDEN = 4, 1024
MODEL = Model(
    "small", HIDDEN, 2000, (Layer(Attention(8, 8, 128), DenseFfn(4096, 2)),),
    (0,) * LAYERS,
).with_precision(weight="fp16", activation="fp16", kv="fp16")  # fmt: skip
#: Bytes of the cache for one token.
TOKEN = LAYERS * 2 * HIDDEN * 2
LARGE = {"kind": "generate", "model": "opt-13b", "input": 1024, "output": 1024}
CACHE = {"tier": "gpu.gddr", "evict": "none", "prefetch": "all"}


def mapping(**kv: Any) -> dict[str, Any]:
    return {
        "groups": {"gpus": "gpu"},
        "place": {
            "weight": {"in": {"gpu.gddr": 1.0}},
            "kv": {
                "in": {"host.dram": 1.0}, "spill": [{"tier": "disk.flash"}], "cache": CACHE, **kv,
            },
            "activation": {"in": {"gpu.gddr": 1.0}},
        },
        "pipeline": {"kind": "zigzag", "batches": 1},
        "run": [{"ops": "all", "unit": "gpu.sm"}],
        "launch": "software",
    }  # fmt: skip


def run(work: Any, room: float, chosen: dict[str, Any] | None = None) -> Result:
    machine = load_machine("t4-host").with_values({"host.dram.capacity": float(room)})
    return simulate(machine, work, chosen or mapping())


def _misses(pages: int, room: int, rounds: int) -> list[int]:
    """Return the misses of each round over pages of a least recently used memory."""
    held: OrderedDict[int, None] = OrderedDict()
    found = []
    for _ in range(rounds):
        missed = 0
        for page in range(pages):
            if page in held:
                held.move_to_end(page)
                continue
            missed += 1
            held[page] = None
            if len(held) > room:
                held.popitem(last=False)
        found.append(missed)
    return found


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_cycle_larger_than_its_memory_misses_everything(pages: int, room: int) -> None:
    later = _misses(pages, room, 4)[1:]
    assert later == [0 if pages <= room else pages] * 3


@pytest.mark.parametrize("spare", [1, -1])
def test_a_step_reads_all_or_nothing_from_below(spare: int) -> None:
    work = Decode(MODEL, batch=8, context=255)
    full = float(work.footprint(load_machine("t4-host").mapping("gpu").degrees)["kv"])  # type: ignore[arg-type]
    found = run(work, full + spare)
    read = float(
        work.lowered(load_machine("t4-host").mapping("gpu").degrees)[0].table.total("kv_read")[0]
    )
    assert found.swapped_bytes == (0 if spare > 0 else pytest.approx(read, rel=1e-12))
    assert found.occupancy["host.dram"] == full + min(spare, 0)
    assert found.occupancy.get("disk.flash", 0) == (0 if spare > 0 else full)


def test_steps_before_the_cache_outgrows_its_memory_read_nothing() -> None:
    batch, prompt, steps = 4, 128, 65
    work = Generate(MODEL, batch=batch, input=prompt, output=steps)
    end = batch * (prompt + steps - 1) * TOKEN
    start = batch * (prompt + 1) * TOKEN
    mean = run(work, 2 * end)
    assert mean.swapped_bytes == 0
    half = run(work, (start + end) / 2)
    everything = run(work, start * 0.99)
    assert half.swapped_bytes == pytest.approx(0.5 * everything.swapped_bytes, rel=0.05)
    assert everything.swapped_bytes == pytest.approx((start + end) / 2, rel=0.02)
    assert mean.tpot < half.tpot < everything.tpot


def test_more_room_is_never_slower_and_points_are_single_simulations() -> None:
    work = Generate(MODEL, batch=4, input=128, output=65)
    end = 4 * (128 + 64) * TOKEN
    rooms = end * np.array([0.5, 0.7, 0.75, 0.9, 0.99, 1.01, 2.0])
    machine = load_machine("t4-host")
    chosen = load_mapping(mapping())
    for fidelity in ("bound", "analytic"):
        together = evaluate(
            machine.with_values({"host.dram.capacity": rooms}), work, chosen, fidelity
        )
        for name in ("seconds", "swapped_bytes", "kv_share"):
            alone = [
                evaluate(
                    machine.with_values({"host.dram.capacity": float(r)}), work, chosen, fidelity
                )
                for r in rooms
            ]
            assert together.metrics[name] == pytest.approx(
                np.ravel([a.metrics[name] for a in alone]), rel=1e-12
            )
        assert np.all(np.diff(together.metrics["seconds"]) <= 0)
    slow = simulate("a6000-csd", {**LARGE, "batch": 128}, "deepspeed")
    assert (
        simulate("a6000-csd", {**LARGE, "batch": 128}, "deepspeed", "bound").seconds < slow.seconds
    )
    assert slow.swapped_bytes == pytest.approx(128 * 1536 * 819200, rel=1e-3)


def test_a_prompt_writes_what_does_not_fit_to_the_memory_below() -> None:
    work = Prefill(MODEL, batch=8, input=256)
    full = 8 * 256 * TOKEN
    busy = run(work, full / 4).resources.set_index("resource")["busy_s"]
    assert busy["disk.flash.nvme"] == pytest.approx(0.75 * full / 1e9, rel=1e-6)
    assert "nvme" not in busy or busy["nvme"] == 0


def test_what_fits_nowhere_and_other_spills_are_refused() -> None:
    work = Decode(MODEL, batch=8, context=255)
    machine = load_machine("t4-host").with_values(
        {"host.dram.capacity": 1e6, "disk.flash.capacity": 2e6}
    )
    with pytest.raises(CapacityError, match=r"kv do not fit in disk\.flash"):
        simulate(machine, work, mapping())
    with pytest.raises(UncoveredError, match="spills from one memory to one other"):
        run(work, 1e9, mapping(spill=[{"tier": "disk.flash", "capacity": "1 GB"}]))
    chosen = mapping()
    chosen["place"]["weight"]["spill"] = [{"tier": "disk.flash"}]
    with pytest.raises(UncoveredError, match="spill"):
        run(work, 1e9, chosen)
