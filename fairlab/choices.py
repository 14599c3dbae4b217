"""What somebody chose and typed on the page without code, before any model runs.

Contents: `Choices`, what to look at and what to cut; `read_prompts`, which makes a pair of two
prompts; `mark_tokens`, which says how a tokenizer cuts them; `STEPS`, what comes of it.

Light to import, unlike `examination`: the page is there before the model and the libraries that
it measures and draws with.
"""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from fairlab.pairs import PromptPair, encode_pair, prompt_ids, shared_start

SCORES = ("article", "activation", "attribution")
MOST_NEURONS = 30  # in a layer
MOST_TOKENS = 64  # of a prompt that somebody typed
STEPS = (
    "Where the prompts part",
    "Which neurons are cut",
    "What the model writes",
    "Did it help?",
)


@dataclass(frozen=True)
class Choices:
    """What to look at, and what to cut.

    Parameters
    ----------
    point : str
        The capture point of the pictures.
    layer : int
        The layer of the pictures, from 0.
    score : str
        How neurons are scored: "article" or "activation" (how differently they react, mixed half
        and half with small weights), or "attribution" (how much they widen the gap).
    count : int
        Neurons of each layer to change, from 1 to 30.
    scale : float
        What their activations are multiplied by: 0 removes them, 1 keeps them.
    n_random : int
        Random cuts beside the cut.
    """

    point: str = "mlp_output"
    layer: int = 0
    score: str = "article"
    count: int = 3
    scale: float = 0.0
    n_random: int = 5


def read_prompts(tokenizer: PreTrainedTokenizerBase, prompt_a: str, prompt_b: str) -> PromptPair:
    """Make a pair of two prompts that somebody typed.

    Returns
    -------
    PromptPair
        With a template: what both prompts share, with {} where they differ.

    Raises
    ------
    ValueError
        Empty or equal prompts, more than 64 tokens, unequally many, or a pair that is not valid
        (`check_pairs`).
    """
    lengths = {}
    for name, prompt in (("prompt_a", prompt_a), ("prompt_b", prompt_b)):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{name}: expected a sentence; got {prompt!r}")
        lengths[name] = len(prompt_ids(tokenizer, prompt))
        if lengths[name] > MOST_TOKENS:
            raise ValueError(f"{name}: expected at most {MOST_TOKENS} tokens; got {lengths[name]}")
    if lengths["prompt_a"] != lengths["prompt_b"]:
        raise ValueError(
            f"prompt_b: expected {lengths['prompt_a']} tokens, as prompt_a has; "
            f"got {lengths['prompt_b']} (take words that the model cuts into equally many tokens)"
        )
    words_a, words_b = prompt_a.split(" "), prompt_b.split(" ")
    start = shared_start(words_a, words_b)
    end = shared_start(words_a[start:][::-1], words_b[start:][::-1])
    one = " ".join(words_a[start : len(words_a) - end])
    other = " ".join(words_b[start : len(words_b) - end])
    template = " ".join([*words_a[:start], "{}", *words_a[len(words_a) - end :]])
    pair = PromptPair(prompt_a, prompt_b, one, other, category="your pair", template=template)
    encode_pair(tokenizer, pair)  # says what else is wrong with it
    return pair


def mark_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt_a: str, prompt_b: str
) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Return the tokens of two prompts, each with whether the two differ there.

    Everything between what both begin with and what both end with counts as different, so prompts
    of unequal length can be marked, too.
    """
    ids_a, ids_b = prompt_ids(tokenizer, prompt_a), prompt_ids(tokenizer, prompt_b)
    start = shared_start(ids_a, ids_b)
    end = shared_start(ids_a[start:][::-1], ids_b[start:][::-1])
    marked = []
    for ids in (ids_a, ids_b):
        pieces = []
        for place, token in enumerate(ids):
            differs = start <= place < len(ids) - end
            pieces.append((tokenizer.decode([token]), differs))
        marked.append(pieces)
    return marked[0], marked[1]
