"""The dealer as the leader sees it: set up once a session, then corrections for one query after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ...protocols.beaver.source import Corrections, frames
from ...protocols.beaver.values import Tape
from ...protocols.channel import Channel
from ...protocols.crypten import calls
from ...protocols.crypten.tuples import Request
from ...protocols.errors import PeerError, PeerProtocolError
from ...protocols.states import KeptStates
from .messages import SAME_VERSION, PartRun, hear, hear_of
from .weights import Served


class RemoteDealer:
    """The leader's end of its connection with the dealer. One thread at a time uses it. Errors: `PeerError`."""

    def __init__(self, channel: Channel, served: Served) -> None:
        self.channel, self.served = channel, served

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

    def lead(
        self, number: int, key: bytes, part_run: PartRun | None = None, states: KeptStates | None = None
    ) -> tuple[list[Tape], dict[str, Any]]:
        """The leader's correlations of a query, run by run, with masks of this key; and what the dealer
        says of them. Errors: `SlotsBusy`, too."""
        part_run = part_run or PartRun()
        self._ask(number, part_run)
        tapes = self.served.lead(key, self.channel, self.served.correlations(part_run.part, part_run.runs), states)
        return tapes, hear_of(self.channel, "dealt", number)

    def frames(self, number: int) -> Iterator[bytearray]:
        """All corrections of a query as they come, for a file. Errors: `SlotsBusy`, too."""
        self._ask(number)
        for size in frames(self.served.correlations().layout):
            yield self.channel.recv(size)
        hear_of(self.channel, "dealt", number)

    def _ask(self, number: int, part_run: PartRun | None = None) -> None:
        self.channel.send_message({"query": number, **({} if part_run is None else part_run.message())})
        hear(self.channel, ("deal",))

    def tuple(self, request: Request, number: int) -> Corrections:
        """Ask for one of CrypTen's tuples, the `number`-th; its corrections are read next."""
        self.channel.send_message({"tuple": request.model_dump(mode="json"), "number": number})
        return Corrections(self.channel, calls.layout(request))

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
