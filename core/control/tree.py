# SPDX-License-Identifier: GPL-2.0-or-later
"""Control flows, what each has announced, and the flows that came of it.

The kernel knows entries, each with the flow that expected it, and expectations; the
servers know what is inspected. Here they come together.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cthelper.core.control.matching import Ends, Filter, in_state
from cthelper.core.netlink.listing import Listed
from cthelper.core.records import Record, expects_record, flow_record, time_text
from cthelper.core.tuples import Expectation, FlowKey, Tuple, key_of

Place = tuple[Tuple, int]
"""A flow by its original tuple and zone."""


@dataclass(slots=True)
class Branch:
    """A control flow, or one that is gone and has left data flows.

    `listed` is None where it is gone.
    """

    original: Tuple
    zone: int
    listed: Listed | None = None
    expectations: list[Expectation] = field(default_factory=list)
    flows: list[Listed] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Known:
    """What a server knows of a flow: `finished` says why it is inspected no longer."""

    worker: int
    finished: str | None


def branches(
    entries: Iterable[Listed],
    expectations: Iterable[Expectation],
    helpers: Iterable[str],
    *,
    others: bool = False,
) -> Iterator[Branch]:
    """The control flows of these helpers, with what is theirs.

    With `others` also all entries that have no such helper and that nobody expected, as
    they come: there may be very many.
    """
    names = set(helpers)
    found: dict[Place, Branch] = {}
    children: list[Listed] = []
    # Control flows of helpers of the kernel's, and of other programs.
    elsewhere: set[Place] = set()
    for each in entries:
        entry = each.entry
        if entry.master is not None:
            children.append(each)
        place = entry.original, entry.zone
        if entry.helper in names or (others and entry.helper is not None):
            found[place] = Branch(*place, each)
        elif entry.helper is not None:
            elsewhere.add(place)
        elif others and entry.master is None:
            yield Branch(*place, each)
    for expectation in expectations:
        branch = found.get((expectation.master, expectation.zone))
        if branch is not None:
            branch.expectations.append(expectation)
    for child in children:
        assert child.entry.master is not None  # noqa: S101 - as they were chosen
        place = child.entry.master, child.entry.zone
        if place in elsewhere:
            continue
        found.setdefault(place, Branch(*place)).flows.append(child)
    for branch in found.values():
        listed = branch.listed
        expected = listed is not None and listed.entry.master is not None
        # One that was expected and announces nothing stands where it was expected.
        if not expected or branch.expectations or branch.flows:
            yield branch


def meant(branch: Branch, wanted: Filter) -> bool:
    """Whether a filter means a control flow, what it expects, or what came of it."""
    listed = [*([branch.listed] if branch.listed is not None else []), *branch.flows]
    helper = None if branch.listed is None else branch.listed.entry.helper
    if not wanted.concerns(helper, branch.zone):
        return False
    if wanted.state is not None:
        listed = [each for each in listed if in_state(each, wanted.state)]
        return any(wanted.admits(Ends.of(each.entry.original)) for each in listed)
    return any(
        wanted.admits(each)
        for each in (
            Ends.of(branch.original),
            *(Ends.of(each.entry.original) for each in listed),
            *(Ends.expected(each) for each in branch.expectations),
        )
    )


def branch_record(
    branch: Branch,
    known: Mapping[FlowKey, Known],
    policies: Mapping[str, tuple[str, ...]],
) -> Record:
    """A control flow for JSON; `policies` are those of each helper, in their order."""
    flows = [_entry_record(each, known, policies) for each in branch.flows]
    if branch.listed is None:
        return {
            "gone": True,
            "flow": flow_record(branch.original),
            "zone": branch.zone,
            "expectations": [],
            "flows": flows,
        }
    names = policies.get(branch.listed.entry.helper or "", ())
    return {
        "gone": False,
        **_entry_record(branch.listed, known, policies),
        "expectations": [
            expectation_record(each, names) for each in branch.expectations
        ],
        "flows": flows,
    }


def expectation_record(expectation: Expectation, policies: tuple[str, ...]) -> Record:
    """An expectation for JSON; `policies` are its helper's, in their order."""
    class_ = expectation.class_
    return {
        "policy": policies[class_] if class_ < len(policies) else None,
        "expects": expects_record(expectation),
        "permanent": expectation.permanent,
        "timeout": expectation.timeout,
    }


def entry_record(listed: Listed) -> Record:
    """An entry for JSON, as the kernel has it."""
    entry = listed.entry
    counts = [each for each in (listed.sent, listed.answered) if each is not None]
    counted = len(counts) == 2
    return {
        "flow": flow_record(entry.original),
        "reply": flow_record(entry.reply),
        "zone": entry.zone,
        "id": entry.id,
        "helper": entry.helper,
        "state": listed.state,
        "answered": entry.answered,
        "assured": entry.assured,
        "timeout": entry.timeout,
        "mark": entry.mark,
        "packets": [each.packets for each in counts] if counted else None,
        "bytes": [each.bytes for each in counts] if counted else None,
        "began": _moment(listed.began),
        "ended": _moment(listed.ended),
    }


def _moment(nanoseconds: int) -> str | None:
    """A time since 1970; None: it is not known."""
    if not nanoseconds:
        return None
    return time_text(nanoseconds / 1e9)


def _entry_record(
    listed: Listed,
    known: Mapping[FlowKey, Known],
    policies: Mapping[str, tuple[str, ...]],
) -> Record:
    entry = listed.entry
    found = known.get(key_of(entry)) if entry.helper in policies else None
    if entry.helper not in policies:
        inspection = None
    elif found is None:
        # Nothing of it was read yet, or it was forgotten.
        inspection = "unknown"
    else:
        inspection = "inspected" if found.finished is None else "finished"
    return {
        **entry_record(listed),
        "inspection": inspection,
        "reason": None if found is None else found.finished,
        "worker": None if found is None else found.worker,
    }
