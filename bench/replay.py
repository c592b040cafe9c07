# SPDX-License-Identifier: GPL-2.0-or-later
"""Replay's speed beside that of other readers of the same capture, in one run.

usage: python -m bench.replay [--packets N] [--rounds N] [--gigabytes N]

Packets per CPU-second (user and system) of whole processes, their start included;
medians of alternating rounds. tshark prints a few fields of each packet, scapy dissects
with PcapReader (a part of the capture, it is slow), and its raw reader does nothing
with what it reads. The last line of the output is JSON.

With --gigabytes instead: the most memory that replay has had by when it has read so
much of a capture, which comes through a pipe. It grows as long as flows do not end.
"""

import argparse
import json
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import cpu_seconds
from bench.corpus import write

# scapy dissects so few packets a second that a part of the capture must do.
_SCAPY_PACKETS: Final = 10_000
_SCAPY: Final = """
import sys
from scapy.layers import inet, inet6, l2
from scapy.utils import PcapReader
with PcapReader(sys.argv[1]) as reader:
    for _ in range(int(sys.argv[2])):
        reader.read_packet()
"""
_RAW: Final = """
import sys
from scapy.utils import RawPcapReader
for _ in RawPcapReader(sys.argv[1]):
    pass
"""
_PCAP_HEADER: Final = 24
_RECORD: Final = struct.Struct("<4I")
_SECONDS: Final = struct.Struct("<I")
_FIELDS: Final = ("frame.number", "ip.src", "ip.dst", "_ws.col.Protocol")


@dataclass(frozen=True, slots=True)
class Reader:
    """A program that reads the capture, and how many packets of it."""

    name: str
    command: tuple[str, ...]
    packets: int


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--packets", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        capture = Path(folder, "mixed.pcap")
        packets = write(capture, options.packets)
        if options.gigabytes:
            return _measure_memory(capture, options.gigabytes * 10**9)
        readers = _readers(capture, packets)
        rates: dict[str, list[float]] = {reader.name: [] for reader in readers}
        for _ in range(options.rounds):
            for reader in readers:
                rates[reader.name].append(
                    reader.packets / cpu_seconds(reader.name, reader.command)
                )
    medians = {name: statistics.median(each) for name, each in rates.items()}
    ours = medians["cthelper replay"]
    print(f"{packets} packets, medians of {options.rounds} rounds")
    print(f"{'reader':<24} {'packets per CPU-second':>22} {'cthelper is':>12}")
    for name, rate in medians.items():
        print(f"{name:<24} {rate:>22,.0f} {ours / rate:>10.2f} x")
    print(json.dumps({"packets": packets, "rounds": options.rounds, "rates": rates}))
    return 0


def _measure_memory(capture: Path, wanted: int) -> int:
    peaks = _peaks(bytearray(capture.read_bytes()), wanted)
    for size, peak in peaks.items():
        print(f"{size:<24} {peak:>22.1f} MiB at most")
    print(json.dumps({"peaks": peaks}))
    return 0


def _peaks(content: bytearray, wanted: int) -> dict[str, float]:
    """The most memory, in MiB, that replay has of a capture over and over, till then.

    Each time its packets come later than the time before, as in a capture that goes on.
    """
    places = []
    at = _PCAP_HEADER
    while at < len(content):
        seconds, _, captured, _ = _RECORD.unpack_from(content, at)
        places.append((at, seconds))
        at += _RECORD.size + captured
    span = places[-1][1] + 1
    peaks = {}
    command = (sys.executable, "-m", "cthelper", "replay", "--json", "-")
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        process.stdin.write(content[:_PCAP_HEADER])
        written = later = 0
        while written < wanted:
            for at, seconds in places:
                _SECONDS.pack_into(content, at, seconds + later)
            later += span
            written += process.stdin.write(memoryview(content)[_PCAP_HEADER:])
            # Not what wait4 says, which begins with this process's own.
            status = Path(f"/proc/{process.pid}/status").read_text("ascii")
            (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
            peaks[f"{written / 1e9:.1f} GB"] = int(peak) / 1024
    if process.returncode:
        sys.exit(f"bench: cthelper replay ended with {process.returncode}")
    return peaks


def _readers(capture: Path, packets: int) -> list[Reader]:
    python = sys.executable
    readers = [
        Reader(
            "cthelper replay",
            (python, "-m", "cthelper", "replay", "--json", str(capture)),
            packets,
        ),
        Reader("scapy RawPcapReader", (python, "-c", _RAW, str(capture)), packets),
        Reader(
            "scapy PcapReader",
            (python, "-c", _SCAPY, str(capture), str(_SCAPY_PACKETS)),
            _SCAPY_PACKETS,
        ),
    ]
    tshark = shutil.which("tshark")
    if tshark is None:
        print("tshark is not installed: apt-get install tshark", file=sys.stderr)
        return readers
    fields = [word for field in _FIELDS for word in ("-e", field)]
    command = (tshark, "-n", "-r", str(capture), "-T", "fields", *fields)
    return [*readers, Reader("tshark -T fields", command, packets)]


if __name__ == "__main__":
    sys.exit(main())
