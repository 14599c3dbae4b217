import re
import warnings
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

import fairlab as fl
from fairlab.diagnosis import Projection


def table(scale=1.0, point="mlp_output"):
    rows = [("race", point, layer, scale * (layer + 1), 10.0) for layer in range(4)]
    frame = pd.DataFrame(rows, columns=["category", "point", "layer", "difference", "scale"])
    return frame.assign(relative=frame.difference / frame.scale)


def test_layer_differences_on_one_axis():
    ax = fl.plot_layer_differences({"before": table(), "after": table(0.5)})
    assert [list(line.get_ydata()) for line in ax.lines] == [[1, 2, 3, 4], [0.5, 1, 1.5, 2]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "after"]
    assert len({line.get_marker() for line in ax.lines}) == 2  # to be told apart without colour too
    assert ax.get_ylim()[0] == 0
    relative = fl.plot_layer_differences(table(), value="relative")
    assert list(relative.lines[0].get_ydata()) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert relative.get_legend() is None


def heights(band, places):
    """Return the lower and the upper end of a filled band at each place."""
    edge = band.get_paths()[0].vertices
    at = [edge[edge[:, 0] == place, 1] for place in places]
    return [(ys.min(), ys.max()) for ys in at]


def test_layer_differences_draw_intervals_and_the_neutral_band():
    one, layers = table(), range(4)
    ends = {"difference_low": one.difference - 0.5, "difference_high": one.difference + 0.25}
    (interval,) = fl.plot_layer_differences(one.assign(**ends)).collections
    expected = [(0.5, 1.25), (1.5, 2.25), (2.5, 3.25), (3.5, 4.25)]
    assert heights(interval, layers) == expected
    of_neutral = {"neutral_difference_low": one.layer + 1, "neutral_difference_high": one.layer + 2}
    one = one.assign(**ends, **of_neutral)
    ax = fl.plot_layer_differences(one)
    band, interval = ax.collections
    assert heights(band, layers) == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert heights(interval, layers) == expected
    assert legend(ax) == ["neutral pairs"]
    ax = fl.plot_layer_differences(pd.concat([one, one.assign(category="age")]))
    (band,) = ax.collections  # a mean over categories has no interval
    assert heights(band, layers) == [(1, 2), (2, 3), (3, 4), (4, 5)]


def comparison():
    """Return the gap of two methods, as `compare` returns it."""
    rows = []
    for method in ("article", "bias alone"):
        for count in (1, 3, 15):
            row = {"method": method, "count": count, "measure": "gap", "row": "headline"}
            row |= {"category": "mean over categories", "neutral_change": 0.02}
            row |= {"change": -0.01 * count, "low": -0.02 * count, "high": 0.01}
            rows.append(row | {"random_low": -0.1, "random_high": 0.05})
    return pd.DataFrame(rows)


def random_draws(table, changes=(-0.1, 0.05, 0.01)):
    """Return the same random cuts for each row of a table, and others that no figure shows."""
    rows = []
    for row in table[["method", "count", "measure", "row", "category"]].to_dict("records"):
        for draw, change in enumerate(changes):
            rows.append(row | {"kind": "random", "draw": draw, "change": change})
            rows.append(row | {"kind": "damage", "draw": draw, "change": 0.77})
    return pd.DataFrame(rows)


def with_prices(gap):
    """Return rows of the gap, and for each a perplexity that rises by `count` per cent."""
    text = {"measure": "perplexity", "row": "text", "category": "text", "neutral_change": np.nan}
    return pd.concat([gap, gap.assign(**text, change=gap["count"] / 100)], ignore_index=True)


def clouds(ax):
    """Return the places of the grey dots."""
    (dots,) = [drawn for drawn in ax.collections if drawn.get_label() == "random cuts"]
    return dots.get_offsets()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_comparison_draws_dots_and_the_random_cloud_of_each_cut():
    frame = comparison()
    draws = random_draws(frame)
    draws.loc[draws["count"] == 3, "change"] *= 2
    other = draws.assign(method="of no row", change=0.5)
    ax = fl.plot_comparison(frame, draws=pd.concat([other, draws]))
    x, y = clouds(ax).T
    once, twice = [-10, 5, 1], [-20, 10, 2]
    assert x.tolist() == pytest.approx([*once, *twice, *once] * 2)
    assert y.round().tolist() == [place for place in range(6) for _ in range(3)]
    assert len(set(y)) == 18  # no dot hides another
    (dots,) = [container.lines[0] for container in ax.containers]
    assert dots.get_marker() == "o"
    assert dots.get_xdata().tolist() == pytest.approx([-1, -3, -15] * 2)
    assert drawn(ax.yaxis)[:2] == ["article · 1", "article · 3"]
    assert ax.get_title() == "Change of the gap, mean over categories"
    assert set(legend(ax)) == {"random cuts", "neutral pairs", "this cut, 95 % interval"}


