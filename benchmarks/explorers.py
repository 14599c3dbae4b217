"""Time a frame of each explorer against a new figure of the same picture, in turns, in one process.

    python benchmarks/explorers.py

The arrays are those of the default model: the article's pair in 30 layers, 1,536 neurons a layer,
the cuts in `data/results/surgery.csv`. A frame is all work from the sliders' values to the PNG. The
new figure has the explorer's size and less in it (no bars at its side), so the ratio is a lower
bound. No function draws the surgery explorer's picture. Printed: the table of
`benchmarks/README.md`.
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
from fairlab.widgets import Explorer

SETTINGS = ["neurons_a_layer", "scope", "bias_weight", "scale"]
WARM_UP = 3  # frames that are drawn and not counted
MEASURES = ["metric", "gap, own pair", "gap, new sentences", "perplexity"]


def timed(work: Callable[..., object], **values) -> float:
    """Return the milliseconds that the work takes."""
    start = time.perf_counter()
    work(**values)
    return 1000 * (time.perf_counter() - start)


def anew(plot: Callable[..., object], *data, **options) -> None:
    """Draw a figure of the explorer's size, write it as PNG and close it."""
    figure, ax = plt.subplots(figsize=(9, 4.2), dpi=90, layout="constrained")
    plot(*data, ax=ax, **options)
    figure.savefig(io.BytesIO(), format="png")
    plt.close(figure)


def tasks() -> dict[str, tuple]:
    """Return for each explorer its states and, where there is one, a function that draws a new
    figure of a state."""
    model, tokenizer = fl.load_model()
    projection = fl.project_pair(model, tokenizer, fl.ARTICLE_PAIR, start=1)
    bias = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    importance = fl.importance_scores(model)
    selection = fl.select_neurons(fl.hybrid_scores(bias, importance), count=3)
    cuts = pd.read_csv(fl.data_path("results/surgery.csv"))
    layers = [{"layer": layer} for layer in range(len(bias))]

    def projected(layer: int) -> None:
        anew(fl.plot_projection, projection, layer=layer)

    def distances(layer: int) -> None:
        anew(fl.plot_distances, projection)

    def score_plane(layer: int) -> None:
        anew(fl.plot_score_plane, bias, importance, selection, layer=layer)

    projections = {"article": [projection]}
    surgery = fl.surgery_explorer(cuts, settings=SETTINGS, measures=MEASURES)
    return {
        "pca_explorer": (fl.pca_explorer(projections), layers, projected),
        "layer_explorer": (fl.layer_explorer(projections), layers, distances),
        "score_explorer": (fl.score_explorer(bias, {"maw": importance}), layers, score_plane),
        "surgery_explorer": (surgery, cuts[SETTINGS].to_dict("records"), None),
    }


def time_explorer(
    explorer: Explorer, states: list[dict], new: Callable | None, rounds: int
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each frame, and of each new figure, in turns."""
    frames, figures = [], []
    for state in itertools.chain(states[:WARM_UP], *[states] * rounds):
        frames.append(timed(explorer.frame, **{**explorer.values(), **state}))
        if new:
            figures.append(timed(new, **state))
    return frames[WARM_UP:], figures[WARM_UP:]


def main() -> None:
    """Measure all four and print a row each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=5, help="rounds over all layers")
    rounds = parser.parse_args().n
    plt.switch_backend("agg")
    print("| explorer | a frame | a new figure | ratio (range) |\n|---|---|---|---|")
    for name, (explorer, states, new) in tasks().items():
        frames, figures = time_explorer(explorer, states, new, rounds)
        row = f"| `{name}` | {statistics.median(frames):.0f} ms |"
        if not new:
            print(row, "– | – |")
            continue
        ratios = [figure / frame for frame, figure in zip(frames, figures, strict=True)]
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        figure, ratio = statistics.median(figures), statistics.median(ratios)
        print(row, f"{figure:.0f} ms | {ratio:.1f} ({spread}) |")


if __name__ == "__main__":
    main()
