"""Every message and frame of a session, as the file beside this one has them: the wire format's specification.

Seeds are fixed, so frames and masks are the same in every run. A change of what is sent is a change of the protocol: it
raises `versions.PROTOCOL`. Run this file as a module to write the transcripts anew.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from blindformer.models.program.two_server import for_two_servers
from blindformer.parties.local.threads import ThreadDealer
from blindformer.parties.session.client import ClientParty
from blindformer.parties.session.dealer import DealerParty
from blindformer.parties.session.helper.owner import OwnerParty
from blindformer.parties.session.helper.owner_shares import OwnerShares
from blindformer.parties.session.helper.party import HelperParty
from blindformer.parties.session.parties import Parties
from blindformer.parties.session.party import Party, PartyModel
from blindformer.parties.session.server import ServerParty
from blindformer.parties.session.spool import Spool
from blindformer.parties.session.weights import Served
from blindformer.parties.transport.memory import memory_pair
from blindformer.protocols import seeds
from blindformer.protocols.channel import Channel
from blindformer.protocols.crypten.mesh import Mesh
from blindformer.protocols.crypten.tuples import Request, make_tuple
from blindformer.protocols.streams import Stream
from blindformer.tests.parties.session.site import SECRET, expected, small_case
from blindformer.tests.protocols.programs import Case

GOLDEN = Path(__file__).with_name("transcripts.json")
TIMEOUT = 60.0
PARTIES = ("alice", "bob", "carol")


class RecordingChannel:
    """`channel`, writing down in `lines` what is sent on it. Signs of life are left out: when they come is chance."""

    def __init__(self, channel: Channel, lines: list[str]) -> None:
        self._channel, self._lines = channel, lines
        self.peer, self.meter, self.timeout = channel.peer, channel.meter, channel.timeout

    def send(self, data) -> None:
        self._note(data)
        self._channel.send(data)

    def exchange(self, data, size: int) -> bytearray:
        self._note(data)
        return self._channel.exchange(data, size)

    def send_message(self, message: dict) -> None:
        if not {"waiting", "queued"} & set(message):
            self._lines.append(json.dumps({name: _shown(name, value) for name, value in message.items()}))
        self._channel.send_message(message)

    def recv(self, size: int) -> bytearray:
        return self._channel.recv(size)

    def recv_message(self, limit: int = 65536) -> dict:
        return self._channel.recv_message(limit)

    def interrupt(self) -> None:
        self._channel.interrupt()

    def close(self) -> None:
        self._channel.close()

    def _note(self, data) -> None:
        payload = bytes(memoryview(data).cast("B"))
        self._lines.append(f"{len(payload)} bytes {hashlib.sha256(payload).hexdigest()[:16]}")


def _shown(name: str, value: object) -> object:
    return "measured" if name.endswith(("_s", "_mb", "seconds")) else value


class Recording:
    """Parties in threads. `channels`: by direction, what was sent; `masks`: by stream, how many labels were drawn, and
    their hash."""

    def __init__(self) -> None:
        self.channels: dict[str, list[str]] = {}
        self.errors: list[BaseException] = []
        self._ends: list[Channel] = []
        self._threads: list[threading.Thread] = []
        self._drawn: dict[str, Counter[str]] = {}
        self._lock = threading.Lock()

    def connect(self, a: str, b: str) -> tuple[RecordingChannel, RecordingChannel]:
        ends = memory_pair(a, b, TIMEOUT)
        self._ends += ends
        lines = [self.channels.setdefault(f"{x} -> {y}", []) for x, y in ((a, b), (b, a))]
        first, second = (RecordingChannel(end, to) for end, to in zip(ends, lines, strict=True))
        return first, second

    def start(self, work: Callable[[], None], name: str) -> None:
        def guarded() -> None:
            torch.set_num_threads(1)
            try:
                work()
            except BaseException as error:
                self.errors.append(error)
                for end in self._ends:
                    end.close()

        self._threads.append(threading.Thread(target=guarded, daemon=True, name=name))
        self._threads[-1].start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(TIMEOUT)
        if self.errors:
            raise self.errors[0]
        self._threads = []

    def drawing(self, draw: Callable) -> Callable:
        def integers(stream: Stream, label: str, shape: tuple[int, ...]) -> torch.Tensor:
            name = hashlib.sha256(stream._key).hexdigest()[:16]
            with self._lock:
                self._drawn.setdefault(name, Counter())[f"{label} {tuple(shape)}"] += 1
            return draw(stream, label, shape)

        return integers

    @property
    def masks(self) -> dict[str, str]:
        labels = {name: "\n".join(sorted(found.elements())) for name, found in sorted(self._drawn.items())}
        return {
            name: f"{text.count(chr(10)) + 1} labels {hashlib.sha256(text.encode()).hexdigest()[:16]}"
            for name, text in labels.items()
        }


def right(case: Case, outputs: dict[str, torch.Tensor]) -> None:
    """A rescale may round either way: its square differs by that."""
    for name, value in expected(case).items():
        assert ((outputs[name] - value).abs() <= 2 * value.abs().max().sqrt() + 2).all()


def two_parties(recording: Recording, folder: Path) -> None:
    """Set-up, a live query, two with the second made ahead, three kept in the spool; then a session on these."""
    case, dealer = small_case(), ThreadDealer(recording.connect, recording.start)
    spools = {role: Spool(folder / role) for role in ("server", "client")}
    for session in ("0a" * 16, "0b" * 16):
        to_client, to_server = recording.connect("server", "client")
        server = ServerParty(
            Served(case, SECRET), to_client, dealer.dialling(case.program, session),
            session=session, client_id="alice", spool=spools["server"],
        )  # fmt: skip
        client = ClientParty(
            case.program, case.constants, to_server, dealer.seeding(case.program, session),
            session=session, cache=folder / "cache", spool=spools["client"],
        )  # fmt: skip
        recording.start(lambda server=server: _serve(server), "server")
        client.set_up()
        for more in (False, True, False):
            right(case, client.query(case.client, more=more).outputs)
        if session == "0a" * 16:
            client.precompute(3)
        client.close()
        recording.join()


def with_a_helper(recording: Recording, folder: Path) -> None:
    """An owner's two queries; the second is announced."""
    case, session = small_case(), "0c" * 16
    program, dealer = for_two_servers(case.program), ThreadDealer(recording.connect, recording.start)
    moved = Case(program, {}, case.weights, case.constants)
    owner_helper, helper_owner = recording.connect("owner", "helper")
    owner_server, server_owner = recording.connect("owner", "server")
    helper_server, server_helper = recording.connect("helper", "server")
    server = ServerParty(
        Served(moved, SECRET), server_helper, dealer.dialling(program, session),
        session=session, outside=OwnerShares(server_owner, program),
    )  # fmt: skip
    client = ClientParty(program, case.constants, helper_server, dealer.seeding(program, session), session=session)
    helper = HelperParty(helper_owner, client)

    def help_owner() -> None:
        helper.set_up()
        helper.serve(idle=TIMEOUT)
        helper.close()

    recording.start(lambda: _serve(server), "server")
    recording.start(help_owner, "helper")
    owner = OwnerParty(program, owner_server, owner_helper)
    owner.set_up()
    for more in (True, False):
        owner.query(case.client, more=more)
    owner.close()
    recording.join()


