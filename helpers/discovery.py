# SPDX-License-Identifier: GPL-2.0-or-later
"""A query to a group or by broadcast, which hosts of the link answer by unicast.

Televisions, printers, lamps and speakers are looked for like that. Conntrack matches
the answers to no flow, since they come from the responders' own addresses; they go to
the port that asked, mostly from the port that was asked. The helpers of such protocols
differ in ports, groups and the bytes of a query alone.

Only this host's own queries open anything, each for itself: a port above 1023 of the
asker, to hosts of its link, from one port, for seconds. Who asks again keeps it open.
Unicast needs no help, answers and announcements open nothing. NAT is not supported:
these queries do not leave the link.

Security. Whoever is on the link may send to the open port from the port that was asked:
forged answers, which the asker must tell from others in any case. What another host
sends opens nothing, nor does a forged query, as it comes in and is not sent. A process
of this host has the port opened that it holds itself, so that a user's process may be
reached from the link, for the window; where that must not be, leave the helper off, or
narrow `interfaces`. Where the asker's port is the service's own, all that listens there
can be reached from the link: `own_port` says whether it is opened. With `answer_port`
any process that asks opens that one port, whoever holds it.

``[helpers.NAME]`` with ``type = "discovery"`` makes a helper of a protocol that is not
known here, by configuration alone: `ports`, `destinations`, `window` in seconds, the
port that answers come from, and the bytes that a query has at fixed places. Examples
are in ``discovery.toml`` beside the configuration.
"""

from abc import abstractmethod
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Final, cast

from mypy_extensions import mypyc_attr

from cthelper.core.api import (
    ANY,
    BROADCAST,
    ON_LINK,
    ORIGINAL,
    UDP,
    Effects,
    Endpoint,
    Helper,
    Hook,
    Match,
    Message,
    Option,
    OptionValue,
    Policy,
    Prefilter,
    expect,
)

RESPONDERS: Final = Option(
    "responders",
    "on-link",
    "on-link: hosts of the asker's networks may answer; any: everybody may, where "
    "multicast is routed",
    choices=("on-link", "any"),
)
"""For protocols that routers carry."""

_LARGEST_PORT: Final = 0xFFFF
# Bytes of a datagram that prefilters can match.
_MATCHED: Final = 64


def any_sport(port: int) -> Option[bool]:
    """The option for protocols some of whose peers answer from another port."""
    return Option(
        "any_sport",
        False,
        "true: answers may come from any port; false: from the port that was asked, "
        f"{port}",
    )


@mypyc_attr(allow_interpreted_subclasses=True)
class GroupQuery(Helper):
    """What the helpers of such protocols have in common.

    A query goes to one of the networks in `destinations`, or to a broadcast address
    where BROADCAST is among them. The options `RESPONDERS` and `any_sport` count where
    a helper has them.
    """

    transports = frozenset({UDP})
    hooks = frozenset({Hook.OUTPUT})
    nat = False
    api = (1, 1)

    @abstractmethod
    def asks(self, message: Message) -> Endpoint | None:
        """Where answers to a query go; None: the message is none.

        Called for messages of the original direction to a group. Raises Malformed, and
        ExpectationRefused where the protocol forbids the answer's way.
        """

    def on_message(self, message: Message) -> Effects:
        """Expect the answers to a query."""
        if message.direction is not ORIGINAL or not self.reached(message):
            return
        endpoint = self.asks(message)
        if endpoint is not None:
            yield from self.answers(message, endpoint)

    def answers(
        self, message: Message, endpoint: Endpoint, *, helper: str | None = None
    ) -> Effects:
        """Expect answers at an endpoint, for the policy's time; `helper` reads them."""
        options = message.options
        yield from expect(
            endpoint,
            policy="answer",
            source=ANY if options.get(RESPONDERS.name) == "any" else ON_LINK,
            source_port=self.answered_from(message),
            permanent=True,
            helper=helper,
        )

    def reached(self, message: Message) -> bool:
        """Whether the message goes to a group of the protocol's, or by broadcast."""
        address = message.destination.address
        for place in self.destinations:
            if place is not BROADCAST:
                if address in place:
                    return True
            elif message.group and not address.is_multicast:
                return True
        return False

    def answered_from(self, message: Message) -> int | None:
        """The port that answers come from, 1 to 65535; None: any."""
        if message.options.get("any_sport") is True:
            return None
        return message.destination.port


