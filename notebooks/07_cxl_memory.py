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
# # CXL memory: how far away is too far?
#
# A CXL expander is DRAM behind a PCIe link: room that costs no socket and no GPU, 150 ns further
# away than local memory and, with eight lanes, a tenth of a server's rate. Published results
# disagree about what it is good for: fine-tuning keeps 97 to 99 % of its speed with one device,
# a CPU that decodes from it loses up to 82 %.
#
# **Question:** for which work does memory behind CXL stand in for DRAM, and when is an SSD, or
# computing again, better?
#
# **What decides:** the bytes that cross the link against the time in which something else happens
# anyway. The rest of this notebook puts numbers on both. Each section says what is *seen* and what
# the numbers rest on (*evidence*). It needs about 30 seconds.

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator

import opbyte as ob
from opbyte.hw_models.cost import machine_price_usd
from opbyte.hw_models.memory.interleave import best_shares, interleaved_rate, whole_weights
from opbyte.sweeps.plots import styled

FAST = os.environ.get("FAST") == "1"
BLACK, ORANGE, GREEN = "#000000", "#E69F00", "#009E73"
DARK, RED, PINK = "#0072B2", "#D55E00", "#CC79A7"


def points(axes, workload, machine="cxl-host", **base):
    """Return a study's table: a row for each point, feasible or not."""
    study = {"kind": "study", "name": "points", "axes": axes, "derive": base.pop("derive", {}),
             "base": {"machine": machine, "workload": workload, **base},
             "objectives": {"seconds": "min"}}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return ob.load_study(study).run(folder, workers=1).frame()


def plainly(axis, minor=(2, 5)):
    """Write a logarithmic axis in plain numbers, with some of those between powers of ten."""
    axis.set_minor_locator(LogLocator(subs=minor))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")


# %% [markdown]
# ## Devices under load
#
# Idle latency is a sum of steps: host bridge, flits at both ends, controller, DRAM. The peak is the
# slowest of link, controller and DRAM. Between them lie queues: both directions of the link, and
# the banks.

# %%
DEVICES = {
    "cxl-asic-x8": ("ASIC, x8, DDR5", DARK, "o"),
    "cxl-fpga-x8": ("FPGA, x8, DDR5", ORANGE, "s"),
    "micron-cz120": ("Micron CZ120", GREEN, "^"),
    "samsung-ddr4": ("Samsung, DDR4", PINK, "D"),
    "vistara": ("Vistara, DDR4", RED, "v"),
    "cxl3-x16": ("CXL 3, PCIe 6 x16", BLACK, "P"),
}
rows = []
for name, (label, _, _) in DEVICES.items():
    device = ob.cxl(name)
    rows.append({"device": label, "idle, ns (at the port)": 1e9 * device.idle_latency_s,
                 "reads, GB/s": device.peak_bytes_per_s(100) / 1e9, "held up by": device.limit(100),
                 "2 reads to 1 write": device.peak_bytes_per_s(67) / 1e9,
                 "held up by ": device.limit(67)})  # fmt: skip
pd.DataFrame(rows).set_index("device").round(1)

# %%
# A manufacturer's model (Mess, MICRO 2024): 76 % reads, GB/s and ns from the host's pins.
MESS = [(0.32, 107.4), (6.4, 109.4), (12.8, 112.2), (16.0, 114.3), (21.33, 117.7), (26.65, 122.7),
        (30.46, 129.1), (31.98, 133.5), (33.66, 146.3)]  # fmt: skip
zero = {"value": "0 ns", "source": "seen from the host's pins"}
given = {"value": "72.7 ns", "source": "calibrated: the idle latency of the model's curve"}
pins = ob.cxl("mess-x8-model", steps={"host_bridge": zero, "host_protocol": zero,
                                      "device_protocol": zero, "controller": given})  # fmt: skip
