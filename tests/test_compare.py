import inspect
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import fairlab as fl
from fairlab import gating, passes
from fairlab.behavior import PRONOUNS
from fairlab.evaluation import chance, compare, flattening, readings, rows
from fairlab.gating import solve_gates
from fairlab.scores import attribution_scores
from fairlab.statistics import jackknife_interval, sign_flip_test
from tiny_models import note_rows, tiny_model

ROOT = Path(__file__).parent.parent
TEXT = (
    "The tide comes in twice a day, and twice a day it goes out again. "
    "Nobody on the pier looked up. "
) * 4


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


@pytest.fixture(scope="module")
def data():
    """Pairs of two categories in five templates, and neutral ones in the same."""
    templates = list(dict.fromkeys(pair.template for pair in fl.load_pairs("race")))[:5]
    chosen = [
        p for p in fl.load_pairs() if p.category in ("race", "gender") and p.template in templates
    ]
    neutral = [p for p in fl.load_pairs("mood", kind="neutral") if p.template in templates][:25]
    return {"pairs": chosen, "neutral": neutral, "text": TEXT}


@pytest.fixture(scope="module")
def cut():
    return fl.NeuronSelection({0: (1, 5, 9), 2: (0, 23)}, (3, 24), "by hand")


@pytest.fixture(scope="module")
def measured(tiny, tokenizer, data, cut):
    return fl.compare(tiny, tokenizer, {"cut": cut}, fl.HeldOut(**data), n_random=4, seed=1)


@pytest.fixture(scope="module")
def table(measured):
    return measured.table


def row_of(table, measure, name):
    """Return a row by the kind of row it is, or by its category."""
    kind, category = ("category", name) if name not in table.row.unique() else (name, None)
    rows = table[(table.measure == measure) & (table.row == kind)]
    if category:
        rows = rows[rows.category == category]
    assert len(rows) == 1
    return rows.iloc[0]


def draws_of(measured, measure, name, kind="random"):
    """Return the changes under the random cuts that belong to a row."""
    row = row_of(measured.table, measure, name)
    draws = measured.draws[measured.draws.kind == kind]
    for column in ("selection", "measure", "row", "category"):
        draws = draws[draws[column] == row[column]]
    assert draws.draw.tolist() == list(range(len(draws)))
    return draws.change.tolist()


def test_rows_are_what_the_functions_measure(tiny, tokenizer, data, cut, table):
    race = [pair for pair in data["pairs"] if pair.category == "race"]
    gender = [pair for pair in data["pairs"] if pair.category == "gender"]

    def measured():
        return [
            fl.next_token_divergence(tiny, tokenizer, race).mean().item(),
            fl.next_token_divergence(tiny, tokenizer, gender, leave_out=PRONOUNS).mean().item(),
            np.mean([fl.article_metric(tiny, tokenizer, pair) for pair in data["neutral"]]),
            fl.perplexity(tiny, tokenizer, TEXT),
        ]

    before = measured()
    with fl.ablate(tiny, cut):
        after = measured()
    wanted = [
        ("gap", "race"),
        ("gap", "without pronouns"),
        ("metric", "neutral"),
        ("perplexity", "text"),
    ]
    for (measure, category), b, a in zip(wanted, before, after, strict=True):
        row = row_of(table, measure, category)
        assert (row.before, row.after) == (pytest.approx(b, rel=1e-4), pytest.approx(a, rel=1e-4))
        assert row.change == pytest.approx(a / b - 1, abs=1e-3)
    assert row_of(table, "gap", "race").pairs == len(race)
    assert row_of(table, "gap", "race").templates == 5
    assert row_of(table, "gap", "race").attributes == 4


def test_the_headline_is_the_mean_over_categories(table):
    for measure in ("gap", "metric"):
        changes = [row_of(table, measure, category).change for category in ("race", "gender")]
        headline = row_of(table, measure, "headline")
        assert headline.change == pytest.approx(np.mean(changes), rel=1e-6)
        assert headline.specificity == pytest.approx(
            headline.change - row_of(table, measure, "neutral").change, abs=1e-6
        )
        assert headline.neutral_change == pytest.approx(row_of(table, measure, "neutral").change)


def test_random_cuts_are_those_of_the_seed(tiny, tokenizer, data, cut, measured):
    race = [pair for pair in data["pairs"] if pair.category == "race"]
    before = fl.next_token_divergence(tiny, tokenizer, race).mean()
    changes = []
    for draw in fl.random_selections(cut, 4, seed=1):
        with fl.ablate(tiny, draw):
            changes.append(
                (fl.next_token_divergence(tiny, tokenizer, race).mean() / before - 1).item()
            )
    row = row_of(measured.table, "gap", "race")
    assert draws_of(measured, "gap", "race") == pytest.approx(changes, abs=2e-3)
    assert (row.random_low, row.random_high) == pytest.approx(
        (min(changes), max(changes)), abs=2e-3
    )
    assert row.random_below == sum(change < row.change for change in changes)


def test_random_controls_of_gates_are_gates(tiny, tokenizer, data, cut):
    means = gating.mean_activations(tiny, tokenizer, fl.load_text("calibration"))
    rows = {0: {1: (0.5, means[0, 1].item()), 5: (2.0, 0.1)}, 2: {0: (0.0, -0.2)}}
    gates = fl.NeuronGates(rows, (3, 24))
    measured = fl.compare(
        tiny, tokenizer, {"gates": gates, "cut": cut}, fl.HeldOut(**data), n_random=2, seed=1
    )
    before, after = fl.perplexity(tiny, tokenizer, TEXT), []
    for some in (gates, *chance.random_gates(gates, 2, seed=1, means=means)):
        with fl.gated(tiny, some):
            after.append(fl.perplexity(tiny, tokenizer, TEXT))
    of_gates = measured.table[measured.table.selection == "gates"]
    row = row_of(of_gates, "perplexity", "text")
    assert (row.before, row.after) == pytest.approx((before, after[0]), rel=1e-5)
    drawn = measured.draws[measured.draws.selection == "gates"]
    assert drawn[drawn.measure == "perplexity"].change.tolist() == pytest.approx(
        [value / before - 1 for value in after[1:]], abs=2e-5
    )


def test_random_gates_keep_the_gates_and_take_their_own_means():
    gates = fl.NeuronGates({0: {1: (0.5, 9.0), 5: (2.0, 9.0)}, 2: {0: (0.0, 9.0)}}, (3, 24))
    means = torch.arange(72.0).view(3, 24)
    drawn = chance.random_gates(gates, 8, seed=3, means=means)
    places = set()
    for some in drawn:
        assert {layer: len(row) for layer, row in some.gates.items()} == {0: 2, 2: 1}
        assert sorted(value for value, _ in some.gates[0].values()) == [0.5, 2.0]
        for layer, row in some.gates.items():
            for neuron, (_, toward) in row.items():
                assert toward == means[layer, neuron]
                places.add((layer, neuron))
    assert len(places) > 8, "other neurons in each draw"
    assert drawn == chance.random_gates(gates, 8, seed=3, means=means)
    for some in chance.random_gates(gates, 2):
        assert some.moves_toward_zero


