# SPDX-License-Identifier: GPL-2.0-or-later
"""What a ruleset of nft's does to the first packet of a flow, read off its JSON.

A match is true, or false, or cannot be told: then its rule *may* match, and what comes
of that is uncertain. Chains of type nat are left out, as they drop nothing, and so are
tables of the families bridge, arp and netdev. libnftables-json(5) has the format.
"""

import enum
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any, Final

from cthelper.core.errors import Malformed
from cthelper.core.tuples import Address, Transport

_MAIN: Final = frozenset({"input", "forward", "output"})
# Conntrack is asked at -200: before, a packet has no state.
_CONNTRACK_PRIORITY: Final = -200
_DEEPEST: Final = 16
"""As the kernel: NFT_JUMP_STACK_SIZE."""
_MOST_RULES: Final = 100_000
_VERDICTS: Final = ("accept", "drop", "reject", "queue", "return", "jump", "goto")
# Statements that let a packet go on, whatever they do besides.
_HARMLESS: Final = frozenset(
    {
        *("counter", "log", "mangle", "set", "map", "last", "continue", "notrack"),
        *("ct helper", "ct timeout", "ct expectation", "flow", "dup"),
        *("masquerade", "snat", "dnat", "redirect"),
    }
)
# Targets of iptables-nft that let a packet go on; nft does not say more of them.
_HARMLESS_TARGETS: Final = frozenset(
    {"CHECKSUM", "CLASSIFY", "CONNMARK", "CT", "LOG", "MARK", "NFLOG", "TCPMSS"}
)
_WILD: Final = "*"


class Verdict(enum.Enum):
    """What becomes of a packet."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"
    QUEUE = "queue"

    @property
    def blocks(self) -> bool:
        """Whether the packet does not get on."""
        return self in (Verdict.DROP, Verdict.REJECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """The first packet of a flow; None is what is not known.

    `path` are the hooks that it comes through. `state` is conntrack's, `helper` that of
    the flow which expected it; "" where none did.
    """

    path: tuple[str, ...]
    transport: Transport
    source: Address
    destination: Address
    sport: int | None
    dport: int
    iif: str | None = None
    oif: str | None = None
    state: str
    helper: str | None = ""


@dataclass(frozen=True, slots=True)
class Ending:
    """Where a packet's way through a base chain ends, or may end.

    `handle` is the rule's, None for the policy of the chain. `unknown` is what could
    not be evaluated, where the rule may match.
    """

    verdict: Verdict
    family: str
    table: str
    chain: str
    hook: str
    handle: int | None = None
    comment: str | None = None
    unknown: tuple[str, ...] = ()

    @property
    def sure(self) -> bool:
        """Whether it ends here, once it has come here."""
        return not self.unknown

    @property
    def place(self) -> str:
        """The table and the chain, and the rule's handle, or that it is the policy."""
        what = "policy" if self.handle is None else f"rule handle {self.handle}"
        return f"table {self.family} {self.table}, chain {self.chain}, {what}"


@dataclass(frozen=True, slots=True)
class Passage:
    """A packet's way through a base chain: where it may end, and at last does."""

    endings: tuple[Ending, ...]

    @property
    def blocks(self) -> bool | None:
        """Whether the packet does not get on; None: that is not certain."""
        found = {each.verdict.blocks for each in self.endings}
        return found.pop() if len(found) == 1 else None

    @property
    def main(self) -> bool:
        """Whether it is of the hooks at which rulesets usually decide."""
        return self.endings[-1].hook in _MAIN


@dataclass(frozen=True, slots=True)
class Attachment:
    """A rule that attaches a helper, and whether it does to this packet.

    `object` is the name of nft's object. `left_out` are the matches that are not true.
    """

    object: str
    matches: bool | None
    left_out: tuple[str, ...]


