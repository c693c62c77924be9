"""In which number format each class of tensors is stored, and in which its matrices multiply."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from opbyte.core.dtypes import DTYPES, bytes_of, lookup
from opbyte.core.errors import Problem
from opbyte.core.problems import Problems
from opbyte.core.registry import lookup_error

TensorClass = Literal["attention", "ffn", "expert", "head", "other"]
TENSOR_CLASSES: tuple[TensorClass, ...] = get_args(TensorClass)
MATRIX_CLASSES: tuple[TensorClass, ...] = ("attention", "ffn", "expert", "head")


@dataclass(frozen=True, slots=True)
class Precision:
    """Storage of each tensor class, as dtype names of `opbyte.core.dtypes`.

    The classes of weights: `attention` (matrices of all mixers, Mamba and convolutions too), `ffn`
    (dense networks and shared experts), `expert` (routed experts), `head` (embedding tables and LM
    head) and `other` (norms, biases, routers, convolution taps), which is never quantised.

    Attributes:
        weight: Every class of matrices that has no type of its own.
        activation: Activations between operators, and the class `other`.
        kv: The KV cache.
        expert: Routed experts' weights; None for `weight`.
        head: Embedding and LM head; None for `weight`.
        attention: Weights of the mixers; None for `weight`.
        ffn: Dense networks and shared experts; None for `weight`.
        state: Recurrent state (Mamba, short convolutions); None for `activation`.
        operand: Type in which quantised matrices multiply (W8A8 checkpoints: "fp8"); None where
            weights are unpacked first and multiply in `activation` (W4A16).
        scales: (dtype, bits): bits per element for scales and zero points that a dtype does not
            count itself (int4 in groups of 128 with 16-bit scales: 0.125).
        mixed: (class, dtype, share): parts of a class that are stored otherwise, such as the
            layers that a checkpoint leaves unquantised.
    """

    weight: str = "bf16"
    activation: str = "bf16"
    kv: str = "bf16"
    expert: str | None = None
    head: str | None = None
    attention: str | None = None
    ffn: str | None = None
    state: str | None = None
    operand: str | None = None
    scales: tuple[tuple[str, float], ...] = ()
    mixed: tuple[tuple[TensorClass, str, float], ...] = ()

    def __post_init__(self) -> None:
        """Check every dtype name.

        Raises:
            ConfigError: If one is unknown; the message has the nearest.
        """
        names = [self.weight, self.activation, self.kv, self.expert, self.head, self.attention]
        names += [self.ffn, self.state, self.operand, *(dtype for _, dtype, _ in self.mixed)]
        for name in names:
            if name is not None and name not in DTYPES:
                lookup(name)

    def dtype(self, tensor_class: TensorClass) -> str:
        """Return the dtype of most of a class of weights."""
        if tensor_class == "other":
            return self.activation
        return getattr(self, _known(tensor_class)) or self.weight

    def weight_bytes(self, tensor_class: TensorClass, elements: float) -> float:
        """Return the bytes of `elements` weights of a class as stored, scales included."""
        total, rest = 0.0, 1.0
        for name, dtype, share in self.mixed:
            if name == tensor_class:
                total += self._stored(dtype, elements * share)
                rest -= share
        return total + self._stored(self.dtype(tensor_class), elements * max(rest, 0.0))

    def _stored(self, dtype: str, elements: float) -> float:
        scale_bits = sum(bits for name, bits in self.scales if name == dtype)
        return bytes_of(dtype, elements) + elements * scale_bits / 8.0

    def compute(self, tensor_class: TensorClass) -> str:
        """Return the dtype in which the matrices of a class multiply."""
        stored = self.dtype(tensor_class)
        if lookup(stored).bits >= lookup(self.activation).bits:
            return self.activation
        return self.operand or self.activation

    @property
    def state_dtype(self) -> str:
        """Return the dtype of recurrent state."""
        return self.state or self.activation

    def override(self, **dtypes: str | None) -> Precision:
        """Return a copy with other dtypes, such as `weight="int4", kv="fp8"`.

        `weight` replaces all classes of matrices at once, save those that are named beside it,
        and drops what a checkpoint said of scales, operands and mixtures.

        Raises:
            ConfigError: With every class and dtype that is unknown.
        """
        known = ["weight", "activation", "kv", "expert", "head", "attention", "ffn", "state"]
        problems = Problems()
        for key, dtype in dtypes.items():
            problems.add(replace(p, path=key) for p in _wrong_type(key, dtype, known))
        problems.tell()
        values = {name: getattr(self, name) for name in (*known, "operand")}
        scales, mixed = self.scales, self.mixed
        if "weight" in dtypes:
            values.update(dict.fromkeys(("expert", "head", "attention", "ffn", "operand")))
            scales, mixed = (), ()
        values.update({key: dtype and lookup(dtype).name for key, dtype in dtypes.items()})
        mixed = tuple(part for part in mixed if part[0] not in dtypes)
        return Precision(**values, scales=scales, mixed=mixed)


def _wrong_type(key: str, dtype: object, known: list[str]) -> tuple[Problem, ...]:
    """Return what is wrong with an entry of tensor class and dtype."""
    if key not in (*known, "operand"):
        return lookup_error("tensor class", key, [*known, "operand"]).problems
    if dtype is None and key not in ("weight", "activation", "kv"):
        return ()
    if not isinstance(dtype, str):
        return (Problem("", "", "a dtype is due", dtype, "Write bf16, for example."),)
    problems = Problems()
    with problems.keep():
        lookup(dtype)
    return tuple(problems)


def _known(tensor_class: str) -> str:
    if tensor_class not in TENSOR_CLASSES:
        raise lookup_error("tensor class", tensor_class, TENSOR_CLASSES)
    return tensor_class
