# SPDX-License-Identifier: GPL-2.0-or-later
"""All that the author of a helper imports.

A helper is one class per protocol; the host makes one instance per flow, so ``self``
is the flow's state. It reads whole messages and yields effects: `expect` asks for an
expectation, `Rewrite` changes bytes of the message, `Withdraw` takes an expectation
back, `DONE` ends the inspection of the flow. It does no I/O and holds no globals:
clock, tuples and options come with the message.
"""

import enum
from abc import ABCMeta, abstractmethod
from collections.abc import Collection, Generator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from sys import getsizeof
from typing import Any, ClassVar, Final, NamedTuple, final

from mypy_extensions import mypyc_attr

from cthelper.core.cursor import Cursor
from cthelper.core.errors import (
    ExpectationRefused,
    Malformed,
    Oversized,
    RewriteRefused,
    Truncated,
)
from cthelper.core.option import Option, OptionValue
from cthelper.core.travel import reduced
from cthelper.core.tuples import (
    BROADCAST,
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Address,
    Destination,
    Direction,
    Endpoint,
    Network,
    Transport,
    Tuple,
)

__all__ = [
    "ANY",
    "API",
    "BROADCAST",
    "DONE",
    "ON_LINK",
    "ORIGINAL",
    "PEER",
    "REPLY",
    "TCP",
    "UDP",
    "Address",
    "Cursor",
    "Destination",
    "Direction",
    "Done",
    "Effect",
    "Effects",
    "Endpoint",
    "Expect",
    "ExpectationRefused",
    "Grant",
    "Helper",
    "Hook",
    "Malformed",
    "Match",
    "Matches",
    "Message",
    "Network",
    "Option",
    "OptionValue",
    "Oversized",
    "Policy",
    "Prefilter",
    "Rewrite",
    "RewriteRefused",
    "Source",
    "Transport",
    "Truncated",
    "Tuple",
    "Withdraw",
    "expect",
]

API: Final = (1, 2)
"""The version of what is here. Its second number grows with what is added, the first
where a helper may have to be changed.

1.1: `BROADCAST` among a helper's `destinations`; `Helper.enabled`; `Helper.template`;
`Option.element` of a single value.
1.2: `Withdraw`, and `label` of `expect`; `Helper.frame_of`.
"""

# What an instance takes besides its attributes, in bytes, and how many items of each of
# them are looked at.
_INSTANCE: Final = 200
_LOOKED_AT: Final = 16
_LABEL: Final = 64


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits on one class of expectations (nf_conntrack_helper.h).

    `max_expected` is 1 to 255 live expectations for each master flow: the kernel
    evicts the oldest beyond it. `timeout` is in seconds, 1 to 86400, and runs from
    the creation of the expectation. Where a kernel takes no policy but the first for
    an expected flow without a helper, `cthelper doctor` says so.
    """

    name: str
    max_expected: int = 1
    timeout: int = 300


class Hook(enum.Enum):
    """Where the ruleset tags the helper's flows."""

    PREROUTING = "prerouting"
    OUTPUT = "output"


class Source(enum.Enum):
    """Who may open the expected flow, where it is not a network given outright."""

    PEER = "peer"
    ON_LINK = "on-link"
    ANY = "any"


PEER: Final = Source.PEER
"""The receiver of the message."""
ON_LINK: Final = Source.ON_LINK
"""Hosts of the networks that the announced address is on-link with."""
ANY: Final = Source.ANY
"""Anybody."""


# Not frozen, which would treble what it costs to make one for each packet.
@dataclass(slots=True, kw_only=True)
class Message:
    """One whole message of the protocol, in the direction that it travelled.

    `source` and `destination` are those of the message's direction, taken from the
    conntrack entry; `original` and `reply` are the entry's tuples. `now` is a clock in
    seconds that only moves forward. `options` holds the helper's options. `forwarded`
    is whether the packet came in through an interface, and so from another host.
    `group` is whether the destination is a multicast group or a broadcast address: the
    limited one, or that of a network that the source is on-link with. `depth` is how
    many flows with this helper led here: 0 for one that the ruleset tagged by itself,
    one more than its master's for one that the helper expected. `preceding` is how many
    bytes before the message, in its direction, came in the same TCP segment and so can
    still be rewritten.
    """

    direction: Direction
    transport: Transport
    source: Endpoint
    destination: Endpoint
    payload: bytes
    original: Tuple
    reply: Tuple
    now: float
    options: Mapping[str, OptionValue]
    forwarded: bool
    group: bool
    depth: int
    preceding: int

    def __init__(
        self,
        *,
        direction: Direction,
        transport: Transport,
        source: Endpoint,
        destination: Endpoint,
        payload: bytes,
        original: Tuple,
        reply: Tuple,
        now: float,
        options: Mapping[str, OptionValue],
        forwarded: bool = False,
        group: bool = False,
        depth: int = 0,
        preceding: int = 0,
    ) -> None:
        self.direction = direction
        self.transport = transport
        self.source = source
        self.destination = destination
        self.payload = payload
        self.original = original
        self.reply = reply
        self.now = now
        self.options = options
        self.forwarded = forwarded
        self.group = group
        self.depth = depth
        self.preceding = preceding


