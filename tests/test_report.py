import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import huggingface_hub
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import yaml

import fairlab as fl
from fairlab.evaluation.readings import bits_of
from fairlab.models import HALF_PRECISION_COSTS, glu_blocks
from fairlab.report import advice, conditions, terms, upload, verdict
from fairlab.report.card import escaped
from tiny_models import tiny_model

HOSTILE = '<script src="https://example.org/x.js">alert("&")</script>'
CUT = fl.NeuronSelection({0: (1, 5, 9), 2: (0, 23)}, (3, 24), "by hand")


class Page(HTMLParser):
    """Collects the tags, what they point at, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [
            value
            for name, value in attributes
            if name in ("src", "href", "srcset", "data", "action")
        ]

    def handle_data(self, data):
        self.text += data


def strict(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


@pytest.fixture(scope="module")
def measured(tiny, tokenizer):
    """Compare a cut on a few pairs, one of which has a hostile category."""
    held_out = fl.load_pairs("race", split="held_out", words="any")
    neutral = fl.load_pairs("mood", kind="neutral", split="held_out", words="any")[:12]
    pairs = [*held_out, *(replace(pair, category=HOSTILE) for pair in held_out[::2])]
    held_out = fl.HeldOut(pairs, neutral, "The tide comes in. " * 9)
    comparison = fl.compare(tiny, tokenizer, {"cut": CUT}, held_out, n_random=3, seed=7)
    return {"comparison": comparison, "chosen_on": fl.load_pairs("race", split="train")}


@pytest.fixture
def written(tiny, measured, tmp_path):
    """Write the report with hostile names, prompts and texts."""
    fl.write_report(
        tmp_path / "new" / "page.html",
        measured["comparison"],
        model=tiny,
        model_name=f"org/{HOSTILE}",
        chosen_on=[*measured["chosen_on"], fl.PromptPair(f"A {HOSTILE}", f"B {HOSTILE}")],
        method={"score": HOSTILE, "weight": np.float32(0.5), "nothing": float("nan")},
        texts={f"A {HOSTILE}": {"before": "old", "cut": HOSTILE}},
    )
    return tmp_path / "new" / "page.html"


def test_the_page_stands_alone_and_escapes_every_text(written):
    page, source = Page(written), written.read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert len(page.addresses) == 1
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "url(" not in source and "@import" not in source
    assert page.text.count(HOSTILE) >= 7
    assert "<script" not in source
    assert len(source) < 1_500_000
    assert not plt.get_fignums()


def test_the_numbers_are_the_tables_and_strict_json(tiny, measured, written):
    facts = strict(written.with_suffix(".json"))
    table = measured["comparison"].table
    assert len(facts["results"]) == len(table)
    for row, expected in zip(facts["results"], table.to_dict("records"), strict=True):
        assert row == {
            key: None if isinstance(v, float) and np.isnan(v) else v for key, v in expected.items()
        }
    assert any(value is None for row in facts["results"] for value in row.values())
    assert facts["selection"] == json.loads(CUT.to_json())
    assert facts["model"]["weights_sha256"] == bits_of(tiny)
    assert (facts["settings"]["seed"], facts["settings"]["random changes"]) == (7, 3)
    assert facts["method"]["cut"] == "5 neurons switched off; by hand"
    assert facts["settings"]["pairs measured"] == len(measured["comparison"].held_out.pairs)
    assert facts["method"]["weight"] == 0.5 and facts["method"]["nothing"] is None
    assert facts["environment"]["transformers"] == transformers.__version__
    text = Page(written).text
    headline = next(
        row for row in facts["results"] if (row["measure"], row["row"]) == ("gap", "headline")
    )
    for shown in (
        f"{headline['before']:.4g}",
        f"{headline['low']:+.1%} … {headline['high']:+.1%}",
        *facts["limits"],
        *facts["verdict"],
        *facts["methods"][0]["evidence"],
        facts["methods"][0]["power_in_words"],
    ):
        assert shown in text
    assert "1, 5, 9" in text


def test_of_a_model_folder_only_the_name_is_shown(tiny, measured, tmp_path, monkeypatch):
    folder = tmp_path / "private" / "mine"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name in (folder, "."):
        options = {"model": tiny, "model_name": name, "force": True}
        fl.write_report(tmp_path / "p.html", **measured, **options)
        assert strict(tmp_path / "p.json")["model"]["name"] == "mine"
        assert "private" not in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_the_page_opens_with_what_was_asked_and_what_to_do(measured, written):
    text = " ".join(Page(written).text.split())
    top = text[: text.index("Worth and price")]
    pairs = measured["comparison"].held_out.pairs
    templates = list(dict.fromkeys(pair.template for pair in pairs))
    order = ["groups", f"race {pairs[0].attribute_a} / {pairs[0].attribute_b}", "sentences"]
    order += [templates[0], "language English", "model org/", "measured in float32"]
    order += ["Do not cut on this evidence", "In numbers: No effect can be told"]
    assert [top.count(words) > 0 for words in order] == [True] * len(order)
    places = [top.index(words) for words in order]
    assert places == sorted(places)
    assert top.count(templates[0]) == 2 and top.count(templates[-1]) == 1
    assert f"all {len(templates)}, and all words" in top


def test_worth_and_price_are_the_rows_of_the_table(measured, written):
    text = " ".join(Page(written).text.split())
    shown = text.split("Worth and price")[1].split("With each change")[0].split("perplexity")[1]
    table = measured["comparison"].table.set_index(["measure", "row"])
    gap = table.loc[("gap", "headline")]
    expected = ["cut"]
    for place in [("gap", "headline"), ("gap", "neutral"), None, ("decision", "headline"),
                  ("perplexity", "text")]:  # fmt: skip
        if place is None:
            low, high = gap.flattening_low, gap.flattening_high
            expected.append(f"{gap.flattening_change:+.1%} 95 %: {low:+.1%} … {high:+.1%}")
            continue
        row, form = table.loc[place], "+.3f" if place[0] == "decision" else "+.1%"
        names = ("change", "low", "high", "random_low", "random_high")
        told = [format(row[name], form) for name in names]
        words = "{} 95 %: {} … {} random: {} … {}".format(*told)
        expected.append(words.replace("+nan% … +nan%", "–"))  # the text has a single block
    assert " ".join(shown.split()) == " ".join(expected)


def test_several_changes_stand_in_one_table_each_with_its_verdict(
    tiny, measured, tokenizer, tmp_path
):
    """A cut, gates and a changed model, whose random cuts there are not."""
    comparison, names = measured["comparison"], ["cut <b>", "gates $x$", "other"]
    tables = [comparison.table.assign(selection=name) for name in names]
    for column in ("random_low", "random_high", "random_below", "random_above"):
        tables[2][column] = np.nan
    tables[2] = tables[2].assign(n_random=0, neutral_in_range=np.nan)
    gates = fl.NeuronGates({0: {1: (0.5, 0)}}, CUT.shape, "balanced")
    several = replace(
        comparison,
        table=pd.concat(tables, ignore_index=True),
        draws=pd.concat([comparison.draws.assign(selection=name) for name in names[:2]]),
        selections=dict(zip(names, [CUT, gates, tiny], strict=True)),
    )
    texts = {"A prompt": {"before": "first", "other": "second"}}
    path = tmp_path / "p.html"
    options = {"model": tiny, "model_name": "x", "chosen_on": None, "texts": texts}
    lines = fl.write_report(path, several, **options).split("\n")
    assert [line.split(":")[0] for line in lines] == names
    facts, text = strict(path.with_suffix(".json")), " ".join(Page(path).text.split())
    assert facts["title"] == "What cut <b>, gates $x$ and other did to x"
    assert "<b>" not in path.read_text(encoding="utf-8")
    assert facts["verdict"] == lines and facts["selection"] is None
    assert [judged["kind"] for judged in facts["methods"]] == ["cut", "gates", "model"]
    assert facts["methods"][1]["selection"] == json.loads(gates.to_json())
    assert facts["methods"][2]["selection"] is None
    assert facts["method"] == {
        "cut <b>": "5 neurons switched off; by hand",
        "gates $x$": "1 neurons turned by gates; balanced",
        "other": "another model",
    }
    assert "3 random gates of the same size" in lines[1]
    assert "random" not in lines[2]
    advised = facts["methods"][1]["power_in_words"], " ".join(facts["methods"][1]["evidence"])
    assert all("random gates" in told and "random cuts" not in told for told in advised)
    assert facts["settings"]["pairs that chose"] is None
    assert facts["settings"]["random changes"] == 3
    assert "Which pairs chose is not known" in facts["warnings"][0]
    assert "3 changes were judged on the same sentences" in facts["warnings"][1]
    assert facts["texts"] == [{"prompt": "A prompt", "written": texts["A prompt"]}]
    table = text.split("Worth and price")[1].split("With each change")[0]
    assert table.count("random: –") == 4 and table.count("random: ") == 12


def test_words_in_sampled_texts_stand_on_the_page(tiny, measured, tmp_path):
    comparison, options = measured["comparison"], {"model": tiny, "model_name": "x"}
    sentence = f"before: in 100 continuations 5.0 more harsh words after {HOSTILE} than after the"
    table = pd.DataFrame([{"score": "harsh words", "name": "before", "sentence": sentence}])
    for path, continuations in ((tmp_path / "a.html", table), (tmp_path / "b.html", None)):
        told = replace(comparison, continuations=continuations)
        fl.write_report(path, told, chosen_on=measured["chosen_on"], **options)
    text = Page(tmp_path / "a.html").text
    assert sentence in text and "Words in longer texts" in text
    assert "Words in longer texts" not in Page(tmp_path / "b.html").text
    assert strict(tmp_path / "a.json")["continuations"] == table.to_dict("records")
    assert strict(tmp_path / "b.json")["continuations"] == []


def sampled(**numbers):
    """Return a row of `summarize_continuations`: harsh words moved toward the first word."""
    row = {"score": "harsh words", "name": "cut", "gap": 16.7, "sentence": "in words"}
    return row | {"change": 20.8, "change_low": 1.1, "change_high": 40.6} | numbers


def test_a_warning_of_whole_texts_reaches_page_and_card(tiny, measured, tmp_path):
    comparison = measured["comparison"]
    for path, numbers in ((tmp_path / "a.html", {}), (tmp_path / "b.html", {"name": "random"})):
        told = replace(comparison, continuations=pd.DataFrame([sampled(**numbers)]))
        options = {"model": tiny, "model_name": "x", "chosen_on": None}
        returned = fl.write_report(path, told, **options)
        facts = strict(path.with_suffix(".json"))
        with pytest.warns(UserWarning, match="No licence"):
            card = fl.model_card(path.with_suffix(".json"))
        top = Page(path).text.split("Worth and price")[0]
        warned = "Warning: in sampled texts harsh words moved toward the first word of a pair"
        for said in (returned, top, facts["verdict"][0], card.content.split("## What was cut")[0]):
            assert (warned in said) == (not numbers)


@pytest.mark.parametrize(
    ("numbers", "warned"),
    [
        ({}, "+20.8 in 100 texts, +1.1 … +40.6"),
        ({"change_low": -0.1}, ""),
        ({"gap": -1.0}, ""),  # the second word still has more of them
        ({"change_low": np.nan, "change_high": np.nan}, ""),
        ({"change": -20.8, "change_low": -40.6, "change_high": -1.1}, ""),
        (
            {
                "score": "kind words",
                "gap": -3.0,
                "change": -20.8,
                "change_low": -40.6,
                "change_high": -1.1,
            },
            "kind words moved away from the first word of a pair, which has fewer",
        ),
        ({"score": "kind words"}, ""),
        ({"score": "of a classifier"}, ""),
    ],
)
def test_whole_texts_warn_where_words_moved_to_the_worse_side(numbers, warned):
    notes = verdict.text_warnings(pd.DataFrame([sampled(**numbers)]), "cut")
    assert [warned in note for note in notes] == [True] * bool(warned)
    assert verdict.text_warnings(None, "cut") == []


def test_a_changed_model_alone_has_a_page(tiny, measured, tmp_path):
    comparison = measured["comparison"]
    table = comparison.table.assign(random_low=np.nan, random_high=np.nan, n_random=0)
    table = table.assign(random_above=np.nan, random_below=np.nan, neutral_in_range=np.nan)
    draws = comparison.draws.iloc[:0]
    alone = replace(comparison, table=table, draws=draws, selections={"cut": tiny})
    fl.write_report(tmp_path / "p.html", alone, model=tiny, model_name="x", chosen_on=None)
    facts = strict(tmp_path / "p.json")
    assert facts["title"] == "How cut differs from x"
    assert "Every cut was tried" not in Page(tmp_path / "p.html").text


def table_with(**numbers):
    gap = {
        "templates": 24,
        "attributes_resampled": 0,
        "change": -0.3,
        "low": -0.4,
        "high": -0.2,
        "random_low": -0.1,
        "random_high": 0.1,
        "n_random": 20,
        "neutral_change": -0.05,
        "specificity_low": -0.3,
        "specificity_high": -0.1,
        "neutral_in_range": True,
        "flattening_change": -0.1,
    }
    return pd.DataFrame(
        [
            {"measure": "gap", "row": "headline", **gap, **numbers},
            {"measure": "gap", "row": "neutral", "random_low": -0.08, "random_high": 0.07},
            {"measure": "perplexity", "row": "text", "change": 0.02, "low": 0.01, "high": 0.03},
        ]
    )


@pytest.mark.parametrize(
    ("numbers", "said", "not_said"),
    [
        (
            {},
            ["narrowed the gap", "a change of -30.0% (95 % interval -40.0%", "It is specific"],
            ["No effect", "not shown", "Flattening", "by -30.0%"],
        ),
        (
            {"specificity_high": 0.1},
            ["narrowed the gap", "It is not shown to be specific"],
            ["It is specific"],
        ),
        ({"specificity_high": np.nan}, ["It is not shown to be specific"], ["It is specific"]),
        (
            {"neutral_change": 0.798, "neutral_in_range": False},
            [
                "It is not shown to be specific",
                "+79.8%, beyond the range of random cuts (-8.0% … +7.0%)",
            ],
            ["It is specific"],
        ),
        ({"flattening_change": -0.5}, ["narrowed", "Flattening all predictions", "-50.0%"], []),
        ({"flattening_change": -0.3}, ["would do as much or more: -30.0%"], []),
        ({"high": 0.1}, ["No effect can be told", "includes 0"], ["narrowed", "specific"]),
        # below all random cuts, which widen it, but not below 0
        (
            {"change": 0.0, "low": -0.02, "high": 0.02, "random_low": 0.05, "random_high": 0.2},
            ["No effect can be told", "includes 0"],
            ["narrowed"],
        ),
        (
            {"random_low": -0.35},
            ["No effect can be told", "not clear of"],
            ["narrowed", "specific"],
        ),
        (
            {"random_low": -0.25},
            ["No effect can be told", "not clear of"],
            ["narrowed", "specific"],
        ),
        (
            {"low": np.nan, "high": np.nan},
            ["No effect can be told", "no interval"],
            ["narrowed", "specific"],
        ),
        (
            {"change": 0.3, "low": 0.2, "high": 0.4},
            ["widened the gap"],
            ["narrowed", "No effect", "specific"],
        ),
        (
            {"change": 0.1, "low": 0.05, "high": 0.15},
            ["No effect can be told", "not clear of"],
            ["widened"],
        ),
    ],
)
def test_the_verdict_follows_the_numbers(numbers, said, not_said):
    words_said = " ".join(verdict.verdict(table_with(**numbers)))
    for words in (*said, "Perplexity changes by +2.0% (+1.0% … +3.0%)."):
        assert words in words_said
    for words in not_said:
        assert words not in words_said


NO_RANDOM = {"random_low": np.nan, "random_high": np.nan, "n_random": 0}


@pytest.mark.parametrize(
    ("numbers", "said", "not_said"),
    [
        (
            {},
            ["30 % less differently", "Random cuts do not do that", "worth a"],
            ["Do not"],
        ),
        (
            {"specificity_high": 0.1},
            ["Do not call it fairer: it is not shown to be about these groups", "-5.0%"],
            ["worth a trial", "less sure"],
        ),
        ({"flattening_change": -0.5}, ["merely less sure of everything"], ["worth a trial"]),
        (
            {**NO_RANDOM, "neutral_in_range": np.nan},
            ["whether any change of this size would do the same is not known"],
            ["andom cuts", "worth a trial"],
        ),
        (
            {"change": 0.3, "low": 0.2, "high": 0.4},
            ["Do not cut: with 24", "30 % more differently", "The price: plain text"],
            ["fairer"],
        ),
        # the half-width is log(1.2 / 0.8) / 2 = 0.203, and 1 − 0.9 · exp(−0.203) = 0.265
        (
            {"change": np.sqrt(0.96) - 1, "low": -0.2, "high": 0.2},
            ["Do not cut on this evidence. With 24", "below 27 %", "-2.0%", "would not help"],
            ["Add about", "wrong direction"],
        ),
        # log(0.9 / 0.8) = 0.118 from the random cuts; 24 · (0.203 / 0.118)² = 71
        (
            {"change": -0.2, "low": 0.8 * np.sqrt(2 / 3) - 1, "high": 0.8 * np.sqrt(3 / 2) - 1},
            ["Do not cut on", "Add about 48 sentences", "an even chance"],
            ["would not help", "wrong direction"],
        ),
        # the same distance on the other side
        (
            {"change": 0.2, "low": 1.2 * np.sqrt(2 / 3) - 1, "high": 1.2 * np.sqrt(3 / 2) - 1},
            ["Do not cut on", "+20.0%, in the wrong direction. More sentences would at best show"],
            ["Add about", "even chance"],
        ),
        ({"low": np.nan, "high": np.nan, "templates": 1}, ["1 sentence can't tell"], ["Add about"]),
    ],
)
def test_what_to_do_is_said_without_jargon(numbers, said, not_said):
    table = table_with(**numbers)
    words_said = advice.decision(table)
    for words in said:
        assert words in words_said
    for words in (*not_said, "divergence", "perplexity", "nats"):
        assert words not in words_said
    assert advice.evidence(table) and advice.power_in_words(table.iloc[0].to_dict())


@pytest.mark.parametrize(
    ("kind", "not_to_do"),
    [("gates", "Do not use the gates"), ("model", "Do not call the other model fairer")],
)
def test_what_not_to_do_fits_the_kind_of_change(kind, not_to_do):
    assert advice.decision(table_with(high=0.1), kind).startswith(f"{not_to_do} on this evidence.")
    few = table_with(low=np.nan, high=np.nan, templates=1)
    assert advice.decision(few, kind).startswith(f"{not_to_do} on this evidence: 1 sentence")
    wider = table_with(change=0.3, low=0.2, high=0.4)
    assert advice.decision(wider, kind).startswith(f"{not_to_do}: with 24 sentences")


def test_decisions_that_set_the_groups_apart_are_told():
    row = {"measure": "decision", "row": "headline", "change": 0.2, "low": 0.1, "high": 0.3}
    table = pd.concat([table_with(), pd.DataFrame([row | {"random_low": 0, "random_high": 0.05}])])
    told = advice.decision(table)  # exp(0.2) − 1
    assert "the ratio of the higher to the lower ones is 22.1 % larger" in told
    assert "nats" not in told
    table.loc[table.measure == "decision", "random_high"] = 0.15
    assert "further apart" not in advice.decision(table)
    table.loc[table.measure == "decision", "random_high"] = np.nan  # then the interval alone tells
    assert "further apart" in advice.decision(table)


@pytest.mark.parametrize(
    "numbers",
    [
        {"change": 0.3, "low": 0.2, "high": 0.4},  # widened
        {"high": 0.1},
        {"low": np.nan, "high": np.nan, "templates": 1},
    ],
)
def test_a_price_is_told_where_nothing_was_bought(numbers):
    table, of_text = table_with(**numbers), ["change", "low", "high"]
    text = table.measure == "perplexity"
    price = "The price: plain text is harder to predict, +14.2% (+8.0% … +21.0%)."
    assert "rice" not in advice.decision(table.assign(low=table.low.mask(text, 0.0)))
    table.loc[text, of_text] = 0.142, 0.08, 0.21
    assert advice.decision(table).endswith(f" {price}")


@pytest.mark.parametrize(
    ("change", "low", "high", "said"),
    [
        (0.02, 0.01, 0.03, "The price: plain text is harder to predict, +2.0% (+1.0% … +3.0%)."),
        (
            0.02,
            -0.01,
            0.03,
            "No price could be told: how hard plain text is to predict changes by +",
        ),
        (
            -0.01,
            -0.03,
            0.01,
            "No price could be told: how hard plain text is to predict changes by -1",
        ),
        (-0.02, -0.03, -0.01, "Plain text is no harder to predict"),
    ],
)
def test_the_price_is_told_by_its_interval(change, low, high, said):
    table = table_with()
    table.loc[table.measure == "perplexity", ["change", "low", "high"]] = change, low, high
    assert said in advice.decision(table) and "erplexity" not in advice.decision(table)


def test_power_by_hand():
    row = table_with(change=-0.2, low=0.8 / 1.25 - 1, high=0.8 * 1.25 - 1).iloc[0].to_dict()
    seen = advice.power(row)
    assert seen["smallest by interval"] == pytest.approx(1 - 1 / 1.25)
    assert seen["smallest narrowing"] == pytest.approx(1 - 0.9 / 1.25)
    assert (seen["sentences"], seen["sentences to halve"]) == (24, 96)
    needed = 24 * (np.log(1.25) / np.log(0.9 / 0.8)) ** 2
    assert seen["sentences to see the change"] == pytest.approx(needed)
    assert advice.power(row | {"change": -0.05})["sentences to see the change"] == np.inf
    alone = advice.power(row | NO_RANDOM)
    assert alone["smallest narrowing"] == pytest.approx(alone["smallest by interval"])
    needed = 24 * (np.log(1.25) / np.log(0.8)) ** 2
    assert alone["sentences to see the change"] == pytest.approx(needed)
    wider = row | {"change": 0.2, "low": 1.2 / 1.25 - 1, "high": 1.2 * 1.25 - 1}
    needed = 24 * (np.log(1.25) / np.log(1.2 / 1.1)) ** 2
    assert advice.power(wider)["sentences to see the change"] == pytest.approx(needed)
    words = advice.power_in_words(row)
    assert "it takes a narrowing of 28 % to stand out from random cuts, and one of 20 %" in words
    assert "96 sentences, and an even chance to show a change of -20.0% takes" in words
    assert "shows a narrowing of 20 % or more" in advice.power_in_words(row | NO_RANDOM)
    assert "even chance" not in advice.power_in_words(wider)
    assert "A rule of thumb" in words and "in proportion" not in words
    assert "in proportion" in advice.power_in_words(row | {"attributes_resampled": 4})
    wide = advice.power(row | {"low": -1.0})
    assert wide["smallest by interval"] == 1


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        (
            {},
            [
                "ends above -10.0%, the lowest of random cuts",
                "-40.0% … -20.0%",
                "-30.0 … -10.0 percentage",
            ],
        ),
        ({"specificity_high": 0.1}, ["then it is about these groups' words"]),
        (
            NO_RANDOM,
            [
                "ends above 0:",
                "Random changes of the same kind",
                "then it is about these groups' words",
            ],
        ),
        ({"high": 0.1}, ["ends below -10.0%, the lowest", "begins above +10.0%, the highest"]),
        ({"change": 0.3, "low": 0.2, "high": 0.4}, ["begins below +10.0%", "+20.0% … +40.0%"]),
        ({"low": np.nan, "high": np.nan}, ["Six sentences or more"]),
    ],
)
def test_what_would_change_our_mind_names_the_numbers(numbers, said):
    told = " ".join(advice.evidence(table_with(**numbers)))
    for words in said:
        assert words in told


def test_without_random_cuts_nothing_is_claimed_beyond_them():
    told = " ".join(verdict.verdict(table_with(**NO_RANDOM, neutral_in_range=np.nan), "model"))
    assert "The other model narrowed the gap" in told and "lies below 0. Random changes" in told
    assert "can't be told without random changes" in told
    assert "It is specific" not in told and "nan" not in told
    assert not verdict.is_specific(table_with(**NO_RANDOM).iloc[0].to_dict())
    assert "–" not in told.replace(" … ", "")


def test_a_difference_of_changes_is_told_in_points():
    """It may lie below −100, which no change can."""
    told = " ".join(verdict.verdict(table_with(specificity_low=-1.3)))
    assert "(-130.0 … -10.0 percentage points)" in told


def gaps_with(**columns):
    rows = {
        "kind": ["demographic", "demographic", "neutral", "neutral"],
        "category": ["race", "age", "mood", "time"],
        "templates": [6, 1, 3, 3],
        "gap": [0.01, 0.03, 0.005, 0.004],
        "low": [0.005, 0.02, 0.002, 0.003],
        "high": [0.015, 0.04, 0.008, 0.006],
    }
    return pd.DataFrame(rows | columns)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {},
            [
                "largest gap is that of age, 0.0300 nats (interval 0.0200 … 0.0400, 1 sentence)",
                "Next is that of race, 0.0100 nats (interval 0.0050 … 0.0150, 6 sentences); the "
                "first interval is clear of it",
                "lies above those of the neutral pairs (that of mood, 0.0050 nats",
            ],
        ),
        ({"high": [0.025, 0.04, 0.008, 0.006]}, ["which of the two is larger is open"]),
        ({"high": [0.015, 0.04, 0.021, 0.006]}, ["It is not shown to be larger"]),
        (
            {"low": [0, 0.02, 0.05, 0.06], "high": [0.015, 0.04, 0.07, 0.08]},
            ["lies below those of the neutral pairs"],
        ),
        (
            {"low": [0, 0.02, 0.03, 0.06], "high": [0.015, 0.04, 0.07, 0.08]},
            ["It is not shown to be larger"],
        ),
        ({"low": [np.nan] * 4, "high": [np.nan] * 4}, ["no interval", "It is not shown"]),
    ],
)
def test_the_diagnosis_follows_the_numbers(columns, said):
    told = " ".join(verdict.diagnosis(gaps_with(**columns)))
    for words in said:
        assert words in told
    assert "What this does not say: that a gap is a harm" in told
    alone = verdict.diagnosis(gaps_with().iloc[[0, 2, 3]])
    assert alone[0].startswith("The gap is that of race") and len(alone) == 3


def test_decisions_are_told_by_their_sign_and_interval():
    told = verdict.decision_sentences(
        gaps_with(
            decision=[0.113329, -0.105361, 0.02, np.nan],
            decision_low=[0.02, np.nan, -0.01, np.nan],
            decision_high=[0.2, np.nan, 0.05, np.nan],
        )
    )
    assert told == [
        "Decisions, race: after the first word of a pair the odds of a harsher answer against a "
        "kinder one are 12.0 % higher than after the second (+0.113 nats, interval +0.020 … "
        "+0.200).",
        "Decisions, age: after the first word of a pair the odds of a harsher answer against a "
        "kinder one are 10.0 % lower than after the second (-0.105 nats, no interval).",
        "Decisions, neutral words, mood: after the first word of a pair the odds of a harsher "
        "answer against a kinder one are 2.0 % higher than after the second (+0.020 nats, interval "
        "-0.010 … +0.050); it includes 0, so the side can't be told.",
    ]
    assert verdict.decision_sentences(gaps_with()) == []


@pytest.mark.parametrize(
    ("text", "value", "fails"),
    [
        ("gap>0.02", 0.021, True),
        ("gap>0.02", 0.02, False),
        ("gap >= .02", 0.02, True),
        ("gap_change>-0.1", -0.05, True),
        ("gap_change > -1e-1", -0.2, False),
        ("neutral_change<-0.1", -0.2, True),
        ("decision<=+0.5", 0.5, True),
        ("decision>0.5", np.nan, True),
    ],
)
def test_a_run_fails_where_its_bound_is_met(text, value, fails):
    condition = conditions.read_condition(text)
    told = conditions.failures([condition], {condition.name: value})
    assert bool(told) == fails
    assert all(condition.name in words for words in told)


@pytest.mark.parametrize("text", ["gap", "gap>", "gap=1", "gop>1", "gap>1>2", "gap>a", "", ">1"])
def test_other_conditions_are_refused(text):
    with pytest.raises(ValueError, match=r"fail_if: expected a name.*gap, largest_gap"):
        conditions.read_condition(text)


def test_what_can_be_bounded_is_read_from_the_table(measured):
    table = measured["comparison"].table
    values = conditions.quantities_of(table)
    assert list(values) == list(conditions.QUANTITIES)
    assert set(conditions.WITHOUT_A_CHANGE) < set(values)
    rows = table.set_index(["measure", "row", "category"]).sort_index()
    gaps = rows.loc[("gap", "category")]
    assert values == {
        "gap": rows.loc[("gap", "headline")].after.item(),
        "largest_gap": max(gaps.after),
        "neutral_gap": rows.loc[("gap", "neutral")].after.item(),
        "decision": rows.loc[("decision", "headline")].after.item(),
        "gap_change": rows.loc[("gap", "headline")].change.item(),
        "neutral_change": rows.loc[("gap", "neutral")].change.item(),
        "decision_change": rows.loc[("decision", "headline")].change.item(),
        "perplexity_change": rows.loc[("perplexity", "text")].change.item(),
    }
    without = conditions.quantities_of(table[table.measure != "decision"])
    assert np.isnan(without["decision"]) and np.isnan(without["decision_change"])


def test_the_language_is_known_of_our_own_sentences_and_of_english():
    from fairlab.report.page import language_of

    assert language_of([fl.ARTICLE_PAIR.template]) == "English"
    assert language_of([pair.template for pair in fl.load_pairs(language="es")]) == "Spanish"
    assert language_of([fl.ARTICLE_PAIR.template, "The {} one"]) == "English"
    assert (
        language_of(["The {} cook left", "A {} man sat down", "My {} aunt", "So {}"]) == "English"
    )
    for other in ("Ein {} Mann saß", "De {} man is was", "La {} cocinera to", "1 {}"):
        assert language_of([other]) is None
    assert language_of(["The {} cook left", "El {} cocinero"]) is None


def test_what_was_not_held_out_is_said():
    pair = fl.ARTICLE_PAIR
    words = replace(pair, prompt_a="x", prompt_b="y", template="another {}")
    sentence = replace(pair, prompt_a="x", prompt_b="y", attribute_a="old", attribute_b="young")
    fresh = replace(words, attribute_a="old", attribute_b="young")
    assert "1 of the 2 pairs measured also chose" in verdict.warnings([pair], [pair, fresh])[0]
    assert "1 of the 1 sentences measured also chose" in verdict.warnings([pair], [sentence])[0]
    assert "1 of the 1 word pairs measured also chose" in verdict.warnings([pair], [words])[0]
    assert verdict.warnings([pair], [fresh]) == []
    assert "Which pairs chose is not known" in verdict.warnings(None, [pair])[0]
    assert verdict.warnings([pair], [fresh], [replace(words, attribute_a="sad")]) == []
    assert "other sentences than" in verdict.warnings([pair], [fresh], [pair])[0]


def with_lengths(comparison, **more_tokens):
    """Say that the first pair of a kind has a longer first prompt, of a comparison without such."""
    readings = comparison.readings.copy()
    assert (readings.more_tokens == 0).all()
    for kind, more in more_tokens.items():
        first = readings[readings.kind == kind].iloc[0]
        same = (readings.kind == kind) & (readings.template == first.template)
        same &= (readings.category == first.category) & (readings.attribute_a == first.attribute_a)
        readings.loc[same, "more_tokens"] = more
    return readings


def test_pairs_of_unequal_length_are_told(measured):
    comparison = measured["comparison"]
    count, neutral = len(comparison.held_out.pairs), len(comparison.held_out.neutral)
    assert verdict.length_warnings(comparison.readings) == []
    readings = with_lengths(comparison, demographic=-2)
    (told,) = verdict.length_warnings(readings)
    assert told.startswith(f"In 1 of the {count} pairs measured the two prompts differ in their ")
    assert "No neutral pair does; some that do would show how large" in told
    # whether or not the article's metric was measured, and of several selections once
    assert verdict.length_warnings(readings[readings.measure == "gap"]) == [told]
    assert verdict.length_warnings(pd.concat([readings, readings.assign(selection="b")])) == [told]
    (both,) = verdict.length_warnings(with_lengths(comparison, demographic=1, neutral=3))
    assert f"So may that of neutral pairs, of which 1 of {neutral} differ, too." in both
    (told,) = verdict.length_warnings(with_lengths(comparison, neutral=1))
    assert told.startswith(f"In 1 of the {neutral} neutral pairs the two prompts differ")


def test_the_page_warns_of_what_weakens_its_numbers(measured, tmp_path):
    """Half precision, neutral pairs in other sentences, and prompts of unequal length."""
    half, comparison = tiny_model(dtype=torch.bfloat16), measured["comparison"]
    held_out = comparison.held_out
    elsewhere = fl.build_pairs(["A {} cook came"], [("tired", "hungry")])
    weak = replace(
        comparison,
        held_out=replace(held_out, neutral=elsewhere),
        readings=with_lengths(comparison, demographic=1),
        weights_sha256=bits_of(half),
    )
    options = {"model": half, "model_name": "x", "chosen_on": None}
    method = {"language": "German", "quick look": "Measure again."}
    fl.write_report(tmp_path / "p.html", weak, **options, method=method)
    facts = strict(tmp_path / "p.json")
    assert facts["warnings"][0] == "Measure again."
    for words in ("stand in other sentences", "differ in their number", HALF_PRECISION_COSTS):
        assert any(words in warning for warning in facts["warnings"]), words
    assert facts["language"] == "German"
    fl.write_report(tmp_path / "c.html", weak, **options, method={"language": "de"})
    assert strict(tmp_path / "c.json")["language"] == "German"


def test_decisions_are_told_in_nats(tiny, measured, tmp_path):
    path = tmp_path / "page.html"
    fl.write_report(path, model=tiny, model_name="x", **measured)
    text = " ".join(Page(path).text.split())
    table = measured["comparison"].table
    row = table[(table.measure == "decision") & (table.row == "headline")].iloc[0]
    told = text.split("who is treated worse")[1]
    assert f"decision gap, mean over categories {row.before:.4g}" in told
    assert f"{row.change:+.3f} {row.low:+.3f} … {row.high:+.3f}" in told
    numbers = text.split("every category")[1].split("who is treated worse")[0]
    assert "decision gap," not in numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "page.txt"}, "path: expected a name that ends in .html; got"),
        ({"model": tiny_model(intermediate_size=25)}, "model has 3 layers of 25"),
        ({"chosen_on": []}, "chosen_on: expected at least one"),
        ({"texts": {"A": {"after": "x"}}}, r"texts: expected.*by name \(before, cut\); got"),
        ({"texts": {"A": ("x", "y")}}, r"texts: expected.*by name \(before, cut\); got"),
        ({"gates": True}, "model has 3 layers of 24"),
        ({"headline": False}, "expected one row of the gap, headline"),
    ],
)
def test_bad_input_writes_nothing(tiny, measured, tmp_path, changes, message):
    options = {"path": "page.html", "model": tiny, "model_name": "x", **measured, **changes}
    comparison = options["comparison"]
    if options.pop("gates", False):
        gates = fl.NeuronGates({0: {1: (0.5, 0)}}, (3, 30))
        comparison = replace(comparison, selections={"cut": gates})
    if not options.pop("headline", True):
        table = comparison.table
        comparison = replace(comparison, table=table[table.row != "headline"])
    options |= {"path": tmp_path / options["path"], "comparison": comparison}
    with pytest.raises(ValueError, match=message):
        fl.write_report(**options)
    assert not list(tmp_path.iterdir())


def rewritten(written, **changes):
    """Change what a report says; fields of "model" are changed one by one."""
    facts = strict(written.with_suffix(".json"))
    for key, value in changes.items():
        facts[key] = facts[key] | value if key == "model" else value
    written.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
    return written.with_suffix(".json")


def metadata(card, folder):
    """Read what the Hub would read, and check what of its rules can be checked here."""
    card.save(folder / "README.md")
    read = huggingface_hub.metadata_load(folder / "README.md")
    assert read == card.data.to_dict() == huggingface_hub.ModelCardData(**read).to_dict()
    assert (read["library_name"], read["pipeline_tag"]) == ("transformers", "text-generation")
    assert read["tags"] == ["fairlab", "pruned"]
    assert re.fullmatch("[a-z0-9.+-]+", read.get("license", "none"))
    if isinstance(read.get("base_model"), str):
        huggingface_hub.utils.validate_repo_id(read["base_model"])
    return read


def stated(**fields):
    """Stand in for the card of a base model on the Hub."""

    def load(card, **options):
        assert not isinstance(card, str) or "<" not in card, "no id of the Hub"
        return huggingface_hub.ModelCard(f"---\n{yaml.safe_dump(fields)}---\n")

    return load


def no_hub(card, **options):
    raise OSError("no Hub")


def test_the_card_says_what_the_report_says(written, tmp_path):
    report = rewritten(written, language=HOSTILE)
    facts = strict(report)
    with pytest.warns(UserWarning, match="No licence is stated"):
        card = fl.model_card(report)
    header = metadata(card, tmp_path)
    assert not {"base_model", "license", "language"} & set(header)  # no id of the Hub, no licence
    assert "<script" not in card.text
    assert "5 of 72 MLP neurons" in card.text
    overall = [
        row["sentence"] for row in facts["results"] if row["row"] in ("headline", "neutral", "text")
    ]
    for line in (
        *facts["verdict"],
        *facts["limits"],
        *overall,
        facts["model"]["weights_sha256"],
        "precision: float32",
        "text of the perplexity: 171 characters, from: The tide comes in.",
        "Out-of-scope use",
    ):
        assert line.replace("<", "&lt;") in card.text
    assert "No licence is stated" in card.text
    headline = next(row for row in facts["results"] if row["row"] == "headline")
    told = next(line for line in card.text.splitlines() if "gap (mean over categories)" in line)
    for column in ("change", "random_low", "random_high", "neutral_change"):
        assert f"{headline[column]:+.1%}" in told


def test_the_card_says_whom_it_was_measured_on(measured, written):
    pairs = measured["comparison"].held_out.pairs
    text = fl.model_card(written.with_suffix(".json"), license="mit").text
    for pair in pairs:
        start = f"- {escaped(pair.category)}: "
        line = next(line for line in text.splitlines() if line.startswith(start))
        assert f"{pair.attribute_a} / {pair.attribute_b}" in line
    assert f"{len({pair.template for pair in pairs})} sentences in all, language: English" in text

    changes = {"groups": {"": ["*x* / y\n\n# y"]}, "language": None}
    changes["sentences"] = ["An {} |man|", *(f"{number} {{}}" for number in range(5))]
    text = fl.model_card(rewritten(written, **changes), license="mit").text
    assert r"- no category: \*x\* / y \# y" in text
    assert "6 sentences in all, language: not stated" in text
    shown = text.split("Some of them:")[1].split("##")[0].splitlines()
    assert [line for line in shown if line] == [r"- An {} \|man\|", "- 1 {}", "- 3 {}"]


@pytest.mark.parametrize(
    ("name", "model_class", "expected"),
    [
        (
            fl.DEFAULT_MODEL,
            "LlamaForCausalLM",
            ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", ["en"]),
        ),
        ("gemma-3-270m", "Gemma3ForCausalLM", ("google/gemma-3-270m", "gemma", None)),
        ("google/gemma-2-2b", "Gemma2ForCausalLM", ("google/gemma-2-2b", "gemma", None)),
        ("mine", "Gemma3ForConditionalGeneration", (None, "gemma", None)),
        ("mine", "Gemma4ForCausalLM", (None, None, None)),
        (
            "meta-llama/Llama-3.2-1B",
            "LlamaForCausalLM",
            ("meta-llama/Llama-3.2-1B", "llama3.2", None),
        ),
        (
            "meta-llama/Meta-Llama-3-8B",
            "LlamaForCausalLM",
            ("meta-llama/Meta-Llama-3-8B", "llama3", None),
        ),
        ("meta-llama/Llama-4-X", "LlamaForCausalLM", ("meta-llama/Llama-4-X", None, None)),
        ("org/model", "LlamaForCausalLM", ("org/model", None, None)),
        ("org/a..b", "LlamaForCausalLM", (None, None, None)),
        ("folder", "LlamaForCausalLM", (None, None, None)),
    ],
)
def test_terms_that_are_known_without_a_card(name, model_class, expected, monkeypatch):
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", no_hub)
    found = terms.terms_of_cut(name, model_class, {}, {"license": None})
    assert tuple(found.get(field) for field in ("base_model", "license", "language")) == expected
    assert terms.terms_of_cut(name, model_class, {}, {"license": "mit"})["license"] == "mit"


def test_terms_are_those_asked_for_then_those_stated(written, tmp_path, monkeypatch):
    on_hub = {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    on_hub |= {"language": ["en", "no"], "base_model": "org/elder", "datasets": ["d"]}
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", stated(**on_hub))
    report = rewritten(written, model={"name": "org/base"})
    header = metadata(fl.model_card(report), tmp_path)
    link = "https://huggingface.co/org/base/blob/main/LICENSE"
    expected = on_hub | {"license_link": link, "base_model": "org/base"}
    del expected["datasets"]
    assert {key: header[key] for key in expected} == expected
    assert "datasets" not in header

    # of a folder its own card comes first, then that of the model it came from
    in_folder = {"license": "mit", "base_model": "org/parent"}
    report = rewritten(written, model={"name": "folder"}, terms=in_folder)
    header = metadata(fl.model_card(report), tmp_path)
    assert (header["license"], header["base_model"]) == ("mit", "org/parent")
    assert header["language"] == ["en", "no"]

    asked = {"license": "apache-2.0", "base_model": "a/b", "language": "de"}
    header = metadata(fl.model_card(report, **asked), tmp_path)
    assert header == header | asked and "license_name" not in header
    for several in (["de", "en"], ("de", "en")):  # YAML has no tuples but Python's own
        header = metadata(fl.model_card(report, license="mit", language=several), tmp_path)
        assert header["language"] == ["de", "en"]

    # what the Hub would refuse is left out
    hostile = {"license": "mit\n---\n", "language": [["en"]], "base_model": HOSTILE, "a": HOSTILE}
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", no_hub)
    with pytest.warns(UserWarning, match="No licence is stated"):
        card = fl.model_card(rewritten(written, terms=hostile))
    # that of the sentences measured is known
    assert metadata(card, tmp_path)["language"] == "en"
    card = fl.model_card(rewritten(written, language=None), license="mit")
    fields = {"library_name", "pipeline_tag", "tags", "license"}
    assert set(metadata(card, tmp_path)) == fields
    card = fl.model_card(rewritten(written, language="German"), license="mit")
    assert metadata(card, tmp_path)["language"] == "de"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"license": "Apache License 2.0"}, "license: expected an identifier of the list on"),
        ({"license": "mit\n---\n"}, "license: expected"),
        ({"license": "apache2.0"}, r"got 'apache2.0' \(did you mean apache-2.0"),
        ({"license": "my-own"}, "license: expected .* or 'other'; got 'my-own'$"),
        ({"license": "other"}, "license_name: the license 'other' needs a short name"),
        ({"license": "other", "license_name": "My own"}, "license_name: expected a short name"),
        (
            {"license": "other", "license_name": "own", "license_link": "LICENSE"},
            "license_link: expected an address on the web",
        ),
        (
            {"license": "mit", "license_name": "own"},
            "license_name: only the license 'other' has them; got license 'mit'",
        ),
        ({"license_link": "https://a.b/c"}, "license_link: only .* got license None"),
        ({"base_model": "folder"}, "base_model: expected the id of a model on the Hub"),
        ({"base_model": "a/b--c"}, "base_model: expected"),
        ({"language": "English"}, "language: expected a code such as 'en'"),
        ({"language": ["en", 3]}, "language: expected"),
        ({"language": []}, "language: expected"),
        ({"language": [["en"]]}, "language: expected"),
        ({"selection": "other"}, r"selection: expected the name of a cut in the report \(cut\)"),
    ],
)
def test_the_card_refuses_what_the_hub_would(written, asked, message):
    with pytest.raises(ValueError, match=message):
        fl.model_card(written.with_suffix(".json"), **asked)


def test_a_licence_that_the_hub_does_not_list_has_a_name_and_a_link(written, tmp_path):
    asked = {"license": "other", "license_name": "own-1.0", "license_link": "https://a.b/c"}
    card = fl.model_card(written.with_suffix(".json"), **asked)
    header = metadata(card, tmp_path)
    assert header == header | asked
    assert "- Licence: other, own-1.0, https://a.b/c" in card.text
    # what fairlab itself names is on the list
    assert {*terms.NOTICES, *terms.BUILT_WITH} <= terms.LICENCES
    assert {known["license"] for known in terms.KNOWN.values()} <= terms.LICENCES


def test_what_gemma_and_llama_ask_to_be_said_is_said(written, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", no_hub)
    gemma = "Gemma is provided under and subject to the Gemma Terms of Use found at"
    report = rewritten(written, model={"name": "mine", "class": "Gemma3ForCausalLM"})
    card = fl.model_card(report)
    assert metadata(card, tmp_path)["license"] == "gemma"
    assert f"{gemma} ai.google.dev/gemma/terms" in card.text
    assert "whatever other licence is stated: https://ai.google.dev/gemma/terms" in card.text
    card = fl.model_card(report, license="mit")  # they travel with the weights
    assert metadata(card, tmp_path)["license"] == "mit"
    assert gemma in card.text and "whatever other licence is stated" in card.text

    report = rewritten(written, model={"name": "meta-llama/Llama-3.2-1B", "class": "Llama"})
    card = fl.model_card(report)
    assert metadata(card, tmp_path)["license"] == "llama3.2"
    assert "Built with Llama. The name of a model made from it has to begin" in card.text
    assert "Llama 3.2 is licensed under the Llama 3.2 Community License" in card.text
    assert gemma not in card.text


def test_a_model_folder_says_its_terms(tiny, measured, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    card = "---\nlicense: mit\nlanguage: [de, 3]\nbase_model: [a/b, c/d]\n1: 2\n---\n"
    (folder / "README.md").write_text(card.replace("1: 2\n", ""), encoding="utf-8")
    fl.write_report(tmp_path / "p.html", **measured, model=tiny, model_name=folder)
    assert strict(tmp_path / "p.json")["terms"] == {"license": "mit", "base_model": ["a/b", "c/d"]}
    header = metadata(fl.model_card(tmp_path / "p.json"), tmp_path)
    assert (header["license"], header["base_model"]) == ("mit", ["a/b", "c/d"])
    for broken in (card, "---\n[}\n---\n", "---\n- a\n---\n", "---\nlicense: [mit]\n---\n", ""):
        (folder / "README.md").write_text(broken, encoding="utf-8")
        assert terms.folder_terms(folder) == {}
    (folder / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert terms.folder_terms(folder) == {}
    assert terms.folder_terms(tmp_path / "none") == {}


def test_only_what_came_from_the_hub_is_a_base_model(tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "models--org--base"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc", encoding="utf-8")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "snapshots" / "abc" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "mine"
    folder.mkdir()
    for source, expected in (("org/base", {"base_model": "org/base"}), ("out/self", {}), (3, {})):
        config = json.dumps({"_name_or_path": source})
        (folder / "config.json").write_text(config, encoding="utf-8")
        assert terms.folder_terms(folder) == expected


def test_of_several_selections_one_is_named(written):
    facts = strict(written.with_suffix(".json"))
    other = {"neurons": {"1": [2]}, "shape": [3, 24], "how": "b"}
    methods = [
        {"name": "cut", "kind": "cut", "selection": facts["selection"], "verdict": ["Of cut."]},
        {"name": "b", "kind": "cut", "selection": other, "verdict": ["Of b."]},
        {"name": "g", "kind": "gates", "selection": {}, "verdict": ["Of g."]},
    ]
    rows = facts["results"]
    rows += [row | {"selection": "b", "sentence": "b moved"} for row in rows]
    method = {"cut": "5 neurons", "b": "1 neuron", "fraction": 0.1}
    report = rewritten(written, methods=methods, results=rows, method=method, selection=None)
    for name in (None, "g", "missing"):
        with pytest.raises(ValueError, match=r"selection: .* a cut in the report \(cut, b\); got"):
            fl.model_card(report, selection=name)
    text = fl.model_card(report, selection="b", license="mit").text
    assert "1 of 72 MLP neurons" in text
    for line in ("Of b.", "b moved", "- b: 1 neuron", "- fraction: 0.1"):
        assert line in text
    assert "Of cut." not in text and "- cut:" not in text


def test_a_card_needs_a_report(tmp_path):
    (tmp_path / "other.json").write_text('{"model": 3}', encoding="utf-8")
    for name in ("other.json", "missing.json"):
        with pytest.raises(
            ValueError, match=r"report: expected the JSON file that write_report wrote; got"
        ):
            fl.model_card(tmp_path / name)


class LocalHub:
    """Stands in for the Hub: a repository is a folder."""

    root = None

    def create_repo(self, repo_id, *, private, exist_ok):
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        (self.root / f"{repo_id}.private").write_text(str(private), encoding="utf-8")
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(self, *, repo_id, operations, commit_message):
        for operation in operations:
            shutil.copy(operation.path_or_fileobj, self.root / repo_id / operation.path_in_repo)


@pytest.mark.parametrize("folder", ["", " ", "~no.one/model"])
def test_a_folder_without_a_name_is_not_uploaded(folder, monkeypatch):
    monkeypatch.setattr("fairlab.report.upload.HfApi", lambda: pytest.fail("the Hub was asked"))
    with pytest.raises(ValueError, match="folder: expected a path; got"):
        fl.push_to_hub(folder, "ann/pruned")


def test_what_is_pushed_reloads_with_stock_transformers(
    tiny, tokenizer, written, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(upload, "HfApi", LocalHub)
    monkeypatch.setattr(LocalHub, "root", tmp_path / "hub")
    folder = tmp_path / "pruned"
    cut = fl.prune(tiny, CUT)
    fl.save_model(cut, tokenizer, folder)
    with pytest.raises(ValueError, match=r"folder: .* lacks README.md; fill it with"):
        fl.push_to_hub(folder, "ann/pruned")
    assert not (tmp_path / "hub").exists()
    facts = strict(written.with_suffix(".json"))
    facts["model"]["name"] = "folder"
    written.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
    card = fl.model_card(written.with_suffix(".json"), license="mit")
    card.save(folder / "README.md")
    secrets = [
        "secret.env",
        "passwords.txt",
        "credentials.json",
        "token.model",
        "a.safetensors",
        "notes.html",
    ]
    secrets += [
        "sub/config.json",
        ".ssh/README.md",
        ".venv/lib/merges.txt",
        "model-00001-of-00002.safetensors.txt",
    ]
    for name in secrets:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("KEY=1", encoding="utf-8")
    (tmp_path / "elsewhere.txt").write_text("KEY=1", encoding="utf-8")
    (folder / "vocab.txt").symlink_to(tmp_path / "elsewhere.txt")
    capsys.readouterr()
    assert fl.push_to_hub(folder, "ann/pruned") == "https://huggingface.co/ann/pruned"
    pushed = tmp_path / "hub" / "ann" / "pruned"
    assert (tmp_path / "hub" / "ann" / "pruned.private").read_text(encoding="utf-8") == "True"
    names = {path.name for path in pushed.rglob("*")}
    assert names == {
        "README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja",
    } & names >= {"README.md", "config.json", "model.safetensors", "tokenizer.json"}  # fmt: skip
    assert not any(
        "KEY=1" in path.read_text(encoding="utf-8", errors="ignore") for path in pushed.rglob("*")
    )
    assert (
        capsys.readouterr().out
        == f"to https://huggingface.co/ann/pruned: {', '.join(sorted(names))}\n"
    )
    assert huggingface_hub.ModelCard.load(pushed / "README.md").data.tags == ["fairlab", "pruned"]
    again = transformers.AutoModelForCausalLM.from_pretrained(pushed)
    assert transformers.AutoTokenizer.from_pretrained(pushed)("A Black man").input_ids == [
        49,
        4290,
        555,
    ]
    expected = glu_blocks(cut)[0].down_proj.weight
    assert (glu_blocks(again)[0].down_proj.weight[:, : expected.shape[1]] == expected).all()
