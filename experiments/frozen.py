"""What the scripts of this folder share: pairs and texts, results that are kept, and the form of a
frozen table.

Contents: `train_pairs`, `held_out`, `validation`, `planted_split`, `evaluation_text`; `kept`,
`guard_tables`, `gate_tables`; `categories_of`; `quick_reading`, `quick_changes`, `headline_change`;
`provenance`, `write`, `write_csv`, `keep_rows`.
"""

import json
import os
import platform
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

import pandas as pd
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import fairlab as fl
from fairlab import gating
from fairlab.evaluation.readings import bits_of
from fairlab.evaluation.rows import PART
from fairlab.gating import GateTables
from fairlab.recipes import guarded_tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "data" / "results"
BUILD = ROOT / "build"  # what is slow to compute is kept here; not part of the repository
SEED = 0


def train_pairs(kind: str = "demographic") -> list[fl.PromptPair]:
    """Return the pairs that may choose neurons: template and words are both in the train split."""
    return fl.load_pairs(split="train", kind=kind)


def held_out(tokenizer, *, part: int, neutral_words: str = "split") -> fl.HeldOut:
    """Return the pairs of which template and words were both held out, and a part of the text.

    With `neutral_words="any"` all neutral pairs of the held-out templates are taken.
    """
    neutral = fl.load_pairs(split="held_out", kind="neutral", words=neutral_words)
    text = evaluation_text(tokenizer, part)
    return fl.HeldOut(fl.load_pairs(split="held_out"), neutral, text)


def validation(tokenizer) -> fl.HeldOut:
    """Return what settings are chosen on: validation pairs, and the first part of the text."""
    neutral = fl.load_pairs(split="validation", kind="neutral")
    text = evaluation_text(tokenizer, part=0)
    return fl.HeldOut(fl.load_pairs(split="validation"), neutral, text)


