# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers of protocols that ask a group and are answered by unicast.

Real programs, and for protocols without one, or for more than one of these does, a
responder in a thread that speaks what pcaps/discovery holds.
"""

import selectors
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from tests.fuzz.seeds import PCAPS, frames
from tests.live.world import ETH, SERVER, WAN, Namespace

BROADCAST: Final = "255.255.255.255"
SUBNET: Final = "10.77.2.255"
# A protocol that only the configuration knows: it answers to another port of the asker,
# from another one than was asked.
OWN_PORT: Final = 9999
OWN_REPLY: Final = 4001
OWN_ANSWER: Final = 4002

OWN: Final = f"""
[helpers.lamp]
type = "discovery"
ports = [{OWN_PORT}]
destinations = ["broadcast", "239.255.255.250", "ff02::c"]
reply_port = {OWN_REPLY}
answer_port = {OWN_ANSWER}
match = [{{ text = "FIND" }}]
"""


def _said(capture: str, number: int) -> bytes:
    """The payload of an UDP datagram in a capture."""
    for frame, _, data, start in frames(PCAPS / "discovery" / f"{capture}.pcap"):
        if frame == number:
            return data[start + (28 if data[start] >> 4 == 4 else 48) :]
    raise AssertionError(f"{capture} has no frame {number}")


@dataclass(frozen=True)
class Protocol:
    """What is asked, where, and what is answered from `port`.

    `groups` are asked, or broadcast addresses. `asked_from` is the asker's port, or 0;
    `reply_port` and `answer_port` are others than that asked and that which asked.
    """

    name: str
    port: int
    groups: tuple[str, ...]
    query: bytes
    answer: Callable[[bytes], bytes] = field(repr=False)
    asked_from: int = 0
    reply_port: int = 0
    answer_port: int = 0

    @property
    def replies_from(self) -> int:
        """The port that answers come from."""
        return self.reply_port or self.port

    def __str__(self) -> str:
        return self.name


def _as_captured(capture: str, number: int) -> Callable[[bytes], bytes]:
    answer = _said(capture, number)
    return lambda query: answer


def _dns_answer(capture: str, number: int) -> Callable[[bytes], bytes]:
    """The captured answer with the query's id."""
    answer = _said(capture, number)
    return lambda query: query[:2] + answer[2:]


def _coap_answer(query: bytes) -> bytes:
    """NON 2.05 with the query's token (RFC 7252, section 3)."""
    token = query[4 : 4 + (query[0] & 0x0F)]
    payload = b"\xc1\x28\xff</.well-known/core>;ct=40"
    return bytes([0x50 | len(token), 0x45]) + b"\x91\xd4" + token + payload


def _ssdp_answer(query: bytes) -> bytes:
    """As node-ssdp answers, of this place."""
    target = next(
        line.partition(b":")[2].strip()
        for line in query.split(b"\r\n")
        if line.upper().startswith(b"ST:")
    )
    return (
        b"HTTP/1.1 200 OK\r\nST: " + target + b"\r\nUSN: uuid:1::" + target + b"\r\n"
        b"CACHE-CONTROL: max-age=1800\r\nEXT:\r\n"
        b"LOCATION: http://" + SERVER.encode() + b":9/desc.xml\r\n\r\n"
    )


def _knx_query() -> bytes:
    """The captured search, to be answered where it comes from."""
    return _said("knx-xknx-knxd", 2)[:8] + bytes(6)


PROTOCOLS: Final = (
    Protocol(
        *("bacnet", 47808, (SUBNET, BROADCAST)),
        _said("bacnet-bacpypes3-whois", 1),
        _as_captured("bacnet-bacpypes3-whois", 2),
        asked_from=47808,
    ),
    Protocol(
        *("coap", 5683, ("224.0.1.187", "ff02::fd", "ff05::fd")),
        *(_said("coap-libcoap-aiocoap", 5), _coap_answer),
    ),
    Protocol(
        *("gvcp", 3956, (BROADCAST, SUBNET)),
        _said("gvcp-aravis", 1),
        _as_captured("gvcp-aravis", 2),
    ),
    Protocol(
        *("knx", 3671, ("224.0.23.12",)),
        _knx_query(),
        _as_captured("knx-xknx-knxd", 3),
    ),
    Protocol(
        *("llmnr", 5355, ("ff02::1:3",)),
        _said("llmnr-script6-llmnrd", 3),
        _dns_answer("llmnr-script6-llmnrd", 4),
    ),
    Protocol(
        *("netbios-ns", 137, (SUBNET, BROADCAST)),
        _said("netbiosns-nmblookup-two", 3),
        _dns_answer("netbiosns-nmblookup-two", 4),
    ),
    Protocol(
        *("ssdp", 1900, ("239.255.255.250", "ff02::c")),
        *(_said("ssdp-nodessdp-all", 2), _ssdp_answer),
    ),
    Protocol(
        *("wsd", 3702, ("ff02::c",)),
        _said("wsd-wsdd-wsdd2", 1),
        _as_captured("wsd-wsdd-wsdd2", 2),
    ),
    Protocol(
        *("lamp", OWN_PORT, (BROADCAST, "239.255.255.250", "ff02::c")),
        *(b"FIND lamps", lambda query: b"HERE"),
        reply_port=OWN_REPLY,
        answer_port=OWN_ANSWER,
    ),
)
HELPERS: Final = tuple(each.name for each in PROTOCOLS if each.name != "lamp")

