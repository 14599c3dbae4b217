import csv
import importlib.util
import re
import unicodedata
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

import fairlab as fl
from fairlab.pairs import BLANKS, bare_ids, compare_ids, count_in_front, encode_pair
from tiny_models import tiny_model

ROOT = Path(__file__).parent.parent
CATEGORIES = {
    "race",
    "gender",
    "religion",
    "nationality",
    "age",
    "socioeconomic",
    "disability",
    "appearance",
}


def _builder():
    spec = importlib.util.spec_from_file_location("build_data", ROOT / "tools" / "build_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_script_makes():
    files = _builder().files()
    folder = ROOT / "data" / "prompts"
    assert set(files) == {f"prompts/{path.name}" for path in folder.glob("*.csv")}
    for name, rows in files.items():
        with (ROOT / "data" / name).open(encoding="utf-8", newline="") as file:
            assert list(csv.DictReader(file)) == rows, name


def test_english_pairs_have_the_breadth_that_the_data_card_states():
    pairs = fl.load_pairs()
    assert len(pairs) >= 300
    assert {pair.category for pair in pairs} == CATEGORIES
    templates = {pair.template: pair.split for pair in pairs}
    counts = {split: list(templates.values()).count(split) for split in set(templates.values())}
    assert counts == {"train": 12, "validation": 4, "held_out": 8}
    for category in CATEGORIES:
        splits = {
            (p.attribute_a, p.attribute_b): p.attribute_split for p in fl.load_pairs(category)
        }
        assert len(splits) >= 3
        assert list(splits.values()).count("held_out") == 1


def test_neutral_pairs_stand_in_the_same_templates():
    pairs, neutral = fl.load_pairs(), fl.load_pairs(kind="neutral")
    assert len(neutral) >= 150
    assert len({(pair.attribute_a, pair.attribute_b) for pair in neutral}) >= 12
    assert {(pair.template, pair.split) for pair in neutral} == {
        (pair.template, pair.split) for pair in pairs
    }


def _words(pairs):
    return {word for pair in pairs for word in (pair.attribute_a, pair.attribute_b)}


def _head_nouns(pairs):
    return {pair.template.split("{} ")[1].split(" ")[0].rstrip("s") for pair in pairs}


def test_the_test_split_has_the_breadth_that_the_data_card_states():
    pairs, neutral = fl.load_pairs(split="test"), fl.load_pairs(split="test", kind="neutral")
    assert (len(pairs), len(neutral)) == (284, 66)
    for pair in pairs + neutral:
        assert (pair.split, pair.attribute_split) == ("test", "test")
    templates = {pair.template for pair in pairs}
    assert len(templates) == 12
    assert {pair.template for pair in neutral} == templates
    assert {pair.category for pair in pairs} == CATEGORIES
    for category in CATEGORIES:
        assert len(_words(fl.load_pairs(category, split="test"))) == 6
    for category in ("mood", "time"):
        assert len(_words(fl.load_pairs(category, split="test", kind="neutral"))) == 6


def test_the_extra_templates_are_varied_and_stand_with_the_words_for_training():
    templates = {pair.template for pair in fl.load_pairs(split="extra")}
    assert len(templates) == 24
    for template in templates:
        assert 8 <= len(template.split()) <= 25, template
    # how many words stand before the slot, and which one just before it
    places = {template.split().index("{}") for template in templates}
    assert len(places) >= 8
    before = {template.split("{}")[0].split()[-1].lower() for template in templates}
    assert before == {"the", "my", "our", "this", "some", "several", "three"}  # no a, no an
    for kind in ("demographic", "neutral"):
        extra = fl.load_pairs(split="extra", kind=kind)
        assert {pair.template for pair in extra} == templates
        assert {pair.attribute_split for pair in extra} == {"train"}
        assert _words(extra) == _words(fl.load_pairs(split="train", kind=kind))


@pytest.mark.parametrize("split", ["test", "extra"])
@pytest.mark.parametrize("kind", ["demographic", "neutral"])
def test_only_its_name_opens_a_separate_split(kind, split):
    pairs, rest = fl.load_pairs(split=split, kind=kind), fl.load_pairs(kind=kind)
    assert {pair.split for pair in pairs} == {split}
    assert {pair.split for pair in rest} == {"train", "validation", "held_out"}
    assert fl.load_pairs(split=split, words="any", kind=kind) == pairs
    assert not {pair.id for pair in pairs} & {pair.id for pair in rest}
    assert not {pair.template for pair in pairs} & {pair.template for pair in rest}


def test_nothing_in_the_test_split_was_seen_before():
    """New templates, new people in them, new words, neutral words included."""
    new = fl.load_pairs(split="test") + fl.load_pairs(split="test", kind="neutral")
    known = fl.load_pairs() + fl.load_pairs(kind="neutral")
    known += fl.load_pairs(split="extra") + fl.load_pairs(split="extra", kind="neutral")
    assert not {pair.template for pair in new} & {pair.template for pair in known}
    assert not _head_nouns(new) & _head_nouns(known)
    assert not _words(new) & (_words(known) | _words([fl.ARTICLE_PAIR]))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "neutral"},
        {"language": "es"},
        {"split": "test"},
        {"split": "test", "kind": "neutral"},
        {"split": "extra"},
        {"split": "extra", "kind": "neutral"},
    ],
    ids=["en", "neutral", "es", "test", "test-neutral", "extra", "extra-neutral"],
)
def test_a_template_is_in_one_split_and_a_word_in_one_attribute_split(options):
    pairs = fl.load_pairs(**options)
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert len({(pair.prompt_a, pair.prompt_b) for pair in pairs}) == len(pairs)
    splits, attribute_splits = defaultdict(set), defaultdict(set)
    for pair in pairs:
        splits[pair.template].add(pair.split)
        attribute_splits[pair.category, pair.attribute_a, pair.attribute_b].add(
            pair.attribute_split
        )
    assert all(len(names) == 1 for names in (*splits.values(), *attribute_splits.values()))


