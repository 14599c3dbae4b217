"""What the field's benchmarks say of a model, and whether a cut changed it.

Contents: `run_lm_eval` (EleutherAI's lm-evaluation-harness on a model in memory), `bbq_scores` (BBQ
with one pass a context, and as a forced choice), `summarize_items` (items as a table of metrics),
`paired_changes` (the same items before and after).
"""

import csv
import json
import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from scipy import special, stats
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.pairs import prompt_ids
from fairlab.passes import check_option, check_ready, full_precision, progress
from fairlab.statistics import jackknife_interval, jackknife_variance

# task -> (its folder in the harness; id, configuration and split on the Hub; the columns it reads)
_TASKS = {
    "lambada_openai": ("lambada", "EleutherAI/lambada_openai", "default", "test", ("text",)),
    "boolq": ("super_glue/boolq", "aps/super_glue", "boolq", "validation", ("question", "passage", "label")),
    "crows_pairs_english": (
        "crows_pairs", "jannalu/crows_pairs_multilingual", "english", "test", ("sent_more", "sent_less", "bias_type"),
    ),
    "bbq": (
        "bbq", "oskarvanderwal/bbq", "All", "test",
        ("question_index", "question_polarity", "context_condition", "category", "answer_info", "additional_metadata",
         "context", "question", "ans0", "ans1", "ans2", "label"),
    ),
    "wikitext": ("wikitext", "EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test", ("page",)),
}  # fmt: skip
_WINDOW = 1024


@full_precision()
def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str],
    *,
    data: Mapping[str, str | Path | Sequence[Mapping]] | None = None,
    samples: Mapping[str, int | Sequence[int]] | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Run tasks of EleutherAI's lm-evaluation-harness on a model in memory: no examples before the
    question, no chat template.

    The texts before and after which a probability is asked, and what counts as right, are the
    harness's own. What it puts before a text without context (CrowS-Pairs, WikiText) is
    `<|endoftext|>` where the tokenizer has this token, else BOS, else EOS: the BOS of the default
    model opens a chat.

    Parameters
    ----------
    tasks : str or list of str
        "lambada_openai", "boolq", "crows_pairs_english", "bbq", "wikitext".
    data : dict, optional
        Task → a local file (.jsonl, .csv; for WikiText also the raw .txt) or a list of rows, with
        the columns that the set has on the Hub. Nothing is fetched for these. Other tasks come from
        the Hub.
    samples : dict, optional
        Task → how many items, drawn at random with a fixed seed; or their numbers. All by default.
    batch_size : int
        Texts in a forward pass (one for WikiText). In float32 it moves the last digits only; in
        half precision answers that are about equally likely can change places.

    Returns
    -------
    pandas.DataFrame
        As `summarize_items` returns it; `attrs["items"]` holds the items, a list with one dict an
        item: `task`, `item` (number in the data), `cluster` (items of one passage or template), and
        what was measured. WikiText is read in windows of 1,024 tokens, or fewer where the model
        holds fewer: the harness would take all that a model holds.

    Raises
    ------
    ModuleNotFoundError
        The harness is not installed.
    ValueError, FileNotFoundError
        Unknown task, data or samples for a task that is not run, rows without a column, item
        numbers that are not there, a file of another kind, a batch size that is no whole number, a
        model in training mode.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    data, samples = dict(data or {}), dict(samples or {})
    if not names:
        raise ValueError(f"tasks: expected at least one of {', '.join(_TASKS)}; got none")
    for name in names:
        check_option("tasks", name, tuple(_TASKS))
    for argument, given in (("data", data), ("samples", samples)):
        for name in given:
            check_option(argument, name, names)
    _check(model, batch_size)
    rows = {name: _rows_of(name, data[name]) for name in names if name in data}
    chosen = {name: _choose(name, len(rows[name]), samples.get(name)) for name in rows}
    items = []
    for name in names:
        if name not in rows:
            import datasets

            _, hub_id, configuration, split, columns = _TASKS[name]
            fetched = datasets.load_dataset(hub_id, configuration, split=split)
            rows[name] = [{column: row[column] for column in columns} for row in fetched]
            chosen[name] = _choose(name, len(rows[name]), samples.get(name))
        items += _run(model, tokenizer, name, rows[name], chosen[name], batch_size)
    table = summarize_items(items)
    table.attrs["items"] = items
    return table


