"""A peer that lies in a session without a dealer: a line that names it, or a wrong answer; and nothing follows."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("nacl")
pytest.importorskip("seal")
from blindformer.models.program.correlations import Correlations
from blindformer.parties.session.pair_corrections import PairCorrections
from blindformer.parties.session.preprocessing_store import PreprocessingStore, StoreError
from blindformer.parties.session.rendezvous_two import my_hello
from blindformer.parties.session.statements import SessionNotes
from blindformer.parties.session.weight_transfer import ReceivedWeights
from blindformer.parties.transport.frames import TENSOR, pack_header
from blindformer.parties.transport.handshake import answer_hello, hello, new_session
from blindformer.protocols.errors import (
    BlindformerError,
    CorrelationError,
    PeerDisagrees,
    PeerError,
    PeerProtocolError,
)
from blindformer.protocols.homomorphic.lattice import CIPHERTEXT_BYTES, PUBLIC_BYTES
from blindformer.protocols.homomorphic.products import product_cost
from blindformer.protocols.kernels import library
from blindformer.protocols.oblivious.silent import MESSAGE_BYTES
from blindformer.tests.parties.session.site import Site
from blindformer.tests.shared.memory import is_message

pytestmark = pytest.mark.skipif(library.library is None, reason="homomorphic products need C kernels")

NO_PLACE = "sent a message that has no place here"
OTHER = {"server": "client", "client": "server"}
FRAMES = {  # by party, the size of some that it sends
    "server": {"public key": PUBLIC_BYTES, "transfers": MESSAGE_BYTES, "weights": CIPHERTEXT_BYTES},
    "client": {"transfers": MESSAGE_BYTES, "products": product_cost(1)[1]},
}
CONTENTS: dict[str, Callable[[int], bytes]] = {"noise": secrets.token_bytes, "zeros": bytes}


class LyingSite(Site):
    """A site without a dealer. `liar`: a party; `frame(number, data)`: what it sends in place of its tensor frames;
    `say(message)`: of its messages."""

    def __init__(self, case, liar: str, **options: Any) -> None:
        super().__init__(case, dealt=False, **options)
        self.liar, self._numbers = liar, itertools.count()
        self.frame: Callable[[int, bytes], bytes] = lambda number, data: data
        self.say: Callable[[dict], dict] = lambda message: message

    def connect(self, a: str, b: str) -> Any:
        pair = super().connect(a, b)
        self._bend(pair[0 if a == self.liar else 1])
        return pair

    def _bend(self, end: Any) -> None:
        move, send_message = end._move, end.send_message

        def moved(kind: int, data: memoryview | None, incoming: Any) -> None:
            if data is not None and kind == TENSOR:
                data = memoryview(self.frame(next(self._numbers), bytes(data)))
            move(kind, data, incoming)

        end._move, end.send_message = moved, lambda message: send_message(self.say(message))

    def sizes(self) -> list[int]:
        """Of all tensor frames that the liar has sent."""
        return [len(frame) for frame in self.received[OTHER[self.liar], self.liar] if not is_message(frame)]

    def ask_once(self) -> dict[str, BlindformerError]:
        """A client that asks one query, whatever the answer is: how each party failed, in a line that a user reads."""
        failed: dict[str, Any] = {}
        try:
            with self.client() as party:
                party.query(self.case.client)
        except BlindformerError as error:
            failed["client"] = error
        self.join()
        failed.update(self.failures)
        for error in failed.values():
            assert isinstance(error, BlindformerError), error
            assert str(error).isprintable()
        return failed

    def caught(self) -> PeerError:
        """The same, where the other party must see the lie."""
        error = self.ask_once()[OTHER[self.liar]]
        assert isinstance(error, PeerProtocolError), error
        assert error.party == self.liar
        assert error.remedy
        return error


@pytest.fixture
def pair_site(case):
    site = Site(case, dealt=False)
    yield site
    for channel in site.channels:
        channel.close()


@pytest.fixture
def lying(case):
    sites: list[LyingSite] = []

    def make(liar: str, **options: Any) -> LyingSite:
        sites.append(LyingSite(case, liar, **options))
        return sites[-1]

    yield make
    for site in sites:
        for channel in site.channels:
            channel.close()


def first_of(size: int, change: Callable[[bytes], bytes]) -> Callable[[int, bytes], bytes]:
    """Another content for the first frame of this size."""
    left = [size]

    def frame(number: int, data: bytes) -> bytes:
        if len(data) not in left:
            return data
        left.clear()
        return change(data)

    return frame


@pytest.mark.parametrize(("liar", "what", "more"), [("server", "public key", 1), ("client", "transfers", -1)])
def test_a_frame_of_another_size_is_refused(lying, liar, what, more):
    site, size = lying(liar), FRAMES[liar][what]
    site.frame = first_of(size, lambda data: (data + b"\0")[: size + more])
    error = site.caught()
    assert error.what == f"sent a frame of {size + more} bytes where {size} were expected"


@pytest.mark.parametrize("liar", ["server", "client"])
def test_a_frame_that_says_it_is_huge_takes_no_memory(lying, liar):
    """Its header ends the session."""
    site = lying(liar)

    def huge(data: bytes) -> bytes:
        (end,) = site.ends[liar]
        end._wire.sock.sendall(pack_header(TENSOR, 1 << 40))
        return data

    site.frame = first_of(FRAMES[liar]["transfers"], huge)
    assert f"sent a frame of {1 << 40} bytes" in site.caught().what


@pytest.mark.parametrize(
    ("liar", "what"), [("server", "public key"), ("server", "weights"), ("client", "transfers"), ("client", "products")]
)
def test_noise_is_refused_or_an_answer_is_wrong(lying, liar, what):
    site = lying(liar)
    site.frame = first_of(FRAMES[liar][what], lambda data: CONTENTS["noise"](len(data)))
    if what == "transfers":
        site.caught()
    else:  # any numbers are some ciphertexts
        site.ask_once()
    assert FRAMES[liar][what] in site.sizes()


@pytest.mark.slow
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("liar", ["server", "client"])
def test_garbage_in_any_frame_is_refused_or_an_answer_is_wrong(lying, liar, content):
    """The first frame of each size there is."""
    honest = lying(liar)
    assert honest.ask_once() == {}
    for size in dict.fromkeys(honest.sizes()):
        site = lying(liar)
        site.frame = first_of(size, lambda data: CONTENTS[content](len(data)))
        site.ask_once()


@pytest.mark.parametrize("liar", ["server", "client"])
def test_after_a_failure_nothing_more_is_made_and_a_new_session_is_fresh(lying, liar):
    site = lying(liar)
    site.frame = first_of(FRAMES[liar]["transfers"], lambda data: data[:-1])
    with site.client() as party:
        with pytest.raises(PeerError):
            site.ask(party)
        sent = party.server.meter.sent
        with pytest.raises(CorrelationError, match="failed before; start a new session"):
            party._pair.make(Correlations(site.case.program), bytes(32), {})
        assert party.server.meter.sent == sent
        with pytest.raises(PeerError):
            site.ask(party)
    first = {pair: site.received.pop(pair) for pair in (("server", "client"), ("client", "server"))}
    with site.client() as again:
        site.ask(again)
    assert again.seed != party.seed
    for pair, frames in first.items():
        both = {frame for frame in frames if len(frame) > 128} & {*site.received[pair]}  # not the weights' commitments
        assert not both, pair


# -- messages


class HostileClient:
    """A client that says what it likes to an honest server, after the weights are known."""

    def __init__(self, site: Site) -> None:
        self.site = site
        theirs, self.channel = site.connect("server", "client")
        self.session = new_session()
        site.serve(theirs, self.session)
        ReceivedWeights(self.channel, site.case.program, masked=False).receive()

    def live(self) -> None:
        self.channel.send_message({"live": True})
        assert self.channel.recv_message() == {"live": True}
        notes = SessionNotes(self.site.case.program, self.session, topology="pair")
        PairCorrections(self.channel, False, notes).set_up()

    def say(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self.channel.send_message(message)

    def refused(self, what: str) -> None:
        """The server has ended the session with this line."""
        (error,) = self.site.errors()
        assert isinstance(error, PeerProtocolError)
        assert (error.party, error.what) == ("client", what)
        with pytest.raises(PeerError, match=what):
            self.channel.recv_message()


def query(number: int = 0, **more: Any) -> dict[str, Any]:
    return {"query": number, "store": None, "more": False, "then": None, **more}


NOT_LIVE = "asked for correlations before it asked for live ones"
MESSAGES: dict[str, tuple[dict[str, Any], str]] = {
    "a query before it is live": (query(), NOT_LIVE),
    "correlations ahead before it is live": ({"precompute": 1}, NOT_LIVE),
    "an announced query": ({"announce": 0}, NO_PLACE),
    "several runs of a query": (query(turn={"runs": 2}), NO_PLACE),
    "a number that was not its turn": (query(1), "asked for a query out of order"),
    "a server's message": ({"make": 0}, NO_PLACE),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_server_refuses_what_no_client_sends(pair_site, name, tmp_path):
    message, what = MESSAGES[name]
    pair_site.store = PreprocessingStore(tmp_path)
    hostile = HostileClient(pair_site)
    hostile.say(message)
    hostile.refused(what)


def test_a_live_session_is_not_made_live_again(pair_site):
    hostile = HostileClient(pair_site)
    hostile.live()
    hostile.say({"live": True})
    hostile.refused(NO_PLACE)


def test_a_query_after_this_one_cannot_be_made_beside_it(lying):
    """The connection is the only one, and this query's rounds need it."""
    site = lying("client")
    site.say = lambda message: message | {"more": True} if "query" in message else message
    error = site.caught()
    assert error.what == NO_PLACE


