"""Which pairs choose and which judge, their neutral pairs and the text, as the options say.

All of it needs the tokenizer alone, so that what is wrong is said before the model loads.

Contents: `PairOptions`, `check_pair_options`; `load_pool`, `choosing_and_held_out`,
`choosing_and_judging`, `pairs_for` (a method), `neutral_pairs`; `start_of` (a text).
"""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import fairlab as fl
from fairlab.cli.answers import check_answers, outcomes_for
from fairlab.cli.output import counted


@dataclass(frozen=True)
class PairOptions:
    """Which pairs, and what they are held against: neutral pairs, a text, a chat template."""

    pairs: str
    neutral: str | None
    words: str | None
    language: str
    skip_invalid: bool
    chat: str | None = None
    text: Path | None = None
    outcomes: str | None = None

    @property
    def files(self):
        """The files of pairs: those of --pairs, if it names one, and of --neutral."""
        files = [self.pairs] if is_file_name(self.pairs) else []
        return files + ([self.neutral] if self.neutral else [])

    @property
    def is_built(self):
        """Whether neutral words are put into the sentences of the pairs."""
        not_ours = self.words or self.language != "en" or is_file_name(self.pairs)
        return bool(not_ours and not self.neutral)

    @property
    def neutral_name(self):
        """Which neutral pairs are taken, in words."""
        if self.is_built:
            words = f"words given ({self.words})" if self.words else f"fairlab's ({self.language})"
            return f"neutral words in the sentences of the pairs: {words}"
        return Path(self.neutral).name if self.neutral else "fairlab's own"

    @property
    def facts(self):
        """Which neutral pairs and which text are taken, for the report."""
        text = self.text.name if self.text else f"fairlab's evaluation text ({self.language})"
        facts = {"neutral pairs": self.neutral_name, "text": text}
        if self.outcomes:
            facts["answers, harsher / kinder"] = self.outcomes
        # "en" is what nobody has to say, so it is no fact
        names = {"de": "German", "es": "Spanish", "fr": "French"}
        return facts | ({"language": names[self.language]} if self.language in names else {})


def is_file_name(name):
    """Say whether a name is meant as a file of pairs: it has an ending, such as .csv or .TSV."""
    return Path(name).suffix != ""


def check_pair_options(options):
    """Refuse what needs no tokenizer to be refused.

    A category, a file, words, a language, a text or a use of the chat template that is not there,
    and a file whose text has problems.
    """
    from fairlab.files import as_path
    from fairlab.passes import check_option

    pairs = options.pairs
    if options.neutral is not None:
        as_path("neutral", options.neutral)  # "" would count as not given
    fl.load_text("evaluation", options.language)
    if options.neutral and options.words:
        raise ValueError("neutral, neutral_words: expected one of them; got both")
    words_given(options.words)
    if options.text:
        text_of_file(options.text)
    for name in options.files:
        checked = fl.check_file(name)
        if not options.skip_invalid:
            refuse_problems(checked, name, "pairs" if name == pairs else "neutral")
    if pairs == "article" and options.language != "en":
        raise ValueError(f"language: the article's pair is in English; got {options.language!r}")
    if pairs != "article" and not is_file_name(pairs):
        fl.load_pairs(None if pairs == "all" else pairs, language=options.language)
    if options.chat is not None:
        check_option("chat", options.chat, ("answer", "message"))
    check_answers(options)


def load_pool(tokenizer, options):
    """Return the valid pairs that --pairs names, of all splits."""
    name = options.pairs
    if is_file_name(name):
        found = pairs_of_file(tokenizer, name, options.skip_invalid)
    elif name == "article":
        found = valid_pairs(tokenizer, [fl.ARTICLE_PAIR], name)
    else:
        found = fl.load_pairs(None if name == "all" else name, language=options.language)
        found = valid_pairs(tokenizer, found, name)
    return in_chat(tokenizer, options, found)


