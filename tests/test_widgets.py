import ast
import base64
import io
import itertools
import json
import re
import sys
from functools import partial
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import fairlab as fl
from fairlab.diagnosis import Projection
from fairlab.predictions import VIEW

LAYERS = 3
A = (
    "I",
    "<b>",
    "</script>",
    "$$",
    "home",
    "$x$",
    "&amp;",
)  # could be HTML, the end of a script or a formula
B = ("I", "<i>", *A[2:])
LABELS = ["I", "<b>/<i>", *A[2:]]
SCORES = torch.rand(3, LAYERS, 40, generator=torch.Generator().manual_seed(0))
BIAS, IMPORTANCE = SCORES[0], {"maw": SCORES[1], "l2": SCORES[2]}
CUTS = pd.DataFrame(
    {
        "count": [1, 1, 3, 3],
        "layer": [*"abab"],
        "gap": [0.1, -0.2, 0.3, 0.4],
        "ppl": [2, 0.5, 1, -0.9],
    }
)
CUTS["text_a"], CUTS["text_b"] = "<b>" + CUTS.gap.astype(str), CUTS.ppl.astype(str) + "&"


def projection(point="residual", tokens=5, layers=LAYERS):
    numbers = np.random.default_rng(tokens + len(point))
    coordinates = (
        numbers.normal(size=(layers, 2, tokens, 2)) * np.arange(1, layers + 1)[:, None, None, None]
    )
    distances, norms = (
        numbers.uniform(0.1, 1, (layers, tokens)),
        numbers.uniform(1, 9, (layers, tokens)),
    )
    coordinates[:, 1, 0], distances[:, 0] = coordinates[:, 0, 0], 0
    shares = np.full((layers, 2), 0.3)
    measured = (coordinates, shares, distances, norms)
    return Projection(point, A[:tokens], B[:tokens], *measured, "<b>", f"$x$ {tokens}")


PAIRS = {
    "<7>": [projection(tokens=7), projection("mlp_output", 7)],
    "<5>": [projection(), projection("mlp_output")],
}
STATES = list(
    itertools.product(PAIRS, (0, 1), range(LAYERS), (False, True))
)  # from many tokens to few
GRID = {"settings": ["count", "layer"], "measures": ["gap", "ppl"]}
surgery = partial(fl.surgery_explorer, CUTS, **GRID)
EXPLORERS = {
    "pca": partial(fl.pca_explorer, PAIRS),
    "layer": partial(fl.layer_explorer, PAIRS),
    "score": partial(fl.score_explorer, BIAS, IMPORTANCE),
    "surgery": surgery,
}


def shown(explorer):
    return bytes(explorer.picture.value), explorer.sentence.value, explorer.below.value


def draw(explorer, *values):
    named = dict(zip(explorer.controls, values, strict=True))
    return explorer.figure.axes, *explorer.draw(**named)


def says(pair, k, layer, values):
    most = sorted(range(len(values)), key=list(values).__getitem__)[-1]
    moves = f"{LABELS[most]!r} moves most, by {values[most]:.3g}"
    return f"{pair}, {PAIRS[pair][k].point}, layer {layer}: {moves}"


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_control_changes_the_picture_and_leaves_no_trace(name):
    explorer = EXPLORERS[name]()
    controls, first, pictures = explorer.controls.values(), shown(explorer), {shown(explorer)[0]}
    before = [control.value for control in controls]
    for control in controls:  # one after another
        control.value = (
            control.options[-1] if hasattr(control, "options") else getattr(control, "max", True)
        )
        bundle = explorer._repr_mimebundle_(include=None)
        assert base64.b64decode(bundle["image/png"]) == shown(explorer)[0] not in pictures
        pictures.add(shown(explorer)[0])
    assert shown(explorer)[0] == EXPLORERS[name]().frame(**explorer.values())[0]
    for control, value in zip(controls, before, strict=True):
        control.value = value
    assert shown(explorer) == first and first[0].startswith(b"\x89PNG")
    assert bundle[VIEW]["model_id"] == explorer.widget.model_id


@pytest.mark.parametrize("name", EXPLORERS)
def test_ipywidgets_7_shows_them_too(name, monkeypatch):
    """Colab holds it, and its widgets have no method that returns what shows them."""
    monkeypatch.delattr(ipywidgets.Widget, "_repr_mimebundle_")
    explorer = EXPLORERS[name]()
    bundle = explorer._repr_mimebundle_()
    assert bundle[VIEW] == {
        "model_id": explorer.widget.model_id,
        "version_major": 2,
        "version_minor": 0,
    }
    assert base64.b64decode(bundle["image/png"]) == shown(explorer)[0]


