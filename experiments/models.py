"""Choose cuts, gates and baselines on training and validation pairs, for one model or the other,
and read them once on the test pairs.

    python experiments/models.py [gemma-3-270m] [--validation]

Everything that is read is fixed before: by the recipes of the package, or by a rule that looks at
validation pairs and the first part of the evaluation text alone. The test pairs have sentences and
words that nothing else in the project has; perplexity is read on the second part of the text.

1. `search`: gates by eight ways to score (`WAYS`), with goals, charges and numbers of neurons,
   read on validation pairs. For each number the setting with the lowest headline is taken, among
   those that cost at most `DEAREST` of perplexity and move neutral pairs by at most `NEUTRAL`.
   Their scores are then computed again with the validation pairs among the training pairs.
2. Baselines that touch no neuron, at one layer: concept erasure (LEACE, Belrose et al. 2023) and
   the projection of lesson 08, with layer and strength found on validation pairs by the same rule.
3. All, with the article's cut, the guarded one, balanced and learned gates, on the test pairs,
   beside as many random ones of the same kind.
4. What else changes: gaps of the seven other categories under a guarded cut for one, and whether
   the group can still be read from the last layer.

With `--validation` only the article's cut, the guarded one and the baselines that the rule allows
are read, on validation pairs: what two models can be compared by before the test pairs are opened.

Writes `models_search.csv`, `models.csv` (or `models_validation.csv`), `models_draws.csv` and
`models_else.csv` in `data/results/`; rows of the other model stay. A search that
`models_search.csv` holds is taken from there. Hours on two cores, ten minutes on a GPU.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial

import frozen
import numpy as np
import pandas as pd
import torch
from frozen import categories_of
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

import fairlab as fl
from fairlab.evaluation.chance import random_gates
from fairlab.evaluation.flattening import flattened_gaps, losses_at_scales
from fairlab.evaluation.readings import Reading, read_cut
from fairlab.evaluation.rows import Case, case_tables
from fairlab.gates import table_shape
from fairlab.gating import GateTables, applied, mean_activations, solve_gates
from fairlab.pairs import prompt_ids
from fairlab.passes import text_chunks
from fairlab.scores import attribution_scores, decision_scores, fisher_scores

FRACTIONS = (0.002, 0.006)
GOALS = {0.002: (0.7, 0.9, 1.1), 0.006: (1.2, 1.6, 2.0)}
CHARGES = (0.6, 0.9)
DEAREST = {0.002: 0.01, 0.006: 0.02}  # the highest rise of perplexity that is allowed
NEUTRAL = 0.15  # the largest change of the neutral gap that is allowed, either way
OPENINGS = ("Yesterday: ", "It is known that this happened. ")  # small changes of a prompt
STRENGTHS = (0.25, 0.5, 1.0)  # of the baselines: 1 takes all of it out
N_RANDOM = 10


# ---- ways to score


@dataclass(frozen=True)
class Slopes:
    """Attribution toward the mean, one table of shape (layers, neurons) for each category."""

    by_category: Tensor  # (categories, layers, neurons)
    neutral: Tensor


def slopes(model, tokenizer, mean: Tensor, pairs, neutral) -> Slopes:
    """Score every category by itself, and all neutral pairs together."""
    options = {"relative": True, "toward": mean, "batch_size": batch_size(model)}
    score = partial(attribution_scores, model, tokenizer, **options)
    tables = []
    for category in categories_of(pairs):
        tables.append(score([pair for pair in pairs if pair.category == category]))
    together = [replace(pair, category="neutral") for pair in neutral]
    return Slopes(torch.stack(tables), score(together))


def batch_size(model) -> int:
    """Return how many prompts run together: as many as memory allows."""
    return 32 if model.device.type == "cpu" else 128


def opened(pairs: list[fl.PromptPair], opening: str) -> list[fl.PromptPair]:
    """Put words before both prompts."""
    return [
        replace(pair, prompt_a=opening + pair.prompt_a, prompt_b=opening + pair.prompt_b)
        for pair in pairs
    ]


def decision_share(model, tokenizer, mean: Tensor, pairs) -> Tensor:
    """Return the decision scores as a share of the mean size of the decision gap."""
    scores = decision_scores(model, tokenizer, pairs, toward=mean)
    table = fl.summarize_decisions(pairs, fl.decision_gap(model, tokenizer, pairs))
    return scores / table.gap.abs().mean()


WAYS = (
    "mean",
    "more neutral words",
    "more sentences",
    "more sentences, median",
    "more sentences, worst quarter",
    "more sentences, decision",
    "more sentences, gap and decision",
    "three openings",
)


class Scores:
    """Eight ways to score, each table computed when it is first asked for."""

    def __init__(self, model, tokenizer, pairs, neutral):
        self.model, self.tokenizer = model, tokenizer
        self.pairs, self.neutral = pairs, neutral
        # the extra sentences
        self.more_pairs = [*pairs, *fl.load_pairs(split="extra")]
        self.more_neutral = [*neutral, *fl.load_pairs(split="extra", kind="neutral")]

    def slopes(self, pairs, neutral) -> Slopes:
        """Return the slopes of some pairs."""
        return slopes(self.model, self.tokenizer, self.mean, pairs, neutral)

    @cached_property
    def mean(self) -> Tensor:
        """Toward what the gates lead."""
        return mean_activations(self.model, self.tokenizer, fl.load_text("calibration"))

    @cached_property
    def importance(self) -> Tensor:
        """Fisher's importance of gates toward the mean."""
        text = fl.load_text("calibration")
        return fisher_scores(self.model, self.tokenizer, text, toward=self.mean)

    @cached_property
    def few(self) -> Slopes:
        """Slopes of the pairs themselves."""
        return self.slopes(self.pairs, self.neutral)

    @cached_property
    def many(self) -> Slopes:
        """Slopes with the extra sentences."""
        return self.slopes(self.more_pairs, self.more_neutral)

    @cached_property
    def varied(self) -> list[Slopes]:
        """Slopes with other openings, the prompts as they are among them."""
        varied = [self.few]
        for opening in OPENINGS:
            varied.append(self.slopes(opened(self.pairs, opening), opened(self.neutral, opening)))
        return varied

    @cached_property
    def decision(self) -> Tensor:
        """Decision scores of the pairs with the extra sentences."""
        return decision_share(self.model, self.tokenizer, self.mean, self.more_pairs)

    def table(self, way: str) -> GateTables:
        """Return what `solve_gates` needs."""
        if way == "mean":
            gap, neutral = self.few.by_category.mean(0), self.few.neutral
        elif way == "more neutral words":
            gap, neutral = self.few.by_category.mean(0), self.many.neutral
        elif way == "three openings":
            gap = torch.stack([some.by_category.mean(0) for some in self.varied]).mean(0)
            neutral = torch.stack([some.neutral for some in self.varied]).mean(0)
        else:
            gap, neutral = self.of_many(way.removeprefix("more sentences")), self.many.neutral
        return GateTables(gap, neutral, self.importance, self.mean)

    def of_many(self, way: str) -> Tensor:
        """Return one table from those of the categories, with the extra sentences."""
        if way == ", median":
            return self.many.by_category.median(0).values
        if way == ", worst quarter":
            return self.many.by_category.quantile(0.25, 0)
        if way == ", decision":
            return self.decision
        average = self.many.by_category.mean(0)
        return (average + self.decision) / 2 if way == ", gap and decision" else average


