"""A server finds a client that changes a message in an audit, and no client can tell audits from other runs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, repeat
from typing import Any

import pytest
import torch
from blindformer.models.program.pricing import price
from blindformer.models.program.program import Program, ProgramError
from blindformer.models.program.two_server import audit_traffic, for_audits, input_layout
from blindformer.parties.reports.report import who_learned_what
from blindformer.parties.session.audits import AuditedClient, AuditedRun, draw_audit_token, is_drawn
from blindformer.parties.session.messages import LimitReached
from blindformer.parties.session.preprocessed import masks
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.parties.session.rendezvous_two import my_hello, rate_in_words
from blindformer.parties.transport.handshake import _compare
from blindformer.protocols import ring
from blindformer.protocols.channel import Buffer
from blindformer.protocols.errors import (
    BlindformerError,
    CorrelationError,
    PeerDeviated,
    PeerError,
    PeerGone,
    PeerRefused,
)
from blindformer.protocols.matmul import matmul_limbs
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.parties.session.site import Site, small_case
from blindformer.tests.protocols.cases import CASES
from blindformer.tests.protocols.programs import Case, Data, Draft, hidden
from blindformer.tests.protocols.test_beaver_transcripts import inputs
from blindformer.tests.shared.memory import is_message

RATE = 0.25


def message(frame: bytes) -> dict[str, Any] | None:
    """A JSON message; None for numbers."""
    return json.loads(frame) if is_message(frame) else None


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


def test_every_operation_passes_an_audit():
    """All cases of the protocols' conformance that keep nothing, and whose results go to the client."""
    passed = 0
    for make in CASES.values():
        case = make()
        kept = case.program.needs() & {"keep", "state"}
        to = {item.attributes.get("to") for item in case.program.instructions if item.op == "reveal"}
        if not kept and to == {"client"}:
            site = site_of(case, [True])
            with site.client(kind=AuditedClient) as client:
                passed += client.query({**case.client, **case.inputs}).timings.audits
            site.end()
    assert passed > 100


def test_a_report_says_what_the_server_learned_in_audits():
    program = small_case().program
    assert "audits" not in who_learned_what(program)["server"]
    learned = who_learned_what(for_audits(program, RATE))["server"]
    assert learned.endswith(
        ", and the client's masks of runs that were audits; learns nothing about the text or the answer"
    )


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
    frames = [len(frame) for frame in site.received["server", "dealer"] if message(frame) is None]
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
    return [len(frame) for frame in site.received["server", "client"] if message(frame) is None][1:]


def caught(case: Case, draws: Iterable[bool], **lie: Any) -> bool:
    """Whether the server ends the session for what the client has sent. `lie`: of Liar."""
    site = site_of(case, draws)
    with site.client(kind=type("Liar", (Liar,), lie)) as client, suppress(PeerError):
        client.query({**case.client, **case.inputs})
    site.join()
    errors = [error for party, error in site.failures if party == "server"]
    assert all(isinstance(error, PeerDeviated) for error in errors)
    return bool(errors)


@pytest.mark.slow
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
        first: dict[tuple[str, str], list[Any]] = {}
        for place, frames in site.received.items():
            sizes: list[Any] = [
                len(frame) if (content := message(frame)) is None else sorted(content) for frame in frames
            ]
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
    values = [frame for frame in site.received["server", "client"] if len(frame) == size and message(frame) is None]
    assert len(set(values)) == len(values) >= 100
    counts = torch.bincount(torch.frombuffer(bytearray(b"".join(values)), dtype=torch.uint8), minlength=256).double()
    assert float(((counts - counts.mean()) ** 2).sum() / counts.mean()) < 255 + 8 * (2 * 255) ** 0.5


def test_an_audit_token_corrects_the_values_or_reveals_the_masks_of_the_run_alone():
    program, key = audited(inputs("random")).program, new_seed()
    audit, answer = (draw_audit_token(program, key, lambda rate, drawn=drawn: drawn) for drawn in (True, False))
    assert len(audit) == len(answer) == audit_traffic(program).audit_token
    stream = Stream.of_key(audit[1:33])
    assert torch.equal(stream.integers("x", (4,)), masks(key).integers("x", (4,)))
    assert not any(audit[33:])
    inputs_key = Stream(key, "inputs").key
    assert stream.key != inputs_key
    assert key not in (audit[1:33], inputs_key)
    assert len(input_layout(program)) > 1


