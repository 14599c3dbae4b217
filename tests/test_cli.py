import inspect
import io
import json
import math
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from pair_files import SENTENCES, WORDS, rows_of, write_rows
from typer.testing import CliRunner

import fairlab as fl
from fairlab import cli, files
from fairlab.cli import estimate
from fairlab.cli.measure import Material, stand_in
from fairlab.cli.options import DEFAULT, Text
from fairlab.cli.output import emit
from fairlab.cli.pairs import PairOptions, start_of
from fairlab.cli.plan import digest_of_code
from fairlab.evaluation import compare as comparing
from fairlab.evaluation.readings import bits_of
from fairlab.evaluation.rows import PART
from fairlab.files import load_text
from fairlab.report.verdict import diagnosis
from fairlab.statistics import jackknife_interval
from tiny_models import tiny_model

ROOT = Path(__file__).parent.parent
CUT = ["--fraction", "0.1", "--method", "article", "--pairs", "article"]
COMMANDS = ("diagnose", "score", "prune", "compare", "report")
CUTTING = ("prune", "compare", "report")


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """Save a tiny Llama with the default tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    fl.save_model(tiny_model(), tokenizer, folder)
    return folder


@pytest.fixture
def run(folder, capfd, monkeypatch, tmp_path_factory):
    """Run the command line on the tiny model and a short text; return exit code, standard output
    and error."""
    text = "The tide comes in twice a day, and twice a day it goes out again. " * 5
    monkeypatch.setattr(fl, "load_text", lambda name, language="en": text)
    # longer texts would show no more here, and beam search takes its time
    monkeypatch.setattr("fairlab.cli.reports.NEW_TOKENS", 4)
    cache = tmp_path_factory.mktemp("cache") / "fairlab" / "readings"
    monkeypatch.setattr(files, "readings_folder", lambda: cache)
    # on a busy computer the clock could make a notice out of milliseconds
    for clock in ("paces_of", "reading_paces"):
        monkeypatch.setattr(f"fairlab.cli.measure.{clock}", lambda *given: estimate.Paces(0, 0))

    def run(command, *options):
        arguments = [command, "--model", folder, *options]
        if command == "cache" or "--model" in options:
            arguments = [command, *options]
        given = {"--selection", "--changed"} & set(options)
        if command in CUTTING and not given:  # of so small a model the default is no neuron
            arguments[1:1] = ["--fraction", "0.1"]
        monkeypatch.setattr(sys, "argv", ["fairlab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capfd.readouterr()

    return run


@pytest.fixture
def pairs_csv(tmp_path):
    """Write a function that writes a CSV file of pairs."""

    def write(rows, name="pairs.csv"):
        return write_rows(tmp_path / name, rows)

    return write


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_help_comes_at_once():
    """Importing the command line imports neither torch nor transformers."""
    code = (
        "import sys, fairlab.cli; "
        "print([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
    assert DEFAULT == fl.DEFAULT_MODEL


def test_version_and_the_short_name_of_help():
    told = CliRunner().invoke(cli.app, ["--version"])
    assert (told.exit_code, told.output) == (0, f"fairlab {fl.__version__}\n")
    for arguments in (["-h"], ["prune", "-h"]):
        short = CliRunner().invoke(cli.app, arguments)
        long = CliRunner().invoke(cli.app, [*arguments[:-1], "--help"])
        assert short.exit_code == 0 and short.output == long.output


@pytest.mark.parametrize("command", ["diagnose", "score", "prune", "compare", "report"])
def test_each_command_has_help_with_an_example(command):
    result = CliRunner().invoke(cli.app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: fairlab {command}" in result.stdout
    for option in ("--model", "--pairs", "--device", "--dtype", "--out", "--json"):
        assert option in result.stdout
    assert "--skip-invalid" in result.stdout


def test_check_has_help_with_an_example_and_its_exit_codes():
    result = CliRunner().invoke(cli.app, ["check", "--help"])
    assert result.exit_code == 0
    assert "Example: fairlab check mine.csv --fix valid.csv" in result.stdout
    assert "2: there are problems" in " ".join(result.stdout.split())
    for option in ("--model", "--fix", "--force", "--json"):
        assert option in result.stdout


def test_diagnose_measures_what_the_functions_do(run, folder, tmp_path):
    code, out, _ = run("diagnose", "--pairs", "race", "--out", tmp_path / "d.csv", "--json")
    assert code == 0
    rows = strict(out)["categories"]
    assert [(row["kind"], row["category"]) for row in rows] == [
        ("demographic", "race"), ("neutral", "mood"), ("neutral", "time"),
    ]  # fmt: skip
    model, tokenizer = fl.load_model(folder)
    pairs = fl.load_pairs("race")
    assert rows[0]["gap"] == pytest.approx(
        fl.next_token_divergence(model, tokenizer, pairs).mean().item(), rel=1e-4
    )
    race = [(pair.template, f"{pair.attribute_a}/{pair.attribute_b}") for pair in pairs]
    gaps = fl.next_token_divergence(model, tokenizer, pairs).double().numpy()
    columns = np.stack([gaps, np.ones(len(gaps))], 1)
    ends = jackknife_interval(
        columns, lambda sums: sums[:, 0] / sums[:, 1], [*zip(*race, strict=True)]
    )
    assert [rows[0]["low"], rows[0]["high"]] == pytest.approx(list(ends), rel=1e-4)
    table = pd.read_csv(tmp_path / "d.csv")
    assert len(table) == sum(row["pairs"] for row in rows)
    assert table.metric[3] == pytest.approx(fl.article_metric(model, tokenizer, pairs[3]), rel=1e-4)
    assert rows[0]["metric"] == pytest.approx(
        table[table.category == "race"].metric.mean(), rel=1e-4
    )
    facts = strict(out)
    assert facts["weights_sha256"] == bits_of(model) and facts["dtype"] == "float32"
    assert facts["environment"]["torch"] == torch.__version__
    assert [pair["gap"] for pair in facts["pairs"]] == pytest.approx(table.gap.tolist(), rel=1e-4)
    assert facts["pairs"][3]["prompt_a"] == pairs[3].prompt_a and facts["failed"] == []
    assert facts["sentences"] == diagnosis(pd.DataFrame(rows))


def test_diagnose_fails_where_a_bound_is_met(run, monkeypatch):
    options = ["diagnose", "--pairs", "race"]
    code, out, _ = run(*options)
    assert code == 0 and "The gap is that of race" in out.split("\n\n")[1]
    bounds = ["--fail-if", "gap>0", "--fail-if", "largest_gap>1", "--fail-if", "neutral_gap<1"]
    code, out, err = run(*options, *bounds, "--json")
    facts = strict(out)
    gaps = [pair["gap"] for pair in facts["pairs"] if pair["kind"] == "neutral"]
    expected = [
        f"gap is {facts['categories'][0]['gap']:.4g}, so gap>0 holds",
        f"neutral_gap is {np.mean(gaps):.4g}, so neutral_gap<1 holds",
    ]
    assert (code, facts["failed"]) == (3, expected)
    assert [line for line in err.split("\n") if "--fail-if" in line] == [
        f"fairlab: --fail-if: {line}" for line in expected
    ]
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    code, _, err = run(*options, "--fail-if", "perplexity_change>0")
    assert code == 2 and "with one of the names gap, largest_gap, neutral_gap, decision; got" in err


ANSWERS = ["--outcomes", "deny, reject/approve, grant"]
IN_COLUMNS = {"harsher": "deny, reject", "kinder": "approve,grant"}


@pytest.mark.parametrize("where", ["option", "columns"])
def test_diagnose_says_who_is_treated_worse(run, pairs_csv, folder, where):
    path = pairs_csv(rows_of(SENTENCES, **(IN_COLUMNS if where == "columns" else {})))
    options = ["diagnose", "--pairs", path, *(ANSWERS if where == "option" else [])]
    code, out, _ = run(*options, "--fail-if", "decision<9", "--json")
    facts = strict(out)
    pairs = fl.check_file(path).valid
    lists = fl.Outcomes(("deny", "reject"), ("approve", "grant"))
    outcomes = {pair.template: lists for pair in pairs}
    gaps = fl.decision_gap(*fl.load_model(folder), pairs, outcomes=outcomes)
    assert [row["decision"] for row in facts["pairs"][: len(pairs)]] == pytest.approx(
        gaps.tolist(), abs=1e-6
    )
    # neutral words in the same sentences have the same answers
    assert all(row["decision"] is not None for row in facts["pairs"])
    (own, *neutral) = facts["categories"]
    assert own["decision"] == pytest.approx(gaps.mean().item(), abs=1e-6)
    assert own["decision_low"] < own["decision"] < own["decision_high"]
    told = [line for line in facts["sentences"] if line.startswith("Decisions, ")]
    assert len(told) == 1 + len(neutral) == 3
    assert f"({own['decision']:+.3f} nats, interval" in told[0]
    size = abs(own["decision"])
    assert (code, facts["failed"]) == (3, [f"decision is {size:.4g}, so decision<9 holds"])


def test_without_answers_diagnose_measures_no_decisions(run, pairs_csv):
    code, out, _ = run("diagnose", "--pairs", pairs_csv(rows_of(SENTENCES)), "--json")
    facts = strict(out)
    assert code == 0 and "decision" not in facts["pairs"][0]
    assert not [line for line in facts["sentences"] if line.startswith("Decisions")]


@pytest.mark.parametrize("where", ["option", "columns"])
def test_a_comparison_judges_by_answers_of_ones_own(run, pairs_csv, comparisons, tmp_path, where):
    path = pairs_csv(rows_of(SENTENCES, **(IN_COLUMNS if where == "columns" else {})))
    options = ["--pairs", path, *(ANSWERS if where == "option" else []), "--method", "article"]
    options += ["--fraction", "0.1", "--n-random", "2", "--out", tmp_path / "p.html"]
    code, _, err = run("report", *options)
    assert code == 0, err
    ((arguments, _, measured),) = comparisons
    held_out = arguments[3]
    lists = fl.Outcomes(("deny", "reject"), ("approve", "grant"))
    assert {held_out.outcomes[pair.template] for pair in held_out.everything} == {lists}
    assert "decision" in set(measured.table["measure"])
    facts = strict((tmp_path / "p.json").read_text(encoding="utf-8"))
    if where == "option":
        assert facts["method"]["answers, harsher / kinder"] == ANSWERS[1]


@pytest.mark.parametrize(
    ("options", "columns", "message"),
    [
        (["--pairs", "race", *ANSWERS], {}, "outcomes: they are for the sentences of a file"),
        (ANSWERS, IN_COLUMNS, "outcomes: a file has answers in the columns harsher and kinder"),
        (["--outcomes", "deny,grant"], {}, "outcomes: expected harsher answers, a slash, and"),
        (["--outcomes", "deny/"], {}, "outcomes: kinder: expected answers without blanks"),
        (["--outcomes", "a/b/c"], {}, 'such as "deny,reject/approve,grant"; got'),
        ([], {"harsher": "deny"}, "rows of"),
    ],
)
def test_answers_are_checked_before_the_model_loads(
    run, pairs_csv, monkeypatch, options, columns, message
):
    path = pairs_csv(rows_of(SENTENCES, **columns))
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    given = options if "--pairs" in options else ["--pairs", path, *options]
    code, out, err = run("diagnose", *given)
    assert (code, out) == (2, "") and message in err


def test_answers_that_the_tokenizer_merges_are_refused_before_the_model_loads(
    run, pairs_csv, monkeypatch
):
    def refuse(tokenizer, pairs, outcomes):
        assert {pair.template for pair in pairs} == set(outcomes) <= set(SENTENCES)
        raise ValueError("outcomes: the tokenizer merges them")

    monkeypatch.setattr("fairlab.decisions.check_outcomes", refuse)
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    path = pairs_csv(rows_of(SENTENCES))
    for command in (["diagnose"], ["compare", "--fraction", "0.1"]):
        code, _, err = run(*command, "--pairs", path, *ANSWERS)
        assert code == 2 and "the tokenizer merges them" in err


@pytest.mark.parametrize("chat", ["answer", "message"])
def test_prompts_go_through_the_chat_template(run, tmp_path, tokenizer, chat):
    out = tmp_path / "race.csv"
    code, *_ = run("diagnose", "--pairs", "race", "--chat", chat, "--out", out)
    assert code == 0
    table = pd.read_csv(out)
    assert set(table["chat"]) == {chat}
    assert set(table["kind"]) == {"demographic", "neutral"}
    request = {"answer": {}, "message": {"request": None}}[chat]
    expected = fl.chat_pairs(tokenizer, fl.load_pairs("race"), **request)
    prompts = table["prompt_a"][table["kind"] == "demographic"]
    assert list(prompts) == [pair.prompt_a for pair in expected]


def test_choosing_and_judging_go_through_the_chat_template(run, monkeypatch):
    seen = {}

    def stop(model, tokenizer, pairs, neutral, **options):
        seen["chosen on"] = {pair.chat for pair in (*pairs, *neutral)}
        return fl.NeuronSelection({0: (1,)}, (3, 24))

    def judged(model, tokenizer, selections, held_out, **options):
        seen["judged on"] = {pair.chat for pair in held_out.everything}
        raise ValueError("far enough")

    monkeypatch.setattr(fl, "guarded_cut", stop)
    monkeypatch.setattr(fl, "compare", judged)
    code, _, error = run("compare", "--pairs", "race", "--chat", "answer")
    assert (code, error.strip().splitlines()[-1]) == (2, "fairlab: far enough")
    assert seen == {"chosen on": {"answer"}, "judged on": {"answer"}}


def test_a_missing_chat_template_is_refused_before_the_model_loads(run, folder, monkeypatch):
    monkeypatch.setattr(fl, "load_model", None)  # calling it would fail
    code, _, error = run("score", "--chat", "yes")
    assert (code, error) == (2, "fairlab: chat: expected one of answer, message; got 'yes'\n")
    base = fl.load_tokenizer(folder)
    base.chat_template = None
    monkeypatch.setattr("fairlab.models.load_tokenizer", lambda name: base)
    code, _, error = run("diagnose", "--chat", "answer")
    assert code == 2
    assert error.startswith("fairlab: tokenizer: it has no chat template")


def test_score_lists_the_neurons(run, folder, tmp_path):
    options = ["--pairs", "race", "--method", "activation+vow", "--bias-weight", "0.8"]
    code, out, _ = run("score", *options, "--out", tmp_path / "s.csv", "--json")
    assert code == 0
    top = strict(out)["top"]
    model, tokenizer = fl.load_model(folder)
    train = fl.load_pairs("race", split="train")
    bias = fl.bias_scores(model, tokenizer, train, method="activation")
    scores = fl.hybrid_scores(bias, fl.importance_scores(model, method="vow"), bias_weight=0.8)
    assert len(top) == 20
    assert [row["score"] for row in top] == pytest.approx(
        scores.flatten().sort(descending=True).values[:20].tolist()
    )
    for row in top:
        assert row["score"] == pytest.approx(scores[row["layer"], row["neuron"]].item())
        assert row["bias"] == pytest.approx(bias[row["layer"], row["neuron"]].item())
    assert len(pd.read_csv(tmp_path / "s.csv")) == scores.numel()
    assert run("score", *options)[1].split()[:5] == [
        "layer",
        "neuron",
        "score",
        "bias",
        "importance",
    ]


def test_causal_scores_are_guarded(run, folder, tmp_path):
    code, out, _ = run(
        "score", "--pairs", "race", "--method", "attribution", "--out", tmp_path / "s.csv", "--json"
    )
    assert code == 0
    model, tokenizer = fl.load_model(folder)
    demographic, neutral = (
        fl.bias_scores(
            model,
            tokenizer,
            pairs,
            method="attribution",
            relative=True,
        )
        for pairs in (
            fl.load_pairs("race", split="train"),
            fl.load_pairs(kind="neutral", split="train"),
        )
    )
    text = fl.load_text("calibration")
    fisher = fl.importance_scores(model, method="fisher", tokenizer=tokenizer, text=text)
    scores = fl.guarded_scores(demographic, fisher, neutral=neutral).flatten()
    listed = [math.nan if row["score"] is None else row["score"] for row in strict(out)["top"]]
    best = scores.sort(descending=True).values[:20]
    assert listed == pytest.approx(
        best.where(best.isfinite(), math.nan).tolist(), rel=1e-4, nan_ok=True
    )
    cut = fl.select_neurons(
        fl.guarded_scores(demographic, fisher, neutral=neutral), fraction=0.1, scope="model"
    )
    options = ["--pairs", "race", "--method", "attribution", "--fraction", "0.1"]
    selection = strict(run("prune", *options, "--out", tmp_path / "cut", "--json")[1])["selection"]
    assert {int(layer): tuple(some) for layer, some in selection["neurons"].items()} == dict(
        cut.neurons
    )
    assert "attribution, guarded, 36 pairs" in selection["how"]


def test_without_a_method_the_cut_is_the_guarded_one(run, folder, tmp_path):
    options = ["--pairs", "race", "--fraction", "0.1", "--out", tmp_path / "cut", "--json"]
    selection = strict(run("prune", *options)[1])["selection"]
    race, neutral = (
        fl.load_pairs("race", split="train"),
        fl.load_pairs(kind="neutral", split="train"),
    )
    text = fl.load_text("calibration")
    expected = fl.guarded_cut(*fl.load_model(folder), race, neutral, text=text, fraction=0.1)
    assert {int(layer): tuple(some) for layer, some in selection["neurons"].items()} == dict(
        expected.neurons
    )
    assert "guarded, 36 pairs, 139 neutral ones" in selection["how"]


def test_prune_is_the_surgery_of_the_functions(run, folder, tmp_path):
    code, out, _ = run("prune", *CUT, "--out", tmp_path / "cut", "--json")
    assert code == 0
    facts = strict(out)
    model, tokenizer = fl.load_model(folder)
    bias = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    scores = fl.hybrid_scores(bias, fl.importance_scores(model, method="maw"), bias_weight=0.5)
    expected = fl.select_neurons(scores, fraction=0.1)
    selection = fl.NeuronSelection.from_json(
        (tmp_path / "cut" / "selection.json").read_text(encoding="utf-8")
    )
    assert selection.neurons == expected.neurons
    assert facts["selection"] == json.loads(selection.to_json())
    cut = fl.prune(model, expected)
    assert facts["parameters_after"] == cut.num_parameters() < facts["parameters_before"]
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert torch.equal(
        again.model.layers[1].mlp.up_proj.weight, cut.model.layers[1].mlp.up_proj.weight
    )


def test_compare_chooses_on_training_pairs_and_measures_on_held_out_ones(
    run, folder, tmp_path, monkeypatch
):
    seen, kept, original = {}, [], fl.compare

    def compare(model, tokenizer, selections, held_out, **options):
        seen.update(options, pairs=held_out.pairs, neutral=held_out.neutral)
        if not kept:
            kept.append(original(model, tokenizer, selections, held_out, **options))
        return kept[0]

    monkeypatch.setattr(fl, "compare", compare)
    options = [
        *CUT,
        "--pairs",
        "race",
        "--n-random",
        "2",
        "--seed",
        "5",
        "--out",
        tmp_path / "c.csv",
    ]
    code, out, _ = run("compare", *options, "--json")
    assert code == 0
    assert all(
        pair.split == pair.attribute_split == "held_out"
        for pair in (*seen["pairs"], *seen["neutral"])
    )
    assert {pair.category for pair in seen["pairs"]} == {"race"}
    facts = strict(out)
    assert facts["seed"] == seen["seed"] == 5
    table = pd.read_csv(tmp_path / "c.csv")
    assert len(facts["rows"]) == len(table)
    assert table.change.tolist() == pytest.approx(
        [row["change"] for row in facts["rows"]], rel=1e-4
    )
    sentences = run("compare", *options, "--force")[1].strip().split("\n")
    assert sentences == [*(row["sentence"] for row in facts["rows"]), "Measured in float32."]
    code, _, errors = run("compare", *options)
    assert (code, "c.csv exists" in errors) == (2, True)


def test_report_writes_page_and_numbers(run, tmp_path):
    code, out, _ = run(
        "report", *CUT, "--pairs", "race", "--n-random", "2", "--out", tmp_path / "r.html"
    )
    assert code == 0
    facts = strict((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert out.startswith(" ".join(facts["verdict"]))
    assert facts["warnings"] == []
    assert {pair["split"] for pair in facts["pairs"]["chosen_on"]} == {"train"}
    assert {pair["split"] for pair in facts["pairs"]["measured_on"]} == {"held_out"}
    assert len(facts["texts"]) == 4
    for text in facts["texts"]:
        assert list(text["written"]) == ["before", "article"]
        for written in text["written"].values():
            assert written and not written.startswith(text["prompt"])
    assert "<h2>What the model writes</h2>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_file_is_split_by_sentence(run, pairs_csv, tmp_path):
    path = pairs_csv(rows_of(SENTENCES))
    code, _, err = run(
        "report",
        *CUT,
        "--pairs",
        path,
        "--n-random",
        "1",
        "--out",
        tmp_path / "r.html",
        "--neutral",
        path,
    )
    assert code == 0, err
    facts = strict((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert {pair["template"] for pair in facts["pairs"]["chosen_on"]} == {
        SENTENCES[0],
        SENTENCES[2],
    }
    assert {pair["template"] for pair in facts["pairs"]["measured_on"]} == {SENTENCES[1]}
    assert (
        "2 of the 2 word pairs measured also chose the neurons, in other sentences"
        in facts["warnings"][0]
    )
    # the sentences of the neutral file that are held out judge
    assert {pair["template"] for pair in facts["pairs"]["neutral"]} == {SENTENCES[1]}
    assert facts["method"]["neutral pairs"] == path.name


def test_a_file_with_splits_keeps_them(run, pairs_csv, monkeypatch):
    rows = rows_of(SENTENCES[:1], split="held_out") + rows_of(SENTENCES[1:], split="train")

    def compare(model, tokenizer, selections, held_out, **options):
        pytest.fail(str([pair.split for pair in held_out.pairs]))

    monkeypatch.setattr(fl, "compare", compare)
    with pytest.raises(pytest.fail.Exception, match=r"\['held_out', 'held_out'\]"):
        run("compare", *CUT, "--pairs", pairs_csv(rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["compare", "--pairs", "rase"], "category: expected one of age, appearance"),
        (["score", "--method", "magic"], "method: expected one of"),
        (["score", "--method", "article+magic"], "method: expected one of"),
        (["score", "--method", "guarded+maw"], "method: expected one of"),
        (
            ["score", "--method", "activation+vow", "--neutral-words", "a/b, c/d"],
            "neutral_words: activation+vow takes no neutral pairs",
        ),
        (["prune", "--fraction", "0.001", "--out", "cut"], "is less than one neuron"),
        (["report", "--out", "page.txt"], "out: expected a name that ends in .html"),
        (["diagnose", "--pairs", "missing.csv"], "path: no such file: missing.csv"),
        (["diagnose", "--device", "moon"], "device: expected 'auto' or a device"),
        (["diagnose", "--model", "no such"], "name: expected"),
    ],
)
def test_bad_input_is_one_line_and_code_2(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("fairlab: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pairs", "rase"], "category: expected one of age, appearance"),
        (["--pairs", "missing.csv"], "path: no such file: missing.csv"),
        (["--pairs", "blank.csv"], "pairs: 1 of 2 rows of blank.csv"),
        (["--neutral", "blank.csv"], "neutral: 1 of 2 rows of blank.csv"),
        (["--method", "magic"], "method: expected one of guarded, activation"),
        (["--method", "article+magic"], "method: expected one of maw"),
        (["--method", "guarded+maw"], "method: expected one of activation"),
        (["--bias-weight", "2"], "bias_weight: expected a number from 0 to 1; got 2.0"),
        (["--fraction", "2"], "fraction: expected a float between 0 and 1"),
        (["--language", "it"], "language: expected one of de, en, es, fr; got 'it'"),
        (["--language", "fr"], "language: expected one of en, es for demographic pairs"),
        (["--language", "es", "--pairs", "article"], "language: the article's pair is in English"),
        (["--neutral-words", "tired/hungry"], "neutral_words: expected at least two pairs of"),
        (["--neutral-words", "a/b, c/d", "--neutral", "blank.csv"], "expected one of them"),
        (["--text", "missing.txt"], "text: no such file: missing.txt"),
        (["--text", "empty.txt"], "text: empty.txt is empty"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_loads(
    run, pairs_csv, tmp_path, monkeypatch, command, options, message
):
    monkeypatch.setattr(fl, "load_text", load_text)  # it knows the languages
    takes = dict.fromkeys(("--neutral", "--neutral-words", "--language", "--pairs"), COMMANDS)
    takes["--text"] = ("compare", "report")
    takes |= {"--fraction": ("prune", "compare", "report")}
    if command not in takes.get(options[0], COMMANDS[1:]):
        pytest.skip("has no such option")
    monkeypatch.chdir(tmp_path)
    rows = rows_of(SENTENCES[:1])
    rows[1]["prompt_a"] += " "
    pairs_csv(rows, "blank.csv")
    Path("empty.txt").write_text("\n", encoding="utf-8")
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    out = {"prune": ["--out", "cut"], "report": ["--out", "page.html"]}.get(command, [])
    code, _, err = run(command, *options, *out)
    assert code == 2 and message in err


UNEQUAL = rows_of(SENTENCES, (("Emily", "Lakisha"),))  # 1 and 3 tokens
TWICE = [  # two places, of one word each
    {"prompt_a": "The old man saw a black cat and", "prompt_b": "The young man saw a white cat and"}
]


@pytest.mark.parametrize(
    ("commands", "options", "message"),
    [
        (COMMANDS, ["--pairs", "twice.csv"], "prompts differ in more than one place"),
        (COMMANDS, ["--neutral", "twice.csv"], "neutral: 1 of 1 rows of twice.csv have problems"),
        (
            COMMANDS,
            ["--neutral", "twice.csv", "--skip-invalid"],
            "neutral: 1 of 1 rows of twice.csv have problems",
        ),
        (
            ("score", "prune"),
            ["--method", "patching", "--neutral", "unequal.csv"],
            "neutral: in 2 of 2 neutral pairs that choose the neurons the two prompts differ in",
        ),
        (("compare", "report"), ["--pairs", "one.csv"], "nothing in one.csv is held out"),
        (("score", "prune"), ["--pairs", "held_out.csv"], "is of the split train, and those"),
        (("compare", "report"), ["--text", "short.txt"], "expected more than 128 tokens"),
        (
            ("compare", "report"),
            ["--method", "article,guarded", "--neutral", "held_out.csv"],
            "neutral: no pair of these is of the split train: held_out.csv",
        ),
        (("score", "prune"), ["--neutral", "held_out.csv"], "is of the split train: held_out.csv"),
        (("compare", "report"), ["--neutral", "train.csv"], "of the split held_out: train.csv"),
        (
            COMMANDS[1:],
            ["--pairs", "unequal.csv", "--method", "article"],
            "article compares token by token; take --method guarded",
        ),
        (CUTTING, ["--fraction", "0.01"], "0.01 of 24 neurons is less than one neuron"),
        (
            CUTTING,
            ["--method", "attribution", "--fraction", "0.01"],
            "0.01 of 72 neurons is less than one neuron",
        ),
        (("compare", "report"), ["--selection", "cut.json"], "made for 3 layers of 25 neurons"),
        (("compare", "report"), ["--selection", "gates.json"], "made for 3 layers of 25 neurons"),
        (("compare", "report"), ["--changed", "other"], "as other tokens than the original does"),
        (("compare", "report"), ["--changed", "padded"], "predicts 49,216 tokens and the original"),
        (
            ("compare", "report"),
            ["--changed", "mixture"],
            "mixture is a mixture of experts; fairlab",
        ),
    ],
)
def test_what_needs_no_weights_is_refused_before_they_are_read(
    run, pairs_csv, tokenizer, bos_tokenizer, tmp_path, monkeypatch, commands, options, message
):
    monkeypatch.chdir(tmp_path)
    pairs_csv(TWICE, "twice.csv")
    pairs_csv(rows_of(SENTENCES[:1]), "one.csv")
    pairs_csv(rows_of(SENTENCES, split="train"), "train.csv")
    pairs_csv(rows_of(SENTENCES, split="held_out"), "held_out.csv")
    pairs_csv(UNEQUAL, "unequal.csv")
    Path("short.txt").write_text("Two", encoding="utf-8")
    cut = fl.NeuronSelection({0: (1,)}, (3, 25))
    Path("cut.json").write_text(cut.to_json(), encoding="utf-8")
    gates = fl.NeuronGates({0: {1: (0.5, 0.0)}}, (3, 25))
    Path("gates.json").write_text(gates.to_json(), encoding="utf-8")
    if "other" in options:
        fl.save_model(tiny_model(), bos_tokenizer, tmp_path / "other")
    if "padded" in options:
        model = tiny_model()
        model.resize_token_embeddings(49216)
        fl.save_model(model, tokenizer, tmp_path / "padded")
    if "mixture" in options:  # a configuration is enough
        config = transformers.MixtralConfig(num_hidden_layers=1)
        config.save_pretrained(tmp_path / "mixture")
        Path("mixture/model.safetensors").touch()
        tokenizer.save_pretrained(tmp_path / "mixture")
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    outputs = {"prune": ["--out", "m"], "report": ["--out", "page.html"]}
    for command in commands:
        code, out, err = run(command, *options, *outputs.get(command, []))
        assert (code, out) == (2, ""), command
        assert message in err.strip().splitlines()[-1]
        assert not Path("m").exists() and not Path("page.html").exists()


@pytest.mark.parametrize(("method", "count"), [("attribution", 28), ("article", 27)])
def test_a_share_of_the_model_may_be_more_than_a_layer_has(run, folder, monkeypatch, method, count):
    """40 % of 72 neurons are 28, and a layer has 24."""

    def stop(*arguments, **options):
        raise ValueError("far enough")

    monkeypatch.setattr(fl, "load_model", stop)
    code, _, err = run("compare", "--pairs", "race", "--method", method, "--fraction", "0.4")
    assert (code, err) == (2, "fairlab: far enough\n")
    some = stand_in(types.SimpleNamespace(fraction=0.4), tiny_model(), method)
    assert (len(some), max(map(len, some.neurons.values()))) == (count, 10 - (count == 27))


def test_a_model_without_neurons_to_cut_is_refused_by_its_configuration(
    run, tokenizer, tmp_path, monkeypatch
):
    model = tiny_model("GPT-2")
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    for command in ("score", *CUTTING):
        code, _, err = run(command, "--model", tmp_path / "gpt2", "--out", tmp_path / "o.html")
        assert code == 2 and "is not a gated linear unit" in err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            rows_of(SENTENCES[:1]),
            "is held out, and a cut measured on the pairs that chose it looks good",
        ),
        (rows_of(SENTENCES, split="held_out"), "none of the 6 pairs of"),
        (
            rows_of(SENTENCES, split="test"),
            "row 2, split: split must be train, validation or held_out; got 'test'",
        ),
        (
            rows_of(SENTENCES, [("Emily", "Lakisha")]),
            "in 2 of 2 pairs that choose the neurons the two prompts differ in their number of "
            "tokens, and article compares token by token; take --method guarded",
        ),
    ],
)
def test_files_that_allow_no_comparison_are_refused(run, pairs_csv, rows, message):
    code, out, err = run("compare", *CUT, "--pairs", pairs_csv(rows))
    assert (code, out) == (2, "")
    *notices, error = err.strip().split("\n")
    assert message in error
    unequal = [notice for notice in notices if "differ in their number of tokens" in notice]
    assert len(unequal) == ("Lakisha" in rows[0]["prompt_b"])  # what is unequal is told before


@pytest.mark.parametrize("command", ["diagnose", "score", "prune", "compare", "report"])
@pytest.mark.parametrize("skip", [True, False])
def test_every_command_can_leave_invalid_rows_out(run, tmp_path, monkeypatch, command, skip):
    asked = []

    def pairs_of_file(tokenizer, path, skip_invalid, argument="pairs"):
        asked.append((Path(path).name, skip_invalid))
        if path.endswith("neutral.tsv") or command in ("score", "prune"):
            raise ValueError("far enough")
        return fl.load_pairs("race")

    monkeypatch.setattr("fairlab.cli.pairs.pairs_of_file", pairs_of_file)
    for place in ("commands", "plan"):  # there are no such files
        monkeypatch.setattr(f"fairlab.cli.{place}.check_pair_options", lambda *given: None)
    options = ["--pairs", "mine.csv", *["--skip-invalid"] * skip]
    expected = [("mine.csv", skip)]
    if command not in ("score", "prune"):
        options += ["--neutral", "neutral.tsv"]
        expected += [("neutral.tsv", skip)]
    code, _, err = run(command, *options, "--out", tmp_path / "out.html")
    assert (code, err, asked) == (2, "fairlab: far enough\n", expected)


def test_diagnose_measures_what_is_left_of_a_file(run, pairs_csv):
    path = pairs_csv(rows_of(SENTENCES) + rows_of(SENTENCES[:1], [("old", "old")]))
    code, out, err = run("diagnose", "--pairs", path)
    assert (code, out) == (2, "")
    assert f"1 of 7 rows of {path} have problems: row 8: " in err
    assert f"(fairlab check {path} lists them all; --skip-invalid leaves these rows out)" in err
    code, out, err = run("diagnose", "--pairs", path, "--skip-invalid", "--json")
    assert (code, strict(out)["categories"][0]["pairs"]) == (0, 6)
    assert err.startswith(f"fairlab: 1 of 7 rows of {path} left out, not valid:\n  row 8: ")


@pytest.fixture
def used(monkeypatch):
    """Record which pairs and texts choose and judge, and choose no neuron."""
    seen = {}

    def guarded_cut(model, tokenizer, pairs, neutral, *, text, **options):
        seen.update(choosing=pairs, choosing_neutral=neutral, calibration=text)
        return fl.NeuronSelection({0: (1,)}, (2, 16))

    def compare(model, tokenizer, selections, held_out, **options):
        seen.update(judging=held_out.pairs, neutral=held_out.neutral, text=held_out.text)
        raise ValueError("far enough")

    monkeypatch.setattr(fl, "guarded_cut", guarded_cut)
    monkeypatch.setattr(fl, "compare", compare)
    monkeypatch.setattr(fl, "load_text", load_text)
    return seen


def words_of(pairs):
    return {word for pair in pairs for word in (pair.attribute_a, pair.attribute_b)}


def templates_of(pairs):
    return {pair.template for pair in pairs}


@pytest.mark.parametrize("command", ["compare", "report"])
def test_neutral_pairs_of_a_file_stand_in_its_own_sentences(
    run, used, pairs_csv, tmp_path, command
):
    path = pairs_csv(rows_of(SENTENCES))
    code, _, err = run(command, "--pairs", path, *["--out", tmp_path / "r.html"])
    assert (code, err.endswith("fairlab: far enough\n")) == (2, True)
    assert templates_of(used["choosing"]) == {SENTENCES[0], SENTENCES[2]}
    assert templates_of(used["choosing_neutral"]) == templates_of(used["choosing"])
    assert templates_of(used["neutral"]) == templates_of(used["judging"]) == {SENTENCES[1]}
    own = {split: fl.load_pairs(kind="neutral", split=split) for split in ("train", "held_out")}
    assert words_of(used["choosing_neutral"]) == words_of(own["train"])
    assert words_of(used["neutral"]) == words_of(own["held_out"])
    # said once for the pairs that choose and once for those that judge, with two prompts each
    assert "fairlab's neutral words (en) put into 2 of 2 sentences, such as:" in err
    assert "  The tired man called the office, and\n" in err
    assert "  My curious friend read the letter. Then\n" in err
    assert err.count("such as:") == 2


@pytest.mark.parametrize("command", ["score", "prune"])
def test_score_and_prune_take_neutral_pairs_in_the_own_sentences(
    run, used, pairs_csv, tmp_path, monkeypatch, command
):
    def guarded_tables(model, tokenizer, pairs, neutral, **options):
        used.update(choosing=pairs, choosing_neutral=neutral)
        raise ValueError("far enough")

    monkeypatch.setattr("fairlab.recipes.guarded_tables", guarded_tables)
    run(command, "--pairs", pairs_csv(rows_of(SENTENCES)), "--out", tmp_path / "out")
    assert templates_of(used["choosing_neutral"]) == templates_of(used["choosing"])
    assert "tired" in words_of(used["choosing_neutral"])


def test_spanish_pairs_have_spanish_words_and_texts(run, used, pairs_csv):
    sentences = ("La mujer {} esperaba", "La señora {} comía", "La clienta {} pagó")
    path = pairs_csv(rows_of(sentences, [("negra", "blanca")]))
    run("compare", "--pairs", path, "--language", "es")
    assert {"feliz", "del jueves"} <= words_of(used["choosing_neutral"])
    assert {"prudente", "de marzo"} <= words_of(used["neutral"])
    assert used["calibration"] == load_text("calibration", "es")
    assert load_text("evaluation", "es").startswith(used["text"])
    facts = PairOptions(str(path), None, None, "es", False).facts
    assert facts["language"] == "Spanish" and "(es)" in facts["neutral pairs"]
    assert "language" not in PairOptions(str(path), None, None, "en", False).facts
    # fairlab's own Spanish pairs are read in Spanish, too
    run("compare", "--pairs", "race", "--language", "es")
    assert templates_of(used["choosing"]) == templates_of(
        fl.load_pairs("race", language="es", split="train")
    )
    assert any(pair.prompt_a.startswith("La persona feliz") for pair in used["choosing_neutral"])


def test_without_a_file_nothing_changes(run, used, tokenizer):
    _, _, err = run("compare", "--pairs", "race")
    assert err == "fairlab: far enough\n"
    assert used["choosing_neutral"] == fl.load_pairs(kind="neutral", split="train")
    assert list(used["neutral"]) == fl.load_pairs(kind="neutral", split="held_out")
    assert used["calibration"] == load_text("calibration")
    ids = tokenizer(load_text("evaluation"), verbose=False).input_ids[:2048]
    assert used["text"] == tokenizer.decode(ids)


def test_neutral_words_of_ones_own_choose_and_judge(run, used, pairs_csv):
    path = pairs_csv(rows_of(SENTENCES))
    words = "wet/dry, big/small,early/late"
    _, _, err = run("compare", "--pairs", path, "--neutral-words", words)
    assert words_of(used["choosing_neutral"]) == {"wet", "dry", "early", "late"}
    assert words_of(used["neutral"]) == {"big", "small"}
    assert "the words given put into 2 of 2 sentences" in err


def test_a_neutral_file_chooses_and_judges_with_different_sentences(run, used, pairs_csv):
    path = pairs_csv(rows_of(SENTENCES))
    mood = pairs_csv(rows_of(SENTENCES, [("tired", "hungry")]), "mood.csv")
    run("compare", "--pairs", path, "--neutral", mood)
    assert templates_of(used["choosing_neutral"]) == {SENTENCES[0], SENTENCES[2]}
    assert templates_of(used["neutral"]) == {SENTENCES[1]}
    one = pairs_csv(rows_of(SENTENCES[:1], [("tired", "hungry")]), "one.csv")
    code, _, err = run("compare", "--pairs", path, "--neutral", one)
    assert code == 2 and "neutral: no pair of these is of the split held_out: one.csv" in err


def test_the_text_of_ones_own_is_the_one_read(run, used, tmp_path):
    path = tmp_path / "prose.txt"
    prose = "The tide comes in twice a day, and twice a day it goes out again. " * 20
    path.write_text(f"\n{prose}\n", encoding="utf-8")
    run("compare", "--text", path)
    assert used["text"] == prose.strip()
    assert f"the first {PART:,} tokens are" in Text.__metadata__[0].help
    path.write_text(prose[:400], encoding="utf-8")
    code, _, err = run("compare", "--text", path)
    assert code == 2
    assert "text: expected more than 128 tokens, since an interval needs two blocks of 64" in err


def test_diagnose_says_which_control_was_taken(run, pairs_csv):
    path = pairs_csv(rows_of(SENTENCES))
    facts = strict(run("diagnose", "--pairs", path, "--json")[1])
    assert facts["neutral pairs"] == "neutral words in the sentences of the pairs: fairlab's (en)"
    mood = next(row for row in facts["categories"] if row["category"] == "mood")
    assert (mood["kind"], mood["templates"]) == ("neutral", 3)


def test_the_report_says_which_control_and_text_were_taken(run, pairs_csv, tmp_path):
    path = pairs_csv(rows_of(SENTENCES))
    prose = tmp_path / "prose.txt"
    prose.write_text("The tide comes in twice a day, and it goes out. " * 20, encoding="utf-8")
    page = tmp_path / "r.html"
    options = ["--pairs", path, "--text", prose, "--n-random", "1", "--out", page]
    code, _, err = run("report", *CUT[:-2], *options)
    assert code == 0, err
    facts = strict(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert facts["method"]["text"] == "prose.txt"
    assert "in the sentences of the pairs" in facts["method"]["neutral pairs"]
    assert {pair["template"] for pair in facts["pairs"]["neutral"]} == {SENTENCES[1]}
    assert "prose.txt" in page.read_text(encoding="utf-8")


def test_words_in_sampled_texts_are_counted_for_the_report(run, pairs_csv, tmp_path):
    path, page = pairs_csv(rows_of(SENTENCES)), tmp_path / "r.html"
    options = ["--pairs", path, "--n-random", "1", "--quick", "--out", page]
    code, _, err = run("report", *CUT[:-2], *options, "--continuations", "2")
    assert code == 0, err
    facts = strict(page.with_suffix(".json").read_text(encoding="utf-8"))
    held_out = [pair for pair in fl.check_file(path).valid if pair.split == "held_out"]
    rows = facts["continuations"]
    names = ["before", *(judged["name"] for judged in facts["methods"]), "a random cut"]
    assert [row["name"] for row in rows] == 2 * names
    assert {row["pairs"] for row in rows} == {len(held_out)}
    assert rows[0]["sentence"] in page.read_text(encoding="utf-8")
    for option, message in (
        (["--continuations", "-1"], "continuations: expected 0 or more; got -1"),
        (["--continuations", "1", "--language", "de"], "continuations: the words that are counted"),
    ):
        code, _, err = run("report", *options[:-1], tmp_path / "other.html", *option)
        assert code == 2 and message in err


NAMES = (("Emily", "Lakisha"), ("Carrie", "Latoya"))  # 1 and 3 tokens, 2 and 2


def test_pairs_of_unequal_length_are_measured(run, folder, pairs_csv, tmp_path):
    path, out = pairs_csv(rows_of(SENTENCES, NAMES)), tmp_path / "d.csv"
    code, printed, err = run("diagnose", "--pairs", path, "--out", out, "--json")
    assert code == 0
    assert f"\nfairlab: in 3 of 6 pairs of {path} the two prompts differ in their " in err
    assert err.count("differ in their number") == 1
    model, tokenizer = fl.load_model(folder)
    pairs, table = fl.check_file(path).valid, pd.read_csv(out)
    gaps = fl.next_token_divergence(model, tokenizer, pairs).tolist()
    assert table.gap[:6].tolist() == pytest.approx(gaps, rel=1e-4)
    assert table.metric[:6].isna().tolist() == [True, False] * 3
    assert table.metric[3] == pytest.approx(fl.article_metric(model, tokenizer, pairs[3]), rel=1e-4)
    row = strict(printed)["categories"][0]
    assert row["pairs"] == 6 and row["metric"] == pytest.approx(table.metric[:6].mean(), rel=1e-4)

    path = pairs_csv(rows_of(SENTENCES, NAMES[:1]))
    code, printed, _ = run("diagnose", "--pairs", path, "--json")
    assert (code, strict(printed)["categories"][0]["metric"]) == (0, None)


def test_names_are_cut_compared_and_reported(run, folder, pairs_csv, tmp_path):
    path, page = pairs_csv(rows_of(SENTENCES, NAMES)), tmp_path / "r.html"
    options = ["--pairs", path, "--fraction", "0.1", "--n-random", "1"]
    code, _, err = run("report", *options, "--out", page)
    assert code == 0, err
    facts = strict(page.with_suffix(".json").read_text(encoding="utf-8"))
    counts = {(row["measure"], row["row"]): row["pairs"] for row in facts["results"]}
    assert (counts["gap", "category"], counts["metric", "category"]) == (2, 1)
    assert "In 1 of the 2 pairs measured the two prompts differ" in facts["warnings"][-1]
    assert "differ in their number of tokens" in page.read_text(encoding="utf-8")
    # a quick look measures no article metric, and warns all the same
    assert run("report", *options, "--quick", "--force", "--out", page)[0] == 0
    again = strict(page.with_suffix(".json").read_text(encoding="utf-8"))["warnings"]
    assert "A quick look" in again[0] and again[1:] == facts["warnings"]
    # the article's method can't choose on them: they are left out, and told
    options = ["--pairs", path, "--fraction", "0.1", "--method", "article", "--json"]
    code, out, err = run("prune", *options, "--out", tmp_path / "cut")
    assert code == 0 and "and article compares token by token: the others choose" in err
    chosen = [pair for pair in fl.check_file(path).valid[1::2] if pair.split == "train"]
    selection = fl.article_cut(*fl.load_model(folder), chosen, fraction=0.1)
    assert strict(out)["selection"]["neurons"] == json.loads(selection.to_json())["neurons"]


def test_an_unknown_option_is_code_2():
    assert CliRunner().invoke(cli.app, ["prune", "--colour", "red"]).exit_code == 2


def test_a_failure_that_is_no_input_keeps_its_traceback(run, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(fl, "load_model", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run("score")


def test_the_article_surgery_on_the_default_model_in_one_line(model, tmp_path):
    command = [
        sys.executable,
        "-m",
        "fairlab",
        "prune",
        "--method",
        "article",
        "--pairs",
        "article",
    ]
    command += ["--out", tmp_path / "pruned"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    removed = (
        30 * 3 * 3 * model.config.hidden_size
    )  # layers × neurons × rows and columns of a neuron
    assert again.num_parameters() == model.num_parameters() - removed
    assert f"{again.num_parameters():,} after; saved in {tmp_path}" in done.stdout
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "pruned")
    text = again.generate(
        **tokenizer(fl.ARTICLE_PAIR.prompt_a, return_tensors="pt"), max_new_tokens=3
    )
    assert torch.isfinite(again(text).logits).all()


@pytest.mark.parametrize("as_json", [False, True])
def test_letters_that_a_terminal_lacks_are_no_reason_to_fail(as_json, monkeypatch):
    """A Windows terminal in cp1252, and words in another script."""
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(cli, "app", lambda: emit({"word": "κόσμος"}, as_json, "κόσμος"))
    cli.main()
    terminal.flush()
    printed = terminal.buffer.getvalue()
    if as_json:
        assert json.loads(printed) == {"word": "κόσμος"}
    else:
        assert printed.strip() == "κόσμος".encode("cp1252", "backslashreplace")


def test_what_was_measured_is_printed_before_it_is_written(monkeypatch, capsys, tmp_path):
    table = pd.DataFrame({"gap": [0.1]})
    with pytest.raises(OSError):
        emit({}, False, "the gap is 0.1", table, tmp_path)
    assert capsys.readouterr().out == "the gap is 0.1\n"


# ---- compare and report: what is judged, and what is kept


@pytest.fixture
def few(pairs_csv):
    """Return options that make a comparison short: three sentences, also as neutral pairs."""
    path = pairs_csv(rows_of(SENTENCES))
    return ["--pairs", path, "--neutral", path, "--fraction", "0.1", "--n-random", "2"]


@pytest.fixture
def few_pairs(few):
    """Return the same options for a cut that is given: there is nothing to choose."""
    return [option for option in few if option not in ("--fraction", "0.1")]


@pytest.fixture
def reads(monkeypatch):
    """Count what is measured; stop, as the user does, before a reading of that number."""
    original, calls = comparing.read_cut, []

    def read_cut(model, tokenizer, held_out, cut, **options):
        calls.append(cut)
        if len(calls) == calls_before_stop[0]:
            raise KeyboardInterrupt
        return original(model, tokenizer, held_out, cut, **options)

    calls_before_stop = [None]
    monkeypatch.setattr(comparing, "read_cut", read_cut)
    return calls, calls_before_stop


@pytest.fixture
def comparisons(monkeypatch):
    """Keep what fairlab.compare is given and returns."""
    seen, original = [], fl.compare

    def compare(*arguments, **options):
        seen.append((arguments, options, original(*arguments, **options)))
        return seen[-1][2]

    monkeypatch.setattr(fl, "compare", compare)
    return seen


def test_a_stopped_comparison_goes_on_where_it_was(run, few, reads, tmp_path):
    calls, stop = reads
    options = ["compare", *few, "--method", "article", "--out", tmp_path / "c.csv", "--json"]
    stop[0] = 3
    code, out, err = run(*options)
    assert (code, out) == (130, "")
    last = err.splitlines()[-1]
    assert last.startswith("fairlab: stopped; what was done (1 chosen cut, 2 readings) is kept in ")
    assert "the same command goes on from there" in last
    assert not (tmp_path / "c.csv").exists()
    code, resumed, _ = run(*options)
    # the uncut model, the cut and two random cuts are four, and two of them were kept
    assert (code, len(calls)) == (0, 3 + 2)
    again = run(*options, "--force", "--no-cache")[1]
    assert strict(again) == strict(resumed) and len(calls) == 3 + 2 + 4


def test_where_nothing_is_kept_a_stop_says_so(run, few, reads, tmp_path, monkeypatch):
    calls, stop = reads
    page = ["--out", tmp_path / "r.html"]
    for options, said in (
        (["--no-cache"], "nothing was kept"),
        ([], "what was done (1 chosen cut) is kept in "),
        ([], "nothing new was done"),
    ):
        stop[0] = len(calls) + 1
        code, out, err = run("report", *few, "--method", "article", *page, *options)
        assert (code, out) == (130, "")
        assert err.splitlines()[-1].startswith(f"fairlab: stopped; {said}")
        assert not list(tmp_path.glob("r.*"))


@pytest.fixture
def choices(monkeypatch):
    """Count what is chosen."""
    calls = []
    for name in ("guarded_cut", "article_cut"):
        recipe = getattr(fl, name)

        def choose(*arguments, recipe=recipe, **options):
            calls.append((recipe.__name__, options["fraction"]))
            return recipe(*arguments, **options)

        monkeypatch.setattr(fl, name, choose)
    return calls


def test_a_cut_is_chosen_once(run, few, pairs_csv, reads, choices, tmp_path):
    """As long as model, pairs and options are the same."""
    options = ["compare", *few, "--method", "guarded,article", "--quick", "--json"]
    reads[1][0] = 2
    assert run(*options)[0] == 130
    code, resumed, _ = run(*options)
    assert (code, choices) == (0, [("guarded_cut", 0.1), ("article_cut", 0.1)])
    assert strict(run(*options, "--no-cache")[1]) == strict(resumed)
    assert len(choices) == 4
    run(*options, "--fraction", "0.2")
    assert choices[4:] == [("guarded_cut", 0.2), ("article_cut", 0.2)]
    run("compare", *few, "--method", "article", "--bias-weight", "0.7", "--quick")
    assert len(choices) == 7
    # the same prompts in other categories weigh differently
    same = pairs_csv(rows_of(SENTENCES, category="x"), "same.csv")
    run(*options, "--pairs", same)
    assert len(choices) == 9
    for path in files.readings_folder().glob("*/cuts/*.json"):
        path.write_text("{", encoding="utf-8")
    assert run(*options)[1] == resumed and len(choices) == 11


def test_texts_are_sampled_once(run, few, tmp_path, monkeypatch, second_a_token):
    original, calls = fl.sample_continuations, []

    def sample(*arguments, **options):
        calls.append(options["seed"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(fl, "sample_continuations", sample)
    options = ["report", *few, "--method", "article", "--quick", "--continuations", "2"]
    code, _, err = run(*options, "--out", tmp_path / "r.html")
    assert code == 130 and "4 readings, 1 text sample) is kept in " in err
    assert run(*options, "--out", tmp_path / "r.html")[0] == 0
    assert len(calls) == 2 + 2  # before was kept; the cut and a random one were not
    assert run(*options, "--out", tmp_path / "again.html", "--no-cache")[0] == 0
    assert len(calls) == 4 + 3
    first, again = (
        strict((tmp_path / name).read_text(encoding="utf-8")) for name in ("r.json", "again.json")
    )
    assert first["continuations"] == again["continuations"]
    run(*options, "--out", tmp_path / "other.html", "--seed", "1")
    assert calls[7:] == [1, 1, 1]


def test_several_methods_share_the_random_cuts(run, few, reads, comparisons):
    methods = "article,activation,random"
    code, out, _ = run("compare", *few, "--method", methods, "--json")
    assert code == 0
    facts = strict(out)
    assert list(dict.fromkeys(row["selection"] for row in facts["rows"])) == methods.split(",")
    # the words of the file are the same in all sentences
    (shared,) = facts["warnings"]
    assert "2 of the 2 word pairs measured also chose the neurons" in shared
    ((_, _, measured),) = comparisons
    assert len(reads[0]) == 1 + 3 + 2  # uncut, three methods, two random cuts for all
    draws = measured.draws.drop(columns="selection").groupby(measured.draws.selection)
    first, *others = (part.reset_index(drop=True) for _, part in draws)
    for other in others:
        pd.testing.assert_frame_equal(first, other)
    cuts = measured.selections
    assert {layer: len(row) for layer, row in cuts["random"].neurons.items()} == {
        layer: len(row) for layer, row in cuts["article"].neurons.items()
    }
    drawn = fl.random_selections(cuts["article"], 3)
    assert cuts["random"] == drawn[2] and cuts["random"] not in drawn[:2]


def test_a_random_cut_alone_has_the_fraction_of_each_layer(run, few, comparisons):
    assert run("compare", *few, "--method", "random")[0] == 0
    (cut,) = comparisons[0][2].selections.values()
    assert {layer: len(row) for layer, row in cut.neurons.items()} == {0: 2, 1: 2, 2: 2}


@pytest.mark.parametrize(
    ("command", "asked", "known"),
    [
        ("score", "recommended", ["guarded"]),
        ("compare", "recommended,article", ["guarded", "article"]),
    ],
)
def test_recommended_is_the_guarded_recipe(run, monkeypatch, command, asked, known):
    seen = []

    def check_choice(method, *rest, **more):
        seen.append(method)

    monkeypatch.setattr("fairlab.cli.plan.check_choice", check_choice)
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail(str(seen)))
    with pytest.raises(pytest.fail.Exception, match=re.escape(str(known))):
        run(command, "--method", asked)


def test_a_report_of_several_methods_has_a_verdict_for_each(run, few, tmp_path):
    page = tmp_path / "r.html"
    code, out, err = run("report", *few, "--method", "article,random", "--out", page, "--quick")
    assert code == 0, err
    assert out.startswith("article: ") and "\nrandom: " in out
    assert "A quick look: few random cuts" in out
    facts = strict(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert facts["method"]["score"] == "article, random"
    assert facts["method"]["bias weight"] == 0.5
    assert "A quick look" in facts["method"]["quick look"]
    assert {pair["split"] for pair in facts["pairs"]["chosen_on"]} == {"train"}


def test_a_report_of_a_cut_says_that_its_pairs_are_not_known(run, few_pairs, tmp_path):
    cut = fl.NeuronSelection({0: (1, 5), 2: (0,)}, (3, 24), "by hand")
    given = tmp_path / "mine.json"
    given.write_text(cut.to_json(), encoding="utf-8")
    page = tmp_path / "r.html"
    code, _, err = run("report", *few_pairs, "--selection", given, "--out", page)
    assert code == 0, err
    facts = strict(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert facts["pairs"]["chosen_on"] == [] and facts["settings"]["pairs that chose"] is None
    assert "not known" in facts["warnings"][0]
    assert facts["method"]["cut"] == "given, in mine.json"
    assert str(tmp_path) not in page.read_text(encoding="utf-8")
    (row,) = [r for r in facts["results"] if (r["measure"], r["row"]) == ("gap", "headline")]
    assert (row["selection"], row["n_random"]) == ("mine", 2)


def test_gates_are_judged_like_a_cut(run, few_pairs, comparisons, tmp_path):
    gates = fl.NeuronGates({0: {1: (0.5, 0.0)}}, (3, 24), "by hand")
    (tmp_path / "gates.json").write_text(gates.to_json(), encoding="utf-8")
    code, _, err = run("compare", *few_pairs, "--selection", tmp_path / "gates.json")
    assert code == 0, err
    assert comparisons[0][2].selections == {"gates": gates}


def test_a_cut_for_another_model_is_refused(run, few_pairs, tmp_path):
    cut = fl.NeuronSelection({0: (1,)}, (3, 25))
    (tmp_path / "other.json").write_text(cut.to_json(), encoding="utf-8")
    code, out, err = run("compare", *few_pairs, "--selection", tmp_path / "other.json")
    assert (code, out) == (2, "") and "made for 3 layers of 25 neurons" in err


@pytest.mark.parametrize(
    ("step", "error", "code", "end"),
    [
        ("write_report", OSError("no space left"), 2, "fairlab: no space left\n"),
        ("sample_continuations", ValueError("too long"), 2, "fairlab: too long\n"),
        ("generate", KeyboardInterrupt(), 130, "fairlab: stopped; nothing was kept\n"),
    ],
)
def test_what_was_measured_is_seen_where_no_page_can_be_made(
    run, few, tmp_path, monkeypatch, step, error, code, end
):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(fl, step, fail)
    page = tmp_path / "r.html"
    options = ["--method", "article", "--continuations", "1", "--no-cache", "--out", page]
    ended, out, err = run("report", *few, *options)
    assert (ended, out) == (code, "")
    assert "article: the gap (mean over categories) changes by" in err
    assert err.endswith(end) and not page.exists()


def test_a_changed_folder_is_judged_as_its_cut(run, few_pairs, tmp_path):
    cut = ["--method", "article", "--fraction", "0.1"]
    assert run("prune", *few_pairs[:2], *cut, "--out", tmp_path / "cut")[0] == 0
    code, out, err = run("compare", *few_pairs, "--changed", tmp_path / "cut", "--json")
    assert code == 0, err
    changed = pd.DataFrame(strict(out)["rows"])
    given = run(
        "compare", *few_pairs, "--selection", tmp_path / "cut" / "selection.json", "--json"
    )[1]
    given = pd.DataFrame(strict(given)["rows"])
    assert set(changed.selection) == {"cut"} and set(given.selection) == {"selection"}
    # the article's metric is a mean over dimensions, of which a pruned model has fewer
    changed, given = (
        t[t.measure != "metric"].drop(columns=["selection", "sentence"]) for t in (changed, given)
    )
    pd.testing.assert_frame_equal(changed, given, rtol=1e-5, atol=1e-6)
    assert (changed.n_random == 2).all()


def test_a_changed_model_without_its_cut_has_no_random_cuts(
    run, few_pairs, folder, tokenizer, tmp_path
):
    model, _ = fl.load_model(folder)
    model.model.layers[1].mlp.down_proj.weight.data *= 0.5
    fl.save_model(model, tokenizer, tmp_path / "tuned")
    code, out, err = run("compare", *few_pairs, "--changed", tmp_path / "tuned", "--json")
    assert code == 0, err
    rows = strict(out)["rows"]
    assert {(row["n_random"], row["random_low"]) for row in rows} == {(0, None)}
    gap = next(row for row in rows if (row["measure"], row["row"]) == ("gap", "headline"))
    assert gap["change"] != 0 and gap["neutral_change"] != 0 and gap["flattening_scale"] is not None
    assert gap["neutral_in_range"] is None
    assert "; no random cuts beside it; neutral prompts by" in gap["sentence"]


def test_a_changed_model_with_another_tokenizer_is_refused(
    run, few_pairs, folder, bos_tokenizer, tmp_path
):
    fl.save_model(fl.load_model(folder)[0], bos_tokenizer, tmp_path / "other")
    code, out, err = run("compare", *few_pairs, "--changed", tmp_path / "other")
    assert (code, out) == (2, "")
    assert "as other tokens than the original does; only models with one vocabulary" in err


def test_a_home_that_no_shell_has_expanded_is_one_for_every_step(run, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.chdir(tmp_path)
    options = ["score", "--method", "activation", "--out=~/x.csv"]
    assert run(*options)[0] == 0 and (home / "x.csv").is_file()
    code, _, err = run(*options)
    assert code == 2 and "exists; choose another name" in err
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("command", ["compare", "report", "prune"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "article,magic"], "patching, random; got 'magic'"),
        (["--method", "article,article"], "method: expected each method once"),
        (["--method", "article", "--selection", "s.json"], "method, selection: expected one"),
        (["--selection", "s.json", "--changed", "x"], "selection, changed: expected one of them"),
        (["--selection", "missing.json"], "selection: no such file: missing.json"),
        (["--selection", "s.json"], "selection: s.json is no cut that fairlab wrote (text: "),
        (["--changed", "missing"], "name: expected"),
        (["--changed", "x", "--fraction", "0.1"], "fraction: changed is judged as it is"),
        (["--selection", "s.json", "--bias-weight", "0.3"], "bias_weight: selection is judged"),
        (["--n-random", "0"], "n_random: expected at least 1 random cut; got 0"),
        (["--batch-size", "1"], "batch_size: expected a whole number of at least 2"),
        (["--fail-if", "gap"], "fail_if: expected a name, > or <, and a number"),
        (["--cache", "s.json"], "cache: s.json can't be written"),
        (["--cache", "c", "--no-cache"], "cache, no_cache: expected one of them; got both"),
        (["--cache", "~no.one/c"], "cache: expected a path; got a name that can't be looked up"),
        (["--changed", "~no.one/m"], "changed: expected a path; got a name that can't be looked"),
        (["--changed", ""], "changed: expected a path; got ''"),
        (["--neutral", ""], "neutral: expected a path; got ''"),
    ],
)
def test_what_can_not_be_judged_is_said_before_the_model_loads(
    run, tmp_path, monkeypatch, command, options, message
):
    if command == "prune" and options[0] in ("--method", "--selection", "--changed", "--fail-if"):
        pytest.skip("chooses one cut")
    monkeypatch.chdir(tmp_path)
    Path("s.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    outputs = {"report": ["--out", "p.html"], "prune": ["--out", "m", "--report", "p.html"]}
    code, out, err = run(command, *options, *outputs.get(command, []))
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"s.json", "c"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--card"], "card: it is made from the report; add --report report.html"),
        (["--report", "page.txt"], "report: expected a name that ends in .html"),
        (["--report", "m/page.html"], "report: in the model's folder the page has to be m/report"),
        (["--report", "there.html"], "report: "),
        (["--license", "mit"], "license: only the model card says this; add --card"),
        (["--license-link", "x", "--base-model", "a/b"], "license_link, base_model: only the"),
        (["--report", "p.html", "--card", "--license", "my own"], "license: expected"),
        (["--report", "p.html", "--card", "--license", "other"], "license_name: the license"),
        (["--card-language", "it"], "card_language: only the model card says this; add --card"),
        (
            ["--report", "p.html", "--card", "--card-language", "Italian"],
            "card_language: expected a code",
        ),
        (["--method", "random"], "method: expected one of guarded, activation"),
        (["--method", "article,guarded"], "method: expected one of guarded, activation"),
        (["--seed", "0"], "seed: only a report needs this; add --report report.html"),
        (["--quick", "--no-cache"], "quick, no_cache: only a report needs this"),
        (["--text", "there.html", "--n-random", "5"], "text, n_random: only a report needs this"),
        (["--cache", "c"], "cache: only a report needs this"),
        (
            ["--method", "article", "--neutral", "there.csv"],
            "neutral, neutral_words: article takes no neutral pairs; leave them out, or take "
            "--method guarded",
        ),
    ],
)
def test_what_prune_can_not_write_is_said_before_the_model_loads(
    run, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    Path("there.html").write_text("mine", encoding="utf-8")
    Path("there.csv").write_text("prompt_a,prompt_b\nA b,A c\n", encoding="utf-8")
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    code, out, err = run("prune", "--out", "m", *options)
    assert (code, out) == (2, "") and message in err
    assert {path.name for path in tmp_path.iterdir()} == {"there.html", "there.csv"}


def test_prune_measures_reports_cuts_and_describes_in_one_run(
    run, few, tokenizer, comparisons, tmp_path
):
    """The source is bfloat16: all is measured in float32, and saved as it came."""
    fl.save_model(tiny_model(dtype=torch.bfloat16), tokenizer, tmp_path / "source")
    out = tmp_path / "cut"
    options = ["--model", tmp_path / "source", *few, "--method", "article"]
    options += ["--out", out, "--report", out / "report.html", "--card", "--json"]
    options += ["--license", "other", "--license-name", "own", "--license-link", "https://a.b/c"]
    options += ["--card-language", "it, de"]
    code, printed, err = run("prune", *options)
    assert code == 0, err
    told, page = strict(printed), strict((out / "report.json").read_text(encoding="utf-8"))
    saved = json.loads((out / "selection.json").read_text(encoding="utf-8"))
    ((_, _, measured),) = comparisons
    assert saved == told["selection"] == page["selection"]
    assert saved == json.loads(measured.selections["article"].to_json())
    assert page["model"]["dtype"] == measured.dtype == "float32"
    card = (out / "README.md").read_text(encoding="utf-8")
    assert page["model"]["weights_sha256"] in card and "license_name: own" in card
    assert "license_link: https://a.b/c" in card and "language:\n- it\n- de\n" in card
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert again.dtype == torch.bfloat16 and told["dtype"] == "bfloat16"
    expected = fl.prune(tiny_model(dtype=torch.bfloat16), measured.selections["article"])
    for name, tensor in expected.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("as_json", [False, True])
def test_what_was_found_is_printed_before_it_is_saved(run, few, tmp_path, monkeypatch, as_json):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fl, "save_model", full)
    page = tmp_path / "r.html"
    options = ["--method", "article", "--out", tmp_path / "cut", "--report", page]
    code, out, err = run("prune", *few, *options, *["--json"] * as_json)
    assert code == 2 and err.endswith("No space left on device\n")
    facts = strict(page.with_suffix(".json").read_text(encoding="utf-8"))
    if as_json:
        printed = strict(out)
        assert printed["verdict"] == " ".join(facts["verdict"])
        assert printed["selection"] == facts["selection"]
    else:
        assert " ".join(facts["verdict"]) in out and "NeuronSelection(6 neurons in" in out
    assert "saved in" not in out


def papers_of(folder):
    """Read what lies in a folder beside weights, tokenizer and configuration."""
    texts = {}
    for path in folder.iterdir():
        named = path.name in ("report.json", "selection.json")
        if named or path.suffix in (".html", ".md", ".txt"):
            texts[path.name] = path.read_text(encoding="utf-8")
    return texts


@pytest.fixture
def cut_before(run, few, tmp_path):
    """Make a cut model with page and card, the way to make another in its place, and its papers."""
    out = tmp_path / "cut"
    options = [*few, "--method", "article", "--license", "mit", "--quick", "--out", out]
    options += ["--report", out / "report.html", "--card"]
    assert run("prune", *options)[0] == 0
    assert set(papers_of(out)) == {"README.md", "report.html", "report.json", "selection.json"}
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    return out, [*options, "--force", "--fraction", "0.2"], papers_of(out)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_stop_at_any_moment_leaves_a_model_with_its_own_papers(
    run, cut_before, monkeypatch, moment
):
    """Not new weights beside the old selection, and not the old ones beside the new page."""
    out, again, papers = cut_before
    bits = bits_of(fl.load_model(out)[0])
    exchange = files._exchange

    def stop(folder, fresh):
        if moment == "after":
            exchange(folder, fresh)
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "_exchange", stop)
    code, _, err = run("prune", *again)
    assert (code, "fairlab: stopped; what was done" in err) == (130, True)
    found = papers_of(out)
    if moment == "before":
        assert found == papers and bits_of(fl.load_model(out)[0]) == bits
        return
    assert found.pop("notes.txt") == "mine"
    cut = fl.NeuronSelection.from_json(found["selection.json"])
    assert (len(cut), cut.shape[1] - len(cut.neurons[0])) == (12, 20)
    assert fl.load_model(out)[0].config.intermediate_size == 20
    assert json.loads(found["report.json"])["selection"] == json.loads(found["selection.json"])
    assert "# tiny" in found["README.md"] and "12 of 72 MLP neurons" in found["README.md"]


def test_what_is_said_of_the_model_before_goes_with_it(run, few, cut_before):
    out, _, papers = cut_before
    options = ["prune", *few[:4], "--method", "guarded", "--fraction", "0.2", "--out", out]
    code, _, err = run(*options)
    assert (code, papers_of(out)) == (2, papers) and "holds " in err
    code, _, err = run(*options, "--force")
    assert code == 0, err
    found = papers_of(out)
    assert set(found) == {"selection.json", "notes.txt"}
    assert "guarded" in found["selection.json"] and "article" in papers["selection.json"]
    # a README that is no card of fairlab is somebody's own
    (out / "README.md").write_text("mine", encoding="utf-8")
    assert run(*options, "--force")[0] == 0
    assert papers_of(out)["README.md"] == "mine"


@pytest.mark.parametrize("command", [*COMMANDS, "check", "cache"])
def test_a_command_that_is_stopped_says_so(run, pairs_csv, tmp_path, monkeypatch, command):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    for place in ("fairlab.models.load_tokenizer", "fairlab.files.readings_folder"):
        monkeypatch.setattr(place, stop)
    path = [] if command == "cache" else [pairs_csv(rows_of(SENTENCES))]
    path = ["--pairs", *path] if command in COMMANDS else path
    more = ["--fraction", "0.1", "--out", tmp_path / "out.html"]
    more = {"diagnose": [], "score": [], "check": [], "cache": []}.get(command, more)
    assert run(command, *path, *more) == (130, "", "fairlab: stopped\n")


@pytest.mark.parametrize("command", ["diagnose", "score"])
def test_a_measurement_that_is_stopped_says_so(run, monkeypatch, command):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(fl, "load_model", stop)
    code, out, err = run(command, "--pairs", "race")
    assert (code, out, err) == (130, "", "fairlab: stopped\n")


def test_a_prune_that_is_stopped_while_it_saves_says_so(run, few, tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(fl, "save_model", stop)
    options = [*few[:2], "--method", "article", "--fraction", "0.1", "--out", tmp_path / "cut"]
    code, out, err = run("prune", *options)
    assert code == 130 and "NeuronSelection(" in out
    assert err.endswith("fairlab: stopped; nothing was kept\n")


@pytest.mark.parametrize(("asked", "saved"), [("auto", "bfloat16"), ("float32", "float32")])
def test_a_cut_model_has_the_dtype_of_its_source_or_the_one_asked_for(
    run, few, tokenizer, tmp_path, asked, saved
):
    fl.save_model(tiny_model(dtype=torch.bfloat16), tokenizer, tmp_path / "source")
    options = ["--model", tmp_path / "source", *few[:2], "--method", "article"]
    options += ["--fraction", "0.1", "--out", tmp_path / "cut", "--dtype", asked]
    code, out, err = run("prune", *options)
    assert code == 0, err
    assert out.endswith(f"saved in {tmp_path / 'cut'}, {saved}\n")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert str(again.dtype) == f"torch.{saved}"


def test_a_quick_look_is_short_and_says_so(run, few, comparisons):
    options = [*few, "--method", "article", "--n-random", "9", "--batch-size", "4", "--quick"]
    code, out, _ = run("compare", *options)
    assert code == 0
    _, given, measured = comparisons[0]
    assert (given["n_random"], given["metric"], given["batch_size"]) == (5, False, 4)
    assert "metric" not in set(measured.table.measure)
    assert out.endswith(
        "A quick look: few random cuts, a short text, no article metric. Measure "
        "again without --quick before you conclude.\n"
    )
    assert start_of("one two three", FakeTokenizer(), 2) == "one two"


class FakeTokenizer:
    """Words as tokens."""

    def __call__(self, text, verbose):
        return type("Encoding", (), {"input_ids": text.split()})

    def decode(self, ids, skip_special_tokens):
        return " ".join(ids)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            ({"to choose": 60, "to measure": 170, "for texts": 8, "for sampled texts": 0}, 22, 0),
            "about 4 minutes: 60 seconds to choose, 3 minutes to measure, 8 seconds for texts; "
            "22 readings",
        ),
        (
            ({"to choose": 0, "to measure": 35}, 7, 14),
            "about 35 seconds: 35 seconds to measure; 7 readings, and 14 more kept from before",
        ),
        (({"to choose": 2, "to measure": 2.9}, 22, 0), ""),
        (({"to choose": 150},), "about 2 minutes: 2 minutes to choose"),
    ],
)
def test_the_time_is_told_in_words(capsys, facts, said):
    estimate.tell_time(*facts)
    assert capsys.readouterr() == ("", said and f"fairlab: {said}\n")


@pytest.fixture
def second_a_token(monkeypatch):
    """Let the clock say that a pass takes a thousand seconds, and a token one second."""

    def paces_of(plan, loaded, material, metric, page):
        return estimate.Paces(1000, 1, int(page), 1)

    monkeypatch.setattr("fairlab.cli.measure.paces_of", paces_of)
    monkeypatch.setattr(
        "fairlab.cli.measure.reading_paces", lambda *given: paces_of(None, *given[:2], None, False)
    )
    monkeypatch.setattr(estimate, "in_words", lambda seconds: f"{seconds:.0f} s")


def test_the_time_is_told_before_neurons_are_chosen(
    run, folder, few, tmp_path, monkeypatch, second_a_token
):
    """All that a report does is counted: each prompt and text, as often as it is read."""

    def stop(*arguments, **options):
        raise ValueError("far enough")

    monkeypatch.setattr(fl, "article_cut", stop)
    options = ["--method", "article,guarded", "--out", tmp_path / "r.html", "--continuations", "3"]
    code, _, err = run("report", *few, *options)
    *_, notice, end = err.strip().split("\n")  # before them: what the file leaves out
    assert (code, end) == (2, "fairlab: far enough")
    tokenizer = fl.load_tokenizer(folder)

    def count(*texts):
        return sum(len(tokenizer(text).input_ids) for text in texts)

    words = ("Black", "white", "young", "old")
    train = count(*(SENTENCES[i].replace("{}", word) for i in (0, 2) for word in words))
    held_out = count(*(SENTENCES[1].replace("{}", word) for word in words))
    text = count(fl.load_text("any"))
    # each pair is also a neutral one; guarded reads pairs and text forward and back
    choose = 1000 + train + 3 * (2000 + train + text)
    # uncut, two cuts, two random ones; then the flattening, which takes about as long as one
    measure = 6 * (2000 + held_out + text)
    texts = 3 * 35  # as it was and under two cuts, so many tokens after all prompts together
    # as it was, under two cuts and a random one, three times 30 tokens after four prompts
    sampled = 4 * 3 * (held_out + 30 * 4)
    total = choose + measure + texts + sampled
    assert notice == (
        f"fairlab: about {total} s: {choose} s to choose, {measure} s to measure, {texts} s for "
        f"texts, {sampled} s for sampled texts; 5 readings"
    )


@pytest.mark.parametrize("command", ["score", "prune"])
def test_the_time_is_told_where_neurons_are_only_chosen(
    run, folder, few, tmp_path, monkeypatch, second_a_token, command
):
    def stop(*arguments, **options):
        raise ValueError("far enough")

    monkeypatch.setattr(fl, "guarded_cut", stop)
    monkeypatch.setattr("fairlab.recipes.guarded_tables", stop)
    code, _, err = run(command, *few[:4], "--out", tmp_path / "out")
    tokenizer = fl.load_tokenizer(folder)
    texts = [SENTENCES[i].replace("{}", word) for i in (0, 2) for word in sum(WORDS, ())]
    tokens = sum(len(tokenizer(text).input_ids) for text in [*texts, fl.load_text("any")])
    seconds = 3 * (2000 + tokens)  # there and back: a pass of prompts and one of text
    notice = f"fairlab: about {seconds} s: {seconds} s to choose"
    assert (code, err.splitlines()[-2:]) == (2, [notice, "fairlab: far enough"])


def test_the_time_leaves_out_what_was_kept(run, few, reads, second_a_token):
    reads[1][0] = 3
    options = ["compare", *few, "--method", "article,random"]
    code, _, err = run(*options)
    assert code == 130 and " s to choose, " in err and "; 5 readings\n" in err
    code, _, err = run(*options)
    assert code == 0 and " to choose" not in err and " for texts" not in err
    assert "; 3 readings, and 2 more kept from before\n" in err
    assert "; 0 readings, and 5 more kept from before\n" in run(*options)[2]


def test_the_short_pass_reads_and_writes_what_the_plan_needs(folder):
    loaded, pairs = fl.load_model(folder), fl.load_pairs("race", split="held_out")
    neutral = fl.load_pairs(kind="neutral", split="held_out")
    held_out = fl.HeldOut(pairs, neutral, load_text("evaluation"))
    material = Material(pairs, {}, held_out)
    plan = types.SimpleNamespace(batch_size=32, continuations=0)
    paces = estimate.paces_of(plan, loaded, material, True, page=False)
    assert paces.start + paces.read > 0 and (paces.write, paces.sample) == (0, 0)
    plan.continuations = 1
    paces = estimate.paces_of(plan, loaded, material, True, page=True)
    assert paces.start + paces.read > 0 and paces.write > 0 and paces.sample >= 0
    default = inspect.signature(fl.sample_continuations).parameters["max_new_tokens"].default
    assert default == estimate.SAMPLED_TOKENS


def test_the_cache_is_shown_and_emptied(run, few, tmp_path):
    assert run("compare", *few, "--method", "article")[0] == 0
    cache = files.readings_folder()
    weights = cache.parent / "x-transformers-5" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"0" * 2_000_000)
    code, out, _ = run("cache", "--json")
    facts = strict(out)
    # four readings and the cut that was chosen
    assert (facts["readings"]["files"], facts["readings"]["removed"]) == (5, False)
    assert facts["unpacked weights"] == {"files": 1, "bytes": 2_000_000, "removed": False}
    code, out, _ = run("cache", "--clean")
    assert (
        code == 0 and f"In {cache.parent}:" in out and "unpacked weights: 1 file, 2.0 MB\n" in out
    )
    assert "readings: 5 files, 0.0 MB, removed" in out
    assert not cache.exists() and weights.exists()
    assert run("cache", "--clean-weights")[0] == 0
    assert not weights.parent.exists() and cache.parent.exists()


@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_bound_on_a_change_ends_with_code_3(run, few, tmp_path, command):
    options = [*few, "--method", "article,random", "--quick", "--json"]
    options += ["--fail-if", "perplexity_change>-1", "--fail-if", "gap>9"]
    code, out, err = run(command, *options, *["--out", tmp_path / "r.html"] * (command == "report"))
    assert code == 3
    failed = strict(out)["failed"]
    assert [line.partition(" is ")[0] for line in failed] == [
        "article: perplexity_change",
        "random: perplexity_change",
    ]
    assert err.endswith("".join(f"fairlab: --fail-if: {line}\n" for line in failed))
    assert err.count("--fail-if") == 2


def test_other_code_has_another_digest(tmp_path):
    """So that readings of older code are not taken for those of newer code."""
    (tmp_path / "room").mkdir()
    code = tmp_path / "room" / "a.py"
    code.write_text("x = 1", encoding="utf-8")
    first = digest_of_code(tmp_path)
    assert digest_of_code(tmp_path) == first
    code.write_text("x = 2", encoding="utf-8")
    assert digest_of_code(tmp_path) != first
    assert digest_of_code() != first