# ---- 1 search on validation pairs


def quick(model, tokenizer, held_out: fl.HeldOut, action: AbstractContextManager) -> dict:
    """Read gaps, neutral gaps, decisions and perplexity under an action."""
    with action:
        reading = frozen.quick_reading(model, tokenizer, held_out)
        gaps = fl.decision_gap(model, tokenizer, held_out.pairs)
    reading["decision"] = fl.summarize_decisions(held_out.pairs, gaps).gap.abs().mean()
    return reading


def changes(held_out: fl.HeldOut, before: dict, after: dict) -> dict[str, float]:
    """Return what a reading changed; of decisions the change of the mean size, in nats."""
    row = frozen.quick_changes(held_out, before, after)
    return {**row, "decision": after["decision"] - before["decision"]}


def search(model, tokenizer, scores: Scores, held_out) -> pd.DataFrame:
    """Read every setting; return a row each. One whose goal can't be reached has none."""
    before = quick(model, tokenizer, held_out, nullcontext())
    rows = []
    settings = [(f, g, c) for f in FRACTIONS for g in GOALS[f] for c in CHARGES]
    for name in WAYS:
        table = scores.table(name)
        for fraction, goal, charge in tqdm(settings, desc=name, unit="setting"):
            count = int(fraction * table.gap.numel())
            setting = {"count": count, "goal": goal, "charge": charge}
            try:
                gates = solve_gates(table, **setting)
            except ValueError as error:  # so many neurons can't reach the goal
                print(error)
                continue
            action = fl.gate(model, gates, table.mean)
            after = quick(model, tokenizer, held_out, action)
            row = {"scores": name, "fraction": fraction, **setting}
            rows.append({**row, **changes(held_out, before, after)})
    return pd.DataFrame(rows)


