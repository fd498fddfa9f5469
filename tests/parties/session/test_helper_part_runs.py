"""A conversation of a data owner who takes no part: server and helper keep the state, four parties as threads."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from blindformer.models.generation.cross import CrossDecoder
from blindformer.models.generation.parts import compile_cross
from blindformer.models.generation.rows import KVState, run_clear
from blindformer.models.program.pricing import price
from blindformer.models.program.two_server import for_two_servers, owner_traffic
from blindformer.parties.session.messages import PartRun
from blindformer.parties.session.online import part_run, passes
from blindformer.protocols.errors import PeerError, PeerProtocolError
from blindformer.tests.models.generation.conftest import PREFIX, some
from blindformer.tests.models.generation.test_cross import START, answers, small, source
from blindformer.tests.parties.session.site import Site, assert_fresh
from blindformer.tests.shared.memory import is_message


@pytest.fixture
def talks(compiled):
    """The parties of a conversation."""
    return Site(SimpleNamespace(**{**vars(compiled), "program": for_two_servers(compiled.program)}))


def test_passes_give_what_clear_gives_and_cost_an_owner_what_is_declared(talks, compiled, owner_of):
    costs, text = [], some(20).tolist()
    private = KVState(
        compiled.program, passes(owner_of(talks), compiled.parts, lambda *cost: costs.append(cost)), PREFIX
    )
    clear = KVState(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX)
    for read in (text[:11], text[11:12], text[12:13]):
        torch.testing.assert_close(private.read(read), clear.read(read), rtol=0, atol=2e-2)
    for rows in (private, clear):  # a wrong draft: other tokens take its rows
        rows.crop(len(PREFIX) + 12)
    torch.testing.assert_close(private.read(text[12:16], wanted=2), clear.read(text[12:16])[-2:], rtol=0, atol=2e-2)
    for read in ([token] for token in text[16:20]):
        torch.testing.assert_close(private.read(read), clear.read(read), rtol=0, atol=2e-2)
    sent = [sum(len(p) for p in talks.received[to, "owner"] if not is_message(p)) for to in ("server", "helper")]
    assert [next(iter(answer.outputs.values())).shape[1] for _, answer in costs] == [8, 3, 1, 1, 2, 1, 1, 1, 1]
    declared = [talks.case.program.part(name) for name, _ in costs]
    assert sent == [sum(owner_traffic(part).to_server for part in declared), 0]
    assert [answer.timings.rounds for _, answer in costs] == [price(part).rounds for part in declared]


def test_the_same_text_twice_reaches_the_servers_under_other_masks(talks, compiled, owner_of):
    text = some(9).tolist()
    for _ in range(2):
        KVState(compiled.program, passes(owner_of(talks), compiled.parts), PREFIX).read(text)
    assert_fresh(talks)


@pytest.mark.parametrize(
    "message",
    [
        {"turn": {"part": "2"}},
        {"turn": {"part": "1@64", "rows": 5}},
        {"turn": {"part": "8@64", "runs": 8}},
        {"turn": {"part": "8@64"}, "revealed": [0, 9]},
        {"x": 1},
    ],
    ids=["a part", "rows", "runs", "a result's rows", "a word"],
)
def test_an_owner_cannot_ask_for_a_pass_that_is_not_there(talks, owner_of, message):
    owner = owner_of(talks)
    owner.helper.send_message({"query": 0, **message})
    with pytest.raises(PeerError, match="has no place here"):
        owner._expect(owner.helper, "ready", 0)


@pytest.mark.parametrize("other", [{"part": "1@64"}, {"part": "8@64", "revealed": [7, 8]}], ids=["a part", "rows"])
def test_shares_of_another_pass_are_refused(talks, owner_of, other):
    owner = owner_of(talks)
    owner.helper.send_message({"query": 0, "turn": {"part": "8@64"}})
    owner._expect(owner.helper, "ready", 0)
    owner.helper.send_message({"seed": "00" * 32})
    owner.server.send_message({"query": 0, **other})
    with pytest.raises(PeerError):
        owner._receive(owner.server, 0, {})
    owner.close()
    talks.join()
    assert isinstance(dict(talks.failures)["server"], PeerProtocolError)


def test_a_pass_that_is_prepared_is_the_helper_s_to_announce(talks, compiled, owner_of):
    text, owner = some(20).tolist(), owner_of(talks)
    private = KVState(compiled.program, passes(owner, compiled.parts), PREFIX)
    private.ahead = lambda part, rows: owner.announce(part_run(compiled.program, part, rows))
    clear = KVState(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX)
    for read in (text[:8], text[8:16], text[16:17]):
        private.prepare()
        torch.testing.assert_close(private.read(read), clear.read(read), rtol=0, atol=2e-2)


def test_an_owner_cannot_announce_rows_that_are_not_kept(talks, owner_of):
    owner = owner_of(talks)
    owner.announce(PartRun(part="8@64", rows=5))
    with pytest.raises(PeerError, match="has no place here"):
        owner._expect(owner.helper, "ready", 0)


def test_a_source_is_read_and_nothing_of_it_comes_back_to_its_owner(owner_of):
    decoder = CrossDecoder(small("Marian"), START).eval()
    sources, texts = {8: [source("Marian", 8, seed) for seed in range(2)]}, answers(8)
    compiled = compile_cross(decoder, sources, texts, slots=16, sizes=(1,))
    site = Site(SimpleNamespace(**{**vars(compiled), "program": for_two_servers(compiled.program)}))
    reports, ids = [], texts[0].tolist()[:3]
    private = KVState(compiled.program, passes(owner_of(site), compiled.parts, lambda *one: reports.append(one)), [])
    clear = KVState(compiled.program, run_clear(compiled.parts, compiled.weights), [])
    for given in sources[8]:
        for rows in (private, clear):
            rows.read_source("source@8", given)
        torch.testing.assert_close(private.read(ids), clear.read(ids), rtol=0, atol=2e-2)
    assert [answer.outputs for name, answer in reports if name == "source@8"] == [{}, {}]
