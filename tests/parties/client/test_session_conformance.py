"""Every protocol in every place: sessions open, answer, fail and close alike, and a client asks them alike."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from blindformer.models.artifacts import load_client
from blindformer.models.artifacts.client import together
from blindformer.models.artifacts.server import load_compiled
from blindformer.models.compile import AnswerOutOfRange
from blindformer.models.delegated.part import delegated_part
from blindformer.models.loading.load import load
from blindformer.models.lowering.structure import tensors_of
from blindformer.models.program.program import ProgramError
from blindformer.parties.client.base import BaseClient
from blindformer.parties.client.canaries import CanaryError, make_known, write_known
from blindformer.parties.client.client import Client, LocalClient
from blindformer.parties.client.delegated import ServedSession as DelegatedServed
from blindformer.parties.client.local import ClearSession, LocalParties, find_local
from blindformer.parties.client.local_n_party import LocalNParty
from blindformer.parties.client.session import ClientError, Session
from blindformer.parties.launch.processes import LaunchError
from blindformer.parties.session.messages import SlotsBusy
from blindformer.parties.session.parties import numbered
from blindformer.protocols.errors import PeerError
from blindformer.protocols.kernels import library
from blindformer.tests.gpu import pretended
from blindformer.tests.parties.service.helped import Helped
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.deployment import Deployment
from blindformer.tests.shared.threads import DelegatedThreads, ThreadParties

if TYPE_CHECKING:
    from blindformer.tests.parties.service.encrypted.conftest import Made

TEXTS = ("how is my password ?", "not good , bad !")
TIMEOUT = 20.0
ONE = {"sessions": 1, "share": 1}


@dataclass
class Place:
    """A compiled folder, and how sessions of it and clients are opened here.

    session   () opens a session; `narrow`: with bounds so narrow that no answer is within
    client    (**options); None where nobody asks through one
    lose      ends what a session depends on, of the last session or of this client
    sent      whether something is sent before the first query: masked weights or keys
    blind     who learns nothing
    """

    protocol: str
    folder: Path
    session: Callable[[], Session]
    client: Callable[..., BaseClient]
    lose: Callable[[Any], None] = lambda opened: None
    narrow: Callable[[], Session] | None = None
    tolerance: float = 0.003
    sent: bool = True
    blind: str = "server"
    inputs: list[dict[str, torch.Tensor]] = field(default_factory=list)
    expected: list[dict[str, torch.Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.inputs:
            return
        part = load_client(self.folder)
        self.inputs = [together([part.encode(text)]) for text in TEXTS]
        with ClearSession(self.folder) as clear:
            self.expected = [clear.query(inputs).outputs for inputs in self.inputs]

    def check(self, outputs: dict[str, torch.Tensor], number: int, rows: slice = slice(None)) -> None:
        assert outputs.keys() == self.expected[number].keys()
        for name, value in outputs.items():
            torch.testing.assert_close(value, self.expected[number][name][rows], atol=self.tolerance, rtol=0)


@contextmanager
def clear(folder: Path, root: Path) -> Iterator[Place]:
    client = partial(LocalClient, find_local("clear"), folder)
    yield Place("clear", folder, lambda: ClearSession(folder), client, sent=False)


@contextmanager
def beaver_threads(folder: Path, root: Path) -> Iterator[Place]:
    compiled = load_compiled(folder)
    client = partial(Client, "local", folder=folder)
    yield Place("beaver", folder, lambda: ThreadParties(compiled, timeout=PATIENCE), client)


@contextmanager
def beaver_on_gpu(folder: Path, root: Path) -> Iterator[Place]:
    """Of which each operation on two devices, and each look into its memory, is refused (tests/gpu.py)."""
    with pretended(), beaver_threads(folder, root) as place:
        place.session = lambda: ThreadParties(load_compiled(folder), timeout=PATIENCE, device="cuda")
        yield place


@contextmanager
def delegated_threads(folder: Path, root: Path) -> Iterator[Place]:
    """Of the model itself: inputs of any shape have an answer, and no answer is out of range."""
    loaded = load(root / "model")
    part = delegated_part(loaded)
    inputs = [part.encode(text).inputs for text in TEXTS]
    with torch.no_grad():
        expected = [dict(tensors_of(loaded.model(**one))) for one in inputs]
    threads = DelegatedThreads(part.model, timeout=PATIENCE)
    given: dict[str, Any] = {"sent": False, "inputs": inputs, "expected": expected}

    def session() -> Session:
        return DelegatedServed(part, threads.client(), 0.0)

    def lose(opened: Any) -> None:
        opened.party.server.interrupt()

    yield Place("delegated", folder, session, partial(Client, "local"), lose, **given)
    threads.close()


def kill_server(opened: Any) -> None:
    """Of services that run for this session or client."""
    services = opened.services if isinstance(opened, Session) else opened.parties.services
    os.kill(services.processes["server"], signal.SIGKILL)


@contextmanager
def beaver_here(folder: Path, root: Path) -> Iterator[Place]:
    client = partial(Client, "local", folder=folder, timeout=TIMEOUT)
    yield Place("beaver", folder, lambda: LocalParties(folder, timeout=TIMEOUT), client, kill_server)


@contextmanager
def pair_here(folder: Path, root: Path) -> Iterator[Place]:
    """Without a dealer."""
    pytest.importorskip("seal")
    if library.library is None:
        pytest.skip("homomorphic products need C kernels")
    options: dict[str, Any] = {"timeout": TIMEOUT, "dealer": "none"}
    client = partial(Client, "local", folder=folder, **options)
    yield Place("beaver", folder, lambda: LocalParties(folder, **options), client, kill_server)


@contextmanager
def beaver_remote(folder: Path, root: Path) -> Iterator[Place]:
    with Deployment(root, folder, server=ONE) as site, served(site, "server") as place:
        yield place


@contextmanager
def helper(folder: Path, root: Path) -> Iterator[Place]:
    with Helped(root, folder, **ONE) as site, served(site, "helper") as place:
        yield place


def opened_by(client: BaseClient) -> Any:
    """A session; the service has one, and may not have seen the end of the last."""
    get = partial(client.sessions.get, client.part.for_length())
    return client.sessions.ask_with_retry(get, get, lambda error: False)[0]


@contextmanager
def served(site: Deployment, role: str) -> Iterator[Place]:
    """`role`: whose process of the last session is killed."""

    def client(**options: Any) -> Client:
        # Its own cache: the run's other workers serve the same model with the same secret, so the same masked weights.
        return site.client(**{"wait": PATIENCE, "cache": site.folder / "cache", **options})

    def lose(opened: Any) -> None:
        os.kill(getattr(site, role).logged("session-opened")[-1]["pid"], signal.SIGKILL)

    with client() as opener:  # sessions are opened as a client opens them, and closed by the tests
        there = {"sent": role == "server", "blind": role}  # a helper has the masked weights
        yield Place("beaver", site.compiled, lambda: opened_by(opener), client, lose, **there)


@contextmanager
def crypten_here(folder: Path, root: Path) -> Iterator[Place]:
    if find_spec("crypten") is None:
        pytest.skip("crypten is not installed")
    compiled = load_compiled(folder)
    outputs = set(compiled.program.outputs.values())
    instructions = tuple(
        replace(item, bound=1e-9) if number in outputs else item
        for number, item in enumerate(compiled.program.instructions)
    )
    narrowed = replace(compiled, program=compiled.program.model_copy(update={"instructions": instructions}))

    def lose(opened: Any) -> None:
        session = opened if isinstance(opened, Session) else opened.sessions.opened(opened.part.for_length())
        os.kill(session.processes["alice"], signal.SIGKILL)

    yield Place(
        "crypten",
        folder,
        lambda: LocalNParty(folder, numbered(2), timeout=PATIENCE),
        partial(LocalClient, find_local("crypten"), folder, timeout=PATIENCE),
        lose,
        lambda: LocalNParty(narrowed, numbered(2), timeout=PATIENCE),
        tolerance=0.01,
        blind="alice",
    )


@cache
def encrypted(parent: Path) -> Made:
    """A model for encrypted queries: both places with them have it."""
    from blindformer.tests.parties.service.encrypted.conftest import build

    (root := parent / "encrypted").mkdir()
    return build(root)


@contextmanager
def ckks_here(folder: Path, root: Path) -> Iterator[Place]:
    pytest.importorskip("tenseal")
    from blindformer.parties.client.client import EncryptedClient
    from blindformer.parties.client.encrypted import LocalEncrypted
    from blindformer.tests.parties.service.encrypted.conftest import ERROR

    compiled = encrypted(root.parent)
    yield Place(
        "ckks",
        compiled.folder,
        lambda: LocalEncrypted(compiled.folder, any_ring=True),
        partial(EncryptedClient, "local", folder=compiled.folder, any_ring=True),
        kill_server,
        tolerance=ERROR,
    )


@contextmanager
def ckks_remote(folder: Path, root: Path) -> Iterator[Place]:
    pytest.importorskip("tenseal")
    from blindformer.tests.parties.service.encrypted.conftest import ERROR, Site

    compiled = encrypted(root.parent)
    with Site(compiled, workers=1, sessions=3, share=1) as site, site.client() as opener:
        part = opener.part.for_length()

        def lose(opened: Any) -> None:
            """The server forgets this side's keys."""
            server = opened.server
            (keyed,) = server.keyed.values()
            with server.connection(*server.facts.values(), lambda *of: None) as connection:
                connection.forget(keyed.name)

        yield Place("ckks", compiled.folder, lambda: opener.sessions.get(part), site.client, lose, tolerance=ERROR)


