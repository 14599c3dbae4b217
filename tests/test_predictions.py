import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

import fairlab as fl
from fairlab.predictions import VIEW

WORDS = ["white", "<b>", "tall"]


def choose(guess, value):
    """Choose or write what a learner would, and press the button."""
    guess.controls["guess"].value = value
    guess.controls["button"].click()


def reply(guess):
    return guess.controls["reply"].value


def locked(guess):
    return {guess.controls[name].disabled for name in ("guess", "button")}


@pytest.fixture
def word(capsys):
    guess = fl.predict("Which *word*?", WORDS)
    assert capsys.readouterr().out == "Predict: Which *word*?\n- white\n- <b>\n- tall\n"
    return guess


@pytest.fixture
def rise(capsys):
    guess = fl.predict("By how much?", unit="%")
    assert capsys.readouterr().out == "Predict: By how much?\nA number, in %.\n"
    return guess


def test_without_a_guess_the_result_is_printed_alone(word, rise, capsys):
    word.controls["guess"].value = "tall"  # the button was not pressed
    word.reveal("white", "0.254, against 0.386 for happy")
    rise.reveal(7.1)
    assert capsys.readouterr().out == (
        "No guess was locked in. It is: white.\n"
        "0.254, against 0.386 for happy\n"
        "No guess was locked in. It is: 7.1 %.\n"
    )
    assert word.guess is rise.guess is None
    assert reply(word) == reply(rise) == ""  # which would give the result away above


@pytest.mark.parametrize("order", ["guess first", "guess after the result"])
@pytest.mark.parametrize(("said", "verdict"), [("white", "You were right."), ("<b>", "It turned")])
def test_a_choice_stands_beside_the_result(said, verdict, order, word, capsys):
    if order == "guess first":
        choose(word, said)
        later = "The answer comes further down."
        shown = said.replace("<b>", "&lt;b&gt;")
        assert reply(word) == f"<div role='status'>Your guess: {shown}. {later}</div>"
    word.reveal("white", "1 < 2")
    choose(word, said)
    capsys.readouterr()
    word.reveal("white", "1 < 2")
    printed = capsys.readouterr().out
    assert printed.startswith(f"You said: {said}. It is: white. {verdict}")
    assert printed.endswith("\n1 < 2\n") and printed.count("\n") == 2
    assert said == word.guess
    text = printed.replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ").strip()
    assert reply(word) == f"<div role='status'>{text}</div>"


@pytest.mark.parametrize(
    ("said", "result", "printed"),
    [
        ("7.1", 7.1, "You said: 7.1 %. It is: 7.1 %. You were right."),
        (" 8 % ", 7.1, "You said: 8 %. It is: 7.1 %. Your guess was near, 0.9 above it."),
        ("20%", 7.1, "You said: 20 %. It is: 7.1 %. Your guess was 12.9 above it."),
        ("−3", -4, "You said: -3 %. It is: -4 %. Your guess was near, 1 above it."),
        ("3", 4.01, "You said: 3 %. It is: 4.01 %. Your guess was 1.01 below it."),
        ("1e3", 46_080, "You said: 1,000 %. It is: 46,080 %. Your guess was 45,080 below it."),
        ("0", 0, "You said: 0 %. It is: 0 %. You were right."),
        ("0.1", 0, "You said: 0.1 %. It is: 0 %. Your guess was 0.1 above it."),
    ],
)
def test_a_number_stands_beside_the_result(said, result, printed, rise, capsys):
    choose(rise, said)
    rise.reveal(result)
    assert capsys.readouterr().out == f"{printed}\n"
    assert printed in reply(rise)


def test_the_button_locks_the_guess_in(word):
    assert word.controls["guess"].value is None  # none is suggested
    word.controls["button"].click()
    assert reply(word) == "<div role='status'>Choose one of them first.</div>"
    assert locked(word) == {False} and word.guess is None
    word.controls["guess"].value = "tall"
    assert reply(word) == "" and word.guess is None
    word.controls["button"].click()
    assert locked(word) == {True} and word.guess == "tall"


