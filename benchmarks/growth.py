"""How near fairlab comes to the processor's limit, and what more pairs and larger models cost.

    python benchmarks/growth.py            # all parts, each in a fresh process: about ten minutes
    python benchmarks/growth.py roofline   # some of them
    python benchmarks/growth.py --table    # only the tables and the picture, from results.json

Parts: `roofline` times the scores of all training pairs against the matrix products in them alone,
and lets torch's profiler say where the rest goes. `75`, `750` and `7500` score so many pairs on a
small Llama. `capture`, `scores`, `attribution` and `prune` note the memory that each takes beside a
model of Llama-3.2-1B's shape. As in `run.py`, what is timed runs again where the machine was busy.
What was measured goes to `benchmarks/results.json`, and from there into `benchmarks/README.md` and
`benchmarks/growth.svg`. The table of GPUs there is arithmetic, and says so.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch

from run import ROOT, fresh, keep, kept, machine, probe, quiet_run, write_between

PICTURE = ROOT / "benchmarks" / "growth.svg"
TURNS = 3  # of the scores and of their products, in the roofline
COUNTS = (75, 750, 7500)  # pairs
REPEATS = {75: 5, 750: 3, 7500: 1}  # the median of so many
BATCH = 16  # pairs in a forward pass of 32 prompts
SMALL = {  # 33 million parameters, of which 14 million are in its layers
    "vocab_size": 49152,
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "tie_word_embeddings": True,
}
# 10 nouns × 15 endings × 50 pairs of words are 7,500 pairs
NOUNS = "man woman nurse teacher driver student worker writer farmer neighbor"
ENDINGS = (
    "walked into the shop and asked for",
    "came home late and said that",
    "opened the letter and began to",
    "looked at the bill and decided to",
    "was asked by the police about",
    "waited at the station for the",
    "told the manager that the work was",
    "applied for a loan and was",
    "moved to a small town because",
    "spoke to the doctor about the",
    "sat in the garden and thought of",
    "called a friend to talk about",
    "was seen near the school with",
    "wanted to buy a house but",
    "sent a message to say that the",
)
WORDS = """
tall short young old rich poor kind quiet loud calm angry happy sad tired busy lazy clever smart
strong weak brave shy proud humble honest polite rude famous modern ancient local foreign nice good
bad great small big large little thin heavy light fast slow early late free safe lost new first last
second third next other same best better real true whole main major minor social public private
former current future German French Italian British Indian Chinese Russian Greek Roman blue green
red white black brown dark bright cold warm hot cool dry wet clean simple complex strange normal
special average typical young single married lonely serious funny gentle careful certain clear
common deep different difficult easy fair final fine formal full general
"""

LIMITS = {  # of the memory beside the model: how much, of what
    "capture": (0.1, "model"),
    "scores": (0.1, "model"),
    "attribution": (1.3, "model"),
    "prune": (1.0, "MLP of a layer"),
}
TITLES = {
    "capture": "`neuron_differences` at three points, 16 pairs",
    "scores": "`bias_scores`, 16 pairs",
    "attribution": '`bias_scores(method="attribution")`, 16 pairs',
    "prune": "`prune(inplace=True)`, 16 neurons a layer",
}

# what the makers publish: memory in GB, TFLOP/s in float32 without TF32 and in float16 on tensor
# cores without sparsity, GB/s of the memory
CARDS = {
    "T4": (16, 8.1, 65, 300),
    "L4": (24, 30.3, 121, 300),
    "A100 (40 GB)": (40, 19.5, 312, 1555),
}
SOURCE = "NVIDIA's data sheets of the T4, the L4 and the A100"
MODELS = {
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Llama-3.1-8B": 8_030_261_248,
}
EFFICIENCY = 0.5  # the share of these rates that is reached: an assumption
SCORED = 1000  # pairs
TOKENS = 20  # of a prompt


# ---- near the limit


def roofline() -> dict:
    """Time the scores of all training pairs against the matrix products in them alone."""
    from cases import default_model, our_scores
    from torch import nn

    import fairlab as fl
    from fairlab.passes import pair_batches

    model, tokenizer, pairs = default_model()
    batches = list(pair_batches(model, tokenizer, pairs, positions="all"))
    sizes = [batch.input_ids.numel() for batch in batches]  # tokens, padding among them
    matrices = []
    for layer in fl.decoder_layers(model):
        matrices += [part.weight for part in layer.modules() if isinstance(part, nn.Linear)]

    score = partial(our_scores, model, tokenizer, pairs)
    multiply = partial(products, matrices, sizes)
    for job in (score, multiply):
        job()  # once without a clock
    turns = [(seconds_of(score), seconds_of(multiply)) for _ in range(TURNS)]
    ratios = sorted(alone / whole for whole, alone in turns)
    return {
        "seconds": statistics.median(whole for whole, _ in turns),
        "products": statistics.median(alone for _, alone in turns),
        "ratio": statistics.median(ratios),
        "range": [ratios[0], ratios[-1]],
        "flops": 2 * sum(sizes) * sum(matrix.numel() for matrix in matrices),
        "padding": 1 - sum(batch.attention_mask.sum().item() for batch in batches) / sum(sizes),
        "pairs": len(pairs),
        "shares": shares(model, score),
    }


def seconds_of(job: Callable[[], object]) -> float:
    """Return the seconds that a job takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def products(matrices: list, sizes: list[int]) -> None:
    """Multiply inputs of each size with every matrix, and do nothing else."""
    import torch

    widths = {matrix.shape[1] for matrix in matrices}
    with torch.no_grad():
        for size in sizes:
            inputs = {width: torch.ones(size, width) for width in widths}
            for matrix in matrices:
                torch.nn.functional.linear(inputs[matrix.shape[1]], matrix)


