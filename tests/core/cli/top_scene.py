# SPDX-License-Identifier: GPL-2.0-or-later
"""A gateway as ``cthelper top`` finds it, always the same, and its picture.

`python -m tests.core.cli.top_scene FILE.svg` draws docs/top.svg (script/screenshot).
"""

import asyncio
import re
import sys
from dataclasses import replace
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, cast

from textual.pilot import Pilot

from cthelper.core.cli.top_reading import Reader, Wanted
from cthelper.core.cli.top_screen import Flows, Top
from cthelper.core.control.health import Fill
from cthelper.core.netlink.listing import Count, Listed
from cthelper.core.records import Record
from cthelper.core.tuples import (
    TCP,
    UDP,
    Expectation,
    Transport,
    Tuple,
    flow_key,
    host_network,
)
from tests.core.builders import conntrack, endpoint
from tests.core.control.controlled import World, controller

NOW: Final = 1_767_225_600.0
"""When it is: the beginning of 2026, UTC."""

_UP_SECONDS: Final = 3 * 86400 + 2 * 3600
_FONT: Final = re.compile(r"\s*@font-face \{.*?\}\n", re.DOTALL)


def flow(
    transport: Transport, source: tuple[str, int], destination: tuple[str, int]
) -> Tuple:
    return Tuple(transport, endpoint(*source), endpoint(*destination))


