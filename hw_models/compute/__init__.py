"""Compute units. Importing this package registers the built-in kinds."""

from opbyte.hw_models.compute import (
    aim,
    bit_serial,
    cores,
    cpu,
    csd,
    dataflow,
    gpu,
    lut,
    matrix,
    near_memory,
    npu,
    pim,
    spatial,
    systolic,
    waves,
)

__all__ = [
    "aim",
    "bit_serial",
    "cores",
    "cpu",
    "csd",
    "dataflow",
    "gpu",
    "lut",
    "matrix",
    "near_memory",
    "npu",
    "pim",
    "spatial",
    "systolic",
    "waves",
]
