# SPDX-License-Identifier: GPL-2.0-or-later
"""The extension of the native queue backend; all else stands in pyproject.toml.

Where there is no C compiler, or no Python.h, it is left out, and the daemon uses the
netfilterqueue package.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "cthelper.core.queue._native",
            sources=["core/queue/_native.c"],
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
            optional=True,
        )
    ]
)
