# SPDX-License-Identifier: GPL-2.0-or-later
"""What the configuration's keys mean: TOML to frozen dataclasses.

A missing key has its default; an unknown one is an error. ``cthelper.toml`` beside this
module shows every key.
"""

import codecs
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import combinations, pairwise
from pathlib import Path
from typing import Final

from cthelper.core.api import (
    Helper,
    Hook,
    Network,
    OptionValue,
    Policy,
    Prefilter,
    Transport,
)
from cthelper.core.contract import NAME_ALLOWED, is_name
from cthelper.core.errors import ConfigError
from cthelper.core.guard import DENIED_PORTS, Allowance, Limits, Rules
from cthelper.core.ports import read_port, read_ports, spelled
from cthelper.core.tables import Table, one_of, read_document, shown
from cthelper.core.trusted import Untrusted, open_trusted
from cthelper.core.tuples import (
    BROADCAST,
    LIMITED_BROADCAST,
    Address,
    Destination,
    Tuple,
    may_be_broadcast,
)

DEFAULT_PATH: Final = Path("/etc/cthelper/cthelper.toml")
DEFAULT_PLUGINS: Final = Path("/etc/cthelper/plugins")

# Expectations, a minute and at a time: far above what a kernel's table holds.
_RATE_LIMIT: Final = 1_000_000
_WORKERS_LIMIT: Final = 16
_MARK_LIMIT: Final = 0xFFFFFFFF
_SIZE_LIMIT: Final = 1 << 20
_SOCKET_LIMIT: Final = 108
# Of a helper's name (NF_CT_HELPER_NAME_LEN), and what is put after one that a module of
# the kernel has.
_NAME_LENGTH: Final = 15
_OURS: Final = "-u"
# Hosts that anybody may announce without a warning: those of a cluster.
_FEW_HOSTS: Final = 16
_ALLOWANCE: Final = '{ from = "10.0.0.10", hosts = ["10.0.0.0/28"], ports = [1521] }'
_MARKS: Final = (
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_HOOKS: Final = tuple(hook.value for hook in Hook)
_EVERYWHERE: Final[tuple[Network, ...]] = (
    IPv4Network("0.0.0.0/0"),
    IPv6Network("::/0"),
)
_MULTICAST: Final = IPv4Network("224.0.0.0/4")
# Seconds that a helper of the user's own may keep a port open for answers.
_WINDOW_LIMIT: Final = 120
# What the kernel takes as an interface's name (dev_valid_name in net/core/dev.c) and
# nft between quotes; a * at the end matches the rest.
_INTERFACE = re.compile(r"[!-~]{1,15}")
# What useradd(8) takes.
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,30}\$?", re.IGNORECASE | re.ASCII)
_NOT_IN_INTERFACE = re.compile(r'[/:"\\]|\*.')


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """Table ``[daemon]``.

    `queue` is the NFQUEUE number, 0 to 65535. `receive_buffer` bounds what may wait in
    a queue, in bytes of packets and their bookkeeping; packets beyond it pass without
    being inspected. `flow_limit` bounds the flows that are followed at a time.
    `workers` is how many servers share the flows, 1 to 16; `queue` is that of the
    first, and each has a `receive_buffer` and a `flow_limit` of its own. `backend` is
    what reads the queues (core/queue/backends.py). `mark` is the bit of the conntrack
    mark that says that a flow is no longer inspected, 0 for none; `user_mask` holds the
    bits that are the user's, and `mark` is none of them. `lost_ruleset` is what becomes
    of a ruleset that another program took away: it is put back, or that is told alone.
    `user` is whose the servers are; whether there is such a one is not looked at.
    """

    queue: int = 2077
    workers: int = 1
    receive_buffer: int = 8 * 1024 * 1024
    flow_limit: int = 65536
    log_level: str = "info"
    log_format: str = "text"
    backend: str = "auto"
    mark: int = 0x10000000
    user_mask: int = 0
    lost_ruleset: str = "restore"
    user: str = "cthelper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Table ``[budget]``: what inspection may cost, for each server.

    Within `deadline` milliseconds, 10 to 60000, a packet is answered whatever a helper
    does. `memory` bounds what is kept of all flows, in bytes, 1 MiB to 1 TiB. Of one
    packet at most so many `messages` are read, 1 to 65536. The flows of one source take
    at most `source_cpu` percent of a core, 1 to 100; 100 is no limit.
    """

    deadline: int = 250
    memory: int = 256 * 1024 * 1024
    messages: int = 64
    source_cpu: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlConfig:
    """Table ``[control]``.

    At `socket` the daemon says how it is, and is told what to do; None: nowhere. Root
    may connect, and members of `group` where there is one; whether there is such a one
    is not looked at. With `statistics` it counts what came of announcements, for which
    the kernel makes a message of every new flow.
    """

    socket: Path | None = Path("/run/cthelper/control.sock")
    group: str | None = None
    statistics: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsConfig:
    """Table ``[events]``.

    Events are written at the end of `file`; None: nowhere. Whether its folder is there
    is not looked at.
    """

    file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NatConfig:
    """Table ``[helpers.NAME.nat]``.

    `outside` has, for hosts behind destination NAT, the address that the other side
    knows each by. With `drop_unrewritable` a packet is dropped that must be rewritten
    and cannot be.
    """

    outside: Mapping[Address, Address] = field(default_factory=dict)
    drop_unrewritable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HelperConfig:
    """What is configured for one helper; table ``[helpers.NAME]``.

    `interfaces`, `sources` and `destinations` narrow the flows that the ruleset tags;
    empty ones do not. BROADCAST among the last is all broadcast addresses. `hooks` are
    where it tags them: without PREROUTING flows of other hosts open nothing. `policies`
    are the helper's own with the configured limits. With `fail_closed` packets that
    nobody can inspect are dropped. `queue` is the one that the first server reads;
    where helpers that fail closed have the number of others that do not, it is the
    first after theirs. `known_as` is the name that it is registered with where that is
    not the helper's own.
    """

    # Another process may have the helper declared (declaration.py), or imported.
    helper: type[Helper] = field(repr=False)
    queue: int
    ports: tuple[int, ...]
    policies: tuple[Policy, ...]
    options: Mapping[str, OptionValue] = field(repr=False)
    hooks: frozenset[Hook] = frozenset(Hook)
    guard: Rules = field(default_factory=Rules)
    nat: NatConfig = field(default_factory=NatConfig)
    interfaces: tuple[str, ...] = ()
    sources: tuple[Network, ...] = ()
    destinations: tuple[Destination, ...] = ()
    fail_closed: bool = False
    known_as: str = ""

    @property
    def name(self) -> str:
        """What nft and conntrack know the helper as."""
        return self.known_as or self.helper.name

    @property
    def prefilter(self) -> Prefilter:
        """The datagrams that the helper reads."""
        return self.helper.prefilter(self.options)

    @property
    def tags_expected(self) -> bool:
        """Whether the ruleset attaches the helper to the flows that it expected."""
        return self.helper.tags_expected(self.options)

    def shared_port(self, other: "HelperConfig") -> str | None:
        """Transport and port that both helpers have; None: they have none in common."""
        transports = self.helper.transports & other.helper.transports
        ports = set(self.ports) & set(other.ports)
        return f"{min(transports)} {min(ports)}" if transports and ports else None

    def tags(self, original: Tuple) -> bool:
        """Whether the ruleset attaches the helper to a flow with this original tuple.

        A tuple does not tell its interface, so `interfaces` are not considered; nor the
        networks of the link, so what some network has as its broadcast address is one.
        """
        return (
            original.transport in self.helper.transports
            and original.destination.port in self.ports
            and (
                not self.sources
                or any(original.source.address in each for each in self.sources)
            )
            and (
                not self.destinations
                or any(_holds(each, original) for each in self.destinations)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. `helpers` holds the enabled ones, by their `name`.

    `limits` is what all of them together may have, `warnings` say what stands in the
    file without effect.
    """

    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    budget: Budget = field(default_factory=Budget)
    control: ControlConfig = field(default_factory=ControlConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    limits: Limits = field(default_factory=Limits)
    helpers: Mapping[str, HelperConfig]
    warnings: tuple[str, ...] = ()

    @property
    def queues(self) -> frozenset[int]:
        """The numbers of all queues that the enabled helpers use."""
        servers = range(self.daemon.workers)
        return frozenset().union(*map(self.queues_of, servers))

    def queues_of(self, server: int) -> frozenset[int]:
        """The numbers of the queues that a server reads; servers count from 0."""
        return frozenset(each.queue + server for each in self.helpers.values())

    @property
    def closed_queues(self) -> frozenset[int]:
        """The queues whose packets are dropped where nobody can inspect them."""
        return frozenset(
            each.queue + server
            for each in self.helpers.values()
            if each.fail_closed
            for server in range(self.daemon.workers)
        )


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The configuration's text, read once, and the file that it came from.

    `again` is whether the file could be read a second time: a pipe cannot.
    """

    path: Path
    text: str
    again: bool = True


def read_file(path: Path | None) -> ConfigFile:
    """The configuration at `path`.

    None is DEFAULT_PATH, or an empty text where that file is absent. Raises
    ConfigError, for root also where others may change the file.
    """
    where = path or DEFAULT_PATH
    try:
        with open_trusted(where) as file:
            data = file.read(_SIZE_LIMIT + 1)
            again = file.seekable()
    except OSError as error:
        if path is None and isinstance(error, FileNotFoundError):
            return ConfigFile(where, "")
        raise ConfigError(where, f"cannot be read: {error.strerror}") from None
    except Untrusted as error:
        why = error.why if error.place == where else str(error)
        raise ConfigError(where, why) from None
    if len(data) > _SIZE_LIMIT:
        raise ConfigError(where, f"is longer than {_SIZE_LIMIT} bytes")
    return ConfigFile(where, _decoded(data, where), again)


def _decoded(data: bytes, path: Path) -> str:
    """The text, which must be UTF-8. Raises ConfigError."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            raise ConfigError(
                path,
                f"begins with a byte order mark (BOM) of {name}: save it as UTF-8 "
                "without one",
            )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[error.start]
        raise ConfigError(path, f"line {line}: byte {byte:#x} is not UTF-8") from None


