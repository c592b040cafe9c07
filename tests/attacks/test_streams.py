# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on the parsers: segments, fragments, lengths, numbers, and other protocols.

Each ends the reading of its own flow at most. Where the attacker forges into the flow
of a victim, the victim gets what it asked for.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.tuples import ORIGINAL, REPLY, TCP, UDP, Direction
from tests.attacks import wire
from tests.attacks.scene import Attack, Scene, Step, perform
from tests.attacks.wire import (
    ACK,
    CONNECT,
    EVIL,
    FIN,
    PUSH,
    RST,
    SERVER,
    SYN,
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

_PORT: Final = 5985
_VICTIMS: Final = f"tcp {VICTIM} > {SERVER}:{_PORT}"
_ANSWER: Final = redirect(address_of(SERVER, _PORT))
_LIE: Final = redirect(address_of(SERVER, 6666))


def _begun() -> tuple[Connection, list[bytes]]:
    """A victim's session with a listener, up to its CONNECT."""
    line = Connection((VICTIM, 40000), (SERVER, 1521))
    return line, [*line.opened(), *line.sent(CONNECT)]


# TCP


def _forged(
    *forgeries: Callable[[Connection], bytes],
) -> Callable[[], Iterator[Step]]:
    """Forgeries come before, in the midst of and after the server's redirect."""

    def steps() -> Iterator[Step]:
        line, begun = _begun()
        yield from begun
        for piece in wire.cut(_ANSWER, 20, 40):
            yield from (each(line) for each in forgeries)
            yield from line.answered(piece)
        yield from (each(line) for each in forgeries)

    return steps


_DIRECTIONS: Final = {"client": ORIGINAL, "server": REPLY}


def _blind(flags: int, payload: bytes = b"") -> Attack:
    """Segments whose numbers are anything, from either end's address."""

    def forgery(way: Direction, at: int, far: int) -> Callable[[Connection], bytes]:
        return lambda line: line.forged(way, payload, flags, at=at, acknowledges=far)

    return Attack(
        helper="tns",
        steps=_forged(
            *(
                forgery(way, at, far)
                for way in _DIRECTIONS.values()
                for at, far in ((1 << 30, 1 << 30), (-1 << 30, -1 << 30), (10, 1 << 30))
            )
        ),
        victims=frozenset({_VICTIMS}),
        silent=True,
    )


def _repeated(change: Callable[[bytes], bytes]) -> Callable[[], Iterator[Step]]:
    """A server that sends other bytes in the place of some that it has sent."""

    def steps() -> Iterator[Step]:
        line, begun = _begun()
        yield from begun
        yield from line.answered(_LIE[:30])
        yield line.forged(REPLY, change(_LIE[:30]), at=-30)
        yield from line.answered(_LIE[30:])

    return steps


def _gap() -> Iterator[Step]:
    """A segment that never comes, and a hundred far beyond it."""
    line, begun = _begun()
    yield from begun
    for number in range(100):
        yield line.forged(REPLY, _LIE, at=100_000 + 2000 * number)
    yield from line.answered(_LIE)


def _ahead() -> Iterator[Step]:
    """Segments beyond a gap that contradict each other."""
    line, begun = _begun()
    yield from begun
    yield line.forged(REPLY, _LIE[10:], at=10)
    yield line.forged(REPLY, bytes(len(_LIE) - 10), at=10)
    yield from line.answered(_LIE)


def _crossing() -> Iterator[Step]:
    """Bytes in order that contradict what waited behind them."""
    line, begun = _begun()
    yield from begun
    yield line.forged(REPLY, _LIE[20:], at=20)
    other = redirect(address_of(SERVER, 7777))
    yield from line.answered(other)


SEGMENTS: Final = {
    **{
        f"{name} of anybody's": _blind(flags, payload)
        for name, flags, payload in (
            ("RST", RST, b""),
            ("RST and ACK", RST | ACK, b""),
            ("SYN", SYN, b""),
            ("SYN and ACK", SYN | ACK, b""),
            ("FIN", FIN | ACK, b""),
            ("bytes", ACK | PUSH, b"x" * 100),
            ("a redirect", ACK | PUSH, _LIE),
        )
    },
    "other bytes for the same": Attack(
        helper="tns",
        steps=_repeated(lambda old: bytes(len(old))),
        says=("finished.overlap",),
    ),
    "one other byte": Attack(
        helper="tns",
        steps=_repeated(lambda old: old[:-1] + b"9"),
        says=("finished.overlap",),
    ),
    "the same, longer": Attack(
        helper="tns",
        steps=_repeated(lambda old: old[:20] + bytes(30)),
        says=("finished.overlap",),
    ),
    "other bytes beyond a gap": Attack(
        helper="tns", steps=_ahead, says=("finished.overlap",)
    ),
    "other bytes before those beyond a gap": Attack(
        helper="tns", steps=_crossing, says=("finished.overlap",)
    ),
    "a gap that stays": Attack(helper="tns", steps=_gap, says=("finished.gap",)),
    "middle of a stream": Attack(
        helper="tns",
        steps=lambda: [
            *(line := Connection((VICTIM, 40000), (SERVER, 1521))).sent(b"x"),
            *line.answered(b"y"),
            *line.sent(CONNECT),
            *line.answered(_LIE),
        ],
        says=("finished.mid-stream",),
    ),
    "one byte a segment": Attack(
        helper="tns",
        steps=lambda: [
            *(pair := _begun())[1],
            *pair[0].answered(*(bytes([each]) for each in _ANSWER)),
        ],
        victims=frozenset({_VICTIMS}),
        silent=True,
    ),
}


@cases("attack", SEGMENTS)
def test_segments_that_contradict_each_other_open_nothing(attack: Attack) -> None:
    perform(attack)


@given(
    st.lists(st.integers(0, len(_ANSWER)), max_size=6),
    st.lists(
        st.tuples(
            st.sampled_from(sorted(_DIRECTIONS)),
            # The model knows no windows, so that a RST would end its flow.
            st.sampled_from([ACK | PUSH, SYN, SYN | ACK]),
            st.sampled_from([-60, -9, 9, 60]) | st.integers(1 << 20, 1 << 31),
            st.integers(1 << 20, (1 << 31) - 1),
            st.binary(max_size=20),
        ),
        max_size=6,
    ),
)
def test_no_blind_forgery_takes_a_redirect_away_or_changes_it(
    cuts: list[int], forgeries: list[tuple[str, int, int, int, bytes]]
) -> None:
    scene = Scene(count=False)
    line, begun = _begun()
    scene.play(begun)
    pieces = wire.cut(_ANSWER, *sorted(cuts))
    for number in range(max(len(pieces), len(forgeries))):
        for way, flags, at, far, payload in forgeries[number : number + 1]:
            said = b"" if flags & SYN else payload
            forged = line.forged(_DIRECTIONS[way], said, flags, at=at, acknowledges=far)
            scene.comes(forged)
        scene.play(line.answered(*pieces[number : number + 1]))
    assert scene.opened == {_VICTIMS}


# IP

_CALL: Final = datagram(udp_flow((VICTIM, 40000), (SERVER, 111)), wire.getport(1))
_REPLY: Final = datagram(
    udp_flow((SERVER, 111), (VICTIM, 40000)), wire.reply(1, wire.xdr(_PORT))
)


def _fragments(
    packet: bytes, size: int, change: Callable[[list[bytes]], list[bytes]]
) -> Callable[[], list[Step]]:
    return lambda: [*change(wire.fragments(packet, size)), _REPLY]


def _overlapping(pieces: list[bytes]) -> list[bytes]:
    """The second one again, 8 bytes earlier and with other bytes."""
    first, second, *rest = pieces
    offset = int.from_bytes(second[6:8]) - 1
    return [
        first,
        second[:6] + offset.to_bytes(2) + second[8:20] + bytes(len(second) - 20),
        second,
        *rest,
    ]


FRAGMENTS: Final = {
    "an honest call in fragments": Attack(
        helper="sunrpc",
        steps=_fragments(_CALL, 24, lambda pieces: pieces),
        victims=frozenset({_VICTIMS}),
        silent=True,
    ),
    "in fragments of 8 bytes, backwards": Attack(
        helper="sunrpc",
        steps=_fragments(_CALL, 8, lambda pieces: pieces[::-1]),
        victims=frozenset({_VICTIMS}),
        silent=True,
    ),
    "fragments that overlap": Attack(
        helper="sunrpc", steps=_fragments(_CALL, 24, _overlapping), silent=True
    ),
    "the first one alone": Attack(
        helper="sunrpc",
        steps=_fragments(_CALL, 24, lambda pieces: pieces[:1]),
        silent=True,
    ),
    "a last one alone that looks like a call": Attack(
        helper="sunrpc",
        steps=_fragments(_CALL, 24, lambda pieces: pieces[-1:]),
        silent=True,
    ),
}


@cases("attack", FRAGMENTS)
def test_fragments_are_read_whole_or_not_at_all(attack: Attack) -> None:
    perform(attack)


# Lengths


def _said(
    helper: str,
    transport: int,
    port: int,
    asked: Iterable[bytes],
    answered: Iterable[bytes] = (),
    *says: str,
) -> Attack:
    """What two ends say to each other, the server first on FTP."""

    def steps() -> Iterator[Step]:
        if transport == TCP:
            line = Connection((VICTIM, 40000), (EVIL, port))
            yield from line.opened()
            if helper == "ftp":
                yield from line.answered(b"220 ready\r\n")
            yield from line.sent(*asked)
            yield from line.answered(*answered)
            return
        way = udp_flow((VICTIM, 40000), (EVIL, port))
        yield from (datagram(way, each) for each in asked)
        yield from (datagram(turned(way), each) for each in answered)

    return Attack(
        helper=helper,
        steps=steps,
        says=says or ("malformed",),
        opens=frozenset(),
    )


def _tns(*answered: bytes) -> Attack:
    return _said("tns", TCP, 1521, [CONNECT], answered, "malformed")


def _own(helper: str, port: int, group: str, payload: bytes) -> Attack:
    """What a program on the gateway sends to a group."""
    source = (wire.GATEWAY_LOCAL6, 546) if ":" in group else (wire.GATEWAY, 40000)
    return Attack(
        helper=helper,
        steps=lambda: [datagram(udp_flow(source, (group, port)), payload)],
        says=("malformed",),
    )


LENGTHS: Final = {
    "TNS packet of 65535 bytes": _tns(wire.tns(5, b"x", 65535), *[bytes(1448)] * 12),
    "TNS packet of 7 bytes": _tns(wire.tns(5, b"", 7)),
    "TNS packet of 0 bytes": _tns(wire.tns(5, b"", 0)),
    "TNS redirect longer than its packet": _said(
        *("tns", TCP, 1521, [CONNECT]),
        [
            redirect(address_of(THIRD, 5985), 60000),
            *[wire.tns_data(b" " * 300)] * 20,
        ],
        "malformed",
    ),
    "TNS redirect in a thousand pieces": _said(
        *("tns", TCP, 1521, [CONNECT]),
        [redirect(b"", 0), *[wire.tns_data(b" ")] * 40],
        "malformed",
    ),
    "TNS nested a thousand times": _tns(redirect(b"(A=" * 1360 + b"b" + b")" * 1)),
    "TNS nested and closed": _tns(redirect(b"(A=" * 1000 + b")" * 1000)),
    "TNS of huge numbers": _tns(
        redirect(b"(ADDRESS=(PROTOCOL=tcp)(HOST=1.2.3.4)(PORT=" + b"9" * 4000 + b"))")
    ),
    "TNS of endless quotes": _tns(redirect(b"(ADDRESS=(HOST='" + b"x" * 4000)),
    "RPC record of 2 GB": _said("sunrpc", TCP, 111, [b"\x7f\xff\xff\xff" + bytes(64)]),
    "RPC record of nothing": _said("sunrpc", TCP, 111, [b"\x80\0\0\0" * 300]),
    "RPC fragments of nothing": _said("sunrpc", TCP, 111, [bytes(1448)] * 12),
    "RPC credentials of 4 GB": _said(
        "sunrpc",
        *(UDP, 111),
        [wire.xdr(1, 0, 2, 100000, 2, 3, 1, 0xFFFFFFFF)],
    ),
    "RPC string of 4 GB": _said(
        "sunrpc",
        *(UDP, 111),
        [wire.call(1, 3, 3, wire.xdr(wire.MOUNTD, 3, 0xFFFFFFFF))],
    ),
    "RPC string without its padding": _said(
        "sunrpc",
        *(UDP, 111),
        [wire.call(1, 3, 3, wire.xdr(wire.MOUNTD, 3, 3) + b"tcp")],
    ),
    "RPC list that never ends": _said(
        *("sunrpc", UDP, 111, [wire.getaddrlist(1)]),
        [wire.reply(1, wire.xdr(1, b"", b"", 1, b"", b"") * 50)],
    ),
    "universal address of 255 dots": _said(
        *("sunrpc", UDP, 111, [wire.getaddr(1, b"")]),
        [wire.reply(1, wire.xdr(b"." * 255))],
    ),
    "universal address of huge numbers": _said(
        *("sunrpc", UDP, 111, [wire.getaddr(1, b"")]),
        [wire.reply(1, wire.xdr(b"1.2.3.4." + b"9" * 200 + b".1"))],
    ),
    "mDNS questions that are not there": _own(
        *("mdns", 5353, wire.MDNS_GROUP),
        wire.mdns_query()[:4] + b"\xff\xff" + wire.mdns_query()[6:],
    ),
    "mDNS label beyond the end": _own(
        "mdns", 5353, wire.MDNS_GROUP, wire.mdns_query(b"\x3fabc")
    ),
    "mDNS name of 300 labels": _own(
        "mdns", 5353, wire.MDNS_GROUP, wire.mdns_query(b"\1a" * 300)
    ),
    "SLP longer than the datagram": _own(
        "slp", 427, wire.SLP_GROUP, wire.slp_request(length=0xFFFFFF)
    ),
    "SLP shorter than the datagram": _own(
        "slp", 427, wire.SLP_GROUP, wire.slp_request(length=16)
    ),
    "SLP string beyond the end": _own(
        *("slp", 427, wire.SLP_GROUP),
        wire.slp_request()[:16] + b"\xff\xff" + wire.slp_request()[18:],
    ),
    "DHCPv6 option beyond the end": _own(
        "dhcpv6", 547, wire.DHCPV6_GROUP, b"\1abc\0\1\xff\xff"
    ),
    "FTP line without an end": _said("ftp", TCP, 21, [b"USER " + b"x" * 1400] * 14),
    "FTP numbers without an end": _said(
        *("ftp", TCP, 21, [b"EPRT |1|192.0.2.50|" + b"9" * 1400 + b"|\r\n"], ()),
        "refused.unreadable",
    ),
}


# Pointers are passed over, never followed.
LENGTHS["mDNS name that points to itself"] = Attack(
    helper="mdns",
    steps=lambda: [
        datagram(
            udp_flow((wire.GATEWAY, 40000), (wire.MDNS_GROUP, 5353)),
            wire.mdns_query(b"\xc0\x0c"),
        )
    ],
    victims=frozenset({f"udp {wire.LINK} port 5353 > {wire.GATEWAY}:40000"}),
    silent=True,
)


@cases("attack", LENGTHS)
def test_length_that_lies_leads_nowhere(attack: Attack) -> None:
    perform(attack)


# Numbers of transactions


def _rpc(*steps: tuple[str, bytes] | float) -> Callable[[], Iterator[Step]]:
    """Datagrams between the victim and the server, whoever has sent them."""

    def played() -> Iterator[Step]:
        way = udp_flow((VICTIM, 40000), (SERVER, 111))
        for step in steps:
            if isinstance(step, float):
                yield step
            else:
                yield datagram(way if step[0] == "call" else turned(way), step[1])

    return played


_LIED: Final = wire.reply(7, wire.xdr(6666))

TRANSACTIONS: Final = {
    "reply with number 0, to no call": Attack(
        helper="sunrpc",
        steps=_rpc(("call", wire.getport(7)), ("reply", wire.reply(0, wire.xdr(6666)))),
        silent=True,
    ),
    "reply to no call at all": Attack(
        helper="sunrpc",
        steps=_rpc(("call", b""), ("reply", _LIED)),
        says=("malformed",),
    ),
    "reply after a minute": Attack(
        helper="sunrpc",
        steps=_rpc(("call", wire.getport(7)), 20.0, 20.0, 20.5, ("reply", _LIED)),
        silent=True,
    ),
    "guessed numbers": Attack(
        helper="sunrpc",
        steps=_rpc(
            ("call", wire.getport(70_000)),
            *[("reply", wire.reply(number, wire.xdr(6666))) for number in range(500)],
            ("reply", wire.reply(70_000, wire.xdr(_PORT))),
        ),
        victims=frozenset({_VICTIMS}),
        silent=True,
    ),
    "the same number, ahead of the call": Attack(
        helper="sunrpc",
        steps=_rpc(
            ("call", wire.getport(7, UDP)),
            ("call", wire.getport(7)),
            ("reply", wire.reply(7, wire.xdr(_PORT))),
        ),
        # What the server names is its own port, over the wrong transport.
        opens=frozenset({_VICTIMS.replace("tcp", "udp")}),
        silent=True,
    ),
    "the same number, behind the call": Attack(
        helper="sunrpc",
        steps=_rpc(
            ("call", wire.getport(7)),
            ("call", wire.call(7, 2, 0)),
            ("call", wire.getport(7, UDP)),
            ("reply", wire.reply(7, wire.xdr(_PORT))),
        ),
        victims=frozenset({_VICTIMS}),
        silent=True,
    ),
    "a call in the direction of replies": Attack(
        helper="sunrpc",
        steps=_rpc(("call", wire.getport(7)), ("reply", wire.getport(7))),
        says=("malformed",),
    ),
    "a flood of forged calls before the answer": Attack(
        helper="sunrpc",
        steps=_rpc(
            ("call", wire.getport(70_000)),
            *[("call", wire.getport(number)) for number in range(100)],
            ("reply", wire.reply(70_000, wire.xdr(_PORT))),
        ),
        victims=frozenset({_VICTIMS}),
        silent=True,
    ),
}


@cases("attack", TRANSACTIONS)
def test_only_the_answer_to_a_call_opens(attack: Attack) -> None:
    perform(attack)


# Other protocols on the port

_TLS: Final = b"\x16\x03\1\2\0\1\0\1\xfc\3\3" + bytes(500)
_SIP: Final = b"REGISTER sip:evil SIP/2.0\r\nContact: <sip:x@192.0.2.50:5985>\r\n"
_DNS: Final = b"\0\7\1\0\0\1\0\0\0\0\0\0\3www\7example\0\0\1\0\1"

OTHERS: Final = {
    "TLS to a listener": _said("tns", TCP, 1521, [_TLS], [_LIE], "finished.done"),
    "SIP to a listener": _said("tns", TCP, 1521, [_SIP], [_LIE], "finished.done"),
    "SSH to a listener": _said(
        "tns", TCP, 1521, [b"SSH-2.0-x\r\n"], [_LIE], "finished.done"
    ),
    "SIP to a portmapper": _said("sunrpc", TCP, 111, [_SIP]),
    "DNS to a portmapper": _said("sunrpc", UDP, 111, [_DNS], [_DNS]),
    "NFS to a portmapper": _said(
        *("sunrpc", UDP, 111, [wire.xdr(1, 0, 3, 100003, 3, 1)])
    ),
    "SIP to an FTP server": _said("ftp", TCP, 21, [_SIP]),
    "TLS to an FTP server": _said("ftp", TCP, 21, [_TLS, b"\n"]),
    "FTP inside TLS": _said(
        *("ftp", TCP, 21, [b"AUTH TLS\r\n"]),
        [b"234 go\r\n", b"227 (198,51,100,66,23,97)\r\n"],
        "finished.done",
    ),
    "SLP as mDNS": _own("mdns", 5353, wire.MDNS_GROUP, bytes(5) + b"\1" + b"\xff" * 9),
    "DNS as SLP": _own("slp", 427, wire.SLP_GROUP, _DNS),
}


@cases("attack", OTHERS)
def test_another_protocol_on_the_port_is_not_read(attack: Attack) -> None:
    perform(attack)
