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
# # Attention in storage: when should a drive do the work?
#
# Each new token of a language model reads all keys and values of its sequence. For long contexts
# and many sequences this cache outgrows the GPU. It can lie in the host's memory or on an SSD and
# come to the GPU for every token, or stay in a *computational storage drive* (CSD) that does the
# attention itself, so that only queries and results cross the link. *InstInfer* (HPCA 2025) built
# the latter and reports 6.85 times the throughput of FlexGen.
#
# **Question:** for which batch, context and number of drives does that win, and why?
#
# **What decides:** how many bytes of cache a second meet their arithmetic, and where the cache
# fits at all. The rest of this notebook puts numbers on both. Each section says what is *seen* and
# what the numbers rest on (*evidence*). It needs about 15 seconds.

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

import opbyte as ob
from opbyte.hw_models.cost import machine_price_usd
from opbyte.sweeps.plots import styled

FAST = os.environ.get("FAST") == "1"
GPU, HOST, FLEXGEN, GDS = "GPU alone", "Host memory", "SSD, FlexGen", "SSD, GPUDirect"
COLOURS = {GPU: "#000000", HOST: "#E69F00", FLEXGEN: "#CC79A7", GDS: "#56B4E9",
           "1 CSD": "#009E73", "2 CSDs": "#0072B2", "20 CSDs": "#D55E00"}  # fmt: skip
MARKS = dict(zip(COLOURS, "oXsDv^P", strict=True))

# %% [markdown]
# ## One machine, five programs
#
# `a6000-csd` is one RTX A6000, a host with 96 GB, an SSD and a CSD behind a PCIe switch. Who keeps
# the cache is a *mapping*; another number of drives is one `replace`, up to one for each head.

# %%
machine = ob.load_machine("a6000-csd")
value = machine.values
MAPPINGS = {GPU: "default", HOST: "deepspeed", FLEXGEN: "flexgen", GDS: "flexgen-gds",
            "1 CSD": "instinfer"}  # fmt: skip
drives = {"1 CSD": machine, **{f"{n} CSDs": machine.replace({"csd.count": n}) for n in (2, 20)}}
work = ob.Decode("opt-13b", batch=16, context=1024)
slot = value["slot.bandwidth"] * value["slot.efficiency"]
rows = {
    GPU: ("gpu.gddr", value["gpu.gddr.phy.bandwidth"] * value["gpu.gddr.phy.efficiency"], 51.5),
    HOST: ("host.dram, one thread's copies", value["host.io.memcpy"], 96),
    GDS: ("disk.flash", value["disk.flash.nvme.bandwidth"], 2000),
    "1 CSD": (
        "csd.flash, inside",
        value["csd.flash.inside.bandwidth"] * value["csd.flash.inside.efficiency"],
        2000,
    ),
}
places = pd.DataFrame(rows, index=["cache lies in", "GB/s to its arithmetic", "GB of room"]).T
places["GB/s to its arithmetic"] = (places["GB/s to its arithmetic"].astype(float) / 1e9).round(2)
per_token = ob.load_model("opt-13b").kv_bytes_per_token
print(f"OPT-13B: {per_token / 1e3:.0f} kB of cache a token; the GPU's slot: {slot / 1e9:.1f} GB/s")
places

# %% [markdown]
# A drive's channels are no faster than one link: 9.4 GB/s of pages against 7 GB/s. So one CSD can
# not win by much. What it has is that channels of more drives *add up*, while all SSDs together
# share the slot of the GPU.
#
# ## Batch
#
# Decode steps of OPT-13B with 1,536 tokens of context. A study takes all points of a mapping
# together, and keeps what does not fit as a row with the reason. Prompts are left out: they run
# on the GPU in all systems.

