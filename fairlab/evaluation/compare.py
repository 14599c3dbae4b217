"""Cuts beside their controls: the table, its random draws and the readings behind it.

Contents: `compare`, `Comparison`; `count_readings`, for what it will have to read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.evaluation.chance import random_gates, random_selections
from fairlab.evaluation.flattening import flattened_gaps, losses_at_scales
from fairlab.evaluation.readings import (
    Change,
    HeldOut,
    KeptReadings,
    Reading,
    bits_of,
    cache_key,
    name_of,
    read_cut,
)
from fairlab.evaluation.rows import Case, case_tables
from fairlab.files import checked_cache, load_text
from fairlab.gates import table_shape
from fairlab.gating import NeuronGates, mean_activations
from fairlab.pairs import check_pairs, encode_pair
from fairlab.passes import check_batch_size, check_ready, check_whole, count_scored, progress
from fairlab.processes import gathered, share
from fairlab.surgery import NeuronSelection, matching_blocks

MEASURES = {  # name in the readings → field of `Reading`
    "gap": "gap",
    "gap without pronouns": "gap_without_pronouns",
    "metric": "metric",
    "decision": "decision",
}


@dataclass(frozen=True)
class Comparison:
    """What `compare` measured: the table, what it is made of, and what it was measured with.

    Parameters
    ----------
    table : DataFrame
        One row a selection, measure, `row` and category; see `compare`.
    draws : DataFrame
        The change under every random cut, one row each: `selection`, `measure`, `row` and
        `category` as in the table; `kind` ("random", or the name of a matched table), `draw` (a
        number from 0) and `change`.
    readings : DataFrame
        What was read of each pair: `selection`, `measure`, `kind` ("demographic" or "neutral"),
        `category`, `template`, the two attributes, `more_tokens` (how many the first prompt has
        more than the second; 0: as many), `before` and `after`.
    selections : dict of str to NeuronSelection, NeuronGates or PreTrainedModel
        The cuts, gates and changed models, by name.
    held_out : HeldOut
        What they were judged on.
    weights_sha256 : str
        Of the uncut model.
    dtype : str
        The precision of the numbers, such as "float32".
    seed : int
        Of the random cuts.
    seconds : float
        What measuring took, whenever it was done.
    continuations : DataFrame, optional
        What sampled texts come to, from `summarize_continuations`, for the report. `compare` leaves
        it None: put it there with `dataclasses.replace(comparison, continuations=…)`.
    """

    table: pd.DataFrame
    draws: pd.DataFrame
    readings: pd.DataFrame
    selections: Mapping[str, Change]
    held_out: HeldOut
    weights_sha256: str
    dtype: str
    seed: int
    seconds: float
    continuations: pd.DataFrame | None = None


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    selections: Mapping[str, Change],
    held_out: HeldOut,
    *,
    n_random: int = 20,
    seed: int = 0,
    metric: bool = True,
    match: Mapping[str, Tensor] | None = None,
    imitated: Mapping[str, NeuronSelection | NeuronGates] | None = None,
    cache: str | Path | None = None,
    batch_size: int = 32,
) -> Comparison:
    """Measure what cuts, gates and other changes of a model do, each beside its controls.

    The controls are random ones of the same kind and size, neutral prompts, and a mere flattening
    of all predictions at the same price. Cuts are tried by `ablate` and gates by `gated`, so the
    model stays as it is.

    Parameters
    ----------
    selections : dict of str to NeuronSelection, NeuronGates or PreTrainedModel
        The cuts and gates, by name; or models that were made from this one (pruned, fine-tuned,
        with gates folded in), of the same vocabulary and precision. Of a pruned model the article's
        metric is a mean over the dimensions that are left.
    held_out : HeldOut
        Pairs, neutral pairs and a text that did not choose the neurons.
    n_random : int
        Random cuts with the same count in each layer, shared by all selections that have the same
        counts. Of gates: the same gates on random neurons, which move toward their own means over
        `load_text("calibration")` if the gates' neurons move toward something else than 0.
    seed : int
        Of the random cuts.
    metric : bool
        Whether to measure the article's metric, for which every layer is looked at.
    match : dict of str to Tensor, optional
        Other random cuts: for each table of shape (layers, neurons), such as {"damage": Fisher's
        importance}, another `n_random` of `random_selections(…, match=table)`. They take as long
        again.
    imitated : dict of str to NeuronSelection or NeuronGates, optional
        Of a changed model: the cut that its random cuts imitate. Without it there are none for that
        model: `n_random` and the counts beside it are 0 in its rows, and their range and what needs
        it is NaN.
    cache : path, optional
        Folder that keeps the readings of every cut, so that a run that was stopped goes on where it
        was. A reading is used again only for the same cut, tokens and versions, and a model with
        the same weights, settings, precision and hooks.

    Returns
    -------
    Comparison
        Its `table` has one row a selection, measure and category. `measure`: "gap" (next-token
        divergence, nats), "decision" (`decision_gap`, nats, of pairs whose template has outcomes),
        "metric" (the article's, activation units, of pairs whose two prompts have the same number
        of tokens) or "perplexity". `row` says what a row is: "category", one of those in the pairs,
        named in `category`; "without pronouns", the gap of gender with pronouns left out;
        "headline", the mean over categories of the relative change; "neutral", the neutral pairs;
        "text", the perplexity. Columns:

        - `before`, `after`: means over pairs, of the headline over the categories' means; `change`:
          after / before − 1, 0 if nothing changed, of the headline the mean of the categories'
          changes (so not of `before` and `after`). Of decisions, which have a sign, `change` is
          `|after| − |before|` in nats, below 0 where the two groups are treated more alike; of the
          headline the three are means over categories, of absolute values;
        - `low`, `high`: the 95 % interval of the change, on the log scale, so never below −100 %;
          of decisions in nats, as it is (`jackknife_interval` over templates, and over attribute
          pairs within their category, where it has two or more; over blocks of 64 tokens for
          perplexity). NaN with one template;
        - `p`, `p_holm`: sign-flip test over templates, and adjusted over the categories of one
          selection and measure;
        - `pairs`, `templates`, `attributes`: how many there are of each; `attributes_resampled`:
          how many attribute pairs were left out in turn. Where it is 0 the interval is for these
          words and says nothing about others;
        - `categories_low`, `categories_high`: headline only, the interval with categories as the
          units (t, of their changes): for other categories like these;
        - `random_low`, `random_high`: range of the change over random cuts; `random_below`,
          `random_above`, `n_random`: how many of them lie lower and higher than this cut (ties are
          neither), and how many there are. For each NAME in `match`: the same with `NAME_`;
        - `neutral_change`; `specificity`, `specificity_low`, `specificity_high`: change − neutral
          change (below 0: the demographic gap fell more than the neutral one); `neutral_in_range`:
          whether the change of the neutral gap lies in the range that random cuts have. Only where
          it does is a specificity below 0 one of demographic words;
        - `flattening_scale`, `flattening_change`: the lowest factor on all logits whose perplexity
          is not above that of the cut (or of the original, where the cut costs nothing), and the
          change of the gap that it brings by itself, with its interval over the same
          clusters, at this factor (`flattening_low`, `flattening_high`);
        - `dtype`: the model's; in half precision the numbers are noise of the size that
          `next_token_divergence` names;
        - `sentence`: the row in words.

    Raises
    ------
    ValueError, TypeError
        No selection, one for another model, a changed model of another vocabulary or precision, bad
        pairs or text, `n_random` below 1, a bad table in `match` or another argument of the wrong
        kind; before the model reads anything.
    """
    match = {} if match is None else match
    imitated = {} if imitated is None else imitated
    _check_types(selections, held_out, match, imitated, cache)
    n_random, seed = check_whole("n_random", n_random, 1), check_whole("seed", seed, 0)
    batch_size = check_batch_size(batch_size)
    imitated = _what_is_imitated(selections, imitated)
    _check(model, tokenizer, {"selections": selections, "imitated": imitated}, held_out)
    _check_changed_models(model, selections)
    tables = {"random": None, **match}
    _random_cuts(imitated, tables, n_random, seed, None)  # refuses a bad table

    read = _reader(model, tokenizer, held_out, metric, batch_size, cache)
    means = _means_if_needed(model, tokenizer, imitated)
    controls = _random_cuts(imitated, tables, n_random, seed, means)

    losses = losses_at_scales(model, tokenizer, held_out.text)  # (tokens, scales)
    before, readings = _read_all(read, no_cut(model), losses[:, 0], selections, controls)
    after = {name: readings[name_of(cut)] for name, cut in selections.items()}
    prices = [reading.mean_loss - before.mean_loss for reading in after.values()]
    flattenings = flattened_gaps(model, tokenizer, held_out.pairs, losses, prices, batch_size)

    rows, draws = [], []
    for name, flattening in zip(selections, flattenings, strict=True):
        chance = {}
        for kind in tables:
            chance[kind] = [readings[name_of(cut)] for cut in controls.get((name, kind), ())]
        case = Case(name, held_out, before, after[name], chance, flattening)
        case_rows, case_draws = case_tables(case)
        rows.append(case_rows)
        draws.append(case_draws)
    dtype = str(model.dtype).removeprefix("torch.")
    table = pd.concat(rows, ignore_index=True)
    table.insert(len(table.columns) - 1, "dtype", dtype)
    return Comparison(
        table=table,
        draws=pd.concat(draws, ignore_index=True),
        readings=_readings_table(tokenizer, held_out, before, after),
        selections=dict(selections),
        held_out=held_out,
        weights_sha256=bits_of(model),
        dtype=dtype,
        seed=seed,
        seconds=sum(float(reading.seconds) for reading in (before, *readings.values())),
    )


def count_readings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    selections: Mapping[str, Change],
    held_out: HeldOut,
    *,
    n_random: int,
    seed: int,
    metric: bool,
    imitated: Mapping[str, NeuronSelection | NeuronGates],
    cache: str | Path | None,
) -> tuple[int, int]:
    """Count what `compare` would read if it was given the same.

    Returns
    -------
    (left, kept)
        Readings that it has to take, and those that the cache holds. The uncut model is among them.
    """
    imitated = _what_is_imitated(selections, imitated)
    means = _means_if_needed(model, tokenizer, imitated)
    controls = _random_cuts(imitated, {"random": None}, n_random, seed, means)
    cuts = _different_cuts({"": no_cut(model), **selections}, controls).values()
    kept = 0
    read = _reader(model, tokenizer, held_out, metric, 32, cache)
    if isinstance(read, KeptReadings):
        kept = sum(read.path(cut).exists() for cut in cuts)
    return len(cuts) - kept, kept


def _what_is_imitated(
    selections: Mapping[str, Change], given: Mapping[str, NeuronSelection | NeuronGates]
) -> dict[str, NeuronSelection | NeuronGates]:
    """Return what the random cuts of each selection imitate: the cut itself, or of a changed model
    the one that was given for it, if any."""
    changed = [name for name, cut in selections.items() if isinstance(cut, PreTrainedModel)]
    if not set(given) <= set(changed):
        names = ", ".join(changed) or "none"
        raise ValueError(
            f"imitated: expected names of changed models ({names}); got {', '.join(given)}"
        )
    return {name: cut for name, cut in selections.items() if name not in changed} | dict(given)


def _check_changed_models(model: PreTrainedModel, selections: Mapping[str, Change]) -> None:
    """Refuse a changed model whose numbers would not be comparable."""
    known = _vocabulary_and_dtype(model)
    for name, changed in selections.items():
        if not isinstance(changed, PreTrainedModel):
            continue
        check_ready(changed, longest=0)
        got = _vocabulary_and_dtype(changed)
        if got != known:
            raise ValueError(
                f"selections: {name} predicts {got[0]} tokens in {got[1]}, and the original "
                f"{known[0]} in {known[1]}; only the same vocabulary and precision compare"
            )


def _vocabulary_and_dtype(model: PreTrainedModel) -> tuple[int, str]:
    return len(model.get_output_embeddings().weight), str(model.dtype).removeprefix("torch.")


def _check_types(
    selections: object, held_out: object, match: object, imitated: object, cache: object
) -> None:
    """Refuse arguments that are of another kind than `compare` takes."""
    kinds = {
        "selections": (selections, (NeuronSelection, NeuronGates, PreTrainedModel)),
        "match": (match, Tensor),
        "imitated": (imitated, (NeuronSelection, NeuronGates)),
    }
    for argument, (given, kind) in kinds.items():
        if not isinstance(given, Mapping):
            expected = f"{argument}: expected a dict by name, such as {{'cut': …}}"
            raise TypeError(f"{expected}; got {type(given).__name__}")
        names = [one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,))]
        for name, value in given.items():
            if not isinstance(value, kind):
                raise TypeError(
                    f"{argument}: expected {' or '.join(names)} for {name!r}; got "
                    f"{type(value).__name__}"
                )
    if not selections:
        raise ValueError("selections: expected at least one, by name; got none")
    if not isinstance(held_out, HeldOut):
        raise TypeError(
            "held_out: expected fairlab.HeldOut(pairs, neutral, text); got "
            f"{type(held_out).__name__}"
        )
    checked_cache(cache)


def _check(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cuts: Mapping[str, Mapping[str, Change]],
    held_out: HeldOut,
) -> None:
    """Refuse what can't be measured, before any time is spent; `cuts` are by argument and name."""
    check_ready(model, longest=0)
    for argument, by_name in cuts.items():
        for cut in by_name.values():
            if not isinstance(cut, PreTrainedModel):
                matching_blocks(model, cut, type(cut), argument)
    for argument in ("pairs", "neutral"):
        for pair in getattr(held_out, argument):
            encode_pair(tokenizer, pair, aligned=False, argument=argument)
    count_scored(model, tokenizer, held_out.text)  # refuses a text that is too short


