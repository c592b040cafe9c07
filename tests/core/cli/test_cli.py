# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: exit codes, and errors of one line."""

import errno
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import cthelper
from cthelper import nft
from cthelper.core.config import parse
from cthelper.core.daemon import ruleset
from cthelper.core.daemon.ruleset import registrations
from cthelper.core.errors import Busy, NetlinkError, lacking
from cthelper.core.netlink.nfnetlink_cthelper import Registration
from cthelper.core.netlink.socket import NetlinkSocket
from cthelper.core.registry import builtin_helpers
from cthelper.helpers.discovery import Discovery
from tests.cases import cases
from tests.core.cli.runner import Runner

MODULE = ": a kernel module may be missing, `cthelper doctor` says which"
RULESETS = [("ruleset", action) for action in ("check", "install", "remove")]
INSTALLED = ", ".join(builtin_helpers())
KNOWN = ", ".join(name for name, each in builtin_helpers().items() if not each.template)


# Usage.


@cases(
    "arguments, complaint",
    {
        "no command": ((), "the following arguments are required: COMMAND"),
        "unknown command": (("burn",), "invalid choice: 'burn'"),
        "no action": (("ruleset",), "the following arguments are required: ACTION"),
        "unknown action": (("ruleset", "burn"), "invalid choice: 'burn'"),
        "too many arguments": (
            ("helpers", "mdns", "sunrpc"),
            "unrecognized arguments: sunrpc",
        ),
        "unknown option": (("run", "--fast"), "unrecognized arguments: --fast"),
        "option without its value": (("doctor", "--config"), "expected one argument"),
    },
)
def test_wrong_usage_is_2(
    run: Runner, arguments: tuple[str, ...], complaint: str
) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.output == ""
    assert result.errors.startswith("usage: cthelper")
    assert complaint in result.errors.splitlines()[-1]


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("run",),
        ("ruleset",),
        ("ruleset", "show"),
        ("ruleset", "check"),
        ("ruleset", "install"),
        ("ruleset", "remove"),
        ("helpers",),
        ("new",),
        ("doctor",),
    ],
    ids=lambda command: " ".join(command) or "cthelper",
)
def test_every_command_explains_itself(run: Runner, command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert (result.code, result.errors) == (0, "")
    usage, _, rest = result.output.partition("\n\n")
    assert usage.startswith("usage: " + " ".join(("cthelper", *command)))
    assert rest[0].isupper()


def test_version_is_that_of_the_package(run: Runner) -> None:
    result = run("--version")
    assert (result.code, result.output) == (0, f"cthelper {cthelper.__version__}\n")


def test_module_runs_the_same_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "cthelper", "helpers", "none"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"cthelper: no helper 'none', installed are {INSTALLED}\n")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_command_needs_no_standard_output(closed: str) -> None:
    command = (sys.executable, "-W", "error", "-m", "cthelper", "helpers")
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# Configuration.

TAKES_CONFIG = [
    ("run",),
    ("ruleset", "show"),
    ("ruleset", "check"),
    ("ruleset", "install"),
]


@pytest.mark.parametrize("command", TAKES_CONFIG, ids=" ".join)
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "[daemon]\nqueue = 70000\n",
            "daemon.queue = 70000: must be a number from 0 to 65535",
        ),
        (
            '[helpers.sunrpc]\nmode = "wide"\n',
            'helpers.sunrpc.mode = "wide": must be one of service, oneshot',
        ),
        (
            "[helpers.none]\n",
            f"[helpers.none]: unknown helper, known are {KNOWN}; "
            'one of your own has type = "discovery"',
        ),
    ],
    ids=["value", "option", "unknown helper"],
)
def test_wrong_configuration_is_2_and_one_line(
    run: Runner, tmp_path: Path, command: tuple[str, ...], text: str, complaint: str
) -> None:
    file = tmp_path / "cthelper.toml"
    file.write_text(text)
    result = run(*command, "--config", str(file))
    assert result.code == 2
    assert result.output == ""
    assert result.errors == f"cthelper: {file}: {complaint}\n"


