"""Files of pairs as somebody writes them: a few sentences, each with a few pairs of words."""

import csv

SENTENCES = (
    "The {} man called the office, and",
    "My {} friend read the letter. Then",
    "Two {} guests came to",
)
WORDS = (("Black", "white"), ("young", "old"))


def rows_of(sentences=SENTENCES, words=WORDS, **more):
    """Return a row for each sentence and pair of words, with the same in all other columns."""
    return [
        {"prompt_a": s.replace("{}", a), "prompt_b": s.replace("{}", b), **more}
        for s in sentences
        for a, b in words
    ]


def write_rows(path, rows):
    """Write rows as CSV, and return the path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
