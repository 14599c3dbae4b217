"""What is no input is refused by a sentence, before a model runs.

Contents: what once gave a wrong number without a word (pairs, prompts, tokenizers); then a table
of every public function × argument × wrong value.
"""

import inspect
import math
import re
import warnings
from contextlib import AbstractContextManager, suppress
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import fairlab as fl
from fairlab import pairs as pairs_module
from fairlab.diagnosis import Projection
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


def test_neutral_pairs_that_can_not_be_measured_are_called_neutral(tokenizer):
    """They came as `pairs:`, and their owner looked among the demographic ones."""
    model, good, bad = tiny_model(), [fl.ARTICLE_PAIR], [fl.PromptPair("A man", "A man")]
    start = fl.NeuronGates({0: {1: (0.5, 0.0)}}, (3, 24))
    held_out = fl.HeldOut(good, bad, TEXT)
    for measure in (
        lambda: fl.compare(model, tokenizer, {"cut": CUT}, held_out),
        lambda: fl.guarded_cut(model, tokenizer, good, bad, fraction=0.1),
        lambda: fl.balanced_gates(model, tokenizer, good, bad, fraction=0.1),
        lambda: fl.learned_gates(model, tokenizer, good, bad, start=start),
        lambda: fl.layer_differences(model, tokenizer, good, neutral=bad),
    ):
        with pytest.raises(ValueError, match="^neutral: the two prompts must differ"):
            measure()


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


# ---- every public function × argument × wrong value

ROOT = Path(__file__).parent.parent
CUT = fl.NeuronSelection({0: (1, 2), 2: (5,)}, (3, 24))
OF_ANOTHER = fl.NeuronSelection({0: (1, 2), 3: (29,)}, (4, 30))
GATES = fl.NeuronGates({0: {1: (0.5, 0.0)}}, (3, 24))
GATES_OF_ANOTHER = fl.NeuronGates({3: {29: (0.5, 0.0)}}, (4, 30))
SCORES = torch.arange(1.0, 73.0).view(3, 24)
TEXT = "The clerk read the letter twice and put it away. " * 8
PAIRS = fl.load_pairs("race", split="validation")[:3]
NEUTRAL = fl.load_pairs(kind="neutral", split="validation")[:3]
HUGE = 10**30
# what is none of nearly all that is asked for, by the name under which it is reported
JUNK = {
    "None": None,
    "3": 3,
    "NaN": math.nan,
    "text": "text",
    "[]": [],
    "{}": {},
    "bytes": b"A man",
    "array": np.zeros(3),
    "empty table": pd.DataFrame(),
    "object": object(),
}


def junk_but(*fine, **more):
    """Return the wrong values but those that are none here, and some more."""
    return {name: value for name, value in JUNK.items() if name not in fine} | more


