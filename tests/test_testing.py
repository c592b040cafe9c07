# SPDX-License-Identifier: GPL-2.0-or-later
"""What plugins' tests are given: it reports what it should, and fails where it must."""

import subprocess
import sys
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import ClassVar, Final

import pytest
from scapy.layers.inet import TCP as ScapyTCP
from scapy.layers.inet import UDP as ScapyUDP
from scapy.packet import Packet
from scapy.utils import rdpcap

from cthelper.core.api import (
    DONE,
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
    Direction,
    Effects,
    Endpoint,
    Expect,
    ExpectationRefused,
    Grant,
    Helper,
    Malformed,
    Message,
    Option,
    Policy,
    Rewrite,
    expect,
)
from cthelper.core.errors import (
    CaptureError,
    ConfigError,
    HelperFault,
    RegistryError,
    UsageError,
)
from cthelper.core.offline.events import ExpectationEvent, Notice, Summary
from cthelper.helpers.ftp import Ftp
from cthelper.helpers.mdns import Mdns
from cthelper.helpers.sunrpc import SunRpc
from cthelper.testing import (
    Line,
    any_segmentation,
    defaults,
    endpoint,
    expectations,
    failures,
    play,
    related,
    replay,
    write_capture,
)

PCAPS: Final = Path(__file__).parents[1] / "pcaps"
SHOWMOUNT: Final = PCAPS / "sunrpc" / "rpc-showmount-e.pcap"
ONE_SHOT: Final = PCAPS / "mdns" / "mdns-dig-legacy-unicast.pcap"
LINE: Final = Line.between(TCP, "192.0.2.1:40000", "198.51.100.2:7000")
DATA: Final = Expect(endpoint("198.51.100.2:5000"), "data")


class Words(Helper):
    """Words that end in a full stop: some announce, are refused, are malformed."""

    name = "words"
    transports = frozenset({TCP})
    ports = (7000,)
    policies = (Policy("data"),)
    options = (Option("depth", 3, "a number"), Option("mode", "a", "a word"))
    message_limit: ClassVar[int] = 8

    def frame(self, data: memoryview) -> int | None:
        return bytes(data).find(b".") + 1 or None

    def on_message(self, message: Message) -> Effects:
        match message.payload:
            case b"open.":
                grant = yield from expect(DATA.endpoint, policy="data")
                assert grant == Grant(DATA.endpoint)
                yield Rewrite((0, 4), b"open")
            case b"no.":
                raise ExpectationRefused("no", "said so")
            case b"wrong.":
                yield Rewrite((0, 1), b"w")
                raise Malformed("it is wrong")
            case b"done.":
                yield DONE


OPENED: Final = [DATA, Rewrite((0, 4), b"open")]


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [("192.0.2.1:7000", "192.0.2.1", 7000), ("[2001:db8::1]:0", "2001:db8::1", 0)],
)
def test_endpoint_is_read_as_it_is_shown(text: str, address: str, port: int) -> None:
    assert endpoint(text) == Endpoint(ip_address(address), port)
    assert str(endpoint(text)) == text


def test_line_makes_messages_of_both_directions() -> None:
    line = Line.between(
        UDP, "192.0.2.1:1", "[2001:db8::1]:2", {"depth": 4}, forwarded=True
    )
    sent, answered = line.sent(b"a", 1.5), line.answered(b"b")
    assert (sent.direction, answered.direction) == (ORIGINAL, REPLY)
    assert (sent.source, sent.destination) == (answered.destination, answered.source)
    assert (str(sent.source), str(answered.source)) == (
        "192.0.2.1:1",
        "[2001:db8::1]:2",
    )
    assert (sent.payload, sent.now, sent.options) == (b"a", 1.5, {"depth": 4})
    assert (sent.original, sent.reply) == (answered.original, answered.reply)
    assert sent.transport is UDP
    assert sent.forwarded


def test_defaults_are_those_of_the_options() -> None:
    assert defaults(Words) == {"depth": 3, "mode": "a"}


def test_play_grants_what_is_asked_for_and_lets_errors_out() -> None:
    helper = Words()
    assert play(helper, [LINE.sent(b"open."), LINE.sent(b"hm.")]) == OPENED
    with pytest.raises(ExpectationRefused):
        play(helper, [LINE.sent(b"no.")])


class Rewriting(Words):
    """Writes the port that it was granted, or says that it was refused."""

    def on_message(self, message: Message) -> Effects:
        try:
            grant = yield from expect(DATA.endpoint, policy="data")
        except ExpectationRefused as error:
            yield Rewrite((0, 4), error.reason.encode())
        else:
            yield Rewrite((0, 4), b"%d" % grant.endpoint.port)


def elsewhere(wish: Expect) -> Endpoint:
    return endpoint(f"203.0.113.9:{wish.endpoint.port + 1}")


def refused(wish: Expect) -> Endpoint:
    raise ExpectationRefused("kernel-full", str(wish.endpoint))


