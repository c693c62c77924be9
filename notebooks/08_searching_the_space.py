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
# # Searching the space: which few designs are worth building?
#
# A design space is quickly ten thousand points, and a point that is played operator by operator
# takes milliseconds to seconds. A search looks for the *front*: the points that no other beats in
# every objective.
#
# **Question:** how many points must be played to have the front, what decides it, how sure is it,
# and which architecture wins if all have the same budget?
#
# **What helps:** the analytic model prices all points as arrays, and never says that a point is
# slower than it is: contention only delays. It can screen. It needs about 40 seconds.

# %%
import json
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import opbyte as ob
from opbyte.sweeps.pareto import hypervolume
from opbyte.sweeps.plots import styled

FAST = os.environ.get("FAST") == "1"
ROOM = Path(tempfile.mkdtemp())
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"

# %% [markdown]
# ## The space
#
# `search_duplex` asks how much logic a stack of HBM should have (Duplex, MICRO 2024): the rate of
# its TSVs, the peak of Logic-PIM beside them, the rate of the interposer, the batch and who
# computes the experts. Mixtral runs on four devices; a token may take 60 ms at the 99th percentile.
# We take 1,920 of its 10,080 points, those with `pe-et` and at most 64 sequences.

# %%
SPACE = {
    "axes.mapping": {"values": ["pe-et"]},
    "axes.workload.batch": {"values": [8, 16, 32, 64]},
}
BUDGET = 60 if FAST else 100


def searched(name, **strategy):
    """Return the results of a search, and what it says of itself."""
    kind = {"kind": "optuna", "trials": BUDGET, "population": 20, "seed": 0, **strategy}
    study = ob.load_study("search_duplex", {**SPACE, "strategy": kind})
    results = study.run(ROOM / name, workers=1)
    return results, json.loads((ROOM / name / "search.json").read_text())


two, about = searched("two levels")
objectives = two.objectives
{k: about[k] for k in ("screened", "played", "could_still_join", "law_broken")}

# %% [markdown]
# All points were screened and a few were played; none of the others could still join the front, or
# so many as `could_still_join` says. The law that makes the screen trustworthy was never broken.
#
# ## Two levels: what is screened and what is played

# %%
grid = {**SPACE, "strategy": {"kind": "grid"}, "fidelity": "analytic"}
screen = ob.load_study("search_duplex", grid).run(ROOM / "screen", workers=1).frame()
played = two.frame()
best = ob.front(played, objectives)
AXES = [a for a in two.axes if a != "mapping"]
both = played.merge(screen, on=AXES, suffixes=("", "_screen"))
gap = 100 * (both["tokens_per_s_screen"] / both["tokens_per_s"] - 1)

with styled():
    figure, panels = plt.subplots(1, 2, figsize=(7.4, 3.2), layout="constrained")
    ok = screen[screen["status"] == "ok"]
    for frame, colour, mark, size, label in (
        (ok, "0.75", ".", 4, f"screened ({len(ok):,})"),
        (played, BLUE, "o", 14, f"played ({len(played)})"),
        (best, ORANGE, "s", 14, f"front ({len(best)})"),
    ):
        panels[0].scatter(
            1e6 * frame["area_m2"], frame["tokens_per_s"], s=size, color=colour, marker=mark,
            label=label,
        )  # fmt: skip
    panels[0].set(xlabel="Logic die area of four devices (mm²)", ylabel="Throughput (tokens/s)",
                  title="Two levels")  # fmt: skip
    panels[0].legend(loc="upper left", fontsize=7)
    panels[1].hist(gap, bins=20, color=BLUE)
    panels[1].set(xlabel="Screen too fast by (%)", ylabel="Played points",
                  title="Gap between the levels")  # fmt: skip
pd.Series(gap).describe().round(3)

# %% [markdown]
# **Seen:** the played points lie along the edge of the cloud. Energy is the third objective, so a
# point of the front may look beaten in this view. The gap is never below zero: the screen only
# promises too much. **Evidence:** the law is tested on random machines; the gap is measured here.
#
# ## What screening saves
#
# The same number of plays without a screen: Optuna's NSGA-II with our neighbours, and random
# points. Hypervolume is what a front dominates, objectives scaled to the front of all points.

# %%
one, _ = searched("one level", screen="none")
blind, _ = searched("random", screen="none", sampler="random")
truth = ob.front(screen, objectives)
signs = np.array([1.0 if way == "min" else -1.0 for way in objectives.values()])
low, high = ((f(truth[list(objectives)] * signs, axis=0)).to_numpy() for f in (np.min, np.max))


def volume(frame):
    """Return the hypervolume of a front, its objectives scaled to the front of all points."""
    costs = (ob.front(frame, objectives)[list(objectives)].to_numpy() * signs - low) / (high - low)
    return hypervolume(costs, np.full(len(objectives), 1.1))


