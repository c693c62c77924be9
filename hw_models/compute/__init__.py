"""Compute units. Importing this package registers the built-in kinds."""

from opbyte.hw_models.compute import (
    aim,
    dataflow,
    gpu,
    lut,
    matrix,
    near_memory,
    npu,
    pim,
    systolic,
    waves,
)

__all__ = [
    "aim",
    "dataflow",
    "gpu",
    "lut",
    "matrix",
    "near_memory",
    "npu",
    "pim",
    "systolic",
    "waves",
]
