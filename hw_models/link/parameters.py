"""Blocks of a link: flits, and what no data sheet says about a library's collectives."""

from __future__ import annotations

from pydantic import model_validator

from opbyte.core.blocks import Block
from opbyte.core.parameters import Bytes, BytesPerSecond, Factor, Ratio, Seconds


class Flit(Block):
    """Unit of flow control of a packet link such as CXL."""

    size: Bytes
    """On the wire."""
    payload: Bytes
    """Data that it carries."""
    source: str | None = None

    @model_validator(mode="after")
    def _carries(self) -> Flit:
        if not 0 < self.payload.value <= self.size.value:
            raise ValueError(
                f"a flit of {self.size} can not carry {self.payload}. lower `payload`, above 0"
            )
        return self


class Collectives(Block):
    """Parameters of the calls of a library such as NCCL, see `opbyte.hw_models.link.calls`.

    Two more are the link's own: `latency` is the step of a small message, `efficiency` the share
    of the rate that large messages reach (protocol Simple). Shares are of data on the link's rate.
    """

    library: str
    """Whose rules choose between protocols, such as `nccl-ampere`."""
    tuned_rate: BytesPerSecond
    """Rate that the library's rules take the link for; decides nothing but where it switches."""
    call: Seconds
    """Every call, beside the launch: its set-up, its first flags, its end."""
    crowd: Factor
    """How much longer a small call takes once all its threads wait, as a share."""
    ll: Ratio
    """Share of the rate with a flag in every 8 bytes (LL)."""
    ll128_start: Seconds
    """What a call with a flag in every 128 bytes (LL128) takes more."""
    ll128_step: Seconds
    """What a step of LL128 takes more."""
    ll128: Ratio
    """Share of the rate of LL128."""
    simple_start: Seconds
    """What a call without flags in the data (Simple) takes more."""
    simple_step: Seconds
    """What a step of Simple takes more."""
    own_copy: Factor
    """Rate at which a call copies a device's own part, over the link's."""
    nvls_step: Seconds | None = None
    """What each participant adds where the switch reduces (NVLS); without it, it does not."""
    nvls: Ratio | None = None
    """Share of the rate of NVLS."""
    direct: Ratio | None = None
    """Share of the rate of kernels that read the others' memory (a mapping's `all_reduce`)."""
    channels: Factor | None = None
    """Thread blocks of a large call, each on an SM that products beside it lack (training)."""
    p2p: bool = True
    """Devices reach each other's memory; otherwise every byte passes through the host's."""
    through_host: Ratio | None = None
    """Share of the rate that passing through the host's memory leaves."""
    source: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Collectives:
        if (self.nvls_step is None) != (self.nvls is None):
            raise ValueError("`nvls_step` and `nvls` need each other. give both or none")
        if self.direct is not None and not self.p2p:
            raise ValueError("`direct` kernels need peer-to-peer. remove it, or `p2p: false`")
        if not self.p2p and self.through_host is None:
            raise ValueError("without `p2p` a link needs `through_host`. give its share")
        return self
