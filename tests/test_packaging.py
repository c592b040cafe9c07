# SPDX-License-Identifier: GPL-2.0-or-later
"""The wheel holds all that the command line needs, under its import name."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], check=True)


def test_wheel_runs_without_the_checkout(tmp_path: Path) -> None:
    # setuptools builds in the tree, and what an earlier build left there goes along.
    unbuilt = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info")
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, symlinks=True, ignore=unbuilt)
    pip(
        *("wheel", str(source), "--no-deps", "--no-build-isolation"),
        *("--wheel-dir", str(tmp_path)),
    )
    (wheel,) = tmp_path.glob("cthelper-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = set(archive.namelist())
    for data in (
        "cthelper/py.typed",
        "cthelper/nft/cthelper.nft",
        "cthelper/core/cthelper.toml",
        "cthelper/core/cli/templates/tcp.py.in",
        "cthelper/testing.py",
        "cthelper/core/live/cthelper.service",
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
