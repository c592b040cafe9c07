# SPDX-License-Identifier: GPL-2.0-or-later
"""The nft ruleset that attaches helpers and queues packets: table ``inet cthelper``.

Rendering is pure text; all else calls ``nft`` and raises RulesetError with its first
line where it refuses. The helpers must be registered before a ruleset is checked or
installed. Nothing outside the table is ever touched.
"""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any, Final

from cthelper.core.api import (
    ORIGINAL,
    REPLY,
    TCP,
    Hook,
    Match,
    Network,
    Prefilter,
    Transport,
)
from cthelper.core.config import Config, HelperConfig
from cthelper.core.errors import RulesetError, lacking
from cthelper.core.ports import spelled
from cthelper.core.tuples import BROADCAST, Destination, collapsed

TABLE: Final = "inet cthelper"

_FAMILY: Final = {4: "ip", 6: "ip6"}
_INTERFACE: Final = {Hook.PREROUTING: "iifname", Hook.OUTPUT: "oifname"}
# The chain with the rules that queue.
_INSPECTED: Final = "inspected"
_SECONDS: Final = 30
# What nft says of EPERM in some cases and not in others.
_ROOT: Final = " (you must be root)"
# Of a ruleset that is only shown. One that is loaded has a number that nobody knows, so
# that nobody can choose the worker that his flows come to.
_SHOWN_SEED: Final = 0x63746821


def render(config: Config) -> str:
    """The ruleset for the enabled helpers."""
    return _ruleset(config)


def check(config: Config) -> None:
    """Have the kernel check the ruleset, without loading it."""
    _nft("-c", "-f", "-", text=_replacement(config))


def install(
    config: Config, seed: int | None = None, *, hands_down: bool = False
) -> None:
    """Load the ruleset in the place of the one that is loaded, in one transaction.

    `hands_down`: the kernel does so (`Kernel` in core/daemon/probe.py).
    `seed`, 32 bits, has the flows spread over workers; without one it stays as it is
    loaded, so that each flow stays with its worker, or is a new one.
    """
    _nft("-f", "-", text=_replacement(config, seed, hands_down=hands_down))


def pause(config: Config) -> None:
    """Have the loaded ruleset queue no more, so that nobody need serve the queues.

    Where a helper fails closed its packets are dropped from then on.
    """
    if ("chain", _INSPECTED) not in _contents(_listing()):
        return
    drops = (
        " ".join(filter(None, (flow.match, read, "drop")))
        for group in _groups(config)
        if group[0].fail_closed
        for flow in _inspected(group)
        for read in flow.reads
    )
    chain = _chain(_INSPECTED, drops)
    _nft(
        *("-f", "-"),
        text=f"flush chain {TABLE} {_INSPECTED}\ntable {TABLE} {{\n{chain}}}\n",
    )


def remove() -> None:
    """Delete the table, if it is there."""
    # nft cannot delete what is not there, so it adds the table first.
    _nft("-f", "-", text=f"table {TABLE}\ndelete table {TABLE}\n")


def missing(config: Config) -> bool:
    """Whether the ruleset is not loaded, or not whole."""
    return bool(_declared(render(config)) - _contents(_listing()))


def whole_ruleset() -> list[dict[str, Any]]:
    """All that is loaded, in nft's JSON. Raises RulesetError."""
    listed: list[dict[str, Any]] = json.loads(_nft("-j", "list", "ruleset"))["nftables"]
    return listed


def ruleset_text() -> str:
    """All that is loaded, as nft writes it, with handles. Raises RulesetError."""
    return _nft("-s", "-a", "list", "ruleset")


def loaded_ruleset() -> list[dict[str, Any]]:
    """All that is loaded but our own table, in nft's JSON. Raises RulesetError."""
    family, name = TABLE.split()
    return [
        each
        for each in whole_ruleset()
        for content in each.values()
        if (content.get("family"), content.get("table")) != (family, name)
    ]


def tables(family: str) -> list[str]:
    """The names of the tables that are loaded, of one family. Raises RulesetError."""
    listed = json.loads(_nft("-j", "list", "tables", family))["nftables"]
    return [each["table"]["name"] for each in listed if "table" in each]


def load(text: str) -> None:
    """Load this text, which is not the ruleset for a configuration."""
    _nft("-f", "-", text=text)


def version() -> str:
    """What ``nft --version`` says."""
    return _nft("--version").strip()


