# SPDX-License-Identifier: GPL-2.0-or-later
"""What the configuration's keys mean: TOML to frozen dataclasses.

A missing key has its default; an unknown one is an error. ``cthelper.toml`` beside this
module shows every key.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
)
from cthelper.core.errors import ConfigError
from cthelper.core.guard import DENIED_PORTS, IN_ALL, Rules
from cthelper.core.tables import Table, one_of, read_document
from cthelper.core.tuples import Address, Tuple

DEFAULT_PATH: Final = Path("/etc/cthelper/cthelper.toml")
DEFAULT_PLUGINS: Final = Path("/etc/cthelper/plugins")

# Expectations a minute, far above what a kernel's table holds.
_RATE_LIMIT: Final = 1_000_000
_WORKERS_LIMIT: Final = 16
_MARK_LIMIT: Final = 0xFFFFFFFF
_HELPER, _CHAIN = "helper", "chain"
# Between a helper's name and a worker's number; no helper's name has one.
_WORKER: Final = "."
_NAME_LIMIT: Final = 15  # NF_CT_HELPER_NAME_LEN without the zero byte
_HOOKS: Final = tuple(hook.value for hook in Hook)
_EVERYWHERE: Final[tuple[Network, ...]] = (
    IPv4Network("0.0.0.0/0"),
    IPv6Network("::/0"),
)
# What the kernel takes as an interface's name (dev_valid_name in net/core/dev.c) and
# nft between quotes; a * at the end matches the rest.
_INTERFACE = re.compile(r"[!-~]{1,15}")
_NOT_IN_INTERFACE = re.compile(r'[/:"\\]|\*.')


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """Table ``[daemon]``.

    `queue` is the NFQUEUE number, 0 to 65535. `receive_buffer` bounds what may wait in
    a queue, in bytes of packets and their bookkeeping; packets beyond it pass without
    being inspected. `flow_limit` bounds the flows that are followed at a time.
    `workers` is how many processes share the flows, 1 to 16; `queue` is that of the
    first, and each has a `receive_buffer` and a `flow_limit` of its own. `backend` is
    what reads the queues (core/queue/backends.py). `mark` is the bit of the conntrack
    mark that says in chain mode that a flow is no longer inspected; `user_mask` holds
    the bits that are the user's, and `mark` is none of them.
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
    empty ones do not. `hooks` are where it tags them: without PREROUTING flows of
    other hosts open nothing. `policies` are the helper's own with the configured
    limits. With `chained` the ruleset queues the helper's packets (chain mode), not the
    kernel by itself; with `fail_closed` those that nobody can inspect are dropped.
    `worker` is the number of the worker that serves it, from 0, where there are
    several.
    """

    helper: type[Helper]
    queue: int
    ports: tuple[int, ...]
    policies: tuple[Policy, ...]
    options: Mapping[str, OptionValue]
    hooks: frozenset[Hook] = frozenset(Hook)
    guard: Rules = field(default_factory=Rules)
    nat: NatConfig = field(default_factory=NatConfig)
    interfaces: tuple[str, ...] = ()
    sources: tuple[Network, ...] = ()
    destinations: tuple[Network, ...] = ()
    chained: bool = False
    fail_closed: bool = False
    worker: int | None = None

    @property
    def kernel_name(self) -> str:
        """The name that the helper is registered under."""
        return self.kernel_name_of(self.helper.name)

    def kernel_name_of(self, name: str) -> str:
        """The name under which the same worker registers the helper `name`."""
        return name if self.worker is None else f"{name}{_WORKER}{self.worker}"

    @property
    def prefilter(self) -> Prefilter:
        """The datagrams that the helper reads."""
        return self.helper.prefilter(self.options)

    @property
    def tags_expected(self) -> bool:
        """Whether the ruleset attaches the helper to the flows that it expected."""
        return self.helper.tags_expected(self.options)

    def tags(self, original: Tuple) -> bool:
        """Whether the ruleset attaches the helper to a flow with this original tuple.

        A tuple does not tell its interface, so `interfaces` are not considered.
        """
        return (
            original.transport in self.helper.transports
            and original.destination.port in self.ports
            and _within(original.source.address, self.sources)
            and _within(original.destination.address, self.destinations)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. `helpers` holds the enabled ones, by name.

    `expectations_in_all` is how many a minute all helpers may have; 0 is no limit.
    """

    daemon: DaemonConfig = field(default_factory=DaemonConfig)
    expectations_in_all: int = IN_ALL
    helpers: Mapping[str, HelperConfig]

    @property
    def queues(self) -> frozenset[int]:
        """The numbers of all queues that the enabled helpers use."""
        return frozenset(each.queue for each in self.served)

    @property
    def closed_queues(self) -> frozenset[int]:
        """The queues whose packets are dropped where nobody can inspect them."""
        return frozenset(each.queue for each in self.served if each.fail_closed)

    @property
    def marks(self) -> dict[str, int]:
        """What marks finished flows, by the kernel's names of helpers in chain mode."""
        return {each.kernel_name: self.daemon.mark for each in self.chained}

    @property
    def chained(self) -> tuple[HelperConfig, ...]:
        """The enabled helpers whose packets the ruleset queues (chain mode)."""
        return tuple(each for each in self.helpers.values() if each.chained)

    @property
    def served(self) -> tuple[HelperConfig, ...]:
        """The enabled helpers as the kernel knows them: each once for every worker."""
        parts = self.by_worker
        return tuple(part.helpers[name] for name in self.helpers for part in parts)

    @property
    def by_kernel_name(self) -> dict[str, HelperConfig]:
        """The enabled helpers by the names that they are registered under."""
        return {each.kernel_name: each for each in self.served}

    @property
    def by_worker(self) -> tuple["Config", ...]:
        """The configuration of each worker; of a single process, this one."""
        if self.daemon.workers == 1:
            return (self,)
        return tuple(map(self._for_worker, range(self.daemon.workers)))

    def _for_worker(self, number: int) -> "Config":
        """What the worker serves: its own queues, under names of its own."""
        return replace(
            self,
            daemon=replace(self.daemon, workers=1),
            helpers={
                name: replace(each, worker=number, queue=each.queue + number)
                for name, each in self.helpers.items()
            },
        )


