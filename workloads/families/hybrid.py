"""Decoders of which many layers keep a constant state: Nemotron-H (Mamba-2) and LFM2 (convolution).

Shapes follow the modeling code of the transformers library (nemotron_h, lfm2).
"""

from __future__ import annotations

from dataclasses import replace

from opbyte.workloads.families.common import Sizes, assemble, read_sizes
from opbyte.workloads.families.fields import MOST_LAYERS, Fields
from opbyte.workloads.families.llama import attention
from opbyte.workloads.families.moe import read_experts
from opbyte.workloads.model import Attention, DenseFfn, Layer, Mamba, Model, MoeFfn, ShortConv

_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_NAMES = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
    "mlp": "mlp",
    "moe": "moe",
}


def _nemotron_kinds(f: Fields) -> list[str]:
    """Return the kind of each layer from the pattern or the list."""
    listed = f.get("layers_block_type", "layer_types")
    pattern = f.get("hybrid_override_pattern")
    key = "layers_block_type" if listed is not None else "hybrid_override_pattern"
    given, words = (listed, _NAMES) if listed is not None else (pattern, _LETTERS)
    good = isinstance(given, list if listed is not None else str) and len(given) > 0
    good = good and all(isinstance(entry, str) and entry in words for entry in given)
    remedy = f"Known: {', '.join(words)}."
    if not good:
        f.fault(key, "one known kind for each layer is due", given, remedy)
        return ["mlp"]
    layers = f.size("num_hidden_layers", default=len(given), most=MOST_LAYERS)
    if len(given) != layers:
        f.fault("num_hidden_layers", f"{key} has {len(given)} layers", layers, "Correct one.")
    return [words[entry] for entry in given]


def _nemotron_experts(f: Fields) -> MoeFfn:
    """Read the two-matrix experts: one shared, the routed ones perhaps on a compressed input."""
    experts, top_k = read_experts(f)
    f.only("n_shared_experts", (1,), why="one shared expert is due")
    return MoeFfn(
        experts,
        top_k,
        f.size("moe_intermediate_size"),
        matrices=2,
        shared_width=f.size("moe_shared_expert_intermediate_size"),
        router_bias=True,
        latent=f.size("moe_latent_size", default=0),
    )


def nemotron_h(f: Fields) -> Model:
    """Nemotron-H and Nemotron 3: each layer is one mixer or one FFN behind one norm.

    Attention has no positions. `expand` is not read: the inner width is heads x head width.
    """
    kinds = _nemotron_kinds(f)
    s = read_sizes(f, head_dim_keys=("attention_head_dim", "head_dim"), layers=len(kinds))
    bias = f.flag("attention_bias", default=False)
    f.ignore("expand", "mamba_ssm_cache_dtype", "norm_before_gate")
    f.only("mamba_proj_bias", (False,), why="use_bias is the field that this family reads")
    f.only("sliding_window", (0,), why="this family has no sliding window")
    mixer = replace(attention(s, qkv_bias=bias, out_bias=bias), rotary=False)
    mamba = Mamba(
        heads=f.size("mamba_num_heads"),
        head_dim=f.size("mamba_head_dim"),
        state=f.size("ssm_state_size"),
        groups=f.size("n_groups", "mamba_n_groups"),
        conv=f.size("conv_kernel", "mamba_d_conv", default=4),
        bias=f.flag("use_bias", default=False),
        conv_bias=f.flag("use_conv_bias", "mamba_conv_bias", default=True),
    )
    even = mamba.heads % mamba.groups == 0 or not f.sound("mamba_num_heads", "n_groups")
    f.check(even, "n_groups", f"a divisor of the {mamba.heads} state heads is due", mamba.groups)
    ffn_bias = f.flag("mlp_bias", default=False)
    width = f.size("intermediate_size", default=None if "mlp" in kinds else 1)
    made = {
        "mamba": Layer(mamba, None, norms=1),
        "attention": Layer(mixer, None, norms=1),
        "mlp": Layer(None, DenseFfn(width, matrices=2, bias=ffn_bias), norms=1),
    }
    if "moe" in kinds:
        f.check(not ffn_bias, "mlp_bias", "biased experts are not supported", ffn_bias)
        made["moe"] = Layer(None, _nemotron_experts(f), norms=1)
    else:
        _ignore_experts(f)
    stack = [made[kind] for kind in kinds]
    return assemble(f, stack, s.hidden, s.vocab, tied=False)