def test_decision_rows_are_the_means_of_the_decision_gaps(tiny, tokenizer, data, cut):
    known = data["pairs"][0].template
    lists = fl.Outcomes(harsher=("reject", "refuse"), kinder=("accept", "hire"))
    others = [pair.template for pair in data["pairs"] if pair.template != known]
    outcomes = {known: lists, others[0]: lists}
    held_out = fl.HeldOut(**data, outcomes=outcomes)
    measured = fl.compare(tiny, tokenizer, {"cut": cut}, held_out, n_random=2, metric=False)
    sizes = []
    for category in ("race", "gender"):
        pairs = [p for p in data["pairs"] if p.category == category and p.template in outcomes]
        before = fl.decision_gap(tiny, tokenizer, pairs, outcomes=outcomes).mean().item()
        with fl.ablate(tiny, cut):
            after = fl.decision_gap(tiny, tokenizer, pairs, outcomes=outcomes).mean().item()
        row = row_of(measured.table, "decision", category)
        assert (row.before, row.after) == pytest.approx((before, after), abs=1e-5)
        assert row.change == pytest.approx(abs(after) - abs(before), abs=1e-5)
        assert row.low < row.change < row.high
        assert (row.pairs, row.templates) == (len(pairs), 2)
        assert "decision gap" in row.sentence and "nats" in row.sentence
        sizes.append((abs(before), abs(after)))
    headline = row_of(measured.table, "decision", "headline")
    assert (headline.before, headline.after) == pytest.approx(np.mean(sizes, 0), abs=1e-5)
    assert headline.change == pytest.approx(headline.after - headline.before, abs=1e-6)
    neutral = row_of(measured.table, "decision", "neutral")
    changes = []
    some = [pair for pair in data["neutral"] if pair.template in outcomes]
    for draw in fl.random_selections(cut, 2):
        with fl.ablate(tiny, draw):
            after = fl.decision_gap(tiny, tokenizer, some, outcomes=outcomes).mean().item()
        changes.append(abs(after) - abs(neutral.before))
    assert draws_of(measured, "decision", "neutral") == pytest.approx(changes, abs=1e-5)
    bare = fl.compare(tiny, tokenizer, {"cut": cut}, fl.HeldOut(**data, outcomes={}), n_random=1)
    assert "decision" not in bare.table.measure.tolist()


def test_a_changed_model_is_read_like_the_cut_that_made_it(tiny, tokenizer, data, cut, measured):
    changes = {"pruned": fl.prune(tiny, cut), "alone": fl.prune(tiny, cut)}
    options = {"n_random": 4, "seed": 1, "metric": False, "imitated": {"pruned": cut}}
    both = fl.compare(tiny, tokenizer, changes, fl.HeldOut(**data), **options)
    # the metric of a pruned model is a mean over fewer dimensions
    rest = measured.table[measured.table.measure != "metric"].reset_index(drop=True)
    by_name = {name: part for name, part in both.table.groupby("selection")}
    tables = [by_name[name].reset_index(drop=True) for name in changes]
    words = ["selection", "sentence"]
    pd.testing.assert_frame_equal(
        tables[0].drop(columns=words), rest.drop(columns=words), rtol=1e-4, atol=1e-6
    )
    assert set(both.draws.selection) == {"pruned"}
    for frame in (both.table, both.draws, both.readings):
        assert frame.index.tolist() == list(range(len(frame)))
    assert both.table.columns.tolist()[-2:] == ["dtype", "sentence"]
    alone = tables[1]
    assert alone.change.tolist() == tables[0].change.tolist()
    assert (alone.n_random == 0).all() and (alone.random_below == 0).all()
    for column in ("random_low", "random_high", "neutral_in_range"):
        assert alone[column].isna().all()
    assert (alone.neutral_change.dropna() == tables[0].neutral_change.dropna()).all()
    assert alone.flattening_scale.dropna().tolist() == tables[0].flattening_scale.dropna().tolist()
    assert alone.sentence.str.contains("; no random cuts beside it").all()
    fl.plot_comparison(both.table, draws=both.draws)
    plt.close()


def test_changed_models_alone_have_no_draws(tiny, tokenizer, data, cut):
    changes = {"pruned": fl.prune(tiny, cut)}
    bare = fl.compare(tiny, tokenizer, changes, fl.HeldOut(**data), metric=False)
    assert bare.draws.empty and "change" in bare.draws
    # without the metric rows are left out, and the others are numbered anew
    assert bare.readings.index.tolist() == list(range(len(bare.readings)))
    ax = fl.plot_comparison(bare.table, draws=bare.draws)
    assert "random" not in str([text.get_text() for text in ax.get_legend().get_texts()])
    plt.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 49153}, "pruned predicts 49153 tokens in float32, and the original 49152"),
        ({"dtype": torch.bfloat16}, "pruned predicts 49152 tokens in bfloat16"),
    ],
)
def test_a_changed_model_that_does_not_compare_is_refused(
    tiny, tokenizer, data, change, message, monkeypatch
):
    monkeypatch.setattr(compare, "read_cut", lambda *a, **o: pytest.fail("measured"))
    with pytest.raises(ValueError, match=message):
        fl.compare(tiny, tokenizer, {"pruned": tiny_model(**change)}, fl.HeldOut(**data))
    with pytest.raises(ValueError, match="model: it is in training mode"):
        fl.compare(tiny, tokenizer, {"pruned": tiny_model().train()}, fl.HeldOut(**data))


def test_a_model_in_training_mode_is_refused_before_it_reads(tokenizer, data, cut, tmp_path):
    model = tiny_model().train()
    passes = note_rows(model)
    with pytest.raises(ValueError, match="model: it is in training mode"):
        fl.compare(model, tokenizer, {"cut": cut}, fl.HeldOut(**data), cache=tmp_path / "kept")
    assert passes == [] and not any(tmp_path.iterdir())


def test_only_changed_models_imitate(tiny, tokenizer, data, cut, monkeypatch):
    monkeypatch.setattr(compare, "read_cut", lambda *a, **o: pytest.fail("measured"))
    with pytest.raises(ValueError, match=r"imitated: expected names of changed models \(none\)"):
        fl.compare(tiny, tokenizer, {"cut": cut}, fl.HeldOut(**data), imitated={"cut": cut})
    small = fl.NeuronSelection({0: (1,)}, (3, 25))
    with pytest.raises(ValueError, match="made for 3 layers of 25 neurons"):
        changes = {"other": tiny_model()}
        fl.compare(tiny, tokenizer, changes, fl.HeldOut(**data), imitated={"other": small})


def test_the_names_of_changed_models_tell_them_apart(cut):
    one, other, third, fourth = (tiny_model() for _ in range(4))
    other.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    third.config.rms_norm_eps = 1e-3
    fourth.model.embed_tokens.weight.data[9] += 1  # a token that the answer does not tell of
    names = [readings.name_of(model) for model in (one, other, third, fourth)]
    with fl.ablate(one, cut):
        names.append(readings.name_of(one))
    assert len(set(names)) == 5
    assert readings.name_of(tiny_model()) == names[0]


def test_what_is_to_be_read_is_counted(tiny, tokenizer, data, cut, tmp_path):
    options = {"n_random": 1, "seed": 0, "metric": False, "imitated": {}, "cache": tmp_path}
    loaded, held_out = (tiny, tokenizer), fl.HeldOut(**data)
    one, two = {"cut": cut}, {"cut": cut, "same size": fl.random_selections(cut, 3)[2]}

    def count(cuts, **others):
        return compare.count_readings(*loaded, cuts, held_out, **options | others)

    assert count(one) == (3, 0)  # uncut, the cut, a random one
    fl.compare(*loaded, one, held_out, **options)
    assert count(one) == (0, 3) == (0, len(list(tmp_path.glob("*/*.npz"))))
    # two cuts of one size share their random cuts
    assert count(two) == (1, 3) and count(two, n_random=2) == (2, 3)
    assert count(one, metric=True) == count(one, cache=None) == (3, 0)
    assert count({"model": tiny}) == (1, 1)


def test_smaller_batches_measure_the_same(tiny, tokenizer, data, cut, measured):
    options = {"n_random": 1, "batch_size": 4}
    small = fl.compare(tiny, tokenizer, {"cut": cut}, fl.HeldOut(**data), **options)
    numbers = small.readings.select_dtypes("number")
    pd.testing.assert_frame_equal(
        numbers, measured.readings.select_dtypes("number"), rtol=1e-3, atol=1e-5
    )


