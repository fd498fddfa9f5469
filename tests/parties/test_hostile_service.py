"""Hostile peers of a real dealer and server, over TLS: refused clearly, in bounded memory, and nobody else is harmed.

All the while a good client asks one query after the other; each attack ends only when it had more right answers.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from blindformer.models.artifacts import load_client
from blindformer.parties.certificates.issuing import add_certificate, make_certificates
from blindformer.parties.certificates.tls_folder import client_context
from blindformer.parties.service.admission import ServiceLimits
from blindformer.parties.session.rendezvous_two import my_hello, seed_dealer
from blindformer.parties.session.two_party_client import ClientParty
from blindformer.parties.transport.frames import HEADER_BYTES, MESSAGE, TENSOR, pack_header
from blindformer.parties.transport.handshake import meet, new_session
from blindformer.parties.transport.stream import StreamChannel
from blindformer.parties.transport.tls import dial
from blindformer.protocols.errors import PeerError, PeerRefused
from blindformer.tests.parties.hostile import attacks, message, split
from blindformer.tests.parties.transport.conftest import stranger_context
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.clients import ClientProcess, keep_asking
from blindformer.tests.shared.deployment import Deployment, crowd, eventually, tls_hello
from blindformer.tests.shared.site import Site, compile_into, deploy, read_questions
from hypothesis import HealthCheck, given, settings

ROOM_MB = 50.0  # above idle, for everything that strangers and attackers make the services hold
ANSWERS = 3  # of the good client, during each attack
LOOKS = 10  # at the memory for the good client alone, which grows and shrinks within a query
PAUSE = 0.2  # seconds that it takes between two queries: attackers have the processors meanwhile


class Besieged:
    """The services, a good client, and an attacker with a good certificate of its own."""

    def __init__(self, deployment: Deployment, site: Site) -> None:
        self.deployment, self.site = deployment, site
        self.context = client_context(site.certificates, "client", "attacker")
        self.part = load_client(site.compiled).for_length()
        self.program = self.part.program
        self.good = ClientProcess(site, partial(keep_asking, pause=PAUSE))
        assert self.good.wait_for("ready", PATIENCE), self.good.ending
        self.good.tell(math.inf)
        self.services = [deployment.server, deployment.dealer]
        idle = []
        for _ in range(LOOKS):
            self.expect_answers(1)
            idle.append(self.memory())
        self.honest = {child.pid for running in self.services for child in running.children()}
        self.idle = max(idle)

    def expect_answers(self, count: int = ANSWERS) -> None:
        for _ in range(count):
            event = self.good.wait_for("answered", PATIENCE)
            assert event is not None, f"the good client: {self.good.ending}"
            assert event["right"]

    def memory(self) -> float:
        """MB that the services' processes hold each for itself. What a supervisor shares with its children does not
        count, as long as it has one: the good client's."""
        return sum(running.memory("uss") for running in self.services)

    @contextlib.contextmanager
    def attack(self, newcomers: int = 0) -> Iterator[None]:
        """What is promised while the context lasts, and after it. `newcomers`: further good clients that come
        meanwhile; each may take what the services hold for one."""
        while self.good.listen(0):  # answers of before
            pass
        most, over = [self.memory()], threading.Event()

        def watch() -> None:
            while not over.wait(0.5):  # a look takes some time of a core itself
                most.append(self.memory())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
            most.append(self.memory())  # an attack may be over before the next look
            self.expect_answers()
        finally:
            over.set()
            thread.join()
        room = ROOM_MB + newcomers * self.idle
        assert max(most) - self.idle < room, f"{self.idle:.0f} MB idle, then {max(most):.0f} MB"
        eventually(lambda: self.intruders() == [], f"left behind: {self.intruders()}")
        for running in self.services:
            assert running.noise == []
            assert not [line for line in running.log if "internal error" in line.get("what", "")]

    def intruders(self) -> list[psutil.Process]:
        return [child for running in self.services for child in running.children() if child.pid not in self.honest]

    def hello(self, session: str) -> bytes:
        return message(my_hello(self.program, "client", session).model_dump())

    def leave_seed(self, session: str) -> None:
        mine = my_hello(self.program, "client", session)
        seed_dealer(self.context, self.site.dealer, mine, PATIENCE, bytes(32))

    def connect(
        self, role: str = "server", context: ssl.SSLContext | None = None, room: int | None = None
    ) -> ssl.SSLSocket:
        """`room`: bytes that wait on this side at most, until they are read."""
        plain = socket.socket()
        if room:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        plain.settimeout(PATIENCE)
        plain.connect(getattr(self.site, role))
        return (context or self.context).wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.fixture(scope="module")
