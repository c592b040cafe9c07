# SPDX-License-Identifier: GPL-2.0-or-later
"""The way of a flow through this host, from what ip and the sysctls say."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import pytest

from cthelper.core.control.explain import Settings, Way
from cthelper.core.daemon.way import settings, way

SOURCE: Final = ip_address("192.0.2.1")
TO: Final = ip_address("198.51.100.2")
LAN: Final = {"dst": "192.0.2.1", "dev": "lan"}
WAN: Final = {"dst": "198.51.100.2", "dev": "wan"}
LOCAL: Final = {"type": "local", "dst": "198.51.100.2", "dev": "lo"}
FORWARDED: Final = ("prerouting", "forward", "postrouting")

Routes = Mapping[str, dict[str, str] | str]


def routed(monkeypatch: pytest.MonkeyPatch, routes: Routes) -> None:
    """Have ip answer so; a text is an error."""

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        found = routes[" ".join(command[5:])]
        if isinstance(found, str):
            text = f"RTNETLINK answers: {found}\nmore\n"
            return subprocess.CompletedProcess(command, 2, "", text)
        return subprocess.CompletedProcess(command, 0, json.dumps([found]), "")

    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/sbin/ip")
    monkeypatch.setattr(subprocess, "run", run)


ONWARD: Final = f"{TO} from {SOURCE} iif lan"


@pytest.mark.parametrize(
    ("routes", "iif", "found"),
    [
        (
            {str(SOURCE): LAN, ONWARD: WAN},
            None,
            Way(path=FORWARDED, iif="lan", oif="wan", back="lan"),
        ),
        (
            {str(SOURCE): WAN, ONWARD: "Invalid cross-device link"},
            "lan",
            Way(
                path=FORWARDED,
                iif="lan",
                oif=None,
                back="wan",
                refusal="Invalid cross-device link",
            ),
        ),
        (
            {str(SOURCE): LAN, ONWARD: LOCAL},
            None,
            Way(path=("prerouting", "input"), iif="lan", oif=None, back="lan"),
        ),
        (
            {str(SOURCE): LOCAL, str(TO): WAN},
            None,
            Way(path=("output", "postrouting"), iif=None, oif="wan", back="lo"),
        ),
        (
            {str(SOURCE): LOCAL, str(TO): "Network is unreachable"},
            None,
            Way(
                path=("output", "postrouting"),
                iif=None,
                oif=None,
                back="lo",
                refusal="Network is unreachable",
            ),
        ),
        (
            {str(SOURCE): "Network is unreachable", str(TO): WAN},
            None,
            Way(path=FORWARDED, iif=None, oif="wan", back=None),
        ),
    ],
    ids=["forwarded", "not routed", "to here", "from here", "not sent", "no way back"],
)
def test_way_is_that_which_the_kernel_routes(
    monkeypatch: pytest.MonkeyPatch, routes: Routes, iif: str | None, found: Way
) -> None:
    routed(monkeypatch, routes)
    assert way(SOURCE, TO, iif) == found


def test_without_ip_a_flow_counts_as_forwarded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    assert way(SOURCE, TO, "lan") == Way(path=FORWARDED, iif="lan", oif=None, back=None)


def test_settings_are_those_of_the_sysctls(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "proc/sys/net/ipv4/conf/all/rp_filter": 1,
        "proc/sys/net/ipv4/conf/default/rp_filter": 0,
        "proc/sys/net/ipv4/conf/lan/rp_filter": 0,
        "proc/sys/net/ipv4/conf/wan/rp_filter": 2,
        "proc/sys/net/ipv4/conf/odd/rp_filter": "no number",
        "proc/sys/net/netfilter/nf_conntrack_helper": 1,
        "proc/net/ip_tables_names": "filter\nnat\n",
    }
    for name, value in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    assert settings(tmp_path) == Settings(
        rp_filter={"lan": 1, "wan": 2},
        conntrack_helper=1,
        legacy_tables=("filter", "nat"),
    )
    assert settings(tmp_path / "none") == Settings()
