# SPDX-License-Identifier: GPL-2.0-or-later
"""A `cthelper run` on the gateway, as a user starts it, and other commands of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cthelper.core.registry import builtin_helpers
from tests.live.world import Namespace, until

CTHELPER: tuple[str, ...] = (sys.executable, "-B", "-m", "cthelper")

_STEP_SECONDS = 90.0


def only(*names: str) -> str:
    """Configuration that disables all helpers but these, where they are not off."""
    return "".join(
        f"[helpers.{name}]\nenabled = false\n"
        for name, helper in builtin_helpers().items()
        if helper.enabled and not helper.template and name not in names
    )


def equal_limits(seconds: int) -> str:
    """Limits of sunrpc that every kernel can change: each policy has the same."""
    return "".join(
        f"[helpers.sunrpc.policies.{name}]\nmax_expected = 8\ntimeout = {seconds}\n"
        for name in ("service", "broadcast", "dump")
    )


class Daemon:
    """Starts and stops the daemon, and reads what it logs."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        self._namespace = namespace
        self.config = folder / "cthelper.toml"
        self.command = CTHELPER
        self._log = folder / "log"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.stop()
        if error is not None and self._log.exists():
            error.add_note(f"the daemon's log:\n{self._log.read_text()}")

    def configure(self, text: str = "") -> None:
        """Write the configuration; the daemon reads it at its start and at SIGHUP."""
        # A machine that is emulated on a busy one takes longer over all.
        if "[budget]" not in text:
            text += "[budget]\ndeadline = 10000\nsource_cpu = 100\n"
        table = '[daemon]\nlog_format = "json"\n'
        if "[daemon]\n" not in text:
            text += "[daemon]\n"
        self.config.write_text(text.replace("[daemon]\n", table))

    def start(self, text: str = "", *arguments: str) -> None:
        """Start it with a configuration, and wait until it serves."""
        self.launch(text, *arguments)
        self.await_event("started")

    def launch(self, text: str = "", *arguments: str) -> None:
        """Start it and do not wait."""
        self.configure(text)
        with self._log.open("w") as log:
            self._process = self._namespace.start(
                *self.command,
                *("run", "--config", str(self.config), *arguments),
                stdout=log,
                stderr=log,
            )

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal that ends it; its exit code."""
        self.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait until it has ended; its exit code."""
        assert self._process
        return self._process.wait(_STEP_SECONDS)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process
        return self._process.pid

    @property
    def processes(self) -> list[int]:
        """Its process and those of its servers; an nft that it runs is not one."""
        servers = {int(each["pid"]) for each in self.events("worker-started")}
        return [self.pid, *(pid for pid in self._children() if pid in servers)]

    def await_rest(self) -> None:
        """Wait until it has done what it does at its start."""
        # Who answers at the control socket is there last, and besides the servers.
        self.await_event("controller-started")
        children = len(self.processes)
        assert until(lambda: len(self._children()) == children, _STEP_SECONDS)

    def _children(self) -> list[int]:
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return list(map(int, path.read_text().split()))

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to its process and to its servers."""
        for pid in self.processes:
            os.kill(pid, number)

    @property
    def text(self) -> str:
        """All that it has written."""
        return self._log.read_text()

    def events(self, name: str, start: int = 0) -> list[dict[str, Any]]:
        """The lines of its log that are of one event, from a line on."""
        # The last line may be half written.
        whole = self.text.rpartition("\n")[0]
        mark = f'"event": "{name}"'
        lines = [
            line
            for line in whole.splitlines()[start:]
            if line.startswith("{") and mark in line
        ]
        return [each for line in lines if (each := json.loads(line))["event"] == name]

    def await_event(self, name: str, count: int = 1) -> dict[str, Any]:
        """Wait for an event to have happened so often; the last of them."""
        assert self._process
        deadline = time.monotonic() + _STEP_SECONDS
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            if len(found := self.events(name)) >= count:
                return found[count - 1]
            if ended:
                break
            time.sleep(0.05)
        raise AssertionError(f"no event {name!r} number {count} in:\n{self.text}")

    def ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command that asks the running daemon."""
        return self._namespace.run(*CTHELPER, *arguments, timeout=_STEP_SECONDS)

    def records(self, *arguments: str) -> list[dict[str, Any]]:
        """What such a command prints with ``--json``."""
        done = self.ask(*arguments, "--json")
        assert done.returncode in (0, 1), done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def cthelper(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command with the same configuration."""
        return self._namespace.run(
            *CTHELPER, *arguments, "--config", str(self.config), timeout=_STEP_SECONDS
        )