def test_an_axis_that_is_not_linear_says_so():
    frame = with_prices(uneven()).assign(flattening_scale=1, flattening_change=0)
    assert fl.plot_comparison(frame).get_xlabel() == "change in %"
    assert fl.plot_tradeoff(frame).get_xscale() == "linear"
    wide = frame.assign(high=2.5, change=2.1)
    ax = fl.plot_comparison(wide)
    assert (ax.get_xscale(), ax.get_xlabel()) == ("symlog", "change in %, logarithmic beyond ±50")
    ax = fl.plot_dose_response(wide)
    assert (ax.get_yscale(), ax.get_ylabel()) == ("symlog", "change in %, logarithmic beyond ±50")
    ax = fl.plot_tradeoff(wide)
    assert ax.get_ylabel() == "change of the gap in %, logarithmic beyond ±50"
    assert ax.get_xscale() == "symlog"
    assert ax.get_xlabel() == "change of the perplexity in %, logarithmic beyond ±2"


def test_comparison_without_draws_shows_the_range_of_random_cuts():
    frame = uneven()
    ax = fl.plot_comparison(frame)
    assert "random cuts" not in [drawn.get_label() for drawn in ax.collections]
    assert "range of random cuts" in legend(ax)
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in ax.patches]
    expected = 100 * frame[["random_low", "random_high"]].to_numpy()
    assert np.allclose(ends, expected)
    assert [bar.get_y() + bar.get_height() / 2 for bar in ax.patches] == list(range(6))
    unknown = fl.plot_comparison(frame.assign(random_low=np.nan, random_high=np.nan))
    assert not unknown.patches


def test_cuts_of_one_compare_are_named_by_their_selection():
    frame = uneven().query("method == 'article'")
    draws = random_draws(with_prices(frame))
    tables = []
    for table in (with_prices(frame), draws):
        name = table.method + table["count"].astype(str)
        tables.append(table.assign(selection=name).drop(columns=["method", "count"]))
    frame, draws = tables
    ax = fl.plot_comparison(frame, draws=draws)
    assert drawn(ax.yaxis) == ["article1", "article3", "article15"]
    assert len(clouds(ax)) == 9
    frame = frame.assign(flattening_scale=1, flattening_change=0)
    ax = fl.plot_tradeoff(frame, draws=draws)
    names = [container.get_label() for container in ax.containers]
    assert names == ["article1", "article3", "article15"]
    assert len(clouds(ax)) == 3  # shared by the three, and drawn once


def of_every_row():
    """Return a table in which a user's category is called "headline", and one gender."""
    frame = comparison()
    categories = [frame.assign(row="category", category=name) for name in ("headline", "gender")]
    more = [
        frame.assign(row="without pronouns", category="gender"),
        frame,
        frame.assign(row="neutral", category="neutral pairs", neutral_change=np.nan),
    ]
    frames = [one.assign(change=one.change - k) for k, one in enumerate([*categories, *more])]
    return with_prices(pd.concat(frames)).drop_duplicates(
        ["method", "count", "measure", "row", "category"]
    )


@pytest.mark.parametrize(
    ("options", "place", "title"),
    [
        ({"category": "headline"}, 0, "headline"),
        ({"category": "gender"}, 1, "gender"),
        ({}, 3, "mean over categories"),
    ],
)
def test_rows_are_selected_by_what_they_are_and_not_by_a_label(options, place, title):
    frame = of_every_row()
    expected = pytest.approx([-100 * place - count for count in (1, 3, 15)] * 2)
    ax = fl.plot_comparison(frame, draws=random_draws(frame), **options)
    assert ax.containers[0].lines[0].get_xdata().tolist() == expected
    assert ax.get_title() == f"Change of the gap, {title}"
    assert len(clouds(ax)) == 18


def test_dose_and_tradeoff_show_the_mean_over_categories():
    frame = of_every_row()
    expected = pytest.approx([-300 - count for count in (1, 3, 15)] * 2)
    ax = fl.plot_dose_response(frame)
    lines = [container.lines[0].get_ydata().tolist() for container in ax.containers]
    assert [*lines[0], *lines[1]] == expected
    assert ax.get_title() == "Change of the gap, mean over categories"
    frame = frame.assign(flattening_scale=1, flattening_change=0)
    ax = fl.plot_tradeoff(frame, draws=random_draws(frame))
    lines = [container.lines[0].get_ydata().tolist() for container in ax.containers]
    assert [*lines[0], *lines[1]] == expected
    assert ax.get_title() == "What a cut brings and costs, mean over categories"


