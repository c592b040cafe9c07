# SPDX-License-Identifier: GPL-2.0-or-later
"""What of pyroute2 the daemon imports, and what it leaves for others."""

import subprocess
import sys

import pytest

OURS = "import cthelper.core.daemon.supervisor"
WHOLE = (
    "import pyroute2, pyroute2.netlink.nfnetlink.nfctsocket as part\n"
    "assert pyroute2.IPRoute and pyroute2.netlink.nla\n"
    "assert part.nfct_msg.__mro__[1].__module__ == 'pyroute2.netlink.nfnetlink'\n"
)
DECLARED = (
    "from cthelper.core.netlink.messages import helper_message\n"
    "message = helper_message()\n"
    "message['attrs'] = [['NFCTH_NAME', 'x']]\n"
    "message.encode()\n"
)


@pytest.mark.parametrize(
    "lines",
    [
        f"{OURS}\nimport sys\n"
        "heavy = {'asyncio', 'ssl', 'pyroute2', 'importlib.metadata'}\n"
        "assert not heavy & sys.modules.keys()\n",
        OURS + "\n" + WHOLE + DECLARED,
        WHOLE + OURS + "\n" + DECLARED,
    ],
    ids=["daemon", "before-a-plugin", "after-a-plugin"],
)
def test_daemon_imports_parts_of_pyroute2_and_others_get_it_whole(lines: str) -> None:
    done = subprocess.run(
        (sys.executable, "-c", lines), capture_output=True, text=True, timeout=60
    )
    assert (done.stderr, done.returncode) == ("", 0)
