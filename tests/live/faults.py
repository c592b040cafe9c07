# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults of processes, the kernel's tables, netlink, other programs, operators, host.

Each is a function that brings a fault about, at a random moment where that matters, and
returns once the cause is gone. What must hold while the cause lasts it asserts itself.
What it does by hand is what systemd does for a service: it starts a daemon that has
ended.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final

from cthelper.core.daemon.ruleset import unregister
from cthelper.core.queue.library import bind_queue
from tests.live.gateway import helper_table, registered
from tests.live.scene import (
    QUEUE,
    Scene,
    daemon_writing_to,
    entry_count,
    event_sockets,
    injected,
    limit_address_space,
    module,
    no_more_memory,
    no_more_processes,
    otherwise,
    queue_sockets,
    request_sockets,
    sysctl,
)
from tests.live.world import until

Strike = Callable[[Scene], None]

# What an emulated machine takes to have announcements read again.
_SECONDS: Final = 30.0
# What a reload takes there.
_RELOAD_SECONDS: Final = 2.0
_MODULE: Final = "nf_conntrack_tftp"
_DAY: Final = 86400.0

BROKEN_PLUGINS: Final = {
    "is no Python": "def on_message(:\n",
    "needs a module that is not there": "import nothing_of_this_name\n",
    "raises at its import": "raise RuntimeError('at import')\n",
    "exits at its import": "raise SystemExit\n",
    "ends its process at its import": "import os; os._exit(3)\n",
}
BROKEN_CONFIGS: Final = {
    "is no TOML": "[helpers.sunrpc\n",
    "has a wrong value": "[helpers.sunrpc]\nports = [0]\n",
    "has an unknown helper": "[helpers.nothing]\n",
}


# Processes


def kill_server(scene: Scene) -> None:
    """A worker is killed."""
    scene.moment()
    os.kill(scene.server(), signal.SIGKILL)


def stop_server(scene: Scene) -> None:
    """A worker stands still, for good."""
    scene.moment()
    os.kill(scene.server(), signal.SIGSTOP)


def stop_server_briefly(scene: Scene) -> None:
    """A worker stands still for a moment, as on a host that has no time for it."""
    scene.moment()
    server = scene.server()
    os.kill(server, signal.SIGSTOP)
    scene.moment()
    os.kill(server, signal.SIGCONT)


def kill_supervisor(scene: Scene) -> None:
    """The supervisor is killed, and the daemon is started again."""
    scene.moment()
    scene.daemon.stop(signal.SIGKILL)
    scene.await_unbound()
    scene.start()


def kill_supervisor_of_the_unit(scene: Scene) -> None:
    """The same with what the unit's ExecStopPost= does once all have ended."""
    scene.moment()
    scene.daemon.stop(signal.SIGKILL)
    assert until(lambda: not scene.processes(), _SECONDS)
    done = scene.run("ruleset", "remove")
    assert done.returncode == 0, done.stderr
    scene.start()


def stop_supervisor(scene: Scene) -> None:
    """The supervisor stands still; workers go on."""
    scene.moment()
    scene.daemon.send_signal(signal.SIGSTOP)
    try:
        scene.recover(_SECONDS)
        time.sleep(3.0)
        scene.recover(_SECONDS)
    finally:
        scene.daemon.send_signal(signal.SIGCONT)


def kill_all(scene: Scene) -> None:
    """All processes are killed, and the daemon is started again."""
    scene.moment()
    scene.daemon.signal_all(signal.SIGKILL)
    scene.daemon.wait()
    scene.start()


def kill_server_in_reload(scene: Scene) -> None:
    """A worker is killed while a new configuration is taken."""
    _in_reload(scene, signal.SIGKILL)


def stop_server_in_reload(scene: Scene) -> None:
    """A worker stands still while a new configuration is taken."""
    _in_reload(scene, signal.SIGSTOP)


def kill_supervisor_in_reload(scene: Scene) -> None:
    """The supervisor is killed while a new configuration is taken."""
    scene.daemon.configure(otherwise(scene.config))
    scene.daemon.send_signal(signal.SIGHUP)
    scene.moment(_RELOAD_SECONDS)
    scene.daemon.stop(signal.SIGKILL)
    scene.await_unbound()
    scene.start()


def forbid_processes(scene: Scene) -> None:
    """The supervisor may start no process for a while (TasksMax=)."""
    with no_more_processes(scene.daemon.pid):
        os.kill(scene.server(), signal.SIGKILL)
        time.sleep(5.0)


def forbid_descriptors(scene: Scene) -> None:
    """The supervisor may open no more files for a while."""
    pid = scene.daemon.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
    try:
        scene.reload(otherwise(scene.config), "reload-refused")
        os.kill(scene.server(), signal.SIGKILL)
        # Another one cannot be started.
        assert until(lambda: scene.told("step-failed"), _SECONDS)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    scene.reload(scene.config, "reloaded")


def forbid_memory(scene: Scene) -> None:
    """The kernel ends a worker because there is no memory (cgroup)."""
    server = scene.server()
    with no_more_memory(server):
        assert until(lambda: scene.told("worker-died"), _SECONDS)


