"""Pairs of connected channels, one fixture for every transport; and models that several rooms ask."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from blindformer.models.artifacts import save
from blindformer.models.building import compile_folder, compile_lengths
from blindformer.models.compile import Compiled
from blindformer.models.generation.folder import compile_chat_folder, compile_seq2seq_folder
from blindformer.models.loading.load import Loaded, load
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.certificates.tls_folder import client_context, server_context
from blindformer.parties.transport.tls import dial, listen
from blindformer.tests.shared.deployment import Deployment
from blindformer.tests.shared.memory import memory_pair
from blindformer.tests.shared.once import folder_once, once
from blindformer.tests.shared.postgres import Postgres, find_programs
from blindformer.tests.shared.speech import tiny_whisper
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama


@pytest.fixture(scope="module")
def module_home(tmp_path_factory) -> Iterator[Path]:
    """An empty home, and so an empty cache, for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder := tmp_path_factory.mktemp("home")))
        yield folder


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, keep_ca_key=True)
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres for the tests of this process."""
    programs = find_programs()
    if programs is None:
        pytest.skip("Postgres is not installed; Debian has it: apt-get install postgresql")
    server = Postgres(programs)
    yield server
    server.close()


@pytest.fixture(scope="module")
def loaded(tiny_classifier) -> Loaded:
    return load(tiny_classifier)


TEXTS = ("how is my password ?", "not good , bad !", "the password is lost .", "what a good red !")


class Classifier(NamedTuple):
    """Compiled for 16 tokens: in memory, and in its folder."""

    compiled: Compiled
    folder: Path


@pytest.fixture(scope="session")
def classifier(tiny_classifier) -> Classifier:
    loaded = load(tiny_classifier)
    compiled = once("classifier-16", lambda: compile_lengths(loaded, [16], texts=TEXTS)[16])
    return Classifier(compiled, folder_once("classifier", lambda folder: save(compiled, folder, loaded)))


@pytest.fixture(scope="session")
def compiled(tiny_classifier) -> Path:
    """A classifier's folder with a server's and a client's part, for lengths 8 and 16."""
    return folder_once("compiled", partial(compile_folder, tiny_classifier, lengths=[8, 16], calibration=TEXTS))


@pytest.fixture(scope="module")
def site(compiled, tmp_path_factory) -> Iterator[Deployment]:
    """The classifier's dealer and server."""
    with Deployment(tmp_path_factory.mktemp("site"), compiled) as site:
        yield site


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory) -> Path:
    """A language model, compiled for conversations of 48 tokens in passes of 1 and 8."""
    model = tiny_llama(tmp_path_factory.mktemp("model"), TEMPLATE)
    return folder_once("chat", partial(compile_chat_folder, model, slots=48, sizes=(1, 8)))


@pytest.fixture(scope="session")
def heard_folder() -> Path:
    """A Whisper, compiled for answers of 12 tokens. The model itself is in the folder `model` beside it."""

    def write(folder: Path) -> None:
        compile_seq2seq_folder(tiny_whisper(folder / "model"), folder / "compiled", slots=12, sizes=(1, 8))

    return folder_once("heard", write) / "compiled"


@pytest.fixture
def aside():
    """Run a function in another thread: `aside(f, *args)` gives its Future."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def connect(kind: str, folder: Path, timeout: float):
    """(server's channel, client's channel)."""
    if kind == "memory":
        return memory_pair("server", "client", timeout)
    context = server_context(folder, "server")
    with listen("127.0.0.1", 0, context, timeout=timeout) as listener, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(listener.accept, 10, {"client"})
        client = dial(*listener.address, client_context(folder, "client"), "server", timeout=timeout)
        return accepted.result(), client


@pytest.fixture(params=["memory", "tls"])
def make_pair(request, certificates):
    """`make_pair(timeout=...)` gives (server's channel, client's channel) over each transport."""
    opened = []

    def make(timeout: float = 20):
        pair = connect(request.param, certificates, timeout)
        opened.extend(pair)
        return pair

    yield make
    for channel in opened:
        channel.close()
