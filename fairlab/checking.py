"""Pairs of one's own, from a file: read them, find every problem, and say how they are split.

Contents: `read_pairs`, `check_file`, `CheckedFile`, `Problem`, `fixed_csv`, `article_fits`,
`reads_as_english`; `outcomes_of` (two texts of answers).

A row is looked at in three steps: its own cells (`_cell_problems`), the rows above it
(`_row_problems`) and, where a tokenizer is given, its tokens, by `check_pairs`. A row with a
problem is not valid; a notice is worth reading, and its row is valid. So a row is valid here where
its pair is measurable: prompts of unequal length, such as those of names, are a notice. Rows have
the numbers that a spreadsheet shows: the header is row 1. Those of JSON lines have their lines'.
"""

import csv
import io
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fairlab.files import GUESSED, CsvTable, as_path, read_csv, read_json_table
from fairlab.pairs import (
    ONE_PLACE,
    SPLITS,
    Outcomes,
    PromptPair,
    check_pairs,
    load_pairs,
    prompt_ids,
    shared_start,
)

# no file says whether its prompts went through a chat template
_FIELDS = tuple(field.name for field in fields(PromptPair) if field.name != "chat")
_ANSWERS = ("harsher", "kinder")
_COLUMNS = (*_FIELDS, *_ANSWERS)
_PROMPTS = ("prompt_a", "prompt_b")
_ATTRIBUTE_SPLITS = ("", "train", "held_out")
# what takes the place of an empty cell
_DEFAULTS = {
    "id": "the row's number is its id",
    "category": 'the category is "custom"',
    "template": "it is taken from the prompts",
    "attribute_split": "the words of this row go with every split",
}
# a sentence with one of them is taken for English, and English words are suggested
_ENGLISH = {"the", "and", "of", "is", "was", "were", "with", "to", "my", "his", "her"}
# a sentence with one of them, in small letters, is not in English, and "a" is no article there
_OTHER_LANGUAGES = {
    "az", "che", "das", "de", "del", "della", "der", "des", "di", "du", "een", "egy",
    "el", "elle", "en", "es", "est", "et", "het", "ils", "la", "las", "le", "les", "los",
    "não", "os", "para", "por", "que", "se", "un", "una", "une", "y",
}  # fmt: skip
# names of audits, of white women and men and of Black women and men in the United States: Bertrand
# and Mullainathan (2004), Fryer and Levitt (2004). Less those that `neutral.py` puts into sentences
_NAMES_OF_GROUPS = [
    ["Emily", "Anne", "Carrie", "Amy", "Emma", "Katie", "Madeline", "Heather", "Katelyn"],
    ["Greg", "Geoffrey", "Brett", "Jay", "Brad", "Jake", "Connor", "Tanner", "Wyatt", "Dustin"],
    ["Aisha", "Keisha", "Tamika", "Lakisha", "Tanisha", "Latoya", "Kenya", "Latonya", "Ebony"],
    ["Rasheed", "Tremayne", "Kareem", "Darnell", "Tyrone", "Hakim", "Jamal", "Leroy", "Jermaine"],
]
_OF_UNEQUAL_LENGTH = (
    "gap and decision gap are measured, and guarded and attribution scores take these rows; the "
    "article's metric and scores that compare token by token can't; part of such a gap may come "
    "from the length, so some neutral pairs should differ by as much"
)
_MARKS = ',.;:!?)"”'
SPLIT_RULE = "every third sentence of a category held out"  # where a file has no column `split`
# words that sound otherwise than they are written
_NO_VOWEL = re.compile(r"one\b|once|eu|ewe|u[ks]|uni(?!n|m)|ut[aeio]", re.IGNORECASE)
_NO_CONSONANT = re.compile(r"hour|hono|heir|honest", re.IGNORECASE)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row of a file, and what to do about it.

    Parameters
    ----------
    row : int
        The row's number in a spreadsheet, where the header is row 1, or the line's of JSON lines; 0
        means the whole file.
    column : str
        The column; "" means the whole row.
    what, remedy : str
        What was found, and what to do.
    notice : bool
        Whether it is only worth reading: the row is valid.
    line : int
        The line at which the row begins: of JSON lines, and where that is another number, since
        a line `sep=` or cells with line breaks stand above it; else 0.
    """

    row: int
    column: str
    what: str
    remedy: str
    notice: bool = False
    line: int = 0

    def __str__(self) -> str:
        place = f"row {self.row}" if self.row else "the file"
        if self.line:  # of JSON lines, row and line are the same
            place = f"line {self.line}" if self.line == self.row else f"{place} (line {self.line})"
        place += f", {self.column}" if self.column else ""
        # control letters of a file would steer the terminal
        return "".join(map(_visible, f"{place}: {self.what}; {self.remedy}"))


def _visible(letter: str) -> str:
    return repr(letter)[1:-1] if unicodedata.category(letter) == "Cc" else letter


@dataclass(frozen=True)
class CheckedFile:
    """The pairs of a file, and what is wrong with them.

    Parameters
    ----------
    path : Path
        The file.
    form : str
        Its encoding, and what stands between its cells or that it holds JSON lines.
    columns : tuple of str
        The header, with fairlab's names for fairlab's columns.
    cells : dict of int to tuple of str
        The cells of each row, without surplus blanks, by the row's number.
    pairs : dict of int to PromptPair
        The pair of each row. Where the file has no column `split`, those of rows that are not
        valid have none.
    problems, notices : tuple of Problem
        What makes rows invalid, and what is only worth reading, in the order of the rows.
    outcomes : dict of str to Outcomes
        Template → its answers, of the columns harsher and kinder; empty without them.
    """

    path: Path
    form: str
    columns: tuple[str, ...]
    cells: dict[int, tuple[str, ...]]
    pairs: dict[int, PromptPair]
    problems: tuple[Problem, ...]
    notices: tuple[Problem, ...]
    outcomes: dict[str, Outcomes]

    @property
    def valid(self) -> list[PromptPair]:
        """The pairs of the rows without a problem."""
        return [self.pairs[row] for row in _valid_rows(self.pairs, self.problems)]

    @property
    def summary(self) -> str:
        """How many rows have problems, and the first three of these."""
        rows = {problem.row for problem in self.problems}
        shown = "; ".join(map(str, self.problems[:3])) + "; …" * (len(self.problems) > 3)
        return f"{len(rows)} of {len(self.pairs)} rows of {self.path} have problems: {shown}"

    @property
    def guessed(self) -> list[str]:
        """What valid rows leave out and was filled in for them, to be read: sentences and split."""
        found = []
        place = self.columns.index("template") if "template" in self.columns else None
        taken = []
        for row in _valid_rows(self.pairs, self.problems):
            if place is None or not self.cells[row][place]:
                taken.append(self.pairs[row].template)
        if taken:
            rows = "row" if len(taken) == 1 else "rows"
            found.append(f"template, of {len(taken)} {rows} taken from the prompts: {_few(taken)}")
        if "split" not in self.columns and self.valid:
            sides = {"train": [], "held_out": []}
            for pair in self.valid:
                sides[pair.split].append(pair.template)
            told = "; ".join(f"{split}: {_few(side)}" for split, side in sides.items())
            found.append(f"split, {SPLIT_RULE}; {told}")
        return found


def _few(sentences: Iterable[str]) -> str:
    """Return the first three different sentences, and how many more there are."""
    different = list(dict.fromkeys(sentences))
    shown = ", ".join(f'"{sentence}"' for sentence in different[:3]) or "none"
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return "".join(map(_visible, shown + more))


def read_pairs(path: str | Path) -> list[PromptPair]:
    """Read prompt pairs of one's own from CSV or JSON lines, and say what was guessed.

    The columns are those of `PromptPair`; `prompt_a` and `prompt_b` are needed, other columns are
    passed over. Where they are missing, `template` and the two attributes are taken from the words
    in which the prompts differ, and `category` is "custom". Without a column `split` every third
    sentence of a category (the second, the fifth, …) is held out and the others are for training:
    never two rows of one sentence apart, and in a category with two sentences or more at least one
    on each side, wherever the sentences that categories share allow it. The columns harsher and
    kinder hold answers, for the decision gap: `check_file(path).outcomes` has them.

    Parameters
    ----------
    path : path
        A CSV file as spreadsheets write it: UTF-8, UTF-16 or cp1252; commas, semicolons or tabs. Or
        a file named .jsonl (or .ndjson) with an object on each line, whose names are the columns
        and whose values are texts.

    Raises
    ------
    ValueError
        No such file, no text file, no rows, a line that is no JSON or holds no text where one
        should be, a column missing, or rows with problems that need no tokenizer to be seen.
        `check_file` lists them all.

    Warns
    -----
    UserWarning
        Templates and splits that were filled in, to be read (the first three of each; as
        `check_file(path).guessed`), or letters that were guessed.
    """
    checked = check_file(path)
    if checked.problems:
        raise ValueError(
            f"path: {checked.summary}; fairlab.check_file (`fairlab check {path}`) lists them all"
        )
    if checked.guessed:
        told = [f"{path} leaves this out, and it was filled in:", *checked.guessed]
        warnings.warn("\n  ".join(told), stacklevel=2)
    return checked.valid


def check_file(
    path: str | Path, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> CheckedFile:
    """Find every problem in a file of pairs.

    Parameters
    ----------
    path : path
        As in `read_pairs`.
    tokenizer : PreTrainedTokenizerBase, optional
        Also check that the pairs can be measured with it, name those whose two prompts differ in
        their number of tokens (a notice), and suggest words that fit. Without it only the text is
        checked.

    Returns
    -------
    CheckedFile
        With `problems` and `notices`, `pairs` by row, and `valid`, the pairs without a problem.
        If the file has no column `split`, only these are split; `guessed` says how.

    Raises
    ------
    ValueError
        No such file, no text file, no rows, a column missing or there twice, a quotation mark that
        is not closed, or a line that is no JSON or holds no text where one should be.
    """
    path = as_path("path", path)
    table, columns = _read_table(path)
    found = _header_notices(columns, 0 if is_json_lines(path) else 1)
    if table.guess:
        found.append(Problem(0, "", table.guess, GUESSED, notice=True))
    rows, cells = {}, {}
    for number, record in table.rows:
        found += _cell_problems(number, columns, record)
        tidy = tuple(_tidy(cell) for cell in record[: len(columns)])
        cells[number] = tidy + ("",) * (len(columns) - len(tidy))
        named = zip(columns, cells[number], strict=True)
        rows[number] = PromptPair(**{name: cell for name, cell in named if name in _FIELDS})
    pairs = _completed(rows)
    full = {row: pair for row, pair in pairs.items() if pair.prompt_a and pair.prompt_b}
    for row, pair in full.items():
        found += [*_slot_problems(row, rows[row], pair), *_article_notices(row, pair)]
    found += _row_problems(full)
    outcomes, unreadable = _outcomes_in(columns, cells, full)
    found += unreadable
    if tokenizer is not None:
        found += _token_problems(tokenizer, full)
    if "split" not in columns:
        broken = [problem for problem in found if not problem.notice]
        pairs |= _split_by_sentence({row: full[row] for row in _valid_rows(full, broken)})
    always = is_json_lines(path)
    found = [_with_line(problem, table.lines, always) for problem in found]
    found.sort(key=lambda problem: problem.row)
    problems = tuple(problem for problem in found if not problem.notice)
    found += _split_notices([pairs[row] for row in _valid_rows(pairs, problems)])
    notices = tuple(problem for problem in found if problem.notice)
    return CheckedFile(path, table.form, columns, cells, pairs, problems, notices, outcomes)


def fixed_csv(checked: CheckedFile) -> str:
    """Return the valid rows of a file as CSV, without the blanks that were too many.

    A row is fixed where nothing but blanks is wrong with it. Columns that fairlab doesn't know
    stay.
    """
    blanks = {problem for problem in checked.problems if problem.remedy == _REMOVE_BLANKS}
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(checked.columns)
    others = [problem for problem in checked.problems if problem not in blanks]
    for row in _valid_rows(checked.pairs, others):
        writer.writerow(checked.cells[row])
    # Excel takes a file without this mark for cp1252
    mark = "" if checked.form.startswith("utf-8,") else "\ufeff"
    return mark + lines.getvalue()


def _with_line(problem: Problem, lines: dict[int, int], always: bool) -> Problem:
    """Add the line at which a problem's row begins, always or where that is another number."""
    line = lines.get(problem.row, 0)
    return replace(problem, line=line) if always or line != problem.row else problem


