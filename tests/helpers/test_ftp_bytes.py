# SPDX-License-Identifier: GPL-2.0-or-later
"""FTP: any bytes give a value or Malformed, in any segmentation the same."""

import re
from contextlib import suppress
from typing import Final

from hypothesis import example, given
from hypothesis import strategies as st

from cthelper.core.api import Endpoint, Malformed
from cthelper.helpers.ftp import (
    Announced,
    Ftp,
    emit_extended,
    emit_six,
    parse_command,
    parse_eprt,
    parse_extended_passive,
    parse_passive,
    parse_port,
    parse_reply,
)
from cthelper.testing import any_segmentation
from tests.helpers.test_ftp import CCC, LINE, record

endpoints4 = st.builds(Endpoint, st.ip_addresses(v=4), st.integers(0, 0xFFFF))
endpoints = st.builds(Endpoint, st.ip_addresses(), st.integers(0, 0xFFFF))


@given(endpoints4)
def test_six_numbers_read_as_written(value: Endpoint) -> None:
    text = emit_six(value)
    announced = Announced(value, (5, 5 + len(text)), emit_six)
    assert parse_port(b"PORT " + text + b"\r\n", 5) == announced
    assert parse_passive(b"227 (" + text + b")\r\n") == announced


@given(endpoints)
def test_extended_argument_reads_as_written(value: Endpoint) -> None:
    text = emit_extended(value)
    announced = parse_eprt(b"EPRT " + text + b"\r\n", 5)
    assert announced == Announced(value, (5, 5 + len(text)), emit_extended)


# Any bytes


PIECES: Final = (
    *(b"PORT ", b"EPRT ", b"227 ", b"229-", b"229 ", b"\xff\xf4", b"fe80::1%"),
    *(b"|", b"(", b")", b",", b"1", b"256", b" ", b"\r\n", b"\n", b"\r"),
)
pieces = st.sampled_from(PIECES)
texts = st.binary(max_size=60) | st.lists(pieces, max_size=16).map(b"".join)


@given(texts)
@example(b"EPRT |2|fe80::1%|1|\r\n")
def test_any_bytes_give_a_value_or_malformed(line: bytes) -> None:
    server = LINE.original.destination.address
    for read in (
        parse_command,
        parse_reply,
        lambda line: parse_port(line, 0),
        lambda line: parse_eprt(line, 0),
        parse_passive,
        lambda line: parse_extended_passive(line, server),
    ):
        with suppress(Malformed):
            read(line)


@given(st.lists(st.tuples(st.booleans(), texts), max_size=5))
def test_any_conversation_is_read_alike_in_any_segmentation(
    said: list[tuple[bool, bytes]],
) -> None:
    messages = [LINE.answered(b"220 ready\r\n")]
    for from_client, text in said:
        make = LINE.sent if from_client else LINE.answered
        messages += map(make, re.findall(rb"[^\n]*\n", text + b"\n"))
    any_segmentation(Ftp, messages)


records = st.builds(record, st.integers(0, 20), st.integers(0x13, 0x18))


@given(st.lists(st.tuples(st.booleans(), records | texts.map(b"%b\n".__mod__))))
def test_any_records_and_lines_are_read_alike_in_any_segmentation(
    said: list[tuple[bool, bytes]],
) -> None:
    messages = [CCC.answered(each) for each in (b"220 ready\r\n", b"234 go\r\n")]
    for from_client, text in said:
        messages.append(CCC.sent(text) if from_client else CCC.answered(text))
    any_segmentation(Ftp, messages)