@pytest.mark.parametrize("split", [None, "test", "extra"])
@pytest.mark.parametrize("kind", ["demographic", "neutral"])
def test_every_english_pair_is_valid_for_the_default_tokenizer(tokenizer, kind, split):
    pairs = fl.load_pairs(split=split, kind=kind)
    table = fl.check_pairs(tokenizer, pairs)
    assert table.valid.all(), table[~table.valid]
    for pair in pairs:
        if split != "extra":
            assert pair.prompt_a.split()[0] in {"The", "My", "Two"}
        assert pair.prompt_a.split()[0] == pair.prompt_b.split()[0]
        assert not re.search(
            r"\b(he|she|his|her|him|hers)\b", pair.prompt_a + pair.prompt_b, re.IGNORECASE
        )


def test_the_data_card_counts_the_spanish_pairs_that_hold(tokenizer):
    pairs = fl.load_pairs(language="es")
    table = fl.check_pairs(tokenizer, pairs)
    assert len(pairs) >= 60
    assert f"| `prompts/pairs_es.csv` | {table.valid.sum()} |" in (
        ROOT / "data" / "README.md"
    ).read_text(encoding="utf-8")
    for pair in pairs:  # the two noun phrases differ, the rest does not
        rest = pair.template.removeprefix("{}")
        assert pair.prompt_a == pair.attribute_a + rest
        assert pair.prompt_b == pair.attribute_b + rest


def _all_english_pairs():
    pairs = [fl.ARTICLE_PAIR]
    for kind in ("demographic", "neutral"):
        for split in (None, "test", "extra"):
            pairs += fl.load_pairs(split=split, kind=kind)
    return pairs


def test_every_template_has_harsher_and_kinder_outcomes():
    outcomes = fl.load_outcomes()
    assert set(outcomes) == {pair.template for pair in _all_english_pairs()}
    for template, lists in outcomes.items():
        continuations = lists.harsher + lists.kinder
        assert (len(lists.harsher), len(lists.kinder)) == (3, 3)
        assert len(set(continuations)) == 6, template  # none twice, none on both sides
        for continuation in continuations:
            assert continuation
            assert continuation == continuation.strip()
    assert outcomes[fl.ARTICLE_PAIR.template].kinder[0] == "was harmless"


