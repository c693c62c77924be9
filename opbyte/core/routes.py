"""What software does on the way between memories: requests to storage, and what they are for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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
        staged: Bytes are copied once more, into a pinned buffer that the next link reads; without
            an `access`, out of memory of the host that is not pinned.
        waits: A thread that staged bytes waits until the links beyond have copied them, before it
            makes its next request.
        blocks: The thread that starts kernels does this, and starts those of a layer afterwards:
            nothing hides it.
    """

    cap: BytesPerSecond | Literal["none"] | None = None
    per_command: Seconds | None = None
    access: Literal["direct", "buffered", "mapped"] | None = None
    request: Bytes | Literal["neuron"] | None = None
    threads: int = Field(1, ge=1)
    depth: int = Field(1, ge=1)
    staged: bool = False
    waits: bool = False
    blocks: bool = False
    source: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Software:
        if (self.access is None) != (self.request is None):
            raise ValueError("`access` and `request` belong together. give both or neither")
        if self.access is None and not self.staged and (self.threads, self.waits) != (1, False):
            raise ValueError("threads and waits describe an `access` or `staged`. give one")
        if self.access is None and self.depth != 1:
            raise ValueError("depth describes an `access`. give one")
        if self.waits and not self.staged:
            raise ValueError("a thread waits for what it `staged`. give both or neither")
        if isinstance(self.request, Parameter) and self.request.value <= 0:
            raise ValueError("a `request` has at least one byte")
        return self


class Route(_Frozen):
    """Links that a tensor class takes."""

    via: tuple[str, ...]
    software: Software | None = None


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, dict | Route) else value


#: One route, or several: software on different links of one way.
Routes = Annotated[tuple[Route, ...], BeforeValidator(_as_tuple)]


class Unpacking(_Frozen):
    """Kernels that unpack stored tensors into a wider format before each use.

    Attributes:
        to: Number format that the operators then read.
        passes: How often the bytes of the wide tensor cross the memory's port, the operator's own
            read included, that of the stored bytes not. One fused kernel writes it once: 2.
    """

    to: str
    passes: float = Field(2.0, ge=2.0)
    source: str | None = None


def _as_unpacking(value: Any) -> Any:
    return {"to": value} if isinstance(value, str) else value


#: An unpacking, or the format that one fused kernel unpacks to.
Format = Annotated[Unpacking, BeforeValidator(_as_unpacking)]


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
