"""The page of a comparison, and what `fairlab prune` writes beside a model.

Contents: `check_page`, `check_prune_reports`, `check_nothing_for_a_report` (before the model
loads); `write_page`, `words_counted`.
"""

import sys
from dataclasses import replace

import fairlab as fl
from fairlab.cli.output import check_output_file
from fairlab.cli.plan import QUICK_LOOK


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
    given = [name for name, value in terms.items() if value]
    if given and not card:
        raise ValueError(f"{', '.join(given)}: only the model card says this; add --card")
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


def check_nothing_for_a_report(context):
    """Refuse the options of `fairlab prune` that only a report needs, where none is written."""
    names = ("outcomes", "text", "n_random", "seed", "quick", "cache", "no_cache")
    given = [name for name in names if context.get_parameter_source(name).name == "COMMANDLINE"]
    if given:
        raise ValueError(f"{', '.join(given)}: only a report needs this; add --report report.html")


def write_page(page, measured, plan, loaded, model_name, choosing, force):
    """Write the report of what was measured; return the verdict."""
    shown = [*choosing[:1], measured.held_out.pairs[0]]
    if plan.continuations:
        measured = replace(measured, continuations=words_counted(plan, loaded, measured))
    try:
        verdict = fl.write_report(
            page,
            measured,
            model=loaded[0],
            model_name=model_name,
            chosen_on=choosing if plan.chooses else None,
            method=plan.facts,
            texts=texts_of(loaded, measured.selections, shown),
            force=force,
        )
    except OSError:  # the disk may be full; what was measured is not lost with the page
        print("\n".join(measured.table["sentence"]), file=sys.stderr)
        raise
    return f"{verdict}\n{QUICK_LOOK}" if plan.quick else verdict


def words_counted(plan, loaded, measured):
    """Sample texts after the held-out prompts, before and under each selection and a random cut;
    return what the words in them come to."""
    from fairlab.gating import applied

    changes = dict(measured.selections)
    for selection in measured.selections.values():
        if isinstance(selection, fl.NeuronSelection):
            (changes["a random cut"],) = fl.random_selections(selection, 1, seed=plan.seed)
            break
    options = {"n": plan.continuations, "seed": plan.seed}
    pairs = measured.held_out.pairs
    gaps = {"before": fl.continuation_gaps(fl.sample_continuations(*loaded, pairs, **options))}
    for name, change in changes.items():
        with applied(loaded[0], change) as changed:
            texts = fl.sample_continuations(changed, loaded[1], pairs, **options)
        gaps[name] = fl.continuation_gaps(texts)
    return fl.summarize_continuations(gaps)


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
