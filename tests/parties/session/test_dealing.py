"""The dealer takes what it needs from the other two, once, within bounds, and believes nothing."""

from __future__ import annotations

import hashlib
import re
import threading
from contextlib import suppress
from dataclasses import replace

import pytest
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.program import Instruction, Program
from blindformer.parties.session.dealing import DealerParty, TupleDealer
from blindformer.parties.session.messages import SlotsBusy
from blindformer.parties.session.rendezvous_two import MemorySeeds, my_hello, receive_seed
from blindformer.protocols.crypten.calls import layout
from blindformer.protocols.crypten.tuples import Request
from blindformer.protocols.errors import PeerGone, PeerProtocolError
from blindformer.tests.parties.session.site import Turnstile
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.memory import memory_pair

SESSION, SEED = "0f" * 16, bytes(32)


def test_a_client_leaves_its_seed_and_is_told_so(case):
    client, dealer = memory_pair("client", "dealer", 5)
    seeds, hello = MemorySeeds(), my_hello(case.program, "client", SESSION)
    client.send_message({"seed": SEED.hex()})
    receive_seed(dealer, hello, seeds)
    assert client.recv_message() == {"seeded": True}
    assert seeds.take(SESSION, case.program.hash()) == SEED
    for wrong in (
        {"seed": "00"},
        {"seed": 7},
        {},
        {"seed": "g" * 64},
        {"seed": "0f" * 16},
        {"seed": SEED.hex(), "and": 1},
    ):
        client.send_message(wrong)
        with pytest.raises(PeerProtocolError, match="no place here"):
            receive_seed(dealer, hello, seeds)


class Server:
    """A server that says what it likes to a dealer. `named`: the hash in both hellos, if not the program's."""

    def __init__(self, program: Program, *, named: str = "", programs=None, seeds=None, **options):
        self.channel, dealer = memory_pair("server", "dealer", 10)
        self.program = program
        if seeds is None:
            seeds = MemorySeeds()
            seeds.put(SESSION, named or program.hash(), SEED)
        digest = named or program.hash()
        party = DealerParty(dealer, digest, lambda: [seeds.take(SESSION, digest)], programs, **options)
        self.error: Exception | None = None

        def run() -> None:
            try:
                party.serve()
            except Exception as error:
                self.error = error
            dealer.close()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def offer(self, text: bytes, size: object = None) -> None:
        """Seed, then a program when it is asked for."""
        self.channel.send_message({"seed": SEED.hex()})
        if self.channel.recv_message() == {"need": "program"}:
            self.channel.send_message({"program": len(text) if size is None else size})
            with suppress(PeerGone):  # a dealer that has read the size may have left
                self.channel.send(text)

    def ended(self) -> Exception | None:
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        return self.error


def set_up(server: Server) -> None:
    server.offer(server.program.to_json().encode())
    while (message := server.channel.recv_message()) == {"waiting": "program"}:
        pass
    assert message == {"need": "weights"}
    server.channel.send(bytes(32 * len(server.program.weight_shapes())))
    assert server.channel.recv_message() == {"dealing": True}


def test_a_program_that_is_known_is_not_sent_again(case):
    programs: dict[str, Program] = {}
    for known in (False, True):
        assert (programs.get(case.program.hash()) is not None) is known
        server = Server(case.program, programs=programs)
        server.channel.send_message({"seed": SEED.hex()})
        needs = server.channel.recv_message()
        assert needs == {"need": "weights" if known else "program"}
        if not known:
            server.channel.close()
            server = Server(case.program, programs=programs)
            set_up(server)
        server.channel.close()
        server.ended()


def changed(program: Program, **changes) -> Program:
    first, *rest = program.instructions
    return program.model_copy(update={"instructions": (replace(first, **changes), *rest)})


@pytest.mark.parametrize(
    ("text", "size", "what"),
    [
        (lambda p: p.model_copy(update={"model": "b"}).to_json(), None, "sent another program than the one it named"),
        (lambda p: p.to_json(), 10**9, "has a program of 1000000000 bytes"),
        (lambda p: p.to_json(), 0, "has a program of 0 bytes"),
        (lambda p: p.to_json(), "many", "sent no program's size"),
        (lambda p: p.to_json()[:-1], None, "sent another program than the one it named"),
    ],
)  # fmt: skip
def test_a_program_must_be_the_one_that_both_named(case, text, size, what):
    server = Server(case.program)
    server.offer(text(case.program).encode(), size)
    error = server.ended()
    assert isinstance(error, PeerProtocolError)
    assert what in str(error)


