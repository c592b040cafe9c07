# SPDX-License-Identifier: GPL-2.0-or-later
"""Places where Unix sockets listen, which stay when who made them is killed."""

import socket
import stat
from pathlib import Path


def is_socket(path: Path) -> bool:
    """Whether there is one, and no file of another kind. Raises OSError."""
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def answers(path: Path) -> bool:
    """Whether somebody listens there. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.setblocking(False)
        try:
            other.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except BlockingIOError:  # too many wait there
            return True
    return True
