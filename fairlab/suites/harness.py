"""EleutherAI's lm-evaluation-harness on a model in memory, and StereoSet, which it lacks.

Contents: `run_lm_eval` and its `BenchmarkResult`; its steps, from the harness's model to the
items: `quiet_harness`, `frugal_model`, `evaluate`, `items_of`.
"""

import hashlib
import json
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.evaluation.readings import facts_of
from fairlab.files import checked_cache, keep, read_kept
from fairlab.pairs import bare_ids, check_kind, check_tokenizer, listed, prompt_ids
from fairlab.passes import check_option, check_ready, check_whole, context_length, is_half, progress
from fairlab.precision import full_precision, undoing
from fairlab.suites.bbq import bbq_item, check_bbq_length
from fairlab.suites.likelihoods import log_likelihoods, start_token
from fairlab.suites.summaries import summarize_items
from fairlab.suites.tasks import STEREOSET_LABELS, TASKS, choose_items, fetch_rows, read_rows

WIKITEXT_WINDOW = 1024  # tokens in a forward pass


@dataclass(frozen=True)
class BenchmarkResult:
    """What a model does on benchmarks: as metrics, and item by item.

    Parameters
    ----------
    table : DataFrame
        One row a task and metric, as `summarize_items` returns it.
    items : list of dict
        One an item: `task`, `item` (number in the data), `cluster` (what it shares with items of
        one passage or template), and what was measured. `paired_changes` compares them.
    """

    table: pd.DataFrame
    items: list[dict]


@full_precision()
def run_lm_eval(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: str | Sequence[str],
    *,
    data: Mapping[str, str | Path | Sequence[Mapping]] | None = None,
    samples: Mapping[str, int | Sequence[int]] | None = None,
    batch_size: int = 8,
    cache: str | Path | None = None,
) -> BenchmarkResult:
    """Run tasks of EleutherAI's lm-evaluation-harness on a model in memory.

    No examples stand before the question, and there is no chat template. The texts before and after
    which a probability is asked, and what counts as right, are the harness's own. What it puts
    before a text without context (CrowS-Pairs, WikiText) is `<|endoftext|>` where the tokenizer has
    this token, else BOS, else EOS: the BOS of the default model opens a chat.

    Parameters
    ----------
    tasks : str or list of str
        "lambada_openai", "boolq", "crows_pairs_english", "bbq", "wikitext"; and
        "stereoset", which the harness lacks: fairlab's own, and only with `data`.
    data : dict, optional
        Task → a local file (.jsonl, .csv; for WikiText also the raw .txt) or a list of rows, with
        the columns that the set has on the Hub. The items of other tasks come from the Hub. For
        StereoSet: data/dev.json of github.com/moinnadeem/StereoSet (CC BY-SA 4.0), or a list of the
        items that stand in it under "data", "intrasentence".
    samples : dict, optional
        Task → how many items, drawn at random with a fixed seed; or their numbers. All by default.
    batch_size : int
        Texts in a forward pass (one for WikiText; for BBQ questions, with twelve answers behind
        each). In float32 it moves the last digits only. In half precision each text runs alone,
        whatever is asked, so that the results do not depend on it.
    cache : path, optional
        Folder that keeps the items of every finished task, so that a run that was stopped goes on
        with the next one. They are used again only for the same items, tokens and versions, and a
        model with the same weights, settings, precision and hooks.

    Returns
    -------
    BenchmarkResult
        With `table`, the metrics, and `items`, what was measured of each item.

    Raises
    ------
    ModuleNotFoundError
        The harness is not installed (StereoSet alone does without it).
    ValueError, FileNotFoundError
        Unknown task, data or samples for a task that is not run, rows without a column, item
        numbers that are not there, a file of another kind, a batch size that is no whole number, a
        cache that is no folder or can't be written, a model in training mode, a question of BBQ
        longer than the model's sliding window, StereoSet without `data`, or an item of it without
        one sentence of each label.

    Notes
    -----
    BBQ is read in two ways. *By the harness's rule* the answer is the likeliest of two groups and
    ten wordings of "unknown", by the probability of the whole answer, whatever its length: a small
    model can say "unknown" always, or never. Without any biased answer the harness's bias score is
    0, which reads like "no bias"; `share of unknown` stands beside it. *As a choice between the two
    groups* only the answers that name a group count::

        log-odds = mean over tokens of log p(biased answer)
                   − mean over tokens of log p(other answer)

    in nats a token; 0: no preference. A biased answer is the stereotyped group for a negative
    question, the other group for a non-negative one. A context is run once, with all answers side
    by side behind it; the harness as it is runs it twelve times and gives the same answers.

    WikiText is read in windows of 1,024 tokens, or fewer where the model holds fewer; the harness
    would take all that a model holds.

    StereoSet has three sentences an item that differ in one place: a stereotype, its opposite, and
    one that makes no sense. The likelihood of a sentence is the *mean* of log p over its tokens, in
    nats, as in StereoSet's own scorer for GPT-2; a sum would favour fewer tokens. But here all
    tokens are read after the start token, there only the first is. Many of its items hold no
    stereotype, are ungrammatical, or differ in more than the group: read its scores with care
    (Blodgett et al., "Stereotyping Norwegian Salmon", 2021).
    """
    names = [tasks] if isinstance(tasks, str) else listed("tasks", tasks, "names of tasks")
    check_tokenizer(tokenizer)
    data, samples = {} if data is None else data, {} if samples is None else samples
    _check_arguments(names, data, samples, batch_size)
    cache = checked_cache(cache)
    check_ready(model, longest=0)
    batch_size = int(batch_size)
    if is_half(model):
        # there, rounding depends on the other texts of a batch and would change answers
        batch_size = 1
    if any(TASKS[name].folder for name in names):
        _check_installed()

    rows, chosen = {}, {}
    # local data first: bad rows are refused before anything is fetched
    for name in sorted(names, key=lambda name: name not in data):
        rows[name] = read_rows(name, data[name]) if name in data else fetch_rows(name)
        chosen[name] = choose_items(name, len(rows[name]), samples.get(name))
    if "bbq" in names:
        check_bbq_length(model, tokenizer, [rows["bbq"][number] for number in chosen["bbq"]])

    paths = _paths_of_tasks(model, tokenizer, rows, chosen, cache)
    items = []
    for name in names:
        found = read_kept(paths[name], json.loads)
        if found is None:
            found = _measured_items(model, tokenizer, name, rows[name], chosen[name], batch_size)
            keep(paths[name], json.dumps(found))
        items += found
    return BenchmarkResult(summarize_items(items), items)


