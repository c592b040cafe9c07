# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages as a site (script/site): read by Sphinx, from where they are.

The folder of the sources is the project's, so that links from page to page are those
that a forge follows, too. The start page is the README; what the site's navigation has
is here.
"""

from pathlib import Path
from typing import Final

from docutils.nodes import document
from pygments.lexers.special import TextLexer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

from cthelper import __version__

NAVIGATION: Final = {
    "Use it": (
        *("docs/install", "docs/ruleset", "docs/operation", "docs/control"),
        *("docs/metrics", "docs/replay", "docs/television", "docs/troubleshooting"),
    ),
    "Know it": (
        *("docs/comparison", "docs/protocols", "docs/helpers", "docs/nat"),
        *("docs/security", "docs/faults", "docs/speed", "docs/kernels"),
        *("docs/soak", "docs/bench", "docs/fuzzing", "SECURITY"),
    ),
    "Work on it": (
        *("plugins/README", "docs/how-it-works", "CONTRIBUTING", "CHANGELOG"),
    ),
}
"""Headings, and the pages below them; the build fails where a page has no place."""

project = "cthelper"
author = "cthelper developers"
project_copyright = author
release = version = __version__
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "plugins/*.md"]
extensions = ["myst_parser"]
# Anchors as a forge makes them of headings.
myst_heading_anchors = 6
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_title = f"cthelper {release}"
# Without a server a page cannot read another one's text.
html_show_search_summary = False
html_copy_source = False
html_show_sourcelink = False


def add_navigation(_app: Sphinx, page: str, source: list[str]) -> None:
    """Give the start page what a forge would show as a block of code."""
    if page != root_doc:
        return
    for heading, pages in NAVIGATION.items():
        listed = "\n".join(f"/{each}" for each in pages)
        source[0] += (
            f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{listed}\n```\n"
        )


def name_folders(_app: Sphinx, page: document) -> None:
    """Leave the text alone of links to folders, which a site has nothing to show of."""
    for link in list(page.findall(pending_xref)):
        target = Path(page["source"]).parent / link["reftarget"]
        if target.is_dir():
            link.replace_self(link.children)


def setup(app: Sphinx) -> None:
    """Called by Sphinx, which has no lexer for nft's language."""
    app.add_lexer("nft", TextLexer)
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", name_folders)
