"""The page of a comparison, and what `fairlab prune` writes: a cut model, and what lies beside it.

Contents: `check_page`, `check_prune_outputs`, `check_nothing_for_a_report`, `codes_of`,
`tell_of_licence` (before the model loads); `write_page`, `words_counted`; `cut_in_place`,
`place_of_page`, `papers_beside`, `card_of` (of a cut model).
"""

import json
import re
import sys
import warnings
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import fairlab as fl
from fairlab.cli.kept import kept_texts
from fairlab.cli.output import check_output_file, dtype_of
from fairlab.cli.plan import QUICK_LOOK

NEW_TOKENS = 35  # that the page shows after a prompt


def check_page(page, argument, force, inputs):
    """Refuse a page, or the file of its numbers, that write_report would refuse in the end."""
    if page.suffix != ".html":
        raise ValueError(f"{argument}: expected a name that ends in .html; got {str(page)!r}")
    for output in (page, page.with_suffix(".json")):
        check_output_file(output, force, *inputs, argument=argument)


def card_of(page, terms):
    """Make the model card from the numbers beside a page; that it lacks a licence was said."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return fl.model_card(page.with_suffix(".json"), **terms)


def tell_of_licence(model, card, terms):
    """Say before the work that the card, if there is one, will state no licence."""
    from fairlab.models import empty_model
    from fairlab.report.terms import folder_terms, terms_of_cut

    if not card:
        return
    name = type(empty_model(model)).__name__
    if "license" not in terms_of_cut(model, name, folder_terms(model), terms):
        print(
            "fairlab: the card will state no licence; give --license, or --base-model where the "
            "model that it comes from is on the Hub",
            file=sys.stderr,
        )


def check_prune_outputs(out, page, card, terms, force, inputs):
    """Refuse a folder, a page or a model card of a cut model that can't be written."""
    from fairlab.files import check_output_folder
    from fairlab.report.terms import terms_of_cut

    # selection.json is not among them, since it is written anew
    reports = ("README.md", "report.html", "report.json")
    check_output_folder("out", out, beside=reports, force=force, inputs=inputs)
    if card and not page:
        raise ValueError("card: it is made from the report; add --report report.html")
    options = {"language": "card_language"}  # --language is that of the pairs
    given = [options.get(name, name) for name, value in terms.items() if value]
    if given and not card:
        raise ValueError(f"{', '.join(given)}: only the model card says this; add --card")
    if page:
        check_page(page, "report", force, inputs)
        place = page.expanduser().resolve()
        if is_inside(page, out) and place != out.expanduser().resolve() / "report.html":
            raise ValueError(
                f"report: in the model's folder the page has to be {out / 'report.html'}; "
                f"got {str(page)!r}"
            )
    if card:
        check_output_file(out / "README.md", force, *inputs, argument="card")
        try:
            terms_of_cut("", "", {}, terms)  # refuses a form that the Hub does not take
        except ValueError as error:
            raise ValueError(re.sub("^language:", "card_language:", str(error))) from error


def codes_of(languages):
    """Return the codes of --card-language: "en,de"; None where it was not given."""
    return languages and [code.strip() for code in languages.split(",")]


def is_inside(page, folder):
    """Say whether a page lies in a folder."""
    return folder.expanduser().resolve() in page.expanduser().resolve().parents


def check_nothing_for_a_report(context):
    """Refuse the options of `fairlab prune` that only a report needs, where none is written."""
    names = ("outcomes", "text", "n_random", "seed", "quick", "cache", "no_cache")
    given = [name for name in names if context.get_parameter_source(name).name == "COMMANDLINE"]
    if given:
        raise ValueError(f"{', '.join(given)}: only a report needs this; add --report report.html")


