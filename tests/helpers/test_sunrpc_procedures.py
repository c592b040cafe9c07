# SPDX-License-Identifier: GPL-2.0-or-later
"""SunRPC beyond GETPORT and GETADDR: lists, remote calls, groups, denied programs."""

from collections.abc import Iterable
from typing import Any, Final

import pytest

from cthelper.core.api import (
    ON_LINK,
    TCP,
    UDP,
    Expect,
    ExpectationRefused,
    Malformed,
    Message,
    Policy,
    Transport,
)
from cthelper.core.errors import ConfigError
from cthelper.core.queue.sieve import compiled
from cthelper.core.queue.sieve import matches as matches_bytes
from cthelper.helpers.rpcbind import PORTMAPPER
from cthelper.helpers.sunrpc import SunRpc
from cthelper.testing import Line, any_segmentation, defaults, play
from tests.core.builders import (
    CLIENT,
    CLIENT6,
    SERVER,
    SERVER6,
    endpoint,
    flow_tuple,
)
from tests.helpers.inspected import configured
from tests.helpers.test_sunrpc import (
    MOUNTD,
    NFS,
    PORT,
    WILDCARD,
    address,
    call,
    exchange,
    fault,
    getaddr,
    getport,
    handles,
    line,
    opaque,
    port,
    record,
    reply,
    service,
    u32,
    uaddr,
)

STATUS: Final = 100024
EVERYTHING: Final = (
    *("getport", "getaddr", "getversaddr", "getaddrlist"),
    *("dump", "callit", "bcast", "indirect"),
)
# Program, netid and universal address of each service in a list.
Listed = list[tuple[int, str, str]]


def rpcb(program: int, netid: str, text: str) -> bytes:
    """Program, version, netid, address and owner."""
    words = [netid, text, "superuser"]
    return u32(program, 3) + b"".join(opaque(each.encode()) for each in words)


def linked(items: Iterable[bytes]) -> bytes:
    return b"".join(u32(1) + each for each in items) + u32(0)


def dump(xid: int, version: int = 3) -> bytes:
    return call(xid, (version, 4))


def dumped(xid: int, services: Listed, version: int = 3) -> bytes:
    """The reply to DUMP; of version 2 with the ports of the addresses alone."""
    if version > 2:
        return reply(xid, linked(rpcb(*each) for each in services))
    items = []
    for program, netid, text in services:
        high, low = map(int, text.split(".")[-2:])
        items.append(u32(program, 3, {"tcp": 6, "udp": 17}[netid], high * 256 + low))
    return reply(xid, linked(items))


def getaddrlist(xid: int, netid: str = "tcp", program: int = MOUNTD) -> bytes:
    return call(xid, (4, 11), rpcb(program, netid, ""))


def addresses(xid: int, services: Iterable[tuple[str, str]]) -> bytes:
    """The reply to GETADDRLIST with these netids and addresses."""
    return reply(
        xid,
        linked(
            opaque(text.encode())
            + opaque(netid.encode())
            + u32(1)
            + opaque(b"inet")
            + opaque(netid.removesuffix("6").encode())
            for netid, text in services
        ),
    )


def callit(
    xid: int, procedure: tuple[int, int] = (2, 5), program: int = MOUNTD
) -> bytes:
    return call(xid, procedure, u32(program, 3, 0) + opaque(b"some arguments"))


def called(xid: int, procedure: tuple[int, int] = (2, 5), number: int = PORT) -> bytes:
    """The reply to CALLIT and its kin."""
    if procedure[0] == 2:
        place = u32(number)
    else:
        place = opaque(uaddr(number=number).encode() if number else b"")
    return reply(xid, place + opaque(b"a result"))


def listed(number: int, transport: Transport, *, permanent: bool = True) -> Expect:
    """What DUMP asks for."""
    return Expect(
        endpoint(SERVER, number),
        "dump",
        transport=transport,
        permanent=permanent,
        helper="sunrpc",
    )


