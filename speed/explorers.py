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


def anew(plot: Callable[..., object], *data, **options) -> None:
    """Draw a figure of the explorer's size, write it as PNG and close it."""
    figure, ax = plt.subplots(figsize=(9, 4.2), dpi=90, layout="constrained")
    plot(*data, ax=ax, **options)
    figure.savefig(io.BytesIO(), format="png")
    plt.close(figure)


def main() -> None:
    """Measure all four and print a row each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", type=int, default=5, help="rounds over all layers")
    rounds = parser.parse_args().n
    plt.switch_backend("agg")
    model, tokenizer = fl.load_model()
    projection = fl.project_pair(model, tokenizer, fl.ARTICLE_PAIR, start=1)
    bias = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    importance = fl.importance_scores(model)
    selection = fl.select_neurons(fl.hybrid_scores(bias, importance), count=3)
    cuts = pd.read_csv(fl.data_path("results/surgery.csv"))
    pca, heatmap = (
        explorer({"article": [projection]}) for explorer in (fl.pca_explorer, fl.layer_explorer)
    )
    scores = fl.score_explorer(bias, {"maw": importance})
    surgery = fl.surgery_explorer(cuts, settings=SETTINGS, measures=MEASURES)
    layers, cut = (
        [{"layer": layer} for layer in range(len(bias))],
        cuts[SETTINGS].to_dict("records"),
    )
    tasks = {
        "`pca_explorer`": (pca, layers, lambda layer: anew(fl.plot_projection, projection, layer=layer)),
        "`layer_explorer`": (heatmap, layers, lambda layer: anew(fl.plot_distances, projection)),
        "`score_explorer`": (
            scores, layers, lambda layer: anew(fl.plot_score_plane, bias, importance, selection, layer=layer)
        ),
        "`surgery_explorer`": (surgery, cut, None),
    }  # fmt: skip
    print("| explorer | a frame | a new figure | ratio (range) |\n|---|---|---|---|")
    for name, (explorer, states, new) in tasks.items():
        runs = []
        for state in itertools.chain(states[:3], *[states] * rounds):  # the first three warm up
            frame = timed(explorer._frame, **(explorer._values() | state))
            runs.append((frame, timed(new, **state) if new else float("nan")))
        ours, theirs = zip(*runs[3:], strict=True)
        row = f"| {name} | {statistics.median(ours):.0f} ms |"
        ratios = sorted(there / here for here, there in runs[3:])
        spread = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
        print(row, f"{statistics.median(theirs):.0f} ms | {spread} |" if new else "– | – |")


if __name__ == "__main__":
    main()
