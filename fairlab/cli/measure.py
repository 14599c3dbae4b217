"""Carry out a plan: choose or load what it judges, compare it, and keep what was measured.

Contents: `carry_out`; `told_if_stopped`; `tell_time`.
"""

import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import typer

import fairlab as fl
from fairlab.cli.neurons import choose_neurons
from fairlab.cli.output import counted, dtype_of
from fairlab.cli.pairs import pairs_for, start_of


def carry_out(plan, loaded, choosing, held_out):
    """Choose or load what a plan judges, and compare it."""
    n_random, imitated = plan.n_random, {}
    if plan.quick:
        n_random = min(n_random, 5)
        held_out = replace(held_out, text=start_of(held_out.text, loaded[1], 512))
    if plan.changed:
        name = Path(plan.changed).resolve().name
        cuts = {name: changed_model(plan, loaded, held_out)}
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


def cuts_to_judge(plan, loaded, pairs):
    """Return the cuts that the methods of a plan choose, or the one that is given, by name."""
    if plan.selection:
        return {plan.selection.stem: plan.given_cut()}
    choosing, cuts = {}, {}
    for method in plan.methods:
        if method != "random":
            choosing[method] = pairs_for(loaded[1], pairs, method)
    for method, some in choosing.items():
        choice = (method, plan.bias_weight, plan.fraction, plan.batch_size, plan.pair_options)
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
        no_scores = torch.zeros(len(blocks), blocks[0].down_proj.in_features)  # (layers, neurons)
        like = fl.select_neurons(no_scores, fraction=plan.fraction)
    return fl.random_selections(like, plan.n_random + 1, seed=plan.seed)[-1]


def changed_model(plan, loaded, held_out):
    """Load a changed model like the original; refuse one that reads what is measured as other
    tokens."""
    from fairlab.pairs import prompt_ids

    model, tokenizer = loaded
    changed, other = fl.load_model(plan.changed, dtype=dtype_of(model), **plan.where)
    texts = [held_out.text]
    for pair in held_out.everything:
        texts += [pair.prompt_a, pair.prompt_b]
    for text in texts:
        if prompt_ids(tokenizer, text) != prompt_ids(other, text):
            raise ValueError(
                f"changed: {plan.changed} reads {text[:40]!r} as other tokens than the original "
                "does; only models with one vocabulary can be compared"
            )
    return changed


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
