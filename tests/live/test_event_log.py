# SPDX-License-Identifier: GPL-2.0-or-later
"""Events that a real daemon writes to a file, while real traffic makes them.

They are held against what ``cthelper events`` says, while the file is rotated, its
writer is killed, and the disk is full or stands still.
"""

import grp
import json
import os
import re
import signal
import stat
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from cthelper.control import Control
from tests.live.daemon import Daemon, equal_limits, only
from tests.live.traffic import PORT, Echo, Pinger, wait_for
from tests.live.world import World, until

pytestmark = pytest.mark.live

CONFIG: Final = (
    f"{only('sunrpc')}[helpers.sunrpc]\nports = [111, {PORT}]\n{equal_limits(300)}"
    "[guard]\nin_all = 0\n[helpers.sunrpc.guard]\nper_source = 0\nper_helper = 0\n"
)
SECONDS: Final = 60.0


def events(file: Path) -> str:
    return f'{CONFIG}[events]\nfile = "{file}"\n'


def lines(*files: Path) -> list[str]:
    return [
        line
        for each in files
        if each.exists()
        for line in each.read_text().splitlines()
    ]


def records(*files: Path) -> list[dict[str, Any]]:
    """The events; a line that was cut off is none."""
    found = []
    for line in lines(*files):
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def count(name: str, *files: Path) -> int:
    """Of those so many, or so many that they count."""
    return sum(
        each.get("count", 1) for each in records(*files) if each["event"] == name
    )


def of_server(lines: list[str]) -> list[str]:
    """Those that the server has written itself, which come in its order."""
    own = '"worker": 0'
    return [each for each in lines if own in each and "worker-started" not in each]


def made() -> int:
    """How many expectations the server says that it has made."""
    with Control() as control:
        (server,) = control.status()["servers"]
    return int(server["counters"]["expectation"])


