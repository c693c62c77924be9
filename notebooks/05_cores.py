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
# # Cores: how should the arithmetic itself be built?
#
# A weight of −1, 0 or 1 needs no multiplier, a weight of 3 bits no 16-bit one, and attention is
# won by how it is mapped. Three cores, from gates to tokens per second: *look-up tables* for
# ternary weights, *bit-serial* arrays, and *spatial arrays* for attention. It needs about fifteen
# seconds.
#
# Each picture is followed by what is seen and by its class of evidence: *predicted*, *assumed*,
# *calibrated*, *internal* or *open*, see [evidence](../docs/evidence.md).

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import opbyte as ob
from opbyte.core.ternary import FORMATS, entropy_bits, packed_bytes
from opbyte.hw_models.compute.base import UnitView
from opbyte.hw_models.compute.lut import Core, product_cycles, structure
from opbyte.hw_models.compute.spatial.unit import arrays_of
from opbyte.hw_models.cost.primitives import NUMBERS, primitives
from opbyte.sweeps.plots import styled

FAST = os.environ.get("FAST") == "1"
TYPES = {"int8": "INT8", "int16": "INT16", "bf16": "BF16", "fp16": "FP16", "fp32": "FP32"}
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKS = "os^Dv<"

# %% [markdown]
# ## What arithmetic is made of
#
# Everything below is a count of a few gates and operators. Their areas and energies are data,
# with a range that goes from a count of gates to published synthesis; replace them by your own.

# %%
SAMPLES = 200 if FAST else 2000
gates = primitives(node_nm=16)
drawn = gates.sampled(SAMPLES)


def parts(p):
    """Return the operators that compete, 16 bits wide where nothing else is said."""
    found = {"register": p.register(16), "2:1 multiplexer": p.mux(2, 16)}
    for name, word in TYPES.items():
        found[f"{word} adder"] = p.add(NUMBERS[name])
    return found | {f"{TYPES[n]} multiplier": p.multiply(NUMBERS[n]) for n in TYPES}


middle, many = parts(gates), parts(drawn)
with styled():
    figure, panels = plt.subplots(1, 2, figsize=(7.1, 3.6), layout="constrained", sharey=True)
    for ax, what, factor in ((panels[0], "area", 1e12), (panels[1], "energy", 1e15)):
        for i, name in enumerate(middle):
            low, high = np.percentile(getattr(many[name], what) * factor, [5, 95])
            colour = COLOURS[2 if "adder" in name else 1 if "multiplier" in name else 0]
            ax.plot([low, high], [i, i], color=colour, lw=4, alpha=0.35, solid_capstyle="butt")
            ax.plot(getattr(middle[name], what) * factor, i, "o", color=colour)
        ax.set(xscale="log")
        ax.xaxis.set_major_formatter("{x:g}")
    panels[0].set(xlabel="Area at 16 nm (µm²)", yticks=range(len(middle)))
    panels[0].set_yticklabels(middle)
    panels[0].invert_yaxis()
    panels[1].set(xlabel="Energy of one operation at 16 nm (fJ)")

# %% [markdown]
# **Seen:** a 16-bit integer adder takes the area of two or three 2:1 multiplexers, an FP16 adder
# that of 45; so it depends on the type whether reading a table is worth it. Bars are 5 to 95 % of
# all ranges drawn at once; a dot at their end is a value whose range goes one way only.
# **Evidence:** *assumed*; areas and energies are published or recalled, some factors of nodes are
# not.

# %% [markdown]
# ## Which table size wins
#
# mu activations share a table of (3^mu − 1) / 2 sums: large tables save additions and cost
# multiplexers. For each type and mu we take the core with the least area per weight and cycle, of
# 12 to 120 activations and 16 to 96 readers at 16 nm; bands draw all gates from their ranges.

# %%
WIDE, K = (g.ravel() for g in np.meshgrid([12, 24, 36, 48, 60, 96, 120], [16, 32, 48, 64, 96]))
DRAWS = 40 if FAST else 400
prices = primitives(node_nm=16).sampled(DRAWS)
MUS = range(1, 6)


