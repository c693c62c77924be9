"""Compute inside GDDR6 after SK hynix's AiM, and the controller of a CXL device beside it.

`products.py` maps matrices and attention to programs of MAC commands, `vectors.py` what the
controller does to vectors, `energy.py` has the joules of each command, `links.py` what devices that
share a matrix send each other; docs/machines/cent.md has the equations and their sources.
"""

from opbyte.hw_models.compute.aim.units import AimUnit, NearMemory

__all__ = ["AimUnit", "NearMemory"]