def _ignore_experts(f: Fields) -> None:
    """Skip the fields of experts, which the library writes into dense models' configs too."""
    f.ignore("n_routed_experts", "num_local_experts", "n_shared_experts", "moe_latent_size")
    f.ignore("moe_intermediate_size", "moe_shared_expert_intermediate_size", "num_experts_per_tok")


def _lfm2_width(f: Fields) -> int:
    """Return the width of the FFN: two thirds, scaled, and rounded up (Llama 1's rule)."""
    width = f.size("block_ff_dim", "intermediate_size")
    multiple = f.size("block_multiple_of", default=256)
    scale = f.get("block_ffn_dim_multiplier")
    if not f.flag("block_auto_adjust_ff_dim", default=True):
        return width
    width = int(2 * width / 3)
    scale = 1.0 if scale is None else scale
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 1000:
        f.fault("block_ffn_dim_multiplier", "a positive number is due", scale)
        return width
    return multiple * -(-int(scale * width) // multiple)


def _lfm2_mixers(f: Fields, s: Sizes) -> list[Attention | ShortConv]:
    """Return the mixer of each layer: attention where listed, else a short convolution."""
    attends = f.words("layer_types", ("conv", "full_attention"), s.layers)
    full = f.indices("full_attn_idxs", s.layers)
    if attends is None:
        chosen = set(range(s.layers) if full is None else full)
        attends = ["full_attention" if i in chosen else "conv" for i in range(s.layers)]
    for key in ("conv_dim", "conv_dim_out", "block_dim"):
        f.only(key, (s.hidden,), why=f"the hidden size, {s.hidden}, is due")
    f.only("num_heads", (s.heads,), why=f"num_attention_heads, {s.heads}, is due")
    f.ignore("conv_use_xavier_init", "use_pos_enc", "theta")
    taps, bias = f.size("conv_L_cache", default=3), f.flag("conv_bias", default=False)
    conv = ShortConv(s.hidden, taps, bias=bias)
    mixer = replace(attention(s), qk_norm=2 * s.head_dim)
    return [mixer if kind == "full_attention" else conv for kind in attends]


def lfm2(f: Fields) -> Model:
    """LFM2 dense models: gated short convolutions, some layers with attention."""
    s = read_sizes(f)
    f.ignore("block_mlp_init_scale", "block_norm_eps", "block_out_init_scale", "block_use_swiglu")
    f.ignore("block_use_xavier_init")
    ffn = DenseFfn(_lfm2_width(f))
    stack = [Layer(mixer, ffn) for mixer in _lfm2_mixers(f, s)]
    tied = f.flag("tie_embedding", default=True)
    return assemble(f, stack, s.hidden, s.vocab, tied=tied)


def lfm2_moe(f: Fields) -> Model:
    """LFM2 with experts: some leading dense layers, sigmoid routing with a bias."""
    s = read_sizes(f)
    experts, top_k = read_experts(f)
    bias = f.flag("use_expert_bias", default=True)
    sparse = MoeFfn(experts, top_k, f.size("moe_intermediate_size"), router_bias=bias)
    dense = DenseFfn(f.size("intermediate_size"))
    first = f.size("num_dense_layers", default=2, least=0)
    stack = [
        Layer(mixer, dense if i < first else sparse) for i, mixer in enumerate(_lfm2_mixers(f, s))
    ]
    tied = f.flag("tie_embedding", default=True)
    return assemble(f, stack, s.hidden, s.vocab, tied=tied)
