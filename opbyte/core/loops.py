"""How loops that run millions of times are compiled."""

from __future__ import annotations

from typing import Any

#: For Numba, of loops that allocate nothing and whose callers hold all arrays: division says NaN
#: or infinite as NumPy's does, and references are not counted. Counting them took two thirds of
#: the time of a serving step. Numba refuses whatever does allocate ("NRT required").
LOOP: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}
