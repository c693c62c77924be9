"""Do tapes keep what the papers count, and do their tables compute it?"""

from dataclasses import replace

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.errors import ConfigError, UncoveredError, WorkloadError
from opbyte.core.parallel import Parallel
from opbyte.workloads.adapter_step import adapter_bytes
from opbyte.workloads.model_loader import model_catalog
from opbyte.workloads.training.plan import bytes_of_states, in_flight

H, HEADS, LAYERS, VOCAB, S, B = 1024, 16, 4, 5120, 512, 2


def gpt(**changes):
    config = {
        "model_type": "gpt2", "torch_dtype": "float16", "n_embd": H, "n_layer": LAYERS,
        "n_head": HEADS, "n_positions": S, "vocab_size": VOCAB, **changes,
    }  # fmt: skip
    return ob.load_model({"kind": "model", "name": "gpt", "config": config})


def plan(recompute="none", tp=1, split=False, fused=False, **fields):
    fields = {"dropout": True, "batch": B, "sequence": S, "micro_batch": B, **fields}
    model = fields.pop("model", None) or gpt()
    parallel = fields.pop("parallel", None) or Parallel(tp=tp, sequence=split)
    return ob.TrainStep(model, recompute=recompute, **fields).plan(parallel, fused=fused)


def layer(found):
    return next(tape for tape in found.tapes if tape.is_layer)


@pytest.mark.parametrize("t", [1, 2, 8])
@pytest.mark.parametrize(
    ("recompute", "sequence", "form"),
    [
        # Korthikanti et al., arXiv 2205.05198, table 2, over s b h.
        ("none", False, lambda t: 10 + 24 / t + 5 * HEADS * S / (H * t)),
        ("none", True, lambda t: 34 / t + 5 * HEADS * S / (H * t)),
        ("selective", False, lambda t: 10 + 24 / t),
        ("selective", True, lambda t: 34 / t),
        ("full", False, lambda t: 2.0 * t / t),
        ("full", True, lambda t: 2.0 / t),
    ],
)
def test_activations_of_a_layer(t, recompute, sequence, form):
    found = layer(plan(recompute, t, sequence)).kept(recompute)
    assert found / (S * B * H) == pytest.approx(form(t), rel=1e-12)


@pytest.mark.parametrize("t", [1, 2])
def test_activations_outside_layers(t):
    # Section 4.3 of the paper: embedding's mask, final norm, head, logits of four bytes.
    found = plan("full", t, split=True)
    outside = sum(tape.kept("full") for tape in found.tapes if not tape.is_layer)
    assert outside == pytest.approx(S * B * H / t * (1 + 4) + 4 * S * B * VOCAB / t, rel=1e-12)


def test_one_kernel_of_attention_keeps_no_scores():
    # 34 less the mask and two copies of scores: log-sum-exp of 4 bytes a row of scores instead.
    found = layer(plan(fused=True)).kept("none")
    assert found == pytest.approx(S * B * (34 * H + 4 * HEADS))
    assert layer(plan("selective", fused=True)).kept("selective") == found


@pytest.mark.parametrize("t", [1, 2])
def test_operations(t):
    # Section 7 of the paper: 72 b s L h^2 (1 + s / 6h + V / 12hL).
    forward = 24 * B * S * H * H + 4 * B * S * S * H
    model = 72 * B * S * LAYERS * H * H * (1 + S / (6 * H) + VOCAB / (12 * H * LAYERS))
    none, some, full = (plan(r, t) for r in ("none", "selective", "full"))
    assert none.model_flops * t == pytest.approx(model, rel=1e-12)
    assert none.hardware_flops == none.model_flops
    again = (some.hardware_flops - some.model_flops) * t
    assert again == pytest.approx(4 * B * S * S * H * LAYERS, rel=1e-9)
    again = (full.hardware_flops - full.model_flops) * t
    assert again == pytest.approx(forward * LAYERS, rel=1e-9)


