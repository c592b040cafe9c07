# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses of a host, which anybody may read, and what holds where they cannot be."""

import errno
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from cthelper.core.errors import NetlinkError
from cthelper.core.netlink.links import Links
from cthelper.core.netlink.socket import NetlinkSocket

OWN = ip_address("192.0.2.77")


@pytest.fixture
def known() -> Iterator[Links]:
    """The addresses, and one that none of the kernel's events will take away."""
    made = Links()
    made._prefixes[1 << 30] = {OWN: ip_network("192.0.2.0/24")}
    made._index()
    yield made
    made.close()


@pytest.mark.interpreted
def test_addresses_that_cannot_be_listed_are_those_of_before_until_they_can(
    known: Links, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise NetlinkError.of(errno.ENOBUFS, "list addresses")

    # The kernel has thrown events away, so that all are to be listed anew.
    known._events.overruns += 1
    with monkeypatch.context() as patch:
        patch.setattr(NetlinkSocket, "dump", fails)
        for _ in range(2):
            with pytest.raises(NetlinkError):
                known.update()
            assert known.is_local(OWN)
    known.update()
    assert not known.is_local(OWN)
