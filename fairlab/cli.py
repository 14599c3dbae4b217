"""The surgery from a terminal: `fairlab check`, `diagnose`, `score`, `prune`, `compare`, `report`.

What a command prints is for people; with `--json` standard output is one strict JSON document and
nothing else. Progress bars and notices go to standard error. `_about` lists the exit codes.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

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
        help="guarded (the causal recipe), article, or bias+importance such as "
        "activation+maw (see score --help)."
    ),
]
Weight = Annotated[float, Option(help="Of the bias score: 0 is importance alone, 1 bias alone.")]
Fraction = Annotated[
    float, Option(help="Share of each layer to cut (of the model with attribution or patching).")
]
Random = Annotated[int, Option(help="Random cuts of the same size to compare with.")]
Seed = Annotated[int, Option(help="Of the random cuts.")]
Table = Annotated[Path | None, Option(help="CSV file to write the whole table to.")]
Skip = Annotated[
    bool,
    Option(
        "--skip-invalid", help="Leave out the rows of a file that have problems, and list them."
    ),
]
Device = Annotated[str, Option(help="auto, cpu, cuda, …")]
Dtype = Annotated[str, Option(help="auto, float32, bfloat16, …")]
Force = Annotated[bool, Option("--force", help="Replace an output that exists. An input never is.")]
FailIf = Annotated[
    list[str] | None,
    Option(help='Exit code 3 if this holds, such as "gap>0.02"; give it again for more.'),
]
Json = Annotated[bool, Option("--json", help="Print strict JSON and nothing else.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """Print the version of fairlab and end, where that was asked for."""
    if wanted:
        print(f"fairlab {fl.__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    Option("--version", help="Print the version.", is_eager=True, callback=print_version),
]


@app.callback()
def _about(version: Version = False) -> None:
    """Find, measure and cut the neurons of a language model that react to a demographic word.

    \b
    The whole surgery on the default model:  fairlab prune --out pruned
    Whether it helped, as a page to read:    fairlab report --out report.html
    The article's recipe instead:            add --method article --pairs article

    A CSV file for --pairs has the columns prompt_a and prompt_b, and if you like category,
    template, attribute_a, attribute_b and split. Pairs of the split train choose the neurons, those
    of the split held_out measure; without the column, every third sentence of a category is held
    out. fairlab check mine.csv finds every problem in such a file within seconds.

    Exit codes: 0 done; 2 the input was refused, with one line that says why, or fairlab check found
    problems; 3 done, and a bound of --fail-if holds; 1 anything else.
    """


@app.command()
def check(
    file: Annotated[Path, Argument(help="CSV file of pairs, as a spreadsheet writes it.")],
    model: Model = DEFAULT,
    fix: Annotated[
        Path | None, Option(help="CSV file to write the valid rows to, without surplus blanks.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Find every problem in a file of pairs; load no model, only its tokenizer.

    Prints each problem with the row's number in a spreadsheet (the header is row 1) and a remedy:
    words that the tokenizer splits into unlike numbers of tokens, with words that would fit; blanks
    too many; templates that are not the prompts' sentence; what is there twice; a sentence that is
    both for training and held out. Then notices, which leave a row valid, and how the valid rows
    are split. Exit code 0: every row is valid; 2: there are problems, or the file can't be read.

    \b
    Example: fairlab check mine.csv --fix valid.csv
    """
    from fairlab.checking import fixed_csv, split_counts
    from fairlab.files import write_text
    from fairlab.models import load_tokenizer

    check_output_file(fix, force, file, model, argument="fix")
    checked = fl.check_file(file, tokenizer=load_tokenizer(model))
    if fix:
        write_text(fix, fixed_csv(checked))
    facts = {
        "file": str(file),
        "form": checked.form,
        "rows": len(checked.pairs),
        "valid": len(checked.valid),
        "problems": [facts_of(problem) for problem in checked.problems],
        "notices": [facts_of(problem) for problem in checked.notices],
        "split_by_file": "split" in checked.columns,
        "split": split_counts(checked.valid),
        "fixed": fix and str(fix),
    }
    emit(facts, as_json, check_text(checked, facts))
    if checked.problems:
        raise typer.Exit(2)


