"""Walk through lesson 12 on random weights of Llama-3.2-1B's shape: does it fit, and how long does
it take?

    python benchmarks/llama_shape.py --dtype bfloat16

The weights are random, so no number but seconds, memory and counts means anything. The copy that
stands in for the published model is saved, loaded again and matched to the base model. Printed: the
table of `benchmarks/README.md`.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable

import torch
from cases import llama_1b

import fairlab as fl


def timed(step: str, device: torch.device, work: Callable, *arguments, **options) -> object:
    """Do a step, print its seconds and the peak memory so far, and return its result."""
    start = time.perf_counter()
    result = work(*arguments, **options)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    print(f"| {step} | {seconds:.1f} | {peak / 1e9:.1f} GB |", flush=True)
    return result


def select(model, tokenizer) -> fl.NeuronSelection:
    """Choose neurons as the article does."""
    bias = fl.bias_scores(model, tokenizer, [fl.ARTICLE_PAIR], method="article")
    hybrid = fl.hybrid_scores(bias, fl.importance_scores(model))
    return fl.select_neurons(hybrid, fraction=0.002)


def match(model, pruned, tokenizer) -> fl.NeuronSelection:
    """Save the cut model, load it again, and say which neurons it lacks."""
    with tempfile.TemporaryDirectory() as folder:
        fl.save_model(pruned, tokenizer, folder)
        reloaded, _ = fl.load_model(folder, device="cpu", dtype=model.dtype)
        return fl.removed_neurons(model, reloaded)


def control(model, tokenizer, selection: fl.NeuronSelection) -> None:
    """Compare the cut with one random cut on a few pairs."""
    race = fl.load_pairs("race", split="held_out")[:8]
    mood = fl.load_pairs("mood", kind="neutral", split="held_out")[:8]
    held_out = fl.HeldOut(race, mood, fl.load_text("evaluation")[:1000])
    fl.compare(model, tokenizer, {"cut": selection}, held_out, n_random=1)


def main() -> None:
    """Run the steps of the lesson, and print seconds and peak memory after each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    _, tokenizer = fl.load_model()
    pair = fl.ARTICLE_PAIR
    prompts = [pair.prompt_a, pair.prompt_b]

    print(f"| step ({options.dtype}, {device}) | seconds | peak memory so far |\n|---|---|---|")
    model = timed("random weights", device, lambda: llama_1b().to(device, dtype))
    timed("article's metric", device, fl.article_metric, model, tokenizer, pair)
    timed("two texts", device, fl.generate, model, tokenizer, prompts)
    selection = timed("scores and selection", device, select, model, tokenizer)
    pruned = timed("cut, as a second model", device, fl.prune, model, selection)
    removed = timed("save, load, match neurons", device, match, model, pruned, tokenizer)
    assert removed.neurons == selection.neurons
    print(f"| {len(removed)} neurons matched, {pruned.num_parameters():,} parameters left | | |")
    del pruned
    step = "controls: 16 pairs, one random cut"
    timed(step, device, control, model, tokenizer, selection)
    step = "projection, all layers"
    timed(step, device, fl.project_pair, model, tokenizer, pair, point="mlp_output")


if __name__ == "__main__":
    main()