def _serve(server: ServerParty) -> None:
    server.set_up()
    server.serve(idle=TIMEOUT)
    server.close()


class MeshCommunicator:
    """What rounds need of CrypTen's communicator, on memory channels, where sending does not wait."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def get_rank(self) -> int:
        return self.mesh.rank

    def get_world_size(self) -> int:
        return self.mesh.size

    def isend(self, tensor: torch.Tensor, dst: int) -> SimpleNamespace:
        self.mesh.channels[dst].send(tensor.numpy())
        return SimpleNamespace(wait=lambda: None)

    def irecv(self, tensor: torch.Tensor, src: int) -> SimpleNamespace:
        def wait() -> None:
            tensor.copy_(torch.frombuffer(self.mesh.channels[src].recv(tensor.numel()), dtype=torch.uint8))

        return SimpleNamespace(wait=wait)


def three_parties(recording: Recording, folder: Path) -> None:
    """Correlations of one query ahead, a query on these, a live one, one of CrypTen's tuples. Bob owns the data."""
    case, everybody = small_case(), Parties(PARTIES)
    request = Request.model_validate({"kind": "square", "sizes": [(2, 3)]})
    channels: dict[int, dict[int, Channel]] = {rank: {} for rank in range(3)}
    for a, b in itertools.combinations(range(3), 2):
        channels[a][b], channels[b][a] = recording.connect(PARTIES[a], PARTIES[b])
    keys = [seeds.new_seed() for _ in PARTIES]
    to_dealer, to_leader = recording.connect(PARTIES[0], "dealer")
    dealer = DealerParty(to_leader, case.program.hash(), lambda: keys[1:], owners=everybody.sources)
    held = [PartyModel(case.program, case.constants, case.weights), *[PartyModel(case.program, case.constants)] * 2]
    parties = [
        Party(everybody, Mesh(rank, channels[rank]), held[rank], keys[rank], to_dealer if rank == 0 else None)
        for rank in range(3)
    ]

    def follow(party: Party) -> None:
        party.communicator = MeshCommunicator(party.mesh)
        party.set_up()
        make_tuple(party.deal(request, 0), request, "tuple 0")
        if party.asks:
            party.ask_ahead(1)
            for _ in range(2):
                right(case, party.ask(case.client).outputs)
            party.goodbye()
        else:
            while party.follow(TIMEOUT, lambda number: {}) is not None:
                pass

    recording.start(lambda: dealer.serve(idle=TIMEOUT), "dealer")
    for party in parties:
        recording.start(lambda party=party: follow(party), PARTIES[party.rank])
    recording.join()


SESSIONS = {"two parties": two_parties, "with a helper": with_a_helper, "three parties": three_parties}


def record(name: str) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        drawn, recording = itertools.count(), Recording()
        source = SimpleNamespace(token_bytes=lambda size: next(drawn).to_bytes(size, "big"))
        patch.setattr(seeds, "secrets", source)
        patch.setattr(Stream, "integers", recording.drawing(Stream.integers))
        SESSIONS[name](recording, Path(folder))
        return {"channels": recording.channels, "masks": recording.masks, "seeds": next(drawn)}


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_sends_what_is_written(name):
    written = json.loads(GOLDEN.read_text())[name]
    found = record(name)
    assert found["channels"] == written["channels"]
    assert found == written


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: record(name) for name in SESSIONS}, indent=1) + "\n")
