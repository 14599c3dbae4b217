"""Settings of the course site; `tools/build_site.py` lays the pages out and runs Sphinx on them."""

import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # course_pages stands beside this file
settings = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))
course_repository = settings["project"]["urls"]["Homepage"]

project = "fairlab"
author = "The fairlab authors"
copyright = "The fairlab authors, Apache License 2.0"

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "course_pages",
]
exclude_patterns = ["**/.ipynb_checkpoints"]
templates_path = []

# lessons are committed with their outputs, so nothing is run
nb_execution_mode = "off"
nb_merge_streams = True
# the widgets of a lesson need a kernel; their pictures do not
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 3

# MathJax comes from npm with the build: the site asks no other host for anything
mathjax_path = "mathjax/tex-svg.js"

# a single backtick in a docstring names something: a link where the site has it, else code
default_role = "py:obj"
numpydoc_show_class_members = False
autodoc_typehints = "none"  # numpydoc's sections give the types in words

html_theme = "pydata_sphinx_theme"
html_title = "fairlab"
html_static_path = ["_static", "../build/site-static"]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_favicon = "_static/icon.svg"
html_context = {"default_mode": "auto"}
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_start": ["copyright"],
    "footer_end": [],
}
copybutton_exclude = ".linenos, .gp, .go"
