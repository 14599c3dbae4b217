"""Where and in which words the two prompts of a pair part.

Contents: `plot_token_shifts`, `plot_layer_differences`.
"""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from fairlab.pairs import PromptPair, check_frame, check_kind, check_pair
from fairlab.plots.style import (
    COLORS,
    axes_or_new,
    finished,
    line_style,
    prompt_names,
)

Y_LABELS = {
    "difference": "mean |A(a) − A(b)|\n(units of activation)",
    "scale": "mean |A|\n(units of activation)",
    "relative": "mean |A(a) − A(b)| / mean |A|",
}
TITLES = {"difference": "Difference", "scale": "Scale", "relative": "Relative difference"}


def plot_token_shifts(
    table: pd.DataFrame, *, pair: PromptPair | None = None, ax: Axes | None = None
) -> Axes:
    """Draw the two probabilities of each token, joined by a line: the shift.

    Parameters
    ----------
    table : DataFrame
        From `top_token_shifts`.
    pair : PromptPair, optional
        The pair behind the table: the legend then names its words.
    """
    check_frame(table, "token", "probability_a", "probability_b")
    name_a, name_b = "prompt a", "prompt b"
    if pair is not None:
        check_pair(pair)
        name_a, name_b = prompt_names(pair)
    ax = axes_or_new(ax, (6, 0.9 + 0.26 * len(table)))
    places = range(len(table))
    a, b = table.probability_a, table.probability_b
    ax.hlines(places, a, b, color="0.75", linewidth=2, zorder=0)
    ax.plot(a, places, "o", color=COLORS[0], label=f"after {name_a}")
    ax.plot(b, places, "D", color=COLORS[1], markersize=5, label=f"after {name_b}")
    ax.set_yticks(places, [repr(token) for token in table.token])
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set(xlabel="probability of the next token", title="The next tokens that shift most")
    ax.legend(frameon=False)
    return finished(ax)


def plot_layer_differences(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame],
    *,
    value: str = "difference",
    ax: Axes | None = None,
) -> Axes:
    """Draw a value of `layer_differences` per layer, one line a table, all on one axis.

    Intervals are drawn as bands round the lines, and the band of neutral pairs in grey, where the
    first table has one.

    Parameters
    ----------
    tables : DataFrame, or dict of DataFrames
        One table, or several by name such as {"before": …, "after": …}, each of one capture point.
        Where a table has several categories, the line is their mean, without an interval.
    value : str
        "difference", "scale" or "relative".

    Raises
    ------
    ValueError
        Unknown value; a table of no or of several capture points.
    """
    if not isinstance(value, str) or value not in TITLES:
        raise ValueError(f"value: expected one of {', '.join(TITLES)}; got {value!r}")
    check_kind("tables", tables, (pd.DataFrame, Mapping), "a DataFrame, or several by name")
    tables = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    for table in tables.values():
        check_frame(table, "category", "point", "layer", value, argument="tables")
    points = {point for table in tables.values() for point in table["point"].unique()}
    if len(points) != 1:
        raise ValueError(
            f"tables: expected one capture point; got {', '.join(sorted(points)) or 'none'}"
        )
    ax = axes_or_new(ax, (7, 3.2))
    _draw_neutral_band(ax, next(iter(tables.values())), value)
    for number, (name, table) in enumerate(tables.items()):
        mean = table.groupby("layer")[value].mean()
        ax.plot(mean.index, mean, markersize=4, label=name or None, **line_style(number))
        _draw_interval(ax, table, value, COLORS[number % len(COLORS)])
    ax.set(xlabel="layer", ylabel=Y_LABELS[value])
    ax.set_title(f"{TITLES[value]} of {points.pop()} by layer")
    ax.set_ylim(bottom=0)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(frameon=False)
    return finished(ax)


def _draw_neutral_band(ax: Axes, table: pd.DataFrame, value: str) -> None:
    if f"neutral_{value}_low" not in table:
        return
    layers = table.drop_duplicates("layer")  # the same band stands at every category
    low, high = layers[f"neutral_{value}_low"], layers[f"neutral_{value}_high"]
    ax.fill_between(layers.layer, low, high, color="0.8", linewidth=0, label="neutral pairs")


def _draw_interval(ax: Axes, table: pd.DataFrame, value: str, color: object) -> None:
    if f"{value}_low" not in table or table.category.nunique() > 1:
        return
    low, high = table[f"{value}_low"], table[f"{value}_high"]
    if low.notna().all():
        ax.fill_between(table.layer, low, high, color=color, alpha=0.25, linewidth=0)
