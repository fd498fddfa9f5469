"""A tiny compiled model, and a dealer and a server of it that most tests share: starting them takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
from blindformer.models.artifacts import ClientPart, load_client, save
from blindformer.models.building import compile_lengths
from blindformer.models.loading.load import load
from blindformer.tests.shared.deployment import Deployment

TEXTS = ("how is my password ?", "not good , bad !", "the password is lost .", "what a good red !")


@pytest.fixture(scope="session")
def compiled(tiny_classifier, tmp_path_factory) -> Path:
    """DIR with a server's and a client's part, for lengths 8 and 12."""
    loaded = load(tiny_classifier)
    lengths = {length: compile_lengths(loaded, [length], texts=TEXTS)[length] for length in (8, 12)}
    return save(lengths, tmp_path_factory.mktemp("compiled"), loaded)


@pytest.fixture(scope="session")
def part(compiled) -> ClientPart:
    return load_client(compiled)


@pytest.fixture(scope="session")
def shared_site(compiled, tmp_path_factory):
    with Deployment(tmp_path_factory.mktemp("site"), compiled) as site:
        yield site


@pytest.fixture
def site(shared_site) -> Deployment:
    """A dealer and a server, ready, and started again after a test that ended one."""
    shared_site.restore()
    return shared_site