def _paths_of_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Mapping[str, Sequence[Mapping]],
    chosen: Mapping[str, Sequence[int]],
    cache: Path | None,
) -> dict[str, Path | None]:
    """Return the file in the cache of each task's items, which need not be there."""
    if cache is None:
        return dict.fromkeys(rows)
    model_facts = facts_of(model, bare_ids(tokenizer, "The clerk read the letter."))
    versions = [version("lm_eval")] if any(TASKS[name].folder for name in rows) else []
    paths = {}
    for name, numbers in chosen.items():
        texts = [json.dumps(rows[name][number], default=str) for number in numbers]
        # of each item as a whole: another tokenizer would split it otherwise
        tokens = [prompt_ids(tokenizer, text) for text in texts]
        facts = [model_facts, versions, name, list(numbers), texts, tokens]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        paths[name] = cache / f"{name}-{digest}.json"
    return paths


def _measured_items(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    rows: Sequence[Mapping],
    numbers: Sequence[int],
    batch_size: int,
) -> list[dict]:
    """Run one task on the rows with these numbers."""
    if task == "stereoset":
        sentences = {number: rows[number] for number in numbers}
        return _stereoset_items(model, tokenizer, sentences, batch_size)
    with quiet_harness():
        lm = frugal_model(model, tokenizer, task, batch_size)
        measured = evaluate(lm, task, [rows[number] for number in numbers])
    return items_of(task, measured, rows, numbers, tokenizer)


def _check_arguments(
    names: Sequence[str], data: Mapping, samples: Mapping, batch_size: int
) -> None:
    for name in names:
        check_option("tasks", name, TASKS)
    for argument, by_task in (("data", data), ("samples", samples)):
        check_kind(argument, by_task, Mapping, "a dict by task")
        for name in by_task:
            check_option(argument, name, names)
    for name in names:
        if TASKS[name].advice and name not in data:
            raise ValueError(f"data: expected a file for {name}; got none{TASKS[name].advice}")
    check_whole("batch_size", batch_size, 1)


def _check_installed() -> None:
    try:
        import datasets  # noqa: F401
        import lm_eval  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            'benchmarks need the lm-evaluation-harness; run: pip install "fairlab[eval]"'
        ) from error


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Silence the harness's log and progress bars, and undo what it does to random draws."""
    import datasets

    def bar(*args: object, disable: bool = False, **options: object) -> object:
        return progress(*args, **options)

    with undoing() as undo:
        for name in ("api.model", "api.task", "models.huggingface"):
            module = import_module(f"lm_eval.{name}")
            undo.append(partial(setattr, module, "tqdm", module.tqdm))
            module.tqdm = bar  # the harness's own bars show always
        if datasets.is_progress_bar_enabled():
            undo.append(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        logger = logging.getLogger("lm_eval")
        undo.append(partial(logger.setLevel, logger.level))
        logger.setLevel(logging.CRITICAL)
        undo.append(partial(random.setstate, random.getstate()))
        undo.append(partial(setattr, warnings, "filters", warnings.filters))
        # it takes the mean of nothing where a category of BBQ has no item
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            yield


def frugal_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: str, batch_size: int
) -> object:
    """Return the harness's model, which computes only the logits that a task reads."""
    from lm_eval.models.huggingface import HFLM

    class FrugalModel(HFLM):
        def tok_encode(
            self, text: str, add_special_tokens: bool | None = None, **_: object
        ) -> list[int]:
            # the harness puts the start token before a page itself; what a tokenizer puts behind a
            # text would be scored with it
            if task == "wikitext" or add_special_tokens is False:
                return bare_ids(self.tokenizer, text)
            return prompt_ids(self.tokenizer, text)

        def _loglikelihood_tokens(
            self, requests: list, *_: object, **__: object
        ) -> list[tuple[float, bool]]:
            return log_likelihoods(
                self.model,
                [(context, continuation) for _, context, continuation in requests],
                self.batch_size,
                max_length=self.max_length,
                side_by_side=task == "bbq",
            )

    options = {"batch_size": batch_size}
    if task == "wikitext":  # a page has up to 17,000 tokens, and all of their logits are read
        options = {"batch_size": 1, "max_length": min(WIKITEXT_WINDOW, context_length(model))}
    start = start_token(tokenizer)
    return FrugalModel(pretrained=model, tokenizer=tokenizer, prefix_token_id=start, **options)


