"""Rates of a memory's ports, from the command timing of its technology.

At the pins, C channels of peak rate p deliver a share e of it, which the DRAM command kernel finds
(`opbyte.hw_models.memory.rates`):

    bandwidth = C p        efficiency = e

A bandwidth that is given stands for another command clock: all times scale alike and e stays. An
efficiency that is given stands, as where it was measured with more around the DRAM than DRAM.
Ports inside the stack read banks side by side (`opbyte.hw_models.stack`); what their `stack` does
not give, the technology does.

A memory of kind `flash` whose technology is a flash device takes its rates from the page kernel
(`opbyte.hw_models.memory.flash_rates`): its port to the host, and one named `inside` at the
channels, which no link limits.

A memory of kind `cxl` is an expander with its link (`opbyte.hw_models.memory.cxl`): of its one port

    bandwidth = min(link's payload, peak of the DRAM, controller)
    efficiency = what the slowest of them sustains / bandwidth        latency = sum of the steps
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opbyte.core.catalog import SUFFIXES
from opbyte.core.errors import OpbyteError
from opbyte.core.parameters import Parameter
from opbyte.hw_models.memory.cxl import Cxl
from opbyte.hw_models.memory.cxl_devices import CATALOG as CXL
from opbyte.hw_models.memory.cxl_devices import load_cxl
from opbyte.hw_models.memory.flash_rates import device_called, inside_of, peak, stream_rate
from opbyte.hw_models.memory.rates import DEFAULT, Access, refresh_share, share, with_ranks
from opbyte.hw_models.stack import Stack

if TYPE_CHECKING:
    from opbyte.hw_models.machine_file import Memory, Port
    from opbyte.hw_models.memory.flash_devices import FlashDevice
    from opbyte.hw_models.memory.standards import Standard

__all__ = ["INSIDE", "expander_of", "flash_of", "pins_of", "standard_of", "with_rates"]

#: Port of a flash memory at its channels, behind the controller's link to the host.
INSIDE = "inside"
#: Of the payload of full header slots, what one header in each of them leaves: 4.5 slots of 5.
ONE_HEADER = 0.9


def standard_of(memory: Memory) -> Standard | None:
    """Return the command timing of a memory's technology, None where none is known."""
    if memory.kind != "dram" or memory.technology is None:
        return None
    return with_ranks(memory.technology, memory.ranks)


def flash_of(memory: Memory, port: str | None = None) -> FlashDevice | None:
    """Return the flash device of a memory's technology, None where none is known.

    Args:
        port: Of that port: `inside` has no link.
    """
    if memory.kind != "flash" or memory.technology is None:
        return None
    device = device_called(memory.technology)
    return inside_of(device) if device is not None and port == INSIDE else device


def expander_of(memory: Memory) -> Cxl | None:
    """Return the CXL expander of a memory, with its changes; None where none is known.

    Raises:
        ConfigError: If the changes break a rule.
    """
    if memory.kind != "cxl" or memory.technology is None:
        return None
    if memory.technology not in CXL.names() and not memory.technology.endswith(SUFFIXES):
        return None
    device = load_cxl(memory.technology, **memory.expander)
    if memory.access is not None:
        access = memory.access.model_copy(update={"port": None, "interleave": None})
        device = device.model_copy(
            update={"dram": device.dram.model_copy(update={"access": access})}
        )
    return Cxl(device)


def pins_of(memory: Memory) -> str | None:
    """Return the port at the pins: `access.port`, or the only port without a `stream`."""
    if memory.access is not None and memory.access.port is not None:
        return memory.access.port
    outside = [name for name, port in memory.ports.items() if port.stream is None]
    return outside[0] if len(outside) == 1 else None