def shares(model, job: Callable[[], object]) -> dict[str, float]:
    """Return which share of a job's time goes where, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile, record_function

    cpu, rest = [ProfilerActivity.CPU], record_function("the rest")
    with labelled(model), profile(activities=cpu) as seen, rest:
        job()
    labels = {*KINDS, "hooks and sums", "the rest"}
    times = Counter()
    for event in seen.events():
        # it counts for the innermost label round it
        label = event
        while label is not None and label.name not in labels:
            label = label.cpu_parent
        if label is not None:
            times[label.name] += event.self_cpu_time_total
    total = sum(times.values())
    return {name: spent / total for name, spent in times.most_common()}


# label → which modules have it; what is inside another label counts there alone
KINDS = {
    "matrix products": lambda name, part: type(part).__name__ == "Linear",
    "norms": lambda name, part: "Norm" in type(part).__name__,
    "attention beside its products": lambda name, part: name.endswith("self_attn"),
    "activation of the MLPs": lambda name, part: name.endswith("mlp"),
}


@contextmanager
def labelled(model) -> Iterator[None]:
    """Let the profiler see which part of the model, or of fairlab, runs inside the block."""
    from torch.profiler import record_function

    from fairlab import capture

    hand_over, running = capture._hand_over, []

    def enter(label: str, *_: object) -> None:
        running.append(record_function(label))
        running[-1].__enter__()

    def leave(*_: object) -> None:
        running.pop().__exit__(None, None, None)

    def sum_up(*args: object, **options: object) -> None:
        with record_function("hooks and sums"):
            hand_over(*args, **options)

    with ExitStack() as stack:
        for name, part in model.named_modules():
            for label, is_kind in KINDS.items():
                if is_kind(name, part):
                    hook = part.register_forward_pre_hook(partial(enter, label))
                    stack.callback(hook.remove)
                    stack.callback(part.register_forward_hook(leave).remove)
        stack.enter_context(patch.object(capture, "_hand_over", sum_up))
        yield


# ---- more pairs


def some_pairs(tokenizer) -> list:
    """Build 7,500 pairs from 150 templates and 50 pairs of words, of which each is one token."""
    import fairlab as fl

    def is_one_token(word: str) -> bool:
        return len(tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1

    words = list(filter(is_one_token, dict.fromkeys(WORDS.split())))[:100]
    templates = [f"The {{}} {noun} {ending}" for noun in NOUNS.split() for ending in ENDINGS]
    return fl.build_pairs(templates, list(zip(words[::2], words[1::2], strict=True)))


def growth(count: int) -> dict:
    """Score so many pairs, evenly from all, and return seconds and peak memory."""
    from cases import import_fairlab, random_llama

    import fairlab as fl

    import_fairlab()
    model, tokenizer = random_llama(SMALL), fl.load_tokenizer()
    pairs = some_pairs(tokenizer)
    some = pairs[:: len(pairs) // count]
    assert len(pairs) == max(COUNTS), len(pairs)
    assert len(some) == count, len(some)
    fl.bias_scores(model, tokenizer, some[:BATCH])
    runs = [watched(partial(fl.bias_scores, model, tokenizer, some)) for _ in range(REPEATS[count])]
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "peak": max(run["peak"] for run in runs),
        "own": own_bytes(model) / 1e9,
    }


def own_bytes(model) -> int:
    """Return the memory of the weights of a model, or of a part, in bytes."""
    return sum(weight.nbytes for weight in model.parameters())


def watched(job: Callable[[], object]) -> dict:
    """Do a job; return its seconds, the memory of the process before and at its peak, in GB."""
    gc.collect()
    # from here on the peak counts anew: building a model has one of its own (Linux only)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = memory_in_use("VmRSS")
    seconds = seconds_of(job)
    return {"seconds": seconds, "before": before, "peak": memory_in_use("VmHWM")}


def memory_in_use(name: str) -> float:
    """Return a number of the kernel's about this process, in GB."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise OSError(f"/proc/self/status has no {name}")


