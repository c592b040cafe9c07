# SPDX-License-Identifier: GPL-2.0-or-later
"""Can this machine run the daemon: each requirement, and how to mend it."""

import enum
import functools
import gzip
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cthelper import nft
from cthelper.core.compiled import COMPILED
from cthelper.core.config import Config
from cthelper.core.daemon.helper_rules import meant
from cthelper.core.daemon.mark_conflicts import conflicts
from cthelper.core.daemon.privileges import NoSuchUser, plan
from cthelper.core.daemon.probe import (
    GLUE,
    GLUE_MENDED,
    NOT_GLUED,
    CannotAsk,
    Kernel,
    ask,
)
from cthelper.core.errors import (
    CAP_NET_ADMIN,
    CthelperError,
    NetlinkError,
    QueueError,
    RulesetError,
    advice,
)
from cthelper.core.kernel_modules import loaded_module
from cthelper.core.netlink.ctnetlink import Ctnetlink
from cthelper.core.netlink.nfnetlink_cthelper import HelperTable
from cthelper.core.queue.backends import LIBRARY, NATIVE, choose
from cthelper.core.queue.binding import bound_queues
from cthelper.core.tuples import BROADCAST

_OLDEST_KERNEL: Final = (6, 1)
# Debian 12's; of older ones it is not known.
_OLDEST_NFT: Final = (1, 0, 6)
_FULL: Final = 0.8
# Of the table of expectations three quarters are ours at most (core/ledger.py).
_EXPECTATIONS_FULL: Final = 0.7
_OTHER_DAEMON: Final = "conntrackd"
# Module, its configuration symbol, and what it is for.
_MODULES: Final = (
    ("nf_conntrack", "NF_CONNTRACK", "connection tracking"),
    ("nf_conntrack_netlink", "NF_CT_NETLINK", "expectations"),
    ("nfnetlink_cthelper", "NF_CT_NETLINK_HELPER", "helpers in user space"),
    ("nfnetlink_queue", "NETFILTER_NETLINK_QUEUE", "packets to user space"),
    ("nf_tables", "NF_TABLES", "rulesets"),
    ("nft_ct", "NFT_CT", "rules that attach helpers"),
    ("nft_queue", "NFT_QUEUE", "rules that queue packets"),
)
# Part of nf_tables since Linux 6.2.
_OBJECTS: Final = ("nft_objref", "NFT_OBJREF", "rules that name their helper")
_OBJECTS_BUILT_IN: Final = (6, 2)
# Parts of a module, of which the configuration alone tells.
_INET: Final = ("NF_TABLES_INET", "a table for both versions of IP")
_MARK: Final = ("NF_CONNTRACK_MARK", "the mark of finished flows")
_HASHES: Final = ("nft_hash", "NFT_HASH", "rules that share flows out to workers")
_ROUTES: Final = ("nft_fib_inet", "NFT_FIB_INET", "rules for broadcast addresses")
_GLUED: Final = "queued packets carry their conntrack entry"


class Health(enum.Enum):
    """How a requirement stands; a failure keeps the daemon from running."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One requirement: what was found and, where it is not ok, how to mend it."""

    health: Health
    what: str
    mend: str = ""

    def __str__(self) -> str:
        text = f"{self.health.value:<8} {self.what}"
        return f"{text}: {self.mend}" if self.mend else text


@dataclass(frozen=True, slots=True)
class Host:
    """Where the facts are read: `root` is the file system's, `release` the kernel's."""

    root: Path = Path("/")
    release: str = field(default_factory=lambda: os.uname().release)

    @property
    def version(self) -> tuple[int, int]:
        """The first two numbers of the release; 0, 0 where it has none."""
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def text(self, path: str) -> str | None:
        """The text of a file below the root; None where it cannot be read."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The number in a file below the root; None where there is none."""
        text = self.text(path)
        return int(text) if text is not None and text.strip().isdigit() else None


