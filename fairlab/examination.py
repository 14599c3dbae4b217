"""One pair of prompts seen from all sides, a step at a time: what the page without code shows.

Contents: `examine`, which yields a `Step` after the other.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.behavior import generate, next_token_divergence
from fairlab.capture import CAPTURE_POINTS, pair_differences
from fairlab.choices import MOST_NEURONS, SCORES, STEPS, Choices
from fairlab.diagnosis import article_metric, layer_differences, project_pair
from fairlab.evaluation.compare import Comparison, compare
from fairlab.evaluation.readings import HeldOut
from fairlab.files import load_text
from fairlab.gates import table_shape
from fairlab.gating import NeuronGates
from fairlab.neutral import build_neutral_pairs
from fairlab.pairs import PromptPair, check_pairs, encode_pair, load_pairs, prompt_ids
from fairlab.passes import check_option, check_scale, check_whole
from fairlab.plots.cuts import plot_comparison
from fairlab.plots.layers import plot_layer_differences
from fairlab.plots.neurons import plot_score_plane
from fairlab.plots.projections import plot_distances, plot_projection
from fairlab.report.advice import decision
from fairlab.report.verdict import verdict
from fairlab.scores import bias_scores, hybrid_scores, importance_scores
from fairlab.surgery import NeuronSelection, ablate, select_neurons

# so few that all four steps take less than half a minute on two cores
JUDGED = 8  # pairs, in as many sentences
JUDGED_TEXT = 700  # characters of plain prose on which the price is read
STORY = 20  # new tokens of each text


@dataclass(frozen=True)
class Picture:
    """A figure, what it is called, and what it shows in words."""

    title: str
    text: str
    figure: Figure


@dataclass(frozen=True)
class Step:
    """A part of the examination: sentences, pictures, and texts with a label each."""

    title: str
    sentences: Sequence[str]
    pictures: Sequence[Picture] = field(default_factory=tuple)
    texts: Sequence[tuple[str, str]] = field(default_factory=tuple)


def examine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    choices: Choices | None = None,
    *,
    judged: HeldOut | None = None,
) -> Iterator[Step]:
    """Look at one pair from all sides: pictures, then texts, then a verdict.

    Each step is yielded as soon as it is there, the quick ones first. The pair chooses the neurons;
    other pairs judge them.

    Parameters
    ----------
    pair : PromptPair
        A valid pair (`check_pairs`); `read_prompts` makes one of two prompts.
    choices : Choices, optional
        What to look at, and what to cut; `Choices()` by default.
    judged : HeldOut, optional
        What the cut is judged on: pairs in other sentences than `pair`, as the last step says of
        them. By default eight pairs of four categories, the pair's own among them if it is one of
        the course's. Each pair stands in another one of the course's sentences for training and
        validation, with a neutral pair beside it; the text is the start of
        `load_text("evaluation")`.

    Yields
    ------
    Step
        "Where the prompts part", "Which neurons are cut", "What the model writes", "Did it help?"
        (`STEPS`).

    Raises
    ------
    ValueError
        Before the first step: a pair that is not valid, or a choice out of range.
    """
    choices = choices or Choices()
    encode_pair(tokenizer, pair)
    _check_choices(model, choices)
    # what is wrong is said at the call, and not when the first step is asked for
    return _steps(model, tokenizer, pair, choices, judged or _other_pairs(tokenizer, pair))


def _check_choices(model: PreTrainedModel, choices: Choices) -> None:
    layers, neurons = table_shape(model)
    check_option("point", choices.point, CAPTURE_POINTS)
    check_option("score", choices.score, SCORES)
    check_whole("layer", choices.layer, 0, layers - 1)
    check_whole("count", choices.count, 1, min(MOST_NEURONS, neurons - 1))
    check_whole("n_random", choices.n_random, 1, 100)
    check_scale(choices.scale)


def _steps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    choices: Choices,
    judged: HeldOut,
) -> Iterator[Step]:
    yield _where_they_part(model, tokenizer, pair, choices)
    bias, importance, selection = _chosen_neurons(model, tokenizer, pair, choices)
    yield _which_neurons(bias, importance, selection, choices)
    yield _what_it_writes(model, tokenizer, pair, selection, choices)
    yield _did_it_help(model, tokenizer, selection, choices, judged)


def _other_pairs(tokenizer: PreTrainedTokenizerBase, pair: PromptPair) -> HeldOut:
    """Return pairs in other sentences, a neutral one beside each, and the start of a text.

    The shortest sentences come first, since they are read soonest. Four categories in turn (the
    pair's own first, if it is one of these), so that each has two sentences and an interval.
    These sentences choose neurons elsewhere in the course; here one pair does, and they judge.
    """
    sentences: dict[str, dict[str, PromptPair]] = {}  # template → category → the first such pair
    neutral, own = {}, {pair.template}
    for split in ("train", "validation"):
        for other in _valid(tokenizer, load_pairs(split=split, words="any")):
            sentences.setdefault(other.template, {}).setdefault(other.category, other)
            # "The woman waited" is the sentence "The {} applicant waited", though it lacks the noun
            if {other.prompt_a, other.prompt_b} & {pair.prompt_a, pair.prompt_b}:
                own.add(other.template)
        for other in _valid(tokenizer, load_pairs(kind="neutral", split=split, words="any")):
            neutral.setdefault(other.template, other)
    for template in own:
        sentences.pop(template, None)
    sentences = dict(sorted(sentences.items(), key=lambda item: _tokens(tokenizer, item[1])))
    everywhere = [category for members in sentences.values() for category in members]
    categories = sorted(set(everywhere), key=lambda name: (name != pair.category, name))
    turns = itertools.cycle(categories[: JUDGED // 2])
    chosen, beside = [], []
    for (template, members), category in zip(sentences.items(), turns, strict=False):
        if category in members and len(chosen) < JUDGED:
            chosen.append(members[category])
            beside.append(neutral[template])
    # no outcomes: so few pairs could show no difference between decisions
    return HeldOut(chosen, beside, load_text("evaluation")[:JUDGED_TEXT], outcomes={})


def _tokens(tokenizer: PreTrainedTokenizerBase, members: dict[str, PromptPair]) -> int:
    """Return how many tokens the longest prompt in a sentence has."""
    return max(len(prompt_ids(tokenizer, pair.prompt_a)) for pair in members.values())


def _valid(tokenizer: PreTrainedTokenizerBase, pairs: list[PromptPair]) -> list[PromptPair]:
    """Return the pairs that are valid for the tokenizer."""
    return [
        pair
        for pair, valid in zip(pairs, check_pairs(tokenizer, pairs).valid, strict=True)
        if valid
    ]


def _where_they_part(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    choices: Choices,
) -> Step:
    """Show the tokens in a plane, the distance at each token and layer, and the curve by layer."""
    point, layer = choices.point, choices.layer
    # the first token is often so large that the plane shows nothing else
    first = encode_pair(tokenizer, pair)[2]
    projection = project_pair(model, tokenizer, pair, point=point, start=min(1, first))
    neutral = _neutral_in_this_sentence(tokenizer, pair)
    table = _differences(model, tokenizer, pair, neutral, point)
    metric = article_metric(model, tokenizer, pair)
    gap = next_token_divergence(model, tokenizer, [pair]).item()
    sentences = [
        f"{pair.attribute_a} / {pair.attribute_b}: the predictions for the next word lie "
        f"{gap:.4f} nats apart (0: the same; 0.69: nothing in common). The article's metric is "
        f"{metric:.4f}.",
        _beside_neutral_words(table, len(neutral), choices),
    ]
    share = projection.explained[layer].sum()
    moved = projection.distances[layer].argmax()
    token = projection.tokens_a[moved].strip()
    first_out = " The first token is left out." if first else ""
    pictures = [
        Picture(
            "Tokens of both prompts",
            f"The tokens in the two main axes of layer {layer}, which show {share:.0%} of their "
            f"variance. In all dimensions together {token!r} moves most.{first_out}",
            _new_figure(plot_projection, projection, layer=layer),
        ),
        Picture(
            "Distance by token and layer",
            "How far apart the two prompts are at each of these tokens and layers, divided by the "
            "length of the activation.",
            _new_figure(plot_distances, projection, relative=True),
        ),
        Picture(
            "Difference by layer",
            f"The mean difference at {point}, layer by layer"
            + (", with the range of neutral words in grey." if neutral else "."),
            _new_figure(plot_layer_differences, table),
        ),
    ]
    return Step(STEPS[0], sentences, pictures)


def _differences(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    neutral: list[PromptPair],
    point: str,
) -> pd.DataFrame:
    """Return the mean difference in each layer, with the range of the neutral pairs if any."""
    table = layer_differences(model, tokenizer, [pair], points=[point])
    if neutral:
        # of a single sentence there is no interval; the band is the range of its neutral pairs
        others = pair_differences(model, tokenizer, neutral, points=[point])[0][:, 0]
        table["neutral_difference_low"] = others.min(0).values.numpy()  # (layers,)
        table["neutral_difference_high"] = others.max(0).values.numpy()
    return table


def _beside_neutral_words(table: pd.DataFrame, count: int, choices: Choices) -> str:
    """Say whether the difference lies in the range of `count` neutral pairs, in one layer."""
    if not count:
        return "No neutral words fit into this sentence, so the curve has no grey band."
    here = table[table.layer == choices.layer].iloc[0]
    low, high = here.neutral_difference_low, here.neutral_difference_high
    place = "above" if here.difference > high else "below" if here.difference < low else "in"
    return (
        f"In layer {choices.layer} the difference at {choices.point} is {here.difference:.3g}, "
        f"{place} the range of {count} pairs of neutral words in this sentence ({low:.3g} to "
        f"{high:.3g})."
    )


def _neutral_in_this_sentence(
    tokenizer: PreTrainedTokenizerBase, pair: PromptPair
) -> list[PromptPair]:
    """Return the neutral pairs that fit into the sentence of the pair, perhaps none."""
    try:
        return _valid(tokenizer, build_neutral_pairs(tokenizer, [pair]))
    except ValueError:
        return []


def _chosen_neurons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    choices: Choices,
) -> tuple[Tensor, Tensor, NeuronSelection]:
    """Score the neurons and choose; return both scores, shape (layers, neurons), and the choice."""
    bias = bias_scores(model, tokenizer, [pair], method=choices.score)
    importance = importance_scores(model)
    # a cause needs no mix: what matters little would not widen the gap either
    scores = bias if choices.score == "attribution" else hybrid_scores(bias, importance)
    how = f"{choices.score}, one pair"
    return bias, importance, select_neurons(scores, count=choices.count, how=how)


def _which_neurons(
    bias: Tensor, importance: Tensor, selection: NeuronSelection, choices: Choices
) -> Step:
    """Show the plane of scores of one layer."""
    layer = choices.layer
    numbers = ", ".join(map(str, selection.neurons[layer]))
    done = "removed" if choices.scale == 0 else f"multiplied by {choices.scale:g}"
    layers, neurons = bias.shape
    sentences = [
        f"{len(selection)} of {layers * neurons:,} neurons are {done}, {choices.count} in each "
        f"layer; in layer {layer} these are {numbers}."
    ]
    figure = _new_figure(plot_score_plane, bias, importance, selection, layer=layer)
    text = f"The neurons of layer {layer}: importance across, {choices.score} score up."
    return Step(STEPS[1], sentences, [Picture("Score plane", text, figure)])


def _what_it_writes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    selection: NeuronSelection,
    choices: Choices,
) -> Step:
    """Write on after both prompts, with and without the cut."""
    prompts = [pair.prompt_a, pair.prompt_b]
    before = generate(model, tokenizer, prompts, max_new_tokens=STORY)
    with ablate(model, selection, scale=choices.scale):
        after = generate(model, tokenizer, prompts, max_new_tokens=STORY)
    texts, changed = [], []
    names = (pair.attribute_a, pair.attribute_b)
    for name, prompt, old, new in zip(names, prompts, before, after, strict=True):
        texts.append((f"{name}, before the cut", prompt + old))
        texts.append((f"{name}, after the cut", prompt + new))
        if old != new:
            changed.append(name)
    said = {0: "neither prompt", 1: f"the prompt with {' '.join(changed)}", 2: "both prompts"}
    sentences = [
        f"With the cut the model writes something else after {said[len(changed)]}. "
        "One text is an anecdote: another sentence may bring another story."
    ]
    return Step(STEPS[2], sentences, texts=texts)


def _did_it_help(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    selection: NeuronSelection,
    choices: Choices,
    judged: HeldOut,
) -> Step:
    """Compare the cut with random ones on pairs that did not choose it."""
    change: NeuronSelection | NeuronGates = selection
    if choices.scale != 0:
        rows = selection.neurons.items()
        gates = {layer: {n: (choices.scale, 0.0) for n in row} for layer, row in rows}
        change = NeuronGates(gates, selection.shape, selection.how)
    comparison: Comparison = compare(
        model,
        tokenizer,
        {"this cut": change},
        judged,
        n_random=choices.n_random,
        metric=False,
        batch_size=16,  # half the memory of the default
    )
    kind = "cut" if choices.scale == 0 else "gates"
    table = comparison.table
    sentences = [decision(table, kind), *verdict(table, kind)]
    topics = ", ".join(dict.fromkeys(other.category for other in judged.pairs))
    sentences.append(
        f"Judged on {len(judged.pairs)} pairs about {topics}, and it is their groups of which this "
        "speaks. They stand in other sentences than the pair that chose the neurons, which is not "
        f"among them (its words may be). Beside them: {choices.n_random} random changes and "
        f"{len(judged.neutral)} neutral pairs. So few can't show a small change: `fairlab report` "
        "reads more, and pairs of your own."
    )
    gap = _new_figure(plot_comparison, table, draws=comparison.draws)
    price = _new_figure(plot_comparison, table, draws=comparison.draws, measure="perplexity")
    pictures = [
        Picture("Change of the gap", "The cut, random changes in grey, neutral words open.", gap),
        Picture(
            "Price", "The change of the perplexity of plain prose, beside random changes.", price
        ),
    ]
    return Step(STEPS[3], sentences, pictures)


def _new_figure(plot: object, *arguments: object, **options: object) -> Figure:
    """Draw into a figure of its own that no notebook shows by itself."""
    axes = plot(*arguments, **options)
    plt.close(axes.figure)
    return axes.figure
