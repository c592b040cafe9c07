# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks that want a port opened: each opens nothing but what its two ends may have.

One row is one attack; prior art has each by the name in front of its rows.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from cthelper.core.tuples import TCP, UDP
from tests.attacks import wire
from tests.attacks.honest import SESSIONS
from tests.attacks.scene import Attack, Scene, Step, honest, perform
from tests.attacks.wire import (
    ACCEPT,
    CONNECT,
    EVIL,
    GATEWAY,
    GATEWAY6,
    GATEWAY_LOCAL6,
    SERVER,
    THIRD,
    VICTIM,
    Connection,
    address_of,
    datagram,
    redirect,
    turned,
    udp_flow,
)
from tests.cases import cases

_BROWSER: Final = (VICTIM, 40000)


def _post(size: int) -> bytes:
    """The head of a form that a browser was made to send, filled up to a size."""
    head = (
        b"POST / HTTP/1.1\r\nHost: evil.example:1521\r\nContent-Type: "
        b"multipart/form-data; boundary=x\r\nContent-Length: 99999\r\n\r\n"
    )
    return head + b"A" * (size - len(head))


def _slipstream(
    port: int, asked: Iterable[bytes], answered: Iterable[bytes], size: int = 1448
) -> Callable[[], Iterator[Step]]:
    """A form, of which segments begin with messages; and the server's answers."""

    def steps() -> Iterator[Step]:
        line = Connection(_BROWSER, (EVIL, port))
        yield from line.opened()
        yield from line.sent(_post(size), *asked)
        yield from line.answered(*answered)
        yield from line.sent(*asked)
        yield from line.answered(*answered)

    return steps


def _greeted(port: int, *asked: bytes) -> Callable[[], Iterator[Step]]:
    """The same, where the server speaks first as the protocol has it."""

    def steps() -> Iterator[Step]:
        line = Connection(_BROWSER, (EVIL, port))
        yield from line.opened()
        yield from line.answered(b"220 ready\r\n")
        yield from line.sent(_post(1448), *asked)
        yield from line.answered(b"200 fine\r\n")

    return steps


def _unready(*asked: bytes) -> Iterator[Step]:
    """The browser speaks alone, and is answered at once."""
    line = Connection(_BROWSER, (EVIL, 21))
    yield from line.opened()
    yield from line.sent(*asked)
    yield from line.answered(b"227 x (" + wire.six(EVIL, 5985) + b")\r\n")


_SECRET: Final = 5985
_TO_VICTIM: Final = b"PORT " + wire.six(VICTIM, _SECRET) + b"\r\n"

SLIPSTREAM: Final = {
    "tns": Attack(
        helper="tns",
        steps=_slipstream(
            1521, [CONNECT], [redirect(address_of(VICTIM, _SECRET)), ACCEPT]
        ),
        says=("finished.done",),
    ),
    "tns, form of one byte more than a packet": Attack(
        helper="tns",
        steps=_slipstream(
            1521, [CONNECT], [redirect(address_of(VICTIM, _SECRET))], size=16385
        ),
        says=("finished.done",),
    ),
    "sunrpc": Attack(
        helper="sunrpc",
        steps=_slipstream(
            111,
            [wire.record(wire.getport(1))],
            [wire.record(wire.reply(1, wire.xdr(_SECRET)))],
        ),
        says=("malformed",),
    ),
    "ftp": Attack(helper="ftp", steps=_greeted(21, _TO_VICTIM), says=("malformed",)),
    "ftp, before the server speaks": Attack(
        helper="ftp",
        steps=_slipstream(21, [_TO_VICTIM], [b"220 ready\r\n"]),
        says=("malformed",),
    ),
    "ftp, by a page that may send what it likes": Attack(
        helper="ftp",
        steps=lambda: _unready(_TO_VICTIM, b"PASV\r\n"),
        says=("refused.not-ready",),
    ),
    "ftp, in lines of the form": Attack(
        helper="ftp",
        steps=_greeted(21, b"\r\n" + _TO_VICTIM, _TO_VICTIM),
        says=("malformed",),
    ),
    "sunrpc, a TURN user's name in a second fragment": Attack(
        helper="sunrpc",
        steps=lambda: [
            *wire.fragments(
                datagram(
                    udp_flow(_BROWSER, (EVIL, 111)),
                    b"\0\1\1\0\x21\x12\xa4\x42".ljust(1472, b"A") + wire.getport(1),
                ),
                1480,
            ),
            datagram(udp_flow((EVIL, 111), _BROWSER), wire.reply(1, wire.xdr(_SECRET))),
        ],
        says=("malformed",),
    ),
}


