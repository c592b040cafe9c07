# SPDX-License-Identifier: GPL-2.0-or-later
"""Where helpers come from, and what is refused there."""

import inspect
import os
import sys
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace
from zipfile import ZipFile

import pytest

from cthelper.core import api, registry, trusted
from cthelper.core.contract import check
from cthelper.core.errors import RegistryError
from cthelper.core.registry import (
    Broken,
    builtin_helpers,
    find_helpers,
    register,
)
from tests.core.test_contract import Good, variant


def test_name_that_is_taken_is_refused() -> None:
    with pytest.raises(RegistryError) as caught:
        register([Good, variant(ports=(7001,))])
    assert str(caught.value) == (
        "plugin.Variant.name = 'good': is taken by tests.core.test_contract"
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

    builtin_helpers()  # which there are is found out once
    monkeypatch.setattr(registry, "import_module", fails)
    with pytest.raises(RegistryError) as caught:
        find_helpers()
    assert str(caught.value) == (
        "cthelper.helpers.amanda: ModuleNotFoundError: "
        "No module named 'cthelper.helpers.amanda'"
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


def test_template_of_a_plugin_is_refused(folder: Path) -> None:
    file = write(folder / "one.py", good() + "    template = True\n")
    assert complaint(folder).startswith(f"{file}:")
    assert complaint(folder).endswith("template = True: must be False in a plugin")


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
        (
            "from cthelper.core.api import Newer",
            ":1: ImportError: cannot import name 'Newer' from 'cthelper.core.api' "
            f"({api.__file__}): this cthelper has API {api.API[0]}.{api.API[1]}",
        ),
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
    if mode is None:
        os.chown(path, 65534, -1)
        assert complaint(folder) == (
            f"{path}: belongs to user 65534, who could change what root does: "
            f"chown -h root {path}"
        )
    else:
        path.chmod(mode)
        assert complaint(folder) == (
            f"{path}: others may write to it, and so change what root does "
            f"(mode {mode:04o}): chmod go-w {path}"
        )


def test_all_that_is_refused_is_told_and_the_others_are_found(folder: Path) -> None:
    write(folder / "a.py", "1/0")
    write(folder / "b.py", good())
    write(folder / "c.py", good())
    write(folder / "d.py", good("last", 7101))
    refused: list[RegistryError] = []
    found = find_helpers(folder, [folder / "absent"], refused.append)
    assert {"dropped", "last"} <= found.keys()
    assert found["dropped"].source == str(folder / "b.py")
    assert [str(each).removeprefix(f"{folder}/") for each in refused] == [
        "a.py:1: ZeroDivisionError: division by zero",
        "absent: cannot be read: No such file or directory",
        f"c.py:6: Dropped.name = 'dropped': is taken by {folder}/b.py",
    ]


def test_folder_of_another_user_is_refused_to_root(folder: Path, as_root: None) -> None:
    if folder.stat().st_uid == 0:
        os.chown(folder, 65534, -1)
    assert "who could change what root does" in complaint(folder)


def test_user_may_run_what_others_may_write(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(trusted, "holds", lambda capability: False)
    folder.chmod(0o777)
    write(folder / "x.py", good()).chmod(0o666)
    assert "dropped" in find_helpers(folder)


# Distributions


def install(
    site: Path, value: str, code: str, name: str = "cthelper-x", point: str = "x"
) -> None:
    """What an installer leaves of a distribution with one entry point."""
    info = site / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n"
    )
    (info / "entry_points.txt").write_text(f"[cthelper.helpers]\n{point} = {value}\n")
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
def test_broken_distribution_is_named_and_takes_down_itself_alone(
    site: Path, folder: Path, value: str, code: str, why: str
) -> None:
    install(site, value, code)
    install(site, "registry_test_other:Dropped", good(), "cthelper-y", "y")
    write(folder / "x.py", good(name="in-folder"))
    broken: list[Broken] = []
    found = find_helpers(folder, broken=broken)
    assert broken == [("x", why.format(site=site))]
    assert found.keys() == {*builtin_helpers(), "dropped", "in-folder"}
    assert found["dropped"].distribution == "cthelper-y 1.2"
    assert found["sunrpc"].builtin
    # Nobody need ask.
    assert find_helpers(folder).keys() == found.keys()


def test_entry_point_that_leads_to_what_helpers_of_ours_are_built_upon_is_left_out(
    site: Path,
) -> None:
    code = "from cthelper.helpers.discovery import GroupQuery\n"
    install(site, "registry_test_base:GroupQuery", code)
    broken: list[Broken] = []
    assert find_helpers(broken=broken).keys() == builtin_helpers().keys()
    ((name, reason),) = broken
    assert name == "x"
    assert reason.startswith("cthelper-x 1.2: ")
    assert reason.endswith("GroupQuery.name: is missing")


@pytest.mark.parametrize(
    "points",
    [b"[cthelper.helpers]\nno entry point\n", b"[console_scripts]\n\xff = x\n"],
    ids=["line", "encoding"],
)
def test_distribution_with_damaged_metadata_takes_down_itself_alone(
    site: Path, points: bytes
) -> None:
    install(site, "registry_test_whole:Dropped", good())
    install(site, "registry_test_damaged:Dropped", good(), "other")
    (site / "other-1.2.dist-info" / "entry_points.txt").write_bytes(points)
    broken: list[Broken] = []
    found = find_helpers(None, broken=broken)
    assert found.keys() == {*builtin_helpers(), "dropped"}
    ((name, reason),) = broken
    assert name == "other"
    assert reason.startswith("other: ")


def test_distribution_in_an_archive_is_found(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "registry_test_zipped:Dropped", good())
    archive = site.with_suffix(".zip")
    with ZipFile(archive, "w") as packed:
        for file in site.rglob("*"):
            packed.write(file, file.relative_to(site))
    monkeypatch.setattr(sys, "path", [*sys.path, str(archive)])
    sys.path.remove(str(site))
    assert find_helpers()["dropped"].distribution == "cthelper-x 1.2"


def test_distribution_of_another_finder_is_found(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "registry_test_elsewhere:Dropped", good())
    (metadata,) = site.glob("*.dist-info")
    metadata = metadata.rename(tmp_path / metadata.name)
    assert "dropped" not in find_helpers()
    distribution = Distribution.at(metadata)
    finder = SimpleNamespace(
        find_spec=lambda *_: None, find_distributions=lambda _: [distribution]
    )
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, finder])
    assert find_helpers()["dropped"].distribution == "cthelper-x 1.2"


def test_entry_point_that_takes_the_name_of_a_file_of_ours_is_left_out(
    site: Path, folder: Path
) -> None:
    install(site, "registry_test_theirs:Dropped", good())
    write(folder / "x.py", good())
    broken: list[Broken] = []
    assert find_helpers(folder, broken=broken)["dropped"].distribution is None
    ((_, reason),) = broken
    assert reason.endswith(f"is taken by {folder}/x.py")
