"""Server and dealer in one delegated session: products of public weights with noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ...models.delegated.sequences import GroupCalls
from ...protocols.channel import Channel, Meter
from ...protocols.delegated.arithmetic import linear32, pack_ring, ring_bytes, unpack_ring
from ...protocols.seeds import new_seed
from ..receipts.statement import Signer
from .dealing import DealRequest, Replay, SessionDealer
from .delegation import (
    MEMORY_BYTES,
    MOST_SEQUENCES,
    ROW,
    Ahead,
    AskPass,
    Deal,
    Declare,
    DelegatedNotes,
    PassBlock,
    PublicWeights,
    StorePasses,
    corrections_bytes,
    deal,
    parts_of,
    receive_dealt,
    row_of,
    stored_for,
)
from .messages import (
    ComputeSlots,
    Unlimited,
    amount,
    out_of_place,
    read,
    read_number,
    receive_expected,
    receive_for_query,
    refusing,
    requests,
)
from .online import OnQuery, Timings, peak_rss_mb
from .preprocessed import CLOSE_TIMEOUT, BackgroundTask, TaskQueue, query_key
from .preprocessing_store import Missing, PreprocessingStore, Ref, StoreError, answer_proposal
from .statements import REQUEST, vouch_as_server

BLOCKS = 3  # whose corrections are here or being made


@dataclass
class DealtBlock:
    """`corrections`: by call, int32 [runs, rows, outputs]. `report`: the dealer's."""

    corrections: list[Tensor]
    seconds: float
    report: dict[str, Any]