def _tns(text: bytes, server: str = EVIL) -> Callable[[], Iterator[Step]]:
    """A client that connects to a listener, which redirects it."""

    def steps() -> Iterator[Step]:
        line = Connection(_BROWSER, (server, 1521))
        yield from line.opened()
        yield from line.sent(CONNECT)
        yield from line.answered(redirect(text))

    return steps


def _rpc(
    question: bytes, answer: bytes, server: str = EVIL
) -> Callable[[], Iterator[Step]]:
    """A client that asks a portmapper over UDP."""

    def steps() -> Iterator[Step]:
        way = udp_flow(_BROWSER, (server, 111))
        yield datagram(way, question)
        yield datagram(turned(way), answer)

    return steps


def _ftp(*lines: bytes, answers: Iterable[bytes] = ()) -> Callable[[], Iterator[Step]]:
    """A session of FTP, the attacker's lines and then the server's."""

    def steps() -> Iterator[Step]:
        line = Connection(_BROWSER, (EVIL, 21))
        yield from line.opened()
        yield from line.answered(b"220 ready\r\n")
        yield from line.sent(b"USER u\r\n")
        yield from line.answered(b"230 in\r\n")
        yield from line.sent(*lines)
        yield from line.answered(*answers)

    return steps


def _poison(
    host: str, port: int, reason: str, settings: str = "", *opens: str
) -> Attack:
    return Attack(
        helper="tns",
        steps=_tns(address_of(host, port)),
        says=(f"refused.{reason}",),
        settings=settings,
        opens=frozenset(opens),
    )


_ALLOWED: Final = 'helpers.tns.guard.allow_hosts = ["198.51.100.0/24"]'

TNS_POISON: Final = {
    "a third host inside (slipstream v2)": _poison(THIRD, 5985, "third-party-address"),
    "another host": _poison(SERVER, 1521, "third-party-address"),
    "the client itself": _poison(VICTIM, 5985, "third-party-address"),
    "the gateway": _poison(GATEWAY, 8443, "third-party-address"),
    "a low port": _poison(EVIL, 1023, "low-port"),
    "a denied port": _poison(EVIL, 3389, "denied-port"),
    "port 0": _poison(EVIL, 0, "port-zero"),
    "nobody": _poison("0.0.0.0", 5000, "unspecified-address"),  # noqa: S104 - no bind
    "the client's loopback": _poison("127.0.0.1", 5000, "loopback-address"),
    "a group": _poison("224.0.0.251", 5353, "multicast-address"),
    "everybody": _poison("255.255.255.255", 5000, "broadcast-address"),
    "a mapped address": _poison(f"[::ffff:{EVIL}]", 5000, "v4-mapped-address"),
    "another family": _poison("[2001:db8::1]", 5000, "third-party-address"),
    "a name that nobody knows": _poison("db.example", 5000, "unknown-host"),
    "a denied port of an allowed host": _poison(SERVER, 3389, "denied-port", _ALLOWED),
    "a low port of an allowed host": _poison(SERVER, 1000, "low-port", _ALLOWED),
    "a host beside the allowed ones": _poison(
        THIRD, 5985, "third-party-address", _ALLOWED
    ),
    "one honest address among others": Attack(
        helper="tns",
        steps=_tns(b"".join(address_of(host, 5985) for host in (THIRD, EVIL, SERVER))),
        opens=frozenset({f"tcp {VICTIM} > {EVIL}:5985"}),
        says=("refused.third-party-address",),
    ),
    "a fifth redirect": Attack(
        helper="tns",
        steps=lambda: [
            *(line := Connection(_BROWSER, (EVIL, 1521))).opened(),
            *line.sent(CONNECT),
            *line.answered(
                *(redirect(address_of(EVIL, 5000 + number)) for number in range(6))
            ),
        ],
        opens=frozenset(
            f"tcp {VICTIM} > {EVIL}:{5000 + number}" for number in range(4)
        ),
        says=("refused.redirect-chain",),
    ),
    "a REDIRECT of the client's": Attack(
        helper="tns",
        steps=lambda: [
            *(line := Connection(_BROWSER, (EVIL, 1521))).opened(),
            *line.sent(CONNECT, redirect(address_of(VICTIM, 5985))),
        ],
        says=("malformed",),
    ),
    "a REDIRECT after ACCEPT": Attack(
        helper="tns",
        steps=lambda: [
            *(line := Connection(_BROWSER, (EVIL, 1521))).opened(),
            *line.sent(CONNECT),
            *line.answered(ACCEPT, redirect(address_of(EVIL, 5985))),
        ],
        says=("finished.done",),
    ),
}


