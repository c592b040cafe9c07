# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of a packet's way names what is there, and the page names every room."""

import re
from pathlib import Path
from typing import Final

import pytest

from tests.documents import PICTURE, ROOT
from tests.picture import Box, draw, read

DRAWN: Final = read((ROOT / PICTURE).read_text("utf-8"))
PAGE: Final = (ROOT / "docs" / "how-it-works.md").read_text("utf-8")
PAGES: Final = [
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "plugins").glob("*.md")),
]


@pytest.mark.parametrize("box", DRAWN.boxes.values(), ids=lambda box: box.name)
def test_files_of_a_box_are_there(box: Box) -> None:
    assert all((ROOT / file).exists() for file in box.files)
    assert all((ROOT / file).is_dir() is file.endswith("/") for file in box.files)


def test_arrows_lead_from_a_box_to_its_neighbour() -> None:
    for one, other in DRAWN.arrows:
        a, b = DRAWN.boxes[one], DRAWN.boxes[other]
        assert abs(a.column - b.column) + abs(a.row - b.row) == 1
    places = [(box.column, box.row) for box in DRAWN.boxes.values()]
    assert len(set(places)) == len(places)


def test_text_fits_into_its_box() -> None:
    for box in DRAWN.boxes.values():
        assert all(len(line) <= 36 for line in (box.title, *box.lines))
        assert all(len(file) <= 34 for file in box.files)


def test_every_room_is_on_the_page() -> None:
    rooms = {path.name for path in (ROOT / "core").iterdir() if path.is_dir()}
    assert rooms - {"__pycache__"} == set(re.findall(r"\| `core/(\w+)` \|", PAGE))


def test_picture_is_text_of_its_boxes() -> None:
    svg = draw(DRAWN)
    for box in DRAWN.boxes.values():
        assert f">{box.title}</text>" in svg


def anchor(title: str) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        file, _, fragment = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        if fragment:
            titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
            assert fragment in map(anchor, titles), target
