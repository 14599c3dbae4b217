"""Walk through lesson 11 on random weights of Llama-3.2-1B's shape: does it fit, and how long does
it take?

    python speed/llama_shape.py --dtype bfloat16

The weights are random, so no number but seconds, memory and counts means anything. The copy that
stands in for the published model is saved, loaded again and matched to the base model. Printed: the
table of `speed/README.md`.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from against_optipfair import llama_1b

import fairlab as fl


def main() -> None:
    """Run the steps of the lesson, and print seconds and peak memory after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    _, tokenizer = fl.load_model()
    pair, device = fl.ARTICLE_PAIR, torch.device(options.device)
    print(f"| step ({options.dtype}, {device}) | seconds | peak memory so far |\n|---|---|---|")

    def timed(step: str, work: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = work()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        print(f"| {step} | {time.perf_counter() - start:.1f} | {peak / 1e9:.1f} GB |", flush=True)
        return result

    def score() -> fl.NeuronSelection:
        bias = fl.bias_scores(model, tokenizer, [pair], method="article")
        return fl.select_neurons(
            fl.hybrid_scores(bias, fl.importance_scores(model)), fraction=0.002
        )

    def proof(pruned: object) -> fl.NeuronSelection:
        with tempfile.TemporaryDirectory() as folder:
            fl.save_model(pruned, tokenizer, folder)
            return fl.removed_neurons(
                model, fl.load_model(folder, device="cpu", dtype=model.dtype)[0]
            )

    def controls() -> object:
        race = fl.load_pairs("race", split="held_out")[:8]
        neutral = fl.load_pairs("mood", kind="neutral", split="held_out")[:8]
        held_out = fl.HeldOut(race, neutral, fl.load_text("evaluation")[:1000])
        return fl.compare(model, tokenizer, {"cut": selection}, held_out, n_random=1)

    model = timed("random weights", lambda: llama_1b().to(device, getattr(torch, options.dtype)))
    timed("article's metric", lambda: fl.article_metric(model, tokenizer, pair))
    timed("two texts", lambda: fl.generate(model, tokenizer, [pair.prompt_a, pair.prompt_b]))
    selection = timed("scores and selection", score)
    pruned = timed("cut, as a second model", lambda: fl.prune(model, selection))
    removed = timed("save, load, match neurons", partial(proof, pruned))
    assert removed.neurons == selection.neurons
    print(f"| {len(removed)} neurons matched, {pruned.num_parameters():,} parameters left | | |")
    del pruned
    timed("controls: 16 pairs, one random cut", controls)
    timed(
        "projection, all layers",
        lambda: fl.project_pair(model, tokenizer, pair, point="mlp_output"),
    )


if __name__ == "__main__":
    main()
