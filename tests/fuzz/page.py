# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/fuzzing.md: what is fuzzed, how often it was, and what was found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.fuzz import cost, log, network
from tests.fuzz.conversation import EFFECT_LIMIT

_FOUND_IN: Final = Path(__file__).with_name("findings")
# tests.fuzz.targets is not imported: pytest is still to collect tests that it imports.
_CONVERSATION: Final = "conversations of two peers, through the engine"
ABOUT: Final = {
    "packet": "an IP packet: where its payload is, and another one put in its place",
    "stream": "TCP segments that are cut, repeated, out of order, and that lie",
    "fragments": "fragments that are put together",
    "capture": "files: pcap and pcapng of both byte orders, packed ones",
    "queue": "a message of the queue, in Python",
    "conntrack": "the attributes of a conntrack entry",
    "descriptor": "Oracle's connect descriptors",
    "replay": "packets in any order through all of replay, with what it shows",
    "dns": "the questions of a DNS message",
    "record": "records of ONC RPC on TCP, cut out and rewritten",
    "rpcbind": "calls and results of portmapper and rpcbind, read, written and read",
    "messages": "messages to all helpers, without an engine; what prefilters leave out",
    "config": "configuration: any text, and most often one that is TOML still",
    "examined": "what the process answers that a plugin is examined in",
    "netlink": "answers and events of the kernel: entries, expectations, errors",
    "native": "a queue in C and the one in Python, which must do the same",
    "sanitized": "the same, with AddressSanitizer and UBSan and without coverage",
    "retransmission": "segments of a rewritten stream in any order, and again",
    "forgery": "a TCP flow, and segments of somebody who does not know its numbers",
    "dhcpv6": _CONVERSATION,
    "mdns": _CONVERSATION,
    "slp": _CONVERSATION,
    "sunrpc-udp": _CONVERSATION,
    "sunrpc-tcp": _CONVERSATION,
    "tns": _CONVERSATION,
    "ftp": _CONVERSATION,
    "irc": _CONVERSATION,
    "sane": _CONVERSATION,
    "amanda": _CONVERSATION,
    "engine": "four flows at once, of all helpers, behind NAT; headers that lie; a "
    "kernel that says no",
}
# By the file below tests/fuzz/findings.
_FOUND: Final = {
    "config/all-ports-denied": '`denied_ports = ["1-65535"]` took hours to read',
    "descriptor/quote-inside-a-bare-value": "a descriptor was read that was still "
    "waited for",
    "sane/bytes-out-of-turn": "a request and more of it were malformed in one segment "
    "and out of turn in two",
    "ftp/same-port-twice-at-once": "the target alone: what a client takes back by "
    "announcing it once more counted as open, in two segments, and in one did not",
    "netlink/words-that-are-not-ascii": "an extended acknowledgement that is not text, "
    "or cut off, raised what is no NetlinkError",
    "retransmission/span-repeated-with-the-rest": "behind NAT, bytes that had gone on "
    "were rewritten in a segment that repeated them: the stream did not fit any more",
}


def page() -> str:
    """The whole page."""
    lines = log.read()
    totals = log.totals(lines)
    milliseconds = cost.SECONDS * 1000
    base, limit = network.BASE // 1024, network.FLOW_LIMIT // 1024
    return f"""\
<!-- Written by script/docs; a test holds it and the code together. -->
# Fuzzing

Whatever reads bytes of strangers, of the kernel or of files is a target
(`tests/fuzz/targets.py`). `script/fuzz` runs them with atheris, which sees what code
the bytes reach; the captures in `pcaps/`, conversations that none of them holds, and
what long runs have reached (`tests/fuzz/corpus`) are what it begins with. The ordinary
tests read all of these once, and what was found and mended (`tests/fuzz/findings`).
`script/test` fuzzes each target for 5 seconds, and compiled for 2.

What holds of each input:

- No exception but those that the code says it raises. In a helper another one would be
  a fault, which ends the inspection of the flow.
- Every packet goes on, but where it cannot be rewritten and `nat.unrewritable` is drop.
- A rewritten packet has the lengths and checksums that it must have; all other fields
  are as they were.
- Nothing opens that the guard forbids, told by code of its own: the address is the
  announcer's, or allowed; the port is neither low nor denied. What was placed with the
  kernel and is not told is taken back.
- A message leads to at most {EFFECT_LIMIT} effects.
- A packet takes at most {milliseconds:.0f} ms of processor time, while the fuzzer's
  instrumentation makes all code several times slower. What was slowest is run again
  without it, and named from {cost.NOTABLE * 1000:.0f} ms on.
- Of a flow no more is kept than {base} KiB and {network.AMPLIFIED} bytes for each that
  came, nor more than {limit} KiB.
- The same segments cut in another way lead to the same, and a segment that comes again
  to the same bytes.

## How often

{_table(lines, totals)}

{sum(totals.values()):,} in all. `script/fuzz --executions N` goes on until there are
so many, each target having its part, and counts them in `tests/fuzz/executions.tsv`,
where each line has the commit and the command; broken off and begun again it goes on
where it was. Those of commit bde8afc and later are of the compiled build, which is run
ten times as often and of which coverage sees nothing: they begin with what others have
reached.
{_sanitized()}
## What was found

| input, in `tests/fuzz/findings` | what was wrong |
|---|---|
{_findings()}
"""


def _table(lines: Sequence[log.Line], totals: dict[str, int]) -> str:
    rows = [
        "| target | reads | executions | a second | crashes |",
        "|---|---|--:|--:|--:|",
    ]
    for name, about in ABOUT.items():
        own = [each for each in lines if each.target == name]
        seconds = sum(each.seconds for each in own)
        rate = totals.get(name, 0) // max(1, seconds)
        crashes = sum(each.crashes for each in own)
        count = f"{totals.get(name, 0):,} | {rate:,}"
        rows.append(f"| {name} | {about} | {count} | {crashes} |")
    return "\n".join(rows)


def _sanitized() -> str:
    return """
`sanitized` knows nothing of coverage: AddressSanitizer as gcc has it and libFuzzer do
not go together. It begins with what `native` has reached, whose Python half reads the
same messages.
"""


def _findings() -> str:
    rows = []
    for path in sorted(_FOUND_IN.glob("*/*.bin")):
        name = f"{path.parent.name}/{path.stem}"
        rows.append(f"| `{name}.bin` | {_FOUND[name]} |")
    return "\n".join(rows)
