"""Gates on chosen neurons: which, how far, toward what. Choose them, try them, make them permanent.

Contents: `NeuronGates`; `gated` (reversible) and `applied` (for cuts, gates and changed models);
`fold_gates` (into the weights); `balanced_gates`, the recipe of lesson 08, made of `gate_tables`
and `solve_gates`; `mean_activations`.

A removal is the special case of a gate of 0 toward 0. Gates can turn a neuron halfway down (0.5) or
up (2), or move it toward what it does in plain prose, so that its usual contribution stays.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import check_finite, record, refuse_own_hooks
from fairlab.files import load_text
from fairlab.gates import gate, table_shape
from fairlab.models import (
    check_room_for_slopes,
    copy_model,
    glu_blocks,
    input_device,
    refuse_offloaded,
)
from fairlab.pairs import PromptPair
from fairlab.passes import (
    check_material,
    check_positive,
    check_whole,
    is_number,
    progress,
    text_chunks,
)
from fairlab.precision import full_precision
from fairlab.scores import attribution_scores, check_finite_tables, fisher_scores
from fairlab.surgery import (
    NeuronSelection,
    ablate,
    count_of_fraction,
    is_whole_key,
    json_object,
    matching_blocks,
)


@dataclass(frozen=True)
class NeuronGates:
    """Neurons of one model, how far each is turned, and toward what.

    Parameters
    ----------
    gates : dict of int to dict of int to (float, float)
        Layer → neuron → (gate, toward): the activation h becomes `gate · h + (1 − gate) · toward`.
        A gate of 1 changes nothing, 0 with `toward` 0 removes the neuron; `toward` is in units of
        activation. Layers without gates are left out.
    shape : (int, int)
        Layers, and neurons in each layer, of the model.
    how : str
        How they were chosen, for people.

    Raises
    ------
    ValueError
        A layer or neuron that the shape does not have, what is not two finite numbers, or gates on
        all neurons of a layer.
    """

    gates: Mapping[int, Mapping[int, tuple[float, float]]]
    shape: tuple[int, int]
    how: str = ""

    def __post_init__(self) -> None:
        for row in self.gates.values() if isinstance(self.gates, Mapping) else [None]:
            if not isinstance(row, Mapping):
                raise ValueError(
                    f"gates: expected layer → neuron → (gate, toward); got {self.gates!r}"
                )
        for layer, row in self.gates.items():
            for neuron, values in row.items():
                # a string would be taken letter by letter, and a set is in no order
                numbers = list(values) if isinstance(values, Sequence) else []
                if len(numbers) != 2 or not all(map(is_number, numbers)):
                    raise ValueError(
                        "gates: expected two finite numbers a neuron, (gate, toward); "
                        f"got {values!r} for neuron {neuron} of layer {layer}"
                    )
        # the selection checks layers, neurons and shape, and sorts them
        neurons = {layer: tuple(row) for layer, row in self.gates.items()}
        selection = NeuronSelection(neurons, self.shape, self.how)
        tidy = {}
        for layer, indices in selection.neurons.items():
            tidy[layer] = {index: tuple(map(float, self.gates[layer][index])) for index in indices}
        # the dataclass is frozen, so its fields are set through object
        object.__setattr__(self, "gates", tidy)
        object.__setattr__(self, "shape", selection.shape)

    def __len__(self) -> int:
        """Return the number of neurons."""
        return sum(map(len, self.gates.values()))

    def __repr__(self) -> str:
        layers, width = self.shape
        where = f"{len(self.gates)} of {layers} layers of {width}"
        return f"NeuronGates({len(self)} neurons in {where}; {self.how})"

    @property
    def selection(self) -> NeuronSelection:
        """The neurons alone."""
        neurons = {layer: tuple(row) for layer, row in self.gates.items()}
        return NeuronSelection(neurons, self.shape, self.how)

    @property
    def moves_toward_zero(self) -> bool:
        """Whether every neuron moves toward 0, so that no bias is needed to fold the gates."""
        return not any(toward for row in self.gates.values() for _, toward in row.values())

    def tables(self) -> tuple[Tensor, Tensor]:
        """Return gates and `toward` of all neurons, each float64 of shape (layers, neurons)."""
        gates = torch.ones(self.shape, dtype=torch.float64)
        toward = torch.zeros(self.shape, dtype=torch.float64)
        for layer, row in self.gates.items():
            for neuron, values in row.items():
                gates[layer, neuron], toward[layer, neuron] = values
        return gates, toward

    @classmethod
    def from_tables(
        cls, gates: Tensor, toward: Tensor | None = None, *, how: str = ""
    ) -> "NeuronGates":
        """Make gates from tables of shape (layers, neurons), of every neuron whose gate is not 1.

        Parameters
        ----------
        gates : Tensor
            The gate of every neuron.
        toward : Tensor, optional
            Toward what it moves; 0 by default.
        how : str
            How they were chosen, for people.

        Raises
        ------
        ValueError
            Tables of unequal shapes, values that are not finite, or gates on all neurons of a
            layer.
        """
        given = {"gates": gates} if toward is None else {"gates": gates, "toward": toward}
        check_finite_tables(given)
        toward = torch.zeros_like(gates) if toward is None else toward
        rows: dict[int, dict[int, tuple[float, float]]] = {}
        for layer, neuron in (gates != 1).nonzero().tolist():
            values = gates[layer, neuron].item(), toward[layer, neuron].item()
            rows.setdefault(layer, {})[neuron] = values
        return cls(rows, tuple(gates.shape), how)

    def to_json(self) -> str:
        """Return the gates as strict JSON; `from_json` gives back the same numbers to the bit."""
        rows = {}
        for layer, row in self.gates.items():
            rows[str(layer)] = {str(neuron): list(values) for neuron, values in row.items()}
        return json.dumps({"shape": list(self.shape), "how": self.how, "gates": rows})

    @classmethod
    def from_json(cls, text: str) -> "NeuronGates":
        """Read what `to_json` wrote.

        Parameters
        ----------
        text : str
            The JSON itself, not the path of a file.

        Raises
        ------
        ValueError
            Not JSON; other keys than "shape", "how" and "gates"; a layer or neuron named twice, or
            one that is no whole number.
        """
        data = json_object(text, ("shape", "how", "gates"))
        rows = {}
        try:
            for layer, row in data["gates"].items():
                for number in (layer, *row):
                    if not is_whole_key(number):
                        raise ValueError(f"{number!r} in place of a layer or neuron")
                rows[int(layer)] = {int(neuron): values for neuron, values in row.items()}
                if not all(isinstance(values, list) for values in row.values()):
                    raise ValueError(f"layer {layer}: {row!r}")
            shape = tuple(data["shape"])
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                "text: expected layer → neuron → [gate, toward], and two numbers as shape; "
                f"got {error}"
            ) from error
        return cls(rows, shape, str(data["how"]))


@contextmanager
def gated(model: PreTrainedModel, gates: NeuronGates) -> Iterator[None]:
    """Turn the neurons as the gates say, inside the `with` block; the weights stay as they are.

    Inside, each activation h of these neurons is `gate · h + (1 − gate) · toward`. With gates of 0
    toward 0 this is `ablate` of the same neurons.

    Parameters
    ----------
    gates : NeuronGates
        Made for this model's shape.

    Raises
    ------
    ValueError
        Gates for a model of another shape.
    """
    matching_blocks(model, gates, NeuronGates, "gates")
    precise = torch.promote_types(model.dtype, torch.float32)
    values, toward = (table.to(precise) for table in gates.tables())
    with gate(model, values, None if gates.moves_toward_zero else toward):
        yield


@contextmanager
def applied(
    model: PreTrainedModel, cut: NeuronSelection | NeuronGates | PreTrainedModel
) -> Iterator[PreTrainedModel]:
    """Put a cut or gates into effect inside a `with` block, by `ablate` or `gated`.

    The block gets the model that is to be read there: the same one, or a changed model, if that
    came in place of a cut.
    """
    if isinstance(cut, PreTrainedModel):
        yield cut
        return
    with gated(model, cut) if isinstance(cut, NeuronGates) else ablate(model, cut):
        yield model


def fold_gates(model: PreTrainedModel, gates: NeuronGates) -> PreTrainedModel:
    """Write gates into the weights: a model of the same shape that needs no hook.

    A gate scales the neuron's column of `down_proj`, W. What a neuron does instead, `(1 − gate) ·
    toward`, is the same for every token, so it goes through W once and becomes part of the bias.

    Parameters
    ----------
    gates : NeuronGates
        Gates toward 0 fold into any model with GLU neurons. Gates toward something else need an
        architecture with a bias in `down_proj`: there already, or switched on by `mlp_bias` in the
        configuration (Llama and its relatives), which gives all three matrices of every layer a
        bias, 0 where nothing is written.

    Returns
    -------
    PreTrainedModel
        A new model in the same dtype; save it with `save_model`. Stock transformers loads it. It
        computes what `gated` does up to the order of sums; in half precision weights and bias are
        rounded once more.

    Raises
    ------
    ValueError
        Gates for a model of another shape, gates toward something else than 0 where the
        architecture has no bias, or a model with offloaded weights, or inside `gated`, `ablate` or
        `record`.
    """
    matching_blocks(model, gates, NeuronGates, "gates")
    refuse_own_hooks(model)
    refuse_offloaded(model, "folded")
    needs_bias = not gates.moves_toward_zero and glu_blocks(model)[0].down_proj.bias is None
    if needs_bias and getattr(model.config.get_text_config(), "mlp_bias", None) is None:
        raise ValueError(
            "gates: toward something else than 0 they need a bias in down_proj, which "
            f"{type(model).__name__} does not have; use gates toward 0, or fairlab.gated"
        )
    folded = copy_model(model)
    blocks = glu_blocks(folded)
    if needs_bias:
        _add_biases(folded)
    values, toward = gates.tables()  # (layers, neurons) each
    for layer in gates.gates:
        down = blocks[layer].down_proj
        weight = down.weight.detach().double()  # (hidden, neurons)
        gate_row = values[layer].to(weight.device)
        if down.bias is not None:
            instead = (1 - gate_row) * toward[layer].to(weight.device)  # (neurons,)
            down.bias.data += (weight @ instead).to(down.bias.dtype)
        # only the columns that change, so that all others stay the same to the bit
        columns = list(gates.gates[layer])
        scaled = weight[:, columns] * gate_row[columns]
        down.weight.data[:, columns] = scaled.to(down.weight.dtype)
    return folded


def _add_biases(model: PreTrainedModel) -> None:
    """Give every matrix of every MLP a bias of zeros, as `mlp_bias` in the configuration does."""
    model.config.get_text_config().mlp_bias = True
    for mlp in glu_blocks(model):
        for projection in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
            zeros = projection.weight.new_zeros(projection.out_features)
            projection.bias = nn.Parameter(zeros, requires_grad=projection.weight.requires_grad)


@full_precision()
def mean_activations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str
) -> Tensor:
    """Compute the mean activation h of every neuron over a text: what it does in plain prose.

    Parameters
    ----------
    text : str
        Plain prose, read in chunks of 256 tokens as in `fisher_scores`.

    Returns
    -------
    Tensor
        Float32 on the CPU, shape (layers, neurons), in units of activation, of either sign.

    Raises
    ------
    ValueError
        A text of fewer than two tokens, or a model without GLU neurons.
    """
    chunks = text_chunks(model, tokenizer, text, logits=False)
    total = 0  # then (layers, neurons)
    for chunk in progress(chunks, desc="mean activations", unit="chunk"):
        ids = torch.tensor([chunk], device=input_device(model))  # (1, tokens)
        with record(model, ["down_proj_input"]) as activations, torch.no_grad():
            model.base_model(input_ids=ids, use_cache=False)
        rows = [h[0].float().mean(0).cpu() for _, h in sorted(activations.items())]
        total = total + torch.stack(rows)
    check_finite(total, "down_proj_input")
    return total / len(chunks)


@dataclass(frozen=True)
class GateTables:
    """What `solve_gates` needs, each a table of shape (layers, neurons)."""

    gap: Tensor  # by what share the demographic gap narrows as a gate goes from 1 to 0
    neutral: Tensor  # the same of the neutral gap
    importance: Tensor  # Fisher's, of gates toward the mean
    mean: Tensor  # toward what the neurons move


def balanced_gates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    *,
    text: str | None = None,
    fraction: float = 0.002,
    goal: float = 1.1,
) -> NeuronGates:
    """Choose neurons and turn each just so far that people's words matter less.

    Neutral words should keep their effect, and the expected damage is the least that this allows:
    the tables of `gate_tables`, and then `solve_gates`. The gates move neurons toward their mean
    over a text. Defaults were chosen on fairlab's validation pairs and the default model, where 92
    neurons were to be turned. On that model and the test pairs these gates narrow the gap by 41.8 %
    and widen that of neutral pairs by 7.2 % (`data/results/models.csv`); README's table has the
    intervals and the price.

    Parameters
    ----------
    pairs, neutral : list of PromptPair
        Demographic pairs, and neutral pairs in the same templates. Judge the gates on others.
    text : str, optional
        Plain prose for the mean and for Fisher's importance, `load_text("calibration")` by default:
        give another one for pairs in another language. Measure the price on another text.
    fraction : float
        Share of the model's neurons to turn, above 0 and below 1.
    goal : float
        As in `solve_gates`. Of some models so few neurons can't reach the default; the error says
        how far they reach, and a lower goal or a larger fraction helps.

    Raises
    ------
    ValueError
        A fraction or goal out of range, a goal that so many neurons can't reach, or what
        `attribution_scores` and `fisher_scores` refuse.
    """
    count = count_of_fraction(fraction, math.prod(table_shape(model)))
    check_positive("goal", goal)
    pairs, neutral = check_material(tokenizer, pairs, neutral, text)
    tables = gate_tables(model, tokenizer, pairs, neutral, text=text)
    how = f"balanced, {len(pairs)} pairs, {len(neutral)} neutral ones, goal {goal:g}"
    solved = solve_gates(tables, count=count, goal=goal)
    return NeuronGates.from_tables(solved, tables.mean, how=how)


def gate_tables(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    *,
    text: str | None = None,
) -> GateTables:
    """Compute what `solve_gates` needs, of gates that move toward `mean_activations`.

    These are `attribution_scores` of both kinds of pairs, and `fisher_scores`.

    All neutral pairs count as one category, as in `compare`.
    """
    check_room_for_slopes(model)
    text = load_text("calibration") if text is None else text
    mean = mean_activations(model, tokenizer, text)
    together = [replace(pair, category="neutral") for pair in neutral]
    gap = attribution_scores(model, tokenizer, pairs, relative=True, toward=mean)
    side_effect = attribution_scores(model, tokenizer, together, relative=True, toward=mean)
    importance = fisher_scores(model, tokenizer, text, toward=mean)
    return GateTables(gap, side_effect, importance, mean)


def solve_gates(
    tables: GateTables, *, count: int, goal: float, charge: float = 0.78, floor: float = 3.0
) -> Tensor:
    """Compute gates that promise, to first order, a lower gap at little expected damage.

    `count` neurons are turned so far that the gap should fall by a share of `goal`.

    ::

        d = t · (gap − charge · neutral) / (F² + floor · mean F²),   gate = 1 − d

    with F Fisher's importance, and t such that the sum of d · gap is `goal`. Of all d of these
    neurons that promise as much for the gap, and do the same to the neutral gap, none has a lower
    sum of (F² + floor · mean F²) · d², unless a gate had to stop at 0 or 2. The neurons are those
    that bring most for their price, `(gap − charge · neutral)² / (F² + floor · mean F²)`. Unlike
    in `guarded_scores` the neutral slope keeps its sign: what one neuron takes from neutral words
    another gives back. No neuron is protected outright: those with a large F are hardly turned.

    Parameters
    ----------
    tables : GateTables
        From `gate_tables`.
    count : int
        How many neurons of the whole model.
    goal : float
        The promised decrease as a share of the gap, above 0. A promise to first order: gates bring
        less, since the gap bends: a quarter to a half of it in `gates_search.csv`.
    charge : float
        How much the neutral gap counts against the demographic one, 0 or more.
    floor : float
        Damage that every neuron is taken to do, as a share of the mean, above 0.

    Returns
    -------
    Tensor
        Float32, shape (layers, neurons), from 0 (moved all the way) to 2 (as far the other way); 1
        for all neurons that are left alone.

    Raises
    ------
    ValueError
        An option out of range, or a goal that so many neurons can't reach.
    """
    goal = check_positive("goal", goal)
    charge = check_positive("charge", charge, or_zero=True)
    floor = check_positive("floor", floor)
    damage = tables.importance.double() ** 2  # (layers, neurons)
    count = check_whole("count", count, 1, damage.numel())
    damage = damage + floor * damage.mean()
    gain = tables.gap.double() - charge * tables.neutral.double()
    # what a neuron brings for its price decides which are turned
    worth = gain**2 / damage
    least = worth.flatten().topk(count).values[-1]
    direction = torch.where(worth >= least, gain / damage, 0)

    def surplus(t: float) -> float:
        """Return by how much the promise of d = t · direction lies above the goal."""
        return ((direction * t).clamp(-1, 1) * tables.gap).sum().item() - goal

    steepest = direction.abs().max().item()
    largest = 1e3 / steepest if steepest else 0.0  # where no neuron brings anything
    if surplus(largest) < 0:
        best = surplus(largest) + goal
        raise ValueError(f"goal: expected at most {best:.2f} of {count} neurons; got {goal}")
    t = brentq(surplus, 0, largest)
    return 1 - (direction * t).clamp(-1, 1).float()
