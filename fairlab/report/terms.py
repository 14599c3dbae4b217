"""Where a model comes from and on what terms it may be passed on, as far as somebody says so.

Contents: `LICENCES`, `folder_terms`, `terms_of_cut`, `notices`. *Terms* are the fields of a model
card that a cut model takes over: license, license_name, license_link, language, base_model.
"""

import json
import re
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from yaml import YAMLError  # comes with huggingface_hub

from fairlab.weights import DEFAULT_MODEL, GEMMA, PACKAGED

# the identifiers of https://huggingface.co/docs/hub/repositories-licenses; what is newer is "other"
LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0",
    "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0",
    "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m",
    "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "eupl-1.2", "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0",
    "gpl-3.0", "grok2-community", "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "lgpl-lr", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4",
    "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl", "odc-by", "ofl-1.1", "openmdw-1.0",
    "openmdw-1.1", "openrail", "openrail++", "osl-3.0", "other", "pddl", "postgresql",
    "unknown", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
# field → its form, and what is allowed in words
FORMS = {
    "license": (
        r"[a-z0-9][a-z0-9.+-]*",
        "an identifier of the list on https://huggingface.co/docs/hub/repositories-licenses, such "
        "as 'apache-2.0', or 'other'",
    ),
    "license_name": (r"[a-z0-9.-]+", "a short name such as 'my-licence-1.0'"),
    "license_link": (r"https?://[^\s<>]+", "an address on the web"),
    "language": (
        r"[a-z]{2,3}(-[A-Za-z]{2,4})?|multilingual|code",
        "a code such as 'en', or several",
    ),
    "base_model": (r"[\w.-]+/[\w.-]+", "the id of a model on the Hub, 'organisation/name'"),
}
# the name of a language in a report → its code on the Hub
CODES = {"English": "en", "German": "de", "Spanish": "es", "French": "fr"}
NAMES = {code: name for name, code in CODES.items()}
MAY_BE_LISTS = ("language", "base_model")
HUB_IDS = {
    DEFAULT_MODEL: "HuggingFaceTB/SmolLM2-135M-Instruct",
    GEMMA: "google/gemma-3-270m",
}
KNOWN = {  # so that these two need no network
    HUB_IDS[DEFAULT_MODEL]: {"license": "apache-2.0", "language": ["en"]},
    HUB_IDS[GEMMA]: {"license": "gemma"},
}
GEMMA_CLASS = re.compile(r"(Vault)?Gemma([23]n?)?For")  # Gemma 4 came under Apache 2.0
LLAMA_ID = re.compile(r"meta-llama/(?:Meta-)?Llama-(2|3(?:\.[123])?)-")
# licence → what it asks to be said
NOTICES = {
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms",
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, Copyright © Meta "
    "Platforms, Inc. All Rights Reserved.",
    "llama3": "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta "
    "Platforms, Inc. All Rights Reserved.",
}
# licence → what a product shows, and how the name of a model made from it begins
BUILT_WITH = {"llama3": ("Built with Meta Llama 3", "Llama 3")}
for _version in ("3.1", "3.2", "3.3"):
    NOTICES[f"llama{_version}"] = (
        f"Llama {_version} is licensed under the Llama {_version} Community License, Copyright © "
        "Meta Platforms, Inc. All Rights Reserved."
    )
    BUILT_WITH[f"llama{_version}"] = ("Built with Llama", "Llama")


def folder_terms(name: str | Path) -> dict[str, object]:
    """Return the terms that the card and the configuration in a model folder state.

    Parameters
    ----------
    name : str or path
        What `load_model` was given. Of anything but a folder nothing is returned.
    """
    folder = Path(name).expanduser()
    if name in PACKAGED or not folder.is_dir():
        return {}
    terms = _stated(folder / "README.md")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        source = config["_name_or_path"]  # older versions of transformers wrote it
    except (OSError, ValueError, KeyError, TypeError):
        return terms
    # a path can look like an id: only what was fetched from the Hub before is one
    if _fits("base_model", source) and isinstance(
        try_to_load_from_cache(source, "config.json"), str
    ):
        terms.setdefault("base_model", source)
    return terms


