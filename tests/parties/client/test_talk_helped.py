"""Conversations of an owner who takes no part: helper and server keep the state, and lost sessions are replaced."""

from __future__ import annotations

import json

import blindformer as bf
import psutil
import pytest
from blindformer.parties.session.compute_slots import LimitReached
from blindformer.tests.parties.service.helped import Helped

TOKENS = 4


@pytest.fixture(scope="module")
def site(chat_folder, tmp_path_factory):
    with Helped(tmp_path_factory.mktemp("site"), chat_folder, **{"--queries-each": "60", "--state": "state"}) as site:
        yield site


@pytest.fixture
def where(site):
    return {role: "{}:{}".format(*getattr(site, role).address) for role in ("server", "helper")}


@pytest.fixture
def client(site, chat_folder, where):
    with bf.Client(topology="helper", folder=chat_folder / "client", certificates=site.certificates, **where) as client:
        yield client


def test_tokens_are_those_of_clear(client, wanted):
    talk = client.conversation()
    assert [talk.say(text, max_new_tokens=TOKENS).tokens for text in ("Hi", "Ho")] == wanted


@pytest.mark.parametrize("lost", ["helper", "server"])
def test_a_lost_session_is_read_again_in_a_new_one(site, client, wanted, lost):
    talk = client.conversation()
    assert talk.say("Hi", max_new_tokens=TOKENS).tokens == wanted[0]
    psutil.Process(getattr(site, lost).logged("session-opened")[-1]["pid"]).kill()
    again = talk.say("Ho", max_new_tokens=TOKENS)
    assert (again.tokens, bool(again.retried)) == (wanted[1], True)


def test_the_command_talks_through_them(call, site, chat_folder, where, wanted):
    words = ("--topology", "helper", "--server", where["server"], "--helper", where["helper"])
    options = (*words, "--certs", site.certificates, "--max-new-tokens", TOKENS, "--format", "json")
    code, out, errors = call("generate", chat_folder / "client", "Hi", *options)
    assert code == 0, errors
    assert json.loads(out)["tokens"] == wanted[0]


def test_every_token_counts(client):
    def ask_on():
        talk = client.conversation()
        while True:
            talk.messages = []
            talk.say("Hi", max_new_tokens=30)

    with pytest.raises(LimitReached, match="60"):
        ask_on()