def plain_name(kernel_name: str) -> str:
    """The helper's own name, out of one that it is registered under."""
    return kernel_name.partition(_WORKER)[0]


def load(path: Path | None, helpers: Mapping[str, type[Helper]]) -> Config:
    """The configuration in the file at `path`.

    None is DEFAULT_PATH, or all defaults where that file is absent. `helpers` are
    those installed, by name. Raises ConfigError.
    """
    return parse(*_read(path), helpers)


def plugin_folder(path: Path | None) -> Path | None:
    """The folder of drop-in plugins that the file at `path` names; None: no folder.

    `path` is as for `load`. Nothing else in the file is checked, for what is right
    there depends on the helpers. Raises ConfigError, also where the folder is not
    there; the default one need not be.
    """
    text, path = _read(path)
    table = read_document(text, path).table("plugins")
    folder = _folder(table)
    # Path.is_dir() raises where a folder above must not be read.
    if folder is None or os.path.isdir(folder):
        return folder
    if folder == DEFAULT_PLUGINS:
        return None
    raise table.error("folder", str(folder), "must be a folder that is there")


def _read(path: Path | None) -> tuple[str, Path]:
    if path is None:
        path = DEFAULT_PATH
        if not path.exists():
            return "", path
    try:
        return path.read_text(encoding="utf-8"), path
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, "file", str(path), f"cannot be read: {error}") from None


