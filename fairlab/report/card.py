"""The model card of a cut model, from its report.

Contents: `model_card`; `is_card_of_a_cut`.
"""

import html
import json
import math
import re
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError  # comes with huggingface_hub

from fairlab.files import as_path, template_text
from fairlab.pairs import check_string
from fairlab.report.terms import CODES, notices, terms_of_cut

NO_LICENCE = (
    "No licence is stated: none was given for this card, and none could be read for {}. Without "
    "one, others have no permission to use the model or to pass it on."
)
# what the Hub makes a link of without being asked
LINKED = re.compile(r"://|www\.|@", re.IGNORECASE)
TAGS = ["fairlab", "pruned"]
REPORT = "the JSON file that write_report wrote"
NEEDED = (
    "model", "terms", "results", "settings", "method", "groups", "sentences", "language",
    "warnings", "limits", "environment",
)  # fmt: skip


def model_card(
    report: str | Path,
    *,
    selection: str | None = None,
    license: str | None = None,
    license_name: str | None = None,
    license_link: str | None = None,
    base_model: str | None = None,
    language: str | Sequence[str] | None = None,
) -> ModelCard:
    """Make the model card of a cut model: what was cut, how it was measured, what it does not show.

    Licence, base model and language are those asked for; else those that the model's own card
    states, on the Hub or in its folder; the licence of Gemma, and that of Meta's Llama under its id
    on the Hub, also without it. Where no language is stated, it is that of the sentences measured,
    if it is known. The card repeats what these licences ask to be said. Those of Llama 3 and later
    also ask that the name of the model, which you give to `push_to_hub`, begin with "Llama 3" (3.0)
    or "Llama" (3.1 to 3.3).

    Parameters
    ----------
    report : path
        The JSON file that `write_report` wrote.
    selection : str, optional
        Which cut, by name, where the report is of several.
    license : str, optional
        As the Hub writes it, such as "apache-2.0"; "other" for one that is not on its list.
    license_name, license_link : str, optional
        Of the licence "other": a short name, and an address where it can be read.
    base_model : str, optional
        The id on the Hub of the model that was cut, or of the one that it was made from.
    language : str or list of str, optional
        Of the model, such as "en".

    Returns
    -------
    huggingface_hub.ModelCard
        `.save(folder / "README.md")` puts it beside the weights.

    Raises
    ------
    ValueError
        No such file, or not one that `write_report` wrote; a report of several selections and no
        name, or a name that it does not have, or not that of a cut; a licence that the Hub does not
        list; "other" without a name; a base model, language, name or link in a form that it does
        not take.

    Warns
    -----
    UserWarning
        No licence was given, and none is stated.
    """
    facts = _of_one_cut(report, selection)
    name, model_class = facts["model"]["name"], facts["model"]["class"]
    asked = {"license": license, "license_name": license_name, "license_link": license_link}
    asked |= {"base_model": base_model, "language": language}
    terms = terms_of_cut(name, model_class, facts["terms"], asked)
    if facts["language"] in CODES:
        terms.setdefault("language", CODES[facts["language"]])
    if "license" not in terms:
        warnings.warn(
            f"{NO_LICENCE.format(name)} Pass license=, and base_model= if the model that it comes "
            "from is on the Hub.",
            stacklevel=2,
        )
    return ModelCard.from_template(
        ModelCardData(
            **terms,
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=TAGS,
        ),
        template_str=template_text("model_card.md"),
        **_what_was_done(facts),
        **_who_was_measured(facts),
        # the link was checked, and the notices are fairlab's own
        licence=escaped_lines(_licence_lines(terms, name, model_class), with_links=True),
    )


def is_card_of_a_cut(path: str | Path) -> bool:
    """Say whether a file is a model card as `model_card` makes it."""
    try:
        tags = ModelCard.load(Path(path).expanduser(), ignore_metadata_errors=True).data.tags
    except (OSError, ValueError, TypeError, YAMLError):  # not there, or no card
        return False
    return set(TAGS) <= set(tags or ())