def _check(model: PreTrainedModel, batch_size: int) -> None:
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number of at least 1; got {batch_size!r}")
    check_ready(model, longest=0)
    try:
        import datasets  # noqa: F401
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            'benchmarks need the lm-evaluation-harness; run: pip install "fairlab[eval]"'
        ) from error


def _rows_of(task: str, source: str | Path | Sequence[Mapping]) -> list[dict]:
    """Return the rows of a task, out of a file or as given, with the columns that it reads and no
    others."""
    columns = _TASKS[task][4]
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"data: there is no file {path} for {task}")
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            source = [json.loads(line) for line in text.splitlines() if line.strip()]
        elif path.suffix == ".csv":
            source = list(csv.DictReader(text.splitlines()))
        elif path.suffix == ".txt" and task == "wikitext":
            source = [{"page": page} for page in _pages(text)]
        else:
            raise ValueError(f"data: expected a .jsonl or .csv file for {task}; got {path.name}")
    rows = []
    for number, row in enumerate(source):
        for column in columns:
            if column not in row:
                raise ValueError(
                    f"data: item {number} of {task} has no column {column!r}; expected {columns}"
                )
        rows.append({column: row[column] for column in columns})
        if "label" in columns:
            rows[-1]["label"] = int(rows[-1]["label"])
    if not rows:
        raise ValueError(f"data: expected at least one row for {task}; got none")
    return rows


def _pages(text: str) -> Iterator[str]:
    """Split raw WikiText into pages as the Hub's set does: at headings of the first level."""
    lines: list[str] = []
    for line in text.split("\n"):
        flat = line.replace("= = =", "===").replace("= =", "==").strip()
        if flat.startswith("= ") and flat.endswith(" ="):
            if "\n".join(lines).strip():
                yield "\n".join(lines)
            lines = []
        lines.append(line)
    yield "\n".join(lines)


