"""When the tensors of a training step come and go on one device, in the order of its passes.

A tensor lives until nothing that reads it is left: a result until the last operator of the forward
pass that takes it, and what a node keeps until its backward pass. A gradient lives from the first
operator that makes a part of it to the one that takes it. Layers that run again make what they
keep a second time. Sums of gradients over a layer, where replicas split them, and weights that are
gathered live as long as the layer's pass. Two steps are played: states of the optimizer come after
the first pass, where they take room that activations left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from opbyte.core.ops import Number
from opbyte.workloads.training.nodes import GIVEN, Node, Tape, again
from opbyte.workloads.training.plan import Plan
from opbyte.workloads.training.tape import adapter_elements

__all__ = ["Lifetimes", "lifetimes"]

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class Lifetimes:
    """Tensors that come and go.

    Attributes:
        events: Tensor i comes as i + 1 and goes as -(i + 1).
        sizes: Bytes of each tensor.
    """

    events: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    _holders: list[int] = field(default_factory=list)

    def come(self, size: Number) -> int:
        """Add a tensor with one holder and return it."""
        tensor = len(self.sizes)
        self.sizes.append(round(float(size)))
        self._holders.append(1)
        self.events.append(tensor + 1)
        return tensor

    def hold(self, tensor: int) -> int:
        """Add a holder and return the tensor."""
        self._holders[tensor] += 1
        return tensor

    def drop(self, tensor: int) -> None:
        """Take a holder away; without any the tensor goes."""
        self._holders[tensor] -= 1
        if not self._holders[tensor]:
            self.events.append(-tensor - 1)

    def arrays(self) -> tuple[Ints, Ints]:
        """Return events and sizes."""
        return np.array(self.events, np.int64), np.array(self.sizes, np.int64)


def lifetimes(
    plan: Plan,
    stage: int,
    order: Iterable[Sequence[int]],
    states: Sequence[float],
    here: Callable[[str], float],
    point: int = 0,
) -> Lifetimes:
    """Return the tensors of two steps on a device of a stage.

    Args:
        order: Passes of a step: 1 for backward, virtual stage, microbatch.
        states: Bytes of an element of each state of the optimizer in the device's own memory.
        here: Share of `weight` and `gradient` that is there.
        point: Design point.
    """
    return _Playing(plan, stage, here, point).run([tuple(p) for p in order], states)


@dataclass(slots=True)
class _Block:
    """What a block of one microbatch keeps: its input, and tensors by node and word."""

    given: int | None
    kept: dict[tuple[int, str], int]


class _Playing:
    def __init__(self, plan: Plan, stage: int, here: Callable[[str], float], point: int) -> None:
        self.plan, self.here, self.point = plan, here, point
        self.live = Lifetimes()
        self.tapes = {
            v: [plan.tapes[b] for b in plan.order if plan.tapes[b].stage == v]
            for v in range(stage, plan.virtual, plan.parallel.pp)
        }
        #: Of each virtual stage and microbatch in flight, from its first block to its last.
        self.flying: dict[tuple[int, int], list[_Block]] = {}

    def run(self, order: list[tuple[int, ...]], states: Sequence[float]) -> Lifetimes:
        """Return all tensors of two steps."""
        split = self.plan.parallel
        parts = [split.dp if split.zero >= stage else 1 for stage in (1, 2, 3)]
        every = [tape for tapes in self.tapes.values() for tape in tapes]
        for tape in every:
            self.live.come(self.here("weight") * self._weights(tape) / parts[2])
        for tape in every:
            self.live.come(self.here("gradient") * self._summed(tape) / parts[1])
        for step in range(2):
            for back, virtual, micro in order:
                (self._backward if back else self._forward)(virtual, micro)
            for tape in every if step == 0 else ():
                for size in states:
                    self.live.come(size * self._trained(tape) / parts[0])
        return self.live

    # -- sizes -------------------------------------------------------------------------------

    def _at(self, number: Number) -> float:
        values = np.atleast_1d(number)
        return float(values[min(self.point, values.size - 1)])

    def _weights(self, tape: Tape) -> float:
        """Return the bytes of a block's weights; an embedding has what no other block has."""
        if not tape.name.startswith("embed"):
            return sum(self._at(n["weight"] + n["expert"]) for n in tape.nodes)
        others = [n for t in self.tapes[tape.stage] if t is not tape for n in t.nodes]
        # Adapters are not among the model's weights.
        known = [self._at(n["weight"] + n["expert"]) for n in others if "adapter" not in n.labels]
        return max(self._at(self.plan.weights[tape.stage]) - sum(known), 0.0)

    def _trained(self, tape: Tape) -> float:
        """Return the elements of a block that are trained."""
        if tape.recipe.adapter is not None:
            return self._at(adapter_elements(tape))
        share = self.plan.trained[tape.stage] / np.maximum(self.plan.weights[tape.stage], 1.0)
        return self._weights(tape) * self._at(share)

    def _summed(self, tape: Tape) -> float:
        """Return the bytes of a block's gradients."""
        return self._trained(tape) * self.plan.recipe.gradient

    # -- passes ------------------------------------------------------------------------------

    def _forward(self, virtual: int, micro: int) -> None:
        blocks: list[_Block] = []
        given: int | None = None
        for tape in self.tapes[virtual]:
            whole = self._whole(tape)
            if given is None and self._at(tape.given) > 0.0:
                given = self.live.come(self._at(tape.given))
            keys = self._keys(tape, self.plan.mode)
            out, kept = self._nodes(tape, given, keys)
            blocks.append(_Block(given if (GIVEN, "") in keys else None, kept))
            if given is not None and (GIVEN, "") not in keys:
                self.live.drop(given)
            given = out
            self._drop(whole)
        if given is not None:
            self.live.drop(given)
        self.flying[virtual, micro] = blocks

    def _backward(self, virtual: int, micro: int) -> None:
        gradient: int | None = None
        pairs = zip(self.tapes[virtual], self.flying.pop((virtual, micro)), strict=True)
        for tape, block in reversed(list(pairs)):
            if gradient is None and not tape.name.startswith("head"):
                gradient = self.live.come(self._at(tape.size(len(tape.nodes) - 1)))
            whole = self._whole(tape)
            if self._splits(2):
                whole.append(self.live.come(self._summed(tape)))
            if self.plan.mode != "none":
                self._again(tape, block)
            gradient = self._gradients(tape, block, gradient)
            self._drop(block.kept.values())
            if block.given is not None:
                self.live.drop(block.given)
            self._drop(whole)
        if gradient is not None:
            self.live.drop(gradient)

    def _splits(self, stage: int) -> bool:
        return self.plan.parallel.zero >= stage and self.plan.parallel.dp > 1

    def _whole(self, tape: Tape) -> list[int]:
        """Return the gathered weights of a block of which a device has a part."""
        return [self.live.come(self._weights(tape))] if self._splits(3) else []

    def _drop(self, tensors: Iterable[int]) -> None:
        for tensor in tensors:
            self.live.drop(tensor)

    # -- one block ---------------------------------------------------------------------------

    def _keys(self, tape: Tape, mode: str) -> dict[tuple[int, str], float]:
        """Return what a block keeps by node and word, as `Tape.kept` counts it."""
        if mode in ("full", "dense") and tape.is_layer:
            chosen: dict[tuple[int, str], Number] = {(GIVEN, ""): tape.given}
            for i, node in enumerate(tape.nodes):
                if mode == "dense" and node.kind == "context":
                    chosen |= {key: size for key, size in node.keeps.items() if key[0] == i}
        else:
            chosen = {}
            for node in tape.nodes:
                inside = mode == "selective" and again(node)
                chosen |= {k: s for k, s in node.keeps.items() if not inside or k[1] == "qkv"}
        whole = {node for node, word in chosen if not word}
        return {
            key: self._at(size)
            for key, size in chosen.items()
            if key[1] != "qkv" or key[0] not in whole
        }

    def _nodes(
        self, tape: Tape, given: int | None, keys: dict[tuple[int, str], float]
    ) -> tuple[int | None, dict[tuple[int, str], int]]:
        """Run a block forward; return its result and what it keeps beside its input."""
        live, unseen = self.live, self._unseen(tape)
        made: dict[int, int] = {} if given is None else {GIVEN: live.hold(given)}
        left = {i: len(set(readers)) for i, readers in tape.users().items()}
        kept: dict[tuple[int, str], int] = {}
        last = len(tape.nodes) - 1
        for i, node in enumerate(tape.nodes):
            view = self._is_view(node) and node.inputs[0] in made
            size = 0.0 if i in unseen else self._at(tape.size(i))
            made[i] = live.hold(made[node.inputs[0]]) if view else live.come(size)
            if (i, "") in keys:
                kept[i, ""] = live.hold(made[i])
            for key in node.keeps:
                if key[1] and key in keys and key not in kept:
                    whole = key[1] == "qkv" and keys[key] == self._at(tape.size(key[0]))
                    kept[key] = live.hold(made[key[0]]) if whole else live.come(keys[key])
            for read in set(node.inputs):
                left[read] -= 1
                if not left[read] and read in made:
                    live.drop(made.pop(read))
            if i != last and not left.get(i):
                live.drop(made.pop(i))
        out = made.pop(last, None)
        self._drop(made.values())
        return out, kept

    def _is_view(self, node: Node) -> bool:
        """Return whether a result takes no room of its own."""
        return node.kind in ("enter", "all_reduce") and not self.plan.recipe.splits

    def _unseen(self, tape: Tape) -> set[int]:
        """Return the nodes whose results are never there as a whole.

        These are the scores inside one kernel of attention, and logits of a chunked loss.
        """
        recipe, nodes = self.plan.recipe, range(len(tape.nodes))
        scores = {i for i in nodes if tape.nodes[i].kind in ("score", "softmax")}
        unseen = scores if recipe.fused else set()
        if recipe.chunked and tape.name.startswith("head"):
            unseen |= set(nodes[next(i for i in nodes if tape.nodes[i].name == "lm_head") :])
        return unseen

    def _again(self, tape: Tape, block: _Block) -> None:
        """Make what a block that kept less needs to run backward."""
        whole = self._keys(tape, "none")
        if self.plan.mode == "full" and tape.is_layer:
            out, block.kept = self._nodes(tape, block.given, whole)
            if out is not None:
                self.live.drop(out)
            return
        for key, size in whole.items():
            if key not in block.kept and key != (GIVEN, ""):
                block.kept[key] = self.live.come(size)

    def _gradients(self, tape: Tape, block: _Block, given: int | None) -> int | None:
        """Run a block backward; return the gradient of its input."""
        live, last, unseen = self.live, len(tape.nodes) - 1, self._unseen(tape)
        gradients: dict[int, int] = {} if given is None else {last: given}
        first = {key: i for i in range(last, -1, -1) for key in tape.nodes[i].keeps}
        for i in range(last, -1, -1):
            node = tape.nodes[i]
            for read in dict.fromkeys(node.inputs):
                if read in gradients:
                    continue
                view = self._is_view(node) and i in gradients
                size = 0.0 if read in unseen else self._at(tape.size(read))
                gradients[read] = live.hold(gradients[i]) if view else live.come(size)
            if i in gradients:
                live.drop(gradients.pop(i))
            for key in [key for key in block.kept if first[key] == i]:
                live.drop(block.kept.pop(key))
        out = gradients.pop(GIVEN, None)
        self._drop(gradients.values())
        return out
