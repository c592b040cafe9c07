# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper explain``: why is a flow blocked, on this gateway and now?"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cthelper.control import Control, NotRunning
from cthelper.core.cli.control import add_socket, connected
from cthelper.core.cli.options import Commands
from cthelper.core.errors import NotFound, UsageError
from cthelper.core.records import read_endpoint, read_flow, read_transport
from cthelper.core.tuples import Endpoint, Tuple

if TYPE_CHECKING:
    from cthelper.core.control.explain import Asked
    from cthelper.core.control.memory import Memory

_FORM: Final = "tcp 10.77.1.2 > 10.77.2.2:2049"
# All that is remembered.
_EVER: Final = 10.0**9
_MARKS: Final = {True: "!", None: "?", False: " "}


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "explain",
        help="why is this flow blocked: what was announced or refused, and which rule "
        "drops it",
        description="Says what is in the way of a flow through this host that begins "
        f'now, such as "{_FORM}": whether an expectation admits it, or what came '
        "nearest, whether its control flow is read, and which of your own rules "
        "accepts or drops it. Run it as root. Lines with ! say what blocks, with ? "
        "what may. Exit codes: 0 nothing is in the way, 1 something is, or may be.",
    )
    parser.add_argument(
        "flow",
        nargs="+",
        metavar="FLOW",
        help="transport, source and destination, also in one word with > between; the "
        "source's port may be left out; of IPv6 [address]:port",
    )
    parser.add_argument(
        "--control",
        metavar="FLOW",
        help="the control flow that should have announced it, in one word (default: "
        "those between the two hosts)",
    )
    parser.add_argument(
        *("-i", "--iif"),
        metavar="INTERFACE",
        help="by which interface it comes in (default: that of the route back)",
    )
    parser.add_argument(
        "--zone", type=int, default=0, metavar="ZONE", help="its conntrack zone"
    )
    add_socket(parser)
    parser.add_argument(
        "--json", action="store_true", help="one JSON object (docs/control.md)"
    )
    parser.set_defaults(command=_explain)


def _explain(options: argparse.Namespace) -> int:
    from cthelper import nft
    from cthelper.core.control.explain import Gathered, answer
    from cthelper.core.daemon.way import settings, way
    from cthelper.core.firewall import rule_texts

    asked = read_asked(options.flow)
    control = None if options.control is None else read_asked([options.control])
    memory = status = None
    flows: list[Any] = []
    # Where nobody answers this is said, and the rules are there all the same.
    with suppress(NotRunning):
        status, flows, memory = _ask(options, asked, control)
        _take_names(flows)
    ends = asked.flow.source.address, asked.flow.destination.address
    texts = rule_texts(nft.ruleset_text())
    family, _, table = nft.TABLE.partition(" ")
    found = answer(
        Gathered(
            asked=asked,
            control=control,
            memory=memory,
            status=status,
            flows=flows,
            listing=nft.whole_ruleset(),
            texts=texts,
            table=(family, table),
            way=way(*ends, options.iif),
            settings=settings(Path("/")),
        )
    )
    if options.json:
        told = [each.record(texts) for each in found.findings]
        record = {"flow": str(asked), "verdict": found.verdict, "findings": told}
        print(json.dumps(record))
    else:
        print(asked)
        for each in found.findings:
            print(f"{_MARKS[each.blocks]} {each.kind:<10} {_plain(each.text)}")
        print(found.verdict)
    return int(found.blocks is not False)


def _take_names(flows: Iterable[dict[str, Any]]) -> None:
    """Have flows name no helper that is not theirs any more. Raises NetlinkError."""
    from cthelper.core.netlink.ctnetlink import Ctnetlink

    # The others' packets have come to a server.
    doubtful = [each for each in flows if each.get("inspection") == "unknown"]
    if not doubtful:
        return
    with closing(Ctnetlink()) as ctnetlink:
        for each in doubtful:
            flow = read_flow(each["flow"])
            with suppress(NotFound):  # it has ended meanwhile
                if not ctnetlink.is_attached(flow, each["helper"], each["zone"]):
                    each.update(helper=None, inspection=None)


def _plain(text: str) -> str:
    """A line that no terminal obeys, whatever a stranger's message has put in it."""
    return "".join(each if each.isprintable() else "?" for each in text)


def read_asked(words: Sequence[str]) -> "Asked":
    """The flow that these words say. Raises UsageError."""
    from cthelper.core.control.explain import Asked

    parts = " ".join(words).replace(">", " ").split()
    try:
        transport, source, destination = parts
    except ValueError:
        raise UsageError(f'{" ".join(parts)} is no flow such as "{_FORM}"') from None
    try:
        goes_to = read_endpoint(destination)
        comes_from, any_port = _source(source)
        flow = Tuple(read_transport(transport), comes_from, goes_to)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if comes_from.address.version != goes_to.address.version:
        raise UsageError("source and destination are of two versions of IP")
    return Asked(flow, any_port)


def _source(text: str) -> tuple[Endpoint, bool]:
    """Where a flow comes from, and whether its port was left out. Raises ValueError."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        return Endpoint(ip_address(bare), 0), True
    except ValueError:
        return read_endpoint(text), False


def _ask(
    options: argparse.Namespace, asked: "Asked", control: "Asked | None"
) -> tuple[Any, list[Any], "Memory"]:
    """The daemon's status, the flows between the hosts, and what was announced."""
    from cthelper.core.control.memory import EVENTS, Memory

    def between(one: "Asked", daemon: Control) -> list[Any]:
        ends = str(one.flow.source.address), str(one.flow.destination.address)
        return [
            each
            for source, destination in dict.fromkeys((ends, ends[::-1]))
            for each in daemon.flows(
                others=True, source=source, destination=destination, zone=options.zone
            )
        ]

    with connected(options) as daemon:
        status = daemon.status()
        flows = between(asked, daemon)
        hosts = {asked.flow.source.address, asked.flow.destination.address}
        if control is not None and hosts != {
            control.flow.source.address,
            control.flow.destination.address,
        }:
            flows += between(control, daemon)
        live = list(daemon.expectations(zone=options.zone))
        events = list(daemon.events(since=_EVER, follow=False, events=EVENTS))
        masters = {
            read_flow(each["flow"])
            for each in daemon.flows(zone=options.zone)
            if not each["gone"]
        }
    memory = Memory(time.time(), live, masters, events)
    return status, flows, memory
