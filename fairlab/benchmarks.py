"""What the field's benchmarks say of a model, and whether a cut changed it.

Contents: `run_lm_eval` (EleutherAI's lm-evaluation-harness on a model in memory), `summarize_items` (its items as a
table of metrics), `paired_changes` (the same items before and after).
"""

import csv
import json
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import check_option, progress

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


def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str],
    *,
    data: Mapping[str, str | Path | Sequence[Mapping]] | None = None,
    samples: Mapping[str, int | Sequence[int]] | None = None,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Run tasks of EleutherAI's lm-evaluation-harness on a model in memory: no examples before the question, no chat
    template.

    The texts before and after which a probability is asked, and what counts as right, are the harness's own. What it
    puts before a text without context (CrowS-Pairs, WikiText) is `<|endoftext|>` where the tokenizer has this token,
    else BOS, else EOS: the BOS of the default model opens a chat.

    Parameters
    ----------
    tasks : str or list of str
        "lambada_openai", "boolq", "crows_pairs_english", "bbq", "wikitext".
    data : dict, optional
        Task → a local file (.jsonl, .csv; for WikiText also the raw .txt) or a list of rows, with the columns that the
        set has on the Hub. Nothing is fetched for these. Other tasks come from the Hub.
    samples : dict, optional
        Task → how many items, drawn at random with a fixed seed; or their numbers. All by default.
    batch_size : int
        Texts in a forward pass (one for WikiText). The result does not depend on it.

    Returns
    -------
    pandas.DataFrame
        As `summarize_items` returns it; `attrs["items"]` holds the items, a list with one dict an item: `task`, `item`
        (number in the data), `cluster` (items of one passage or template), and what was measured. WikiText is read
        in windows of 1,024 tokens, or fewer where the model holds fewer: the harness would take all that a model holds.

    Raises
    ------
    ModuleNotFoundError
        The harness is not installed.
    ValueError, FileNotFoundError
        Unknown task, data or samples for a task that is not run, rows without a column, item numbers that are not
        there, a file of another kind, a batch size that is no whole number, a model in training mode.
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
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number of at least 1; got {batch_size!r}")
    if model.training:
        raise ValueError("model: it is in training mode, where dropout adds noise; call model.eval()")
    try:
        import datasets
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            'run_lm_eval needs the lm-evaluation-harness; run: pip install "fairlab[eval]"'
        ) from error
    rows = {name: _rows_of(name, data[name]) for name in names if name in data}
    chosen = {name: _choose(name, len(rows[name]), samples.get(name)) for name in rows}
    items = []
    for name in names:
        if name not in rows:
            _, hub_id, configuration, split, columns = _TASKS[name]
            fetched = datasets.load_dataset(hub_id, configuration, split=split)
            rows[name] = [{column: row[column] for column in columns} for row in fetched]
            chosen[name] = _choose(name, len(rows[name]), samples.get(name))
        items += _run(model, tokenizer, name, rows[name], chosen[name], batch_size)
    table = summarize_items(items)
    table.attrs["items"] = items
    return table


def _rows_of(task: str, source: str | Path | Sequence[Mapping]) -> list[dict]:
    """Read the rows of a task and check their columns."""
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
                raise ValueError(f"data: item {number} of {task} has no column {column!r}; expected {columns}")
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
            raise ValueError(f"samples: expected a number from 1 to {available} for {task}; got {wanted}")
        return sorted(random.Random(0).sample(range(available), wanted))
    numbers = sorted(int(number) for number in wanted)
    if not numbers or numbers[0] < 0 or numbers[-1] >= available or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"samples: expected different item numbers from 0 to {available - 1} for {task}; got {wanted!r}"
        )
    return numbers


