"""The dealer in one delegated session: W r - s for the passes to come. It sees the sequences of calls, and no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ...protocols.channel import Channel
from ...protocols.errors import PeerGone
from ..receipts.statement import Signer
from .compute_slots import ComputeSlots, Unlimited
from .dealing import SeedError
from .delegated_server import MEMORY_BYTES
from .delegation import Deal, DelegatedNotes, PublicWeights, deal
from .messages import read, read_number, refusing, requests
from .online import peak_rss_mb
from .preprocessed import query_key
from .vouching import REQUEST, vouch_as_dealer


class DelegatedDealer:
    """The dealer's end of one session, on the server's connection, after the hello.

    take_seed   returns the seed that the client left, once. Errors: `SeedError`
    memory      bytes that the corrections of one request may take
    session     the session's id; `signer`: signs what the dealer vouches for
    """

    def __init__(
        self,
        weights: PublicWeights,
        server: Channel,
        take_seed: Callable[[], Sequence[bytes]],
        *,
        admission: ComputeSlots | None = None,
        memory: float = MEMORY_BYTES,
        session: str = "",
        signer: Signer | None = None,
    ) -> None:
        self.session, self.signer = session, signer
        self.weights, self.server, self._take_seed, self.memory = weights, server, take_seed, memory
        self.admission = admission or Unlimited()
        self._certificate = getattr(getattr(server, "certificate", None), "fingerprint", "")

    def serve(self, on_query: Callable[[int, float], None] | None = None, idle: float | None = None) -> None:
        """Deal until the server says goodbye. Each number is dealt once. Errors: `PeerError`."""
        try:
            (seed,) = self._take_seed()
        except SeedError as error:  # for example after a restart of this dealer: a new session is enough
            raise PeerGone("client", "cannot be dealt to", str(error)) from None
        least, notes = 0, DelegatedNotes(self.weights.manifest, self.session)
        for message in requests(self.server, idle):
            if message == REQUEST:
                vouch_as_dealer(self.server, self.signer, notes)
                continue
            asked = read(self.server, Deal, message)
            first = read_number(self.server, {"deal": asked.deal}, "deal", least)
            sequence = self.weights.checked(self.server, asked.calls, asked.runs, self.memory)
            with refusing(self.server):
                with self.admission.slot(first, lambda place: self.server.send_message({"queued": place})):
                    least = first + asked.runs
                    self.server.send_message({"dealing": first})
                    started = time.perf_counter()
                    keys = [query_key(seed, number) for number in range(first, least)]
                    for corrections in deal(self.weights, keys, self._certificate, sequence):
                        self.server.send(corrections)
                    seconds = time.perf_counter() - started
                    self.server.send_message({"dealt": first, "seconds": seconds, "peak_rss_mb": peak_rss_mb()})
                notes.queries += asked.runs
                if on_query:
                    on_query(first, seconds)