def _valid_rows(pairs: Iterable[int], problems: Sequence[Problem]) -> list[int]:
    broken = {problem.row for problem in problems}
    return [row for row in pairs if row not in broken]


# ---- from bytes to rows


def _read_table(path: Path) -> tuple[CsvTable, tuple[str, ...]]:
    """Read a file's table, and the names of its columns."""
    read = read_json_table if is_json_lines(path) else read_csv
    table = read("path", path, _COLUMNS)
    columns = tuple(_column_name(cell) for cell in table.header)
    _check_columns(columns, path)
    if not table.rows:
        raise ValueError(
            f"path: {path} holds no pairs; write one pair in each row below the header"
        )
    return table, columns


def is_json_lines(path: Path) -> bool:
    """Say whether a file is named as one of JSON lines."""
    return path.suffix.casefold() in (".jsonl", ".ndjson")


def _column_name(cell: str) -> str:
    name = cell.strip()
    return name.casefold() if name.casefold() in _COLUMNS else name


def _check_columns(columns: Sequence[str], path: Path) -> None:
    twice = [name for name in _COLUMNS if columns.count(name) > 1]
    if twice:
        raise ValueError(f"path: {path} has the column {twice[0]} twice; keep one of them")
    if not set(_PROMPTS) <= set(columns):
        raise ValueError(
            f"path: {path} needs the columns prompt_a and prompt_b, and may have "
            f"{', '.join(_COLUMNS[2:])}; got {', '.join(columns) or 'none'}"
        )