def test_tradeoff_says_nothing_of_neutral_pairs_that_were_not_read():
    frame = of_every_row().assign(flattening_scale=1, flattening_change=0)
    assert "neutral pairs, same cut" in legend(fl.plot_tradeoff(frame))
    ax = fl.plot_tradeoff(frame.assign(neutral_change=np.nan))
    assert "neutral pairs, same cut" not in legend(ax)


def test_the_perplexity_is_that_of_the_text():
    frame = of_every_row()
    ax = fl.plot_comparison(frame, measure="perplexity", draws=random_draws(frame))
    assert ax.containers[0].lines[0].get_xdata().tolist() == pytest.approx([1, 3, 15] * 2)
    assert ax.get_title() == "Change of the perplexity, text"
    assert "neutral pairs" not in legend(ax)
    ax = fl.plot_dose_response(frame, measure="perplexity")
    assert ax.get_title() == "Change of the perplexity, text"


def test_rows_that_are_not_there_are_named():
    frame = of_every_row()
    known = (
        "gap: category headline, category gender, without pronouns gender, headline, neutral; "
        "perplexity: text"
    )
    has = f"measure, row, category: expected one that table has ({known}); got "
    wrong = {
        has + "'gap', 'category', 'hair'": {"category": "hair"},
        has + "'metric', 'headline', None": {"measure": "metric"},
        has + "'perplexity', 'category', 'text'": {"measure": "perplexity", "category": "text"},
        "expected one that draws has (gap: headline); got 'gap', 'category', 'gender'": {
            "category": "gender",
            "draws": random_draws(comparison()),
        },
        "draws: expected the columns method, count, kind, measure, row, category, draw, change; "
        "got method, count, measure": {"draws": frame},
    }
    for message, options in wrong.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            fl.plot_comparison(frame, **options)
    with pytest.raises(ValueError, match="table: expected the columns measure, row, category; got"):
        fl.plot_comparison(frame.drop(columns="row"))
    with pytest.raises(ValueError, match="expected one that table has .gap: headline.; got 'perpl"):
        fl.plot_tradeoff(comparison())
    with pytest.raises(ValueError, match="table: expected the columns method, count; got"):
        fl.plot_dose_response(comparison().drop(columns="count"))
    assert plt.get_fignums() == []


def test_dose_response_has_a_line_a_method():
    ax = fl.plot_dose_response(comparison())
    assert len(ax.containers) == 2
    assert ax.containers[1].lines[0].get_ydata().tolist() == pytest.approx([-1, -3, -15])
    assert drawn(ax.xaxis) == ["1", "3", "15"]
    many = pd.concat([comparison().assign(method=f"method {k}") for k in range(11)])
    fl.plot_dose_response(many)  # more lines than colours


def uneven():
    """Return a comparison in which no two columns, and no two rows, could stand for each other."""
    frame = comparison()
    number = pd.Series(range(1, len(frame) + 1))
    frame["low"], frame["high"] = frame.change - 0.01 * number, frame.change + 0.03 * number
    frame["random_low"], frame["random_high"] = -0.05 * number, 0.02 * number
    frame["neutral_change"], frame["specificity"] = 0.07 * number, -0.04 * number
    return frame


def bars(container):
    """Return the two ends (x, y) of each error bar."""
    (collection,) = container.lines[2]
    return [(tuple(start), tuple(end)) for start, end in collection.get_segments()]


def test_comparison_draws_each_interval_and_each_neutral_change():
    frame = uneven()
    ax = fl.plot_comparison(frame)
    (container,) = ax.containers[1:]  # after the ranges of random cuts
    rows = list(enumerate(frame.itertuples()))
    expected = [((100 * row.low, place), (100 * row.high, place)) for place, row in rows]
    assert np.allclose(bars(container), expected)
    (diamonds,) = [line for line in ax.lines if line.get_marker() == "D"]
    assert diamonds.get_xdata().tolist() == pytest.approx((100 * frame.neutral_change).tolist())
    assert diamonds.get_ydata().round().tolist() == list(range(6))


