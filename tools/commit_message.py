#!/usr/bin/env python3
"""Refuse a commit message that breaks CONTRIBUTING's rule, as a hook of git:

ln -s ../../tools/commit_message.py .git/hooks/commit-msg
"""

import sys
from pathlib import Path

LONGEST = 72


def problems(message: str) -> list[str]:
    """Return what is wrong with a commit message: its subject's length, or that it has no body.

    A merge, whose message git writes, may stay as it is.
    """
    lines = [line for line in message.strip().splitlines() if not line.startswith("#")]
    subject, *body = lines or [""]
    if subject.startswith("Merge "):
        return []
    found = []
    if not 0 < len(subject) <= LONGEST:
        found.append(f"the subject has {len(subject)} characters, of at most {LONGEST}")
    if len(body) < 2 or body[0].strip() or not body[1].strip():
        found.append("after an empty line a body should say why")
    return found


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.exit("commit message: " + "; ".join(found) if found else 0)
