"""What is kept of a run that may be stopped, so that the same command goes on from there.

Contents: `kept_choice`, `kept_texts`; `told_if_stopped`. The readings of cuts are kept by
`fairlab.compare`, in the same folder.
"""

import hashlib
import json
import sys
from contextlib import contextmanager

import typer

import fairlab as fl
from fairlab.cli.output import counted

# what there is → its files in the folder
KINDS = {"chosen cut": "cuts/*.json", "reading": "*/*.npz", "text sample": "texts/*.json"}


def kept_choice(plan, loaded, method, pairs, neutral, choose):
    """Return the cut that a method chooses: the one that was kept, or else chosen now."""
    path = plan.cache and path_of_choice(plan, loaded, method, pairs, neutral)
    return kept(path, choose, fl.NeuronSelection.to_json, fl.NeuronSelection.from_json)


def path_of_choice(plan, loaded, method, pairs, neutral):
    """Return the file of a chosen cut, which need not be there: another one for other weights,
    tokens, pairs, text or options."""
    from fairlab.evaluation.readings import cache_key

    text = fl.load_text("calibration", plan.pair_options.language)
    read = fl.HeldOut(pairs, neutral or pairs, text)
    facts = [cache_key(*loaded, read, metric=False), method, plan.bias_weight, plan.fraction]
    for chosen_on in (pairs, neutral or ()):
        facts.append([vars(pair) for pair in chosen_on])
    return plan.cache / "cuts" / f"{digest_of(facts)}.json"


def kept_texts(plan, key, change, sample):
    """Return the texts that were sampled under a change, None for none, or else sample them now.

    `key` is that of the model and the pairs, from `cache_key`.
    """
    import pandas as pd

    from fairlab.evaluation.readings import name_of

    path = None
    if plan.cache:
        name = None if change is None else name_of(change)
        facts = [key, name, plan.continuations, plan.seed]
        path = plan.cache / "texts" / f"{digest_of(facts)}.json"
    return kept(
        path,
        sample,
        lambda table: json.dumps(table.to_dict("records")),
        lambda text: pd.DataFrame(json.loads(text)),
    )


def kept(path, make, write, read):
    """Return what a file holds; where it is not there, or damaged, make it and keep it."""
    from fairlab.files import write_text

    if path is None:
        return make()
    try:
        return read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = make()
        write_text(path, write(made))
        return made


def digest_of(facts):
    """Return a short name for facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


@contextmanager
def told_if_stopped(cache):
    """Where the user stops the work inside the block, say what was kept; end with exit code 130."""
    before = count_kept(cache)
    try:
        yield
    except KeyboardInterrupt:
        from tqdm import tqdm

        counts = {what: count - before[what] for what, count in count_kept(cache).items()}
        done = ", ".join(counted(count, what) for what, count in counts.items() if count)
        said = "nothing was kept" if cache is None else "nothing new was done"
        if done:
            said = f"what was done ({done}) is kept in {cache.parent}; the same command goes on "
            said += "from there"
        tqdm.write(f"fairlab: stopped; {said}", file=sys.stderr)  # clear of progress bars
        raise typer.Exit(130) from None


def count_kept(cache):
    """Count what a folder keeps, by kind."""
    return {what: len(list(cache.glob(files))) if cache else 0 for what, files in KINDS.items()}
