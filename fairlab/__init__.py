"""fairlab: find, measure and cut the neurons of a language model that react to a demographic word.

The rooms, in the order in which data flows through them: `files`, `statistics`, `precision`,
`processes` → `weights`, `pairs` → `checking` → `neutral`, `models` → `passes` → `decisions` →
`capture`, `gates` → `diagnosis`, `behavior` → `continuations`, `scores` → `surgery` → `gating` →
`recipes`, `learning`, `planting`, `evaluation` → `suites` → `plots` → `predictions` → `widgets`,
`report` → `choices` → `examination` → `page` → `cli`. The names that lessons use are here; nothing
runs on import, and a room is opened when the first of its names is used.

What the same name means everywhere: `model`, `tokenizer`, as `load_model` returns them; `pair`, a
`PromptPair`, and `pairs`, a list of them; `selection`, a `NeuronSelection`; `layer`, a number from
0; `batch_size`, the prompts in a forward pass, which bounds the memory; `ax`, the matplotlib Axes
to draw on, a new one by default.
"""

from importlib import import_module

from fairlab._version import __version__ as __version__

_ROOMS = {
    "behavior": ("generate", "next_token_divergence", "top_token_shifts"),
    "capture": ("CAPTURE_POINTS", "neuron_differences", "record"),
    "checking": ("check_file", "read_pairs"),
    "continuations": (
        "continuation_gaps",
        "load_lexicon",
        "sample_continuations",
        "summarize_continuations",
    ),
    "decisions": ("decision_gap", "summarize_decisions"),
    "diagnosis": ("article_metric", "layer_differences", "project_pair"),
    "evaluation.chance": ("random_selections",),
    "evaluation.compare": ("Comparison", "compare"),
    "evaluation.readings": ("HeldOut",),
    "files": ("data_path", "load_text"),
    "gates": ("gate",),
    "gating": ("NeuronGates", "balanced_gates", "fold_gates", "gated"),
    "learning": ("learned_gates",),
    "models": ("decoder_layers", "describe_model", "load_model", "load_tokenizer"),
    "neutral": ("build_neutral_pairs",),
    "page": ("show_page",),
    "pairs": (
        "ARTICLE_PAIR",
        "Outcomes",
        "PromptPair",
        "build_pairs",
        "chat_pairs",
        "check_pairs",
        "load_outcomes",
        "load_pairs",
    ),
    "passes": ("perplexity",),
    "planting": ("plant_neurons", "score_planted"),
    "plots.cuts": ("plot_comparison", "plot_dose_response", "plot_tradeoff"),
    "plots.layers": ("plot_layer_differences", "plot_token_shifts"),
    "plots.neurons": ("plot_overlap", "plot_score_plane", "plot_transfer"),
    "plots.projections": ("plot_distances", "plot_projection"),
    "predictions": ("predict",),
    "recipes": ("article_cut", "guarded_cut"),
    "report.card": ("model_card",),
    "report.page": ("write_report",),
    "report.upload": ("push_to_hub",),
    "scores": ("bias_scores", "guarded_scores", "hybrid_scores", "importance_scores"),
    "suites.harness": ("run_lm_eval",),
    "suites.summaries": ("paired_changes", "summarize_items"),
    "surgery": (
        "NeuronSelection",
        "ablate",
        "prune",
        "refine_scores",
        "removed_neurons",
        "save_model",
        "select_neurons",
    ),
    "weights": ("DEFAULT_MODEL",),
    "widgets": ("layer_explorer", "pca_explorer", "score_explorer", "surgery_explorer"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_ROOM_OF)


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
