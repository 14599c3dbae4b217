"""Explorers: controls above a picture of what was computed before.

Contents: `pca_explorer`, `layer_explorer`, `score_explorer`, `surgery_explorer`; `Explorer`, what
they return, and `Control`, one of its settings.

No model runs here. An explorer keeps one figure and moves its artists, about twice as fast as
drawing a new one. The browser asks for every picture that is one move away while somebody looks at
the present one, so that a move only changes which picture is shown. This module and `page`
are the only ones that need anywidget.
"""

import base64
import functools
import html
import io
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import FigureImage
from PIL import Image
from torch import Tensor

from fairlab.diagnosis import Projection
from fairlab.files import check_output, template_text, write_text
from fairlab.pairs import check_kind
from fairlab.passes import check_whole
from fairlab.plots.neurons import MOST_NAMES, NAME_STYLE
from fairlab.plots.projections import (
    HEATMAP,
    SLANTED,
    check_projection,
    distances_to_show,
    move_texts,
    move_tokens,
    token_artists,
    token_labels,
    without_special,
)
from fairlab.plots.style import COLORS, as_written, legend_beside, prompt_names, set_limits
from fairlab.predictions import view_of
from fairlab.scores import hybrid_scores

MOST_FRAMES = 400  # of a page of its own: about 8 MB

ON_PAGE = ("pair", "layer")  # the controls of a page of its own
LINEAR_TO = 20  # per cent: farther out the axis of `surgery_explorer` is logarithmic
PERCENT_TICKS = [-100, -50, -20, -10, 0, 10, 20, 50, 100, 300, 1000]


@dataclass(frozen=True)
class Control:
    """One setting of an explorer: the label beside it, its values in order, and the first one.

    `kind` is "slider", "choice" (a drop-down list) or "switch" (a box to tick: False, True).
    """

    label: str
    values: Sequence[Any]
    start: Any
    kind: str = "choice"


@dataclass(frozen=True)
class Frame:
    """What an explorer shows at one setting: a PNG, a sentence, and texts below it."""

    picture: bytes
    sentence: str
    texts: list[str]


