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
# # Compute in memory: who should run what?
#
# A GPU reads its memory through the pins of each stack. Inside the stack there is more: every bank
# can deliver a column at the same time, and whoever multiplies there sees four to sixteen times
# the rate of the pins, and saves most of the way that a bit travels. The price is room: few
# multipliers fit beside a bank.
#
# So the answer depends on one number, the *operations for each byte* (Op/B) that the work does.
# This notebook looks for the crossings, follows the energy from the cell to the multiplier, and
# then lets Mixtral decide, batch by batch. It needs about ten seconds.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator

import opbyte as ob
from opbyte.sweeps.plots import styled

FAST = os.environ.get("FAST") == "1"
COLOURS = {"GPU": "#0072B2", "Bank-PIM": "#D55E00", "Bank-group-PIM": "#009E73",
           "Logic-PIM": "#CC79A7", "Duplex": "#CC79A7"}  # fmt: skip
MARKS = {"GPU": "o", "Bank-PIM": "s", "Bank-group-PIM": "^", "Logic-PIM": "D", "Duplex": "D"}

# %% [markdown]
# ## Four places for the same multipliers
#
# *Duplex* (MICRO 2024) compares four units at the same stacks of HBM3. Each is a unit at a *port*
# of one memory. The machines of the catalog differ in that alone:

# %%
UNITS = {
    "GPU": ("duplex-gpu-x4", "device.xpu", "device.hbm.interposer"),
    "Logic-PIM": ("duplex-x4", "device.lpim", "device.hbm.tsv"),
    "Bank-group-PIM": ("bank-group-pim-x4", "device.pim", "device.hbm.bank_group"),
    "Bank-PIM": ("bank-pim-x4", "device.pim", "device.hbm.bank"),
}
machines = {name: ob.load_machine(machine) for name, (machine, _, _) in UNITS.items()}
rows = {}
for name, (_, unit, port) in UNITS.items():
    value = machines[name].values
    rows[name] = {
        "port": port.removeprefix("device."),
        "peak, TFLOP/s": value[f"{unit}.peak.bf16"] / 1e12,
        "rate at its best, TB/s": value[f"{port}.bandwidth"] / 1e12,
        "of which remains": value[f"{port}.efficiency"],
        "FLOP for each byte": value[f"{unit}.peak.bf16"] / value[f"{port}.bandwidth"],
    }
pd.DataFrame(rows).T.infer_objects().round(2)

# %% [markdown]
# All numbers are for one device. What remains of the rate is what opening rows and refresh leave.
#
# ## Op/B against the best unit
#
# A product of m input rows with a matrix in bf16 does about m operations for each byte of the
# matrix. With m = 1 that is the decode step of a single sequence, with m = 512 a prompt. We price
# one matrix of Mixtral's experts on each unit. A mapping says who runs it.

# %%
EXPERT = {"n": 14336, "k": 4096, "dtype": "bf16"}
M = [2**i for i in range(11)] if FAST else np.unique(np.round(2 ** np.arange(0, 10.01, 0.25)))


def product(name, m):
    """Price a product on one unit: operations per byte, TFLOP/s and pJ for each operation."""
    unit = UNITS[name][1]
    only = {"launch": "graph", "run": [{"ops": "all", "unit": unit}]}
    r = ob.simulate(machines[name], ob.Gemm(m=int(m), **EXPERT), mapping=only)
    return {
        "unit": name,
        "m": int(m),
        "Op/B": r.op_per_byte,
        "TFLOP/s": r.flops / r.seconds / 1e12,
        "pJ/FLOP": r.joules / r.flops * 1e12,
    }


products = pd.DataFrame([product(name, m) for name in UNITS for m in M])
rates = products.pivot(index="m", columns="unit", values="TFLOP/s")
costs = products.pivot(index="m", columns="unit", values="pJ/FLOP")
best = costs.where(rates.ge(0.98 * rates.max(axis=1), axis=0)).idxmin(axis=1)
print("fastest unit, by rows of the input (within 2 %: the one of less energy):")
print(pd.Series({n: f"{g.index[0]} to {g.index[-1]}" for n, g in best.groupby(best)}).to_string())

