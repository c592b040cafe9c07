# SPDX-License-Identifier: GPL-2.0-or-later
"""IRC's DCC, forged by a server, by a page of the web, and by other users."""

from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Final

import pytest

from cthelper.core.tuples import TCP
from tests.attacks.honest import SESSIONS, Session
from tests.attacks.scene import Attack, Scene, Step, honest, perform
from tests.attacks.wire import (
    EVIL,
    GATEWAY,
    HONEST,
    HONEST_SERVER,
    SERVER,
    THIRD,
    VICTIM,
    Connection,
)
from tests.cases import cases

_CLIENT: Final = (VICTIM, 50000)
_BEGIN: Final = b"CAP LS 302\r\nNICK alice\r\nUSER alice 0 * :a\r\n"
_WELCOME: Final = b":irc.example 001 alice :Welcome\r\n"
SETTINGS: Final = "helpers.irc.enabled = true"


def dcc(host: str, port: int, command: bytes = b"PRIVMSG bob") -> bytes:
    """A line that announces a file at an endpoint of IPv4."""
    text = b"%d %d 6" % (int(ip_address(host)), port)
    return command + b" :\x01DCC SEND f " + text + b"\x01\r\n"


_OWN: Final = dcc(VICTIM, 5985)


def _honest(number: int) -> list[bytes]:
    line = Connection((HONEST, 50000 + number), (HONEST_SERVER, 6667))
    return [
        *line.opened(),
        *line.sent(_BEGIN),
        *line.answered(_WELCOME),
        *line.sent(dcc(HONEST, 40000 + number)),
    ]


@pytest.fixture(autouse=True)
def session(monkeypatch: pytest.MonkeyPatch) -> None:
    """An honest session, of a helper that is off by default."""
    opened = Session(
        TCP,
        _honest,
        lambda number: f"tcp any > {HONEST}:{40000 + number}",
        lambda number: ((SERVER, 45000), (HONEST, 40000 + number)),
    )
    monkeypatch.setitem(SESSIONS, "irc", opened)


def _attack(
    steps: Callable[[Connection], Iterator[Step]], *says: str, opens: int = 0
) -> Attack:
    """What goes by on a connection; `opens` ports of the sender's from 5985 on."""

    def played() -> Iterator[Step]:
        line = Connection(_CLIENT, (EVIL, 6667))
        yield from line.opened()
        yield from steps(line)

    return Attack(
        helper="irc",
        steps=played,
        opens=frozenset(f"tcp any > {VICTIM}:{5985 + each}" for each in range(opens)),
        says=says,
        silent=not says,
        settings=SETTINGS,
    )


def _sends(
    *lines: bytes, begin: bytes = _BEGIN
) -> Callable[[Connection], Iterator[Step]]:
    """A client that is known to the server sends these, a segment each."""

    def steps(line: Connection) -> Iterator[Step]:
        yield from line.answered(b":irc.example NOTICE * :hello\r\n")
        yield from line.sent(begin)
        yield from line.answered(_WELCOME)
        yield from line.sent(*lines)

    return steps


def _answers(*lines: bytes) -> Callable[[Connection], Iterator[Step]]:
    """The server of such a client sends these."""

    def steps(line: Connection) -> Iterator[Step]:
        yield from line.sent(_BEGIN)
        yield from line.answered(_WELCOME, *lines)

    return steps


def _unwelcome(line: Connection) -> Iterator[Step]:
    yield from line.sent(_BEGIN)
    yield from line.sent(_OWN)


_POST: Final = b"POST / HTTP/1.1\r\nHost: evil.example:6667\r\n\r\n"

ATTACKS: Final = {
    "PONG that repeats a PING (CVE-2022-2663)": _attack(
        _sends(b"PONG :" + _OWN.partition(b":")[2])
    ),
    "PING of the server's": _attack(_answers(b"PING :" + _OWN.partition(b":")[2])),
    "DCC of the server's": _attack(_answers(_OWN, b":bob!b@host " + _OWN)),
    "DCC in a text, behind other words": _attack(
        _sends(_OWN.replace(b":\x01", b":look: \x01"))
    ),
    "PRIVMSG in a text": _attack(_sends(b"TOPIC #a :" + _OWN)),
    "form of a page (slipstream)": _attack(
        _sends(_BEGIN + _OWN, begin=_POST), "finished.done"
    ),
    "form of a page, after commands": _attack(
        _sends(b"GET / HTTP/1.1\r\n", _OWN), "finished.done"
    ),
    "another protocol": _attack(_sends(_OWN, begin=b"EHLO evil\r\n"), "finished.done"),
    "before the welcome": _attack(_unwelcome, "refused.not-welcomed"),
    "a third host (slipstream v2)": _attack(
        _sends(dcc(THIRD, 5985)), "refused.third-party-address"
    ),
    # The kernel's helper took it until 6.0.
    "the server itself": _attack(
        _sends(dcc(EVIL, 5985)), "refused.third-party-address"
    ),
    "the gateway": _attack(_sends(dcc(GATEWAY, 5985)), "refused.third-party-address"),
    "loopback": _attack(_sends(dcc("127.0.0.1", 5985)), "refused.loopback-address"),
    "a low port": _attack(_sends(dcc(VICTIM, 1023)), "refused.low-port"),
    "a denied port": _attack(_sends(dcc(VICTIM, 3389)), "refused.denied-port"),
    "a port that spills over": _attack(_sends(dcc(VICTIM, 65536 + 5985))),
    "an address that spills over": _attack(
        _sends(_OWN.replace(b" 5985", b"").replace(b" 6", b"0 5985"))
    ),
    "passive": _attack(_sends(dcc(VICTIM, 0))),
    "many ports": _attack(
        _sends(*(dcc(VICTIM, 5985 + each) for each in range(20))),
        "refused.dcc-rate",
        opens=8,
    ),
    "many ports in a segment": _attack(
        _sends(b"".join(dcc(VICTIM, 5985 + each) for each in range(20))),
        "refused.dcc-rate",
        opens=8,
    ),
    "more in a segment than are read": _attack(
        _sends(b"".join(dcc(VICTIM, 5985 + each) for each in range(80))),
        "finished.too-many-messages",
        opens=8,
    ),
    "segment of empty lines": _attack(
        _sends(b"\n" * 60000, _OWN.replace(b"PRIVMSG", b"PONG"))
    ),
    "segment of a server's short lines": _attack(_answers(b"001 \n" * 12000)),
    "line of blanks": _attack(_sends(b"@a" + b" " * 8000 + b":" + b" " * 8000 + b"\n")),
    "line of words": _attack(
        _sends(b"PRIVMSG bob :\x01DCC SEND" + b" 1" * 4000 + b"\x01\n")
    ),
    "line without an end": _attack(_sends(b"A" * 60000), "malformed"),
}


@cases("attack", ATTACKS)
def test_attack_opens_nothing_that_is_not_its_own(attack: Attack) -> None:
    perform(attack)


def test_offer_is_taken_once_by_anybody_and_not_for_long() -> None:
    scene = Scene(SETTINGS)
    honest(scene, SESSIONS["irc"], 1)
    assert not scene.admits(TCP, (THIRD, 1024), (HONEST, 40001))
    scene.play(_honest(2))
    assert not scene.admits(TCP, (EVIL, 1024), (HONEST, 40003))
    scene.wait(301.0)
    assert not scene.admits(TCP, (EVIL, 1024), (HONEST, 40002))


def test_helper_that_is_off_opens_nothing() -> None:
    scene = Scene()
    scene.play(_honest(1))
    assert scene.opened == set()
