# SPDX-License-Identifier: GPL-2.0-or-later
"""Flows and expectations as JSON has them, for ``replay`` and the control socket."""

from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_address

from cthelper.core.errors import Malformed
from cthelper.core.tuples import Endpoint, Expectation, Network, Transport, Tuple

Record = dict[str, object]
"""What one line of JSON says."""


def time_text(seconds: float) -> str:
    """A time since 1970, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def flow_record(flow: Tuple) -> Record:
    """A flow by one of its tuples."""
    return {
        "transport": str(flow.transport),
        "source": str(flow.source),
        "destination": str(flow.destination),
    }


def pattern_record(
    transport: Transport,
    source: str | None,
    source_port: int | None,
    destination: Endpoint | str,
) -> Record:
    """The flows that an expectation admits; None stands for any."""
    return {
        "transport": str(transport),
        "source": source,
        "source_port": source_port,
        "destination": str(destination),
    }


def expects_record(expectation: Expectation) -> Record:
    """The flows that an expectation admits."""
    source = expectation.source
    return pattern_record(
        expectation.transport,
        None if source is None else network_text(source),
        expectation.source_port,
        expectation.destination,
    )


def network_text(network: Network) -> str:
    """An address, or a network of more than one."""
    return str(network).removesuffix("/32" if network.version == 4 else "/128")


def read_transport(name: object) -> Transport:
    """The transport of this name. Raises ValueError."""
    for each in Transport:
        if str(each) == name:
            return each
    raise ValueError(f"{name} is neither tcp nor udp")


def read_endpoint(text: object) -> Endpoint:
    """What ``10.0.0.1:53`` or ``[2001:db8::1]:53`` says. Raises ValueError."""
    address, colon, port = str(text).rpartition(":")
    if not (colon and port.isdecimal() and port.isascii()):
        raise ValueError(f"{text} is no address:port")
    bracketed = address.startswith("[") and address.endswith("]")
    found = ip_address(address[1:-1] if bracketed else address)
    if bracketed is not (found.version == 6):
        raise ValueError(f"{text} is no address:port; of IPv6 it is [address]:port")
    try:
        return Endpoint(found, int(port))
    except Malformed as error:
        raise ValueError(f"{text}: {error}") from None


def read_flow(record: object) -> Tuple:
    """The tuple that `flow_record` has told. Raises ValueError."""
    if not isinstance(record, Mapping):
        raise ValueError("the flow is no object")
    return Tuple(
        read_transport(record.get("transport")),
        read_endpoint(record.get("source")),
        read_endpoint(record.get("destination")),
    )
