"""What can be calibrated: operator classes, their parameters, and how far each may move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from opbyte.core.errors import ConfigError
from opbyte.core.mapping import Mapping as SoftwareMapping
from opbyte.core.ops import Array
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.gpu.parameters import GpuView
from opbyte.hw_models.machine import Machine

__all__ = ["CLASSES", "KINDS", "OperatorClass"]

_COLLECTIVES = "collectives"
#: Exponents of norms: below 1 two things together would take longer than one after the other.
_AT_LEAST_ONE = ("kernel.overlap", "kernel.attention.pairing")
_EXAMPLE = "a100-sxm-80gb"


@dataclass(frozen=True)
class OperatorClass:
    """Operators that share parameters.

    Attributes:
        kinds: Kinds of works that are its measured rows.
        block: Block that holds its parameters, of the GPU's unit or of the link between devices.
        spread: Parameter -> standard deviation of its logarithm that its sources leave. Names are
            relative to the unit or link; `launch` is the gap between kernels that the machine's
            mapping takes, a unit's `efficiency` that of its memory's port.
        band: Field by which errors are reported, and the upper ends of its bands.
    """

    name: str
    kinds: tuple[str, ...]
    block: str
    spread: Mapping[str, float]
    band: str
    ends: tuple[float, ...]

    @property
    def on_link(self) -> bool:
        """Return whether the parameters are a link's."""
        return self.block == _COLLECTIVES

    def paths(self, machine: Machine) -> dict[str, str]:
        """Return the short path of each parameter.

        Raises:
            ConfigError: If the machine has no such block.
            UncoveredError: If the unit lacks what kernels need beside their block.
        """
        if self.on_link:
            link = _link(machine)
            return {key: f"{link}.{key}" for key in self.spread}
        view = self._view(machine)
        special = {
            "launch": f"{view.unit.path}.launch.{machine.mapping().launch}",
            "efficiency": f"{view.home}.efficiency",
        }
        return {key: special.get(key, f"{view.unit.path}.{key}") for key in self.spread}

    def energy_path(self, machine: Machine) -> str | None:
        """Return the short path of the energy that the operands draw, None where it plays no part.

        Raises:
            ConfigError: If the machine has no such block.
        """
        if self.on_link:
            return None
        path = f"{self._view(machine).unit.path}.kernel.energy"
        return path if path in machine.values else None

    def mapping(self, machine: Machine, benchmark: str = "") -> SoftwareMapping | None:
        """Return the mapping that rows are priced with, None for the machine's own of their kind.

        Args:
            benchmark: Mapping that they were measured under, where the machine has it.

        Parameters of collectives are the library's, also where the machine's mapping gives small
        all-reduces to kernels of the serving software.
        """
        if not self.on_link:
            known = benchmark in machine.config.mappings
            return machine.mapping(benchmark) if known else None
        return machine.mapping().model_copy(update={"all_reduce": "library"})

    def least(self) -> Array:
        """Return the smallest value of each parameter, (parameters,)."""
        return np.array([1.0 if key in _AT_LEAST_ONE else 0.0 for key in self.spread])

    def _view(self, machine: Machine) -> GpuView:
        inner = self.block.partition(".")[2]
        without = []
        for path, unit in machine.units.items():
            kernel = unit.config.kernel
            if kernel is None:
                continue
            if inner and getattr(kernel, inner) is None:
                without.append(path)
                continue
            view = GpuView.of(UnitView(machine, path))
            if view is not None:
                return view
        what = f"'{without[0]}' of" if without else "no unit of"
        verb = "has no" if without else "has a"
        raise ConfigError.one(
            machine.document.name, "",
            f"{what} machine '{machine.name}' {verb} `{self.block}` block, which {self.name} need",
            "", f"give its gpu one, such as that of {_EXAMPLE}",
        )  # fmt: skip


def _link(machine: Machine) -> str:
    """Return the link between devices that has a library's collectives."""
    between = [n for n, link in machine.config.links.items() if link.ends[0] == link.ends[1]]
    for name in between:
        if machine.config.links[name].collectives is not None:
            return name
    what = f"link '{between[0]}' of" if between else "no link between devices of"
    verb = "has no" if between else "has a"
    raise ConfigError.one(
        machine.document.name, "",
        f"{what} machine '{machine.name}' {verb} `collectives` block, which collectives need", "",
        f"give it one, such as that of {_EXAMPLE}",
    )  # fmt: skip


def _named(block: str, spread: Mapping[str, float]) -> dict[str, float]:
    return {f"{block}.{name}": deviation for name, deviation in spread.items()}


#: In the order in which they are fitted: a later class stands on the parameters of an earlier one.
CLASSES = (
    OperatorClass(
        "products",
        ("gemm",),
        "kernel",
        _named(
            "kernel",
            {
                "matrix": 0.02, "fill": 0.5, "latency": 0.3, "epilogue": 0.5, "split": 0.5,
                "l2": 0.08, "l2_share": 0.7, "overlap": 0.5, "tail": 0.7,
            },
        )
        | {"launch": 0.4, "efficiency": 0.12},
        "m",
        (1, 16, 64, 256, 1024),
    ),
    OperatorClass(
        "attention",
        ("attention_prefill", "attention_decode"),
        "kernel.attention",
        # `empty` matters only where a call mixes prompts and decode steps, which no row does.
        _named(
            "kernel.attention",
            {
                "softmax": 0.4, "pairing": 0.5, "start": 0.5, "turn": 0.5, "tail": 0.3,
                "small": 0.5, "copying": 0.5, "combine": 0.7, "write": 0.7,
            },
        ),
        "kv_tokens",
        (128, 1024, 8192),
    ),
    OperatorClass(
        "latent",
        ("mla_decode",),
        "kernel.latent",
        _named("kernel.latent", {"trip": 0.3, "start": 0.5, "single": 0.7}),
        "kv_tokens",
        (128, 1024, 8192),
    ),
    OperatorClass(
        "experts",
        ("moe",),
        "kernel.grouped",
        _named("kernel.grouped", {"matrix": 0.15, "gather": 0.6, "narrow": 0.2}),
        "tokens",
        (16, 128, 1024),
    ),
    OperatorClass(
        _COLLECTIVES,
        ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"),
        _COLLECTIVES,
        {"latency": 0.4, "efficiency": 0.12}
        | _named(
            _COLLECTIVES,
            {
                "call": 0.3, "crowd": 0.5, "ll": 0.15, "ll128_start": 0.5, "ll128_step": 0.5,
                "ll128": 0.15, "simple_start": 0.7, "simple_step": 0.5, "own_copy": 0.5,
            },
        ),
        "bytes",
        (2**16, 2**20, 2**24),
    ),
)  # fmt: skip


#: Kinds of works whose measured rows can be fitted.
KINDS = tuple(kind for operators in CLASSES for kind in operators.kinds)
