"""Attention behind the channels of a computational drive."""

from opbyte.hw_models.compute.csd import engine

__all__ = ["engine"]
