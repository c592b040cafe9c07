# SPDX-License-Identifier: GPL-2.0-or-later
"""What plugins' tests are given: it reports what it should, and fails where it must."""

import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import ClassVar, Final

import pytest

from cthelper.core.api import (
    DONE,
    ORIGINAL,
    REPLY,
    TCP,
    UDP,
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
from cthelper.core.errors import CaptureError, ConfigError, RegistryError
from cthelper.core.offline.events import Notice, Summary
from cthelper.helpers.mdns import Mdns
from cthelper.helpers.sunrpc import SunRpc
from cthelper.plugins.ftp import Ftp
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


def test_what_is_no_capture_or_no_helper_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="absent"):
        replay(tmp_path / "absent", SunRpc)
    with pytest.raises(RegistryError, match="is taken by"):
        replay(SHOWMOUNT, SunRpc, SunRpc)


def test_lack_of_scapy_is_told(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['scapy'] = None\n"
        "from cthelper.testing import replay\n"
        "replay('x')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == (
        "cthelper.core.errors.CthelperError: "
        f"scapy is not installed: {sys.executable} -m pip install scapy rich"
    )
