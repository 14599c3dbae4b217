"""Print how far gaps, metric and perplexity in half precision lie from those in float32: the
numbers of the docstrings.

    python experiments/precision.py

Default model, the 126 validation pairs (nothing was chosen on them), the article's cut scored on
its own pair.
"""

import frozen

import fairlab as fl


def main() -> None:
    """Measure in each precision and print one line for each."""
    pairs = fl.load_pairs(split="validation", words="any")
    text = fl.load_text("evaluation")[:4000]
    model, tokenizer = fl.load_model(dtype="float32")
    cut = fl.article_cut(model, tokenizer, [fl.ARTICLE_PAIR])
    exact = None
    for dtype in ("float32", "float16", "bfloat16"):
        model, tokenizer = fl.load_model(dtype=dtype)
        gaps = fl.next_token_divergence(model, tokenizer, pairs)
        with fl.ablate(model, cut):
            cut_gaps = fl.next_token_divergence(model, tokenizer, pairs)
        metric = fl.article_metric(model, tokenizer, fl.ARTICLE_PAIR)
        perplexity = fl.perplexity(model, tokenizer, text)
        exact = exact or (gaps, metric, perplexity)  # float32 comes first
        error = gaps - exact[0]
        spread = error.square().mean().sqrt()
        print(
            f"{dtype}: mean gap {gaps.mean():.5f}, error of a pair {spread:.1e} (root mean "
            f"square), {error.abs().max():.1e} (largest), {error.mean():+.1e} (mean); headline of "
            f"the cut {frozen.headline_change(pairs, gaps, cut_gaps):+.1%}; metric "
            f"{metric / exact[1] - 1:+.1%}; perplexity {perplexity / exact[2] - 1:+.2%}"
        )


if __name__ == "__main__":
    main()