# %%
LONG = {
    "kind": "model",
    "name": "opt-13b-long",
    "source": "opt-13b of the catalog, with positions for 65,536 tokens",
    "config": {"model_type": "opt", "torch_dtype": "float16", "hidden_size": 5120,
               "ffn_dim": 20480, "num_hidden_layers": 40, "num_attention_heads": 40,
               "word_embed_proj_dim": 5120, "vocab_size": 50272,
               "max_position_embeddings": 65536, "do_layer_norm_before": True},
}  # fmt: skip


def points(axes, model="opt-13b", batch=64, context=1536, derive=None, **base):
    """Return a study's table: a row for each point, feasible or not."""
    workload = {"kind": "decode", "model": model, "batch": batch, "context": context}
    study = {"kind": "study", "name": "points", "axes": axes, "derive": derive or {},
             "base": {"machine": "a6000-csd", "workload": workload, **base},
             "objectives": {"tokens_per_s": "max"}}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return ob.load_study(study).run(folder, workers=1).frame()


def systems(axes, **base):
    """Return the points of all systems."""
    kept = points({"mapping": {"values": list(MAPPINGS.values())}, **axes}, **base)
    kept["system"] = kept["mapping"].map({m: s for s, m in MAPPINGS.items()})
    more = points({"machine.csd.count": {"values": [2, 20]}, **axes}, mapping="instinfer", **base)
    more["system"] = more["machine.csd.count"].map(lambda n: f"{int(n)} CSDs")
    return pd.concat([kept, more], ignore_index=True)


batches = systems({"workload.batch": {"log2": [1, 1024]}})
speed = batches.pivot(index="workload.batch", columns="system", values="tokens_per_s")[
    list(COLOURS)
]
batches[batches["status"] != "ok"].groupby("system", sort=False).first()[
    ["workload.batch", "reason", "needed_bytes", "available_bytes"]
]

# %%
with styled():
    figure, ax = plt.subplots(figsize=(6.2, 3.9), layout="constrained")
    for system in speed:
        part = speed[system].dropna()
        ax.plot(part.index, part, color=COLOURS[system], marker=MARKS[system], ms=4, label=system)
        if len(part) < len(speed):
            ax.plot(part.index[-1], part.iloc[-1], marker="|", ms=16, mew=2, color=COLOURS[system])
    ax.set_xscale("log", base=2)
    ax.set(yscale="log", xlabel="Batch (sequences of 1,536 tokens)", ylabel="Decode (tokens/s)",
           title="OPT-13B by place of its cache; a bar ends what fits")  # fmt: skip
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)

# %% [markdown]
# **Seen:** as long as the cache fits, nothing comes near the GPU's own memory. Beyond, each place
# has a ceiling, the rate of its path over the bytes of a sequence, and a larger batch gains nothing
# more: 7.4 tokens/s for a CSD, 5.5 for GPUDirect, 1.7 for FlexGen. Host memory keeps up with the
# CSD until 96 GB are full, and then swaps. Two CSDs are twice as fast as one. Their batch ends
# where tokens that fill no page yet outgrow the drive's DRAM, long before the flash is full.
# **Evidence:** *assumed* (dies, tR, copies of the host); the order of host memory and one CSD is
# within these ranges.
#
# ## Number of drives
#
# Every head belongs to one drive. SSDs can be added up, too: below they are one SSD of n times the
# rate, read by GPUDirect with many requests in flight.