def examine(read_config: Callable[[], Config], host: Host) -> Iterator[Finding]:
    """Every requirement of running, in the order of their importance.

    Where the configuration cannot be read that is one of the findings, and what hangs
    on it is not looked at.
    """
    yield kernel(host)
    yield privileges(host)
    yield from modules(host)
    yield nft_program()
    yield from behaviour(host, ask)
    yield code()
    try:
        config = read_config()
    except CthelperError as error:
        yield Finding(
            Health.FAILURE,
            f"configuration: {error}",
            "mend it; names, queues, ruleset and mark are not looked at until then",
        )
        yield queue_backend(Config(helpers={}))
    else:
        yield Finding(Health.OK, f"configuration: {', '.join(config.helpers)}")
        yield queue_backend(config)
        yield from confinement(config.daemon.user)
        yield from configured_modules(config, host)
        yield from names(config, host)
        yield from queues(config)
        yield ruleset(config)
        yield from mark(config)
    yield orphans()
    yield other_daemon(host)
    yield events(host)
    yield from fills(host)


def kernel(host: Host) -> Finding:
    """The kernel's version."""
    oldest = ".".join(map(str, _OLDEST_KERNEL))
    if host.version >= _OLDEST_KERNEL:
        return Finding(Health.OK, f"kernel {host.release}")
    return Finding(
        Health.FAILURE,
        f"kernel {host.release} is older than {oldest}",
        f"boot Linux {oldest} or later",
    )


def privileges(host: Host) -> Finding:
    """CAP_NET_ADMIN of this process."""
    status = host.text("proc/self/status") or ""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    if found and int(found[1], 16) >> CAP_NET_ADMIN & 1:
        return Finding(Health.OK, "capability CAP_NET_ADMIN")
    return Finding(
        Health.FAILURE,
        "capability CAP_NET_ADMIN is missing",
        "run as root" if os.geteuid() else "give it to the container or service",
    )


def confinement(user: str) -> Iterator[Finding]:
    """What workers are confined by; see `privileges`."""
    try:
        found = plan(user)
    except NoSuchUser as error:
        what, _, mend = str(error).partition(": ")
        yield Finding(Health.FAILURE, f"daemon.user: {what}", mend)
        return
    for gap in found.gaps:
        what, _, mend = gap.rpartition(": ")
        yield Finding(Health.WARNING, what, mend)
    if found.landlock:
        yield Finding(Health.OK, f"Landlock, version {found.landlock}")
    if found.seccomp:
        yield Finding(Health.OK, "system calls can be filtered (libseccomp)")
    if found.user is not None:
        yield Finding(Health.OK, f"workers are of user {found.user.name}")


def modules(host: Host) -> Iterator[Finding]:
    """The modules of the kernel: loaded, built in or there to be loaded."""
    for each in _MODULES:
        yield _module(host, *each)
    if host.version < _OBJECTS_BUILT_IN:
        yield _module(host, *_OBJECTS)
    yield from _part(host, *_INET)


def configured_modules(config: Config, host: Host) -> Iterator[Finding]:
    """What rules for several workers, broadcast addresses, or the mark need besides."""
    if config.daemon.mark:
        yield from _part(host, *_MARK, "set mark = 0 of [daemon], or ")
    if config.daemon.workers > 1:
        yield _module(host, *_HASHES)
    if any(BROADCAST in each.destinations for each in config.helpers.values()):
        yield _module(host, *_ROUTES)


def _module(host: Host, module: str, symbol: str, purpose: str) -> Finding:
    state = _module_state(host, module, symbol)
    if state is not None:
        return Finding(Health.OK, f"kernel module {module} ({purpose}), {state}")
    return Finding(
        Health.FAILURE,
        f"kernel module {module} ({purpose}) is missing",
        f"boot a kernel with CONFIG_{symbol}, and with its modules: docs/kernels.md",
    )


