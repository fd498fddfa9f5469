"""The client in one delegated session: it runs the model, and carries its linear layers to the server."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Sequence

from torch import Tensor

from ...models.delegated.manifest import Manifest
from ...models.delegated.sequences import GroupCalls
from ...protocols.channel import Channel, Meter
from ...protocols.delegated.arithmetic import pack_ring, ring_bytes, unpack_ring
from ...protocols.delegated.group import ClientGroup
from ...protocols.delegated.masks import PassMasks
from ...protocols.errors import PeerDeviated, PeerGone, PeerProtocolError
from ...protocols.rounds import HEAD
from ...protocols.seeds import new_seed
from .delegation import MOST_SEQUENCES, AskPass, Declare, PassBlock, corrections_bytes, memory_bytes
from .messages import Waiting, amount, goodbye, hear, hear_of
from .online import Answer, Timings, peak_rss_mb
from .preprocessed import query_key

BLOCK_BYTES, BLOCK_RUNS = 16_000_000, 16  # of corrections of equal passes that follow each other, made at once
OnPass = Callable[[str, Answer], None]


class DelegatingClient:
    """The client's end of one session, on its connection with the server, after the hello. It is a `Carrier`.

    groups       this side's groups, with its own check
    seed_dealer  leaves this side's seed with the dealer
    on_pass      called after each pass

    A pass that ends in its midst ends the session: the masks that it has not used are never used.

    Errors: PeerError; PeerDeviated for an answer that is wrong, before another message is sent.
    """

    def __init__(
        self,
        manifest: Manifest,
        groups: Sequence[ClientGroup],
        server: Channel,
        seed_dealer: Callable[[bytes], None],
        *,
        waiting: Waiting | None = None,
        on_pass: OnPass | None = None,
    ) -> None:
        self.manifest, self.groups, self.server, self.waiting, self.on_pass = manifest, groups, server, waiting, on_pass
        self._sizes = [(group.inputs, group.outputs) for group in groups]
        self._seed_dealer, self._seed = seed_dealer, new_seed()
        self._certificate = getattr(getattr(server, "certificate", None), "fingerprint", "")
        self._sequences: dict[GroupCalls, int] = {}
        self._number, self._dealt, self._block = 0, 0, -1  # next number; those below `dealt` go through `block`
        self._last = -1  # the sequence of the last pass
        self._in_pass, self._process = False, os.getpid()
        self.open = True

    def set_up(self) -> None:
        """The dealer gets this side's seed, and the server its dealer."""
        self._seed_dealer(self._seed)
        self.server.send_message({"live": True})
        hear(self.server, ("live",), self.waiting)

    def begin(self, sequence: GroupCalls) -> None:
        if self._process != os.getpid():  # else two processes would use one number's masks
            raise PeerGone("server", "serves a session that another process has opened", "open a new session")
        started = time.perf_counter()
        known = self._declare(sequence)
        number, ask = self._ask(known, sequence)
        self.server.send_message(ask.model_dump(exclude_defaults=True))
        self._ready = hear_of(self.server, "ready", number, self.waiting)
        self._in_pass = True
        self._masks = PassMasks(query_key(self._seed, number), self.manifest.digest, self._certificate, sequence)
        self._head = ""
        self._before, self._rounds, self._begun = self.server.meter.snapshot(), 0, time.perf_counter()
        self._offline_s, self._pass, self._sequence = self._begun - started, number, sequence

    def call(self, group: int, x: Tensor) -> Tensor:
        mine, rows = self.groups[group], len(x)
        r, s = self._masks.next(rows, mine.inputs, mine.outputs)
        sent = mine.mask(x, r)
        if not self._head:
            self._head = base64.b64encode(sent.masked.numpy().tobytes()[:HEAD]).decode()
        ring, answer = mine.ring, (rows, mine.outputs)
        self.server.send(pack_ring(sent.masked, ring))
        y = mine.unmask(unpack_ring(self.server.recv(ring_bytes(answer, ring)), answer, ring), s)
        self._rounds += 1
        if not mine.holds(sent, y):
            what = "the server or the dealer has sent a wrong product, or computes with other weights"
            raise PeerDeviated("server", what, "nothing more was sent; ask elsewhere, or compare the models' digests")
        return mine.finish(sent, y)

    def end(self) -> None:
        seconds, traffic = time.perf_counter() - self._begun, self.server.meter.since(self._before)
        done = hear_of(self.server, "done", self._pass, self.waiting)
        self._in_pass = False
        if self.on_pass is not None:
            self.on_pass("", self._answer(seconds, traffic, done))

    def abandon(self) -> None:
        self.close()

    def prepare(self) -> None:
        """Between two passes: have the corrections made of passes as the last one was."""
        if self._last >= 0 and self._block == self._last and self._number >= self._dealt:
            block = self._more(self._last, self._sequence, BLOCK_RUNS)
            self.server.send_message({"ahead": block.model_dump()})

    def close(self) -> None:
        was_open, self.open = self.open, False
        if was_open and self._process == os.getpid():
            if not self._in_pass:  # there the server waits for numbers
                goodbye(self.server)
            self.server.close()

    def _declare(self, sequence: GroupCalls) -> int:
        if sequence not in self._sequences:
            known = len(self._sequences)
            if known >= MOST_SEQUENCES:
                raise PeerProtocolError("server", "knows as many shapes as one session may have", "open a new session")
            self.server.send_message(Declare(declare=known, calls=[list(call) for call in sequence]).model_dump())
            self._sequences[sequence] = known
        return self._sequences[sequence]

    def _ask(self, known: int, sequence: GroupCalls) -> tuple[int, AskPass]:
        """Passes of one sequence that follow each other will go on: so their corrections are made in blocks."""
        goes_on, self._last = known == self._last, known
        if self._block != known or self._number >= self._dealt:
            block = self._more(known, sequence, BLOCK_RUNS if goes_on else 1)
            self._number = block.first
        number, left = self._number, self._dealt - self._number
        self._number += 1
        runs = left
        ahead = self._more(known, sequence, BLOCK_RUNS) if goes_on and left <= BLOCK_RUNS // 2 else None
        return number, AskPass(query=number, sequence=known, runs=runs, ahead=ahead)

    def _more(self, known: int, sequence: GroupCalls, runs: int) -> PassBlock:
        """Numbers that were dealt for another sequence are never used."""
        runs = max(1, min(runs, BLOCK_BYTES // memory_bytes(self._sizes, sequence)))
        first = self._dealt = max(self._number, self._dealt)
        self._dealt, self._block = first + runs, known
        return PassBlock(first=first, sequence=known, runs=runs)

    def _answer(self, seconds: float, traffic: Meter, done: dict) -> Answer:
        timings = Timings(
            offline_s=self._offline_s,
            online_s=seconds,
            rounds=self._rounds,
            online=traffic,
            offline_bytes=corrections_bytes(self._sizes, self._sequence, self.manifest.ring),
            peak_rss_mb=peak_rss_mb(),
            sent_head=self._head,
        )
        others = {
            "server_offline_s": amount(self._ready, "offline_s"),
            "dealer_s": amount(self._ready, "dealer_s"),
            "server_online_s": amount(done, "online_s"),
            "server_peak_rss_mb": amount(done, "peak_rss_mb"),
            "dealer_peak_rss_mb": amount(self._ready, "dealer_peak_rss_mb"),
        }
        return Answer({}, timings, others)