def reload(daemon: Daemon, event: str = "reloaded") -> None:
    before = len(daemon.events(event))
    daemon.send_signal(signal.SIGHUP)
    daemon.await_event(event, before + 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The events' file, in a folder whose group reads it."""
    folder = tmp_path / "written"
    folder.mkdir()
    os.chown(folder, 0, grp.getgrnam("adm").gr_gid)
    folder.chmod(0o2750)
    return folder / "events.json"


@contextmanager
def traffic(world: World) -> Iterator[Pinger]:
    """Calls, each of which makes an event or two."""
    with Echo(world.server), Pinger(world.client) as pinger:
        yield pinger


def test_every_event_is_written_once_while_the_file_is_rotated_and_its_writer_killed(
    world: World, daemon: Daemon, path: Path
) -> None:
    daemon.start(events(path))
    daemon.await_event("writer-started")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.stat().st_gid == grp.getgrnam("adm").gr_gid
    files = [path]

    def missing() -> int:
        return made() - count("expectation", *files)

    with traffic(world) as pinger:
        for number in range(1, 4):
            wait_for(pinger, 15)
            files.insert(-1, path.rename(path.with_suffix(f".{number}")))
            if number == 3:
                daemon.config.write_text("no table")
                reload(daemon, "reload-refused")
            else:
                reload(daemon)
            daemon.await_event("writer-started", number + 1)
            assert until(path.exists, SECONDS)
        wait_for(pinger, 15)
        pinger.end()
        assert until(lambda: missing() == 0, SECONDS)
        assert count("events-missed", *files) == 0
        told = daemon.ask("events", "--json", "--since", "600", "--no-follow").stdout
        assert told.count("expectation") > 45
        assert set(told.splitlines()) <= set(lines(*files))
        assert of_server(told.splitlines()) == of_server(lines(*files))
    with traffic(world) as again:
        for number in (1, 2):
            wait_for(again, 15)
            writer = daemon.events("writer-started")[-1]["pid"]
            os.kill(writer, signal.SIGKILL)
            daemon.await_event("writer-died", number)
            daemon.await_event("writer-started", number + 4)
        # What stands still is replaced, too.
        os.kill(daemon.events("writer-started")[-1]["pid"], signal.SIGSTOP)
        reload(daemon, "reload-refused")
        daemon.await_event("writer-started", 7)
        wait_for(again, 15)
    assert pinger.lost == again.lost == 0
    with Control() as control:
        # It is the reload that was refused, and no more.
        assert len(control.status()["problems"]) == 1
    assert until(lambda: 0 <= missing() <= count("events-missed", *files), SECONDS)
    assert max(Counter(lines(*files)).values()) == 1
    assert count("events-unwritten", *files) == 0
    assert daemon.stop() == 0


def test_disk_that_is_full_or_stands_still_holds_up_the_writer_alone(
    world: World, daemon: Daemon, path: Path
) -> None:
    image, folder = path.with_name("image"), path.with_name("mounted")
    folder.mkdir()
    small = f"mke2fs -q -F -b 1024 -N 32 -m 0 {image} 256"
    done = world.gateway.run(
        "sh", "-c", f"modprobe -aq loop ext4; {small} && mount -o loop {image} {folder}"
    )
    assert done.returncode == 0, done.stderr
    file = folder / "events.json"
    # All but a little.
    rest = folder / "rest"
    rest.write_bytes(bytes((os.statvfs(folder).f_bavail - 12) * 1024))
    daemon.start(events(file))
    daemon.await_event("writer-started")
    with traffic(world) as pinger:
        # There is room for some thirty. On a busy machine the writer may not look for
        # seconds, and what it has not seen yet the next one could write.
        assert until(lambda: made() > 100, SECONDS)
        before = waits(daemon)
        assert until(lambda: waits(daemon) > before + 30, SECONDS)
        moved = file.rename(file.with_suffix(".1"))
        reload(daemon)
        daemon.await_event("writer-started", 2)
        # Beside the full disk.
        old = path.with_name("old.json")
        old.write_text(moved.read_text())
        rest.unlink()
        moved.unlink()
        told = until(lambda: count("events-unwritten", file), SECONDS)
        assert told, (made(), *lines(old)[-3:], *lines(file)[:3])

        def all_there() -> bool:
            found = count("expectation", old, file)
            # What was lost was of others, too.
            lost = count("events-unwritten", old, file)
            return bool(found < made() <= found + lost)

        pinger.end()
        assert until(all_there, SECONDS)
    with traffic(world) as pinger:
        writer = daemon.events("writer-started")[-1]["pid"]
        world.gateway.run("fsfreeze", "-f", str(folder), check=True)
        try:
            state = Path(f"/proc/{writer}/stat")
            assert until(lambda: state.read_text().split()[2] == "D", SECONDS)
            # Each time another one waits in its place, which nothing ends.
            for _ in range(5):
                reload(daemon)
                time.sleep(4.0)
            details = [each["detail"] for each in daemon.events("step-failed")]
            assert "3 that were killed have not ended" in details[-1]
            wait_for(pinger, 15)
            assert pinger.lost == 0
            began = time.monotonic()
            assert daemon.stop() == 0
            assert time.monotonic() - began < 30
        finally:
            world.gateway.run("fsfreeze", "-u", str(folder), check=True)
    world.gateway.run("umount", str(folder))


def waits(daemon: Daemon) -> int:
    """How often the writer has waited: for answers, for the disk, until it looks."""
    writer = daemon.events("writer-started")[-1]["pid"]
    status = Path(f"/proc/{writer}/status").read_text()
    (found,) = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)$", status, re.MULTILINE)
    return int(found)


def test_what_is_in_the_files_place_is_left_alone_and_a_reload_takes_another(
    world: World, daemon: Daemon, path: Path, tmp_path: Path
) -> None:
    """And that without a control socket."""
    other = tmp_path / "shadow"
    other.touch()
    path.symlink_to(other)
    off = '[control]\nsocket = ""\n'
    daemon.start(events(path) + off)
    said = daemon.await_event("events-unavailable")["detail"]
    assert said == f"{path}: cannot be written: Too many levels of symbolic links"
    path.unlink()
    os.mkfifo(path)
    reload(daemon)
    said = daemon.await_event("events-unavailable", 2)["detail"]
    assert said == f"{path}: cannot be written: Not a regular file"
    path.unlink()
    daemon.await_event("writer-started")
    with traffic(world) as pinger:
        wait_for(pinger, 1)
        assert until(lambda: count("expectation", path), SECONDS)
        daemon.configure(CONFIG + off)
        reload(daemon)
        assert until(lambda: count("reloaded", path) == 2, SECONDS)
        time.sleep(1.0)
        before = lines(path)
        wait_for(pinger, 20)
        daemon.configure(events(path) + off)
        reload(daemon)
        daemon.await_event("writer-started", 2)
        wait_for(pinger, 20)
        assert until(lambda: len(lines(path)) > len(before) + 20, SECONDS)
    daemon.configure(events(tmp_path / "events.json") + off)
    reload(daemon, "reload-refused")
    (refused,) = daemon.events("reload-refused")
    assert refused["error"] == "events.file is in another folder: restart cthelper"
    assert daemon.stop() == 0
    assert (other.read_text(), daemon.events("writer-died")) == ("", [])
    assert daemon.events("controller-started") == []
