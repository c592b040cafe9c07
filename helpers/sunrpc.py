# SPDX-License-Identifier: GPL-2.0-or-later
"""SunRPC portmapper and rpcbind (RFC 1833): a reply names the port of a service.

A client asks port 111 where a program is: with GETPORT of version 2, or with GETADDR,
GETVERSADDR and GETADDRLIST of versions 3 and 4, which modern clients use first. The
reply holds only the answer, so it means nothing without its call: calls are kept by xid
until they are answered, 60 s at most. GETPORT is answered with a port; GETADDR with a
universal address, host and port in one string (RFC 5665, section 5.2.3), whose host is
the server's address or unspecified; GETADDRLIST with a list of them.

Other procedures announce services, too, but more than a client needs, and so are read
only where the option `procedures` has them. DUMP lists all that is registered. CALLIT,
BCAST and INDIRECT have the server call a program itself, and their reply names its
port. Over UDP Linux's rpcbind sends this reply from a port of its own choice: the port
that was asked from is opened to the server, and to all hosts on the link where CALLIT
or BCAST of this host went to a group, which every server there answers. Instruments
are looked for by a GETPORT that goes to a group (VXI-11 has it so): each answers
from port 111. With "discovery" among the procedures that opens the port that asked to
port 111 of all hosts on the link, and so do GETADDR and its kin.

Messages are RPC calls and replies (RFC 5531, section 9) in XDR; on TCP in records of
one or more fragments (section 11). Over UDP libtirpc calls the service from the very
port that asked, over TCP from a new one: the source port is left open.

A server with several addresses announces one of them, which need not be the one that
was asked. Some clients go there (libtirpc), others take the port alone (libnfs): the
port is opened at the address that was asked, and at the announced one where the guard's
allow_hosts has it.

Behind destination NAT the server announces its own address, or none, and the client
must be told the one that it knows: the universal address is rewritten, with its XDR
length, its padding and the record's marks. Another port is written where the kernel has
given the announced one to another flow. A call to a group is refused behind NAT.
"""

