# SPDX-License-Identifier: GPL-2.0-or-later
"""FTP's servers and clients: real ones, and a server that says what it is told."""

import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.live.world import SERVER, SERVER6, Family, Namespace, World, until

_SCRIPTS: Final = Path(__file__).parent / "ftp"
# script/setup has put these there: Debian has one server of FTP installed at a time.
_DEBIAN: Final = Path(sys.prefix) / "debian"
_NODE: Final = Path(sys.prefix) / "node/bin/node"
_MODULE: Final = Path(sys.prefix) / "node/node_modules/basic-ftp"

_FOLDER: Final = "/run/ftp"
TEXT: Final = "a line over FTP"

# By server; the last one is `Scripted`.
PORTS: Final = {"vsftpd": 21, "pure-ftpd": 2122, "proftpd": 2123, "pyftpdlib": 2124}
SCRIPTED_PORT: Final = 2125

_FILES: Final = f"""
mkdir -p {_FOLDER} /run/empty
echo '{TEXT}' >{_FOLDER}/file
grep -v '^ftp:' /etc/passwd >/run/passwd
echo 'ftp:x:109:65534::{_FOLDER}:/bin/sh' >>/run/passwd
mount --bind /run/passwd /etc/passwd
cat >/run/vsftpd.conf <<'EOF'
listen=NO
listen_ipv6=YES
background=NO
anonymous_enable=YES
connect_from_port_20=NO
secure_chroot_dir=/run/empty
seccomp_sandbox=NO
isolate_network=NO
isolate=NO
xferlog_enable=NO
EOF
chmod 600 /run/vsftpd.conf
cat >/run/proftpd.conf <<'EOF'
<IfModule !mod_xfer.c>
  ModulePath /usr/lib/proftpd
  LoadModule mod_delay.c
  LoadModule mod_ls.c
  LoadModule mod_xfer.c
</IfModule>
ServerName test
ServerType standalone
DefaultAddress {SERVER} {SERVER6}
Port {PORTS["proftpd"]}
UseReverseDNS off
User nobody
Group nogroup
ScoreboardFile none
PidFile /run/proftpd.pid
DelayEngine off
WtmpLog off
SystemLog none
TransferLog none
AuthOrder mod_auth_unix.c
<Anonymous {_FOLDER}>
  User ftp
  Group nogroup
  UserAlias anonymous ftp
  RequireValidShell off
  AnonRequirePassword off
</Anonymous>
EOF
openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=test -days 2 \\
	-keyout /run/key.pem -out /run/certificate.pem 2>/dev/null
cat /run/key.pem /run/certificate.pem >/run/pure.pem
chmod 600 /run/pure.pem
"""


def start_servers(world: World) -> list["subprocess.Popen[str]"]:
    """Start all of them, and wait until they answer."""
    server = world.server
    server.tell(_FILES)
    pure = str(_DEBIAN / "pure-ftpd/usr/sbin/pure-ftpd")
    script = str(_SCRIPTS / "server.py")
    started = [
        server.start(*command)
        for command in (
            (str(_DEBIAN / "vsftpd/usr/sbin/vsftpd"), "/run/vsftpd.conf"),
            (
                *(pure, "-e", "-H", "-S", str(PORTS["pure-ftpd"])),
                *("-g", "/run/pure.pid", "--tls=1", "--certfile=/run/pure.pem"),
            ),
            ("proftpd", "-n", "-c", "/run/proftpd.conf"),
            (sys.executable, "-B", script, _FOLDER, str(PORTS["pyftpdlib"])),
        )
    ]
    with server.entered():
        for name in PORTS:
            assert until(lambda name=name: _greets(name), 30.0), server.log()  # type: ignore[misc]
    return started


def _greets(name: str) -> bool:
    try:
        with socket.create_connection((SERVER, PORTS[name]), timeout=2.0) as stream:
            return stream.recv(3) == b"220"
    except OSError:
        return False


# Clients


@dataclass(frozen=True)
class Cell:
    """A client that goes to a server over one family, and is to show its file."""

    client: str
    server: str
    family: Family = 4

    def __str__(self) -> str:
        return f"{self.client}, {self.server}, IPv{self.family}"

    @property
    def address(self) -> str:
        """The server's own address."""
        return SERVER if self.family == 4 else SERVER6

    def works(self, namespace: Namespace, host: str, seconds: float) -> bool:
        """Whether the client gets what it wants of `host` within so many seconds.

        What it says otherwise is printed.
        """
        port = PORTS[self.server]
        done = namespace.run(*_COMMANDS[self.client](host, port), timeout=seconds)
        works = TEXT in done.stdout or done.stdout.split() == ["file"]
        if not works:
            said = f"{done.stdout[-200:]!r} {done.stderr[-200:]!r}"
            print(f"{self}, {host}: ended with {done.returncode}: {said}")
        return works


