"""What adapters add to a step: two thin grouped products beside each target matrix.

Each of the step's tokens goes through its own adapter: x A (shrink) and (x A) B (expand), added to
what the target gives. As in Punica's SGMV (arXiv 2310.18547) tokens of one adapter are gathered,
so that a step reads each distinct adapter once.

Tensor parallelism as in vLLM: where the target is split by columns A is whole on every device and
B split, where it is split by rows A is split and B whole. The target's own collective then adds
up both, and adapters need none.
"""

from __future__ import annotations

from collections.abc import Iterator

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import BlockBuilder, Number, OpTableBuilder, Phase
from opbyte.core.parallel import Parallel
from opbyte.workloads.model import Model
from opbyte.workloads.model_set import Adapter
from opbyte.workloads.modules import Module, modules_of
from opbyte.workloads.numeric import share

#: Targets that tensor parallelism splits by their outputs, and by their inputs.
_BY_COLUMNS = frozenset(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
_BY_ROWS = frozenset(("o_proj", "down_proj"))


def adapter_bytes(model: Model, adapter: Adapter, parallel: Parallel) -> float:
    """Return the bytes of one adapter on one device: rank * (in + out) elements each target.

    Raises:
        ConfigError: If the model has no matrix of a target's name.
        UncoveredError: If a target is inside routed experts, or nobody knows how it is split.
    """
    adapter.parameters(model)
    size = lookup(adapter.dtype).bytes_per_element
    widths = (_widths(m, parallel.tp) for ms in _by_layer(model, adapter).values() for m in ms)
    return size * adapter.rank * sum(inputs + outputs for inputs, outputs in widths)


def adapter_phase(
    model: Model, adapter: Adapter, tokens: Number, distinct: Number, parallel: Parallel
) -> Phase:
    """Return what one device computes for adapters in one step.

    Args:
        tokens: Tokens of requests that have an adapter, spread evenly over adapters.
        distinct: Adapters in the step, each read once.
    Raises:
        ConfigError, UncoveredError: As `adapter_bytes`.
    """
    adapter.parameters(model)
    builder = OpTableBuilder()
    known: dict[tuple[Module, ...], int] = {}
    for modules in _by_layer(model, adapter).values():
        # Layers with equal targets are one block.
        alike = tuple(_unnumbered(m) for m in modules)
        if alike not in known:
            known[alike] = len(known)
            with builder.block(f"adapters{known[alike]}") as block:
                for i, module in enumerate(alike):
                    _rows(block, i, module, model, adapter, tokens, distinct, parallel.tp)
        builder.order.append(known[alike])
    return Phase("adapters", builder.build())


def _rows(
    block: BlockBuilder,
    number: int,
    module: Module,
    model: Model,
    adapter: Adapter,
    tokens: Number,
    distinct: Number,
    tp: int,
) -> None:
    inputs, outputs = _widths(module, tp)
    stored = lookup(adapter.dtype).bytes_per_element
    active = lookup(model.precision.activation).bytes_per_element
    name, rank, each = f"{module.words[-1][0]}{number}", adapter.rank, tokens / distinct
    words = ("mixed", "adapter", "dense", f"weight-{lookup(adapter.dtype).name}")
    down = block.add(
        f"{name}.shrink", "gemm", dtype=model.precision.activation, labels=words,
        m=each, n=rank, k=inputs, groups=distinct, weight=distinct * (rank * inputs * stored),
        in_bytes=tokens * (inputs * active), out_bytes=tokens * (rank * active),
    )  # fmt: skip
    # What the target gave is read and written again with the adapter's part.
    block.add(
        f"{name}.expand", "gemm", dtype=model.precision.activation, labels=words, inputs=(down,),
        m=each, n=outputs, k=rank, groups=distinct, weight=distinct * (rank * outputs * stored),
        side_bytes=tokens * (outputs * active), out_bytes=tokens * (outputs * active),
    )  # fmt: skip


def _by_layer(model: Model, adapter: Adapter) -> dict[int, list[Module]]:
    """Return the targets of each layer that has some."""
    found: dict[int, list[Module]] = {}
    for module in _targets(model, adapter):
        found.setdefault(module.layer, []).append(module)
    return found


def _targets(model: Model, adapter: Adapter) -> Iterator[Module]:
    for module in modules_of(model):
        if module.layer < 0 or not adapter.covers(module):
            continue
        if module.copies > 1 or module.tensor_class == "expert":
            raise UncoveredError(
                f"{model.name}: no model prices adapters inside routed experts "
                f"({module.words[-1][0]}). name targets outside of them"
            )
        yield module


def _widths(module: Module, tp: int) -> tuple[int, int]:
    """Return what one device has of a target's inputs and outputs."""
    if tp == 1:
        return module.inputs, module.outputs
    names = set(module.words[-1])
    if names & _BY_COLUMNS:
        return module.inputs, share(module.outputs, tp)
    if names & _BY_ROWS:
        return share(module.inputs, tp), module.outputs
    raise UncoveredError(
        f"no model says how an adapter of {module.words[-1][0]} is split over {tp} devices. use "
        f"targets among {', '.join(sorted(_BY_COLUMNS | _BY_ROWS))}, or tp=1"
    )


def _unnumbered(module: Module) -> Module:
    return Module(
        module.tensor_class, 0, module.words, module.inputs, module.outputs, module.copies
    )