def best(rows: pd.DataFrame, dearest: float) -> pd.Series | None:
    """Return the row that narrows most of those that the rule allows, if it allows any."""
    allowed = rows[(rows.perplexity <= dearest) & (rows.neutral.abs() <= NEUTRAL)]
    return None if allowed.empty else allowed.loc[allowed.headline.idxmin()]


# ---- 2 baselines that touch no neuron


def last_states(model, tokenizer, prompts: list[str]) -> Tensor:
    """Return what enters each layer, and what leaves the last one, at the last token of each
    prompt: (layers + 1, prompts, hidden), float32."""
    states = []
    for start in range(0, len(prompts), 64):
        ids = [torch.tensor(prompt_ids(tokenizer, p)) for p in prompts[start : start + 64]]
        last = torch.tensor([len(row) - 1 for row in ids])
        rows = nn.utils.rnn.pad_sequence(ids, batch_first=True)  # (prompts, tokens)
        mask = torch.arange(rows.shape[1]) <= last[:, None]
        rows, mask = rows.to(model.device), mask.long().to(model.device)
        with torch.no_grad():
            outputs = model(rows, attention_mask=mask, logits_to_keep=1, output_hidden_states=True)
        hidden = outputs.hidden_states
        picked = [layer[torch.arange(len(ids)), last].float() for layer in hidden]
        states.append(torch.stack(picked))
    return torch.cat(states, 1)


def text_states(model, tokenizer, chunks: int = 12) -> Tensor:
    """Return the same at the tokens of plain text, (layers + 1, tokens, hidden)."""
    states = []
    for chunk in text_chunks(model, tokenizer, fl.load_text("calibration"))[:chunks]:
        ids = torch.tensor([chunk], device=model.device)
        with torch.no_grad():
            outputs = model(ids, logits_to_keep=1, output_hidden_states=True)
        hidden = outputs.hidden_states
        # without the first token, an outlier
        states.append(torch.stack([layer[0, 1:].float() for layer in hidden]))
    return torch.cat(states, 1)


