"""Memories: command timing of DRAM."""
