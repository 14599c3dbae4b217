"""What the commands can be told: the options that several of them have, with their help.

Contents: a type for each option, such as `Model`; `DEFAULT`, `BIAS_WEIGHT`, `FRACTION`, what some
are without being told; `Version`.
"""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

import fairlab as fl

DEFAULT = "SmolLM2-135M-Instruct"  # fl.DEFAULT_MODEL, without the wait
BIAS_WEIGHT, FRACTION = 0.5, 0.002


def named_method(method: str | None) -> str | None:
    """Return what is asked for by --method, with the name of the recipe that is recommended."""
    return method and method.replace("recommended", "guarded")


Model = Annotated[
    str, Option(help="The default model, a Hub id (org/name), a model folder, or a .gguf file.")
]
Pairs = Annotated[
    str,
    Option(
        help="article, all, a category such as race, or a .csv or .jsonl file (see fairlab --help)."
    ),
]
Neutral = Annotated[
    str | None,
    Option(
        help="A .csv or .jsonl file of neutral pairs, the control. Without it fairlab's own; for "
        "pairs from a file, in another language than English, or with --neutral-words, neutral "
        "words in their own sentences."
    ),
]
NeutralWords = Annotated[
    str | None,
    Option(help='Neutral words to put there instead of ours, such as "tired/hungry, calm/happy".'),
]
Language = Annotated[
    str,
    Option(
        help="Of the pairs: en, de, fr or es, for neutral words and texts. For another one "
        "leave this out and give --neutral (and --text, where perplexity is measured); importance "
        "is then weighed on English prose."
    ),
]
Answers = Annotated[
    str | None,
    Option(
        "--outcomes",
        help="Who is treated worse, in the sentences of a file: harsher and kinder answers, such "
        "as 'deny,reject/approve,grant'. Or give each sentence its own, in the columns harsher "
        "and kinder.",
    ),
]
Text = Annotated[
    Path | None,
    Option(
        help="Text file of plain prose for the perplexity, of which the first 2,048 tokens are "
        "read (with --quick 512); fairlab's without it."
    ),
]
Method = Annotated[
    str,
    Option(
        help="guarded (the causal recipe, also called recommended), article, or bias+importance "
        "such as activation+maw (see score --help).",
        callback=named_method,
    ),
]
Methods = Annotated[
    str | None,
    Option(
        "--method",
        help="One or several, with commas: guarded (without this option), article, random (a "
        "random cut, for comparison), or bias+importance (see score --help).",
        callback=named_method,
    ),
]
Given = Annotated[
    Path | None,
    Option("--selection", help="Judge this cut, a selection.json; choose none."),
]
Changed = Annotated[
    str | None,
    Option(help="Judge this changed model (pruned, fine-tuned, …) against --model; choose none."),
]
Weight = Annotated[float, Option(help="Of the bias score: 0 is importance alone, 1 bias alone.")]
Fraction = Annotated[
    float, Option(help="Share of each layer to cut (of the model with attribution or patching).")
]
Random = Annotated[int, Option(help="Random cuts of the same size to compare with.")]
Seed = Annotated[int, Option(help="Of the random cuts, and of sampled texts.")]
Cache = Annotated[
    Path | None,
    Option(
        help="Folder that keeps chosen cuts, readings and sampled texts, so that a run that was "
        "stopped goes on; one in your cache folder without this option (see fairlab cache)."
    ),
]
NoCache = Annotated[bool, Option("--no-cache", help="Keep nothing of what was done.")]
Quick = Annotated[
    bool,
    Option("--quick", help="A first look: at most 5 random cuts, a short text, no article metric."),
]
Continuations = Annotated[
    int,
    Option(
        help="English texts to sample after each held-out prompt, before, after and under a "
        "random cut; harsh and kind words are counted in them. 0: none. 10 take some minutes more."
    ),
]
BatchSize = Annotated[int, Option(help="Prompts in a forward pass; fewer need less memory.")]
Table = Annotated[Path | None, Option(help="CSV file to write the whole table to.")]
Skip = Annotated[
    bool,
    Option(
        "--skip-invalid", help="Leave out the rows of a file that have problems, and list them."
    ),
]
Chat = Annotated[
    str | None,
    Option(
        help="Put prompts through the model's chat template: answer (a prompt begins the model's "
        "answer; for unfinished sentences) or message (it is the user's; for questions)."
    ),
]
Device = Annotated[str, Option(help="auto, cpu, cuda, …")]
DeviceMap = Annotated[
    str | None,
    Option(
        help="For a model that one GPU does not hold, in place of --device: auto, balanced or "
        "sequential, as in Accelerate, or a JSON dict from the name of each part of the model to "
        'the number of a GPU, "cpu" or "disk".'
    ),
]
Dtype = Annotated[str, Option(help="auto, float32, bfloat16, …")]
Force = Annotated[
    bool, Option("--force", help="Replace an output that exists. A file that was given never is.")
]
FailIf = Annotated[
    list[str] | None,
    Option(
        help='Exit code 3 if this, such as "gap>0.02", holds or can not be measured; give it '
        "again for more."
    ),
]
Json = Annotated[bool, Option("--json", help="Print strict JSON and nothing else.")]


def print_version(wanted: bool) -> None:
    """Print the version of fairlab and end, where that was asked for."""
    if wanted:
        print(f"fairlab {fl.__version__}")
        raise typer.Exit


Version = Annotated[
    bool,
    Option("--version", help="Print the version.", is_eager=True, callback=print_version),
]