def passages(
    listing: object, packet: Packet, *, but: tuple[str, str] | None = None
) -> Iterator[Passage]:
    """A packet's way through each base chain of a ruleset, until one blocks it.

    `but` is the family and name of a table to leave out. Raises Malformed.
    """
    ruleset = _Ruleset.read(listing)
    families = _families(packet)
    for hook in packet.path:
        chains = [
            each
            for each in ruleset.chains.values()
            if each.hook == hook
            and each.key[0] in families
            and each.type != "nat"
            and each.key[:2] != but
        ]
        for chain in sorted(chains, key=lambda each: each.priority):
            early = hook in ("prerouting", "output")
            known = not (early and chain.priority < _CONNTRACK_PRIORITY)
            passage = _Walk(ruleset, packet, chain, tracked=known).passage()
            yield passage
            if passage.blocks:
                return


def attachments(
    listing: object, packet: Packet, table: tuple[str, str]
) -> Iterator[Attachment]:
    """The rules of a table that attach a helper to flows to the packet's port.

    Raises Malformed.
    """
    ruleset = _Ruleset.read(listing)
    for chain in ruleset.chains.values():
        if chain.key[:2] != table or chain.hook not in packet.path:
            continue
        test = _Test(ruleset, packet, chain.key[:2], tracked=True)
        for rule in chain.rules:
            attached = next(
                (each["ct helper"] for each in rule.statements if "ct helper" in each),
                None,
            )
            if not isinstance(attached, str):
                continue
            found = [
                (test.match(each["match"]), _spelled(each["match"]), _meant(each))
                for each in rule.statements
                if "match" in each
            ]
            if any(result is False and meant for result, _, meant in found):
                continue
            results = {result for result, _, _ in found}
            yield Attachment(
                attached,
                False if False in results else None if None in results else True,
                tuple(text for result, text, _ in found if result is not True),
            )


def rule_texts(text: str) -> dict[tuple[str, str, int], str]:
    """The rules that ``nft -a list ruleset`` shows, by family, table and handle."""
    found: dict[tuple[str, str, int], str] = {}
    table: tuple[str, str] | None = None
    pending = ""
    for line in text.splitlines():
        begin = re.match(r"table (\S+) (\S+) \{", line)
        if begin is not None:
            table, pending = (begin[1], begin[2]), ""
            continue
        pending = f"{pending} {line.strip()}".strip()
        rule = re.fullmatch(r"(.*[^{ ]|) ?# handle (\d{1,18})", pending)
        if rule is not None and table is not None:
            found[*table, int(rule[2])] = rule[1]
        # What is longer than a line goes on in the next one.
        if rule is not None or pending.count("{") <= pending.count("}"):
            pending = ""
        if pending.endswith("{") or re.search(r"\{ # handle \d+$", pending):
            pending = ""
    return found


@dataclass(slots=True)
class _Rule:
    handle: int
    comment: str | None
    statements: list[dict[str, Any]]


@dataclass(slots=True)
class _Chain:
    key: tuple[str, str, str]
    type: str | None
    hook: str | None
    priority: int
    policy: Verdict
    rules: list[_Rule] = field(default_factory=list)


@dataclass(slots=True)
class _Ruleset:
    """Chains, and elements of sets and maps, by family, table and name."""

    chains: dict[tuple[str, str, str], _Chain]
    sets: dict[tuple[object, ...], list[Any]]

    @classmethod
    def read(cls, listing: object) -> "_Ruleset":
        """What nft lists. Raises Malformed."""
        if not isinstance(listing, list):
            raise Malformed("nft's listing is no list")
        found = cls({}, {})
        rules: list[tuple[tuple[str, str, str], _Rule]] = []
        for each in listing:
            match each:
                case {
                    "chain": {
                        "family": str(family),
                        "table": str(table),
                        "name": str(name),
                        **more,
                    }
                }:
                    key = family, table, name
                    found.chains[key] = _chain(key, more)
                case {
                    "rule": {
                        "family": str(family),
                        "table": str(table),
                        "chain": str(chain),
                        "handle": int(handle),
                        **more,
                    }
                }:
                    rule = _Rule(handle, _text(more.get("comment")), _statements(more))
                    rules.append(((family, table, chain), rule))
                case {"set": {**more}} | {"map": {**more}}:
                    place = tuple(more.get(key) for key in ("family", "table", "name"))
                    elements = more.get("elem", [])
                    # Of a map with another type each element is a list, too.
                    if isinstance(elements, list) and all(map(_text, place)):
                        found.sets[place] = elements
        for key, rule in rules:
            if key in found.chains:
                found.chains[key].rules.append(rule)
        return found


