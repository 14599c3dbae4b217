"""The tokens of a pair in two dimensions, and how far apart they are.

Contents: `plot_projection`, `plot_distances`; `token_artists`, `move_tokens`, `move_texts`,
`token_labels`, `without_special`, `distances_to_show`, `check_projection` and the styles, which
the explorers share.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backend_bases import RendererBase
from matplotlib.collections import PathCollection
from matplotlib.quiver import Quiver
from matplotlib.text import Annotation

from fairlab.diagnosis import Projection
from fairlab.pairs import check_kind
from fairlab.passes import check_whole
from fairlab.plots.style import COLORS, as_written, axes_or_new, prompt_names, set_limits

DARK_ORANGE = "#9c6400"  # of the diamonds, dark enough for small letters
HEATMAP = {"aspect": "auto", "origin": "lower", "cmap": "cividis", "interpolation": "nearest"}
# a token may hold dollar signs, which are no formula
SLANTED = {"rotation": 60, "ha": "right", "rotation_mode": "anchor", "parse_math": False}
# a picture with all its tokens named can't be read: these many, those that move furthest, are
MOST_LABELS = 4
# where a label may stand beside its place, the first one rather than the next: right, left (1, -1)
# or in the middle (0); above, below or in the middle
SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))
AWAY = 5  # how far from its place, in points: from further away it could belong to another one


def plot_projection(
    projection: Projection,
    *,
    layer: int,
    words: Collection[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the tokens of both prompts in the two main axes of one layer.

    An arrow leads from each token of the first prompt to the same of the second. The title says
    where BOS was left out.

    Parameters
    ----------
    projection : Projection
        From `project_pair`.
    words : list of str, optional
        The tokens to label, without the blanks around them. By default the four that move furthest
        in this layer, by `projection.distances`: they need not be the longest arrows.

    Raises
    ------
    ValueError
        A layer that is not there, or a word that is no token of either prompt.
    """
    check_projection(projection)
    layer = check_whole("layer", layer, 0, len(projection.coordinates) - 1)
    known = {token.strip() for token in (*projection.tokens_a, *projection.tokens_b)}
    if words is not None:
        check_kind("words", words, Collection, "a list of tokens")
    for word in () if words is None else words:
        if word not in known:
            raise ValueError(
                f"words: expected tokens of the prompts ({', '.join(sorted(known))}); got {word!r}"
            )
    ax = axes_or_new(ax, (5.5, 4.2))
    artists = token_artists(ax, len(projection.tokens_a))
    move_tokens(artists, projection, layer, words=words)
    for dots, name in zip((artists.dots_a, artists.dots_b), prompt_names(projection), strict=True):
        dots.set_label(name)
    # the pad counts in font sizes: right below the axis label, whatever the size of the Axes
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 4}
    narrow = {"handlelength": 1, "handletextpad": 0.4, "columnspacing": 1.5}
    ax.legend(frameon=False, fontsize=8, ncols=2, **below, **narrow)
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
    check_projection(projection)
    ax = axes_or_new(ax, (6.5, 4))
    name, values = distances_to_show(projection, relative)
    image = ax.imshow(values, vmin=0, **HEATMAP)
    ax.figure.colorbar(image, ax=ax, label=name)
    ax.set_xticks(range(values.shape[1]), token_labels(projection), **SLANTED)
    ax.yaxis.get_major_locator().set_params(integer=True)
    divided = ", divided by the length" if relative else ""
    title = f"Distance between the prompts{divided}, {projection.point}"
    ax.set(ylabel="layer", title=title)
    return as_written(ax)


def check_projection(projection: Projection, argument: str = "projection") -> None:
    """Refuse what is no projection, by the name of the argument."""
    check_kind(argument, projection, Projection, "what project_pair returns")


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
    # shaft and head have the same size in a small picture as in a large one: in inches, and in
    # widths of the shaft; an arrow that is shorter than its head becomes smaller as a whole
    head = {"headwidth": 6, "headlength": 6, "headaxislength": 5, "minlength": 0}
    size = {"units": "inches", "width": 0.017, **head}
    # x, y, and how far each arrow goes in x and y
    arrows = ax.quiver(*np.zeros((4, tokens)), color="0.35", zorder=4, **in_data, **size)
    dots_a = ax.scatter([], [], s=22, color=COLORS[0], zorder=3)
    style = {"marker": "D", "facecolors": "none", "edgecolors": [COLORS[1]]}
    dots_b = ax.scatter([], [], s=26, zorder=3, **style)
    texts_a = _token_texts(ax, tokens, color=COLORS[0])
    texts_b = _token_texts(ax, tokens)
    ax.add_artist(_Placement(dots_a, dots_b, [*texts_a, *texts_b]))
    ax.locator_params(nbins=4)
    sns.despine(ax=ax)
    return TokenArtists(arrows, dots_a, dots_b, texts_a, texts_b)


def _token_texts(ax: Axes, tokens: int, color: object = None) -> list[Annotation]:
    """Return empty texts, whose lower left corner is so many points away from their places."""
    style = {
        "textcoords": "offset points",
        "va": "bottom",
        "fontsize": 9,
        "color": color,
        "zorder": 5,
        "annotation_clip": True,
        "parse_math": False,
    }
    return [ax.annotate("", (0, 0), xytext=(0, 0), **style) for _ in range(tokens)]


