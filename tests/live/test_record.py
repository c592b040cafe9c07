# SPDX-License-Identifier: GPL-2.0-or-later
"""`cthelper record` on a gateway: what it writes replays as what happened there."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import pytest

from tests.live.daemon import CTHELPER, Daemon, equal_limits, only
from tests.live.traffic import PORT, Echo, getport
from tests.live.world import (
    CLIENT,
    CLIENT6,
    GATEWAY_LAN,
    GATEWAY_WAN,
    SERVER,
    SERVER6,
    WAN,
    World,
)

pytestmark = pytest.mark.live

ANNOUNCED: Final = 7999
CONFIG: Final = (
    f"{only('sunrpc')}[helpers.sunrpc]\nports = [111, {PORT}]\n{equal_limits(300)}"
)
MASQUERADE: Final = f"""
table ip nat {{
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname "{WAN}" masquerade
	}}
}}
"""
OF_THE_WORLD: Final = (
    *(CLIENT, SERVER, GATEWAY_LAN, GATEWAY_WAN),
    *(CLIENT6, SERVER6),
)


class Recorder:
    """`cthelper record` in the background."""

    def __init__(self, world: World, daemon: Daemon, file: Path, *more: str) -> None:
        self.file = file
        self._process = world.gateway.start(
            *(*CTHELPER, "record", "sunrpc", "--config", str(daemon.config)),
            *("-w", str(file), *more),
            stderr=subprocess.PIPE,
        )
        self.said = self._line()
        assert "recording sunrpc" in self.said, self.said + self._rest()

    def stop(self, number: signal.Signals = signal.SIGINT) -> str:
        """End it by a signal; what it says."""
        self._process.send_signal(number)
        said = self._rest()
        assert self._process.returncode == 0, said
        return said

    def kill(self) -> None:
        """End it so that it leaves its table."""
        self._process.kill()
        self._rest()

    def _line(self) -> str:
        assert self._process.stderr
        return str(self._process.stderr.readline())

    def _rest(self) -> str:
        return str(self._process.communicate(timeout=60)[1])


def tables(world: World) -> list[str]:
    """The tables of recorders."""
    listed = world.gateway.run("nft", "list", "tables", check=True).stdout
    return [each.split()[-1] for each in listed.splitlines() if "record" in each]


def replayed(daemon: Daemon, file: Path, *more: str) -> list[dict[str, Any]]:
    """What replay says of it."""
    done = daemon.cthelper("replay", "--json", *more, str(file))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def ask_and_meet(world: World) -> None:
    """A client asks for a port, and uses it."""
    flow, port = getport(world)
    with flow, world.client.entered():
        flow.connect((SERVER, port))
        flow.send(b"data")
        assert flow.recv(100) == b"data"


@contextmanager
def served(world: World) -> Iterator[None]:
    """A portmapper, and the service that it announces."""
    with Echo(world.server), Echo(world.server, port=ANNOUNCED):
        yield


def test_recordings_replay_as_what_happened_behind_nat(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    daemon.start(CONFIG)
    world.gateway.run("nft", "-f", "-", input=MASQUERADE, check=True)
    open_, hidden = tmp_path / "open.pcapng", tmp_path / "hidden.pcapng"
    with served(world):
        # One that was killed, and two at once.
        Recorder(world, daemon, tmp_path / "killed.pcapng").kill()
        assert len(tables(world)) == 1
        one = Recorder(world, daemon, open_)
        other = Recorder(world, daemon, hidden, "--anonymize")
        assert len(tables(world)) == 2
        ask_and_meet(world)
        assert "4 packets" in one.stop()
        assert len(tables(world)) == 1
        assert "4 packets; left out 0, blanked 0" in other.stop(signal.SIGTERM)
        assert tables(world) == []
    assert open_.stat().st_mode & 0o777 == 0o600
    nat = ("--snat", f"{CLIENT}={GATEWAY_WAN}")
    found = replayed(daemon, open_, *nat)
    events = [each["event"] for each in found]
    assert events == ["expectation", "related", "summary"], found
    assert found[0]["expects"]["destination"] == f"{SERVER}:{ANNOUNCED}"
    assert found[1]["flow"]["source"].startswith(f"{CLIENT}:")
    assert [each["event"] for each in replayed(daemon, hidden)] == events
    assert CLIENT not in json.dumps(replayed(daemon, hidden))
    content = hidden.read_bytes()
    for text in OF_THE_WORLD:
        assert text.encode() not in content
        assert ip_address(text).packed not in content
    assert daemon.stop() == 0
    again = daemon.cthelper("record", "sunrpc", "-w", str(open_))
    assert again.returncode == 1
    assert again.stderr == f"cthelper: {open_}: File exists\n"


def test_ends_by_itself_and_where_nobody_reads(
    world: World, daemon: Daemon, tmp_path: Path
) -> None:
    daemon.configure(CONFIG)
    file = tmp_path / "short.pcapng"
    done = daemon.cthelper("record", "sunrpc", "--seconds", "1", "-w", str(file))
    assert done.returncode == 0, done.stderr
    assert "0 packets in " in done.stderr
    assert replayed(daemon, file)[-1]["packets"] == 0
    assert tables(world) == []
    # Of a pipe it is told at once, though no packet comes.
    words = " ".join(
        (*CTHELPER, "record", "sunrpc", "--config", str(daemon.config), "-w", "-")
    )
    world.gateway.run("sh", "-c", f"{words} | head -c 8 >/dev/null", timeout=60)
    assert tables(world) == []
