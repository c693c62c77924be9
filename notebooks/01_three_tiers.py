# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Three memory tiers: where should the experts live?
#
# A *Composition of Experts* keeps many whole models at hand: a router reads each prompt and picks
# the one that answers. Only a few run at any time, so their weights can lie in a slow, large memory
# and be copied to a fast one when they are called. The SambaNova SN40L is built for this: SRAM, HBM
# and DDR on every socket (MICRO 2024, arXiv 2405.07518).
#
# This notebook asks, on the machines of the catalog: how fast is one expert, what does a switch
# cost, how many experts fit, and which of these answers hang on assumed numbers?

# %%
import os
import tempfile
from pathlib import Path

import pandas as pd

import opbyte as ob

FAST = os.environ.get("FAST") == "1"

# %% [markdown]
# ## The machine
#
# A machine is hardware only: memories with ports, units at those ports, links between them. Every
# number is for one instance and has a source.

# %%
node = ob.load_machine("sn40l-node")
pd.DataFrame(
    {
        "instances": {name: m.count for name, m in node.memories.items()},
        "capacity_GiB": {name: node.values[f"{name}.capacity"] / 2**30 for name in node.memories},
        "source of the capacity": {
            name: node.parameters[f"{name}.capacity"].source for name in node.memories
        },
    }
)

# %% [markdown]
# ## One token on one expert
#
# Decoding reads every weight once for each token, so its operational intensity is about one FLOP
# per byte and batch entry: far to the left of HBM's ridge point. Two mappings of the same hardware
# show what fusion is worth: `default` runs a decoder layer as one kernel that the hardware
# launches, `unfused` runs each operator as a kernel that the host launches.

# %%
decode = {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 4096}
steps = {
    "SN40L, fused": ob.simulate(node, decode),
    "SN40L, unfused": ob.simulate(node, decode, mapping="unfused"),
    "DGX H100": ob.simulate("dgx-h100", decode),
}
ax = ob.plot.breakdown(steps, by="resource")

# %%
fused, unfused = steps["SN40L, fused"], steps["SN40L, unfused"]
print(f"fused {1e3 * fused.tpot:.2f} ms, unfused {1e3 * unfused.tpot:.2f} ms for each token")
print(f"kernel launches: {fused.kernels:.0f} and {unfused.kernels:.0f}")

# %% [markdown]
# On the roofline the fused layer sits close to HBM's roof. The unfused operators do the same work
# on the same bytes, but the time is in their launches: the points hang below the roof.

# %%
ax = ob.plot.roofline(node, {"fused": fused, "unfused": unfused})

# %% [markdown]
# ## One batch of prompts
#
# Eight prompts, 100 experts of 8 B parameters: 1.6 TB of weights. The router runs, the experts that
# are not in HBM yet are copied there, and each prompt runs on its expert.

# %%
batch = {
    "kind": "coe",
    "router": "llama-3.1-8b",
    "experts": {"model": "llama-3.1-8b", "count": 100},
    "batch": 8,
    "input": 256,
    "output": 20,
}
served = {
    "SN40L node": ob.simulate(node, batch),
    "DGX H100": ob.simulate("dgx-h100", batch),
}
ax = ob.plot.breakdown(served, by="phase")

# %%
ax = ob.plot.occupancy(served)

# %% [markdown]
# ## Up to how many experts?
#
# A study varies what we want to know. Points that do not fit are results too: the crosses at the
# upper edge.

# %%
counts = [10, 50, 100, 150] if FAST else [5, 10, 20, 30, 40, 50, 75, 100, 125, 150, 300, 600, 800]
study = ob.load_study(
    {
        "kind": "study",
        "name": "experts",
        "base": {"workload": batch},
        "axes": {
            "machine": {"values": ["sn40l-node", "dgx-a100", "dgx-h100"]},
            "workload.count": {"values": counts},
        },
        "objectives": {"seconds": "min"},
    }
)
folder = Path(tempfile.mkdtemp(prefix="opbyte-"))
frame = study.run(out=folder / "experts", workers=1).frame()
ax = ob.plot.lines(frame, "workload.count", "seconds", by="machine")

# %%
feasible = frame[frame["status"] == "ok"]
most = feasible.groupby("machine")["workload.count"].max().rename("largest feasible count")
print(most.to_string())

# %% [markdown]
# ## The same with events
#
# The numbers above are expectations. With `fidelity="event"` the batches are drawn and played one
# after the other: the copies wait for the router, the experts for their copies.

# %%
played = ob.simulate(node, {**batch, "requests": 5 if FAST else 40}, fidelity="event", seed=1)
print(f"mean of {len(played.requests)} batches: {played.seconds:.3f} s")
print(f"expected: {served['SN40L node'].seconds:.3f} s")
ax = ob.plot.timeline(played, window=(0.0, 1.0))

# %% [markdown]
# ## Where to spend?
#
# A larger HBM saves copies, a faster one shortens every token. Both cost: capacity by the byte,
# rate by the die area of its interface. The front shows which designs give the least latency for
# their price. (Links have no price in the catalog: the path from DDR to HBM stays as it is.)

# %%
study = ob.load_study(
    {
        "kind": "study",
        "name": "spend",
        "base": {"machine": "sn40l-node", "workload": batch},
        "axes": {
            "machine.rdu.hbm.phy.bandwidth": {
                "range": ["0.8 TB/s", "4 TB/s"],
                "steps": 3 if FAST else 9,
            },
            "machine.rdu.hbm.capacity": {"values": ["32 GiB", "64 GiB", "96 GiB", "128 GiB"]},
        },
        "objectives": {"price_usd": "min", "seconds": "min"},
    }
)
designs = study.run(out=folder / "spend", workers=1).frame()
ax = ob.plot.pareto(designs, "price_usd", "seconds", color="hbm.capacity")

# %%
best = ob.front(designs, {"price_usd": "min", "seconds": "min"})
best[["machine.rdu.hbm.phy.bandwidth", "machine.rdu.hbm.capacity", "price_usd", "seconds"]]

# %% [markdown]
# ## What the answer hangs on
#
# Each assumed or calibrated parameter has a range. This moves the ones of the copy and of decoding
# across theirs, one at a time, and looks at the latency of a batch.

# %%
paths = ["fill.bandwidth", "rdu.hbm.phy.efficiency", "p2p.latency", "rdu.pcu.launch.hardware"]
rows = []
for path in paths:
    parameter = node.parameters[path]
    low, high = (
        ob.simulate(node.with_values({path: value}), batch).seconds for value in parameter.range
    )
    rows.append(
        {
            "parameter": path,
            "source": (parameter.source or "").split(";")[0][:60],
            "ms at its lowest": 1e3 * low,
            "ms as modelled": 1e3 * served["SN40L node"].seconds,
            "ms at its highest": 1e3 * high,
        }
    )
pd.DataFrame(rows).set_index("parameter").round(1)
