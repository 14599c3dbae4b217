"""Which neurons are chosen, which are shared, and whether a cut carries over.

Contents: `plot_score_plane`, `plot_overlap`, `plot_transfer`.
"""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fairlab.pairs import check_frame, check_kind
from fairlab.passes import check_whole
from fairlab.plots.style import COLORS, axes_or_new, finished, legend_beside
from fairlab.scores import check_tables
from fairlab.surgery import NeuronSelection

CENTRED = {"ha": "center", "va": "center"}
NAME_STYLE = {"xytext": (5, 4), "textcoords": "offset points", "fontsize": 8}
WITH_INTERVALS = 38  # points that a cell must be wide to hold an interval
MOST_NAMES = 10  # more numbers of neurons in a picture would hide each other
BACKGROUND = ("chance, 95 %", "with neutral words")  # come first in the legend of `plot_overlap`


def plot_score_plane(
    bias: Tensor,
    importance: Tensor,
    selection: NeuronSelection | None = None,
    *,
    layer: int,
    ax: Axes | None = None,
) -> Axes:
    """Draw the neurons of one layer as dots, importance across and bias score up.

    Parameters
    ----------
    bias, importance : Tensor
        Scores of shape (layers, neurons).
    selection : NeuronSelection, optional
        The neurons that are marked as cut.

    Raises
    ------
    ValueError
        Tables of unequal shape, a selection for another shape, or a layer that is not there.
    """
    check_tables({"bias": bias, "importance": importance})
    if selection is not None:
        check_kind("selection", selection, NeuronSelection, "a NeuronSelection")
        if selection.shape != tuple(bias.shape):
            raise ValueError(
                f"selection: expected one for tables of shape {tuple(bias.shape)}; "
                f"got one for {selection.shape}"
            )
    layer = check_whole("layer", layer, 0, len(bias) - 1)
    ax = axes_or_new(ax, (5.5, 3.8), layout=None)
    x, y = importance[layer], bias[layer]  # (neurons,)
    ax.scatter(x, y, s=7, color="0.6", linewidths=0, alpha=0.7, label="kept")
    chosen = list(selection.neurons.get(layer, ())) if selection else []
    if chosen:
        ax.scatter(x[chosen], y[chosen], s=45, marker="X", color=COLORS[3], label="cut", zorder=3)
        ax.legend(frameon=False)
    if len(chosen) <= MOST_NAMES:
        for neuron in chosen:
            ax.annotate(str(neuron), (x[neuron].item(), y[neuron].item()), **NAME_STYLE)
    ax.set(xlabel="importance score", ylabel="bias score", title=f"Neurons of layer {layer}")
    return finished(ax)


