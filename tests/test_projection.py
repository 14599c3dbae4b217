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
        assert projection.explained[layer] == pytest.approx(
            (s**2 / (s**2).sum())[:2].numpy(), rel=1e-3
        )
        distance = (
            values.reshape(2, len(ids[0]), -1)[0] - values.reshape(2, len(ids[0]), -1)[1]
        ).norm(dim=-1)
        assert projection.distances[layer] == pytest.approx(distance.numpy(), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("point", ["residual", "mlp_output"])
def test_start_leaves_positions_out_before_the_axes_are_fitted(model, bos_tokenizer, point):
    whole = fl.project_pair(model, bos_tokenizer, PAIR, point=point)
    for start in (1, 2):  # 2 is the first token that differs
        late = fl.project_pair(model, bos_tokenizer, PAIR, point=point, start=start)
        assert (late.tokens_a, late.tokens_b) == (whole.tokens_a[start:], whole.tokens_b[start:])
        assert late.distances == pytest.approx(whole.distances[:, start:], rel=1e-6)
        assert late.norms == pytest.approx(whole.norms[:, start:], rel=1e-6)
    late = fl.project_pair(model, bos_tokenizer, PAIR, point=point, start=1)
    ids = torch.tensor(
        [bos_tokenizer(prompt).input_ids for prompt in (PAIR.prompt_a, PAIR.prompt_b)]
    )
    with fl.record(model, [point]) as activations:
        model(ids)
    for layer in (0, 8, 29):
        values = activations[point, layer][:, 1:].double().flatten(0, 1).numpy()
        u, s, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
        expected = (u * s)[:, :2].reshape(2, -1, 2)
        assert late.coordinates[layer].shape == expected.shape
        assert (
            np.abs(np.abs(late.coordinates[layer]) - np.abs(expected)).max()
            < 1e-3 * np.abs(expected).max()
        )
        for axis in (0, 1):  # one sign for a whole axis
            cosine = (late.coordinates[layer] * expected)[..., axis].sum() / (
                expected[..., axis] ** 2
            ).sum()
            assert abs(cosine) == pytest.approx(1, abs=1e-3)
        assert late.explained[layer] == pytest.approx((s**2 / (s**2).sum())[:2], rel=1e-3)


def test_norms_are_the_mean_length_of_both_prompts(model, tokenizer):
    projection = fl.project_pair(model, tokenizer, PAIR)
    ids = torch.tensor([tokenizer(prompt).input_ids for prompt in (PAIR.prompt_a, PAIR.prompt_b)])
    with fl.record(model, ["residual"]) as activations:
        model(ids)
    for layer in range(30):
        values = activations["residual", layer].double().numpy()
        lengths = np.sqrt((values**2).sum(-1))
        assert projection.norms[layer] == pytest.approx((lengths[0] + lengths[1]) / 2, rel=1e-4)
    # otherwise the length of one prompt alone would pass
    assert (abs(lengths[0] - lengths[1]) > 1e-3 * lengths[0]).any()


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
    for start in (-1, 2, 1.0, "1", None):
        message = (
            f"start: expected a number from 0 to 1, the first token that differs; got {start!r}"
        )
        with pytest.raises(ValueError, match=message):
            fl.project_pair(model, tokenizer, PAIR, start=start)