def test_the_metric_can_be_left_out(tiny, tokenizer, data, cut, table, tmp_path):
    options = {"n_random": 4, "seed": 1, "cache": tmp_path}
    held_out = fl.HeldOut(**data)
    fl.compare(tiny, tokenizer, {"cut": cut}, held_out, **options)
    short = fl.compare(tiny, tokenizer, {"cut": cut}, held_out, **options, metric=False)
    rest = table[table.measure != "metric"].reset_index(drop=True)
    pd.testing.assert_frame_equal(short.table, rest)
    assert set(short.readings.measure) == {"gap", "gap without pronouns", "decision"}


def test_intervals_hold_the_change_and_p_values_are_adjusted(table):
    about_pairs = table[table.measure != "perplexity"]
    assert (about_pairs.low <= about_pairs.change).all()
    assert (about_pairs.change <= about_pairs.high).all()
    tested = table[(table.measure == "gap") & (table.row == "category")]
    assert len(tested) == 2
    assert sorted(tested.p_holm) == pytest.approx(
        sorted([min(1, 2 * tested.p.min()), max(tested.p.max(), min(1, 2 * tested.p.min()))])
    )
    assert (tested.p >= 2 / 2**5).all()


def test_an_empty_cut_changes_nothing(tiny, tokenizer, data):
    nothing = {"none": fl.NeuronSelection({}, (3, 24))}
    table = fl.compare(tiny, tokenizer, nothing, fl.HeldOut(**data), n_random=2).table
    for column in ("change", "low", "high", "random_low", "random_high"):
        assert (table[column] == 0).all()
    assert (table.random_below == 0).all()
    assert not table.sentence.str.contains("lower than 2 of 2").any()
    assert table.sentence.str.contains("lower than 0 of 2 random cuts, equal to 2").all()
    # what is left is what the model's over-confidence gives away for nothing
    assert (table.flattening_scale.dropna() < 1).all()


def test_flattening_is_a_scaling_of_the_logits(tiny, tokenizer, data):
    pairs = data["pairs"]
    losses = flattening.losses_at_scales(tiny, tokenizer, TEXT)  # (tokens, scales)
    assert torch.equal(losses[:, 0], passes.token_losses(tiny, tokenizer, TEXT))
    (found,) = flattening.flattened_gaps(tiny, tokenizer, pairs, losses, [-0.5], batch_size=8)
    loss = passes.losses_by_scale(tiny, tokenizer, TEXT, window=512, scales=(0.7,)).mean()
    assert found.scale < 1  # an over-confident model: a flattening costs nothing
    for scale in (0.7, found.scale):
        flat = tiny_model()
        flat.lm_head.weight.data *= scale
        if scale == 0.7:
            perplexity = fl.perplexity(flat, tokenizer, TEXT)
            assert loss.exp().item() == pytest.approx(perplexity, rel=1e-4)
    after = fl.next_token_divergence(flat, tokenizer, pairs).numpy()
    assert found.after == pytest.approx(after, rel=1e-3, abs=1e-6)
    before = fl.next_token_divergence(tiny, tokenizer, pairs).numpy()
    assert found.before == pytest.approx(before, rel=1e-4)
    assert np.allclose(flattening.SCALES, np.arange(20, -1, -1) / 20)


def test_a_flattening_has_the_price_of_its_cut(tiny, tokenizer, data, cut, monkeypatch):
    prices = []

    def flattened(*arguments):
        prices.append(arguments[4])
        return flattening.flattened_gaps(*arguments)

    monkeypatch.setattr(compare, "flattened_gaps", flattened)
    some = fl.HeldOut(data["pairs"][:4], data["neutral"][:4], TEXT)
    options = {"n_random": 1, "metric": False}
    table = fl.compare(tiny, tokenizer, {"cut": cut}, some, **options).table
    row = row_of(table, "perplexity", "text")
    assert prices == [[pytest.approx(math.log(row.after / row.before), abs=1e-6)]]
    assert table.columns.tolist()[-3:] == ["p_holm", "dtype", "sentence"]


@pytest.mark.parametrize("lowest", [0.7, 0.875, 1.0, 1.2])
def test_the_flattening_of_the_same_price(lowest):
    """A convex curve, whose lowest point need not be at 1: at every price the lowest factor that
    does not cost more."""
    scales = flattening.SCALES
    losses = 3 + 2 * (scales - lowest) ** 2
    prices = [-0.1, 0.0, 1e-6, 0.01, 0.1, 0.5, 9.0]
    found = [flattening.lowest_scale(scales, losses, price) for price in prices]
    for price, scale in zip(prices, found, strict=True):
        allowed = 2 * (1 - lowest) ** 2 + max(price, 0)
        assert scale == pytest.approx(min(max(lowest - math.sqrt(allowed / 2), 0), 1), abs=1e-5)
    assert (
        found[0] == found[1] == pytest.approx(found[2], abs=1e-2 if lowest == 1 else 1e-4)
    )  # no jump at price 0
    assert found == sorted(found, reverse=True)


def test_where_every_flattening_costs_nothing_the_strongest_is_taken():
    scales = flattening.SCALES
    assert flattening.lowest_scale(scales, np.full(len(scales), 2.0), 0.0) == 0


def test_no_flattening_is_looked_for_beyond_a_factor_of_1():
    scales = flattening.SCALES
    losses = 2 - (scales - 1) ** 3 + 0.03 * (scales - 1)  # beyond 1 they would fall again
    found = flattening.lowest_scale(scales, losses, 0.0)
    assert found == pytest.approx(1 - math.sqrt(0.03))


def test_by_default_a_cut_stands_beside_twenty_cuts_of_seed_0(
    tiny, tokenizer, data, cut, monkeypatch
):
    # two names of one and of three tokens
    unequal = fl.build_pairs(["Then {} was asked to"], [("Emily", "Lakisha")], category="names")
    some, read = fl.HeldOut(data["pairs"][:4] + unequal, data["neutral"][:4], TEXT), []
    kept = readings.read_cut(tiny, tokenizer, some, cut, metric=False)

    def instead(*given, **options):
        read.append(given[3])
        return kept

    monkeypatch.setattr(compare, "read_cut", instead)
    found = fl.compare(tiny, tokenizer, {"cut": cut, "the same": cut}, some)
    assert found.table.n_random.dropna().unique().tolist() == [20]
    for frame in (found.table, found.draws, found.readings):
        assert frame.index.tolist() == list(range(len(frame)))
    assert read == [compare.no_cut(tiny), cut, *fl.random_selections(cut, 20, seed=0)]
    assert found.seed == 0


def test_where_gates_move_to_is_measured_if_one_of_them_moves(tiny, tokenizer, cut, monkeypatch):
    monkeypatch.setattr(compare, "mean_activations", lambda *_: "measured")
    removed = fl.NeuronGates({0: {1: (0.5, 0.0)}}, (3, 24))
    moved = fl.NeuronGates({0: {1: (0.5, 0.1)}}, (3, 24))
    means = partial(compare._means_if_needed, tiny, tokenizer)
    assert means({"cut": cut, "gates": removed}) is None
    assert means({"cut": cut, "gates": removed, "moved": moved}) == "measured"


