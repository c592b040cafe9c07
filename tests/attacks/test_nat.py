# SPDX-License-Identifier: GPL-2.0-or-later
"""Behind NAT: what goes on has no address in it that the other side must not see."""

import socket
from typing import Final

from cthelper.core.api import Helper, Transport
from cthelper.core.tuples import TCP, UDP, Conntrack
from cthelper.helpers.ftp import Ftp
from cthelper.helpers.sunrpc import SunRpc
from cthelper.helpers.tns import Tns
from tests.attacks import wire
from tests.cases import cases
from tests.helpers.inspected import Inspected, entry_of

_CLIENT, _KNOWN = "192.0.2.1", "203.0.113.9"
_SERVER, _PUBLIC = "10.0.0.2", "203.0.113.80"
_PORT: Final = 41234


def _entry(
    helper: type[Helper], *, snat: bool, dnat: bool, transport: Transport = TCP
) -> Conntrack:
    return entry_of(
        helper,
        (_CLIENT, 40000),
        _PUBLIC if dnat else _SERVER,
        transport=transport,
        seen_as=(_KNOWN if snat else _CLIENT, 40000),
        inside=_SERVER,
    )


def _forms(address: str) -> list[bytes]:
    """All that an address may look like in a message."""
    return [
        address.encode(),
        address.replace(".", ",").encode(),
        socket.inet_aton(address),
        socket.inet_aton(address).hex().encode(),
        b".".join(b"%03d" % int(each) for each in address.split(".")),
    ]


def _assert_secret(told: bytes, *secret: str) -> None:
    for address in secret:
        for form in _forms(address):
            assert form not in told, (address, told)


# Who announces, and the flow's messages before it does.

_ANNOUNCED: Final = {
    "TNS": (
        Tns,
        TCP,
        wire.CONNECT,
        wire.redirect(wire.address_of(_SERVER, _PORT)),
    ),
    "TNS, several addresses": (
        Tns,
        TCP,
        wire.CONNECT,
        wire.redirect(
            b"(DESCRIPTION=(ADDRESS_LIST="
            + wire.address_of(_SERVER, _PORT)
            + wire.address_of(_SERVER, _PORT + 1)
            + b"))"
        ),
    ),
    "GETADDR over UDP": (
        SunRpc,
        UDP,
        wire.getaddr(1, b""),
        wire.reply(1, wire.xdr(wire.uaddr(_SERVER, _PORT))),
    ),
    "GETADDR over TCP": (
        SunRpc,
        TCP,
        wire.record(wire.getaddr(1, b"")),
        wire.record(wire.reply(1, wire.xdr(wire.uaddr(_SERVER, _PORT))), 20, 24),
    ),
    "GETADDRLIST": (
        SunRpc,
        UDP,
        wire.getaddrlist(1),
        wire.reply(
            1,
            wire.listed(wire.uaddr(_SERVER, _PORT + number) for number in range(3)),
        ),
    ),
}


@cases("helper, transport, question, answer", _ANNOUNCED)
def test_server_behind_dnat_is_told_by_its_public_address(
    helper: type[Helper], transport: Transport, question: bytes, answer: bytes
) -> None:
    for snat in (False, True):
        entry = _entry(helper, snat=snat, dnat=True, transport=transport)
        flow = Inspected(helper, entry)
        flow.sent(question)
        told = flow.answered(answer)
        assert flow.expectations
        assert flow.refused == []
        assert _PUBLIC.encode() in told
        _assert_secret(told, _SERVER)


def test_ftp_server_behind_dnat_is_told_by_its_public_address() -> None:
    flow = Inspected(Ftp, _entry(Ftp, snat=False, dnat=True))
    flow.answered(b"220 ready\r\n")
    flow.sent(b"PASV\r\n")
    told = flow.answered(b"227 x (" + wire.six(_SERVER, _PORT) + b")\r\n")
    assert flow.expectations
    assert wire.six(_PUBLIC, _PORT) in told
    _assert_secret(told, _SERVER)


@cases(
    "line",
    {
        "PORT": b"PORT " + wire.six(_CLIENT, _PORT) + b"\r\n",
        "EPRT": f"EPRT |1|{_CLIENT}|{_PORT}|\r\n".encode(),
    },
)
def test_ftp_client_behind_snat_is_told_by_its_public_address(line: bytes) -> None:
    flow = Inspected(Ftp, _entry(Ftp, snat=True, dnat=False))
    flow.answered(b"220 ready\r\n")
    told = flow.sent(line)
    assert flow.expectations
    assert (_KNOWN.encode() in told) or (wire.six(_KNOWN, _PORT) in told)
    _assert_secret(told, _CLIENT)


@cases("helper, transport, question, answer", _ANNOUNCED)
def test_opening_leads_to_the_announcer_however_it_is_translated(
    helper: type[Helper], transport: Transport, question: bytes, answer: bytes
) -> None:
    """An attacker cannot have the mapping lead to another host (saved_proto)."""
    for snat, dnat in ((True, False), (False, True), (True, True)):
        entry = _entry(helper, snat=snat, dnat=dnat, transport=transport)
        flow = Inspected(helper, entry)
        flow.sent(question)
        flow.answered(answer)
        for each in flow.expectations:
            assert str(each.destination.address) == (_PUBLIC if dnat else _SERVER)
            assert str(each.source) == f"{_CLIENT}/32"
            if each.translation is not None:
                assert each.translation.port in range(_PORT, _PORT + 3)


@cases(
    "helper, transport, question, answer",
    {
        "TNS": (
            Tns,
            TCP,
            wire.CONNECT,
            wire.redirect(wire.address_of("10.0.0.99", _PORT)),
        ),
        "GETADDRLIST": (
            SunRpc,
            UDP,
            wire.getaddrlist(1),
            wire.reply(1, wire.listed([wire.uaddr(_PUBLIC, 22)])),
        ),
    },
)
def test_refused_announcement_goes_on_as_it_came(
    helper: type[Helper], transport: Transport, question: bytes, answer: bytes
) -> None:
    entry = _entry(helper, snat=True, dnat=True, transport=transport)
    flow = Inspected(helper, entry)
    flow.sent(question)
    assert flow.answered(answer) == answer
    assert flow.expectations == []
    assert flow.refused
