"""The tokens of a pair in two dimensions, and how far apart they are.

Contents: `plot_projection`, `plot_distances`; `token_artists` and `token_labels`, which the
explorers share.
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

from fairlab.diagnosis import Projection
from fairlab.plots.style import COLORS, as_written


def plot_projection(projection: Projection, *, layer: int, ax: Axes | None = None) -> Axes:
    """Draw the tokens of both prompts in the two main axes of one layer, an arrow from prompt a to
    prompt b.

    Raises
    ------
    ValueError
        A layer that is not there.
    """
    if layer not in range(len(projection.coordinates)):
        raise ValueError(
            f"layer: expected a number from 0 to {len(projection.coordinates) - 1}; got {layer!r}"
        )
    ax = ax or plt.subplots(figsize=(5.5, 4.2), layout="constrained")[1]
    token_artists(ax, len(projection.tokens_a))(projection, layer)
    return as_written(ax)


def plot_distances(
    projection: Projection, *, relative: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw the distance between the prompts at every token and layer as a heatmap.

    Parameters
    ----------
    relative : bool
        Divide by the length of the representation: 0, no difference; 1, as large as the
        representation itself.
    """
    ax = ax or plt.subplots(figsize=(6.5, 4), layout="constrained")[1]
    values = projection.distances / projection.norms if relative else projection.distances
    image = ax.imshow(
        values, aspect="auto", origin="lower", cmap="cividis", interpolation="nearest", vmin=0
    )
    name = "distance / length" if relative else "distance"
    ax.figure.colorbar(image, ax=ax, label=name)
    slanted = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "parse_math": False}
    ax.set_xticks(range(values.shape[1]), token_labels(projection), **slanted)
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set(ylabel="layer", title=f"{name.capitalize()} between the prompts, {projection.point}")
    return as_written(ax)


def token_labels(projection: Projection) -> list[str]:
    """Return a label for each position: the token, or both where they differ."""
    pairs = zip(projection.tokens_a, projection.tokens_b, strict=True)
    return [a.strip() or repr(a) if a == b else f"{a.strip()}/{b.strip()}" for a, b in pairs]


def token_artists(ax: Axes, tokens: int) -> Callable[..., None]:
    """Put the artists for at most so many tokens on an Axes; return a function that moves them to a
    layer.

    It is called as `show(projection, layer, shared=False)`; with `shared` the limits are those of
    all layers.
    """
    style = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.005, "zorder": 2}
    arrows = ax.quiver(
        np.zeros(tokens),
        np.zeros(tokens),
        np.zeros(tokens),
        np.zeros(tokens),
        color="0.55",
        **style,
    )
    a = ax.scatter([], [], s=22, color=COLORS[0], label="prompt a", zorder=3)
    b = ax.scatter(
        [],
        [],
        s=26,
        marker="D",
        facecolors="none",
        edgecolors=[COLORS[1]],
        label="prompt b",
        zorder=3,
    )
    # a token may hold dollar signs, which are no formula
    style = {
        "textcoords": "offset points",
        "fontsize": 8,
        "annotation_clip": True,
        "parse_math": False,
    }
    texts = [
        [ax.annotate("", (0, 0), xytext=(4, up), **style) for _ in range(tokens)] for up in (-10, 4)
    ]
    for text in texts[0]:
        text.set_color(COLORS[0])
    # the pad counts in font sizes: right below the axis label, whatever the size of the Axes
    ax.legend(
        frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=4, ncols=2
    )
    ax.locator_params(nbins=4)
    sns.despine(ax=ax)

    def show(projection: Projection, layer: int, shared: bool = False) -> None:
        at_a, at_b = projection.coordinates[layer]
        moved = (projection.distances[layer] > 0)[:, None]
        lengths = np.where(
            moved, at_b - at_a, np.nan
        )  # an arrow of no length would be drawn as a dot
        full = np.full((tokens, 4), np.nan)
        full[: len(at_a)] = np.hstack([at_a, lengths])
        arrows.set_offsets(full[:, :2])
        arrows.set_UVC(full[:, 2], full[:, 3])
        a.set_offsets(at_a)
        b.set_offsets(at_b)
        for labels, at, row in (
            (projection.tokens_a, at_a, texts[0]),
            (projection.tokens_b, at_b, texts[1]),
        ):
            for k, text in enumerate(row):
                text.set_visible(
                    k < len(at) and (row is texts[1] or labels[k] != projection.tokens_b[k])
                )
                if text.get_visible():
                    text.set_text(labels[k].strip())
                    text.xy = at[k]
        shares = 100 * projection.explained[layer]
        ax.set(
            xlabel=f"axis 1 ({shares[0]:.0f} % of the variance)",
            ylabel=f"axis 2 ({shares[1]:.0f} %)",
        )
        ax.title.set_text(
            f"{projection.point}, layer {layer}"
        )  # set_title would search for its place anew
        drawn = projection.coordinates if shared else projection.coordinates[layer]
        low, high = drawn.reshape(-1, 2).min(0), drawn.reshape(-1, 2).max(0)
        room = 0.12 * (high - low) + 1e-9
        ax.set(
            xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1])
        )

    return show
