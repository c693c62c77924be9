"""Simulate accelerators for large language models and search their design space."""

__version__ = "0.1.0"
