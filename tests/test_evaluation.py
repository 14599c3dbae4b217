import math
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

import fairlab as fl
from fairlab.evaluation.chance import random_gates
from fairlab.evaluation.flattening import SCALES
from fairlab.passes import text_chunks, text_windows, token_losses
from tiny_models import note_rows, tiny_model

TEXT = (
    "The tide comes in twice a day, and twice a day it goes out again. "
    "Nobody on the pier looked up."
)


def one_token_at_a_time(model, ids, window, bos=()):
    losses = []
    for start in range(0, len(ids), window):
        piece = [*bos, *ids[start : start + window]]
        for t in range(1, len(piece)):
            with torch.no_grad():
                log_p = model(torch.tensor([piece[:t]])).logits[0, -1].double().log_softmax(-1)
            losses.append(-log_p[piece[t]].item())
    return losses


def test_windows_hold_the_whole_text_and_chunks_the_full_windows(tokenizer, bos_tokenizer):
    tiny, ids = tiny_model(), tokenizer(TEXT).input_ids
    for some_tokenizer, bos in ((tokenizer, []), (bos_tokenizer, [bos_tokenizer.bos_token_id])):
        windows = text_windows(some_tokenizer, TEXT, 5)
        assert all(window[: len(bos)] == bos for window in windows)
        without_bos = [window[len(bos) :] for window in windows]
        assert list(chain.from_iterable(without_bos)) == ids
        assert len(ids) % 5 and len(windows[-1]) < len(windows[0]) == len(bos) + 5
        assert text_chunks(tiny, some_tokenizer, TEXT, 5) == windows[:-1]
        assert text_chunks(tiny, some_tokenizer, TEXT, 512) == [bos + ids]  # shorter than one chunk
        shorter = text_windows(some_tokenizer, TEXT, 5, longest=4)
        assert max(len(window) for window in shorter) == 4
        reads_six = tiny_model(max_position_embeddings=6)
        chunks = text_chunks(reads_six, some_tokenizer, TEXT)
        assert {len(chunk) for chunk in chunks} == {6} and len(chunks) == len(ids) // (6 - len(bos))


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
    # transformers 5.6 takes out blanks before commas, unless told not to
    read = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    value = fl.perplexity(model, tokenizer, read)
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


def test_random_cuts_say_which_they_are_and_begin_with_seed_0():
    cut = fl.NeuronSelection({0: (1, 2)}, (1, 8))
    (draw,) = fl.random_selections(cut, 1)
    assert draw == fl.random_selections(cut, 2, seed=0)[0]
    assert draw.how == "random cut 0 of seed 0"
    matched = fl.random_selections(cut, 2, seed=3, match=torch.rand(1, 8))
    names = ["random cut 0 of seed 3, matched", "random cut 1 of seed 3, matched"]
    assert [some.how for some in matched] == names
    gates = fl.NeuronGates({0: {1: (0.5, 0.0), 2: (2.0, 0.0)}}, (1, 8))
    drawn = random_gates(gates, 2)
    assert drawn == random_gates(gates, 2, seed=0)
    assert drawn[1].how == "random gates 1 of seed 0"


def test_half_of_a_layer_can_be_matched_and_no_more():
    table = torch.rand(1, 4)
    cut = fl.NeuronSelection({0: (0, 1)}, (1, 4))
    assert fl.random_selections(cut, 1, match=table)[0].neurons == {0: (2, 3)}
    cut = fl.NeuronSelection({0: (0, 1, 2)}, (1, 4))
    with pytest.raises(ValueError, match="match: more than half of a layer is selected"):
        fl.random_selections(cut, 1, match=table)


def test_pairs_that_are_none_are_refused_before_a_comparison_reads(tokenizer, tmp_path):
    model, pair = tiny_model(), fl.ARTICLE_PAIR
    passes, cut = note_rows(model), fl.NeuronSelection({0: (1,)}, (3, 24))
    held_out = fl.HeldOut([pair], [replace(pair, prompt_b=pair.prompt_a)], TEXT)
    with pytest.raises(ValueError, match="neutral: the two prompts must differ"):
        fl.compare(model, tokenizer, {"cut": cut}, held_out, cache=tmp_path / "kept")
    assert passes == [] and not any(tmp_path.iterdir())


def test_held_out_pairs_become_lists_and_there_are_some():
    pair = fl.ARTICLE_PAIR
    held_out = fl.HeldOut(iter([pair]), (pair,), TEXT)
    assert (held_out.pairs, held_out.neutral) == ([pair], [pair])
    for name, pairs, neutral in (("pairs", [], [pair]), ("neutral", [pair], [])):
        with pytest.raises(ValueError, match=f"{name}: expected at least one"):
            fl.HeldOut(pairs, neutral, TEXT)


def test_a_matched_cut_takes_one_of_the_twenty_nearest():
    cut, table = fl.NeuronSelection({0: (50,)}, (1, 101)), torch.arange(101.0)[None]
    draws = fl.random_selections(cut, 300, match=table)
    assert {draw.neurons[0][0] for draw in draws} == {*range(40, 61)} - {50}


def test_the_factors_of_a_flattening_go_from_1_to_0():
    assert np.allclose(SCALES, np.arange(20, -1, -1) / 20)