@contextmanager
def _quiet_harness() -> Iterator[None]:
    """Silence the harness's log and replace its progress bars, which always show, by the house's."""
    import datasets

    def bar(*args: object, disable: bool = False, **options: object) -> object:
        return progress(*args, **options)

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        with ExitStack() as stack:
            for module in ("api.model", "api.task", "models.huggingface"):
                stack.enter_context(patch(f"lm_eval.{module}.tqdm", bar))
            yield
    finally:
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
    override |= {f"{other}_split": None for other in ("training", "validation", "test") if other != split}
    start = tokenizer.get_vocab().get("<|endoftext|>")
    with _quiet_harness():
        lm = lm_eval.models.huggingface.HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, prefix_token_id=start
        )
        if task == "wikitext":  # a page has up to 17,000 tokens, and the harness keeps the logits of all
            window = min(_WINDOW, lm.max_length)
            lm = lm_eval.models.huggingface.HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=1, prefix_token_id=start, max_length=window
            )
        manager = TaskManager(
            include_path=str(Path(lm_eval.__file__).parent / "tasks" / folder), include_defaults=False
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
            response[0] if isinstance(response, tuple | list) else response for response in sample["filtered_resps"]
        ]
        item = {"task": task, "item": number, "cluster": None}
        if task == "lambada_openai":
            item |= {"loglikelihood": logs[0], "acc": sample["acc"]}
        elif task == "boolq":
            item |= {"cluster": f"passage {first[row['passage']]}", "label": row["label"]}
            item |= {"log_odds": logs[1] - logs[0], "acc": sample["acc"]}
        elif task == "crows_pairs_english":
            lengths = len(row["sent_more"]), len(row["sent_less"])
            shorter = "neither" if lengths[0] == lengths[1] else "more" if lengths[0] < lengths[1] else "less"
            item |= {"category": row["bias_type"], "shorter": shorter}
            item |= {"log_odds": logs[0] - logs[1], "pct_stereotype": sample["pct_stereotype"]}
        elif task == "wikitext":
            item |= {"loglikelihood": logs[0], "words": sample["word_perplexity"][1]}
        else:
            _, biased, answered, _ = sample["amb_bias_score"]
            item |= {"cluster": f"{row['category']} {row['question_index']}", "category": row["category"]}
            item |= {"ambiguous": row["context_condition"] == "ambig", "acc": sample["acc"]}
            item |= {"biased": biased, "answered": answered}
        items.append({key: value.item() if isinstance(value, np.generic) else value for key, value in item.items()})
    return items


Formula = tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]  # of weighted sums; the columns that are summed


def _mean(values: pd.Series, where: pd.Series | None = None) -> Formula:
    counted = np.ones(len(values)) if where is None else where.to_numpy(float)
    return (lambda sums: sums[..., 0] / sums[..., 1]), np.stack([values.to_numpy(float) * counted, counted], -1)


def _perplexity(loglikelihood: pd.Series, units: np.ndarray) -> Formula:
    columns = np.stack([loglikelihood.to_numpy(float), units], -1)
    return (lambda sums: np.exp(-sums[..., 0] / sums[..., 1])), columns


