"""The report of a study: one HTML page that opens anywhere, without a network."""

from opbyte.sweeps.report._page import write_report

__all__ = ["write_report"]
