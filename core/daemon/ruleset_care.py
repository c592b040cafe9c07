# SPDX-License-Identifier: GPL-2.0-or-later
"""Care for the ruleset while the daemon runs: told when it is lost, and put back.

A `flush ruleset`, such as Debian's nftables.service does at each reload, takes every
table away. Then nothing is tagged and nothing queued: what fails closed passes, too.
Flows that were tagged keep their helper and their expectations, and go on to be
inspected once the rules are there again. Those that began meanwhile have no helper.
"""

from collections.abc import Callable
from typing import Final

from cthelper.core.config import Config
from cthelper.core.daemon.backoff import pause
from cthelper.core.daemon.installation import Installation
from cthelper.core.daemon.log import Log
from cthelper.core.errors import CthelperError

# Seconds until it is put back: the first time none, then this, doubled each time that
# it is lost soon after it was put back. Whoever wants it gone is not fought for ever.
_PAUSE: Final = 1.0
_QUIET: Final = 60.0

_ADVICE: Final = {
    "restore": "to have it gone stop cthelper, or set daemon.lost_ruleset to warn",
    "warn": "a reload of cthelper puts it back",
}


class RulesetCare:
    """Looks whether the ruleset is there when somebody has touched it.

    `clock` gives seconds and only moves forward. `due` is when `act` is to be called;
    None: there is nothing to do. What fails is logged, and tried again after a while.
    """

    def __init__(
        self, installation: Installation, log: Log, clock: Callable[[], float]
    ) -> None:
        self.due: float | None = None
        self._installation = installation
        self._log = log
        self._clock = clock
        self._lost_at: float | None = None
        self._back_at: float | None = None
        self._again = 0

    @property
    def in_place(self) -> bool:
        """Whether the ruleset is there, as far as is known."""
        return self._lost_at is None

    def look(self, config: Config) -> None:
        """Somebody has touched a ruleset, be it another one or us."""
        try:
            if self._installation.touched():
                self._check(config)
        except CthelperError as error:
            self._failed(error)

    def act(self, config: Config) -> None:
        """Put it back where it is lost."""
        self.due = None
        try:
            if self._lost_at is None or config.daemon.lost_ruleset != "restore":
                self._check(config)
            else:
                self._installation.restore(config)
                self._is_back(self._lost_at)
        except CthelperError as error:
            self._again += 1
            self._failed(error)

    def _check(self, config: Config) -> None:
        missing = self._installation.missing(config)
        if missing and self._lost_at is None:
            self._is_lost(config)
        elif not missing and self._lost_at is not None:
            # By a reload, or by somebody else.
            self._is_back(self._lost_at)

    def _is_lost(self, config: Config) -> None:
        now = self._lost_at = self._clock()
        if self._back_at is None or now - self._back_at > _QUIET:
            self._again = 0
        else:
            self._again += 1
        action = config.daemon.lost_ruleset
        planned: dict[str, float] = {}
        if action == "restore":
            planned["seconds"] = self._pause()
            self.due = now + self._pause()
        closed = [name for name, each in config.helpers.items() if each.fail_closed]
        self._log.event(
            "ruleset-lost",
            "error" if closed else "warning",
            action=action,
            **planned,
            uninspected=",".join(config.helpers),
            **({"fail_closed": ",".join(closed)} if closed else {}),
            detail=_ADVICE[action],
        )

    def _is_back(self, lost_at: float) -> None:
        self._back_at = self._clock()
        self._lost_at = self.due = None
        gap = round(self._back_at - lost_at, 3)
        self._log.event("ruleset-restored", "warning", seconds=gap)

    def _pause(self) -> float:
        """Seconds to wait, which grow with each time in a row."""
        return pause(_PAUSE, self._again) if self._again else 0.0

    def _failed(self, error: CthelperError) -> None:
        self._log.event("step-failed", "error", detail=str(error))
        self.due = self._clock() + max(_PAUSE, self._pause())
