"""The dealer of any number of parties, and the leader's end of its connection with the dealer.

The dealer sees no input, no weight, no opened value: only the parties' seeds, the keys of the weight masks, and a
program. It needs no file: the leader, who owns the model (of two parties: the server), sends it the program.

    SessionDealer        the dealer's end of one session, of every protocol; DealerParty: with masked weights
    TupleDealer          CrypTen's tuples, dealt on request: their masks follow from the parties' seeds, too
    RemoteDealer         the leader's end: set up once a session, then corrections for one query after the other
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from pydantic import ValidationError
from torch import Tensor

from ...models.program.correlations import Correlations
from ...models.program.interpreter import interpret
from ...models.program.program import Program
from ...models.program.two_server import audit_traffic
from ...protocols.beaver.source import Corrections, paced
from ...protocols.beaver.values import Tape
from ...protocols.channel import Channel
from ...protocols.clear import ShapesEngine
from ...protocols.crypten import calls
from ...protocols.crypten.engine import Owners
from ...protocols.crypten.source import NPartyDealer
from ...protocols.crypten.tuples import Request
from ...protocols.devices import CPU, room
from ...protocols.errors import PeerError, PeerGone, PeerProtocolError
from ...protocols.operations import of_kind
from ...protocols.states import KeptStates
from ...protocols.streams import SEED_BYTES, Stream, derive
from ..receipts.statement import Signer
from .audits import AuditToken, Draw, draw_audit_token, is_drawn, receive_audit_token
from .masked_weights import Served, WeightMasks, read_keys
from .messages import (
    SAME_VERSION,
    ComputeSlots,
    PartRun,
    Unlimited,
    goodbye,
    out_of_place,
    read,
    read_number,
    read_seed,
    receive_expected,
    receive_for_query,
    refusing,
    requests,
)
from .online import may_run, peak_rss_mb
from .preprocessed import GB, BackgroundTask, Pace, masks, query_key
from .rendezvous_two import SeedError
from .statements import REQUEST, SessionNotes, vouch_as_dealer


def tuple_masks(seed: bytes, number: int) -> Stream:
    """All masks of one of CrypTen's tuples at one party."""
    return masks(derive(seed, f"tuple {number}"))


class TupleDealer:
    """At the dealer. `seeds`: of all parties, by rank; `value_bytes`: the limit of a tuple's largest value."""

    def __init__(self, leader: Channel, seeds: Sequence[bytes], value_bytes: int) -> None:
        self._leader, self._seeds, self._value_bytes = leader, seeds, value_bytes
        self._least = 0  # number of the next tuple

    def deal(self, message: Mapping[str, Any]) -> None:
        """Deal the tuple that the leader asks for. Errors: `PeerProtocolError`."""
        number = read_number(self._leader, message, "number", self._least)
        self._least = number + 1
        try:
            request = Request.model_validate(message["tuple"])
            too_large = request.owner >= len(self._seeds) or calls.largest(request) > self._value_bytes
        except (ValidationError, RuntimeError, ValueError, TypeError):
            raise PeerProtocolError(self._leader.peer, "asked for a tuple that there is not", SAME_VERSION) from None
        if too_large:
            raise PeerProtocolError(
                self._leader.peer, "asked for a tuple that is too large for this dealer", SAME_VERSION
            )
        corrections = Corrections(self._leader, calls.layout(request))

        def source_of(number: int) -> NPartyDealer:
            return NPartyDealer([tuple_masks(seed, number) for seed in self._seeds], corrections)

        calls.answer(request, number, source_of)
        corrections.finish()


PROGRAM_BYTES, TUPLE_BYTES = 16 * 2**20, 2 * 2**30  # of a program's JSON, and of the largest value of CrypTen's tuples
MEMORY_BYTES = 16 * GB  # for the correlations of one query, unless the dealer's settings say otherwise


class Programs(Protocol):
    """The programs that a dealer knows, by hash."""

    def get(self, hash: str, /) -> Program | None: ...
    def __setitem__(self, hash: str, program: Program, /) -> None: ...