def _bbq_bias(items: pd.DataFrame, where: pd.Series, *, ambiguous: bool) -> Formula:
    """Return the harness's bias score; it is 0 where no answer was biased, even if all of some were the opposite."""
    counted = where.to_numpy(float)
    columns = np.stack([items[name].to_numpy(float) * counted for name in ("acc", "biased", "answered")], -1)

    def formula(sums: np.ndarray) -> np.ndarray:
        acc, biased, answered, n = np.moveaxis(sums, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            score = np.where(biased == 0, 0.0, 2 * biased / answered - 1)
            return (1 - acc / n) * score if ambiguous else np.where(n == 0, np.nan, score)

    return formula, np.concatenate([columns, counted[:, None]], -1)


def _metrics(task: str, items: pd.DataFrame) -> dict[str, Formula]:
    """Return the metrics of a task as formulas of sums over items, so that they can be resampled."""
    if task == "lambada_openai":
        return {"acc": _mean(items.acc), "perplexity": _perplexity(items.loglikelihood, np.ones(len(items)))}
    if task == "boolq":
        return {"acc": _mean(items.acc), "share of yes": _mean(items.log_odds > 0)}
    if task == "wikitext":
        return {"word_perplexity": _perplexity(items.loglikelihood, items.words.to_numpy(float))}
    if task == "crows_pairs_english":
        parts = {"more": "stereotype shorter", "less": "stereotype longer", "neither": "equal length"}
        metrics = {"pct_stereotype": _mean(items.pct_stereotype)}
        for shorter, words in parts.items():
            if (items.shorter == shorter).any():
                metrics[f"pct_stereotype, {words}"] = _mean(items.pct_stereotype, items.shorter == shorter)
        return metrics | {"log_odds": _mean(items.log_odds)}
    amb, dis = items.ambiguous.astype(bool), ~items.ambiguous.astype(bool)
    metrics = {"acc": _mean(items.acc), "share of unknown": _mean(1 - items.answered)}
    for name, where, ambiguous in (("amb", amb, True), ("disamb", dis, False)):
        if where.any():
            metrics[f"accuracy_{name}"] = _mean(items.acc, where)
            metrics[f"{name}_bias_score"] = _bbq_bias(items, where, ambiguous=ambiguous)
            for category in sorted(items.category[where].unique()):
                own = where & (items.category == category)
                metrics[f"{name}_bias_score_{category}"] = _bbq_bias(items, own, ambiguous=ambiguous)
    return metrics


def _frame(items: Sequence[Mapping] | pd.DataFrame) -> pd.DataFrame:
    """Return items as a frame in which every item belongs to a cluster."""
    frame = pd.DataFrame(items)
    own = frame.task + " item " + frame.item.astype(str)
    return frame.assign(cluster=frame.cluster.where(frame.cluster.notna(), own))


def _majority(task: str, metric: str, items: pd.DataFrame) -> float:
    """Return what a model without any ability gets: BoolQ's commonest label, BBQ's "unknown" every time."""
    if (task, metric) == ("boolq", "acc"):
        return max(items.label.mean(), 1 - items.label.mean())
    if task == "bbq" and metric in ("acc", "accuracy_amb", "accuracy_disamb"):
        return {"acc": items.ambiguous.mean(), "accuracy_amb": 1.0, "accuracy_disamb": 0.0}[metric]
    return math.nan


def _standard_error(formula: Formula, clusters: pd.Series) -> float:
    """Leave one cluster out at a time (jackknife); for a mean over items that stand alone this is s / √n."""
    compute, columns = formula
    counted = columns.any(-1)
    numbers = pd.factorize(clusters[counted])[0]
    n = numbers.max() + 1
    if n < 2:
        return math.nan
    of_cluster = np.zeros((n, columns.shape[1]))
    np.add.at(of_cluster, numbers, columns[counted])
    without = compute(of_cluster.sum(0) - of_cluster)
    return math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())


def summarize_items(items: Sequence[Mapping] | pd.DataFrame) -> pd.DataFrame:
    """Compute the metrics of benchmark items, each with its standard error.

    Parameters
    ----------
    items : list of dict, or DataFrame
        As `run_lm_eval` keeps them, of one task or several.

    Returns
    -------
    pandas.DataFrame
        One row a task and metric: `task`, `metric` (the harness's name where it is the harness's metric), `n`
        (items that count for it), `value`, `standard_error` (jackknife over clusters: passages, templates, else items),
        `majority` (the accuracy of always giving the commonest answer, NaN where there is none).

        CrowS-Pairs: share of pairs whose stereotyped sentence is the likelier one, in all and by which of the two
        sentences is shorter in characters, and the mean of log p(stereotyped) − log p(other) in nats. A shorter
        sentence is likelier whatever it says.
    """
    frame = _frame(items)
    rows = []
    for task, own in frame.groupby("task", sort=False):
        for metric, (compute, columns) in _metrics(task, own).items():
            row = {"task": task, "metric": metric, "n": int(columns.any(-1).sum())}
            row["value"] = float(compute(columns.sum(0)))
            row["standard_error"] = _standard_error((compute, columns), own.cluster)
            rows.append(row | {"majority": _majority(task, metric, own)})
    return pd.DataFrame(rows)
