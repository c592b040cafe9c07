# SPDX-License-Identifier: GPL-2.0-or-later
"""The wheel holds all that the command line needs, under its import name."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pip(*arguments: str, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pip", "-q", *arguments]
    subprocess.run(command, check=True, env=environment)


def built(folder: Path, compiler: str | None = None) -> set[str]:
    """Build the wheel and unpack it into ``site``; the files in it."""
    # setuptools builds in the tree, and what an earlier build left there goes along.
    unbuilt = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so")
    source = folder / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=unbuilt)
    environment = dict(os.environ)
    if compiler is not None:
        environment["CC"] = compiler
    pip(
        *("wheel", str(source), "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", str(folder)),
        environment=environment,
    )
    (wheel,) = folder.glob("cthelper-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
        return set(archive.namelist())


def test_wheel_has_the_extension_where_a_compiler_is(tmp_path: Path) -> None:
    names = built(tmp_path)
    assert [name for name in names if name.endswith(".so")] == [
        name for name in names if name.startswith("cthelper/core/queue/_native.cpython")
    ]
    assert not [name for name in names if name.endswith(".c")]


def test_wheel_without_a_compiler_lacks_the_extension_and_is_built(
    tmp_path: Path,
) -> None:
    names = built(tmp_path, compiler="no-such-compiler")
    assert "cthelper/core/queue/native.py" in names
    assert not [name for name in names if name.endswith(".so")]


def test_wheel_runs_without_the_checkout(tmp_path: Path) -> None:
    names = built(tmp_path)
    for data in (
        "cthelper/py.typed",
        "cthelper/nft/cthelper.nft",
        "cthelper/core/cthelper.toml",
        "cthelper/core/cli/templates/tcp.py.in",
        "cthelper/testing.py",
        "cthelper/core/daemon/cthelper.service",
        "cthelper/core/offline/page.html",
    ):
        assert data in names
    assert not [name for name in names if name.startswith("cthelper/tests")]
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import cthelper; assert cthelper.__file__.startswith(sys.argv[1])\n"
        "from cthelper.core.cli import main\n"
        "sys.exit(main(['ruleset', 'show']) or main(['helpers']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path / "site")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "table inet cthelper {" in done.stdout
