"""Compiled event loops, each with a readable twin that tests compare it with."""
