"""What a surgery leaves behind for others: a page to read, the file of its numbers, a model card,
an upload.

Contents: `write_report`, `model_card` (from the file), `push_to_hub`; `plain` makes values fit for
strict JSON.
"""

import base64
import html
import io
import json
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import torch
import transformers
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from fairlab._version import __version__
from fairlab.evaluation import fingerprint
from fairlab.files import check_output, write_text
from fairlab.models import HALF_PRECISION_COSTS
from fairlab.pairs import PromptPair, as_pairs
from fairlab.passes import is_half
from fairlab.plots.cuts import plot_comparison, plot_dose_response
from fairlab.surgery import BESIDE_A_MODEL, FILES_OF_A_MODEL, NeuronSelection, ablate
from fairlab.weights import DEFAULT_MODEL

_TEMPLATES = Path(__file__).parent / "templates"
UPLOADED = {*FILES_OF_A_MODEL, *BESIDE_A_MODEL, "model.safetensors", "model.safetensors.index.json"}


def write_report(
    path: str | Path,
    table: pd.DataFrame,
    selection: NeuronSelection,
    *,
    model: PreTrainedModel,
    model_name: str | Path,
    chosen_on: Sequence[PromptPair],
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
    method: Mapping[str, object] | None = None,
    texts: Mapping[str, tuple[str, str]] | None = None,
    dose: pd.DataFrame | None = None,
    figures: Mapping[str, Axes | Figure] | None = None,
    title: str = "",
    force: bool = False,
) -> str:
    """Write one surgery as a page that stands alone, and the same numbers as strict JSON beside it.

    Parameters
    ----------
    path : path
        The page, ending in ".html"; the numbers go to the same name ending in ".json". Folders are
        made.
    table : DataFrame
        From `compare`, of this selection alone.
    model : PreTrainedModel
        The uncut model; it is only looked at.
    model_name : str or path
        What `load_model` was given. Of a path, the last part is shown.
    chosen_on, pairs, neutral : list of PromptPair
        The pairs that chose the neurons; those that `compare` measured; the neutral ones it
        measured. The page says what the first two have in common.
    method : dict, optional
        How the neurons were chosen, such as {"bias score": "article", "fraction": 0.002}.
    texts : dict, optional
        Prompt → (text before the cut, text after it), from `generate`.
    dose : DataFrame, optional
        A table for `plot_dose_response`.
    figures : dict, optional
        Caption → more figures to show.
    force : bool
        Whether to replace a page and a JSON file that exist.

    Returns
    -------
    str
        The verdict. It says that the gap was narrowed (or widened) only where the interval of the
        headline change lies below (above) both 0 and the range of random cuts, and that this is
        specific only where the interval of the difference from neutral pairs lies below 0 and the
        gap of neutral pairs stays in the range of random cuts.

    Raises
    ------
    ValueError
        A path that does not end in ".html"; a page or a JSON file that exists, without `force`; a
        table of several selections or without a headline; a table that was measured with another
        model, selection, pairs or neutral pairs, or that does not say with which; an empty list of
        pairs. Nothing is written then.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"path: expected a name that ends in .html; got {str(path)!r}")
    if table["selection"].nunique() != 1:
        raise ValueError(
            f"table: expected one selection; got {', '.join(table['selection'].unique()) or 'none'}"
        )
    with ablate(model, selection):  # refuses a cut for another model
        pass
    chosen_on, pairs, neutral = as_pairs(chosen_on), as_pairs(pairs), as_pairs(neutral)
    told = _refuse_other_things(table, model, selection, pairs, neutral)
    outputs = [
        check_output("path", target, force=force) for target in (path, path.with_suffix(".json"))
    ]
    headline = _row(table, "gap", "headline")
    name = (
        Path(model_name).name if Path(model_name).exists() else str(model_name)
    )  # nobody else's business: the folder
    facts = {
        "title": title or f"What cutting {len(selection):,} neurons did to {name}",
        "verdict": _verdict(table),
        "warnings": _warnings(chosen_on, pairs) + [HALF_PRECISION_COSTS] * is_half(model),
        "limits": _limits(headline),
        "model": {
            "name": name,
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            "weights_sha256": told["model"],
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "selection": json.loads(selection.to_json()),
        "method": {**(method or {}), "selection": selection.how, "neurons cut": len(selection)},
        "settings": {
            "pairs that chose": len(chosen_on),
            "pairs measured": headline["pairs"],
            "templates measured": headline["templates"],
            "word pairs measured": headline["attributes"],
            "neutral pairs": len(neutral),
            "random cuts": headline["n_random"],
            "precision": str(model.dtype).removeprefix("torch."),
            "seed": table.attrs.get("seed"),
        },
        "pairs": {
            "chosen_on": _listed(chosen_on),
            "measured_on": _listed(pairs),
            "neutral": _listed(neutral),
        },
        "results": table.to_dict("records"),
        "dose": [] if dose is None else dose.to_dict("records"),
        "texts": [
            {"prompt": prompt, "before": old, "after": new}
            for prompt, (old, new) in (texts or {}).items()
        ],
        "environment": {
            "fairlab": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "Python": platform.python_version(),
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    }
    facts = plain(facts)
    pictures = {"Change of the gap, by category": _picture(_by_category(table))}
    if dose is not None:
        ax = plot_dose_response(
            dose, ax=Figure(figsize=(5.5, 3.8), layout="constrained").subplots()
        )
        pictures["Change of the gap, by number of neurons cut"] = _picture(_legend_below(ax))
    pictures |= {caption: _picture(figure) for caption, figure in (figures or {}).items()}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "percent": _percent,
        "number": lambda x: "–" if x is None else f"{x:.4g}",
    }
    page = environment.from_string((_TEMPLATES / "report.html").read_text(encoding="utf-8")).render(
        **facts, pictures=pictures
    )
    numbers = json.dumps(facts, allow_nan=False, ensure_ascii=False, indent=1)
    for target, content in zip(outputs, (page, numbers), strict=True):
        write_text(target, content)
    return " ".join(facts["verdict"])


def _refuse_other_things(
    table: pd.DataFrame,
    model: PreTrainedModel,
    selection: NeuronSelection,
    pairs: Sequence[PromptPair],
    neutral: Sequence[PromptPair],
) -> dict[str, str]:
    """Refuse a table that was measured with other things than the report would name; return their
    fingerprint."""
    measured = table.attrs.get("fingerprint")
    if not measured:
        raise ValueError(
            "table: expected one as compare returned it, which says what was measured; this one does not"
        )
    given = fingerprint(model, {"": selection}, pairs, neutral)
    other = [name for name in given if given[name] != measured.get(name)]
    if other:
        raise ValueError(
            f"{', '.join(other)}: expected what the table was measured with; got another"
        )
    return given


def model_card(report: str | Path, *, license: str | None = None) -> ModelCard:
    """Make the model card of a cut model from its report: what was cut, how it was measured, what
    it does not show.

    Parameters
    ----------
    report : path
        The JSON file that `write_report` wrote.
    license : str, optional
        Of the base model. By default what the card of the base model says (of the default model, or
        on the Hub); nothing where that can't be read.

    Returns
    -------
    huggingface_hub.ModelCard
        `.save(folder / "README.md")` puts it beside the weights.

    Raises
    ------
    ValueError
        No such file, or not one that `write_report` wrote.
    """
    try:
        facts = json.loads(Path(report).read_text(encoding="utf-8"))
        name, shape = facts["model"]["name"], facts["selection"]["shape"]
        overall = [
            row for row in facts["results"] if row["category"] in ("headline", "neutral", "text")
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"report: expected the JSON file that write_report wrote; got {str(report)!r}"
        ) from error
    base = _base_model(name) | ({"license": license} if license else {})
    tags = ["fairlab", "pruned"]
    data = ModelCardData(
        **base, library_name="transformers", pipeline_tag="text-generation", tags=tags
    )
    lists = {
        "verdict": facts["verdict"],
        "method": [f"{key}: {value}" for key, value in facts["method"].items()],
        "counts": [
            f"{key}: {value}" for key, value in facts["settings"].items() if value is not None
        ],
        "sentences": [row["sentence"] for row in overall],
        "limits": facts["warnings"] + facts["limits"],
    }
    return ModelCard.from_template(
        data,
        template_str=(_TEMPLATES / "model_card.md").read_text(encoding="utf-8"),
        name=_escaped(name),
        cut=f"{sum(map(len, facts['selection']['neurons'].values())):,} of {math.prod(shape):,} MLP neurons",
        weights_sha256=_escaped(facts["model"]["weights_sha256"]),
        versions=_escaped(
            ", ".join(f"{key} {value}" for key, value in facts["environment"].items())
        ),
        **{key: [_escaped(line) for line in lines] for key, lines in lists.items()},
    )


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Upload a folder that `save_model` and `model_card(...).save` filled to the Hugging Face Hub.

    Only the files named in `UPLOADED` and the shards of the weights go up, from the top level of
    the folder; their names are printed before. Whatever else lies there stays here, and so do links
    to other places. You need to be logged in (`huggingface_hub.login()` or HF_TOKEN).

    Parameters
    ----------
    repo_id : str
        "name" or "organisation/name"; the repository is made if it is not there.
    private : bool
        Of a new repository. One that exists stays as visible as it is.

    Returns
    -------
    str
        The address of the repository.

    Raises
    ------
    ValueError
        The folder lacks config.json, safetensors weights or README.md (the model card). Nothing is
        uploaded then.
    """
    folder = Path(folder)
    wanted = _to_upload(folder)
    missing = [
        name
        for name in ("config.json", "*.safetensors", "README.md")
        if not list(folder.glob(name))
    ]
    if missing:
        raise ValueError(
            f"folder: {folder} lacks {', '.join(missing)}; fill it with fairlab.save_model(model, tokenizer, folder) "
            "and fairlab.model_card(...).save(folder / 'README.md')"
        )
    hub = HfApi()
    address = hub.create_repo(repo_id, private=private, exist_ok=True)
    print(f"to {address}: {', '.join(wanted)}")
    # as operations on named files: no pattern can reach further
    files = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in wanted
    ]
    message = "Upload a model that fairlab cut, with its card and report"
    hub.create_commit(repo_id=address.repo_id, operations=files, commit_message=message)
    return str(address)