def _choose(task: str, available: int, wanted: int | Sequence[int] | None) -> list[int]:
    """Return the numbers of the items to run, in order."""
    if wanted is None:
        return list(range(available))
    if isinstance(wanted, int):
        if not 1 <= wanted <= available:
            raise ValueError(
                f"samples: expected a number from 1 to {available} for {task}; got {wanted}"
            )
        return sorted(random.Random(0).sample(range(available), wanted))
    numbers = sorted(int(number) for number in wanted)
    if (
        not numbers
        or numbers[0] < 0
        or numbers[-1] >= available
        or len(set(numbers)) < len(numbers)
    ):
        raise ValueError(
            f"samples: expected different item numbers from 0 to {available - 1} for {task}; got {wanted!r}"
        )
    return numbers


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Silence the harness's log, replace its progress bars, which always show, and keep its draws
    out of others'."""
    import datasets

    def bar(*args: object, disable: bool = False, **options: object) -> object:
        return progress(*args, **options)

    logger = logging.getLogger("lm_eval")
    level, bars, state = logger.level, datasets.is_progress_bar_enabled(), random.getstate()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with ExitStack() as stack:
            for module in ("api.model", "api.task", "models.huggingface"):
                stack.enter_context(patch(f"lm_eval.{module}.tqdm", bar))
            stack.enter_context(
                warnings.catch_warnings(action="ignore", category=RuntimeWarning)
            )  # its empty means
            yield
    finally:
        random.setstate(state)
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def _run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    rows: Sequence[dict],
    numbers: Sequence[int],
    batch_size: int,
) -> list[dict]:
    """Run one task of the harness on some of its rows and return what it measured, item by item."""
    import datasets
    import lm_eval
    import lm_eval.models.huggingface
    from lm_eval.tasks import TaskManager

    folder, _, _, split, _ = _TASKS[task]
    held = datasets.Dataset.from_list([rows[number] for number in numbers])
    override = {"task": task, "custom_dataset": lambda **_: {split: held}, "num_fewshot": 0}
    override |= {
        f"{other}_split": None for other in ("training", "validation", "test") if other != split
    }
    start = tokenizer.get_vocab().get("<|endoftext|>")

    class Frugal(lm_eval.models.huggingface.HFLM):
        """The harness's model, but for the logits that nobody reads: those of a context are a third
        of its work."""

        def _loglikelihood_tokens(
            self, requests: list, *_: object, **__: object
        ) -> list[tuple[float, bool]]:
            return _loglikelihoods(
                self.model, [request[1:] for request in requests], self.batch_size, self.max_length
            )

    with _quiet_harness():
        options = {"batch_size": batch_size}
        if task == "wikitext":  # a page has up to 17,000 tokens, and all of their logits are read
            holds = getattr(model.config.get_text_config(), "max_position_embeddings", _WINDOW)
            options = {"batch_size": 1, "max_length": min(_WINDOW, holds)}
        lm = Frugal(pretrained=model, tokenizer=tokenizer, prefix_token_id=start, **options)
        manager = TaskManager(
            include_path=str(Path(lm_eval.__file__).parent / "tasks" / folder),
            include_defaults=False,
        )
        loaded = manager.load([{"group": "fairlab", "task": [override]}])
        result = lm_eval.evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, log_samples=True)
    first: dict[str, int] = {}  # passage → the first item of it
    for number, row in enumerate(rows):
        first.setdefault(row.get("passage", ""), number)
    items = []
    for sample in result["samples"][task]:
        number = numbers[sample["doc_id"]]
        row = rows[number]
        logs = [
            response[0] if isinstance(response, tuple | list) else response
            for response in sample["filtered_resps"]
        ]
        item = {"task": task, "item": number, "cluster": None}
        if task == "lambada_openai":
            item |= {"loglikelihood": logs[0], "acc": sample["acc"]}
        elif task == "boolq":
            item |= {"cluster": f"passage {first[row['passage']]}", "label": row["label"]}
            item |= {"log_odds": logs[1] - logs[0], "acc": sample["acc"]}
        elif task == "crows_pairs_english":
            lengths = len(row["sent_more"]), len(row["sent_less"])
            shorter = (
                "neither"
                if lengths[0] == lengths[1]
                else "more"
                if lengths[0] < lengths[1]
                else "less"
            )
            item |= {"category": row["bias_type"], "shorter": shorter}
            item |= {"log_odds": logs[0] - logs[1], "pct_stereotype": sample["pct_stereotype"]}
        elif task == "wikitext":
            item |= {"loglikelihood": logs[0], "words": sample["word_perplexity"][1]}
        else:
            prompt, texts = sample["arguments"][0][0], [text for _, text in sample["arguments"]]
            lengths = [len(ids) for ids in _encode(tokenizer, prompt, texts)[1]]
            item |= _bbq_item(sample["doc"], logs, lengths)
        items.append(item)
    return items


@torch.no_grad()
def _loglikelihoods(
    model: PreTrainedModel,
    requests: Sequence[tuple[list[int], list[int]]],
    batch_size: int,
    max_length: int,
) -> list[tuple[float, bool]]:
    """Return of each (context, continuation) the log-probability of the continuation, and whether
    it is what the model would write: one row a context where the continuations have one token."""
    inputs = [
        tuple((context + continuation)[-max_length - 1 : -1]) for context, continuation in requests
    ]
    rows = sorted(set(inputs), key=len, reverse=True)
    asked: dict[tuple[int, ...], list[int]] = {row: [] for row in rows}
    for number, row in enumerate(inputs):
        asked[row].append(number)
    answers: list[tuple[float, bool]] = [(math.nan, False)] * len(requests)
    for start in progress(range(0, len(rows), batch_size), desc="benchmark", unit="batch"):
        batch = rows[start : start + batch_size]
        ids = torch.zeros(
            len(batch), len(batch[0]), dtype=torch.long
        )  # what pads on the right, nobody looks at
        spans = {}
        for place, row in enumerate(batch):
            ids[place, : len(row)] = torch.tensor(row)
            for number in asked[row]:
                spans[number] = place, range(len(row) - len(requests[number][1]), len(row))
        places = sorted({position for _, span in spans.values() for position in span})
        keep = torch.tensor(places, device=model.device)
        logits = model(input_ids=ids.to(model.device), use_cache=False, logits_to_keep=keep).logits
        column = {position: index for index, position in enumerate(places)}
        for number, (place, span) in spans.items():
            own = logits[place, [column[position] for position in span]]
            log_p = own.to(torch.promote_types(own.dtype, torch.float32)).log_softmax(-1).cpu()
            wanted = torch.tensor(requests[number][1][-len(span) :])
            total = log_p.gather(1, wanted[:, None]).double().sum().item()
            answers[number] = total, bool((log_p.argmax(-1) == wanted).all())
    return answers


