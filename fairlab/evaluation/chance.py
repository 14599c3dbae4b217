"""Random cuts and gates of the same size: what changing so many neurons does by itself.

Contents: `random_selections`, `random_gates`.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from fairlab.gating import NeuronGates
from fairlab.pairs import check_kind
from fairlab.passes import check_whole
from fairlab.surgery import NeuronSelection

NEIGHBOURS = 20  # a matched random cut takes one of so many neurons with a similar value


def random_selections(
    selection: NeuronSelection, n: int, *, seed: int = 0, match: Tensor | None = None
) -> list[NeuronSelection]:
    """Draw n random cuts with as many neurons in each layer as a selection has.

    Parameters
    ----------
    selection : NeuronSelection
        The cut to be imitated.
    n : int
        How many, 1 or more.
    seed : int
        The same seed draws the same cuts.
    match : Tensor of shape (layers, neurons), optional
        Such as Fisher's importance, or the mean absolute activation. Every neuron of the selection
        is then replaced by one of the `NEIGHBOURS` nearest to it in the ranks of this table, in its
        layer and outside the selection. A cut that only removes neurons that matter (or that are
        active) does no better than these.

    Raises
    ------
    ValueError
        n below 1, or a table of another shape or with values that are not finite.
    """
    check_kind("selection", selection, NeuronSelection, "a NeuronSelection")
    n, seed = check_whole("n", n, 1), check_whole("seed", seed, 0)
    if match is not None:
        _check_match(match, selection)
    draw = random.Random(seed)
    width = selection.shape[1]
    cuts = []
    for number in range(n):
        neurons = {}
        for layer, chosen in selection.neurons.items():
            if match is None:
                neurons[layer] = draw.sample(range(width), len(chosen))
            else:
                neurons[layer] = _similar_neurons(match[layer], chosen, draw)
        note = f"random cut {number} of seed {seed}"
        if match is not None:
            note += ", matched"
        cuts.append(NeuronSelection(neurons, selection.shape, note))
    return cuts


def random_gates(
    gates: NeuronGates,
    n: int,
    *,
    seed: int = 0,
    match: Tensor | None = None,
    means: Tensor | None = None,
) -> list[NeuronGates]:
    """Give the same gates to random neurons, as many in each layer.

    Parameters
    ----------
    gates : NeuronGates
        What is to be imitated. In each layer its gates go, in their order, to neurons in random
        order.
    n, seed, match : int, int, Tensor
        As in `random_selections`.
    means : Tensor of shape (layers, neurons), optional
        Toward what each neuron moves, such as `mean_activations`; 0 by default. A neuron must move
        toward its own mean, not toward that of the one it stands in for.

    Raises
    ------
    ValueError
        As `random_selections`.
    """
    means = torch.zeros(gates.shape) if means is None else means
    copies = []
    for cut in random_selections(gates.selection, n, seed=seed, match=match):
        rows = {}
        for layer, neurons in cut.neurons.items():
            values = [gate for gate, _ in gates.gates[layer].values()]
            order = random.Random(f"{cut.how} {layer}").sample(neurons, len(neurons))
            rows[layer] = {
                neuron: (value, means[layer, neuron].item())
                for neuron, value in zip(order, values, strict=True)
            }
        copies.append(NeuronGates(rows, gates.shape, cut.how.replace("cut", "gates")))
    return copies


def _check_match(match: Tensor, selection: NeuronSelection) -> None:
    check_kind("match", match, Tensor, "a tensor of shape (layers, neurons)")
    if tuple(match.shape) != selection.shape:
        raise ValueError(
            f"match: expected a table of shape {selection.shape}; got {tuple(match.shape)}"
        )
    if not torch.isfinite(match).all():
        raise ValueError("match: expected finite values; got NaN or infinity")


def _similar_neurons(values: Tensor, chosen: Sequence[int], draw: random.Random) -> list[int]:
    """Replace each chosen neuron of a layer by one of those nearest in rank that are still free."""
    by_value = values.argsort().tolist()
    rank = {neuron: place for place, neuron in enumerate(by_value)}
    free = [neuron for neuron in by_value if neuron not in set(chosen)]
    if len(free) < len(chosen):
        raise ValueError(
            "match: more than half of a layer is selected; too few neurons are left to match it"
        )
    replacements = []
    # in random order, since those that come first have the nearest to choose from
    for neuron in draw.sample(list(chosen), len(chosen)):

        def distance(other: int, place: int = rank[neuron]) -> int:
            return abs(rank[other] - place)

        free.sort(key=distance)
        nearest = min(NEIGHBOURS, len(free))
        replacements.append(free.pop(draw.randrange(nearest)))
    return replacements