class Explorer:
    """Controls above a picture and its sentence; the last line of a cell displays it.

    `controls` holds a `Control` by name; a cell can `set(layer=12)`. `draw` takes a value of each,
    moves the artists, and returns the sentence and the texts below it. `on_page` names the controls
    that a page of its own has.
    """

    def __init__(
        self,
        title: str,
        figure: Figure,
        controls: Mapping[str, Control],
        draw: Callable[..., tuple[str, list[str]]],
        on_page: Sequence[str],
    ):
        view = _view_class()
        self.title, self.figure, self.draw = title, figure, draw
        self.controls, self.on_page = dict(controls), tuple(on_page)
        self._canvas = FigureCanvasAgg(figure)
        for ax in figure.axes:
            as_written(ax)
        start = {name: control.start for name, control in self.controls.items()}
        described = [
            {
                "label": control.label,
                "kind": control.kind,
                "values": [_written(value) for value in control.values],
            }
            for control in self.controls.values()
        ]
        self.widget = view(title=title, controls=described, places=self._places(start))
        self.widget.on_msg(self._answer)

    def values(self) -> dict[str, Any]:
        """Return the value of each control, by name."""
        return self._values_at(self.widget.places)

    def set(self, **values: Any) -> None:
        """Move controls to such values.

        Raises
        ------
        ValueError
            A control that is not there, or a value that it does not have.
        """
        self.widget.places = self._places({**self.values(), **values})

    def frame(self, **values: Any) -> Frame:
        """Draw what such values show."""
        sentence, texts = self.draw(**values)
        buffer = io.BytesIO()
        self._canvas.print_png(buffer, pil_kwargs={"compress_level": 1})  # for speed
        return Frame(buffer.getvalue(), sentence, texts)

    def _places(self, values: Mapping[str, Any]) -> list[int]:
        """Return at which of its values each control stands."""
        unknown = sorted(set(values) - set(self.controls))
        if unknown:
            raise ValueError(
                f"values: expected names among {', '.join(self.controls)}; got {', '.join(unknown)}"
            )
        places = []
        for name, control in self.controls.items():
            if values[name] not in control.values:
                raise ValueError(
                    f"{name}: expected one of {', '.join(map(str, control.values))}; "
                    f"got {values[name]!r}"
                )
            places.append(list(control.values).index(values[name]))
        return places

    def _values_at(self, places: Sequence[int]) -> dict[str, Any]:
        pairs = zip(self.controls.items(), places, strict=True)
        return {name: control.values[place] for (name, control), place in pairs}

    def _answer(self, widget: Any, content: dict[str, Any], _: Any) -> None:
        """Send the browser the picture that it asks for."""
        places = content["places"]
        frame = self.frame(**self._values_at(places))
        answer = {"places": places, "sentence": frame.sentence, "texts": frame.texts}
        widget.send(answer, buffers=[frame.picture])

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Show the widget; where there is no kernel (GitHub, a page), the picture."""
        picture = self.frame(**self.values()).picture
        return {
            **view_of(self.widget),
            "image/png": base64.b64encode(picture).decode(),
            "text/plain": f"{self.title} (run the cell for its controls)",
        }

    def to_html(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a page of its own, with controls that need no kernel and no network.

        It has those controls whose pictures fit into a page (of pairs of prompts: the pair and the
        layer); the others stay where they are, and the title names them (a switch only
        where it is on).

        Parameters
        ----------
        path : path
            Where to write it.
        force : bool
            Whether to replace a file that exists.

        Returns
        -------
        Path
            The page.

        Raises
        ------
        ValueError
            A file that exists, without `force`; more than 400 pictures.
        """
        path = check_output("path", path, force=force)
        controls = {name: self.controls[name] for name in self.on_page}
        count = math.prod(len(control.values) for control in controls.values())
        if count > MOST_FRAMES:
            raise ValueError(
                f"to_html: expected at most {MOST_FRAMES} pictures; {self.title!r} has {count}"
            )
        values = self.values()
        fixed = []
        for name, control in self.controls.items():
            if name not in controls and control.kind != "switch":
                fixed.append(f"{control.label} {_written(values[name])}")
            elif name not in controls and values[name]:
                fixed.append(control.label)
        frames = {}
        for combination in itertools.product(*(control.values for control in controls.values())):
            chosen = {**values, **dict(zip(controls, combination, strict=True))}
            frame = self.frame(**chosen)
            places = dict(zip(self.controls, self._places(chosen), strict=True))
            picture = base64.b64encode(_with_fewer_colors(frame.picture)).decode()
            frames[",".join(str(places[name]) for name in controls)] = {
                "picture": f"data:image/png;base64,{picture}",
                "sentence": frame.sentence,
                "texts": frame.texts,
            }
        described = dict(zip(self.controls, self.widget.controls, strict=True))
        places = dict(zip(self.controls, self.widget.places, strict=True))
        data = {
            "controls": [described[name] for name in controls],
            "places": [places[name] for name in controls],
            "frames": frames,
        }
        page = Template(template_text("explorer.html")).substitute(
            title=html.escape(" · ".join([self.title, ", ".join(fixed)]).removesuffix(" · ")),
            style=template_text("explorer.css"),
            code=template_text("explorer.js"),
            # a token may look like the end of the script
            data=json.dumps(data).replace("<", "\\u003c"),
        )
        write_text(path, page)
        return path


