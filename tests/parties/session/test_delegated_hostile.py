"""What no honest peer sends to a party of a delegated session: refused in a line, before anything is made of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from blindformer.parties.session import delegated_client, delegated_server, delegation
from blindformer.parties.session.delegated_client import DelegatingClient
from blindformer.parties.session.delegated_server import BLOCKS, DelegatedDealer, DelegatedServer
from blindformer.parties.session.delegation import MOST_CALLS, MOST_RUNS, MOST_SEQUENCES, PublicWeights
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.protocols.errors import BlindformerError, PeerError, PeerGone, PeerProtocolError
from blindformer.tests.parties.session.delegated_site import OUT, WIDE, DelegatedSite, small
from blindformer.tests.shared.memory import memory_pair

MEMORY = 1_000_000
LARGE = 2**31 - 1


class Hostile:
    """A client that says what it likes to a server, whose dealer is honest. `dealt`: how often that was asked."""

    def __init__(self, **options: Any) -> None:
        _, model = small()
        self.weights = PublicWeights(model.manifest, model.integers)
        self.channel, theirs = memory_pair("client", "server", 10)
        self.channel_of_dealer: list[Any] = []
        self.error: BaseException | None = None
        self.party = DelegatedServer(self.weights, theirs, self._dial, memory=MEMORY, **options)

        def run() -> None:
            try:
                self.party.serve(idle=10)
                self.party.close()
            except BaseException as error:
                self.error = error
                for channel in self.party.abandon():
                    channel.close()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def _dial(self) -> Any:
        mine, dealer = memory_pair("server", "dealer", 10)
        dealer.record = self.asked = []
        party = DelegatedDealer(self.weights, dealer, lambda: [bytes(32)], memory=MEMORY)
        threading.Thread(target=lambda: _quietly(party.serve), daemon=True).start()
        return mine

    def live(self) -> None:
        self.channel.send_message({"live": True})
        assert self.channel.recv_message() == {"live": True}

    def say(self, *said: dict[str, Any]) -> None:
        for message in said:
            self.channel.send_message(message)

    def refused(self, what: str) -> None:
        """The session has ended with this line, and the server is there for the next one."""
        self.thread.join(20)
        assert not self.thread.is_alive()
        assert isinstance(self.error, PeerProtocolError), self.error
        assert self.error.party == "client"
        assert "\n" not in str(self.error)
        assert what in str(self.error)


def _quietly(work: Any) -> None:
    try:
        work()
    except PeerError:
        return


NO_PLACE = "sent a message that has no place here"
NO_GROUP = "named a group that the model has not"
TOO_MUCH = "GB of corrections at once, and 0.001 GB are allowed"
OUT_OF_ORDER = "out of order"


def declared(*calls: Any, number: int = 0) -> dict[str, Any]:
    return {"declare": number, "calls": list(calls)}


USUAL = declared([0, 4], [1, 4], [2, 4])
MESSAGES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "words to sign": ([{"receipt": "I owe you"}], NO_PLACE),
    "more words to sign": ([{"receipt": True, "what": "I owe you"}], NO_PLACE),
    "a receipt where nobody signs": ([{"receipt": True}], "asked for a receipt where no party has a certificate"),
    "rows beyond integers": ([declared([0, 2**31])], NO_PLACE),
    "more rows than memory": ([declared([0, LARGE])], TOO_MUCH),
    "more rows than one message": ([declared([2, MEMORY // (4 * OUT) + 1])], TOO_MUCH),
    "many calls": ([declared(*[[0, 1]] * (MOST_CALLS + 1))], NO_PLACE),
    "many calls of many rows": ([declared(*[[0, 400]] * MOST_CALLS)], TOO_MUCH),
    "no calls": ([declared()], NO_PLACE),
    "no rows": ([declared([0, 0])], NO_GROUP),
    "negative rows": ([declared([0, -4])], NO_PLACE),
    "rows that are a fraction": ([declared([0, 4.0])], NO_PLACE),
    "rows that are true": ([declared([0, True])], NO_PLACE),
    "rows in words": ([declared([0, "4"])], NO_PLACE),
    "an unknown group": ([declared([3, 4])], NO_GROUP),
    "a group before the first": ([declared([-1, 4])], NO_PLACE),
    "half a call": ([declared([0])], NO_PLACE),
    "one and a half calls": ([declared([0, 4, 4])], NO_PLACE),
    "a sequence out of order": ([declared([0, 4], number=1)], NO_PLACE),
    "a sequence twice": ([USUAL, USUAL], NO_PLACE),
    "too many sequences": ([declared([0, 1], number=at) for at in range(MOST_SEQUENCES + 1)], NO_PLACE),
    "a sequence that nobody declared": ([{"query": 0, "sequence": 0}], NO_PLACE),
    "a negative sequence": ([USUAL, {"query": 0, "sequence": -1}], NO_PLACE),
    "a negative number": ([USUAL, {"query": -1, "sequence": 0}], NO_PLACE),
    "a number beyond numbers": ([USUAL, {"query": 2**53, "sequence": 0}], NO_PLACE),
    "a number in words": ([USUAL, {"query": "0", "sequence": 0}], NO_PLACE),
    "no run": ([USUAL, {"query": 0, "sequence": 0, "runs": 0}], NO_PLACE),
    "many runs": ([USUAL, {"query": 0, "sequence": 0, "runs": MOST_RUNS + 1}], NO_PLACE),
    "runs that take too much": ([declared([2, 100]), {"query": 0, "sequence": 0, "runs": MOST_RUNS}], TOO_MUCH),
    "a field more": ([USUAL, {"query": 0, "sequence": 0, "unchecked": True}], NO_PLACE),
    "something else": ([{"hello": 1}], NO_PLACE),
    "storing what nobody declared": ([{"store": {"first": 0, "sequence": 0}}], NO_PLACE),
    "storing two sequences": (
        [
            USUAL,
            declared([0, 1], number=1),
            {"store": {"first": 0, "sequence": 0}},
            {"store": {"first": 1, "sequence": 1}},
        ],
        NO_PLACE,
    ),
    "storing more than memory": (
        [declared([2, 100]), {"store": {"first": 0, "sequence": 0, "runs": MOST_RUNS}, "mine": True}],
        TOO_MUCH,
    ),
    "storing many runs": (
        [USUAL, {"store": {"first": 0, "sequence": 0, "runs": MOST_RUNS + 1}, "mine": True}],
        NO_PLACE,
    ),
    "storing for somebody": ([USUAL, {"store": {"first": 0, "sequence": 0}, "mine": "yes"}], NO_PLACE),
    "a stored pass of no session": (
        [USUAL, {"query": 0, "sequence": 0, "store": {"session": "x", "number": 0}}],
        NO_PLACE,
    ),
    "numbers in a block backwards": (
        [USUAL, {"ahead": {"first": 5, "sequence": 0, "runs": 2}}, {"ahead": {"first": 6, "sequence": 0}}],
        OUT_OF_ORDER,
    ),
    "a block of what nobody declared": ([USUAL, {"ahead": {"first": 0, "sequence": 1}}], NO_PLACE),
    "more blocks than allowed": (
        [USUAL, *({"ahead": {"first": at, "sequence": 0}} for at in range(BLOCKS + 1))],
        NO_PLACE,
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_server_refuses_what_no_client_sends(name, tmp_path):
    messages, what = MESSAGES[name]
    hostile = Hostile(store=PreprocessingStore(tmp_path / "store"), session="5a" * 16)
    hostile.live()
    with suppress(PeerGone):  # it has ended before all was sent
        hostile.say(*messages)
    hostile.refused(what)


def test_what_is_too_large_is_refused_before_the_dealer_hears_of_it():
    hostile = Hostile()
    hostile.live()
    hostile.say(declared([2, 100]), {"query": 0, "sequence": 0, "runs": MOST_RUNS})
    hostile.refused(TOO_MUCH)
    assert not any(b"deal" in payload for payload in hostile.asked)


def test_nothing_is_dealt_to_a_session_without_a_dealer():
    hostile = Hostile()
    hostile.say(USUAL, {"query": 0, "sequence": 0})
    hostile.refused(NO_PLACE)


@pytest.mark.parametrize("runs", [1, 4])
@pytest.mark.parametrize("second", [3, 0])
def test_a_number_is_used_once(second, runs):
    """While its block has numbers left, too."""
    hostile = Hostile()
    hostile.live()
    hostile.say(declared([2, 4]), {"query": 3, "sequence": 0, "runs": runs})
    assert hostile.channel.recv_message()["ready"] == 3
    hostile.channel.exchange(bytes(4 * 4 * OUT), 4 * 4 * WIDE)
    assert hostile.channel.recv_message()["done"] == 3
    hostile.say({"query": second, "sequence": 0})
    hostile.refused(OUT_OF_ORDER)


@pytest.mark.parametrize("size", [0, 4 * 4 * OUT - 4, 4 * 4 * OUT + 4, None])
def test_an_input_of_another_size_or_a_message_in_its_place_ends_the_session(size):
    hostile = Hostile()
    hostile.live()
    hostile.say(declared([2, 4]), {"query": 0, "sequence": 0})
    hostile.channel.recv_message()
    if size is None:
        hostile.say({"bye": True})
    else:
        hostile.channel.send(bytes(size))
    hostile.refused("" if size is None else f"{size}")


def test_blocks_that_are_dropped_leave_no_more_than_are_allowed(monkeypatch):
    """A client that has blocks made and asks for other numbers: the server waits for them, and keeps none."""
    hostile = Hostile()
    hostile.live()
    hostile.say(declared([2, 4]), declared([2, 5], number=1))
    number = 0
    for _ in range(6):
        for _ in range(BLOCKS):
            hostile.say({"ahead": {"first": number, "sequence": 1, "runs": 2}})
            number += 2
        hostile.say({"query": number, "sequence": 0})
        number += 1
        while "waiting" in (message := hostile.channel.recv_message()):
            pass
        assert message["ready"] == number - 1
        hostile.channel.exchange(bytes(4 * 4 * OUT), 4 * 4 * WIDE)
        hostile.channel.recv_message()
        assert len(hostile.party._blocks) <= BLOCKS
    hostile.say({"bye": True})
    hostile.thread.join(20)
    assert hostile.error is None


class HostileServer:
    """A server that says what it likes to a dealer."""

    def __init__(self, seed: Any = None) -> None:
        _, model = small()
        self.channel, dealer = memory_pair("server", "dealer", 10)
        weights = PublicWeights(model.manifest, model.integers)
        party = DelegatedDealer(weights, dealer, seed or (lambda: [bytes(32)]), memory=MEMORY)
        self.error: BlindformerError | None = None

        def run() -> None:
            try:
                party.serve(idle=10)
            except BlindformerError as error:
                self.error = error
            dealer.close()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def deal(self, first: int, runs: int, *calls: Any) -> None:
        self.channel.send_message({"deal": first, "runs": runs, "calls": list(calls)})

    def refused(self, what: str) -> None:
        self.thread.join(20)
        assert isinstance(self.error, PeerProtocolError), self.error
        assert self.error.party == "server"
        assert what in str(self.error)
        assert "\n" not in str(self.error)


DEALS = {
    "more rows than memory": ((0, 1, [0, LARGE]), TOO_MUCH),
    "runs whose masks take too much": ((0, MOST_RUNS, [2, 60]), TOO_MUCH),  # 64 x 60 x 80 numbers, for 48 of answers
    "many runs": ((0, MOST_RUNS + 1, [0, 1]), NO_PLACE),
    "many calls": ((0, 1, *[[0, 1]] * (MOST_CALLS + 1)), NO_PLACE),
    "an unknown group": ((0, 1, [7, 1]), NO_GROUP),
    "a negative number": ((-1, 1, [0, 1]), NO_PLACE),
}


@pytest.mark.parametrize("name", DEALS)
def test_a_dealer_refuses_what_no_server_asks_before_it_draws_a_mask(name, monkeypatch):
    drawn: list[Any] = []
    monkeypatch.setattr(delegation, "PassMasks", lambda *given: drawn.append(given))
    deal, what = DEALS[name]
    hostile = HostileServer()
    hostile.deal(*deal)
    hostile.refused(what)
    assert drawn == []


@pytest.mark.parametrize("second", [(0, 1), (2, 4), (3, 1)])
def test_a_dealer_deals_each_number_once(second):
    """For another group, too: else the server could solve for the masks."""
    hostile = HostileServer()
    hostile.deal(0, 4, [0, 2])
    assert hostile.channel.recv_message() == {"dealing": 0}
    hostile.channel.recv(4 * 4 * 2 * 2 * WIDE)
    assert hostile.channel.recv_message()["dealt"] == 0
    hostile.deal(*second, [1, 2])
    hostile.refused(OUT_OF_ORDER)


class HostileOther:
    """A server that answers a client as it likes, message by message."""

    def __init__(self) -> None:
        site = self.site = DelegatedSite()
        self.channel, mine = memory_pair("server", "client", 10)
        self.client = DelegatingClient(site.manifest, site.groups, mine, lambda seed: None)

    def answer(self, *said: Any) -> BaseException:
        """What the client's pass ends with. `said`: after each message or frame of its own, a message or a frame."""
        error: list[BaseException] = []

        def ask() -> None:
            try:
                self.client.set_up()
                self.site.runner.run(self.client, self.site.module, torch.randn(1, 4, WIDE))
            except BaseException as caught:
                error.append(caught)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        for one in said:
            if isinstance(one, bytes):
                self.channel.send(one)
            elif one is not None:
                self.channel.send_message(one)
        thread.join(20)
        assert error
        self.channel.close()
        return error[0]


