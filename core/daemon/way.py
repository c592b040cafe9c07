# SPDX-License-Identifier: GPL-2.0-or-later
"""Which way packets take through this host, and which settings stand beside it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from cthelper.core.control.explain import Settings, Way
from cthelper.core.tuples import Address

_SECONDS: Final = 30
_LOCAL: Final = ("local", "broadcast", "multicast", "anycast")
_HERE: Final = ("prerouting", "input")
_FORWARDED: Final = ("prerouting", "forward", "postrouting")
_SENT: Final = ("output", "postrouting")


class _Unroutable(Exception):
    """The kernel has no route; the message is its own."""


def way(source: Address, destination: Address, iif: str | None) -> Way:
    """The way of packets between two addresses.

    They come in by `iif`; None: by that of the route back.
    """
    try:
        back = _route(source)
    except _Unroutable:
        back = {}
    by = back.get("dev")
    if back.get("type") in _LOCAL:
        try:
            return Way(
                path=_SENT, iif=None, oif=_route(destination).get("dev"), back=by
            )
        except _Unroutable as error:
            return Way(path=_SENT, iif=None, oif=None, back=by, refusal=str(error))
    comes_by = iif or by
    more = () if comes_by is None else ("from", str(source), "iif", comes_by)
    try:
        onward = _route(destination, *more)
    except _Unroutable as error:
        text = str(error)
        return Way(path=_FORWARDED, iif=comes_by, oif=None, back=by, refusal=text)
    if onward.get("type") in _LOCAL:
        return Way(path=_HERE, iif=comes_by, oif=None, back=by)
    return Way(path=_FORWARDED, iif=comes_by, oif=onward.get("dev"), back=by)


def settings(root: Path) -> Settings:
    """What the sysctls below `root` say."""
    folder = root / "proc/sys/net"
    modes = {
        each.parent.name: mode
        for each in folder.glob("ipv4/conf/*/rp_filter")
        if (mode := _number(each)) is not None
    }
    least = modes.pop("all", 0)
    modes.pop("default", None)
    return Settings(
        rp_filter={name: max(mode, least) for name, mode in modes.items()},
        conntrack_helper=_number(folder / "netfilter/nf_conntrack_helper"),
        legacy_tables=(
            *_words(root / "proc/net/ip_tables_names"),
            *_words(root / "proc/net/ip6_tables_names"),
        ),
    )


def _route(address: Address, *more: str) -> dict[str, Any]:
    """What ``ip route get`` finds; nothing where there is no ip. Raises _Unroutable."""
    program = shutil.which("ip") or shutil.which("ip", path="/usr/sbin:/sbin")
    if program is None:
        return {}
    done = subprocess.run(
        [program, f"-{address.version}", "-j", "route", "get", str(address), *more],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    if done.returncode:
        line = done.stderr.strip().partition("\n")[0]
        raise _Unroutable(line.removeprefix("RTNETLINK answers: "))
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found[0] if found else {}


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
