"""The server's live correlations without a dealer, in the place of a RemoteDealer (dealing.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from ...protocols.beaver.source import Corrections
from ...protocols.channel import Channel
from ...protocols.states import KeptStates
from .dealing import DealtRuns, Replay
from .masked_weights import Served
from .messages import PartRun
from .pair_corrections import PairCorrections
from .preprocessed import Pace, query_key
from .statements import SessionNotes


class PairDealing:
    """Makes each number's corrections with the client, in memory. Errors: those of PairCorrections."""

    def __init__(self, client: Channel, served: Served, notes: SessionNotes) -> None:
        self._client, self._served = client, served
        self._pair = PairCorrections(client, True, notes)
        self._seed = b""

    def set_up(self, seed: bytes) -> None:
        self._seed = seed
        self._pair.set_up()

    def lead(
        self,
        number: int,
        key: bytes,
        part_run: PartRun | None = None,
        states: KeptStates | None = None,
        pace: Pace | None = None,
    ) -> DealtRuns:
        content = memoryview(b"".join(self._made(number, key)))
        tapes = self._served.lead(key, cast(Channel, Replay(content)), self._served.correlations())
        return DealtRuns(tapes, {}, None)

    def frames(self, number: int) -> Iterator[bytearray]:
        yield from self._made(number, query_key(self._seed, number))

    def goodbye(self) -> None:
        """There is nobody else."""

    def _made(self, number: int, key: bytes) -> list[bytearray]:
        correlations = self._served.correlations()
        self._client.send_message({"make": number})
        kept = _Frames()
        self._pair.make(correlations, key, self._served.weights, Corrections(cast(Channel, kept), correlations.layout))
        return kept.frames


class _Frames:
    """Corrections in memory, written as to a channel."""

    def __init__(self) -> None:
        self.frames: list[bytearray] = []

    def send(self, frame: bytearray) -> None:
        self.frames.append(frame)
