"""Measure the article's cut and its relatives beside their controls, and freeze the table.

    python experiments/controls.py

Six ways to choose neurons, each at 1, 3 and 15 neurons a layer, all scored on pairs whose template
and words are both in the train split (or on the article's own pair), are read on pairs whose
template and words were both held out, each beside 20 random cuts of the same size. Writes
`data/results/controls.csv`. Takes about 20 minutes on 2 CPU cores; a run that was stopped goes on
from `build/controls/`.
"""

import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
import transformers

import fairlab as fl
from fairlab.evaluation.readings import bits_of

ROOT = Path(__file__).resolve().parent.parent
COUNTS = (1, 3, 15)
SEED = 0


def choose(model, tokenizer) -> dict[str, fl.NeuronSelection]:
    """Return the selections by name, "method · count"."""
    train = fl.load_pairs(split="train")
    importance = fl.importance_scores(model, method="maw")
    own = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    article = fl.bias_scores(model, tokenizer, train, method="article")
    optipfair = fl.bias_scores(model, tokenizer, train, method="optipfair")
    repaired = fl.bias_scores(model, tokenizer, train, method="activation")
    scores = {
        "article, own pair": fl.hybrid_scores(own, importance, bias_weight=0.5),
        "article, train pairs": fl.hybrid_scores(article, importance, bias_weight=0.5),
        "optipfair": fl.hybrid_scores(optipfair, importance, bias_weight=0.8),
        "bias alone": fl.hybrid_scores(article, importance, bias_weight=1.0),
        "importance alone": fl.hybrid_scores(article, importance, bias_weight=0.0),
        "repaired hybrid": fl.hybrid_scores(repaired, importance, bias_weight=0.5),
    }
    return {
        f"{method} · {count}": fl.select_neurons(table, count=count, how=method)
        for method, table in scores.items()
        for count in COUNTS
    }


def evaluation_text(tokenizer, part: int) -> str:
    """Return the first (0) or the second (1) 2,048 tokens of the evaluation text.

    On the first part settings were chosen, of guarded cuts and of gates, so what these cost is read
    on the second.
    """
    text = fl.load_text("evaluation")
    return tokenizer.decode(
        tokenizer(text, verbose=False).input_ids[2048 * part : 2048 * (part + 1)]
    )


def damage(model, tokenizer) -> dict[str, torch.Tensor]:
    """Return what tougher random cuts are matched on: Fisher's importance on the calibration
    text."""
    text = fl.load_text("calibration")
    return {"damage": fl.importance_scores(model, method="fisher", tokenizer=tokenizer, text=text)}


def provenance(model) -> dict[str, str]:
    """Return what a frozen row must say of where it comes from."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "model": fl.DEFAULT_MODEL,
        "weights_sha256": bits_of(model),
        "device": f"{model.device}, {model.dtype}",
        "commit": commit.stdout.strip(),
        "versions": f"fairlab {fl.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}",
    }


def freeze(
    model,
    tokenizer,
    cuts: dict[str, fl.NeuronSelection],
    name: str,
    cache: Path,
    *,
    part: int,
    metric: bool = True,
    tougher: Sequence[str] = (),
) -> None:
    """Compare cuts, named "method · count", on the held-out pairs, and write the table.

    Their price is read on this part of the evaluation text. The cuts named in `tougher` also stand
    beside random cuts that are matched on damage.
    """
    groups = [([name for name in cuts if name not in tougher], None)]
    if tougher:
        groups.append((tougher, damage(model, tokenizer)))
    tables, seconds = [], 0.0
    for some, match in groups:
        table = fl.compare(
            model,
            tokenizer,
            {name: cuts[name] for name in some},
            pairs=fl.load_pairs(split="held_out"),
            neutral=fl.load_pairs(split="held_out", kind="neutral"),
            text=evaluation_text(tokenizer, part),
            n_random=20,
            seed=SEED,
            cache=cache,
            metric=metric,
            match=match,
        )
        tables.append(table)
        seconds += table.attrs["seconds"]
    table = pd.concat(tables).set_index("selection").loc[list(cuts)].reset_index()
    table.attrs["seconds"] = seconds
    write(model, table, name)


def write(model, table: pd.DataFrame, name: str) -> None:
    """Write a table of `compare`, its origin in every row, and print what it says."""
    seconds = round(table.attrs["seconds"])
    names = table.pop("selection").str.split(" · ", expand=True)
    table.insert(0, "method", names[0])
    table.insert(1, "count", names[1].astype(int))
    table = table.assign(**provenance(model), seed=SEED, seconds=seconds)
    table.to_csv(ROOT / "data" / name, index=False, float_format="%.6g", lineterminator="\n")
    print(
        table[
            table.category.isin(["headline", "text"]) & (table.measure != "metric")
        ].sentence.to_string()
    )
    print(f"data/{name}: {len(table)} rows, {seconds} s of measuring")


def main() -> None:
    """Measure and freeze the article's cuts."""
    model, tokenizer = fl.load_model()
    cuts = choose(model, tokenizer)
    freeze(model, tokenizer, cuts, "results/controls.csv", ROOT / "build" / "controls", part=0)


if __name__ == "__main__":
    main()
