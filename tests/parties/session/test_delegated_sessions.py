"""Delegated sessions: answers are exact, every number and mask is used once, and a retry draws new ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from blindformer.parties.session import delegated_client, delegation
from blindformer.parties.session.delegated_client import BLOCK_RUNS
from blindformer.parties.session.delegation import MANY
from blindformer.parties.session.messages import LimitReached, SlotsBusy
from blindformer.parties.transport.handshake import new_session
from blindformer.protocols.delegated import RINGS
from blindformer.protocols.delegated.arithmetic import PassMasks
from blindformer.protocols.errors import PeerGone, PeerProtocolError
from blindformer.tests.parties.session.delegated_site import OUT, WIDE, DelegatedSite
from blindformer.tests.parties.session.site import Turnstile
from blindformer.tests.shared.memory import is_message


class Drawn:
    """All masks that the parties draw, by party; `passes`: the label of each pass."""

    def __init__(self) -> None:
        self.masks: dict[str, list[bytes]] = {"client": [], "dealer": []}
        self.passes: dict[str, list[Any]] = {"client": [], "dealer": []}

    def kind(self, party: str) -> type[PassMasks]:
        drawn = self

        class Noted(PassMasks):
            def __init__(self, key: bytes, artifact: str, server: str, sequence: Any) -> None:
                super().__init__(key, artifact, server, sequence)
                drawn.passes[party].append((key, artifact, server, sequence))

            def next(self, rows: int, inputs: int, outputs: int) -> Any:
                r, s = super().next(rows, inputs, outputs)
                drawn.masks[party] += [part.numpy().tobytes() for part in (r, s)]
                return r, s

        return Noted

    def check(self) -> None:
        """No mask twice, in any row of any call, and none of a pass that was not dealt for."""
        for masks in self.masks.values():
            pieces = [mask[at : at + 64] for mask in masks for at in range(0, len(mask), 64)]
            assert len(pieces) == len(set(pieces))
        assert len(self.passes["dealer"]) == len({key for key, *_ in self.passes["dealer"]})
        assert set(self.passes["client"]) <= set(self.passes["dealer"])


@pytest.fixture
def drawn(monkeypatch) -> Drawn:
    drawn = Drawn()
    monkeypatch.setattr(delegated_client, "PassMasks", drawn.kind("client"))
    monkeypatch.setattr(delegation, "PassMasks", drawn.kind("dealer"))
    return drawn


@pytest.fixture(params=RINGS)
def site(request) -> Iterator[DelegatedSite]:
    site = DelegatedSite(plan=request.param)
    yield site
    site.close()


def messages(site: DelegatedSite, receiver: str, sender: str) -> list[dict[str, Any]]:
    import json

    return [json.loads(payload) for payload in site.received[receiver, sender] if is_message(payload)]


@pytest.mark.parametrize("rows", [1, 3, MANY - 1, MANY, 101])
def test_an_answer_is_that_of_the_integers(site, rows):
    """To the bit: the client's own arithmetic on the exact products, without masks. Many rows travel in halves."""
    client, x = site.client(), torch.randn(1, rows, WIDE)
    answer = site.runner.run(client, site.module, x)

    class Exact:
        begin = end = abandon = lambda *given: None

        def call(self, group: int, x: torch.Tensor) -> torch.Tensor:
            mine = site.groups[group]
            sent = mine.mask(x, torch.zeros(x.shape, dtype=torch.int32))
            product = sent.q.to(torch.int64) @ site.model.integers[group].to(torch.int64).t()
            values = torch.empty(product.shape)
            assert mine.open(sent, product.to(torch.int32), torch.zeros(product.shape, dtype=torch.int32), values)
            return values

    assert torch.equal(answer, site.runner.run(Exact(), site.module, x))
    client.close()
    assert site.ended() == []


def test_answers_arrive_for_any_numbers(site):
    """Zeros, numbers of all sizes, and rows that are none."""
    client = site.client()
    for x in (torch.zeros(1, 2, WIDE), torch.full((1, 2, WIDE), 1e-42), torch.full((1, 2, WIDE), 1e30)):
        site.ask(client, x)
    for bad in (torch.inf, torch.nan):
        x = torch.randn(1, 3, WIDE)
        x[0, 1, 5] = bad
        answer = site.runner.run(client, site.module, x)
        assert answer[0, 1].isnan().all()
        assert answer[0, [0, 2]].isfinite().all()
    client.close()
    assert site.ended() == []


