# SPDX-License-Identifier: GPL-2.0-or-later
"""The targets of fuzzing: what reads any bytes, and what it begins with."""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cthelper.core.api import TCP, UDP
from cthelper.helpers.amanda import Amanda
from cthelper.helpers.bacnet import Bacnet
from cthelper.helpers.coap import Coap
from cthelper.helpers.dhcpv6 import Dhcpv6
from cthelper.helpers.ftp import Ftp
from cthelper.helpers.gvcp import Gvcp
from cthelper.helpers.irc import Irc
from cthelper.helpers.knx import Knx
from cthelper.helpers.llmnr import Llmnr
from cthelper.helpers.mdns import Mdns
from cthelper.helpers.netbios_ns import NetbiosNs
from cthelper.helpers.sane import Sane
from cthelper.helpers.slp import Slp
from cthelper.helpers.ssdp import Ssdp
from cthelper.helpers.sunrpc import SunRpc
from cthelper.helpers.tftp import Tftp
from cthelper.helpers.tns import Tns
from cthelper.helpers.wsd import Wsd
from tests.fuzz import kernel, network, parsers, settings, spoken, wire
from tests.fuzz.conversation import HEAD, Conversations
from tests.fuzz.cost import WATCH, in_time
from tests.fuzz.forgery import forgery, forgery_seeds
from tests.fuzz.network import Networks
from tests.fuzz.retransmission import retransmission, retransmission_seeds
from tests.fuzz.script import Mutator, mutated
from tests.fuzz.seeds import packets

FINDINGS: Final = Path(__file__).with_name("findings")
CORPUS: Final = Path(__file__).with_name("corpus")
NATIVE: Final = "native"
"""The target that compares the extension in C with what is written in Python."""
SANITIZED: Final = "sanitized"
"""The target that runs the extension in C with the sanitizers, without coverage: these
and libFuzzer do not go together where gcc has built it."""


class Cost(enum.Enum):
    """What of a target must not take long."""

    PACKET = "packet"
    """Each packet that it measures."""
    WHOLE = "whole"
    """All that it does, which is what one packet leads to."""


@dataclass(frozen=True, slots=True)
class Target:
    """What reads any bytes; an exception out of `run` is a finding.

    `mutator` changes an input, None: as any bytes are. `largest` is how many bytes an
    input may have. Of all executions the target has its `part`, beside those of the
    others.
    """

    name: str
    read: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    mutator: Mutator | None = None
    largest: int = 4096
    cost: Cost | None = None
    part: int = 1

    def run(self, data: bytes) -> None:
        """Read an input. Raises AssertionError, or whatever must not be raised."""
        match self.cost:
            case None:
                self.read(data)
            case Cost.PACKET:
                in_time(lambda: self.read(data))
            case Cost.WHOLE:
                in_time(lambda: WATCH.measure(lambda: self.read(data)))

    def corpus(self) -> Iterator[bytes]:
        """What long runs have reached, as much of it as is kept."""
        # What no coverage leads begins with what the other one has reached.
        name = NATIVE if self.name == SANITIZED else self.name
        for path in sorted((CORPUS / name).glob("*.bin")):
            yield path.read_bytes()

    def findings(self) -> list[Path]:
        """What was found with this target, and is kept."""
        return sorted((FINDINGS / self.name).glob("*.bin"))


def _conversation(name: str, target: Conversations) -> Target:
    # A message over TCP may have 16 KiB, and one that is too long must be met.
    largest = 20_000 if target.transport is TCP else 4096
    mutator = partial(mutated, head=HEAD)
    return Target(name, target, target.seeds, mutator, largest, Cost.PACKET)


_ALLOW_ALL: Final = 'guard.allow_hosts = ["0.0.0.0/0", "::/0"]\n'
_EVERYWHERE: Final = 'hooks = ["prerouting", "output"]\n'
_SUNRPC: Final = (
    "",
    "[helpers.sunrpc]\n"
    'mode = "oneshot"\nnetid = "trust"\ndeny_programs = ["nfs"]\n'
    'procedures = ["getport", "getaddr", "getversaddr", "getaddrlist", "dump", '
    '"callit", "bcast", "indirect"]\n' + _ALLOW_ALL,
)

_IRC: Final = "[helpers.irc]\nenabled = true\n"

_CONVERSATIONS: Final = {
    "dhcpv6": Conversations(
        *(Dhcpv6, UDP, "dhcpv6"),
        (
            "",
            "[helpers.dhcpv6]\n"
            "relay = true\nstrict_sport = true\n"
            'servers = ["fe80::/10", "2001:db8::/32"]\n',
        ),
        spoken.dhcpv6,
    ),
    "mdns": Conversations(Mdns, UDP, "mdns", ("", f"[helpers.mdns]\n{_EVERYWHERE}")),
    "slp": Conversations(
        *(Slp, UDP, "slp"),
        (
            "",
            "[helpers.slp]\n"
            'v1 = true\noverflow = true\nany_sport = true\nresponders = "any"\n'
            + _EVERYWHERE,
        ),
        spoken.slp,
    ),
    "sunrpc-udp": Conversations(SunRpc, UDP, "sunrpc", _SUNRPC, spoken.sunrpc_udp),
    "sunrpc-tcp": Conversations(SunRpc, TCP, "sunrpc", _SUNRPC, spoken.sunrpc_tcp),
    "tns": Conversations(
        *(Tns, TCP, "tns"),
        (
            "",
            '[helpers.tns]\nhostname = "same"\nchained = true\n'
            'hosts = ["192.0.2.11 rac1 rac1.example.net"]\n' + _ALLOW_ALL,
        ),
        spoken.tns,
    ),
    "ftp": Conversations(
        *(Ftp, TCP, "ftp"),
        ("", f"[helpers.ftp]\nccc = true\n{_ALLOW_ALL}"),
        spoken.ftp,
    ),
    "irc": Conversations(
        *(Irc, TCP, "irc"),
        (_IRC, _IRC + _ALLOW_ALL),
        spoken.irc,
    ),
}