def test_a_stopped_run_goes_on_from_its_cache(
    tiny, tokenizer, data, cut, table, tmp_path, monkeypatch
):
    read, calls = compare.read_cut, []

    def stops_after_three(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return read(*arguments, **options)

    def run(**changes):
        held_out = fl.HeldOut(**data | changes)
        options = {"n_random": 4, "seed": 1, "cache": tmp_path}
        return fl.compare(tiny, tokenizer, {"cut": cut}, held_out, **options).table

    monkeypatch.setattr(compare, "read_cut", stops_after_three)
    with pytest.raises(KeyboardInterrupt):
        run()
    again = run()
    # the original, the cut and four random cuts are six, and three of them were kept
    assert len(calls) == 4 + 3
    assert again.drop(columns="sentence").equals(table.drop(columns="sentence"))
    monkeypatch.setattr(compare, "read_cut", lambda *a, **o: pytest.fail("measured again"))
    run()
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        run(text=TEXT + " More.")


def test_sentences_say_the_row(table):
    row = row_of(table, "gap", "race")
    assert row.sentence.startswith(
        f"cut: the gap for race changes by {row.change:+.1%} (interval {row.low:+.1%} … "
    )
    assert f"lower than {4 - row.random_below} of 4 random cuts" in row.sentence
    assert f"neutral prompts by {row.neutral_change:+.1%}" in row.sentence
    assert "5 templates and 4 pairs of words" in row.sentence
    # this model is so over-confident that even guessing evenly costs less than it does
    assert row.flattening_scale == 0
    assert row.flattening_change == pytest.approx(-1, abs=0.01)
    row = dict(row)
    words = rows.sentence(row | {"flattening_change": -0.05, "attributes_resampled": 0})
    assert "5 templates, for these words" in words
    assert words.endswith("a flattening of the same price brings -5.0%.")


def test_neutral_pairs_that_move_as_no_random_cut_does_are_named(table):
    row = dict(row_of(table, "gap", "race"))
    for low, high, inside, relation in (
        (-0.3, 0.1, True, "no difference can be told"),
        (-0.3, -0.1, True, "the two differ"),
        (0.1, 0.3, True, "the two differ"),
        (0.0, 0.3, True, "no difference can be told"),
        (-0.3, 0.0, True, "no difference can be told"),
        (
            -0.3,
            -0.1,
            False,
            "the two differ, and neutral prompts move beyond the range of random cuts",
        ),
    ):
        words = rows.sentence(
            row | {"specificity_low": low, "specificity_high": high, "neutral_in_range": inside}
        )
        assert f"({relation})" in words
    neutral = row_of(table, "gap", "neutral")
    assert row["neutral_in_range"] == (neutral.random_low <= neutral.change <= neutral.random_high)


def test_the_readings_make_the_rows(measured, data):
    table, found = measured.table, measured.readings
    gender = found[(found.measure == "gap") & (found.category == "gender")]
    assert len(gender) == sum(pair.category == "gender" for pair in data["pairs"])
    row = row_of(table, "gap", "gender")
    means = gender.before.mean(), gender.after.mean()
    assert means == pytest.approx((row.before, row.after), rel=1e-4)
    assert means[1] / means[0] - 1 == pytest.approx(row.change, abs=1e-4)
    assert set(found.measure) == {"gap", "gap without pronouns", "metric", "decision"}
    assert found.columns.tolist()[:2] == ["selection", "measure"]
    assert set(found.template) == {pair.template for pair in data["pairs"]}
    assert (found.more_tokens == 0).all()
    neutral = found[(found.measure == "metric") & (found.kind == "neutral")]
    assert set(neutral.category) == {"mood"}
    assert neutral.after.mean() / neutral.before.mean() - 1 == pytest.approx(
        row_of(table, "metric", "neutral").change, abs=1e-4
    )


def test_a_category_may_have_any_name(tiny, tokenizer, data, cut, table):
    """Rows that are no categories are known by their column, not by a name that they take away."""
    names = {"race": "neutral", "gender": "headline"}
    pairs = [replace(pair, category=names[pair.category]) for pair in data["pairs"]]
    held_out = fl.HeldOut(**data | {"pairs": pairs})
    renamed = fl.compare(tiny, tokenizer, {"cut": cut}, held_out, n_random=4, seed=1).table
    assert renamed[renamed.row == "category"].category.tolist() == ["neutral", "headline"] * 3
    numbers = ["change", "low", "high", "specificity_low", "p"]
    for row in ("category", "headline", "neutral", "text"):
        pd.testing.assert_frame_equal(
            renamed[renamed.row == row][numbers].reset_index(drop=True),
            table[table.row == row][numbers].reset_index(drop=True),
        )


def test_an_interval_says_what_was_resampled(tiny, tokenizer, data, cut):
    """One pair of words a category: the interval is over sentences, for these words. One sentence:
    there is none."""
    pairs = [
        p
        for p in data["pairs"]
        if (p.attribute_a, p.attribute_b) in (("Black", "white"), ("female", "male"))
    ]
    held_out = fl.HeldOut(**data | {"pairs": pairs})
    options = {"n_random": 1, "metric": False}
    table = fl.compare(tiny, tokenizer, {"cut": cut}, held_out, **options).table
    row = row_of(table, "gap", "headline")
    assert (row.attributes, row.attributes_resampled) == (2, 0)
    assert "for these words" in row.sentence
    assert row.low < row.change < row.high
    changes = [row_of(table, "gap", name).change for name in ("race", "gender")]
    assert row.categories_high - row.categories_low == pytest.approx(
        2 * 12.7062 * np.std(changes, ddof=1) / math.sqrt(2), rel=1e-4
    )
    one = [pair for pair in data["pairs"] if pair.template == data["pairs"][0].template]
    held_out = fl.HeldOut(**data | {"pairs": one})
    options = {"n_random": 1, "metric": False}
    table = fl.compare(tiny, tokenizer, {"cut": cut}, held_out, **options).table
    race = row_of(table, "gap", "race")
    assert (race.templates, race.attributes) == (1, 4)
    assert np.isnan([race.low, race.high, race.p]).all()


def test_no_interval_of_a_change_reaches_below_minus_one():
    x, y = np.array([1.0, 1, 1, 9]), np.array([0.01, 0.02, 1.5, 0.01])
    clusters = {
        "templates": np.array(["s", "t", "u", "v"]),
        "words": np.array(["w"] * 4),
        "strata": np.zeros(4, int),
    }
    low, high = rows.change_interval(x, y, [np.arange(4)], clusters)
    assert -1 < low < y.sum() / x.sum() - 1 < high


def test_the_cache_knows_the_model_as_it_is_now(
    tiny, tokenizer, bos_tokenizer, data, cut, monkeypatch
):
    data = {"pairs": data["pairs"][:3], "neutral": data["neutral"][:2], "text": TEXT}

    def key(model=tiny, tokenizer=tokenizer, metric=True, **changes):
        held_out = fl.HeldOut(**data | changes)
        return readings.cache_key(model, tokenizer, held_out, metric=metric)

    keys = [
        key(),
        key(tokenizer=bos_tokenizer),
        key(text=TEXT + "More."),
        key(pairs=data["pairs"][:-1]),
        key(pairs=[*data["pairs"][:-1], replace(data["pairs"][-1], prompt_b="Another")]),
        key(pairs=[replace(pair, template="") for pair in data["pairs"]]),  # no outcomes of theirs
        key(outcomes={}),
    ]
    keys += [key(metric=False), key(model=tiny_model(dtype=torch.bfloat16))]
    with fl.ablate(tiny, cut):
        keys.append(key())
    other = tiny_model()
    other.config.rms_norm_eps = 1e-3
    keys.append(key(model=other))
    assert key() == keys[0]
    for name, value in (("PRONOUNS", ["he"]), ("__version__", "another")):
        monkeypatch.setattr(readings, name, value)
        keys.append(key())
    assert len(set(keys)) == len(keys)
    assert {len(key) for key in keys} == {16}  # a folder by a new name would be read anew


def test_matched_random_cuts_are_of_the_same_kind(cut):
    damage = torch.arange(3 * 24).reshape(3, 24).flip(1).float()
    draws = fl.random_selections(cut, 200, seed=3, match=damage)
    for draw in draws:
        assert {layer: len(some) for layer, some in draw.neurons.items()} == {0: 3, 2: 2}
        for layer, chosen in draw.neurons.items():
            assert not set(chosen) & set(cut.neurons[layer])
    assert draws != fl.random_selections(cut, 200, seed=4, match=damage)
    wide = fl.NeuronSelection({0: (500,)}, (1, 1000))
    near = {
        n
        for draw in fl.random_selections(wide, 300, match=torch.rand(1, 1000).sort().values)
        for n in draw.neurons[0]
    }
    assert near == {*range(490, 511)} - {500}  # the twenty neighbours in rank
    with pytest.raises(
        ValueError, match=r"match: expected a table of shape \(3, 24\); got \(3, 23\)"
    ):
        fl.random_selections(cut, 1, match=damage[:, 1:])
    with pytest.raises(ValueError, match="match: expected finite values"):
        fl.random_selections(cut, 1, match=damage / 0)


def test_compare_reads_matched_cuts_too(tiny, tokenizer, data, cut):
    damage = torch.rand(3, 24, generator=torch.Generator().manual_seed(0))
    options = {"n_random": 2, "seed": 1, "metric": False, "match": {"damage": damage}}
    measured = fl.compare(tiny, tokenizer, {"cut": cut}, fl.HeldOut(**data), **options)
    after = []
    for draw in fl.random_selections(cut, 2, seed=1, match=damage):
        with fl.ablate(tiny, draw):
            after.append(fl.perplexity(tiny, tokenizer, TEXT))
    row = row_of(measured.table, "perplexity", "text")
    changes = draws_of(measured, "perplexity", "text", kind="damage")
    assert changes == pytest.approx([value / row.before - 1 for value in after], abs=2e-5)
    assert (row.damage_low, row.damage_high) == pytest.approx(
        (min(after) / row.before - 1, max(after) / row.before - 1), abs=2e-5
    )
    assert row.damage_below + row.damage_above == 2


def test_the_model_stays_as_it_is(tokenizer, data, cut):
    model = tiny_model()
    before = readings.bits_of(model)
    fl.compare(model, tokenizer, {"cut": cut}, fl.HeldOut(**data), n_random=1)
    assert readings.bits_of(model) == before
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3
    assert readings.bits_of(model) != before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selections": {}}, "selections: expected at least one, by name; got none"),
        (
            {"selections": {"x": fl.NeuronSelection({0: (1,)}, (3, 25))}},
            "made for 3 layers of 25 neurons",
        ),
        ({"pairs": []}, "pairs: expected at least one"),
        (
            {"neutral": [replace(fl.ARTICLE_PAIR, prompt_b=fl.ARTICLE_PAIR.prompt_a)]},
            "^neutral: the two prompts must differ",
        ),
        ({"match": {"damage": torch.zeros(3, 25)}}, "match: expected a table of shape"),
        ({"n_random": 0}, "n_random: expected a whole number of at least 1; got 0"),
        ({"text": ""}, "text: expected at least two tokens; got 0"),
    ],
)
def test_bad_input_is_refused(tokenizer, data, cut, changes, message):
    model = tiny_model()
    options = {"selections": {"cut": cut}, **data, "n_random": 2, **changes}
    selections = options.pop("selections")
    with pytest.raises(ValueError, match=message):
        held_out = fl.HeldOut(*(options.pop(name) for name in ("pairs", "neutral", "text")))
        fl.compare(model, tokenizer, selections, held_out, **options)


