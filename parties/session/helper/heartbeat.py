"""Tells a peer that this side lives, while the work it waits for takes longer than its timeout."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ....protocols.channel import Channel
from ....protocols.errors import PeerError

BEATS = 3  # in the time after which a silent peer counts as gone


class Heartbeat:
    """As a context: sends {"waiting": place} on `channel` all the while, from a thread of its own.

    When the peer is gone, `gone` is called once, from that thread; and leaving the context raises the peer's error,
    whatever else was raised. May be entered again.
    """

    def __init__(self, channel: Channel, gone: Callable[[], None]) -> None:
        self.place = 0
        self._channel, self._gone, self._every = channel, gone, channel.timeout / BEATS
        self._speaking = threading.Lock()  # a channel is used by one thread at a time

    @contextmanager
    def silent(self) -> Iterator[None]:
        """While the context's own thread uses the channel."""
        with self._speaking:
            yield

    def __enter__(self) -> Heartbeat:
        self.place = 0
        self._over, self._failures = threading.Event(), list[PeerError]()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="blindformer heartbeat")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failures and (kind is None or issubclass(kind, Exception)):
            raise self._failures[0] from None

    def _beat(self) -> None:
        while not self._over.wait(self._every):
            with self._speaking:
                if self._over.is_set():
                    return
                try:
                    self._channel.send_message({"waiting": self.place})
                except PeerError as error:
                    self._failures.append(error)
                    self._gone()
                    return