# %%
with styled():
    figure, panels = plt.subplots(1, 2, figsize=(7.1, 3.1), layout="constrained")
    for name, part in products.groupby("unit", sort=False):
        for ax, what in zip(panels, ("TFLOP/s", "pJ/FLOP"), strict=True):
            ax.plot(part["Op/B"], part[what], color=COLOURS[name], marker=MARKS[name],
                    markevery=1 if FAST else 4, label=name,
                    ls="--" if name == "Bank-group-PIM" else "-")  # fmt: skip
    # The shade is the colour of the fastest unit.
    places = products[products["unit"] == "GPU"].set_index("m")["Op/B"]
    edges = np.concatenate([[places.iloc[0]], np.sqrt(places.values[1:] * places.values[:-1]),
                            [places.iloc[-1]]])  # fmt: skip
    for i, name in enumerate(best):
        panels[0].axvspan(edges[i], edges[i + 1], color=COLOURS[name], alpha=0.13, lw=0)
    for ax in panels:
        ax.set(xscale="log", yscale="log", xlabel="Operations per byte (FLOP/B)")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
    panels[0].set(ylabel="Rate of one device (TFLOP/s)", title="Shaded: the fastest unit")
    panels[1].set(ylabel="Energy per operation (pJ/FLOP)", title="Energy, memory included")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)

# %% [markdown]
# Each curve is a roofline: slanted where the port limits, flat where the multipliers do. Nearer to
# the cells the slanted part lies higher and ends sooner. Multipliers at the banks win as long as a
# weight meets a few inputs; Logic-PIM takes the middle, up to about 35 operations per byte; beyond,
# nothing beats the GPU. Bank groups reach the same rate as Logic-PIM, for more energy.
#
# Nobody has to find the crossings by hand: `split: {between: [...], by: fastest}` in a mapping
# decides for each operator, see [policies](../docs/policies.md).

# %% [markdown]
# ## Where the energy goes
#
# The path of a bit from its cell: the row is opened (activation), the cell is read, the column
# decoder leads to the bank-group multiplexer, that to the TSVs, and these to the interposer. A unit
# pays for the part of the path that lies between the cells and itself.
#
# *AttAcc* (ASPLOS 2024) has energy for each segment. We take the decode attention of GPT-3 175B, 32
# sequences of 2,048 tokens, with units at three places and on a GPU that reads the same cells
# through the interposer. Energy is linear in the segments' prices: doubling one adds what it costs.

# %%
SEGMENTS = {"activate": "Activation", "cell": "Cell", "column": "Column decoder",
            "group": "Bank-group mux", "tsv": "TSV", "outside": "Interposer"}  # fmt: skip
PLACES = {
    "Bank": "dgx-attacc-bank",
    "Bank group": "dgx-attacc-bank-group",
    "Buffer die": "dgx-attacc-buffer",
}
attention = ob.Decode("gpt-3-175b", batch=32, context=2048)


def attention_joules(machine):
    """Return the energy of decode attention, writes to the cache included."""
    parts = ob.simulate(machine, attention).breakdown
    return parts.loc[
        parts["operator"].str.contains("score|softmax|context|kv_append"), "joules"
    ].sum()


def added(machine, path):
    """Return what doubling a price adds, joules."""
    doubled = machine.with_values({path: 2 * machine.values[path]})
    return attention_joules(doubled) - attention_joules(machine)


bars = {}
for place, machine_name in PLACES.items():
    machine = ob.load_machine(machine_name)
    prices = {s: machine.values[f"attacc.gemv.pim.energy.{s}"] for s in SEGMENTS}
    bars[place] = {w: added(machine, f"attacc.gemv.pim.energy.{s}") for s, w in SEGMENTS.items()}
    bars[place]["Arithmetic, caches"] = attention_joules(machine) - sum(bars[place].values())