def plugin_folder(file: ConfigFile) -> Path | None:
    """The folder of drop-in plugins that the file names; None: no folder.

    Nothing else in the file is checked, for what is right there depends on the
    helpers. Raises ConfigError, also where the folder is not there; the default one
    need not be.
    """
    table = read_document(file.text, file.path).table("plugins")
    folder = _folder(table)
    # Path.is_dir() raises where a folder above must not be read.
    if folder is not None and not os.path.isdir(folder):
        if folder != DEFAULT_PLUGINS:
            table.refuse("folder", str(folder), "must be a folder that is there")
        folder = None
    if table.problems:
        raise ConfigError(file.path, *table.problems)
    return folder


def daemon_user(file: ConfigFile) -> str:
    """The user that the file names, whatever else is there; the default where it is
    wrong, which `parse` tells. Raises ConfigError.
    """
    table = read_document(file.text, file.path).table("daemon")
    return table.value("user", _user, DaemonConfig().user)


def parse(
    text: str,
    path: Path,
    helpers: Mapping[str, type[Helper]],
    *,
    left_out: Collection[str] = (),
    modules: Mapping[str, str] | None = None,
) -> Config:
    """The configuration in `text`, which came from the file `path`.

    `helpers` are those installed, or stand-ins of them, by name; tables of those
    `left_out`, since they are broken, are not looked at. `modules` are the kernel's
    that have helpers' names: such a helper is known as that with ``-u``, where the
    configuration does not say. Raises ConfigError with all that is wrong.
    """
    root = read_document(text, path)
    problems = root.problems
    daemon = _daemon(root.table("daemon"))
    budget = _budget(root.table("budget"))
    control = _control(root.table("control"))
    events = _events(root.table("events"))
    guard = root.table("guard")
    denied = _ports(guard, "denied_ports", tuple(sorted(DENIED_PORTS)), Transport)
    plain = Limits()
    limits = Limits(
        in_all=guard.integer("in_all", plain.in_all, 0, _RATE_LIMIT),
        live_source=guard.integer("live_source", plain.live_source, 0, _RATE_LIMIT),
        live_server=guard.integer("live_server", plain.live_server, 0, _RATE_LIMIT),
        live_all=guard.integer("live_all", plain.live_all, 0, _RATE_LIMIT),
    )
    guard.close()
    plugins = root.table("plugins")
    _folder(plugins)
    plugins.close()
    # What is said of helpers together counts where each by itself is right.
    sound = not problems
    tables = root.table("helpers")
    warnings: list[str] = []
    enabled: dict[str, HelperConfig] = {}
    templates = {name: each for name, each in helpers.items() if each.template}
    for name, helper in helpers.items():
        if helper.template:
            continue
        before = len(problems)
        table = tables.table(name)
        if table.has("type"):
            kind = table.text("type", "")
            table.refuse("type", kind, f"{name} is taken by a helper that is installed")
        config = _helper(table, helper, daemon, denied, warnings)
        if config is not None and len(problems) == before:
            enabled[name] = config
    for name in left_out:
        tables.table(name)
    for name, own in tables.having("type"):
        before = len(problems)
        made = _made(name, own, templates)
        if made is None:
            continue
        config = _helper(own, made, daemon, denied, warnings)
        if config is not None and len(problems) == before:
            enabled[name] = config
    hints = (f'one of your own has type = "{each}"' for each in sorted(templates))
    tables.close("helper", " or ".join(hints))
    root.close()
    problems += _tagged_twice(enabled)
    enabled = _renamed(enabled, modules or {}, warnings)
    problems += _known_twice(enabled)
    result = Config(
        daemon=daemon,
        budget=budget,
        control=control,
        events=events,
        limits=limits,
        helpers={
            each.name: each for each in _separated(enabled.values(), daemon.workers)
        },
        warnings=tuple(f"{path}: {each}" for each in warnings),
    )
    if sound:
        problems += _wrong_queues(result)
    if problems:
        raise ConfigError(path, *problems)
    return result