NUMBER = junk_but("3", true=True, one="2", below=-1, array_of_one=np.array([2]))
WHOLE = NUMBER | {"half": 2.5}
TABLE = junk_but(
    one_axis=torch.zeros(3),
    empty=torch.zeros(0, 24),
    with_nan=SCORES / 0 * 0,
    of_another=torch.zeros(4, 30),
)
PAIR_LIST = junk_but(one_none=[None], a_text=["A man"], a_pair=PAIRS[0], words=[("a", "b")])
NAME = junk_but("None")  # a text or None, of a few that are known
NO_PATHS = {"empty": "", "blank": " ", "byte_0": "a\0b", "long": "x" * 5000, "nobody": "~no.one/a"}
BAD_TEXTS = {"empty": "", "two_lines": "mit\nlicense: mit", "script": "javascript:alert(1)"}
# kind → its wrong values
WRONG = {
    "model": junk_but(),
    "tokenizer": junk_but(),
    "pairs": PAIR_LIST,
    "pairs?": {name: value for name, value in PAIR_LIST.items() if name != "None"},
    "pair": junk_but(a_list=[PAIRS[0]]),
    "pair?": junk_but("None", a_list=[PAIRS[0]]),
    "string": junk_but("text"),
    "string?": junk_but("text", "None"),
    "prose": junk_but("text", empty=""),
    "prose?": junk_but("text", "None", empty=""),
    "option": junk_but(),
    "option?": NAME,
    "whole": WHOLE,
    "seed": WHOLE | {"huge": HUGE},
    "whole?": {name: value for name, value in WHOLE.items() if name != "None"},
    "index": WHOLE | {"huge": HUGE},
    "share": NUMBER | {"above": 2.5, "huge": HUGE},
    "positive": NUMBER,
    "number": {name: value for name, value in NUMBER.items() if name != "below"},
    "pairs of words?": junk_but("None", one=[("a", "b")], alike=[("a", "a")] * 2, words=["ab"] * 2),
    "words": junk_but("[]", "{}", "empty table", with_none=[None]),
    "tokens?": junk_but("None", "[]", "{}", "empty table", with_none=[None]),
    "cut": junk_but(gates=GATES, of_another=OF_ANOTHER),
    "cut?": junk_but("None", gates=GATES, of_another=OF_ANOTHER),
    "gates": junk_but(a_cut=CUT, of_another=GATES_OF_ANOTHER),
    "any cut": junk_but(),
    "changes": junk_but(unnamed=[CUT], a_cut=CUT, a_number={"a": 3}, of_another={"a": OF_ANOTHER}),
    "table": TABLE,
    "table?": {name: value for name, value in TABLE.items() if name != "None"},
    "any table": {name: value for name, value in TABLE.items() if name != "of_another"},
    "gate table": {name: value for name, value in TABLE.items()},
    "frame": junk_but(other_columns=pd.DataFrame({"x": [1]})),
    "frame?": junk_but("None", other_columns=pd.DataFrame({"x": [1]})),
    "frames": junk_but(other_columns={"a": pd.DataFrame({"x": [1]})}, numbers={"a": 3}),
    "neurons": junk_but("{}", a_list=["x"], a_number={0: 1}),
    "items": junk_but(
        other_columns=pd.DataFrame({"x": [1]}),
        other_task=[{"task": "x", "item": 0, "cluster": None}],
    ),
    "mapping?": junk_but("None", "{}", a_list=["x"]),
    "outcomes?": junk_but("None", "{}", a_list=["x"], a_number={"A {} man": 3}),
    "texts?": junk_but("None", "{}", a_list=["x"], a_number={"README.md": 3}, key={3: "x"}),
    "mapping": junk_but(a_list=["x"]),
    "path": junk_but("text", **NO_PATHS),
    "path?": junk_but("None", "text", **NO_PATHS),
    "name": junk_but("text", **NO_PATHS),
    "file": junk_but(**NO_PATHS),
    "page": junk_but(**NO_PATHS, no_name=".html", a_0="a\0.html", longer="x" * 5000 + ".html"),
    "facts?": junk_but("None", "{}", a_list=["x"], key={3: "x"}, language={"language": ["en"]}),
    "texts by prompt?": junk_but(
        "None",
        "{}",
        a_text={"A man": "x"},
        a_number={"A man": {"before": 3}},
        with_none={"A man": {"before": None}},
        key={3: {"before": "x"}},
        of_another={"A man": {"no such cut": "x"}},
    ),
    # fields of a card; a short name such as "text" is a licence of one's own
    "field?": NAME | BAD_TEXTS | {"long": "x" * 10_000},
    "fields?": NAME | BAD_TEXTS | {"long": "x" * 10_000, "with_none": [None], "tuple": (3,)},
    "short name": junk_but("text", **BAD_TEXTS),
    "address?": NAME | BAD_TEXTS,
    "columns": junk_but(unknown=["no such column"], a_text="score"),
    "ax": junk_but("None"),
    "numbers": junk_but("array"),
    # NaN is left out of a picture
    "drawn table": {name: value for name, value in TABLE.items() if name != "with_nan"},
}
# flags are taken as Python takes them: 0 and "" are False
FREE = {"flag"}


@pytest.fixture(scope="module")
def table_of(tokenizer, tmp_path_factory):
    """Make the table: of each public function what is right for every argument, and its kind."""
    model = tiny_model()
    model.get_input_embeddings().register_forward_pre_hook(_ran)
    folder = tmp_path_factory.mktemp("bad")
    (folder / "pairs.csv").write_text("prompt_a,prompt_b\nA man,A cook\n", encoding="utf-8")
    return functions(model, tokenizer, folder, report_in(folder, tokenizer))


def report_in(folder, tokenizer):
    """Write a report, which a card is made of; return the comparison that it says."""
    model, held_out = tiny_model(), fl.HeldOut(PAIRS, NEUTRAL, TEXT)
    compared = fl.compare(model, tokenizer, {"cut": CUT}, held_out, n_random=1, metric=False)
    options = {"model": model, "model_name": "m", "chosen_on": None}
    fl.write_report(folder / "report.html", compared, **options)
    return compared


