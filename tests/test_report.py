import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import huggingface_hub
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import transformers
import yaml

import fairlab as fl
from fairlab.evaluation.readings import bits_of
from fairlab.models import glu_blocks
from fairlab.report import card as card_module
from fairlab.report import upload, verdict
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
        texts={f"A {HOSTILE}": ("before", HOSTILE)},
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
    assert (facts["settings"]["seed"], facts["settings"]["random cuts"]) == (7, 3)
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
    ):
        assert shown in text
    assert "1, 5, 9" in text


def test_of_a_model_folder_only_the_name_is_shown(tiny, measured, tmp_path):
    folder = tmp_path / "private" / "mine"
    folder.mkdir(parents=True)
    fl.write_report(tmp_path / "p.html", **measured, model=tiny, model_name=folder)
    assert strict(tmp_path / "p.json")["model"]["name"] == "mine"
    assert "private" not in (tmp_path / "p.html").read_text(encoding="utf-8")


def table_with(**numbers):
    gap = {
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
            ["narrowed the gap", "-30.0%", "It is specific"],
            ["No effect", "not shown", "Flattening"],
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
        ({"high": 0.1}, ["No effect can be told", "includes 0"], ["narrowed", "specific"]),
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


def test_what_was_not_held_out_is_said():
    pair = fl.ARTICLE_PAIR
    words = replace(pair, prompt_a="x", prompt_b="y", template="another {}")
    sentence = replace(pair, prompt_a="x", prompt_b="y", attribute_a="old", attribute_b="young")
    fresh = replace(words, attribute_a="old", attribute_b="young")
    assert "1 of the 2 pairs measured also chose" in verdict.warnings([pair], [pair, fresh])[0]
    assert "1 of the 1 sentences measured also chose" in verdict.warnings([pair], [sentence])[0]
    assert "1 of the 1 word pairs measured also chose" in verdict.warnings([pair], [words])[0]
    assert verdict.warnings([pair], [fresh]) == []


def test_decisions_are_told_in_nats(tiny, measured, tmp_path):
    path = tmp_path / "page.html"
    fl.write_report(path, model=tiny, model_name="x", **measured)
    text = " ".join(Page(path).text.split())
    table = measured["comparison"].table
    row = table[(table.measure == "decision") & (table.row == "headline")].iloc[0]
    told = text.split("Who is treated worse")[1]
    assert f"decision gap, mean over categories {row.before:.4g}" in told
    assert f"{row.change:+.3f} {row.low:+.3f} … {row.high:+.3f}" in told
    numbers = text.split("The numbers")[1].split("Who is treated worse")[0]
    assert "decision gap," not in numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "page.txt"}, "path: expected a name that ends in .html; got"),
        ({"model": tiny_model(intermediate_size=25)}, "model has 3 layers of 25"),
        ({"chosen_on": []}, "pairs: expected at least one"),
        ({"several": True}, "comparison: expected one selection; got cut, b"),
        ({"gates": True}, "expected a NeuronSelection; got NeuronGates"),
        ({"headline": False}, "expected one row of the gap, headline"),
    ],
)
def test_bad_input_writes_nothing(tiny, measured, tmp_path, changes, message):
    options = {"path": "page.html", "model": tiny, "model_name": "x", **measured, **changes}
    comparison = options["comparison"]
    if options.pop("several", False):
        comparison = replace(comparison, selections={"cut": CUT, "b": CUT})
    if options.pop("gates", False):
        gates = fl.NeuronGates({0: {1: (0.5, 0)}}, CUT.shape)
        comparison = replace(comparison, selections={"cut": gates})
    if not options.pop("headline", True):
        table = comparison.table
        comparison = replace(comparison, table=table[table.row != "headline"])
    options |= {"path": tmp_path / options["path"], "comparison": comparison}
    with pytest.raises(ValueError, match=message):
        fl.write_report(**options)
    assert not list(tmp_path.iterdir())


def test_the_card_says_what_the_report_says(written, monkeypatch):
    class Base:
        data = huggingface_hub.ModelCardData(
            license="other", license_name="own", license_link="LICENSE"
        )

    monkeypatch.setattr(card_module.ModelCard, "load", lambda name: Base)
    facts = strict(written.with_suffix(".json"))
    card = fl.model_card(written.with_suffix(".json"))
    header = yaml.safe_load(card.content.split("---")[1])
    assert header == card.data.to_dict()
    assert header["base_model"] == f"org/{HOSTILE}"
    assert (header["license"], header["license_name"], header["license_link"]) == (
        "other",
        "own",
        "LICENSE",
    )
    assert (header["tags"], header["library_name"]) == (["fairlab", "pruned"], "transformers")
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
        "Out-of-scope use",
    ):
        assert line.replace("<", "&lt;") in card.text


def test_the_licence_is_the_base_models_or_left_out(written, monkeypatch):
    facts = strict(written.with_suffix(".json"))

    def card(name, **options):
        facts["model"]["name"] = name
        written.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
        return fl.model_card(written.with_suffix(".json"), **options).data.to_dict()

    def offline(name):
        raise OSError("no Hub")

    monkeypatch.setattr(card_module.ModelCard, "load", offline)
    default = card(fl.DEFAULT_MODEL)
    assert (default["base_model"], default["license"]) == (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "apache-2.0",
    )
    second = card("gemma-3-270m")
    assert (second["base_model"], second["license"]) == ("google/gemma-3-270m", "gemma")
    hub = card("org/model")
    assert hub["base_model"] == "org/model" and "license" not in hub
    folder = card("folder")
    assert "base_model" not in folder and "license" not in folder
    assert card("folder", license="mit")["license"] == "mit"


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
    fl.model_card(written.with_suffix(".json")).save(folder / "README.md")
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
