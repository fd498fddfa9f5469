"""A tiny compiled model, and a dealer and a server of it that most tests share: starting them takes seconds."""

from __future__ import annotations

import pytest
from blindformer.models.artifacts import ClientPart, load_client
from blindformer.tests.shared.deployment import Deployment


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
