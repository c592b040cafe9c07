# SPDX-License-Identifier: GPL-2.0-or-later
"""Waiting until every packet that was under way in the kernel is where it goes to.

The kernel reads a helper's queue number, and only then builds the message and puts it
into the queue: a packet may arrive there a little after the helper was told to use
another one. It does so within one read-side critical section of RCU (nf_hook_slow), and
membarrier(2) waits for all of these to end.
"""

import ctypes
import os
import platform
import time
from typing import Final

# __NR_membarrier by architecture (arch/*/include/generated/uapi/asm/unistd_64.h).
_NUMBERS: Final = {
    "x86_64": 324,
    "aarch64": 283,
    "riscv64": 283,
    "ppc64le": 365,
    "s390x": 356,
}
_GLOBAL: Final = 1  # MEMBARRIER_CMD_GLOBAL
# Where there is no such call, or it does not wait: many times what a packet takes.
_SECONDS: Final = 0.2

_libc = ctypes.CDLL(None, use_errno=True)


def wait_for_packets() -> None:
    """Return when no packet is under way that was before; some milliseconds."""
    number = _NUMBERS.get(platform.machine())
    # With one processor the call returns at once (sys_membarrier in membarrier.c), but
    # a preemptible kernel may have put off a process in the middle of its sending.
    if (
        os.cpu_count() == 1
        or number is None
        or _libc.syscall(ctypes.c_long(number), _GLOBAL, 0, 0) != 0
    ):
        time.sleep(_SECONDS)
