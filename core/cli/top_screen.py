# SPDX-License-Identifier: GPL-2.0-or-later
"""The screen of ``cthelper top``, by textual.

It holds what was read last, and what the user has said; reading goes on in a thread
(top_reading.py), so that keys are answered whatever the daemon does. All that is shown
is ASCII without markup, and nothing is told by colour.
"""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.geometry import Region, Size
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Footer, Input, Static

from cthelper.control import ControlError
from cthelper.core.cli import INTERRUPTED
from cthelper.core.cli.control import filter_text, read_filter
from cthelper.core.cli.top_reading import Poller, Reader, Reading, Wanted
from cthelper.core.cli.top_rows import COLUMNS, MOST, Kind, Order, Row, Tree, plain
from cthelper.core.errors import UsageError

# How wide each column is, on a narrow screen and on a wide one. The flow has what is
# left.
_NARROW: Final = {"helper": 7, "state": 11, "left": 5, "bytes": 5, "bytes/s": 5}
_WIDE: Final = {
    **{"helper": 9, "state": 11, "left": 5},
    **{"packets": 5, "packets/s": 5, "bytes": 5, "bytes/s": 5},
}
_WIDE_FROM: Final = 100
_HEADS: Final = {"packets": "PKTS", "packets/s": "PKT/S", "bytes/s": "B/S"}
_WORDS: Final = ("flow", "helper", "state")
# Until an answer is said to be late.
_LATE_SECONDS: Final = 3.0
# Refusals, where there is little room.
_REFUSALS: Final = 3

_KEYS: Final = (
    ("up down  k j", "choose a row; all that is known of it is below the tree"),
    ("PgUp PgDn", "the same by pages; Home, End: the first, the last"),
    ("s  S", "sort by the next column, by the one before"),
    ("1 to 8", f"sort by {', '.join(COLUMNS)}"),
    ("r", "the other way round"),
    ("/", "filter, as `cthelper flows` does: -p udp --dport 111"),
    ("", "Enter takes it, Escape leaves it as it was"),
    ("a", "also entries of conntrack without a helper; again: without them"),
    ("p  space", "pause: the screen stands still; again: it goes on"),
    ("q  Ctrl-C", "quit"),
)


def size_text(number: float | None, thousand: int = 1000) -> str:
    """A number in five characters: 999, 1.2k, 34.5M."""
    if number is None:
        return "-"
    value = float(number)
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5 or unit == "T":
            break
        value /= thousand
    if not unit:
        return f"{value:.0f}"
    return f"{value:.1f}{unit}" if value < 99.95 else f"{value:.0f}{unit}"


def left_text(seconds: int | None) -> str:
    """A time in five characters: 299s, 20m, 119h."""
    if seconds is None:
        return "-"
    if seconds < 1000:
        return f"{seconds}s"
    minutes = seconds // 60
    return f"{minutes}m" if minutes < 1000 else f"{minutes // 60}h"


def cut(text: str, width: int) -> str:
    """Text that is as wide; ~ says that there is more of it."""
    return text.ljust(width) if len(text) <= width else text[: max(0, width - 1)] + "~"


def columns(width: int) -> dict[str, int]:
    """The columns of a screen, with their widths."""
    others = _NARROW if width < _WIDE_FROM else _WIDE
    flow = width - sum(others.values()) - len(others)
    return {"flow": max(10, flow), **others}


def head_line(width: int) -> str:
    """The line above the rows."""
    heads = {name: _HEADS.get(name, name.upper()) for name in COLUMNS}
    return _joined(heads, width)


def row_line(row: Row, width: int, now: float) -> str:
    """A row."""
    below = "" if row.kind is Kind.CONTROL else "  "
    cells = {
        "flow": below + row.flow,
        "helper": row.helper,
        "state": row.state,
        "left": left_text(row.left(now)),
        "packets": size_text(row.packets),
        "bytes": size_text(row.bytes, 1024),
        "packets/s": size_text(row.packet_rate),
        "bytes/s": size_text(row.byte_rate, 1024),
    }
    return _joined(cells, width)


def _joined(cells: Mapping[str, str], width: int) -> str:
    return " ".join(
        cut(cells[name] if name in _WORDS else cells[name].rjust(room), room)
        for name, room in columns(width).items()
    )


