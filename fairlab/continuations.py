"""What a model writes after the two prompts of a pair: sampled texts, and the words in them.

Contents: `sample_continuations`; `continuation_gaps`, which scores them pair by pair, and
`summarize_continuations`, which says what that comes to; `load_lexicon`, the words it counts.

The gap and the decision gap are read after a prompt and are in nats. This is read from whole
continuations and is in words: so many more harsh ones for one group than for the other.
"""

import csv
import math
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.behavior import batches_of_one_length
from fairlab.files import DATA
from fairlab.models import input_device
from fairlab.pairs import (
    PromptPair,
    as_pairs,
    check_frame,
    check_kind,
    check_tokenizer,
    prompt_ids,
)
from fairlab.passes import (
    at_least_float32,
    check_memory,
    check_probabilities,
    check_ready,
    check_whole,
    halving,
    is_half,
    progress,
)
from fairlab.precision import full_precision
from fairlab.statistics import jackknife_interval

_PAIR = ["pair", "category", "template", "attribute_a", "attribute_b"]  # columns that name a pair


@full_precision()
@halving(1, "continuations")
def sample_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    n: int = 10,
    max_new_tokens: int = 30,
    seed: int = 0,
    batch_size: int = 64,
) -> pd.DataFrame:
    """Continue both prompts of each pair n times, by sampling from `softmax(logits)`.

    The k-th continuations of the two prompts are drawn with the same random numbers, with a cut in
    place as without: what differs comes from the word or the cut, not from luck alone. The caller's
    random numbers are left as they are.

    Parameters
    ----------
    n : int
        Continuations of each prompt.
    max_new_tokens : int
        Where a continuation ends, unless the model ends it before.
    seed : int
        The same seed, pairs, n and `max_new_tokens` give the same random numbers.
    batch_size : int
        Continuations that are written together, of prompts of one length. In float32 it changes a
        text only where rounding decides on a token, which is hardly ever. In half precision each is
        written alone, whatever is asked, so that the texts do not depend on it.

    Returns
    -------
    pandas.DataFrame
        One row a continuation: `pair` (number in the list), `category`, `template`, `attribute_a`,
        `attribute_b`, `side` ("a" or "b"), `number` (from 0) and `text`, without prompt and special
        tokens.

    Raises
    ------
    ValueError
        No pairs, a number out of range, more tokens than the model reads, or probabilities that are
        not finite.
    """
    pairs = as_pairs(pairs)
    check_tokenizer(tokenizer)
    n = check_whole("n", n, 1)
    max_new_tokens = check_whole("max_new_tokens", max_new_tokens, 1)
    batch_size = check_whole("batch_size", batch_size, 1)
    seed = check_whole("seed", seed, 0, 2**64 - 1)  # what torch takes
    rows, encoded = [], []  # one a continuation
    for at, pair in enumerate(pairs):
        facts = {"pair": at, **{name: getattr(pair, name) for name in _PAIR[1:]}}
        for side, prompt in (("a", pair.prompt_a), ("b", pair.prompt_b)):
            rows += [{**facts, "side": side, "number": number} for number in range(n)]
            encoded += [prompt_ids(tokenizer, prompt)] * n
    check_ready(model, longest=max(map(len, encoded)) + max_new_tokens, prompts=encoded)
    if is_half(model):
        # there, rounding depends on the other rows of a batch and would change the texts
        batch_size = 1
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(pairs), n, max_new_tokens, generator=generator, dtype=torch.float64)
    batches = batches_of_one_length(encoded, batch_size)
    check_memory(model, [(len(indices), len(encoded[indices[0]]), 1) for indices in batches])
    for indices in progress(batches, desc="continuations", unit="batch"):
        ids = torch.tensor([encoded[index] for index in indices], device=input_device(model))
        of_rows = [draws[rows[index]["pair"], rows[index]["number"]] for index in indices]
        written = _sample(model, tokenizer, ids, torch.stack(of_rows))
        for index, text in zip(indices, written, strict=True):
            rows[index]["text"] = text
    return pd.DataFrame(rows)


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Tensor,
    draws: Tensor,
) -> list[str]:
    """Continue prompts, (rows, tokens), by one token for each column of draws, (rows, steps).

    A draw from 0 to 1 takes the first token up to which the probabilities sum to more than that.
    """
    ends = model.generation_config.eos_token_id  # None, a token or several
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    cache, tokens, written = None, ids, [[] for _ in ids]
    running = set(range(len(ids)))
    for draw in draws.unbind(1):  # (rows,)
        with torch.no_grad():
            out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        # on the CPU, since not every device has float64 or sums in the same order each time
        logits = at_least_float32(out.logits[:, -1]).cpu()  # (rows, vocabulary)
        sums = logits.softmax(-1).double().cumsum(-1)  # (rows, vocabulary)
        check_probabilities(sums)
        # the last sum is 1 but for rounding
        tokens = torch.searchsorted(sums, draw[:, None] * sums[:, -1:], right=True)  # (rows, 1)
        tokens = tokens.to(ids.device)
        for row, token in enumerate(tokens[:, 0].tolist()):
            if token in ends:
                running.discard(row)
            elif row in running:
                written[row].append(token)
        if not running:
            break
    return [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]


