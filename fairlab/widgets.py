"""Explorers: sliders above a picture of what was computed before.

Contents: `pca_explorer`, `layer_explorer`, `score_explorer`, `surgery_explorer`; `Explorer`, what
they return.

No model runs here. An explorer keeps one figure, moves its artists, and sends a PNG to an image
widget: several times faster than a new figure at every step. This is the only module that needs
ipywidgets.
"""

import base64
import html
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fairlab.diagnosis import Projection
from fairlab.files import check_output, write_text
from fairlab.plots.projections import token_artists, token_labels
from fairlab.plots.style import COLORS, as_written
from fairlab.scores import hybrid_scores

_PAGE = Path(__file__).parent / "templates" / "explorer.html"


class Explorer:
    """Controls above a picture and a sentence that says what it shows; the last line of a cell
    displays it.

    `controls` holds the widgets by name, so a cell can set `explorer.controls["layer"].value = 12`.
    """

    def __init__(
        self,
        title: str,
        figure: Figure,
        controls: Mapping[str, Any],
        draw: Callable[..., tuple[str, str]],
    ):
        widgets = _ipywidgets()
        self.title, self.controls = title, dict(controls)
        self._canvas, self._draw = FigureCanvasAgg(figure), draw
        for ax in figure.axes:
            as_written(ax)
        self._picture = widgets.Image(format="png", layout={"max_width": "100%"})
        self._sentence, self._below = widgets.HTML(), widgets.HTML()
        for control in self.controls.values():
            control.style.description_width = "initial"
            control.observe(self._update, names="value")
        row = widgets.HBox(list(self.controls.values()), layout={"flex_flow": "row wrap"})
        self.widget = widgets.VBox([row, self._picture, self._sentence, self._below])
        self._update()

    def _values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def _frame(self, **values: Any) -> tuple[bytes, str, str]:
        sentence, below = self._draw(**values)
        buffer = io.BytesIO()
        self._canvas.print_png(buffer, pil_kwargs={"compress_level": 1})
        return buffer.getvalue(), sentence, below

    def _update(self, _: Any = None) -> None:
        self._picture.value, sentence, below = self._frame(**self._values())
        self._sentence.value = f"<p aria-live='polite'>{html.escape(sentence)}</p>"
        self._below.value = below

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Show the widget; where there is no kernel (GitHub, a page), the picture."""
        still = {"image/png": base64.b64encode(self._picture.value).decode()}
        return {
            **self.widget._repr_mimebundle_(),
            **still,
            "text/plain": f"{self.title} (run the cell for sliders)",
        }

    def to_html(self, path: str | Path, *, force: bool = False) -> Path:
        """Write a page of its own for the current pair, with a layer slider that needs no kernel
        and no network.

        Parameters
        ----------
        force : bool
            Whether to replace a file that exists.

        Raises
        ------
        ValueError
            An explorer without a layer slider; a file that exists, without `force`.
        """
        path = check_output("path", path, force=force)
        last = getattr(self.controls.get("layer"), "max", None)
        if last is None:
            raise ValueError(
                f"to_html: expected an explorer with a layer slider; {self.title!r} has none"
            )
        now, frames, captions = self._values(), [], []
        for layer in range(last + 1):
            png, sentence, _ = self._frame(**(now | {"layer": layer}))
            small = io.BytesIO()
            Image.open(io.BytesIO(png)).convert("RGB").quantize(128).save(
                small, "PNG", optimize=True
            )
            frames.append(base64.b64encode(small.getvalue()).decode())
            captions.append(sentence)
        page = Template(_PAGE.read_text(encoding="utf-8")).substitute(
            title=html.escape(
                " · ".join([self.title, *(str(v) for v in now.values() if isinstance(v, str))])
            ),
            last=last,
            layer=now["layer"],
            frames=json.dumps(frames),
            captions=json.dumps(captions).replace(
                "<", "\\u003c"
            ),  # a token may look like the end of the script
        )
        write_text(path, page)
        return path


def pca_explorer(projections: Mapping[str, Sequence[Projection]], *, layer: int = 0) -> Explorer:
    """Explore the tokens of both prompts in the two main axes of each layer, and their distances in
    all dimensions.

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
        ipywidgets is missing; the message says how to install it.
    """
    table, size, controls = _choices(projections, layer)
    controls["shared"] = _ipywidgets().Checkbox(
        value=False, description="same limits in all layers"
    )
    figure = Figure(figsize=(9, 4.2), dpi=90)
    # fixed margins, here and below: a layout engine would take half of the time of a frame
    margins = {"left": 0.07, "right": 0.98, "bottom": 0.2, "top": 0.92, "wspace": 0.38}
    plane, side = figure.subplots(1, 2, width_ratios=[2.2, 1], gridspec_kw=margins)
    _fix_places(plane)
    _fix_places(side)
    move, measure = token_artists(plane, size), _bars(side, size, "distance, a to b")
    plane.locator_params(nbins=2)  # text is what takes the time of a frame
    plane.get_legend().remove()  # two texts are drawn in a fifth of its time
    figure.text(0.07, 0.03, "● prompt a", color=COLORS[0])
    figure.text(0.2, 0.03, "◇ prompt b", color=COLORS[1])

    def draw(pair: str, point: str, layer: int, shared: bool) -> tuple[str, str]:
        projection = table[pair, point]
        move(projection, layer, shared)
        distances = projection.distances[layer]
        measure(projection, distances, projection.distances.max() if shared else distances.max())
        shares = projection.explained[layer].sum()
        return (
            f"{_says(pair, projection, layer, distances)} The two axes show {shares:.0%} of the variance.",
            "",
        )

    return Explorer("Tokens of both prompts", figure, controls, draw)


def layer_explorer(projections: Mapping[str, Sequence[Projection]], *, layer: int = 0) -> Explorer:
    """Explore the distance between the prompts at every token and layer: a heatmap, and one layer
    of it as bars.

    Parameters and errors are those of `pca_explorer`. With "relative" a distance is divided by the
    length of the representation, since both grow with depth.
    """
    table, size, controls = _choices(projections, layer)
    controls["relative"] = _ipywidgets().Checkbox(value=False, description="relative to the length")
    figure = Figure(figsize=(9, 4.2), dpi=90)
    columns = [(0.06, 0.46), (0.53, 0.012), (0.74, 0.24)]
    plane, scale, side = [figure.add_axes((left, 0.24, width, 0.68)) for left, width in columns]
    measure = _bars(side, size, "distance")
    image = plane.imshow(
        np.zeros((2, 2)), aspect="auto", origin="lower", cmap="cividis", interpolation="nearest"
    )
    figure.colorbar(image, cax=scale)
    (line,) = plane.plot([], [], color="white", linewidth=1.2)
    plane.set_ylabel("layer")
    plane.yaxis.get_major_locator().set_params(integer=True)

    def draw(pair: str, point: str, layer: int, relative: bool) -> tuple[str, str]:
        projection = table[pair, point]
        values = projection.distances / projection.norms if relative else projection.distances
        layers, tokens = values.shape
        image.set_data(values)
        image.set_extent((-0.5, tokens - 0.5, -0.5, layers - 0.5))
        image.set_clim(0, values.max())
        scale.set_title("relative" if relative else "distance", fontsize=8)
        edges = [-0.5, tokens - 0.5, tokens - 0.5, -0.5, -0.5]
        line.set_data(edges, layer + np.array([-0.5, -0.5, 0.5, 0.5, -0.5]))
        slanted = {
            "rotation": 60,
            "ha": "right",
            "rotation_mode": "anchor",
            "fontsize": 8,
            "parse_math": False,
        }
        plane.set_xticks(range(tokens), token_labels(projection), **slanted)
        plane.set(
            xlim=(-0.5, tokens - 0.5),
            ylim=(-0.5, layers - 0.5),
            title=f"{projection.point}, all layers",
        )
        measure(projection, values[layer], values[layer].max())
        side.set(title=f"layer {layer}", xlabel="distance / length" if relative else "distance")
        return _says(
            pair, projection, layer, values[layer], " of its length" if relative else ""
        ), ""

    return Explorer("Distance by token and layer", figure, controls, draw)


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
        ipywidgets is missing; the message says how to install it.
    """
    if not importance:
        raise ValueError(f"importance: expected a dict of tables; got {importance!r}")
    for table in importance.values():
        hybrid_scores(bias, table)  # raises what a slider would raise later
    layers, width = bias.shape
    most = min(30, width - 1)
    _check("layer", layer, 0, layers - 1)
    _check("count", count, 1, most)
    widgets = _ipywidgets()
    controls = {
        "score": widgets.Dropdown(options=list(importance), description="importance"),
        "layer": widgets.IntSlider(value=layer, max=layers - 1, description="layer"),
        "weight": widgets.FloatSlider(value=0.5, max=1, step=0.05, description="bias weight"),
        "count": widgets.IntSlider(value=count, min=1, max=most, description="neurons"),
    }
    figure = Figure(figsize=(8, 4.2), dpi=90)
    ax = figure.subplots(gridspec_kw={"left": 0.1, "right": 0.84, "bottom": 0.13, "top": 0.92})
    kept = ax.scatter([], [], s=8, color="0.6", linewidths=0, label="kept")
    cut = ax.scatter([], [], s=50, marker="X", color=[COLORS[3]], label="cut", zorder=3)
    (border,) = ax.plot([], [], "--", color=COLORS[0], label="border")
    names = [
        ax.annotate("", (0, 0), (5, 4), textcoords="offset points", fontsize=8) for _ in range(10)
    ]
    ax.set(ylabel="bias score")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    def draw(score: str, layer: int, weight: float, count: int) -> tuple[str, str]:
        x, y = importance[score][layer : layer + 1], bias[layer : layer + 1]
        hybrid = hybrid_scores(y, x, bias_weight=weight)[0]
        chosen = hybrid.topk(count).indices.tolist()
        places = np.column_stack([x[0], y[0]])
        kept.set_offsets(places)
        cut.set_offsets(places[chosen])
        low, high = places.min(0), places.max(0)
        room = 0.06 * (high - low) + 1e-9
        ax.set(
            xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1])
        )
        worst = hybrid[chosen[-1]].item()
        if weight > 0:  # w · N(bias) + (1 − w) · (1 − N(importance)) = worst, solved for N(bias)
            ends = [(n, (worst - (1 - weight) * (1 - n)) / weight) for n in (0, 1)]
        else:
            ends = [(1 - worst, n) for n in (0, 1)]
        border.set_data(*(low + np.array(ends) * (high - low)).T)
        for place, text in enumerate(names):
            text.set_visible(place < count <= len(names))
            if text.get_visible():
                text.set_text(str(chosen[place]))
                text.xy = places[chosen[place]]
        ax.set(
            xlabel=f"importance score ({score})",
            title=f"Neurons of layer {layer}, bias weight {weight:.2f}",
        )
        listed = ", ".join(map(str, chosen))
        return (
            f"Layer {layer}, {score}, bias weight {weight:.2f}: neurons {listed} would be cut.",
            "",
        )

    return Explorer("Which neurons are chosen", figure, controls, draw)


