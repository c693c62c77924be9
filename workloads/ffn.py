"""Feed-forward parts: dense, and mixtures of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DenseFfn:
    """Feed-forward network of two matrices (up, down) or three (gate, up, down).

    Attributes:
        bias: Biases on every matrix.
        sub_norm: A norm as wide as the network before the down projection (BitNet).
    """

    width: int
    matrices: Literal[2, 3] = 3
    bias: bool = False
    sub_norm: bool = False

    def matrix_parameters(self, hidden: int) -> int:
        """Return the elements of the matrices for a hidden size."""
        return self.matrices * hidden * self.width

    def vector_parameters(self, hidden: int) -> int:
        """Return the elements of biases and norms for a hidden size."""
        bias = self.bias * ((self.matrices - 1) * self.width + hidden)
        return bias + self.width * self.sub_norm

    def parameters(self, hidden: int) -> int:
        """Return the learned parameters for a hidden size."""
        return self.matrix_parameters(hidden) + self.vector_parameters(hidden)


@dataclass(frozen=True, slots=True)
class MoeFfn:
    """Routed experts, and shared ones that every token visits.

    Attributes:
        experts: Routed experts of one layer.
        top_k: Routed experts that one token visits.
        width: Width of one routed expert.
        matrices: Matrices of an expert and of the shared ones.
        shared_width: Total width of the shared experts, 0 for none.
        shared_gate: A learned scalar gate on the shared expert (Qwen2-MoE).
        router_bias: A learned value for each expert in the router.
        expert_bias: The experts' matrices have biases (gpt-oss).
        dense_width: Width of a dense FFN that runs beside the experts (Gemma 4), 0 for none.
        latent: Width of a compressed input that the routed experts see, 0 for the hidden size:
            one matrix down before, one up after, both run for every token.
        extra: Further vector elements that no operator of ours carries.
    """

    experts: int
    top_k: int
    width: int
    matrices: Literal[2, 3] = 3
    shared_width: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    dense_width: int = 0
    latent: int = 0
    extra: int = 0

    def _expert(self) -> DenseFfn:
        return DenseFfn(self.width, self.matrices, self.expert_bias)

    def expert_matrix_parameters(self, hidden: int) -> int:
        """Return the elements of one routed expert's matrices."""
        return self._expert().matrix_parameters(self.latent or hidden)

    def expert_parameters(self, hidden: int) -> int:
        """Return the learned parameters of one routed expert."""
        return self._expert().parameters(self.latent or hidden)

    def router_parameters(self, hidden: int) -> int:
        """Return the elements of the router, its bias and the shared expert's gate."""
        return hidden * self.experts + self.router_bias * self.experts + self.shared_gate * hidden

    def always_matrix_parameters(self, hidden: int) -> int:
        """Return the elements of matrices that every token reads, the router left out."""
        wide = self.matrices * hidden * (self.shared_width + self.dense_width)
        return wide + 2 * hidden * self.latent

    def _always(self, hidden: int) -> int:
        return self.router_parameters(hidden) + self.always_matrix_parameters(hidden) + self.extra

    def parameters(self, hidden: int) -> int:
        """Return the learned parameters for a hidden size."""
        return self._always(hidden) + self.experts * self.expert_parameters(hidden)

    def active_parameters(self, hidden: int) -> int:
        """Return the parameters that one token uses."""
        return self._always(hidden) + self.top_k * self.expert_parameters(hidden)


Ffn = DenseFfn | MoeFfn
