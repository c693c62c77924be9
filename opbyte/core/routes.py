"""What software does on the way between memories: requests to storage, and what they are for."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from opbyte.core.parameters import Bytes, BytesPerSecond, Parameter, Ratio, Seconds


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Software(_Frozen):
    """What software costs on a route.

    Attributes:
        cap: Rate that it was measured to reach at most.
        per_command: Processor time of a command beside what the host's `io` says.
        access: How it reaches a storage device: past the page cache (`direct`), through it
            (`buffered`), or by touching pages of a file (`mapped`). Left out: `cap` is all.
        request: Bytes of one command; `neuron` is what lies together of one, see `Neurons`.
        threads: Threads that make requests.
        depth: Commands that each of them has in flight.
        staged: Bytes are copied once more, into a pinned buffer that the next link reads.
    """

    cap: BytesPerSecond | Literal["none"] | None = None
    per_command: Seconds | None = None
    access: Literal["direct", "buffered", "mapped"] | None = None
    request: Bytes | Literal["neuron"] | None = None
    threads: int = Field(1, ge=1)
    depth: int = Field(1, ge=1)
    staged: bool = False
    source: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Software:
        if (self.access is None) != (self.request is None):
            raise ValueError("`access` and `request` belong together. give both or neither")
        if self.access is None and (self.threads, self.depth, self.staged) != (1, 1, False):
            raise ValueError("threads, depth and staged describe an `access`. give one")
        if isinstance(self.request, Parameter) and self.request.value <= 0:
            raise ValueError("a `request` has at least one byte")
        return self


class Route(_Frozen):
    """Links that a tensor class takes."""

    via: tuple[str, ...]
    software: Software | None = None


class Neurons(_Frozen):
    """Networks of which each token uses a part of the inner neurons, read where it is not there.

    Attributes:
        used: Share of a layer's neurons that a predictor names for a token.
        fresh: Share that is not among those kept, and is read for each token.
        kept: Share that the fast memory keeps, those of a window of tokens; by default none.
        predictor: Bytes of the predictors as a share of the model's weights; they stay there.
        bundle: A neuron's row of the first matrix and its column of the second lie together.
    """

    used: Ratio
    fresh: Ratio
    kept: Ratio | None = None
    predictor: Ratio
    bundle: bool = False
    source: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Neurons:
        if not 0 < self.fresh.value <= self.used.value <= 1:
            raise ValueError(
                f"a token uses no fewer neurons than it reads: 0 < fresh <= used <= 1, got "
                f"{self.fresh.value:g} and {self.used.value:g}"
            )
        return self