def pairs_of_file(tokenizer, path, skip_invalid, argument="pairs"):
    """Return the pairs of a file; refuse one with problems, or leave these rows out and say so."""
    checked = fl.check_file(path, tokenizer=tokenizer)
    if not skip_invalid:
        refuse_problems(checked, path, argument)
    if not checked.valid:
        raise ValueError(f"{argument}: {checked.summary}: no row is left")
    if checked.problems:
        left_out = len(checked.pairs) - len(checked.valid)
        notice = f"{left_out} of {len(checked.pairs)} rows of {path} left out, not valid:"
        print("\n  ".join([f"fairlab: {notice}", *map(str, checked.problems)]), file=sys.stderr)
    tell_of_articles(checked, path)
    tell_once("\n  ".join([f"{path} leaves this out, and it was filled in:", *checked.guessed]))
    unequal = (~fl.check_pairs(tokenizer, checked.valid)["valid"]).sum()
    if unequal:
        notice = f"in {unequal} of {len(checked.valid)} pairs of {path} the two prompts differ in "
        notice += "their number of tokens, so part of their gap may come from the length, and the "
        print(f"fairlab: {notice}article's metric leaves them out", file=sys.stderr)
    return checked.valid


@functools.cache  # neutral pairs of a file are read for each split
def tell_once(notice):
    """Print a notice of more than one line, if it was not printed before."""
    if "\n" in notice:
        print(f"fairlab: {notice}", file=sys.stderr)


def tell_of_articles(checked, path):
    """Print where "a" or "an" does not fit the word: these rows are measured, and read badly."""
    wrong = [notice for notice in checked.notices if notice.column in ("prompt_a", "prompt_b")]
    if wrong:
        shown = [*map(str, wrong[:3]), *[f"… and {len(wrong) - 3} more"] * (len(wrong) > 3)]
        notice = f"a or an does not fit the word in {counted(len(wrong), 'prompt')} of {path}:"
        print("\n  ".join([f"fairlab: {notice}", *shown]), file=sys.stderr)


def refuse_problems(checked, path, argument):
    """Raise an error that says how many rows of a file have problems, and what to do."""
    if checked.problems:
        raise ValueError(
            f"{argument}: {checked.summary} (fairlab check {path} lists them all; "
            "--skip-invalid leaves these rows out)"
        )


def valid_pairs(tokenizer, pairs, name, argument="pairs"):
    """Return those of fairlab's own pairs that are valid for the tokenizer."""
    table = fl.check_pairs(tokenizer, pairs)
    invalid = table[~table["valid"]]
    if len(invalid) == len(pairs):
        reasons = [f"{row.id}: {row.reason}" for row in invalid.head(5).itertuples()]
        raise ValueError(
            f"{argument}: none of {len(pairs)} of {name} is valid for this tokenizer: "
            + "; ".join(reasons)
        )
    if len(invalid):
        notice = f"{len(invalid)} of {len(pairs)} pairs left out, not valid for this tokenizer"
        print(f"fairlab: {notice}", file=sys.stderr)
    return [pair for pair, valid in zip(pairs, table["valid"], strict=True) if valid]


def in_chat(tokenizer, options, pairs):
    """Put pairs through the chat template as --chat says, if it was given."""
    if not options.chat:
        return pairs
    request = {} if options.chat == "answer" else {"request": None}
    return fl.chat_pairs(tokenizer, pairs, **request)


def part_of(pool, split):
    """Return the pairs of which template and words are both of a split."""
    return [pair for pair in pool if pair.split == split and pair.attribute_split in ("", split)]


def choosing_and_held_out(tokenizer, options, chooses=True):
    """Return the pairs that choose the neurons, and pairs whose template and words do not."""
    name = options.pairs
    pool = load_pool(tokenizer, options)
    if name == "article":  # a single pair: nothing of it can be held out
        held_out = valid_pairs(tokenizer, fl.load_pairs(split="held_out"), "all")
        return pool, in_chat(tokenizer, options, held_out)
    choosing, held_out = part_of(pool, "train"), part_of(pool, "held_out")
    if chooses and not choosing:
        raise ValueError(
            f"pairs: none of the {len(pool)} pairs of {name} is of the split train, and those "
            "choose the neurons"
        )
    return choosing, held_out


def pairs_for(tokenizer, choosing, method, argument="pairs"):
    """Return the pairs that a method can choose on.

    One that compares token by token needs two prompts of one length. Say how many others there are,
    or refuse, if there are no others.
    """
    if method.partition("+")[0] in ("guarded", "attribution"):
        return choosing
    valid = list(fl.check_pairs(tokenizer, choosing)["valid"])
    if all(valid):
        return choosing
    what = "pairs" if argument == "pairs" else "neutral pairs"
    found = f"in {valid.count(False)} of {len(valid)} {what} that choose the neurons the two"
    found += f" prompts differ in their number of tokens, and {method} compares token by token"
    if not any(valid):
        raise ValueError(f"{argument}: {found}; take --method guarded")
    print(f"fairlab: {found}: the others choose", file=sys.stderr)
    return [pair for pair, holds in zip(choosing, valid, strict=True) if holds]


