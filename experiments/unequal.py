"""Measure why prompts of unequal length are not compared token by token, lined up from their end.

    python experiments/unequal.py

Two names of unequal length move the words behind them to other positions. So the difference of
these words has two causes: the name, and the position. Printed, over 18 pairs (six pairs of names
in three sentences): the mean absolute difference of the activations h behind the name, between the
two prompts lined up from their end; and between one prompt and itself, where only the position ids
behind the name are raised by 1, or by 2. Reads no pair of the held-out or test sets.
"""

import torch

import fairlab as fl
from fairlab.precision import full_precision

SENTENCES = (
    "My neighbor {} asked the bank for a loan. The bank decided to",
    "The manager read the letter from {} and said that",
    "Last week {} applied for the job. The manager",
)
NAMES = (
    ("Lakisha", "Emily"),
    ("Latoya", "Anne"),
    ("Darnell", "Brett"),
    ("Jamal", "Greg"),
    ("Tyrone", "Todd"),
    ("Ebony", "Sarah"),
)


def main() -> None:
    """Print the three differences, and the second as a share of the first."""
    model, tokenizer = fl.load_model()
    sums = dict.fromkeys(("another name", "moved by 1", "moved by 2"), 0.0)
    for sentence in SENTENCES:
        for names in NAMES:
            for what, difference in differences(model, tokenizer, sentence, names).items():
                sums[what] += difference / (len(SENTENCES) * len(NAMES))
    for what, difference in sums.items():
        share = difference / sums["another name"]
        print(f"{what:12}  {difference:.3f}  {share:.0%} of another name's")


def differences(model, tokenizer, sentence: str, names: tuple[str, str]) -> dict[str, float]:
    """Compute the three differences for one sentence and one pair of names."""
    start, end = sentence.split("{}")
    tail = len(tokenizer(end, add_special_tokens=False).input_ids)
    ids = [tokenizer(start + name + end).input_ids for name in names]
    assert ids[0][-tail:] == ids[1][-tail:], "the words behind the name have the same tokens"
    first, second = (activations(model, each, tail, moved=0) for each in ids)
    return {
        "another name": (first - second).abs().mean().item(),
        "moved by 1": (first - activations(model, ids[0], tail, moved=1)).abs().mean().item(),
        "moved by 2": (first - activations(model, ids[0], tail, moved=2)).abs().mean().item(),
    }


def activations(model, ids: list[int], tail: int, *, moved: int) -> torch.Tensor:
    """Return h of the last `tail` tokens, shape (layers, tail, neurons), their positions moved."""
    # with a mask given, the gap in the positions is not taken for the start of another text
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids)).long()}
    positions = torch.arange(len(ids))
    positions[-tail:] += moved
    with full_precision(), torch.no_grad(), fl.record(model, ["down_proj_input"]) as recorded:
        model(**inputs, position_ids=positions[None], use_cache=False)
    return torch.stack([h[0, -tail:] for _, h in sorted(recorded.items())])


if __name__ == "__main__":
    main()
