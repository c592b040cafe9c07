# SPDX-License-Identifier: GPL-2.0-or-later
"""Attacks on scanners (SANE) and on hosts that are backed up (Amanda), by either end.

The client of a scanner would like to reach another port of the server than the one that
it announced, and so would a backup server; a server that a browser was led to would
like to reach the browser's host.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tests.attacks import wire
from tests.attacks.scene import Attack, Step, perform
from tests.attacks.wire import (
    ATTACKER,
    EVIL,
    SANE_HELLO,
    SANE_INIT,
    SANE_START,
    SERVER,
    THIRD,
    VICTIM,
    Connection,
    datagram,
    sane_start,
    turned,
    udp_flow,
    xdr,
)
from tests.cases import cases

_PORT: Final = 22222
_CHOSEN: Final = sane_start(_PORT)
"""What a client may give an option as its value."""
_SET_OPTION: Final = xdr(5, 0, 2, 1, 3, 16, 16) + _CHOSEN
_ANSWER_OF_IT: Final = xdr(0, 0, 3, 16, 16) + _CHOSEN + xdr(0)
_OPTIONS: Final = xdr(4, 0)
_POST: Final = b"POST / HTTP/1.1\r\nHost: evil.example:6566\r\n\r\n"


def _turns(
    *said: bytes, client: str = ATTACKER, server: str = SERVER
) -> Callable[[], Iterator[Step]]:
    """A client and a server, in turns; what is empty is not said."""

    def steps() -> Iterator[Step]:
        line = Connection((client, 40000), (server, 6566))
        yield from line.opened()
        for number, each in enumerate(said):
            if each:
                yield from (line.answered if number % 2 else line.sent)(each)

    return steps


def _sane(
    *said: bytes,
    says: str,
    opens: Iterable[str] = (),
    client: str = ATTACKER,
    server: str = SERVER,
) -> Attack:
    return Attack(
        helper="sane",
        steps=_turns(*said, client=client, server=server),
        opens=frozenset(opens),
        says=(says,),
        settings="helpers.sane.enabled = true",
    )


_BEGUN: Final = (SANE_INIT, SANE_HELLO)
SCANNERS: Final = {
    "browser": _sane(
        *(_POST, sane_start(5985)),
        *(SANE_START, sane_start(5985)),
        client=VICTIM,
        server=EVIL,
        says="finished.done",
    ),
    "START without INIT": _sane(SANE_START, _CHOSEN, says="finished.done"),
    "reply without START": _sane(*_BEGUN, b"", _CHOSEN, says="finished.out-of-turn"),
    "second reply to one START": _sane(
        *(*_BEGUN, SANE_START, sane_start(4000), b"", _CHOSEN),
        opens=[f"tcp {ATTACKER} > {SERVER}:4000"],
        says="finished.out-of-turn",
    ),
    "START ahead of an answer that the client chose": _sane(
        *(*_BEGUN, _SET_OPTION, b"", SANE_START, _ANSWER_OF_IT),
        says="finished.out-of-turn",
    ),
    "START when half of that answer is there": _sane(
        *(*_BEGUN, _SET_OPTION, _ANSWER_OF_IT[:20], SANE_START, _CHOSEN),
        says="finished.out-of-turn",
    ),
    "START amid a list that the client has filled": _sane(
        *(*_BEGUN, _OPTIONS, xdr(1, 0, 64), SANE_START, _CHOSEN * 4),
        says="finished.out-of-turn",
    ),
    "START in the same segment": _sane(
        *(*_BEGUN, _SET_OPTION + SANE_START, _ANSWER_OF_IT),
        says="finished.out-of-turn",
    ),
    "port in a failed START": _sane(
        *(*_BEGUN, SANE_START, sane_start(_PORT, status=1), SANE_START),
        *(sane_start(513),),
        says="refused.low-port",
    ),
    "port before a password": _sane(
        *(*_BEGUN, SANE_START, sane_start(_PORT, resource=b"x\0")),
        *(SANE_START, _CHOSEN),
        says="malformed",
    ),
    "port over 65535": _sane(
        *(*_BEGUN, SANE_START, sane_start(0x10000 | _PORT)), says="malformed"
    ),
    "port of a service": _sane(
        *(*_BEGUN, SANE_START, sane_start(3389)), says="refused.denied-port"
    ),
    "port 0": _sane(*(*_BEGUN, SANE_START, sane_start(0)), says="refused.port-zero"),
    "a packet of nothing but lengths": _sane(
        *(*_BEGUN, _OPTIONS, xdr(4000) + bytes(60_000)), says="malformed"
    ),
    "an array of everything": _sane(
        *(*_BEGUN, _OPTIONS, xdr(0xFFFFFFFF)), says="malformed"
    ),
}


@cases("attack", SCANNERS)
def test_scanner_s_client_has_announced_ports_alone(attack: Attack) -> None:
    perform(attack)


# Amanda


def _said(
    *said: tuple[int, bytes],
    says: str = "",
    client: str = ATTACKER,
    server: str = SERVER,
    opens: Iterable[str] = (),
) -> Attack:
    """Datagrams of a flow, each with its direction: 0 original, 1 reply."""
    way = udp_flow((client, 854), (server, 10080))
    return Attack(
        helper="amanda",
        steps=lambda: [datagram(turned(way) if to else way, each) for to, each in said],
        opens=frozenset(opens),
        says=(says,) if says else (),
        silent=not says,
        settings="helpers.amanda.enabled = true",
    )


_REQ: Final = 0, wire.amanda("REQ", 7, "SERVICE sendbackup")


def _rep(*lines: str, kind: str = "REP", number: int = 7) -> tuple[int, bytes]:
    return 1, wire.amanda(kind, number, *lines)


BACKUPS: Final = {
    "answer to another request": _said(
        _REQ, _rep(f"CONNECT DATA {_PORT}", number=8), says="refused.unasked"
    ),
    "answer that comes first": _said(_rep(f"CONNECT DATA {_PORT}"), _REQ),
    "ports in the request": _said(
        (0, wire.amanda("REQ", 7, f"CONNECT DATA {_PORT}")), _rep("OK")
    ),
    "answer of who asked": _said(
        _REQ, (0, wire.amanda("REP", 7, f"CONNECT DATA {_PORT}"))
    ),
    "partial answer": _said(_REQ, _rep(f"CONNECT DATA {_PORT}", kind="PREP")),
    "stream of five digits and one": _said(
        _REQ,
        _rep("CONNECT DATA 50048 MESG 499999"),
        _rep("CONNECT DATA 513"),
        says="refused.low-port",
        opens=[f"tcp {ATTACKER} > {SERVER}:50048"],
    ),
    "ports of services": _said(
        _REQ,
        _rep("CONNECT DATA 3389 MESG 5900 INDEX 0 STATE 22"),
        says="refused.denied-port",
        opens=[f"tcp {ATTACKER} > {SERVER}:5900"],
    ),
    "a thousand streams": _said(
        _REQ,
        _rep("CONNECT" + " DATA 5000" * 1000),
        says="malformed",
    ),
    "a thousand requests": _said(
        *((0, wire.amanda("REQ", number)) for number in range(8, 1008)),
        _rep(f"CONNECT DATA {_PORT}"),
        says="refused.unasked",
    ),
    "a long header": _said(
        _REQ, (1, b"Amanda 3.5 REP HANDLE " + b"0" * 60_000), says="malformed"
    ),
}


@cases("attack", BACKUPS)
def test_backup_server_has_announced_ports_alone(attack: Attack) -> None:
    perform(attack)


def test_answer_of_a_third_host_is_of_another_flow() -> None:
    """It is not in the reply direction of the flow that asked."""
    way = udp_flow((THIRD, 10080), (ATTACKER, 854))
    asked = udp_flow((ATTACKER, 854), (SERVER, 10080))
    answer = wire.amanda("REP", 7, f"CONNECT DATA {_PORT}")
    perform(
        Attack(
            helper="amanda",
            steps=lambda: [datagram(asked, _REQ[1]), datagram(way, answer)],
            silent=True,
            settings="helpers.amanda.enabled = true",
        )
    )
