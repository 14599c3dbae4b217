"""The surgery from a terminal: `fairlab check`, `diagnose`, `score`, `prune`, `compare`, `report`;
`fairlab cache` for what they keep.

What a command prints is for people; with `--json` standard output is one strict JSON document and
nothing else. Progress bars and notices go to standard error. `_about` lists the exit codes.
"""

import functools
import json
import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

import fairlab as fl  # loads its modules at first use, so that --help comes at once

DEFAULT = "SmolLM2-135M-Instruct"  # fl.DEFAULT_MODEL, without the wait


def named_method(method: str | None) -> str | None:
    """Return what is asked for by --method, with the name of the recipe that is recommended."""
    return method and method.replace("recommended", "guarded")


Model = Annotated[
    str, Option(help="The default model, a Hub id (org/name), a model folder, or a .gguf file.")
]
Pairs = Annotated[
    str, Option(help="article, all, a category such as race, or a CSV file (see fairlab --help).")
]
Neutral = Annotated[
    str | None,
    Option(
        help="CSV file of neutral pairs, the control. Without it fairlab's own, or, for pairs from "
        "a file, neutral words in their own sentences."
    ),
]
NeutralWords = Annotated[
    str | None,
    Option(help='Neutral words to put there instead of ours, such as "tired/hungry, calm/happy".'),
]
Language = Annotated[
    str,
    Option(
        help="Of the pairs: en, de, fr or es, for neutral words and texts. For another one give "
        "--neutral and --text."
    ),
]
Text = Annotated[
    Path | None, Option(help="Text file of plain prose for the perplexity; fairlab's without it.")
]
Method = Annotated[
    str,
    Option(
        help="guarded (the causal recipe, also called recommended), article, or bias+importance "
        "such as activation+maw (see score --help).",
        callback=named_method,
    ),
]
Methods = Annotated[
    str | None,
    Option(
        "--method",
        help="One or several, with commas: guarded (without this option), article, random (a "
        "random cut, for comparison), or bias+importance (see score --help).",
        callback=named_method,
    ),
]
Given = Annotated[
    Path | None,
    Option("--selection", help="Judge this cut, a selection.json; choose none."),
]
Changed = Annotated[
    str | None,
    Option(help="Judge this changed model (pruned, fine-tuned, …) against --model; choose none."),
]
Weight = Annotated[float, Option(help="Of the bias score: 0 is importance alone, 1 bias alone.")]
Fraction = Annotated[
    float, Option(help="Share of each layer to cut (of the model with attribution or patching).")
]
Random = Annotated[int, Option(help="Random cuts of the same size to compare with.")]
Seed = Annotated[int, Option(help="Of the random cuts.")]
Cache = Annotated[
    Path | None,
    Option(
        help="Folder that keeps what was measured, so that a run that was stopped goes on; one "
        "in your cache folder without this option (see fairlab cache)."
    ),
]
NoCache = Annotated[bool, Option("--no-cache", help="Keep nothing of what was measured.")]
Quick = Annotated[
    bool,
    Option("--quick", help="A first look: at most 5 random cuts, a short text, no article metric."),
]
BatchSize = Annotated[int, Option(help="Prompts in a forward pass; fewer need less memory.")]
Table = Annotated[Path | None, Option(help="CSV file to write the whole table to.")]
Skip = Annotated[
    bool,
    Option(
        "--skip-invalid", help="Leave out the rows of a file that have problems, and list them."
    ),
]
Chat = Annotated[
    str | None,
    Option(
        help="Put prompts through the model's chat template: answer (a prompt begins the model's "
        "answer; for unfinished sentences) or message (it is the user's; for questions)."
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
    problems; 3 done, and a bound of --fail-if holds; 130 you stopped it; 1 anything else.
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
    blanks too many; templates that are not the prompts' sentence; what is there twice; a sentence
    that is both for training and held out. Then notices, which leave a row valid: words that the
    tokenizer splits into unlike numbers of tokens (names often are; their gap is measured, but
    scores that compare token by token refuse them), with words that would fit. Last, how the valid
    rows are split. Exit code 0: every row is valid; 2: there are problems, or the file can't be
    read.

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
    neutral_words: NeutralWords = None,
    language: Language = "en",
    fail_if: FailIf = None,
    out: Table = None,
    force: Force = False,
    skip_invalid: Skip = False,
    chat: Chat = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Measure the gap between prompts; cut nothing.

    Prints, for each category and for neutral pairs (the control), the mean gap of the next-token
    distributions in nats with its 95 % interval, and the article's mean activation difference (of
    the pairs whose two prompts have the same number of tokens); then which category has the largest
    gap, and whether that is more than neutral words have. --out and --json have a row for every
    pair.

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
    check_batch_size(batch_size)
    control = Control(pairs, neutral, neutral_words, language, skip_invalid, chat)
    check_pairs_named(pairs, control, skip_invalid)
    check_chat(chat, model)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    demographic = load_pool(loaded[1], control)
    neutral_ones = neutral_pairs(loaded[1], control, demographic)
    readings = pair_readings(loaded, demographic, neutral_ones, batch_size)
    gaps = gap_table(readings)
    words = diagnosis(gaps)
    failed = failures(conditions, diagnosed(readings, gaps))
    facts = {
        "model": model,
        "weights_sha256": bits_of(loaded[0]),
        "dtype": dtype_of(loaded[0]),
        "environment": environment(),
        "neutral pairs": control.neutral_name,
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
    neutral: Neutral = None,
    neutral_words: NeutralWords = None,
    language: Language = "en",
    out: Table = None,
    force: Force = False,
    skip_invalid: Skip = False,
    chat: Chat = None,
    batch_size: BatchSize = 32,
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

    control = Control(pairs, neutral, neutral_words, language, skip_invalid, chat)
    check_output_file(out, force, model, pairs, neutral)
    check_pairs_named(pairs, control, skip_invalid)
    check_chat(chat, model)
    check_choice(method, bias_weight)
    check_batch_size(batch_size)
    loaded = fl.load_model(model, device=device, dtype=dtype)
    choosing = choosing_and_held_out(loaded[1], control)[0]
    choosing = pairs_for(loaded[1], choosing, method)
    tables = score_tables(loaded, choosing, method, bias_weight, control, batch_size)
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
    report: Annotated[
        Path | None,
        Option(help="Also compare the cut with its controls, and write this page, NAME.html."),
    ] = None,
    card: Annotated[
        bool, Option("--card", help="With --report: also write the model card, README.md.")
    ] = False,
    license: Annotated[
        str | None, Option(help="Of the model, for the card; by default what its own card says.")
    ] = None,
    base_model: Annotated[
        str | None, Option(help="The model's id on the Hub, for the card of a local folder.")
    ] = None,
    neutral: Neutral = None,
    neutral_words: NeutralWords = None,
    language: Language = "en",
    text: Text = None,
    n_random: Random = 20,
    seed: Seed = 0,
    quick: Quick = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    force: Force = False,
    skip_invalid: Skip = False,
    chat: Chat = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Score, select, cut and save: the whole surgery.

    Writes a model folder that stock transformers loads, with the neurons in selection.json, in the
    dtype of the original (or of --dtype). Whether the cut helped is another question: --report
    answers it in the same run, before the model is cut. The options from --text to --no-cache are
    for that, as in fairlab report.

    \b
    Example: fairlab prune --out pruned --report pruned/report.html --card
    """
    from fairlab.files import check_output_folder, write_text
    from fairlab.models import stored_dtype

    # selection.json is not among them, since it is written anew
    reports = ("README.md", "report.html", "report.json")
    check_output_folder("out", out, beside=reports, force=force, inputs=[model, pairs, neutral])
    terms = {"license": license, "base_model": base_model}
    check_prune_reports(out, report, card, terms, force, [model, pairs, neutral, text])
    control = Control(pairs, neutral, neutral_words, language, skip_invalid, chat, text)
    check_pairs_named(pairs, control, skip_invalid)
    check_chat(chat, model)
    check_choice(method, bias_weight, fraction)
    check_batch_size(batch_size)
    plan = report and Plan(
        method, bias_weight, fraction, n_random, seed, quick, batch_size, cache, no_cache,
        control=control,
    )  # fmt: skip
    facts = {"folder": str(out)}
    with told_if_stopped(plan and plan.cache):
        loaded = fl.load_model(model, device=device, dtype=dtype)
        facts["parameters_before"] = loaded[0].num_parameters()
        if report:
            choosing, held_out = choosing_and_judging(loaded[1], control)
            measured = carry_out(plan, loaded, choosing, held_out)
            selection = measured.selections[method]
            facts["verdict"] = write_page(
                report, measured, plan, loaded, model, pairs, choosing, force
            )
        else:
            choosing = choosing_and_held_out(loaded[1], control)[0]
            choosing = pairs_for(loaded[1], choosing, method)
            choice = (method, bias_weight, fraction, batch_size, control)
            selection = choose_neurons(loaded, choosing, *choice)
    cut = fl.prune(loaded[0], selection, inplace=True)
    facts["parameters_after"] = cut.num_parameters()
    if dtype == "auto":  # measured in float32 where it fits, but stored as it came
        cut = cut.to(stored_dtype(model))
    facts |= {"dtype": dtype_of(cut), "selection": json.loads(selection.to_json())}
    fl.save_model(cut, loaded[1], out, force=force)
    write_text(out / "selection.json", selection.to_json())
    if card:
        write_text(out / "README.md", str(fl.model_card(report.with_suffix(".json"), **terms)))
    emit(facts, as_json, prune_text(facts, selection, report))


@app.command()
def compare(
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    method: Methods = None,
    bias_weight: Weight = 0.5,
    fraction: Fraction = 0.002,
    selection: Given = None,
    changed: Changed = None,
    neutral: Neutral = None,
    neutral_words: NeutralWords = None,
    language: Language = "en",
    text: Text = None,
    n_random: Random = 20,
    seed: Seed = 0,
    quick: Quick = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    fail_if: FailIf = None,
    out: Table = None,
    force: Force = False,
    skip_invalid: Skip = False,
    chat: Chat = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Measure cuts beside their controls.

    Chooses on training pairs and measures on held-out ones (with --pairs article: on fairlab's own,
    of all categories), beside random cuts of the same size and neutral pairs. Several methods share
    the random cuts. Prints a sentence for each measure and category. On a laptop's CPU the default
    takes several minutes. Stopped (Ctrl-C) and started again, it goes on where it was.

    With --selection it judges a cut that is there, with --changed any changed model. A changed
    model has random cuts beside it where its folder holds a selection.json of fairlab prune.

    --fail-if takes gap, largest_gap, neutral_gap and decision (in nats, of the changed model),
    gap_change, neutral_change and perplexity_change (shares: -0.1 is 10 % less) and decision_change
    (nats), with > or < and a number; it looks at the value itself, whatever its interval is.

    \b
    Example: fairlab compare --pairs race --method guarded,article,random --out race.csv
    """
    check_output_file(out, force, model, pairs, neutral, selection, changed, text)
    conditions = read_conditions(fail_if, of_a_change=True)
    control = Control(pairs, neutral, neutral_words, language, skip_invalid, chat, text)
    check_pairs_named(pairs, control, skip_invalid)
    check_chat(chat, model)
    plan = Plan(
        method, bias_weight, fraction, n_random, seed, quick, batch_size, cache, no_cache,
        selection, changed, control=control,
    )  # fmt: skip
    with told_if_stopped(plan.cache):
        loaded = fl.load_model(model, device=device, dtype=dtype)
        judging = choosing_and_judging(loaded[1], control, plan.chooses)
        measured = carry_out(plan, loaded, *judging)
    table = measured.table
    notes = [precision_note(loaded[0]), *[QUICK_LOOK] * quick]
    failed = failed_of_each(conditions, table)
    facts = {"model": model, "dtype": measured.dtype, "seed": seed, "quick": quick}
    facts |= control.facts | {"failed": failed, "rows": table.to_dict("records")}
    emit(facts, as_json, "\n".join([*table["sentence"], *notes]), table, out)
    end_if_failed(failed)


@app.command()
def report(
    out: Annotated[Path, Option(help="The page, NAME.html; the numbers go to NAME.json.")],
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    method: Methods = None,
    bias_weight: Weight = 0.5,
    fraction: Fraction = 0.002,
    selection: Given = None,
    changed: Changed = None,
    neutral: Neutral = None,
    neutral_words: NeutralWords = None,
    language: Language = "en",
    text: Text = None,
    n_random: Random = 20,
    seed: Seed = 0,
    quick: Quick = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    fail_if: FailIf = None,
    force: Force = False,
    skip_invalid: Skip = False,
    chat: Chat = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Compare, and write a page to read.

    It stands alone, with its numbers as strict JSON beside it, and holds verdict, tables, a figure,
    texts before and after, limits, method and environment. Prints the verdict. What it judges, what
    it keeps if you stop it, and --fail-if are as in fairlab compare.

    \b
    Example: fairlab report --pairs gender --out gender.html
    """
    check_page(out, "out", force, [model, pairs, neutral, selection, changed, text])
    conditions = read_conditions(fail_if, of_a_change=True)
    control = Control(pairs, neutral, neutral_words, language, skip_invalid, chat, text)
    check_pairs_named(pairs, control, skip_invalid)
    check_chat(chat, model)
    plan = Plan(
        method, bias_weight, fraction, n_random, seed, quick, batch_size, cache, no_cache,
        selection, changed, control=control,
    )  # fmt: skip
    with told_if_stopped(plan.cache):
        loaded = fl.load_model(model, device=device, dtype=dtype)
        choosing, held_out = choosing_and_judging(loaded[1], control, plan.chooses)
        measured = carry_out(plan, loaded, choosing, held_out)
        verdict = write_page(out, measured, plan, loaded, model, pairs, choosing, force)
    numbers = out.with_suffix(".json")
    failed = failed_of_each(conditions, measured.table)
    facts = {"verdict": verdict, "failed": failed, "page": str(out), "numbers": str(numbers)}
    emit(facts, as_json, f"{verdict}\nWritten: {out} and {numbers}")
    end_if_failed(failed)


@app.command("cache")
def kept(
    clean: Annotated[bool, Option("--clean", help="Remove the readings.")] = False,
    clean_weights: Annotated[
        bool,
        Option("--clean-weights", help="Remove the unpacked weights; the next use unpacks again."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what fairlab keeps in your cache folder, and how large it is; remove it.

    Readings are what compare, report and prune --report measured, so that a run that was stopped
    goes on; unpacked weights are those of the packaged models and of .gguf files. A folder named
    by --cache is yours: it is not looked at.

    \b
    Example: fairlab cache --clean
    """
    import shutil

    from fairlab.files import readings_folder

    readings = readings_folder()
    weights = sorted(readings.parent.glob("*-transformers-*"))
    lines, facts = [], {}
    for what, folders, remove in (
        ("readings", [readings], clean),
        ("unpacked weights", weights, clean_weights),
    ):
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        if remove:
            for folder in filter(Path.exists, folders):
                shutil.rmtree(folder)
        facts[what] = {"files": len(files), "bytes": size, "removed": remove}
        words = f"{what}: {counted(len(files), 'file')}, {size / 1e6:.1f} MB"
        lines.append(f"{words}, removed" if remove else words)
    where = str(readings.parent)
    emit({"folder": where, **facts}, as_json, "\n".join([f"In {where}:", *lines]))


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


def check_pairs_named(pairs, control, skip_invalid):
    """Refuse a category, a file, words, a language or a text that is not there, and a file whose
    text has problems."""
    from fairlab.checking import is_file_name

    fl.load_text("evaluation", control.language)
    if control.neutral and control.words:
        raise ValueError("neutral, neutral_words: expected one of them; got both")
    words_given(control.words)
    if control.text:
        text_of_file(control.text)
    for name in (pairs, control.neutral):
        if name and (is_file_name(name) or name == control.neutral):
            checked = fl.check_file(name)
            if not skip_invalid:
                refuse_problems(checked, name)
    if pairs == "article" and control.language != "en":
        raise ValueError(f"language: the article's pair is in English; got {control.language!r}")
    if pairs != "article" and not is_file_name(pairs):
        fl.load_pairs(None if pairs == "all" else pairs, language=control.language)


def check_page(page, argument, force, inputs):
    """Refuse a page, or the file of its numbers, that write_report would refuse in the end."""
    if page.suffix != ".html":
        raise ValueError(f"{argument}: expected a name that ends in .html; got {str(page)!r}")
    for output in (page, page.with_suffix(".json")):
        check_output_file(output, force, *inputs, argument=argument)


def check_prune_reports(out, page, card, terms, force, inputs):
    """Refuse a page or a model card that can't be written beside a cut model."""
    from fairlab.report.terms import terms_of_cut

    if card and not page:
        raise ValueError("card: it is made from the report; add --report report.html")
    if any(terms.values()) and not card:
        raise ValueError("license, base_model: they are for the model card; add --card")
    if page:
        check_page(page, "report", force, inputs)
        folder = out.expanduser().resolve()
        place = page.expanduser().resolve()
        if folder in place.parents and place != folder / "report.html":
            raise ValueError(
                f"report: in the model's folder the page has to be {out / 'report.html'}; "
                f"got {str(page)!r}"
            )
    if card:
        check_output_file(out / "README.md", force, *inputs, argument="card")
        terms_of_cut("", "", {}, terms)  # refuses a form that the Hub does not take


def check_batch_size(batch_size):
    """Refuse a batch that has no room for a pair."""
    if batch_size < 2:
        raise ValueError(
            f"batch_size: expected a whole number of at least 2 (a pair); got {batch_size}"
        )


def check_chat(chat, model):
    """Refuse a use of the chat template that is not known, and a tokenizer that has none."""
    from fairlab.models import load_tokenizer
    from fairlab.passes import check_option

    if chat is not None:
        check_option("chat", chat, ("answer", "message"))
        fl.chat_pairs(load_tokenizer(model), [fl.ARTICLE_PAIR])


def check_choice(method, bias_weight, fraction=0.002, also=()):
    """Refuse a method that is not known, and numbers out of range."""
    from fairlab import scores
    from fairlab.passes import check_option

    name, _, importance = method.partition("+")
    known = (*scores.DIFFERENCE_METHODS, *scores.CAUSAL_METHODS)
    if "+" not in method:
        known = ("guarded", *known, *also)
    check_option("method", name, known)
    if importance:
        check_option("method", importance, (*scores.WEIGHT_METHODS, "fisher"))
    if not 0 <= bias_weight <= 1:
        raise ValueError(f"bias_weight: expected a number from 0 to 1; got {bias_weight!r}")
    if not 0 < fraction < 1:
        raise ValueError(
            f"fraction: expected a float between 0 and 1 (0.002 is 0.2 %); got {fraction!r}"
        )


def read_conditions(texts, of_a_change=False):
    """Read the bounds of --fail-if: on what is measured of a change, or without any."""
    from fairlab.report.conditions import QUANTITIES, WITHOUT_A_CHANGE, read_condition

    known = tuple(QUANTITIES) if of_a_change else WITHOUT_A_CHANGE
    return [read_condition(text, known) for text in texts or ()]


@dataclass(frozen=True)
class Control:
    """What pairs are held against, as the options say: neutral pairs, a text, a chat template."""

    pairs: str
    neutral: str | None
    words: str | None
    language: str
    skip_invalid: bool
    chat: str | None = None
    text: Path | None = None

    @property
    def is_built(self):
        """Whether neutral words are put into the sentences of the pairs."""
        from fairlab.checking import is_file_name

        own = self.words or self.language != "en" or is_file_name(self.pairs)
        return bool(own and not self.neutral)

    @property
    def neutral_name(self):
        """Which neutral pairs are taken, in words."""
        if self.is_built:
            words = f"words given ({self.words})" if self.words else f"fairlab's ({self.language})"
            return f"neutral words in the sentences of the pairs: {words}"
        return Path(self.neutral).name if self.neutral else "fairlab's own"

    @property
    def facts(self):
        """Which neutral pairs and which text are taken, for the report."""
        text = self.text.name if self.text else f"fairlab's evaluation text ({self.language})"
        facts = {"neutral pairs": self.neutral_name, "text": text}
        # "en" is what nobody has to say, so it is no fact
        names = {"de": "German", "es": "Spanish", "fr": "French"}
        return facts | ({"language": names[self.language]} if self.language in names else {})


@dataclass(frozen=True)
class Plan:
    """What compare and report judge, and how; what can be refused before the model loads, is."""

    method: str | None
    bias_weight: float
    fraction: float
    n_random: int
    seed: int
    quick: bool
    batch_size: int
    cache: Path | None
    no_cache: bool
    selection: Path | None = None
    changed: str | None = None
    control: Control | None = None

    def __post_init__(self):
        from fairlab.weights import find_weights

        asked = [name for name in ("method", "selection", "changed") if getattr(self, name)]
        if len(asked) > 1:
            raise ValueError(f"{', '.join(asked)}: expected one of them; got {len(asked)}")
        for method in self.methods or ["random"]:
            check_choice(method, self.bias_weight, self.fraction, also=["random"])
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"method: expected each method once; got {self.method}")
        if self.n_random < 1:
            raise ValueError(f"n_random: expected at least 1 random cut; got {self.n_random}")
        check_batch_size(self.batch_size)
        self.given_cut()
        if self.changed:
            find_weights(self.changed)
        # the dataclass is frozen, so its field is set through object
        object.__setattr__(self, "cache", readings_are_kept_in(self.cache, self.no_cache))

    @property
    def chooses(self):
        """Whether neurons are chosen, and not given."""
        return not (self.selection or self.changed)

    @property
    def methods(self):
        """The methods that choose, in the order given."""
        names = [name.strip() for name in (self.method or "guarded").split(",")]
        return names if self.chooses else []

    def given_cut(self):
        """Return the cut of --selection, or the one that made the model of --changed, if known."""
        path = self.selection
        if self.changed:
            path = Path(self.changed).expanduser() / "selection.json"
            path = path if path.is_file() else None
        return path and read_cut_file(path)

    def facts(self, pairs):
        """Return for the report how the neurons were chosen."""
        if self.selection:
            facts = {"cut": f"given, in {self.selection.name}"}
        elif self.changed:
            facts = {"changed model": Path(self.changed).name}
        else:
            facts = {"pairs": pairs, "score": ", ".join(self.methods), "fraction": self.fraction}
            # guarded scores have no weights
            if not all(is_causal(method) or method == "random" for method in self.methods):
                facts["bias weight"] = self.bias_weight
        facts |= self.control.facts
        return facts | ({"quick look": QUICK_LOOK} if self.quick else {})


def read_cut_file(path):
    """Read a cut, or gates, from their JSON file."""
    from fairlab.files import read_text

    text = read_text("selection", path)[0]
    kind = fl.NeuronGates if '"gates"' in text else fl.NeuronSelection
    try:
        return kind.from_json(text)
    except ValueError as error:
        raise ValueError(f"selection: {path} is no cut that fairlab wrote ({error})") from error


def readings_are_kept_in(folder, no_cache):
    """Return the folder that keeps the readings, made where it is missing; None for none."""
    import os

    from fairlab.files import digest_of_code, readings_folder

    if no_cache:
        if folder:
            raise ValueError("cache, no_cache: expected one of them; got both")
        return None
    folder = (folder or readings_folder()).expanduser() / digest_of_code()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise ValueError(
            f"cache: {folder.parent} can't be written; choose another folder (--cache FOLDER), "
            "or keep nothing (--no-cache)"
        )
    return folder


def refuse_problems(checked, path):
    """Raise an error that says how many rows of a file have problems, and what to do."""
    if checked.problems:
        raise ValueError(
            f"pairs: {checked.summary} (fairlab check {path} lists them all; "
            "--skip-invalid leaves these rows out)"
        )


# ---- which pairs


def load_pool(tokenizer, control):
    """Return the valid pairs that --pairs names, of all splits."""
    from fairlab.checking import is_file_name

    name = control.pairs
    if is_file_name(name):
        found = pairs_of_file(tokenizer, name, control.skip_invalid)
    elif name == "article":
        found = valid_pairs(tokenizer, [fl.ARTICLE_PAIR], name)
    else:
        found = fl.load_pairs(None if name == "all" else name, language=control.language)
        found = valid_pairs(tokenizer, found, name)
    return in_chat(tokenizer, control, found)


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
    unequal = (~fl.check_pairs(tokenizer, checked.valid)["valid"]).sum()
    if unequal:
        notice = f"in {unequal} of {len(checked.valid)} pairs of {path} the two prompts differ in "
        notice += "their number of tokens, so part of their gap may come from the length, and the "
        print(f"fairlab: {notice}article's metric leaves them out", file=sys.stderr)
    return checked.valid


def part_of(pool, split):
    """Return the pairs of which template and words are both of a split."""
    return [pair for pair in pool if pair.split == split and pair.attribute_split in ("", split)]


def choosing_and_held_out(tokenizer, control, chooses=True):
    """Return the pairs that choose the neurons, and pairs whose template and words do not."""
    name = control.pairs
    pool = load_pool(tokenizer, control)
    if name == "article":  # a single pair: nothing of it can be held out
        held_out = valid_pairs(tokenizer, fl.load_pairs(split="held_out"), "all")
        return pool, in_chat(tokenizer, control, held_out)
    choosing, held_out = part_of(pool, "train"), part_of(pool, "held_out")
    if chooses and not choosing:
        raise ValueError(
            f"pairs: none of the {len(pool)} pairs of {name} is of the split train, and those "
            "choose the neurons"
        )
    return choosing, held_out


def pairs_for(tokenizer, choosing, method):
    """Return the pairs that a method can choose on: one that compares token by token needs two
    prompts of one length. Say how many others there are, or refuse, if there are no others."""
    if method.partition("+")[0] in ("guarded", "attribution"):
        return choosing
    valid = list(fl.check_pairs(tokenizer, choosing)["valid"])
    if all(valid):
        return choosing
    found = f"in {valid.count(False)} of {len(valid)} pairs that choose the neurons the two prompts"
    found += f" differ in their number of tokens, and {method} compares token by token"
    if not any(valid):
        raise ValueError(f"pairs: {found}; take --method guarded")
    print(f"fairlab: {found}: the others choose", file=sys.stderr)
    return [pair for pair, holds in zip(choosing, valid, strict=True) if holds]


def choosing_and_judging(tokenizer, control, chooses=True):
    """Return the pairs that choose the neurons, and all that judges the cut."""
    choosing, held_out = choosing_and_held_out(tokenizer, control, chooses)
    if not held_out:
        raise ValueError(
            f"pairs: nothing in {control.pairs} is held out, and a cut measured on the pairs that "
            "chose it looks good by construction; add sentences, or a column split with train and "
            "held_out"
        )
    controls = neutral_pairs(tokenizer, control, held_out, "held_out")
    return choosing, fl.HeldOut(held_out, controls, evaluation_text(tokenizer, control))


def start_of(text, tokenizer, count):
    """Return the first tokens of a text, as text."""
    ids = tokenizer(text, verbose=False).input_ids[:count]
    return tokenizer.decode(ids, skip_special_tokens=True)


def neutral_pairs(tokenizer, control, pairs, split=None):
    """Return neutral pairs: of a file, of words in the sentences of some pairs, or fairlab's own.

    With a split those that choose ("train") or judge ("held_out"); without, all of a file, and
    else those that judge.
    """
    if control.neutral:
        found = pairs_of_file(tokenizer, control.neutral, control.skip_invalid)
        found = part_of(found, split) if split else found
    elif control.is_built:
        words = words_given(control.words)
        found = built_pairs(tokenizer, tuple(pairs), split or "held_out", control.language, words)
    else:
        own = fl.load_pairs(kind="neutral", split=split or "held_out")
        found = valid_pairs(tokenizer, own, "neutral")
    if not found:
        raise ValueError(
            f"neutral: no pair of these is of the split {split}: {control.neutral_name}; "
            "give others (--neutral, --neutral-words)"
        )
    return in_chat(tokenizer, control, found)


@functools.cache  # several methods choose on the same pairs, and the notice is for once
def built_pairs(tokenizer, pairs, split, language, words):
    """Put the neutral words of a split into the sentences of some pairs, and show two prompts."""
    built = fl.build_neutral_pairs(tokenizer, pairs, language=language, words=words)
    built = [pair for pair in built if pair.attribute_split == split]
    if not built:
        return []
    of_all = counted(len({pair.template for pair in pairs}), "sentence")
    count = len({pair.template for pair in built})
    which = "the words given" if words else f"fairlab's neutral words ({language})"
    notice = f"{which} put into {count} of {of_all}, such as:"
    shown = [built[0].prompt_a, built[-1].prompt_b]
    advice = "If they read badly, give --neutral-words or --neutral."
    print("\n  ".join([f"fairlab: {notice}", *shown, advice]), file=sys.stderr)
    return built


def words_given(text):
    """Return the pairs of words of --neutral-words: "a/b, c/d"."""
    if text is None:
        return None
    words = [tuple(word.strip() for word in both.split("/")) for both in text.split(",")]
    if len(words) < 2 or any(len(both) != 2 or not all(both) for both in words):
        raise ValueError(
            'neutral_words: expected at least two pairs of words such as "tired/hungry, '
            f'calm/happy"; got {text!r}'
        )
    return tuple(words)


def evaluation_text(tokenizer, control):
    """Return the text for the perplexity: its start, since every random cut reads it again."""
    from fairlab.evaluation.rows import BLOCK

    text = fl.load_text("evaluation", control.language)
    text = text_of_file(control.text) if control.text else text
    count = len(tokenizer(text, verbose=False).input_ids)
    if count <= 2 * BLOCK and control.text:
        raise ValueError(
            f"text: expected more than {2 * BLOCK} tokens, since an interval needs two blocks of "
            f"{BLOCK}; {control.text} has {count}"
        )
    return start_of(text, tokenizer, 2048)


def text_of_file(path):
    """Read a text file; refuse an empty one."""
    from fairlab.files import read_text

    text = read_text("text", path)[0].strip()
    if not text:
        raise ValueError(f"text: {path} is empty")
    return text


def in_chat(tokenizer, control, pairs):
    """Put pairs through the chat template as --chat says, if it was given."""
    if not control.chat:
        return pairs
    request = {} if control.chat == "answer" else {"request": None}
    return fl.chat_pairs(tokenizer, pairs, **request)


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


def score_tables(loaded, pairs, method, bias_weight, control, batch_size=32):
    """Return the tables of a method: its score, and what that is made of."""
    from fairlab.recipes import guarded_tables

    bias_method, _, importance_method = method.partition("+")
    text = fl.load_text("calibration", control.language)
    if is_causal(method):
        return guarded_tables(
            *loaded,
            pairs,
            neutral_pairs(loaded[1], control, pairs, "train"),
            text=text,
            method="attribution" if method == "guarded" else bias_method,
            importance=importance_method or "fisher",
            batch_size=batch_size,
        )
    bias = fl.bias_scores(*loaded, pairs, method=bias_method, batch_size=batch_size)
    importance = fl.importance_scores(
        loaded[0], method=importance_method or "maw", tokenizer=loaded[1], text=text
    )
    combined = fl.hybrid_scores(bias, importance, bias_weight=bias_weight)
    return {"score": combined, "bias": bias, "importance": importance}


def choose_neurons(loaded, pairs, method, bias_weight, fraction, batch_size, control):
    """Choose the neurons by a recipe's name, or by the scores that are named."""
    options = {"fraction": fraction, "batch_size": batch_size}
    if method == "guarded":
        neutral = neutral_pairs(loaded[1], control, pairs, "train")
        text = fl.load_text("calibration", control.language)
        return fl.guarded_cut(*loaded, pairs, neutral, text=text, **options)
    if method == "article":
        return fl.article_cut(*loaded, pairs, bias_weight=bias_weight, **options)
    tables = score_tables(loaded, pairs, method, bias_weight, control, batch_size)
    scores = tables["score"]  # (layers, neurons)
    # hybrid scores are scaled within each layer, so only causal ones compare across layers
    if is_causal(method):
        how, scope = f"{method}, guarded, {len(pairs)} pairs", "model"
    else:
        how, scope = f"{method}, bias weight {bias_weight:g}, {len(pairs)} pairs", "layer"
    return fl.select_neurons(scores, fraction=fraction, scope=scope, how=how)


def cuts_to_judge(plan, loaded, pairs):
    """Return the cuts that the methods of a plan choose, or the one that is given, by name."""
    if plan.selection:
        return {plan.selection.stem: plan.given_cut()}
    choosing, cuts = {}, {}
    for method in plan.methods:
        if method != "random":
            choosing[method] = pairs_for(loaded[1], pairs, method)
    for method, some in choosing.items():
        choice = (method, plan.bias_weight, plan.fraction, plan.batch_size, plan.control)
        cuts[method] = choose_neurons(loaded, some, *choice)
    if "random" in plan.methods:
        cuts["random"] = random_cut(plan, loaded[0], next(iter(cuts.values()), None))
    return {method: cuts[method] for method in plan.methods}


def random_cut(plan, model, like):
    """Return a random cut of the size of another one, or with a fraction of each layer.

    It is the next after those that every cut is compared with, so it is none of them.
    """
    import torch

    from fairlab.models import glu_blocks

    if like is None:
        blocks = glu_blocks(model)
        shape = (len(blocks), blocks[0].down_proj.in_features)
        like = fl.select_neurons(torch.zeros(shape), fraction=plan.fraction)
    return fl.random_selections(like, plan.n_random + 1, seed=plan.seed)[-1]


def changed_model(name, loaded, held_out):
    """Load a changed model like the original; refuse one that reads what is measured as other
    tokens."""
    from fairlab.pairs import prompt_ids

    model, tokenizer = loaded
    changed, other = fl.load_model(name, device=str(model.device), dtype=dtype_of(model))
    texts = [held_out.text]
    for pair in held_out.everything:
        texts += [pair.prompt_a, pair.prompt_b]
    for text in texts:
        if prompt_ids(tokenizer, text) != prompt_ids(other, text):
            raise ValueError(
                f"changed: {name} reads {text[:40]!r} as other tokens than the original does; "
                "only models with one vocabulary can be compared"
            )
    return changed


# ---- what is measured


def carry_out(plan, loaded, choosing, held_out):
    """Choose or load what a plan judges, and compare it."""
    n_random, imitated = plan.n_random, {}
    if plan.quick:
        n_random = min(n_random, 5)
        held_out = replace(held_out, text=start_of(held_out.text, loaded[1], 512))
    if plan.changed:
        name = Path(plan.changed).resolve().name
        cuts = {name: changed_model(plan.changed, loaded, held_out)}
        imitated = {name: plan.given_cut()} if plan.given_cut() else {}
    else:
        cuts = cuts_to_judge(plan, loaded, choosing)
    return fl.compare(
        *loaded,
        cuts,
        held_out,
        n_random=n_random,
        seed=plan.seed,
        metric=not plan.quick,
        imitated=imitated,
        cache=plan.cache,
        batch_size=plan.batch_size,
        announce=tell_time,
    )


def tell_time(cuts, kept, seconds):
    """Say about how long the rest takes, where that is worth saying."""
    left = cuts - kept
    if left * seconds < 5:
        return
    minutes = left * seconds / 60
    words = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{left * seconds:.0f} seconds"
    notice = f"about {words} for {counted(left, 'cut')}"
    if kept:
        notice += f"; {kept} more were kept from before"
    print(f"fairlab: {notice}", file=sys.stderr)


@contextmanager
def told_if_stopped(cache):
    """Where the user stops the work inside the block, say what was kept; end with exit code 130."""
    before = count_readings(cache)
    try:
        yield
    except KeyboardInterrupt:
        from tqdm import tqdm

        count = count_readings(cache) - before
        kept = "nothing was kept" if cache is None else "nothing new was measured"
        if count:
            kept = (
                f"what was measured ({counted(count, 'reading')}) is kept in {cache.parent}; "
                "the same command goes on from there"
            )
        tqdm.write(f"fairlab: stopped; {kept}", file=sys.stderr)  # clear of progress bars
        raise typer.Exit(130) from None


def count_readings(cache):
    """Count the readings in a folder."""
    return len(list(cache.glob("*/*.npz"))) if cache else 0


def pair_readings(loaded, demographic, neutral, batch_size=32):
    """Return the gap and the article's metric of every pair, one row each."""
    import pandas as pd

    from fairlab.capture import pair_differences
    from fairlab.diagnosis import article_points

    pairs = [*demographic, *neutral]
    readings = pd.DataFrame([vars(pair) for pair in pairs])
    kinds = ["demographic"] * len(demographic) + ["neutral"] * len(neutral)
    readings.insert(0, "kind", kinds)
    readings["gap"] = fl.next_token_divergence(*loaded, pairs, batch_size=batch_size).numpy()
    options = {"points": article_points(loaded[0]), "positions": "all", "batch_size": batch_size}
    readings["metric"] = math.nan
    valid = fl.check_pairs(loaded[1], pairs)["valid"]  # the others can't be compared by token
    aligned = [pair for pair, holds in zip(pairs, valid, strict=True) if holds]
    if aligned:
        difference, _ = pair_differences(*loaded, aligned, **options)
        readings.loc[valid, "metric"] = difference.mean((1, 2)).numpy()  # over points and layers
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
    from fairlab.gating import applied

    model, tokenizer = loaded
    prompts = []
    for pair in pairs:
        prompts += [pair.prompt_a, pair.prompt_b]
    # room for 35 new tokens behind the longest prompt
    length = 35 + max(len(tokenizer(prompt).input_ids) for prompt in prompts)
    written = {"before": fl.generate(model, tokenizer, prompts, max_length=length)}
    for name, selection in selections.items():
        with applied(model, selection) as changed:
            written[name] = fl.generate(changed, tokenizer, prompts, max_length=length)
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

QUICK_LOOK = (
    "A quick look: few random cuts, a short text, no article metric. Measure again without --quick "
    "before you conclude."
)


def write_page(page, measured, plan, loaded, model_name, pairs, choosing, force):
    """Write the report of what was measured; return the verdict."""
    shown = [*choosing[:1], measured.held_out.pairs[0]]
    try:
        verdict = fl.write_report(
            page,
            measured,
            model=loaded[0],
            model_name=model_name,
            chosen_on=choosing if plan.chooses else None,
            method=plan.facts(pairs),
            texts=texts_of(loaded, measured.selections, shown),
            force=force,
        )
    except OSError:  # the disk may be full; what was measured is not lost with the page
        print("\n".join(measured.table["sentence"]), file=sys.stderr)
        raise
    return f"{verdict}\n{QUICK_LOOK}" if plan.quick else verdict


def prune_text(facts, selection, page):
    """Return what `fairlab prune` prints."""
    before, after = facts["parameters_before"], facts["parameters_after"]
    lines = [f"{selection!r}"]
    if page:
        lines += [facts["verdict"], f"Written: {page} and {page.with_suffix('.json')}"]
    lines.append(
        f"{before:,} parameters before, {after:,} after; saved in {facts['folder']}, "
        f"{facts['dtype']}"
    )
    return "\n".join(lines)


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
        lines += ["", "Notices (no row is invalid for them):", *map(str, checked.notices)]
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


def failed_of_each(conditions, table):
    """Say which bounds of --fail-if hold for each selection of a comparison."""
    from fairlab.report.conditions import failures, quantities_of

    failed = []
    for name, rows in table.groupby("selection", sort=False):
        failed += [f"{name}: {line}" for line in failures(conditions, quantities_of(rows))]
    return failed


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
