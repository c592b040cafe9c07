# SPDX-License-Identifier: GPL-2.0-or-later
"""Netlink attributes encoded by hand, for what is asked with packets or flows.

The counterpart of decoding.py: pyroute2's declarations say the same some hundred times
slower, and a test holds the two against each other byte for byte.
"""

import struct
from functools import lru_cache
from typing import Final

from cthelper.core.netlink.decoding import (
    EXP_CLASS,
    EXP_FLAGS,
    EXP_FN,
    EXP_HELP_NAME,
    EXP_MASK,
    EXP_MASTER,
    EXP_NAT,
    EXP_TIMEOUT,
    EXP_TUPLE,
    EXP_ZONE,
    NAT_DIR,
    NAT_TUPLE,
    PERMANENT,
)
from cthelper.core.tuples import (
    ORIGINAL,
    Expectation,
    Translation,
    Transport,
    Tuple,
)

# include/uapi/linux/netfilter/nfnetlink_conntrack.h
_ORIG, _HELP, _TIMEOUT, _MARK, _ZONE, _MARK_MASK = 1, 5, 7, 8, 18, 21
_HELP_NAME = 1

_NESTED: Final = 0x8000
_FOLLOW_MASTER: Final = b"nat-follow-master\0"  # net/netfilter/nf_nat_core.c

_ATTRIBUTE = struct.Struct("=HH")
_U16 = struct.Struct("=HH2s2x")
_U32 = struct.Struct("=HH4s")
# What stands in a tuple before its first address, and before its second one.
_ADDRESSES: Final = {
    4: (_ATTRIBUTE.pack(20, 0x8001) + _ATTRIBUTE.pack(8, 1), _ATTRIBUTE.pack(8, 2)),
    16: (_ATTRIBUTE.pack(44, 0x8001) + _ATTRIBUTE.pack(20, 3), _ATTRIBUTE.pack(20, 4)),
}
# And before the number of its protocol, and before each port.
_NUMBER: Final = _ATTRIBUTE.pack(28, 0x8002) + _ATTRIBUTE.pack(5, 1)
_SOURCE_PORT: Final = bytes(3) + _ATTRIBUTE.pack(6, 2)
_DESTINATION_PORT: Final = bytes(2) + _ATTRIBUTE.pack(6, 3)

_FULL: Final = b"\xff\xff"
_NONE: Final = b"\0\0"


def entry_key(original: Tuple, zone: int) -> bytes:
    """What names a conntrack entry: CTA_TUPLE_ORIG, and CTA_ZONE where it has one."""
    key = _tuple(_ORIG, original)
    return key + _u16(_ZONE, zone) if zone else key


def entry_helper(name: str) -> bytes:
    """CTA_HELP with the name alone."""
    return _nested(_HELP, attribute(_HELP_NAME, _text(name)))


def entry_timeout(seconds: int) -> bytes:
    """CTA_TIMEOUT."""
    return _u32(_TIMEOUT, seconds)


def entry_mark(value: int, mask: int) -> bytes:
    """CTA_MARK of which the bits of `mask` are to be written."""
    return _u32(_MARK, value) + _u32(_MARK_MASK, mask)


def master(original: Tuple) -> bytes:
    """CTA_EXPECT_MASTER, which stands before the expectation's own attributes."""
    return _tuple(EXP_MASTER, original)


def expectation(value: Expectation) -> bytes:
    """The attributes of an expectation, all but its master."""
    end = value.destination
    packed = end.address.packed
    transport = value.transport
    if value.source is None:
        source, bits = bytes(len(packed)), 0
    else:
        source, bits = value.source.network_address.packed, value.source.prefixlen
    from_port = _NONE if value.source_port is None else value.source_port.to_bytes(2)
    attributes = _sides(
        EXP_TUPLE, source, packed, transport, from_port, end.port.to_bytes(2)
    ) + _template(
        len(packed),
        bits,
        int(transport),
        value.source_port is None,
        value.timeout,
        value.helper,
        value.class_,
        value.zone,
        value.permanent,
    )
    if value.translation is None:
        return attributes
    # One without the other leads to port 0, or to no translation.
    return (
        attributes
        + _translation(value.translation, transport, len(packed))
        + attribute(EXP_FN, _FOLLOW_MASTER)
    )


# It is the same for all that a helper expects of single hosts by one policy.
@lru_cache(maxsize=256)
def _template(
    size: int,
    bits: int,
    transport: int,
    any_port: bool,
    timeout: int,
    helper: str | None,
    class_: int,
    zone: int,
    permanent: bool,
) -> bytes:
    """What stands in an expectation besides its ends, which are addresses of a `size`.

    `bits` is the prefix of the source.
    """
    mask = ((1 << bits) - 1 << 8 * size - bits).to_bytes(size)
    parts = [
        # The kernel reads no mask of the destination: it is exact.
        _sides(
            *(EXP_MASK, mask, b"\xff" * size, transport),
            *(_NONE if any_port else _FULL, _FULL),
        ),
        # The kernel takes the policy's timeout whatever stands here, but wants it.
        _u32(EXP_TIMEOUT, timeout),
    ]
    if helper is not None:
        parts.append(helper_name(helper))
    if helper is not None or class_:
        parts.append(_u32(EXP_CLASS, class_))
    if zone:
        parts.append(_u16(EXP_ZONE, zone))
    parts.append(_u32(EXP_FLAGS, PERMANENT if permanent else 0))
    return b"".join(parts)


def helper_name(name: str) -> bytes:
    """CTA_EXPECT_HELP_NAME."""
    return attribute(EXP_HELP_NAME, _text(name))


def _text(value: str) -> bytes:
    return value.encode("ascii") + b"\0"


def _translation(value: Translation, transport: Transport, size: int) -> bytes:
    """Direction and port of CTA_EXPECT_NAT; the rest of its tuple is not read."""
    nowhere = bytes(size)
    port = value.port.to_bytes(2)
    return _nested(
        EXP_NAT,
        _u32(NAT_DIR, 0 if value.direction is ORIGINAL else 1)
        + _sides(NAT_TUPLE, nowhere, nowhere, transport, port, _NONE),
    )


def _tuple(kind: int, value: Tuple) -> bytes:
    ours, theirs = value.source, value.destination
    return _sides(
        kind,
        ours.address.packed,
        theirs.address.packed,
        value.transport,
        ours.port.to_bytes(2),
        theirs.port.to_bytes(2),
    )


def _sides(
    kind: int,
    source: bytes,
    destination: bytes,
    transport: int,
    source_port: bytes,
    destination_port: bytes,
) -> bytes:
    """A tuple of an attribute's type; nested ones must say that they are."""
    size = len(source)
    first, second = _ADDRESSES[size]
    return b"".join(
        (
            _ATTRIBUTE.pack(44 + 2 * size, _NESTED | kind),
            first,
            source,
            second,
            destination,
            _NUMBER,
            transport.to_bytes(1),
            _SOURCE_PORT,
            source_port,
            _DESTINATION_PORT,
            destination_port,
            bytes(2),
        )
    )


def _nested(kind: int, value: bytes) -> bytes:
    return attribute(_NESTED | kind, value)


def attribute(kind: int, value: bytes) -> bytes:
    """A netlink attribute, padded."""
    return _ATTRIBUTE.pack(len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _u16(kind: int, value: int) -> bytes:
    return _U16.pack(6, kind, value.to_bytes(2))


def _u32(kind: int, value: int) -> bytes:
    return _U32.pack(8, kind, value.to_bytes(4))