ANSWERS: dict[str, list[Any]] = {
    "another number": [{"live": True}, {"ready": 7}],
    "another message": [{"live": True}, {"done": 0}],
    "a tensor for a message": [{"live": True}, bytes(4)],
    "a message for a tensor": [{"live": True}, {"ready": 0}, {"ready": 0}],
    "too few numbers": [{"live": True}, {"ready": 0}, bytes(4 * 4 * 96 - 4)],
    "too many numbers": [{"live": True}, {"ready": 0}, bytes(4 * 4 * 96 + 4)],
    "zeros": [{"live": True}, {"ready": 0}, bytes(4 * 4 * 96)],
    "no answer at all": [{"dead": True}],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_client_refuses_what_no_server_answers(name):
    error = HostileOther().answer(*ANSWERS[name])
    assert isinstance(error, PeerProtocolError)
    assert error.party == "server"
    assert "\n" not in str(error)


def test_what_a_server_says_of_seconds_and_memory_is_only_shown():
    """Numbers that are none do no harm."""
    site = DelegatedSite()
    seen: list[Any] = []

    def wrapped(me: str, peer: str, end: Any) -> Any:
        if (me, peer) == ("server", "client"):
            send = end.send_message
            end.send_message = lambda message: send(
                {key: message[key] if key in ("live", "ready", "done", "waiting") else "much" for key in message}
            )
        return end

    site.wrapped = wrapped
    client = site.client(on_pass=lambda name, answer: seen.append(answer))
    site.ask(client)
    client.close()
    assert site.ended() == []
    assert seen[0].others["server_online_s"] == 0.0


def test_limits_are_the_same_at_both_ends():
    assert delegated_client.MOST_SEQUENCES == delegated_server.MOST_SEQUENCES == MOST_SEQUENCES
    assert delegated_client.BLOCK_RUNS <= MOST_RUNS
    assert delegated_client.BLOCK_BYTES * BLOCKS < delegated_server.MEMORY_BYTES


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