plays = {"two levels": two.frame(), "one level": one.frame(), "random": blind.frame()}
pd.DataFrame(
    {
        name: {"played": len(frame), "on its front": len(ob.front(frame, objectives)),
               "share of the hypervolume": volume(frame) / volume(screen)}
        for name, frame in plays.items()
    }
).T.round(4)  # fmt: skip

# %% [markdown]
# **Seen:** every play of two levels lands on the front, a quarter of the others'. A search without
# a screen pays for finding out what the arrays know. **Evidence:** one seed here; medians of ten
# seeds on three whole spaces, enumerated at the event level, are in `docs/search.md`.
#
# ## What decides
#
# With all points priced, importance is counted, not estimated: the share of an objective's variance
# (of its logarithm, over the grid) that goes away when one axis is known, the first Sobol index.


# %%
def first_order(frame, metric):
    """Return the share of the variance of ln(metric) that each axis explains alone."""
    y = np.log(frame[metric])
    means = {a: y.groupby(frame[a]).transform("mean") for a in AXES}
    return pd.Series({a: m.var() / y.var() for a, m in means.items()})


NAMES = {"machine.device.hbm.tsv.bandwidth": "rate of the TSVs",
         "machine.device.lpim.peak.bf16": "peak of Logic-PIM",
         "machine.device.hbm.interposer.bandwidth": "rate of the interposer",
         "workload.batch": "batch"}  # fmt: skip
LABELS = {"tokens_per_s": "Throughput", "joules_per_token": "Energy per token",
          "area_m2": "Die area"}  # fmt: skip
shares = pd.DataFrame({LABELS[m]: first_order(ok, m) for m in objectives}).rename(index=NAMES)
with styled():
    figure, ax = plt.subplots(figsize=(6.4, 2.9), layout="constrained")
    for i, (column, colour) in enumerate(zip(shares, (BLUE, ORANGE, GREEN), strict=True)):
        ax.barh(np.arange(len(shares)) + 0.26 * (i - 1), 100 * shares[column], 0.24, color=colour,
                label=column)  # fmt: skip
    ax.set_yticks(np.arange(len(shares)), shares.index)
    ax.invert_yaxis()
    ax.set(xlabel="Variance explained by one axis alone (%)", xlim=(0, 100),
           title="What decides in this space")  # fmt: skip
    ax.grid(visible=False, axis="y")
    figure.legend(loc="outside right upper")
(100 * shares).round(1)

# %% [markdown]
# **Seen:** throughput and energy are mostly the batch, which costs latency and no area; area is
# TSVs and multipliers. So the choice of hardware is a choice at a batch. What is missing to 100 %
# acts together: TSVs only help multipliers that can keep up. **Evidence:** over these ranges; other
# ranges give other shares.
#
# ## A front with its band
#
# Prices, efficiencies and latencies are known within ranges. `ob.front_band` draws all of them at
# once, the same for all points, and counts in how many draws a point is on the front. Here the
# front of dollars and energy per token, among what was played.

# %%
SAMPLES = 65 if FAST else 257
banded = ob.front_band(
    two, objectives={"usd_per_mtoken": "min", "joules_per_token": "min"}, parameters="all",
    samples=SAMPLES, most=20 if FAST else 40,
)  # fmt: skip
drawn = banded.frame.sort_values("usd_per_mtoken")
with styled():
    figure, ax = plt.subplots(figsize=(6.2, 3.4), layout="constrained")
    usd, joules = 100 * drawn["usd_per_mtoken"], drawn["joules_per_token"]
    ax.hlines(joules, 100 * drawn["usd_per_mtoken_low"], 100 * drawn["usd_per_mtoken_high"],
              color="0.85", lw=1)  # fmt: skip
    dots = ax.scatter(usd, joules, c=100 * drawn["probability"], cmap="cividis_r", vmin=0,
                      vmax=100, s=26, zorder=3)  # fmt: skip
    kept = drawn["on_front"]
    ax.scatter(usd[kept], joules[kept], s=80, facecolors="none", edgecolors=ORANGE, zorder=4,
               label="front at own values")  # fmt: skip
    ax.set(xlabel="Making (US cents per Mtoken), 5 to 95 %", ylabel="Energy (J per token)",
           title="Which designs stay on the front?", xlim=(0, None))  # fmt: skip
    figure.colorbar(dots, ax=ax, label="Draws on the front (%)")
    ax.legend(loc="upper right")
drawn[["workload.batch", "area_m2", "usd_per_mtoken", "usd_per_mtoken_low", "usd_per_mtoken_high",
       "joules_per_token", "probability"]].head(8).round(4)  # fmt: skip