class DealRequest(NamedTuple):
    """What a leader asks for: the numbers from `first` on, of so many runs. `deal` makes and sends it."""

    first: int
    runs: int
    deal: Callable[[], None]


class SessionDealer(ABC):
    """The dealer's end of one session, on the leader's connection, after the hello. Each number is dealt once.

    others   returns the seeds of all parties but the leader, by rank, once. Errors: `SeedError`
    memory   bytes that the correlations of one request may take while they are made
    session  the session's id; `signer`: signs what the dealer vouches for
    """

    begins = "deal"
    """The message before what is dealt."""

    def __init__(
        self,
        leader: Channel,
        others: Callable[[], Sequence[bytes]],
        admission: ComputeSlots | None,
        memory: float,
        session: str,
        signer: Signer | None,
    ) -> None:
        self.leader, self.others, self.admission, self.memory = leader, others, admission or Unlimited(), memory
        self.session, self.signer = session, signer
        self._waited = 0.0  # seconds, for room at the leader: these are not what correlations take

    @abstractmethod
    def set_up(self) -> SessionNotes:
        """Before the first request. Errors: `SeedError`, `PeerError`."""

    @abstractmethod
    def asked(self, message: dict[str, Any], least: int) -> DealRequest | None:
        """A request, whose number is `least` or more; None if it has been answered. Errors: `PeerError`."""

    def serve(self, on_query: Callable[[int, float], None] | None = None, idle: float | None = None) -> None:
        """Answer the leader's requests until it says goodbye. `idle`: seconds it may be silent between queries.

        `on_query` gets the number and the seconds of each. Errors: `PeerError`.
        """
        try:
            notes, least = self.set_up(), 0
        except SeedError as error:  # for example after a restart of this dealer: a new session is enough
            raise PeerGone(error.party, "cannot be dealt to", str(error)) from None
        for message in requests(self.leader, idle):
            if message == REQUEST:
                vouch_as_dealer(self.leader, self.signer, notes)
                continue
            if (asked := self.asked(message, least)) is None:
                continue
            first = asked.first
            with refusing(self.leader):
                with self.admission.slot(first, lambda place: self.leader.send_message({"queued": place})):
                    least = first + asked.runs
                    self.leader.send_message({self.begins: first})
                    started, self._waited = time.perf_counter(), 0.0
                    asked.deal()
                    seconds = time.perf_counter() - started - self._waited
                    self.leader.send_message({"dealt": first, "seconds": seconds, "peak_rss_mb": peak_rss_mb()})
                notes.queries += asked.runs
                if on_query:
                    on_query(first, seconds)


