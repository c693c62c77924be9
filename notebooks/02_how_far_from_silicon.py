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
# # How far from silicon?
#
# A roofline says what a chip could do at best. A library's kernel on a real GPU needs longer: it
# is launched, it fills its pipelines, its tiles do not divide the work evenly. This notebook shows
# what the model adds to the roofline for a matrix product and for attention, and, where measured
# rows are at hand, by how much the result misses them.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import opbyte as ob
from opbyte.core.errors import ConfigError
from opbyte.sweeps.plots import measured_against_simulated, styled
from opbyte.sweeps.validation import measured
from opbyte.sweeps.validation.folders import rows_folder

FAST = os.environ.get("FAST") == "1"

# %% [markdown]
# ## A product and its roofline
#
# The output projection of an 8 B model, 4096 x 4096 weights in bf16, for m tokens at once. The
# plain roofline is the larger of two times: operations at the peak of the data sheet, and every
# operand once at the rate of HBM's pins. `simulate_batch` prices a frame of operators, one in each
# row.

# %%
sizes = np.unique(np.geomspace(1, 8192, 40 if FAST else 400).round().astype(int))


def products(machine):
    """Return simulated and roofline seconds of the sweep over m."""
    rows = pd.DataFrame({"kind": "gemm", "m": sizes, "n": 4096, "k": 4096, "dtype": "bf16"})
    m, n, k = (rows[size].astype(float) for size in "mnk")
    values = ob.load_machine(machine).values
    operations = 2 * m * n * k / float(values["gpu.sm.peak.bf16"])
    memory = 2 * (m * k + k * n + m * n) / float(values["gpu.hbm.phy.bandwidth"])
    return ob.simulate_batch(machine, rows).assign(roofline=np.maximum(operations, memory))


a100 = products("a100-sxm-80gb")

# %%
with styled():
    figure, ax = plt.subplots(layout="constrained")
    ax.plot(a100["m"], 1e6 * a100["seconds"], label="simulated")
    ax.plot(a100["m"], 1e6 * a100["roofline"], linestyle="--", label="plain roofline")
    ax.set(xscale="log", yscale="log", xlabel="Tokens m", ylabel="Time (µs)")
    ax.set_title("4096 x 4096 product, bf16, A100")
    ax.legend()

# %% [markdown]
# The two are closest for large m, where the matrix units have work for many rounds. For a few
# tokens the weights are read in so little time that launching and filling count. They are farthest
# apart around the bend of the roofline, where neither rate is reached. The steps are waves: one
# tile more than the SMs can take starts another round.

# %%
some = a100[a100["m"].isin([a100["m"][i] for i in np.linspace(0, len(a100) - 1, 8).astype(int)])]
pd.DataFrame(
    {
        "roofline_us": 1e6 * some["roofline"],
        "simulated_us": 1e6 * some["seconds"],
        "simulated / roofline": some["seconds"] / some["roofline"],
    }
).set_index(some["m"]).round(2)

# %% [markdown]
# ## The same weights on a newer GPU
#
# On paper the H100 has 3.2 times the A100's matrix rate and 1.6 times its memory rate. The model
# gives it the A100's launches and trips to memory, so the smallest products gain a little less
# than the memory rate. In between, the waves of the two GPUs end at different m, and the ratio
# jumps.

# %%
h100 = products("h100-sxm-80gb")
with styled():
    figure, ax = plt.subplots(layout="constrained")
    ax.plot(sizes, a100["seconds"] / h100["seconds"], label="simulated")
    ax.plot(sizes, a100["roofline"] / h100["roofline"], linestyle="--", label="plain roofline")
    ax.set(xscale="log", yscale="log", xlabel="Tokens m", ylabel="A100 time / H100 time")
    ax.set_yticks([1, 2, 3, 4], labels=["1", "2", "3", "4"])
    ax.minorticks_off()
    ax.set_title("4096 x 4096 product, bf16")
    ax.legend()

# %% [markdown]
# ## Attention of one new token
#
# One sequence, 32 query heads of 128 elements, a growing KV cache. With as many KV heads as query
# heads, the A100's library starts one thread block for each head: 32 blocks, and most of the 108
# SMs have nothing to do. With grouped heads (8 KV heads) it packs the queries of a group into one
# tile, and cuts the cache into parts that several blocks read: split-KV. A second kernel combines
# the parts. The cache is a quarter, and it is read faster.

