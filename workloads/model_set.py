"""Several models at once: whole ones of one architecture, or adapters over one base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from opbyte.core.dtypes import bytes_of, lookup
from opbyte.core.errors import WorkloadError
from opbyte.core.ops import Number
from opbyte.core.registry import lookup_error
from opbyte.workloads.model import Model
from opbyte.workloads.modules import Module, modules_of
from opbyte.workloads.numeric import checked

__all__ = ["Adapter", "ModelSet"]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A low-rank adapter (LoRA, arXiv 2106.09685): two thin matrices beside each target.

    A target of `inputs` by `outputs` gets `rank * (inputs + outputs)` elements; a target inside
    routed experts gets them in every expert.

    Attributes:
        rank: Width between the two matrices.
        targets: Names of matrices as checkpoints have them (`q_proj`, `down_proj`), without
            their layer; `all` for all of a layer's.
        dtype: Storage.
    """

    rank: int
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dtype: str = "bf16"

    def __post_init__(self) -> None:
        """Check rank, targets and dtype.

        Raises:
            WorkloadError: If the rank is no whole number of at least one, or no target is named.
            ConfigError: If the dtype is unknown.
        """
        rank: object = self.rank
        targets: object = self.targets
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise WorkloadError(f"adapter: rank must be a whole number >= 1, got {rank!r}")
        if not isinstance(targets, tuple | list) or not targets:
            raise WorkloadError(f"adapter: targets must be a list of names, got {targets!r}")
        object.__setattr__(self, "targets", tuple(targets))
        lookup(self.dtype)

    def parameters(self, model: Model) -> int:
        """Return the elements of one adapter of a model.

        Raises:
            ConfigError: If the model has no matrix of a target's name; with the nearest.
        """
        inside = [module for module in modules_of(model) if module.layer >= 0]
        known = {name for module in inside for name in module.words[-1]}
        for target in self.targets:
            if target not in known | {"all"}:
                raise lookup_error(f"matrix of {model.name}", target, sorted(known | {"all"}))
        chosen = [module for module in inside if self.covers(module)]
        return sum(self.rank * (m.inputs + m.outputs) * m.copies for m in chosen)

    def covers(self, module: Module) -> bool:
        """Return whether a matrix of a layer is a target."""
        return "all" in self.targets or any(name in self.targets for name in module.words[-1])

    def weight_bytes(self, model: Model) -> float:
        """Return the bytes of one adapter of a model."""
        return bytes_of(self.dtype, float(self.parameters(model)))


@dataclass(frozen=True, slots=True)
class ModelSet:
    """`count` models that differ in their weights only, perhaps beside further sets.

    Attributes:
        model: Their architecture; with an adapter the base model, which is stored once.
        count: How many; one number for each design point is allowed.
        adapter: What each model adds to the base; None where each is a whole model.
        others: Further sets stored beside.
    """

    model: Model
    count: Number
    adapter: Adapter | None = None
    others: tuple[ModelSet, ...] = ()

    def __post_init__(self) -> None:
        """Check the count, and that the model has the adapter's targets.

        Raises:
            WorkloadError: If the count is not a whole number of at least one.
            ConfigError: If the adapter has a target that the model lacks.
        """
        object.__setattr__(self, "count", checked("model set", "count", self.count))
        if self.adapter is not None:
            self.adapter.parameters(self.model)

    @classmethod
    def of(cls, models: Sequence[tuple[Model, Number]]) -> ModelSet:
        """Return a set of several architectures, each with its count.

        Raises:
            WorkloadError: If there is none.
        """
        sets = [cls(model, count) for model, count in models]
        if not sets:
            raise WorkloadError("model set: at least one model is due")
        return replace(sets[0], others=tuple(sets[1:]))

    @property
    def parameters(self) -> Number:
        """Return the learned parameters of all models together, a shared base counted once."""
        own = self.model.parameters * self.count
        if self.adapter is not None:
            own = self.model.parameters + self.adapter.parameters(self.model) * self.count
        for other in self.others:
            own = own + other.parameters
        return own

    @property
    def bytes_per_model(self) -> float:
        """Return the bytes that one model of this set has for itself: what a switch moves."""
        if self.adapter is not None:
            return self.adapter.weight_bytes(self.model)
        return self.model.weight_bytes

    @property
    def shared_bytes(self) -> float:
        """Return the bytes that all models of this set share: the base under adapters, else 0."""
        return self.model.weight_bytes if self.adapter is not None else 0.0

    @property
    def weight_bytes(self) -> Number:
        """Return the bytes of all models' weights as stored, the other sets' included."""
        total = self.shared_bytes + self.bytes_per_model * self.count
        for other in self.others:
            total = total + other.weight_bytes
        return total
