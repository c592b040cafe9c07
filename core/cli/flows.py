# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper flows``: control flows, what they announced, and what came of that."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from cthelper.core.cli.control import (
    add_filter,
    add_json,
    add_socket,
    amount,
    connected,
    filter_of,
    flow_text,
    print_records,
)
from cthelper.core.cli.options import Commands
from cthelper.core.errors import UsageError


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "flows",
        help="control flows of the running daemon, what each expects and what came "
        "of it; `flows delete` ends them",
        description="Lists the flows that have a helper of the running daemon; below "
        "each what it expects, with the seconds that are left, and the flows that were "
        "expected. A flow is listed where it, or what belongs to it, is what the "
        "options say. `delete` ends such control flows and their expectations, with "
        "--data their data flows, too; only root may.",
    )
    parser.add_argument(
        "action", nargs="?", choices=("list", "delete"), default="list", help="list"
    )
    add_socket(parser)
    add_json(parser)
    add_filter(parser, state=True)
    parser.add_argument(
        "--all",
        action="store_true",
        help="list: also entries of conntrack without a helper; delete: all control "
        "flows",
    )
    parser.add_argument(
        "--data", action="store_true", help="delete: the expected flows, too"
    )
    parser.set_defaults(command=_flows)


def _flows(options: argparse.Namespace) -> int:
    wanted = filter_of(options)
    deletes = options.action == "delete"
    if deletes and not (wanted or options.all):
        raise UsageError("flows delete: say which flows, or --all")
    if options.data and not deletes:
        raise UsageError("--data is for flows delete")
    with connected(options) as control:
        if deletes:
            found = control.request(
                "delete-flows", filter=wanted, data=options.data, all=options.all
            )
        else:
            found = control.flows(others=options.all, **wanted)
        if options.json:
            print_records(found)
            return 0
        count = 0
        for record in found:
            count += record.get("deleted", 1)
            print("\n".join(_lines(record)), flush=True)
        if deletes:
            print(f"{count} entries deleted")
    return 0


def _lines(record: dict[str, Any]) -> Iterator[str]:
    if record["gone"]:
        yield f"{flow_text(record['flow'])}  has ended"
    else:
        yield f"{flow_text(record['flow'])}  {_told(record)}"
    for each in record["expectations"]:
        kind = "permanent" if each["permanent"] else "once"
        yield (
            f"  expects {flow_text(each['expects'])}  {each['policy']}, {kind}, "
            f"{each['timeout']} s"
        )
    for each in record["flows"]:
        yield f"  expected {flow_text(each['flow'])}  {_told(each)}"


def _told(entry: dict[str, Any]) -> str:
    before, after = parts_told(entry)
    return ", ".join((*before, f"{entry['timeout']} s", *after))


def parts_told(entry: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What is known of an entry: before the seconds that it has left, and after."""
    before = [entry["helper"]] if entry["helper"] else []
    if entry["inspection"] == "finished":
        before.append(f"finished ({entry['reason']})")
    elif entry["inspection"] == "inspected":
        before.append("inspected")
    before.append(entry["state"] or ("answered" if entry["answered"] else "unanswered"))
    after = []
    if entry["packets"] is not None:
        packets, size = sum(entry["packets"]), sum(entry["bytes"])
        after.append(f"{packets:,} packets, {amount(size)}")
    translated = _translated(entry)
    if translated:
        after.append(translated)
    return before, after


def _translated(entry: Mapping[str, Any]) -> str:
    flow, reply = entry["flow"], entry["reply"]
    if (flow["source"], flow["destination"]) == (reply["destination"], reply["source"]):
        return ""
    return f"translated to {reply['destination']} > {reply['source']}"
