# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversations that no capture holds, for fuzzing to begin with.

They are short and right, so that what is read after the headers is reached soon.
"""

from collections.abc import Iterator
from ipaddress import ip_address
from itertools import pairwise
from typing import Final

from cthelper.core.api import TCP, UDP, Endpoint, Transport, Tuple
from tests.fuzz.conversation import head
from tests.fuzz.script import Script, Step

_CLIENT: Final = "192.0.2.1"
_SERVER: Final = "198.51.100.2"


def _flow(
    transport: Transport, port: int, server: str = _SERVER, client: str = _CLIENT
) -> Tuple:
    return Tuple(
        transport,
        Endpoint(ip_address(client), 40000),
        Endpoint(ip_address(server), port),
    )


def _script(flow: Tuple, *payloads: tuple[int, bytes], depth: int = 0) -> Script:
    """Each payload with its direction: 0 original, 1 reply. The second configuration.

    That is the one that reads most.
    """
    first = bytearray(head(flow, 1))
    first[0] |= depth << 4
    return Script(bytes(first), tuple(Step(*each) for each in payloads))


# TNS.


def _tns(kind: int, body: bytes) -> bytes:
    return (8 + len(body)).to_bytes(2) + bytes([0, 0, kind, 0, 0, 0]) + body


def _redirect(text: bytes, length: int | None = None) -> bytes:
    return _tns(5, (len(text) if length is None else length).to_bytes(2) + text)


def tns() -> Iterator[Script]:
    """Redirects in all the forms that listeners give them."""
    connect = 0, _tns(1, bytes(50) + b"(CONNECT_DATA=(SERVICE_NAME=x))")
    names = b"(ADDRESS=(PROTOCOL=tcp)(HOST=rac1.example.net)(PORT=1522))"
    several = (
        b"(DESCRIPTION=(ADDRESS_LIST=(ADDRESS=(PROTOCOL=TCPS)(HOST=192.0.2.11)(PORT=2484))"
        b"(address = (port=1521) (host='rac1') (protocol=tcp))"
        b"(ADDRESS=(PROTOCOL=ipc)(KEY=x))(ADDRESS=(PROTOCOL=tcp)(HOST=rac9)(PORT=1524))))"
    )
    flow = _flow(TCP, 1521)
    nothing = _redirect(b"", len(names))
    halves = [(1, _tns(6, b"\0\0" + each)) for each in (names[:20], names[20:])]
    yield _script(flow, connect, (1, _redirect(several + b"\0(CONNECT_DATA=)")))
    yield _script(flow, connect, (1, nothing), *halves)
    yield _script(flow, connect, (1, _redirect(b"", 0)), *halves, (1, _tns(4, b"xx")))
    yield _script(flow, connect, (1, _tns(11, b"")), connect, *[(1, nothing)] * 2)
    yield _script(flow, connect, *[(1, _redirect(names))] * 5)
    yield _script(flow, connect, (1, _redirect(names)), (1, _tns(2, b"")), depth=4)
    yield _script(flow, connect, (1, _redirect(b"(A=" * 9 + b"b" + b")" * 9)))
    yield _script(flow, connect, (1, _redirect(b"", 0)), (1, _tns(6, b" " * 5000)))
    yield _script(_flow(TCP, 1521, "2001:db8::2", "2001:db8::1"), connect)


# FTP.


def _lines(*texts: str) -> list[tuple[int, bytes]]:
    """What both sides say: "> " is the client's line, "< " the server's."""
    return [
        (int(each[0] == "<"), f"{each[2:]}\r\n".encode("latin-1")) for each in texts
    ]


def ftp() -> Iterator[Script]:
    """What is announced, refused, aborted and made void; and clear text after TLS."""
    flow = _flow(TCP, 21)
    port, passive = "> PORT 192,0,2,1,156,64", "< 227 (198,51,100,2,156,64)"
    ready, done = "< 220 ready", "< 226 done"
    record = b"\x16\x03\x03\0\x05PASV\n"
    for said in (
        ("> FEAT", ready, "< 211-x", "<  227 (1,2,3,4,5,6)", "< 211 end", port, done),
        (ready, port, "> RETR f", "< 200 ok", "< 550 no", port, port, "< 500 no"),
        (ready, "> PASV", passive, "> PASV", "< 229 x (!!!40001!).", "> LIST", done),
        (ready, "> EPSV ALL", "< 200 ok", port, "> EPSV", passive, "< 227 Logout."),
        (ready, port, "> RETR f", "> \xff\xf4\xff\xf2ABOR", "< 426 no", "< 226 ok"),
        (ready, "> PASV", "< 227 (203,0,113,9,156,64)", "> LPSV", "< 230_x", "< 421 x"),
        (ready, "> EPRT |1|192.0.2.1|40000|", "> STOR f", "< 150 x", "< 425 no"),
    ):
        yield _script(flow, *_lines(*said))
    secret = _lines(ready, "> AUTH TLS", "< 234 go")
    clear = _lines("> EPSV", "< 229 (|||40000|)", "< 221 bye")
    yield _script(flow, *secret, (0, record), (1, record * 3), *clear)
    six = _flow(TCP, 21, "2001:db8::2", "2001:db8::1")
    yield _script(
        six, *_lines(ready, "> EPRT |2|2001:db8::1|40000|", "> EPSV", "< 522")
    )


# SunRPC.


def _u32(*values: int) -> bytes:
    return b"".join(value.to_bytes(4) for value in values)


def _string(text: bytes) -> bytes:
    return _u32(len(text)) + text + bytes(-len(text) % 4)


def _call(xid: int, version: int, procedure: int, arguments: bytes) -> bytes:
    return _u32(xid, 0, 2, 100000, version, procedure, 0, 0, 0, 0) + arguments


def _reply(xid: int, result: bytes) -> bytes:
    return _u32(xid, 1, 0, 0, 0, 0) + result


_MAPPING: Final = _u32(100005, 3, 6, 0)
_RPCB: Final = _u32(100005, 3) + _string(b"tcp") + _string(b"") + _string(b"")
_REMOTE: Final = _u32(100001, 3, 1) + _string(b"abc")
_ADDRESS: Final = _string(b"198.51.100.2.156.64")
_LIST: Final = (
    _u32(1) + _ADDRESS + _string(b"tcp") + _u32(1) + _string(b"inet") + _string(b"tcp")
)
# Version and procedure, arguments, result.
_CALLS: Final = (
    (2, 3, _MAPPING, _u32(40000)),
    (2, 4, b"", _u32(1, 100005, 3, 17, 40001, 1, 100000, 2, 6, 111, 0)),
    (2, 5, _REMOTE, _u32(40000) + _string(b"result")),
    (3, 3, _RPCB, _ADDRESS),
    (
        *(3, 4, b""),
        _u32(1, 100005, 3) + _string(b"tcp") + _ADDRESS + _string(b"root") + _u32(0),
    ),
    (4, 5, _REMOTE, _ADDRESS + _string(b"result")),
    (4, 9, _RPCB, _ADDRESS),
    (4, 10, _REMOTE, _ADDRESS + _string(b"result")),
    (4, 11, _RPCB, _LIST + _LIST + _u32(0)),
)


def _record(message: bytes, *cuts: int) -> bytes:
    """The record of a message, cut into fragments."""
    bounds = [0, *cuts, len(message)]
    return b"".join(
        _u32(stop - start | (stop == len(message)) << 31) + message[start:stop]
        for start, stop in pairwise(bounds)
    )


def sunrpc_tcp() -> Iterator[Script]:
    """Each procedure by itself, all at once, and odd fragments."""
    flow = _flow(TCP, 111)
    everything = []
    for xid, (version, procedure, arguments, result) in enumerate(_CALLS):
        call = 0, _record(_call(xid, version, procedure, arguments))
        reply = 1, _record(_reply(xid, result), 5, 5)
        yield _script(flow, call, reply, reply)
        everything += [call, reply]
    yield _script(flow, *everything[::2], *everything[1::2])
    yield _script(flow, (0, bytes(4 * 65)))


def sunrpc_udp() -> Iterator[Script]:
    """The same over UDP, to a server and to all of them; more calls than are kept."""
    for server in (_SERVER, "255.255.255.255", "192.0.2.255"):
        for version, procedure, arguments, result in _CALLS:
            call = _call(7, version, procedure, arguments)
            yield _script(_flow(UDP, 111, server), (0, call), (1, _reply(7, result)))
    calls = [(0, _call(xid, 2, 3, _MAPPING)) for xid in range(34)]
    yield _script(_flow(UDP, 111), *calls, (1, _reply(33, _u32(40000))))


# DHCPv6.


def dhcpv6() -> Iterator[Script]:
    """A relay that sends from a port of its own, and a client's leasequery."""
    solicit = b"\1abc" + _u32(0x00010002) + b"id"
    options = bytes.fromhex("008700020000") + b"\0\x09" + _short(solicit)
    relay = _flow(UDP, 547, "ff05::1:3", "2001:db8::1")
    yield _script(relay, (0, b"\x0c\0" + bytes(32) + options))
    yield _script(relay, (0, b"\x0eabc"), (1, b"\x0d\0" + bytes(32) + options))


