import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from typer.testing import CliRunner

import fairlab as fl
from fairlab import cli
from fairlab.evaluation.readings import bits_of
from fairlab.report.verdict import diagnosis
from fairlab.statistics import jackknife_interval
from tiny_models import tiny_model

ROOT = Path(__file__).parent.parent
CUT = ["--fraction", "0.1", "--method", "article", "--pairs", "article"]
SENTENCES = (
    "The {} man called the office, and",
    "My {} friend read the letter. Then",
    "Two {} guests came to",
)
WORDS = (("Black", "white"), ("young", "old"))
COMMANDS = ("diagnose", "score", "prune", "compare", "report")


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
    monkeypatch.setattr(fl, "load_text", lambda name: text)

    def run(command, *options):
        arguments = [command, "--model", folder, *options]
        monkeypatch.setattr(sys, "argv", ["fairlab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capfd.readouterr()

    return run


@pytest.fixture
def pairs_csv(tmp_path):
    """Write a function that writes a CSV file of pairs."""

    def write(rows, name="pairs.csv"):
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


def rows_of(sentences, words=WORDS, **more):
    return [
        {"prompt_a": s.replace("{}", a), "prompt_b": s.replace("{}", b), **more}
        for s in sentences
        for a, b in words
    ]


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
    assert cli.DEFAULT == fl.DEFAULT_MODEL


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
    assert code == 2 and "with one of the names gap, largest_gap, neutral_gap; got" in err


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
        assert all(written.startswith(text["prompt"]) for written in text["written"].values())
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
    assert len(facts["pairs"]["neutral"]) == 6


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
        (["--pairs", "blank.csv"], "1 of 2 rows of blank.csv"),
        (["--neutral", "blank.csv"], "1 of 2 rows of blank.csv"),
        (["--method", "magic"], "method: expected one of guarded, activation"),
        (["--method", "article+magic"], "method: expected one of maw"),
        (["--method", "guarded+maw"], "method: expected one of activation"),
        (["--bias-weight", "2"], "bias_weight: expected a number from 0 to 1; got 2.0"),
        (["--fraction", "2"], "fraction: expected a float between 0 and 1"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_loads(
    run, pairs_csv, tmp_path, monkeypatch, command, options, message
):
    takes = {"--neutral": ("diagnose", "compare", "report"), "--pairs": COMMANDS}
    takes |= {"--fraction": ("prune", "compare", "report")}
    if command not in takes.get(options[0], COMMANDS[1:]):
        pytest.skip("has no such option")
    monkeypatch.chdir(tmp_path)
    rows = rows_of(SENTENCES[:1])
    rows[1]["prompt_a"] += " "
    pairs_csv(rows, "blank.csv")
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    out = {"prune": ["--out", "cut"], "report": ["--out", "page.html"]}.get(command, [])
    code, _, err = run(command, *options, *out)
    assert code == 2 and message in err


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
        (rows_of(SENTENCES, [("Black", "extraordinarily white")]), "3 of 3 rows of"),
    ],
)
def test_files_that_allow_no_comparison_are_refused(run, pairs_csv, rows, message):
    code, out, err = run("compare", *CUT, "--pairs", pairs_csv(rows))
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["diagnose", "score", "prune", "compare", "report"])
@pytest.mark.parametrize("skip", [True, False])
def test_every_command_can_leave_invalid_rows_out(run, tmp_path, monkeypatch, command, skip):
    asked = []

    def pairs_of_file(tokenizer, path, skip_invalid):
        asked.append((Path(path).name, skip_invalid))
        if path.endswith("neutral.tsv") or command in ("score", "prune"):
            raise ValueError("far enough")
        return fl.load_pairs("race")

    monkeypatch.setattr(cli, "pairs_of_file", pairs_of_file)
    monkeypatch.setattr(cli, "check_pairs_named", lambda *names: None)  # no such files
    options = ["--pairs", "mine.csv", *["--skip-invalid"] * skip]
    expected = [("mine.csv", skip)]
    if command not in ("score", "prune"):
        options += ["--neutral", "neutral.tsv"]
        expected += [("neutral.tsv", skip)]
    code, _, err = run(command, *options, "--out", tmp_path / "out.html")
    assert (code, err, asked) == (2, "fairlab: far enough\n", expected)


def test_diagnose_measures_what_is_left_of_a_file(run, pairs_csv):
    path = pairs_csv(
        rows_of(SENTENCES) + rows_of(SENTENCES[:1], [("Black", "extraordinarily white")])
    )
    code, out, err = run("diagnose", "--pairs", path)
    assert (code, out) == (2, "")
    assert f"1 of 7 rows of {path} have problems: row 8: " in err
    assert f"(fairlab check {path} lists them all; --skip-invalid leaves these rows out)" in err
    code, out, err = run("diagnose", "--pairs", path, "--skip-invalid", "--json")
    assert (code, strict(out)["categories"][0]["pairs"]) == (0, 6)
    assert err.startswith(f"fairlab: 1 of 7 rows of {path} left out, not valid:\n  row 8: ")


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
def test_letters_that_a_terminal_lacks_are_no_reason_to_fail(as_json):
    """A Windows terminal in cp1252, and words in another script."""
    emitted = f"cli.emit({{'word': 'κόσμος'}}, {as_json}, 'κόσμος')"
    code = f"from fairlab import cli; cli.app = lambda: {emitted}; cli.main()"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )
    if as_json:
        assert json.loads(run.stdout) == {"word": "κόσμος"}
    else:
        assert run.stdout.strip() == "κόσμος".encode("cp1252", "backslashreplace")


def test_what_was_measured_is_printed_before_it_is_written(monkeypatch, capsys, tmp_path):
    table = pd.DataFrame({"gap": [0.1]})
    with pytest.raises(OSError):
        cli.emit({}, False, "the gap is 0.1", table, tmp_path)
    assert capsys.readouterr().out == "the gap is 0.1\n"