def _reader(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    metric: bool,
    batch_size: int,
    cache: str | Path | None,
) -> Callable[..., Reading]:
    """Return a function that reads a cut, or finds its reading in the cache."""
    read = partial(read_cut, model, tokenizer, held_out, metric=metric, batch_size=batch_size)
    if cache is None:
        return read
    folder = checked_cache(cache) / cache_key(model, tokenizer, held_out, metric=metric)
    counts = len(held_out.everything), count_scored(model, tokenizer, held_out.text)
    return KeptReadings(folder, read, counts)


def _means_if_needed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    selections: Mapping[str, NeuronSelection | NeuronGates],
) -> Tensor | None:
    """Return toward what random neurons move, if any of the gates move toward something."""
    for cut in selections.values():
        if isinstance(cut, NeuronGates) and not cut.moves_toward_zero:
            return mean_activations(model, tokenizer, load_text("calibration"))
    return None


def _random_cuts(
    selections: Mapping[str, NeuronSelection | NeuronGates],
    tables: Mapping[str, Tensor | None],
    n_random: int,
    seed: int,
    means: Tensor | None,
) -> dict[tuple[str, str], list[NeuronSelection] | list[NeuronGates]]:
    """Draw the random cuts or gates of every selection, of each kind."""
    controls = {}
    for name, cut in selections.items():
        for kind, match in tables.items():
            if isinstance(cut, NeuronSelection):
                drawn = random_selections(cut, n_random, seed=seed, match=match)
            else:
                toward = None if cut.moves_toward_zero else means
                drawn = random_gates(cut, n_random, seed=seed, match=match, means=toward)
            controls[name, kind] = drawn
    return controls


