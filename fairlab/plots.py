"""Figures: data and `ax=None` in, the matplotlib `Axes` out; nothing is shown or saved.

Contents: `plot_token_shifts`, `plot_layer_differences`, `plot_projection`, `plot_distances`, `plot_score_plane`,
`plot_comparison`, `plot_dose_response`, `plot_tradeoff`, `plot_overlap`, `plot_transfer`; `token_artists` and
`token_labels`, which the explorers share, and `as_written`.
"""

from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryFormatter
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from torch import Tensor

from fairlab.projection import Projection
from fairlab.surgery import NeuronSelection

COLORS = sns.color_palette("colorblind")
WIDE = 2.0  # changes beyond ±200 % are drawn on an axis that is linear up to 50 % and logarithmic beyond


def plot_token_shifts(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the two probabilities of each token of a `top_token_shifts` table, joined by a line: the shift."""
    ax = ax or plt.subplots(figsize=(6, 0.9 + 0.26 * len(table)), layout="constrained")[1]
    places = range(len(table))
    ax.hlines(places, table.probability_a, table.probability_b, color="0.75", linewidth=2, zorder=0)
    ax.plot(table.probability_a, places, "o", color=COLORS[0], label="after prompt a")
    ax.plot(table.probability_b, places, "D", color=COLORS[1], markersize=5, label="after prompt b")
    ax.set_yticks(places, [repr(token) for token in table.token], parse_math=False)
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set(xlabel="probability of the next token", title="The next tokens that shift most")
    ax.legend(frameon=False)
    sns.despine(ax=ax)
    return as_written(ax)


def plot_layer_differences(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame], *, value: str = "difference", ax: Axes | None = None
) -> Axes:
    """Draw a value of `layer_differences` per layer, one line a table, all on one axis.

    Intervals are drawn as bands round the lines, and the band of neutral pairs in grey, where the first table has one.

    Parameters
    ----------
    tables : DataFrame, or dict of DataFrames
        One table, or several by name such as {"before": …, "after": …}, each of one capture point. Where a table has
        several categories, the line is their mean, without an interval.
    value : str
        "difference", "scale" or "relative".

    Raises
    ------
    ValueError
        Unknown value; a table of no or of several capture points.
    """
    if value not in ("difference", "scale", "relative"):
        raise ValueError(f"value: expected one of difference, scale, relative; got {value!r}")
    tables = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    points = {point for table in tables.values() for point in table["point"].unique()}
    if len(points) != 1:
        raise ValueError(f"tables: expected one capture point; got {', '.join(sorted(points)) or 'none'}")
    ax = ax or plt.subplots(figsize=(7, 3.2), layout="constrained")[1]
    first = next(iter(tables.values())).drop_duplicates("layer")
    if f"neutral_{value}_low" in first:
        band = first[f"neutral_{value}_low"], first[f"neutral_{value}_high"]
        ax.fill_between(first.layer, *band, color="0.8", linewidth=0, label="neutral pairs")
    for number, (name, table) in enumerate(tables.items()):
        mean = table.groupby("layer")[value].mean()
        style = {"marker": "osD^"[number % 4], "linestyle": ("-", "--", ":", "-.")[number % 4]}
        ax.plot(mean.index, mean, color=COLORS[number], markersize=4, label=name or None, **style)
        if f"{value}_low" in table and table.category.nunique() == 1 and table[f"{value}_low"].notna().all():
            band = table[f"{value}_low"], table[f"{value}_high"]
            ax.fill_between(table.layer, *band, color=COLORS[number], alpha=0.25, linewidth=0)
    labels = {
        "difference": "mean |A(a) − A(b)|\n(units of activation)",
        "scale": "mean |A|\n(units of activation)",
        "relative": "mean |A(a) − A(b)| / mean |A|",
    }
    title = f"{'Relative difference' if value == 'relative' else value.capitalize()} of {points.pop()} by layer"
    ax.set(xlabel="layer", ylabel=labels[value], title=title)
    ax.set_ylim(bottom=0)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False)
    sns.despine(ax=ax)
    return as_written(ax)


def plot_comparison(
    table: pd.DataFrame, *, measure: str = "gap", category: str = "headline", ax: Axes | None = None
) -> Axes:
    """Draw the change that each cut of a `compare` table brings: dots with intervals, the random cuts as a cloud behind
    them, neutral prompts as open diamonds.

    Parameters
    ----------
    table : DataFrame
        From `compare`, or `data/results_controls.csv` with its columns `method` and `count`.
    measure, category : str
        Which rows: "gap" or "metric" of a category or "headline"; "perplexity" of "text".

    Raises
    ------
    ValueError
        No such rows; the message lists what the table has.
    """
    rows = _rows_of(table, measure, category)
    names = rows.selection if "selection" in rows else rows.method + " · " + rows["count"].astype(str)
    ax = ax or plt.subplots(figsize=(7, 0.9 + 0.34 * len(rows)), layout="constrained")[1]
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    for place, row in enumerate(rows.to_dict("records")):
        first = place == 0
        drawn = [100 * float(change) for change in row["random_changes"].split()]
        jitter = [place + 0.3 * ((7 * k % len(drawn)) / len(drawn) - 0.5) for k in range(len(drawn))]
        ax.scatter(drawn, jitter, s=14, color="0.75", linewidths=0, label="random cuts" if first else None)
        change, low, high = (100 * row[column] for column in ("change", "low", "high"))
        ax.plot([low, high], [place, place], color=COLORS[0], linewidth=1.6)
        ax.plot(change, place, "o", color=COLORS[0], label="this cut, 95 % interval" if first else None)
        if pd.notna(row.get("neutral_change")):
            marker = {
                "marker": "D",
                "markerfacecolor": "none",
                "color": COLORS[3],
                "linestyle": "none",
                "markersize": 6,
            }
            ax.plot(100 * row["neutral_change"], place + 0.25, **marker, label="neutral prompts" if first else None)
    if rows[["low", "high"]].abs().max(axis=None) > WIDE:
        _stretch(ax, "x")
    ax.set_yticks(range(len(rows)), names)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set(xlabel="change in %", title=f"Change of the {measure}, {category}")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    sns.despine(ax=ax)
    return as_written(ax)


def plot_dose_response(
    table: pd.DataFrame, *, measure: str = "gap", category: str = "headline", ax: Axes | None = None
) -> Axes:
    """Draw the change against the number of neurons cut, a line a method with its intervals, the range of random cuts
    in grey.

    Parameters
    ----------
    table : DataFrame
        A `compare` table with the columns `method` and `count` (neurons a layer) in place of `selection`.

    Raises
    ------
    ValueError
        No such rows, or no columns `method` and `count`.
    """
    if not {"method", "count"} <= set(table.columns):
        raise ValueError(f"table: expected the columns method and count; got {', '.join(table.columns)}")
    rows = _rows_of(table, measure, category)
    ax = ax or plt.subplots(figsize=(7, 3.6), layout="constrained")[1]
    chance = rows.groupby("count")[["random_low", "random_high"]].agg({"random_low": "min", "random_high": "max"}) * 100
    ax.fill_between(chance.index, chance.random_low, chance.random_high, color="0.85", label="range of random cuts")
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    methods = rows.method.drop_duplicates()
    for number, method in enumerate(methods):
        line = rows[rows.method == method].sort_values("count")
        shifted = line["count"] * 1.05 ** (number - len(methods) / 2)  # apart, so that no interval hides another
        ends = 100 * (line.change - line.low), 100 * (line.high - line.change)
        style = {
            "marker": "osD^vP"[number % 6],
            "linestyle": ("-", "--", ":", "-.")[number % 4],
            "color": COLORS[number],
        }
        ax.errorbar(shifted, 100 * line.change, yerr=ends, **style, markersize=5, linewidth=1.2, label=method)
    if rows[["low", "high"]].abs().max(axis=None) > WIDE:
        _stretch(ax, "y")
    ax.set_xscale("log")
    ax.set_xticks(chance.index, chance.index)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="neurons cut in each layer", ylabel="change in %", title=f"Change of the {measure}, {category}")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    sns.despine(ax=ax)
    return as_written(ax)


def plot_tradeoff(table: pd.DataFrame, *, category: str = "headline", ax: Axes | None = None) -> Axes:
    """Draw what each cut brings against what it costs: change of the gap over change of the perplexity.

    Dots with intervals are the cuts, those of one method joined in order of size; an open diamond is what the same cut
    does to neutral prompts: a long stem between the two is a cut that acts on the word's meaning, a short one has made
    the model deaf. Grey dots are random cuts. The dotted line is a mere flattening of the predictions: a cut above it
    buys less than a temperature.

    Parameters
    ----------
    table : DataFrame
        From `compare`, or `data/results_tradeoff.csv` with its columns `method` and `count`.
    category : str
        Whose gap: a category, or "headline".

    Raises
    ------
    ValueError
        No such rows; the message lists what the table has.
    """
    key = ["method", "count"] if "method" in table else ["selection"]
    prices = _rows_of(table, "perplexity", "text")[[*key, "change", "random_changes"]]
    rows = _rows_of(table, "gap", category).merge(prices, on=key, suffixes=("", "_price"))
    ax = ax or plt.subplots(figsize=(7.5, 4.2), layout="constrained")[1]
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    drawn = rows.dropna(subset="random_changes").drop_duplicates(["random_changes", "random_changes_price"])
    cloud = [
        (100 * float(x), 100 * float(y))
        for row in drawn.to_dict("records")
        for x, y in zip(row["random_changes_price"].split(), row["random_changes"].split(), strict=True)
    ]
    if cloud:
        ax.scatter(*zip(*cloud, strict=True), s=14, color="0.75", linewidths=0, label="random cuts")
    flat = rows[rows.flattening_scale < 1].sort_values("change_price")
    if len(flat) > 1:
        line = 100 * flat[["change_price", "flattening_change"]]
        ax.plot(*line.to_numpy().T, ":", color="0.4", linewidth=1.2, label="flattening of the same price")
    for number, (method, some) in enumerate(rows.groupby(key[0], sort=False)):
        line = some.sort_values(key[-1])
        x, y, color = 100 * line.change_price, 100 * line.change, COLORS[number % len(COLORS)]
        ends = 100 * (line.change - line.low), 100 * (line.high - line.change)
        ax.errorbar(
            x, y, yerr=ends, fmt="-" + "osD^vP"[number % 6], markersize=5, linewidth=1, color=color, label=method
        )
        ax.vlines(x, y, 100 * line.neutral_change, color=color, linewidth=3, alpha=0.25)
        label = "neutral prompts, same cut" if number == 0 else None
        ax.plot(x, 100 * line.neutral_change, "D", markerfacecolor="none", markersize=5, color=color, label=label)
    if 100 * rows.change_price.abs().max() > 20:
        ax.set_xscale("symlog", linthresh=2)
        ax.xaxis.set_major_locator(FixedLocator([-2, -1, 0, 1, 2, 5, 10, 30, 100, 300, 1000]))
        ax.xaxis.set_major_formatter("{x:g}")
    if rows[["low", "high"]].abs().max(axis=None) > WIDE:
        _stretch(ax, "y")
    ax.set(
        xlabel="change of the perplexity in %",
        ylabel="change of the gap in %",
        title=f"What a cut brings and costs, {category}",
    )
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    sns.despine(ax=ax)
    return as_written(ax)


def plot_overlap(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how many neurons each set shares with the others, against two lines: a strip for chance, and a band a set
    for what it shares with sets chosen on neutral words (from the lowest to the highest, the mean as a tick).

    Parameters
    ----------
    table : DataFrame
        The overlap rows of `data/results_shared.csv` of one score and comparison. Columns `one`, `other` (names of two
        sets; the same name: the same words in other sentences, a star), `words` ("demographic", "mixed", "neutral";
        other rows are left out), `shared`, `chance_low`, `chance_high`.

    Raises
    ------
    ValueError
        No demographic rows, or several scores or comparisons.
    """
    for column in ("score", "comparison"):
        if column in table and table[column].nunique() > 1:
            raise ValueError(f"table: expected one {column}; got {', '.join(table[column].unique())}")
    rows = {words: table[table.words == words] for words in ("demographic", "mixed", "neutral")}
    if rows["demographic"].empty:
        raise ValueError(f"table: expected demographic rows; got {', '.join(table.words.unique()) or 'none'}")
    people, neutral = (
        list(dict.fromkeys([*rows[words].one, *rows[words].other])) for words in ("demographic", "neutral")
    )
    ax = ax or plt.subplots(figsize=(7, 1.3 + 0.3 * len(people + neutral)), layout="constrained")[1]
    chance = table.chance_low.min(), table.chance_high.max()
    ax.axvspan(*chance, color=COLORS[1], alpha=0.35, linewidth=0, label="chance, 95 %", zorder=0)
    others = {"linestyle": "none", "markersize": 5, "alpha": 0.8}
    for place, name in enumerate(people + neutral):
        words = "demographic" if name in people else "neutral"
        own = {key: part[(part.one == name) | (part.other == name)] for key, part in rows.items()}
        if words == "demographic" and len(own["mixed"]):
            line = own["mixed"].shared
            ax.barh(place, line.max() - line.min(), 0.7, line.min(), color="0.85", label="with neutral words", zorder=1)
            ax.plot(line.mean(), place, "|", color="0.4", markersize=13, label="their mean", zorder=2)
        same = own[words].one == own[words].other
        apart = own[words].shared[~same]
        up = place + 0.4 * ((3 * np.arange(len(apart)) % 7) / 7 - 3 / 7)  # equal counts shall not hide each other
        marker = {"marker": "o", "color": COLORS[0], "label": "with the other sets"}
        if words == "neutral":
            marker = {"marker": "D", "color": "0.4", "markerfacecolor": "none", "label": "neutral with neutral"}
        ax.plot(apart, up, **others | marker)
        if same.any():
            star = {"marker": "*", "color": COLORS[3], "markersize": 11, "linestyle": "none"}
            ax.plot(own[words].shared[same], [place] * same.sum(), **star, label="the same words again")
    ax.set_yticks(range(len(people + neutral)), people + neutral)
    ax.set_ylim(len(people + neutral) - 0.4, -0.6)
    ax.set_xlim(left=-0.5)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    size = f" of {table.neurons.iloc[0]:.0f}" if "neurons" in table else ""
    ax.set(xlabel="neurons in both sets", title=f"Neurons that two sets{size} share")
    named = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))  # each kind once
    names = sorted(named, key=lambda name: not name.startswith(("chance", "with neutral")))
    style = {"frameon": False, "fontsize": "small", "loc": "upper left", "bbox_to_anchor": (1, 1)}
    ax.legend([named[name] for name in names], names, **style)
    sns.despine(ax=ax)
    return as_written(ax)