def heard(port: int = 650) -> Expect:
    """What a remote call to one server asks for: its answer, from any port."""
    return Expect(endpoint(CLIENT, port), "broadcast", permanent=True, helper="sunrpc")


def wide(transport: Transport = UDP, **options: Any) -> Line:
    """A flow that every procedure opens something for."""
    return line(transport, **{"procedures": EVERYTHING, **options})


def refused(*exchanged: Message, helper: SunRpc | None = None) -> tuple[str, str]:
    """Reason and text of the refusal that the last of these messages ends with."""
    helper = helper or SunRpc()
    assert play(helper, exchanged[:-1]) == []
    with pytest.raises(ExpectationRefused) as caught:
        play(helper, exchanged[-1:])
    return caught.value.reason, caught.value.detail


# GETVERSADDR


@fault(1)
@handles("GETVERSADDR (v4, 9)", "as GETADDR")
@pytest.mark.parametrize("on", [TCP, UDP], ids=str)
@pytest.mark.parametrize("version", [4, 6])
def test_getversaddr_opens_what_getaddr_opens(on: Transport, version: int) -> None:
    netid = f"{on}6" if version == 6 else str(on)
    host = SERVER6 if version == 6 else SERVER
    asked = call(7, (4, 9), rpcb(MOUNTD, netid, ""))
    effects = exchange(asked, address(7, uaddr(host)), line(on, version=version))
    assert effects == [service(transport=on, host=host)]
    assert exchange(asked, address(7, ""), line(on, version=version)) == []


def test_getversaddr_for_another_transport_opens_nothing_unless_trusted() -> None:
    asked = call(7, (4, 9), rpcb(MOUNTD, "tcp", ""))
    assert exchange(asked, address(7)) == []
    trusted = exchange(asked, address(7), line(netid="trust"))
    assert trusted == [service(transport=TCP)]


# GETADDRLIST


@fault(1)
@handles("GETADDRLIST (v4, 11)", "as GETADDR, each address that it lists, 8 at most")
@pytest.mark.parametrize("on", [TCP, UDP], ids=str)
@pytest.mark.parametrize("asked", ["tcp", "udp6", "", "anything"])
def test_getaddrlist_opens_each_address_by_its_own_transport(
    on: Transport, asked: str
) -> None:
    answered = addresses(7, [("udp", uaddr(number=2000)), ("tcp", uaddr(number=3000))])
    effects = exchange(getaddrlist(7, asked), answered, line(on))
    assert effects == [service(2000, UDP), service(3000, TCP)]


@pytest.mark.parametrize(("version", "host"), [(4, SERVER), (6, SERVER6)])
def test_list_opens_what_the_flows_ip_version_reaches(version: int, host: str) -> None:
    answered = addresses(
        7,
        [
            ("udp6", uaddr(SERVER6, 2006)),
            ("udp", uaddr(SERVER, 2004)),
            ("local", "/run/rpcbind.sock"),
            ("tcp", uaddr(WILDCARD, 3004)),
            ("tcp6", uaddr("::", 3006)),
        ],
    )
    assert exchange(getaddrlist(7), answered, line(version=version)) == [
        service(2000 + version, UDP, host=host),
        service(3000 + version, TCP, host=host),
    ]


def test_address_that_is_listed_twice_is_opened_once() -> None:
    answered = addresses(
        7, [("udp", uaddr()), ("tcp", uaddr()), ("udp", uaddr()), ("udp", uaddr("::"))]
    )
    assert exchange(getaddrlist(7), answered) == [service(), service(transport=TCP)]


def test_no_more_than_eight_addresses_are_opened() -> None:
    answered = addresses(7, [("udp", uaddr(number=2000 + n)) for n in range(20)])
    effects = exchange(getaddrlist(7), answered)
    assert effects == [service(2000 + n) for n in range(8)]


