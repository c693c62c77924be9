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
# # Serving a trace
#
# A coding assistant asks a model for completions: long prompts, short answers, more at some
# moments than at others. Which GPU should serve it? A faster one answers sooner and costs more; a
# slower one may be fast enough. This notebook plays the requests of such a service on three
# machines, at rates up to what each can take, and compares the times that users see with dollars
# and joules.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter

import opbyte as ob
from opbyte.sweeps.plots import styled

FAST = os.environ.get("FAST") == "1"

# %% [markdown]
# ## The requests
#
# Azure published one hour of a coding service (2023): arrival, prompt and answer of each request,
# no text. The file is no part of the package. The environment variable `OPBYTE_REFERENCE` names a
# folder whose `traces/` holds it; without it the sample `sample-bursts` stands in, which is made
# up.

# %%
FILE = Path(os.environ.get("OPBYTE_REFERENCE", "../shared")) / "traces/azure_llm_2023_code.csv"
if FILE.is_file():
    trace = ob.load_trace(FILE)[: 400 if FAST else 1500]
else:
    print(f"{FILE} is not here: the made-up sample stands in, and the numbers are its own.")
    trace = ob.load_trace("sample-bursts")
about = trace.describe()
print(f"{trace.name}: {len(trace):,} requests, {trace.rate:.2f} per second on average")
pd.DataFrame({"prompt": trace.input_tokens, "answer": trace.output_tokens}).describe(
    percentiles=[0.5, 0.9, 0.99]
).round(0)

# %% [markdown]
# ## The machines
#
# One A100, one H100 and one RTX 4090, each with Llama-3.1-8B in bf16 and the same software:
# continuous batching, 512 tokens in a step, steps planned one ahead. What they are worth as
# predictions differs. The A100's kernel parameters were **calibrated** on measured kernels. The
# H100 and the RTX 4090 have their own data sheets and take the A100's kernel parameters: for them
# the times below are **predictions**. No serving run of any of the three was fitted.

# %%
MACHINES = {"A100": "a100-sxm-80gb", "H100": "h100-sxm-80gb", "RTX 4090": "rtx-4090"}
SCHEDULER = {"max_batched_tokens": 512, "max_sequences": 256, "depth": 2}
GOAL = {"ttft": "10 s", "tpot": "150 ms"}
work = ob.Serve("llama-3.1-8b", trace, scheduler=SCHEDULER, slo=GOAL)
as_traced = {name: ob.simulate(machine, work) for name, machine in MACHINES.items()}
METRICS = ["ttft_mean", "ttft_p99", "tpot_mean", "tpot_p99", "itl_p99", "goodput_per_s"]
METRICS += ["waiting_max", "kv_max", "utilisation", "usd_per_mtoken", "joules_per_token"]
pd.DataFrame({name: pd.Series(r.metrics)[METRICS] for name, r in as_traced.items()}).round(4)

# %% [markdown]
# At the rate of the trace: the grey lines are the limits that `goodput` counts by.
# `usd_per_mtoken` is what it costs to *make* the machine (dies and memories, no margin, no data
# centre), written off over three years, for each million tokens of answers.

# %%
figure = ob.plot.serving(as_traced)

# %% [markdown]
# ## How much can each take?
#
# `ob.capacity` stretches and squeezes the arrivals, and returns the largest rate at which 99 % of
# the requests see their first token within 10 s and later ones every 150 ms on average.

# %%
LIMITS = {"ttft_p99": "10 s", "tpot_p99": "150 ms"}
found = {name: ob.capacity(m, work, LIMITS, accuracy=0.05) for name, m in MACHINES.items()}
pd.DataFrame(
    {
        name: {"requests/s": c.rate, "limited by": c.limited_by, **pd.Series(c.metrics)[["kv_max"]]}
        for name, c in found.items()
    }
)

# %% [markdown]
# ## The front: times against dollars and joules
#
# Each line is one machine at rising load, from a tenth of its capacity to beyond it. More load
# spreads the price of the machine and its idle power over more tokens: cost falls, while times
# grow, slowly at first and then at once. Filled markers keep the limits, open ones do not. Lower
# left is better; where lines cross, the better machine depends on the time that users accept.

# %%
SHARES = np.array(
    [0.1, 0.3, 0.6, 0.9, 1.3] if FAST else [0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1, 1.15, 1.3]
)
points = pd.DataFrame(
    [
        {"machine": name, "rate": share * found[name].rate}
        | ob.simulate(machine, work.at(share * found[name].rate)).metrics
        for name, machine in MACHINES.items()
        for share in SHARES
    ]
)
points["kept"] = (points["ttft_p99"] <= 10.0) & (points["tpot_p99"] <= 0.15)

# %%
COSTS = {"usd_per_mtoken": "Dollars per million tokens", "joules_per_token": "Joules per token"}
TIMES = {"ttft_p99": ("First token, 99th percentile (s)", 1, 10.0),
         "tpot_p99": ("Later tokens, 99th percentile (ms)", 1e3, 0.15)}  # fmt: skip
with styled():
    figure, panels = plt.subplots(2, 2, figsize=(7.1, 5.2), sharex="col", layout="constrained")
    for row, (time, (label, scale, limit)) in zip(panels, TIMES.items(), strict=True):
        for ax, cost in zip(row, COSTS, strict=True):
            for i, (name, part) in enumerate(points.groupby("machine", sort=False)):
                style = {"marker": "os^"[i], "linestyle": ["-", "--", ":"][i]}
                (line,) = ax.plot(part[cost], scale * part[time], mfc="white", label=name, **style)
                good = part[part["kept"]]
                ax.plot(
                    good[cost],
                    scale * good[time],
                    color=line.get_color(),
                    marker=style["marker"],
                    ls="",
                )
            ax.axhline(scale * limit, color="0.5", lw=0.8)
            ax.set(xscale="log", yscale="log")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter(NullFormatter())
        row[0].set_ylabel(label)
    for ax, words in zip(panels[1], COSTS.values(), strict=True):
        ax.set_xlabel(words)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)

# %% [markdown]
# The cheapest point of each machine that keeps both limits:

# %%
best = points[points["kept"]].sort_values("usd_per_mtoken").groupby("machine", sort=False).head(1)
best.set_index("machine")[["rate", *TIMES, *COSTS, "utilisation"]].round(4)

# %% [markdown]
# ## How far to trust it
#
# - **Times.** The scheduler alone follows a real vLLM run on an RTX 4090 within 1.5 % where steps
#   take what that run's profile says. With the RTX 4090 of the catalog, of which no row was
#   measured, the same run's times come out 7 to 11 % late. The order of machines that differ by
#   less is open.
# - **Dollars** are the cost of making dies and memories at spot prices of 2023, not a price list.
#   The ratio of two machines depends on the assumed prices of their memories: `opbyte explain`
#   lists them.
# - **Joules** are dynamic energy of all steps and static power of the board; the host, cooling
#   and power supplies are not in it.
# - **One engine.** Several replicas, routers and failures change the tail.
#
# More: [serving a trace](../docs/serving.md), [evidence](../docs/evidence.md).
