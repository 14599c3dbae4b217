"""The benchmarks and their items, from a file, from a list, or from the Hub.

Contents: `TASKS`, `STEREOSET_LABELS`, `read_rows`, `fetch_rows`, `choose_items`.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from fairlab.files import as_path, read_csv, read_json_lines, read_text
from fairlab.passes import check_whole
from fairlab.suites.bbq import check_bbq_row


@dataclass(frozen=True)
class Task:
    """Where a benchmark is kept, and which columns it reads."""

    folder: str  # in the harness's own folder of tasks; "" if it has no such task
    hub_id: str = ""
    configuration: str = ""
    split: str = ""
    columns: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()  # those of the columns that the model reads
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
        texts=("text",),
    ),
    "boolq": Task(
        "super_glue/boolq",
        hub_id="aps/super_glue",
        configuration="boolq",
        split="validation",
        columns=("question", "passage", "label"),
        texts=("question", "passage"),
    ),
    "crows_pairs_english": Task(
        "crows_pairs",
        hub_id="jannalu/crows_pairs_multilingual",
        configuration="english",
        split="test",
        columns=("sent_more", "sent_less", "bias_type"),
        texts=("sent_more", "sent_less"),
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
        texts=("context", "question", "ans0", "ans1", "ans2"),
    ),
    "wikitext": Task(
        "wikitext",
        hub_id="EleutherAI/wikitext_document_level",
        configuration="wikitext-2-raw-v1",
        split="test",
        columns=("page",),
        texts=("page",),
    ),
    "stereoset": Task("", columns=("target", "bias_type", "sentences"), advice=_STEREOSET_ADVICE),
}


def read_rows(task: str, source: str | Path | Sequence[Mapping]) -> list[dict]:
    """Return the items of a task from a file or a list, with only the columns that it reads."""
    if isinstance(source, str | Path):
        source = _read_file(task, as_path("data", source, "a file"))
    if not isinstance(source, Iterable) or isinstance(source, Mapping):
        raise TypeError(
            f"data: expected a file or a list of rows for {task}; got {type(source).__name__}"
        )
    rows = []
    for number, row in enumerate(source):
        try:
            rows.append(_tidy_row(task, row))
        except ValueError as error:
            raise ValueError(f"data: item {number} of {task} {error}") from error
    if not rows:
        raise ValueError(f"data: expected at least one row for {task}; got none")
    return rows


def _tidy_row(task: str, row: object) -> dict:
    """Return the columns of an item that are read; refuse what can't be measured rightly."""
    columns = TASKS[task].columns
    for column in columns:
        if not isinstance(row, Mapping) or column not in row:
            raise ValueError(f"has no column {column!r}; expected {columns}")
    tidy = {column: row[column] for column in columns}
    for column in TASKS[task].texts:
        text = tidy[column]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"needs a text as {column}; got {text!r}")
        # a line end behind a text would be scored with it; a page is the harness's own affair
        tidy[column] = text if task == "wikitext" else text.rstrip()
    if task == "lambada_openai" and " " not in tidy["text"].strip():
        raise ValueError(f"needs a word before its last one; got {tidy['text']!r}")
    if task == "crows_pairs_english" and tidy["sent_more"] == tidy["sent_less"]:
        raise ValueError(f"needs two different sentences; got {tidy['sent_more']!r} twice")
    if "label" in columns:
        tidy["label"] = _label(tidy["label"], 3 if task == "bbq" else 2)
    if task == "bbq":
        check_bbq_row(tidy)
    if task == "stereoset":
        tidy["sentences"] = _by_label(tidy["sentences"])
    return tidy


def _label(value: object, count: int) -> int:
    """Return a label below `count`, which a file may hold as text, as a fraction or as a truth."""
    known = {}
    for number in range(count):
        known |= dict.fromkeys((str(number), f"{number}.0"), number)
    if count == 2:
        known |= {"false": 0, "true": 1}
    label = known.get(str(value).strip().lower())
    if label is None:
        allowed = ", ".join(map(str, range(count)))
        raise ValueError(f"needs a label that is one of {allowed}; got {value!r}")
    return label


def _read_file(task: str, path: Path) -> list[dict]:
    """Return all rows of a file with all of their columns."""
    if not path.is_file():
        raise FileNotFoundError(f"data: there is no file {path} for {task}{TASKS[task].advice}")
    kind = path.suffix.lower()
    if kind == ".jsonl":
        return read_json_lines("data", path)
    if kind == ".csv":
        return read_csv("data", path, TASKS[task].columns).as_dicts()
    if task == "stereoset":
        return _intrasentence_items(read_text("data", path)[0])
    if kind == ".txt" and task == "wikitext":
        return [{"page": page} for page in _pages(read_text("data", path)[0])]
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


def _by_label(sentences: Sequence[Mapping]) -> dict[str, str]:
    """Return the sentences of an item of StereoSet by gold label; refuse it if one is missing."""
    try:
        by_label = {each["gold_label"]: each["sentence"] for each in sentences}
        # an empty sentence has no likelihood
        valid = len(sentences) == 3 and all(by_label[label].strip() for label in STEREOSET_LABELS)
    except (AttributeError, KeyError, TypeError):
        valid = False
    if not valid:
        raise ValueError(
            "needs three sentences, one with each gold_label: "
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
    if isinstance(samples, Integral):
        count = check_whole(f"samples of {task}", samples, 1, available)
        return sorted(random.Random(0).sample(range(available), count))
    try:
        numbers = sorted(check_whole("", number, 0, available - 1) for number in samples)
    except (TypeError, ValueError):
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"samples: expected different item numbers from 0 to {available - 1} for {task}; "
            f"got {samples!r}"
        )
    return numbers