def test_an_interval_that_is_unknown_or_of_no_length_is_no_error():
    frame = with_prices(uneven()).assign(flattening_scale=1, flattening_change=0)
    point = frame.assign(low=np.nextafter(frame.change, 1), high=np.nextafter(frame.change, -1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for table in (point, frame.assign(low=np.nan, high=np.nan)):
            for plot in (fl.plot_comparison, fl.plot_dose_response, fl.plot_tradeoff):
                plot(table).figure.canvas.draw()


def test_an_end_on_the_wrong_side_of_the_change_has_no_bar():
    frame = uneven()
    frame["low"] = frame.change + 0.01
    (container,) = fl.plot_comparison(frame).containers[1:]
    rows = list(enumerate(frame.itertuples()))
    expected = [((100 * row.change, place), (100 * row.high, place)) for place, row in rows]
    assert np.allclose(bars(container), expected)


def test_dose_response_draws_each_interval_and_the_widest_range_of_random_cuts():
    frame = uneven()
    ax = fl.plot_dose_response(frame)
    ends = [bar for container in ax.containers for bar in bars(container)]
    assert np.allclose(np.array(ends)[..., 1], 100 * frame[["low", "high"]])
    widest = frame.groupby("count").agg({"random_low": "min", "random_high": "max"})
    drawn_ends = heights(ax.collections[0], widest.index)
    assert np.allclose(drawn_ends, 100 * widest[["random_low", "random_high"]])


def test_tradeoff_draws_each_interval_and_each_stem():
    gap = uneven().assign(flattening_scale=0.9, flattening_change=-0.1)
    ax = fl.plot_tradeoff(with_prices(gap))
    ends = [bar for container in ax.containers for bar in bars(container)]
    rows = list(gap.rename(columns={"count": "price"}).itertuples())
    expected = [((row.price, 100 * row.low), (row.price, 100 * row.high)) for row in rows]
    assert np.allclose(ends, expected)
    *_, stems, diamonds = ax.collections
    between = [
        [(row.price, 100 * row.change), (row.price, 100 * row.neutral_change)] for row in rows
    ]
    assert np.allclose(stems.get_segments(), between)
    assert np.allclose(diamonds.get_offsets(), [stem[1] for stem in between])


def overlaps():
    """Return what three sets of people's words and two of neutral ones share."""
    rows = [
        ("demographic", "race", "age", 7),
        ("demographic", "age", "race", 9),
        ("demographic", "race", "race", 12),
        ("demographic", "age", "age", 3),
        ("mixed", "race", "mood", 2),
        ("mixed", "race", "time", 6),
        ("mixed", "age", "mood", 4),
        ("mixed", "age", "time", 4),
        ("neutral", "mood", "time", 5),
        ("mixed, same sentence", "race", "mood", 40),
    ]
    table = pd.DataFrame(rows, columns=["words", "one", "other", "shared"])
    return table.assign(
        chance_low=0, chance_high=1, neurons=90.0, score="article", comparison="attributes"
    )


def test_overlap_draws_each_set_against_both_lines():
    ax = fl.plot_overlap(overlaps())
    assert (
        drawn(ax.yaxis) == ["race", "age", "mood", "time"] and ax.yaxis_inverted()
    )  # neutral sets below the others
    strip, *bands = ax.patches
    assert (strip.get_x(), strip.get_width(), strip.get_label()) == (0, 1, "chance, 95 %")
    assert [(b.get_x(), b.get_width(), b.get_y() + b.get_height() / 2) for b in bands] == [
        (2, 4, 0),
        (4, 0, 1),
    ]
    marks = {}  # all that is drawn with a marker, by row
    for line in ax.lines:
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
            marks.setdefault((line.get_marker(), round(y)), []).append(x)
    people = {("o", 0): [7, 9], ("o", 1): [7, 9], ("*", 0): [12], ("*", 1): [3]}
    assert marks == {("|", 0): [4], ("|", 1): [4], **people, ("D", 2): [5], ("D", 3): [5]}
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[:2] == ["chance, 95 %", "with neutral words"]
    assert set(names[2:]) == {
        "their mean",
        "with the other sets",
        "the same words again",
        "neutral with neutral",
    }
    assert ax.get_title() == "Neurons that two sets of 90 share"


def test_overlap_of_sets_of_people_alone_has_no_band():
    ax = fl.plot_overlap(
        overlaps().query("words == 'demographic' and one != other").drop(columns="neurons")
    )
    assert len(ax.patches) == 1
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["chance, 95 %", "with the other sets"]
    assert ax.get_title() == "Neurons that two sets share"


def transfer():
    cells = [
        ("race", "race", -0.4, -0.6, -0.2),
        ("race", "neutral", 0.02, -0.1, 0.1),
        ("race", "age", -0.1, -0.3, 0.1),
        ("age", "race", 0.3, 0.1, 0.5),
        ("age", "neutral", 0.01, -0.04, 0.06),
        ("age", "age", -0.25, np.nan, np.nan),
    ]
    table = pd.DataFrame(cells, columns=["chosen_on", "read_on", "change", "low", "high"])
    return table.assign(
        random_low=-0.03,
        random_high=table.read_on.map({"race": 0.05, "age": 0.04, "neutral": 0.06}),
    )


@pytest.mark.parametrize("inches", [9, 2.2])
def test_transfer_is_a_heatmap_with_pale_cells_where_nothing_can_be_told(inches):
    _, ax = plt.subplots(figsize=(inches, 3), layout="constrained")
    assert fl.plot_transfer(transfer(), ax=ax) is ax
    assert drawn(ax.xaxis) == ["race", "age", "neutral"]  # neutral comes last, and apart
    assert drawn(ax.yaxis) == ["race", "age", "random cuts"][: 3 if inches == 9 else 2]
    cells = {(patch.get_x(), patch.get_y()): patch for patch in ax.patches}
    assert list(cells) == [(0, 0), (2.3, 0), (1, 0), (0, 1), (2.3, 1), (1, 1)]
    alphas = {place: patch.get_facecolor()[3] for place, patch in cells.items()}
    assert {place for place, alpha in alphas.items() if alpha == 1} == {(0, 0), (0, 1)}
    assert set(alphas.values()) == {0.3, 1}
    fall, rise = cells[0, 0].get_facecolor(), cells[0, 1].get_facecolor()
    assert (
        fall[2] > fall[0] and rise[0] > rise[2]
    )  # blue where the gap narrows, red where it widens
    framed = [place for place, patch in cells.items() if patch.get_edgecolor()[:3] == (0, 0, 0)]
    assert framed == [(0, 0), (1, 1)]
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts[0.5, 0.5] == ("-40\n-60 … -20" if inches == 9 else "-40")  # no room, no interval
    assert texts[1.5, 1.5] == ("-25\nno interval" if inches == 9 else "-25")
    ranges = ["-3 … +5", "-3 … +4", "-3 … +6"] if inches == 9 else [None] * 3
    assert [texts.get((x, 2.8)) for x in (0.5, 1.5, 2.8)] == ranges
    (bar,) = [other for other in ax.figure.axes if other is not ax]
    assert (
        bar.get_ylim() == pytest.approx((-40, 40)) and bar.get_ylabel() == "change of the gap in %"
    )


def test_tradeoff_draws_cuts_neutral_prompts_random_cuts_and_flattening():
    gap = comparison()
    flattening = {"flattening_scale": 0.9, "flattening_change": -gap["count"] / 10}
    table = with_prices(gap.assign(neutral_change=0.2, **flattening))
    draws = random_draws(table)
    dear = (draws.measure == "perplexity") & (draws.kind == "random")
    draws.loc[dear, "change"] = 0.01 * (1 + draws.draw[dear])
    ax = fl.plot_tradeoff(table, draws=draws.sample(frac=1, random_state=0))
    dots = [container.lines[0] for container in ax.containers]
    assert [container.get_label() for container in ax.containers] == ["article", "bias alone"]
    assert dots[0].get_xdata().tolist() == pytest.approx([1, 3, 15])
    assert dots[0].get_ydata().tolist() == pytest.approx([-1, -3, -15])
    # all cuts share their random cuts, which are drawn once
    assert np.allclose(sorted(clouds(ax).tolist()), [[1, -10], [2, 5], [3, 1]])
    flat = next(line for line in ax.lines if line.get_label() == "flattening of the same price")
    assert flat.get_ydata().tolist() == pytest.approx([-10, -10, -30, -30, -150, -150])
    (diamonds,) = [drawn for drawn in ax.collections if drawn.get_label().startswith("neutral")]
    assert np.allclose(diamonds.get_offsets()[:, 1], 20)
    colors = [tuple(color) for color in diamonds.get_edgecolors()[:, :3]]
    assert colors[:3] == [dots[0].get_color()] * 3 and colors[3:] == [dots[1].get_color()] * 3
    without_draws = fl.plot_tradeoff(table)
    assert "random cuts" not in legend(without_draws)


def test_a_scale_of_1_is_no_flattening_to_be_drawn():
    frame = with_prices(comparison()).assign(flattening_change=-0.1)
    line = pytest.approx([3, 3, 15, 15])  # the prices of scales below 1
    for scales, lines in (((1, 0.9, 0.8), [line]), ((1, 1, 1), [])):
        scale = frame["count"].map(dict(zip((1, 3, 15), scales, strict=True)))
        ax = fl.plot_tradeoff(frame.assign(flattening_scale=scale))
        dotted = [line.get_xdata().tolist() for line in ax.lines if line.get_linestyle() == ":"]
        assert dotted == lines


def projection():
    numbers = np.random.default_rng(0)
    coordinates, distances = numbers.normal(size=(3, 2, 4, 2)), numbers.uniform(1, 2, (3, 4))
    coordinates[:, 1, 0], distances[:, 0] = coordinates[:, 0, 0], 0
    norms, explained = (
        numbers.uniform(3, 9, (3, 4)),
        np.array([[0.5, 0.25], [0.4, 0.2], [0.3, 0.1]]),
    )
    words = ("A", " man", " $$", "\n"), ("A", " woman", " $$", "\n")  # dollar signs are no formula
    names = "man", "$x$"
    return Projection("residual", *words, coordinates, explained, distances, norms, *names)


def drawn(axis):
    """Return the tick labels as they are drawn."""
    axis.get_figure().canvas.draw()
    return [text.get_text() for text in axis.get_ticklabels()]


def test_token_shifts_join_the_two_probabilities_of_a_token():
    tokens = [" her", "\n", " $$", " $x$"]
    table = pd.DataFrame(
        {"token": tokens, "probability_a": [0.4, 0.1, 0.2, 0], "probability_b": [0.1, 0.3, 0, 0.1]}
    )
    ax = fl.plot_token_shifts(table)
    (joints,), (a, b) = ax.collections, ax.lines
    assert [line.tolist() for line in joints.get_segments()] == [
        [[row.probability_a, place], [row.probability_b, place]]
        for place, row in enumerate(table.itertuples())
    ]
    assert a.get_xydata().tolist() == [
        [value, place] for place, value in enumerate(table.probability_a)
    ]
    assert b.get_xydata().tolist() == [
        [value, place] for place, value in enumerate(table.probability_b)
    ]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "after prompt a",
        "after prompt b",
    ]
    pair = fl.PromptPair("The Black man", "The white man", "Black", "white")
    legend = fl.plot_token_shifts(table, pair=pair).get_legend()
    named = ["after prompt with Black", "after prompt with white"]
    assert [text.get_text() for text in legend.get_texts()] == named
    assert a.get_marker() != b.get_marker()  # to be told apart without colour too
    assert drawn(ax.yaxis) == [repr(token) for token in tokens]
    assert (
        ax.yaxis_inverted() and ax.get_xlim()[0] == 0
    )  # the largest shift, which comes first, on top


@pytest.mark.parametrize("layer", [0, 2])
def test_projection_draws_both_prompts_and_an_arrow_where_they_differ(layer):
    expected = projection()
    at_a, at_b = expected.coordinates[layer]
    ax = fl.plot_projection(expected, layer=layer)
    arrows, a, b = ax.collections
    assert np.array_equal(a.get_offsets(), at_a) and np.array_equal(b.get_offsets(), at_b)
    assert arrows.Umask.tolist() == [True, False, False, False]
    assert np.allclose((arrows.get_offsets() + np.c_[arrows.U, arrows.V])[1:], at_b[1:])
    labels = [(text.get_text(), text.xy) for text in ax.texts if text.get_visible()]
    # what is the same is written once, and what does not move is not labelled
    assert [label for label, _ in labels] == ["man", "woman", "$$", ""]
    assert np.array_equal([at for _, at in labels], [at_a[1], *at_b[1:]])
    assert legend(ax) == ["prompt with man", "prompt with $x$"]
    assert ax.get_title() == f"residual, layer {layer}"
    first, second = {0: (50, 25), 2: (30, 10)}[layer]
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        f"axis 1 ({first} % of the variance)",
        f"axis 2 ({second} %)",
    )
    ax.figure.canvas.draw()
    for k in (
        1,
        2,
        3,
    ):  # the tip on the screen: the point of an arrow that is farthest from its beginning
        outline = arrows.get_transform().transform(arrows.get_paths()[k].vertices)
        tip = outline[np.linalg.norm(outline, axis=1).argmax()]
        assert tip == pytest.approx(
            np.subtract(*ax.transData.transform([at_b[k], at_a[k]])), abs=0.1
        )
    assert a.get_paths()[0].vertices.shape != b.get_paths()[0].vertices.shape  # not by colour alone