@pytest.mark.parametrize("error", [StopIteration(), RuntimeError(), MemoryError(), CorrelationError("is missing")])
@pytest.mark.parametrize("place", ["interpret", "take_keys"])
def test_a_check_that_ends_in_an_error_is_not_passed(error, place, monkeypatch):
    """Whatever a client could bring about in it: the session ends as if another message had been found."""

    def fail(*_: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(f"blindformer.parties.session.audits.{place}", fail)
    site = site_of(small_case(), [True])
    with site.client(kind=AuditedClient) as client, pytest.raises(PeerError, match="that an audit cannot check"):
        client.query(site.case.client)
    site.join()
    assert [type(error) for party, error in site.failures if party == "server"] == [PeerDeviated]
    messages = [message(frame) or {} for frame in site.received["client", "server"]]
    assert not any("done" in one for one in messages)


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_who_hangs_up_while_the_server_checks_is_found_all_the_same(seconds, monkeypatch):
    """Also where the check takes so long that the server tries to tell the client that it is still there."""
    compare = AuditedRun._compare

    def slow(self, passed_on):
        time.sleep(seconds)
        compare(self, passed_on)

    monkeypatch.setattr(AuditedRun, "_compare", slow)
    site = site_of(small_case(), [True], timeout=3.0)

    def hang_up(*_: Any) -> None:
        site.vanish("client")
        raise PeerGone("client", "has hung up", "ask again")

    with suppress(PeerError), site.client(kind=type("Liar", (Liar,), {"frame": 1})) as client:
        monkeypatch.setattr("blindformer.parties.session.two_party_client.receive_for_query", hang_up)
        client.query(site.case.client)
    site.join()
    assert [type(error) for party, error in site.failures if party == "server"] == [PeerDeviated]


def test_who_is_late_with_its_last_message_gets_no_answer_and_is_found():
    """The time of a worker would be over in the check of an audit, and a run for an answer would be quick enough."""
    late = {"server": {"seconds": 0.0}}
    site = site_of(small_case(), [False])
    with site.client(kind=AuditedClient, **late) as client, pytest.raises(PeerError, match="gets no answer after 0"):
        client.query(site.case.client)
    site.join()
    site = site_of(small_case(), [True])
    with site.client(kind=type("Liar", (Liar,), {"frame": 1}), **late) as client, pytest.raises(PeerError):
        client.query(site.case.client)
    site.join()
    assert [type(error) for party, error in site.failures if party == "server"] == [PeerDeviated]


def test_a_client_that_another_session_has_found_gets_no_answer_in_this_one():
    """The server looks before each query, and before it gives an answer away."""
    refused, looks = PeerRefused("client", "has deviated", "find out why"), iter((None, None, None, True))

    def check_peer():
        if next(looks, True):
            raise refused

    site = site_of(small_case(), [])
    with site.client(kind=AuditedClient, server={"check_peer": check_peer}) as client:
        site.ask(client)
        with pytest.raises(PeerError):
            client.query(site.case.client)
    site.join()
    assert [error for party, error in site.failures if party == "server"] == [refused]
    messages = [message(frame) or {} for frame in site.received["client", "server"]]
    assert len([one for one in messages if "done" in one]) == 1


@pytest.mark.parametrize("width", [17, 21, 41, 44])
def test_kernels_that_leave_other_bits_above_a_value_accuse_nobody(width, monkeypatch):
    """A public weight multiplies the client's share as its own processor does; what travels are whole bytes."""
    data, draft = Data(3), Draft()
    x = hidden(draft, data, 4, 64, bits=min(20, width - 3))
    y = draft("linear", x, draft.constant(data.ints(64, 8, bits=15)), width=width)
    out = draft._emit("reveal", (y,), draft.values[y] >> 5, width - 5, {"to": "client", "bits": 5, "ring": width})
    program = Program(instructions=tuple(draft.instructions), outputs={"y": out})
    case = Case(program, *(draft.tensors[kind] for kind in ("client", "weight", "constant", "input", "state")))
    other, client_thread = ring.linear, threading.current_thread()

    def linear(x, weight, bits=64):
        return matmul_limbs(x, weight, bits) if threading.current_thread() is client_thread else other(x, weight, bits)

    monkeypatch.setattr(ring, "linear", linear)
    site = site_of(case, [True])
    with site.client(kind=AuditedClient) as client:
        assert client.query(case.client).timings.audits == 1
    site.end()


def test_audits_are_drawn_at_their_rate():
    drawn = sum(is_drawn(RATE) for _ in range(20_000))
    assert abs(drawn - 5000) < 5 * (20_000 * RATE * (1 - RATE)) ** 0.5
    assert not is_drawn(0.0)
    assert is_drawn(1.0)


def test_correlations_made_ahead_have_audits_among_them(tmp_path):
    site = site_of(small_case(), [True, False, False, True])
    site.store, mine = PreprocessingStore(tmp_path / "server"), PreprocessingStore(tmp_path / "client")
    with site.client(kind=AuditedClient, store=mine) as client:
        client.precompute(4)
    site.join()
    with site.client(kind=AuditedClient, store=mine, use_store="only") as client:
        assert [site.ask(client, more).timings.audits for more in (True, False)] == [1, 0]
    site.end()
    assert (site.store.left(), mine.left()) == (1, 1)


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
    monkeypatch.setattr("blindformer.parties.session.audits.MOST_IN_A_ROW", 3)
    site = site_of(small_case(), [True] * 4)
    with site.client(kind=AuditedClient) as client, pytest.raises(PeerError, match="that they were audits"):
        client.query(site.case.client)
    site.join()


def test_a_program_that_keeps_rows_has_no_audits(compiled):
    """A conversation's, and one of its parts by itself."""
    for program in (compiled.program, *compiled.program.parts.values()):
        with pytest.raises(ProgramError, match="keeps rows from run to run"):
            for_audits(program, RATE)


@pytest.mark.parametrize("op", ["client", "keep"])
def test_a_stored_program_with_audits_that_would_reveal_something_is_refused(op, compiled):
    """Whoever compiles a program need not own the data: client and dealer refuse it as they read it."""
    part = next(part for part in compiled.program.parts.values() if op in part.needs())
    program = small_case().program if op == "client" else part
    with pytest.raises(ProgramError, match="has audits, and values that an audit would reveal"):
        Program.from_json(program.model_copy(update={"audits": RATE}).to_json())
    handed_over = for_audits(small_case().program, RATE)
    assert Program.from_json(handed_over.to_json()).audits == RATE


@pytest.mark.parametrize(("rate", "words"), [(0.25, "0.25"), (0.0, "0"), (1 / 3, repr(1 / 3))])
def test_a_rate_is_named_exactly(rate, words):
    assert rate_in_words(rate) == words
    assert float(words) == rate


def test_parties_that_do_not_agree_on_audits_say_so():
    program = small_case().program
    mine, theirs = my_hello(program, "client"), my_hello(for_audits(program, RATE), "server")
    with pytest.raises(BlindformerError, match=r"has audits 0\.25, this side has 0; write audits = 0\.25 in"):
        _compare("server", mine, theirs)
