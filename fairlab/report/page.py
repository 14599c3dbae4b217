"""One surgery as a page that stands alone, and its numbers as strict JSON beside it.

Contents: `write_report`; `environment`, what numbers were made with; `plain` makes values fit for
strict JSON.
"""

import base64
import io
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import torch
import transformers
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformers import PreTrainedModel

from fairlab._version import __version__
from fairlab.checking import reads_as_english
from fairlab.evaluation.compare import Comparison
from fairlab.evaluation.readings import bits_of
from fairlab.files import as_path, check_output, template_text, write_texts
from fairlab.gating import NeuronGates, applied
from fairlab.models import HALF_PRECISION_COSTS, places_of, refuse_wrapped
from fairlab.pairs import PromptPair, as_pairs, check_kind, load_outcomes, load_pairs
from fairlab.passes import is_half
from fairlab.plots.cuts import plot_comparison
from fairlab.report.advice import decision, evidence, power, power_in_words
from fairlab.report.terms import NAMES, folder_terms
from fairlab.report.verdict import (
    length_warnings,
    limits,
    percent,
    table_row,
    text_warnings,
    verdict,
    warnings,
)
from fairlab.surgery import NeuronSelection

SEVERAL = (
    "{} changes were judged on the same sentences. The one that looks best does so partly by "
    "chance: judge it again on new sentences before it is used."
)


def write_report(
    path: str | Path,
    comparison: Comparison,
    *,
    model: PreTrainedModel,
    model_name: str | Path,
    chosen_on: Sequence[PromptPair] | None,
    method: Mapping[str, object] | None = None,
    texts: Mapping[str, Mapping[str, str]] | None = None,
    force: bool = False,
) -> str:
    """Write what a comparison says as a page that stands alone, with its numbers as strict JSON.

    The page opens with what was asked of which model, and what whoever decides should do with the
    answer; then come worth and price side by side, how small a change could have been seen, and
    which new evidence would turn the verdict.

    Parameters
    ----------
    path : path
        The page, ending in ".html"; the numbers go to the same name ending in ".json".
    comparison : Comparison
        From `compare`, of one selection or of several: cuts, gates or changed models.
    model : PreTrainedModel
        The model as it was; it is only looked at.
    model_name : str or path
        What `load_model` was given. Of a path, the last part is shown.
    chosen_on : list of PromptPair, or None
        The pairs that chose. The page says what they share with the pairs measured; with None, not
        known, it warns that nothing is known of that.
    method : dict, optional
        How was chosen, such as {"recipe": "guarded", "fraction": 0.002}; of several selections,
        what they have in common. What each of them is stands above it under its own name. The
        prompts' "language" stands at the top, and so does, as a warning, what is said under "quick
        look".
    texts : dict, optional
        Prompt → {"before": text, NAME: text, …} from `generate`, with the names of selections.
    force : bool
        Whether to replace a page and a JSON file that exist.

    Returns
    -------
    str
        The verdict; of several selections one line each, "NAME: verdict". It says that the gap was
        narrowed (or widened) only where the interval of the headline change lies below (above) both
        0 and the range of random cuts, and that this is specific only where the interval of the
        difference from neutral pairs lies below 0 and the gap of neutral pairs stays in the range
        of random cuts. Without random cuts, as of a changed model, 0 alone decides whether it was
        narrowed or widened; where it was, it says that what random changes do is not known; and
        never that this is specific. It warns where the comparison's `continuations` have more harsh
        words, or fewer kind ones, after the first word of a pair, and the change brought that.

    Raises
    ------
    ValueError
        A path that does not end in ".html"; a page or a JSON file that exists, without `force`; a
        comparison with another model; an empty list of pairs; an empty name; what is no text, or a
        text of an unknown name. Nothing is written then.
    TypeError
        An argument of another kind. Nothing is written then.
    """
    check_kind("path", path, (str, Path), "a path that ends in .html")
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"path: expected a name that ends in .html; got {str(path)!r:.80}")
    chosen_on = None if chosen_on is None else as_pairs(chosen_on, argument="chosen_on")
    check_kind("comparison", comparison, Comparison, "what compare returns")
    refuse_wrapped(model)
    as_path("model_name", model_name, "the name or path that load_model was given")
    _check_said(method, texts, comparison.selections)
    _check_measured(model, comparison)
    outputs = [path, path.with_suffix(".json")]
    outputs = [check_output("path", output, force=force) for output in outputs]

    methods = [_judged(comparison, name) for name in comparison.selections]
    verdicts = [" ".join(judged["verdict"]) for judged in methods]
    if len(methods) > 1:
        names = comparison.selections
        verdicts = [f"{name}: {verdict}" for name, verdict in zip(names, verdicts, strict=True)]
    facts = plain(
        {
            "verdict": methods[0]["verdict"] if len(methods) == 1 else verdicts,
            "warnings": _warnings(model, comparison, chosen_on, method or {}),
            "methods": methods,
            "results": comparison.table.to_dict("records"),
            **_what_was_changed(model, model_name, methods, comparison, method),
            **_what_was_measured(comparison, chosen_on, method, texts),
            "environment": environment(),
            "terms": folder_terms(model_name),
        }
    )
    # both are made before either is written
    page = _rendered(facts, _figure(comparison))
    numbers = json.dumps(facts, allow_nan=False, ensure_ascii=False, indent=1)
    write_texts(dict(zip(outputs, (page, numbers), strict=True)))
    return "\n".join(verdicts)


