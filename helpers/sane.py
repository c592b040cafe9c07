# SPDX-License-Identifier: GPL-2.0-or-later
"""SANE: a network scanner sends each image in a flow of its own.

SANE standard 1.06, chapter 5, as saned and its clients speak it, over TCP to port 6566.
A request begins with its code, and nothing says how long it is; nor does a reply say
what it answers. Client and server take turns::

    client: INIT, OPEN, CONTROL_OPTION, ...  START: handle
    server: START's reply: status, port, byte order (0x1234 or 0x4321), resource

The client opens the data flow to the port, at the server's address, and does so for
each page. With a resource the port means nothing: the client sends AUTHORIZE, and gets
a word and then START's reply anew. OPEN and CONTROL_OPTION may ask for the same.

It is for a firewall between scanner and clients; else a range of ports that saned keeps
to (`data_portrange`) has to be open all the time.

Requests and replies are followed field by field, in pieces as they come, and not kept:
those about options are long. Where one ends is known exactly, and who speaks out of
turn is helped no longer: else a client that asks ahead could have bytes that it chose
itself, an option's value, pass for START's reply. Of a client's name and password
nothing is looked at.

Behind destination NAT the port is rewritten in its place.
"""

from typing import Final

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    TCP,
    Direction,
    Done,
    Effects,
    Endpoint,
    Helper,
    Malformed,
    Message,
    Policy,
    Rewrite,
    expect,
)
from cthelper.helpers.sane_wire import (
    MAY_AUTHORIZE,
    REPLIES,
    REQUESTS,
    RESOURCE_LIMIT,
    START_REPLY,
    WORD,
    Code,
    Walk,
    is_init,
    read_start,
)

# What an instance takes in memory, and each field that is to come, in bytes.
_INSTANCE: Final = 700
_TO_COME: Final = 8


class Sane(Helper):
    """SANE: data flows to a network scanner, one for each page."""

    name = "sane"
    transports = frozenset({TCP})
    ports = (6566,)
    policies = (Policy("data", max_expected=1, timeout=60),)
    # What is not kept is as long as its packet.
    message_limit = 1 << 16
    enabled = False
    api = (1, 2)

    def __init__(self) -> None:
        self._begun = False
        # Whose turn it is, and what is under way of what they say.
        self._turn: Direction = ORIGINAL
        self._walk: Walk | None = None
        # The request that is answered; whether its reply wants an AUTHORIZE, and
        # whether the word that answers one comes first.
        self._asked = 0
        self._authorizes = False
        self._acknowledges = False

    def footprint(self) -> int:
        """What the fields take that are to come."""
        walk = self._walk
        return _INSTANCE if walk is None else _INSTANCE + _TO_COME * len(walk.todo)

    def frame_of(self, direction: Direction, data: memoryview) -> int | None:
        """Whole START's reply, and of all else what is there, from where it begins."""
        size, least = len(data), 0
        if direction is self._turn and self._walk is None:
            if direction is ORIGINAL:
                least = WORD if self._begun else 2 * WORD
            elif self._acknowledges:
                return WORD if size >= WORD else None
            elif self._asked == Code.START:
                if size < START_REPLY:
                    return None
                resource = int.from_bytes(data[12:START_REPLY])
                if resource > RESOURCE_LIMIT:
                    raise Malformed(f"resource of {resource} bytes")
                length = START_REPLY + resource
                return length if length <= size else None
        return size if size >= least else None

    def on_message(self, message: Message) -> Effects:
        """Expect the data flow that START's reply announces."""
        if message.direction is not self._turn:
            yield _out_of_turn(message)
        elif message.direction is ORIGINAL:
            yield from self._asks(message)
        elif self._acknowledges:
            self._acknowledges = False
        elif self._asked != Code.START:
            walk = self._walk
            if walk is None:
                walk = self._walk = Walk(REPLIES[self._asked])
            beyond = walk.read(message.payload)
            if beyond is not None:
                self._walk = None
                self._answered(walk.last)
                if beyond:
                    yield _out_of_turn(message)
        else:
            port, resource = read_start(message.payload)
            self._answered(resource)
            if port is not None:
                endpoint = Endpoint(message.source.address, port)
                grant = yield from expect(endpoint, policy="data")
                told = grant.endpoint.port.to_bytes(WORD)
                yield Rewrite((WORD, 2 * WORD), told)

    def describe(self, message: Message) -> dict[str, str]:
        """The request, or what is answered, and the port that a START announces."""
        if message.direction is not self._turn:
            return {"type": "out of turn"}
        if self._walk is not None:
            return {"type": f"more from the {_speaker(message)}"}
        if message.direction is ORIGINAL:
            if not self._begun and not is_init(message.payload):
                return {"type": "not SANE"}
            return {"type": _name(int.from_bytes(message.payload[:WORD]))}
        if self._acknowledges:
            return {"type": "reply to AUTHORIZE"}
        fields = {"type": f"reply to {_name(self._asked)}"}
        if self._asked == Code.START:
            port, resource = read_start(message.payload)
            fields["announces"] = (
                f"port {port}"
                if port is not None
                else "nothing: " + ("to be authorized" if resource else "it failed")
            )
        return fields

    def _asks(self, message: Message) -> Effects:
        """Follow a request, or more of it."""
        walk, data = self._walk, message.payload
        if walk is None:
            if not self._begun and not is_init(data):
                yield Done("it is no SANE")
                return
            self._begun = True
            code = int.from_bytes(data[:WORD])
            if code == Code.EXIT:
                yield Done("the client's EXIT")
                return
            if (code == Code.AUTHORIZE) is not self._authorizes:
                raise Malformed(f"{_name(code)} after {_name(self._asked)}")
            if code not in REQUESTS:
                raise Malformed(f"request {code}")
            walk = self._walk = Walk(REQUESTS[code])
            self._acknowledges, self._authorizes = self._authorizes, False
            if code != Code.AUTHORIZE:
                self._asked = code
            data = data[WORD:]
        beyond = walk.read(data)
        if beyond is not None:
            self._walk = None
            self._turn = REPLY
            if beyond:
                yield _out_of_turn(message)

    def _answered(self, resource: int) -> None:
        """A reply is over; `resource` is the length of what it has at the end."""
        self._turn = ORIGINAL
        self._authorizes = resource > 0 and self._asked in MAY_AUTHORIZE


def _out_of_turn(message: Message) -> Done:
    """What ends the help: one speaks though the other one is asked to."""
    return Done(f"the {_speaker(message)} speaks out of turn", "out-of-turn")


def _name(code: int) -> str:
    return Code(code).name if code <= Code.EXIT else f"request {code}"


def _speaker(message: Message) -> str:
    return "client" if message.direction is ORIGINAL else "server"