# Real askers, each with what it prints once it was answered: by llmnrd and wsdd2 over
# IPv4, else by the responder.
ASKERS: Final = {
    "llmnr-query": (
        ("llmnr-query", "-I", WAN, "-t", "2000", "-T", "A", "pmhost"),
        f"pmhost IN A {SERVER}",
    ),
    "llmnr-query, IPv6": (
        ("llmnr-query", "-6", "-I", WAN, "-t", "2000", "-T", "AAAA", "pmhost"),
        "pmhost IN AAAA fd91::1",
    ),
    "wsdd": (("wsdd", "-D", "-o", "-i", WAN, "-4", "-v"), "discovered PMHOST"),
    "coap-client": (
        (
            *("coap-client-notls", "-B", "5", "-N", "-m", "get"),
            "coap://224.0.1.187/.well-known/core",
        ),
        "</.well-known/core>",
    ),
    "upnpc": (("upnpc", "-m", WAN, "-l"), f"http://{SERVER}:9/desc.xml"),
}


def start_servers(server: Namespace) -> None:
    """Start llmnrd and wsdd2, which answer over IPv4."""
    server.start("llmnrd", "-i", ETH, "-H", "pmhost")
    server.start("wsdd2", "-4", "-w", "-i", ETH, "-H", "pmhost", "-N", "PMHOST")


Address = tuple[str | int, ...]


class Responder:
    """Answers all protocols on the server, but where real servers have the port."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._selector = selectors.DefaultSelector()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self._selector.close)
            with self._namespace.entered():
                scope = socket.if_nametoindex(ETH)
            for protocol in PROTOCOLS:
                for version in (4, 6):
                    groups = [
                        each
                        for each in protocol.groups
                        if (":" in each) is (version == 6)
                    ]
                    if not groups:
                        continue
                    opened = stack.enter_context(self.bound(protocol.port, version))
                    for group in groups:
                        _join(opened, group, scope)
                    self._selector.register(opened, selectors.EVENT_READ, protocol)
            self._stack = stack.pop_all()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._stack.close()

    def bound(
        self, port: int, version: int, namespace: Namespace | None = None
    ) -> socket.socket:
        """A UDP socket of the server, or of another host, that shares its port."""
        family = socket.AF_INET6 if version == 6 else socket.AF_INET
        with (namespace or self._namespace).entered():
            opened = socket.socket(family, socket.SOCK_DGRAM)
        if version == 6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            opened.setsockopt(socket.SOL_SOCKET, option, 1)
        opened.bind(("", port))
        return opened

    def send(
        self,
        data: bytes,
        address: Address,
        port: int,
        namespace: Namespace | None = None,
    ) -> None:
        """Send a datagram from a port of the server's, or of another host's."""
        with self.bound(port, 6 if len(address) > 2 else 4, namespace) as sender:
            sender.sendto(data, address)

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.2):
                ready = key.fileobj
                assert isinstance(ready, socket.socket)
                protocol: Protocol = key.data
                query, asker = ready.recvfrom(65535)
                port = protocol.answer_port or asker[1]
                address = (asker[0], port, *asker[2:])
                answer = protocol.answer(query)
                self.send(answer, address, protocol.replies_from)


def _join(opened: socket.socket, group: str, scope: int) -> None:
    if opened.family == socket.AF_INET6:
        joined = socket.inet_pton(socket.AF_INET6, group) + struct.pack("@I", scope)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, joined)
    elif int(group.partition(".")[0]) in range(224, 240):
        joined = struct.pack("@4s4si", socket.inet_aton(group), bytes(4), scope)
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