gpu = ob.load_machine("attacc-dgx-a100a")
# One price for a bit on its way to the cores: all segments, and what is beyond them the caches.
bits = added(gpu, "gpu.hbm.phy.energy") / gpu.values["gpu.hbm.phy.energy"]
bars["GPU"] = {word: bits * prices[s] for s, word in SEGMENTS.items()}
bars["GPU"]["Arithmetic, caches"] = attention_joules(gpu) - sum(bars["GPU"].values())
energy = pd.DataFrame(bars).T
energy.round(2)

# %%
with styled():
    figure, ax = plt.subplots(figsize=(5.6, 2.7), layout="constrained")
    shades = ["#000000", "#0072B2", "#56B4E9", "#009E73", "#F0E442", "#E69F00", "#C9C9C9"]
    left = np.zeros(len(energy))
    for word, shade in zip(energy.columns, shades, strict=True):
        ax.barh(energy.index, energy[word], 0.62, left=left, color=shade, label=word,
                edgecolor="white")  # fmt: skip
        left += energy[word].to_numpy()
    for i, total in enumerate(left):
        ax.annotate(f"{total:.1f} J", (total, i), (4, 0), textcoords="offset points", va="center")
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(xlabel="Energy of decode attention, one step (J)", ylabel="Where it is computed",
           xlim=(0, 1.12 * left.max()))  # fmt: skip
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")

# %% [markdown]
# The cells themselves cost the same everywhere. The rest is way: at the banks nearly nothing is
# left of it, at the bank groups the column decoder remains, on the buffer die the TSVs too; the GPU
# pays for all of it, and then for its caches.

# %% [markdown]
# ## Mixtral, batch by batch
#
# In a mixture of experts each token meets two of eight experts. With few sequences an expert sees
# one or two tokens and is work for the banks; with many it becomes work for the GPU. Four devices
# decode with 2,048 tokens of context:
#
# - *GPU*: everything on the GPU.
# - *Bank-PIM*: each expert and decode attention on the faster of GPU and banks, one at a time.
# - *Duplex*: experts on GPU and Logic-PIM at the same time, those with fewest tokens on the latter.
#
# `fullest` waits for the device that drew most tokens; in the mappings `et` and `pe-et` every
# expert is cut over all devices, so that none waits.

# %%
SYSTEMS = {
    "GPU": ("duplex-gpu-x4", "default"),
    "Bank-PIM": ("bank-pim-x4", "et"),
    "Duplex": ("duplex-x4", "pe-et"),
}
BATCHES = [1, 8, 64, 256] if FAST else [2**i for i in range(10)]


def step(system, batch):
    """Simulate a decode step; the share is of the experts' operations."""
    machine, mapping = SYSTEMS[system]
    work = ob.Decode("mixtral-8x7b", batch=batch, context=2048,
                     routing={"kind": "uniform", "fullest": True})  # fmt: skip
    r = ob.simulate(machine, work, mapping=mapping)
    experts = r.breakdown[r.breakdown["operator"].str.startswith("expert")]
    near = experts.loc[experts["unit"] != "device.xpu", "flops"].sum() / experts["flops"].sum()
    return {"system": system, "batch": batch, "tokens/s": r.tokens_per_s,
            "mJ/token": 1e3 * r.joules_per_token, "share": 100 * near}  # fmt: skip


steps = pd.DataFrame([step(system, batch) for system in SYSTEMS for batch in BATCHES])
speed = steps.pivot(index="batch", columns="system", values="tokens/s")[list(SYSTEMS)]
speed.div(speed["GPU"], axis=0).round(2)

