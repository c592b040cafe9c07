# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay against what tshark read off the captures: announcements and their flows.

The captures, published with other projects and made for this one, and the tables are
not part of this project; where they are absent these tests are skipped. Those of them
that are in pcaps/ are tested in any case (tests/helpers, tests/plugins).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest

from cthelper.core.config import parse
from cthelper.core.offline.corpus import Job, replay_job
from cthelper.core.offline.events import (
    Event,
    ExpectationEvent,
    FaultEvent,
    Notice,
    RefusedEvent,
    RelatedEvent,
)
from cthelper.core.registry import builtin_helpers
from cthelper.core.tuples import Address

FOLDERS: Final = [
    Path(__file__).parents[4] / "shared" / "captures" / name
    for name in ("real", "public")
]
TABLES: Final = [path for each in FOLDERS if (path := each / "TRUTH.md").exists()]
pytestmark = pytest.mark.skipif(not TABLES, reason="no captures beside the project")

# The rows of the protocols that have a helper. The address of an RPC answer is that of
# its sender.
_RPC: Final = re.compile(r"(?:RPCB|PMAP).*(tcp|udp) (?:port |\S+:)(\d+)$")
_FTP: Final = re.compile(
    r"FTP (?:[A-Z]+, )*(?:PORT|EPRT|227 PASV|229 EPSV)(?: \(\S+\))? tcp "
    r"(\S+):(\d+)(?:, [A-Z]+)?$"
)
_SECTION: Final = re.compile(r"## (\S+\.pcap(?:ng)?) ")
_ROW: Final = re.compile(r"\| (\d+) \| (\S+)>\S+ \| (.*?) \| (.*?) \|$")
_MET: Final = re.compile(r"YES frame (\d+) ")

