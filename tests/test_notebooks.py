"""Static checks of the committed lessons: what nbval, which runs them, does not see."""

import importlib.util
import json
import os
import re
import statistics
import sys
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
import transformers
from huggingface_hub.utils import validate_repo_id
from nbclient import NotebookClient

import fairlab as fl
from fairlab.files import check_output_folder
from fairlab.pairs import prompt_ids
from tiny_models import tiny_model

FOLDER = Path(__file__).parent.parent / "notebooks"
README = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
LESSONS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
ALL = LESSONS + sorted(FOLDER.glob("solutions/*.ipynb"))
NUMBER = re.compile(r"(?<![\w.,\-−+])[-−+]?\d+(?:,\d{3})*(?:\.\d+)?(?![\w-]|[.,]\d)")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return cell["metadata"].get("tags", [])


def code_cells(path):
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def lines(cell):
    return sum(bool(line.strip()) for line in source(cell).splitlines())


def markdown(path):
    return "\n\n".join(
        source(cell) for cell in read(path)["cells"] if cell["cell_type"] == "markdown"
    )


def printed(path):
    """Return all that the checked cells put out as text."""
    texts = []
    for cell in code_cells(path):
        if "nbval-check-output" in tags(cell):
            for output in cell["outputs"]:
                texts.append(
                    "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
                )
    return "\n".join(texts)


def numbers(text):
    return {match.replace(",", "").replace("−", "-").lstrip("+") for match in NUMBER.findall(text)}


def minutes_to_read(path):
    """Return how long a lesson takes without its exercises and what is folded away: 150 words and
    20 lines of code a minute."""
    words, code, exercises = 0, 0, False
    for cell in read(path)["cells"]:
        text = source(cell)
        kind = cell["cell_type"]
        if kind == "markdown" and text.startswith("## "):
            exercises = text.startswith("## Exercises")
        if exercises:
            continue
        if kind == "markdown":
            words += len(re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL).split())
        else:
            code += len(text.splitlines())
    return words / 150 + code / 20