class DelegatedServer:
    """The server's end of one session, on the client's connection, after the hello.

    dealer   dials this session's dealer
    memory   bytes that the corrections of one block may take
    count    called once for each pass: LimitReached refuses it
    store    stored corrections; `client_id`: the fingerprint of the client's certificate, for which alone they are
    session  the session's id
    check_dealer  asked while the dealer is waited for: PeerError ends the session
    signer   signs what this side vouches for, if the client asks for a receipt

    Errors of `serve`: PeerError. Then `abort` the channels that `abandon` returns.
    """

    def __init__(
        self,
        weights: PublicWeights,
        client: Channel,
        dealer: Callable[[], Channel],
        *,
        admission: ComputeSlots | None = None,
        memory: float = MEMORY_BYTES,
        count: Callable[[int], None] | None = None,
        check_dealer: Callable[[], None] | None = None,
        store: PreprocessingStore | None = None,
        client_id: str = "",
        session: str = "",
        signer: Signer | None = None,
    ) -> None:
        self.signer, self.notes = signer, DelegatedNotes(weights.manifest, session)
        self.store, self.client_id, self.session = store, client_id, session
        self._stored: GroupCalls = ()  # the sequence whose corrections this session stores
        self._counted = False  # a pass that was refused since
        self._row: tuple[Ref | None, int] = None, 0
        self._coming: dict[tuple[Ref, GroupCalls], BackgroundTask[DealtBlock | dict[str, Any]]] = {}
        self.weights, self.client, self._dial, self.memory = weights, client, dealer, memory
        self.admission, self.count = admission or Unlimited(), count
        self.check_dealer = check_dealer
        self._sequences: list[GroupCalls] = []
        self._dealer: Channel | None = None
        self._background = TaskQueue()  # one after the other: they share the dealer's channel
        self._blocks: list[tuple[PassBlock, BackgroundTask[DealtBlock]]] = []
        self._least, self._dealt = 0, 0  # numbers that were not used, and not dealt

    def serve(self, on_query: OnQuery | None = None, idle: float | None = None) -> None:
        """Answer the client's requests until its goodbye. `idle`: seconds it may be silent between passes."""
        for message in requests(self.client, idle):
            if message.get("live"):
                self._go_live()
            elif "declare" in message:
                self._declare(read(self.client, Declare, message))
            elif "query" in message:
                ask = read(self.client, AskPass, message)
                timings = self._pass(ask)
                if timings is not None and on_query:
                    on_query(ask.query, timings)
            elif "store" in message:
                self._store(read(self.client, StorePasses, message))
            elif message == REQUEST:
                args = self.client, self._dealer, self._background, self.signer, self.notes
                vouch_as_server(*args, Meter(), self.weights.manifest.digest)
            else:
                self._begin(read(self.client, Ahead, message).ahead)

    def close(self) -> None:
        """End the session in order, after `serve`."""
        self._background.stop()
        if self._background.join(CLOSE_TIMEOUT) and self._dealer is not None:
            self._dealer.send_message({"bye": True})
        for channel in self.abandon():
            channel.close()

    def abandon(self) -> list[Channel]:
        """Stop the background tasks; returns the open channels, for the caller to abort."""
        self._background.end(self._dealer)
        return [self.client] if self._dealer is None else [self.client, self._dealer]

    def _go_live(self) -> None:
        if self._dealer is None:
            dialled = self._background.begin(self._dial, "dealer")
            self._dealer = dialled.result([self.client], "dealer", self.check_dealer)
        self.client.send_message({"live": True})

    def _declare(self, declared: Declare) -> None:
        if declared.declare != len(self._sequences) or declared.declare >= MOST_SEQUENCES:
            raise out_of_place(self.client)
        self._sequences.append(self.weights.checked(self.client, declared.calls, 1, self.memory))

    def _pass(self, ask: AskPass) -> Timings | None:
        read_number(self.client, {"query": ask.query}, "query", self._least)
        sequence = self._sequence(ask.sequence)
        timings = None
        with refusing(self.client), self.admission.slot(ask.query, self._queued):
            if self.count is not None and not self._counted:
                self.count(1)
            self._counted, started = True, time.perf_counter()
            kept = self._corrections(ask) if ask.store is None else self._take(ask.query, ask.store, sequence)
            if kept is None:
                return None
            (dealt, at), self._counted = kept, False
            self._least, offline = ask.query + 1, time.perf_counter() - started
            self.client.send_message(self._ready(ask.query, dealt, offline))
            if ask.ahead is not None:
                self._begin(ask.ahead)
            timings = self._rounds(sequence, dealt, at)
            timings.offline_s, timings.offline_bytes = offline, self._size(sequence)
            report = {"online_s": timings.online_s, "peak_rss_mb": timings.peak_rss_mb}
            self.notes.answered(timings)
            self.client.send_message({"done": ask.query, **report})
        return timings

    def _queued(self, place: int) -> None:
        self.client.send_message({"queued": place})

    def _rounds(self, sequence: GroupCalls, dealt: DealtBlock, at: int) -> Timings:
        started, before, ring = time.perf_counter(), self.client.meter.snapshot(), self.weights.ring
        for (group, rows), correction in zip(sequence, dealt.corrections, strict=True):
            inputs, parts = self.weights.sizes[group][0], parts_of(rows)
            shapes = [(part.stop - part.start, inputs) for part in parts]
            data = self.client.recv(ring_bytes(shapes[0], ring))
            for part, shape, following in zip(parts, shapes, [*shapes[1:], None], strict=True):
                masked = unpack_ring(data, shape, ring)
                answer = pack_ring(linear32(masked, self.weights.integers[group]).add_(correction[at][part]), ring)
                if following is None:
                    self.client.send(answer)
                else:
                    data = self.client.exchange(answer, ring_bytes(following, ring))
        traffic, seconds = self.client.meter.since(before), time.perf_counter() - started
        return Timings(online_s=seconds, rounds=len(sequence), online=traffic, peak_rss_mb=peak_rss_mb())

    def _ready(self, number: int, dealt: DealtBlock, seconds: float) -> dict[str, Any]:
        return {
            "ready": number,
            "offline_s": seconds,
            "dealer_s": amount(dealt.report, "seconds"),
            "dealer_peak_rss_mb": amount(dealt.report, "peak_rss_mb"),
        }

    def _corrections(self, ask: AskPass) -> tuple[DealtBlock, int]:
        """The block that has this pass, and its place there. Blocks before it are never used."""
        kept = [(block, task) for block, task in self._blocks if block.first + block.runs > ask.query]
        if not kept or kept[0][0].first > ask.query or kept[0][0].sequence != ask.sequence:
            kept = []
            self._blocks = []
            self._begin(PassBlock(first=ask.query, sequence=ask.sequence, runs=ask.runs))
            kept = self._blocks
        self._blocks = kept
        block, task = kept[0]
        at = ask.query - block.first
        dealt = task.result([self.client], "corrections", self.check_dealer)
        if at + 1 == block.runs:
            self._blocks = kept[1:]
        return dealt, at

    def _begin(self, block: PassBlock) -> None:
        """Have a block dealt in the background."""
        if len(self._blocks) >= BLOCKS:
            raise out_of_place(self.client)
        self._blocks.append((block, self._deal(block)))

    def _deal(self, block: PassBlock) -> BackgroundTask[DealtBlock]:
        sequence, channel, weights = self._next(block), self._dealer, self.weights
        if channel is None:
            raise out_of_place(self.client)

        def deal() -> DealtBlock:
            started = time.perf_counter()
            calls = [list(call) for call in sequence]
            channel.send_message(Deal(deal=block.first, runs=block.runs, calls=calls).model_dump())
            receive_expected(channel, ("dealing",))
            corrections = receive_dealt(channel, weights, sequence, block.runs)
            report = receive_for_query(channel, "dealt", block.first)
            return DealtBlock(corrections, time.perf_counter() - started, report)

        return self._background.begin(deal, "corrections")

    def _next(self, block: PassBlock) -> GroupCalls:
        """The sequence of a block whose numbers are used from now on. Errors: PeerProtocolError."""
        sequence = self._sequence(block.sequence)
        read_number(self.client, {"block": block.first}, "block", self._dealt)
        self.weights.checked(self.client, sequence, block.runs, self.memory)
        self._dealt = block.first + block.runs
        return sequence

    def _sequence(self, number: int) -> GroupCalls:
        if number >= len(self._sequences):
            raise out_of_place(self.client)
        return self._sequences[number]

    def _size(self, sequence: GroupCalls) -> int:
        return corrections_bytes(self.weights.sizes, sequence, self.weights.ring)

    def _store(self, asked: StorePasses) -> None:
        """Store a block: the dealer's, or the client's own."""
        block, sequence = asked.store, self._sequence(asked.store.sequence)
        if self._stored not in ((), sequence):
            raise out_of_place(self.client)
        digest, corrections = self.weights.manifest.digest, None
        try:
            if self.store is None:
                raise StoreError("server", "keeps no store; start it with one")
            if not self._stored:
                self.store.begin(self.session, digest, stored_for(sequence), self.client_id)
                self._stored = sequence
            self.store.room(block.runs * self._size(sequence), self.client_id)
            if asked.mine:
                self._next(block)
                self.client.send_message({"send": block.first})
                corrections = receive_dealt(self.client, self.weights, sequence, block.runs)
                self.notes.passed_on(received=block.runs * self._size(sequence))
            else:
                with refusing(self.client), self.admission.slot(block.first, self._queued):
                    dealt = self._deal(block).result([self.client], "corrections", self.check_dealer)
                    corrections = dealt.corrections
            if corrections is not None:
                keeping = partial(self._keep, self.store, block, corrections)
                self._background.begin(keeping, "store").result([self.client], "store")
                self.client.send_message({"stored": block.first})
                self._confirm(self.store, block)
        except StoreError as error:
            self.client.send_message({"full": block.first, "what": error.what})

    def _confirm(self, store: PreprocessingStore, block: PassBlock) -> None:
        """Without the client's keys they are of no use: then a sweep removes them."""
        kept = False
        try:
            kept = "kept" in receive_expected(self.client, ("kept", "stop"))
        finally:
            if not kept:
                store.ledger.doubt(self.session, block.first, block.first + block.runs)

    def _keep(self, store: PreprocessingStore, block: PassBlock, corrections: Sequence[Tensor]) -> None:
        for run in range(block.runs):
            self._background.step()
            # This side has no key of its own: the ledger's row has any.
            frames = (bytes(pack_ring(part[run], self.weights.ring)) for part in corrections)
            store.add(self.session, block.first + run, new_seed(), frames)

    def _take(self, number: int, ref: Ref, sequence: GroupCalls) -> tuple[DealtBlock, int] | None:
        """Stored corrections, marked as used; None where there are none, and the client knows it."""
        work = self._coming.pop((ref, sequence), None) or self._load(ref, sequence)
        loaded = work.result([self.client], "store")
        if not isinstance(loaded, DealtBlock):
            self.client.send_message(loaded | ({"spent": number} if "spent" in loaded else {}))
            return None
        self._row = ref, row_of(self._row, ref)
        if self._row[1] >= ROW:
            following = ref.model_copy(update={"number": ref.number + 1})
            self._coming = {(following, sequence): self._load(following, sequence)}
        return loaded, 0

    def _load(self, ref: Ref, sequence: GroupCalls) -> BackgroundTask[DealtBlock | dict[str, Any]]:
        """The corrections, or what to say in their place."""
        store, wanted = self.store, (self.weights.manifest.digest, stored_for(sequence), self.client_id)

        def load() -> DealtBlock | dict[str, Any]:
            started = time.perf_counter()
            try:
                entry = Missing(False, None) if store is None else answer_proposal(store, ref, *wanted)
                if isinstance(entry, Missing):
                    return entry.message(ref)
                assert store is not None
                content: Any = Replay(memoryview(store.fetch(entry)))
                if entry.bytes != self._size(sequence):
                    raise StoreError("server", "the corrections are another model's; they are spent: ask again")
            except StoreError as error:
                return {"spent": 0, "what": error.what}
            corrections = receive_dealt(content, self.weights, sequence, 1)
            return DealtBlock(corrections, time.perf_counter() - started, {})

        return self._background.begin(load, "store")


class DelegatedDealer(SessionDealer):
    """It sees no text. `take_seed`: returns the seed that the client left, once; the rest as of SessionDealer."""

    begins = "dealing"

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
        super().__init__(server, take_seed, admission, memory, session, signer)
        self.weights = weights
        self._certificate = getattr(getattr(server, "certificate", None), "fingerprint", "")

    def set_up(self) -> DelegatedNotes:
        (self._seed,) = self.others()
        return DelegatedNotes(self.weights.manifest, self.session)

    def asked(self, message: dict[str, Any], least: int) -> DealRequest:
        wanted = read(self.leader, Deal, message)
        first = read_number(self.leader, {"deal": wanted.deal}, "deal", least)
        sequence = self.weights.checked(self.leader, wanted.calls, wanted.runs, self.memory)
        return DealRequest(first, wanted.runs, lambda: self._deal(range(first, first + wanted.runs), sequence))

    def _deal(self, numbers: Sequence[int], sequence: GroupCalls) -> None:
        keys = [query_key(self._seed, number) for number in numbers]
        for corrections in deal(self.weights, keys, self._certificate, sequence):
            self.leader.send(corrections)
