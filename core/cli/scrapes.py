# SPDX-License-Identifier: GPL-2.0-or-later
"""An HTTP server for ``cthelper metrics``: one page, and no more than it can bear."""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from threading import BoundedSemaphore, Timer
from typing import Any, Final, Protocol, cast

from cthelper.core.control.place import answers, is_socket
from cthelper.core.errors import CthelperError
from cthelper.core.tuples import Address

PAGE: Final = "/metrics"

# At a time; each is cut off after so long, however slowly it asks or reads.
_CONNECTIONS: Final = 8
_SECONDS: Final = 20.0
_BUSY: Final = b"HTTP/1.0 503 Service Unavailable\r\n\r\n"
_OPENMETRICS: Final = "application/openmetrics-text"


class Expose(Protocol):
    """Gives the exposition and its type."""

    def __call__(self, *, openmetrics: bool) -> tuple[bytes, str]:
        """In OpenMetrics or in Prometheus' own format."""


class Scrapes(ThreadingMixIn, TCPServer):
    """Serves what `expose` gives at an address of a family. Raises OSError."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(
        self, family: socket.AddressFamily, address: Any, expose: Expose
    ) -> None:
        self.address_family = family
        self.allow_reuse_address = family is not socket.AF_UNIX
        self.expose = expose
        self._places = BoundedSemaphore(_CONNECTIONS)
        super().__init__(address, _Scrape)

    @property
    def where(self) -> str:
        """What to scrape."""
        address: Any = self.socket.getsockname()
        if isinstance(address, str):
            return address
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http://{host}:{address[1]}{PAGE}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, if there is room for one."""
        if self._places.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # no more threads
                self._places.release()
                self.shutdown_request(request)
        else:
            with suppress(OSError):
                request.send(_BUSY, socket.MSG_DONTWAIT)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, for so long at most."""
        end = Timer(_SECONDS, _cut, (request,))
        end.daemon = True
        try:
            end.start()
            super().process_request_thread(request, client_address)
        finally:
            end.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Tell what went wrong, but for who has asked and left."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Scrape(BaseHTTPRequestHandler):
    timeout = _SECONDS

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != PAGE:
            self.send_error(HTTPStatus.NOT_FOUND, f"the page is {PAGE}")
            return
        openmetrics = _OPENMETRICS in self.headers.get("Accept", "")
        text, kind = cast(Scrapes, self.server).expose(openmetrics=openmetrics)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nobody wants a line a scrape."""


@contextmanager
def scrapes(where: tuple[Address, int] | Path, expose: Expose) -> Iterator[Scrapes]:
    """A server at an address and port, or at a path, for its owner and group.

    Raises CthelperError where it cannot be.
    """
    try:
        if isinstance(where, Path):
            made = _at_path(where, expose)
        else:
            host, port = where
            family = socket.AF_INET if host.version == 4 else socket.AF_INET6
            made = Scrapes(family, (str(host), port), expose)
    except OSError as error:
        shown = where if isinstance(where, Path) else f"{where[0]} port {where[1]}"
        raise CthelperError(f"{shown}: {error.strerror or error}") from None
    with made:
        try:
            yield made
        finally:
            if isinstance(where, Path):
                where.unlink(missing_ok=True)


def _at_path(path: Path, expose: Expose) -> Scrapes:
    """Listen there, where nobody else does. Raises OSError."""
    if is_socket(path) and not answers(path):  # one that was killed has left it
        path.unlink(missing_ok=True)
    mask = os.umask(0o117)
    try:
        return Scrapes(socket.AF_UNIX, str(path), expose)
    finally:
        os.umask(mask)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # it has ended
        connection.shutdown(socket.SHUT_RDWR)