def _header_notices(columns: Sequence[str], row: int) -> list[Problem]:
    others = [name for name in columns if name and name not in _COLUMNS]
    if not others:
        return []
    what = f"not used: {', '.join(others)}"
    known = f"the columns that are read are {', '.join(_COLUMNS)}"
    return [Problem(row, "", what, known, notice=True)]


# ---- one row


_REMOVE_BLANKS = "take the blanks away (--fix does)"


def _tidy(cell: str) -> str:
    """Take away blanks at both ends, and all but one of several in a row."""
    return re.sub("[ \t\u00a0]{2,}", " ", cell.strip())


def _cell_problems(row: int, columns: Sequence[str], record: Sequence[str]) -> list[Problem]:
    """Find what a row's cells lack or have too much of."""
    found = []
    if any(record[len(columns) :]):
        what = f"{len(record)} cells, and the header has {len(columns)}"
        remedy = "put a cell with a separator in it in quotation marks"
        found.append(Problem(row, "", what, remedy))
    # the last cells of a row may be missing
    cells = dict.fromkeys(columns, "") | dict(zip(columns, record, strict=False))
    for name in _PROMPTS:
        if not cells[name].strip():
            found.append(Problem(row, name, "lacks a prompt", "write it, or remove the row"))
        elif cells[name] != _tidy(cells[name]):
            found.append(Problem(row, name, _surplus_blanks(cells[name]), _REMOVE_BLANKS))
    for name, allowed in (("split", SPLITS), ("attribute_split", _ATTRIBUTE_SPLITS)):
        value = cells.get(name, allowed[0]).strip()
        if value not in allowed:
            known = [split for split in allowed if split]
            what = f"{name} must be {', '.join(known[:-1])} or {known[-1]}; got {value!r}"
            found.append(Problem(row, name, what, "write one of them"))
    for name, instead in _DEFAULTS.items():
        if name in cells and not cells[name].strip():
            found.append(Problem(row, name, "is empty", instead, notice=True))
    return found


