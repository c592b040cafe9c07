# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests encoded by hand are those that pyroute2's declarations encode."""

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.errors import Truncated
from cthelper.core.netlink import encoding
from cthelper.core.netlink.decoding import expectation_entry
from cthelper.core.tuples import (
    ORIGINAL,
    Address,
    Direction,
    Endpoint,
    Expectation,
    Network,
    Translation,
    Transport,
    Tuple,
)
from tests.core.netlink.declarations import conntrack_message, expectation_message

HEADERS = 20

ports = st.integers(0, 0xFFFF)
versions = st.sampled_from((4, 6))


def addresses(version: int) -> st.SearchStrategy[Address]:
    return st.ip_addresses(v=4) if version == 4 else st.ip_addresses(v=6)


@st.composite
def tuples(draw: st.DrawFn) -> Tuple:
    hosts = addresses(draw(versions))
    return Tuple(
        draw(st.sampled_from(Transport)),
        Endpoint(draw(hosts), draw(ports)),
        Endpoint(draw(hosts), draw(ports)),
    )


@st.composite
def expectations(draw: st.DrawFn) -> Expectation:
    master = draw(tuples())
    version = master.source.address.version
    address = draw(addresses(version))
    length = draw(st.integers(0, address.max_prefixlen))
    network: Network = ip_network((address, length), strict=False)
    return Expectation(
        master=master,
        transport=draw(st.sampled_from(Transport)),
        source=draw(st.none() | st.just(network)),
        source_port=draw(st.none() | ports),
        destination=Endpoint(draw(addresses(version)), draw(ports)),
        policy="data",
        timeout=draw(st.integers(1, 86400)),
        class_=draw(st.integers(0, 3)),
        permanent=draw(st.booleans()),
        helper=draw(st.none() | st.sampled_from(("a", "tns", "sunrpc.12"))),
        zone=draw(ports),
        translation=draw(
            st.none() | st.builds(Translation, st.sampled_from(Direction), ports)
        ),
    )


def declared_tuple(value: Tuple) -> dict[str, Any]:
    return sides(
        value.source.address,
        value.destination.address,
        value.transport,
        value.source.port,
        value.destination.port,
    )


def sides(
    source: Address,
    destination: Address,
    transport: Transport,
    source_port: int,
    destination_port: int,
) -> dict[str, Any]:
    version = source.version
    ip = [
        [f"CTA_IP_V{version}_SRC", str(source)],
        [f"CTA_IP_V{version}_DST", str(destination)],
    ]
    proto = [
        ["CTA_PROTO_NUM", int(transport)],
        ["CTA_PROTO_SRC_PORT", source_port],
        ["CTA_PROTO_DST_PORT", destination_port],
    ]
    return {
        "attrs": [
            ["CTA_TUPLE_IP", {"attrs": ip}],
            ["CTA_TUPLE_PROTO", {"attrs": proto}],
        ]
    }


def encoded(message: Any, attributes: list[list[Any]]) -> bytes:
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data[HEADERS:])


def declared_expectation(value: Expectation) -> list[list[Any]]:
    end = value.destination
    width = end.address.max_prefixlen // 8
    nowhere = ip_address(bytes(width))
    everywhere: Network = (
        IPv4Network("0.0.0.0/0") if width == 4 else IPv6Network("::/0")
    )
    source = everywhere if value.source is None else value.source
    port = value.source_port
    attributes: list[list[Any]] = [
        [
            "CTA_EXPECT_TUPLE",
            sides(
                source.network_address,
                end.address,
                value.transport,
                port or 0,
                end.port,
            ),
        ],
        [
            "CTA_EXPECT_MASK",
            sides(
                source.netmask,
                ip_address(b"\xff" * width),
                value.transport,
                0 if port is None else 0xFFFF,
                0xFFFF,
            ),
        ],
        ["CTA_EXPECT_TIMEOUT", value.timeout],
    ]
    if value.helper is not None:
        attributes.append(["CTA_EXPECT_HELP_NAME", value.helper])
    if value.helper is not None or value.class_:
        attributes.append(["CTA_EXPECT_CLASS", value.class_])
    if value.zone:
        attributes.append(["CTA_EXPECT_ZONE", value.zone])
    attributes.append(["CTA_EXPECT_FLAGS", int(value.permanent)])
    if value.translation is not None:
        told = sides(nowhere, nowhere, value.transport, value.translation.port, 0)
        direction = 0 if value.translation.direction is ORIGINAL else 1
        nat = [["CTA_EXPECT_NAT_DIR", direction], ["CTA_EXPECT_NAT_TUPLE", told]]
        attributes.append(["CTA_EXPECT_NAT", {"attrs": nat}])
        attributes.append(["CTA_EXPECT_FN", "nat-follow-master"])
    return attributes


@given(expectations())
def test_expectation_and_its_master(value: Expectation) -> None:
    declared = declared_expectation(value)
    assert encoding.expectation(value) == encoded(expectation_message(), declared)
    declared.insert(0, ["CTA_EXPECT_MASTER", declared_tuple(value.master)])
    whole = encoding.master(value.master) + encoding.expectation(value)
    assert whole == encoded(expectation_message(), declared)


@given(expectations())
def test_expectation_is_read_as_it_was_encoded(value: Expectation) -> None:
    data = b"headers." + encoding.master(value.master) + encoding.expectation(value)
    source = value.source
    # The kernel keeps no policy.
    expected = replace(
        value,
        policy=None,
        source=None if source is None or source.prefixlen == 0 else source,
    )
    assert expectation_entry(data, 8) == expected


@given(expectations(), st.data())
def test_expectation_cut_off_is_truncated(
    value: Expectation, data: st.DataObject
) -> None:
    whole = encoding.master(value.master) + encoding.expectation(value)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        found = expectation_entry(part, 0)
    except Truncated:
        return
    assert found is None or found.destination == value.destination


@given(tuples(), ports)
def test_key_of_an_entry(original: Tuple, zone: int) -> None:
    declared = [["CTA_TUPLE_ORIG", declared_tuple(original)]]
    if zone:
        declared.append(["CTA_ZONE", zone])  # type: ignore[list-item]
    assert encoding.entry_key(original, zone) == encoded(conntrack_message(), declared)


@pytest.mark.parametrize(
    ("request_", "declared"),
    [
        (encoding.entry_timeout(301), [["CTA_TIMEOUT", 301]]),
        (
            encoding.entry_helper("tns"),
            [["CTA_HELP", {"attrs": [["CTA_HELP_NAME", "tns"]]}]],
        ),
        (
            encoding.entry_mark(0x10000000, 0xF0000000),
            [["CTA_MARK", 0x10000000], ["CTA_MARK_MASK", 0xF0000000]],
        ),
    ],
)
def test_change_of_an_entry(request_: bytes, declared: list[list[Any]]) -> None:
    assert request_ == encoded(conntrack_message(), declared)
