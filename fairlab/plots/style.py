"""What all figures have in common.

Contents: `COLORS`, `WIDE`, `as_written`, `stretch`, `rows_of`.
"""

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryFormatter
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

COLORS = sns.color_palette("colorblind")


WIDE = 2.0  # changes beyond ±200 % are drawn on an axis that is linear up to 50 % and logarithmic beyond


def as_written(ax: Axes) -> Axes:
    """Draw titles, labels, legends and names of categories as they are: "$20k" is no formula."""
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
    texts += ax.get_legend().get_texts() if ax.get_legend() else []
    for axis in (ax.xaxis, ax.yaxis):
        if isinstance(
            axis.get_major_formatter(), FixedFormatter | FuncFormatter | StrCategoryFormatter
        ):  # not those of numbers
            texts += [
                label for tick in axis.get_major_ticks() for label in (tick.label1, tick.label2)
            ]
    for text in texts:
        text.set_parse_math(False)
    return ax


def stretch(ax: Axes, which: str) -> None:
    getattr(ax, f"set_{which}scale")("symlog", linthresh=50)
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(
        FixedLocator([-1000, -300, -100, -30, 0, 30, 100, 300, 1000, 3000, 10_000])
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def rows_of(table: pd.DataFrame, measure: str, category: str) -> pd.DataFrame:
    rows = table[(table.measure == measure) & (table.category == category)]
    if rows.empty:
        known = "; ".join(
            f"{m}: {', '.join(g.category.unique())}" for m, g in table.groupby("measure")
        )
        raise ValueError(
            f"measure, category: expected one of {known}; got {measure!r} and {category!r}"
        )
    return rows
