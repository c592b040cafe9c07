# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports as the configuration writes them: numbers, ranges, names of services."""

import re
import socket
from collections.abc import Iterable
from typing import Final

from cthelper.core.tuples import Transport

HIGHEST: Final = 0xFFFF

_ALLOWED: Final = "must be a port from 1 to 65535, or the name of a service"
_RANGE_TOO: Final = f'{_ALLOWED}, or a range such as "6660-6669"'
_RANGE: Final = re.compile(r"(\d{1,5})-(\d{1,5})", re.ASCII)
# Names of RFC 6335, and what /etc/services has beyond them.
_NAME: Final = re.compile(r"\w[\w.+/*-]{0,63}", re.ASCII)


def read_ports(value: object, transports: Iterable[Transport]) -> range:
    """The ports that a value of the configuration means.

    A service's name is looked up for each of the transports (getservbyname(3), so in
    /etc/services); one of them must know it. Raises ValueError with what is allowed.
    """
    if isinstance(value, str) and (found := _RANGE.fullmatch(value)):
        low, high = map(int, found.groups())
        if not 1 <= low <= high <= HIGHEST:
            raise ValueError("must lead from a port to a higher one, 1 to 65535")
        return range(low, high + 1)
    port = read_port(value, transports, allowed=_RANGE_TOO)
    return range(port, port + 1)


def read_port(
    value: object, transports: Iterable[Transport], *, allowed: str = _ALLOWED
) -> int:
    """The one port that a number or a service's name means, see `read_ports`.

    Raises ValueError with what is `allowed`.
    """
    if type(value) is int and 1 <= value <= HIGHEST:
        return value
    if not isinstance(value, str) or not _NAME.fullmatch(value) or value.isdecimal():
        raise ValueError(allowed)
    return _service(value, transports)


def _service(name: str, transports: Iterable[Transport]) -> int:
    known: dict[int, Transport] = {}
    transports = sorted(transports)
    for transport in transports:
        try:
            known[socket.getservbyname(name, str(transport))] = transport
        except OSError:
            continue
    if not known:
        over = " or ".join(map(str, transports))
        raise ValueError(
            f"no service of this name over {over} in /etc/services: give its number"
        )
    if len(known) > 1:
        ports = " and ".join(f"{port} over {each}" for port, each in known.items())
        raise ValueError(f"is {ports}: give the number")
    return next(iter(known))


def intervals(ports: Iterable[int]) -> list[range]:
    """The ports in order, those that follow each other in one range."""
    result: list[range] = []
    for port in sorted(ports):
        if result and result[-1].stop == port:
            result[-1] = range(result[-1].start, port + 1)
        else:
            result.append(range(port, port + 1))
    return result


def spelled(ports: Iterable[int]) -> list[int | str]:
    """The ports as the configuration writes them, the shortest way, in order."""
    return [
        each.start if len(each) == 1 else f"{each.start}-{each.stop - 1}"
        for each in intervals(ports)
    ]
