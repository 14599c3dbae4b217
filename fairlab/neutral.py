"""Neutral pairs, the control of a comparison, in the sentences of one's own pairs.

Contents: `build_neutral_pairs`. Those that come with fairlab's own pairs: `load_pairs`.
"""

import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from fairlab.checking import article_fits
from fairlab.files import DATA
from fairlab.pairs import (
    PromptPair,
    as_pairs,
    check_pairs,
    check_two_words,
    listed,
    load_pairs,
)

# what a slot that opens its sentence holds, since a word of mood alone would be no sentence there
_PHRASES = {
    "de": "Die {} Person",
    "en": "The {} person",
    "es": "La persona {}",
    "fr": "La personne {}",
}
# first names that are common among white people of one country, in pairs of one gender: the control
# of an audit with names. By most tokenizers some pairs are of equal length and some are not
_NAMES = [
    ("name", "train", "Meredith", "Jill"),
    ("name", "train", "Laurie", "Sarah"),
    ("name", "train", "Brendan", "Neil"),
    ("name", "train", "Matthew", "Todd"),
    ("name", "train", "Claire", "Molly"),
    ("name", "train", "Cody", "Scott"),
    ("name", "held_out", "Kristen", "Allison"),
    ("name", "held_out", "Hannah", "Abigail"),
    ("name", "held_out", "Garrett", "Luke"),
]
# after one of them stands no first name
_BEFORE_NO_NAME = {
    "a", "all", "an", "another", "any", "both", "each", "every", "few", "five", "four", "her",
    "his", "its", "many", "most", "my", "no", "old", "other", "our", "several", "six", "some",
    "that", "the", "their", "these", "this", "those", "three", "two", "young", "your",
}  # fmt: skip
_TITLES = ("Dr.", "Miss", "Mr.", "Mrs.", "Ms.", "Prof.")
# how words for groups mostly end that have a capital: Nigerian, Chinese, Irish, Islamic, Iraqi
_GROUP_ENDING = re.compile(r"([aei]an|ese|ish|ch|ic|i|im)$")
# at the start of a sentence every word has a capital: also a plural (Immigrants, Men), a pronoun
_NO_NAME = re.compile(r".*s|(wo)?m[ae]n|people|person|s?he|they|we|you")
_PEOPLE = {
    "adult", "boy", "child", "citizen", "clerk", "cook", "customer", "doctor", "employee", "girl",
    "guest", "kid", "man", "neighbor", "neighbour", "nurse", "person", "patient", "resident",
    "student", "teacher", "tenant", "woman", "worker", "children", "men", "people", "women",
}  # fmt: skip
_REMEDY = "give other words (words=…, --neutral-words) or neutral pairs of your own (--neutral)"


