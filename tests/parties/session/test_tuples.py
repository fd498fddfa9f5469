"""CrypTen's tuples at the dealer: within bounds, each once, and only among N parties."""

from __future__ import annotations

import pytest
from blindformer.parties.session.dealing import DealerParty, MemoryPrograms, TupleDealer
from blindformer.parties.transport.stream import memory_pair
from blindformer.protocols.crypten.calls import layout
from blindformer.protocols.crypten.tuples import Request
from blindformer.protocols.errors import PeerProtocolError
from blindformer.tests.parties.session.site import small_case

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


def test_two_parties_are_dealt_no_tuples():
    case, programs = small_case(), MemoryPrograms()
    programs.put(case.program)
    server, dealer = memory_pair("server", "dealer", 5)
    for message in ({"seed": SEEDS[0].hex()}, bytes(32 * len(case.program.weight_shapes())), asked(SQUARE)):
        server.send_message(message) if isinstance(message, dict) else server.send(message)
    with pytest.raises(PeerProtocolError, match="asked for a query out of order"):
        DealerParty(dealer, case.program.hash(), lambda: SEEDS[1:2], programs).serve()
