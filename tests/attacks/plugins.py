# SPDX-License-Identifier: GPL-2.0-or-later
"""Plugins that a daemon must survive, as an operator would put them into the folder.

Each reads UDP to port 7000 and does its harm at a datagram that begins with HARM; at
OPEN and a port it announces that port. `load` imports one as the daemon does.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cthelper.core.api import Helper
from cthelper.core.registry import classes, find_helpers

PORT: Final = 7000
HARM: Final = b"HARM"
NAME: Final = "hostile"

_SOURCE: Final = '''
import os
import re
import signal
import sys
import threading
import time

from cthelper.core.api import UDP, Endpoint, Helper, Malformed, Policy, expect

SEEN = []


class Hostile(Helper):
    """Does harm where it is told to."""

    name = "hostile"
    transports = frozenset({{UDP}})
    ports = (7000,)
    policies = (Policy("data", max_expected=8, timeout=60),)

    def on_message(self, message):
        if message.payload.startswith(b"OPEN "):
            port = int(message.payload[5:])
            yield from expect(Endpoint(message.source.address, port), policy="data")
        elif message.payload.startswith(b"HARM"):
{harm}
'''

# What never ends, or takes minutes: the deadline's business.
ENDLESS: Final = {
    "loop": "while True: pass",
    "caught loop": """\
while True:
    try:
        while True: pass
    except BaseException:
        pass""",
    "sleep": "time.sleep(3600)",
    "expression": 're.match(r"(a+)+$", "a" * 64 + "b")',
    "huge integer": "str(7 ** (7 ** 9))",
    "generator": """\
while True:
    yield from expect(Endpoint(message.source.address, 40000), policy="data")""",
    "join": """\
thread = threading.Thread(target=time.sleep, args=(3600,), daemon=True)
thread.start()
thread.join()""",
    "lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "finally": """\
try:
    while True: pass
finally:
    while True: pass""",
    "without alarms": """\
signal.setitimer(signal.ITIMER_REAL, 0)
for each in (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM):
    signal.signal(each, signal.SIG_IGN)
while True: pass""",
    "without signals": """\
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True: pass""",
}

# What ends the server itself.
DEADLY: Final = {
    "_exit": "os._exit(3)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGSTOP": "os.kill(os.getpid(), signal.SIGSTOP)",
    "closed descriptors": "os.closerange(3, 256)",
    "abort": "os.abort()",
}

# What ends at once, badly.
RAISING: Final = {
    "exit": "sys.exit(3)",
    "SystemExit": "raise SystemExit",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "MemoryError": "raise MemoryError",
    "GeneratorExit": "raise GeneratorExit",
    "StopIteration": "raise StopIteration",
    "BaseException": 'raise BaseException("nobody expects it")',
    "RecursionError": "def again(): again()\nagain()",
    "deep recursion": "def again(n): return again(n + 1) + 1\nagain(0)",
    "ExceptionGroup": 'raise BaseExceptionGroup("two", [SystemExit(), OSError()])',
    "not a string": """\
class Odd(Exception):
    def __str__(self): raise SystemExit
raise Odd""",
    "wrong effect": 'yield "open all"',
    "wrong endpoint": 'yield from expect("192.0.2.1:5000", policy="data")',
    "unknown policy": """\
yield from expect(Endpoint(message.source.address, 40000), policy="none")""",
    "half": """\
yield from expect(Endpoint(message.source.address, 40000), policy="data")
raise RuntimeError("after the expectation")""",
}

# What goes on after the message.
LASTING: Final = {
    "global state": "SEEN.append(message.payload * 10)",
    "thread": """\
threading.Thread(target=time.sleep, args=(0.5,), daemon=True).start()""",
    "standard error": "sys.stderr = None",
    "trace": "sys.settrace(None)",
}


def source(harm: str) -> str:
    """The file of a plugin that does `harm`, one or several lines."""
    code = {**ENDLESS, **DEADLY, **RAISING, **LASTING}[harm]
    lines = (f"            {line}\n" for line in code.splitlines())
    return _SOURCE.format(harm="".join(lines))


def load(harm: str) -> type[Helper]:
    """The plugin, imported from a folder as the daemon imports it."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "hostile.py"
        file.write_text(source(harm))
        return classes(find_helpers(plugins=[file]))[NAME]