def refuse_memory(scene: Scene) -> None:
    """The kernel gives a worker no more memory (RLIMIT_AS)."""
    limit_address_space(scene.server())
    time.sleep(3.0)


# The queue and the tables


def fill_queue(scene: Scene) -> None:
    """More packets than the queue has room for."""
    scene.load.calls.flood(1000)


def fill_entries(scene: Scene) -> None:
    """The kernel has no room for new flows: it drops them, whatever we do."""
    with sysctl("nf_conntrack_max", max(1, entry_count(scene.world))):
        time.sleep(3.0)


def fill_expectations(scene: Scene) -> None:
    """The kernel has no room for expectations."""
    with sysctl("nf_conntrack_expect_max", 1):
        assert until(lambda: scene.told("refused"), _SECONDS)


# Netlink


def fail_requests(scene: Scene) -> None:
    """Every second request to the kernel's tables fails (ENOBUFS)."""
    server = scene.server()
    fails = "sendto:error=ENOBUFS:when=1+2"
    with injected(server, request_sockets(scene, server), fails):
        assert until(lambda: scene.told("refused"), _SECONDS)


def lose_answers(scene: Scene) -> None:
    """Requests get lost: an answer never comes."""
    server = scene.server()
    lost = "sendto:retval=0:when=2+5"
    with injected(server, request_sockets(scene, server), lost):
        time.sleep(5.0)


def fail_verdict(scene: Scene) -> None:
    """The kernel does not take a verdict (ENOBUFS)."""
    server = scene.server()
    with injected(server, queue_sockets(scene, server), "sendto:error=ENOBUFS:when=1"):
        assert until(lambda: scene.told("worker-died"), _SECONDS)


def fail_reading(scene: Scene) -> None:
    """Reading the queue fails once because its buffer was full (ENOBUFS)."""
    server = scene.server()
    fails = "recvmmsg,recvmsg,recvfrom:error=ENOBUFS:when=1"
    with injected(server, queue_sockets(scene, server), fails):
        time.sleep(2.0)


def lose_events(scene: Scene) -> None:
    """The buffer of events was full: the kernel threw some away (ENOBUFS)."""
    server = scene.server()
    fails = "recvfrom:error=ENOBUFS:when=1"
    with injected(server, event_sockets(scene, server), fails):
        scene.world.conntrack("-F")
        assert until(lambda: scene.told("events-lost"), _SECONDS)


def delete_entries(scene: Scene) -> None:
    """Masters go while their announcements are read."""
    for _ in range(10):
        scene.moment()
        scene.world.conntrack("-F")


# Other programs


def flush_ruleset(scene: Scene) -> None:
    """The whole ruleset is taken away, as a reload of Debian's nftables does."""
    scene.moment()
    scene.world.gateway.run("nft", "flush", "ruleset", check=True)


def delete_table(scene: Scene) -> None:
    """Our own table is taken away."""
    scene.moment()
    scene.world.gateway.run("nft", "delete", "table", "inet", "cthelper", check=True)


def unregister_helpers(scene: Scene) -> None:
    """The ruleset is taken away and the helpers are unregistered."""
    scene.moment()
    # It would load the ruleset again in the middle of that.
    scene.daemon.send_signal(signal.SIGSTOP)
    scene.world.gateway.run("nft", "flush", "ruleset", check=True)
    with helper_table(scene.world) as table:
        unregister(table, registered(scene.world))
    scene.daemon.send_signal(signal.SIGCONT)


def take_queue_before_start(scene: Scene) -> None:
    """Another program has the queue when the daemon starts."""
    scene.stop()
    _start_beside_another(scene)
    scene.start()


def take_queue_of_the_dead(scene: Scene) -> None:
    """Another program takes the queue of a daemon that was killed."""
    scene.moment()
    scene.daemon.stop(signal.SIGKILL)
    scene.await_unbound()
    _start_beside_another(scene)
    scene.start()


def load_module_before_start(scene: Scene) -> None:
    """A module of the kernel's has a helper's name when the daemon starts."""
    scene.stop()
    with module(_MODULE):
        scene.daemon.start(_with_tftp(scene))
        warned = scene.daemon.events("config-warning")
        assert any(_MODULE in each["detail"] for each in warned)
        scene.recover(_SECONDS)
        scene.stop()
    scene.start()


def load_module_before_reload(scene: Scene) -> None:
    """A module of the kernel's has the name of a helper that a reload turns on.

    When the module goes the kernel drops what waits in any queue.
    """
    with module(_MODULE):
        assert "tftp-u" in scene.reload(_with_tftp(scene), "reloaded")["helpers"]
        scene.recover(_SECONDS)
    scene.reload(scene.config, "reloaded")


def load_module_late(scene: Scene) -> None:
    """A module of the kernel's wants the name of a helper that serves."""
    scene.reload(_with_tftp(scene), "reloaded")
    refused = subprocess.run(["modprobe", _MODULE], capture_output=True)
    assert refused.returncode != 0
    scene.recover(_SECONDS)
    scene.reload(scene.config, "reloaded")


