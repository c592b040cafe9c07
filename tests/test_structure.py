# SPDX-License-Identifier: GPL-2.0-or-later
"""What may import what, read off the syntax of every source file."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
PYTHON: Final = "#!/usr/bin/env python"
SPDX: Final = "SPDX-License-Identifier: GPL-2.0-or-later"
CODE_FOLDERS: Final = ("core", "helpers", "plugins", "nft")
SOURCES: Final = (*CODE_FOLDERS, "tests", "script", "bench", "src/cthelper", ".ci")

CORE: Final = "cthelper.core."
BASE: Final = frozenset({"api", "errors", "option", "travel", "tuples", "cursor"})
PURE: Final = frozenset(
    {
        "accounts",
        "compiled",
        "config",
        "contract",
        "declaration",
        "docstrings",
        "engine",
        "examination",
        "expecter",
        "firewall",
        "flows",
        "grants",
        "guard",
        "kernel_modules",
        "ledger",
        "masters",
        "nat",
        "nearest",
        "outcome",
        "packet",
        "patches",
        "ports",
        "quarantine",
        "reader",
        "records",
        "reference",
        "registry",
        "rewriting",
        "sequence",
        "sources",
        "stream",
        "tables",
        "trusted",
        "window",
    }
)
# The rooms of core/, and what each may import of core/ beside itself.
ROOMS: Final = {
    "netlink": BASE,
    "queue": BASE | {"netlink", "packet"},
    "control": BASE | PURE | {"netlink", "queue"},
    "daemon": BASE | PURE | {"netlink", "queue", "control"},
    "offline": BASE | PURE,
    "cli": BASE | PURE | {"netlink", "queue", "control", "daemon", "offline"},
}
# Packages that one room alone imports, beside the tests and benchmarks.
PACKAGES: Final = {
    "pyroute2": "netlink",
    "netfilterqueue": "queue",
    "scapy": "offline",
    "prometheus_client": "cli",
    "textual": "cli",
}


@dataclass(frozen=True, slots=True)
class Import:
    """A file, named from the project's folder, imports a module at a line."""

    file: str
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"


