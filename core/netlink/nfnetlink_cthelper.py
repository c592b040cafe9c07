# SPDX-License-Identifier: GPL-2.0-or-later
"""Registration of helpers with the kernel (net/netfilter/nfnetlink_cthelper.c).

A registration is one name, one address family, one transport. The table is global:
all network namespaces share it, while queues belong to one.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cthelper.core.api import Policy, Transport
from cthelper.core.errors import Busy, CthelperError, NotFound, RestartNeeded
from cthelper.core.netlink import messages
from cthelper.core.netlink.messages import CTHELPER, helper_message
from cthelper.core.netlink.socket import (
    CREATE,
    NETLINK_NETFILTER,
    REPLACE,
    Frame,
    NetlinkSocket,
)

FAMILIES: Final[dict[int, str]] = {socket.AF_INET: "ip", socket.AF_INET6: "ip6"}


class NameTaken(CthelperError):
    """A module of the kernel serves this helper's name already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A helper as the kernel holds it.

    `family` is AF_INET or AF_INET6. While it is `enabled` the kernel itself queues the
    packets of its flows to `queue`, which no helper of ours wants: rules do so. As long
    as nobody listens there they pass, but new flows get no entry, since the packets
    leave nf_confirm before it confirms them.
    """

    name: str
    family: int
    transport: Transport
    queue: int
    policies: tuple[Policy, ...]
    enabled: bool = False

    @property
    def key(self) -> tuple[str, int, Transport]:
        """What the kernel knows the registration by."""
        return self.name, self.family, self.transport

    def __str__(self) -> str:
        return f"{self.name} {FAMILIES.get(self.family, self.family)} {self.transport}"


class HelperTable:
    """The kernel's table of user-space helpers. Methods raise NetlinkError."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def list(self) -> "list[Registration]":
        """All helpers that user space has registered, whoever did."""
        frames = self._socket.dump(
            helper_message(), CTHELPER | messages.GET, "list helpers"
        )
        return [each for frame in frames if (each := _read(frame)) is not None]

    def put(self, registration: Registration) -> None:
        """Register a helper, or update the one of the same key in place.

        Raises RestartNeeded where the names or the number of its policies differ from
        those that are registered: the kernel does not change these. Raises NameTaken
        where a kernel module serves the name.
        """
        message = _message(registration)
        message["attrs"] += [
            ["NFCTH_QUEUE_NUM", registration.queue],
            ["NFCTH_POLICY", _policies(registration.policies)],
            ["NFCTH_PRIV_DATA_LEN", 0],
            ["NFCTH_STATUS", int(registration.enabled)],
        ]
        try:
            self._socket.request(
                message,
                CTHELPER | messages.NEW,
                CREATE | REPLACE,
                f"register helper {registration}",
            )
        except Busy:
            if any(each.key == registration.key for each in self.list()):
                raise other_policies(registration) from None
            module = kernel_module(registration.name)
            raise NameTaken(
                f"helper name {registration.name!r} is taken by the kernel module "
                f"{module}: set another one in known_as of the helper's table"
            ) from None

    def delete(self, registration: Registration) -> bool:
        """Unregister a helper; whether it was registered.

        Its flows go on without a helper and its expectations are gone. Raises Busy
        where an object of an nft ruleset refers to it.
        """
        what = f"unregister helper {registration}"
        message = _message(registration)
        try:
            # The kernel answers "deleted" where its table is empty (nfnl_cthelper_del);
            # asked for a helper that is not there it gives none (nfnl_cthelper_get).
            if not self._socket.request(message, CTHELPER | messages.GET, 0, what):
                return False
            message = _message(registration)
            self._socket.request(message, CTHELPER | messages.DELETE, 0, what)
        except NotFound:
            return False
        return True


def other_policies(registration: Registration) -> RestartNeeded:
    """What is raised where other policies are registered: these the kernel keeps."""
    return RestartNeeded(
        f"helper {registration} is registered with other policies: "
        "restart cthelper to replace it"
    )


def kernel_module(name: str) -> str:
    """The kernel module that serves the helper `name`, by its alias.

    Kernel helpers declare MODULE_ALIAS_NFCT_HELPER; where no alias is found it is the
    name that all of them follow.
    """
    alias = f"alias nfct-helper-{name} "
    file = Path("/lib/modules", os.uname().release, "modules.alias")
    try:
        for line in file.read_text(encoding="ascii").splitlines():
            if line.startswith(alias):
                return line.removeprefix(alias).strip()
    except OSError:
        pass
    return f"nf_conntrack_{name}"


def _message(registration: Registration) -> Any:
    message = helper_message()
    message["attrs"] = [
        ["NFCTH_NAME", registration.name],
        [
            "NFCTH_TUPLE",
            {
                "attrs": [
                    ["NFCTH_TUPLE_L3PROTONUM", registration.family],
                    ["NFCTH_TUPLE_L4PROTONUM", int(registration.transport)],
                ]
            },
        ],
    ]
    return message


def _policies(policies: tuple[Policy, ...]) -> dict[str, Any]:
    attributes: list[list[Any]] = [["NFCTH_POLICY_SET_NUM", len(policies)]]
    for number, policy in enumerate(policies, 1):
        values = [
            ["NFCTH_POLICY_NAME", policy.name],
            ["NFCTH_POLICY_EXPECT_MAX", policy.max_expected],
            ["NFCTH_POLICY_EXPECT_TIMEOUT", policy.timeout],
        ]
        attributes.append([f"NFCTH_POLICY_SET{number}", {"attrs": values}])
    return {"attrs": attributes}


def _read(frame: Frame) -> Registration | None:
    """None for a transport that is neither TCP nor UDP."""
    message = helper_message(frame.data)
    message.decode()
    transport = message.get_nested("NFCTH_TUPLE", "NFCTH_TUPLE_L4PROTONUM")
    if transport not in tuple(Transport):
        return None
    set_ = message.get_attr("NFCTH_POLICY")
    return Registration(
        name=message.get_attr("NFCTH_NAME"),
        family=message.get_nested("NFCTH_TUPLE", "NFCTH_TUPLE_L3PROTONUM"),
        transport=Transport(transport),
        queue=message.get_attr("NFCTH_QUEUE_NUM"),
        policies=tuple(
            Policy(
                policy.get_attr("NFCTH_POLICY_NAME"),
                policy.get_attr("NFCTH_POLICY_EXPECT_MAX"),
                policy.get_attr("NFCTH_POLICY_EXPECT_TIMEOUT"),
            )
            for number in range(1, set_.get_attr("NFCTH_POLICY_SET_NUM") + 1)
            if (policy := set_.get_attr(f"NFCTH_POLICY_SET{number}")) is not None
        ),
        enabled=bool(message.get_attr("NFCTH_STATUS")),
    )
