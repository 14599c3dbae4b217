"""Print how far gaps, decision gaps, layer differences, metric and perplexity in half precision lie
from those in float32: the numbers of the docstrings. Where there is a GPU it computes all but the
first three lines, so its float32 is compared with the CPU's.

    python experiments/precision.py

Default model, the 126 validation pairs (the cut was not chosen on them), the article's cut scored
on its own pair.
"""

import frozen
import torch
from torch import Tensor

import fairlab as fl


def error_in_words(found: Tensor, exact: Tensor) -> str:
    """Say how far values, one a pair, lie from those of float32."""
    error = found - exact
    return (
        f"error of a pair {error.square().mean().sqrt():.1e} (root mean square), "
        f"{error.abs().max():.1e} (largest), {error.mean():+.1e} (mean)"
    )


def main() -> None:
    """Measure in each setting and print three lines for each."""
    pairs = fl.load_pairs(split="validation", words="any")
    text = fl.load_text("evaluation")[:4000]
    model, tokenizer = fl.load_model(device="cpu", dtype="float32")
    cut = fl.article_cut(model, tokenizer, [fl.ARTICLE_PAIR])
    settings = [("cpu", "float32"), ("cpu", "float16"), ("cpu", "bfloat16")]
    if torch.cuda.is_available():
        settings = [settings[0], ("cuda", "float32"), ("cuda", "float16"), ("cuda", "bfloat16")]
    exact = None
    for device, dtype in settings:
        model, tokenizer = fl.load_model(device=device, dtype=dtype)
        gaps = fl.next_token_divergence(model, tokenizer, pairs)
        with fl.ablate(model, cut):
            cut_gaps = fl.next_token_divergence(model, tokenizer, pairs)
        decisions = fl.decision_gap(model, tokenizer, pairs)
        layers = fl.layer_differences(model, tokenizer, pairs)["difference"]
        metric = fl.article_metric(model, tokenizer, fl.ARTICLE_PAIR)
        perplexity = fl.perplexity(model, tokenizer, text)
        exact = exact or (gaps, decisions, layers, metric, perplexity)  # of the first setting
        print(
            f"{device}, {dtype}: mean gap {gaps.mean():.5f}, {error_in_words(gaps, exact[0])}; "
            f"headline of the cut {frozen.headline_change(pairs, gaps, cut_gaps):+.1%}; metric "
            f"{metric / exact[3] - 1:+.1%}; perplexity {perplexity / exact[4] - 1:+.2%}"
        )
        turned = (decisions.sign() != exact[1].sign()).sum()
        print(
            f"  decision gap: mean size {decisions.abs().mean():.4f}, "
            f"{error_in_words(decisions, exact[1])}; the sign of {turned} of {len(pairs)} differs"
        )
        moved = layers / exact[2] - 1
        print(
            f"  layer differences, of {len(moved)} layers of a category: {moved.mean():+.1%} on "
            f"average, {moved.abs().max():.1%} at most"
        )


if __name__ == "__main__":
    main()
