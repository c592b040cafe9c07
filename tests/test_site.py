# SPDX-License-Identifier: GPL-2.0-or-later
"""The site is built without a warning, and its links lead somewhere.

Nothing that it shows comes from another host, and its search works without any.
"""

import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import pytest

if TYPE_CHECKING:
    from tests.core.offline.browser import Chromium

ROOT: Final = Path(__file__).parents[1]
SOURCES: Final = [
    path.relative_to(ROOT).with_suffix("")
    for pattern in ("*.md", "docs/*.md", "plugins/*.md")
    for path in ROOT.glob(pattern)
]

pytestmark = pytest.mark.site


class Page(HTMLParser):
    """What a page can be led to, where it leads, and what the browser loads for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each tag."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                (self.links if tag == "a" else self.loaded).append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that script/site has written."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [ROOT / "script" / "site", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """All of its pages."""
    return {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}


def test_every_page_is_there_and_readme_is_the_start(site: Path) -> None:
    assert [each for each in SOURCES if not (site / f"{each}.html").is_file()] == []
    assert (site / "index.html").read_text() == (site / "README.html").read_text()


def test_links_lead_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    count = 0
    for path, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            file = unquote(parts.path)
            target = (path.parent / file).resolve() if file else path
            assert target.is_relative_to(site), (path, link)
            assert target.is_file(), (path, link)
            if parts.fragment and target in pages:
                anchors = pages[target].anchors
                assert unquote(parts.fragment) in anchors, (path, link)
            count += 1
    assert count > 1000


def loaded(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """What the browser is told to load, by pages and by styles."""
    for page in pages.values():
        yield from page.loaded
    for style in site.rglob("*.css"):
        text = style.read_text("utf-8")
        yield from re.findall(r"url\([\"']?([^)\"']*)", text)
        yield from re.findall(r"@import\s+[\"']([^\"']*)", text)


def test_nothing_is_loaded_from_another_host(
    site: Path, pages: dict[Path, Page]
) -> None:
    found = {urlsplit(each).scheme for each in loaded(site, pages)}
    assert found <= {"", "data"}
    assert not [each for each in loaded(site, pages) if each.startswith("//")]


@pytest.fixture(scope="module")
def browser() -> "Iterator[Chromium]":
    """Chromium, which reaches no other host."""
    from tests.core.offline.browser import Chromium

    browser = Chromium()
    yield browser
    browser.close()


@pytest.mark.browser
def test_search_finds_pages_where_there_is_no_server(
    site: Path, browser: "Chromium"
) -> None:
    page = browser.page(site / "search.html")
    page.driver.implicitly_wait(30)  # for what is asked for: it comes by and by
    page.driver.get(f"{(site / 'search.html').as_uri()}?q=quarantine")
    found = "//*[@id='search-results']//li/a[normalize-space()='Operation']"
    assert page.driver.find_elements("xpath", found)
    assert {urlsplit(each).scheme for each in page.requests()} <= {"file", "data"}