_CLUSTER: Final = """
[[helpers.tns.guard.allow]]
from = "198.51.100.2"
hosts = ["10.0.0.0/28"]
ports = [1521, "5000-5009", 3389]
"""


def _cluster(server: str, host: str, port: int, *says: str) -> Attack:
    """A listener of a cluster, or another one, announces a node."""
    opened = frozenset() if says else frozenset({f"tcp {VICTIM} > {host}:{port}"})
    return Attack(
        helper="tns",
        steps=_tns(address_of(host, port), server),
        victims=opened,
        says=says,
        silent=not says,
        settings=_CLUSTER,
    )


ANNOUNCERS: Final = {
    "who may, with a port that he may": _cluster(SERVER, "10.0.0.5", 1521),
    "who may, with one of a range": _cluster(SERVER, "10.0.0.5", 5009),
    "who may, with another port": _cluster(
        SERVER, "10.0.0.5", 5985, "refused.third-party-port"
    ),
    "who may, with a denied port": _cluster(
        SERVER, "10.0.0.5", 3389, "refused.denied-port"
    ),
    "who may, another host": _cluster(
        SERVER, "10.0.0.16", 1521, "refused.third-party-address"
    ),
    "a stranger": _cluster(EVIL, "10.0.0.5", 1521, "refused.third-party-address"),
    "a stranger, with a port of nobody's": _cluster(
        EVIL, "10.0.0.5", 5985, "refused.third-party-address"
    ),
    "who may, himself": _cluster(SERVER, SERVER, 7777),
    "anybody, with a port that is not on the list": _poison(
        *(EVIL, 5985, "port-not-allowed"),
        'helpers.tns.guard.allowed_ports = ["5000-5009", "40000-40009"]',
    ),
}


def _named(
    question: bytes, answer: bytes, reason: str, *opens: str, server: str = EVIL
) -> Attack:
    return Attack(
        helper="sunrpc",
        steps=_rpc(question, answer, server),
        says=(f"refused.{reason}",) if "." not in reason else (reason,),
        opens=frozenset(opens),
    )


_OWN: Final = f"tcp {VICTIM} > {EVIL}:5985"

RPC_TARGETS: Final = {
    "GETADDR of another host": _named(
        wire.getaddr(1, b""),
        wire.reply(1, wire.xdr(wire.uaddr(THIRD, 5985))),
        "other-address",
        f"udp {VICTIM} > {EVIL}:5985",
    ),
    "GETADDR of the client": _named(
        wire.getaddr(1, b""),
        wire.reply(1, wire.xdr(wire.uaddr(VICTIM, 5985))),
        "other-address",
        f"udp {VICTIM} > {EVIL}:5985",
    ),
    "GETADDR of loopback": _named(
        wire.getaddr(1, b""),
        wire.reply(1, wire.xdr(wire.uaddr("127.0.0.1", 5985))),
        "other-address",
        f"udp {VICTIM} > {EVIL}:5985",
    ),
    "GETADDRLIST of other hosts": _named(
        wire.getaddrlist(1),
        wire.reply(1, wire.listed([wire.uaddr(THIRD, 5985), wire.uaddr(SERVER, 5986)])),
        "other-address",
        f"tcp {VICTIM} > {EVIL}:5985",
        f"tcp {VICTIM} > {EVIL}:5986",
    ),
    "GETPORT of a low port": _named(
        wire.getport(1), wire.reply(1, wire.xdr(22)), "denied-port"
    ),
    "GETPORT of a port that no root binds": _named(
        wire.getport(1), wire.reply(1, wire.xdr(511)), "low-port"
    ),
    "GETPORT of a port over 65535": Attack(
        helper="sunrpc",
        steps=_rpc(wire.getport(1), wire.reply(1, wire.xdr(0x10000 + 5985))),
        says=("malformed",),
    ),
    "GETADDR of port 1 and 65535 more": Attack(
        helper="sunrpc",
        steps=_rpc(wire.getaddr(1, b""), wire.reply(1, wire.xdr(b"1.2.3.4.256.1"))),
        says=("malformed",),
    ),
    "the portmapper itself": _named(
        wire.call(1, 2, 3, wire.xdr(100000, 2, TCP, 0)),
        wire.reply(1, wire.xdr(111)),
        "portmapper",
    ),
}

