"""Sphinx extension: what the site changes in a page of the course.

Install cells and the errors of empty stubs go; badges become plain links, since their pictures lie
on other hosts; a picture without alternative text gets the sentence after it; a link to a file that
is not on the site leads to the repository; an explorer is a page of its own in a frame.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

EXPLORER = re.compile(r"^fl\.\w+_explorer\(", re.MULTILINE)
STUB = "NotImplementedError"
INSTALL = "# @title On Colab"
LONGEST_ALT = 300  # characters


def drop_install_cells(page: nodes.document) -> None:
    """Remove the cell that installs the package on Colab."""
    for cell in list(page.findall(nodes.container)):
        if cell.get("nb_element") == "cell_code" and cell.astext().startswith(INSTALL):
            cell.parent.remove(cell)


def drop_stub_errors(page: nodes.document) -> None:
    """Remove the traceback below an exercise that is still to be done."""
    for output in list(page.findall(nodes.container)):
        if output.get("nb_element") != "cell_code_output":
            continue
        for block in list(output.findall(nodes.literal_block)):
            if STUB in block.astext() and "Traceback" in block.astext():
                block.parent.remove(block)


def link_badges(page: nodes.document) -> None:
    """Replace a badge, a picture from another host, by its alternative text."""
    for picture in list(page.findall(nodes.image)):
        if picture["uri"].startswith("http"):
            link = picture.parent
            link.replace(picture, nodes.Text(picture.get("alt", "link")))
            before = link.parent.index(link) - 1
            if before >= 0:  # the line end between two of them
                link.parent[before] = nodes.Text(" · ")


def following_text(picture: nodes.image) -> str:
    """Return the first sentence of prose after a picture, or the heading above it."""
    node: nodes.Element = picture
    while node.parent is not None:
        siblings = node.parent.children
        for later in siblings[siblings.index(node) + 1 :]:
            for paragraph in later.findall(nodes.paragraph):
                return re.split(r"(?<=[.!?:])\s", paragraph.astext(), maxsplit=1)[0]
        node = node.parent
    return ""


def describe_pictures(page: nodes.document) -> None:
    """Give each picture without alternative text the sentence that follows it."""
    for picture in page.findall(nodes.image):
        if not picture.get("alt"):
            text = following_text(picture) or page.next_node(nodes.title).astext()
            picture["alt"] = f"Figure: {text}"[:LONGEST_ALT]


def lead_to_repository(page: nodes.document, app: Sphinx) -> None:
    """Lead a link to a file or folder that is not on the site to the repository."""
    pages = Path(app.srcdir)
    folder = Path(app.env.doc2path(app.env.docname)).parent
    for link in list(page.findall(pending_xref)):
        target = link["reftarget"].partition("#")[0]
        if link["reftype"] != "myst" or not target or (folder / target).is_file():
            continue
        place = (folder / target).resolve().relative_to(pages.resolve()).as_posix()
        address = f"{app.config.course_repository}/blob/main/{place}"
        link.parent.replace(link, nodes.reference("", "", *link.children, refuri=address))


def embed_explorers(page: nodes.document, app: Sphinx) -> None:
    """Put the page of an explorer, with its controls, in place of its picture."""
    lesson = Path(app.env.docname).name[:2]
    for cell in page.findall(nodes.container):
        if cell.get("nb_element") != "cell_code" or "solutions" in app.env.docname:
            continue
        if not EXPLORER.search(next(cell.findall(nodes.literal_block)).astext()):
            continue
        address = f"../_static/explorers/{lesson}_{cell['cell_index']}.html"
        frame = (
            f'<iframe class="explorer" loading="lazy" src="{address}" '
            f'title="Explorer of lesson {lesson}: controls above a picture"></iframe>'
        )
        for output in cell.findall(nodes.container):
            if output.get("nb_element") == "cell_code_output":
                output.children = [nodes.raw("", frame, format="html")]


def on_page_read(app: Sphinx, page: nodes.document) -> None:
    """Apply all of the above to a page."""
    drop_install_cells(page)
    drop_stub_errors(page)
    link_badges(page)
    describe_pictures(page)
    lead_to_repository(page, app)
    embed_explorers(page, app)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the changes to Sphinx."""
    app.add_config_value("course_repository", "", "env")
    app.connect("doctree-read", on_page_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