class _Placement(Artist):
    """Move the texts of tokens to where they hide as little as possible; it draws nothing.

    Only when a figure is drawn are the size and the limits of its Axes final. An Axes draws what
    it holds from the back to the front, so this artist, which is at the back, comes before the
    texts.
    """

    def __init__(self, dots_a: PathCollection, dots_b: PathCollection, texts: list[Annotation]):
        super().__init__()
        self.dots_a, self.dots_b, self.texts = dots_a, dots_b, texts
        self.set(zorder=-1, in_layout=False)
        for text in texts:
            text.set_in_layout(False)

    def draw(self, renderer: RendererBase) -> None:
        pixels = self.axes.figure.dpi / 72  # in a point
        starts, ends = self.dots_a.get_offsets(), self.dots_b.get_offsets()  # (tokens, 2) each
        steps = np.linspace(0, 1, 9)[:, None, None]
        marks = np.asarray(starts + steps * (ends - starts)).reshape(-1, 2)  # along the arrows
        marks = self.axes.transData.transform(marks)
        # left, bottom, right and top of what should stay visible
        marks = np.hstack([marks - 4 * pixels, marks + 4 * pixels])  # (marks, 4)
        written = np.empty((0, 4))
        for text in self.texts:
            if text.get_visible():
                place = self.axes.transData.transform(text.xy)
                size = text.get_window_extent(renderer).size  # (2,)
                corners = _corners(size, AWAY * pixels)  # (sides, 2)
                boxes = np.hstack([place + corners, place + corners + size])  # (sides, 4)
                cost = _shared_area(boxes[:, None], marks).sum(1)
                # words over words, or cut off, can't be read at all
                cost += 10 * _shared_area(boxes[:, None], written).sum(1)
                cost += 10 * (np.prod(size) - _shared_area(boxes, self.axes.bbox.extents))
                best = cost.argmin()
                text.xyann = corners[best] / pixels
                written = np.vstack([written, boxes[best]])


def _corners(size: np.ndarray, away: float) -> np.ndarray:
    """Return where the lower left corner of a text may lie, measured from its place."""
    corners = []
    for sides in SIDES:
        corner = []
        for side, length in zip(sides, size, strict=True):
            corner.append({1: away, 0: -length / 2, -1: -away - length}[side])
        corners.append(corner)
    return np.array(corners)  # (sides, 2)


def _shared_area(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the area that boxes (…, left bottom right top) have in common."""
    low = np.maximum(one[..., :2], other[..., :2])
    high = np.minimum(one[..., 2:], other[..., 2:])
    return np.prod(np.clip(high - low, 0, None), axis=-1)


def move_tokens(
    artists: TokenArtists,
    projection: Projection,
    layer: int,
    *,
    words: Collection[str] | None = None,
    shared: bool = False,
) -> None:
    """Show a layer; with `shared` the limits of the axes are those of all layers.

    The tokens named in `words` are labelled, or those that move furthest in this layer.
    """
    ax = artists.arrows.axes
    places_a, places_b = projection.coordinates[layer]  # (tokens, 2) each
    _move_arrows(artists.arrows, places_a, places_b, projection.distances[layer])
    artists.dots_a.set_offsets(places_a)
    artists.dots_b.set_offsets(places_b)
    labels_a, labels_b = _chosen_labels(projection, layer, words)
    move_texts(artists.texts_a, labels_a, places_a)
    move_texts(artists.texts_b, labels_b, places_b)
    for text, label_a in zip(artists.texts_b, labels_a, strict=False):
        # a word of the second prompt alone has the colour of its diamond
        text.set_color("black" if label_a is None else DARK_ORANGE)
    shares = 100 * projection.explained[layer]
    ax.set_xlabel(f"axis 1 ({shares[0]:.0f} % of the variance)")
    ax.set_ylabel(f"axis 2 ({shares[1]:.0f} %)")
    # `set_title` would look for a free place again, which takes time
    ax.title.set_text(f"{projection.point}, layer {layer}{without_special(projection)}")
    set_limits(ax, projection.coordinates if shared else projection.coordinates[layer], 0.12)


def _chosen_labels(
    projection: Projection, layer: int, words: Collection[str] | None
) -> tuple[list[str | None], list[str | None]]:
    """Return the labels of both prompts, None for tokens that get none."""
    distances = projection.distances[layer]  # (tokens,)
    furthest = set(np.argsort(-distances, kind="stable")[:MOST_LABELS])
    labels_a: list[str | None] = []
    labels_b: list[str | None] = []
    for place, (a, b) in enumerate(zip(projection.tokens_a, projection.tokens_b, strict=True)):
        if words is None:
            chosen = place in furthest and distances[place] > 0
        else:
            chosen = a.strip() in words or b.strip() in words
        # one word, or one place, gets one label, beside the diamond
        both = f"{a.strip()}/{b.strip()}" if a != b else b
        apart = a != b and distances[place] > 0
        labels_a.append(a if chosen and apart else None)
        labels_b.append((b if apart else both) if chosen else None)
    return labels_a, labels_b


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
