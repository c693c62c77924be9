"""Request traces: who asks when, with how many tokens; read, made, measured, written.

`load_trace` takes whatever a user may name: a file in one of `FORMATS`, a synthetic definition, a
frame, a shipped sample. Every trace is a `RequestTrace`.
"""

from opbyte.workloads.traces import csv_formats, jsonl_formats
from opbyte.workloads.traces.arrivals import Bursts, Clients, Gamma, Poisson
from opbyte.workloads.traces.blocks import PrefixBlocks
from opbyte.workloads.traces.describe import describe
from opbyte.workloads.traces.formats import FORMATS, BadRows, Columns, Head, TraceFormat, head_of
from opbyte.workloads.traces.lengths import Fixed, Lengths, Lognormal, Uniform
from opbyte.workloads.traces.load import load_trace, read_trace
from opbyte.workloads.traces.native import write_trace
from opbyte.workloads.traces.synthetic import Names, SharedPrefix, SyntheticTrace, retimed
from opbyte.workloads.traces.trace import ClosedLoop, RequestTrace

__all__ = [
    "FORMATS",
    "BadRows",
    "Bursts",
    "Clients",
    "ClosedLoop",
    "Columns",
    "Fixed",
    "Gamma",
    "Head",
    "Lengths",
    "Lognormal",
    "Names",
    "Poisson",
    "PrefixBlocks",
    "RequestTrace",
    "SharedPrefix",
    "SyntheticTrace",
    "TraceFormat",
    "Uniform",
    "describe",
    "head_of",
    "load_trace",
    "read_trace",
    "retimed",
    "write_trace",
]

#: Modules whose import registers the formats that ship with opbyte.
REGISTERED = (csv_formats, jsonl_formats)
