"""Execute lessons from a fresh kernel, top to bottom.

    python tools/run_lesson.py notebooks/00_quickstart.ipynb --html build
    python tools/run_lesson.py notebooks/*.ipynb --in-place

The first line runs a copy, prints its table and writes a page; the second one runs the lessons and
keeps their outputs, before a commit.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from tqdm import tqdm


def execute(
    path: Path, before_end: Callable[[NotebookClient], None] | None = None
) -> nbformat.NotebookNode:
    """Run every cell of a lesson in its own folder and return it with its outputs.

    `before_end` is called with the client while the kernel, which has run all cells, is still
    alive.
    """
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    with tqdm(total=len(code), desc=path.stem, unit="cell", disable=False) as bar:
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": str(path.parent)}},
            store_widget_state=False,
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],
            on_cell_executed=lambda **event: bar.update(event["cell"].cell_type == "code"),
        )
        with client.setup_kernel():
            for index, cell in enumerate(notebook.cells):
                client.execute_cell(cell, index)
            if before_end:
                before_end(client)
    for cell in code:
        for output in cell.outputs:
            if output.output_type == "error":  # an expected one: show no path of this computer
                output.traceback = [
                    line.replace(f"{sys.prefix}{os.sep}", "") for line in output.traceback
                ]
    notebook.metadata = {
        "kernelspec": notebook.metadata.kernelspec,
        "language_info": {"name": "python"},
    }
    return notebook


def summary(notebook: nbformat.NotebookNode) -> str:
    """Return what the cell tagged `summary` printed."""
    cells = [cell for cell in notebook.cells if "summary" in cell.metadata.get("tags", [])]
    return "".join(output.get("text", "") for cell in cells for output in cell.outputs)


def main() -> None:
    """Run the lessons named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lessons", nargs="+", type=Path)
    parser.add_argument("--in-place", action="store_true", help="write the outputs into the lesson")
    parser.add_argument(
        "--html", type=Path, metavar="FOLDER", help="write the executed lesson as a page"
    )
    arguments = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # glibc returns the memory of a deleted model
    # the kernel's progress bars would be outputs
    os.environ["TQDM_DISABLE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    for path in arguments.lessons:
        start = time.perf_counter()
        notebook = execute(path)
        if arguments.in_place:
            nbformat.write(notebook, path)
        if arguments.html:
            page, _ = HTMLExporter().from_notebook_node(notebook)
            arguments.html.mkdir(parents=True, exist_ok=True)
            target = arguments.html / f"{path.stem}.html"
            target.write_text(page, encoding="utf-8")
            print(f"\n{summary(notebook)}\n{target}")
        print(f"{path.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
