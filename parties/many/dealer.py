"""The dealer of N parties. It sees no input, no weight, no opened value: seeds, keys of masks, and a program."""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from pydantic import ValidationError

from ...models.interpreter import interpret
from ...models.program import Program
from ...protocols.beaver.source import Corrections
from ...protocols.channel import Channel
from ...protocols.crypten import calls
from ...protocols.crypten.engine import ManyOfflineEngine, Owners
from ...protocols.crypten.source import ManyCount, ManyDealer
from ...protocols.crypten.tuples import Request
from ...protocols.errors import PeerError, PeerProtocolError, PeerRefused, PeerTimeout
from ...protocols.ring import Ring
from ...protocols.streams import SEED_BYTES, Stream, derive
from ...versions import spoken_version
from ..session import ProgramLimits, patient, peak_rss_mb, query_key, receive_program
from ..session.keys import masks
from ..session.meeting import HELLO_SECONDS, Refused
from ..session.messages import SAME_VERSION, Seed, read, read_number
from ..session.weights import WeightMasks, read_keys
from ..transport.frames import say_why
from ..transport.handshake import Hello, answer_hello
from ..transport.stream import StreamChannel
from ..transport.tls import Listener
from .roster import DEALER, LEADER, Roster


@lru_cache(maxsize=8)
def _layout(digest: str, held: tuple[tuple[str, int], ...], program: _Same) -> tuple[int, ...]:
    source = ManyCount()
    weights = {
        name: torch.empty(shape, dtype=torch.int64, device="meta")
        for name, shape in program.program.weight_shapes().items()
    }
    interpret(program.program, ManyOfflineEngine(source, Ring(program.program.ring), weights, dict(held)))
    return tuple(source.layout)


class _Same:
    """Hides the program from the cache's key: the hash stands for it."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same)


def layout(program: Program, owners: Owners) -> tuple[int, ...]:
    """Bytes of each of the dealer's corrections, in order: the same for any number of parties."""
    return _layout(program.hash(), tuple(sorted(owners.items())), _Same(program))


def tuple_masks(seed: bytes, number: int) -> Stream:
    """All masks of one of CrypTen's tuples at one party."""
    return masks(derive(seed, f"tuple {number}"))


class ManyDealerParty:
    """The dealer's end of one session: first every party's seed, then what the leader asks for.

    `wait`: seconds for all parties to come. Errors: `PeerError`; the leader is told.
    """

    def __init__(
        self,
        roster: Roster,
        *,
        wait: float = 60.0,
        timeout: float = 60.0,
        config: str = "",
        refused: Refused = lambda error: None,
    ) -> None:
        self.roster, self.wait, self.timeout, self.config, self.refused = roster, wait, timeout, config, refused
        self.seeds: dict[int, bytes] = {}
        self.first: Hello | None = None
        self.leader: StreamChannel | None = None
        self.limits = ProgramLimits()

    def gather(self, listener: Listener) -> None:
        """Every party's seed."""
        end = time.monotonic() + self.wait
        while len(self.seeds) < self.roster.size:
            try:
                channel = listener.accept(max(0.0, end - time.monotonic()), self.roster.names, self.refused)
            except PeerTimeout:
                missing = [name for rank, name in enumerate(self.roster.names) if rank not in self.seeds]
                what = f"did not come to the dealer in {self.wait:g} seconds"
                raise self._tell(PeerTimeout(", ".join(missing), what, "start it, or wait longer")) from None
            try:
                self._seed(channel)
            except PeerError as error:
                channel.close()
                raise self._tell(error) from None

    def serve(self, idle: float | None = None) -> None:
        """Answer the leader until it says goodbye. `idle`: seconds it may be silent between requests."""
        assert self.leader is not None
        assert self.first is not None
        leader, digest = self.leader, self.first.program
        owners: dict[str, int] = {}

        def fit(program: Program) -> None:
            owners.update(self.roster.sources(program))
            layout(program, owners)

        program = receive_program(leader, digest, self.limits, fit)
        shapes = program.weight_shapes()
        weights = WeightMasks(read_keys(leader.recv(len(shapes) * SEED_BYTES), shapes), shapes)
        leader.send_message({"dealing": True})
        ring, least, tuples = Ring(program.ring), 0, 0
        while True:
            with patient(leader, idle):
                message = leader.recv_message()
            if message.get("bye"):
                return
            if "tuple" in message:
                number = read_number(leader, message, "number", tuples)
                tuples = number + 1
                self._deal_tuple(leader, message["tuple"], number)
                continue
            number = read_number(leader, message, "query", least)
            least = number + 1
            corrections = Corrections(leader, layout(program, owners))
            started = time.perf_counter()
            source = ManyDealer([masks(query_key(seed, number)) for seed in self._in_order()], corrections)
            interpret(program, ManyOfflineEngine(source, ring, weights, owners))
            corrections.finish()
            seconds = time.perf_counter() - started
            leader.send_message({"dealt": number, "seconds": seconds, "peak_rss_mb": peak_rss_mb()})

    def close(self) -> None:
        if self.leader is not None:
            self.leader.close()

    def _seed(self, channel: StreamChannel) -> None:
        channel.timeout = min(self.timeout, HELLO_SECONDS)
        theirs = answer_hello(channel, self._answer, (channel.peer,))
        rank = self.roster.rank(channel.peer)
        if rank in self.seeds:
            what = "has left its seed already; every party takes part once"
            error = PeerRefused(channel.peer, what, "give each party a rank and a certificate of its own")
            say_why(channel, error)
            raise error
        self.first = self.first or theirs
        self.seeds[rank] = bytes.fromhex(read(channel, Seed, channel.recv_message()).seed)
        channel.send_message({"seeded": True})
        channel.timeout = self.timeout
        if rank == LEADER:
            self.leader = channel
        else:
            channel.close()

    def _answer(self, theirs: Hello) -> Hello:
        """The dealer runs what the parties name, but the same for all of them. It needs no CrypTen."""
        mine = theirs if self.first is None else self.first
        same = theirs.blindformer.partition("+")[0] == spoken_version()
        version = theirs.blindformer if same else spoken_version()
        return mine.model_copy(
            update={"blindformer": version, "role": DEALER, "config": self.roster.hash() + self.config}
        )

    def _deal_tuple(self, leader: Channel, asked: object, number: int) -> None:
        try:
            request = Request.model_validate(asked)
            if request.owner >= self.roster.size or calls.largest(request) > self.limits.value_bytes:
                raise PeerProtocolError(
                    leader.peer, "asked for a tuple that is too large for this dealer", SAME_VERSION
                )
        except (ValidationError, RuntimeError, ValueError, TypeError):
            raise PeerProtocolError(leader.peer, "asked for a tuple that there is not", SAME_VERSION) from None
        corrections = Corrections(leader, calls.layout(request))

        def source_of(of: int) -> ManyDealer:
            return ManyDealer([tuple_masks(seed, of) for seed in self._in_order()], corrections)

        calls.answer(request, number, source_of)
        corrections.finish()

    def _in_order(self) -> list[bytes]:
        return [self.seeds[rank] for rank in range(self.roster.size)]

    def _tell(self, error: PeerError) -> PeerError:
        if self.leader is not None:
            say_why(self.leader, error)
            self.leader.close()
        return error


__all__ = ["ManyDealerParty", "layout", "tuple_masks"]