# %%
COUNTS = [1, 2, 5, 10, 20, 40] if FAST else [1, 2, 4, 5, 8, 10, 14, 20, 27, 40]
inside = points({"machine.csd.count": {"values": COUNTS}}, mapping="instinfer")
plain = points(
    {"machine.disk.flash.nvme.bandwidth": {"values": [f"{7 * n} GB/s" for n in COUNTS]}},
    mapping="flexgen-gds",
    set={"mapping.routes": {"kv": {"via": ["nvme"], "software": {
        "access": "direct", "request": "1 MiB", "threads": 8, "depth": 32}}},
        "machine.disk.flash.nvme.command": "1 ns"},
    derive={"machine.nvme.bandwidth": "8 / 7 * machine.disk.flash.nvme.bandwidth"},
)  # fmt: skip
with styled():
    figure, panels = plt.subplots(1, 2, figsize=(7.1, 3.0), layout="constrained")
    panels[0].plot(
        COUNTS, inside["tokens_per_s"], color=COLOURS["20 CSDs"], marker="P", label="CSDs"
    )
    panels[0].plot(COUNTS, plain["tokens_per_s"], color=COLOURS[GDS], marker="D",
                   label="SSDs, GPUDirect")  # fmt: skip
    panels[0].plot(COUNTS, inside["tokens_per_s"].iloc[0] * np.array(COUNTS), color="0.4", ls=":",
                   label="n times one CSD")  # fmt: skip
    panels[0].set(yscale="log", ylabel="Decode (tokens/s)", title="Batch 64, 1,536 tokens")
    panels[1].plot(COUNTS, 100 * inside["kv_share"], color=COLOURS["20 CSDs"], marker="P")
    panels[1].set(
        ylabel="Step that waits for the cache (%)", ylim=(0, 104), title="CSDs: what is left"
    )
    for ax in panels:
        ax.set_xscale("log", base=2)
        ax.set(xlabel="Number of drives", xticks=[1, 2, 5, 10, 20, 40])
        ax.xaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_major_formatter("{x:g}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
inside["drives"] = COUNTS
inside["over one"] = inside["tokens_per_s"] / inside["tokens_per_s"].iloc[0]
inside.set_index("drives")[["tokens_per_s", "over one", "kv_share"]].T.round(3)

# %% [markdown]
# **Seen:** SSDs stop at the GPU's slot, after four of them. CSDs go on: twenty are 17 times as fast
# as one; then the rest of the layer, the command to each drive (10 µs, one after the other) and
# heads that do not divide evenly show. Three, 14 or 27 drives work too; the one with most heads
# decides. **Evidence:** *open*: InstInfer measured 8.99 for twenty drives, and something on its GPU
# side that no drive shortens is unpublished.
#
# ## From data sheets to what is measured
#
# Data sheets say 11.2 GB/s of channels over 7 GB/s of link, 1.6; and twenty drives for one, 19.
# Where does 6.85 come from, and where does 19 go? A waterfall adds the mechanisms one by one. On
# the left most of them slow the *other* side, so that the ratio grows.

# %%
generate = {"kind": "generate", "model": "opt-13b", "batch": 64, "input": 1024, "output": 1024}


def path(**software):
    """Return a change of the baseline's way from the SSD."""
    return {"baseline.mapping.routes": {"kv": {"via": ["nvme"], "software": software}}}


sheet = {"name": "data sheets", "machine": "a6000-csd", "mapping": "instinfer",
         "workload": generate, "fidelity": "bound"}  # fmt: skip
mapped = {"access": "mapped", "request": "128 KiB", "threads": 2}
command = "mapping.routes.kv.software.per_command"
one = ob.waterfall(
    sheet,
    {
        "kernels, packets, GEMV": {
            "fidelity": "analytic", "machine.csd.flash.inside.efficiency": 1.0, command: "1 ns",
            **path(access="direct", request="1 MiB", threads=2, depth=32),
        },
        "flash: commands and tR": {"machine.csd.flash.inside.efficiency": 0.838},
        "10 µs to each drive": {command: "10 us"},
        "FlexGen: one request in flight": path(**{**mapped, "access": "direct"}),
        "FlexGen: page faults": path(**mapped),
        "FlexGen: pinned buffer": path(**mapped, staged=True),
        "FlexGen: waits for the GPU": path(**mapped, staged=True, waits=True),
        "at 1.33 GB/s (calibrated)": {"baseline.mapping": "flexgen-measured"},
    },
    "tokens_per_s",
    baseline={"mapping": "flexgen"},
)  # fmt: skip
both = "baseline." + command
many = ob.waterfall(
    {**sheet, "workload": {"kind": "decode", "model": "opt-13b", "batch": 256, "context": 1536},
     "set": {"machine.csd.count": 20}},
    {
        "kernels, packets, pages": {"fidelity": "analytic", command: "1 ns", both: "1 ns"},
        "10 µs to each drive": {command: "10 us", both: "10 us"},
        "100 µs to each drive": {command: "100 us", both: "100 us"},
        "1 ms to each drive": {command: "1 ms", both: "1 ms"},
    },
    "tokens_per_s",
    baseline={"machine.csd.count": 1},
)  # fmt: skip
with styled():
    figure, panels = plt.subplots(
        2, 1, figsize=(7.1, 5.8), height_ratios=[10, 6], layout="constrained"
    )
    ob.plot.waterfall(one, ax=panels[0])
    panels[0].set(
        xlabel="Throughput over FlexGen (×)", title="One drive, batch 64 (published: 6.85)"
    )
    figure.legends[0].remove()
    ob.plot.waterfall(many, ax=panels[1])
    panels[1].set(xlabel="Throughput over one drive (×)",
                  title="Twenty drives, batch 256 (published: 8.99)")  # fmt: skip

# %% [markdown]
# **Seen:** the drive's own mechanisms take a sixth of the 1.6. InstInfer wins because the host path
# loses most of the SSD's rate, and a queue that is one deep loses more than faults and copies
# together: SSD offload by GPUDirect with a deep queue leaves 1.3. Each command to a drive would
# have to take more than 1 ms to end at the published 8.99. **Evidence:** the last step on the left
# is *calibrated* on the paper's own shares; without it 4.3 is *open* (3.7 to 5.7 over the assumed
# costs, and 1.4 to 8.5 over one to eight copy threads).
#
# ## Sparse attention: what pages leave of 5.3
#
# An eighth of the tokens, found by an eighth of each key's channels, is ideally 5.3 times fewer
# bytes. Flash reads whole pages: 4 KiB hold 16 tokens of a head. So it matters whether chosen
# tokens lie beside each other, in runs. That is a property of the text that nothing published
# gives; here it is a parameter.

# %%
RUNS = [4, 16, 64, 256] if FAST else [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
dense = ob.simulate(machine, ob.Decode("opt-13b", batch=64, context=2048), "instinfer")
chosen = points(
    {"mapping.kv_select.run": {"values": RUNS}}, mapping="instinfer-sparf", context=2048
)
pages = [ob.sparse_pages(2048, keep=0.125, channels=0.125, run=run) for run in RUNS]
alone = ob.simulate(machine, ob.Decode("opt-13b", batch=64, context=2048), "instinfer-sparf")
with styled():
    figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    ax.axhline(pages[0].ideal_gain, color="0.4", ls=":", label="ideal: bytes of chosen tokens")
    ax.plot(
        RUNS, [p.gain for p in pages], color="#0072B2", marker="o", label="fewer bytes of pages"
    )
    ax.plot(RUNS, chosen["tokens_per_s"] / dense.tokens_per_s, color="#D55E00", marker="s",
            label="faster: decode tokens/s")  # fmt: skip
    ax.axhline(1, color="0.4", lw=0.8)
    ax.set_xscale("log", base=2)
    ax.set(xlabel="Mean run of neighbouring kept tokens", ylabel="Over dense attention (×)",
           ylim=(0, 5.8), title="1/8 of 2,048 tokens and of 128 channels, one CSD")  # fmt: skip
    ax.xaxis.set_major_formatter("{x:g}")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
print(f"independent tokens: {alone.tokens_per_s / dense.tokens_per_s:.2f} times as fast as dense")

# %% [markdown]
# **Seen:** tokens chosen independently of each other make it *slower*: nearly every page holds one,
# and pages at random places come at 5.2 instead of 9.4 GB/s. In runs of a page, 16 tokens, 3.4 of
# the 5.3 remain in bytes, and 1.7 in time. The longest runs read hardly more than the ideal, and
# lose half to random places all the same. **Evidence:** bytes are counted; time is *assumed*
# (tR = 45 µs, 64 dies).
#
# ## Which wins where
#
# The same model with positions for long contexts (its table of positions takes 0.7 GB). Left: all
# sequences decode together, one CSD against one SSD and the host. Middle: twenty CSDs. Right: the
# batch may be cut into rounds, one after the other, as whoever counts throughput alone may do.

# %%
grid = systems(
    {"workload.batch": {"log2": [1, 1024]}, "workload.context": {"log2": [512, 65536]}}, model=LONG
)
cube = {
    s: p.pivot(index="workload.context", columns="workload.batch", values="tokens_per_s")
    for s, p in grid.groupby("system")
}
rounds = {s: table.cummax(axis=1).ffill(axis=1) for s, table in cube.items()}
ONE = [GPU, HOST, FLEXGEN, GDS, "1 CSD"]
CARDS = {
    "Together, one CSD": (cube, ONE),
    "Together, 20 CSDs": (cube, [*ONE, "20 CSDs"]),
    "In rounds, 20 CSDs": (rounds, [*ONE, "20 CSDs"]),
}
NAMES = list(COLOURS)
contexts, sizes = cube[GPU].index, cube[GPU].columns


def winner(tables, names):
    """Return for each context and batch the index of the fastest, -1 where nothing fits."""
    rates = np.stack([tables[n].fillna(0).to_numpy() for n in names])
    best = np.array([NAMES.index(n) for n in names])[rates.argmax(axis=0)]
    return np.where(rates.max(axis=0) > 0, best, -1), rates.max(axis=0)


with styled():
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.6), sharey=True, layout="constrained")
    seen = set()
    for ax, (title, (tables, names)) in zip(panels, CARDS.items(), strict=True):
        best, rate = winner(tables, names)
        seen |= set(best.ravel())
        tints = ListedColormap(["#FFFFFF", *COLOURS.values()])
        ax.imshow(best + 1, cmap=tints, vmin=0, vmax=len(NAMES), origin="lower", aspect="auto",
                  alpha=0.55, interpolation="nearest")  # fmt: skip
        for (y, x), fastest in np.ndenumerate(best):
            text = "×" if fastest < 0 else f"{rate[y, x]:.{3 if rate[y, x] >= 100 else 2}g}"
            ax.annotate(text, (x, y), ha="center", va="center", size=5.5,
                        color="white" if fastest == 0 else "black")  # fmt: skip
        ax.set(title=title, xlabel="Batch (sequences)")
        ax.set_xticks(range(0, len(sizes), 2), [f"{s:g}" for s in sizes[::2]])
        ax.grid(visible=False)
    panels[0].set_yticks(range(len(contexts)), [f"{c:,.0f}" for c in contexts])
    panels[0].set_ylabel("Context (tokens)")
    handles = [
        Patch(color=COLOURS[NAMES[i]], alpha=0.55, label=NAMES[i]) for i in sorted(seen) if i >= 0
    ]
    handles.append(Patch(fc="white", ec="0.4", label="× fits nowhere"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles),
                  title="Fastest system; numbers: its tokens/s")  # fmt: skip

