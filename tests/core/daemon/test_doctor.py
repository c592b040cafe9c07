# SPDX-License-Identifier: GPL-2.0-or-later
"""Each finding of the doctor, on hosts that are folders."""

import gzip
import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cthelper import nft
from cthelper.core.config import Config, DaemonConfig, parse
from cthelper.core.daemon import doctor
from cthelper.core.daemon.doctor import Finding, Health, Host
from cthelper.core.daemon.privileges import Confinement, NoSuchUser, User
from cthelper.core.daemon.probe import CannotAsk, Kernel
from cthelper.core.errors import CthelperError, RulesetError
from cthelper.core.queue import binding
from cthelper.core.registry import builtin_helpers

OK, WARNING, FAILURE = Health.OK, Health.WARNING, Health.FAILURE
RELEASE = "6.1.0-test"
SYSCTL = "proc/sys/net/netfilter"


def config(settings: str = "") -> Config:
    helpers = builtin_helpers()
    two = {name: helpers[name] for name in ("mdns", "sunrpc")}
    return parse(settings, Path("test.toml"), two)


class Folder:
    """A host's files below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def host(self) -> Host:
        return Host(self.root, RELEASE)

    def write(self, path: str, content: str | bytes = "") -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        file.write_bytes(data)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(doctor, "ask", lambda: Kernel(keeps_limits=True))
    return Folder(tmp_path)


def test_finding_is_a_line_with_its_mending_text() -> None:
    assert str(Finding(OK, "all well")) == "ok       all well"
    assert str(Finding(WARNING, "nearly full", "empty it")) == (
        "warning  nearly full: empty it"
    )
    assert str(Finding(FAILURE, "gone", "get it")) == "FAIL     gone: get it"


def test_files_that_are_not_there_have_neither_text_nor_number(folder: Folder) -> None:
    assert folder.host.text("absent") is None
    assert folder.host.number("absent") is None
    folder.write("words", "many\n")
    assert folder.host.number("words") is None
    folder.write("number", "42\n")
    assert folder.host.number("number") == 42


# The kernel.


@pytest.mark.parametrize(
    ("release", "health"),
    [
        ("6.1.0-56-amd64", OK),
        ("6.10.3", OK),
        ("7.0", OK),
        ("6.0.19", FAILURE),
        ("5.15.0-1-cloud", FAILURE),
        ("unknown", FAILURE),
    ],
)
def test_kernel_is_6_1_or_later(release: str, health: Health) -> None:
    finding = doctor.kernel(Host(release=release))
    assert finding.health is health
    assert release in finding.what
    assert finding.mend == ("" if health is OK else "boot Linux 6.1 or later")


@pytest.mark.parametrize(
    ("capabilities", "health"),
    [
        ("000001ffffffffff", OK),
        ("0000000000001000", OK),
        ("0000000000000000", FAILURE),
        ("000001ffffffefff", FAILURE),
    ],
    ids=["all", "the one", "none", "all but the one"],
)
def test_process_has_the_capability(
    folder: Folder, capabilities: str, health: Health
) -> None:
    folder.write(
        "proc/self/status",
        f"Name:\tcthelper\nCapPrm:\t000001ffffffffff\nCapEff:\t{capabilities}\n"
        "CapBnd:\t000001ffffffffff\n",
    )
    finding = doctor.privileges(folder.host)
    assert finding.health is health
    assert "CAP_NET_ADMIN" in finding.what
    mend = "run as root" if os.geteuid() else "give it to the container or service"
    assert finding.mend == ("" if health is OK else mend)


def test_capability_that_cannot_be_read_is_a_failure(folder: Folder) -> None:
    assert doctor.privileges(folder.host).health is FAILURE


@pytest.mark.parametrize(
    ("gaps", "version", "filtered", "lines"),
    [
        (
            (),
            2,
            True,
            [
                "ok       Landlock, version 2",
                "ok       system calls can be filtered (libseccomp)",
                "ok       workers are of user cthelper",
            ],
        ),
        (
            ("no Landlock: boot another", "no filter: install it"),
            0,
            False,
            [
                "warning  no Landlock: boot another",
                "warning  no filter: install it",
                "ok       workers are of user cthelper",
            ],
        ),
    ],
    ids=["all", "nothing"],
)
def test_what_confines_servers_is_named(
    monkeypatch: pytest.MonkeyPatch,
    gaps: tuple[str, ...],
    version: int,
    filtered: bool,
    lines: list[str],
) -> None:
    found = Confinement(User("cthelper", 9, 9), version, filtered, (), gaps)
    monkeypatch.setattr(doctor, "plan", lambda user: found)
    assert list(map(str, doctor.confinement("cthelper"))) == lines


def test_configured_user_that_is_not_there_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plan(user: str) -> Confinement:
        raise NoSuchUser(f"there is no user {user}: adduser it")

    monkeypatch.setattr(doctor, "plan", plan)
    assert list(map(str, doctor.confinement("x"))) == [
        "FAIL     daemon.user: there is no user x: adduser it"
    ]


MODULES = [
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nfnetlink_cthelper",
    "nfnetlink_queue",
    "nf_tables",
    "nft_ct",
    "nft_queue",
    "nft_objref",
]


def modules(folder: Folder) -> dict[str, Finding]:
    """The findings by module."""
    return {
        finding.what.removeprefix("kernel module ").split()[0]: finding
        for finding in doctor.modules(folder.host)
    }


def test_missing_modules_are_failures_that_name_their_symbol(folder: Folder) -> None:
    found = modules(folder)
    assert list(found) == MODULES
    assert all(each.health is FAILURE for each in found.values())
    assert str(found["nfnetlink_cthelper"]) == (
        "FAIL     kernel module nfnetlink_cthelper (helpers in user space) is missing: "
        "boot a kernel with CONFIG_NF_CT_NETLINK_HELPER, and with its modules: "
        "docs/kernels.md"
    )


def test_modules_are_found_wherever_they_are(folder: Folder) -> None:
    folder.write("sys/module/nf_conntrack/refcnt", "1")
    folder.write(
        f"lib/modules/{RELEASE}/modules.builtin",
        "kernel/net/netfilter/nf_conntrack_netlink.ko\n",
    )
    folder.write(
        f"lib/modules/{RELEASE}/modules.dep",
        "kernel/net/netfilter/nfnetlink_cthelper.ko.xz: kernel/net/x/nft_ct2.ko\n"
        "kernel/net/netfilter/nfnetlink_queue.ko: kernel/net/netfilter/nfnetlink.ko\n",
    )
    folder.write(
        f"boot/config-{RELEASE}",
        "CONFIG_NF_TABLES=y\nCONFIG_NFT_CT=m\nCONFIG_NF_TABLES_INET=y\n",
    )
    found = modules(folder)
    assert {name: each.health for name, each in found.items()} == {
        **dict.fromkeys(MODULES, OK),
        "nft_ct": FAILURE,
        "nft_queue": FAILURE,
        "nft_objref": FAILURE,
    }
    states = [each.what.split(", ")[-1] for each in found.values()]
    assert states[:5] == ["loaded", "built in", "loadable", "loadable", "built in"]


@pytest.mark.parametrize(
    ("release", "needed"), [("6.1.192-a", True), ("6.2.0", False), ("7.2.13", False)]
)
def test_objects_are_a_module_of_old_kernels_alone(
    folder: Folder, release: str, needed: bool
) -> None:
    found = doctor.modules(Host(folder.root, release))
    assert any("nft_objref" in each.what for each in found) is needed


@pytest.mark.parametrize("workers", [1, 2])
def test_hashes_are_needed_for_several_workers(folder: Folder, workers: int) -> None:
    several = config(f"daemon.workers = {workers}\n")
    found = list(doctor.configured_modules(several, folder.host))
    assert [each.health for each in found] == [FAILURE] * (workers - 1)


def test_routes_are_looked_up_for_broadcasts(folder: Folder) -> None:
    asking = parse("helpers.gvcp.enabled = true", Path("test.toml"), builtin_helpers())
    (found,) = doctor.configured_modules(asking, folder.host)
    assert found.health is FAILURE
    assert "nft_fib_inet" in found.what


PART = "the kernel has no CONFIG_NF_CONNTRACK_MARK (the mark of finished flows)"


@pytest.mark.parametrize(
    ("configuration", "settings", "found"),
    [
        (None, "", []),
        ("CONFIG_NF_CONNTRACK_MARK=y\n", "", []),
        ("# CONFIG_NF_CONNTRACK_MARK is not set\n", "", [PART]),
        ("# CONFIG_NF_CONNTRACK_MARK is not set\n", "daemon.mark = 0\n", []),
    ],
)
def test_mark_is_needed_unless_none_is_used(
    folder: Folder, configuration: str | None, settings: str, found: list[str]
) -> None:
    if configuration is not None:
        folder.write(f"boot/config-{RELEASE}", configuration)
    findings = list(doctor.configured_modules(config(settings), folder.host))
    assert [each.what for each in findings] == found
    assert all(each.mend.startswith("set mark = 0 ") for each in findings)


def test_running_kernels_own_configuration_counts(folder: Folder) -> None:
    folder.write("proc/config.gz", gzip.compress(b"CONFIG_NF_TABLES_INET=y\n"))
    folder.write(f"boot/config-{RELEASE}", "# another one of this name\n")
    assert not any("INET" in each.what for each in doctor.modules(folder.host))
    (folder.root / "proc/config.gz").unlink()
    assert any("INET" in each.what for each in doctor.modules(folder.host))


GLUE = "CONFIG_NETFILTER_NETLINK_GLUE_CT"


@pytest.mark.parametrize(
    ("configuration", "health", "what", "mend"),
    [
        (f"{GLUE}=y\n", OK, "queued packets carry their conntrack entry", ""),
        (
            f"# {GLUE} is not set\n",
            FAILURE,
            "queued packets do not carry their conntrack entry",
            f"boot a kernel with {GLUE}=y",
        ),
        (
            None,
            WARNING,
            "cannot tell whether queued packets carry conntrack",
            f"boot a kernel with {GLUE}=y",
        ),
    ],
    ids=["set", "not set", "no configuration"],
)
@pytest.mark.parametrize(
    "place",
    [f"boot/config-{RELEASE}", f"lib/modules/{RELEASE}/config", "proc/config.gz"],
)
def test_queued_packets_carry_conntrack(
    folder: Folder,
    configuration: str | None,
    health: Health,
    what: str,
    mend: str,
    place: str,
) -> None:
    if configuration is not None:
        data = configuration.encode()
        folder.write(place, gzip.compress(data) if place.endswith(".gz") else data)

    def cannot() -> Kernel:
        raise CannotAsk("no")

    found = list(doctor.behaviour(folder.host, cannot))
    warning, glue = found
    assert (warning.health, warning.what) == (WARNING, "no")
    assert glue == Finding(health, what, mend)


@pytest.mark.parametrize(
    ("changes", "unwell"),
    [
        ({}, ""),
        ({"carries_entries": False}, "FAIL     queued packets do not carry"),
        (
            {"confirms": False},
            "warning  a packet that repeats its hook has its flow not",
        ),
        ({"renews": False}, "warning  an expectation lives as long as its policy says"),
        ({"takes_class": False}, "warning  an expectation is of its helper's first"),
        ({"keeps_limits": False}, "warning  a registered helper's limits cannot be"),
        ({"hands_down": True}, ""),
        ({"adjusts_twice": False}, ""),
    ],
)
def test_what_the_kernel_does_is_asked(
    folder: Folder, changes: dict[str, bool], unwell: str
) -> None:
    kernel = replace(Kernel(keeps_limits=True), **changes)
    found = list(doctor.behaviour(folder.host, lambda: kernel))
    assert len(found) == 7
    bad = [str(each) for each in found if each.health is not OK]
    assert len(bad) == bool(unwell)
    assert all(each.startswith(unwell) for each in bad)


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        (
            Kernel(),
            "sequence numbers are adjusted twice: a rewritten TCP flow's packets",
        ),
        (
            Kernel(adjusts_twice=False),
            "sequence numbers of a rewritten TCP flow are adjusted once",
        ),
        (Kernel(), "an expected flow has no helper but one that a rule attaches"),
        (
            Kernel(hands_down=True),
            "an expected flow has its master's helper, which the",
        ),
    ],
)
def test_what_the_daemon_lives_with_is_told(
    folder: Folder, kernel: Kernel, what: str
) -> None:
    found = doctor.behaviour(folder.host, lambda: kernel)
    assert any(each.what.startswith(what) for each in found)


# Programs.


@pytest.mark.parametrize(
    ("version", "finding"),
    [
        ("nftables v1.0.6 (Lester Gooch #5)", Finding(OK, "nft v1.0.6")),
        ("nftables v1.1.0 (Commodore)", Finding(OK, "nft v1.1.0")),
        (
            "nftables v0.9.8 (E.D.S.)",
            Finding(
                FAILURE, "'nftables v0.9.8 (E.D.S.)' is too old", "install nft 1.0.6"
            ),
        ),
        (
            "nftables v1.0.5 (Lester Gooch #4)",
            Finding(
                FAILURE,
                "'nftables v1.0.5 (Lester Gooch #4)' is too old",
                "install nft 1.0.6",
            ),
        ),
        ("nftables v1.1 (x)", Finding(OK, "nft v1.1")),
    ],
    ids=["1.0.6", "1.1.0", "0.9.8", "1.0.5", "1.1"],
)
def test_nft_is_debian_12s_or_later(
    monkeypatch: pytest.MonkeyPatch, version: str, finding: Finding
) -> None:
    monkeypatch.setattr(nft, "version", lambda: version)
    assert doctor.nft_program() == finding


def test_missing_nft_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> str:
        raise RulesetError("nft is not installed: apt-get install nftables")

    monkeypatch.setattr(nft, "version", absent)
    expected = Finding(FAILURE, "nft is not installed", "apt-get install nftables")
    assert doctor.nft_program() == expected


@pytest.mark.parametrize(
    ("wanted", "native", "library", "health", "what"),
    [
        ("auto", True, True, OK, "queue backend native: the extension in C is there"),
        ("auto", True, False, OK, "queue backend native: the extension in C is there"),
        ("auto", False, True, WARNING, "queue backend netfilterqueue: the extension"),
        ("auto", False, False, FAILURE, "no queue backend"),
        ("native", True, True, OK, "queue backend native: it is configured"),
        ("native", False, True, FAILURE, "the native queue backend cannot be used"),
        ("netfilterqueue", True, True, OK, "queue backend netfilterqueue: it is conf"),
        ("netfilterqueue", True, False, FAILURE, "no queue backend: it is configured"),
    ],
)
def test_queue_backend_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    native: bool,
    library: bool,
    health: Health,
    what: str,
) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if library else None
    )
    module = (
        SimpleNamespace(NativeQueue=None, bind_queue=None, wait=None)
        if native
        else None
    )
    monkeypatch.setitem(sys.modules, "cthelper.core.queue.native", module)
    monkeypatch.delattr("cthelper.core.queue.native", raising=False)
    if native:
        monkeypatch.setattr("cthelper.core.queue.native", module, raising=False)
    daemon = DaemonConfig(backend=wanted)
    finding = doctor.queue_backend(Config(daemon=daemon, helpers={}))
    assert finding.health is health
    assert finding.what.startswith(what)
    assert bool(finding.mend) is (health is not OK)


# What others hold.


def test_names_are_free(folder: Folder) -> None:
    assert list(doctor.names(config(), folder.host)) == [
        Finding(OK, "helper name mdns"),
        Finding(OK, "helper name sunrpc"),
    ]


def test_name_that_a_kernel_module_serves_is_a_failure(folder: Folder) -> None:
    folder.write("sys/module/nf_conntrack_sunrpc/refcnt", "0")
    _, finding = doctor.names(config(), folder.host)
    assert str(finding) == (
        "FAIL     helper name sunrpc is taken by the kernel module "
        "nf_conntrack_sunrpc: set another one in helpers.sunrpc.known_as"
    )


KNOWN_AS = '[helpers.sunrpc]\nknown_as = "sunrpc-u"\n'


def ruleset_with(
    monkeypatch: pytest.MonkeyPatch, folder: Folder, *names: object
) -> list[str]:
    """What is found where rules match these helpers and a module has one's name."""
    folder.write("sys/module/nf_conntrack_sunrpc/refcnt", "0")
    rule = {"family": "inet", "table": "filter", "chain": "forward", "handle": 7}
    key = {"ct": {"key": "helper"}}
    matches = [{"match": {"op": "==", "left": key, "right": each}} for each in names]
    ruleset = [{"rule": {**rule, "expr": matches}}]
    monkeypatch.setattr(nft, "loaded_ruleset", lambda: ruleset)
    return [str(each) for each in doctor.names(config(KNOWN_AS), folder.host)][1:]


