# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: what it becomes, and what the operator reads if it is wrong."""

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cthelper.core import config
from cthelper.core.api import UDP, Hook, Policy
from cthelper.core.config import Budget, DaemonConfig, parse, plugin_folder, read_file
from cthelper.core.errors import ConfigError
from cthelper.core.guard import Allowance, Limits, Rules
from cthelper.core.tables import as_toml
from cthelper.core.tuples import TCP, Endpoint, Tuple
from tests.core.configured import HELPERS, PATH, Chosen, Plain, error_of, read
from tests.core.test_tables import WRONG as WRONG_TABLES


def test_empty_text_is_all_defaults() -> None:
    result = read("")
    assert result.daemon == DaemonConfig()
    assert result.limits == Limits()
    assert list(result.helpers) == ["plain", "chosen"]
    plain, chosen = result.helpers["plain"], result.helpers["chosen"]
    assert plain.guard == chosen.guard == Rules()
    assert plain.hooks == frozenset(Hook)
    assert plain.helper is Plain
    assert plain.queue == result.daemon.queue
    assert plain.ports == (7000, 7001)
    assert plain.policies == Plain.policies
    assert plain.options == {}
    assert (plain.interfaces, plain.sources, plain.destinations) == ((), (), ())
    assert chosen.destinations == Chosen.destinations
    assert chosen.options == {
        "strict": False,
        "depth": 3,
        "greeting": "hello",
        "mode": "narrow",
        "version": 2,
        "networks": (),
        "words": ("a", "b"),
    }


