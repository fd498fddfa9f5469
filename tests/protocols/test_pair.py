"""Without a dealer: two parties make the corrections that a dealer would send, or say of what they cannot."""

from __future__ import annotations

import re

import pytest
import torch
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.interpreter import interpret
from blindformer.protocols.beaver.engine import OnlineEngine
from blindformer.protocols.beaver.source import Corrections
from blindformer.protocols.errors import CorrelationError, PeerGone
from blindformer.protocols.pair.source import PairWire
from blindformer.protocols.ring import Ring
from blindformer.protocols.rounds import over_channel
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.protocols.cases import FEW
from blindformer.tests.protocols.harness import in_threads
from blindformer.tests.protocols.ideal import Trusted
from blindformer.tests.protocols.programs import Case, Data, Draft, case_of, check, hidden
from blindformer.tests.shared.memory import memory_pair

# They read numbers of cells, keys, or functions of a mask, which have no evaluation between two parties yet.
DEALT = re.compile(r"lookup|exp|fourier|sums_with_public_numbers")
MADE = [name for name in FEW if not DEALT.match(name)]


class Kept:
    """Corrections as a file: written, and read from the beginning."""

    def __init__(self) -> None:
        self.content, self.at = bytearray(), 0

    def send(self, data: bytearray) -> None:
        self.content += data

    def recv(self, size: int) -> bytearray:
        self.at += size
        return self.content[self.at - size : self.at]


def made(case: Case, seeds: dict[str, bytes]) -> Kept:
    """The corrections that the pair makes."""
    correlations, trusted, kept, ends = (
        Correlations(case.program),
        Trusted(),
        Kept(),
        memory_pair("server", "client", 20),
    )

    def party(role: str, end) -> None:
        leader = role == "server"
        wire, into = PairWire.over(end, trusted.products(leader)), Corrections(kept, correlations.layout)
        stream = Stream(seeds[role], "query")
        correlations.make(trusted.pair(leader), stream, wire, case.weights, into if leader else None)

    in_threads([lambda: party("server", ends[0]), lambda: party("client", ends[1])], ends)
    return kept


def asked(case: Case, seeds: dict[str, bytes], kept: Kept) -> dict[str, torch.Tensor]:
    """The client's outputs, the online phase being as with a dealer."""
    correlations, ends, outputs = Correlations(case.program), memory_pair("server", "client", 20), {}
    nothing = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in case.program.weight_shapes().items()}
    tapes = {
        "server": correlations.lead(Stream(seeds["server"], "query"), Corrections(kept, correlations.layout)),
        "client": correlations.follow(Stream(seeds["client"], "query"), nothing),
    }

    def party(role: str, end) -> None:
        own = case.weights if role == "server" else case.client
        engine = OnlineEngine(role, tapes[role], Ring(), own, case.constants)
        outputs[role] = interpret(case.program, engine, over_channel(end)).outputs

    in_threads([lambda: party("server", ends[0]), lambda: party("client", ends[1])], ends)
    return outputs["client"]


def fresh_seeds() -> dict[str, bytes]:
    return {"server": new_seed(), "client": new_seed()}


@pytest.mark.parametrize("name", MADE)
def test_answers_are_right_with_what_the_pair_made(name):
    case, seeds = case_of(name), fresh_seeds()
    if case.inputs:
        pytest.skip("of an owner who takes no part")
    check(case, asked(case, seeds, made(case, seeds)))


def test_the_pair_makes_what_a_dealer_would_send():
    """To the byte, where all bits of the values are read: of the same seeds, and with the weights as their masks."""
    for name in ("linears_that_read_one_value", "product", "less-24", "relu", "matrix_products", "polynomial-1"):
        case, seeds, dealt = case_of(name), fresh_seeds(), Kept()
        correlations = Correlations(case.program)
        streams = [Stream(seeds[role], "query") for role in ("server", "client")]
        correlations.deal(streams, Corrections(dealt, correlations.layout), case.weights)
        assert made(case, seeds).content == dealt.content, name


def test_what_two_parties_cannot_make_is_named_and_nothing_is_sent():
    d, data = Draft(), Data(1)
    d("lookup", hidden(d, data, 3, 5), d.constant(data.ints(8, 2, bits=18)), start=-5, bits=12, low=9, drop=3)
    correlations = Correlations(d.case().program)
    server, _ = memory_pair("server", "client", 1)
    wire = PairWire.over(server, Trusted().products(True))
    with pytest.raises(CorrelationError, match="CellNumbers: two parties alone cannot make it yet"):
        correlations.make(Trusted().pair(True), Stream(new_seed(), "query"), wire, d.case().weights)
    assert server.meter.sent == 0


def test_after_an_error_a_pair_makes_nothing_more():
    """Half of its steps were taken, and the peer may have seen them: another try needs other masks and transfers."""
    case = case_of("relu")
    correlations, pair, calls = Correlations(case.program), Trusted().pair(True), []

    def lost(parts):
        calls.append(len(parts))
        raise PeerGone("client", "closed the connection", "start it again")

    with pytest.raises(PeerGone):
        correlations.make(pair, Stream(new_seed(), "query"), lost, case.weights)
    for _ in range(2):
        with pytest.raises(CorrelationError, match="failed before; start a new session"):
            correlations.make(pair, Stream(new_seed(), "query"), lost, case.weights)
    assert len(calls) == 1


def test_masks_of_one_seed_are_used_once():
    """A second run under the same masks would send the difference of two corrections."""
    case, pair, seed = case_of("relu"), Trusted().pair(False), new_seed()
    server, client = memory_pair("server", "client", 1)
    with pair.using(Stream(seed, "query")):
        pass
    wire = PairWire.over(client, Trusted().products(False))
    with pytest.raises(CorrelationError, match="masks were used before; draw a new seed"):
        Correlations(case.program).make(pair, Stream(seed, "query"), wire, {})
    assert client.meter.sent == server.meter.sent == 0
    with pair.using(Stream(seed, "another query")):
        pass


def test_a_pool_gives_each_transfer_once():
    """In whatever pieces: products of shared bits hold, numbers are those chosen, and no word comes twice."""
    trusted = Trusted()
    server, client = trusted.pair(True).pool, trusted.pair(False).pool
    seen: list[int] = []
    for shape in ((3,), (2, 700), (1, 5), (1024,)):
        mine, theirs = server.triples(shape), client.triples(shape)
        assert torch.equal((mine.a ^ theirs.a) & (mine.b ^ theirs.b), mine.product ^ theirs.product)
        seen += [word for part in (*mine, *theirs) for word in part.flatten().tolist()]
    for words in (1, 30, 1025):
        choices, chosen = server.received_numbers(words)
        pairs = client.sent_numbers(words)
        taken = choices[:, None] >> torch.arange(64) & 1
        assert torch.equal(chosen, torch.where(taken.flatten().bool(), pairs[1], pairs[0]))
        seen += [*choices.tolist(), *pairs.flatten().tolist()]
    assert len(set(seen)) == len(seen)
