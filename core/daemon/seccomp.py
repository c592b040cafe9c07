# SPDX-License-Identifier: GPL-2.0-or-later
"""Seccomp: the system calls that a server has left; it cannot be undone.

The rules are compiled by libseccomp (Debian's libseccomp2, which systemd needs, too),
whose few functions that are wanted are called here: its binding for Python is no
package of an index, and Debian's is not seen in a virtual environment.

There are two filters. One lists what a server needs; whatever it does not list is
answered with ENOSYS, as a kernel would that does not have it: glibc and Python go back
to what they did before then, so that a newer one goes on working. The other lists what
an attacker would want. It is answered with EPERM, and the kernel's log says so.
"""

import ctypes
import errno
import mmap
import os
import socket
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any, Final, NamedTuple

from cthelper.core.errors import CthelperError

PACKAGE: Final = "libseccomp2"
_FILE: Final = "libseccomp.so.2"

# seccomp.h of libseccomp
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_DIFFERS, _IS, _MASKED = 1, 4, 7
_BAD_ARCHITECTURE, _NO_NEW_PRIVILEGES, _LOG, _OPTIMIZE = 2, 3, 6, 8
_BINARY_TREE: Final = 2


class _Condition(ctypes.Structure):
    """scmp_arg_cmp: an argument, how it is compared, and with what."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("one", ctypes.c_uint64),
        ("other", ctypes.c_uint64),
    )


class Rule(NamedTuple):
    """A system call, and what must all hold of its arguments."""

    call: str
    conditions: tuple[tuple[int, int, int, int], ...] = ()


def _is(argument: int, value: int) -> tuple[int, int, int, int]:
    # The kernel looks at an int's 32 bits alone, whatever stands above them.
    return argument, _MASKED, 0xFFFFFFFF, value


def _differs(argument: int, value: int) -> tuple[int, int, int, int]:
    return argument, _DIFFERS, value, 0


def _bits(argument: int, mask: int, value: int) -> tuple[int, int, int, int]:
    return argument, _MASKED, mask, value


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NETLINK: Final = socket.AF_NETLINK
_PROTOCOLS: Final = (0, 12)  # NETLINK_ROUTE, NETLINK_NETFILTER
_MAX_LINKS: Final = 32  # linux/netlink.h
_PROT_WRITE, _PROT_EXEC = 2, 4
_CLONE_THREAD: Final = 0x10000
_SHARED: Final = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS
_WRITES: Final = os.O_WRONLY | os.O_RDWR
_MAKES: Final = os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
# asm-generic/ioctls.h: TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX; and
# TCGETS2, which a newer isatty(3) asks with.
_IOCTLS: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x802C542A)
# asm-generic/fcntl.h: F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, and linux/fcntl.h's
# F_DUPFD_CLOEXEC. F_SETOWN, F_SETSIG and F_SETOWN_EX would have the kernel send signals
# to others.
_FCNTLS: Final = (0, 1, 2, 3, 4, 1030)
_OWNERS: Final = (8, 10, 15)
# linux/prctl.h: PR_SET_PDEATHSIG, which interruption.py sets, PR_SET_NAME, PR_GET_NAME,
# and PR_SET_VMA, by which malloc(3) names what it maps.
_PRCTLS: Final = (1, 15, 16, 0x53564D41)

_PLAIN: Final = _names(
    """
read pread64 readv preadv preadv2 write writev close close_range lseek
fstat stat lstat newfstatat statx access faccessat faccessat2 readlink readlinkat
getdents getdents64 getcwd dup dup2 dup3 pipe pipe2 fadvise64 statfs fstatfs
epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6
eventfd2 timerfd_create timerfd_settime timerfd_gettime signalfd4
bind getsockname getpeername getsockopt setsockopt shutdown
sendto sendmsg sendmmsg recvfrom recvmsg recvmmsg
munmap mremap madvise brk membarrier
futex futex_waitv set_robust_list get_robust_list rseq set_tid_address
sched_yield sched_getaffinity sched_getparam sched_getscheduler
sched_get_priority_max sched_get_priority_min exit exit_group restart_syscall
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait rt_sigpending rt_sigsuspend
pause sigaltstack getpid gettid getppid getpgrp getpgid getsid
getuid geteuid getgid getegid getresuid getresgid getgroups capget
clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage
setitimer getitimer alarm timer_create timer_settime timer_gettime timer_getoverrun
timer_delete getrandom uname sysinfo getcpu getrlimit seccomp
"""
)

_REFUSED: Final = _names(
    """
