"""One surgery as a page that stands alone, and its numbers as strict JSON beside it.

Contents: `write_report`; `plain` makes values fit for strict JSON.
"""

import base64
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
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
from transformers import PreTrainedModel

from fairlab._version import __version__
from fairlab.evaluation.compare import Comparison
from fairlab.evaluation.readings import bits_of
from fairlab.files import check_output, write_text
from fairlab.models import HALF_PRECISION_COSTS
from fairlab.pairs import PromptPair, as_pairs
from fairlab.passes import is_half
from fairlab.plots.cuts import plot_comparison
from fairlab.report.verdict import limits, percent, table_row, verdict, warnings
from fairlab.surgery import NeuronSelection, ablate

TEMPLATES = Path(__file__).parent.parent / "templates"


def write_report(
    path: str | Path,
    comparison: Comparison,
    *,
    model: PreTrainedModel,
    model_name: str | Path,
    chosen_on: Sequence[PromptPair],
    method: Mapping[str, object] | None = None,
    texts: Mapping[str, tuple[str, str]] | None = None,
    force: bool = False,
) -> str:
    """Write one surgery as a page that stands alone, and the same numbers as strict JSON beside it.

    Parameters
    ----------
    path : path
        The page, ending in ".html"; the numbers go to the same name ending in ".json".
    comparison : Comparison
        From `compare`, of one selection.
    model : PreTrainedModel
        The uncut model; it is only looked at.
    model_name : str or path
        What `load_model` was given. Of a path, the last part is shown.
    chosen_on : list of PromptPair
        The pairs that chose the neurons. The page says what they share with the pairs measured.
    method : dict, optional
        How the neurons were chosen, such as {"recipe": "guarded", "fraction": 0.002}.
    texts : dict, optional
        Prompt → (text before the cut, text after it), from `generate`.
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
        comparison of several selections, of gates, or with another model; an empty list of pairs.
        Nothing is written then.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise ValueError(f"path: expected a name that ends in .html; got {str(path)!r}")
    chosen_on = as_pairs(chosen_on)
    selection = _checked_selection(model, comparison)
    outputs = [path, path.with_suffix(".json")]
    outputs = [check_output("path", output, force=force) for output in outputs]

    notes = warnings(chosen_on, comparison.held_out.pairs)
    if is_half(model):
        notes.append(HALF_PRECISION_COSTS)
    facts = plain(
        {
            "verdict": verdict(comparison.table),
            "warnings": notes,
            "limits": limits(table_row(comparison.table, "gap", "headline")),
            "results": comparison.table.to_dict("records"),
            **_what_was_cut(model, model_name, selection, comparison, method),
            **_what_was_measured(comparison, chosen_on, texts),
            "environment": _environment(),
        }
    )
    # both are made before either is written
    page = _rendered(facts, _figure_by_category(comparison))
    numbers = json.dumps(facts, allow_nan=False, ensure_ascii=False, indent=1)
    for output, content in zip(outputs, (page, numbers), strict=True):
        write_text(output, content)
    return " ".join(facts["verdict"])


def _checked_selection(model: PreTrainedModel, comparison: Comparison) -> NeuronSelection:
    """Return the only selection, or refuse what the page would describe wrongly."""
    selections = comparison.selections
    if len(selections) != 1:
        raise ValueError(f"comparison: expected one selection; got {', '.join(selections)}")
    (selection,) = selections.values()
    if not isinstance(selection, NeuronSelection):  # the page says that neurons were switched off
        raise ValueError(f"comparison: expected a NeuronSelection; got {selection!r}")
    with ablate(model, selection):  # refuses a cut for a model of another shape
        pass
    if bits_of(model) != comparison.weights_sha256:
        raise ValueError("model: expected the one that the comparison was measured with")
    return selection


def _what_was_cut(
    model: PreTrainedModel,
    model_name: str | Path,
    selection: NeuronSelection,
    comparison: Comparison,
    method: Mapping[str, object] | None,
) -> dict[str, object]:
    name = str(model_name)
    if Path(model_name).exists():
        name = Path(model_name).name  # where the folder lies is nobody else's business
    return {
        "title": f"What cutting {len(selection):,} neurons did to {name}",
        "model": {
            "name": name,
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            "weights_sha256": comparison.weights_sha256,
            "device": str(model.device),
            "dtype": comparison.dtype,
        },
        "selection": json.loads(selection.to_json()),
        "method": {**(method or {}), "selection": selection.how, "neurons cut": len(selection)},
    }


def _what_was_measured(
    comparison: Comparison,
    chosen_on: Sequence[PromptPair],
    texts: Mapping[str, tuple[str, str]] | None,
) -> dict[str, object]:
    headline = table_row(comparison.table, "gap", "headline")
    held_out = comparison.held_out
    shown = []
    for prompt, (before, after) in (texts or {}).items():
        shown.append({"prompt": prompt, "before": before, "after": after})
    return {
        "settings": {
            "pairs that chose": len(chosen_on),
            "pairs measured": headline["pairs"],
            "templates measured": headline["templates"],
            "word pairs measured": headline["attributes"],
            "neutral pairs": len(held_out.neutral),
            "random cuts": headline["n_random"],
            "precision": comparison.dtype,
            "seed": comparison.seed,
        },
        "pairs": {
            "chosen_on": [asdict(pair) for pair in chosen_on],
            "measured_on": [asdict(pair) for pair in held_out.pairs],
            "neutral": [asdict(pair) for pair in held_out.neutral],
        },
        "texts": shown,
    }


def _environment() -> dict[str, str]:
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
    template = environment.from_string((TEMPLATES / "report.html").read_text(encoding="utf-8"))
    return template.render(**facts, picture=_data_address(figure))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _amount(value: float | None, measure: str) -> str:
    """Write a change: of decisions in nats, of all else in per cent."""
    if measure == "decision":
        return "–" if value is None else f"{value:+.3f}"
    return percent(value)


def _figure_by_category(comparison: Comparison) -> Axes:
    """Draw the change of the gap, one line a row of the table."""
    gaps = comparison.table[comparison.table["measure"] == "gap"]
    without_pronouns = gaps["row"] == "without pronouns"
    rows = _each_as_a_cut(comparison.table)
    draws = _each_as_a_cut(comparison.draws)
    ax = Figure(figsize=(5.5, 1.4 + 0.34 * len(rows)), layout="constrained").subplots()
    plot_comparison(rows, draws=draws, ax=ax).set_title("")
    labels = list(gaps["category"].mask(without_pronouns, gaps["category"] + " without pronouns"))
    # a category may hold a dollar sign, which would begin a formula
    ax.set_yticks(range(len(labels)), labels, parse_math=False)
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