def least_area(name, mu):
    """Return the least area of a weight and cycle over tiles, um^2, for each draw."""
    shapes = [Core(activation=name, mu=mu, tables=round(n / mu), readers=int(k), accumulators=6912)
              for n, k in zip(WIDE, K, strict=True)]  # fmt: skip
    return np.min([structure(core, prices).area_per_mac * 1e12 for core in shapes], axis=0)


area = {name: np.array([least_area(name, mu) for mu in MUS]) for name in TYPES}
with styled():
    figure, ax = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
    for i, (name, word) in enumerate(TYPES.items()):
        saved = area[name][0] / area[name]
        ax.fill_between(MUS, *np.percentile(saved, [5, 95], axis=1), color=COLOURS[i], alpha=0.15)
        ax.plot(MUS, saved[:, 0], color=COLOURS[i], marker=MARKS[i], label=word)
    ax.axhline(1, color="0.4", lw=0.8)
    ax.set(yscale="log", xlabel="Activations that share a table, mu", xticks=MUS,
           ylabel="Weights per area, over mu = 1 (×)", yticks=[0.1, 0.2, 0.5, 1, 2])  # fmt: skip
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
best = {TYPES[n]: pd.Series(a.argmin(axis=0) + 1).value_counts(normalize=True)
        for n, a in area.items()}  # fmt: skip
wins = pd.DataFrame(best).T.fillna(0).mul(100).round(0).rename_axis(columns="wins, % of draws: mu")
wins.reindex(columns=sorted(wins.columns))

# %% [markdown]
# **Seen:** integers stop at mu = 2 and save little, floating point wants mu = 3, at times 2, and
# saves about half of the area; no draw of the gates gives an integer 3 or floating point 1.
# **Evidence:** *assumed* (our gates); that reuse pays more for FP16 than for INT8 is published
# too.
#
# Which parameters decide it? The gain of mu = 3 over mu = 1 for an FP16 tile of 48 × 64, when
# each parameter alone moves through its range:

# %%
TILE = {"activation": "fp16", "readers": 64}
work = {"kind": "gemm", "m": 1, "n": 6912, "k": 2560, "dtype": "fp16", "weight_dtype": "t1.6"}
tile = ob.load_machine("lut-tile")