def test_every_key_is_read() -> None:
    result = read(
        """
        [daemon]
        queue = 65535
        workers = 1
        receive_buffer = 65536
        flow_limit = 1
        log_level = "debug"
        log_format = "json"
        backend = "netfilterqueue"
        mark = 0x80000000
        user_mask = 0x7fffffff
        lost_ruleset = "warn"
        [budget]
        deadline = 10
        memory = 1048576
        messages = 65536
        source_cpu = 100
        [guard]
        denied_ports = [6000, 6001]
        in_all = 7
        live_source = 8
        live_server = 0
        live_all = 1000000
        [helpers.plain]
        enabled = true
        queue = 0
        ports = [1, 65535]
        interfaces = ["eth0", "wg-*", "a234567890123.5", "a2345678901234*"]
        sources = ["192.0.2.0/24", "2001:db8::/32"]
        destinations = ["198.51.100.2"]
        hooks = ["prerouting"]
        fail_closed = true
        [helpers.plain.guard]
        denied_ports = [7]
        lowest_port = 512
        allowed_ports = [80, "1024-65535"]
        allow = [
            { from = "10.0.0.10", hosts = ["10.0.0.0/28", "fd00::/64"], ports = [7] },
            { hosts = "10.0.0.5", from = ["10.0.0.8/30"] },
        ]
        allow_hosts = ["198.51.100.0/28"]
        per_source = 0
        per_helper = 1000000
        [helpers.plain.nat]
        outside = ["10.0.0.3 203.0.113.3", "fd00::3  2001:db8::3"]
        unrewritable = "drop"
        [helpers.plain.policies.chained]
        max_expected = 255
        timeout = 86400
        [helpers.chosen]
        strict = true
        depth = -1
        greeting = ""
        mode = "wide"
        version = 3
        networks = ["192.0.2.0/24", "2001:db8::/32"]
        words = ["b"]
        destinations = []
        """
    )
    assert result.daemon == DaemonConfig(
        queue=65535,
        receive_buffer=65536,
        flow_limit=1,
        log_level="debug",
        log_format="json",
        backend="netfilterqueue",
        mark=1 << 31,
        user_mask=(1 << 31) - 1,
        lost_ruleset="warn",
    )
    assert result.budget == Budget(
        deadline=10, memory=1 << 20, messages=1 << 16, source_cpu=100
    )
    assert result.limits == Limits(
        in_all=7, live_source=8, live_server=0, live_all=1_000_000
    )
    plain, chosen = result.helpers["plain"], result.helpers["chosen"]
    assert plain.queue == 0
    assert plain.ports == (1, 65535)
    assert plain.interfaces == ("eth0", "wg-*", "a234567890123.5", "a2345678901234*")
    assert plain.sources == (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"))
    assert plain.destinations == (ip_network("198.51.100.2/32"),)
    assert plain.policies == (Plain.policies[0], Policy("chained", 255, 86400))
    assert plain.hooks == {Hook.PREROUTING}
    assert plain.fail_closed
    assert not chosen.fail_closed
    assert plain.guard == Rules(
        denied_ports=frozenset({7}),
        lowest_port=512,
        allowed_ports=(range(80, 81), range(1024, 65536)),
        allow=(
            Allowance(
                from_=(ip_network("10.0.0.10/32"),),
                hosts=(ip_network("10.0.0.0/28"), ip_network("fd00::/64")),
                ports=(range(7, 8),),
            ),
            Allowance(
                from_=(ip_network("10.0.0.8/30"),),
                hosts=(ip_network("10.0.0.5/32"),),
            ),
        ),
        allow_hosts=(ip_network("198.51.100.0/28"),),
        per_source=0,
        per_helper=1_000_000,
    )
    assert {str(one): str(other) for one, other in plain.nat.outside.items()} == {
        "10.0.0.3": "203.0.113.3",
        "fd00::3": "2001:db8::3",
    }
    assert plain.nat.drop_unrewritable
    assert (chosen.nat.outside, chosen.nat.drop_unrewritable) == ({}, False)
    assert chosen.guard == Rules(denied_ports=frozenset({6000, 6001}))
    assert chosen.destinations == ()
    assert chosen.options == {
        "strict": True,
        "depth": -1,
        "greeting": "",
        "mode": "wide",
        "version": 3,
        "networks": (ip_network("192.0.2.0/24"), ip_network("2001:db8::/32")),
        "words": ("b",),
    }
    assert result.queues == {0, 65535}
    assert result.closed_queues == {0}
    assert result.warnings == ()


def test_each_worker_has_its_queues() -> None:
    result = read("daemon = {queue = 7, workers = 3}\nhelpers.chosen.queue = 65533")
    queues = [result.queues_of(server) for server in range(3)]
    assert queues == [{7, 65533}, {8, 65534}, {9, 65535}]
    assert result.queues == {7, 8, 9, 65533, 65534, 65535}


CLOSED = "helpers.chosen.fail_closed = true\n"


@pytest.mark.parametrize(
    ("text", "queues", "closed"),
    [
        ("", (7, 8), {8}),
        ("daemon.workers = 3\n", (7, 10), {10, 11, 12}),
        ("helpers.chosen.queue = 5\n", (7, 5), {5}),
        ("helpers.plain.fail_closed = true\n", (7, 7), {7}),
        ("helpers.plain.enabled = false\n", (None, 7), {7}),
    ],
    ids=["shared", "workers", "its own", "both closed", "alone"],
)
def test_helpers_that_fail_closed_have_queues_apart(
    text: str, queues: tuple[int | None, int], closed: set[int]
) -> None:
    result = read(f"daemon.queue = 7\n{CLOSED}{text}")
    found = {name: each.queue for name, each in result.helpers.items()}
    assert (found.get("plain"), found["chosen"]) == queues
    assert result.closed_queues == closed


def test_queue_after_the_others_must_be_free() -> None:
    class Third(Plain):
        name = "third"
        ports = (7003, 7004)

    text = f"daemon.queue = 7\n{CLOSED}helpers.third.queue = 8\n"
    with pytest.raises(ConfigError) as caught:
        parse(text, PATH, {**HELPERS, Third.name: Third})
    assert str(caught.value) == (
        "cthelper.toml: helpers.third.queue = 8: is that of chosen, which fails in "
        "another way: set another number"
    )


@pytest.mark.parametrize("value", ["helper", "chain"])
def test_what_once_chose_the_way_of_queueing_is_a_warning(value: str) -> None:
    result = read(f'helpers.plain.queueing = "{value}"')
    assert result.helpers == read("").helpers
    assert result.warnings == (
        "cthelper.toml: helpers.plain.queueing has no effect any more: the ruleset's "
        "chain queues the packets of all helpers; take the line out",
    )


def test_many_hosts_that_anybody_may_announce_are_a_warning() -> None:
    few = 'allow_hosts = ["10.0.0.0/28", "2001:db8::/124"]'
    assert read(f"helpers.plain.guard = {{ {few} }}").warnings == ()
    many = 'allow_hosts = ["10.0.0.0/27", "10.1.0.1"]'
    assert read(f"helpers.plain.guard = {{ {many} }}").warnings == (
        'cthelper.toml: helpers.plain.guard.allow_hosts = "10.0.0.0/27": anybody may '
        "announce these 32 hosts: say in allow who may, and which ports",
    )


def test_no_mark_is_a_mark_of_zero() -> None:
    assert read("daemon = {mark = 0, user_mask = 0xffffffff}").daemon.mark == 0


@pytest.mark.parametrize("queues", [(7, 7), (7, 9), (9, 7)])
def test_queues_of_helpers_are_equal_or_apart(queues: tuple[int, int]) -> None:
    plain, chosen = queues
    result = read(
        f"daemon.workers = 2\nhelpers.plain.queue = {plain}\n"
        f"helpers.chosen.queue = {chosen}"
    )
    assert len(result.queues) == 2 * len({plain, chosen})


def test_disabled_helper_is_left_out() -> None:
    result = read("daemon.queue = 5\nhelpers.plain = {enabled = false, queue = 9}")
    assert set(result.helpers) == {"chosen"}
    assert result.queues == {5}


def test_disabled_helper_is_checked_all_the_same() -> None:
    assert "helpers.plain.ports" in error_of(
        "helpers.plain = {enabled = false, ports = [0]}"
    )


def test_empty_list_of_denied_ports_denies_none() -> None:
    result = read("guard.denied_ports = []")
    assert result.helpers["plain"].guard.denied_ports == frozenset()


PORT = (
    "must be a port from 1 to 65535, or the name of a service, or a range such as "
    '"6660-6669"'
)
ALLOWANCE = '{ from = "10.0.0.10", hosts = ["10.0.0.0/28"], ports = [1521] }'
INTERFACE = (
    "must be the name of an interface, at most 15 characters, "
    "a * at its end matches any rest"
)
PLAIN_KEYS = (
    "enabled, ports, hooks, queue, policies, guard, nat, "
    "interfaces, sources, destinations, fail_closed, known_as, queueing"
)
DAEMON_KEYS = (
    "queue, workers, receive_buffer, flow_limit, log_level, log_format, backend, "
    "mark, user_mask, lost_ruleset, user"
)

WRONG = [
    (
        '[daemon]\nlost_ruleset = "fight"',
        'daemon.lost_ruleset = "fight": must be one of restore, warn',
    ),
    # Marks and queues.
    ("[daemon]\nmark = -1", "daemon.mark = -1: must be a number from 0 to 4294967295"),
    ("[daemon]\nmark = 3", "daemon.mark = 0x3: must be a single bit, or 0 for none"),
    (
        "[daemon]\nmark = 4\nuser_mask = 0xff",
        "daemon.mark = 0x4: is in user_mask, 0xff",
    ),
    (
        '[helpers.plain]\nqueue = 5\nsources = ["10.0.0.0/8"]\n'
        '[helpers.chosen]\nports = [7001]\nsources = ["192.0.2.0/24"]',
        "helpers.chosen.queue = 2077: must be that of plain: they share udp 7001, "
        "whose packets one rule queues",
    ),
    (
        '[helpers.plain]\nfail_closed = true\nsources = ["10.0.0.0/8"]\n'
        '[helpers.chosen]\nports = [7001]\nsources = ["192.0.2.0/24"]',
        "helpers.chosen.fail_closed = false: must be that of plain: they share udp "
        "7001, whose packets one rule queues",
    ),
    (
        "daemon.workers = 2\nhelpers.plain.queue = 7\nhelpers.chosen.queue = 8",
        "helpers.chosen.queue = 8: must be that of plain, 7, or 2 away from it: each "
        "worker takes the next number",
    ),
    # The keys that are known, at each level.
    (
        "[daemon]\nrecv_buffer = 1",
        "daemon.recv_buffer = 1: unknown key (did you mean receive_buffer?), "
        f"known are {DAEMON_KEYS}",
    ),
    (
        "[guard]\ndenied = []",
        "guard.denied = []: unknown key (did you mean denied_ports?), "
        "known are denied_ports, in_all, live_source, live_server, live_all",
    ),
    (
        "[helpers.plain]\nport = 1",
        f"helpers.plain.port = 1: unknown key (did you mean ports?), "
        f"known are {PLAIN_KEYS}",
    ),
    (
        "[helpers.plain.policies.data]\nlimit = 1",
        "helpers.plain.policies.data.limit = 1: "
        "unknown key, known are max_expected, timeout",
    ),
    (
        "[helpers.plain]\nstrict = true",
        f"helpers.plain.strict = true: unknown key, known are {PLAIN_KEYS}",
    ),
    # Helpers and policies that are not there.
    (
        "[helpers.ftp]\nports = [21]",
        "[helpers.ftp]: unknown helper, known are plain, chosen",
    ),
    (
        "[helpers.plain.policies.more]\ntimeout = 1",
        "[helpers.plain.policies.more]: unknown policy, known are data, chained",
    ),
    # Numbers and choices of the daemon.
    (
        "daemon.receive_buffer = 65535",
        "daemon.receive_buffer = 65535: must be a number from 65536 to 1073741824",
    ),
    (
        "daemon.flow_limit = 0",
        "daemon.flow_limit = 0: must be a number from 1 to 16777216",
    ),
    (
        'daemon.log_level = "loud"',
        'daemon.log_level = "loud": must be one of debug, info, warning, error',
    ),
    *(
        (
            f"budget.{key} = {value}",
            f"budget.{key} = {value}: must be a number from {low} to {high}",
        )
        for key, value, low, high in (
            ("deadline", 9, 10, 60000),
            ("memory", 1048575, 1 << 20, 1 << 40),
            ("messages", 0, 1, 65536),
            ("source_cpu", 101, 1, 100),
        )
    ),
    # Lists of the guard and of helpers.
    *(
        (f"guard.{key} = -1", f"guard.{key} = -1: must be a number from 0 to 1000000")
        for key in ("in_all", "live_source", "live_server", "live_all")
    ),
    (
        "helpers.plain.guard.per_source = 1.5",
        "helpers.plain.guard.per_source = 1.5: must be a number from 0 to 1000000",
    ),
    (
        "helpers.plain.guard.allowed_ports = [0]",
        f"helpers.plain.guard.allowed_ports = 0: {PORT}",
    ),
    (
        "helpers.plain.guard.allowed_ports = ['1-9', 7]",
        'helpers.plain.guard.allowed_ports = ["1-9", 7]: has port 7 twice',
    ),
    (
        'helpers.plain.guard.allow = "10.0.0.0/24"',
        'helpers.plain.guard.allow = "10.0.0.0/24": must be a list of tables such as '
        f"[{ALLOWANCE}]",
    ),
    (
        'helpers.plain.guard.allow = ["10.0.0.0/24"]',
        'helpers.plain.guard.allow = "10.0.0.0/24": must be a table such as '
        f"{ALLOWANCE}",
    ),
    *(
        (
            f"helpers.plain.guard.allow = [{ALLOWANCE}, {{ {entry} }}]",
            f"helpers.plain.guard.allow[1].{problem}",
        )
        for entry, problem in (
            ('from = "10.0.0.1"', f"hosts: is missing, such as {ALLOWANCE}"),
            ('hosts = ["10.0.0.1"]', f"from: is missing, such as {ALLOWANCE}"),
            (
                'from = "10.0.0.1", hosts = []',
                "hosts = []: must name a network",
            ),
            (
                'from = 7, hosts = "10.0.0.1"',
                'from = 7: must be a network such as "192.0.2.0/24"',
            ),
            (
                'from = "10.0.0.1", hosts = ["10.0.0.1/24"]',
                'hosts = ["10.0.0.1/24"]: must be a network: 10.0.0.1/24 has host bits '
                "set",
            ),
            (
                'from = "10.0.0.1", hosts = ["10.0.0.1"], ports = [0]',
                f"ports = 0: {PORT}",
            ),
            (
                'from = "10.0.0.1", hosts = ["10.0.0.1"], port = [7]',
                "port = [7]: unknown key (did you mean ports?), known are from, hosts, "
                "ports",
            ),
        )
    ),
    (
        "helpers.plain.guard.allow_hosts = ['192.0.2.1/24']",
        'helpers.plain.guard.allow_hosts = "192.0.2.1/24": must be a network: '
        "192.0.2.1/24 has host bits set",
    ),
    *(
        (
            f"helpers.plain.nat.outside = [{value!r}]",
            f"helpers.plain.nat.outside = {as_toml(value)}: must be two addresses "
            f'such as "10.0.0.3 203.0.113.3", inside and outside{more}',
        )
        for value, more in (
            ("10.0.0.3", ""),
            ("10.0.0.3 203.0.113.3 203.0.113.4", ""),
            ("10.0.0.3 host", ""),
            (5, ""),
            ("10.0.0.3 2001:db8::3", ", of one IP version"),
        )
    ),
    (
        "helpers.plain.nat.unrewritable = 'reject'",
        'helpers.plain.nat.unrewritable = "reject": must be one of accept, drop',
    ),
    (
        "helpers.chosen.nat.outside = []",
        "helpers.chosen.nat.outside = []: unknown key, known are none",
    ),
    (
        "helpers.plain.hooks = ['input']",
        'helpers.plain.hooks = "input": must be one of prerouting, output',
    ),
    (
        "helpers.plain.hooks = []",
        "helpers.plain.hooks = []: must name a hook; enabled = false turns it off",
    ),
    ("guard.denied_ports = [0]", f"guard.denied_ports = 0: {PORT}"),
    ("helpers.plain.ports = [65536]", f"helpers.plain.ports = 65536: {PORT}"),
    ("helpers.plain.ports = [true]", f"helpers.plain.ports = true: {PORT}"),
    (
        "helpers.plain.ports = []",
        "helpers.plain.ports = []: must name a port; enabled = false turns it off",
    ),
    (
        "helpers.plain.queue = 70000",
        "helpers.plain.queue = 70000: must be a number from 0 to 65535",
    ),
    (
        'helpers.plain.sources = ["192.0.2.1/24"]',
        'helpers.plain.sources = "192.0.2.1/24": '
        "must be a network: 192.0.2.1/24 has host bits set",
    ),
    (
        'helpers.plain = { sources = ["192.0.2.0/24"], destinations = ["fd00::/8"] }',
        'helpers.plain.sources = ["192.0.2.0/24"]: '
        "must share an IP version with destinations",
    ),
    (
        'helpers.plain.sources = ["fe80::%eth0/64"]',
        'helpers.plain.sources = "fe80::%eth0/64": '
        'must be a network such as "192.0.2.0/24"',
    ),
    (
        'helpers.plain.destinations = ["lan"]',
        'helpers.plain.destinations = "lan": must be a network: '
        "'lan' does not appear to be an IPv4 or IPv6 network, or \"broadcast\"",
    ),
    (
        "helpers.plain.sources = [1]",
        'helpers.plain.sources = 1: must be a network such as "192.0.2.0/24"',
    ),
    *(
        (
            f"helpers.plain.interfaces = [{text}]",
            f"helpers.plain.interfaces = {as_toml(value)}: {INTERFACE}",
        )
        for text, value in [
            ("1", 1),
            ('""', ""),
            ('"a:b"', "a:b"),
            ('".."', ".."),
            ('"a234567890123456"', "a234567890123456"),
            ('"a23456789012345*"', "a23456789012345*"),
            ('"*"', "*"),
            ('"e*0"', "e*0"),
            ('"eth 0"', "eth 0"),
            ('"eth/0"', "eth/0"),
            (r'"eth\"0"', 'eth"0'),
            (r'"eth\n0"', "eth\n0"),
            (r'"eth0\n"', "eth0\n"),
        ]
    ),
    # Limits of policies.
    *(
        (
            f"helpers.plain.policies.data.{key} = {value}",
            f"helpers.plain.policies.data.{key} = {value}: "
            f"must be a number from 1 to {most}",
        )
        for key, value, most in [
            ("max_expected", 0, 255),
            ("max_expected", 256, 255),
            ("timeout", 0, 86400),
            ("timeout", 86401, 86400),
        ]
    ),
    # Workers.
    *(
        (
            f"daemon.workers = {count}",
            f"daemon.workers = {count}: must be a number from 1 to 16",
        )
        for count in (0, 17)
    ),
    (
        "daemon = {queue = 65533, workers = 4}",
        "helpers.plain.queue = 65533: must be at most 65532: "
        "each of the 4 workers takes the next number\n"
        "cthelper.toml: helpers.chosen.queue = 65533: must be at most 65532: "
        "each of the 4 workers takes the next number",
    ),
    (
        "daemon = {queue = 7, workers = 4}\nhelpers.plain.queue = 10",
        "helpers.plain.queue = 10: must be that of chosen, 7, or 4 away from it: "
        "each worker takes the next number",
    ),
    # Plugins.
    (
        'plugins.folder = "plugins"',
        'plugins.folder = "plugins": must be an absolute path, or empty: none',
    ),
    ("plugins.path = 1", "plugins.path = 1: unknown key, known are folder"),
]


@pytest.mark.parametrize(("text", "error"), WRONG, ids=[text for text, _ in WRONG])
def test_error_names_file_key_value_and_what_is_allowed(text: str, error: str) -> None:
    assert error_of(text) == f"cthelper.toml: {error}"


LINES = st.sampled_from(
    [text for text, _ in WRONG + WRONG_TABLES]
    + ["[daemon]", "queue = 1", "[helpers.plain", "x = '"]
)


@given(st.text(max_size=40) | st.lists(LINES, max_size=4).map("\n".join))
def test_any_text_is_a_configuration_or_an_error_of_one_line(text: str) -> None:
    error = ""
    try:
        read(text)
    except ConfigError as raised:
        error = str(raised)
    assert len(error.splitlines()) == (1 if error else 0)


# Which flows the ruleset tags


@pytest.mark.parametrize(
    ("settings", "flow", "tagged"),
    [
        ("", ("10.0.0.1", "10.0.0.2", 7001), True),
        ("", ("fd00::1", "fd00::2", 7000), True),
        ("", ("10.0.0.1", "10.0.0.2", 7002), False),
        ("ports = [7002]", ("10.0.0.1", "10.0.0.2", 7002), True),
        ('sources = ["10.0.0.0/24"]', ("10.0.0.1", "10.0.1.2", 7000), True),
        ('sources = ["10.0.0.0/24"]', ("10.0.1.2", "10.0.0.1", 7000), False),
        ('sources = ["10.0.0.0/24"]', ("fd00::1", "fd00::2", 7000), False),
        ('destinations = ["fd00::/8"]', ("fe80::1", "fd00::2", 7000), True),
        ('destinations = ["fd00::/8"]', ("fd00::1", "fe80::2", 7000), False),
    ],
)
def test_flow_that_the_ruleset_tags(
    settings: str, flow: tuple[str, str, int], tagged: bool
) -> None:
    source, destination, port = flow
    ends = Endpoint(ip_address(source), 700), Endpoint(ip_address(destination), port)
    helper = read(f"[helpers.plain]\n{settings}\n").helpers["plain"]
    assert helper.tags(Tuple(UDP, *ends)) is tagged
    assert not helper.tags(Tuple(TCP, *ends))


# Two helpers whose rules would tag the same flow


def clash(plain: str, chosen: str) -> str:
    try:
        read(f"[helpers.plain]\n{plain}\n[helpers.chosen]\n{chosen}\n")
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("plain", "chosen"),
    [
        ("ports = [5353]", ""),
        ("", "ports = [7001]"),
        ('ports = [5353]\nsources = ["10.0.0.0/8"]', ""),
        ('ports = [5353]\ndestinations = ["224.0.0.0/8"]', ""),
        ("ports = [5353]", 'destinations = ["ff02::fb"]'),
        ('ports = [5353]\ninterfaces = ["wg0"]', ""),
        ('ports = [5353]\ninterfaces = ["wg0"]', 'interfaces = ["eth0", "wg*"]'),
        ('ports = [5353]\ninterfaces = ["wg1*"]', 'interfaces = ["wg*"]'),
    ],
)
def test_two_helpers_of_one_flow_are_refused(plain: str, chosen: str) -> None:
    port = 7001 if "7001" in chosen else 5353
    assert clash(plain, chosen) == (
        f"cthelper.toml: helpers.chosen.ports = [{port}]: udp {port} is tagged by "
        "plain already: let their ports, networks or interfaces differ, or set "
        "enabled = false for one"
    )


