"""Spatial arrays with attention mapped on them; importing this registers the kind."""

from opbyte.hw_models.compute.spatial import unit

__all__ = ["unit"]