def test_every_port_of_a_list_is_opened_at_the_address_that_was_asked_first() -> None:
    # A server with two addresses lists each service at both of them.
    listing = [
        (netid, uaddr(host, number))
        for number in range(2000, 2003)
        for netid in ("udp", "tcp")
        for host in ("203.0.113.9", SERVER)
    ]
    own = [service(number, on) for number in range(2000, 2003) for on in (UDP, TCP)]
    others = [
        service(2000, on, host="203.0.113.9", alternative=True) for on in (UDP, TCP)
    ]
    # Eight in all.
    assert exchange(getaddrlist(7), addresses(7, listing)) == [*own, *others]


@pytest.mark.parametrize("procedure", [(3, 5), (4, 5), (4, 10)])
def test_port_of_a_remote_call_is_opened_at_the_address_that_was_asked(
    procedure: tuple[int, int],
) -> None:
    answered = reply(7, opaque(uaddr("203.0.113.9").encode()) + opaque(b"a result"))
    assert exchange(callit(7, procedure), answered, wide(TCP)) == [
        service(transport=TCP),
        service(transport=TCP, host="203.0.113.9", alternative=True),
    ]


def test_ports_of_a_dump_are_opened_at_the_address_that_was_asked() -> None:
    answered = dumped(7, [(MOUNTD, "udp", uaddr("203.0.113.9", 2000))])
    own, other = exchange(dump(7), answered, wide())
    assert isinstance(other, Expect)
    assert own == listed(2000, UDP)
    assert (other.endpoint, other.alternative) == (endpoint("203.0.113.9", 2000), True)


@pytest.mark.parametrize(
    "services", [[], [("local", "/run/rpcbind.sock")], [("udp", "")]], ids=repr
)
def test_list_without_an_address_opens_nothing(services: list[tuple[str, str]]) -> None:
    assert exchange(getaddrlist(7), addresses(7, services)) == []


# DUMP

SERVICES: Final[Listed] = [
    (PORTMAPPER, "tcp", uaddr(WILDCARD, 111)),
    (PORTMAPPER, "udp", uaddr(WILDCARD, 111)),
    (MOUNTD, "udp", uaddr(WILDCARD, 2000)),
    (MOUNTD, "tcp", uaddr(WILDCARD, 3000)),
    (NFS, "tcp", uaddr(SERVER, 2049)),
    # Another version of it, and another program at the same port.
    (NFS, "tcp", uaddr(SERVER, 2049)),
    (100227, "tcp", uaddr(SERVER, 2049)),
]
OPENED: Final = [listed(2000, UDP), listed(3000, TCP), listed(2049, TCP)]
DUMPED: Final = "where configured: client > every service listed, 32 at most, 300 s"


@fault(2)
@pytest.mark.parametrize(
    "version",
    [
        pytest.param(each, marks=handles(f"DUMP (v{each}, 4)", DUMPED))
        for each in (2, 3, 4)
    ],
)
@pytest.mark.parametrize("on", [TCP, UDP], ids=str)
def test_dump_opens_every_service_once_and_passes_over_the_portmapper(
    version: int, on: Transport
) -> None:
    asked, answered = dump(7, version), dumped(7, SERVICES, version)
    assert exchange(asked, answered, wide(on)) == OPENED
    assert exchange(asked, answered, line(on)) == []


def test_dump_of_addresses_opens_what_the_flows_ip_version_reaches() -> None:
    services = [(MOUNTD, "udp6", uaddr("::", 2006)), (MOUNTD, "udp", uaddr("::", 2004))]
    assert exchange(dump(7), dumped(7, services), wide()) == [listed(2004, UDP)]
    (found,) = exchange(dump(7), dumped(7, services), wide(version=6))
    assert isinstance(found, Expect)
    assert found.endpoint == endpoint(SERVER6, 2006)


