"""What works on which family; the README's table is made from this."""

import tempfile
from pathlib import Path

import pytest
import torch
import transformers

import fairlab as fl
from fairlab.capture import CAPTURE_POINTS, available_points
from fairlab.models import glu_blocks
from tiny_models import FAMILIES, SIZES, UNGATED, tiny_model

README = Path(__file__).parent.parent / "README.md"
PAIR = fl.ARTICLE_PAIR


def attempt(action) -> bool:
    try:
        action()
    except ValueError:
        return False
    return True


def save_and_reload(model, tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        fl.save_model(model, tokenizer, folder)
        transformers.AutoModelForCausalLM.from_pretrained(folder)


def look_into(model, tokenizer):
    fl.article_metric(model, tokenizer, PAIR)
    fl.layer_differences(model, tokenizer, [PAIR])
    fl.project_pair(model, tokenizer, PAIR)
    fl.next_token_divergence(model, tokenizer, [PAIR])
    fl.generate(model, tokenizer, [PAIR.prompt_a], max_length=18)


def row(family, tokenizer):
    """Try everything on a small random model of a family, and write down what works."""
    model = tiny_model(family)
    look = attempt(lambda: look_into(model, tokenizer))
    score = attempt(lambda: (fl.bias_scores(model, tokenizer, [PAIR]), fl.importance_scores(model)))
    cut = attempt(
        lambda: save_and_reload(fl.prune(model, fl.NeuronSelection({1: (2,)}, (3, 24))), tokenizer)
    )
    missing = [point for point in CAPTURE_POINTS if point not in available_points(model)]
    cells = [family, *("yes" if works else "no" for works in (look, score, cut))]
    cells.append(f"no {', '.join(missing)}" if missing else "")
    return f"| {' | '.join(cells)} |"


def test_the_table_of_the_readme(tokenizer):
    rows = [row(family, tokenizer) for family in [*FAMILIES, *UNGATED]]
    table = "\n".join(
        ["| family | look | score | cut, save, reload | note |", "|---|---|---|---|---|", *rows]
    )
    assert table in README.read_text(encoding="utf-8"), f"put this into the README:\n{table}"


@pytest.mark.parametrize("family", UNGATED)
def test_models_without_a_gate_can_be_looked_at(family, tokenizer):
    model = tiny_model(family)
    ids = [tokenizer(prompt).input_ids for prompt in (PAIR.prompt_a, PAIR.prompt_b)]
    points = available_points(model)
    with fl.record(model, points) as together, torch.no_grad():
        model(torch.tensor(ids))
    tables = fl.neuron_differences(model, tokenizer, [PAIR], points=points)
    for point in points:
        for layer in range(3):
            values = together[point, layer]
            assert values.shape[:2] == (2, len(ids[0]))
            by_hand = (values[0, 1:] - values[1, 1:]).abs().mean(0)
            assert torch.allclose(tables[point][layer], by_hand, rtol=1e-3, atol=1e-6)
    assert fl.next_token_divergence(model, tokenizer, [PAIR]) > 0
    assert fl.generate(model, tokenizer, ["The old cook"], max_length=6)[0].startswith(
        "The old cook"
    )


@pytest.mark.parametrize("family", UNGATED)
def test_models_without_a_gate_have_nothing_to_score_or_cut(family, tokenizer):
    model = tiny_model(family)
    cut = fl.NeuronSelection({1: (2,)}, (3, 24))
    for action in (
        lambda: fl.bias_scores(model, tokenizer, [PAIR]),
        lambda: fl.importance_scores(model),
        lambda: fl.prune(model, cut),
        lambda: fl.ablate(model, cut).__enter__(),
        lambda: fl.save_model(model, tokenizer, "never-written"),
    ):
        with pytest.raises(ValueError, match="no GLU neurons to score or cut"):
            action()
    assert not Path("never-written").exists()


def test_mixtures_of_experts_are_refused_before_anything_is_touched(tokenizer):
    config = transformers.MixtralConfig(**SIZES, num_local_experts=2)
    model = transformers.MixtralForCausalLM(config).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = fl.NeuronSelection({1: (2,)}, (3, 24))
    for action in (
        lambda: fl.bias_scores(model, tokenizer, [PAIR]),
        lambda: fl.importance_scores(model),
        lambda: fl.prune(model, cut, inplace=True),
        lambda: fl.ablate(model, cut).__enter__(),
    ):
        with pytest.raises(ValueError, match="layer 0 is a mixture of experts"):
            action()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gaps_of_each_family(family, tokenizer):
    model = tiny_model(family)
    for method in ("activation", "article", "optipfair"):
        scores = fl.bias_scores(model, tokenizer, [PAIR], method=method)
        assert scores.shape == (3, 24)
        assert (scores > 0).all()
    logits = [
        model(**tokenizer(p, return_tensors="pt")).logits[0, -1]
        for p in (PAIR.prompt_a, PAIR.prompt_b)
    ]
    a, b = (x.double().softmax(-1) for x in logits)
    m = (a + b) / 2
    by_hand = ((a * (a / m).log()).sum() + (b * (b / m).log()).sum()) / 2
    assert fl.next_token_divergence(model, tokenizer, [PAIR]).item() == pytest.approx(
        by_hand.item(), rel=1e-3
    )


def test_configurations_are_as_varied_as_families_are():
    models = [tiny_model(family) for family in FAMILIES]
    tied = [
        model.get_output_embeddings().weight is model.get_input_embeddings().weight
        for model in models
    ]
    biases = [glu_blocks(model)[0].down_proj.bias is not None for model in models]
    configs = [model.config.get_text_config() for model in models]
    assert set(tied) == set(biases) == {True, False}
    assert all(config.num_key_value_heads < config.num_attention_heads for config in configs)
