"""Predict, then see: a guess is locked in before the result is shown, and both stand together.

Contents: `predict`, which asks; `Prediction`, what it returns, whose `reveal` answers; `view_of`,
the entry of an output that shows a widget.

A question is two outputs of its cell: its text, and the controls. Where no controls can be shown (a
notebook on GitHub, a page, a script, an environment without ipywidgets), the choices stand there as
text, and `reveal` prints the result alone.
"""

import html
import math
import re
import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any

VIEW = "application/vnd.jupyter.widget-view+json"
# what Markdown would take for more than a letter, and the same with a backslash before it
MARKDOWN, ESCAPED = re.compile(r"([\\`*_{}\[\]<>#|$~&])"), r"\\\1"


class Prediction:
    """A question, and the guess at its answer; `predict` makes it and shows it.

    `controls` holds the widgets by name: "guess", "button", "reply". It is empty where ipywidgets
    is missing.
    """

    def __init__(self, question: str, choices: Sequence[str] | None, unit: str):
        self.question, self.unit = question, unit
        self.choices = None if choices is None else list(choices)
        self.controls: dict[str, Any] = {}
        self._locked = False
        self._result: str | float | None = None  # None until it is revealed
        self._note = ""
        widgets = _find_ipywidgets()
        if widgets is not None:
            self._add_controls(widgets)

    @property
    def guess(self) -> str | float | None:
        """What was locked in: a choice or a number; None if nothing was."""
        return self._chosen() if self._locked else None

    def reveal(self, result: str | float, note: str = "") -> None:
        """Print the result beside the guess, or alone if no guess was locked in.

        A guess at a number is called near if it is off by at most a quarter of the result.

        Parameters
        ----------
        result : str or float
            One of the choices. For a question without choices: a number, in its unit, rounded to
            the digits to print (six at most).
        note : str
            A second line, such as the numbers behind the result.

        Raises
        ------
        ValueError
            A result that is not one of the choices, or that is no finite number.
        """
        if self.choices is None:
            result = _finite(result)
        elif result not in self.choices:
            raise ValueError(f"result: expected one of {', '.join(self.choices)}; got {result!r}")
        self._result, self._note = result, note
        if self._locked:
            self._reply()
            print(self._compared())
        else:
            print(f"No guess was locked in. It is: {self._written(result)}.")
        if note:
            print(note)

    def _add_controls(self, widgets: Any) -> None:
        """Make the controls: radio buttons or a text field, a button, and a place for a reply."""
        if self.choices is None:
            # a number field of ipywidgets can't be empty, and its first number would be a hint
            label = f"Your guess, in {self.unit}:" if self.unit else "Your guess:"
            field = widgets.Text(description=label, placeholder="a number")
            field.on_msg(self._lock_on_enter)
        else:
            field = widgets.RadioButtons(
                options=self.choices, value=None, description="Your guess:"
            )
            field.layout.width = "auto"  # room for long choices
            # JupyterLab takes the arrow keys for itself
            field.tooltip = "Tab goes from choice to choice, the space bar takes one"
        field.style.description_width = "initial"
        field.observe(self._changed, names="value")
        button = widgets.Button(description="That's my guess")
        button.layout.width = "max-content"
        button.on_click(self._lock)
        reply = widgets.HTML()
        self.controls = {"guess": field, "button": button, "reply": reply}
        self._box = widgets.VBox(list(self.controls.values()))

    def _chosen(self) -> str | float | None:
        """Return what the controls say now, None if that is no guess."""
        value = self.controls["guess"].value
        return value if self.choices is not None else _number_in(value, self.unit)

    def _lock(self, _: Any = None) -> None:
        """Lock the guess in, if there is one, and reply."""
        self._locked = self._chosen() is not None
        for name in ("guess", "button"):
            self.controls[name].disabled = self._locked
        self._reply()

    def _lock_on_enter(self, _: Any, content: dict[str, Any], __: Any) -> None:
        if content.get("event") == "submit":
            self._lock()

    def _changed(self, _: Any) -> None:
        if self._locked:
            # while the kernel is busy, a change made before the click can arrive after it
            self._lock()
        else:
            self.controls["reply"].value = ""

    def _reply(self) -> None:
        """Answer below the button, where a screen reader reads it aloud."""
        if self._locked and self._result is not None:
            text = f"{self._compared()} {self._note}"
        elif self._locked:
            text = f"Your guess: {self._written(self.guess)}. The answer comes further down."
        elif self.choices is None:
            text = "Write a number first, with a point and without commas, such as 1234.5."
        else:
            text = "Choose one of them first."
        self.controls["reply"].value = f"<div role='status'>{html.escape(text.strip())}</div>"

    def _compared(self) -> str:
        """Say what was guessed, what it is, and how far apart they are."""
        guess, result = self._written(self.guess), self._written(self._result)
        both = f"You said: {guess}. It is: {result}."
        if guess == result:
            return f"{both} You were right."
        if self.choices is not None:
            return f"{both} It turned out differently."
        off = self.guess - self._result
        near = "near, " if abs(off) <= abs(self._result) / 4 else ""
        side = "above" if off > 0 else "below"
        return f"{both} Your guess was {near}{_digits(abs(off))} {side} it."

    def _written(self, value: str | float) -> str:
        """Return a choice as it is, a number with its unit."""
        return value if self.choices is not None else f"{_digits(value)} {self.unit}".strip()

    def _show(self) -> None:
        """Show the question and the controls, with text for where controls can't be shown."""
        title = {
            "text/markdown": f"**Predict**: {self.question}",
            "text/plain": f"Predict: {self.question}",
        }
        if self.choices is None:
            written = plain = f"A number, in {self.unit}." if self.unit else "A number."
        else:
            plain = "\n".join(f"- {choice}" for choice in self.choices)
            written = "\n".join(f"- {MARKDOWN.sub(ESCAPED, choice)}" for choice in self.choices)
        below = {"text/markdown": written, "text/plain": plain}
        if not _in_ipython():
            print(title["text/plain"], below["text/plain"], sep="\n")
            return
        from IPython.display import display

        if self.controls:
            below |= view_of(self._box)
        display(title, raw=True)
        display(below, raw=True)