def fp16_tile(mu):
    """Return a tile of 48 activations and 64 readers."""
    block = TILE | {"mu": mu, "tables": 48 // mu}
    return tile.replace({f"tile.core.lut.{k}": v for k, v in block.items()})


deciding = ob.sensitivity(fp16_tile(3), work, "area_m2", baseline=fp16_tile(1))
gate_rows = deciding[~deciding["parameter"].str.contains(r"lut\.(?:mu|tables|readers)")]
gate_rows.attrs |= deciding.attrs
ax = ob.plot.sensitivity(gate_rows, most=3)
_ = ax.set(xlabel="Area of mu = 1 over mu = 3 (×)")

# %% [markdown]
# **Seen:** the FP16 adder and the multiplexer decide, nothing else is seen beside them: the
# smaller the adder, the less a table saves. **Evidence:** *assumed*; both ranges are in
# `gates-45nm`.

# %% [markdown]
# ## Core size against density, and one large core against many small
#
# Left: square tiles of 8 to 96. Right: 64 tables and 128 readers in one core, or cut into 4, 16
# and 64 cores of a half, a quarter and an eighth of each side, for 16 tokens (study `lut_cores`).

# %%
SIDES = np.array([8.0, 16, 32, 48, 64, 96])
KINDS = {"INT8, mu = 2": ("int8", 2), "FP16, mu = 3": ("fp16", 3), "FP16, mu = 1": ("fp16", 1)}
with styled():
    figure, panels = plt.subplots(1, 2, figsize=(7.1, 3.0), layout="constrained")
    for i, (word, (name, mu)) in enumerate(KINDS.items()):
        style = {"color": COLOURS[i], "marker": MARKS[i], "label": word}
        square = Core(activation=name, mu=mu, tables=np.ceil(SIDES / mu), readers=SIDES)
        panels[0].plot(SIDES, 1e-9 / structure(square, gates).area_per_mac, **style)
        cores = np.array([1.0, 4, 16, 64])
        many_small = Core(activation=name, mu=mu, tables=64 / cores**0.5, readers=128 / cores**0.5,
                          buffers=2, instances=cores)  # fmt: skip
        built = structure(many_small, gates)
        cycles = product_cycles(built, m=16.0, n=6912.0, k=2560.0).total
        product = built.area_m2 * cores * cycles
        panels[1].plot(cores, product / product[0], **style)
    panels[0].set(xlabel="Side of the tile (weights)", ylabel="Weights a cycle (thousands per mm²)",
                  xscale="log", yscale="log", xticks=SIDES, yticks=[5, 10, 20, 50])  # fmt: skip
    panels[1].set(xlabel="Cores that share the work", ylabel="Area × time, over one core (×)",
                  xscale="log", xticks=cores, ylim=(0.9, None))  # fmt: skip
    for ax in panels:
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

# %% [markdown]
# **Seen:** density grows with a tile and levels off, because more readers share what fills a
# table; one large core takes the least area times time, and the more is shared the more many
# small ones cost: with mu = 1 nothing is, and they are nearly free. **Evidence:** *assumed*;
# wires, which grow with a core, are not in it.

# %% [markdown]
# ## Stored bits against the entropy bound
#
# A ternary weight carries at most log₂ 3 = 1.585 bits; the real shares of −1, 0 and 1 decide. We
# pack a random matrix of 256 × 2560 with equal shares in each format.

# %%
weights = np.random.default_rng(0).integers(-1, 2, (256, 2560))
bits = {name: 8 * packed_bytes(*weights.shape, name) / weights.size
        for name in FORMATS if name != "t1.25"}  # fmt: skip
with styled():
    figure, ax = plt.subplots(figsize=(6.2, 2.9), layout="constrained")
    ax.bar(list(bits), list(bits.values()), 0.62, color=COLOURS[0])
    ax.bar(["t1.25\n(Sherry)"], [8 * packed_bytes(*weights.shape, "t1.25") / weights.size], 0.62,
           color=COLOURS[1])  # fmt: skip
    ax.axhline(entropy_bits(weights), color=COLOURS[4], ls="--", label="entropy of the matrix")
    ax.axhline(1.25, color="0.3", ls=":", label="entropy of Sherry's weights, one zero in four")
    ax.set(ylabel="Stored bits of a weight", ylim=(0, 2.2))
    ax.grid(visible=False, axis="x")
    ax.tick_params(axis="x", labelrotation=0)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)

# %% [markdown]
# **Seen:** five trits in a byte lie 1 % above the bound and keys of mu = 5 meet them; no format
# of any weights goes below, and Sherry's only because it forbids most patterns. **Evidence:**
# *predicted*: packing and unpacking are code, and every size is counted.

# %% [markdown]
# ## BitNet from gates to tokens
#
# Decoding one sequence with 512 tokens of context on `lut-generator`, in three stored formats.

# %%
SIZES = {"0.7B": "bitnet-b1.58-0.7b", "1.3B": "bitnet-b1.58-1.3b",
         "2B4T": "bitnet-b1.58-2b-4t", "3B": "bitnet-b1.58-3b"}  # fmt: skip
STORED = ["t2", "t1.67", "t1.6"]
SHARE = "bound by LPDDR5, % of time"
rows = []
for word, name in SIZES.items():
    for form in STORED:
        model = ob.load_model(name).with_precision(attention=form, ffn=form)
        r = ob.simulate("lut-generator", ob.Decode(model, batch=1, context=512))
        memory = r.breakdown["bound_by"] == "chip.lpddr.phy"
        rows.append({"model": word, "format": form, "tokens/s": r.tokens_per_s,
                     "mJ/token": 1e3 * r.joules_per_token,
                     SHARE: 100 * r.breakdown.loc[memory, "seconds"].sum()
                     / r.seconds})  # fmt: skip
