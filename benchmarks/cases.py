"""The same work by fairlab and by a peer, case by case: what `run.py` times.

A case prepares both sides (model, prompts; not timed), and has a function a side (timed). Both
return a number that must agree, so that nobody is fast by doing less (but for attribution, which
nobody else computes).
"""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

import fairlab as fl
from fairlab.behavior import PRONOUNS

LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
ABLATED = 5  # neurons that are ablated one at a time; the time for all is extrapolated
ITEMS = 24  # of each benchmark
RANDOM = 20  # cuts beside the one that is judged
LOOPED = 3  # of all these cuts, which the plain loop measures; its time for all is extrapolated


@dataclass(frozen=True)
class Case:
    """One row of the table: what is done, by whom, and what fairlab aims at.

    Parameters
    ----------
    title : str
        What both sides do.
    peer : str
        Who does it beside fairlab.
    reach : float
        The ratio of times, peer / fairlab, that is aimed at.
    prepare : callable
        Returns what both sides are given.
    ours, theirs : callable
        Do the work and return a number that must agree.
    part : float
        The share of the peer's work that is done; its seconds are divided by it.
    """

    title: str
    peer: str
    reach: float
    prepare: Callable[[], tuple]
    ours: Callable[..., float]
    theirs: Callable[..., float]
    part: float = 1.0


def llama_1b() -> torch.nn.Module:
    """Build the shape of Llama-3.2-1B with cheap random weights: about 5 GB in float32."""
    return random_llama(LLAMA_1B)


def random_llama(shape: dict) -> torch.nn.Module:
    """Build a Llama of a shape with cheap random weights, the same in each process."""
    import transformers

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    model = model.to_empty(device="cpu")
    # the frequencies are no parameters: they are computed anew
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    model.tie_weights()
    return model.eval()


def import_fairlab() -> None:
    """Open all rooms of fairlab: imports are not timed."""
    for name in fl.__all__:
        getattr(fl, name)


def import_optipfair() -> None:
    """Import what both sides of its cases use."""
    import optipfair.bias
    import optipfair.pruning.mlp_glu  # noqa: F401

    import_fairlab()


def default_model() -> tuple:
    """Return the default model, its tokenizer and all training pairs."""
    import_optipfair()
    return (*fl.load_model(), fl.load_pairs(split="train", words="any"))


def llama_shape(n_pairs: int) -> tuple:
    """Return a model of Llama's shape, the default tokenizer, and so many pairs."""
    import_optipfair()
    pairs = fl.load_pairs(split="train", words="any")[:n_pairs]
    return llama_1b(), fl.load_tokenizer(), pairs if n_pairs > 1 else [fl.ARTICLE_PAIR]


# ---- scores and cuts, beside optipfair


def our_scores(model, tokenizer, pairs) -> float:
    return fl.bias_scores(model, tokenizer, pairs, method="optipfair").mean().item()


def optipfair_scores(model, tokenizer, pairs) -> dict:
    from optipfair.bias import analyze_neuron_bias

    texts = [(pair.prompt_a, pair.prompt_b) for pair in pairs]
    return analyze_neuron_bias(model, tokenizer, texts, show_progress=False)


def their_scores(model, tokenizer, pairs) -> float:
    scores = optipfair_scores(model, tokenizer, pairs)
    return torch.stack([torch.as_tensor(row) for row in scores.values()]).mean().item()


def our_cut(model, tokenizer, pairs) -> float:
    scores = fl.bias_scores(model, tokenizer, pairs, method="optipfair")
    hybrid = fl.hybrid_scores(scores, fl.importance_scores(model), bias_weight=0.8)
    fl.prune(model, fl.select_neurons(hybrid, fraction=0.002), inplace=True)
    return model.config.intermediate_size


def their_cut(model, tokenizer, pairs) -> float:
    from optipfair.bias import compute_fairness_pruning_scores
    from optipfair.pruning.mlp_glu import prune_model_mlp_glu

    scores = optipfair_scores(model, tokenizer, pairs)
    fair = compute_fairness_pruning_scores(model, scores, bias_weight=0.8)
    prune_model_mlp_glu(model, pruning_percentage=0.2, fairness_scores=fair, show_progress=False)
    return model.config.intermediate_size


# ---- benchmarks, beside the harness as it is


def suite(task: str, file: str) -> tuple:
    """Return the default model and the first items of a file of data/suites."""
    import datasets  # noqa: F401
    import lm_eval.evaluator
    import lm_eval.models.huggingface
    import lm_eval.tasks.bbq.utils  # noqa: F401

    import_fairlab()
    lines = fl.data_path(f"suites/{file}").read_text(encoding="utf-8").splitlines()
    return (*fl.load_model(), task, [json.loads(line) for line in lines[:ITEMS]])


def our_suite(model, tokenizer, task, rows) -> float:
    result = fl.run_lm_eval(model, tokenizer, task, data={task: rows}, batch_size=8)
    return _mean_of(result.items)