@pytest.mark.parametrize(
    ("plain", "chosen"),
    [
        ("", ""),
        ("ports = [5353]", "enabled = false"),
        ("ports = [5353]\nenabled = false", ""),
        ('ports = [5353]\ndestinations = ["224.0.0.0/25"]', ""),
        ('ports = [5353]\ndestinations = ["ff00::/8"]', ""),
        ('ports = [5353]\nsources = ["fd00::/8"]', ""),
        ('ports = [5353]\ninterfaces = ["wg0"]', 'interfaces = ["wg1"]'),
        ('ports = [5353]\ninterfaces = ["wg10*"]', 'interfaces = ["wg1"]'),
        ('ports = [5353]\ninterfaces = ["a*"]', 'interfaces = ["b*"]'),
    ],
)
def test_helpers_of_different_flows_share_a_port(plain: str, chosen: str) -> None:
    assert clash(plain, chosen) == ""


def test_helpers_of_different_transports_or_hooks_share_a_port() -> None:
    class Stream(Plain):
        name = "stream"
        transports = frozenset({TCP})

    class Ours(Plain):
        name = "ours"
        hooks = frozenset({Hook.OUTPUT})

    class Others(Plain):
        name = "others"
        hooks = frozenset({Hook.PREROUTING})

    helpers = {each.name: each for each in (Stream, Ours, Others)}
    assert len(parse("", PATH, helpers).helpers) == 3


# The folder of plugins


def test_folder_of_plugins_is_the_default_one_if_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, default = tmp_path / "cthelper.toml", tmp_path / "default"
    monkeypatch.setattr(config, "DEFAULT_PLUGINS", default)
    path.write_text("")
    assert plugin_folder(read_file(path)) is None
    default.mkdir()
    assert plugin_folder(read_file(path)) == default
    path.write_text("plugins.folder = ''")
    assert plugin_folder(read_file(path)) is None


def test_folder_of_plugins_that_is_named_must_be_there(tmp_path: Path) -> None:
    path, folder = tmp_path / "cthelper.toml", tmp_path / "mine"
    path.write_text(f"plugins.folder = '{folder}'\n[helpers.unknown]\n")
    with pytest.raises(ConfigError) as caught:
        plugin_folder(read_file(path))
    assert str(caught.value) == (
        f'{path}: plugins.folder = "{folder}": must be a folder that is there'
    )
    folder.mkdir()
    # What the file says of helpers is not judged before they are known.
    assert plugin_folder(read_file(path)) == folder
