# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of the kernel that have helpers' names."""

from pathlib import Path

import pytest

from cthelper.core.kernel_modules import loaded_module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host whose kernel has some modules loaded."""
    for name in ("ftp", "netbios_ns", "netlink", "bridge", "broadcast"):
        (tmp_path / "sys/module" / f"nf_conntrack_{name}").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("ftp", "nf_conntrack_ftp"),
        # Modules have no hyphens.
        ("netbios-ns", "nf_conntrack_netbios_ns"),
        ("tftp", None),
        ("ft", None),
        # Parts of conntrack that are no helpers.
        ("netlink", None),
        ("bridge", None),
        ("broadcast", None),
    ],
)
def test_module_that_has_a_helpers_name(
    root: Path, name: str, module: str | None
) -> None:
    assert loaded_module(name, root) == module
