"""The token representations of a pair in two dimensions, every layer at once.

Contents: `Projection`, `project_pair`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import CAPTURE_POINTS, check_option, record
from fairlab.models import decoder_layers
from fairlab.pairs import PromptPair, encode_pair


@dataclass(frozen=True)
class Projection:
    """What `project_pair` found."""

    point: str
    tokens_a: tuple[str, ...]  # one label a position, special tokens included
    tokens_b: tuple[str, ...]
    coordinates: np.ndarray  # (layers, 2 prompts, tokens, 2)
    explained: np.ndarray  # (layers, 2) share of the variance along each axis, from 0 to 1
    distances: np.ndarray  # (layers, tokens) distance between the prompts at each position, in all dimensions


def project_pair(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pair: PromptPair, *, point: str = "residual"
) -> Projection:
    """Project the token representations of both prompts by PCA, layer by layer.

    Each layer has axes of its own, fitted on the tokens of both prompts together; an axis is turned round where that
    brings it closer to the layer before, so that signs do not flip at random. Labels and activations come from the same
    token ids, special tokens included.

    Returns
    -------
    Projection
        Look at `distances` beside the picture: two axes show only the share of the variance in `explained`. A distance
        is 0 before the first differing token.

    Raises
    ------
    ValueError
        An invalid pair, or an unknown point.
    """
    check_option("point", point, CAPTURE_POINTS)
    ids_a, ids_b, _ = encode_pair(tokenizer, pair)
    with record(model, [point]) as activations, torch.no_grad():
        model.base_model(input_ids=torch.tensor([ids_a, ids_b], device=model.device), use_cache=False)
    coordinates, explained, distances = [], [], []
    for layer in range(len(decoder_layers(model))):
        values = activations[point, layer].numpy()
        pca = PCA(n_components=2, svd_solver="full")
        flat = pca.fit_transform(values.reshape(-1, values.shape[-1])).reshape(2, len(ids_a), 2)
        if coordinates:
            flat = flat * np.where((flat * coordinates[-1]).sum((0, 1)) < 0, -1.0, 1.0)
        coordinates.append(flat)
        explained.append(pca.explained_variance_ratio_)
        distances.append(np.linalg.norm(values[0] - values[1], axis=-1))
    labels = [tuple(tokenizer.decode([index]) for index in ids) for ids in (ids_a, ids_b)]
    return Projection(point, *labels, np.stack(coordinates), np.stack(explained), np.stack(distances))