with styled():
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.5), layout="constrained")
    for name, (label, shade, mark) in DEVICES.items():
        if name == "micron-cz120":
            continue  # as the ASIC: the link decides
        curve = ob.cxl(name).curve(67)
        panels[0].plot([x.bytes_per_s / 1e9 for x in curve], [x.latency_s * 1e9 for x in curve],
                       color=shade, marker=mark, ms=3.5, label=label)  # fmt: skip
    panels[0].set(xlabel="Delivered (GB/s), 2 reads to 1 write", ylabel="Latency of a read (ns)",
                  ylim=(0, 600), xlim=(0, None), title="Seen from the host's port")  # fmt: skip
    panels[0].legend(loc="upper right", fontsize=6.5)
    curve = pins.curve(76)
    panels[1].plot([x.bytes_per_s / 1e9 for x in curve], [x.latency_s * 1e9 for x in curve],
                   color=DARK, marker="o", ms=3.5, label="ours, idle latency given")  # fmt: skip
    panels[1].plot(*zip(*MESS, strict=True), "s", color=ORANGE, ms=4, label="Mess's model")
    panels[1].set(xlabel="Delivered (GB/s), 76 % reads", ylim=(0, 300), xlim=(0, None),
                  title="The same queues against a published curve")  # fmt: skip
    panels[1].legend(loc="upper left")

# %% [markdown]
# **Seen:** latency is flat up to three quarters of the peak, and then there is a wall. Most curves
# end before it, for a port keeps 128 lines under way (assumed): 128 × 64 B / 200 ns are 41 GB/s, so
# that one port does not fill a PCIe 6 device. A link reads and writes at once: a mix is faster than
# reads alone, until the DRAM behind decides. **Evidence:** steps of one way are *assumed* (set by
# another simulator to silicon); the path of a core included, a measured ASIC's 271 ns come out, and
# Vistara's 250 do not (+18 %). `opbyte validate cxl_devices` has all rows.
#
# ## Weights of an interleave
#
# Pages go round DRAM and expanders by weights. A pass takes as long as the slowest of them, so
# that the best weights are in proportion to rates, and equal ones cost more than no CXL at all.

# %%
DRAM = ob.load_machine("cxl-host").values
local = DRAM["cpu.dram.imc.bandwidth"] * DRAM["cpu.dram.imc.efficiency"]
asic = ob.cxl("cxl-asic-x8").peak_bytes_per_s(100)
shares = np.linspace(0.0, 1.0, 201)
with styled():
    figure, ax = plt.subplots(figsize=(6.0, 3.4), layout="constrained")
    for count, lanes, shade, dash in ((1, 4, ORANGE, "-"), (1, 8, DARK, "-"), (2, 8, GREEN, "-"),
                                      (1, 16, RED, "--"), (4, 8, PINK, "-")):  # fmt: skip
        beyond = count * ob.cxl("cxl-asic-x8", link={"lanes": lanes}).peak_bytes_per_s(100)
        rates = {"dram": local, "cxl": beyond}
        speed = [interleaved_rate(rates, {"dram": 1.0 - w, "cxl": w}) / 1e9 for w in shares]
        best = best_shares(rates)["cxl"]
        ax.plot(100 * shares, speed, color=shade, ls=dash, label=f"{count} × x{lanes}")
        ax.plot([100 * best], [(local + beyond) / 1e9], "o", color=shade, ms=4)
    ax.axhline(local / 1e9, color="0.4", ls=":", label="DRAM alone")
    ax.set(xlabel="Share of pages behind CXL (%)", ylabel="Reads of all (GB/s)", ylim=(0, None),
           title="Eight channels of DDR5-4800 and expanders (PCIe 5)")  # fmt: skip
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
print("whole weights for one x8:", whole_weights({"dram": local, "cxl": asic}))

# %% [markdown]
# A GPU does not see that sum: its own link is slower than the DRAM. Decode steps of Llama 3.1 8B
# (8 sequences of 32,768 tokens) that read the whole cache over it, for two generations of the
# GPU's 16 lanes:

# %%
SHOWN = {(1, "x4"): (ORANGE, "s"), (1, "x8"): (DARK, "o"), (2, "x8"): (GREEN, "^"),
         (1, "x16"): (RED, "D"), (4, "x8"): (PINK, "v"),
         (1, "x16, PCIe 6"): (BLACK, "P")}  # fmt: skip
LINKS = {"x4": {"generation": 5, "lanes": 4, "flit": 68},
         "x8": {"generation": 5, "lanes": 8, "flit": 68},
         "x16": {"generation": 5, "lanes": 16, "flit": 68},
         "x16, PCIe 6": {"generation": 6, "lanes": 16, "flit": 256}}  # fmt: skip
