"""How the parts of compiled serving loops are compiled."""

from __future__ import annotations

from numba.extending import register_jitable

#: Decorator of functions that become part of the loop that calls them. As calls they would be
#: handed all arrays of the state, some hundred words, which took half of the time of a step.
part = register_jitable(forceinline=True)
