# SPDX-License-Identifier: GPL-2.0-or-later
"""Which queue backend runs, and why."""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from cthelper.core.errors import QueueError, pip_install
from cthelper.core.queue.binding import Binding
from cthelper.core.queue.protocol import Queue


class Bind(Protocol):
    """Binds a queue, see `native.bind_queue`."""

    def __call__(
        self, number: int, receive_buffer: int, *, fail_open: bool
    ) -> Binding: ...


Read = Callable[[Binding, int], Queue]
"""What reads a bound queue and notes something of so many flows, see `NativeQueue`."""

Wait = Callable[[Iterable[Queue], int, float], bool]
"""Waits until a queue has packets to be read, a descriptor is readable, a signal has
come or the seconds are over; what passes unseen goes on meanwhile. Whether the
descriptor is readable."""

NATIVE: Final = "native"
LIBRARY: Final = "netfilterqueue"


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend and why it is the one. Without `wait` a selector does."""

    name: str
    reason: str
    bind: Bind
    read: Read
    wait: Wait | None = None


def choose(wanted: str) -> Backend:
    """The backend for the configuration's ``daemon.backend``.

    Raises QueueError where it is not there.
    """
    if wanted == LIBRARY:
        return _library("it is configured")
    try:
        from cthelper.core.queue import native
    except ImportError as error:
        if wanted == NATIVE:
            raise QueueError(
                f"the native queue backend cannot be used ({error}): "
                "install gcc and python3-dev, then install cthelper again"
            ) from None
        return _library(f"the extension in C is not there ({error})")
    return Backend(
        NATIVE,
        "it is configured" if wanted == NATIVE else "the extension in C is there",
        native.bind_queue,
        native.NativeQueue,
        native.wait,
    )


def _library(reason: str) -> Backend:
    from cthelper.core.queue import library

    if importlib.util.find_spec("netfilterqueue") is None:
        raise QueueError(
            f"no queue backend: {reason}, and the package netfilterqueue is not "
            "installed: install gcc and python3-dev and then cthelper again, or "
            f"libnetfilter-queue-dev and the package ({pip_install(LIBRARY)})"
        )
    return Backend(LIBRARY, reason, library.bind_queue, library.LibraryQueue)
