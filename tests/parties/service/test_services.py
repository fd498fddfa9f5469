"""A real dealer and a real server, as processes: right answers side by side, and trouble that stays where it is."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psutil
import pytest
from blindformer.models.artifacts import load_server
from blindformer.models.compile import decode_outputs
from blindformer.parties.certificates.issuing import add_certificate, renew_certificates, revoke
from blindformer.parties.certificates.tls_folder import client_context
from blindformer.parties.config import SessionSection
from blindformer.parties.service.quota import Quota
from blindformer.parties.session.audits import client_kind
from blindformer.parties.session.messages import LimitReached
from blindformer.parties.session.rendezvous_two import agreed_program, my_hello, seed_dealer
from blindformer.parties.transport.handshake import PeerFacts, meet, new_session, probe
from blindformer.parties.transport.tls import dial
from blindformer.protocols.errors import PeerError, PeerGone, PeerRefused
from blindformer.tests.parties.service.answers import check, clear
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import CROWD, Deployment, Running, crowd, eventually, served_beside
from blindformer.versions import spoken_version

TEXT = "how is my password ?"


class Client:
    """A data owner's session with the services of `site`; `name`: of its certificate; `server`: another than its;
    `audits`: as of the server's settings; `shaped`: wraps the channel to the server."""

    def __init__(
        self,
        site: Deployment,
        part,
        length: int = 8,
        name: str = "client",
        server: Running | None = None,
        audits: float = 0.0,
        shaped: Callable[[Any], Any] = lambda channel: channel,
    ) -> None:
        self.part = part.for_length(length)
        self.question = part.encode(TEXT, length)
        self.session = new_session()
        self.running = server or site.server
        context = client_context(site.certificates, "client", name)
        program = agreed_program(self.part.program, SessionSection(audits=audits))
        mine = my_hello(program, "client", self.session)
        self.server = shaped(meet(self.running.address, context, "server", mine, site.timeout))
        self.seed = partial(seed_dealer, context, site.dealer.address, mine, site.timeout)
        self.party = client_kind(program)(program, self.part.constants, self.server, self.seed, session=self.session)
        try:
            self.party.set_up()
        except BaseException:
            self.close()
            raise

    def ask(self, more: bool = False):
        answer = self.party.query(self.question.sources(), more=more)
        return decode_outputs(self.part.program, answer.outputs)

    def close(self) -> None:
        """Returns when the server has given the place away."""
        self.party.close()
        closed = {"session": self.session[:8]}
        if self.running.logged("session-opened", **closed):
            over = lambda: self.running.logged("session-closed", **closed)  # noqa: E731
            eventually(lambda: over() or self.running.process.poll() is not None, "the session is closed")


def client(site: Deployment, part, **options) -> contextlib.closing[Client]:
    return contextlib.closing(Client(site, part, **options))


@pytest.fixture(scope="module")
def expected(compiled, part):
    """What the model says to TEXT in the clear, by length."""
    server = load_server(compiled)
    return {length: clear(server.for_length(length), part.encode(TEXT, length).sources()) for length in (8, 16)}


