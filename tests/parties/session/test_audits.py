"""A server finds a client that changes a message in an audit, and no client can tell audits from other runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, repeat
from typing import Any

import pytest
import torch
from blindformer.models.program.pricing import price
from blindformer.models.program.program import ProgramError
from blindformer.models.program.two_server import audit_traffic, for_audits, input_layout
from blindformer.parties.session.audited_client import AuditedClient
from blindformer.parties.session.audits import draw_card, is_drawn
from blindformer.parties.session.compute_slots import LimitReached
from blindformer.parties.session.preprocessed import masks
from blindformer.parties.session.spool import Spool
from blindformer.protocols.channel import Buffer
from blindformer.protocols.errors import BlindformerError, PeerDeviated, PeerError
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.parties.session.site import Site, right, small_case
from blindformer.tests.protocols.programs import Case
from blindformer.tests.protocols.test_beaver_transcripts import inputs

RATE = 0.25


def audited(case: Case, rate: float = RATE) -> Case:
    return Case(for_audits(case.program, rate), case.client, case.weights, case.constants, case.inputs, case.states)


def site_of(case: Case, draws: Iterable[bool], **options: Any) -> Site:
    """`draws`: which runs are audits; after them, none is."""
    site, drawn = Site(audited(case), **options), chain(draws, repeat(False))
    site.draw = lambda rate: next(drawn)
    return site


@pytest.mark.parametrize("more", [True, False])
def test_an_honest_client_gets_every_answer_and_is_never_accused(more):
    site = site_of(small_case(), [False, True, True, False, True])
    with site.client(kind=AuditedClient) as client:
        spent = [site.ask(client, more).timings for _ in range(3)]
        site.ask(client)
    site.end()
    assert [one.audits for one in spent] == [0, 2, 1]


def test_costs_are_what_the_price_declares():
    site, declared = site_of(small_case(), [False, True]), price(audited(small_case()).program)
    answer = audit_traffic(site.case.program).answer
    with site.client(kind=AuditedClient) as client:
        plain, again = (site.ask(client).timings for _ in range(2))
    site.end()
    assert (plain.rounds, plain.online.sent, plain.online.received) == (declared.rounds, declared.up, declared.down)
    assert (again.rounds, again.online.sent) == (2 * declared.rounds - 1, 2 * declared.up)
    assert again.online.received == 2 * declared.down - answer
    assert again.offline_bytes == 2 * declared.offline_bytes
    frames = [len(frame) for frame in site.received["server", "dealer"] if frame[:1] != b"{"]
    assert sum(frames) == 3 * declared.dealt_bytes


class Liar(AuditedClient):
    """Changes what it sends: the byte `at` of its `frame`-th frame of each run is another."""

    frame, at, bits = 0, 0, 1

    def run(self, *args: Any, **options: Any) -> Any:
        channel, honest, left = self.server, {}, [self.frame]

        def changed(data: Buffer) -> bytes:
            left[0] -= 1
            content = bytearray(data)
            if left[0] == -1:
                content[self.at % len(content)] ^= self.bits
            return bytes(content)

        for name in ("send", "exchange"):
            honest[name] = getattr(channel, name)
            setattr(channel, name, lambda data, *size, send=honest[name]: send(changed(data), *size))
        try:
            return super().run(*args, **options)
        finally:
            for name, method in honest.items():
                setattr(channel, name, method)


def frames_of_a_run(case: Case) -> list[int]:
    """Sizes of what a client sends in one run, its masked values first; the frame before is of the set-up."""
    site = site_of(case, [])
    with site.client(kind=AuditedClient) as client:
        client.query({**case.client, **case.inputs})
    site.end()
    return [len(frame) for frame in site.received["server", "client"] if frame[:1] != b"{"][1:]


def caught(case: Case, draws: Iterable[bool], **lie: Any) -> bool:
    """Whether the server ends the session for what the client has sent. `lie`: of Liar."""
    site = site_of(case, draws)
    with site.client(kind=type("Liar", (Liar,), lie)) as client, suppress(PeerError):
        client.query({**case.client, **case.inputs})
    site.join()
    errors = [error for party, error in site.failures if party == "server"]
    assert all(isinstance(error, PeerDeviated) for error in errors)
    return bool(errors)


@pytest.mark.parametrize("kind", ["small", "every operation"])
def test_any_change_of_any_message_is_found_in_an_audit(kind):
    case = small_case() if kind == "small" else inputs("random")
    _, *sizes = frames_of_a_run(case)
    for number, size in enumerate(sizes, start=1):
        for at, bits in ((0, 1), (size // 2, 128), (size - 1, 255)):
            assert caught(case, [True], frame=number, at=at, bits=bits)


def test_an_answer_is_sent_only_after_a_run_that_was_no_audit():
    """What a client has received of a run that shows its lie: no share of an answer."""
    case = small_case()
    site = site_of(case, [True])
    with site.client(kind=type("Liar", (Liar,), {"frame": 1})) as client, pytest.raises(PeerError):
        client.query(case.client)
    site.join()
    assert b"as an audit shows" in site.received["client", "server"][-1]
    lied, honest = site.received["client", "server"][:-1], site_of(case, [])
    with honest.client(kind=AuditedClient) as client:
        client.query(case.client)
    honest.end()
    assert len(lied) == len(honest.received["client", "server"]) - 2  # {"done"} and the answer's share


def test_other_values_are_another_question_and_no_lie():
    """The client's masked values are its own choice, as in topology helper."""
    assert not caught(small_case(), [True], frame=0)