def _module_state(host: Host, module: str, symbol: str) -> str | None:
    if (host.root / "sys/module" / module).exists():
        return "loaded"
    folder = f"lib/modules/{host.release}"
    file = re.compile(rf"/{module}\.ko\b")
    for name, state in (("modules.builtin", "built in"), ("modules.dep", "loadable")):
        if file.search(host.text(f"{folder}/{name}") or ""):
            return state
    return "built in" if f"CONFIG_{symbol}=y" in _kernel_config(host) else None


def _part(host: Host, symbol: str, purpose: str, else_: str = "") -> Iterator[Finding]:
    if _lacks(host, symbol):
        yield Finding(
            Health.FAILURE,
            f"the kernel has no CONFIG_{symbol} ({purpose})",
            f"{else_}boot one that has: docs/kernels.md",
        )


def glue(host: Host) -> Finding:
    """Conntrack entries in queue messages."""
    configuration = _kernel_config(host)
    if f"CONFIG_{GLUE}=y" in configuration:
        return Finding(Health.OK, _GLUED)
    if configuration:
        return Finding(Health.FAILURE, NOT_GLUED, GLUE_MENDED)
    return Finding(
        Health.WARNING,
        "cannot tell whether queued packets carry conntrack",
        GLUE_MENDED,
    )


def behaviour(host: Host, ask: Callable[[], Kernel]) -> Iterator[Finding]:
    """What the kernel does where kernels differ; where it cannot be asked, its glue."""
    try:
        kernel = ask()
    except CannotAsk as error:
        mend = "run as root, with the right to make a network namespace"
        yield Finding(Health.WARNING, str(error), mend)
        yield glue(host)
        return
    if kernel.carries_entries:
        yield Finding(Health.OK, _GLUED)
    else:
        yield Finding(Health.FAILURE, NOT_GLUED, GLUE_MENDED)
    for holds, good, bad, mend in (
        (
            kernel.confirms,
            "a packet that repeats its hook has its flow confirmed",
            "a packet that repeats its hook has its flow not confirmed",
            "what a flow's first packet announces is refused (mdns, slp, dhcpv6)",
        ),
        (
            kernel.renews,
            "an expectation that is asked for again lives as long as it must",
            "an expectation lives as long as its policy says, whatever is asked for",
            "what several ask for may end too soon",
        ),
        (
            kernel.takes_class,
            "an expectation is of the policy that is asked for",
            "an expectation is of its helper's first policy unless it names a helper",
            "the first one's limits hold in place of the others'",
        ),
        (
            kernel.keeps_limits,
            "a registered helper's limits can be changed",
            "a registered helper's limits cannot be changed: all of its policies would "
            "get the first one's",
            "where they change a reload is refused, and a restart takes them",
        ),
    ):
        if holds:
            yield Finding(Health.OK, good)
        else:
            yield Finding(Health.WARNING, bad, mend)
    yield Finding(
        Health.OK,
        "an expected flow has its master's helper, which the table is made for"
        if kernel.hands_down
        else "an expected flow has no helper but one that a rule attaches",
    )
    yield Finding(
        Health.OK,
        "sequence numbers are adjusted twice: a rewritten TCP flow's packets skip what "
        "comes after priority 300 in their hook"
        if kernel.adjusts_twice
        else "sequence numbers of a rewritten TCP flow are adjusted once",
    )


def _lacks(host: Host, symbol: str) -> bool:
    """Whether the kernel was configured without it, as far as that can be read."""
    configuration = _kernel_config(host)
    return bool(configuration) and f"CONFIG_{symbol}=y" not in configuration


def _kernel_config(host: Host) -> str:
    # The running kernel's own, where it has one.
    try:
        data = (host.root / "proc/config.gz").read_bytes()
        return gzip.decompress(data).decode("utf-8", "replace")
    except OSError:
        pass
    for path in (f"boot/config-{host.release}", f"lib/modules/{host.release}/config"):
        plain = host.text(path)
        if plain is not None:
            return plain
    return ""


