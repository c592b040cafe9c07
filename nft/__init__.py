# SPDX-License-Identifier: GPL-2.0-or-later
"""The nft ruleset that attaches helpers to flows: table ``inet cthelper``.

Rendering is pure text; `check`, `install` and `remove` call ``nft`` and raise
RulesetError with its first line where it refuses. The helpers must be registered before
a ruleset is checked or installed. Nothing outside the table is ever touched.
"""

import json
import shutil
import subprocess
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from importlib.resources import files
from string import Template
from typing import Final

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
from cthelper.core.errors import RulesetError
from cthelper.core.tuples import collapsed

TABLE: Final = "inet cthelper"

_FAMILY: Final = {4: "ip", 6: "ip6"}
_INTERFACE: Final = {Hook.PREROUTING: "iifname", Hook.OUTPUT: "oifname"}
# The chain with the rules that queue, in chain mode.
_INSPECTED: Final = "inspected"
# A helper is attached to the flow (IPS_HELPER in nf_conntrack_common.h); `ct helper`
# matches that of the master.
_HAS_HELPER: Final = "ct status & 0x2000 == 0x2000"
_SECONDS: Final = 30
_CHAINS: Final = Template("""
	# What the helpers in chain mode read.
	chain $inspected {
$rules	}

	# A verdict confirms the packet's flow, so that this must be after source NAT (100).
	# The mark says that a flow is no longer inspected.
	chain postrouting {
		type filter hook postrouting priority 300; policy accept;
		ct mark & $mark == 0 jump $inspected
	}

	chain input {
		type filter hook input priority 300; policy accept;
		ct mark & $mark == 0 jump $inspected
	}
""")
# Any number; without one every loading would spread the flows anew.
_SEED: Final = "0x63746821"


def render(config: Config) -> str:
    """The ruleset for the enabled helpers."""
    return _ruleset(config)


def check(config: Config) -> None:
    """Have the kernel check the ruleset, without loading it."""
    _nft("-c", "-f", "-", text=_replacement(config))


def install(config: Config) -> None:
    """Load the ruleset in the place of the one that is loaded, in one transaction."""
    _nft("-f", "-", text=_replacement(config))


def pause(config: Config) -> None:
    """Have the loaded ruleset queue no more, so that nobody need serve the queues.

    Where a helper fails closed its packets are dropped from then on.
    """
    if ("chain", _INSPECTED) not in _loaded():
        return
    rules = [
        f"{match} drop"
        for each in config.chained
        if each.fail_closed
        for match in _inspected(each)
    ]
    body = "".join(f"\t\t{rule}\n" for rule in rules)
    _nft(
        *("-f", "-"),
        text=f"flush chain {TABLE} {_INSPECTED}\n"
        f"table {TABLE} {{\n\tchain {_INSPECTED} {{\n{body}\t}}\n}}\n",
    )


def remove() -> None:
    """Delete the table, if it is there."""
    # nft cannot delete what is not there, so it adds the table first.
    _nft("-f", "-", text=f"table {TABLE}\ndelete table {TABLE}\n")


def version() -> str:
    """What ``nft --version`` says."""
    return _nft("--version").strip()


def _ruleset(config: Config, loaded: Collection[str] = ()) -> str:
    """The table; helper objects that are `loaded` already are left out."""
    template = Template(files(__name__).joinpath("cthelper.nft").read_text("utf-8"))
    return template.substitute(
        accepting=_accepting(config),
        objects="".join(_objects(each, loaded) for each in config.served),
        spreading=_spreading(config),
        expected=_expected(config.served),
        prerouting=_rules(config, Hook.PREROUTING),
        output=_rules(config, Hook.OUTPUT),
        chains=_chains(config),
    )


def _replacement(config: Config) -> str:
    """What turns any state of the table into the ruleset.

    Only rules go. When a base chain goes, the kernel drops every packet that waits in
    any queue of the namespace (nf_queue_nf_hook_drop), so the chains stay; and so, as
    a precaution, do the helper objects, used or not, until the table is removed.
    """
    skeleton = _ruleset(replace(config, helpers={}))
    loaded = {name for kind, name in _loaded() if kind == "ct helper"}
    rules = _ruleset(config, loaded)
    return f"{skeleton}flush table {TABLE}\n{rules}"


def _loaded() -> set[tuple[str, str]]:
    """The kinds and names of what is in the table that is loaded."""
    try:
        listing = json.loads(_nft("-j", "list", "table", *TABLE.split()))
    except RulesetError:
        return set()
    return {
        (kind, content["name"])
        for each in listing["nftables"]
        for kind, content in each.items()
        if "name" in content
    }


def _accepting(config: Config) -> str:
    """The rules of a user's firewall that accept what all workers' helpers expect."""
    if config.daemon.workers == 1:
        return ""
    lines = [
        "",
        " Each helper is there once for every worker. These rules of yours accept what",
        " one of them expects, whatever worker serves it:",
        *(
            f"   ct state related ct helper {_set(_quoted_names(config, name))} accept"
            for name in config.helpers
        ),
    ]
    return "".join(f"#{line}\n" for line in lines)


def _quoted_names(config: Config, name: str) -> list[str]:
    return [f'"{part.helpers[name].kernel_name}"' for part in config.by_worker]


def _objects(config: HelperConfig, loaded: Collection[str]) -> str:
    name = config.kernel_name
    several = len(config.helper.transports) > 1 and not config.worker
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
    return f"{config.kernel_name}-{transport}"


