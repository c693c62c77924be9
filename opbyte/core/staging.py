"""The `staging` block of a mapping: memory of the host that training takes beside homes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from opbyte.core.blocks import Block
from opbyte.core.ops import Number
from opbyte.core.parameters import Bytes, Factor, Parameter

__all__ = ["Staging"]


class Staging(Block):
    """Pinned memory of the host: how blocks are rounded, and which buffers there are.

    Blocks are: each matrix of the weights that live there; the others of its classes whole, or in
    pieces of `chunk`; a layer's activations of one microbatch; the pool, which is one block.
    """

    memory: str
    """Memory of the host, such as `cpu.dram`."""
    round: Bytes | Literal["none", "power_of_two"] = "none"
    """To what each block is rounded up: powers of two, as PyTorch's allocator of pinned memory does
    (torch.cuda.memory.host_memory_stats), or multiples of a size."""
    pool: Literal["own", "largest"] = "own"
    """Buffers for weights that live on a drive: each of its tensor's `own` size, or all of that of
    the `largest` tensor, as DeepSpeed's swapper has them."""
    layers: Annotated[int, Field(ge=1)] = 2
    """Layers whose weights are in the pool at once, beside those of embedding and head."""
    chunk: Bytes | None = None
    """Bytes of a piece of optimizer states and gradients. States that live on a drive have room for
    two pieces of each class: one that is stepped, one that is read or written."""
    overflow_check: Factor = Parameter(0.0, "factor")
    """Bytes that a check for overflows copies, of each byte of gradients that live there."""

    @model_validator(mode="after")
    def _sensible(self) -> Staging:
        for name in ("round", "chunk"):
            size = getattr(self, name)
            if isinstance(size, Parameter) and size.value <= 0.0:
                raise ValueError(
                    f"`{name}` must be above 0, got {size}. write 4 KiB, or leave it out"
                )
        return self

    def rounded(self, size: Number) -> Any:
        """Return the bytes that a block takes; nothing takes nothing."""
        size = np.asarray(size, np.float64)
        if self.round == "none":
            return size
        if self.round == "power_of_two":
            return np.where(size > 0, 2.0 ** np.ceil(np.log2(np.maximum(size, 1.0))), 0.0)
        return np.ceil(size / self.round.value) * self.round.value

    def pieces(self, size: Number) -> Any:
        """Return the bytes that a tensor takes in pieces of `chunk`, each of them rounded."""
        size = np.asarray(size, np.float64)
        if self.chunk is None:
            return self.rounded(size)
        whole = np.floor(size / self.chunk.value)
        rest = size - whole * self.chunk.value
        return whole * self.rounded(self.chunk.value) + self.rounded(rest)
