"""What a cut brings and costs.

Contents: `plot_comparison`, `plot_dose_response`, `plot_tradeoff`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from fairlab.pairs import check_frame
from fairlab.plots.style import (
    COLORS,
    MARKERS,
    axes_or_new,
    finished,
    legend_beside,
    line_style,
    rows_of,
)

# changes beyond ±200 % need an axis that is linear up to 50 % and logarithmic beyond
WIDE, LINEAR = 200, 50
WIDE_TICKS = [-1000, -300, -100, -30, 0, 30, 100, 300, 1000, 3000, 10_000]
RANDOM_CUTS = {"s": 14, "color": "0.75", "linewidths": 0, "label": "random cuts"}


def plot_comparison(
    table: pd.DataFrame,
    *,
    draws: pd.DataFrame | None = None,
    measure: str = "gap",
    category: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the change that each cut brings, beside its controls.

    Dots with intervals are the cuts, the random cuts stand in grey behind them, and open diamonds
    are neutral pairs.

    Parameters
    ----------
    table : DataFrame
        From `compare`, or `data/results/controls.csv` with its columns `method` and `count`.
    draws : DataFrame, optional
        One row a random cut: `selection` (or `method` and `count`), `kind`, `measure`, `row`,
        `category`, `draw` (0, 1, …) and `change` (a share; 0: none). Those of kind "random" are
        drawn as a cloud. Without it, a grey bar is the range from `random_low` to `random_high`.
    measure : str
        "gap", "metric" or "perplexity".
    category : str, optional
        Whose change; by default the mean over categories, or the text's for perplexity.

    Raises
    ------
    ValueError
        No such rows; the message lists what the table has. Draws without the columns above.
    """
    rows = rows_of(table, measure, category)
    if draws is not None:
        check_frame(draws, argument="draws")
    # a comparison of changed models alone has no random cuts
    no_draws = draws is None or (draws.empty and "draw" in draws)
    cloud = None if no_draws else _random_changes(draws, rows, measure, category)
    # a single row needs room for its diamond, too
    ax = axes_or_new(ax, (7, 0.9 + 0.34 * max(2, len(rows))))
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    if cloud is None:
        _draw_random_ranges(ax, rows)
    else:
        _draw_random_cloud(ax, cloud)
    ax.errorbar(
        rows.change,
        rows.index,
        xerr=_error_bars(rows),
        fmt="o",
        color=COLORS[0],
        elinewidth=1.6,
        label="this cut, 95 % interval",
    )
    _draw_neutral_changes(ax, rows)
    ax.set_yticks(rows.index, _cut_names(rows))
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set(xlabel="change in %", title=f"Change of the {measure}, {rows.category[0]}")
    _stretch_if_wide(ax, "x", rows)
    legend_beside(ax)
    return finished(ax)


