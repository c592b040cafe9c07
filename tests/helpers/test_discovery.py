# SPDX-License-Identifier: GPL-2.0-or-later
"""Protocols that only the configuration knows: ``type = "discovery"``."""

from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core.api import (
    ANY,
    ON_LINK,
    ORIGINAL,
    UDP,
    Expect,
    Match,
    Message,
    Prefilter,
)
from cthelper.core.config import HelperConfig, parse
from cthelper.core.errors import ConfigError
from cthelper.core.outcome import Refused
from cthelper.core.registry import builtin_helpers
from cthelper.helpers.discovery import Discovery
from cthelper.testing import Line, check, play
from tests.cases import cases
from tests.core.builders import conntrack, endpoint, flow_tuple, udp
from tests.helpers.inspected import engine_with, on_link

HOST: Final = "192.0.2.1"
ASKER: Final = 40000
PORT: Final = 9999
QUERY: Final = b"FIND me"


def configured(*lines: str) -> HelperConfig:
    """A helper for port 9999, with these lines in its table."""
    table = ["[helpers.lamp]", 'type = "discovery"', f"ports = [{PORT}]", *lines]
    text = "\n".join(table)
    return parse(text, Path("test.toml"), builtin_helpers()).helpers["lamp"]


def error_of(*lines: str) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(*lines)
    (line,) = caught.value.lines
    return line.removeprefix("test.toml: ")


def sent(
    config: HelperConfig,
    payload: bytes = QUERY,
    *,
    destination: str = "255.255.255.255",
    port: int = ASKER,
    group: bool = False,
) -> Message:
    """What this host sends."""
    source = "fe80::1" if ":" in destination else HOST
    ends = (source, port), (destination, PORT)
    return Line(flow_tuple(UDP, *ends), config.options, group=group).sent(payload)


def opened(config: HelperConfig, message: Message) -> list[Any]:
    return list(play(config.helper(), [message]))


def answers(port: int = ASKER, address: str = HOST, **other: Any) -> Expect:
    wish: dict[str, Any] = {"source": ON_LINK, "source_port": PORT} | other
    return Expect(endpoint(address, port), "answer", permanent=True, **wish)


def case(message: str, outcome: str, *values: object) -> Any:
    """A case that proves what becomes of a message."""
    mark = pytest.mark.handles("discovery", message, outcome)
    return pytest.param(*values, marks=mark, id=message)


OPENS: Final = "link, port asked > asker's port, window"
NOTHING: Final = "opens nothing"
MATCH: Final = 'match = [{ text = "FIND" }, { hex = "02 00", at = 3 }]'


@pytest.mark.parametrize(
    ("lines", "asked", "wish"),
    [
        case("query to the limited broadcast address", OPENS, [], {}, {}),
        case(
            "query to a network's broadcast address",
            OPENS,
            *([], {"destination": "192.0.2.255", "group": True}, {}),
        ),
        case(
            "query to a group",
            OPENS,
            *([], {"destination": "239.255.255.250"}, {}),
        ),
        case(
            "query to a group of IPv6",
            OPENS,
            *([], {"destination": "ff02::9"}, {"address": "fe80::1"}),
        ),
        case(
            "query with bytes to match (`match`)",
            OPENS,
            *([MATCH], {"payload": b"FINDER"}, {}),
        ),
        case(
            "query with bytes to match elsewhere (`match`)",
            OPENS,
            *([MATCH], {"payload": b"abc\2\0"}, {}),
        ),
        case(
            "query from the port that is asked",
            OPENS,
            *([], {"port": PORT}, {"port": PORT}),
        ),
        case(
            "query that is answered from another port (`reply_port`)",
            "link, that port > asker's port, window",
            *(["reply_port = 4001"], {}, {"source_port": 4001}),
        ),
        case(
            "query that is answered from any port (`reply_port`)",
            "link > asker's port, window",
            *(['reply_port = "any"'], {}, {"source_port": None}),
        ),
        case(
            "query that is answered to another port (`answer_port`)",
            "link, port asked > that port of the asker, window",
            *(["answer_port = 4002"], {}, {"port": 4002}),
        ),
        case(
            "query through routers (`responders`)",
            "anybody, port asked > asker's port, window",
            *(['responders = "any"'], {}, {"source": ANY}),
        ),
    ],
)
def test_query_opens_a_port_of_the_asker(
    lines: list[str], asked: dict[str, Any], wish: dict[str, Any]
) -> None:
    config = configured(*lines)
    assert opened(config, sent(config, **asked)) == [answers(**wish)]


@pytest.mark.parametrize(
    ("lines", "asked"),
    [
        case("unicast", NOTHING, [], {"destination": "192.0.2.7"}),
        case("other bytes (`match`)", NOTHING, [MATCH], {"payload": b"NOT FIND"}),
        case("message too short (`match`)", NOTHING, [MATCH], {"payload": b"FIN"}),
        case(
            "query from the port that is asked, with `own_port` false",
            NOTHING,
            *(["own_port = false"], {"port": PORT}),
        ),
    ],
)
def test_what_is_no_query_opens_nothing(
    lines: list[str], asked: dict[str, Any]
) -> None:
    config = configured(*lines)
    assert opened(config, sent(config, **asked)) == []


def test_answer_in_the_same_flow_opens_nothing() -> None:
    config = configured()
    flow = Line(flow_tuple(UDP, (HOST, ASKER), ("255.255.255.255", PORT)), {})
    assert opened(config, flow.answered(QUERY)) == []


def test_helper_of_a_table_is_one_that_can_be_installed() -> None:
    check(configured().helper)
    check(Discovery)


