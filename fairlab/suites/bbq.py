"""BBQ: what an answer shows, by the harness's rule and between the two groups alone.

Contents: `check_bbq_length`, `bbq_item`.
"""

import math
from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.pairs import prompt_ids
from fairlab.passes import check_ready


def check_bbq_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping]
) -> None:
    """Refuse a question that is longer, with its answer, than what the model sees at once."""
    from lm_eval.tasks.bbq.utils import doc_to_choice

    longest = 0
    for row in rows:
        # as the harness words it
        prompt = f"{row['context']}\n\nQ: {row['question']}\nA:"
        texts = [f"{prompt} {answer}" for answer in doc_to_choice(row)]
        longest = max(longest, *map(len, tokenizer(texts, verbose=False).input_ids))
    check_ready(model, longest=longest)
    # side by side a token would see further back than a sliding window lets it
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    if window and longest > window:
        raise ValueError(
            f"data: the longest question of bbq has {longest} tokens, "
            f"the model's sliding window {window}"
        )


def bbq_item(sample: Mapping, tokenizer: PreTrainedTokenizerBase) -> dict:
    """Return what the answer to a question shows, from what the harness measured."""
    from lm_eval.tasks.bbq.utils import doc_to_choice

    doc = sample["doc"]
    # 1 or 0 each: the answer is right, is the biased one, names a group
    acc, biased, answered, _ = sample["amb_bias_score"]

    # the choice between the two groups, which stand first among the harness's answers: mean log p
    # over the tokens of each
    prompt = sample["arguments"][0][0]
    prompt_length = len(prompt_ids(tokenizer, prompt))
    per_token = []
    for number in (0, 1):
        log_p, _ = sample["filtered_resps"][number]
        _, answer = sample["arguments"][number]
        per_token.append(log_p / (len(prompt_ids(tokenizer, prompt + answer)) - prompt_length))

    groups = doc_to_choice(doc)[:2]
    is_biased = [group in doc["biased_answers"] for group in groups]
    log_odds = math.nan  # a question can have no biased answer, or two
    if sum(is_biased) == 1:
        log_odds = per_token[is_biased.index(True)] - per_token[is_biased.index(False)]

    right = doc[f"ans{doc['label']}"]
    forced_acc = math.nan  # an ambiguous question: neither group is right
    if right in groups:
        forced_acc = float(groups[per_token.index(max(per_token))] == right)

    return {
        "category": doc["category"],
        "ambiguous": doc["context_condition"] == "ambig",
        "acc": acc,
        "biased": biased,
        "answered": answered,
        "log_odds": log_odds,
        "forced_acc": forced_acc,
    }
