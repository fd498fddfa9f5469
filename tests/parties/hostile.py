"""Conversations of an honest session, byte for byte, and what a hostile peer makes of them.

A `Target` is one of our parties at one of its connections: the frames that an honest peer sends it, and the real code
that reads them. An attack is these frames with one of them changed, all in the socket before the party looks.
"""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from blindformer.parties.session.dealing import DealerParty
from blindformer.parties.session.masked_weights import serve_parts
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.parties.session.rendezvous_two import MemorySeeds, left_for, meet_as_dealer, my_hello, receive_seed
from blindformer.parties.session.two_party_client import ClientParty
from blindformer.parties.session.two_party_server import ServerParty
from blindformer.parties.transport.frames import HEADER_BYTES, MESSAGE, TENSOR, pack_header, pack_message
from blindformer.parties.transport.handshake import Hello, PeerFacts, answer_of, answer_probe, greet, hello, new_session
from blindformer.parties.transport.stream import PlainWire, StreamChannel
from blindformer.protocols.streams import SEED_BYTES, new_seed
from blindformer.tests.protocols.programs import Case
from blindformer.tests.shared.threads import PartyThreads
from hypothesis import strategies as st

TIMEOUT = 20.0
ROOM = 4 * 2**20  # of a socket: whole conversations wait in it
Meet = Callable[[socket.socket], None]


class Tapped(PlainWire):
    """Keeps what is read."""

    def __init__(self, sock: socket.socket, seen: bytearray) -> None:
        super().__init__(sock)
        self._seen = seen

    def read_into(self, view: memoryview) -> int:
        count = super().read_into(view)
        self._seen += view[: max(0, count)]
        return count


@dataclass(frozen=True)
class Target:
    """`frames`: what an honest peer sends. `meet`: reads them from a socket, to the end of the conversation."""

    name: str
    frames: list[bytes]
    meet: Meet


def channel(sock: socket.socket, peer: str, seen: bytearray | None = None) -> StreamChannel:
    return StreamChannel(PlainWire(sock) if seen is None else Tapped(sock, seen), peer, TIMEOUT)


def pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair()
    for end in ends:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, ROOM)
    return ends


@contextmanager
def filled(content: bytes) -> Iterator[socket.socket]:
    """The end of a connection whose other end has sent `content` and then nothing more."""
    mine, its = pair()
    with mine, its:
        its.sendall(content)
        its.shutdown(socket.SHUT_WR)
        yield mine


def split(content: bytes | bytearray) -> list[bytes]:
    frames, at = [], 0
    while at < len(content):
        end = at + HEADER_BYTES + int.from_bytes(content[at + 1 : at + HEADER_BYTES], "big")
        frames.append(bytes(content[at:end]))
        at = end
    return frames


def message(body: object) -> bytes:
    payload = pack_message(body) if isinstance(body, dict) else json.dumps(body).encode()
    return pack_header(MESSAGE, len(payload)) + payload