execve execveat fork vfork ptrace process_vm_readv process_vm_writev process_madvise
kcmp pidfd_open pidfd_send_signal pidfd_getfd tkill rt_sigqueueinfo rt_tgsigqueueinfo
mount umount2 pivot_root chroot move_mount open_tree fsopen fsconfig fsmount fspick
mount_setattr setns unshare name_to_handle_at open_by_handle_at
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
init_module finit_module delete_module kexec_load kexec_file_load reboot
swapon swapoff acct quotactl quotactl_fd syslog
settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname
iopl ioperm modify_ldt personality add_key request_key keyctl
setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset
seccomp setrlimit setpriority sched_setparam sched_setscheduler sched_setattr
sched_setaffinity ioprio_set
socketpair connect listen accept accept4
creat truncate ftruncate fallocate unlink unlinkat rename renameat renameat2
mkdir mkdirat rmdir link linkat symlink symlinkat mknod mknodat
chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat
setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
utime utimes utimensat futimesat memfd_create memfd_secret fanotify_init
shmget shmat msgget semget mq_open
"""
)


_ACCEPT: Final = (Rule("accept"), Rule("accept4"))
# What is shared and has no file (MAP_SHARED is a bit of MAP_SHARED_VALIDATE, too).
_UNCOUNTED: Final = (Rule("mmap", (_bits(3, _SHARED, _SHARED),)),)


def _allowed(pid: int, protocols: Collection[int]) -> Iterable[Rule]:
    """What a server needs; `pid` is its own, `protocols` are netlink's it may use."""
    yield from map(Rule, _PLAIN)
    for protocol in protocols:
        yield Rule("socket", (_is(0, _NETLINK), _is(2, protocol)))
    yield Rule("open", (_bits(1, _WRITES | _MAKES, 0),))
    yield Rule("openat", (_bits(2, _WRITES | _MAKES, 0),))
    for protection in (0, _PROT_WRITE, _PROT_EXEC):
        yield Rule("mmap", (_bits(2, _PROT_WRITE | _PROT_EXEC, protection),))
    yield Rule("mprotect", (_bits(2, _PROT_EXEC, 0),))
    # clone3(2) has its flags in memory, where no filter can read. glibc goes back.
    yield Rule("clone", (_bits(0, _CLONE_THREAD, _CLONE_THREAD),))
    for call in ("kill", "tgkill"):
        yield Rule(call, (_is(0, pid),))
    for request in _IOCTLS:
        yield Rule("ioctl", (_is(1, request),))
    for command in _FCNTLS:
        yield Rule("fcntl", (_is(1, command),))
    for option in _PRCTLS:
        yield Rule("prctl", (_is(0, option),))
    yield Rule("prlimit64", (_is(2, 0),))  # a new limit's address


def _refused(pid: int, protocols: Collection[int]) -> Iterable[Rule]:
    """What is refused with EPERM and logged."""
    yield from map(Rule, _REFUSED)
    yield Rule("socket", (_differs(0, _NETLINK),))
    for protocol in range(_MAX_LINKS):
        if protocol not in protocols:
            yield Rule("socket", (_is(0, _NETLINK), _is(2, protocol)))
    for bit in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):
        yield Rule("open", (_bits(1, bit, bit),))
        yield Rule("openat", (_bits(2, bit, bit),))
    both = _PROT_WRITE | _PROT_EXEC
    yield Rule("mmap", (_bits(2, both, both),))
    yield Rule("mprotect", (_bits(2, _PROT_EXEC, _PROT_EXEC),))
    yield Rule("pkey_mprotect", (_bits(2, _PROT_EXEC, _PROT_EXEC),))
    yield Rule("clone", (_bits(0, _CLONE_THREAD, 0),))
    for call in ("kill", "tgkill"):
        yield Rule(call, (_differs(0, pid),))
    for command in _OWNERS:
        yield Rule("fcntl", (_is(1, command),))
    yield Rule("prlimit64", (_differs(2, 0),))


def available() -> bool:
    """Whether libseccomp is there."""
    return _library() is not None


def restrict(*, bare: bool = False, accepts: bool = False) -> None:
    """Have nothing left but what a server needs, in this thread and those it starts.

    With `bare` not even that: no socket of netlink, and no memory that RLIMIT_DATA does
    not count. With `accepts` it may take connections of sockets that listen already.
    libseccomp must be there, and no_new_privs be set. Raises OSError.
    """
    pid = os.getpid()
    protocols = () if bare else _PROTOCOLS
    # The kernel takes the error of the filter that came last.
    more = _ACCEPT if accepts else ()
    allowed = [*_allowed(pid, protocols), *more]
    _load(_ERRNO | errno.ENOSYS, _ALLOW, allowed, log=False)
    refused = [
        *(each for each in _refused(pid, protocols) if each not in more),
        *(_UNCOUNTED if bare else ()),
    ]
    _load(_ALLOW, _ERRNO | errno.EPERM, refused, log=True)


def _load(default: int, action: int, rules: Iterable[Rule], *, log: bool) -> None:
    """Put a filter in: `action` for the rules, `default` for all else."""
    library = _library()
    if library is None:
        raise CthelperError(f"{_FILE} is not there: apt-get install {PACKAGE}")
    context = ctypes.c_void_p(library.seccomp_init(default))
    if context.value is None:
        raise MemoryError
    try:
        for attribute, value in (
            (_BAD_ARCHITECTURE, _ERRNO | errno.EPERM),
            # It was set before, by who may have no right to do so again.
            (_NO_NEW_PRIVILEGES, 0),
            (_LOG, int(log)),
            (_OPTIMIZE, _BINARY_TREE),
        ):
            _check(library.seccomp_attr_set(context, attribute, value), "attribute")
        for rule in rules:
            number = library.seccomp_syscall_resolve_name(rule.call.encode())
            if number < 0:
                continue  # this machine, or this libseccomp, has no such call
            given = (_Condition * len(rule.conditions))(
                *(_Condition(*each) for each in rule.conditions)
            )
            _check(
                library.seccomp_rule_add_array(
                    *(context, action, number, len(given)), given
                ),
                rule.call,
            )
        _check(library.seccomp_load(context), "load")
    finally:
        library.seccomp_release(context)


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"{os.strerror(-result)} ({what})")


@cache
def _library() -> Any:
    """libseccomp, or None."""
    try:
        library = ctypes.CDLL(_FILE)
    except OSError:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int
    types: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "seccomp_init": (pointer, (ctypes.c_uint32,)),
        "seccomp_attr_set": (number, (pointer, number, ctypes.c_uint32)),
        "seccomp_syscall_resolve_name": (number, (ctypes.c_char_p,)),
        "seccomp_rule_add_array": (
            number,
            (pointer, ctypes.c_uint32, number, ctypes.c_uint, pointer),
        ),
        "seccomp_load": (number, (pointer,)),
        "seccomp_release": (None, (pointer,)),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