def terms_of_cut(
    name: str,
    model_class: str,
    stated: dict[str, object],
    asked: dict[str, object],
) -> dict[str, object]:
    """Return the terms of a cut model: those asked for before those of the model that was cut.

    Parameters
    ----------
    name, model_class : str
        Of the model that was cut.
    stated : dict
        What `folder_terms` returned.
    asked : dict
        Fields that the author of the card gave, or None.

    Raises
    ------
    ValueError
        A field asked for in a form that the Hub does not take, a licence that is not on its list,
        "other" without a name, or a name or link with another licence.
    """
    asked = {field: value for field, value in asked.items() if value is not None}
    _check_asked(asked)
    for field, value in asked.items():
        if isinstance(value, tuple):  # of which YAML makes something that is Python's alone
            asked[field] = list(value)
    stated = _fitting(stated)
    base = asked.get("base_model") or stated.get("base_model") or HUB_IDS.get(name, name)
    terms = _hub_terms(base) if isinstance(base, str) and _fits("base_model", base) else {}
    terms |= stated
    if GEMMA_CLASS.match(model_class):
        terms.setdefault("license", "gemma")
    if "license" in asked:  # name and link are those of the other licence
        terms = {field: terms[field] for field in terms if not field.startswith("license_")}
    return terms | asked


def _check_asked(asked: dict[str, object]) -> None:
    """Refuse what the Hub would refuse, a licence that it does not know, and one without a name."""
    for field, value in asked.items():
        if _fits(field, value) and (field != "license" or value in LICENCES):
            continue
        near = get_close_matches(str(value).lower(), LICENCES, n=2) if field == "license" else []
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        has_short_form = isinstance(value, (str, int, float, list, tuple))
        got = repr(value) if has_short_form else type(value).__name__
        raise ValueError(f"{field}: expected {FORMS[field][1]}; got {got:.80}{hint}")
    details = [field for field in ("license_name", "license_link") if field in asked]
    licence = asked.get("license")
    if details and licence != "other":
        raise ValueError(
            f"{', '.join(details)}: only the license 'other' has them; got license {licence!r}"
        )
    if licence == "other" and "license_name" not in asked:
        raise ValueError(
            "license_name: the license 'other' needs a short name, and license_link says where it "
            "can be read"
        )


def notices(license: str | None, model_class: str) -> list[str]:
    """Return what a licence asks to be said of a model, as far as it is known here."""
    is_gemma = GEMMA_CLASS.match(model_class)
    notice = NOTICES["gemma"] if is_gemma else NOTICES.get(license)
    lines = [f"Notice: {notice}"] if notice else []
    if is_gemma:
        lines.append(
            f"The model is built like Gemma ({model_class}). Where its weights come from Gemma, "
            "the terms of Gemma travel with them, whatever other licence is stated: "
            "https://ai.google.dev/gemma/terms"
        )
    if license in BUILT_WITH:
        shown, start = BUILT_WITH[license]
        lines.append(f"{shown}. The name of a model made from it has to begin with “{start}”.")
    if notice:
        lines.append(
            "The weights are not the original ones: neurons were removed, as said above. Whoever "
            "passes the model on has to add, among other things, a copy of the terms and a text "
            "file named Notice that holds the notice above."
        )
    return lines


def _hub_terms(model_id: str) -> dict[str, object]:
    """Return the terms of a model on the Hub; where its card can't be read, little but its id."""
    terms = KNOWN.get(model_id) or _stated(model_id)
    family = LLAMA_ID.match(model_id)
    if family:
        terms = {"license": f"llama{family[1]}", **terms}
    return {**terms, "base_model": model_id}


def _stated(card: str | Path) -> dict[str, object]:
    """Return the terms in a card, given its file or a model's id on the Hub."""
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (OSError, ValueError, TypeError, YAMLError):  # none, unreadable, or no network
        return {}
    link = data.get("license_link")
    if (
        isinstance(card, str) and isinstance(link, str) and ":" not in link
    ):  # a file beside the card
        data["license_link"] = f"https://huggingface.co/{card}/blob/main/{link}"
    return _fitting(data)


def _fitting(data: dict[str, object]) -> dict[str, object]:
    """Return those of some fields that are terms, in a form that the Hub takes."""
    return {field: data[field] for field in FORMS if _fits(field, data.get(field))}


def _fits(field: str, value: object) -> bool:
    """Say whether the Hub takes a value of a field."""
    if field in MAY_BE_LISTS and isinstance(value, (list, tuple)):
        return bool(value) and all(isinstance(v, str) and _fits(field, v) for v in value)
    if not isinstance(value, str) or not re.fullmatch(FORMS[field][0], value):
        return False
    if field == "base_model":
        try:
            validate_repo_id(value)
        except HFValidationError:
            return False
    return True