def _chain(key: tuple[str, str, str], more: Mapping[Any, Any]) -> _Chain:
    priority = more.get("prio", 0)
    dropped = more.get("policy") == "drop"
    return _Chain(
        key,
        _text(more.get("type")),
        _text(more.get("hook")),
        priority if isinstance(priority, int) else 0,
        Verdict.DROP if dropped else Verdict.ACCEPT,
    )


def _families(packet: Packet) -> tuple[str, str]:
    """Those of the tables that see the packet."""
    return "inet", "ip" if packet.source.version == 4 else "ip6"


def _statements(more: Mapping[Any, Any]) -> list[dict[str, Any]]:
    found = more.get("expr", [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise Malformed("a rule of nft's is no list of statements")
    return found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


class _Walk:
    """One packet in one base chain."""

    def __init__(
        self, ruleset: _Ruleset, packet: Packet, base: _Chain, *, tracked: bool
    ) -> None:
        self._ruleset = ruleset
        self._base = base
        self._test = _Test(ruleset, packet, base.key[:2], tracked=tracked)
        self._left = _MOST_RULES

    def passage(self) -> Passage:
        endings: list[Ending] = []
        if not self._chain(self._base, (), 0, endings.append):
            endings.append(self._ending(self._base, self._base.policy))
        return Passage(tuple(endings))

    def _ending(self, chain: _Chain, verdict: Verdict) -> Ending:
        return Ending(verdict, *chain.key, str(self._base.hook))

    def _chain(
        self,
        chain: _Chain,
        unknown: tuple[str, ...],
        depth: int,
        add: Callable[[Ending], None],
    ) -> bool:
        """Whether the way surely ends in this chain; `unknown`: it may come here."""
        if depth > _DEEPEST:
            raise Malformed(f"chains are nested deeper than {_DEEPEST}")
        for rule in chain.rules:
            self._left -= 1
            if self._left < 0:
                raise Malformed(f"a packet passes more than {_MOST_RULES} rules")
            here: tuple[str, ...] = ()
            for verdict, target, doubts in self._test.verdicts(rule.statements):
                here = (*unknown, *doubts)
                match verdict:
                    case "accept" | "drop" | "reject" | "queue":
                        end = self._ending(chain, Verdict(verdict))
                        add(
                            replace(
                                end,
                                handle=rule.handle,
                                comment=rule.comment,
                                unknown=here,
                            )
                        )
                        if not doubts:
                            return not unknown
                    case "return":
                        if not doubts:
                            return False
                        unknown = here
                    case _:
                        next_ = self._ruleset.chains.get((*chain.key[:2], target))
                        if next_ is None:
                            raise Malformed(f"there is no chain {target}")
                        if self._chain(next_, here, depth + 1, add):
                            return True
                        if verdict == "goto":
                            if not doubts:
                                return False
                            unknown = here
        return False


class _Test:
    """Whether statements match one packet: true, false, or None where nobody knows."""

    def __init__(
        self,
        ruleset: _Ruleset,
        packet: Packet,
        table: tuple[str, str],
        *,
        tracked: bool,
    ) -> None:
        self._ruleset = ruleset
        self._packet = packet
        self._table = table
        self._tracked = tracked

    def verdicts(
        self, statements: Sequence[dict[str, Any]]
    ) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """The verdicts that a rule may have, each with a chain's name and with doubts.

        One without doubts is the last.
        """
        doubts: list[str] = []
        for statement in statements:
            for kind, what in statement.items():
                if kind == "match":
                    result = self.match(what)
                    if result is False:
                        return
                    if result is None:
                        doubts.append(_spelled(what))
                elif kind == "vmap":
                    yield from self._mapped(what, doubts)
                    # Where no element fits the rule goes no further.
                    return
                elif kind in _VERDICTS:
                    yield kind, _target(what), tuple(doubts)
                    return
                elif kind == "xt":
                    target = what.get("name") if isinstance(what, dict) else None
                    if target not in _HARMLESS_TARGETS:
                        doubts.append("xt" if target is None else f"xt {target}")
                elif kind not in _HARMLESS:
                    doubts.append(kind)
        if doubts and "xt" in statements[-1]:
            # A target of iptables-nft, which may be REJECT.
            yield "drop", "", tuple(doubts)

    def _mapped(
        self, what: object, doubts: list[str]
    ) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        match what:
            case {"key": key, "data": data}:
                elements = self._elements(data)
            case _:
                elements = None
        if elements is None:
            # It may be any verdict: the packet may go on, and it may not.
            yield "drop", "", (*doubts, "vmap")
            return
        for element in elements:
            match element:
                case [value, dict(verdict)] if verdict:
                    pass
                case _:
                    yield "drop", "", (*doubts, "vmap")
                    continue
            result = False if self._strange(key) else self._equal(key, value)
            kind, to = next(iter(verdict.items()))
            if result is False or kind not in _VERDICTS:
                continue
            unsure = [] if result else [f"vmap {_name(key)}"]
            yield kind, _target(to), (*doubts, *unsure)
            if result:
                return

    def match(self, what: object) -> bool | None:
        """Whether a match is true."""
        match what:
            case {"left": left} if self._strange(left):
                return False
            case {"op": "==" | "in", "left": left, "right": right}:
                return self._equal(left, right)
            case {"op": "!=" | "!", "left": left, "right": right}:
                return _not(self._equal(left, right))
            case {"op": "<" | ">" | "<=" | ">=" as op, "left": left, "right": int(n)}:
                value = self._value(left)
                if not isinstance(value, int):
                    return None
                return {
                    "<": value < n,
                    ">": value > n,
                    "<=": value <= n,
                    ">=": value >= n,
                }[op]
        return None

    def _strange(self, left: object) -> bool:
        """Whether the packet has no such thing, so that no comparison is true."""
        match left:
            case {"concat": list(parts)}:
                return any(self._value(each) is _OTHER for each in parts)
        return self._value(left) is _OTHER

    def _equal(self, left: object, right: object) -> bool | None:
        match left:
            case {"concat": list(parts)}:
                return self._one_of(parts, right)
        return self._one_of([left], right)

    def _one_of(self, keys: list[Any], right: object) -> bool | None:
        elements = self._elements(right)
        if elements is None:
            return None
        values = [self._value(each) for each in keys]
        return _any(self._element(values, each) for each in elements)

    def _element(self, values: list[Any], element: object) -> bool | None:
        match element:
            case {"elem": {"val": value}}:
                return self._element(values, value)
            case {"concat": list(parts)} if len(parts) == len(values):
                pairs = zip(values, parts, strict=True)
                return _all(_fits(value, part) for value, part in pairs)
        return _fits(values[0], element) if len(values) == 1 else None

    def _elements(self, right: object) -> list[Any] | None:
        """The values that a match compares with."""
        match right:
            case {"set": list(elements)} | list(elements):
                return elements
            case {"set": single}:
                return [single]
            case str(name) if name.startswith("@"):
                return self._ruleset.sets.get((*self._table, name[1:]))
        return [right]

    def _value(self, left: object) -> Any:
        """What an expression is of this packet; None: nobody knows.

        _OTHER: it has none, so that the rule does not match.
        """
        packet = self._packet
        version = packet.source.version
        match left:
            case {"ct": {"key": "state"}}:
                return packet.state if self._tracked else None
            case {"ct": {"key": "helper"}} if self._tracked:
                return packet.helper
            case {"meta": {"key": "iifname" | "iif"}}:
                return packet.iif
            case {"meta": {"key": "oifname" | "oif"}}:
                return packet.oif
            case {"meta": {"key": "l4proto"}}:
                return packet.transport
            case {"meta": {"key": "nfproto"}}:
                return f"ipv{version}"
            case {"meta": {"key": "protocol"}}:
                return "ip" if version == 4 else "ip6"
            case {"payload": {"protocol": "ip" | "ip6" as family, "field": str(name)}}:
                if (family == "ip") is not (version == 4):
                    return _OTHER
                return {
                    "saddr": packet.source,
                    "daddr": packet.destination,
                    "protocol": packet.transport,
                    "nexthdr": packet.transport,
                }.get(name)
            case {"payload": {"protocol": str(protocol), "field": str(name)}}:
                if protocol not in ("th", "tcp", "udp"):
                    return _OTHER if protocol in _OTHERS else None
                if protocol not in ("th", str(packet.transport)):
                    return _OTHER
                return {"sport": packet.sport, "dport": packet.dport}.get(name)
        return None


def _target(verdict: object) -> str:
    """The chain that a verdict goes to."""
    match verdict:
        case {"target": str(name)}:
            return name
    return ""


class _Other(enum.Enum):
    OTHER = enum.auto()


_OTHER: Final = _Other.OTHER
_OTHERS: Final = frozenset(
    {"icmp", "icmpv6", "sctp", "dccp", "udplite", "esp", "ah", "comp", "igmp", "arp"}
)


def _fits(value: Any, element: object) -> bool | None:
    """Whether a value is an element of a set; None: nobody knows."""
    match element:
        case {"elem": {"val": inner}}:
            return _fits(value, inner)
    if value is None:
        return None
    if element == _WILD:
        return True
    if isinstance(value, Transport):
        return None if not isinstance(element, str | int) else _protocol(value, element)
    if isinstance(value, int):
        match element:
            case bool():
                return None
            case int():
                return value == element
            case {"range": [int(first), int(last)]}:
                return first <= value <= last
        return None
    if isinstance(value, str):
        if not isinstance(element, str):
            return None
        if element.endswith(_WILD):
            return value.startswith(element[:-1])
        return value == element
    return _holds(value, element)


def _protocol(value: Transport, element: str | int) -> bool:
    return element in (str(value), int(value))


def _holds(address: Address, element: object) -> bool | None:
    """Whether an address is what a set's element says."""
    try:
        match element:
            case str():
                return ip_address(element) == address
            case {"prefix": {"addr": str(network), "len": int(length)}}:
                return address in ip_network(f"{network}/{length}", strict=False)
            case {"range": [str(first), str(last)]}:
                ends = ip_address(first), ip_address(last)
                if {each.version for each in ends} != {address.version}:
                    return False
                return int(ends[0]) <= int(address) <= int(ends[1])
    except ValueError:
        return None  # a name, or what another nft means by it
    return None


def _not(result: bool | None) -> bool | None:
    return None if result is None else not result


def _any(results: Iterable[bool | None]) -> bool | None:
    found = set(results)
    return True if True in found else None if None in found else False


def _all(results: Iterable[bool | None]) -> bool | None:
    found = set(results)
    return False if False in found else None if None in found else True


def _meant(statement: Mapping[str, Any]) -> bool:
    """Whether a match says which flows a rule is for, and not whose they are."""
    match statement:
        case {"match": {"left": {"payload": {"field": "dport"}}}}:
            return True
        case {"match": {"left": {"meta": {"key": "l4proto"}} | {"ct": _}}}:
            return True
    return False


def _spelled(match_: object) -> str:
    """A match, short, for who is told that it is not evaluated, or not true."""
    match match_:
        case {"left": left, "right": right, **more}:
            op = more.get("op", "==")
            sign = "" if op in ("==", "in") else f"{op} "
            return f"{_name(left)} {sign}{_shown(right)}"[:80]
    return "match"


def _name(expression: object) -> str:
    """An expression as nft writes it, or its kind."""
    match expression:
        case {"payload": {"protocol": protocol, "field": name}}:
            return f"{protocol} {name}"
        case {"meta": {"key": "iifname" | "oifname" | "iif" | "oif" as key}}:
            return str(key)
        case {"concat": list(parts)}:
            return " . ".join(map(_name, parts))
        case dict() if len(expression) == 1:
            ((kind, what),) = expression.items()
            key = what.get("key") if isinstance(what, dict) else None
            return f"{kind} {key}" if isinstance(key, str) else str(kind)
    return "expression"


def _shown(value: object) -> str:
    match value:
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"range": [first, last]}:
            return f"{first}-{last}"
        case {"set": list(values)} | list(values):
            return "{ " + ", ".join(map(_shown, values[:9])) + " }"
        case {"concat": list(values)}:
            return " . ".join(map(_shown, values))
        case bool():
            return "exists" if value else "missing"
        case str() | int():
            return str(value)
    return "..."
