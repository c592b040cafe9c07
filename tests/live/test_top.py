# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper top`` of a real daemon: what is expected, met and refused is shown."""

import re
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.core.cli.screen import Screen
from tests.live.daemon import Daemon, equal_limits, only
from tests.live.gateway import ask_in
from tests.live.traffic import PORT, Echo, call, getport
from tests.live.world import CLIENT, SERVER, World

pytestmark = [pytest.mark.live, pytest.mark.tmux]

ANNOUNCED: Final = 7999
# Which no helper may open unless it is told to.
LOW: Final = 80
CONFIG: Final = (
    f"{only('sunrpc')}[helpers.sunrpc]\nports = [111, {PORT}]\n{equal_limits(300)}"
)


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[Screen]:
    """A terminal."""
    with closing(Screen(tmp_path)) as screen:
        yield screen


@pytest.fixture
def counting(world: World) -> Iterator[None]:
    """The gateway counts packets and bytes of each flow."""
    command = "sysctl", "-qw"
    world.gateway.run(*command, "net.netfilter.nf_conntrack_acct=1", check=True)
    yield
    world.gateway.run(*command, "net.netfilter.nf_conntrack_acct=0", check=True)


@pytest.mark.usefixtures("counting")
def test_flow_is_shown_from_its_announcement_on_and_a_daemon_that_comes_back(
    world: World, daemon: Daemon, screen: Screen
) -> None:
    daemon.start(CONFIG)
    daemon.await_event("controller-started")
    # As it is seen from here, whoever serves there.
    place = f"/proc/{world.gateway.pid}/root/run/cthelper/control.sock"
    screen.start("--socket", place, "--every", "1")
    with Echo(world.server, LOW):
        getport(world)[0].close()
    screen.seen("health ok")
    refused = screen.seen(f" udp {SERVER}:{LOW}, by udp {CLIENT}:")
    assert any(re.match(r"\d\d:\d\d:\d\d sunrpc \S+ udp ", each) for each in refused)
    world.forget()
    with Echo(world.server, ANNOUNCED), Echo(world.server, port=ANNOUNCED):
        flow, _ = getport(world)
        ends = f"udp {CLIENT}:{flow.getsockname()[1]} > {SERVER}:{PORT}"
        expects = f"  udp {CLIENT} > {SERVER}:{ANNOUNCED} "
        lines = screen.seen(expects)
        (head,) = (each for each in lines if each.startswith(f"{ends} "))
        assert head.split()[4:6] == ["sunrpc", "inspected"]

        def left(lines: list[str]) -> int:
            (line,) = (each for each in lines if each.startswith(expects))
            found = re.search(r" expects +(\d+)s ", line)
            assert found, line
            return int(found[1])

        first = left(lines)
        assert 0 < first <= 300
        screen.until(lambda lines: left(lines) < first)
        # Who meets it is below it, with what it moves.
        with world.client.entered():
            data = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with data:
            data.settimeout(10)
            data.bind((CLIENT, 0))
            data.connect((SERVER, ANNOUNCED))
            met = f"  udp {CLIENT}:{data.getsockname()[1]} > {SERVER}:{ANNOUNCED} "

            def moves(lines: list[str]) -> bool:
                call(data)
                words = [each.split() for each in lines if each.startswith(met)]
                return any(row[-1] not in ("-", "0") for row in words)

            lines = screen.until(moves)
        (row,) = (each.split() for each in lines if each.startswith(met))
        # Linux 6.12.95 gives it its master's helper.
        handed_down = ask_in(world).hands_down
        assert (row[4] == "sunrpc") is handed_down
        assert row[4 + handed_down] in ("answered", "unanswered")
        screen.press("/")
        screen.seen("filter, such as")
        screen.type(f"-p udp --dport {ANNOUNCED} --helper sunrpc")
        screen.press("Enter")
        screen.seen(f"| -p udp --dport={ANNOUNCED} --helper=sunrpc | row 1 of 3")
        flow.close()
    assert daemon.stop() == 0
    screen.until(lambda lines: lines[0].startswith("! "))
    daemon.start(CONFIG)
    screen.seen("health ok")
    screen.press("q")
    screen.seen("ended 0")
