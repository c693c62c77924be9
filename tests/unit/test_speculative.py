"""One step of speculative decoding: closed forms, what it moves, holds and costs."""

from dataclasses import replace

import numpy as np
import pytest

import opbyte as ob
from opbyte.core.parallel import Parallel
from opbyte.hw_models.machine import load_machine
from opbyte.sim.simulate import evaluate
from opbyte.spi import check_work
from opbyte.sweeps.cli import main
from opbyte.workloads.spans import Segment
from opbyte.workloads.speculation import Speculation
from opbyte.workloads.works import work_from

A100 = load_machine("a100-sxm-80gb")
LLAMA, SMALL = ob.load_model("llama-3.1-8b"), ob.load_model("llama-3.2-1b")
ONE = Parallel()


def guesses(**fields) -> Speculation:
    return Speculation(**{"draft": "none", **fields})


def step(batch=8, context=1024, draft=SMALL, model=LLAMA, **fields) -> ob.SpeculativeDecode:
    return ob.SpeculativeDecode(model, batch, context, {"draft": draft, **fields})


# -- tokens of a step ----------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 5, 10])
@pytest.mark.parametrize("a", [0.5, 0.6, 0.75, 0.8, 0.9])
def test_a_chain_gives_the_published_expectation(a, k):
    """Leviathan et al. 2023, equation 1."""
    assert guesses(tokens=k, acceptance=a).tokens_per_step == pytest.approx(
        (1 - a ** (k + 1)) / (1 - a)
    )


@pytest.mark.parametrize("k", [1, 4])
def test_none_and_all(k):
    assert guesses(tokens=k, acceptance=0.0).tokens_per_step == 1.0
    assert guesses(tokens=k, acceptance=1.0).tokens_per_step == k + 1
    assert guesses(tree=[3] * k, acceptance=0.0).tokens_per_step == 1.0
    assert guesses(tree=[2] * k, acceptance=1.0).tokens_per_step == k + 1


def test_a_list_is_a_sum_of_its_leading_products():
    found = guesses(acceptance=[0.9, 0.8, 0.5]).tokens_per_step
    assert found == pytest.approx(1 + 0.9 + 0.9 * 0.8 + 0.9 * 0.8 * 0.5)


def by_enumeration(branching, chances):
    """Return expected tokens by adding up the chance of every node of a tree of excluding guesses.

    Sequoia, proposition 3.4: the sum over all nodes of the product of chances on their path.
    """
    if not branching:
        return 1.0
    below = by_enumeration(branching[1:], chances[1:])
    return 1.0 + sum(chances[0][rank] * below for rank in range(branching[0]))


def test_a_tree_with_chances_by_rank_adds_up_its_nodes():
    ranks = [[0.6, 0.2, 0.1], [0.5, 0.3], [0.7]]
    found = guesses(tree=[3, 2, 1], acceptance=ranks)
    assert found.tokens_per_step == pytest.approx(by_enumeration([3, 2, 1], ranks))
    assert (found.widths, found.guesses, found.passes) == ((3, 6, 6), 15, (1, 3, 6))


def test_a_tree_with_equal_chances_is_independent_of_its_siblings():
    """The first of b that holds is at rank r with a (1 - a)^r."""
    a = 0.4
    ranks = [[a * (1 - a) ** r for r in range(b)] for b in (4, 2)]
    equal = guesses(tree=[4, 2], acceptance=a).tokens_per_step
    assert equal == pytest.approx(guesses(tree=[4, 2], acceptance=ranks).tokens_per_step)
    assert equal > guesses(tokens=2, acceptance=a).tokens_per_step


def test_a_tree_of_one_branch_is_a_chain():
    chain, tree = step(tokens=3, acceptance=0.7), step(tree=[1, 1, 1], acceptance=0.7)
    assert ob.simulate(A100, chain).metrics == ob.simulate(A100, tree).metrics


# -- what it computes ----------------------------------------------------------------------


def test_queries_share_one_read_of_the_cache():
    many = Segment("decode", 2.0, 5.0, 99.0)
    assert many.pairs() == sum(range(100, 105))
    assert many.reads() == 104
    assert Segment("decode", 2.0, 1.0, 99.0).reads() == 100
    # Under a window the union of what they see.
    assert many.reads(window=10) == 14
    spread = Segment("decode", 1.0, np.array([5.0, 1.0]), 99.0)
    assert spread.reads().tolist() == [104, 100]


def test_the_verification_is_an_iteration_of_short_prompts_with_more_logits():
    """A piece of a prompt has logits for its last token only."""
    (verify,) = step(batch=1, draft="none", tokens=4, acceptance=0.5).lower(ONE)
    (mixed,) = ob.Mixed(LLAMA, ((5.0, 1023.0),)).lower(ONE)
    for column in ("flops", "weight", "kv_read", "kv_write"):
        ours = dict(zip(verify.table.names, verify.table[column][:, 0], strict=True))
        theirs = dict(zip(mixed.table.names, mixed.table[column][:, 0], strict=True))
        assert list(ours) == list(theirs)
        head = ours.pop("lm_head"), theirs.pop("lm_head")
        if column == "flops":
            assert head[0] == pytest.approx(5 * head[1])
            del ours["final_norm"], theirs["final_norm"]
        assert ours == pytest.approx(theirs)


