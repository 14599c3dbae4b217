"""The scripts that freeze the tables of data/results, tried without the default model."""

import copy
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import fairlab as fl
from fairlab.gating import GateTables
from fairlab.recipes import guarded_tables
from tiny_models import tiny_model

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "experiments"
HELPERS = ("frozen",)
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in HELPERS)


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Return a function that imports a script; what it writes goes to a folder of this test."""
    monkeypatch.syspath_prepend(FOLDER)
    names = [*HELPERS, *SCRIPTS]
    before = {name: sys.modules.pop(name, None) for name in names}
    frozen = importlib.import_module("frozen")
    monkeypatch.setattr(frozen, "BUILD", tmp_path / "build")
    monkeypatch.setattr(frozen, "RESULTS", tmp_path)
    yield importlib.import_module
    for name in names:
        sys.modules.pop(name, None)
        if before[name]:
            sys.modules[name] = before[name]


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(intermediate_size=96, hidden_size=16)


@pytest.fixture(scope="module")
def small():
    """Two categories and a short text."""
    pairs = fl.load_pairs("race", split="validation")[:2]
    pairs += fl.load_pairs("age", split="validation")[:2]
    neutral = fl.load_pairs(split="validation", kind="neutral")[:2]
    return fl.HeldOut(pairs, neutral, fl.load_text("evaluation")[:400])


def readme_rows() -> list[tuple[str, list[str]]]:
    """Read script and written files of each row of the table in experiments/README.md."""
    rows = []
    for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `") or line.startswith("| by hand"):
            cells = [cell.strip() for cell in line.split("|")]
            rows.append((cells[1].strip("`"), re.findall(r"`([^`]+)`", cells[2])))
    return rows


@pytest.mark.parametrize("name", SCRIPTS)
def test_importing_a_script_runs_nothing(load, name, monkeypatch):
    monkeypatch.setattr(fl, "load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    module = load(name)
    assert callable(module.main)
    assert module.__doc__.count(f"python experiments/{name}.py")


def test_scripts_import_from_helpers_alone():
    imports = re.compile(r"^(?:from|import) (\w+)", re.MULTILINE)
    for path in FOLDER.glob("*.py"):
        imported = set(imports.findall(path.read_text(encoding="utf-8")))
        assert not imported & set(SCRIPTS), path.name


def test_every_frozen_table_has_one_script():
    rows = readme_rows()
    assert (
        sorted(script.removesuffix(".py") for script, _ in rows if script != "by hand") == SCRIPTS
    )
    named = [name for _, names in rows for name in names]
    assert len(named) == len(set(named))
    assert {path.name for path in (ROOT / "data" / "results").iterdir()} <= set(named)
    for script, names in rows:
        if script != "by hand":
            source = (FOLDER / script).read_text(encoding="utf-8")
            for name in names:
                stem = Path(name).stem.removesuffix("_draws")
                assert re.search(rf'["/]{stem}(\.csv|\.json)?"', source), name


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_results_lists_the_tables():
    command = ["make", "--no-print-directory", "results"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for script in SCRIPTS:
        assert re.search(rf"^\| `{script}\.py` \|.*\| \d+ \|", run.stdout, re.MULTILINE), script


def test_a_comparison_is_frozen_in_the_form_of_controls(load, tiny, tokenizer, small):
    frozen = load("frozen")
    cuts = {
        "some · 1": fl.NeuronSelection({0: [1], 1: [2]}, (3, 96)),
        "some · 2": fl.NeuronSelection({0: [1, 3], 1: [2, 5]}, (3, 96)),
    }
    comparison = fl.compare(tiny, tokenizer, cuts, small, n_random=2)
    frozen.write(tiny, comparison.table, comparison.draws, "tiny", seconds=1.4)
    for name in ("", "_draws"):
        path = frozen.RESULTS / f"tiny{name}.csv"
        written = pd.read_csv(path)
        columns = pd.read_csv(ROOT / f"data/results/controls{name}.csv", nrows=0).columns
        assert list(written.columns) == list(columns)
        assert b"\r" not in path.read_bytes()
        assert list(written.groupby(["method", "count"]).size().index) == [("some", 1), ("some", 2)]
    # two cuts, headline of gap, metric and decisions, perplexity, two random cuts each
    assert len(written) == 2 * 4 * 2
    assert set(written.row) == {"headline", "text"}
    table = pd.read_csv(frozen.RESULTS / "tiny.csv")
    assert set(table.seconds) == {1}
    assert table.change.to_numpy() == pytest.approx(comparison.table.change.to_numpy(), rel=1e-5)


def test_what_is_kept_is_computed_once(load, tmp_path):
    frozen = load("frozen")
    path = tmp_path / "folder" / "kept.pt"
    assert frozen.kept(path, lambda: torch.ones(2)).tolist() == [1, 1]
    assert frozen.kept(path, lambda: pytest.fail("computed again")).tolist() == [1, 1]
    assert [file.name for file in path.parent.iterdir()] == ["kept.safetensors"]


@pytest.mark.parametrize(
    "value", ["text", {"a": [1.5, None]}, (torch.ones(2, 3), torch.zeros(1).double()), {"t": 3}]
)
def test_what_is_kept_comes_back_as_it_was(value, load, tmp_path):
    kept = load("frozen").kept(tmp_path / "kept.pt", lambda: value)
    again = load("frozen").kept(tmp_path / "kept.pt", lambda: pytest.fail("computed again"))
    for found in (kept, again):
        assert type(found) is type(value)
        if isinstance(value, tuple):
            assert all(
                a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, value, strict=True)
            )
        else:
            assert found == value


def test_the_guarded_tables_are_those_of_the_recipe(load, tiny, tokenizer, small, monkeypatch):
    """And so are the cuts of spill-over, each chosen on the pairs of one category."""
    frozen, models = load("frozen"), load("models")
    of_kind = {"demographic": small.pairs, "neutral": small.neutral}
    monkeypatch.setattr(frozen, "train_pairs", lambda kind="demographic": of_kind[kind])
    monkeypatch.setattr("fairlab.recipes.load_text", lambda name: small.text)
    tables = frozen.guard_tables(tiny, tokenizer)
    wanted = guarded_tables(tiny, tokenizer, small.pairs, small.neutral)
    assert tables.keys() == wanted.keys()
    assert all(torch.equal(tables[name], wanted[name]) for name in wanted)
    monkeypatch.setattr(models, "FRACTIONS", (0.1,))
    rows = models.spill_over(tiny, tokenizer, small.pairs, small.neutral, small)
    cut = fl.guarded_cut(tiny, tokenizer, small.pairs[:2], small.neutral, fraction=0.1)
    before = fl.next_token_divergence(tiny, tokenizer, small.pairs)
    with fl.ablate(tiny, cut):
        after = fl.next_token_divergence(tiny, tokenizer, small.pairs)
    found = rows.set_index(["method", "category"]).value
    assert len(found) == 4
    for category, members in (("race", slice(0, 2)), ("age", slice(2, 4))):
        change = (after[members].mean() / before[members].mean() - 1).item()
        assert found["race", category] == pytest.approx(change, abs=1e-6)
        assert abs(change) > 1e-4


def test_quick_changes_are_those_of_compare(load, tiny, tokenizer, small):
    frozen = load("frozen")
    cut = fl.NeuronSelection({0: range(60), 1: range(60)}, (3, 96))
    before = frozen.quick_reading(tiny, tokenizer, small)
    with fl.ablate(tiny, cut):
        after = frozen.quick_reading(tiny, tokenizer, small)
    changes = frozen.quick_changes(small, before, after)
    table = fl.compare(tiny, tokenizer, {"cut": cut}, small, n_random=1, metric=False).table
    by_row = table[table.measure != "decision"].set_index("row").change
    expected = {"headline": "headline", "neutral": "neutral", "perplexity": "text"}
    for name, row in expected.items():
        assert changes[name] == pytest.approx(by_row[row], rel=1e-3, abs=1e-5), name
        assert abs(changes[name]) > 1e-4, name


@pytest.fixture(scope="module")
def scores():
    """Three tables that could be scores of the tiny model."""
    generator = torch.Generator().manual_seed(0)
    bias, importance, neutral = torch.rand(3, 3, 96, generator=generator)
    return {"bias": bias, "importance": importance + 0.1, "neutral": neutral / 4}


def test_the_guard_is_measured(load, tiny, tokenizer, small, scores):
    guard = load("guard")
    ranks = guard.rank_correlations(tiny, tokenizer, scores, small.text, count=12)
    assert len(ranks) == 3
    assert all(-1 <= value <= 1 for value in ranks.values())
    assert len(guard.settings()) == 27
    assert {"charge": 0.85, "protect": 0.03, "floor": 4.0} in guard.settings()
    table = guard.search(tiny, tokenizer, scores, small, guard.settings()[:2])
    assert list(table.neurons) == [9, 9]
    assert torch.isfinite(torch.tensor(table.to_numpy(dtype=float))).all()
    changes = guard.perplexity_changes(tiny, tokenizer, scores, small, count=6)
    assert changes["fisher"] != changes["maw"]


def test_the_slope_forecasts_a_single_small_removal(load, tiny, tokenizer, small, scores):
    """In a model whose neurons write little, a removal is what its slope says."""
    guard = load("guard")
    model = tiny_model(intermediate_size=96, hidden_size=16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight *= 1e-2
    ranks = guard.rank_correlations(model.double(), tokenizer, scores, small.text, count=16)
    assert ranks["slope and the rise"] > 0.99


def test_the_search_covers_what_was_chosen(load, tiny, tokenizer, small, scores):
    search, tries = load("gates_search"), load("tries")
    grid = search.settings()
    assert len(grid) == 72
    assert all(setting in grid for setting in tries.SETTINGS)
    mean = torch.zeros(3, 96)
    tables = GateTables(scores["bias"] - 0.5, scores["neutral"], scores["importance"], mean)
    small_grid = [
        {"count": 12, "goal": 1.0, "charge": 0.5, "floor": 1.0},
        {"count": 12, "goal": 50.0, "charge": 0.5, "floor": 1.0},  # out of reach
    ]
    table = search.search(tiny, tokenizer, tables, small, small_grid)
    assert list(table.goal) == [1.0]
    assert list(table.columns[4:]) == ["headline", "neutral", "perplexity"]


def test_the_best_allowed_setting_is_chosen(load):
    search = load("gates_search")
    table = pd.DataFrame(
        [
            (92, -0.5, 0.0, 0.02),  # too dear
            (92, -0.4, 0.3, 0.0),  # neutral pairs move too much
            (92, -0.1, 0.0, 0.0),
            (92, -0.2, 0.0, 0.009),
            (276, -0.5, 0.0, 0.019),
        ],
        columns=["count", "headline", "neutral", "perplexity"],
    )
    chosen = search.choose(table, -0.1, 0.1)
    assert chosen.headline.tolist() == [-0.2, -0.1, -0.5]


def test_gates_are_read_once_and_kept(load, tiny, tokenizer, small, monkeypatch):
    frozen, tries = load("frozen"), load("tries")
    monkeypatch.setattr(frozen, "validation", lambda tokenizer: small)
    values = torch.ones(3, 96)
    values[1, [4, 9]] = 0.0
    gates = fl.NeuronGates.from_tables(values)
    table, draws, seconds = tries.read(tiny, tokenizer, "mean · 2", gates, "validation")
    assert table.n_random.max() == 10
    monkeypatch.setattr(fl, "compare", lambda *a, **k: pytest.fail("measured again"))
    again = tries.read(tiny, tokenizer, "mean · 2", gates, "validation")
    pd.testing.assert_frame_equal(again[0], table)
    pd.testing.assert_frame_equal(again[1], draws)
    assert again[2] == seconds


def test_the_rule_takes_the_lowest_headline_that_is_allowed(load):
    models = load("models")
    rows = pd.DataFrame(
        [(-0.5, 0.0, 0.02), (-0.4, 0.3, 0.0), (-0.1, 0.0, 0.0), (-0.2, -0.1, 0.009)],
        columns=["headline", "neutral", "perplexity"],
    )
    assert models.best(rows, dearest=0.01).headline == -0.2
    assert models.best(rows[:2], dearest=0.01) is None


def test_erasure_leaves_nothing_that_is_correlated_with_the_concept(load):
    models = load("models")
    draw = torch.Generator().manual_seed(0)
    mixed = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    states = torch.randn(4000, 6, generator=draw, dtype=torch.float64) @ mixed
    labels = (torch.rand(4000, generator=draw) < 0.5).double()
    states += 3 * labels[:, None] * torch.randn(6, generator=draw, dtype=torch.float64)
    direction = states[labels == 1].mean(0) - states[labels == 0].mean(0)
    left, right, mean = models.eraser(direction[:, None], states)
    erased = states - (states - mean) @ right.T @ left.T
    difference = erased[labels == 1].mean(0) - erased[labels == 0].mean(0)
    assert difference.abs().max() < 1e-2 * direction.abs().max()
    # and moves less than the plain projection does, in units of the states' covariance
    plain_left, plain_right, _ = models.eraser(direction[:, None], None)
    projected = states - states @ plain_right.T @ plain_left.T
    inverse = torch.linalg.inv(torch.cov(states.T))

    def moved(changed):
        step = changed - states
        return ((step @ inverse) * step).sum(1).mean()

    assert moved(erased) < moved(projected - (projected - states).mean(0))


def test_states_are_taken_at_the_last_token(load, tiny, tokenizer, small):
    models = load("models")
    prompts = [small.pairs[0].prompt_a, small.pairs[-1].prompt_b]
    states = models.last_states(tiny, tokenizer, prompts)
    assert states.shape == (4, 2, 16)
    for row, prompt in enumerate(prompts):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            hidden = tiny(ids, output_hidden_states=True).hidden_states
        for layer, wanted in enumerate(hidden):
            assert torch.allclose(states[layer, row], wanted[0, -1], atol=1e-4)


def test_rows_of_the_other_model_stay(load, tiny):
    frozen = load("frozen")
    table = pd.DataFrame({"change": [0.1]})
    for name, value in (("one", 0.1), ("two", 0.2), ("one", 0.3)):
        frozen.keep_rows(tiny, name, table.assign(change=value), "some.csv")
    written = pd.read_csv(frozen.RESULTS / "some.csv")
    assert dict(zip(written.model, written.change, strict=True)) == {"one": 0.3, "two": 0.2}


def test_attention_gates_act_on_what_o_proj_reads(load, tiny, tokenizer, small):
    attention = load("attention")
    width, layers = 96, fl.decoder_layers(tiny)
    channels = layers[0].self_attn.o_proj.in_features
    gates = torch.ones(len(layers), width + channels)
    gates[1, width + 5] = 0  # an attention channel
    gates[0, 7] = 0  # a neuron
    means = torch.zeros_like(gates)
    with attention.gated(tiny, gates, means, width):
        found = fl.next_token_divergence(tiny, tokenizer, small.pairs)
    cut = copy.deepcopy(tiny)
    with torch.no_grad():
        fl.decoder_layers(cut)[1].self_attn.o_proj.weight[:, 5] = 0
        fl.decoder_layers(cut)[0].mlp.down_proj.weight[:, 7] = 0
    wanted = fl.next_token_divergence(cut, tokenizer, small.pairs)
    assert torch.allclose(found, wanted, atol=1e-7)
    untouched = fl.next_token_divergence(tiny, tokenizer, small.pairs)
    assert not torch.allclose(found, untouched, atol=1e-7)


def test_attention_means_are_those_of_the_channels(load, tiny, tokenizer):
    attention = load("attention")
    text = fl.load_text("calibration")[:200]
    means = attention.attention_means(tiny, tokenizer, text)
    seen = []
    o_proj = fl.decoder_layers(tiny)[1].self_attn.o_proj
    handle = o_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        tiny(tokenizer(text, return_tensors="pt").input_ids)
    handle.remove()
    assert torch.allclose(means[1], seen[0][0].mean(0), atol=1e-5)


def test_benchmarks_hold_gates_against_gates_and_cuts_against_cuts(load, monkeypatch):
    benchmarks = load("benchmarks")
    monkeypatch.setattr(benchmarks, "N_RANDOM", 2)

    def items(right: int) -> list[dict]:
        """Return ten items of which so many are right."""
        rows = []
        for number in range(10):
            row = {"task": "lambada_openai", "item": number, "cluster": None}
            rows.append({**row, "loglikelihood": -1.0, "acc": float(number < right)})
        return rows

    right = {"original": 5, "guarded": 4, "random 1": 3, "random 2": 6}
    right |= {"learned gates": 5, "random gates 1": 8, "random gates 2": 9}
    results = {}
    for name, count in right.items():
        results[name, "lambada_openai"] = {"items": items(count), "origin": {}, "seconds": 1}

    def controls(name: str) -> tuple[float, float, int]:
        row = benchmarks.rows_of(name, "lambada_openai", results).set_index("metric").loc["acc"]
        return round(row.random_low, 6), round(row.random_high, 6), row.n_random

    assert controls("guarded") == (-0.2, 0.1, 2)
    assert controls("learned gates") == (0.3, 0.4, 2)
    assert controls("random 1") == (0.1, 0.1, 1)
    assert controls("random gates 2") == (0.3, 0.3, 1)


def test_the_frozen_benchmarks_follow_from_their_own_rows(load):
    """What the table says of controls, tests and changes is computed again from its rows."""
    table = pd.read_csv(ROOT / "data/results/benchmarks.csv")
    assert (table.groupby("method").size() == 19).all()
    assert table.method.nunique() == 16
    assert set(table.device) == {"cuda:0, torch.float32"}
    assert table.commit.nunique() == 1

    before = table[table.method == "original"].set_index(["task", "metric"]).value
    for (task, metric), rows in table.groupby(["task", "metric"]):
        rows = rows.set_index("method").drop("original")
        change = rows.value - before[task, metric]
        if "perplexity" in metric:
            change = rows.value / before[task, metric] - 1
        assert rows.change.values == pytest.approx(change.values, abs=1e-5)

        told = ((rows.change_low > 0) | (rows.change_high < 0)) & ~(rows.p >= 0.05)
        assert (rows.told.astype(bool) == told).all()
        shares = rows[rows.p.notna()]
        moved = (shares.gained - shares.lost) / shares.n
        assert shares.change.values == pytest.approx(moved.values, abs=1e-6)
        for name, row in rows.iterrows():
            kind = "random gates" if "gates" in name else "random"
            controls = [f"{kind} {number}" for number in range(1, 6)]
            others = rows.change[[other for other in controls if other != name]]
            assert row.n_random == len(others)
            assert (row.random_low, row.random_high) == (others.min(), others.max())
            surely = (others < row.change - 1e-6).sum()  # a tie falls to either side by rounding
            assert surely <= row.random_below <= (others < row.change + 1e-6).sum()
    changes = table[table.method != "original"]
    again = load("benchmarks").p_values(table)
    assert changes.p_all.values == pytest.approx(again[changes.index].values, rel=1e-3)
    assert (changes.p_all >= changes.p.fillna(0)).all() and (changes.p_all <= 1).all()
    assert (changes.told == (changes.p_all < 0.05)).all()  # the same verdict, but in one number
    assert table.p_all.isna().sum() == 19  # those of the original
