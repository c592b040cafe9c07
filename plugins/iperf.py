# SPDX-License-Identifier: GPL-2.0-or-later
"""iperf 2: with ``-d`` and ``-r`` the server opens a flow of its own to the client.

The first bytes of the client's stream say where to (``client_hdr`` in iperf 2's
``include/payloads.h``), in network byte order::

    flags 32, of which the first one says that what follows is there
    threads 32
    port 32, at which the client listens: `-L`, or the server's own
    ...

Without these options the flag is not set, and old versions send digits at once. Either
way the client's first twelve bytes are all that is read, so that a measurement is not
queued; and what begins with text, as a browser's requests do, opens nothing. Over UDP
(``-u``) the header comes again in each datagram, and it is not served.
"""

from typing import Final

from cthelper.core.api import (
    DONE,
    ORIGINAL,
    TCP,
    Cursor,
    Effects,
    Endpoint,
    Helper,
    Message,
    Policy,
    Rewrite,
    expect,
)

_ANNOUNCES: Final = 0x8000_0000  # HEADER_VERSION1
_SIZE: Final = 12
_PORT: Final = (8, 12)


class Iperf(Helper):
    """iperf 2's flows from the server to the client (-d, -r)."""

    name = "iperf"
    transports = frozenset({TCP})
    ports = (5001,)
    # With -r it begins once the client's own test is over: 10 s unless told.
    policies = (Policy("back", max_expected=1, timeout=300),)

    def frame(self, data: memoryview) -> int | None:
        """A message is the beginning of a header; there is one."""
        return _SIZE if len(data) >= _SIZE else None

    def on_message(self, message: Message) -> Effects:
        """Expect the server's flow to the port that the client announces."""
        if message.direction is not ORIGINAL:
            return
        port = parse_port(message.payload)
        if port is not None:
            announced = Endpoint(message.source.address, port)
            grant = yield from expect(announced, policy="back")
            start, stop = _PORT
            yield Rewrite(_PORT, grant.endpoint.port.to_bytes(stop - start))
        yield DONE

    def describe(self, message: Message) -> dict[str, str]:
        """The port, for people who look at a capture."""
        if message.direction is not ORIGINAL:
            return {}
        port = parse_port(message.payload)
        return {} if port is None else {"port": str(port)}


def parse_port(header: bytes) -> int | None:
    """The port that a header announces, 0 to 4294967295; None: none.

    Raises Malformed, and nothing else, whatever the bytes are.
    """
    cursor = Cursor(header)
    flags, _threads, port = cursor.u32(), cursor.u32(), cursor.u32()
    return port if flags & _ANNOUNCES else None
