"""What a cut costs, and what a cut of the same size that means nothing does.

Contents: `perplexity`, `token_losses`, `random_selections`, `compare`, `bits_of`.
"""

import hashlib
import json
import math
import os
import random
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers
from numpy.typing import ArrayLike
from scipy import stats
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab._version import __version__
from fairlab.behavior import PRONOUNS
from fairlab.capture import available_points, run_pairs
from fairlab.diagnosis import ARTICLE_POINTS
from fairlab.models import decoder_layers
from fairlab.pairs import PromptPair, as_pairs, encode_pair, prompt_ids
from fairlab.passes import (
    PairBatch,
    divergence,
    full_precision,
    leave_out_tokens,
    losses_by_scale,
    progress,
    single_token_ids,
    token_losses,
)
from fairlab.statistics import holm, jackknife_interval, resampled, sign_flip_test
from fairlab.surgery import NeuronSelection, ablate

NEIGHBOURS = 20  # of how many neurons with a like value a matched random cut takes one
SCALES = np.linspace(
    1, 0, 21
)  # of the logits, for the flattening; at 0 every token is as likely as any other
_OWN_NAMES = (
    "headline",
    "neutral",
    "text",
    "gender without pronouns",
)  # rows that `compare` adds itself


def random_selections(
    selection: NeuronSelection, n: int, *, seed: int = 0, match: Tensor | None = None
) -> list[NeuronSelection]:
    """Draw n random cuts with as many neurons in each layer as a selection has: what a cut of this
    size does by itself.

    Parameters
    ----------
    n : int
        How many, 1 or more.
    match : Tensor of shape (layers, neurons), optional
        Such as Fisher's importance, or the mean absolute activation: every neuron of the selection
        is then replaced by one of the `NEIGHBOURS` that lie nearest to it in this table's ranks, in
        its layer and outside the selection. A cut that only removes neurons that matter (or that
        are active) does no better than these.

    Raises
    ------
    ValueError
        n below 1, or a table of another shape or with values that are not finite.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n: expected a whole number of at least 1; got {n!r}")
    if match is not None:
        if tuple(match.shape) != tuple(selection.shape):
            raise ValueError(
                f"match: expected a table of shape {tuple(selection.shape)}; got {tuple(match.shape)}"
            )
        if not torch.isfinite(match).all():
            raise ValueError("match: expected finite values; got NaN or infinity")
    draw = random.Random(seed)
    width = selection.shape[1]
    cuts = []
    for number in range(n):
        neurons = {}
        for layer, chosen in selection.neurons.items():
            if match is None:
                neurons[layer] = tuple(draw.sample(range(width), len(chosen)))
            else:
                neurons[layer] = _matched(match[layer], chosen, draw)
        how = f"random cut {number} of seed {seed}" + ("" if match is None else ", matched")
        cuts.append(NeuronSelection(neurons, selection.shape, how))
    return cuts


def _matched(values: Tensor, chosen: Sequence[int], draw: random.Random) -> tuple[int, ...]:
    """Replace every chosen neuron of a layer by one of those that are nearest in rank and not yet
    taken."""
    order = values.argsort().tolist()
    rank = {neuron: place for place, neuron in enumerate(order)}
    free = [neuron for neuron in order if neuron not in set(chosen)]
    if len(free) < len(chosen):
        raise ValueError(
            "match: more than half of a layer is selected; too few neurons are left to match it"
        )
    found = []
    for neuron in draw.sample(
        list(chosen), len(chosen)
    ):  # in random order: the first have the nearest to choose from
        free.sort(key=lambda other, here=rank[neuron]: abs(rank[other] - here))
        found.append(free.pop(draw.randrange(min(NEIGHBOURS, len(free)))))
    return tuple(found)


def bits_of(model: PreTrainedModel) -> str:
    """Return a SHA-256 of all weights: two models with the same one are the same to the bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    selections: Mapping[str, NeuronSelection],
    *,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    text: str,
    n_random: int = 20,
    seed: int = 0,
    cache: str | Path | None = None,
    ablation: Callable[[PreTrainedModel, NeuronSelection], AbstractContextManager] = ablate,
    metric: bool = True,
    match: Mapping[str, Tensor] | None = None,
) -> pd.DataFrame:
    """Measure what cuts do, each beside random cuts of the same size, neutral prompts, and a mere
    flattening.

    Every cut is tried by `ablation`, so the model stays as it is. `pairs` should be held out:
    templates and words that did not choose the neurons.

    Parameters
    ----------
    selections : dict of str to NeuronSelection
        The cuts, by name.
    pairs, neutral : list of PromptPair
        Demographic pairs, and neutral pairs in the same templates. `category`, `template` and the
        two attributes say what belongs together.
    text : str
        For perplexity; not the calibration text.
    n_random : int
        Random cuts with the same count in each layer, shared by all selections that have the same
        counts.
    cache : path, optional
        Folder that keeps the readings of every cut, so that a run that was stopped goes on where it
        was. What is read depends on the model (weights, settings, precision, hooks: what it answers
        to the first prompt, to the bit), the cut, the tokens of prompts and text, and the versions
        of fairlab and torch; anything else starts anew.
    ablation : callable
        `ablation(model, selection)`: a context manager, such as `partial(fairlab.ablate,
        scale=0.5)`, under which every cut is read, the random ones too. It must do nothing for an
        empty selection. Without a cache, which could not tell one from another.
    metric : bool
        Whether to measure the article's metric, which takes about half of the time.
    match : dict of str to Tensor, optional
        Tougher random cuts: for each table of shape (layers, neurons), such as {"damage": Fisher's
        importance}, another `n_random` of `random_selections(…, match=table)`. They take as long
        again.

    Returns
    -------
    pandas.DataFrame
        One row a selection, measure and category. Measures: "gap" (next-token divergence, nats),
        "metric" (the article's, activation units), "perplexity". Categories: each of those in
        `pairs`; "gender without pronouns" (gap only); "headline", the mean over categories of the
        relative change; "neutral"; "text". Columns:

        - `before`, `after`: means over pairs, of the headline over the categories' means; `change`:
          after / before − 1, 0 if nothing changed, of the headline the mean of the categories'
          changes (so not of `before` and `after`);
        - `low`, `high`: the 95 % interval of the change, on the log scale, so never below −100 %
          (`jackknife_interval` over templates, and over attribute pairs within their category,
          where it has two or more; over blocks of 64 tokens for perplexity). NaN with a single
          template;
        - `p`, `p_holm`: sign-flip test over templates, and adjusted over the categories of one
          selection and measure;
        - `pairs`, `templates`, `attributes`: how many there are of each; `attributes_resampled`:
          how many attribute pairs were left out in turn. Where it is 0 the interval is for these
          words and says nothing about others;
        - `categories_low`, `categories_high`: headline only, the interval with categories as the
          units (t, of their changes): for other categories like these;
        - `random_low`, `random_high`: range of the change over random cuts; `random_below`,
          `random_above`, `n_random`: how many of them lie lower and higher than this cut (ties are
          neither), and how many there are; `random_changes`: all of them, separated by blanks;
        - `NAME_low`, `NAME_high`, `NAME_below`, `NAME_above`, for each NAME in `match`: the same of
          its random cuts;
        - `neutral_change`; `specificity`, `specificity_low`, `specificity_high`: change − neutral
          change (below 0: the demographic gap fell more than the neutral one); `neutral_in_range`:
          whether the change of the neutral gap lies in the range that random cuts have. Only where
          it does is a specificity below 0 one of demographic words;
        - `flattening_scale`, `flattening_change`: the lowest factor on all logits whose perplexity
          is not above that of the cut (or of the original, where the cut costs nothing), and the
          change of the gap that it brings by itself, with its interval over templates, at this
          factor (`flattening_low`, `flattening_high`);
        - `dtype`: the model's, such as "float32"; in half precision the numbers are noise of the
          size that `next_token_divergence` names;
        - `sentence`: the row in words.

        `attrs["readings"]` holds what every row is made of, a list of dicts for `pandas.DataFrame`:
        of every selection, measure and pair `before` and `after`, with the pair's category
        ("neutral" for neutral ones), template and words. `attrs["seconds"]` is what measuring took,
        whenever it was done; `attrs["seed"]`
          is that of the random cuts; `attrs["fingerprint"]` tells what was measured, for
          `write_report`.

    Raises
    ------
    ValueError, TypeError
        No selection, one for another model, bad pairs or text, a category with the name of a row of
        its own (such as "neutral"), `n_random` below 1, a bad table in `match`, a cache together
        with an ablation; before anything is measured.
    """
    pairs, neutral = as_pairs(pairs), as_pairs(neutral)
    if not selections:
        raise ValueError("selections: expected at least one, by name; got none")
    if not callable(ablation):
        raise TypeError(
            f"ablation: expected a context manager of a model and a selection; got {ablation!r}"
        )
    if cache is not None and ablation is not ablate:
        raise ValueError(
            f"cache: expected None with an ablation, which it can't tell from another; got {cache!r}"
        )
    taken = [pair.category for pair in pairs if pair.category in _OWN_NAMES]
    if taken:
        raise ValueError(
            f"pairs: a category can't be called {taken[0]!r}, the name of a row of the table; rename it"
        )
    for selection in selections.values():
        with ablation(
            model, selection
        ):  # refuses a cut for another model, before any time is spent
            pass
    tables = {"random": None, **(match or {})}
    controls = {
        (name, kind): random_selections(cut, n_random, seed=seed, match=values)
        for name, cut in selections.items()
        for kind, values in tables.items()
    }
    for pair in (*pairs, *neutral):
        encode_pair(tokenizer, pair)
    read = partial(_read, model, tokenizer, pairs, neutral, text, ablation, metric)
    if cache is not None:
        read = partial(
            _read_cached,
            read,
            Path(cache) / _cache_key(model, tokenizer, [*pairs, *neutral], text, metric),
        )
    before = read(NeuronSelection({}, next(iter(selections.values())).shape))
    cuts = {cut.to_json(): cut for cut in selections.values()}
    cuts |= {cut.to_json(): cut for draws in controls.values() for cut in draws}
    readings = {}
    for key, cut in progress(list(cuts.items()), desc="cuts", unit="cut"):
        readings[key] = read(cut)
    after = {name: readings[cut.to_json()] for name, cut in selections.items()}
    prices = [
        float(reading["losses"].mean() - before["losses"].mean()) for reading in after.values()
    ]
    scales = _same_price(
        SCALES,
        losses_by_scale(model, tokenizer, text, window=512, scales=tuple(SCALES)).mean(0),
        prices,
    )
    flat = dict(zip(after, _flattened(model, tokenizer, pairs, scales), strict=True))
    parts = []
    for number, name in enumerate(selections):
        drawn = {
            kind: [readings[draw.to_json()] for draw in controls[name, kind]] for kind in tables
        }
        parts.append(
            _rows(name, pairs, neutral, before, after[name], drawn, (scales[number], *flat[name]))
        )
    result = pd.concat(parts, ignore_index=True)
    result.insert(len(result.columns) - 1, "dtype", str(model.dtype).removeprefix("torch."))
    result.attrs["seed"] = seed
    result.attrs["fingerprint"] = fingerprint(model, selections, pairs, neutral)
    result.attrs["seconds"] = sum(
        float(reading["seconds"]) for reading in (before, *readings.values())
    )
    result.attrs["readings"] = _tidy(pairs, neutral, before, after)
    return result


