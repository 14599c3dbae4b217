"""Measure what cuts do to LAMBADA, BoolQ, CrowS-Pairs and WikiText, and freeze the table.

    FAIRLAB_DATASETS=folder python experiments/benchmarks.py [--only NAME ... | --write]

The original, the article's cut scored on its own pair and on all train pairs, the guarded one of
`tradeoff.py`, and five random cuts of the article's size, through the lm-evaluation-harness. Every
item is kept in `build/benchmarks/`, so a run that was stopped goes on, and processes with different
`--only` share the models. Without it what is missing is measured and `data/results/benchmarks.csv`
is written; with `--write`, from what there is. About ten minutes a model on one CPU core: the
layers run in bfloat16, nearly twice as fast as float32; the head stays in float32, where
log-probabilities keep their digits.
"""

import argparse
import copy
import hashlib
import json
import os
import random
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from frozen import ROOT, provenance

import fairlab as fl
from fairlab.suites import _rows_of

SEED = 0
CACHE = ROOT / "build" / "benchmarks"
FILES = {
    "lambada_openai": "lambada/lambada_openai_test.jsonl",
    "boolq": "boolq/boolq_dev.jsonl",
    "crows_pairs_english": "crows_pairs/crows_pairs_anonymized.csv",
    "wikitext": "wikitext2/wikitext-2-raw-v1_test.txt",
}


def choose(model, tokenizer) -> dict[str, fl.NeuronSelection]:
    """Return the models by name: the empty cut is the original."""
    train = fl.load_pairs(split="train")
    importance = fl.importance_scores(model, method="maw")
    cuts = {"original": fl.NeuronSelection({}, tuple(importance.shape))}
    for name, pairs in {
        "article, own pair": [fl.ARTICLE_PAIR],
        "article, train pairs": train,
    }.items():
        bias = fl.bias_scores(model, tokenizer, pairs, method="article")
        cuts[name] = fl.select_neurons(
            fl.hybrid_scores(bias, importance, bias_weight=0.5), count=3, how=name
        )
    causal = fl.data_path("results/selection_guarded.json").read_text(encoding="utf-8")
    cuts["guarded"] = fl.NeuronSelection.from_json(causal)
    draws = fl.random_selections(cuts["article, own pair"], 5, seed=SEED)
    return cuts | {f"random {number}": draw for number, draw in enumerate(draws, start=1)}


def samples(tokenizer, files: dict[str, Path]) -> dict[str, int | list[int]]:
    """Return which items to run: about 300,000 tokens.

    WikiText: in random order, pages of at most 2,500 tokens until there are 20,000: many short
    pages tell more than four long ones.
    """
    pages = [
        len(tokenizer(row["page"], verbose=False).input_ids)
        for row in _rows_of("wikitext", files["wikitext"])
    ]
    short = [number for number, tokens in enumerate(pages) if tokens <= 2500]
    chosen: list[int] = []
    for number in random.Random(SEED).sample(short, len(short)):
        if sum(pages[other] for other in chosen) < 20_000:
            chosen.append(number)
    return {
        "lambada_openai": 1000,
        "boolq": 1000,
        "crows_pairs_english": 1508,
        "wikitext": sorted(chosen),
    }


def halve(model) -> None:
    """Put all but the head into bfloat16."""
    model.config.tie_word_embeddings = False  # or the harness ties them again
    model.lm_head = copy.deepcopy(model.lm_head)
    model.model.bfloat16()
    model.lm_head.register_forward_pre_hook(lambda head, inputs: (inputs[0].float(),))


def read(model, tokenizer, cut, task, file, wanted, origin, *, measure=True) -> dict | None:
    """Return the items of one model and task, and where they come from: out of the cache, or
    measured, or None."""
    neurons = {layer: list(indices) for layer, indices in cut.neurons.items()}
    known = json.dumps([origin["weights_sha256"], origin["device"], neurons, task, wanted])
    path = CACHE / f"{task}-{hashlib.sha256(known.encode()).hexdigest()[:16]}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    if not measure:
        return None
    start = time.perf_counter()
    with fl.ablate(model, cut):
        table = fl.run_lm_eval(
            model, tokenizer, task, data={task: file}, samples={task: wanted}, batch_size=4
        )
    seconds = round(time.perf_counter() - start)
    result = {"origin": origin, "seconds": seconds, "items": table.attrs["items"]}
    CACHE.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(result), encoding="utf-8")
    os.replace(part, path)
    print(f"{task}: {len(table.attrs['items'])} items in {seconds} s", flush=True)
    return result


def rows_of(name: str, task: str, results: dict[tuple[str, str], dict]) -> pd.DataFrame:
    """Return the metrics of one model and task, and their changes from the original beside those of
    random cuts."""
    result = results[name, task]
    table = fl.summarize_items(result["items"]).assign(
        method=name, **result["origin"], seconds=result["seconds"]
    )
    if name == "original":
        return table
    before = results["original", task]["items"]
    changes = fl.paired_changes(before, result["items"]).rename(
        columns={"low": "change_low", "high": "change_high"}
    )
    changes = changes.drop(columns=["task", "n", "before", "after"])
    drawn = [
        fl.paired_changes(before, other["items"]).change
        for (model, measured), other in results.items()
        if model.startswith("random") and measured == task and model != name
    ]
    if drawn:
        drawn = pd.concat(drawn, axis=1)
        changes["random_low"], changes["random_high"] = drawn.min(axis=1), drawn.max(axis=1)
        changes["random_below"], changes["n_random"] = (
            drawn.lt(changes.change, axis=0).sum(axis=1),
            drawn.shape[1],
        )
    return table.merge(changes, on="metric")


def main() -> None:
    """Measure, and write the table with its provenance in every row."""
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
    options = parser.parse_args()
    folder = os.environ.get("FAIRLAB_DATASETS")
    if not folder:
        parser.error("FAIRLAB_DATASETS is not set: it names the folder with the public data sets")
    files = {task: Path(folder) / name for task, name in FILES.items()}
    model, tokenizer = fl.load_model()
    origin = provenance(model)
    origin["versions"] += f", lm-eval {version('lm-eval')}"
    cuts = choose(model, tokenizer)
    if unknown := set(options.only or ()) - set(cuts):
        parser.error(
            f"--only: expected names among {', '.join(cuts)}; got {', '.join(sorted(unknown))}"
        )
    halve(model)
    origin["device"] = "cpu, torch.bfloat16, head in torch.float32"
    wanted = samples(tokenizer, files)
    results = {}
    for name in options.only or cuts:
        print(name, flush=True)
        for task, file in files.items():
            arguments = (model, tokenizer, cuts[name], task, file, wanted[task], origin)
            result = read(*arguments, measure=not options.write)
            if result:
                results[name, task] = result
    if options.only:
        return
    table = pd.concat([rows_of(name, task, results) for name, task in results], ignore_index=True)
    table.insert(0, "method", table.pop("method"))
    path = ROOT / "data" / "results/benchmarks.csv"
    table.assign(seed=SEED).to_csv(path, index=False, float_format="%.6g", lineterminator="\n")
    print("\n".join((table.method + ": " + table.sentence).dropna()))
    print(f"{path.relative_to(ROOT)}: {len(table)} rows")


if __name__ == "__main__":
    main()