def _written(value: Any) -> str:
    """Return a value of a control as it stands beside it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


@functools.cache
def _view_class() -> type:
    """Return the widget that shows an explorer in a notebook.

    Made at first use: only explorers and the page need anywidget.
    """
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise ImportError('explorers need anywidget: pip install "anywidget>=0.9"') from error

    class ExplorerView(anywidget.AnyWidget):
        _esm, _css = template_text("explorer.js"), template_text("explorer.css")
        title = traitlets.Unicode().tag(sync=True)
        controls = traitlets.List().tag(sync=True)
        places = traitlets.List().tag(sync=True)  # at which of its values each control stands

    return ExplorerView


def _with_fewer_colors(png: bytes) -> bytes:
    """Return a picture with 128 colours, which takes a fraction of the space."""
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(128)
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def pca_explorer(projections: Mapping[str, Sequence[Projection]], *, layer: int = 0) -> Explorer:
    """Explore the tokens of both prompts in the two main axes of each layer.

    Beside them stand the distances in all dimensions.

    Parameters
    ----------
    projections : dict
        Name of a pair → its projections, one a capture point, the same points for each pair, from
        `project_pair`.
    layer : int
        The layer to begin with.

    Raises
    ------
    ValueError
        Nothing to show, pairs with different points or numbers of layers, or a layer that is not
        there.
    ImportError
        anywidget is missing; the message says how to install it.
    """
    projection_of, tokens, controls = _projection_controls(
        projections, layer, shared=("same limits in all layers", False)
    )
    figure = Figure(figsize=(9, 4.2), dpi=90)
    # fixed margins, here and below: a layout engine would make each frame slower
    margins = {"left": 0.07, "right": 0.98, "bottom": 0.2, "top": 0.92, "wspace": 0.38}
    plane, side = figure.subplots(1, 2, width_ratios=[2.2, 1], gridspec_kw=margins)
    _fix_places(plane)
    _fix_places(side)
    artists = token_artists(plane, tokens)
    set_bars = _bars(side, tokens, "distance in all dimensions")
    plane.locator_params(nbins=2)  # text is what takes the time of a frame
    # two texts are drawn in a fifth of the time that a legend takes
    legend_a = figure.text(0.07, 0.03, "", color=COLORS[0], parse_math=False)
    legend_b = figure.text(0.3, 0.03, "", color=COLORS[1], parse_math=False)

    def draw(pair: str, point: str, layer: int, shared: bool) -> tuple[str, str]:
        projection = projection_of[pair, point]
        name_a, name_b = prompt_names(projection)
        legend_a.set_text(f"● {name_a}")
        legend_b.set_text(f"◇ {name_b}")
        move_tokens(artists, projection, layer, shared=shared)
        distances = projection.distances[layer]  # (tokens,)
        longest = projection.distances.max() if shared else distances.max()
        set_bars(projection, distances, longest)
        sentence = _largest_distance(pair, projection, layer, distances)
        share = projection.explained[layer].sum()
        left_out = without_special(projection)
        return f"{sentence} The two axes show {share:.0%} of the variance{left_out}.", []

    return Explorer("Tokens of both prompts", figure, controls, draw, ON_PAGE)


def layer_explorer(projections: Mapping[str, Sequence[Projection]], *, layer: int = 0) -> Explorer:
    """Explore the distance between the prompts at every token and layer.

    A heatmap, and one layer of it as bars. "Relative" divides a distance by the length of the
    representation, since both grow with depth.

    Parameters
    ----------
    projections : dict
        As `pca_explorer` takes them.

    Raises
    ------
    ValueError, ImportError
        As `pca_explorer`.
    """
    projection_of, tokens, controls = _projection_controls(
        projections, layer, relative=("relative to the length", True)
    )
    figure = Figure(figsize=(9, 4.2), dpi=90)
    plane = figure.add_axes((0.06, 0.24, 0.46, 0.68))
    scale = figure.add_axes((0.53, 0.24, 0.012, 0.68))
    side = figure.add_axes((0.74, 0.24, 0.24, 0.68))
    set_bars = _bars(side, tokens, "distance")
    set_heatmap = _heatmap(plane, scale)

    def draw(pair: str, point: str, layer: int, relative: bool) -> tuple[str, str]:
        projection = projection_of[pair, point]
        name, values = distances_to_show(projection, relative)
        set_heatmap(projection, values, layer)
        scale.set_title("relative" if relative else "distance", fontsize=8)
        set_bars(projection, values[layer], values[layer].max())
        side.set(title=f"layer {layer}", xlabel=name)
        unit = " of its length" if relative else ""
        return _largest_distance(pair, projection, layer, values[layer], unit), []

    return Explorer("Distance by token and layer", figure, controls, draw, ON_PAGE)


def _heatmap(plane: Axes, scale: Axes) -> Callable[[Projection, np.ndarray, int], None]:
    """Put a heatmap and its colour scale on two Axes; return a function that shows values in it."""
    image = plane.imshow(np.zeros((2, 2)), **HEATMAP)
    plane.figure.colorbar(image, cax=scale)
    (frame,) = plane.plot([], [], color="white", linewidth=1.2)  # round the chosen layer
    plane.set_ylabel("layer")
    plane.yaxis.get_major_locator().set_params(integer=True)

    def show(projection: Projection, values: np.ndarray, layer: int) -> None:
        layers, tokens = values.shape
        left, right, top = -0.5, tokens - 0.5, layers - 0.5
        image.set_data(values)
        image.set_extent((left, right, -0.5, top))
        image.set_clim(0, values.max())
        below, above = layer - 0.5, layer + 0.5
        frame.set_data([left, right, right, left, left], [below, below, above, above, below])
        plane.set_xticks(range(tokens), token_labels(projection), fontsize=8, **SLANTED)
        plane.set(xlim=(left, right), ylim=(-0.5, top))
        plane.set_title(f"{projection.point}, all layers")

    return show


def score_explorer(
    bias: Tensor, importance: Mapping[str, Tensor], *, count: int = 3, layer: int = 0
) -> Explorer:
    """Explore which neurons of a layer the hybrid score takes, by the weight of its bias part.

    Parameters
    ----------
    bias : Tensor
        From `bias_scores`, shape (layers, neurons).
    importance : dict
        Name → table from `importance_scores`, of the same shape.
    count : int
        Neurons to choose in the layer, to begin with.

    Raises
    ------
    ValueError
        No importance score, tables of unequal shape or with NaN, a count or layer out of range.
    ImportError
        As `pca_explorer`.
    """
    check_kind("importance", importance, Mapping, "a dict of tables")
    if not importance:
        raise ValueError(f"importance: expected a dict of tables; got {importance!r}")
    for table in importance.values():
        hybrid_scores(bias, table)  # raises what a move would raise later
    controls = _score_controls(bias.shape, list(importance), layer, count)
    figure = Figure(figsize=(8, 4.2), dpi=90)
    margins = {"left": 0.1, "right": 0.84, "bottom": 0.13, "top": 0.92}
    ax = figure.subplots(gridspec_kw=margins)
    kept = ax.scatter([], [], s=8, color="0.6", linewidths=0, label="kept")
    cut = ax.scatter([], [], s=50, marker="X", color=[COLORS[3]], label="cut", zorder=3)
    (border,) = ax.plot([], [], "--", color=COLORS[0], label="border")
    names = [ax.annotate("", (0, 0), **NAME_STYLE) for _ in range(MOST_NAMES)]
    ax.set(ylabel="bias score")
    legend_beside(ax)

    def draw(score: str, layer: int, weight: float, count: int) -> tuple[str, str]:
        x, y = importance[score][layer], bias[layer]  # (neurons,) each
        hybrid = hybrid_scores(y[None], x[None], bias_weight=weight)[0]
        chosen = hybrid.topk(count).indices.tolist()
        places = np.column_stack([x, y])
        kept.set_offsets(places)
        cut.set_offsets(places[chosen])
        set_limits(ax, places, margin=0.06)
        border.set_data(*_border(places, hybrid[chosen[-1]].item(), weight).T)
        numbers = [str(neuron) for neuron in chosen]
        named = numbers if count <= MOST_NAMES else []
        move_texts(names, named, places[chosen[: len(named)]])
        ax.set_xlabel(f"importance score ({score})")
        ax.set_title(f"Neurons of layer {layer}, bias weight {weight:.2f}")
        setting = f"Layer {layer}, {score}, bias weight {weight:.2f}"
        return f"{setting}: neurons {', '.join(numbers)} would be cut.", []

    return Explorer("Which neurons are chosen", figure, controls, draw, ("score", "layer"))


def _score_controls(
    shape: tuple[int, int], scores: list[str], layer: int, count: int
) -> dict[str, Control]:
    layers, neurons = shape
    most = min(30, neurons - 1)
    layer = check_whole("layer", layer, 0, layers - 1)
    count = check_whole("count", count, 1, most)
    weights = [step / 20 for step in range(21)]
    return {
        "score": Control("importance", scores, scores[0]),
        "layer": Control("layer", range(layers), layer, "slider"),
        "weight": Control("bias weight", weights, 0.5, "slider"),
        "count": Control("neurons", range(1, most + 1), count, "slider"),
    }


def _border(places: np.ndarray, hybrid: float, weight: float) -> np.ndarray:
    """Return the two ends of the line on which the hybrid score has such a value: (ends, axes).

    The line is w · N(bias) + (1 − w) · (1 − N(importance)) = hybrid; N maps a layer to 0 … 1.
    """
    if weight > 0:  # from side to side: solved for N(bias)
        ends = [(n, (hybrid - (1 - weight) * (1 - n)) / weight) for n in (0, 1)]
    else:  # from bottom to top: solved for N(importance)
        ends = [(1 - hybrid, n) for n in (0, 1)]
    low, high = places.min(0), places.max(0)
    return low + np.array(ends) * (high - low)


def surgery_explorer(
    table: pd.DataFrame,
    *,
    settings: Sequence[str],
    measures: Sequence[str],
    start: Mapping[str, Any] | None = None,
) -> Explorer:
    """Explore what precomputed cuts did: numbers and texts, by the settings of the cut.

    Parameters
    ----------
    table : DataFrame
        One row a setting, with the columns `text_a`, `text_b` (what the model wrote after each
        prompt) and those that follow.
    settings : list of str
        The columns that get a drop-down list.
    measures : list of str
        The columns that get a row of the picture: relative changes; 0: none.
    start : dict of str to value, optional
        Where the lists stand at first, by their column; the others at their lowest value.

    Raises
    ------
    ValueError
        Missing columns, settings that are no full grid of combinations with one row each, or a
        start that the table does not have.
    ImportError
        As `pca_explorer`.
    """
    row_of = _rows_by_setting(table, settings, measures)
    if start is not None:
        check_kind("start", start, Mapping, "a dict of values by column")
    start = dict(start or {})
    if not set(start) <= set(settings):
        raise ValueError(
            f"start: expected names among {', '.join(settings)}; got {', '.join(start)}"
        )
    controls = {}
    for name in settings:
        values = sorted(table[name].unique().tolist())
        first = start.get(name, values[0])
        if first not in values:
            raise ValueError(f"start: expected {name} among {values}; got {first!r}")
        controls[name] = Control(name.replace("_", " "), values, first)
    figure = Figure(figsize=(9, 1.4 + 0.4 * len(measures)), dpi=90)
    margins = {"left": 0.25, "right": 0.8, "bottom": 0.55 / figure.get_figheight()}
    ax = figure.subplots(gridspec_kw=margins)
    places = range(len(measures))
    everything = 100 * table[list(measures)].to_numpy()  # (settings, measures)
    dots = {"color": "0.4", "alpha": 0.3, "markersize": 6, "markeredgewidth": 0}
    ax.plot(everything.T.ravel(), np.repeat(places, len(table)), "o", **dots, label="all settings")
    cross = {"color": COLORS[3], "markersize": 10, "label": "this setting"}
    (chosen_row,) = ax.plot([], [], "X", **cross)
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.set_xscale("symlog", linthresh=LINEAR_TO)
    left = 1.2 * min(everything.min(), 0) - 2  # no dot on the edge
    right = 1.2 * max(everything.max(), 0) + 2
    ax.set_xlim(left, right)
    ax.set_xticks([tick for tick in PERCENT_TICKS if left <= tick <= right])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    ax.set_yticks(places, measures)
    ax.set_ylim(len(measures) - 0.5, -0.5)
    ax.set(xlabel=f"← falls    change in % (logarithmic beyond ±{LINEAR_TO})    rises →")
    legend_beside(ax)

    def draw(**setting: Any) -> tuple[str, str]:
        row = row_of[tuple(setting.values())]
        chosen_row.set_data([100 * row[measure] for measure in measures], places)
        titles = [f"{name.replace('_', ' ')} {value}" for name, value in setting.items()]
        ax.set_title(", ".join(titles))
        changes = [f"{measure} {row[measure]:+.1%}" for measure in measures]
        return "; ".join(changes) + ".", [row["text_a"], row["text_b"]]

    return Explorer("What a cut does", figure, controls, draw, settings)


def _rows_by_setting(
    table: pd.DataFrame, settings: Sequence[str], measures: Sequence[str]
) -> dict[tuple, dict]:
    """Return each row of a surgery table by its combination of settings."""
    check_kind("table", table, pd.DataFrame, "a DataFrame")
    for argument, names in (("settings", settings), ("measures", measures)):
        check_kind(argument, names, (list, tuple), "a list of columns")
    columns = (*settings, *measures, "text_a", "text_b")
    missing = [str(column) for column in columns if column not in table]
    if missing or not settings or not measures:
        raise ValueError(
            f"table, settings, measures: missing {', '.join(missing) or 'names'}; "
            f"got {', '.join(map(str, table.columns)) or 'none'}"
        )
    keys = table[list(settings)].itertuples(index=False, name=None)
    row_of = dict(zip(keys, table.to_dict("records"), strict=True))
    combinations = math.prod(table[name].nunique() for name in settings)
    if not len(table) == len(row_of) == combinations:
        raise ValueError(
            f"table: expected one row a combination of {', '.join(settings)}; got {len(table)} rows"
        )
    return row_of


def _projection_controls(
    projections: Mapping[str, Sequence[Projection]], layer: int, **switch: tuple[str, bool]
) -> tuple[dict[tuple[str, str], Projection], int, dict[str, Control]]:
    """Return the projections by (pair, point), the largest number of tokens, and the controls.

    `switch` names a control, with its label and whether it begins switched on.
    """
    check_kind("projections", projections, Mapping, "a dict of lists, by the name of a pair")
    projection_of, layers_of = {}, {}
    for pair, members in projections.items():
        for one in members:
            check_projection(one, "projections")
        projection_of.update({(pair, one.point): one for one in members})
        layers_of[pair] = {one.point: len(one.distances) for one in members}
    first = next(iter(layers_of.values()), {})
    if any(layers != first for layers in layers_of.values()) or len(set(first.values())) != 1:
        raise ValueError(
            "projections: expected the same points and numbers of layers for each pair; "
            f"got {layers_of}"
        )
    last = max(first.values()) - 1
    layer = check_whole("layer", layer, 0, last)
    controls = {
        "pair": Control("pair", list(projections), next(iter(projections))),
        "point": Control("capture point", list(first), next(iter(first))),
        "layer": Control("layer", range(last + 1), layer, "slider"),
    }
    for name, (label, on) in switch.items():
        controls[name] = Control(label, (False, True), on, "switch")
    tokens = max(len(projection.tokens_a) for projection in projection_of.values())
    return projection_of, tokens, controls


def _fix_places(ax: Axes) -> None:
    """Fix title and axis labels: to look for free places takes a fifth of a frame."""
    ax.set_title(" ", y=1.0)
    area = ax.get_window_extent()
    ax.xaxis.set_label_coords(0.5, -25 / area.height)
    ax.yaxis.set_label_coords(-36 / area.width, 0.5)


def _bars(ax: Axes, tokens: int, label: str) -> Callable[[Projection, np.ndarray, float], None]:
    """Put a bar for each token on an Axes; return a function that sets them below a limit."""
    bars = ax.barh(range(tokens), np.zeros(tokens), color=COLORS[0])
    ax.set(xlabel=label)
    ax.locator_params(axis="x", nbins=2)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)
    strip = None

    def show(projection: Projection, values: np.ndarray, limit: float) -> None:
        nonlocal strip
        for bar, value in zip_longest(bars, values, fillvalue=0):
            bar.set_width(value)
        ax.set(ylim=(len(values) - 0.4, -0.6), xlim=(0, 1.05 * limit + 1e-9))
        labels = token_labels(projection)
        if strip is None or labels != [text.get_text() for text in ax.get_yticklabels()]:
            if strip is not None:
                strip.remove()
            ax.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
            strip = _picture_of_labels(ax)

    return show


def _picture_of_labels(ax: Axes) -> FigureImage:
    """Replace the labels of the y axis by a picture: drawing them takes a fifth of a frame."""
    figure = ax.figure
    neighbours = [ax.xaxis, *(other for other in figure.axes if other is not ax)]
    # draw the labels alone
    for artist in neighbours:
        artist.set_visible(False)
    ax.yaxis.set_visible(True)
    figure.canvas.draw()
    left, right = int(ax.yaxis.get_tightbbox().x0), int(ax.get_window_extent().x0)
    pixels = np.array(figure.canvas.buffer_rgba())[:, left:right]  # (height, width, RGBA)
    # from now on, draw everything but the labels
    ax.yaxis.set_visible(False)
    for artist in neighbours:
        artist.set_visible(True)
    return figure.figimage(pixels, xo=left, origin="upper", zorder=-1)


def _largest_distance(
    pair: str, projection: Projection, layer: int, values: np.ndarray, unit: str = ""
) -> str:
    """Say which token moves most in a layer."""
    most = int(values.argmax())
    token = token_labels(projection)[most]
    setting = f"{pair}, {projection.point}, layer {layer}"
    return f"{setting}: {token!r} moves most, by {values[most]:.3g}{unit}."
