"""A small machine whose experts live in its slow memory, and what a layer takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from handmade import device

from opbyte.hw_models.machine import Machine
from opbyte.sim.result import Result
from opbyte.sim.simulate import simulate
from opbyte.workloads.model import Attention, DenseFfn, Layer, Model, MoeFfn
from opbyte.workloads.phases import Decode

EXPERTS, PICKS, WIDTH, HIDDEN = 16, 2, 512, 256
SPARSE = Layer(Attention(4, 4, 64), MoeFfn(EXPERTS, PICKS, WIDTH))
DENSE = Layer(Attention(4, 4, 64), DenseFfn(1024))
#: Every other layer has experts.
MODEL = Model("sparse", HIDDEN, 1000, (DENSE, SPARSE), (0, 1) * 4)
LAYERS = 4
SIZE = 3 * HIDDEN * WIDTH * 2
FILL, START = 50e9, 0.5e-6
COPY = START + SIZE / FILL


def machine(
    prefetch: str = "none",
    evict: str = "none",
    *,
    residents: float | None = None,
    fill: float = FILL,
) -> Machine:
    """A device whose experts live in DDR; its HBM has room for `residents` of them."""
    links = {
        "fill": {
            "ends": ["dev.ddr.bus", "dev.hbm.phy"],
            "bandwidth": f"{fill} B/s",
            "energy": "1 pJ/bit",
        }
    }
    cache = {"tier": "dev.hbm", "evict": evict, "via": "fill", "prefetch": prefetch}
    place = {
        "weight": {"in": {"dev.hbm": 1.0}},
        "expert.weight": {"in": {"dev.ddr": 1.0}, "cache": cache},
        "kv": {"in": {"dev.hbm": 1.0}},
    }
    made = device(links=links, mapping={"place": place})
    if residents is None:
        return made
    held = decode().footprint(made.mapping().degrees)
    beside = sum(float(np.max(v)) for k, v in held.items() if k != "expert")
    return made.with_values({"dev.hbm.capacity": beside + (residents + 0.5) * SIZE})


def decode(**fields: Any) -> Decode:
    return Decode(MODEL, **{"batch": 1, "context": 64, **fields})


def plain(work: Any = None) -> Result:
    """The same work with all experts in HBM."""
    place = {"weight": {"in": {"dev.hbm": 1.0}}}
    return simulate(device(mapping={"place": place}), work or decode())


def layers_of(result: Result) -> tuple[float, float, float]:
    """Return seconds of a dense layer, of what leads to the experts, and of the rest of a layer."""
    frame = result.breakdown
    each = frame["seconds"] / frame["runs"]
    dense = each[frame["block"] == "layer.full"].sum()
    mine = frame["block"] == "layer.full.moe"
    at = list(frame["operator"][mine]).index("expert_gate_up")
    return dense, each[mine].iloc[:at].sum(), each[mine].iloc[at:].sum()