def _tagged_twice(helpers: Mapping[str, HelperConfig]) -> Iterator[str]:
    """What is wrong where rules of two helpers would tag the same flows."""
    for one, other in combinations(helpers.values(), 2):
        shared = _tagged_by_both(one, other)
        if shared is not None:
            yield (
                f"helpers.{other.helper.name}.ports = "
                f"{shown(spelled(other.ports))}: {shared} is tagged by "
                f"{one.helper.name} already: let their ports, networks or interfaces "
                "differ, or set enabled = false for one"
            )


def _renamed(
    helpers: Mapping[str, HelperConfig],
    modules: Mapping[str, str],
    warnings: list[str],
) -> dict[str, HelperConfig]:
    """The helpers, those with another name whose own a module of the kernel has."""
    renamed = {}
    for name, config in helpers.items():
        module = modules.get(config.name)
        renamed[name] = config
        if module is None:
            continue
        if config.known_as:
            warnings.append(
                f'helpers.{name}.known_as = "{config.known_as}": the kernel module '
                f"{module} has this name: set another one"
            )
            continue
        other = f"{name[: _NAME_LENGTH - len(_OURS)]}{_OURS}"
        renamed[name] = replace(config, known_as=other)
        warnings.append(
            f"the kernel module {module} has the name {name}: helper {name} is known "
            f'as {other}, in rules, too: ct helper "{other}"'
        )
    return renamed


