"""What is measured under one cut, and how it is kept.

Contents: `HeldOut`, `Reading`, `Change`, `read_cut`, `KeptReadings`, `facts_of`, `bits_of`.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab._version import __version__
from fairlab.behavior import PRONOUNS
from fairlab.capture import run_pairs
from fairlab.decisions import NextTokens, check_are_outcomes, decision_gap, next_tokens
from fairlab.diagnosis import article_points
from fairlab.files import may_fail, whole_file
from fairlab.gating import NeuronGates, applied
from fairlab.models import decoder_layers, every_weight, input_device
from fairlab.pairs import (
    Outcomes,
    PromptPair,
    as_pairs,
    check_string,
    load_outcomes,
    prompt_ids,
)
from fairlab.passes import (
    PairBatch,
    divergence,
    halving,
    leave_out_tokens,
    single_token_ids,
    token_losses,
)
from fairlab.precision import full_precision
from fairlab.surgery import NeuronSelection

Change = NeuronSelection | NeuronGates | PreTrainedModel  # what can be compared with a model


@dataclass(frozen=True)
class HeldOut:
    """What a cut is judged on. Nothing in it may have chosen the neurons.

    Parameters
    ----------
    pairs, neutral : list of PromptPair
        Demographic pairs, and neutral pairs in the same templates. Their `category`, `template` and
        attributes say what belongs together. The two prompts of a pair may differ in their number
        of tokens; then the article's metric leaves the pair out, and part of its gap may come from
        the length, so some neutral pairs should differ by as much.
    text : str
        Plain prose for the perplexity; not the calibration text.
    outcomes : dict of str to Outcomes, optional
        Template → a harsher and a kinder list of continuations, for the decision gap;
        `load_outcomes()` by default. Pairs whose template has none are left out of that measure.

    Raises
    ------
    TypeError, ValueError
        No pairs, something else than pairs, pairs that did not all go through a chat template
        alike, or a text that is no string.
    """

    pairs: Sequence[PromptPair]
    neutral: Sequence[PromptPair]
    text: str
    outcomes: Mapping[str, Outcomes] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", as_pairs(self.pairs))
        object.__setattr__(self, "neutral", as_pairs(self.neutral, argument="neutral"))
        if len({pair.chat for pair in self.everything}) > 1:
            raise ValueError(
                "neutral: expected pairs that went through the chat template as those of `pairs` "
                "did, or plain ones beside plain ones; see fairlab.chat_pairs"
            )
        check_string("text", self.text)
        if self.outcomes is None:
            object.__setattr__(self, "outcomes", load_outcomes())
        check_are_outcomes(self.outcomes)

    @property
    def everything(self) -> list[PromptPair]:
        """The demographic pairs, then the neutral ones: the order of every reading."""
        return [*self.pairs, *self.neutral]


@dataclass(frozen=True)
class Reading:
    """What was measured under one cut, of the demographic pairs and then the neutral ones."""

    gap: NDArray  # (pairs,) in nats
    gap_without_pronouns: NDArray  # (pairs,) in nats
    metric: NDArray  # (pairs,) in units of activation; NaN if not measured, or of unequal length
    decision: NDArray  # (pairs,) in nats; NaN where the template has no outcomes
    losses: NDArray  # (tokens,) of the text, in nats
    seconds: NDArray  # how long it took, one number

    @property
    def mean_loss(self) -> float:
        """The mean loss of the text's tokens; perplexity is its exponential."""
        return float(self.losses.mean())


@full_precision()
@halving(2)
def read_cut(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    cut: Change,
    *,
    metric: bool,
    batch_size: int = 32,
    losses: Tensor | None = None,
) -> Reading:
    """Measure what `compare` compares, of a cut model, a gated or a changed one.

    Gaps, the article's metric, decisions and the losses of the text, while a cut, or gates, are in
    place. Losses that are known are not measured.
    """
    with applied(model, cut) as changed:
        return _read(changed, tokenizer, held_out, metric, batch_size, losses)


def _read(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    held_out: HeldOut,
    metric: bool,
    batch_size: int,
    losses: Tensor | None,
) -> Reading:
    """Measure a model as it is."""
    pairs = held_out.everything
    points = article_points(model) if metric else []
    places = len(points) * len(decoder_layers(model))
    pronouns = single_token_ids(tokenizer, PRONOUNS)
    # filled where the model computes, and fetched once at the end
    tables = torch.zeros(3, len(pairs), device=input_device(model))
    gap, gap_without_pronouns, distance = tables
    decision = torch.full((len(pairs),), torch.nan)  # (pairs,), filled on the CPU
    single, longer = _known_outcomes(tokenizer, held_out)
    start = time.perf_counter()

    def visit(point: str, layer: int, batch: PairBatch, values: Tensor) -> None:
        a, b = values[batch.rows_a], values[batch.rows_b]  # (pairs, tokens, width)
        differences = (a - b).abs_().mean(-1)
        distance[batch.pairs_on_device] += (differences * batch.weights).sum(1).float() / places

    def see_next(batch: PairBatch, log_p: Tensor) -> None:
        log_p_without_pronouns = leave_out_tokens(log_p, pronouns)
        numbers = batch.pairs_on_device
        gap[numbers] = divergence(log_p, batch).float()
        gap_without_pronouns[numbers] = divergence(log_p_without_pronouns, batch).float()
        if not single:
            return
        fetched = log_p.cpu()  # once, and not a few numbers for each pair
        columns = (batch.pairs, batch.rows_a, batch.rows_b)
        for number, row_a, row_b in zip(*(column.tolist() for column in columns), strict=True):
            if number in single:
                decision[number] = single[number].gap(fetched[row_a], fetched[row_b]).float()

    options = {"positions": "all", "aligned": False, "batch_size": batch_size}
    run_pairs(model, tokenizer, pairs, points, visit, see_next=see_next, **options)
    gap, gap_without_pronouns, distance = tables.cpu()
    if longer:
        with_longer = [pairs[number] for number in longer]
        options = {"outcomes": held_out.outcomes, "batch_size": batch_size}
        decision[longer] = decision_gap(model, tokenizer, with_longer, **options).float()
    if losses is None:
        losses = token_losses(model, tokenizer, held_out.text)
    if not metric:
        distance += torch.nan
    seconds = np.array(time.perf_counter() - start)
    arrays = (gap, gap_without_pronouns, distance, decision, losses)
    return Reading(*(values.numpy() for values in arrays), seconds)


