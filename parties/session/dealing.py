"""The dealer as the server sees it: set up once a session, then corrections for one query after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ...models.pricing import price
from ...protocols.beaver.source import Corrections, frames
from ...protocols.channel import Channel
from ...protocols.errors import PeerError, PeerProtocolError
from .messages import SAME_VERSION, hear, read_busy
from .weights import Served


class RemoteDealer:
    """The server's end of its connection with the dealer. One thread at a time uses it. Errors: `PeerError`."""

    def __init__(self, channel: Channel, served: Served) -> None:
        self.channel, self.served = channel, served
        self.layout = price(served.program).layout

    def set_up(self, seed: bytes) -> None:
        """Hand over this side's seed and the keys of the masks B, and the program if the dealer does not know it."""
        self.channel.send_message({"seed": seed.hex()})
        message = hear(self.channel, ("need",))
        if message["need"] == "program":
            text = self.served.program.to_json().encode()
            self.channel.send_message({"program": len(text)})
            self.channel.send(text)
            message = hear(self.channel, ("need",))
        if message["need"] != "weights":
            raise PeerProtocolError(self.channel.peer, "needs what this side does not know of", SAME_VERSION)
        self.channel.send(self.served.masked.all_keys())
        hear(self.channel, ("dealing",))

    def begin(self, number: int) -> Corrections:
        """Ask for the corrections of a query; they are read next, then `end`. Errors: `Busy`, too."""
        self.channel.send_message({"query": number})
        message = hear(self.channel, ("deal", "busy"))
        if "busy" in message:
            raise read_busy(self.channel, message)
        return Corrections(self.channel, self.layout)

    def end(self, number: int) -> dict:
        """What the dealer says of the query when all is sent."""
        message = hear(self.channel, ("dealt",))
        if message["dealt"] != number:
            raise PeerProtocolError(self.channel.peer, "dealt for another query", SAME_VERSION)
        return message

    def frames(self, number: int) -> Iterator[bytearray]:
        """All corrections of a query as they come, for a file. Errors: `Busy`, too."""
        self.begin(number)
        for size in frames(self.layout):
            yield self.channel.recv(size)
        self.end(number)

    def goodbye(self) -> None:
        with suppress(PeerError):  # if it is gone already, there is nobody to say goodbye to
            self.channel.send_message({"bye": True})


class Replay:
    """Corrections from a file, with the face that `Corrections` reads from."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._at = content, 0

    def recv(self, size: int) -> bytearray:
        found = bytearray(self._content[self._at : self._at + size])
        self._at += size
        return found