class Match(NamedTuple):
    """Bits of a datagram's payload: nft's ``@ih,offset,length value``.

    `offset` and `length` are in bits, as there; `length` is 1 to 32, `value` what the
    bits say as a number, the first one being the most significant. A datagram that ends
    before does not match.
    """

    offset: int
    length: int
    value: int


Matches = tuple[tuple[Match, ...], ...]
"""Alternatives, of each of which all matches must hold."""


@dataclass(frozen=True, slots=True)
class Prefilter:
    """The datagrams that a helper reads, by bytes at fixed places.

    `request` is about the original direction, `reply` about the other: alternatives,
    one of which must match, or None: all datagrams. With `answers` those of the reply
    direction answer the others, so that none is read before a request was. What is left
    out is accepted and the helper never sees it: the kernel does not queue it, or it
    passes in the queue, where a helper of the same port reads it or `answers` says so.
    Only the first 64 bytes can be matched. TCP is never filtered: a stream must be
    followed whole.
    """

    request: Matches | None = None
    reply: Matches | None = None
    answers: bool = False


# Not frozen, see Message.
@dataclass(slots=True)
class Expect:
    """Ask that a flow to `endpoint` be expected. Use `expect` to yield one."""

    endpoint: Endpoint
    policy: str
    transport: Transport | None
    source: Source | Network
    source_port: int | None
    permanent: bool
    helper: str | None
    pair: bool
    alternative: bool
    label: bytes | None

    def __init__(
        self,
        endpoint: Endpoint,
        policy: str,
        transport: Transport | None = None,
        source: Source | Network = PEER,
        source_port: int | None = None,
        permanent: bool = False,
        helper: str | None = None,
        pair: bool = False,
        alternative: bool = False,
        label: bytes | None = None,
    ) -> None:
        if label is not None and not 0 < len(label) <= _LABEL:
            raise ValueError(f"a label of {len(label)} bytes, not of 1 to {_LABEL}")
        self.endpoint = endpoint
        self.policy = policy
        self.transport = transport
        self.source = source
        self.source_port = source_port
        self.permanent = permanent
        self.helper = helper
        self.pair = pair
        self.alternative = alternative
        self.label = label

    def __reduce__(self) -> tuple[object, ...]:
        return reduced(self)


@dataclass(frozen=True, slots=True)
class Grant:
    """What was expected, as the receiver of the message must see it.

    Behind NAT it may have another address and another port than were announced.
    """

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Put `data` in the place of ``payload[span[0]:span[1]]`` of the message.

    On TCP a span may lie before the message (negative numbers) where a length stands in
    an earlier one: the engine refuses all of a message's rewrites and expectations
    (reason ``rewrite-passed``) where the bytes of one have gone on already. The length
    may change behind NAT only; without it nothing needs to be rewritten.
    """

    span: tuple[int, int]
    data: bytes

    def __reduce__(self) -> tuple[object, ...]:
        return reduced(self)


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Take back what the flow has asked for under `label`, see `expect`.

    What was used up or has ended is no error, nor is a label that nothing has. An
    expectation that others have asked for as well goes on for them. It is done before
    the message goes on, and not undone by what comes after it.
    """

    label: bytes

    def __reduce__(self) -> tuple[object, ...]:
        return reduced(self)


@final
@dataclass(frozen=True, slots=True)
class Done:
    """The flow announces nothing more; stop inspecting it. Yield `DONE`.

    `why`, a few words for people, may be given: ``yield Done("the server's ACCEPT")``.
    `reason` is a code in words joined by hyphens, which names a counter: another one
    where the helper gives up a flow that may announce something yet.
    """

    why: str = field(default="", compare=False)
    reason: str = field(default="done", compare=False)

    def __reduce__(self) -> tuple[object, ...]:
        return reduced(self)


DONE: Final = Done()

Effect = Expect | Rewrite | Withdraw | Done
Effects = Generator[Effect, Grant | None, None]


def expect(
    endpoint: Endpoint,
    *,
    policy: str,
    transport: Transport | None = None,
    source: Source | Network = PEER,
    source_port: int | None = None,
    permanent: bool = False,
    helper: str | None = None,
    pair: bool = False,
    alternative: bool = False,
    label: bytes | None = None,
) -> Generator[Effect, Grant | None, Grant]:
    """Announce that the receiver of this message will open a flow to `endpoint`.

    Use it as ``grant = yield from expect(...)``. The transport is the flow's own
    unless it is given. `source` says who may open the flow, `source_port` from which
    port (None: any). A `permanent` expectation admits any number of flows until its
    policy's timeout; else it is for one flow, and for one more each time that it is
    asked for again before. `helper` names a helper for the
    expected flow, which many kernels ignore: see `Helper.tags_expected`. With `pair` a
    flow to the next higher port is expected, too. An `alternative` is another address
    that was announced, where receivers may as well take the port alone, and the
    announcer itself is expected already: it is allowed as any other is, and refused as
    ``other-address``. By a `label`, 1 to 64 bytes, the flow may take it back
    (`Withdraw`), out of the latest 32 that it has labelled; several may have the same.
    Raises ExpectationRefused where the configuration or the kernel
    forbids it.
    """
    grant = yield Expect(
        *(endpoint, policy, transport, source, source_port, permanent, helper, pair),
        *(alternative, label),
    )
    if grant is None:
        raise RuntimeError("the engine answers every Expect with a Grant")
    return grant


