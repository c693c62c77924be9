"""Which attention kernels an engine runs on each GPU generation: declared, never fitted."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from opbyte.core.ops import Array
from opbyte.core.registry import Registry

_ANY = 2**40
#: FlashAttention 2 over pages runs its split-KV kernel: 64 queries, 4 warps of 16, one stage.
_FA2_TILES = (
    (64, _ANY, 1, 64, 256, 16, 1, 2),
    (128, _ANY, 1, 64, 128, 16, 1, 2),
    (256, _ANY, 1, 64, 64, 16, 1, 2),
)
#: FlashAttention 3 on 9.0, causal, pages smaller than a tile: one warp group of 64 queries for up
#: to 64 rows, else two or three; two stages; one CTA. Keys of one byte have tiles of their own.
_FA3_TILES = (
    (64, 64, 2, 64, 192, 64, 2, 1),
    (64, _ANY, 2, 192, 128, 64, 2, 1),
    (96, _ANY, 2, 192, 128, 64, 2, 1),
    (128, 64, 2, 64, 128, 64, 2, 1),
    (128, _ANY, 2, 128, 128, 64, 2, 1),
    (192, _ANY, 2, 128, 96, 64, 2, 1),
    (256, _ANY, 2, 128, 80, 64, 2, 1),
    (64, _ANY, 1, 192, 160, 64, 2, 1),
    (96, _ANY, 1, 192, 128, 64, 2, 1),
    (128, _ANY, 1, 128, 160, 64, 2, 1),
    (192, _ANY, 1, 128, 160, 64, 2, 1),
    (256, _ANY, 1, 128, 128, 64, 2, 1),
)


@dataclass(frozen=True)
class AttentionLibrary:
    """What an engine runs on a generation: facts that are declared, never fitted.

    Attributes:
        candidates: Tiles, the first that serves is taken.
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


LIBRARIES: Registry[AttentionLibrary] = Registry("GPU generation")


def _register(library: AttentionLibrary) -> None:
    LIBRARIES.register(library.name)(library)


_register(
    AttentionLibrary(
        "ampere",
        "vllm-project/flash-attention csrc/flash_attn: flash_api.cpp (packing, copies, "
        "num_splits_heuristic), flash_fwd_launch_template.h (tiles of the split-KV kernel, which "
        "paged calls force)",
        _FA2_TILES,
    )
)
_register(
    AttentionLibrary(
        "ampere-ga10x",
        "as ampere: vLLM runs FlashAttention 2 on compute capability 8.x",
        _FA2_TILES,
    )
)
_register(
    AttentionLibrary(
        "ada",
        "as ampere: vLLM runs FlashAttention 2 on compute capability 8.x",
        _FA2_TILES,
    )
)
_register(
    AttentionLibrary(
        "hopper",
        "vllm-project/flash-attention hopper: tile_size.h, heuristics.h, flash_api.cpp (heads are "
        "always packed over pages smaller than a tile), flash_prepare_scheduler.cu (shares of "
        "SMs); vLLM's fa_utils.py: FlashAttention 3 on compute capability 9.0",
        _FA3_TILES,
        packs=2,
        splits=2,
        interleaves=True,
        persistent=True,
        longest_first=True,
        copies=False,
        pads_value=False,
    )
)
_register(
    AttentionLibrary(
        "blackwell",
        "nearest relative hopper: vLLM runs FlashInfer's TensorRT-LLM kernels on compute "
        "capability 10.0, persistent, a split KV combined inside; their tiles are not modelled",
        _FA3_TILES,
        packs=2,
        splits=2,
        interleaves=True,
        persistent=True,
        longest_first=True,
        copies=False,
        combines=False,
        pads_value=False,
    )
)
