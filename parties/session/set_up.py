"""The set-up of a session: the masked weights go from the model's owner, the leader, to the others, unless these have
them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...models.program.program import Program
from ...protocols.channel import Channel
from ...protocols.crypten.mesh import Mesh, Parcels
from ...protocols.errors import PeerProtocolError
from .cache import MaskedCache
from .messages import SAME_VERSION, Waiting, hear
from .weights import LINE_BYTES, CatalogueLine, MaskedWeights, as_tensor, catalogue_id, read_catalogue


def send_weights(masked: MaskedWeights, others: Mesh, **offer: object) -> int:
    """Offer the masked weights to all other parties, and send those that each has not. Returns the bytes sent.

    `offer`: what else the message of the offer says. Errors: `PeerError`.
    """
    for channel in others.channels.values():
        channel.send_message({"weights": masked.id, **offer})
        channel.send(masked.catalogue())
    wanted = {rank: channel.recv(len(masked.lines)) for rank, channel in others.channels.items()}
    sent = 0
    for at, line in enumerate(masked.lines):
        takers = [rank for rank, flags in wanted.items() if flags[at]]
        if takers:
            packed = masked.packed(line.name)
            others.exchange({rank: Parcels(send=[packed]) for rank in takers})
            sent += len(packed) * len(takers)
    return sent


class ReceivedWeights:
    """The masked weights that `leader` sends, with those that are in `cache`. `masked`: by name; `id`: of them all;
    `offer`: the leader's message; `downloaded`: bytes. Errors of all methods: `PeerError`."""

    def __init__(self, leader: Channel, program: Program, cache: MaskedCache | None = None) -> None:
        self.masked: dict[str, Tensor] = {}
        self.id, self.downloaded, self.offer = "", 0, dict[str, Any]()
        self._leader, self._model, self._shapes = leader, program.model, program.weight_shapes()
        self._cache = cache

    def receive(self, waiting: Waiting | None = None, progress: Callable[[int, int], None] | None = None) -> None:
        """Get all weights. `progress` is told how many of those to download are done."""
        self.offer = hear(self._leader, ("weights",), waiting)
        lines = read_catalogue(self._leader.recv(LINE_BYTES * len(self._shapes)), self._shapes)
        self.id = catalogue_id(lines)
        if self.offer["weights"] != self.id:
            raise PeerProtocolError(self._leader.peer, "names other weights than it lists", SAME_VERSION)
        if self._cache is not None:
            self._cache.note(self._model, lines)
            kept = {line.name: self._cache.load(line) for line in lines}
            self.masked = {name: weight for name, weight in kept.items() if weight is not None}
        missing = [line for line in lines if line.name not in self.masked]
        self._leader.send(bytes(line in missing for line in lines))
        for done, line in enumerate(missing, start=1):
            self.masked[line.name] = self._download(line)
            if progress:
                progress(done, len(missing))

    def _download(self, line: CatalogueLine) -> Tensor:
        content = self._leader.recv(line.bytes)
        if hashlib.sha256(content).hexdigest() != line.sha256:
            raise PeerProtocolError(self._leader.peer, "sent other weights than it announced", SAME_VERSION)
        self.downloaded += line.bytes
        if self._cache is not None:
            self._cache.keep(line, content)
        return as_tensor(content, line.shape)
