"""Devices of decode attention that are lost while a trace is served."""