class Stage:
    """One honest session, recorded; and the same parties again, alone with what a peer sends them.

    `folder`: with stores in it, new ones for each party each time: a query's correlations are made ahead and used.
    """

    def __init__(self, case: Case, folder: Path | None = None) -> None:
        self.case, self.program = case, case.program
        self._folder, self._stores = folder, itertools.count()
        self.served = serve_parts([case], new_seed())
        self.session = new_session()
        self._heard: dict[str, bytearray] = {}
        self._play()
        stored = "" if folder is None else " with a store"
        self.targets = [
            Target(f"server{stored}, by its client", self.heard("server from client"), self.server),
            Target(f"server{stored}, by its dealer", self.heard("server from dealer"), self.server_of_dealer),
            Target(f"client{stored}, by its server", self.heard("client from server"), self.client),
            Target("dealer, by a server", self.heard("dealer from server"), self.dealer),
            Target("dealer, by a client", self.heard("dealer from client"), self.seeding),
            Target("probe, by anyone", self._probing(), self.probed),
        ][: 3 if stored else None]

    def heard(self, name: str) -> list[bytes]:
        return split(self._heard[name])

    def mine(self, role: str) -> Hello:
        return my_hello(self.program, role, self.session)

    # -- the parties, each with one hostile peer

    def server(self, sock: socket.socket) -> None:
        with filled(b"".join(self.heard("server from dealer"))) as dealer:
            self._serve(channel(sock, "client"), dealer)

    def server_of_dealer(self, sock: socket.socket) -> None:
        with filled(b"".join(self.heard("server from client"))) as client:
            self._serve(channel(client, "client"), sock)

    def _serve(self, client: StreamChannel, dealer: socket.socket, seen: bytearray | None = None) -> None:
        def dial() -> StreamChannel:
            to_dealer = channel(dealer, "dealer", seen)
            hello(to_dealer, self.mine("server"), "dealer")
            return to_dealer

        theirs = greet(client, lambda theirs: answer_of({self.program.hash(): self.mine("server")}, theirs), TIMEOUT)
        served = self.served[theirs.program]
        party = ServerParty(served, client, dial, session=theirs.session, store=self._store())
        try:
            party.set_up()
            party.serve()
            party.close()
        finally:
            for open_ in party.abandon():
                open_.close()

    def client(self, sock: socket.socket) -> None:
        self._ask(channel(sock, "server"), lambda seed: None)

    def _ask(self, server: StreamChannel, seed_dealer: Callable[[bytes], None]) -> None:
        hello(server, self.mine("client"), "server")
        store = self._store()
        party = ClientParty(self.program, self.case.constants, server, seed_dealer, session=self.session, store=store)
        try:
            party.set_up()
            if store is not None:
                party.precompute(1)
            party.query(self.case.client, more=True)
            party.query(self.case.client)
        finally:
            party.close()

    def dealer(self, sock: socket.socket) -> None:
        seeds = MemorySeeds()
        seeds.put(self.session, self.program.hash(), bytes(SEED_BYTES))
        self._deal(channel(sock, "server"), seeds)

    def _deal(self, server: StreamChannel, seeds: MemorySeeds) -> None:
        hello = meet_as_dealer(server, TIMEOUT)
        DealerParty(server, hello.program, left_for(hello, seeds)).serve()

    def seeding(self, sock: socket.socket) -> None:
        self._keep(channel(sock, "client"), MemorySeeds())

    def _keep(self, client: StreamChannel, seeds: MemorySeeds) -> None:
        receive_seed(client, meet_as_dealer(client, TIMEOUT), seeds)

    def probed(self, sock: socket.socket) -> None:
        peer = channel(sock, "client")
        answer_probe(peer, peer.recv_message(16384), self._facts())

    def _store(self) -> PreprocessingStore | None:
        return None if self._folder is None else PreprocessingStore(self._folder / str(next(self._stores)))

    # -- the honest session

    def _play(self) -> None:
        seeds, threads = MemorySeeds(), PartyThreads(TIMEOUT)
        with ExitStack() as stack:
            s, c, sd, ds, cd, dc = (stack.enter_context(end) for _ in range(3) for end in pair())

            def leave(seed: bytes) -> None:
                to_dealer = channel(cd, "dealer")
                hello(to_dealer, self.mine("client"), "dealer")
                to_dealer.send_message({"seed": seed.hex()})
                to_dealer.recv_message()

            dealt = self._heard.setdefault("server from dealer", bytearray())
            server = self._tapped(s, "client", "server from client")
            threads.start(lambda: self._deal(self._tapped(ds, "server", "dealer from server"), seeds), "dealer")
            threads.start(lambda: self._keep(self._tapped(dc, "client", "dealer from client"), seeds), "seeding")
            threads.start(lambda: self._serve(server, sd, dealt), "server")
            self._ask(self._tapped(c, "server", "client from server"), leave)
            threads.join(TIMEOUT)
        assert not threads.failures, threads.failures

    def _tapped(self, sock: socket.socket, peer: str, name: str) -> StreamChannel:
        return channel(sock, peer, self._heard.setdefault(name, bytearray()))

    def _facts(self) -> PeerFacts:
        return PeerFacts(blindformer="0", role="server", programs=[self.program.hash()])

    def _probing(self) -> list[bytes]:
        asked = PeerFacts(blindformer="0", role="client", programs=[self.program.hash()]).model_dump()
        return [message({"probe": asked}), message({"echo": 1}), message({"echo": 2}), message({"bye": True})]


# -- what a hostile peer does to a conversation

NASTY = [
    None, True, False, -1, 0, 1, 2, 0.5, -0.0, 1e300, 2**31, 2**53, 2**63, 2**64, 10**400, "", "0", "beaver", "\0",
    "\ud800", "é" * 40, "f" * 32, "f" * 64, "x" * 60000, [], {}, [[]], {"": None}, {"query": 0}, "__class__",
    float("nan"), float("inf"),
]  # fmt: skip
BODIES = [
    {}, {"bye": True}, {"live": True}, {"query": 0}, {"query": 0, "more": True}, {"query": -1}, {"query": 2**63},
    {"go": 0}, {"abort": 0}, {"precompute": 1}, {"precompute": 10**9}, {"waiting": None}, {"queued": -1}, {"busy": "x"},
    {"busy": 1e300}, {"busy": 1, "why": 3}, {"spent": 0, "what": []}, {"taken": 0},
    {"missing": 0, "known": True, "next": "x"},
    {"query": 0, "store": {"session": "f" * 32, "number": 0}}, {"ready": 0, "then": {"missing": 1, "next": 10**30}},
    {"error": None}, {"error": {"kind": "PeerGone", "what": "\x1b[2J" * 99}}, {"error": {"kind": [], "what": {}}},
    {"need": "weights"}, {"need": []}, {"program": -1}, {"program": 10**15}, {"seed": "zz"}, {"seed": "f" * 64},
    {"weights": "f" * 32}, {"kept": 0}, {"stop": 0}, {"done": True}, {"echo": "x" * 9999}, {"up": 10**9},
    {"down": -1}, {"limit": "x"}, {"limit": 1, "period": 1e300, "seconds": -1},
]  # fmt: skip
LENGTHS = [0, 1, 7, 8, 255, 4095, 4096, 4097, 65535, 65536, 65537, 2**24, 2**31 - 1, 2**31, 2**32, 2**40, 2**48,
           2**56 - 1]  # fmt: skip
