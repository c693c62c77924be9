"""What is true of every request; readers and `RequestTrace` check the same rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from opbyte.core.errors import WorkloadError

__all__ = ["MOST_TOKENS", "Bools", "Floats", "Ints", "broken_rules", "column", "too_early"]

#: Largest length of a prompt or an answer, tokens.
MOST_TOKENS = 2**31 - 1

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_TOKENS_RULE = f"must be a whole number from 1 to {MOST_TOKENS:,}"


def broken_rules(
    arrival_s: npt.NDArray[Any] | None, input_tokens: npt.NDArray[Any], output_tokens: Any
) -> Iterator[tuple[str, str, Bools]]:
    """Yield the rules of a single request that some request breaks.

    Args:
        arrival_s: Arrivals, seconds, (requests,); None where there are none.
        input_tokens: Tokens of the prompts, (requests,), of any numeric dtype.
        output_tokens: Tokens of the answers, (requests,), of any numeric dtype.

    Yields:
        Column, rule, and which requests break it, (requests,).
    """
    if arrival_s is not None:
        bad = ~(np.isfinite(arrival_s) & (arrival_s >= 0))
        if bad.any():
            yield "arrival_s", "must be finite and at least 0", bad
    for name, tokens in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        bad = ~((tokens >= 1) & (tokens <= MOST_TOKENS) & (tokens == np.floor(tokens)))
        if bad.any():
            yield name, _TOKENS_RULE, bad


def too_early(arrival_s: Floats) -> Bools:
    """Return which arrivals lie before one that stands above them, (requests,)."""
    latest = np.maximum.accumulate(arrival_s)
    return arrival_s < latest


def column(name: str, values: npt.ArrayLike, dtype: Any = None) -> npt.NDArray[Any]:
    """Return a read-only, one-dimensional view of numbers; copied only to change the dtype."""
    given = np.asarray(values)
    if given.dtype.kind not in "iuf" and given.size:
        raise WorkloadError(f"{name} must be numbers, got {given.dtype}")
    if given.ndim != 1:
        raise WorkloadError(f"{name} must have one dimension, got {given.ndim}")
    if (
        dtype is np.int64
        and given.dtype.kind == "f"
        and not np.all(np.isfinite(given) & (given == np.floor(given)))
    ):
        raise WorkloadError(f"{name} must be whole numbers")
    view = given.astype(dtype or given.dtype, copy=False).view()
    view.flags.writeable = False
    return view
