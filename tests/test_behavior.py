import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

import fairlab as fl
from fairlab.pairs import prompt_ids
from tiny_models import tiny_model

PAIR = fl.ARTICLE_PAIR


def next_token_probabilities(model, tokenizer, prompt):
    with torch.no_grad():
        return model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].double().softmax(-1)


def test_generate_is_stock_generation_with_the_article_settings(model, tokenizer):
    prompt = "The capital of France is"
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(
        **inputs,
        do_sample=False,
        num_beams=5,
        early_stopping=True,
        no_repeat_ngram_size=2,
        max_length=12,
    )
    text = tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert fl.generate(model, tokenizer, [prompt], max_length=12) == [text]
    assert text.startswith(prompt + " Paris")


def test_generate_keeps_the_order_of_prompts_of_any_length(tokenizer):
    model = tiny_model(dtype=torch.float64)  # rounding in a batch decides on no beam
    prompts = [
        "The capital of France is",
        "Two and two",
        "The capital of Spain is",
        "The sky over the sea",
    ]
    alone = [fl.generate(model, tokenizer, [prompt], max_length=9)[0] for prompt in prompts]
    assert len(set(alone)) == 4
    for batch_size in (1, 2, 16):
        assert fl.generate(model, tokenizer, prompts, max_length=9, batch_size=batch_size) == alone


def test_new_tokens_are_counted_from_the_prompt_and_stand_alone(tokenizer, bos_tokenizer, recwarn):
    """Prompts of unequal length get as many new tokens each, also where a prompt holds special
    tokens, which no text shows; BOS is not counted or added twice."""
    model = tiny_model(dtype=torch.float64)
    (chat,) = fl.chat_pairs(tokenizer, [PAIR])
    assert len(tokenizer(chat.prompt_a).input_ids) >= 50, "max_length leaves no room by default"
    for reads in (tokenizer, bos_tokenizer):
        prompts = ["The capital of France is", chat.prompt_a, f"{reads.bos_token}Two and two"]
        texts = fl.generate(model, reads, prompts, max_new_tokens=9)
        for prompt, text in zip(prompts, texts, strict=True):
            ids = torch.tensor([prompt_ids(reads, prompt)])
            tokens = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=5,
                early_stopping=True,
                no_repeat_ngram_size=2,
                max_length=ids.shape[1] + 9,
            )
            assert text == reads.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
            assert text and "assistant" not in text
    assert not recwarn.list


def test_generate_refuses_what_it_cannot_do(model, tokenizer):
    for bad in (0, 2.5, "9"):
        with pytest.raises(ValueError, match="max_new_tokens: expected a whole number of at least"):
            fl.generate(model, tokenizer, ["The capital"], max_new_tokens=bad)
    with pytest.raises(TypeError, match="prompts: expected a list of strings; got one string"):
        fl.generate(model, tokenizer, "The capital")
    with pytest.raises(ValueError, match="prompts: expected at least one; got an empty list"):
        fl.generate(model, tokenizer, [])
    with pytest.raises(ValueError, match="max_length: 3 leaves no room after the 5 tokens"):
        fl.generate(model, tokenizer, ["The capital of France is"], max_length=3)


def test_divergence_equals_scipy_one_prompt_at_a_time(model, tokenizer, some_pairs):
    pairs = [PAIR, *some_pairs[:3], *some_pairs[-2:]]
    gaps = fl.next_token_divergence(model, tokenizer, pairs, batch_size=5)
    for pair, gap in zip(pairs, gaps.tolist(), strict=True):
        a, b = (
            next_token_probabilities(model, tokenizer, p) for p in (pair.prompt_a, pair.prompt_b)
        )
        assert gap == pytest.approx(jensenshannon(a, b) ** 2, rel=1e-3)
    assert gaps.shape == (6,)


def test_divergence_is_symmetric_and_bounded(tokenizer, some_pairs):
    tiny = tiny_model(dtype=torch.float64)
    gaps = fl.next_token_divergence(tiny, tokenizer, some_pairs)
    swapped = [fl.PromptPair(pair.prompt_b, pair.prompt_a) for pair in some_pairs]
    assert gaps.dtype == torch.float64
    assert torch.allclose(gaps, fl.next_token_divergence(tiny, tokenizer, swapped), rtol=1e-12)
    assert ((gaps > 0) & (gaps < math.log(2))).all()


def test_divergence_of_a_model_that_ignores_its_input_is_zero(tokenizer, some_pairs):
    tiny = tiny_model()
    tiny.lm_head.weight.data.zero_()
    assert fl.next_token_divergence(tiny, tokenizer, some_pairs).abs().max() < 1e-6


def test_divergence_finds_nan_weights(tokenizer, some_pairs):
    tiny = tiny_model()
    tiny.model.norm.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="next-token probabilities are not finite"):
        fl.next_token_divergence(tiny, tokenizer, some_pairs)


def test_top_token_shifts_are_the_largest(model, tokenizer):
    table = fl.top_token_shifts(model, tokenizer, PAIR, k=4)
    a, b = (next_token_probabilities(model, tokenizer, p) for p in (PAIR.prompt_a, PAIR.prompt_b))
    largest = (a - b).abs().topk(4).values.tolist()
    assert table["shift"].abs().tolist() == pytest.approx(largest, rel=1e-3)
    was = tokenizer(" was").input_ids[0]
    row = table[table.token == " was"].iloc[0]
    assert (row.probability_a, row.probability_b) == pytest.approx(
        (a[was].item(), b[was].item()), rel=1e-3
    )
    with pytest.raises(ValueError, match="k: expected a whole number from 1 to"):
        fl.top_token_shifts(model, tokenizer, PAIR, k=0)