def their_suite(model, tokenizer, task, rows) -> float:
    from lm_eval.models.huggingface import HFLM

    from fairlab.suites.harness import evaluate, items_of, quiet_harness
    from fairlab.suites.likelihoods import start_token

    # the same token before a text without context: by itself the harness takes BOS
    start = start_token(tokenizer)
    with quiet_harness():
        lm = HFLM(pretrained=model, tokenizer=tokenizer, prefix_token_id=start, batch_size=8)
        measured = evaluate(lm, task, rows)
    return _mean_of(items_of(task, measured, rows, range(len(rows)), tokenizer))


def _mean_of(items: list[dict]) -> float:
    """Return the mean over items of all finite numbers that were measured."""
    values = []
    for item in items:
        for name, value in item.items():
            if name not in ("item", "cluster") and isinstance(value, int | float):
                values.append(value)
    return sum(filter(math.isfinite, values)) / len(items)


# ---- causal scores and comparisons, beside what one would write by hand


def attribution() -> tuple:
    """Return the default model and its pairs."""
    import_fairlab()
    return (*fl.load_model(), fl.load_pairs("race", split="validation"))


def our_attribution(model, tokenizer, pairs) -> float:
    fl.bias_scores(model, tokenizer, pairs, method="attribution")
    return 0.0


def one_ablation_at_a_time(model, tokenizer, pairs) -> float:
    layers, neurons = len(fl.decoder_layers(model)), model.config.intermediate_size
    for neuron in range(ABLATED):
        selection = fl.NeuronSelection({0: (neuron,)}, (layers, neurons))
        with fl.ablate(model, selection):
            fl.next_token_divergence(model, tokenizer, pairs)
    return 0.0  # a slope and a removal are not the same number


def comparison() -> tuple:
    """Return the default model, the article's cut, and what judges it in a report."""
    from fairlab.cli.pairs import start_of

    import_fairlab()
    model, tokenizer = fl.load_model()
    held_out = fl.HeldOut(
        fl.load_pairs(split="held_out"),
        fl.load_pairs(kind="neutral", split="held_out"),
        start_of(fl.load_text("evaluation"), tokenizer, 2048),
    )
    return model, tokenizer, fl.article_cut(model, tokenizer, [fl.ARTICLE_PAIR]), held_out


def our_comparison(model, tokenizer, cut, held_out) -> float:
    measured = fl.compare(model, tokenizer, {"cut": cut}, held_out, n_random=RANDOM)
    return measured.table.query("row == 'neutral' and measure == 'gap'").after.item()


def a_plain_loop(model, tokenizer, cut, held_out) -> float:
    """Measure what the table of `compare` holds, with one public function after the other."""
    pairs = held_out.everything
    with_outcomes = [pair for pair in pairs if pair.template in held_out.outcomes]
    neutral = []
    for selection in [cut, *fl.random_selections(cut, LOOPED - 1, seed=0)]:
        with fl.ablate(model, selection):
            fl.next_token_divergence(model, tokenizer, held_out.pairs)
            fl.next_token_divergence(model, tokenizer, held_out.pairs, leave_out=PRONOUNS)
            neutral.append(fl.next_token_divergence(model, tokenizer, held_out.neutral).mean())
            fl.decision_gap(model, tokenizer, with_outcomes, outcomes=held_out.outcomes)
            for pair in pairs:
                fl.article_metric(model, tokenizer, pair)
            fl.perplexity(model, tokenizer, held_out.text)
    return neutral[0].item()


CASES = {
    "scores": Case(
        "per-neuron differences of all train pairs, default model",
        "optipfair `analyze_neuron_bias`",
        6,
        default_model,
        our_scores,
        their_scores,
    ),
    "scores-llama": Case(
        "the same of 32 pairs, Llama-3.2-1B's shape",
        "optipfair `analyze_neuron_bias`",
        5,
        functools.partial(llama_shape, 32),
        our_scores,
        their_scores,
    ),
    "cut-llama": Case(
        "differences, scores and cut of one pair, Llama-3.2-1B's shape",
        "optipfair's three calls",
        6,
        functools.partial(llama_shape, 1),
        our_cut,
        their_cut,
    ),
    "attribution": Case(
        "attribution of all neurons, 12 pairs, default model",
        "one ablation at a time, extrapolated",
        500,
        attribution,
        our_attribution,
        one_ablation_at_a_time,
        part=ABLATED / (30 * 1536),
    ),
    "compare": Case(
        "a cut beside 20 random cuts on 61 + 28 pairs and a text, default model",
        "a plain loop over the public functions",
        3,
        comparison,
        our_comparison,
        a_plain_loop,
        part=LOOPED / (1 + RANDOM),
    ),
}
for _task, _file, _reach in (
    ("bbq", "mini_bbq.jsonl", 8),
    ("lambada_openai", "mini_lambada.jsonl", 2),
    ("boolq", "mini_boolq.jsonl", 2),
    ("crows_pairs_english", "mini_crows.jsonl", 2),
):
    CASES[_task] = Case(
        f"items of `{_task}`",
        "lm-evaluation-harness as it is",
        _reach,
        functools.partial(suite, _task, _file),
        our_suite,
        their_suite,
    )