# %%
with styled():
    figure, panels = plt.subplots(1, 3, figsize=(7.1, 2.7), layout="constrained")
    gpu_speed = speed["GPU"]
    for name, part in steps.groupby("system", sort=False):
        style = {"color": COLOURS[name], "marker": MARKS[name], "label": name}
        panels[0].plot(part["batch"], part["tokens/s"] / gpu_speed[part["batch"]].values, **style)
        panels[1].plot(part["batch"], part["mJ/token"], **style)
        if name != "GPU":
            panels[2].plot(part["batch"], part["share"], **style)
    panels[0].set(ylabel="Throughput over the GPUs (×)", ylim=(0, None))
    panels[1].set(ylabel="Energy (mJ per token)", yscale="log")
    panels[2].set(ylabel="Experts' operations in memory (%)", ylim=(-4, 104))
    for ax in panels:
        ax.set(xscale="log", xlabel="Batch (sequences)")
        ax.set_xticks([1, 8, 64, 512][: 4 if max(BATCHES) >= 512 else 3])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    panels[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[1].yaxis.set_major_formatter("{x:g}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

# %% [markdown]
# The banks win up to about 16 sequences. From 64 on the experts go back to the GPU, and then only
# attention gains. Logic-PIM keeps its gain for longer; beyond 128 sequences most of the experts'
# work belongs on the GPU, but both together still beat it alone. Everything here is chosen for
# time: with 64 sequences Bank-PIM would spend less energy if it kept its experts at the banks.

# %% [markdown]
# ## The cache moves out: AttAcc
#
# Attention over the KV cache has few operations for each byte at every batch. AttAcc keeps the
# cache in devices with units at the banks and leaves the rest to GPUs. `batch="max"` takes as many
# sequences as fit; heads wait for each other (`decode`) or follow each other through both (`head`).

# %%
CONTEXTS = [512, 2048] if FAST else [128, 256, 512, 1024, 2048]
SETUPS = {
    "8 GPUs": ("attacc-dgx-a100a", "default"),
    "8 GPUs + 8 AttAcc, serial": ("dgx-attacc-bank", "decode"),
    "8 GPUs + 8 AttAcc, head by head": ("dgx-attacc-bank", "head"),
}
points = []
for name, (machine, mapping) in SETUPS.items():
    for context in CONTEXTS:
        r = ob.simulate(
            machine, ob.Decode("gpt-3-175b", batch="max", context=context), mapping=mapping
        )
        points.append(
            {
                "setup": name,
                "context": context,
                "batch": r.batch_max,
                "tokens/s": r.tokens_per_s,
                "mJ/token": 1e3 * r.joules_per_token,
            }
        )
attacc = pd.DataFrame(points)
with styled():
    figure, panels = plt.subplots(1, 2, figsize=(7.1, 2.7), layout="constrained")
    for i, (name, part) in enumerate(attacc.groupby("setup", sort=False)):
        style = {"marker": "os^"[i], "ls": ["-", "--", ":"][i], "label": name}
        panels[0].plot(part["context"], part["tokens/s"], **style)
        panels[1].plot(part["context"], part["mJ/token"], **style)
    panels[0].set(ylabel="Throughput (tokens/s)", ylim=(0, None))
    panels[1].set(ylabel="Energy (mJ per token)", ylim=(0, None))
    for ax in panels:
        ax.set(xscale="log", xlabel="Context (tokens)")
        ax.set_xticks(CONTEXTS)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

# %%
attacc.pivot(index="context", columns="setup", values="batch")[list(SETUPS)].round(0)

# %% [markdown]
# Part of the gain is room: the cache's stacks double the memory, so that about twice as many
# sequences fit (the table). Compare at equal capacity before you call it speed.
#
# ## How far to trust it
#
# - These machines are **models of papers**; none was built. `opbyte validate duplex attacc` sets
#   our numbers beside the published ones and says what each agreement is worth.
# - The GPUs here are the papers' own baselines: rooflines without kernel launches. Against
#   `h100-x4` of the catalog, whose kernels are measured ones, the gains differ.
# - Energy per segment comes from one source (FGDRAM, MICRO 2017) for all of these machines.
#
# More: [Duplex](../docs/machines/duplex.md), [AttAcc](../docs/machines/attacc.md),
# [compute in a memory](../docs/machines/pim.md), [policies](../docs/policies.md). The studies
# `opbyte sweep duplex`, `logic_pim` and `attacc` sweep what is fixed here.