def test_held_out_data_are_refused_by_name(tiny, tokenizer, data, cut):
    with pytest.raises(TypeError, match="text: expected a string; got NoneType"):
        fl.HeldOut(data["pairs"], data["neutral"], None)
    with pytest.raises(TypeError, match=r"held_out: expected fairlab.HeldOut.* got dict"):
        fl.compare(tiny, tokenizer, {"cut": cut}, data)


def test_plain_pairs_stand_beside_plain_ones(data):
    (pair, *_), in_chat = data["pairs"], replace(data["neutral"][0], chat="answer")
    with pytest.raises(ValueError, match="neutral: expected pairs that went through the chat"):
        fl.HeldOut([pair], [in_chat], TEXT)
    assert len(fl.HeldOut([replace(pair, chat="answer")], [in_chat], TEXT).everything) == 2


def test_a_reading_says_how_long_it_took(tiny, tokenizer, data, cut, monkeypatch):
    clock = iter([5.0, 7.5])
    monkeypatch.setattr(readings, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    some = fl.HeldOut(data["pairs"][:2], data["neutral"][:2], TEXT)
    assert readings.read_cut(tiny, tokenizer, some, cut, metric=False).seconds == 2.5


def test_the_bits_of_a_model_have_names():
    weight = torch.nn.Parameter(torch.arange(3.0))
    one, other = (torch.nn.ParameterDict({name: weight}) for name in ("one", "other"))
    assert readings.bits_of(one) != readings.bits_of(other)


def test_readings_are_kept_in_a_folder_that_is_made(tmp_path):
    for _ in range(2):  # it may be there
        readings.KeptReadings(tmp_path / "deep" / "down", print, (1, 1))
    assert (tmp_path / "deep" / "down").is_dir()


def test_pronouns_are_left_out_of_both_distributions(model, tokenizer):
    from scipy.spatial.distance import jensenshannon

    pair = next(
        pair
        for pair in fl.load_pairs("gender", split="held_out", words="any")
        if pair.attribute_a == "woman"
    )
    left_out = [
        tokenizer(form).input_ids[0]
        for word in PRONOUNS
        for form in (word, word.title(), f" {word}", f" {word.title()}")
        if len(tokenizer(form).input_ids) == 1
    ]
    distributions = []
    for prompt in (pair.prompt_a, pair.prompt_b):
        with torch.no_grad():
            p = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].double().softmax(-1)
        p[left_out] = 0
        distributions.append(p / p.sum())
    expected = jensenshannon(*distributions) ** 2
    assert fl.next_token_divergence(
        model, tokenizer, [pair], leave_out=PRONOUNS
    ).item() == pytest.approx(expected, rel=1e-3)


def frozen(name, **values):
    """Return the rows of a frozen table that have these values."""
    table = pd.read_csv(fl.data_path(name))
    for column, value in values.items():
        table = table[table[column] == value]
    return table


def case_without_a_model():
    """Return pairs of two categories of unlike size, neutral pairs, and readings in which every
    column differs."""
    sentences = [f"Sentence {letter} about the {{}} man" for letter in "ABCDEFGHIJ"]
    race = fl.build_pairs(
        sentences, [("Black", "white"), ("Arab", "European"), ("Asian", "Anglo")], category="race"
    )
    age = fl.build_pairs(sentences[:7], [("old", "young"), ("aged", "youthful")], category="age")
    neutral = fl.build_pairs(sentences, [("tired", "hungry"), ("calm", "happy")], category="mood")
    draw = np.random.default_rng(0)
    size = len(race) + len(age) + len(neutral)
    scale = np.where(
        np.arange(size) < len(race), 5.0, 0.2
    )  # the gaps of race are far larger than those of age

    def reading(factor):
        losses = np.repeat(draw.normal(3, 1, 10), 64)  # 10 blocks of 64 tokens that are all alike
        gaps = scale * draw.lognormal(0, 0.8, size) * factor
        losses = losses + draw.normal(0, 0.01, len(losses))
        nothing = np.full(size, np.nan)
        decisions = scale * draw.normal(factor, 1, size)
        return readings.Reading(gaps, gaps, nothing, decisions, losses, np.array(0.0))

    held_out = fl.HeldOut(race + age, neutral, "A text.")
    before, after = reading(1.0), reading(0.7)
    people = len(held_out.pairs)
    chance = {"random": [reading(1.0), reading(1.1)]}
    flat = flattening.Flattening(0.9, reading(1.2).gap[:people], reading(0.6).gap[:people])
    return rows.Case("cut", held_out, before, after, chance, flat)


