# SPDX-License-Identifier: GPL-2.0-or-later
"""The worked example of a plugin, iperf 2: what its header announces."""

from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import (
    DONE,
    TCP,
    Effect,
    Endpoint,
    Expect,
    ExpectationRefused,
    Malformed,
    Rewrite,
)
from cthelper.plugins.iperf import Iperf, parse_port
from cthelper.testing import (
    Line,
    any_segmentation,
    check,
    endpoint,
    expectations,
    failures,
    play,
    related,
    replay,
)
from tests.helpers.inspected import Inspected, entry_of
from tests.helpers.translated import MASQUERADED

PCAPS: Final = Path(__file__).parents[2] / "pcaps" / "iperf"
LINE: Final = Line.between(TCP, "192.0.2.1:40000", "198.51.100.2:5001")
# As iperf 2.1.8 begins, with -r.
FLAGS: Final = 0xC0010078


def header(port: int, flags: int = FLAGS, threads: int = 1) -> bytes:
    """What a client sends first."""
    return b"".join(each.to_bytes(4) for each in (flags, threads, port, 0, 1024))


def back(text: str) -> list[Effect]:
    """What leads to a flow to there, and nothing else."""
    end = endpoint(text)
    return [Expect(end, "back"), Rewrite((8, 12), end.port.to_bytes(4)), DONE]


@pytest.mark.parametrize("flags", [FLAGS, FLAGS | 1, 0x8000_0000])
def test_server_opens_a_flow_to_the_announced_port(flags: int) -> None:
    messages = [LINE.sent(header(5002, flags))]
    assert any_segmentation(Iperf, messages) == back("192.0.2.1:5002")


@pytest.mark.parametrize(
    "data",
    [
        header(5001, FLAGS & ~0x8000_0000),
        b"0123456789012345",
        b"POST / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00",
    ],
    ids=["neither -d nor -r", "old", "HTTP", "TLS"],
)
def test_what_announces_nothing_is_read_no_further(data: bytes) -> None:
    assert any_segmentation(Iperf, [LINE.sent(data)]) == [DONE]


def test_server_announces_nothing() -> None:
    messages = [LINE.answered(header(5002)), LINE.sent(header(5003))]
    assert any_segmentation(Iperf, messages) == back("192.0.2.1:5003")


def test_port_over_65535_is_malformed() -> None:
    found = any_segmentation(Iperf, [LINE.sent(header(65536 + 22))])
    assert found == ["port 65558 is over 65535"]


@pytest.mark.parametrize(
    ("port", "reason"), [(0, "port-zero"), (22, "denied-port"), (1023, "low-port")]
)
def test_port_of_a_service_is_refused(port: int, reason: str) -> None:
    flow = Inspected(Iperf, entry_of(Iperf))
    flow.sent(header(port))
    assert (flow.refused, flow.expectations) == ([reason], [])


def test_server_is_told_the_port_that_it_gets_to_behind_nat() -> None:
    entry = entry_of(Iperf, seen_as=(MASQUERADED[4], 50000))
    flow = Inspected(Iperf, entry, taken={5002})
    assert flow.sent(header(5002)) == header(5003)
    assert [str(each) for each in flow.expectations] == [
        f"tcp 198.51.100.2 > {MASQUERADED[4]}:5003"
    ]


def test_refused_port_stays_as_it_is() -> None:
    def refuse(_wish: Expect) -> Endpoint:
        raise ExpectationRefused("denied-port", "no")

    with pytest.raises(ExpectationRefused):
        play(Iperf(), [LINE.sent(header(5002))], refuse)


@given(st.binary(max_size=20))
def test_any_bytes_give_a_value_or_malformed(data: bytes) -> None:
    with suppress(Malformed):
        parse_port(data)
    any_segmentation(Iperf, [LINE.answered(b"x" * 30), LINE.sent(data)])


def test_header_is_described() -> None:
    assert Iperf().describe(LINE.sent(header(5002)[:12])) == {"port": "5002"}
    assert Iperf().describe(LINE.sent(b"x" * 12)) == {}
    assert Iperf().describe(LINE.answered(header(5002)[:12])) == {}


def test_host_takes_the_plugin() -> None:
    check(Iperf)


# Two of iperf; the frames were read off with tshark.


@pytest.mark.parametrize(
    ("capture", "announced", "met"),
    [
        ("iperf-dual", [(4, "tcp 10.91.1.1 > 10.91.1.2:5001")], [(11, 4)]),
        ("iperf-tradeoff", [(4, "tcp 10.91.1.1 > 10.91.1.2:5001")], [(13, 4)]),
        ("iperf-tradeoff6", [(4, "tcp fd91::1 > [fd91::2]:5001")], [(15, 4)]),
        (
            "iperf-parallel",
            [
                (7, "tcp 10.91.1.1 > 10.91.1.2:40001"),
                (9, "tcp 10.91.1.1 > 10.91.1.2:40001"),
            ],
            [(27, 7), (35, 7)],
        ),
    ],
)
def test_servers_flow_is_expected(
    capture: str, announced: list[tuple[int, str]], met: list[tuple[int, int]]
) -> None:
    events = replay(PCAPS / f"{capture}.pcap", Iperf)
    assert expectations(events) == announced
    assert related(events) == met
    assert failures(events) == []


def test_every_capture_is_in_the_table() -> None:
    assert len(list(PCAPS.iterdir())) == 4
