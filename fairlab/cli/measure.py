"""Carry out a plan: choose or load what it judges, and compare it.

Contents: `Material`, `material_of` (before the model loads); `carry_out`; `tell_time`.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import fairlab as fl
from fairlab.cli.kept import kept_choice
from fairlab.cli.neurons import check_size, choose_neurons, chosen_on
from fairlab.cli.output import counted, dtype_of
from fairlab.cli.pairs import choosing_and_judging, start_of


@dataclass(frozen=True)
class Material:
    """What a plan reads: `choosing`, the pairs that choose; `of_method`, those that each method
    takes, with its neutral ones; `held_out`, all that judges."""

    choosing: list
    of_method: dict
    held_out: "fl.HeldOut"


def material_of(plan, model):
    """Collect what a plan reads, with the tokenizer and the configuration of a model alone; refuse
    what can't be measured or chosen on."""
    from fairlab.models import load_tokenizer

    check_size(model, plan.methods, plan.fraction, plan.given_cut())
    tokenizer = load_tokenizer(model)
    choosing, held_out = choosing_and_judging(tokenizer, plan.pair_options, plan.chooses)
    methods = [method for method in plan.methods if method != "random"]
    of_method = chosen_on(tokenizer, plan.pair_options, choosing, methods)
    if plan.changed:
        check_same_tokens(tokenizer, plan.changed, held_out)
    if plan.quick:
        held_out = replace(held_out, text=start_of(held_out.text, tokenizer, 512))
    return Material(choosing, of_method, held_out)


def carry_out(plan, loaded, material):
    """Choose or load what a plan judges, and compare it."""
    imitated = {}
    if plan.changed:
        name = Path(plan.changed).resolve().name
        cuts = {name: changed_model(plan, loaded[0])}
        imitated = {name: plan.given_cut()} if plan.given_cut() else {}
    else:
        cuts = cuts_to_judge(plan, loaded, material)
    return fl.compare(
        *loaded,
        cuts,
        material.held_out,
        n_random=min(plan.n_random, 5) if plan.quick else plan.n_random,
        seed=plan.seed,
        metric=not plan.quick,
        imitated=imitated,
        cache=plan.cache,
        batch_size=plan.batch_size,
        announce=tell_time,
    )


def cuts_to_judge(plan, loaded, material):
    """Return the cuts that the methods of a plan choose, or the one that is given, by name."""
    if plan.selection:
        return {plan.selection.stem: plan.given_cut()}
    cuts = {}
    for method, pairs in material.of_method.items():
        choice = (method, plan.bias_weight, plan.fraction, plan.batch_size, plan.pair_options)
        choose = partial(choose_neurons, loaded, *pairs, *choice)
        cuts[method] = kept_choice(plan, loaded, method, *pairs, choose)
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


def changed_model(plan, model):
    """Load a changed model like the original."""
    return fl.load_model(plan.changed, dtype=dtype_of(model), **plan.where)[0]


def check_same_tokens(tokenizer, changed, held_out):
    """Refuse a changed model that reads what is measured as other tokens."""
    from fairlab.models import load_tokenizer
    from fairlab.pairs import prompt_ids

    other = load_tokenizer(changed)
    texts = [held_out.text]
    for pair in held_out.everything:
        texts += [pair.prompt_a, pair.prompt_b]
    for text in texts:
        if prompt_ids(tokenizer, text) != prompt_ids(other, text):
            raise ValueError(
                f"changed: {changed} reads {text[:40]!r} as other tokens than the original does; "
                "only models with one vocabulary can be compared"
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
