# SPDX-License-Identifier: GPL-2.0-or-later
"""``cthelper top`` on a terminal of tmux, with somebody at its keys."""

import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.core.cli.process import COMMAND, ROOT

SECONDS: Final = 60.0


class Screen:
    """A terminal that runs the command, and somebody at its keys."""

    def __init__(self, folder: Path) -> None:
        self._tmux = ("tmux", "-f", "/dev/null", "-S", str(folder / "tmux"))

    def tmux(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words], capture_output=True, text=True, cwd=ROOT, check=True
        )
        return done.stdout

    def start(self, *words: str, **variables: str) -> None:
        """Run the command, and then say with which code it has ended."""
        unset = "".join(f"unset {name}; " for name in ("NO_COLOR", "COLORTERM"))
        set_ = "".join(f"export {key}={value}; " for key, value in variables.items())
        command = shlex.join([*COMMAND, "top", *words])
        script = f"{unset}{set_}{command}; echo ended $?; stty -a; sleep 600"
        size = ("-x", "80", "-y", "24")
        self.tmux("new-session", "-d", *size, "sh", "-c", script)

    def close(self) -> None:
        """End it; it may not have begun."""
        subprocess.run([*self._tmux, "kill-server"], capture_output=True)

    def press(self, *keys: str) -> None:
        """Press keys, by tmux's names of them."""
        self.tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type a text."""
        self.tmux("send-keys", "-l", "--", text)

    def lines(self, *options: str) -> list[str]:
        """What is shown."""
        return self.tmux("capture-pane", "-p", *options).splitlines()

    def until(self, meant: Callable[[list[str]], bool]) -> list[str]:
        """What is shown, once that is what is meant."""
        deadline = time.monotonic() + SECONDS
        while not meant(lines := self.lines()):
            assert time.monotonic() < deadline, "\n".join(lines)
            time.sleep(0.05)
        return lines

    def seen(self, text: str) -> list[str]:
        """What is shown, once this is among it."""
        return self.until(lambda lines: any(text in each for each in lines))

    @property
    def process(self) -> int:
        """The command's."""
        shell = self.tmux("display-message", "-p", "#{pane_pid}").strip()
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text()
        return int(children)
