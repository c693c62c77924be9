"""Random machines and random work for the property tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from opbyte.core.ops import OpTable, OpTableBuilder
from opbyte.hw_models.machine import Machine, load_machine


def logs(low: float, high: float) -> st.SearchStrategy[float]:
    """Return floats spread evenly over the decades."""
    return st.floats(np.log10(low), np.log10(high)).map(lambda x: float(10.0**x))


@st.composite
def kernels(draw: st.DrawFn) -> dict[str, Any]:
    """Return what a GPU's unit has beside rates when its products are priced as kernels."""
    times = {name: f"{draw(logs(0.01, 10))} us" for name in ("fill", "latency", "epilogue")}
    return {
        "instances": draw(st.sampled_from([1, 7, 108])),
        "clock": f"{draw(logs(0.1, 3))} GHz",
        "generation": draw(st.sampled_from(["ampere", "ampere-ga10x", "hopper"])),
        "kernel": {
            **times,
            "split": f"{draw(logs(0.1, 10))} us",
            "matrix": draw(st.floats(0.5, 1.0)),
            "l2": draw(st.floats(0.3, 1.0)),
            "l2_share": draw(st.floats(0.1, 1.0)),
            "overlap": draw(st.floats(1.0, 64.0)),
            "tail": draw(st.floats(0.0, 1.0)),
            "energy": f"{draw(logs(0.1, 10))} pJ/FLOP",
        },
    }


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Return the `collectives` block of a link, and the efficiency and duplex beside it."""
    starts = ("call", "ll128_start", "ll128_step", "simple_start", "simple_step")
    library = draw(st.sampled_from(["nccl-ampere", "nccl-hopper", "nccl-pcie"]))
    block = {name: f"{draw(logs(0.1, 20))} us" for name in starts}
    block |= {name: draw(st.floats(0.2, 1.0)) for name in ("ll", "ll128", "direct")}
    block |= {"library": library, "tuned_rate": f"{draw(logs(10, 900))} GB/s"}
    block |= {"crowd": draw(st.floats(0.0, 1.0)), "own_copy": draw(st.floats(0.5, 4.0))}
    if library == "nccl-hopper" and draw(st.booleans()):
        block |= {"nvls_step": f"{draw(logs(0.1, 10))} us", "nvls": draw(st.floats(0.3, 1.0))}
    return {
        "efficiency": draw(st.floats(0.3, 1.0)),
        "duplex": draw(st.sampled_from(["full", "half"])),
        "collectives": block,
    }


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Return a device with SRAM, HBM and DDR, one or two units, and a link between devices."""
    devices = draw(st.sampled_from([1, 2, 4]))
    kinds = draw(st.lists(st.sampled_from(["dataflow", "gpu"]), min_size=1, max_size=2))
    units: dict[str, Any] = {}
    for i, kind in enumerate(kinds):
        at = draw(st.sampled_from(["sram.fabric", "hbm.phy"]))
        units[f"u{i}"] = {
            "kind": kind,
            "at": at,
            "peak": {"bf16": f"{draw(logs(1, 1000))} TFLOP/s"},
            "vector": f"{draw(logs(0.1, 100))} TFLOP/s",
            "efficiency": draw(st.floats(0.3, 1.0)),
            "buffer": "sram",
            "buffer_share": draw(st.floats(0.2, 1.0)),
            "tile": [draw(st.sampled_from([1, 8, 32])) for _ in range(3)],
            "launch": {"hardware": f"{draw(logs(0.01, 10))} us"},
            "energy": {"bf16": "0.5 pJ/FLOP", "vector": "1 pJ/FLOP"},
        }
        if kind == "gpu" and draw(st.booleans()):
            units[f"u{i}"] |= {"at": "hbm.phy"} | draw(kernels())

    def port(low: float, high: float) -> dict[str, Any]:
        return {
            "bandwidth": f"{draw(logs(low, high))} GB/s",
            "efficiency": draw(st.floats(0.4, 1.0)),
            "latency": f"{draw(logs(0.01, 1))} us",
            "energy": "4 pJ/bit",
        }

    memory = {
        "sram": {
            "kind": "sram",
            "capacity": f"{draw(logs(0.1, 500))} MiB",
            "ports": {"fabric": port(2000, 100000)},
        },
        "hbm": {"capacity": "64 GiB", "ports": {"phy": port(500, 4000)}},
        "ddr": {"capacity": "1 TiB", "ports": {"phy": port(20, 400)}},
    }
    share = draw(st.sampled_from([1.0, 0.5]))
    weight = {"dev.hbm": share, "dev.ddr": 1 - share} if share < 1 else {"dev.hbm": 1.0}
    library = draw(calls()) if draw(st.booleans()) else {}
    rules = [{"ops": "a", "unit": f"dev.u{len(kinds) - 1}"}, {"ops": "all", "unit": "dev.u0"}]
    return load_machine(
        {
            "kind": "machine",
            "name": "random",
            "parts": {
                "dev": {
                    "count": devices,
                    "memory": memory,
                    "units": units,
                    "power": f"{draw(logs(50, 1000))} W",
                    "static_power": "40 W",
                }
            },
            "links": {
                "net": {
                    "ends": ["dev", "dev"],
                    "topology": draw(st.sampled_from(["ring", "switch"])),
                    "bandwidth": f"{draw(logs(10, 900))} GB/s",
                    "latency": f"{draw(logs(0.1, 10))} us",
                    "energy": "1 pJ/bit",
                    **library,
                }
            },
            "mappings": {
                "default": {
                    "groups": {"all": "dev"},
                    "parallel": {"all": {"group": "all", "tp": devices}},
                    "place": {"weight": {"in": weight}, "kv": {"in": {"dev.hbm": 1.0}}},
                    "run": rules,
                    "fusion": draw(st.sampled_from(["none", "layer", "attention"])),
                    "launch": "hardware",
                    "all_reduce": draw(st.sampled_from(["library", "direct"]))
                    if library
                    else "library",
                }
            },
        }
    )


