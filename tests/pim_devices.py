"""Small machines with compute in memory for tests: AttAcc's timing at three levels, and AiM's."""

from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.pim.device import PimDevice
from opbyte.hw_models.machine import load_machine

ENERGY = {
    "activate": "0.11 pJ/bit", "cell": "0.44 pJ/bit", "column": "1.01 pJ/bit",
    "group": "1.23 pJ/bit", "tsv": "0.5 pJ/bit", "outside": "0.3 pJ/bit",
}  # fmt: skip
#: AttAcc's stack: HBM3 at 5.2 Gbit/s, 64 units of a channel that share depth by four.
ATTACC = {
    "organisation": {
        "channels": 16, "pseudo_channels": 2, "ranks": 2, "bank_groups": 4, "banks": 4,
        "rows": 16384, "columns": 32, "column": "32 B", "depth": 4, "results": 16,
        "buffer": "2 KiB",
    },
    "timing": {
        "rcd": 19, "rp": 19, "rtp": 8, "ras": 45, "rc": 63, "mac": 4, "mac_limited": 6,
        "load": 4, "read": 2, "refill": 2, "softmax": 2, "refi": 5070, "rfc": 456,
    },
    "energy": ENERGY, "power_limited": True, "moves": "overlap", "interleave": True,
    "pack": True, "context": "lanes", "refresh": "fresh",
}  # fmt: skip
#: A GDDR6-AiM channel: 16 banks, a row of 1024 bf16 numbers in 64 columns.
AIM = {
    "organisation": {
        "channels": 2, "bank_groups": 4, "banks": 4, "rows": 16384, "columns": 64,
        "column": "32 B", "results": 32, "buffer": "2 KiB",
    },
    "timing": {
        "rcd": 56, "rp": 32, "rtp": 12, "ras": 54, "rc": 89, "mac": 2, "load": 2, "bias": 2,
        "read": 4, "mode": 32, "refi": 3333, "rfc": 210,
    },
    "energy": ENERGY, "refresh": "none",
}  # fmt: skip


def pim_machine(block=ATTACC, level="bank", *, clock="1.3 GHz", instances=1, changes=None, **unit):
    """Return a machine with one such unit, `changes` applied to its block by dotted path."""
    block = {k: dict(v) if isinstance(v, dict) else v for k, v in block.items()}
    if level != "bank":
        block["organisation"]["depth"] = 1
    if level == "buffer":
        block["timing"] |= {"mac": 2, "mac_limited": 2}
    for path, value in (changes or {}).items():
        *where, name = path.split(".")
        (block[where[0]] if where else block)[name] = value
    core = {
        "kind": "pim", "at": f"hbm.{level}", "clock": clock, "instances": instances,
        "peak": {"bf16": "100 TFLOP/s", "int8": "200 TFLOP/s"}, "vector": "1 TFLOP/s",
        "launch": {"hardware": "0 s"}, "pim": block,
        "energy": {"bf16": "0.16 pJ/FLOP", "vector": "0.16 pJ/FLOP"}, **unit,
    }  # fmt: skip
    memory = {
        "capacity": "16 GiB",
        "ports": {level: {"bandwidth": "100 TB/s", "energy": "1 pJ/bit"}},
    }
    return load_machine({
        "name": "in-memory",
        "parts": {"dev": {"memory": {"hbm": memory}, "units": {"core": core}}},
        "mappings": {"default": {
            "place": {"weight": {"in": {"dev.hbm": 1.0}}, "kv": {"in": {"dev.hbm": 1.0}}},
            "run": [{"ops": "all", "unit": "dev.core"}], "fusion": "attention",
        }},
    })  # fmt: skip


def pim_device(*args, dtype="bf16", **more):
    """Return the unit of `pim_machine` as its models see it."""
    device = PimDevice.of(UnitView(pim_machine(*args, **more), "dev.core"), dtype)
    assert device is not None
    return device
