# SPDX-License-Identifier: GPL-2.0-or-later
"""conntrackd with some of its helpers, for comparison, and rules that tag flows."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cthelper.core.daemon.ruleset import unregister
from cthelper.core.netlink.nfnetlink_cthelper import Registration
from tests.live.gateway import helper_table
from tests.live.world import Family, Transport, World, until

_FIRST_QUEUE: Final = 21
_START_SECONDS: Final = 60.0
_FAMILIES: Final[dict[Family, str]] = {4: "inet", 6: "inet6"}


@dataclass(frozen=True)
class Tagged:
    """A helper that is not ours, and the flows that have it: to these ports.

    What the gateway itself sends is tagged in the hook "output".
    """

    helper: str
    transport: Transport
    ports: str
    families: tuple[Family, ...] = (4, 6)
    hook: str = "prerouting"

    @property
    def types(self) -> list[str]:
        """What conntrackd has to register for it."""
        return [
            f"{self.helper} {_FAMILIES[family]} {self.transport}"
            for family in self.families
        ]


RPC_TNS: Final = (
    Tagged("rpc", "tcp", "111"),
    Tagged("rpc", "udp", "111"),
    Tagged("tns", "tcp", "1521"),
)


@contextmanager
def tagging(world: World, *helpers: Tagged) -> Iterator[None]:
    """The gateway tags flows, of the families that these helpers are registered for."""
    world.gateway.run("nft", "-f", "-", input=_rules(helpers), check=True)
    try:
        yield
    finally:
        world.gateway.run("nft", "delete table inet theirs", check=True)


def _rules(helpers: Iterable[Tagged]) -> str:
    objects, chains = "", ""
    for number, each in enumerate(helpers):
        kind = f'type "{each.helper}" protocol {each.transport}'
        objects += f"	ct helper helper-{number} {{ {kind}; }}\n"
        chains += f"""	chain {each.hook}-{number} {{
		type filter hook {each.hook} priority -150; policy accept;
		{each.transport} dport {{ {each.ports} }} ct helper set "helper-{number}"
	}}
"""
    return f"table inet theirs {{\n{objects}{chains}}}\n"


def _configuration(folder: Path, names: list[str]) -> str:
    types = []
    for number, name in enumerate(names):
        helper = name.split()[0]
        types.append(
            f"Type {name} {{\nQueueNum {_FIRST_QUEUE + number}\nQueueLen 10240\n"
            f"Policy {helper} {{\nExpectMax 8\nExpectTimeout 300\n}}\n}}\n"
        )
    return (
        f"Helper {{\nSetup yes\n{''.join(types)}}}\n"
        f"General {{\nLogFile {folder}/log\nLockFile {folder}/lock\n"
        f"UNIX {{\nPath {folder}/control\n}}\n}}\n"
    )


@contextmanager
def conntrackd(world: World, folder: Path, *helpers: Tagged) -> Iterator[None]:
    """Run it on the gateway with these helpers, and tag flows for it."""
    config = folder / "conntrackd.conf"
    types = [name for each in helpers for name in each.types]
    config.write_text(_configuration(folder, types))
    names = {each.helper for each in helpers}
    process = world.gateway.start("conntrackd", "-C", str(config))
    with helper_table(world) as table:

        def registered() -> list[Registration]:
            return [each for each in table.list() if each.name in names]

        def ready() -> bool:
            return process.poll() is not None or len(registered()) == len(types)

        try:
            # The kernel resolves the names in rules once, when they are loaded.
            if not until(ready, _START_SECONDS) or process.poll() is not None:
                raise RuntimeError(f"conntrackd: {world.gateway.log()}")
            with tagging(world, *helpers):
                yield
        finally:
            process.terminate()
            process.wait(20)
            # It leaves them behind, and ours have the same names.
            unregister(table, registered())
