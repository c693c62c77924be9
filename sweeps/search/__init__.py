"""Searching the front of a study without playing all of its points; docs/search.md."""

from opbyte.sweeps.search.run import search_plan

__all__ = ["search_plan"]
