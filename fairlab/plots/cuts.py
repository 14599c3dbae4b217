"""What a cut brings and costs.

Contents: `plot_comparison`, `plot_dose_response`, `plot_tradeoff`.
"""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from fairlab.plots.style import COLORS, WIDE, as_written, rows_of, stretch


def plot_comparison(
    table: pd.DataFrame, *, measure: str = "gap", category: str = "headline", ax: Axes | None = None
) -> Axes:
    """Draw the change that each cut of a `compare` table brings: dots with intervals, the random
    cuts as a cloud behind them, neutral prompts as open diamonds.

    Parameters
    ----------
    table : DataFrame
        From `compare`, or `data/results/controls.csv` with its columns `method` and `count`.
    measure, category : str
        Which rows: "gap" or "metric" of a category or "headline"; "perplexity" of "text".

    Raises
    ------
    ValueError
        No such rows; the message lists what the table has.
    """
    rows = rows_of(table, measure, category)
    names = (
        rows.selection if "selection" in rows else rows.method + " · " + rows["count"].astype(str)
    )
    ax = ax or plt.subplots(figsize=(7, 0.9 + 0.34 * len(rows)), layout="constrained")[1]
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    for place, row in enumerate(rows.to_dict("records")):
        first = place == 0
        drawn = [100 * float(change) for change in row["random_changes"].split()]
        jitter = [
            place + 0.3 * ((7 * k % len(drawn)) / len(drawn) - 0.5) for k in range(len(drawn))
        ]
        ax.scatter(
            drawn, jitter, s=14, color="0.75", linewidths=0, label="random cuts" if first else None
        )
        change, low, high = (100 * row[column] for column in ("change", "low", "high"))
        ax.plot([low, high], [place, place], color=COLORS[0], linewidth=1.6)
        ax.plot(
            change, place, "o", color=COLORS[0], label="this cut, 95 % interval" if first else None
        )
        if pd.notna(row.get("neutral_change")):
            marker = {
                "marker": "D",
                "markerfacecolor": "none",
                "color": COLORS[3],
                "linestyle": "none",
                "markersize": 6,
            }
            ax.plot(
                100 * row["neutral_change"],
                place + 0.25,
                **marker,
                label="neutral prompts" if first else None,
            )
    if rows[["low", "high"]].abs().max(axis=None) > WIDE:
        stretch(ax, "x")
    ax.set_yticks(range(len(rows)), names)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set(xlabel="change in %", title=f"Change of the {measure}, {category}")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    sns.despine(ax=ax)
    return as_written(ax)


def plot_dose_response(
    table: pd.DataFrame, *, measure: str = "gap", category: str = "headline", ax: Axes | None = None
) -> Axes:
    """Draw the change against the number of neurons cut, a line a method with its intervals, the
    range of random cuts in grey.

    Parameters
    ----------
    table : DataFrame
        A `compare` table with the columns `method` and `count` (neurons a layer) in place of
        `selection`.

    Raises
    ------
    ValueError
        No such rows, or no columns `method` and `count`.
    """
    if not {"method", "count"} <= set(table.columns):
        raise ValueError(
            f"table: expected the columns method and count; got {', '.join(table.columns)}"
        )
    rows = rows_of(table, measure, category)
    ax = ax or plt.subplots(figsize=(7, 3.6), layout="constrained")[1]
    chance = (
        rows.groupby("count")[["random_low", "random_high"]].agg(
            {"random_low": "min", "random_high": "max"}
        )
        * 100
    )
    ax.fill_between(
        chance.index,
        chance.random_low,
        chance.random_high,
        color="0.85",
        label="range of random cuts",
    )
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    methods = rows.method.drop_duplicates()
    for number, method in enumerate(methods):
        line = rows[rows.method == method].sort_values("count")
        shifted = line["count"] * 1.05 ** (
            number - len(methods) / 2
        )  # apart, so that no interval hides another
        ends = 100 * (line.change - line.low), 100 * (line.high - line.change)
        style = {
            "marker": "osD^vP"[number % 6],
            "linestyle": ("-", "--", ":", "-.")[number % 4],
            "color": COLORS[number],
        }
        ax.errorbar(
            shifted,
            100 * line.change,
            yerr=ends,
            **style,
            markersize=5,
            linewidth=1.2,
            label=method,
        )
    if rows[["low", "high"]].abs().max(axis=None) > WIDE:
        stretch(ax, "y")
    ax.set_xscale("log")
    ax.set_xticks(chance.index, chance.index)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(
        xlabel="neurons cut in each layer",
        ylabel="change in %",
        title=f"Change of the {measure}, {category}",
    )
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    sns.despine(ax=ax)
    return as_written(ax)