# %% [markdown]
# What ends each system, along a context of 2,048 and along a batch of 1 (the smallest that does not
# fit):

# %%
limits = []
for what, other, at in (("workload.batch", "workload.context", 2048),
                        ("workload.context", "workload.batch", 1)):  # fmt: skip
    bad = grid[(grid["status"] != "ok") & (grid[other] == at)].sort_values(what)
    for system, part in bad.groupby("system"):
        first = part.iloc[0]
        limits.append({"system": system, "first that does not fit":
                       f"{what.partition('.')[2]} {first[what]:,.0f}", "why": first["reason"],
                       "GB needed": first["needed_bytes"] / 1e9,
                       "GB there": first["available_bytes"] / 1e9})  # fmt: skip
pd.DataFrame(limits).set_index("system").round(1)

# %% [markdown]
# **Seen:**
#
# - One CSD wins wherever the GPU is full, but by a third over GPUDirect, not by factors.
# - Where groups of new tokens outgrow the drive's DRAM (from 512 sequences on), an SSD is left as
#   long as a layer's cache fits on the GPU twice. The CSD's flash ends long contexts.
# - Twenty CSDs take nearly all that the GPU can not hold.
# - Cut into rounds the picture turns: up to 16,384 tokens the GPU alone decodes more tokens a
#   second than twenty drives, for its memory gives the cache 653 GB/s, and theirs 188. What drives
#   buy is that all sequences go on *at the same time*, and contexts of which the GPU can not hold a
#   single one.
#
# **Evidence:** *assumed*. Rounds leave out that users of later rounds wait.
#
# ## Energy and price of a token
#
# 64 sequences of 1,536 tokens; the GPU alone takes 16 at a time. Machines give energy of what moves
# and computes, and idle power of the GPU: the lower ends. Idle power of host, switch and drives is
# not known; the upper ends are the rated power of all parts in use for the whole time. Parts that a
# system does not use are not charged.