# %%
contexts = 2 ** np.arange(6, 18, 2 if FAST else 1)
calls = {}
for kv_heads in (32, 8):
    rows = pd.DataFrame(
        {
            "kind": "attention_decode",
            "batch": 1,
            "kv_tokens": contexts,
            "heads": 32,
            "kv_heads": kv_heads,
            "head_dim": 128,
            "dtype": "bf16",
            "kv_dtype": "bf16",
        }
    )
    cache = 2 * contexts * kv_heads * 128 * 2
    calls[kv_heads] = ob.simulate_batch("a100-sxm-80gb", rows).assign(cache=cache)

pins = float(ob.load_machine("a100-sxm-80gb").values["gpu.hbm.phy.bandwidth"])
with styled():
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.1, 2.6), layout="constrained")
    for kv_heads, call in calls.items():
        left.plot(contexts, 1e6 * call["seconds"], marker="o", label=f"{kv_heads} KV heads")
        rate = call["cache"] / call["seconds"]
        right.plot(contexts, 1e-12 * rate, marker="o", label=f"{kv_heads} KV heads")
    right.axhline(1e-12 * pins, color="0.5", linestyle="--", label="HBM's pins")
    left.set(xscale="log", yscale="log", xlabel="Context (tokens)", ylabel="Time (µs)")
    right.set(xscale="log", yscale="log", xlabel="Context (tokens)", ylabel="Cache read (TB/s)")
    left.legend()
    right.legend()

# %% [markdown]
# Up to a hundred tokens the time is that of starting the kernels, whatever the cache holds. The
# grouped curve rises where the cache is first cut, between 128 and 256 tokens: the library cuts by
# a rule on how full the SMs are, and there the second kernel costs more than the cut saves. From
# about 512 tokens on the grouped heads win, by more than the size of the cache alone from 8192 on.

# %% [markdown]
# ## Measured rows
#
# The rows are other people's measurements and no part of the package. The environment variable
# `OPBYTE_REFERENCE` names a folder whose `reference/gpu/` holds them; without it the cells below
# say so and go on.

# %%
OPERATORS = ("gemm", "prefill attention", "decode attention")
found = []
try:
    folder = rows_folder("gpu")
except ConfigError:
    print("No measured rows here: set OPBYTE_REFERENCE to the folder that holds reference/gpu/.")
else:
    wanted = [table for table in measured.TABLES if table.operator in OPERATORS]
    found = [each for table in wanted if (each := measured.compare(table, folder)) is not None]
    absent = [table.file for table in wanted if not (folder / table.file).is_file()]
    print(f"{len(found)} tables; absent: {', '.join(absent) or 'none'}")

# %% [markdown]
# Errors in percent. MAPE is the mean size, bias the mean with its sign: below 0 we are faster than
# the device. `seen` says what the fit of our parameters knew: `never` is another author's file,
# `left out` are rows of a file of which the fit saw a sample.

# %%
table = pd.DataFrame(
    [
        {
            "operator": each.table.operator,
            "machine": each.table.machine,
            "origin": each.table.origin.split(",")[0],
            "seen": each.seen,
            "band": band.band,
            "rows": band.rows,
            "MAPE": band.mape,
            "bias": band.bias,
            "median": band.median,
            "p95": band.p95,
        }
        for each in found
        for band in each.bands()
    ]
)
if found:
    table = table.set_index(["operator", "machine", "origin", "seen", "band"]).round(1)
table

# %% [markdown]
# The line is equality, the band a factor of 1.25 either way; the text is MAPE and the rows drawn.

# %%
if found:
    panels = {
        f"{each.table.operator}, {each.table.machine.split('-')[0].upper()}"
        f" ({each.table.origin.split()[0]})": each.rows
        for each in found
    }
    measured_against_simulated(panels)
else:
    print("No measured rows, no figure.")

# %% [markdown]
# ## What this does not show
#
# - **It is not a blind test.** No parameter was fitted to the rows marked `never` or `left out`,
#   but mechanisms, tiles and priors were chosen while looking at such rows.
# - **Other GPUs take the A100's kernel parameters.** They have their own data sheet and their
#   generation's facts, nothing more. The H100's products are compared above, its attention is not;
#   H20, H200, B200 and the cards with GDDR are compared with nothing.
# - **Clocks.** A board at its power limit slows down. The model has a rule for this that rests on
#   one published pair of rates; the operands of a benchmark (zeros or random numbers) decide how
#   much power it draws. Temperature and the spread between boards are not modelled.
# - **One operator at a time.** A row is an idle device and one call. Errors of a whole model's
#   step can add up or cancel.
#
# What each mechanism carries, and how far to trust it: [GPUs](../docs/machines/gpu.md).
