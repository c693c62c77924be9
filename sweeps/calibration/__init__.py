"""Parameters of a machine from measured operators."""

from opbyte.sweeps.calibration.calibrate import Calibration, calibrate
from opbyte.sweeps.calibration.classes import CLASSES, KINDS, OperatorClass
from opbyte.sweeps.calibration.fit import Fit, fit
from opbyte.sweeps.calibration.rows import read_rows

__all__ = [
    "CLASSES",
    "KINDS",
    "Calibration",
    "Fit",
    "OperatorClass",
    "calibrate",
    "fit",
    "read_rows",
]
