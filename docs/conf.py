"""How Sphinx builds these pages: ``sphinx-build -n -W -b html docs docs/_build/html``, offline."""

import sys
from pathlib import Path

import xopt

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "xopt"
author = copyright = "The xopt developers"
release = xopt.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "xopt_docs",
]
exclude_patterns = ["_build", "examples"]
nitpicky = True
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"

doctest_global_setup = """
from importlib.util import find_spec  # for :skipif:
import xopt._engine.runners.llvm.compiler
xopt._engine.runners.llvm.compiler.missing = lambda: "the examples show what there is without it"
"""

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"\.py$",
    "reset_argv": "xopt_docs.arguments",
    "download_all_examples": False,
    "show_signature": False,
}

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_title = f"xopt {release}"
html_copy_source = False