bitnet = pd.DataFrame(rows)
with styled():
    figure, ax = plt.subplots(figsize=(5.6, 2.9), layout="constrained")
    for i, form in enumerate(STORED):
        part = bitnet[bitnet["format"] == form]
        ax.bar(np.arange(len(SIZES)) + 0.27 * (i - 1), part["tokens/s"], 0.25, color=COLOURS[i],
               label=f"{form[1:]} bits", hatch=["", "//", ".."][i], edgecolor="white")  # fmt: skip
    ax.set(xticks=range(len(SIZES)), ylabel="Decode (tokens/s)", xlabel="BitNet b1.58 model")
    ax.set_xticklabels(SIZES)
    ax.grid(visible=False, axis="x")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
bitnet.pivot(index="model", columns="format", values=SHARE).loc[list(SIZES)].round(0)

# %% [markdown]
# **Seen:** nearly all of the time is LPDDR5's, so the core's size does not matter here and stored
# bits do; 2B4T lags because its large vocabulary makes a head in BF16. **Evidence:** *assumed*:
# the chip around the core is ours.

# %% [markdown]
# ## Bit-serial: when does the array stop waiting for DRAM?
#
# *BitMoD* takes two bits of a weight a cycle; ANT, OliVe and FP16 of about the same area take a
# cycle for a product of any width. Llama 3 8B behind 32 GB/s, with 256 tokens of context.

# %%
ARRAYS = {
    "FP16, 16 bits": ("bitmod-fp16", "fp16"),
    "ANT, 4.5 bits": ("bitmod-ant", "q4.5"),
    "OliVe, 4.5 bits": ("bitmod-olive", "q4.5"),
    "BitMoD, 6 bits": ("bitmod", "bitmod6"),
    "BitMoD, 4 bits": ("bitmod", "bitmod4"),
    "BitMoD, 3 bits": ("bitmod", "bitmod3"),
}
BATCHES = [1, 8, 32, 128] if FAST else [1, 2, 4, 8, 16, 24, 32, 48, 64, 128]
llama = ob.load_model("llama-3-8b")
rows = []
for word, (machine, form) in ARRAYS.items():
    stored = llama.with_precision(weight=form, activation="fp16", kv="fp16")
    for batch in BATCHES:
        r = ob.simulate(machine, ob.Decode(stored, batch=batch, context=256))
        waits = r.breakdown["bound_by"] == "chip.dram.phy"
        rows.append({"array": word, "batch": batch, "tokens/s": r.tokens_per_s,
                     "J/token": r.joules_per_token,
                     "DRAM": 100 * r.breakdown["seconds"][waits].sum() / r.seconds})  # fmt: skip
serial = pd.DataFrame(rows)
with styled():
    figure, panels = plt.subplots(1, 3, figsize=(7.1, 3.1), layout="constrained")
    for i, (word, part) in enumerate(serial.groupby("array", sort=False)):
        for ax, what in zip(panels, ("tokens/s", "J/token", "DRAM"), strict=True):
            ax.plot(part["batch"], part[what], color=COLOURS[i], marker=MARKS[i], label=word,
                    ms=4, ls="--" if i in (1, 2) else "-")  # fmt: skip
    panels[0].set(ylabel="Throughput (tokens/s)", yscale="log")
    panels[1].set(ylabel="Energy (J per token)", yscale="log")
    panels[2].set(ylabel="Time bound by DRAM (%)", ylim=(-4, 104))
    for ax in panels:
        ax.set(xscale="log", xlabel="Batch (sequences)", xticks=[1, 8, 32, 128])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)

# %% [markdown]
# **Seen:** up to 16 sequences all wait for DRAM and only stored bits count; then the products
# leave it, those of ANT, OliVe and 3 bits between 16 and 24 sequences, of 4 and 6 bits between 32
# and 48, of FP16 last; beyond, cycles for a weight decide. What still waits is the cache, and the
# product `down`, whose inputs outgrow their buffer, so that its weights come again. **Evidence:**
# *assumed*: cycles equal the published simulator's (conformity), the energy of buffers and lanes
# is ours.

# %% [markdown]
# ## Attention on spatial arrays
#
# The same PEs, three ways: *unfused* writes the scores to memory, *FLAT* keeps rows of them on
# the chip, *FuseMax* walks the keys once. BERT's heads, batch 64, on the cloud configurations.