def test_no_more_than_32_services_are_opened() -> None:
    services = [(MOUNTD, "udp", uaddr(number=2000 + n)) for n in range(100)]
    effects = exchange(dump(7), dumped(7, services), wide())
    assert effects == [listed(2000 + n, UDP) for n in range(32)]


def test_dump_in_oneshot_mode_opens_one_flow_to_each() -> None:
    effects = exchange(dump(7), dumped(7, SERVICES), wide(mode="oneshot"))
    assert effects == [
        listed(2000, UDP, permanent=False),
        listed(3000, TCP, permanent=False),
        listed(2049, TCP, permanent=False),
    ]


@pytest.mark.parametrize("version", [2, 3, 4])
def test_dump_of_nothing_but_the_portmapper_opens_nothing(version: int) -> None:
    for services in ([], SERVICES[:2]):
        answered = dumped(7, services, version)
        assert exchange(dump(7, version), answered, wide()) == []


@pytest.mark.parametrize("version", [2, 3, 4])
def test_dump_that_does_not_end_is_malformed(version: int) -> None:
    answered = dumped(7, SERVICES, version)
    for short in (answered[:-4], answered[:-5], answered[:-4] + u32(1)):
        with pytest.raises(Malformed):
            exchange(dump(7, version), short, wide())


def test_lists_have_a_policy_of_their_own() -> None:
    # An expectation of another policy than the first must name a helper.
    assert SunRpc.policies[1:] == (
        Policy("broadcast", max_expected=8, timeout=10),
        Policy("dump", max_expected=32, timeout=300),
    )


# Remote calls to one server

REMOTE: Final = [(2, 5), (3, 5), (4, 5), (4, 10)]
NAMES: Final = {
    (2, 5): "CALLIT",
    (3, 5): "CALLIT",
    (4, 5): "BCAST",
    (4, 10): "INDIRECT",
}


def remote(outcome: str, procedures: list[tuple[int, int]]) -> list[Any]:
    """A case for each procedure, with its mark."""
    return [
        pytest.param(
            each,
            id=f"v{each[0]} {NAMES[each]}",
            marks=handles(f"{NAMES[each]} (v{each[0]}, {each[1]})", outcome),
        )
        for each in procedures
    ]


@fault(2)
@pytest.mark.parametrize(
    "procedure",
    remote(
        "where configured, to one server: client > server:port, 300 s; over UDP: "
        "server > asker's port, 10 s",
        REMOTE,
    ),
)
@pytest.mark.parametrize("on", [TCP, UDP], ids=str)
def test_remote_call_opens_the_port_of_the_program_that_was_called(
    procedure: tuple[int, int], on: Transport
) -> None:
    asked, answered = callit(7, procedure), called(7, procedure)
    # The portmapper calls over UDP, and rpcbind as it was called itself.
    meant = UDP if procedure[0] == 2 else on
    *before, found = exchange(asked, answered, wide(on))
    assert found == service(transport=meant)
    # Linux's rpcbind would have answered from another port, where it is over UDP.
    assert before == ([heard()] if on is UDP else [])
    assert exchange(asked, answered, line(on)) == []


@pytest.mark.parametrize("procedure", REMOTE)
def test_remote_call_of_what_is_not_there_opens_nothing(
    procedure: tuple[int, int],
) -> None:
    answered = called(7, procedure, number=0)
    assert exchange(callit(7, procedure), answered, wide(TCP)) == []
    assert exchange(callit(7, procedure), answered, wide()) == [heard()]


@pytest.mark.parametrize("procedure", REMOTE)
def test_remote_call_of_the_portmapper_itself_is_refused(
    procedure: tuple[int, int],
) -> None:
    flow = wide(TCP)
    asked = record(callit(7, procedure, program=PORTMAPPER))
    answered = record(called(7, procedure))
    reason, _ = refused(flow.sent(asked), flow.answered(answered))
    assert reason == "portmapper"


