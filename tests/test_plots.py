import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

import fairlab as fl


def table(scale=1.0, point="mlp_output"):
    rows = [("race", point, layer, scale * (layer + 1), 10.0) for layer in range(4)]
    frame = pd.DataFrame(rows, columns=["category", "point", "layer", "difference", "scale"])
    return frame.assign(relative=frame.difference / frame.scale)


@pytest.fixture(autouse=True)
def _no_figure_is_left():
    yield
    plt.close("all")


def test_layer_differences_on_one_axis():
    ax = fl.plot_layer_differences({"before": table(), "after": table(0.5)})
    assert [list(line.get_ydata()) for line in ax.lines] == [[1, 2, 3, 4], [0.5, 1, 1.5, 2]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "after"]
    assert len({line.get_marker() for line in ax.lines}) == 2  # to be told apart without colour too
    assert ax.get_ylim()[0] == 0
    relative = fl.plot_layer_differences(table(), value="relative")
    assert list(relative.lines[0].get_ydata()) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert relative.get_legend() is None


def test_layer_differences_draw_intervals_and_the_neutral_band():
    one = table().assign(difference_low=lambda t: t.difference - 0.5, difference_high=lambda t: t.difference + 0.5)
    assert len(fl.plot_layer_differences(one).collections) == 1
    one = one.assign(neutral_difference_low=0.1, neutral_difference_high=0.2)
    ax = fl.plot_layer_differences(one)
    assert len(ax.collections) == 2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["neutral pairs"]
    assert len(fl.plot_layer_differences(pd.concat([one, one.assign(category="age")])).collections) == 1


def comparison():
    rows = [
        {"method": m, "count": c, "measure": "gap", "category": "headline", "change": -0.01 * c, "low": -0.02 * c,
         "high": 0.01, "random_low": -0.1, "random_high": 0.05, "random_changes": "-0.10000 0.05000 0.01000",
         "neutral_change": 0.02}
        for m in ("article", "bias alone") for c in (1, 3, 15)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_comparison_draws_dots_intervals_and_the_random_cloud():
    ax = fl.plot_comparison(comparison())
    assert len(ax.collections) == 6
    assert ax.collections[0].get_offsets()[:, 0].tolist() == pytest.approx([-10, 5, 1])
    dots = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    assert [float(x[0]) for x in dots] == pytest.approx([-1, -3, -15] * 2)
    assert [text.get_text() for text in ax.get_yticklabels()][:2] == ["article · 1", "article · 3"]
    with pytest.raises(ValueError, match="measure, category: expected one of gap: headline; got 'gap' and 'hair'"):
        fl.plot_comparison(comparison(), category="hair")


def test_dose_response_has_a_line_a_method():
    ax = fl.plot_dose_response(comparison())
    assert len(ax.containers) == 2
    assert ax.containers[1].lines[0].get_ydata().tolist() == pytest.approx([-1, -3, -15])
    with pytest.raises(ValueError, match="table: expected the columns method and count"):
        fl.plot_dose_response(comparison().drop(columns="count"))


def test_figures_are_drawn_where_they_are_asked_to_be():
    _, ax = plt.subplots()
    assert fl.plot_layer_differences(table(), ax=ax) is ax
    assert fl.plot_score_plane(torch.rand(2, 5), torch.rand(2, 5), layer=0, ax=ax) is ax


def test_score_plane_marks_the_cut():
    bias, importance = torch.rand(2, 50), torch.rand(2, 50)
    selection = fl.NeuronSelection({1: (4, 7)}, (2, 50))
    ax = fl.plot_score_plane(bias, importance, selection, layer=1)
    everyone, cut = (collection.get_offsets() for collection in ax.collections)
    assert len(everyone) == 50
    assert torch.allclose(torch.tensor(cut).float(), torch.stack([importance[1, [4, 7]], bias[1, [4, 7]]], 1))
    assert [text.get_text() for text in ax.texts] == ["4", "7"]
    assert len(fl.plot_score_plane(bias, importance, selection, layer=0).collections) == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="value: expected one of difference, scale, relative; got 'depth'"):
        fl.plot_layer_differences(table(), value="depth")
    with pytest.raises(ValueError, match="tables: expected one capture point; got gate_proj, mlp_output"):
        fl.plot_layer_differences({"a": table(), "b": table(point="gate_proj")})
    with pytest.raises(ValueError, match=r"expected one shape; got \(2, 5\), \(2, 6\)"):
        fl.plot_score_plane(torch.rand(2, 5), torch.rand(2, 6), layer=0)
    with pytest.raises(ValueError, match="layer: expected a number from 0 to 1; got 2"):
        fl.plot_score_plane(torch.rand(2, 5), torch.rand(2, 5), layer=2)
    assert plt.get_fignums() == []
