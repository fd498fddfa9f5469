"""Conversations in which somebody is killed, stalls or has no room: they go on, or say in one line why they do not."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psutil
import pytest
from blindformer.parties.session.messages import SlotsBusy
from blindformer.protocols.errors import PeerGone
from blindformer.tests.parties.service.helped import Helped
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import Deployment, eventually

TOKENS = 6
TIMEOUT = 5.0  # seconds of silence


@pytest.fixture(scope="module")
def deployed(chat_folder, tmp_path_factory):
    with Deployment(tmp_path_factory.mktemp("site"), chat_folder, timeout=TIMEOUT) as site:
        yield site


@pytest.fixture
def site(deployed):
    deployed.restore()
    return deployed


def connect(site, **options):
    return site.client(**{"cache": site.folder / "cache", "wait": 60, **options})


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
    with connect(site, wait=0, progress=at("online", 4, site.server.kill)) as client:
        for _ in range(2):
            with pytest.raises(PeerGone, match=r"^server: [^\n]+; [^\n]+$"):
                pieces += client.chat(messages, stream=True, max_new_tokens=TOKENS)
            assert client.kept_conversation().messages == []  # of half an answer nothing is kept but what was yielded
        site.start("server")
        assert client.chat(messages, max_new_tokens=TOKENS).tokens == wanted[0]


def test_two_talk_at_once_and_a_third_waits_for_a_session(chat_folder, wanted, tmp_path):
    """Two conversations share one worker, pass by pass; who finds neither a worker nor a place in the queue asks
    again."""
    limits = {"sessions": 2, "share": 1, "workers": 1, "queue": 0}
    seen = {name: [] for name in ("one", "other", "third")}
    with Deployment(tmp_path, chat_folder, server=limits) as site, ThreadPoolExecutor(3) as pool, ExitStack() as stack:

        def client(name, **options):
            progress = lambda phase, done, total: seen[name].append(phase)  # noqa: E731
            return stack.enter_context(connect(site, progress=progress, **options))

        def say(talk):
            return talk.say("Hi", max_new_tokens=3).tokens

        one, other = client("one"), client("other")
        talks = [one.conversation(), other.conversation()]
        with pytest.raises(SlotsBusy, match=r"^server: is busy \(all sessions are taken\); ask again in"):
            client("third", wait=0).conversation()
        assert list(pool.map(say, talks)) == [wanted[0][:3]] * 2
        assert "busy" in seen["one"] + seen["other"]
        third = pool.submit(lambda: say(client("third").conversation()))
        eventually(lambda: seen["third"].count("busy") > 1, "the third waits")
        one.close()
        assert third.result(PATIENCE) == wanted[0][:3]


def test_a_dealer_that_stalls_is_waited_for_and_then_named(site, wanted):
    stalled = []

    def stall(phase, done, total):
        if phase == "offline":
            stalled.append(session_of(site.dealer))
            stalled[-1].suspend()

    with connect(site) as client:
        talk = client.conversation()
        client.sessions.progress, started = stall, time.monotonic()
        with pytest.raises(PeerGone, match=r"^server: .*dealer: sent nothing for 5 seconds; [^\n]+$"):
            talk.say("Hi", max_new_tokens=TOKENS)
        assert time.monotonic() - started >= 2 * TIMEOUT
        for process in stalled:
            process.resume()
        assert len(stalled) == 2
        client.sessions.progress = None
        assert talk.say("Hi", max_new_tokens=TOKENS).tokens == wanted[0]


# --- an owner who takes no part: helper and server keep the state ----------------------------------------------------
@pytest.fixture(scope="module")
def helped(chat_folder, tmp_path_factory):
    with Helped(tmp_path_factory.mktemp("site"), chat_folder, queries_each=60, state="state") as site:
        yield site


@pytest.fixture
def owner(helped):
    with helped.client() as client:
        yield client


@pytest.mark.parametrize("lost", [None, "helper", "server"])
def test_a_session_with_two_servers_says_what_clear_says_and_is_read_again_where_it_is_lost(
    helped, owner, wanted, lost
):
    talk = owner.conversation()
    assert talk.say("Hi", max_new_tokens=TOKENS).tokens == wanted[0]
    if lost:
        psutil.Process(getattr(helped, lost).logged("session-opened")[-1]["pid"]).kill()
    second = talk.say("Ho", max_new_tokens=TOKENS)
    assert (second.tokens, bool(second.retried)) == (wanted[1], bool(lost))


def test_the_command_talks_through_two_servers(report_of, helped, wanted, tmp_path):
    file = helped.write_config(tmp_path / "two.toml")
    file.write_text(f'[session]\ntopology = "helper"\n{file.read_text()}')
    where = ("--config", file, "--server", helped.addresses()["server"])
    report = report_of("chat", helped.client_folder, "Hi", *where, "--max-new-tokens", TOKENS)
    assert report["tokens"] == wanted[0]