def prose(path):
    """Return the sentences of a lesson: no code, headings, links, list numbers, or facts of the
    course itself."""
    text = markdown(path)
    text = re.sub(r"\*Before you start\*:.*|^Course map: .*", "", text, flags=re.MULTILINE)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    text = re.sub(r"^## References\n.*?(?=^\*\*Next)", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(
        r"`[^`]*`|(?:\(\d{4}\))?\]\([^)]*\)|^#+ .*$|^\*\*\d+\. |^\d+\. |\(Pere Martra, 2025\)",
        " ",
        text,
        flags=re.MULTILINE,
    )
    return re.sub(
        r"\b(?:[Ss]ections?|[Ee]xercises?) \d+|\b[Ll]essons? \d+(?: and \d+)?|\[\d\d · |"
        r"range from 0 to 1\b|\bin nats; 0\b",
        " ",
        text,
    )


CLAIM = re.compile(
    r"\b(most|least|largest|smallest|highest|lowest|above all|none|never|always|every time|only|"
    r"as long as|upper|lower left|second time|no setting|more than|less than|"
    r"nothing|nobody|all of|dwarfs?)\b",
    re.IGNORECASE,
)


def unasserted(path):
    """Return the sentences that compare, rank or count, below a result, in sections of a lesson
    without any assert."""
    sections, found = [[]], []
    for cell in read(path)["cells"]:
        if source(cell).startswith("## "):
            sections.append([])
        sections[-1].append(cell)
    for cells in sections:
        code = [
            cell
            for cell in cells
            if cell["cell_type"] == "code" and "raises-exception" not in tags(cell)
        ]
        if (
            not code
            or not re.match(r"## \d", source(cells[0]))
            or any("assert " in source(cell) for cell in code)
        ):
            continue
        for cell in cells[cells.index(code[0]) :]:
            if cell["cell_type"] == "markdown":
                sentences = re.split(r"(?<=[.?:!])\s+", source(cell))
                found += [
                    f"{path.stem}: {' '.join(s.split())}" for s in sentences if CLAIM.search(s)
                ]
    return found


def test_a_sentence_that_compares_has_an_assert_beside_it():
    """New ones need an assert in their section; those in the file are from before the rule, and the
    file only shrinks.

    An assert that reads like the sentence: `assert min(moved, key=moved.get) == "white"` for "white
    moves it least".
    """
    found = {sentence for path in LESSONS for sentence in unasserted(path)}
    file = Path(__file__).parent / "unasserted_sentences.txt"
    known = set(file.read_text(encoding="utf-8").splitlines())
    assert not found - known, "add an assert to the section, or say less"
    assert not known - found, f"no longer there: take them out of {file.name}"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
class TestEveryNotebook:
    def test_ran_top_to_bottom_in_one_kernel(self, path):
        counts = [cell["execution_count"] for cell in code_cells(path)]
        assert counts == list(range(1, len(counts) + 1))

    def test_checked_cells_have_something_to_check(self, path):
        checked = [cell for cell in code_cells(path) if "nbval-check-output" in tags(cell)]
        assert checked
        for cell in checked:
            assert cell["outputs"], source(cell)

    def test_no_rounding_error_is_printed(self, path):
        """Such a number differs on every processor: assert that it is below a bound."""
        lines = [
            line for line in printed(path).splitlines() if "by chance" not in line
        ]  # a probability is exact
        assert not [line for line in lines if re.search(r"\de-(0[5-9]|[1-9]\d)\b", line)]

    def test_every_number_in_the_prose_was_computed(self, path):
        known = numbers(printed(path))
        unsigned = {number.lstrip("-") for number in known}
        # ends of scales ("1 keeps the neuron as it is") and the kind of an interval: not measured
        defined = {"0", "1", "95"}
        strange = numbers(prose(path)) - known - unsigned - defined
        assert not strange, f"in the text, but in no checked output: {sorted(strange)}"

    def test_outputs_are_clean(self, path):
        notebook = read(path)
        assert "widgets" not in notebook["metadata"]
        assert path.stat().st_size < 500_000
        for cell in code_cells(path):
            for output in cell["outputs"]:
                assert output.get("name") != "stderr", source(cell)
                assert output["output_type"] != "error" or "raises-exception" in tags(cell), source(
                    cell
                )
                assert not re.search(r"/(home|root|tmp|Users|work)/", json.dumps(output)), source(
                    cell
                )

    def test_cells_are_short(self, path):
        counts = [lines(cell) for cell in code_cells(path)]
        assert max(counts) <= 25
        assert statistics.median(counts) <= 8

    def test_tensors_go_to_the_device_of_the_model(self, path):
        for cell in code_cells(path):
            assert not re.search(r'return_tensors="pt"\)(?!\.to\()', source(cell)), source(cell)

    def test_words_promise_nothing(self, path):
        assert not re.search(
            r"\bdebias|\bunbiased\b|\bsolves? (the )?bias|\bfair model\b",
            markdown(path),
            re.IGNORECASE,
        )


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
class TestEveryLesson:
    def test_has_the_skeleton(self, path):
        parts = [
            r"colab\.research\.google\.com/github/[\w-]+/[\w-]+/blob/main/notebooks/" + path.name,
            r"mybinder\.org/v2/gh/[\w-]+/[\w-]+/main\?labpath=notebooks/" + path.name,
            rf"\n# {path.name[:2]} · ",
            r"\n\*\*[^*]+\?\*\*\n",
            r"\n\*You will learn\*\n\n- .*\n- .*\n- .*\n",
            r"\n\*Before you start\*: .*minutes to read and \d+ for the exercises; ",
            r"minute.* of computing",
            r"\n## 1 ",
            r"\n## What this does and does not show\n",
            r"\n## Exercises\n",
            r"\n## Quiz\n\n1\. .*\n2\. .*\n3\. .*\n",
            r"\n## In this notebook we\n\n- .*\n- .*\n- ",
            r"\n## References\n\n- ",
            r"\n\*\*Next\*\*: ",
        ]
        text, start = markdown(path), 0
        for part in parts:
            match = re.compile(part).search(text, start)
            assert match, f"missing or out of order: {part}"
            start = match.end() - 1

    def test_the_time_to_read_is_what_it_says(self, path):
        announced = int(re.search(r"about (\d+) minutes to read and", markdown(path))[1])
        assert abs(announced - minutes_to_read(path)) <= 5
        assert announced <= 45

    def test_sections_are_numbered_in_order(self, path):
        found = [int(number) for number in re.findall(r"^## (\d+) ", markdown(path), re.MULTILINE)]
        assert found == list(range(1, len(found) + 1))

    def test_exercises_have_a_stub_and_a_check(self, path):
        tagged = [cell for cell in code_cells(path) if "raises-exception" in tags(cell)]
        stubs = [cell for cell in tagged if "raise NotImplementedError(" in source(cell)]
        checks = [cell for cell in tagged if "assert " in source(cell)]
        exercises = re.findall(
            r"^\*\*(\d)\. ", markdown(path).split("## Exercises")[1], re.MULTILINE
        )
        assert 2 <= len(exercises) <= 3
        assert len(stubs) == len(checks) == len(exercises)
        assert all(
            any(output["output_type"] == "error" for output in cell["outputs"]) for cell in checks
        )

    def test_exercises_have_stars_hints_and_an_open_task(self, path):
        text = markdown(path).split("## Exercises")[1].split("\nSolutions: ")[0]
        exercises, open_task = text.split("**An open task.**")
        assert "<details>" in open_task, "a model answer to compare with"
        for exercise in re.split(r"^\*\*\d\. ", exercises, flags=re.MULTILINE)[1:]:
            assert re.match(r".*\*\* (★☆☆|★★☆|★★★)", exercise), exercise[:60]
            folds = re.findall(r"<details><summary>(.*?)</summary>", exercise)
            assert folds == ["Hint", "Second hint", "Solution"], exercise[:60]

    def test_stubs_give_nothing_away(self, path):
        for cell in code_cells(path):
            for message in re.findall(r"raise NotImplementedError\((.*)\)", source(cell)):
                assert message == '"your code here"'

    def test_has_a_toy_example_checked_against_the_helper(self, path):
        assert any(
            "by_hand" in source(cell) and "assert" in source(cell) for cell in code_cells(path)
        )

    def test_is_in_the_lesson_tables_and_has_a_solution(self, path):
        for table in (FOLDER / "README.md", FOLDER.parent / "README.md"):
            assert path.name in table.read_text(encoding="utf-8")
        assert (FOLDER / "solutions" / f"{path.name[:2]}_solutions.ipynb").is_file()


def test_the_number_rule_sees_what_it_should():
    assert numbers("a 7.1 % fall, −22.2 %, 1,536 neurons, Llama-3.2-1B, Q4_1, layer 3.") == {
        "7.1",
        "-22.2",
        "1536",
        "3",
    }


def test_links_between_files_hold():
    for path in (
        *ALL,
        *FOLDER.parent.glob("*.md"),
        FOLDER / "README.md",
        FOLDER.parent / "data" / "README.md",
    ):
        text = markdown(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def tool(name):
    path = FOLDER.parent / "tools"
    spec = importlib.util.spec_from_file_location(name, path / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path))
    return module


def test_the_figure_of_the_readme_is_the_one_in_the_lesson():
    figures = tool("figures")
    assert figures.FIGURE.read_bytes() == figures.figure(), "run: make figures"


def test_the_lesson_table_is_not_stale():
    table = tool("lesson_table")
    assert table.stale() == [], "run: make lesson-table"
    for path, (minutes, memory, _) in table.measured().items():
        row = re.search(
            rf"\(notebooks/{path}\) .* \| {minutes} \| {memory} \|$", README, re.MULTILINE
        )
        assert row, (
            f"README.md: the row of {path} is not that of notebooks/README.md; "
            "run: make lesson-table"
        )


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_check_of_lesson_13_holds_in_any_precision(dtype, tmp_path, capsys):
    """Run its knife on the default model; a cut other than the one that was switched off must not
    pass."""
    model, tokenizer = fl.load_model(dtype=dtype)
    scores = fl.importance_scores(model)
    selection = fl.select_neurons(scores, fraction=0.002)
    cell = cell_with("13", "fl.save_model(") + "\n" + cell_with("13", "same predictions")
    names = {
        "fl": fl,
        "torch": torch,
        "AutoModelForCausalLM": transformers.AutoModelForCausalLM,
        "prompt_ids": prompt_ids,
        "RECIPE": "guarded",
        "cuts": {"guarded": selection},
        "other": fl.random_selections(selection, 1)[0],
        "tokenizer": tokenizer,
        "prompts": [fl.ARTICLE_PAIR.prompt_a],
    }
    wrong = cell.replace("fl.prune(model, selection", "fl.prune(model, other")
    assert wrong != cell
    for code, right in ((cell, True), (wrong, False)):
        own = {"model": deepcopy(model), "folder": tmp_path / str(right)}  # it cuts in place
        exec(code, names | own)
        assert capsys.readouterr().out == f"same predictions, but for rounding: {right}\n"


SETTINGS = {
    "12": {"LLAMA", "MODEL", "GPU", "N_RANDOM", "DEVICE", "DTYPE"},
    "13": {
        *("MODEL", "CATEGORY", "LANGUAGE", "FRACTION", "CHAT", "UNEQUAL", "RECIPE", "N_RANDOM"),
        *("SEED", "TEXT_TOKENS", "PAIRS_FILE", "OUT", "PUSH_TO"),
    },
}


def lesson(number):
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    return path


def cell_with(number, text):
    (cell,) = [source(cell) for cell in code_cells(lesson(number)) if text in source(cell)]
    return cell


@pytest.mark.parametrize("number", SETTINGS)
def test_papermill_finds_the_settings(number):
    """One cell has the tag, and each of its lines sets one name: that is what papermill reads."""
    (cell,) = [cell for cell in code_cells(lesson(number)) if "parameters" in tags(cell)]
    names = {re.match(r"(\w+) = ", line)[1] for line in source(cell).splitlines()}
    assert names == SETTINGS[number]


def run_with(number, settings, folder, kernel):
    """Run a lesson as papermill would, with other settings in a cell behind the tagged one; return
    what it prints."""
    notebook = nbformat.read(lesson(number), as_version=4)
    (place,) = [n for n, cell in enumerate(notebook.cells) if "parameters" in tags(cell)]
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    client = NotebookClient(notebook, timeout=300, kernel_name=kernel)
    client.execute(env={**os.environ, "TMPDIR": str(folder)})
    texts = [
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    return "".join(texts)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Qwen3", "Gemma 3"])
@pytest.mark.parametrize("number", SETTINGS)
def test_lessons_for_any_model_run_on_another_family(
    number, family, tokenizer, bos_tokenizer, kernel, tmp_path
):
    """Change settings alone: a folder with small random weights, once with a tokenizer that adds
    BOS."""
    small = tiny_model(family, intermediate_size=512, num_hidden_layers=9)
    fl.save_model(small, bos_tokenizer if family == "Gemma 3" else tokenizer, tmp_path / "model")
    settings = {"MODEL": str(tmp_path / "model"), "N_RANDOM": 2}
    if number == "13":
        settings |= {"OUT": str(tmp_path / "out"), "TEXT_TOKENS": 128}  # the least that it takes
        if family == "Qwen3":  # once inside the chat template, without the article's recipe
            settings |= {"CHAT": True, "UNEQUAL": True}
        else:  # and once with a spreadsheet in place of its own pairs
            settings |= {"PAIRS_FILE": str(write_spreadsheet(tmp_path / "mine.csv"))}
            settings |= {"RECIPE": "article"}
    printed = run_with(number, settings, tmp_path, kernel)
    assert type(small).__name__ in printed
    if number == "13":
        assert ("words about race and class" in printed) == (family == "Gemma 3")
        assert f"of {small.config.num_hidden_layers} layers" in printed or family == "Qwen3"
        out = tmp_path / "out"
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        assert report["model"]["class"] == type(small).__name__
        assert set(path.name for path in out.iterdir()) >= {"README.md", "model.safetensors"}


def write_spreadsheet(path, words_split=True):
    """Write 6 sentences with 2 pairs of words of 2 categories each, one of which judges; the second
    and the fifth sentence will judge."""
    who = ["applicant", "neighbor", "driver", "guest", "nurse", "tenant"]
    rows = ["prompt_a,prompt_b,category,harsher,kinder" + ",attribute_split" * words_split]
    for noun in who:
        for a, b, category, split in OWN_WORDS:
            ends = f"{noun} came to the office. The manager decided to"
            answers = '"reject, refuse","help, accept"'
            row = f"The {a} {ends},The {b} {ends},{category},{answers}"
            rows.append(row + f",{split}" * words_split)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


OWN_WORDS = [
    ("Black", "white", "race", "train"),
    ("Asian", "white", "race", "held_out"),
    ("poor", "rich", "class", "train"),
    ("needy", "wealthy", "class", "held_out"),
]


def with_spreadsheet(tokenizer, path):
    """Run the cells of lesson 13 that take a spreadsheet; return what they define."""
    names = {"fl": fl, "tokenizer": tokenizer, "LANGUAGE": "en", "OUTCOMES": {}, "built": {}}
    names |= {"replace": replace, "CATEGORY": "mine", "PAIRS_FILE": path and str(path)}
    exec(cell_with("13", "fl.check_file("), names)
    return names


@pytest.mark.parametrize("words_split", [True, False])
def test_lesson_13_takes_a_spreadsheet(words_split, tokenizer, tmp_path, capsys):
    """In place of its own pairs, as one category, with neutral words in the same sentences and its
    answers; a note says which words choose and judge, on either side of a pair."""
    untouched = with_spreadsheet(tokenizer, None)
    assert untouched["built"] == {} and untouched["CATEGORY"] == "mine"
    assert capsys.readouterr().out == ""
    path = write_spreadsheet(tmp_path / "mine.csv", words_split)
    names = with_spreadsheet(tokenizer, path)
    assert names["CATEGORY"] == "race and class"
    for name, split in (("choose", "train"), ("judge", "held_out")):
        own, neutral = names["built"][name], names["built"][f"{name}, neutral"]
        words = {a for a, _, _, of_words in OWN_WORDS if not words_split or of_words == split}
        assert {pair.attribute_a for pair in own} == words
        assert len(own) == {"choose": 4, "judge": 2}[name] * len(words)
        assert {(pair.split, pair.category) for pair in own} == {(split, "race and class")}
        assert {(pair.split, pair.attribute_split) for pair in neutral} == {(split, split)}
        assert {pair.template for pair in neutral} == {pair.template for pair in own}
    answers = fl.Outcomes(harsher=("reject", "refuse"), kinder=("help", "accept"))
    for pair in names["built"]["judge"]:
        assert names["OUTCOMES"][pair.template] == answers
    assert names["built"]["judge, neutral"][0].prompt_a in capsys.readouterr().out
    exec(cell_with("13", "choose and judge:"), names)
    shared = "white" if words_split else "Asian, Black, needy, poor, rich, wealthy, white"
    assert capsys.readouterr().out == f"NOTE: these words choose and judge: {shared}\n"
    with pytest.raises(ValueError, match="there are no pairs that judge: see split"):
        exec(cell_with("13", "choose and judge:"), {"built": {"judge": []}})


def test_a_spreadsheet_without_categories_keeps_the_name_of_lesson_13(tokenizer, tmp_path):
    path = write_spreadsheet(tmp_path / "mine.csv")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("category", "other column"), encoding="utf-8")
    names = with_spreadsheet(tokenizer, path)
    assert names["CATEGORY"] == "mine"
    assert {pair.category for pair in names["built"]["judge"]} == {"mine"}


def test_exercise_1_of_lesson_13_takes_a_right_answer_for_a_spreadsheet(tokenizer, tmp_path):
    """Of whatever words were given, also those that do not hold."""
    names = with_spreadsheet(tokenizer, write_spreadsheet(tmp_path / "mine.csv"))
    names["built"]["choose"] += fl.build_pairs(["The {} guest"], [("widowed", "married")])
    text = markdown(lesson("13")).split("**1. Words that fit.**")[1]
    right = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    exec(right + cell_with("13", "that_fit(tokenizer, turned)"), names)
    assert names["found"] == [("Black", "white"), ("poor", "rich")]
    wrong = right.replace("if pieces(a) == pieces(b)", "if True")
    with pytest.raises(AssertionError, match="same number of pieces"):
        exec(wrong + cell_with("13", "that_fit(tokenizer, turned)"), names)


@pytest.mark.slow
def test_what_lesson_12_does_on_a_gpu_runs_here(tokenizer, kernel, tmp_path):
    """All categories, the longer text, float16; only the device and the number of random cuts are
    others."""
    # few dimensions: most processors multiply in float16 a hundred times more slowly
    sizes = {"hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
    small = tiny_model("Llama", **sizes, intermediate_size=512, num_hidden_layers=9)
    fl.save_model(small, tokenizer, tmp_path / "model")
    settings = {"GPU": True, "N_RANDOM": 1, "DEVICE": "cpu", "DTYPE": "float16"}
    printed = run_with("12", {"MODEL": str(tmp_path / "model"), **settings}, tmp_path, kernel)
    assert "float16 on cpu" in printed
    assert "61 demographic and 28 neutral pairs hold in this tokenizer; 1 random cuts" in printed


@pytest.mark.parametrize(
    ("token", "error", "message"),
    [
        (None, None, "No token was found, so this run takes SmolLM2"),
        ("hf_1", PermissionError("it is gated: ask for access"), "ask for access"),
        ("hf_1", ValueError("could not load it"), "could not load it"),
    ],
)
def test_without_access_lesson_12_takes_an_open_model(token, error, message, capsys):
    llama, asked = "meta-llama/Llama-3.2-1B", []

    def load_model(name, **options):
        asked.append(name)
        if name == llama:
            raise error
        return f"model {name}", "tokenizer"

    names = {"LLAMA": llama, "MODEL": llama, "DEVICE": "auto", "DTYPE": "auto", "time": time}
    names["get_token"] = lambda: token
    names["fl"] = SimpleNamespace(DEFAULT_MODEL=fl.DEFAULT_MODEL, load_model=load_model)
    exec(cell_with("12", "get_token()"), names)
    assert names["MODEL"] == fl.DEFAULT_MODEL and names["model"] == f"model {fl.DEFAULT_MODEL}"
    assert asked == [fl.DEFAULT_MODEL] if error is None else [llama, fl.DEFAULT_MODEL]
    assert message in capsys.readouterr().out


def test_a_model_of_ones_own_that_does_not_load_stops_lesson_12():
    def load_model(name, **options):
        raise ValueError("no such folder")

    names = {"LLAMA": "", "MODEL": "mine", "DEVICE": "auto", "DTYPE": "auto", "time": time}
    names["get_token"] = lambda: None
    names["fl"] = SimpleNamespace(load_model=load_model)
    with pytest.raises(ValueError, match="no such folder"):
        exec(cell_with("12", "get_token()"), names)


@pytest.fixture
def settings_of_13():
    """Return what lesson 13 has defined when its settings are checked; its tokenizer is a stand-in
    without a chat template."""
    names = {"fl": fl, "torch": torch}
    (cell,) = [cell for cell in code_cells(lesson("13")) if "parameters" in tags(cell)]
    exec(source(cell), names)
    plain = SimpleNamespace(chat_template=None)
    names["fl"] = SimpleNamespace(load_tokenizer=lambda name: plain, read_pairs=fl.read_pairs)
    names |= {"Path": Path, "get_token": lambda: None, "validate_repo_id": validate_repo_id}
    return names | {"check_output_folder": check_output_folder}


def check_settings_of_13(names):
    """Run the cells between the settings and the sentences."""
    cells = code_cells(lesson("13"))
    (start,) = [n for n, cell in enumerate(cells) if "parameters" in tags(cell)]
    for cell in cells[start + 1 : start + 3]:
        exec(source(cell), names)
    assert "SENTENCES_THAT_CHOOSE = " in source(cells[start + 3])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CATEGORY", "neutral", "CATEGORY: expected a name .* other than neutral; got 'neutral'"),
        ("LANGUAGE", "it", "LANGUAGE: expected en, de, es or fr; got 'it'"),
        ("FRACTION", 2, "FRACTION: expected a number between 0 and 1, .*; got 2"),
        ("CHAT", "no", "CHAT: expected True or False; got 'no'"),
        ("CHAT", True, "CHAT: expected False, since .* has no chat template; got True"),
        ("UNEQUAL", "no", "UNEQUAL: expected True or False; got 'no'"),
        ("RECIPE", "guard", "RECIPE: expected guarded or article .*; got 'guard'"),
        ("N_RANDOM", 0, "N_RANDOM: expected a whole number of at least 1; got 0"),
        ("N_RANDOM", True, "N_RANDOM: expected a whole number of at least 1; got True"),
        ("SEED", -1, "SEED: expected a whole number of at least 0; got -1"),
        ("TEXT_TOKENS", 5, "TEXT_TOKENS: expected None or a whole number of at least 128; got 5"),
        ("PAIRS_FILE", "no.csv", "PAIRS_FILE: path: .*no.csv"),
        ("PAIRS_FILE", 3, "PAIRS_FILE: "),
        ("OUT", str(FOLDER), "OUT: expected None, or a folder that is new or empty; got "),
        ("PUSH_TO", "my model", "PUSH_TO: expected None, or a repository .*; got 'my model'"),
        ("PUSH_TO", "name/mine", "PUSH_TO: an upload needs a token"),
    ],
)
def test_lesson_13_refuses_a_setting_before_weights_load(name, value, message, settings_of_13):
    with pytest.raises(ValueError, match=message):
        check_settings_of_13(settings_of_13 | {name: value})


