"""Who is treated worse: log-odds of a harsher against a kinder outcome, for a minus for b."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import fairlab as fl
from fairlab import decisions
from fairlab.decisions import check_outcomes, decision_batches
from fairlab.scores import decision_scores
from fairlab.statistics import jackknife_interval
from tiny_models import tiny_model

LISTS = fl.Outcomes(harsher=("reject", "turn them away"), kinder=("accept", "hire", "invite"))


@pytest.fixture(scope="module")
def pairs():
    return fl.load_pairs("race", split="validation") + fl.load_pairs("age", split="validation")


@pytest.fixture(scope="module")
def outcomes(pairs):
    return {pair.template: LISTS for pair in pairs}


def log_odds_by_hand(model, tokenizer, prompt):
    """Run each prompt with each continuation alone, one token after the other."""
    means = []
    for continuations in (LISTS.harsher, LISTS.kinder):
        likelihoods = []
        for continuation in continuations:
            start = tokenizer(prompt).input_ids
            whole = tokenizer(f"{prompt} {continuation}").input_ids
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([whole])).logits[0].double()
            log_p = logits.log_softmax(-1)
            places = range(len(start), len(whole))
            likelihoods.append(math.exp(sum(log_p[at - 1, whole[at]] for at in places)))
        means.append(np.mean(likelihoods))
    return math.log(means[0] / means[1])


@pytest.mark.parametrize("batch_size", [2, 32])
def test_decision_gaps_are_those_of_single_continuations(tokenizer, pairs, outcomes, batch_size):
    model = tiny_model()
    some = pairs[::5]
    gaps = fl.decision_gap(model, tokenizer, some, outcomes=outcomes, batch_size=batch_size)
    assert gaps.dtype == torch.float32
    for pair, gap in zip(some, gaps, strict=True):
        a, b = (log_odds_by_hand(model, tokenizer, p) for p in (pair.prompt_a, pair.prompt_b))
        assert gap.item() == pytest.approx(a - b, abs=1e-4)
        assert abs(a - b) > 1e-3


def test_swapped_prompts_or_lists_change_the_sign(tokenizer, pairs, outcomes):
    model, some = tiny_model(), pairs[:3]
    gaps = fl.decision_gap(model, tokenizer, some, outcomes=outcomes)
    swapped = [replace(p, prompt_a=p.prompt_b, prompt_b=p.prompt_a) for p in some]
    assert torch.allclose(
        fl.decision_gap(model, tokenizer, swapped, outcomes=outcomes), -gaps, atol=1e-5
    )
    turned = fl.Outcomes(harsher=LISTS.kinder, kinder=LISTS.harsher)
    turned = {pair.template: turned for pair in some}
    assert torch.allclose(
        fl.decision_gap(model, tokenizer, some, outcomes=turned), -gaps, atol=1e-5
    )


def test_half_precision_runs_one_pair_at_a_time(tokenizer, pairs, outcomes):
    model = tiny_model(dtype=torch.bfloat16)
    batches = list(decision_batches(model, tokenizer, pairs[:4], outcomes))
    assert [batch.pairs.tolist() for batch in batches] == [[0], [1], [2], [3]]
    together = list(decision_batches(tiny_model(), tokenizer, pairs[:4], outcomes, batch_size=64))
    assert sorted(together[0].pairs.tolist()) == [0, 1, 2, 3]


def test_what_cannot_be_measured_is_refused(tokenizer, pairs, outcomes):
    model = tiny_model()
    with pytest.raises(ValueError, match="outcomes: expected a harsher and a kinder list"):
        fl.decision_gap(model, tokenizer, pairs, outcomes={})
    with pytest.raises(ValueError, match="pairs: expected at least one"):
        fl.decision_gap(model, tokenizer, [], outcomes=outcomes)
    with pytest.raises(ValueError, match="batch_size"):
        fl.decision_gap(model, tokenizer, pairs, outcomes=outcomes, batch_size=1)


def test_means_have_intervals_over_templates_and_words(pairs):
    gaps = torch.linspace(-1, 2, len(pairs)) ** 2
    table = fl.summarize_decisions(pairs, gaps).set_index("category")
    for category in ("race", "age"):
        members = [i for i, pair in enumerate(pairs) if pair.category == category]
        values = gaps[members].double().numpy()
        columns = np.stack([values, np.ones(len(values))], 1)
        labels = [
            [pairs[i].template for i in members],
            [f"{pairs[i].attribute_a} / {pairs[i].attribute_b}" for i in members],
        ]
        low, high = jackknife_interval(columns, lambda sums: sums[:, 0] / sums[:, 1], labels)
        row = table.loc[category]
        assert (row.gap, row.low, row.high) == pytest.approx((values.mean(), low, high))
        assert (row.pairs, row.templates, row.words) == (len(members), 4, 3)
    with pytest.raises(ValueError, match="gaps: expected one of each of"):
        fl.summarize_decisions(pairs, gaps[:3])


def test_scores_equal_finite_differences(tokenizer, pairs, outcomes):
    model = tiny_model(dtype=torch.float64)
    some = pairs[:6] + pairs[-6:]
    scores = decision_scores(model, tokenizer, some, outcomes=outcomes)
    shape = tuple(scores.shape)

    def size():
        gaps = fl.decision_gap(model, tokenizer, some, outcomes=outcomes)
        return (gaps[:6].mean().abs() + gaps[6:].mean().abs()).item() / 2

    # the models' norms compute in float32, so a smaller step would drown in rounding
    for place in scores.abs().flatten().topk(4).indices.tolist():
        layer, neuron = divmod(place, shape[1])
        one = fl.NeuronSelection({layer: (neuron,)}, shape)
        ends = []
        for scale in (1.01, 0.99):
            with fl.ablate(model, one, scale=scale):
                ends.append(size())
        slope = (ends[0] - ends[1]) / 0.02
        assert scores[layer, neuron].item() == pytest.approx(slope, rel=0.01)


def test_answers_of_ones_own(tokenizer):
    """One word on each side settles it: ln p(deny) − ln p(approve), for a minus for b."""
    template = "The {} applicant asked for a loan. The bank will"
    some = fl.build_pairs([template], [("Black", "white"), ("poor", "rich")])
    answers = {template: fl.Outcomes(harsher=("deny",), kinder=("approve",))}
    model = tiny_model()
    gaps = fl.decision_gap(model, tokenizer, some, outcomes=answers)
    deny, approve = (tokenizer(word).input_ids[0] for word in (" deny", " approve"))
    for pair, gap in zip(some, gaps, strict=True):
        odds = []
        for prompt in (pair.prompt_a, pair.prompt_b):
            with torch.no_grad():
                logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
            odds.append((logits[deny] - logits[approve]).item())
        assert gap.item() == pytest.approx(odds[0] - odds[1], abs=1e-4)
    # such a template is none of fairlab's, and without the answers it is refused by name
    with pytest.raises(ValueError, match="none for 'The {} applicant asked for a loan"):
        fl.decision_gap(model, tokenizer, some)


@pytest.mark.parametrize(
    ("harsher", "kinder", "message"),
    [
        ((), ("grant",), r"harsher: expected answers without blanks around; got \(\)"),
        ("deny", ("grant",), "harsher: expected answers without blanks around; got 'deny'"),
        (("deny",), ("grant", ""), "kinder: expected answers without blanks around"),
        ((" deny",), ("grant",), "harsher: expected answers without blanks around"),
        (("deny", "deny"), ("grant",), "harsher: expected each answer once; got 'deny' again"),
        (("deny",), ("grant", "deny"), "kinder: expected each answer once; got 'deny' again"),
    ],
)
def test_answers_that_can_not_be_told_apart_are_refused(harsher, kinder, message):
    with pytest.raises(ValueError, match=message):
        fl.Outcomes(harsher, kinder)


def test_answers_are_checked_without_a_model(tokenizer, monkeypatch):
    pairs = fl.build_pairs(["The {} man asked", "The {} man left"], [("old", "young")])
    outcomes = {pairs[0].template: LISTS}
    check_outcomes(tokenizer, pairs, outcomes)  # a sentence without answers is no fault
    blank = [replace(pairs[0], prompt_a=f"{pairs[0].prompt_a} ")]
    with pytest.raises(ValueError, match="pairs: prompt_a ends in a blank"):
        check_outcomes(tokenizer, blank, outcomes)
    # a tokenizer for which a word and the one after it are one token
    merging = {"The old man asked": [1, 2], "The young man asked": [1, 4]}
    monkeypatch.setattr(decisions, "prompt_ids", lambda _, text: merging.get(text, [1, 3]))
    with pytest.raises(ValueError, match="outcomes: the tokenizer merges 'reject' with 'The old"):
        check_outcomes(tokenizer, pairs, outcomes)
