"""The token representations of a pair in two dimensions, every layer at once.

Contents: `Projection`, `project_pair`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import CAPTURE_POINTS, check_option, check_ready, record
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
    norms: np.ndarray  # (layers, tokens) length of the representation, the mean of both prompts


def project_pair(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pair: PromptPair,
    *,
    point: str = "residual",
    start: int = 0,
) -> Projection:
    """Project the token representations of both prompts by PCA, layer by layer.

    Each layer has axes of its own, fitted on the tokens of both prompts together; an axis is turned round where that
    brings it closer to the layer before, so that signs do not flip at random. Labels and activations come from the same
    token ids, special tokens included.

    Parameters
    ----------
    point : str
        One of `CAPTURE_POINTS`.
    start : int
        Leave out the positions before it. A model's first token is often so large that, with 0, the first axis shows
        little else.

    Returns
    -------
    Projection
        Look at `distances` beside the picture: two axes show only the share of the variance in `explained`. A distance
        is 0 before the first differing token.

    Raises
    ------
    ValueError
        An invalid pair, an unknown point, or a start that leaves no token that differs.
    """
    check_option("point", point, CAPTURE_POINTS)
    ids_a, ids_b, first = encode_pair(tokenizer, pair)
    if not isinstance(start, int) or not 0 <= start <= first:
        raise ValueError(f"start: expected a number from 0 to {first}, the first token that differs; got {start!r}")
    check_ready(model, longest=len(ids_a))
    with record(model, [point]) as activations, torch.no_grad():
        model.base_model(input_ids=torch.tensor([ids_a, ids_b], device=model.device), use_cache=False)
    coordinates, explained, distances, norms = [], [], [], []
    for layer in range(len(decoder_layers(model))):
        values = activations[point, layer][:, start:].numpy()
        pca = PCA(n_components=2, svd_solver="full")
        flat = pca.fit_transform(values.reshape(-1, values.shape[-1])).reshape(*values.shape[:2], 2)
        if coordinates:
            flat = flat * np.where((flat * coordinates[-1]).sum((0, 1)) < 0, -1.0, 1.0)
        coordinates.append(flat)
        explained.append(pca.explained_variance_ratio_)
        distances.append(np.linalg.norm(values[0] - values[1], axis=-1))
        norms.append(np.linalg.norm(values, axis=-1).mean(0))
    labels = [tuple(tokenizer.decode([index]) for index in ids[start:]) for ids in (ids_a, ids_b)]
    return Projection(point, *labels, *map(np.stack, (coordinates, explained, distances, norms)))
