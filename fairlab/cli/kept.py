"""What is kept of a run that may be stopped, so that the same command goes on from there.

Contents: `paths_of_choices`, `kept_cut`; `kept_texts`; `message_if_stopped`, `what_was_kept`. The
readings of cuts are kept by `fairlab.compare`, in the same folder.
"""

import hashlib
import json
import sys
from contextlib import contextmanager

import typer

import fairlab as fl
from fairlab.cli.output import counted
from fairlab.processes import LostProcess

# what there is → its files in the folder
KINDS = {"chosen cut": "cuts/*.json", "reading": "*/*.npz", "text sample": "texts/*.json"}


def paths_of_choices(plan, loaded, of_method):
    """Return the file of the cut that each method chooses, which need not be there.

    It is another one for other weights, tokens, words, text or options; None where nothing is kept.
    """
    if not (plan.cache and of_method):
        return dict.fromkeys(of_method)
    from fairlab.evaluation.readings import facts_of
    from fairlab.pairs import prompt_ids

    model, tokenizer = loaded
    text = fl.load_text("calibration", plan.pair_options.language)
    text = tokenizer(text, verbose=False).input_ids
    model_facts = facts_of(model, text[:8])
    paths = {}
    for method, (pairs, neutral) in of_method.items():
        read = []
        for pair in [*pairs, *(neutral or ())]:
            ids = [prompt_ids(tokenizer, prompt) for prompt in (pair.prompt_a, pair.prompt_b)]
            read.append([vars(pair), *ids])
        facts = [model_facts, text, method, plan.bias_weight, plan.fraction, len(pairs), read]
        paths[method] = plan.cache / "cuts" / f"{digest_of(facts)}.json"
    return paths


def kept_cut(path):
    """Return the cut that a file holds, or None."""
    from fairlab.files import read_kept

    return read_kept(path, fl.NeuronSelection.from_json)


def kept_texts(plan, key, change, sample):
    """Return the texts that were sampled under a change, None for none, or else sample them now.

    `key` is that of the model and the pairs, from `cache_key`.
    """
    import pandas as pd

    from fairlab.evaluation.readings import name_of
    from fairlab.files import keep, read_kept

    path = None
    if plan.cache:
        name = None if change is None else name_of(change)
        facts = [key, name, plan.continuations, plan.seed]
        path = plan.cache / "texts" / f"{digest_of(facts)}.json"
    texts = read_kept(path, lambda text: pd.DataFrame(json.loads(text)))
    if texts is None:
        texts = sample()
        keep(path, json.dumps(texts.to_dict("records")))
    return texts


def digest_of(facts):
    """Return a short name for facts that JSON can hold."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


@contextmanager
def message_if_stopped(cache):
    """Where the user stops the work inside the block, say what was kept; end with exit code 130.

    Where another process ends, that is added to what is said of it.
    """
    before = count_kept(cache)
    try:
        yield
    except LostProcess as lost:
        raise LostProcess(f"{lost}; {what_was_kept(cache, before)}") from None
    except KeyboardInterrupt:
        from tqdm import tqdm

        message = f"fairlab: stopped; {what_was_kept(cache, before)}"
        tqdm.write(message, file=sys.stderr)  # clear of progress bars
        raise typer.Exit(130) from None


def what_was_kept(cache, before):
    """Say in words what a folder keeps that it did not keep before."""
    counts = {what: count - before[what] for what, count in count_kept(cache).items()}
    done = ", ".join(counted(count, what) for what, count in counts.items() if count)
    if done:
        kept = f"what was done ({done}) is kept in {cache.parent}"
        return f"{kept}; the same command goes on from there"
    return "nothing was kept" if cache is None else "nothing new was done"


def count_kept(cache):
    """Count what a folder keeps, by kind."""
    return {what: len(list(cache.glob(files))) if cache else 0 for what, files in KINDS.items()}