WIDE = {"start": 0, "bits": 20, "low": 4, "drop": 0, "rate": 1.0, "fraction": 3}  # 65,536 numbers for each element

CELLS, FEW_CELLS = {"start": 0, "bits": 16, "low": 0}, {"start": 0, "bits": 6, "low": 0}


def of_client(shape: tuple[int, ...], *operations: dict) -> Program:
    """A chain of operations on a value of the client."""
    instructions = [Instruction(op="client", attributes={"name": "x"}, shape=shape)]
    for number, item in enumerate(operations):
        instructions.append(Instruction(**{"args": (number,), "shape": shape, **item}))
    return Program(instructions=tuple(instructions))


@pytest.mark.parametrize(
    "program",
    [
        of_client((2**28,), {"op": "polynomial", "attributes": {"coefficients": [1] * 189}}),
        of_client((2**26,), *({"op": "polynomial", "attributes": {"coefficients": [1] * 30}} for _ in range(20))),
        of_client((2**14, 2**6), {"op": "reached", "shape": (2**14, 2**16), "attributes": CELLS}),
    ],
    ids=["powers", "many powers", "cells"],
)
def test_a_program_that_would_fill_the_memory_is_refused_before_anything_is_made(program):
    """Its JSON has some kilobytes."""
    text = program.to_json().encode()
    assert len(text) < 6500
    server = Server(program)
    server.offer(text)
    error = server.ended()
    assert isinstance(error, PeerProtocolError)
    what = r"take [\d.e+]+ GB to make, and here they may take 16 GB at most; raise dealer.memory_gb"
    assert re.search(what, str(error))


def test_so_are_more_runs_at_once_than_fit():
    rows = {"op": "keep", "attributes": {"name": "rows"}}, {"op": "state", "args": (), "attributes": {"name": "rows"}}
    program = of_client((1, 4096), *rows)
    server = Server(program, memory=4 * Correlations(program).dealer_bytes())
    set_up(server)
    for number, runs in enumerate((2, 8)):
        server.channel.send_message({"query": number, "turn": {"part": "", "rows": 0, "runs": runs}})
        if runs == 2:
            assert server.channel.recv_message() == {"deal": 0}
            assert "dealt" in server.channel.recv_message()
    assert "here they may take" in str(server.ended())


@pytest.mark.parametrize(
    ("program", "what"),
    [
        (lambda p: changed(p, shape=(2**20, 2**20)), "cannot be run"),
        (lambda p: changed(p, op="exp", shape=(2**12, 2**8), attributes=WIDE), "cannot be run"),
        (lambda p: changed(p, op="lookup", args=(0, 0), attributes={**WIDE, "low": 18}), "cannot be run"),
        (
            lambda p: of_client((1, 2**17), {"op": "reached", "shape": (1, 64), "attributes": FEW_CELLS}),
            "cannot be run",
        ),
        (lambda p: changed(p, shape=(3, 5)), "cannot be run"),
        (lambda p: changed(p, shape=(5, 8)), "cannot be run"),
        (lambda p: changed(p, attributes={}), "cannot be run"),
        (lambda p: changed(p, op="linear"), "cannot be run"),
        (lambda p: p.model_copy(update={"ring": 48}), "cannot be run"),
        (lambda p: p.model_copy(update={"format": 99}), "cannot be run"),
    ],
)
def test_a_program_that_no_compiler_made_is_an_error_and_no_more(case, program, what):
    """Its hash is right: both other parties named it."""
    malformed = program(case.program)
    server = Server(malformed)
    server.offer(malformed.to_json().encode())
    error = server.ended()
    assert isinstance(error, PeerProtocolError)
    assert what in str(error)


@pytest.mark.parametrize("text", [b'{"not": "a program"}', b"\xff\xfe", b"[" * 10_000, b"7"])
def test_text_that_is_no_program(case, text):
    server = Server(case.program, named=hashlib.sha256(text).hexdigest())
    server.offer(text)
    assert "cannot be run" in str(server.ended())


def test_without_a_client_there_is_no_session(case):
    server = Server(case.program, seeds=MemorySeeds())
    server.channel.send_message({"seed": SEED.hex()})
    assert "client: cannot be dealt to; its seed for this session is not here, or was used" in str(server.ended())