def crowd(tokens=12):
    """Return a projection of many tokens in a small place; the later ones move further."""
    numbers = np.random.default_rng(1)
    coordinates = numbers.normal(size=(1, 2, tokens, 2))
    distances = np.arange(tokens, dtype=float)[None]
    names = tuple(f"token{place}" for place in range(tokens))
    shares, lengths = np.full((1, 2), 0.3), np.ones((1, tokens))
    return Projection("residual", names, names, coordinates, shares, distances, lengths, "", "")


def labels_of(ax):
    return [text for text in ax.texts if text.get_visible()]


def test_projection_labels_the_tokens_that_move_furthest_or_those_asked_for():
    ax = fl.plot_projection(crowd(), layer=0)
    assert [text.get_text() for text in labels_of(ax)] == [f"token{k}" for k in (8, 9, 10, 11)]
    assert legend(ax) == ["prompt a", "prompt b"]  # a pair may have no names
    ax = fl.plot_projection(crowd(), layer=0, words=["token0", "token5"])
    assert [text.get_text() for text in labels_of(ax)] == ["token0", "token5"]
    ax = fl.plot_projection(projection(), layer=0, words=["woman"])
    assert [text.get_text() for text in labels_of(ax)] == ["man", "woman"]
    slipped = replace(projection(), tokens_a=("man", *"xyz"), tokens_b=("woman", *"xyz"))
    ax = fl.plot_projection(slipped, layer=0, words=["man"])
    assert [text.get_text() for text in labels_of(ax)] == ["man/woman"]  # both at one place


