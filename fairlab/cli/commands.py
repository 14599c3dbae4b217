"""The commands, each from its options to what it prints.

Contents: `app`, with `check`, `diagnose`, `score`, `prune`, `compare`, `report`, and `kept` for
`fairlab cache`.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from typer import Argument, Option
from typer.core import TyperGroup

import fairlab as fl  # loads its modules at first use, so that --help comes at once
from fairlab import processes
from fairlab.cli.answers import outcomes_for
from fairlab.cli.gaps import diagnosed, gap_table, pair_readings
from fairlab.cli.kept import message_if_stopped
from fairlab.cli.measure import carry_out, material_of, tell_time_of_choice
from fairlab.cli.neurons import (
    check_neutral_is_used,
    choose_neurons,
    pairs_taken,
    ranking_of,
    score_tables,
)
from fairlab.cli.options import (
    BIAS_WEIGHT,
    DEFAULT,
    FRACTION,
    Answers,
    BatchSize,
    Cache,
    Changed,
    Chat,
    Continuations,
    Device,
    DeviceMap,
    Dtype,
    FailIf,
    Force,
    Fraction,
    Given,
    Json,
    Language,
    Method,
    Methods,
    Model,
    Neutral,
    NeutralWords,
    NoCache,
    Pairs,
    Quick,
    Random,
    Seed,
    Skip,
    Table,
    Text,
    Version,
    Weight,
)
from fairlab.cli.output import (
    check_output_file,
    check_text,
    counted,
    dtype_of,
    emit,
    end_if_failed,
    facts_of,
    failed_of_each,
    found_text,
    precision_note,
    read_conditions,
    saved_text,
    split_counts,
)
from fairlab.cli.pairs import (
    PairOptions,
    check_pair_options,
    load_pool,
    neutral_pairs,
)
from fairlab.cli.plan import QUICK_LOOK, Plan, check_batch_size, check_choosing, where_to_load
from fairlab.cli.reports import (
    card_of,
    check_nothing_for_a_report,
    check_page,
    check_prune_outputs,
    codes_of,
    cut_in_place,
    papers_beside,
    place_of_page,
    tell_of_licence,
    write_page,
)

SHARED = ("score", "prune", "compare", "report")  # several processes may do these together


class Commands(TyperGroup):
    """The commands, each of which says so where the user stops it."""

    def invoke(self, ctx: typer.Context) -> object:
        """Run a command; end with exit code 130 where it is stopped."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("fairlab: stopped", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
)


@app.callback()
def _about(context: typer.Context, version: Version = False) -> None:
    """Find, measure and cut the neurons of a language model that react to a demographic word.

    \b
    The whole surgery on the default model:  fairlab prune --out pruned
    Whether it helped, as a page to read:    fairlab report --out report.html
    The article's recipe instead:            add --method article --pairs article

    A CSV file for --pairs has the columns prompt_a and prompt_b, and if you like category,
    template, attribute_a, attribute_b and split, and harsher and kinder, what may be decided about
    the person; a .jsonl file has such names on each line. Pairs of the split train choose the
    neurons, those of the split held_out measure; without the column, every third sentence of a
    category is held out. fairlab check mine.csv finds the problems of form in such a file within
    seconds.

    On several GPUs or machines, accelerate launch -m fairlab score … (or prune, compare, report)
    deals the work to processes and prints once: notebooks/cluster.md has the commands.

    Exit codes: 0 done; 2 refused, with one line that says why (an input, a file, a missing
    package, too little memory), or fairlab check found problems; 3 done, and a bound of --fail-if
    holds or could not be measured; 130 you stopped it; 1 anything else.
    """
    if processes.count() > 1 and context.invoked_subcommand not in SHARED:
        raise ValueError(
            f"{context.invoked_subcommand}: it runs in one process, without accelerate launch or "
            f"torchrun; only {', '.join(SHARED)} can share their work"
        )


