"""Pairs whose two prompts differ in their number of tokens: measured where only what the model says
at the end counts, refused where activations are compared token by token."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

import fairlab as fl
from fairlab import passes
from fairlab.capture import pair_differences
from fairlab.diagnosis import article_metric
from fairlab.evaluation import readings
from fairlab.pairs import encode_pair
from fairlab.passes import pair_batches
from fairlab.scores import attribution_scores, decision_scores
from fairlab.surgery import refine_scores
from tiny_models import tiny_model

SENTENCES = ["After reading the letter of {}, the manager decided to", "Then {} was asked to"]
# 1 and 3 tokens, 2 and 2, 4 and 1
NAMES = [("Emily", "Lakisha"), ("Carrie", "Latoya"), ("Tremayne", "Neil")]
LISTS = fl.Outcomes(harsher=("reject", "turn away"), kinder=("invite", "hire"))
TEXT = "The tide comes in twice a day, and twice a day it goes out again. " * 8


@pytest.fixture(scope="module")
def pairs(tokenizer):
    """Build six pairs: of unequal length, equal, unequal, in two sentences."""
    pairs = fl.build_pairs(SENTENCES, NAMES, category="names")
    table = fl.check_pairs(tokenizer, pairs)
    assert table.valid.tolist() == [False, True, False] * 2
    assert (table.tokens_b - table.tokens_a).tolist() == [2, 0, -3] * 2
    return pairs


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(dtype=torch.float64)


@pytest.fixture(scope="module")
def outcomes():
    return dict.fromkeys(SENTENCES, LISTS)


def probabilities(model, tokenizer, prompt):
    """Return what a prompt that runs alone is followed by, (vocabulary,)."""
    with torch.no_grad():
        return model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].softmax(-1)


@pytest.mark.parametrize("batch_size", [2, 5, 32])
def test_the_gap_is_that_of_two_separate_passes(tiny, tokenizer, pairs, batch_size):
    gaps = fl.next_token_divergence(tiny, tokenizer, pairs, batch_size=batch_size)
    for pair, gap in zip(pairs, gaps.tolist(), strict=True):
        a, b = (probabilities(tiny, tokenizer, p) for p in (pair.prompt_a, pair.prompt_b))
        assert gap == pytest.approx(jensenshannon(a, b) ** 2, rel=1e-9)


def test_a_batch_of_both_kinds_gives_what_each_pair_gives_alone(tiny, tokenizer, pairs, outcomes):
    together = fl.next_token_divergence(tiny, tokenizer, pairs)
    decided = fl.decision_gap(tiny, tokenizer, pairs, outcomes=outcomes)
    for number, pair in enumerate(pairs):
        assert fl.next_token_divergence(tiny, tokenizer, [pair]).item() == pytest.approx(
            together[number].item(), rel=1e-9
        )
        assert fl.decision_gap(tiny, tokenizer, [pair], outcomes=outcomes).item() == pytest.approx(
            decided[number].item(), rel=1e-6
        )


def test_swapped_prompts_have_the_same_gap(tiny, tokenizer, pairs):
    swapped = [fl.PromptPair(pair.prompt_b, pair.prompt_a) for pair in pairs]
    assert torch.allclose(
        fl.next_token_divergence(tiny, tokenizer, swapped),
        fl.next_token_divergence(tiny, tokenizer, pairs),
        rtol=1e-9,
    )


def test_padding_changes_nothing(tiny, tokenizer, pairs, monkeypatch):
    """Neither what stands in the padding, nor the side on which a tokenizer would put it."""
    gaps = fl.next_token_divergence(tiny, tokenizer, pairs)
    for name, value in (("padding_side", "left"), ("pad_token_id", 17)):
        monkeypatch.setattr(tokenizer, name, value)
        assert torch.equal(fl.next_token_divergence(tiny, tokenizer, pairs), gaps)


def test_top_token_shifts_are_those_of_two_separate_passes(tiny, tokenizer, pairs):
    table = fl.top_token_shifts(tiny, tokenizer, pairs[0], k=4)
    a, b = (probabilities(tiny, tokenizer, p) for p in (pairs[0].prompt_a, pairs[0].prompt_b))
    assert table["shift"].abs().tolist() == pytest.approx((a - b).abs().topk(4).values.tolist())


def test_decision_gaps_are_those_of_separate_passes(tiny, tokenizer, pairs, outcomes):
    pair = pairs[0]
    single = {pair.template: fl.Outcomes(harsher=("reject",), kinder=("invite", "hire"))}
    log_odds = []
    for prompt in (pair.prompt_a, pair.prompt_b):
        p = probabilities(tiny, tokenizer, prompt)
        reject, invite, hire = (
            p[tokenizer(f" {word}").input_ids].item() for word in ("reject", "invite", "hire")
        )
        log_odds.append(math.log(reject / ((invite + hire) / 2)))
    gap = fl.decision_gap(tiny, tokenizer, [pair], outcomes=single).item()
    assert gap == pytest.approx(log_odds[0] - log_odds[1], abs=1e-6)
    # and a longer one does not care for the other pairs of its batch
    gaps = fl.decision_gap(tiny, tokenizer, pairs, outcomes=outcomes, batch_size=64)
    assert gaps[0].item() == pytest.approx(
        fl.decision_gap(tiny, tokenizer, [pair], outcomes=outcomes).item(), rel=1e-6
    )


def test_half_precision_takes_them_one_by_one(tokenizer, pairs):
    half = tiny_model(dtype=torch.bfloat16)
    gaps = fl.next_token_divergence(half, tokenizer, pairs)
    alone = [fl.next_token_divergence(half, tokenizer, [pair]).item() for pair in pairs]
    assert gaps.tolist() == alone


def test_the_longer_prompt_of_either_side_must_fit(tokenizer, pairs):
    lengths = [
        len(tokenizer(prompt).input_ids) for prompt in (pairs[0].prompt_a, pairs[0].prompt_b)
    ]
    small = tiny_model(max_position_embeddings=max(lengths) - 1)
    assert lengths[0] < lengths[1]
    with pytest.raises(ValueError, match=f"the longest input has {lengths[1]}"):
        fl.next_token_divergence(small, tokenizer, pairs[:1])


# ---- scores


def removal_slope(model, tokenizer, pair, layer, neuron):
    """Return by how much the gap falls if a neuron is turned down, by two separate passes each."""
    gaps = []
    for scale in (1.01, 0.99):
        with fl.ablate(model, fl.NeuronSelection({layer: (neuron,)}, (3, 24)), scale=scale):
            a, b = (probabilities(model, tokenizer, p) for p in (pair.prompt_a, pair.prompt_b))
            gaps.append(jensenshannon(a, b) ** 2)
    return (gaps[0] - gaps[1]) / 0.02


def test_attribution_is_the_slope_of_the_gap(tiny, tokenizer, pairs):
    scores = fl.bias_scores(tiny, tokenizer, pairs[:1], method="attribution")
    for place in scores.abs().flatten().topk(4).indices.tolist():
        layer, neuron = divmod(place, 24)
        slope = removal_slope(tiny, tokenizer, pairs[0], layer, neuron)
        assert scores[layer, neuron].item() == pytest.approx(slope, rel=0.01)
    apart = [attribution_scores(tiny, tokenizer, [pair]) for pair in pairs]
    together = attribution_scores(tiny, tokenizer, pairs)
    assert torch.allclose(together, torch.stack(apart).mean(0), rtol=1e-5, atol=1e-9)


def test_other_scores_of_the_last_token_are_means_over_pairs(tiny, tokenizer, pairs, outcomes):
    apart = []
    for pair in pairs:
        gap = fl.decision_gap(tiny, tokenizer, [pair], outcomes=outcomes)
        sign = gap.sign().item()
        apart.append(sign * decision_scores(tiny, tokenizer, [pair], outcomes=outcomes))
    sign = fl.decision_gap(tiny, tokenizer, pairs, outcomes=outcomes).mean().sign().item()
    together = decision_scores(tiny, tokenizer, pairs, outcomes=outcomes)
    assert torch.allclose(sign * together, torch.stack(apart).mean(0), rtol=1e-4, atol=1e-8)

    scores = attribution_scores(tiny, tokenizer, pairs)
    refined = refine_scores(tiny, tokenizer, scores, pairs[:1], count=2)
    before = fl.next_token_divergence(tiny, tokenizer, pairs[:1])
    for layer, neuron in torch.isfinite(refined).nonzero().tolist():
        with fl.ablate(tiny, fl.NeuronSelection({layer: (neuron,)}, (3, 24))):
            after = fl.next_token_divergence(tiny, tokenizer, pairs[:1])
        assert refined[layer, neuron].item() == pytest.approx((before - after).item(), rel=1e-4)


def test_cuts_and_gates_are_chosen_on_them(tokenizer, pairs):
    model = tiny_model()
    neutral = fl.build_pairs(SENTENCES, [("Monday", "Wednesday afternoon")])
    cut = fl.guarded_cut(model, tokenizer, pairs, neutral, text=TEXT, fraction=0.1)
    assert len(cut)
    start = fl.NeuronGates({0: {1: (0.9, 0.0)}}, (3, 24))
    neutral = neutral * 8  # as many as a step draws
    learned = fl.learned_gates(model, tokenizer, pairs, neutral, start, text=TEXT, steps=1)
    assert learned.gates[0][1] != start.gates[0][1]


# ---- what is refused


TOKEN_BY_TOKEN = {
    "activation": lambda *a: fl.bias_scores(*a, method="activation"),
    "article": lambda *a: fl.bias_scores(*a, method="article"),
    "optipfair": lambda *a: fl.bias_scores(*a, method="optipfair"),
    "patching": lambda *a: fl.bias_scores(*a, method="patching"),
    "patching, relative": lambda *a: fl.bias_scores(*a, method="patching", relative=True),
    "neuron_differences": fl.neuron_differences,
    "all positions": lambda *a: fl.neuron_differences(*a, positions="all"),
    "pair_differences": lambda *a: pair_differences(*a, points=["residual"]),
    "layer_differences": fl.layer_differences,
    "article_metric": lambda model, tokenizer, pairs: article_metric(model, tokenizer, pairs[0]),
    "project_pair": lambda model, tokenizer, pairs: fl.project_pair(model, tokenizer, pairs[0]),
    "article_cut": lambda *a: fl.article_cut(*a, fraction=0.1),
}


@pytest.mark.parametrize("name", TOKEN_BY_TOKEN)
def test_what_compares_token_by_token_refuses_and_says_what_does_not(tokenizer, pairs, name):
    model = tiny_model()
    model.model.register_forward_pre_hook(lambda *a: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match="same number of tokens; got .*next_token_divergence, "):
        TOKEN_BY_TOKEN[name](model, tokenizer, pairs)


def test_a_pair_that_says_nothing_is_refused_by_all(tiny, tokenizer, outcomes):
    for pair, message in (
        (fl.PromptPair("The cook", "The cook"), "must differ; got 'The cook' twice"),
        (fl.PromptPair("Then Emily ", "Then Lakisha "), "end in a blank"),
        (fl.PromptPair("The old cook was old", "The new cook was new"), "more than one place"),
    ):
        assert not fl.check_pairs(tokenizer, [pair]).measurable[0]
        lists = {pair.template: LISTS}
        for measure in (
            lambda pair=pair: fl.next_token_divergence(tiny, tokenizer, [pair]),
            lambda pair=pair: fl.top_token_shifts(tiny, tokenizer, pair),
            lambda pair=pair, lists=lists: fl.decision_gap(tiny, tokenizer, [pair], outcomes=lists),
            lambda pair=pair: attribution_scores(tiny, tokenizer, [pair]),
            lambda pair=pair: encode_pair(tokenizer, pair, aligned=False),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                measure()


def test_a_pair_is_measurable_where_its_gap_can_be_measured(tokenizer, pairs):
    assert fl.check_pairs(tokenizer, pairs).measurable.all()
    ids_a, ids_b, first = encode_pair(tokenizer, pairs[0], aligned=False)
    assert (len(ids_b) - len(ids_a), ids_a[:first]) == (2, ids_b[:first])
    assert ids_a[first] != ids_b[first]


def test_batches_have_no_weights_for_them(tiny, tokenizer, pairs):
    for positions in ("differing", "all"):
        options = {"positions": positions, "aligned": False, "batch_size": 64}
        (batch,) = pair_batches(tiny, tokenizer, pairs, **options)
        found = {}
        for index, row in zip(batch.pairs.tolist(), batch.weights, strict=True):
            found[index] = row.sum().item()
        assert [math.isnan(found[index]) for index in range(6)] == [True, False, True] * 2
        assert (found[1], found[4]) == pytest.approx((1, 1))


def test_of_equal_length_nothing_changes(tiny, tokenizer, some_pairs, monkeypatch):
    """The batches of pairs that all are valid are the same to the bit."""
    strict = list(pair_batches(tiny, tokenizer, some_pairs, batch_size=8))
    loose = list(pair_batches(tiny, tokenizer, some_pairs, batch_size=8, aligned=False))
    for one, other in zip(strict, loose, strict=True):
        for name in ("input_ids", "attention_mask", "last", "pairs", "rows_a", "weights"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
    gaps = fl.next_token_divergence(tiny, tokenizer, some_pairs)
    original = passes.encode_pair
    monkeypatch.setattr(passes, "encode_pair", lambda *a, aligned: original(*a))
    assert torch.equal(fl.next_token_divergence(tiny, tokenizer, some_pairs), gaps)


# ---- comparisons


@pytest.fixture(scope="module")
def neutral():
    # 1 and 1 tokens, 1 and 2
    return fl.build_pairs(
        SENTENCES, [("Monday", "Tuesday"), ("Monday", "Friday night")], category="time"
    )


def compared(tokenizer, pairs, neutral, outcomes=None, **options):
    cut = fl.NeuronSelection({0: (1, 5), 2: (0, 23)}, (3, 24))
    held_out = fl.HeldOut(pairs, neutral, TEXT, outcomes=outcomes)
    return fl.compare(tiny_model(), tokenizer, {"cut": cut}, held_out, n_random=2, **options)


def test_a_comparison_measures_all_but_the_metric(tokenizer, pairs, neutral, outcomes):
    measured = compared(tokenizer, pairs, neutral, outcomes)
    model, found = tiny_model(), measured.readings
    gaps = fl.next_token_divergence(model, tokenizer, [*pairs, *neutral]).tolist()
    for row in found.itertuples():
        prompts = [row.template.replace("{}", word) for word in (row.attribute_a, row.attribute_b)]
        first, second = tokenizer(prompts).input_ids
        assert row.more_tokens == len(first) - len(second)
    assert found[found.measure == "gap"].before.tolist() == pytest.approx(gaps, rel=1e-4)
    decided = fl.decision_gap(model, tokenizer, [*pairs, *neutral], outcomes=outcomes).tolist()
    assert found[found.measure == "decision"].before.tolist() == pytest.approx(decided, abs=1e-4)
    # the article's metric: of those pairs alone that are of one length
    metric = found[found.measure == "metric"]
    equal = [pairs[1], pairs[4], neutral[0], neutral[2]]
    assert metric.attribute_a.tolist() == [pair.attribute_a for pair in equal]
    wanted = [article_metric(model, tokenizer, pair) for pair in equal]
    assert metric.before.tolist() == pytest.approx(wanted, rel=1e-4)
    table = measured.table.set_index(["measure", "row"])
    for row, count, mean in (
        ("category", 2, np.mean(wanted[:2])),
        ("headline", 2, np.mean(wanted[:2])),
        ("neutral", 2, np.mean(wanted[2:])),
    ):
        assert table.loc[("metric", row), "pairs"] == count
        assert table.loc[("metric", row), "before"] == pytest.approx(mean, rel=1e-4)
    assert table.loc[("gap", "headline"), "pairs"] == 6

    change = metric[metric.kind == "neutral"]
    change = change.after.sum() / change.before.sum() - 1
    assert table.loc[("metric", "headline"), "neutral_change"] == pytest.approx(change, abs=1e-4)
    numbers = ["before", "after", "change", "low", "high", "random_low", "specificity_low"]
    assert np.isfinite(table.loc[[("metric", "category"), ("gap", "headline")], numbers]).all(None)


def test_without_a_pair_of_one_length_there_is_no_metric(tokenizer, pairs, neutral, outcomes):
    unequal = [pairs[0], pairs[3]]
    table = compared(tokenizer, unequal, neutral, outcomes).table
    assert table[table.measure == "metric"].row.tolist() == ["neutral"]
    assert {"gap", "decision", "perplexity"} <= set(table.measure)
    table = compared(tokenizer, [pairs[1], pairs[4]], [neutral[1], neutral[3]], outcomes).table
    rows = table[table.measure == "metric"]
    assert rows.row.tolist() == ["category", "headline"]
    assert rows.neutral_change.isna().all() and "neutral" not in "".join(rows.sentence)
    table = compared(tokenizer, unequal, [neutral[1]], outcomes).table
    assert "metric" not in table.measure.tolist()


def test_the_readings_of_the_other_pairs_stay_as_they_are(tokenizer, pairs, neutral, outcomes):
    equal = [pairs[1], pairs[4]]
    alone = compared(tokenizer, equal, neutral, outcomes).readings
    among = compared(tokenizer, pairs, neutral, outcomes).readings
    among = among[(among.kind == "neutral") | (among.attribute_a == equal[0].attribute_a)]
    assert among.after.tolist() == pytest.approx(alone.after.tolist(), rel=1e-4, abs=1e-6)


def test_they_are_kept_in_the_cache(tokenizer, pairs, neutral, outcomes, tmp_path, monkeypatch):
    first = compared(tokenizer, pairs, neutral, outcomes, cache=tmp_path)
    monkeypatch.setattr(readings, "run_pairs", lambda *a, **k: pytest.fail("measured again"))
    again = compared(tokenizer, pairs, neutral, outcomes, cache=tmp_path)
    assert again.readings.equals(first.readings)
