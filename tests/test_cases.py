"""Small inputs that failed once, by kind, each with others of its kind.

Each comes out right, or is refused by a sentence that names the argument, what is allowed and what
came. Contents: numbers of other libraries; files and labels of benchmarks; special tokens; values
that are not finite; models of unusual build; modes and wrappers; settings that a model brings;
what is written and read elsewhere; pairs of one's own; the command line.
"""

import json
import math
from copy import deepcopy

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers.processors import TemplateProcessing

import fairlab as fl
from fairlab.evaluation.chance import random_selections
from fairlab.files import read_json_lines
from fairlab.passes import token_losses
from fairlab.suites.tasks import read_rows
from tiny_models import tiny_model

CUT = fl.NeuronSelection({0: (1, 2), 2: (5,)}, (3, 24))
SCORES = torch.arange(72.0).view(3, 24)
TEXT = "The clerk read the letter twice and put it away. " * 8


@pytest.fixture(scope="module")
def small():
    return tiny_model()


@pytest.fixture(scope="module")
def pairs():
    return fl.load_pairs("race", split="train")[:3]


# ---- numbers of other libraries


NUMBERS = {
    "count": lambda n: fl.select_neurons(SCORES, count=n(2)).neurons,
    "fraction": lambda n: fl.select_neurons(SCORES, fraction=n(0.25)).neurons,
    "n": lambda n: [cut.to_json() for cut in random_selections(CUT, n(2))],
    "seed": lambda n: [cut.to_json() for cut in random_selections(CUT, 2, seed=n(3))],
    "bias_weight": lambda n: fl.hybrid_scores(SCORES, SCORES.flip(0), bias_weight=n(0.5)).tolist(),
    "floor": lambda n: fl.guarded_scores(SCORES, SCORES + 1, floor=n(4.0)).tolist(),
    "protect": lambda n: fl.guarded_scores(SCORES, SCORES + 1, protect=n(0.25)).tolist(),
}
WITH_A_MODEL = {
    "batch_size": lambda n, *given: fl.next_token_divergence(*given, batch_size=n(4)).tolist(),
    "window": lambda n, model, tokenizer, _: fl.perplexity(model, tokenizer, TEXT, window=n(16)),
    "samples": lambda n, *given: continuations(*given, n=n(2)),
    "sampling seed": lambda n, *given: continuations(*given, seed=n(7)),
    "max_new_tokens": lambda n, *given: continuations(*given, max_new_tokens=n(3)),
    "max_length": lambda n, *given: written(*given, max_length=n(24)),
    "num_beams": lambda n, *given: written(*given, num_beams=n(2), max_length=24),
    "k": lambda n, model, tokenizer, pairs: fl.top_token_shifts(
        model, tokenizer, pairs[0], k=n(3)
    ).to_json(),
    "start": lambda n, model, tokenizer, pairs: fl.project_pair(
        model, tokenizer, pairs[0], point="residual", start=n(1)
    ).distances.tolist(),
    "scale": lambda n, model, tokenizer, _: ablated(model, n(0.5)),
    "layers": lambda n, model, tokenizer, _: recorded(model, n(1)),
}


def continuations(model, tokenizer, pairs, **options):
    settings = {"n": 2, "max_new_tokens": 2} | options
    return fl.sample_continuations(model, tokenizer, pairs[:1], **settings).to_json()


def written(model, tokenizer, pairs, **options):
    return fl.generate(model, tokenizer, [pairs[0].prompt_a], **options)


def ablated(model, scale):
    with torch.no_grad(), fl.ablate(model, CUT, scale=scale):
        return model(torch.tensor([[5, 6, 7]])).logits.sum().item()


def recorded(model, layer):
    with fl.record(model, ["residual"], layers=[layer]) as seen, torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    return seen["residual", 1].sum().item()


def as_numpy(value):
    """Return what pandas and NumPy hand out: a scalar of their own."""
    return np.int64(value) if isinstance(value, int) else np.float32(value)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_of_numpy_is_a_number(name):
    assert NUMBERS[name](as_numpy) == NUMBERS[name](lambda value: value)


@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_a_number_of_numpy_is_a_number_to_what_runs_a_model(name, small, tokenizer, pairs):
    measure = WITH_A_MODEL[name]
    expected = measure(lambda value: value, small, tokenizer, pairs)
    assert measure(as_numpy, small, tokenizer, pairs) == expected


@pytest.mark.parametrize("value", [True, None, "2", 2.5, math.nan, -1, np.array([2]), [2]])
@pytest.mark.parametrize("name", [*NUMBERS, *WITH_A_MODEL])
def test_what_is_no_such_number_is_named(name, value, small, tokenizer, pairs):
    if name in ("bias_weight", "floor", "protect", "scale", "fraction") and value in (2.5, -1):
        return
    if name == "start" and value is None:
        return  # the default
    given = () if name in NUMBERS else (small, tokenizer, pairs)
    argument = {"samples": "n", "sampling seed": "seed"}.get(name, name)
    with pytest.raises((ValueError, TypeError), match=f"{argument}.*: .*(expected|got)"):
        (NUMBERS | WITH_A_MODEL)[name](lambda _: value, *given)


