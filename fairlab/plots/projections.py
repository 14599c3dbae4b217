"""The tokens of a pair in two dimensions, and how far apart they are.

Contents: `plot_projection`, `plot_distances`; `token_artists`, `move_tokens`, `move_texts`,
`token_labels`, `without_special`, `distances_to_show` and the styles, which the explorers share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.quiver import Quiver
from matplotlib.text import Annotation

from fairlab.diagnosis import Projection
from fairlab.passes import check_range
from fairlab.plots.style import COLORS, as_written, set_limits

HEATMAP = {"aspect": "auto", "origin": "lower", "cmap": "cividis", "interpolation": "nearest"}
# a token may hold dollar signs, which are no formula
SLANTED = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "parse_math": False}


def plot_projection(projection: Projection, *, layer: int, ax: Axes | None = None) -> Axes:
    """Draw the tokens of both prompts in the two main axes of one layer.

    An arrow leads from prompt a to prompt b. The title says where BOS was left out.

    Parameters
    ----------
    projection : Projection
        From `project_pair`.

    Raises
    ------
    ValueError
        A layer that is not there.
    """
    check_range("layer", layer, 0, len(projection.coordinates) - 1)
    ax = ax or plt.subplots(figsize=(5.5, 4.2), layout="constrained")[1]
    move_tokens(token_artists(ax, len(projection.tokens_a)), projection, layer)
    return as_written(ax)


def plot_distances(
    projection: Projection, *, relative: bool = False, ax: Axes | None = None
) -> Axes:
    """Draw the distance between the prompts at every token and layer as a heatmap.

    Parameters
    ----------
    projection : Projection
        From `project_pair`.
    relative : bool
        Divide by the length of the representation: 0, no difference; 1, as large as the
        representation itself.
    """
    ax = ax or plt.subplots(figsize=(6.5, 4), layout="constrained")[1]
    name, values = distances_to_show(projection, relative)
    image = ax.imshow(values, vmin=0, **HEATMAP)
    ax.figure.colorbar(image, ax=ax, label=name)
    ax.set_xticks(range(values.shape[1]), token_labels(projection), **SLANTED)
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.set(ylabel="layer", title=f"{name.capitalize()} between the prompts, {projection.point}")
    return as_written(ax)


def distances_to_show(projection: Projection, relative: bool) -> tuple[str, np.ndarray]:
    """Return the name and the values, shape (layers, tokens), of the distances."""
    if relative:
        return "distance / length", projection.distances / projection.norms
    return "distance", projection.distances


def token_labels(projection: Projection) -> list[str]:
    """Return a label for each position: the token, or both where they differ."""
    labels = []
    for a, b in zip(projection.tokens_a, projection.tokens_b, strict=True):
        same = a.strip() or repr(a)  # a token of blanks alone is shown with its quotes
        labels.append(same if a == b else f"{a.strip()}/{b.strip()}")
    return labels


def without_special(projection: Projection) -> str:
    """Return the end of a title: ", without BOS" where it was left out; else ""."""
    count = len(projection.left_out)
    return ", without " + ("BOS" if count == 1 else f"{count} special tokens") if count else ""


@dataclass(frozen=True)
class TokenArtists:
    """What `move_tokens` moves: arrows from a to b, the dots of both, and a text for each token."""

    arrows: Quiver
    dots_a: PathCollection
    dots_b: PathCollection
    texts_a: list[Annotation]
    texts_b: list[Annotation]


def token_artists(ax: Axes, tokens: int) -> TokenArtists:
    """Put the artists for at most so many tokens on an Axes, without a place yet."""
    # arrows go from place to place, in the units of the axes
    in_data = {"angles": "xy", "scale_units": "xy", "scale": 1}
    # x, y, and how far each arrow goes in x and y
    arrows = ax.quiver(*np.zeros((4, tokens)), color="0.55", width=0.005, zorder=2, **in_data)
    dots_a = ax.scatter([], [], s=22, color=COLORS[0], label="prompt a", zorder=3)
    style = {"marker": "D", "facecolors": "none", "edgecolors": [COLORS[1]]}
    dots_b = ax.scatter([], [], s=26, label="prompt b", zorder=3, **style)
    texts_a = _token_texts(ax, tokens, offset=-10, color=COLORS[0])
    texts_b = _token_texts(ax, tokens, offset=4)
    # the pad counts in font sizes: right below the axis label, whatever the size of the Axes
    below = {"loc": "upper left", "bbox_to_anchor": (0, 0), "borderaxespad": 4}
    ax.legend(frameon=False, fontsize=8, ncols=2, **below)
    ax.locator_params(nbins=4)
    sns.despine(ax=ax)
    return TokenArtists(arrows, dots_a, dots_b, texts_a, texts_b)


def _token_texts(ax: Axes, tokens: int, offset: float, color: object = None) -> list[Annotation]:
    """Return empty texts, to the right of their places and so many points above them."""
    style = {
        "xytext": (4, offset),
        "textcoords": "offset points",
        "fontsize": 8,
        "color": color,
        "annotation_clip": True,
        "parse_math": False,
    }
    return [ax.annotate("", (0, 0), **style) for _ in range(tokens)]


def move_tokens(
    artists: TokenArtists, projection: Projection, layer: int, *, shared: bool = False
) -> None:
    """Show a layer; with `shared` the limits of the axes are those of all layers."""
    ax = artists.arrows.axes
    places_a, places_b = projection.coordinates[layer]  # (tokens, 2) each
    _move_arrows(artists.arrows, places_a, places_b, projection.distances[layer])
    artists.dots_a.set_offsets(places_a)
    artists.dots_b.set_offsets(places_b)
    # what is the same in both prompts is written once, for prompt b
    tokens = zip(projection.tokens_a, projection.tokens_b, strict=True)
    labels_a = [a if a != b else None for a, b in tokens]
    move_texts(artists.texts_a, labels_a, places_a)
    move_texts(artists.texts_b, projection.tokens_b, places_b)
    shares = 100 * projection.explained[layer]
    ax.set_xlabel(f"axis 1 ({shares[0]:.0f} % of the variance)")
    ax.set_ylabel(f"axis 2 ({shares[1]:.0f} %)")
    # `set_title` would look for a free place again, which takes time
    ax.title.set_text(f"{projection.point}, layer {layer}{without_special(projection)}")
    set_limits(ax, projection.coordinates if shared else projection.coordinates[layer], 0.12)


def _move_arrows(
    arrows: Quiver, places_a: np.ndarray, places_b: np.ndarray, distances: np.ndarray
) -> None:
    """Draw an arrow for each token that differs; one of no length would be drawn as a dot."""
    # arrows without a token are not drawn
    starts, shifts = np.full((2, arrows.N, 2), np.nan)
    starts[: len(places_a)] = places_a
    shifts[: len(places_a)] = np.where(distances[:, None] > 0, places_b - places_a, np.nan)
    arrows.set_offsets(starts)
    arrows.set_UVC(*shifts.T)


def move_texts(
    texts: Sequence[Annotation], labels: Sequence[str | None], places: np.ndarray
) -> None:
    """Write each label at its place, and hide the texts that have none."""
    for text, label, place in zip_longest(texts, labels, places):
        text.set_visible(label is not None)
        if label is not None:
            text.set_text(label.strip())
            text.xy = place
