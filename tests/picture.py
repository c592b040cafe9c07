# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws docs/how-it-works.svg from docs/how-it-works.txt: boxes, frames and arrows.

The text has a line for each, whose parts are set apart by ``|``; lines of one part by
``/``. A box is as wide as its columns, and a row as high as its highest box.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Final

WIDTH: Final = 800
_COLUMN: Final = 210
# To the right of each column: the first one has room for the words of arrows.
_GAPS: Final = (92, 34, 0)
_MARGIN, _PAD = 12, 10
_ROW_GAP, _FRAME_TITLE = 34, 24
_LINE, _FILE, _LABEL = 17, 15, 14
_APART: Final = 15  # of two arrows between the same boxes

# What a character takes at most, in the widest of the usual sans and monospaced fonts.
CHARACTER: Final = 7.0
_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1d2733; }
  .title { font-weight: 600; font-size: 14px; }
  .frame-title { font-weight: 600; fill: #45617d; }
  .file { font: 11px ui-monospace, monospace; fill: #45617d; }
  .label { font-size: 12px; font-style: italic; fill: #45617d; }
  .frame { fill: #f4f6f8; stroke: #b6c3d0; }
  .box { fill: #ffffff; stroke: #45617d; stroke-width: 1.2; }
  .foreign { fill: #f4f6f8; stroke-dasharray: 5 4; }
  .arrow { stroke: #45617d; stroke-width: 1.6; fill: none; }
"""


@dataclass(frozen=True, slots=True)
class Box:
    """A step, the files and folders that it is in, and what it does, in lines.

    It begins at a column and a row, and is so many of them wide and high. The title of
    a step begins with its number; a box without files is not ours.
    """

    name: str
    column: int
    row: int
    columns: int
    rows: int
    title: str
    files: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def room(self) -> int:
        """How wide its text may be."""
        return _left(self.column + self.columns - 1) + _COLUMN - self.left - 2 * _PAD

    @property
    def left(self) -> int:
        """The left edge."""
        return _left(self.column)

    @property
    def file_rows(self) -> list[str]:
        """The files, as many in a row as fit."""
        rows: list[str] = []
        for each in self.files:
            if rows and (len(rows[-1]) + 1 + len(each)) * CHARACTER <= self.room:
                rows[-1] += f" {each}"
            else:
                rows.append(each)
        return rows

    @property
    def height(self) -> int:
        """What its text takes."""
        texts = _LINE * (1 + len(self.lines)) + _FILE * len(self.file_rows)
        return texts + _PAD + 4


@dataclass(frozen=True, slots=True)
class Frame:
    """A process, or the kernel, around the boxes that are in it."""

    name: str
    boxes: tuple[str, ...]
    title: str


@dataclass(frozen=True, slots=True)
class Arrow:
    """From a box to another one or a frame, with words beside it, in lines."""

    start: str
    end: str
    label: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """All of it, by name."""

    boxes: dict[str, Box]
    frames: dict[str, Frame]
    arrows: tuple[Arrow, ...]


@dataclass(frozen=True, slots=True)
class Area:
    """A rectangle of the drawing, in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    def meets(self, other: "Area") -> bool:
        """Whether the two have a point in common."""
        across = self.left <= other.right and other.left <= self.right
        return across and self.top <= other.bottom and other.top <= self.bottom


def read(text: str) -> Picture:
    """The picture that a text describes. Raises ValueError."""
    boxes: dict[str, Box] = {}
    frames: dict[str, Frame] = {}
    arrows = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        kind, _, rest = line.partition(" ")
        parts = [each.strip() for each in rest.split("|")]
        match kind, parts:
            case "box", [name, place, title, files, words]:
                column, row, columns, rows = map(int, place.split())
                boxes[name] = Box(
                    *(name, column, row, columns, rows, title),
                    tuple(files.split()),
                    _lines(words),
                )
            case "frame", [name, inside, title]:
                frames[name] = Frame(name, tuple(inside.split()), title)
            case "arrow", [ends, label]:
                start, end = (each.strip() for each in ends.split(">"))
                arrows.append(Arrow(start, end, _lines(label)))
            case _:
                raise ValueError(f"neither box nor frame nor arrow: {line!r}")
    return Picture(boxes, frames, tuple(arrows))


def areas(picture: Picture) -> dict[str, Area]:
    """Where each box and each frame is, by name."""
    boxes = picture.boxes.values()
    count = max(each.row + each.rows for each in boxes)
    heights = [
        max(each.height for each in boxes if each.row == row and each.rows == 1)
        for row in range(count)
    ]
    framed = {name for frame in picture.frames.values() for name in frame.boxes}
    first = min(each.row for each in boxes if each.name in framed)
    tops = [
        _MARGIN + (_FRAME_TITLE if row >= first else 0) + above
        for row, above in enumerate(
            accumulate((h + _ROW_GAP for h in heights), initial=0)
        )
    ]
    found = {}
    for box in boxes:
        last = box.row + box.rows - 1
        right = _left(box.column + box.columns - 1) + _COLUMN
        bottom = tops[last] + heights[last]
        found[box.name] = Area(box.left, tops[box.row], right, bottom)
    for frame in picture.frames.values():
        inside = [found[name] for name in frame.boxes]
        found[frame.name] = Area(
            min(each.left for each in inside) - _PAD,
            min(each.top for each in inside) - _FRAME_TITLE,
            max(each.right for each in inside) + _PAD,
            max(each.bottom for each in inside) + _PAD,
        )
    return found


def course(picture: Picture, arrow: Arrow) -> tuple[int, int, int, int]:
    """Where an arrow begins and ends: x and y of both. Raises ValueError.

    It is straight, from edge to edge.
    """
    places = areas(picture)
    one, other = places[arrow.start], places[arrow.end]
    back = any(
        (each.start, each.end) == (arrow.end, arrow.start) for each in picture.arrows
    )
    right, down = one.right < other.left, one.bottom < other.top
    shift = (_APART if right or down else -_APART) if back else 0
    if right or other.right < one.left:
        y = _middle(one.top, one.bottom, other.top, other.bottom) - shift
        return (one.right, y, other.left, y) if right else (one.left, y, other.right, y)
    if down or other.bottom < one.top:
        x = _middle(one.left, one.right, other.left, other.right) - shift
        return (x, one.bottom, x, other.top) if down else (x, one.top, x, other.bottom)
    raise ValueError(f"{arrow.start} and {arrow.end} are not apart")


def label_area(picture: Picture, arrow: Arrow) -> Area:
    """Where an arrow's words are."""
    x, y, anchor = _beside(course(picture, arrow), arrow.label)
    width = math.ceil(max(map(len, arrow.label), default=0) * CHARACTER)
    left = x - width // 2 if anchor == "middle" else x
    return Area(left, y - 10, left + width, y + 3 + _LABEL * (len(arrow.label) - 1))


def draw(picture: Picture) -> str:
    """The picture as SVG."""
    places = areas(picture)
    height = max(each.bottom for each in places.values()) + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        "<title>A packet's way through cthelper</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#45617d"/>'
        "</marker></defs>",
        # So that it can be read on a dark page, too.
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        *(_frame(each, places[each.name]) for each in picture.frames.values()),
        *(_box(each, places[each.name]) for each in picture.boxes.values()),
        *(_arrow(course(picture, each), each.label) for each in picture.arrows),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _left(column: int) -> int:
    return _MARGIN + _PAD + column * _COLUMN + sum(_GAPS[:column])


def _lines(words: str) -> tuple[str, ...]:
    return tuple(each.strip() for each in words.split("/")) if words else ()


def _middle(a: int, b: int, c: int, d: int) -> int:
    """The middle of what two stretches have in common. Raises ValueError."""
    start, stop = max(a, c), min(b, d)
    if start > stop:
        raise ValueError("no straight line leads from one to the other")
    return (start + stop) // 2


def _frame(frame: Frame, area: Area) -> str:
    return (
        f'{_rectangle("frame", area)}<text class="frame-title" x="{area.left + _PAD}" '
        f'y="{area.top + 17}">{escape(frame.title)}</text>'
    )


def _box(box: Box, area: Area) -> str:
    x, y = area.left + _PAD, area.top + 4
    texts = []
    for style, size, words in (
        ("title", _LINE, box.title),
        *(("line", _LINE, each) for each in box.lines),
        *(("file", _FILE, each) for each in box.file_rows),
    ):
        y += size
        texts.append(f'<text class="{style}" x="{x}" y="{y}">{escape(words)}</text>')
    kind = "box" if box.files else "box foreign"
    return _rectangle(kind, area) + "".join(texts)


def _rectangle(kind: str, area: Area) -> str:
    return (
        f'<rect class="{kind}" x="{area.left}" y="{area.top}" '
        f'width="{area.right - area.left}" height="{area.bottom - area.top}" rx="5"/>'
    )


def _arrow(ends: tuple[int, int, int, int], label: Sequence[str]) -> str:
    x1, y1, x2, y2 = ends
    x, y, anchor = _beside(ends, label)
    texts = "".join(
        f'<text class="label" x="{x}" y="{y + _LABEL * number}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
        for number, words in enumerate(label)
    )
    return (
        f'<path class="arrow" d="M{x1},{y1} L{x2},{y2}" marker-end="url(#end)"/>{texts}'
    )


def _beside(
    ends: tuple[int, int, int, int], label: Sequence[str]
) -> tuple[int, int, str]:
    """Where an arrow's words begin: above the middle of a level one, else beside it."""
    x1, y1, x2, y2 = ends
    further = _LABEL * (len(label) - 1)
    if y1 == y2:
        return (x1 + x2) // 2, y1 - 6 - further, "middle"
    return x1 + 8, (y1 + y2) // 2 + 4 - further // 2, "start"