FTP_BOUNCE: Final = {
    "PORT of a third host (slipstream v2)": Attack(
        helper="ftp",
        steps=_ftp(b"PORT " + wire.six(THIRD, 5985) + b"\r\n"),
        says=("refused.third-party-address",),
    ),
    "PORT of the server": Attack(
        helper="ftp",
        steps=_ftp(b"PORT " + wire.six(EVIL, 5985) + b"\r\n"),
        says=("refused.third-party-address",),
    ),
    "EPRT of a third host": Attack(
        helper="ftp",
        steps=_ftp(f"EPRT |1|{THIRD}|5985|\r\n".encode()),
        says=("refused.third-party-address",),
    ),
    "PORT of a low port": Attack(
        helper="ftp",
        steps=_ftp(b"PORT " + wire.six(VICTIM, 1000) + b"\r\n"),
        says=("refused.low-port",),
    ),
    "PORT of a denied port": Attack(
        helper="ftp",
        steps=_ftp(b"PORT " + wire.six(VICTIM, 3389) + b"\r\n"),
        says=("refused.denied-port",),
    ),
    "PORT with an octet that spills over": Attack(
        helper="ftp",
        steps=_ftp(b"PORT 192,0,2,50,279,97\r\n"),
        says=("refused.unreadable",),
    ),
    "227 of a third host": Attack(
        helper="ftp",
        steps=_ftp(
            b"PASV\r\n", answers=[b"227 x (" + wire.six(THIRD, 5985) + b")\r\n"]
        ),
        opens=frozenset({_OWN}),
        says=("refused.other-address",),
    ),
    "227 that nobody asked for": Attack(
        helper="ftp",
        steps=_ftp(answers=[b"227 x (" + wire.six(EVIL, 5985) + b")\r\n"]),
        says=("refused.unasked",),
    ),
    "229 with a port that spills over": Attack(
        helper="ftp",
        steps=_ftp(b"EPSV\r\n", answers=[b"229 x (|||65558|)\r\n"]),
        says=("refused.unreadable",),
    ),
    "227 again and again": Attack(
        helper="ftp",
        steps=_ftp(
            b"PASV\r\n",
            answers=[
                b"227 x (" + wire.six(EVIL, port) + b")\r\n" for port in (5985, 5986)
            ],
        ),
        opens=frozenset({_OWN}),
        says=("refused.unasked",),
    ),
    "227 in a file's name": Attack(
        helper="ftp",
        steps=_ftp(
            b"PASV\r\nSTAT d\r\n",
            answers=[
                b"213-x\r\n227 x (" + wire.six(EVIL, 5985) + b")\r\n",
                b"\t229 (|||5985|)\r\n213 end\r\n",
            ],
        ),
        silent=True,
    ),
    "227 in a line of a long reply": Attack(
        helper="ftp",
        steps=_ftp(
            b"PASV\r\n",
            answers=[
                b"211-x\r\n227 x (" + wire.six(EVIL, 5985) + b")\r\n",
                b"211 end\r\n229 x (|||22|)\r\n",
            ],
        ),
        says=("refused.denied-port",),
    ),
}

# What local programs may send, as root or not, to have a port of their choice opened.


def _asks(
    helper: str,
    source: tuple[str, int],
    to: tuple[str, int],
    payload: bytes,
    *says: str,
    settings: str = "",
) -> Attack:
    return Attack(
        helper=helper,
        steps=lambda: [datagram(udp_flow(source, to), payload)],
        says=says,
        silent=not says,
        settings=settings,
    )