def parse(text: str, path: Path, helpers: Mapping[str, type[Helper]]) -> Config:
    """The configuration in `text`, which came from the file `path`.

    Raises ConfigError.
    """
    root = read_document(text, path)
    daemon = _daemon(root.table("daemon"))
    guard = root.table("guard")
    denied = guard.list_of("denied_ports", _port, tuple(sorted(DENIED_PORTS)))
    in_all = guard.integer("in_all", IN_ALL, 0, _RATE_LIMIT)
    guard.close()
    plugins = root.table("plugins")
    _folder(plugins)
    plugins.close()
    tables = root.table("helpers")
    configured = {
        name: _helper(tables.table(name), helper, daemon, denied)
        for name, helper in helpers.items()
    }
    tables.close()
    root.close()
    enabled = {name: each for name, each in configured.items() if each is not None}
    for one, other in combinations(enabled.values(), 2):
        shared = _tagged_by_both(one, other)
        if shared is not None:
            name = other.helper.name
            raise ConfigError(
                *(path, f"helpers.{name}.ports", list(other.ports)),
                f"{shared} is tagged by {one.helper.name} already: let their ports, "
                "networks or interfaces differ, or set enabled = false for one",
            )
    config = Config(daemon=daemon, expectations_in_all=in_all, helpers=enabled)
    _check_chains(path, config)
    if daemon.workers > 1:
        _check_workers(path, config)
    return config


def _check_chains(path: Path, config: Config) -> None:
    """Raise ConfigError where helpers in chain mode and others get in each other's way.

    A rule that queues knows a flow by its port, and that it has a helper: of which one,
    nft cannot tell.
    """
    for one in config.chained:
        name = one.helper.name
        if config.daemon.workers > 1:
            raise ConfigError(
                *(path, f"helpers.{name}.queueing", _CHAIN),
                'must be "helper" where there are several workers',
            )
        for other in config.helpers.values():
            if other is one:
                continue
            theirs = other.helper.name
            if one.helper.transports & other.helper.transports:
                shared = set(one.ports) & set(other.ports)
                if shared:
                    raise ConfigError(
                        *(path, f"helpers.{name}.ports", list(one.ports)),
                        f"{min(shared)} is a port of {theirs}, too: in chain mode the "
                        "port tells the helper, whatever the addresses",
                    )
            if other.queue == one.queue and one.fail_closed and not other.fail_closed:
                raise ConfigError(
                    *(path, f"helpers.{name}.queue", one.queue),
                    f"is that of {theirs}, too, which does not fail closed: it takes "
                    "a queue of its own",
                )


def _check_workers(path: Path, config: Config) -> None:
    """Raise ConfigError where the workers' names or queues are not possible."""
    workers = config.daemon.workers
    for each in config.served:
        name = each.kernel_name
        if len(name) > _NAME_LIMIT:
            raise ConfigError(
                *(path, "daemon.workers", workers),
                f"worker {each.worker} would register {each.helper.name} as {name!r}, "
                f"and the kernel's names have at most {_NAME_LIMIT} characters",
            )
    helpers = sorted(config.helpers.values(), key=lambda each: each.queue)
    for each in helpers:
        if each.queue + workers - 1 > 0xFFFF:
            raise ConfigError(
                *(path, f"helpers.{each.helper.name}.queue", each.queue),
                f"must be at most {0x10000 - workers}: each of the {workers} workers "
                "takes the next number",
            )
    for one, other in pairwise(helpers):
        if 0 < other.queue - one.queue < workers:
            raise ConfigError(
                *(path, f"helpers.{other.helper.name}.queue", other.queue),
                f"must be that of {one.helper.name}, {one.queue}, or {workers} away "
                "from it: each worker takes the next number",
            )


def _folder(table: Table) -> Path | None:
    text = table.text("folder", str(DEFAULT_PLUGINS))
    folder = Path(text)
    if text and not folder.is_absolute():
        raise table.error("folder", text, "must be an absolute path, or empty: none")
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
        mark=table.integer("mark", plain.mark, 1, _MARK_LIMIT),
        user_mask=table.integer("user_mask", plain.user_mask, 0, _MARK_LIMIT),
    )
    if daemon.mark.bit_count() != 1:
        raise table.error("mark", hex(daemon.mark), "must be a single bit")
    if daemon.mark & daemon.user_mask:
        raise table.error(
            "mark", hex(daemon.mark), f"is in user_mask, {daemon.user_mask:#x}"
        )
    table.close()
    return daemon