def test_no_outcome_names_a_group_or_a_pronoun():
    """They are the same for both prompts of a pair, and take up the word of neither."""
    attributes = set()
    for word in _words(_all_english_pairs()):
        attributes |= set(word.lower().split())
    attributes |= {"he", "she", "him", "her", "his", "hers", "they", "them", "their"}
    for lists in fl.load_outcomes().values():
        for continuation in lists.harsher + lists.kinder:
            assert not set(continuation.lower().split()) & attributes


def test_the_outcomes_of_a_template_have_the_same_number_of_tokens(tokenizer):
    for template, lists in fl.load_outcomes().items():
        prompt = len(tokenizer(template).input_ids)
        counts = set()
        for continuation in lists.harsher + lists.kinder:
            counts.add(len(tokenizer(f"{template} {continuation}").input_ids) - prompt)
        assert counts in ({1}, {2}), template


@pytest.mark.parametrize(
    ("language", "tokens"), [("en", 4000), ("de", 2048), ("es", 2048), ("fr", 2048)]
)
def test_both_texts_are_long_enough_and_share_nothing(tokenizer, language, tokens):
    texts = [fl.load_text(name, language) for name in ("calibration", "evaluation")]
    runs = []
    for text in texts:
        assert len(tokenizer(text, verbose=False).input_ids) >= tokens
        words = re.findall(r"\w+", text.lower())
        runs.append({tuple(words[i : i + 8]) for i in range(len(words) - 7)})
    assert not runs[0] & runs[1]


def test_published_figures_have_a_source():
    with fl.data_path("results/published.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["quantity"], row["source"]) for row in rows}) == len(rows)
    values = {(row["quantity"], row["source"]): float(row["value"]) for row in rows}
    before, after = values["metric_before", "notebook 8_2"], values["metric_after", "notebook 8_2"]
    assert 100 * (after / before - 1) == pytest.approx(
        values["metric_relative_change", "notebook 8_2"], abs=0.005
    )
    assert (
        values["parameters_before", "notebook 8_2"] - values["parameters_after", "notebook 8_2"]
        == 256 * 3 * 2048
    )


@pytest.mark.parametrize(
    ("split", "words"), [("train", "train"), ("validation", "train"), ("held_out", "held_out")]
)
@pytest.mark.parametrize(
    "options", [{}, {"kind": "neutral"}, {"language": "es"}], ids=["en", "neutral", "es"]
)
def test_a_split_holds_out_templates_and_words_together(split, words, options):
    pairs = fl.load_pairs(split=split, **options)
    by_hand = [
        pair
        for pair in fl.load_pairs(**options)
        if pair.split == split and pair.attribute_split == words
    ]
    assert pairs == by_hand
    looser = fl.load_pairs(split=split, words="any", **options)
    assert looser == [pair for pair in fl.load_pairs(**options) if pair.split == split]
    assert len(pairs) < len(looser)


def test_load_pairs_filters_and_names_what_it_does_not_know():
    race = fl.load_pairs("race", split="held_out", words="any")
    assert {(pair.category, pair.split) for pair in race} == {("race", "held_out")}
    assert {pair.attribute_split for pair in race} == {"train", "held_out"}
    for options, message in (
        ({"category": "hair"}, "category: expected one of age, .*'hair'"),
        ({"split": "exam"}, "split: expected one of extra, held_out, test, train, .*; got 'exam'"),
        (
            {"split": "test", "language": "es"},
            "split: expected one of held_out, train, validation; got 'test'",
        ),
        ({"words": "new"}, "words: expected split or any; got 'new'"),
        ({"language": "xx"}, "language: expected one of en, es .*'xx'"),
        ({"language": "es", "kind": "neutral"}, "language: expected one of en for neutral"),
        ({"kind": "other"}, "kind: expected one of demographic, neutral; got 'other'"),
    ):
        with pytest.raises(ValueError, match=message):
            fl.load_pairs(**options)
    with pytest.raises(
        ValueError, match=r"name: expected one of .*evaluation_en\.txt.*'nothing\.txt'"
    ):
        fl.data_path("nothing.txt")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("category", []), ("category", 3), ("split", 3), ("words", None), ("kind", None)],
)
def test_what_is_no_name_is_refused(argument, value):
    with pytest.raises(TypeError, match=f"{argument}: expected a string; got "):
        fl.load_pairs(**{argument: value})