def _check_said(method: object, texts: object, selections: Iterable[str]) -> None:
    """Refuse what is no such text as the page shows: how was chosen, and what the model writes."""
    for argument, given, what in (("method", method, "name"), ("texts", texts, "prompt")):
        if given is None:
            continue
        check_kind(argument, given, Mapping, f"a dict by {what}")
        for key in given:
            check_kind(argument, key, str, f"strings as keys, each a {what}")
    if (method or {}).get("language") is not None:
        check_kind("method", method["language"], str, "a string as language")
    known = ["before", *selections]
    for written in (texts or {}).values():
        fits = isinstance(written, Mapping) and set(written) <= set(known)
        if not fits or not all(isinstance(text, str) for text in written.values()):
            raise ValueError(
                f"texts: expected, for each prompt, texts by name ({', '.join(known)}); "
                f"got {written!r:.200}"
            )


def _check_measured(model: PreTrainedModel, comparison: Comparison) -> None:
    """Refuse a model that is not the one measured."""
    for change in comparison.selections.values():
        if kind_of(change) != "model":
            with applied(model, change):  # refuses a cut for a model of another shape
                pass
    if bits_of(model) != comparison.weights_sha256:
        raise ValueError("model: expected the one that the comparison was measured with")


def kind_of(change: object) -> str:
    """Return "cut", "gates" or, for what is neither, "model"."""
    if isinstance(change, NeuronSelection):
        return "cut"
    return "gates" if isinstance(change, NeuronGates) else "model"


def _judged(comparison: Comparison, name: str) -> dict[str, object]:
    """Return what is said of one selection."""
    change = comparison.selections[name]
    kind = kind_of(change)
    table = comparison.table[comparison.table["selection"] == name]
    headline = table_row(table, "gap", "headline")
    # what was found against a change stands beside what was found for it
    told = " ".join([decision(table, kind), *text_warnings(comparison.continuations, name)])
    what = "another model"
    if kind != "model":
        done = {"cut": "switched off", "gates": "turned by gates"}[kind]
        what = f"{len(change):,} neurons {done}; {change.how}"
    return {
        "name": name,
        "kind": kind,
        "what": what,
        "selection": None if kind == "model" else json.loads(change.to_json()),
        "verdict": [told, *verdict(table, kind)],
        "power": power(headline),
        "power_in_words": power_in_words(headline, kind),
        "evidence": evidence(table, kind),
    }


