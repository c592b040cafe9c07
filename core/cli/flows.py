# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper flows``: control flows, what they announced, and what came of that."""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from cthelper.control import Control
from cthelper.core.cli.control import (
    add_filter,
    add_json,
    add_socket,
    amount,
    connected,
    expectation_line,
    filter_of,
    flow_text,
    print_records,
)
from cthelper.core.cli.options import Commands
from cthelper.core.errors import UsageError
from cthelper.core.tuples import Kind


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "flows",
        help="control flows of the running daemon, what each expects and what came "
        "of it; `flows delete` ends them, `flows events` shows them come and go",
        description="Lists the flows that have a helper of the running daemon; below "
        "each what it expects, with the seconds that are left, and the flows that were "
        "expected. A flow is listed where it, or what belongs to it, is what the "
        "options say. `delete` ends such control flows and their expectations, with "
        "--data their data flows, too; only root may. `events` prints entries and "
        "expectations as they come and go, until Ctrl-C.",
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "delete", "events"),
        default="list",
        help="list is the default",
    )
    add_socket(parser)
    add_json(parser)
    add_filter(parser, state=True)
    parser.add_argument(
        "--all",
        action="store_true",
        help="list, events: also entries of conntrack without a helper; delete: all "
        "control flows",
    )
    parser.add_argument(
        "--data", action="store_true", help="delete: the expected flows, too"
    )
    parser.add_argument(
        "--event",
        action="append",
        default=[],
        choices=[str(each) for each in Kind],
        help="events: of one kind; may be repeated",
    )
    parser.set_defaults(command=_flows)


def _flows(options: argparse.Namespace) -> int:
    wanted = filter_of(options)
    deletes = options.action == "delete"
    if deletes and not (wanted or options.all):
        raise UsageError("flows delete: say which flows, or --all")
    if options.data and not deletes:
        raise UsageError("--data is for flows delete")
    if options.event and options.action != "events":
        raise UsageError("--event is for flows events")
    with connected(options) as control:
        if options.action == "events":
            _follow(options, control)
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


def _follow(options: argparse.Namespace, control: Control) -> NoReturn:
    """Print what happens until a signal ends it, or the daemon does."""
    found = control.flow_events(
        events=options.event, others=options.all, **filter_of(options)
    )
    if options.json:
        print_records(found)
    else:
        for record in found:
            print(f"{record['time']} {_happened(record)}", flush=True)
    raise AssertionError  # it has no end


def _happened(record: dict[str, Any]) -> str:
    event = record["event"]
    if "times" in record:
        return f"{event} {record['times']} times: they came faster than they were read"
    if "expects" in record:
        return f"{event} {expectation_line(record)}"
    line = f"{event} {flow_text(record['flow'])}  {_told(record)}"
    master = record["master"]
    return line if master is None else f"{line}, expected by {flow_text(master)}"


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
    # What has ended has no time left.
    left = [] if entry.get("event") == Kind.DESTROY else [f"{entry['timeout']} s"]
    return ", ".join((*before, *left, *after))


def parts_told(entry: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What is known of an entry: before the seconds that it has left, and after."""
    before = [entry["helper"]] if entry["helper"] else []
    if entry.get("inspection") == "finished":
        before.append(f"finished ({entry['reason']})")
    elif entry.get("inspection") == "inspected":
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
