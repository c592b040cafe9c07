# SPDX-License-Identifier: GPL-2.0-or-later
"""Three network namespaces, client - gateway - server, with real RPC and mDNS peers.

The gateway forwards and filters; `World.firewall` gives it a user's rule set that
drops whatever conntrack does not know. The client and the server also have mount
namespaces, in which /run is their own: two rpcbinds share no socket.

Everything here needs root and belongs into a throw-away kernel (script/vm), though
nothing outside the three namespaces is changed but the kernel modules loaded.
"""

import ctypes
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import IO, Any, Literal, NamedTuple, Self

from tests.live.forget import forget_entries, forget_expectations

CLIENT = "10.77.1.2"
CLIENT6 = "fd77:1::2"
GATEWAY_LAN = "10.77.1.1"
GATEWAY_LAN6 = "fd77:1::1"
GATEWAY_WAN = "10.77.2.1"
GATEWAY_WAN6 = "fd77:2::1"
SERVER = "10.77.2.2"
SERVER6 = "fd77:2::2"

# Interfaces: the gateway's towards the client, its other one towards the server,
# and the only one that the client and the server have.
LAN = "lan"
WAN = "wan"
ETH = "eth0"

MOUNTD = 100005
RSTATD = 100001
RUSERSD = 100002
NFS = 100003
NLOCKMGR = 100021
# NFS-Ganesha exports this folder, in which the file `file` holds this line.
NFS_EXPORT = "/run/export"
NFS_TEXT = "a line over NFS"
MDNS_GROUP = "224.0.0.251"
MDNS_GROUP6 = "ff02::fb"
MDNS_PORT = 5353
MDNS_SERVICE = "_http._tcp.local"

# The exit code of a program that `Namespace.run` had to end, the one of timeout(1).
TIMED_OUT = 124

Family = Literal[4, 6]
Netid = Literal["tcp", "udp", "tcp6", "udp6"]
Transport = Literal["tcp", "udp"]

_MODULES = (
    "nfnetlink_queue",
    "nfnetlink_cthelper",
    "nf_conntrack_netlink",
    "nft_ct",
    "nft_queue",
    "nft_masq",
    "nft_nat",
    "nf_nat",
    "nft_chain_nat",
    "nft_numgen",
    "nft_hash",
    "nft_fib_inet",
    "veth",
    "macvlan",
)

# Duplicate address detection would keep every IPv6 address tentative for a second. And
# clients get no ports that tests listen at: who came from one holds it for a minute.
_EVERY_NAMESPACE = """
echo 52000 65000 >/proc/sys/net/ipv4/ip_local_port_range
cd /proc/sys/net/ipv6/conf
echo 0 >all/accept_dad
echo 0 >default/accept_dad
echo 0 >default/accept_ra
cd /
"""

# Debian 13's libnfs (5.0.2) dies of an address of IPv6 where a name should be.
_NAMES = {SERVER6: "server6", GATEWAY_LAN6: "gateway6"}

# A host's /etc/nsswitch.conf may ask DNS, and the look-ups of libtirpc would then
# hang: there is no DNS server in a namespace.
_OWN_FILES = f"""
mount -t tmpfs tmpfs /run
cat >/run/hosts <<'EOF'
127.0.0.1 localhost
::1 localhost
{CLIENT} client
{CLIENT6} client
{SERVER} server
{SERVER6} server
{SERVER6} {_NAMES[SERVER6]}
{GATEWAY_LAN6} {_NAMES[GATEWAY_LAN6]}
EOF
cat >/run/nsswitch.conf <<'EOF'
passwd: files
group: files
hosts: files
services: files
protocols: files
rpc: files
netgroup: files
EOF
mount --bind /run/hosts /etc/hosts
mount --bind /run/nsswitch.conf /etc/nsswitch.conf
"""

# A connect() that nobody answers gives up after 1 + 2 s instead of two minutes.
_CLIENT_SETTINGS = "echo 1 >/proc/sys/net/ipv4/tcp_syn_retries\n"