def besieged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("besieged")
    compile_into(folder / "compiled")
    with deploy(folder, timeout=10, apart=True) as (deployment, site):
        add_certificate(site.certificates, "client", name="attacker")
        deployed = Besieged(deployment, site)
        yield deployed
        end(deployed.good)


def recorded(channel: StreamChannel) -> bytearray:
    """All that is sent on a channel from now on."""
    sent, write = bytearray(), channel._wire.write

    def noted(data: memoryview) -> int:
        count = write(data)
        sent.extend(data[:count])
        return count

    channel._wire.write = noted
    return sent


@pytest.fixture(scope="module")
def honest(besieged: Besieged) -> tuple[str, list[bytes]]:
    """The id of a session that the attacker had, and all that it sent to the server after its hello."""
    session, site, program = new_session(), besieged.site, besieged.program
    channel = meet(site.server, besieged.context, "server", my_hello(program, "client", session), site.timeout)
    sent = recorded(channel)
    leave = lambda seed: besieged.leave_seed(session)  # noqa: E731
    party = ClientParty(program, besieged.part.constants, channel, leave, session=session)
    party.set_up()
    party.query(read_questions(site.questions)[0].sources)
    party.close()
    return session, split(sent)


def end(client: ClientProcess) -> None:
    client.tell(0)
    assert client.finish(PATIENCE)
    assert (client.ending or {}).get("event") == "end"
    client.close()


def converse(sock: ssl.SSLSocket, content: bytes) -> list[bytes]:
    """Send it all and nothing more; what came back, as frames, until the other side hung up."""
    with sock:
        sock.settimeout(PATIENCE)
        with contextlib.suppress(OSError):  # it may hang up at the first wrong byte
            sock.sendall(content)
            socket.socket.shutdown(sock, socket.SHUT_WR)
        return split(hear(sock))


def hear(sock: socket.socket) -> bytes:
    """All that comes until the other side hangs up."""
    heard = bytearray()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while more := sock.recv(65536):
            heard += more
    return bytes(heard)


def last_words(frames: list[bytes]) -> str:
    return frames[-1][HEADER_BYTES:].decode() if frames and frames[-1][0] == MESSAGE else ""


@pytest.mark.slow
@pytest.mark.parametrize("role", ["server", "dealer"])
def test_mutated_conversations(besieged: Besieged, honest, role: str) -> None:
    counter = itertools.count(1)
    rest, other = {
        "server": (honest[1], besieged.hello("f" * 32)),
        "dealer": ([message({"seed": "f" * 32})], message({"query": 0})),
    }[role]

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(attacks([besieged.hello("0" * 32), *rest], [other]))
    def run(content: bytes) -> None:
        session = f"{next(counter):032x}"
        if role == "server":
            besieged.leave_seed(session)
        converse(besieged.connect(role), content.replace(b"0" * 32, session.encode()))

    with besieged.attack():
        run()


def test_a_replayed_session(besieged: Besieged, honest) -> None:
    """The same bytes again: the dealer has given the session's seed away, so there is nothing to answer with."""
    session, frames = honest
    with besieged.attack():
        replayed = converse(besieged.connect(), besieged.hello(session) + b"".join(frames))
        assert "its seed for this session is not here, or was used" in last_words(replayed)
        with pytest.raises(PeerError, match="its seed for this session was left already"):
            besieged.leave_seed(session)


