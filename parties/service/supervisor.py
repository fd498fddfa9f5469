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


def supervise(service: ServedSessions, host: Host, ready: Callable[[], None]) -> None:
    """Serve until the host is told to stop and every child is gone. `ready` is called once signals are heard."""
    selector, limits = selectors.DefaultSelector(), host.limits
    children = Children(service, host, selector)

    def watch(source: Any, look: Callable[[], None]) -> None:
        selector.register(source, selectors.EVENT_READ, look)

    # A line to each child, be it a session's, a relay's, in the handshake or a measurement.
    lines = 2 * limits.sessions + limits.handshakes + limits.probes
    gc.collect()
    gc.freeze()  # a collection in a child would write to every page that it shares with the others
    with host.serving(children, service.identity, lines, watch, selector.unregister):
        ready()
        while not host.over:
            for key, _ in selector.select(host.tick):
                if selector.get_map().get(key.fd) is key:  # not gone by an earlier event of this turn
                    key.data()
            host.turn()
