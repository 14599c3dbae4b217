"""Which neurons are chosen, which are shared, and whether a cut carries over.

Contents: `plot_score_plane`, `plot_overlap`, `plot_transfer`.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fairlab.plots.style import COLORS, as_written
from fairlab.surgery import NeuronSelection


def plot_score_plane(
    bias: Tensor,
    importance: Tensor,
    selection: NeuronSelection | None = None,
    *,
    layer: int,
    ax: Axes | None = None,
) -> Axes:
    """Draw the neurons of one layer as dots, importance across and bias score up, and mark those
    selected.

    Raises
    ------
    ValueError
        Tables of unequal shape, a selection for another shape, or a layer that is not there.
    """
    if bias.shape != importance.shape or (selection and selection.shape != tuple(bias.shape)):
        shapes = [tuple(bias.shape), tuple(importance.shape)] + (
            [selection.shape] if selection else []
        )
        raise ValueError(
            f"bias, importance, selection: expected one shape; got {', '.join(map(str, shapes))}"
        )
    if layer not in range(len(bias)):
        raise ValueError(f"layer: expected a number from 0 to {len(bias) - 1}; got {layer!r}")
    ax = ax or plt.subplots(figsize=(5.5, 3.8))[1]
    ax.scatter(
        importance[layer], bias[layer], s=7, color="0.6", linewidths=0, alpha=0.7, label="kept"
    )
    chosen = list(selection.neurons.get(layer, ())) if selection else []
    if chosen:
        ax.scatter(
            importance[layer, chosen],
            bias[layer, chosen],
            s=45,
            marker="X",
            color=COLORS[3],
            label="cut",
            zorder=3,
        )
        for neuron in chosen if len(chosen) <= 10 else []:
            place = (importance[layer, neuron].item(), bias[layer, neuron].item())
            ax.annotate(str(neuron), place, xytext=(5, 4), textcoords="offset points", fontsize=8)
        ax.legend(frameon=False)
    ax.set(xlabel="importance score", ylabel="bias score", title=f"Neurons of layer {layer}")
    sns.despine(ax=ax)
    return as_written(ax)


def plot_overlap(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how many neurons each set shares with the others, against two lines: a strip for chance,
    and a band a set for what it shares with sets chosen on neutral words (from the lowest to the
    highest, the mean as a tick).

    Parameters
    ----------
    table : DataFrame
        The overlap rows of `data/results/shared.csv` of one score and comparison. Columns `one`,
        `other` (names of two sets; the same name: the same words in other sentences, a star),
        `words` ("demographic", "mixed", "neutral"; other rows are left out), `shared`,
        `chance_low`, `chance_high`.

    Raises
    ------
    ValueError
        No demographic rows, or several scores or comparisons.
    """
    for column in ("score", "comparison"):
        if column in table and table[column].nunique() > 1:
            raise ValueError(
                f"table: expected one {column}; got {', '.join(table[column].unique())}"
            )
    rows = {words: table[table.words == words] for words in ("demographic", "mixed", "neutral")}
    if rows["demographic"].empty:
        raise ValueError(
            f"table: expected demographic rows; got {', '.join(table.words.unique()) or 'none'}"
        )
    people, neutral = (
        list(dict.fromkeys([*rows[words].one, *rows[words].other]))
        for words in ("demographic", "neutral")
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
            ax.barh(
                place,
                line.max() - line.min(),
                0.7,
                line.min(),
                color="0.85",
                label="with neutral words",
                zorder=1,
            )
            ax.plot(
                line.mean(), place, "|", color="0.4", markersize=13, label="their mean", zorder=2
            )
        same = own[words].one == own[words].other
        apart = own[words].shared[~same]
        up = place + 0.4 * (
            (3 * np.arange(len(apart)) % 7) / 7 - 3 / 7
        )  # equal counts shall not hide each other
        marker = {"marker": "o", "color": COLORS[0], "label": "with the other sets"}
        if words == "neutral":
            marker = {
                "marker": "D",
                "color": "0.4",
                "markerfacecolor": "none",
                "label": "neutral with neutral",
            }
        ax.plot(apart, up, **others | marker)
        if same.any():
            star = {"marker": "*", "color": COLORS[3], "markersize": 11, "linestyle": "none"}
            ax.plot(
                own[words].shared[same], [place] * same.sum(), **star, label="the same words again"
            )
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
    """Draw what a cut chosen on one category (row) does to the gap of another (column), in per
    cent.

    Cells hold the change and its interval, and are pale where the interval contains 0. A frame
    marks a cut read on its own category; neutral words stand apart; the last row is the range of
    random cuts. Where the figure is too small, intervals and ranges are left out.

    Parameters
    ----------
    table : DataFrame
        The transfer rows of `data/results/shared.csv`: columns `chosen_on`, `read_on`, `change`,
        `low`, `high`, and `random_low`, `random_high`.

    Raises
    ------
    ValueError
        No rows, or two for one cell.
    """
    if table.empty or table.duplicated(["chosen_on", "read_on"]).any():
        raise ValueError(
            "table: expected one row for each chosen_on and read_on; got none, or several for one"
        )
    names, columns = list(dict.fromkeys(table.chosen_on)), list(dict.fromkeys(table.read_on))
    columns.sort(key=lambda name: name == "neutral")
    left = {name: place + 0.3 * (name == "neutral") for place, name in enumerate(columns)}
    ax = (
        ax
        or plt.subplots(
            figsize=(2.5 + 0.85 * len(columns), 1.8 + 0.46 * len(names)), layout="constrained"
        )[1]
    )
    limit = 100 * min(table.change.abs().max(), 1)
    colors = ScalarMappable(Normalize(-limit, limit), "vlag")
    width = (
        ax.get_window_extent().width / ax.figure.dpi * 72 / (len(columns) + 0.3)
    )  # of a cell, in points
    roomy = width > 38
    text = {
        "ha": "center",
        "va": "center",
        "fontsize": min(9, width / 6) if roomy else min(7, width / 2.4),
    }

    def write(x: float, y: float, middle: str, ends: str, **style: object) -> None:
        ax.text(
            x + 0.5,
            y + 0.5,
            f"{middle}\n{ends}" if middle and roomy else middle or ends,
            **text | style,
        )

    for row in table.to_dict("records"):
        x, y = left[row["read_on"]], names.index(row["chosen_on"])
        change, low, high = (100 * row[column] for column in ("change", "low", "high"))
        told = low > 0 or high < 0
        color = colors.to_rgba(change, alpha=1 if told else 0.3)
        own = row["chosen_on"] == row["read_on"]
        frame = (
            {"edgecolor": "black", "linewidth": 1.2, "zorder": 2} if own else {"edgecolor": "white"}
        )
        ax.add_patch(Rectangle((x, y), 1, 1, facecolor=color, **frame))
        ink = (
            "0.4" if not told else "white" if sns.utils.relative_luminance(color) < 0.4 else "black"
        )
        weight = "bold" if told and roomy else "normal"
        ends = f"{low:+.0f} … {high:+.0f}" if pd.notna(low) else "no interval"
        write(x, y, f"{change:+.0f}", ends, color=ink, weight=weight)
    chance = table.dropna(subset="random_low").drop_duplicates("read_on") if roomy else table[:0]
    for row in chance.to_dict("records"):
        low, high = 100 * row["random_low"], 100 * row["random_high"]
        write(left[row["read_on"]], len(names) + 0.3, "", f"{low:+.0f} … {high:+.0f}", color="0.3")
    labels = [name.replace(" without", "\nwithout") for name in columns]
    ax.set_xticks(
        [x + 0.5 for x in left.values()], labels, rotation=40, ha="right", rotation_mode="anchor"
    )
    rows = dict(zip(names, (y + 0.5 for y in range(len(names))), strict=True))
    if len(chance):
        rows["random cuts"] = len(names) + 0.8
    ax.set_yticks(list(rows.values()), rows)
    ax.set(xlim=(0, max(left.values()) + 1), ylim=(max(rows.values()) + 0.5, 0))
    ax.tick_params(length=0)
    ax.figure.colorbar(colors, ax=ax, label="change of the gap in %", aspect=30)
    ax.set(
        xlabel="read on (pale: the interval contains 0)",
        ylabel="cut chosen on",
        title="Does a cut carry over?",
    )
    sns.despine(ax=ax, left=True, bottom=True)
    return as_written(ax)