def _cache_key(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    text: str,
    metric: bool,
) -> str:
    """Return what the readings depend on, as a short name: the model as it answers now, and the
    tokens it is given.

    One answer, to the bit, tells what weights alone would not: hooks, settings, precision, an
    attention of its own.
    """
    tokens = [
        prompt_ids(tokenizer, prompt) for pair in pairs for prompt in (pair.prompt_a, pair.prompt_b)
    ]
    with full_precision(), torch.no_grad():
        answer = model(
            input_ids=torch.tensor([tokens[0]], device=model.device), use_cache=False
        ).logits
    given = {
        "weights": bits_of(model),
        "answer": hashlib.sha256(
            answer.cpu().contiguous().view(torch.uint8).numpy().data
        ).hexdigest(),
        "model": [type(model).__name__, str(model.dtype), model.config.to_json_string()],
        "tokens": tokens,
        "text": tokenizer(text, verbose=False).input_ids,
        "pronouns": list(single_token_ids(tokenizer, PRONOUNS)),
        "metric": metric,
        "versions": [__version__, torch.__version__, transformers.__version__],
    }
    return hashlib.sha256(json.dumps(given).encode()).hexdigest()[:16]


def _tidy(
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    before: dict[str, np.ndarray],
    after: Mapping[str, dict[str, np.ndarray]],
) -> list[dict]:
    """Return the readings of every selection, measure and pair, as rows."""
    rows = []
    for name, reading in after.items():
        for measure in ("gap", "gap_without", "metric"):
            if measure not in reading:
                continue
            for place, pair in enumerate((*pairs, *neutral)):
                row = {
                    "selection": name,
                    "measure": measure.replace("_without", " without pronouns"),
                }
                row["category"] = pair.category if place < len(pairs) else "neutral"
                row |= {"template": pair.template or pair.prompt_a}
                row |= {"attribute_a": pair.attribute_a, "attribute_b": pair.attribute_b}
                row |= {
                    "before": float(before[measure][place]),
                    "after": float(reading[measure][place]),
                }
                rows.append(row)
    return rows