def surgery_explorer(
    table: pd.DataFrame, *, settings: Sequence[str], measures: Sequence[str]
) -> Explorer:
    """Explore what precomputed cuts did: numbers and texts, by the settings of the cut.

    Parameters
    ----------
    table : DataFrame
        One row a setting; the columns `text_a`, `text_b` (what the model wrote after each prompt),
        those of `settings` and those of `measures` (the relative change each cut brings; 0: none).
    settings, measures : list of str
        Columns: one slider each; one row of the picture each.

    Raises
    ------
    ValueError
        Missing columns, or settings that are no full grid of combinations with one row each.
    ImportError
        ipywidgets is missing; the message says how to install it.
    """
    missing = [
        column for column in (*settings, *measures, "text_a", "text_b") if column not in table
    ]
    if missing or not settings or not measures:
        raise ValueError(
            f"table, settings, measures: missing {', '.join(missing) or 'names'}; got {', '.join(table.columns)}"
        )
    options = {name: sorted(table[name].unique().tolist()) for name in settings}
    rows = {tuple(row[name] for name in settings): row for row in table.to_dict("records")}
    if not len(table) == len(rows) == math.prod(map(len, options.values())):
        raise ValueError(
            f"table: expected one row a combination of {', '.join(settings)}; got {len(table)} rows"
        )
    widgets = _ipywidgets()
    controls = {
        name: widgets.SelectionSlider(options=values, description=name.replace("_", " "))
        for name, values in options.items()
    }
    figure = Figure(figsize=(9, 1.4 + 0.4 * len(measures)), dpi=90)
    ax = figure.subplots(
        gridspec_kw={"left": 0.25, "right": 0.8, "bottom": 0.55 / figure.get_figheight()}
    )
    for place, measure in enumerate(measures):
        label = "all settings" if place == 0 else None
        ax.plot(
            100 * table[measure], [place] * len(table), "o", color="0.8", markersize=4, label=label
        )
    (here,) = ax.plot([], [], "X", color=COLORS[3], markersize=10, label="this setting")
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.set_xscale("symlog", linthresh=20)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_yticks(range(len(measures)), measures)
    ax.set_ylim(len(measures) - 0.5, -0.5)
    ax.set(xlabel="change in %")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))

    def draw(**chosen: Any) -> tuple[str, str]:
        row = rows[tuple(chosen.values())]
        here.set_data([100 * row[measure] for measure in measures], range(len(measures)))
        ax.set_title(
            ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in chosen.items())
        )
        texts = "".join(
            f"<blockquote>{html.escape(row[text])}</blockquote>" for text in ("text_a", "text_b")
        )
        return "; ".join(f"{measure} {row[measure]:+.1%}" for measure in measures) + ".", texts

    return Explorer("What a cut does", figure, controls, draw)


