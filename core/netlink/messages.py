# SPDX-License-Identifier: GPL-2.0-or-later
"""Netlink messages of nfnetlink_cthelper and of addresses, as pyroute2 declares them.

include/uapi/linux/netfilter/nfnetlink_cthelper.h. Each attribute's number is its place
in ``nla_map``. Everything that is from pyroute2 comes from here.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from typing import Final


@contextmanager
def _alone() -> Iterator[None]:
    """Have parts of pyroute2 imported without the package's own ``__init__``.

    That imports all of it, with asyncio and ssl, which takes longer than all else that
    `cthelper` does at its start. A plugin that imports pyroute2 itself gets it whole.
    """
    name = "pyroute2"
    spec = None if name in sys.modules else find_spec(name)
    if spec is None:
        yield
        return
    sys.modules[name] = module_from_spec(spec)
    try:
        yield
    finally:
        for each in [each for each in sys.modules if each.split(".")[0] == name]:
            del sys.modules[each]


with _alone():
    from pyroute2.netlink import NLA_F_NESTED, nla
    from pyroute2.netlink.nfnetlink import nfgen_msg
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

__all__ = [
    "CTHELPER",
    "CTNETLINK",
    "CTNETLINK_EXP",
    "DELETE",
    "EXPECTATION_STATISTICS",
    "GET",
    "NEW",
    "helper_message",
    "ifaddrmsg",
    "nfgen_msg",
]

CTNETLINK: Final = 1 << 8
CTNETLINK_EXP: Final = 2 << 8
CTHELPER: Final = 9 << 8

NEW: Final = 0
GET: Final = 1
DELETE: Final = 2
EXPECTATION_STATISTICS: Final = 3
"""Of CTNETLINK_EXP alone, for each CPU (IPCTNL_MSG_EXP_GET_STATS_CPU)."""


class helper_message(nfgen_msg):
    """A helper that user space has registered."""

    prefix = "NFCTH_"
    nla_map = (
        ("NFCTH_UNSPEC", "none"),
        ("NFCTH_NAME", "asciiz"),
        ("NFCTH_TUPLE", "tuple"),
        ("NFCTH_QUEUE_NUM", "be32"),
        ("NFCTH_POLICY", "policies"),
        ("NFCTH_PRIV_DATA_LEN", "be32"),
        ("NFCTH_STATUS", "be32"),
    )

    class tuple(nla):
        nla_flags = NLA_F_NESTED
        nla_map = (
            ("NFCTH_TUPLE_UNSPEC", "none"),
            ("NFCTH_TUPLE_L3PROTONUM", "be16"),
            ("NFCTH_TUPLE_L4PROTONUM", "uint8"),
        )

    class policies(nla):
        nla_flags = NLA_F_NESTED
        nla_map = (
            ("NFCTH_POLICY_SET_UNSPEC", "none"),
            ("NFCTH_POLICY_SET_NUM", "be32"),
            ("NFCTH_POLICY_SET1", "policy"),
            ("NFCTH_POLICY_SET2", "policy"),
            ("NFCTH_POLICY_SET3", "policy"),
            ("NFCTH_POLICY_SET4", "policy"),
        )

        class policy(nla):
            nla_flags = NLA_F_NESTED
            nla_map = (
                ("NFCTH_POLICY_UNSPEC", "none"),
                ("NFCTH_POLICY_NAME", "asciiz"),
                ("NFCTH_POLICY_EXPECT_MAX", "be32"),
                ("NFCTH_POLICY_EXPECT_TIMEOUT", "be32"),
            )
