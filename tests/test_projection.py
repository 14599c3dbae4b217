import itertools

import numpy as np
import pytest
import torch

import fairlab as fl
from tiny_models import FAMILIES, UNGATED, tiny_model

PAIR = fl.ARTICLE_PAIR


def test_coordinates_are_those_of_a_singular_value_decomposition(model, tokenizer):
    projection = fl.project_pair(model, tokenizer, PAIR, point="mlp_output")
    ids = torch.tensor([tokenizer(prompt).input_ids for prompt in (PAIR.prompt_a, PAIR.prompt_b)])
    with fl.record(model, ["mlp_output"]) as activations:
        model(ids)
    for layer in (0, 8, 29):
        values = activations["mlp_output", layer].double().flatten(0, 1)
        centred = values - values.mean(0)
        u, s, _ = torch.linalg.svd(centred, full_matrices=False)
        expected = (u * s)[:, :2].reshape(2, -1, 2).numpy()
        scale = np.abs(expected).max()
        assert np.abs(np.abs(projection.coordinates[layer]) - np.abs(expected)).max() < 1e-3 * scale
        assert projection.explained[layer] == pytest.approx((s**2 / (s**2).sum())[:2].numpy(), rel=1e-3)
        distance = (values.reshape(2, len(ids[0]), -1)[0] - values.reshape(2, len(ids[0]), -1)[1]).norm(dim=-1)
        assert projection.distances[layer] == pytest.approx(distance.numpy(), rel=1e-3, abs=1e-4)


def test_labels_stand_at_their_own_tokens_with_bos_too(model, tokenizer, bos_tokenizer):
    plain, with_bos = (fl.project_pair(model, t, PAIR) for t in (tokenizer, bos_tokenizer))
    assert plain.tokens_a[:3] == ("A", " Black", " man")
    assert with_bos.tokens_a[:3] == ("<|endoftext|>", "A", " Black")
    assert with_bos.tokens_b[2] == " white"
    for projection, word in ((plain, 1), (with_bos, 2)):
        assert (projection.distances[:, :word] == 0).all()
        assert (projection.distances[:, word:] > 0).all()
        assert projection.coordinates.shape == (30, 2, len(projection.tokens_a), 2)


def test_axes_keep_their_direction_from_layer_to_layer(model, tokenizer):
    coordinates = fl.project_pair(model, tokenizer, PAIR).coordinates
    for before, after in itertools.pairwise(coordinates):
        assert ((before * after).sum((0, 1)) >= 0).all()


@pytest.mark.parametrize("family", [*FAMILIES, *UNGATED])
def test_every_family_can_be_projected(family, tokenizer):
    projection = fl.project_pair(tiny_model(family), tokenizer, PAIR)
    assert np.isfinite(projection.coordinates).all()
    assert (projection.distances[:, 0] == 0).all()


def test_bad_input_is_named(model, tokenizer):
    with pytest.raises(ValueError, match="point: expected one of input_norm.*'nose'"):
        fl.project_pair(model, tokenizer, PAIR, point="nose")
    with pytest.raises(ValueError, match="same number of tokens"):
        fl.project_pair(model, tokenizer, fl.PromptPair("The old cook", "The Luxembourgish cook"))
