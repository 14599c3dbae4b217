"""Files of text as people have them: every encoding, line end and slip is read, or named with
file, line and remedy."""

import json
import random
import re
import unicodedata
import warnings
from dataclasses import replace

import pytest

import fairlab as fl
from fairlab import cli
from fairlab.checking import fixed_csv
from fairlab.cli.pairs import PairOptions, load_pool
from fairlab.files import read_csv, read_json_lines, read_text

HEADER = "prompt_a,prompt_b"
FRENCH = "La vieille élève est sortie,La jeune élève est sortie"


def file_of(tmp_path, content, name="mine.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table_of(tmp_path, *rows, header=HEADER):
    return file_of(tmp_path, "\n".join([header, *rows]) + "\n")


# ---- letters


OTHERS = {
    "cp1252": ("cp1252", FRENCH),
    "latin-2": ("iso8859-2", "Stary człowiek wyszedł,Młody człowiek wyszedł"),
    "Cyrillic": ("cp1251", "Старый повар ушёл,Молодой повар ушёл"),
    "Mac Roman": ("mac_roman", "La señora vieja salió,La señora joven salió"),
    "GBK": ("gbk", "老厨师走了,小厨师走了"),
    "Shift-JIS": ("shift_jis", "ふるい人,わかい人"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_old_encoding_is_told_or_refused_by_every_reader(name, tmp_path):
    """None of them is read without a word: a guess shows the first letters that may be wrong."""
    encoding, row = OTHERS[name]
    table = file_of(tmp_path, f"{HEADER}\n{row}\n".encode(encoding))
    rows = file_of(tmp_path, f'\n{{"text": "{row}"}}\n'.encode(encoding), "mine.jsonl")
    prose = file_of(tmp_path, f"A line.\n{row}\n".encode(encoding), "mine.txt")
    readers = [
        (table, fl.read_pairs),
        (table, fl.check_file),
        (table, lambda path: read_csv("data", path, ["prompt_a"])),
        (rows, lambda path: read_json_lines("data", path)),
        (prose, lambda path: read_text("text", path)),
    ]
    for path, read in readers:
        try:
            wrong = path.read_bytes().decode("cp1252")
        except UnicodeDecodeError:
            with pytest.raises(ValueError, match=r"mine\.\w+ is no text .* line 2 holds .*UTF-8"):
                read(path)
            continue
        with pytest.warns(
            UserWarning, match=r"mine\.\w+ is no UTF-8 .* line 2 has .*UTF-8"
        ) as told:
            read(path)
        word = re.search('line 2 has "(.*?)"', str(told[0].message))[1]
        assert not word.isascii() and word in wrong.split("\n")[1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.filterwarnings("error")
def test_what_is_sure_is_read_without_a_word(encoding, tmp_path):
    path = file_of(tmp_path, f"{HEADER}\r\n{FRENCH}\r\n".encode(encoding))
    checked = fl.check_file(path)
    (pair,) = checked.valid
    assert pair.prompt_b == "La jeune élève est sortie"
    assert not [notice for notice in checked.notices if "cp1252" in notice.what]


@pytest.mark.filterwarnings("ignore:path")
def test_a_guess_stands_among_the_notices(tmp_path):
    (first, *_) = fl.check_file(file_of(tmp_path, f"{HEADER}\n{FRENCH}\n".encode("cp1252"))).notices
    assert str(first) == (
        'the file: is no UTF-8 and was read as cp1252 (Windows), so that line 2 has "élève"; if a '
        "letter there is wrong, open the file in its program and save it as CSV in UTF-8 (prose as "
        "plain text)"
    )


BYTES = {
    "no letter of cp1252": (b"prompt_a\nA\nB \x81 \xe9\n", "line 3 holds the byte 0x81"),
    "UTF-16 without a mark": ("a,b\nc,d".encode("utf-16-le"), "line 1 holds the byte 0x00"),
    "a mark, and no UTF-8": (b"\xef\xbb\xbfa\nb\n\xe9t\xe9\n", "line 3 holds the byte 0xe9"),
    "half of UTF-16": (b"\xff\xfea\0b", "line 1 holds the byte"),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_letter_are_named_with_their_line(name, tmp_path):
    content, says = BYTES[name]
    with pytest.raises(ValueError, match=rf"data: .*mine\.csv is no text.*{says}.*save it as CSV"):
        read_text("data", file_of(tmp_path, content))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


@pytest.mark.parametrize("read", [fl.read_pairs, lambda path: read_json_lines("path", path)])
def test_a_pointer_of_git_lfs_is_no_text(read, tmp_path):
    with pytest.raises(
        ValueError, match=r"path: .*mine\.csv is a pointer of Git LFS.*git lfs pull"
    ):
        read(file_of(tmp_path, POINTER))


# ---- sentences


def spellings(sentence, draw):
    """Write a sentence as it may stand in two rows of one file."""
    form = draw.choice(["NFC", "NFD"])
    quotes = draw.choice(["'", "’", "‘"])
    end = draw.choice(["", ".", "…", "!"])
    first = draw.choice([sentence[0], sentence[0].lower()])
    return unicodedata.normalize(form, (first + sentence[1:]).replace("'", quotes) + end)


SENTENCES = [
    "L'élève {} était sorti hier",
    "Café {} à côté",
    "Le garçon {} n'a pas dîné",
    "Ma mère {} l'a vu très tôt",
    "{} élèves",
    "Où {} naît",
]


def test_no_sentence_is_on_both_sides_however_it_is_written(tmp_path):
    for seed in range(20):
        draw = random.Random(seed)
        rows, sentences = [], []
        for sentence in draw.choices(SENTENCES, k=12):
            written = spellings(sentence, draw)
            word = f"mot{len(rows)}"
            rows.append(f'"{written.format(word)}","{written.format(word + "x")}"')
            sentences.append(sentence)
        sides = {}
        for pair, sentence in zip(fl.read_pairs(table_of(tmp_path, *rows)), sentences, strict=True):
            sides.setdefault(sentence, set()).add(pair.split)
        assert all(len(splits) == 1 for splits in sides.values()), (seed, sides)
        assert len(set.union(*sides.values())) == 2


def test_a_split_that_tears_a_sentence_apart_is_refused(tmp_path):
    rows = ["Le café {} était clos,train", "le café {} était clos.,held_out"]
    rows = [
        unicodedata.normalize(form, f"{row.format(f'a{form}')},{row}".replace("{}", f"b{form}"))
        for form, row in zip(["NFC", "NFD"], rows, strict=True)
    ]
    lines = []
    for row in rows:
        a, split, b, _ = row.split(",")
        lines.append(f"{a},{b},{split}")
    path = table_of(tmp_path, *lines, header=f"{HEADER},split")
    with pytest.raises(ValueError, match=r"mine.csv .*row 3, split: held_out, and the same sent"):
        fl.read_pairs(path)


def test_the_bytes_of_an_accent_are_no_difference(tmp_path):
    row = ["Le café clos", unicodedata.normalize("NFD", "Le café clos")]
    with pytest.raises(ValueError, match=r"row 2: the prompts differ only in the bytes of an acc"):
        fl.read_pairs(table_of(tmp_path, ",".join(row)))
    rows = ["Le café bleu clos,Le café vert clos"]
    rows.append(unicodedata.normalize("NFD", rows[0]))
    with pytest.raises(ValueError, match=r"row 3: has the prompts of row 2; remove one of them"):
        fl.read_pairs(table_of(tmp_path, *rows))


# ---- what is guessed is told


FOUR = ["The {} cook sang", "My {} friend slept", "Two {} guests ate", "That {} clerk wrote"]
GUESSED_OF_FOUR = [
    'template, of 4 rows taken from the prompts: "The {} cook sang", "My {} friend slept", '
    '"Two {} guests ate" and 1 more',
    "split, every third sentence of a category held out; "
    'train: "The {} cook sang", "Two {} guests ate", "That {} clerk wrote"; '
    'held_out: "My {} friend slept"',
]


def rows_of(sentences, *more):
    return [",".join([s.format("old"), s.format("young"), *more]) for s in sentences]


def test_sentences_and_split_are_told_where_the_file_is_read(tmp_path, capfd):
    """By a warning, as all that the package says unasked: whoever knows it can turn it off."""
    path = table_of(tmp_path, *rows_of(FOUR))
    with pytest.warns(UserWarning) as told:
        pairs = fl.read_pairs(path)
    (warning,) = told
    lines = [f"{path} leaves this out, and it was filled in:", *GUESSED_OF_FOUR]
    assert (str(warning.message), warning.filename) == ("\n  ".join(lines), __file__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fl.read_pairs(path) == pairs
    assert capfd.readouterr() == ("", "")
    held_out = [pair.template for pair in pairs if pair.split == "held_out"]
    assert held_out == ["My {} friend slept"]


def test_what_the_file_says_is_not_told(tmp_path, recwarn):
    rows = [f"{s.format('old')},{s.format('young')},{s},train" for s in FOUR]
    fl.read_pairs(table_of(tmp_path, *rows, header=f"{HEADER},template,split"))
    assert not recwarn
    rows[2] = rows[2].replace("Two {} guests ate", "")
    path = table_of(tmp_path, *rows, header=f"{HEADER},template,split")
    (guess,) = fl.check_file(path).guessed
    assert guess == 'template, of 1 row taken from the prompts: "Two {} guests ate"'


def test_only_valid_rows_are_told_and_nothing_steers_the_terminal(tmp_path):
    rows = [*rows_of(FOUR[:1]), "The \x1b[2J old man,The \x1b[2J new man", "A lonely old cat,"]
    checked = fl.check_file(table_of(tmp_path, *rows))
    template, split = checked.guessed
    assert (
        template.endswith(r': "The {} cook sang", "The \x1b[2J {} man"') and "lonely" not in split
    )
    assert fl.check_file(table_of(tmp_path, "A lonely old cat,")).guessed == []


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_check_says_what_was_filled_in(more, tmp_path, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr("fairlab.models.load_tokenizer", lambda name: tokenizer)
    path = table_of(tmp_path, *rows_of(FOUR))
    monkeypatch.setattr("sys.argv", ["fairlab", "check", str(path), *more])
    with pytest.raises(SystemExit):
        cli.main()
    out = capsys.readouterr().out
    if more:
        assert json.loads(out)["guessed"] == GUESSED_OF_FOUR
    else:
        assert "\n".join(["", "Left out by the file, and filled in:", *GUESSED_OF_FOUR]) in out


def test_a_command_says_it_once(tmp_path, tokenizer, capsys):
    path = table_of(tmp_path, *rows_of(FOUR))
    options = PairOptions(str(path), None, None, "en", skip_invalid=False)
    load_pool(tokenizer, options)
    told = capsys.readouterr().err
    assert told.startswith(f"fairlab: {path} leaves this out") and told.count("held out") == 1
    load_pool(tokenizer, options)
    assert capsys.readouterr().err == ""


# ---- rows and lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_line_is_named_where_cells_hold_line_breaks(end, tmp_path):
    """The row is a spreadsheet's, the line an editor's."""
    text = f'{HEADER}\n"The old\ncook left","The young\ncook left"\n\nThe old cook,\n'
    path = file_of(tmp_path, text.replace("\n", end))
    (problem,) = fl.check_file(path).problems
    assert str(problem).startswith("row 4 (line 6), prompt_b: lacks a prompt; write it")
    (problem,) = fl.check_file(table_of(tmp_path, "The old cook,")).problems
    assert str(problem).startswith("row 2, prompt_b: lacks")  # the same number: said once
    path = file_of(tmp_path, f'sep=,\n{HEADER}\n"The old\ncook left",The young cook left\nA,\n')
    assert str(fl.check_file(path).problems[0]).startswith("row 3 (line 5), prompt_b")


def test_a_quotation_mark_that_is_not_closed_has_row_and_line(tmp_path):
    rows = ['"The old\ncook left","The young\ncook left"', 'The old man left,"The young man left']
    says = r"mine\.csv can't be read after row 2 \(from line 5 on: .*write it twice"
    with pytest.raises(ValueError, match=says):
        fl.read_pairs(table_of(tmp_path, *rows))


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_what_python_takes_for_a_line_end_is_none(mark, tmp_path):
    rows = [f"The old{mark}cook left,The young{mark}cook left", "The old man sat,"]
    checked = fl.check_file(table_of(tmp_path, *rows))
    assert checked.pairs[2].prompt_a == f"The old{mark}cook left"
    assert [problem.row for problem in checked.problems] == [3] and not checked.problems[0].line


def test_a_cell_may_be_a_book(tmp_path):
    import csv

    page, before = "The tide comes in. " * 20_000, csv.field_size_limit()
    path = file_of(tmp_path, f'page,n\n"{page}",1\n')
    assert read_csv("data", path, ["page"]).as_dicts() == [{"page": page, "n": "1"}]
    assert csv.field_size_limit() == before
    path = file_of(tmp_path, f'page,n\n"{page},1\n')
    with pytest.raises(ValueError, match=r"mine\.csv can't be read after row 1 \(from line 2 on"):
        read_csv("data", path, ["page"])
    assert csv.field_size_limit() == before


SLIPS = {
    "an id twice": (
        "id,prompt_a,prompt_b", ["x,An old man,A young man", "x,An old cat,A young cat"],
        r"row 3, id: 'x' is also that of row 2; change it",
    ),
    "a split in capitals": (
        "prompt_a,prompt_b,split", ["An old man,A young man,Train"],
        r"row 2, split: split must be train, .*; got 'Train'; write one of them",
    ),
    "a sequence for terminals": (
        "id,prompt_a,prompt_b", ["\x1b[2J,An old man,A young man"] * 2,
        r"row 3, id: '\\x1b\[2J' is also that of row 2",
    ),
    "a cell too many": (
        HEADER, ["An old man, tired,A young man"],
        r"row 2: 3 cells, and the header has 2; put a cell with a separator in it in quot",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLIPS)
def test_slips_are_named_with_file_row_and_remedy(name, tmp_path):
    header, rows, says = SLIPS[name]
    with pytest.raises(ValueError, match=rf"path: .*mine\.csv have problems: .*{says}") as refused:
        fl.read_pairs(table_of(tmp_path, *rows, header=header))
    assert "\x1b" not in str(refused.value)


def test_what_steers_a_terminal_is_shown_as_letters(tmp_path):
    path = table_of(tmp_path, "x", header=f"{HEADER},\x1b[2Jnote")
    assert "\\x1b[2Jnote" in str(fl.check_file(path).notices[0])


# ---- JSON lines


BROKEN = {
    "NaN": ('{"a": NaN}', "NaN is no number there"),
    "infinity": ('{"a": [-Infinity]}', "-Infinity is no number"),
    "a name twice": ('{"a": 1, "b": {"c": 1, "c": 2}}', "the name 'c' stands twice"),
    "half of a letter": ('{"a": "\\ud83d"}', "surrogates not allowed"),
    "half of an object": ('{"a": ', "is no JSON"),
    "a list": ("[1]", "needs an object"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_line_that_is_no_object_is_named_with_its_line(name, tmp_path):
    line, says = BROKEN[name]
    path = file_of(tmp_path, '{"a": "\u2028"}\r\n\r\n' + line + "\r\n", "mine.jsonl")
    with pytest.raises(ValueError, match=rf"data: line 3 of .*mine\.jsonl .*{says}"):
        read_json_lines("data", path)


PAIRS = [
    {"prompt_a": "The old\u2028cook left", "prompt_b": "The young\u2028cook left", "id": None},
    {"Prompt_A ": "La élève vieja salió", "prompt_b": "La élève joven salió", "note": [1]},
]


def lines_of(*rows, end="\n"):
    return end.join(row if isinstance(row, str) else json.dumps(row) for row in rows) + end


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_pairs_of_json_lines_are_those_of_the_same_table(encoding, end, ascii_only, tmp_path):
    named = [dict(zip(["prompt_a", "prompt_b"], row.values(), strict=False)) for row in PAIRS]
    rows = [json.dumps(row | {"note": 1}, ensure_ascii=ascii_only) for row in named]
    text = end.join(["", rows[0], "", rows[1], ""])
    checked = fl.check_file(file_of(tmp_path, text.encode(encoding), "mine.JSONL"))
    cells = [",".join(row.values()) for row in named]
    table = fl.check_file(table_of(tmp_path, "", cells[0], "", cells[1]))
    assert list(checked.pairs) == [2, 4] and list(table.pairs) == [3, 5]
    own = {"id": ""}
    assert [replace(pair, **own) for pair in checked.valid] == [
        replace(pair, **own) for pair in table.valid
    ]
    assert checked.form == f"{encoding}, a JSON object on each line"
    assert [str(notice) for notice in checked.notices] == [
        "the file: not used: note; the columns that are read are prompt_a, prompt_b, attribute_a, "
        "attribute_b, category, template, split, attribute_split, id, harsher, kinder",
        *map(str, table.notices),
    ]
    assert fl.read_pairs(checked.path) == checked.valid
    assert fixed_csv(checked).count("\n") == 3


def test_json_lines_in_cp1252_are_told(tmp_path):
    row = json.dumps(PAIRS[1], ensure_ascii=False).replace("Prompt_A ", "prompt_a")
    path = file_of(tmp_path, row.encode("cp1252"), "mine.jsonl")
    with pytest.warns(UserWarning, match='mine.jsonl is no UTF-8 .* line 1 has "élève"'):
        (pair,) = fl.read_pairs(path)
    assert pair.prompt_a == "La élève vieja salió"


GOOD = {"prompt_a": "The old cook left", "prompt_b": "The young cook left"}
NO_PAIRS = {
    **{name: (line, rf"line 3 of .*mine\.jsonl .*{says}") for name, (line, says) in BROKEN.items()},
    "a number": (GOOD | {"split": 1}, r"line 3 of .*: split must be a text; got 1; .*quotation"),
    "answers in a list": (
        GOOD | {"kinder": ["a"]},
        r'line 3 of .*: kinder must be a text; got \["a"\]',
    ),
    "a split": (GOOD | {"split": "Train"}, "line 3, split: split must be train, .*; got 'Train'"),
    "no prompt": ({"prompt_a": "The old cook sang"}, "line 3, prompt_b: lacks a prompt; write it"),
    "again": (GOOD, "line 3: has the prompts of row 1; remove one"),
    "capitals": (GOOD | {"PROMPT_A": "x"}, "has the column prompt_a twice; keep one"),
}


@pytest.mark.parametrize("name", NO_PAIRS)
def test_what_is_wrong_with_json_lines_has_file_line_and_remedy(name, tmp_path):
    row, says = NO_PAIRS[name]
    first = GOOD | ({"split": "train"} if "split" in str(row) else {})
    path = file_of(tmp_path, lines_of(first, "", row), "mine.jsonl")
    with pytest.raises(ValueError, match=rf"path: .*{says}"):
        fl.read_pairs(path)


@pytest.mark.parametrize("text", ["", "\n", "\ufeff\n"])
def test_json_lines_without_a_pair_are_refused(text, tmp_path):
    with pytest.raises(ValueError, match=r"path: .*mine\.jsonl .*got none"):
        fl.read_pairs(file_of(tmp_path, text, "mine.jsonl"))


def test_commands_take_json_lines(tmp_path, tokenizer, monkeypatch, capsys):
    rows = [dict(zip(GOOD, row.split(","), strict=True)) for row in rows_of(FOUR)]
    path = file_of(tmp_path, lines_of(*rows), "mine.jsonl")
    options = PairOptions(str(path), None, None, "en", skip_invalid=False)
    assert [pair.id for pair in load_pool(tokenizer, options)] == [f"row-{n}" for n in range(1, 5)]
    capsys.readouterr()
    monkeypatch.setattr("fairlab.models.load_tokenizer", lambda name: tokenizer)
    words = ["check", str(path), "--fix", str(tmp_path / "fixed.jsonl")]
    monkeypatch.setattr("sys.argv", ["fairlab", *words])
    with pytest.raises(SystemExit):
        cli.main()
    assert "fix: expected a name for a CSV file; got" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["mine.jsonl"]


def test_letters_of_two_halves_are_letters(tmp_path):
    rows = [{"a": "\U0001f600 é \u2028"}, {"a": 1.5}]
    text = "\r\n".join(map(json.dumps, rows))
    assert read_json_lines("data", file_of(tmp_path, text)) == rows