_MDNS: Final = (wire.MDNS_GROUP, 5353)
_SLP: Final = (wire.SLP_GROUP, 427)
_TFTP: Final = (EVIL, 69)
_DHCP: Final = (wire.DHCPV6_GROUP, 547)

FORGED_REQUESTS: Final = {
    # No helper is tagged, or none reads it.
    "mDNS to one host": _asks(
        "mdns", (GATEWAY, 40000), (THIRD, 5353), wire.mdns_query()
    ),
    "mDNS to another group": _asks(
        "mdns", (GATEWAY, 40000), ("224.0.0.252", 5353), wire.mdns_query()
    ),
    "mDNS response": _asks(
        "mdns", (GATEWAY, 40000), _MDNS, wire.mdns_query(flags=0x8400)
    ),
    "mDNS from a chosen low port": _asks(
        "mdns", (GATEWAY, 22), _MDNS, wire.mdns_query(), "refused.denied-port"
    ),
    "mDNS from a reserved port": _asks(
        "mdns", (GATEWAY, 1023), _MDNS, wire.mdns_query(), "refused.low-port"
    ),
    "mDNS of a neighbour": _asks(
        "mdns", (VICTIM, 40000), _MDNS, wire.mdns_query(), "refused.forwarded"
    ),
    "mDNS of a host that is on no link": _asks(
        *("mdns", (EVIL, 40000), _MDNS, wire.mdns_query(), "refused.off-link"),
        settings='helpers.mdns.hooks = ["prerouting", "output"]',
    ),
    "SLP to one host": _asks(
        "slp", (GATEWAY, 40000), (THIRD, 427), wire.slp_request(), "finished.done"
    ),
    "SLP to another group": _asks(
        "slp", (GATEWAY, 40000), ("239.1.2.3", 427), wire.slp_request(), "finished.done"
    ),
    "SLP from its own port": _asks(
        "slp", (GATEWAY, 427), _SLP, wire.slp_request(), "finished.done"
    ),
    "SLP from a chosen port": _asks(
        "slp", (GATEWAY, 443), _SLP, wire.slp_request(), "refused.denied-port"
    ),
    "SLP of a neighbour": _asks(
        "slp", (VICTIM, 40000), _SLP, wire.slp_request(), "refused.forwarded"
    ),
    "SLP registration": _asks(
        "slp", (GATEWAY, 40000), _SLP, wire.slp_request(function=3)
    ),
    "DHCPv6 from a chosen port": _asks(
        "dhcpv6",
        (GATEWAY_LOCAL6, 5985),
        *(_DHCP, wire.dhcpv6(), "refused.source-port"),
    ),
    "DHCPv6 relay from a chosen port": _asks(
        "dhcpv6",
        (GATEWAY_LOCAL6, 5985),
        *(_DHCP, b"\x0c\0" + bytes(32) + b"\0\x87\0\2\0\0", "refused.relay"),
    ),
    "DHCPv6 to one host": _asks(
        "dhcpv6", (GATEWAY_LOCAL6, 546), ("fe80::7", 547), wire.dhcpv6()
    ),
    "DHCPv6 of a neighbour": _asks(
        "dhcpv6", ("fe80::66", 546), _DHCP, wire.dhcpv6(), "refused.forwarded"
    ),
    "TFTP from a reserved port": _asks(
        "tftp", (VICTIM, 1023), _TFTP, wire.tftp(), "refused.low-port"
    ),
    "TFTP from the port of a service": _asks(
        "tftp", (VICTIM, 3389), _TFTP, wire.tftp(), "refused.denied-port"
    ),
    "TFTP to a group": _asks(
        "tftp", (VICTIM, 40000), ("224.0.1.2", 69), wire.tftp(), "refused.group"
    ),
    "TFTP by broadcast": _asks(
        "tftp", (GATEWAY, 40000), ("192.0.2.255", 69), wire.tftp(), "refused.group"
    ),
    # The kernel's own helper opens the port for it.
    "TFTP, two bytes": _asks(
        "tftp", (VICTIM, 40000), _TFTP, wire.tftp()[:2], "malformed"
    ),
    "TFTP without a mode": _asks(
        "tftp", (VICTIM, 40000), _TFTP, wire.tftp(mode=b"binary"), "malformed"
    ),
    "TFTP's transfer in the flow itself": _asks(
        "tftp", (VICTIM, 40000), _TFTP, b"\0\4\0\1"
    ),
    "TFTP, a request of the server's": Attack(
        helper="tftp",
        steps=lambda: [
            datagram(udp_flow((VICTIM, 40000), _TFTP), b"\0\4\0\1"),
            datagram(udp_flow(_TFTP, (VICTIM, 40000)), wire.tftp()),
        ],
        silent=True,
    ),
    "CALLIT that is not served": _asks(
        "sunrpc", (VICTIM, 40000), (EVIL, 111), wire.callit(1)
    ),
}

