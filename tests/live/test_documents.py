# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages' commands that need root, a kernel or a daemon, run on a gateway.

What docs/troubleshooting.md shows is what they print where its symptom is there, but
for numbers; of synopses each alternative is tried.
"""

import re
import shlex
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Final

import pytest

from cthelper.core.cli import INTERRUPTED
from cthelper.core.daemon.ruleset import unregister
from tests.command_lines import (
    LIVE,
    MEANINGS,
    ROOT,
    TROUBLESHOOTING,
    calls,
    live_lines,
    variants,
)
from tests.live.chapters import reload
from tests.live.daemon import CTHELPER, Daemon, equal_limits, only
from tests.live.forking import Forking
from tests.live.gateway import helper_table, registered
from tests.live.traffic import PORT, Echo, asker, call, getport
from tests.live.world import SERVER, World, until
from tests.pages import blocks

pytestmark = pytest.mark.live

ANNOUNCED: Final = 7999
BROKEN_PORT: Final = 7112
MODULE: Final = "nf_conntrack_ftp"
PORTS: Final = f"udp dport {{ {PORT}, {BROKEN_PORT} }} accept"
RULES: Final = f"table inet firewall {{ chain forward {{ {PORTS}; }}; }}"
BROKEN: Final = f"""
from cthelper.core.api import Helper, Policy, Transport

class Broken(Helper):
    name = "broken"
    transports = frozenset({{Transport.UDP}})
    ports = ({BROKEN_PORT},)
    policies = (Policy("one", 1, 30),)

    def on_message(self, message):
        raise LookupError("no such thing")
        yield
"""
# What goes on until it is ended.
ENDLESS: Final = frozenset({"--every", "--listen", "--output", "--unix", "--watch"})


def configuration(
    *names: str, ports: str = f"111, {PORT}", timeout: int = 300, more: str = ""
) -> str:
    """Of sunrpc and these helpers; that of the plugins' folder is on by itself."""
    return (
        f"{only('sunrpc', *names)}[helpers.sunrpc]\nports = [{ports}]\n"
        f"{equal_limits(timeout)}[control]\nstatistics = true\n{more}"
    )


@dataclass(frozen=True)
class Scene:
    """Where the symptoms are brought about."""

    world: World
    daemon: Daemon
    early: socket.socket
    cthelper: Forking

    def run(self, line: str) -> tuple[int, str]:
        """A command's exit code, and what it prints."""
        words = shlex.split(line)
        if words[0] == "cthelper":
            return self.cthelper.run(*words[1:])
        done = self.world.gateway.run(*words, timeout=60)
        return done.returncode, done.stdout


def untagged(scene: Scene) -> None:
    """The only flow began before the daemon."""
    call(scene.early)


def dropped(scene: Scene) -> None:
    """A rule of the user's drops what is announced."""
    getport(scene.world)[0].close()
    rule = f"inet firewall forward udp dport {ANNOUNCED} drop"
    scene.world.gateway.run("nft", "insert", "rule", *rule.split(), check=True)


def idle(scene: Scene) -> None:
    """The time of what was announced is over; it has a second here."""
    scene.world.forget()
    scene.world.firewall(RULES, flush=True)
    scene.daemon.await_event("ruleset-restored")
    reload(scene.daemon, configuration(timeout=1))
    getport(scene.world)[0].close()
    assert until(lambda: "dport" not in scene.world.conntrack("-L", "expect"), 10)


def flushed(scene: Scene) -> None:
    """As nftables.service does it; a file that begins as the page has it does not."""
    (file,) = blocks((ROOT / TROUBLESHOOTING).read_text(), "nft")
    count = len(scene.daemon.events("ruleset-lost"))
    scene.world.gateway.run("nft", "-f", "-", input=file, check=True)
    assert "inet cthelper" in scene.world.gateway.run("nft", "list", "tables").stdout
    assert len(scene.daemon.events("ruleset-lost")) == count
    count = len(scene.daemon.events("ruleset-restored"))
    scene.world.firewall(RULES, flush=True)
    scene.daemon.await_event("ruleset-restored", count + 1)


def full(scene: Scene) -> None:
    """A source may announce one a minute, and announces two."""
    limit = "[helpers.sunrpc.guard]\nper_source = 1\n"
    reload(scene.daemon, configuration(more=limit))
    for _ in range(2):
        scene.world.forget()
        getport(scene.world)[0].close()


def named(scene: Scene) -> None:
    """The kernel's own helper of FTP is there, and so is ours."""
    scene.world.gateway.run("modprobe", MODULE, check=True)
    reload(scene.daemon, configuration("ftp"))


def left_out(scene: Scene) -> None:
    """A helper fails over a client again and again."""
    reload(scene.daemon, configuration())
    for _ in range(4):
        with scene.world.client.entered():
            flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with flow:
            flow.sendto(b"x", (SERVER, BROKEN_PORT))
    scene.daemon.await_event("helper-fault", 3)


def well(scene: Scene) -> None:
    """There is nothing amiss, and nothing under way."""
    scene.world.forget()