def _ruleset(
    config: Config,
    loaded: Collection[str] = (),
    seed: int = _SHOWN_SEED,
    *,
    hands_down: bool = False,
) -> str:
    """The table; helper objects that are `loaded` already are left out."""
    template = Template(Path(__file__).with_name("cthelper.nft").read_text("utf-8"))
    return template.substitute(
        objects="".join(_objects(each, loaded) for each in config.helpers.values()),
        expected=_expected(config),
        prerouting=_rules(config, Hook.PREROUTING),
        output=_rules(config, Hook.OUTPUT),
        spreading=_spreading(config, seed),
        unfinished=_unfinished(config, hands_down=hands_down),
        inspected=_queueing(config),
    )


def new_seed() -> int:
    """A seed of 32 bits that nobody can guess, for how flows spread over workers."""
    # As secrets.randbits does, with which every start would load OpenSSL.
    return int.from_bytes(os.urandom(4), "big")


def _replacement(
    config: Config, seed: int | None = None, *, hands_down: bool = False
) -> str:
    """What turns any state of the table into the ruleset.

    Only rules go. When a base chain goes, the kernel drops every packet that waits in
    any queue of the namespace (nf_queue_nf_hook_drop), so the chains stay; and so, as
    a precaution, do the helper objects, used or not, until the table is removed.
    """
    skeleton = _ruleset(replace(config, helpers={}))
    listing = _listing()
    loaded = {name for kind, name in _contents(listing) if kind == "ct helper"}
    if seed is None:
        seed = _loaded_seed(listing)
    if seed is None:
        seed = new_seed()
    rules = _ruleset(config, loaded, seed, hands_down=hands_down)
    return f"{skeleton}flush table {TABLE}\n{rules}"


def _listing() -> list[dict[str, Any]]:
    """The table that is loaded, in nft's JSON; nothing where it is not.

    Raises RulesetError.
    """
    try:
        listing = json.loads(_nft("-j", "list", "table", *TABLE.split()))
    except RulesetError as error:
        if "No such file or directory" in str(error):
            return []
        raise
    listed: list[dict[str, Any]] = listing["nftables"]
    return listed