TEXTS = [b"", b"null", b"[]", b"{", b"{}}", b'{"a":NaN}', b'{"query":1e999}', b'{"a":' * 9000 + b"1", b"[" * 60000,
         b'{"query":0,"query":1}', b"\xff\xfe", b'"\\u0000"', b"1" * 60000, b'{"bye":true}\x00']  # fmt: skip
CHANGES = ("bit", "kind", "length", "cut", "noise", "drop", "twice", "swap", "other", "member", "body", "text")

# -- what a peer says that knows all names, and follows no order

NAMES = st.sampled_from([
    *("query", "store", "more", "then", "session", "number", "live", "precompute", "bye", "go", "abort", "waiting"),
    *("queued", "kept", "seed", "need", "program", "weights", "dealing", "deal", "dealt", "busy", "why", "party"),
    *("taken", "missing", "known", "next", "spent", "ready", "done", "stored", "full", "error", "kind", "what", "stop"),
    *("limit", "period", "seconds"),
])  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.sampled_from(["0f" * 16, "live", "program", "weights"])
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)
MESSAGES = st.dictionaries(NAMES, VALUES, max_size=4).map(message)
PAYLOADS = st.binary(max_size=64) | st.sampled_from([0, 2, 16, 48, 96]).map(bytes)
STEPS = st.lists(
    MESSAGES | PAYLOADS.map(lambda data: pack_header(TENSOR, len(data)) + data), min_size=1, max_size=6
).map(b"".join)


@st.composite
def chatter(draw: st.DrawFn, frames: Sequence[bytes]) -> bytes:
    """The conversation up to some frame, then anything."""
    return b"".join(frames[: draw(st.integers(0, len(frames)))]) + draw(STEPS)


@st.composite
def attacks(draw: st.DrawFn, frames: Sequence[bytes], others: Sequence[bytes]) -> bytes:
    """The conversation with one change. Half of the time the change is to a message, of which there are fewer."""
    messages = [number for number, frame in enumerate(frames) if frame[0] == MESSAGE]
    at = draw(st.sampled_from(messages) | st.integers(0, len(frames) - 1))
    changed = draw(changes(frames[at], frames[(at + 1) % len(frames)], others))
    rest = b"" if changed is None else b"".join(frames[at + 1 :])
    return b"".join(frames[:at]) + (frames[at][: draw(st.integers(0, 40))] if changed is None else changed) + rest


@st.composite
def changes(draw: st.DrawFn, frame: bytes, following: bytes, others: Sequence[bytes]) -> bytes | None:
    """What is sent in place of `frame`. None: a part of it, and nothing more."""
    how = draw(st.sampled_from(CHANGES))
    if how == "cut":
        return None
    if how == "bit":
        at = draw(st.integers(0, min(8 * len(frame), 2048) - 1))
        return frame[: at // 8] + bytes([frame[at // 8] ^ 1 << at % 8]) + frame[at // 8 + 1 :]
    if how == "kind":
        return bytes([draw(st.integers(0, 255))]) + frame[1:]
    if how == "length":
        size = draw(st.sampled_from(LENGTHS) | st.integers(-3, 3).map(lambda more: max(0, len(frame) - 8 + more)))
        return pack_header(frame[0], size) + frame[8:]
    if how == "noise":
        return draw(st.binary(max_size=64)) + frame
    if how == "member":
        return _changed_member(draw, frame)
    if how == "body":
        return message(draw(st.sampled_from(BODIES)))
    if how == "text":
        text = draw(st.sampled_from(TEXTS))
        return pack_header(MESSAGE, len(text)) + text
    return {"drop": b"", "twice": frame + frame, "swap": following + frame, "other": draw(st.sampled_from(others))}[how]


def _changed_member(draw: st.DrawFn, frame: bytes) -> bytes:
    """One member of a message gone, renamed, or with another value."""
    if frame[0] != MESSAGE:
        return frame[:HEADER_BYTES] + bytes(len(frame) - HEADER_BYTES)
    body = json.loads(frame[HEADER_BYTES:])
    name = draw(st.sampled_from(sorted(body)))
    value = body.pop(name)
    how = draw(st.sampled_from(("value", "value", "value", "gone", "renamed", "more")))
    if how in ("value", "more"):
        body[name if how == "value" else name + "2"] = draw(st.sampled_from(NASTY))
    if how in ("renamed", "more"):
        body[name + "1" if how == "renamed" else name] = value
    payload = json.dumps(body).encode()
    return pack_header(MESSAGE, len(payload)) + payload