# %% [markdown]
# **Seen:** the grey bars are far wider than the designs are apart, and few designs are on the front
# in most draws. What all share (the price of HBM, how long and how busily a machine lives) moves
# them together, so that their *order* is surer than their place. **Evidence:** *assumed* ranges.
#
# ## One budget, every architecture
#
# At last whole machines, with what 20 DGX H100 cost: GPUs, three tiers (SN40L), Logic-PIM under the
# GPU's HBM, drives that attend, CXL behind the GPU, and tables for ternary weights, which only a
# ternary model can use. Copies are whole, each serves sequences of its own, and the best batch and
# mapping of each counts. Parameters that machines share move together in a draw.

# %%
WORKS = {"one_budget": ("Chats, 70B", [512, 640, 768, 1024]),
         "one_budget_long": ("100,000 of context", [8, 12]),
         "one_budget_prompts": ("Long prompts", [16, 24]),
         "one_budget_moe": ("Experts", [1024, 1536]),
         "one_budget_ternary": ("A ternary model", [3072, 6144, 12288])}  # fmt: skip
FAMILY = {"dgx-h100": "GPU (built)", "sn40l-dgx-host": "Three tiers",
          "dgx-h100-logic-pim": "Logic-PIM", "dgx-h100-cxl": "CXL", "dgx-h100-csd": "CSD",
          "lut-2048-dgx-host": "Ternary tables"}  # fmt: skip
if FAST:
    WORKS = {name: WORKS[name] for name in ("one_budget_long", "one_budget_prompts")}
found = {}
for name, (label, batches) in WORKS.items():
    study = ob.load_study(name, {"axes.workload.batch": {"values": batches}})
    found[label] = ob.contest(study.run(ROOM / name, workers=1), samples=SAMPLES)
COLOURS = dict(zip(FAMILY, ("#000000", BLUE, ORANGE, GREEN, PINK, "#E69F00"), strict=True))
with styled():
    figure, panels = plt.subplots(1, 3, figsize=(7.6, 4.6), sharey=True, layout="constrained")
    for ax, (within, title) in zip(
        panels, {"price_usd": "Equal money", "area_m2": "Equal die area", "tdp_w": "Equal power"}
        .items(), strict=True,
    ):  # fmt: skip
        for i, frame in enumerate(found.values()):
            rows = frame[frame["within"] == within].set_index("machine")
            unit = rows.loc["dgx-h100", "tokens_per_s"]
            for k, name in enumerate(FAMILY):
                if name not in rows.index:
                    continue
                y, row = i + 0.13 * (k - 2.5), rows.loc[name]
                ax.plot([row["low"] / unit, row["high"] / unit], [y, y], color=COLOURS[name], lw=2)
                ax.plot(row["tokens_per_s"] / unit, y, "oXsD^v"[k], color=COLOURS[name], ms=4,
                        label=FAMILY[name] if i == len(found) - 1 else None)  # fmt: skip
        ax.axvline(1, color="0.6", lw=0.8, zorder=0)
        ax.set(xscale="log", xlim=(0.1, 8), title=title, xticks=[0.1, 0.3, 1, 3])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
        ax.grid(visible=False, axis="y")
    panels[0].set_yticks(range(len(found)), found)
    panels[0].invert_yaxis()
    panels[1].set_xlabel("Tokens per second over those of as much GPU (×), 5 to 95 %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
refused = {label: frame.attrs["refused"] for label, frame in found.items()}
winners = pd.DataFrame(
    {label: frame.drop_duplicates("within").set_index("within")["machine"].map(FAMILY)
     for label, frame in found.items()}
).T  # fmt: skip
print({label: why for label, why in refused.items() if why})
winners

# %% [markdown]
# **Seen:** no architecture wins for all works and budgets. Logic-PIM wins where keys, values and
# experts are read, and the ternary model; GPUs win prompts by money and die area, three tiers by
# power, and these come near for chats by power. CXL behind a GPU is best left unused here, and
# drives keep no latency: both are for caches that are not read for every token. That Logic-PIM
# wins rests on one input, TSVs of four times the interposer's rate; `docs/one-budget.md` says what
# must be false for it to lose.
# **Evidence:** every machine but the DGX H100 is a prediction, and all have assumed parameters that
# matter (`evidence` in the table of `ob.contest`). The bands cover ranges of parameters, not what
# the models leave out.
#
# ## How far to trust it
#
# - A front is of played points alone; `could_still_join` says how many others it may lack.
# - The screen is as good as the law that contention only delays. It is checked at each play.
# - `docs/one-budget.md` says how machines are scaled, and what makes the comparison unfair still.
#
# More: [searching](../docs/search.md), [one budget](../docs/one-budget.md),
# [costs](../docs/costs.md), [what six studies found](../docs/studies.md),
# [evidence](../docs/evidence.md).
