"""Carry out a plan: choose or load what it judges, and compare it.

Contents: `Material`, `material_of` (before the model loads); `carry_out`; `tell_time_of_choice`,
where neurons are only chosen.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import fairlab as fl
from fairlab import processes
from fairlab.cli.estimate import (
    paces_of,
    reading_paces,
    seconds_of,
    seconds_of_choice,
    tell_time,
)
from fairlab.cli.kept import kept_cut, paths_of_choices
from fairlab.cli.neurons import check_size, choose_neurons, chosen_on, scope_of
from fairlab.cli.output import dtype_of
from fairlab.cli.pairs import choosing_and_judging, start_of


@dataclass(frozen=True)
class Material:
    """What a plan reads.

    `choosing`, the pairs that choose; `of_method`, those that each method takes, with its neutral
    ones; `held_out`, all that judges.
    """

    choosing: list
    of_method: dict
    held_out: "fl.HeldOut"


def material_of(plan, model):
    """Collect what a plan reads; refuse what can't be measured or chosen on.

    It needs the tokenizer and the configuration of a model alone.
    """
    from fairlab.models import load_tokenizer
    from fairlab.passes import WINDOW

    check_size(model, plan.methods, plan.fraction, plan.given_cut())
    tokenizer = load_tokenizer(model)
    choosing, held_out = choosing_and_judging(tokenizer, plan.pair_options, plan.chooses)
    methods = [method for method in plan.methods if method != "random"]
    of_method = chosen_on(tokenizer, plan.pair_options, choosing, methods)
    if plan.changed:
        check_same_vocabulary(model, plan.changed)
        check_same_tokens(tokenizer, plan.changed, held_out)
    if plan.quick:
        held_out = replace(held_out, text=start_of(held_out.text, tokenizer, WINDOW))
    return Material(choosing, of_method, held_out)


def carry_out(plan, loaded, material, page=False):
    """Say about how long it takes, choose or load what a plan judges, and compare it.

    Of several processes only the first one comes back.
    """
    from fairlab.files import keep

    model = loaded[0]
    settings = {
        "n_random": min(plan.n_random, 5) if plan.quick else plan.n_random,
        "seed": plan.seed,
        "metric": not plan.quick,
        "imitated": {},
        "cache": plan.cache,
    }
    paths = paths_of_choices(plan, loaded, material.of_method)
    found = {method: kept_cut(path) for method, path in paths.items()}
    found = processes.from_first(found)  # others may have another cache folder, or none
    if plan.changed:
        name = Path(plan.changed).resolve().name
        cuts = {name: changed_model(plan, model)}
        settings["imitated"] = {name: plan.given_cut()} if plan.given_cut() else {}
    else:
        expected = {method: cut or stand_in(plan, model, method) for method, cut in found.items()}
        cuts = cuts_to_judge(plan, model, expected)
    to_choose = {method: material.of_method[method] for method, cut in found.items() if not cut}
    tell_time_of(plan, loaded, material, to_choose, cuts, settings, page)
    if to_choose:
        for method, pairs in to_choose.items():
            choice = (method, plan.bias_weight, plan.fraction, plan.batch_size, plan.pair_options)
            found[method] = processes.from_first(choose_neurons(loaded, *pairs, *choice))
            if processes.is_first():
                keep(paths[method], found[method].to_json())
        cuts = cuts_to_judge(plan, model, found)
    settings["batch_size"] = plan.batch_size
    measured = fl.compare(*loaded, cuts, material.held_out, **settings)
    processes.end_unless_first()
    return measured


def tell_time_of(plan, loaded, material, to_choose, cuts, settings, page):
    """Say about how long a plan takes, from a short pass against the clock."""
    from fairlab.evaluation.compare import count_readings

    readings, kept = count_readings(*loaded, cuts, material.held_out, **settings)
    paces = paces_of(plan, loaded, material, settings["metric"], page)
    given = (material, to_choose, cuts, readings, paces)
    tell_time(seconds_of(plan, loaded[1], *given), readings, kept)


def tell_time_of_choice(loaded, method, taken, batch_size, pair_options):
    """Say about how long it takes to choose by a method alone."""
    pairs, neutral = taken
    text = fl.load_text("calibration", pair_options.language)
    # only to time it: what takes no neutral pairs reads more of the others
    read = fl.HeldOut(pairs, neutral or pairs, text)
    paces = reading_paces(loaded, read, False, batch_size)
    seconds = seconds_of_choice(loaded[1], method, taken, batch_size, pair_options, paces)
    tell_time({"to choose": seconds})


def cuts_to_judge(plan, model, chosen):
    """Return what a plan judges, by name.

    The cut that is given, or those that its methods choose, in their order, with a random one where
    it asks for one.
    """
    if plan.selection:
        return {plan.selection.stem: plan.given_cut()}
    cuts = dict(chosen)
    if "random" in plan.methods:
        cuts["random"] = random_cut(plan, model, next(iter(chosen.values()), None))
    return {method: cuts[method] for method in plan.methods}


def stand_in(plan, model, method):
    """Return a cut of the size that a method chooses: the first neurons of each layer."""
    from fairlab.gates import table_shape
    from fairlab.surgery import count_of_fraction

    layers, width = table_shape(model)
    counts = [count_of_fraction(plan.fraction, width)] * layers
    if scope_of(method) == "model":  # as evenly as it goes, since nobody knows where they will be
        count = count_of_fraction(plan.fraction, layers * width)
        counts = [min((count + layer) // layers, width - 1) for layer in range(layers)]
    neurons = {layer: range(count) for layer, count in enumerate(counts)}
    return fl.NeuronSelection(neurons, (layers, width), method)


def random_cut(plan, model, like):
    """Return a random cut of the size of another one, or with a fraction of each layer.

    It is the next after those that every cut is compared with, so it is none of them.
    """
    if like is None:
        like = stand_in(plan, model, "random")
    return fl.random_selections(like, plan.n_random + 1, seed=plan.seed)[-1]


def changed_model(plan, model):
    """Load a changed model like the original."""
    return fl.load_model(plan.changed, dtype=dtype_of(model), **plan.where)[0]


def check_same_vocabulary(model, changed):
    """Refuse a changed model that can't be loaded, or predicts other tokens, before it loads."""
    from fairlab.models import empty_model

    counts = []
    for name in (model, changed):
        counts.append(len(empty_model(name).get_output_embeddings().weight))
    if counts[0] != counts[1]:
        raise ValueError(
            f"changed: {changed} predicts {counts[1]:,} tokens and the original {counts[0]:,}; "
            "only models with one vocabulary can be compared"
        )


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