def plot_transfer(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what a cut chosen on one category (row) does to the gap of another (column), in per cent.

    Cells hold the change and its interval, and are pale where the interval contains 0. A frame marks a cut read on its
    own category; neutral words stand apart; the last row is the range of random cuts. Where the figure is too small,
    intervals and ranges are left out.

    Parameters
    ----------
    table : DataFrame
        The transfer rows of `data/results_shared.csv`: columns `chosen_on`, `read_on`, `change`, `low`, `high`, and
        `random_low`, `random_high`.

    Raises
    ------
    ValueError
        No rows, or two for one cell.
    """
    if table.empty or table.duplicated(["chosen_on", "read_on"]).any():
        raise ValueError("table: expected one row for each chosen_on and read_on; got none, or several for one")
    names, columns = list(dict.fromkeys(table.chosen_on)), list(dict.fromkeys(table.read_on))
    columns.sort(key=lambda name: name == "neutral")
    left = {name: place + 0.3 * (name == "neutral") for place, name in enumerate(columns)}
    ax = ax or plt.subplots(figsize=(2.5 + 0.85 * len(columns), 1.8 + 0.46 * len(names)), layout="constrained")[1]
    limit = 100 * min(table.change.abs().max(), 1)
    colors = ScalarMappable(Normalize(-limit, limit), "vlag")
    width = ax.get_window_extent().width / ax.figure.dpi * 72 / (len(columns) + 0.3)  # of a cell, in points
    roomy = width > 38
    text = {"ha": "center", "va": "center", "fontsize": min(9, width / 6) if roomy else min(7, width / 2.4)}

    def write(x: float, y: float, middle: str, ends: str, **style: object) -> None:
        ax.text(x + 0.5, y + 0.5, f"{middle}\n{ends}" if middle and roomy else middle or ends, **text | style)

    for row in table.to_dict("records"):
        x, y = left[row["read_on"]], names.index(row["chosen_on"])
        change, low, high = (100 * row[column] for column in ("change", "low", "high"))
        told = low > 0 or high < 0
        color = colors.to_rgba(change, alpha=1 if told else 0.3)
        own = row["chosen_on"] == row["read_on"]
        frame = {"edgecolor": "black", "linewidth": 1.2, "zorder": 2} if own else {"edgecolor": "white"}
        ax.add_patch(Rectangle((x, y), 1, 1, facecolor=color, **frame))
        ink = "0.4" if not told else "white" if sns.utils.relative_luminance(color) < 0.4 else "black"
        weight = "bold" if told and roomy else "normal"
        ends = f"{low:+.0f} … {high:+.0f}" if pd.notna(low) else "no interval"
        write(x, y, f"{change:+.0f}", ends, color=ink, weight=weight)
    chance = table.dropna(subset="random_low").drop_duplicates("read_on") if roomy else table[:0]
    for row in chance.to_dict("records"):
        low, high = 100 * row["random_low"], 100 * row["random_high"]
        write(left[row["read_on"]], len(names) + 0.3, "", f"{low:+.0f} … {high:+.0f}", color="0.3")
    labels = [name.replace(" without", "\nwithout") for name in columns]
    ax.set_xticks([x + 0.5 for x in left.values()], labels, rotation=40, ha="right", rotation_mode="anchor")
    rows = dict(zip(names, (y + 0.5 for y in range(len(names))), strict=True))
    if len(chance):
        rows["random cuts"] = len(names) + 0.8
    ax.set_yticks(list(rows.values()), rows)
    ax.set(xlim=(0, max(left.values()) + 1), ylim=(max(rows.values()) + 0.5, 0))
    ax.tick_params(length=0)
    ax.figure.colorbar(colors, ax=ax, label="change of the gap in %", aspect=30)
    ax.set(xlabel="read on (pale: the interval contains 0)", ylabel="cut chosen on", title="Does a cut carry over?")
    sns.despine(ax=ax, left=True, bottom=True)
    return as_written(ax)


def as_written(ax: Axes) -> Axes:
    """Draw titles, labels, legends and names of categories as they are: "$20k" is no formula."""
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
    texts += ax.get_legend().get_texts() if ax.get_legend() else []
    for axis in (ax.xaxis, ax.yaxis):
        if isinstance(
            axis.get_major_formatter(), FixedFormatter | FuncFormatter | StrCategoryFormatter
        ):  # not those of numbers
            texts += [label for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)]
    for text in texts:
        text.set_parse_math(False)
    return ax


def _stretch(ax: Axes, which: str) -> None:
    getattr(ax, f"set_{which}scale")("symlog", linthresh=50)
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(FixedLocator([-1000, -300, -100, -30, 0, 30, 100, 300, 1000, 3000, 10_000]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _rows_of(table: pd.DataFrame, measure: str, category: str) -> pd.DataFrame:
    rows = table[(table.measure == measure) & (table.category == category)]
    if rows.empty:
        known = "; ".join(f"{m}: {', '.join(g.category.unique())}" for m, g in table.groupby("measure"))
        raise ValueError(f"measure, category: expected one of {known}; got {measure!r} and {category!r}")
    return rows


def plot_projection(projection: Projection, *, layer: int, ax: Axes | None = None) -> Axes:
    """Draw the tokens of both prompts in the two main axes of one layer, an arrow from prompt a to prompt b.

    Raises
    ------
    ValueError
        A layer that is not there.
    """
    if layer not in range(len(projection.coordinates)):
        raise ValueError(f"layer: expected a number from 0 to {len(projection.coordinates) - 1}; got {layer!r}")
    ax = ax or plt.subplots(figsize=(5.5, 4.2), layout="constrained")[1]
    token_artists(ax, len(projection.tokens_a))(projection, layer)
    return as_written(ax)


def plot_distances(projection: Projection, *, relative: bool = False, ax: Axes | None = None) -> Axes:
    """Draw the distance between the prompts at every token and layer as a heatmap.

    Parameters
    ----------
    relative : bool
        Divide by the length of the representation: 0, no difference; 1, as large as the representation itself.
    """
    ax = ax or plt.subplots(figsize=(6.5, 4), layout="constrained")[1]
    values = projection.distances / projection.norms if relative else projection.distances
    image = ax.imshow(values, aspect="auto", origin="lower", cmap="cividis", interpolation="nearest", vmin=0)
    name = "distance / length" if relative else "distance"
    ax.figure.colorbar(image, ax=ax, label=name)
    slanted = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "parse_math": False}
    ax.set_xticks(range(values.shape[1]), token_labels(projection), **slanted)
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set(ylabel="layer", title=f"{name.capitalize()} between the prompts, {projection.point}")
    return as_written(ax)


def token_labels(projection: Projection) -> list[str]:
    """Return a label for each position: the token, or both where they differ."""
    pairs = zip(projection.tokens_a, projection.tokens_b, strict=True)
    return [a.strip() or repr(a) if a == b else f"{a.strip()}/{b.strip()}" for a, b in pairs]


def token_artists(ax: Axes, tokens: int) -> Callable[..., None]:
    """Put the artists for at most so many tokens on an Axes; return a function that moves them to a layer.

    It is called as `show(projection, layer, shared=False)`; with `shared` the limits are those of all layers.
    """
    style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.005, "zorder": 2}
    arrows = ax.quiver(np.zeros(tokens), np.zeros(tokens), np.zeros(tokens), np.zeros(tokens), color="0.55", **style)
    a = ax.scatter([], [], s=22, color=COLORS[0], label="prompt a", zorder=3)
    b = ax.scatter([], [], s=26, marker="D", facecolors="none", edgecolors=[COLORS[1]], label="prompt b", zorder=3)
    # a token may hold dollar signs, which are no formula
    style = {"textcoords": "offset points", "fontsize": 8, "annotation_clip": True, "parse_math": False}
    texts = [[ax.annotate("", (0, 0), xytext=(4, up), **style) for _ in range(tokens)] for up in (-10, 4)]
    for text in texts[0]:
        text.set_color(COLORS[0])
    # the pad counts in font sizes: right below the axis label, whatever the size of the Axes
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=4, ncols=2)
    ax.locator_params(nbins=4)
    sns.despine(ax=ax)

    def show(projection: Projection, layer: int, shared: bool = False) -> None:
        at_a, at_b = projection.coordinates[layer]
        moved = (projection.distances[layer] > 0)[:, None]
        lengths = np.where(moved, at_b - at_a, np.nan)  # an arrow of no length would be drawn as a dot
        full = np.full((tokens, 4), np.nan)
        full[: len(at_a)] = np.hstack([at_a, lengths])
        arrows.set_offsets(full[:, :2])
        arrows.set_UVC(full[:, 2], full[:, 3])
        a.set_offsets(at_a)
        b.set_offsets(at_b)
        for labels, at, row in ((projection.tokens_a, at_a, texts[0]), (projection.tokens_b, at_b, texts[1])):
            for k, text in enumerate(row):
                text.set_visible(k < len(at) and (row is texts[1] or labels[k] != projection.tokens_b[k]))
                if text.get_visible():
                    text.set_text(labels[k].strip())
                    text.xy = at[k]
        shares = 100 * projection.explained[layer]
        ax.set(xlabel=f"axis 1 ({shares[0]:.0f} % of the variance)", ylabel=f"axis 2 ({shares[1]:.0f} %)")
        ax.title.set_text(f"{projection.point}, layer {layer}")  # set_title would search for its place anew
        drawn = projection.coordinates if shared else projection.coordinates[layer]
        low, high = drawn.reshape(-1, 2).min(0), drawn.reshape(-1, 2).max(0)
        room = 0.12 * (high - low) + 1e-9
        ax.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))

    return show


def plot_score_plane(
    bias: Tensor, importance: Tensor, selection: NeuronSelection | None = None, *, layer: int, ax: Axes | None = None
) -> Axes:
    """Draw the neurons of one layer as dots, importance across and bias score up, and mark those selected.

    Raises
    ------
    ValueError
        Tables of unequal shape, a selection for another shape, or a layer that is not there.
    """
    if bias.shape != importance.shape or (selection and selection.shape != tuple(bias.shape)):
        shapes = [tuple(bias.shape), tuple(importance.shape)] + ([selection.shape] if selection else [])
        raise ValueError(f"bias, importance, selection: expected one shape; got {', '.join(map(str, shapes))}")
    if layer not in range(len(bias)):
        raise ValueError(f"layer: expected a number from 0 to {len(bias) - 1}; got {layer!r}")
    ax = ax or plt.subplots(figsize=(5.5, 3.8))[1]
    ax.scatter(importance[layer], bias[layer], s=7, color="0.6", linewidths=0, alpha=0.7, label="kept")
    chosen = list(selection.neurons.get(layer, ())) if selection else []
    if chosen:
        ax.scatter(
            importance[layer, chosen], bias[layer, chosen], s=45, marker="X", color=COLORS[3], label="cut", zorder=3
        )
        for neuron in chosen if len(chosen) <= 10 else []:
            place = (importance[layer, neuron].item(), bias[layer, neuron].item())
            ax.annotate(str(neuron), place, xytext=(5, 4), textcoords="offset points", fontsize=8)
        ax.legend(frameon=False)
    ax.set(xlabel="importance score", ylabel="bias score", title=f"Neurons of layer {layer}")
    sns.despine(ax=ax)
    return as_written(ax)
