# SPDX-License-Identifier: GPL-2.0-or-later
"""The live tests that run on other kernels, too, have a story of each helper."""

import re
from pathlib import Path
from typing import Final

from cthelper.core.registry import builtin_helpers

ROOT: Final = Path(__file__).parents[1]
_FAMILY: Final = (
    *("bacnet", "coap", "discovery", "gvcp", "knx", "llmnr", "netbios-ns", "ssdp"),
    "wsd",
)
# By helper, what begins its tests' names.
STORIES: Final = {
    "amanda": "test_amanda.py::",
    "dhcpv6": "test_dhcpv6.py::",
    "ftp": "test_ftp.py::",
    "irc": "test_irc.py::",
    "mdns": "test_queueing.py::test_multicast_query_is_answered",
    "sane": "test_sane.py::",
    "slp": "test_slp.py::",
    "sunrpc": "test_readme.py",
    "tftp": "test_tftp.py::",
    "tns": "test_tns.py::",
    **dict.fromkeys(_FAMILY, "test_discovery.py::test_query_is_answered"),
}


def test_share_has_a_story_of_each_helper() -> None:
    share = re.search(
        r"^share\(\) \{\n(.*?)^\}", (ROOT / "script/live").read_text(), re.M | re.S
    )
    assert share is not None
    assert STORIES.keys() == builtin_helpers().keys()
    missing = [name for name, begin in STORIES.items() if begin not in share[1]]
    assert missing == []