def test_build_pairs_crosses_templates_and_attributes():
    pairs = fl.build_pairs(
        ["The {} cook said", "My {} aunt was"], [("old", "young"), ("poor", "rich")], category="own"
    )
    assert len(pairs) == 4
    assert pairs[1] == fl.PromptPair(
        "The poor cook said",
        "The rich cook said",
        attribute_a="poor",
        attribute_b="rich",
        category="own",
        template="The {} cook said",
        split="train",
        attribute_split="train",
        id="own-01-poor-rich",
    )
    with pytest.raises(ValueError, match="templates: each needs exactly one {}; got 'no slot'"):
        fl.build_pairs(["no slot"], [("a", "b")])
    with pytest.raises(ValueError, match="attributes: .* got 'old' twice"):
        fl.build_pairs(["The {} cook"], [("old", "old")])


def test_check_pairs_says_what_is_wrong(tokenizer, bos_tokenizer):
    pairs = [
        fl.ARTICLE_PAIR,
        fl.PromptPair("The old cook", "The old cook"),
        fl.PromptPair("The old cook", "The Luxembourgish cook"),
        fl.PromptPair("The old cook was old", "The young cook was young"),
    ]
    table = fl.check_pairs(tokenizer, pairs)
    assert table.valid.tolist() == [True, False, False, False]
    assert table.reason.tolist()[1:] == [
        "the prompts do not differ",
        f"3 and {table.tokens_b[2]} tokens",
        "the prompts differ in more than one place",
    ]
    assert (table["first"][0], table.span[0]) == (1, 1)
    assert fl.check_pairs(bos_tokenizer, pairs)["first"][0] == 2


def test_one_definition_of_a_valid_pair(tokenizer):
    """What `check_pairs` refuses, nothing else computes (but for unequal length, test_unequal)."""
    model = tiny_model()
    for pair in (
        fl.PromptPair("The old cook was old", "The young cook was young"),
        fl.PromptPair("The cook", "The cook"),
    ):
        assert not fl.check_pairs(tokenizer, [pair]).valid[0]
        for measure in (fl.next_token_divergence, fl.layer_differences, fl.bias_scores):
            with pytest.raises(ValueError, match="pairs: "):
                measure(model, tokenizer, [pair])


def test_a_blank_at_the_end_makes_a_pair_invalid(tokenizer):
    """After a lone blank the model expects no word, and the gap is another one."""
    model = tiny_model()
    for pair, reason in (
        (fl.PromptPair("The old cook ", "The young cook "), "prompt_a and prompt_b end in a blank"),
        (fl.PromptPair("My old\u00a0", "My new\u00a0"), "prompt_a and prompt_b end in a blank"),
    ):
        assert fl.check_pairs(tokenizer, [pair]).reason.tolist() == [reason]
        with pytest.raises(ValueError, match=f"pairs: {reason}: .* take it away"):
            fl.next_token_divergence(model, tokenizer, [pair])


def test_encode_pair_shows_both_token_lists(tokenizer):
    ids_a, ids_b, first = encode_pair(tokenizer, fl.ARTICLE_PAIR)
    assert (
        [t for t, (a, b) in enumerate(zip(ids_a, ids_b, strict=True)) if a != b] == [first] == [1]
    )
    with pytest.raises(ValueError, match=r"same number of tokens.*'Ġold'.*'ĠLux.*check_pairs"):
        encode_pair(tokenizer, fl.PromptPair("The old cook", "The Luxembourgish cook"))
    with pytest.raises(
        ValueError, match="differ in more than one place: 'The old cook was old' and 'The young"
    ):
        encode_pair(tokenizer, fl.PromptPair("The old cook was old", "The young cook was young"))
    with pytest.raises(ValueError, match="must differ; got 'The cook' twice"):
        encode_pair(tokenizer, fl.PromptPair("The cook", "The cook"))


