"""The `pim` block of a unit inside a memory: organisation, command timing and energy by path."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from opbyte.core.blocks import Block
from opbyte.core.parameters import Bytes, Count, JoulesPerBit, Parameter, Quantity

#: At least one of something.
Several = Annotated[Parameter, Quantity("count", least=1.0)]
AtLeastOne = Annotated[Parameter, Quantity("factor", least=1.0)]


class Organisation(Block):
    """What one instance of the unit (a stack, a chip) is made of."""

    channels: Several
    """Channels that take commands of their own."""
    pseudo_channels: Several = Parameter(1.0, "count", "one unless given")
    """Of a channel; they follow the same commands."""
    ranks: Several = Parameter(1.0, "count", "one unless given")
    """Of a pseudo-channel; they follow the same commands."""
    bank_groups: Several
    """Of a rank."""
    banks: Several
    """Of a bank group."""
    rows: Several
    """Of a bank."""
    columns: Several
    """Column accesses that a row holds."""
    column: Bytes
    """Bytes of one column access of a bank."""
    banks_per_unit: Several = Parameter(1.0, "count", "one unless given")
    """Banks that share a unit at the port `bank`; one of them works at a time."""
    depth: Several = Parameter(1.0, "count", "one unless given")
    """Units that share the depth of one output; their sums are added on the way out."""
    lanes: Several | None = None
    """Multipliers of a unit; by default one for each element of a column."""
    results: Several = Parameter(1.0, "count", "one unless given")
    """Results that a unit can hold."""
    buffer: Bytes
    """Input vector that a channel holds for its units."""
    source: str | None = None


class CommandTiming(Block):
    """Clocks between commands of one channel, named as in JEDEC's standards without `n` or `t`."""

    rcd: Count
    """From activation to the first MAC."""
    rp: Count
    """From precharge to activation."""
    rtp: Count
    """From a MAC to precharge."""
    ras: Count
    """From activation to precharge."""
    rc: Count
    """From activation to activation of a bank."""
    mac: Several
    """From MAC to MAC of all units of a channel."""
    mac_limited: Several | None = None
    """The same where power limits it."""
    load: Several
    """For each column of the input vector, written to the channel's buffer."""
    read: Several
    """For each column of results that leave the units."""
    refill: Several | None = None
    """For each column of softmax weights that go back to the units; by default as `load`."""
    bias: Count = Parameter(0.0, "count", "none unless given")
    """For each column of start values written before a result."""
    softmax: Count = Parameter(0.0, "count", "none unless given")
    """The command that starts the softmax of one head."""
    mode: Count = Parameter(0.0, "count", "none unless given")
    """Between access to registers and access to banks, each way."""
    activates: Several | None = None
    """Banks of a rank that power lets activate within `faw`; by default all at once."""
    faw: Count = Parameter(0.0, "count", "no limit unless given")
    """Window of `activates`."""
    refi: Several
    """From refresh to refresh."""
    rfc: Count
    """A refresh of all banks."""
    source: str | None = None


class PathEnergy(Block):
    """Energy of a bit by where it passes, from the cell outwards."""

    activate: JoulesPerBit
    """Activation and precharge, for each bit of the row."""
    cell: JoulesPerBit
    """Column access at the bank."""
    column: JoulesPerBit
    """From the column decoder to the bank group's multiplexer."""
    group: JoulesPerBit
    """From there to the channel's global lines."""
    tsv: JoulesPerBit = Parameter(0.0, "joules_per_bit", "none unless given")
    """Through the stack to the buffer die."""
    outside: JoulesPerBit
    """Off the device: interposer or board."""
    source: str | None = None


class Pim(Block):
    """Compute inside a memory, see `opbyte.hw_models.compute.pim`."""

    level: Literal["bank", "bank_group", "buffer"] | None = None
    """Where the units are; by default what their port is called."""
    organisation: Organisation
    timing: CommandTiming
    energy: PathEnergy | None = None
    power_limited: bool = False
    """MACs follow each other at `mac_limited`."""
    moves: Literal["overlap", "serial"] = "serial"
    """Whether loads and reads go on beside MACs or wait for them."""
    interleave: bool = False
    """Two heads of a channel take turns: one's softmax runs beside the other's products. Needs
    `context: lanes`."""
    pack: bool = False
    """Short vectors follow each other in a row; otherwise each starts a row of its own."""
    fullest: AtLeastOne = Parameter(1.0, "factor", "evenly full unless given")
    """Attention: what the fullest channel has to do over the mean of all channels, where sequences
    differ in length."""
    reuse: Literal["none", "row"] = "none"
    """Several input rows: the matrix is read again for each, or each open row serves all."""
    context: Literal["lanes", "rows"] = "rows"
    """Values of attention as they are written, a lane for each element of the output, or
    transposed, a row for each."""
    precharge: Literal["early", "late"] = "early"
    """A row is shut as soon as timing allows, or when the next one is asked for."""
    finish: Literal["chunk", "tile"] = "chunk"
    """What a product finishes first: the chunk of the input in the buffer, with which all rows of
    the matrix are multiplied, or a tile of outputs, for which every chunk is loaded anew."""
    refresh: Literal["fresh", "steady", "none"] = "steady"
    """A kernel starts just refreshed, meets refresh at its mean rate, or never."""
    artifact: Literal["none", "attacc"] = "none"
    """Defects of a published simulator to repeat. `attacc`: the second of two heads that take turns
    multiplies the values of the first, and no time passes between precharge and refresh."""
    source: str | None = None

    @model_validator(mode="after")
    def _turns(self) -> Pim:
        if self.interleave and self.context == "rows":
            raise ValueError("heads interleave only with `context: lanes`. change one")
        if self.finish == "tile" and (self.moves == "overlap" or self.reuse == "row"):
            raise ValueError("`finish: tile` has no model with `moves: overlap` or `reuse: row`")
        return self
