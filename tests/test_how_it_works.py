# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of a packet's way, and its page, name what is there, and all of it."""

import re
from html import unescape
from itertools import combinations
from pathlib import Path
from typing import Final

import pytest

from tests.documents import PICTURE, ROOT
from tests.picture import CHARACTER, WIDTH, Box, areas, draw, label_area, read
from tests.test_structure import BASE, CODE_FOLDERS, PACKAGES, ROOMS

DRAWN: Final = read((ROOT / PICTURE).read_text("utf-8"))
BOXES: Final = list(DRAWN.boxes.values())
PAGE: Final = (ROOT / "docs" / "how-it-works.md").read_text("utf-8")
STEPS: Final = dict(re.findall(r"^(\d)\. (.*(?:\n   .*)*)", PAGE, re.MULTILINE))


@pytest.mark.parametrize("box", BOXES, ids=lambda box: box.name)
def test_files_of_a_box_are_there(box: Box) -> None:
    assert all((ROOT / file).exists() for file in box.files)
    assert all((ROOT / file).is_dir() is file.endswith("/") for file in box.files)


def test_every_folder_of_code_is_in_the_picture() -> None:
    files = [
        *(file for box in BOXES for file in box.files),
        *(frame.title for frame in DRAWN.frames.values()),
    ]
    rooms = [path for path in (ROOT / "core").iterdir() if path.is_dir()]
    folders = [f"core/{room.name}/" for room in rooms if room.name != "__pycache__"]
    for folder in [*folders, *(f"{each}/" for each in CODE_FOLDERS)]:
        assert any(folder in file for file in files), folder


def test_steps_of_the_page_are_those_of_the_picture_with_their_files() -> None:
    numbered = {box.title.split()[0]: box for box in BOXES if box.title[0].isdigit()}
    assert list(STEPS) == sorted(numbered)
    for number, box in numbered.items():
        for file in box.files:
            assert f"(../{file.removesuffix('/')})" in STEPS[number], (number, file)


def test_nothing_in_the_picture_covers_another_thing() -> None:
    places = areas(DRAWN)
    boxes = {name: places[name] for name in DRAWN.boxes}
    for (one, here), (other, there) in combinations(boxes.items(), 2):
        assert not here.meets(there), (one, other)
    for arrow in DRAWN.arrows:
        label = label_area(DRAWN, arrow)
        for name, place in boxes.items():
            assert not arrow.label or not label.meets(place), (arrow, name)
        assert label.right < WIDTH
    assert all(place.left > 0 and place.right < WIDTH for place in places.values())


def test_text_fits_into_its_box() -> None:
    for box in BOXES:
        for line in (box.title, *box.lines, *box.file_rows):
            assert len(line) * CHARACTER <= box.room, line


def test_all_text_is_drawn() -> None:
    drawn = set(map(unescape, re.findall(r">([^<>]+)</text>", draw(DRAWN))))
    for box in BOXES:
        assert {box.title, *box.lines, *box.file_rows} <= drawn
    for arrow in DRAWN.arrows:
        assert set(arrow.label) <= drawn


@pytest.mark.parametrize("line", ["box a | 0 0 1 1 | title", "arrow a > b", "a | b"])
def test_line_that_says_nothing_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="neither box nor frame nor arrow"):
        read(line)


def test_page_has_what_each_folder_may_import() -> None:
    """As tests/test_structure.py has it."""
    rows = dict(
        re.findall(r"^\| `core/(\w+)` \| [^|]* \| (.*) \|$", PAGE, re.MULTILINE)
    )
    assert rows.keys() == ROOMS.keys()
    for room, allowed in ROOMS.items():
        others = {each for each in ROOMS if f"`core/{each}`" in rows[room]}
        assert others == allowed & ROOMS.keys(), room
    for package, room in PACKAGES.items():
        assert f"{package} here alone" in rows[room]
    assert all(f"`{module}`" in PAGE for module in BASE)


def test_every_file_that_the_page_names_is_there() -> None:
    named = re.findall(r"`([\w./-]+/[\w./-]*)`", PAGE)
    assert len(named) > 30
    for file in named:
        assert (ROOT / Path(file.replace("NAME", "mdns"))).exists(), file
