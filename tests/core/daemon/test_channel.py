# SPDX-License-Identifier: GPL-2.0-or-later
"""What supervisor and server say to each other, and how each learns of an end."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cthelper.core.config import Config, parse
from cthelper.core.daemon.channel import Channel, Gone, Order, fingerprint
from cthelper.core.registry import builtin_helpers


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = Channel.pair()
    with closing(one), closing(other):
        yield one, other


def config(settings: str = "") -> Config:
    return parse(settings, Path("test.toml"), builtin_helpers())


def test_messages_come_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    totals = {f"refused.{number}": number for number in range(1000)}
    one.send({"order": Order.LEAVE})
    one.send({"totals": totals})
    assert other.receive(1.0) == {"order": "leave"}
    assert other.receive(1.0) == {"totals": totals}
    other.send({})
    assert one.receive(1.0) == {}


def test_descriptors_come_with_their_message(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    reads, writes = os.pipe()
    one.send({"order": Order.PREPARE}, [writes])
    one.send({"order": Order.COMMIT})
    os.close(writes)
    message = other.receive(1.0, files=True)
    descriptors = message.pop("descriptors")
    assert message == {"order": "prepare"}
    assert isinstance(descriptors, list)
    (descriptor,) = descriptors
    os.write(descriptor, b"here")
    os.close(descriptor)
    assert os.read(reads, 10) == b"here"
    os.close(reads)
    assert other.receive(1.0) == {"order": "commit"}


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_silence_is_told_from_the_end(
    ends: tuple[Channel, Channel], seconds: float
) -> None:
    one, other = ends
    with pytest.raises(TimeoutError):
        other.receive(seconds)
    one.close()
    with pytest.raises(Gone):
        other.receive(seconds)
    with pytest.raises(Gone):
        other.send({})


def test_what_was_sent_before_the_end_is_received(
    ends: tuple[Channel, Channel],
) -> None:
    one, other = ends
    one.send({"error": "queue 7 is bound"})
    one.close()
    assert other.receive(0.0) == {"error": "queue 7 is bound"}
    with pytest.raises(Gone):
        other.receive(0.0)


def test_message_that_was_not_read_does_not_hide_the_end(
    ends: tuple[Channel, Channel],
) -> None:
    """The kernel says that the connection was reset, where a message was lost."""
    one, other = ends
    other.send({"order": Order.DRAIN})
    one.close()
    with pytest.raises(Gone):
        other.receive(1.0)


def test_killed_process_is_gone(ends: tuple[Channel, Channel]) -> None:
    one, other = ends
    pid = os.fork()
    if pid == 0:
        other.close()
        signal.pause()
    one.close()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(Gone):
        other.receive(5.0)


def test_fingerprint_is_that_of_the_settings() -> None:
    settings = "[helpers.sunrpc.policies.service]\ntimeout = 77\n"
    assert fingerprint(config(settings)) == fingerprint(config(settings))
    assert fingerprint(config(settings)) != fingerprint(config())


def test_fingerprint_is_the_same_in_a_fork(ends: tuple[Channel, Channel]) -> None:
    """Sets have the order that their hashes give, and those differ by the process."""
    one, other = ends
    pid = os.fork()
    if pid == 0:
        one.send({"fingerprint": fingerprint(config())})
        os._exit(0)
    os.waitpid(pid, 0)
    assert other.receive(5.0) == {"fingerprint": fingerprint(config())}
