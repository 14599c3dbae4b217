"""The surgery from a terminal: `fairlab diagnose`, `score`, `prune`, `compare`, `report`.

What a command prints is for people; with `--json` standard output is one strict JSON document and
nothing else. Progress bars and notices go to standard error. Exit codes: 0 done; 2 the input was
refused, with one line that says what was allowed and what came; 1 anything else, with a traceback.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

import fairlab as fl  # loads its modules at first use, so that --help comes at once

DEFAULT = "SmolLM2-135M-Instruct"  # fl.DEFAULT_MODEL, without the wait
Model = Annotated[
    str, Option(help="The default model, a Hub id (org/name), a model folder, or a .gguf file.")
]
Pairs = Annotated[
    str, Option(help="article, all, a category such as race, or a CSV file (see fairlab --help).")
]
Neutral = Annotated[
    str | None, Option(help="CSV file of neutral pairs, the control; fairlab's own without it.")
]
Method = Annotated[
    str,
    Option(
        help="guarded (the causal recipe), article, or bias+importance: activation+maw (score --help)."
    ),
]
Weight = Annotated[float, Option(help="Of the bias score: 0 is importance alone, 1 bias alone.")]
Fraction = Annotated[
    float, Option(help="Share of each layer to cut (of the model with attribution or patching).")
]
Random = Annotated[int, Option(help="Random cuts of the same size to compare with.")]
Seed = Annotated[int, Option(help="Of the random cuts.")]
Table = Annotated[Path | None, Option(help="CSV file to write the whole table to.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, …")]
Dtype = Annotated[str, Option(help="auto, float32, bfloat16, …")]
Force = Annotated[bool, Option("--force", help="Replace an output that exists. An input never is.")]
Json = Annotated[bool, Option("--json", help="Print strict JSON and nothing else.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110},
)


@app.callback()
def _about() -> None:
    """Find, measure and cut the neurons of a language model that react to a demographic word.

    \b
    The whole surgery on the default model:  fairlab prune --out pruned
    Whether it helped, as a page to read:    fairlab report --out report.html
    The article's recipe instead:            add --method article --pairs article

    A CSV file for --pairs has the columns prompt_a and prompt_b, and if you like category,
    template, attribute_a, attribute_b and split. Pairs of the split train choose the neurons, those
    of the split held_out measure; without the column, every third sentence is held out.

    Exit codes: 0 done; 2 the input was refused, with one line that says why; 1 anything else.
    """


@app.command()
def diagnose(
    model: Model = DEFAULT, pairs: Pairs = "all", neutral: Neutral = None, out: Table = None, force: Force = False,
    device: Device = "auto", dtype: Dtype = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Measure the gap between prompts; cut nothing.

    Prints, for each category and for neutral pairs (the control), the mean gap of the next-token
    distributions in nats with its 95 % interval, and the article's mean activation difference.

    \b
    Example: fairlab diagnose --pairs race --out race.csv
    """
    import numpy as np
    import pandas as pd

    from fairlab.capture import available_points, pair_differences
    from fairlab.diagnosis import ARTICLE_POINTS
    from fairlab.statistics import jackknife_interval

    _check_table(out, force, model, pairs, neutral)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    kinds = {
        "demographic": _usable(loaded[1], _pool(pairs), pairs),
        "neutral": _neutral(loaded[1], neutral),
    }
    readings = pd.DataFrame(
        [{"kind": kind, **vars(pair)} for kind, some in kinds.items() for pair in some]
    )
    everything = [pair for some in kinds.values() for pair in some]
    readings["gap"] = fl.next_token_divergence(*loaded, everything).numpy()
    points = [point for point in ARTICLE_POINTS if point in available_points(loaded[0])]
    readings["metric"] = (
        pair_differences(*loaded, everything, points=points, positions="all")[0]
        .mean((1, 2))
        .numpy()
    )
    rows = []
    for (kind, category), part in readings.groupby(["kind", "category"], sort=False):
        gaps, words = part["gap"].to_numpy(), part["attribute_a"] + "/" + part["attribute_b"]
        columns = np.stack([gaps, np.ones(len(gaps))], 1)
        low, high = jackknife_interval(
            columns, lambda s: s[:, 0] / s[:, 1], [list(part["template"]), list(words)]
        )
        row = {
            "kind": kind,
            "category": category,
            "pairs": len(part),
            "templates": part["template"].nunique(),
        }
        rows.append(
            row | {"gap": gaps.mean(), "low": low, "high": high, "metric": part["metric"].mean()}
        )
    text = f"{pd.DataFrame(rows).to_string(index=False)}\n{_measured_in(loaded[0])}"
    facts = {"model": model, "dtype": _dtype(loaded[0]), "categories": rows}
    _tell(facts, as_json, text, readings, out)