# %%
HEADS, WIDTH = 12, 64
LENGTHS = [2**i for i in ((10, 14, 18) if FAST else range(10, 21, 2))]
DESIGNS = {
    "Unfused": ("flat-cloud", "unfused"),
    "FLAT": ("flat-cloud", None),
    "FuseMax": ("fusemax-cloud", None),
}
rows = []
for word, (machine, mapping) in DESIGNS.items():
    for n in LENGTHS:
        encoder = {"kind": "attention_prefill", "batch": 64, "q_tokens": n, "kv_tokens": n,
                   "heads": HEADS, "kv_heads": HEADS, "head_dim": WIDTH, "dtype": "fp16",
                   "causal": False}  # fmt: skip
        plan = ob.attention_plan(machine, encoder, mapping=mapping)[0].row()
        rows.append({"design": word, "tokens": n, **plan})
spatial = pd.DataFrame(rows)
with styled():
    figure, panels = plt.subplots(1, 3, figsize=(7.1, 3.1), layout="constrained")
    for i, (word, part) in enumerate(spatial.groupby("design", sort=False)):
        style = {"color": COLOURS[i], "marker": MARKS[i], "label": word}
        base = spatial[spatial["design"] == "Unfused"]["seconds"].to_numpy()
        panels[0].plot(part["tokens"], part["seconds"] / base, **style)
        panels[1].plot(part["tokens"], 100 * part["utilisation_2d"], **style)
        panels[2].plot(part["tokens"], part["dram_bytes"], **style)
    n, held = np.array(LENGTHS, float), part["buffer_bytes"].to_numpy() / 2
    all_heads = 2 * 64 * HEADS
    panels[2].plot(n, all_heads * 4 * n * WIDTH, color="0.25", ls=":", label="Inputs and result")
    panels[2].plot(n, all_heads * n**2 * WIDTH**2 / held, color="0.25", ls="--",
                   label="Order of the bound, N²d²/M")  # fmt: skip
    panels[0].set(ylabel="Latency over unfused (×)", ylim=(0, None))
    panels[1].set(ylabel="Utilisation of the array (%)", ylim=(-4, 104))
    panels[2].set(ylabel="Traffic to DRAM (bytes)", yscale="log")
    for ax in panels:
        ax.set(xscale="log", xlabel="Sequence (tokens)")
        ax.set_xticks([2**10, 2**14, 2**18], ["1K", "16K", "256K"])
        ax.minorticks_off()
    figure.legend(*panels[2].get_legend_handles_labels(), loc="outside lower center", ncols=3)
spatial.pivot(index="tokens", columns="design", values="seconds")[list(DESIGNS)].round(4)

# %% [markdown]
# **Seen:** FuseMax keeps the array busy at every length and moves little more than its inputs
# until they outgrow the chip; FLAT pays once rows of scores no longer fit, and its lanes, which
# do the softmax, leave the array idle before that. **Evidence:** latency, utilisation and traffic
# equal the artifact's (conformity with a model, not silicon); FLAT's mapping is *calibrated*, the
# energy *open*.
#
# How near to the law is each cascade? One head of 2^18 tokens on FuseMax's PEs:

# %%
pes = arrays_of(UnitView(ob.load_machine("fusemax-cloud"), "chip.pe"))
_ = ob.plot.attention_traffic(2**18, WIDTH, arrays=pes)

# %% [markdown]
# **Seen:** one pass comes within a small factor of the law wherever its tile of 256 keys fits;
# two and three passes move scores until whole rows fit, whatever else the chip holds.
# **Evidence:** the constant, 4.0 to 5.0, is counted from tiles and holds from M = d² up
# (*predicted*, an order in theory).
#
# ## How far to trust it
#
# - None of these cores was measured here: gates are published and recalled values, arrays are
#   compared with simulators of their authors. `opbyte validate ternary_lut_generator bitmod
#   attention fusemax` prints each number with its class.
# - The published 2.2 × of tables over multipliers stays *open*: our multipliers are larger.
#
# More: [look-up tables](../docs/machines/lut.md), [bit-serial
# arrays](../docs/machines/bit-serial.md), [spatial arrays](../docs/machines/spatial.md). The
# studies `opbyte sweep ternary_lut`, `lut_cores`, `bit_serial` and `spatial_attention` sweep what
# is fixed here.
