"""One party's channels to all others, moving several messages at once.

Each channel belongs to one thread at a time. With one peer that is the caller's; with more, each peer gets a thread of
a pool while an exchange lasts, so that a round among N parties takes as long as the slowest pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import zip_longest

from ..channel import Buffer, Channel
from ..errors import PeerError

SETTLE_SECONDS = 1.0  # once one peer has failed: for the others to fail or to finish
_RELAYED = "stopped and said"  # how a channel words what its peer says of its own end


@dataclass
class Parcels:
    """What goes to one peer, and the sizes of what comes from it, each in order."""

    send: list[Buffer] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


class Mesh:
    """`channels`: by the peer's rank. Errors: PeerError of the peer that is the cause, as far as this side can tell."""

    def __init__(self, rank: int, channels: Mapping[int, Channel]) -> None:
        self.rank, self.channels = rank, dict(channels)
        self.ranks = sorted([rank, *channels])
        self._pool: ThreadPoolExecutor | None = None

    @property
    def size(self) -> int:
        return len(self.ranks)

    def exchange(self, parcels: Mapping[int, Parcels]) -> dict[int, list[bytearray]]:
        """Send and receive all of it; what came, by peer."""
        busy = [peer for peer, parcel in parcels.items() if parcel.send or parcel.sizes]
        if len(busy) <= 1:
            return {peer: _carry(self.channels[peer], parcels[peer]) for peer in busy}
        if self._pool is None:
            self._pool = ThreadPoolExecutor(len(self.channels), thread_name_prefix="mesh")
        work = {peer: self._pool.submit(_carry, self.channels[peer], parcels[peer]) for peer in busy}
        _, unfinished = wait(work.values(), return_when=FIRST_EXCEPTION)
        if unfinished:
            wait(unfinished, SETTLE_SECONDS)
        self._raise_cause(work)
        return {peer: future.result() for peer, future in work.items()}

    def close(self) -> None:
        """Forget the threads; the channels are the caller's."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _raise_cause(self, work: Mapping[int, Future[list[bytearray]]]) -> None:
        errors = [e for e in (f.exception() for f in work.values() if f.done()) if e is not None]
        for peer, future in work.items():
            if errors and not future.done():
                self.channels[peer].interrupt()  # it waits for somebody who waits for the one that failed
        if errors:
            # A peer that tells us of another's end is not the cause: the one that is gone is, if we saw that ourselves.
            raise next((e for e in errors if not (isinstance(e, PeerError) and _RELAYED in e.what)), errors[0])


def _carry(channel: Channel, parcels: Parcels) -> list[bytearray]:
    came = []
    for data, size in zip_longest(parcels.send, parcels.sizes):
        if size is None:
            channel.send(data)
        elif data is None:
            came.append(channel.recv(size))
        else:
            came.append(channel.exchange(data, size))
    return came