def test_a_lie_in_a_run_for_an_answer_is_not_found():
    """So an audit finds a lie with the probability of an audit, which no message tells the client before."""
    assert not caught(small_case(), [False], frame=1)


def test_masked_weights_other_than_those_it_was_sent_are_found():
    case = small_case()
    site = site_of(case, [True])
    with site.client(kind=AuditedClient) as client:
        client.weights.masked = {name: weight + 1 for name, weight in client.weights.masked.items()}
        with pytest.raises(PeerError, match="as an audit shows"):
            client.query(case.client)
    site.join()


def test_until_a_run_is_over_an_audit_looks_like_any_other_run():
    """To the client, to the network between dealer and server, and in what the server sends the dealer."""
    seen = []
    for draws in ([False], [True]):
        site = site_of(inputs("random"), draws)
        with site.client(kind=AuditedClient) as client:
            client.query({**site.case.client, **site.case.inputs})
        site.end()
        first: dict[tuple[str, str], list[int]] = {}
        for place, frames in site.received.items():
            sizes = [len(frame) if frame[:1] != b"{" else sorted(json.loads(frame)) for frame in frames]
            end = next((at for at, size in enumerate(sizes) if isinstance(size, list) and "done" in size), None)
            first[place] = sizes[:end] if end is not None else sizes
        seen.append(first)
    answer, audit = seen
    assert answer["client", "server"] == audit["client", "server"]
    for place in (("server", "dealer"), ("dealer", "server"), ("server", "client")):
        assert audit[place][: len(answer[place]) - 1] == answer[place][:-1]


def test_what_the_server_receives_is_uniform_in_audits_too():
    """A hundred audits of one text: their masked values are all different, and uniform over their bytes."""
    case = small_case()
    site = site_of(case, [True] * 100)
    with site.client(kind=AuditedClient) as client:
        client.query(case.client)
    site.end()
    size = audit_traffic(site.case.program).values
    values = [frame for frame in site.received["server", "client"] if len(frame) == size and frame[:1] != b"{"]
    assert len(set(values)) == len(values) >= 100
    counts = torch.bincount(torch.frombuffer(bytearray(b"".join(values)), dtype=torch.uint8), minlength=256).double()
    assert float(((counts - counts.mean()) ** 2).sum() / counts.mean()) < 255 + 8 * (2 * 255) ** 0.5


def test_a_card_corrects_the_values_or_reveals_the_masks_of_the_run_alone():
    program, key = audited(inputs("random")).program, new_seed()
    audit, answer = (draw_card(program, key, lambda rate, drawn=drawn: drawn) for drawn in (True, False))
    assert len(audit) == len(answer) == audit_traffic(program).card
    stream = Stream.of_key(audit[1:33])
    assert torch.equal(stream.integers("x", (4,)), masks(key).integers("x", (4,)))
    assert not any(audit[33:])
    inputs_key = Stream(key, "inputs").key
    assert stream.key != inputs_key
    assert key not in (audit[1:33], inputs_key)
    assert len(input_layout(program)) > 1


def test_audits_are_drawn_at_their_rate():
    drawn = sum(is_drawn(RATE) for _ in range(20_000))
    assert abs(drawn - 5000) < 5 * (20_000 * RATE * (1 - RATE)) ** 0.5
    assert not is_drawn(0.0)
    assert is_drawn(1.0)


def test_correlations_made_ahead_have_audits_among_them(tmp_path):
    site = site_of(small_case(), [True, False, False, True])
    site.spool, mine = Spool(tmp_path / "server"), Spool(tmp_path / "client")
    with site.client(kind=AuditedClient, spool=mine) as client:
        client.precompute(4)
    site.join()
    with site.client(kind=AuditedClient, spool=mine, use_spool="only") as client:
        assert [site.ask(client, more).timings.audits for more in (True, False)] == [1, 0]
    site.end()
    assert (site.spool.left(), mine.left()) == (1, 1)


def test_audits_count_for_no_limit():
    """The server counts what it answers: a client that has one query left gets one answer, after any audits."""
    counted: list[int] = []

    def count(texts: int) -> None:
        if len(counted) == 2:
            raise LimitReached("server", 2, 60.0, 1.0)
        counted.append(texts)

    site = site_of(small_case(), [True, True, False, True])
    with site.client(kind=AuditedClient, server={"count": count}) as client:
        site.ask(client)
        site.ask(client)
        with pytest.raises(LimitReached):
            client.query(site.case.client)
    site.end()
    assert len(counted) == 2


def test_a_server_that_calls_every_run_an_audit_gets_no_further(monkeypatch):
    monkeypatch.setattr("blindformer.parties.session.audited_client.MOST_IN_A_ROW", 3)
    site = site_of(small_case(), [True] * 4)
    with site.client(kind=AuditedClient) as client, pytest.raises(PeerError, match="that they were audits"):
        client.query(site.case.client)
    site.join()


def test_a_conversation_has_no_audits(compiled):
    with pytest.raises(ProgramError, match="keeps rows from run to run"):
        for_audits(compiled.program, RATE)


def test_parties_that_do_not_agree_on_audits_say_so():
    from blindformer.parties.session.rendezvous_two import my_hello
    from blindformer.parties.transport.handshake import _compare

    program = small_case().program
    mine, theirs = my_hello(program, "client"), my_hello(for_audits(program, RATE), "server")
    with pytest.raises(BlindformerError, match=r"has audits 0\.25, this side has 0; say --audits 0\.25 on this side"):
        _compare("server", mine, theirs)
    right(small_case(), small_case().clear())