def test_each_row_is_computed_from_its_own_pairs_sentences_and_words():
    case = case_without_a_model()
    table, draws = rows.case_tables(case)
    of_row = draws.groupby(["measure", "row", "category"]).draw.agg(list)
    assert {*of_row.index} == {*zip(table.measure, table.row, table.category, strict=True)}
    assert of_row.tolist() == [[0, 1]] * len(table)
    table = table[table.measure == "gap"].set_index("row")
    draws = draws[draws.measure == "gap"]
    everything, before, after = case.held_out.everything, case.before, case.after
    kinds = np.array([pair.category for pair in everything])
    templates = np.array([pair.template for pair in everything])
    words = np.array([f"{pair.attribute_a} / {pair.attribute_b}" for pair in everything])

    def log_mean(sums):
        return np.log((sums[:, 1::2] / sums[:, 0::2]).mean(1))

    def by_hand(categories, before, after):
        own = np.isin(kinds, categories)
        columns = []
        for category in categories:
            for gaps in (before, after):
                columns.append(np.where(kinds == category, gaps, 0)[own])
        clusters = [templates[own], words[own]]
        ends = jackknife_interval(np.stack(columns, 1), log_mean, clusters, strata=kinds[own])
        return pytest.approx(list(np.expm1(ends)))

    no_gap = np.zeros(len(case.held_out.neutral))  # the flattening is read on demographic pairs
    flat = [np.append(gaps, no_gap) for gaps in (case.flattening.before, case.flattening.after)]
    by_category = table.loc["category"].set_index("category")
    for row, categories in (
        (by_category.loc["race"], ["race"]),
        (by_category.loc["age"], ["age"]),
        (table.loc["headline"], ["race", "age"]),
        (table.loc["neutral"], ["mood"]),
    ):
        assert [row.low, row.high] == by_hand(categories, before.gap, after.gap), categories
        assert row.attributes_resampled == len(set(words[np.isin(kinds, categories)]))
        if categories != ["mood"]:
            ends = [row.flattening_low, row.flattening_high]
            assert ends == by_hand(categories, *flat), categories
    for number, reading in enumerate(case.chance["random"]):
        own = kinds == "age"
        change = reading.gap[own].sum() / before.gap[own].sum() - 1
        drawn = draws[(draws.category == "age") & (draws.draw == number)]
        assert drawn.change.tolist() == pytest.approx([change])
    relative, labels = [], []
    for category in ("race", "age"):
        own = kinds == category
        relative += list((after.gap - before.gap)[own] / before.gap[own].mean())
        labels += list(templates[own])
    assert table.loc["headline", "p"] == pytest.approx(sign_flip_test(np.array(relative), labels))


def test_the_same_words_in_two_categories_are_two_attribute_pairs():
    case = case_without_a_model()
    pairs = list(case.held_out.pairs)
    first = pairs[0]
    for place, pair in enumerate(pairs):
        if (pair.attribute_a, pair.attribute_b) == ("old", "young"):
            words = {"attribute_a": first.attribute_a, "attribute_b": first.attribute_b}
            pairs[place] = replace(pair, **words)
    held_out = fl.HeldOut(pairs, case.held_out.neutral, "A text.")
    table, _ = rows.case_tables(replace(case, held_out=held_out))
    headline = table[(table.measure == "gap") & (table.row == "headline")].iloc[0]
    assert (headline.attributes, headline.attributes_resampled) == (5, 5)


def test_decisions_and_specificity_are_told_from_their_own_clusters():
    """Over sentences and words, words within their category; neutral pairs on the other side."""
    case = case_without_a_model()
    table, _ = rows.case_tables(case)
    everything, before, after = case.held_out.everything, case.before, case.after
    kinds = np.array([pair.category for pair in everything])
    templates = np.array([pair.template for pair in everything])
    words = np.array([f"{pair.attribute_a} / {pair.attribute_b}" for pair in everything])

    def ends(categories, columns_of, formula):
        own = np.isin(kinds, categories)
        columns = []
        for category in categories:
            columns += [np.where(kinds == category, values, 0)[own] for values in columns_of]
        clusters = [templates[own], words[own]]
        return jackknife_interval(np.stack(columns, 1), formula, clusters, strata=kinds[own])

    def change_of_size(sums):
        change = np.abs(sums[:, 1::3]) - np.abs(sums[:, 0::3])
        return (change / sums[:, 2::3]).mean(1)

    decisions = table[table.measure == "decision"].set_index("row")
    by_category = decisions.loc["category"].set_index("category")
    columns = before.decision, after.decision, np.ones(len(kinds))
    for row, categories in (
        (by_category.loc["race"], ["race"]),
        (decisions.loc["headline"], ["race", "age"]),
    ):
        expected = ends(categories, columns, change_of_size)
        assert [row.low, row.high] == pytest.approx(list(expected)), categories
    # the test is of the signed change, not of the change of its size
    race, own = by_category.loc["race"], kinds == "race"
    signed = (after.decision - before.decision)[own]
    sizes = (abs(after.decision) - abs(before.decision))[own]
    assert race.p == pytest.approx(sign_flip_test(signed, templates[own]))
    assert race.p != pytest.approx(sign_flip_test(sizes, templates[own]))
    assert math.isnan(decisions.loc["headline"].p)

    def less_neutral(sums):
        ratios = sums[:, 1::2] / sums[:, 0::2]  # (cases, categories and neutral)
        return ratios[:, :-1].mean(1) - ratios[:, -1]

    headline = table[(table.measure == "gap") & (table.row == "headline")].iloc[0]
    expected = ends(["race", "age", "mood"], (before.gap, after.gap), less_neutral)
    found = [headline.specificity_low, headline.specificity_high]
    assert found == pytest.approx(list(expected))


@pytest.mark.parametrize("inside", [True, False])
def test_neutral_pairs_are_held_against_random_cuts_of_neutral_pairs(inside):
    """The cut leaves 0.7 of every gap; random cuts leave a range about that on one side alone."""
    case = case_without_a_model()
    of_people = np.arange(len(case.held_out.everything)) < len(case.held_out.pairs)

    def times(people, neutral):
        return replace(case.before, gap=case.before.gap * np.where(of_people, people, neutral))

    about, beyond = (0.6, 0.8), (1.1, 1.2)
    people, neutral = (beyond, about) if inside else (about, beyond)
    drawn = [times(*factors) for factors in zip(people, neutral, strict=True)]
    case = replace(case, after=times(0.7, 0.7), chance={"random": drawn})
    table, _ = rows.case_tables(case)
    of_the_gap = table[(table.measure == "gap") & (table.row != "neutral")]
    assert of_the_gap.category.tolist() == ["race", "age", "mean over categories"]
    assert of_the_gap.neutral_in_range.tolist() == [inside] * 3


def test_the_interval_of_perplexity_is_over_blocks_of_tokens():
    case = case_without_a_model()
    table, _ = rows.case_tables(case)
    row = table[table.row == "text"].iloc[0]
    before, after = case.before, case.after
    change = (after.losses - before.losses).reshape(10, 64).mean(1)  # one number a block
    half = 2.262 * change.std(ddof=1) / np.sqrt(10)  # t with 9 degrees of freedom
    ends = np.expm1([change.mean() - half, change.mean() + half])
    assert [row["low"], row["high"]] == pytest.approx(list(ends), rel=1e-3)
    # it is about no pairs, and its sentence counts none
    for column in ("pairs", "templates", "attributes", "attributes_resampled"):
        assert row[column] == 0
    assert f"(interval {row.low:+.1%} … {row.high:+.1%});" in row.sentence


def test_the_frozen_controls_are_complete():
    table = frozen("results/controls.csv")
    assert len(table) == 6 * 3 * 22
    assert (
        not table[["model", "weights_sha256", "commit", "versions", "seed", "seconds"]]
        .isna()
        .any(axis=None)
    )
    defaults = inspect.signature(fl.compare).parameters
    assert set(table.n_random) == {defaults["n_random"].default} == {20}
    assert set(table.seed) == {defaults["seed"].default} == {0}
    assert not (table.low < -1).any()
    assert (
        table.attributes_resampled[table.row != "neutral"] == 0
    ).all()  # one pair of words a category
    headline = table[(table.row == "headline") & (table.measure == "gap")]
    assert len(headline) == 18
    told = headline[headline.specificity_high < 0]
    assert [*zip(told.method, told["count"], strict=True)] == [("importance alone", 1)]
    assert told.high.item() > 0