def test_a_number_is_made_once(pair_site):
    with pair_site.client() as party:
        pair_site.ask(party)
        party.number = 0
        with pytest.raises(PeerError, match="asked for a query out of order"):
            pair_site.ask(party)
    assert pair_site.received["client", "server"].count(b'{"make":0}') == 1


def test_a_server_without_a_store_makes_nothing_ahead_and_answers(pair_site, tmp_path):
    with pair_site.client(store=PreprocessingStore(tmp_path)) as party:
        with pytest.raises(StoreError, match="server: keeps no store; start it with one"):
            party.precompute(1)
        pair_site.ask(party)
    pair_site.end()
    assert pair_site.received["client", "server"].count(b'{"make":0}') == 1


def test_a_client_without_a_store_asks_for_nothing_ahead(pair_site):
    with (
        pair_site.client(use_store="only") as party,
        pytest.raises(StoreError, match="for a client with a store; give a folder"),
    ):
        party.precompute(1)
    pair_site.end()


@pytest.mark.parametrize("message", [{"make": 1}, {"ready": 0}])
def test_a_client_makes_what_it_asked_for_alone(lying, message):
    site = lying("server")
    site.say = lambda honest: message if "make" in honest else honest
    assert site.caught().what == NO_PLACE
    assert MESSAGE_BYTES not in map(len, site.received["server", "client"])


@pytest.mark.parametrize(("client", "server"), [("dealer", "pair"), ("pair", "dealer")])
def test_a_client_and_a_server_of_two_topologies_part_at_the_hello(pair_site, client, server):
    program, heard = pair_site.case.program, []
    theirs, mine = pair_site.connect("server", "client")

    def serve() -> None:
        answer_hello(theirs, lambda hello: my_hello(program, "server", hello.session, topology=server), ["client"])

    pair_site.start(serve, "server")
    with pytest.raises(PeerDisagrees) as caught:
        hello(mine, my_hello(program, "client", new_session(), topology=client), "server")
    heard = [caught.value, *pair_site.errors()]
    assert [(error.party, error.what) for error in heard] == [
        ("server", f"has topology {server}, this side has {client}"),
        ("client", f"has topology {client}, this side has {server}"),
    ]
    assert all("in [session] of this side" in error.remedy for error in heard)