def test_lesson_13_cuts_no_article_for_words_of_unequal_length(settings_of_13):
    check_settings_of_13(settings_of_13 | {"UNEQUAL": True})
    with pytest.raises(ValueError, match="RECIPE: .*with UNEQUAL = True, guarded.*; got 'article'"):
        check_settings_of_13(settings_of_13 | {"UNEQUAL": True, "RECIPE": "article"})


def test_lesson_13_takes_what_it_calls_allowed(settings_of_13, tmp_path):
    check_settings_of_13(settings_of_13)
    with_template = SimpleNamespace(chat_template="{{ messages }}")
    names = settings_of_13 | {"fl": SimpleNamespace(load_tokenizer=lambda name: with_template)}
    others = {"OUT": str(tmp_path), "PUSH_TO": "name/mine", "RECIPE": "article", "CHAT": True}
    check_settings_of_13(names | others | {"get_token": lambda: "hf_1", "TEXT_TOKENS": None})
    before_weights = markdown_and_code_until(lesson("13"), "fl.load_model(")
    assert "no pair is left" in before_weights, "pairs, too, are checked before weights load"


def markdown_and_code_until(path, text):
    """Return a lesson's cells up to the first that holds a text."""
    texts = [source(cell) for cell in read(path)["cells"]]
    (place,) = [n for n, cell in enumerate(texts) if text in cell]
    return "\n".join(texts[:place])


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("chat", [False, True])
def test_the_texts_of_lesson_13_are_new_tokens_alone(chat, bos, tokenizer, bos_tokenizer, capsys):
    """In a chat template, too, which is long and may write BOS itself: 35 tokens after the prompt,
    cut off where the prompt ends."""
    reads = deepcopy(bos_tokenizer if bos else tokenizer)
    if bos:
        reads.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    pair = fl.load_pairs("race", split="validation")[0]
    (asked,) = fl.chat_pairs(reads, [pair]) if chat else [pair]
    model = tiny_model()
    cut = fl.random_selections(fl.select_neurons(fl.importance_scores(model), count=2), 1)[0]
    names = {"fl": fl, "model": model, "tokenizer": reads, "pairs": {"judge": [asked]}}
    names["cuts"] = {"guarded": cut}
    exec(cell_with("13", "fl.generate("), names)
    exec(cell_with("13", "texts[prompt] = {}"), names)
    for prompt in (asked.prompt_a, asked.prompt_b):
        ids = torch.tensor([prompt_ids(reads, prompt)])
        if bos:
            assert ids[0].tolist().count(reads.bos_token_id) == 1
        tokens = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=5,
            early_stopping=True,
            no_repeat_ngram_size=2,
            max_length=ids.shape[1] + 35,
        )
        new = reads.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True)
        assert names["texts"][prompt]["before"] == "… " + " ".join(new.split())
        assert set(names["texts"][prompt]) == {"before", "guarded"}
    assert pair.prompt_a in capsys.readouterr().out