@pytest.mark.parametrize("numbers", [[0, 0], [1, 0], [-1], ["0"], [2**60], [None], [True, True]])
def test_numbers_only_count_up(case, numbers):
    server = Server(case.program)
    set_up(server)
    for number in numbers:
        server.channel.send_message({"query": number})
    error = server.ended()
    assert isinstance(error, PeerProtocolError)
    assert "out of order" in str(error)


def test_a_busy_dealer_says_so_and_a_refused_number_may_be_asked_again(case):
    gate = Turnstile([1], hold=threading.Event(), party="dealer")
    server = Server(case.program, admission=gate)
    set_up(server)
    server.channel.send_message({"query": 0})
    assert server.channel.recv_message()["busy"] == 7.5
    server.channel.send_message({"query": 0})
    assert server.channel.recv_message() == {"queued": 3}
    gate.hold.set()
    while (message := server.channel.recv_message()) == {"queued": 3}:
        pass
    assert message == {"deal": 0}
    server.channel.close()
    server.ended()


PIECES = of_client((2**21,), *({"op": "polynomial", "attributes": {"coefficients": [1] * 7}},))


def test_a_dealer_sends_a_piece_and_waits_until_there_is_room_for_the_next():
    """Five powers of 16 MiB each: the fifth is in the second piece."""
    server, layout = Server(PIECES), Correlations(PIECES).layout
    set_up(server)
    server.channel.send_message({"query": 0})
    assert server.channel.recv_message() == {"deal": 0}
    for size in layout[:4]:
        assert len(server.channel.recv(size)) == size
    for message in ({"waiting": "room"}, {"more": 0}):
        server.channel.send_message(message)
    assert len(server.channel.recv(layout[4])) == layout[4]
    assert "dealt" in server.channel.recv_message()
    server.channel.send_message({"query": 1})
    assert server.channel.recv_message() == {"deal": 1}
    for size in layout[:4]:
        server.channel.recv(size)
    server.channel.send_message({"query": 2})
    assert "has no place here" in str(server.ended())


def test_a_busy_dealer_makes_a_busy_server(site):
    site.dealer_slots = Turnstile([1, 1], party="dealer")
    with site.client() as party:
        for _ in range(2):
            with pytest.raises(SlotsBusy, match=r"dealer: is busy.*in 7.5 seconds"):
                site.ask(party, True)
        for more in (True, False):
            site.ask(party, more)
    site.end()
    assert [number for number, _ in site.answered] == [0, 1]


# --- CrypTen's tuples: within bounds, each once, and only among N parties ---------------------------------------------
SEEDS = [bytes([rank]) * 32 for rank in range(3)]
SQUARE = Request(kind="square", sizes=((2, 3),))


def asked(request: object, number: object = 0) -> dict:
    return {"tuple": request.model_dump(mode="json") if isinstance(request, Request) else request, "number": number}


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (asked(None), "asked for a tuple that there is not"),
        (asked({"kind": "cube", "sizes": [[2]]}), "asked for a tuple that there is not"),
        (asked(Request(kind="square", sizes=((1 << 20, 1 << 20),))), "asked for a tuple that is too large"),
        (asked(SQUARE.model_copy(update={"owner": 3})), "asked for a tuple that is too large"),
        (asked(SQUARE, -1), "asked for a number out of order"),
        (asked(SQUARE, "0"), "asked for a number out of order"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(message, what):
    _, dealer = memory_pair("alice", "dealer", 5)
    with pytest.raises(PeerProtocolError, match=what):
        TupleDealer(dealer, SEEDS, 2**31).deal(message)


def test_a_tuple_is_dealt_once():
    alice, dealer = memory_pair("alice", "dealer", 5)
    tuples = TupleDealer(dealer, SEEDS, 2**31)
    tuples.deal(asked(SQUARE))
    assert len(alice.recv(sum(layout(SQUARE)))) == sum(layout(SQUARE))
    with pytest.raises(PeerProtocolError, match="asked for a number out of order"):
        tuples.deal(asked(SQUARE))


def test_two_parties_are_dealt_no_tuples(case):
    programs = {case.program.hash(): case.program}
    server, dealer = memory_pair("server", "dealer", 5)
    for message in ({"seed": SEEDS[0].hex()}, bytes(32 * len(case.program.weight_shapes())), asked(SQUARE)):
        server.send_message(message) if isinstance(message, dict) else server.send(message)
    with pytest.raises(PeerProtocolError, match="asked for a query out of order"):
        DealerParty(dealer, case.program.hash(), lambda: SEEDS[1:2], programs).serve()
