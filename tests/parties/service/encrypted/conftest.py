"""A tiny classifier for encrypted queries, in a ring that protects nothing, and one service for all tests."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from blindformer.models.artifacts import load_client, save
from blindformer.models.artifacts.client import sources_of
from blindformer.models.building import compile_lengths
from blindformer.models.compile import Compiled
from blindformer.models.encrypted import real_values
from blindformer.models.loading.load import load
from blindformer.parties.certificates.issuing import add_certificate, make_certificates
from blindformer.parties.certificates.tls_folder import client_context
from blindformer.parties.client.client import EncryptedClient
from blindformer.parties.config import parse_address
from blindformer.parties.launch import LocalOptions
from blindformer.parties.session.encrypted_queries import PROTOCOL, EncryptingClient
from blindformer.parties.transport.handshake import make_hello, meet, new_session
from blindformer.protocols.ckks.parameters import DEVIATION
from blindformer.tests.parties.service.answers import clear
from blindformer.tests.protocols.test_ckks import small
from blindformer.tests.shared.deployment import start_service
from blindformer.tests.shared.tiny import save_tokenizer, tiny_config

pytest.importorskip("tenseal")

from blindformer.protocols.ckks.keys import ClientKeys

TEXTS = ["how is my password ?", "not good , bad !", "the password is lost .", "what a good red !"]


@dataclass
class Made:
    """Of two texts of 8 tokens a query. `compiled`: what lies in `folder`."""

    folder: Path
    compiled: Compiled
    certificates: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    return build(tmp_path_factory.mktemp("encrypted"))


def build(root: Path) -> Made:
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    config = tiny_config(num_labels=3, id2label={0: "calm", 1: "glad", 2: "cross"}, initializer_range=0.2,
                         hidden_size=16, intermediate_size=16)  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(root / "model")
    save_tokenizer(root / "model")
    loaded = load(str(root / "model"))
    compiled = compile_lengths(loaded, [8], "he", texts=TEXTS, rows=2)
    folder = save(compiled, root / "compiled", loaded, {length: small(item, 512) for length, item in compiled.items()})
    make_certificates(root / "certs", keep_ca_key=True)
    add_certificate(root / "certs", "client", name="other")
    return Made(folder, compiled[8], root / "certs")


class Site:
    """A service of its own processes. `server`: more of its settings."""

    def __init__(self, made: Made, **server: Any) -> None:
        self.made = made
        own = {"listen": "127.0.0.1:0", "log_format": "json", **server}
        settings = {"session": {"protocol": "ckks"}, "certificates": {"folder": made.certificates}, "server": own}
        words = ("serve", str(made.folder / "server"), *LocalOptions(any_ring=True).words())
        self.service = start_service(*words, folder=made.folder, settings=settings)

    @property
    def address(self) -> str:
        return self.service.ready["address"]

    def client(self, **options) -> EncryptedClient:
        return EncryptedClient(
            self.address, folder=self.made.folder / "client", certificates=self.made.certificates, any_ring=True,
            **options,
        )  # fmt: skip

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *exc: object) -> None:
        self.service.end()


@pytest.fixture(scope="session")
def site(made):
    with Site(made, workers=1, queue=1, share=1, sessions=3, metrics="127.0.0.1:0") as running:
        yield running


ERROR = 2.0**-12 + 6 * DEVIATION


@pytest.fixture(scope="module")
def client(site):
    with site.client() as opened:
        yield opened


@pytest.fixture
def keyed(client):
    """The client's keys, which the server has now."""
    client.query(TEXTS[0])
    (keys,) = client.server.keyed.values()
    return keys


def connect(site, name="", role="client"):
    """A session of this certificate."""
    facts = load_client(site.made.folder).for_length().circuit.facts
    mine = make_hello("client", PROTOCOL, facts.hash(), new_session())
    context = client_context(site.made.certificates, role, name)
    session = EncryptingClient(meet(parse_address(site.address), context, "server", mine, 60), facts)
    session.set_up()
    return session


@pytest.fixture
def session(site):
    with closing(connect(site)) as opened:
        yield opened


@pytest.fixture
def other(site):
    """Of another client, with a certificate of its own."""
    with closing(connect(site, "other")) as opened:
        yield opened


def request_of(client, keys, texts):
    """Ciphertexts."""
    questions = [client.part.encode(text) for text in texts]
    values = real_values(questions[0].part.program, sources_of(questions))
    return list(keys.sealed_request(values))


def new_keys(client):
    part = client.part.for_length()
    return ClientKeys(part.circuit.ends, part.circuit.facts.parameters)


@pytest.fixture
def unharmed(client, made):
    yield
    expected = clear(made.compiled, sources_of([client.part.encode(TEXTS[1])]))["logits"][0]
    assert (client.query(TEXTS[1]).outputs["logits"][0] - expected).abs().max() < ERROR
