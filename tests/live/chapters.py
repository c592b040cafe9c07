# SPDX-License-Identifier: GPL-2.0-or-later
"""What the stories of clients and servers have in common."""

import os
import select
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.live.daemon import Daemon
from tests.live.world import Namespace, Transport, World

FAULTS = ("malformed", "helper-fault", "step-failed", "overload", "events-lost")
"""Events of the daemon that no client may cause which speaks its protocol."""

_DELIVERY_SECONDS = 20.0

# Runs a shell script with files of its own in /run and /var/lib, and ends whatever it
# has started: all of it goes with the first process of a PID namespace.
_ALONE = (
    *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
    *("sh", "-e", "-c"),
)
_OWN_FILES = """
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
cd /run
"""


def alone(script: str) -> tuple[str, ...]:
    """The command that runs a shell script with files and processes of its own."""
    return (*_ALONE, _OWN_FILES + script)


def end_alone(process: subprocess.Popen[str]) -> None:
    """End such a command, and return when all that it has started has ended.

    The kernel lets the first process of a PID namespace go after all others.
    """
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    started = children.read_text().split()
    for child in started:
        os.kill(int(child), signal.SIGKILL)
    if not started:
        process.kill()
    process.wait(_DELIVERY_SECONDS)


def reload(daemon: Daemon, text: str) -> None:
    """Have the daemon take another configuration; what is expected stays."""
    count = len(daemon.events("reloaded"))
    daemon.configure(text)
    daemon.send_signal(signal.SIGHUP)
    daemon.await_event("reloaded", count + 1)


@contextmanager
def lost(world: World) -> Iterator[Counter[tuple[Transport, int]]]:
    """What the firewall drops meanwhile, by transport and port; known at the end."""
    found: Counter[tuple[Transport, int]] = Counter()
    before = world.drops()
    yield found
    for place, count in world.drops().items():
        if count > before.get(place, 0):
            found[place] = count - before.get(place, 0)


def entries(world: World) -> str:
    """The gateway's conntrack entries of both families."""
    return world.conntrack("-L") + world.conntrack("-L", "-f", "ipv6")


def forget(world: World) -> None:
    """Remove the gateway's connections and expectations, and keep its rules."""
    world.forget()


def forget_answers(world: World, port: int) -> None:
    """Remove the flows of answers to a UDP port, which outlive what was expected."""
    for family in ("ipv4", "ipv6"):
        # It fails where there are none.
        with suppress(subprocess.CalledProcessError):
            world.conntrack("-D", "-f", family, "-p", "udp", "--dport", str(port))


def answer_to(
    world: World, receiver: socket.socket, send: Callable[[], object]
) -> bytes | None:
    """What a UDP socket of the gateway receives once something is sent.

    None where the firewall drops it; AssertionError where neither is seen.
    """
    port = receiver.getsockname()[1]
    before = world.dropped("udp", port)
    send()
    deadline = time.monotonic() + _DELIVERY_SECONDS
    while time.monotonic() < deadline:
        if select.select([receiver], [], [], 0.1)[0]:
            return receiver.recv(65535)
        if world.dropped("udp", port) > before:
            return None
    raise AssertionError(f"port {port}: a packet was neither received nor dropped")


def link_local(namespace: Namespace, interface: str) -> str:
    """The link-local address of an interface."""
    show = namespace.run(
        *("ip", "-6", "-o", "address", "show", "dev", interface, "scope", "link"),
        check=True,
    )
    return show.stdout.split()[3].partition("/")[0]
