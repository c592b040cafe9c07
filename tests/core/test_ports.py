# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports as numbers, ranges and names of services, and how they are written down."""

import socket
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import TCP, UDP, Transport
from cthelper.core.ports import intervals, read_port, read_ports, spelled
from tests.core.configured import error_of, read

SERVICES = {
    ("sunrpc", "tcp"): 111,
    ("sunrpc", "udp"): 111,
    ("tftp", "udp"): 69,
    ("both", "tcp"): 5,
    ("both", "udp"): 6,
    ("iso-tsap", "tcp"): 102,
}


@pytest.fixture(autouse=True)
def services(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in /etc/services, whatever this machine has there."""

    def look_up(name: str, transport: str) -> int:
        if (name, transport) not in SERVICES:
            raise OSError("service/proto not found")
        return SERVICES[name, transport]

    monkeypatch.setattr(socket, "getservbyname", look_up)


@pytest.mark.parametrize(
    ("value", "transports", "ports"),
    [
        (1, {TCP}, range(1, 2)),
        (65535, {TCP}, range(65535, 65536)),
        ("6660-6669", {TCP}, range(6660, 6670)),
        ("1-65535", {TCP}, range(1, 65536)),
        ("7-7", {TCP}, range(7, 8)),
        ("sunrpc", {TCP, UDP}, range(111, 112)),
        ("tftp", {TCP, UDP}, range(69, 70)),
        ("both", {TCP}, range(5, 6)),
        ("both", {UDP}, range(6, 7)),
        ("iso-tsap", {TCP}, range(102, 103)),
    ],
)
def test_value_means_ports(
    value: object, transports: set[Transport], ports: range
) -> None:
    assert read_ports(value, transports) == ports
    if len(ports) == 1 and value != "7-7":
        assert read_port(value, transports) == ports.start


ONE = "must be a port from 1 to 65535, or the name of a service"
NEITHER: list[object] = [0, 65536, -1, 1.0, True, None, [], "", "111", "a\0b", "a b"]
ORDER = "must lead from a port to a higher one, 1 to 65535"


@pytest.mark.parametrize(
    ("value", "why"),
    [
        *((value, f'{ONE}, or a range such as "6660-6669"') for value in NEITHER),
        *((value, ORDER) for value in ("0-7", "7-65536", "7-6", "99999-99999", "0-0")),
        (
            "htpt",
            "no service of this name over tcp or udp in /etc/services: give its number",
        ),
        ("both", "is 5 over tcp and 6 over udp: give the number"),
    ],
)
def test_other_values_are_refused(value: object, why: str) -> None:
    with pytest.raises(ValueError, match=r"^\w") as caught:
        read_ports(value, {UDP, TCP})
    assert str(caught.value) == why


def test_name_that_only_the_other_transport_has_is_refused() -> None:
    with pytest.raises(ValueError, match="no service of this name over tcp in"):
        read_ports("tftp", {TCP})


@pytest.mark.parametrize("value", ["6660-6669", "", 0])
def test_one_port_is_no_range(value: object) -> None:
    with pytest.raises(ValueError, match="service"):
        read_port(value, {TCP})


@given(st.integers() | st.text() | st.from_regex(r"\d{1,6}-\d{1,6}"))
def test_any_value_is_ports_or_a_value_error(value: object) -> None:
    try:
        ports = read_ports(value, {TCP})
    except ValueError:
        return
    assert 1 <= ports.start < ports.stop <= 65536


@given(st.sets(st.integers(1, 65535) | st.integers(1, 40)))
def test_intervals_are_the_ports_and_apart(ports: set[int]) -> None:
    found = intervals(ports)
    assert [port for each in found for port in each] == sorted(ports)
    assert all(one.stop < other.start for one, other in pairwise(found))
    again = [read_ports(each, {TCP}) for each in spelled(ports)]
    assert again == found


def test_ports_are_spelled_the_shortest_way() -> None:
    assert spelled([111, 6669, *range(6660, 6669), 21]) == [21, 111, "6660-6669"]


# In the configuration


def test_every_list_of_ports_takes_ranges_and_names() -> None:
    result = read(
        """
        guard.denied_ports = ["1-3", "tftp", "iso-tsap"]
        helpers.plain.ports = ["sunrpc", "6660-6662", 9]
        helpers.plain.guard.lowest_port = "sunrpc"
        helpers.chosen.guard.denied_ports = ["7-8"]
        """
    )
    plain, chosen = result.helpers["plain"], result.helpers["chosen"]
    assert plain.ports == (111, 6660, 6661, 6662, 9)
    assert plain.guard.denied_ports == {1, 2, 3, 69, 102}
    assert plain.guard.lowest_port == 111
    assert chosen.guard.denied_ports == {7, 8}


def test_all_ports_may_be_denied() -> None:
    """They are a helper's default then, which was compared with itself for hours."""
    result = read('guard.denied_ports = ["1-65535"]')
    assert len(result.helpers["plain"].guard.denied_ports) == 65535


@pytest.mark.parametrize(
    ("ports", "problem"),
    [
        ('["6660-6669", 6665]', '["6660-6669", 6665]: has port 6665 twice'),
        ('["1-9", "5-20"]', '["1-9", "5-20"]: has port 5 twice'),
        ('[111, "sunrpc"]', '"sunrpc": stands there twice'),
        (
            '["iso-tsap"]',
            '"iso-tsap": no service of this name over udp in /etc/services: '
            "give its number",
        ),
    ],
)
def test_wrong_lists_of_ports_are_refused(ports: str, problem: str) -> None:
    assert error_of(f"helpers.plain.ports = {ports}") == (
        f"cthelper.toml: helpers.plain.ports = {problem}"
    )
