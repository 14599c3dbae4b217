"""What is sampled after a prompt, what is counted in it, and what that comes to."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import fairlab as fl
from fairlab.pairs import prompt_ids
from fairlab.statistics import jackknife_interval
from tiny_models import tiny_model

SMALL = {"n": 3, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def pairs():
    return fl.load_pairs("race", split="validation")[:3] + fl.load_pairs("age")[:2]


def draws_of(pairs, n, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(pairs), n, steps, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("family", ["Llama", "Gemma 3", "GPT-2"])
def test_continuations_are_those_of_a_slow_reference(family, tokenizer, pairs):
    """One row at a time, without a cache: the whole text again for every token."""
    model = tiny_model(family)
    table = fl.sample_continuations(model, tokenizer, pairs, **SMALL)
    draws = draws_of(pairs, 3, 5)
    assert len(table) == len(pairs) * 2 * 3
    for row in table.iloc[::4].itertuples():
        prompt = getattr(pairs[row.pair], f"prompt_{row.side}")
        start = prompt_ids(tokenizer, prompt)
        ids = list(start)
        for u in draws[row.pair, row.number]:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
            sums = np.cumsum(logits.softmax(-1).numpy())
            ids.append(int(np.argmax(sums > float(u) * sums[-1])))
        assert row.text == tokenizer.decode(ids[len(start) :], skip_special_tokens=True)
        assert (row.category, row.template) == (
            pairs[row.pair].category,
            pairs[row.pair].template,
        )


def test_the_seed_decides_and_neither_batch_nor_caller(tokenizer, pairs):
    model = tiny_model()
    state = torch.get_rng_state()
    table = fl.sample_continuations(model, tokenizer, pairs, **SMALL)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    for batch_size in (1, 4):
        again = fl.sample_continuations(model, tokenizer, pairs, batch_size=batch_size, **SMALL)
        pd.testing.assert_frame_equal(again, table)
    other = fl.sample_continuations(model, tokenizer, pairs, seed=1, **SMALL)
    assert (other["text"] != table["text"]).mean() > 0.9


def test_both_prompts_and_every_cut_have_the_same_draws(tokenizer, pairs):
    model = tiny_model()
    same = [replace(pairs[0], prompt_b=pairs[0].prompt_a)]
    table = fl.sample_continuations(model, tokenizer, same, **SMALL)
    texts = table.pivot(index="number", columns="side", values="text")
    assert list(texts["a"]) == list(texts["b"])
    assert texts["a"].nunique() == 3
    nothing, some = ({}, {0: (1, 2, 3), 2: (5, 6, 7)})
    with fl.ablate(model, fl.NeuronSelection(nothing, (3, 24))):
        unchanged = fl.sample_continuations(model, tokenizer, same, **SMALL)
    pd.testing.assert_frame_equal(unchanged, table)
    with fl.ablate(model, fl.NeuronSelection(some, (3, 24))):
        cut = fl.sample_continuations(model, tokenizer, same, **SMALL)
    assert list(cut["text"]) != list(table["text"])


def forced(tokenizer, words):
    """Make a model that writes these words with these probabilities, whatever stands before."""
    model = tiny_model()
    head = torch.nn.Linear(32, 49152)
    head.weight.data.zero_()
    head.bias.data.fill_(-math.inf)
    for word, probability in words.items():
        (token,) = tokenizer(word).input_ids
        head.bias.data[token] = math.log(probability)
    model.lm_head = head
    return model


def test_a_forced_model_gives_the_count_expected(tokenizer, pairs):
    model = forced(tokenizer, {" guilty": 0.25, " honest": 0.75})
    texts = fl.sample_continuations(model, tokenizer, pairs, n=4, max_new_tokens=6)
    gaps = fl.continuation_gaps(texts)
    guilty, honest = (tokenizer(word).input_ids[0] for word in (" guilty", " honest"))
    draws = draws_of(pairs, 4, 6)
    # the token with the lower number has the lower part of [0, 1)
    is_guilty = draws < 0.25 if guilty < honest else draws >= 0.75
    counts = is_guilty.sum(2).double().mean(1)  # (pairs,)
    for score, expected in (("harsh words", counts), ("kind words", 6 - counts)):
        part = gaps[gaps["score"] == score]
        assert part["mean_a"].tolist() == part["mean_b"].tolist() == expected.tolist()
        assert (part["gap"] == 0).all()
    assert 0 < counts.sum() < 30


def test_a_text_ends_where_the_model_ends_it(tokenizer, pairs):
    model = forced(tokenizer, {" honest": 0.5, tokenizer.eos_token: 0.5})
    model.generation_config.eos_token_id = None  # the tokenizer knows it, too
    texts = fl.sample_continuations(model, tokenizer, pairs, n=5, max_new_tokens=8)["text"]
    counts = [text.count(" honest") for text in texts]
    assert [text == " honest" * count for text, count in zip(texts, counts, strict=True)]
    assert min(counts) == 0 < max(counts) < 8
    (token,) = tokenizer(" honest").input_ids
    model.generation_config.eos_token_id = [7, token]
    texts = fl.sample_continuations(model, tokenizer, pairs, n=5, max_new_tokens=8)["text"]
    assert set(texts) == {""}


def texts_table(texts):
    """Make a table of texts: (template, words) → texts after a, texts after b."""
    rows = []
    for number, ((template, a, b), sides) in enumerate(texts.items()):
        facts = {"pair": number, "category": "c", "template": template}
        facts |= {"attribute_a": a, "attribute_b": b}
        for side, some in zip("ab", sides, strict=True):
            for place, text in enumerate(some):
                rows.append({**facts, "side": side, "number": place, "text": text})
    return pd.DataFrame(rows)


def test_words_are_counted_as_whole_words(tokenizer):
    table = texts_table(
        {
            ("t", "x", "y"): (
                ["Lazy, lazy and GUILTY.", "an arrested liar"],
                ["lazybones unarrested", "stark mad, mad"],
            )
        }
    )
    gaps = fl.continuation_gaps(table).set_index("score")
    assert gaps.loc["harsh words", ["mean_a", "mean_b", "gap"]].tolist() == [2.5, 0, 2.5]
    own = {"madness": ["mad", "stark mad"], "length": len}
    gaps = fl.continuation_gaps(table, own).set_index("score")
    assert gaps.loc["madness", ["mean_a", "mean_b"]].tolist() == [0, 1]
    lengths = [[len(text) for text in table["text"][some]] for some in (slice(0, 2), slice(2, 4))]
    assert gaps.loc["length", ["mean_a", "mean_b"]].tolist() == list(map(np.mean, lengths))


def test_a_score_must_return_a_number():
    table = texts_table({("t", "x", "y"): (["one"], ["two"])})
    for wrong in (None, "0.5", math.nan, [1.0]):
        with pytest.raises(TypeError, match="scores: mine must return a finite number; got"):
            fl.continuation_gaps(table, {"mine": lambda text, wrong=wrong: wrong})
    for wrong in ("rude", [], ["rude", ""], 3):
        with pytest.raises(TypeError, match="scores: expected a list of words or a callable"):
            fl.continuation_gaps(table, {"mine": wrong})
    for wrong in ({}, len, ["rude"]):
        with pytest.raises(TypeError, match="scores: expected lists of words or callables"):
            fl.continuation_gaps(table, wrong)
    numbers = {"numpy": lambda text: np.float32(0.5), "whole": lambda text: 2}
    assert fl.continuation_gaps(table, numbers)["mean_a"].tolist() == [0.5, 2]


def test_what_cannot_be_sampled_is_refused(tokenizer, pairs):
    model = tiny_model()
    for name, wrong in (("n", 0), ("max_new_tokens", 2.5), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{name}: expected a"):
            fl.sample_continuations(model, tokenizer, pairs, **{name: wrong})
    with pytest.raises(ValueError, match="model: it reads up to 128 tokens"):
        fl.sample_continuations(model, tokenizer, pairs, max_new_tokens=120)
    model.model.norm.weight.data[0] = math.nan
    with pytest.raises(ValueError, match="next-token probabilities are not finite"):
        fl.sample_continuations(model, tokenizer, pairs, **SMALL)


@pytest.fixture
def gaps():
    """Make three tables of gaps: 4 templates × 2 pairs of words, in texts of one word."""
    generator = np.random.default_rng(0)
    tables = {}
    for name in ("before", "cut", "random 1"):
        texts = {}
        for template in "tuvw":
            for words in (("old", "young"), ("older", "younger")):
                counts = generator.integers(0, 4, (2, 3))
                sides = [["rude " * count for count in side] for side in counts]
                texts[template, *words] = sides
        tables[name] = fl.continuation_gaps(texts_table(texts), {"harsh words": ["rude"]})
    return tables


def test_the_summary_has_intervals_over_templates_and_words(gaps):
    table = fl.summarize_continuations(gaps).set_index("name")
    assert list(table.index) == ["before", "cut", "random 1"]

    def interval(values, part):
        columns = np.stack([100 * values, np.ones(len(values))], 1)
        words = part["attribute_a"] + part["attribute_b"]
        labels = [list(part["template"]), list(words)]
        return jackknife_interval(columns, lambda sums: sums[:, 0] / sums[:, 1], labels)

    for name, part in gaps.items():
        row, change = table.loc[name], part["gap"] - gaps["before"]["gap"]
        assert (row.a, row.b) == pytest.approx((100 * part.mean_a.mean(), 100 * part.mean_b.mean()))
        assert row.gap == pytest.approx(row.a - row.b)
        assert (row.low, row.high) == pytest.approx(interval(part["gap"], part))
        assert row.change == pytest.approx(row.gap - table.loc["before"].gap)
        expected = interval(change, part)
        if name == "before":  # where all is the same, nothing can be resampled
            expected = (np.nan, np.nan)
        assert (row.change_low, row.change_high) == pytest.approx(expected, nan_ok=True)
        assert row.pairs == 8
    assert table.loc["before", "change"] == 0
    # of a category with a single pair of words the interval is for these words
    apart = {name: part.assign(category=part["attribute_a"]) for name, part in gaps.items()}
    row = fl.summarize_continuations(apart).set_index("name").loc["cut"]
    columns = np.stack([100 * gaps["cut"]["gap"], np.ones(8)], 1)
    templates = [list(gaps["cut"]["template"])]
    expected = jackknife_interval(columns, lambda sums: sums[:, 0] / sums[:, 1], templates)
    assert (row.low, row.high) == pytest.approx(expected)


def test_the_sentence_counts_words(gaps):
    one = {name: part[part["attribute_a"] == "old"] for name, part in gaps.items()}
    one["before"] = one["before"].assign(mean_a=0.5, mean_b=0.25, gap=[0.1, 0.2, 0.3, 0.4])
    one["cut"] = one["cut"].assign(mean_a=0.25, mean_b=0.5, gap=[-0.1, -0.2, -0.3, -0.4])
    table = fl.summarize_continuations(one)
    # t(0.975, 3) · sd / √4 = 3.182 · 0.1291 / 2 = 0.205
    assert table["sentence"][0] == (
        "before: in 100 continuations 25.0 more harsh words after old than after young "
        "[4.5, 45.5] (50.0 and 25.0)"
    )
    assert table["sentence"][1] == (
        "cut: in 100 continuations 25.0 fewer harsh words after old than after young "
        "[4.5, 45.5] (25.0 and 50.0); against before a change of -50.0 [-91.1, -8.9]"
    )
    alone = {name: part[part["template"] == "t"] for name, part in one.items()}
    for text in fl.summarize_continuations(alone)["sentence"]:
        assert "[no interval]" in text and "nan" not in text
    both = fl.summarize_continuations(gaps)["sentence"]
    assert all(" the first word of a pair than after the second [" in text for text in both)


def test_tables_of_other_pairs_are_refused(gaps):
    with pytest.raises(ValueError, match="gaps: expected at least one table"):
        fl.summarize_continuations({})
    for other in (gaps["cut"].assign(score="mine"), gaps["cut"][:3]):
        with pytest.raises(ValueError, match="gaps: cut has other pairs or scores than before"):
            fl.summarize_continuations({"before": gaps["before"], "cut": other})


def test_the_lexicon_names_no_group():
    lists = fl.load_lexicon()
    assert list(lists) == ["harsh words", "kind words"]
    harsh, kind = lists.values()
    assert len(harsh) == len(kind) == len(set(harsh)) == len(set(kind))
    assert not set(harsh) & set(kind)
    for kind_of_pairs in ("demographic", "neutral"):
        for split in (None, "test", "extra"):
            for pair in fl.load_pairs(split=split, kind=kind_of_pairs):
                words = f"{pair.attribute_a} {pair.attribute_b}".lower().split()
                assert not set(words) & {*harsh, *kind}
    for word in (*harsh, *kind):
        assert word == word.strip().lower()
