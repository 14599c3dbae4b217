"""Measure whether the same neurons are chosen across sentences and attributes, and whether a cut
carries over.

    python experiments/shared.py                       # cuts are read on the held-out pairs
    python experiments/shared.py --split validation    # while anything about the measurement can still change

**Overlap.** Sets of 90 neurons, each chosen on training pairs of one attribute, one pair of words
or one sentence, in two ways: by the article's recipe (3 in each layer) and by guarded attribution
(90 of the model). The guard charges nothing for neutral pairs here, or sets of neutral words could
share nothing with others. Two sets that are compared have equally many pairs, in different
sentences. **Transfer.** One cut a category (guarded attribution at its defaults, charged for all
neutral training pairs, 90 neurons), one from all of them; each is read on every category in
sentences and words that chose nothing, beside 20 random cuts.

Writes `data/results/shared.csv`. Takes about a quarter of an hour on one CPU core; a run that was
stopped goes on from `build/shared/`.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from controls import ROOT, evaluation_text, provenance
from scipy.stats import hypergeom
from torch import Tensor
from tqdm import tqdm

import fairlab as fl
from fairlab.behavior import PRONOUNS
from fairlab.evaluation.readings import bits_of
from fairlab.statistics import jackknife_interval

NEURONS = 90  # the article's 0.2 %: 3 of 1,536 in each of 30 layers
PAIRS = 15  # of each set of several words; the rarest have no more in half of the sentences
NEUTRAL_WORDS = {
    "mood 1": ("mood", (0, 1, 2)),
    "mood 2": ("mood", (3, 4, 5)),
    "time": ("time", (0, 1, 2)),
}
N_RANDOM, SEED = 20, 0
GRAMMAR = "gender without pronouns"


def cached(folder: Path, key: object, compute: Callable[[], Tensor]) -> Tensor:
    """Return what was computed before for this key, or compute and keep it."""
    path = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]}.pt"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        torch.save(compute(), part)
        os.replace(part, path)
    return torch.load(path)


def chosen_pairs() -> dict[str, list[fl.PromptPair]]:
    """Return the pairs, by category, of which template and words are both in the train split."""
    found: dict[str, list[fl.PromptPair]] = {}
    for pair in fl.load_pairs(split="train") + fl.load_pairs(kind="neutral", split="train"):
        found.setdefault(pair.category, []).append(pair)
    return found


def score_pairs(
    model, tokenizer, pairs: Sequence[fl.PromptPair], method: str, folder: Path
) -> dict[str, Tensor]:
    """Score each pair alone, by its id: the score of any set of pairs is their mean."""

    def compute() -> Tensor:
        bar = tqdm(pairs, desc=f"{method}, {pairs[0].category}", unit="pair")
        return torch.stack(
            [fl.bias_scores(model, tokenizer, [pair], method=method) for pair in bar]
        )

    tables = cached(folder, [method, [[pair.prompt_a, pair.prompt_b] for pair in pairs]], compute)
    return dict(zip([pair.id for pair in pairs], tables, strict=True))


def neurons_of(selection: fl.NeuronSelection) -> set[tuple[int, int]]:
    """Return the neurons of a selection as a set of (layer, index)."""
    return {(layer, index) for layer, indices in selection.neurons.items() for index in indices}


def by_words(pairs: dict[str, list[fl.PromptPair]]) -> dict[str, list[fl.PromptPair]]:
    """Return the categories of people, and three groups of neutral words that share no word."""
    people = {name: members for name, members in pairs.items() if name not in ("mood", "time")}
    neutral = {}
    for name, (category, places) in NEUTRAL_WORDS.items():
        words = list(dict.fromkeys(pair.attribute_a for pair in pairs[category]))
        neutral[name] = [
            pair for pair in pairs[category] if words.index(pair.attribute_a) in places
        ]
    return people | neutral


def sets_to_compare(
    pairs: dict[str, list[fl.PromptPair]],
) -> Iterator[tuple[str, str, str, list[fl.PromptPair]]]:
    """Yield the comparison, the name of a set, the sentences that it belongs to, and its pairs."""
    templates = list(dict.fromkeys(pair.template for pair in pairs["race"]))
    for name, members in by_words(pairs).items():
        for half, sentences in (("first half", templates[::2]), ("second half", templates[1::2])):
            own = [pair for pair in members if pair.template in sentences]
            yield "attributes", name, half, random.Random(SEED).sample(own, PAIRS)
            for a, b in dict.fromkeys((pair.attribute_a, pair.attribute_b) for pair in own):
                if name in ("race", "mood 1"):
                    yield (
                        "words",
                        f"{a} / {b}",
                        half,
                        [pair for pair in own if pair.attribute_a == a],
                    )
    for template in templates[::2]:
        scene = template.split("{} ")[1].split()[0]
        for name in ("race", "mood 1"):
            yield (
                "sentences",
                f"{name}: {scene}",
                scene,
                [p for p in by_words(pairs)[name] if p.template == template],
            )


def overlaps(comparison: str, sets: list[tuple[str, str, set, bool]], total: int) -> list[dict]:
    """Return one row for each two sets of different sentences, and for other words in the same
    single sentence."""
    chance = hypergeom(total, NEURONS, NEURONS)
    low, high = chance.interval(0.95)
    rows = []
    for (one, here, a, is_neutral), (other, there, b, too) in itertools.combinations(sets, 2):
        kind = ("demographic", "mixed", "neutral")[is_neutral + too]
        if here == there:
            if comparison != "sentences":
                continue
            kind = f"{kind}, same sentence"
        row = {
            "comparison": comparison,
            "words": kind,
            "one": one,
            "other": other,
            "shared": len(a & b),
        }
        rows.append(row | {"chance": chance.mean(), "chance_low": low, "chance_high": high})
    for row in rows:
        if row["words"] == "demographic":
            names = {row["one"], row["other"]}
            line = [
                r["shared"]
                for r in rows
                if r["words"] == "mixed" and names & {r["one"], r["other"]}
            ]
            row |= {"neutral": np.mean(line), "neutral_low": min(line), "neutral_high": max(line)}
    return rows


def overlap_rows(
    tables: dict[str, dict[str, Tensor]], importance: dict[str, Tensor], pairs
) -> list[dict]:
    """Choose the sets by both scores and count what they share."""
    rows = []
    for score in ("article", "attribution"):
        found: dict[str, list[tuple[str, str, set, bool]]] = {}
        for comparison, name, sentences, members in sets_to_compare(pairs):
            mean = torch.stack([tables[score][pair.id] for pair in members]).mean(0)
            if score == "article":
                table = fl.hybrid_scores(mean, importance["maw"], bias_weight=0.5)
                cut = fl.select_neurons(table, count=NEURONS // len(table))
            else:
                cut = fl.select_neurons(
                    fl.guarded_scores(mean, importance["fisher"]), count=NEURONS, scope="model"
                )
            found.setdefault(comparison, []).append(
                (name, sentences, neurons_of(cut), members[0].category in ("mood", "time"))
            )
        for comparison, sets in found.items():
            for row in overlaps(comparison, sets, importance["maw"].numel()):
                rows.append(
                    {"part": "overlap", "score": score, "neurons": NEURONS, "split": "train"} | row
                )
    return rows


def cuts(
    model, tokenizer, tables: dict[str, Tensor], fisher: Tensor, pairs
) -> dict[str, fl.NeuronSelection]:
    """Return the cut of each category, and the one of all; scores as `bias_scores(relative=True)`
    has them."""
    relative = {
        name: torch.stack([tables[pair.id] for pair in members]).mean(0)
        / fl.next_token_divergence(model, tokenizer, members).mean()
        for name, members in pairs.items()
    }
    neutral = (relative["mood"] + relative["time"]) / 2
    people = {name: table for name, table in relative.items() if name not in ("mood", "time")}
    people["all"] = torch.stack(list(people.values())).mean(0)
    return {
        name: fl.select_neurons(
            fl.guarded_scores(table, fisher, neutral=neutral),
            count=NEURONS,
            scope="model",
            how=f"guarded, {name}",
        )
        for name, table in people.items()
    }


def transfer_rows(model, tokenizer, selections, split: str, folder: Path) -> list[dict]:
    """Read every cut on every category, on neutral pairs and on prose, beside random cuts."""
    people = fl.load_pairs(split=split, words="any")
    categories = list(dict.fromkeys(pair.category for pair in people))
    neutral = fl.load_pairs(kind="neutral", split=split, words="any")
    asked = [
        pair for pair in people + neutral if pair.attribute_split == "held_out"
    ]  # also on validation sentences
    grammar = [pair for pair in asked if pair.category == "gender"]
    labels = [pair.category if pair.category in categories else "neutral" for pair in asked] + [
        GRAMMAR
    ] * len(grammar)
    members = {
        name: np.flatnonzero(np.array(labels) == name) for name in [*categories, GRAMMAR, "neutral"]
    }
    templates = np.array([pair.template for pair in asked + grammar])
    words = np.array([f"{pair.attribute_a} / {pair.attribute_b}" for pair in asked + grammar])
    text = evaluation_text(tokenizer, 1)

    def read(cut: fl.NeuronSelection) -> np.ndarray:
        """Return the gap of every pair, then those of gender without pronouns."""

        def compute() -> Tensor:
            with fl.ablate(model, cut):
                gaps = fl.next_token_divergence(model, tokenizer, asked)
                return torch.cat(
                    [gaps, fl.next_token_divergence(model, tokenizer, grammar, leave_out=PRONOUNS)]
                )

        return (
            cached(folder, [cut.to_json(), [[p.prompt_a, p.prompt_b] for p in asked]], compute)
            .double()
            .numpy()
        )

    def perplexity(cut: fl.NeuronSelection) -> float:
        with fl.ablate(model, cut):
            compute = lambda: torch.tensor(fl.perplexity(model, tokenizer, text))  # noqa: E731
            return cached(folder, [cut.to_json(), text], compute).item()

    nothing = fl.NeuronSelection({}, selections["all"].shape)
    before, price = read(nothing), perplexity(nothing)
    after = {name: read(cut) for name, cut in tqdm(selections.items(), desc="cuts", unit="cut")}
    draws = fl.random_selections(selections["all"], N_RANDOM, seed=SEED)
    by_chance = [read(cut) for cut in tqdm(draws, desc="random cuts", unit="cut")]

    def change(reading: np.ndarray, name: str) -> float:
        own = members[name]
        return reading[own].sum() / before[own].sum() - 1

    def row(
        chosen_on: str, read_on: str, terms: list[tuple[str, str, float]], part: str = "transfer"
    ) -> dict:
        """Return a weighted sum of changes (cut, category, weight) with its interval, as `compare`
        does it.

        The interval of a mean of changes (weights that add up to 1) is made on the log scale.
        """
        used = np.concatenate(
            [members[name] for name in dict.fromkeys(name for _, name, _ in terms)]
        )
        shares = np.array([share for _, _, share in terms])
        columns = np.zeros(
            (len(before), 2 * len(terms))
        )  # before and after, a pair of columns for each term
        for number, (cut, name, _) in enumerate(terms):
            own = members[name]
            columns[own, 2 * number], columns[own, 2 * number + 1] = before[own], after[cut][own]
        is_mean = np.isclose(shares.sum(), 1)

        def formula(sums: np.ndarray) -> np.ndarray:
            ratios = (sums[:, 1::2] / sums[:, 0::2]) @ shares
            return np.log(ratios) if is_mean else ratios - shares.sum()

        strata = np.array(labels)[used]
        low, high = jackknife_interval(
            columns[used], formula, [templates[used], words[used]], strata=strata
        )
        if is_mean:
            low, high = np.expm1(low), np.expm1(high)
        value = sum(share * change(after[cut], name) for cut, name, share in terms)
        found = {"part": part, "score": "guarded", "neurons": NEURONS}
        found |= {"chosen_on": chosen_on, "read_on": read_on}
        found |= {"split": split, "change": value, "low": float(low), "high": float(high)}
        return found | {
            "pairs": len(used),
            "templates": len(set(templates[used])),
            "attributes": len(set(words[used])),
        }

    def among_random(value: float, several: Sequence[str]) -> dict:
        """Return the range over random cuts of the mean change of several categories, and a value's
        place in it."""
        drawn = [np.mean([change(reading, name) for name in several]) for reading in by_chance]
        below = sum(other < value for other in drawn)
        return {
            "random_low": min(drawn),
            "random_high": max(drawn),
            "n_random": len(drawn),
            "random_below": below,
        }

    rows = []
    for name, cut in selections.items():
        for category in members:
            cell = row(name, category, [(name, category, 1)])
            cell |= {
                "before": before[members[category]].mean(),
                "after": after[name][members[category]].mean(),
            }
            rows.append(cell | among_random(cell["change"], [category]))
        others = [other for other in categories if other != name]
        rows.append(
            row(
                name,
                "other attributes",
                [(name, other, 1 / len(others)) for other in others],
                "summary",
            )
        )
        rows[-1] |= among_random(rows[-1]["change"], others)
        rows.append(
            {
                "part": "cut",
                "score": "guarded",
                "neurons": NEURONS,
                "split": "train",
                "chosen_on": name,
            }
        )
        rows[-1] |= {
            "read_on": "perplexity",
            "change": perplexity(cut) / price - 1,
            "cut": cut.to_json(),
        }
    n = len(categories)
    own = [(name, name, 1 / n) for name in categories]
    others = [(a, b, 1 / n / (n - 1)) for a, b in itertools.permutations(categories, 2)]
    neutral = [(name, "neutral", 1 / n) for name in categories]
    less = lambda terms: [(cut, name, -share) for cut, name, share in terms]  # noqa: E731
    for label, terms in {
        "own attribute": own,
        "other attributes": others,
        "neutral": neutral,
        "own − other attributes": own + less(others),
        "own − neutral": own + less(neutral),
        "other attributes − neutral": others + less(neutral),
    }.items():
        rows.append(row("mean of cuts", label, terms, "summary"))
        if (
            "−" not in label
        ):  # a difference within a single random cut would be one of categories alone
            rows[-1] |= among_random(
                rows[-1]["change"], ["neutral"] if label == "neutral" else categories
            )
    return rows


def main() -> None:
    """Measure, and write the table with its provenance in every row."""
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
    folder = ROOT / "build" / "shared" / bits_of(model)[:16]
    pairs = chosen_pairs()
    tables: dict[str, dict[str, Tensor]] = {"article": {}, "attribution": {}}
    for method, found in tables.items():
        for members in pairs.values():
            found |= score_pairs(model, tokenizer, members, method, folder)
    text = fl.load_text("calibration")
    fisher = cached(
        folder,
        ["fisher", text],
        lambda: fl.importance_scores(model, method="fisher", tokenizer=tokenizer, text=text),
    )
    rows = overlap_rows(tables, {"maw": fl.importance_scores(model), "fisher": fisher}, pairs)
    rows += transfer_rows(
        model,
        tokenizer,
        cuts(model, tokenizer, tables["attribution"], fisher, pairs),
        split,
        folder,
    )
    table = pd.DataFrame(rows).assign(**provenance(model), seed=SEED)
    path = ROOT / "data" / "results/shared.csv"
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    print(f"{path.relative_to(ROOT)}: {len(table)} rows, cuts read on {split}")


if __name__ == "__main__":
    main()