def planted_split(seed: int) -> tuple[list[fl.PromptPair], list[fl.PromptPair]]:
    """Return the race pairs that planted neurons are fitted to, and those that the scores see."""
    pairs = fl.load_pairs("race", split="train") + fl.load_pairs("race", split="validation")
    templates = sorted({pair.template for pair in pairs})
    drawn = set(random.Random(seed).sample(templates, len(templates) // 2))
    fitted = [pair for pair in pairs if pair.template in drawn]
    seen = [pair for pair in pairs if pair.template not in drawn]
    return fitted, seen


def evaluation_text(tokenizer, part: int) -> str:
    """Return the first (0) or the second (1) 2,048 tokens of the evaluation text.

    Settings of guarded cuts and of gates were chosen on the first part, so what these cost is read
    on the second.
    """
    ids = tokenizer(fl.load_text("evaluation"), verbose=False).input_ids
    return tokenizer.decode(ids[PART * part : PART * (part + 1)])


def kept(path: Path, compute: Callable[[], object]) -> object:
    """Return what a file holds, or compute it and keep it there.

    A tensor, what JSON can hold, or a dict or tuple of these; as safetensors, since a pickle could
    hold code.
    """
    path = path.with_suffix(".safetensors")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        tensors: dict[str, Tensor] = {}
        layout = _packed(compute(), tensors)
        save_file(tensors, part, metadata={"layout": json.dumps(layout)})
        os.replace(part, path)  # complete before it takes its name
    with safe_open(path, framework="pt") as file:
        return _unpacked(json.loads(file.metadata()["layout"]), file.get_tensor)


def _packed(value: object, tensors: dict[str, Tensor]) -> list:
    """Return a value as JSON, in which each tensor is its number among `tensors`."""
    if isinstance(value, Tensor):
        number = str(len(tensors))
        tensors[number] = value.detach().cpu().clone().contiguous()
        return ["tensor", number]
    if isinstance(value, dict):
        return ["dict", {name: _packed(part, tensors) for name, part in value.items()}]
    if isinstance(value, tuple):
        return ["tuple", [_packed(part, tensors) for part in value]]
    return ["json", value]


def _unpacked(layout: list, tensor: Callable[[str], Tensor]) -> object:
    """Return what `_packed` packed."""
    kind, value = layout
    if kind == "tensor":
        return tensor(value)
    if kind == "dict":
        return {name: _unpacked(part, tensor) for name, part in value.items()}
    return tuple(_unpacked(part, tensor) for part in value) if kind == "tuple" else value


def guard_tables(model, tokenizer, method: str = "attribution") -> dict[str, Tensor]:
    """Return `score`, `bias`, `importance` and `neutral` of the guarded recipe on training pairs.

    Kept in `build/tradeoff/`.
    """

    def compute() -> dict[str, Tensor]:
        pairs, neutral = train_pairs(), train_pairs("neutral")
        return guarded_tables(model, tokenizer, pairs, neutral, method=method)

    return kept(BUILD / "tradeoff" / f"guarded-{method}.pt", compute)


def gate_tables(model, tokenizer, pairs, neutral, name: str) -> GateTables:
    """Return what `solve_gates` needs, kept by name in `build/tradeoff/`."""

    def compute() -> tuple[Tensor, ...]:
        return astuple(gating.gate_tables(model, tokenizer, pairs, neutral))

    return GateTables(*kept(BUILD / "tradeoff" / f"gates-{name}.pt", compute))


def categories_of(pairs: Sequence[fl.PromptPair]) -> list[str]:
    """Return the different categories of pairs, in order."""
    return list(dict.fromkeys(pair.category for pair in pairs))


def quick_reading(model, tokenizer, held_out: fl.HeldOut) -> dict[str, Tensor | float]:
    """Measure what a setting is chosen by: no random cuts, no intervals."""
    return {
        "gaps": fl.next_token_divergence(model, tokenizer, held_out.pairs),
        "neutral gaps": fl.next_token_divergence(model, tokenizer, held_out.neutral),
        "perplexity": fl.perplexity(model, tokenizer, held_out.text),
    }


def quick_changes(held_out: fl.HeldOut, before: dict, after: dict) -> dict[str, float]:
    """Return the relative changes between two readings: headline, neutral gap, perplexity."""
    neutral_before, neutral_after = before["neutral gaps"].mean(), after["neutral gaps"].mean()
    return {
        "headline": headline_change(held_out.pairs, before["gaps"], after["gaps"]),
        "neutral": (neutral_after / neutral_before - 1).item(),
        "perplexity": after["perplexity"] / before["perplexity"] - 1,
    }


def headline_change(pairs: Sequence[fl.PromptPair], before: Tensor, after: Tensor) -> float:
    """Return the mean over categories of the relative change of the mean gap."""
    changes = []
    for category in sorted({pair.category for pair in pairs}):
        members = [number for number, pair in enumerate(pairs) if pair.category == category]
        changes.append((after[members].mean() / before[members].mean() - 1).item())
    return sum(changes) / len(changes)


def provenance(model) -> dict[str, str]:
    """Return what a frozen row must say of where it comes from."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    versions = {
        "fairlab": fl.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "Python": platform.python_version(),
    }
    return {
        "model": fl.DEFAULT_MODEL,
        "weights_sha256": bits_of(model),
        "device": f"{model.device}, {model.dtype}",
        "commit": commit.stdout.strip(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def write(model, table: pd.DataFrame, draws: pd.DataFrame, name: str, *, seconds: float) -> None:
    """Write the table of a comparison as `NAME.csv` and its random cuts as `NAME_draws.csv`.

    Selections are named "method · count", and become two columns. Of the draws only those are kept
    that plots show: headline and text, under random cuts that are not matched.
    """
    seconds = round(seconds)
    table = split_names(table).assign(**provenance(model), seed=SEED, seconds=seconds)
    write_csv(table, f"{name}.csv")
    shown = draws.row.isin(["headline", "text"]) & (draws.kind == "random")
    write_csv(split_names(draws[shown]), f"{name}_draws.csv", float_format="%.5f")
    in_short = table.row.isin(["headline", "text"]) & (table.measure != "metric")
    print("\n".join(table[in_short].sentence.dropna()))
    print(f"{seconds} s of measuring")


def split_names(table: pd.DataFrame) -> pd.DataFrame:
    """Put `method` and `count` in place of `selection`."""
    names = table.selection.str.split(" · ", expand=True)
    table = table.drop(columns="selection")
    table.insert(0, "method", names[0])
    table.insert(1, "count", names[1].astype(int))
    return table


def write_csv(table: pd.DataFrame, name: str, *, float_format: str = "%.6g") -> None:
    """Write a table to `data/results/`."""
    path = RESULTS / name
    table.to_csv(path, index=False, float_format=float_format, lineterminator="\n")
    print(f"data/results/{name}: {len(table)} rows")


def keep_rows(model, name: str, table: pd.DataFrame, file: str, **facts: object) -> None:
    """Write the rows of this model beside those of the other that the file holds."""
    origin = {**provenance(model), "model": name, **facts}
    path = RESULTS / file
    table = table.assign(**origin)
    if path.is_file():
        others = pd.read_csv(path)
        table = pd.concat([others[others.model != name], table], ignore_index=True)
    table = table.sort_values("model", kind="stable", ascending=False)
    write_csv(table, file)