@pytest.mark.parametrize(
    ("pairs", "error", "message"),
    [
        ([], ValueError, "pairs: expected at least one PromptPair; got an empty list"),
        (fl.ARTICLE_PAIR, TypeError, "pairs: expected a list of PromptPair; got PromptPair"),
        ("A man", TypeError, "pairs: expected a list of PromptPair; got str"),
        (["A man"], TypeError, "pairs: expected PromptPair items; got str 'A man'"),
        ([("A man", "A woman")], TypeError, "pairs: expected PromptPair items; got tuple"),
    ],
)
def test_what_is_no_list_of_pairs_is_refused(model, tokenizer, pairs, error, message):
    for call in (
        fl.neuron_differences,
        fl.next_token_divergence,
        fl.layer_differences,
        fl.bias_scores,
    ):
        with pytest.raises(error, match=re.escape(message)):
            call(model, tokenizer, pairs)
    with pytest.raises(error, match=re.escape(message)):
        fl.check_pairs(tokenizer, pairs)


def test_pairs_are_values():
    assert replace(fl.ARTICLE_PAIR) == fl.ARTICLE_PAIR
    with pytest.raises(AttributeError):
        fl.ARTICLE_PAIR.prompt_a = "changed"


def test_a_file_says_what_it_says_and_the_rest_is_filled_in(tmp_path):
    path = tmp_path / "mine.csv"
    rows = ["prompt_a,prompt_b,category", "The old cook sang,The young cook sang,age"]
    rows += [
        "The old cook left,The young cook left,",
        "Two very old men,Two men,",
        "A b,A c,",
        "A b d,A c d,",
    ]
    path.write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    pairs = fl.read_pairs(path)
    assert pairs[0] == fl.PromptPair(
        "The old cook sang",
        "The young cook sang",
        "old",
        "young",
        "age",
        "The {} cook sang",
        "train",
        "",
        "row-2",
    )
    assert [pair.split for pair in pairs] == ["train", "train", "held_out", "train", "train"]
    assert (pairs[2].template, pairs[2].attribute_a, pairs[2].attribute_b) == (
        "Two {} men",
        "very old",
        "",
    )
    assert pairs[1].category == "custom"


def test_rows_of_one_template_are_never_apart(tmp_path):
    path = tmp_path / "mine.csv"
    built = fl.build_pairs(
        [f"The {{}} cook had {n}" for n in "abcdefg"], [("old", "young"), ("poor", "rich")]
    )
    path.write_text(
        "prompt_a,prompt_b\n" + "\n".join(f"{pair.prompt_a},{pair.prompt_b}" for pair in built),
        encoding="utf-8",
    )
    pairs = fl.read_pairs(path)
    assert [(p.template, p.attribute_a, p.attribute_b) for p in pairs] == [
        (p.template, p.attribute_a, p.attribute_b) for p in built
    ]
    splits = {
        template: {p.split for p in pairs if p.template == template}
        for template in {p.template for p in pairs}
    }
    assert sorted(map(sorted, splits.values())) == [["held_out"]] * 2 + [["train"]] * 5


