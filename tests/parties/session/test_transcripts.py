"""Every message and frame of a session, as the file beside this one has them: the wire format's specification.

Seeds are fixed, so frames and masks are the same in every run. A change of what is sent is a change of the protocol: it
raises `versions.PROTOCOL`. Run this file as a module to write the transcripts anew.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from blindformer.parties.session.dealing import DealerParty
from blindformer.parties.session.masked_weights import Served
from blindformer.parties.session.n_party import Party, PartyModel
from blindformer.parties.session.parties import Parties
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.parties.session.weight_transfer import MaskedCache
from blindformer.parties.transport.frames import MESSAGE
from blindformer.protocols import seeds
from blindformer.protocols.channel import Channel
from blindformer.protocols.crypten.mesh import Mesh
from blindformer.protocols.crypten.tuples import Request, make_tuple
from blindformer.protocols.streams import Stream
from blindformer.tests.parties.session.site import SECRET, Site, right, small_case
from blindformer.tests.protocols.programs import Case, handed_over

GOLDEN = Path(__file__).with_name("transcripts.json")
TIMEOUT = 60.0
PARTIES = ("alice", "bob", "carol")


class Recording(Site):
    """`lines`: by direction, what was sent; `masks`: by stream, how many labels were drawn, and their hash.

    Signs of life are left out: when they come is chance.
    """

    def __init__(self, case: Case, **options: Any) -> None:
        super().__init__(case, timeout=TIMEOUT, **options)
        self.lines: dict[str, list[str]] = {}
        self._drawn: dict[str, Counter[str]] = {}
        self._lock = threading.Lock()

    def connect(self, a: str, b: str) -> Any:
        pair = super().connect(a, b)
        for end, direction in zip(pair, (f"{a} -> {b}", f"{b} -> {a}"), strict=True):
            note = functools.partial(_note, self.lines.setdefault(direction, []), end._move)
            end._move = note
        return pair

    def drawing(self, draw: Callable) -> Callable:
        def integers(stream: Stream, label: str, shape: tuple[int, ...], *options: int) -> torch.Tensor:
            name = hashlib.sha256(stream.key).hexdigest()[:16]
            with self._lock:
                self._drawn.setdefault(name, Counter())[f"{label} {tuple(shape)}"] += 1
            return draw(stream, label, shape, *options)

        return integers

    @property
    def masks(self) -> dict[str, str]:
        labels = {name: "\n".join(sorted(counts.elements())) for name, counts in sorted(self._drawn.items())}
        return {
            name: f"{text.count(chr(10)) + 1} labels {hashlib.sha256(text.encode()).hexdigest()[:16]}"
            for name, text in labels.items()
        }


def _note(lines: list[str], move: Callable, kind: int, data: memoryview | None, incoming: Any) -> None:
    if data is not None and kind == MESSAGE:
        message = json.loads(bytes(data))
        if not {"waiting", "queued"} & set(message):
            lines.append(json.dumps({name: _shown(name, value) for name, value in message.items()}))
    elif data is not None:
        lines.append(f"{len(data)} bytes {hashlib.sha256(data).hexdigest()[:16]}")
    move(kind, data, incoming)


def _shown(name: str, value: object) -> object:
    return "measured" if name.endswith(("_s", "_mb", "seconds")) else value


def two_parties(site: Recording, folder: Path) -> None:
    """Set-up, a live query, two with the second made ahead, three kept in the store; then a session on these."""
    site.store, mine = PreprocessingStore(folder / "server"), PreprocessingStore(folder / "client")
    for session in ("0a" * 16, "0b" * 16):
        site.served = Served(site.case, SECRET)  # as after a restart
        with site.client(session=session, cache=MaskedCache(folder / "cache"), store=mine) as client:
            for more in (False, True, False):
                site.ask(client, more)
            if session == "0a" * 16:
                client.precompute(3)
        site.end()


def with_a_helper(site: Recording, folder: Path) -> None:
    """An owner's two queries; the second is announced."""
    with site.owner(session="0c" * 16) as owner:
        for more in (True, False):
            site.ask(owner, more)


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


def three_parties(site: Recording, folder: Path) -> None:
    """Two queries, and one of CrypTen's tuples. Bob owns the data."""
    case, everybody = site.case, Parties(PARTIES)
    request = Request.model_validate({"kind": "square", "sizes": [(2, 3)]})
    channels: dict[int, dict[int, Channel]] = {rank: {} for rank in range(3)}
    for a, b in itertools.combinations(range(3), 2):
        channels[a][b], channels[b][a] = site.connect(PARTIES[a], PARTIES[b])
    keys = [seeds.new_seed() for _ in PARTIES]
    to_dealer, to_leader = site.connect(PARTIES[0], "dealer")
    dealer = DealerParty(to_leader, case.program.hash(), lambda: keys[1:], owners=everybody.sources)
    models = [PartyModel(case.program, case.constants, case.weights), *[PartyModel(case.program, case.constants)] * 2]
    parties = [
        Party(everybody, Mesh(rank, channels[rank]), models[rank], keys[rank], to_dealer if rank == 0 else None)
        for rank in range(3)
    ]

    def follow(party: Party) -> None:
        party.communicator = MeshCommunicator(party.mesh)
        party.set_up()
        make_tuple(party.deal(request, 0), request, "tuple 0")
        if party.asks:
            for _ in range(2):
                right(case, party.ask(case.client).outputs)
            party.goodbye()
        else:
            while party.follow(TIMEOUT, lambda number: {}) is not None:
                pass

    site.start(lambda: dealer.serve(idle=TIMEOUT), "dealer")
    for party in parties:
        site.start(lambda party=party: follow(party), PARTIES[party.rank])


SESSIONS = {"two parties": two_parties, "with a helper": with_a_helper, "three parties": three_parties}


def record(name: str) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        drawn = itertools.count()
        source = SimpleNamespace(token_bytes=lambda size: next(drawn).to_bytes(size, "big"))
        patch.setattr(seeds, "secrets", source)
        case = small_case()
        site = Recording(handed_over(case) if name == "with a helper" else case)
        patch.setattr(Stream, "integers", site.drawing(Stream.integers))
        SESSIONS[name](site, Path(folder))
        site.end()
        return {"channels": site.lines, "masks": site.masks, "seeds": next(drawn)}


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_sends_what_is_written(name):
    written = json.loads(GOLDEN.read_text())[name]
    recorded = record(name)
    assert recorded["channels"] == written["channels"]
    assert recorded == written


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: record(name) for name in SESSIONS}, indent=1) + "\n")
