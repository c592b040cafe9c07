# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper expectations``: what may come, by hand, in words and not in masks."""

import argparse
from collections.abc import Iterable
from typing import Any

from cthelper.core.cli.control import (
    add_filter,
    add_json,
    add_socket,
    connected,
    expectation_line,
    filter_of,
    print_records,
)
from cthelper.core.cli.options import Commands
from cthelper.core.errors import UsageError


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "expectations",
        help="expectations in the kernel: list, add, delete, flush",
        description="Lists the expectations of this host's kernel, adds one by hand, "
        "deletes those that the options say, or flushes those of the daemon's helpers. "
        "Only root may change anything.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="lists them, the kernel's helpers' too")
    deleting = actions.add_parser(
        "delete",
        help="deletes those of the daemon's helpers that the options say",
    )
    for each, request in ((listing, "expectations"), (deleting, "delete-expectations")):
        add_socket(each)
        add_json(each)
        add_filter(each)
        each.set_defaults(command=_run, request=request, all=False)
    flushing = actions.add_parser(
        "flush", help="deletes all those of the daemon's helpers"
    )
    add_socket(flushing)
    add_json(flushing)
    flushing.set_defaults(command=_run, request="delete-expectations", all=True)
    adding = actions.add_parser(
        "add",
        help="adds one, of a control flow that is there",
        description="Has the kernel expect a flow, as if the control flow had told of "
        "it. It has the timeout of the helper's policy and ends with the control flow. "
        "It is not translated: behind NAT rules of yours are.",
    )
    add_socket(adding)
    add_json(adding)
    adding.add_argument("transport", choices=("tcp", "udp"), help="of what is expected")
    adding.add_argument(
        "destination",
        metavar="ADDRESS:PORT",
        help="where it goes; [ADDRESS]:PORT of IPv6",
    )
    adding.add_argument(
        "--from",
        dest="source",
        metavar="ADDRESS",
        help="where it comes from, an address or a network (default: anywhere)",
    )
    adding.add_argument(
        "--from-port", type=int, metavar="PORT", help="its source port (default: any)"
    )
    adding.add_argument(
        "--flow",
        nargs=3,
        required=True,
        metavar=("TRANSPORT", "SOURCE", "DESTINATION"),
        help="the control flow, such as tcp 10.0.0.2:650 10.0.1.1:111",
    )
    adding.add_argument(
        "--policy", metavar="NAME", help="the helper's policy (default: its first)"
    )
    adding.add_argument("--zone", type=int, default=0, help="the conntrack zone")
    adding.add_argument(
        "--permanent",
        action="store_true",
        help="let any number of flows in until it ends, not one",
    )
    adding.set_defaults(command=_add)


def _run(options: argparse.Namespace) -> int:
    wanted = filter_of(options)
    deletes = options.request == "delete-expectations"
    if deletes and not (wanted or options.all):
        raise UsageError("expectations delete: say which, or flush all")
    with connected(options) as control:
        found = control.request(options.request, filter=wanted, all=options.all)
        if options.json:
            print_records(found)
        else:
            count = _print(found)
            if deletes:
                print(f"{count} expectations deleted")
    return 0


def _add(options: argparse.Namespace) -> int:
    transport, source, destination = options.flow
    details: dict[str, object] = {
        "zone": options.zone,
        "flow": {
            "transport": transport,
            "source": source,
            "destination": destination,
        },
        "expects": {
            "transport": options.transport,
            "source": options.source,
            "source_port": options.from_port,
            "destination": options.destination,
        },
        "permanent": options.permanent,
    }
    if options.policy is not None:
        details["policy"] = options.policy
    with connected(options) as control:
        found = control.request("add-expectation", **details)
        if options.json:
            print_records(found)
        else:
            _print(found)
    return 0


def _print(records: Iterable[dict[str, Any]]) -> int:
    count = 0
    for each in records:
        print(expectation_line(each), flush=True)
        count += 1
    return count