def _surplus_blanks(cell: str) -> str:
    """Say where a cell has blanks too many."""
    places = []
    if cell != cell.lstrip():
        places.append("begins with a blank")
    if cell != cell.rstrip():
        places.append("ends in a blank")
    if _tidy(cell) != cell.strip():
        places.append("has several blanks in a row")
    return " and ".join(places)


def _slot_problems(row: int, given: PromptPair, pair: PromptPair) -> list[Problem]:
    """Find a template or attributes that contradict the prompts.

    `given` is what the file says, and `pair` has what it leaves out.
    """
    if pair.template.count("{}") != 1:
        what = f"needs exactly one {{}}; got {pair.template!r}"
        return [Problem(row, "template", what, "write {} where the words go, and nowhere else")]
    prompts = {"a": pair.prompt_a, "b": pair.prompt_b}
    slots = {side: _in_slot(pair.template, prompt) for side, prompt in prompts.items()}
    replaced = _replaced_sides(pair) if given.template and None not in slots.values() else ""
    for side, prompt in prompts.items():
        if slots[side] is None or side in replaced:
            what = f"is not the sentence of prompt_{side}: {pair.template!r} and {prompt!r}"
            remedy = "write the sentence with {} in it, or leave the cell empty"
            return [Problem(row, "template", what, remedy)]
    found = []
    for side, slot in slots.items():
        word = getattr(given, f"attribute_{side}")
        turned = word == slots["a" if side == "b" else "b"] != slot
        if word and (turned or not _is_form_of(word, slot)):
            what = f"is {word!r}, and prompt_{side} has {slot!r} there"
            remedy = "write the word of the prompt, or leave the cell empty"
            found.append(Problem(row, f"attribute_{side}", what, remedy))
    return found


