"""Measure whether the same neurons are chosen across sentences and attributes, and whether a cut
carries over.

    python experiments/shared.py                       # cuts are read on the held-out pairs
    python experiments/shared.py --split validation    # while the measurement can still change

**Overlap.** Sets of 90 neurons, each chosen on training pairs of one attribute, one pair of words
or one sentence, in two ways: by the article's recipe (3 in each layer) and by guarded attribution
(90 of the model). The guard charges nothing for neutral pairs here, or sets of neutral words could
share nothing with others. Two sets that are compared have equally many pairs, in different
sentences (except race and mood of one sentence, which are compared on purpose). **Transfer.** One
cut a category (guarded attribution at its defaults, charged for all neutral training pairs, 90
neurons), one from all of them; each is read on every category in sentences and words that chose
nothing, beside 20 random cuts.

Writes `data/results/shared.csv`. A run that was stopped goes on from `build/shared/`.
"""

import argparse
import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import frozen
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom
from torch import Tensor
from tqdm import tqdm

import fairlab as fl
from fairlab.behavior import PRONOUNS
from fairlab.evaluation.readings import bits_of
from fairlab.statistics import jackknife_interval

NEURONS = 90  # the article's 0.2 %: 3 of 1,536 in each of 30 layers
PAIRS = 15  # of each set of several words; the rarest have no more in half of the sentences
NEUTRAL = ("mood", "time")
NEUTRAL_WORDS = {
    "mood 1": ("mood", (0, 1, 2)),
    "mood 2": ("mood", (3, 4, 5)),
    "time": ("time", (0, 1, 2)),
}
N_RANDOM = 20
GRAMMAR = "gender without pronouns"

PairsByName = dict[str, list[fl.PromptPair]]
Term = tuple[str, str, float]  # name of a cut, category that it is read on, weight


def kept(folder: Path, key: object, compute: Callable[[], Tensor]) -> Tensor:
    """Return what was computed before for this key, or compute and keep it."""
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    return frozen.kept(folder / f"{name}.pt", compute)


def prompts(pairs: Sequence[fl.PromptPair]) -> list[list[str]]:
    """Return the prompts of pairs, as part of a key."""
    return [[pair.prompt_a, pair.prompt_b] for pair in pairs]


def pairs_by_category() -> PairsByName:
    """Return the pairs that may choose neurons, demographic and neutral."""
    by_category: PairsByName = {}
    for pair in frozen.train_pairs() + frozen.train_pairs("neutral"):
        by_category.setdefault(pair.category, []).append(pair)
    return by_category


def score_pairs(
    model, tokenizer, pairs: Sequence[fl.PromptPair], method: str, folder: Path
) -> dict[str, Tensor]:
    """Score each pair alone, by its id: the score of any set of pairs is their mean."""

    def compute() -> Tensor:
        tables = []
        for pair in tqdm(pairs, desc=f"{method}, {pairs[0].category}", unit="pair"):
            tables.append(fl.bias_scores(model, tokenizer, [pair], method=method))
        return torch.stack(tables)  # (pairs, layers, neurons)

    tables = kept(folder, [method, prompts(pairs)], compute)
    return dict(zip([pair.id for pair in pairs], tables, strict=True))


def mean_score(scores: dict[str, Tensor], pairs: Sequence[fl.PromptPair]) -> Tensor:
    """Return the score of a set of pairs."""
    return torch.stack([scores[pair.id] for pair in pairs]).mean(0)


# --- overlap


@dataclass(frozen=True)
class NeuronSet:
    """Neurons that were chosen on some pairs."""

    name: str
    sentences: str  # which sentences the pairs belong to
    neurons: set[tuple[int, int]]  # (layer, neuron)
    is_neutral: bool


