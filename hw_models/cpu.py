"""The `cpu` block of a unit: threads on cores with SIMD instructions, under one kernel library."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from opbyte.core.blocks import Block
from opbyte.core.parameters import BytesPerSecond, Hertz, Parameter, Quantity, Seconds, Watts

_Several = Annotated[Parameter, Quantity("count", least=1.0)]
_Mean = Annotated[Parameter, Quantity("factor")]


class Cpu(Block):
    """Threads, the instructions that a library's kernels take, and what threads wait for."""

    threads: _Several
    """Threads of the program, at most one for each core."""
    slots: _Several
    """SIMD instructions that a core starts in a cycle."""
    instructions: dict[str, _Mean] = Field(default_factory=dict)
    """SIMD instructions for one weight and token, by storage format (`fp16`; `q4_5` for `q4.5`)."""
    per_bit: _Mean | None = None
    """Of table look-ups: SIMD instructions for each bit of a weight, whatever its format."""
    prepare: _Mean
    """Cycles of one thread for each input of a product: converted, or made into tables."""
    stream: BytesPerSecond
    """What one core draws from memory; all together draw the port's rate times `efficiency`."""
    handoff: Seconds
    """A cache line from one core to another; barriers count them."""
    sustained: Hertz | None = None
    """Clock with a thread on every core; without it `clock`."""
    core_power: Watts | None = None
    """Of a core that has a thread."""
    source: str | None = None