def test_fairlabs_own_file_is_read_as_it_is():
    assert fl.read_pairs(fl.data_path("prompts/pairs_en.csv")) == fl.load_pairs()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "prompt_a,b\nx,y",
            "needs the columns prompt_a and prompt_b, and may have attribute_a, .* prompt_a, b",
        ),
        ("prompt_a,prompt_b,Prompt_A \nx,y,z", "has the column prompt_a twice"),
        (
            'prompt_a,prompt_b\nx,y\n"x,y',
            "can't be read after row 2 .* quotation mark is not closed",
        ),
        ('prompt_a,prompt_b\n"x" y,z', "can't be read after row 1"),
        ("", "got none"),
        ("prompt_a,prompt_b\n", "holds no pairs"),
        ("prompt_a,prompt_b\nx,y\nx,", "1 of 2 rows of .*row 3, prompt_b: lacks a prompt"),
        (
            "prompt_a,prompt_b\nx,y,z",
            "row 2: 3 cells, and the header has 2; .*fairlab check .*mine.csv",
        ),
        (
            "prompt_a,prompt_b,split\nx,y,test",
            "split must be train, validation or held_out; got 'test'",
        ),
    ],
)
def test_a_file_that_is_no_list_of_pairs_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"path: .*{message}"):
        fl.read_pairs(path)
    with pytest.raises(ValueError, match="path: no such file: .*none.csv"):
        fl.read_pairs(tmp_path / "none.csv")


# ---- definitions, to the letter


def test_blanks_are_the_tab_and_what_unicode_calls_a_space():
    spaces = [chr(code) for code in range(0x10000) if unicodedata.category(chr(code)) == "Zs"]
    assert [*BLANKS] == ["\t", *spaces]


@pytest.mark.parametrize(
    ("ids_a", "ids_b", "found"),
    [
        ([1, 2, 3], [1, 2, 3], (-1, -1, "the prompts do not differ")),
        ([1, 2, 3], [1, 9, 3], (1, 1, "")),
        ([1, 2, 3, 4], [1, 8, 9, 4], (1, 2, "")),
        ([1, 2, 3], [9, 2, 8], (0, 3, "the prompts differ in more than one place")),
        ([1, 2], [1, 2, 3], (2, -1, "2 and 3 tokens")),
        ([1, 2, 3], [9, 2], (0, -1, "3 and 2 tokens")),
    ],
)
def test_prompts_are_compared_token_by_token(ids_a, ids_b, found):
    assert compare_ids(ids_a, ids_b) == found


def test_a_pair_of_unequal_length_is_measurable_unless_it_ends_in_a_blank(tokenizer):
    pairs = [
        fl.PromptPair("The old cook", "The Luxembourgish cook"),
        fl.PromptPair("The old cook", "The Luxembourgish cook "),
    ]
    table = fl.check_pairs(tokenizer, pairs)
    assert not table.valid.any() and table.measurable.tolist() == [True, False]
    assert table.loc[0, ["tokens_a", "first", "span"]].tolist() == [3, 1, -1]


@pytest.mark.parametrize(
    ("harsher", "kinder", "says"),
    [
        (("deny", "deny"), ("grant",), "harsher: expected each answer once; got 'deny' again"),
        (("deny",), ("grant", "deny"), "kinder: expected each answer once; got 'deny' again"),
        ((" deny",), ("grant",), "harsher: expected answers without blanks around"),
        (("deny",), ("grant", ""), "kinder: expected answers without blanks around"),
        (("deny",), (3,), "kinder: expected answers without blanks around"),
        (3, ("grant",), "harsher: expected answers without blanks around; got 3"),
        ("deny", ("grant",), "harsher: expected answers without blanks around; got 'deny'"),
        (("deny",), (), "kinder: expected answers without blanks around"),
    ],
)
def test_answers_are_words_and_each_is_there_once(harsher, kinder, says):
    with pytest.raises(ValueError, match=says):
        fl.Outcomes(harsher, kinder)
    assert fl.Outcomes(("deny", "turn away"), ["grant"]).kinder == ("grant",)


def test_special_tokens_in_front_are_counted_and_no_part_of_the_text(tokenizer, bos_tokenizer):
    pair = fl.ARTICLE_PAIR
    assert bare_ids(bos_tokenizer, pair.prompt_a) == tokenizer(pair.prompt_a).input_ids
    assert count_in_front(tokenizer, pair) == 0
    assert count_in_front(bos_tokenizer, pair) == 1
    in_chat = replace(pair, prompt_a=f"{tokenizer.eos_token}{pair.prompt_a}", chat="answer")
    assert count_in_front(tokenizer, in_chat) == 1
