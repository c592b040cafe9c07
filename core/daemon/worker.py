# SPDX-License-Identifier: GPL-2.0-or-later
"""One of several processes that share the flows: a server that does what it is told.

The supervisor tells it over a channel, and registers its helpers. Where the supervisor
has died, or serving fails, the worker has the kernel queue to it no more, answers what
waits, and ends.
"""

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from cthelper.core.config import Config
from cthelper.core.daemon.channel import Channel, Gone, Message, Order, fingerprint
from cthelper.core.daemon.installation import Installation
from cthelper.core.daemon.log import Log
from cthelper.core.daemon.server import Server
from cthelper.core.errors import CthelperError, RestartNeeded


class Worker:
    """Serves the queues of worker `number` with its part of the configuration.

    `read_config` reads the whole configuration again. Use `run`.
    """

    def __init__(
        self,
        number: int,
        config: Config,
        read_config: Callable[[], Config],
        channel: Channel,
    ) -> None:
        self._number = number
        self._config = config
        self._read_config = read_config
        self._channel = channel
        daemon = config.daemon
        self._log = Log(
            *(daemon.log_level, daemon.log_format),
            clock=time.monotonic,
            common={"worker": number},
        )
        self._orders: deque[Message] = deque()
        self._alone = False
        self._left = False

    def run(self) -> None:
        """Say that the queues are bound, or why not; serve until told to leave.

        Raises CthelperError, which is logged, where the queues cannot be served.
        """
        try:
            server = self._server = Server(self._config, self._log)
            server.open()
        except CthelperError as error:
            with suppress(Gone):
                self._channel.send({"error": str(error)})
            return
        server.watch(self._channel, self._listen)
        try:
            self._channel.send({})
            while not (self._left or self._alone):
                server.turn()
                while self._orders:
                    self._channel.send(self._obey(self._orders.popleft()))
        except Gone:
            self._alone = True
        except CthelperError as error:
            self._log.event("step-failed", "error", detail=str(error))
            raise
        finally:
            if not self._left:
                self._withdraw("supervisor-died" if self._alone else "failed")

    def _listen(self) -> None:
        """Take an order; it is done after this turn, since it may take turns itself."""
        if self._alone:
            return
        try:
            self._orders.append(self._channel.receive(0.0))
        except TimeoutError:
            return
        except Gone:
            self._alone = True

    def _obey(self, message: Message) -> Message:
        """Do what an order says; the answer."""
        server = self._server
        try:
            match message["order"]:
                case Order.PREPARE:
                    # Plugins are imported, and package metadata looked through.
                    config = server.meanwhile(self._read_config)
                    if fingerprint(config) != message["config"]:
                        raise RestartNeeded(
                            "the configuration has changed meanwhile: reload again"
                        )
                    server.prepare(config.by_worker[self._number])
                case Order.COMMIT:
                    server.commit()
                case Order.ABORT:
                    server.abort()
                case Order.DRAIN:
                    server.drain()
                case Order.LEAVE:
                    self._left = True
                    server.close()
                    return {"totals": {**server.totals, **self._log.counters}}
        except CthelperError as error:
            return {"error": str(error)}
        return {}

    def _withdraw(self, reason: str) -> None:
        """Leave without being told, and no packet behind."""
        installation = Installation(self._log)
        installation.attempt(lambda: installation.disable_named(self._server.names))
        installation.attempt(self._server.drain)
        self._server.close()
        self._log.event("withdrawn", "error", reason=reason, **self._server.totals)