# %%
AT = {GPU: 16} | dict.fromkeys(list(COLOURS)[1:], 64)
rows = []
for system, size in AT.items():
    (row,) = batches[(batches["system"] == system) & (batches["workload.batch"] == size)].to_dict(
        "records"
    )
    n = int(system.split()[0]) if "CSD" in system else 0
    ssd = 0 if n or system == GPU else 1
    watts = value["gpu.power"] + value["host.power"] + ssd * value["disk.power"]
    watts += n * value["csd.power"] + (value["switch.power"] if n else 0)
    parts = {"csd.count": n, "switch.count": min(n, 1), "disk.count": ssd}
    usd = machine_price_usd(machine.replace(parts))
    rate = row["tokens_per_s"]
    made = rate * value["site.life"] * value["site.busy"]
    rows.append({"system": system, "tokens/s": rate, "J/token, moved": row["joules_per_token"],
                 "J/token, rated": watts / rate, "price, USD": usd,
                 "USD/Mtoken": 1e6 * usd / made})  # fmt: skip
costs = pd.DataFrame(rows).set_index("system")
with styled():
    figure, panels = plt.subplots(1, 2, figsize=(7.1, 2.9), sharey=True, layout="constrained")
    low, high = costs["J/token, moved"], costs["J/token, rated"]
    shades = [COLOURS[s] for s in costs.index]
    panels[0].barh(costs.index, high - low, 0.55, left=low, color=shades)
    panels[0].set(xscale="log", xlabel="Energy (J per token)", xlim=(0.4, None),
                  title="From what moves to rated power")  # fmt: skip
    for system, usd in costs["USD/Mtoken"].items():
        panels[1].plot([usd], [system], color=COLOURS[system], marker=MARKS[system], ms=7)
    panels[1].set(xscale="log", xlabel="Price of parts (USD per million tokens)",
                  title="Written off in three years")  # fmt: skip
    for ax in panels:
        ax.xaxis.set_major_formatter("{x:g}")
        ax.grid(visible=False, axis="y")
    panels[0].set_ylabel("Place of the cache")
    panels[0].invert_yaxis()
