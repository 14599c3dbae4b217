"""What the figures have in common.

Contents: `COLORS`, `WIDE`; `line_style`, `as_written`, `legend_beside`, `stretch`, `set_limits`;
`rows_of`, `label_of`, `cut_columns` read the tables of `compare`.
"""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryFormatter
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

COLORS = sns.color_palette("colorblind")
MARKERS = "osD^vP"
LINES = ("-", "--", ":", "-.")

# Changes beyond ±200 % need an axis that is linear up to 50 % and logarithmic beyond.
WIDE = 2.0

# Only these rows of a `compare` table are selected by their category as well.
ROWS_OF_A_CATEGORY = ("category", "without pronouns")


def line_style(number: int) -> dict[str, object]:
    """Return marker, line style and colour, so that lines differ without colour too."""
    return {
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number % len(LINES)],
        "color": COLORS[number % len(COLORS)],
    }


def as_written(ax: Axes) -> Axes:
    """Draw titles, labels, legends and names of categories as they are: "$20k" is no formula."""
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
    if ax.get_legend():
        texts += ax.get_legend().get_texts()
    for axis in (ax.xaxis, ax.yaxis):
        # tick labels that are words, not numbers: powers of ten stay formulas
        words = FixedFormatter | FuncFormatter | StrCategoryFormatter
        if isinstance(axis.get_major_formatter(), words):
            for tick in axis.get_major_ticks():
                texts += [tick.label1, tick.label2]
    for text in texts:
        text.set_parse_math(False)
    return ax


def legend_beside(ax: Axes) -> None:
    """Put the legend to the right of the Axes."""
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def stretch(ax: Axes, which: str) -> None:
    """Make the "x" or "y" axis, in per cent, linear up to 50 % and logarithmic beyond."""
    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    set_scale = {"x": ax.set_xscale, "y": ax.set_yscale}[which]
    set_scale("symlog", linthresh=50)
    ticks = [-1000, -300, -100, -30, 0, 30, 100, 300, 1000, 3000, 10_000]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def set_limits(ax: Axes, points: np.ndarray, margin: float) -> None:
    """Show the range of points, shape (…, 2), and a share `margin` of it more on every side."""
    low, high = points.reshape(-1, 2).min(0), points.reshape(-1, 2).max(0)
    pad = margin * (high - low) + 1e-9  # a range of 0 must not make an axis of length 0
    ax.set(xlim=(low[0] - pad[0], high[0] + pad[0]), ylim=(low[1] - pad[1], high[1] + pad[1]))


def rows_of(
    table: pd.DataFrame,
    measure: str,
    row: str | None = None,
    category: str | None = None,
    *,
    argument: str = "table",
) -> pd.DataFrame:
    """Return the rows of a `compare` table that a figure shows, numbered from 0.

    Parameters
    ----------
    table : DataFrame
        Columns `measure`, `row` and `category`, such as `compare` returns.
    row : str, optional
        What a row is: "category", "without pronouns", "headline", "neutral" or "text". By default
        "category" if a category is given, else "text" for perplexity and "headline" for the rest.
    category : str, optional
        The category's name, for the rows "category" and "without pronouns" only. In the others this
        column is a label for people, which never selects: a category may be called "headline" too.
    argument : str
        What the error message calls the table.

    Raises
    ------
    ValueError
        Missing columns, a category for a row that has none, or no such rows; the message lists what
        the table has.
    """
    columns = ["measure", "row", "category"]
    if not set(columns) <= set(table.columns):
        raise ValueError(
            f"{argument}: expected the columns {', '.join(columns)}; "
            f"got {', '.join(map(str, table.columns))}"
        )
    if row is None:
        row = _default_row(measure, category)
    if category is not None and row not in ROWS_OF_A_CATEGORY:
        raise ValueError(f"category: expected None for the row {row!r}; got {category!r}")
    selected = (table["measure"] == measure) & (table["row"] == row)
    if row in ROWS_OF_A_CATEGORY:
        selected &= table["category"] == category
    if not selected.any():
        raise ValueError(
            f"measure, row, category: expected one that {argument} has "
            f"({_known_rows(table) or 'nothing'}); "
            f"got {measure!r}, {row!r}, {category!r}"
        )
    return table[selected].reset_index(drop=True)


def _default_row(measure: str, category: str | None) -> str:
    if category is not None:
        return "category"
    return "text" if measure == "perplexity" else "headline"


def _known_rows(table: pd.DataFrame) -> str:
    """List the rows of each measure, such as "gap: category race, headline; perplexity: text"."""
    listed = {}
    for measure, row, category in zip(table.measure, table["row"], table.category, strict=True):
        name = f"{row} {category}" if row in ROWS_OF_A_CATEGORY else row
        listed.setdefault(measure, {})[name] = None  # in order, each once
    return "; ".join(f"{measure}: {', '.join(names)}" for measure, names in listed.items())


def label_of(rows: pd.DataFrame) -> str:
    """Return what selected rows are about, in words for a title."""
    first = rows.iloc[0]
    if first["row"] == "without pronouns":
        return f"{first['category']} without pronouns"
    return first["category"]


def cut_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns that name a cut: `method` and `count`, or `selection`."""
    return ["method", "count"] if {"method", "count"} <= set(table.columns) else ["selection"]