def build_neutral_pairs(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[PromptPair],
    *,
    language: str = "en",
    words: Sequence[tuple[str, str]] | None = None,
) -> list[PromptPair]:
    """Put neutral words into the sentences of demographic pairs: the control in the same places.

    The words of a language are adjectives of mood ("tired", "hungry") and words of time, in the
    form that goes beside a noun. Where the slot opens its sentence, "The tired person" goes there.
    German words take the ending that both words of the sentence's first pair have (-er, -en, -es,
    -em). French and Spanish ones have one form in the singular, and follow their noun best. Slots
    of other kinds (a noun after its article, a plural in French or Spanish) make broken sentences:
    read some, and give `words` of your own for these.

    Where a slot of an English sentence holds names ("My neighbor Lakisha", "Lakisha asked"), first
    names go there, all of one group; names of your pairs are not among them. Where your pairs in a
    sentence differ in their number of tokens, so may names and `words` of your own: what the length
    alone brings is then seen.

    Parameters
    ----------
    pairs : list of PromptPair
        Pairs with a `template`: each different one is a sentence, and keeps its split.
    language : str
        Of the sentences: "en", "de", "fr" or "es".
    words : list of (str, str), optional
        In place of those of the language, at least two pairs. They go into the slot as they are,
        with a capital at the start of a sentence. Every third pair (the second, the fifth, …) is of
        the attribute split "held_out", the others of "train".

    Returns
    -------
    list of PromptPair
        Those that are valid for the tokenizer (or measurable, see above): sentence by sentence,
        each with all words that fit. `split` is that of the sentence and `attribute_split` that of
        the words, so that no word that chooses neurons also judges them. The category is "mood",
        "time" or "name", and of words of your own "neutral".

    Raises
    ------
    ValueError
        Another language, fewer than two pairs of words, a pair without a template, a name after a
        title such as "Mr." without `words`, or no words that fit.
    """
    rows = _words_of(language) if words is None else _rows_of(words)
    in_slot = partial(_phrase, language=language) if words is None else _with_capital
    ours_in_english = words is None and language == "en"
    sentences = _by_template(pairs)
    names = _names_beside(sentences)
    built = []
    for number, (template, members) in enumerate(sentences.items(), start=1):
        pair = members[0]
        of_names = ours_in_english and _holds_names(template, members)
        for category, attribute_split, *both in names if of_names else rows:
            filled = both if of_names else [in_slot(word, pair) for word in both]
            if ours_in_english and not _articles_fit(pair, filled):
                continue
            new = replace(
                pair,
                prompt_a=pair.template.replace("{}", filled[0]),
                prompt_b=pair.template.replace("{}", filled[1]),
                attribute_a=both[0],
                attribute_b=both[1],
                category=category,
                attribute_split=attribute_split,
                chat="",  # these prompts are plain, though the pair's may stand in a template
                id=f"{category}-{number:02d}-{'-'.join(both)}".lower().replace(" ", "-"),
            )
            built.append(new)
    fits = _fitting(tokenizer, built, sentences)
    if not fits:
        raise ValueError(
            f"pairs: none of {len(rows)} pairs of neutral words fits in the {len(sentences)} "
            f"sentences (both words need as many tokens, and a or an may not change); {_REMEDY}"
        )
    return fits


def _by_template(pairs: Sequence[PromptPair]) -> dict[str, list[PromptPair]]:
    """Return the pairs of each sentence; refuse one that has none."""
    sentences: dict[str, list[PromptPair]] = {}
    for pair in as_pairs(pairs):
        if pair.template.count("{}") != 1:
            raise ValueError(
                "pairs: each needs a template with {} where the words go; "
                f"got {pair.template!r} for {pair.prompt_a!r}"
            )
        sentences.setdefault(pair.template, []).append(pair)
    return sentences


def _words_in(members: Sequence[PromptPair]) -> set[str]:
    return {word for pair in members for word in (pair.attribute_a, pair.attribute_b)}


def _names_beside(
    sentences: Mapping[str, Sequence[PromptPair]],
) -> list[tuple[str, str, str, str]]:
    """Return the rows of names that are none of the pairs'."""
    words_of_pairs = {word for members in sentences.values() for word in _words_in(members)}
    return [row for row in _NAMES if not words_of_pairs & set(row)]


def _fitting(
    tokenizer: PreTrainedTokenizerBase,
    built: Sequence[PromptPair],
    sentences: Mapping[str, Sequence[PromptPair]],
) -> list[PromptPair]:
    """Return the pairs that are valid; of names and of words of one's own also those of unequal
    length, where pairs of the same sentence are."""
    if not built:
        return []
    unequal = set()
    for template, members in sentences.items():
        if not check_pairs(tokenizer, members).valid.all():
            unequal.add(template)
    table, fits = check_pairs(tokenizer, built), []
    for pair, valid, measurable in zip(built, table.valid, table.measurable, strict=True):
        may_differ = pair.category in ("name", "neutral") and pair.template in unequal
        if valid or (may_differ and measurable):
            fits.append(pair)
    return fits


