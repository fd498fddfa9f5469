"""Live correlations without a dealer: server and client make the server's corrections on their own connection.

    both              base transfers and the server's lattice key, once, where a client asks for live correlations
    server -> client  make: the number of a query; now both make its corrections (protocols/pair)

What each makes of them, keeps and uses is what it would with a dealer, and so are the messages of the online phase. The
client has no part of the weights: the server's share of W is W. One query's corrections are made at a time, and nothing
else crosses the connection meanwhile. After an error the session ends, and the next one draws new seeds.

Stored correlations are of no use in the other mode: with a dealer both have a share of W. So the ledgers name other
weights here (`stored_weights`).

What only this mode needs is an extra, and is imported when a session has no dealer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ...models.program.correlations import Correlations
from ...models.program.program import Program
from ...protocols.beaver.source import Corrections
from ...protocols.channel import Buffer, Channel
from ...protocols.devices import CPU
from ...protocols.errors import BlindformerError, PeerProtocolError
from ..launch import check_no_dealer_extra
from .messages import SAME_VERSION
from .preprocessed import masks
from .statements import SessionNotes

if TYPE_CHECKING:
    from ...protocols.pair.declared import BothWays, SessionCosts
    from ...protocols.pair.source import PairWire
    from ...protocols.pair.steps import Pair

_COUNTED = ("sent", "received", "messages_sent", "messages_received")


def check_pair(program: Program, device: torch.device = CPU) -> None:
    """Errors: BlindformerError for what two parties alone cannot make correlations of, or not here."""
    from ...protocols.homomorphic.lattice import lattice

    check_no_dealer_extra()
    lattice()
    if device != CPU:
        raise BlindformerError(f"device {device}: correlations without a dealer are made on processors; leave it out")
    if program.parts:
        what = "is compiled for conversations, whose correlations take a dealer"
        raise BlindformerError(f"{program.model or 'this model'}: {what}; leave --dealer none out")


def stored_weights(commitment: str) -> str:
    """The weights that a ledger names of correlations that were made without a dealer."""
    return hashlib.sha256(b"without a dealer" + bytes.fromhex(commitment)).hexdigest()


class PairCorrections:
    """One party's end in a session. `leader`: the server; `notes`: get the traffic. One thread at a time uses it, and
    nothing else the channel.

    Errors of all methods: `PeerError`, `CorrelationError`.
    """

    def __init__(self, channel: Channel, leader: bool, notes: SessionNotes) -> None:
        self.channel, self.leader, self.notes = channel, leader, notes
        self._ready: tuple[Pair, PairWire] | None = None
        self._costs: SessionCosts | None = None
        self._watched = _WatchedChannel(channel)

    def set_up(self) -> None:
        from ...protocols.pair.declared import SessionCosts
        from ...protocols.pair.engines import set_up

        self._costs = SessionCosts()
        with self._working():
            self._ready = set_up(cast(Channel, self._watched), self.leader, bytes.fromhex(self.notes.session))

    def make(
        self,
        correlations: Correlations,
        key: bytes,
        weights: Mapping[str, Tensor],
        corrections: Corrections | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """A query's corrections, of masks of this key; `weights`, `corrections`: the server's. `progress`: gets the
        bytes that have crossed, and all that will."""
        if self._ready is None or self._costs is None:
            raise PeerProtocolError(self.channel.peer, "asked for correlations before it was set up", SAME_VERSION)
        pair, wire = self._ready
        if progress is not None:
            self._watch(progress, self._costs.of(correlations.pair_walk({})).total)
        with self._working():
            correlations.make(pair, masks(key), wire, weights, corrections)
        self._watched.moved = lambda: None

    def _watch(self, progress: Callable[[int, int], None], total: BothWays) -> None:
        before = self.channel.meter.snapshot()

        def moved() -> None:
            meter = self.channel.meter.since(before)
            progress(meter.sent + meter.received, total.to_client + total.to_server)

        self._watched.moved = moved

    @contextmanager
    def _working(self) -> Iterator[None]:
        """What does not decrypt, or has another size, came from the peer."""
        from ...protocols.homomorphic.lattice import HomomorphicError

        before = self.channel.meter.snapshot()
        try:
            yield
            moved = self.channel.meter.since(before)
            self.notes.passed_on(**{name: getattr(moved, name) for name in _COUNTED})
        except HomomorphicError as error:
            fault = str(error).partition(";")[0]
            raise PeerProtocolError(self.channel.peer, f"sent no such numbers ({fault})", SAME_VERSION) from None


class _WatchedChannel:
    """A channel, and what is called after each of its frames (`moved`)."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.moved: Callable[[], None] = lambda: None

    def send(self, data: Buffer) -> None:
        self._channel.send(data)
        self.moved()

    def recv(self, size: int) -> bytearray:
        data = self._channel.recv(size)
        self.moved()
        return data

    def exchange(self, data: Buffer, size: int) -> bytearray:
        data = self._channel.exchange(data, size)
        self.moved()
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self._channel, name)
