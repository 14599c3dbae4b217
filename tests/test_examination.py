from collections import Counter
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest

import fairlab as fl
from fairlab.behavior import generate
from fairlab.choices import MOST_TOKENS, STEPS, Choices, mark_tokens, read_prompts
from fairlab.diagnosis import article_metric
from fairlab.evaluation.readings import HeldOut
from fairlab.examination import JUDGED, STORY, _other_pairs, examine
from tiny_models import bytes_of, note_rows, same_bytes, tiny_model

CHOICES = Choices(layer=1, count=2, n_random=2)


@pytest.fixture(scope="module")
def judged():
    pairs = fl.load_pairs(split="validation")[:3]
    neutral = fl.load_pairs(split="validation", kind="neutral")[:2]
    return HeldOut(pairs, neutral, fl.load_text("evaluation")[:400])


@pytest.fixture(scope="module")
def seen(tokenizer, judged):
    """A model, what it was before, and the steps."""
    model = tiny_model()
    before = bytes_of(model)
    steps = list(examine(model, tokenizer, fl.ARTICLE_PAIR, CHOICES, judged=judged))
    return model, before, dict(zip(STEPS, steps, strict=True))


def test_the_steps_come_in_order_and_leave_the_model_as_it_was(seen):
    model, before, steps = seen
    assert [step.title for step in steps.values()] == list(STEPS)
    assert same_bytes(model, before)
    assert [len(step.pictures) for step in steps.values()] == [3, 1, 0, 2]
    for step in steps.values():
        assert step.sentences and all(each.endswith(".") for each in step.sentences)
        for picture in step.pictures:
            assert picture.figure.axes and picture.text.endswith(".")
    assert plt.get_fignums() == [], "a notebook would show them a second time"


def test_the_quick_steps_come_before_the_slow_ones_run(tokenizer, judged):
    model = tiny_model()
    rows = note_rows(model)
    steps = examine(model, tokenizer, fl.ARTICLE_PAIR, CHOICES, judged=judged)
    assert rows == []
    counts = []
    for _ in steps:
        counts.append(len(rows))
    pictures, neurons, texts, verdict = counts
    assert neurons < 10 < texts < verdict, "a step runs the model when it is asked for"
    assert pictures <= neurons


def test_what_is_said_are_the_numbers_of_the_functions(seen, tokenizer, judged):
    model, _, steps = seen
    pair = fl.ARTICLE_PAIR
    first = " ".join(steps[STEPS[0]].sentences)
    gap = fl.next_token_divergence(model, tokenizer, [pair]).item()
    assert f"Black / white: the predictions for the next word lie {gap:.4f} nats apart" in first
    assert f"The article's metric is {article_metric(model, tokenizer, pair):.4f}." in first
    assert "In layer 1 the difference at mlp_output is" in first

    bias = fl.bias_scores(model, tokenizer, [pair], method="article")
    scores = fl.hybrid_scores(bias, fl.importance_scores(model))
    cut = fl.select_neurons(scores, count=2)
    numbers = ", ".join(map(str, cut.neurons[1]))
    assert steps[STEPS[1]].sentences == [
        f"6 of 72 neurons are removed, 2 in each layer; in layer 1 these are {numbers}."
    ]

    texts = dict(steps[STEPS[2]].texts)
    prompts = [pair.prompt_a, pair.prompt_b]
    stories = generate(model, tokenizer, prompts, max_new_tokens=STORY)
    with fl.ablate(model, cut):
        cut_stories = generate(model, tokenizer, prompts, max_new_tokens=STORY)
    assert texts == {
        "Black, before the cut": prompts[0] + stories[0],
        "Black, after the cut": prompts[0] + cut_stories[0],
        "white, before the cut": prompts[1] + stories[1],
        "white, after the cut": prompts[1] + cut_stories[1],
    }
    changed = [a != b for a, b in zip(stories, cut_stories, strict=True)]
    assert all(changed) and "after both prompts" in steps[STEPS[2]].sentences[0]

    last = " ".join(steps[STEPS[3]].sentences)
    options = {"n_random": 2, "metric": False}
    table = fl.compare(model, tokenizer, {"cut": cut}, judged, **options).table
    (price,) = table[table.measure == "perplexity"].change
    assert f"Perplexity changes by {price:+.1%}" in last
    assert "Judged on 3 pairs about " in last and "2 random changes" in last