@st.composite
def tables(draw: st.DrawFn, *, chain: bool = False, stages: int = 1) -> OpTable:
    """Return a table of one to three blocks of random operators and edges."""
    builder = OpTableBuilder()
    for block in range(draw(st.integers(1, 3)) if stages == 1 else stages):
        with builder.block(f"b{block}", block if stages > 1 else 0) as blk:
            rows: list[int] = []
            for i in range(draw(st.integers(1, 5))):
                inputs = rows[-1:]
                if rows and not chain:
                    inputs = draw(st.lists(st.sampled_from(rows), unique=True, max_size=2))
                labels = draw(st.lists(st.sampled_from(["a", "attention"]), unique=True))
                out = draw(logs(1e2, 1e8))
                given = 0.0 if inputs else draw(logs(1e2, 1e8))
                kind = draw(st.sampled_from(["gemm", "gemm", "norm", "all_reduce"]))
                common = {"dtype": "bf16", "inputs": inputs, "labels": labels}
                if kind == "gemm":
                    m, n, k = (draw(st.integers(1, 4096)) for _ in range(3))
                    row = blk.add(
                        f"r{i}", kind, m=m, n=n, k=k, weight=2.0 * n * k, in_bytes=given,
                        out_bytes=out, **common,
                    )  # fmt: skip
                elif kind == "norm":
                    row = blk.add(
                        f"r{i}", kind, flops=draw(logs(1e3, 1e10)), kv_read=draw(logs(1e2, 1e9)),
                        in_bytes=given, out_bytes=out, **common,
                    )  # fmt: skip
                else:
                    row = blk.add(
                        f"r{i}", kind, flops=0.0, payload=out, participants=2,
                        in_bytes=given, out_bytes=out, **common,
                    )  # fmt: skip
                rows.append(row)
    count = len(builder.blocks)
    if stages > 1:
        builder.order = list(range(count))
    else:
        builder.order = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    return builder.build()
