"""What the figures have in common.

Contents: `COLORS`, `MARKERS`, `line_style`; `axes_or_new`, `finished`, `as_written`,
`legend_beside`, `set_limits`; `prompt_names`; `rows_of` reads the tables of `compare`.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from fairlab.diagnosis import Projection
from fairlab.pairs import PromptPair, check_frame, check_kind, check_string

COLORS = sns.color_palette("colorblind")
MARKERS = "osD^vP"
LINES = ("-", "--", ":", "-.")

# columns of a `compare` table that are shares, which figures show in per cent
SHARES = (
    "change",
    "low",
    "high",
    "random_low",
    "random_high",
    "neutral_change",
    "flattening_change",
)


def line_style(number: int) -> dict[str, object]:
    """Return marker, line style and colour, so that lines differ without colour too."""
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
        "color": COLORS[number % len(COLORS)],
    }


def axes_or_new(
    ax: Axes | None, size: tuple[float, float], layout: str | None = "constrained"
) -> Axes:
    """Return the Axes to draw on, new ones of a size in inches where none are given."""
    if ax is None:
        return plt.subplots(figsize=size, layout=layout)[1]
    check_kind("ax", ax, Axes, "matplotlib Axes")
    return ax


def finished(ax: Axes, **removed: bool) -> Axes:
    """Leave a figure without upper and right line, and with its words as they are written."""
    sns.despine(ax=ax, **removed)
    return as_written(ax)


def as_written(ax: Axes) -> Axes:
    """Draw titles, labels, legends and names of categories as they are: "$20k" is no formula."""
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
    if ax.get_legend():
        texts += ax.get_legend().get_texts()
    for axis in (ax.xaxis, ax.yaxis):
        # only tick labels that a figure has named: powers of ten stay formulas
        if isinstance(axis.get_major_formatter(), FuncFormatter):
            for tick in axis.get_major_ticks():
                texts += [tick.label1, tick.label2]
    for text in texts:
        text.set_parse_math(False)
    return ax


def legend_beside(ax: Axes, **options: object) -> None:
    """Put the legend to the right of the Axes."""
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), **options)


def set_limits(ax: Axes, points: np.ndarray, margin: float) -> None:
    """Show the range of points, shape (…, 2), and a share `margin` of it more on every side."""
    low, high = points.reshape(-1, 2).min(0), points.reshape(-1, 2).max(0)
    pad = margin * (high - low) + 1e-9  # a range of 0 must not make an axis of length 0
    ax.set(xlim=(low[0] - pad[0], high[0] + pad[0]), ylim=(low[1] - pad[1], high[1] + pad[1]))


def prompt_names(words: PromptPair | Projection) -> tuple[str, str]:
    """Return what a legend calls the two prompts: by the words in which they differ, if known."""
    named = []
    for letter, word in (("a", words.attribute_a), ("b", words.attribute_b)):
        named.append(f"prompt with {word}" if word else f"prompt {letter}")
    return named[0], named[1]


def rows_of(
    table: pd.DataFrame, measure: str, category: str | None = None, *, argument: str = "table"
) -> pd.DataFrame:
    """Return the rows of a `compare` table that a figure shows, numbered from 0, in per cent.

    Parameters
    ----------
    table : DataFrame
        Columns `measure`, `row` and `category`, such as `compare` returns.
    measure : str
        "gap", "metric", "decision" or "perplexity".
    category : str, optional
        Selects the row "category" of this name. Without it the row is "text" for the perplexity and
        "headline" for the rest, whatever its label: a category may be called "headline" too.
    argument : str
        What the error message calls the table.

    Raises
    ------
    ValueError
        Missing columns, or no such rows; the message lists what the table has.
    """
    check_frame(table, "measure", "row", "category", argument=argument)
    check_string("measure", measure)
    if category is not None:
        check_string("category", category)
    row = "text" if measure == "perplexity" else "headline"
    is_shown = table["measure"] == measure
    if category is not None:
        row = "category"
        is_shown &= table["category"] == category
    is_shown &= table["row"] == row
    if not is_shown.any():
        raise ValueError(
            f"measure, row, category: expected one that {argument} has "
            f"({_known_rows(table) or 'nothing'}); "
            f"got {measure!r}, {row!r}, {category!r}"
        )
    rows = table[is_shown].reset_index(drop=True)
    rows[rows.columns.intersection(SHARES)] *= 100
    return rows


def _known_rows(table: pd.DataFrame) -> str:
    """List the rows of each measure, such as "gap: category race, headline; perplexity: text"."""
    names = table["row"]
    of_a_category = names.isin(["category", "without pronouns"])
    names = names.mask(of_a_category, names + " " + table["category"])
    listed = names.groupby(table["measure"], sort=False).unique()
    return "; ".join(f"{measure}: {', '.join(rows)}" for measure, rows in listed.items())
