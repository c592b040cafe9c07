# SPDX-License-Identifier: GPL-2.0-or-later
"""The source archive is the project, and the wheel of it is all that users need."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Final

import mypy_extensions
import pytest
import scapy

import cthelper
from cthelper.core.errors import _METRICS, _REPLAY, _TOP
from cthelper.core.offline.capture import ZSTD
from cthelper.core.queue.backends import LIBRARY

ROOT: Final = Path(__file__).parents[1]
PAGES: Final = (
    *(ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "plugins" / "README.md"),
    *(ROOT / "docs").glob("*.md"),
)
DOCUMENTS: Final = "share/doc/cthelper"


# Where script/compiled has one installation in use, another is to be made all the same.
_ENVIRONMENT: Final = {
    name: value for name, value in os.environ.items() if name != "PYTHONPATH"
}


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """What a command prints, which must succeed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**_ENVIRONMENT, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build_wheel(source: Path, folder: Path, compiler: str | None = None) -> Path:
    """The wheel of a folder or source archive, built where nothing is downloaded.

    Its modules are not compiled: that takes a minute, and script/compiled does it.
    """
    run(
        *(sys.executable, "-m", "pip", "-q", "wheel", source, "--no-deps"),
        *("--no-build-isolation", "--wheel-dir", folder),
        cwd=folder,
        **({"CTHELPER_PURE": "1"} if compiler is None else {"CC": compiler}),
    )
    (wheel,) = folder.glob("cthelper-*.whl")
    return wheel


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive."""
    folder = tmp_path_factory.mktemp("archive")
    # setuptools builds in the tree, and what an earlier build left there goes along.
    unbuilt = shutil.ignore_patterns(
        *(".git", ".venv", ".compiled", ".debian", ".kernels", ".*_cache"),
        *(".hypothesis", "build", "dist", "*.egg-info", "*.so", "__pycache__"),
    )
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=unbuilt)
    program = "from setuptools import build_meta as b; b.build_sdist('..')"
    run(sys.executable, "-c", program, cwd=source)
    (archive,) = folder.glob("cthelper-*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def unpacked(archive: Path) -> Path:
    """The folder that the source archive holds."""
    run("tar", "xf", archive, cwd=archive.parent)
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


@pytest.fixture(scope="module")
def wheel(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as it is built of the source archive."""
    return build_wheel(archive, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and what it cannot be imported without."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder)
    run(
        *(sys.executable, "-m", "pip", "-q", "--python", folder / "bin" / "python"),
        *("install", "--no-deps", "--no-index", wheel),
        cwd=folder,
    )
    (packages,) = folder.glob("lib/python3*/site-packages")
    shutil.copy(mypy_extensions.__file__, packages)
    return folder


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        (name,) = (each for each in file.namelist() if each.endswith("/METADATA"))
        return message_from_string(file.read(name).decode())


# The source archive


def test_source_archive_is_the_project(unpacked: Path) -> None:
    source = unpacked.parent / "source"
    files = {path.relative_to(source) for path in source.rglob("*")}
    made = {path.relative_to(unpacked) for path in unpacked.rglob("*")}
    assert len(files) > 400
    assert {str(path) for path in files - made if "egg-info" not in str(path)} == set()
    extra = {str(path) for path in made - files}
    assert extra == {"PKG-INFO", "setup.cfg"}
    package = list((unpacked / "src" / "cthelper").iterdir())
    links = {path.name for path in package if path.is_symlink()}
    assert links == {"core", "helpers", "nft", "plugins"}


# The wheel


def test_wheel_has_the_extension_where_a_compiler_is(wheel: Path) -> None:
    found = [name for name in names(wheel) if name.endswith((".so", ".c"))]
    assert len(found) == 1
    assert found[0].startswith("cthelper/core/queue/_native.cpython")


def test_wheel_without_a_compiler_lacks_the_extension_and_is_built(
    archive: Path, tmp_path: Path
) -> None:
    found = names(build_wheel(archive, tmp_path, compiler="no-such-compiler"))
    assert "cthelper/core/queue/native.py" in found
    assert not [name for name in found if name.endswith(".so")]


def test_wheel_has_code_data_and_documents_and_no_tests(wheel: Path) -> None:
    found = names(wheel)
    for data in (
        "cthelper/__main__.py",
        "cthelper/py.typed",
        "cthelper/nft/cthelper.nft",
        "cthelper/core/cthelper.toml",
        "cthelper/core/discovery.toml",
        "cthelper/core/cli/templates/tcp.py.in",
        "cthelper/testing.py",
        "cthelper/core/daemon/cthelper.service",
        "cthelper/core/daemon/cthelper-metrics.service",
        "cthelper/core/offline/page.html",
    ):
        assert data in found
    assert not [name for name in found if name.startswith(("tests", "cthelper/tests"))]
    documents = {name.partition(DOCUMENTS)[2] for name in found if DOCUMENTS in name}
    wanted = {f"/{page.relative_to(ROOT)}" for page in PAGES}
    # The captures that the pages have their reader try.
    text = "".join(page.read_text("utf-8") for page in PAGES)
    captures = set(re.findall(r"\b(pcaps/\S+\.pcap)\b", text))
    assert captures
    wanted |= {f"/{capture}" for capture in captures}
    assert wanted <= documents


def test_metadata_say_who_what_and_for_which_python(wheel: Path) -> None:
    found = metadata(wheel)
    assert found["Version"] == cthelper.__version__
    assert found["Author"] == "cthelper developers"
    assert found["License-Expression"] == "GPL-2.0-or-later"
    assert "nftables" in found["Keywords"]
    assert found.get_all("Project-URL") is None
    classifiers = found.get_all("Classifier") or []
    assert "Development Status :: 4 - Beta" in classifiers
    for minor in range(11, 15):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers


def test_wheel_runs_in_an_environment_of_its_own(
    installed: Path, tmp_path: Path
) -> None:
    python, script = installed / "bin" / "python", installed / "bin" / "cthelper"
    shown = run(script, "--version", cwd=tmp_path)
    assert shown == f"cthelper {cthelper.__version__}\n"
    assert run(python, "-m", "cthelper", "--version", cwd=tmp_path) == shown
    code = "import cthelper; print(cthelper.__version__, cthelper.__file__)"
    version, file = run(python, "-c", code, cwd=tmp_path).split()
    assert version == cthelper.__version__
    assert file.startswith(str(installed))
    empty = ("--config", os.devnull)
    assert "table inet cthelper {" in run(
        script, "ruleset", "show", *empty, cwd=tmp_path
    )
    assert "nothing is wrong" in run(script, "check", *empty, cwd=tmp_path)


def test_guides_capture_is_replayed_where_the_wheel_has_put_it(
    installed: Path,
) -> None:
    # The packages of the extra are this environment's.
    packages = str(Path(scapy.__file__).parents[1])
    output = run(
        *(installed / "bin" / "cthelper", "replay", "--config", os.devnull),
        *("--plugin", "plugins/iperf.py", "pcaps/xdmcp/xdmcp-xvfb-xdm.pcap"),
        cwd=installed / DOCUMENTS,
        PYTHONPATH=packages,
    )
    assert "12 packets, 2 flows, 0 expectations" in output


# Advice


def test_first_section_of_the_changelog_is_the_versions() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    sections = re.findall(r"^## (\S+)", text, re.MULTILINE)
    assert cthelper.__version__ in sections


def test_packages_that_advice_names_are_those_of_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = {
        name: {re.split(r"[^\w.]", each)[0] for each in packages}
        for name, packages in project["optional-dependencies"].items()
    }
    assert extras == {
        "replay": {_REPLAY, ZSTD},
        "live": {LIBRARY},
        "metrics": {_METRICS},
        "top": {_TOP},
    }


@pytest.mark.parametrize("folder", ["core", "docs", "plugins", "script", "src"])
def test_nothing_has_anybody_install_cthelper_from_an_index(folder: str) -> None:
    """It is not published, so that whoever has its name there could give anything."""
    texts = [
        (path, path.read_text("utf-8"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in (".py", ".md", ".in", ".toml", "")
    ]
    assert texts
    asked = re.compile(r"pip install\s+(-\S+\s+)*['\"]?cthelper|\bcthelper\[")
    assert [str(path) for path, text in texts if asked.search(text)] == []
