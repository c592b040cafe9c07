# SPDX-License-Identifier: GPL-2.0-or-later
"""Helper classes that can be installed, those that cannot, and where they come from."""

import inspect
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest

from cthelper.core import registry
from cthelper.core.api import TCP, UDP, Effects, Helper, Message, Option, Policy
from cthelper.core.errors import RegistryError
from cthelper.core.registry import builtin_helpers, check, find_helpers, register


class Good(Helper):
    """Can be installed."""

    name = "good"
    transports = frozenset({UDP})
    ports = (7000,)
    policies: ClassVar[tuple[Policy, ...]] = (Policy("data"),)

    def on_message(self, message: Message) -> Effects:
        yield from ()


class Nameless(Helper):
    """Sets nothing."""

    def on_message(self, message: Message) -> Effects:
        yield from ()


def variant(**fields: object) -> type[Helper]:
    """`Good` with other fields."""
    return type("Variant", (Good,), {"__module__": "plugin", **fields})


def refusal(helper: type[Helper]) -> str:
    with pytest.raises(RegistryError) as caught:
        check(helper)
    return str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "a"},
        {"name": "a-2_x"},
        {"name": "a23456789012345"},
        {"transports": frozenset({TCP, UDP}), "frame": lambda self, data: len(data)},
        {"ports": (1, 65535)},
        {"policies": tuple(Policy(f"p{number}") for number in range(4))},
        {"policies": (Policy("data", 1, 1),)},
        {"policies": (Policy("data", 255, 86400),)},
        {"options": (Option("strict", True, "a switch"),)},
        {"options": (Option("words", (), "a list", element=str),)},
        {"options": (Option("words", ("a",), "some of", ("a", "b")),)},
        {"nat": False},
        {"tags_expected": classmethod(lambda cls, options: True)},
    ],
    ids=" ".join,
)
def test_sound_helper_is_taken(fields: dict[str, object]) -> None:
    helper = variant(**fields)
    assert register([helper]) == {helper.name: helper}


NAME = "must be 1 to 15 characters of a-z, 0-9, - and _, a letter first"
LIMIT = "must have max_expected 1 to 255"
TIMEOUT = "must have a timeout of 1 to 86400 s"


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("name", "", NAME),
        ("name", "a234567890123456", NAME),
        ("name", "Upper", NAME),
        ("name", "9p", NAME),
        ("name", "white space", NAME),
        ("name", "line\n", NAME),
        ("name", 7, NAME),
        ("name", None, NAME),
        ("transports", {UDP}, "must name TCP, UDP or both, in a frozenset"),
        ("transports", UDP, "must name TCP, UDP or both, in a frozenset"),
        ("transports", frozenset(), "must name TCP, UDP or both"),
        ("transports", frozenset({132}), "must name TCP, UDP or both"),
        ("ports", (), "must be one or more of 1 to 65535"),
        ("ports", (7000, 0), "must be one or more of 1 to 65535"),
        ("ports", (65536,), "must be one or more of 1 to 65535"),
        ("ports", (7000, 7000), "must be one or more of 1 to 65535, each once"),
        ("ports", 7000, "must be one or more of 1 to 65535"),
        ("ports", [7000], "must be one or more of 1 to 65535, each once, in a tuple"),
        ("ports", ("7000",), "must be one or more of 1 to 65535"),
        ("ports", (True,), "must be one or more of 1 to 65535"),
        ("hooks", frozenset(), "must name one Hook or more, in a frozenset"),
        ("hooks", ("output",), "must name one Hook or more, in a frozenset"),
        ("destinations", ("::/0",), "must be a tuple of IPv4Network and IPv6Network"),
        ("lowest_port", "512", "must be one of 1 to 65535"),
        ("nat", 1, "must be True or False"),
        ("message_limit", 1.5, "must be at least 1 byte"),
        ("policies", Policy("data"), "must be a tuple of Policy"),
        ("policies", ("data",), "must be a tuple of Policy"),
        ("options", (("x", 1),), "must be a tuple of Option"),
        ("options", (Option("x y", 1, "a blank"),), "has no usable name 'x y'"),
        ("options", (Option("x", 1, "", (1, True)),), "has no usable default of x"),
        ("options", (Option("x", 1, "", None),), "has no usable default of x"),  # type: ignore[arg-type]  # what is refused
        ("options", (Option("x", (), "a list"),), "has no usable default of x"),
        (
            "options",
            (Option("x", ("c",), "a list", ("a", "b")),),
            "has no usable default of x",
        ),
        (
            "options",
            (Option("x", (), "a list", ("a",), element=str),),
            "has no usable default of x",
        ),
        (
            "options",
            (Option("x", 1, "", element=lambda value: value),),
            "has no usable default of x",
        ),
        ("tags_expected", True, "must be a class method"),
        ("lowest_port", 0, "must be one of 1 to 65535"),
        ("lowest_port", 65536, "must be one of 1 to 65535"),
        ("message_limit", 0, "must be at least 1 byte"),
        ("policies", (), "must be"),
        ("policies", tuple(Policy(f"p{number}") for number in range(5)), "must be"),
        ("policies", (Policy("a"), Policy("a")), "must have different names"),
        ("policies", (Policy("A b"),), "has no usable name 'A b'"),
        ("policies", (Policy("a", 0),), LIMIT),
        ("policies", (Policy("a", 256),), LIMIT),
        ("policies", (Policy("a"), Policy("b", 1, 0)), TIMEOUT),
        ("policies", (Policy("a", 1, 86401),), TIMEOUT),
        (
            "options",
            (Option("x", 1, "one"), Option("x", 2, "two")),
            "must have names of their own",
        ),
        (
            "options",
            (Option("x", "c", "one", choices=("a", "b")),),
            "has no usable default of x",
        ),
        *(
            ("options", (Option(key, 1, "taken"),), "must have names of their own")
            for key in (
                "enabled",
                "ports",
                "interfaces",
                "sources",
                "destinations",
                "queue",
                "policies",
                "hooks",
                "guard",
                "nat",
            )
        ),
    ],
)
def test_refusal_names_class_field_and_value(
    field: str, value: object, why: str
) -> None:
    assert refusal(variant(**{field: value})).startswith(
        f"plugin.Variant.{field} = {value!r}: {why}"
    )