def nft_program() -> Finding:
    """The nft program and its version."""
    oldest = ".".join(map(str, _OLDEST_NFT))
    try:
        text = nft.version()
    except RulesetError as error:
        what, _, mend = str(error).partition(": ")
        return Finding(Health.FAILURE, what, mend)
    found = re.search(r"v(\d+)\.(\d+)(?:\.(\d+))?", text)
    if found and tuple(int(each or 0) for each in found.groups()) >= _OLDEST_NFT:
        return Finding(Health.OK, f"nft {found[0]}")
    return Finding(Health.FAILURE, f"{text!r} is too old", f"install nft {oldest}")


def queue_backend(config: Config) -> Finding:
    """What will read the queues, and why."""
    try:
        backend = choose(config.daemon.backend)
    except QueueError as error:
        what, _, mend = str(error).rpartition(": ")
        return Finding(Health.FAILURE, what, mend)
    what = f"queue backend {backend.name}: {backend.reason}"
    if backend.name == NATIVE or config.daemon.backend == LIBRARY:
        return Finding(Health.OK, what)
    return Finding(
        Health.WARNING,
        what,
        "for less CPU install gcc and python3-dev, then install cthelper again",
    )


def code() -> Finding:
    """Whether what packets pass through is compiled."""
    if COMPILED:
        return Finding(Health.OK, "code: compiled by mypyc")
    return Finding(
        Health.WARNING,
        "code: interpreted, which takes about twice the instructions",
        "install gcc and python3-dev, then install cthelper again",
    )


def names(config: Config, host: Host) -> Iterator[Finding]:
    """Whether the kernel's own helpers leave the configured names free."""
    rules = functools.cache(_meant)
    for name, each in config.helpers.items():
        own = each.helper.name
        module = loaded_module(name, host.root)
        other = loaded_module(own, host.root)
        if module is not None:
            yield Finding(
                Health.FAILURE,
                f"helper name {name} is taken by the kernel module {module}",
                f"set another one in helpers.{own}.known_as",
            )
        elif name != own and other is not None:
            yield Finding(
                Health.OK,
                f"helper {own} is known as {name}, since the kernel module {other} has "
                "its name",
            )
            if own in rules() and name not in rules():
                yield Finding(
                    Health.WARNING,
                    f'{rules()[own]} matches ct helper "{own}", which is the helper of '
                    f"{other}",
                    f'let it match "{name}", so that it accepts what ours expects',
                )
        else:
            yield Finding(Health.OK, f"helper name {name}")


def _meant() -> dict[str, str]:
    """The helpers that loaded rules match; nothing where these cannot be listed."""
    try:
        return meant(nft.loaded_ruleset())
    except RulesetError:
        return {}  # `ruleset` tells of it


def queues(config: Config) -> Iterator[Finding]:
    """Whether the configured queue numbers are free."""
    bound = bound_queues()
    for number in sorted(config.queues):
        if number in bound:
            yield Finding(
                Health.FAILURE,
                f"queue {number} is in use (netlink port {bound[number].port})",
                "stop the other cthelper, or set another queue number",
            )
        else:
            yield Finding(Health.OK, f"queue {number} is free")


def ruleset(config: Config) -> Finding:
    """Whether the ruleset is loaded while a daemon serves."""
    served = sorted(config.queues & bound_queues().keys())
    if not served:
        return Finding(Health.OK, f"no daemon serves that needs table {nft.TABLE}")
    try:
        missing = nft.missing(config)
    except RulesetError as error:
        what, _, mend = str(error).rpartition(": ")
        what = f"table {nft.TABLE} cannot be listed: {what}"
        return Finding(Health.WARNING, what, mend)
    if missing:
        return Finding(
            Health.WARNING,
            f"table {nft.TABLE} is not loaded, though a daemon serves queue "
            f"{served[0]}: nothing is inspected",
            "reload cthelper; event=ruleset-lost in its log says when it was lost",
        )
    return Finding(
        Health.OK,
        f"table {nft.TABLE} is loaded (lost_ruleset: {config.daemon.lost_ruleset})",
    )


