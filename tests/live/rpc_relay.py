# SPDX-License-Identifier: GPL-2.0-or-later
"""Has an RPC server that is deaf over UDP be asked over TCP.

usage: rpc_relay.py PORT TCP-PORT ADDRESS...

What comes to that port of these addresses of this host goes to the server over TCP,
and the answer back. NFS-Ganesha needs it on Debian 13: its libntirpc (6.3) answers one
datagram, and then none.
"""

import select
import socket
import sys
from contextlib import suppress
from typing import Final

_SECONDS: Final = 10.0
_LARGEST: Final = 65535
# Before each record on TCP: its length, with the bit of the last one (RFC 5531, 11).
_MARK, _LAST = 4, 1 << 31


def bound(address: str, port: int) -> socket.socket:
    """A socket at the address, beside the server's, which is at all of them."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    return made


def answer(question: bytes, port: int) -> bytes:
    """What the server says over TCP, in one fragment. Raises OSError."""
    with socket.create_connection(("127.0.0.1", port), _SECONDS) as asking:
        asking.sendall((len(question) | _LAST).to_bytes(_MARK) + question)
        with asking.makefile("rb") as said:
            length = int.from_bytes(said.read(_MARK)) & ~_LAST
            return said.read(length)


def main(port: int, tcp_port: int, *addresses: str) -> None:
    """Relay one question after the other, for as long as nobody ends it."""
    sockets = [bound(each, port) for each in addresses]
    while True:
        for asked in select.select(sockets, [], [])[0]:
            question, asker = asked.recvfrom(_LARGEST)
            with suppress(OSError):
                asked.sendto(answer(question, tcp_port), asker)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