@cases(
    "lines, prefilter",
    {
        "all": ([], Prefilter(reply=())),
        "text": (
            [MATCH],
            Prefilter(
                request=((Match(0, 32, 0x46494E44),), (Match(24, 16, 0x0200),)),
                reply=(),
            ),
        ),
        "long": (
            ['match = [{ text = "M-SEARCH * HTTP" }]'],
            Prefilter(request=((Match(0, 32, 0x4D2D5345),),), reply=()),
        ),
    },
)
def test_packets_that_cannot_be_queries_are_not_queued(
    lines: list[str], prefilter: Prefilter
) -> None:
    assert configured(*lines).prefilter == prefilter


TABLE: Final = 'must be a table such as { hex = "0200", at = 32 } or { text = "FIND" }'


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            "reply_port = 0",
            "reply_port = 0: must be a port from 1 to 65535, or asked or any",
        ),
        (
            'reply_port = "all"',
            'reply_port = "all": must be a port from 1 to 65535, or asked or any',
        ),
        (
            "reply_port = true",
            "reply_port = true: must be a port from 1 to 65535, or asked or any",
        ),
        (
            "answer_port = 65536",
            "answer_port = 65536: must be a port from 1 to 65535, or asker",
        ),
        (
            'answer_port = "any"',
            'answer_port = "any": must be a port from 1 to 65535, or asker',
        ),
        ('match = ["FIND"]', f'match = "FIND": {TABLE}'),
        ("match = [{}]", f"match = {{}}: {TABLE}"),
        ('match = [{ txt = "a" }]', f'match = {{txt = "a"}}: {TABLE}'),
        (
            'match = [{ text = "a", hex = "61" }]',
            f'match = {{text = "a", hex = "61"}}: {TABLE}',
        ),
        ("match = [{ text = 7 }]", f"match = {{text = 7}}: {TABLE}"),
        (
            'match = [{ hex = "0" }]',
            f'match = {{hex = "0"}}: {TABLE}: hex takes pairs of 0-9 and a-f',
        ),
        (
            'match = [{ text = "" }]',
            f'match = {{text = ""}}: {TABLE}: one byte or more of the first 64',
        ),
        (
            'match = [{ hex = "0200", at = 63 }]',
            f'match = {{hex = "0200", at = 63}}: {TABLE}: one byte or more of the '
            "first 64",
        ),
        (
            'match = [{ text = "a", at = -1 }]',
            f'match = {{text = "a", at = -1}}: {TABLE}: one byte or more of the '
            "first 64",
        ),
        (
            'match = [{ text = "a" }, { hex = "61" }]',
            'match = {hex = "61"}: stands there twice',
        ),
        ("own_port = 1", "own_port = 1: must be true or false"),
        (
            'responders = "all"',
            'responders = "all": must be one of on-link, any',
        ),
        (
            'destinations = ["lan"]',
            "destinations = \"lan\": must be a network: 'lan' does not appear to be an "
            'IPv4 or IPv6 network, or "broadcast"',
        ),
    ],
)
def test_error_names_key_value_and_what_is_allowed(line: str, why: str) -> None:
    assert error_of(line) == f"helpers.lamp.{why}"


# Through the engine: whom it opens what to.


def asked_by(
    config: HelperConfig,
    destination: str,
    *,
    port: int = ASKER,
    forwarded: bool = False,
) -> tuple[list[str], list[str]]:
    """Expectations and reasons of refusal for a query of this host."""
    engine = engine_with(config, on_link=on_link)
    original = flow_tuple(UDP, (HOST, port), (destination, PORT))
    entry = conntrack(original, helper="lamp")
    handled = engine.handle(udp(QUERY), entry, ORIGINAL, forwarded=forwarded)
    refused = [each.reason for each in handled.events if isinstance(each, Refused)]
    return list(map(str, handled.expectations)), refused


@pytest.mark.parametrize("destination", ["255.255.255.255", "192.0.2.255", "224.0.0.9"])
def test_hosts_of_the_link_may_answer(destination: str) -> None:
    text = f"udp 192.0.2.0/24 port {PORT} > {HOST}:{ASKER}"
    assert asked_by(configured(), destination) == ([text], [])


@pytest.mark.parametrize("destination", ["192.0.2.127", "198.51.100.255"])
def test_broadcast_of_no_network_of_the_host_opens_nothing(destination: str) -> None:
    assert asked_by(configured(), destination) == ([], [])


def test_query_of_another_host_opens_nothing() -> None:
    assert asked_by(configured(), "224.0.0.9", forwarded=True) == ([], ["forwarded"])


@pytest.mark.parametrize(
    ("lines", "port", "reason"),
    [
        ([], 600, "low-port"),
        (["answer_port = 600"], ASKER, "low-port"),
        (["answer_port = 3389"], ASKER, "denied-port"),
    ],
)
def test_ports_that_need_a_privilege_stay_closed(
    lines: list[str], port: int, reason: str
) -> None:
    assert asked_by(configured(*lines), "224.0.0.9", port=port) == ([], [reason])


def test_query_is_described() -> None:
    config = configured(MATCH)
    told = config.helper().describe(sent(config))
    assert told == {"type": "query", "answers to": f"{HOST}:{ASKER}"}
    assert config.helper().describe(sent(config, b"other")) == {"type": "no query"}
    assert config.helper().describe(sent(config, destination="192.0.2.7")) == {}


@given(payload=st.binary(max_size=100), port=st.integers(1, 0xFFFF))
def test_any_bytes_open_at_most_the_askers_port(payload: bytes, port: int) -> None:
    config = configured(MATCH)
    message = sent(config, payload, port=port)
    config.helper().describe(message)
    effects = opened(config, message)
    matches = payload[:4] == b"FIND" or payload[3:5] == b"\2\0"
    assert effects == ([answers(port)] if matches else [])
