"""How a model is split over devices."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Parallel:
    """Degrees of parallelism of one group of identical devices.

    Attributes:
        tp: Tensor parallel: every matrix is split, two collectives per layer.
        pp: Pipeline parallel: layers are split into stages.
        ep: Expert parallel: routed experts are split, two all-to-alls per MoE layer.
        dp: Data parallel: the batch is split over replicas of the weights.
        microbatches: Pieces that a batch is cut into for the pipeline.
        dispatch: Experts that are split over devices are sent their tokens. Without it the devices
            of a tensor-parallel group, which all have the tokens, compute their own experts, and
            the sum over devices that follows adds them up; replicas exchange tokens all the same.
        expert_tp: Devices over which each routed expert is split; 0 for tp / ep, at least 1.
        sequence: In training, what tensor parallelism leaves whole is split over tokens.
        interleave: In training, chunks of layers that each stage of the pipeline has.
        zero: In training, ZeRO stage: what replicas split of optimizer (1), gradients (2) and
            weights (3).
    """

    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp: int = 1
    microbatches: int = 1
    dispatch: bool = True
    expert_tp: int = 0
    sequence: bool = False
    interleave: int = 1
    zero: int = 0

    @property
    def devices(self) -> int:
        """Return the devices that one copy of everything takes: tp * pp * dp.

        Expert parallelism reuses these devices: `ep` divides tp * dp.
        """
        return self.tp * self.pp * self.dp