@pytest.mark.parametrize(("limits", "shown"), [((-4, 4), 6), ((-2, 2), 4)])
def test_labels_of_tokens_hide_nothing_wherever_the_limits_are_set(limits, shown):
    """Not even where the limits change after the labels were put there."""
    words = [f"token{place}" for place in range(0, 12, 2)]
    ax = fl.plot_projection(crowd(), layer=0, words=words)
    ax.set(xlim=limits, ylim=limits)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in labels_of(ax)]
    inside = [box for box in boxes if ax.bbox.overlaps(box)]
    assert len(inside) == shown
    for box in inside:
        assert not any(box.overlaps(other) for other in inside if other is not box)
        assert ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1
    middles = ax.transData.transform(crowd().coordinates[0].reshape(-1, 2))
    assert not any(box.contains(*middle) for box in inside for middle in middles)
    pixels = np.array(ax.figure.canvas.buffer_rgba())
    ax.figure.canvas.draw()  # the labels were moved before they were drawn, not after
    assert np.array_equal(ax.figure.canvas.buffer_rgba(), pixels)


def test_labels_of_tokens_at_one_place_or_in_a_corner_stay_readable():
    places = np.array([[0, 0], [0, 0], [0, 0], [0, 0], [1, 1], [-1, -1]], float)
    words = tuple(f"a long word {number}" for number in range(len(places)))
    one = replace(crowd(6), tokens_a=words, tokens_b=words)
    one = replace(one, coordinates=np.stack([places, places])[None])
    ax = fl.plot_projection(one, layer=0, words=words)
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in labels_of(ax)]
    assert len(boxes) == 6
    for box in boxes:
        assert not any(box.overlaps(other) for other in boxes if other is not box)
        assert (ax.bbox.min <= box.min).all() and (box.max <= ax.bbox.max).all()