def _cut_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns that name a cut: `method` and `count`, or `selection`."""
    return ["method", "count"] if {"method", "count"} <= set(table.columns) else ["selection"]


def _random_changes(
    draws: pd.DataFrame, rows: pd.DataFrame, measure: str, category: str | None = None
) -> pd.DataFrame:
    """Return `place` (the number of a row in `rows`), `draw` and `change` of its random cuts."""
    cut = _cut_columns(rows)
    columns = [*cut, "kind", "measure", "row", "category", "draw", "change"]
    check_frame(draws, *columns, argument="draws")
    # cuts matched to a table, such as Fisher's importance, are another kind
    plain = draws[draws["kind"] == "random"]
    plain = rows_of(plain, measure, category, argument="draws")
    places = rows[cut].assign(place=rows.index)
    return places.merge(plain, on=cut)[["place", "draw", "change"]]


def _draw_random_ranges(ax: Axes, rows: pd.DataFrame) -> None:
    ranges = rows[["random_low", "random_high"]].dropna()
    if ranges.empty:
        return
    ax.barh(
        ranges.index,
        ranges.random_high - ranges.random_low,
        left=ranges.random_low,
        height=0.5,
        color="0.85",
        label="range of random cuts",
    )
    ax.use_sticky_edges = False  # else the axis would end exactly where a bar begins


def _draw_random_cloud(ax: Axes, cloud: pd.DataFrame) -> None:
    of_a_row = cloud.groupby("place").change
    number, size = of_a_row.cumcount(), of_a_row.transform("size")
    # steps of 7 keep neighbouring numbers apart
    jitter = 0.3 * ((7 * number % size) / size - 0.5)
    ax.scatter(cloud.change, cloud.place + jitter, **RANDOM_CUTS)


def _draw_neutral_changes(ax: Axes, rows: pd.DataFrame) -> None:
    if rows.neutral_change.isna().all():  # as for the perplexity, and for neutral pairs
        return
    ax.plot(
        rows.neutral_change,
        rows.index + 0.25,
        "D",
        markerfacecolor="none",
        color=COLORS[3],
        label="neutral pairs",
    )


def _cut_names(rows: pd.DataFrame) -> pd.Series:
    if "selection" in rows:
        return rows.selection
    return rows.method + " · " + rows["count"].astype(str)


def _error_bars(rows: pd.DataFrame) -> np.ndarray:
    """Return how far an interval reaches below and above the change: (2, rows)."""
    reach = np.stack([rows.change - rows.low, rows.high - rows.change])
    return reach.clip(min=0)  # rounding may put an end on the wrong side of the change


def _stretch_if_wide(ax: Axes, which: str, rows: pd.DataFrame) -> None:
    """Make the "x" or "y" axis logarithmic in its outer parts where intervals reach far, and say so
    behind its label."""
    if not rows[["low", "high"]].abs().max(axis=None) > WIDE:
        return
    axis, set_scale = {"x": (ax.xaxis, ax.set_xscale), "y": (ax.yaxis, ax.set_yscale)}[which]
    set_scale("symlog", linthresh=LINEAR)
    axis.set_label_text(f"{axis.get_label_text()}, logarithmic beyond ±{LINEAR}")
    axis.set_major_locator(FixedLocator(WIDE_TICKS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def plot_dose_response(
    table: pd.DataFrame,
    *,
    measure: str = "gap",
    ax: Axes | None = None,
) -> Axes:
    """Draw the change, the mean over categories, against the number of neurons cut.

    Each method is a line with its intervals; the range of random cuts is grey.

    Parameters
    ----------
    table : DataFrame
        A `compare` table with the columns `method` and `count` (neurons a layer) in place of
        `selection`.
    measure : str
        "gap", "metric" or "perplexity" (the text's).

    Raises
    ------
    ValueError
        No such rows, or no columns `method` and `count`.
    """
    check_frame(table, "method", "count")
    rows = rows_of(table, measure)
    ax = axes_or_new(ax, (7, 3.6))
    _draw_random_band(ax, rows)
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    _draw_method_lines(ax, rows)
    # ticks at the counts themselves, not at powers of ten
    counts = sorted(rows["count"].unique())
    ax.set_xscale("log")
    ax.set_xticks(counts, counts)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(
        xlabel="neurons cut in each layer",
        ylabel="change in %",
        title=f"Change of the {measure}, {rows.category[0]}",
    )
    _stretch_if_wide(ax, "y", rows)
    legend_beside(ax)
    return finished(ax)


def _draw_random_band(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw the widest range of random cuts at each count, over the methods."""
    counts = rows.groupby("count")
    low, high = counts.random_low.min(), counts.random_high.max()
    ax.fill_between(low.index, low, high, color="0.85", label="range of random cuts")


def _draw_method_lines(ax: Axes, rows: pd.DataFrame) -> None:
    methods = rows.method.unique()
    for number, method in enumerate(methods):
        line = rows[rows.method == method].sort_values("count")
        # apart from one another, so that no interval hides another
        shift = 1.05 ** (number - len(methods) / 2)
        ax.errorbar(
            line["count"] * shift,
            line.change,
            yerr=_error_bars(line),
            markersize=5,
            linewidth=1.2,
            label=method,
            **line_style(number),
        )


def plot_tradeoff(
    table: pd.DataFrame,
    *,
    draws: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what each cut brings, the change of the gap, over its price, that of the perplexity.

    The change is the mean over categories. Dots with intervals are the cuts, those of one method
    joined in order of size; an open diamond is what the same cut does to neutral pairs, if they
    were read: where it stays near 0 and its dot lies far below, the cut narrows people's gap more
    than that of others; where both lie low together, the model has become deafer. Grey dots are
    random cuts. The dotted line is a mere flattening of the predictions: a cut above it buys less
    than a temperature.

    Parameters
    ----------
    table : DataFrame
        From `compare`, or `data/results/tradeoff.csv` with its columns `method` and `count`.
    draws : DataFrame, optional
        The random cuts, as for `plot_comparison`; without it there are no grey dots.

    Raises
    ------
    ValueError
        No such rows; the message lists what the table has. Draws without their columns.
    """
    check_frame(table)
    cut = _cut_columns(table)
    prices = rows_of(table, "perplexity").rename(columns={"change": "price"})
    rows = rows_of(table, "gap")
    rows = rows.merge(prices[[*cut, "price"]], on=cut)
    cloud = None if draws is None else _random_tradeoffs(draws, rows)
    ax = axes_or_new(ax, (7.5, 4.2))
    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    if cloud is not None:
        ax.scatter(cloud.price, cloud.change, **RANDOM_CUTS)
    _draw_flattening(ax, rows)
    names = rows[cut[0]].unique()  # of methods, or of selections
    color_of = {name: COLORS[number % len(COLORS)] for number, name in enumerate(names)}
    _draw_tradeoffs(ax, rows, cut, color_of)
    _draw_neutral_stems(ax, rows, rows[cut[0]].map(color_of))
    ax.set(
        xlabel="change of the perplexity in %",
        ylabel="change of the gap in %",
        title=f"What a cut brings and costs, {rows.category[0]}",
    )
    _set_tradeoff_scales(ax, rows)
    legend_beside(ax)
    return finished(ax)


def _random_tradeoffs(draws: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return `change` (of the gap) and `price` (change of the perplexity) of each random cut."""
    prices = _random_changes(draws, rows, "perplexity").rename(columns={"change": "price"})
    changes = _random_changes(draws, rows, "gap")
    cloud = changes.merge(prices, on=["place", "draw"])
    # cuts with the same number of neurons in each layer share their random cuts
    return cloud[["change", "price"]].drop_duplicates()


def _draw_flattening(ax: Axes, rows: pd.DataFrame) -> None:
    """Join the flattenings that cost as much as the cuts; a scale of 1 flattens nothing."""
    flattened = rows[rows.flattening_scale < 1].sort_values("price")
    if len(flattened) > 1:
        style = {"color": "0.4", "linewidth": 1.2, "label": "flattening of the same price"}
        ax.plot(flattened.price, flattened.flattening_change, ":", **style)


def _draw_tradeoffs(
    ax: Axes, rows: pd.DataFrame, cut: Sequence[str], color_of: Mapping[str, object]
) -> None:
    """Draw a line for each method, from its smallest cut to its largest."""
    markers = MARKERS.replace("D", "")  # diamonds stand for neutral pairs here
    for number, (name, line) in enumerate(rows.groupby(cut[0], sort=False)):
        line = line.sort_values(cut[-1])
        ax.errorbar(
            line.price,
            line.change,
            yerr=_error_bars(line),
            fmt="-" + markers[number % len(markers)],
            markersize=5,
            linewidth=1,
            color=color_of[name],
            label=name,
        )


def _draw_neutral_stems(ax: Axes, rows: pd.DataFrame, colors: Sequence) -> None:
    """Draw what each cut does to neutral pairs, and a stem from there to the cut's own dot."""
    if rows.neutral_change.isna().all():
        return  # nothing to draw, and no word of it in the legend
    # broad and behind: where an interval covers the stem, it still shows at both sides
    stems = {"colors": colors, "linewidth": 8, "alpha": 0.3, "zorder": 1}
    ax.vlines(rows.price, rows.change, rows.neutral_change, **stems)
    ax.scatter(
        rows.price,
        rows.neutral_change,
        s=75,  # wider than a dot, so that it shows where the two fall together
        marker="D",
        facecolors="none",
        edgecolors=colors,
        linewidths=1,
        zorder=2,
        label="neutral pairs, same cut",
    )


def _set_tradeoff_scales(ax: Axes, rows: pd.DataFrame) -> None:
    if rows.price.abs().max() > 20:
        ax.set_xscale("symlog", linthresh=2)
        ax.set_xlabel(f"{ax.get_xlabel()}, logarithmic beyond ±2")
        ax.xaxis.set_major_locator(FixedLocator([-2, -1, 0, 1, 2, 5, 10, 30, 100, 300, 1000]))
        ax.xaxis.set_major_formatter("{x:g}")
    _stretch_if_wide(ax, "y", rows)