@pytest.mark.parametrize(
    ("grant", "written"), [(elsewhere, b"5001"), (refused, b"kernel-full")]
)
def test_another_endpoint_is_granted_or_none(
    grant: Callable[[Expect], Endpoint], written: bytes
) -> None:
    found = [DATA, Rewrite((0, 4), written)]
    assert play(Rewriting(), [LINE.sent(b"open.")], grant) == found
    assert any_segmentation(Rewriting, [LINE.sent(b"open.")], grant) == found


def test_refusal_that_the_helper_lets_out_comes_out() -> None:
    with pytest.raises(ExpectationRefused, match="kernel-full"):
        play(Words(), [LINE.sent(b"open.")], refused)
    text = f"kernel-full: {DATA.endpoint}"
    assert any_segmentation(Words, [LINE.sent(b"open.")], refused) == [DATA, text]


def test_policy_that_is_not_there_is_raised_from_the_helpers_line() -> None:
    class Misspelt(Words):
        def on_message(self, message: Message) -> Effects:
            yield from expect(DATA.endpoint, policy="date")

    with pytest.raises(HelperFault, match="no policy 'date', known are data") as caught:
        play(Misspelt(), [LINE.sent(b"open.")])
    lines = [str(each.statement).strip() for each in caught.traceback]
    assert 'yield from expect(DATA.endpoint, policy="date")' in lines


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ([b"open.", b"open."], OPENED * 2),
        ([b"no.", b"open."], ["no: said so", *OPENED]),
        ([b"wrong.", b"open."], [Rewrite((0, 1), b"w"), "it is wrong"]),
        ([b"done.", b"open."], [DONE]),
        ([b"a234567.", b"open."], OPENED),
        ([b"a2345678.", b"open."], ["no complete message in 8 bytes"]),
        ([], []),
    ],
)
def test_any_segmentation_finds_what_the_host_would(
    sent: list[bytes], found: list[object]
) -> None:
    assert any_segmentation(Words, list(map(LINE.sent, sent))) == found


def test_directions_are_streams_of_their_own() -> None:
    messages = [LINE.sent(b"wrong."), LINE.answered(b"open."), LINE.sent(b"open.")]
    found = any_segmentation(Words, messages)
    assert found == [Rewrite((0, 1), b"w"), "it is wrong", *OPENED]
    assert any_segmentation(Words, [*messages[:2], LINE.answered(b"done.")])[-1] is DONE


class Greedy(Words):
    """Takes what is there for a message."""

    def frame(self, data: memoryview) -> int | None:
        return len(data)


class Hasty(Words):
    """Says that a message is longer than what is there."""

    def frame(self, data: memoryview) -> int | None:
        return 5


class Unlike(Words):
    """Replies begin with their length, requests end in a full stop."""

    def frame_of(self, direction: Direction, data: memoryview) -> int | None:
        if direction is ORIGINAL:
            return self.frame(data)
        return data[0] if data[0] <= len(data) else None


def test_directions_may_be_framed_in_different_ways() -> None:
    messages = [LINE.sent(b"open."), LINE.answered(b"\5no.."), LINE.sent(b"done.")]
    assert any_segmentation(Unlike, messages) == [*OPENED, DONE]


