"""What the kernels of a GPU generation are like: facts that are declared, never fitted.

Tiles are rows of (rows, columns of the result, elements of 2 bytes in a k-step, k-steps in flight,
most CTAs on an SM, rows and columns of one warp, 1 for the matrix-vector kernel). They follow the
names that profilers print for cuBLAS and CUTLASS kernels, as `ampere_*_s16816gemm_*_128x64_ldg8_*`
and `sm90_xmma_gemm_*_tilesize128x256x64_*`; which of them a library really has for a shape was not
traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from opbyte.core.ops import Array
from opbyte.core.registry import Registry

KIB = 1024
_MATRIX_VECTOR = (1, 8, 512, 2, 8, 1, 1, 1)
_AMPERE_TILES = (
    (256, 128, 32, 3, 1, 64, 64, 0),
    (128, 256, 32, 3, 1, 64, 64, 0),
    (128, 128, 32, 5, 2, 64, 64, 0),
    (256, 64, 32, 4, 2, 64, 64, 0),
    (64, 256, 32, 4, 2, 64, 64, 0),
    (128, 64, 32, 6, 2, 64, 32, 0),
    (64, 128, 32, 6, 2, 32, 64, 0),
    (64, 64, 64, 5, 2, 32, 32, 0),
    (32, 32, 128, 2, 4, 32, 32, 0),
    (16, 16, 128, 2, 8, 16, 16, 0),
    _MATRIX_VECTOR,
)
_HOPPER_TILES = (
    (256, 128, 64, 4, 1, 64, 128, 0),
    (128, 256, 64, 4, 1, 64, 256, 0),
    (128, 192, 64, 4, 1, 64, 192, 0),
    (128, 128, 64, 6, 1, 64, 128, 0),
    (64, 256, 64, 5, 1, 64, 256, 0),
    (64, 192, 64, 5, 1, 64, 192, 0),
    (64, 128, 64, 8, 1, 64, 128, 0),
    (64, 64, 64, 6, 2, 64, 64, 0),
    (64, 32, 64, 8, 2, 64, 32, 0),
    (32, 32, 128, 2, 4, 32, 32, 0),
    (16, 16, 128, 2, 8, 16, 16, 0),
    _MATRIX_VECTOR,
)


@dataclass(frozen=True)
class Generation:
    """Rules of one generation's kernels.

    Attributes:
        shared_bytes: Shared memory that the CTAs of one SM can take.
        threads: Most threads on an SM.
        shared_bytes_per_clock: Width of an SM's shared memory.
        port_bytes_per_clock: Width of an SM's port to L2.
        persistent: CTAs stay and hide fill and epilogue under the next tile's main loop.
        cluster: CTAs whose loads one read of L2 serves (multicast).
        shared_operands: Matrix units read operands from shared memory, past the registers.
        stream_k: The library has kernels that cut tiles at SM boundaries.
    """

    name: str
    source: str
    candidates: tuple[tuple[int, ...], ...]
    shared_bytes: int
    threads: int = 2048
    shared_bytes_per_clock: float = 128.0
    port_bytes_per_clock: float = 64.0
    persistent: bool = False
    cluster: int = 1
    shared_operands: bool = False
    stream_k: bool = False

    @cached_property
    def rules(self) -> Array:
        """Return what the kernel reads, in the order of its constants."""
        rules = (self.persistent, self.cluster, self.shared_operands, self.stream_k)
        return np.array(rules, np.float64)

    @cached_property
    def tiles(self) -> Array:
        """Return the tiles whose stages fit in shared memory, and the CTAs that do, (tiles, 8)."""
        return fitting(self.candidates, self.shared_bytes)


@cache
def fitting(candidates: tuple[tuple[int, ...], ...], shared_bytes: int) -> Array:
    """Return the tiles whose k-steps in flight fit in shared memory, and the CTAs that do.

    Args:
        candidates: Rows, columns, elements of 2 bytes in a k-step, k-steps in flight, most CTAs,
            and more.
    """
    kept = []
    for tm, tn, bk, stages, ctas, *rest in candidates:
        fit = min(ctas, shared_bytes // (stages * (tm + tn) * bk * 2))
        if fit > 0:
            kept.append((tm, tn, bk, stages, fit, *rest))
    return np.array(kept, np.float64)


GENERATIONS: Registry[Generation] = Registry("GPU generation")


def _register(generation: Generation) -> None:
    GENERATIONS.register(generation.name)(generation)


_register(
    Generation(
        "ampere",
        "NVIDIA A100 white paper: 164 KiB of shared memory for CTAs, 64 B a clock from L2 to an SM",
        _AMPERE_TILES,
        164 * KIB,
    )
)
_register(
    Generation(
        "ampere-ga10x",
        "CUDA programming guide, compute capability 8.6: 100 KiB of shared memory, 1536 "
        "threads; as ampere",
        _AMPERE_TILES,
        100 * KIB,
        threads=1536,
    )
)
_register(
    Generation(
        "ada",
        "nearest relative ampere-ga10x: the same warp-level products (mma.sync), shared memory and "
        "threads; no kernels of Ada were looked at",
        _AMPERE_TILES,
        100 * KIB,
        threads=1536,
    )
)
_register(
    Generation(
        "hopper",
        "NVIDIA H100 white paper: 228 KiB of shared memory, TMA with multicast in clusters, "
        "warp-group products from shared memory; CUTLASS 3: persistent kernels, stream-K",
        _HOPPER_TILES,
        227 * KIB,
        persistent=True,
        cluster=2,
        shared_operands=True,
        stream_k=True,
    )
)
_register(
    Generation(
        "blackwell",
        "nearest relative hopper: TMA, clusters and persistent kernels; products of two SMs and "
        "tensor memory are not modelled",
        _HOPPER_TILES,
        227 * KIB,
        persistent=True,
        cluster=2,
        shared_operands=True,
        stream_k=True,
    )
)