def _port(value: object, words: tuple[str, ...]) -> int | str:
    if type(value) is int and 1 <= value <= _LARGEST_PORT:
        return value
    if isinstance(value, str) and value in words:
        return value
    raise ValueError(f"must be a port from 1 to 65535, or {' or '.join(words)}")


def _reply_port(value: object) -> int | str:
    return _port(value, ("asked", "any"))


def _answer_port(value: object) -> int | str:
    return _port(value, ("asker",))


def _bytes(value: object) -> tuple[int, bytes]:
    """Where some bytes stand, and which: 64 bytes at most from the beginning on."""
    allowed = 'must be a table such as { hex = "0200", at = 32 } or { text = "FIND" }'
    if not isinstance(value, dict) or not value.keys() <= {"hex", "text", "at"}:
        raise ValueError(allowed)
    at, words = value.get("at", 0), value.keys() - {"at"}
    if words == {"text"} and isinstance(value["text"], str):
        found = value["text"].encode()
    elif words == {"hex"} and isinstance(value["hex"], str):
        try:
            found = bytes.fromhex(value["hex"])
        except ValueError:
            raise ValueError(f"{allowed}: hex takes pairs of 0-9 and a-f") from None
    else:
        raise ValueError(allowed)
    if type(at) is not int or not found or not 0 <= at <= _MATCHED - len(found):
        raise ValueError(f"{allowed}: one byte or more of the first {_MATCHED}")
    return at, found


_REPLY_PORT: Final[Option[int | str]] = Option(
    "reply_port",
    "asked",
    "the port that answers come from: a number; asked: the port that was asked; any: "
    "any port",
    element=_reply_port,
)
_ANSWER_PORT: Final[Option[int | str]] = Option(
    "answer_port",
    "asker",
    "the asker's port that answers go to: a number; asker: the port that asked",
    element=_answer_port,
)
_MATCH: Final[Option[tuple[tuple[int, bytes], ...]]] = Option(
    "match",
    (),
    'what a query has among its first 64 bytes, such as [{ text = "FIND" }] or '
    '[{ hex = "0200", at = 32 }], of several one; empty: every datagram is a query',
    element=_bytes,
)
_OWN_PORT: Final = Option(
    "own_port",
    True,
    "true: a query from the port that is asked opens that port, too, as some programs "
    "ask from there; false: it opens nothing",
)


@mypyc_attr(allow_interpreted_subclasses=True)
class Discovery(GroupQuery):
    """Queries to a group or by broadcast, of protocols that you name yourself."""

    name = "discovery"
    template = True
    ports = ()
    policies = (Policy("answer", max_expected=8, timeout=5),)
    options = (_REPLY_PORT, _ANSWER_PORT, _MATCH, _OWN_PORT, RESPONDERS)
    destinations = (IPv4Network("224.0.0.0/4"), IPv6Network("ff00::/8"), BROADCAST)

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """What a query has at fixed places, of each the first 4 bytes."""
        matches = cast("tuple[tuple[int, bytes], ...]", options[_MATCH.name])
        if not matches:
            return Prefilter(reply=())
        return Prefilter(
            request=tuple(
                (Match(8 * at, 8 * len(found[:4]), int.from_bytes(found[:4])),)
                for at, found in matches
            ),
            reply=(),
        )

    def reached(self, message: Message) -> bool:
        """Whether it goes to any group: the ruleset tags those that are configured."""
        return message.group

    def asks(self, message: Message) -> Endpoint | None:
        """The port that asked, or that answers go to, where the bytes are a query's."""
        source, matches = message.source, _MATCH.of(message)
        if source.port == message.destination.port and not _OWN_PORT.of(message):
            return None
        if matches and not any(
            message.payload.startswith(found, at) for at, found in matches
        ):
            return None
        port = _ANSWER_PORT.of(message)
        return Endpoint(source.address, port) if isinstance(port, int) else source

    def answered_from(self, message: Message) -> int | None:
        """The port that answers come from; None: any."""
        port = _REPLY_PORT.of(message)
        if isinstance(port, int):
            return port
        return None if port == "any" else message.destination.port

    def describe(self, message: Message) -> dict[str, str]:
        """Whether it is a query, and where its answers go."""
        if message.direction is not ORIGINAL or not self.reached(message):
            return {}
        endpoint = self.asks(message)
        return {"type": "no query" if endpoint is None else "query"} | (
            {} if endpoint is None else {"answers to": str(endpoint)}
        )
