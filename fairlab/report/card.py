"""The model card of a cut model, from its report.

Contents: `model_card`.
"""

import html
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from fairlab.report.page import TEMPLATES
from fairlab.weights import DEFAULT_MODEL, GEMMA


def model_card(report: str | Path, *, license: str | None = None) -> ModelCard:
    """Make the model card of a cut model: what was cut, how it was measured, what it does not show.

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
        overall = [row for row in facts["results"] if row["row"] in ("headline", "neutral", "text")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"report: expected the JSON file that write_report wrote; got {str(report)!r}"
        ) from error
    base = _base_model(name)
    if license:
        base["license"] = license
    data = ModelCardData(
        **base,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["fairlab", "pruned"],
    )
    cut = sum(map(len, facts["selection"]["neurons"].values()))
    settings = {key: value for key, value in facts["settings"].items() if value is not None}
    versions = [f"{key} {value}" for key, value in facts["environment"].items()]
    return ModelCard.from_template(
        data,
        template_str=(TEMPLATES / "model_card.md").read_text(encoding="utf-8"),
        name=escaped(name),
        cut=f"{cut:,} of {math.prod(shape):,} MLP neurons",
        weights_sha256=escaped(facts["model"]["weights_sha256"]),
        versions=escaped(", ".join(versions)),
        verdict=escaped_lines(facts["verdict"]),
        method=escaped_lines(f"{key}: {value}" for key, value in facts["method"].items()),
        counts=escaped_lines(f"{key}: {value}" for key, value in settings.items()),
        sentences=escaped_lines(row["sentence"] for row in overall),
        limits=escaped_lines(facts["warnings"] + facts["limits"]),
    )


def _base_model(name: str) -> dict[str, str]:
    """Return what a cut model takes over from its base: its id and, if known, its licence."""
    if name == DEFAULT_MODEL:
        return {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}
    if name == GEMMA:
        return {"base_model": "google/gemma-3-270m", "license": "gemma"}
    if "/" not in name:  # a local folder
        return {}
    base = {"base_model": name}
    try:
        stated = ModelCard.load(name).data.to_dict()
    except (OSError, ValueError):  # no card, or the Hub can't be reached
        return base
    for key in ("license", "license_name", "license_link"):
        if stated.get(key):
            base[key] = stated[key]
    return base


def escaped(line: object) -> str:
    """Return text as one line of Markdown in which nothing is markup: no heading, link or HTML."""
    text = html.escape(" ".join(str(line).split()), quote=False)
    return re.sub(r"([\\`*_\[\]#|~])", r"\\\1", text)


def escaped_lines(lines: Iterable[object]) -> list[str]:
    """Return several texts, each as one line of Markdown in which nothing is markup."""
    return [escaped(line) for line in lines]