def test_helper_without_on_message_is_refused() -> None:
    class Silent(Helper):
        name = "silent"
        transports = frozenset({UDP})
        ports = (7000,)
        policies = (Policy("data"),)

    with pytest.raises(RegistryError, match=r"Silent\.on_message: must be written$"):
        register([Silent])  # type: ignore[type-abstract]  # what is refused


def test_helper_for_tcp_without_frame_is_refused() -> None:
    helper = variant(transports=frozenset({TCP}))
    assert refusal(helper) == (
        "plugin.Variant.frame: must be written for a helper that serves TCP"
    )


async def coroutine(self: Helper, message: Message) -> None:
    pass


def initialised(self: Helper, depth: int) -> None:
    pass


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        (
            "on_message",
            lambda self: iter(()),
            "a method: def on_message(self, message)",
        ),
        (
            "on_message",
            lambda self, message, now: iter(()),
            "a method: def on_message(self, message)",
        ),
        (
            "on_message",
            staticmethod(lambda message: iter(())),
            "a method: def on_message(self, message)",
        ),
        (
            "on_message",
            coroutine,
            "a method: def on_message(self, message), and not async",
        ),
        ("frame", lambda data: None, "a method: def frame(self, data)"),
        ("describe", lambda self: {}, "a method: def describe(self, message)"),
    ],
)
def test_method_with_another_signature_is_refused(
    field: str, value: object, why: str
) -> None:
    assert (
        refusal(variant(**{field: value})) == f"plugin.Variant.{field}: must be {why}"
    )


def test_method_that_is_none_is_refused() -> None:
    assert refusal(variant(describe="what")) == (
        "plugin.Variant.describe = 'what': "
        "must be a method: def describe(self, message)"
    )


def test_helper_that_wants_arguments_is_refused() -> None:
    assert refusal(variant(__init__=initialised)) == (
        "plugin.Variant.__init__: must take no argument but self: "
        "missing a required argument: 'depth'"
    )


@pytest.mark.parametrize("field", ["name", "transports", "ports", "policies"])
def test_refusal_names_the_field_that_is_missing(field: str) -> None:
    fields: dict[str, object] = {
        key: vars(Good)[key]
        for key in ("name", "transports", "ports", "policies")
        if key != field
    }
    helper = type("Partial", (Nameless,), {"__module__": "plugin", **fields})
    assert refusal(helper) == f"plugin.Partial.{field}: is missing"


def test_name_that_is_taken_is_refused() -> None:
    with pytest.raises(RegistryError) as caught:
        register([Good, variant(ports=(7001,))])
    assert str(caught.value) == (
        "plugin.Variant.name = 'good': is taken by tests.core.test_registry"
    )


def test_unsound_helper_is_not_registered() -> None:
    with pytest.raises(RegistryError, match="ports"):
        register([Good, variant(name="other", ports=())])


def test_helpers_come_in_order_of_their_names() -> None:
    classes = [variant(name=name) for name in ("c", "a", "b")]
    assert list(register(classes)) == ["a", "b", "c"]


def test_builtin_helper_that_cannot_be_imported_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(registry, "import_module", fails)
    with pytest.raises(RegistryError) as caught:
        find_helpers()
    assert str(caught.value) == (
        "cthelper.helpers.dhcpv6: ModuleNotFoundError: "
        "No module named 'cthelper.helpers.dhcpv6'"
    )