# The target `engine` has eight helpers at most, and not these.
_FURTHER: Final = {
    "sane": Conversations(
        *(Sane, TCP, "sane"),
        (
            "helpers.sane.enabled = true",
            f"[helpers.sane]\nenabled = true\n{_ALLOW_ALL}",
        ),
        spoken.sane,
    ),
    "amanda": Conversations(
        *(Amanda, UDP, "amanda"),
        (
            "helpers.amanda.enabled = true",
            f"[helpers.amanda]\nenabled = true\n{_ALLOW_ALL}",
        ),
        spoken.amanda,
    ),
}

_NETWORK: Final = Networks(
    (
        *((SunRpc, UDP), (SunRpc, TCP), (Tns, TCP), (Ftp, TCP)),
        *((Dhcpv6, UDP), (Mdns, UDP), (Slp, UDP), (Irc, TCP)),
    ),
    (
        (
            "sunrpc",
            'netid = "trust"\nprocedures = ["getport", "getaddr", "getversaddr", '
            '"getaddrlist", "dump", "callit", "bcast", "indirect"]\n',
        ),
        (
            "tns",
            'hostname = "same"\nchained = true\n'
            'hosts = ["192.0.2.11 rac1 rac1.example.net"]\n',
        ),
        ("dhcpv6", "relay = true\n"),
        ("slp", 'v1 = true\nresponders = "any"\n' + _EVERYWHERE),
        ("mdns", _EVERYWHERE),
        ("irc", "enabled = true\n"),
    ),
)


def _network_seeds() -> Iterator[bytes]:
    """The conversations that are not long, one of a few."""
    return _NETWORK.seeds(
        (
            f"{each.helper.name}-{each.transport}",
            [data for data in each.seeds() if len(data) < 2500][::3],
        )
        for each in _CONVERSATIONS.values()
    )


_SCRIPT: Final = partial(mutated, head=0)
_WIRE: Final = (
    Target("packet", wire.packet, lambda: iter(packets()), cost=Cost.WHOLE, part=16),
    Target("stream", wire.stream, wire.stream_seeds, part=3),
    Target("fragments", wire.fragments, wire.fragment_seeds, _SCRIPT, part=2),
    Target("capture", wire.capture, wire.capture_seeds, part=4),
    Target("queue", wire.queue_message, wire.queue_seeds, cost=Cost.WHOLE, part=12),
    Target("conntrack", wire.entry, wire.entry_seeds, cost=Cost.WHOLE, part=12),
    Target(
        *("descriptor", wire.descriptor, wire.descriptor_seeds),
        cost=Cost.WHOLE,
        part=10,
    ),
    Target("replay", wire.replay, wire.replay_seeds, _SCRIPT, 8192),
)

# Of these a datagram is all: they have no state, and no target of their own.
_DATAGRAMS: Final = (
    *(
        Conversations(each, UDP, "discovery", (f"helpers.{each.name}.enabled = true",))
        for each in (Bacnet, Coap, Gvcp, Knx, Llmnr, NetbiosNs, Ssdp, Wsd)
    ),
    Conversations(Tftp, UDP, "tftp", ("",)),
)
_MESSAGES: Final = parsers.Messages(
    (*_CONVERSATIONS.values(), *_DATAGRAMS, *_FURTHER.values())
)
_PARSERS: Final = (
    Target("dns", parsers.dns, parsers.dns_seeds, cost=Cost.WHOLE, part=4),
    Target("record", parsers.record, parsers.record_seeds, cost=Cost.WHOLE, part=6),
    Target(
        "rpcbind",
        parsers.rpcbind,
        lambda: parsers.rpcbind_seeds(_CONVERSATIONS["sunrpc-udp"].seeds()),
        cost=Cost.WHOLE,
        part=6,
    ),
    Target(
        *("messages", _MESSAGES, _MESSAGES.seeds),
        partial(mutated, head=1 + HEAD),
        cost=Cost.PACKET,
        part=2,
    ),
    Target("config", settings.config, settings.config_seeds, settings.mutated_text),
    Target(
        *("examined", settings.examined, settings.examined_seeds),
        settings.mutated_answer,
        20_000,
    ),
)
_KERNEL: Final = (
    Target(
        *("netlink", kernel.netlink_messages, kernel.netlink_seeds, _SCRIPT),
    ),
    Target(NATIVE, kernel.native, kernel.native_seeds, _SCRIPT, 8192),
    Target(SANITIZED, kernel.native, kernel.native_seeds, _SCRIPT, 8192),
)

TARGETS: Final[dict[str, Target]] = {
    each.name: each
    for each in (
        *_WIRE,
        *_PARSERS,
        *_KERNEL,
        Target(
            *("retransmission", retransmission, retransmission_seeds),
            largest=256,
            cost=Cost.PACKET,
        ),
        Target(*("forgery", forgery, forgery_seeds), largest=710, cost=Cost.PACKET),
        *(_conversation(name, each) for name, each in _CONVERSATIONS.items()),
        *(_conversation(name, each) for name, each in _FURTHER.items()),
        Target(
            *("engine", _NETWORK, _network_seeds),
            partial(mutated, head=network.HEAD),
            8192,
            Cost.PACKET,
        ),
    )
}