def fingerprint(
    model: PreTrainedModel,
    selections: Mapping[str, NeuronSelection],
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
) -> dict[str, str]:
    """Return a SHA-256 of the weights, and one of each of the other things that a comparison stands
    on."""
    prompts = [
        [[pair.prompt_a, pair.prompt_b, pair.category] for pair in some]
        for some in (pairs, neutral)
    ]
    cuts = [[sorted(cut.neurons.items()), cut.shape] for cut in selections.values()]
    things = {"selection": cuts, "pairs": prompts[0], "neutral": prompts[1]}
    sums = {
        name: hashlib.sha256(json.dumps(thing).encode()).hexdigest()
        for name, thing in things.items()
    }
    return {"model": bits_of(model), **sums}


def _read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    text: str,
    ablation: Callable[[PreTrainedModel, NeuronSelection], AbstractContextManager],
    metric: bool,
    cut: NeuronSelection,
) -> dict[str, np.ndarray]:
    """Measure one cut: gap, gap without pronouns and metric of each pair, then of each neutral
    pair; loss of each token."""
    everything = [*pairs, *neutral]
    points = [point for point in ARTICLE_POINTS if metric and point in available_points(model)]
    gap, gap_without, distance = torch.zeros(3, len(everything))
    start = time.perf_counter()
    pronouns = single_token_ids(tokenizer, PRONOUNS)
    places = len(points) * len(decoder_layers(model))

    def visit(point: str, layer: int, batch: PairBatch, values: Tensor) -> None:
        differences = (values[batch.rows_a] - values[batch.rows_b]).abs_().mean(-1)
        distance[batch.pairs] += (differences * batch.weights).sum(1).float().cpu() / places

    def see_next(batch: PairBatch, log_p: Tensor) -> None:
        gap[batch.pairs] = divergence(log_p, batch).float().cpu()
        gap_without[batch.pairs] = (
            divergence(leave_out_tokens(log_p, pronouns), batch).float().cpu()
        )

    with ablation(model, cut):
        run_pairs(model, tokenizer, everything, points, visit, see_next=see_next, positions="all")
        losses = token_losses(model, tokenizer, text)
    readings = {"gap": gap, "gap_without": gap_without, "losses": losses} | (
        {"metric": distance} if metric else {}
    )
    return {name: values.numpy() for name, values in readings.items()} | {
        "seconds": np.array(time.perf_counter() - start)
    }