ALL: Final = {
    f"{family}: {name}": attack
    for family, rows in {
        "slipstream": SLIPSTREAM,
        "TNS poison": TNS_POISON,
        "announcers": ANNOUNCERS,
        "RPC target": RPC_TARGETS,
        "FTP bounce": FTP_BOUNCE,
        "forged request": FORGED_REQUESTS,
    }.items()
    for name, attack in rows.items()
}


@cases("attack", ALL)
def test_attack_opens_nothing_that_is_not_its_own(attack: Attack) -> None:
    perform(attack)


# Replies that are not from who was asked

_OFF_LINK: Final = "203.0.113.7"


@cases(
    "helper, intruders",
    {
        "mDNS": (
            "mdns",
            [((_OFF_LINK, 5353), 50001), (("192.0.2.77", 5354), 50001)],
        ),
        "mDNS, another port": ("mdns", [(("192.0.2.77", 5353), 50002)]),
        "SLP": ("slp", [((_OFF_LINK, 427), 50001), (("192.0.2.77", 428), 50001)]),
        "SLP, another port": ("slp", [(("192.0.2.77", 427), 50009)]),
    },
)
def test_spoofed_reply_is_kept_out(
    helper: str, intruders: list[tuple[tuple[str, int], int]]
) -> None:
    scene = Scene()
    honest(scene, SESSIONS[helper], 1)
    for source, port in intruders:
        assert not scene.admits(UDP, source, (GATEWAY, port))


@cases(
    "helper, seconds, source, to",
    {
        "mDNS": ("mdns", 11.0, ("192.0.2.78", 5353), (GATEWAY, 50001)),
        "SLP": ("slp", 17.0, ("192.0.2.78", 427), (GATEWAY, 50001)),
        "DHCPv6": ("dhcpv6", 31.0, ("fe80::67", 547), (GATEWAY_LOCAL6, 546)),
    },
)
def test_window_for_replies_is_short(
    helper: str, seconds: float, source: tuple[str, int], to: tuple[str, int]
) -> None:
    scene = Scene()
    honest(scene, SESSIONS[helper], 1)
    scene.wait(seconds - 2)
    assert scene.admits(UDP, (source[0], source[1]), to)
    scene.wait(2)
    assert not scene.admits(UDP, (source[0] + "a" * (":" in source[0]), source[1]), to)
    assert scene.live == []


def test_answer_to_a_request_of_tftp_is_the_servers_and_one() -> None:
    scene = Scene()
    session = SESSIONS["tftp"]
    scene.play(session.packets(1))
    (server, port), to = session.opens(1)
    assert not scene.admits(UDP, (EVIL, port), to)
    assert not scene.admits(UDP, (server, port), (to[0], to[1] + 1))
    assert scene.admits(UDP, (server, port), to)
    assert not scene.admits(UDP, (server, port + 1), to)
    scene.play(session.packets(1))
    scene.wait(31.0)
    assert not scene.admits(UDP, (server, port + 2), to)


def test_own_address_that_comes_from_the_link_opens_nothing() -> None:
    """Over IPv6 the kernel lets such a packet in; live: tests/live/test_forged.py."""
    scene = Scene()
    way = udp_flow((GATEWAY6, 40000), (wire.MDNS_GROUP6, 5353))
    packet = datagram(way, wire.mdns_query())
    scene.comes(packet, from_link=True)
    assert scene.opened == set()
    scene.comes(packet)
    assert scene.opened == {
        f"udp {network} port 5353 > [{GATEWAY6}]:40000"
        for network in (wire.LINK6, "fe80::/10")
    }
