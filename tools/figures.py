"""Take the README's figure out of the lesson that draws it.

    python tools/figures.py

The figure is in the cell tagged `readme-figure`.
"""

import base64
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
LESSON = ROOT / "notebooks" / "00_quickstart.ipynb"
FIGURE = ROOT / "notebooks" / "figures" / "quickstart.png"


def figure(lesson: Path = LESSON) -> bytes:
    """Return the PNG that the tagged cell of an executed lesson holds."""
    cells = nbformat.read(lesson, as_version=4).cells
    (cell,) = [cell for cell in cells if "readme-figure" in cell.metadata.get("tags", [])]
    (png,) = [
        output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    return base64.b64decode(png)


if __name__ == "__main__":
    FIGURE.parent.mkdir(exist_ok=True)
    FIGURE.write_bytes(figure())
    print(FIGURE.relative_to(ROOT))