def orphans() -> Finding:
    """Helpers that queue to nobody, as other programs leave them.

    The kernel lets the packets of their flows pass but never confirms a new flow
    (nf_confirm in nf_conntrack_proto.c): a stateful ruleset drops its replies.
    """
    try:
        with closing(HelperTable()) as helpers:
            served = bound_queues()
            names = {
                each.name
                for each in helpers.list()
                if each.enabled and each.queue not in served
            }
    except NetlinkError as error:
        return Finding(Health.WARNING, str(error), advice(error.errno))
    if not names:
        return Finding(Health.OK, "no helper queues to nobody")
    return Finding(
        Health.WARNING,
        f"helpers queue to nobody, new flows break: {', '.join(sorted(names))}",
        "end the program that registered them, and `cthelper ruleset remove`",
    )


def other_daemon(host: Host) -> Finding:
    """Conntrackd, whose helpers have the same tasks."""
    for path in (host.root / "proc").glob("[0-9]*/comm"):
        try:
            name = path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            continue  # it has ended meanwhile
        if name == _OTHER_DAEMON:
            return Finding(
                Health.WARNING,
                f"{_OTHER_DAEMON} is running (process {path.parent.name})",
                "leave the helpers that cthelper serves out of its configuration",
            )
    return Finding(Health.OK, f"{_OTHER_DAEMON} is not running")


def events(host: Host) -> Finding:
    """The events that tell when a flow has ended."""
    if host.number("proc/sys/net/netfilter/nf_conntrack_events") == 0:
        return Finding(
            Health.WARNING,
            "conntrack events are off: what is known of ended flows is kept too long",
            "sysctl -w net.netfilter.nf_conntrack_events=2",
        )
    if _lacks(host, "NF_CONNTRACK_EVENTS"):
        return Finding(
            Health.WARNING,
            "the kernel has no conntrack events: what is known of ended flows is kept "
            "too long",
            "boot one with CONFIG_NF_CONNTRACK_EVENTS: docs/kernels.md",
        )
    return Finding(Health.OK, "conntrack events")


def fills(host: Host) -> Iterator[Finding]:
    """How full the tables of entries and of expectations are."""
    folder = "proc/sys/net/netfilter"
    yield _fill(
        "nf_conntrack_max",
        host.number(f"{folder}/nf_conntrack_count"),
        host.number(f"{folder}/nf_conntrack_max"),
    )
    yield _fill(
        "nf_conntrack_expect_max",
        _expectations(),
        host.number(f"{folder}/nf_conntrack_expect_max"),
        _EXPECTATIONS_FULL,
    )


def mark(config: Config) -> Iterator[Finding]:
    """Rules that would see, or set, the bit that says that a flow has finished."""
    bit = config.daemon.mark
    if not bit:
        yield Finding(Health.OK, "no bit of the mark is used")
        return
    try:
        found = list(conflicts(bit))
    except RulesetError as error:
        what, _, mend = str(error).rpartition(": ")
        yield Finding(Health.WARNING, f"rules cannot be read: {what}", mend)
        return
    for each in found:
        yield Finding(Health.WARNING, str(each), each.mend)
    if not found:
        yield Finding(Health.OK, f"no other rule looks at bit {bit:#x} of the mark")


def _expectations() -> int | None:
    try:
        with closing(Ctnetlink()) as ctnetlink:
            return len(ctnetlink.expectations())
    except NetlinkError:
        return None


def _fill(
    name: str, used: int | None, limit: int | None, full: float = _FULL
) -> Finding:
    if used is None or not limit:
        return Finding(
            Health.WARNING, f"{name}: cannot be read", "run as root; load nf_conntrack"
        )
    share = used / limit
    what = f"{name}: {used} of {limit} used ({share:.0%})"
    if share < full:
        return Finding(Health.OK, what)
    return Finding(Health.WARNING, what, f"sysctl -w net.netfilter.{name}={limit * 2}")