def downloads_on_colab(monkeypatch):
    """Put Colab's module in place; return the list that collects what is downloaded."""
    downloaded = []
    module = ModuleType("google.colab")
    module.files = SimpleNamespace(download=downloaded.append)
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", module)
    return downloaded


@pytest.mark.parametrize("on_colab", [True, False])
def test_lesson_13_downloads_its_report_on_colab_alone(on_colab, monkeypatch):
    downloaded = downloads_on_colab(monkeypatch) if on_colab else []
    exec(cell_with("13", "files.download"), {"sys": sys, "folder": Path("out")})
    assert downloaded == [str(Path("out") / "report.html")] * on_colab


@pytest.mark.parametrize("on_colab", [True, False])
def test_lesson_12_saves_its_table_on_colab_alone(on_colab, monkeypatch, tmp_path):
    downloaded = downloads_on_colab(monkeypatch) if on_colab else []
    monkeypatch.chdir(tmp_path)
    result = SimpleNamespace(table=pd.DataFrame({"measure": ["gap"], "change": [-0.5]}))
    exec(cell_with("12", "files.download"), {"sys": sys, "result": result})
    assert downloaded == ["lesson_12.csv"] * on_colab
    assert [path.name for path in tmp_path.iterdir()] == downloaded
    if on_colab:
        assert pd.read_csv("lesson_12.csv").equals(result.table)
