"""Addresses of parties: host and port, as they are written and read."""

from __future__ import annotations

import ipaddress
import re
from ipaddress import IPv6Network
from typing import NamedTuple

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
FORM = 'should be "host:port", such as "server.example:7443" or "[::1]:7443"'


class Address(NamedTuple):
    """Where a party is dialled, or listens. A tuple, so that it unpacks as (host, port)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def network_of(host: str) -> str:
    """Whose connections count as one peer's: an IPv4 address, or the /64 of an IPv6 one, which a single machine has."""
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))


def is_loopback(host: str) -> bool:
    """Whether only this machine can mean itself by it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def parse_address(text: str) -> Address:
    """`host:port`; an IPv6 host stands in brackets. Port 0 (a free one) is for listening.

    Errors: ValueError, one line.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or len(port) > 5:
        raise ValueError(FORM)
    if int(port) > 65535:
        raise ValueError(f"port {port} does not exist; ports are 1 to 65535")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    try:
        six = ipaddress.ip_address(host.partition("%")[0]).version == 6
    except ValueError:
        if bracketed or not _HOST_NAME.fullmatch(host) or len(host) > 253:
            raise ValueError(FORM) from None
    else:
        if six != bracketed:
            raise ValueError("an IPv6 host stands in brackets, and no other does; " + FORM)
    return Address(host, int(port))