# Operators


def reload_broken_configurations(scene: Scene) -> None:
    """The new configuration is wrong."""
    for text in BROKEN_CONFIGS.values():
        scene.reload(text, "reload-refused")
        scene.recover(_SECONDS)
    scene.reload(scene.config, "reloaded")


def start_with_broken_configurations(scene: Scene) -> None:
    """The configuration is wrong when the daemon starts."""
    scene.stop()
    for what, text in BROKEN_CONFIGS.items():
        scene.daemon.configure(text)
        done = scene.run("run")
        assert (done.returncode, what, done.stderr.count("\n")) == (2, what, 1)
        assert str(scene.daemon.config) in done.stderr
    scene.start()


def reload_broken_plugins(scene: Scene) -> None:
    """A plugin is wrong at a reload."""
    for what, text in BROKEN_PLUGINS.items():
        with _plugin(scene, text) as config:
            error = scene.reload(config, "reload-refused")["error"]
            assert "plugin.py" in error, what
            scene.recover(_SECONDS)
    scene.reload(scene.config, "reloaded")


def start_with_broken_plugins(scene: Scene) -> None:
    """A plugin is wrong when the daemon starts."""
    scene.stop()
    for what, text in BROKEN_PLUGINS.items():
        with _plugin(scene, text) as config:
            scene.daemon.configure(config)
            done = scene.run("run")
            assert (done.returncode, what) == (2, what), done.stderr
            assert "plugin.py" in done.stderr
    scene.start()


# The host


def fill_disk(scene: Scene) -> None:
    """The file system that the log is on is full, and has room again."""
    disk = scene.folder / "disk"
    disk.mkdir(exist_ok=True)
    small = ("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk))
    subprocess.run(small, check=True)
    try:
        log, filler = disk / "log", disk / "filler"
        with daemon_writing_to(scene, f">{log} 2>&1"):
            with filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    size = log.stat().st_size
            scene.recover(_SECONDS)
            time.sleep(3.0)
            assert log.stat().st_size - size < 4096
            filler.unlink()
            assert until(lambda: '"log-lost"' in log.read_text(), _SECONDS)
            scene.recover(_SECONDS)
    finally:
        subprocess.run(["umount", str(disk)])


def log_to_full_device(scene: Scene) -> None:
    """Nothing that the daemon says can be written (ENOSPC)."""
    with daemon_writing_to(scene, ">/dev/full 2>&1"):
        scene.recover(_SECONDS)


def log_to_nothing(scene: Scene) -> None:
    """Standard error is closed."""
    with daemon_writing_to(scene, ">&- 2>&-"):
        scene.recover(_SECONDS)


def log_to_nobody(scene: Scene) -> None:
    """Standard error is a pipe that nobody reads any more."""
    pipe = scene.folder / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with daemon_writing_to(scene, f">{pipe} 2>&1"):
            os.close(reader)
            reader = -1
            scene.recover(_SECONDS)
    finally:
        if reader >= 0:
            os.close(reader)
        pipe.unlink()


def set_clock(scene: Scene) -> None:
    """The clock jumps ahead by a day, back by two, and ahead again."""
    for seconds in (_DAY, -2 * _DAY, _DAY):
        time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
        scene.recover(_SECONDS)


# What these have in common


def _with_tftp(scene: Scene) -> str:
    """The configuration, with the helper that a module of the kernel's is for, too."""
    off = "[helpers.tftp]\nenabled = false\n"
    assert off in scene.config
    return scene.config.replace(off, "")


@contextmanager
def _plugin(scene: Scene, text: str) -> Iterator[str]:
    """A plugin, plugin.py, and the configuration that has it."""
    folder = scene.folder / "plugins"
    folder.mkdir(mode=0o755, exist_ok=True)
    file = folder / "plugin.py"
    file.write_text(text)
    try:
        yield f'{scene.config}[plugins]\nfolder = "{folder}"\n'
    finally:
        file.unlink()


def _in_reload(scene: Scene, number: signal.Signals) -> None:
    """Send a worker a signal in a reload, which is taken or refused then."""
    scene.daemon.configure(otherwise(scene.config))
    server = scene.server()
    scene.daemon.send_signal(signal.SIGHUP)
    scene.moment(_RELOAD_SECONDS)
    os.kill(server, number)
    assert until(
        lambda: scene.told("reloaded") or scene.told("reload-refused"), 2 * _SECONDS
    )
    scene.recover(_SECONDS)
    scene.reload(scene.config, "reloaded")


def _start_beside_another(scene: Scene) -> None:
    """Start the daemon while another program has its queue, where packets pass."""
    with scene.world.gateway.entered():
        taken = bind_queue(QUEUE, 1 << 20, fail_open=True)
    with closing(taken):
        scene.daemon.configure(scene.config)
        done = scene.run("run")
        assert done.returncode == 1
        assert f"queue {QUEUE} is bound by another process" in done.stderr