README_ROWS = {  # in the README's table → in models.csv
    "the article's cut": "article",
    "the guarded cut": "guarded",
    "balanced gates": "balanced gates",
    "learned gates": "learned gates",
}


README_ROWS_OF_GEMMA = {
    "Gemma: the article's cut": "article",
    "Gemma: the guarded cut": "guarded",
    "Gemma: learned gates": "learned gates",
}
GEMMA = "gemma-3-270m"


def of_the_default_model(name="results/models.csv", **values):
    """Return the rows of the default model: the table has those of another one, too."""
    return frozen(name, model=fl.DEFAULT_MODEL, **values)


def with_interval(row, form=".1%"):
    """Write a change and its interval as the README does."""
    change, low, high = (format(row[column], f"+{form}") for column in ("change", "low", "high"))
    return f"{change} [{low}, {high}]"


def in_points(row):
    """Write the difference to the neutral pairs, in points."""
    columns = ["specificity", "specificity_low", "specificity_high"]
    points, low, high = 100 * row[columns]
    return f"{points:+.1f} [{low:+.1f}, {high:+.1f}]"


def readings_on_the_test_pairs(method, model=fl.DEFAULT_MODEL):
    """Return the rows of one method that the README quotes, by measure and row."""
    table = frozen("results/models.csv", model=model, method=method).set_index(["measure", "row"])
    named = {
        "gap": ("gap", "headline"),
        "neutral": ("gap", "neutral"),
        "price": ("perplexity", "text"),
        "decision": ("decision", "headline"),
    }
    return {name: table.loc[[place]].iloc[0] for name, place in named.items()}


@pytest.fixture(scope="module")
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_says_what_the_frozen_tables_say(readme):
    quoted = [(*row, fl.DEFAULT_MODEL) for row in README_ROWS.items()]
    quoted += [(*row, GEMMA) for row in README_ROWS_OF_GEMMA.items()]
    for name, method, model in quoted:
        read = readings_on_the_test_pairs(method, model)
        cells = [
            name,
            str(read["gap"]["count"]),
            with_interval(read["gap"]),
            with_interval(read["neutral"]),
            in_points(read["gap"]),
            with_interval(read["price"]),
            with_interval(read["decision"], ".3f"),
        ]
        line = "| " + " | ".join(cells) + " |"
        assert line in readme, f"put this into the README:\n{line}"
    everything = frozen("results/models.csv", measure="gap")
    sizes = everything[everything.row.isin(["headline", "neutral"])]
    assert set(sizes.pairs) == {len(fl.load_pairs(split="test")), 66}
    assert set(sizes.templates) == {12}
    assert set(sizes.attributes) == set(sizes.attributes_resampled) == {24, 6}
    pairs = (
        "284 pairs about people, with 24 new pairs of words, and 66 neutral ones with 6, in 12 new"
    )
    assert pairs in readme
    assert "| gap of 284 test pairs | gap of 66 neutral pairs |" in readme
    assert set(everything.n_random) == {10} and "below all their 10 random draws" in readme
    assert "60 steps of training" in readme
    assert inspect.signature(fl.learned_gates).parameters["steps"].default == 60
    assert f"Perplexity: {rows.PART:,} tokens of our own prose" in readme


def test_the_readme_names_the_catch_of_each_method(readme):
    """What its sentences say beside the table."""
    article, guarded, balanced, learned = map(readings_on_the_test_pairs, README_ROWS.values())
    gap = article["gap"]
    assert gap.random_low < gap.change < gap.random_high
    assert learned["gap"].change < balanced["gap"].change < guarded["gap"].change
    for method in (guarded, balanced, learned):
        assert method["price"].change < article["price"].change
        gap = method["gap"]
        assert gap.high < gap.random_low
        assert gap.high < gap.flattening_low
    categories = of_the_default_model(measure="gap", row="category").set_index("method")
    assert len(categories.loc["guarded"]) == 8
    assert (categories.loc["guarded"].change < 0).all()
    assert (categories.loc["guarded"].p_holm < 0.004).all()
    assert guarded["neutral"].high < 0
    assert not guarded["gap"].neutral_in_range
    assert balanced["neutral"].change > balanced["neutral"].random_high
    assert balanced["neutral"].low < 0 < balanced["neutral"].high
    assert balanced["decision"].low < 0 < balanced["decision"].high
    assert guarded["decision"].high < 0
    assert learned["decision"].high < 0
    assert learned["gap"].neutral_in_range
    assert learned["neutral"].random_below == 1
    random_ends = {
        "of the cut down to {:+.1%}": guarded["gap"].random_low,
        "under random cuts (down to {:+.1%})": guarded["neutral"].random_low,
        "same gates on other neurons (up to {:+.1%})": balanced["neutral"].random_high,
        "9 of 10 draws (down to {:+.1%})": learned["neutral"].random_low,
    }
    for text, end in random_ends.items():
        assert text.format(end) in readme, f"the README lacks: {text.format(end)}"
    before = guarded["decision"].before
    assert f"on average {before:.3f} nats from 0" in readme


def test_the_readme_says_what_a_second_model_does(readme):
    article, guarded, learned = (
        readings_on_the_test_pairs(method, GEMMA) for method in README_ROWS_OF_GEMMA.values()
    )
    gap = article["gap"]
    assert gap.random_low < gap.change < gap.random_high
    table = frozen("results/models.csv", model=GEMMA)
    assert not table.method.isin(["balanced gates"]).any()  # their goal could not be reached
    headlines = table[(table.measure == "gap") & (table.row == "headline")]
    assert headlines.set_index("method").change.idxmin() == "learned gates"
    prices = table[table.row == "text"].set_index("method").change
    assert prices.idxmax() == "article"
    categories = table[(table.measure == "gap") & (table.row == "category")].set_index("method")
    assert len(categories.loc["guarded"]) == 8
    assert (categories.loc["guarded"].change < 0).all()
    assert (categories.loc["guarded"].high > 0).sum() == 2  # "the intervals of two contain 0"
    gap = guarded["gap"]
    assert gap.specificity_low < 0 < gap.specificity_high
    gap = learned["gap"]
    assert gap.high < gap.random_low
    assert gap.high < gap.flattening_low
    assert not gap.neutral_in_range
    assert learned["neutral"].high < learned["neutral"].random_low
    for text in (
        f"neutral words lose far more than under random gates (down to "
        f"{learned['neutral'].random_low:+.1%})",
        f"on Gemma {learned['decision'].before:.3f}",
    ):
        assert text in readme, f"the README lacks: {text}"


def test_the_readme_says_what_the_gates_cost_on_other_texts(readme):
    table = of_the_default_model("results/benchmarks.csv").set_index(["task", "metric", "method"])

    def of(task, metric, method="learned gates"):
        """Return a change with its interval under the names that a comparison gives them."""
        row = table.loc[(task, metric, method)].drop(["low", "high"])
        return row.rename({"change_low": "low", "change_high": "high"})

    wikitext, lambada = of("wikitext", "word_perplexity"), of("lambada_openai", "perplexity")
    accuracy, boolq = of("lambada_openai", "acc"), of("boolq", "acc")
    crows = of("crows_pairs_english", "pct_stereotype")
    points = 100 * crows[["change", "low", "high"]].astype(float)
    learned = readings_on_the_test_pairs("learned gates")["price"]
    assert wikitext.low > learned.high  # they cost more there
    assert lambada.low > learned.high
    assert accuracy.high < 0
    assert boolq.high < 0
    assert crows.low < 0 < crows.high
    dearer, cheaper = (
        of("lambada_openai", "perplexity", method).change
        for method in ("balanced gates", "guarded")
    )
    assert cheaper < lambada.change < dearer
    for text in (
        f"{with_interval(wikitext)} of perplexity on WikiText",
        f"{with_interval(lambada)} on LAMBADA",
        f"{100 * accuracy.change:+.1f} points of accuracy there",
        f"{100 * boolq.change:+.1f} on BoolQ",
        "({:+.1f} points [{:+.1f}, {:+.1f}])".format(*points),
        f"cost {dearer:+.1%} on LAMBADA, the guarded cut {cheaper:+.1%}",
    ):
        assert text in readme, f"the README lacks: {text}"