def _read_cached(read: Callable, folder: Path, cut: NeuronSelection) -> dict[str, np.ndarray]:
    path = folder / f"{hashlib.sha256(cut.to_json().encode()).hexdigest()[:24]}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, zipfile.BadZipFile):
        folder.mkdir(parents=True, exist_ok=True)
        readings = read(cut)
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            np.savez(file, **readings)
        os.replace(part, path)
        return readings


def _same_price(scales: np.ndarray, losses: ArrayLike, prices: Sequence[float]) -> list[float]:
    """Find for each price (a rise of the mean loss) the lowest factor on the logits that does not
    cost more.

    The loss is a convex curve of the factor, whose lowest point need not be at 1: of an
    over-confident model a mild flattening lowers the loss. A price below 0 counts as 0. The curve
    is a cubic spline through the points given.
    """
    order = np.argsort(scales)
    curve = CubicSpline(np.asarray(scales)[order], np.asarray(losses, float)[order])
    found = []
    for price in prices:
        allowed = float(curve(1.0)) + max(price, 0.0)
        if curve(0.0) <= allowed:  # not even a model that guesses evenly costs as much
            found.append(0.0)
            continue
        lowest = minimize_scalar(curve, bounds=(0, 1), method="bounded").x
        # where the lowest point is at 1 itself, a price of 0 buys nothing
        found.append(
            brentq(lambda x, level=allowed: float(curve(x)) - level, 0, lowest)
            if curve(lowest) < allowed
            else 1.0
        )
    return found


