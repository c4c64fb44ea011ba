"""How the documentation is built: ``scripts/docs``, with warnings as errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
from sphinx.application import Sphinx

import statestore
from statestore.cli.exits import MEANINGS
from statestore.formats import FORMATS, schema

project = "statestore"
release = version = statestore.__version__
copyright = "the statestore authors"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "statestore"
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["style.css"]

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# Docstrings name other things in single backticks, as `StateStore.load`.
default_role = "py:obj"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True

man_pages = [("cli", "statestore", "a trading bot's state, and tools to repair it", [], 1)]


# Pages that stand outside of this folder, so that a visitor of the repository finds them; links
# between them and these are the repository's.
_OUTSIDE = {
    "README": "index",
    "CHANGELOG": "changelog",
    "CONTRIBUTING": "contributing",
    "SECURITY": "security",
}


def _inside(app: Sphinx, page: str, source: list[str]) -> None:
    for name, page_inside in _OUTSIDE.items():
        source[0] = source[0].replace(f"](../{name}.md", f"]({page_inside}.md")
    source[0] = source[0].replace("<!-- schemas -->", _schemas())
    source[0] = source[0].replace("<!-- exit codes -->", _exit_codes())


def _schemas() -> str:
    made = ((name, json.dumps(schema(name), indent=2)) for name in FORMATS)
    return "\n".join(f"### {name}\n\n```json\n{text}\n```\n" for name, text in made)


def _exit_codes() -> str:
    told = {code: re.sub(r"--[a-z-]+", r"`\g<0>`", text) for code, text in MEANINGS.items()}
    rows = (f"| {code} | {text} |" for code, text in told.items())
    return "\n".join(["| Code | Meaning |", "| ---: | --- |", *rows])


def _inside_included(app: Sphinx, path: Path, parent: str, source: list[str]) -> None:
    source[0] = source[0].replace("](docs/", "](").replace("](LICENSE)", "](../LICENSE)")
    for name, page_inside in _OUTSIDE.items():
        source[0] = source[0].replace(f"]({name}.md", f"]({page_inside}.md")


def _once(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:
    """Leave out the table of exit codes, which ends every command's help: the page has it once."""
    lines.clear()


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _inside)
    app.connect("include-read", _inside_included)
    app.connect("sphinx-click-process-epilog", _once)
    return {"parallel_read_safe": True}