def no_cut(model: PreTrainedModel) -> NeuronSelection:
    """Return the cut that leaves a model as it is."""
    return NeuronSelection({}, table_shape(model))


def _different_cuts(
    selections: Mapping[str, Change], controls: Mapping[object, Sequence[Change]]
) -> dict[str, Change]:
    """Return each different cut once, by what tells it from others: several selections may have
    random cuts in common."""
    cuts = list(selections.values())
    for draws in controls.values():
        cuts += draws
    return {name_of(cut): cut for cut in cuts}


def _read_all(
    read: Callable[..., Reading],
    uncut: NeuronSelection,
    losses: Tensor,
    selections: Mapping[str, Change],
    controls: Mapping[object, Sequence[Change]],
) -> tuple[Reading, dict[str, Reading]]:
    """Read the uncut model, whose losses of the text are known, and each different cut once.

    Several processes deal the readings among them; all get all of them.
    """
    tasks = [("", uncut, {"losses": losses})]
    for key, cut in _different_cuts(selections, controls).items():
        tasks.append((key, cut, {}))
    mine = {}
    for key, cut, known in progress(share(tasks), desc="cuts", unit="cut"):
        mine[key] = read(cut, **known)
    readings = {}
    for part in gathered(mine):
        readings |= part
    return readings.pop(""), readings


def _readings_table(
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    before: Reading,
    after: Mapping[str, Reading],
) -> pd.DataFrame:
    """Return what was read of each pair, so that every row of the table can be checked by hand."""
    lengths = check_pairs(tokenizer, held_out.everything)
    pairs = pd.DataFrame(
        {
            "kind": ["demographic"] * len(held_out.pairs) + ["neutral"] * len(held_out.neutral),
            "category": [pair.category for pair in held_out.everything],
            "template": [pair.template or pair.prompt_a for pair in held_out.everything],
            "attribute_a": [pair.attribute_a for pair in held_out.everything],
            "attribute_b": [pair.attribute_b for pair in held_out.everything],
            "more_tokens": lengths.tokens_a - lengths.tokens_b,
        }
    )
    parts = []
    for name, reading in after.items():
        for measure, field in MEASURES.items():
            part = pairs.assign(before=getattr(before, field), after=getattr(reading, field))
            part.insert(0, "measure", measure)
            part.insert(0, "selection", name)
            parts.append(part)
    table = pd.concat(parts)
    # the metric where it was not measured or is of unequal length, and decisions without outcomes
    return table.dropna(subset="after", ignore_index=True)