def _warnings(
    model: PreTrainedModel,
    comparison: Comparison,
    chosen_on: Sequence[PromptPair] | None,
    method: Mapping[str, object],
) -> list[str]:
    held_out = comparison.held_out
    notes = [str(method["quick look"])] if "quick look" in method else []
    notes += warnings(chosen_on, held_out.pairs, held_out.neutral)
    notes += length_warnings(comparison.readings)
    if len(comparison.selections) > 1:
        notes.append(SEVERAL.format(len(comparison.selections)))
    if is_half(model):
        notes.append(HALF_PRECISION_COSTS)
    return notes


def _what_was_changed(
    model: PreTrainedModel,
    model_name: str | Path,
    methods: Sequence[Mapping[str, object]],
    comparison: Comparison,
    method: Mapping[str, object] | None,
) -> dict[str, object]:
    name, place = str(model_name), Path(model_name).expanduser()
    if place.exists():
        # where the folder lies is nobody else's business; of "." and ".." the name is not the last
        # part
        name = Path(os.path.abspath(place)).name
    selection = None
    if [judged["kind"] for judged in methods] == ["cut"]:
        selection = methods[0]["selection"]
    return {
        "title": _title(methods, comparison, name),
        "model": {
            "name": name,
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            "weights_sha256": comparison.weights_sha256,
            "device": places_of(model),
            "dtype": comparison.dtype,
        },
        "selection": selection,  # of a single cut
        "method": {**{judged["name"]: judged["what"] for judged in methods}, **(method or {})},
    }


def _title(methods: Sequence[Mapping[str, object]], comparison: Comparison, model_name: str) -> str:
    names = list(comparison.selections)
    if len(names) > 1:
        return f"What {', '.join(names[:-1])} and {names[-1]} did to {model_name}"
    kind = methods[0]["kind"]
    if kind == "model":
        return f"How {names[0]} differs from {model_name}"
    done = {"cut": "cutting", "gates": "turning"}[kind]
    return f"What {done} {len(comparison.selections[names[0]]):,} neurons did to {model_name}"


def _what_was_measured(
    comparison: Comparison,
    chosen_on: Sequence[PromptPair] | None,
    method: Mapping[str, object] | None,
    texts: Mapping[str, Mapping[str, str]] | None,
) -> dict[str, object]:
    headline = comparison.table.query("measure == 'gap' and row == 'headline'").iloc[0]
    held_out = comparison.held_out
    words, sentences = _words_by_category(held_out.pairs), {}
    for pair in held_out.pairs:
        sentences[pair.template or pair.prompt_a] = None
    text = held_out.text
    language = (method or {}).get("language")  # a name, or a code such as "de"
    return {
        "groups": words,
        "sentences": list(sentences),
        "language": NAMES.get(language, language) or language_of(sentences),
        "limits": limits(headline),
        "settings": {
            "pairs that chose": None if chosen_on is None else len(chosen_on),
            "pairs measured": headline["pairs"],
            "templates measured": headline["templates"],
            "word pairs measured": headline["attributes"],
            "neutral pairs": len(held_out.neutral),
            "chat template": held_out.pairs[0].chat or "not used",
            "random changes": comparison.table["n_random"].max(),
            "text of the perplexity": f"{len(text):,} characters, from: {text[:60].strip()} …",
            "precision": comparison.dtype,
            "seed": comparison.seed,
        },
        "pairs": {
            "chosen_on": [asdict(pair) for pair in chosen_on or ()],
            "measured_on": [asdict(pair) for pair in held_out.pairs],
            "neutral": [asdict(pair) for pair in held_out.neutral],
        },
        "texts": [
            {"prompt": prompt, "written": written} for prompt, written in (texts or {}).items()
        ],
        "continuations": _rows_of(comparison.continuations),
    }


def _rows_of(table: pd.DataFrame | None) -> list[dict[str, object]]:
    return [] if table is None else table.to_dict("records")