@pytest.mark.parametrize("command", TAKES_CONFIG, ids=" ".join)
def test_configuration_that_is_not_there_is_2_and_one_line(
    run: Runner, tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "absent.toml"
    result = run(*command, "--config", str(file))
    assert (result.code, result.output) == (2, "")
    assert result.errors == (
        f"cthelper: {file}: cannot be read: No such file or directory\n"
    )


# Errors of the kernel.


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("errno", "advice"),
    [
        (errno.EPERM, f": {lacking()}"),
        (errno.EINVAL, MODULE),
        (errno.EPROTONOSUPPORT, MODULE),
        (errno.ENOSPC, ""),
    ],
)
@pytest.mark.parametrize("command", [("run",), *RULESETS], ids=" ".join)
def test_what_the_kernel_refuses_comes_with_what_helps(
    run: Runner,
    empty: str,
    monkeypatch: pytest.MonkeyPatch,
    command: tuple[str, ...],
    errno: int,
    advice: str,
) -> None:
    def refuses(self: NetlinkSocket, *_: object, **__: object) -> None:
        raise NetlinkError.of(errno, "ask")

    monkeypatch.setattr(NetlinkSocket, "__init__", refuses)
    monkeypatch.setattr(nft, "remove", lambda: None)
    result = run(*command, "--config", empty)
    assert (result.code, result.output) == (1, "")
    assert result.errors == f"cthelper: {NetlinkError.of(errno, 'ask')}{advice}\n"


# helpers


def test_helpers_are_listed_a_line_each(run: Runner) -> None:
    result = run("helpers")
    assert (result.code, result.errors) == (0, "")
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == list(builtin_helpers())
    assert [line for line in lines if line.startswith(("mdns", "sunrpc"))] == [
        "mdns            udp 5353               "
        "Multicast DNS queries that are answered by unicast.",
        "sunrpc          tcp,udp 111            "
        "SunRPC portmapper and rpcbind: the services that their replies name.",
    ]


def test_page_of_a_helper_shows_all_about_it(run: Runner) -> None:
    result = run("helpers", "sunrpc")
    assert (result.code, result.errors) == (0, "")
    lines = result.output.splitlines()
    assert lines[:6] == [
        "sunrpc: SunRPC portmapper and rpcbind: the services that their replies name.",
        "",
        "control ports  tcp,udp 111",
        "tagged at      output, prerouting",
        "lowest port    512 may be announced",
        "policy         service: at most 8 expectations for each control flow, 300 s",
    ]
    assert 'option         mode = "service"' in lines
    assert '               one of "service", "oneshot"' in lines
    assert "source         cthelper.helpers.sunrpc" in lines
    # The documentation is the module's.
    assert "GETPORT is answered with a port" in result.output


def test_toml_of_a_helper_is_its_configuration(run: Runner) -> None:
    text = run("helpers", "--toml", "sunrpc").output
    whole = re.sub(r"^#(?=[a-z0-9_]+ = )", "", text, flags=re.MULTILINE)
    helpers = builtin_helpers()
    assert whole != text
    assert parse(whole, Path("toml"), helpers) == parse("", Path("toml"), helpers)
    assert "[helpers.sunrpc.guard]" in text


def test_toml_of_all_helpers_is_a_whole_configuration(run: Runner) -> None:
    tables = tomllib.loads(run("helpers", "--toml").output)["helpers"]
    helpers = builtin_helpers().items()
    assert list(tables) == [name for name, each in helpers if not each.template]


def test_page_says_whether_a_helper_is_off_or_a_template(run: Runner) -> None:
    lines = run("helpers", "ssdp").output.splitlines()
    assert "off            until helpers.ssdp.enabled = true" in lines
    lines = run("helpers", "discovery").output.splitlines()
    assert "control ports  udp by configuration" in lines
    assert 'a template     for tables with type = "discovery"' in lines


def test_toml_of_a_template_is_one_of_its_tables(run: Runner) -> None:
    text = run("helpers", "--toml", "discovery").output
    assert tomllib.loads(text) == {}
    whole = re.sub(r"^#(?=\[|[a-z0-9_]+ = )", "", text, flags=re.MULTILINE)
    named = whole.replace("helpers.NAME", "helpers.kasa")
    config = parse(named, Path("toml"), builtin_helpers())
    assert config.helpers["kasa"].ports == (9999,)
    assert config.helpers["kasa"].destinations == Discovery.destinations


def test_page_of_a_helper_names_the_only_destinations(run: Runner) -> None:
    lines = run("helpers", "mdns").output.splitlines()
    assert "tagged at      output" in lines
    assert "destinations   224.0.0.251/32, ff02::fb/128" in lines


def test_unknown_helper_is_1_and_one_line(run: Runner) -> None:
    result = run("helpers", "Sunrpc")
    assert (result.code, result.output) == (1, "")
    assert result.errors == (
        "cthelper: no helper 'Sunrpc' (did you mean sunrpc?), "
        f"installed are {INSTALLED}\n"
    )


# ruleset


def test_ruleset_show_prints_the_ruleset_and_nothing_else(
    run: Runner, empty: str
) -> None:
    result = run("ruleset", "show", "--config", empty)
    config = parse("", Path(empty), builtin_helpers())
    assert (result.code, result.errors) == (0, "")
    assert result.output == nft.render(config)


