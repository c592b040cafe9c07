# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws docs/how-it-works.svg from docs/how-it-works.txt: boxes and arrows."""

from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH, _HEIGHT = 240, 104
_GAP_X, _GAP_Y = 40, 34
_MARGIN: Final = 12
_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1d2733; }
  .title { font-weight: 600; font-size: 15px; }
  .file { font: 11px ui-monospace, monospace; fill: #45617d; }
  .box { fill: #eef3f8; stroke: #45617d; stroke-width: 1.2; }
  .foreign { fill: #ffffff; stroke-dasharray: 5 4; }
  .arrow { stroke: #45617d; stroke-width: 1.6; fill: none; }
"""


@dataclass(frozen=True, slots=True)
class Box:
    """A step, the files and folders that it is in, and what it does, in lines."""

    name: str
    column: int
    row: int
    title: str
    files: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def x(self) -> int:
        """The left edge."""
        return _MARGIN + self.column * (_WIDTH + _GAP_X)

    @property
    def y(self) -> int:
        """The upper edge."""
        return _MARGIN + self.row * (_HEIGHT + _GAP_Y)


@dataclass(frozen=True, slots=True)
class Picture:
    """Boxes by name, and arrows from one to a neighbour of it."""

    boxes: dict[str, Box]
    arrows: tuple[tuple[str, str], ...]


def read(text: str) -> Picture:
    """The picture that a text describes. Raises ValueError."""
    boxes: dict[str, Box] = {}
    arrows = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if "|" not in line:
            one, other = (each.strip() for each in line.split(">"))
            arrows.append((one, other))
            continue
        name, place, title, files, words = (each.strip() for each in line.split("|"))
        column, row = map(int, place.split())
        said = tuple(each.strip() for each in words.split("/"))
        boxes[name] = Box(name, column, row, title, tuple(files.split()), said)
    return Picture(boxes, tuple(arrows))


def draw(picture: Picture) -> str:
    """The picture as SVG."""
    boxes = picture.boxes.values()
    width = max(each.x for each in boxes) + _WIDTH + _MARGIN
    height = max(each.y for each in boxes) + _HEIGHT + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">',
        "<title>A packet's way through cthelper</title>",
        f"<style>{_STYLE}</style>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="#45617d"/>'
        "</marker></defs>",
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff"/>',
        *map(_box, boxes),
        *(_arrow(picture.boxes[a], picture.boxes[b]) for a, b in picture.arrows),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(box: Box) -> str:
    kind = "box" if box.files else "box foreign"
    lines = [("title", box.title), *(("", each) for each in box.lines)]
    lines += [("file", each) for each in _rows(box.files)]
    texts = "".join(
        f'<text class="{style}" x="{box.x + 10}" y="{box.y + 21 + 17 * number}">'
        f"{escape(words)}</text>"
        for number, (style, words) in enumerate(lines)
    )
    return (
        f'<rect class="{kind}" x="{box.x}" y="{box.y}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="5"/>{texts}'
    )


def _rows(files: tuple[str, ...]) -> list[str]:
    """The files in rows that fit into a box."""
    rows: list[str] = []
    for each in files:
        if rows and len(rows[-1]) + len(each) < 34:
            rows[-1] += f" {each}"
        else:
            rows.append(each)
    return rows


def _arrow(one: Box, other: Box) -> str:
    if one.row == other.row:
        right = one.column < other.column
        start, end = (one.x + _WIDTH, other.x) if right else (one.x, other.x + _WIDTH)
        y = one.y + _HEIGHT // 2
        path = f"M{start},{y} L{end},{y}"
    else:
        down = one.row < other.row
        start, end = (one.y + _HEIGHT, other.y) if down else (one.y, other.y + _HEIGHT)
        x = one.x + _WIDTH // 2
        path = f"M{x},{start} L{x},{end}"
    return f'<path class="arrow" d="{path}" marker-end="url(#end)"/>'
