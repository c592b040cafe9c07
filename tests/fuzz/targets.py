# SPDX-License-Identifier: GPL-2.0-or-later
"""The targets of fuzzing: what reads any bytes, and what it begins with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cthelper.core.api import TCP, UDP
from cthelper.helpers.dhcpv6 import Dhcpv6
from cthelper.helpers.mdns import Mdns
from cthelper.helpers.slp import Slp
from cthelper.helpers.sunrpc import SunRpc
from cthelper.helpers.tns import Tns
from cthelper.plugins.ftp import Ftp
from tests.fuzz import spoken, wire
from tests.fuzz.conversation import HEAD, Conversations
from tests.fuzz.seeds import packets

FINDINGS: Final = Path(__file__).with_name("findings")


@dataclass(frozen=True, slots=True)
class Target:
    """What reads any bytes; an exception out of `run` is a finding.

    `head` is how many bytes come before the steps of a script, None where the bytes are
    no script. `largest` is how many bytes an input may have.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    head: int | None = None
    largest: int = 4096


def _conversation(target: Conversations) -> Target:
    # A message over TCP may have 16 KiB, and one that is too long must be met.
    return Target(
        target, target.seeds, HEAD, 20_000 if target.transport is TCP else 4096
    )


def findings(name: str) -> list[Path]:
    """What was found with the target of this name, and is kept."""
    return sorted((FINDINGS / name).glob("*.bin"))


_ALLOW_ALL: Final = 'guard.allow_hosts = ["0.0.0.0/0", "::/0"]\n'
_EVERYWHERE: Final = 'hooks = ["prerouting", "output"]\n'
_SUNRPC: Final = (
    "",
    "[helpers.sunrpc]\n"
    'mode = "oneshot"\nnetid = "trust"\ndeny_programs = ["nfs"]\n'
    'procedures = ["getport", "getaddr", "getversaddr", "getaddrlist", "dump", '
    '"callit", "bcast", "indirect"]\n' + _ALLOW_ALL,
)

TARGETS: Final[dict[str, Target]] = {
    "packet": Target(wire.packet, lambda: iter(packets())),
    "stream": Target(wire.stream, wire.stream_seeds),
    "fragments": Target(wire.fragments, wire.fragment_seeds, 0),
    "capture": Target(wire.capture, wire.capture_seeds),
    "queue": Target(wire.queue_message, wire.queue_seeds),
    "conntrack": Target(wire.entry, wire.entry_seeds),
    "descriptor": Target(wire.descriptor, wire.descriptor_seeds),
    "replay": Target(wire.replay, wire.replay_seeds, 0, 8192),
    "dhcpv6": _conversation(
        Conversations(
            *(Dhcpv6, UDP, "dhcpv6"),
            (
                "",
                "[helpers.dhcpv6]\n"
                "relay = true\nstrict_sport = true\n"
                'servers = ["fe80::/10", "2001:db8::/32"]\n',
            ),
            spoken.dhcpv6,
        )
    ),
    "mdns": _conversation(
        Conversations(Mdns, UDP, "mdns", ("", f"[helpers.mdns]\n{_EVERYWHERE}"))
    ),
    "slp": _conversation(
        Conversations(
            *(Slp, UDP, "slp"),
            (
                "",
                "[helpers.slp]\n"
                'v1 = true\noverflow = true\nany_sport = true\nresponders = "any"\n'
                + _EVERYWHERE,
            ),
            spoken.slp,
        )
    ),
    "sunrpc-udp": _conversation(
        Conversations(SunRpc, UDP, "sunrpc", _SUNRPC, spoken.sunrpc_udp)
    ),
    "sunrpc-tcp": _conversation(
        Conversations(SunRpc, TCP, "sunrpc", _SUNRPC, spoken.sunrpc_tcp)
    ),
    "tns": _conversation(
        Conversations(
            *(Tns, TCP, "tns"),
            (
                "",
                '[helpers.tns]\nhostname = "same"\nchained = true\n'
                'hosts = ["192.0.2.11 rac1 rac1.example.net"]\n' + _ALLOW_ALL,
            ),
            spoken.tns,
        )
    ),
    "ftp": _conversation(
        Conversations(Ftp, TCP, "ftp", ("", f"[helpers.ftp]\n{_ALLOW_ALL}"))
    ),
}