def predict(question: str, choices: Sequence[str] | None = None, *, unit: str = "") -> Prediction:
    """Ask for a guess before a result is shown.

    The question stands above radio buttons, or above a field for a number, and a button that locks
    the guess in. A later cell calls `reveal` on what is returned.

    Parameters
    ----------
    question : str
        One line of Markdown.
    choices : list of str or None
        What to choose from: short plain texts without a full stop. None: the guess is a number.
    unit : str
        What a number is printed with, such as "%" or "neurons"; "": nothing.

    Returns
    -------
    Prediction
        Its `reveal(result, note)` prints the result beside the guess; `guess` is None until one is
        locked in.

    Raises
    ------
    ValueError
        An empty question, choices that are not a list of two or more different texts, a unit that
        is no text or stands beside choices.
    """
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question: expected a text; got {question!r}")
    if choices is not None:
        _check_choices(choices)
    if not isinstance(unit, str) or (choices is not None and unit):
        raise ValueError(f"unit: expected a text, and none beside choices; got {unit!r}")
    prediction = Prediction(question, choices, unit)
    prediction._show()
    return prediction


def view_of(widget: Any) -> dict[str, Any]:
    """Return the entry of an output that shows a widget.

    By hand, since ipywidgets 7, which Colab holds, has no method that returns it.
    """
    return {VIEW: {"model_id": widget.model_id, "version_major": 2, "version_minor": 0}}


def _check_choices(choices: Sequence[str]) -> None:
    is_list = isinstance(choices, Sequence) and not isinstance(choices, str)
    texts = list(choices) if is_list else []
    if not all(isinstance(text, str) and text.strip() for text in texts) or len(set(texts)) < 2:
        raise ValueError(
            f"choices: expected a list of two or more different texts; got {choices!r}"
        )
    if len(set(texts)) < len(texts):
        raise ValueError(f"choices: expected each text once; got {choices!r}")


def _finite(result: Any) -> float:
    """Return a result as a float; raise a ValueError if it is no finite number."""
    if isinstance(result, bool) or not isinstance(result, Real) or not math.isfinite(result):
        raise ValueError(f"result: expected a finite number; got {result!r}")
    return float(result)


def _number_in(text: str, unit: str) -> float | None:
    """Return the number that somebody wrote, with or without its unit; None if it is none.

    A comma is no part of it: "1,536" is one and a half here and fifteen hundred there.
    """
    text = text.strip().removesuffix(unit).replace("−", "-")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _digits(value: float) -> str:
    """Return a whole number with all its digits, another one with six."""
    return f"{int(value):,}" if value == int(value) else f"{value:,.6g}"


def _find_ipywidgets() -> Any:
    """Return ipywidgets, or None where it is missing: the question is then a text."""
    try:
        import ipywidgets
    except ImportError:
        return None
    return ipywidgets


def _in_ipython() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