_GATEWAY_SETTINGS = """
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
"""

# Without checksum offload the packets that reach a queue carry whole checksums.
_CLIENT_LINKS = f"""
ip -batch - <<'EOF'
link set lo up
address add {CLIENT}/24 brd + dev {ETH}
address add {CLIENT6}/64 dev {ETH} nodad
link set {ETH} up
route add default via {GATEWAY_LAN}
route add default via {GATEWAY_LAN6}
EOF
ethtool -K {ETH} tx off >/dev/null
"""

_GATEWAY_LINKS = f"""
ip -batch - <<'EOF'
link set lo up
address add {GATEWAY_LAN}/24 brd + dev {LAN}
address add {GATEWAY_LAN6}/64 dev {LAN} nodad
address add {GATEWAY_WAN}/24 brd + dev {WAN}
address add {GATEWAY_WAN6}/64 dev {WAN} nodad
link set {LAN} up
link set {WAN} up
route add 224.0.0.0/4 dev {WAN}
EOF
ethtool -K {LAN} tx off rx off >/dev/null
ethtool -K {WAN} tx off rx off >/dev/null
"""

_SERVER_LINKS = f"""
ip -batch - <<'EOF'
link set lo up
address add {SERVER}/24 brd + dev {ETH}
address add {SERVER6}/64 dev {ETH} nodad
link set {ETH} up
route add default via {GATEWAY_WAN}
route add default via {GATEWAY_WAN6}
route add 224.0.0.0/4 dev {ETH}
EOF
ethtool -K {ETH} tx off >/dev/null
"""

# ICMP errors about a known flow are "related" too; they are let through before the
# counters named related-*, which therefore count expected flows only.
_FIREWALL = f"""
table inet firewall {{
    counter related-forward {{ }}
    counter related-input {{ }}
    counter dropped-forward {{ }}
    counter dropped-input {{ }}

    set dropped {{
        typeof meta l4proto . th dport
        size 65535
        flags dynamic
        counter
    }}

    chain forward {{
        type filter hook forward priority filter; policy drop;
        ct state established accept
        ct state related meta l4proto {{ icmp, ipv6-icmp }} accept
        ct state related counter name "related-forward" accept
        iifname {LAN} oifname {WAN} meta l4proto {{ tcp, udp }} th dport 111 accept
        iifname {LAN} oifname {WAN} tcp dport 1521 accept
        counter name "dropped-forward"
        meta l4proto {{ tcp, udp }} update @dropped {{ meta l4proto . th dport }}
    }}

    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established accept
        meta l4proto ipv6-icmp accept
        ct state related meta l4proto icmp accept
        ct state related counter name "related-input" accept
        ip daddr {MDNS_GROUP} udp dport {MDNS_PORT} accept
        ip6 daddr {MDNS_GROUP6} udp dport {MDNS_PORT} accept
        counter name "dropped-input"
        meta l4proto {{ tcp, udp }} update @dropped {{ meta l4proto . th dport }}
    }}
}}
"""

# Port 0 asks for a port of the kernel's choice, so that only the port mapper knows.
_GANESHA = """
NFS_CORE_PARAM {
    Protocols = 3, 4;
    NFS_Port = 30049;
    MNT_Port = 0;
    NLM_Port = 0;
    Rquota_Port = 0;
    NSM_Use_Caller_Name = false;
    Plugins_Dir = "/usr/lib/x86_64-linux-gnu/ganesha";
}
NFSv4 { Grace_Period = 5; RecoveryBackend = fs; }
NFS_KRB5 { Active_krb5 = false; }
EXPORT {
    Export_Id = 77;
    Path = /run/export;
    Pseudo = /exp;
    Access_Type = RW;
    Squash = No_Root_Squash;
    SecType = sys;
    Protocols = 3, 4;
    FSAL { Name = VFS; }
}
"""

