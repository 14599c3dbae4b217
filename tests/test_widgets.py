import ast
import base64
import io
import itertools
import json
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import fairlab as fl
from fairlab import widgets
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
    return explorer.frame(**explorer.values())


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
    before, first = explorer.values(), shown(explorer)
    pictures = {first.picture}
    for control, setting in explorer.controls.items():  # one after another
        other = next(value for value in reversed(setting.values) if value != before[control])
        explorer.set(**{control: other})
        bundle = explorer._repr_mimebundle_(include=None)
        assert base64.b64decode(bundle["image/png"]) == shown(explorer).picture not in pictures
        pictures.add(shown(explorer).picture)
    assert shown(explorer) == EXPLORERS[name]().frame(**explorer.values())
    explorer.set(**before)
    assert shown(explorer) == first and first.picture.startswith(b"\x89PNG")
    view = {"model_id": explorer.widget.model_id, "version_major": 2, "version_minor": 0}
    assert bundle[VIEW] == view  # by hand: widgets of ipywidgets 7, as on Colab, can't say it


@pytest.mark.parametrize("name", EXPLORERS)
def test_the_browser_gets_the_picture_that_it_asks_for(name, monkeypatch):
    explorer, sent = EXPLORERS[name](), []
    monkeypatch.setattr(explorer.widget, "send", lambda *one, **more: sent.append((*one, more)))
    places = [len(control.values) - 1 for control in explorer.controls.values()]
    explorer.widget._handle_custom_msg({"places": places}, [])
    ((answer, more),) = sent
    expected = explorer.frame(**{k: c.values[-1] for k, c in explorer.controls.items()})
    assert answer == {
        "places": places,
        "sentence": expected.sentence,
        "texts": expected.texts,
    }
    assert more == {"buffers": [expected.picture]}
    # and a move in the browser is one of the explorer
    explorer.widget.places = places
    assert explorer.values() == {k: c.values[-1] for k, c in explorer.controls.items()}


def test_the_browser_is_told_what_each_control_offers():
    controls = EXPLORERS["score"](layer=2).widget.controls
    assert [(control["label"], control["kind"]) for control in controls] == [
        ("importance", "choice"),
        ("layer", "slider"),
        ("bias weight", "slider"),
        ("neurons", "slider"),
    ]
    assert controls[0]["values"] == ["maw", "l2"] and controls[1]["values"] == ["0", "1", "2"]
    assert controls[2]["values"][:4] == ["0", "0.05", "0.1", "0.15"]
    switch = EXPLORERS["pca"]().widget.controls[-1]
    assert switch["kind"] == "switch" and switch["values"] == ["False", "True"]


def test_a_control_takes_only_its_values():
    explorer = EXPLORERS["pca"]()
    before = explorer.values()
    with pytest.raises(ValueError, match="layer: expected one of 0, 1, 2; got 3"):
        explorer.set(layer=3)
    with pytest.raises(ValueError, match="expected names among pair, point, layer, .*got depth"):
        explorer.set(depth=1)
    assert explorer.values() == before


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
    assert explorer.values()["relative"], "a deep layer would leave the others black"
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
        assert below == [row["text_a"], row["text_b"]]
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


@pytest.mark.parametrize("name", EXPLORERS)
def test_the_page_holds_every_frame_and_needs_no_network(name, tmp_path):
    explorer = EXPLORERS[name]() if name == "surgery" else EXPLORERS[name](layer=2)
    before = explorer.values(), shown(explorer)
    page = explorer.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert (explorer.values(), shown(explorer)) == before
    assert not re.search("https?:|<link|<[^>]+src=|<b>|<7>", page) and page.count("</script") == 1
    title = {
        "pca": " · capture point residual",
        "layer": " · capture point residual, relative to the length",
        "score": " · bias weight 0.5, neurons 3",
        "surgery": "",
    }
    assert page.count(f">{explorer.title}{title[name]}</") == 2
    data = json.loads(re.search(r"const \{ controls, places, frames \} = (.*);", page)[1])
    kept = {
        "pca": ("pair", "layer"),
        "layer": ("pair", "layer"),
        "score": ("score", "layer"),
        "surgery": ("count", "layer"),
    }[name]
    controls = [explorer.controls[control] for control in kept]
    labels = [control["label"] for control in data["controls"]]
    assert labels == [control.label for control in controls]
    start = [list(c.values).index(before[0][k]) for k, c in zip(kept, controls, strict=True)]
    assert data["places"] == start
    everywhere = itertools.product(*(range(len(control.values)) for control in controls))
    assert list(data["frames"]) == [",".join(map(str, places)) for places in everywhere]
    for key, drawn in data["frames"].items():
        places = map(int, key.split(","))
        values = [c.values[place] for c, place in zip(controls, places, strict=True)]
        frame = explorer.frame(**{**before[0], **dict(zip(kept, values, strict=True))})
        assert (drawn["sentence"], drawn["texts"]) == (frame.sentence, frame.texts)
        kind, _, code = drawn["picture"].partition(",")
        assert kind == "data:image/png;base64"
        small, large = (
            np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float)
            for png in (base64.b64decode(code), frame.picture)
        )
        assert np.abs(small - large).mean() < 1


X, Y, X4, Y4 = projection("x"), projection("y"), projection("x", 5, 4), projection("y", 5, 4)
BAD = {
    "projections: expected the same points and numbers of layers for each pair; got {}": lambda: (
        fl.pca_explorer({})
    ),
    "got {'a': {}}": lambda: fl.layer_explorer({"a": []}),
    "got {'a': {'x': 3}, 'b': {'y': 3}}": lambda: fl.pca_explorer({"a": [X], "b": [Y]}),
    "got {'a': {'x': 3}, 'b': {'x': 4}}": lambda: fl.layer_explorer({"a": [X], "b": [X4]}),
    "got {'a': {'x': 3, 'y': 4}}": lambda: fl.pca_explorer({"a": [X, Y4]}),
    "layer: expected a whole number from 0 to 2; got 3": lambda: EXPLORERS["layer"](layer=3),
    "layer: expected a whole number from 0 to 2; got '1'": lambda: EXPLORERS["score"](layer="1"),
    "count: expected a whole number from 1 to 30; got 31": lambda: EXPLORERS["score"](count=31),
    "count: expected a whole number from 1 to 4; got 0": lambda: fl.score_explorer(
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
    "to_html: expected at most 400 pictures; 'Tokens of both prompts' has 401": lambda: (
        fl.pca_explorer({"a": [projection("x", 5, 401)]}).to_html("no")
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BAD[message]()
    assert not Path("no").exists()


def test_without_anywidget_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    widgets._view_class.cache_clear()
    for explorer in EXPLORERS.values():
        with pytest.raises(
            ImportError, match='explorers need anywidget: pip install "anywidget>=0.9"'
        ):
            explorer()
    for path in Path(fl.__file__).parent.rglob("*.py"):  # and importing fairlab needs none
        early = [
            node
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if not isinstance(node, ast.FunctionDef)
        ]
        for package in ("ipywidgets", "anywidget"):
            assert not any(f"import {package}" in ast.unparse(node) for node in early)