@dataclass(frozen=True)
class States:
    """What the baselines are made of, at every layer."""

    directions: Tensor  # (layers + 1, hidden, categories): mean difference of the two prompts
    text: Tensor  # (layers + 1, tokens, hidden)

    def parts(self, kind: str, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the parts of an eraser: "erasure" (LEACE) or "projection"."""
        return self.parts_of(self.directions[layer], kind, layer)

    def parts_of(self, directions: Tensor, kind: str, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the parts for other directions."""
        return eraser(directions.double(), self.text[layer].double() if kind == "erasure" else None)


def states_of(model, tokenizer, pairs) -> States:
    """Read all states once."""
    a = last_states(model, tokenizer, [pair.prompt_a for pair in pairs])
    b = last_states(model, tokenizer, [pair.prompt_b for pair in pairs])
    columns = []
    for category in categories_of(pairs):
        members = [k for k, pair in enumerate(pairs) if pair.category == category]
        columns.append((a[:, members] - b[:, members]).mean(1))  # (layers + 1, hidden)
    return States(torch.stack(columns, -1), text_states(model, tokenizer))


def eraser(directions: Tensor, states: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return (left, right, mean) of `x − left · right · (x − mean)`, which takes directions out.

    With states S of covariance Σ this is LEACE in closed form: left = D, right = (Dᵀ Σ⁻¹ D)⁻¹ Dᵀ
    Σ⁻¹, so that what is left is uncorrelated with the concept and x moves as little as it can.
    Without states Σ is the identity: the plain projection.
    """
    if states is None:
        inverse = torch.eye(len(directions)).to(directions)
        mean = torch.zeros(len(directions)).to(directions)
    else:
        mean = states.mean(0)
        covariance = torch.cov(states.T)
        # a little of the mean variance keeps the inverse stable
        ridge = 1e-3 * covariance.diagonal().mean() * torch.eye(len(mean)).to(covariance)
        inverse = torch.linalg.inv(covariance + ridge)
    weighted = directions.T @ inverse  # (categories, hidden)
    right = torch.linalg.pinv(weighted @ directions) @ weighted
    return directions, right, mean


@contextmanager
def erased(model, layer: int, parts: tuple[Tensor, Tensor, Tensor], strength: float) -> Iterator:
    """Take directions out of what enters a layer, at every token, inside the block."""
    left, right, mean = (part.to(model.dtype) for part in parts)

    def hook(module, inputs):
        states = inputs[0]  # (rows, tokens, hidden)
        concept = (states - mean) @ right.T  # (rows, tokens, categories)
        return (states - strength * concept @ left.T, *inputs[1:])

    handle = fl.decoder_layers(model)[layer].register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def search_baselines(model, tokenizer, states: States, held_out) -> pd.DataFrame:
    """Read both baselines at every third layer and each strength, on validation pairs."""
    before = quick(model, tokenizer, held_out, nullcontext())
    rows = []
    for layer in tqdm(range(1, len(fl.decoder_layers(model)), 3), desc="baselines", unit="layer"):
        for kind in ("erasure", "projection"):
            parts = states.parts(kind, layer)
            for strength in STRENGTHS:
                after = quick(model, tokenizer, held_out, erased(model, layer, parts, strength))
                row = {"scores": kind, "layer": layer, "strength": strength}
                rows.append({**row, **changes(held_out, before, after)})
    return pd.DataFrame(rows)


# ---- 3 one reading on pairs that chose nothing


@dataclass(frozen=True)
class Method:
    """Something to read, and random ones of the same kind: each makes a context manager."""

    name: str  # "method · number of neurons"
    action: Callable[[], AbstractContextManager]
    random: list[Callable[[], AbstractContextManager]]


def of_neurons(model, name: str, cut, mean: Tensor) -> Method:
    """Return a cut or gates, beside random neurons."""
    if isinstance(cut, fl.NeuronGates):
        toward = None if cut.moves_toward_zero else mean
        drawn = random_gates(cut, N_RANDOM, seed=frozen.SEED, means=toward)
    else:
        drawn = fl.random_selections(cut, N_RANDOM, seed=frozen.SEED)
    actions = [partial(applied, model, other) for other in drawn]
    return Method(f"{name} · {len(cut)}", partial(applied, model, cut), actions)


def of_directions(model, states: States, row: pd.Series) -> Method:
    """Return a baseline, beside random directions of the same number, layer and strength."""
    kind, layer, strength = row.scores, int(row.layer), float(row.strength)
    draw = torch.Generator().manual_seed(frozen.SEED)
    actions = []
    for _ in range(N_RANDOM):
        directions = torch.randn(states.directions[layer].shape, generator=draw)
        parts = states.parts_of(directions.to(model.device), kind, layer)
        actions.append(partial(erased, model, layer, parts, strength))
    name = f"{kind}, layer {layer}, strength {strength:g} · 0"
    own = partial(erased, model, layer, states.parts(kind, layer), strength)
    return Method(name, own, actions)


def read_all(
    model, tokenizer, methods: Iterable[Method], split: str
) -> Iterator[tuple[Method, pd.DataFrame, pd.DataFrame]]:
    """Read every method once on the pairs of a split; yield the tables of `compare`."""
    text = frozen.evaluation_text(tokenizer, part=1)
    pairs = fl.load_pairs(split=split)
    held_out = fl.HeldOut(pairs, fl.load_pairs(split=split, kind="neutral"), text)
    nothing = fl.NeuronSelection({}, table_shape(model))
    read = partial(read_cut, model, tokenizer, held_out, nothing, metric=False)

    def under(action: Callable[[], AbstractContextManager]) -> Reading:
        with action():
            return read()

    losses = losses_at_scales(model, tokenizer, text)  # (tokens, scales)
    before = read(losses=losses[:, 0])
    for method in methods:
        after = under(method.action)
        chance = {"random": [under(action) for action in method.random]}
        price = after.mean_loss - before.mean_loss
        (flattening,) = flattened_gaps(model, tokenizer, pairs, losses, [price], batch_size=32)
        case = Case(method.name, held_out, before, after, chance, flattening)
        table, drawn = case_tables(case)
        print(table[table.row == "headline"].sentence.iloc[0], flush=True)
        yield method, table, drawn


# ---- 4 what else changes


def spill_over(model, tokenizer, pairs, neutral, held_out) -> pd.DataFrame:
    """Choose a guarded cut on each category alone; read the gaps of all, on validation pairs."""
    options = {"fraction": FRACTIONS[0], "batch_size": batch_size(model)}
    before = fl.next_token_divergence(model, tokenizer, held_out.pairs)
    categories = categories_of(held_out.pairs)
    rows = []
    for chosen_on in tqdm(categories, desc="spill-over", unit="category"):
        of_category = [pair for pair in pairs if pair.category == chosen_on]
        cut = fl.guarded_cut(model, tokenizer, of_category, neutral, **options)
        with fl.ablate(model, cut):
            after = fl.next_token_divergence(model, tokenizer, held_out.pairs)
        for category in categories:
            members = [k for k, pair in enumerate(held_out.pairs) if pair.category == category]
            change = (after[members].mean() / before[members].mean() - 1).item()
            rows.append({"what": "spill-over", "method": chosen_on, "category": category})
            rows[-1]["value"] = change
    return pd.DataFrame(rows)


def recognition(model, tokenizer, pairs, held_out, methods: list[Method]) -> pd.DataFrame:
    """Train a probe that reads from the last layer which of the two groups a prompt names, with
    nothing changed and under each method; return its accuracy on validation pairs."""
    rows = []
    plain = Method("original · 0", nullcontext, [])
    for method in tqdm([plain, *methods], desc="recognition", unit="method"):
        halves = []  # of the pairs that train the probe, and of those that test it
        for some in (pairs, held_out.pairs):
            prompts = [pair.prompt_a for pair in some] + [pair.prompt_b for pair in some]
            with method.action():
                states = last_states(model, tokenizer, prompts)[-1].cpu().numpy()
            labels = np.repeat([1, 0], len(some))
            categories = np.array([pair.category for pair in some] * 2)
            halves.append((states, labels, categories))
        (seen, known, groups), (unseen, truth, other_groups) = halves
        for category in categories_of(pairs):
            mine, others = groups == category, other_groups == category
            scale = seen[mine].std(0) + 1e-6
            probe = LogisticRegression(C=0.1, max_iter=2000)
            probe.fit(seen[mine] / scale, known[mine])
            accuracy = probe.score(unseen[others] / scale, truth[others])
            rows.append({"what": "recognition", "method": method.name, "category": category})
            rows[-1]["value"] = accuracy
    return pd.DataFrame(rows)


# ---- all together


def chosen_gates(model, tokenizer, rows: pd.DataFrame, name: str) -> dict[str, fl.NeuronGates]:
    """Apply the rule to each number of neurons, and score again with the validation pairs."""
    pairs = frozen.train_pairs() + fl.load_pairs(split="validation")
    neutral = frozen.train_pairs("neutral") + fl.load_pairs(split="validation", kind="neutral")
    scores = Scores(model, tokenizer, pairs, neutral)
    chosen = {}
    for fraction in FRACTIONS:
        row = best(rows[rows.fraction == fraction], DEAREST[fraction])
        if row is None:
            print(f"{name}: the rule allows no setting of {fraction:.1%}")
            continue
        table = scores.table(row.scores)
        solved = solve_gates(table, count=int(row["count"]), goal=row.goal, charge=row.charge)
        how = f"{row.scores}, goal {row.goal:g}, charge {row.charge:g}"
        gates = fl.NeuronGates.from_tables(solved, table.mean, how=how)
        chosen[f"searched gates, {fraction:.1%}"] = gates
        print(f"{name}: {fraction:.1%} → {how}")
    return chosen


def first_methods(
    model, tokenizer, name: str, rows: pd.DataFrame, states: States
) -> Iterator[Method]:
    """Make the two cuts and the baselines, one after the other."""
    pairs, neutral = frozen.train_pairs(), frozen.train_pairs("neutral")
    mean = torch.zeros(table_shape(model))  # cuts move toward 0
    article = fl.article_cut(model, tokenizer, [fl.ARTICLE_PAIR])
    yield of_neurons(model, "article", article, mean)
    yield of_neurons(model, "guarded", fl.guarded_cut(model, tokenizer, pairs, neutral), mean)
    for kind in ("erasure", "projection"):
        row = best(rows[rows.scores == kind], DEAREST[FRACTIONS[0]])
        if row is None:
            print(f"{name}: the rule allows no {kind}")
        else:
            yield of_directions(model, states, row)


def gate_methods(model, tokenizer, name: str, rows: pd.DataFrame) -> Iterator[Method]:
    """Make the gates, one after the other; training and validation pairs choose them."""
    pairs, neutral = frozen.train_pairs(), frozen.train_pairs("neutral")
    more = pairs + fl.load_pairs(split="validation")
    more_neutral = neutral + fl.load_pairs(split="validation", kind="neutral")
    mean = mean_activations(model, tokenizer, fl.load_text("calibration"))
    chosen = chosen_gates(model, tokenizer, rows, name)
    for title, gates in chosen.items():
        yield of_neurons(model, title, gates, mean)
    start = next(iter(chosen.values()), None)
    try:
        start = fl.balanced_gates(model, tokenizer, more, more_neutral)
        yield of_neurons(model, "balanced gates", start, mean)
    except ValueError as error:  # so many neurons can't reach the goal of the recipe
        print(f"{name}: no balanced gates: {error}")
    if start is not None:
        learned = fl.learned_gates(model, tokenizer, pairs, neutral, start)
        yield of_neurons(model, "learned gates", learned, mean)


def kept_search(name: str) -> pd.DataFrame:
    """Return the rows of the search that the frozen table has of this model."""
    path = frozen.RESULTS / "models_search.csv"
    if not path.is_file():
        return pd.DataFrame()
    table = pd.read_csv(path)
    return table[table.model == name]


def main() -> None:
    """Search, choose, and read the test pairs once."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", default=fl.DEFAULT_MODEL)
    parser.add_argument("--validation", action="store_true", help="do not open the test pairs")
    options = parser.parse_args()
    name = options.name
    start = time.perf_counter()
    model, tokenizer = fl.load_model(name)
    model.requires_grad_(False)
    pairs, neutral = frozen.train_pairs(), frozen.train_pairs("neutral")
    held_out = frozen.validation(tokenizer)
    states = states_of(model, tokenizer, pairs)
    rows = kept_search(name)
    if rows.empty:
        scores = Scores(model, tokenizer, pairs, neutral)
        parts = [search(model, tokenizer, scores, held_out)]
        parts.append(search_baselines(model, tokenizer, states, held_out))
        rows = pd.concat(parts, ignore_index=True)
        frozen.keep_rows(model, name, rows, "models_search.csv")

    made = first_methods(model, tokenizer, name, rows, states)
    file, split = "models_validation", "validation"
    if not options.validation:
        made = itertools.chain(made, gate_methods(model, tokenizer, name, rows))
        file, split = "models", "test"
    methods, parts, draws = [], [], []
    for method, table, drawn in read_all(model, tokenizer, made, split):
        methods.append(method)
        parts.append(frozen.split_names(table))
        shown = drawn.row.isin(["headline", "neutral", "text"])
        draws.append(frozen.split_names(drawn[shown]))
        # kept after each method, since the next one may take long
        seconds = round(time.perf_counter() - start)
        facts = {"seed": frozen.SEED, "seconds": seconds}
        frozen.keep_rows(model, name, pd.concat(parts), f"{file}.csv", **facts)
        if not options.validation:
            frozen.keep_rows(model, name, pd.concat(draws), "models_draws.csv")
    if options.validation:
        return

    others = [spill_over(model, tokenizer, pairs, neutral, held_out)]
    others.append(recognition(model, tokenizer, pairs, held_out, methods))
    frozen.keep_rows(model, name, pd.concat(others), "models_else.csv")


if __name__ == "__main__":
    main()
