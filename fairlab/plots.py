"""Figures: data and `ax=None` in, the matplotlib `Axes` out; nothing is shown or saved.

Contents: `plot_layer_differences`, `plot_score_plane`, `plot_comparison`, `plot_dose_response`.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from fairlab.surgery import NeuronSelection

COLORS = sns.color_palette("colorblind")
WIDE = 2.0  # changes beyond ±200 % are drawn on an axis that is linear up to 50 % and logarithmic beyond


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
    ax.set(xlabel="layer", ylabel=labels[value], title=f"{value.capitalize()} of {points.pop()} by layer")
    ax.set_ylim(bottom=0)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False)
    sns.despine(ax=ax)
    return ax


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
    return ax


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
    return ax
