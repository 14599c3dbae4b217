"""Figures: data and `ax=None` in, the matplotlib `Axes` out; nothing is shown or saved.

Contents: `plot_layer_differences`, `plot_score_plane`.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from torch import Tensor

from fairlab.surgery import NeuronSelection

COLORS = sns.color_palette("colorblind")


def plot_layer_differences(
    tables: pd.DataFrame | Mapping[str, pd.DataFrame], *, value: str = "difference", ax: Axes | None = None
) -> Axes:
    """Draw a value of `layer_differences` per layer, one line a table, all on one axis.

    Parameters
    ----------
    tables : DataFrame, or dict of DataFrames
        One table, or several by name such as {"before": …, "after": …}, each of one capture point. Where a table has
        several pairs, the line is their mean.
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
    ax = ax or plt.subplots(figsize=(7, 3.2))[1]
    for number, (name, table) in enumerate(tables.items()):
        mean = table.groupby("layer")[value].mean()
        style = {"marker": "osD^"[number % 4], "linestyle": ("-", "--", ":", "-.")[number % 4]}
        ax.plot(mean.index, mean, color=COLORS[number], markersize=4, label=name, **style)
    labels = {
        "difference": "mean |A(a) − A(b)|\n(units of activation)",
        "scale": "mean |A|\n(units of activation)",
        "relative": "mean |A(a) − A(b)| / mean |A|",
    }
    ax.set(xlabel="layer", ylabel=labels[value], title=f"{value.capitalize()} of {points.pop()} by layer")
    ax.set_ylim(bottom=0)
    if len(tables) > 1:
        ax.legend(frameon=False)
    sns.despine(ax=ax)
    return ax


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
