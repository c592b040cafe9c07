# SPDX-License-Identifier: GPL-2.0-or-later
"""Header and questions of DNS messages; scapy builds and reads the same ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.dns import DNS, DNSQR

from cthelper.core.api import Cursor, Malformed, Truncated
from cthelper.helpers.dns import Header, read_header, read_question_classes
from tests.cases import cases

labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=63)
names = (
    st.lists(labels, min_size=1, max_size=8)
    .map(".".join)
    .filter(lambda name: len(name) <= 253)
)
u16s = st.integers(0, 0xFFFF)


def name(*lengths: int) -> bytes:
    """A name whose labels have these lengths."""
    return b"".join(bytes([each]) + b"x" * each for each in lengths) + b"\0"


def question_class(wire: bytes) -> int:
    """The class of the question `wire`, all of which must be read."""
    cursor = Cursor(wire)
    (class_,) = read_question_classes(cursor, 1)
    assert cursor.remaining == 0
    return class_


@pytest.mark.parametrize("size", range(12))
def test_short_header_is_truncated(size: int) -> None:
    with pytest.raises(Truncated):
        read_header(Cursor(bytes(size)))


def test_header_is_12_bytes() -> None:
    cursor = Cursor(bytes.fromhex("beef 0120 0002 0003 0004 0005 a5"))
    assert read_header(cursor) == Header(flags=0x0120, questions=2)
    assert cursor.remaining == 1


@cases(
    "flags, standard",
    {
        "query": (0x0000, True),
        "truncated query": (0x0200, True),
        "recursion desired": (0x0100, True),
        "all flags that are not codes": (0x07F0, True),
        "response": (0x8000, False),
        "authoritative response": (0x8400, False),
        "inverse query": (0x0800, False),
        "operation code 8": (0x4000, False),
        "response code 1": (0x0001, False),
        "response code 8": (0x0008, False),
    },
)
def test_standard_query_has_no_codes(flags: int, standard: bool) -> None:
    assert Header(flags, 1).is_standard_query is standard


@cases(
    "owner",
    {
        "root": name(),
        "three labels": name(4, 4, 5),
        "label of 63": name(63),
        "name of 255": name(63, 63, 63, 61),
        "pointer": b"\xc0\x0c",
        "pointer out of the message": b"\xff\xff",
        "label and pointer": name(4)[:-1] + b"\xc0\x0c",
        "label of any bytes": b"\x03\0\xff.\0",
    },
)
def test_question_is_passed_over_to_its_class(owner: bytes) -> None:
    assert question_class(owner + b"\x00\x0c" + b"\x80\x01") == 0x8001


def test_pointer_to_itself_does_not_lead_in_circles() -> None:
    assert question_class(b"\xc0\x00" + b"\x00\x0c\x00\x01") == 1


@pytest.mark.parametrize(
    ("owner", "reason"),
    [
        (b"\x40" + b"x" * 64 + b"\0", "label of the reserved type 0x40"),
        (b"\x7f" + b"x" * 127 + b"\0", "label of the reserved type 0x7f"),
        (b"\x80" + b"x" * 128 + b"\0", "label of the reserved type 0x80"),
        (name(63, 63, 63, 62), "name over 255 bytes"),
        (name(*[1] * 127, 1), "name over 255 bytes"),
        (name(63, 63, 63, 62)[:-1] + b"\xc0\x0c", "name over 255 bytes"),
    ],
    ids=[
        "label of 64",
        "label of 127",
        "label of 128",
        "name of 256",
        "name of 257",
        "long name with a pointer",
    ],
)
def test_label_over_63_and_name_over_255_are_malformed(
    owner: bytes, reason: str
) -> None:
    with pytest.raises(Malformed, match=f"^{reason}$"):
        read_question_classes(Cursor(owner + b"\x00\x0c\x00\x01"), 1)


@pytest.mark.parametrize("owner", [name(4, 5), b"\xc0\x0c"], ids=["labels", "pointer"])
def test_question_cut_anywhere_is_truncated(owner: bytes) -> None:
    whole = owner + b"\x00\x0c\x00\x01"
    for end in range(len(whole)):
        with pytest.raises(Truncated):
            read_question_classes(Cursor(whole[:end]), 1)


@given(st.binary())
def test_any_bytes_give_a_class_or_malformed(wire: bytes) -> None:
    cursor = Cursor(wire)
    try:
        (class_,) = read_question_classes(cursor, 1)
    except Malformed:
        return
    assert class_ == int.from_bytes(wire[cursor.position - 2 : cursor.position])
    assert 5 <= cursor.position <= 255 + 2 + 4


@given(u16s, st.lists(st.tuples(names, u16s, u16s), max_size=4))
def test_questions_that_scapy_builds_are_read(
    flags: int, questions: list[tuple[str, int, int]]
) -> None:
    built = DNS(
        qd=[
            DNSQR(
                qname=name,
                qtype=type_,
                unicastresponse=class_ >> 15,
                qclass=class_ & 0x7FFF,
            )
            for name, type_, class_ in questions
        ]
    )
    wire = bytearray(bytes(built))
    wire[2:4] = flags.to_bytes(2)
    cursor = Cursor(bytes(wire))
    header = read_header(cursor)
    theirs = DNS(bytes(wire))
    assert header == Header(flags, len(questions))
    assert header.is_standard_query is (
        not theirs.qr and not theirs.opcode and not theirs.rcode
    )
    classes = read_question_classes(cursor, len(questions))
    assert classes == [each.unicastresponse << 15 | each.qclass for each in theirs.qd]
    assert cursor.remaining == 0


@given(names.filter(lambda name: len(name) < 180), st.lists(labels, min_size=2))
def test_questions_that_scapy_compresses_are_read(name: str, firsts: list[str]) -> None:
    plain = DNS(
        qd=[
            DNSQR(qname=f"{first}.{name}", qclass=number)
            for number, first in enumerate(firsts, 1)
        ]
    )
    wire = bytes(plain.compress())  # type: ignore[no-untyped-call]
    assert len(wire) < len(bytes(plain))
    cursor = Cursor(wire)
    assert read_header(cursor).questions == len(firsts)
    classes = read_question_classes(cursor, len(firsts))
    assert classes == list(range(1, len(firsts) + 1))
    assert cursor.remaining == 0
