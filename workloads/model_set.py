"""Several models of one architecture: same sizes, different weights."""

from __future__ import annotations

from dataclasses import dataclass

from opbyte.core.ops import Number
from opbyte.workloads.model import Model
from opbyte.workloads.numeric import checked


@dataclass(frozen=True, slots=True)
class ModelSet:
    """`count` models that differ in their weights only.

    Attributes:
        model: Their architecture.
        count: How many; one number for each design point is allowed.
    """

    model: Model
    count: Number

    def __post_init__(self) -> None:
        """Check the count.

        Raises:
            WorkloadError: If it is not a whole number of at least one.
        """
        object.__setattr__(self, "count", checked("model set", "count", self.count))

    @property
    def parameters(self) -> Number:
        """Return the learned parameters of all models together."""
        return self.model.parameters * self.count

    @property
    def weight_bytes(self) -> Number:
        """Return the bytes of all models' weights as stored."""
        return self.model.weight_bytes * self.count