def test_list_for_the_portmapper_itself_is_refused() -> None:
    flow = line()
    answered = addresses(7, [("udp", uaddr(number=111)), ("tcp", uaddr(number=111))])
    asked = getaddrlist(7, program=PORTMAPPER)
    reason, _ = refused(flow.sent(asked), flow.answered(answered))
    assert reason == "portmapper"


@pytest.mark.parametrize("procedure", REMOTE)
def test_remote_call_that_does_not_parse_is_malformed(
    procedure: tuple[int, int],
) -> None:
    asked, answered, flow = callit(7, procedure), called(7, procedure), wide()
    helper = SunRpc()
    with pytest.raises(Malformed):
        play(helper, [flow.sent(asked[:-1])])
    play(helper, [flow.sent(asked)])
    with pytest.raises(Malformed):
        play(helper, [flow.answered(answered[:-1])])


# Calls to a group

BROADCAST: Final = "198.51.100.255"
GROUP6: Final = "ff02::202"


def to_group(
    destination: str = BROADCAST,
    *,
    version: int = 4,
    forwarded: bool = False,
    **options: Any,
) -> Line:
    """A flow to a group; the broadcast address of a network is seen to be one."""
    source = CLIENT if version == 4 else CLIENT6
    return Line(
        flow_tuple(UDP, (source, 45070), (destination, 111)),
        {**defaults(SunRpc), "procedures": EVERYTHING, **options},
        forwarded=forwarded,
        group=destination == BROADCAST,
    )


def answers(host: str = CLIENT, *, source_port: int | None = None) -> Expect:
    """What a call to a group asks for."""
    return Expect(
        endpoint(host, 45070),
        "broadcast",
        source=ON_LINK,
        source_port=source_port,
        permanent=True,
        helper="sunrpc",
    )


GROUPS: Final = pytest.mark.parametrize(
    ("destination", "version"),
    [(BROADCAST, 4), ("255.255.255.255", 4), ("224.0.0.1", 4), (GROUP6, 6)],
)


@fault(2)
@pytest.mark.parametrize(
    "procedure",
    remote("where configured, to a group: link > asker's port, 10 s", REMOTE[:3]),
)
@GROUPS
def test_call_to_a_group_opens_the_port_that_it_is_sent_from(
    procedure: tuple[int, int], destination: str, version: int
) -> None:
    # To any port of any host on the link: servers answer from ports of their own.
    flow = to_group(destination, version=version)
    host = CLIENT if version == 4 else CLIENT6
    assert play(SunRpc(), [flow.sent(callit(7, procedure))]) == [answers(host)]
    quiet = to_group(destination, version=version, procedures=("getport",))
    assert play(SunRpc(), [quiet.sent(callit(7, procedure))]) == []


def test_each_call_to_a_group_opens_the_port_anew() -> None:
    flow = to_group(mode="oneshot")
    messages = [
        flow.sent(callit(7, (3, 5))),
        flow.sent(callit(8)),
        flow.sent(callit(8)),
    ]
    assert play(SunRpc(), messages) == [answers()] * 3


def test_denied_remote_call_over_tcp_leaves_no_earlier_call_pending() -> None:
    helper, flow = SunRpc(), wide(transport=TCP, deny_programs=(NFS,))
    assert play(helper, [flow.sent(record(getport(7)))]) == []
    assert play(helper, [flow.sent(record(callit(7, program=NFS)))]) == []
    with pytest.raises(ExpectationRefused, match="denied-program"):
        play(helper, [flow.answered(record(called(7)))])


@handles("INDIRECT (v4, 10)", "to a group: opens nothing")
def test_other_calls_to_a_group_open_nothing() -> None:
    flow = to_group()
    asked = [callit(1, (4, 10)), getport(2), getaddr(3), getaddrlist(4), dump(5)]
    assert play(SunRpc(), [flow.sent(each) for each in asked]) == []
    # Nor do replies in a flow of which no host is the other end.
    answered = [called(1, (4, 10)), port(2), address(3), dumped(5, SERVICES)]
    helper = SunRpc()
    play(helper, [flow.sent(each) for each in asked])
    assert play(helper, [flow.answered(each) for each in answered]) == []