def test_a_product_runs_twice_backward():
    table = plan().backward
    products = {n: i for i, n in enumerate(table.names) if table.kinds[i] == "gemm"}
    forward = plan().forward
    for name in ("qkv", "out", "up", "down", "lm_head"):
        m, n, k = (forward[c][forward.names.index(name), 0] for c in ("m", "n", "k"))
        dx, dw = products[f"{name}_dx"], products[f"{name}_dw"]
        assert [table[c][dx, 0] for c in ("m", "n", "k")] == [m, k, n]
        assert [table[c][dw, 0] for c in ("m", "n", "k")] == [k, n, m]
        # Gradients are read, added to and written as 4 bytes.
        assert table["out_bytes"][dw, 0] == 4 * n * k


def test_attention_backward_is_five_products_in_one_kernel_and_four_apart():
    fused, apart = plan(fused=True, dropout=False), plan(dropout=False)
    pairs = S * (S + 1) / 2

    def flops(table):
        mine = np.array([k in ("score", "context") for k in table.kinds])
        return (table["flops"][:, 0] * table.repeats)[mine].sum()

    one = 2 * B * H * pairs * LAYERS
    assert flops(fused.forward) == pytest.approx(2 * one)
    assert flops(fused.backward) == pytest.approx(5 * one)
    assert flops(apart.backward) == pytest.approx(4 * 2 * B * H * S * S * LAYERS)


def collectives(table):
    found = {}
    for i, kind in enumerate(table.kinds):
        if table["payload"][i, 0] and table.blocks[table.block_of[i]].startswith("layer"):
            found[kind] = found.get(kind, 0) + 1
    return found


def test_collectives_of_a_layer():
    whole, split = plan(tp=2), plan(tp=2, split=True)
    assert collectives(whole.forward) == {"all_reduce": 2}
    assert collectives(whole.backward) == {"all_reduce": 2}
    assert collectives(split.forward) == {"all_gather": 2, "reduce_scatter": 2}
    # Two of the four all-gathers bring back inputs of which devices kept their tokens.
    assert collectives(split.backward) == {"all_gather": 4, "reduce_scatter": 2}
    assert collectives(plan("full", 2).recompute) == {"all_reduce": 2}


@pytest.mark.parametrize(
    "name", ["llama-3.1-8b", "gemma-2-2b", "falcon-7b", "mixtral-8x7b", "qwen3-32b", "bloom-7b1"]
)
def test_families_have_tapes(name):
    model = ob.load_model(name)
    found = plan(model=model, fused=True, dropout=False, sequence=S)
    active = model.active_parameters
    # 6 N operations for each token of a step and parameter, scores beside; embeddings look up.
    assert found.model_flops > 6 * 0.7 * active * S * B
    assert found.trained.sum() == pytest.approx(model.weight_bytes / 2, rel=0.01)
    assert all(np.isfinite(v).all() for v in found.backward.columns.values())


@pytest.mark.parametrize("name", ["nemotron-h-8b", "deepseek-v3"])
def test_what_has_no_backward_pass_is_refused_by_name(name):
    with pytest.raises(UncoveredError, match=rf"{name}.*backward"):
        plan(model=ob.load_model(name), fused=True, dropout=False)


def test_adapters():
    model = ob.load_model("llama-3.1-8b")
    lora = {"rank": 16, "targets": ["q_proj", "v_proj", "down_proj"]}
    found = plan(model=model, lora=lora, fused=True, dropout=False)
    work = ob.TrainStep(model, batch=B, sequence=S, micro_batch=B, lora=lora)
    adapter = work.lora.adapter
    assert found.trained.sum() == adapter.parameters(model)
    split = plan(model=model, lora=lora, fused=True, dropout=False, parallel=Parallel(tp=4))
    expected = adapter_bytes(model, adapter, Parallel(tp=4)) / 2
    assert split.trained.sum() == pytest.approx(expected)
    # Frozen matrices have no gradient: two thirds of the work of their products is left.
    words = [n for n in found.backward.names if n.endswith("_dw")]
    assert words
    assert all("shrink" in n or "expand" in n for n in words)
    full = plan(model=model, fused=True, dropout=False)
    assert 0.64 < found.model_flops / full.model_flops < 0.72
    assert layer(found).kept("none") < layer(full).kept("none")