def test_a_scale_is_gates_and_is_said(tokenizer, judged):
    model = tiny_model()
    choices = replace(CHOICES, scale=1.5, score="attribution", point="residual")
    steps = list(examine(model, tokenizer, fl.ARTICLE_PAIR, choices, judged=judged))
    assert "6 of 72 neurons are multiplied by 1.5" in steps[1].sentences[0]
    assert "attribution score" in steps[1].pictures[0].text
    assert "the difference at residual is" in steps[0].sentences[1]


BAD = {
    "point: expected one of input_norm": {"point": "mlp"},
    "score: expected one of article, activation, attribution; got 'size'": {"score": "size"},
    "layer: expected a whole number from 0 to 2; got 3": {"layer": 3},
    "layer: expected a whole number from 0 to 2; got '1'": {"layer": "1"},
    "count: expected a whole number from 1 to 23; got 24": {"count": 24},
    "n_random: expected a whole number from 1 to 100; got 0": {"n_random": 0},
    "scale: expected a finite number (0 removes); got nan": {"scale": float("nan")},
    "scale: expected a finite number (0 removes); got '0'": {"scale": "0"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_choices_are_refused_before_any_work(message, tokenizer):
    model = tiny_model()
    rows = note_rows(model)
    with pytest.raises(ValueError) as caught:  # at the call: no step is asked for
        examine(model, tokenizer, fl.ARTICLE_PAIR, replace(Choices(), **BAD[message]))
    assert str(caught.value).startswith(message) and rows == []


def test_others_judge(tokenizer):
    pairs = fl.load_pairs(split="train")
    for pair in (fl.ARTICLE_PAIR, pairs[0], pairs[-1]):
        judged = _other_pairs(tokenizer, pair)
        sentences = [other.template for other in judged.pairs]
        assert len(set(sentences)) == len(sentences) == JUDGED and pair.template not in sentences
        assert [other.template for other in judged.neutral] == sentences
        longest = max(len(tokenizer(other.prompt_a).input_ids) for other in judged.pairs)
        assert longest == 20, "the shortest sentences are read; the others have up to 23 tokens"
        counts = Counter(other.category for other in judged.pairs)
        assert len(counts) == 4 and set(counts.values()) == {2}, "so each has an interval"
        assert pair.category in counts


def test_a_noun_of_its_own_does_not_hide_the_sentence(tokenizer):
    """The course reads "The woman waited" as the sentence "The {} applicant waited"."""
    women = [pair for pair in fl.load_pairs("gender", split="train") if pair.attribute_a == "woman"]
    for pair in women[:2]:
        for prompts in [(pair.prompt_a, pair.prompt_b), (pair.prompt_b, pair.prompt_a)]:
            typed = read_prompts(tokenizer, *prompts)
            judged = _other_pairs(tokenizer, typed)
            assert typed.template != pair.template and len(judged.pairs) == JUDGED
            assert pair.template not in [other.template for other in judged.pairs]


def test_two_prompts_become_a_pair(tokenizer):
    pair = read_prompts(tokenizer, "The old nurse said that", "The old doctor said that")
    assert (pair.attribute_a, pair.attribute_b) == ("nurse", "doctor")
    assert pair.template == "The old {} said that"
    assert fl.check_pairs(tokenizer, [pair]).valid.all()


REFUSED = {
    "prompt_a: expected a sentence; got '  '": ("  ", "A man"),
    "prompt_b: expected a sentence; got None": ("A man", None),
    f"prompt_a: expected at most {MOST_TOKENS} tokens; got 65": ("a" + " a" * 64, "A man"),
    "prompt_b: expected 2 tokens, as prompt_a has; got 3": ("A man", "A old man"),
    "pairs: the two prompts must differ; got 'A man' twice": ("A man", "A man"),
    "pairs: the prompts differ in more than one place": ("A man has red", "The man has blue"),
    "pairs: prompt_a and prompt_b end in a blank": ("A man ", "A cat "),
}


@pytest.mark.parametrize("message", REFUSED)
def test_prompts_that_cannot_be_compared_are_refused(message, tokenizer):
    with pytest.raises(ValueError) as caught:
        read_prompts(tokenizer, *REFUSED[message])
    assert str(caught.value).startswith(message)


def test_tokens_are_marked_where_the_prompts_differ(tokenizer):
    a, b = mark_tokens(tokenizer, "A Black man walked", "A white man walked")
    assert a == [("A", False), (" Black", True), (" man", False), (" walked", False)]
    assert b == [("A", False), (" white", True), (" man", False), (" walked", False)]
    a, b = mark_tokens(tokenizer, "A man walked", "A very old man walked")
    assert [text for text, differs in a if differs] == []
    assert [text for text, differs in b if differs] == [" very", " old"]
    assert mark_tokens(tokenizer, "", "A") == ([], [("A", True)])