def _ipywidgets() -> Any:
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError('explorers need ipywidgets: pip install "ipywidgets>=8.1"') from error
    return ipywidgets


def _check(argument: str, value: int, low: int, high: int) -> None:
    if value not in range(low, high + 1):
        raise ValueError(f"{argument}: expected a number from {low} to {high}; got {value!r}")


def _choices(projections: Mapping[str, Sequence[Projection]], layer: int) -> tuple[dict, int, dict]:
    """Return the projections by (pair, point), the largest number of tokens, and sliders for pair,
    point and layer."""
    table = {(name, p.point): p for name, members in projections.items() for p in members}
    layers = {
        name: {p.point: len(p.distances) for p in members} for name, members in projections.items()
    }
    first = next(iter(layers.values()), {})
    if any(found != first for found in layers.values()) or len(set(first.values())) != 1:
        raise ValueError(
            f"projections: expected the same points and numbers of layers for each pair; got {layers}"
        )
    last = max(first.values()) - 1
    _check("layer", layer, 0, last)
    widgets = _ipywidgets()
    controls = {
        "pair": widgets.SelectionSlider(options=list(projections), description="pair"),
        "point": widgets.SelectionSlider(options=list(first), description="capture point"),
        "layer": widgets.IntSlider(
            value=layer, max=last, description="layer", layout={"width": "95%"}
        ),
    }
    return table, max(len(p.tokens_a) for p in table.values()), controls