def _encode(
    tokenizer: PreTrainedTokenizerBase, prompt: str, texts: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    """Tokenise as the harness does: the prompt alone, and of each continuation what is beyond the
    prompt's tokens."""
    ids = prompt_ids(tokenizer, prompt)
    return ids, [prompt_ids(tokenizer, prompt + text)[len(ids) :] for text in texts]


def _bbq_item(doc: Mapping, logs: Sequence[float], lengths: Sequence[int]) -> dict:
    """Return what an answer to a BBQ question shows: by the harness's rule, and between the two
    groups alone.

    `logs` and `lengths`: log-probability and tokens of the two group answers, then of the wordings
    of "unknown".
    """
    from lm_eval.tasks.bbq.utils import doc_to_choice, process_results_multiple_choice

    chosen = process_results_multiple_choice(doc, [(log, False) for log in logs])
    _, biased, answered, _ = chosen["amb_bias_score"]
    per_token = [log / length for log, length in zip(logs[:2], lengths[:2], strict=True)]
    groups = doc_to_choice(doc)[:2]
    sides = [group in doc["biased_answers"] for group in groups]
    log_odds = (
        per_token[sides.index(True)] - per_token[sides.index(False)]
        if sum(sides) == 1
        else math.nan
    )
    right = doc[f"ans{doc['label']}"]
    return {
        "cluster": f"{doc['category']} {doc['question_index']}",
        "category": doc["category"],
        "ambiguous": doc["context_condition"] == "ambig",
        "acc": chosen["acc"],
        "biased": biased,
        "answered": answered,
        "log_odds": log_odds,
        "forced_acc": float(groups[int(np.argmax(per_token))] == right)
        if right in groups
        else math.nan,
    }


@full_precision()
def bbq_scores(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: str | Path | Sequence[Mapping],
    *,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Score BBQ twice from one pass over each context: as the harness does, and as a choice between
    the two groups.

    The harness offers two group answers and ten wordings of "unknown", and takes the one with the
    highest probability in all, whatever their lengths: a small model can say "unknown" always, or
    never. Without any biased answer its bias score is 0.0, which reads like "no bias". So `share of
    unknown` stands beside it, and the forced choice looks at the two group answers alone::

        log-odds = mean over tokens of log p(biased answer) − mean over tokens of log p(other answer)

    A biased answer is the stereotyped group for a negative question, the other group for a
    non-negative one.

    Parameters
    ----------
    items : str, Path or list of dict
        A .jsonl file or rows with BBQ's own columns.
    batch_size : int
        Contexts in a forward pass; twelve answers follow each. In float32 it moves the last digits
        only; in half precision answers that are about equally likely can change places.

    Returns
    -------
    pandas.DataFrame
        As of `run_lm_eval(…, "bbq")`, which gives the same numbers and runs every context twelve
        times.

    Raises
    ------
    ModuleNotFoundError
        The harness, whose definitions are used, is not installed.
    ValueError, FileNotFoundError
        Rows without a column, a file of another kind, a batch size that is no whole number, a model
        in training mode, a question longer than the model's sliding window.
    """
    _check(model, batch_size)
    import datasets
    from lm_eval.tasks.bbq.utils import doc_to_choice, process_docs

    with _quiet_harness():
        docs = list(process_docs(datasets.Dataset.from_list(_rows_of("bbq", items))))
    encoded = [
        _encode(
            tokenizer,
            f"{doc['context']}\n\nQ: {doc['question']}\nA:",
            [f" {text}" for text in doc_to_choice(doc)],
        )
        for doc in docs
    ]
    by_length = sorted(range(len(docs)), key=lambda number: len(encoded[number][0]))
    longest = max(len(prompt) + max(map(len, answers)) for prompt, answers in encoded)
    window = getattr(model.config.get_text_config(), "sliding_window", None) or longest
    if longest > window:  # the mask below would let a token see further back than the model does
        raise ValueError(
            f"items: the longest question has {longest} tokens, the model's sliding window {window}"
        )
    batches = [by_length[start : start + batch_size] for start in range(0, len(docs), batch_size)]
    scored = {}
    for batch in progress(batches, desc="BBQ", unit="batch"):
        logs = _log_probabilities(model, *zip(*(encoded[n] for n in batch), strict=True))
        scored.update(zip(batch, logs, strict=True))
    rows = []
    for number, doc in enumerate(docs):
        lengths = [len(ids) for ids in encoded[number][1]]
        rows.append({"task": "bbq", "item": number} | _bbq_item(doc, scored[number], lengths))
    table = summarize_items(rows)
    table.attrs["items"] = rows
    return table


def _log_probabilities(
    model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]]
) -> list[list[float]]:
    """Return log p(answer | its prompt) of all answers to each prompt from one row a prompt.

    The answers stand side by side after the prompt; each sees the prompt and itself, at the places
    that it would have alone. Prompts are padded on the left, so that all end in one column.
    """
    width = max(map(len, prompts))
    tail = max(sum(len(answer) - 1 for answer in several) for several in answers)
    ids = torch.zeros(len(prompts), width + tail, dtype=torch.long)
    places, parts = (
        torch.zeros_like(ids),
        torch.full_like(ids, -1),
    )  # part: -1 padding, 0 prompt, then the answers
    wanted = []  # for each answer: its row, its tokens, and the columns (from the prompt's last) that foresee them
    for row, (prompt, several) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, width - len(prompt) : width] = torch.tensor(prompt)
        places[row, width - len(prompt) : width] = torch.arange(len(prompt))
        parts[row, width - len(prompt) : width] = 0
        column = width
        for number, answer in enumerate(several, start=1):
            own = slice(column, column + len(answer) - 1)
            ids[row, own] = torch.tensor(answer[:-1], dtype=torch.long)
            places[row, own] = torch.arange(len(prompt), len(prompt) + len(answer) - 1)
            parts[row, own] = number
            wanted.append((row, answer, [0, *range(own.start - width + 1, own.stop - width + 1)]))
            column = own.stop
    seen = parts[:, None, :]
    seen = (seen == 0) | ((seen > 0) & (seen == parts[:, :, None]))
    seen = seen.tril() | torch.eye(
        width + tail, dtype=torch.bool
    )  # padding sees itself: a softmax over nothing is NaN
    mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(
        ~seen, torch.finfo(model.dtype).min
    )
    with torch.no_grad():
        logits = model(
            input_ids=ids.to(model.device),
            attention_mask=mask[:, None].to(model.device),
            position_ids=places.to(model.device),
            use_cache=False,
            logits_to_keep=tail + 1,
        ).logits
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    logs = [log_p[row, columns, answer].sum().item() for row, answer, columns in wanted]
    count = len(answers[0])
    return [logs[start : start + count] for start in range(0, len(logs), count)]


Formula = tuple[
    Callable[[np.ndarray], np.ndarray], np.ndarray
]  # of weighted sums; the columns that are summed


def _mean(values: pd.Series, where: pd.Series | None = None) -> Formula:
    counted = np.ones(len(values)) if where is None else where.to_numpy(float)
    return (lambda sums: sums[..., 0] / sums[..., 1]), np.stack(
        [values.to_numpy(float) * counted, counted], -1
    )


def _perplexity(loglikelihood: pd.Series, units: np.ndarray) -> Formula:
    columns = np.stack([loglikelihood.to_numpy(float), units], -1)
    return (lambda sums: np.exp(-sums[..., 0] / sums[..., 1])), columns


def _bbq_bias(items: pd.DataFrame, where: pd.Series, *, ambiguous: bool) -> Formula:
    """Return the harness's bias score; it is 0 where no answer was biased, even if all of some were
    the opposite."""
    counted = where.to_numpy(float)
    columns = np.stack(
        [items[name].to_numpy(float) * counted for name in ("acc", "biased", "answered")], -1
    )

    def formula(sums: np.ndarray) -> np.ndarray:
        acc, biased, answered, n = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            score = np.where(biased == 0, 0.0, 2 * biased / answered - 1)
            return (1 - acc / n) * score if ambiguous else np.where(n == 0, np.nan, score)

    return formula, np.concatenate([columns, counted[:, None]], -1)


def _metrics(task: str, items: pd.DataFrame) -> dict[str, Formula]:
    """Return the metrics of a task as formulas of sums over items, so that they can be
    resampled."""
    if task == "lambada_openai":
        return {
            "acc": _mean(items.acc),
            "perplexity": _perplexity(items.loglikelihood, np.ones(len(items))),
        }
    if task == "boolq":
        return {"acc": _mean(items.acc), "share of yes": _mean(items.log_odds > 0)}
    if task == "wikitext":
        return {"word_perplexity": _perplexity(items.loglikelihood, items.words.to_numpy(float))}
    if task == "crows_pairs_english":
        parts = {
            "more": "stereotype shorter",
            "less": "stereotype longer",
            "neither": "equal length",
        }
        metrics = {"pct_stereotype": _mean(items.pct_stereotype)}
        for shorter, words in parts.items():
            if (items.shorter == shorter).any():
                metrics[f"pct_stereotype, {words}"] = _mean(
                    items.pct_stereotype, items.shorter == shorter
                )
        return metrics | {"log_odds": _mean(items.log_odds)}
    amb, dis = items.ambiguous.astype(bool), ~items.ambiguous.astype(bool)
    metrics = {"acc": _mean(items.acc), "share of unknown": _mean(1 - items.answered)}
    sided, log_odds = items.log_odds.notna(), items.log_odds.fillna(0)
    if dis.any():
        metrics["forced_accuracy_disamb"] = _mean(
            items.forced_acc.fillna(0), dis & items.forced_acc.notna()
        )
    for name, where, ambiguous in (("amb", amb, True), ("disamb", dis, False)):
        if where.any():
            metrics[f"accuracy_{name}"] = _mean(items.acc, where)
            metrics[f"{name}_bias_score"] = _bbq_bias(items, where, ambiguous=ambiguous)
            for category in sorted(items.category[where].unique()):
                own = where & (items.category == category)
                metrics[f"{name}_bias_score_{category}"] = _bbq_bias(
                    items, own, ambiguous=ambiguous
                )
            metrics[f"log_odds_{name}"] = _mean(log_odds, where & sided)
            for category in sorted(items.category[where & sided].unique()):
                metrics[f"log_odds_{name}_{category}"] = _mean(
                    log_odds, where & sided & (items.category == category)
                )
    return metrics


def _frame(items: Sequence[Mapping] | pd.DataFrame) -> pd.DataFrame:
    """Return items as a frame in which every item belongs to a cluster."""
    frame = pd.DataFrame(items)
    own = frame.task + " item " + frame.item.astype(str)
    return frame.assign(cluster=frame.cluster.where(frame.cluster.notna(), own))


def _majority(task: str, metric: str, items: pd.DataFrame) -> float:
    """Return what a model without any ability gets: BoolQ's commonest label, BBQ's "unknown" every
    time."""
    if (task, metric) == ("boolq", "acc"):
        return max(items.label.mean(), 1 - items.label.mean())
    if task == "bbq" and metric in ("acc", "accuracy_amb", "accuracy_disamb"):
        return {"acc": items.ambiguous.mean(), "accuracy_amb": 1.0, "accuracy_disamb": 0.0}[metric]
    return math.nan


def _clusters(formula: Formula, clusters: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return which items count for a metric, and the number of the cluster of each of these."""
    counted = formula[1].any(-1)
    return counted, pd.factorize(clusters[counted])[0]


def _standard_error(formula: Formula, clusters: pd.Series) -> tuple[float, int]:
    """Leave one cluster out at a time (jackknife): for a mean over items that stand alone this is s
    / √n.

    Also return the degrees of freedom. NaN where all clusters are alike: nothing shows by how much
    others would differ.
    """
    compute, columns = formula
    counted, numbers = _clusters(formula, clusters)
    variance, freedom = jackknife_variance(columns[counted], compute, numbers)
    error = math.sqrt(variance)
    return (error, freedom) if error > 1e-12 else (math.nan, freedom)


def _is_share(columns: np.ndarray) -> bool:
    """Tell whether a metric is the mean of answers that are right or wrong, this or that."""
    return columns.shape[1] == 2 and bool(np.isin(columns, (0.0, 1.0)).all())


def _interval(metric: str, columns: np.ndarray, value: float, half: float) -> tuple[float, float]:
    """Return value ± half, for a share on the scale of its logit, for a perplexity of its log: no
    end is impossible."""
    if math.isnan(half):
        return math.nan, math.nan
    if _is_share(columns):
        spread = half / (value * (1 - value))
        return tuple(float(special.expit(special.logit(value) + side * spread)) for side in (-1, 1))
    if "perplexity" in metric:
        return tuple(value * math.exp(side * half / value) for side in (-1, 1))
    return value - half, value + half


def summarize_items(items: Sequence[Mapping] | pd.DataFrame) -> pd.DataFrame:
    """Compute the metrics of benchmark items, each with its standard error.

    Parameters
    ----------
    items : list of dict, or DataFrame
        As `run_lm_eval` and `bbq_scores` keep them, of one task or several.

    Returns
    -------
    pandas.DataFrame
        One row a task and metric: `task`, `metric` (under the harness's name where it is the
        harness's), `n` (items that count for it), `value`; `standard_error` by a jackknife over
        clusters (passages, templates, else items) and the 95 % interval from it, `low` and `high`
        (of shares on the logit scale, of perplexities on the log scale), all NaN where every
        cluster says the same; `majority`: the accuracy of always giving the commonest answer, NaN
        where there is none.

        CrowS-Pairs: the share of pairs whose stereotyped sentence is the likelier one, in all and
        by which of the two has fewer characters; `log_odds`, the mean of log p(stereotyped) − log
        p(other) in nats. A shorter sentence is likelier whatever it says.

        BBQ: beside the harness's scores `share of unknown`, `log_odds_…` (see `bbq_scores`; nats a
        token, positive towards the stereotype, 0: no preference) and `forced_accuracy_disamb`
        (chance: 0.5).
    """
    frame = _frame(items)
    rows = []
    for task, own in frame.groupby("task", sort=False):
        for metric, formula in _metrics(task, own).items():
            compute, columns = formula
            row = {"task": task, "metric": metric, "n": int(columns.any(-1).sum())}
            value = float(compute(columns.sum(0)))
            error, freedom = _standard_error(formula, own.cluster)
            half = stats.t.ppf(0.975, freedom) * error if freedom else math.nan
            low, high = _interval(metric, columns, value, half)
            row |= {"value": value, "standard_error": error, "low": low, "high": high}
            rows.append(row | {"majority": _majority(task, metric, own)})
    return pd.DataFrame(rows)


def paired_changes(
    before: Sequence[Mapping] | pd.DataFrame, after: Sequence[Mapping] | pd.DataFrame
) -> pd.DataFrame:
    """Compare two models on the same benchmark items.

    Parameters
    ----------
    before, after : list of dict, or DataFrame
        Items as `run_lm_eval` and `bbq_scores` keep them in `attrs["items"]`.

    Returns
    -------
    pandas.DataFrame
        One row a task and metric: `before`, `after`; `change` (after − before; of perplexities
        after / before − 1) with `low` and `high`, a paired 95 % interval: `jackknife_interval` over
        clusters (passages, templates, else items); for answers that are right or wrong (or this or
        that) `lost` and `gained`, the items that were 1 and became 0 and the reverse, and `p`,
        McNemar's exact test of these, which takes items to be independent, NaN elsewhere; `told`:
        the interval excludes 0 and p, where there is one, is below 0.05; `detectable`, the smallest
        change that four of five studies with as many items like these would show (2.8 standard
        errors: power 0.8, α 0.05; of perplexities on the log scale); `sentence`, the row in words.

    Raises
    ------
    ValueError
        The two hold different items.
    """
    frames = [
        _frame(items).sort_values(["task", "item"], kind="stable") for items in (before, after)
    ]
    if [*zip(frames[0].task, frames[0].item, strict=True)] != [
        *zip(frames[1].task, frames[1].item, strict=True)
    ]:
        raise ValueError("before, after: expected the same items of the same tasks in both")
    rows = []
    for task in dict.fromkeys(pd.DataFrame(before).task):
        old, new = (frame[frame.task == task] for frame in frames)
        after_by_metric = _metrics(task, new)
        for metric, formula in _metrics(task, old).items():
            rows.append(
                {"task": task, "metric": metric}
                | _change(metric, formula, after_by_metric[metric], old.cluster)
            )
    table = pd.DataFrame(rows)
    return table.assign(sentence=[_sentence(row) for row in rows])


def _change(metric: str, before: Formula, after: Formula, labels: pd.Series) -> dict:
    """Return one metric's change with its interval, its test and the smallest change that so many
    items can show."""
    compute = before[0]
    counted, clusters = _clusters(before, labels)
    old, new = before[1][counted], after[1][counted]
    width = old.shape[1]

    def formula(sums: np.ndarray) -> np.ndarray:
        values = compute(sums[:, :width]), compute(sums[:, width:])
        return np.log(values[1] / values[0]) if "perplexity" in metric else values[1] - values[0]

    n, columns = len(old), np.concatenate([old, new], 1)
    ends = jackknife_interval(columns, formula, [clusters])
    change, low, high = (
        float(value) for value in (formula(columns.sum(0, keepdims=True))[0], *ends)
    )
    error = (high - low) / 2 / stats.t.ppf(0.975, max(int(clusters.max(initial=-1)), 1))
    detectable = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * error
    if "perplexity" in metric:
        change, low, high = (math.expm1(value) for value in (change, low, high))
    row = {"n": n, "before": float(compute(old.sum(0))), "after": float(compute(new.sum(0)))}
    row |= {"change": change, "low": low, "high": high}
    row |= {"lost": math.nan, "gained": math.nan, "p": math.nan}
    if _is_share(old) and _is_share(new):
        row["lost"] = int((old[:, 0] > new[:, 0]).sum())
        row["gained"] = int((old[:, 0] < new[:, 0]).sum())
        moved = row["lost"] + row["gained"]
        row["p"] = float(stats.binomtest(row["lost"], moved).pvalue) if moved else 1.0
    return row | {"told": (low > 0 or high < 0) and not row["p"] >= 0.05, "detectable": detectable}


def _sentence(row: Mapping) -> str:
    """Say a row of `paired_changes` in words."""
    start = f"{row['task']}, {row['metric']}: {row['before']:.3g} → {row['after']:.3g}"
    test = not math.isnan(row["p"])
    if row["change"] == 0 and not (test and row["lost"]):
        return f"{start}, no change on {row['n']:,} items."
    if "perplexity" in row["metric"]:
        change, low, high = (f"{row[name]:+.1%}" for name in ("change", "low", "high"))
    else:
        change, low, high = (f"{row[name]:+.3f}" for name in ("change", "low", "high"))
    moved = f"; {row['lost']} lost, {row['gained']} gained" if test else ""
    start += f", change {change} (interval {low} … {high}; {row['n']:,} items{moved})"
    if row["told"]:
        return f"{start}: the two differ."
    if math.isnan(row["detectable"]):
        return f"{start}: no difference can be told."
    size = (
        f"{row['detectable']:.1%}" if "perplexity" in row["metric"] else f"{row['detectable']:.3f}"
    )
    return f"{start}: no difference can be told; so many items can show one of {size} or more."