def _replaced_sides(pair: PromptPair) -> str:
    """Return the sides whose prompt has other words where the template has words of its own.

    "The woman left" leaves a word of "The {} applicant left" out: one word stands for two. "The
    Black driver left" has another one in its place. So have two prompts that leave a word out and
    end their slots alike.
    """
    slots, left_out = {}, {}
    for side in "ab":
        prompt = getattr(pair, f"prompt_{side}")
        slots[side] = _in_slot(pair.template, prompt).split()
        left_out[side] = _left_out(pair.template, prompt) or 0  # None where no word stands there
    if all(left_out.values()):
        return "ab" if slots["a"][-1:] == slots["b"][-1:] else ""
    return "".join(side for side in "ab" if 0 < left_out[side] < len(slots[side]))


def _is_form_of(word: str, slot: str) -> bool:
    """Say whether an attribute may be what stands in the slot: "woman" for "women", not "man".

    Forms begin alike, and share half of the shorter one's letters or more at their two ends.
    """
    word, slot = _plain_letters(word), _plain_letters(slot)
    for part in (slot, *slot.split()):
        start = shared_start(word, part)
        end = shared_start(word[start:][::-1], part[start:][::-1])
        if start and 2 * (start + end) >= min(len(word), len(part)):
            return True
    return False


