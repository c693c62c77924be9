"""A GPU beside a host with DRAM and cores: what tests of training that spills begin with."""

from typing import Any

#: What training keeps beside weights, gradients and activations.
STATES = ("momentum", "variance", "master_weight")


def hosted(capacity: str, vector: str, peak: str) -> dict[str, Any]:
    """Return a machine of one host and one GPU of 2 TB/s and 300 TFLOP/s on 32 GB/s of PCIe.

    Args:
        capacity: Of the host's DRAM, which has 200 GB/s.
        vector: Rate of each of its 32 cores beside products.
        peak: Rate of each of them in products of fp32.
    """
    return {
        "kind": "machine",
        "name": "gpu-and-host",
        "parts": {
            "host": {
                "count": 1,
                "memory": {
                    "dram": {"capacity": capacity, "ports": {"bus": {"bandwidth": "200 GB/s"}}}
                },
                "units": {
                    "cores": {
                        "kind": "cpu", "at": "dram.bus", "instances": 32, "vector": vector,
                        "peak": {"fp32": peak}, "clock": "3 GHz",
                    },
                },
            },
            "gpu": {
                "count": 1,
                "memory": {"hbm": {"capacity": "80 GB", "ports": {"phy": {"bandwidth": "2 TB/s"}}}},
                "units": {
                    "sm": {
                        "kind": "gpu", "at": "hbm.phy", "peak": {"bf16": "300 TFLOP/s"},
                        "vector": "20 TFLOP/s", "launch": {"graph": "2 us"},
                    },
                },
            },
        },
        "links": {
            "pcie": {"ends": ["host", "gpu"], "bandwidth": "32 GB/s", "duplex": "full"},
        },
    }  # fmt: skip