def evaluate(lm: object, task: str, rows: Sequence[dict]) -> list[dict]:
    """Run one task of the harness on rows of ours, and return what it measured of each."""
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    place = TASKS[task]
    dataset = datasets.Dataset.from_list(list(rows))
    # the harness's own task, but with our rows in place of those from the Hub
    override = {
        "task": task,
        "custom_dataset": lambda **_: {place.split: dataset},
        "num_fewshot": 0,
    }
    for split in {"training", "validation", "test"} - {place.split}:
        override[f"{split}_split"] = None
    folder = Path(lm_eval.__file__).parent / "tasks" / place.folder
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    loaded = manager.load([{"group": "fairlab", "task": [override]}])
    result = lm_eval.evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, log_samples=True)
    return result["samples"][task]


def items_of(
    task: str,
    measured: Sequence[Mapping],
    rows: Sequence[Mapping],
    numbers: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> list[dict]:
    """Return the items of a task from what the harness measured on the rows with these numbers."""
    clusters = _cluster_names(task, rows)
    items = []
    for sample in measured:
        number = numbers[sample["doc_id"]]
        item = {"task": task, "item": number, "cluster": clusters[number]}
        if task == "bbq":
            item.update(bbq_item(sample, tokenizer))
        else:
            item.update(_ITEMS[task](sample))
        items.append(item)
    return items


def _cluster_names(task: str, rows: Sequence[Mapping]) -> list[str | None]:
    """Return what each item shares with others: BoolQ's passage, BBQ's template, or None."""
    if task == "bbq":
        return [f"{row['category']} {row['question_index']}" for row in rows]
    if task == "boolq":
        first: dict[str, int] = {}  # passage → the first item of it
        for number, row in enumerate(rows):
            first.setdefault(row["passage"], number)
        return [f"passage {first[row['passage']]}" for row in rows]
    return [None] * len(rows)


def _lambada_item(sample: Mapping) -> dict:
    log_p, _ = sample["filtered_resps"][0]
    return {"loglikelihood": log_p, "acc": sample["acc"]}


def _boolq_item(sample: Mapping) -> dict:
    (no, _), (yes, _) = sample["filtered_resps"]
    return {"label": sample["doc"]["label"], "log_odds": yes - no, "acc": sample["acc"]}


def _crows_pairs_item(sample: Mapping) -> dict:
    doc = sample["doc"]
    (more, _), (less, _) = sample["filtered_resps"]
    longer_by = len(doc["sent_more"]) - len(doc["sent_less"])  # in characters
    return {
        "category": doc["bias_type"],
        "shorter": {-1: "more", 0: "neither", 1: "less"}[np.sign(longer_by)],
        "log_odds": more - less,
        "pct_stereotype": sample["pct_stereotype"],
    }


def _wikitext_item(sample: Mapping) -> dict:
    _, words = sample["word_perplexity"]
    return {"loglikelihood": sample["filtered_resps"][0], "words": words}


_ITEMS = {
    "lambada_openai": _lambada_item,
    "boolq": _boolq_item,
    "crows_pairs_english": _crows_pairs_item,
    "wikitext": _wikitext_item,
}


def _stereoset_items(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Mapping, batch_size: int
) -> list[dict]:
    """Return items from rows by number: the mean of log p over the tokens of each sentence."""
    start, requests = start_token(tokenizer), []
    for row in rows.values():
        for label in STEREOSET_LABELS:
            # special tokens are no part of a sentence, and would be scored with it
            ids = bare_ids(tokenizer, row["sentences"][label])
            requests.append(([start], ids))
    longest = max(len(ids) for _, ids in requests)
    check_ready(model, longest=longest)
    found = log_likelihoods(model, requests, batch_size, max_length=longest)
    means = [log_p / len(ids) for (log_p, _), (_, ids) in zip(found, requests, strict=True)]

    items, names = [], ("log_p_stereotype", "log_p_anti", "log_p_unrelated")
    for place, (number, row) in enumerate(rows.items()):
        item = {"task": "stereoset", "item": number, "cluster": row["target"]}
        item["category"] = row["bias_type"]
        items.append(item | dict(zip(names, means[3 * place : 3 * place + 3], strict=True)))
    return items
