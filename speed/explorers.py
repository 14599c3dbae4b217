"""Time a frame of each explorer against a new figure of the same picture, in turns, in one process.

    python speed/explorers.py

The arrays are those of the default model: the article's pair in 30 layers, 1,536 neurons a layer,
the cuts in `data/results/surgery.csv`. A frame is all work from the sliders' values to the PNG. The
new figure has the explorer's size and less in it (no bars at its side), so the ratio is a lower
bound. No function draws the surgery explorer's picture. Printed: the table of `speed/README.md`.
"""

import argparse
import io
import itertools
import statistics
import time
from collections.abc import Callable

import matplotlib.pyplot as plt
import pandas as pd

import fairlab as fl

SETTINGS = ["neurons_a_layer", "scope", "bias_weight", "scale"]
MEASURES = ["metric", "gap, own pair", "gap, new sentences", "perplexity"]


def timed(work: Callable[..., object], **values) -> float:
    """Return the milliseconds that the work takes."""
    start = time.perf_counter()
    work(**values)
    return 1000 * (time.perf_counter() - start)


def draw(plot: Callable[..., object], *data, **options) -> None:
    """Draw a figure of the explorer's size, write it as PNG and close it."""
    figure, ax = plt.subplots(figsize=(9, 4.2), dpi=90, layout="constrained")
    plot(*data, ax=ax, **options)
    figure.savefig(io.BytesIO(), format="png")
    plt.close(figure)


def tasks() -> list[tuple]:
    """Return of each explorer its name, itself, its states, and what draws the same picture
    anew."""
    model, tokenizer = fl.load_model()
    projection = fl.project_pair(model, tokenizer, fl.ARTICLE_PAIR, start=1)
    bias = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    importance = fl.importance_scores(model)
    selection = fl.select_neurons(fl.hybrid_scores(bias, importance), count=3)
    cuts = pd.read_csv(fl.data_path("results/surgery.csv"))

    pca = fl.pca_explorer({"article": [projection]})
    heatmap = fl.layer_explorer({"article": [projection]})
    scores = fl.score_explorer(bias, {"maw": importance})
    surgery = fl.surgery_explorer(cuts, settings=SETTINGS, measures=MEASURES)
    layers = [{"layer": layer} for layer in range(len(bias))]
    states = cuts[SETTINGS].to_dict("records")

    def new_pca(layer: int) -> None:
        draw(fl.plot_projection, projection, layer=layer)

    def new_heatmap(layer: int) -> None:
        draw(fl.plot_distances, projection)  # one picture for all layers

    def new_scores(layer: int) -> None:
        draw(fl.plot_score_plane, bias, importance, selection, layer=layer)

    return [
        ("`pca_explorer`", pca, layers, new_pca),
        ("`layer_explorer`", heatmap, layers, new_heatmap),
        ("`score_explorer`", scores, layers, new_scores),
        ("`surgery_explorer`", surgery, states, None),
    ]


def row(name: str, explorer: object, states: list[dict], new: Callable | None, rounds: int) -> str:
    """Measure one explorer and return its row of the table."""
    frames, figures = [], []
    for state in itertools.chain(states[:3], *[states] * rounds):
        frames.append(timed(explorer._frame, **(explorer._values() | state)))
        if new:
            figures.append(timed(new, **state))
    frames, figures = frames[3:], figures[3:]  # the first three warm up
    start = f"| {name} | {statistics.median(frames):.0f} ms |"
    if not new:
        return f"{start} – | – |"
    ratios = sorted(figure / frame for frame, figure in zip(frames, figures, strict=True))
    spread = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    return f"{start} {statistics.median(figures):.0f} ms | {spread} |"


def main() -> None:
    """Measure all four and print a row each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=5, help="rounds over all layers")
    rounds = parser.parse_args().n
    plt.switch_backend("agg")
    print("| explorer | a frame | a new figure | ratio (range) |\n|---|---|---|---|")
    for task in tasks():
        print(row(*task, rounds))


if __name__ == "__main__":
    main()
