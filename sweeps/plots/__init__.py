"""Figures: fronts, rooflines, breakdowns, timelines, occupancy, and all of a study's at once."""

from opbyte.sweeps.claims import Claim
from opbyte.sweeps.plots._attention import attention_traffic
from opbyte.sweeps.plots._bars import breakdown, occupancy
from opbyte.sweeps.plots._cxl_map import cxl_map
from opbyte.sweeps.plots._held import held
from opbyte.sweeps.plots._lines import lines
from opbyte.sweeps.plots._measured import measured_against_simulated
from opbyte.sweeps.plots._memory import cxl_latency, load_latency, queue_depth, shared_readers
from opbyte.sweeps.plots._pareto import pareto
from opbyte.sweeps.plots._regions import Band, Mark, regions
from opbyte.sweeps.plots._roofline import roofline
from opbyte.sweeps.plots._sensitivity import sensitivity
from opbyte.sweeps.plots._serving import serving
from opbyte.sweeps.plots._shares import progress, shares
from opbyte.sweeps.plots._sparse import sparse_gain
from opbyte.sweeps.plots._study import study_figures, study_plots
from opbyte.sweeps.plots._style import save, styled
from opbyte.sweeps.plots._timeline import timeline
from opbyte.sweeps.plots._waterfall import waterfall

__all__ = [
    "Band",
    "Claim",
    "Mark",
    "attention_traffic",
    "breakdown",
    "cxl_latency",
    "cxl_map",
    "held",
    "lines",
    "load_latency",
    "measured_against_simulated",
    "occupancy",
    "pareto",
    "progress",
    "queue_depth",
    "regions",
    "roofline",
    "save",
    "sensitivity",
    "serving",
    "shared_readers",
    "shares",
    "sparse_gain",
    "study_figures",
    "study_plots",
    "styled",
    "timeline",
    "waterfall",
]
