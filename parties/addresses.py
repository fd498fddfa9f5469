"""Addresses of parties: host and port, as they are written and read."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any, NamedTuple

import psutil

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
Place = str | IPv4Network | IPv6Network  # a host, or a range of addresses
FORM = 'should be "host:port", such as "server.example:7443" or "[::1]:7443"'


class Address(NamedTuple):
    """Where a party is dialled, or listens. A tuple, so that it unpacks as (host, port)."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ReplicatedAddress(Address):
    """One that may send a session on: to its own host, and to the places `replicas_at`."""

    replicas_at: Sequence[Place]

    def __new__(cls, host: str, port: int, replicas_at: Sequence[Place] = ()) -> ReplicatedAddress:
        address = super().__new__(cls, host, port)
        address.replicas_at = replicas_at
        return address

    def covers(self, host: str) -> bool:
        """Whether a session may be sent to `host`: a name as it is written; an address also where the own host has it
        (this machine has several), or where a range holds it."""
        if host in (self.host, *self.replicas_at):
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        ranges = [place for place in self.replicas_at if not isinstance(place, str)]
        return any(address in one for one in ranges) or str(address) in _addresses_of(self.host)


def network_of(host: str) -> str:
    """Whose connections count as one peer's: an IPv4 address, or the /64 of an IPv6 one, which a single machine has."""
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))


def _addresses_of(host: str) -> set[str]:
    try:
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return set()
    if any(ipaddress.ip_address(one.partition("%")[0]).is_loopback for one in addresses):
        addresses |= {one.address for of in psutil.net_if_addrs().values() for one in of}
    return addresses


def is_loopback(host: str) -> bool:
    """Whether only this machine can mean itself by it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def parse_place(given: Any) -> Place:
    """A host, an address, or a range of addresses. Errors: ValueError, one line."""
    try:
        return given if _HOST_NAME.fullmatch(given) else ipaddress.ip_network(given)
    except (TypeError, ValueError):
        raise ValueError('should be a host, an address, or a range of these such as "10.1.0.0/16"') from None


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
