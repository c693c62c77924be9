"""What an operator of an iteration is: its mask, and the attention call that it may be."""

from __future__ import annotations

from opbyte.core.placed import PlacedOps
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.gpu.calls import AttentionCall, attention_call
from opbyte.hw_models.compute.gpu.parameters import GpuView
from opbyte.workloads.model import Model


def mask_of(placed: PlacedOps, block: int, model: Model) -> tuple[int, int]:
    """Return window and chunk of a layer's attention, 0 without."""
    # Blocks are the embedding, each distinct layer as it first occurs, and the head.
    layers = list(dict.fromkeys(model.order))
    assert len(placed.table.blocks) == len(layers) + 2
    mixer = model.layers[layers[block - 1]].mixer
    return getattr(mixer, "window", 0) or 0, getattr(mixer, "chunk", 0) or 0


def call_of(placed: PlacedOps, op: int, view: UnitView) -> tuple[AttentionCall | None, str]:
    """Return the attention call that an operator is, and the port that it streams from."""
    config = view.machine.unit(view.path).config
    gpu = GpuView.of(view) if config.kind == "gpu" else None
    call = None if gpu is None else attention_call(placed, op, gpu)
    return (None, "") if gpu is None or call is None else (call, gpu.home)