# SLP.


def _slp(function: int, flags: int, body: bytes) -> bytes:
    length = 16 + len(body)
    return (
        bytes([2, function])
        + length.to_bytes(3)
        + flags.to_bytes(2)
        + bytes(3)
        + b"\0\7\0\2en"
        + body
    )


def _short(*texts: bytes) -> bytes:
    return b"".join(len(each).to_bytes(2) + each for each in texts)


def slp() -> Iterator[Script]:
    """Requests of both versions, and answers that do not fit."""
    asked = _short(b"", b"service:printer", b"DEFAULT", b"", b"")
    first = b"\1\1\0\x1d\0\0en\0\3\0\1" + _short(b"", b"printer//x//")
    length = len(first).to_bytes(2)
    for group in ("239.255.255.253", "224.0.1.22", "255.255.255.255", _SERVER):
        flow = _flow(UDP, 427, group)
        yield _script(flow, (0, _slp(1, 0x2000, asked)))
        yield _script(flow, (0, _slp(6, 0x2000, asked)), (0, _slp(9, 0, asked)))
        yield _script(flow, (0, first[:2] + length + first[4:]))
    yield _script(_flow(UDP, 427, "ff02::116", "fe80::1"), (0, _slp(1, 0, asked)))
    for function in (2, 7, 10, 11):
        answer = _slp(function, 0x8000, b"\0\0\0\0")
        yield _script(_flow(UDP, 427), (0, answer), depth=1)