@app.command()
def check(
    file: Annotated[Path, Argument(help="CSV or .jsonl file of pairs.")],
    model: Model = DEFAULT,
    fix: Annotated[
        Path | None,
        Option(help="CSV file for the valid rows, and those with surplus blanks, repaired."),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Find every problem of form in a file of pairs; load no model, only its tokenizer.

    Prints each problem with the row's number in a spreadsheet (the header is row 1; of a .jsonl
    file, the line's) and a remedy: blanks too many; templates that are not the prompts' sentence;
    what is there twice; a sentence that is both for training and held out. Then notices, which
    leave a row valid: words that the tokenizer splits into unlike numbers of tokens (names often
    are; their gap is measured, but scores that compare token by token refuse them), with words that
    would fit. Last, the templates that were taken from the prompts, and how the valid rows are
    split. Exit code 0: every row is valid; 2: there are problems, or the file can't be read.

    \b
    Example: fairlab check mine.csv --fix valid.csv
    """
    from fairlab.checking import fixed_csv, is_json_lines
    from fairlab.files import write_text
    from fairlab.models import load_tokenizer

    check_output_file(fix, force, file, model, argument="fix")
    if fix and is_json_lines(fix):
        raise ValueError(f"fix: expected a name for a CSV file; got {fix}")
    checked = fl.check_file(file, tokenizer=load_tokenizer(model))
    facts = {
        "file": str(file),
        "form": checked.form,
        "rows": len(checked.pairs),
        "valid": len(checked.valid),
        "problems": [facts_of(problem) for problem in checked.problems],
        "notices": [facts_of(problem) for problem in checked.notices],
        "guessed": checked.guessed,
        "split_by_file": "split" in checked.columns,
        "split": split_counts(checked.valid),
        "fixed": fix and str(fix),
    }
    emit(facts, as_json, check_text(checked, facts))
    if fix:
        write_text(fix, fixed_csv(checked))
    if checked.problems:
        raise typer.Exit(2)


@app.command()
def diagnose(
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    neutral: Neutral = None,
    neutral_words: NeutralWords = None,
    language: Language = "en",
    outcomes: Answers = None,
    fail_if: FailIf = None,
    out: Table = None,
    force: Force = False,
    skip_invalid: Skip = False,
    chat: Chat = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Measure the gap between prompts; cut nothing.

    Prints, for each category and for neutral pairs (the control), the mean gap of the next-token
    distributions in nats with its 95 % interval, and the article's mean activation difference (of
    the pairs whose two prompts have the same number of tokens); then which category has the largest
    gap, and whether that is more than neutral words have. With --outcomes, or the columns harsher
    and kinder, it also says for whom the odds of a harsher answer are higher. --out and --json have
    a row for every pair.

    --fail-if takes gap (the mean over categories), largest_gap (that of a category), neutral_gap
    (the mean over neutral pairs) and decision (the mean size over categories, where there are
    answers), all in nats, with > or < and a number. Compared is the gap itself, whatever its
    interval is.

    \b
    Example: fairlab diagnose --pairs race --out race.csv
    In a pipeline: fairlab diagnose --model org/name --fail-if "largest_gap>0.05"
    """
    from fairlab.evaluation.readings import bits_of
    from fairlab.models import load_tokenizer
    from fairlab.report.conditions import failures
    from fairlab.report.page import environment
    from fairlab.report.verdict import decision_sentences, diagnosis

    check_output_file(out, force, model, pairs, neutral)
    conditions = read_conditions(fail_if)
    check_batch_size(batch_size)
    where = where_to_load(device, device_map)
    pair_options = PairOptions(
        pairs, neutral, neutral_words, language, skip_invalid, chat, outcomes=outcomes
    )
    check_pair_options(pair_options)
    tokenizer = load_tokenizer(model)
    demographic = load_pool(tokenizer, pair_options)
    neutral_ones = neutral_pairs(tokenizer, pair_options, demographic)
    answers = outcomes_for(tokenizer, pair_options, [*demographic, *neutral_ones])
    loaded = fl.load_model(model, dtype=dtype, **where)
    readings = pair_readings(loaded, demographic, neutral_ones, batch_size, answers)
    gaps = gap_table(readings)
    words = [*diagnosis(gaps), *decision_sentences(gaps)]
    failed = failures(conditions, diagnosed(readings, gaps))
    facts = {
        "model": model,
        "weights_sha256": bits_of(loaded[0]),
        "dtype": dtype_of(loaded[0]),
        "environment": environment(),
        "neutral pairs": pair_options.neutral_name,
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
    bias_weight: Weight = BIAS_WEIGHT,
    neutral: Neutral = None,
    neutral_words: NeutralWords = None,
    language: Language = "en",
    out: Table = None,
    force: Force = False,
    skip_invalid: Skip = False,
    chat: Chat = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    device_map: DeviceMap = None,
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
    where = where_to_load(device, device_map)
    pair_options = PairOptions(pairs, neutral, neutral_words, language, skip_invalid, chat)
    check_output_file(out, force, model, pairs, neutral)
    check_choosing(pair_options, batch_size, method, bias_weight)
    check_neutral_is_used(method, pair_options)
    taken = pairs_taken(model, method, pair_options)
    loaded = fl.load_model(model, dtype=dtype, **where)
    tell_time_of_choice(loaded, method, taken, batch_size, pair_options)
    tables = score_tables(loaded, *taken, method, bias_weight, pair_options, batch_size)
    processes.end_unless_first()
    ranking = ranking_of(tables)
    top = ranking.head(20)
    text = f"{top.to_string(index=False)}\n{precision_note(loaded[0])}"
    facts = {"model": model, "dtype": dtype_of(loaded[0]), "top": top.to_dict("records")}
    emit(facts, as_json, text, ranking, out)


@app.command()
def prune(
    context: typer.Context,
    out: Annotated[Path, Option(help="Folder for the cut model.")],
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    method: Method = "guarded",
    bias_weight: Weight = BIAS_WEIGHT,
    fraction: Fraction = FRACTION,
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
    license_name: Annotated[
        str | None, Option(help="Short name of a licence that the Hub does not list: other.")
    ] = None,
    license_link: Annotated[
        str | None, Option(help="Address where the license other can be read.")
    ] = None,
    base_model: Annotated[
        str | None, Option(help="The model's id on the Hub, for the card of a local folder.")
    ] = None,
    card_language: Annotated[
        str | None,
        Option(
            help="Of the model, for the card: it, or en,de; by default what its own card says, "
            "else the language of the pairs."
        ),
    ] = None,
    neutral: Neutral = None,
    neutral_words: NeutralWords = None,
    language: Language = "en",
    outcomes: Answers = None,
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
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Score, select, cut and save: the whole surgery.

    Writes a model folder that stock transformers loads, with the neurons in selection.json, in the
    dtype of the original (or of --dtype). Whether the cut helped is another question: --report
    answers it in the same run, before the model is cut. The options from --text to --no-cache are
    for that, as in fairlab report, and refused without it.

    What it found is printed before anything is saved. What lies in the folder comes and goes with
    its weights: with --force the selection, page and card of the model before go, too.

    \b
    Example: fairlab prune --out pruned --report pruned/report.html --card
    """
    from fairlab.models import refuse_offloaded

    terms = {"license": license, "license_name": license_name, "license_link": license_link}
    terms |= {"base_model": base_model, "language": codes_of(card_language)}
    check_prune_outputs(out, report, card, terms, force, [model, pairs, neutral, text])
    where = where_to_load(device, device_map)
    pair_options = PairOptions(
        pairs, neutral, neutral_words, language, skip_invalid, chat, text, outcomes
    )
    check_choosing(pair_options, batch_size, method, bias_weight, fraction)
    plan = None
    if report:
        plan = Plan(
            method, bias_weight, fraction, n_random, seed, quick, batch_size, cache, no_cache,
            pair_options,
        )  # fmt: skip
        material = material_of(plan, model)
        tell_of_licence(model, card, terms)
    else:
        check_nothing_for_a_report(context)
        check_neutral_is_used(method, pair_options)
        taken = pairs_taken(model, method, pair_options, fraction)
    facts = {"folder": str(out)}
    with message_if_stopped(plan and plan.cache), TemporaryDirectory(prefix="fairlab-") as private:
        loaded = fl.load_model(model, dtype=dtype, **where)
        refuse_offloaded(loaded[0], "cut")
        facts["parameters_before"] = loaded[0].num_parameters()
        if report:
            measured = carry_out(plan, loaded, material, page=True)
            selection = measured.selections[method]
            page, choosing = place_of_page(report, out, private), material.choosing
            facts["verdict"] = write_page(page, measured, plan, loaded, model, choosing, force)
        else:
            tell_time_of_choice(loaded, method, taken, batch_size, pair_options)
            choice = (method, bias_weight, fraction, batch_size, pair_options)
            selection = choose_neurons(loaded, *taken, *choice)
            processes.end_unless_first()
        cut, facts_after = cut_in_place(loaded[0], selection, model, dtype)
        facts |= facts_after
        # printed first: if nothing can be saved after all, what was found has been seen
        emit(facts, as_json, found_text(facts, selection))
        about = card and card_of(page, terms)
        papers = papers_beside(out, selection, private, about)
        fl.save_model(cut, loaded[1], out, dtype=cut.dtype, force=force, beside=papers)
    if not as_json:
        print(saved_text(facts, report))


@app.command()
def compare(
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    method: Methods = None,
    bias_weight: Weight = BIAS_WEIGHT,
    fraction: Fraction = FRACTION,
    selection: Given = None,
    changed: Changed = None,
    neutral: Neutral = None,
    neutral_words: NeutralWords = None,
    language: Language = "en",
    outcomes: Answers = None,
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
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Measure cuts beside their controls.

    Chooses on training pairs and measures on held-out ones (with --pairs article: on fairlab's own,
    of all categories), beside random cuts of the same size and neutral pairs. Methods that cut as
    many neurons of each layer (guarded, article, …) share the random cuts. Prints a sentence for
    each measure and category. On a laptop's CPU the default takes several minutes. Stopped (Ctrl-C)
    and started again, it goes on where it was.

    With --selection it judges a cut that is there, with --changed any changed model. A changed
    model has random cuts beside it where its folder holds a selection.json of fairlab prune.

    --fail-if takes gap, largest_gap, neutral_gap and decision (in nats, of the changed model),
    gap_change, neutral_change and perplexity_change (shares: -0.1 is 10 % less) and decision_change
    (nats), with > or < and a number; it looks at the value itself, whatever its interval is.
    decision needs answers: for a file of your own --outcomes, or its columns harsher and kinder.

    \b
    Example: fairlab compare --pairs race --method guarded,article,random --out race.csv
    """
    from fairlab.report.verdict import warnings

    check_output_file(out, force, model, pairs, neutral, selection, changed, text)
    conditions = read_conditions(fail_if, of_a_change=True)
    where = where_to_load(device, device_map)
    pair_options = PairOptions(
        pairs, neutral, neutral_words, language, skip_invalid, chat, text, outcomes
    )
    check_pair_options(pair_options)
    plan = Plan(
        method, bias_weight, fraction, n_random, seed, quick, batch_size, cache, no_cache,
        pair_options, selection, changed, where=where,
    )  # fmt: skip
    material = material_of(plan, model)
    with message_if_stopped(plan.cache):
        loaded = fl.load_model(model, dtype=dtype, **where)
        measured = carry_out(plan, loaded, material)
    table = measured.table
    chose = material.choosing if plan.chooses else None
    shared = warnings(chose, material.held_out.pairs, material.held_out.neutral)
    notes = [precision_note(loaded[0]), *shared, *[QUICK_LOOK] * quick]
    failed = failed_of_each(conditions, table)
    facts = {"model": model, "dtype": measured.dtype, "seed": seed, "quick": quick}
    facts["warnings"] = shared
    facts |= pair_options.facts | {"failed": failed, "rows": table.to_dict("records")}
    emit(facts, as_json, "\n".join([*table["sentence"], *notes]), table, out)
    end_if_failed(failed)


@app.command()
def report(
    out: Annotated[Path, Option(help="The page, NAME.html; the numbers go to NAME.json.")],
    model: Model = DEFAULT,
    pairs: Pairs = "all",
    method: Methods = None,
    bias_weight: Weight = BIAS_WEIGHT,
    fraction: Fraction = FRACTION,
    selection: Given = None,
    changed: Changed = None,
    neutral: Neutral = None,
    neutral_words: NeutralWords = None,
    language: Language = "en",
    outcomes: Answers = None,
    text: Text = None,
    n_random: Random = 20,
    seed: Seed = 0,
    quick: Quick = False,
    cache: Cache = None,
    no_cache: NoCache = False,
    continuations: Continuations = 0,
    fail_if: FailIf = None,
    force: Force = False,
    skip_invalid: Skip = False,
    chat: Chat = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Compare, and write a page to read.

    It stands alone, with its numbers as strict JSON beside it, and holds verdict, tables, a figure,
    texts before and after, limits, method and environment. Prints the verdict. The perplexity is
    that of the first 2,048 tokens of a text (with --quick, 512). What it judges, what it keeps if
    you stop it, and --fail-if are as in fairlab compare.

    \b
    Example: fairlab report --pairs gender --out gender.html
    """
    check_page(out, "out", force, [model, pairs, neutral, selection, changed, text])
    conditions = read_conditions(fail_if, of_a_change=True)
    where = where_to_load(device, device_map)
    pair_options = PairOptions(
        pairs, neutral, neutral_words, language, skip_invalid, chat, text, outcomes
    )
    check_pair_options(pair_options)
    plan = Plan(
        method, bias_weight, fraction, n_random, seed, quick, batch_size, cache, no_cache,
        pair_options, selection, changed, continuations, where,
    )  # fmt: skip
    material = material_of(plan, model)
    with message_if_stopped(plan.cache):
        loaded = fl.load_model(model, dtype=dtype, **where)
        measured = carry_out(plan, loaded, material, page=True)
        verdict = write_page(out, measured, plan, loaded, model, material.choosing, force)
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

    Readings are what compare, report and prune --report measured, with the cuts that they chose and
    the texts that they sampled, so that a run that was stopped goes on; unpacked weights are those
    of the packaged models and of .gguf files. A folder named by --cache is yours: it is not looked
    at.

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
        files = []
        for folder in folders:
            files += [file for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        if remove:
            for folder in filter(Path.exists, folders):
                shutil.rmtree(folder)
        facts[what] = {"files": len(files), "bytes": size, "removed": remove}
        words = f"{what}: {counted(len(files), 'file')}, {size / 1e6:.1f} MB"
        lines.append(f"{words}, removed" if remove else words)
    where = str(readings.parent)
    emit({"folder": where, **facts}, as_json, "\n".join([f"In {where}:", *lines]))
