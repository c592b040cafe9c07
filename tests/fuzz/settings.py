# SPDX-License-Identifier: GPL-2.0-or-later
"""Configuration, and what an examined plugin answers: any bytes are one, or an error
with lines for people.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

from cthelper import nft
from cthelper.core import reference
from cthelper.core.config import ConfigFile, parse, plugin_folder
from cthelper.core.contract import check_values
from cthelper.core.declaration import facts
from cthelper.core.errors import ConfigError, RegistryError
from cthelper.core.examination import Examining, answer
from cthelper.core.registry import (
    Found,
    builtin_helpers,
    classes,
    find_helpers,
)
from tests.fuzz.script import Mutate

_ROOT: Final = Path(__file__).parents[2]
_PATH: Final = Path("settings")
# What is quoted of a value is cut; the rest names keys and what is allowed.
_LINE_LIMIT: Final = 4000


_HELPERS: Final = builtin_helpers()


def config(data: bytes) -> None:
    """A text is a configuration that a ruleset can be made of, or ConfigError."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    for read in (_folder, _parse):
        try:
            read(text)
        except ConfigError as error:
            for line in str(error).split("\n"):
                assert line.isprintable(), f"not to be shown: {line!r}"
                assert len(line) < _LINE_LIMIT, f"{len(line)} characters in a line"


def _folder(text: str) -> None:
    plugin_folder(ConfigFile(_PATH, text))


def _parse(text: str) -> None:
    found = parse(text, _PATH, _HELPERS)
    assert all(0 <= number <= 0xFFFF for number in found.queues)
    assert found.closed_queues <= found.queues
    for warning in found.warnings:
        assert warning.isprintable(), f"not to be shown: {warning!r}"
    assert nft.render(found).endswith("\n")


_FILE: Final = Path("plugin.py")


def examined(data: bytes) -> None:
    """What a process answers that a plugin was examined in: helpers, or errors."""
    refused: list[RegistryError] = []
    found: list[Found] = []
    try:
        found = Examining(lambda *_: data, "").of_file(_FILE, b"", refused.append)
    except RegistryError as error:
        refused.append(error)
    assert found or refused or data.strip() == b"[]"
    for problem in refused:
        for line in str(problem).split("\n"):
            assert line.isprintable(), f"not to be shown: {line!r}"
    for each in found:
        check_values(each.helper)
        reference.table(each.helper).encode()
        enabled = f"[helpers.{each.helper.name}]\nenabled = true\n"
        try:
            known = parse(enabled, _PATH, classes({each.helper.name: each}))
        except ConfigError:
            continue
        assert nft.render(known).endswith("\n")
        for helper in known.helpers.values():
            facts(helper.helper, helper.options)


def examined_seeds() -> Iterator[bytes]:
    """What the helpers of ours declare, one by one and all, and an error."""
    found = [each for each in find_helpers().values() if not each.helper.template]
    for each in found:
        yield answer([each], [], "")
    yield answer(found, [RegistryError("plugin.py:3: is wrong")], "")


def mutated_answer(data: bytes, limit: int, seed: int, *, mutate: Mutate) -> bytes:
    """Another answer, most often one that is JSON still."""
    random = Random(seed)
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError):
        return mutate(data, limit)[:limit]
    if random.random() < 0.2 or not isinstance(entries, list) or not entries:
        return mutate(data, limit)[:limit]
    # What stands somewhere is something else, or what stands elsewhere.
    inside: Any = entries
    while True:
        keys = _keys(inside)
        if not keys:
            return mutate(data, limit)[:limit]
        key = random.choice(keys)
        if not _keys(inside[key]) or random.random() < 0.2:
            break
        inside = inside[key]
    value = random.choice(_ANSWERS)
    inside[key] = value
    return json.dumps(entries).encode()[:limit]


def _keys(value: Any) -> list[Any]:
    """Where there is something in a value of JSON."""
    match value:
        case dict():
            return list(value)
        case list():
            return list(range(len(value)))
    return []


_ANSWERS: Final[tuple[Any, ...]] = (
    *(None, True, 0, 1, -1, 15, 1 << 16, 1 << 70, 0.5, float("inf"), float("nan")),
    *("", "x", "tcp", "udp", "broadcast", "::/0", "10.0.0.0/8", "a\nb", "\x1b[31m"),
    *("prerouting", "data", "x" * 5000, "\ud800", [], {}, [[]], [[[0, 8, 1]]]),
    *(["data", 1, 30], {"name": "depth", "default": 1, "meaning": "x", "choices": []}),
)


def config_seeds() -> Iterator[bytes]:
    """Each table of the shipped file with all its keys, and all of them together."""
    shipped = (_ROOT / "core/cthelper.toml").read_text("utf-8")
    lines = [
        line.removeprefix("#")
        for line in shipped.splitlines()
        if re.match(r"#?([a-z_.-]+ =|\[)", line)
    ]
    tables: list[list[str]] = []
    for line in lines:
        if line.startswith("[") or not tables:
            tables.append([])
        tables[-1].append(line)
    for table in tables:
        yield "\n".join(table).encode()
    yield "\n".join(lines).encode()
    yield (_ROOT / "core/discovery.toml").read_bytes()


_VALUES: Final = (
    *("0", "1", "-1", "65535", "65536", "0x80000000", "9223372036854775807"),
    *("1e400", "-inf", "nan", "0.5", "true", "false", '""', '"x"', "[]", "{}", "[[]]"),
    *('"drop"', '"any"', '["output"]', '["prerouting", "output"]', "1979-05-27"),
    *('"192.0.2.0/24"', '["192.0.2.1/24"]', '["::/0"]', '["fe80::1%eth0"]', "07:32:00"),
    *('["1-65535"]', '["5-4"]', '["sunrpc"]', "[111, 111]", '["eth0", "eth*"]'),
    *('"10.0.0.3 203.0.113.3"', '["10.0.0.3 ::1"]', '"\\u001b[31m"', '"\\\\n"', '"""'),
    *("{ a = { b = [1, { c = 2 }] } }", "[" * 40, "1" * 5000),
)
_KEYS: Final = (
    *("enabled", "ports", "hooks", "queue", "fail_closed", "sources", "destinations"),
    *("interfaces", "guard.allow_hosts", "guard.lowest_port", "guard.denied_ports"),
    *("nat.outside", "nat.unrewritable", "policies.service.timeout", "queueing"),
    *("mark", "workers", "user_mask", "folder", '"a.b"', '"\\n"', "guard", "nat"),
)
_TABLES: Final = (
    *("daemon", "budget", "guard", "plugins", "helpers", "helpers.sunrpc"),
    *("helpers.tns.guard", "helpers.ftp.nat", "helpers.slp.policies", "[helpers.slp]"),
)


def mutated_text(data: bytes, limit: int, seed: int, *, mutate: Mutate) -> bytes:
    """Another text, most often one that is TOML still."""
    random = Random(seed)
    choice = random.random()
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    key, equals, _ = lines[at].partition(b"=")
    if choice < 0.25:
        return mutate(data, limit)[:limit]
    if choice < 0.55 and equals:
        lines[at] = key + b"= " + random.choice(_VALUES).encode()
    elif choice < 0.70:
        line = f"{random.choice(_KEYS)} = {random.choice(_VALUES)}"
        lines.insert(at, line.encode())
    elif choice < 0.80:
        lines.insert(at, f"[{random.choice(_TABLES)}]".encode())
    elif choice < 0.90:
        lines.insert(random.randrange(len(lines) + 1), lines[at])
    else:
        del lines[at]
    return b"\n".join(lines)[:limit]
