# SPDX-License-Identifier: GPL-2.0-or-later
"""Descriptors of Oracle Net: which addresses are in them, and what is none."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import Address, Malformed
from cthelper.helpers.tns_descriptor import (
    ADDRESS_LIMIT,
    Place,
    ServerAddress,
    is_whole,
    parse_addresses,
    parse_host,
)
from tests.cases import cases

ONE = "(ADDRESS=(PROTOCOL=tcp)(HOST=192.0.2.1)(PORT=1521))"


def address(host: str, port: int, protocol: str = "tcp") -> str:
    return f"(ADDRESS=(PROTOCOL={protocol})(HOST={host})(PORT={port}))"


def found(text: str) -> list[str]:
    return [str(each) for each in parse_addresses(text.encode("latin-1"))]


def nested(groups: int, text: str) -> str:
    """The text inside so many more groups."""
    return "(A=" * groups + text + ")" * groups


@cases(
    "text, addresses",
    {
        "an address": (ONE, ["tcp 192.0.2.1:1521"]),
        "lower case": (ONE.lower(), ["tcp 192.0.2.1:1521"]),
        "protocol in upper case": (ONE.replace("tcp", "TCP"), ["tcp 192.0.2.1:1521"]),
        "another order": (
            "(ADDRESS=(PORT=1521)(HOST=192.0.2.1)(PROTOCOL=tcp))",
            ["tcp 192.0.2.1:1521"],
        ),
        "other keys among them": (
            "(Address=(DEV=6)(Port=1)(Rack=b)(Host=rac1)(Protocol=Tcp)(X=))",
            ["tcp rac1:1"],
        ),
        "blanks": (
            "\r\n ( ADDRESS\t= ( PROTOCOL = tcp ) \n( HOST= 192.0.2.1 )(PORT= 1521 )) ",
            ["tcp 192.0.2.1:1521"],
        ),
        "quoted values": (
            '(ADDRESS=(PROTOCOL="tcp")(HOST=\'192.0.2.1\')(PORT= "1521" ))',
            ["tcp 192.0.2.1:1521"],
        ),
        "values with equals signs": (
            "(X=\"a)(b='c\")(Y=')\"')" + ONE + "(Z=a=b==)",
            ["tcp 192.0.2.1:1521"],
        ),
        "TCPS": (address("192.0.2.1", 2484, "tcps"), ["tcps 192.0.2.1:2484"]),
        "IPv6": (address("2001:db8::1", 1521), ["tcp [2001:db8::1]:1521"]),
        "IPv6 with brackets": (
            address("[2001:db8::1]", 1521),
            ["tcp [2001:db8::1]:1521"],
        ),
        "name": (
            address("RAC1-vip.Example.NET.", 1521),
            ["tcp rac1-vip.example.net:1521"],
        ),
        "highest port": (address("192.0.2.1", 65535), ["tcp 192.0.2.1:65535"]),
        "port 0": (address("192.0.2.1", 0), ["tcp 192.0.2.1:0"]),
        "a whole descriptor": (
            f"(DESCRIPTION=(ADDRESS_LIST={ONE}{address('192.0.2.2', 1522)})"
            "(CONNECT_DATA=(SERVICE_NAME=orcl)(CID=(PROGRAM=x)(HOST=vm)(USER=me))))",
            ["tcp 192.0.2.1:1521", "tcp 192.0.2.2:1522"],
        ),
        "several groups at the top": (
            ONE + " " + address("a", 2),
            ["tcp 192.0.2.1:1521", "tcp a:2"],
        ),
        "a group within the address": (
            "(ADDRESS=(PROTOCOL=tcp)(A=(HOST=192.0.2.9))(HOST=192.0.2.1)(PORT=1))",
            ["tcp 192.0.2.1:1"],
        ),
        "8 deep": (nested(6, ONE), ["tcp 192.0.2.1:1521"]),
    },
)
def test_addresses_are_read(text: str, addresses: list[str]) -> None:
    assert found(text) == addresses


@cases(
    "text",
    {
        "IPC": "(ADDRESS=(PROTOCOL=ipc)(KEY=extproc))",
        "BEQ": "(ADDRESS=(PROTOCOL=beq)(PROGRAM=oracle))",
        "UDP": "(ADDRESS=(PROTOCOL=udp)(HOST=192.0.2.1)(PORT=1521))",
        "no protocol": "(ADDRESS=(HOST=192.0.2.1)(PORT=1521))",
        "no group": "(PROTOCOL=tcp)(HOST=192.0.2.1)(PORT=1521)",
        "another group": "(DESCRIPTION=(PROTOCOL=tcp)(HOST=192.0.2.1)(PORT=1521))",
        "a value": "(ADDRESS=192.0.2.1)",
        "an empty value": "(ADDRESS=)",
        "an address within quotes": "(A='" + ONE + "')",
    },
)
def test_what_is_no_address_over_tcp_is_passed_over(text: str) -> None:
    assert found(text) == []


def test_no_more_than_eight_addresses_are_read() -> None:
    many = "".join(address("192.0.2.1", port) for port in range(1, 11))
    ports = [each.port for each in parse_addresses(many.encode())]
    assert ports == list(range(1, ADDRESS_LIMIT + 1))


def test_addresses_of_other_protocols_do_not_count() -> None:
    text = address("192.0.2.1", 1, "ipc") * 20 + ONE
    assert found(text) == ["tcp 192.0.2.1:1521"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "HOST=192.0.2.1",
        f"x{ONE}",
        f"{ONE}x",
        f"{ONE})",
        ")",
        ONE[:-1],
        ONE[:-2],
        ONE[:40],
        "(",
        "(ADDRESS",
        "(ADDRESS)",
        "(=tcp)",
        "(A=(B=c)d)",
        "(A=b(C=d))",
        # What is quoted and what is not must be plain before the text is whole.
        '(A=b")(P="(")',
        "(A=b'c)",
        "((A=b))",
        "(A==(B=c)",
        '(A="b)',
        "(A='b\")",
        '(A="b"c)',
        '("A"=b)',
        "(A=(B=c)\0)",
        nested(7, ONE),
        nested(8, "(A=b)"),
        nested(500, ONE),
        "(ADDRESS=(PROTOCOL=tcp)(HOST=a)(HOST=b)(PORT=1521))",
        "(ADDRESS=(PROTOCOL=tcp)(HOST=a)(PORT=1521)(port=1522))",
        "(ADDRESS=(PROTOCOL=tcp)(HOST=192.0.2.1))",
        "(ADDRESS=(PROTOCOL=tcp)(PORT=1521))",
        *(
            f"(ADDRESS=(PROTOCOL=tcp)(HOST=a)(PORT={port}))"
            for port in (
                "",
                "x",
                "-1",
                "+1",
                "1 2",
                "0x10",
                "1_0",
                "\xb2",
                "65536",
                "99999",
            )
        ),
        "(ADDRESS=(PROTOCOL=tcp)(HOST=a)(PORT=001521))",
        "(ADDRESS=(PROTOCOL=tcp)(HOST=300.1.1.1)(PORT=1521))",
    ],
)
def test_what_is_no_descriptor_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        found(text)


@cases(
    "text",
    {
        "blanks before a value": "(A=" + " " * 4000,
        "blanks before a key": "(" + " " * 4000,
        "blanks after a key": "(A" + " " * 4000,
        "value": "(A=" + "b" * 4000,
        "groups": "(A=" + " (A=" * 1000,
        "open quote": "(A='" + "b" * 4000,
        "quotes": "(A=" + "'\"" * 2000,
        "many groups": "(A=b)" * 800 + "(",
    },
)
def test_text_that_goes_on_and_on_is_malformed(text: str) -> None:
    # Patterns that try again at each byte would take hours for some of these.
    with pytest.raises(Malformed):
        found(text)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("", False),
        (" \r\n", False),
        ("(", False),
        (ONE, True),
        (f" {ONE}\n", True),
        (f"{ONE}{ONE[:20]}", False),
        (f"{ONE}x", True),
        ("(A=')')", True),
        ("(A=')'", False),
        ("(A=')", True),
        ('(A="(")', True),
        ("x", True),
        ("x(", True),
        (")", True),
        ("(A=b))", True),
    ],
)
def test_text_is_whole_once_its_groups_have_ended_or_it_is_wrong(
    text: str, whole: bool
) -> None:
    assert is_whole(text.encode()) is whole


def test_beginning_of_a_descriptor_is_not_whole() -> None:
    text = f"(DESCRIPTION={ONE})".encode()
    assert [is_whole(text[:end]) for end in range(len(text) + 1)] == [
        *[False] * len(text),
        True,
    ]


# Hosts


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("192.0.2.1", IPv4Address("192.0.2.1")),
        ("2001:DB8::1", IPv6Address("2001:db8::1")),
        ("[2001:db8::1]", IPv6Address("2001:db8::1")),
        ("::ffff:192.0.2.1", IPv6Address("::ffff:192.0.2.1")),
        ("rac1", "rac1"),
        ("RAC1.Example.NET", "rac1.example.net"),
        ("rac1.example.net.", "rac1.example.net"),
        ("my_host-1", "my_host-1"),
        ("1a", "1a"),
        ("x" * 253, "x" * 253),
    ],
)
def test_host_is_an_address_or_a_name(text: str, host: Address | str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        "300.1.1.1",
        "192.0.2.1.",
        "192.0.2",
        "192.0.02.1",
        "1",
        "rac.1",
        "[192.0.2.1]",
        "[rac1]",
        "[2001:db8::1",
        "2001:db8::1]",
        "fe80::1%eth0",
        "2001:db8::1::",
        "a b",
        "a/b",
        "*",
        "caf\xe9",
        "x" * 254,
    ],
)
def test_what_is_no_host_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_host(text)


# What is written is read

blanks = st.text(" \t\r\n", max_size=2)
names = st.from_regex(
    r"[a-z][a-z0-9_-]{0,9}(\.[a-z][a-z0-9_-]{0,9}){0,2}", fullmatch=True
)
addresses_ = st.builds(
    ServerAddress,
    protocol=st.sampled_from(["tcp", "tcps"]),
    host=st.ip_addresses() | names,
    port=st.integers(0, 65535),
    host_place=st.just(Place(0, 0, 0)),
    port_place=st.just(Place(0, 0, 0)),
)


@st.composite
def either_case(draw: st.DrawFn, text: str) -> str:
    upper = draw(st.integers(0, 2 ** len(text) - 1))
    return "".join(
        each.upper() if upper >> bit & 1 else each.lower()
        for bit, each in enumerate(text)
    )


@st.composite
def group(draw: st.DrawFn, key: str, content: str) -> str:
    parts = ["(", draw(either_case(key)), "=", content, ")"]
    return "".join(draw(blanks) + part for part in parts)


@st.composite
def address_text(draw: st.DrawFn, of: ServerAddress) -> str:
    host = str(of.host)
    if isinstance(of.host, IPv6Address) and draw(st.booleans()):
        host = f"[{host}]"
    values = {
        "PROTOCOL": draw(either_case(of.protocol)),
        "HOST": draw(either_case(host)),
        "PORT": str(of.port),
        "DEV": "6",
    }
    leaves = []
    for key in draw(st.permutations(list(values))):
        quote = draw(st.sampled_from(["", '"', "'"]))
        leaves.append(draw(group(key, f"{quote}{values[key]}{quote}")))
    return draw(group("ADDRESS", "".join(leaves)))


@st.composite
def descriptor(draw: st.DrawFn, of: list[ServerAddress]) -> str:
    text = "".join(draw(address_text(each)) for each in of)
    keys = ["ADDRESS_LIST", "DESCRIPTION", "DESCRIPTION_LIST"]
    for key in draw(st.lists(st.sampled_from(keys), max_size=6)):
        text = draw(group(key, text or "x"))
    if draw(st.booleans()) or not text:
        text += draw(group("CONNECT_DATA", draw(group("SID", "orcl=="))))
    return text + draw(blanks)


@given(st.data(), st.lists(addresses_, max_size=4))
def test_addresses_that_are_written_are_read(
    data: st.DataObject, addresses: list[ServerAddress]
) -> None:
    text = data.draw(descriptor(addresses)).encode()
    assert parse_addresses(text) == addresses
    assert is_whole(text)


@given(st.data(), st.lists(addresses_, min_size=1, max_size=2), st.binary(min_size=1))
def test_junk_after_a_descriptor_is_malformed_or_groups_or_blanks(
    data: st.DataObject, addresses: list[ServerAddress], junk: bytes
) -> None:
    text = data.draw(descriptor(addresses)).encode()
    try:
        found = parse_addresses(text + junk)
    except Malformed:
        return
    assert found[: len(addresses)] == addresses
    assert junk.strip()[:1] in (b"", b"(")


pieces = st.lists(
    st.sampled_from([*"()=\"' \t,.:[]", "ADDRESS", "HOST", "PORT", "PROTOCOL", "tcp"])
    | st.sampled_from([ONE, "1521", "192.0.2.1", "::1", "(A=b)"])
).map(lambda parts: "".join(parts).encode())


@given(st.binary() | pieces)
def test_any_bytes_are_addresses_or_malformed(text: bytes) -> None:
    try:
        addresses = parse_addresses(text)
    except Malformed:
        return
    assert len(addresses) <= ADDRESS_LIMIT
    assert all(0 <= each.port <= 0xFFFF for each in addresses)
    assert is_whole(text)


@given(st.text(max_size=40) | names | st.ip_addresses().map(str))
def test_any_text_is_a_host_or_malformed(text: str) -> None:
    try:
        host = parse_host(text)
    except Malformed:
        return
    if isinstance(host, str):
        assert host == text.lower().removesuffix(".")
    else:
        assert host == ip_address(text.strip("[]"))