# ---- beside a model


def beside_the_model(name: str) -> dict:
    """Do one thing to a model of Llama-3.2-1B's shape; return the memory that it takes more."""
    from cases import import_fairlab, llama_1b

    import fairlab as fl
    from fairlab.models import glu_blocks

    import_fairlab()
    model, tokenizer = llama_1b(), fl.load_tokenizer()
    config = model.config
    pairs = fl.load_pairs(split="train", words="any")[:BATCH]
    first = {layer: tuple(range(16)) for layer in range(config.num_hidden_layers)}
    cut = fl.NeuronSelection(first, (config.num_hidden_layers, config.intermediate_size))
    points = ("gate_proj", "up_proj", "down_proj_input")
    jobs = {
        "capture": partial(fl.neuron_differences, model, tokenizer, pairs, points=points),
        "scores": partial(fl.bias_scores, model, tokenizer, pairs),
        "attribution": partial(fl.bias_scores, model, tokenizer, pairs, method="attribution"),
        "prune": partial(fl.prune, model, cut, inplace=True),
    }
    glu_blocks(model)  # tries the model, once, before anything is done to its neurons
    own = own_bytes(fl.decoder_layers(model)[0].mlp if name == "prune" else model)
    run = watched(jobs[name])
    more = run["peak"] - run["before"]
    return {"seconds": run["seconds"], "more": more, "own": own / 1e9, "ratio": more * 1e9 / own}


PARTS = {
    "roofline": roofline,
    **{str(count): partial(growth, count) for count in COUNTS},
    **{name: partial(beside_the_model, name) for name in LIMITS},
}


# ---- what is kept, and shown


def roofline_lines(row: dict) -> list[str]:
    """Return the table of the rates, and where the time goes."""
    low, high = row["range"]
    rates = [row["flops"] / row[side] / 1e9 for side in ("seconds", "products")]
    lines = [
        f"Scores of all {row['pairs']} training pairs on the default model (optipfair's formula), "
        "against the matrix products of its layers alone, with the model's matrices and the "
        f"batches' sizes ({row['padding']:.0%} of the tokens are padding, in both):",
        "",
        "| | seconds | GFLOP/s | of the products' rate (range) | aimed at |",
        "|---|---|---|---|---|",
        f"| scores | {row['seconds']:.1f} | {rates[0]:.0f} "
        f"| {row['ratio']:.0%} ({low:.0%} to {high:.0%}) | 75% |",
        f"| products alone | {row['products']:.1f} | {rates[1]:.0f} | | |",
        "",
        "| where the time of the scores goes, by torch's profiler | share |",
        "|---|---|",
    ]
    for name, share in row["shares"].items():
        lines.append(f"| {name} | {share:.1%} |")
    return lines


def growth_lines(rows: dict[int, dict]) -> list[str]:
    """Return the table of time and memory by the number of pairs, and how far they move."""
    a_pair = [row["seconds"] / count for count, row in rows.items()]
    peaks = [row["peak"] for row in rows.values()]
    lines = [
        "`bias_scores` on a small Llama (8 layers of 384 with 1,024 neurons, random weights), "
        "pairs of 150 templates and 50 pairs of words: between the counts the time a pair moves by "
        f"{max(a_pair) / min(a_pair) - 1:.1%} (aimed at: 10%), peak memory by "
        f"{max(peaks) / min(peaks) - 1:.1%} (5%).",
        "",
        "| pairs | seconds | ms a pair | peak memory of the process |",
        "|---|---|---|---|",
    ]
    for count, row in rows.items():
        milliseconds = 1000 * row["seconds"] / count
        lines.append(
            f"| {count:,} | {row['seconds']:.2f} | {milliseconds:.2f} | {row['peak']:.3f} GB |"
        )
    return [*lines, "", "![Seconds and peak memory by the number of pairs](growth.svg)"]