@pytest.mark.parametrize("text", ["", "many", "7,1", "nan", "inf", "% 7"])
def test_what_is_no_number_is_not_locked_in(text, rise):
    choose(rise, text)
    assert "Write a number first, with a point and without commas" in reply(rise)
    assert locked(rise) == {False} and rise.guess is None
    choose(rise, "7")
    assert locked(rise) == {True} and rise.guess == 7


def test_enter_locks_a_number_in(rise):
    rise.controls["guess"].value = "7"
    rise.controls["guess"]._handle_custom_msg({"event": "focus"}, [])
    assert rise.guess is None
    rise.controls["guess"]._handle_custom_msg({"event": "submit"}, [])  # what the page sends
    assert rise.guess == 7


def test_a_change_that_comes_after_the_click_counts(word, rise):
    """A busy kernel gets the click before the last change, which was made before it."""
    choose(word, "tall")
    word.controls["guess"].value = "white"
    assert word.guess == "white" and "Your guess: white." in reply(word)
    choose(rise, "1")
    rise.controls["guess"].value = "12"
    assert rise.guess == 12 and "Your guess: 12 %." in reply(rise)
    rise.controls["guess"].value = "12x"
    assert rise.guess is None and locked(rise) == {False}


def test_without_ipywidgets_it_is_a_text(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    guess = fl.predict("Which?", WORDS)
    guess.reveal("tall")
    assert guess.controls == {} and guess.guess is None
    assert capsys.readouterr().out == (
        "Predict: Which?\n- white\n- <b>\n- tall\nNo guess was locked in. It is: tall.\n"
    )


def test_a_notebook_keeps_question_and_choices_as_text():
    cells = [
        "import fairlab as fl",
        "guess = fl.predict('Which *one*?', ['gate_proj', '$x$'])",
        "print(guess._box.model_id)",
        "number = fl.predict('How many?')",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3", store_widget_state=False).execute()
    assert "widgets" not in notebook.metadata
    _, choices, model, number = [cell.outputs for cell in notebook.cells]
    assert [output.data["text/markdown"] for output in choices + number] == [
        "**Predict**: Which *one*?",
        "- gate\\_proj\n- \\$x\\$",
        "**Predict**: How many?",
        "A number.",
    ]
    assert [output.data["text/plain"] for output in choices] == [
        "Predict: Which *one*?",
        "- gate_proj\n- $x$",
    ]
    assert choices[1].data[VIEW]["model_id"] == model[0].text.strip()
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert "<li>gate_proj</li>" in page and VIEW not in page


BAD = {
    "question: expected a text; got ''": lambda: fl.predict(""),
    "question: expected a text; got ['a', 'b']": lambda: fl.predict(["a", "b"]),
    "choices: expected a list of two or more different texts; got []": lambda: fl.predict("q", []),
    "choices: expected a list of two or more different texts; got ['a']": lambda: fl.predict(
        "q", ["a"]
    ),
    "two or more different texts; got 'abc'": lambda: fl.predict("q", "abc"),
    "two or more different texts; got ['a', ' ']": lambda: fl.predict("q", ["a", " "]),
    "two or more different texts; got [1, 2]": lambda: fl.predict("q", [1, 2]),
    "choices: expected each text once; got ['a', 'b', 'a']": lambda: fl.predict("q", [*"aba"]),
    "two or more different texts; got 5": lambda: fl.predict("q", 5),
    "unit: expected a text, and none beside choices; got '%'": lambda: fl.predict(
        "q", [*"ab"], unit="%"
    ),
    "unit: expected a text, and none beside choices; got 5": lambda: fl.predict("q", unit=5),
    "result: expected one of a, b; got 'c'": lambda: fl.predict("q", [*"ab"]).reveal("c"),
    "result: expected one of a, b; got 1": lambda: fl.predict("q", [*"ab"]).reveal(1),
    "result: expected a finite number; got '7'": lambda: fl.predict("q").reveal("7"),
    "result: expected a finite number; got nan": lambda: fl.predict("q").reveal(float("nan")),
    "result: expected a finite number; got inf": lambda: fl.predict("q").reveal(float("inf")),
    "result: expected a finite number; got True": lambda: fl.predict("q").reveal(True),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        BAD[message]()
