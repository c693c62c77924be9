"""Which attention kernels an engine runs on each GPU generation: declared, never fitted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from opbyte.core.ops import Array
from opbyte.core.registry import Registry

_ANY = 2**40
#: flash_api.cpp of FlashAttention 2: "only support fp16 and bf16 data type"; of 3, "fp16, bf16, and
#: fp8_e4m3". Both refuse a head_dim above 256.
_HALF = ("fp16", "bf16")
_HALF_OR_FP8 = (*_HALF, "fp8")
#: FlashAttention 2 over pages runs its split-KV kernel: 64 queries, 4 warps of 16, one stage.
_FA2_TILES = (
    (64, _ANY, 0, 64, 256, 16, 1, 2),
    (128, _ANY, 0, 64, 128, 16, 1, 2),
    (256, _ANY, 0, 64, 64, 16, 1, 2),
)
#: FlashAttention 3 on 9.0, causal, pages smaller than a tile: one warp group of 64 queries for up
#: to 64 rows, else two or three; two stages; one CTA. Keys of one byte have tiles of their own,
#: which narrower ones are given too: no kernel of this library reads those.
_FA3_TILES = (
    (64, 64, 2, 64, 192, 64, 2, 1),
    (64, _ANY, 2, 192, 128, 64, 2, 1),
    (96, _ANY, 2, 192, 128, 64, 2, 1),
    (128, 64, 2, 64, 128, 64, 2, 1),
    (128, _ANY, 2, 128, 128, 64, 2, 1),
    (192, _ANY, 2, 128, 96, 64, 2, 1),
    (256, _ANY, 2, 128, 80, 64, 2, 1),
    (64, _ANY, 0, 192, 160, 64, 2, 1),
    (96, _ANY, 0, 192, 128, 64, 2, 1),
    (128, _ANY, 0, 128, 160, 64, 2, 1),
    (192, _ANY, 0, 128, 160, 64, 2, 1),
    (256, _ANY, 0, 128, 128, 64, 2, 1),
)


@dataclass(frozen=True)
class AttentionLibrary:
    """What an engine runs on a generation: facts that are declared, never fitted.

    Attributes:
        candidates: Tiles, the first that serves is taken.
        arithmetic: Dtypes of its products. What is stored narrower is unpacked to one of them.
        packs: Heads of a group share a tile: 0 never, 1 in calls of single tokens, 2 always.
        splits: How KV is cut: 0 not, 1 FlashAttention 2's search in packed calls, 2
            FlashAttention 3's shares.
        interleaves: A CTA overlaps softmax with products of its own.
        persistent: CTAs stay, and take their tiles from a list.
        longest_first: Long tiles start first.
        copies: Packing permutes queries and results in kernels of their own.
        combines: A kernel of its own combines the parts of a split.
        pads_value: Values are made as wide as keys.
    """

    name: str
    source: str
    candidates: tuple[tuple[int, ...], ...]
    arithmetic: tuple[str, ...] = _HALF
    packs: int = 1
    splits: int = 1
    interleaves: bool = False
    persistent: bool = False
    longest_first: bool = False
    copies: bool = True
    combines: bool = True
    pads_value: bool = True

    @cached_property
    def rules(self) -> Array:
        """Return what the kernel reads, in the order of its constants."""
        rules = (
            self.packs,
            self.splits,
            self.interleaves,
            self.persistent,
            self.longest_first,
            self.copies,
            self.combines,
            self.pads_value,
        )
        return np.array(rules, np.float64)

    @cached_property
    def tiles(self) -> Array:
        """Return the tiles, (tiles, 8)."""
        return np.array(self.candidates, np.float64)

    @property
    def widest(self) -> int:
        """Return the most head_dim that a tile serves."""
        return max(tile[0] for tile in self.candidates)


#: By the name of the GPU generation.
ATTENTION_LIBRARIES: Registry[AttentionLibrary] = Registry("GPU generation with attention kernels")


def _register(library: AttentionLibrary, *generations: str) -> None:
    for generation in generations:
        ATTENTION_LIBRARIES.register(generation)(library)


_register(
    AttentionLibrary(
        "FlashAttention 2",
        "vllm-project/flash-attention csrc/flash_attn: flash_api.cpp (packing, copies, "
        "num_splits_heuristic), flash_fwd_launch_template.h (tiles of the split-KV kernel, which "
        "paged calls force); vLLM runs it on compute capability 8.x",
        _FA2_TILES,
    ),
    "ampere",
    "ampere-ga10x",
    "ada",
)
_register(
    AttentionLibrary(
        "FlashAttention 3",
        "vllm-project/flash-attention hopper: tile_size.h, heuristics.h, flash_api.cpp (heads are "
        "always packed over pages smaller than a tile), flash_prepare_scheduler.cu (shares of "
        "SMs); vLLM's fa_utils.py: FlashAttention 3 on compute capability 9.0",
        _FA3_TILES,
        _HALF_OR_FP8,
        packs=2,
        splits=2,
        interleaves=True,
        persistent=True,
        longest_first=True,
        copies=False,
        pads_value=False,
    ),
    "hopper",
)
_register(
    AttentionLibrary(
        "TensorRT-LLM attention",
        "nearest relative hopper: vLLM runs FlashInfer's TensorRT-LLM kernels on compute "
        "capability 10.0, persistent, a split KV combined inside; their tiles are not modelled",
        _FA3_TILES,
        _HALF_OR_FP8,
        packs=2,
        splits=2,
        interleaves=True,
        persistent=True,
        longest_first=True,
        copies=False,
        combines=False,
        pads_value=False,
    ),
    "blackwell",
)
