"""The report of a study: one HTML page that opens anywhere, without a network."""

from opbyte.sweeps.report._page import Written, report, write_report

__all__ = ["Written", "report", "write_report"]