def test_call_to_a_group_is_not_answered_in_its_own_flow() -> None:
    flow = to_group()
    helper = SunRpc()
    assert play(helper, [flow.sent(callit(7))]) == [answers()]
    assert play(helper, [flow.answered(called(7))]) == []


# By their names: the calls that discovery is about.
LOOKUPS: Final = {
    "GETPORT (v2, 3)": getport(7),
    "GETADDR (v3, 3)": getaddr(7, version=3),
    "GETADDR (v4, 3)": getaddr(7),
    "GETVERSADDR (v4, 9)": call(7, (4, 9), rpcb(MOUNTD, "udp", "")),
    "GETADDRLIST (v4, 11)": getaddrlist(7),
}
DISCOVERING: Final = ("getport", "discovery")


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(
            asked,
            id=name,
            marks=handles(
                name, "where configured, to a group: link port 111 > asker's port, 10 s"
            ),
        )
        for name, asked in LOOKUPS.items()
    ],
)
@GROUPS
def test_lookup_in_a_group_is_answered_from_the_port_that_was_asked(
    asked: bytes, destination: str, version: int
) -> None:
    flow = to_group(destination, version=version, procedures=DISCOVERING)
    host = CLIENT if version == 4 else CLIENT6
    found = answers(host, source_port=111)
    # Each call opens the port anew, also one that is sent again.
    helper = SunRpc()
    assert play(helper, [flow.sent(asked), flow.sent(asked)]) == [found, found]
    # Nothing in its own flow answers it, whose other end is no host.
    assert play(helper, [flow.answered(port(7)), flow.answered(address(7))]) == []


def test_lookup_of_one_server_needs_its_own_name() -> None:
    quiet = line(procedures=("discovery",))
    assert exchange(getport(7), port(7), quiet) == []
    assert exchange(getport(7), port(7), line(procedures=DISCOVERING)) == [service()]


def test_prefilter_of_discovery_reads_all_that_it_is_about() -> None:
    config = configured(SunRpc, 'procedures = ["discovery"]')
    matches = compiled(config.prefilter.request)
    assert all(matches_bytes(matches, each) for each in LOOKUPS.values())
    assert not matches_bytes(matches, dump(7))


@pytest.mark.parametrize("asked", [callit(7), getport(7)], ids=["remote", "lookup"])
def test_call_of_another_host_to_a_group_is_refused(asked: bytes) -> None:
    flow = to_group(forwarded=True, procedures=(*EVERYTHING, "discovery"))
    reason, _ = refused(flow.sent(asked))
    assert reason == "forwarded"


@pytest.mark.parametrize("asked", [callit(7), getport(7)], ids=["remote", "lookup"])
def test_call_to_a_group_behind_nat_is_refused(asked: bytes) -> None:
    flow = to_group(procedures=(*EVERYTHING, "discovery"))
    message = flow.sent(asked)
    message.reply = flow_tuple(UDP, (BROADCAST, 111), ("192.0.2.99", 45070))
    assert refused(message)[0] == "nat"


def test_other_calls_of_another_host_are_not_refused() -> None:
    flow = to_group(forwarded=True)
    assert play(SunRpc(), [flow.sent(getport(7))]) == []
    quiet = to_group(forwarded=True, procedures=("dump",))
    assert play(SunRpc(), [quiet.sent(callit(7))]) == []


def test_call_to_a_group_for_the_portmapper_opens_the_port_as_well() -> None:
    # "rpcinfo -b portmapper 2": which hosts have one?
    message = to_group().sent(callit(7, program=PORTMAPPER))
    assert play(SunRpc(), [message]) == [answers()]


# Programs


