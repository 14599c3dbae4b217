"""fairlab: find, measure and cut the neurons of a language model that react to a demographic word.

The rooms, in the order in which data flows through them: `models`, `pairs`, `statistics` → `capture` → `diagnosis`,
`projection`, `behavior` → `scores` → `surgery` → `evaluation` → `plots` → `widgets`. The names that lessons use are
here; nothing runs on import.
"""

from fairlab.behavior import generate, next_token_divergence, top_token_shifts
from fairlab.capture import CAPTURE_POINTS, neuron_differences, record
from fairlab.diagnosis import article_metric, layer_differences
from fairlab.evaluation import compare, perplexity, random_selections
from fairlab.models import DEFAULT_MODEL, decoder_layers, describe_model, load_model
from fairlab.pairs import ARTICLE_PAIR, PromptPair, build_pairs, check_pairs, data_path, load_pairs
from fairlab.plots import (
    plot_comparison,
    plot_distances,
    plot_dose_response,
    plot_layer_differences,
    plot_projection,
    plot_score_plane,
    plot_token_shifts,
)
from fairlab.projection import project_pair
from fairlab.scores import bias_scores, hybrid_scores, importance_scores
from fairlab.surgery import NeuronSelection, ablate, prune, removed_neurons, save_model, select_neurons
from fairlab.widgets import layer_explorer, pca_explorer, score_explorer, surgery_explorer

__version__ = "0.1.0"

__all__ = [
    "ARTICLE_PAIR",
    "CAPTURE_POINTS",
    "DEFAULT_MODEL",
    "NeuronSelection",
    "PromptPair",
    "ablate",
    "article_metric",
    "bias_scores",
    "build_pairs",
    "check_pairs",
    "compare",
    "data_path",
    "decoder_layers",
    "describe_model",
    "generate",
    "hybrid_scores",
    "importance_scores",
    "layer_differences",
    "layer_explorer",
    "load_model",
    "load_pairs",
    "neuron_differences",
    "next_token_divergence",
    "pca_explorer",
    "perplexity",
    "plot_comparison",
    "plot_distances",
    "plot_dose_response",
    "plot_layer_differences",
    "plot_projection",
    "plot_score_plane",
    "plot_token_shifts",
    "project_pair",
    "prune",
    "random_selections",
    "record",
    "removed_neurons",
    "save_model",
    "score_explorer",
    "select_neurons",
    "surgery_explorer",
    "top_token_shifts",
]
