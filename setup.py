# SPDX-License-Identifier: GPL-2.0-or-later
"""What pyproject.toml cannot say: what is compiled, and links in a source archive.

Where there is no C compiler, or no Python.h, all stays Python, and the daemon uses the
netfilterqueue package. So it does with CTHELPER_PURE=1, but for the extension in C, and
in an editable installation, whose code is to be changed. `cthelper doctor` says which.
"""

import os
import shutil
import sysconfig
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CCompilerError, ExecError

PACKAGE = Path("src/cthelper")


class BuildExtensions(build_ext):
    """The extension in C, and what mypyc makes of the modules in pyproject.toml."""

    def run(self) -> None:
        """Add mypyc's extensions where there is what compiles them, and build all."""
        compiler = os.environ.get("CC") or sysconfig.get_config_var("CC")
        if (
            not self.editable_mode
            and not self.inplace
            and os.environ.get("CTHELPER_PURE", "0") == "0"
            and shutil.which(compiler.split()[0])
            and Path(sysconfig.get_path("include"), "Python.h").exists()
        ):
            # Needed here alone: an editable installation does without.
            from mypyc.build import mypycify

            project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))
            modules = [
                f"{PACKAGE}/{folder}/{name}.py"
                for folder, names in project["tool"]["cthelper"]["compiled"].items()
                for name in names
            ]
            # It takes two minutes to compile as it is.
            self.distribution.ext_modules += mypycify(
                modules, group_name="cthelper", opt_level="1", debug_level="0"
            )
            self.initialize_options()
            self.finalize_options()
        super().run()

    def build_extensions(self) -> None:
        """Build them; all of mypyc's or none, since they refer to one another."""
        try:
            super().build_extensions()
        except (CCompilerError, ExecError) as error:
            self.warn(f"the package stays interpreted: {error}")
            for extension in self.extensions:
                if not extension.optional:
                    Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            self.extensions = [each for each in self.extensions if each.optional]


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
    cmdclass={"build_ext": BuildExtensions, "sdist": SourceArchive},
    ext_modules=[
        Extension(
            "cthelper.core.queue._native",
            sources=["core/queue/_native.c"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            optional=True,
        )
    ],
)
