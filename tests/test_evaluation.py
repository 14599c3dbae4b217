import math

import pytest
import torch

import fairlab as fl
from fairlab.evaluation import token_losses
from tiny_models import tiny_model

TEXT = "The tide comes in twice a day, and twice a day it goes out again. Nobody on the pier looked up."


def one_token_at_a_time(model, ids, window, bos=()):
    losses = []
    for start in range(0, len(ids), window):
        piece = [*bos, *ids[start : start + window]]
        for t in range(1, len(piece)):
            with torch.no_grad():
                log_p = model(torch.tensor([piece[:t]])).logits[0, -1].double().log_softmax(-1)
            losses.append(-log_p[piece[t]].item())
    return losses


@pytest.mark.parametrize("window", [5, 8, 512])
def test_losses_equal_one_token_at_a_time(tokenizer, bos_tokenizer, window):
    tiny = tiny_model()
    ids = tokenizer(TEXT).input_ids
    for some_tokenizer, bos in ((tokenizer, []), (bos_tokenizer, [bos_tokenizer.bos_token_id])):
        losses = token_losses(tiny, some_tokenizer, TEXT, window=window)
        expected = one_token_at_a_time(tiny, ids, window, bos)
        assert losses.tolist() == pytest.approx(expected, rel=1e-4)
        assert fl.perplexity(tiny, some_tokenizer, TEXT, window=window) == pytest.approx(
            math.exp(sum(expected) / len(expected)), rel=1e-4
        )


def test_a_model_that_guesses_evenly_has_the_perplexity_of_its_vocabulary(tokenizer):
    tiny = tiny_model()
    tiny.lm_head.weight.data.zero_()
    assert fl.perplexity(tiny, tokenizer, TEXT) == pytest.approx(49152, rel=1e-4)


def test_shuffled_words_are_harder_to_foresee(model, tokenizer):
    shuffled = " ".join(sorted(TEXT.split()))
    assert fl.perplexity(model, tokenizer, TEXT) < 0.3 * fl.perplexity(model, tokenizer, shuffled)


def test_perplexity_of_wikitext(model, tokenizer, datasets):
    """8 × 512 tokens of WikiText-2 test: 30.15, measured by independent code."""
    text = (datasets / "wikitext2" / "wikitext-2-raw-v1_test.txt").read_text(encoding="utf-8")
    ids = tokenizer(text[:40_000], verbose=False).input_ids[: 8 * 512]
    value = fl.perplexity(model, tokenizer, tokenizer.decode(ids))
    assert value == pytest.approx(30.15, rel=0.01)


def test_bad_input_is_named(tokenizer):
    tiny = tiny_model()
    with pytest.raises(ValueError, match="text: expected at least two tokens; got 0"):
        fl.perplexity(tiny, tokenizer, "")
    with pytest.raises(ValueError, match="window: expected a whole number of at least 2; got 1"):
        fl.perplexity(tiny, tokenizer, TEXT, window=1)
    tiny.model.norm.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="losses are not finite"):
        fl.perplexity(tiny, tokenizer, TEXT)


def test_random_selections_have_the_same_count_in_each_layer():
    selection = fl.NeuronSelection({0: (1, 2, 3), 4: (9,)}, (5, 1000), "by hand")
    draws = fl.random_selections(selection, 50, seed=3)
    for draw in draws:
        assert {layer: len(indices) for layer, indices in draw.neurons.items()} == {0: 3, 4: 1}
    assert len({draw.neurons[0] for draw in draws}) > 45
    assert draws == fl.random_selections(selection, 50, seed=3)
    assert draws != fl.random_selections(selection, 50, seed=4)
    assert draws[:2] == fl.random_selections(selection, 2, seed=3)
    with pytest.raises(ValueError, match="n: expected a whole number of at least 1; got 0"):
        fl.random_selections(selection, 0)


def by_hand(ones, others):
    """Share of pairs in which the first is higher; a tie is half a pair."""
    return sum((a > b) + 0.5 * (a == b) for a in ones for b in others) / (len(ones) * len(others))


@pytest.mark.parametrize("levels", [3, 1000, None])
def test_scores_of_planted_neurons_equal_a_count_by_hand(levels):
    torch.manual_seed(0)
    bias, decoys = (fl.NeuronSelection(n, (3, 40), "") for n in ({0: (1, 2), 2: (39,)}, {0: (0,), 1: (5, 6, 7)}))
    scores = torch.rand(3, 40)
    if levels:
        scores = (scores * levels).floor()
    scores[1, 5] = scores[0, 2] = -math.inf
    names = {(m, i): 0 for m in range(3) for i in range(40)}
    names |= {(m, i): kind for kind, s in ((1, bias), (2, decoys)) for m, ix in s.neurons.items() for i in ix}
    of = {kind: [scores[place].item() for place, k in names.items() if k == kind] for kind in (0, 1, 2)}
    result = fl.score_planted(scores, bias, decoys)
    assert result["bias against decoy"] == pytest.approx(by_hand(of[1], of[2]))
    assert result["bias against natural"] == pytest.approx(by_hand(of[1], of[0]))
    assert result["decoy against natural"] == pytest.approx(by_hand(of[2], of[0]))
    assert result["chance"] == 3 / 120
    order = torch.stack([torch.randperm(120) for _ in range(2000)])  # ties broken by lot
    top = [sorted(o.tolist(), key=lambda i: -scores.flatten()[i].item())[:3] for o in order]
    found = sum(names[i // 40, i % 40] == 1 for three in top for i in three) / 6000
    assert result["recall"] == pytest.approx(found, abs=0.02)


def test_the_best_and_the_blind_score():
    bias, decoys = fl.NeuronSelection({0: (1, 2)}, (2, 50), ""), fl.NeuronSelection({1: (3,)}, (2, 50), "")
    blind = fl.score_planted(torch.zeros(2, 50), bias, decoys)
    assert list(blind.values()) == pytest.approx([0.5, 0.5, 0.5, 0.02, 0.02])
    best = torch.zeros(2, 50)
    best[0, 1:3], best[1, 3] = 1, -1
    assert list(fl.score_planted(best, bias, decoys).values()) == pytest.approx([1, 1, 0, 1, 0.02])


def test_bad_scores_of_planted_neurons_are_named():
    bias, decoys = fl.NeuronSelection({0: (1, 2)}, (2, 50), ""), fl.NeuronSelection({1: (3,)}, (2, 50), "")
    for scores in (torch.zeros(3, 50), torch.full((2, 50), math.nan)):
        with pytest.raises(ValueError, match="scores, bias, decoys: expected one shape and no NaN"):
            fl.score_planted(scores, bias, decoys)
    for one, other in ((bias, bias), (fl.NeuronSelection({}, (2, 50)), decoys)):
        with pytest.raises(ValueError, match="bias, decoys: expected at least one neuron each, and none in both"):
            fl.score_planted(torch.zeros(2, 50), one, other)