# Compiled or not, helpers that are not compiled may be made of it.
@mypyc_attr(allow_interpreted_subclasses=True)
class Helper(metaclass=ABCMeta):
    """One protocol. The host makes an instance for each flow.

    `name` is known to the kernel and to nft: 1 to 15 characters of a-z, 0-9, ``-``
    and ``_``. `ports` are the control ports that the ruleset tags by default, and
    `destinations` the only addresses that it tags, where they are not all: networks,
    and `BROADCAST` for what is a broadcast address by the host's routes, as no network
    can say it and to tag all unicast to the port would queue it. `policies`
    holds one to four policies. Where `hooks` lacks PREROUTING, flows of other hosts
    open nothing. `lowest_port` is the lowest port that may be announced.
    `message_limit` bounds a message on TCP, in bytes. Without `nat` flows that are
    translated open nothing; with it the helper writes what it was granted. `api` is the
    version of `API` that the helper needs: a cthelper with a lower second number, or
    with another first one, refuses it.

    Without `enabled` the helper is off unless the configuration turns it on: for what
    not every gateway wants. A `template` is no helper by itself, but what the
    configuration makes helpers of, each with a name, ports and a window of its own
    (``[helpers.NAME]`` with ``type`` the template's name), for protocols that only the
    user knows: its `ports` are empty.
    """

    __slots__ = ()

    name: ClassVar[str]
    transports: ClassVar[frozenset[Transport]]
    ports: ClassVar[tuple[int, ...]]
    policies: ClassVar[tuple[Policy, ...]]
    options: ClassVar[tuple[Option[Any], ...]] = ()
    hooks: ClassVar[frozenset[Hook]] = frozenset(Hook)
    destinations: ClassVar[tuple[Destination, ...]] = ()
    lowest_port: ClassVar[int] = 1024
    message_limit: ClassVar[int] = 16 * 1024
    nat: ClassVar[bool] = True
    api: ClassVar[tuple[int, int]] = (1, 0)
    enabled: ClassVar[bool] = True
    template: ClassVar[bool] = False

    @classmethod
    def tags_expected(cls, options: Mapping[str, OptionValue]) -> bool:
        """Whether the ruleset tags the flows that the helper expected with it, too.

        For redirects that lead to redirects.
        """
        return False

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Which datagrams the helper reads, where a few bytes of them tell.

        For protocols most of whose traffic announces nothing. By default all of them.
        """
        return Prefilter()

    def frame(self, data: memoryview) -> int | None:
        """Length of the first message in `data`, which is not empty; None: need more.

        Called for TCP only: a UDP datagram is a message. Raises Malformed.
        """
        raise NotImplementedError(f"{type(self).__name__} serves TCP without frame()")

    def frame_of(self, direction: Direction, data: memoryview) -> int | None:
        """As `frame`, which it asks by default, of one direction of the flow.

        Written in place of `frame` where requests and replies look different and
        neither says which it is. This is what the host calls. It is a method of its
        own since `frame` with another argument would be another method: what is
        written with one could no longer stand where two are promised.
        """
        return self.frame(data)

    @abstractmethod
    def on_message(self, message: Message) -> Effects:
        """React to one message. Raises Malformed, ExpectationRefused, nothing else."""

    def footprint(self) -> int:
        """Bytes of memory that the instance keeps, about, for the budget of memory.

        Asked after each packet that was read. By default what its attributes take, and
        what these hold; a helper whose state is nested deeper says it itself.
        """
        values = [getattr(self, name, None) for name in _slots(type(self))]
        values += getattr(self, "__dict__", {}).values()
        if not values:
            return _INSTANCE
        size = _INSTANCE + sum(map(getsizeof, values))
        for value in values:
            if isinstance(value, Collection) and not isinstance(value, str | bytes):
                items = value.values() if isinstance(value, Mapping) else value
                some = list(map(getsizeof, islice(items, _LOOKED_AT)))
                size += sum(some) * len(value) // max(1, len(some))
        return size

    def describe(self, message: Message) -> Mapping[str, str]:
        """What a message says, field by field, in words; empty: nothing.

        For people who look at a capture: replay calls it, before `on_message`, and the
        daemon never does. It changes nothing. Raises Malformed, nothing else.
        """
        return {}


@lru_cache(maxsize=64)
def _slots(helper: type[Helper]) -> tuple[str, ...]:
    """The names of the attributes that are not in an instance's dictionary."""
    return tuple(
        name for class_ in helper.__mro__ for name in vars(class_).get("__slots__", ())
    )