def test_an_arrow_has_a_head_of_the_same_size_in_every_picture():
    def breadth(inches):
        _, ax = plt.subplots(figsize=(inches, inches))
        fl.plot_projection(crowd(), layer=0, ax=ax)
        ax.figure.canvas.draw()
        arrows = ax.collections[0]
        return arrows.headwidth * arrows.width * arrows.get_transform().get_matrix()[0, 0]

    assert breadth(2) == pytest.approx(breadth(6)) and breadth(2) > 7  # pixels


def test_distances_are_a_heatmap_of_tokens_and_layers():
    expected = projection()
    for relative, values in (
        (False, expected.distances),
        (True, expected.distances / expected.norms),
    ):
        ax = fl.plot_distances(expected, relative=relative)
        (image,) = ax.images
        assert np.array_equal(image.get_array(), values) and image.origin == "lower"
        assert image.get_clim() == (0, values.max())
        assert drawn(ax.xaxis) == ["A", "man/woman", "$$", repr("\n")]
        name = "distance / length" if relative else "distance"
        assert image.colorbar.ax.get_ylabel() == name
        divided = ", divided by the length" if relative else ""
        assert ax.get_title() == f"Distance between the prompts{divided}, residual"
        assert all(tick == int(tick) for tick in ax.get_yticks())  # no layer 0.5


def test_figures_are_drawn_where_they_are_asked_to_be():
    _, ax = plt.subplots()
    assert fl.plot_projection(projection(), layer=0, ax=ax) is ax
    assert fl.plot_distances(projection(), ax=ax) is ax
    shifts = pd.DataFrame({"token": ["a"], "probability_a": [0.1], "probability_b": [0.2]})
    assert fl.plot_token_shifts(shifts, ax=ax) is ax
    assert fl.plot_layer_differences(table(), ax=ax) is ax
    assert fl.plot_overlap(overlaps(), ax=ax) is ax
    assert fl.plot_score_plane(torch.rand(2, 5), torch.rand(2, 5), layer=0, ax=ax) is ax


