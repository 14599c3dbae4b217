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
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.behavior import PRONOUNS, divergence, token_ids, without
from fairlab.capture import (
    PairBatch,
    available_points,
    check_ready,
    context_length,
    full_precision,
    progress,
    run_pairs,
)
from fairlab.diagnosis import ARTICLE_POINTS
from fairlab.models import decoder_layers
from fairlab.pairs import PromptPair, as_pairs, encode_pair
from fairlab.statistics import bootstrap_interval, holm, sign_flip_test
from fairlab.surgery import NeuronSelection, ablate


def perplexity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = 512) -> float:
    """Compute the perplexity of a text: `exp` of the mean of `token_losses`.

    Returns
    -------
    float
        From 1 (every token foreseen) upwards; the size of the vocabulary for a model that guesses evenly. Comparable
        only between models with one tokenizer, on one text and window.

    Raises
    ------
    ValueError
        As `token_losses`.
    """
    return token_losses(model, tokenizer, text, window=window).mean().exp().item()


def token_losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int = 512) -> Tensor:
    """Compute `−ln p(token | those before it in its window)` of the tokens of a text.

    The text is tokenised as a whole and cut into windows of `window` tokens, or of as many as the model reads, without
    overlap (BOS stands before each, where the tokenizer adds one). The first token of a window has nothing before it
    and is left out, unless BOS is there.

    Returns
    -------
    Tensor
        One value a scored token, in nats, 0 or more, float32 (float64 for a float64 model) on the CPU.

    Raises
    ------
    ValueError
        A text of fewer than two tokens, a window below 2, or losses that are not finite.
    """
    return _losses(model, tokenizer, text, window=window, scales=(1.0,))[:, 0]