def _known_twice(helpers: Mapping[str, HelperConfig]) -> Iterator[str]:
    """What is wrong where two helpers would be registered with one name."""
    by_name: dict[str, str] = {}
    for name, config in helpers.items():
        other = by_name.setdefault(config.name, name)
        if other != name:
            yield (
                f'helpers.{name}.known_as = "{config.name}": is the name of helper '
                f"{other}: set another one"
            )


def _separated(
    helpers: Collection[HelperConfig], workers: int
) -> Iterator[HelperConfig]:
    """The helpers, those that fail closed with queues apart from all others'.

    Whether packets pass a full queue or are dropped is the queue's, not the helper's.
    """
    shared = {each.queue for each in helpers if not each.fail_closed}
    for each in helpers:
        apart = each.fail_closed and each.queue in shared
        yield replace(each, queue=each.queue + workers) if apart else each


def _wrong_queues(config: Config) -> Iterator[str]:
    """What is wrong where queues overlap, or differ on a port that is shared."""
    workers = config.daemon.workers
    helpers = sorted(config.helpers.values(), key=lambda each: each.queue)
    for each in helpers:
        if each.queue + workers - 1 > 0xFFFF:
            yield (
                f"helpers.{each.helper.name}.queue = {each.queue}: must be at most "
                f"{0x10000 - workers}: each of the {workers} workers takes the next "
                "number"
            )
    for one, other in pairwise(helpers):
        line = f"helpers.{other.helper.name}.queue = {other.queue}"
        name = one.helper.name
        if 0 < other.queue - one.queue < workers:
            yield (
                f"{line}: must be that of {name}, {one.queue}, or {workers} away from "
                "it: each worker takes the next number"
            )
        if other.queue == one.queue and other.fail_closed != one.fail_closed:
            yield (
                f"{line}: is that of {name}, which fails in another way: set another "
                "number"
            )
    for one, other in combinations(config.helpers.values(), 2):
        port = one.shared_port(other)
        if port is not None and (one.queue, one.fail_closed) != (
            other.queue,
            other.fail_closed,
        ):
            key = "queue" if one.fail_closed == other.fail_closed else "fail_closed"
            yield (
                f"helpers.{other.helper.name}.{key} = {shown(getattr(other, key))}: "
                f"must be that of {one.helper.name}: they share {port}, whose packets "
                "one rule queues"
            )