# ---- files and labels of benchmarks


BOOLQ = {"question": "is it so", "passage": "It is so.", "label": 1}


def lines(*rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"


FILES = {
    "a line separator in a text": (
        "m.jsonl",
        lines(BOOLQ | {"passage": "One.\u2028Two."}),
        "utf-8",
    ),
    "a next line in a text": ("m.jsonl", lines(BOOLQ | {"passage": "One.\x85Two."}), "utf-8"),
    "a form feed in a text": ("m.jsonl", lines(BOOLQ | {"passage": "One.\x1cTwo."}), "utf-8"),
    "a byte order mark": ("m.jsonl", lines(BOOLQ), "utf-8-sig"),
    "line ends of Windows": ("m.jsonl", lines(BOOLQ).replace("\n", "\r\n"), "utf-8"),
    "JSON lines in UTF-16": ("m.jsonl", lines(BOOLQ), "utf-16"),
    "a name in capitals": ("M.JSONL", lines(BOOLQ), "utf-8"),
}
CSVS = {
    "a mark": ("m.csv", ",", "utf-8-sig"),
    "a name in capitals": ("MINE.CSV", ",", "utf-8"),
    "an old encoding": ("m.csv", ",", "cp1252"),
    "two bytes a letter": ("m.csv", ",", "utf-16"),
    "semicolons": ("m.csv", ";", "cp1252"),
    "tabs": ("m.csv", "\t", "utf-16"),
}


@pytest.mark.parametrize("name", FILES)
def test_json_lines_are_read_as_written(name, tmp_path):
    file, text, encoding = FILES[name]
    (tmp_path / file).write_text(text, encoding=encoding, newline="")
    (row,) = read_rows("boolq", tmp_path / file)
    assert row == json.loads(text)


@pytest.mark.parametrize("name", CSVS)
def test_tables_of_benchmarks_are_read_as_written(name, tmp_path):
    file, mark, encoding = CSVS[name]
    text = (
        f'question{mark}passage{mark}label\r\nis it so{mark}"Première.\n\nSeconde."{mark}True\r\n'
    )
    (tmp_path / file).write_text(text, encoding=encoding, newline="")
    (row,) = read_rows("boolq", tmp_path / file)
    assert row == {"question": "is it so", "passage": "Première.\n\nSeconde.", "label": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (lines(BOOLQ) + '{"question": "half', r"data: line 2 of .*m\.jsonl is no JSON"),
        (f"[{lines(BOOLQ).strip()}]", r"data: line 1 of .*m\.jsonl needs an object"),
        ("\n\n7\n", r"data: line 3 of .*m\.jsonl needs an object, .*; got 7"),
    ],
)
def test_a_line_that_is_no_row_is_named(text, says, tmp_path):
    (tmp_path / "m.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_json_lines("data", tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("label", "read"),
    [(True, 1), (False, 0), (1.0, 1), ("0.0", 0), ("False", 0), (" true ", 1), (np.int64(1), 1)],
)
def test_labels_are_read_however_they_are_written(label, read):
    assert read_rows("boolq", [BOOLQ | {"label": label}])[0]["label"] == read


@pytest.mark.parametrize("label", [-1, 2, 0.5, math.nan, None, "", "yes", [1]])
def test_labels_that_say_nothing_are_refused(label):
    with pytest.raises(
        ValueError, match=r"data: item 0 of boolq needs a label that is one of 0, 1"
    ):
        read_rows("boolq", [BOOLQ | {"label": label}])


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("boolq", BOOLQ | {"passage": None}, "needs a text as passage; got None"),
        ("boolq", BOOLQ | {"question": " "}, "needs a text as question; got ' '"),
        ("lambada_openai", {"text": ""}, "needs a text as text"),
        ("lambada_openai", {"text": "Alone\n"}, "needs a word before its last one; got 'Alone'"),
        ("wikitext", {"page": "\n"}, "needs a text as page"),
    ],
)
def test_rows_without_their_text_are_refused(task, row, says):
    with pytest.raises(ValueError, match=f"data: item 0 of {task} {says}"):
        read_rows(task, [row])


@pytest.mark.parametrize("less", ["The same.", "The same. ", "The same.\r\n"])
def test_a_sentence_beside_itself_is_refused(less):
    row = {"sent_more": "The same.", "sent_less": less, "bias_type": "age"}
    with pytest.raises(ValueError, match="item 0 of crows_pairs_english needs two different sent"):
        read_rows("crows_pairs_english", [row])


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t\n", "\u00a0"])
def test_a_blank_behind_a_text_is_not_scored(end):
    text = "The clerk read the letter"
    assert read_rows("lambada_openai", [{"text": text + end}]) == [{"text": text}]
    (row,) = read_rows("boolq", [BOOLQ | {"passage": BOOLQ["passage"] + end}])
    assert row == BOOLQ


