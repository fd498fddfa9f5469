"""Conversations in which somebody is killed, stalls or has no room: they go on, or say in one line why they do not."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import blindformer as bf
import psutil
import pytest
from blindformer.models.generation.folder import compile_chat_folder
from blindformer.parties.local import clear
from blindformer.parties.session.compute_slots import LimitReached, SlotsBusy
from blindformer.protocols.errors import PeerError, PeerGone
from blindformer.tests.models.generation.folders import TEMPLATE, tiny_llama
from blindformer.tests.parties.service.harness import Deployment, eventually

TOKENS = 6
TIMEOUT = 5.0  # seconds of silence


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    model = tiny_llama(tmp_path_factory.mktemp("model"), TEMPLATE)
    return compile_chat_folder(model, tmp_path_factory.mktemp("compiled"), slots=48)


@pytest.fixture(scope="module")
def wanted(folder):
    """What is answered to some messages, one after the other."""
    with clear.conversation(folder) as talk:
        return [talk.say(text, max_new_tokens=TOKENS).tokens for text in ("Hi", "Ho")]


@pytest.fixture(scope="module")
def deployed(folder, tmp_path_factory):
    with Deployment(tmp_path_factory.mktemp("site"), folder, timeout=TIMEOUT) as site:
        yield site


@pytest.fixture
def site(deployed):
    deployed.restore()
    return deployed


def connect(site, **options):
    where = {role: "{}:{}".format(*getattr(site, role).address) for role in ("server", "dealer")}
    given = {"timeout": site.timeout, "cache": site.folder / "cache", "wait": 60, **options}
    return bf.Client(folder=site.client_folder, certificates=site.certificates, **where, **given)


def session_of(running) -> psutil.Process:
    """The process of the session that was opened last."""
    return psutil.Process(running.logged("session-opened")[-1]["pid"])


def at(phase, number, act):
    """A client's `progress` that acts when a phase comes for this time."""
    seen = []

    def progress(name, done, total):
        if name == phase and (name != "online" or 0 < done < total):
            seen.append(done)
            if len(seen) == number:
                act()

    return progress


@pytest.mark.parametrize(
    ("role", "when"),
    [("server", "between tokens"), ("dealer", "between tokens"), ("server", "online"), ("dealer", "offline")],
)
def test_a_session_killed_anywhere_is_read_again_in_another(site, wanted, role, when):
    def kill():
        session_of(getattr(site, role)).kill()

    killing = {} if when == "between tokens" else {"progress": at(when, 4, kill)}
    with connect(site, **killing) as client:
        talk = client.conversation()
        first = talk.say("Hi", max_new_tokens=TOKENS)
        if not killing:
            kill()
        replies = [first, talk.say("Ho", max_new_tokens=TOKENS)]
        assert [reply.tokens for reply in replies] == wanted
        lost = [reply.retried for reply in replies if reply.retried]
        assert len(lost) == 1
        assert role in lost[0]
        assert len({line["session"] for line in site.server.logged("session-opened")[-2:]}) == 2


def test_while_a_server_is_away_each_message_is_one_line_and_then_it_goes_on(site, wanted):
    messages, pieces = [{"role": "user", "content": "Hi"}], []
    with connect(site, wait=0, progress=at("online", 4, lambda: site.server.kill())) as client:
        for _ in range(2):
            with pytest.raises(PeerGone, match=r"^server: [^\n]+; [^\n]+$"):
                pieces += client.chat(messages, stream=True, max_new_tokens=TOKENS)
            assert client._talk.messages == []  # of half an answer nothing is kept but what was yielded
        site.start("server")
        assert client.chat(messages, max_new_tokens=TOKENS).tokens == wanted[0]