def _fix_places(ax: Axes) -> None:
    """Put title and axis labels at places of their own: to look for free ones takes a fifth of a
    frame."""
    ax.set_title(" ", y=1.0)
    height, width = ax.get_window_extent().height, ax.get_window_extent().width
    ax.xaxis.set_label_coords(0.5, -25 / height)
    ax.yaxis.set_label_coords(-36 / width, 0.5)


def _bars(ax: Axes, size: int, label: str) -> Callable[[Projection, np.ndarray, float], None]:
    bars = ax.barh(range(size), np.zeros(size), color=COLORS[0])
    ax.set(xlabel=label)
    ax.locator_params(axis="x", nbins=2)
    ax.tick_params(axis="y", length=0)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)

    strips: list[Artist] = []

    def name(labels: list[str]) -> None:
        """Keep the labels as a picture of the strip they stand in: drawn anew they take a fifth of
        each frame."""
        ax.set_yticks(range(len(labels)), labels, fontsize=8, parse_math=False)
        while strips:
            strips.pop().remove()
        seen = [ax.xaxis, *(other for other in ax.figure.axes if other is not ax)]
        for other in seen:
            other.set_visible(False)
        ax.yaxis.set_visible(True)
        ax.figure.canvas.draw()
        left, right = int(ax.yaxis.get_tightbbox().x0), int(ax.get_window_extent().x0)
        strip = np.array(ax.figure.canvas.buffer_rgba())[:, left:right]
        strips.append(ax.figure.figimage(strip, xo=left, origin="upper", zorder=-1))
        ax.yaxis.set_visible(False)
        for other in seen:
            other.set_visible(True)

    def show(projection: Projection, values: np.ndarray, limit: float) -> None:
        for place, bar in enumerate(bars):
            bar.set_width(values[place] if place < len(values) else 0)
        ax.set(ylim=(len(values) - 0.4, -0.6), xlim=(0, 1.05 * limit + 1e-9))
        labels = token_labels(projection)
        if not strips or labels != [text.get_text() for text in ax.get_yticklabels()]:
            name(labels)

    return show


def _says(pair: str, projection: Projection, layer: int, values: np.ndarray, unit: str = "") -> str:
    most = int(values.argmax())
    word = token_labels(projection)[most]
    return f"{pair}, {projection.point}, layer {layer}: {word!r} moves most, by {values[most]:.3g}{unit}."
