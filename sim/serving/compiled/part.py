"""How the parts of the compiled serving loop are compiled: they become part of it."""

from __future__ import annotations

from opbyte.core.loops import part

__all__ = ["part"]