def test_ruleset_show_follows_the_configuration(run: Runner, tmp_path: Path) -> None:
    file = tmp_path / "cthelper.toml"
    file.write_text(
        "[helpers.mdns]\nenabled = false\n[helpers.sunrpc]\nports = [999]\n"
    )
    result = run("ruleset", "show", "--config", str(file))
    assert result.code == 0
    assert "mdns" not in result.output
    assert "tcp dport 999" in result.output


# doctor


def test_doctor_is_1_exactly_when_a_line_says_fail(run: Runner, empty: str) -> None:
    result = run("doctor", "--config", empty)
    lines = result.output.splitlines()
    assert len(lines) > 10
    assert all(line.startswith(("ok  ", "warning  ", "FAIL  ")) for line in lines)
    failed = any(line.startswith("FAIL") for line in lines)
    assert (result.code, result.errors) == (int(failed), "")


# Where the configuration is broken

BROKEN = {
    "syntax": "[daemon\n",
    "value": "[daemon]\nqueue = 70000\n",
    "plugin": "plugins.folder = '{folder}'\n",
    "folder": "plugins.folder = '/nowhere'\n",
    "no file": None,
}


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The path of a configuration that cannot be used."""
    file = tmp_path / "broken.toml"
    text = BROKEN[request.param]
    if text is not None:
        folder = tmp_path / "plugins"
        folder.mkdir(mode=0o755)
        (folder / "x.py").write_text("import sys; sys.exit('no')\n")
        (folder / "x.py").chmod(0o644)
        file.write_text(text.format(folder=folder))
    return str(file)


def test_doctor_shows_it_as_one_failure_among_the_others(
    run: Runner, empty: str, broken: str
) -> None:
    result = run("doctor", "--config", broken)
    assert (result.code, result.errors) == (1, "")
    lines = result.output.splitlines()
    (line,) = [each for each in lines if "configuration: " in each]
    assert line.startswith("FAIL     configuration: /")
    assert len(lines) > 10
    assert any(each.startswith("ok ") for each in lines)


class Kernel:
    """What is registered; nft and a queue's server are fakes, too."""

    def __init__(self) -> None:
        sunrpc = registrations([parse("", Path(), builtin_helpers()).helpers["sunrpc"]])
        (first, *_) = sunrpc
        plugin = replace(first, name="x-plugin")
        served = replace(first, name="served", queue=9)
        foreign = replace(first, name="rpc", enabled=True)
        self.kept = ""
        self.record: list[str] = []
        self.registered = [*sunrpc, plugin, served, foreign]

    def list(self) -> Sequence[Registration]:
        return list(self.registered)

    def delete(self, registration: Registration) -> None:
        if registration.name == self.kept:
            raise Busy(errno.EBUSY, f"unregister helper {registration}")
        self.registered.remove(registration)
        self.record.append(registration.name)

    def remove(self) -> None:
        self.record.append("table")

    def close(self) -> None:
        """It has no socket."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(ruleset, "HelperTable", lambda: made)
    monkeypatch.setattr(ruleset, "nft", made)
    monkeypatch.setattr(ruleset, "bound_queues", lambda: {9: None})
    return made


def test_remove_takes_away_what_the_kernel_has_and_warns_once(
    run: Runner, kernel: Kernel, broken: str
) -> None:
    kernel.registered = [each for each in kernel.registered if each.name != "served"]
    result = run("ruleset", "remove", "--config", broken)
    assert (result.code, result.output) == (0, "table inet cthelper is removed\n")
    (warning,) = result.errors.splitlines()
    assert warning.startswith("cthelper: warning: it cannot be installed again: /")
    # The table first; of others nothing.
    assert list(dict.fromkeys(kernel.record)) == ["table", "sunrpc", "x-plugin"]
    assert [each.name for each in kernel.registered] == ["rpc"]
    # And once more.
    assert run("ruleset", "remove", "--config", broken).code == 0


def test_remove_goes_on_where_another_ruleset_keeps_one_of_them(
    run: Runner, kernel: Kernel, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ruleset, "_RELEASE_SECONDS", 0.05)
    kernel.kept = "sunrpc"
    result = run("ruleset", "remove", "--config", empty)
    assert (result.code, result.output) == (1, "")
    assert result.errors.startswith("cthelper: unregister helper sunrpc ip ")
    names = [each.name for each in kernel.registered]
    assert names == [*["sunrpc"] * 4, "served", "rpc"]


def test_remove_says_whose_daemon_puts_it_back(
    run: Runner, kernel: Kernel, empty: str
) -> None:
    result = run("ruleset", "remove", "--config", empty)
    assert result.code == 0
    assert result.errors == (
        "cthelper: warning: a daemon serves served: stop it, or it puts the table back "
        "(unless its daemon.lost_ruleset is warn)\n"
    )
    assert [each.name for each in kernel.registered] == ["served", "rpc"]
