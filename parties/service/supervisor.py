"""The one process of a service that lives long: it accepts, forks a child for each connection, counts, and reaps.

It is a single thread around a selector and loads everything once, before the first fork, so that its children share
the weights page by page. What strangers send is read only by children; a child that crashes, hangs, lies or is killed
gives back what it held and touches nobody else. When the supervisor dies, every child's lifeline (control.py) closes.
"""

from __future__ import annotations

import gc
import selectors
from collections.abc import Callable
from typing import Any

from .children import Children, ServedSessions
from .host import Host


class Supervisor:
    """`run` serves until the host is told to stop and every child is gone. `ready` is called once signals are heard."""

    def __init__(self, service: ServedSessions, host: Host) -> None:
        self._service, self._host = service, host
        self._selector = selectors.DefaultSelector()
        self._children = Children(service, host, self._selector)

    def run(self, ready: Callable[[], None]) -> None:
        limits = self._host.limits
        # A line to each child, be it a session's, a relay's, in the handshake or a measurement.
        lines = 2 * limits.sessions + limits.handshakes + limits.probes
        gc.collect()
        gc.freeze()  # a collection in a child would write to every page that it shares with the others
        forget = self._selector.unregister
        with self._host.serving(self._children, self._service.identity, lines, self._watch, forget):
            ready()
            while not self._host.over:
                self._turn()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._host.tick):
            if self._selector.get_map().get(key.fd) is key:  # not gone by an earlier event of this turn
                key.data()
        self._host.turn()

    def _watch(self, source: Any, ready: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, ready)