costs.round(2)

# %% [markdown]
# **Seen:** time decides both: whatever waits pays for idle parts. Of those that hold 64 sequences
# at once twenty CSDs cost least, and a token still costs 13 times what it does on a GPU whose cache
# fits. One CSD costs more for a token than host memory or GPUDirect: it is a third faster, and its
# machine 45 % dearer. **Evidence:** *assumed* throughout. The GPU is priced by its dies and memory
# at spot prices (391 USD), the processor by a list price, a drive by a guess (500 USD and its
# flash): not prices of one kind. `carbon_kg` takes a guess for the drives' chips too.
#
# ## Endurance
#
# Every token is written once, and flash stands a number of writes. We take 64 sequences of 2,048
# tokens on one drive, without a pause, and vary how many of these are answer: the rest is prompt,
# which is written far faster. Keys that are stored by channel for the sparse choice are written
# anew for every 128 new tokens, 16 times in all.

# %%
ANSWERS = [32, 256, 1024] if FAST else [16, 32, 64, 128, 256, 512, 1024, 1536]
device = ob.flash("instattention-csd")
amplification = device.wear("kv", fill=0.5, rounds=0.25).write_amplification
WRITTEN = {"instinfer": (1.0, 1.0), "instinfer-sparf": (1.5, 1.0 + 16 / 2)}
rows = []
for mapping, (prompt, answer) in WRITTEN.items():
    for output in ANSWERS:
        whole = ob.Generate("opt-13b", batch=64, input=2048 - output, output=output)
        seconds = ob.simulate(machine, whole, mapping).seconds
        tokens = 64 * ((2048 - output) * prompt + output * answer)
        wear = device.endurance(86400 * per_token * tokens / seconds, amplification)
        rows.append({"mapping": mapping, "answer": output, "years": wear.years,
                     "TB a day": wear.bytes_per_day / 1e12,
                     "drive writes a day": wear.drive_writes_per_day})  # fmt: skip
