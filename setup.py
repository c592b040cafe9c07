# SPDX-License-Identifier: GPL-2.0-or-later
"""What pyproject.toml cannot say: the extension in C, and links in a source archive.

Where there is no C compiler, or no Python.h, the extension is left out, and the daemon
uses the netfilterqueue package.
"""

import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

PACKAGE = Path("src/cthelper")


class SourceArchive(sdist):
    """The project as it is, where the code's folders are the package by links."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Put the links back in the place of the copies that setuptools makes."""
        super().make_release_tree(base_dir, files)
        for link in filter(Path.is_symlink, PACKAGE.iterdir()):
            copy = base_dir / link
            shutil.rmtree(copy)
            copy.symlink_to(link.readlink())


setup(
    cmdclass={"sdist": SourceArchive},
    ext_modules=[
        Extension(
            "cthelper.core.queue._native",
            sources=["core/queue/_native.c"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            optional=True,
        )
    ],
)