@pytest.mark.parametrize(
    ("name", "targets"),
    [("mixtral-8x7b", ["gate_proj"]), ("mixtral-8x7b", ["w1"]), ("mixtral-8x7b", ["all"])],
)
def test_adapters_of_experts_are_refused(name, targets):
    with pytest.raises((UncoveredError, ConfigError)):
        ob.TrainStep(name, batch=1, sequence=64, lora={"rank": 8, "targets": targets})
    plain = ob.TrainStep(name, batch=1, sequence=64, lora={"rank": 8})
    assert plain.plan(Parallel()).trained.sum() == plain.lora.adapter.parameters(plain.model)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-32b", "gemma-2-2b", "phi-2"])
def test_all_adapters_are_counted(name):
    if name not in model_catalog().names():
        pytest.skip(f"{name} is not in the catalog")
    work = ob.TrainStep(name, batch=1, sequence=64, lora={"rank": 4, "targets": ["all"]})
    assert work.plan(Parallel()).trained.sum() == work.lora.adapter.parameters(work.model)


def test_dense_recomputation_keeps_what_attention_made():
    found = plan("dense", fused=True, dropout=False)
    kept = S * B * (2 * H + 2 * H + 4 * HEADS)
    assert layer(found).kept("dense") == kept
    names = set(found.recompute.names)
    assert {"qkv", "up", "down"} <= names
    assert not names & {"score", "softmax", "context"}
    with pytest.raises(UncoveredError, match="one kernel of attention"):
        plan("dense")


def test_chunked_losses_keep_no_logits():
    whole, chunked = (plan(fused=True, chunked_loss=c) for c in (False, True))
    heads = [next(t for t in p.tapes if t.name == "head").kept("none") for p in (whole, chunked)]
    assert heads[0] - heads[1] == 4 * S * B * VOCAB
    assert chunked.working < whole.working
    assert chunked.hardware_flops == whole.hardware_flops


def test_states_in_mixed_precision():
    # Rajbhandari et al., arXiv 1910.02054, figure 1: (2 + 2 + K) psi, K = 12, over dp = 64.
    n = 7.5e9
    for zero, expected in ((0, 120e9), (1, 31.4e9), (2, 16.6e9), (3, 1.88e9)):
        states = sum(bytes_of_states(n, zero, 64, weight=2.0).values())
        weight, gradient = 2 * n / (64 if zero == 3 else 1), 2 * n / (64 if zero >= 2 else 1)
        assert states + weight + gradient == pytest.approx(expected, rel=0.01)
    assert "master_weight" not in bytes_of_states(n, 0, 1, weight=4.0)


def test_what_a_stage_has_in_flight():
    assert [in_flight(4, 1, s, 16) for s in range(4)] == [4, 3, 2, 1]
    assert in_flight(4, 1, 0, 2) == 2
    # Section 4.2.3 of arXiv 2205.05198: L (1 + (p - 1) / (p m)) layers on the first stage.
    p, v = 8, 3
    assert in_flight(p, v, 0, 64) / (p * v) * p == pytest.approx(p * (1 + (p - 1) / (p * v)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"recompute": "some"}, "recompute must be one of none, selective, dense, full"),
        ({"sequence": 2 * S}, "allows a context"),
        ({"batch": 3}, "does not divide into replicas and microbatches"),
        ({"parallel": Parallel(interleave=2)}, "needs pp > 1"),
        ({"parallel": Parallel(pp=4, interleave=2)}, "8 chunks for 4 layers"),
        ({"parallel": Parallel(pp=2, interleave=2), "batch": 3 * B}, "groups of pp = 2"),
    ],
)
def test_mistakes(fields, words):
    def ask():
        found = plan(**fields)
        work = ob.TrainStep(gpt(), batch=fields.get("batch", B), sequence=S, micro_batch=B)
        return work.microbatches(found.parallel)

    with pytest.raises(WorkloadError, match=words):
        ask()