def _folder(table: Table) -> Path | None:
    text = table.text("folder", str(DEFAULT_PLUGINS))
    folder = Path(text)
    if text and not folder.is_absolute():
        table.refuse("folder", text, "must be an absolute path, or empty: none")
        return None
    return folder if text else None


def _daemon(table: Table) -> DaemonConfig:
    plain = DaemonConfig()
    daemon = DaemonConfig(
        queue=table.integer("queue", plain.queue, 0, 0xFFFF),
        workers=table.integer("workers", plain.workers, 1, _WORKERS_LIMIT),
        receive_buffer=table.integer(
            "receive_buffer", plain.receive_buffer, 64 * 1024, 1 << 30
        ),
        flow_limit=table.integer("flow_limit", plain.flow_limit, 1, 1 << 24),
        log_level=table.choice(
            "log_level", plain.log_level, ("debug", "info", "warning", "error")
        ),
        log_format=table.choice("log_format", plain.log_format, ("text", "json")),
        backend=table.choice(
            "backend", plain.backend, ("auto", "native", "netfilterqueue")
        ),
        mark=table.integer("mark", plain.mark, 0, _MARK_LIMIT),
        user_mask=table.integer("user_mask", plain.user_mask, 0, _MARK_LIMIT),
        lost_ruleset=table.choice(
            "lost_ruleset", plain.lost_ruleset, ("restore", "warn")
        ),
        user=table.value("user", _user, plain.user),
    )
    mark = f"daemon.mark = {daemon.mark:#x}"
    if daemon.mark.bit_count() > 1:
        table.problems.append(f"{mark}: must be a single bit, or 0 for none")
    elif daemon.mark & daemon.user_mask:
        table.problems.append(f"{mark}: is in user_mask, {daemon.user_mask:#x}")
    table.close()
    return daemon


