"""What is decided about the person: harsher and kinder answers, as the options or a file say.

Contents: `answers_given` (of --outcomes), `answers_in_files`, `outcomes_for` (some sentences).
"""

import fairlab as fl


def answers_given(text):
    """Return the answers of --outcomes, "deny,reject/approve,grant"; None where there are none."""
    from fairlab.checking import outcomes_of

    if text is None:
        return None
    lists = text.split("/")
    if len(lists) != 2:
        raise ValueError(
            "outcomes: expected harsher answers, a slash, and kinder ones, such as "
            f'"deny,reject/approve,grant"; got {text!r}'
        )
    try:
        return outcomes_of(*lists)
    except ValueError as error:
        raise ValueError(f"outcomes: {error}") from error


def answers_in_files(options):
    """Return the answers in the columns harsher and kinder of the files of pairs, by sentence."""
    from fairlab.checking import is_file_name

    found = {}
    for name in (options.neutral, options.pairs):
        if name and (name == options.neutral or is_file_name(name)):
            found |= fl.check_file(name).outcomes
    return found


def outcomes_for(options, pairs):
    """Return sentence → answers for some pairs: those of --outcomes or of the files; None where
    neither says any, and fairlab's own are taken for fairlab's own sentences."""
    given = answers_given(options.outcomes)
    if given:
        return {pair.template: given for pair in pairs}
    found = answers_in_files(options)
    return {**fl.load_outcomes(), **found} if found else None