def _contents(listing: Iterable[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """What is in a table: kinds and names, and each chain's rules."""
    return Counter(
        (kind, content["chain"] if kind == "rule" else content["name"])
        for each in listing
        for kind, content in each.items()
        if kind in ("ct helper", "chain", "rule")
    )


def _loaded_seed(listing: object) -> int | None:
    """The seed in a table's rules; None where they spread nothing."""
    match listing:
        case {"jhash": {"seed": int(seed)}}:
            return seed
        case dict():
            parts: Iterable[object] = listing.values()
        case list():
            parts = listing
        case _:
            return None
    found = (_loaded_seed(each) for each in parts)
    return next((seed for seed in found if seed is not None), None)


def _declared(text: str) -> Counter[tuple[str, str]]:
    """The same of a ruleset that was rendered."""
    found: Counter[tuple[str, str]] = Counter()
    chain = None
    for line in text.splitlines():
        match line.split():
            case ["ct", "helper", name, "{"]:
                found["ct helper", name] += 1
            case ["chain", name, "{"]:
                found["chain", name] += 1
                chain = name
            case ["}"]:
                chain = None
            case [first, *_] if chain and first != "type" and first[0] != "#":
                found["rule", chain] += 1
    return found


def _objects(config: HelperConfig, loaded: Collection[str]) -> str:
    name = config.name
    several = len(config.helper.transports) > 1
    note = "\t# An object serves one transport, and IPv4 and IPv6 alike.\n"
    return "".join(
        [
            note if several else "",
            *(
                f"\tct helper {_object(config, transport)} {{\n"
                f'\t\ttype "{name}" protocol {transport};\n'
                "\t}\n"
                for transport in sorted(config.helper.transports)
                if _object(config, transport) not in loaded
            ),
        ]
    )


def _object(config: HelperConfig, transport: Transport) -> str:
    return f"{config.name}-{transport}"


def _expected(config: Config) -> str:
    """Rules for flows that a helper expected and inspects itself, whatever way they go.

    Linux attaches the helper that an expectation names, or does not, by its version.
    """
    rules = [
        f"meta l4proto {transport} ct state related "
        f'ct helper "{each.name}" ct helper set "{_object(each, transport)}"'
        for each in config.helpers.values()
        if each.tags_expected
        for transport in sorted(each.helper.transports)
    ]
    if not rules:
        return ""
    # One cheap test for what is neither.
    known = "ct state & (new | related) == 0 return"
    note = "# Flows that a helper expected and goes on with."
    return "".join(f"\t\t{line}\n" for line in (known, note, *rules))


def _unfinished(config: Config, *, hands_down: bool) -> str:
    """What matches the packets of flows that have a helper and are inspected.

    A helper that was handed down is attached without IPS_HELPER, and ``ct helper set``
    attaches none beside it: then expected flows (IPS_EXPECTED) are looked at, too,
    where a helper goes on with them.
    """
    goes_on = any(each.tags_expected for each in config.helpers.values())
    status = "0x2001" if hands_down and goes_on else "0x2000"
    mark = config.daemon.mark
    unmarked = f" ct mark & {mark:#x} == 0" if mark else ""
    return f"ct status & {status} != 0{unmarked}"


def _groups(config: Config) -> list[list[HelperConfig]]:
    """The helpers, those together that share a port: one rule queues for them.

    Which helper a flow has nft cannot tell, as ``ct helper`` matches the master's. The
    configuration sees to it that they have one queue.
    """
    groups: list[list[HelperConfig]] = []
    for helper in config.helpers.values():
        sharing = [group for group in groups if any(map(helper.shared_port, group))]
        merged = [each for group in sharing for each in group]
        groups = [group for group in groups if group not in sharing]
        groups.append([*merged, helper])
    return groups


def _queueing(config: Config) -> str:
    """The chains with what the helpers read: of which flows, and which packets."""
    flows: list[str] = []
    chains = []
    for group in _groups(config):
        flows.append("# " + ", ".join(each.name for each in group))
        to = _to_queue(config, group[0])
        for flow in _inspected(group):
            if flow.reads == [""]:
                flows.append(f"{flow.match} {to}")
            else:
                flows.append(f"{flow.match} goto {flow.name}")
                chains.append(
                    _chain(flow.name, (f"{each} {to}" for each in flow.reads))
                )
    return "\n".join([*chains, _chain(_INSPECTED, flows)])


def _chain(name: str, lines: Iterable[str]) -> str:
    rules = "".join(f"\t\t{line}\n" for line in lines)
    return f"\tchain {name} {{\n{rules}\t}}\n"


def _to_queue(config: Config, helper: HelperConfig) -> str:
    if config.daemon.workers > 1:
        return f"goto {_spread_chain(helper)}"
    return f"queue num {helper.queue}{'' if helper.fail_closed else ' bypass'}"


def _spread_chain(helper: HelperConfig) -> str:
    return f"queue-{helper.queue}"


def _spreading(config: Config, seed: int) -> str:
    """A chain for each queue that several workers read: who gets which flow."""
    count = config.daemon.workers
    if count == 1:
        return ""
    queues = {each.queue: each for each in config.helpers.values()}
    chains = [
        _chain(_spread_chain(each), _spread(each, count, seed))
        for _, each in sorted(queues.items())
    ]
    note = (
        "\t# Each end's own address chooses a flow's worker, in either order: the sum\n"
        f"\t# of their hashes, modulo {count}. So all flows between two hosts have\n"
        "\t# one, and what a helper expects stays with its worker, behind NAT, too.\n"
    )
    return f"\n{note}" + "\n".join(chains)


def _spread(helper: HelperConfig, count: int, seed: int) -> Iterator[str]:
    """Rules that queue to worker hash(one end) + hash(other end) mod `count`.

    nft cannot add two hashes, so that each first one has its rule.
    """
    flags = "" if helper.fail_closed else " flags bypass"
    for family in _FAMILY.values():
        one, other = (
            f"jhash ct {direction} {family} saddr mod {count} seed {seed:#x}"
            for direction in ("original", "reply")
        )
        for first in range(count):
            queues = ", ".join(
                f"{second} : {helper.queue + (first + second) % count}"
                for second in range(count)
            )
            yield f"{one} {first} queue{flags} to {other} map {{ {queues} }}"


@dataclass(frozen=True, slots=True)
class _Flow:
    """Flows that a rule matches; packets of theirs are read that match one of `reads`.

    `name` is that of a chain for these.
    """

    name: str
    match: str
    reads: list[str]


def _inspected(group: Sequence[HelperConfig]) -> Iterator[_Flow]:
    """The flows of these helpers, which share ports."""
    ports: dict[tuple[Transport, int], list[HelperConfig]] = {}
    for config in group:
        for transport in config.helper.transports:
            for port in config.ports:
                ports.setdefault((transport, port), []).append(config)
    alike: dict[tuple[Transport, tuple[str, ...]], list[int]] = {}
    for (transport, port), sharing in sorted(ports.items(), key=lambda each: each[0]):
        reads = tuple(_reads(sharing, transport))
        alike.setdefault((transport, reads), []).append(port)
    for (transport, reads), numbers in alike.items():
        yield _Flow(
            f"{transport}-{numbers[0]}",
            f"meta l4proto {transport} ct original proto-dst {_set(spelled(numbers))}",
            list(reads),
        )
    for config in group:
        if config.tags_expected:
            for transport in sorted(config.helper.transports):
                yield _Flow(
                    f"{_object(config, transport)}-expected",
                    f'meta l4proto {transport} ct helper "{config.name}"',
                    _reads([config], transport),
                )


def _reads(helpers: Sequence[HelperConfig], transport: Transport) -> list[str]:
    """What matches the packets that one of their prefilters does not leave out."""
    found = [_read(each.prefilter, transport) for each in helpers]
    return (
        [""]
        if [""] in found
        else list(dict.fromkeys(read for reads in found for read in reads))
    )


def _read(prefilter: Prefilter, transport: Transport) -> list[str]:
    """What matches the packets of a flow that the prefilter does not leave out."""
    if transport is TCP or (prefilter.request is None and prefilter.reply is None):
        return [""]
    sides = {ORIGINAL: prefilter.request, REPLY: prefilter.reply}
    return [
        f"ct direction {direction.value}{bits}"
        for direction, alternatives in sides.items()
        for bits in ([""] if alternatives is None else map(_bits, alternatives))
    ]


def _bits(matches: Iterable[Match]) -> str:
    return "".join(
        f" @ih,{offset},{length} {value:#x}" for offset, length, value in matches
    )


def _rules(config: Config, hook: Hook) -> str:
    return "".join(
        f"\t\t{rule}\n"
        for helper in config.helpers.values()
        if hook in helper.hooks
        for rule in [f"# {helper.name}", *_helper_rules(helper, hook)]
    )


def _helper_rules(config: HelperConfig, hook: Hook) -> list[str]:
    """Rules that attach the helper."""
    rules = []
    for addresses, last in _address_matches(config.sources, config.destinations):
        for transport in sorted(config.helper.transports):
            ports = f"{transport} dport {_set(spelled(config.ports))}"
            parts = [*addresses, ports, *last]
            if config.interfaces:
                names = [f'"{name}"' for name in config.interfaces]
                parts.insert(0, f"{_INTERFACE[hook]} {_set(names)}")
            parts.append(f'ct helper set "{_object(config, transport)}"')
            rules.append(" ".join(parts))
    return rules


def _address_matches(
    sources: Sequence[Network], destinations: Sequence[Destination]
) -> list[tuple[list[str], list[str]]]:
    """The address matches of each rule, before that of the port and after it.

    One rule without any where no network is given, else one for each family in which
    both a source and a destination can match, and one for broadcast addresses, which
    are looked up (nft_fib) for packets to the port alone.
    """
    if not sources and not destinations:
        return [([], [])]
    networks = [each for each in destinations if each is not BROADCAST]
    result: list[tuple[list[str], list[str]]] = []
    for version, family in _FAMILY.items():
        # nft takes no set whose intervals overlap.
        ours = collapsed(sources, version)
        theirs = collapsed(networks, version)
        if bool(ours) < bool(sources):
            continue
        match = [f"{family} saddr {_set(ours)}"] if ours else []
        if theirs:
            result.append(([*match, f"{family} daddr {_set(theirs)}"], []))
        elif not destinations:
            result.append((match, []))
        if version == 4 and BROADCAST in destinations:
            result.append((match, [f"fib daddr type {BROADCAST}"]))
    return result


def _set(values: Sequence[object]) -> str:
    if len(values) == 1:
        return str(values[0])
    return "{ " + ", ".join(map(str, values)) + " }"


def _nft(*arguments: str, text: str | None = None) -> str:
    program = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if program is None:
        raise RulesetError("nft is not installed: apt-get install nftables")
    try:
        done = subprocess.run(
            [program, *arguments],
            input=text,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise RulesetError(f"nft did not answer within {_SECONDS} s") from None
    except OSError as error:  # such as no room for another process
        raise RulesetError(f"nft cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no explanation"]
        refused = "Operation not permitted" in lines[0]
        advice = f": {lacking()}" if refused else ""
        raise RulesetError(f"nft: {lines[0].removesuffix(_ROOT)}{advice}")
    return done.stdout