def write_page(page, measured, plan, loaded, model_name, choosing, force):
    """Write the report of what was measured; return the verdict."""
    sentences = list(measured.table["sentence"])
    prompts = shown_prompts(choosing, measured.held_out)
    try:
        if plan.continuations:
            measured = replace(measured, continuations=words_counted(plan, loaded, measured))
        verdict = fl.write_report(
            page,
            measured,
            model=loaded[0],
            model_name=model_name,
            chosen_on=choosing if plan.chooses else None,
            method=plan.facts,
            texts=texts_of(loaded, measured.selections, prompts),
            force=force,
        )
    except BaseException:  # stopped, or a full disk: what was measured is not lost with the page
        print("\n".join(sentences), file=sys.stderr)
        raise
    return f"{verdict}\n{QUICK_LOOK}" if plan.quick else verdict


def shown_prompts(choosing, held_out):
    """Return the prompts after which the page shows what the model writes.

    Those of a pair that chose, if any is known, and of one that judges.
    """
    prompts = []
    for pair in [*choosing[:1], held_out.pairs[0]]:
        prompts += [pair.prompt_a, pair.prompt_b]
    return prompts


def words_counted(plan, loaded, measured):
    """Sample texts after the held-out prompts; return what the words in them come to.

    Texts are sampled before, and under each selection and a random cut.
    """
    from fairlab.evaluation.readings import cache_key
    from fairlab.gating import applied

    changes = sampled_changes(measured.selections, plan.seed)
    options = {"n": plan.continuations, "seed": plan.seed}
    model, tokenizer = loaded
    key = cache_key(*loaded, measured.held_out, metric=False)
    gaps = {}
    for name, change in {"before": None, **changes}.items():
        with nullcontext(model) if change is None else applied(model, change) as changed:
            args = (changed, tokenizer, measured.held_out.pairs)
            sample = partial(fl.sample_continuations, *args, **options)
            gaps[name] = fl.continuation_gaps(kept_texts(plan, key, change, sample))
    return fl.summarize_continuations(gaps)


def sampled_changes(selections, seed):
    """Return under what texts are sampled: each selection, and a random cut like the first one."""
    changes = dict(selections)
    for selection in selections.values():
        if isinstance(selection, fl.NeuronSelection):
            (changes["a random cut"],) = fl.random_selections(selection, 1, seed=seed)
            break
    return changes


def texts_of(loaded, selections, prompts):
    """Return what the model writes after some prompts: prompt → name → text.

    The names are "before" and those of the selections.
    """
    from fairlab.gating import applied

    model, tokenizer = loaded
    written = {"before": fl.generate(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS)}
    for name, selection in selections.items():
        with applied(model, selection) as changed:
            written[name] = fl.generate(changed, tokenizer, prompts, max_new_tokens=NEW_TOKENS)
    texts = {}
    for number, prompt in enumerate(prompts):
        texts[prompt] = {name: of_prompts[number] for name, of_prompts in written.items()}
    return texts


def cut_in_place(model, selection, name, dtype):
    """Cut a model in the memory that it has, in the dtype in which it will be saved.

    Return it, and the facts that JSON says of it.
    """
    from fairlab.models import stored_dtype

    cut = fl.prune(model, selection, inplace=True)
    if dtype == "auto":  # measured in float32 where it fits, but stored as it came
        cut = cut.to(stored_dtype(name))
    facts = {"parameters_after": cut.num_parameters(), "dtype": dtype_of(cut)}
    return cut, facts | {"selection": json.loads(selection.to_json())}


def place_of_page(page, out, private):
    """Return where a page is written.

    As asked, but one in the model's folder to a private folder, from which it goes there together
    with the weights, so that it never lies beside others.
    """
    return Path(private, "report.html") if page and is_inside(page, out) else page


def papers_beside(out, selection, private, card):
    """Return what takes its place with the weights, name → text.

    The selection, the page that lies in the private folder, a card. None has an old one go, which
    is about another model.
    """
    from fairlab.report.card import is_card_of_a_cut

    papers = {"selection.json": selection.to_json()}
    for name in ("report.html", "report.json"):
        written = Path(private, name)
        papers[name] = written.read_text(encoding="utf-8") if written.is_file() else None
    if card:
        papers["README.md"] = str(card)
    elif is_card_of_a_cut(out / "README.md"):  # any other README is somebody's own
        papers["README.md"] = None
    return papers
