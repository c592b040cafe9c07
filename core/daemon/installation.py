# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel holds of a running cthelper: registered helpers, and the ruleset."""

from collections.abc import Callable, Iterable

from cthelper import nft
from cthelper.core.config import Config
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.probe import NAME, UNKNOWN, Kernel, asked_with
from cthelper.core.daemon.ruleset import register, registrations, unregister
from cthelper.core.errors import CthelperError, RestartNeeded
from cthelper.core.netlink.nfnetlink_cthelper import HelperTable, Registration
from cthelper.core.netlink.nftables import TableEvents
from cthelper.core.queue.binding import bound_queues
from cthelper.core.tuples import Transport


class Installation:
    """Registers helpers and loads the ruleset, and remembers what there is to undo.

    Methods raise CthelperError; those that say so log it and go on.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._table = HelperTable()
        self._events = TableEvents(nft.TABLE)
        self._leavings: list[Registration] = []
        self._known: dict[tuple[str, int, Transport], Registration] = {}
        self._kernel = UNKNOWN
        self._asked_before = False
        # As long as it stays flows stay with their workers, also when the ruleset is
        # loaded anew.
        self._seed = nft.new_seed()

    def fileno(self) -> int:
        """The descriptor that becomes readable when anybody touches the ruleset."""
        return self._events.fileno()

    def close(self) -> None:
        """Close the sockets; everything stays as it is."""
        self._table.close()
        self._events.close()

    def take_over(self, config: Config) -> None:
        """Have what a daemon that was killed has left queue no more.

        Between binding a queue and setting its copy mode the kernel drops what comes to
        it (nfqnl_enqueue_packet in nfnetlink_queue.c), while packets for a queue that
        nobody has bound pass. Where a queue is bound its daemon lives, and whoever
        binds it will be told so.
        """
        present = self._table.list()
        self._leavings = [each for each in present if each.name in config.helpers]
        # Another daemon's, it may be, whose packets would be dropped with it.
        self._asked_before = any(each.name == NAME for each in present)
        # Rules that queue are of a table whose helpers are registered.
        if self._leavings and bound_queues().keys().isdisjoint(config.queues):
            nft.pause(config)

    def install(self, config: Config, kernel: Kernel) -> None:
        """Register the helpers and load the ruleset; the queues must be bound.

        `kernel` is what this one does.
        """
        self._kernel = kernel
        wanted = registrations(config.helpers.values())
        try:
            self._put(wanted)
        except RestartNeeded:
            # A daemon left them with other policies, or limits that stay as they are.
            nft.remove()
            unregister(self._table, self._leavings)
            self._put(wanted)
        self._load(config)

    def abandon(self) -> None:
        """Unregister what was not there before `take_over`; logs what fails."""
        before = {each.key for each in self._leavings}
        added = [each for key, each in self._known.items() if key not in before]
        self.attempt(lambda: self._unregister(added, asked=not self._asked_before))

    def change(self, config: Config) -> None:
        """Have these helpers and this ruleset in the place of those before.

        Where something fails it is all as it was before, unless the kernel does not
        keep a helper's limits (`Kernel`) and had them made equal. A helper that is not
        wanted any more stays registered until the end: when one is unregistered the
        kernel drops every packet that waits in any queue (nf_ct_iterate_destroy in
        nf_conntrack_core.c).
        """
        before = list(self._known.values())
        try:
            self._put(registrations(config.helpers.values()))
            self._load(config)
        except CthelperError:
            self.attempt(lambda: self._put(before))
            raise

    def touched(self) -> bool:
        """Whether anybody has touched the ruleset since the last call."""
        return self._events.touched()

    def missing(self, config: Config) -> bool:
        """Whether the ruleset is gone, or a part of it."""
        return nft.missing(config)

    def restore(self, config: Config) -> None:
        """Load a ruleset that was lost, and register what was unregistered with it."""
        self._put(registrations(config.helpers.values()))
        self._load(config)

    def remove(self) -> None:
        """Delete the ruleset and unregister all helpers; logs what fails.

        Let no packet wait in a queue meanwhile.
        """
        # A helper that a ruleset refers to goes on Linux 7.2, and must not.
        self.attempt(self._remove)

    def _remove(self) -> None:
        nft.remove()
        self._unregister(self._known.values(), asked=True)

    def _unregister(self, unwanted: Iterable[Registration], *, asked: bool) -> None:
        """Unregister these, and with `asked` what the kernel was asked with."""
        also = asked_with(self._table) if asked else []
        unregister(self._table, [*unwanted, *also])

    def attempt(self, step: Callable[[], None]) -> None:
        """Take a step after which others are wanted even where it fails."""
        try:
            step()
        except CthelperError as error:
            self._log.event("step-failed", "error", detail=str(error))

    def _load(self, config: Config) -> None:
        nft.install(config, self._seed, hands_down=self._kernel.hands_down)

    def _put(self, wanted: Iterable[Registration]) -> None:
        """Register or update helpers; all of them are unregistered at the end."""
        wanted = list(wanted)
        self._known |= {each.key: each for each in wanted}
        register(self._table, wanted, keeps_limits=lambda: self._kernel.keeps_limits)