class Ran(Exception):
    """The model was run."""


def _ran(module, inputs):
    raise Ran


def functions(model, tokenizer, folder, comparison=None):
    m, t = (model, "model"), (tokenizer, "tokenizer")
    pairs, neutral, batch = (PAIRS, "pairs"), (NEUTRAL, "pairs"), (8, "whole")
    bias, importance = (SCORES, "table"), (SCORES.flip(0), "table")
    projection = Projection(
        "residual", ("A", "B"), ("A", "C"), np.ones((2, 2, 2, 2)), np.ones((2, 2)),
        np.ones((2, 2)), np.ones((2, 2)), "B", "C",
    )  # fmt: skip
    projections, ax = {"a": [projection]}, (None, "ax")
    compared = pd.DataFrame(
        [
            {"method": "m", "count": 1, "measure": measure, "row": row, "category": row}
            | dict.fromkeys(("change", "low", "high", "random_low", "random_high"), 0.1)
            | {"neutral_change": 0.1, "flattening_scale": 1.0, "flattening_change": 0.0}
            for measure, row in (("gap", "headline"), ("perplexity", "text"))
        ]
    )
    shifts = {"token": ["a"], "probability_a": [0.1], "probability_b": [0.2], "shift": [-0.1]}
    layers = {"point": ["residual"], "layer": [0], "difference": [1.0], "category": ["race"]}
    overlap = {"one": ["a"], "other": ["b"], "words": ["demographic"], "shared": [3]}
    overlap |= {"chance_low": [0], "chance_high": [1]}
    transfer = {"chosen_on": ["a"], "read_on": ["a"], "change": [0.1], "low": [0.0], "high": [0.2]}
    transfer |= {"random_low": [0.0], "random_high": [0.1]}
    settings = {"count": [1, 2], "gap": [0.1, 0.2], "text_a": ["x", "y"], "text_b": ["x", "y"]}
    said = {"pair": [0, 0], "category": ["a"] * 2, "template": ["b"] * 2, "side": ["a", "b"]}
    said |= {"attribute_a": ["c"] * 2, "attribute_b": ["d"] * 2, "text": ["x", "y"]}
    item = {"task": "boolq", "item": 0, "cluster": None, "acc": 1.0, "label": 1, "log_odds": 0.1}
    frame = pd.DataFrame
    held_out = fl.HeldOut(PAIRS, NEUTRAL, TEXT)
    run = {"model": m, "tokenizer": t}
    on_pairs = {**run, "pairs": pairs}
    choosing = {**on_pairs, "neutral": neutral, "text": (TEXT, "prose?")}
    return {
        "HeldOut": {
            "pairs": pairs,
            "neutral": neutral,
            "text": (TEXT, "string"),
            "outcomes": (None, "outcomes?"),
        },
        "NeuronGates": {
            "gates": ({0: {1: (0.5, 0.0)}}, "neurons"),
            "shape": ((3, 24), "option"),
            "how": ("", "string"),
        },
        "NeuronGates.from_tables": {
            "gates": (torch.where(SCORES > 70, 0.5, 1.0), "any table"),
            "toward": (None, "table?"),
            "how": ("", "string"),
        },
        "NeuronGates.from_json": {"text": (GATES.to_json(), "option")},
        "NeuronSelection": {
            "neurons": ({0: (1,)}, "neurons"),
            "shape": ((3, 24), "option"),
            "how": ("", "string"),
        },
        "NeuronSelection.from_json": {"text": (CUT.to_json(), "option")},
        "Outcomes": {"harsher": (("deny",), "words"), "kinder": (("grant",), "words")},
        "PromptPair": {name: ("A man", "string") for name in fl.PromptPair.__dataclass_fields__},
        "ablate": {"model": m, "selection": (CUT, "cut"), "scale": (0.5, "number")},
        "article_cut": {
            **on_pairs,
            "fraction": (0.2, "share"),
            "bias_weight": (0.5, "share"),
            "batch_size": batch,
        },
        "article_metric": {**run, "pair": (PAIRS[0], "pair")},
        "balanced_gates": {**choosing, "fraction": (0.2, "share"), "goal": (1.1, "positive")},
        "bias_scores": {
            **on_pairs,
            "method": ("activation", "option"),
            "signed": (False, "flag"),
            "relative": (False, "flag"),
            "batch_size": batch,
        },
        "build_neutral_pairs": {
            "tokenizer": t,
            "pairs": pairs,
            "language": ("en", "option"),
            "words": (None, "pairs of words?"),
        },
        "build_pairs": {
            "templates": (["The {} cook"], "option"),
            "attributes": ([("old", "young")], "option"),
            **dict.fromkeys(("category", "split", "attribute_split"), ("train", "string")),
        },
        "chat_pairs": {
            "tokenizer": t,
            "pairs": pairs,
            "request": (None, "string?"),
            "system": (None, "string?"),
        },
        "check_file": {"path": (folder / "pairs.csv", "path"), "tokenizer": (None, "option?")},
        "check_pairs": {"tokenizer": t, "pairs": pairs},
        "compare": {
            **run,
            "selections": ({"a": CUT}, "changes"),
            "held_out": (held_out, "option"),
            "n_random": (2, "whole"),
            "seed": (0, "whole"),
            "metric": (True, "flag"),
            "match": (None, "mapping?"),
            "imitated": (None, "mapping?"),
            "cache": (None, "path?"),
            "batch_size": batch,
        },
        "continuation_gaps": {
            "continuations": (frame(said), "frame"),
            "scores": (None, "mapping?"),
        },
        "data_path": {"name": ("results/published.csv", "option")},
        "decision_gap": {**on_pairs, "outcomes": (None, "outcomes?"), "batch_size": batch},
        "decoder_layers": {"model": m},
        "describe_model": {"model": m},
        "fold_gates": {"model": m, "gates": (GATES, "gates")},
        "gate": {"model": m, "gates": (SCORES, "gate table"), "toward": (None, "table?")},
        "gated": {"model": m, "gates": (GATES, "gates")},
        "generate": {
            **run,
            "prompts": (["A man"], "option"),
            "max_length": (9, "whole"),
            "max_new_tokens": (None, "whole?"),
            "num_beams": (1, "whole"),
            "batch_size": batch,
        },
        "guarded_cut": {**choosing, "fraction": (0.2, "share"), "batch_size": batch},
        "guarded_scores": {
            "bias": bias,
            "importance": importance,
            "neutral": (None, "table?"),
            "charge": (0.85, "positive"),
            "protect": (0.03, "share"),
            "floor": (4.0, "positive"),
        },
        "hybrid_scores": {"bias": bias, "importance": importance, "bias_weight": (0.5, "share")},
        "importance_scores": {
            "model": m,
            "method": ("fisher", "option"),
            "tokenizer": t,
            "text": (TEXT, "prose"),
        },
        "layer_differences": {
            **on_pairs,
            "points": (("residual",), "option"),
            "neutral": (None, "pairs?"),
        },
        "layer_explorer": {"projections": (projections, "mapping"), "layer": (0, "index")},
        "learned_gates": {
            **on_pairs,
            "neutral": (fl.load_pairs(kind="neutral", split="validation")[:16], "pairs"),
            "start": (GATES, "gates"),
            "text": (TEXT, "prose?"),
            "steps": (2, "whole"),
        },
        "load_lexicon": {},
        "load_model": {
            "name": (fl.DEFAULT_MODEL, "name"),
            **dict.fromkeys(("device", "dtype"), ("auto", "option")),
            "device_map": (None, "option?"),
        },
        "load_outcomes": {},
        "load_pairs": {
            "category": (None, "option?"),
            "split": (None, "option?"),
            "words": ("split", "option"),
            "language": ("en", "option"),
            "kind": ("demographic", "option"),
        },
        "load_text": {"name": ("evaluation", "option"), "language": ("en", "option")},
        "load_tokenizer": {"name": (fl.DEFAULT_MODEL, "name")},
        "model_card": {
            "report": (folder / "report.json", "file"),
            "selection": (None, "field?"),
            "license": ("other", "field?"),
            "license_name": ("mine-1.0", "short name"),
            "license_link": (None, "address?"),
            "base_model": (None, "fields?"),
            "language": (None, "fields?"),
        },
        "neuron_differences": {
            **on_pairs,
            "points": (("up_proj",), "option"),
            "statistic": ("absolute", "option"),
            "positions": ("all", "option"),
            "batch_size": batch,
        },
        "next_token_divergence": {**on_pairs, "leave_out": ((), "words"), "batch_size": batch},
        "paired_changes": {"before": ([item], "items"), "after": ([item], "items")},
        "pca_explorer": {"projections": (projections, "mapping"), "layer": (0, "index")},
        "perplexity": {**run, "text": (TEXT, "prose"), "window": (16, "whole")},
        "plant_neurons": {
            **on_pairs,
            "n": (2, "whole"),
            "cost": (0.05, "positive"),
            "seed": (0, "whole"),
            "inplace": (False, "flag"),
        },
        "plot_comparison": {
            "table": (compared, "frame"),
            "draws": (None, "frame?"),
            "measure": ("gap", "option"),
            "category": (None, "option?"),
            "ax": ax,
        },
        "plot_distances": {
            "projection": (projection, "option"),
            "relative": (False, "flag"),
            "ax": ax,
        },
        "plot_dose_response": {
            "table": (compared, "frame"),
            "measure": ("gap", "option"),
            "ax": ax,
        },
        "plot_layer_differences": {
            "tables": (frame(layers), "frame"),
            "value": ("difference", "option"),
            "ax": ax,
        },
        "plot_overlap": {"table": (frame(overlap), "frame"), "ax": ax},
        "plot_projection": {
            "projection": (projection, "option"),
            "layer": (0, "index"),
            "words": (None, "tokens?"),
            "ax": ax,
        },
        "plot_score_plane": {
            "bias": (SCORES, "drawn table"),
            "importance": (SCORES.flip(0), "drawn table"),
            "selection": (None, "cut?"),
            "layer": (0, "index"),
            "ax": ax,
        },
        "plot_token_shifts": {"table": (frame(shifts), "frame"), "pair": (None, "pair?"), "ax": ax},
        "plot_tradeoff": {"table": (compared, "frame"), "draws": (None, "frame?"), "ax": ax},
        "plot_transfer": {"table": (frame(transfer), "frame"), "ax": ax},
        "predict": {
            "question": ("Which?", "string"),
            "choices": (["a", "b"], "option?"),
            "unit": ("", "string"),
        },
        "project_pair": {
            **run,
            "pair": (PAIRS[0], "pair"),
            "point": ("residual", "option"),
            "start": (None, "whole?"),
        },
        "prune": {"model": m, "selection": (CUT, "cut"), "inplace": (False, "flag")},
        "push_to_hub": {
            "folder": (folder, "option"),
            "repo_id": ("name", "string"),
            "private": (True, "flag"),
        },
        "random_selections": {
            "selection": (CUT, "any cut"),
            "n": (2, "whole"),
            "seed": (0, "whole"),
            "match": (None, "table?"),
        },
        "read_pairs": {"path": (folder / "pairs.csv", "path")},
        "record": {"model": m, "points": (("up_proj",), "option"), "layers": (None, "option?")},
        "refine_scores": {
            **run,
            "scores": bias,
            "pairs": pairs,
            "count": (3, "whole"),
            "batch_size": batch,
        },
        "removed_neurons": {"model": m, "pruned": m},
        "run_lm_eval": {
            **run,
            "tasks": ("boolq", "option"),
            "data": (
                {"boolq": [{"question": "is it", "passage": "It is.", "label": 1}]},
                "mapping?",
            ),
            "samples": (None, "mapping?"),
            "batch_size": batch,
            "cache": (None, "path?"),
        },
        "sample_continuations": {
            **on_pairs,
            "n": (1, "whole"),
            "max_new_tokens": (2, "whole"),
            "seed": (0, "seed"),
            "batch_size": batch,
        },
        "save_model": {
            **run,
            "folder": (folder / "saved", "path"),
            "dtype": ("auto", "option"),
            "force": (True, "flag"),
            "beside": (None, "texts?"),
        },
        "score_explorer": {
            "bias": bias,
            "importance": ({"maw": SCORES}, "mapping"),
            "count": (3, "index"),
            "layer": (0, "index"),
        },
        "score_planted": {
            "scores": bias,
            "bias": (CUT, "cut"),
            "decoys": (fl.NeuronSelection({1: (7,)}, (3, 24)), "cut"),
        },
        "select_neurons": {
            "scores": (SCORES, "any table"),
            "fraction": (0.2, "share"),
            "count": (None, "whole?"),
            "scope": ("layer", "option"),
            "how": ("", "string"),
        },
        "show_page": run,
        "summarize_continuations": {"gaps": ({"a": fl.continuation_gaps(frame(said))}, "frames")},
        "summarize_decisions": {"pairs": pairs, "gaps": ([0.1, 0.2, 0.3], "numbers")},
        "summarize_items": {"items": ([item], "items")},
        "surgery_explorer": {
            "table": (frame(settings), "frame"),
            "settings": (["count"], "columns"),
            "measures": (["gap"], "columns"),
            "start": (None, "mapping?"),
        },
        "top_token_shifts": {**run, "pair": (PAIRS[0], "pair"), "k": (3, "index")},
        "write_report": {
            "path": (folder / "report.html", "page"),
            "comparison": (comparison, "option"),
            "model": m,
            "model_name": ("m", "path"),
            "chosen_on": (None, "pairs?"),
            "method": (None, "facts?"),
            "texts": (None, "texts by prompt?"),
            "force": (True, "flag"),
        },
    }


