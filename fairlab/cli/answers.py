"""What is decided about the person: harsher and kinder answers, as the options or a file say.

Contents: `check_answers`; `outcomes_for` (some sentences).
"""

import fairlab as fl


def check_answers(options):
    """Refuse answers that can't be read, that are said twice, or that no sentence of a file has."""
    given, in_files = answers_given(options.outcomes), answers_in_files(options)
    if given and options.pairs not in options.files:
        raise ValueError(
            "outcomes: they are for the sentences of a file of pairs; fairlab's own sentences have "
            f"answers of their own; got --pairs {options.pairs}"
        )
    if given and in_files:
        raise ValueError(
            "outcomes: a file has answers in the columns harsher and kinder; expected one of them"
        )


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
    found = {}
    for name in options.files:
        found |= fl.check_file(name).outcomes
    return found


def outcomes_for(tokenizer, options, pairs):
    """Return the answers for the sentences of some pairs, by sentence.

    Those of --outcomes or of the files; None where neither says any, and fairlab's own are taken
    for fairlab's own sentences. Refuse answers that the tokenizer merges with a prompt.
    """
    from fairlab.decisions import check_outcomes

    given, found = answers_given(options.outcomes), answers_in_files(options)
    if not given and not found:
        return None
    outcomes = dict.fromkeys((pair.template for pair in pairs), given)
    if found:
        outcomes = {**fl.load_outcomes(), **found}
    check_outcomes(tokenizer, pairs, outcomes)
    return outcomes