def _budget(table: Table) -> Budget:
    plain = Budget()
    budget = Budget(
        deadline=table.integer("deadline", plain.deadline, 10, 60_000),
        memory=table.integer("memory", plain.memory, 1 << 20, 1 << 40),
        messages=table.integer("messages", plain.messages, 1, 1 << 16),
        source_cpu=table.integer("source_cpu", plain.source_cpu, 1, 100),
    )
    table.close()
    return budget


def _control(table: Table) -> ControlConfig:
    plain = ControlConfig()
    text = table.text("socket", str(plain.socket))
    group = table.text("group", "")
    # sun_path of unix(7), with the zero byte at its end.
    if text and not (text.startswith("/") and len(os.fsencode(text)) < _SOCKET_LIMIT):
        table.refuse(
            "socket", text, "must be an absolute path of at most 107 bytes, or empty"
        )
    statistics = table.boolean("statistics", default=plain.statistics)
    table.close()
    return ControlConfig(
        socket=Path(text) if text else None,
        group=group or None,
        statistics=statistics,
    )


def _events(table: Table) -> EventsConfig:
    text = table.text("file", "")
    file = Path(text)
    if text and not (file.is_absolute() and file.name):
        table.refuse("file", text, "must be a file's absolute path, or empty: none")
    table.close()
    return EventsConfig(file=file if text else None)


def _made(
    name: str, table: Table, templates: Mapping[str, type[Helper]]
) -> type[Helper] | None:
    """The helper that a table with a `type` makes of a template; None: it is wrong."""
    kind = table.choice("type", "", tuple(templates))
    template = templates.get(kind)
    if template is None:
        return None
    if name == kind or not is_name(name):
        allowed = f"name of the table: {NAME_ALLOWED}, other than {kind}"
        table.refuse("type", kind, allowed)
        return None
    plain = template.policies[0].timeout
    window = table.integer("window", plain, 1, _WINDOW_LIMIT)
    ports = _ports(table, "ports", (), template.transports)
    table.require("ports", "such as [9999]")
    return _template_as(template, name, ports, window)


# The same class each time, as reloads compare configurations.
@lru_cache(maxsize=256)
def _template_as(
    template: type[Helper], name: str, ports: tuple[int, ...], window: int
) -> type[Helper]:
    policies = tuple(replace(each, timeout=window) for each in template.policies)
    return type(
        template.__name__,
        (template,),
        {
            "__module__": __name__,
            "__slots__": (),
            "name": name,
            "ports": ports,
            "policies": policies,
            "template": False,
        },
    )


def _helper(
    table: Table,
    helper: type[Helper],
    daemon: DaemonConfig,
    denied: tuple[int, ...],
    warnings: list[str],
) -> HelperConfig | None:
    """The helper's configuration, checked in any case; None where it is disabled.

    `warnings` takes what stands there without effect.
    """
    enabled = table.boolean("enabled", default=helper.enabled)
    ports = _ports(table, "ports", helper.ports, helper.transports)
    if not ports and table.has("ports"):
        table.refuse("ports", [], "must name a port; enabled = false turns it off")
    # In one order, so that equal sets look the same (`fingerprint`).
    own = tuple(sorted(hook.value for hook in helper.hooks))
    hooks = table.list_of("hooks", one_of(_HOOKS), own)
    if not hooks:
        table.refuse("hooks", [], "must name a hook; enabled = false turns it off")
    config = HelperConfig(
        helper=helper,
        queue=table.integer("queue", daemon.queue, 0, 0xFFFF),
        ports=ports,
        policies=_policies(table.table("policies"), helper.policies),
        options={option.name: table.option(option) for option in helper.options},
        hooks=frozenset(map(Hook, hooks)),
        guard=_rules(table.table("guard"), helper, denied, warnings),
        nat=_nat(table.table("nat"), helper),
        interfaces=table.list_of("interfaces", _interface, ()),
        sources=table.list_of("sources", _network, ()),
        destinations=table.list_of("destinations", _destination, helper.destinations),
        fail_closed=table.boolean("fail_closed", default=False),
        known_as=table.value("known_as", _known_as, ""),
    )
    if table.text("queueing", ""):
        warnings.append(
            f"{table.name}.queueing has no effect any more: the ruleset's chain queues "
            "the packets of all helpers; take the line out"
        )
    table.close()
    versions = [
        {4 if each is BROADCAST else each.version for each in places}
        for places in (config.sources, config.destinations)
        if places
    ]
    if len(versions) == 2 and versions[0].isdisjoint(versions[1]):
        table.refuse(
            "sources",
            [str(each) for each in config.sources],
            "must share an IP version with destinations",
        )
    return config if enabled else None


