"""A site of the small program, and a decoder in parts, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from blindformer.tests.models.generation.conftest import compiled, model, roomy, windowed  # noqa: F401
from blindformer.tests.parties.session.site import Site, small_case
from blindformer.tests.protocols.programs import Case


@pytest.fixture(scope="package")
def case() -> Case:
    return small_case()


@pytest.fixture
def site(case: Case) -> Iterator[Site]:
    site = Site(case)
    yield site
    for channel in site.channels:
        channel.close()


@pytest.fixture
def owner_of():
    """`owner_of(site, **options)`: a data owner whose session ends with the test."""
    with ExitStack() as stack:
        yield lambda site, **options: stack.enter_context(site.owner(**options))