def by_words(pairs: PairsByName) -> PairsByName:
    """Return the demographic categories, and three groups of neutral words that share no word."""
    groups = {name: members for name, members in pairs.items() if name not in NEUTRAL}
    for name, (category, places) in NEUTRAL_WORDS.items():
        words = list(dict.fromkeys(pair.attribute_a for pair in pairs[category]))
        chosen = [words[place] for place in places]
        groups[name] = [pair for pair in pairs[category] if pair.attribute_a in chosen]
    return groups


def sets_to_compare(
    pairs: PairsByName,
) -> Iterator[tuple[str, str, str, list[fl.PromptPair]]]:
    """Yield the comparison, the name of a set, the sentences that it belongs to, and its pairs."""
    groups = by_words(pairs)
    templates = list(dict.fromkeys(pair.template for pair in pairs["race"]))
    halves = {"first half": templates[::2], "second half": templates[1::2]}
    for name, members in groups.items():
        for half, sentences in halves.items():
            in_half = [pair for pair in members if pair.template in sentences]
            yield "attributes", name, half, random.Random(frozen.SEED).sample(in_half, PAIRS)
            if name not in ("race", "mood 1"):
                continue
            for a, b in dict.fromkeys((pair.attribute_a, pair.attribute_b) for pair in in_half):
                of_words = [pair for pair in in_half if pair.attribute_a == a]
                yield "words", f"{a} / {b}", half, of_words
    for template in halves["first half"]:
        scene = template.split("{} ")[1].split()[0]
        for name in ("race", "mood 1"):
            of_sentence = [pair for pair in groups[name] if pair.template == template]
            yield "sentences", f"{name}: {scene}", scene, of_sentence


def overlap_rows(
    tables: dict[str, dict[str, Tensor]], importance: dict[str, Tensor], pairs: PairsByName
) -> list[dict]:
    """Choose the sets by both scores and count what they share."""
    rows = []
    for score in ("article", "attribution"):
        sets: dict[str, list[NeuronSet]] = {}
        for comparison, name, sentences, members in sets_to_compare(pairs):
            neurons = choose(score, mean_score(tables[score], members), importance)
            is_neutral = members[0].category in NEUTRAL
            chosen = NeuronSet(name, sentences, neurons, is_neutral)
            sets.setdefault(comparison, []).append(chosen)
        start = {"part": "overlap", "score": score, "neurons": NEURONS, "split": "train"}
        for comparison, compared in sets.items():
            for row in overlaps(compared, comparison, importance["maw"].numel()):
                rows.append({**start, "comparison": comparison, **row})
    return rows