# IRC.


def irc() -> Iterator[Script]:
    """DCC in all forms, with tags, before and after the welcome, and forged."""
    begin, welcome = (0, b"CAP LS 302\r\nJOIN :\r\n"), (1, b":s 001 a :Welcome\r\n")
    address = str(int(ip_address(_CLIENT))).encode()
    texts = (
        b"CHAT chat %s 40000" % address,
        b'SEND "a b" %s 40001 6' % address,
        b"SEND a 1 2 %s 40002" % _CLIENT.encode(),
        b"SEND a %s 0 6 77" % address,
        b"RESUME a 40001 3",
    )
    lines = [b"@a=1 PRIVMSG bob :\x01DCC " + each + b"\x01\r\n" for each in texts]
    flow = _flow(TCP, 6667)
    for line in lines:
        yield _script(flow, begin, welcome, (0, b"PING x\r\n" + line))
    yield _script(flow, begin, welcome, (0, b"".join(lines)), (0, lines[0] * 9))
    yield _script(flow, begin, (0, lines[0]), welcome, (0, lines[0]))
    yield _script(flow, begin, welcome, (0, lines[0].replace(b"PRIVMSG bob", b"PONG")))
    yield _script(flow, (0, b"POST / HTTP/1.1\r\n" + lines[0]), welcome, (0, lines[0]))
    yield _script(flow, begin, welcome, (1, b":s 670 a :go\r\n"), (0, lines[0]))
    six = _flow(TCP, 6667, "2001:db8::2", "2001:db8::1")
    line = b"NOTICE bob :\x01DCC SEND f 2001:db8::1 40000 6\x01\n"
    yield _script(six, begin, welcome, (0, line))