def test_narrow_weights_train_adapters_only():
    narrow = gpt().with_precision(weight="int4")
    with pytest.raises(WorkloadError, match="train adapters"):
        plan(model=narrow)
    llama = ob.load_model("llama-3.1-8b").with_precision(weight="int4")
    found = plan(model=llama, lora={"rank": 8}, fused=True, dropout=False)
    assert found.weights.sum() < 0.3 * ob.load_model("llama-3.1-8b").weight_bytes


def test_fields_may_hold_one_value_for_each_point():
    both = plan(batch=[2.0, 4.0], micro_batch=[1.0, 2.0], dropout=False)
    for i, micro in enumerate((1.0, 2.0)):
        alone = plan(batch=2 * micro, micro_batch=micro, dropout=False)
        assert both.model_flops[i] == alone.model_flops
        assert layer(both).kept("none")[i] == layer(alone).kept("none")


def test_keys_and_values_are_activations():
    work = ob.TrainStep(replace(gpt(), name="x"), batch=1, sequence=S)
    assert not work.plan(Parallel()).forward["kv_write"].any()


# -- short convolutions --------------------------------------------------------------------------


def conv_layer(**fields):
    found = plan(model=ob.load_model("lfm2-1.2b"), fused=True, dropout=False, **fields)
    return found, next(t for t in found.tapes if any(n.kind == "conv" for n in t.nodes))


@pytest.mark.parametrize("t", [1, 2])
def test_what_a_layer_with_a_short_convolution_keeps(t):
    found, tape = conv_layer(tp=t)
    model = found.recipe.model
    h, f = model.hidden, model.layers[0].ffn.width
    w = h
    # Inputs of both norms, of both wide projections, of gates (three parts), taps, both products
    # behind; gate and up, what they make.
    whole = 2 * (h + h + h + h)
    split = 2 * (3 * w + w + w + w + 2 * f + f)
    assert tape.kept("none") == pytest.approx(S * B * (whole + split / t), rel=1e-12)
    assert tape.kept("full") == pytest.approx(S * B * 2 * h, rel=1e-12)


def test_a_short_convolution_runs_backward():
    found, tape = conv_layer()
    names = found.backward.names
    rows = {n: names.index(n) for n in ("gate_out_dx", "conv_dx", "conv_dw", "gate_in_dx")}
    width, taps = found.recipe.model.hidden, 3
    each = 2.0 * S * B * width
    for name in ("gate_out_dx", "gate_in_dx"):
        # Two gradients, as wide as the product each.
        assert found.backward["out_bytes"][rows[name]] == pytest.approx(2 * each)
    conv = next(n for n in tape.nodes if n.kind == "conv")
    assert conv.trained
    assert conv["weight"] == pytest.approx(2.0 * width * taps)
    assert found.backward["out_bytes"][rows["conv_dx"]] == pytest.approx(each)
    # The gradient of the taps, 32 bits.
    assert found.backward["out_bytes"][rows["conv_dw"]] == pytest.approx(4.0 * width * taps)
    assert np.all(found.backward["state_read"] == 0.0)
    # A product is computed twice more: for its input and for its matrix.
    products = [n for n in tape.nodes if n.kind == "gemm"]
    forward = sum(n["flops"] for n in products)
    ends = {f"{p.name}_{d}" for p in products for d in ("dx", "dw")}
    block = found.backward.block_of[rows["conv_dx"]]
    mine = [i for i in found.backward.rows_of(int(block)).tolist() if names[i] in ends]
    backward = found.backward["flops"][mine].sum()
    assert backward == pytest.approx(2.0 * forward)


def test_adapters_of_short_convolutions_are_refused():
    with pytest.raises(UncoveredError, match="adapters of short convolutions"):
        conv_layer(lora={"rank": 8, "targets": ["q_proj"]})