def _words_by_category(pairs: Sequence[PromptPair]) -> dict[str, list[str]]:
    """Return the pairs of words of each category, each once."""
    words: dict[str, dict[str, None]] = {}
    for pair in pairs:
        both = f"{pair.attribute_a} / {pair.attribute_b}"
        if not pair.attribute_a and not pair.attribute_b:
            both = f"{pair.prompt_a} / {pair.prompt_b}"
        words.setdefault(pair.category, {})[both] = None
    return {category: list(both) for category, both in words.items()}


def language_of(sentences: Iterable[str]) -> str | None:
    """Return the language of fairlab's own sentences; else None.

    Others are taken for English where they read like it.
    """
    sentences = list(sentences)
    known = {"English": set(load_outcomes())}
    known["Spanish"] = {pair.template for pair in load_pairs(language="es")}
    for language, templates in known.items():
        if set(sentences) <= templates:
            return language
    return "English" if reads_as_english(sentences) else None


def environment() -> dict[str, str]:
    """Return the versions that numbers were made with, and when."""
    return {
        "fairlab": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "Python": platform.python_version(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def plain(value: object) -> object:
    """Return a value as strict JSON can hold it, with None in place of NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):  # a number of NumPy's
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (float, int, str, type(None))) else str(value)


def _rendered(facts: dict, figure: Axes) -> str:
    # names, prompts and texts come from outside, and none of them may become markup
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["percent"] = percent
    environment.filters["number"] = _number
    environment.filters["amount"] = _amount
    environment.filters["extent"] = _extent
    environment.globals["row_of"] = _row_of
    template = environment.from_string(template_text("report.html"))
    return template.render(**facts, picture=_data_address(figure))


def _row_of(results: Sequence[dict], name: str, measure: str, row: str) -> dict | None:
    """Return the row of a selection that the page's first table shows, if it was measured."""
    for result in results:
        if (result["selection"], result["measure"], result["row"]) == (name, measure, row):
            return result
    return None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _amount(value: float | None, measure: str) -> str:
    """Write a change: of decisions in nats, of all else in per cent."""
    if measure == "decision":
        return "–" if value is None else f"{value:+.3f}"
    return percent(value)


def _extent(row: dict, what: str) -> str:
    """Write the interval ("") or the random range ("random_") of a row; a dash without one."""
    ends = [row[f"{what}low"], row[f"{what}high"]]
    if None in ends:
        return "–"
    return " … ".join(_amount(end, row["measure"]) for end in ends)


def _figure(comparison: Comparison) -> Axes:
    """Draw the change of the gap: a line for each selection, or of a single one each category."""
    table, draws = comparison.table, comparison.draws
    gaps = table[table["measure"] == "gap"]
    labels = gaps[gaps["row"] == "headline"]["selection"]
    if len(labels) == 1:
        without_pronouns = gaps["row"] == "without pronouns"
        labels = gaps["category"].mask(without_pronouns, gaps["category"] + " without pronouns")
        table = _each_as_a_cut(table)
        draws = draws if draws.empty else _each_as_a_cut(draws)
    ax = Figure(figsize=(5.5, 1.4 + 0.34 * len(labels)), layout="constrained").subplots()
    # a changed model has no random cuts of its kind
    plot_comparison(table, draws=None if draws.empty else draws, ax=ax).set_title("")
    if ax.get_xscale() == "linear":
        ax.xaxis.set_major_locator(MaxNLocator(6))  # more labels would touch each other
    # a category may hold a dollar sign, which would begin a formula
    ax.set_yticks(range(len(labels)), list(labels), parse_math=False)
    # below, not at the right: the figure has to be readable on a telephone
    ax.get_legend().remove()
    legend = ax.figure.legend(loc="outside lower center", ncols=2, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return ax


def _each_as_a_cut(table: pd.DataFrame) -> pd.DataFrame:
    """Name the rows of the gap as if each were a cut of its own, so that one figure holds them."""
    rows = table[table["measure"] == "gap"]
    return rows.assign(selection=rows["row"] + " " + rows["category"], row="headline")


def _data_address(ax: Axes) -> str:
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
