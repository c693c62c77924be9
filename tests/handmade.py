"""A small machine and small tables whose prices can be worked out by hand."""

from opbyte.core.ops import OpTableBuilder
from opbyte.hw_models.machine import load_machine
from opbyte.hw_models.price import price
from opbyte.sim.place import Placer

PEAK, VECTOR, EFFICIENCY = 100e12, 5e12, 0.8
HBM, HBM_SHARE, DDR = 2e12, 0.75, 100e9
LAUNCH, HBM_LATENCY = 3e-6, 0.5e-6
MIB = 2**20


def device(*, unit=None, memory=None, links=None, count=1, mapping=None, parts=None):
    """A device with HBM, DDR and an SRAM of 16 MiB, of which tiles take half."""
    machine = {
        "name": "small",
        "parts": {
            "dev": {
                "count": count,
                "memory": {
                    "hbm": {
                        "capacity": "64 GiB",
                        "ports": {
                            "phy": {
                                "bandwidth": "2 TB/s",
                                "efficiency": 0.75,
                                "latency": "0.5 us",
                                "energy": "4 pJ/bit",
                            }
                        },
                    },
                    "ddr": {
                        "capacity": "512 GiB",
                        "ports": {"bus": {"bandwidth": "100 GB/s", "energy": "12 pJ/bit"}},
                    },
                    "l2": {
                        "kind": "sram",
                        "capacity": "16 MiB",
                        "ports": {
                            "fabric": {"bandwidth": "20 TB/s", "energy": "0.25 pJ/bit"},
                        },
                    },
                    **(memory or {}),
                },
                "units": {
                    "core": {
                        "kind": "gpu",
                        "at": "hbm.phy",
                        "buffer": "l2",
                        "buffer_share": 0.5,
                        "peak": {"bf16": "100 TFLOP/s", "int8": "200 TFLOP/s"},
                        "vector": "5 TFLOP/s",
                        "efficiency": 0.8,
                        "launch": {"hardware": "3 us"},
                        "energy": {"bf16": "0.5 pJ/FLOP", "vector": "2 pJ/FLOP"},
                        **(unit or {}),
                    }
                },
            },
            **(parts or {}),
        },
        "links": links or {},
        "mappings": {
            "default": {
                "groups": {"all": "dev"},
                "parallel": {"all": {"group": "all", "tp": count}},
                "place": {"weight": {"in": {"dev.hbm": 1.0}}},
                "run": [{"ops": "all", "unit": "dev.core"}],
                **(mapping or {}),
            }
        },
    }
    return load_machine(machine)


def table(*rows):
    """Return one block: rows are (name, kind, numbers), each reading the one before it."""
    builder = OpTableBuilder()
    with builder.block("block") as block:
        for i, (name, kind, numbers) in enumerate(rows):
            block.add(name, kind, **{"dtype": "bf16", "inputs": [i - 1] if i else [], **numbers})
    builder.order = [0]
    return builder.build()


def gemm(m, n, k, **more):
    return (
        "gemm",
        "gemm",
        {
            "m": m,
            "n": n,
            "k": k,
            "weight": 2.0 * n * k,
            "in_bytes": 2.0 * m * k,
            "out_bytes": 2.0 * m * n,
            **more,
        },
    )


def demand(machine, *rows, ideal=False):
    return price(Placer(machine, machine.mapping()).place(table(*rows)), machine, ideal=ideal)


def on(priced, resource):
    """Return bytes on a resource, summed over operators."""
    return priced.bytes[:, priced.placed.resources.index(resource), 0].sum()
