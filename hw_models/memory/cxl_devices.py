"""CXL memory expanders as data: link, steps of a request, DRAM behind. Files of kind `cxl`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from opbyte.core.blocks import Block
from opbyte.core.catalog import Catalog
from opbyte.core.config import load_document, validate
from opbyte.core.errors import ConfigError
from opbyte.core.parameters import Bytes, BytesPerSecond, Parameter, Seconds
from opbyte.hw_models.memory.cxl_flits import FLITS, GENERATIONS, LANES
from opbyte.hw_models.memory.rates import Access, standard_called, with_ranks
from opbyte.hw_models.memory.standards import Standard

__all__ = ["CATALOG", "CxlDevice", "cxl_names", "load_cxl"]

CATALOG = Catalog("CXL device", Path(__file__).parents[1] / "catalog" / "cxl")
_MODEL = "CXL-DMSim (arXiv 2411.02282), simulator sources, which its authors set by silicon"


class CxlLink(Block):
    """Lanes and flits between host and device."""

    generation: int
    """PCIe generation: 4, 5 or 6."""
    lanes: int
    flit: int = 68
    """Bytes of a flit: 68 (CXL 1.1 and 2.0) or 256 (CXL 3)."""

    @model_validator(mode="after")
    def _exists(self) -> Self:
        for name, known in (("generation", GENERATIONS), ("lanes", LANES), ("flit", FLITS)):
            if getattr(self, name) not in known:
                text = ", ".join(map(str, known))
                raise ValueError(f"`{name}` must be one of {text}; got {getattr(self, name)}")
        if self.generation == 6 and self.flit == 68:
            raise ValueError("PCIe 6 sends flits of 256 B. set `flit: 256`, or generation 5")
        return self


class CxlSteps(Block):
    """What a request passes on its way. Steps of one way count twice: there and back."""

    host_bridge: Seconds = Parameter(50e-9, "seconds", f"assumed: {_MODEL}; Intel", (25e-9, 60e-9))
    """One way: from the processor's mesh through the root port."""
    host_protocol: Seconds = Parameter(12e-9, "seconds", f"assumed: {_MODEL}", (8e-9, 16e-9))
    """One way: the host packs messages into flits, or unpacks them."""
    device_protocol: Seconds = Parameter(
        15e-9, "seconds", f"assumed: {_MODEL}, an ASIC (an FPGA: 60 ns)", (10e-9, 60e-9)
    )
    """One way: the device does."""
    controller: Seconds = Parameter(
        10e-9, "seconds", "assumed: as a processor's memory controller", (5e-9, 20e-9)
    )
    """There and back: the device's memory controller, without commands and data of the DRAM."""
    encryption: Seconds = Parameter(0.0, "seconds", "without link encryption")
    """There and back: link encryption (IDE)."""
    switch: Seconds | None = None
    """One way through one switch; needed where there are switches."""
    switches: NonNegativeInt = 0
    """Switches between host and device."""

    @model_validator(mode="after")
    def _switched(self) -> Self:
        if self.switches and self.switch is None:
            raise ValueError("`switches` need the latency of one, `switch`. give it")
        return self

    def named(self) -> dict[str, float]:
        """Return the seconds of each step of one access, there and back."""
        both = {
            "host bridge": self.host_bridge.value,
            "host protocol": self.host_protocol.value,
            "device protocol": self.device_protocol.value,
            "switches": self.switches * (self.switch.value if self.switch else 0.0),
        }
        once = {"controller": self.controller.value, "encryption": self.encryption.value}
        return {name: 2.0 * x for name, x in both.items()} | once

    def range(self) -> tuple[float, float]:
        """Return the least and the most that all steps take, seconds."""
        ends = [0.0, 0.0]
        for parameter, times in self.parameters():
            low, high = parameter.range or (parameter.value, parameter.value)
            ends[0] += times * low
            ends[1] += times * high
        return ends[0], ends[1]

    def parameters(self) -> list[tuple[Parameter, float]]:
        """Return each step's parameter with how often an access passes it."""
        ways = [(self.host_bridge, 2.0), (self.host_protocol, 2.0), (self.device_protocol, 2.0)]
        if self.switch is not None and self.switches:
            ways.append((self.switch, 2.0 * self.switches))
        return [*ways, (self.controller, 1.0), (self.encryption, 1.0)]


class CxlDram(Block):
    """What is behind the controller."""

    technology: str
    """A DRAM of the catalog: the command kernel knows its channels."""
    channels: PositiveInt
    """Channels of that technology; a DDR5 DIMM has two of 32 bits."""
    ranks: PositiveInt | None = None
    """Ranks on a channel, a power of two; by default those of the technology."""
    access: Access = Access()
    """Traffic and controller."""
    source: str | None = None

    @property
    def standard(self) -> Standard:
        """Return the command timing."""
        found = with_ranks(self.technology, self.ranks)
        assert found is not None, "checked before"
        return found

    @model_validator(mode="after")
    def _known(self) -> Self:
        if standard_called(self.technology) is None:
            raise ValueError(
                f"`technology` must be a DRAM of `opbyte list memories`, got {self.technology}"
            )
        with_ranks(self.technology, self.ranks)
        return self


class CxlDevice(Block):
    """A memory expander (Type 3)."""

    kind: Literal["cxl"]
    name: str = ""
    description: str
    source: str
    link: CxlLink
    steps: CxlSteps = CxlSteps()
    dram: CxlDram
    capacity: Bytes
    rate: BytesPerSecond | None = None
    """Most that the controller passes; without it link and DRAM decide."""
    tags: int = Field(128, ge=1)
    """Lines that the host's port keeps outstanding (CXL-DMSim: 128 entries)."""

    @model_validator(mode="after")
    def _is_there(self) -> Self:
        for name in ("capacity", "rate"):
            given = getattr(self, name)
            if given is not None and not given.value:
                raise ValueError(f"`{name}` must be above 0; got 0. give what the device has")
        return self


def cxl_names() -> list[str]:
    """Return the names of the catalog's devices."""
    return CATALOG.names()


def load_cxl(name_or_path: str | os.PathLike[str], **changes: Any) -> CxlDevice:
    """Return a device of the catalog or of a file.

    Args:
        name_or_path: Catalog name, such as `cxl-asic-x8`, or a file of kind `cxl`.
        changes: Other values than the file's, as the file would write them: `link={"lanes": 16}`
            (fields that are not named stay).

    Raises:
        ConfigError: If there is no such device, with the nearest, or a value breaks a rule.
    """
    path = CATALOG.find(name_or_path)
    document = load_document(path, find=CATALOG.path)
    data = changed(str(name_or_path), dict(document.data), changes)
    device = validate(CxlDevice, replace(document, data=data))
    return device.model_copy(update={"name": path.stem})


def changed(where: str, data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return what a file says with some fields replaced; fields inside blocks one by one.

    Raises:
        ConfigError: For a field that a device does not have.
    """
    for key, value in changes.items():
        if key not in CxlDevice.model_fields or key in ("kind", "name"):
            raise ConfigError.one(where, key, "is no field of a CXL device", value)
        old = data.get(key)
        data[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return data