class DealerParty(SessionDealer):
    """Of parties that compute on masked weights.

    digest   the hash of the program that all parties named
    owners   among N parties: the owner of each of a program's values
    draw     which runs are audits
    device   where it makes correlations
    """

    def __init__(
        self,
        leader: Channel,
        digest: str,
        others: Callable[[], Sequence[bytes]],
        programs: Programs | None = None,
        admission: ComputeSlots | None = None,
        owners: Callable[[Program], Owners] | None = None,
        memory: float = MEMORY_BYTES,
        session: str = "",
        signer: Signer | None = None,
        draw: Draw = is_drawn,
        device: torch.device = CPU,
    ) -> None:
        super().__init__(leader, others, admission, memory, session, signer)
        self.digest, self.owners, self.draw, self.device = digest, owners, draw, device
        self._free = room(device)  # before anything of this session is there
        self.programs: Programs = {} if programs is None else programs
        self._states = KeptStates(device)
        self._tuples: TupleDealer | None = None

    def set_up(self) -> SessionNotes:
        self._seeds = [read_seed(self.leader), *self.others()]
        program = self._program = self.programs.get(self.digest) or self._fetch_program()
        parts = BackgroundTask(lambda: self._correlations(program), "layout")
        self._parts = parts.result([self.leader], "program")
        shapes = program.weight_shapes()
        self.leader.send_message({"need": "weights"})
        self._weights = WeightMasks(read_keys(self.leader.recv(len(shapes) * SEED_BYTES), shapes), shapes, self.device)
        self.leader.send_message({"dealing": True})
        if self.owners is not None:
            self._tuples = TupleDealer(self.leader, self._seeds, TUPLE_BYTES)
        return SessionNotes(program, self.session)

    def asked(self, message: dict[str, Any], least: int) -> DealRequest | None:
        if self._tuples is not None and "tuple" in message:
            self._tuples.deal(message)
            return None
        number = read_number(self.leader, message, "query", least)
        part_run = read(self.leader, PartRun, message.get("turn", {}))
        if not may_run(self._program, part_run):
            raise out_of_place(self.leader)
        correlations = self._bounded(self._parts[part_run.part].of_runs(part_run.runs))
        return DealRequest(number, 1, lambda: self._deal(number, part_run, correlations))

    def _deal(self, number: int, part_run: PartRun, correlations: Correlations) -> None:
        streams = [masks(query_key(seed, number), self.device) for seed in self._seeds]
        self._states.truncate(part_run.rows)
        corrections = Corrections(self.leader, correlations.layout, self._room)
        correlations.deal(streams, corrections, self._weights, self._states)
        if self._program.audits:
            self.leader.send(draw_audit_token(self._program, query_key(self._seeds[1], number), self.draw))

    def _room(self, ahead: int, total: int) -> None:
        """Wait until the leader has room for the next piece of corrections."""
        since = time.perf_counter()
        receive_expected(self.leader, ("more",))
        self._waited += time.perf_counter() - since

    def _fetch_program(self) -> Program:
        """The program from the leader, bounded in size, with the hash that all parties named."""
        self.leader.send_message({"need": "program"})
        program = receive_program(self.leader, self.digest, self._correlations)
        self.programs[program.hash()] = program
        return program

    def _correlations(self, program: Program) -> dict[str, Correlations]:
        """The correlations of each part of the program. Counting them takes a moment."""
        owners = None if self.owners is None else self.owners(program)
        names = program.parts or ("",)
        return {name: self._bounded(Correlations(program.part(name), owners)) for name in names}

    def _bounded(self, correlations: Correlations) -> Correlations:
        """Errors: `PeerProtocolError`, before anything is made, if they take more than `memory`."""
        needed = correlations.dealer_bytes(self.device)
        if needed <= min(self.memory, self._free):
            return correlations
        what = f"asks for correlations that take {needed / GB:.3g} GB to make, and"
        less = "compile the model for less: fewer texts, or shorter ones"
        if needed > self._free:
            remedy = f"let it deal on a processor, or {less}"
            raise PeerProtocolError(self.leader.peer, f"{what} the dealer's GPU has not so much free", remedy)
        what = f"{what} here they may take {self.memory / GB:.3g} GB at most"
        raise PeerProtocolError(self.leader.peer, what, f"raise dealer.memory_gb there, or {less}")


def receive_program(server: Channel, digest: str, use: Callable[[Program], object]) -> Program:
    """The program that a peer sends: bounded in size, of this hash, and fit for `use`. Errors: `PeerError`."""
    size = server.recv_message().get("program")
    if not isinstance(size, int) or not 0 < size <= PROGRAM_BYTES:
        raise _unfit(server, f"has a program of {size} bytes" if isinstance(size, int) else "sent no program's size")
    text = bytes(server.recv(size))
    if hashlib.sha256(text).hexdigest() != digest:
        raise _unfit(server, "sent another program than the one it named")
    try:
        program = Program.from_json(text)
        parts = [program.part(name) for name in program.parts or ("",)]
        if not all(_reads_what_it_keeps(part) for part in parts):
            raise _unfit(server, "has a program that keeps rows without end")
        BackgroundTask(lambda: ([_check_shapes(part) for part in parts], use(program)), "program").result(
            [server], "program"
        )
    except PeerError:
        raise
    except Exception:  # no compiler made this program: any error is possible
        raise _unfit(server, "sent a program that cannot be run") from None
    return program


def _reads_what_it_keeps(program: Program) -> bool:
    """Whether the rows that a program keeps are bounded: a run beyond their bound fails, or drops the first rows."""
    added = [item for item in program.instructions if not item.attributes.get("whole")]  # those take others' places
    names = {op: {item.attributes.get("name") for item in added if item.op == op} for op in ("keep", "state")}
    return names["keep"] <= names["state"]


