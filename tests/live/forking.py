# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of cthelper in a namespace, by a process that has imported it already.

Python's start and the imports are nearly all of the three seconds that a command takes
in an emulated machine.
"""

import json
import subprocess
import sys
from typing import Final

from tests.live.world import Namespace

_FORKING: Final = """
import json, os, signal, sys, tempfile
import cthelper.core.control.commands, cthelper.core.daemon.doctor
import cthelper.core.daemon.supervisor, cthelper.core.daemon.way
from cthelper.core import cli
cli.parser()
for line in sys.stdin:
    seconds, arguments = json.loads(line)
    with tempfile.TemporaryFile() as written:
        child = os.fork()
        if not child:
            os.dup2(written.fileno(), 1)
            os.dup2(written.fileno(), 2)
            signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                code = cli.main(arguments)
            except SystemExit as end:
                code = end.code
            sys.stdout.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        written.seek(0)
        print(json.dumps([code, written.read().decode()]), flush=True)
"""


class Forking:
    """Runs one command after the other."""

    def __init__(self, namespace: Namespace) -> None:
        self._process = namespace.start(
            *(sys.executable, "-B", "-c", _FORKING),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def run(self, *arguments: str, seconds: float = 60.0) -> tuple[int, str]:
        """A command's exit code, and what it printed.

        After so many seconds it is ended as by Ctrl-C.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{json.dumps([seconds, arguments])}\n")
        self._process.stdin.flush()
        code, text = json.loads(self._process.stdout.readline())
        return code, text