def _known_outcomes(
    tokenizer: PreTrainedTokenizerBase, held_out: HeldOut
) -> tuple[dict[int, NextTokens], list[int]]:
    """Return the pairs whose template has outcomes, by number: those that the next token settles,
    and those with longer continuations, which need runs of their own."""
    single, longer = {}, []
    for number, pair in enumerate(held_out.everything):
        if pair.template in held_out.outcomes:
            tokens = next_tokens(tokenizer, pair, held_out.outcomes)
            if tokens is None:
                longer.append(number)
            else:
                single[number] = tokens
    return single, longer


class KeptReadings:
    """Readings in a folder, one file a cut, so that a run that was stopped goes on where it was.

    A file that is damaged is measured again, and one that can't be written costs no reading.
    """

    def __init__(self, folder: Path, read: Callable[..., Reading], counts: tuple[int, int]):
        # how many pairs and tokens a reading has
        self.folder, self.read, self.counts = folder, read, counts
        folder.mkdir(parents=True, exist_ok=True)  # what can't be written is told before the work

    def path(self, cut: Change) -> Path:
        """Return the file of a cut's reading, which need not be there."""
        return self.folder / f"{hashlib.sha256(name_of(cut).encode()).hexdigest()[:24]}.npz"

    def __call__(self, cut: Change, **known: Tensor) -> Reading:
        """Return the reading of a cut: from its file, or else measured now, but for what is
        known."""
        path = self.path(cut)
        reading = self._kept(path)
        if reading is None:
            reading = self.read(cut, **known)
            self._keep(path, reading)
        return reading

    def _kept(self, path: Path) -> Reading | None:
        """Return what a file holds; None where it is not there, or damaged."""
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                reading = Reading(**stored)
            _check_reading(reading, *self.counts)
        except Exception as error:  # a damaged archive raises whatever its bytes lead to
            warnings.warn(
                f"a kept reading is damaged and is measured again: {path} ({error!r})", stacklevel=3
            )
            return None
        return reading

    def _keep(self, path: Path, reading: Reading) -> None:
        arrays = {field.name: getattr(reading, field.name) for field in fields(reading)}
        with may_fail("a reading", self.folder), whole_file(path) as file:
            np.savez(file, **arrays)


def _check_reading(reading: Reading, pairs: int, tokens: int) -> None:
    """Raise a ValueError if a kept reading can't be one of so many pairs and tokens."""
    shapes = {field.name: (pairs,) for field in fields(reading)} | {"losses": (tokens,)}
    shapes["seconds"] = ()
    for name, shape in shapes.items():
        values = getattr(reading, name)
        if values.shape != shape or values.dtype.kind != "f":
            raise ValueError(f"{name}: expected floats of the shape {shape}; got {values.shape}")
        # the metric and the decisions are NaN where they are not measured
        if not (np.isfinite(values) | (name in ("metric", "decision"))).all():
            raise ValueError(f"{name}: expected finite numbers")


def cache_key(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, held_out: HeldOut, *, metric: bool
) -> str:
    """Return a short name for all that readings depend on beside the cut.

    The model as it answers now, and the tokens that it is given.
    """
    tokens, outcomes = [], []
    for pair in held_out.everything:
        tokens += [prompt_ids(tokenizer, pair.prompt_a), prompt_ids(tokenizer, pair.prompt_b)]
        # those of its template: the same prompts under another one have others, or none
        lists = held_out.outcomes.get(pair.template)
        outcomes.append(lists and [list(lists.harsher), list(lists.kinder)])
    facts = {
        **facts_of(model, tokens[0]),
        "tokens": tokens,
        "text": tokenizer(held_out.text, verbose=False).input_ids,
        "pronouns": list(single_token_ids(tokenizer, PRONOUNS)),
        "outcomes": outcomes,
        "metric": metric,
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def name_of(cut: Change) -> str:
    """Return what tells a cut, gates or a changed model from all others."""
    if isinstance(cut, PreTrainedModel):
        return json.dumps(facts_of(cut, [0, 1, 2, 3]))
    return cut.to_json()


def facts_of(model: PreTrainedModel, tokens: list[int]) -> dict[str, object]:
    """Return what tells a model, as it answers now to some tokens, from others.

    Weights alone would not tell of hooks, settings, precision or another attention; one answer of
    the model, to the bit, does.
    """
    ids = torch.tensor([tokens], device=input_device(model))  # (1, tokens)
    with full_precision(), torch.no_grad():
        answer = model(input_ids=ids, use_cache=False).logits
    return {
        "versions": [__version__, torch.__version__, transformers.__version__],
        "weights": bits_of(model),
        "answer": _digest(answer),
        "model": [type(model).__name__, str(model.dtype), model.config.to_json_string()],
    }


def bits_of(model: PreTrainedModel) -> str:
    """Return a SHA-256 of all weights: models with the same one are the same to the bit."""
    digest = hashlib.sha256()
    for name, tensor in every_weight(model):
        digest.update(name.encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(_bytes(tensor)).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
