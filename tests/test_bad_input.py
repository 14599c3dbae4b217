"""What is no input is refused by a sentence, before a model runs.

Contents: what once gave a wrong number without a word (pairs, prompts, tokenizers); then a table
of every public function × argument × wrong value.
"""

import math
from copy import deepcopy

import pytest

import fairlab as fl
from fairlab import pairs as pairs_module
from tiny_models import tiny_model

# ---- what once gave a wrong number without a word


@pytest.mark.parametrize(
    ("templates", "attributes", "says"),
    [
        (["A {} cook"], ["he"], "attributes: expected pairs of words.*got str 'he'"),
        (["A {} cook"], ("Black", "white"), "attributes: expected pairs of words.*'Black'"),
        (["A {} cook"], "he", "attributes: expected a list of pairs of words; got one string"),
        (["A {} cook"], [("a", "b", "c")], "attributes: expected pairs of words"),
        (["A {} cook"], [("a", math.nan)], "attributes: expected pairs of words.*nan"),
        (["A {} cook"], [], "attributes: expected at least one; got an empty list"),
        (["A {} cook"], None, "attributes: expected a list of pairs of words; got NoneType"),
        (["A {} cook"], [("a", "b")] * 2, r"attributes: expected each once; got \('a', 'b'\)"),
        ("A {} cook", [("a", "b")], "templates: expected a list of sentences; got one string"),
        ([], [("a", "b")], "templates: expected at least one; got an empty list"),
        ([math.nan], [("a", "b")], "templates: expected sentences.*got float nan"),
        (["A {} cook"] * 2, [("a", "b")], "templates: expected each once; got 'A {} cook'"),
        (None, [("a", "b")], "templates: expected a list of sentences; got NoneType"),
    ],
)
def test_pairs_are_built_from_sentences_and_pairs_of_words(templates, attributes, says):
    """`["he"]` was the pair of "h" and "e", and a template that came twice counted twice."""
    with pytest.raises((TypeError, ValueError), match=says):
        fl.build_pairs(templates, attributes)


def test_pairs_are_built_from_generators_too():
    lists = ["The {} cook"], [("old", "young")]
    assert fl.build_pairs(*map(iter, lists)) == fl.build_pairs(*lists)
    with pytest.raises(TypeError, match="category: expected a string; got float nan"):
        fl.build_pairs(*lists, category=math.nan)


@pytest.mark.parametrize("value", [None, 3, math.nan, b"A man", ["A man"]])
@pytest.mark.parametrize("field", [*fl.PromptPair.__dataclass_fields__])
def test_a_pair_holds_strings(field, value):
    """An empty cell is NaN in pandas, and all such pairs were one category or one sentence."""
    given = {"prompt_a": "A man", "prompt_b": "A cook", field: value}
    with pytest.raises(TypeError, match=f"{field}: expected a string; got {type(value).__name__}"):
        fl.PromptPair(**given)


@pytest.mark.parametrize("blank", ["", " ", "\n", " \t\n"])
def test_a_prompt_says_something(blank, tokenizer):
    """The table of a check says so too, and an empty prompt made generation end in another
    library's words."""
    pair = fl.PromptPair("A man", blank)
    assert fl.check_pairs(tokenizer, [pair]).reason.tolist() == ["prompt_b is empty"]
    assert not fl.check_pairs(tokenizer, [pair]).measurable.any()
    with pytest.raises(ValueError, match="pairs: prompt_b is empty"):
        pairs_module.encode_pair(tokenizer, pair, aligned=False)
    with pytest.raises(ValueError, match="prompts: expected prompts that are not empty"):
        fl.generate(tiny_model(), tokenizer, ["A man", blank])


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (None, "prompts: expected a list of strings; got NoneType"),
        ("A man", "prompts: expected a list of strings; got one string 'A man'"),
        ([], "prompts: expected at least one; got an empty list"),
        (["A man", None], "prompts: expected strings; got NoneType None"),
        ([3], "prompts: expected strings; got int 3"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(prompts, says, tokenizer):
    with pytest.raises((TypeError, ValueError), match=says):
        fl.generate(tiny_model(), tokenizer, prompts)


def test_prompts_may_come_from_a_generator(tokenizer):
    prompts, model = ["A man walked", "The cook said"], tiny_model()
    texts = fl.generate(model, tokenizer, iter(prompts), max_length=6, num_beams=1)
    assert texts == fl.generate(model, tokenizer, prompts, max_length=6, num_beams=1)


# ---- a tokenizer that can't be measured with


@pytest.fixture
def dropping(tokenizer):
    """Make one that leaves out merges at random, as it does while a model is trained."""
    changed = deepcopy(tokenizer)
    changed.backend_tokenizer.model.dropout = 0.3
    yield changed
    changed.backend_tokenizer.model.dropout = None


def test_a_tokenizer_that_rolls_dice_is_refused(dropping):
    """Two prompts would differ in more than the word, and another time in something else."""
    with pytest.raises(ValueError, match="tokenizer: it reads the same text .* ways"):
        pairs_module.encode_pair(dropping, fl.ARTICLE_PAIR)
    with pytest.raises(ValueError, match="tokenizer: it reads the same text .* ways"):
        fl.generate(tiny_model(), dropping, ["A"])


def test_a_tokenizer_that_always_ends_a_text_is_refused(tokenizer, monkeypatch):
    """What is read after an end-of-text token is no answer to the prompt."""
    changed = deepcopy(tokenizer)
    end = changed.eos_token_id

    class Ending(type(changed)):
        def __call__(self, text, **options):
            read = super().__call__(text, **options)
            read["input_ids"] = [*read["input_ids"], end]
            return read

    changed.__class__ = Ending
    with pytest.raises(ValueError, match="tokenizer: it ends a text with .* though .* asked not"):
        fl.generate(tiny_model(), changed, ["A man"])


def test_a_tokenizer_is_checked_once(tokenizer, monkeypatch):
    fresh = deepcopy(tokenizer)
    pairs_module.encode_pair(fresh, fl.ARTICLE_PAIR)
    calls = []
    read = type(fresh).__call__
    monkeypatch.setattr(type(fresh), "__call__", lambda *a, **k: calls.append(a) or read(*a, **k))
    pairs_module.check_tokenizer(fresh)
    assert not calls


@pytest.mark.parametrize("what", [None, "SmolLM2", 3])
def test_what_is_no_tokenizer_is_refused(what):
    with pytest.raises(TypeError, match="tokenizer: expected the tokenizer .* got"):
        fl.next_token_divergence(tiny_model(), what, [fl.ARTICLE_PAIR])