BBQ = json.loads(
    fl.data_path("suites/mini_bbq.jsonl").read_text(encoding="utf-8").split("\n", 1)[0]
)
INFO = BBQ["answer_info"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ans2": "No idea"}, ".*one answer that is worded as the set words it, one of Unknown"),
        ({"ans2": "unknown"}, ".*one answer that is worded as the set words it"),
        ({"ans1": "Unknown"}, "two different groups and one answer"),
        ({"ans1": BBQ["ans0"]}, "two different groups and one answer"),
        ({"category": "Hair"}, "a category that is one of Age, .*; got 'Hair'"),
        ({"category": None}, "a category that is one of Age"),
        ({"answer_info": {}}, "the group of 'The 78-year-old' in answer_info"),
        ({"answer_info": INFO | {"ans1": []}}, "the group of 'The 24-year-old' in answer_info"),
        ({"answer_info": INFO | {"ans1": ["", ""]}}, "the group of 'The 24-year-old'"),
        ({"answer_info": str(INFO)}, r".* as a \.jsonl file holds it; got '\{"),
        ({"additional_metadata": {}}, r'\{"stereotyped_groups"'),
        ({"additional_metadata": "old"}, r'\{"stereotyped_groups"'),
        ({"question_polarity": "negative"}, "a question_polarity that is one of neg, nonneg"),
        ({"context_condition": "ambiguous"}, "a context_condition that is one of ambig, disambig"),
        ({"label": 3}, "a label that is one of 0, 1, 2; got 3"),
        ({"context": None}, "a text as context"),
    ],
)
def test_a_question_that_the_harness_can_not_count_is_refused(change, says):
    with pytest.raises(ValueError, match=f"data: item 1 of bbq needs {says}"):
        read_rows("bbq", [BBQ, BBQ | change])


def test_questions_from_a_table_are_refused_by_a_sentence(tmp_path):
    pd.DataFrame([BBQ]).to_csv(tmp_path / "bbq.csv", index=False)
    with pytest.raises(
        ValueError, match=r"data: item 0 of bbq needs .* as a \.jsonl file holds it"
    ):
        read_rows("bbq", tmp_path / "bbq.csv")


@pytest.mark.parametrize("data", [7, None, {"question": "is it so"}])
def test_what_is_no_list_of_rows_is_refused(data):
    with pytest.raises(TypeError, match="data: expected a file or a list of rows for boolq; got"):
        read_rows("boolq", data)


# ---- special tokens


ROWS = {
    "boolq": [BOOLQ],
    "lambada_openai": [{"text": "The clerk read the letter"}],
    "crows_pairs_english": [
        {"sent_more": "The old man slept.", "sent_less": "The young man slept.", "bias_type": "age"}
    ],
    "wikitext": [{"page": " = Tides = \n The tide comes in and goes out again . \n"}],
    "bbq": [BBQ],
}


START, END = "<|endoftext|>", "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizers(tokenizer):
    """Make tokenizers that put a token before every text, behind it, and on both sides."""
    changed = {"": tokenizer}
    for name, around in {
        "start": f"{START} $A",
        "end": f"$A {END}",
        "both": f"{START} $A {END}",
    }.items():
        changed[name] = deepcopy(tokenizer)
        ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in (START, END)]
        changed[name].backend_tokenizer.post_processor = TemplateProcessing(
            single=around, special_tokens=ids
        )
        if name != "end":
            changed[name].bos_token = START
    return changed


def items(model, tokenizer, *tasks):
    data = {task: ROWS[task] for task in tasks}
    return fl.run_lm_eval(model, tokenizer, list(tasks), data=data).items


def test_what_a_tokenizer_puts_behind_a_text_is_not_scored(small, tokenizers):
    plain = items(small, tokenizers[""], *ROWS)
    assert items(small, tokenizers["end"], *ROWS) == plain
    # where nothing stands before a text, the harness puts the start token there itself: it is there
    # once, also where the tokenizer does the same
    *context, pairs, page = items(small, tokenizers["both"], *list(ROWS)[:4])
    assert [pairs, page] == plain[2:4]
    # a context has it in front
    assert context == items(small, tokenizers["start"], *list(ROWS)[:2])
    assert context[0]["log_odds"] != plain[0]["log_odds"]


def test_losses_of_a_text_know_the_tokens_round_it(small, tokenizers):
    losses = {name: token_losses(small, each, TEXT) for name, each in tokenizers.items()}
    assert torch.equal(losses["end"], losses[""])
    assert torch.equal(losses["both"], losses["start"])
    assert len(losses["start"]) == len(losses[""]) + 1