def _holds_names(template: str, members: Sequence[PromptPair]) -> bool:
    """Say whether the slot of an English sentence holds first names: words with a capital, most of
    which name no group that fairlab knows, within a sentence after a word that a name may follow,
    at its start alone and not before a noun such as "people"."""
    words = _words_in(members)
    before = template.partition("{}")[0].split()
    if not all(word[:1].isupper() for word in words):
        return False
    if before and before[-1] in _TITLES:
        raise ValueError(
            f"pairs: after {before[-1]!r} stands a family name in {template!r}, and no neutral "
            "word of ours goes there; give family names of one group, some of unequal length "
            "(words=…, --neutral-words)"
        )
    if _opens_sentence(template):
        return _may_open(template, words) and not _are_groups(members)
    if before[-1].lower() in _BEFORE_NO_NAME:
        return False
    known = _words_in(load_pairs())
    groups = [word for word in words if word in known or _GROUP_ENDING.search(word)]
    return 2 * len(groups) < len(words)


def _may_open(template: str, words: Collection[str]) -> bool:
    """Say whether words may be names that open their sentence: "Emily" or "Emily Walsh" may, but
    not "My son", "Black people", or a word before "people"."""
    after = template.partition("{}")[2].split()
    if after and after[0].strip(",.:;").lower().removesuffix("s") in _PEOPLE:
        return False
    for word in words:
        for part in word.split():
            if not part[0].isupper() or part in _TITLES or part.lower() in _BEFORE_NO_NAME:
                return False
    return True


def _are_groups(members: Sequence[PromptPair]) -> bool:
    """Say whether in half of the pairs or more both words name a group, whatever capital the start
    of a sentence gives them: by a list or by their ending, which a single name may have, too."""
    known = {word.lower() for word in _words_in(load_pairs())}
    groups = 0
    for pair in members:
        words = (pair.attribute_a.lower(), pair.attribute_b.lower())
        groups += all(
            word in known or _GROUP_ENDING.search(word) or _NO_NAME.fullmatch(word)
            for word in words
        )
    return 2 * groups >= len(members)


def _words_of(language: str) -> list[tuple[str, str, str, str]]:
    """Return category, split and both words of each pair of neutral words of a language."""
    with (DATA / "prompts" / "words_neutral.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = sorted({row["language"] for row in rows})
    if not isinstance(language, str) or language not in known:
        raise ValueError(
            f"language: expected one of {', '.join(known)} (for others, {_REMEDY}); "
            f"got {language!r}"
        )
    columns = ("category", "attribute_split", "attribute_a", "attribute_b")
    words = []
    for row in rows:
        if row["language"] == language:
            words.append(tuple(row[name] for name in columns))
    return words


def _rows_of(words: Sequence[tuple[str, str]]) -> list[tuple[str, str, str, str]]:
    """Return the same of words that are given; every third pair judges."""
    words = listed("words", words, "pairs of words")
    for both in words:
        check_two_words("words", both)
    if len(words) < 2:
        raise ValueError(
            "words: expected at least two pairs of words, one to choose and one to judge; "
            f"got {words!r}"
        )
    return [
        ("neutral", "held_out" if number % 3 == 1 else "train", *both)
        for number, both in enumerate(words)
    ]


def _articles_fit(pair: PromptPair, filled: Sequence[str]) -> bool:
    """Say whether the slot's words may stand there: after "a" not "angry"."""
    before = pair.template.partition("{}")[0].split()
    return not before or all(article_fits(before[-1], word) for word in filled)


def _phrase(word: str, pair: PromptPair, language: str) -> str:
    """Return what the slot holds with a neutral word: the word in its form, or a phrase with it."""
    if _opens_sentence(pair.template):
        return _PHRASES[language].replace("{}", word)
    if language == "de":  # ein müder Mann, die müden Leute: as the words of the pair end
        for letter in "rnsm":
            if pair.attribute_a.endswith(f"e{letter}") and pair.attribute_b.endswith(f"e{letter}"):
                return word + letter
    return word


def _with_capital(word: str, pair: PromptPair) -> str:
    return word[:1].upper() + word[1:] if _opens_sentence(pair.template) else word


def _opens_sentence(template: str) -> bool:
    before = template.partition("{}")[0].rstrip()
    return not before or before[-1] in ".!?¿¡"