def test_builtin_helpers_are_sound_and_of_this_project() -> None:
    helpers = builtin_helpers()
    assert list(helpers) == sorted(helpers)
    for name, helper in helpers.items():
        check(helper)
        assert helper.name == name
        assert helper.__module__.startswith("cthelper.helpers.")


# Files


GOOD = """
from cthelper.core.api import *

class {class_}(Helper):
    \"\"\"A helper out of a file.\"\"\"
    name = "{name}"
    transports = frozenset({{UDP}})
    ports = ({port},)
    policies = (Policy("data"),)

    def on_message(self, message):
        yield DONE
"""


def good(name: str = "dropped", port: object = 7100, class_: str = "Dropped") -> str:
    return GOOD.format(name=name, port=port, class_=class_)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for plugins that is as it must be."""
    folder = tmp_path / "plugins"
    folder.mkdir(mode=0o755)
    return folder


def write(file: Path, text: str) -> Path:
    file.write_text(text)
    file.chmod(0o644)
    return file


def complaint(folder: Path | None = None, *files: Path) -> str:
    with pytest.raises(RegistryError) as caught:
        find_helpers(folder, files)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def test_helpers_of_a_folder_stand_beside_the_built_in_ones(folder: Path) -> None:
    two = good("one", 7101, "One") + good("two", 7102, "Two")
    file = write(folder / "both.py", two + "Again = Two\n")
    write(folder / "_ignored.py", "1/0")
    write(folder / ".ignored.py", "1/0")
    write(folder / "ignored.txt", "1/0")
    (folder / "sub").mkdir()
    found = find_helpers(folder)
    assert list(found) == sorted([*builtin_helpers(), "one", "two"])
    assert found["one"].source == found["two"].source == str(file)
    assert not found["one"].builtin
    assert found["mdns"].source == "cthelper.helpers.mdns"
    assert found["mdns"].builtin
    # What `inspect` finds is what faults of helpers are placed by.
    assert inspect.getfile(found["one"].helper) == str(file)
    assert list(folder.glob("__pycache__")) == []


def test_file_is_a_plugin_wherever_it_lies(tmp_path: Path) -> None:
    file = write(tmp_path / "with-any name", good())
    assert find_helpers(None, [file])["dropped"].source == str(file)


def test_class_that_others_build_upon_is_no_helper(tmp_path: Path) -> None:
    base = good().replace("class Dropped", "class _Base")
    derived = "class Dropped(_Base):\n    pass\n"
    found = find_helpers(None, [write(tmp_path / "x.py", base + derived)])
    assert found["dropped"].helper.__name__ == "Dropped"


def test_file_that_has_changed_gives_a_new_class(folder: Path) -> None:
    # The same time and size as before, by which a cache would go.
    file = write(folder / "x.py", good(port=7100))
    stamp = file.stat()
    before = find_helpers(folder)["dropped"].helper
    write(file, good(port=7200))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = find_helpers(folder)["dropped"].helper
    assert (before.ports, after.ports) == ((7100,), (7200,))
    assert before is not after


def test_file_that_is_refused_leaves_the_module_that_was_there(folder: Path) -> None:
    file = write(folder / "x.py", good())
    helper = find_helpers(folder)["dropped"].helper
    module = sys.modules[helper.__module__]
    write(file, "1/0")
    complaint(folder)
    assert sys.modules[helper.__module__] is module


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", ": defines no helper, which is a class of cthelper.core.api.Helper"),
        (
            "from cthelper.helpers.mdns import Mdns",
            ": defines no helper, which is a class of cthelper.core.api.Helper",
        ),
        ("\n1/0", ":2: ZeroDivisionError: division by zero"),
        ("import nothing_there", ":1: ModuleNotFoundError: No module named"),
        ("from . import x", ":1: ImportError: attempted relative import"),
        ("class X(:", ":1: SyntaxError: invalid syntax"),
        ("\nx = '\\0", ":2: SyntaxError: unterminated string literal"),
        ("raise SystemExit", ":1: SystemExit"),
        ("import sys\nsys.exit(1)", ":2: SystemExit: 1"),
        ("raise ValueError('two\\nlines')", ":1: ValueError: two lines"),
        ("import json\njson.loads('{')", ":2: JSONDecodeError: "),
        (good(port=0), ":8: Dropped.ports = (0,): must be one or more of 1 to 65535"),
        (good(name="Bad"), ":6: Dropped.name = 'Bad': must be 1 to 15 characters"),
        (good(name="mdns"), ":6: Dropped.name = 'mdns': is taken by cthelper.helpers."),
        (
            good().replace("self, message", "self"),
            ":11: Dropped.on_message: must be a method: def on_message(self, message)",
        ),
        (good().replace("    ports =", "    port ="), ":4: Dropped.ports: is missing"),
    ],
)
def test_file_is_refused_with_a_line_that_says_what_and_where(
    folder: Path, text: str, why: str
) -> None:
    file = write(folder / "wrong.py", text)
    assert complaint(folder).startswith(f"{file}{why}")
    assert complaint(None, file).startswith(f"{file}{why}")


def test_bytes_that_are_no_source_are_refused(folder: Path) -> None:
    file = folder / "x.py"
    for content in (b"\0", b"\xff", b"\x7fELF\0\0"):
        file.write_bytes(content)
        assert complaint(None, file).startswith(f"{file}:")


def test_two_files_of_one_name_are_refused_by_both_places(folder: Path) -> None:
    first = write(folder / "a.py", good())
    second = write(folder / "b.py", good(port=7200))
    assert complaint(folder) == (
        f"{second}:6: Dropped.name = 'dropped': is taken by {first}"
    )


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    absent = tmp_path / "absent.py"
    assert complaint(None, absent) == (
        f"{absent}: cannot be read: No such file or directory"
    )
    assert complaint(None, tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    assert complaint(absent) == f"{absent}: cannot be read: No such file or directory"


# What root runs


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs files of root and of others")
@pytest.mark.parametrize("which", ["folder", "file", "target", "target's folder"])
@pytest.mark.parametrize("mode", [None, 0o664, 0o646, 0o622])
def test_what_others_may_change_is_refused_to_root(
    folder: Path, tmp_path: Path, which: str, mode: int | None
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    linked = write(elsewhere / "linked.py", good("linked", 7101))
    (folder / "link.py").symlink_to(linked)
    file = write(folder / "x.py", good())
    assert {"dropped", "linked"} <= find_helpers(folder).keys()
    paths = {"folder": folder, "file": file, "target": linked}
    path = paths.get(which, elsewhere)
    shown = folder / "link.py" if which == "target" else path
    if mode is None:
        os.chown(path, 65534, -1)
        assert complaint(folder) == (
            f"{shown}: belongs to user 65534, and root would run what is in it: "
            f"chown root {shown}"
        )
    else:
        path.chmod(mode)
        assert complaint(folder) == (
            f"{shown}: others may write what root would run (mode {mode:04o}): "
            f"chmod go-w {shown}"
        )


def test_folder_of_another_user_is_refused_to_root(folder: Path, as_root: None) -> None:
    if folder.stat().st_uid == 0:
        os.chown(folder, 65534, -1)
    assert "and root would run what is in it" in complaint(folder)


def test_user_may_run_what_others_may_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    folder.chmod(0o777)
    write(folder / "x.py", good()).chmod(0o666)
    assert "dropped" in find_helpers(folder)


# Distributions


def install(site: Path, value: str, code: str, name: str = "cthelper-x") -> None:
    """What an installer leaves of a distribution with one entry point."""
    info = site / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n"
    )
    (info / "entry_points.txt").write_text(f"[cthelper.helpers]\nx = {value}\n")
    (site / f"{value.partition(':')[0]}.py").write_text(code)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that distributions are found in."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    return site


def test_entry_point_is_a_helper(site: Path) -> None:
    install(site, "registry_test_good:Dropped", good())
    found = find_helpers()["dropped"]
    assert found.source == "cthelper-x 1.2 (registry_test_good:Dropped)"
    assert not found.builtin


@pytest.mark.parametrize(
    ("value", "code", "why"),
    [
        (
            "registry_test_absent:Absent",
            good(),
            "cthelper-x 1.2: entry point x = 'registry_test_absent:Absent': "
            "AttributeError: module 'registry_test_absent' has no attribute 'Absent'",
        ),
        (
            "registry_test_broken:Dropped",
            "1/0",
            "cthelper-x 1.2: entry point x = 'registry_test_broken:Dropped': "
            "ZeroDivisionError: division by zero",
        ),
        (
            "registry_test_module",
            good(),
            "cthelper-x 1.2: entry point x = 'registry_test_module': "
            "must be a class of cthelper.core.api.Helper",
        ),
        (
            "registry_test_port:Dropped",
            good(port=70000),
            "cthelper-x 1.2: {site}/registry_test_port.py:8: Dropped.ports = (70000,): "
            "must be one or more of 1 to 65535, each once, in a tuple",
        ),
        (
            "registry_test_clash:Dropped",
            good(name="sunrpc"),
            "cthelper-x 1.2: {site}/registry_test_clash.py:6: Dropped.name = 'sunrpc': "
            "is taken by cthelper.helpers.sunrpc",
        ),
    ],
)
def test_broken_distribution_is_named(
    site: Path, value: str, code: str, why: str
) -> None:
    install(site, value, code)
    assert complaint() == why.format(site=site)