def test_the_readme_says_what_else_was_tried(readme):
    headlines = of_the_default_model(row="headline").set_index(["method", "measure"])
    gaps = headlines.xs("gap", level="measure").change
    assert {*gaps.nsmallest(2).index} == {"learned gates", "balanced gates"}
    erasure = gaps["erasure, layer 28, strength 1"]
    projection = gaps["projection, layer 28, strength 0.5"]
    assert f"the gap by {-erasure:.1%} and {-projection:.1%}" in readme
    few = headlines.loc[("searched gates, 0.2%", "gap")]
    many = headlines.loc[("searched gates, 0.6%", "gap")]
    assert f"{few['count']} by {-few.change:.1%}" in readme
    assert f"{many['count']} widen it by {many.change:.1%}" in readme
    decisions = headlines.xs("decision", level="measure").change
    assert decisions.idxmin() == "searched gates, 0.6%"
    assert f"lower the decision gap most there ({decisions.min():+.3f} nats)" in readme
    (second,) = frozen(
        "results/models.csv", model=GEMMA, measure="gap", row="headline", count=0
    ).change
    assert f"(the erasure by {-second:.1%} on Gemma)" in readme
    second = frozen("results/models.csv", model=GEMMA, measure="gap", row="headline")
    few = second.set_index("method").loc["searched gates, 0.2%"]
    assert f"({few['count']} by {-few.change:.1%} on Gemma)" in readme


def test_the_cuts_of_the_readme_cost_what_earlier_tables_say():
    """The same cuts and gates, read again: the perplexity agrees to the digits that are kept."""
    tries = frozen("results/tries.csv", read_on="held_out", count=92, measure="perplexity")
    earlier = {
        "article": frozen("results/tradeoff.csv", method="article, own pair", count=3),
        "guarded": frozen("results/tradeoff.csv", method="guarded", count=3),
        "balanced gates": tries[tries.method.str.endswith("all pairs")],
    }
    for method, table in earlier.items():
        (before,) = table[table.row == "text"].after
        assert readings_on_the_test_pairs(method)["price"].after == pytest.approx(before, rel=2e-6)


def test_the_readme_says_what_came_before(readme):
    tries = frozen("results/tries.csv", count=92, read_on="held_out", row="headline")
    older = {
        "guarded_cut": frozen("results/tradeoff.csv", method="guarded", count=3, row="headline"),
        "balanced_gates": tries[tries.method.str.endswith("all pairs")],
    }
    shown = [with_interval(table[table.measure == "gap"].iloc[0]) for table in older.values()]
    assert " and ".join(shown) in readme
    assert f"on {len(fl.load_pairs(split='held_out'))} older held-out pairs" in readme
    ledger = frozen("results/held_out_ledger.csv")
    assert f"opened {(ledger.split == 'held_out').sum()} times" in readme


def test_docstrings_say_what_the_frozen_tables_say():
    for function, method in ((fl.guarded_cut, "guarded"), (fl.balanced_gates, "balanced gates")):
        read = readings_on_the_test_pairs(method)
        text = " ".join(function.__doc__.split())
        for name in ("gap", "neutral"):
            assert f"by {100 * abs(read[name].change):.1f} %" in text, (method, name)
    guard = frozen("results/guard.csv")
    (default,) = guard.query("charge == 0.85 and protect == 0.03 and floor == 4").itertuples()
    text = " ".join(fl.guarded_scores.__doc__.split())
    for phrase in (
        f"{default.neurons} neurons narrow the gap by {-100 * default.headline:.1f} %",
        f"neutral pairs by {-100 * default.neutral:.1f} %",
        f"at {100 * default.perplexity:.1f} % of perplexity",
        f"has {len(guard) - 1} other settings",
    ):
        assert phrase in text
    for option, others in (("charge", ["protect", "floor"]), ("protect", ["charge", "floor"])):
        for _, group in guard.sort_values(option).groupby(others):
            assert group.headline.is_monotonic_increasing  # all are negative: narrower by less
            assert group.neutral.is_monotonic_increasing
            if option == "protect":
                assert group.perplexity.is_monotonic_decreasing
    assert guard[["headline", "neutral"]].max().max() < 0
    assert guard.groupby("floor").perplexity.mean().is_monotonic_increasing


def test_docstrings_of_slopes_say_what_the_frozen_tables_say():
    """How well a slope ranks neurons, and how much of their promise gates keep."""
    ranks = frozen("results/attribution.csv")
    text = " ".join(attribution_scores.__doc__.split())
    assert (len(ranks), set(ranks.neurons)) == (8, {40}) and "for each of eight categories" in text
    assert set(ranks.spearman_even) == {0.999, 1.0} and "0.999 or 1.000" in text
    few, many = ranks.best_that_narrow.min(), ranks.best_that_narrow.max()
    assert f"of the 40 best neurons, {few} to {many} do narrow the gap" in text
    low, high = ranks.spearman_best.min(), ranks.spearman_best.max()
    assert f"in another order ({low:.2f} to {high:.2f})" in text
    search = frozen("results/gates_search.csv")
    kept = -search.headline / search.goal
    assert 0.2 < kept.min() < 0.3 and 0.45 < kept.max() < 0.55
    text = " ".join(solve_gates.__doc__.split())
    assert "a quarter to a half of it in `gates_search.csv`" in text


def test_every_table_of_held_out_pairs_is_in_the_ledger():
    ledger = frozen("results/held_out_ledger.csv")
    columns = ["date", "commit", "split", "table", "read", "chosen before"]
    assert list(ledger.columns) == columns
    assert set(ledger.split) == {"held_out", "test"}
    assert not ledger.isna().any(axis=None)
    assert list(ledger.date) == sorted(ledger.date)
    listed = " ".join(ledger.table)
    tables = fl.data_path("results/controls.csv").parent.glob("*.csv")
    for path in [path for path in tables if not path.stem.endswith("_draws")]:
        table = pd.read_csv(path, low_memory=False)
        where = table.get("read_on", table.get("split"))
        if path.name in ("controls.csv", "tradeoff.csv", "held_out_ledger.csv"):
            continue
        if where is not None and where.astype(str).str.startswith("held_out").any():
            assert path.name in listed, (
                f"{path.name} was read on held-out pairs: say so in results/held_out_ledger.csv"
            )
    assert "controls.csv" in listed
    assert "tradeoff.csv" in listed


def test_every_reading_of_the_test_pairs_is_in_the_ledger():
    ledger = frozen("results/held_out_ledger.csv", split="test")
    assert set(ledger.table) == {"results/models.csv"}
    commits = set(frozen("results/models.csv").commit)
    assert commits == set(ledger.commit), "a reading and its line in the ledger name one commit"


def test_the_data_card_counts_the_rows_of_the_frozen_tables():
    card = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    counted = re.findall(r"^\| `(results/\w+\.csv)` \| (.*) \| ([\d +]+) \|$", card, re.MULTILINE)
    assert len(counted) == 21
    for name, _, count in counted:
        table = frozen(name)
        assert len(table) == sum(map(int, count.split("+"))), name
