# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages of ctnetlink as pyroute2 declares them, against which ours are held.

include/uapi/linux/netfilter/nfnetlink_conntrack.h. Each attribute's number is its place
in ``nla_map``.
"""

from pyroute2.netlink import NLA_F_NESTED, nla
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg


class tuple_attribute(nla):
    """CTA_TUPLE_*; nested attributes that go to the kernel must say that they are."""

    nla_flags = NLA_F_NESTED
    nla_map = nfct_msg.cta_tuple.nla_map

    class cta_ip(nfct_msg.cta_tuple.cta_ip):
        nla_flags = NLA_F_NESTED

    class cta_proto(nfct_msg.cta_tuple.cta_proto):
        nla_flags = NLA_F_NESTED


class conntrack_message(nfct_msg):
    """A conntrack entry. pyroute2 declares CTA_HELP as a string; it is nested."""

    nla_map = tuple(
        (name, "help" if name == "CTA_HELP" else kind)
        for name, kind in nfct_msg.nla_map
    )
    cta_tuple = tuple_attribute

    class help(nla):
        nla_flags = NLA_F_NESTED
        nla_map = (
            ("CTA_HELP_UNSPEC", "none"),
            ("CTA_HELP_NAME", "asciiz"),
            ("CTA_HELP_INFO", "hex"),
        )


class expectation_message(nfgen_msg):
    """An expectation."""

    prefix = "CTA_EXPECT_"
    nla_map = (
        ("CTA_EXPECT_UNSPEC", "none"),
        ("CTA_EXPECT_MASTER", "cta_tuple"),
        ("CTA_EXPECT_TUPLE", "cta_tuple"),
        ("CTA_EXPECT_MASK", "cta_tuple"),
        ("CTA_EXPECT_TIMEOUT", "be32"),
        ("CTA_EXPECT_ID", "be32"),
        ("CTA_EXPECT_HELP_NAME", "asciiz"),
        ("CTA_EXPECT_ZONE", "be16"),
        ("CTA_EXPECT_FLAGS", "be32"),
        ("CTA_EXPECT_CLASS", "be32"),
        ("CTA_EXPECT_NAT", "nat"),
        ("CTA_EXPECT_FN", "asciiz"),
    )
    cta_tuple = tuple_attribute

    class nat(nla):
        nla_flags = NLA_F_NESTED
        nla_map = (
            ("CTA_EXPECT_NAT_UNSPEC", "none"),
            ("CTA_EXPECT_NAT_DIR", "be32"),
            ("CTA_EXPECT_NAT_TUPLE", "cta_tuple"),
        )
        cta_tuple = tuple_attribute
