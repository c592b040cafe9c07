# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugins that do at their import what they can: others serve, and it is told."""

import signal
from pathlib import Path

import pytest

from tests.live.daemon import Daemon, only
from tests.live.gateway import registered, tables
from tests.live.traffic import PORT, Echo, expected
from tests.live.world import World

pytestmark = pytest.mark.live

CONFIG = (
    only("sunrpc")
    + f'[helpers.sunrpc]\nports = [111, {PORT}]\n[daemon]\nuser = "nobody"\n'
)
HELPER = """
from cthelper.core.api import Helper, Policy, Transport

class Answer(Helper):
    name = "answer"
    transports = frozenset({Transport.UDP})
    ports = (4203,)
    policies = (Policy("one", 1, 30),)

    def on_message(self, message):
        yield from ()
"""
# All of it is refused, in the examined process and in the server.
TRYING = """
import os, socket, subprocess
STEPS = (
    lambda: open(FOLDER + "/written", "w"),
    lambda: open("/proc/sys/kernel/core_pattern", "w"),
    lambda: os.unlink(FOLDER + "/answer.py"),
    lambda: os.chmod(FOLDER, 0o777),
    lambda: socket.socket(),
    lambda: socket.create_connection(("127.0.0.1", 9)),
    lambda: subprocess.run(["nft", "flush", "ruleset"]),
    lambda: os.kill(os.getppid(), 9),
    lambda: os.fork(),
    lambda: os.setuid(0),
)
for number, step in enumerate(STEPS):
    try:
        step()
    except OSError:
        continue
    raise SystemExit(f"step {number} was not refused")
"""
# What it is told of, and how.
ENDING = {
    "import os\n\nos._exit(3)": ":3: ends its process (exit code 3)",
    "import ctypes\nctypes.string_at(0)": ":2: has its process end by SIGSEGV",
    "\nwhile True: pass": ":2: does not come to an end within 10 s",
    "x = bytearray(4 << 30)": ":1: MemoryError",
    "import os\nfor each in range(99):\n  try: os.write(each, b'{}')\n"
    "  except OSError: pass\nos._exit(0)": ": what it declares is no list of helpers",
}


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The file of a plugin, which is root's alone."""
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o700)
    return folder / "answer.py"


def configured(plugin: Path) -> str:
    return f'[plugins]\nfolder = "{plugin.parent}"\n{CONFIG}'


def write(plugin: Path, text: str) -> None:
    plugin.write_text(text)
    plugin.chmod(0o600)


def test_plugin_that_tries_all_it_should_not_serves_beside_others(
    world: World, daemon: Daemon, plugin: Path
) -> None:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text()
    write(plugin, f"FOLDER = {str(plugin.parent)!r}\n{TRYING}{HELPER}")
    daemon.start(configured(plugin))
    assert {each.name for each in registered(world)} == {"answer", "sunrpc"}
    listing = world.gateway.run("nft", "list", "table", "inet", "cthelper").stdout
    assert "udp dport 4203" in listing
    with Echo(world.server, announce=7994):
        assert expected(world, daemon)["expects"].endswith(":7994")
    assert daemon.cthelper("check").returncode == 0
    assert f"[{plugin}]" in daemon.cthelper("helpers").stdout
    daemon.send_signal(signal.SIGHUP)
    daemon.await_event("reloaded")
    assert daemon.stop() == 0
    assert daemon.events("step-failed") == []
    assert [each.name for each in plugin.parent.iterdir()] == ["answer.py"]
    assert Path("/proc/sys/kernel/core_pattern").read_text() == pattern


def test_plugin_whose_import_has_no_end_or_another_one_is_told_by_its_line(
    world: World, daemon: Daemon, plugin: Path
) -> None:
    for text, told in ENDING.items():
        write(plugin, text)
        daemon.launch(configured(plugin))
        assert daemon.wait() == 2
        assert daemon.text == f"cthelper: {plugin}{told}\n"
        assert tables(world) == ""
    write(plugin, HELPER)
    daemon.start(configured(plugin))
    processes = daemon.processes
    for count, (text, told) in enumerate(ENDING.items(), 1):
        write(plugin, text)
        daemon.send_signal(signal.SIGHUP)
        refused = daemon.await_event("reload-refused", count)
        assert refused["error"] == f"{plugin}{told}"
        with Echo(world.server, announce=7900 + count):
            assert expected(world, daemon)["expects"].endswith(f":{7900 + count}")
    assert daemon.processes == processes
    assert daemon.stop() == 0
    assert daemon.events("worker-died") == []