DENIED: Final = ("denied-program", "program 100003 (nfs), by deny_programs")
NOT_ALLOWED: Final = ("denied-program", "program 100003 (nfs), by allow_programs")


@fault(10)
@pytest.mark.parametrize(
    ("options", "denied"),
    [
        ({"deny_programs": (NFS,)}, DENIED),
        ({"allow_programs": (MOUNTD,)}, NOT_ALLOWED),
        ({"allow_programs": (NFS, MOUNTD), "deny_programs": (STATUS, NFS)}, DENIED),
    ],
    ids=["denied", "not allowed", "allowed and denied"],
)
def test_program_that_may_not_be_opened_is_refused(
    options: dict[str, Any], denied: tuple[str, str]
) -> None:
    flow, group = wide(**options), to_group(**options)
    exchanges = [
        (getport(7, NFS), port(7)),
        (getaddr(7, program=NFS), address(7)),
        (call(7, (4, 9), rpcb(NFS, "udp", "")), address(7)),
        (getaddrlist(7, program=NFS), addresses(7, [("udp", uaddr())] * 2)),
    ]
    for asked, answered in exchanges:
        assert refused(flow.sent(asked), flow.answered(answered)) == denied
    # Remote calls over UDP before they are answered.
    stream = wide(TCP, **options)
    for procedure in REMOTE:
        asked, answered = callit(7, procedure, NFS), called(7, procedure)
        assert refused(flow.sent(asked)) == denied
        messages = stream.sent(record(asked)), stream.answered(record(answered))
        assert refused(*messages) == denied
    for procedure in REMOTE[:3]:
        assert refused(group.sent(callit(7, procedure, NFS))) == denied
    found = to_group(**{"procedures": DISCOVERING, **options})
    assert refused(found.sent(getport(7, NFS))) == denied
    # The other one may.
    assert exchange(getport(7), port(7), flow) == [service()]
    assert play(SunRpc(), [group.sent(callit(7))]) == [answers()]


def test_denied_program_that_is_not_there_is_not_refused() -> None:
    flow = wide(deny_programs=(NFS,))
    assert exchange(getport(7, NFS), port(7, 0), flow) == []
    assert exchange(getaddrlist(7, program=NFS), addresses(7, []), flow) == []


def test_allowed_programs_of_a_dump_are_opened_and_the_others_refused_at_once() -> None:
    answered = record(dumped(7, [*SERVICES, (STATUS, "udp", uaddr(number=4000))]))
    # One port is that of a denied program and of one that is not.
    for options, denied in [
        ({"deny_programs": (MOUNTD, NFS)}, "100003 (nfs) and 1 more, by deny_programs"),
        (
            {"allow_programs": (STATUS, NFS)},
            "100005 (mountd) and 1 more, by allow_programs",
        ),
    ]:
        flow = wide(TCP, **options)
        messages = [flow.sent(record(dump(7))), flow.answered(answered)]
        assert any_segmentation(SunRpc, messages) == [
            listed(2049, TCP),
            listed(4000, UDP),
            f"denied-program: program {denied}",
        ]


def test_programs_are_configured_by_name_or_number() -> None:
    lines = ('allow_programs = ["nfs", 100005]', 'deny_programs = ["ypserv", 7]')
    options = configured(SunRpc, *lines).options
    assert options["allow_programs"] == (NFS, MOUNTD)
    assert options["deny_programs"] == (100004, 7)
    assert options["procedures"] == EVERYTHING[:4]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('allow_programs = ["nsf"]', '"nsf": must be a number from 0 to 4294967295'),
        ("deny_programs = [-1]", "-1: must be a number from 0 to 4294967295"),
        ('deny_programs = "nfs"', '"nfs": must be a list'),
        ('procedures = ["null"]', '"null": must be one of getport, getaddr, '),
        ('procedures = "dump"', '"dump": must be a list'),
    ],
)
def test_what_is_no_program_or_procedure_is_no_configuration(
    line: str, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        configured(SunRpc, line)