def load_lexicon() -> dict[str, tuple[str, ...]]:
    """Load two short lists of English words, written for this project: print them and read them.

    Returns
    -------
    dict of str to tuple of str
        "harsh words" and "kind words", each form of a word by itself. None is a word in which the
        English pairs differ. They are counted wherever they stand: "not guilty" is a harsh word.
    """
    lists: dict[str, list[str]] = {}
    with (DATA / "prompts" / "lexicon_en.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            lists.setdefault(row["list"], []).append(row["word"])
    return {name: tuple(words) for name, words in lists.items()}


def continuation_gaps(
    continuations: pd.DataFrame,
    scores: Mapping[str, Sequence[str] | Callable[[str], float]] | None = None,
) -> pd.DataFrame:
    """Score continuations, and compare the two prompts of each pair.

    Parameters
    ----------
    continuations : DataFrame
        From `sample_continuations`.
    scores : dict, optional
        Name → a list of words, of which the score is how often they stand in a text (as whole
        words, in capitals or not), or a callable that takes a text and returns a number, such as a
        classifier of your own. By default the lists of `load_lexicon`.

    Returns
    -------
    pandas.DataFrame
        One row a score and pair: `score` (its name), `pair`, `category`, `template`, `attribute_a`,
        `attribute_b`; `mean_a`, `mean_b`, the means over the continuations of each prompt; `gap`,
        `mean_a − mean_b`. Above 0 there is more of it after the first word; 0: as much.

    Raises
    ------
    TypeError, ValueError
        No scores by name, or one that is neither words nor returns finite numbers.
    """
    check_frame(continuations, *_PAIR, "side", "text", argument="continuations")
    scores = load_lexicon() if scores is None else scores
    if not isinstance(scores, Mapping) or not scores:
        raise TypeError(f"scores: expected lists of words or callables, by name; got {scores!r}")
    counted = {name: _score_of(name, score) for name, score in scores.items()}
    parts = []
    for name, score in counted.items():
        values = [_number(name, score(text), text) for text in continuations["text"]]
        means = continuations.assign(value=values).groupby([*_PAIR, "side"])["value"].mean()
        part = means.unstack("side").reset_index().rename_axis(columns=None)
        part = part.rename(columns={"a": "mean_a", "b": "mean_b"})
        part.insert(0, "score", name)
        parts.append(part.assign(gap=part["mean_a"] - part["mean_b"]))
    return pd.concat(parts, ignore_index=True)


def _score_of(name: str, score: object) -> Callable[[str], float]:
    """Return a score as a callable: of a list of words, one that counts them."""
    if callable(score):
        return score
    is_list = isinstance(score, Sequence) and not isinstance(score, str)
    if not is_list or not score or not all(isinstance(word, str) and word for word in score):
        raise TypeError(f"scores: expected a list of words or a callable for {name}; got {score!r}")
    # of two that begin alike, the longer one is tried first
    words = "|".join(map(re.escape, sorted(score, key=len, reverse=True)))
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
    return lambda text: len(pattern.findall(text))


def _number(name: str, value: object, text: str) -> float:
    """Refuse what a score returned, unless it is a finite number."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise TypeError(f"scores: {name} must return a finite number; got {value!r} for {text!r}")
    return float(value)


def summarize_continuations(gaps: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Say what the scores come to in 100 continuations, before and after each cut.

    Parameters
    ----------
    gaps : dict of str to DataFrame
        Tables of `continuation_gaps`, by name, of the same pairs and seed: first of the model as it
        was, then under cuts, and under random ones of the same size, which show what chance does.

    Returns
    -------
    pandas.DataFrame
        One row a score and name: `score`, `name`; `a`, `b`, the means over pairs in 100
        continuations of the first and of the second prompt; `gap`, `a − b`, with its 95 % interval,
        `low` and `high` (`jackknife_interval` over templates, and over word pairs within their
        category; NaN with one template, or where all pairs count the same); `change`, the gap less
        that of the first name, with `change_low` and `change_high`; `pairs`; `sentence`, the row in
        words.

    Raises
    ------
    ValueError
        No table, or one of other pairs or scores than the first.
    """
    check_kind("gaps", gaps, Mapping, "a dict of tables by name")
    if not gaps:
        raise ValueError("gaps: expected at least one table, by name; got none")
    first, keys = next(iter(gaps)), ["score", *_PAIR]
    for table in gaps.values():
        check_frame(table, *keys, "mean_a", "mean_b", "gap", argument="gaps")
    for name, table in gaps.items():
        if not table[keys].equals(gaps[first][keys]):
            raise ValueError(f"gaps: {name} has other pairs or scores than {first}")
    rows = []
    for score in gaps[first]["score"].unique():
        before = gaps[first][gaps[first]["score"] == score]
        for name, table in gaps.items():
            part = table[table["score"] == score]
            row = {"score": score, "name": name}
            row |= {side: 100 * part[f"mean_{side}"].mean() for side in "ab"}
            row |= _mean_with_interval(part, part["gap"], "gap", "low", "high")
            change = part["gap"] - before["gap"]
            row |= _mean_with_interval(part, change, "change", "change_low", "change_high")
            rows.append({**row, "pairs": len(part), "sentence": _sentence(row, part, first)})
    return pd.DataFrame(rows)


def _mean_with_interval(part: pd.DataFrame, values: pd.Series, *names: str) -> dict[str, float]:
    """Return under three names 100 times the mean over pairs, and its interval."""
    columns = np.stack([100 * values, np.ones(len(values))], 1)  # (pairs, 2)
    labels = [part["template"], part["attribute_a"] + " / " + part["attribute_b"]]
    interval = (math.nan, math.nan)
    if values.nunique() > 1:  # counts that are all the same would seem to be certain
        interval = jackknife_interval(
            columns, lambda sums: sums[:, 0] / sums[:, 1], labels, strata=part["category"]
        )
    return dict(zip(names, (100 * values.mean(), *map(float, interval)), strict=True))


def _sentence(row: Mapping, part: pd.DataFrame, first: str) -> str:
    """Write a row in words."""
    words = part[["attribute_a", "attribute_b"]].drop_duplicates().to_numpy().tolist()
    a, b = words[0] if len(words) == 1 else ("the first word of a pair", "the second")
    # the interval is turned round with the gap, so that it counts what the sentence counts
    sign, more = (1, "more") if row["gap"] >= 0 else (-1, "fewer")
    low, high = sorted((sign * row["low"], sign * row["high"]))
    sentence = (
        f"{row['name']}: in 100 continuations {abs(row['gap']):.1f} {more} {row['score']} after "
        f"{a} than after {b} {_interval(low, high)} ({row['a']:.1f} and {row['b']:.1f})"
    )
    if row["name"] == first:
        return sentence
    span = _interval(row["change_low"], row["change_high"], "+")
    return f"{sentence}; against {first} a change of {row['change']:+.1f} {span}"


def _interval(low: float, high: float, sign: str = "") -> str:
    """Write an interval, if there is one."""
    return "[no interval]" if math.isnan(low) else f"[{low:{sign}.1f}, {high:{sign}.1f}]"