# Rows that replay does not follow, by capture: the reason codes of their refusals, none
# where the flow is not read; and why.
EXCEPTIONS: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "ndpi-ftp-start-tls": ((), "AUTH TLS comes before it: nothing is read any more"),
    "suri-detect-ftp_ftp-active-dynamic_port-02_ftp-active-dynamic_port": (
        ("third-party-address",),
        "EPRT announces an IPv6 address on an IPv4 flow",
    ),
    "suri-filestore-ftp-active-mode_ftp-active-mode": (
        ("loopback-address",),
        "client and server are 127.0.0.1",
    ),
    "suri-filestore-ftp-passive-mode_ftp-passive-mode": (
        ("loopback-address",),
        "client and server are 127.0.0.1",
    ),
    "suri-ftp_ftp-bounce_test": (
        ("third-party-address",),
        "a bounce: PORT announces another host",
    ),
    "suri-ftp_ftp-ippair-leak-5204": (
        ("third-party-address",),
        "the capture's addresses were changed, what PORT announces was not",
    ),
    "zeek-ftp_cwd-navigation": (
        ("other-address", "unasked"),
        "the capture's addresses were changed, what PASV announces was not: the port "
        "is opened at the server's own; and with frame 715 it lacks a segment of the "
        "client's",
    ),
    "zeek-ftp_ftp-many-port-expected": (
        ("third-party-address",),
        "PORT announces another host",
    ),
    "zeek-ftp_ftp-with-numbers-in-filename": (
        (),
        "the capture begins in the middle of the flow",
    ),
}
# What replay expects and the tables do not have.
MORE: Final = {
    ("suri-sip-method_sip", 81): "tshark has the 227, and the table left it out",
    ("ftp-curl-pasv-other-pyftpdlib", 18): "the table says in words that curl goes to "
    "the server's own address",
    ("rpc-rpcinfo-dump-v4-tcp4", 6): "GETADDRLIST, which is in no table",
    ("rpc-rpcinfo-t-getport-v2-mountd", 6): "listed among the flows without a table",
    ("rpc-rpcinfo-u-getport-v2-rstatd", 2): "listed among the flows without a table",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One announcement, and the frame of the flow that follows it, if one does."""

    capture: Path
    frame: int
    transport: str
    sender: Address
    address: Address
    port: int
    met: int | None

    def is_refused(self, events: list[Event]) -> bool:
        """Whether it is an exception, and replay gives the reason for it."""
        if self.capture.stem not in EXCEPTIONS:
            return False
        reasons, _ = EXCEPTIONS[self.capture.stem]
        refusals = self._refusals(events)
        return set(refusals) <= set(reasons) and len(refusals) == bool(reasons)

    def opened(self, events: list[Event]) -> tuple[int, str, Address, int] | None:
        """What replay is to expect; None: nothing."""
        address = self.address
        if self.is_refused(events):
            if self._refusals(events) != ["other-address"]:
                return None
            address = self.sender
        return self.frame, self.transport, address, self.port

    def _refusals(self, events: list[Event]) -> list[str]:
        return [
            each.reason
            for each in events
            if isinstance(each, RefusedEvent) and each.frame == self.frame
        ]


def rows(table: Path) -> Iterator[Row]:
    capture = table
    for line in table.read_text("utf-8").splitlines():
        section = _SECTION.match(line)
        if section is not None:
            capture = table.parent / section[1]
        row = _ROW.match(line)
        if row is None:
            continue
        frame, sender, announced, follows = row.groups()
        rpc, ftp = _RPC.match(announced), _FTP.match(announced)
        own = sender.rsplit(":", 1)[0]
        if rpc is not None:
            host = own
            transport, port = rpc.groups()
        elif ftp is not None:
            transport = "tcp"
            host, port = ftp.groups()
        else:
            continue
        if port == "0":
            continue  # the program is not registered
        met = _MET.match(follows)
        yield Row(
            capture,
            int(frame),
            transport,
            ip_address(own.strip("[]")),
            ip_address(host.strip("[]")),
            int(port),
            None if met is None else int(met[1]),
        )


ROWS: Final = [row for table in TABLES for row in rows(table)]
CAPTURES: Final = sorted(
    path for each in FOLDERS for path in each.glob("*.pcap*") if path.is_file()
)


def replay(capture: Path) -> list[Event]:
    config = parse("", Path("truth.toml"), builtin_helpers())
    return list(replay_job(Job(capture=capture, read_config=lambda: config)))


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda path: path.stem)
def test_replay_agrees_with_what_tshark_read(capture: Path) -> None:
    events = replay(capture)
    ours = [each for each in ROWS if each.capture == capture]
    wanted = {each.opened(events) for each in ours} - {None}
    found = [
        (each.frame, str(each.expectation.transport), each.expectation.destination)
        for each in events
        if isinstance(each, ExpectationEvent) and each.helper in ("sunrpc", "ftp")
        if (capture.stem, each.frame) not in MORE
    ]
    assert {
        (frame, what, end.address, end.port) for frame, what, end in found
    } == wanted
    related = {each.frame for each in events if isinstance(each, RelatedEvent)}
    met = {each.met for each in ours if not each.is_refused(events)} - {None}
    assert met <= related
    assert not [each for each in events if isinstance(each, FaultEvent)]
    failed = [each for each in events if isinstance(each, Notice) and each.failed]
    assert not failed


def test_tables_were_read() -> None:
    assert len(ROWS) > 100
    assert {each.capture for each in ROWS} <= set(CAPTURES)


@pytest.mark.skipif(len(TABLES) < 2, reason="not all captures are there")
def test_every_exception_is_needed() -> None:
    for stem in EXCEPTIONS:
        (capture,) = {each.capture for each in ROWS if each.capture.stem == stem}
        events = replay(capture)
        assert any(each.is_refused(events) for each in ROWS if each.capture == capture)
    for stem, frame in MORE:
        (capture,) = {each for each in CAPTURES if each.stem == stem}
        made = [each for each in replay(capture) if isinstance(each, ExpectationEvent)]
        assert frame in {each.frame for each in made}