def _unfit(server: Channel, what: str) -> PeerProtocolError:
    return PeerProtocolError(server.peer, what, SAME_VERSION)


def _check_shapes(program: Program) -> None:
    """Check that every value has the shape of its instruction. Errors: of any kind."""
    kinds = of_kind("source")
    sources = {item.attributes["name"]: item.shape for item in program.instructions if item.op in kinds}

    def observe(number: int, value: Tensor) -> None:
        if tuple(value.shape) != program.instructions[number].shape:
            raise ValueError(number)

    interpret(program, ShapesEngine(sources), observe=observe)


class DealtRuns(NamedTuple):
    """Correlations at the leader, run by run; the dealer's report of them; and what it says of a run with audits."""

    tapes: list[Tape]
    report: dict[str, Any]
    audit_token: AuditToken | None


class RemoteDealer:
    """The leader's end of its connection with the dealer. One thread at a time uses it. Errors: `PeerError`."""

    def __init__(self, channel: Channel, served: Served) -> None:
        self.channel, self.served = channel, served

    def set_up(self, seed: bytes) -> None:
        """Send this side's seed, the keys of the masks B, and the program if the dealer does not know it."""
        self.channel.send_message({"seed": seed.hex()})
        message = receive_expected(self.channel, ("need",))
        if message["need"] == "program":
            text = self.served.program.to_json().encode()
            self.channel.send_message({"program": len(text)})
            self.channel.send(text)
            message = receive_expected(self.channel, ("need",))
        if message["need"] != "weights":
            raise PeerProtocolError(self.channel.peer, "needs what this side does not know of", SAME_VERSION)
        self.channel.send(self.served.masked.all_keys())
        receive_expected(self.channel, ("dealing",))

    def lead(
        self,
        number: int,
        key: bytes,
        part_run: PartRun | None = None,
        states: KeptStates | None = None,
        pace: Pace | None = None,
    ) -> DealtRuns:
        """The leader's correlations of a query, with masks of this key. Errors: `SlotsBusy`, too."""
        part_run = part_run or PartRun()
        self._ask(number, part_run)
        correlations = self.served.correlations(part_run.part, part_run.runs)

        def pause(ahead: int, total: int) -> None:
            if pace is not None:
                pace.wait(ahead, total, total, self.channel)
            self._more(ahead, total)

        tapes = self.served.lead(key, self.channel, correlations, states, pause)
        audit_token = receive_audit_token(self.channel, self.served.program)
        return DealtRuns(tapes, receive_for_query(self.channel, "dealt", number), audit_token)

    def frames(self, number: int) -> Iterator[bytearray]:
        """The corrections of a query as they arrive, for a file. Errors: `SlotsBusy`, too."""
        self._ask(number)
        for size in paced(self.served.correlations().layout, self._more):
            yield self.channel.recv(size)
        if size := audit_traffic(self.served.program).audit_token:
            yield self.channel.recv(size)
        receive_for_query(self.channel, "dealt", number)

    def _more(self, ahead: int, total: int) -> None:
        self.channel.send_message({"more": ahead})

    def _ask(self, number: int, part_run: PartRun | None = None) -> None:
        self.channel.send_message({"query": number, **({} if part_run is None else part_run.message())})
        receive_expected(self.channel, ("deal",))

    def tuple(self, request: Request, number: int) -> Corrections:
        """Ask for one of CrypTen's tuples, the `number`-th; its corrections are read next."""
        self.channel.send_message({"tuple": request.model_dump(mode="json"), "number": number})
        return Corrections(self.channel, calls.layout(request))

    def goodbye(self) -> None:
        goodbye(self.channel)


class Replay:
    """Corrections from a file, read as from a channel."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._at = content, 0

    def recv(self, size: int) -> bytearray:
        self._at += size
        return bytearray(self._content[self._at - size : self._at])

    @property
    def is_whole(self) -> bool:
        """Whether all that was written was read, and no more than that: else it is another program's."""
        return self._at == len(self._content)