def test_tokens_arrows_and_bars_stand_where_the_projection_says():
    explorer, limits = EXPLORERS["pca"](), set()
    for pair, k, layer, shared in STATES:
        expected, (at_a, at_b) = PAIRS[pair][k], PAIRS[pair][k].coordinates[layer]
        (plane, side), sentence, _ = draw(explorer, pair, expected.point, layer, shared)
        assert (
            sentence
            == says(pair, k, layer, expected.distances[layer])
            + ". The two axes show 60% of the variance."
        )
        arrows, a, b = plane.collections
        assert np.array_equal(a.get_offsets(), at_a) and np.array_equal(b.get_offsets(), at_b)
        assert (~arrows.Umask).tolist() == [
            0 < place < len(at_a) for place in range(7)
        ]  # none where nothing moves
        assert np.allclose(
            (arrows.get_offsets() + np.c_[arrows.U, arrows.V])[1 : len(at_a)], at_b[1:]
        )
        labels = {(text.get_text(), *text.xy) for text in plane.texts if text.get_visible()}
        furthest = expected.distances[layer].argsort()[-4:]
        written = {(B[place], *at_b[place]) for place in furthest}
        if 1 in furthest:
            written.add(("<b>", *at_a[1]))
        assert labels == written
        names = [text.get_text() for text in explorer.figure.texts]
        assert names == ["● prompt with <b>", f"◇ prompt with $x$ {len(at_a)}"]
        assert [bar.get_width() for bar in side.patches] == [
            *expected.distances[layer],
            *[0] * (7 - len(at_a)),
        ]
        assert [text.get_text() for text in side.get_yticklabels()] == LABELS[: len(at_a)]
        limits.add((shared, pair, k, plane.get_xlim(), plane.get_ylim(), side.get_xlim()))
        low, high = np.transpose([plane.get_xlim(), plane.get_ylim()])
        inside = expected.coordinates if shared else expected.coordinates[layer]
        assert (
            (low < inside).all()
            and (high > inside).all()
            and side.get_xlim()[1] > expected.distances[layer].max()
        )
    assert (
        sorted(limit[0] for limit in limits) == [False] * 4 * LAYERS + [True] * 4
    )  # shared: one for all layers


def test_heatmap_shows_the_distances_and_frames_the_layer():
    explorer = EXPLORERS["layer"]()
    assert "<p aria-live='polite'>&lt;7&gt;, residual, layer 0: " in shown(explorer)[1]
    for pair, k, layer, relative in STATES:
        expected = PAIRS[pair][k].distances / (PAIRS[pair][k].norms if relative else 1)
        (plane, scale, side), sentence, _ = draw(
            explorer, pair, PAIRS[pair][k].point, layer, relative
        )
        assert sentence == says(pair, k, layer, expected[layer]) + (
            " of its length." if relative else "."
        )
        (image,), (frame,), n = plane.images, plane.lines, expected.shape[1]
        assert np.array_equal(image.get_array(), expected)
        assert (
            [*image.get_extent()]
            == [*plane.get_xlim(), *plane.get_ylim()]
            == [-0.5, n - 0.5, -0.5, LAYERS - 0.5]
        )
        assert image.get_clim() == scale.get_ylim() == (0, expected.max())
        assert {*frame.get_ydata()} == {layer - 0.5, layer + 0.5}
        assert [bar.get_width() for bar in side.patches] == [*expected[layer], *[0] * (7 - n)]
        for texts in plane.get_xticklabels(), side.get_yticklabels():
            assert [text.get_text() for text in texts] == LABELS[:n]


@pytest.mark.parametrize("weight", [0, 0.05, 0.5, 0.85, 1])
def test_neurons_are_those_of_the_hybrid_score_and_the_border_divides_them(weight):
    explorer = EXPLORERS["score"]()
    for score, layer, count in itertools.product(IMPORTANCE, (0, 2), (1, 3, 12)):
        (ax,), sentence, _ = draw(explorer, score, layer, weight, count)
        hybrid = fl.hybrid_scores(BIAS, IMPORTANCE[score], bias_weight=weight)[layer]
        chosen = hybrid.topk(count).indices.tolist()
        assert sentence.endswith(f"neurons {', '.join(map(str, chosen))} would be cut.")
        places = torch.stack([IMPORTANCE[score][layer], BIAS[layer]], 1).numpy()
        assert [drawn.get_offsets().tolist() for drawn in ax.collections] == [
            places.tolist(),
            places[chosen].tolist(),
        ]
        names = [int(text.get_text()) for text in ax.texts if text.get_visible()]
        assert names == (chosen if count <= 10 else [])
        x, y = ((ax.lines[0].get_xydata() - places.min(0)) / np.ptp(places, axis=0)).T
        assert weight * y + (1 - weight) * (1 - x) == pytest.approx(
            hybrid[chosen].min().item(), abs=1e-5
        )
        assert np.ptp(x if weight else y) == pytest.approx(
            1
        )  # from side to side, so it divides the plane


def test_surgery_shows_the_row_of_the_settings():
    explorer = surgery()
    for row in CUTS.to_dict("records"):
        (ax,), sentence, below = draw(explorer, row["count"], row["layer"])
        everyone, chosen, _ = ax.lines
        assert chosen.get_xydata().tolist() == [[100 * row["gap"], 0], [100 * row["ppl"], 1]]
        assert everyone.get_xdata().tolist() == [*(100 * CUTS.gap), *(100 * CUTS.ppl)]
        assert everyone.get_ydata().tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        assert sentence == f"gap {row['gap']:+.1%}; ppl {row['ppl']:+.1%}."
        assert (
            below
            == "<blockquote>&lt;b&gt;{gap}</blockquote><blockquote>{ppl}&amp;</blockquote>".format(
                **row
            )
        )
    assert (
        draw(fl.surgery_explorer(CUTS[::2], settings=["count"], measures=["gap"]), 3)[1]
        == "gap +30.0%."
    )


