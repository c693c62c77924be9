"""Cores that multiply ternary weights by reading look-up tables, and what they compete with."""

from opbyte.hw_models.compute.lut.build import SCHEMES, Network, adder_count, depth, network
from opbyte.hw_models.compute.lut.core import KINDS, Core
from opbyte.hw_models.compute.lut.cycles import Cycles, product_cycles
from opbyte.hw_models.compute.lut.functional import error_bound, lut_matmul
from opbyte.hw_models.compute.lut.structure import Structure, structure
from opbyte.hw_models.compute.lut.unit import LutCore

__all__ = [
    "KINDS",
    "SCHEMES",
    "Core",
    "Cycles",
    "LutCore",
    "Network",
    "Structure",
    "adder_count",
    "depth",
    "error_bound",
    "lut_matmul",
    "network",
    "product_cycles",
    "structure",
]