# NFS-Ganesha keeps its recovery data in /var/lib/nfs, the host's unless covered.
_RPC_FILES = f"""
mkdir -p /run/rpcbind /run/ganesha {NFS_EXPORT}
mount -t tmpfs tmpfs /var/lib/nfs
# Debian 13's Ganesha exports nothing of a tmpfs.
modprobe -aq loop ext4
truncate -s 8M /run/exported
mke2fs -q -F /run/exported
mount -o loop /run/exported {NFS_EXPORT}
echo '{NFS_TEXT}' >{NFS_EXPORT}/file
cat >/run/ganesha.conf <<'EOF'
{_GANESHA}
EOF
"""

# A static service needs no D-Bus, which avahi-publish would.
_MDNS_FILES = f"""
mkdir -p /run/avahi-daemon
mount -t tmpfs tmpfs /etc/avahi/services
cat >/etc/avahi/services/test.service <<'EOF'
<?xml version="1.0" standalone="no"?>
<!DOCTYPE service-group SYSTEM "avahi-service.dtd">
<service-group>
  <name>Test HTTP</name>
  <service><type>_http._tcp</type><port>8080</port></service>
</service-group>
EOF
cat >/run/avahi.conf <<'EOF'
[server]
host-name=server
allow-interfaces={ETH}
use-ipv4=yes
use-ipv6=yes
enable-dbus=no
[wide-area]
enable-wide-area=no
[publish]
publish-hinfo=no
publish-workstation=no
EOF
"""

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _setns(descriptor: int) -> None:
    """Move the calling thread into a network namespace, as os.setns of 3.12 does."""
    if _libc.setns(descriptor, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


def until(ready: Callable[[], object], seconds: float, pause: float = 0.05) -> bool:
    """Wait for a condition, tried with pauses, and tell whether it came."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


class Namespace:
    """A network namespace, and a mount namespace with it where one is wanted.

    A shell that reads its standard input holds them: it sets things up as it is
    told, and when the test process dies it reads the end of file and goes.
    """

    def __init__(self, name: str, folder: Path, *, mounts: bool) -> None:
        self.name = name
        self._folder = folder
        self._mounts = mounts
        self._started: list[subprocess.Popen[str]] = []
        self._holder = subprocess.Popen(
            ["unshare", "--net", *(["--mount"] if mounts else []), "sh", "-e", "-s"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.tell(_EVERY_NAMESPACE)
        self._space = os.stat(f"/proc/{self.pid}/ns/net").st_ino

    @property
    def pid(self) -> int:
        """The process whose /proc/PID/ns tells the namespaces."""
        return self._holder.pid

    def tell(self, script: str) -> None:
        """Have the holder run a piece of shell script; it must not fail."""
        assert self._holder.stdin
        assert self._holder.stdout
        said: list[str] = []
        try:
            self._holder.stdin.write(f"{script}\necho done\n")
            self._holder.stdin.flush()
        except BrokenPipeError:
            said.append("the shell is gone\n")
        for line in self._holder.stdout:
            if line == "done\n":
                return
            said.append(line)
        raise RuntimeError(f"{self.name}: set-up failed: {''.join(said)}")

    def run(
        self,
        *argv: str,
        timeout: float = 10.0,
        check: bool = False,
        input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in here to its end, which comes by force after the time-out.

        It must not leave a process of its own behind that keeps the output open;
        `start` is for those.
        """
        process = subprocess.Popen(
            self._inside(argv),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(input, timeout)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            code = TIMED_OUT
        if check and code:
            error = subprocess.CalledProcessError(code, argv, stdout, stderr)
            error.add_note(stdout + stderr)
            raise error
        return subprocess.CompletedProcess(argv, code, stdout, stderr)

    def start(
        self,
        *argv: str,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a program in here, in a session of its own; the World ends it.

        What is not directed elsewhere goes to a file that `log` reads.
        """
        with self._log.open("a") as log:
            process = subprocess.Popen(
                self._inside(argv),
                stdin=stdin,
                stdout=log if stdout is None else stdout,
                stderr=log if stderr is None else stderr,
                env=env,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def log(self) -> str:
        """What the programs started in here have written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread into the network namespace for a while.

        Sockets opened meanwhile belong to it for good, and so do child processes.
        """
        with ExitStack() as stack:
            before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            stack.callback(os.close, before)
            inside = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
            stack.callback(os.close, inside)
            _setns(inside)
            stack.callback(_setns, before)
            yield

    def close(self) -> None:
        """End every process in here, which removes the namespaces."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self._members():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            if until(lambda: not self._members(), 2.0):
                break
        for process in (*self._started, self._holder):
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream:
                    stream.close()
            process.wait()

    @property
    def _log(self) -> Path:
        return self._folder / f"{self.name}.log"

    def _inside(self, argv: tuple[str, ...]) -> list[str]:
        """Put nsenter, which becomes the program itself, before a command."""
        spaces = ["--net", "--mount"] if self._mounts else ["--net"]
        return ["nsenter", "--target", str(self.pid), *spaces, "--", *argv]

    def _members(self) -> list[int]:
        """The processes in here; also those that left their session, as daemons do.

        Nobody but this World starts processes in its namespaces.
        """
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or entry.name == str(os.getpid()):
                continue
            try:
                if os.stat(entry / "ns/net").st_ino == self._space:
                    found.append(int(entry.name))
            except OSError:  # It has ended.
                continue
        return found


@dataclass(frozen=True)
class MdnsResult:
    """How a one-shot mDNS query ended."""

    port: int
    """The asker's own port, to which a unicast answer is sent."""

    source: str | None
    """The address of who answered, None when nobody did in time."""


class QueueRow(NamedTuple):
    """Of an NFQUEUE: packets that wait, that were dropped, and the last one's id."""

    waiting: int
    dropped: int
    last: int


class World:
    """The three namespaces; a context manager that makes and removes them."""

    client: Namespace
    gateway: Namespace
    server: Namespace

    def __init__(self) -> None:
        self._rpc = False
        self._mdns = False

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="world-")))

            def namespace(name: str, settings: str, *, mounts: bool) -> Namespace:
                made = Namespace(name, folder, mounts=mounts)
                stack.callback(made.close)
                made.tell(settings)
                return made

            # What is built into a kernel is not a module, and what is missing
            # shows in the rules that need it.
            subprocess.run(["modprobe", "--all", *_MODULES], capture_output=True)
            self.gateway = namespace("gateway", _GATEWAY_SETTINGS, mounts=False)
            self.client = namespace(
                "client", _OWN_FILES + _CLIENT_SETTINGS, mounts=True
            )
            self.server = namespace("server", _OWN_FILES, mounts=True)
            links = (
                f"link add {LAN} netns {self.gateway.pid} type veth"
                f" peer name {ETH} netns {self.client.pid}\n"
                f"link add {WAN} netns {self.gateway.pid} type veth"
                f" peer name {ETH} netns {self.server.pid}\n"
            )
            subprocess.run(["ip", "-batch", "-"], input=links, text=True, check=True)
            self.client.tell(_CLIENT_LINKS)
            self.gateway.tell(_GATEWAY_LINKS)
            self.server.tell(_SERVER_LINKS)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def reset(self) -> None:
        """Remove the gateway's nft rules, its connections and its expectations.

        The servers keep running.
        """
        self.gateway.run("nft", "flush", "ruleset", check=True)
        self.forget()

    def forget(self) -> None:
        """Remove the gateway's connections and its expectations."""
        with self.gateway.entered():
            forget_entries()
            forget_expectations()

    def firewall(self, more: str = "", *, flush: bool = False) -> None:
        """Give the gateway a user's rule set, the table `inet firewall`, and more.

        From LAN to WAN it lets ports 111 and 1521 through, in itself mDNS to the group
        and ICMPv6, and otherwise what conntrack calls established or related. With
        `flush` it takes the place of all that is there, in one transaction.
        """
        text = f"{'flush ruleset' if flush else ''}\n{_FIREWALL}{more}"
        # The kernel loads modules for it, which on a busy machine takes long.
        self.gateway.run("nft", "-f", "-", input=text, check=True, timeout=60.0)

    def dropped(self, transport: Transport, port: int) -> int:
        """How many packets to a destination port the firewall has dropped."""
        return self.drops().get((transport, port), 0)

    def drops(self) -> dict[tuple[Transport, int], int]:
        """How many packets the firewall has dropped, by transport and port."""
        found = {}
        for element in self._list("set", "dropped").get("elem", []):
            transport, port = element["elem"]["val"]["concat"]
            found[transport, port] = int(element["elem"]["counter"]["packets"])
        return found

    def counter(self, name: str) -> int:
        """How many packets a named counter of the firewall has seen.

        The names: related-forward, related-input, dropped-forward, dropped-input.
        """
        return int(self._list("counter", name)["packets"])

    def conntrack(self, *args: str) -> str:
        """What the conntrack tool prints on the gateway: `-L`, or `-L expect`."""
        return self.gateway.run("conntrack", *args, check=True).stdout

    def queues(self) -> dict[int, QueueRow]:
        """The bound queues of the gateway, by number."""
        with self.gateway.entered():
            text = Path("/proc/thread-self/net/netfilter/nfnetlink_queue").read_text()
        rows = [[int(field) for field in line.split()] for line in text.splitlines()]
        return {row[0]: QueueRow(row[2], row[5] + row[6], row[7]) for row in rows}

    def start_rpc(self) -> None:
        """Start rpcbind, NFS-Ganesha, rpc.rstatd and rpc.rusersd, once."""
        if self._rpc:
            return
        self.server.tell(_RPC_FILES)
        self.server.start("rpcbind", "-f", "-i", "-r")
        self._await(lambda: self._listens("/run/rpcbind.sock"), "rpcbind")
        self.server.start("rpc.rstatd")
        self.server.start("rpc.rusersd")
        self.server.start(
            "ganesha.nfsd",
            "-F",
            *("-L", "STDERR"),
            *("-f", "/run/ganesha.conf"),
            *("-p", "/run/ganesha/pid"),
        )
        wanted = {(MOUNTD, netid) for netid in ("tcp", "udp", "tcp6", "udp6")}
        wanted |= {(RSTATD, "udp"), (RUSERSD, "udp")}
        self._await(lambda: wanted <= self._registered().keys(), "a server of RPC")
        if "Release = V4." not in self.server.run("ganesha.nfsd", "-v").stdout:
            relay = Path(__file__).with_name("rpc_relay.py")
            port, tcp = (self.rpc_port(MOUNTD, each) for each in ("udp", "tcp"))
            self.server.start(
                *(sys.executable, "-B", str(relay)),
                *(str(port), str(tcp), SERVER, SERVER6, "127.0.0.1"),
            )
            bound = ("ss", "-Hlun", f"src [{SERVER6}]:{port}")
            self._await(lambda: self.server.run(*bound).stdout, "the relay")
        self._rpc = True

    def rpc_port(self, program: int, netid: Netid) -> int:
        """The port that an RPC program has on the server, as the server says."""
        return self._registered()[program, netid]

    def start_mdns(self) -> None:
        """Start avahi-daemon with one service on the server, once."""
        if self._mdns:
            return
        self.server.tell(_MDNS_FILES)
        self.server.start(
            "avahi-daemon",
            *("-f", "/run/avahi.conf"),
            "--no-drop-root",
            "--no-chroot",
            "--no-rlimits",
        )
        self._await(lambda: _ask(self.server, ETH, 4, 0.3).source, "avahi, IPv4")
        self._await(lambda: _ask(self.server, ETH, 6, 0.3).source, "avahi, IPv6")
        self._mdns = True

    def rpcinfo(
        self,
        netid: Netid,
        *,
        program: int = MOUNTD,
        version: int = 3,
        timeout: float = 10.0,
    ) -> subprocess.CompletedProcess[str]:
        """Have the client find an RPC program through the port mapper and call it.

        Over UDP it waits for 10 s or more when it is not answered; a test in which
        it shall fail may give it less.
        """
        return self.client.run(
            *("rpcinfo", "-T", netid, SERVER6 if netid.endswith("6") else SERVER),
            *(str(program), str(version)),
            timeout=timeout,
        )

    def showmount(
        self, family: Family, timeout: float = 10.0
    ) -> subprocess.CompletedProcess[str]:
        """Have the client ask for the server's NFS exports, over UDP and TCP."""
        address = SERVER if family == 4 else SERVER6
        return self.client.run("showmount", "-e", address, timeout=timeout)

    def mdns_query(self, family: Family, timeout: float = 3.0) -> MdnsResult:
        """Ask for the server's service from the gateway, as a one-shot querier."""
        return _ask(self.gateway, WAN, family, timeout)

    def _list(self, kind: str, name: str) -> dict[str, Any]:
        """One object of the firewall's table, out of nft's JSON."""
        text = self.gateway.run(
            *("nft", "-j", "list", kind, "inet", "firewall", name), check=True
        ).stdout
        found: dict[str, Any] = json.loads(text)["nftables"][1][kind]
        return found

    def _registered(self) -> dict[tuple[int, str], int]:
        """The ports of the server's RPC programs, by program and netid."""
        ports = {}
        for line in self.server.run("rpcinfo").stdout.splitlines()[1:]:
            program, _, netid, address = line.split()[:4]
            if netid != "local":
                high, low = address.rsplit(".", 2)[1:]
                ports[int(program), netid] = int(high) << 8 | int(low)
        return ports

    def _listens(self, path: str) -> bool:
        """Whether a Unix socket of the server takes connections."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(f"/proc/{self.server.pid}/root{path}") == 0

    def _await(self, ready: Callable[[], object], what: str) -> None:
        """Wait for a server to be ready, or show what it said."""
        if not until(ready, 30.0):
            raise RuntimeError(f"{what} does not answer: {self.server.log()}")


def nfs_url(address: str, file: str = "") -> str:
    """What an NFS client calls the server's export, or a file there."""
    name = _NAMES.get(address, address)
    return f"nfs://{name}{NFS_EXPORT}{file}?version=3"


