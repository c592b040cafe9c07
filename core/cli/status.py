# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper status``: is the daemon well, on one screen."""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from cthelper.core.cli.control import add_json, add_socket, amount, connected, duration
from cthelper.core.cli.options import Commands, complain

_EVERY: Final = 2.0
_NOT_RUNNING: Final = 2
# Clears a terminal's screen (ECMA-48: CUP, ED).
_CLEAR: Final = "\x1b[H\x1b[2J"


def add_parser(commands: "Commands[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "status",
        help="is the daemon well: workers, queues, ruleset, tables, budgets",
        description="Asks the running daemon how it is. Exit codes: 0 all is well, 1 "
        "something is amiss, which is said, 2 no daemon answers, or none that may be "
        "asked.",
    )
    add_socket(parser)
    add_json(parser)
    parser.add_argument(
        "--watch",
        nargs="?",
        type=duration,
        const=_EVERY,
        metavar="SECONDS",
        help="again and again, every 2 seconds or so many, until Ctrl-C",
    )
    parser.set_defaults(command=_status)


def _status(options: argparse.Namespace) -> int:
    from cthelper.control import ControlError

    while True:
        try:
            with connected(options) as control:
                found = control.status()
        except ControlError as error:
            complain(str(error))
            if options.watch is None:
                return _NOT_RUNNING
        else:
            if options.json:
                print(json.dumps(found), flush=True)
            else:
                clear = options.watch is not None and sys.stdout.isatty()
                text = "\n".join(_lines(found))
                print(f"{_CLEAR if clear else ''}{text}", flush=True)
            if options.watch is None:
                return int(found["health"] != "ok")
        time.sleep(options.watch)


def _lines(found: dict[str, Any]) -> Iterator[str]:
    supervisor = found["supervisor"]
    if supervisor is not None:
        age = age_text(time.time() - supervisor["since"])
        yield (
            f"cthelper {supervisor['version']}, {supervisor['code']}, "
            f"{supervisor['backend']} backend, Linux {supervisor['kernel']}, "
            f"process {supervisor['pid']} for {age}"
        )
    yield f"health       {found['health']}"
    for problem in found["problems"]:
        yield f"  !          {problem}"
    if supervisor is not None:
        yield f"ruleset      {'in place' if supervisor['ruleset'] else 'gone'}"
        yield f"reload       {_reload(supervisor['reload'])}"
        yield f"helpers      {', '.join(supervisor['helpers'])}"
    for server in found["servers"]:
        yield f"worker {server['worker']:<6}{_server(server)}"
    for queue in found["queues"]:
        yield f"queue {queue['queue']:<7}{_queue(queue)}"
    for name, fill in found["tables"].items():
        told = "not known" if fill is None else f"{fill['used']:,} of {fill['most']:,}"
        yield f"{name:<12} {told} in the kernel's table"
    counters = [f"{name} {count:,}" for name, count in found["counters"].items()]
    yield f"counted      {', '.join(counters) or 'nothing'}"


def _server(server: dict[str, Any]) -> str:
    if not server["answers"]:
        return "does not answer"
    flows, memory = server["flows"], server["memory"]
    return (
        f"process {server['pid']}: {flows['used']:,} of {flows['most']:,} flows, "
        f"{amount(memory['used'])} of {amount(memory['most'])}, "
        f"{server['expectations']:,} expectations"
    )


def _queue(queue: dict[str, Any]) -> str:
    if not queue["bound"]:
        return "not bound"
    fate = "dropped" if "dropped" in queue else "bypassed"
    return f"{queue['waiting']:,} waiting, {queue[fate]:,} {fate}"


def _reload(reload: dict[str, Any] | None) -> str:
    if reload is None:
        return "none since the start"
    when = datetime.fromtimestamp(reload["time"], UTC).isoformat(" ", "seconds")
    error = reload["error"]
    return f"{when} {'taken' if error is None else f'refused: {error}'}"


def age_text(seconds: float) -> str:
    """How long a process runs."""
    minutes = int(seconds) // 60
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"
