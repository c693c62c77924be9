"""What software does on the way between memories: requests to storage, and what they are for."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from opbyte.core.blocks import Block
from opbyte.core.parameters import Bytes, BytesPerSecond, Parameter, Ratio, Seconds, Several


class Software(Block):
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
    threads: Several = Parameter(1.0, "count")
    depth: Several = Parameter(1.0, "count")
    staged: bool = False
    waits: bool = False
    blocks: bool = False
    source: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Software:
        if not self.model_fields_set - {"source"}:
            raise ValueError(
                "software that costs nothing says nothing. give `cap`, or leave it out"
            )
        if (self.access is None) != (self.request is None):
            raise ValueError("`access` and `request` belong together. give both or neither")
        alone = self.access is None and not self.staged
        if alone and (self.threads.value != 1 or self.waits):
            raise ValueError("threads and waits describe an `access` or `staged`. give one")
        if self.access is None and self.depth.value != 1:
            raise ValueError("depth describes an `access`. give one")
        if self.waits and not self.staged:
            raise ValueError("a thread waits for what it `staged`. give both or neither")
        if isinstance(self.request, Parameter) and self.request.value <= 0:
            raise ValueError("a `request` has at least one byte")
        return self


class Route(Block):
    """Links that a tensor class takes, at least one."""

    via: tuple[str, ...] = Field(min_length=1)
    software: Software | None = None


class Popularity(Block):
    """How unequally neurons are used: a power law through one published quantile.

    Attributes:
        top: Share of the neurons, the most used ones.
        share: Their share of all uses.
    """

    top: Ratio
    share: Ratio
    source: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Popularity:
        if not self.top.value <= self.share.value < 1:
            raise ValueError(
                "the most used neurons have no less than their share of uses: top <= share < 1, "
                f"got {self.top.value:g} and {self.share.value:g}"
            )
        return self


class Hot(Block):
    """The most used neurons: always in the fast memory, computed densely by a unit of their own.

    Attributes:
        share: Their share of all neurons.
        unit: Short path of the unit; the others run where `run` says, at the same time.
    """

    share: Ratio
    unit: str


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, dict | Route) else value


#: One route, or several: software on different links of one way.
Routes = Annotated[tuple[Route, ...], BeforeValidator(_as_tuple)]


class Unpacking(Block):
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


class Neurons(Block):
    """Networks of which each token uses a part of the inner neurons, read where it is not there.

    Attributes:
        used: Share of a network's neurons that a token uses; of routed experts, of those at work.
        known_by: What names them: a `predictor` beforehand, or the product with the `gate` matrix,
            which runs in full.
        predictor: Bytes of the predictors as a share of the model's weights; they stay there.
        head: Share of the vocabulary whose logits are computed.
        fresh: Share that is not among those kept, and is read for each token, as published.
        kept: Share that the fast memory keeps, those of a window of tokens; by default none.
        popularity: What fresh and kept neurons follow from instead: with `window`, or with a cache
            of the neurons used last (`evict: lru`) in what the tier has left.
        window: Tokens whose neurons are kept.
        bundle: The rows and columns of a neuron lie together.
        second: A bundle is read in two halves, the second one for this share of the neurons, whose
            gate turned out not to be zero.
        align: Requests are multiples of it.
        hot: Neurons that run densely on another unit.
        overlap: What reads overlap with: nothing (`none`), the product with the same matrix
            (`matrix`), or the whole network (`cluster`), cluster after cluster.
        clusters: Pieces into which the neurons in use are cut; the last one to arrive runs alone.
    """

    used: Ratio
    known_by: Literal["predictor", "gate"] = "predictor"
    predictor: Ratio | None = None
    head: Ratio | None = None
    fresh: Ratio | None = None
    kept: Ratio | None = None
    popularity: Popularity | None = None
    window: int | None = Field(None, ge=1)
    bundle: bool = False
    second: Ratio | None = None
    align: Bytes | None = None
    hot: Hot | None = None
    overlap: Literal["none", "matrix", "cluster"] = "none"
    clusters: int = Field(1, ge=1)
    source: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Neurons:
        if self.fresh is not None and self.fresh.value > self.used.value:
            raise ValueError(
                f"a token uses no fewer neurons than it reads: fresh <= used, got "
                f"{self.fresh.value:g} and {self.used.value:g}"
            )
        if self.fresh is not None and self.popularity is not None:
            raise ValueError("`fresh` and `kept` are published, or follow from `popularity`")
        if self.kept is not None and self.fresh is None:
            raise ValueError("`kept` belongs to `fresh`. give both, or `popularity` and `window`")
        if self.window is not None and self.popularity is None:
            raise ValueError("what a `window` keeps follows from `popularity`. give it")
        if self.align is not None and self.align.value < 1:
            raise ValueError(f"`align` has at least one byte, got {self.align}. give its size")
        if self.second is not None and not self.bundle:
            raise ValueError("`second` halves a bundle. give `bundle: true`")
        if self.known_by == "gate" and self.predictor is not None:
            raise ValueError("neurons known by their gate need no `predictor`. leave it out")
        return self

    @property
    def predicted(self) -> float:
        """Return the bytes of the predictors as a share of the model's weights."""
        return self.predictor.value if self.predictor else 0.0
