"""What comes out: texts, JSON, tables, exit codes.

Contents: `emit`; `check_output_file`; `read_conditions`, `failed_of_each` and `end_if_failed` (the
bounds of --fail-if); `check_text`, `split_counts`, `facts_of`, `found_text`, `saved_text`,
`precision_note`, `dtype_of` and `counted`, in words.
"""

import json
import sys
from pathlib import Path

import typer


def emit(facts, as_json, text, table=None, out=None):
    """Print the text, or the facts as JSON; write the table to a file, where one is named.

    Printed first: if the file can't be written after all, what was measured has been seen.
    """
    if as_json:
        from fairlab.report.page import plain

        # a terminal that is not UTF-8 has letters for English alone
        ascii_only = "utf" not in (sys.stdout.encoding or "utf-8").lower()
        text = json.dumps(plain(facts), allow_nan=False, ensure_ascii=ascii_only)
    print(text, flush=True)
    if out:
        from fairlab.files import write_text

        content = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_text(Path(out), content)


def check_output_file(out, force, *inputs, argument="out"):
    """Refuse an output that exists, is an input or can't be written, before any time is spent."""
    from fairlab.files import check_output

    if out:
        check_output(argument, out, force=force, inputs=inputs)


def precision_note(model):
    """Name the precision of the numbers, and what half precision does to them."""
    from fairlab.models import HALF_PRECISION_COSTS
    from fairlab.passes import is_half

    note = f"Measured in {dtype_of(model)}."
    return f"{note} {HALF_PRECISION_COSTS}" if is_half(model) else note


def dtype_of(model):
    """Return the name of a model's precision, such as "float32"."""
    return str(model.dtype).removeprefix("torch.")


def counted(number, what):
    """Return a number with its noun: 1 pair, 2 pairs."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def read_conditions(texts, of_a_change=False):
    """Read the bounds of --fail-if: on what is measured of a change, or without any."""
    from fairlab.report.conditions import QUANTITIES, WITHOUT_A_CHANGE, read_condition

    known = tuple(QUANTITIES) if of_a_change else WITHOUT_A_CHANGE
    return [read_condition(text, known) for text in texts or ()]


def failed_of_each(conditions, table):
    """Say which bounds of --fail-if hold for each selection of a comparison."""
    from fairlab.report.conditions import failures, quantities_of

    failed = []
    for name, rows in table.groupby("selection", sort=False):
        failed += [f"{name}: {line}" for line in failures(conditions, quantities_of(rows))]
    return failed


def end_if_failed(failed):
    """End with exit code 3 where a bound of --fail-if holds, and say so."""
    for line in failed:
        print(f"fairlab: --fail-if: {line}", file=sys.stderr)
    if failed:
        raise typer.Exit(3)


def check_text(checked, facts):
    """Return what `fairlab check` prints: problems, notices, what was guessed, and the split."""
    from fairlab.checking import SPLIT_RULE

    lines = [
        f"{checked.path} ({checked.form}): {facts['valid']} of {facts['rows']} rows are valid."
    ]
    if checked.problems:
        lines += ["", "Problems:", *map(str, checked.problems)]
    if checked.notices:
        lines += ["", "Notices (no row is invalid for them):", *map(str, checked.notices)]
    if checked.guessed:
        lines += ["", "Left out by the file, and filled in:", *checked.guessed]
    split_rule = "as the column split says" if facts["split_by_file"] else SPLIT_RULE
    lines += ["", f"Split, {split_rule}:"]
    for part in facts["split"]:
        counts = [counted(part[what], what.removesuffix("s")) for what in ("sentences", "pairs")]
        lines.append(f"{part['category']}, {part['split']}: {', '.join(counts)}")
    if facts["fixed"]:
        lines += ["", f"The valid rows, and those with surplus blanks, repaired: {facts['fixed']}"]
    return "\n".join(lines)


def split_counts(pairs):
    """Count the sentences and pairs of each split in each category."""
    parts = {}  # category and split → the sentence of each pair
    for pair in pairs:
        parts.setdefault((pair.category, pair.split), []).append(pair.template)
    counts = []
    for (category, split), sentences in parts.items():
        row = {"category": category, "split": split}
        row |= {"sentences": len(set(sentences)), "pairs": len(sentences)}
        counts.append(row)
    return counts


def facts_of(problem):
    """Return what JSON says of a problem."""
    return {name: getattr(problem, name) for name in ("row", "column", "what", "remedy")}


def found_text(facts, selection):
    """Return what `fairlab prune` prints before the cut model is saved."""
    lines = [repr(selection)]
    if "verdict" in facts:
        lines.append(facts["verdict"])
    return "\n".join(lines)


def saved_text(facts, page):
    """Return what `fairlab prune` prints when the cut model is saved."""
    before, after = facts["parameters_before"], facts["parameters_after"]
    lines = [f"Written: {page} and {page.with_suffix('.json')}"] if page else []
    lines.append(
        f"{before:,} parameters before, {after:,} after; saved in {facts['folder']}, "
        f"{facts['dtype']}"
    )
    return "\n".join(lines)
