import csv
from collections import defaultdict

import pytest

import fairlab as fl

FRAMES = {
    "de": "Die {} Frau wartete vor dem Büro. Der Chef",
    "en": "The {} woman waited outside the office. The manager",
    "es": "La mujer {} esperaba delante de la oficina. La gerente",
    "fr": "La femme {} attendait devant le bureau. Le patron",
}
SENTENCES = ["The {} man called the office, and", "Two {} guests came to", "It rained. {} came to"]


def rows_of(language):
    with fl.data_path("prompts/words_neutral.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["language"] == language]


def check_words(tokenizer, language):
    """All words of a language can be measured, after a noun phrase and at the start."""
    for template in (FRAMES[language], "{} wanted to"):
        pairs = fl.build_pairs([template], [("Black", "white")])
        built = fl.build_neutral_pairs(tokenizer, pairs, language=language)
        assert len(built) == len(rows_of(language)), template


@pytest.mark.parametrize("language", FRAMES)
def test_the_words_of_each_language_are_valid_for_the_default_tokenizer(tokenizer, language):
    check_words(tokenizer, language)


def test_the_words_of_each_language_are_valid_for_the_second_model(gemma):
    for language in FRAMES:
        check_words(gemma[1], language)


@pytest.mark.parametrize("language", FRAMES)
def test_no_word_is_there_twice_and_each_category_chooses_and_judges(language):
    splits, words = defaultdict(list), []
    for row in rows_of(language):
        splits[row["category"]].append(row["attribute_split"])
        words += [row["attribute_a"], row["attribute_b"]]
    assert len(set(words)) == len(words)
    assert set(splits) == {"mood", "time"}
    for some in splits.values():
        assert some.count("held_out") == 2 <= some.count("train")


def test_english_words_are_those_of_the_pairs_that_come_with_fairlab():
    known = {
        (pair.category, pair.attribute_split, pair.attribute_a, pair.attribute_b)
        for pair in fl.load_pairs(kind="neutral")
    }
    names = ("category", "attribute_split", "attribute_a", "attribute_b")
    assert {tuple(row[name] for name in names) for row in rows_of("en")} == known


def test_neutral_pairs_stand_in_the_sentences_of_the_pairs(tokenizer):
    pairs = [
        *fl.build_pairs(SENTENCES[:1], [("Black", "white"), ("old", "young")], split="train"),
        *fl.build_pairs(SENTENCES[1:], [("Black", "white")], split="held_out"),
    ]
    built = fl.build_neutral_pairs(tokenizer, pairs)
    assert len(built) == 3 * 16  # each sentence once, whatever words the pairs have
    assert {(pair.template, pair.split) for pair in built} == {
        (pair.template, pair.split) for pair in pairs
    }
    assert len({pair.id for pair in built}) == len(built)
    assert fl.check_pairs(tokenizer, built).valid.all()
    first, last = built[0], built[-1]
    assert (first.prompt_a, first.prompt_b) == (
        "The tired man called the office, and",
        "The hungry man called the office, and",
    )
    assert (first.attribute_a, first.attribute_b) == ("tired", "hungry")
    assert (first.category, first.attribute_split) == ("mood", "train")
    assert last.prompt_b == "It rained. The November person came to"
    assert (last.category, last.split, last.attribute_split) == ("time", "held_out", "held_out")


@pytest.mark.parametrize(
    ("sentence", "words", "first"),
    [
        ("Die {} Frau", ("schwarze", "weiße"), "Die müde Frau"),
        ("Ein {} Mann", ("schwarzer", "weißer"), "Ein müder Mann"),
        ("Die {} Leute", ("schwarzen", "weißen"), "Die müden Leute"),
        ("Ein {} Kind", ("schwarzes", "weißes"), "Ein müdes Kind"),
        ("Mit {} Stimme", ("lauter", "leise"), "Mit müde Stimme"),  # the two do not end alike
        ("{} bat um einen Kredit", ("Ayşe", "Anna"), "Die müde Person bat um einen Kredit"),
    ],
)
def test_german_words_end_as_those_of_the_pair(tokenizer, sentence, words, first):
    # the second pair of a sentence, which ends in nothing, has no say
    pairs = fl.build_pairs([f"{sentence} ging nach Hause"], [words, ("lila", "rosa")])
    built = fl.build_neutral_pairs(tokenizer, pairs, language="de")
    assert built[0].prompt_a == f"{first} ging nach Hause"
    assert built[0].attribute_a == "müde"


def test_a_and_an_do_not_change_with_a_neutral_word(tokenizer):
    pairs = fl.build_pairs(["A {} man came", "An {} man came"], [("old", "aged")])
    built = fl.build_neutral_pairs(tokenizer, pairs)
    assert {pair.template for pair in built} == {"A {} man came"}
    words = {word for pair in built for word in (pair.attribute_a, pair.attribute_b)}
    assert "tired" in words and not words & {"angry", "evening", "October", "eager", "impatient"}
    # elsewhere "a" is no article
    pairs = fl.build_pairs(["Luego saludó a {} señora"], [("la", "otra")])
    words = [("esta", "aquella"), ("una", "mi")]
    assert fl.build_neutral_pairs(tokenizer, pairs, words=words)


def test_words_of_ones_own_go_into_the_slot_as_they_are(tokenizer):
    pairs = fl.build_pairs(["{} applied", "Then {} wrote"], [("Emily", "Anna")])
    words = [("the singer", "the dancer"), ("the baker", "the painter"), ("the aunt", "the uncle")]
    built = fl.build_neutral_pairs(tokenizer, pairs, words=[*words, words[0][::-1]])
    kept = [pair for pair in built if pair.template == "{} applied"]
    assert kept[0].prompt_a == "The singer applied"
    assert built[-1].prompt_a == "Then the dancer wrote"
    assert {pair.category for pair in built} == {"neutral"}
    judging = {pair.attribute_a for pair in built if pair.attribute_split == "held_out"}
    assert judging == {"the baker"}
    assert {pair.attribute_a for pair in built} == {
        "the singer",
        *judging,
        "the aunt",
        "the dancer",
    }


IN_AUDITS = [("Lakisha", "Emily"), ("Latoya", "Anne"), ("Jamal", "Greg")]


def in_sentence(tokenizer, sentence, of_pairs, **options):
    return fl.build_neutral_pairs(tokenizer, fl.build_pairs([sentence], of_pairs), **options)


def test_names_within_a_sentence_stand_beside_names_of_one_group(tokenizer):
    built = in_sentence(tokenizer, "My neighbor {} asked for a loan. The", IN_AUDITS)
    assert {pair.category for pair in built} == {"name"}
    assert built[0].prompt_a == "My neighbor Meredith asked for a loan. The"
    assert not {word for both in IN_AUDITS for word in both} & {
        word for pair in built for word in (pair.attribute_a, pair.attribute_b)
    }
    # some differ in length, as the pairs do, in both splits
    for split in ("train", "held_out"):
        some = [pair for pair in built if pair.attribute_split == split]
        table = fl.check_pairs(tokenizer, some)
        assert table.measurable.all() and set(table.valid) == {True, False}
    # names that are the pairs' own are left out
    own = [*IN_AUDITS, ("Ebony", "Meredith")]
    fewer = in_sentence(tokenizer, "My neighbor {} asked for a loan. The", own)
    assert [pair.attribute_a for pair in fewer] == [pair.attribute_a for pair in built[1:]]
    # and where no pair differs in its length, no neutral one does
    even = in_sentence(tokenizer, "Then {} wrote, and", [("Emily", "Greg")])
    assert fl.check_pairs(tokenizer, even).valid.all() and {p.category for p in even} == {"name"}


@pytest.mark.parametrize("start", ["", "It rained. ", "“"])
def test_names_that_open_their_sentence_stand_beside_names_of_one_group(tokenizer, start):
    # of both forms, and with one that ends as a plural does
    of_pairs = [*IN_AUDITS, ("Lakisha Washington", "Emily Walsh"), ("Jamal", "James")]
    built = in_sentence(tokenizer, f"{start}{{}} asked for a loan. The", of_pairs)
    assert {pair.category for pair in built} == {"name"}
    assert built[0].prompt_a == f"{start}Meredith asked for a loan. The"
    for split in ("train", "held_out"):
        some = [pair for pair in built if pair.attribute_split == split]
        assert set(fl.check_pairs(tokenizer, some).valid) == {True, False}


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("The {} man left, and", [("Black", "White")]),
        ("Two {} guests left, and", [("Tamil", "Kurd")]),
        ("They talked with {} people, and", [("Nigerian", "Norwegian"), ("Iraqi", "Turkish")]),
        ("They talked with {} people, and", [("lakisha", "Emily")]),
        ("{} left, and", [("Men", "Women")]),
        ("{} left, and", [("Young", "Old"), ("Nigerians", "Iraqis")]),
        ("{} left, and", [("My son", "My aunt"), ("The cook", "A guest")]),
        ("{} left, and", [("My Son", "My Aunt")]),
        ("{} left, and", [("Black people", "Old people")]),
        ("{} left, and", [("Mr. Washington", "Mr. Becker")]),
        ("{} guests left, and", [("Tamil", "Kurd")]),
        ("It rained. {} people left, and", [("Tamil", "Kurd")]),
    ],
)
def test_a_capital_alone_makes_no_name(tokenizer, sentence, words):
    assert {pair.category for pair in in_sentence(tokenizer, sentence, words)} == {"mood", "time"}