def _helper(
    table: Table,
    helper: type[Helper],
    daemon: DaemonConfig,
    denied: tuple[int, ...],
) -> HelperConfig | None:
    """The helper's configuration, checked in any case; None where it is disabled."""
    enabled = table.boolean("enabled", default=True)
    ports = table.list_of("ports", _port, helper.ports)
    if not ports:
        raise table.error("ports", [], "must name a port; enabled = false turns it off")
    own = tuple(hook.value for hook in helper.hooks)
    hooks = table.list_of("hooks", one_of(_HOOKS), own)
    if not hooks:
        raise table.error("hooks", [], "must name a hook; enabled = false turns it off")
    config = HelperConfig(
        helper=helper,
        queue=table.integer("queue", daemon.queue, 0, 0xFFFF),
        ports=ports,
        policies=_policies(table.table("policies"), helper.policies),
        options={option.name: table.option(option) for option in helper.options},
        hooks=frozenset(map(Hook, hooks)),
        guard=_rules(table.table("guard"), helper, denied),
        nat=_nat(table.table("nat"), helper),
        interfaces=table.list_of("interfaces", _interface, ()),
        sources=table.list_of("sources", _network, ()),
        destinations=table.list_of("destinations", _network, helper.destinations),
        chained=table.choice("queueing", _HELPER, (_HELPER, _CHAIN)) == _CHAIN,
        fail_closed=table.boolean("fail_closed", default=False),
    )
    table.close()
    if config.fail_closed and not config.chained:
        raise table.error("fail_closed", value=True, allowed='needs queueing = "chain"')
    versions = [
        {each.version for each in networks}
        for networks in (config.sources, config.destinations)
        if networks
    ]
    if len(versions) == 2 and versions[0].isdisjoint(versions[1]):
        raise table.error(
            "sources",
            [str(each) for each in config.sources],
            "must share an IP version with destinations",
        )
    return config if enabled else None


def _rules(table: Table, helper: type[Helper], denied: tuple[int, ...]) -> Rules:
    plain = Rules()
    rules = Rules(
        denied_ports=frozenset(table.list_of("denied_ports", _port, denied)),
        lowest_port=table.integer("lowest_port", helper.lowest_port, 1, 0xFFFF),
        allow_hosts=table.list_of("allow_hosts", _network, plain.allow_hosts),
        per_source=table.integer("per_source", plain.per_source, 0, _RATE_LIMIT),
        per_helper=table.integer("per_helper", plain.per_helper, 0, _RATE_LIMIT),
    )
    table.close()
    return rules


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
    transports = one.helper.transports & other.helper.transports
    ports = set(one.ports) & set(other.ports)
    if (
        not (transports and ports and one.hooks & other.hooks)
        or not _interfaces_meet(one.interfaces, other.interfaces)
        or not any(
            _networks_meet(one.sources, other.sources, version)
            and _networks_meet(one.destinations, other.destinations, version)
            for version in (4, 6)
        )
    ):
        return None
    return f"{min(transports)} {min(ports)}"


def _interfaces_meet(ours: tuple[str, ...], theirs: tuple[str, ...]) -> bool:
    return not ours or not theirs or any(_same(a, b) for a in ours for b in theirs)


def _same(one: str, other: str) -> bool:
    """Whether an interface can have both names, which may end in a *."""
    a, b = one.removesuffix("*"), other.removesuffix("*")
    return a == b or (one != a and b.startswith(a)) or (other != b and a.startswith(b))


def _networks_meet(
    ours: tuple[Network, ...], theirs: tuple[Network, ...], version: int
) -> bool:
    """Whether an address of this IP version can be in both; no networks hold all."""
    return any(
        one.version == version
        and (one.network_address in other or other.network_address in one)
        for one in ours or _EVERYWHERE
        for other in theirs or _EVERYWHERE
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
    table.close()
    return tuple(result)


def _within(address: Address, networks: tuple[Network, ...]) -> bool:
    return not networks or any(address in network for network in networks)


def _port(value: object) -> int:
    if type(value) is not int or not 0 < value <= 0xFFFF:
        raise ValueError("must be a port from 1 to 65535")
    return value


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
