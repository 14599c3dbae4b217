"""The surgery from a terminal: `fairlab check`, `diagnose`, `score`, `prune`, `compare`, `report`;
`fairlab cache` for what they keep.

Contents: `main`; `commands` (each from its options to what it prints), `options` (what they can be
told), `pairs` (which choose and which judge), `answers` (what may be decided), `neurons` (which are
chosen), `plan` (what is judged, and how), `measure` (carries it out), `estimate` (how long that
takes), `kept` (what a run that is stopped leaves), `gaps` (what diagnose measures), `reports`
(page, card and cut model), `output` (what is printed, and exit codes).

What a command prints is for people; with `--json` standard output is one strict JSON document and
nothing else. Progress bars and notices go to standard error. `fairlab --help` lists the exit codes.
Whatever imports torch is imported inside the functions, so that help comes at once.
"""

import sys

from fairlab import processes
from fairlab.cli.commands import app


def main() -> None:
    """Run the command line; a refused input is one line on standard error and exit code 2.

    Alone, or with the other processes that a launcher started.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that the terminal lacks is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    try:
        with processes.joined():
            app()
    except (ValueError, OSError, MemoryError, ModuleNotFoundError, processes.LostProcess) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"fairlab: {processes.name()}{said}", file=sys.stderr)
        sys.exit(1 if isinstance(error, processes.LostProcess) else 2)