def _flattened(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    scales: Sequence[float],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each factor on the logits the gap of each pair at 1, and at this factor."""
    gaps = np.zeros((1 + len(scales), len(pairs)))

    def see_next(batch: PairBatch, log_p: Tensor) -> None:
        for number, scale in enumerate([1.0, *scales]):
            gaps[number, batch.pairs] = divergence((log_p * scale).log_softmax(-1), batch).cpu()

    run_pairs(model, tokenizer, pairs, see_next=see_next)
    return [(gaps[0], flat) for flat in gaps[1:]]


def _change(before: np.ndarray, after: np.ndarray, groups: Sequence[np.ndarray]) -> float:
    """Return the mean over groups of pairs of the relative change of their means."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.mean([after[group].sum() / before[group].sum() - 1 for group in groups]))


def _interval(
    x: np.ndarray,
    y: np.ndarray,
    groups: Sequence[np.ndarray],
    labels: np.ndarray,
    minus: np.ndarray | None = None,
) -> tuple[float, float]:
    """Return the 95 % interval of the mean relative change of groups of pairs, or of that less the
    group `minus`'s.

    A change is a ratio, and its interval is made on the log scale; a difference of two changes is
    taken as it is.
    """
    parts = [*groups] if minus is None else [*groups, minus]
    index = np.concatenate(parts)
    columns, start = (
        np.zeros((len(index), 2 * len(parts))),
        0,
    )  # before and after, a pair of columns for each group
    for number, part in enumerate(parts):
        rows = slice(start, start + len(part))
        columns[rows, 2 * number], columns[rows, 2 * number + 1] = x[part], y[part]
        start += len(part)

    def formula(sums: np.ndarray) -> np.ndarray:
        ratios = sums[:, 1::2] / sums[:, 0::2]
        if minus is None:
            return np.log(ratios.mean(1))
        return ratios[:, :-1].mean(1) - ratios[:, -1]

    templates, attributes, strata = labels[:, index]
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = jackknife_interval(columns, formula, [templates, attributes], strata=strata)
        return (
            (float(low), float(high))
            if minus is not None
            else (float(np.expm1(low)), float(np.expm1(high)))
        )


def _rows(
    name: str,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    by_chance: Mapping[str, Sequence[dict[str, np.ndarray]]],
    flattening: tuple[float, np.ndarray, np.ndarray],
) -> pd.DataFrame:
    labels = np.array(
        [
            [pair.template or pair.prompt_a, f"{pair.attribute_a} / {pair.attribute_b}", stratum]
            for stratum, pair in [
                *((p.category, p) for p in pairs),
                *(("neutral", p) for p in neutral),
            ]
        ]
    ).T
    categories = {
        c: np.flatnonzero(labels[2, : len(pairs)] == c)
        for c in dict.fromkeys(labels[2, : len(pairs)].tolist())
    }
    control = np.arange(len(pairs), len(pairs) + len(neutral))
    wanted = []  # measure, category, reading, groups of pairs
    for measure in ("gap", "metric") if "metric" in before else ("gap",):
        for category, members in categories.items():
            wanted.append((measure, category, measure, [members]))
            if (measure, category) == ("gap", "gender"):
                wanted.append((measure, "gender without pronouns", "gap_without", [members]))
        wanted += [
            (measure, "headline", measure, list(categories.values())),
            (measure, "neutral", measure, [control]),
        ]
    scale, sharp, flat = flattening
    rows = []
    for measure, category, reading, groups in wanted:
        x, y = before[reading], after[reading]
        index = np.concatenate(groups)
        relative = np.concatenate([(y[group] - x[group]) / x[group].mean() for group in groups])
        row = {"selection": name, "measure": measure, "category": category}
        row |= {
            "before": np.mean([x[g].mean() for g in groups]),
            "after": np.mean([y[g].mean() for g in groups]),
        }
        row["change"] = _change(x, y, groups)
        row["low"], row["high"] = _interval(x, y, groups, labels)
        row["p"] = sign_flip_test(relative, labels[0, index])
        row["pairs"], row["templates"] = len(index), len(set(labels[0, index]))
        words = [(stratum, words) for _, words, stratum in labels[:, index].T]
        free = resampled([word for _, word in words], [stratum for stratum, _ in words])
        row["attributes"] = len(set(words))
        row["attributes_resampled"] = len(
            {word for word, moves in zip(words, free, strict=True) if moves}
        )
        if category == "headline":
            changes = [_change(x, y, [group]) for group in groups]
            row["categories_low"], row["categories_high"] = _interval_of_mean(changes)
        for kind, drawn in by_chance.items():
            row |= _place_among(
                row["change"], [_change(x, other[reading], groups) for other in drawn], kind
            )
        if category != "neutral":
            row["neutral_change"] = _change(x, y, [control])
            row["specificity"] = row["change"] - row["neutral_change"]
            row["specificity_low"], row["specificity_high"] = _interval(
                x, y, groups, labels, minus=control
            )
            drawn = [_change(x, other[reading], [control]) for other in by_chance["random"]]
            row["neutral_in_range"] = min(drawn) <= row["neutral_change"] <= max(drawn)
            if reading == "gap":
                row["flattening_scale"] = scale
                row["flattening_change"] = _change(sharp, flat, groups)
                row["flattening_low"], row["flattening_high"] = _interval(
                    sharp, flat, groups, labels
                )
        rows.append(row)
    rows.append(_perplexity_row(name, before["losses"], after["losses"], by_chance))
    table = pd.DataFrame(rows)
    table["p_holm"] = np.nan
    for measure in ("gap", "metric"):
        tested = (table.measure == measure) & table.category.isin(list(categories))
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    table["sentence"] = [_sentence(row) for row in table.to_dict("records")]
    return table


def _interval_of_mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % t interval of the mean of values that stand alone; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def _place_among(change: float, drawn: Sequence[float], kind: str = "random") -> dict[str, float]:
    """Return the range of random cuts and the place of a change among them; ties are neither below
    nor above."""
    row = {f"{kind}_low": min(drawn), f"{kind}_high": max(drawn)}
    row[f"{kind}_below"] = int(sum(other < change for other in drawn))
    row[f"{kind}_above"] = int(sum(other > change for other in drawn))
    if kind == "random":
        row |= {
            "n_random": len(drawn),
            "random_changes": " ".join(f"{other:.5f}" for other in drawn),
        }
    return row


def _perplexity_row(
    name: str,
    before: np.ndarray,
    after: np.ndarray,
    by_chance: Mapping[str, Sequence[dict[str, np.ndarray]]],
) -> dict:
    blocks = np.arange(len(before)) // 64
    columns = np.stack([after - before, np.ones(len(before))], 1)
    low, high = jackknife_interval(columns, lambda sums: sums[:, 0] / sums[:, 1], [blocks])
    change = math.exp(after.mean() - before.mean()) - 1
    row = {"selection": name, "measure": "perplexity", "category": "text", "change": change}
    row |= {"low": math.expm1(low), "high": math.expm1(high)}
    row |= {"before": math.exp(before.mean()), "after": math.exp(after.mean()), "p": math.nan}
    row |= {"pairs": 0, "templates": 0, "attributes": 0, "attributes_resampled": 0}
    for kind, readings in by_chance.items():
        drawn = [math.exp(other["losses"].mean() - before.mean()) - 1 for other in readings]
        row |= _place_among(change, drawn, kind)
    return row


def _sentence(row: dict) -> str:
    """Say a row in plain words."""
    subject = {"gap": "the gap", "metric": "the article's metric", "perplexity": "perplexity"}[
        row["measure"]
    ]
    where = {"headline": " (mean over categories)", "text": "", "neutral": " of neutral pairs"}.get(
        row["category"]
    )
    where = f" for {row['category']}" if where is None else where
    parts = [f"{subject}{where} changes by {row['change']:+.1%}"]
    if not math.isnan(row["low"]):
        clusters = f", {row['templates']} templates" if row["templates"] else ""
        if row["attributes_resampled"]:
            clusters += f" and {row['attributes_resampled']} pairs of words"
        elif row["templates"]:
            clusters += ", for these words"
        parts[0] += f" (interval {row['low']:+.1%} … {row['high']:+.1%}{clusters})"
    ties = row["n_random"] - row["random_above"] - row["random_below"]
    parts.append(
        f"lower than {row['random_above']} of {row['n_random']} random cuts"
        + (f", equal to {ties}" if ties else "")
        + f" ({row['random_low']:+.1%} … {row['random_high']:+.1%})"
    )
    if not math.isnan(row.get("neutral_change", math.nan)):
        parts.append(f"neutral prompts by {row['neutral_change']:+.1%} ({_relation(row)})")
    if not math.isnan(row.get("flattening_change", math.nan)):
        parts.append(f"a flattening of the same price brings {row['flattening_change']:+.1%}")
    return f"{row['selection']}: " + "; ".join(parts) + "."


def _relation(row: dict) -> str:
    """Say how the change of demographic pairs stands to that of neutral ones."""
    if not (row["specificity_low"] > 0 or row["specificity_high"] < 0):
        return "no difference can be told"
    if not row["neutral_in_range"]:
        return "the two differ, and neutral prompts move beyond the range of random cuts"
    return "the two differ"