def test_a_draft_of_a_chain_is_its_decode_steps():
    (draft, _) = step(tokens=4, acceptance=0.5).lower(ONE)
    assert draft.repeats == 4
    runs = [ob.Decode(SMALL, 8, 1024 + i).lower(ONE)[0].table for i in range(4)]
    for column in ("flops", "weight", "kv_read", "kv_write"):
        ours = 4 * (draft.table[column][:, 0] * draft.table.repeats).sum()
        theirs = sum((t[column][:, 0] * t.repeats).sum() for t in runs)
        assert ours == pytest.approx(theirs), column


def test_a_draft_of_a_tree_reads_a_depth_at_once():
    *drafts, verify = step(tree=[2, 3, 1], acceptance=0.5).lower(ONE)
    rows = [dict(zip(p.table.names, p.table["m"][:, 0], strict=True))["qkv"] for p in drafts]
    assert rows == [8, 16, 48]
    queries = dict(zip(verify.table.names, verify.table["m"][:, 0], strict=True))
    assert queries["qkv"] == queries["lm_head"] == 8 * (1 + 2 + 6 + 6)


def test_latents_are_verified_in_the_absorbed_form():
    """What a decode step does: nothing is projected up for tokens of the past."""
    deep = ob.load_model("deepseek-v3")
    (verify,) = step(model=deep, draft="none", tokens=1, acceptance=0.5).lower(ONE)
    (plain,) = ob.Decode(deep, 8, 1024).lower(ONE)
    assert verify.table.names == plain.table.names


def test_experts_are_read_for_guesses_that_fail_too():
    moe = ob.load_model("mixtral-8x7b")
    (verify,) = step(batch=1, model=moe, draft="none", tokens=4, acceptance=0.0).lower(ONE)
    (plain,) = ob.Decode(moe, 1, 1024).lower(ONE)
    read = [(p.table["expert"][:, 0] * p.table.repeats).sum() for p in (verify, plain)]
    # 8 experts, 2 for each token: 8 (1 - 0.75^5) of them against 2.
    assert read[0] / read[1] == pytest.approx(8 * (1 - 0.75**5) / 2, rel=1e-6)


def test_it_keeps_the_contract_of_a_work():
    check_work(step(tree=[2, 2], acceptance=0.5), Parallel(tp=2))


# -- what it costs -------------------------------------------------------------------------


def test_metrics_follow_from_the_phases():
    result = ob.simulate(A100, step(tokens=4, acceptance=0.8))
    plain = ob.simulate(A100, ob.Decode(LLAMA, 8, 1024))
    assert result.tokens_per_step == pytest.approx((1 - 0.8**5) / 0.2)
    assert result.tpot == pytest.approx(result.seconds / result.tokens_per_step)
    assert result.plain_tpot == pytest.approx(plain.seconds)
    assert result.speedup_over_plain == pytest.approx(plain.seconds / result.tpot)
    assert result.tokens_per_s == pytest.approx(8 / result.tpot)
    assert result.joules_per_token * 8 * result.tokens_per_step == pytest.approx(result.joules)
    alone = ob.simulate(A100, step(draft="none", tokens=4, acceptance=0.8))
    assert alone.draft_share == 0.0
    assert result.seconds * (1 - result.draft_share) == pytest.approx(alone.seconds)


def test_acceptance_changes_no_second_of_a_step():
    never, always = (ob.simulate(A100, step(tokens=3, acceptance=a)) for a in (0.0, 1.0))
    assert never.seconds == always.seconds
    assert never.tpot == never.seconds == 4 * always.tpot
    assert never.speedup_over_plain < 1.0 < always.speedup_over_plain


def test_speculation_pays_at_small_batches_and_loses_at_large_ones():
    """The published rule: as long as weights are read for few tokens, more come for free."""
    batches = np.array([1.0, 4, 16, 64, 128, 256])
    outcome = evaluate(A100, step(batch=batches, tokens=4, acceptance=0.8), A100.mapping())
    gain = outcome.metrics["speedup_over_plain"]
    assert (np.diff(gain[2:]) < 0).all()
    assert gain[0] > 1.5
    assert gain[-1] < 0.8
    one = ob.simulate(A100, step(batch=16, tokens=4, acceptance=0.8))
    assert gain[2] == pytest.approx(one.speedup_over_plain)