class Flows(ScrollView, can_focus=True):
    """The tree, of which a line is drawn only where it is seen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("home", f"move({-MOST})", show=False),
        Binding("end", f"move({MOST})", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.cursor = 0
        self.now = 0.0

    @property
    def chosen(self) -> Row | None:
        """The row that the user has chosen."""
        return self.rows[self.cursor] if self.rows else None

    def show(self, rows: list[Row]) -> None:
        """Show these. The chosen one stays so, but at the top what is first is."""
        before = self.chosen
        self.rows = rows
        if self.cursor and before is not None:
            self.cursor = next(
                (at for at, each in enumerate(rows) if each.key == before.key),
                self.cursor,
            )
        self.virtual_size = Size(self.size.width, len(rows))
        self._choose(self.cursor)

    def tick(self, now: float) -> None:
        """Show what is left then."""
        self.now = now
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """A line of the screen."""
        width, at = self.size.width, y + self.scroll_offset.y
        style = self.rich_style
        text = ""
        if at < len(self.rows):
            text = row_line(self.rows[at], width, self.now)
            if at == self.cursor:
                style += Style(reverse=True)
        return Strip([Segment(cut(text, width), style)], width)

    def action_move(self, step: int) -> None:
        """Choose another row."""
        self._choose(self.cursor + step)

    def action_page(self, step: int) -> None:
        """Choose a row of another page."""
        self._choose(self.cursor + step * max(1, self.size.height - 1))

    def _choose(self, at: int) -> None:
        self.cursor = max(0, min(at, len(self.rows) - 1))
        self.scroll_to_region(
            Region(0, self.cursor, 1, 1), animate=False, force=True, immediate=True
        )
        self.refresh()
        self.post_message(Chosen())


class Chosen(Message):
    """Another row may be the chosen one."""


class Told(Message):
    """The daemon has told something, or does not answer."""

    def __init__(self, found: Reading | ControlError) -> None:
        super().__init__()
        self.found = found


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,h,enter,space,f1", "dismiss", "Back"),
        Binding("q", "app.quit", "Quit"),
    ]

    def compose(self) -> ComposeResult:
        """Its widgets."""
        lines = [f"{keys:<14}{what}" for keys, what in _KEYS]
        text = "\n".join(
            (
                *("cthelper top: keys", "", *lines, ""),
                "Trees are sorted by all that is in them. Rates (PKT/S, B/S) are those",
                "between the two last readings; k is 1,000 packets, or 1,024 bytes.",
                "~ is where a line is cut off. The times of REFUSED are UTC.",
            )
        )
        yield Static(text, id="help", markup=False)
        yield Footer()


class Top(App[int]):
    """The screen; `run` gives the exit code."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    * { scrollbar-size: 0 0; }
    #health, #count, #detail, #refused { height: auto; text-wrap: nowrap; }
    #heads, #over { height: 1; text-wrap: nowrap; text-style: bold underline; }
    Flows { height: 1fr; min-height: 1; }
    #detail { height: 3; text-wrap: wrap; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    Help { align: left top; background: $background; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("question_mark,h,f1", "help", "Keys", key_display="?"),
        Binding("s", "sort(1)", "Sort"),
        Binding("S", "sort(-1)", show=False),
        Binding("r", "turn", "Reverse"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("a", "others", "All"),
        Binding("p,space", "pause", "Pause", key_display="p"),
        Binding("ctrl+c", "interrupt", show=False, priority=True),
        Binding("escape", "leave", "Leave it as it was"),
        *(
            Binding(str(number), f"column({number - 1})", show=False)
            for number in range(1, len(COLUMNS) + 1)
        ),
    ]

    def __init__(
        self,
        reader: Reader,
        wanted: Wanted,
        every: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # The terminal's own colours, or none at all.
        super().__init__(ansi_color=True)
        self.theme = "ansi-dark"
        self._clock = clock
        self._wanted = wanted
        self._reading: Reading | None = None
        self._error = ""
        self._since = ""
        self._paused = self._typing = False
        self._poller = Poller(reader, wanted, every, self._deliver, clock=clock)

    def _deliver(self, found: Reading | ControlError) -> None:
        self.post_message(Told(found))

    def compose(self) -> ComposeResult:
        """Its widgets."""
        yield Static("", id="health", markup=False)
        yield Static("", id="heads", markup=False)
        yield Flows()
        yield Static("", id="count", markup=False)
        yield Static("", id="detail", markup=False)
        yield Static("", id="over", markup=False)
        yield Static("", id="refused", markup=False)
        yield Input(id="filter", compact=True, max_length=200)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begin to ask."""
        loop = asyncio.get_running_loop()
        for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, INTERRUPTED)):
            loop.add_signal_handler(number, self.exit, code)
        # Of a terminal that is gone nothing has to be restored, and what is written to
        # it may be waited for without end.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        self._base.query_one(Flows).focus()
        self.set_interval(1.0, self._draw)
        self._draw()
        self._poller.start()

    def on_unmount(self) -> None:
        """Ask nothing any more."""
        self._poller.end()

    @property
    def _base(self) -> Screen[object]:
        """The screen that is below the help."""
        return self.screen_stack[0]

    # What happens

    def on_told(self, message: Told) -> None:
        """Show what the daemon has told."""
        found = message.found
        if self._paused:
            return
        if isinstance(found, ControlError):
            if not self._error:
                self._since = time.strftime("%H:%M:%S")
            self._error = plain(found)
        elif found.wanted.same_flows(self._wanted):
            self._error = ""
            self._reading = found
        self._show()

    def on_chosen(self) -> None:
        """Show all of the chosen row."""
        self._draw()

    def on_resize(self, _event: Resize) -> None:
        """Give each line its new width."""
        self._show()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Take the filter."""
        try:
            filter_ = read_filter(event.value)
        except UsageError as error:
            self._say(f"! {plain(error)}")
            return
        self.action_leave()
        self._want(replace(self._wanted, filter=filter_))

    # What the user says

    def check_action(self, action: str, _parameters: tuple[object, ...]) -> bool:
        """Whether a key does it now: while a filter is typed they are letters."""
        return action == "interrupt" or self._typing is (action == "leave")

    async def action_quit(self) -> None:
        """End it."""
        self.exit(0)

    def action_interrupt(self) -> None:
        """End it as Ctrl-C ends other commands."""
        self.exit(INTERRUPTED)

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_sort(self, step: int) -> None:
        """Sort by another column."""
        at = COLUMNS.index(self._wanted.order.column)
        self.action_column((at + step) % len(COLUMNS))

    def action_column(self, number: int) -> None:
        """Sort by this column."""
        self._want(replace(self._wanted, order=Order(COLUMNS[number])))

    def action_turn(self) -> None:
        """Sort the other way round."""
        order = self._wanted.order
        turned = replace(order, turned=not order.turned)
        self._want(replace(self._wanted, order=turned))

    def action_others(self) -> None:
        """Show what has no helper, or do not."""
        self._want(replace(self._wanted, others=not self._wanted.others))

    def action_pause(self) -> None:
        """Stand still, or go on."""
        self._pause(not self._paused)
        self._draw()

    def action_filter(self) -> None:
        """Have a filter typed."""
        field = self._base.query_one(Input)
        field.value = filter_text(self._wanted.filter)
        self._type(True)
        field.focus()
        self._say("filter, such as -p udp -s 10.0.0.0/8 --dport 111 --helper sunrpc:")

    def action_leave(self) -> None:
        """Leave the filter as it was."""
        self._type(False)
        self._base.query_one(Flows).focus()
        self._draw()

    def _type(self, typing: bool) -> None:
        self._typing = typing
        self._base.query_one(Input).display = typing
        self.refresh_bindings()

    def _want(self, wanted: Wanted) -> None:
        """Ask for this; of very many flows only a reading knows the first."""
        if not wanted.same_flows(self._wanted):
            self._pause(False)
        self._wanted = wanted
        found = self._reading
        known = found is not None and found.whole and wanted.same_flows(found.wanted)
        self._poller.want(wanted, at_once=not known)
        self._show()

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        self._poller.pause(paused)

    # What is shown

    def _show(self) -> None:
        """Show what was read, in the order that is wanted."""
        if self._reading is not None:
            trees = self._wanted.order.trees(self._reading.trees)
            self._base.query_one(Flows).show(_rows(trees))
        self._draw()

    def _draw(self) -> None:
        """Show all but the rows, and what is left of time."""
        if not self.is_running:
            return  # the screen is being taken apart, and the clock ticks still
        width, height = self.size
        flows = self._base.query_one(Flows)
        # It stands still where nobody knows what has become of it.
        if not (self._paused or self._error):
            flows.tick(self._clock())
        self._lines("#health", self._health())
        self._lines("#heads", [head_line(width)])
        if not self._typing:
            self._say(self._count())
        row = flows.chosen
        self._base.query_one("#detail", Static).update(
            "" if row is None else "\n".join(row.all(flows.now))
        )
        refused = [] if self._reading is None else list(self._reading.refused)
        room = max(_REFUSALS, height // 6)
        self._lines("#over", [cut(f"REFUSED {len(refused) or 'nothing'}", width)])
        self._lines("#refused", refused[:room])

    def _health(self) -> Iterator[str]:
        if self._error:
            yield f"! {self._error}"
            yield f"! since {self._since}; what is below was so then; asked again"
        elif self._reading is None:
            yield "the daemon is asked ..."
        else:
            yield from self._reading.health

    def _count(self) -> str:
        wanted, found = self._wanted, self._reading
        order = wanted.order
        parts = ["PAUSED"] if self._paused else []
        late = self._poller.late
        if late > _LATE_SECONDS:
            parts.append(f"ASKED {late:.0f} S AGO")
        parts.append(f"by {order.column}{' turned' if order.turned else ''}")
        parts += [filter_text(wanted.filter)] if wanted.filter else []
        parts += ["--all"] if wanted.others else []
        if found is None:
            return " | ".join(parts)
        if not found.counted:
            parts.append("nf_conntrack_acct is off")
        flows = self._base.query_one(Flows)
        shown = len(flows.rows)
        if shown < found.rows:
            parts.append(f"{found.rows - shown:,} MORE ROWS")
        if shown:
            parts.append(f"row {flows.cursor + 1:,} of {shown:,}")
        parts.append(
            f"{found.controls:,} control, {found.expectations:,} expected, "
            f"{found.flows:,} data flows"
        )
        return " | ".join(parts)

    def _say(self, text: str) -> None:
        self._lines("#count", [text])

    def _lines(self, name: str, lines: "Iterator[str] | list[str]") -> None:
        width = self.size.width
        self._base.query_one(name, Static).update(
            "\n".join(cut(each, width) for each in lines)
        )


def _rows(trees: list[Tree]) -> list[Row]:
    """The rows of trees, no more than MOST."""
    rows: list[Row] = []
    for tree in trees:
        rows.extend(tree.all())
        if len(rows) >= MOST:
            break
    return rows[:MOST]
