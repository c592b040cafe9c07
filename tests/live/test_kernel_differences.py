# SPDX-License-Identifier: GPL-2.0-or-later
"""Where kernels differ and nothing hangs on it, as it was seen (docs/kernels.md)."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Final

import pytest

from cthelper.core.errors import NotSupported
from cthelper.core.netlink import encoding
from cthelper.core.netlink.encoding import attribute
from cthelper.core.netlink.messages import CTNETLINK, NEW
from cthelper.core.netlink.socket import NETLINK_NETFILTER, NetlinkSocket
from cthelper.core.queue.messages import verdict
from cthelper.core.queue.native import NativeQueue, bind_queue
from cthelper.core.queue.protocol import Verdict
from cthelper.core.tuples import Status
from tests.live.netlink_lab import QUEUE, Flow, Lab, expected_flow, readable
from tests.live.world import World

pytestmark = pytest.mark.live

_VERSION: Final = tuple(int(each) for each in os.uname().release.split(".")[:2])

_EXP: Final = 15  # include/uapi/linux/netfilter/nfnetlink_queue.h
_NESTED: Final = 0x8000


@pytest.fixture
def lab(world: World) -> Iterator[Lab]:
    with Lab(world) as lab:
        yield lab


@pytest.fixture
def queueing(world: World) -> Iterator[Lab]:
    """One whose flows' packets are queued."""
    with Lab(world, queueing=True) as lab:
        yield lab


def test_helper_is_taken_from_a_flow_before_linux_7_2_alone(
    world: World, lab: Lab
) -> None:
    """CTA_HELP without a name (ctnetlink_change_helper in nf_conntrack_netlink.c)."""
    with Flow(world) as flow:
        flow.begin()
        assert lab.ctnetlink.is_attached(flow.original, "lab")
        unnamed = encoding.entry_key(flow.original, 0) + encoding.entry_helper("")
        taken = _VERSION < (7, 2)
        with world.gateway.entered():
            asked = NetlinkSocket(NETLINK_NETFILTER)
        with closing(asked), nullcontext() if taken else pytest.raises(NotSupported):
            asked.send(socket.AF_INET, unnamed, CTNETLINK | NEW, 0, "take the helper")
        assert (lab.ctnetlink.get(flow.original).helper is None) is taken


def test_expectation_in_the_verdict_of_an_unconfirmed_packet_is_met(
    world: World, queueing: Lab
) -> None:
    """NFQA_EXP (nfqnl_recv_verdict in nfnetlink_queue.c), in a flow's first packet."""
    with world.gateway.entered():
        binding = bind_queue(QUEUE, 1 << 20, fail_open=True)
    binding.resume()
    with closing(binding), Flow(world) as flow:
        wanted = flow.expectation()
        flow.client.send(b"hello")
        assert readable(binding.socket.fileno())
        (packet,) = NativeQueue(binding, 16).read(16)
        assert packet.conntrack is not None
        assert not packet.conntrack.status & Status.CONFIRMED
        binding.socket.send(_accepted_with(packet.id, encoding.expectation(wanted)))
        assert flow.server.recv(100) == b"hello"
        assert queueing.held(wanted)
        with expected_flow(world, wanted):
            pass


def _accepted_with(packet: int, expectation: bytes) -> bytes:
    """A verdict that lets a packet of QUEUE pass, and has something expected."""
    # The kernel reads an expectation only beside what is changed of the entry.
    unchanged = encoding.entry_mark(0, 0)
    message = verdict(QUEUE, Verdict(packet, conntrack=unchanged))
    message += attribute(_NESTED | _EXP, expectation)
    return len(message).to_bytes(4, sys.byteorder) + message[4:]