def test_the_gain_is_the_published_one_where_a_verification_costs_a_step():
    """Leviathan et al., theorem 3.8: (1 - a^(k+1)) / ((1 - a) (k c + 1)), c the draft's cost.

    It takes a verification to cost as much as a plain step; at batch 1 it costs a little more.
    """
    a, k = 0.7, 5
    result = ob.simulate(A100, step(batch=1, context=4096, tokens=k, acceptance=a))
    cost = ob.simulate(A100, ob.Decode(SMALL, 1, 4096)).seconds / result.plain_tpot
    published = (1 - a ** (k + 1)) / ((1 - a) * (k * cost + 1))
    assert 0.85 * published < result.speedup_over_plain <= published * (1 + 1e-3)


@pytest.mark.parametrize("fidelity", ["bound", "event"])
def test_other_fidelities(fidelity):
    result = ob.simulate(A100, step(tree=[2, 1], acceptance=0.6), fidelity=fidelity)
    analytic = ob.simulate(A100, step(tree=[2, 1], acceptance=0.6)).seconds
    order = (result.seconds, analytic) if fidelity == "bound" else (analytic, result.seconds)
    assert order[0] <= order[1] * (1 + 1e-9)


# -- what it holds -------------------------------------------------------------------------


def test_both_models_and_all_guesses_are_held():
    held = step(batch=8, context=1000, tokens=4, acceptance=0.5).footprint(ONE)
    weights = sum(ob.Decode(m, 1, 1).footprint(ONE)["weight"] for m in (LLAMA, SMALL))
    assert held["weight"] == pytest.approx(weights)
    of_model, of_draft = (m.kv_bytes_per_token for m in (LLAMA, SMALL))
    # The draft does not read its last guess.
    assert held["kv"] == pytest.approx(8 * (1004 * of_model + 1003 * of_draft))


def test_what_does_not_fit_with_the_draft_is_refused():
    small = A100.replace({"gpu.hbm.capacity": "17 GB"})
    alone = {"tokens": 2, "acceptance": 0.5}
    assert ob.simulate(small, step(1, 100, draft="none", **alone)).seconds > 0
    with pytest.raises(ob.CapacityError, match="weight"):
        ob.simulate(small, step(1, 100, **alone))


# -- files ---------------------------------------------------------------------------------


def test_a_file_stores_both_models_as_its_precision_says():
    work = {
        "kind": "speculative_decode", "model": "llama-3.1-8b", "batch": 1, "context": 64,
        "speculate": {"draft": "llama-3.2-1b", "tokens": 2, "acceptance": 0.5},
    }  # fmt: skip
    half, whole = (
        work_from(w).footprint(ONE) for w in (work | {"precision": {"weight": "int8"}}, work)
    )
    assert half["weight"] == pytest.approx(whole["weight"] / 2, rel=0.01)
    with pytest.raises(ob.ConfigError, match="speculate: no key is called 'tokenss'"):
        work_from(work | {"speculate": {"draft": "none", "tokenss": 2, "acceptance": 0.5}})


def test_a_study_varies_tokens_and_acceptance(tmp_path):
    study = tmp_path / "s.yaml"
    study.write_text(
        "kind: study\nbase:\n  machine: a100-sxm-80gb\n  workload: {kind: speculative_decode, "
        "model: llama-3.1-8b, batch: 1, context: 1024,\n    speculate: {draft: llama-3.2-1b, "
        "tokens: 2, acceptance: 0.5}}\naxes:\n  workload.speculate.tokens: {values: [1, 3]}\n"
        "  workload.speculate.acceptance: {values: [0.0, 0.9]}\n"
        "objectives: {speedup_over_plain: max}\n"
    )
    assert main(["sweep", str(study), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    frame = ob.open_results(tmp_path / "out").frame()
    best = frame.loc[frame["speedup_over_plain"].idxmax()]
    assert best["workload.speculate.tokens"] == 3
    assert best["workload.speculate.acceptance"] == 0.9


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": 0}, "tokens"),
        ({"acceptance": -0.1}, "acceptance"),
        ({"acceptance": [[0.7, 0.4], 0.5, 0.5], "tree": [2, 1, 1]}, "add up to 1.1"),
        ({"acceptance": [[0.7], 0.5, 0.5], "tree": [2, 1, 1]}, "1 of 2 siblings"),
        ({"tree": [2, 2]}, "tree has 2 depths for 3 tokens"),
        ({"tree": [64, 64, 1]}, "guesses, more than 1024"),
        ({"draft": "mistral"}, "mistral"),
        ({"draft": "lfm2-1.2b"}, "recurrent"),
        ({"chain": True}, "chain"),
    ],
)
def test_mistakes_are_named(changes, says):
    with pytest.raises(ob.OpbyteError, match=says):
        step(**{"tokens": 3, "acceptance": 0.5, **changes})


def test_a_context_without_room_for_guesses_is_refused():
    small = replace(SMALL, max_context=4096)
    with pytest.raises(ob.WorkloadError, match=r"llama-3\.2-1b allows a context of at most 4096"):
        step(context=4095, model=LLAMA, draft=small, tokens=2, acceptance=0.5)