def with_rates(memory: Memory) -> Memory:
    """Return a memory whose ports have the rates that follow from its command timing.

    Raises:
        ValueError: If timing is needed that no technology of that name has.
    """
    if memory.expander and memory.kind != "cxl":
        raise ValueError("`expander` changes a memory of `kind: cxl`. leave it out")
    if memory.kind == "cxl":
        return _with_cxl_rates(memory)
    if memory.ranks is not None and (memory.kind != "dram" or memory.technology is None):
        raise ValueError("`ranks` are those of a DRAM `technology`. leave them out, or give one")
    flash = flash_of(memory)
    if flash is not None:
        return _with_flash_rates(memory, flash)
    standard = standard_of(memory)
    if standard is None and (memory.channels is not None or memory.access is not None):
        raise ValueError(
            f"`channels` and `access` need a DRAM `technology` whose command timing is known, got "
            f"{memory.technology}. give one of `opbyte list memories`"
        )
    ports: dict[str, Port] = {**memory.ports, **_inside(memory, standard)}
    pins = pins_of(memory)
    if pins is not None and (pins not in ports or ports[pins].stream is not None):
        known = ", ".join(n for n, p in ports.items() if p.stream is None) or "none"
        raise ValueError(f"`access.port` must be a port without a `stream`: {known}; got {pins}")
    if pins is None and memory.channels is not None and any(not p.stream for p in ports.values()):
        raise ValueError("several ports could be at the pins of `channels`. name `access.port`")
    if standard is not None and pins is not None:
        ports[pins] = ports[pins].model_copy(update=_at_pins(memory, ports[pins], standard))
    return memory.model_copy(update={"ports": ports})


def _with_flash_rates(memory: Memory, device: FlashDevice) -> Memory:
    access = memory.access or DEFAULT
    if memory.channels is not None or memory.stack is not None:
        raise ValueError(f"`channels` and `stack` are of DRAM: {device.name} has channels itself")
    if access.model_copy(update={"port": None, "source": None}) != DEFAULT:
        raise ValueError(f"of `access` only `port` and `source` are for flash ({device.name})")
    if memory.capacity.value > device.capacity_bytes:
        raise ValueError(
            f"`capacity` {memory.capacity} is more than the {device.capacity_bytes / 1e9:.6g} GB "
            f"of {device.name}"
        )
    host = access.port
    outside = [n for n, p in memory.ports.items() if p.stream is None and n != INSIDE]
    if host is None and len(outside) == 1:
        host = outside[0]
    if host is not None and host not in outside:
        raise ValueError(f"`access.port` must be one of {', '.join(outside) or 'none'}; got {host}")
    ports = dict(memory.ports)
    for name in (host, INSIDE):
        if name is not None and name in ports:
            own = inside_of(device) if name == INSIDE else device
            ports[name] = ports[name].model_copy(update=_at_flash(ports[name], own))
    return memory.model_copy(update={"ports": ports})


def _with_cxl_rates(memory: Memory) -> Memory:
    own = (memory.channels, memory.ranks, memory.stack)
    if any(value is not None for value in own) or len(memory.ports) != 1:
        raise ValueError(
            "a memory of `kind: cxl` has one port, to its link, and no `stack`; `channels` and "
            "`ranks` are those of `expander: {dram: {...}}`"
        )
    try:
        expander = expander_of(memory)
    except OpbyteError as error:
        raise ValueError(str(error)) from None
    if expander is None:
        known = ", ".join(CXL.names())
        raise ValueError(
            f"`technology` must be a CXL device, got {memory.technology}. Known: {known}"
        )
    if memory.capacity.value > expander.device.capacity.value:
        raise ValueError(
            f"`capacity` {memory.capacity} is more than the {expander.device.capacity} of "
            f"{expander.device.name}. change `expander: {{capacity: ...}}`"
        )
    ((name, port),) = memory.ports.items()
    return memory.model_copy(
        update={"ports": {name: port.model_copy(update=_at_cxl(port, expander))}}
    )


