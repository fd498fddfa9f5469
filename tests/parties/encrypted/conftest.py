"""A tiny classifier for encrypted queries, in a ring that protects nothing, and one service for a module's tests."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from blindformer.models.artifacts import save
from blindformer.models.building import compile_lengths
from blindformer.models.compile import Compiled
from blindformer.models.loading import load
from blindformer.parties.certificates import add_certificate, make_certificates
from blindformer.parties.encrypted.client import EncryptedClient
from blindformer.tests.conftest import save_tokenizer, tiny_config
from blindformer.tests.parties.service.harness import Running
from blindformer.tests.protocols.test_ckks import small

pytest.importorskip("tenseal")

TEXTS = ["how is my password ?", "not good , bad !", "the password is lost .", "what a good red !"]


@dataclass
class Made:
    """Of two texts of 8 tokens a query. `compiled`: what lies in `folder`."""

    folder: Path
    compiled: Compiled
    certificates: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Made:
    from transformers import BertForSequenceClassification

    root = tmp_path_factory.mktemp("encrypted")
    torch.manual_seed(0)
    config = tiny_config(num_labels=3, id2label={0: "calm", 1: "glad", 2: "cross"}, initializer_range=0.2,
                         hidden_size=16, intermediate_size=16)  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(root / "model")
    save_tokenizer(root / "model")
    loaded = load(str(root / "model"))
    found = compile_lengths(loaded, [8], "he", texts=TEXTS, rows=2)
    folder = save(found, root / "compiled", loaded, {length: small(item, 512) for length, item in found.items()})
    make_certificates(root / "certs", keep_ca_key=True)
    add_certificate(root / "certs", "client", name="other")
    return Made(folder, found[8], root / "certs")


class Site:
    """A service of its own processes. `options`: more words of its command."""

    def __init__(self, made: Made, *options: str) -> None:
        self.made = made
        command = [sys.executable, "-P", "-m", "blindformer.parties.cli", "serve", str(made.folder / "server"),
                   "--protocol", "ckks", "--certs", str(made.certificates), "--listen", "127.0.0.1:0",
                   "--log-format", "json", "--any-ring", *options]  # fmt: skip
        self.service = Running(command)
        self.service.wait_for("ready", patience=120)

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


@pytest.fixture(scope="module")
def site(made):
    with Site(made, "--workers", "1", "--queue", "1", "--share", "1", "--sessions", "3",
              "--metrics", "127.0.0.1:0") as running:  # fmt: skip
        yield running
