"""Time fairlab against optipfair 0.4.2: the same work, in fresh processes, in turns.

    python speed/against_optipfair.py            # both tasks, five pairs of runs
    python speed/against_optipfair.py scores -n 3

Tasks:

- `scores`: the bias scores of all train pairs on the default model, by the same formula
  (optipfair's).
- `cut`: scores of one pair, importance, selection and cut in place on a model of Llama-3.2-1B's
  shape with random weights in float32 (about 12 GB of memory).

Loading and imports are not timed. Printed: medians, the ratio of each pair of runs, and peak memory
of the process.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


def llama_1b():
    """Build the shape with cheap random weights."""
    import torch
    import transformers

    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_1B))
    model = model.to_empty(device="cpu")
    # the frequencies are no parameters: they are computed anew
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    model.tie_weights()
    return model.eval()


def time_fairlab(model, tokenizer, pairs, task: str) -> float:
    """Return the seconds that fairlab takes."""
    import fairlab as fl

    start = time.perf_counter()
    scores = fl.bias_scores(model, tokenizer, pairs, method="optipfair")
    if task == "cut":
        importance = fl.importance_scores(model, method="maw")
        hybrid = fl.hybrid_scores(scores, importance, bias_weight=0.8)
        fl.prune(model, fl.select_neurons(hybrid, fraction=0.002), inplace=True)
    return time.perf_counter() - start


def time_optipfair(model, tokenizer, pairs, task: str) -> float:
    """Return the seconds that optipfair takes."""
    from optipfair.bias import analyze_neuron_bias, compute_fairness_pruning_scores
    from optipfair.pruning.mlp_glu import prune_model_mlp_glu

    texts = [(pair.prompt_a, pair.prompt_b) for pair in pairs]
    start = time.perf_counter()
    scores = analyze_neuron_bias(model, tokenizer, texts, show_progress=False)
    if task == "cut":
        fair = compute_fairness_pruning_scores(model, scores, bias_weight=0.8)
        prune_model_mlp_glu(
            model, pruning_percentage=0.2, fairness_scores=fair, show_progress=False
        )
    return time.perf_counter() - start


def run(task: str, peer: str) -> None:
    """Do one task with one library and print seconds and peak memory as JSON."""
    import fairlab as fl

    model, tokenizer = fl.load_model()
    pairs = fl.load_pairs(split="train", words="any")
    if task == "cut":
        model, pairs = llama_1b(), [fl.ARTICLE_PAIR]
    work = time_fairlab if peer == "fairlab" else time_optipfair
    seconds = work(model, tokenizer, pairs, task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # GB
    width = model.config.intermediate_size
    print(json.dumps({"seconds": seconds, "peak": peak, "width": width}))


def fresh(task: str, peer: str) -> dict:
    """Run one task in a process of its own."""
    command = [sys.executable, __file__, task, "--peer", peer]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def compare(task: str, n: int) -> None:
    """Run one task in turns and print medians and the ratio."""
    runs = {"fairlab": [], "optipfair": []}
    for _ in range(n):
        for peer, results in runs.items():
            results.append(fresh(task, peer))
    print(f"{task}, {n} pairs of runs")
    for peer, results in runs.items():
        seconds = statistics.median(result["seconds"] for result in results)
        peak = statistics.median(result["peak"] for result in results)
        width = results[0]["width"]
        print(f"  {peer:10} median {seconds:6.2f} s   peak {peak:5.2f} GB   width {width}")

    pairs = zip(runs["fairlab"], runs["optipfair"], strict=True)
    ratios = sorted(theirs["seconds"] / ours["seconds"] for ours, theirs in pairs)
    spread = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    print(f"  optipfair / fairlab: median {spread}")


def main() -> None:
    """Run the tasks in turns, or one of them in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", nargs="?", choices=("scores", "cut"))
    parser.add_argument("-n", type=int, default=5, help="pairs of runs")
    parser.add_argument("--peer", choices=("fairlab", "optipfair"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        run(options.task, options.peer)
        return
    for task in [options.task] if options.task else ["scores", "cut"]:
        compare(task, options.n)


if __name__ == "__main__":
    main()