def memory_lines(rows: dict[str, dict]) -> list[str]:
    """Return the table of the memory beside a model."""
    lines = [
        "Memory beside a model of Llama-3.2-1B's shape (random weights, 4.9 GB in float32), above "
        "what the process had before:",
        "",
        "| what | seconds | more memory | in parts | aimed at |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        limit, unit = LIMITS[name]
        lines.append(
            f"| {TITLES[name]} | {row['seconds']:.1f} | {row['more']:.2f} GB "
            f"| {row['ratio']:.2f} of the {unit} | {limit} |"
        )
    return lines


def on_card(parameters: int, card: str) -> str:
    """Return dtype, memory and minutes of a model's scores on a GPU, by arithmetic."""
    room, single, half, bandwidth = CARDS[card]
    flops = 2 * parameters * SCORED * 2 * TOKENS  # a product and a sum, for each weight and token
    # in half precision each pair runs alone; the weights are read once a pass
    for dtype, size, rate, passes in (
        ("float32", 4, single, SCORED / BATCH),
        ("half", 2, half, SCORED),
    ):
        needed = 1.25 * size * parameters / 1e9  # GB, as `load_model` counts
        if needed <= room:
            computing = flops / (rate * 1e12 * EFFICIENCY)
            reading = size * parameters * passes / (bandwidth * 1e9 * EFFICIENCY)
            minutes = max(computing, reading) / 60
            return f"{dtype}, {needed:.1f} GB, {minutes:.1f} min"
    return f"no room for {needed:.1f} GB"


def card_lines() -> list[str]:
    """Return the table of models on GPUs."""
    lines = [
        f"Arithmetic, not measured: memory and minutes of the scores of {SCORED:,} pairs, two "
        f"prompts of {TOKENS} tokens each. Memory is 4 or 2 bytes a parameter and a quarter on "
        "top, as `load_model` counts; float32 where it has room. Time is the longer of computing "
        "(2 FLOPs a parameter and token) and reading the weights once a pass (16 pairs, in half "
        f"precision one), at {EFFICIENCY:.0%} of the published rates ({SOURCE}; float32 without "
        "TF32, half precision without sparsity), which is an assumption:",
        "",
        f"| model | {' | '.join(CARDS)} |",
        f"|---|{'---|' * len(CARDS)}",
    ]
    for name, parameters in MODELS.items():
        cells = [on_card(parameters, card) for card in CARDS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def table(parts: dict) -> str:
    """Return what stands between the marks of benchmarks/README.md."""
    blocks = []
    if "roofline" in parts:
        blocks.append(roofline_lines(parts["roofline"]))
    by_count = {count: parts[str(count)] for count in COUNTS if str(count) in parts}
    if by_count:
        blocks.append(growth_lines(by_count))
    by_job = {name: parts[name] for name in LIMITS if name in parts}
    if by_job:
        blocks.append(memory_lines(by_job))
    blocks.append(card_lines())
    busy = [name for name, row in parts.items() if not row.get("quiet", True)]
    if busy:
        blocks.append([f"On a busy machine: {', '.join(busy)}."])
    return "\n\n".join("\n".join(lines) for lines in blocks) + "\n"


def draw(rows: dict[int, dict]) -> None:
    """Draw seconds and peak memory by the number of pairs, into growth.svg."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same file for the same numbers
    import matplotlib.pyplot as plt

    counts = list(rows)
    seconds = [row["seconds"] for row in rows.values()]
    peaks = [row["peak"] for row in rows.values()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    even = [seconds[-1] * count / counts[-1] for count in counts]
    left.loglog(counts, even, color="0.6", ls="--", label="in proportion")
    left.loglog(counts, seconds, "o", label="measured")
    left.set(xlabel="pairs", ylabel="seconds", title="Time")
    right.semilogx(counts, peaks, "o-", label="the process, at its peak")
    right.axhline(rows[counts[0]]["own"], color="0.6", ls="--", label="the model's weights")
    right.set(xlabel="pairs", ylabel="GB", title="Memory", ylim=(0, 1.3 * max(peaks)))
    for ax in (left, right):
        ax.set_xticks(counts, [f"{count:,}" for count in counts])
        ax.minorticks_off()
        ax.legend(frameon=False)
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    """Measure the parts that are named, all by default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--table", action="store_true", help="only write tables and picture")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if options.inside:
        before = probe()
        measured = PARTS[options.parts[0]]()
        print(json.dumps({**measured, "probes": [before, probe()]}))
        return
    results = kept()
    parts = results.setdefault("growth", {})
    if not options.table:
        for name in options.parts or PARTS:
            parts[name] = {**measure(name), "machine": machine()}
            print(f"{name}: {parts[name]['seconds']:.2f} s", flush=True)
            keep(results)
    write_between("<!-- growth -->", "<!-- end growth -->", table(parts))
    if all(str(count) in parts for count in COUNTS):
        draw({count: parts[str(count)] for count in COUNTS})
    print(table(parts))


def measure(name: str) -> dict:
    """Run a part in a fresh process, again on a busy machine where seconds count."""
    if name in LIMITS:
        return fresh(name, "--inside", script=__file__)
    return quiet_run(name, "--inside", script=__file__)


if __name__ == "__main__":
    sys.exit(main())