def _ask(
    namespace: Namespace, interface: str, family: Family, timeout: float
) -> MdnsResult:
    """Send one mDNS query from an ephemeral port, and wait for a unicast answer.

    RFC 6762, 6.7: to such a port the answer is unicast and repeats the query's id.
    Multicast answers go to port 5353 and are not seen here.
    """
    name = b"".join(
        bytes((len(label),)) + label.encode() for label in MDNS_SERVICE.split(".")
    )
    query_id = secrets.token_bytes(2)
    header = query_id + struct.pack("!5H", 0, 1, 0, 0, 0)
    query = header + name + struct.pack("!xHH", 12, 1)  # PTR, class IN
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with namespace.entered():
        asker = socket.socket(kind, socket.SOCK_DGRAM)
        scope = socket.if_nametoindex(interface)
    with asker:
        asker.bind(("", 0))
        asker.settimeout(timeout)
        if family == 4:
            asker.sendto(query, (MDNS_GROUP, MDNS_PORT))
        else:
            asker.sendto(query, (MDNS_GROUP6, MDNS_PORT, 0, scope))
        port = asker.getsockname()[1]
        try:
            answer, source = asker.recvfrom(9000)
        except TimeoutError:
            return MdnsResult(port, None)
    if answer[:2] != query_id or not answer[2] & 0x80:
        raise RuntimeError(f"{source[0]} sent something else than an answer")
    return MdnsResult(port, source[0])
