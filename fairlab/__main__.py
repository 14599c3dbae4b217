"""Let `python -m fairlab` be the command line."""

from fairlab.cli import main

main()
