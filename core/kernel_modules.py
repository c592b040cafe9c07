# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules of the kernel that are helpers themselves, and so have a helper's name."""

from pathlib import Path
from typing import Final

# Parts of conntrack, whose modules are named as those of helpers are.
_NO_HELPERS: Final = frozenset({"bridge", "broadcast", "netlink"})


def loaded_module(name: str, root: Path = Path("/")) -> str | None:
    """The kernel module that has the helper `name` now, loaded or built in; None: none.

    Then nobody else can register a helper of this name. The kernel's table tells of
    helpers of user space alone, but sysfs, below `root`, of modules.
    """
    module = f"nf_conntrack_{name.replace('-', '_')}"
    there = name not in _NO_HELPERS and (root / "sys/module" / module).exists()
    return module if there else None
