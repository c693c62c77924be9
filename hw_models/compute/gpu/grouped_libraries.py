"""Which kernels of grouped products an engine runs on each GPU generation: declared, never fitted.

What the generation itself is like, as its shared memory, `generations` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from opbyte.core.ops import Array
from opbyte.core.registry import Registry
from opbyte.hw_models.compute.gpu.generations import Generation, fitting


@dataclass(frozen=True)
class GroupedLibrary:
    """Kernels of grouped products of one GPU generation: facts that are declared, never fitted.

    Attributes:
        candidates: Rows and columns of a tile, elements of 2 bytes in a k-step, loads in flight,
            most CTAs on an SM, rows and columns of one warp, row tiles that run together. The
            first two are the defaults: for few tokens, for many.
        chunk: Tokens that the kernels take at once, 0 for all.
        tables: Experts on a device -> widths of one of them with a table of measured best tiles,
            which are taken as the fastest of the candidates.
    """

    name: str
    source: str
    candidates: tuple[tuple[int, ...], ...]
    chunk: int = 16384
    tables: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def tuned(self, experts: float, width: float) -> bool:
        """Return whether there is a table for so many experts of that width on a device."""
        return width in self.tables.get(int(experts), ()) and experts == int(experts)

    def rules(self, generation: Generation) -> Array:
        """Return what the kernel reads, in the order of its constants."""
        return np.array((generation.shared_operands, self.chunk), np.float64)

    def tiles(self, generation: Generation) -> Array:
        """Return the tiles whose loads in flight fit in shared memory, (tiles, 8)."""
        return fitting(self.candidates, generation.shared_bytes)


# get_default_config of vLLM 0.14, with Triton's 4 warps and 3 stages, 2 of them in flight. CTAs on
# an SM are what registers leave: estimated, not traced.
_DEFAULTS = ((16, 32, 64, 2, 6, 16, 16, 1), (64, 64, 32, 2, 4, 32, 32, 8))
# The most frequent entries of the generation's tables in vLLM 0.14 (fused_moe/configs).
_AMPERE = (
    *_DEFAULTS,
    (16, 64, 256, 3, 2, 16, 16, 16),
    (16, 128, 128, 3, 2, 16, 32, 16),
    (32, 128, 128, 3, 1, 32, 32, 16),
    (64, 256, 64, 3, 1, 32, 64, 16),
    (128, 128, 64, 3, 1, 32, 64, 16),
)
_HOPPER = (
    *_DEFAULTS,
    (16, 64, 128, 3, 4, 16, 16, 16),
    (16, 128, 128, 3, 2, 16, 32, 16),
    (32, 128, 128, 3, 2, 32, 32, 16),
    (64, 128, 64, 2, 3, 64, 32, 16),
    (128, 128, 64, 2, 2, 64, 64, 16),
    (128, 256, 64, 3, 1, 64, 128, 16),
)
_A100_TABLES = (
    {1: (1792, 3584, 7168, 14336), 8: (1792, 2048, 3584, 4096, 7168), 64: (640, 1280)}
    | {16: (1344, 1792, 2688, 3584, 7168, 14336)}
    | {128: (192,), 512: (64, 128)}
)
# Those of H100 and of H200: which of the two a table was measured on is not kept apart.
_HOPPER_TABLES = (
    {1: (3072,), 8: (1792, 2048, 3584, 4096, 7168, 14336), 16: (1024, 1344, 1792, 2048, 2688)}
    | {62: (256, 512), 64: (320, 640, 1280, 2560), 72: (384, 768), 256: (512,)}
    | {128: (192, 384, 512, 768, 928, 1024, 1856), 512: (64, 128, 256, 512)}
)
_B200_TABLES = {16: (1024,), 32: (1408,), 64: (1408,), 128: (768,), 512: (64, 128, 256, 512)}
_L40S_TABLES = {8: (3584,), 128: (928, 1856)}
_VLLM = "vLLM 0.14, fused_moe.py and fused_moe/configs, bf16"
#: By the name of the GPU generation.
GROUPED_LIBRARIES: Registry[GroupedLibrary] = Registry("GPU generation with kernels of experts")
for _library in (
    GroupedLibrary("ampere", _VLLM, _AMPERE, tables=_A100_TABLES),
    GroupedLibrary("ampere-ga10x", f"{_VLLM}; tiles of ampere", _AMPERE),
    GroupedLibrary(
        "ada", f"{_VLLM}; tiles of ampere; tables of L40S", _AMPERE, tables=_L40S_TABLES
    ),
    GroupedLibrary(
        "hopper",
        f"{_VLLM}; Triton multiplies 64 rows and more from shared memory",
        _HOPPER,
        tables=_HOPPER_TABLES,
    ),
    GroupedLibrary(
        "blackwell",
        f"{_VLLM}; tiles of hopper, tables of B200; tensor memory is not modelled",
        _HOPPER,
        tables=_B200_TABLES,
    ),
):
    GROUPED_LIBRARIES.register(_library.name)(_library)