def _spreading(config: Config) -> str:
    """A chain for each helper and transport that attaches the helper of one worker."""
    if config.daemon.workers == 1:
        return ""
    parts = config.by_worker
    chains = [
        f"\tchain {_object(helper, transport)} {{\n"
        f"{_spread([part.helpers[name] for part in parts], transport)}\t}}\n"
        for name, helper in config.helpers.items()
        for transport in sorted(helper.helper.transports)
    ]
    note = (
        "\t# Both addresses of a flow choose its worker, in either order: the sum of\n"
        f"\t# their hashes, modulo {len(parts)}.\n"
    )
    return f"\n{note}" + "\n".join(chains)


def _spread(workers: Sequence[HelperConfig], transport: Transport) -> str:
    """Rules that attach the helper of worker hash(source) + hash(destination) mod N.

    nft cannot add two hashes, so that each first one has its rule.
    """
    count = len(workers)
    objects = [f'"{_object(each, transport)}"' for each in workers]
    rules = []
    for family in _FAMILY.values():
        source, destination = (
            f"jhash {family} {side} mod {count} seed {_SEED}"
            for side in ("saddr", "daddr")
        )
        for first in range(count):
            elements = [
                f"{second} : {objects[(first + second) % count]}"
                for second in range(count)
            ]
            rules.append(
                f"\t\t{source} {first} ct helper set {destination} "
                f"map {{ {', '.join(elements)} }}\n"
            )
    return "".join(rules)


def _expected(helpers: Collection[HelperConfig]) -> str:
    """Rules for flows that a helper expected and inspects itself, whatever way they go.

    Linux attaches the helper that an expectation names, or does not, by its version.
    """
    rules = [
        f"meta l4proto {transport} ct state related "
        f'ct helper "{config.kernel_name}" ct helper set "{_object(config, transport)}"'
        for config in helpers
        if config.tags_expected
        for transport in sorted(config.helper.transports)
    ]
    if not rules:
        return ""
    note = "# Flows that a helper expected and goes on with."
    return "".join(f"\t\t{line}\n" for line in (note, *rules))


def _chains(config: Config) -> str:
    """The chains that queue the packets of helpers in chain mode."""
    if not config.chained:
        return ""
    rules = [
        line
        for each in config.chained
        for line in (f"# {each.helper.name}", *_queueing(each))
    ]
    body = "".join(f"\t\t{line}\n" for line in rules)
    return _CHAINS.substitute(
        inspected=_INSPECTED, mark=f"{config.daemon.mark:#x}", rules=body
    )


def _queueing(config: HelperConfig) -> list[str]:
    bypass = "" if config.fail_closed else " bypass"
    return [f"{match} queue num {config.queue}{bypass}" for match in _inspected(config)]


def _inspected(config: HelperConfig) -> list[str]:
    """What matches the packets that the helper reads."""
    rules = []
    for transport in sorted(config.helper.transports):
        flows = [
            f"meta l4proto {transport} ct original proto-dst "
            f"{_set(sorted(config.ports))} {_HAS_HELPER}"
        ]
        if config.tags_expected:
            name = f'"{config.kernel_name}"'
            flows.append(f"meta l4proto {transport} ct helper {name}")
        rules += [
            f"{flow}{read}"
            for flow in flows
            for read in _read(config.prefilter, transport)
        ]
    return rules


def _read(prefilter: Prefilter, transport: Transport) -> list[str]:
    """What matches the packets of a flow that the prefilter does not leave out."""
    if transport is TCP or (prefilter.request is None and prefilter.reply is None):
        return [""]
    sides = {ORIGINAL: prefilter.request, REPLY: prefilter.reply}
    return [
        f" ct direction {direction.value}{bits}"
        for direction, alternatives in sides.items()
        for bits in ([""] if alternatives is None else map(_bits, alternatives))
    ]


def _bits(matches: Iterable[Match]) -> str:
    return "".join(
        f" @ih,{offset},{length} {value:#x}" for offset, length, value in matches
    )


def _rules(config: Config, hook: Hook) -> str:
    several = config.daemon.workers > 1
    return "".join(
        f"\t\t{rule}\n"
        for helper in config.helpers.values()
        if hook in helper.hooks
        for rule in [
            f"# {helper.helper.name}",
            *_helper_rules(helper, hook, several=several),
        ]
    )


def _helper_rules(config: HelperConfig, hook: Hook, *, several: bool) -> list[str]:
    """Rules that attach the helper, or with `several` workers have its chain do so."""
    rules = []
    for addresses in _address_matches(config.sources, config.destinations):
        for transport in sorted(config.helper.transports):
            parts = [*addresses, f"{transport} dport {_set(sorted(config.ports))}"]
            if config.interfaces:
                names = [f'"{name}"' for name in config.interfaces]
                parts.insert(0, f"{_INTERFACE[hook]} {_set(names)}")
            name = _object(config, transport)
            parts.append(f"jump {name}" if several else f'ct helper set "{name}"')
            rules.append(" ".join(parts))
    return rules


def _address_matches(
    sources: Sequence[Network], destinations: Sequence[Network]
) -> list[list[str]]:
    """The address matches of each rule.

    One rule without any where no network is given, else one for each family in which
    both a source and a destination can match.
    """
    if not sources and not destinations:
        return [[]]
    result = []
    for version, family in _FAMILY.items():
        # nft takes no set whose intervals overlap.
        ours = collapsed(sources, version)
        theirs = collapsed(destinations, version)
        if bool(ours) < bool(sources) or bool(theirs) < bool(destinations):
            continue
        match = []
        if ours:
            match.append(f"{family} saddr {_set(ours)}")
        if theirs:
            match.append(f"{family} daddr {_set(theirs)}")
        result.append(match)
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
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no explanation"]
        raise RulesetError(f"nft: {lines[0]}")
    return done.stdout