def _at_cxl(port: Port, expander: Cxl) -> dict[str, Any]:
    """Return bandwidth, efficiency and latency of an expander, as far as they are not given."""
    device, access = expander.device, expander.device.dram.access
    link, dram, reads = device.link, device.dram, access.read_pct
    peaks = {**expander.limits(reads), "dram": dram.channels * dram.standard.peak_bytes_per_s}
    peak = min(peaks.values())
    part = min(1.0, expander.peak_bytes_per_s(reads) / peak)
    found: dict[str, Any] = {}
    wires = f"PCIe {link.generation} x{link.lanes}, flits of {link.flit} B"
    if port.bandwidth is None:
        behind = f"{dram.channels} channels of {dram.technology}"
        text = f"CXL specification 3.0, section 4.2: {wires}, {behind}; {device.source}"
        found["bandwidth"] = Parameter(peak, "bytes_per_s", text)
    if port.efficiency is None:
        text = f"assumed: header slots are filled, controller of {device.name}; {reads} % reads"
        least = min(part, ONE_HEADER * peaks["link"] / peak)
        found["efficiency"] = Parameter(part, "ratio", text, (least, 1.0))
    if port.latency is None:
        steps = ", ".join(f"{k} {v * 1e9:.3g} ns" for k, v in expander.steps_s.items() if v)
        rest = expander.idle_latency_s - sum(device.steps.named().values())
        ends = device.steps.range()
        texts = [p.source or "" for p, _ in device.steps.parameters()]
        word = "assumed: " if any(t.startswith(("assumed", "recalled")) for t in texts) else ""
        word = "calibrated: " if any(t.startswith("calibrated") for t in texts) else word
        text = f"{word}{steps}; {device.source}"
        found["latency"] = Parameter(
            expander.idle_latency_s, "seconds", text, (ends[0] + rest, ends[1] + rest)
        )
    return found


def _at_flash(port: Port, device: FlashDevice) -> dict[str, Any]:
    """Return bandwidth, efficiency and latency of a flash port, as far as they are not given."""
    found: dict[str, Any] = {}
    if port.bandwidth is None:
        text = f"{device.source}; the slower of channels and link"
        found["bandwidth"] = Parameter(peak(device), "bytes_per_s", text)
    if port.efficiency is None:
        part = min(1.0, stream_rate(device) / peak(device))
        text = f"assumed: a stream of long reads, page kernel of {device.name}; at most all of it"
        found["efficiency"] = Parameter(part, "ratio", text, (part, 1.0))
    if port.latency is None:
        host = device.host
        first = device.read.value + host.command.value + host.firmware.value
        text = f"{device.source}; array read, firmware and the host's command"
        found["latency"] = Parameter(first, "seconds", text)
    return found


def _inside(memory: Memory, standard: Standard | None) -> dict[str, Port]:
    """Return the ports with a `stream`, with the rates that follow from the stack's clocks."""
    streams = {n: (p, p.stream) for n, p in memory.ports.items() if p.stream is not None}
    if not streams:
        return {}
    if memory.stack is None and (standard is None or memory.channels is None):
        raise ValueError(
            f"port '{next(iter(streams))}' has a `stream`, which needs a `stack`. give one, or "
            "`channels` of a technology"
        )
    stack = (memory.stack or Stack()).completed(standard, memory.channels)
    return {
        name: port.model_copy(
            update={
                "bandwidth": port.bandwidth or stream.rate(stack),
                "efficiency": port.efficiency or stream.efficiency(stack),
            }
        )
        for name, (port, stream) in streams.items()
    }


def _at_pins(memory: Memory, port: Port, standard: Standard) -> dict[str, Any]:
    """Return bandwidth and efficiency of the port at the pins, as far as they are not given."""
    found: dict[str, Any] = {}
    if port.bandwidth is None and memory.channels is not None:
        clock = 1.0 if memory.stack is None else memory.stack.speed(standard)
        text = f"{standard.source}; {memory.channels} channels of {standard.title}"
        rate = memory.channels * standard.peak_bytes_per_s * clock
        found["bandwidth"] = Parameter(rate, "bytes_per_s", text)
    if port.efficiency is None and (port.bandwidth is not None or found):
        access = memory.access or DEFAULT
        part = share(standard, access)
        most = max(part, refresh_share(standard, access))
        found["efficiency"] = Parameter(part, "ratio", _computed(standard, access), (part, most))
    return found


def _computed(standard: Standard, access: Access) -> str:
    """Return where a computed share comes from, and what it rests on."""
    streams = "a stream" if access.streams == 1 else f"{access.streams} streams"
    what = f"{streams} of {access.read_pct} % reads on {standard.title}, DRAM command kernel"
    mapping = access.mapping if isinstance(access.mapping, str) else ", ".join(access.mapping)
    controller = f"{mapping}, {access.scheduler}, {access.read_queue} reads wait, {access.refresh}"
    if access.source is not None:
        return f"{access.source}; {what}"
    return f"assumed: the controller ({controller}); {what}; at most what refresh leaves"