RENAMED = (
    "ok       helper sunrpc is known as sunrpc-u, since the kernel module "
    "nf_conntrack_sunrpc has its name"
)


@pytest.mark.parametrize(
    "names",
    [(), ("mdns",), ("sunrpc-u",), ("sunrpc", "sunrpc-u"), ({"set": ["sunrpc-u"]},)],
)
def test_another_name_is_told_of(
    monkeypatch: pytest.MonkeyPatch, folder: Folder, names: tuple[object, ...]
) -> None:
    assert ruleset_with(monkeypatch, folder, *names) == [RENAMED]


@pytest.mark.parametrize("named", ["sunrpc", {"set": ["mdns", "sunrpc"]}])
def test_rules_that_mean_the_kernels_helper_are_told_of(
    monkeypatch: pytest.MonkeyPatch, folder: Folder, named: object
) -> None:
    assert ruleset_with(monkeypatch, folder, named) == [
        RENAMED,
        'warning  rule inet filter forward handle 7 matches ct helper "sunrpc", which '
        'is the helper of nf_conntrack_sunrpc: let it match "sunrpc-u", so that it '
        "accepts what ours expects",
    ]


def test_rules_that_cannot_be_listed_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch, folder: Folder
) -> None:
    def refused() -> list[dict[str, object]]:
        raise RulesetError("nft: no")

    folder.write("sys/module/nf_conntrack_sunrpc/refcnt", "0")
    monkeypatch.setattr(nft, "loaded_ruleset", refused)
    found = [str(each) for each in doctor.names(config(KNOWN_AS), folder.host)]
    assert found[1:] == [RENAMED]


