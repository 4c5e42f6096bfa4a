"""Sphinx' settings: Markdown pages, the API from docstrings, the spec from its schema. Builds without a network."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "When does direct logit attribution lie?"
author = "the authors of dla-erasure"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "spec_reference"]
html_theme = "furo"
html_title = "dla-erasure"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext"]
suppress_warnings = ["docutils"]  # docstrings are plain text with formulas, not reStructuredText
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
nitpicky = False
smartquotes = False  # "--only" is an option, not a dash
html_show_copyright = False
