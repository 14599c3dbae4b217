"""Say whether two printed outputs tell the same: the rule by which lessons are compared with what
they print now.

The rule: the text is equal, blanks aside, and each number is equal to within one unit of its last
printed digit. A whole number is a count, a rank or a size: it must be equal. So must the sign of a
number that is not zero.
"""

import re
from decimal import Decimal
from itertools import zip_longest

# a number that stands alone: 0.254, -7.1, 134,515,008, 4e-05; not the digits of float32, Q4_1 or
# 5.6.2
NUMBER = re.compile(
    r"(?<![\w.])"  # no letter, digit or dot before it
    r"[-+−]?"
    r"(?:\d{1,3}(?:,\d{3})+|\d+)"  # with or without commas between thousands
    r"(?:\.\d+)?"
    r"(?:[eE][-+]?\d+)?"
    r"(?!\w|[.,]\d)"  # no letter, digit, or further digits after it
)


def value_and_unit(printed: str) -> tuple[Decimal, Decimal]:
    """Return the value of a printed number and one unit of its last digit; 0 for a whole number,
    which is exact."""
    value = Decimal(printed.replace(",", "").replace("−", "-"))
    exponent = value.as_tuple().exponent
    whole = re.fullmatch(r"[-+−]?[\d,]+", printed)
    return value, Decimal(0) if whole else Decimal(1).scaleb(exponent)


def same_number(stored: str, now: str) -> bool:
    """Compare two printed numbers by the rule; of two units the finer one counts.

    `%g` drops zeros at the end, so the same quantity can come with fewer digits: 0.00573 for
    0.005730.
    """
    (a, unit_a), (b, unit_b) = value_and_unit(stored), value_and_unit(now)
    plus = {printed[0] == "+" for printed in (stored, now) if printed[0] not in "-−"}
    if a * b < 0 or len(plus) == 2:  # another sign, or a plus that is shown in one of them only
        return False
    units = [unit for unit in (unit_a, unit_b) if unit]
    return abs(a - b) <= min(units, default=Decimal(0))


def first_difference(stored: str, now: str) -> tuple[str, str] | None:
    """Return the first two pieces of text, or the first two numbers, that differ by the rule; None
    if none do."""
    texts = [[" ".join(part.split()) for part in NUMBER.split(output)] for output in (stored, now)]
    numbers, numbers_now = NUMBER.findall(stored), NUMBER.findall(now)
    for place, (text, other) in enumerate(zip_longest(*texts)):
        if text != other:
            return _context(stored, place), _context(now, place)
        if place >= min(len(numbers), len(numbers_now)):
            continue
        if not same_number(numbers[place], numbers_now[place]):
            return numbers[place], numbers_now[place]
    return None


def moved(stored: str, now: str) -> int:
    """Count the numbers that are printed otherwise, of two outputs that are the same by the
    rule."""
    return sum(a != b for a, b in zip(NUMBER.findall(stored), NUMBER.findall(now), strict=True))


def _context(output: str, place: int) -> str:
    """Return the text after the number before `place`, with the numbers on either side of it."""
    marks = [0, *(mark for match in NUMBER.finditer(output) for mark in match.span()), len(output)]
    start, end = max(2 * place - 1, 0), min(2 * place + 2, len(marks) - 1)
    return " ".join(output[marks[start] : marks[end]].split()) if start < len(marks) else ""
