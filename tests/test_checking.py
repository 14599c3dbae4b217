import csv
import json
from collections import defaultdict

import pytest

import fairlab as fl
from fairlab import cli
from fairlab.checking import fixed_csv
from fairlab.cli.output import split_counts
from fairlab.cli.pairs import PairOptions, load_pool

SENTENCES = (
    "The {} man called the office, and",
    "My {} friend read the letter. Then",
    "Two {} guests came to",
    "The {} cook closed the door and",
)
HEADER = "prompt_a,prompt_b"
ROW = "The old cook left,The young cook left"


@pytest.fixture
def write(tmp_path):
    """Write a function that writes a file of lines, or of bytes."""

    def write(*lines, name="mine.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes("\n".join(lines).encode(encoding))
        return path

    return write


def rows_of(sentences, words=(("old", "young"),), *more):
    """Return lines of CSV, quoted, one for each sentence and pair of words."""
    return [
        ",".join(f'"{cell}"' for cell in (s.replace("{}", a), s.replace("{}", b), *more))
        for s in sentences
        for a, b in words
    ]


def found(checked):
    return [str(problem) for problem in checked.problems]


def told(checked):
    return [str(notice) for notice in checked.notices]


# ---- how spreadsheets write


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_every_form_of_a_spreadsheet_is_read_alike(write, separator, encoding):
    lines = ["prompt_a|prompt_b|category", "La señora vieja salió|La señora joven salió|edad"]
    text = [line.replace("|", separator) for line in lines]
    path = write(*text, encoding=encoding, name="MINE.CSV")
    pair = fl.PromptPair(
        "La señora vieja salió", "La señora joven salió", "vieja", "joven", "edad",
        "La señora {} salió", "train", "", "row-2",
    )  # fmt: skip
    assert fl.read_pairs(path) == [pair]
    names = {",": "commas", ";": "semicolons", "\t": "tabs"}
    assert fl.check_file(path).form == f"{encoding}, {names[separator]} between the cells"


def test_the_line_that_tells_excel_the_separator_is_no_header(write):
    assert fl.check_file(write("sep=;", "prompt_a;prompt_b", "A old;A new")).valid


def test_headers_may_have_blanks_and_capitals_and_other_columns_are_named_once(write):
    path = write(" Prompt_A ,PROMPT_B,Note,,source", f"{ROW},x,,y", f"{ROW[:-4]}sat,x,,y")
    checked = fl.check_file(write(" Prompt_A ,PROMPT_B,Note,,source", f"{ROW},x,,y"))
    assert next(pair.prompt_b for pair in fl.read_pairs(path)) == "The young cook left"
    assert str(checked.notices[0]) == (
        "row 1: not used: Note, source; the columns that are read are prompt_a, prompt_b, "
        "attribute_a, attribute_b, category, template, split, attribute_split, id, harsher, kinder"
    )


def test_empty_rows_and_line_breaks_in_cells_keep_the_numbers_of_the_spreadsheet(write):
    path = write(
        "", HEADER, "", '"The old\ncook left","The young\ncook left"', ",", "The old cook,"
    )
    checked = fl.check_file(path)
    assert list(checked.pairs) == [4, 6]
    assert checked.pairs[4].prompt_a == "The old\ncook left"
    assert found(checked) == [
        "row 6 (line 8), prompt_b: lacks a prompt; write it, or remove the row"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04...", "is a workbook or an archive, no text file; open it in its program"),
        (b"\x89PNG\x0d\x0a\x00\x81", "is no text in UTF-8, UTF-16 or cp1252"),
        ("prompt_a,prompt_b\nx,y".encode("utf-16-le"), "is no text in UTF-8, .* save it as CSV in"),
    ],
)
def test_what_is_no_text_is_one_sentence(tmp_path, content, message):
    (tmp_path / "mine.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"path: .*mine.csv {message}"):
        fl.read_pairs(tmp_path / "mine.csv")


# ---- each kind of problem


@pytest.mark.parametrize(
    ("lines", "problems"),
    [
        (
            [HEADER, "The old cook ,The young cook "],
            [
                "row 2, prompt_a: ends in a blank; take the blanks away (--fix does)",
                "row 2, prompt_b: ends in a blank; take the blanks away (--fix does)",
            ],
        ),
        (
            [HEADER, " The old  cook,The young cook"],
            [
                "row 2, prompt_a: begins with a blank and has several blanks in a row; "
                "take the blanks away (--fix does)"
            ],
        ),
        (
            [HEADER, ",The young cook", "The old cook"],
            [
                "row 2, prompt_a: lacks a prompt; write it, or remove the row",
                "row 3, prompt_b: lacks a prompt; write it, or remove the row",
            ],
        ),
        (
            [HEADER, "The old cook left,The young cook left, and"],
            [
                "row 2: 3 cells, and the header has 2; "
                "put a cell with a separator in it in quotation marks"
            ],
        ),
        (
            [f"{HEADER},template", f"{ROW},The {{}} cook sang"],
            [
                "row 2, template: is not the sentence of prompt_a: 'The {} cook sang' and "
                "'The old cook left'; write the sentence with {} in it, or leave the cell empty"
            ],
        ),
        (
            [f"{HEADER},template", f"{ROW},The cook left"],
            [
                "row 2, template: needs exactly one {}; got 'The cook left'; "
                "write {} where the words go, and nowhere else"
            ],
        ),
        (
            [f"{HEADER},attribute_a,attribute_b", "The odd cook,The old cook,old,odd"],
            [
                "row 2, attribute_a: is 'old', and prompt_a has 'odd' there; "
                "write the word of the prompt, or leave the cell empty",
                "row 2, attribute_b: is 'odd', and prompt_b has 'old' there; "
                "write the word of the prompt, or leave the cell empty",
            ],
        ),
        (  # words may take other forms in the sentence, and stand for a noun, too
            [f"{HEADER},attribute_a,template", "Two women sat,Two men sat,woman,Two {} guests sat"],
            [],
        ),
        (  # another noun in the place of the template's
            [
                f"{HEADER},template",
                "The Black driver was stopped,The white driver was stopped,The {} cook was stopped",
                "The Black driver left at 9,The white cook left at 9,The {} cook left at 9",
            ],
            [
                "row 2, template: is not the sentence of prompt_a: 'The {} cook was stopped' and "
                "'The Black driver was stopped'; "
                "write the sentence with {} in it, or leave the cell empty",
                "row 3, template: is not the sentence of prompt_a: 'The {} cook left at 9' and "
                "'The Black driver left at 9'; "
                "write the sentence with {} in it, or leave the cell empty",
            ],
        ),
        (  # a word for two, on one side or on both, or no word at all
            [
                f"{HEADER},template",
                "The woman left at 9,The male cook left at 9,The {} cook left at 9",
                "The old lady left at 8,The old gentleman left at 8,The {} cook left at 8",
                "Two men left at 7,Two old men left at 7,Two {} men left at 7",
            ],
            [],
        ),
        (  # one shared letter is no other form of a word, nor is one word part of another
            [
                f"{HEADER},attribute_a,attribute_b",
                "The Black cook left,The white cook left,Brazilian,wealthy",
                "Two mothers sat,Two fathers sat,grandmother,father",
            ],
            [
                "row 2, attribute_a: is 'Brazilian', and prompt_a has 'Black' there; "
                "write the word of the prompt, or leave the cell empty",
                "row 2, attribute_b: is 'wealthy', and prompt_b has 'white' there; "
                "write the word of the prompt, or leave the cell empty",
                "row 3, attribute_a: is 'grandmother', and prompt_a has 'mothers' there; "
                "write the word of the prompt, or leave the cell empty",
            ],
        ),
        (
            [
                f"{HEADER},attribute_a,attribute_b",
                "Two men sat,Two ladies sat,man,lady",
                "Vier Männer saßen,Vier Frauen saßen,Mann,Frau",
                "Her wives sat,Her geese sat,wife,goose",
                "Our African American aunt sat,Our white aunt sat,African Americans,White",
            ],
            [],
        ),
        (
            [f"{HEADER},id", f"{ROW},one", "My old aunt,My young aunt,one"],
            ["row 3, id: 'one' is also that of row 2; change it"],
        ),
        (
            [HEADER, ROW, "My old aunt,My young aunt", ROW],
            ["row 4: has the prompts of row 2; remove one of them"],
        ),
        (
            [HEADER, ROW, "The young cook left,The old cook left"],
            ["row 3: has the prompts of row 2, the other way round; remove one of them"],
        ),
        (
            [f"{HEADER},split", f"{ROW},train", "The new cook left,The hot cook left,held_out"],
            [
                "row 3, split: held_out, and the same sentence is train in row 2; "
                "give all rows of a sentence one split"
            ],
        ),
        (
            [f"{HEADER},split,attribute_split", f"{ROW},train,test", "My old x,My new x,,train"],
            [
                "row 2, attribute_split: attribute_split must be train or held_out; got 'test'; "
                "write one of them",
                "row 3, split: split must be train, validation or held_out; got ''; "
                "write one of them",
            ],
        ),
    ],
)
def test_every_kind_of_problem_is_named_with_row_and_remedy(write, lines, problems):
    checked = fl.check_file(write(*lines))
    assert found(checked) == problems
    rows = {problem.row for problem in checked.problems}
    assert checked.valid == [pair for row, pair in checked.pairs.items() if row not in rows]
    if not problems:
        return
    with pytest.raises(ValueError, match=r"path: \d of \d rows of .*fairlab check .*mine.csv"):
        fl.read_pairs(write(*lines))


def test_all_problems_are_listed_at_once(write):
    lines = [f"The old cook {n} ,The young cook {n}" for n in range(40)]
    assert len(found(fl.check_file(write(HEADER, *lines)))) == 40


def test_a_sentence_is_known_under_another_template(write):
    """Words at the slot are those of the pair: "African American" beside "Black"."""
    words = [("Black", "white"), ("African American", "European American")]
    pairs = fl.read_pairs(write(HEADER, *rows_of(SENTENCES, words)))
    assert {pair.template for pair in pairs} == set(SENTENCES)
    assert [(p.attribute_a, p.attribute_b) for p in pairs[:2]] == words
    splits = defaultdict(set)
    for pair in pairs:
        splits[pair.template].add(pair.split)
    assert sorted(map(sorted, splits.values())) == [["held_out"], ["train"], ["train"], ["train"]]
    # with templates of one's own that say otherwise, it is a problem
    lines = [
        *rows_of(SENTENCES[:1], words[:1], SENTENCES[0], "train"),
        *rows_of(SENTENCES[:1], words[1:], SENTENCES[0].replace("{}", "{} American"), "held_out"),
    ]
    assert found(fl.check_file(write(f"{HEADER},template,split", *lines))) == [
        "row 3, split: held_out, and the same sentence is train in row 2, under another template; "
        "give all rows of a sentence one split"
    ]


def test_a_mark_after_both_words_belongs_to_the_sentence(write):
    lines = ['"They met Emily, who","They met Ann, who"', "I saw a nurse?!,I saw a cook?!"]
    lines += ["It was old.,It was young!", '"Then (so) Emily, ran","Then (so) Ann, ran"']
    pairs = fl.check_file(write(HEADER, *lines)).valid
    templates = ["They met {}, who", "I saw a {}?!", "It was {}", "Then (so) {}, ran"]
    assert [pair.template for pair in pairs] == templates
    words = [("Emily", "Ann"), ("nurse", "cook"), ("old.", "young!"), ("Emily", "Ann")]
    assert [(pair.attribute_a, pair.attribute_b) for pair in pairs] == words


def test_a_script_without_blanks_is_told_apart_by_characters(write):
    pairs = fl.read_pairs(write(HEADER, "老厨师走了,小厨师走了", "老师傅来,小师傅来"))
    assert [pair.template for pair in pairs] == ["{}厨师走了", "{}师傅来"]
    assert [pair.split for pair in pairs] == ["train", "held_out"]


@pytest.mark.parametrize(
    ("sentence", "words", "noticed"),
    [
        ("A {} man sat on the bench", ("Asian", "white"), ['prompt_a: "A Asian"']),
        ("Then an {} man sat on the", ("Asian", "white"), ['prompt_b: "an white"']),
        ("A {} man sat on the bench", ("European", "Ukrainian"), []),
        ("An {} man sat on the bench", ("honest", "unimportant"), []),
        ("The {} man sat on the bench", ("Asian", "white"), []),
        ("Vimos a {} en la calle", ("Ana", "Juan"), []),  # no English
        # without a word that tells English, and behind a quotation mark
        ("A {} man sat down, then left", ("Asian", "white"), ['prompt_a: "A Asian"']),
        ("“A {} driver lives in Los Alamos", ("Asian", "white"), ['prompt_a: "A Asian"']),
    ],
)
def test_a_and_an_are_noticed_in_english(write, sentence, words, noticed):
    checked = fl.check_file(write(HEADER, *rows_of([sentence], [words])))
    articles = [str(notice) for notice in checked.notices if notice.column.startswith("prompt")]
    rest = ': a and an change with the word; open the slot with "The", "My" or "Two"'
    assert articles == [f"row 2, {start}{rest}" for start in noticed]
    assert len(checked.valid) == 1


def test_a_and_an_are_told_by_every_command(tokenizer, write, capsys):
    sentences = [f"A {{}} man number {n} sat down" for n in range(4)]
    path = write(HEADER, *rows_of(sentences, [("Asian", "white")]))
    assert len(load_pool(tokenizer, options_for(path))) == 4
    rest = 'a and an change with the word; open the slot with "The", "My" or "Two"'
    assert capsys.readouterr().err.startswith(
        f"fairlab: a or an does not fit the word in 4 prompts of {path}:\n"
        f'  row 2, prompt_a: "A Asian": {rest}\n'
        f'  row 3, prompt_a: "A Asian": {rest}\n'
        f'  row 4, prompt_a: "A Asian": {rest}\n'
        "  … and 1 more\n"
    )
    load_pool(tokenizer, options_for(write(HEADER, *rows_of(SENTENCES))))
    assert "a or an" not in capsys.readouterr().err


def test_empty_cells_are_noticed_with_what_takes_their_place(write):
    lines = [f"{HEADER},category,id,template", f"{ROW},,,", "My old x,My new x,age,two,My {} x"]
    checked = fl.check_file(write(*lines))
    assert [str(notice) for notice in checked.notices[:3]] == [
        "row 2, id: is empty; the row's number is its id",
        'row 2, category: is empty; the category is "custom"',
        "row 2, template: is empty; it is taken from the prompts",
    ]
    assert [pair.id for pair in checked.valid] == ["row-2", "two"]


# ---- tokens


def test_words_of_unlike_length_are_shown_with_words_that_fit(tokenizer, write):
    lines = ["The old cook sang,The Luxembourgish cook sang,age", "My big aunt,My big aunt,age"]
    lines += ["My old aunt was old,My new aunt was new,x", "El tío viejo,El tío joven,x"]
    checked = fl.check_file(write(f"{HEADER},category", *lines), tokenizer=tokenizer)
    assert told(checked)[:2] == [
        "the file: in 2 of 4 rows the two prompts differ in their number of tokens; gap and "
        "decision gap are measured, and guarded and attribution scores take these rows; the "
        "article's metric and scores that compare token by token can't; part of such a gap may "
        "come from the length, so some neutral pairs should differ by as much",
        'row 2: 4 and 5 tokens: "old" is 1 (old), "Luxembourgish" is 2 (Luxembourg|ish); in place '
        'of "Luxembourgish" these have as many tokens: "young", "younger", "youthful"',
    ]
    assert found(checked) == [
        "row 3: the prompts do not differ; write another word in one of them",
        "row 4: the prompts differ in more than one place; change one word, or words in a row",
    ]
    for word in ("young", "younger", "youthful"):
        fits = fl.PromptPair("The old cook sang", f"The {word} cook sang")
        assert fl.check_pairs(tokenizer, [fits]).valid[0]
    # the same rows as by check_pairs: there is one definition
    pairs = list(checked.pairs.values())
    table = fl.check_pairs(tokenizer, pairs)
    assert table.valid.tolist() == [False] * 4  # none of them can be compared token by token
    valid = [pair for pair, holds in zip(pairs, table.measurable, strict=True) if holds]
    assert [pair.id for pair in checked.valid] == [pair.id for pair in valid] == ["row-2", "row-5"]


def test_fairlabs_spanish_pairs_of_unequal_length_are_noticed(tokenizer):
    path = fl.data_path("prompts/pairs_es.csv")
    pairs = fl.load_pairs(language="es")
    table = fl.check_pairs(tokenizer, pairs)
    checked = fl.check_file(path, tokenizer=tokenizer)
    assert (checked.valid, checked.problems) == (pairs, ())
    by_token = [notice for notice in checked.notices if " tokens: " in notice.what]
    assert len(by_token) == (~table.valid).sum() == 24
    assert str(by_token[0]) == (
        'row 38: 31 and 30 tokens: "La mujer" is 4 (La|mu|j|er), "El hombre" is 3 (El|hom|bre); '
        'in place of "La mujer" these have as many tokens: "La madre"'
    )


@pytest.mark.parametrize("kind", ["pairs", "neutral"])
def test_fairlabs_english_pairs_have_no_problem(tokenizer, kind):
    checked = fl.check_file(fl.data_path(f"prompts/{kind}_en.csv"), tokenizer=tokenizer)
    assert (checked.problems, checked.notices) == ((), ())


# ---- answers


def test_answers_stand_in_the_columns_harsher_and_kinder(write):
    lists = ['"deny, reject",grant', "", ","]
    rows = [f"{row},{more}" for row, more in zip(rows_of(SENTENCES[:3]), lists, strict=True)]
    checked = fl.check_file(write(f"{HEADER},Harsher,kinder", *rows))
    assert (found(checked), told(checked)) == ([], [])
    assert checked.outcomes == {SENTENCES[0]: fl.Outcomes(("deny", "reject"), ("grant",))}
    assert fl.check_file(write(HEADER, ROW)).outcomes == {}


def test_answers_that_can_not_be_read_or_contradict_others_are_problems(write):
    words = [("old", "young"), ("big", "odd"), ("hot", "shy")]
    lists = ["deny,grant", "deny,", "deny,approve"]
    rows = [f"{row},{more}" for row, more in zip(rows_of(SENTENCES[:1], words), lists, strict=True)]
    checked = fl.check_file(write(f"{HEADER},harsher,kinder", *rows))
    assert found(checked) == [
        "row 3: kinder: expected answers without blanks around; got ('',); write answers with "
        "commas between them in both cells, or leave both empty",
        "row 4, harsher: other answers than row 2, which has the same sentence; give all rows of a "
        "sentence the same",
    ]


# ---- the split


def test_every_third_sentence_of_each_category_is_held_out(write):
    """Any category has a name of its own, those of the rows of a comparison too."""
    lines = []
    for category in ("headline", "neutral", "text", "decision; 1,5 %"):
        lines += rows_of([f"{s} {category}" for s in SENTENCES], [("old", "new")], category)
    pairs = fl.read_pairs(write(f"{HEADER},category", *lines))
    assert [pair.split for pair in pairs] == ["train", "held_out", "train", "train"] * 4
    assert split_counts(pairs)[:2] == [
        {"category": "headline", "split": "train", "sentences": 3, "pairs": 3},
        {"category": "headline", "split": "held_out", "sentences": 1, "pairs": 1},
    ]
    again = split_counts(pairs * 2)[0]  # the same sentences in other pairs
    assert (again["sentences"], again["pairs"]) == (3, 6)


@pytest.mark.parametrize(
    "members",
    [
        {"a": "0123", "b": "12", "c": "03"},
        {"a": "01", "b": "12", "c": "23", "d": "0123"},
        {"a": "012345", "b": "14", "c": "03"},
        {"a": "012345", "b": "1", "c": "25", "d": "14"},
    ],
)
def test_no_category_is_held_out_whole_or_not_at_all(write, members):
    sentences = [f"The {{}} man number {n} went home" for n in range(6)]
    lines, words = [], iter([("old", "new"), ("big", "odd"), ("hot", "shy"), ("sad", "mad")])
    for category, numbers in members.items():
        lines += rows_of([sentences[int(n)] for n in numbers], [next(words)], category)
    splits, of_template = defaultdict(set), defaultdict(set)
    for pair in fl.read_pairs(write(f"{HEADER},category", *lines)):
        splits[pair.category].add(pair.split)
        of_template[pair.template].add(pair.split)
    for category, numbers in members.items():
        assert len(splits[category]) == min(2, len(numbers)), category
    assert all(len(some) == 1 for some in of_template.values())


def test_a_category_that_cannot_be_split_is_noticed(write):
    checked = fl.check_file(write(HEADER, ROW))
    assert [str(notice) for notice in checked.notices] == [
        "the file: no valid pair of the category 'custom' is of the split held_out; "
        "add sentences, or say in a column split which are which"
    ]


# ---- the command line


@pytest.fixture
def run(tokenizer, monkeypatch, capsys):
    """Run the command line with the default tokenizer; return exit code, output and error."""
    monkeypatch.setattr("fairlab.models.load_tokenizer", lambda name: tokenizer)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["fairlab", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_check_prints_problems_notices_and_the_split(run, write):
    lines = [*rows_of(SENTENCES[:3]), f"{SENTENCES[3].replace('{}', 'old')} ,The young cook"]
    path = write(f"{HEADER},note", *(f"{line},x" for line in lines))
    assert run("check", path) == (
        2,
        f"""{path} (utf-8, commas between the cells): 3 of 4 rows are valid.

Problems:
row 5, prompt_a: ends in a blank; take the blanks away (--fix does)

Notices (no row is invalid for them):
the file: in 1 of 4 rows the two prompts differ in their number of tokens; gap and decision gap \
are measured, and guarded and attribution scores take these rows; the article's metric and scores \
that compare token by token can't; part of such a gap may come from the length, so some neutral \
pairs should differ by as much
row 1: not used: note; the columns that are read are prompt_a, prompt_b, attribute_a, attribute_b, \
category, template, split, attribute_split, id, harsher, kinder
row 5: 7 and 3 tokens: "old cook closed the door and" is 6 (old|cook|closed|the|door|and), "young \
cook" is 2 (young|cook); no other word of this category fits

Left out by the file, and filled in:
template, of 3 rows taken from the prompts: "The {{}} man called the office, and", "My {{}} friend \
read the letter. Then", "Two {{}} guests came to"
split, every third sentence of a category held out; train: "The {{}} man called the office, and", \
"Two {{}} guests came to"; held_out: "My {{}} friend read the letter. Then"

Split, every third sentence of a category held out:
custom, train: 2 sentences, 2 pairs
custom, held_out: 1 sentence, 1 pair
""",
        "",
    )


def test_check_fixes_blanks_and_nothing_else(run, write, tmp_path):
    lines = ["My old aunt ,My  young aunt,a note", f"{ROW},x", f"{ROW},y", "A b,A c,z"]
    path, out = write(f"{HEADER},note", *lines), tmp_path / "valid.csv"
    before = path.read_bytes()
    assert run("check", path, "--fix", path, "--force")[0] == 2  # an input is never overwritten
    code, printed, _ = run("check", path, "--fix", out)
    assert (code, f"surplus blanks, repaired: {out}" in printed) == (2, True)
    with out.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["prompt_a", "prompt_b", "note"],
            ["My old aunt", "My young aunt", "a note"],
            [*ROW.split(","), "x"],
            ["A b", "A c", "z"],
        ]
    assert run("check", out)[0] == 0
    code, _, error = run("check", path, "--fix", out)
    assert (code, "fix: " in error and "exists" in error) == (2, True)
    assert run("check", path, "--fix", out, "--force")[0] == 2
    assert path.read_bytes() == before


def test_a_fixed_file_is_written_as_excel_reads_it(write):
    checked = fl.check_file(
        write("prompt_a;prompt_b", "Señor viejo;Señor nuevo", encoding="cp1252")
    )
    assert fixed_csv(checked) == "\ufeffprompt_a,prompt_b\nSeñor viejo,Señor nuevo\n"


def test_names_can_be_audited(run, write):
    """Few of them fall into as many tokens; that is no problem, and no row is lost."""
    names = [("Emily", "Lakisha"), ("Greg", "Jamal"), ("Carrie", "Latoya")]
    sentences = ["They hired {}, and", "{} asked for a loan. The bank"]
    path = write(HEADER, *rows_of(sentences, names))
    code, out, err = run("check", path)
    assert (code, err) == (0, "")
    assert "6 of 6 rows are valid" in out and "in 4 of 6 rows the two prompts differ" in out
    # names of the same group come first, then others of the file
    row = 'row 5: 8 and 10 tokens: "Emily" is 1 (Emily), "Lakisha" is 3 (L|ak|isha); '
    assert f'{row}in place of "Emily" these have as many tokens: "Katie", "Katelyn"' in out
    assert 'in place of "Greg" these have as many tokens: "Brett", "Jay", "Brad"' in out
    path_of_others = write(HEADER, *rows_of(SENTENCES[:1], [("Emily", "Şehriban")]), name="o.csv")
    assert "; no other word of this category fits" in run("check", path_of_others)[1]
    facts = json.loads(run("check", path, "--json")[1])
    assert (facts["valid"], facts["problems"]) == (6, [])
    assert [notice["row"] for notice in facts["notices"]] == [0, 2, 3, 5, 6]


def test_check_answers_in_json(run, write):
    code, out, _ = run("check", write(HEADER, *rows_of(SENTENCES[:2])), "--json")
    facts = json.loads(out)
    assert (code, facts["rows"], facts["valid"], facts["problems"]) == (0, 2, 2, [])
    assert [part["split"] for part in facts["split"]] == ["train", "held_out"]
    code, out, _ = run("check", write(HEADER, ROW, ROW), "--json")
    assert (code, json.loads(out)["problems"]) == (
        2,
        [
            {
                "row": 3,
                "column": "",
                "what": "has the prompts of row 2",
                "remedy": "remove one of them",
            }
        ],
    )


def options_for(path, skip_invalid=False):
    return PairOptions(str(path), None, None, "en", skip_invalid)


def test_a_file_with_problems_is_refused_or_loses_these_rows(tokenizer, write, capsys):
    path = write(HEADER, f"{ROW} ", *rows_of(SENTENCES))
    with pytest.raises(ValueError, match=r"1 of 5 .*fairlab check .*mine.csv .*--skip-invalid"):
        load_pool(tokenizer, options_for(path))
    assert capsys.readouterr().err == ""
    pool = load_pool(tokenizer, options_for(path, skip_invalid=True))
    assert [pair.id for pair in pool] == ["row-3", "row-4", "row-5", "row-6"]
    assert [pair.split for pair in pool] == ["train", "held_out", "train", "train"]
    assert capsys.readouterr().err.startswith(
        f"fairlab: 1 of 5 rows of {path} left out, not valid:\n"
        "  row 2, prompt_b: ends in a blank; take the blanks away (--fix does)\n"
    )
    only = write(HEADER, f"{ROW} ", name="only.tsv")
    with pytest.raises(ValueError, match="1 of 1 rows of .*: no row is left"):
        load_pool(tokenizer, options_for(only, skip_invalid=True))