def _url(host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"ftp://{name}:{port}/"


def _curl(*options: str) -> Callable[[str, int], list[str]]:
    return lambda host, port: [
        *("curl", "-s", "-S", "-g", "--connect-timeout", "100", *options),
        f"{_url(host, port)}file",
    ]


def _wget(*options: str) -> Callable[[str, int], list[str]]:
    return lambda host, port: [
        *("wget", "-q", "-t", "1", "-O", "-", *options, f"{_url(host, port)}file")
    ]


def _lftp(*settings: str) -> Callable[[str, int], list[str]]:
    # It waits for half a minute before it tries again.
    patience = ("net:max-retries 3", "net:reconnect-interval-base 1")
    said = "; ".join(f"set {each}" for each in (*patience, *settings))
    return lambda host, port: [
        *("lftp", "-c", f"{said}; open {_url(host, port)}; cat file")
    ]


def _ftplib(*how: str) -> Callable[[str, int], list[str]]:
    script = str(_SCRIPTS / "client.py")
    return lambda host, port: [sys.executable, "-B", script, host, str(port), *how]


_COMMANDS: Final[dict[str, Callable[[str, int], list[str]]]] = {
    "curl EPSV": _curl(),
    "curl PASV": _curl("--disable-epsv"),
    "curl EPRT": _curl("--ftp-port", "-"),
    "curl PORT": _curl("--ftp-port", "-", "--disable-eprt"),
    "wget PASV": _wget(),
    "wget EPSV": _wget(),
    "wget PORT": _wget("--no-passive-ftp"),
    "lftp PASV": _lftp(),
    "lftp EPSV, async": _lftp("ftp:sync-mode off"),
    "lftp PORT, async": _lftp("ftp:sync-mode off", "ftp:passive-mode off"),
    "lftp EPRT, async": _lftp("ftp:sync-mode off", "ftp:passive-mode off"),
    "ncftp PASV": lambda host, port: ["ncftpls", "-F", _url(host, port)],
    "ncftp PORT": lambda host, port: ["ncftpls", "-E", _url(host, port)],
    "basic-ftp EPSV": lambda host, port: [
        *(str(_NODE), str(_SCRIPTS / "client.js"), str(_MODULE), host, str(port))
    ],
    "ftplib PASV": _ftplib(),
    "ftplib EPRT": _ftplib("active"),
    "ftplib PASV, CCC": _ftplib("ccc"),
}


CELLS: Final = (
    Cell("curl EPSV", "vsftpd"),
    Cell("curl EPSV", "pure-ftpd", 6),
    Cell("curl PASV", "proftpd"),
    Cell("curl EPRT", "pure-ftpd"),
    Cell("curl EPRT", "vsftpd", 6),
    Cell("curl PORT", "pyftpdlib"),
    Cell("wget PASV", "vsftpd"),
    Cell("wget EPSV", "proftpd", 6),
    Cell("wget PORT", "pure-ftpd"),
    Cell("lftp PASV", "pyftpdlib"),
    Cell("lftp EPSV, async", "pyftpdlib", 6),
    Cell("lftp PORT, async", "vsftpd"),
    Cell("lftp EPRT, async", "proftpd", 6),
    Cell("ncftp PASV", "vsftpd"),
    Cell("ncftp PORT", "proftpd"),
    Cell("basic-ftp EPSV", "vsftpd"),
    Cell("basic-ftp EPSV", "pure-ftpd", 6),
    Cell("ftplib PASV", "pure-ftpd"),
    Cell("ftplib EPRT", "pyftpdlib", 6),
    Cell("ftplib PASV, CCC", "pure-ftpd"),
)


class Scripted:
    """A session with a server that says what it is told."""

    def __init__(self, world: World, listener: socket.socket) -> None:
        with world.client.entered():
            self.client = socket.create_connection((SERVER, SCRIPTED_PORT), timeout=20)
        self.server, _ = listener.accept()
        self.server.settimeout(20)
        self.answers("220 ready")

    def close(self) -> None:
        """Close both ends."""
        self.client.close()
        self.server.close()

    def says(self, line: str) -> str:
        """The client says a line; what the server gets."""
        self.client.sendall(f"{line}\r\n".encode())
        return self.server.recv(200).decode().rstrip()

    def answers(self, line: str) -> str:
        """The server says a line; what the client gets."""
        self.server.sendall(f"{line}\r\n".encode())
        return self.client.recv(200).decode().rstrip()
