"""The page without code: choose two prompts and a cut, and see step by step what it does.

Contents: `show_page`. The browser's part is templates/page.js; what is measured comes from
`examination`.
"""

import functools
import importlib
import io
import threading
from collections.abc import Iterator
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fairlab.capture import available_points
from fairlab.choices import MOST_NEURONS, SCORES, STEPS, Choices, mark_tokens, read_prompts
from fairlab.files import template_text
from fairlab.gates import table_shape
from fairlab.pairs import ARTICLE_PAIR, PromptPair, check_pairs, load_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fairlab.examination import Step

ARTICLE_LAYER = 8
SCALES = (0.0, 0.5, 1.5, 2.0, 3.0)
RANDOM_CUTS = (5, 10, 20)
SHOWN = 2  # shipped pairs of a category
DPI = 110


def show_page(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Show the page: prompts, capture point, layer, score and cut to choose, and a button to run.

    The last line of a cell displays it; `make app` serves notebooks/app.ipynb without its code.

    Returns
    -------
    AnyWidget
        The page, which answers the browser as long as the kernel lives.

    Raises
    ------
    ImportError
        anywidget is missing; the message says how to install it.
    """
    page = _view_class()(offer=_offer(model, tokenizer))
    page.on_msg(functools.partial(_answer, model, tokenizer))
    # what a run needs is imported while somebody still chooses: a second or two
    threading.Thread(target=_examination, daemon=True).start()
    return page


def _examination() -> ModuleType:
    """Return the module that measures and draws."""
    return importlib.import_module("fairlab.examination")


@functools.cache
def _view_class() -> type:
    """Return the widget, made at first use: only pages and explorers need anywidget."""
    try:
        import anywidget
        import traitlets
    except ImportError as error:
        raise ImportError('the page needs anywidget: pip install "anywidget>=0.9"') from error

    class PageView(anywidget.AnyWidget):
        _esm, _css = template_text("page.js"), template_text("page.css")
        offer = traitlets.Dict().tag(sync=True)  # what can be chosen

    return PageView


def _offer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what can be chosen, and what is chosen at first."""
    layers, neurons = table_shape(model)
    points = available_points(model)
    # where the article looked; a small model has fewer layers
    start = asdict(Choices(layer=min(ARTICLE_LAYER, layers - 1)))
    prompts = {"prompt_a": ARTICLE_PAIR.prompt_a, "prompt_b": ARTICLE_PAIR.prompt_b}
    return {
        "pairs": [_described(pair) for pair in _shipped_pairs(tokenizer)],
        "points": list(points),
        "layers": layers,
        "scores": list(SCORES),
        "neurons": min(MOST_NEURONS, neurons - 1),
        "scales": list(SCALES),
        "cuts": list(RANDOM_CUTS),
        "steps": list(STEPS),
        "start": {**prompts, **start},
    }


def _shipped_pairs(tokenizer: PreTrainedTokenizerBase) -> list[PromptPair]:
    """Return the article's pair, and two valid training pairs of each category in sentences of
    their own."""
    pairs = load_pairs(split="train")
    shown: dict[str, list[PromptPair]] = {}
    for pair, valid in zip(pairs, check_pairs(tokenizer, pairs).valid, strict=True):
        members = shown.setdefault(pair.category, [])
        known = [(member.template, member.attribute_a) for member in members]
        new = all(pair.template != one and pair.attribute_a != word for one, word in known)
        if valid and new and len(members) < SHOWN:
            members.append(pair)
    return [ARTICLE_PAIR, *(pair for members in shown.values() for pair in members)]


def _described(pair: PromptPair) -> dict[str, str]:
    group = "the article's" if pair == ARTICLE_PAIR else pair.category
    return {
        "group": group,
        "label": f"{pair.attribute_a} / {pair.attribute_b}: {pair.template.replace('{}', '…')}",
        "prompt_a": pair.prompt_a,
        "prompt_b": pair.prompt_b,
    }


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    page: Any,
    content: dict[str, Any],
    _: Any,
) -> None:
    """Answer a message of the browser; whatever goes wrong, it gets a sentence."""
    try:
        if content["kind"] == "check":
            page.send(_checked(tokenizer, content))
        else:
            for step in _started(model, tokenizer, page, content):
                pictures = [_png(picture.figure) for picture in step.pictures]
                page.send(_said(step), buffers=pictures)
            page.send({"kind": "done"})
    except Exception as error:  # in a callback it would vanish
        page.send({"kind": "failed", "text": _sentence(error)})


def _checked(tokenizer: PreTrainedTokenizerBase, content: dict[str, Any]) -> dict[str, Any]:
    """Say how two prompts are cut into tokens, and what is wrong with them."""
    prompts = (content["prompt_a"], content["prompt_b"])
    tokens = mark_tokens(tokenizer, *prompts)
    try:
        pair = read_prompts(tokenizer, *prompts)
        good = True
        text = (
            f"The prompts can be compared: {len(tokens[0])} tokens each, which differ in one "
            f"place, {pair.attribute_a} / {pair.attribute_b}."
        )
    except ValueError as error:
        good, text = False, _sentence(error)
    answer = {"kind": "checked", "number": content["number"], "good": good, "text": text}
    return {**answer, "tokens": tokens}


def _started(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    page: Any,
    content: dict[str, Any],
) -> "Iterator[Step]":
    """Check all that was chosen, tell the browser that work begins, and return the steps."""
    pair = read_prompts(tokenizer, content["prompt_a"], content["prompt_b"])
    course = [*load_pairs(split="train"), *load_pairs(split="validation")]
    for known in [ARTICLE_PAIR, *course]:
        # it knows its sentence and category, which a typed pair does not
        if (known.prompt_a, known.prompt_b) == (pair.prompt_a, pair.prompt_b):
            pair = known
            break
    steps = _examination().examine(model, tokenizer, pair, Choices(**content["choices"]))
    page.send({"kind": "started"})
    return steps


def _said(step: "Step") -> dict[str, Any]:
    """Return a step as the browser takes it; its pictures travel beside it."""
    return {
        "kind": "step",
        "title": step.title,
        "sentences": list(step.sentences),
        "texts": [{"label": label, "text": text} for label, text in step.texts],
        "pictures": [{"title": each.title, "text": each.text} for each in step.pictures],
    }


def _png(figure: "Figure") -> bytes:
    """Return a figure as the bytes of a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def _sentence(error: Exception) -> str:
    """Return what went wrong in the words of the page."""
    text = str(error)
    if not isinstance(error, ValueError):
        return f"Something went wrong: {type(error).__name__}: {text}"
    words = {"prompt_a": "first prompt", "prompt_b": "second prompt", "n_random": "random cuts"}
    for name, word in words.items():
        text = text.replace(name, word)
    text = text.removeprefix("pairs: ")
    return f"{text[:1].upper()}{text[1:]}."