# SANE.


def _text(data: bytes) -> bytes:
    return _u32(len(data)) + data


def sane() -> Iterator[Script]:
    """Each request with its reply, a password for START, and one that asks ahead."""
    flow = _flow(TCP, 6566)
    begun = (0, _u32(0, 0x01010003) + _text(b"me\0")), (1, _u32(0, 0x01010003))
    start = 0, _u32(7, 0)
    reply = 1, _u32(0, 40000, 0x1234, 0)
    value = _u32(3, 16, 16) + reply[1]
    option = _u32(0) + _text(b"mode\0") * 3 + _u32(3, 0, 9, 5)
    options = b"".join(
        option + constraint
        for constraint in (
            _u32(0),
            _u32(1, 0, 1, 9, 1),
            _u32(2, 3, 2, 75, 150),
            _u32(3, 2) + _text(b"Gray\0") + _u32(0),
        )
    )
    said = (
        (0, _u32(1)),
        (1, _u32(0, 2, 0) + _text(b"test\0") * 4 + _u32(1)),
        (0, _u32(2) + _text(b"test\0")),
        (1, _u32(0, 0) + _text(b"test$MD5$1\0")),
        (0, _u32(9) + _text(b"test\0") * 3),
        (1, _u32(0, 0, 0, 0)),
        (0, _u32(4, 0)),
        (1, _u32(5) + options + _u32(1)),
        (0, _u32(5, 0, 2, 1) + value),
        (1, _u32(0, 4) + value + _u32(0)),
        (0, _u32(5, 0, 9, 2)),
        (1, _u32(0, 0, 4, 0, 0, 0)),
        start,
        reply,
        (0, _u32(6, 0)),
        (1, bytes(28)),
        start,
        (1, _u32(0, 0, 0) + _text(b"test\0")),
        (0, _u32(9) + _text(b"test\0") * 3),
        (1, _u32(0) + reply[1]),
        (0, _u32(8, 0)),
        (1, _u32(0)),
        (0, _u32(10)),
    )
    yield _script(flow, *begun, start, reply)
    yield _script(flow, *begun, *said)
    ahead = (0, _u32(5, 0, 2, 1) + value), (1, _u32(0, 0, 3, 16, 16)), start, reply
    yield _script(flow, *begun, *ahead)


# Amanda.


def _amanda(kind: bytes, sequence: int, *lines: bytes) -> bytes:
    head = b"Amanda 3.5 %b HANDLE 000-00000000 SEQ %d" % (kind, sequence)
    return b"".join(each + b"\n" for each in (head, *lines))


def amanda() -> Iterator[Script]:
    """Answers of both ways, too early and too often."""
    flow = _flow(UDP, 10080)
    asked = 0, _amanda(b"REQ", 7, b"SERVICE sendbackup")
    for line in (
        b"CONNECT DATA 50040 MESG 50041 INDEX 50042 STATE 50043",
        b"CONNECT DATA 50048 MESG 499999 INDEX -1",
    ):
        answer = 1, _amanda(b"REP", 7, line, b"OPTIONS features=f;")
        yield _script(flow, asked, (1, _amanda(b"ACK", 7)), answer, answer)
        yield _script(flow, answer, asked, (1, _amanda(b"PREP", 7, line)))
    many = [(0, _amanda(b"REQ", number)) for number in range(20)]
    yield _script(flow, *many, (1, _amanda(b"REP", 3, b"CONNECT DATA 50040")))
