# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a flow would not get through this host: findings from what was gathered.

It asks nobody. What was announced is reasoned about as ``replay --explain`` does
(`cthelper.core.nearest`), what the rules do in `cthelper.core.firewall`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cthelper.core.control.memory import Memory
from cthelper.core.firewall import (
    Attachment,
    Ending,
    Packet,
    Passage,
    attachments,
    passages,
)
from cthelper.core.nearest import Near, hints
from cthelper.core.records import Record, read_flow
from cthelper.core.tuples import Address, Tuple

BLOCKED: Final = "blocked"
UNCERTAIN: Final = "may be blocked"
FREE: Final = "nothing in the way"

_STRICT: Final = 1
_RP_FILTER: Final = {0: "off", 1: "strict", 2: "loose"}
# Control flows, and hints, that are shown: the first ones.
_SHOWN: Final = 4

Flow = Mapping[str, Any]
"""A flow's record, of those of ``flows``."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A flow that is asked about; where `any_port` its source port does not count."""

    flow: Tuple
    any_port: bool

    def __str__(self) -> str:
        if not self.any_port:
            return str(self.flow)
        flow = self.flow
        return f"{flow.transport} {flow.source.address} > {flow.destination}"

    def means(self, flow: Tuple) -> bool:
        """Whether it is this one."""
        own = self.flow
        source = own.source.address == flow.source.address
        return (own.transport, own.destination) == (
            flow.transport,
            flow.destination,
        ) and (source if self.any_port else own.source == flow.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How packets of the flow go through this host.

    `path` are the hooks, `back` the interface towards the flow's source. `refusal` is
    why the kernel would not route it.
    """

    path: tuple[str, ...]
    iif: str | None
    oif: str | None
    back: str | None
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What sysctls say; None is what the kernel has not.

    `rp_filter` is that of each interface, the greater of its own and all's.
    `legacy_tables` are those of iptables-legacy.
    """

    rp_filter: Mapping[str, int] = field(default_factory=dict)
    conntrack_helper: int | None = None
    legacy_tables: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """All that is known.

    `memory` and `status` are None where no daemon answers. `flows` are those between
    the two hosts, in either direction. `listing` is nft's, `texts` the rules in words,
    `table` the daemon's own by family and name.
    """

    asked: Asked
    control: Asked | None
    memory: Memory | None
    status: Mapping[str, Any] | None
    flows: Sequence[Flow]
    listing: object
    texts: Mapping[tuple[str, str, int], str]
    table: tuple[str, str]
    way: Way
    settings: Settings


@dataclass(frozen=True, slots=True)
class Finding:
    """`blocks` is whether it keeps the flow out; None: perhaps."""

    kind: str
    text: str
    blocks: bool | None = False
    ending: Ending | None = None

    def record(self, texts: Mapping[tuple[str, str, int], str]) -> Record:
        """For JSON."""
        told: Record = {"kind": self.kind, "blocks": self.blocks, "text": self.text}
        end = self.ending
        if end is not None:
            told["rule"] = {
                **{"family": end.family, "table": end.table, "chain": end.chain},
                **{"hook": end.hook, "handle": end.handle, "comment": end.comment},
                "text": _rule_text(end, texts),
                "verdict": end.verdict.value,
            }
        return told


@dataclass(frozen=True, slots=True)
class Answer:
    """Findings, those first that keep the flow out, and what follows from them."""

    findings: tuple[Finding, ...]

    @property
    def blocks(self) -> bool | None:
        """Whether the flow is kept out; None: perhaps."""
        found = {each.blocks for each in self.findings}
        return True if True in found else None if None in found else False

    @property
    def verdict(self) -> str:
        """In a word, and by what."""
        words = {True: BLOCKED, None: UNCERTAIN, False: FREE}[self.blocks]
        causes = (each.kind for each in self.findings if each.blocks is self.blocks)
        named = ", ".join(dict.fromkeys(causes))
        return f"{words}: {named}" if self.blocks is not False else words


def answer(known: Gathered) -> Answer:
    """Whether the flow is kept out, and why. Raises Malformed."""
    found = list(_findings(known))
    order = {True: 0, None: 1, False: 2}
    return Answer(tuple(sorted(found, key=lambda each: order[each.blocks])))


def _findings(known: Gathered) -> Iterator[Finding]:
    memory, asked = known.memory, known.asked
    entry = _entry(known)
    if entry is not None:
        yield Finding("entry", _told(entry))
        if not asked.any_port:
            return  # else the next one may fare otherwise
    live = (
        [] if memory is None else memory.admitting(asked.flow, any_port=asked.any_port)
    )
    if live:
        for each in live:
            yield Finding("announced", _announced(each.record))
        helper = live[0].record["helper"]
        yield from _rules(known, "related", helper)
        yield from _surroundings(known, False)
        return
    as_new = list(_rules(known, "new", ""))
    blocks = Answer(tuple(as_new)).blocks
    yield from _missing(known, blocks)
    yield from _tagged(known, blocks)
    yield from as_new
    if blocks is not False:
        yield from _rules(known, "related", _helper(known))
    yield from _surroundings(known, blocks)


def _entry(known: Gathered) -> Flow | None:
    """The entry of the flow itself."""
    for entry in _entries(known.flows):
        if known.asked.means(read_flow(entry["flow"])):
            return entry
    return None


def _entries(flows: Sequence[Flow]) -> Iterator[Flow]:
    for each in flows:
        if not each["gone"]:
            yield each
        yield from each["flows"]


def _told(entry: Flow) -> str:
    state = entry["state"] or ("answered" if entry["answered"] else "unanswered")
    text = (
        f"{read_flow(entry['flow'])} is in the kernel's table, {state}, "
        f"{entry['timeout']} s left: its first packet has passed all chains here"
    )
    if not entry["answered"]:
        text += ", and no answer to it has come"
    return text


def _announced(record: Mapping[str, Any]) -> str:
    kind = "any number of flows" if record["permanent"] else "one flow"
    zone = f", in zone {record['zone']}" if record["zone"] else ""
    expects = record["expects"]
    return (
        f"{record['helper']} expects {kind} to {expects['destination']} from "
        f"{expects['source'] or 'anywhere'}{_port_of(expects)}, announced by "
        f"{read_flow(record['flow'])}, {record['timeout']} s left{zone}"
    )


def _port_of(expects: Mapping[str, Any]) -> str:
    port = expects["source_port"]
    return "" if port is None else f" port {port}"


def _missing(known: Gathered, blocks: bool | None) -> Iterator[Finding]:
    """Why no expectation admits the flow."""
    memory = known.memory
    if memory is None:
        yield Finding("daemon", "no daemon answers: nothing is expected", blocks)
        return
    near = _nearest(known)
    if near is None:
        yield Finding("announced", "nothing like it is remembered", blocks)
    elif near.wish.refusal is not None and near.exact:
        yield Finding("refused", str(near), blocks)
    else:
        yield Finding("nearest", str(near), blocks)
    if near is None or not near.exact:
        for text in list(hints(known.asked.flow, memory.controls))[-_SHOWN:]:
            yield Finding("trouble", text)


def _nearest(known: Gathered) -> Near | None:
    """What came nearest to admitting the flow."""
    if known.memory is None:
        return None
    asked = known.asked
    return known.memory.nearest(asked.flow, any_port=asked.any_port)


def _helper(known: Gathered) -> str | None:
    """Of which helper the flow might be; None: nobody knows."""
    near = _nearest(known)
    return None if near is None else near.wish.helper


# The control flow


def _tagged(known: Gathered, blocks: bool | None) -> Iterator[Finding]:
    """Whether what might have announced the flow is read."""
    if not _table(known):
        yield Finding(
            "ruleset",
            f"the table {' '.join(known.table)} is gone: no new flow is inspected: "
            "cthelper ruleset install, or restart the daemon",
            blocks,
        )
        return
    near = _nearest(known)
    # What was read, and refused or over, did not want for a helper.
    yield from _controls(known, False if near is not None and near.exact else blocks)


def _controls(known: Gathered, blocks: bool | None) -> Iterator[Finding]:
    """The control flows, or that there are none."""
    entries = [each for each in _entries(known.flows) if each["inspection"]]
    asked = known.control
    if asked is not None:
        entries = [
            each
            for each in _entries(known.flows)
            if asked.means(read_flow(each["flow"]))
        ]
        if not entries:
            yield Finding(
                "control",
                f"{asked} is not in the kernel's table: it has ended, or has not "
                f"passed here; {_tagging(known, asked.flow)[0]}",
                blocks,
            )
    else:
        entries += [
            each
            for each in _entries(known.flows)
            if not each["helper"] and _attachments(known, read_flow(each["flow"]))
        ]
        if not entries:
            yield Finding("control", "no flow between the two has a helper", blocks)
    for each in entries[:_SHOWN]:
        yield _control(known, each, blocks)


def _control(known: Gathered, entry: Flow, blocks: bool | None) -> Finding:
    flow = read_flow(entry["flow"])
    if entry["inspection"] == "finished":
        text = f"{entry['helper']} reads {flow} no longer ({entry['reason']})"
        return Finding("control", text)
    if entry["helper"]:
        return Finding("control", f"{entry['helper']} reads {flow}")
    tagging, tagged = _tagging(known, flow)
    text = f"{flow} has no helper: {tagging}"
    if tagged:
        text += ", so that it began before that: cthelper ruleset install --retag"
    return Finding("control", text, blocks)


def _tagging(known: Gathered, flow: Tuple) -> tuple[str, bool]:
    """What the daemon's ruleset does to a new flow, and whether that is to tag it."""
    found = _attachments(known, flow)
    for each in found:
        if each.matches:
            return f"the ruleset gives it the helper {_name(each)}", True
    for each in found:
        verb = "may leave" if each.matches is None else "leaves"
        wanted = ", ".join(each.left_out)
        return f"the rule of {_name(each)} {verb} it out, by {wanted}", False
    port = flow.destination.port
    return (
        f"{flow.transport} port {port} is no control port of an enabled helper",
        False,
    )


def _name(attachment: Attachment) -> str:
    """The helper of an object, whose name ends in the transport."""
    return attachment.object.rpartition("-")[0]


def _attachments(known: Gathered, flow: Tuple) -> list[Attachment]:
    own, way = known.asked.flow, known.way
    same = flow.source.address == own.source.address
    iif, oif = (way.iif, way.oif) if same else (way.oif, way.iif)
    path = ("prerouting",) if same or way.path[0] == "prerouting" else ("output",)
    packet = Packet(
        path=way.path if same else path,
        transport=flow.transport,
        source=flow.source.address,
        destination=flow.destination.address,
        sport=flow.source.port,
        dport=flow.destination.port,
        iif=iif,
        oif=oif,
        state="new",
    )
    return list(attachments(known.listing, packet, known.table))


def _table(known: Gathered) -> bool:
    """Whether the daemon's ruleset is in place."""
    supervisor = None if known.status is None else known.status["supervisor"]
    if supervisor is not None and not supervisor["ruleset"]:
        return False
    family, name = known.table
    listing = known.listing if isinstance(known.listing, list) else []
    return any(
        isinstance(each, dict)
        and isinstance(each.get("table"), dict)
        and (each["table"].get("family"), each["table"].get("name")) == (family, name)
        for each in listing
    )


# The rules


def _rules(known: Gathered, state: str, helper: str | None) -> Iterator[Finding]:
    """What the user's rules do to the flow's first packet."""
    flow, way = known.asked.flow, known.way
    packet = Packet(
        path=way.path,
        transport=flow.transport,
        source=flow.source.address,
        destination=flow.destination.address,
        sport=None if known.asked.any_port else flow.source.port,
        dport=flow.destination.port,
        iif=way.iif,
        oif=way.oif,
        state=state,
        helper=helper,
    )
    of = f" of {helper}" if helper else ""
    what = f"as ct state {state}{of} it"
    found = list(passages(known.listing, packet, but=known.table))
    for each in found:
        if each.blocks is not False:
            yield _kept_out(known, each, what)
    if any(each.blocks for each in found):
        return
    accepting = [
        each.endings[-1]
        for each in found
        if each.main and each.blocks is False and each.endings[-1].handle is not None
    ]
    for end in accepting:
        yield Finding(
            "rules", f"{what} is accepted by {_shown(end, known)}", False, end
        )
    if not accepting and all(each.blocks is False for each in found):
        yield Finding("rules", f"{what} is accepted: no rule is against it")


def _kept_out(known: Gathered, passage: Passage, what: str) -> Finding:
    end = next(each for each in passage.endings if each.verdict.blocks)
    done = {"drop": "dropped", "reject": "rejected"}[end.verdict.value]
    if passage.blocks:
        text = f"{what} is {done} by {_shown(end, known)}"
        return Finding("rules", text, True, end)
    text = f"{what} may be {done} by {_shown(end, known)}"
    doubts = dict.fromkeys(each for one in passage.endings for each in one.unknown)
    text += f"; not certain, as it was not evaluated: {', '.join(doubts)}"
    return Finding("rules", text, None, end)


def _shown(end: Ending, known: Gathered) -> str:
    text = _rule_text(end, known.texts)
    if end.handle is None:
        return f"{end.place} {end.verdict.value}"
    comment = "" if end.comment is None or end.comment in (text or "") else end.comment
    named = f' "{comment}"' if comment else ""
    return f"{end.place}{named}: {text or end.verdict.value}"


def _rule_text(end: Ending, texts: Mapping[tuple[str, str, int], str]) -> str | None:
    if end.handle is None:
        return None
    return texts.get((end.family, end.table, end.handle))


# All else


def _surroundings(known: Gathered, blocks: bool | None) -> Iterator[Finding]:
    """Routes, tables that are full, and settings."""
    way, settings, source = known.way, known.settings, known.asked.flow.source.address
    if way.refusal is not None:
        yield Finding("route", f"the kernel does not route it: {way.refusal}", True)
    if settings.legacy_tables:
        names = ", ".join(settings.legacy_tables)
        text = f"iptables-legacy has rules, too, which are not read: {names}"
        yield Finding("rules", text)
    yield from _tables(known, blocks)
    if source.version == 4 and way.path[0] == "prerouting":
        yield from _rp_filter(way, settings, source)
    if settings.conntrack_helper:
        text = "nf_conntrack_helper is 1: the kernel's own helpers are attached by port"
        yield Finding("sysctl", text)
    else:
        state = "0" if settings.conntrack_helper == 0 else "not there"
        text = f"nf_conntrack_helper is {state}: rules alone attach helpers"
        yield Finding("sysctl", text)


def _tables(known: Gathered, blocks: bool | None) -> Iterator[Finding]:
    if known.status is None:
        return
    for name, fill in known.status["tables"].items():
        if fill is None or fill["used"] * 10 < fill["most"] * 9:
            continue
        full = fill["used"] >= fill["most"]
        text = f"the kernel's {name} table has {fill['used']} of {fill['most']}"
        # Without room for an entry a packet is dropped, for an expectation it is not.
        keeps_out = True if name == "conntrack" else blocks
        yield Finding("tables", text, keeps_out if full else False)


def _rp_filter(way: Way, settings: Settings, source: Address) -> Iterator[Finding]:
    if way.back is None:
        return
    modes = settings.rp_filter
    mode = modes.get(way.back, 0)
    text = (
        f"the route back to {source} is by {way.back}, whose rp_filter is "
        f"{_RP_FILTER.get(mode, mode)}"
    )
    others = sorted(
        name for name, each in modes.items() if each == _STRICT and name != way.back
    )
    if way.iif != way.back and way.iif in others:
        text += f"; it is strict on {way.iif}, where the flow is dropped"
        yield Finding("rp_filter", text, True)
        return
    if others:
        text += (
            f"; on {', '.join(others)} it is strict, and drops what comes from there"
        )
    yield Finding("rp_filter", text)