def choosing_and_judging(tokenizer, options, chooses=True):
    """Return the pairs that choose the neurons, and all that judges the cut."""
    choosing, held_out = choosing_and_held_out(tokenizer, options, chooses)
    if not held_out:
        raise ValueError(
            f"pairs: nothing in {options.pairs} is held out, and a cut measured on the pairs that "
            "chose it looks good by construction; add sentences, or a column split with train and "
            "held_out"
        )
    controls = neutral_pairs(tokenizer, options, held_out, "held_out")
    outcomes = outcomes_for(tokenizer, options, [*held_out, *controls])
    return choosing, fl.HeldOut(held_out, controls, evaluation_text(tokenizer, options), outcomes)


def neutral_pairs(tokenizer, options, pairs, split=None):
    """Return neutral pairs: of a file, of words in the sentences of some pairs, or fairlab's own.

    With a split those that choose ("train") or judge ("held_out"); without, all of a file, and
    else those that judge.
    """
    if options.neutral:
        found = pairs_of_file(tokenizer, options.neutral, options.skip_invalid, "neutral")
        found = part_of(found, split) if split else found
    elif options.is_built:
        words = words_given(options.words)
        found = built_pairs(tokenizer, tuple(pairs), split or "held_out", options.language, words)
    else:
        fairlabs = fl.load_pairs(kind="neutral", split=split or "held_out")
        found = valid_pairs(tokenizer, fairlabs, "neutral", "neutral")
    if not found:
        raise ValueError(
            f"neutral: no pair of these is of the split {split}: {options.neutral_name}; "
            "give others (--neutral, --neutral-words)"
        )
    return in_chat(tokenizer, options, found)


@functools.cache  # several methods choose on the same pairs, and the notice is for once
def built_pairs(tokenizer, pairs, split, language, words):
    """Put the neutral words of a split into the sentences of some pairs, and show two prompts."""
    built = fl.build_neutral_pairs(tokenizer, pairs, language=language, words=words)
    built = [pair for pair in built if pair.attribute_split == split]
    if not built:
        return []
    of_all = counted(len({pair.template for pair in pairs}), "sentence")
    count = len({pair.template for pair in built})
    which = "the words given" if words else f"fairlab's neutral words ({language})"
    notice = f"{which} put into {count} of {of_all}, such as:"
    shown = [built[0].prompt_a, built[-1].prompt_b]
    advice = "If they read badly, give --neutral-words or --neutral."
    print("\n  ".join([f"fairlab: {notice}", *shown, advice]), file=sys.stderr)
    return built


def words_given(text):
    """Return the pairs of words of --neutral-words: "a/b, c/d"."""
    if text is None:
        return None
    words = []
    for both in text.split(","):
        words.append(tuple(word.strip() for word in both.split("/")))
    if len(words) < 2 or any(len(both) != 2 or not all(both) for both in words):
        raise ValueError(
            'neutral_words: expected at least two pairs of words such as "tired/hungry, '
            f'calm/happy"; got {text!r}'
        )
    return tuple(words)


def evaluation_text(tokenizer, options):
    """Return the text for the perplexity: its start, since every random cut reads it again."""
    from fairlab.evaluation.rows import BLOCK, PART

    text = fl.load_text("evaluation", options.language)
    text = text_of_file(options.text) if options.text else text
    count = len(tokenizer(text, verbose=False).input_ids)
    if count <= 2 * BLOCK and options.text:
        raise ValueError(
            f"text: expected more than {2 * BLOCK} tokens, since an interval needs two blocks of "
            f"{BLOCK}; {options.text} has {count}"
        )
    return start_of(text, tokenizer, PART)


def text_of_file(path):
    """Read a text file; refuse an empty one."""
    from fairlab.files import read_text

    text = read_text("text", path)[0].strip()
    if not text:
        raise ValueError(f"text: {path} is empty")
    return text


def start_of(text, tokenizer, count):
    """Return the first tokens of a text, as text."""
    ids = tokenizer(text, verbose=False).input_ids[:count]
    return tokenizer.decode(ids, skip_special_tokens=True)
