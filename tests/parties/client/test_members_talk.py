"""A conversation among N parties of this machine: tokens as in `clear`, at the declared price, and after a loss."""

from __future__ import annotations

import importlib.util
import os
import signal

import blindformer as bf
import pytest
import torch

if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.models.artifacts import load_client
from blindformer.models.building import compile_folder
from blindformer.models.program.pricing import price_among
from blindformer.parties.client.base import ClientError
from blindformer.parties.client.client import LocalClient
from blindformer.parties.client.local import find_local
from blindformer.parties.session.parties import Parties, PartiesError, numbered
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.tiny import TEMPLATE, clear_conversation, tiny_llama

GREEDY = {"max_new_tokens": 4, "do_sample": False}
NAMES = numbered(3)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"), TEMPLATE)


@pytest.fixture
def wanted(chat_folder):
    """What the reference says."""
    with clear_conversation(chat_folder) as talk:
        yield talk


@pytest.mark.slow
def test_three_parties_say_what_clear_says_at_the_declared_price(chat_folder, wanted):
    program, passes = load_client(chat_folder).for_length().program, []
    with LocalClient(find_local("crypten", 3), chat_folder, timeout=PATIENCE) as client:
        talk = client.conversation(lambda *each: passes.append(each))
        for text, options in (("Hi", {}), ("Ho, and more than eight", {"prompt_lookup_num_tokens": 3})):
            assert talk.say(text, **GREEDY, **options).tokens == wanted.say(text, **GREEDY, **options).tokens
    assert {name for name, _ in passes} == {"1@48", "8@48"}
    for name, answer in passes:
        part = program.part(name)
        declared = price_among(part, NAMES.names, NAMES.sources(part), 1)
        for party, timings in answer.by_party.items():
            assert (timings.online.sent, timings.online.received) == (declared.sent[party], declared.received[party])
            assert timings.rounds == declared.rounds
    # Correlations of up to eight passes of one token come at once; all that was dealt was for a pass.
    dealt = sum(answer.timings.offline_bytes for _, answer in passes)
    assert dealt >= sum(price_among(program.part(name), NAMES.names, {}, 1).offline_bytes for name, _ in passes)


@pytest.mark.slow
def test_after_a_loss_a_message_is_answered_by_parties_that_are_started_again(chat_folder, wanted):
    with LocalClient(find_local("crypten", 3), chat_folder, timeout=PATIENCE) as client:
        talk = client.conversation()
        assert talk.say("Hi", **GREEDY).tokens == wanted.say("Hi", **GREEDY).tokens
        for victim in ("alice", "carol", "dealer"):
            (session,) = client.sessions._by_key.values()
            os.kill(session.processes[victim], signal.SIGKILL)
            reply = talk.say("Ho", **GREEDY)
            assert reply.tokens == wanted.say("Ho", **GREEDY).tokens
            assert reply.retried.startswith(f"{victim}: was killed by SIGKILL")


@pytest.mark.slow
def test_a_private_model_generates_among_parties(model):
    ids = torch.tensor([[1, 3, 40, 41, 4]])
    made = {"slots": 48, "sizes": (1, 8)}
    with bf.make_private(model, protocol="clear", generation=made) as private:
        wanted = private.generate(ids, **GREEDY)
    with bf.make_private(model, protocol="crypten", parties=3, generation=made, timeout=PATIENCE) as private:
        assert torch.equal(private.generate(ids, **GREEDY), wanted)


def test_who_talks_owns_the_data_and_gets_the_answers(chat_folder):
    program = load_client(chat_folder).for_length().program
    NAMES.check_conversation(program)
    Parties(NAMES.names, data="carol").check_conversation(program)
    for parties in (Parties(NAMES.names, recipient="alice"), Parties(NAMES.names, {"input_ids": "carol"}, "bob")):
        with pytest.raises(PartiesError, match="one party talks, so it owns all data and gets the answers"):
            parties.check_conversation(program)


def test_a_folder_for_whole_texts_says_so(model, tmp_path):
    with pytest.raises(ClientError, match="compile the model with --chat"):
        LocalClient(find_local("crypten", 3), compile_folder(model, tmp_path, lengths=[8])).conversation()
