"""From settings to a service that serves: its port, its scratch folder, and what it says when it is ready."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import BlindformerError
from ...files import locked
from ...levels import level
from ..config import Address, ServiceSection, Settings
from ..launch import LocalOptions
from .logs import Log
from .metrics import Exporter
from .service import SECURITY_BITS, Service

BACKLOG = 128
INHERITED = "fd"  # in the place of a host: the port is a file descriptor
STALE_SECONDS = 60.0  # a folder that was made just now may not have its lock yet


class StartError(BlindformerError):
    """A service cannot start."""


def run(
    kind: type[Service],
    settings: Settings,
    announce: Callable[[Service], None] | None = None,
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
        service.run(listener, log, lambda: (announce or log_ready)(service), exporter, lifeline)


def bind(address: Address, backlog: int) -> socket.socket:
    """A listening socket; of fd:N, one that whoever started this process has opened. Errors: `StartError`."""
    try:
        if address.host == INHERITED:
            return socket.socket(fileno=address.port)
        family, _, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(where[:2], family=family, backlog=backlog)
        # For what the gateway accepts. asyncio sets it only where a socket says its protocol: a body would wait 40 ms
        # for the acknowledgement of its head.
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
                with locked(left, wait=False):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, locked(Path(folder)):
        yield Path(folder)


def log_ready(service: Service) -> None:
    """What a banner says, as an event."""
    limits, exporter = service.limits, service.exporter
    service.log.info(
        "ready",
        address=str(service.address),
        metrics=str(exporter.address) if exporter else "",
        adversary=service.adversary,
        helpers=service.helpers,
        together=service.together,
        security_bits=SECURITY_BITS,
        kernels=level(),
        programs=service.programs,
        what=service.about,
        sessions=limits.sessions,
        workers=limits.workers,
        queue=limits.queue,
        limit=service.limit,
        weights=list(service.commitments),
    )