def test_names_of_disabled_helpers_do_not_matter(folder: Folder) -> None:
    folder.write("sys/module/nf_conntrack_sunrpc/refcnt", "0")
    only = config("[helpers.sunrpc]\nenabled = false\n")
    assert [each.health for each in doctor.names(only, folder.host)] == [OK]


def test_queue_that_is_bound_is_a_failure(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("queues", " 2077  31621     0 2 65531     0     0        0  1\n")
    monkeypatch.setattr(binding, "PROC", folder.root / "queues")
    found = doctor.queues(config("[helpers.sunrpc]\nqueue = 9\n"))
    assert list(map(str, found)) == [
        "ok       queue 9 is free",
        "FAIL     queue 2077 is in use (netlink port 31621): "
        "stop the other cthelper, or set another queue number",
    ]


def test_queues_of_all_workers_are_looked_at(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("queues", " 2079  31621     0 2 65531     0     0        0  1\n")
    monkeypatch.setattr(binding, "PROC", folder.root / "queues")
    workers = config("daemon.workers = 3\nhelpers.mdns.enabled = false\n")
    found = [each.what for each in doctor.queues(workers)]
    assert found == [
        "queue 2077 is free",
        "queue 2078 is free",
        "queue 2079 is in use (netlink port 31621)",
    ]


def test_conntrackd_that_runs_is_a_warning(folder: Folder) -> None:
    folder.write("proc/7/comm", "conntrack\n")
    assert doctor.other_daemon(folder.host) == Finding(OK, "conntrackd is not running")
    folder.write("proc/4711/comm", "conntrackd\n")
    finding = doctor.other_daemon(folder.host)
    assert finding.health is WARNING
    assert finding.what == "conntrackd is running (process 4711)"
    assert "leave the helpers" in finding.mend


@pytest.mark.parametrize(
    ("value", "health"), [("0", WARNING), ("1", OK), ("2", OK), (None, OK)]
)
def test_events_that_are_off_are_a_warning(
    folder: Folder, value: str | None, health: Health
) -> None:
    if value is not None:
        folder.write(f"{SYSCTL}/nf_conntrack_events", f"{value}\n")
    finding = doctor.events(folder.host)
    assert finding.health is health
    if health is WARNING:
        assert finding.mend == "sysctl -w net.netfilter.nf_conntrack_events=2"


def test_kernel_without_events_is_a_warning(folder: Folder) -> None:
    folder.write(f"boot/config-{RELEASE}", "CONFIG_NF_CONNTRACK_EVENTS=y\n")
    assert doctor.events(folder.host).health is OK
    folder.write(f"boot/config-{RELEASE}", "CONFIG_NF_CONNTRACK=m\n")
    finding = doctor.events(folder.host)
    assert finding.health is WARNING
    assert "CONFIG_NF_CONNTRACK_EVENTS" in finding.mend


# How full the tables are.


@pytest.mark.parametrize(
    ("used", "health"), [(0, OK), (799, OK), (800, WARNING), (1000, WARNING)]
)
def test_conntrack_table_is_full_at_80_percent(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, used: int, health: Health
) -> None:
    monkeypatch.setattr(doctor, "_expectations", lambda: 0)
    folder.write(f"{SYSCTL}/nf_conntrack_count", f"{used}\n")
    folder.write(f"{SYSCTL}/nf_conntrack_max", "1000\n")
    finding, _ = doctor.fills(folder.host)
    assert finding.health is health
    assert finding.what.startswith(f"nf_conntrack_max: {used} of 1000 used (")
    assert finding.mend == (
        "" if health is OK else "sysctl -w net.netfilter.nf_conntrack_max=2000"
    )


@pytest.mark.parametrize(("used", "health"), [(0, OK), (44, OK), (45, WARNING)])
def test_expectation_table_is_full_before_it_takes_no_more_of_ours(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, used: int, health: Health
) -> None:
    monkeypatch.setattr(doctor, "_expectations", lambda: used)
    folder.write(f"{SYSCTL}/nf_conntrack_expect_max", "64\n")
    _, finding = doctor.fills(folder.host)
    assert finding.health is health
    assert finding.mend == (
        "" if health is OK else "sysctl -w net.netfilter.nf_conntrack_expect_max=128"
    )


def test_tables_that_cannot_be_read_are_warnings(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_expectations", lambda: None)
    folder.write(f"{SYSCTL}/nf_conntrack_expect_max", "64\n")
    folder.write(f"{SYSCTL}/nf_conntrack_count", "64\n")
    folder.write(f"{SYSCTL}/nf_conntrack_max", "0\n")
    expected = [
        Finding(WARNING, f"{name}: cannot be read", "run as root; load nf_conntrack")
        for name in ("nf_conntrack_max", "nf_conntrack_expect_max")
    ]
    assert list(doctor.fills(folder.host)) == expected


def test_examination_ends_on_an_empty_host_and_whatever_is_wrong_has_its_mending(
    folder: Folder,
) -> None:
    found = list(doctor.examine(config, folder.host))
    assert len(found) >= len(MODULES) + 12
    assert all(each.mend for each in found if each.health is not OK)
    assert FAILURE in [each.health for each in found]
    assert Finding(OK, "configuration: mdns, sunrpc") in found


def test_broken_configuration_is_one_failure_among_the_others(folder: Folder) -> None:
    def read() -> Config:
        raise CthelperError("x.toml: daemon.queue = -1: must be a number")

    found = list(doctor.examine(read, folder.host))
    broken = [each for each in found if each.what.startswith("configuration")]
    assert [str(each) for each in broken] == [
        "FAIL     configuration: x.toml: daemon.queue = -1: must be a number: mend it; "
        "names, queues, ruleset and mark are not looked at until then"
    ]
    # All else that was found with one that is right.
    right = list(doctor.examine(config, folder.host))
    others = {each.what for each in right if "configuration" not in each.what}
    theirs = [*doctor.names(config(), folder.host), *doctor.queues(config())]
    theirs += [doctor.ruleset(config()), *doctor.mark(config())]
    theirs += doctor.confinement(config().daemon.user)
    assert others - {each.what for each in found} == {each.what for each in theirs}


SERVED = " 2077  31621     0 2 65531     0     0        0  1\n"


@pytest.mark.parametrize(
    ("rows", "missing", "settings", "line"),
    [
        ("", True, "", "ok       no daemon serves that needs table inet cthelper"),
        (
            SERVED,
            False,
            "",
            "ok       table inet cthelper is loaded (lost_ruleset: restore)",
        ),
        (
            SERVED,
            False,
            'daemon.lost_ruleset = "warn"\n',
            "ok       table inet cthelper is loaded (lost_ruleset: warn)",
        ),
        (
            SERVED,
            True,
            "",
            "warning  table inet cthelper is not loaded, though a daemon serves queue "
            "2077: nothing is inspected: reload cthelper; event=ruleset-lost in its "
            "log says when it was lost",
        ),
        (
            SERVED,
            RulesetError("nft: Operation not permitted: run as root"),
            "",
            "warning  table inet cthelper cannot be listed: nft: Operation not "
            "permitted: run as root",
        ),
        (
            SERVED,
            RulesetError("nft is not installed: apt-get install nftables"),
            "",
            "warning  table inet cthelper cannot be listed: nft is not installed: "
            "apt-get install nftables",
        ),
    ],
    ids=["nobody serves", "loaded", "only told", "lost", "no root", "no nft"],
)
def test_ruleset_of_a_daemon_that_serves_is_loaded(
    folder: Folder,
    monkeypatch: pytest.MonkeyPatch,
    rows: str,
    missing: bool | Exception,
    settings: str,
    line: str,
) -> None:
    def asked(_config: Config) -> bool:
        if isinstance(missing, Exception):
            raise missing
        return missing

    folder.write("queues", rows)
    monkeypatch.setattr(binding, "PROC", folder.root / "queues")
    monkeypatch.setattr(nft, "missing", asked)
    assert str(doctor.ruleset(config(settings))) == line