WEIGHTS = [0.0, 0.25, 1.0] if FAST else [0.0, 0.125, 0.25, 0.5, 0.75, 1.0]
places = [{m: w for m, w in (("cpu.dram", 1 - w), ("aic.dram", w)) if w} for w in WEIGHTS]
decode = points(
    {"machine.dma.bandwidth": {"values": ["63 GB/s", "126 GB/s"]},
     "machine.aic.count": {"values": [1, 2, 4]},
     "machine.aic.dram.expander.link": {"values": list(LINKS.values())},
     "mapping.place.kv.in": {"values": places}},
    {"kind": "decode", "model": "llama-3.1-8b", "batch": 8, "context": 32768},
    mapping="kv-both", set={"machine.cxl.bandwidth": "126 GB/s"},
)  # fmt: skip
decode["weight"] = decode["mapping.place.kv.in"].map(
    {str(p): w for p, w in zip(places, WEIGHTS, strict=True)}
)
decode["lanes"] = decode["machine.aic.dram.expander.link"].map(
    {str(v): k for k, v in LINKS.items()}
)
with styled():
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.3), sharey=True, layout="constrained")
    for ax, (rate, part) in zip(panels, decode.groupby("machine.dma.bandwidth"), strict=True):
        for (count, lanes), (shade, mark) in SHOWN.items():
            mine = part[(part["machine.aic.count"] == count) & (part["lanes"] == lanes)]
            mine = mine.sort_values("weight")
            ax.plot(100 * mine["weight"], 1e3 * mine["tpot"], color=shade, marker=mark, ms=4,
                    label=f"{count} × {lanes}")  # fmt: skip
        ax.set(yscale="log", xlabel="Share of the cache behind CXL (%)",
               title=f"GPU at PCIe {5 if rate < 1e11 else 6} x16")  # fmt: skip
        plainly(ax.yaxis, (3, 5))
    panels[0].set_ylabel("Time per token (ms)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)

inside = ob.simulate("cxl-host", ob.Decode("llama-3.1-8b", batch=8, context=32768), "recompute")
print(f"in the GPU's own memory: {1e3 * inside.tpot:.0f} ms")

# %% [markdown]
# **Seen:** behind PCIe 5 a half of the cache may lie in one x8 expander and all of it in two, and
# no token is later. With a PCIe 6 GPU it is a quarter and a half. Four expanders do not feed that
# GPU wholly: 64 KiB of reads in flight (an assumption) at 0.7 µs are 93 GB/s, whatever the lanes.
# All of it is 40 to 80 times slower than a cache in the GPU's own memory. **Evidence:** *assumed*
# (efficiency and tags of the GPU's link).
#
# ## One device, several GPUs
#
# Each GPU draws 1 GB for 40 ms of computation, ahead (left) or between (right). `analytic` adds up
# what is asked; `event` lets them meet.

# %%
device = ob.cxl("cxl-asic-x8")
MOST = range(1, 5 if FAST else 9)
with styled():
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.3), sharey=True, layout="constrained")
    for ax, ahead in zip(panels, (True, False), strict=True):
        own = ob.Reader(bytes=1e9, compute_s=0.04, rate=54e9, in_flight=65536.0, path_s=6e-7,
                        prefetch=ahead)  # fmt: skip
        for devices, shade, mark in ((1, DARK, "o"), (2, GREEN, "^"), (4, RED, "s")):
            for fidelity, dash in (("analytic", ":"), ("event", "-")):
                runs = [ob.shared_reads(device, own, n, devices, fidelity=fidelity,
                                        iterations=16 if FAST else 128) for n in MOST]  # fmt: skip
                alone = ob.shared_reads(device, own, 1, devices).seconds
                slow = [run.seconds / alone for run in runs]
                ax.plot(MOST, slow, color=shade, marker=mark, ms=4, ls=dash,
                        label=f"{devices} device{'s' * (devices > 1)}, {fidelity}")  # fmt: skip
        ax.set(xlabel="GPUs", xticks=list(MOST),
               title="Fetched ahead" if ahead else "Fetched between, in step")  # fmt: skip
    panels[0].set_ylabel("Slowdown (×)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

# %% [markdown]
# **Seen:** what is fetched ahead costs nothing until the demands exceed the devices: one x8
# expander feeds one such GPU, two feed two. What is fetched between computation queues although
# the sum of demands would fit, because a job's GPUs ask at the same time, after each all-reduce.
# `ob.plot.shared_readers` draws one such panel. **Evidence:** *assumed* (link of the GPU); the
# queues are those from above.
#
# ## Caches of a server: DRAM, CXL, SSD, or compute again?
#
# A server that forgets a context can fetch its cache from a tier below, or compute it again. For an
# idle engine that is arithmetic: c tokens are c b bytes of cache, and about 2 P c operations.
# Fetching pays above the rate
#
#     R* = c b / (seconds to compute - latency - the new tokens' steps)    about b F / (2 P)
#
# `ob.reload_or_compute` has both sides exactly.

# %%
CONTEXTS = [1024, 4096, 16384, 65536] if FAST else [1024, 2048, 4096, 8192, 16384, 32768, 65536]
MODELS = {
    "llama-2-7b": ("Llama 2 7B, MHA", ORANGE, "s"),
    "qwen3-8b": ("Qwen3 8B, GQA 4", GREEN, "^"),
    "llama-3.1-8b": ("Llama 3.1 8B, GQA 4", DARK, "o"),
    "qwen2.5-7b": ("Qwen2.5 7B, GQA 7", PINK, "D"),
}
server = ob.load_machine("cxl-host")
SCHEDULER = {"kind": "continuous", "block_tokens": 128, "max_sequences": 64}
TIERS = {"recompute": ("Compute again", BLACK, "X"), "spill-dram": ("DRAM", ORANGE, "o"),
         "spill-cxl": ("CXL, x8", DARK, "s"), "spill-flash": ("SSD", GREEN, "D")}  # fmt: skip
crossing, ways = {}, {}
for model in MODELS:
    for context in CONTEXTS:
        if context + 128 > ob.load_model(model).max_context:
            continue  # its positions end there
        work = ob.Serve(model, "sample-chat", scheduler=SCHEDULER)
        found = ob.reload_or_compute(server, work, context, 128, "spill-cxl")
        crossing[model, context] = found.crossing_bytes_per_s / 1e9
work = ob.Serve("llama-3.1-8b", "sample-chat", scheduler=SCHEDULER)
for tier in list(TIERS)[1:]:
    ways[tier] = ob.reload_or_compute(server, work, 8192, 128, tier).bytes_per_s / 1e9
with styled():
    figure, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for model, (label, shade, mark) in MODELS.items():
        mine = [(c, crossing[model, c]) for c in CONTEXTS if (model, c) in crossing]
        ax.plot(*zip(*mine, strict=True), color=shade, marker=mark, ms=4, label=label)
    for tier, rate in ways.items():
        ax.axhline(rate, color="0.4", ls=":")
        ax.annotate(f"{TIERS[tier][0]}, {rate:.3g} GB/s", (CONTEXTS[-1], rate), ha="right",
                    va="bottom", size=7)  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set(yscale="log", xlabel="Context (tokens)", ylabel="Rate above which fetching pays (GB/s)",
           title="One H100: fetch a context, or compute it again")  # fmt: skip
    ax.xaxis.set_major_formatter("{x:g}")
    plainly(ax.yaxis)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")

# %% [markdown]
# **Seen:** models whose heads share keys and values need 3 to 8 GB/s, and less for long contexts,
# whose attention is quadratic. DRAM and CXL are far above, an SSD just: Llama 3.1 computes 1,024
# tokens sooner than it reads them, and 2,048 later. Where each head has a cache of its own (Llama
# 2) a token is four times the bytes: there an SSD loses, and CXL pays from 2,048 tokens on, by
# little.
#
# A busy server is another matter: links are shared, caches fill, tiers have room or not. Sixteen
# clients ask about texts of 107 GB of cache together, which the GPU does not hold (60 GB), 128 GiB
# of DRAM or CXL do. Each asks again when it has its answer, so that a run has latency *and*
# throughput.

# %%
LENGTHS = [2048, 8192] if FAST else [2048, 4096, 8192, 16384, 32768]
trace = {"requests": 100 if FAST else 500, "seed": 1,
         "arrivals": {"kind": "closed_loop", "concurrency": 16, "think": "0 s"},
         "lengths": {"input": {"kind": "lognormal", "mean": 9011, "cv": 0.02, "most": 131000},
                     "output": {"kind": "lognormal", "mean": 60, "cv": 0.5, "most": 200}},
         "prefix": {"texts": 100, "tokens": 8192, "block_tokens": 512}}  # fmt: skip
tokens = "workload.trace.prefix.tokens"
busy = points(
    {"mapping": {"values": list(TIERS)}, tokens: {"values": LENGTHS}},
    {"kind": "serve", "model": "llama-3.1-8b", "trace": trace, "scheduler": SCHEDULER},
    derive={"workload.trace.prefix.texts": f"floor(819200 / {tokens})",
            "workload.trace.lengths.input.mean": f"1.1 * {tokens}"},
)  # fmt: skip
# A system is charged what it uses: the host, and its own tier.
bare = {"aic.count": 0, "disk.count": 0}
own = {"spill-dram": {"cpu.dram.capacity": "512 GiB"}, "spill-cxl": {"aic.count": 1},
       "spill-flash": {"disk.count": 1}}  # fmt: skip
less = {"cpu.dram.capacity": "384 GiB"}
used = {t: machine_price_usd(server.replace({**less, **bare, **own.get(t, {})})) for t in TIERS}
whole, charged = busy["price_usd"].iloc[0], busy["mapping"].map(used)
busy["usd"] = busy["usd_per_mtoken"] * charged / whole
PANELS = {
    "ttft_p50": ("TTFT, median (s)", 1),
    "ttft_p99": ("TTFT, 99 % (s)", 1),
    "tpot_p50": ("TPOT, median (ms)", 1e3),
    "tokens_per_s": ("Answers (tokens/s)", 1),
    "usd": ("Parts (USD/Mtoken)", 1),
    "kv_hit_rate": ("Tokens not computed (%)", 100),
}
with styled():
    figure, panels = plt.subplots(2, 3, figsize=(9.2, 5.2), sharex=True, layout="constrained")
    for ax, (metric, (label, scale)) in zip(panels.flat, PANELS.items(), strict=True):
        for tier, (name, shade, mark) in TIERS.items():
            mine = busy[busy["mapping"] == tier].sort_values(tokens)
            ax.plot(mine[tokens], scale * mine[metric], color=shade, marker=mark, ms=4, label=name)
        ax.set_xscale("log", base=2)
        if metric != "kv_hit_rate":
            ax.set_yscale("log")
            plainly(ax.yaxis)
        ax.set_title(label)
        ax.set_xticks(LENGTHS)
        ax.xaxis.set_major_formatter("{x:g}")
    for ax in panels[1]:
        ax.set_xlabel("Text (tokens)")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
print({t: f"{usd:,.0f} USD" for t, usd in used.items()})
table = busy.pivot(index=tokens, columns="mapping", values=["ttft_p50", "tokens_per_s", "usd"])
table.round(3)

# %% [markdown]
# **Seen:**
#
# - CXL is DRAM to within 1 % of throughput at every length, with a median TTFT of 1.4 times at
#   most: sixteen clients leave 26 GB/s enough time.
# - At the SSD requests queue, once texts are long: seven GB/s are shared. Its throughput is that
#   rate over the bytes of a text, half as much again as to compute, as R* says; its median TTFT
#   is no shorter. Its TPOT is the shortest, because few run at a time.
# - The 99th percentile belongs to texts that are read for the first time. No tier helps those.
# - Money: DRAM pays from texts of 2,048 tokens on, CXL from 4,096, and at 32,768 they more than
#   halve the price. CXL stays 9 % above DRAM, since its bytes cost the same and the card comes on
#   top. What it has is slots: room that a host's sockets do not offer.
#
# **Evidence:** *assumed* (prices of parts: the GPU by its dies and memory, DDR5 at 2.4 USD/GB, a
# card at 500 USD).
# Studies `cxl_context`, `cxl_reuse` and `cxl_tiers` have more lengths, the share of a prompt that
# is known, and the number of texts.
#
# ## Cold weights
#
# Weights that are read in every step have no locality. What lies behind the link delays each step
# once it takes longer than the rest from the GPU's memory: a share above R / (R + HBM).

# %%
COLD = [0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]
cases = [("gpu.hbm", 0.0), *((t, c) for t in ("cpu.dram", "aic.dram") for c in COLD[1:])]
spread = [{"gpu.hbm": 1 - c, t: c} if c else {t: 1.0} for t, c in cases]
cold = points(
    {"workload.batch": {"values": [1, 64]}, "mapping.place.weight.in": {"values": spread}},
    {"kind": "decode", "model": "llama-3.1-8b", "batch": 1, "context": 4096},
    mapping="weights-cxl",
)
told = {str(p): case for p, case in zip(spread, cases, strict=True)}
cold["place"] = [told[p][0] for p in cold["mapping.place.weight.in"]]
cold["share"] = [told[p][1] for p in cold["mapping.place.weight.in"]]
with styled():
    figure, ax = plt.subplots(figsize=(5.8, 3.3), layout="constrained")
    for place, shade, mark in (("cpu.dram", ORANGE, "o"), ("aic.dram", DARK, "s")):
        for size, dash in ((1, "-"), (64, ":")):
            mine = cold[cold["place"].isin([place, "gpu.hbm"]) & (cold["workload.batch"] == size)]
            mine = mine.sort_values("share")
            name = {"cpu.dram": "DRAM", "aic.dram": "CXL, x8"}[place]
            ax.plot(100 * mine["share"], 1e3 * mine["tpot"], color=shade, marker=mark, ms=4,
                    ls=dash, label=f"{name}, batch {size}")  # fmt: skip
    ax.set(yscale="log", xlabel="Weights outside the GPU's memory (%)",
           ylabel="Time per token (ms)", title="Decode of Llama 3.1 8B, 4,096 tokens")  # fmt: skip
    plainly(ax.yaxis)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
cold.pivot(index=["workload.batch", "place"], columns="share", values="tpot").mul(1e3).round(1)

# %% [markdown]
# **Seen:** one per cent is free in CXL, two in DRAM. A tenth makes a step of one sequence 7.5 times
# as long in CXL and 3.8 times in DRAM; 64 sequences share the wait, and it is 3.4 and 2 times.
# Experts that few tokens use are another kind of cold weight ([expert
# offloading](../docs/machines/expert-offload.md)). **Evidence:** *assumed* (the GPU's link).
#
# ## Fine-tuning that spills: policies
#
# Mixed precision with Adam needs 16 bytes for each parameter: 122 GB for Qwen2.5-7B, and the
# host's budget here is 100 GiB. Who decides what lies behind CXL is a *policy*.


# %%
def trained(policy):
    """Return a mapping that trains out of the host's memory under a policy."""
    budget = {} if policy == "local_only" else {"budget": {"cpu.dram": "100 GiB"}}
    return {"groups": {"gpus": "gpu"}, "parallel": {"all": {"group": "gpus"}},
            "allocate": {"policy": policy, "local": "cpu.dram", "beyond": "aic.dram", **budget},
            "run": [{"ops": "optimizer", "unit": "cpu.cores"}, {"ops": "all", "unit": "gpu.sm"}],
            "fusion": "attention", "launch": "graph", "overlap": "copy"}  # fmt: skip


POLICIES = {"local_only": ("DRAM alone", BLACK), "naive_interleave": ("Interleaved", ORANGE),
            "cxl_aware": ("CXL-aware", DARK), "balanced": ("Balanced", PINK),
            "optimal": ("Optimal (MILP)", GREEN)}  # fmt: skip
ADAM = {"recompute": "full", "chunked_loss": True, "gradient": "bf16", "clip": False}
STEPS = {"1 × 4,096": (1, 4096), "16 × 4,096": (16, 4096), "3 × 32,768": (3, 32768)}
rows = []
for count in (1, 2):
    host = server.replace({"cpu.dram.channels": 8, "aic.dram.expander": {"capacity": "256 GiB"},
                           "aic.dram.capacity": "256 GiB", "aic.count": count})  # fmt: skip
    for size, (batch, length) in list(STEPS.items())[:: 2 if FAST else 1]:
        shape = {"batch": batch, "micro_batch": batch, "sequence": length}
        job = ob.TrainStep("qwen2.5-7b", **shape, **ADAM)
        for policy in POLICIES:
            step = ob.simulate(host, job, trained(policy))
            rows.append({"devices": count, "step": size, "policy": policy,
                         "tokens/s": step.tokens_per_s, "seconds": step.seconds,
                         "optimizer, s": step.optimizer_s})  # fmt: skip
spilled = pd.DataFrame(rows)
alone = spilled[spilled["policy"] == "local_only"].set_index(["devices", "step"])["tokens/s"]
spilled["of DRAM alone"] = [r["tokens/s"] / alone[r["devices"], r["step"]] for r in rows]
with styled():
    figure, panels = plt.subplots(1, 2, figsize=(8.2, 3.2), sharey=True, layout="constrained")
    for ax, (count, part) in zip(panels, spilled.groupby("devices"), strict=True):
        names = list(part["step"].unique())
        for i, (policy, (label, shade)) in enumerate(list(POLICIES.items())[1:]):
            mine = part[part["policy"] == policy]
            ax.bar(np.arange(len(names)) + 0.21 * (i - 1.5), 100 * mine["of DRAM alone"], 0.19,
                   color=shade, label=label)  # fmt: skip
        ax.axhline(100, color="0.4", lw=0.8)
        ax.set_xticks(range(len(names)), names)
        ax.set(xlabel="Sequences × tokens", title=f"{count} expander{'s' * (count > 1)}, x8")
        ax.grid(visible=False, axis="x")
    panels[0].set_ylabel("Tokens/s over DRAM alone (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
spilled.pivot(index=["devices", "step"], columns="policy", values="of DRAM alone").round(2)

# %% [markdown]
# **Seen:** the longer a step computes, the less the place of the optimizer's tensors matters; a
# short one shows all of it. Interleaving all tensors alike costs up to 39 %. To put what Adam
# touches into DRAM first recovers that in long steps, and a quarter of it in the shortest, whose
# weights and gradients then come from the expander alone. Chunks that move as long as the step gets
# shorter (*balanced*) reach the bound. Above 100 % both memories together are faster than DRAM
# alone. **Evidence:** *open* against the published 97 to 99 %: that paper names neither expander
# nor GPU.
#
# ## Where three published numbers hold together
#
# That paper says of one device 97 to 99 % of DRAM's throughput, of two about all of it, and of the
# optimizer four times slower wholly behind CXL. Each is a region over the rates of expander and
# DRAM; where all three hold is black. Real devices are marked, none was chosen to fit. The study
# `cxl_map` has more points and PCIe 3 and 6.

# %%
steps = 5 if FAST else 16
rates = {"machine.aic.dram.cxl.bandwidth": ["8 GB/s", "100 GB/s"],
         "machine.cpu.dram.imc.bandwidth": ["40 GB/s", "800 GB/s"]}  # fmt: skip
mapped = points(
    {"mapping": {"values": ["train-dram", "train-cxl", "train-beyond"]},
     "machine.aic.count": {"values": [1, 2]}, "workload.batch": {"values": [1, 2, 16]},
     **{path: {"range": ends, "steps": steps, "scale": "log"} for path, ends in rates.items()},
     "machine.dma.bandwidth": {"values": ["31.5 GB/s", "63 GB/s"]}},
    {"kind": "train", "model": "qwen2.5-7b", "batch": 16, "micro_batch": 16, "sequence": 4096,
     **ADAM},
    set={"machine.aic.dram.cxl.efficiency": 1, "machine.cpu.dram.imc.efficiency": 1,
         "machine.aic.dram.expander": {"capacity": "256 GiB"},
         "machine.aic.dram.capacity": "256 GiB", "machine.cxl.bandwidth": "126 GB/s"},
    derive={"workload.micro_batch": "workload.batch",
            "workload.sequence": "min(65536 / workload.batch, 32768 * workload.batch - 28672)"},
)  # fmt: skip
ob.plot.cxl_map(mapped)

# %% [markdown]
# **Seen:** long steps have a band in which all three are true: an expander of about a quarter of
# the DRAM, 20 to 90 GB/s beside 100 to 500. With short steps (1 × 4,096 tokens) they hold
# together nowhere near a real device. Measured devices lie beside the band, on hosts whose DRAM
# is too fast for them; with the artifact's four channels (grey) an x8 ASIC is in it.
# **Evidence:** no cell is our result: rates are axes, and what the paper's machine had is not
# published.
#
# ## How far to trust it
#
# - `opbyte validate cxl_devices` and `opbyte validate cxl_finetune` print every published number
#   with its class; most are *assumed*, and what misses is *open* with the value that would close
#   it.
# - Queues are means: no percentile of a loaded access. Link errors and retries are not modelled.
# - Contents are always fetched, also where that is slower; a scheduler knows no prices.
#
# More: [memory behind CXL](../docs/cxl.md), [training](../docs/training.md), [memory of the KV
# cache](../docs/kv-memory.md), [studies](../docs/studies.md), [evidence](../docs/evidence.md).