def entry(
    original: Tuple,
    id_: int,
    size: int,
    *,
    helper: str | None = None,
    master: Tuple | None = None,
    timeout: int = 30,
) -> Listed:
    """An entry that has so many bytes."""
    found = conntrack(original, id_=id_, helper=helper)
    found.master, found.timeout = master, timeout
    packets = Count(max(1, size // 900), size * 2 // 3), Count(1, size - size * 2 // 3)
    return Listed(found, "ESTABLISHED" if original.transport is TCP else None, *packets)


def expected(
    master: Tuple, helper: str, destination: tuple[str, int], timeout: int
) -> Expectation:
    return Expectation(
        master=master,
        transport=master.transport,
        source=host_network(master.source.address),
        source_port=None,
        destination=endpoint(*destination),
        policy=None,
        timeout=timeout,
        helper=helper,
    )


RPC: Final = flow(UDP, ("10.77.1.2", 34513), ("10.77.2.2", 111))
NFS: Final = flow(TCP, ("10.77.1.2", 742), ("10.77.2.2", 2049))
ORACLE: Final = flow(TCP, ("10.77.1.7", 51002), ("10.77.2.9", 1521))
FTP: Final = flow(TCP, ("10.77.1.30", 40122), ("192.0.2.80", 21))
FTP6: Final = flow(TCP, ("fd77:1::30", 40123), ("fd77:2::80", 21))
PRINTER: Final = flow(UDP, ("10.77.1.2", 5353), ("224.0.0.251", 5353))
ENDED: Final = flow(UDP, ("10.77.1.4", 50111), ("10.77.2.2", 111))


def scene(path: Path) -> World:
    """The gateway."""
    world = World(path, clock=lambda: NOW)
    names = ("ftp", "mdns", "sunrpc", "tns")
    state = cast(Record, world.supervisor.state)
    state |= {
        **{"version": "0.1.0", "since": NOW - _UP_SECONDS},
        "helpers": {each: {"policies": ["data"]} for each in names},
        "counters": {"started": 1, "refused.third-party-address": 2},
    }
    world.commands._entries = lambda: Fill(1_204, 65_536)
    world.commands._expectations = lambda: Fill(4, 4_096)
    world.kernel.expected = [
        expected(RPC, "sunrpc", ("10.77.2.2", 20048), 281),
        expected(RPC, "sunrpc", ("10.77.2.2", 32803), 294),
        expected(ORACLE, "tns", ("10.77.2.10", 43173), 17),
        expected(FTP, "ftp", ("192.0.2.80", 50021), 112),
    ]
    for seconds, helper, wanted, by in (
        (83, "ftp", ("10.77.9.9", 22), FTP),
        (12, "tns", ("10.77.9.10", 1099), ORACLE),
    ):
        world.server.recent.add(
            NOW - seconds,
            "refused",
            "warning",
            {
                **{"helper": helper, "flow": by, "reason": "third-party-address"},
                **{"endpoint": endpoint(*wanted), "transport": "tcp"},
                "detail": "neither end of the flow",
            },
        )
    begin(world)
    return world


def begin(world: World) -> None:
    """What flows at first."""
    pasv = flow(TCP, ("10.77.1.30", 40140), ("192.0.2.80", 50007))
    epsv = flow(TCP, ("fd77:1::30", 40141), ("fd77:2::80", 50008))
    world.kernel.table = [
        entry(RPC, 1, 1_340, helper="sunrpc", timeout=112),
        entry(NFS, 2, 43_200_000, master=RPC, timeout=431_990),
        entry(ORACLE, 3, 9_120, helper="tns", timeout=431_961),
        entry(FTP, 4, 2_210, helper="ftp", timeout=431_998),
        entry(pasv, 5, 703_000_000, master=FTP, timeout=431_999),
        entry(FTP6, 6, 1_990, helper="ftp", timeout=431_998),
        entry(epsv, 7, 88_000_000, master=FTP6, timeout=431_999),
        entry(PRINTER, 8, 460, helper="mdns", timeout=21),
        entry(
            flow(TCP, ("10.77.1.4", 911), ("10.77.2.2", 2049)),
            *(9, 5_800_000),
            master=ENDED,
            timeout=431_012,
        ),
    ]
    world.server.flows = [[flow_key(each, 0), None] for each in (1, 3, 4, 6)]
    world.server.flows.append([flow_key(8, 0), "done"])


def go_on(world: World) -> None:
    """What has flowed two seconds later."""
    more = {2: 1_400_000, 5: 23_600_000, 7: 7_130_000, 9: 52_000, 4: 130}
    for at, each in enumerate(world.kernel.table):
        size = more.get(each.entry.id, 0)
        assert each.sent is not None
        sent = Count(each.sent.packets + size // 900, each.sent.bytes + size)
        world.kernel.table[at] = replace(each, sent=sent)


class Clock:
    """Time that goes on where it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def prepared(world: World, wanted: Wanted | None = None) -> tuple[Top, Clock]:
    """The screen over a scene that somebody answers for, before its second reading."""
    clock = Clock()
    reader = Reader(world.path, clock=clock, today=lambda: NOW)
    wanted = Wanted() if wanted is None else wanted
    reader.read(wanted)
    go_on(world)
    clock.now += 2.0
    return Top(reader, wanted, 3600.0, clock=clock), clock


async def shown(pilot: "Pilot[int]") -> list[str]:
    """The lines of the screen, once it shows flows."""
    top = pilot.app
    assert isinstance(top, Top)
    for _ in range(500):
        await pilot.pause(0.02)
        if top.screen_stack[0].query_one(Flows).rows:
            break
    await pilot.pause()
    return text_of(picture(top))


def picture(top: Top) -> str:
    """The screen as SVG; it loads nothing from elsewhere."""
    return _FONT.sub("", top.export_screenshot(title="cthelper top"))


def text_of(svg: str) -> list[str]:
    """What it says, line by line."""
    lines: dict[float, dict[float, str]] = {}
    for x, y, text in re.findall(
        r'<text class="[^"]*-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', svg
    ):
        lines.setdefault(float(y), {})[float(x)] = unescape(text).replace("\xa0", " ")
    return [
        "".join(lines[y][x] for x in sorted(lines[y])).rstrip() for y in sorted(lines)
    ]


def draw() -> str:
    """The picture at 80x24, with a row chosen."""

    async def drawn(top: Top) -> str:
        async with top.run_test(size=(80, 24)) as pilot:
            await shown(pilot)
            await pilot.press("down")
            await pilot.pause()
            return picture(top)

    with TemporaryDirectory() as folder:
        world = scene(Path(folder) / "socket")
        with controller(world):
            return asyncio.run(drawn(prepared(world)[0]))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(), "utf-8")