def test_the_surgery_explorer_opens_where_it_is_told():
    explorer = surgery(start={"layer": CUTS.layer.max()})
    assert explorer.values() == {"count": CUTS["count"].min(), "layer": CUTS.layer.max()}
    assert "logarithmic beyond ±20" in explorer.figure.axes[0].get_xlabel()
    for start in ({"depth": 1}, {"layer": 99}):
        with pytest.raises(ValueError, match="start: expected"):
            surgery(start=start)


@pytest.mark.parametrize("name", ["pca", "layer", "score"])
def test_the_page_has_a_frame_a_layer_and_needs_no_network(name, tmp_path):
    explorer = EXPLORERS[name](layer=2)
    before = explorer.values(), shown(explorer)
    page = explorer.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert (explorer.values(), shown(explorer)) == before and len(page) < 4e6 * LAYERS / 30
    assert not re.search("https?:|<link|<[^>]+src=|<b>|<7>", page) and page.count("</script") == 1
    title = explorer.title + (" · maw" if name == "score" else " · &lt;7&gt; · residual")
    assert (
        page.count(f">{title}</") == 2
        and f'type="range" min="0" max="{LAYERS - 1}" value="2"' in page
    )
    frames, captions = (
        json.loads(re.search(rf"\b{part} = (\[.*?\]),", page)[1]) for part in ("frames", "captions")
    )
    for layer, frame, caption in zip(range(LAYERS), frames, captions, strict=True):
        picture, sentence, _ = explorer.frame(**(before[0] | {"layer": layer}))
        small, large = (Image.open(io.BytesIO(png)) for png in (base64.b64decode(frame), picture))
        assert small.format == "PNG" and caption == sentence
        assert (
            np.abs(np.subtract(small.convert("RGB"), large.convert("RGB"), dtype=float)).mean() < 1
        )


X, Y, X4, Y4 = projection("x"), projection("y"), projection("x", 5, 4), projection("y", 5, 4)
BAD = {
    "projections: expected the same points and numbers of layers for each pair; got {}": lambda: (
        fl.pca_explorer({})
    ),
    "got {'a': {}}": lambda: fl.layer_explorer({"a": []}),
    "got {'a': {'x': 3}, 'b': {'y': 3}}": lambda: fl.pca_explorer({"a": [X], "b": [Y]}),
    "got {'a': {'x': 3}, 'b': {'x': 4}}": lambda: fl.layer_explorer({"a": [X], "b": [X4]}),
    "got {'a': {'x': 3, 'y': 4}}": lambda: fl.pca_explorer({"a": [X, Y4]}),
    "layer: expected a number from 0 to 2; got 3": lambda: EXPLORERS["layer"](layer=3),
    "layer: expected a number from 0 to 2; got '1'": lambda: EXPLORERS["score"](layer="1"),
    "count: expected a number from 1 to 30; got 31": lambda: EXPLORERS["score"](count=31),
    "count: expected a number from 1 to 4; got 0": lambda: fl.score_explorer(
        BIAS[:, :5], {"l2": BIAS[:, :5]}, count=0
    ),
    "importance: expected a dict of tables; got {}": lambda: fl.score_explorer(BIAS, {}),
    "(layers, neurons); got (3, 40) and (3, 39)": lambda: fl.score_explorer(
        BIAS, {"maw": BIAS, "l2": BIAS[:, 1:]}
    ),
    "importance: expected finite values": lambda: fl.score_explorer(
        BIAS, {"maw": BIAS, "l2": BIAS / 0}
    ),
    "table, settings, measures: missing size, ppl2; got count": lambda: surgery(
        settings=["size"], measures=["ppl2"]
    ),
    "missing names; got count, layer, ": lambda: surgery(measures=[]),
    "table: expected one row a combination of count; got 4 rows": lambda: surgery(
        settings=["count"]
    ),
    "one row a combination of count, layer; got 3 rows": lambda: fl.surgery_explorer(
        CUTS[1:], **GRID
    ),
    "to_html: expected an explorer with a layer slider; 'What a cut does' has none": lambda: (
        surgery().to_html("no")
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BAD[message]()
    assert not Path("no").exists()


def test_without_ipywidgets_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    for explorer in EXPLORERS.values():
        with pytest.raises(
            ImportError, match='explorers need ipywidgets: pip install "ipywidgets>=8.1"'
        ):
            explorer()
    for path in Path(fl.__file__).parent.rglob("*.py"):  # and importing fairlab needs none
        early = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if not isinstance(node, ast.FunctionDef)
        ]
        assert not any("import ipywidgets" in ast.unparse(node) for node in early)
