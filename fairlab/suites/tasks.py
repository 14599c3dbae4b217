"""The benchmarks and their items, from a file, from a list, or from the Hub.

Contents: `TASKS`, `STEREOSET_LABELS`, `read_rows`, `fetch_rows`, `choose_items`.
"""

import csv
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Task:
    """Where a benchmark is kept, and which columns it reads."""

    folder: str  # in the harness's own folder of tasks; "" if it has no such task
    hub_id: str = ""
    configuration: str = ""
    split: str = ""
    columns: tuple[str, ...] = ()
    advice: str = ""  # where to get the file of what is not fetched


_STEREOSET_ADVICE = (
    "; download data/dev.json from github.com/moinnadeem/StereoSet (CC BY-SA 4.0) "
    'and give its path: data={"stereoset": path}'
)
STEREOSET_LABELS = ("stereotype", "anti-stereotype", "unrelated")
TASKS = {
    "lambada_openai": Task(
        "lambada",
        hub_id="EleutherAI/lambada_openai",
        configuration="default",
        split="test",
        columns=("text",),
    ),
    "boolq": Task(
        "super_glue/boolq",
        hub_id="aps/super_glue",
        configuration="boolq",
        split="validation",
        columns=("question", "passage", "label"),
    ),
    "crows_pairs_english": Task(
        "crows_pairs",
        hub_id="jannalu/crows_pairs_multilingual",
        configuration="english",
        split="test",
        columns=("sent_more", "sent_less", "bias_type"),
    ),
    "bbq": Task(
        "bbq",
        hub_id="oskarvanderwal/bbq",
        configuration="All",
        split="test",
        columns=(
            "question_index",
            "question_polarity",
            "context_condition",
            "category",
            "answer_info",
            "additional_metadata",
            "context",
            "question",
            "ans0",
            "ans1",
            "ans2",
            "label",
        ),
    ),
    "wikitext": Task(
        "wikitext",
        hub_id="EleutherAI/wikitext_document_level",
        configuration="wikitext-2-raw-v1",
        split="test",
        columns=("page",),
    ),
    "stereoset": Task("", columns=("target", "bias_type", "sentences"), advice=_STEREOSET_ADVICE),
}


def read_rows(task: str, source: str | Path | Sequence[Mapping]) -> list[dict]:
    """Return the items of a task from a file or a list, with only the columns that it reads."""
    if isinstance(source, str | Path):
        source = _read_file(task, Path(source))
    columns = TASKS[task].columns
    rows = []
    for number, row in enumerate(source):
        for column in columns:
            if not isinstance(row, Mapping) or column not in row:
                raise ValueError(
                    f"data: item {number} of {task} has no column {column!r}; expected {columns}"
                )
        rows.append({column: row[column] for column in columns})
        if "label" in columns:
            rows[-1]["label"] = int(rows[-1]["label"])  # a .csv file holds it as text
        if task == "stereoset":
            rows[-1]["sentences"] = _by_label(number, row["sentences"])
    if not rows:
        raise ValueError(f"data: expected at least one row for {task}; got none")
    return rows


def _read_file(task: str, path: Path) -> list[dict]:
    """Return all rows of a file with all of their columns."""
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path} for {task}{TASKS[task].advice}")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    if path.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    if task == "stereoset":
        return _intrasentence_items(text)
    if path.suffix == ".txt" and task == "wikitext":
        return [{"page": page} for page in _pages(text)]
    raise ValueError(f"data: expected a .jsonl or .csv file for {task}; got {path.name}")


def _intrasentence_items(text: str) -> list:
    """Return the items of StereoSet's file whose sentences differ in one place."""
    try:
        return list(json.loads(text)["data"]["intrasentence"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            'data: expected JSON with a list under "data", "intrasentence" for stereoset; '
            f"got {error!r}{_STEREOSET_ADVICE}"
        ) from error


def _by_label(number: int, sentences: Sequence[Mapping]) -> dict[str, str]:
    """Return the sentences of an item of StereoSet by gold label; refuse it if one is missing."""
    try:
        by_label = {each["gold_label"]: each["sentence"] for each in sentences}
        # an empty sentence has no likelihood
        valid = len(sentences) == 3 and all(by_label[label].strip() for label in STEREOSET_LABELS)
    except (AttributeError, KeyError, TypeError):
        valid = False
    if not valid:
        raise ValueError(
            f"data: item {number} of stereoset needs three sentences, one with each gold_label: "
            f"{', '.join(STEREOSET_LABELS)}; got {sentences!s:.200}"
        )
    return by_label


def _pages(text: str) -> Iterator[str]:
    """Split raw WikiText into pages as the Hub's set does: at headings of the first level."""
    lines: list[str] = []
    for line in text.split("\n"):
        # "= = Section = =" becomes "== Section ==", which is no heading of the first level
        heading = line.replace("= = =", "===").replace("= =", "==").strip()
        if heading.startswith("= ") and heading.endswith(" ="):
            if "\n".join(lines).strip():
                yield "\n".join(lines)
            lines = []
        lines.append(line)
    yield "\n".join(lines)


def fetch_rows(task: str) -> list[dict]:
    """Return the items of a task from the Hub, with only the columns that it reads."""
    import datasets

    place = TASKS[task]
    fetched = datasets.load_dataset(place.hub_id, place.configuration, split=place.split)
    rows = []
    for row in fetched:
        rows.append({column: row[column] for column in place.columns})
    return rows


def choose_items(task: str, available: int, samples: int | Sequence[int] | None) -> list[int]:
    """Return the numbers of the items to run, in order."""
    if samples is None:
        return list(range(available))
    if isinstance(samples, int):
        if not 1 <= samples <= available:
            raise ValueError(
                f"samples: expected a number from 1 to {available} for {task}; got {samples}"
            )
        return sorted(random.Random(0).sample(range(available), samples))
    numbers = sorted(int(number) for number in samples)
    repeated = len(set(numbers)) < len(numbers)
    if not numbers or numbers[0] < 0 or numbers[-1] >= available or repeated:
        raise ValueError(
            f"samples: expected different item numbers from 0 to {available - 1} for {task}; "
            f"got {samples!r}"
        )
    return numbers