@full_precision()
def _losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, window: int, scales: Sequence[float]
) -> Tensor:
    """Return the token losses with all logits multiplied by each of `scales`, shape (tokens, scales)."""
    if not isinstance(window, int) or window < 2:
        raise ValueError(f"window: expected a whole number of at least 2; got {window!r}")
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    if len(ids) < 2:
        raise ValueError(f"text: expected at least two tokens; got {len(ids)}")
    first = tokenizer("a").input_ids[0]
    bos = [first] if first == tokenizer.bos_token_id else []
    window = min(window, context_length(model) - len(bos))
    pieces = [bos + ids[start : start + window] for start in range(0, len(ids), window)]
    check_ready(model, longest=max(map(len, pieces)))
    losses = []
    for piece in progress([piece for piece in pieces if len(piece) > 1], desc="perplexity", unit="window"):
        tokens = torch.tensor([piece], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = logits.gather(1, tokens[0, 1:, None])[:, 0]
        by_scale = [torch.logsumexp(logits * scale if scale != 1 else logits, 1) - target * scale for scale in scales]
        losses.append(torch.stack(by_scale, 1).cpu())
    result = torch.cat(losses)
    if not torch.isfinite(result).all():
        raise ValueError("model: its losses are not finite; look for NaN weights")
    return result


def random_selections(selection: NeuronSelection, n: int, *, seed: int = 0) -> list[NeuronSelection]:
    """Draw n random cuts with as many neurons in each layer as a selection has: what a cut of this size does by itself.

    Raises
    ------
    ValueError
        n below 1.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n: expected a whole number of at least 1; got {n!r}")
    draw = random.Random(seed)
    width = selection.shape[1]
    return [
        NeuronSelection(
            {layer: tuple(draw.sample(range(width), len(indices))) for layer, indices in selection.neurons.items()},
            selection.shape,
            f"random cut {number} of seed {seed}",
        )
        for number in range(n)
    ]


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
) -> pd.DataFrame:
    """Measure what cuts do, each beside random cuts of the same size, neutral prompts, and a mere flattening.

    Every cut is tried by `ablation`, so the model stays as it is. `pairs` should be held out: templates and words that
    did not choose the neurons.

    Parameters
    ----------
    selections : dict of str to NeuronSelection
        The cuts, by name.
    pairs, neutral : list of PromptPair
        Demographic pairs, and neutral pairs in the same templates. `category`, `template` and the two attributes say
        what belongs together.
    text : str
        For perplexity; not the calibration text.
    n_random : int
        Random cuts with the same count in each layer, shared by all selections that have the same counts.
    cache : path, optional
        Folder that keeps the readings of every cut, so that a run that was stopped goes on where it was. What is read
        depends on the weights, the cut, the prompts and the text; anything else starts anew.
    ablation : callable
        `ablation(model, selection)`: a context manager, such as `partial(fairlab.ablate, scale=0.5)`, under which every
        cut is read, the random ones too. It must do nothing for an empty selection. Without a cache, which could not
        tell one from another.
    metric : bool
        Whether to measure the article's metric, which takes about half of the time.

    Returns
    -------
    pandas.DataFrame
        One row a selection, measure and category. Measures: "gap" (next-token divergence, nats), "metric" (the
        article's, activation units), "perplexity". Categories: each of those in `pairs`; "gender without pronouns" (gap
        only); "headline", the mean over categories of the relative change; "neutral"; "text". Columns:

        - `before`, `after`; `change`: after / before − 1, 0 if nothing changed; `low`, `high`: its 95 % interval
          (`bootstrap_interval` over templates and attribute pairs; over blocks of 64 tokens for perplexity);
        - `p`, `p_holm`: sign-flip test over templates, and adjusted over the categories of one selection and measure;
        - `pairs`, `templates`, `attributes`: how many there are of each;
        - `random_low`, `random_high`: range of the change over random cuts; `random_below`, `random_above`,
          `n_random`: how many of them lie lower and higher than this cut (ties are neither), and how many there are;
          `random_changes`: all of them, separated by blanks;
        - `neutral_change`; `specificity`, `specificity_low`, `specificity_high`: change − neutral change (below 0: the
          demographic gap fell more than the neutral one);
        - `flattening_scale`, `flattening_change`: the factor on all logits that costs the same perplexity (1 where
          the cut costs none; NaN where even 0.3 costs less), and the change of the gap that it brings by itself;
        - `dtype`: the model's, such as "float32"; in half precision the numbers are noise of the size that
          `next_token_divergence` names;
        - `sentence`: the row in words. `attrs["seconds"]` is what measuring took, whenever it was done; `attrs["seed"]`
          is that of the random cuts; `attrs["fingerprint"]` tells what was measured, for `write_report`.

    Raises
    ------
    ValueError, TypeError
        No selection, one for another model, bad pairs or text, `n_random` below 1, a cache together with an ablation;
        before anything is measured.
    """
    pairs, neutral = as_pairs(pairs), as_pairs(neutral)
    if not selections:
        raise ValueError("selections: expected at least one, by name; got none")
    if not callable(ablation):
        raise TypeError(f"ablation: expected a context manager of a model and a selection; got {ablation!r}")
    if cache is not None and ablation is not ablate:
        raise ValueError(f"cache: expected None with an ablation, which it can't tell from another; got {cache!r}")
    for selection in selections.values():
        with ablation(model, selection):  # refuses a cut for another model, before any time is spent
            pass
    controls = {name: random_selections(cut, n_random, seed=seed) for name, cut in selections.items()}
    for pair in (*pairs, *neutral):
        encode_pair(tokenizer, pair)
    read = partial(_read, model, tokenizer, pairs, neutral, text, ablation, metric)
    if cache is not None:
        prompts = [[pair.prompt_a, pair.prompt_b] for pair in (*pairs, *neutral)]
        wanted = [bits_of(model), text, prompts] + ([] if metric else ["without metric"])
        key = hashlib.sha256(json.dumps(wanted).encode())
        read = partial(_read_cached, read, Path(cache) / key.hexdigest()[:16])
    before = read(NeuronSelection({}, next(iter(selections.values())).shape))
    flattening = _flattening(model, tokenizer, pairs, text)
    cuts = {cut.to_json(): cut for cut in selections.values()}
    cuts |= {cut.to_json(): cut for draws in controls.values() for cut in draws}
    readings = {}
    for key, cut in progress(list(cuts.items()), desc="cuts", unit="cut"):
        readings[key] = read(cut)
    tables = []
    for name, cut in selections.items():
        after = readings[cut.to_json()]
        by_chance = [readings[draw.to_json()] for draw in controls[name]]
        tables.append(_rows(name, pairs, neutral, before, after, by_chance, flattening))
    result = pd.concat(tables, ignore_index=True)
    result.insert(len(result.columns) - 1, "dtype", str(model.dtype).removeprefix("torch."))
    result.attrs["seed"] = seed
    result.attrs["fingerprint"] = fingerprint(model, selections, pairs, neutral)
    result.attrs["seconds"] = sum(float(reading["seconds"]) for reading in (before, *readings.values()))
    return result


def fingerprint(
    model: PreTrainedModel,
    selections: Mapping[str, NeuronSelection],
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
) -> dict[str, str]:
    """Return a SHA-256 of the weights, and one of each of the other things that a comparison stands on."""
    prompts = [[[pair.prompt_a, pair.prompt_b, pair.category] for pair in some] for some in (pairs, neutral)]
    cuts = [[sorted(cut.neurons.items()), cut.shape] for cut in selections.values()]
    things = {"selection": cuts, "pairs": prompts[0], "neutral": prompts[1]}
    sums = {name: hashlib.sha256(json.dumps(thing).encode()).hexdigest() for name, thing in things.items()}
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
    """Measure one cut: gap, gap without pronouns and metric of each pair, then of each neutral pair; loss of each
    token."""
    everything = [*pairs, *neutral]
    points = [point for point in ARTICLE_POINTS if metric and point in available_points(model)]
    gap, gap_without, distance = torch.zeros(3, len(everything))
    start = time.perf_counter()
    pronouns = token_ids(tokenizer, PRONOUNS)
    places = len(points) * len(decoder_layers(model))

    def visit(point: str, layer: int, batch: PairBatch, values: Tensor) -> None:
        differences = (values[batch.rows_a] - values[batch.rows_b]).abs_().mean(-1)
        distance[batch.pairs] += (differences * batch.weights).sum(1).float().cpu() / places

    def see_next(batch: PairBatch, log_p: Tensor) -> None:
        gap[batch.pairs] = divergence(log_p, batch).float().cpu()
        gap_without[batch.pairs] = divergence(without(log_p, pronouns), batch).float().cpu()

    with ablation(model, cut):
        run_pairs(model, tokenizer, everything, points, visit, see_next=see_next, positions="all")
        losses = token_losses(model, tokenizer, text)
    readings = {"gap": gap, "gap_without": gap_without, "losses": losses} | ({"metric": distance} if metric else {})
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


def _flattening(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[PromptPair], text: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return factors on the logits from 1 down, the perplexity at each, and the gap of each pair at each."""
    scales = np.linspace(1, 0.3, 15)
    gaps = np.zeros((len(scales), len(pairs)))

    def see_next(batch: PairBatch, log_p: Tensor) -> None:
        for number, scale in enumerate(scales):
            gaps[number, batch.pairs] = divergence((log_p * scale).log_softmax(-1), batch).cpu()

    run_pairs(model, tokenizer, pairs, see_next=see_next)
    losses = _losses(model, tokenizer, text, window=512, scales=tuple(scales))
    return scales, losses.mean(0).exp().numpy(), gaps


def _change(before: np.ndarray, after: np.ndarray, groups: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Return the mean over groups of pairs of the relative change of the weighted sums, one value a row of weights."""
    with np.errstate(invalid="ignore", divide="ignore"):
        changes = [weights[:, g] @ after[g] / (weights[:, g] @ before[g]) - 1 for g in groups]
    return np.mean(changes, axis=0)


def _interval(
    x: np.ndarray, y: np.ndarray, groups: Sequence[np.ndarray], labels: np.ndarray, minus: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Return the mean relative change of groups of pairs, less that of the group `minus`, with its interval."""
    parts = [*groups] if minus is None else [*groups, minus]
    index = np.concatenate(parts)
    own = np.split(np.arange(len(index)), np.cumsum([len(part) for part in parts])[:-1])

    def statistic(weights: np.ndarray) -> np.ndarray:
        value = _change(x[index], y[index], own[: len(groups)], weights)
        return value if minus is None else value - _change(x[index], y[index], own[-1:], weights)

    templates, attributes, strata = labels[:, index]
    low, high = bootstrap_interval(statistic, [templates, attributes], strata=strata)
    return statistic(np.ones((1, len(index))))[0], float(low), float(high)


def _rows(
    name: str,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    before: dict[str, np.ndarray],
    after: dict[str, np.ndarray],
    by_chance: Sequence[dict[str, np.ndarray]],
    flattening: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> pd.DataFrame:
    labels = np.array(
        [
            [pair.template or pair.prompt_a, f"{pair.attribute_a} / {pair.attribute_b}", stratum]
            for stratum, pair in [*((p.category, p) for p in pairs), *(("neutral", p) for p in neutral)]
        ]
    ).T
    categories = {
        c: np.flatnonzero(labels[2, : len(pairs)] == c) for c in dict.fromkeys(labels[2, : len(pairs)].tolist())
    }
    control = np.arange(len(pairs), len(pairs) + len(neutral))
    wanted = []  # measure, category, reading, groups of pairs
    for measure in ("gap", "metric") if "metric" in before else ("gap",):
        for category, members in categories.items():
            wanted.append((measure, category, measure, [members]))
            if (measure, category) == ("gap", "gender"):
                wanted.append((measure, "gender without pronouns", "gap_without", [members]))
        wanted += [(measure, "headline", measure, list(categories.values())), (measure, "neutral", measure, [control])]
    scale, flat = _same_price(flattening, after["losses"].mean() - before["losses"].mean())
    everyone = np.ones((1, labels.shape[1]))
    rows = []
    for measure, category, reading, groups in wanted:
        x, y = before[reading], after[reading]
        index = np.concatenate(groups)
        relative = np.concatenate([(y[group] - x[group]) / x[group].mean() for group in groups])
        row = {"selection": name, "measure": measure, "category": category}
        row |= {"before": np.mean([x[g].mean() for g in groups]), "after": np.mean([y[g].mean() for g in groups])}
        row["change"], row["low"], row["high"] = _interval(x, y, groups, labels)
        row["p"] = sign_flip_test(relative, labels[0, index])
        row["pairs"], row["templates"] = len(index), len(set(labels[0, index]))
        row["attributes"] = len({(stratum, words) for _, words, stratum in labels[:, index].T})
        row |= _place_among(row["change"], [_change(x, other[reading], groups, everyone)[0] for other in by_chance])
        if category != "neutral":
            row["neutral_change"] = _change(x, y, [control], everyone)[0]
            difference = _interval(x, y, groups, labels, minus=control)
            row["specificity"], row["specificity_low"], row["specificity_high"] = difference
            if reading == "gap":
                row["flattening_scale"] = scale
                row["flattening_change"] = _change(flattening[2][0], flat, groups, everyone[:, : len(pairs)])[0]
        rows.append(row)
    rows.append(_perplexity_row(name, before["losses"], after["losses"], [r["losses"] for r in by_chance]))
    table = pd.DataFrame(rows)
    table["p_holm"] = np.nan
    for measure in ("gap", "metric"):
        tested = (table.measure == measure) & table.category.isin(list(categories))
        table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    table["sentence"] = [_sentence(row) for row in table.to_dict("records")]
    return table


def _same_price(flattening: tuple[np.ndarray, np.ndarray, np.ndarray], extra: float) -> tuple[float, np.ndarray]:
    """Find the factor on the logits that adds `extra` to the mean loss, and the gaps of the pairs at this factor."""
    scales, perplexities, gaps = flattening
    lowest = int(perplexities.argmin())  # a mild flattening can even help; the price is paid beyond it
    wanted = perplexities[0] * math.exp(max(extra, 0.0))
    if wanted > perplexities[-1]:  # no flattening that was tried costs as much
        return math.nan, np.full(gaps.shape[1], math.nan)
    scale = float(np.interp(wanted, perplexities[lowest:], scales[lowest:])) if extra > 0 else 1.0
    flat = np.array([np.interp(-scale, -scales, gaps[:, pair]) for pair in range(gaps.shape[1])])
    return scale, flat


def _place_among(change: float, drawn: Sequence[float]) -> dict[str, float]:
    below = int(sum(other < change for other in drawn))
    listed = " ".join(f"{other:.5f}" for other in drawn)
    above = int(sum(other > change for other in drawn))
    row = {"random_low": min(drawn), "random_high": max(drawn), "random_below": below, "random_above": above}
    return row | {"n_random": len(drawn), "random_changes": listed}


def _perplexity_row(name: str, before: np.ndarray, after: np.ndarray, by_chance: Sequence[np.ndarray]) -> dict:
    blocks = np.arange(len(before)) // 64
    low, high = bootstrap_interval(lambda weights: np.exp(weights @ (after - before) / weights.sum(1)) - 1, [blocks])
    change = math.exp(after.mean() - before.mean()) - 1
    drawn = [math.exp(other.mean() - before.mean()) - 1 for other in by_chance]
    row = {"selection": name, "measure": "perplexity", "category": "text", "change": change, "low": low, "high": high}
    row |= {"before": math.exp(before.mean()), "after": math.exp(after.mean()), "p": math.nan}
    return row | {"pairs": 0, "templates": 0, "attributes": 0} | _place_among(change, drawn)


def _sentence(row: dict) -> str:
    """Say a row in plain words."""
    subject = {"gap": "the gap", "metric": "the article's metric", "perplexity": "perplexity"}[row["measure"]]
    where = {"headline": " (mean over categories)", "text": "", "neutral": " of neutral pairs"}.get(row["category"])
    where = f" for {row['category']}" if where is None else where
    clusters = f", {row['templates']} templates" if row["templates"] else ""
    parts = [f"{subject}{where} changes by {row['change']:+.1%}"]
    if not math.isnan(row["low"]):
        parts[0] += f" (interval {row['low']:+.1%} … {row['high']:+.1%}{clusters})"
    parts.append(
        f"lower than {row['random_above']} of {row['n_random']} random cuts "
        f"({row['random_low']:+.1%} … {row['random_high']:+.1%})"
    )
    if not math.isnan(row.get("neutral_change", math.nan)):
        told = row["specificity_low"] > 0 or row["specificity_high"] < 0
        relation = "the two differ" if told else "no difference can be told"
        parts.append(f"neutral prompts by {row['neutral_change']:+.1%} ({relation})")
    if not math.isnan(row.get("flattening_change", math.nan)):
        parts.append(f"a flattening of the same price brings {row['flattening_change']:+.1%}")
    return f"{row['selection']}: " + "; ".join(parts) + "."
