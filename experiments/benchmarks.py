"""Measure what cuts and gates do to LAMBADA, BoolQ, CrowS-Pairs, WikiText and our small BBQ, and
freeze the table.

    FAIRLAB_DATASETS=folder python experiments/benchmarks.py [--only NAME ... | --write]

The original, the article's cut scored on its own pair and on all train pairs, the guarded one of
`tradeoff.py`, the balanced and the learned gates that `models.py` reads, and as controls five
random cuts of the article's size and five random gates like the learned ones; all of them through
the lm-evaluation-harness, in float32. Every item is kept in `build/benchmarks/`, so a run that was
stopped goes on, and processes with different `--only` share the models. Without it what is missing
is measured and `data/results/benchmarks.csv` is written; with `--write`, from what there is. About
40 seconds a model on a GPU, about a quarter of an hour on one CPU core.
"""

import argparse
import hashlib
import json
import os
import random
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from frozen import ROOT, kept, provenance, train_pairs
from scipy import stats

import fairlab as fl
from fairlab.evaluation.chance import random_gates
from fairlab.gates import table_shape
from fairlab.gating import applied, mean_activations
from fairlab.suites.tasks import read_rows

SEED = 0
CACHE = ROOT / "build" / "benchmarks"
FILES = {
    "lambada_openai": "lambada/lambada_openai_test.jsonl",
    "boolq": "boolq/boolq_dev.jsonl",
    "crows_pairs_english": "crows_pairs/crows_pairs_anonymized.csv",
    "wikitext": "wikitext2/wikitext-2-raw-v1_test.txt",
}
N_RANDOM = 5  # of each kind
Cut = fl.NeuronSelection | fl.NeuronGates


def choose(model, tokenizer) -> dict[str, Cut]:
    """Return the models by name: the empty cut is the original."""
    train = fl.load_pairs(split="train")
    cuts = {"original": fl.NeuronSelection({}, table_shape(model))}
    cuts["article, own pair"] = fl.article_cut(model, tokenizer, [fl.ARTICLE_PAIR])
    cuts["article, train pairs"] = fl.article_cut(model, tokenizer, train)
    guarded = fl.data_path("results/selection_guarded.json").read_text(encoding="utf-8")
    cuts["guarded"] = fl.NeuronSelection.from_json(guarded)
    draws = fl.random_selections(cuts["article, own pair"], N_RANDOM, seed=SEED)
    for number, draw in enumerate(draws, start=1):
        cuts[f"random {number}"] = draw

    balanced, learned, mean = gates(model, tokenizer)
    cuts |= {"balanced gates": balanced, "learned gates": learned}
    toward = None if learned.moves_toward_zero else mean
    draws = random_gates(learned, N_RANDOM, seed=SEED, means=toward)
    for number, draw in enumerate(draws, start=1):
        cuts[f"random gates {number}"] = draw
    return cuts


def gates(model, tokenizer) -> tuple[fl.NeuronGates, fl.NeuronGates, torch.Tensor]:
    """Return the balanced and the learned gates that `models.py` reads, and the mean activations.

    They are kept in `build/benchmarks/`.
    """
    mean = mean_activations(model, tokenizer, fl.load_text("calibration"))
    pairs, neutral = train_pairs(), train_pairs("neutral")

    def balance() -> str:
        more = pairs + fl.load_pairs(split="validation")
        more_neutral = neutral + fl.load_pairs(split="validation", kind="neutral")
        return fl.balanced_gates(model, tokenizer, more, more_neutral).to_json()

    def learn() -> str:
        return fl.learned_gates(model, tokenizer, pairs, neutral, balanced).to_json()

    balanced = fl.NeuronGates.from_json(kept(CACHE / "balanced.pt", balance))
    learned = fl.NeuronGates.from_json(kept(CACHE / "learned.pt", learn))
    return balanced, learned, mean


def samples(tokenizer, files: dict[str, Path]) -> dict[str, int | list[int]]:
    """Return which items to run: about 300,000 tokens.

    WikiText: in random order, pages of at most 2,500 tokens until there are 20,000: many short
    pages tell more than four long ones.
    """
    pages = read_rows("wikitext", files["wikitext"])
    lengths = [len(tokenizer(row["page"], verbose=False).input_ids) for row in pages]
    short = [number for number, length in enumerate(lengths) if length <= 2500]
    chosen, tokens = [], 0
    for number in random.Random(SEED).sample(short, len(short)):
        if tokens < 20_000:
            chosen.append(number)
            tokens += lengths[number]
    return {
        "lambada_openai": 1000,
        "boolq": 1000,
        "crows_pairs_english": 1508,
        "wikitext": sorted(chosen),
        "bbq": len(read_rows("bbq", files["bbq"])),
    }


def cache_file(task: str, chosen: object, cut: Cut, origin: dict) -> Path:
    """Return where the items of one model and task are kept."""
    key = json.dumps([origin["weights_sha256"], origin["device"], cut.to_json(), task, chosen])
    return CACHE / f"{task}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def measure(model, tokenizer, cut, task: str, file: Path, chosen: object) -> dict:
    """Return the items of one model and task, and the seconds that they took."""
    start = time.perf_counter()
    size = 4 if model.device.type == "cpu" else 64
    with applied(model, cut):
        result = fl.run_lm_eval(
            model, tokenizer, task, data={task: file}, samples={task: chosen}, batch_size=size
        )
    seconds = round(time.perf_counter() - start)
    print(f"{task}: {len(result.items)} items in {seconds} s", flush=True)
    return {"seconds": seconds, "items": result.items}