def plot_overlap(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how many neurons each set shares with the others.

    Behind the counts stand a strip for chance and, for each set chosen on people's words, a band
    for what it shares with sets chosen on neutral words (from the lowest to the highest, with the
    mean as a tick).

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
    columns = ("one", "other", "words", "shared", "chance_low", "chance_high")
    check_frame(table, *columns)
    _check_overlaps(table)
    demographic, neutral = _by_set(table, "demographic"), _by_set(table, "neutral")
    # the sets of people's words on top
    people = _set_names(demographic)
    names = people + _set_names(neutral)
    place_of = {name: place for place, name in enumerate(names)}
    ax = axes_or_new(ax, (7, 1.3 + 0.3 * len(names)))
    strip = table.chance_low.min(), table.chance_high.max()
    style = {"color": COLORS[1], "alpha": 0.35, "linewidth": 0, "zorder": 0}
    ax.axvspan(*strip, label=BACKGROUND[0], **style)
    mixed = _by_set(table, "mixed")
    _draw_bands(ax, mixed[mixed.set_name.isin(people)], place_of)
    _draw_shared(ax, demographic, neutral, place_of)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(left=-0.5)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    size = f" of {table.neurons.iloc[0]:.0f}" if "neurons" in table else ""
    ax.set(xlabel="neurons in both sets", title=f"Neurons that two sets{size} share")
    _overlap_legend(ax)
    return finished(ax)


def _check_overlaps(table: pd.DataFrame) -> None:
    for column in ("score", "comparison"):
        if column in table and table[column].nunique() > 1:
            raise ValueError(
                f"table: expected one {column}; got {', '.join(table[column].unique())}"
            )
    if not (table.words == "demographic").any():
        raise ValueError(
            f"table: expected demographic rows; got {', '.join(table.words.unique()) or 'none'}"
        )


def _by_set(table: pd.DataFrame, words: str) -> pd.DataFrame:
    """Return the rows of such words once for each of their two sets, named in `set_name`.

    `again` marks the same words in other sentences: one set, so that such a row stands here once.
    """
    rows = table[table.words == words].reset_index(drop=True)
    rows["again"] = rows.one == rows.other
    first, second = rows.assign(set_name=rows.one), rows.assign(set_name=rows.other)
    return pd.concat([first, second[~second.again]]).sort_index(kind="stable")


def _set_names(rows: pd.DataFrame) -> list[str]:
    return pd.concat([rows.one, rows.other]).unique().tolist()


def _draw_bands(ax: Axes, mixed: pd.DataFrame, place_of: dict[str, int]) -> None:
    """Draw the range and the mean of what each set shares with sets chosen on neutral words."""
    if mixed.empty:
        return
    shared = mixed.groupby("set_name", sort=False).shared
    low, high, mean = shared.min(), shared.max(), shared.mean()
    places = mean.index.map(place_of)
    style = {"height": 0.7, "color": "0.85", "zorder": 1}
    ax.barh(places, high - low, left=low, label=BACKGROUND[1], **style)
    ax.plot(mean, places, "|", color="0.4", markersize=13, label="their mean", zorder=2)


def _draw_shared(
    ax: Axes, demographic: pd.DataFrame, neutral: pd.DataFrame, place_of: dict[str, int]
) -> None:
    """Draw a mark for each other set, and a star for the same words in other sentences."""
    dots = {"marker": "o", "color": COLORS[0], "markersize": 5, "alpha": 0.8}
    stars = {"marker": "*", "color": COLORS[3], "markersize": 11}
    diamonds = dots | {"marker": "D", "color": "0.4", "markerfacecolor": "none"}
    again = pd.concat([demographic[demographic.again], neutral[neutral.again]])
    kinds = [
        ("with the other sets", demographic[~demographic.again], dots),
        ("the same words again", again, stars),
        ("neutral with neutral", neutral[~neutral.again], diamonds),
    ]
    for label, rows, style in kinds:
        if rows.empty:
            continue
        places = rows.set_name.map(place_of)
        if style is not stars:
            places += _spread(rows)
        ax.plot(rows.shared, places, linestyle="none", label=label, **style)


def _spread(rows: pd.DataFrame) -> np.ndarray:
    """Return a shift up or down for each row, so that equal counts do not hide each other."""
    number = rows.groupby("set_name").cumcount().to_numpy()
    return 0.4 * ((3 * number % 7) / 7 - 3 / 7)


def _overlap_legend(ax: Axes) -> None:
    handles, _ = ax.get_legend_handles_labels()
    handles.sort(key=lambda handle: handle.get_label() not in BACKGROUND)
    legend_beside(ax, handles=handles, fontsize="small")


def plot_transfer(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw what a cut chosen on one category (row) does to the gap of another (column), in %.

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
    columns = ("chosen_on", "read_on", "change", "low", "high", "random_low", "random_high")
    check_frame(table, *columns)
    if table.empty or table.duplicated(["chosen_on", "read_on"]).any():
        raise ValueError(
            "table: expected one row for each chosen_on and read_on; got none, or several for one"
        )
    top_of, left_of = _cell_corners(table)
    ax = axes_or_new(ax, (2.5 + 0.85 * len(left_of), 1.8 + 0.46 * len(top_of)))
    width = ax.get_window_extent().width / ax.figure.dpi * 72  # in points
    width /= len(left_of) + 0.3  # of a cell
    with_intervals = width > WITH_INTERVALS
    font_size = min(9, width / 6) if with_intervals else min(7, width / 2.4)
    # white in the middle, and the darkest colours at −100 % and +100 % at most
    limit = 100 * min(table.change.abs().max(), 1)
    colors = ScalarMappable(Normalize(-limit, limit), "vlag")
    for cell in table.to_dict("records"):
        corner = left_of[cell["read_on"]], top_of[cell["chosen_on"]]
        _draw_cell(ax, corner, cell, colors, font_size, with_intervals)
    ax.set_yticks([top + 0.5 for top in top_of.values()], list(top_of))
    ax.set_ylim(len(top_of), 0)
    if with_intervals and table.random_low.notna().any():
        _write_random_ranges(ax, table, left_of, top_of, font_size)
    labels = [name.replace(" without", "\nwithout") for name in left_of]
    middles = [left + 0.5 for left in left_of.values()]
    ax.set_xticks(middles, labels, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_xlim(0, max(left_of.values()) + 1)
    ax.tick_params(length=0)
    ax.figure.colorbar(colors, ax=ax, label="change of the gap in %", aspect=30)
    ax.set(xlabel="read on (pale: the interval contains 0)", ylabel="cut chosen on")
    ax.set_title("Does a cut carry over?")
    return finished(ax, left=True, bottom=True)


def _cell_corners(table: pd.DataFrame) -> tuple[dict[str, float], dict[str, float]]:
    """Return where the cells of each row and of each column begin; neutral words come last, a
    little apart."""
    top_of = {name: place for place, name in enumerate(table.chosen_on.unique())}
    columns = sorted(table.read_on.unique(), key=lambda name: name == "neutral")
    left_of = {name: place + 0.3 * (name == "neutral") for place, name in enumerate(columns)}
    return top_of, left_of


def _draw_cell(
    ax: Axes,
    corner: tuple[float, float],
    cell: dict,
    colors: ScalarMappable,
    font_size: float,
    with_intervals: bool,
) -> None:
    change, low, high = (100 * cell[column] for column in ("change", "low", "high"))
    is_clear = low > 0 or high < 0  # the interval does not contain 0
    color = colors.to_rgba(change, alpha=1 if is_clear else 0.3)
    patch = Rectangle(corner, 1, 1, facecolor=color, edgecolor="white")
    if cell["chosen_on"] == cell["read_on"]:
        patch.set(edgecolor="black", linewidth=1.2, zorder=2)
    ax.add_patch(patch)
    label, ink, weight = f"{change:+.0f}", "0.3", "normal"
    if is_clear:
        ink = "white" if sns.utils.relative_luminance(color) < 0.25 else "black"
    if is_clear and with_intervals:
        weight = "bold"
    if with_intervals:
        label += f"\n{low:+.0f} … {high:+.0f}" if pd.notna(low) else "\nno interval"
    style = {"color": ink, "weight": weight, "fontsize": font_size, **CENTRED}
    ax.text(corner[0] + 0.5, corner[1] + 0.5, label, **style)


def _write_random_ranges(
    ax: Axes,
    table: pd.DataFrame,
    left_of: dict[str, float],
    top_of: dict[str, float],
    font_size: float,
) -> None:
    """Write below the cells what random cuts do to each column, and name this row."""
    y = len(top_of) + 0.8
    ranges = table.dropna(subset="random_low").drop_duplicates("read_on")
    for row in ranges.itertuples():
        label = f"{100 * row.random_low:+.0f} … {100 * row.random_high:+.0f}"
        style = {"color": "0.3", "fontsize": font_size, **CENTRED}
        ax.text(left_of[row.read_on] + 0.5, y, label, **style)
    ax.set_yticks([*(top + 0.5 for top in top_of.values()), y], [*top_of, "random cuts"])
    ax.set_ylim(y + 0.5, 0)