def plot_tradeoff(
    table: pd.DataFrame, *, category: str = "headline", ax: Axes | None = None
) -> Axes:
    """Draw what each cut brings against what it costs: change of the gap over change of the
    perplexity.

    Dots with intervals are the cuts, those of one method joined in order of size; an open diamond
    is what the same cut does to neutral prompts: a long stem between the two is a cut that acts on
    the word's meaning, a short one has made the model deaf. Grey dots are random cuts. The dotted
    line is a mere flattening of the predictions: a cut above it buys less than a temperature.

    Parameters
    ----------
    table : DataFrame
        From `compare`, or `data/results/tradeoff.csv` with its columns `method` and `count`.
    category : str
        Whose gap: a category, or "headline".

    Raises
    ------
    ValueError
        No such rows; the message lists what the table has.
    """
    key = ["method", "count"] if "method" in table else ["selection"]
    prices = rows_of(table, "perplexity", "text")[[*key, "change", "random_changes"]]
    rows = rows_of(table, "gap", category).merge(prices, on=key, suffixes=("", "_price"))
    ax = ax or plt.subplots(figsize=(7.5, 4.2), layout="constrained")[1]
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    drawn = rows.dropna(subset="random_changes").drop_duplicates(
        ["random_changes", "random_changes_price"]
    )
    cloud = [
        (100 * float(x), 100 * float(y))
        for row in drawn.to_dict("records")
        for x, y in zip(
            row["random_changes_price"].split(), row["random_changes"].split(), strict=True
        )
    ]
    if cloud:
        ax.scatter(*zip(*cloud, strict=True), s=14, color="0.75", linewidths=0, label="random cuts")
    flat = rows[rows.flattening_scale < 1].sort_values("change_price")
    if len(flat) > 1:
        line = 100 * flat[["change_price", "flattening_change"]]
        ax.plot(
            *line.to_numpy().T,
            ":",
            color="0.4",
            linewidth=1.2,
            label="flattening of the same price",
        )
    for number, (method, some) in enumerate(rows.groupby(key[0], sort=False)):
        line = some.sort_values(key[-1])
        x, y, color = 100 * line.change_price, 100 * line.change, COLORS[number % len(COLORS)]
        ends = 100 * (line.change - line.low), 100 * (line.high - line.change)
        ax.errorbar(
            x,
            y,
            yerr=ends,
            fmt="-" + "osD^vP"[number % 6],
            markersize=5,
            linewidth=1,
            color=color,
            label=method,
        )
        ax.vlines(x, y, 100 * line.neutral_change, color=color, linewidth=3, alpha=0.25)
        label = "neutral prompts, same cut" if number == 0 else None
        ax.plot(
            x,
            100 * line.neutral_change,
            "D",
            markerfacecolor="none",
            markersize=5,
            color=color,
            label=label,
        )
    if 100 * rows.change_price.abs().max() > 20:
        ax.set_xscale("symlog", linthresh=2)
        ax.xaxis.set_major_locator(FixedLocator([-2, -1, 0, 1, 2, 5, 10, 30, 100, 300, 1000]))
        ax.xaxis.set_major_formatter("{x:g}")
    if rows[["low", "high"]].abs().max(axis=None) > WIDE:
        stretch(ax, "y")
    ax.set(
        xlabel="change of the perplexity in %",
        ylabel="change of the gap in %",
        title=f"What a cut brings and costs, {category}",
    )
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    sns.despine(ax=ax)
    return as_written(ax)