def test_a_silent_crowd_shuts_nobody_out(site, part, expected):
    """More connections than a process may open files: to the server and to the dealer, and half a TLS hello in some."""

    def ask() -> None:
        with client(site, part) as mine:
            check(mine.ask(), expected[8])

    kinds = ((CROWD, b""), (CROWD // 4, b"\x16\x03\x01\x01\x00half"))
    assert served_beside([crowd(to.address, *kind) for to in (site.server, site.dealer) for kind in kinds], ask)


def test_two_clients_at_once_with_programs_of_two_lengths(site, part, expected):
    def talk(length: int):
        with client(site, part, length=length) as mine:
            return [mine.ask(more=number < 2) for number in range(3)]

    with ThreadPoolExecutor(2) as pool:
        for length, answers in zip((8, 16), pool.map(talk, (8, 16)), strict=True):
            for answer in answers:
                check(answer, expected[length])
    first = site.server.wait_for("session-opened", peer="client")
    assert len(site.server.logged("answered")) >= 6
    assert len(first["session"]) == 8


def test_the_log_names_no_secret(site, part):
    with client(site, part) as mine:
        mine.ask()
    site.server.wait_for("session-closed", session=mine.session[:8])
    text = str(site.server.log) + str(site.dealer.log)
    assert mine.party.seed.hex() not in text
    assert mine.session not in text
    assert TEXT not in text
    assert site.server.noise == site.dealer.noise == []


class Paused:
    """A query that stops in its online phase until `go`: meanwhile it holds a worker of the server."""

    def __init__(self, mine: Client) -> None:
        self.mine = mine
        self._reached, self._go = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(1)
        self.answer = self._pool.submit(mine.party.query, mine.question.sources(), self._progress)
        assert self._reached.wait(PATIENCE)

    def go(self):
        self._go.set()
        outputs = self.answer.result(PATIENCE).outputs
        self._pool.shutdown()
        return decode_outputs(self.mine.part.program, outputs)

    def _progress(self, phase: str, done: int, total: int) -> None:
        if phase == "offline":
            return
        self._reached.set()
        assert self._go.wait(PATIENCE)


def child_of(running, session: str) -> psutil.Process:
    """The process that serves a session."""
    pid = running.logged("session-opened", session=session[:8])[-1]["pid"]
    return psutil.Process(pid)


@pytest.mark.parametrize("role", ["server", "dealer"])
def test_a_child_killed_in_a_query_harms_no_other(site, part, expected, role):
    running = site.server if role == "server" else site.dealer
    with client(site, part) as victim, client(site, part, length=16) as other:
        victim.ask()
        other.ask()
        paused = Paused(victim)
        child_of(running, victim.session).kill()
        running.wait_for("child-killed", session=victim.session[:8], kind="SIGKILL")
        if role == "server":
            with pytest.raises(PeerGone, match="server"):
                paused.go()
        else:
            check(paused.go(), expected[8])  # the dealer had dealt
            with pytest.raises(PeerError, match="dealer"):
                victim.ask()
        check(other.ask(), expected[16])
        with client(site, part) as again:
            check(again.ask(), expected[8])


@pytest.fixture(scope="module")
def small(shared_site):
    """A server with room for little, and with metrics."""
    running = shared_site.start(
        "server", sessions=2, share=0.5, workers=1, queue=1, metrics="127.0.0.1:0", store="store",
        queries_each=1000, state="state",
    )  # fmt: skip
    yield running
    running.end()


@pytest.fixture
def other(site) -> str:
    """The name of another client's certificate."""
    add_certificate(site.certificates, "client", name="other-client", force=True)
    return "other-client"


def test_a_query_waits_in_the_queue_for_its_turn(site, small, part, expected, other):
    with client(site, part, server=small) as first, client(site, part, server=small, name=other) as second:
        paused = Paused(first)
        notices: list[dict] = []
        second.party.waiting = notices.append
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(second.ask)
            eventually(lambda: {"queued": 0} in notices, "the second is told its place")
            check(paused.go(), expected[8])
            check(waiting.result(PATIENCE), expected[8])


def test_a_server_says_at_start_with_whom_it_can_read_every_text(site):
    assert site.server.ready["together"].startswith("the server and the dealer together can read every text and answer")


def test_a_limit_holds_for_all_certificates_of_a_name(site, small, part, expected):
    """Whichever process counts; a certificate with a new key does not start anew, and other names have their own."""
    assert small.ready["limit"].startswith(
        "1000 texts, images or tokens in 1 day for each certificate's name, counted in "
    )
    assert "none: a certificate may ask as much as it likes" in site.server.ready["limit"]
    add_certificate(site.certificates, "client", name="curious", force=True)
    Quota(site.folder / "state", 1000, 86400.0).spend("commonName=blindformer curious", 999)
    with client(site, part, server=small, name="curious") as mine:
        check(mine.ask(), expected[8])
        with pytest.raises(LimitReached, match=r"server: has answered the 1000 texts .* in 1 day; ask again in 1"):
            mine.ask()
    small.wait_for("limited", peer="client")
    small.wait_for_metrics(r"blindformer_limited_total [1-9].*")
    add_certificate(site.certificates, "client", name="curious", force=True)
    with client(site, part, server=small, name="curious") as mine, pytest.raises(LimitReached):
        mine.ask()
    with client(site, part, server=small) as mine:
        check(mine.ask(), expected[8])


def test_metrics_of_a_query(site, small, part):
    with client(site, part, server=small) as mine:
        mine.ask()
        small.wait_for_metrics(
            r"blindformer_queries_total [1-9].*",
            r"blindformer_sessions 1\.0",
            r'blindformer_seconds_count\{phase="online"\} [1-9].*',
            r'blindformer_bytes_total\{direction="received"\} [1-9].*',
            r"blindformer_correlations_left 0\.0",
        )


def test_a_stop_lets_the_running_query_finish(site, part, expected):
    running, idle = Client(site, part), Client(site, part)
    paused = Paused(running)
    site.server.send(signal.SIGTERM)
    site.server.wait_for("stopping")
    with pytest.raises(PeerGone, match="server: stopped and said: server: is stopping"):
        idle.ask()
    check(paused.go(), expected[8])
    with pytest.raises(PeerGone):
        running.ask()
    assert site.server.wait() == 0
    site.server.wait_for("stopped")


def test_who_is_revoked_asks_no_more_without_a_restart_or_a_signal(site, part, expected):
    """A session under way ends, a new one is not opened, and others' go on. An older list brings nobody back."""
    for name in ("leaving", "leaving-next"):
        add_certificate(site.certificates, "client", name=name, force=True)
    mine, good = Client(site, part, name="leaving"), Client(site, part)
    check(mine.ask(), expected[8])
    revoke(site.certificates, "leaving")
    site.server.wait_for("session-failed", kind="Revoked", session=mine.session[:8])
    with pytest.raises(PeerRefused, match=r"server: refuses this client: its certificate was revoked; ask"):
        mine.ask()
    with pytest.raises(PeerRefused, match="server: refused this side's certificate: it was revoked; ask"):
        Client(site, part, name="leaving")
    assert "its certificate was revoked" in site.server.wait_for("refused", kind="PeerRefused")["what"]
    mine.party.close()
    list_of_one = (site.certificates / "revoked.pem").read_bytes()
    revoke(site.certificates, "leaving-next")
    site.server.send(signal.SIGHUP)
    site.server.wait_for("certificates-reloaded")
    (site.certificates / "revoked.pem").write_bytes(list_of_one)
    site.server.send(signal.SIGHUP)
    assert "older than the one in use" in site.server.wait_for("certificates-kept")["what"]
    with pytest.raises(PeerRefused, match="it was revoked"):
        Client(site, part, name="leaving-next")
    check(good.ask(), expected[8])
    good.close()
    revoke(site.certificates, "leaving-next")


def test_a_probe_is_answered_and_is_no_session(site, part):
    program = part.for_length(8).program.hash()
    mine = PeerFacts(blindformer=spoken_version(), role="client", programs=[program, "0" * 64])
    opened = len(site.server.logged("session-opened"))
    for running, role, known in ((site.server, "server", [program]), (site.dealer, "dealer", [])):
        with dial(*running.address, client_context(site.certificates, "client"), role, timeout=PATIENCE) as channel:
            answer = probe(channel, mine)
        assert (answer.facts.role, answer.facts.programs) == (role, known)
        assert answer.rtt_s > 0
    assert len(site.server.logged("session-opened")) == opened


def test_a_service_that_cannot_start_says_why_in_one_line(site, refused):
    for words, message in (
        (["--listen", site.dealer.ready["address"]], "cannot listen there (Address already in use); choose another"),
        (["--certs", str(site.folder), "--listen", "127.0.0.1:0"], "dealer.pem is missing; make certificates"),
    ):
        assert message in refused("dealer", "--certs", site.certificates, *words)


def test_new_certificates_are_taken_up_without_a_stop(site, part, expected):
    with client(site, part) as before:
        before.ask()
        old = before.server.certificate.fingerprint
        add_certificate(site.certificates, "client", days=7, force=True)
        renew_certificates(site.certificates, days=7, within=99, names=["server"])
        site.server.wait_for("certificates-reloaded")  # by itself
        assert "in 7 days; renew it" in site.server.wait_for("certificate-ends")["what"]
        with client(site, part) as after:
            assert after.server.certificate.fingerprint != old
            check(after.ask(), expected[8])
        check(before.ask(), expected[8])  # the open session goes on
    key = site.certificates / "server.key"
    moved = key.rename(key.with_suffix(".moved"))
    site.server.send(signal.SIGHUP)
    site.server.wait_for("certificates-kept")
    moved.rename(key)
    with client(site, part) as mine:
        check(mine.ask(), expected[8])
