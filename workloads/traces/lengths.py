"""How long prompts and answers are: fixed, uniform, lognormal, or pairs of another trace."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from opbyte.core.blocks import Block
from opbyte.workloads.traces._rules import MOST_TOKENS, Ints

__all__ = ["Distribution", "Fixed", "Lengths", "Lognormal", "Uniform"]

_Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
_Ends = TypeVar("_Ends", "Uniform", "Lognormal")


class Fixed(Block):
    """Always the same; a bare number means this too."""

    kind: Literal["fixed"] = "fixed"
    tokens: _Tokens
    """Length."""

    def draw(self, count: int, random: np.random.Generator) -> Ints:
        """Return lengths, tokens, (count,)."""
        del random
        return np.full(count, self.tokens, np.int64)


class Uniform(Block):
    """Whole numbers from `least` to `most`, both included."""

    kind: Literal["uniform"] = "uniform"
    least: _Tokens
    """Shortest length."""
    most: _Tokens
    """Longest length."""

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        return _with_ordered_ends(self)

    def draw(self, count: int, random: np.random.Generator) -> Ints:
        """Return lengths, tokens, (count,)."""
        return random.integers(self.least, self.most, count, endpoint=True)


class Lognormal(Block):
    """Exponential of a normal variable, rounded, and cut off at `least` and `most`.

    sigma^2 = ln(1 + cv^2) and mu = ln(mean) - sigma^2 / 2 give that mean and coefficient of
    variation before the cut.
    """

    kind: Literal["lognormal"] = "lognormal"
    mean: float = Field(ge=1, le=MOST_TOKENS)
    """Mean before the cut, tokens."""
    cv: float = Field(ge=0, le=100)
    """Standard deviation over mean, before the cut."""
    least: _Tokens = 1
    """Shortest length; what is drawn below becomes it."""
    most: _Tokens = MOST_TOKENS
    """Longest length; what is drawn above becomes it."""

    @model_validator(mode="after")
    def _ordered(self) -> Lognormal:
        return _with_ordered_ends(self)

    def draw(self, count: int, random: np.random.Generator) -> Ints:
        """Return lengths, tokens, (count,)."""
        variance = math.log1p(self.cv**2)
        drawn = random.lognormal(math.log(self.mean) - variance / 2, math.sqrt(variance), count)
        return np.clip(np.rint(drawn), self.least, self.most).astype(np.int64)


def _with_ordered_ends(ends: _Ends) -> _Ends:
    if ends.least > ends.most:
        raise ValueError(f"least must be at most `most`, got {ends.least} and {ends.most}")
    return ends


def _as_fixed(raw: Any) -> Any:
    return {"kind": "fixed", "tokens": raw} if isinstance(raw, int) else raw


_Choice = Annotated[Fixed | Uniform | Lognormal, Field(discriminator="kind")]
Distribution = Annotated[
    _Choice, BeforeValidator(_as_fixed, json_schema_input_type=_Tokens | _Choice)
]


class Lengths(Block):
    """Lengths of prompts and answers: drawn apart from each other, or together from a trace."""

    input: Distribution | None = None
    """Tokens of the prompts: a number, or a distribution."""
    output: Distribution | None = None
    """Tokens of the answers: a number, or a distribution."""
    trace: str | None = None
    """A trace whose pairs of lengths are drawn, with replacement."""

    @model_validator(mode="after")
    def _one_form(self) -> Lengths:
        apart = self.input is not None and self.output is not None
        none = self.input is None and self.output is None
        if not (apart if self.trace is None else none):
            raise ValueError("lengths need either both input and output, or trace alone")
        return self

    def draw(self, count: int, random: np.random.Generator) -> tuple[Ints, Ints]:
        """Return tokens of prompts and answers, (count,) each.

        Raises:
            ConfigError: If the trace can not be read.
        """
        if self.trace is not None:
            from opbyte.workloads.traces.load import located, read_trace

            pairs = read_trace(located(self.trace))
            rows = random.integers(0, len(pairs), count)
            return pairs.input_tokens[rows], pairs.output_tokens[rows]
        assert self.input is not None
        assert self.output is not None
        return self.input.draw(count, random), self.output.draw(count, random)