def test_each_number_is_dealt_once_and_used_once(site, drawn):
    """Through changes of shapes, blocks ahead, and what was made for nothing."""
    client = site.client()
    for rows in (4, 4, 4, 1, 1, 4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 7):
        site.ask(client, torch.randn(1, rows, WIDE))
        if rows == 1:
            client.prepare()
    client.close()
    assert site.ended() == []
    asked = [message["query"] for message in messages(site, "server", "client") if "query" in message]
    assert all(one < other for one, other in pairwise(asked))
    dealt = [
        number
        for message in messages(site, "dealer", "server")
        if "deal" in message
        for number in range(message["deal"], message["deal"] + message["runs"])
    ]
    assert len(dealt) == len(set(dealt))
    assert set(asked) <= set(dealt)
    assert len(drawn.passes["client"]) == len(asked)
    drawn.check()


@pytest.mark.parametrize("runs", [*range(1, 10), 15])
def test_blocks_of_any_number_of_passes_are_never_too_many(site, monkeypatch, runs):
    """Passes of several rows, or of a large model, fill a block with few of them."""
    one = delegation.memory_bytes([(group.inputs, group.outputs) for group in site.groups], ((0, 4), (1, 4), (2, 4)))
    monkeypatch.setattr(delegated_client, "BLOCK_BYTES", runs * one)
    client = site.client()
    for number in range(3 * runs + 8):
        site.ask(client)
        if number % 5 == 0:
            client.prepare()
    client.close()
    assert site.ended() == []


def test_passes_that_go_on_are_dealt_in_blocks_ahead(site):
    client = site.client()
    for _ in range(20):
        site.ask(client)
    before = len(messages(site, "dealer", "server"))
    client.prepare()
    client.close()
    assert site.ended() == []
    deals = [message for message in messages(site, "dealer", "server") if "deal" in message]
    assert [message["runs"] for message in deals[:2]] == [1, BLOCK_RUNS]
    assert before <= 2 + 20 // BLOCK_RUNS + 1
    assert all(len(message["calls"]) == 3 for message in deals)


def test_a_block_is_no_larger_than_what_its_numbers_may_take(site, monkeypatch):
    """Of corrections at the server, and of masks at the dealer."""
    monkeypatch.setattr(delegated_client, "BLOCK_BYTES", 4 * 4 * 4 * (96 + 80 + 48))
    client = site.client()
    for _ in range(9):
        site.ask(client)
    client.close()
    assert site.ended() == []
    runs = [message["runs"] for message in messages(site, "dealer", "server") if "deal" in message]
    assert max(runs) == 4
    assert delegated_client.memory_bytes([(OUT, 4)], ((0, 5), (0, 1))) == 4 * 5 * OUT
    assert delegated_client.memory_bytes([(4, OUT)], ((0, 5), (0, 1))) == 4 * 6 * OUT


def test_passes_of_one_row_go_together_in_a_model_of_any_size(site, monkeypatch):
    monkeypatch.setattr(delegated_client, "BLOCK_BYTES", 1)
    client = site.client()
    for rows in (1, 1, 1, 8, 8, 8):
        site.ask(client, torch.randn(1, rows, WIDE))
    client.close()
    assert site.ended() == []
    deals = [message for message in messages(site, "dealer", "server") if "deal" in message]
    runs = {rows: max(deal["runs"] for deal in deals if deal["calls"][0][1] == rows) for rows in (1, 8)}
    assert runs == {1: BLOCK_RUNS, 8: 2}


def test_a_second_seed_for_a_session_is_refused(site):
    """Else two clients' sessions, or one client's copy, would have the same masks."""
    session = new_session()
    client = site.client(session=session)
    site.ask(client)
    with pytest.raises(PeerProtocolError, match="its seed for this session was left already; start a new session"):
        site.seed(session, bytes(32))
    client.close()
    assert site.ended() == []


def asked(channel: Any, message: dict[str, Any]) -> dict[str, Any]:
    channel.send_message(message)
    return channel.recv_message()


def test_a_second_server_of_a_session_gets_no_corrections(site):
    """The seed was taken: what one server was dealt, no other is."""
    session = new_session()
    client = site.client(session=session)
    site.ask(client)
    second = site.dial(session)
    with pytest.raises(PeerGone, match="stopped and said"):  # the first of these that comes after it has hung up
        asked(second, {"deal": 0, "runs": 1, "calls": [[0, 4]]})
    site.ask(client)
    client.close()
    (error,) = site.ended()
    assert "cannot be dealt to" in str(error)