from collections.abc import (
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Final

from cthelper.core.api import (
    ON_LINK,
    ORIGINAL,
    PEER,
    TCP,
    UDP,
    Address,
    Cursor,
    Done,
    Effect,
    Effects,
    Endpoint,
    ExpectationRefused,
    Grant,
    Helper,
    Malformed,
    Match,
    Message,
    Option,
    OptionValue,
    Policy,
    Prefilter,
    Rewrite,
    Transport,
    expect,
)
from cthelper.helpers.rpcbind import (
    CALL,
    NETIDS,
    PORTMAPPER,
    REPLY,
    TRANSPORTS,
    Arguments,
    Call,
    PortMapping,
    RemoteCall,
    Rpcb,
    Service,
    call_matches,
    program_number,
    program_text,
    read_arguments,
    read_call,
    read_failure,
    read_head,
    read_services,
    read_success,
)
from cthelper.helpers.xdr import join_record, record_length, rewrite_record

_NAME: Final = "sunrpc"

# Over UDP anybody can forge calls, which push a real one out where so many of them come
# before its answer; and each takes some 300 bytes for a minute, in every flow.
_PENDING_LIMIT: Final = 128
_PENDING_SECONDS: Final = 60.0
# What one takes in memory, in bytes.
_PENDING_SIZE: Final = 350
# A client calls, and is answered: what opens nothing is answered, too.
_IN_VAIN_LIMIT: Final = 64
# As many as the policies hold, so that a list does not evict what it has just opened.
_LISTED: Final = {"DUMP": 32, "GETADDRLIST": 8}

_MODE: Final = Option(
    "mode",
    "service",
    "service: the client may open any number of flows to the announced port "
    "until the policy's timeout; oneshot: one flow",
    choices=("service", "oneshot"),
)
_NETID: Final = Option(
    "netid",
    "match",
    "match: a GETADDR call that names another transport than its own opens "
    "nothing; trust: it opens the transport that it names, for servers that go by it",
    choices=("match", "trust"),
)
_LOOKUPS: Final = ("getport", "getaddr", "getversaddr", "getaddrlist")
_DISCOVERY: Final = "discovery"
_SERVED: Final[Option[tuple[str, ...]]] = Option(
    "procedures",
    _LOOKUPS,
    "procedures that open something, out of these and dump, callit, bcast, indirect, "
    "discovery; dump opens all that the server lists; the next three open the port "
    "that they are sent from, over UDP, to the server, or to the link where they go to "
    "a group; discovery is the first four to a group, and opens it to port 111 of the "
    "link",
    choices=(*_LOOKUPS, "dump", "callit", "bcast", "indirect", _DISCOVERY),
)
_ALLOWED: Final[Option[tuple[int, ...]]] = Option(
    "allow_programs",
    (),
    'the only programs that may be opened, by number or name such as "nfs"; empty: all',
    element=program_number,
)
_DENIED: Final[Option[tuple[int, ...]]] = Option(
    "deny_programs", (), "programs that are never opened", element=program_number
)


# Not frozen, which would treble what it costs to make one for each entry of a list.
@dataclass(slots=True)
class _Place:
    """Where a service is, whichever program it is."""

    transport: Transport
    host: Address
    port: int

    def __init__(self, transport: Transport, host: Address, port: int) -> None:
        self.transport = transport
        self.host = host
        self.port = port

    def __hash__(self) -> int:
        return hash((self.transport, self.host, self.port))

    @property
    def endpoint(self) -> Endpoint:
        """Its address and port."""
        return Endpoint(self.host, self.port)

    @property
    def way(self) -> tuple[Transport, int]:
        """Transport and port, which is all that some clients take."""
        return self.transport, self.port


_Opened = tuple[_Place, Endpoint, Endpoint]
"""A place, its endpoint, and the one that the client is to be told."""


@dataclass(slots=True)
class _Offer:
    """A service as this flow's client is to reach it."""

    program: int
    place: _Place

    def __init__(self, program: int, place: _Place) -> None:
        self.program = program
        self.place = place

    def __str__(self) -> str:
        place = self.place
        return f"program {self.program} at {place.transport} {place.endpoint}"

    def at(self, server: Address) -> _Place:
        """Where it is for who takes the port alone, and goes to the server."""
        return _Place(self.place.transport, server, self.place.port)


@dataclass(slots=True)
class _Pending:
    """A call that waits for its reply; `opened` is what that opens; None: none came.

    Most open one place, which stands there by itself. `xid` is its number, by which the
    reply names it; `transport` is that of a service whose reply does not say it.
    """

    xid: int
    call: Call
    arguments: Arguments | None
    transport: Transport
    expires: float
    opened: _Place | tuple[_Place, ...] | None

    def __init__(
        self,
        xid: int,
        call: Call,
        arguments: Arguments | None,
        transport: Transport,
        expires: float,
        opened: _Place | tuple[_Place, ...] | None = None,
    ) -> None:
        self.xid = xid
        self.call = call
        self.arguments = arguments
        self.transport = transport
        self.expires = expires
        self.opened = opened

    @property
    def program(self) -> int:
        """The program that was asked for; DUMP asks the portmapper about itself."""
        return PORTMAPPER if self.arguments is None else self.arguments.program

    def answer(self, places: tuple[_Place, ...]) -> None:
        """Take a reply. Raises ExpectationRefused where one has said otherwise.

        A spoofed reply that comes late must not open anything more.
        """
        opened = places[0] if len(places) == 1 else places
        if places and self.opened and self.opened != opened:
            was = self.opened
            earlier = (was,) if isinstance(was, _Place) else was
            now, before = (
                _brief([str(place.endpoint) for place in each])
                for each in (places, earlier)
            )
            raise ExpectationRefused(
                "second-answer", f"{now} after {before} for one call"
            )
        self.opened = opened or self.opened or ()

    def repeats(self, other: "_Pending") -> bool:
        """Whether both are one call, which was sent again."""
        return self.call == other.call and self.arguments == other.arguments

    def waits(self, now: float) -> bool:
        """Whether its reply is still to come."""
        return self.opened is None and self.expires > now


class SunRpc(Helper):
    """SunRPC portmapper and rpcbind: the services that their replies name."""

    name = _NAME
    transports = frozenset({TCP, UDP})
    ports = (111,)
    policies = (
        Policy("service", max_expected=8, timeout=300),
        Policy("broadcast", max_expected=8, timeout=10),
        Policy("dump", max_expected=32, timeout=300),
    )
    options = (_MODE, _NETID, _SERVED, _ALLOWED, _DENIED)
    # Services that root starts bind reserved ports (bindresvport takes 512 to 1023).
    lowest_port = 512

    __slots__ = ("_in_vain", "_pending")

    def __init__(self) -> None:
        # Messages over TCP that neither call the portmapper nor answer a call.
        self._in_vain = 0
        # Most flows have one, and there may be a hundred thousand; else by xid.
        self._pending: _Pending | dict[int, _Pending] | None = None

    @classmethod
    def prefilter(cls, options: Mapping[str, OptionValue]) -> Prefilter:
        """Calls of the procedures that open something, and replies to these."""
        served = options[_SERVED.name]
        assert isinstance(served, tuple)  # noqa: S101 - by its declaration
        names = {*served, *(_LOOKUPS if _DISCOVERY in served else ())}
        return Prefilter(
            request=call_matches({str(name).upper() for name in names}),
            reply=((Match(32, 32, REPLY),),),
            answers=True,
        )

    def footprint(self) -> int:
        """What the calls take."""
        pending = self._pending
        return _PENDING_SIZE * (len(pending) + 1 if isinstance(pending, dict) else 1)

    def frame(self, data: memoryview) -> int | None:
        """Length of one record."""
        return record_length(data, self.message_limit)

    def on_message(self, message: Message) -> Effects:
        """Remember a call; expect flows to what the reply to one announces."""
        if message.depth:
            # A flow that was expected: some kernels attach the helper that a policy
            # other than the first needs to be named.
            yield Done("a flow that was expected announces nothing")
            return
        cursor = Cursor(_record(message))
        xid, kind = read_head(cursor)
        if kind != (CALL if message.direction is ORIGINAL else REPLY):
            raise Malformed(
                f"message type {kind} in {message.direction.value} direction"
            )
        if self._pending is not None:
            self._let_go(message.now)
        if message.direction is ORIGINAL:
            yield from self._called(xid, cursor, message)
        else:
            yield from self._answered(xid, cursor, message)
        # A datagram may be anybody's.
        if self._in_vain > _IN_VAIN_LIMIT and message.transport is TCP:
            yield Done(f"{self._in_vain} messages in vain", "nothing-announced")

    def describe(self, message: Message) -> dict[str, str]:
        """The call or the reply; what a reply announces is told by its call."""
        if message.depth:
            return {}
        cursor = Cursor(_record(message))
        xid, kind = read_head(cursor)
        fields = {"xid": f"{xid:#010x}", "type": "call" if kind == CALL else "reply"}
        if kind == CALL:
            return fields | _describe_call(cursor)
        failure = read_failure(cursor)
        fields["status"] = failure or "success"
        pending = self._call(xid)
        if pending is None:
            fields["answers"] = "no call that could announce an endpoint"
        elif failure is None:
            services = _services(pending, cursor, message)
            offers = dict.fromkeys(str(offer) for _, offer in services)
            fields["announces"] = "; ".join(offers) or (
                f"nothing over TCP or UDP and IPv{message.source.address.version}"
                if pending.call.name in _LISTED
                else "nothing: the program is not registered"
            )
        return fields

    def _called(self, xid: int, cursor: Cursor, message: Message) -> Effects:
        call = read_call(cursor)
        if call.program == PORTMAPPER:
            # Some may be on their way.
            self._in_vain = max(-_PENDING_LIMIT, self._in_vain - 1)
        else:
            self._in_vain += 1
        name = call.name.lower()
        if message.group and name in _LOOKUPS:
            name = _DISCOVERY
        served = name in _SERVED.of(message)
        arguments = read_arguments(call, cursor) if served else None
        known = self._call(xid)
        if known is not None and message.transport is TCP:
            # The client itself uses the number anew.
            self._forget(xid)
        if not served:
            return
        remote = isinstance(arguments, RemoteCall) and message.transport is UDP
        if arguments is not None and (remote or message.group):
            yield from _await_answers(call, arguments, message)
        # In a flow to a group nobody is the other end.
        pending = None if message.group else _pending(xid, call, arguments, message)
        if pending is None:
            return
        # A repeated call is the same again; it must not forget the answer.
        if known is not None and pending.repeats(known):
            pending.opened = known.opened
        elif (
            known is not None and message.transport is UDP and known.waits(message.now)
        ):
            # Anybody may have sent it, and the reply is to the first.
            return
        self._remember(pending, message.now)

    def _call(self, xid: int) -> _Pending | None:
        """The call with this number that is remembered."""
        pending = self._pending
        if isinstance(pending, dict):
            return pending.get(xid)
        return pending if pending is not None and pending.xid == xid else None

    def _let_go(self, now: float) -> None:
        """Forget the calls whose time is over: they stand in the order of their end."""
        pending = self._pending
        if isinstance(pending, dict):
            while pending:
                first = next(iter(pending.values()))
                if first.expires > now:
                    return
                del pending[first.xid]
            self._pending = None
        elif pending is not None and pending.expires <= now:
            self._pending = None

    def _forget(self, xid: int) -> None:
        if isinstance(self._pending, dict):
            self._pending.pop(xid, None)
        elif self._call(xid) is not None:
            self._pending = None

    def _remember(self, pending: _Pending, now: float) -> None:
        """Keep a call, the latest with its number, for its reply.

        Where there are too many, those go that wait no longer, and else the oldest,
        some at once: they are looked through seldom.
        """
        self._forget(pending.xid)
        if self._pending is None:
            self._pending = pending
            return
        if isinstance(self._pending, _Pending):
            self._pending = {self._pending.xid: self._pending}
        elif len(self._pending) >= _PENDING_LIMIT:
            waiting = [each for each in self._pending.values() if each.waits(now)]
            latest = waiting[-_PENDING_LIMIT * 7 // 8 :]
            self._pending = {each.xid: each for each in latest}
        self._pending[pending.xid] = pending

    def _answered(self, xid: int, cursor: Cursor, message: Message) -> Effects:
        pending = self._call(xid)
        if pending is None:
            # The answer to a call that opens nothing, or to none.
            self._in_vain += 1
            return
        if not read_success(cursor):
            pending.answer(())
            return
        services = []
        offers = []
        allowed: dict[int, bool] = {}
        ports = set()
        enough = _LISTED.get(pending.call.name)
        translated = message.original.destination.address != message.source.address
        for service, offer in _services(pending, cursor, message):
            services.append((service, offer))
            program = offer.program
            if program not in allowed:
                # The portmapper, which is there already, stands in its own list.
                own = program == PORTMAPPER
                allowed[program] = not own and _is_allowed(program, message)
            if allowed[program]:
                offers.append(offer)
                if enough is None:
                    continue
                ports.add(offer.place.way)
                # What else a long list has is not opened, and need not be told.
                if len(ports) == enough and not translated:
                    break
        others = allowed.keys() - {PORTMAPPER}
        denied = {each for each in others if not allowed[each]}
        places = _places(offers, message.source.address, pending.call)
        pending.answer(places)
        opened = yield from _open(pending.call, places, message)
        yield from _tell(services, opened, message)
        if services and not others and pending.call.name != "DUMP":
            raise ExpectationRefused("portmapper", "the portmapper announced itself")
        if denied:
            raise _denied(message, *sorted(denied))


def _record(message: Message) -> bytes:
    if message.transport is TCP:
        return join_record(message.payload)
    return message.payload


def _pending(
    xid: int, call: Call, arguments: Arguments | None, message: Message
) -> _Pending | None:
    """The call as it is remembered; None where its reply will open nothing."""
    transport: Transport | None
    match arguments:
        case PortMapping(protocol=protocol):
            transport = TRANSPORTS.get(protocol)
        case Rpcb(netid=netid) if call.name not in _LISTED:
            transport = _transport_of(netid, message)
        case RemoteCall() if call.version == 2:
            # The portmapper's own calls are over UDP (RFC 1833, section 3.2).
            transport = UDP
        case _:
            transport = message.transport
    if transport is None:
        return None
    if isinstance(arguments, Rpcb):
        # The texts may be long, and nobody asks for them any more.
        arguments = replace(arguments, netid="", address="", owner="")
    return _Pending(xid, call, arguments, transport, message.now + _PENDING_SECONDS)


def _transport_of(netid: str, message: Message) -> Transport | None:
    """The transport of the service that a GETADDR call asks for, or None.

    RFC 1833 (section 2.2.1) has the server ignore the netid and answer for the
    transport of the call, and Linux's rpcbind does. Clients leave it empty or let it
    agree; what one means that does neither depends on the server.
    """
    if not netid:
        return message.transport
    transport, version = NETIDS.get(netid, (None, 0))
    if transport is None or version != message.source.address.version:
        return None
    if transport is not message.transport and _NETID.of(message) == "match":
        return None
    return transport


def _services(
    pending: _Pending, cursor: Cursor, message: Message
) -> Iterator[tuple[Service, _Offer]]:
    """The services in a result that this client could use. Raises Malformed."""
    server = message.source.address
    known = message.original.destination.address
    for service in read_services(pending.call, cursor):
        if service.ip_version not in (None, server.version):
            continue
        program = pending.program if service.program is None else service.program
        transport = service.transport or pending.transport
        host = service.host
        # What the server, or the client, knows the server by.
        if host is None or host in (server, known) or host.is_unspecified:
            host = server
        yield service, _Offer(program, _Place(transport, host, service.port))


def _places(
    offers: Sequence[_Offer], server: Address, call: Call
) -> tuple[_Place, ...]:
    """What is to be opened, as many as may be: first for who takes the ports alone."""
    found = [each.place for each in offers]
    # Sets of places are dear to hash, and most answers name one.
    if len(found) == 1 and found[0].host is server:
        return (found[0],)
    limit = _LISTED.get(call.name, len(offers) * 2)
    # Several programs, and the versions of one, may share a port.
    ports = dict.fromkeys(each.way for each in found)
    own = (_Place(transport, server, port) for transport, port in ports)
    others = (each for each in found if each.host is not server)
    return tuple(islice(dict.fromkeys(chain(islice(own, limit), others)), limit))


def _open(
    call: Call, places: Iterable[_Place], message: Message
) -> Generator[Effect, Grant | None, list[_Opened]]:
    """Expect the client's flows to these places; which of them may come, and where."""
    dump = call.name == "DUMP"
    opened = []
    for place in places:
        endpoint = place.endpoint
        try:
            grant = yield from expect(
                endpoint,
                policy="dump" if dump else "service",
                transport=place.transport,
                permanent=_MODE.of(message) == "service",
                helper=_NAME if dump else None,
                alternative=place.host != message.source.address,
            )
        except ExpectationRefused:
            # It is counted, and says nothing about the rest of a list.
            continue
        opened.append((place, endpoint, grant.endpoint))
    return opened


def _tell(
    services: Iterable[tuple[Service, _Offer]],
    opened: Collection[_Opened],
    message: Message,
) -> Effects:
    """Write where the client finds each service.

    Behind NAT the server's own address says nothing to the client, whether or not the
    service is open to it.
    """
    server, known = message.source.address, message.original.destination.address
    if known == server and all(there == told for _, there, told in opened):
        return
    told = {place: endpoint for place, _, endpoint in opened}
    changes = []
    ports = {place.way for place in told}
    for service, offer in services:
        announced = own = None
        if offer.place.way in ports:
            announced, own = told.get(offer.place), told.get(offer.at(server))
        place = announced or own
        port = service.port if place is None else place.port
        host = service.host
        if host is not None and not host.is_unspecified:
            if host == server or (announced is None and own and known != server):
                host = known
            elif announced is not None:
                host = announced.address
        if (host, port) != (service.host, service.port):
            changes.append((service.span, service.emit(host, port)))
    if message.transport is TCP and changes:
        yield from rewrite_record(message.payload, changes)
    else:
        for span, data in changes:
            yield Rewrite(span, data)


def _await_answers(call: Call, arguments: Arguments, message: Message) -> Effects:
    """Expect the answers to a call over UDP that do not come in its own flow.

    Whatever goes to a group is answered from the servers' own addresses. A call that
    servers are to pass on Linux's rpcbind answers from a port of its own, too, whomever
    it went to. To a group INDIRECT must not go (RFC 1833, section 2.2.2).
    """
    if message.group and call.name == "INDIRECT":
        return
    if message.group and message.forwarded:
        raise ExpectationRefused("forwarded", f"{message.source} is another host")
    if message.group and message.reply.destination != message.source:
        raise ExpectationRefused("nat", f"{message.source} is translated")
    if not _is_allowed(arguments.program, message):
        raise _denied(message, arguments.program)
    try:
        yield from expect(
            message.source,
            policy="broadcast",
            source=ON_LINK if message.group else PEER,
            source_port=None
            if isinstance(arguments, RemoteCall)
            else message.destination.port,
            permanent=True,
            helper=_NAME,
        )
    except ExpectationRefused:
        # It is counted, and other servers answer in the flow of the call.
        return


def _is_allowed(program: int, message: Message) -> bool:
    allowed = _ALLOWED.of(message)
    return program not in _DENIED.of(message) and (not allowed or program in allowed)


def _denied(message: Message, *programs: int) -> ExpectationRefused:
    """The refusal of these, by the options that leave them out."""
    names = _brief(list(map(program_text, programs)))
    denied = {each in _DENIED.of(message) for each in programs}
    options = " and ".join((_DENIED if each else _ALLOWED).name for each in denied)
    return ExpectationRefused("denied-program", f"program {names}, by {options}")


def _brief(names: Sequence[str]) -> str:
    """The first of them, and how many more there are: a list may be long."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _describe_call(cursor: Cursor) -> dict[str, str]:
    call = read_call(cursor)
    fields = {
        "program": f"{call.program}, version {call.version}",
        "procedure": call.name,
    }
    arguments = read_arguments(call, cursor)
    if arguments is not None:
        fields["asks for"] = f"program {arguments.program}, version {arguments.version}"
    match arguments:
        case PortMapping(protocol=protocol):
            fields["protocol"] = str(protocol)
        case Rpcb():
            fields["netid"] = repr(arguments.netid)
            fields["address"] = repr(arguments.address)
            fields["owner"] = repr(arguments.owner)
        case RemoteCall():
            fields["calls"] = (
                f"procedure {arguments.procedure}, {arguments.size} bytes of arguments"
            )
    return fields