@app.command()
def diagnose(
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    neutral: Neutral = None,
    fail_if: FailIf = None,
    out: Table = None,
    force: Force = False,
    skip_invalid: Skip = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Measure the gap between prompts; cut nothing.

    Prints, for each category and for neutral pairs (the control), the mean gap of the next-token
    distributions in nats with its 95 % interval, and the article's mean activation difference; then
    which category has the largest gap, and whether that is more than neutral words have. --out and
    --json have a row for every pair.

    --fail-if takes gap (the mean over categories), largest_gap (that of a category) and neutral_gap
    (the mean over neutral pairs), all in nats, with > or < and a number. Compared is the gap
    itself, whatever its interval is.

    \b
    Example: fairlab diagnose --pairs race --out race.csv
    In a pipeline: fairlab diagnose --model org/name --fail-if "largest_gap>0.05"
    """
    from fairlab.evaluation.readings import bits_of
    from fairlab.report.conditions import failures
    from fairlab.report.page import environment
    from fairlab.report.verdict import diagnosis

    check_output_file(out, force, model, pairs, neutral)
    conditions = read_conditions(fail_if)
    check_pairs_named(pairs, neutral, skip_invalid)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    demographic = load_pool(loaded[1], pairs, skip_invalid)
    neutral_ones = neutral_pairs(loaded[1], neutral, skip_invalid=skip_invalid)
    readings = pair_readings(loaded, demographic, neutral_ones)
    gaps = gap_table(readings)
    words = diagnosis(gaps)
    failed = failures(conditions, diagnosed(readings, gaps))
    facts = {
        "model": model,
        "weights_sha256": bits_of(loaded[0]),
        "dtype": dtype_of(loaded[0]),
        "environment": environment(),
        "sentences": words,
        "failed": failed,
        "categories": gaps.to_dict("records"),
        "pairs": readings.to_dict("records"),
    }
    table = gaps.to_string(index=False)
    text = "\n".join([table, precision_note(loaded[0]), "", *words])
    emit(facts, as_json, text, readings, out)
    end_if_failed(failed)


@app.command()
def score(
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    method: Method = "guarded",
    bias_weight: Weight = 0.5,
    out: Table = None,
    force: Force = False,
    skip_invalid: Skip = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
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

    check_output_file(out, force, model, pairs)
    check_pairs_named(pairs, None, skip_invalid)
    check_choice(method, bias_weight)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    choosing = choosing_and_held_out(loaded[1], pairs, skip_invalid)[0]
    tables = score_tables(loaded, choosing, method, bias_weight)
    index = pd.MultiIndex.from_product(map(range, tables["score"].shape))
    index.names = ["layer", "neuron"]
    columns = {name: values.flatten() for name, values in tables.items()}
    ranking = pd.DataFrame(columns, index).reset_index()
    ranking = ranking.sort_values("score", ascending=False, kind="stable")
    top = ranking.head(20)
    text = f"{top.to_string(index=False)}\n{precision_note(loaded[0])}"
    facts = {"model": model, "dtype": dtype_of(loaded[0]), "top": top.to_dict("records")}
    emit(facts, as_json, text, ranking, out)


@app.command()
def prune(
    out: Annotated[Path, Option(help="Folder for the cut model.")],
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    method: Method = "guarded",
    bias_weight: Weight = 0.5,
    fraction: Fraction = 0.002,
    force: Force = False,
    skip_invalid: Skip = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Score, select, cut and save: the whole surgery.

    Writes a model folder that stock transformers loads, with the neurons in selection.json. Whether
    the cut helped is another question: fairlab report.

    \b
    Example: fairlab prune --out pruned
    """
    from fairlab.files import check_output_folder, write_text

    # selection.json is not among them, since it is written anew
    reports = ("README.md", "report.html", "report.json")
    check_output_folder("out", out, beside=reports, force=force, inputs=[model, pairs])
    check_pairs_named(pairs, None, skip_invalid)
    check_choice(method, bias_weight, fraction)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    before = loaded[0].num_parameters()
    choosing = choosing_and_held_out(loaded[1], pairs, skip_invalid)[0]
    selection = choose_neurons(loaded, choosing, method, bias_weight, fraction)
    cut = fl.prune(loaded[0], selection, inplace=True)
    after = cut.num_parameters()
    fl.save_model(cut, loaded[1], out, force=force)
    write_text(out / "selection.json", selection.to_json())
    facts = {
        "folder": str(out),
        "parameters_before": before,
        "parameters_after": after,
        "selection": json.loads(selection.to_json()),
    }
    parameters = f"{before:,} parameters before, {after:,} after"
    emit(facts, as_json, f"{selection!r}\n{parameters}; saved in {out}")


@app.command()
def compare(
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    method: Method = "guarded",
    bias_weight: Weight = 0.5,
    fraction: Fraction = 0.002,
    neutral: Neutral = None,
    n_random: Random = 20,
    seed: Seed = 0,
    out: Table = None,
    force: Force = False,
    skip_invalid: Skip = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Measure the cut beside its controls.

    Chooses on training pairs and measures on held-out ones (with --pairs article: on fairlab's own,
    of all categories), beside random cuts of the same size and neutral pairs. Prints a sentence for
    each measure and category. On a laptop's CPU the default takes several minutes.

    \b
    Example: fairlab compare --pairs race --n-random 10 --out race.csv
    """
    check_output_file(out, force, model, pairs, neutral)
    check_pairs_named(pairs, neutral, skip_invalid)
    check_choice(method, bias_weight, fraction)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    choosing, held_out = choosing_and_judging(loaded[1], pairs, neutral, skip_invalid)
    selection = choose_neurons(loaded, choosing, method, bias_weight, fraction)
    measured = fl.compare(*loaded, {method: selection}, held_out, n_random=n_random, seed=seed)
    table = measured.table
    text = "\n".join([*table["sentence"], precision_note(loaded[0])])
    facts = {"model": model, "dtype": measured.dtype, "seed": seed}
    emit({**facts, "rows": table.to_dict("records")}, as_json, text, table, out)


@app.command()
def report(
    out: Annotated[Path, Option(help="The page, NAME.html; the numbers go to NAME.json.")],
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    method: Method = "guarded",
    bias_weight: Weight = 0.5,
    fraction: Fraction = 0.002,
    neutral: Neutral = None,
    n_random: Random = 20,
    seed: Seed = 0,
    force: Force = False,
    skip_invalid: Skip = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Compare, and write a page to read.

    It stands alone, with its numbers as strict JSON beside it, and holds verdict, tables, a figure,
    texts before and after, limits, method and environment. Prints the verdict.

    \b
    Example: fairlab report --pairs gender --out gender.html
    """
    # write_report would refuse the same names, but after the minutes that compare takes
    if out.suffix != ".html":
        raise ValueError(f"out: expected a name that ends in .html; got {str(out)!r}")
    numbers = out.with_suffix(".json")
    for output in (out, numbers):
        check_output_file(output, force, model, pairs, neutral)
    check_pairs_named(pairs, neutral, skip_invalid)
    check_choice(method, bias_weight, fraction)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    choosing, held_out = choosing_and_judging(loaded[1], pairs, neutral, skip_invalid)
    selection = choose_neurons(loaded, choosing, method, bias_weight, fraction)
    measured = fl.compare(*loaded, {method: selection}, held_out, n_random=n_random, seed=seed)
    choice = {"pairs": pairs, "score": method, "fraction": fraction}
    if not is_causal(method):  # guarded scores have no weights
        choice["bias weight"] = bias_weight
    verdict = fl.write_report(
        out,
        measured,
        model=loaded[0],
        model_name=model,
        chosen_on=choosing,
        method=choice,
        texts=texts_of(loaded, {method: selection}, [choosing[0], held_out.pairs[0]]),
        force=force,
    )
    facts = {"verdict": verdict, "page": str(out), "numbers": str(numbers)}
    emit(facts, as_json, f"{verdict}\nWritten: {out} and {numbers}")


def main() -> None:
    """Run the command line; a refused input is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that the terminal lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print("fairlab: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


# ---- what can be refused before the model is loaded, which takes longer


def check_pairs_named(pairs, neutral, skip_invalid):
    """Refuse a category or a file that is not there, and a file whose text has problems."""
    from fairlab.checking import is_file_name

    for name in (pairs, neutral):
        if name and (is_file_name(name) or name == neutral):
            checked = fl.check_file(name)
            if not skip_invalid:
                refuse_problems(checked, name)
    if pairs not in ("article", "all") and not is_file_name(pairs):
        fl.load_pairs(pairs)


def check_choice(method, bias_weight, fraction=0.002):
    """Refuse a method that is not known, and numbers out of range."""
    from fairlab import scores
    from fairlab.passes import check_option

    name, _, importance = method.partition("+")
    known = (*scores.DIFFERENCE_METHODS, *scores.CAUSAL_METHODS)
    if "+" not in method:
        known = ("guarded", *known)
    check_option("method", name, known)
    if importance:
        check_option("method", importance, (*scores.WEIGHT_METHODS, "fisher"))
    if not 0 <= bias_weight <= 1:
        raise ValueError(f"bias_weight: expected a number from 0 to 1; got {bias_weight!r}")
    if not 0 < fraction < 1:
        raise ValueError(
            f"fraction: expected a float between 0 and 1 (0.002 is 0.2 %); got {fraction!r}"
        )


def read_conditions(texts):
    """Read the bounds of --fail-if on what is measured without any cut."""
    from fairlab.report.conditions import WITHOUT_A_CHANGE, read_condition

    return [read_condition(text, WITHOUT_A_CHANGE) for text in texts or ()]


def refuse_problems(checked, path):
    """Raise an error that says how many rows of a file have problems, and what to do."""
    if checked.problems:
        raise ValueError(
            f"pairs: {checked.summary} (fairlab check {path} lists them all; "
            "--skip-invalid leaves these rows out)"
        )


# ---- which pairs


def load_pool(tokenizer, name, skip_invalid=False):
    """Return the valid pairs that --pairs names, of all splits."""
    from fairlab.checking import is_file_name

    if is_file_name(name):
        return pairs_of_file(tokenizer, name, skip_invalid)
    if name == "article":
        return valid_pairs(tokenizer, [fl.ARTICLE_PAIR], name)
    return valid_pairs(tokenizer, fl.load_pairs(None if name == "all" else name), name)


def pairs_of_file(tokenizer, path, skip_invalid):
    """Return the pairs of a file; refuse one with problems, or leave these rows out and say so."""
    checked = fl.check_file(path, tokenizer=tokenizer)
    if not skip_invalid:
        refuse_problems(checked, path)
    if not checked.valid:
        raise ValueError(f"pairs: {checked.summary}: no row is left")
    if checked.problems:
        left_out = len(checked.pairs) - len(checked.valid)
        notice = f"{left_out} of {len(checked.pairs)} rows of {path} left out, not valid:"
        print("\n  ".join([f"fairlab: {notice}", *map(str, checked.problems)]), file=sys.stderr)
    return checked.valid


def part_of(pool, split):
    """Return the pairs of which template and words are both of a split."""
    return [pair for pair in pool if pair.split == split and pair.attribute_split in ("", split)]


def choosing_and_held_out(tokenizer, name, skip_invalid):
    """Return the pairs that choose the neurons, and pairs whose template and words do not."""
    pool = load_pool(tokenizer, name, skip_invalid)
    if name == "article":  # a single pair: nothing of it can be held out
        return pool, valid_pairs(tokenizer, fl.load_pairs(split="held_out"), "all")
    choosing, held_out = part_of(pool, "train"), part_of(pool, "held_out")
    if not choosing:
        raise ValueError(
            f"pairs: none of the {len(pool)} pairs of {name} is of the split train, and those "
            "choose the neurons"
        )
    return choosing, held_out


def choosing_and_judging(tokenizer, pairs, neutral, skip_invalid):
    """Return the pairs that choose the neurons, and all that judges the cut."""
    choosing, held_out = choosing_and_held_out(tokenizer, pairs, skip_invalid)
    if not held_out:
        raise ValueError(
            f"pairs: nothing in {pairs} is held out, and a cut measured on the pairs that chose it "
            "looks good by construction; add sentences, or a column split with train and held_out"
        )
    # the start of the text, since every random cut reads it again
    ids = tokenizer(fl.load_text("evaluation"), verbose=False).input_ids[:2048]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    controls = neutral_pairs(tokenizer, neutral, skip_invalid=skip_invalid)
    return choosing, fl.HeldOut(held_out, controls, text)


def neutral_pairs(tokenizer, path, split="held_out", skip_invalid=False):
    """Return the neutral pairs of a file, or fairlab's own of a split."""
    if path:
        return pairs_of_file(tokenizer, path, skip_invalid)
    return valid_pairs(tokenizer, fl.load_pairs(kind="neutral", split=split), "neutral")


def valid_pairs(tokenizer, pairs, name):
    """Return those of fairlab's own pairs that are valid for the tokenizer."""
    table = fl.check_pairs(tokenizer, pairs)
    invalid = table[~table["valid"]]
    if len(invalid) == len(pairs):
        reasons = [f"{row.id}: {row.reason}" for row in invalid.head(5).itertuples()]
        raise ValueError(
            f"pairs: none of {len(pairs)} of {name} is valid for this tokenizer: "
            + "; ".join(reasons)
        )
    if len(invalid):
        notice = f"{len(invalid)} of {len(pairs)} pairs left out, not valid for this tokenizer"
        print(f"fairlab: {notice}", file=sys.stderr)
    return [pair for pair, valid in zip(pairs, table["valid"], strict=True) if valid]


# ---- which neurons


def is_causal(method):
    """Say whether a method asks what causes the gap: its scores are guarded, not hybrid."""
    return method == "guarded" or method.partition("+")[0] in ("attribution", "patching")


def score_tables(loaded, pairs, method, bias_weight):
    """Return the tables of a method: its score, and what that is made of."""
    from fairlab.recipes import guarded_tables

    bias_method, _, importance_method = method.partition("+")
    text = fl.load_text("calibration")
    if is_causal(method):
        return guarded_tables(
            *loaded,
            pairs,
            neutral_pairs(loaded[1], None, split="train"),
            text=text,
            method="attribution" if method == "guarded" else bias_method,
            importance=importance_method or "fisher",
        )
    bias = fl.bias_scores(*loaded, pairs, method=bias_method)
    importance = fl.importance_scores(
        loaded[0], method=importance_method or "maw", tokenizer=loaded[1], text=text
    )
    combined = fl.hybrid_scores(bias, importance, bias_weight=bias_weight)
    return {"score": combined, "bias": bias, "importance": importance}


def choose_neurons(loaded, pairs, method, bias_weight, fraction):
    """Choose the neurons by a recipe's name, or by the scores that are named."""
    if method == "guarded":
        neutral = neutral_pairs(loaded[1], None, split="train")
        text = fl.load_text("calibration")
        return fl.guarded_cut(*loaded, pairs, neutral, text=text, fraction=fraction)
    if method == "article":
        return fl.article_cut(*loaded, pairs, fraction=fraction, bias_weight=bias_weight)
    scores = score_tables(loaded, pairs, method, bias_weight)["score"]  # (layers, neurons)
    # hybrid scores are scaled within each layer, so only causal ones compare across layers
    if is_causal(method):
        how, scope = f"{method}, guarded, {len(pairs)} pairs", "model"
    else:
        how, scope = f"{method}, bias weight {bias_weight:g}, {len(pairs)} pairs", "layer"
    return fl.select_neurons(scores, fraction=fraction, scope=scope, how=how)


# ---- what is measured


def pair_readings(loaded, demographic, neutral):
    """Return the gap and the article's metric of every pair, one row each."""
    import pandas as pd

    from fairlab.capture import pair_differences
    from fairlab.diagnosis import article_points

    pairs = [*demographic, *neutral]
    readings = pd.DataFrame([vars(pair) for pair in pairs])
    kinds = ["demographic"] * len(demographic) + ["neutral"] * len(neutral)
    readings.insert(0, "kind", kinds)
    readings["gap"] = fl.next_token_divergence(*loaded, pairs).numpy()
    points = article_points(loaded[0])
    difference, _ = pair_differences(*loaded, pairs, points=points, positions="all")
    readings["metric"] = difference.mean((1, 2)).numpy()  # over points and layers
    return readings


def gap_table(readings):
    """Return the mean gap of each category with its interval over templates and words."""
    import numpy as np
    import pandas as pd

    from fairlab.statistics import jackknife_interval

    def mean(sums):
        return sums[:, 0] / sums[:, 1]

    rows = []
    for (kind, category), part in readings.groupby(["kind", "category"], sort=False):
        gaps = part["gap"].to_numpy()
        words = part["attribute_a"] + "/" + part["attribute_b"]
        # a mean is a ratio of sums, from which a template or a word can be left out
        columns = np.stack([gaps, np.ones(len(gaps))], 1)  # (pairs, 2)
        low, high = jackknife_interval(columns, mean, [list(part["template"]), list(words)])
        row = {
            "kind": kind,
            "category": category,
            "pairs": len(part),
            "templates": part["template"].nunique(),
            "gap": gaps.mean(),
            "low": low,
            "high": high,
            "metric": part["metric"].mean(),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def diagnosed(readings, gaps):
    """Return the numbers that --fail-if can bound."""
    categories = gaps[gaps["kind"] == "demographic"]["gap"]
    return {
        "gap": categories.mean(),
        "largest_gap": categories.max(),
        "neutral_gap": readings[readings["kind"] == "neutral"]["gap"].mean(),
    }


def texts_of(loaded, selections, pairs):
    """Return what the model writes after the prompts of some pairs: prompt → name → text, "before"
    and under each selection."""
    model, tokenizer = loaded
    prompts = []
    for pair in pairs:
        prompts += [pair.prompt_a, pair.prompt_b]
    # room for 35 new tokens behind the longest prompt
    length = 35 + max(len(tokenizer(prompt).input_ids) for prompt in prompts)
    written = {"before": fl.generate(model, tokenizer, prompts, max_length=length)}
    for name, selection in selections.items():
        with fl.ablate(model, selection):
            written[name] = fl.generate(model, tokenizer, prompts, max_length=length)
    texts = {}
    for number, prompt in enumerate(prompts):
        texts[prompt] = {name: some[number] for name, some in written.items()}
    return texts


def dtype_of(model):
    """Return the name of a model's precision, such as "float32"."""
    return str(model.dtype).removeprefix("torch.")


def precision_note(model):
    """Name the precision of the numbers, and what half precision does to them."""
    from fairlab.models import HALF_PRECISION_COSTS
    from fairlab.passes import is_half

    note = f"Measured in {dtype_of(model)}."
    return f"{note} {HALF_PRECISION_COSTS}" if is_half(model) else note


# ---- what comes out


def facts_of(problem):
    """Return what JSON says of a problem."""
    return {name: getattr(problem, name) for name in ("row", "column", "what", "remedy")}


def counted(number, what):
    """Return a number with its noun: 1 pair, 2 pairs."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def check_text(checked, facts):
    """Return what `fairlab check` prints: problems, notices, and how the valid rows are split."""
    lines = [
        f"{checked.path} ({checked.form}): {facts['valid']} of {facts['rows']} rows are valid."
    ]
    if checked.problems:
        lines += ["", "Problems:", *map(str, checked.problems)]
    if checked.notices:
        lines += ["", "Notices (these rows are valid):", *map(str, checked.notices)]
    how = (
        "as the column split says"
        if facts["split_by_file"]
        else "every third sentence of a category held out"
    )
    lines += ["", f"Split, {how}:"]
    for part in facts["split"]:
        counts = [counted(part[what], what.removesuffix("s")) for what in ("sentences", "pairs")]
        lines.append(f"{part['category']}, {part['split']}: {', '.join(counts)}")
    if facts["fixed"]:
        lines += ["", f"The valid rows, without surplus blanks, are in {facts['fixed']}."]
    return "\n".join(lines)


def check_output_file(out, force, *inputs, argument="out"):
    """Refuse an output that exists, is an input or can't be written, before any time is spent."""
    from fairlab.files import check_output

    if out:
        check_output(argument, out, force=force, inputs=inputs)


def end_if_failed(failed):
    """End with exit code 3 where a bound of --fail-if holds, and say so."""
    for line in failed:
        print(f"fairlab: --fail-if: {line}", file=sys.stderr)
    if failed:
        raise typer.Exit(3)


def emit(facts, as_json, text, table=None, out=None):
    """Print the text, or the facts as JSON; write the table to a file, where one is named.

    Printed first: if the file can't be written after all, what was measured has been seen.
    """
    if as_json:
        from fairlab.report.page import plain

        # a terminal that is not UTF-8 has letters for English alone
        ascii_only = "utf" not in (sys.stdout.encoding or "utf-8").lower()
        text = json.dumps(plain(facts), allow_nan=False, ensure_ascii=ascii_only)
    print(text, flush=True)
    if out:
        from fairlab.files import write_text

        content = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_text(Path(out), content)


if __name__ == "__main__":
    main()
