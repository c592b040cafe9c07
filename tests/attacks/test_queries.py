# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions to a group or by broadcast, forged by whoever may send something."""

from ipaddress import ip_address
from typing import Final

import pytest

from cthelper.core.tuples import UDP
from tests.attacks.honest import SESSIONS, Session
from tests.attacks.scene import Attack, Scene, honest, perform
from tests.attacks.wire import GATEWAY, LINK, THIRD, VICTIM, datagram, udp_flow
from tests.cases import cases

_BROADCAST: Final = "255.255.255.255"
_OWN_PORT: Final = 50000

SETTINGS: Final = """
[helpers]
knx.enabled = true
netbios-ns.enabled = true
ssdp.enabled = true
[helpers.lamp]
type = "discovery"
ports = [9999]
destinations = ["broadcast"]
answer_port = 4002
own_port = false
match = [{ text = "FIND" }]
"""


def search(target: str = "ssdp:all", more: bytes = b"") -> bytes:
    """A search for devices."""
    text = f'M-SEARCH * HTTP/1.1\r\nMAN: "ssdp:discover"\r\nST: {target}\r\n'
    return text.encode() + more + b"\r\n"


def knx(address: str = "0.0.0.0", port: int = 0) -> bytes:  # noqa: S104 - not a bind
    """A search for gateways, and where its answers are to go."""
    packed = ip_address(address).packed + port.to_bytes(2)
    return bytes.fromhex("06100201000e0801") + packed


NETBIOS: Final = bytes.fromhex("7170011000010000000000002046") + (
    b"A" + b"CA" * 15 + b"\0\0\x20\0\1"
)
SSDP_GROUP: Final = ("239.255.255.250", 1900)
KNX_GROUP: Final = ("224.0.23.12", 3671)
QUESTIONS: Final = {
    "knx": (KNX_GROUP, knx()),
    "netbios-ns": ((_BROADCAST, 137), NETBIOS),
    "ssdp": (SSDP_GROUP, search()),
    "lamp": ((_BROADCAST, 9999), b"FIND"),
}


def _session(helper: str) -> Session:
    to, question = QUESTIONS[helper]

    def port(number: int) -> int:
        return 4002 if helper == "lamp" else _OWN_PORT + number

    return Session(
        UDP,
        lambda number: [
            datagram(udp_flow((GATEWAY, _OWN_PORT + number), to), question)
        ],
        lambda number: f"udp {LINK} port {to[1]} > {GATEWAY}:{port(number)}",
        lambda number: ((f"192.0.2.{70 + number}", to[1]), (GATEWAY, port(number))),
    )


@pytest.fixture(autouse=True)
def sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Honest sessions of these helpers, which are off by default."""
    for helper in QUESTIONS:
        monkeypatch.setitem(SESSIONS, helper, _session(helper))


def _asks(
    helper: str,
    source: tuple[str, int],
    payload: bytes,
    *says: str,
    to: tuple[str, int] | None = None,
) -> Attack:
    flow = udp_flow(source, QUESTIONS[helper][0] if to is None else to)
    return Attack(
        helper=helper,
        steps=lambda: [datagram(flow, payload)],
        says=says,
        silent=not says,
        settings=SETTINGS,
    )


FORGED: Final = {
    "SSDP to one host": _asks("ssdp", (GATEWAY, 40000), search(), to=(THIRD, 1900)),
    "SSDP of a neighbour": _asks(
        "ssdp", (VICTIM, 40000), search(), "refused.forwarded"
    ),
    "SSDP from a chosen port": _asks(
        "ssdp", (GATEWAY, 3389), search(), "refused.denied-port"
    ),
    "SSDP from a reserved port": _asks(
        "ssdp", (GATEWAY, 631), search(), "refused.low-port"
    ),
    "SSDP with fields of 64 KiB": _asks(
        "ssdp", (GATEWAY, 40000), search(more=b"A:\n" * 20000), "malformed"
    ),
    "KNX that names a third host": _asks(
        "knx", (GATEWAY, 40000), knx(THIRD, 5985), "refused.third-party-address"
    ),
    "KNX that names another port, a denied one": _asks(
        "knx", (GATEWAY, 40000), knx(GATEWAY, 22), "refused.denied-port"
    ),
    "KNX of a neighbour that names the gateway": _asks(
        "knx", (VICTIM, 40000), knx(GATEWAY, 5985), "refused.third-party-address"
    ),
    "NetBIOS from a chosen port": _asks(
        "netbios-ns", (GATEWAY, 631), NETBIOS, "refused.source-port"
    ),
    "NetBIOS by unicast": _asks("netbios-ns", (GATEWAY, 137), NETBIOS, to=(THIRD, 137)),
    "a configured one from the port that it asks": _asks(
        "lamp", (GATEWAY, 9999), b"FIND"
    ),
    "a configured one of other bytes": _asks("lamp", (GATEWAY, 40000), b"FOUND"),
    "a configured one of a neighbour": _asks(
        "lamp", (VICTIM, 40000), b"FIND", "refused.forwarded"
    ),
}


@cases("attack", FORGED)
def test_forged_question_opens_nothing_that_is_not_its_own(attack: Attack) -> None:
    perform(attack)


@pytest.mark.parametrize("helper", QUESTIONS)
def test_answer_of_the_wrong_place_or_time_is_kept_out(helper: str) -> None:
    scene = Scene(SETTINGS)
    session = SESSIONS[helper]
    honest(scene, session, 1)
    (neighbour, port), to = session.opens(1)
    assert not scene.admits(UDP, ("203.0.113.7", port), to)
    assert not scene.admits(UDP, (neighbour, port + 1), to)
    assert not scene.admits(UDP, (neighbour, port), (GATEWAY, to[1] + 100))
    scene.wait(11.0)
    assert scene.live == []
    assert not scene.admits(UDP, ("192.0.2.99", port), to)


def test_flood_of_questions_keeps_what_one_source_may_have() -> None:
    scene = Scene(SETTINGS, count=False)
    flow = [udp_flow((GATEWAY, 20000 + each), SSDP_GROUP) for each in range(1000)]
    for each in flow:
        scene.comes(datagram(each, search()))
    assert len(scene.live) <= 512