def _to_upload(folder: Path) -> list[str]:
    """Return which files of a folder may go to the Hub: names that are known, at the top level, no
    links."""
    shards = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
    return sorted(
        path.name
        for path in folder.glob("*")
        if (path.name in UPLOADED or shards.fullmatch(path.name))
        and path.is_file()
        and not path.is_symlink()
    )


def _escaped(line: object) -> str:
    """Return text as one line of Markdown in which nothing is markup: no heading, link, image or
    HTML."""
    text = html.escape(" ".join(str(line).split()), quote=False)
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", text)


def plain(value: object) -> object:
    """Return a value as strict JSON can hold it: NaN and infinity become None, NumPy's numbers
    Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _row(table: pd.DataFrame, measure: str, category: str) -> dict:
    rows = table[(table["measure"] == measure) & (table["category"] == category)].to_dict("records")
    if len(rows) != 1:
        raise ValueError(
            f"table: expected one row of the {measure}, {category}, as compare makes it; got {len(rows)}"
        )
    return rows[0]


def _verdict(table: pd.DataFrame) -> list[str]:
    """Say in words that depend on the numbers what the cut did, and what it cost."""
    gap, price = _row(table, "gap", "headline"), _row(table, "perplexity", "text")
    change, low, high = gap["change"], gap["low"], gap["high"]
    numbers = (
        f"{_percent(change)} (95 % interval {_span(low, high)}; {gap['n_random']} random cuts of the same size: "
        f"{_span(gap['random_low'], gap['random_high'])})"
    )
    narrowed, widened = high < min(0, gap["random_low"]), low > max(0, gap["random_high"])
    if narrowed or widened:
        verb = "narrowed" if narrowed else "widened"
        said = [
            f"The cut {verb} the gap between the two prompts of a pair by {numbers}: "
            f"the whole interval lies {'below' if narrowed else 'above'} 0 and {'below' if narrowed else 'above'} "
            "what random cuts do."
        ]
    elif math.isnan(low):
        said = [
            f"No effect can be told: the gap changes by {numbers}, and prompts this few give no interval."
        ]
    elif low <= 0 <= high:
        said = [
            f"No effect can be told: the gap changes by {numbers}, and the interval includes 0."
        ]
    else:
        said = [
            f"No effect can be told: the gap changes by {numbers}. The interval excludes 0, but it is not clear of "
            "what random cuts of the same size do."
        ]
    difference = _span(gap["specificity_low"], gap["specificity_high"])
    neutral = f"the gap of neutral pairs changes by {_percent(gap['neutral_change'])}"
    control = _row(table, "gap", "neutral")
    band = _span(control["random_low"], control["random_high"])
    if narrowed and gap["specificity_high"] < 0 and gap["neutral_in_range"]:
        said.append(
            f"It is specific to the demographic words: {neutral}, within the range of random cuts ({band}), and the "
            f"difference ({difference}) is below 0."
        )
    elif narrowed and gap["specificity_high"] < 0:
        said.append(
            f"It is not shown to be specific to the demographic words: {neutral}, beyond the range of random cuts "
            f"({band}). The cut moves answers to other words as well, if not the same way."
        )
    elif narrowed:
        said.append(
            f"It is not shown to be specific to the demographic words: {neutral}, and the difference ({difference}) is "
            "not below 0. The model may only react less to any change of a word."
        )
    else:
        said.append(f"For comparison, {neutral} (difference: {difference}).")
    flat = gap.get("flattening_change", math.nan)
    said.append(
        f"Perplexity changes by {_percent(price['change'])} ({_span(price['low'], price['high'])})."
    )
    if narrowed and flat <= change:
        said.append(
            f"Flattening all predictions at that price would do as much or more: {_percent(flat)}."
        )
    return said


def _warnings(chosen_on: Sequence[PromptPair], pairs: Sequence[PromptPair]) -> list[str]:
    """Say what the pairs that were measured share with those that chose the neurons."""
    prompts, sentences, words = (
        [{key(pair) for pair in some} for some in (chosen_on, pairs)]
        for key in (
            lambda pair: (pair.prompt_a, pair.prompt_b),
            lambda pair: pair.template or pair.prompt_a,
            lambda pair: (pair.attribute_a, pair.attribute_b),
        )
    )
    shared = [len(old & new) for old, new in (prompts, sentences, words)]
    if shared[0]:
        return [
            f"Not held out: {shared[0]} of the {len(prompts[1])} pairs measured also chose the neurons. Neurons chosen "
            "because they differ on a pair lower the difference on that pair when they go: that says nothing of other "
            "pairs."
        ]
    if shared[1]:
        of = f"{shared[1]} of the {len(sentences[1])} sentences"
        return [f"Not held out: {of} measured also chose the neurons, with other words."]
    if shared[2] and words[1] != {("", "")}:
        of = f"{shared[2]} of the {len(words[1])} word pairs"
        return [f"Not held out: {of} measured also chose the neurons, in other sentences."]
    return []


def _listed(pairs: Sequence[PromptPair]) -> list[dict[str, str]]:
    return [asdict(pair) for pair in pairs]


def _limits(headline: dict) -> list[str]:
    left_out = headline["attributes_resampled"]
    words = (
        f"The intervals are over sentences and over {left_out} of these pairs of words."
        if left_out
        else "The intervals of demographic pairs are over sentences, for these words: of other words they say nothing."
    )
    return [
        "An activation difference is not bias. A model has to represent two words differently to tell them apart, and "
        "does so for neutral words too. A neuron that reacts to a word need not cause what is written next.",
        "A gap between two next-token distributions is not a harm. It counts every difference, also one of grammar or "
        "of fact. Harm happens to people, where a model is used, through what it puts out.",
        "A gap can fall because a model reacts less to anything, or because it broke. Read it beside the neutral pairs "
        "and the perplexity.",
        f"The sample is small: {headline['pairs']} pairs from {headline['templates']} templates and "
        f"{headline['attributes']} pairs of words. {words} Fewer than 6 templates can't reach p < 0.05, whatever the "
        "effect. No effect that can be told is not the same as no effect.",
        "The numbers hold for these weights, these prompts and their language. Other groups, longer texts, chat and "
        "any use of the model were not measured.",
    ]


def _base_model(name: str) -> dict[str, str]:
    """Return the metadata that a cut model takes over: the base model's id and licence, as far as
    they are known."""
    if name == DEFAULT_MODEL:
        return {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}
    if "/" not in name:  # a local folder
        return {}
    try:
        data = ModelCard.load(name).data.to_dict()
    except (OSError, ValueError):  # no card, or the Hub can't be reached
        data = {}
    return {"base_model": name} | {
        key: data[key] for key in ("license", "license_name", "license_link") if data.get(key)
    }


def _by_category(table: pd.DataFrame) -> Axes:
    rows = table[table["measure"] == "gap"]
    names = {"headline": "mean over categories", "neutral": "neutral pairs"}
    rows = rows.assign(selection=rows["category"].replace(names), category="headline")
    ax = Figure(figsize=(5.5, 1.4 + 0.34 * len(rows)), layout="constrained").subplots()
    plot_comparison(rows, ax=ax).set_title("")
    return _legend_below(ax)


def _legend_below(ax: Axes) -> Axes:
    """Move the legend from the right of a figure to below it, so that the figure is readable on a
    telephone."""
    ax.get_legend().remove()
    legend = ax.figure.legend(loc="outside lower center", ncols=2, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return ax


def _picture(figure: Axes | Figure) -> str:
    """Return a figure as a data address."""
    buffer = io.BytesIO()
    figure = figure.figure if isinstance(figure, Axes) else figure
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{share:+.1%}"


def _span(low: float, high: float) -> str:
    return f"{_percent(low)} … {_percent(high)}"