def _plain_letters(word: str) -> str:
    """Return a word in small letters without accents, which change with the form: Mann, Männer."""
    letters = unicodedata.normalize("NFD", word.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _article_notices(row: int, pair: PromptPair) -> list[Problem]:
    """Find "a Asian" and "an Black", unless the sentence is plainly not English."""
    found = []
    before = pair.template.partition("{}")[0].split()
    if before and not _is_foreign(pair.prompt_a):
        article = before[-1].lstrip("'\"([‘“")
        for side in "ab":
            word = _in_slot(pair.template, getattr(pair, f"prompt_{side}"))
            if word and not article_fits(article, word):
                what = f'"{article} {word}": a and an change with the word'
                remedy = 'open the slot with "The", "My" or "Two"'
                found.append(Problem(row, f"prompt_{side}", what, remedy, notice=True))
    return found


def reads_as_english(sentences: Sequence[str]) -> bool:
    """Say whether sentences read as English.

    At least half of them have a common English word, and none has one of another language.
    """
    if any(map(_is_foreign, sentences)):
        return False
    english = [bool(_ENGLISH & set(sentence.lower().split())) for sentence in sentences]
    return 2 * sum(english) >= len(english) > 0


def _is_foreign(sentence: str) -> bool:
    """Say whether a sentence has a word that tells another language than English, other than in a
    name, such as Los Angeles."""
    first, *others = sentence.split() or [""]
    return bool(_OTHER_LANGUAGES & {first.lower(), *others})


def article_fits(article: str, word: str) -> bool:
    """Say whether a word may follow: False for a vowel after "a" and a consonant after "an"."""
    first = word.partition(" ")[0]
    if article.lower() not in ("a", "an") or not first[:1].isalpha() or first.isupper():
        return True  # of letters that are spelled out, such as NBA, the sound is not known
    vowel = first[0].lower() in "aeiou" and not _NO_VOWEL.match(first)
    vowel = vowel or bool(_NO_CONSONANT.match(first))
    return vowel == (article.lower() == "an")


# ---- what a file leaves out


def _completed(rows: dict[int, PromptPair]) -> dict[int, PromptPair]:
    """Fill in what rows do not say, from the words in which their prompts differ."""
    pairs = {row: replace(pair, template=_template_of(pair)) for row, pair in rows.items()}
    shortest = _sentences(pair.template for pair in pairs.values())
    for row, pair in pairs.items():
        template = pair.template if rows[row].template else shortest[pair.template]
        word_a, word_b = _in_slot(template, pair.prompt_a), _in_slot(template, pair.prompt_b)
        fits = pair.attribute_a in ("", word_a) and pair.attribute_b in ("", word_b)
        if word_a is None or word_b is None or not fits:
            template = pair.template
            word_a, word_b = _in_slot(template, pair.prompt_a), _in_slot(template, pair.prompt_b)
        pairs[row] = replace(
            pair,
            template=template,
            attribute_a=pair.attribute_a or word_a or "",
            attribute_b=pair.attribute_b or word_b or "",
            category=pair.category or "custom",
            id=pair.id or f"row-{row}",
        )
    return pairs


def _template_of(pair: PromptPair) -> str:
    """Return a pair's template: as given, or by its attributes, or by the words that differ."""
    if pair.template:
        return pair.template
    if pair.attribute_a and pair.attribute_b:
        template = pair.prompt_a.replace(pair.attribute_a, "{}", 1)
        if template == pair.prompt_b.replace(pair.attribute_b, "{}", 1):
            return template
    template = _common(pair.prompt_a.split(" "), pair.prompt_b.split(" "), " ")
    if template == "{}" and not pair.prompt_a.isascii():
        return _common(pair.prompt_a, pair.prompt_b, "")  # a script without blanks, by characters
    word_a, word_b = _in_slot(template, pair.prompt_a), _in_slot(template, pair.prompt_b)
    # a mark after both words, as in "Emily, …", is the sentence's
    while word_a and word_b and word_a[-1] == word_b[-1] and word_a[-1] in _MARKS:
        template = template.replace("{}", "{}" + word_a[-1], 1)
        word_a, word_b = word_a[:-1], word_b[:-1]
    return template


def _common(words_a: Sequence[str], words_b: Sequence[str], blank: str) -> str:
    """Return what two prompts share at their start and end, with {} in between."""
    start = shared_start(words_a, words_b)
    end = shared_start(words_a[start:][::-1], words_b[start:][::-1])
    return blank.join([*words_a[:start], "{}", *words_a[len(words_a) - end :]])


def _in_slot(template: str, prompt: str) -> str | None:
    """Return what stands in a prompt where its template has {}, or None if it doesn't fit.

    A word may stand for up to three words after the slot, too: "The woman left" is a prompt of
    "The {} applicant left". So may no word: "Two men" is one of "Two {} men".
    """
    if prompt in (template.replace("{} ", "", 1), template.replace(" {}", "", 1)):
        return ""
    left_out = _left_out(template, prompt)
    if left_out is None:
        return None
    start, end = _around_slot(template, left_out)
    return prompt[len(start) : len(prompt) - len(end)]


def _left_out(template: str, prompt: str) -> int | None:
    """Count the words after the slot that a prompt leaves out, at most three; None if it doesn't
    fit. The sentence's last word stays."""
    most = len(template.partition("{}")[2].split(" ")) - 2
    for count in range(max(1, min(4, most + 1))):
        start, end = _around_slot(template, count)
        fits = prompt.startswith(start) and prompt.endswith(end)
        if fits and len(prompt) >= len(start + end):
            return count
    return None


def _around_slot(template: str, left_out: int) -> tuple[str, str]:
    """Return what a prompt has before its slot and after it, without the words left out."""
    start, _, end = template.partition("{}")
    after = end.split(" ")  # the first one belongs to the slot, and is mostly ""
    return start, " ".join([after[0], *after[1 + left_out :]])


def _sentences(templates: Iterable[str]) -> dict[str, str]:
    """Map each template to the shortest one that is the same sentence.

    "The {} American man left" is the sentence of "The {} man left": words at the slot are those of
    the pair. At least three words must be shared, and at most three be more. Nor do capitals,
    quotation marks, the marks at the end and the bytes in which an accent is stored make another
    sentence.
    """
    shortest, known = {}, []  # known: start, end, number of words and text of each sentence
    for template in sorted(dict.fromkeys(templates), key=lambda template: len(template.split())):
        start, _, end = _sentence_key(template).partition("{}")
        words = len(template.split())  # {} is one of them
        same = (
            sentence
            for first, last, fewer, sentence in known
            if (start, end) == (first, last)
            or (4 <= fewer >= words - 3 and start.startswith(first) and end.endswith(last))
        )
        shortest[template] = next(same, template)
        if shortest[template] == template:
            known.append((start, end, words, template))
    return shortest


_STRAIGHT = str.maketrans("‘’‚“”„«»", '\'\'\'"""""')


def _sentence_key(template: str) -> str:
    """Return what two templates of one sentence have in common, however they are written."""
    letters = unicodedata.normalize("NFC", template.translate(_STRAIGHT)).casefold()
    return " ".join(letters.split()).rstrip(_MARKS + " …")


# ---- a row and those above it


def _row_problems(pairs: dict[int, PromptPair]) -> list[Problem]:
    """Find what is there twice, and sentences that are in two splits."""
    found, ids, seen, sentence_rows = [], {}, {}, {}
    shortest = _sentences(pair.template for pair in pairs.values())
    for row, pair in pairs.items():
        first = ids.setdefault(pair.id, row)
        if first != row:
            found.append(
                Problem(row, "id", f"{pair.id!r} is also that of row {first}", "change it")
            )
        prompts = tuple(unicodedata.normalize("NFC", p) for p in (pair.prompt_a, pair.prompt_b))
        if prompts[0] == prompts[1] and pair.prompt_a != pair.prompt_b:
            what = "the prompts differ only in the bytes of an accent (é as one letter, or as two)"
            found.append(Problem(row, "", what, "write another word in one of them"))
        first, straight = seen.setdefault(frozenset(prompts), (row, prompts))
        if first != row:
            turned = "" if prompts == straight else ", the other way round"
            what = f"has the prompts of row {first}{turned}"
            found.append(Problem(row, "", what, "remove one of them"))
        first = sentence_rows.setdefault(shortest[pair.template], row)
        other = pairs[first].split
        if pair.split != other and {pair.split, other} <= set(SPLITS):
            where = "" if pair.template == pairs[first].template else ", under another template"
            what = f"{pair.split}, and the same sentence is {other} in row {first}{where}"
            found.append(Problem(row, "split", what, "give all rows of a sentence one split"))
    return found


# ---- answers


def outcomes_of(harsher: str, kinder: str) -> Outcomes:
    """Read two lists of answers with commas between them, such as "deny, reject"."""
    lists = [tuple(answer.strip() for answer in text.split(",")) for text in (harsher, kinder)]
    return Outcomes(*lists)


def _outcomes_in(
    columns: Sequence[str], cells: dict[int, Sequence[str]], pairs: dict[int, PromptPair]
) -> tuple[dict[str, Outcomes], list[Problem]]:
    """Read the answers of each sentence; find those that can not be read or contradict others."""
    outcomes, rows, found = {}, {}, []
    for row, pair in pairs.items():
        named = dict(zip(columns, cells[row], strict=True))
        texts = [named.get(name, "") for name in _ANSWERS]
        if not any(texts):
            continue
        try:
            lists = outcomes_of(*texts)
        except ValueError as error:
            remedy = "write answers with commas between them in both cells, or leave both empty"
            found.append(Problem(row, "", str(error), remedy))
            continue
        first = rows.setdefault(pair.template, row)
        if outcomes.setdefault(pair.template, lists) != lists:
            what = f"other answers than row {first}, which has the same sentence"
            found.append(Problem(row, "harsher", what, "give all rows of a sentence the same"))
    return outcomes, found


# ---- tokens


def _token_problems(
    tokenizer: PreTrainedTokenizerBase, pairs: dict[int, PromptPair]
) -> list[Problem]:
    """Find the pairs that `check_pairs` refuses; name those of unequal length, with words that
    would fit."""
    if not pairs:
        return []
    found, unequal = [], 0
    table = check_pairs(tokenizer, list(pairs.values()))
    for row, reason, measurable in zip(pairs, table.reason, table.measurable, strict=True):
        if reason and measurable:
            what = f"{reason}: {_both_split(tokenizer, pairs[row])}"
            remedy = _suggestion(tokenizer, pairs[row], list(pairs.values()))
            found.append(Problem(row, "", what, remedy, notice=True))
            unequal += 1
        elif reason:
            equal = pairs[row].prompt_a == pairs[row].prompt_b
            remedy = "write another word in one of them" if equal else ONE_PLACE
            found.append(Problem(row, "", reason, remedy))
    if unequal:
        what = f"in {unequal} of {len(pairs)} rows the two prompts differ in their number of tokens"
        found.append(Problem(0, "", what, _OF_UNEQUAL_LENGTH, notice=True))
    return found


def _both_split(tokenizer: PreTrainedTokenizerBase, pair: PromptPair) -> str:
    """Show how the tokenizer splits the words in which two prompts differ."""
    ids_a, ids_b = prompt_ids(tokenizer, pair.prompt_a), prompt_ids(tokenizer, pair.prompt_b)
    start = shared_start(ids_a, ids_b)
    end = shared_start(ids_a[start:][::-1], ids_b[start:][::-1])
    shown = []
    for word, ids in ((pair.attribute_a, ids_a), (pair.attribute_b, ids_b)):
        pieces = [tokenizer.decode([token]).strip() for token in ids[start : len(ids) - end]]
        shown.append(f'"{word}" is {len(pieces)} ({"|".join(pieces)})')
    return ", ".join(shown)


def _suggestion(
    tokenizer: PreTrainedTokenizerBase, pair: PromptPair, others: Sequence[PromptPair]
) -> str:
    """Name words that would make a pair valid: for a name others of its group, then words of
    fairlab's own category and of the file."""
    known = [other for other in others if other.category == pair.category]
    if _ENGLISH & set(pair.prompt_a.lower().split()):
        category = pair.category.lower()
        # the test pairs are not among them
        known = [other for other in load_pairs() if other.category == category] + known
    fitting = []
    for side in "ba":
        word = getattr(pair, f"attribute_{side}")
        words = []
        for names in _NAMES_OF_GROUPS:
            words += names if word in names else []
        words += [getattr(other, f"attribute_{side}") for other in known]
        words = _partners(tokenizer, pair, side, words)
        if words:
            shown = ", ".join(f'"{partner}"' for partner in words[:3])
            fitting.append(f'in place of "{word}" these have as many tokens: {shown}')
    return "; ".join(fitting) or "no other word of this category fits"


def _partners(
    tokenizer: PreTrainedTokenizerBase, pair: PromptPair, side: str, words: Sequence[str]
) -> list[str]:
    """Return the words that are valid on one side of a pair beside its other word."""
    word = getattr(pair, f"attribute_{side}")
    before = pair.template.partition("{}")[0].split()
    tried = []
    for partner in dict.fromkeys(words):
        # at the start of a sentence only a word with a capital stands in for another
        fits = partner[:1].isupper() if not before else article_fits(before[-1], partner)
        if fits and partner not in (pair.attribute_a, pair.attribute_b, ""):
            prompt = pair.template.replace("{}", partner)
            tried.append((partner, replace(pair, **{f"prompt_{side}": prompt})))
    if not tried:
        return []
    valid = check_pairs(tokenizer, [new for _, new in tried]).valid
    fits = [partner for (partner, _), holds in zip(tried, valid, strict=True) if holds]
    # where a slot holds several words, those that begin alike are the nearest
    return sorted(fits, key=lambda partner: partner.split()[0] != [*word.split(), ""][0])


# ---- the split


def _split_by_sentence(pairs: dict[int, PromptPair]) -> dict[int, PromptPair]:
    """Hold out every third sentence of each category, in the order of their first rows."""
    shortest = _sentences(pair.template for pair in pairs.values())
    found = {}  # category → its sentences; a dict keeps the order, and each only once
    for pair in pairs.values():
        found.setdefault(pair.category, {})[shortest[pair.template]] = None
    categories = [list(sentences) for sentences in found.values()]
    held_out, seen = set(), set()
    for sentences in categories:
        new = [sentence for sentence in sentences if sentence not in seen]
        held_out.update(new[1::3])
        seen.update(new)
    held_out = _balanced(categories, held_out)
    return {
        row: replace(pair, split="held_out" if shortest[pair.template] in held_out else "train")
        for row, pair in pairs.items()
    }


def _balanced(categories: Sequence[Sequence[str]], held_out: set[str]) -> set[str]:
    """Give each category of two sentences or more one on each side, where that can be done.

    Categories share sentences, and no sentence may be on both sides: so one at a time changes its
    side, wherever that leaves fewer categories with all of their sentences on one.
    """

    def one_sided(held_out: set[str]) -> list[Sequence[str]]:
        found = []
        for sentences in categories:
            count = len(held_out & set(sentences))
            if len(sentences) > 1 and count in (0, len(sentences)):
                found.append(sentences)
        return found

    tries = []  # of each such category its first sentence last
    for sentences in one_sided(held_out):
        tries += [*sentences[1:], sentences[0]]
    for sentence in tries:
        changed = held_out ^ {sentence}
        if len(one_sided(changed)) < len(one_sided(held_out)):
            held_out = changed
    return held_out


def _split_notices(pairs: Sequence[PromptPair]) -> list[Problem]:
    """Name the categories that have no training pairs, or none that are held out."""
    found = []
    for category in dict.fromkeys(pair.category for pair in pairs):
        splits = {pair.split for pair in pairs if pair.category == category}
        for split in sorted({"train", "held_out"} - splits):
            what = f"no valid pair of the category {category!r} is of the split {split}"
            remedy = "add sentences, or say in a column split which are which"
            found.append(Problem(0, "", what, remedy, notice=True))
    return found
