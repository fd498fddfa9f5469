"""The client in one delegated session: it runs the model, and carries its linear layers to the server."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...models.delegated.manifest import Manifest
from ...models.delegated.sequences import GroupCalls
from ...protocols.channel import Channel, Meter
from ...protocols.delegated.arithmetic import PassMasks, pack_ring, ring_bytes, unpack_ring
from ...protocols.delegated.group import ClientGroup, MaskedRows
from ...protocols.errors import PeerDeviated, PeerGone, PeerProtocolError
from ...protocols.rounds import HEAD
from ...protocols.seeds import new_seed
from ..config import UseStore
from ..receipts.statement import SessionFacts, SignedStatement, Signer
from ..transport.frames import printable
from .delegation import (
    MOST_RUNS,
    MOST_SEQUENCES,
    ROW,
    AskPass,
    Declare,
    DelegatedNotes,
    PassBlock,
    PublicWeights,
    StorePasses,
    corrections_bytes,
    deal,
    memory_bytes,
    parts_of,
    row_of,
    stored_for,
)
from .ledger import Entry
from .messages import (
    LimitReached,
    SlotsBusy,
    Waiting,
    amount,
    goodbye,
    out_of_place,
    read_missing,
    receive_expected,
    receive_for_query,
)
from .online import Answer, Progress, Timings, peak_rss_mb
from .preprocessed import BackgroundTask, query_key
from .preprocessing_store import PreprocessingStore, Proposals, Ref, StoreError
from .statements import vouched_for

BLOCK_BYTES, BLOCK_RUNS = 16_000_000, 16  # of corrections of equal passes that follow each other, made at once
OWN = "local"  # in the place of a dealer's address
OnPass = Callable[[str, Answer], None]


class DelegatingClient:
    """The client's end of one session, on its connection with the server, after the hello. It is a `Carrier`.

    groups       this side's groups, with its own check
    seed_dealer  leaves this side's seed with the dealer
    on_pass      called after each pass
    store        masks of passes to come, whose corrections the server has stored; bound to its folder
    use_store    "auto": those of the store first, then live ones; "only": never live ones; "off": never the store's
    session      the session's id
    dealt_by     who makes the corrections that are stored: the dealer's address
    own          in place of a dealer: what this side makes them with itself, so that nobody else ever has its masks

    A pass that ends in its midst ends the session: the masks that it has not used are never used. One that is refused
    before its first call (SlotsBusy, LimitReached) has used none, and may be asked for again.

    A pass of the store is marked as used, on the disk, before the server hears which one it is: what the server says
    of it makes no mask come twice. Masks are for one server, one dealer and one sequence of calls.

    Errors: StoreError, of one pass; PeerError; PeerDeviated for a wrong answer, before another message is sent.
    """

    signer: Signer | None = None  # of this side; only with it there are receipts

    def __init__(
        self,
        manifest: Manifest,
        groups: Sequence[ClientGroup],
        server: Channel,
        seed_dealer: Callable[[bytes], None],
        *,
        waiting: Waiting | None = None,
        on_pass: OnPass | None = None,
        store: PreprocessingStore | None = None,
        use_store: UseStore = "auto",
        session: str = "",
        dealt_by: str = "",
        own: PublicWeights | None = None,
    ) -> None:
        self.notes = DelegatedNotes(manifest, session)
        self.store, self.use_store, self.session, self.dealt_by, self.own = store, use_store, session, dealt_by, own
        self._proposals: dict[GroupCalls, Proposals] = {}
        self._unused: dict[GroupCalls, Entry] = {}  # marked as used, of passes that the server has refused
        self._marking: dict[GroupCalls, BackgroundTask[Entry | None]] = {}  # the same of passes to come
        self._row: tuple[Ref | None, int] = None, 0
        self._stored: GroupCalls = ()  # the sequence whose masks this session stores
        self.kept, self._live = 0, False
        self.manifest, self.groups, self.server, self.waiting, self.on_pass = manifest, groups, server, waiting, on_pass
        self._sizes = [(group.inputs, group.outputs) for group in groups]
        self._seed_dealer, self._seed = seed_dealer, new_seed()
        self._certificate = getattr(getattr(server, "certificate", None), "fingerprint", "")
        self._sequences: dict[GroupCalls, int] = {}
        self._number, self._dealt, self._block = 0, 0, -1  # next number; those below `dealt` go through `block`
        self._last = -1  # the sequence of the last pass
        self._in_pass, self.refused, self._process = False, False, os.getpid()
        self.open = True

    def set_up(self) -> None:
        """The dealer gets this side's seed, and the server its dealer: with a store, once they are needed."""
        if self.store is None or self.use_store == "off":
            self._go_live()

    def begin(self, sequence: GroupCalls) -> None:
        self.refused, started = False, time.perf_counter()
        if self._process != os.getpid():  # else two processes would use one number's masks
            raise PeerGone("server", "serves a session that another process has opened", "open a new session")
        try:
            number, key = self._stored_pass(sequence) or self._live_pass(sequence)
        except (SlotsBusy, LimitReached, StoreError):
            self.refused = True
            raise
        self._in_pass = True
        self._masks = PassMasks(key, self.manifest.digest, self._certificate, sequence)
        self._left, self._head = iter(sequence), ""
        self._draw()
        self._before, self._rounds, self._begun = self.server.meter.snapshot(), 0, time.perf_counter()
        self._offline_s, self._pass, self._sequence = self._begun - started, number, sequence

    def call(self, group: int, x: Tensor) -> Tensor:
        mine, (r, s) = self.groups[group], self._drawn
        values, parts = torch.empty(len(x), mine.outputs), parts_of(len(x))
        sent = list[MaskedRows]()
        for part in parts:
            sent.append(mine.mask(x[part], r[part]))
            self.server.send(pack_ring(sent[-1].masked, mine.ring))
        if not self._head:
            self._head = base64.b64encode(sent[0].masked.numpy().tobytes()[:HEAD]).decode()
        self._draw()  # while the server multiplies
        for part, rows in zip(parts, sent, strict=True):
            shape = (len(rows.q), mine.outputs)
            product = unpack_ring(self.server.recv(ring_bytes(shape, mine.ring)), shape, mine.ring)
            if not mine.open(rows, product, s[part], values[part]):
                what = "the server or the dealer has sent a wrong product, or computes with other weights"
                remedy = "nothing more was sent; ask elsewhere, or compare the models' digests"
                raise PeerDeviated("server", what, remedy)
        self._rounds += 1
        return values

    def _draw(self) -> None:
        """The masks of the next call."""
        if (call := next(self._left, None)) is not None:
            group, rows = call
            self._drawn = self._masks.next(rows, *self._sizes[group])

    def end(self) -> None:
        seconds, traffic = time.perf_counter() - self._begun, self.server.meter.since(self._before)
        done = receive_for_query(self.server, "done", self._pass, self.waiting)
        self._in_pass, answer = False, self._answer(seconds, traffic, done)
        self.notes.answered(answer.timings)
        if self.on_pass is not None:
            self.on_pass("", answer)

    def vouched(self) -> tuple[SessionFacts, tuple[SignedStatement, ...]]:
        """Between two passes: the session as this side saw it, and the others' statements. Errors: PeerError."""
        return vouched_for(self.server, self.notes, Meter(), self.manifest.digest, self._live, self.waiting)

    def abandon(self) -> None:
        if not self.refused:
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

    def precompute(self, sequence: GroupCalls, count: int, progress: Progress | None = None) -> None:
        """Have the corrections of `count` passes made and stored. `kept` counts those of this session, also after an
        error. All of one session are for one sequence. Errors: StoreError, SlotsBusy; the session goes on."""
        assert self.store is not None
        if self._stored != sequence:
            self.store.begin(self.session, self.manifest.digest, self._bound(sequence))
            self._stored = sequence
        if self.own is None:
            self._go_live()
        known, done = self._declare(sequence), 0
        while done < count:
            block = self._more(known, sequence, count - done, MOST_RUNS)
            self._number = self._dealt
            keys = [query_key(self._seed, number) for number in range(block.first, self._dealt)]
            self.server.send_message(
                StorePasses(store=block, mine=self.own is not None).model_dump(exclude_defaults=True)
            )
            reply = receive_expected(self.server, ("send", "stored", "full"), self.waiting)
            if "send" in reply and self.own is not None:
                for corrections in deal(self.own, keys, self._certificate, sequence):
                    self.server.send(corrections)
                self.notes.passed_on(sent=block.runs * corrections_bytes(self._sizes, sequence, self.manifest.ring))
                reply = receive_expected(self.server, ("stored", "full"), self.waiting)
            if "full" in reply:
                raise StoreError(self.server.peer, f"{printable(reply.get('what'))} (kept {done} of {count})")
            if reply.get("stored") != block.first:
                raise out_of_place(self.server)
            try:
                for number, key in enumerate(keys, block.first):
                    self.store.add(self.session, number, key)
            except StoreError:
                self.server.send_message({"stop": block.first})
                raise
            self.server.send_message({"kept": block.first})
            done, self.kept = done + block.runs, self.kept + block.runs
            if progress:
                progress("precompute", done, count)

    def _go_live(self) -> None:
        if not self._live:
            self._seed_dealer(self._seed)
            self.server.send_message({"live": True})
            receive_expected(self.server, ("live",), self.waiting)
            self._live = True

    def _stored_pass(self, sequence: GroupCalls) -> tuple[int, bytes] | None:
        """Number and key of a pass on stored corrections, which the server has, too; None: there are no more."""
        if self.store is None or self.use_store == "off":
            return None
        bound = self._bound(sequence)
        proposals = self._proposals.setdefault(sequence, Proposals(self.store, self.manifest.digest, bound))
        take = partial(self._take, self.store, proposals)
        while (entry := self._marked(sequence) or take()) is not None:
            ref, number = Ref(session=entry.session, number=entry.number), self._number
            self._number += 1
            ask = AskPass(query=number, sequence=self._declare(sequence), store=ref)
            self.server.send_message(ask.model_dump(exclude_defaults=True))
            try:
                reply = receive_expected(self.server, ("ready", "missing", "spent"), self.waiting)
            except (SlotsBusy, LimitReached):
                self._unused[sequence] = entry
                raise
            if "missing" in reply:
                proposals.learn(ref, read_missing(self.server, ref, reply))
            elif reply.get("ready") == number:
                self._ready, self._ahead = reply, True
                self._row = (ref, row_of(self._row, ref))
                if self._row[1] >= ROW:
                    self._marking[sequence] = BackgroundTask(take, "store")
                return number, entry.key
            elif "spent" not in reply:
                raise out_of_place(self.server)
        if self.use_store == "only":
            remedy = "make some with `blindformer precompute`, or allow live ones"
            where = f"holds no masks for {sequence[0][1]} rows, this model, server and dealer; {remedy}"
            raise StoreError(self.store.folder, where)
        return None

    def _marked(self, sequence: GroupCalls) -> Entry | None:
        """What was marked before, and not used."""
        marking = self._marking.pop(sequence, None)
        return self._unused.pop(sequence, None) if marking is None else marking.result([], "store")

    def _take(self, store: PreprocessingStore, proposals: Proposals) -> Entry | None:
        """The next masks of the store, used from now on whatever becomes of them."""
        while (ref := proposals.next()) is not None:
            if (entry := store.ledger.take(ref.session, ref.number)) is not None:
                return entry
        return None

    def _bound(self, sequence: GroupCalls) -> str:
        return stored_for(sequence, self._certificate, self.dealt_by if self.own is None else OWN)

    def _live_pass(self, sequence: GroupCalls) -> tuple[int, bytes]:
        self._go_live()
        number, ask = self._ask(self._declare(sequence), sequence)
        self.server.send_message(ask.model_dump(exclude_defaults=True))
        try:
            self._ready = receive_for_query(self.server, "ready", number, self.waiting)
        except (SlotsBusy, LimitReached):  # the session goes on, with numbers that nobody was asked for
            self._number = self._dealt
            raise
        self._ahead = False
        return number, query_key(self._seed, number)

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
        resume_same_mix, self._last = known == self._last, known
        if self._block != known or self._number >= self._dealt:
            block = self._more(known, sequence, BLOCK_RUNS if resume_same_mix else 1)
            self._number = block.first
        number, left = self._number, self._dealt - self._number
        self._number += 1
        runs = left
        half = max(1, self._most_runs(sequence) // 2)  # so that the server never holds more blocks than it takes
        ahead = self._more(known, sequence, BLOCK_RUNS) if resume_same_mix and left <= half else None
        return number, AskPass(query=number, sequence=known, runs=runs, ahead=ahead)

    def _more(self, known: int, sequence: GroupCalls, runs: int, most: int = BLOCK_RUNS) -> PassBlock:
        """Numbers that were dealt for another sequence are never used."""
        runs = min(runs, self._most_runs(sequence, most))
        first = self._dealt = max(self._number, self._dealt)
        self._dealt, self._block = first + runs, known
        return PassBlock(first=first, sequence=known, runs=runs)

    def _most_runs(self, sequence: GroupCalls, most: int = BLOCK_RUNS) -> int:
        """Passes of few rows go together in a model of any size: its dealer reads all weights for each block."""
        few = BLOCK_RUNS // max(rows for _, rows in sequence)
        return max(1, min(most, max(few, BLOCK_BYTES // memory_bytes(self._sizes, sequence))))

    def _answer(self, seconds: float, traffic: Meter, done: dict) -> Answer:
        timings = Timings(
            offline_s=self._offline_s,
            online_s=seconds,
            rounds=self._rounds,
            online=traffic,
            offline_bytes=0 if self._ahead else corrections_bytes(self._sizes, self._sequence, self.manifest.ring),
            ahead=self._ahead,
            peak_rss_mb=peak_rss_mb(),
            sent_head=self._head,
        )
        others = {
            "server_offline_s": amount(self._ready, "offline_s"),
            "dealer_s": amount(self._ready, "dealer_s"),
            "server_online_s": amount(done, "online_s"),
            "server_peak_rss_mb": amount(done, "peak_rss_mb"),
            "dealer_peak_rss_mb": amount(self._ready, "dealer_peak_rss_mb"),
            "own_dealer": float(self.own is not None),
        }
        return Answer({}, timings, others)