def choose(score: str, bias: Tensor, importance: dict[str, Tensor]) -> set[tuple[int, int]]:
    """Choose neurons by the article's recipe or by guarded attribution."""
    if score == "article":
        hybrid = fl.hybrid_scores(bias, importance["maw"], bias_weight=0.5)
        cut = fl.select_neurons(hybrid, count=NEURONS // len(hybrid))
    else:
        guarded = fl.guarded_scores(bias, importance["fisher"])
        cut = fl.select_neurons(guarded, count=NEURONS, scope="model")
    neurons = set()
    for layer, indices in cut.neurons.items():
        neurons |= {(layer, index) for index in indices}
    return neurons


def overlaps(sets: list[NeuronSet], comparison: str, total: int) -> list[dict]:
    """Return one row for each two sets of different sentences, and for other words in the same
    single sentence."""
    chance = hypergeom(total, NEURONS, NEURONS)
    low, high = chance.interval(0.95)
    rows = []
    for one, other in itertools.combinations(sets, 2):
        same_sentences = one.sentences == other.sentences
        if same_sentences and comparison != "sentences":
            continue
        words = ("demographic", "mixed", "neutral")[one.is_neutral + other.is_neutral]
        row = {
            "words": f"{words}, same sentence" if same_sentences else words,
            "one": one.name,
            "other": other.name,
            "shared": len(one.neurons & other.neurons),
            "chance": chance.mean(),
            "chance_low": low,
            "chance_high": high,
        }
        rows.append(row)
    for row in rows:
        if row["words"] == "demographic":
            row.update(shared_with_neutral(row, rows))
    return rows


def shared_with_neutral(row: dict, rows: list[dict]) -> dict[str, float]:
    """Return mean and range of what either set of a row shares with neutral sets."""
    names = {row["one"], row["other"]}
    shared = []
    for other in rows:
        if other["words"] == "mixed" and names & {other["one"], other["other"]}:
            shared.append(other["shared"])
    return {"neutral": np.mean(shared), "neutral_low": min(shared), "neutral_high": max(shared)}


# --- transfer


def cuts(
    model, tokenizer, scores: dict[str, Tensor], fisher: Tensor, pairs: PairsByName
) -> dict[str, fl.NeuronSelection]:
    """Return the cut of each category, and the one of all; scores as `bias_scores(relative=True)`
    has them."""
    relative = {}
    for name, members in pairs.items():
        gap = fl.next_token_divergence(model, tokenizer, members).mean()
        relative[name] = mean_score(scores, members) / gap
    neutral = (relative.pop("mood") + relative.pop("time")) / 2
    relative["all"] = torch.stack(list(relative.values())).mean(0)
    selections = {}
    for name, table in relative.items():
        guarded = fl.guarded_scores(table, fisher, neutral=neutral)
        selections[name] = fl.select_neurons(
            guarded, count=NEURONS, scope="model", how=f"guarded, {name}"
        )
    return selections


class Reader:
    """Reads cuts on pairs and on prose; what was read is kept in a folder.

    A reading is an array of gaps: of every pair, then of the gender pairs again without pronouns.
    """

    def __init__(self, model, tokenizer, split: str, folder: Path):
        self.model, self.tokenizer, self.folder = model, tokenizer, folder
        people = fl.load_pairs(split=split, words="any")
        neutral = fl.load_pairs(kind="neutral", split=split, words="any")
        # on validation sentences, too, the words are held-out ones
        self.pairs = [pair for pair in people + neutral if pair.attribute_split == "held_out"]
        self.gender = [pair for pair in self.pairs if pair.category == "gender"]
        self.categories = list(dict.fromkeys(pair.category for pair in people))
        self.text = frozen.evaluation_text(tokenizer, part=1)

    def gaps(self, cut: fl.NeuronSelection) -> NDArray:
        """Return the reading of a cut, in nats."""

        def compute() -> Tensor:
            with fl.ablate(self.model, cut):
                gaps = fl.next_token_divergence(self.model, self.tokenizer, self.pairs)
                without_pronouns = fl.next_token_divergence(
                    self.model, self.tokenizer, self.gender, leave_out=PRONOUNS
                )
            return torch.cat([gaps, without_pronouns])

        key = [cut.to_json(), prompts(self.pairs)]
        return kept(self.folder, key, compute).double().numpy()

    def perplexity(self, cut: fl.NeuronSelection) -> float:
        """Return the perplexity of the text under a cut."""

        def compute() -> Tensor:
            with fl.ablate(self.model, cut):
                return torch.tensor(fl.perplexity(self.model, self.tokenizer, self.text))

        return kept(self.folder, [cut.to_json(), self.text], compute).item()

    def labels(self) -> list[str]:
        """Return what each number of a reading belongs to: a category, "neutral", or `GRAMMAR`."""
        labels = []
        for pair in self.pairs:
            labels.append(pair.category if pair.category in self.categories else "neutral")
        return labels + [GRAMMAR] * len(self.gender)


@dataclass(frozen=True)
class Readings:
    """All readings of the transfer, and what their numbers belong to."""

    split: str
    categories: list[str]
    labels: NDArray  # of each number of a reading, as are the next two
    templates: NDArray
    words: NDArray
    before: NDArray
    after: dict[str, NDArray]  # by the name of the cut
    by_chance: list[NDArray]  # of random cuts

    def members(self, category: str) -> NDArray:
        """Return the places of a category's pairs in a reading."""
        return np.flatnonzero(self.labels == category)

    def change(self, reading: NDArray, category: str) -> float:
        """Return the relative change of a category's mean gap."""
        members = self.members(category)
        return reading[members].sum() / self.before[members].sum() - 1

    def row(self, part: str, chosen_on: str, read_on: str, terms: list[Term]) -> dict:
        """Return a weighted sum of changes with its interval."""
        value = sum(weight * self.change(self.after[cut], name) for cut, name, weight in terms)
        members = self.members_of_terms(terms)
        low, high = self.interval(terms, members)
        return {
            "part": part,
            "score": "guarded",
            "neurons": NEURONS,
            "chosen_on": chosen_on,
            "read_on": read_on,
            "split": self.split,
            "change": value,
            "low": low,
            "high": high,
            "pairs": len(members),
            "templates": len(set(self.templates[members])),
            "attributes": len(set(self.words[members])),
        }

    def members_of_terms(self, terms: list[Term]) -> NDArray:
        """Return the places of all pairs that the terms are about."""
        names = dict.fromkeys(name for _, name, _ in terms)
        return np.concatenate([self.members(name) for name in names])

    def interval(self, terms: list[Term], members: NDArray) -> tuple[float, float]:
        """Return the 95 % interval of a weighted sum of changes, as `compare` does it.

        That of a mean of changes (weights that add up to 1) is made on the log scale.
        """
        weights = np.array([weight for _, _, weight in terms])
        is_mean = np.isclose(weights.sum(), 1)
        # a pair of columns for each term, before and after
        columns = np.zeros((len(self.before), 2 * len(terms)))
        for number, (cut, name, _) in enumerate(terms):
            rows = self.members(name)
            columns[rows, 2 * number] = self.before[rows]
            columns[rows, 2 * number + 1] = self.after[cut][rows]

        def formula(sums: NDArray) -> NDArray:
            ratios = (sums[:, 1::2] / sums[:, 0::2]) @ weights
            return np.log(ratios) if is_mean else ratios - weights.sum()

        clusters = [self.templates[members], self.words[members]]
        strata = self.labels[members]
        ends = jackknife_interval(columns[members], formula, clusters, strata=strata)
        if is_mean:
            ends = np.expm1(ends)
        return float(ends[0]), float(ends[1])

    def among_random(self, value: float, categories: Sequence[str]) -> dict[str, float]:
        """Return the range over random cuts of the mean change of categories, and a value's place
        in it."""
        drawn = []
        for reading in self.by_chance:
            drawn.append(np.mean([self.change(reading, name) for name in categories]))
        return {
            "random_low": min(drawn),
            "random_high": max(drawn),
            "n_random": len(drawn),
            "random_below": sum(other < value for other in drawn),
        }


def transfer_rows(
    model, tokenizer, selections: dict[str, fl.NeuronSelection], split: str, folder: Path
) -> list[dict]:
    """Read every cut on every category, on neutral pairs and on prose, beside random cuts."""
    reader = Reader(model, tokenizer, split, folder)
    readings = read_all(reader, selections, split)
    nothing = fl.NeuronSelection({}, selections["all"].shape)
    perplexity = reader.perplexity(nothing)
    rows = []
    for name, cut in selections.items():
        rows += rows_of_cut(readings, name)
        row = {
            "part": "cut",
            "score": "guarded",
            "neurons": NEURONS,
            "split": "train",
            "chosen_on": name,
            "read_on": "perplexity",
            "change": reader.perplexity(cut) / perplexity - 1,
            "cut": cut.to_json(),
        }
        rows.append(row)
    return rows + mean_rows(readings)


def read_all(reader: Reader, selections: dict[str, fl.NeuronSelection], split: str) -> Readings:
    """Read the uncut model, every cut, and random cuts as large as the one from all categories."""
    before = reader.gaps(fl.NeuronSelection({}, selections["all"].shape))
    after = {}
    for name, cut in tqdm(selections.items(), desc="cuts", unit="cut"):
        after[name] = reader.gaps(cut)
    draws = fl.random_selections(selections["all"], N_RANDOM, seed=frozen.SEED)
    by_chance = [reader.gaps(cut) for cut in tqdm(draws, desc="random cuts", unit="cut")]
    pairs = reader.pairs + reader.gender
    return Readings(
        split=split,
        categories=reader.categories,
        labels=np.array(reader.labels()),
        templates=np.array([pair.template for pair in pairs]),
        words=np.array([f"{pair.attribute_a} / {pair.attribute_b}" for pair in pairs]),
        before=before,
        after=after,
        by_chance=by_chance,
    )


def rows_of_cut(readings: Readings, name: str) -> list[dict]:
    """Return what a cut does to each category, and on average to those that did not choose it."""
    rows = []
    for category in [*readings.categories, GRAMMAR, "neutral"]:
        row = readings.row("transfer", name, category, [(name, category, 1)])
        members = readings.members(category)
        row["before"] = readings.before[members].mean()
        row["after"] = readings.after[name][members].mean()
        row.update(readings.among_random(row["change"], [category]))
        rows.append(row)
    others = [other for other in readings.categories if other != name]
    terms = [(name, other, 1 / len(others)) for other in others]
    row = readings.row("summary", name, "other attributes", terms)
    row.update(readings.among_random(row["change"], others))
    return [*rows, row]


def mean_rows(readings: Readings) -> list[dict]:
    """Return means over the cuts of single categories, and the differences of these means."""
    categories = readings.categories
    n = len(categories)
    own = [(name, name, 1 / n) for name in categories]
    others = [(a, b, 1 / n / (n - 1)) for a, b in itertools.permutations(categories, 2)]
    neutral = [(name, "neutral", 1 / n) for name in categories]
    rows = []
    for read_on, terms, random_on in (
        ("own attribute", own, categories),
        ("other attributes", others, categories),
        ("neutral", neutral, ["neutral"]),
    ):
        row = readings.row("summary", "mean of cuts", read_on, terms)
        row.update(readings.among_random(row["change"], random_on))
        rows.append(row)
    # a random cut has no category of its own, so these differences have no counterpart
    for read_on, terms, less in (
        ("own − other attributes", own, others),
        ("own − neutral", own, neutral),
        ("other attributes − neutral", others, neutral),
    ):
        negative = [(cut, name, -weight) for cut, name, weight in less]
        rows.append(readings.row("summary", "mean of cuts", read_on, terms + negative))
    return rows


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--split",
        choices=("validation", "held_out"),
        default="held_out",
        help="where cuts are read",
    )
    split = parser.parse_args().split
    model, tokenizer = fl.load_model()
    folder = frozen.BUILD / "shared" / bits_of(model)[:16]
    pairs = pairs_by_category()
    tables: dict[str, dict[str, Tensor]] = {"article": {}, "attribution": {}}
    for method, scores in tables.items():
        for members in pairs.values():
            scores.update(score_pairs(model, tokenizer, members, method, folder))
    text = fl.load_text("calibration")
    fisher = kept(
        folder,
        ["fisher", text],
        lambda: fl.importance_scores(model, method="fisher", tokenizer=tokenizer, text=text),
    )
    rows = overlap_rows(tables, {"maw": fl.importance_scores(model), "fisher": fisher}, pairs)
    selections = cuts(model, tokenizer, tables["attribution"], fisher, pairs)
    rows += transfer_rows(model, tokenizer, selections, split, folder)
    table = pd.DataFrame(rows).assign(**frozen.provenance(model), seed=frozen.SEED)
    frozen.write_csv(table, "shared.csv")
    print(f"cuts read on {split}")


if __name__ == "__main__":
    main()