def test_recorded_ciphertext(besieged: Besieged) -> None:
    """TLS records of one connection mean nothing in another."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = besieged.context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    recorded, server = b"", besieged.deployment.server
    before, opened = len(server.logged("refused")), len(server.logged("session-opened")) + 1
    with besieged.attack(), socket.create_connection(besieged.site.server, PATIENCE) as sock:
        for _ in range(2):  # the hello; then certificate, signature and the end of the handshake
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
            recorded += (sent := outgoing.read())
            sock.sendall(sent)
            incoming.write(sock.recv(65536))
        tls.write(besieged.hello(new_session()))
        recorded += outgoing.read()
        with socket.create_connection(besieged.site.server, PATIENCE) as again:
            again.sendall(recorded)
            assert hear(again)[0] == 0x16  # it answered the handshake
        eventually(lambda: server.logged("refused")[before:], "the second handshake was not refused")
        assert len(server.logged("session-opened")) <= opened


def test_a_huge_length(besieged: Besieged) -> None:
    with besieged.attack():
        for kind, size in itertools.product((MESSAGE, TENSOR), (2**24, 2**32, 2**56 - 1)):
            hello, huge = besieged.hello(new_session()), pack_header(kind, size)
            more = huge + bytes(1000)
            for role, content in (("server", more), ("server", hello + more), ("dealer", huge)):
                assert "PeerProtocolError" in last_words(converse(besieged.connect(role), content)), (role, kind, size)


def refusals(besieged: Besieged, folder: Path) -> dict[str, tuple[str, Callable[[], object]]]:
    """By attack: what the services log, and how it is done."""
    mine = besieged.site.certificates
    add_certificate(mine, "client", days=-1, name="late", force=True)
    make_certificates(folder / "other")
    other = client_context(folder / "other", "client")
    other.load_verify_locations(mine / "ca.pem")  # it does not mind whom it attacks
    old = client_context(mine, "client", "attacker")
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2

    def show(context: ssl.SSLContext) -> Callable[[], object]:
        def connect() -> None:
            with besieged.connect(context=context) as sock:
                sock.sendall(besieged.hello(new_session()))
                assert not any(frame[0] == TENSOR for frame in split(sock.recv(65536)))
                raise ConnectionResetError("refused in words")

        return connect

    def speak(words: bytes) -> Callable[[], object]:
        def connect() -> None:
            with socket.create_connection(besieged.site.server, PATIENCE) as sock:
                sock.sendall(words)
                hear(sock)
                raise ConnectionResetError("hung up")

        return connect

    return {
        "an expired certificate": ("its certificate has expired", show(stranger_context(mine, "late"))),
        "a certificate of another CA": ("another CA", show(other)),
        "no certificate": ("no certificate", show(stranger_context(mine, ""))),
        "an old TLS": ("TLS", show(old)),
        "a server's certificate": ("the certificate of a server", show(stranger_context(mine, "server"))),
        "a helper's certificate": ("the certificate of a helper", show(stranger_context(mine, "helper"))),
        "a dealer's certificate": ("not made for this role", show(stranger_context(mine, "dealer"))),
        "HTTP": ("TLS", speak(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")),
        "a frame in the clear": ("TLS", speak(besieged.hello(new_session()))),
        "noise": ("TLS", speak(bytes(range(256)) * 64)),
    }


def test_a_wrong_certificate_or_none(besieged: Besieged, tmp_path: Path) -> None:
    server = besieged.deployment.server
    with besieged.attack():
        for attack, (what, connect) in refusals(besieged, tmp_path).items():
            before = len(server.logged("refused"))
            with pytest.raises((ssl.SSLError, ConnectionError)):
                connect()
            line = eventually(lambda before=before: server.logged("refused")[before:], f"no refusal of {attack}")[0]
            assert re.search(what, line["what"]), f"{attack}: {line}"
            assert line["address"].startswith("127.0.0.1:")


def test_a_client_that_acts_as_another(besieged: Besieged) -> None:
    """A good certificate, of the wrong role for what it says or wants."""
    site, program = besieged.site, besieged.program
    with besieged.attack():
        for address, says, peer in (
            (site.dealer, "server", "dealer"),
            (site.dealer, "dealer", "dealer"),
            (site.server, "dealer", "server"),
            (site.server, "helper", "server"),
        ):
            with dial(*address, besieged.context, peer, timeout=PATIENCE) as channel:
                channel.send_message(my_hello(program, says, new_session()).model_dump())
                channel.recv_message()  # its own hello
                with pytest.raises(PeerRefused, match=f"stopped and said: .* says it is a {says} where a"):
                    channel.recv_message()
        # To the dealer it may say what it is, but not want what a server wants.
        messages = [besieged.hello(new_session()), message({"seed": "f" * 32}), message({"query": 0})]
        assert "dealt" not in last_words(converse(besieged.connect("dealer"), b"".join(messages)))


@pytest.mark.slow
def test_a_slow_loris(besieged: Besieged) -> None:
    """Connections that say a byte now and then, before, in and after the handshake: each is ended in time."""
    first = tls_hello()
    with besieged.attack(), contextlib.ExitStack() as stack:
        slow: list[tuple[socket.socket, Iterator[int]]] = []
        for number in range(60):
            sock = stack.enter_context(socket.create_connection(besieged.site.server, PATIENCE))
            sock.settimeout(0)
            slow.append((sock, iter(first * 9 if number % 2 else first[:40])))
        for body in (pack_header(MESSAGE, 4096), besieged.hello(new_session())):
            tls = stack.enter_context(besieged.connect())
            tls.settimeout(0)
            slow.append((tls, iter(body + bytes(4096))))
        end = time.monotonic() + 2 * PATIENCE
        while slow:
            assert time.monotonic() < end, f"{len(slow)} are still there"
            slow = [(sock, words) for sock, words in slow if _still(sock, words)]
            time.sleep(0.5)


def _still(sock: socket.socket, words: Iterator[int]) -> bool:
    """Say one more byte. Whether the other side is still there."""
    try:
        sock.send(bytes([next(words, 0)]))
        return bool(sock.recv(65536))
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False


@pytest.mark.slow
def test_a_flood_of_connections(besieged: Besieged) -> None:
    """Many at once from one host, silent or in the middle of the handshake; a new client of another comes through."""
    with besieged.attack(newcomers=1), contextlib.ExitStack() as stack:
        for words in (b"", tls_hello()):
            stack.enter_context(crowd(besieged.site.server, 130, words, "127.0.0.2"))  # more than may wait
        full = 1 + ServiceLimits().handshakes  # and the good client's session
        eventually(lambda: len(besieged.deployment.server.children()) == full, "every place in the handshake is taken")
        besieged.expect_answers()
        comes = ClientProcess(besieged.site, keep_asking)
        stack.callback(comes.close)
        assert comes.wait_for("ready", PATIENCE), comes.ending
        end(comes)


@pytest.mark.slow
def test_one_certificate_that_opens_session_after_session(besieged: Besieged, honest) -> None:
    """It may hold its share of them; the rest are asked to retry later, and others still get theirs."""
    with besieged.attack(), contextlib.ExitStack() as stack:
        answers = []
        for _ in range(40):
            sock = stack.enter_context(besieged.connect())
            sock.sendall(besieged.hello(new_session()) + honest[1][0])
            heard = bytearray()
            while len(frames := split(heard)) < 2 or len(b"".join(frames)) > len(heard):
                heard += sock.recv(65536)
            answers.append(frames[1])
        busy = [frame for frame in answers if b'"busy"' in frame]
        assert 0 < len(answers) - len(busy) <= 5
        assert len(busy) >= 35


@pytest.mark.slow
def test_a_peer_that_stops_reading(besieged: Besieged, honest) -> None:
    """It asks one query after the other and takes nothing of what it is sent: it is given up after the silence."""
    (first, *_) = [number for number, frame in enumerate(honest[1]) if b'"query":0' in frame]
    query, rest = json.loads(honest[1][first][HEADER_BYTES:]), b"".join(honest[1][first + 1 : -1])
    queries = (message(query | {"query": number}) + rest for number in range(2000))
    server, session = besieged.deployment.server, new_session()
    before = len(server.logged("session-failed", kind="PeerTimeout"))
    with besieged.attack(), besieged.connect(room=4096) as sock:
        besieged.leave_seed(session)
        sock.settimeout(2.0)
        with contextlib.suppress(OSError):  # until all buffers are full
            for part in (besieged.hello(session), *honest[1][:first], *queries):
                sock.sendall(part)
        (line, *_) = eventually(lambda: server.logged("session-failed", kind="PeerTimeout")[before:], "given up")
        assert re.search("took nothing|stood still", line["what"])


def test_the_services_still_run(besieged: Besieged) -> None:
    """After all of this: the same processes, no more children than the good client's."""
    for running in besieged.services:
        assert running.process.poll() is None
    eventually(lambda: besieged.intruders() == [], "somebody is left")
    assert besieged.memory() - besieged.idle < ROOM_MB