OF_THREADS = (beaver_threads, beaver_on_gpu, delegated_threads)
OPENED = (clear, *OF_THREADS, beaver_here, pair_here, beaver_remote, helper, crypten_here, ckks_here, ckks_remote)
PLACES = {opened.__name__: opened for opened in OPENED}
CLIENTS = [opened.__name__ for opened in OPENED if opened not in OF_THREADS]
LOST = [name for name in CLIENTS if name != "clear"]
NO_NARROW_CLIENT = ("crypten_here", "pair_here")  # the second is asked by the class of beaver_here
BOUNDED = [name for name in PLACES if name != "delegated_threads"]


@pytest.fixture(scope="module", params=PLACES)
def place(request, folder, tiny_classifier, tmp_path_factory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp(request.param)
    (root / "model").symlink_to(tiny_classifier)
    with PLACES[request.param](folder, root) as opened_place:
        yield opened_place


def test_answers_are_those_of_clear_and_say_what_they_cost_until_the_session_is_closed(place):
    with place.session() as session:
        for number, inputs in enumerate(place.inputs):
            reply = session.ask(inputs, more=number == 0)
            place.check(reply.outputs(), number)
            report = reply.report
            assert (report.protocol, report.setup_bytes) == (session.protocol, session.setup_bytes)
            assert report.protocol == place.protocol
            assert (report.setup_bytes > 0) == place.sent
            assert ("learns nothing" in report.learned.get(place.blind, "")) == (
                place.protocol not in ("clear", "ckks")
            )
            assert (report.rounds > 0, report.online_bytes > 0) == (place.protocol != "clear",) * 2
            assert report.online_s > 0
            line = type(session).costs([report], "a text")
            assert line
            assert "\n" not in line
    session.close()
    assert not session.open
    with pytest.raises(ClientError, match="the session is closed; open a new one"):
        session.query(place.inputs[0])


def narrowed(session: Session) -> Session:
    """With bounds so narrow that no answer is within."""
    instructions = [replace(item, bound=1e-9) for item in session.program.instructions]
    session.program = session.program.model_copy(update={"instructions": tuple(instructions)})
    return session


@pytest.mark.parametrize("place", BOUNDED, indirect=True)
def test_wrong_inputs_and_an_answer_out_of_range_end_their_query_alone(place):
    with narrowed((place.narrow or place.session)()) as session:
        with pytest.raises(ProgramError, match=r"input .*: has shape \[\d, 4\], the program takes"):
            session.query({name: value[:, :4] for name, value in place.inputs[0].items()})
        for inputs in place.inputs:
            with pytest.raises(AnswerOutOfRange, match="far outside the calibrated range"):
                session.query(inputs)
        assert session.open


@pytest.mark.parametrize("place", [*LOST, "delegated_threads"], indirect=True)
def test_a_session_that_is_lost_says_whose_fault_it_was(place):
    with place.session() as session:
        session.query(place.inputs[0])
        place.lose(session)
        with pytest.raises((PeerError, LaunchError)) as caught:
            session.query(place.inputs[0])
        assert caught.value.party in ("server", "helper", "alice")
        assert session.lost(caught.value)
        assert not session.open


@pytest.mark.parametrize("place", CLIENTS, indirect=True)
def test_a_client_gives_the_same_answers(place):
    with place.client() as client:
        for number, result in enumerate(client.query_many(TEXTS)):
            place.check(result.outputs, number, slice(1) if len(place.expected[number]["logits"]) > 1 else slice(None))
            assert (result.retried, result.report.protocol) == ("", client.protocol)
        assert client.costs([result.report])
        assert client.who
    client.close()
    with pytest.raises(ClientError, match="is closed; make a new one"):
        client.query(TEXTS[0])


@pytest.mark.parametrize("place", [name for name in CLIENTS if name not in NO_NARROW_CLIENT], indirect=True)
def test_a_client_asks_all_though_an_answer_is_out_of_range(place):
    with place.client() as client:
        narrowed(opened_by(client))
        results = [result for _, result in client.stream(TEXTS)]
        assert [type(result.error) for result in results] == [AnswerOutOfRange] * 2
        assert [(result.value, result.report.online_s > 0) for result in results] == [(None, True)] * 2
        client.sessions.progress = lambda *what: progress.append(what)
        progress: list[tuple[str, int, int]] = []
        with pytest.raises(AnswerOutOfRange):
            client.query_many(TEXTS)
        assert ("query", 2, 2) in progress


@pytest.mark.parametrize("place", ["beaver_here", "ckks_here"], indirect=True)
def test_a_client_s_own_known_answers_accuse_no_honest_server(place, tmp_path):
    """And one whose answers are others."""
    file = tmp_path / "known.jsonl"
    with place.client() as client:
        known = make_known(client, TEXTS)
        for answer in known:
            place.check(answer.outputs, TEXTS.index(answer.item), slice(1))
            assert max(answer.tolerance.values()) <= 8 * place.tolerance
        write_known(file, known)
        client.use_canaries(file, 0.5)
        client.query_many(TEXTS * 4)
        report = client.canaries.report
        assert (report.asked, report.canaries, report.unlike) == (16, 8, ())
        assert report.requests == 8 or place.protocol == "ckks"
        write_known(file, [replace(one, outputs={n: x + 0.5 for n, x in one.outputs.items()}) for one in known])
        client.use_canaries(file, 0.5)
        with pytest.raises(CanaryError, match=r"2 not as known \(known.jsonl, line \d: logits is off by 0\.[45]"):
            client.query_many(TEXTS)


@pytest.mark.parametrize("place", LOST, indirect=True)
def test_a_client_asks_again_once_in_a_new_session(place):
    with place.client() as client:
        assert client.query(TEXTS[0]).retried == ""
        place.lose(client)
        again = client.query(TEXTS[1])
        assert again.retried
        place.check(again.outputs, 1, slice(1) if len(place.expected[1]["logits"]) > 1 else slice(None))
        assert client.query(TEXTS[0]).retried == ""


@pytest.mark.parametrize("place", ["beaver_remote", "helper"], indirect=True)
def test_a_busy_server_is_asked_again_until_the_wait_is_over(place):
    with place.client() as holder:
        holder.query(TEXTS[0])
        with place.client(wait=0) as client, pytest.raises(SlotsBusy, match="ask again in") as caught:
            client.query(TEXTS[0])
        assert caught.value.retry_after > 0
        seen = []

        def leave(phase: str, done: int, total: int) -> None:
            seen.append(phase)
            if phase == "busy":
                holder.close()

        with place.client(progress=leave) as client:
            assert client.query(TEXTS[0]).retried == ""  # it had not been taken: there was one attempt
        assert "busy" in seen