def test_a_retry_has_a_new_seed_and_draws_no_mask_again(site, drawn):
    x = torch.randn(1, 4, WIDE)
    client = site.client()
    site.ask(client, x)
    site.vanish("server")
    with pytest.raises(PeerGone):
        site.runner.run(client, site.module, x)
    assert not client.open
    again = site.client()
    site.ask(again, x)
    again.close()
    keys = [key for key, *_ in drawn.passes["client"]]
    assert len(keys) == len(set(keys))
    drawn.check()
    site.ended()


@pytest.mark.parametrize("where", ["server", "dealer", "limit"])
@pytest.mark.parametrize("refused", [0, 1, 2, 9])
def test_a_refused_pass_uses_no_number_again(site, drawn, where, refused):
    """A busy party, or a limit, at any pass: the session goes on, with other numbers."""
    limits = iter([*[None] * refused, LimitReached("server", 3, 86400.0, 60.0)])

    def count(_: int) -> None:
        if (limit := next(limits, None)) is not None:
            raise limit

    before = min(refused, 2) if where == "dealer" else refused  # it deals in blocks
    busy = {"admission": Turnstile([False] * before + [True], party=where)}
    given: dict[str, Any] = {"server": {"count": count}} if where == "limit" else {where: busy}
    client, seen = site.client(**given), []
    for rows in (4, 4, 3, *[4] * 10):
        x = torch.randn(1, rows, WIDE)
        try:
            site.ask(client, x)
        except (SlotsBusy, LimitReached) as error:
            seen.append(error)
            assert client.open
            site.ask(client, x)
    client.close()
    assert len(seen) == 1
    assert site.ended() == []
    assert len(drawn.passes["client"]) == 13
    drawn.check()


def test_a_fork_does_not_use_its_parents_masks(site, drawn, monkeypatch):
    """It sends nothing, not even a goodbye: the connection is its parent's."""
    client = site.client()
    site.ask(client)
    sent = len(site.received["server", "client"])
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    with pytest.raises(PeerGone, match="another process has opened; open a new session"):
        site.runner.run(client, site.module, torch.randn(1, 4, WIDE))
    assert not client.open
    monkeypatch.undo()
    assert len(site.received["server", "client"]) == sent
    client.server.send_message({"bye": True})
    assert site.ended() == []


def test_masks_are_bound_to_the_servers_certificate(site, monkeypatch):
    """A dealer that serves another server gives it corrections that fit no answer of this one."""
    seen: list[str] = []

    class Certificate:
        fingerprint = "5e" * 32

    class Noted(PassMasks):
        def __init__(self, key: bytes, artifact: str, server: str, sequence: Any) -> None:
            seen.append(server)
            super().__init__(key, artifact, server, sequence)

    monkeypatch.setattr(delegated_client, "PassMasks", Noted)
    monkeypatch.setattr(delegation, "PassMasks", Noted)

    def certified(me: str, peer: str, end: Any) -> Any:
        if peer == "server":
            end.certificate = Certificate()
        return end

    site.wrapped = certified
    client = site.client()
    site.ask(client)
    client.close()
    assert site.ended() == []
    assert set(seen) == {"5e" * 32}


def test_whom_a_client_dials_follows_from_nothing_that_a_server_says(site):
    """Its seed is with its own dealer before the server has said a word."""
    order: list[str] = []
    seed = site.seed

    def leave(session: str, content: bytes) -> None:
        order.append(f"seed before {len(site.received.get(('client', 'server'), []))} messages")
        seed(session, content)

    site.seed = leave  # type: ignore[method-assign]
    site.client().close()
    assert order == ["seed before 0 messages"]
    assert site.ended() == []


def test_a_session_has_so_many_shapes_and_no_more(site, monkeypatch):
    monkeypatch.setattr(delegated_client, "MOST_SEQUENCES", 3)
    client = site.client()
    for rows in (1, 2, 3, 1, 2):
        site.ask(client, torch.randn(1, rows, WIDE))
    with pytest.raises(PeerProtocolError, match="knows as many shapes as one session may have; open a new session"):
        site.ask(client, torch.randn(1, 4, WIDE))
    assert site.ended() == []


def test_the_answer_says_what_a_pass_has_cost(site):
    seen: list[Any] = []
    client = site.client(on_pass=lambda name, answer: seen.append(answer))
    site.ask(client)
    client.close()
    (answer,) = seen
    assert answer.timings.rounds == 3
    each = site.model.manifest.ring // 8
    assert answer.timings.online.sent == each * 4 * (WIDE + WIDE + OUT)
    assert answer.timings.online.received == answer.timings.offline_bytes == each * 4 * (2 * WIDE + OUT + WIDE)
    assert site.ended() == []
