"""Decode attention that is exact on some of the cached tokens only: how they are chosen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from opbyte.core.blocks import Block
from opbyte.core.parameters import Ratio

#: What a key's leading ones are, unless said: sign and position, one partial product of four.
_BITS, _WORK = 4.0, 0.25


class KvSelect(Block):
    """Cached tokens that decode attention is exact on.

    Attributes:
        kind: What a first look at every key reads. `lop`: its leading ones (VitaLLM, arXiv
            2604.27396). `sparf`: some of its channels (InstInfer, arXiv 2409.04992).
        keep: Share k / M of the cached tokens with exact attention.
        bits: Of `lop`: bits of an element of the leading ones; 0 where they stay on the chip; 4.
        work: Of `lop`: what a product with them costs of an exact one; 0.25.
        channels: Of `sparf`: share r / d of a key's channels.
        run: Of `sparf`: mean number of neighbouring tokens that are kept together. Left out: tokens
            are kept independently of each other.
    """

    kind: Literal["lop", "sparf"]
    keep: Ratio
    bits: float | None = Field(None, ge=0.0, le=16.0)
    work: float | None = Field(None, ge=0.0, le=1.0)
    channels: Ratio | None = None
    run: float | None = Field(None, ge=1.0)

    @model_validator(mode="after")
    def _own(self) -> KvSelect:
        if self.kind == "lop" and (self.channels is not None or self.run is not None):
            raise ValueError("`channels` and `run` are of kind: sparf. leave them out")
        if self.kind == "sparf":
            if self.bits is not None or self.work is not None:
                raise ValueError("`bits` and `work` are of kind: lop. leave them out")
            if self.channels is None:
                raise ValueError("sparf reads some `channels` of every key. give their share")
            keep = self.keep.value
            if self.run is not None and keep > self.run / (self.run + 1.0):
                raise ValueError(
                    f"runs of {self.run:g} kept tokens with gaps of at least one keep at most "
                    f"{self.run / (self.run + 1.0):.3g} of all, got {keep:g}. make `run` longer"
                )
        return self

    def looked(self, bits: float) -> float:
        """Return the share of every key that the first look reads.

        Args:
            bits: Bits of a cached element.
        """
        if self.channels is not None:
            return self.channels.value
        return (_BITS if self.bits is None else self.bits) / bits

    @property
    def look_work(self) -> float:
        """Return what the first look at a key costs of an exact product."""
        if self.channels is not None:
            return self.channels.value
        return _WORK if self.work is None else self.work