worn = pd.DataFrame(rows)
with styled():
    figure, ax = plt.subplots(figsize=(5.6, 3.1), layout="constrained")
    for i, (name, label) in enumerate({"instinfer": "dense", "instinfer-sparf": "sparse"}.items()):
        part, shade, mark = worn[worn["mapping"] == name], ("#0072B2", "#D55E00")[i], "os"[i]
        ax.plot(part["answer"], part["years"], color=shade, marker=mark, label=label)
    ax.axhline(5, color="0.4", ls=":", label="five years")
    ax.set_xscale("log", base=2)
    ax.set(yscale="log", xlabel="Answer (of 2,048 tokens, the rest is prompt)",
           ylabel="Until 3,000 cycles (years)",
           title="One CSD, 64 sequences, never idle")  # fmt: skip
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
print(f"write amplification of a KV stream: {amplification:.2f}")
worn.pivot(index="answer", columns="mapping", values=["TB a day", "years"]).round(1)

# %% [markdown]
# **Seen:** with long answers the drive spends its time reading: it writes 1 TB a day and lasts 17
# years. With 64 tokens of answer to a long prompt it writes 12 TB a day and is worn out in a year
# and a half; below some 250 tokens it does not last five. The sparse choice writes nine times as
# much for each new token, and lasts five years nowhere. Twenty drives share the bytes but take
# them sooner: each lasts one to two times as long. Collecting garbage adds nothing, for pages of a
# sequence die together. **Evidence:** 3,000 cycles are published; even wear and the rate of
# programs, which limits prompts, are *assumed*.
#
# ## How far to trust it
#
# - `opbyte validate instinfer` prints every published number with its class. None is *predicted*:
#   tR, the engine's rate and the batch of the twenty drives are unpublished.
# - Everything rests on one drive: 8 channels, pages of 4 KiB and the assumed 64 dies, tR = 45 µs.
#   The study `opbyte sweep csd` varies drives, channels, width and PCIe.
# - Prompts, a lost drive, garbage collection beside reads, and what sparse attention costs in
#   accuracy are not here.
#
# More: [attention inside drives](../docs/machines/csd.md), [what it is compared
# with](../docs/machines/instinfer.md), [storage](../docs/machines/storage.md),
# [flash](../docs/flash.md), [evidence](../docs/evidence.md).