def test_score_plane_marks_the_cut():
    bias, importance = torch.rand(2, 50), torch.rand(2, 50)
    selection = fl.NeuronSelection({1: (4, 7)}, (2, 50))
    ax = fl.plot_score_plane(bias, importance, selection, layer=1)
    everyone, cut = (collection.get_offsets() for collection in ax.collections)
    assert len(everyone) == 50
    assert torch.allclose(
        torch.tensor(cut).float(), torch.stack([importance[1, [4, 7]], bias[1, [4, 7]]], 1)
    )
    assert [text.get_text() for text in ax.texts] == ["4", "7"]
    assert len(fl.plot_score_plane(bias, importance, selection, layer=0).collections) == 1


def test_bad_input_is_named():
    with pytest.raises(
        ValueError, match="value: expected one of difference, scale, relative; got 'depth'"
    ):
        fl.plot_layer_differences(table(), value="depth")
    with pytest.raises(
        ValueError, match="tables: expected one capture point; got gate_proj, mlp_output"
    ):
        fl.plot_layer_differences({"a": table(), "b": table(point="gate_proj")})
    with pytest.raises(
        ValueError, match=r"expected tables of one shape .*; got \(2, 5\) and \(2, 6\)"
    ):
        fl.plot_score_plane(torch.rand(2, 5), torch.rand(2, 6), layer=0)
    with pytest.raises(ValueError, match="layer: expected a whole number from 0 to 1; got 2"):
        fl.plot_score_plane(torch.rand(2, 5), torch.rand(2, 5), layer=2)
    with pytest.raises(ValueError, match="table: expected one score; got article, attribution"):
        fl.plot_overlap(pd.concat([overlaps(), overlaps().assign(score="attribution")]))
    with pytest.raises(ValueError, match="table: expected demographic rows; got mixed"):
        fl.plot_overlap(overlaps().query("words == 'mixed'"))
    for wrong in (transfer()[:0], pd.concat([transfer(), transfer()[:1]])):
        with pytest.raises(
            ValueError, match="table: expected one row for each chosen_on and read_on; got"
        ):
            fl.plot_transfer(wrong)
    for layer in (3, -1, "0"):
        with pytest.raises(
            ValueError, match=f"layer: expected a whole number from 0 to 2; got {layer!r}"
        ):
            fl.plot_projection(projection(), layer=layer)
    with pytest.raises(ValueError, match="words: expected tokens of the prompts .*man.*; got 'mn'"):
        fl.plot_projection(projection(), layer=0, words=["mn"])
    assert plt.get_fignums() == []


def test_the_frozen_overlaps_and_transfers_are_complete_and_agree_with_themselves():
    table = pd.read_csv(fl.data_path("results/shared.csv"))
    assert (
        not table[["model", "weights_sha256", "commit", "versions", "seed", "split"]]
        .isna()
        .any(axis=None)
    )
    overlap = table[table.part == "overlap"]
    counts = overlap.groupby(["score", "comparison"]).size().to_dict()
    assert counts == {
        (score, comparison): count
        for score in ("article", "attribution")
        for comparison, count in (
            ("attributes", 11 * 11),
            ("words", 6 * 6),
            ("sentences", 12 * 11 // 2),
        )
    }
    assert overlap.shared.between(0, 90).all() and np.allclose(overlap.chance, 90 * 90 / 46080)
    race, age = (
        overlap[(overlap.one == name) & (overlap.words == "mixed")] for name in ("race", "age")
    )
    own = [
        rows[(rows.score == "article") & (rows.comparison == "attributes")].shared
        for rows in (race, age)
    ]
    row = overlap.query("score == 'article' and one == 'race' and other == 'age'").iloc[0]
    expected = pd.concat(own)
    assert (
        len(expected) == 12
    )  # three groups of neutral words, both halves of the sentences, two attributes
    assert (row.neutral_low, row.neutral_high) == (expected.min(), expected.max())
    assert row.neutral == pytest.approx(expected.mean(), rel=1e-5)
    cells = table[table.part == "transfer"].pivot(
        index="chosen_on", columns="read_on", values="change"
    )
    assert cells.shape == (9, 10) and cells.notna().all(axis=None)
    summary = table[table.part == "summary"].set_index(["chosen_on", "read_on"]).change
    people = [name for name in cells.index if name != "all"]
    own = np.mean([cells.loc[name, name] for name in people])
    others = np.mean([cells.loc[a, b] for a in people for b in people if a != b])
    assert summary["mean of cuts", "own attribute"] == pytest.approx(own, rel=1e-4)
    assert summary["mean of cuts", "own − other attributes"] == pytest.approx(
        own - others, rel=1e-4
    )
    assert summary["all", "other attributes"] == pytest.approx(
        cells.loc["all", people].mean(), rel=1e-4
    )
    cuts = table[table.part == "cut"].cut.map(fl.NeuronSelection.from_json)
    assert [len(cut) for cut in cuts] == [90] * 9