def keep(path: Path, result: dict) -> None:
    """Write a result, complete before it takes its name."""
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    unfinished.write_text(json.dumps(result), encoding="utf-8")
    os.replace(unfinished, path)


def rows_of(name: str, task: str, results: dict[tuple[str, str], dict]) -> pd.DataFrame:
    """Return the metrics of one model and task, and their changes from the original beside those of
    random cuts, or of random gates where it is gates."""
    result = results[name, task]
    table = fl.summarize_items(result["items"])
    if task == "bbq":  # a category has too few questions
        table = table[~table.metric.str.contains(r"_[A-Z]")]
    table = table.assign(method=name, **result["origin"], seconds=result["seconds"])
    if name == "original":
        return table
    before = results["original", task]["items"]
    changes = fl.paired_changes(before, result["items"])
    changes = changes.rename(columns={"low": "change_low", "high": "change_high"})
    changes = changes.drop(columns=["task", "n", "before", "after"])

    drawn = []  # the changes that each of the other random ones brings
    controls = [f"random {number}" for number in range(1, N_RANDOM + 1)]
    if "gates" in name:
        controls = [f"random gates {number}" for number in range(1, N_RANDOM + 1)]
    for (other, other_task), drawn_result in results.items():
        if other in controls and other_task == task and other != name:
            drawn.append(fl.paired_changes(before, drawn_result["items"]).change)
    if drawn:
        drawn = pd.concat(drawn, axis=1)  # (metrics, random cuts)
        changes["random_low"] = drawn.min(axis=1)
        changes["random_high"] = drawn.max(axis=1)
        changes["random_below"] = drawn.lt(changes.change, axis=0).sum(axis=1)
        changes["n_random"] = drawn.shape[1]
    return table.merge(changes, on="metric")


def p_values(table: pd.DataFrame) -> pd.Series:
    """Return a p for every change, NaN for the original: how often chance would go as many standard
    errors from zero as the change does, or McNemar's p where that is larger."""
    ends = table[["change_low", "change", "change_high"]].copy()
    ratio = table.metric.str.contains("perplexity")
    ends.loc[ratio] = np.log1p(ends[ratio])  # these intervals are symmetric as logarithms
    freedom = (table.n - 1).where(table.task != "bbq", 14)  # BBQ: fifteen scenes
    # the interval reaches t standard errors to either side
    error = (ends.change_high - ends.change_low) / 2 / stats.t.ppf(0.975, freedom)
    by_interval = 2 * stats.t.sf((ends.change / error).abs(), freedom)  # both tails
    return np.fmax(by_interval, table.p)  # the other one where one of the two is missing


def read_options() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Return the options, and the parser, which says what is wrong with them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--only", action="append", metavar="NAME", help="measure this model alone; write no table"
    )
    group.add_argument(
        "--write", action="store_true", help="measure nothing; write the table from what there is"
    )
    return parser.parse_args(), parser


def write_table(results: dict[tuple[str, str], dict]) -> None:
    """Write the table, with its provenance in every row."""
    table = pd.concat([rows_of(name, task, results) for name, task in results], ignore_index=True)
    table.insert(0, "method", table.pop("method"))
    table["p_all"] = p_values(table)
    path = ROOT / "data" / "results/benchmarks.csv"
    table.assign(seed=SEED).to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    print("\n".join((table.method + ": " + table.sentence).dropna()))
    print(f"{path.relative_to(ROOT)}: {len(table)} rows")


def main() -> None:
    """Measure what is missing, and write the table."""
    options, parser = read_options()
    folder = os.environ.get("FAIRLAB_DATASETS")
    if not folder:
        parser.error("FAIRLAB_DATASETS is not set: it names the folder with the public data sets")
    files = {task: Path(folder) / name for task, name in FILES.items()}
    files["bbq"] = fl.data_path("suites/mini_bbq.jsonl")
    model, tokenizer = fl.load_model()
    origin = provenance(model)
    origin["versions"] += f", lm-eval {version('lm-eval')}"
    cuts = choose(model, tokenizer)
    unknown = sorted(set(options.only or ()) - set(cuts))
    if unknown:
        parser.error(f"--only: expected names among {', '.join(cuts)}; got {', '.join(unknown)}")
    chosen = samples(tokenizer, files)

    results = {}
    for name in options.only or cuts:
        print(name, flush=True)
        for task, file in files.items():
            path = cache_file(task, chosen[task], cuts[name], origin)
            if not path.is_file() and not options.write:
                result = measure(model, tokenizer, cuts[name], task, file, chosen[task])
                keep(path, {"origin": origin, **result})
            if path.is_file():
                results[name, task] = json.loads(path.read_text(encoding="utf-8"))
    if not options.only:
        write_table(results)


if __name__ == "__main__":
    main()
