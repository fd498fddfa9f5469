"""N parties and a dealer as real processes over mutual TLS, on CrypTen's communicator: costs, deaths, conversations."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.models.artifacts import load_client
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price_among
from blindformer.parties.client.client import LocalClient
from blindformer.parties.client.local import find_local
from blindformer.parties.client.local_n_party import LocalNParty
from blindformer.parties.launch.processes import LaunchError
from blindformer.parties.session.parties import Parties, PartiesError, numbered
from blindformer.protocols.clear import ClearEngine
from blindformer.tests.parties.conftest import TEXTS
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.tiny import clear_conversation

GREEDY = {"max_new_tokens": 4, "do_sample": False}
NAMES = numbered(3)


@pytest.mark.slow
def test_three_parties_answer_as_clear_does_and_leave_nothing(classifier, loaded):
    compiled, folder = classifier
    owners = numbered(3).sources(compiled.program)
    with LocalNParty(folder, numbered(3), timeout=PATIENCE) as parties:
        pids = parties.processes.values()
        for text in TEXTS[:2]:
            inputs = loaded.encode(text, 16)
            answer = parties.query(inputs)
            sources = {**compiled.encode_inputs(inputs), **compiled.weights, **compiled.constants}
            expected = interpret(compiled.program, ClearEngine(sources)).outputs
            for name, value in answer.outputs.items():
                scale = compiled.program.instructions[compiled.program.outputs[name]].scale
                assert (value - expected[name].double() * 2.0**-scale).abs().max() < 0.01
            assert set(answer.by_party) == {"alice", "bob", "carol"}
            declared = price_among(compiled.program, parties.parties.names, owners, 1)
            for name, timings in answer.by_party.items():
                assert (timings.online.sent, timings.online.received) == (declared.sent[name], declared.received[name])
                assert timings.rounds == declared.rounds
            assert answer.timings.online.sent == declared.online_bytes
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["alice", "carol", "dealer"])
def test_a_party_that_is_killed_is_named(folder, loaded, victim):
    with LocalNParty(folder, numbered(3), timeout=PATIENCE) as parties:
        os.kill(parties.processes[victim], signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(LaunchError, match=f"^{victim}: was killed by SIGKILL"):
            parties.query(loaded.encode(TEXTS[0], 16))
        assert time.monotonic() - started < PATIENCE / 2, "nobody waited for the timeout"
        assert not parties.open


@pytest.mark.slow
def test_when_the_launcher_itself_dies_the_parties_follow(folder):
    code = (
        "import time; from blindformer.parties.client.local_n_party import LocalNParty\n"
        "from blindformer.parties.session.parties import numbered\n"
        f"parties = LocalNParty({str(folder)!r}, numbered(2))\n"
        "print(parties.scratch, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        scratch = Path(owner.stdout.readline().strip())
        parties = psutil.Process(owner.pid).children(recursive=True)
        names, there = [party.name() for party in parties], scratch.is_dir()
        owner.kill()
    assert (names.count("serve"), "dealer" in names, there) == (2, True, True)
    _, alive = psutil.wait_procs(parties, timeout=PATIENCE)
    assert (alive, scratch.exists()) == ([], False)


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


def test_who_talks_owns_the_data_and_gets_the_answers(chat_folder):
    program = load_client(chat_folder).for_length().program
    NAMES.check_conversation(program)
    Parties(NAMES.names, data="carol").check_conversation(program)
    for parties in (Parties(NAMES.names, recipient="alice"), Parties(NAMES.names, {"input_ids": "carol"}, "bob")):
        with pytest.raises(PartiesError, match="one party talks, so it owns all data and gets the answers"):
            parties.check_conversation(program)
