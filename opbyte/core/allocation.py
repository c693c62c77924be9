"""The `allocate` block of a mapping: a policy decides where tensors of a training step live."""

from __future__ import annotations

from pydantic import Field, model_validator

from opbyte.core.blocks import Block
from opbyte.core.parameters import Bytes, Parameter

__all__ = ["Allocate"]

MIB = 2.0**20


class Allocate(Block):
    """Which policy places tensors that leave the GPU, and where it may.

    Tensor classes that `place` names stay where it says; the policy places all others.
    """

    policy: str
    """A registered policy: `local_only`, `naive_interleave`, `cxl_aware`, `optimal`, or another."""
    local: str
    """Memory next to the cores that step, such as `cpu.dram`."""
    beyond: str
    """Memory behind links, such as `aic.dram`; pages are striped over all of its instances."""
    budget: dict[str, Bytes] = Field(default_factory=dict)
    """Memory -> bytes that may be taken of all its instances together; by default all of them."""
    chunk: Bytes = Parameter(256 * MIB, "bytes", "finer than any class of a model of 1e9 weights")
    """Tensors are cut into equal chunks of at most so many bytes."""

    @model_validator(mode="after")
    def _sensible(self) -> Allocate:
        if self.local == self.beyond:
            raise ValueError(
                f"`local` and `beyond` are two memories, got {self.local} for both. name another, "
                "or use `place`"
            )
        for path in self.budget:
            if path not in (self.local, self.beyond):
                raise ValueError(
                    f"`budget` is of `local` or `beyond`, {self.local} or {self.beyond}, got "
                    f"{path}. correct its name"
                )
        if self.chunk.value <= 0.0:
            raise ValueError(f"`chunk` must be above 0, got {self.chunk}. write 256 MiB")
        return self