def _rules(
    table: Table,
    helper: type[Helper],
    denied: tuple[int, ...],
    warnings: list[str],
) -> Rules:
    plain = Rules()
    rules = Rules(
        denied_ports=frozenset(_ports(table, "denied_ports", denied, Transport)),
        allowed_ports=_port_ranges(table, "allowed_ports", (), Transport),
        lowest_port=table.value(
            "lowest_port",
            lambda value: read_port(value, Transport),
            helper.lowest_port,
        ),
        allow=tuple(map(_allowance, table.tables("allow", _ALLOWANCE))),
        allow_hosts=table.list_of("allow_hosts", _network, plain.allow_hosts),
        per_source=table.integer("per_source", plain.per_source, 0, _RATE_LIMIT),
        per_helper=table.integer("per_helper", plain.per_helper, 0, _RATE_LIMIT),
    )
    warnings += (
        f"{table.name}.allow_hosts = {shown(str(each))}: anybody may announce these "
        f"{each.num_addresses} hosts: say in allow who may, and which ports"
        for each in rules.allow_hosts
        if each.num_addresses > _FEW_HOSTS
    )
    table.close()
    return rules


def _allowance(table: Table) -> Allowance:
    allowance = Allowance(
        from_=table.value("from", _networks, ()),
        hosts=table.value("hosts", _networks, ()),
        ports=_port_ranges(table, "ports", (), Transport),
    )
    for key in ("from", "hosts"):
        table.require(key, f"such as {_ALLOWANCE}")
    table.close()
    return allowance


def _networks(value: object) -> tuple[Network, ...]:
    """One network, or those of a list, which is not empty."""
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError("must name a network")
    return tuple(map(_network, values))


def _nat(table: Table, helper: type[Helper]) -> NatConfig:
    config = NatConfig()
    if helper.nat:
        pairs = table.list_of("outside", _pair, ())
        failure = table.choice("unrewritable", "accept", ("accept", "drop"))
        config = NatConfig(outside=dict(pairs), drop_unrewritable=failure == "drop")
    table.close()
    return config


def _tagged_by_both(one: HelperConfig, other: HelperConfig) -> str | None:
    """Transport and port of flows that rules of both would tag; None: of none.

    A flow keeps the helper that it got first (nft_ct_helper_obj_eval), so the other
    rule would be without effect, and which one it is would hang on the names.
    """
    port = one.shared_port(other)
    if (
        port is None
        or not one.hooks & other.hooks
        or not _interfaces_meet(one.interfaces, other.interfaces)
        or not any(
            _places_meet(one.sources, other.sources, version)
            and _places_meet(one.destinations, other.destinations, version)
            for version in (4, 6)
        )
    ):
        return None
    return port