def imports(file: str, source: str) -> Iterator[Import]:
    """Every import in `source`, wherever it stands.

    What `from` takes out of a package may be a module, so that it counts as one.
    """
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(file, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield Import(file, node.lineno, module)
            if module in ("cthelper", "cthelper.core"):
                for alias in node.names:
                    yield Import(file, node.lineno, f"{module}.{alias.name}")


def violation(found: Import) -> str | None:
    """The rule that an import breaks."""
    folder, *rest = Path(found.file).with_suffix("").parts
    top = found.module.split(".")[0]
    if found.module.startswith("."):
        return "nothing is imported by a relative name"
    if top in CODE_FOLDERS:
        return "nothing is imported under its folder's name"
    room = rest[0] if folder == "core" and len(rest) > 1 else None
    if top in PACKAGES and room != PACKAGES[top] and folder not in ("tests", "bench"):
        return f"{top} is imported in core/{PACKAGES[top]} and tests only"
    if top == "tests" and folder not in ("tests", "bench", "script"):
        return "no code imports tests"
    if top != "cthelper":
        return None
    if folder in ("helpers", "plugins"):
        return _of_helper(folder, found.module)
    if room is not None:
        return _of_room(room, found.module)
    if folder == "core":
        return _of_core(rest[0], found.module)
    return None


def _of_helper(folder: str, module: str) -> str | None:
    siblings = f"cthelper.{folder}."
    if module in ("cthelper", "cthelper.core", "cthelper.core.api"):
        return None
    if module.startswith((siblings, "cthelper.core.api.")):
        return None
    return f"{folder} import cthelper.core.api and their siblings only"


def _of_core(name: str, module: str) -> str | None:
    part = module.removeprefix(CORE).split(".")[0]
    if module in ("cthelper", "cthelper.core"):
        return None
    if name in BASE and not (module.startswith(CORE) and part in BASE):
        return f"{name} imports {', '.join(sorted(BASE))} only"
    if name in PURE and (not module.startswith(CORE) or part in ROOMS):
        return f"{name} imports nothing of {', '.join(ROOMS)}, helpers or nft"
    return None


def _of_room(room: str, module: str) -> str | None:
    if not module.startswith(CORE):
        # The kernel's protocols know neither a helper nor a ruleset.
        lower = room in ("netlink", "queue") and module.startswith("cthelper.")
        return f"core/{room} imports nothing but core" if lower else None
    part = module.removeprefix(CORE).split(".")[0]
    if part == room or part in ROOMS[room]:
        return None
    return f"core/{room} imports {', '.join(sorted(ROOMS[room]))} and itself only"


def python_files() -> list[Path]:
    """Every file in Python, the scripts too, whose names have no ending."""
    return [
        path
        for path in source_files()
        if path.suffix == ".py" or path.read_text("utf-8").startswith(PYTHON)
    ]


def source_files() -> list[Path]:
    """Every file of ours that can hold a comment."""
    return sorted(
        path
        for folder in SOURCES
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.suffix in (".py", ".c", ".h", "")
    )


def test_every_import_keeps_the_direction() -> None:
    files = python_files()
    assert len(files) > 30
    broken = [
        f"{found}: {rule}"
        for path in files
        for found in imports(str(path.relative_to(ROOT)), path.read_text("utf-8"))
        if (rule := violation(found)) is not None
    ]
    assert broken == []


def test_the_modules_that_the_rules_name_are_there() -> None:
    present = {path.stem for path in (ROOT / "core").glob("*.py")}
    assert present >= BASE | PURE
    # A module that no rule names would be free to import anything.
    assert present == BASE | PURE | {"__init__"}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/api.py", "from cthelper.core.engine import Engine"),
        ("core/errors.py", "import cthelper.core.config"),
        ("core/cursor.py", "from cthelper.core import stream"),
        ("core/tuples.py", "from cthelper.helpers.xdr import read_string"),
        ("core/tuples.py", "from cthelper import nft"),
        ("core/engine.py", "from cthelper.core.daemon.log import Log"),
        ("core/engine.py", "from cthelper.core import daemon"),
        ("core/netlink/links.py", "from cthelper.core.queue.protocol import Packet"),
        ("core/netlink/links.py", "from cthelper.core.config import HelperConfig"),
        ("core/queue/sieve.py", "from cthelper.core.flows import FlowTable"),
        ("core/queue/sieve.py", "from cthelper import nft"),
        ("core/daemon/gate.py", "from cthelper.core.offline.conntrack import Model"),
        ("core/offline/replay.py", "from cthelper.core.daemon.gate import Gate"),
        ("core/daemon/gate.py", "import pyroute2"),
        ("core/queue/native.py", "from pyroute2 import netlink"),
        ("core/netlink/links.py", "from netfilterqueue import NetfilterQueue"),
        ("core/stream.py", "import cthelper.core.offline.capture"),
        ("core/config.py", "def f():\n    from cthelper.core.cli import main"),
        ("core/registry.py", "from cthelper.helpers.mdns import Mdns"),
        ("helpers/mdns.py", "from cthelper.core.tuples import Endpoint"),
        ("helpers/mdns.py", "from cthelper.core import guard"),
        ("helpers/mdns.py", "from cthelper.nft import render"),
        ("plugins/example.py", "from cthelper.helpers.xdr import read_string"),
        ("core/engine.py", "import pyroute2"),
        ("core/cli/run.py", "from netfilterqueue import NetfilterQueue"),
        ("helpers/dns.py", "from scapy.layers.dns import DNS"),
        ("core/queue/protocol.py", "import scapy.all"),
        ("core/cli/run.py", "if True:\n    import core.engine"),
        ("tests/test_x.py", "from helpers import mdns"),
        ("core/engine.py", "from . import flows"),
        ("core/engine.py", "from .flows import Flow"),
        ("core/daemon/gate.py", "from tests.core.builders import conntrack"),
    ],
)
def test_a_violation_is_reported(file: str, source: str) -> None:
    assert any(violation(each) is not None for each in imports(file, source))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/api.py", "from cthelper.core.cursor import Cursor"),
        ("core/engine.py", "from cthelper.core.api import Helper"),
        ("core/daemon/gate.py", "from cthelper.core.engine import Decision"),
        ("core/daemon/server.py", "from cthelper.core.queue.protocol import Queue"),
        ("core/daemon/ruleset.py", "from cthelper import nft"),
        ("core/queue/native.py", "from cthelper.core.netlink.socket import split"),
        ("core/netlink/socket.py", "import pyroute2.netlink"),
        ("core/offline/capture.py", "from scapy.utils import RawPcapReader"),
        ("core/cli/run.py", "from cthelper.core.daemon.server import Daemon"),
        ("helpers/mdns.py", "from cthelper.core import api"),
        ("helpers/mdns.py", "from cthelper.helpers.dns import read_header"),
        ("helpers/mdns.py", "import struct"),
        ("tests/core/x.py", "from scapy.layers.inet import IP"),
        ("tests/core/x.py", "from tests.core.builders import conntrack"),
    ],
)
def test_what_is_allowed_is_not_reported(file: str, source: str) -> None:
    found = list(imports(file, source))
    assert found
    assert [violation(each) for each in found] == [None] * len(found)


@pytest.mark.parametrize("folder", CODE_FOLDERS)
def test_code_folder_is_the_package_by_a_link(folder: str) -> None:
    link = ROOT / "src" / "cthelper" / folder
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
    assert link.resolve() == (ROOT / folder).resolve()


def lacks_licence(text: str) -> bool:
    """Whether neither of the first two lines (the first may be #!) has the licence."""
    comments = [re.sub(r"^(#|//|/\*)\s*", "", line) for line in text.splitlines()[:2]]
    return not any(line.removesuffix("*/").strip() == SPDX for line in comments)


def test_every_source_file_has_its_licence() -> None:
    files = source_files()
    assert len(files) > 30
    lacking = [
        str(path.relative_to(ROOT))
        for path in files
        if lacks_licence(path.read_text("utf-8"))
    ]
    assert lacking == []


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        (f"# {SPDX}\n", False),
        (f"#!/bin/sh\n# {SPDX}\n", False),
        (f"/* {SPDX} */\n", False),
        ("", True),
        (f'"""Doc."""\nimport ast\n# {SPDX}\n', True),
        ("# SPDX-License-Identifier: MIT\n", True),
    ],
    ids=["first line", "after #!", "C", "empty", "too late", "another licence"],
)
def test_missing_licence_is_reported(text: str, lacks: bool) -> None:
    assert lacks_licence(text) is lacks