# the right call is not tried: it loads a model, asks the network or takes long
NOT_RUN = {"load_model", "load_tokenizer", "push_to_hub", "run_lm_eval", "plant_neurons"}
# made by fairlab itself, or of another kind
NOT_CALLED = {"ARTICLE_PAIR", "CAPTURE_POINTS", "DEFAULT_MODEL", "Comparison"}
METHODS = ("NeuronGates.from_tables", "NeuronGates.from_json", "NeuronSelection.from_json")
# what a message may begin with in place of the argument
ALSO = {"pair": "pairs", "words": "kinder"}
MESSAGES = {}


def named(name):
    owner, _, method = name.partition(".")
    return getattr(getattr(fl, owner), method) if method else getattr(fl, owner)


def call(name, given):
    """Call a function, and enter what it returns where that is a block."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = named(name)(**given)
        if isinstance(result, AbstractContextManager):
            with result:
                pass


def said_of(name, given, argument, wrong):
    """Return what a call with a wrong value says, and what is wrong about that ("": nothing)."""
    try:
        call(name, given | {argument: wrong})
    except (ValueError, TypeError) as error:
        message = f"{type(error).__name__}: {error}"
        names = rf"{argument}|{ALSO.get(argument, argument)}"
        starts = re.match(rf"[\w, ]*\b({names})\b[\w, ]*: ", str(error))
        return message, "" if starts else "does not name the argument"
    except Ran:
        return "", "ran the model first"
    except Exception as error:
        return f"{type(error).__name__}: {error}", "is another error"
    return "", "was taken"


def test_every_argument_of_every_public_function_has_its_line(table_of):
    assert {*table_of} == {*fl.__all__} - NOT_CALLED | {*METHODS}
    for name, arguments in table_of.items():
        assert list(arguments) == list(inspect.signature(named(name)).parameters), name
        assert {kind for _, kind in arguments.values()} <= WRONG.keys() | FREE


@pytest.mark.parametrize("name", sorted({*fl.__all__} - NOT_CALLED | {*METHODS}))
def test_a_wrong_value_is_refused_by_name_before_the_model_runs(
    name, table_of, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # a wrong name of a folder is the name of one
    arguments = table_of[name]
    given = {argument: value for argument, (value, _) in arguments.items()}
    if name not in NOT_RUN:
        with suppress(Ran):  # so that what is refused below is the wrong value
            call(name, given)
    found = []
    for argument, (_, kind) in arguments.items():
        for label, wrong in WRONG.get(kind, {}).items():
            message, problem = said_of(name, given, argument, wrong)
            MESSAGES[name, argument, label] = message or problem
            if problem:
                found.append(f"{argument}={label}: {problem}: {message:.150}")
    assert not found, "\n".join(found)


# kind → what makes the same value in another form, which is as right
ALIKE = {
    "pairs": iter,
    "words": iter,
    "whole": np.int64,
    "index": np.int32,
    "seed": np.uint64,
    "share": np.float32,
    "positive": np.float64,
    "number": np.float32,
}


@pytest.mark.parametrize("name", sorted({*fl.__all__} - NOT_CALLED - NOT_RUN))
def test_numbers_of_numpy_and_generators_are_taken(name, table_of):
    arguments = table_of[name]
    given = {argument: value for argument, (value, _) in arguments.items()}
    for argument, (value, kind) in arguments.items():
        if kind in ALIKE:
            with suppress(Ran):
                call(name, given | {argument: ALIKE[kind](value)})


@pytest.fixture(scope="module", autouse=True)
def messages_are_written():
    """Leave all that is said in one file, to be read through."""
    yield
    if MESSAGES:
        lines = [
            f"{name}({argument}={label})  {message}"
            for (name, argument, label), message in sorted(MESSAGES.items())
        ]
        (ROOT / "build").mkdir(exist_ok=True)
        (ROOT / "build" / "messages.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