def _of_one_cut(report: str | Path, selection: str | None) -> dict:
    """Read a report and keep what belongs to one cut; refuse what is no report, or leaves open
    which cut is meant."""
    path = as_path("report", report, REPORT)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        changes = {change["name"]: change for change in facts["methods"]}
        facts = {key: facts[key] for key in NEEDED}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"report: expected {REPORT}; got {str(report)!r}") from error
    if selection is None and len(changes) == 1:
        (selection,) = changes
    if selection is not None:
        check_string("selection", selection)
    cuts = [name for name, change in changes.items() if change["kind"] == "cut"]
    if selection not in cuts:
        raise ValueError(
            f"selection: expected the name of a cut in the report ({', '.join(cuts) or 'none'}); "
            f"got {selection!r:.80}"
        )
    for name in set(changes) - {selection}:
        facts["method"].pop(name, None)
    facts["results"] = [row for row in facts["results"] if row["selection"] == selection]
    return facts | {key: changes[selection][key] for key in ("selection", "verdict")}


def _what_was_done(facts: dict) -> dict[str, object]:
    """Return what the template says of the cut and its numbers."""
    model, selection = facts["model"], facts["selection"]
    cut = sum(map(len, selection["neurons"].values()))
    settings = {key: value for key, value in facts["settings"].items() if value is not None}
    versions = [f"{key} {value}" for key, value in facts["environment"].items()]
    overall = [row for row in facts["results"] if row["row"] in ("headline", "neutral", "text")]
    return {
        "name": escaped(model["name"]),
        "cut": f"{cut:,} of {math.prod(selection['shape']):,} MLP neurons",
        "weights_sha256": escaped(model["weights_sha256"]),
        "versions": escaped(", ".join(versions)),
        "verdict": escaped_lines(facts["verdict"]),
        "method": escaped_lines(f"{key}: {value}" for key, value in facts["method"].items()),
        "counts": escaped_lines(f"{key}: {value}" for key, value in settings.items()),
        "sentences": escaped_lines(row["sentence"] for row in overall),
        "limits": escaped_lines(facts["warnings"] + facts["limits"]),
    }


def _who_was_measured(facts: dict) -> dict[str, object]:
    """Return what the template says of the words and sentences, three of which it shows."""
    sentences = facts["sentences"]
    shown = sentences[:: math.ceil(len(sentences) / 3)]
    groups = []
    for name, words in facts["groups"].items():
        groups.append(f"{escaped(name or 'no category')}: {escaped(', '.join(words))}")
    return {
        "groups": groups,
        "n_sentences": len(sentences),
        "examples": escaped_lines(textwrap.shorten(sentence, 300) for sentence in shown),
        "language": escaped(facts["language"] or "not stated"),
    }


def _licence_lines(terms: dict[str, object], name: str, model_class: str) -> list[str]:
    """Say on what terms the model may be used, or that nobody said so."""
    licence = terms.get("license")
    if licence is None:
        return [NO_LICENCE.format(name)]
    details = [terms[key] for key in ("license_name", "license_link") if key in terms]
    return [", ".join([f"Licence: {licence}", *details]), *notices(licence, model_class)]


def escaped(line: object, *, with_links: bool = False) -> str:
    """Return text as one line of Markdown in which nothing is markup: no heading, link or HTML.

    The Hub makes a link of an address or of a name behind @ wherever it stands, escaped or not,
    but for code: such a word is shown as code. `with_links` leaves addresses as they are, for
    lines that were checked before, such as those of a licence.
    """
    words = []
    for word in str(line).split():
        if LINKED.search(word) and not with_links:
            # a fence of more backticks than the word has in a row
            fence = "`" * (1 + max(map(len, re.findall("`+", word)), default=0))
            pad = " " if "`" in word else ""
            words.append(f"{fence}{pad}{word}{pad}{fence}")
        else:
            text = html.escape(word, quote=False)
            words.append(re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", text))
    return " ".join(words)


def escaped_lines(lines: Iterable[object], *, with_links: bool = False) -> list[str]:
    """Return several texts, each as one line of Markdown in which nothing is markup."""
    return [escaped(line, with_links=with_links) for line in lines]
