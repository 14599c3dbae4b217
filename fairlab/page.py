"""The page without code: choose two prompts and a cut, and see step by step what it does.

Contents: `show_page`. The browser's part is templates/page.js; what is measured comes from
`examination`.

The page is there after the tokenizer and before the model: nothing that it imports needs torch, and
what does is imported by the thread that loads the model.
"""

import functools
import importlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from types import ModuleType
from typing import TYPE_CHECKING, Any

import transformers

from fairlab.choices import MOST_NEURONS, SCORES, STEPS, Choices, mark_tokens, read_prompts
from fairlab.files import template_text
from fairlab.pairs import ARTICLE_PAIR, PromptPair, encode_pair, load_pairs
from fairlab.weights import DEFAULT_MODEL, find_weights, unpacked_before

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fairlab.examination import Step

    Loading = Future[tuple[PreTrainedModel, PreTrainedTokenizerBase]]

# what the default model will say of itself when it is there; a test compares
DEFAULT_SHAPE = (30, 1536)  # layers, neurons in each
DEFAULT_POINTS = (
    "input_norm",
    "attention_output",
    "gate_proj",
    "up_proj",
    "down_proj_input",
    "down_proj",
    "mlp_output",
    "residual",
)
ARTICLE_LAYER = 8
SCALES = (0.0, 0.5, 1.5, 2.0, 3.0)
RANDOM_CUTS = (5, 10, 20)
SHOWN = 2  # shipped pairs of a category
DPI = 110


def show_page(
    model: "PreTrainedModel | None" = None, tokenizer: "PreTrainedTokenizerBase | None" = None
) -> Any:
    """Show the page: prompts, capture point, layer, score and cut to choose, and a button to run.

    The last line of a cell displays it; `make app` serves notebooks/app.ipynb without its code.

    Parameters
    ----------
    model, tokenizer : optional
        As `load_model` returns them. Without them the page is about the default model, and there
        before it: the model is loaded while somebody chooses.

    Returns
    -------
    AnyWidget
        The page, which answers the browser as long as the kernel lives.

    Raises
    ------
    ImportError
        anywidget is missing; the message says how to install it.
    ModuleNotFoundError
        The package with the default model's weights is missing.
    TypeError
        One of model and tokenizer without the other, or another kind of object.
    """
    view = _view_class()
    if model is not None:
        offer, load = _offer_of(model, tokenizer), lambda: (model, tokenizer)
    elif tokenizer is not None:
        raise TypeError("model: expected the model of this tokenizer; got None")
    else:
        # unpacked here if it never was, which takes longer
        folder = unpacked_before(DEFAULT_MODEL) or find_weights(DEFAULT_MODEL)[0]
        # the class that AutoTokenizer would find, for which it needs torch
        tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        offer, load = _offer(tokenizer, DEFAULT_SHAPE, DEFAULT_POINTS), _load_default
    page = view(offer=offer)
    page.on_msg(functools.partial(_answer, tokenizer, _begin(load)))
    return page


def _load_default() -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load the default model, by the module that needs torch."""
    return importlib.import_module("fairlab.models").load_model()


def _begin(load: "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]") -> "Loading":
    """Begin to load a model, and to import what a run needs, while somebody still chooses."""

    def work() -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        loaded = load()
        _examination()
        return loaded

    worker = ThreadPoolExecutor(1)
    loading = worker.submit(work)
    worker.shutdown(wait=False)
    return loading


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


def _offer_of(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Return what can be chosen of a model."""
    from fairlab.capture import available_points
    from fairlab.gates import table_shape

    return _offer(tokenizer, table_shape(model), available_points(model))


def _offer(
    tokenizer: "PreTrainedTokenizerBase", shape: tuple[int, int], points: tuple[str, ...]
) -> dict[str, Any]:
    """Return what can be chosen of a model of such a shape, and what is chosen at first."""
    layers, neurons = shape
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


def _shipped_pairs(tokenizer: "PreTrainedTokenizerBase") -> list[PromptPair]:
    """Return the article's pair, and two valid training pairs of each category in sentences of
    their own."""
    shown: dict[str, list[PromptPair]] = {}
    for pair in load_pairs(split="train"):
        members = shown.setdefault(pair.category, [])
        known = [(member.template, member.attribute_a) for member in members]
        new = all(pair.template != one and pair.attribute_a != word for one, word in known)
        if new and len(members) < SHOWN and _is_valid(tokenizer, pair):
            members.append(pair)
    return [ARTICLE_PAIR, *(pair for members in shown.values() for pair in members)]


def _is_valid(tokenizer: "PreTrainedTokenizerBase", pair: PromptPair) -> bool:
    """Say whether the two prompts of a pair can be compared, without the table of `check_pairs`."""
    try:
        encode_pair(tokenizer, pair)
    except ValueError:
        return False
    return True


def _described(pair: PromptPair) -> dict[str, str]:
    group = "the article's" if pair == ARTICLE_PAIR else pair.category
    return {
        "group": group,
        "label": f"{pair.attribute_a} / {pair.attribute_b}: {pair.template.replace('{}', '…')}",
        "prompt_a": pair.prompt_a,
        "prompt_b": pair.prompt_b,
    }


def _answer(
    tokenizer: "PreTrainedTokenizerBase",
    loading: "Loading",
    page: Any,
    content: dict[str, Any],
    _: Any,
) -> None:
    """Answer a message of the browser; whatever goes wrong, it gets a sentence."""
    try:
        if content["kind"] == "wait":
            # at once if the model is there; else by the thread that loads it
            loading.add_done_callback(functools.partial(_tell, page))
        elif content["kind"] == "check":
            page.send(_checked(tokenizer, content))
        else:
            for step in _started(*loading.result(), page, content):
                pictures = [_png(picture.figure) for picture in step.pictures]
                page.send(_said(step), buffers=pictures)
            page.send({"kind": "done"})
    except Exception as error:  # in a callback it would vanish
        page.send({"kind": "failed", "text": _sentence(error)})


def _tell(page: Any, loading: "Loading") -> None:
    """Tell the browser that the model is there, or why it is not."""
    error = loading.exception()
    fault = f"The model could not be loaded. {_sentence(error)}" if error else ""
    page.send({"kind": "loaded", "fault": fault})


def _checked(tokenizer: "PreTrainedTokenizerBase", content: dict[str, Any]) -> dict[str, Any]:
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
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
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


def _sentence(error: BaseException) -> str:
    """Return what went wrong in the words of the page."""
    text = str(error)
    if not isinstance(error, ValueError):
        return f"Something went wrong: {type(error).__name__}: {text}"
    words = {"prompt_a": "first prompt", "prompt_b": "second prompt", "n_random": "random cuts"}
    for name, word in words.items():
        text = text.replace(name, word)
    text = text.removeprefix("pairs: ")
    return f"{text[:1].upper()}{text[1:]}."
