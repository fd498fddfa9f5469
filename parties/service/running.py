"""From settings to a service that serves: bind, load, say what is served, run."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...levels import level
from ...protocols.errors import BlindformerError
from ..config import Address, ServiceSection, Settings
from .admission import ServiceLimits
from .exporter import Exporter
from .host import Host
from .identity import Identity
from .local_options import LocalOptions
from .logs import Log
from .metrics import Metrics

SECURITY_BITS = 128  # AES-128 streams for the masks; TLS 1.3 between the parties
BACKLOG = 128
INHERITED = "fd"  # in the place of a host: the port is a file descriptor
STALE_SECONDS = 60.0  # a folder that was made just now may not have its lock yet


class StartError(BlindformerError):
    """A service cannot start."""


class StartedService:
    """A service, and what it says of itself when it begins to serve.

    role       whose section of the settings, and whose certificate it has
    bounds     of its limits, those that are no settings, where they are not the defaults
    programs   hashes, one a length; none where any program will do
    limit      how much one certificate may ask, where that is this service's business

    Errors: `BlindformerError`: a folder or a certificate that cannot be used.
    """

    role: Literal["server", "dealer", "helper"]
    bounds: Mapping[str, float] = {}
    adversary = "semi-honest parties that do not collude"
    helpers = about = limit = ""

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        """`scratch`: a folder of this service alone, with a short path."""
        self.settings, self.scratch, self.local = settings, scratch, local
        self.limits = ServiceLimits.of(getattr(settings, self.role), **self.bounds)
        self.timeout = settings.session.timeout
        self.identity = Identity(settings.certificates.folder, self.role)
        self.programs: list[str] = []

    def run(self, host: Host, ready: Callable[[], None]) -> None:
        """Serve until the host is told to stop. `ready` is called when it serves."""
        raise NotImplementedError


@dataclass(frozen=True)
class Announcement:
    """A service that has begun to serve."""

    service: StartedService
    address: Address
    metrics: Address | None


def run(
    kind: type[StartedService],
    settings: Settings,
    announce: Callable[[Announcement], None] | None = None,
    lifeline: int | None = None,
    local: LocalOptions | None = None,
) -> None:
    """Serve until a signal stops it, or the end of the pipe `lifeline`; SIGHUP reads the certificates again.

    announce   is told when it serves; without it the log is

    Errors: `StartError`, and those of a service of this kind.
    """
    if lifeline is not None and not stat.S_ISFIFO(os.fstat(lifeline).st_mode):
        raise StartError("the lifeline is no pipe; start the service from a program that holds the pipe's other end")
    mine: ServiceSection = getattr(settings, kind.role)
    log = Log(kind.role, mine.log_format)
    with bind(mine.listen, backlog=BACKLOG) as listener, scratch_folder(f"bf-{kind.role}-") as scratch:
        exporter = None if mine.metrics is None else Exporter(bind(mine.metrics, backlog=16), log)
        service = kind(settings, scratch, local or LocalOptions())

        def ready() -> None:
            metrics = Address(*exporter.address) if exporter else None
            said = Announcement(service, Address(*listener.getsockname()[:2]), metrics)
            log_ready(said, log) if announce is None else announce(said)

        service.run(Host(listener, service.limits, log, Metrics(), exporter, lifeline), ready)


def bind(address: Address, backlog: int) -> socket.socket:
    """A listening socket; of fd:N, one that whoever started this process has opened. Errors: `StartError`."""
    try:
        if address.host == INHERITED:
            return socket.socket(fileno=address.port)
        family, _, _, _, found = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(found[:2], family=family, backlog=backlog)
        # For what is accepted. asyncio sets it only where a socket says its protocol: a body would wait 40 ms for the
        # acknowledgement of its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        known = error.errno is not None and not isinstance(error, socket.gaierror)
        why = os.strerror(error.errno or 0) if known else error.strerror
        raise StartError(f"{address}: cannot listen there ({why}); choose another address or port") from None


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A folder of this process alone, with a short path, which is gone afterwards.

    One that was left behind, because its process was killed, is removed by the next: nobody holds its lock any more.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS and left.stat().st_uid == os.getuid():
                with _locked(left):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, _locked(Path(folder)):
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Errors: OSError if another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def log_ready(said: Announcement, log: Log) -> None:
    """What a banner says, as an event."""
    service, limits = said.service, said.service.limits
    log.info(
        "ready",
        address=str(said.address),
        metrics="" if said.metrics is None else str(said.metrics),
        adversary=service.adversary,
        helpers=service.helpers,
        security_bits=SECURITY_BITS,
        kernels=level(),
        programs=service.programs,
        what=service.about,
        sessions=limits.sessions,
        workers=limits.workers,
        queue=limits.queue,
        limit=service.limit,
    )