def restarted(scene: Scene) -> None:
    """A flow of before is still there, and what was expected is not."""
    call(scene.early)
    with getport(scene.world)[0] as flow:
        other = str(flow.getsockname()[1])
    assert f"dport={ANNOUNCED}" in scene.world.conntrack("-L", "expect")
    assert scene.daemon.stop() == 0
    assert f"dport={ANNOUNCED}" not in scene.world.conntrack("-L", "expect")
    scene.world.conntrack("-D", "-p", "udp", "--orig-port-src", other)
    scene.daemon.start(configuration())
    call(scene.early)


def refused(scene: Scene) -> None:
    """The configuration has a key that is not there."""
    assert scene.daemon.stop() == 0
    scene.daemon.config.write_text("[daemon]\nworker = 2\n")


SCENES: Final[dict[str, Callable[[Scene], None]]] = {
    "Nothing is tagged": untagged,
    "Expected, and dropped all the same": dropped,
    "It works until it is idle": idle,
    "After a reload of nftables": flushed,
    "A limit is reached, or a table is full": full,
    "Something else has the helper's name": named,
    "A flow or a host is not inspected any more": left_out,
    "It is slow": well,
    "After a restart": restarted,
    "The daemon does not start": refused,
}
"""By the page's headings, in its order: each goes on from the one before."""


@pytest.fixture(scope="module")
def scene(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A gateway with a daemon, and a flow that began before it.

    Its configuration is where commands look for it, in the gateway's own /etc/cthelper.
    """
    world.reset()
    with helper_table(world) as table:
        unregister(table, registered(world))
    folder = tmp_path_factory.mktemp("cthelper")
    plugins = folder / "plugins"
    plugins.mkdir(mode=0o700)
    (plugins / "broken.py").write_text(BROKEN)
    (plugins / "broken.py").chmod(0o600)
    world.gateway.tell(f"mkdir -p /etc/cthelper\nmount --bind {folder} /etc/cthelper")
    world.firewall(RULES)
    with ExitStack() as stack:
        stack.callback(world.gateway.tell, "umount /etc/cthelper")
        for name in ("udp_timeout", "udp_timeout_stream"):
            # Where the host is busy a command takes as long as a flow lives.
            key = f"net.netfilter.nf_conntrack_{name}"
            before = world.gateway.run("sysctl", "-n", key, check=True).stdout.strip()
            world.gateway.run("sysctl", "-qw", f"{key}=900", check=True)
            stack.callback(world.gateway.run, "sysctl", "-qw", f"{key}={before}")
        stack.callback(world.gateway.run, "modprobe", "-r", MODULE)
        stack.enter_context(Echo(world.server, ANNOUNCED))
        cthelper = stack.enter_context(closing(Forking(world.gateway)))
        daemon = stack.enter_context(Daemon(world.gateway, folder))
        early = stack.enter_context(asker(world))
        call(early)
        daemon.start(configuration())
        daemon.await_event("controller-started")
        yield Scene(world, daemon, early, cthelper)


def pattern(shown: str) -> str:
    """What a page shows, as what matches it with other numbers; `…` are any lines."""
    parts = (
        r"(?:.*\n)*" if line == "…" else rf"{_pattern_of_line(line)}\n"
        for line in shown.splitlines()
    )
    return "".join(parts)


def _pattern_of_line(line: str) -> str:
    words = (re.sub(r"\d+", r"\\d+", re.escape(word)) for word in line.split())
    # The tests run on both builds, and on several kernels.
    words = (re.sub("^interpreted", "(?:interpreted|compiled)", word) for word in words)
    words = (re.sub("^.*amd", r"\\S+amd", word) for word in words)
    return r"\s*" + r"\s+".join(words)


def test_every_other_line_is_taken(scene: Scene) -> None:
    """It does something: none is used wrongly, and none fails otherwise."""
    others = [each for each in live_lines() if each.page != TROUBLESHOOTING]
    given = [
        each for line in others for part in calls(line.text) for each in variants(part)
    ]
    for words in map(list, dict.fromkeys(map(tuple, given))):
        if "--output" in words and "--no-follow" in words:
            words.remove("--no-follow")  # each goes with what is left
        if words[0] == "top":
            continue  # it needs a terminal (tests/live/test_top.py)
        endless = words[:2] == ["flows", "events"] or ENDLESS.intersection(words)
        code, text = scene.cthelper.run(*words, seconds=1 if endless else 60)
        assert code == INTERRUPTED if endless else code in (0, 1), (words, text)
        assert "Traceback" not in text, words
        call(scene.early)  # so that it does not end
    served = MEANINGS["PATH"]
    scene.world.gateway.start(*CTHELPER, "metrics", "--unix", served)
    for line in others:
        if line.program in LIVE:
            assert until(partial(succeeds, scene, line.text), 60), line.text


def succeeds(scene: Scene, line: str) -> bool:
    """Whether a command's exit code is 0."""
    return scene.run(line)[0] == 0


@pytest.mark.parametrize("heading", SCENES)
def test_symptom_is_found_as_the_page_says(scene: Scene, heading: str) -> None:
    SCENES[heading](scene)
    place = (TROUBLESHOOTING, heading)
    found = [each for each in live_lines() if (each.page, each.heading) == place]
    assert found
    for line in found:
        text = scene.run(line.text)[1]
        print(f"# {line.text}\n{text}")  # for who corrects the page
        assert re.fullmatch(pattern(line.output), text), line.text