@app.command()
def score(
    model: Model = DEFAULT, pairs: Pairs = "all", method: Method = "guarded", bias_weight: Weight = 0.5,
    out: Table = None, force: Force = False, device: Device = "auto", dtype: Dtype = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Rank the neurons: which react, which matter.

    --method guarded, the default, is fairlab.guarded_cut: neurons that cause the gap (attribution),
    less a charge for neutral pairs, over Fisher's importance. --method article is
    fairlab.article_cut.

    Or name a bias score of fairlab.bias_scores (activation, optipfair, …) and, after a plus, an
    importance score of fairlab.importance_scores (maw if none is given); a wrong name gets the list
    of all. The two are combined as hybrid score with --bias-weight; the article weights them 0.5,
    optipfair 0.8. Hybrid scores are scaled within each layer: ranks across layers compare unlike
    units. attribution and patching are guarded as above, and their neurons are ranked over all
    layers. Prints the twenty neurons with the highest score.

    \b
    Example: fairlab score --pairs race --method activation+vow --out scores.csv
    """
    import pandas as pd

    _check_table(out, force, model, pairs)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    tables = _scores(loaded, _chosen_and_held_out(loaded[1], pairs)[0], method, bias_weight)
    index = pd.MultiIndex.from_product(map(range, tables["score"].shape), names=["layer", "neuron"])
    table = pd.DataFrame(
        {name: values.flatten() for name, values in tables.items()}, index
    ).reset_index()
    table = table.sort_values("score", ascending=False, kind="stable")
    top = table.head(20)
    text = f"{top.to_string(index=False)}\n{_measured_in(loaded[0])}"
    facts = {"model": model, "dtype": _dtype(loaded[0]), "top": top.to_dict("records")}
    _tell(facts, as_json, text, table, out)


@app.command()
def prune(
    out: Annotated[Path, Option(help="Folder for the cut model.")], model: Model = DEFAULT, pairs: Pairs = "all",
    method: Method = "guarded", bias_weight: Weight = 0.5, fraction: Fraction = 0.002, force: Force = False,
    device: Device = "auto", dtype: Dtype = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Score, select, cut and save: the whole surgery.

    Writes a model folder that stock transformers loads, with the neurons in selection.json. Whether
    the cut helped is another question: fairlab report.

    \b
    Example: fairlab prune --out pruned
    """
    from fairlab.files import check_output_folder, write_text

    reports = ("README.md", "report.html", "report.json")
    check_output_folder("out", out, beside=reports, force=force, inputs=[model, pairs])
    loaded = fl.load_model(model, device=device, dtype=dtype)
    before = loaded[0].num_parameters()
    selection = _select(
        loaded, _chosen_and_held_out(loaded[1], pairs)[0], method, bias_weight, fraction
    )
    cut = fl.prune(loaded[0], selection, inplace=True)
    fl.save_model(cut, loaded[1], out, force=force)
    write_text(out / "selection.json", selection.to_json())
    facts = {
        "folder": str(out),
        "parameters_before": before,
        "parameters_after": cut.num_parameters(),
    }
    text = f"{selection!r}\n{before:,} parameters before, {cut.num_parameters():,} after; saved in {out}"
    _tell(facts | {"selection": json.loads(selection.to_json())}, as_json, text)


@app.command()
def compare(
    model: Model = DEFAULT, pairs: Pairs = "all", method: Method = "guarded", bias_weight: Weight = 0.5,
    fraction: Fraction = 0.002, neutral: Neutral = None, n_random: Random = 20, seed: Seed = 0, out: Table = None,
    force: Force = False, device: Device = "auto", dtype: Dtype = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Measure the cut beside its controls.

    Chooses on training pairs and measures on held-out ones (with --pairs article: on fairlab's own,
    of all categories), beside random cuts of the same size and neutral pairs. Prints a sentence for
    each measure and category. On a laptop's CPU the default takes several minutes.

    \b
    Example: fairlab compare --pairs race --n-random 10 --out race.csv
    """
    _check_table(out, force, model, pairs, neutral)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    table = _compare(loaded, pairs, method, bias_weight, fraction, neutral, n_random, seed)[0]
    text = "\n".join([*table["sentence"], _measured_in(loaded[0])])
    facts = {
        "model": model,
        "dtype": _dtype(loaded[0]),
        "seed": seed,
        "rows": table.to_dict("records"),
    }
    _tell(facts, as_json, text, table, out)


@app.command()
def report(
    out: Annotated[Path, Option(help="The page, NAME.html; the numbers go to NAME.json.")], model: Model = DEFAULT,
    pairs: Pairs = "all", method: Method = "guarded", bias_weight: Weight = 0.5, fraction: Fraction = 0.002,
    neutral: Neutral = None, n_random: Random = 20, seed: Seed = 0, force: Force = False,
    device: Device = "auto", dtype: Dtype = "auto", as_json: Json = False,
) -> None:  # fmt: skip
    """Compare, and write a page to read.

    It stands alone, with its numbers as strict JSON beside it, and holds verdict, tables, figures,
    texts before and after, limits, method and environment. Prints the verdict.

    \b
    Example: fairlab report --pairs gender --out gender.html
    """
    if out.suffix != ".html":  # before any time is spent
        raise ValueError(f"out: expected a name that ends in .html; got {str(out)!r}")
    for output in (out, out.with_suffix(".json")):
        _check_table(output, force, model, pairs, neutral)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    table, selection, used = _compare(
        loaded, pairs, method, bias_weight, fraction, neutral, n_random, seed
    )
    shown = [
        prompt
        for pair in (used["chosen_on"][0], used["pairs"][0])
        for prompt in (pair.prompt_a, pair.prompt_b)
    ]
    length = 35 + max(len(loaded[1](prompt).input_ids) for prompt in shown)
    before = fl.generate(*loaded, shown, max_length=length)
    with fl.ablate(loaded[0], selection):
        after = fl.generate(*loaded, shown, max_length=length)
    verdict = fl.write_report(
        out, table, selection, model=loaded[0], model_name=model, force=force, **used,
        method={"pairs": pairs, "score": method, "fraction": fraction},
        texts=dict(zip(shown, zip(before, after, strict=True), strict=True)),
    )  # fmt: skip
    files = {"page": str(out), "numbers": str(out.with_suffix(".json"))}
    _tell(
        {"verdict": verdict, **files},
        as_json,
        f"{verdict}\nWritten: {' and '.join(files.values())}",
    )


def main() -> None:
    """Run the command line; a refused input becomes one line on standard error and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print("fairlab: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


def _check_table(out, force, *inputs):
    """Refuse an output file that exists, is an input or can't be written, before any time is
    spent."""
    from fairlab.files import check_output

    if out:
        check_output("out", out, force=force, inputs=inputs)


def _pool(name):
    if name == "article":
        return [fl.ARTICLE_PAIR]
    return (
        fl.read_pairs(name)
        if name.endswith(".csv")
        else fl.load_pairs(None if name == "all" else name)
    )


def _part(pool, split):
    """Return the pairs of which template and words are both of a split."""
    return [pair for pair in pool if pair.split == split and pair.attribute_split in ("", split)]


def _chosen_and_held_out(tokenizer, name):
    """Return the pairs that choose the neurons, and pairs of which neither template nor words are
    among them."""
    pool = _pool(name)
    chosen_on = pool if name == "article" else _part(pool, "train")
    if not chosen_on:
        raise ValueError(
            f"pairs: none of the {len(pool)} pairs of {name} is of the split train: none chooses neurons"
        )
    held_out = fl.load_pairs(split="held_out") if name == "article" else _part(pool, "held_out")
    return _usable(tokenizer, chosen_on, name), _usable(tokenizer, held_out, name)


def _neutral(tokenizer, path):
    return _usable(
        tokenizer,
        fl.read_pairs(path) if path else fl.load_pairs(kind="neutral", split="held_out"),
        path,
    )


def _usable(tokenizer, pairs, name):
    """Refuse a file with pairs that are not valid for the tokenizer; leave those of fairlab's own
    out, and say so."""
    if not pairs:
        return []
    table = fl.check_pairs(tokenizer, pairs)
    wrong = table[~table["valid"]]
    if len(wrong) == len(pairs) or (len(wrong) and str(name).endswith(".csv")):
        first = "; ".join(f"{row.id}: {row.reason}" for row in wrong.head(5).itertuples())
        raise ValueError(
            f"pairs: {len(wrong)} of {len(pairs)} of {name} are not valid for this tokenizer: {first}"
        )
    if len(wrong):
        print(
            f"fairlab: {len(wrong)} of {len(pairs)} pairs left out, not valid for this tokenizer",
            file=sys.stderr,
        )
    return [pair for pair, valid in zip(pairs, table["valid"], strict=True) if valid]


def _neutral_that_choose(tokenizer):
    return _usable(tokenizer, fl.load_pairs(kind="neutral", split="train"), None)


def _calibration_text():
    return fl.load_text("calibration")


def _scores(loaded, pairs, method, bias_weight):
    """Return the tables of a method: its score, and what that is made of."""
    from fairlab.recipes import guarded_tables

    bias_method, _, importance_method = (
        "attribution" if method == "guarded" else method
    ).partition("+")
    if bias_method in ("attribution", "patching"):
        options = {
            "method": bias_method,
            "importance": importance_method or "fisher",
            "text": _calibration_text(),
        }
        return guarded_tables(*loaded, pairs, _neutral_that_choose(loaded[1]), **options)
    bias = fl.bias_scores(*loaded, pairs, method=bias_method)
    options = {
        "method": importance_method or "maw",
        "tokenizer": loaded[1],
        "text": _calibration_text(),
    }
    importance = fl.importance_scores(loaded[0], **options)
    score = fl.hybrid_scores(bias, importance, bias_weight=bias_weight)
    return {"score": score, "bias": bias, "importance": importance}


def _select(loaded, pairs, method, bias_weight, fraction):
    """Choose the neurons by a recipe's name, or by the scores that are named."""
    if method == "guarded":
        neutral, text = _neutral_that_choose(loaded[1]), _calibration_text()
        return fl.guarded_cut(*loaded, pairs, neutral, text=text, fraction=fraction)
    if method == "article":
        return fl.article_cut(*loaded, pairs, fraction=fraction, bias_weight=bias_weight)
    scores = _scores(loaded, pairs, method, bias_weight)
    causal = "neutral" in scores
    note = "guarded" if causal else f"bias weight {bias_weight:g}"
    how, scope = f"{method}, {note}, {len(pairs)} pairs", "model" if causal else "layer"
    return fl.select_neurons(scores["score"], fraction=fraction, scope=scope, how=how)


def _compare(loaded, pairs, method, bias_weight, fraction, neutral, n_random, seed):
    """Return the table of `compare`, the selection, and the pairs that `write_report` wants."""
    chosen_on, held_out = _chosen_and_held_out(loaded[1], pairs)
    if not held_out:
        raise ValueError(
            f"pairs: nothing in {pairs} is held out, and a cut measured on the pairs that chose it looks good by "
            "construction; add sentences, or a column split with train and held_out"
        )
    used = {"chosen_on": chosen_on, "pairs": held_out, "neutral": _neutral(loaded[1], neutral)}
    selection = _select(loaded, chosen_on, method, bias_weight, fraction)
    text = fl.load_text("evaluation")
    text = loaded[1].decode(
        loaded[1](text, verbose=False).input_ids[:2048], skip_special_tokens=True
    )
    measured = {
        "pairs": held_out,
        "neutral": used["neutral"],
        "text": text,
        "n_random": n_random,
        "seed": seed,
    }
    return fl.compare(*loaded, {method: selection}, **measured), selection, used


def _dtype(model):
    return str(model.dtype).removeprefix("torch.")


def _measured_in(model):
    """Name the precision of the numbers, and what half precision does to them."""
    from fairlab.models import HALF_PRECISION_COSTS
    from fairlab.passes import is_half

    return f"Measured in {_dtype(model)}." + f" {HALF_PRECISION_COSTS}" * is_half(model)


def _tell(facts, as_json, text, table=None, out=None):
    if out:
        from fairlab.files import write_text

        write_text(Path(out), table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    if as_json:
        from fairlab.report import plain

        text = json.dumps(plain(facts), allow_nan=False, ensure_ascii=False)
    print(text)


if __name__ == "__main__":
    main()