def test_a_family_name_needs_words_of_ones_own(tokenizer):
    words = [("Washington", "Becker"), ("Booker", "Schmidt")]
    sentence = "The bank wrote to Mr. {} and said"
    with pytest.raises(ValueError, match=r"after 'Mr\.' stands a family name in .*--neutral-words"):
        in_sentence(tokenizer, sentence, words)
    # of unequal length, as the pairs are
    given = [("Larsson", "Klein"), ("Weber", "Mayer")]
    built = in_sentence(tokenizer, sentence, words, words=given)
    assert [(pair.attribute_a, pair.attribute_b) for pair in built] == given
    assert built[0].prompt_b == "The bank wrote to Mr. Klein and said"
    assert not fl.check_pairs(tokenizer, built).valid.all()


def test_words_that_do_not_fit_are_left_out_or_refused(tokenizer):
    pairs = fl.build_pairs(["The {} man came"], [("old", "young")])
    good, bad = ("tired", "hungry"), ("tired", "extraordinarily hungry")
    built = fl.build_neutral_pairs(tokenizer, pairs, words=[good, bad])
    assert [pair.attribute_b for pair in built] == ["hungry"]
    with pytest.raises(ValueError, match=r"none of 2 pairs of neutral words fits .*--neutral"):
        fl.build_neutral_pairs(tokenizer, pairs, words=[bad, bad[::-1]])
    with pytest.raises(ValueError, match="language: expected one of de, en, es, fr .*got 'it'"):
        fl.build_neutral_pairs(tokenizer, pairs, language="it")
    for words in ([good], [good, ("same", "same")], [good, ("one",)]):
        with pytest.raises((TypeError, ValueError), match="words: .* pair"):
            fl.build_neutral_pairs(tokenizer, pairs, words=words)
    with pytest.raises(ValueError, match=r"pairs: each needs a template with {}.*got ''"):
        fl.build_neutral_pairs(tokenizer, [fl.PromptPair("A man", "A woman")])