def _interfaces_meet(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    return not ours or not theirs or any(_same(a, b) for a in ours for b in theirs)


def _same(one: str, other: str) -> bool:
    """Whether an interface can have both names, which may end in a *."""
    a, b = one.removesuffix("*"), other.removesuffix("*")
    return a == b or (one != a and b.startswith(a)) or (other != b and a.startswith(b))


def _places_meet(
    ours: tuple[Destination, ...], theirs: tuple[Destination, ...], version: int
) -> bool:
    """Whether an address of this IP version can be in both; no networks hold all."""
    return any(
        _place_meets(one, other, version)
        for one in ours or _EVERYWHERE
        for other in theirs or _EVERYWHERE
    )


def _place_meets(one: Destination, other: Destination, version: int) -> bool:
    if one is BROADCAST or other is BROADCAST:
        # Which networks the host has is not known here, but no group is broadcast.
        return version == 4 and all(
            each is BROADCAST or (each.version == 4 and not each.subnet_of(_MULTICAST))
            for each in (one, other)
        )
    return one.version == version and (
        one.network_address in other or other.network_address in one
    )


def _policies(table: Table, policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    result = []
    for policy in policies:
        limits = table.table(policy.name)
        result.append(
            Policy(
                policy.name,
                limits.integer("max_expected", policy.max_expected, 1, 255),
                limits.integer("timeout", policy.timeout, 1, 86400),
            )
        )
        limits.close()
    table.close("policy")
    return tuple(result)


def _holds(place: Destination, original: Tuple) -> bool:
    destination = original.destination.address
    if place is BROADCAST:
        return destination == LIMITED_BROADCAST or may_be_broadcast(
            original.source.address, destination
        )
    return destination in place


def _ports(
    table: Table,
    key: str,
    default: tuple[int, ...],
    transports: Iterable[Transport],
) -> tuple[int, ...]:
    """The ports that a list of numbers, ranges and names of services means."""
    plain = tuple(range(each, each + 1) for each in default)
    groups = _port_ranges(table, key, plain, transports)
    return tuple(port for group in groups for port in group)


def _port_ranges(
    table: Table,
    key: str,
    default: tuple[range, ...],
    transports: Iterable[Transport],
) -> tuple[range, ...]:
    """The same, not taken apart."""
    groups = table.list_of(key, lambda value: read_ports(value, transports), default)
    if groups == default:
        return default
    # Each port once: ranges may be large, and there may be many of them.
    within: dict[int, range] = {}
    for group in groups:
        for port in group:
            other = within.setdefault(port, group)
            if other != group:
                both = spelled(other) + spelled(group)
                table.refuse(key, both, f"has port {port} twice")
                return default
    return groups


def _pair(value: object) -> tuple[Address, Address]:
    allowed = 'must be two addresses such as "10.0.0.3 203.0.113.3", inside and outside'
    if not isinstance(value, str):
        raise ValueError(allowed)
    try:
        inside, outside = map(ip_address, value.split())
    except ValueError:
        raise ValueError(allowed) from None
    if inside.version != outside.version:
        raise ValueError(f"{allowed}, of one IP version")
    return inside, outside


def _user(value: object) -> str:
    if not isinstance(value, str) or not _USER.fullmatch(value) or value == "root":
        raise ValueError("must be the name of a user, not root")
    return value


def _known_as(value: object) -> str:
    if value == "" or is_name(value):
        return str(value)
    raise ValueError(NAME_ALLOWED)


def _interface(value: object) -> str:
    if (
        not isinstance(value, str)
        or not _INTERFACE.fullmatch(value)
        or _NOT_IN_INTERFACE.search(value)
        or value in (".", "..", "*")
    ):
        raise ValueError(
            "must be the name of an interface, at most 15 characters, "
            "a * at its end matches any rest"
        )
    return value


def _network(value: object) -> Network:
    if not isinstance(value, str) or "%" in value:
        raise ValueError('must be a network such as "192.0.2.0/24"')
    try:
        return ip_network(value)
    except ValueError as error:
        raise ValueError(f"must be a network: {error}") from None


def _destination(value: object) -> Destination:
    if value == BROADCAST.value:
        return BROADCAST
    try:
        return _network(value)
    except ValueError as error:
        raise ValueError(f'{error}, or "{BROADCAST}"') from None
