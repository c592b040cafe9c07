# SPDX-License-Identifier: GPL-2.0-or-later
"""What a helper labels and takes back: the engine has the kernel let go of it."""

import pytest

from cthelper.core.api import DONE, TCP, Effects, Expect, Message, Withdraw, expect
from cthelper.core.engine import Engine
from cthelper.core.guard import Guard
from cthelper.core.outcome import Event, Fault
from cthelper.core.tuples import ORIGINAL
from cthelper.testing import Line, endpoint, play
from tests.core.builders import CLIENT, SERVER, conntrack, flow_tuple, tcp
from tests.core.host import Datagrams, Host, Kernel, Lines, configured, on_link


class Translated:
    """A translated flow, whose expectations are put in while its helper waits."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.engine = Engine(
            {"line": configured(Lines)},
            guard=Guard(),
            on_link=on_link,
            clock=lambda: 0.0,
            flow_limit=4,
            placer=self.kernel,
        )
        reply = flow_tuple(TCP, ("10.0.0.2", 7000), (CLIENT, 40000))
        self.entry = conntrack(flow_tuple(TCP), reply)
        self._sequence = 1
        self.engine.handle(tcp(b"", 0, flags="S"), self.entry, ORIGINAL)

    def send(self, payload: bytes) -> tuple[list[str], list[str], tuple[Event, ...]]:
        """What is placed and withdrawn by a packet, and its events."""
        packet = tcp(payload, self._sequence)
        self._sequence += len(payload)
        decision = self.engine.handle(packet, self.entry, ORIGINAL)
        placed = [str(each.expectation) for each in decision.placed]
        withdrawn = [str(each.expectation) for each in decision.withdrawn]
        return placed, withdrawn, decision.events


OPENED = f"tcp 10.0.0.2 > {CLIENT}:5000"


def test_what_an_earlier_packet_labelled_is_taken_back() -> None:
    flow = Translated()
    assert flow.send(b"LABEL 5000 x\n") == ([OPENED], [], ())
    assert flow.send(b"WITHDRAW y\n") == ([], [], ())
    assert flow.send(b"WITHDRAW x\n") == ([], [OPENED], ())
    assert flow.kernel.present == []
    assert len(flow.engine.guard.ledger) == 0


def test_what_the_same_packet_labelled_is_told_to_nobody() -> None:
    flow = Translated()
    assert flow.send(b"LABEL 5000 x\nWITHDRAW x\n") == ([], [], ())
    assert flow.kernel.present == []
    assert len(flow.engine.guard.ledger) == 0
    plain = Host(Datagrams)
    assert plain.send(b"LABEL 5000 x").expectations != ()
    host = Host(Lines)
    decision = host.send(b"LABEL 5000 x\nLABEL 5001 y\nWITHDRAW x\n")
    assert [each.destination.port for each in decision.expectations] == [5001]
    assert len(host.engine.guard.ledger) == 1


def test_port_that_was_taken_back_may_be_announced_again_at_once() -> None:
    flow = Translated()
    flow.send(b"LABEL 5000 x\n")
    again = flow.send(b"WITHDRAW x\nLABEL 5000 x\n")
    assert again == ([OPENED], [OPENED], ())
    assert len(flow.kernel.present) == 1


def test_withdrawal_is_not_undone_by_a_bug_that_follows() -> None:
    flow = Translated()
    flow.send(b"LABEL 5000 x\n")
    _, withdrawn, events = flow.send(b"WITHDRAW x\nRAISE bug\n")
    assert withdrawn == [OPENED]
    assert any(isinstance(each, Fault) for each in events)
    assert flow.kernel.present == []


@pytest.mark.parametrize("size", [0, 65])
def test_label_without_bytes_or_with_too_many_is_a_bug(size: int) -> None:
    class Wrong(Lines):
        def on_message(self, message: Message) -> Effects:
            yield from expect(message.source, policy="data", label=b"x" * size)

    host = Host(Wrong)
    decision = host.send(b"OPEN 1\n")
    (fault, _) = decision.events
    assert isinstance(fault, Fault)
    text = f"ValueError: a label of {size} bytes, not of 1 to 64"
    assert fault.error == text


def test_played_helper_withdraws() -> None:
    line = Line.between(TCP, f"{CLIENT}:40000", f"{SERVER}:7000")
    texts = (b"LABEL 5000 x\n", b"WITHDRAW x\n", b"DONE\n")
    assert play(Lines(), map(line.sent, texts)) == [
        Expect(endpoint(f"{CLIENT}:5000"), "data", label=b"x"),
        Withdraw(b"x"),
        DONE,
    ]