@pytest.mark.parametrize(
    ("helper", "complaint"),
    [
        (Greedy, "segments of 1 bytes lead to"),
        (Hasty, r"frame\(\) returned 5 of 1 bytes"),
    ],
)
def test_wrong_frame_is_found(helper: type[Helper], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        any_segmentation(helper, [LINE.sent(b"open.")])


# Captures


def test_replay_gives_the_events_of_a_capture() -> None:
    events = replay(SHOWMOUNT, SunRpc)
    assert expectations(events) == [(6, "tcp 10.77.1.2 > 10.77.2.2:43173")]
    assert related(events) == [(9, 6)]
    assert failures(events) == []
    assert isinstance(events[-1], Summary)


def test_settings_are_those_of_the_configuration() -> None:
    off = replay(str(SHOWMOUNT), SunRpc, settings="helpers.sunrpc.ports = [112]")
    assert expectations(off) == []
    with pytest.raises(ConfigError, match=r"settings: helpers\.sunrpc\.mode = 1"):
        replay(SHOWMOUNT, SunRpc, settings="helpers.sunrpc.mode = 1")


@pytest.mark.interpreted
def test_failures_name_frame_and_reason() -> None:
    class Wrong(Ftp):
        def on_message(self, message: Message) -> Effects:
            if message.payload.startswith(b"PASV"):
                raise Malformed("that day")
            yield from super().on_message(message)

    class Faulty(Ftp):
        def on_message(self, message: Message) -> Effects:
            if message.payload.startswith(b"227"):
                raise KeyError(1)
            yield from super().on_message(message)

    capture = PCAPS / "ftp" / "ftp-curl-pasv-pyftpdlib.pcap"
    assert failures(replay(capture, Wrong)) == [
        (13, "malformed: that day"),
        (14, "refused: unasked"),
    ]
    ((frame, text),) = failures(replay(capture, Faulty))
    assert frame == 14
    assert text.startswith("fault: KeyError: 1 at test_testing.py:")


def test_networks_say_what_was_on_link() -> None:
    guessed = replay(ONE_SHOT, Mdns)
    assert [each.text for each in guessed if isinstance(each, Notice)] != []
    told = replay(ONE_SHOT, Mdns, networks=[ip_network("10.77.0.0/16")])
    assert not [each for each in told if isinstance(each, Notice)]
    assert "10.77.0.0/16" in expectations(told)[0][1]
    other = replay(ONE_SHOT, Mdns, hosts=[ip_address("192.0.2.1")])
    assert failures(other) != []


SNAT: Final = {ip_address("10.77.1.2"): ip_address("203.0.113.1")}
DNAT: Final = {ip_address("10.77.2.2"): ip_address("192.168.0.2")}


def test_replay_behind_nat_shows_what_the_other_side_sees() -> None:
    events = replay(SHOWMOUNT, SunRpc, snat=SNAT)
    assert related(events) == [(9, 6)]
    assert failures(events) == []
    both = replay(SHOWMOUNT, SunRpc, snat=SNAT, dnat=DNAT)
    assert related(both) == [(9, 6)]
    (first,) = [each for each in both if isinstance(each, ExpectationEvent)]
    assert first.expectation.translation is not None
    with pytest.raises(UsageError, match="cannot mean a host on either side"):
        replay(SHOWMOUNT, SunRpc, snat=SNAT, dnat=SNAT)


# Captures that are made


CONTROL: Final = Line.between(UDP, "192.0.2.1:700", "198.51.100.2:111")
SIX: Final = Line.between(TCP, "[2001:db8::1]:40000", "[2001:db8::2]:7000")


def packets_of(path: Path) -> list[Packet]:
    return list(rdpcap(str(path)))


def test_capture_of_messages_is_replayed(tmp_path: Path) -> None:
    capture = tmp_path / "drawn.pcap"
    data = Line.between(TCP, "192.0.2.1:40001", "198.51.100.2:5000")
    messages = [LINE.sent(b"open."), data.sent(b"hello"), LINE.answered(b"done.")]
    write_capture(str(capture), messages)
    # The client announces where the server is reached, which is not for it to say.
    assert failures(replay(capture, Words)) == [(4, "refused: third-party-address")]
    write_capture(capture, [LINE.answered(b"open."), *messages[1:]])
    events = replay(capture, Words)
    assert expectations(events) == [(4, "tcp 192.0.2.1 > 198.51.100.2:5000")]
    assert related(events) == [(6, 4)]
    assert failures(events) == []


def test_capture_has_the_messages_in_order_and_whole(tmp_path: Path) -> None:
    capture = tmp_path / "drawn.pcap"
    long = bytes(range(256)) * 20
    write_capture(
        capture,
        [SIX.sent(b"a"), CONTROL.sent(b""), SIX.answered(long), CONTROL.answered(b"b")],
    )
    packets = packets_of(capture)
    flags = [str(each[ScapyTCP].flags) for each in packets if ScapyTCP in each]
    assert flags[:5] == ["S", "SA", "A", "PA", "A"]
    assert flags[-3:] == ["FA", "FA", "A"]
    answers = [each for each in packets if ScapyTCP in each and each.sport == 7000]
    assert b"".join(bytes(each[ScapyTCP].payload) for each in answers) == long
    assert max(len(each) for each in packets) <= 1514
    assert [bytes(each[ScapyUDP].payload) for each in packets if ScapyUDP in each] == [
        b"",
        b"b",
    ]


def test_capture_has_the_messages_times_and_goes_forward(tmp_path: Path) -> None:
    capture = tmp_path / "drawn.pcap"
    told = [CONTROL.sent(b"a"), CONTROL.sent(b"b", 5.5), CONTROL.sent(b"c", 1.0)]
    write_capture(capture, told)
    times = [float(each.time) for each in packets_of(capture)]
    since = [round(each - times[0], 3) for each in times]
    assert since == [0.0, 5.5, 5.501]


def test_what_is_no_capture_of_messages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no message"):
        write_capture(tmp_path / "x", [])
    with pytest.raises(ValueError, match="datagram of 65508 bytes"):
        write_capture(tmp_path / "x", [CONTROL.sent(bytes(65508))])
    with pytest.raises(OSError, match="No such file"):
        write_capture(tmp_path / "no" / "x", [CONTROL.sent(bytes(65507))])
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_capture_or_no_helper_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="absent"):
        replay(tmp_path / "absent", SunRpc)
    with pytest.raises(RegistryError, match="is taken by"):
        replay(SHOWMOUNT, SunRpc, SunRpc)


def test_lack_of_scapy_is_told(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['scapy'] = None\n"
        "from cthelper.testing import write_capture\n"
        "write_capture('x', [])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == (
        "cthelper.core.errors.CthelperError: "
        f"scapy is not installed: {sys.executable} -m pip install scapy"
    )
